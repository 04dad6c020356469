"""The deformable and the shifted convolution as modules: offsets from a convolution inside."""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv import ops
from finslerconv.nn._adaptive import AdaptiveConv2d, Size, nonzero, zero_
from finslerconv.nn._constructor import constructor


class OffsetConv2d(AdaptiveConv2d):
    """A convolution whose taps are displaced by offsets that it predicts: the base class.

    A subclass says how many offsets there are for a kernel. The parameters are those of
    :class:`DeformConv2d`.
    """

    _groups_argument = "offset_groups"

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
        offset_groups: int = 1,
        fixed_kernel: bool = False,
        modulation: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype, sample_groups=offset_groups, fixed_kernel=fixed_kernel,
            modulation=modulation,
        )  # fmt: skip
        self.offset_groups = offset_groups = self.sample_groups
        self.offset_conv = self._conv_over_output(2 * offset_groups * self._offsets_per_kernel)
        zero_(self.offset_conv)

    @property
    @abc.abstractmethod
    def _offsets_per_kernel(self) -> int:
        """How many offsets displace the taps of a kernel: one for each, or one for all."""

    def offsets(
        self, x: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "batch offset_channels out_height out_width"]:
        """Return the offsets for the input ``x``, as ``ops.deform_conv2d`` takes them.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W) or (C, H, W)

        Returns
        -------
        Tensor, shape (B, 2 * offset_groups * kh * kw, Ho, Wo)
            Displacements (dy, dx) of every tap from its place in the standard convolution, in
            pixels, in float32 at least. torchvision's ``deform_conv2d`` takes the same.
        """
        return self._offsets(self._batched(x))

    def _offsets(self, x: Tensor) -> Tensor:
        offsets = self.offset_conv(x)
        # Positions are geometry: half precision would move them by pixels.
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        if self._offsets_per_kernel == 1:
            taps = self.kernel_size[0] * self.kernel_size[1]
            offsets = offsets.unflatten(1, (self.offset_groups, 1, 2))
            offsets = offsets.expand(-1, -1, taps, -1, -1, -1).flatten(1, 3)
        return offsets

    def _positions(self, x: Tensor) -> Tensor:
        offsets = self._offsets(x).unflatten(1, (self.offset_groups, -1, 2))
        offsets = offsets.movedim((2, 3), (-2, -1))
        if self.offset_groups == 1:
            offsets = offsets.squeeze(1)
        return offsets + self.geometry().taps(offsets)

    def _convolve(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return ops.deform_conv2d(
            x, self._offsets(x), *self._arguments(mask), padding_mode=self.padding_mode
        )

    def _reset_sampling(self) -> None:
        zero_(self.offset_conv)

    def _why_not_standard_positions(self) -> str | None:
        return nonzero("offset_conv.weight", self.offset_conv.weight) or nonzero(
            "offset_conv.bias", self.offset_conv.bias
        )

    def _repr_parts(self) -> Sequence[str]:
        return [] if self.offset_groups == 1 else [f"offset_groups={self.offset_groups}"]


class DeformConv2d(OffsetConv2d):
    """A convolution each of whose taps is displaced by an offset computed from its own input.

    A drop-in for ``nn.Conv2d``, with its arguments, its weight and its bias, and unlike
    torchvision's layer of that name complete: the convolution that predicts the offsets,
    ``2 kh kw`` numbers at every pixel, is inside. At the start they are zero, and the layer *is*
    the standard convolution. As a metric, its kernel samples a ball of free form.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype, fixed_kernel, modulation
        As in :class:`AdaptiveConv2d`.
    offset_groups : int
        The number of sets of offsets at each pixel, one for each group of input channels.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Attributes
    ----------
    offset_conv : nn.Conv2d
        The convolution that computes the offsets, (dy, dx) of every tap in pixels.
    modulation_conv : nn.Conv2d or None
        The convolution that computes the factors of the samples.

    Notes
    -----
    ``state_dict`` keys: ``weight`` and ``bias`` as in ``nn.Conv2d``, ``offset_conv.weight``,
    ``offset_conv.bias``, and with modulation ``modulation_conv.weight``, ``modulation_conv.bias``.
    The modulation of DCNv2 starts at 1/2, a sigmoid, where ours is twice a sigmoid and starts at 1:
    halve weights that were trained there.

    References
    ----------
    Dai et al., "Deformable Convolutional Networks" (ICCV 2017); Zhu et al., "Deformable ConvNets
    v2" (CVPR 2019).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DeformConv2d
    >>> layer = DeformConv2d(3, 8, kernel_size=3, padding=1, modulation=True)
    >>> x = torch.randn(2, 3, 16, 16)
    >>> layer(x).shape, layer.positions(x).shape
    (torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 16, 9, 2]))
    """

    @property
    def _offsets_per_kernel(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]


class ShiftedConv2d(OffsetConv2d):
    """A convolution whose entire kernel is displaced by an offset computed from its own input.

    The deformable convolution with one offset, 2 numbers at every pixel, for all taps (the
    "entire deformable" or shifted one of Dagès et al.). A drop-in for ``nn.Conv2d``, with its
    arguments, its weight and its bias; at the start the offset is zero, and the layer *is* the
    standard convolution. As a metric, its kernel samples a ball moved off its centre.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype, fixed_kernel, modulation
        As in :class:`AdaptiveConv2d`.
    offset_groups : int
        The number of offsets at each pixel, one for each group of input channels.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Attributes
    ----------
    offset_conv : nn.Conv2d
        The convolution that computes the offsets, (dy, dx) in pixels.
    modulation_conv : nn.Conv2d or None
        The convolution that computes the factors of the samples.

    Notes
    -----
    ``state_dict`` keys: ``weight`` and ``bias`` as in ``nn.Conv2d``, ``offset_conv.weight``,
    ``offset_conv.bias``, and with modulation ``modulation_conv.weight``, ``modulation_conv.bias``.

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import ShiftedConv2d
    >>> layer = ShiftedConv2d(3, 8, kernel_size=3, padding=1)
    >>> layer.offset_conv.out_channels, layer(torch.randn(2, 3, 16, 16)).shape
    (2, torch.Size([2, 8, 16, 16]))
    """

    @property
    def _offsets_per_kernel(self) -> int:
        return 1
