"""The metric convolution: taps at samples of the unit ball of a metric, pixel by pixel."""

from jaxtyping import Float
from torch import Tensor

from finslerconv._tracing import recorded
from finslerconv.ops._checks import (
    check_convolution,
    check_sample_groups,
    check_tensors,
    kernel_size,
    n_points,
)
from finslerconv.ops._dispatch import convolve
from finslerconv.ops._geometry import ConvGeometry, IntPair, PaddingMode
from finslerconv.ops._positions import MapName, Positions, check_map


@recorded
def metric_conv2d(
    input: Float[Tensor, "batch channels height width"],
    M: Float[Tensor, "batch *groups out_height out_width 2 2"],
    omega: Float[Tensor, "batch *groups out_height out_width 2"] | None,
    points: Float[Tensor, "taps 2"],
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    mask: Float[Tensor, "batch mask_channels out_height out_width"] | None = None,
    *,
    map: MapName = "radial",
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Convolve at samples of the unit balls of a field of Randers (or Riemannian) metrics.

    At every output pixel the reference points are carried into the unit ball of that pixel's
    metric, and the kernel's weights are applied there:
    ``output(x) = bias + sum_k weight_k mask_k input(x + dilation * map(M(x), omega(x))(g_k))``.

    Parameters
    ----------
    input : Tensor, shape (B, C, H, W)
        Of any floating dtype and memory format.
    M : Tensor, shape (B, Ho, Wo, 2, 2) or (B, G, Ho, Wo, 2, 2)
        Symmetric positive definite matrices, in 1 / pixels^2 (at dilation 1; lengths are in
        spacings between taps). With ``G``, one metric for each of the groups among which the
        channels are split evenly. Values are taken as valid: check with
        ``Randers(M, omega).validate()``.
    omega : Tensor, shape (B, Ho, Wo, 2) or (B, G, Ho, Wo, 2), or None
        One-forms, ``|omega|_{M^-1} < 1``; None for a Riemannian metric.
    points : Tensor, shape (kh * kw, 2)
        Reference points ``g_k`` of the Euclidean unit ball, in the order of the kernel (row-major).
    weight : Tensor, shape (O, C // groups, kh, kw)
        The weight groups are inferred.
    bias : Tensor, shape (O,), optional
    stride, padding, dilation : int or pair of int
        As in ``torch.nn.functional.conv2d``, ``padding="same"`` and ``"valid"`` included.
    mask : Tensor, shape (B, G * kh * kw, Ho, Wo), optional
        A factor for every sample: a density on the ball.
    map : {"radial", "affine"}
        The map of the points into the ball.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        The image's continuation, for every sample that falls outside.

    Returns
    -------
    Tensor, shape (B, O, Ho, Wo)

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
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025).
    """
    check_tensors(input=input, M=M, omega=omega, points=points, weight=weight, bias=bias, mask=mask)
    geometry = ConvGeometry.of(kernel_size(weight), stride, padding, dilation)
    output_size = check_convolution(input, weight, bias, geometry, padding_mode)
    check_map(map)
    taps = n_points(points, geometry)
    M = _with_groups("M", M, input, output_size, 2)
    groups = M.shape[1]
    if omega is not None:
        omega = _with_groups("omega", omega, input, output_size, 1)
        if omega.shape[1] != groups:
            raise ValueError(f"omega: expected the {groups} groups of M, got {omega.shape[1]}")
    if mask is not None and mask.shape != (input.shape[0], groups * taps, *output_size):
        raise ValueError(
            f"mask: expected shape {(input.shape[0], groups * taps, *output_size)}, {taps} "
            f"channels for each of the {groups} metrics, got {tuple(mask.shape)}"
        )
    positions = Positions(map, M, omega, points)
    return convolve(input, positions, weight, bias, mask, geometry, padding_mode)


def _with_groups(
    name: str, field: Tensor, input: Tensor, output_size: tuple[int, int], trailing: int
) -> Tensor:
    """Return a checked metric field with its group axis, (B, G, Ho, Wo, 2[, 2])."""
    tail = (*output_size, *(2,) * trailing)
    shape = tuple(field.shape)
    if len(shape) == 3 + trailing and shape == (input.shape[0], *tail):
        return field.unsqueeze(1)
    if len(shape) == 4 + trailing and shape[0] == input.shape[0] and shape[2:] == tail:
        check_sample_groups(name, shape[1], input)
        return field
    raise ValueError(
        f"{name}: expected shape {(input.shape[0], *tail)}, or with an axis of G metric groups "
        f"after the first, got {shape}"
    )
