"""Metric fields that are functions of the position."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from finslerconv._arrays import Array, as_integer
from finslerconv.geodesics.fields._kinds import Positions, as_kind_of, as_tensor, is_numpy
from finslerconv.geodesics.fields._matrices import entries_of, over_grid
from finslerconv.geodesics.fields._protocol import check_positions, read_positions
from finslerconv.metrics import CallableMetric, FinslerMetric, Randers


@final
class FunctionMetric:
    r"""A field given by a function of the position: exact everywhere, without a grid.

    Parameters
    ----------
    function : callable
        From positions, a tensor of shape (..., d), to a metric of any kind or to the pair
        ``(M, omega)`` of a Randers one; in PyTorch's operations, so that the field can be
        differentiated.
    dim : int
        The dimension ``d`` of the space.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric
    >>> from finslerconv.metrics import Riemannian
    >>> half_plane = FunctionMetric(
    ...     lambda x: Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
    ... )
    >>> half_plane.at(torch.tensor([2.0, 0.0])).norm(torch.tensor([0.0, 1.0]))
    tensor(0.5000)
    """

    def __init__(
        self,
        function: Callable[[Tensor], FinslerMetric | tuple[Tensor, Tensor]],
        dim: int = 2,
    ) -> None:
        self.function = function
        self._dim = as_integer("dim", dim)

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", repr(self.function))
        return f"FunctionMetric({name}, dim={self.dim})"

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the space."""
        return self._dim

    def at(self, positions: Positions) -> FinslerMetric:
        """Return the metrics at ``positions``.

        Parameters
        ----------
        positions : array or sequence, shape (..., d)
            NumPy arrays reach the function as tensors, and the metric comes back in NumPy arrays.
            Nested sequences of numbers become a float64 tensor.

        Returns
        -------
        FinslerMetric
            Of batch shape ``positions.shape[:-1]``, not checked: a
            :class:`~finslerconv.metrics.Randers` metric if the function's is one (of ``omega`` 0 if
            it is Riemannian), the function's own otherwise.

        Raises
        ------
        TypeError
            If the function returns anything else.
        ValueError
            If ``positions`` is not of shape (..., d) or not finite, or what the function returns
            does not fit it.
        """
        (positions,) = read_positions(self, positions=positions)
        x = as_tensor("positions", positions)
        check_positions(x, self.dim)
        metric = self.function(x)
        if isinstance(metric, FinslerMetric) and metric.randers_form(x) is None:
            return self._of_any_kind(metric, positions)
        M, omega = entries_of("function", metric, x)
        M = over_grid("function", M, tuple(x.shape[:-1]), 2)
        if omega is None:
            omega = torch.zeros_like(x)
        omega = over_grid("function", omega, tuple(x.shape[:-1]), 1)
        return Randers(as_kind_of(M, positions), as_kind_of(omega, positions), validate=False)

    def _of_any_kind(self, metric: FinslerMetric, positions: Array) -> FinslerMetric:
        if metric.dim != self.dim:
            raise ValueError(
                f"function: expected metrics of dimension {self.dim}, got {metric.dim}"
            )
        if not is_numpy(positions):
            return metric

        def norm(v: Array) -> Array:
            return as_kind_of(metric.norm(as_tensor("v", v)), v)

        return CallableMetric(norm, self.dim, like=positions)

    def reverse(self) -> "FunctionMetric":
        """Return the field of the reversed metrics."""
        return FunctionMetric(lambda x: self.at(x).reverse(), self.dim)
