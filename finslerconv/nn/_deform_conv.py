"""The deformable convolution as a module: an offset for every tap."""

from finslerconv.nn._offset_conv import OffsetConv2d


class DeformConv2d(OffsetConv2d):
    """A convolution each of whose taps is displaced by an offset computed from its own input.

    A drop-in for ``nn.Conv2d``, with its arguments, its weight and its bias, and unlike
    torchvision's layer of that name complete: the convolution that predicts the offsets,
    ``2 kh kw`` numbers at every pixel, is inside. At the start they are zero, and the layer *is*
    the standard convolution. As a metric, its kernel samples a ball of free form.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype
        As in ``nn.Conv2d``. ``padding_mode`` holds for every sample outside the image.
    offset_groups : int
        The number of sets of offsets at each pixel, one for each group of input channels.
    fixed_kernel : bool
        Whether the weights are uniform and not learned, ``1 / (kh kw in_channels / groups)``: only
        the offsets are.
    modulation : bool
        Whether every sample is multiplied by a learned factor too (DCNv2). It is twice a sigmoid,
        1 at the start, where the sigmoid of DCNv2 is 1/2: weights that were trained there
        are to be halved here.

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
