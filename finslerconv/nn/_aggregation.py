"""DCNv3 and DCNv4 as modules, with their papers' names."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from finslerconv import ops

_NORMS = ("LN", "BN")
ACTIVATIONS = {"ReLU": nn.ReLU, "SiLU": nn.SiLU, "GELU": nn.GELU}


class Samples(NamedTuple):
    """Where a layer samples for an input, and how much each sample counts.

    Parameters
    ----------
    positions : Tensor, shape (B, groups, Ho, Wo, taps, 2) or (B, heads, Q, levels, points, 2)
        Displacements (down, right) in pixels: from the kernel's centre, or of an attention from the
        reference point of its query, in pixels of each level. float32 at least.
    weights : Tensor, shape (B, groups, Ho, Wo, taps) or (B, heads, Q, levels, points)

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DCNv3
    >>> samples = DCNv3(16, group=4).samples(torch.rand(1, 6, 6, 16))
    >>> samples.positions.shape, samples.weights.shape
    (torch.Size([1, 4, 6, 6, 9, 2]), torch.Size([1, 4, 6, 6, 9]))
    """

    positions: Float[Tensor, "..."]
    weights: Float[Tensor, "..."]


class _AggregatedTaps(nn.Module):
    """What DCNv3 and DCNv4 share: arguments, the grid of taps, the mix with the centre's feature.

    A subclass computes the features from which offsets and weights come, both of them, and the
    output.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int,
        pad: int,
        dilation: int,
        group: int,
        offset_scale: float,
        center_feature_scale: bool,
        remove_center: bool,
        like: dict[str, Any],
    ) -> None:
        super().__init__()
        if group < 1 or channels < 1 or channels % group != 0:
            raise ValueError(f"group: expected a divisor of the {channels} channels, got {group}")
        self._geometry = ops.aggregation_geometry(
            kernel_size, stride, pad, dilation, bool(remove_center)
        )
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.group_channels = channels // group
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.remove_center = bool(remove_center)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(
                torch.zeros(group, channels, **like)
            )
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group, **like))

    @property
    def _taps(self) -> int:
        return self._geometry.n_taps - int(self.remove_center)

    @property
    def _kernel(self) -> tuple[Any, ...]:
        """What the functions take after the fields."""
        return (
            self.kernel_size, self.stride, self.pad, self.dilation, self.group, self.offset_scale,
            self.remove_center,
        )  # fmt: skip

    def geometry(self) -> ops.ConvGeometry:
        """Return kernel size, stride, padding and dilation."""
        return self._geometry

    def _at_centres(
        self, x: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch out_height out_width channels"]:
        """Return the pixels on which the kernel is centred; beyond the image they are zero."""
        height, width = x.shape[1:3]
        rows, columns = self._geometry.output_size(height, width)
        margins = []
        steps = []
        for size, count, k, dilation, pad, stride in zip(
            (width, height),
            (columns, rows),
            self._geometry.kernel_size[::-1],
            self._geometry.dilation[::-1],
            self._geometry.padding_before[::-1],
            self._geometry.stride[::-1],
            strict=True,
        ):
            first = dilation * (k - 1) // 2 - pad
            margins += [-first, first + (count - 1) * stride + 1 - size]
            steps.append(stride)
        if any(margins):
            x = functional.pad(x, (0, 0, *margins))
        return x[:, :: steps[1], :: steps[0]] if steps != [1, 1] else x

    def _with_centre(self, x: Tensor, projected: Tensor, features: Tensor) -> Tensor:
        """Mix the aggregated features with those of the centre, as much as the layer learned."""
        if not self.center_feature_scale:
            return x
        scale = functional.linear(
            features, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        ).sigmoid()
        scale = scale.repeat_interleave(self.group_channels, -1)
        return x * (1 - scale) + self._at_centres(projected) * scale

    def _samples(self, offset: Tensor, weights: Tensor) -> Samples:
        """Return the samples of offsets (B, Ho, Wo, group, taps, 2) and their weights."""
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        _, taps = ops.tap_grid(self._geometry, self.remove_center, offset)
        positions = self.offset_scale * (offset + taps)
        return Samples(positions.flip(-1).movedim(3, 1), weights.movedim(3, 1))

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"pad={self.pad}, dilation={self.dilation}, group={self.group}, "
            f"offset_scale={self.offset_scale}, remove_center={self.remove_center}"
        )


