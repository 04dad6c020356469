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
    check_metric_mask,
    check_points,
    check_tensors,
    geometry_of,
    with_groups,
)
from finslerconv.ops._geometry import Ints, PaddingMode, int_tuple
from finslerconv.ops._onnx import for_onnx
from finslerconv.ops._operator import call_operator, takes_channels
from finslerconv.ops.backends import Convolution, Positions, in_balls, is_compiled, reference


@recorded
def deform_conv2d(
    input: Float[Tensor, "batch channels height width"],
    offset: Float[Tensor, "batch offset_channels out_height out_width"],
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
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
    return _deform(2, input, offset, weight, bias, stride, padding, dilation, mask, padding_mode)


@recorded
def deform_conv1d(
    input: Float[Tensor, "batch channels length"],
    offset: Float[Tensor, "batch offset_channels out_length"],
    weight: Float[Tensor, "out_channels group_channels kernel_length"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Float[Tensor, "batch mask_channels out_length"] | None = None,
    *,
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "batch out_channels out_length"]:
    """Convolve signals at displaced taps: :func:`deform_conv2d` in one dimension.

    Parameters
    ----------
    input : Tensor, shape (B, C, L)
        Of any floating dtype.
    offset : Tensor, shape (B, G * k, Lo)
        The displacement of every tap from its place in the standard convolution, in samples of the
        signal, for each of ``G`` offset groups, among which the channels are split evenly.
    weight : Tensor, shape (O, C // groups, k)
        The weight groups are inferred.
    bias : Tensor, shape (O,), optional
    stride, padding, dilation : int
        As in ``torch.nn.functional.conv1d``, ``padding="same"`` and ``"valid"`` included.
    mask : Tensor, shape (B, G * k, Lo), optional
        A factor for every sample.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        The signal's continuation, for every sample that falls outside.

    Returns
    -------
    Tensor, shape (B, O, Lo)
        Samples at NaN or infinite positions count as zero.

    Raises
    ------
    TypeError, ValueError
        As :func:`deform_conv2d`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> signal, weight = torch.randn(2, 3, 20), torch.randn(4, 3, 5)
    >>> offset = torch.zeros(2, 5, 16)
    >>> output = ops.deform_conv1d(signal, offset, weight)
    >>> torch.allclose(output, torch.nn.functional.conv1d(signal, weight), atol=1e-5)
    True
    """
    return _deform(1, input, offset, weight, bias, stride, padding, dilation, mask, padding_mode)


@recorded
def deform_conv3d(
    input: Float[Tensor, "batch channels depth height width"],
    offset: Float[Tensor, "batch offset_channels out_depth out_height out_width"],
    weight: Float[Tensor, "out_channels group_channels kernel_depth kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Float[Tensor, "batch mask_channels out_depth out_height out_width"] | None = None,
    *,
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "batch out_channels out_depth out_height out_width"]:
    """Convolve volumes at displaced taps: :func:`deform_conv2d` in three dimensions.

    The volume is read between voxels by trilinear interpolation.

    Parameters
    ----------
    input : Tensor, shape (B, C, D, H, W)
        Of any floating dtype and memory format.
    offset : Tensor, shape (B, 3 * G * kd * kh * kw, Do, Ho, Wo)
        Displacements (dz, dy, dx) of every tap from its place in the standard convolution, in
        voxels, for each of ``G`` offset groups, among which the channels are split evenly.
    weight : Tensor, shape (O, C // groups, kd, kh, kw)
        The weight groups are inferred.
    bias : Tensor, shape (O,), optional
    stride, padding, dilation : int or three of int
        As in ``torch.nn.functional.conv3d``, ``padding="same"`` and ``"valid"`` included.
    mask : Tensor, shape (B, G * kd * kh * kw, Do, Ho, Wo), optional
        A factor for every sample.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        The volume's continuation, for every sample that falls outside.

    Returns
    -------
    Tensor, shape (B, O, Do, Ho, Wo)
        Samples at NaN or infinite positions count as zero.

    Raises
    ------
    TypeError, ValueError
        As :func:`deform_conv2d`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> volume, weight = torch.randn(1, 2, 5, 6, 7), torch.randn(4, 2, 3, 3, 3)
    >>> offset = torch.zeros(1, 3 * 27, 3, 4, 5)
    >>> output = ops.deform_conv3d(volume, offset, weight)
    >>> torch.allclose(output, torch.nn.functional.conv3d(volume, weight), atol=1e-5)
    True
    """
    return _deform(3, input, offset, weight, bias, stride, padding, dilation, mask, padding_mode)


@recorded
def metric_conv2d(
    input: Float[Tensor, "batch channels height width"],
    M: Float[Tensor, "batch *groups out_height out_width 2 2"],
    omega: Float[Tensor, "batch *groups out_height out_width 2"] | None,
    points: Float[Tensor, "taps 2"],
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
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
    return _metric(
        2, input, M, omega, points, weight, bias, stride, padding, dilation, mask, map, padding_mode
    )


@recorded
def metric_conv1d(
    input: Float[Tensor, "batch channels length"],
    M: Float[Tensor, "batch *groups out_length 1 1"],
    omega: Float[Tensor, "batch *groups out_length 1"] | None,
    points: Float[Tensor, "taps 1"],
    weight: Float[Tensor, "out_channels group_channels kernel_length"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Float[Tensor, "batch mask_channels out_length"] | None = None,
    *,
    map: MapName = "radial",
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "batch out_channels out_length"]:
    """Convolve signals at samples of the unit balls of metrics: :func:`metric_conv2d` in one axis.

    The unit ball of ``F(v) = sqrt(M) |v| + omega v`` is the interval from
    ``-1 / (sqrt(M) - omega)`` to ``1 / (sqrt(M) + omega)``: with ``omega``, the convolution looks
    farther to one side.

    Parameters
    ----------
    input : Tensor, shape (B, C, L)
        Of any floating dtype.
    M : Tensor, shape (B, Lo, 1, 1) or (B, G, Lo, 1, 1)
        Positive numbers, in 1 / samples^2 (at dilation 1; lengths are in spacings between taps).
        With ``G``, one for each of the groups among which the channels are split evenly.
    omega : Tensor, shape (B, Lo, 1) or (B, G, Lo, 1), or None
        ``omega^2 < M``; None for symmetric intervals.
    points : Tensor, shape (k, 1)
        Reference points ``g_k`` of the interval from -1 to 1, in the order of the kernel.
    weight, bias, stride, padding, dilation, padding_mode
        As in :func:`deform_conv1d`.
    mask : Tensor, shape (B, G * k, Lo), optional
        A factor for every sample: a density on the ball.
    map : {"radial", "affine"}
        The map of the points into the ball. ``radial`` scales each side of the interval by itself
        and leaves 0 at its place; ``affine`` moves 0 to the interval's centre.

    Returns
    -------
    Tensor, shape (B, O, Lo)

    Raises
    ------
    TypeError, ValueError
        As :func:`deform_conv2d`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> from finslerconv.balls import lattice
    >>> signal, weight = torch.randn(1, 3, 20), torch.randn(4, 3, 5)
    >>> M, omega = torch.full((1, 20, 1, 1), 0.25), torch.full((1, 20, 1), 0.3)
    >>> points = torch.tensor(lattice((5,)).points, dtype=torch.float32)
    >>> ops.metric_conv1d(signal, M, omega, points, weight, padding=2).shape
    torch.Size([1, 4, 20])
    """
    return _metric(
        1, input, M, omega, points, weight, bias, stride, padding, dilation, mask, map, padding_mode
    )


@recorded
def metric_conv3d(
    input: Float[Tensor, "batch channels depth height width"],
    M: Float[Tensor, "batch *groups out_depth out_height out_width 3 3"],
    omega: Float[Tensor, "batch *groups out_depth out_height out_width 3"] | None,
    points: Float[Tensor, "taps 3"],
    weight: Float[Tensor, "out_channels group_channels kernel_depth kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Float[Tensor, "batch mask_channels out_depth out_height out_width"] | None = None,
    *,
    map: MapName = "radial",
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "batch out_channels out_depth out_height out_width"]:
    """Convolve volumes at samples of the unit balls of metrics: :func:`metric_conv2d` in space.

    The unit balls are ellipsoids, displaced from their centres where there is an ``omega``.

    Parameters
    ----------
    input : Tensor, shape (B, C, D, H, W)
        Of any floating dtype and memory format.
    M : Tensor, shape (B, Do, Ho, Wo, 3, 3) or (B, G, Do, Ho, Wo, 3, 3)
        Symmetric positive definite matrices, in 1 / voxels^2 (at dilation 1; lengths are in
        spacings between taps). With ``G``, one metric for each of the groups among which the
        channels are split evenly. Values are taken as valid: check with
        ``Randers(M, omega).validate()``.
    omega : Tensor, shape (B, Do, Ho, Wo, 3) or (B, G, Do, Ho, Wo, 3), or None
        One-forms, ``|omega|_{M^-1} < 1``; None for a Riemannian metric.
    points : Tensor, shape (kd * kh * kw, 3)
        Reference points ``g_k`` of the Euclidean unit ball, in the order of the kernel (row-major).
    weight, bias, stride, padding, dilation, padding_mode
        As in :func:`deform_conv3d`.
    mask : Tensor, shape (B, G * kd * kh * kw, Do, Ho, Wo), optional
        A factor for every sample: a density on the ball.
    map : {"radial", "affine"}
        The map of the points into the ball.

    Returns
    -------
    Tensor, shape (B, O, Do, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`deform_conv2d`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> x, weight = torch.randn(1, 2, 6, 6, 6), torch.randn(4, 2, 3, 3, 3)
    >>> axis = torch.tensor([-1.0, 0.0, 1.0])
    >>> points = torch.cartesian_prod(axis, axis, axis)
    >>> M = torch.eye(3).expand(1, 6, 6, 6, 3, 3)  # unit balls: every point stays at its place
    >>> y = ops.metric_conv3d(x, M, None, points, weight, padding=1)
    >>> torch.allclose(y, torch.nn.functional.conv3d(x, weight, padding=1), atol=1e-5)
    True
    """
    return _metric(
        3, input, M, omega, points, weight, bias, stride, padding, dilation, mask, map, padding_mode
    )


@recorded
def head_conv2d(
    input: Float[Tensor, "batch channels height width"],
    channels: Float[Tensor, "batch head_channels out_height out_width"],
    formula: HeadFormula,
    points: Float[Tensor, "taps 2"],
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Float[Tensor, "batch mask_channels out_height out_width"] | None = None,
    *,
    map: MapName = "radial",
    padding_mode: PaddingMode = "zeros",
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Convolve at samples of the unit balls of metrics that are still the channels of a head.

    The same as :func:`metric_conv2d` of ``formula.metrics(channels)``. The compiled backends
    compute the metrics themselves, on the CPU where they place the samples, and keep none for the
    backward pass.

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
    geometry = geometry_of(weight, stride, padding, dilation, 2)
    output_size = check_convolution(input, weight, bias, geometry, padding_mode)
    ball_map(map)  # raises if there is no such map
    check_points(points, geometry)
    groups = check_field("channels", channels, input, formula.n_channels, output_size)
    check_metric_mask(mask, input, groups, geometry.n_taps, output_size)
    positions = Positions(map, channels, None, points, formula)
    return convolve(Convolution(input, positions, weight, bias, mask, geometry, padding_mode))


@recorded
def metric_positions(
    M: Float[Tensor, "*batch d d"],
    omega: Float[Tensor, "*batch d"] | None,
    points: Float[Tensor, "taps d"],
    *,
    dilation: Ints = 1,
    map: MapName = "radial",
) -> Float[Tensor, "*batch taps d"]:
    """Return the displacements of a metric convolution's taps from the kernel's centre.

    Parameters
    ----------
    M, omega, points, dilation, map
        As for :func:`metric_conv1d`, :func:`metric_conv2d` and :func:`metric_conv3d`, with any
        batch.

    Returns
    -------
    Tensor, shape (..., taps, d)
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
    dims = M.shape[-1] if M.ndim > 1 else 0
    if dims not in (1, 2, 3):
        raise ValueError(f"M: expected shape (..., d, d) with d = 1, 2 or 3, got {tuple(M.shape)}")
    if M.shape[-2] != dims:
        raise ValueError(f"M: expected shape (..., {dims}, {dims}), got {tuple(M.shape)}")
    if omega is not None and omega.shape != M.shape[:-1]:
        raise ValueError(f"omega: expected shape {tuple(M.shape[:-1])}, got {tuple(omega.shape)}")
    if points.ndim != 2 or points.shape[1] != dims:
        raise ValueError(f"points: expected shape (taps, {dims}), got {tuple(points.shape)}")
    ball_map(map)
    return in_balls(M, omega, points, int_tuple("dilation", dilation, dims, least=1), map)


def convolve(conv: Convolution) -> Float[Tensor, "batch out_channels *out_size"]:
    r"""Compute a convolution by the backend of its device.

    The other functions check their arguments and call this one. A geometry that they do not make is
    welcome too: with negative padding the output begins inside the image, so that a window on a
    larger image gives the part of the output for which it holds all samples.

    Parameters
    ----------
    conv : Convolution
        Its shapes are taken as right.

    Returns
    -------
    Tensor, shape (B, O, \*conv.out_size)
        Differentiable in all tensors.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import ConvGeometry, Convolution, Positions, convolve
    >>> image, weight = torch.rand(1, 2, 8, 8), torch.rand(4, 2, 3, 3)
    >>> positions = Positions("offsets", torch.zeros(1, 18, 4, 4))
    >>> inner = ConvGeometry((3, 3), (1, 1), (1, 1), (-1, -1), (-1, -1))  # begins at pixel (2, 2)
    >>> y = convolve(Convolution(image, positions, weight, None, None, inner, "zeros"))
    >>> plain = torch.nn.functional.conv2d(image, weight, padding=1)
    >>> torch.allclose(y, plain[..., 2:6, 2:6], atol=1e-5)
    True
    """
    where = conv.positions
    tensors = (
        conv.input, where.field, where.omega, where.points, conv.weight, conv.bias, conv.mask,
    )  # fmt: skip
    if torch.onnx.is_in_onnx_export():
        return for_onnx(conv)
    if not is_compiled(conv.input.device) or needs_formulas(*tensors):
        return reference.forward(conv)
    if conv.dims == 1:
        return convolve(conv.as_image()).squeeze(2)
    if where.points is not None and where.points.requires_grad and torch.is_grad_enabled():
        # The operator differentiates in the metric alone: the positions of learned reference
        # points are computed in PyTorch and given to it as offsets.
        conv = conv.with_offsets()
    elif where.formula is not None and not (
        where.formula.name is not None and takes_channels(conv.input.device)
    ):
        conv = replace(conv, positions=where.with_metrics())
    return call_operator(conv)


def _deform(
    dims: int,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    mask: Tensor | None,
    padding_mode: PaddingMode,
) -> Tensor:
    """Run :func:`deform_conv2d` in ``dims`` dimensions."""
    check_tensors(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    geometry = geometry_of(weight, stride, padding, dilation, dims)
    output_size = check_convolution(input, weight, bias, geometry, padding_mode)
    taps = geometry.n_taps
    groups = check_field("offset", offset, input, dims * taps, output_size)
    if mask is not None:
        mask_groups = check_field("mask", mask, input, taps, output_size)
        if mask_groups != groups:
            raise ValueError(
                f"mask: expected {groups * taps} channels, {taps} for each of the {groups} offset "
                f"groups, got {mask.shape[1]}"
            )
    positions = Positions("offsets", offset)
    return convolve(Convolution(input, positions, weight, bias, mask, geometry, padding_mode))


def _metric(
    dims: int,
    input: Tensor,
    M: Tensor,
    omega: Tensor | None,
    points: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    mask: Tensor | None,
    map: MapName,
    padding_mode: PaddingMode,
) -> Tensor:
    """Run :func:`metric_conv2d` in ``dims`` dimensions."""
    check_tensors(input=input, M=M, omega=omega, points=points, weight=weight, bias=bias, mask=mask)
    geometry = geometry_of(weight, stride, padding, dilation, dims)
    output_size = check_convolution(input, weight, bias, geometry, padding_mode)
    ball_map(map)  # raises if there is no such map
    check_points(points, geometry)
    M = with_groups("M", M, input, output_size, 2)
    groups = M.shape[1]
    if omega is not None:
        omega = with_groups("omega", omega, input, output_size, 1)
        if omega.shape[1] != groups:
            raise ValueError(f"omega: expected the {groups} groups of M, got {omega.shape[1]}")
    check_metric_mask(mask, input, groups, geometry.n_taps, output_size)
    positions = Positions(map, M, omega, points)
    return convolve(Convolution(input, positions, weight, bias, mask, geometry, padding_mode))
