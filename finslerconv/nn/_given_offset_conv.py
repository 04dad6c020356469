"""Deformable convolutions whose offsets come from outside: given, or from other features."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv import ops
from finslerconv.nn._adaptive import Size, zero_
from finslerconv.nn._constructor import constructor
from finslerconv.nn._side_conv import channels_of


class GivenOffsetConv2d(nn.Module):
    """A deformable convolution that is called with its offsets, as torchvision's and mmcv's are.

    :class:`DeformConv2d` computes its offsets itself; take this where another part of the network
    does. Arguments and ``state_dict`` keys are those of ``torchvision.ops.DeformConv2d``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype
        As in ``nn.Conv2d``. ``padding_mode`` holds for every sample outside the image.
    norm : nn.Module, optional
        What the output goes through, as in detectron2's layers.
    activation : callable, optional
        What it goes through then.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import GivenOffsetConv2d
    >>> layer = GivenOffsetConv2d(3, 8, kernel_size=3, padding=1)
    >>> layer(torch.randn(2, 3, 16, 16), torch.zeros(2, 18, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
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
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        # The arguments are checked, and the weights initialised, as those of nn.Conv2d.
        sizes = ops.ConvGeometry.of(kernel_size, stride, padding, dilation)
        plain: Any = nn.Conv2d
        conv = plain(
            in_channels, out_channels, sizes.kernel_size, groups=groups, bias=bias,
            padding_mode=padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = sizes.kernel_size, sizes.stride
        self.padding = padding if isinstance(padding, str) else sizes.padding_before
        self.dilation, self.padding_mode = sizes.dilation, padding_mode
        self.norm, self.activation = norm, activation

    def reset_parameters(self) -> None:
        """Start the weights anew, as ``nn.Conv2d`` does."""
        nn.Conv2d.reset_parameters(self)  # type: ignore[arg-type]

    def geometry(self) -> ops.ConvGeometry:
        """Return kernel size, stride, padding and dilation."""
        return ops.ConvGeometry.of(self.kernel_size, self.stride, self.padding, self.dilation)

    def forward(
        self,
        input: Float[Tensor, "batch channels height width"],
        offset: Float[Tensor, "batch offset_channels out_height out_width"],
        mask: Float[Tensor, "batch mask_channels out_height out_width"] | None = None,
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Return the convolution at displaced taps, as :func:`finslerconv.ops.deform_conv2d`."""
        output = ops.deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask,
            padding_mode=self.padding_mode,
        )  # fmt: skip
        if self.norm is not None:
            output = self.norm(output)
        return output if self.activation is None else self.activation(output)

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        usual = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        parts += [f"{k}={getattr(self, k)!r}" for k, v in usual.items() if getattr(self, k) != v]
        return ", ".join(parts)


class DeformAlign2d(GivenOffsetConv2d):
    """A deformable convolution whose offsets are computed from other features than it convolves.

    It aligns one frame of a video to another, from features of both (EDVR, BasicVSR++, BasicSR's
    ``DCNv2Pack``). At the start it is the standard convolution.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype
        As in :class:`GivenOffsetConv2d`.
    feature_channels : int, optional
        Channels of the features, ``in_channels`` unless given.
    offset_groups : int
        The number of sets of offsets at each pixel, one for each group of input channels.
    modulation : bool
        Whether every sample is multiplied by a learned factor in (0, 2), from 1 at the start.

    Attributes
    ----------
    offset_conv : nn.Conv2d
        The convolution that computes the offsets, (dy, dx) of every tap in pixels.
    modulation_conv : nn.Conv2d or None
        The convolution that computes the factors of the samples.

    References
    ----------
    Wang et al., "EDVR: Video Restoration with Enhanced Deformable Convolutional Networks" (CVPRW
    2019).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DeformAlign2d
    >>> layer = DeformAlign2d(3, 8, kernel_size=3, padding=1, feature_channels=5)
    >>> layer(torch.randn(2, 3, 16, 16), torch.randn(2, 5, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
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
        feature_channels: int | None = None,
        offset_groups: int = 1,
        modulation: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(
                f"offset_groups: expected a divisor of the {in_channels} input channels, got "
                f"{offset_groups}"
            )
        self.offset_groups = offset_groups
        samples = offset_groups * self.geometry().n_taps

        def head(channels: int) -> nn.Conv2d:
            plain: Any = nn.Conv2d
            conv: nn.Conv2d = plain(
                feature_channels or in_channels, channels, self.kernel_size, self.stride,
                self.padding, self.dilation, padding_mode=padding_mode, device=device, dtype=dtype,
            )  # fmt: skip
            zero_(conv)
            return conv

        self.offset_conv = head(2 * samples)
        self.modulation_conv = head(samples) if modulation else None

    def reset_parameters(self) -> None:
        """Start anew: the weights as ``nn.Conv2d`` does, the positions as the standard ones."""
        super().reset_parameters()
        zero_(self.offset_conv)
        if self.modulation_conv is not None:
            zero_(self.modulation_conv)

    def forward(  # type: ignore[override]
        self,
        input: Float[Tensor, "batch channels height width"],
        features: Float[Tensor, "batch feature_channels height width"],
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Return the convolution of ``input`` at taps displaced by what ``features`` say."""
        offset = channels_of(self.offset_conv, features)
        # Positions are geometry: half precision would move them by pixels.
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        mask = None
        if self.modulation_conv is not None:
            mask = 2 * torch.sigmoid(channels_of(self.modulation_conv, features))
        return super().forward(input, offset, mask)
