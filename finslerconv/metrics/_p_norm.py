"""Weighted p-norms."""

from typing import Any, final

from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    check_floating,
    check_vectors,
    constant_like,
    detached,
    namespace,
)
from finslerconv._linalg import batch_index
from finslerconv.metrics._base import FinslerMetric
from finslerconv.metrics._combinators import batch_shapes
from finslerconv.metrics._one_form import check_all


@final
class PNorm(FinslerMetric):
    """The metric ``F(v) = (sum_i (w_i |v_i|)^p)^(1/p)``, with ``1 <= p <= inf``.

    ``p = 1`` is the taxicab's diamond, ``p = 2`` an ellipse along the axes, ``p = inf`` the maximum
    norm, whose ball is a box of half-axes ``1 / w_i``, as is that of every ``p`` on the axes. The
    exponent is an array as the weights are: it may differ from point to point, and be learned.
    Immutable by convention.

    Parameters
    ----------
    p : float or array, shape (...)
        The exponents, ``inf`` included. An array's batch and that of the weights broadcast.
    weights : array, shape (..., d)
        The positive weights ``w``, in 1 / pixels.
    validate : bool
        Whether to check the values (one pass over the data; on a GPU it waits for them).

    Raises
    ------
    TypeError
        If an argument is no array of real floats, or ``p`` no number.
    ValueError
        If the shapes do not fit, an exponent is below 1, or a weight not positive and finite; the
        message names the first.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import PNorm
    >>> PNorm(np.array([1.0, 2.0, np.inf]), np.ones(2)).norm(np.array([3.0, -4.0]))
    array([7., 5., 4.])
    """

    def __init__(
        self,
        p: float | Float[Array, "*#batch"],
        weights: Float[Array, "*#batch d"],
        *,
        validate: bool = True,
    ) -> None:
        check_floating(weights=weights)
        if weights.ndim == 0 or weights.shape[-1] == 0:
            raise ValueError(
                f"weights: expected one for every component, shape (..., d), got shape "
                f"{tuple(weights.shape)}"
            )
        if isinstance(p, int | float):
            p = constant_like(float(p), weights)
        check_floating(p=p, weights=weights)
        self.p = p
        self.weights = weights
        self._batch_shape = batch_shapes("p, weights", tuple(p.shape), tuple(weights.shape[:-1]))
        if validate:
            self.validate()

    def __repr__(self) -> str:
        p = f"{float(self.p):.6g}" if self.p.ndim == 0 else f"<{tuple(self.p.shape)}>"
        return (
            f"PNorm(p={p}, dim={self.dim}, batch_shape={self.batch_shape}, "
            f"dtype={self.weights.dtype})"
        )

    def __getitem__(self, index: Any) -> "PNorm":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        xp = namespace(self.weights)
        index = batch_index(index)
        p = xp.broadcast_to(self.p, self.batch_shape)
        weights = xp.broadcast_to(self.weights, (*self.batch_shape, self.dim))
        return PNorm(p[index], weights[(*index, slice(None))], validate=False)

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.weights.shape[-1]

    @property
    def like(self) -> Array:
        """The weights: vectors are made in their kind, dtype and device."""
        return self.weights

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self._batch_shape

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``(sum_i (w_i |v_i|)^p)^(1/p)``, shape ``(...)``.

        The derivatives at ``v = 0`` are taken as 0, and so is that of ``|v_i|`` at 0.
        """
        check_vectors("v", v, self.dim, self.weights)
        return _p_norm(self.weights * v, self.p)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms of covectors, shape ``(...)``: those of :meth:`dual`."""
        check_vectors("p", p, self.dim, self.weights)
        return self.dual().norm(p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0."""
        return self.dual().legendre(p)

    def dual(self) -> "PNorm":
        """Return the dual metric: the conjugate exponent ``p / (p - 1)``, the weights ``1 / w``."""
        xp = namespace(self.p)
        ends = (self.p == 1) | xp.isinf(self.p)
        inner = xp.where(ends, xp.full_like(self.p, 2.0), self.p)
        at_ends = xp.where(self.p == 1, xp.full_like(self.p, xp.inf), xp.ones_like(self.p))
        conjugate = xp.where(ends, at_ends, inner / (inner - 1))
        return PNorm(conjugate, 1 / self.weights, validate=False)

    def reverse(self) -> "PNorm":
        """Return the metric itself: it is symmetric."""
        return self

    def symmetrize(self) -> "PNorm":
        """Return the metric itself: it is symmetric."""
        return self

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return 1 everywhere, shape ``(*batch)``."""
        xp = namespace(self.weights)
        return xp.broadcast_to(xp.ones_like(self.weights[..., 0]), self.batch_shape)

    def validate(self) -> None:
        """Check that every exponent is at least 1, and every weight positive and finite.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        xp = namespace(self.weights)
        check_all("p", self.p >= 1, self.p, "exponents of at least 1")
        good = (self.weights > 0) & xp.isfinite(self.weights)
        check_all("weights", good, self.weights, "positive finite numbers")


def _p_norm(x: Array, p: Array) -> Array:
    """Return the p-norms over the last axis, all terms divided by the largest before the power."""
    xp = namespace(x)
    size = xp.abs(x)
    largest = xp.max(size, axis=-1)
    unit = detached(xp.where(largest > 0, largest, xp.ones_like(largest)))
    infinite = xp.isinf(p)
    exponent = xp.where(infinite, xp.ones_like(p), p)
    terms = size / unit[..., None]
    present = terms > 0
    # The logarithm of 0, which the derivative in the exponent takes, is never asked for.
    base = xp.where(present, terms, xp.ones_like(terms))
    powers = xp.where(present, base ** exponent[..., None], xp.zeros_like(base))
    total = xp.sum(powers, axis=-1)
    zero = largest == 0
    total = xp.where(zero, xp.ones_like(total), total)
    finite = xp.where(zero, xp.zeros_like(total), unit * total ** (1 / exponent))
    return xp.where(infinite, largest + xp.zeros_like(finite), finite)
