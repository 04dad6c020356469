"""The public functions of the family that samples, weighs and sums: DCNv3, DCNv4, attention."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finslerconv._tracing import recorded
from finslerconv.ops._aggregation_operator import call_operator
from finslerconv.ops._checks import check_tensors
from finslerconv.ops._geometry import ConvGeometry, Ints, int_tuple
from finslerconv.ops._onnx import aggregation_for_onnx
from finslerconv.ops.backends import Aggregation


@recorded
def aggregate(
    value: Float[Tensor, "batch pixels groups channels"],
    locations: Float[Tensor, "batch queries groups levels points 2"],
    weights: Float[Tensor, "batch queries groups levels points"],
    levels: Int[Tensor, "levels 3"] | tuple[int, int],
) -> Float[Tensor, "batch queries groups channels"]:
    """Sample the levels of a pyramid, weigh the samples and sum them, group by group.

    ``output[q, g] = sum_lp weights[q, g, l, p] value_l(locations[q, g, l, p])``, read between
    pixels by bilinear interpolation and as zero outside. :func:`dcnv3`, :func:`dcnv4` and
    :func:`ms_deform_attn` are this, and differ in how they write positions and weights.

    Parameters
    ----------
    value : Tensor, shape (B, S, G, D)
        ``D`` channels for each of ``G`` groups at the pixels of all levels, each level row by row.
        An image (B, H, W, C), channels last, is one level: ``image.reshape(B, H * W, G, C // G)``.
    locations : Tensor, shape (B, Q, G, L, P, 2)
        Positions (x, y), right and down, of ``P`` samples on each of ``L`` levels for each of ``Q``
        outputs, in pixels of the level: (0, 0) is the centre of its first pixel. In float32 at
        least: half precision cannot name far pixels.
    weights : Tensor, shape (B, Q, G, L, P)
        Any numbers.
    levels : Tensor of integers, shape (L, 3), or pair of int
        Rows, columns and first pixel (an index into ``S``) of each level; or the rows and columns
        of the only one.

    Returns
    -------
    Tensor, shape (B, Q, G, D)
        In the dtype of ``value``. Samples at NaN or infinite positions count as zero.

    Raises
    ------
    TypeError
        If an argument is no tensor or not floating.
    ValueError
        If the shapes do not fit, or tensors are on different devices.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> image = torch.arange(6.0).reshape(1, 6, 1, 1)  # 2 rows, 3 columns
    >>> here = torch.tensor([[0.5, 0.0], [2.0, 1.0]]).reshape(1, 1, 1, 1, 2, 2)
    >>> ops.aggregate(image, here, torch.ones(1, 1, 1, 1, 2), (2, 3)).item()  # 0.5 + 5
    5.5
    """
    check_tensors(value=value, locations=locations, weights=weights)
    return _call(Aggregation(value, locations, weights, levels))


@recorded
def dcnv3(
    input: Float[Tensor, "batch height width channels"],
    offset: Float[Tensor, "batch out_height out_width offset_channels"],
    mask: Float[Tensor, "batch out_height out_width mask_channels"],
    kernel_size: Ints = 3,
    stride: Ints = 1,
    pad: Ints = 1,
    dilation: Ints = 1,
    group: int = 4,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Float[Tensor, "batch out_height out_width channels"]:
    """Aggregate displaced taps as DCNv3 does: sampled and weighted per group, and summed.

    ``output(x)_g = sum_k mask_gk(x) input_g(centre(x) + offset_scale (tap_k + offset_gk(x)))``
    for each group ``g`` of channels; there are no kernel weights. Images are channels last, and
    zero outside.

    Parameters
    ----------
    input : Tensor, shape (B, H, W, C)
    offset : Tensor, shape (B, Ho, Wo, group * taps * 2)
        Displacements (x, y), right and down, in pixels: the order of DCNv3, not that of
        :func:`deform_conv2d`. Taps go column by column: down the first column, then the second.
    mask : Tensor, shape (B, Ho, Wo, group * taps)
        The weights of the samples. DCNv3 takes a softmax over the taps of each group, outside of
        this function.
    kernel_size, stride, pad, dilation : int or pair of int
        Rows and columns, as in ``torch.nn.functional.conv2d``. A kernel is centred on the pixel
        ``dilation * (kernel_size - 1) // 2``.
    group : int
        The number of groups, among which the channels are split evenly.
    offset_scale : float
        Multiplies taps and offsets.
    remove_center : bool
        Whether the tap at the centre is left out, of kernels of odd size.

    Returns
    -------
    Tensor, shape (B, Ho, Wo, C)

    Raises
    ------
    TypeError
        If an argument is no tensor or not floating.
    ValueError
        If the shapes do not fit, or tensors are on different devices.

    References
    ----------
    Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
    Convolutions" (CVPR 2023).

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> x = torch.randn(1, 8, 8, 16)  # channels last
    >>> offset, mask = torch.zeros(1, 8, 8, 4 * 9 * 2), torch.full((1, 8, 8, 4 * 9), 1 / 9)
    >>> output = ops.dcnv3(x, offset, mask)  # without offsets: an average of 3 x 3 pixels
    >>> average = torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1)
    >>> torch.allclose(output.permute(0, 3, 1, 2), average, atol=1e-6)
    True
    """
    check_tensors(input=input, offset=offset, mask=mask)
    geometry = aggregation_geometry(kernel_size, stride, pad, dilation, remove_center)
    rows, columns = _out_size(input, group, geometry)
    taps = geometry.n_taps - int(remove_center)
    for name, tensor, each in (("offset", offset, 2), ("mask", mask, 1)):
        expected = (input.shape[0], rows, columns, group * taps * each)
        if tensor.shape != expected:
            raise ValueError(
                f"{name}: expected shape {expected}, {each * taps} numbers for each of the {group} "
                f"groups, got {tuple(tensor.shape)}"
            )
    leading = (input.shape[0], rows * columns, group, 1)
    offsets, weights = offset.reshape(*leading, taps, 2), mask.reshape(*leading, taps)
    return _aggregate_taps(input, offsets, weights, geometry, offset_scale, remove_center)


@recorded
def dcnv4(
    input: Float[Tensor, "batch height width channels"],
    offset_mask: Float[Tensor, "batch out_height out_width offset_mask_channels"],
    kernel_size: Ints = 3,
    stride: Ints = 1,
    pad: Ints = 1,
    dilation: Ints = 1,
    group: int = 4,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Float[Tensor, "batch out_height out_width channels"]:
    """Aggregate displaced taps as DCNv4 does: :func:`dcnv3`, its two fields in one tensor.

    Parameters
    ----------
    input : Tensor, shape (B, H, W, C)
    offset_mask : Tensor, shape (B, Ho, Wo, at least group * taps * 3)
        For each group first the ``taps`` displacements (x, y), then the ``taps`` weights of the
        samples, in the order of :func:`dcnv3`. DCNv4 takes no softmax: weights are any numbers.
        What follows the groups is not read; DCNv4 rounds the channels up to a multiple of 8.
    kernel_size, stride, pad, dilation, group, offset_scale, remove_center
        As in :func:`dcnv3`.

    Returns
    -------
    Tensor, shape (B, Ho, Wo, C)

    Raises
    ------
    TypeError, ValueError
        As :func:`dcnv3`.

    References
    ----------
    Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
    Applications" (CVPR 2024).

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> x, offset_mask = torch.randn(1, 8, 8, 16), torch.randn(1, 8, 8, 112)  # 4 * 9 * 3 and 4 more
    >>> ops.dcnv4(x, offset_mask).shape
    torch.Size([1, 8, 8, 16])
    """
    check_tensors(input=input, offset_mask=offset_mask)
    geometry = aggregation_geometry(kernel_size, stride, pad, dilation, remove_center)
    rows, columns = _out_size(input, group, geometry)
    taps = geometry.n_taps - int(remove_center)
    used = group * taps * 3
    leading = (input.shape[0], rows, columns)
    if offset_mask.ndim != 4 or offset_mask.shape[:3] != leading or offset_mask.shape[3] < used:
        raise ValueError(
            f"offset_mask: expected shape {leading} and {used} channels at least, {3 * taps} for "
            f"each of the {group} groups, got {tuple(offset_mask.shape)}"
        )
    groups = offset_mask[..., :used] if offset_mask.shape[3] > used else offset_mask
    groups = groups.reshape(input.shape[0], rows * columns, group, 1, 3 * taps)
    offsets, weights = groups.split((2 * taps, taps), -1)
    return _aggregate_taps(
        input, offsets.unflatten(-1, (taps, 2)), weights, geometry, offset_scale, remove_center
    )


@recorded
def ms_deform_attn(
    value: Float[Tensor, "batch pixels heads channels"],
    value_spatial_shapes: Int[Tensor, "levels 2"] | Sequence[Sequence[int]],
    value_level_start_index: Int[Tensor, " levels"] | Sequence[int] | None,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries all_channels"]:
    """Attend to points of several feature maps: multi-scale deformable attention.

    Parameters
    ----------
    value : Tensor, shape (B, S, heads, D)
        The pixels of all feature maps, each map row by row, one map after the other.
    value_spatial_shapes : Tensor of integers or sequence of pairs, shape (L, 2)
        Rows and columns of each map.
    value_level_start_index : Tensor of integers or sequence, shape (L,), or None
        The index of each map's first pixel; None if the maps follow each other without gaps.
    sampling_locations : Tensor, shape (B, Q, heads, L, P, 2)
        Positions (x, y) in units of each map: (0, 0) is its top left corner, (1, 1) its bottom
        right corner (``align_corners=False``).
    attention_weights : Tensor, shape (B, Q, heads, L, P)
        The samples' weights; Deformable DETR takes a softmax over the ``L * P`` samples of a head.

    Returns
    -------
    Tensor, shape (B, Q, heads * D)
        Maps are zero outside.

    Raises
    ------
    TypeError
        If an argument is no tensor or not of its kind of numbers.
    ValueError
        If the shapes do not fit, or tensors are on different devices. Maps that are not in
        ``value`` are found on the CPU only; elsewhere to look would make the device wait.

    References
    ----------
    Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (ICLR
    2021).

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> value = torch.randn(2, 4 * 6 + 2 * 3, 8, 32)  # maps of 4 x 6 and 2 x 3 pixels
    >>> locations = torch.rand(2, 5, 8, 2, 4, 2)
    >>> weights = torch.randn(2, 5, 8, 2 * 4).softmax(-1).unflatten(-1, (2, 4))
    >>> ops.ms_deform_attn(value, [(4, 6), (2, 3)], [0, 24], locations, weights).shape
    torch.Size([2, 5, 256])
    """
    check_tensors(
        value=value, sampling_locations=sampling_locations, attention_weights=attention_weights
    )
    levels = level_table(value_spatial_shapes, value_level_start_index, value.device)
    if sampling_locations.ndim != 6 or sampling_locations.shape[3] != len(levels):
        raise ValueError(
            f"sampling_locations: expected shape (B, Q, heads, {len(levels)}, P, 2), got "
            f"{tuple(sampling_locations.shape)}"
        )
    sizes = levels[:, :2].flip(1).to(torch.promote_types(sampling_locations.dtype, torch.float32))
    frames = torch.cat((sizes, torch.full_like(sizes, -0.5)), 1)
    frames = frames[:, None].expand(-1, sampling_locations.shape[4], -1)
    return _call(Aggregation(value, sampling_locations, attention_weights, levels, frames)).flatten(
        2
    )


def _call(aggregation: Aggregation) -> Float[Tensor, "batch queries groups channels"]:
    """Check the shapes, and return the aggregation."""
    value, locations, weights = aggregation.differentiated
    levels = aggregation.levels
    if value.ndim != 4:
        raise ValueError(f"value: expected shape (B, S, G, D), got {tuple(value.shape)}")
    batch, pixels, groups, _ = value.shape
    like = (batch, "Q", groups, "L", "P")
    if (
        weights.ndim != 5
        or weights.shape[0] != batch
        or weights.shape[2] != groups
        or 0 in weights.shape[3:]
    ):
        raise ValueError(f"weights: expected shape {_shown(like)}, got {tuple(weights.shape)}")
    if locations.shape != (*weights.shape, 2):
        raise ValueError(
            f"locations: expected shape {(*weights.shape, 2)}, a position (x, y) for every weight, "
            f"got {tuple(locations.shape)}"
        )
    n_levels = weights.shape[3]
    if isinstance(levels, Tensor):
        if levels.shape != (n_levels, 3) or levels.is_floating_point():
            raise ValueError(
                f"levels: expected integers of shape ({n_levels}, 3), rows, columns and first "
                f"pixel of each level, got {levels.dtype} of shape {tuple(levels.shape)}"
            )
        levels = levels.to(value.device, torch.int64)
    elif n_levels != 1 or levels[0] * levels[1] != pixels:
        raise ValueError(
            f"levels: expected the rows and columns of one level of {pixels} pixels, got "
            f"{tuple(levels)} for {n_levels} levels"
        )
    if pixels == 0:
        raise ValueError("value: expected one pixel at least, got none")
    aggregation = replace(aggregation, levels=levels)
    if torch.onnx.is_in_onnx_export():
        return aggregation_for_onnx(aggregation)
    return call_operator(aggregation)


def level_table(
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    start_index: Tensor | Sequence[int] | None,
    device: torch.device,
) -> Int[Tensor, "levels 3"]:
    """Return rows, columns and first pixel of each level, as :func:`aggregate` takes them.

    The arguments are those of :func:`ms_deform_attn`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import level_table
    >>> level_table([[16, 20], [8, 10]], None, torch.device("cpu")).tolist()
    [[16, 20, 0], [8, 10, 320]]
    """
    shapes = _integers("value_spatial_shapes", spatial_shapes, device)
    if shapes.ndim != 2 or shapes.shape[1] != 2 or len(shapes) == 0:
        raise ValueError(
            "value_spatial_shapes: expected shape (L, 2), rows and columns of each level, got "
            f"{tuple(shapes.shape)}"
        )
    if start_index is None:
        sizes = shapes.prod(1)
        starts = sizes.cumsum(0) - sizes
    else:
        starts = _integers("value_level_start_index", start_index, device)
    if starts.shape != shapes.shape[:1]:
        raise ValueError(
            f"value_level_start_index: expected shape ({len(shapes)},), got {tuple(starts.shape)}"
        )
    return torch.cat((shapes, starts[:, None]), 1)


def aggregation_geometry(
    kernel_size: Ints, stride: Ints, pad: Ints, dilation: Ints, remove_center: bool
) -> ConvGeometry:
    """Return the geometry of the arguments of :func:`dcnv3`, checked.

    Examples
    --------
    >>> from finslerconv.ops import aggregation_geometry
    >>> aggregation_geometry(3, stride=1, pad=1, dilation=1, remove_center=False).kernel_size
    (3, 3)
    """
    geometry = ConvGeometry.of(kernel_size, stride, int_tuple("pad", pad, 2, least=0), dilation)
    if remove_center and any(k % 2 == 0 for k in geometry.kernel_size):
        raise ValueError(
            "remove_center: expected a kernel of odd size, which has a tap at its centre, got "
            f"{geometry.kernel_size}"
        )
    return geometry


def tap_grid(
    geometry: ConvGeometry, remove_center: bool, like: Tensor
) -> tuple[Float[Tensor, " 2"], Float[Tensor, "taps 2"]]:
    """Return the kernel's centre at the first output and the taps around it, (x, y) in pixels.

    As DCNv3 counts: taps column by column, around a centre that is a tap's place.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import aggregation_geometry, tap_grid
    >>> geometry = aggregation_geometry(3, stride=1, pad=1, dilation=1, remove_center=False)
    >>> centre, taps = tap_grid(geometry, remove_center=False, like=torch.zeros(1))
    >>> centre.tolist(), taps[:3].tolist()
    ([0.0, 0.0], [[-1.0, -1.0], [-1.0, 0.0], [-1.0, 1.0]])
    """
    origin, taps = _tap_grid(geometry, remove_center)
    return like.new_tensor(origin), like.new_tensor(taps).reshape(-1, 2)


def _tap_grid(
    geometry: ConvGeometry, remove_center: bool
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return what :func:`tap_grid` does, as numbers."""
    before = [
        step * (k - 1) // 2 for k, step in zip(geometry.kernel_size, geometry.dilation, strict=True)
    ]
    rows, columns = (
        [step * i - first for i in range(k)]
        for k, step, first in zip(geometry.kernel_size, geometry.dilation, before, strict=True)
    )
    taps = [(x, y) for x in columns for y in rows]
    if remove_center:
        del taps[len(taps) // 2]
    top, left = (b - p for b, p in zip(before, geometry.padding_before, strict=True))
    return (left, top), taps


def _aggregate_taps(
    input: Tensor,
    offsets: Float[Tensor, "batch queries groups 1 taps 2"],
    weights: Float[Tensor, "batch queries groups 1 taps"],
    geometry: ConvGeometry,
    offset_scale: float,
    remove_center: bool,
) -> Float[Tensor, "batch out_height out_width channels"]:
    batch, height, width, channels = input.shape
    rows, columns = geometry.output_size(height, width)
    group = offsets.shape[2]
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    (x, y), taps = _tap_grid(geometry, remove_center)
    frames = offsets.new_tensor(
        [(offset_scale, offset_scale, x + offset_scale * i, y + offset_scale * j) for i, j in taps],
        dtype=dtype,
    )
    value = input.reshape(batch, height * width, group, channels // group)
    down, right = geometry.stride
    aggregation = Aggregation(
        value, offsets, weights, (height, width), frames[None],
        (columns, right, down),
    )  # fmt: skip
    return _call(aggregation).reshape(batch, rows, columns, channels)


def _out_size(input: Tensor, group: int, geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the size of the output for a checked input."""
    if input.ndim != 4:
        raise ValueError(
            f"input: expected shape (B, H, W, C), channels last, got {tuple(input.shape)}"
        )
    if group < 1 or input.shape[3] % group != 0:
        raise ValueError(
            f"group: expected a divisor of the input's {input.shape[3]} channels, got {group}"
        )
    return geometry.output_size(input.shape[1], input.shape[2])


def _integers(name: str, values: Tensor | Sequence[object], device: torch.device) -> Tensor:
    tensor = torch.as_tensor(values, device=device)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    return tensor.to(torch.int64)


def _shown(shape: Sequence[object]) -> str:
    return f"({', '.join(map(str, shape))})"