class DCNv3(_AggregatedTaps):
    """The deformable convolution of InternImage: taps sampled, weighted by a softmax, summed.

    A drop-in for ``DCNv3`` and ``DCNv3_pytorch`` of the paper's code, which needs no compiler: the
    arguments, the names of the parameters and the start are the same, so its checkpoints load.

    Parameters
    ----------
    channels : int
    kernel_size : int
    dw_kernel_size : int, optional
        The size of the depthwise convolution from which offsets and weights are computed;
        ``kernel_size`` by default.
    stride, pad, dilation : int
        As in ``nn.Conv2d``.
    group : int
        The number of sets of offsets and weights at each pixel, among which the channels are split.
    offset_scale : float
        Multiplies taps and offsets.
    act_layer : {"GELU", "SiLU", "ReLU"}
    norm_layer : {"LN", "BN"}
    center_feature_scale : bool
        Whether each group learns to keep some of the feature at the kernel's centre.
    remove_center : bool
        Whether the tap at the centre is left out, of a kernel of odd size.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Notes
    -----
    ``state_dict`` keys: ``dw_conv.0.*`` (convolution), ``dw_conv.1.1.*`` (norm; ``dw_conv.1.0.*``
    with ``"BN"``), ``offset.*``, ``mask.*``, ``input_proj.*``, ``output_proj.*``, and with
    ``center_feature_scale`` ``center_feature_scale_proj_weight`` and
    ``center_feature_scale_proj_bias``.

    The paper's code needs an output as large as the input. Here, with another stride or padding,
    offsets and weights are those of the pixels on which the kernel is centred.

    References
    ----------
    Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
    Convolutions" (CVPR 2023).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DCNv3
    >>> layer = DCNv3(channels=64, group=4)
    >>> x = torch.randn(2, 14, 14, 64)  # channels last, as in the paper's code
    >>> layer(x).shape, layer.samples(x).positions.shape
    (torch.Size([2, 14, 14, 64]), torch.Size([2, 4, 14, 14, 9, 2]))
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        like = {"device": device, "dtype": dtype}
        super().__init__(
            channels, kernel_size, stride, pad, dilation, group, offset_scale,
            center_feature_scale, remove_center, like,
        )  # fmt: skip
        if act_layer not in ACTIVATIONS:
            raise ValueError(f"act_layer: expected one of {tuple(ACTIVATIONS)}, got {act_layer!r}")
        if norm_layer not in _NORMS:
            raise ValueError(f"norm_layer: expected one of {_NORMS}, got {norm_layer!r}")
        self.dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        norm: list[nn.Module]
        if norm_layer == "LN":
            norm = [_ChannelsLast(), nn.LayerNorm(channels, eps=1e-6, **like)]
        else:
            norm = [nn.BatchNorm2d(channels, **like), _ChannelsLast()]
        self.dw_conv = nn.Sequential(
            _Depthwise(channels, self.dw_kernel_size, like),
            nn.Sequential(*norm),
            ACTIVATIONS[act_layer](),
        )
        self.offset = nn.Linear(channels, group * self._taps * 2, **like)
        self.mask = nn.Linear(channels, group * self._taps, **like)
        self.input_proj = nn.Linear(channels, channels, **like)
        self.output_proj = nn.Linear(channels, channels, **like)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew: no offsets, equal weights."""
        for layer in self.dw_conv.modules():
            if isinstance(layer, nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d):
                layer.reset_parameters()
        reset_linear(self)

    def forward(
        self, input: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch out_height out_width channels"]:
        """Return the layer's output, channels last as its input.

        Parameters
        ----------
        input : Tensor, shape (B, H, W, channels)
        """
        _check_image("input", input, self.channels)
        features, offset, mask = self._fields(input)
        projected = self.input_proj(input)
        x = ops.dcnv3(projected, offset, mask.flatten(-2), *self._kernel)
        return self.output_proj(self._with_centre(x, projected, features))

    def samples(self, input: Float[Tensor, "batch height width channels"]) -> Samples:
        """Return the sampling positions and their weights for an input of :meth:`forward`."""
        _check_image("input", input, self.channels)
        _, offset, mask = self._fields(input)
        return self._samples(offset.unflatten(-1, (self.group, self._taps, 2)), mask)

    def _fields(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features at the kernels' centres, the offsets and the taps' weights."""
        features = self._at_centres(self.dw_conv(input.permute(0, 3, 1, 2)))
        mask = self.mask(features).unflatten(-1, (self.group, self._taps)).softmax(-1)
        return features, self.offset(features), mask


class DCNv4(_AggregatedTaps):
    """The deformable convolution of FlashInternImage: :class:`DCNv3` without softmax, and faster.

    A drop-in for ``DCNv4`` of the paper's code, which needs no compiler and runs on the CPU: the
    arguments, the names of the parameters and the start are the same, so its checkpoints load.

    Parameters
    ----------
    channels, kernel_size, stride, pad, dilation, group, offset_scale, remove_center, device, dtype
        As in :class:`DCNv3`.
    dw_kernel_size : int, optional
        The size of a depthwise convolution from which offsets and weights are computed; None
        for none: then from each pixel alone.
    center_feature_scale : bool
        Whether each group learns to keep some of the feature at the kernel's centre.
    output_bias : bool
        Whether the last projection has a bias.
    without_pointwise : bool
        Whether the projections of input and output are left out.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Notes
    -----
    ``state_dict`` keys: ``offset_mask.*``, unless ``without_pointwise`` ``value_proj.*`` and
    ``output_proj.*``, with ``dw_kernel_size`` ``offset_mask_dw.*``, and with
    ``center_feature_scale`` ``center_feature_scale_proj_weight`` and
    ``center_feature_scale_proj_bias``.

    The paper's code takes groups of channels that 16 divides, and kernels of 3 x 3; here all do.
    With a stride, offsets and weights are those of the pixels on which the kernel is centred.

    References
    ----------
    Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
    Applications" (CVPR 2024).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DCNv4
    >>> layer = DCNv4(channels=64, group=4)
    >>> x = torch.randn(2, 14 * 12, 64)  # pixels row by row, as in the paper's code
    >>> layer(x, shape=(14, 12)).shape
    torch.Size([2, 168, 64])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        like = {"device": device, "dtype": dtype}
        super().__init__(
            channels, kernel_size, stride, pad, dilation, group, offset_scale,
            center_feature_scale, remove_center, like,
        )  # fmt: skip
        self.dw_kernel_size = dw_kernel_size
        self.without_pointwise = without_pointwise
        self.K = group * self._taps
        if dw_kernel_size is not None:
            self.offset_mask_dw = _Depthwise(channels, dw_kernel_size, like)
        self.offset_mask = nn.Linear(channels, math.ceil(self.K * 3 / 8) * 8, **like)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels, **like)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias, **like)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew: no offsets, and weights of zero."""
        if self.dw_kernel_size is not None:
            self.offset_mask_dw.reset_parameters()
        reset_linear(self)

    def forward(
        self, input: Float[Tensor, "batch pixels channels"], shape: tuple[int, int] | None = None
    ) -> Float[Tensor, "batch out_pixels channels"]:
        """Return the layer's output, its pixels row by row as those of its input.

        Parameters
        ----------
        input : Tensor, shape (B, H * W, channels)
        shape : tuple of two ints, optional
            Rows and columns of the image; a square by default.
        """
        image = self._image(input, shape)
        projected = image if self.without_pointwise else self.value_proj(image)
        x = ops.dcnv4(projected, self._fields(image), *self._kernel)
        x = self._with_centre(x, projected, x).flatten(1, 2)
        return x if self.without_pointwise else self.output_proj(x)

    def samples(
        self, input: Float[Tensor, "batch pixels channels"], shape: tuple[int, int] | None = None
    ) -> Samples:
        """Return the sampling positions and their weights for an input of :meth:`forward`."""
        fields = self._fields(self._image(input, shape))[..., : 3 * self.K]
        offset, weights = fields.unflatten(-1, (self.group, 3 * self._taps)).split(
            (2 * self._taps, self._taps), -1
        )
        return self._samples(offset.unflatten(-1, (self._taps, 2)), weights)

    def _fields(self, image: Tensor) -> Tensor:
        """Return offsets and weights as :func:`finslerconv.ops.dcnv4` takes them."""
        features = image
        if self.dw_kernel_size is not None:
            features = self.offset_mask_dw(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.offset_mask(self._at_centres(features))

    def _image(self, input: Tensor, shape: tuple[int, int] | None) -> Tensor:
        """Return the checked input as an image, channels last."""
        if input.ndim != 3 or input.shape[2] != self.channels:
            raise ValueError(
                f"input: expected shape (B, H * W, {self.channels}), got {tuple(input.shape)}"
            )
        pixels = input.shape[1]
        rows, columns = (math.isqrt(pixels),) * 2 if shape is None else shape
        if rows * columns != pixels:
            raise ValueError(
                f"shape: expected rows and columns of {pixels} pixels, got {shape}; only that of a "
                "square is known by itself"
            )
        return input.unflatten(1, (rows, columns))


class _ChannelsLast(nn.Module):
    """Images (B, C, H, W) as (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _Depthwise(nn.Conv2d):
    """A depthwise convolution whose output is as large as its input, for even sizes too."""

    def __init__(self, channels: int, size: int, like: dict[str, Any]) -> None:
        padding = (size - 1) // 2
        super().__init__(channels, channels, size, padding=padding, groups=channels, **like)

    def forward(self, input: Tensor) -> Tensor:
        if self.kernel_size[0] % 2 == 0:
            input = functional.pad(input, (0, 1, 0, 1))
        return super().forward(input)


@torch.no_grad()
def reset_linear(module: nn.Module) -> None:
    """Reset a layer's own linear maps: the projections at random, the fields to zero."""
    for name, layer in module.named_children():
        if isinstance(layer, nn.Linear):
            if name.endswith("_proj"):
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("center_feature_scale"):
            parameter.zero_()


def _check_image(name: str, image: Tensor, channels: int) -> None:
    if image.ndim != 4 or image.shape[3] != channels:
        raise ValueError(
            f"{name}: expected shape (B, H, W, {channels}), channels last, got {tuple(image.shape)}"
        )
