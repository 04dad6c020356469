"""(alpha, beta)-metrics by their function phi, and those of Matsumoto and Kropina.

With ``alpha = sqrt(v' M v)``, ``beta = omega' v`` and ``s = beta / alpha`` they are
``F(v) = alpha phi(s)``; ``|s|`` is at most ``b = |omega|_{M^-1}``.
"""

from collections.abc import Callable
from typing import NoReturn, final

from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    as_number,
    check_floating,
    check_vectors,
    first_index,
    has_values,
    identity_like,
    namespace,
    safe_sqrt,
)
from finslerconv._linalg import check_spd, dot, matvec, outer, solve
from finslerconv._norms import norm_off_zero
from finslerconv.metrics._combinators import gradient_of_dual
from finslerconv.metrics._one_form import OneFormMetric, check_all, check_below
from finslerconv.metrics._revolution import dual_of_revolution, profile_values


@final
class AlphaBeta(OneFormMetric):
    r"""The metric ``F(v) = alpha phi(beta / alpha)`` of any function ``phi``.

    Here ``alpha = sqrt(v' M v)`` and ``beta = omega' v``. Immutable by convention.

    Parameters
    ----------
    phi : callable
        A positive function of ``s = beta / alpha``, element by element: from an array of the kind
        of ``M`` to one of its shape. ``1 + s`` is :class:`Randers`, ``1 / (1 - s)``
        :class:`Matsumoto`, ``(1 + s)^2`` the square metric of Berwald. It may have parameters that
        record gradients.
    M : array, shape (..., d, d)
        Symmetric positive definite matrices, in 1 / pixels^2.
    omega : array, shape (..., d)
        One-forms, in 1 / pixels. The batches of both broadcast.
    validate : bool
        Whether to check the values.

    Raises
    ------
    TypeError
        If ``phi`` is not callable, or another argument no array of real floats.
    ValueError
        If the shapes do not fit, a matrix is not symmetric positive definite, or the condition
        below fails at one of 129 values of ``s``; the message names the first.

    Notes
    -----
    With ``b = |omega|_{M^-1}`` this is a strongly convex norm exactly if ``phi(s) > 0`` and

    .. math:: \phi(s) - s \phi'(s) + (b^2 - s^2) \phi''(s) > 0 \quad\text{for } |s| \le b

    (Chern, Shen, "Riemann-Finsler Geometry", 2005, lemma 1.1.2). In the plane this is the curvature
    of the indicatrix, and nothing else is needed. Above the plane the fundamental tensor has the
    eigenvalues of ``phi - s phi'`` too; they are positive if the condition holds for all
    ``|s| <= b``, since a convex curve turned about its axis of symmetry is a convex surface. On
    the line only ``phi > 0`` counts.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import AlphaBeta
    >>> square = AlphaBeta(lambda s: (1 + s) ** 2, np.eye(2), np.array([0.0, 0.5]))
    >>> square.norm(np.array([[0.0, 1.0], [0.0, -1.0]]))
    array([2.25, 0.25])
    """

    def __init__(
        self,
        phi: Callable[[Array], Array],
        M: Float[Array, "*#batch d d"],
        omega: Float[Array, "*#batch d"],
        *,
        validate: bool = True,
    ) -> None:
        if not callable(phi):
            raise TypeError(f"phi: expected a callable, got {type(phi).__name__}")
        self.phi = phi
        super().__init__(M, omega, validate=validate)

    def _of(self, M: Array, omega: Array) -> "AlphaBeta":
        return AlphaBeta(self.phi, M, omega, validate=False)

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``alpha phi(beta / alpha)``, shape ``(...)``.

        At ``v = 0`` the derivative is taken as 0.
        """
        return _norm(self, self.phi, v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms of covectors ``p``, shape ``(...)``.

        The maximum is attained in the plane of ``M^-1 p`` and ``M^-1 omega``, whatever the
        dimension; there it is found by golden section. Differentiable to every order of use.
        """
        return _dual_norm(self, self.phi, p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0."""
        return gradient_of_dual(self, p)

    def validate(self) -> None:
        """Check that every ``M`` is positive definite, ``phi`` positive and the metric convex.

        Raises
        ------
        ValueError
            It names the first index at which it is not.
        """
        check_spd("M", self.M)
        check_all("omega", _finite(self.omega), self.omega, "finite one-forms")
        b = self.omega_norm()
        if not has_values(b):
            return
        values, convexity, s = profile_values(self.phi, b)
        if self.dim == 1:  # there are two directions
            values, convexity, s = values[::128], values[::128], s[::128]
        xp = namespace(b)
        tolerance = 16 * xp.finfo(b.dtype).eps * xp.max(xp.abs(values), axis=0)
        for good, wanted in (
            (values > 0, "phi(s) > 0"),  # NaN is not
            # The difference of three values has been divided by the square of their distance.
            (convexity > -2e3 * tolerance, "phi(s) - s phi'(s) + (b^2 - s^2) phi''(s) > 0"),
        ):
            if not bool(xp.all(good)):
                sample, *index = first_index(~good)
                where = f" at index {tuple(index)}" if index else ""
                raise ValueError(
                    f"phi: expected {wanted} for |s| <= b = {float(b[tuple(index)]):.6g}, which "
                    f"fails at s = {float(s[(sample, *index)]):.6g}{where}"
                )


@final
class Matsumoto(OneFormMetric):
    """The metric ``F(v) = alpha^2 / (alpha - beta)`` of a slope, with ``|omega|_{M^-1} < 1/2``.

    Here ``alpha = sqrt(v' M v)`` and ``beta = omega' v``. It is the time that walking takes on the
    slope of a mountain, ``omega`` pointing uphill (:meth:`from_slope`). The unit ball is a limaçon
    of Pascal: in the frame where ``alpha`` is Euclidean its radius is ``1 - b cos(t)``, with
    ``b = |omega|_{M^-1}``, at the angle ``t`` from uphill. Immutable by convention.

    Parameters
    ----------
    M : array, shape (..., d, d)
        Symmetric positive definite matrices, in 1 / pixels^2.
    omega : array, shape (..., d)
        One-forms, in 1 / pixels. The batches of both broadcast.
    validate : bool
        Whether to check the values (one pass over the data; on a GPU it waits for them).

    Raises
    ------
    TypeError
        If an argument is no array of real floats.
    ValueError
        If the shapes do not fit, a matrix is not symmetric positive definite, or a one-form is not
        below 1/2 in norm, where the limaçon has a dent; the message names the first.

    Notes
    -----
    Matsumoto, "A slope of a mountain is a Finsler surface with respect to a time measure" (J. Math.
    Kyoto Univ. 29, 1989), after a letter of Finsler.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Matsumoto
    >>> metric = Matsumoto(np.eye(2), np.array([-0.25, 0.0]))  # uphill is up
    >>> metric.norm(np.array([[1.0, 0.0], [-1.0, 0.0]])).round(4)
    array([0.8   , 1.3333])
    """

    @classmethod
    def from_slope(
        cls,
        gradient: Float[Array, "*batch d"],
        speed: float = 1.0,
        pull: float = 0.5,
        *,
        validate: bool = True,
    ) -> "Matsumoto":
        """Return the walking times on the graph of a height, in the coordinates of the map.

        Who walks at ``speed`` on the plain advances on a slope of angle ``e`` at the speed
        ``speed + pull sin(e) cos(t)``, ``t`` the angle from downhill: gravity carries along the
        path, and the feet hold against what it pulls to the side.

        Parameters
        ----------
        gradient : array, shape (..., d)
            Gradients of the height over the map; they point uphill.
        speed : float
            The speed on the plain, in pixels per unit of time.
        pull : float
            The speed that gravity adds straight down a wall: ``g / 2`` in Matsumoto's paper, the
            way that a body falls in the first unit of time.
        validate : bool
            Whether to check the values.

        Raises
        ------
        ValueError
            If somewhere ``pull sin(e) >= speed / 2``: too steep for the metric to be convex.
        """
        xp = check_floating(gradient=gradient)
        speed, pull = as_number("speed", speed, above=0), as_number("pull", pull)
        check_vectors("gradient", gradient, gradient.shape[-1] if gradient.ndim else 1)
        eye = identity_like(gradient.shape[-1], gradient) + xp.zeros_like(gradient)[..., None]
        M = (eye + outer(gradient, gradient)) / speed**2
        return cls(M, pull / speed**2 * gradient, validate=validate)

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``alpha^2 / (alpha - beta)``, shape ``(...)``.

        At ``v = 0`` the derivative is taken as 0.
        """
        return _norm(self, _matsumoto, v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms of covectors ``p``, shape ``(...)``.

        The maximum is attained in the plane of ``M^-1 p`` and ``M^-1 omega``, whatever the
        dimension; there it is found by golden section. Differentiable to every order of use.
        """
        return _dual_norm(self, _matsumoto, p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0."""
        return gradient_of_dual(self, p)

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return the largest ``F(-v) / F(v)``, which is ``(1 + b) / (1 - b)``, b = omega_norm()."""
        b = self.omega_norm()
        return (1 + b) / (1 - b)

    def validate(self) -> None:
        """Check that every ``M`` is positive definite and every ``|omega|_{M^-1}`` below 1/2.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        check_spd("M", self.M)
        check_below("omega", self.omega_norm(), 0.5, "|omega|_{M^-1}")


@final
class Kropina(OneFormMetric):
    """The conic metric ``F(v) = alpha^2 / beta`` on the half-space ``beta > 0``.

    Here ``alpha = sqrt(v' M v)`` and ``beta = omega' v``. It is navigation in a wind exactly as
    strong as the boat: the unit ball is an ellipse, of centre ``M^-1 omega / 2``, with the origin
    **on** its rim. What is not in the half-space is never reached: ``F(v)`` is infinity there, and
    0 at ``v = 0``; the indicatrix and :func:`~finslerconv.balls.radial` give the origin. Immutable
    by convention.

    Parameters
    ----------
    M : array, shape (..., d, d)
        Symmetric positive definite matrices.
    omega : array, shape (..., d)
        One-forms, none zero. The batches of both broadcast. Only ``M / |omega|`` counts: doubling
        both changes nothing.
    validate : bool
        Whether to check the values (one pass over the data; on a GPU it waits for them).

    Raises
    ------
    TypeError
        If an argument is no array of real floats.
    ValueError
        If the shapes do not fit, a matrix is not symmetric positive definite, or a one-form is zero
        or not finite; the message names the first.

    Notes
    -----
    Kropina, "On projective two-dimensional Finsler spaces with a special metric" (1961); Yoshikawa,
    Sabau, "Kropina metrics and Zermelo navigation on Riemannian manifolds" (Geom. Dedicata 2014).

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Kropina
    >>> metric = Kropina(np.eye(2), np.array([0.0, 2.0]))
    >>> metric.norm(np.array([[0.0, 1.0], [1.0, 1.0], [0.0, -1.0]]))
    array([0.5, 1. , inf])
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``alpha^2 / beta``, shape ``(...)``: infinity where ``beta <= 0``.

        The length of ``v = 0`` is 0. The derivatives are 0 there, and where it is infinity.
        """
        check_vectors("v", v, self.dim, self.M)
        xp = namespace(v)
        square, beta = dot(v, matvec(self.M, v)), dot(self.omega, v)
        inside = beta > 0
        length = square / xp.where(inside, beta, xp.ones_like(beta))
        beyond = xp.where(square == 0, xp.zeros_like(length), xp.full_like(length, xp.inf))
        return xp.where(inside, length, beyond)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the support function of the unit ball, shape ``(...)``.

        It is ``(b |p|_{M^-1} + omega' M^-1 p) / 2``, b = omega_norm(): 0 along ``-omega``.
        """
        check_vectors("p", p, self.dim, self.M)
        a = solve(self.M, p)
        return (self.omega_norm() * safe_sqrt(dot(p, a)) + dot(self.omega, a)) / 2

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0."""
        return gradient_of_dual(self, p)

    def symmetrize(self) -> NoReturn:
        """Raise: ``F(v) + F(-v)`` is infinity everywhere.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            "symmetrize: a Kropina metric has no way back, F(v) + F(-v) is infinity for every v"
        )

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return infinity everywhere, shape ``(*batch)``: there is no way back."""
        return namespace(self.M).full_like(self.omega_norm(), float("inf"))

    def validate(self) -> None:
        """Check that every ``M`` is positive definite and every ``omega`` finite and not zero.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        check_spd("M", self.M)
        check_all("omega", _finite(self.omega), self.omega, "finite one-forms")
        b = self.omega_norm()
        check_all("omega", b > 0, b, "|omega|_{M^-1} > 0")


def _finite(x: Array) -> Array:
    return namespace(x).isfinite(x)


def _matsumoto(s: Array) -> Array:
    return 1 / (1 - s)


def _norm(metric: OneFormMetric, phi: Callable[[Array], Array], v: Array) -> Array:
    alpha, beta = metric.alpha_beta(v)
    xp = namespace(alpha)
    zero = alpha == 0
    s = xp.where(zero, xp.zeros_like(beta), beta) / xp.where(zero, xp.ones_like(alpha), alpha)
    return alpha * phi(s)


def _dual_norm(metric: OneFormMetric, phi: Callable[[Array], Array], p: Array) -> Array:
    check_vectors("p", p, metric.dim, metric.M)

    def dual(p: Array) -> Array:
        a = solve(metric.M, p)
        length = safe_sqrt(dot(p, a))
        along = dot(metric.omega, a) / length
        if metric.dim == 2:
            # With its sign, so that nothing is singular where p and omega are parallel.
            turned = namespace(p).stack((-p[..., 1], p[..., 0]), axis=-1)
            across = dot(metric.omega, turned) / safe_sqrt(dot(turned, matvec(metric.M, turned)))
        else:
            across = safe_sqrt(metric.omega_norm() ** 2 - along**2)
        return length * dual_of_revolution(phi, along, across)

    return norm_off_zero(dual, p)
