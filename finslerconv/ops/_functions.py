"""The public operators: arguments checked, and handed to the backend chosen for their device."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._head_formula import HeadFormula
from finslerconv._tracing import recorded
from finslerconv._transforms import needs_formulas
from finslerconv.balls import MapName, ball_map
from finslerconv.ops._checks import (
    check_convolution,
    check_field,
    check_sample_groups,
    check_tensors,
    kernel_size,
    n_points,
)
from finslerconv.ops._geometry import ConvGeometry, IntPair, PaddingMode, pair
from finslerconv.ops._onnx import for_onnx
from finslerconv.ops._operator import call_operator, takes_channels
from finslerconv.ops.backends import Convolution, Positions, in_balls, is_compiled, reference


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

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import deform_conv2d
    >>> x, weight = torch.rand(1, 3, 8, 8), torch.rand(4, 3, 3, 3)
    >>> offset = torch.zeros(1, 2 * 9, 8, 8)  # (down, right) for each of 9 taps
    >>> still = deform_conv2d(x, offset, weight, padding=1)
    >>> plain = torch.nn.functional.conv2d(x, weight, padding=1)
    >>> torch.allclose(still, plain, atol=1e-5)
    True
    >>> deform_conv2d(x, offset + 0.5, weight, padding=1).shape
    torch.Size([1, 4, 8, 8])
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
    positions = Positions("offsets", offset)
    return _convolve(Convolution(input, positions, weight, bias, mask, geometry, padding_mode))


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
    weight, bias, stride, padding, dilation, padding_mode
        As in :func:`deform_conv2d`.
    mask : Tensor, shape (B, G * kh * kw, Ho, Wo), optional
        A factor for every sample: a density on the ball.
    map : {"radial", "affine"}
        The map of the points into the ball.

    Returns
    -------
    Tensor, shape (B, O, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`deform_conv2d`.

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.balls import lattice
    >>> from finslerconv.ops import metric_conv2d
    >>> x, weight = torch.rand(1, 3, 8, 8), torch.rand(4, 3, 3, 3)
    >>> points = torch.tensor(lattice(3).points, dtype=torch.float32)
    >>> M = torch.eye(2).expand(1, 8, 8, 2, 2)  # the disc of radius 1 at every pixel
    >>> plain = torch.nn.functional.conv2d(x, weight, padding=1)
    >>> torch.allclose(metric_conv2d(x, M, None, points, weight, padding=1), plain, atol=1e-5)
    True
    >>> omega = torch.tensor([0.0, 0.5]).expand(1, 8, 8, 2)  # balls that reach farther to the left
    >>> metric_conv2d(x, M, omega, points, weight, padding=1).shape
    torch.Size([1, 4, 8, 8])
    """
    check_tensors(input=input, M=M, omega=omega, points=points, weight=weight, bias=bias, mask=mask)
    geometry = ConvGeometry.of(kernel_size(weight), stride, padding, dilation)
    output_size = check_convolution(input, weight, bias, geometry, padding_mode)
    ball_map(map)  # raises if there is no such map
    taps = n_points(points, geometry)
    M = _with_groups("M", M, input, output_size, 2)
    groups = M.shape[1]
    if omega is not None:
        omega = _with_groups("omega", omega, input, output_size, 1)
        if omega.shape[1] != groups:
            raise ValueError(f"omega: expected the {groups} groups of M, got {omega.shape[1]}")
    _check_mask(mask, input, groups, taps, output_size)
    positions = Positions(map, M, omega, points)
    return _convolve(Convolution(input, positions, weight, bias, mask, geometry, padding_mode))


