"""The compiled CPU kernels of convolutions of volumes: those of :mod:`_kernels`, for three axes.

A sample has eight corners, and positions come as offsets. Arrays of a tile have lines of ``LINE``
numbers, one for each voxel: three for what has a number for each axis, eight for corners.
"""

from typing import no_type_check

import numpy as np

from finslerconv._compiled import entry, jit
from finslerconv.ops.backends.numba import _simd as simd
from finslerconv.ops.backends.numba._buffers import aligned, rounded
from finslerconv.ops.backends.numba._kernels import (
    ONE,
    SPARE_ROWS,
    ZERO,
    add_weight_gradients,
    multiply,
    read_outputs,
    weigh_backward,
    write_outputs,
)
from finslerconv.ops.backends.numba._metrics import LINE
from finslerconv.ops.backends.numba._places import CIRCULAR, REPLICATE, ZEROS
from finslerconv.ops.backends.numba._vectors import FAR

_ZERO, _LINE = np.uint64(0), np.uint64(LINE)
_SHARES = np.uint64(12 * LINE)
_CORNERS = np.uint64(8 * LINE)


@jit
@no_type_check
def _centres(plan, centre, pixel, count, centre_at):
    """Write the kernel's centre at the voxels of a tile."""
    layer = pixel // (plan.out_height * plan.out_width)
    row = pixel // plan.out_width - layer * plan.out_height
    column = pixel % plan.out_width
    for p in range(count):
        centre_at[p] = centre[0] + layer * plan.stride_z
        centre_at[LINE + p] = centre[1] + row * plan.stride_y
        centre_at[2 * LINE + p] = centre[2] + column * plan.stride_x
        column += 1
        if column == plan.out_width:
            column = 0
            row += 1
            if row == plan.out_height:
                row = 0
                layer += 1


@jit
@no_type_check
def _locate(position, other, count, size, mode, near_pixel, shares, at):
    """Find the two pixels of an axis between which each position lies, and their shares.

    ``near_pixel`` takes two lines, ``shares`` four at ``at``: the shares, and whether each pixel
    counts (1 or 0), which is the share's derivative up to sign. Loops are many and short, for LLVM
    vectorises those.
    """
    low, high = _ZERO, _LINE
    near, far, near_in, far_in = at, at + _LINE, at + _LINE + _LINE, at + _LINE + _LINE + _LINE
    size = np.int32(size)
    one = shares.dtype.type(1)
    zero = shares.dtype.type(0)
    limit = shares.dtype.type(FAR)
    # Two pixels before the image: an unknown position's corners are both outside.
    nowhere = shares.dtype.type(-2)
    pixel = near_pixel
    for p in range(count):
        y = position[p]
        known = (abs(y) < limit) & (abs(other[p]) < limit)
        y = y if known else nowhere
        floor = np.floor(y)
        pixel[low + p] = np.int32(floor)
        shares[far + p] = y - floor
    if mode == ZEROS:
        for p in range(count):
            i = pixel[low + p]
            shares[near_in + p] = one if (i >= 0) & (i < size) else zero
            shares[far_in + p] = one if (i >= -1) & (i < size - np.int32(1)) else zero
    else:
        for p in range(count):
            known = (abs(position[p]) < limit) & (abs(other[p]) < limit)
            inside = one if known else zero
            shares[near_in + p] = inside
            shares[far_in + p] = inside
    for p in range(count):
        share = shares[far + p]
        shares[near + p] = (one - share) * shares[near_in + p]
        shares[far + p] = share * shares[far_in + p]
    if mode in (ZEROS, REPLICATE):
        for p in range(count):
            i = pixel[low + p]
            pixel[high + p] = min(max(i + np.int32(1), np.int32(0)), size - np.int32(1))
            pixel[low + p] = min(max(i, np.int32(0)), size - np.int32(1))
    elif mode == CIRCULAR:
        for p in range(count):
            i = pixel[low + p]
            pixel[high + p] = np.int32((i + 1) % size)
            pixel[low + p] = np.int32(i % size)
    else:
        period = max(2 * (size - 1), 1)
        for p in range(count):
            i = pixel[low + p] % period
            j = (pixel[low + p] + 1) % period
            pixel[low + p] = np.int32(min(min(i, period - i), size - 1))
            pixel[high + p] = np.int32(min(min(j, period - j), size - 1))


