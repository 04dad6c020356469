"""The deformable and the shifted convolution as modules: offsets from a convolution inside."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv import ops
from finslerconv.nn._adaptive import (
    AdaptiveConv,
    AdaptiveConv1d,
    AdaptiveConv2d,
    AdaptiveConv3d,
    Size,
    nonzero,
    zero_,
)
from finslerconv.nn._constructor import constructor
from finslerconv.nn._side_conv import channels_of


class OffsetConv(AdaptiveConv):
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
        self.offset_conv = self._conv_over_output(
            self.dims * offset_groups * self._offsets_per_kernel
        )
        zero_(self.offset_conv)

    @property
    @abc.abstractmethod
    def _offsets_per_kernel(self) -> int:
        """How many offsets displace the taps of a kernel: one for each, or one for all."""

    def offsets(self, x: Float[Tensor, "..."]) -> Float[Tensor, "batch offset_channels *out"]:
        r"""Return the offsets for the input ``x``, as ``ops.deform_conv2d`` takes them.

        Parameters
        ----------
        x : Tensor, shape (B, C, \*size) or (C, \*size)

        Returns
        -------
        Tensor, shape (B, dims * offset_groups * taps, \*out)
            Displacements of every tap from its place in the standard convolution, in the order of
            the axes (for images dy, dx), in pixels, in float32 at least. torchvision's
            ``deform_conv2d`` takes the same.
        """
        return self._offsets(self._batched(x))

    def _offsets(self, x: Tensor) -> Tensor:
        offsets = channels_of(self.offset_conv, x)
        # Positions are geometry: half precision would move them by pixels.
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        if self._offsets_per_kernel == 1:
            offsets = offsets.unflatten(1, (self.offset_groups, 1, self.dims))
            taps = (-1, -1, math.prod(self.kernel_size), *(-1,) * (1 + self.dims))
            offsets = offsets.expand(taps).flatten(1, 3)
        return offsets

    def _positions(self, x: Tensor) -> Tensor:
        offsets = self._offsets(x).unflatten(1, (self.offset_groups, -1, self.dims))
        offsets = offsets.movedim((2, 3), (-2, -1))
        if self.offset_groups == 1:
            offsets = offsets.squeeze(1)
        return offsets + self.geometry().taps(offsets)

    def _convolve(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._deform(x, self._offsets(x), mask)

    def _reset_sampling(self) -> None:
        zero_(self.offset_conv)

    def _why_not_standard_positions(self) -> str | None:
        conv = self.offset_conv
        return nonzero("offset_conv.weight", conv.weight) or nonzero("offset_conv.bias", conv.bias)

    def _repr_parts(self) -> Sequence[str]:
        return [] if self.offset_groups == 1 else [f"offset_groups={self.offset_groups}"]


class DeformConv(OffsetConv):
    """A convolution each of whose taps is displaced by an offset computed from its own input."""

    @property
    def _offsets_per_kernel(self) -> int:
        return math.prod(self.kernel_size)


class DeformConv1d(DeformConv, AdaptiveConv1d):
    """A convolution over one axis with an offset for each tap, computed from its own input.

    :class:`DeformConv2d` in the place of ``nn.Conv1d``: same arguments and attributes, with one
    axis and ``k`` offsets at each place.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DeformConv1d
    >>> layer = DeformConv1d(3, 8, kernel_size=5, padding=2)
    >>> x = torch.randn(2, 3, 50)
    >>> layer(x).shape, layer.positions(x).shape
    (torch.Size([2, 8, 50]), torch.Size([2, 50, 5, 1]))
    """


class DeformConv2d(DeformConv, AdaptiveConv2d):
    """A convolution each of whose taps is displaced by an offset computed from its own input.

    A drop-in for ``nn.Conv2d``, with its arguments, its weight and its bias, and unlike
    torchvision's layer of that name complete: the convolution that predicts the offsets,
    ``2 kh kw`` numbers at every pixel, is inside. At the start they are zero, and the layer *is*
    the standard convolution. As a metric, its kernel samples a ball of free form.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype, fixed_kernel, modulation
        As in :class:`AdaptiveConv2d`, and so are the errors.
    offset_groups : int
        The number of sets of offsets at each pixel, one for each group of input channels.

    Attributes
    ----------
    offset_conv : nn.Conv2d
        The convolution that computes the offsets, (dy, dx) of every tap in pixels.

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


class DeformConv3d(DeformConv, AdaptiveConv3d):
    """A convolution over three axes with an offset for each tap, computed from its own input.

    :class:`DeformConv2d` in the place of ``nn.Conv3d``: same arguments and attributes, with three
    axes and ``3 kd kh kw`` numbers at each voxel, the offsets in the order of the axes (D, H, W).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DeformConv3d
    >>> layer = DeformConv3d(1, 4, kernel_size=3, padding=1)
    >>> x = torch.randn(1, 1, 6, 7, 8)
    >>> layer(x).shape, layer.positions(x).shape
    (torch.Size([1, 4, 6, 7, 8]), torch.Size([1, 6, 7, 8, 27, 3]))
    """


class ShiftedConv2d(OffsetConv, AdaptiveConv2d):
    """A convolution whose entire kernel is displaced by an offset computed from its own input.

    :class:`DeformConv2d` with one offset, 2 numbers at every pixel, for all taps (the "entire
    deformable" or shifted one of Dagès et al.). Arguments, attributes, ``state_dict`` keys and the
    start as the standard convolution are the same. As a metric, its kernel samples a ball moved off
    its centre.

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
