"""Randers metrics: a Riemannian norm plus a one-form, the simplest asymmetric metrics."""

from typing import Any, NamedTuple, final

from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    check_floating,
    check_matrices,
    check_vectors,
    first_index,
    has_values,
    namespace,
    safe_sqrt,
)
from finslerconv._linalg import batch_index, check_spd, dot, inverse, matvec, outer, solve
from finslerconv.metrics._base import FinslerMetric, RandersForm, check_nonzero
from finslerconv.metrics._riemannian import Riemannian


class Zermelo(NamedTuple):
    """Navigation data of a Randers metric: a Riemannian sea and a wind.

    The unit ball of the metric is where a boat of unit speed gets in unit time on the sea ``h``
    while the wind ``W`` carries it: the ellipse ``(v - W)' h (v - W) <= 1``.
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
class Randers(FinslerMetric):
    """The Randers metric ``F(v) = sqrt(v' M v) + omega' v``, with ``|omega|_{M^-1} < 1``.

    Vectors against ``omega`` are shorter than those along it. The unit ball is an ellipse that
    contains the origin, not at its centre (see :meth:`zermelo` and
    :class:`finslerconv.balls.Ellipse`). Immutable by convention.

    Parameters
    ----------
    M : array, shape (..., d, d)
        Symmetric positive definite matrices, in 1 / pixels^2.
    omega : array, shape (..., d)
        One-forms ("drift"), in 1 / pixels. The batches of both broadcast.
    validate : bool
        Whether to check the values (one pass over the data; on a GPU it waits for them).

    Raises
    ------
    TypeError
        If an argument is no array of real floats.
    ValueError
        If the shapes do not fit, a matrix is not symmetric positive definite, or a drift is not
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

    def __init__(
        self,
        M: Float[Array, "*#batch d d"],
        omega: Float[Array, "*#batch d"],
        *,
        validate: bool = True,
    ) -> None:
        check_floating(M=M, omega=omega)
        check_matrices("M", M)
        check_vectors("omega", omega, M.shape[-1])
        self.M = M
        self.omega = omega
        self._batch_shape = _broadcast_shapes(M, omega)
        if validate:
            self.validate()

    def __repr__(self) -> str:
        return f"Randers(dim={self.dim}, batch_shape={self.batch_shape}, dtype={self.M.dtype})"

    def __getitem__(self, index: Any) -> "Randers":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        xp = namespace(self.M)
        index = batch_index(index)
        M = xp.broadcast_to(self.M, (*self.batch_shape, self.dim, self.dim))
        omega = xp.broadcast_to(self.omega, (*self.batch_shape, self.dim))
        return Randers(
            M[(*index, slice(None), slice(None))], omega[(*index, slice(None))], validate=False
        )

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
        _broadcast_shapes(h, W, names="h, W")
        hW = matvec(h, W)
        if validate:
            check_spd("h", h)
            _check_below_one("W", safe_sqrt(dot(W, hW)), "the h-norm of W")
        mu = (1.0 - dot(W, hW))[..., None]
        M = h / mu[..., None] + outer(hW, hW) / (mu * mu)[..., None]
        return cls(M, -hW / mu, validate=False)

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.M.shape[-1]

    @property
    def like(self) -> Array:
        """The matrices ``M``: vectors are made in their kind, dtype and device."""
        return self.M

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self._batch_shape

    def omega_norm(self) -> Float[Array, "..."]:
        """Return ``|omega|_{M^-1}``, in [0, 1), shape ``(*batch)``."""
        return safe_sqrt(dot(self.omega, solve(self.M, self.omega)))

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
        xp = check_vectors("p", p, self.dim, self.M)
        M_inverse = inverse(self.M)
        M_inverse_omega = matvec(M_inverse, self.omega)
        lam = 1.0 - dot(self.omega, M_inverse_omega)
        q, s = dot(p, matvec(M_inverse, p)), dot(M_inverse_omega, p)
        root = safe_sqrt(lam * q + s * s)
        positive = s > 0
        denominator = xp.where(positive, root + s, xp.ones_like(root))
        return xp.where(positive, q / denominator, (root - s) / lam)

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

    def reverse(self) -> "Randers":
        """Return the reversed metric ``F(-v)``, of the one-form ``-omega``."""
        return Randers(self.M, -self.omega, validate=False)

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
        Mv = matvec(self.M, v)
        alpha = safe_sqrt(dot(v, Mv))[..., None]
        l = Mv / alpha
        stretch = 1.0 + dot(self.omega, v)[..., None] / alpha
        slope = l + self.omega
        return stretch[..., None] * (self.M - outer(l, l)) + outer(slope, slope)

    def validate(self) -> None:
        """Check that every ``M`` is positive definite and every ``|omega|_{M^-1}`` below 1.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        check_spd("M", self.M)
        _check_below_one("omega", self.omega_norm(), "|omega|_{M^-1}")


def _broadcast_shapes(M: Array, omega: Array, names: str = "M, omega") -> tuple[int, ...]:
    xp = namespace(M)
    try:
        shape = xp.broadcast_arrays(M[..., 0], omega)[0].shape
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{names}: expected batch shapes that broadcast, got {tuple(M.shape)} and "
            f"{tuple(omega.shape)}"
        ) from error
    return tuple(shape[:-1])


def _check_below_one(name: str, norm: Array, meaning: str) -> None:
    if not has_values(norm):
        return
    xp = namespace(norm)
    bad = ~(norm < 1)  # NaN is bad too
    if bool(xp.any(bad)):
        index = first_index(bad)
        where = f" at index {index}" if index else ""
        raise ValueError(f"{name}: expected {meaning} < 1, got {float(norm[index]):.6g}{where}")
