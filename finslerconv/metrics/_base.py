"""The Finsler metric: a norm on every tangent space, and all that follows from the norm alone."""

import abc
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float

from finslerconv import _norms, _sphere
from finslerconv._arrays import (
    Array,
    check_nonzero,
    check_vectors,
    detached,
    first_index,
    identity_like,
    namespace,
    no_gradient,
    safe_sqrt,
    scaled,
)
from finslerconv._linalg import det, dot, inverse, matvec, outer, solve
from finslerconv._norms import norm_off_zero

Volume = Literal["busemann_hausdorff", "holmes_thompson"]
"""How a Finsler metric measures volumes: by its unit ball, or by that of the dual metric."""


class RandersForm(NamedTuple):
    """The data of a Randers metric ``F(v) = sqrt(v' M v) + omega' v``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import PNorm, Riemannian
    >>> form = Riemannian(np.diag([1.0, 4.0])).randers_form()
    >>> form.M.tolist(), form.omega
    ([[1.0, 0.0], [0.0, 4.0]], None)
    >>> PNorm(1.0, np.ones(2)).randers_form() is None
    True
    """

    M: Float[Array, "*#batch d d"]
    """Symmetric positive definite matrices, shape (..., d, d)."""

    omega: Float[Array, "*#batch d"] | None
    """One-forms, shape (..., d), or None: the metric is Riemannian. Both batches broadcast."""

    def with_omega(self) -> tuple[Array, Array]:
        """Return ``M`` and ``omega``, which is 0 for a Riemannian metric."""
        if self.omega is None:
            return self.M, namespace(self.M).zeros_like(self.M[..., 0])
        return self.M, self.omega

    def dual(self) -> "RandersForm":
        """Return the data of the dual metric: the matrix and the centre of the unit ball's ellipse.

        ``M* = (lambda M^-1 + M^-1 omega omega' M^-1) / lambda^2`` and
        ``omega* = -M^-1 omega / lambda``, with ``lambda = 1 - omega' M^-1 omega``.
        """
        M_inverse = inverse(self.M)
        if self.omega is None:
            return RandersForm(M_inverse, None)
        a = matvec(M_inverse, self.omega)
        lam = (1.0 - dot(self.omega, a))[..., None]
        M = M_inverse / lam[..., None] + outer(a, a) / (lam * lam)[..., None]
        return RandersForm(M, -a / lam)

    def legendre(self, v: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return ``p = F (M v / alpha + omega)``, with ``alpha = sqrt(v' M v)``; 0 for 0."""
        if self.omega is None:
            return matvec(self.M, v)
        xp = namespace(v)
        zero = xp.all(v == 0, axis=-1)[..., None]
        v = xp.where(zero, xp.ones_like(v), v)
        Mv = matvec(self.M, v)
        alpha = xp.sqrt(dot(v, Mv))
        F = alpha + dot(self.omega, v)
        p = F[..., None] * (Mv / alpha[..., None] + self.omega)
        return xp.where(zero, xp.zeros_like(p), p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return ``v = (F* / root) z``, of :meth:`normal`; 0 for 0."""
        if self.omega is None:
            return solve(self.M, p)
        xp = namespace(p)
        p, size, zero = scaled(p)
        z, root, F = self.normal(xp.where(zero, xp.ones_like(p), p))
        v = size * (F / root)[..., None] * z
        return xp.where(zero, xp.zeros_like(v), v)

    def normal(self, p: Float[Array, "*_ d"]) -> tuple[Array, Array, Array]:
        """Return ``z = M^-1 (p - F* omega)``, a vector along which ``p`` is largest, and its data.

        Returns
        -------
        z : array, shape (..., d)
        root : array, shape (...)
            ``sqrt(lambda q + s^2)`` with ``q = p' M^-1 p`` and ``s = omega' M^-1 p``, the length
            ``sqrt(z' M z)``.
        F : array, shape (...)
            The dual norm ``F*(p) = (root - s) / lambda``.
        """
        M, omega = self.with_omega()
        xp = namespace(p)
        M_inverse = inverse(M)
        a = matvec(M_inverse, omega)
        y = matvec(M_inverse, p)
        lam = 1.0 - dot(omega, a)
        q, s = dot(p, y), dot(a, p)
        root = safe_sqrt(lam * q + s * s)
        positive = s > 0
        # Written so that nothing cancels.
        denominator = xp.where(positive, root + s, xp.ones_like(root))
        F = xp.where(positive, q / denominator, (root - s) / lam)
        return y - F[..., None] * a, root, F

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return ``(F / alpha) (M - l l') + (l + omega)(l + omega)'``, with ``l = M v / alpha``."""
        if self.omega is None:
            return self.M + namespace(v).zeros_like(v)[..., None]
        Mv = matvec(self.M, v)
        alpha = safe_sqrt(dot(v, Mv))[..., None]
        l = Mv / alpha
        stretch = 1.0 + dot(self.omega, v)[..., None] / alpha
        slope = l + self.omega
        return stretch[..., None] * (self.M - outer(l, l)) + outer(slope, slope)

    def cartan_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d d"]:
        """Return ``(k_ij m_k + k_jk m_i + k_ki m_j) / (2 alpha)``.

        With ``l = M v / alpha``, ``k = M - l l'`` and ``m = omega - (omega' v / alpha) l``.
        """
        M, omega = self.with_omega()
        Mv = matvec(M, v)
        alpha = safe_sqrt(dot(v, Mv))[..., None]
        l = Mv / alpha
        k = M - outer(l, l)
        m = omega - dot(omega, v)[..., None] / alpha * l
        total = k[..., :, :, None] * m[..., None, None, :]
        total = total + k[..., None, :, :] * m[..., :, None, None]
        total = total + k[..., :, None, :] * m[..., None, :, None]
        return total / (2 * alpha[..., None, None])

    def volume_density(self, kind: Volume) -> Float[Array, "..."]:
        """Return ``sqrt(det M)``, times ``lambda^((d + 1) / 2)`` for "busemann_hausdorff"."""
        xp = namespace(self.M)
        root = xp.sqrt(det(self.M))
        if self.omega is None:
            return root
        lam = 1.0 - dot(self.omega, solve(self.M, self.omega))
        # Of the shape of the batch, which the one-form may be alone to have.
        power = (self.M.shape[-1] + 1) / 2 if kind == "busemann_hausdorff" else 0
        return root * lam**power


class FinslerMetric(abc.ABC):
    """A Finsler metric at one point, or a field of them over a batch of points.

    A metric gives every tangent vector ``v`` a length ``F(v)``, with ``F(v) > 0`` for ``v != 0``,
    ``F(t v) = t F(v)`` for ``t >= 0`` and ``F(u + v) <= F(u) + F(v)``. It may be asymmetric:
    ``F(-v)`` need not be ``F(v)``.

    A subclass must give :meth:`norm` and nothing else; it replaces :attr:`dim` unless that is 2,
    :attr:`like` unless its numbers are NumPy float64, and any other method for which it knows a
    closed form. No other method calls ``norm`` at ``v = 0``, where most norms have no derivative;
    the length there is 0. A field of metrics may have ``__getitem__`` too, by which
    ``metric[index]`` is the metric at an index of the batch.

    Vectors have shape ``(..., d)``, components in array-axis order (down, right), and broadcast
    against the batch of the metric from the right: ``n`` directions for each point of a field
    of shape ``(H, W)`` are an array ``(n, 1, 1, d)``, and their norms have shape ``(n, H, W)``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import FinslerMetric
    >>> class Taxicab(FinslerMetric):
    ...     def norm(self, v):
    ...         return np.abs(v).sum(-1)
    >>> float(Taxicab().dual_norm(np.array([3.0, -4.0])).round(12))
    4.0
    """

    @abc.abstractmethod
    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``F(v)`` of the vectors ``v``.

        Parameters
        ----------
        v : array, shape (..., d)
            Tangent vectors, in pixels (or whatever the unit of the grid is).

        Returns
        -------
        array, shape (...)
            The batch of ``v`` and that of the metric, broadcast.
        """

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return 2

    @property
    def like(self) -> Array:
        """An array of the kind, device and dtype in which the metric computes."""
        return np.zeros(())

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        with no_gradient():
            return tuple(self.norm(identity_like(self.dim, self.like)[0, :]).shape)

    def energy(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the energies ``F(v)^2 / 2``, shape ``(...)``."""
        check_vectors("v", v, self.dim)
        return norm_off_zero(self.norm, v) ** 2 / 2

    def contains(self, v: Float[Array, "*_ d"], radius: float = 1.0) -> Bool[Array, "..."]:
        """Return whether the vectors lie in the ball ``{F <= radius}``, shape ``(...)``."""
        check_vectors("v", v, self.dim)
        return norm_off_zero(self.norm, v) <= radius

    def indicatrix(self, u: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the points ``u / F(u)`` of the indicatrix ``{F = 1}`` along directions ``u``.

        Parameters
        ----------
        u : array, shape (..., d)
            Directions, of any length but zero.

        Raises
        ------
        ValueError
            If a direction is zero.
        """
        check_vectors("u", u, self.dim)
        check_nonzero("u", u)
        return u / self.norm(u)[..., None]

    def unit_ball(self, points: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the images of points of the Euclidean unit ball in the unit ball of the metric.

        Every ray from the origin is stretched by a factor of its own, ``g -> g |g| / F(g)``, so
        ``{|g| <= s}`` is carried onto ``{F <= s}``. The identity for the Euclidean metric. At
        ``g = 0`` the image is 0, whatever the metric: its derivatives in the metric are 0.

        Parameters
        ----------
        points : array, shape (..., d)
            Points ``g`` of the Euclidean unit ball (points beyond it go beyond the ball).
        """
        xp = check_vectors("points", points, self.dim)
        length = safe_sqrt(dot(points, points))
        norm = norm_off_zero(self.norm, points)
        scale = length / xp.where(norm == 0, xp.ones_like(norm), norm)
        return points * scale[..., None]

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``M`` and ``omega`` if this is a Randers metric, None if it is another one.

        Code with formulas for Randers metrics asks this, not for the class, so a metric of your own
        that is Randers can return its form here and use the same formulas.

        Parameters
        ----------
        like : array, optional
            The kind, dtype and device of the answer, for a metric that holds no arrays (the
            Euclidean one).

        Returns
        -------
        RandersForm or None
            ``omega`` is None for a Riemannian metric.
        """
        return None

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``F*(p) = max {p(v) : F(v) <= 1}`` of the covectors ``p``.

        ``F*`` is the support function of the unit ball. Without a closed form it is found by
        optimisation: in the plane by a golden-section search, for every convex norm; above, by
        Newton's method, which needs a smooth one.

        Parameters
        ----------
        p : array, shape (..., d)
            Covectors.

        Returns
        -------
        array, shape (...)
            Differentiable once in ``p``, and in the metric where the ball has no corner
            (envelope theorem).

        Raises
        ------
        RuntimeError
            If Newton's method does not converge (``d >= 3``).
        """
        check_vectors("p", p, self.dim)
        with no_gradient():
            v = detached(_norms.dual_direction(self.norm, p))
        return dot(p, v) / self.norm(v)

    def dual(self) -> "FinslerMetric":
        """Return the dual metric, whose norm is :meth:`dual_norm`: :class:`Dual`."""
        from finslerconv.metrics._combinators import Dual

        return Dual(self)

    def reverse(self) -> "FinslerMetric":
        """Return the reversed metric ``v -> F(-v)``; its unit ball is the point reflection."""
        from finslerconv.metrics._combinators import Reversed

        return Reversed(self)

    def symmetrize(self) -> "FinslerMetric":
        """Return the symmetric metric ``v -> (F(v) + F(-v)) / 2``."""
        from finslerconv.metrics._combinators import Symmetrized

        return Symmetrized(self)

    def pullback(self, A: Float[Array, "*_ d n"]) -> "FinslerMetric":
        """Return the metric ``v -> F(A v)`` of matrices ``A``: :class:`PulledBack`."""
        from finslerconv.metrics._combinators import PulledBack

        return PulledBack(self, A)

    def __mul__(self, factor: float | Float[Array, "..."]) -> "FinslerMetric":
        """Return the metric ``v -> factor F(v)``: :class:`Scaled`."""
        from finslerconv.metrics._combinators import Scaled

        return Scaled(self, factor)

    __rmul__ = __mul__

    #: NumPy's arrays leave ``array * metric`` to the metric.
    __array_ufunc__ = None

    def __add__(self, other: "FinslerMetric") -> "FinslerMetric":
        """Return the metric ``v -> F(v) + other(v)``: :class:`Sum`."""
        from finslerconv.metrics._combinators import Sum

        return Sum(self, other) if isinstance(other, FinslerMetric) else NotImplemented

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return the largest ratio ``F(-v) / F(v)``, 1 for a symmetric metric, shape ``(*batch)``.

        Without a closed form, by a search over directions: to rounding in one and two dimensions,
        to about four digits above.
        """
        with no_gradient():
            v = detached(_norms.asymmetric_direction(self.norm, self.dim, self.like))
        return self.norm(-v) / self.norm(v)

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return ``g_v``, the second derivative of the energy at ``v``.

        Without a closed form, exact by automatic differentiation for a metric that computes in
        PyTorch, and by central differences for others, to about seven digits in float64.

        Parameters
        ----------
        v : array, shape (..., d)
            Tangent vectors, none zero: there only a Riemannian metric has a tensor.

        Returns
        -------
        array, shape (..., d, d)
            ``g_v(v, v) = F(v)^2``.

        Raises
        ------
        ValueError
            If a vector is zero.
        """
        check_vectors("v", v, self.dim)
        check_nonzero("v", v)
        return _norms.derivative(self.energy, v, 2)

    def angular_metric(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return ``h_v = F F_vv``, the fundamental tensor less its part along ``v``.

        It is ``g_v - l l'`` with ``l = dF(v)``: the metric of the directions, zero along ``v``.

        Parameters
        ----------
        v : array, shape (..., d)
            Tangent vectors, none zero.

        Returns
        -------
        array, shape (..., d, d)

        Raises
        ------
        ValueError
            If a vector is zero.
        """
        g = self.fundamental_tensor(v)
        p = matvec(g, v)
        return g - outer(p, p) / dot(p, v)[..., None, None]

    def cartan_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d d"]:
        """Return ``C_v``, half the derivative of the fundamental tensor ``g_v`` in ``v``.

        It is symmetric, zero along ``v``, and zero everywhere exactly if the metric is Riemannian.
        Without a closed form, exact by automatic differentiation for a metric that computes in
        PyTorch, and by central differences for others, to about six digits in float64.

        Parameters
        ----------
        v : array, shape (..., d)
            Tangent vectors, none zero.

        Returns
        -------
        array, shape (..., d, d, d)
            ``C_ijk``, a quarter of the third derivatives of ``F^2``.

        Raises
        ------
        ValueError
            If a vector is zero.

        Examples
        --------
        >>> import numpy as np
        >>> from finslerconv.metrics import Randers
        >>> Randers(np.eye(2), np.array([0.0, 0.5])).cartan_tensor(np.array([1.0, 0.0]))[1, 1]
        array([0.  , 0.75])
        """
        check_vectors("v", v, self.dim)
        check_nonzero("v", v)
        form = self.randers_form(v)
        return _norms.derivative(self.energy, v, 3) / 2 if form is None else form.cartan_tensor(v)

    def legendre(self, v: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the Legendre transforms ``p = F(v) dF(v) = g_v v`` of vectors; 0 for 0.

        The covector ``p`` has the dual norm ``F(v)``, and it is at its largest along ``v``. Without
        a closed form, exact by automatic differentiation for a metric that computes in PyTorch, and
        by central differences for others, to about ten digits in float64.

        Parameters
        ----------
        v : array, shape (..., d)
            Tangent vectors.

        Returns
        -------
        array, shape (..., d)
            Covectors.

        Examples
        --------
        >>> import numpy as np
        >>> from finslerconv.metrics import Randers
        >>> metric = Randers(np.eye(2), np.array([0.0, 0.5]))
        >>> p = metric.legendre(np.array([3.0, 4.0]))
        >>> p, float(metric.dual_norm(p)), metric.legendre_inverse(p)
        (array([4.2, 9.1]), 7.0, array([3., 4.]))
        """
        xp = check_vectors("v", v, self.dim)
        form = self.randers_form(v)
        if form is not None:
            return form.legendre(v)
        u, size, zero = scaled(v)
        p = size * _norms.derivative(self.energy, xp.where(zero, xp.ones_like(u), u), 1)
        return xp.where(zero, xp.zeros_like(p), p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose :meth:`legendre` transforms are the covectors ``p``; 0 for 0.

        It is the Legendre transform of the dual metric. Without a closed form, the search of
        :meth:`dual_norm` and two steps of Newton's method, which the derivatives follow to the
        third order; where the fundamental tensor is singular, as at the corners and on the faces of
        a ball, it is what the search finds.

        Parameters
        ----------
        p : array, shape (..., d)
            Covectors.

        Returns
        -------
        array, shape (..., d)
            Vectors ``v`` with ``F(v) = F*(p)`` and ``p(v) = F(v)^2``.

        Raises
        ------
        RuntimeError
            If the search does not converge (``d >= 3``).
        """
        xp = check_vectors("p", p, self.dim)
        form = self.randers_form(p)
        if form is not None:
            return form.legendre_inverse(p)
        p, size, zero = scaled(p)
        p = xp.where(zero, xp.ones_like(p), p)
        with no_gradient():
            v = detached(_norms.dual_direction(self.norm, p))
            v = v * (dot(detached(p), v) / self.norm(v) ** 2)[..., None]
        eye, eps = identity_like(self.dim, p), float(xp.finfo(p.dtype).eps)
        rest = p - self.legendre(v)
        for _ in range(2):
            g = self.fundamental_tensor(v)
            ridge = 4 * eps * xp.max(xp.abs(g), axis=(-2, -1))
            moved = v + solve(g + ridge[..., None, None] * eye, rest)
            left = p - self.legendre(moved)
            # A step from where rounding ends is taken too, for its derivatives.
            better = dot(left, left) <= dot(rest, rest) + eps * dot(p, p)
            better = better[..., None]
            v, rest = xp.where(better, moved, v), xp.where(better, left, rest)
        v = size * v
        return xp.where(zero, xp.zeros_like(v), v)

    def volume_density(self, kind: Volume = "busemann_hausdorff") -> Float[Array, "*batch"]:
        r"""Return the density of the metric's volume over that of the coordinates.

        Parameters
        ----------
        kind : {"busemann_hausdorff", "holmes_thompson"}
            The first gives the unit ball ``{F <= 1}`` the volume of the Euclidean one: it is the
            Hausdorff measure of a symmetric metric. The second is the volume of the dual ball
            ``{F* <= 1}`` over that of the Euclidean one: the symplectic volume of the unit
            covectors. It is never more than the first for a symmetric metric (Durán, 1998).

        Returns
        -------
        array, shape (\*batch)
            ``sqrt(det M)`` for a Riemannian metric, by both. Without a closed form by quadrature:
            see :func:`finslerconv.balls.volume`.

        Raises
        ------
        ValueError
            If ``kind`` is unknown.

        Examples
        --------
        >>> import numpy as np
        >>> from finslerconv.metrics import Randers
        >>> metric = Randers(np.eye(2), np.array([0.0, 0.6]))
        >>> [round(float(metric.volume_density(kind)), 3)
        ...  for kind in ("busemann_hausdorff", "holmes_thompson")]
        [0.512, 1.0]
        """
        if kind not in ("busemann_hausdorff", "holmes_thompson"):
            raise ValueError(
                f"kind: expected 'busemann_hausdorff' or 'holmes_thompson', got {kind!r}"
            )
        form = self.randers_form()
        if form is not None:
            return form.volume_density(kind)
        round_ball = math.pi ** (self.dim / 2) / math.gamma(self.dim / 2 + 1)
        if kind == "busemann_hausdorff":
            return round_ball / _norms.ball_volume(self.norm, self.dim, self.like)
        # Of this form and not by dual_norm, whose second derivatives are not right.
        return _norms.ball_volume(
            lambda p: self.norm(self.legendre_inverse(p)), self.dim, self.like
        ) / round_ball  # fmt: skip

    def validate(self) -> None:
        """Check on sampled directions that the norm is one.

        Raises
        ------
        ValueError
            If the norm is not finite and positive, not positively homogeneous, or not convex; the
            message names the first direction and index of the batch at which it fails.
        """
        like = self.like
        xp = namespace(like)
        batch_ndim = len(self.batch_shape)
        directions = _sphere.scattered(self.dim, 64)
        others = np.random.default_rng(1).permutation(directions)
        u = _sphere.over_batch(directions, like, batch_ndim)
        w = _sphere.over_batch(others, like, batch_ndim)
        with no_gradient():
            norm_u, norm_w = self.norm(u), self.norm(w)
            self._raise_at(directions, ~(xp.isfinite(norm_u) & (norm_u > 0)), "positive")
            # Where the norm is small beside its largest value, its rounding errors are not.
            tolerance = xp.finfo(like.dtype).eps ** 0.5 * xp.max(norm_u, axis=0)
            error = xp.abs(self.norm(3 * u) - 3 * norm_u)
            self._raise_at(directions, ~(error <= tolerance), "positively homogeneous")
            excess = norm_off_zero(self.norm, u + w) - norm_u - norm_w
            self._raise_at(directions, excess > tolerance, "convex")

    def _raise_at(self, directions: Float[np.ndarray, "n d"], bad: Array, wanted: str) -> None:
        if not bool(namespace(bad).any(bad)):
            return
        direction, *index = first_index(bad)
        where = f" at index {tuple(index)}" if index else ""
        raise ValueError(
            f"{type(self).__name__}: expected a {wanted} norm, which fails along "
            f"{directions[direction].round(3).tolist()}{where}"
        )


@final
class CallableMetric(FinslerMetric):
    """The metric ``F(v) = function(v)`` of any function that is a norm.

    Parameters
    ----------
    function : callable
        From vectors, shape (..., d), to their lengths, shape (...). It may close over a field; the
        batches then broadcast from the right. It is never called at ``v = 0``, where the length is
        0. :meth:`~finslerconv.metrics.FinslerMetric.validate` checks it.
    dim : int
        The dimension ``d``.
    like : array, optional
        Any array of the kind, dtype and device in which ``function`` computes; NumPy float64 if not
        given.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import CallableMetric
    >>> metric = CallableMetric(lambda v: np.abs(v).max(-1))
    >>> metric.indicatrix(np.array([1.0, 2.0]))
    array([0.5, 1. ])
    """

    def __init__(
        self, function: Callable[[Array], Array], dim: int = 2, like: Array | None = None
    ) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        if dim < 1:
            raise ValueError(f"dim: expected a dimension of at least 1, got {dim}")
        self.function = function
        self._dim = dim
        self._like = np.zeros(()) if like is None else like

    def __repr__(self) -> str:
        return f"CallableMetric({self.function!r}, dim={self.dim})"

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self._dim

    @property
    def like(self) -> Array:
        """An array of the kind, device and dtype in which the function computes."""
        return self._like

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``function(v)``, shape ``(...)``; 0 at 0, with derivative 0."""
        check_vectors("v", v, self.dim)
        return norm_off_zero(self.function, v)
