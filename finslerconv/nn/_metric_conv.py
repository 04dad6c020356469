"""The metric convolution as a module, in the place of ``nn.Conv2d``."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv import ops
from finslerconv.balls import ReferenceSet, radius, reference_set
from finslerconv.metrics import FinslerMetric, Randers, Riemannian
from finslerconv.nn._head import MetricHead, channels_per_group, parametrization
from finslerconv.nn._parametrization import MatrixParametrization
from finslerconv.ops._positions import MAPS

Size = int | tuple[int, int]

_CONV_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


class MetricConv2d(nn.Conv2d):
    """A convolution that samples the unit balls of metrics computed from its own input.

    A drop-in for ``nn.Conv2d``, with its arguments, its weight and its bias: at the start it *is*
    that convolution (with the reference set ``"lattice"``), and it learns the shape of its
    support, pixel by pixel, through 3 to 7 numbers.

    It is an ``nn.Conv2d`` to ``isinstance`` too, and holds others (``head.conv``), which whoever
    walks a model for convolutions should leave alone. The ``state_dict`` of an ``nn.Conv2d``
    lacks the head: load it before converting (:meth:`from_conv2d`), or with ``strict=False``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype
        As in ``nn.Conv2d``. ``padding_mode`` holds for every sample outside the image. Lengths of
        the metric are in spacings between taps, so ``dilation`` stretches the ball.
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
        How far ``|omega|_{M^-1}`` stays below 1, in [0.001, 1]; 1 for Riemannian metrics, which
        need no channels for omega.
    omega_constraint : {"sigmoid", "sigmoid_detached", "clip"}
        How omega is held to that.
    fixed_kernel : bool
        Whether the weights are uniform and not learned, ``1 / (kh kw in_channels / groups)``: only
        the metric is (the paper's FKW).
    modulation : bool
        Whether every sample is multiplied by a learned factor in (0, 2), from 1 at the start, as in
        DCNv2: a density on the ball.
    metric : nn.Module, optional
        A module of your own in the place of the head, from the input (B, C, H, W) to a
        :class:`~finslerconv.metrics.FinslerMetric` over the output pixels, of batch (B, Ho, Wo)
        or (B, metric_groups, Ho, Wo). ``head``, ``eps_omega`` and ``omega_constraint`` are then
        without effect.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Attributes
    ----------
    head : nn.Module
        The module that computes the metric.
    modulation_conv : nn.Conv2d or None
        The convolution that computes the factors of the samples.
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

    # What nn.Conv2d makes of its arguments.
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    padding_mode: ops.PaddingMode

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
        # nn.Conv2d's constructor ends in reset_parameters, before there is a head to reset.
        self._constructed = False
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        if not isinstance(metric_groups, int) or metric_groups < 1 or in_channels % metric_groups:
            raise ValueError(
                f"metric_groups: expected a divisor of the {in_channels} input channels, got "
                f"{metric_groups}"
            )
        if map not in MAPS:
            raise ValueError(f"map: expected 'radial' or 'affine', got {map!r}")
        self.metric_groups = metric_groups
        self.map = map
        self.fixed_kernel = fixed_kernel
        self.reference = _as_reference(reference, self.kernel_size)
        self.register_buffer("points", None, persistent=False)
        self._place_points()

        def conv(channels: int) -> nn.Conv2d:
            return nn.Conv2d(
                in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation,
                padding_mode=padding_mode, device=device, dtype=dtype,
            )  # fmt: skip

        if metric is None:
            kind = parametrization(head)
            channels = metric_groups * channels_per_group(kind, eps_omega)
            metric = MetricHead(
                conv(channels), kind, eps_omega, omega_constraint, metric_groups,
                radius(self.kernel_size),
            )  # fmt: skip
        elif not isinstance(metric, nn.Module):
            raise TypeError(
                f"metric: expected an nn.Module from the input to a FinslerMetric, got "
                f"{type(metric).__name__}"
            )
        self.head = metric
        self.modulation_conv = conv(metric_groups * len(self.reference)) if modulation else None
        if fixed_kernel:
            weight = self.weight.detach()
            del self.weight
            self.register_buffer("weight", weight)
            self._reset_fixed_kernel()
        self._constructed = True
        self._reset_modulation()

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, **options: Any) -> "MetricConv2d":
        """Return a metric convolution that begins as the convolution ``conv``.

        Parameters
        ----------
        conv : nn.Conv2d
            Its arguments, weights, device, dtype, training mode and ``requires_grad`` are taken
            over; it is left as it is, and shares nothing with the result. Not a class that
            computes something else from them, such as a ``MetricConv2d``.
        **options
            The keyword arguments of :class:`MetricConv2d` after ``dtype``. With the reference set
            ``"lattice"`` (the default) the output is that of ``conv`` until training moves it.

        Raises
        ------
        TypeError
            If ``conv`` is no (initialised) ``nn.Conv2d``.
        ValueError
            If ``fixed_kernel`` is asked for, which would discard the weights.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv: expected an nn.Conv2d, got {type(conv).__name__}")
        if type(conv).forward is not nn.Conv2d.forward:
            raise TypeError(
                f"conv: {type(conv).__name__} computes something else than nn.Conv2d, which would "
                "be lost; make it a plain convolution first (finslerconv.nn.fold does for a "
                "weighted one)"
            )
        if isinstance(conv.weight, nn.UninitializedParameter):
            raise TypeError("conv: is lazy and has no weights yet; run it once first")
        if options.get("fixed_kernel"):
            raise ValueError(
                "fixed_kernel: would discard the weights of conv; construct MetricConv2d directly"
            )
        arguments = {name: getattr(conv, name) for name in _CONV_ARGUMENTS}
        layer = cls(
            **arguments,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **options,
        )
        for name in ("weight", "bias"):
            source, target = getattr(conv, name), getattr(layer, name)
            if source is not None:
                target.data.copy_(source.data)
                target.requires_grad_(source.requires_grad)
        return layer.train(conv.training)

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        inherited = super().extra_repr()  # type: ignore[no-untyped-call]
        parts = [inherited, f"reference={self.reference.name!r}", f"map={self.map!r}"]
        if self.metric_groups != 1:
            parts.append(f"metric_groups={self.metric_groups}")
        if self.fixed_kernel:
            parts.append("fixed_kernel=True")
        return ", ".join(parts)

    def reset_parameters(self) -> None:
        """Start anew: the weights as ``nn.Conv2d`` does, the metric as the disc."""
        if self._constructed and self.fixed_kernel:
            self._reset_fixed_kernel()
        else:
            super().reset_parameters()
        if not self._constructed:
            return
        reset_head = getattr(self.head, "reset_parameters", None)
        if reset_head is not None:
            reset_head()
        self._reset_modulation()

    def metric(self, x: Float[Tensor, "*batch channels height width"]) -> FinslerMetric:
        """Return the metrics whose unit balls the layer samples for the input ``x``.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W) or (C, H, W)

        Returns
        -------
        FinslerMetric
            Of batch (B, Ho, Wo), or (B, metric_groups, Ho, Wo) if there is more than one group
            (B = 1 for an input without batch); lengths in spacings between taps (pixels, at
            dilation 1).
        """
        metric = self.head(self._batched(x))
        if not isinstance(metric, FinslerMetric):
            raise TypeError(
                "metric: expected the module to return a FinslerMetric, got "
                f"{type(metric).__name__}"
            )
        return metric

    def positions(self, x: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "..."]:
        """Return the sampling positions for the input ``x``.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W) or (C, H, W)

        Returns
        -------
        Tensor, shape (B, Ho, Wo, kh * kw, 2), or (B, metric_groups, Ho, Wo, kh * kw, 2)
            Displacements (down, right) from the kernel's centre at each output pixel, in pixels,
            in the order of the kernel (row-major). :meth:`geometry` says where the centres are.
        """
        return self._positions(self.metric(x))

    def geometry(self) -> ops.ConvGeometry:
        """Return kernel size, stride, padding and dilation, and with them the kernel's centres."""
        return ops.ConvGeometry.of(self.kernel_size, self.stride, self.padding, self.dilation)

    def forward(
        self, input: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch out_channels out_height out_width"]:
        """Return the convolution of ``input``.

        Parameters
        ----------
        input : Tensor, shape (B, C, H, W) or (C, H, W)

        Returns
        -------
        Tensor, shape (B, O, Ho, Wo) or (O, Ho, Wo)
        """
        x = self._batched(input)
        metric = self.metric(x)
        self._check_batch(metric, x)
        mask = None
        if self.modulation_conv is not None:
            mask = 2 * torch.sigmoid(self.modulation_conv(x))
        arguments = (self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        if isinstance(metric, Randers | Riemannian):
            omega = metric.omega if isinstance(metric, Randers) else None
            output = ops.metric_conv2d(
                x, metric.M, omega, self.points, *arguments,
                map=self.map, padding_mode=self.padding_mode,
            )  # fmt: skip
        else:
            output = ops.deform_conv2d(
                x, self._offsets(metric), *arguments, padding_mode=self.padding_mode
            )
        return output if input.ndim == 4 else output.squeeze(0)

    def _positions(self, metric: FinslerMetric) -> Tensor:
        batch_ndim = len(metric.batch_shape)
        points = self.points.reshape(-1, *(1,) * batch_ndim, 2)
        positions = MAPS[self.map](metric, points).movedim(0, -2)
        return positions * torch.tensor(
            self.dilation, dtype=positions.dtype, device=positions.device
        )

    def _offsets(self, metric: FinslerMetric) -> Tensor:
        """Return the positions as ``deform_conv2d`` wants them: from the standard taps."""
        positions = self._positions(metric)
        offsets = positions - self.geometry().taps(positions)
        if offsets.ndim == 5:
            offsets = offsets.unsqueeze(1)
        return offsets.movedim((-2, -1), (2, 3)).flatten(1, 3)

    def _batched(self, x: Tensor) -> Tensor:
        """Return a checked input with its batch axis."""
        if not isinstance(x, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(x).__name__}")
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"input: expected shape (B, {self.in_channels}, H, W) or "
                f"({self.in_channels}, H, W), got {tuple(x.shape)}"
            )
        autocast = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(
            x.device.type
        )
        if x.dtype != self.weight.dtype and not autocast:
            raise TypeError(
                f"input: expected the layer's dtype {self.weight.dtype}, got {x.dtype}; convert "
                "the input or the layer (layer.to(...))"
            )
        return x if x.ndim == 4 else x.unsqueeze(0)

    def _check_batch(self, metric: FinslerMetric, x: Tensor) -> None:
        rows, columns = self.geometry().output_size(x.shape[2], x.shape[3])
        groups = () if self.metric_groups == 1 else (self.metric_groups,)
        expected = (len(x), *groups, rows, columns)
        if metric.batch_shape != expected:
            raise ValueError(
                f"metric: expected one metric for each output pixel, batch shape {expected}, got "
                f"{metric.batch_shape}"
            )

    def _place_points(self) -> None:
        """Put the reference points on the weight's device, in float32 or better, from float64."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        self.points = torch.as_tensor(self.reference.points, dtype=dtype, device=self.weight.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MetricConv2d":
        # A move to half precision must not round the points, nor one to float64 keep rounded ones.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_points()
        return self

    @torch.no_grad()
    def _reset_fixed_kernel(self) -> None:
        self.weight.fill_(1 / self.weight[0].numel())
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def _reset_modulation(self) -> None:
        if self.modulation_conv is not None:
            self.modulation_conv.weight.zero_()
            if self.modulation_conv.bias is not None:
                self.modulation_conv.bias.zero_()


def _as_reference(reference: str | ReferenceSet, kernel_size: tuple[int, int]) -> ReferenceSet:
    if isinstance(reference, str):
        return reference_set(reference, kernel_size)
    if not isinstance(reference, ReferenceSet):
        raise TypeError(
            f"reference: expected a name or a ReferenceSet, got {type(reference).__name__}"
        )
    if reference.dim != 2 or len(reference) != kernel_size[0] * kernel_size[1]:
        raise ValueError(
            f"reference: expected {kernel_size[0] * kernel_size[1]} points in the plane for a "
            f"kernel of {kernel_size[0]} x {kernel_size[1]}, got {len(reference)} in dimension "
            f"{reference.dim}"
        )
    return reference
