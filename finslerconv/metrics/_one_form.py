"""Metrics made of a matrix and a one-form at every point: the (alpha, beta)-metrics."""

from typing import Any, TypeVar

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
from finslerconv._linalg import batch_index, dot, matvec, solve
from finslerconv.metrics._base import FinslerMetric

_Self = TypeVar("_Self", bound="OneFormMetric")


class OneFormMetric(FinslerMetric):
    """A metric that depends on ``alpha = sqrt(v' M v)`` and ``beta = omega' v`` alone.

    The base class of the (alpha, beta)-metrics :class:`Randers`, :class:`AsymmetricQuadratic`,
    :class:`Matsumoto`, :class:`Kropina` and :class:`AlphaBeta`: it holds both arrays. A subclass
    gives ``norm`` and ``validate``. Immutable by convention.

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
        If the shapes do not fit, or the values give no metric; the message names the first.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Matsumoto, OneFormMetric
    >>> metric = Matsumoto(np.eye(2), np.array([0.0, 0.4]))
    >>> isinstance(metric, OneFormMetric)
    True
    >>> metric.norm(np.array([[0.0, 1.0], [0.0, -1.0]])).round(3).tolist()
    [1.667, 0.714]
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
        self._batch_shape = broadcast_batch("M, omega", M, omega)
        if validate:
            self.validate()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(dim={self.dim}, batch_shape={self.batch_shape}, "
            f"dtype={self.M.dtype})"
        )

    def __getitem__(self: _Self, index: Any) -> _Self:
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        xp = namespace(self.M)
        index = batch_index(index)
        M = xp.broadcast_to(self.M, (*self.batch_shape, self.dim, self.dim))
        omega = xp.broadcast_to(self.omega, (*self.batch_shape, self.dim))
        return self._of(M[(*index, slice(None), slice(None))], omega[(*index, slice(None))])

    def _of(self: _Self, M: Array, omega: Array) -> _Self:
        """Return a metric of the same kind, of data that need no check."""
        return type(self)(M, omega, validate=False)

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

    def alpha_beta(
        self, v: Float[Array, "*_ d"]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Return ``alpha = sqrt(v' M v)`` and ``beta = omega' v``, both of shape ``(...)``.

        At ``v = 0`` the derivative of the square root is taken as 0.
        """
        check_vectors("v", v, self.dim, self.M)
        return safe_sqrt(dot(v, matvec(self.M, v))), dot(self.omega, v)

    def omega_norm(self) -> Float[Array, "..."]:
        """Return ``b = |omega|_{M^-1}``, the largest ``beta / alpha``, shape ``(*batch)``."""
        return safe_sqrt(dot(self.omega, solve(self.M, self.omega)))

    def reverse(self: _Self) -> _Self:
        """Return the reversed metric ``F(-v)``, of the one-form ``-omega``."""
        return self._of(self.M, -self.omega)


def broadcast_batch(names: str, matrices: Array, vectors: Array) -> tuple[int, ...]:
    """Return the shape to which the batches of matrices and vectors broadcast."""
    xp = namespace(matrices)
    try:
        shape = xp.broadcast_arrays(matrices[..., 0], vectors)[0].shape
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{names}: expected batch shapes that broadcast, got {tuple(matrices.shape)} and "
            f"{tuple(vectors.shape)}"
        ) from error
    return tuple(shape[:-1])


def check_below(name: str, value: Array, bound: float, meaning: str) -> None:
    """Raise a ValueError that names the first ``value`` that is not below ``bound``."""
    check_all(name, value < bound, value, f"{meaning} < {bound}")  # NaN is not


def check_all(name: str, good: Array, value: Array, wanted: str) -> None:
    """Raise a ValueError that names the first ``value`` that is not ``good``."""
    if not has_values(good):
        return
    xp = namespace(good)
    if not bool(xp.all(good)):
        index = first_index(~good)
        where = f" at index {index}" if index else ""
        raise ValueError(f"{name}: expected {wanted}, got {float(value[index]):.6g}{where}")