@jit
@no_type_check
def _place(plan, field, points, mask, image, group, pixel, count, first, last, centre_at, where,
           reach, cells, shares, corner, weight):  # fmt: skip
    """Place the taps ``first`` to ``last`` of the voxels of a tile: corners and their weights.

    The shares along the axes, of which the weights are products, are kept for all taps if there is
    room, else for one.
    """
    pixels = plan.out_depth * plan.out_height * plan.out_width
    at = image * plan.sample_groups + group
    n = np.uint64(count)
    limit, nothing = reach.dtype.type(FAR), reach.dtype.type(0)
    channels = plan.channels
    row_size = channels * plan.width
    layer_size = row_size * plan.height
    for tap in range(first, last):
        for axis in range(3):
            line = np.uint64(axis * LINE)
            there = np.uint64((3 * (at * plan.taps + tap) + axis) * pixels + pixel)
            g = points[3 * tap + axis]
            for p in range(n):
                where[line + p] = centre_at[line + p] + (field[there + p] + g)
        own = np.uint64(tap - first) * _SHARES if shares.size > _SHARES else np.uint64(0)
        for axis in range(3):
            line = np.uint64(axis * LINE)
            other, third = np.uint64((axis + 1) % 3 * LINE), np.uint64((axis + 2) % 3 * LINE)
            for p in range(n):
                near = (abs(where[other + p]) < limit) & (abs(where[third + p]) < limit)
                reach[p] = nothing if near else limit
            size = plan.depth if axis == 0 else (plan.height if axis == 1 else plan.width)
            _locate(
                where[axis * LINE : (axis + 1) * LINE], reach, n, size, plan.mode,
                cells[2 * axis * LINE : 2 * (axis + 1) * LINE], shares,
                own + np.uint64(4 * axis * LINE),
            )  # fmt: skip
        here = np.uint64(tap - first) * _CORNERS
        for i in range(8):
            z, y, x = i // 4, i // 2 % 2, i % 2
            line = here + np.uint64(i * LINE)
            layer = np.uint64(z * LINE)
            row, column = np.uint64((2 + y) * LINE), np.uint64((4 + x) * LINE)
            for p in range(n):
                corner[line + p] = (
                    np.int64(cells[layer + p]) * layer_size
                    + np.int64(cells[row + p]) * row_size
                    + np.int64(cells[column + p]) * channels
                )
            layer = own + np.uint64(z * LINE)
            row, column = own + np.uint64((4 + y) * LINE), own + np.uint64((8 + x) * LINE)
            for p in range(n):
                weight[line + p] = shares[layer + p] * shares[row + p] * shares[column + p]
            if plan.has_mask:
                there = np.uint64((at * plan.taps + tap) * pixels + pixel)
                for p in range(n):
                    weight[line + p] *= mask[there + p]


@jit
@no_type_check
def _blend_backward(plan, products, shares, at, mask, factors, count, here, g_field, g_mask):
    """Add the gradients of a tap's offsets and factors, from those of the corners' weights.

    ``products`` has eight numbers a voxel. The shares of the tap begin at ``at``, and its factors
    at ``factors`` in the mask. Its offsets are at ``here``.
    """
    pixels = np.uint64(plan.out_depth * plan.out_height * plan.out_width)
    front, back = at, at + _LINE
    front_in, back_in = back + _LINE, back + _LINE + _LINE
    top, bottom = back_in + _LINE, back_in + _LINE + _LINE
    top_in, bottom_in = bottom + _LINE, bottom + _LINE + _LINE
    left, right = bottom_in + _LINE, bottom_in + _LINE + _LINE
    left_in, right_in = right + _LINE, right + _LINE + _LINE
    for p in range(np.uint64(count)):
        i = np.uint64(8) * p
        d000, d001, d010, d011 = (
            products[i], products[i + np.uint64(1)], products[i + np.uint64(2)],
            products[i + np.uint64(3)],
        )  # fmt: skip
        d100, d101, d110, d111 = (
            products[i + np.uint64(4)], products[i + np.uint64(5)], products[i + np.uint64(6)],
            products[i + np.uint64(7)],
        )  # fmt: skip
        above, below, before, behind = (
            shares[top + p], shares[bottom + p], shares[front + p], shares[back + p]
        )  # fmt: skip
        west, east = shares[left + p], shares[right + p]
        r00, r01 = west * d000 + east * d001, west * d010 + east * d011
        r10, r11 = west * d100 + east * d101, west * d110 + east * d111
        near, far = above * r00 + below * r01, above * r10 + below * r11
        g_z = shares[back_in + p] * far - shares[front_in + p] * near
        inner, outer = shares[top_in + p], shares[bottom_in + p]
        g_y = before * (outer * r01 - inner * r00) + behind * (outer * r11 - inner * r10)
        # Along the rows: the corners at the right, less those at the left.
        at_left = before * (above * d000 + below * d010) + behind * (above * d100 + below * d110)
        at_right = before * (above * d001 + below * d011) + behind * (above * d101 + below * d111)
        g_x = shares[right_in + p] * at_right - shares[left_in + p] * at_left
        if plan.has_mask:
            factor = mask[factors + p]
            g_mask[factors + p] += before * near + behind * far
            g_z, g_y, g_x = g_z * factor, g_y * factor, g_x * factor
        g_field[here + p] += g_z
        g_field[here + pixels + p] += g_y
        g_field[here + pixels + pixels + p] += g_x


