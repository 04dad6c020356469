"""The metric convolution as a module, in place of ``nn.Conv2d``."""

import torch
from torch import Tensor

from finslerconv import ops
from finslerconv.balls import ball_map
from finslerconv.metrics import FinslerMetric
from finslerconv.nn._ball_conv import BallConv2d
from finslerconv.nn._head import MetricHead


class MetricConv2d(BallConv2d):
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

    def _positions_in(self, metric: FinslerMetric, x: Tensor) -> Tensor:
        points = self._place_points().reshape(-1, *(1,) * len(metric.batch_shape), 2)
        positions = ball_map(self.map)(metric, points).movedim(0, -2)
        return positions * torch.tensor(
            self.dilation, dtype=positions.dtype, device=positions.device
        )

    def _convolve(self, x: Tensor, mask: Tensor | None) -> Tensor:
        arguments = (self._place_points(), *self._arguments(mask))
        head = self.head
        if isinstance(head, MetricHead) and head.is_plain and head.groups == self.metric_groups:
            return ops.head_conv2d(
                x, head.conv(x), head.formula, *arguments,
                map=self.map, padding_mode=self.padding_mode,
            )  # fmt: skip
        metric = self._metric(x)
        form = metric.randers_form()
        if form is None:
            return self._convolve_at(x, self._positions_in(metric, x), mask)
        return ops.metric_conv2d(x, *form, *arguments, map=self.map, padding_mode=self.padding_mode)
