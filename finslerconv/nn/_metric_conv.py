"""The metric convolution as modules, in place of PyTorch's convolutions."""

import torch
from torch import Tensor

from finslerconv import ops
from finslerconv.balls import ball_map
from finslerconv.metrics import FinslerMetric
from finslerconv.nn._adaptive import AdaptiveConv1d, AdaptiveConv2d, AdaptiveConv3d
from finslerconv.nn._ball_conv import BallConv
from finslerconv.nn._head import MetricHead
from finslerconv.nn._side_conv import channels_of

_METRIC_CONV = {1: ops.metric_conv1d, 2: ops.metric_conv2d, 3: ops.metric_conv3d}


class MetricConv(BallConv):
    """A convolution that samples the unit balls of metrics computed from its own input."""

    def _positions_in(self, metric: FinslerMetric, x: Tensor) -> Tensor:
        points = self._place_points().reshape(-1, *(1,) * len(metric.batch_shape), self.dims)
        positions = ball_map(self.map)(metric, points).movedim(0, -2)
        return positions * torch.tensor(
            self.dilation, dtype=positions.dtype, device=positions.device
        )

    def _convolve(self, x: Tensor, mask: Tensor | None) -> Tensor:
        arguments = (self._place_points(), *self._arguments(mask))
        head = self.head
        if (
            self.dims == 2
            and isinstance(head, MetricHead)
            and head.is_plain
            and head.groups == self.metric_groups
        ):
            return ops.head_conv2d(
                x, channels_of(head.conv, x), head.formula, *arguments,
                map=self.map, padding_mode=self.padding_mode,
            )  # fmt: skip
        metric = self._metric(x)
        form = metric.randers_form()
        if form is None:
            return self._convolve_at(x, self._positions_in(metric, x), mask)
        return _METRIC_CONV[self.dims](
            x, *form, *arguments, map=self.map, padding_mode=self.padding_mode
        )


class MetricConv1d(MetricConv, AdaptiveConv1d):
    """A convolution over one axis that samples asymmetric intervals computed from its own input.

    A drop-in for ``nn.Conv1d``, as :class:`MetricConv2d` is for ``nn.Conv2d``: same arguments, with
    one axis. A metric ``M, omega`` is a scale and a drift, two numbers at each place; its ball is
    the interval from ``-1 / (sqrt(M) - omega)`` to ``1 / (sqrt(M) + omega)``, in which the radial
    map stretches the two sides of the kernel apart from each other.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype, metric_groups, head, reference, map, eps_omega, omega_constraint, fixed_kernel, \
modulation, metric
        As in :class:`MetricConv2d`, and so are errors and attributes. A ``head`` that is an object
        is made with ``dim=1``. The reference sets are ``"lattice"`` and ``"concentric"``, which
        are the same.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import MetricConv1d
    >>> layer = MetricConv1d(3, 8, kernel_size=5, padding=2)
    >>> x = torch.randn(2, 3, 50)
    >>> layer(x).shape, layer.metric(x).batch_shape, layer.head.conv.out_channels
    (torch.Size([2, 8, 50]), (2, 50), 2)
    """


class MetricConv2d(MetricConv, AdaptiveConv2d):
    """A convolution that samples the unit balls of metrics computed from its own input.

    A drop-in for ``nn.Conv2d``, with its arguments, its weight and its bias: at the start it *is*
    that convolution (with the reference set ``"lattice"``), and it learns the shape of its
    support, pixel by pixel, through 3 to 7 numbers.

    The ``state_dict`` of an ``nn.Conv2d`` lacks the head: load it before converting
    (:meth:`from_conv2d`), or with ``strict=False``. The convolution inside is ``head.conv``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype, fixed_kernel, modulation
        As in :class:`AdaptiveConv2d`, and so are the errors. Lengths of the metric are in spacings
        between taps, so ``dilation`` stretches the ball; the modulation is a density on it.
    metric_groups : int
        The number of metrics at each pixel, one for each group of input channels.
    head : {"cholesky", "ldl", "spectral", "spectral_scaled", "log_euclidean"} or \
MatrixParametrization
        How the channels of the layer's own head become ``M``: a name, or an object with options
        of its own, such as ``SpectralScaled(scale_max=2.0)``.
    reference : {"lattice", "concentric", "polar", "sunflower"} or ReferenceSet
        Where in the unit ball the kernel's weights sit.
    map : {"radial", "affine"}
        How the reference points are carried into the ball.
    eps_omega : float
        How far ``|omega|_{M^-1}`` stays below 1, in [0.01, 1]; 1 for Riemannian metrics, which
        need no channels for omega.
    omega_constraint : {"sigmoid", "sigmoid_detached", "clip"}
        How omega is held to that.
    metric : nn.Module, optional
        A module of your own in place of the head, from the input (B, C, H, W) to a
        :class:`~finslerconv.metrics.FinslerMetric` over the output pixels, of batch (B, Ho, Wo)
        or (B, metric_groups, Ho, Wo). ``head``, ``eps_omega`` and ``omega_constraint`` then have
        no effect.

    Attributes
    ----------
    head : nn.Module
        The module that computes the metric.
    reference : ReferenceSet

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import MetricConv2d
    >>> layer = MetricConv2d(3, 8, kernel_size=3, padding=1)
    >>> x = torch.randn(2, 3, 16, 16)
    >>> layer(x).shape, layer.metric(x).batch_shape
    (torch.Size([2, 8, 16, 16]), (2, 16, 16))
    """


class MetricConv3d(MetricConv, AdaptiveConv3d):
    """A convolution over three axes that samples ellipsoids computed from its own input.

    A drop-in for ``nn.Conv3d``, as :class:`MetricConv2d` is for ``nn.Conv2d``: same arguments, with
    three axes, in the order of the array (D, H, W). A metric is 9 to 11 numbers at each voxel, or 6
    to 8 with ``eps_omega=1``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype, metric_groups, head, reference, map, eps_omega, omega_constraint, fixed_kernel, \
modulation, metric
        As in :class:`MetricConv2d`, and so are errors and attributes. A ``head`` that is an object
        is made with ``dim=3``. The reference sets are ``"lattice"``, ``"concentric"`` and
        ``"fibonacci_ball"``.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import MetricConv3d
    >>> layer = MetricConv3d(1, 4, kernel_size=3, padding=1)
    >>> x = torch.randn(1, 1, 6, 7, 8)
    >>> layer(x).shape, layer.metric(x).batch_shape, layer.head.conv.out_channels
    (torch.Size([1, 4, 6, 7, 8]), (1, 6, 7, 8), 9)
    """
