"""The deformable convolution: every tap displaced by an offset of its own."""

from jaxtyping import Float
from torch import Tensor

from finslerconv._tracing import recorded
from finslerconv.ops._checks import (
    check_convolution,
    check_field,
    check_tensors,
    compute_dtype,
    kernel_size,
)
from finslerconv.ops._dispatch import convolve
from finslerconv.ops._geometry import ConvGeometry, IntPair, PaddingMode
from finslerconv.ops._positions import Positions


@recorded
def deform_conv2d(
    input: Float[Tensor, "batch channels height width"],
    offset: Float[Tensor, "batch offset_channels out_height out_width"],
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    mask: Float[Tensor, "batch mask_channels out_height out_width"] | None = None,
    *,
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Convolve at displaced taps, with the signature and meaning of torchvision's function.

    Parameters
    ----------
    input : Tensor, shape (B, C, H, W)
        Of any floating dtype and memory format.
    offset : Tensor, shape (B, 2 * G * kh * kw, Ho, Wo)
        Displacements (dy, dx) of every tap from its place in the standard convolution, in pixels,
        for each of ``G`` offset groups, among which the channels are split evenly.
    weight : Tensor, shape (O, C // groups, kh, kw)
        The weight groups are inferred.
    bias : Tensor, shape (O,), optional
    stride, padding, dilation : int or pair of int
        As in ``torch.nn.functional.conv2d``, ``padding="same"`` and ``"valid"`` included.
    mask : Tensor, shape (B, G * kh * kw, Ho, Wo), optional
        A factor for every sample (the modulation of DCNv2).
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        The image's continuation, for every sample that falls outside.

    Returns
    -------
    Tensor, shape (B, O, Ho, Wo)
        Samples at NaN or infinite positions count as zero.

    Raises
    ------
    TypeError
        If an argument is no tensor or not floating, or weight and bias are not of the input's
        dtype (under autocast, float64 is not lowered, as in ``torch.nn.functional.conv2d``).
    ValueError
        If the shapes do not fit, or a tensor is on another device than the input; the message
        says what was expected.

    References
    ----------
    Dai et al., "Deformable Convolutional Networks" (ICCV 2017); Zhu et al., "Deformable ConvNets
    v2" (CVPR 2019).
    """
    check_tensors(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    geometry = ConvGeometry.of(kernel_size(weight), stride, padding, dilation)
    output_size = check_convolution(input, weight, bias, geometry, padding_mode)
    taps = geometry.n_taps
    groups = check_field("offset", offset, input, 2 * taps, output_size)
    if mask is not None:
        mask_groups = check_field("mask", mask, input, taps, output_size)
        if mask_groups != groups:
            raise ValueError(
                f"mask: expected {groups * taps} channels, {taps} for each of the {groups} offset "
                f"groups, got {mask.shape[1]}"
            )
    points = geometry.taps(offset.new_empty(0, dtype=compute_dtype(offset)))
    positions = Positions("offsets", offset, None, points)
    return convolve(input, positions, weight, bias, mask, geometry, padding_mode)
