"""The Triton kernels that aggregate samples.

A program holds a tile of rows, a group of a query of an image each, and of channels. For each
sample it computes the tile's positions and bilinear weights once, in registers, and gathers its
four pixels ``[rows, channels]``: neighbouring threads read neighbouring channels, 16 bytes each
where 8 divides the channels (``C_UNIT``). The value's gradient is added up by atomics, in an order
that differs from run to run; all else is summed in a fixed order.

``levels`` (L, 3) is None where there is one level, of ``height`` and ``width``; ``frames``
(L, P, 4) is None for positions in pixels.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Coordinates beyond this are outside every image; integers and floats hold it exactly.
_FAR = tl.constexpr(2.0**30)

# Run-time sizes, in the order in which both kernels take them.
SIZES = (
    "total", "of_image", "groups", "channels", "pixels", "height", "width", "n_levels", "points",
    "row_of_grid", "right", "down",
)  # fmt: skip


@triton.jit
@no_type_check
def _multiple(size, UNIT: tl.constexpr):
    """Return ``size``, which ``UNIT`` divides, in a form in which the compiler sees that."""
    return size // UNIT * UNIT


@triton.jit
@no_type_check
def _rows(tile, total, of_image, groups, INDEX: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return a tile of rows: number, whether it exists, image, query, group.

    Rows that do not exist have the place of the last one, so that they can be read.
    """
    row = tile * tl.full((BLOCK_R,), BLOCK_R, INDEX) + tl.arange(0, BLOCK_R)
    last = tl.minimum(row, total - 1)
    image = last // of_image
    rest = last - image * of_image
    query = rest // groups
    return last, row < total, image, query, rest - query * groups


@triton.jit
@no_type_check
def _level(levels, level, height, width):
    """Return rows, columns and first pixel of a level."""
    if levels is None:
        rows = height
        columns = width
        first = 0
    else:
        rows = tl.load(levels + 3 * level).to(tl.int32)
        columns = tl.load(levels + 3 * level + 1).to(tl.int32)
        first = tl.load(levels + 3 * level + 2).to(tl.int32)
    return rows, columns, first


@triton.jit
@no_type_check
def _frame(frames, sample, like):
    """Return scale and origin of a point's locations, (x, y) each."""
    scale_x = like
    scale_y = like
    origin_x = like - like
    origin_y = like - like
    if frames is not None:
        scale_x = tl.load(frames + 4 * sample)
        scale_y = tl.load(frames + 4 * sample + 1)
        origin_x = tl.load(frames + 4 * sample + 2)
        origin_y = tl.load(frames + 4 * sample + 3)
    return scale_x, scale_y, origin_x, origin_y


@triton.jit
@no_type_check
def _axis(position, known, size):
    """Return the two pixels around each position, their shares, and whether they count (1 or 0)."""
    position = tl.where(known, position, -2.0)
    floor = tl.floor(position)
    low = floor.to(tl.int32)
    share = position - floor
    low_in = tl.where((low >= 0) & (low < size), 1.0, 0.0).to(position.dtype)
    high_in = tl.where((low >= -1) & (low < size - 1), 1.0, 0.0).to(position.dtype)
    low_at = tl.minimum(tl.maximum(low, 0), size - 1)
    high_at = tl.minimum(tl.maximum(low + 1, 0), size - 1)
    return low_at, high_at, (1.0 - share) * low_in, share * high_in, low_in, high_in


@triton.jit
@no_type_check
def _positions(locations, here, scale_x, scale_y, origin_x, origin_y, place_x, place_y):
    x = tl.load(locations + 2 * here) * scale_x + (origin_x + place_x)
    y = tl.load(locations + 2 * here + 1) * scale_y + (origin_y + place_y)
    return x, y, (tl.abs(x) < _FAR) & (tl.abs(y) < _FAR)


