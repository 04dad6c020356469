"""Fields of any metric that is known at the nodes of a grid: its energy is interpolated."""

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv.geodesics.fields import cell_along, grid_nodes, slope_factor
from finslerconv.metrics import CallableMetric, FinslerMetric


class _Around(NamedTuple):
    """The nodes around positions, four along each axis, on axes of their own."""

    metric: FinslerMetric
    weights: Float[Tensor, "*batch_and_nodes"]
    slopes: list[Tensor]
    """The weights of the derivatives along each axis."""


@final
class NodeField:
    r"""The field whose energy ``F^2 / 2`` is interpolated linearly between a metric's nodes.

    Energies of norms add up to that of a norm, so that between the nodes there is a metric of the
    same smoothness; of Riemannian metrics it is that of the interpolated matrices. As in a
    :class:`finslerconv.geodesics.GridMetric` read linearly the slopes of the energy are
    interpolated too, from central differences, and the field is constant beyond the nodes.

    Parameters
    ----------
    metric : FinslerMetric
        Of batch shape (\*batch, \*grid), which can be indexed.
    spacing : sequence of float
        The distance between neighbours along each axis; the first node lies at 0.

    Raises
    ------
    TypeError
        If the metric cannot be indexed.
    """

    def __init__(self, metric: FinslerMetric, spacing: Sequence[float]) -> None:
        if not hasattr(metric, "__getitem__"):
            raise TypeError(
                "metric: expected the module to return a Riemannian or Randers metric, whose "
                "geodesics are known, or one with a method __getitem__, by which metric[index] is "
                f"the metric at an index of the batch, got {type(metric).__name__}; MetricConv2d "
                "samples the unit balls of any metric"
            )
        self.metric = metric
        self.spacing = tuple(spacing)
        self.batch_shape = metric.batch_shape[: -self.dim]
        self.grid_shape = metric.batch_shape[-self.dim :]

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the space."""
        return self.metric.dim

    def nodes(self, like: Tensor) -> Float[Tensor, "*batch_and_grid d"]:
        r"""Return the positions (\*batch, \*grid, d) of the nodes, in the dtype of ``like``."""
        origin = (0.0,) * self.dim
        nodes = grid_nodes(self.grid_shape, self.spacing, origin, like.dtype, like.device)
        return nodes.expand(*self.batch_shape, *nodes.shape)

    def at(self, positions: Float[Tensor, "*batch d"]) -> FinslerMetric:
        r"""Return the metrics at positions (\*batch, ..., d)."""
        around = self._around(positions)

        def norm(v: Tensor) -> Tensor:
            return (2 * self._sum(around.weights * self._energies(around, v))).sqrt()

        return CallableMetric(norm, self.dim, like=positions)

    def energy_slopes(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives ``(E_x, E_v)`` of the energy."""
        around = self._around(x)
        energies, pull = torch.func.vjp(lambda v: self._energies(around, v), v)  # type: ignore[misc]
        force = torch.stack([self._sum(w * energies) for w in around.slopes], dim=-1)
        return force, pull(around.weights)[0]

    def _energies(self, around: _Around, v: Tensor) -> Tensor:
        return around.metric.energy(v[(..., *(None,) * self.dim, slice(None))])

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.flatten(-self.dim).sum(-1)

    def _around(self, x: Tensor) -> _Around:
        d = self.dim
        # The axes that follow one of the batch: the others' of the positions, and the nodes'.
        index = [
            torch.arange(n, device=x.device).reshape(-1, *(1,) * (x.ndim - 2 - k + d))
            for k, n in enumerate(self.batch_shape)
        ]
        values, slopes = [], []
        for axis, (n, step) in enumerate(zip(self.grid_shape, self.spacing, strict=True)):
            t = x[..., axis] / step
            i, f = cell_along(t, n, "constant")
            factor = slope_factor(t, n, "constant")
            node = i[..., None] + torch.arange(-1, 3, device=x.device)
            # Differences are one-sided at the ends.
            inner = ((node > 0) & (node < n - 1)).to(x.dtype)
            low, high = (1 - f) / (1 + inner[..., 1]), f / (1 + inner[..., 2])
            none = torch.zeros_like(f)
            one = (..., *(None,) * axis, slice(None), *(None,) * (d - 1 - axis))
            index.append(node.clamp(0, n - 1)[one])
            values.append(torch.stack((none, 1 - f, f, none), dim=-1)[one])
            slope = torch.stack((-low, -high, low, high), dim=-1) * (factor / step)[..., None]
            slopes.append(slope[one])
        along = [
            reduce(mul, (*values[:axis], slope, *values[axis + 1 :]))
            for axis, slope in enumerate(slopes)
        ]
        # That it can be indexed is looked at when the field is made.
        metric = self.metric[tuple(index)]
        return _Around(metric, reduce(mul, values), along)