@entry
@no_type_check
def forward(plan, begin, end, image_data, field, omega, head, points, centre, dilation, mask,
            packed, bias, out, out_channels_last):  # fmt: skip
    """Convolve the voxels ``begin <= voxel of all images < end``."""
    kind = image_data.dtype
    tile, chunk, lanes = plan.tile, plan.chunk, plan.lanes
    pixels = plan.out_depth * plan.out_height * plan.out_width
    channels = plan.channels // plan.weight_groups
    outputs = plan.out_channels // plan.weight_groups
    sampled = plan.channels // plan.sample_groups
    wide = plan.out_vectors * lanes
    panels = (outputs + wide - 1) // wide
    depth = plan.taps * channels
    # The samples of a depthwise convolution are used up tap by tap.
    each = 0 if plan.depthwise else channels
    line = rounded(max(channels, chunk * each), lanes)
    columns = aligned((tile + SPARE_ROWS) * line, kind)
    sums = aligned(tile * panels * wide, kind)
    spare = aligned(SPARE_ROWS * wide, kind)
    centre_at, where, reach = (
        aligned(3 * LINE, kind),
        aligned(3 * LINE, kind),
        aligned(LINE, kind),
    )
    cells, shares = aligned(6 * LINE, np.int32), aligned(12 * LINE, kind)
    corner, weight = aligned(chunk * 8 * LINE, np.int64), aligned(chunk * 8 * LINE, kind)
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(tile, end - at, pixels - pixel)
        base = image * plan.depth * plan.height * plan.width * plan.channels
        _centres(plan, centre, pixel, count, centre_at)
        placed_group = placed_first = -1
        if plan.depthwise:
            sums[:] = 0
        for group in range(plan.weight_groups):
            for first in range(0, plan.taps, chunk):
                last = min(plan.taps, first + chunk)
                channel = group * channels
                while channel < (group + 1) * channels:
                    sample_group = channel // sampled
                    length = min((sample_group + 1) * sampled, (group + 1) * channels) - channel
                    if sample_group != placed_group or first != placed_first:
                        _place(
                            plan, field, points, mask, image, sample_group, pixel, count, first,
                            last, centre_at, where, reach, cells, shares, corner, weight,
                        )  # fmt: skip
                        placed_group, placed_first = sample_group, first
                    for tap in range(first, last):
                        column = (tap - first) * each + channel - group * channels
                        here = (tap - first) * 8 * LINE
                        if not plan.depthwise:
                            for p in range(count):
                                simd.blend_corners(
                                    image_data, base + channel, corner, weight, here + p, LINE,
                                    None, ZERO, columns, p * line + column, length,
                                )  # fmt: skip
                        for j in range(plan.depthwise):
                            there = j * plan.channels + channel
                            factors = tap * plan.depthwise * plan.channels + there
                            for p in range(count):
                                simd.blend_corners(
                                    image_data, base + channel, corner, weight, here + p, LINE,
                                    packed, factors, sums, p * panels * wide + there, length,
                                )  # fmt: skip
                    channel += length
                if not plan.depthwise:
                    multiply(
                        columns, ZERO, line, ONE, packed,
                        group * panels * depth * wide + first * channels * wide, depth * wide,
                        wide, sums, ZERO, panels * wide, count, (last - first) * channels, panels,
                        plan.out_vectors, lanes, int(first > 0), spare,
                    )  # fmt: skip
            write_outputs(
                plan, image, group, pixel, count, sums, panels * wide, bias, out, out_channels_last
            )
        at += count