@triton.jit
@no_type_check
def _corner(line, column, first, image, pixels, groups, channels, group, INDEX: tl.constexpr):
    """Return where the channels of a pixel begin; levels that are not in the value read its end."""
    pixel = tl.minimum(tl.maximum(first + line + column, 0), pixels - 1)
    return ((image * pixels + pixel.to(INDEX)) * groups + group) * channels


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def aggregate(
    value, locations, weights, frames, levels, out,
    total, of_image, groups, channels, pixels, height, width, n_levels, points, row_of_grid,
    right, down, INDEX: tl.constexpr, C_UNIT: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the rows ``out`` [total, channels]."""
    channels = _multiple(channels, C_UNIT)
    row, exists, image, query, group = _rows(
        tl.program_id(0), total, of_image, groups, INDEX, BLOCK_R
    )
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    real: tl.constexpr = weights.dtype.element_ty
    one = tl.full((), 1.0, real)
    place_y = (query // row_of_grid * down).to(real)
    place_x = (query % row_of_grid * right).to(real)
    block = value + channel[None, :]
    sums = tl.zeros((BLOCK_R, BLOCK_C), real)
    for level in range(n_levels):
        rows, columns, first = _level(levels, level, height, width)
        for point in range(points):
            sample = level * points + point
            here = row * (n_levels * points) + sample
            scale_x, scale_y, origin_x, origin_y = _frame(frames, sample, one)
            x, y, known = _positions(
                locations, here, scale_x, scale_y, origin_x, origin_y, place_x, place_y
            )
            factor = tl.load(weights + here)
            left, right_at, near_x, far_x, _, _ = _axis(x, known, columns)
            top, bottom, near_y, far_y, _, _ = _axis(y, known, rows)
            upper = top * columns
            lower = bottom * columns
            c00 = _corner(upper, left, first, image, pixels, groups, channels, group, INDEX)
            c01 = _corner(upper, right_at, first, image, pixels, groups, channels, group, INDEX)
            c10 = _corner(lower, left, first, image, pixels, groups, channels, group, INDEX)
            c11 = _corner(lower, right_at, first, image, pixels, groups, channels, group, INDEX)
            v00 = tl.load(block + c00[:, None], mask=inside[None, :], other=0.0).to(real)
            v01 = tl.load(block + c01[:, None], mask=inside[None, :], other=0.0).to(real)
            v10 = tl.load(block + c10[:, None], mask=inside[None, :], other=0.0).to(real)
            v11 = tl.load(block + c11[:, None], mask=inside[None, :], other=0.0).to(real)
            above = factor * near_y
            below = factor * far_y
            sums += v00 * (above * near_x)[:, None]
            sums += v01 * (above * far_x)[:, None]
            sums += v10 * (below * near_x)[:, None]
            sums += v11 * (below * far_x)[:, None]
    there = out + row[:, None] * channels + channel[None, :]
    tl.store(there, sums.to(out.dtype.element_ty), mask=exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def aggregate_backward(
    value, slope, locations, weights, frames, levels, g_value, g_locations, g_weights,
    total, of_image, groups, channels, pixels, height, width, n_levels, points, row_of_grid,
    right, down, INDEX: tl.constexpr, C_UNIT: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradients that are not None; that of the value is added to."""
    channels = _multiple(channels, C_UNIT)
    row, exists, image, query, group = _rows(
        tl.program_id(0), total, of_image, groups, INDEX, BLOCK_R
    )
    real: tl.constexpr = weights.dtype.element_ty
    one = tl.full((), 1.0, real)
    place_y = (query // row_of_grid * down).to(real)
    place_x = (query % row_of_grid * right).to(real)
    for level in range(n_levels):
        rows, columns, first = _level(levels, level, height, width)
        for point in range(points):
            sample = level * points + point
            here = row * (n_levels * points) + sample
            scale_x, scale_y, origin_x, origin_y = _frame(frames, sample, one)
            x, y, known = _positions(
                locations, here, scale_x, scale_y, origin_x, origin_y, place_x, place_y
            )
            factor = tl.load(weights + here)
            left, right_at, near_x, far_x, left_in, right_in = _axis(x, known, columns)
            top, bottom, near_y, far_y, top_in, bottom_in = _axis(y, known, rows)
            upper = top * columns
            lower = bottom * columns
            c00 = _corner(upper, left, first, image, pixels, groups, channels, group, INDEX)
            c01 = _corner(upper, right_at, first, image, pixels, groups, channels, group, INDEX)
            c10 = _corner(lower, left, first, image, pixels, groups, channels, group, INDEX)
            c11 = _corner(lower, right_at, first, image, pixels, groups, channels, group, INDEX)
            p00 = tl.zeros((BLOCK_R,), real)
            p01 = tl.zeros((BLOCK_R,), real)
            p10 = tl.zeros((BLOCK_R,), real)
            p11 = tl.zeros((BLOCK_R,), real)
            above = factor * near_y
            below = factor * far_y
            for start in range(0, channels, BLOCK_C):
                channel = start + tl.arange(0, BLOCK_C)
                inside = channel < channels
                read = exists[:, None] & inside[None, :]
                grad = tl.load(
                    slope + row[:, None] * channels + channel[None, :], mask=read, other=0.0
                ).to(real)
                block = channel[None, :]
                if g_locations is not None:
                    v00 = tl.load(value + c00[:, None] + block, mask=inside[None, :], other=0.0)
                    p00 += tl.sum(grad * v00.to(real), axis=1)
                    v01 = tl.load(value + c01[:, None] + block, mask=inside[None, :], other=0.0)
                    p01 += tl.sum(grad * v01.to(real), axis=1)
                    v10 = tl.load(value + c10[:, None] + block, mask=inside[None, :], other=0.0)
                    p10 += tl.sum(grad * v10.to(real), axis=1)
                    v11 = tl.load(value + c11[:, None] + block, mask=inside[None, :], other=0.0)
                    p11 += tl.sum(grad * v11.to(real), axis=1)
                if g_value is not None:
                    w00 = above * near_x
                    w01 = above * far_x
                    w10 = below * near_x
                    w11 = below * far_x
                    tl.atomic_add(
                        g_value + c00[:, None] + block, grad * w00[:, None],
                        mask=read & (w00 != 0.0)[:, None], sem="relaxed",
                    )  # fmt: skip
                    tl.atomic_add(
                        g_value + c01[:, None] + block, grad * w01[:, None],
                        mask=read & (w01 != 0.0)[:, None], sem="relaxed",
                    )  # fmt: skip
                    tl.atomic_add(
                        g_value + c10[:, None] + block, grad * w10[:, None],
                        mask=read & (w10 != 0.0)[:, None], sem="relaxed",
                    )  # fmt: skip
                    tl.atomic_add(
                        g_value + c11[:, None] + block, grad * w11[:, None],
                        mask=read & (w11 != 0.0)[:, None], sem="relaxed",
                    )  # fmt: skip
            if g_locations is not None:
                g_x = near_y * (right_in * p01 - left_in * p00)
                g_x += far_y * (right_in * p11 - left_in * p10)
                g_y = near_x * (bottom_in * p10 - top_in * p00)
                g_y += far_x * (bottom_in * p11 - top_in * p01)
                g_factor = near_y * (near_x * p00 + far_x * p01)
                g_factor += far_y * (near_x * p10 + far_x * p11)
                tl.store(g_locations + 2 * here, factor * g_x * scale_x, mask=exists)
                tl.store(g_locations + 2 * here + 1, factor * g_y * scale_y, mask=exists)
                tl.store(g_weights + here, g_factor, mask=exists)