@recorded
def head_conv2d(
    input: Float[Tensor, "batch channels height width"],
    channels: Float[Tensor, "batch head_channels out_height out_width"],
    formula: HeadFormula,
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
    """Convolve at samples of the unit balls of metrics that are still the channels of a head.

    The same as :func:`metric_conv2d` of ``formula.metrics(channels)``. The compiled backends
    compute the metrics where they place the samples, so that neither metrics nor their gradients
    are in memory.

    Parameters
    ----------
    input : Tensor, shape (B, C, H, W)
    channels : Tensor, shape (B, G * formula.n_channels, Ho, Wo)
        The output of a head's convolution, of any floating dtype, for ``G`` groups among which the
        input's channels are split evenly.
    formula : HeadFormula
        How channels become metrics. With a parametrisation that is not the library's own, the
        metrics are computed first.
    points, weight, bias, stride, padding, dilation, mask, map, padding_mode
        As in :func:`metric_conv2d`.

    Returns
    -------
    Tensor, shape (B, O, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`metric_conv2d`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> from finslerconv.balls import lattice
    >>> from finslerconv.nn import Cholesky
    >>> x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    >>> channels = torch.zeros(1, 5, 8, 8)  # three for M, two for omega: unit discs
    >>> points = torch.as_tensor(lattice(3).points, dtype=torch.float32)
    >>> y = ops.head_conv2d(x, channels, ops.HeadFormula(Cholesky()), points, weight, padding=1)
    >>> torch.allclose(y, torch.nn.functional.conv2d(x, weight, padding=1), atol=1e-5)
    True
    """
    check_tensors(
        input=input, channels=channels, points=points, weight=weight, bias=bias, mask=mask
    )
    if not isinstance(formula, HeadFormula):
        raise TypeError(f"formula: expected a HeadFormula, got {type(formula).__name__}")
    geometry = ConvGeometry.of(kernel_size(weight), stride, padding, dilation)
    output_size = check_convolution(input, weight, bias, geometry, padding_mode)
    ball_map(map)  # raises if there is no such map
    taps = n_points(points, geometry)
    groups = check_field("channels", channels, input, formula.n_channels, output_size)
    _check_mask(mask, input, groups, taps, output_size)
    positions = Positions(map, channels, None, points, formula)
    return _convolve(Convolution(input, positions, weight, bias, mask, geometry, padding_mode))


@recorded
def metric_positions(
    M: Float[Tensor, "*batch 2 2"],
    omega: Float[Tensor, "*batch 2"] | None,
    points: Float[Tensor, "taps 2"],
    *,
    dilation: IntPair = 1,
    map: MapName = "radial",
) -> Float[Tensor, "*batch taps 2"]:
    """Return the displacements of a metric convolution's taps from the kernel's centre.

    Parameters
    ----------
    M, omega, points, dilation, map
        As for :func:`metric_conv2d`, with any batch.

    Returns
    -------
    Tensor, shape (..., taps, 2)
        In pixels, float32 at least.

    Raises
    ------
    TypeError
        If an argument is no tensor, or not floating.
    ValueError
        If the shapes do not fit, or the tensors are on different devices.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import metric_positions
    >>> points = torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]])
    >>> metric_positions(torch.eye(2), torch.tensor([0.0, -0.5]), points)[2]
    tensor([0., 2.])
    """
    check_tensors(M=M, omega=omega, points=points)
    if M.ndim < 2 or M.shape[-2:] != (2, 2):
        raise ValueError(f"M: expected shape (..., 2, 2), got {tuple(M.shape)}")
    if omega is not None and omega.shape != M.shape[:-1]:
        raise ValueError(f"omega: expected shape {tuple(M.shape[:-1])}, got {tuple(omega.shape)}")
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points: expected shape (taps, 2), got {tuple(points.shape)}")
    ball_map(map)
    return in_balls(M, omega, points, pair("dilation", dilation, least=1), map)


def _check_mask(
    mask: Tensor | None, input: Tensor, groups: int, taps: int, output_size: tuple[int, int]
) -> None:
    """Check the mask of a convolution with ``groups`` metrics at a pixel."""
    expected = (input.shape[0], groups * taps, *output_size)
    if mask is not None and mask.shape != expected:
        raise ValueError(
            f"mask: expected shape {expected}, {taps} channels for each of the {groups} metrics, "
            f"got {tuple(mask.shape)}"
        )


def _convolve(conv: Convolution) -> Tensor:
    where = conv.positions
    tensors = (
        conv.input, where.field, where.omega, where.points, conv.weight, conv.bias, conv.mask,
    )  # fmt: skip
    if torch.onnx.is_in_onnx_export():
        return for_onnx(conv)
    if not is_compiled(conv.input.device) or needs_formulas(*tensors):
        return reference.forward(conv)
    if where.points is not None and where.points.requires_grad and torch.is_grad_enabled():
        # The operator differentiates in the metric alone: the positions of learned reference
        # points are computed in PyTorch and given to it as offsets.
        displacements = conv.displacements()
        offsets = displacements - conv.geometry.taps(displacements)[..., None, None]
        conv = replace(conv, positions=Positions("offsets", offsets.flatten(1, 3)))
    elif where.formula is not None and not (
        where.formula.name is not None and takes_channels(conv.input.device)
    ):
        conv = replace(conv, positions=where.with_metrics())
    return call_operator(conv)


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
