"""Randers metrics: a Riemannian norm plus a one-form, the simplest asymmetric metrics."""

from typing import NamedTuple, final

from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    check_floating,
    check_matrices,
    check_nonzero,
    check_vectors,
    safe_sqrt,
)
from finslerconv._linalg import check_spd, dot, matvec, outer, solve
from finslerconv.metrics._base import RandersForm
from finslerconv.metrics._one_form import OneFormMetric, broadcast_batch, check_below
from finslerconv.metrics._riemannian import Riemannian


class Zermelo(NamedTuple):
    """Navigation data of a Randers metric: a Riemannian sea and a wind.

    The unit ball of the metric is where a boat of unit speed gets in unit time on the sea ``h``
    while the wind ``W`` carries it: the ellipse ``(v - W)' h (v - W) <= 1``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Randers
    >>> h, W = Randers(np.eye(2), np.array([0.0, 0.5])).zermelo()
    >>> W.round(3).tolist()
    [-0.0, -0.667]
    >>> Randers.from_zermelo(h, W).omega.round(3).tolist()
    [0.0, 0.5]
    """

    h: Float[Array, "*batch d d"]
    """Symmetric positive definite matrices, shape (..., d, d)."""

    W: Float[Array, "*batch d"]
    """Winds, shape (..., d), of ``h``-norm below 1."""

    def __repr__(self) -> str:
        batch = tuple(self.W.shape[:-1])
        if batch:
            return f"Zermelo(batch_shape={batch}, dtype={self.W.dtype})"
        return f"Zermelo(h={self.h!r}, W={self.W!r})"


@final
class Randers(OneFormMetric):
    """The Randers metric ``F(v) = sqrt(v' M v) + omega' v``, with ``|omega|_{M^-1} < 1``.

    Vectors against ``omega`` are shorter than those along it. The unit ball is an ellipse that
    contains the origin, not at its centre (see :meth:`zermelo` and
    :class:`finslerconv.balls.Ellipse`). Immutable by convention.

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
        below 1 in norm; the message names the first.

    Notes
    -----
    With ``lambda = 1 - omega' M^-1 omega`` everything about this metric has a closed form, as in
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025); :mod:`finslerconv.symbolic`
    has the proofs.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Randers
    >>> metric = Randers(np.eye(2), np.array([0.0, 0.5]))
    >>> metric.norm(np.array([[0.0, 1.0], [0.0, -1.0]]))
    array([1.5, 0.5])
    """

    @classmethod
    def from_zermelo(
        cls, h: Float[Array, "*#batch d d"], W: Float[Array, "*#batch d"], *, validate: bool = True
    ) -> "Randers":
        """Return the metric whose unit ball is the ellipse ``(v - W)' h (v - W) <= 1``.

        Parameters
        ----------
        h : array, shape (..., d, d)
            Symmetric positive definite matrices, in 1 / pixels^2.
        W : array, shape (..., d)
            Centres of the ellipses, in pixels; the origin must be inside, ``W' h W < 1``.
        validate : bool
            Whether to check the values.

        Raises
        ------
        ValueError
            If a matrix is not symmetric positive definite, or the origin not inside an ellipse;
            the message names the first.
        """
        check_floating(h=h, W=W)
        check_matrices("h", h)
        check_vectors("W", W, h.shape[-1])
        broadcast_batch("h, W", h, W)
        hW = matvec(h, W)
        if validate:
            check_spd("h", h)
            check_below("W", safe_sqrt(dot(W, hW)), 1, "the h-norm of W")
        mu = (1.0 - dot(W, hW))[..., None]
        M = h / mu[..., None] + outer(hW, hW) / (mu * mu)[..., None]
        return cls(M, -hW / mu, validate=False)

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``sqrt(v' M v) + omega' v``, shape ``(...)``.

        At ``v = 0`` the derivative of the square root is taken as 0.
        """
        check_vectors("v", v, self.dim, self.M)
        return safe_sqrt(dot(v, matvec(self.M, v))) + dot(self.omega, v)

    def randers_form(self, like: Array | None = None) -> RandersForm:
        """Return ``M`` and ``omega``."""
        return RandersForm(self.M, self.omega)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms of covectors ``p``, shape ``(...)``.

        With ``q = p' M^-1 p`` and ``s = omega' M^-1 p`` it is ``(sqrt(lambda q + s^2) - s) /
        lambda``, written where ``s > 0`` so that nothing cancels.
        """
        check_vectors("p", p, self.dim, self.M)
        return self.randers_form().normal(p)[2]

    def dual(self) -> "Randers":
        """Return the dual metric, again Randers: :meth:`RandersForm.dual` has the formulas.

        The dual of the dual is the metric.
        """
        M, omega = self.randers_form().dual()
        return Randers(M, omega, validate=False)

    def zermelo(self) -> Zermelo:
        """Return the navigation data: matrix and centre of the unit ball's ellipse.

        ``h = lambda (M - omega omega')`` and ``W = -M^-1 omega / lambda``.
        """
        a = solve(self.M, self.omega)
        lam = (1.0 - dot(self.omega, a))[..., None]
        return Zermelo(lam[..., None] * (self.M - outer(self.omega, self.omega)), -a / lam)

    def symmetrize(self) -> Riemannian:
        """Return the symmetric metric ``(F(v) + F(-v)) / 2``, of the matrices ``M``."""
        return Riemannian(self.M, validate=False)

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return the largest ``F(-v) / F(v)``, which is ``(1 + n) / (1 - n)``, n = omega_norm()."""
        n = self.omega_norm()
        return (1 + n) / (1 - n)

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return ``g_v``, the second derivative of ``F^2 / 2`` at ``v``, shape ``(..., d, d)``.

        With ``alpha = sqrt(v' M v)`` and ``l = M v / alpha`` it is
        ``(F / alpha) (M - l l') + (l + omega)(l + omega)'``.

        Raises
        ------
        ValueError
            If a vector is zero: the limit there depends on the direction.
        """
        check_vectors("v", v, self.dim, self.M)
        check_nonzero("v", v)
        return self.randers_form().fundamental_tensor(v)

    def validate(self) -> None:
        """Check that every ``M`` is positive definite and every ``|omega|_{M^-1}`` below 1.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        check_spd("M", self.M)
        check_below("omega", self.omega_norm(), 1, "|omega|_{M^-1}")
