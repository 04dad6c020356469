"""The shifted convolution as a module: one offset for the entire kernel."""

from finslerconv.nn._offset_conv import OffsetConv2d


class ShiftedConv2d(OffsetConv2d):
    """A convolution whose entire kernel is displaced by an offset computed from its own input.

    The deformable convolution with one offset, 2 numbers at every pixel, for all taps (the
    "entire deformable" or shifted one of Dagès et al.). A drop-in for ``nn.Conv2d``, with its
    arguments, its weight and its bias; at the start the offset is zero, and the layer *is* the
    standard convolution. As a metric, its kernel samples a ball moved off its centre.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype
        As in ``nn.Conv2d``. ``padding_mode`` holds for every sample outside the image.
    offset_groups : int
        The number of offsets at each pixel, one for each group of input channels.
    fixed_kernel : bool
        Whether the weights are uniform and not learned, ``1 / (kh kw in_channels / groups)``: only
        the offsets are.
    modulation : bool
        Whether every sample is multiplied by a learned factor in (0, 2), from 1 at the start.

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
