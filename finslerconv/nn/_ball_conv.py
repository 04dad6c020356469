"""The base class of the layers that sample balls of metrics computed from their own input."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv import ops
from finslerconv._parametrization import MatrixParametrization
from finslerconv.balls import ReferenceSet, ball_map, lattice, radius, reference_set
from finslerconv.metrics import FinslerMetric
from finslerconv.nn._adaptive import AdaptiveConv, Size, nonzero, own_tensor
from finslerconv.nn._constructor import constructor
from finslerconv.nn._head import MetricHead, channels_per_group, parametrization


class BallConv(AdaptiveConv):
    """A convolution that samples balls of metrics: the base class, with MetricConv2d's arguments.

    It holds the head, which computes the metrics, and the reference points, which a subclass
    carries into the balls.
    """

    _groups_argument = "metric_groups"

    points: Tensor | None

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
    ) -> None:
        ball_map(map)  # raises if there is no such map
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype, sample_groups=metric_groups, fixed_kernel=fixed_kernel,
            modulation=modulation,
        )  # fmt: skip
        self.map = map
        self.metric_groups = metric_groups = self.sample_groups
        self.reference = _as_reference(reference, self.kernel_size)
        self.register_buffer("points", None, persistent=False)
        self._place_points()
        if metric is None:
            kind = parametrization(head, self.dims)
            channels = metric_groups * channels_per_group(kind, eps_omega)
            metric = MetricHead(
                self._conv_over_output(channels), kind, eps_omega, omega_constraint, metric_groups,
                radius(self.kernel_size),
            )  # fmt: skip
        elif not isinstance(metric, nn.Module):
            raise TypeError(
                f"metric: expected an nn.Module from the input to a FinslerMetric, got "
                f"{type(metric).__name__}"
            )
        self.head = metric

    @abc.abstractmethod
    def _positions_in(self, metric: FinslerMetric, x: Tensor) -> Tensor:
        """Return the positions of a batched input whose metrics are known."""

    def metric(self, x: Float[Tensor, "..."]) -> FinslerMetric:
        r"""Return the metrics whose balls the layer samples for the input ``x``.

        Parameters
        ----------
        x : Tensor, shape (B, C, \*size) or (C, \*size)

        Returns
        -------
        FinslerMetric
            Over the output pixels, of batch (B, \*out), or (B, metric_groups, \*out) if there is
            more than one group (B = 1 for an input without batch); lengths in spacings between taps
            (pixels, at dilation 1).
        """
        return self._metric(self._batched(x))

    def _metric(self, x: Tensor) -> FinslerMetric:
        metric = self.head(x)
        if not isinstance(metric, FinslerMetric):
            raise TypeError(
                "metric: expected the module to return a FinslerMetric, got "
                f"{type(metric).__name__}"
            )
        if metric.dim != self.dims:
            raise ValueError(f"metric: expected metrics of dimension {self.dims}, got {metric.dim}")
        size = self.geometry().output_size(*x.shape[2:])
        groups = () if self.metric_groups == 1 else (self.metric_groups,)
        expected = (x.shape[0], *groups, *size)
        if metric.batch_shape != expected:
            raise ValueError(
                f"metric: expected one metric for each output pixel, batch shape {expected}, got "
                f"{metric.batch_shape}"
            )
        return metric

    def _positions(self, x: Tensor) -> Tensor:
        return self._positions_in(self._metric(x), x)

    def _reset_sampling(self) -> None:
        reset_head = getattr(self.head, "reset_parameters", None)
        if reset_head is not None:
            reset_head()

    def _why_not_standard_positions(self) -> str | None:
        standard = lattice(self.kernel_size).points
        if self.reference.points.shape != standard.shape or (
            abs(self.reference.points - standard).max() > 1e-12
        ):
            return f"its reference set is {self.reference.name!r}, not the lattice"
        if not isinstance(self.head, MetricHead):
            return f"its metric is a module of its own, {type(self.head).__name__}"
        for name in ("weight", "bias"):
            values = getattr(self.head.conv, name)
            if values is not None:
                # A direction has no effect while the eigenvalues are equal.
                directions = self.head.parametrization.n_direction_channels
                values = values.unflatten(0, (self.metric_groups, -1))[:, directions:]
            reason = nonzero(f"head.conv.{name}", values)
            if reason is not None:
                return reason
        return None

    def _repr_parts(self) -> Sequence[str]:
        groups = [] if self.metric_groups == 1 else [f"metric_groups={self.metric_groups}"]
        return [f"reference={self.reference.name!r}", f"map={self.map!r}", *groups]

    def _place_points(self) -> Tensor:
        """Return the reference points on the weight's device, in float32 at least.

        They are made again from float64 if the weight has moved, by assignment too, such as that of
        ``load_state_dict(..., assign=True)`` to a layer on the meta device.
        """
        like = own_tensor(self)
        dtype = torch.promote_types(like.dtype, torch.float32)
        points = self.points
        if points is None or points.device != like.device or points.dtype != dtype:
            # Later calls may need gradients.
            with torch.inference_mode(False):
                points = torch.as_tensor(self.reference.points, dtype=dtype, device=like.device)
            # A tracer's tensor has no values for later calls.
            if type(points) is Tensor and not torch.compiler.is_compiling():
                self.points = points
        return points

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BallConv":
        # Made again from float64: a change of dtype must not round the points, and on the meta
        # device they have no values to move.
        self.points = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_points()
        return self


def _as_reference(reference: str | ReferenceSet, kernel_size: tuple[int, ...]) -> ReferenceSet:
    if isinstance(reference, str):
        return reference_set(reference, kernel_size)
    if not isinstance(reference, ReferenceSet):
        raise TypeError(
            f"reference: expected a name or a ReferenceSet, got {type(reference).__name__}"
        )
    taps, dims = math.prod(kernel_size), len(kernel_size)
    if reference.dim != dims or len(reference) != taps:
        where = {1: "on the line", 2: "in the plane", 3: "in space"}[dims]
        raise ValueError(
            f"reference: expected {taps} points {where} for a kernel of "
            f"{' x '.join(map(str, kernel_size))}, got {len(reference)} in dimension "
            f"{reference.dim}"
        )
    return reference
