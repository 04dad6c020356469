"""The convolution on geodesic balls as a module, in place of ``nn.Conv2d``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finslerconv import ops
from finslerconv._arrays import as_integer
from finslerconv._parametrization import MatrixParametrization
from finslerconv.balls import ReferenceSet
from finslerconv.geodesics.balls import fan, geodesic_positions, metric_positions
from finslerconv.metrics import FinslerMetric
from finslerconv.nn._adaptive import AdaptiveConv2d, Size
from finslerconv.nn._ball_conv import BallConv
from finslerconv.nn._constructor import constructor


class GeodesicConv2d(BallConv, AdaptiveConv2d):
    """A convolution that samples the unit geodesic balls of a metric field.

    A sample of :class:`MetricConv2d` lies at ``x + v``, ``v`` in the unit ball of the metric at the
    output pixel ``x``; here it lies where the geodesic of that velocity ends, at ``exp_x(v)``. The
    two agree where the metric is constant; elsewhere the kernel bends with the field. Heads,
    weights, ``state_dict`` and the start are those of :class:`MetricConv2d`.

    The nodes of the field's grid are the centres of the kernel at the output pixels, ``stride``
    pixels apart; between them it is interpolated linearly, beyond them it is constant. The backward
    pass integrates the geodesics again, so their states are not stored.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype, metric_groups, head, reference, map, eps_omega, omega_constraint, fixed_kernel, \
modulation
        As in :class:`MetricConv2d`, and so are the errors and the attributes.
    metric : nn.Module, optional
        As in :class:`MetricConv2d`. A metric that is neither Riemannian nor Randers must have a
        method ``__getitem__``, by which ``metric[index]`` is the metric at an index of the batch:
        between the output pixels its energy is interpolated. Its geodesics go through PyTorch's
        operations (automatic differentiation of the norm), at many times the cost.
    steps : int
        Integration steps, of fourth order, of the longest geodesic.

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025): unit geodesic balls, there
    from a heat flow at one pixel at a time.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import GeodesicConv2d
    >>> layer = GeodesicConv2d(3, 8, kernel_size=3, padding=1)
    >>> x = torch.randn(2, 3, 16, 16)
    >>> layer(x).shape, layer.positions(x).shape
    (torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 16, 9, 2]))
    """

    @constructor
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: ops.PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        metric_groups: int = 1,
        head: str | MatrixParametrization = "cholesky",
        reference: str | ReferenceSet = "lattice",
        map: ops.MapName = "radial",
        eps_omega: float = 0.1,
        omega_constraint: str = "sigmoid",
        fixed_kernel: bool = False,
        modulation: bool = False,
        metric: nn.Module | None = None,
        steps: int = 4,
    ) -> None:
        steps = as_integer("steps", steps)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype, metric_groups=metric_groups, head=head,
            reference=reference, map=map, eps_omega=eps_omega, omega_constraint=omega_constraint,
            fixed_kernel=fixed_kernel, modulation=modulation, metric=metric,
        )  # fmt: skip
        self.steps = steps
        self._fan = fan(self.reference.points, map=map, steps=steps)

    def _positions_in(self, metric: FinslerMetric, x: Tensor) -> Tensor:
        # Lengths are in spacings between taps: so are the coordinates of the field.
        spacing = [s / d for s, d in zip(self.stride, self.dilation, strict=True)]
        form = metric.randers_form()
        if form is None:
            positions = metric_positions(
                metric, self._place_points(), spacing=spacing, map=self.map, steps=self.steps
            )
        else:
            M, omega = form
            grid = M.shape[-4:-2]
            positions = geodesic_positions(
                M.reshape(-1, *grid, 2, 2),
                None if omega is None else omega.reshape(-1, *grid, 2),
                self._fan,
                spacing=spacing,
                # The reference backend is PyTorch's operations, here too.
                compiled=None if ops.is_compiled(M.device) else False,
            )
            positions = positions.reshape(*M.shape[:-2], *positions.shape[-2:])
        if self.dilation == (1, 1):
            return positions
        return positions * positions.new_tensor(self.dilation)

    def _convolve(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._convolve_at(x, self._positions_in(self._metric(x), x), mask)

    def _repr_parts(self) -> Sequence[str]:
        return [*super()._repr_parts(), f"steps={self.steps}"]
