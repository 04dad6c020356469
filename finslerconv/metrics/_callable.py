"""A metric from any function: the door for norms of the user's own."""

from collections.abc import Callable
from typing import final

import numpy as np
from jaxtyping import Float

from finslerconv._arrays import Array, check_vectors
from finslerconv.metrics._base import FinslerMetric, norm_off_zero


@final
class CallableMetric(FinslerMetric):
    """The metric ``F(v) = function(v)`` of any function that is a norm.

    Parameters
    ----------
    function : callable
        From vectors, shape (..., d), to their lengths, shape (...). It may close over a field; the
        batches then broadcast from the right. It is never called at ``v = 0``: another vector is
        put in the place, and the length is 0. To have it checked, call
        :meth:`~finslerconv.metrics.FinslerMetric.validate`.
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