@entry
@no_type_check
def backward(plan, begin, end, part, image_data, g_out, g_out_channels_last, field, omega, head,
             points, centre, dilation, mask, packed, g_image, g_image_private, g_weight, g_field,
             g_omega, g_mask, needs_image, needs_weight, needs_field):  # fmt: skip
    """Add the gradients that come from the voxels ``begin <= voxel of all images < end``.

    The range is a piece of a part that begins at the voxel ``part``. The gradient of an image that
    begins in another part goes to ``g_image_private`` (one image: only the first image of a part
    can be such). ``g_weight`` is the part's own.
    """
    kind = image_data.dtype
    tile, chunk, lanes = plan.tile, plan.chunk, plan.lanes
    pixels = plan.out_depth * plan.out_height * plan.out_width
    channels = plan.channels // plan.weight_groups
    outputs = plan.out_channels // plan.weight_groups
    sampled = plan.channels // plan.sample_groups
    out_wide = plan.out_vectors * lanes
    out_panels = (outputs + out_wide - 1) // out_wide
    out_line = out_panels * out_wide
    wide = plan.column_vectors * lanes
    each = 0 if plan.depthwise else channels
    line = rounded(max(channels, chunk * each), wide)
    chunks = (plan.taps + chunk - 1) // chunk
    columns = aligned((tile + SPARE_ROWS) * line, kind)
    slope = aligned((tile + SPARE_ROWS) * out_line, kind)
    slope[:] = 0
    spare = aligned(max(SPARE_ROWS * wide, SPARE_ROWS * out_wide, line), kind)
    centre_at, where, reach = (
        aligned(3 * LINE, kind),
        aligned(3 * LINE, kind),
        aligned(LINE, kind),
    )
    cells, shares = aligned(6 * LINE, np.int32), aligned(chunk * 12 * LINE, kind)
    corner, weight = aligned(chunk * 8 * LINE, np.int64), aligned(chunk * 8 * LINE, kind)
    products = aligned(8 * tile, kind)
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(tile, end - at, pixels - pixel)
        base = image * plan.depth * plan.height * plan.width * plan.channels
        if image * pixels >= part:
            target, target_at = g_image, base
        else:
            target, target_at = g_image_private, 0
        _centres(plan, centre, pixel, count, centre_at)
        placed_group = placed_first = -1
        for group in range(plan.weight_groups):
            read_outputs(
                plan, image, group, pixel, count, g_out, g_out_channels_last, slope, out_line
            )
            for first in range(0, plan.taps, chunk):
                last = min(plan.taps, first + chunk)
                width = (last - first) * channels
                if not plan.depthwise:
                    multiply(
                        slope, ZERO, out_line, ONE, packed,
                        (group * chunks + first // chunk) * outputs * line, outputs * wide, wide,
                        columns, ZERO, line, count, outputs, (width + wide - 1) // wide,
                        plan.column_vectors, lanes, ZERO, spare,
                    )  # fmt: skip
                channel = group * channels
                while channel < (group + 1) * channels:
                    sample_group = channel // sampled
                    length = min((sample_group + 1) * sampled, (group + 1) * channels) - channel
                    if sample_group != placed_group or first != placed_first:
                        _place(
                            plan, field, points, mask, image, sample_group, pixel, count, first,
                            last, centre_at, where, reach, cells, shares, corner, weight,
                        )  # fmt: skip
                        placed_group, placed_first = sample_group, first
                    for tap in range(first, last):
                        column = (tap - first) * each + channel - group * channels
                        if plan.depthwise:
                            weigh_backward(
                                plan, tap, channel, length, count, slope, out_line, packed,
                                columns, column, line,
                            )  # fmt: skip
                        here = (tap - first) * 8 * LINE
                        for p in range(count):
                            if needs_image:
                                simd.blend_corners_scatter(
                                    image_data, base + channel, corner, weight, here + p, LINE,
                                    columns, p * line + column, products, 8 * p, target,
                                    target_at + channel, length,
                                )  # fmt: skip
                            else:
                                simd.blend_corners_backward(
                                    image_data, base + channel, corner, weight, here + p, LINE,
                                    columns, p * line + column, products, 8 * p, target,
                                    target_at + channel, length,
                                )  # fmt: skip
                        if needs_weight and plan.depthwise:
                            add_weight_gradients(
                                plan, tap, channel, length, count, slope, out_line, columns,
                                column, line, spare, g_weight,
                            )  # fmt: skip
                        if needs_field:
                            sample = (image * plan.sample_groups + sample_group) * plan.taps + tap
                            _blend_backward(
                                plan, products, shares, np.uint64(tap - first) * _SHARES, mask,
                                np.uint64(sample * pixels + pixel), count,
                                np.uint64(3 * sample * pixels + pixel), g_field, g_mask,
                            )  # fmt: skip
                    channel += length
                if needs_weight and not plan.depthwise:
                    multiply(
                        columns, ZERO, ONE, line, slope, ZERO, out_wide, out_line, g_weight,
                        (group * plan.taps + first) * channels * out_line, out_line, width, count,
                        out_panels, plan.out_vectors, lanes, ONE, spare,
                    )  # fmt: skip
        at += count
