"""The compiled CPU kernels of the convolutions at displaced taps.

Layout. The image is read channels last, so that a sample is four runs of contiguous channels. The
output's pixels are taken in tiles; for a chunk of the kernel's taps at a time the samples of a tile
("columns", one row per pixel) are written to a buffer that stays in the second-level cache, and are
multiplied there with the weights, which have been packed into panels as wide as the register tile.
Columns exist nowhere else: the backward pass samples again.

A kernel works alone on a range of the pixels of all images, with its own buffers. The result does
not depend on which thread runs it.
"""

from typing import Any, no_type_check

import numpy as np

from finslerconv._compiled import entry, jit
from finslerconv.ops.backends.numba import _simd as simd
from finslerconv.ops.backends.numba._buffers import aligned, rounded
from finslerconv.ops.backends.numba._metrics import LINE, LINES
from finslerconv.ops.backends.numba._places import (
    RADIAL,
    blend_backward,
    centres,
    place,
    place_backward,
)

_ROWS_4 = simd.tile_rows.get(4, simd.tile_rows[2])
_ROWS_2 = simd.tile_rows[2]
_ROWS_1 = simd.tile_rows[1]
SPARE_ROWS = simd.TILE_ROWS

_LINE = np.uint64(LINE)

# A literal argument has a type of its own, and every combination of types is compiled: these are
# plain integers.
ZERO, ONE = np.int64(0), np.int64(1)

# Products that are summed before they are added to the output.
_BLOCK = 384

# Pixels of an image that are turned at once.
_PIXELS = 64


def _of_tiles(tiles: dict[int, Any]) -> Any:
    """Return the product that takes the register tile of as many vectors as it is told."""
    four, two, one = tiles.get(4, tiles[2]), tiles[2], tiles[1]

    @jit
    @no_type_check
    def product(vectors, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add):
        if vectors == 4:
            four(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add)
        elif vectors == 2:
            two(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add)
        else:
            one(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add)

    return product


_product, _last_product = map(_of_tiles, (simd.product_tiles, simd.last_tiles))


@jit
@no_type_check
def multiply(a, a_at, a_row, a_k, b, b_at, b_panel, b_k, c, c_at, c_row, rows, depth, panels,
              vectors, lanes, add, spare):  # fmt: skip
    """``c (+)= a @ b``, b in panels of ``vectors * lanes`` columns; c has room for whole panels.

    The sum over ``depth`` is a sum of sums over blocks, so that rounding errors of float32 grow
    with the block's length and the number of blocks, not with their product.
    """
    step = _ROWS_4 if vectors == 4 else (_ROWS_2 if vectors == 2 else _ROWS_1)
    wide = vectors * lanes
    # Blocks of equal length: a short last one would cost as much to add as a whole one.
    blocks = max(1, (depth + _BLOCK - 1) // _BLOCK)
    for panel in range(panels):
        c_here = c_at + panel * wide
        for block in range(blocks):
            first = depth * block // blocks
            length = depth * (block + 1) // blocks - first
            a_here = a_at + first * a_k
            b_here = b_at + panel * b_panel + first * b_k
            adds = add if block == 0 else ONE
            row = 0
            while row + step <= rows:
                _product(
                    vectors, a, a_here + row * a_row, a_row, a_k, b, b_here, b_k,
                    c, c_here + row * c_row, c_row, length, adds,
                )  # fmt: skip
                row += step
            if row < rows:
                # Rows beyond the last are computed and dropped.
                if rows - row <= simd.LAST_ROWS:
                    _last_product(
                        vectors, a, a_here + row * a_row, a_row, a_k, b, b_here, b_k,
                        spare, ZERO, wide, length, ZERO,
                    )  # fmt: skip
                else:
                    _product(
                        vectors, a, a_here + row * a_row, a_row, a_k, b, b_here, b_k,
                        spare, ZERO, wide, length, ZERO,
                    )  # fmt: skip
                for i in range(rows - row):
                    for j in range(wide):
                        at = c_here + (row + i) * c_row + j
                        value = spare[i * wide + j]
                        c[at] = c[at] + value if adds else value


def _over_pixels(blend: Any) -> Any:
    """Return the loop over the pixels of a tile that samples each by ``blend``."""

    @jit
    @no_type_check
    def sample(source, shift, corner, weight, first, factors, factors_at, out, at, row, count,
               length):  # fmt: skip
        i0 = np.uint64(first)
        i1, i2, i3 = i0 + _LINE, i0 + _LINE + _LINE, i0 + _LINE + _LINE + _LINE
        for p in range(np.uint64(count)):
            blend(
                source, shift + corner[i0 + p], shift + corner[i1 + p], shift + corner[i2 + p],
                shift + corner[i3 + p], weight[i0 + p], weight[i1 + p], weight[i2 + p],
                weight[i3 + p], factors, factors_at, out, np.int64(p) * row + at, length,
            )  # fmt: skip

    return sample


def _back_over_pixels(blend: Any) -> Any:
    """Return the loop over the pixels of a tile that runs ``blend``, with a derivative, on each."""

    @jit
    @no_type_check
    def sample(source, shift, corner, weight, first, columns, at, row, products, target, beyond,
               count, length):  # fmt: skip
        i0 = np.uint64(first)
        i1, i2, i3 = i0 + _LINE, i0 + _LINE + _LINE, i0 + _LINE + _LINE + _LINE
        for p in range(np.uint64(count)):
            blend(
                source, shift + corner[i0 + p], shift + corner[i1 + p], shift + corner[i2 + p],
                shift + corner[i3 + p], weight[i0 + p], weight[i1 + p], weight[i2 + p],
                weight[i3 + p], columns, np.int64(p) * row + at, products, np.int64(p) * 4, target,
                beyond, length,
            )  # fmt: skip

    return sample


# A loop for each number of channels whose sampling has none, and one for all others: to choose
# within the loop costs a quarter of its time.
_sample = _over_pixels(simd.blend)
_sample_1, _sample_4, _sample_8 = map(_over_pixels, (simd.blend_1, simd.blend_4, simd.blend_8))
_back = _back_over_pixels(simd.blend_backward)
_back_1, _back_4, _back_8 = map(
    _back_over_pixels, (simd.blend_backward_1, simd.blend_backward_4, simd.blend_backward_8)
)
_scatter = _back_over_pixels(simd.blend_scatter)
_scatter_1, _scatter_4, _scatter_8 = map(
    _back_over_pixels, (simd.blend_scatter_1, simd.blend_scatter_4, simd.blend_scatter_8)
)


@jit
@no_type_check
def _blend(source, shift, corner, weight, first, columns, at, row, count, length):
    """Write the samples of a tap, each of ``length`` channels, into a column of the tile."""
    where = (source, shift, corner, weight, first, None, ZERO, columns, at, row, count, length)
    if length == 1:
        _sample_1(*where)
    elif length == 4:
        _sample_4(*where)
    elif length == 8:
        _sample_8(*where)
    else:
        _sample(*where)


@jit
@no_type_check
def _blend_backward(scatters, source, shift, corner, weight, first, columns, at, row, products,
                    target, beyond, count, length):  # fmt: skip
    """Put the samples of a tap in place of their gradients, and write or add what these give.

    As :func:`_simd.blend_backward`, which places ``target`` by ``beyond``.
    """
    where = (
        source, shift, corner, weight, first, columns, at, row, products, target, beyond, count,
        length,
    )  # fmt: skip
    if length == 1:
        if scatters:
            _scatter_1(*where)
        else:
            _back_1(*where)
    elif length == 4:
        if scatters:
            _scatter_4(*where)
        else:
            _back_4(*where)
    elif length == 8:
        if scatters:
            _scatter_8(*where)
        else:
            _back_8(*where)
    elif scatters:
        _scatter(*where)
    else:
        _back(*where)


@jit
@no_type_check
def _transpose(source, at, row, rows, columns, out, out_at, out_row, shift, shift_at, shift_row):
    """``out[j, i] = source[i, j] + shift[j]``; nothing is added if ``shift`` is None."""
    wide = simd.VECTOR_BYTES // source.itemsize
    # The last block of rows or columns may overlap the one before. A vector may be twice as long
    # as a row, if it ends within the array.
    spare = source.size - at - (rows - 1) * row
    if rows >= wide and 2 * columns >= wide and spare >= wide:
        for i in range(0, rows, wide):
            i = min(i, rows - wide)
            for j in range(0, columns, wide):
                j = max(0, min(j, columns - wide))
                simd.transpose_block(
                    source, at + i * row + j, row, out, out_at + j * out_row + i, out_row,
                    columns - j, shift, shift_at + j * shift_row, shift_row,
                )  # fmt: skip
        return
    for j in range(columns):
        here, there = np.uint64(at + j), np.uint64(out_at + j * out_row)
        step = np.uint64(row)
        for i in range(np.uint64(rows)):
            value = source[here + i * step]
            if shift is not None:
                value += shift[shift_at + j * shift_row]
            out[there + i] = value


@entry
@no_type_check
def channels_last(source, out, channels, pitch, pixels, begin, end):
    """Write channels-first images as channels-last ones, ``begin <= pixel of all images < end``.

    A pixel has ``pitch`` numbers, its channels and then zeros.
    """
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(_PIXELS, end - at, pixels - pixel)
        _transpose(
            source, image * channels * pixels + pixel, pixels, channels, count, out, at * pitch,
            pitch, None, ZERO, ZERO,
        )  # fmt: skip
        for p in range(count):
            for c in range(channels, pitch):
                out[(at + p) * pitch + c] = 0
        at += count


@entry
@no_type_check
def channels_first(source, out, channels, pitch, pixels, begin, end):
    """Undo :func:`channels_last`."""
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(_PIXELS, end - at, pixels - pixel)
        _transpose(
            source, at * pitch, pitch, count, channels, out, image * channels * pixels + pixel,
            pixels, None, ZERO, ZERO,
        )  # fmt: skip
        at += count


@entry
@no_type_check
def pack_outputs(plan, weight, out, begin, end):
    """Pack weights (O, taps, C / groups) as [group][panel][tap][channel][column of the panel].

    ``begin`` and ``end`` count panels over all groups.
    """
    outputs = plan.out_channels // plan.weight_groups
    wide = plan.out_vectors * plan.lanes
    panels = (outputs + wide - 1) // wide
    depth = plan.taps * (plan.channels // plan.weight_groups)
    for panel in range(begin, end):
        group = panel // panels
        first = (panel - group * panels) * wide
        valid = min(wide, outputs - first)
        _transpose(
            weight, (group * outputs + first) * depth, depth, valid, depth, out,
            panel * depth * wide, wide, None, ZERO, ZERO,
        )  # fmt: skip
        if valid < wide:
            for at in range(panel * depth * wide, (panel + 1) * depth * wide, wide):
                out[at + valid : at + wide] = 0


@entry
@no_type_check
def pack_columns(plan, weight, out, begin, end):
    """Pack weights (O, taps, C / groups) as [group][chunk][panel][output][column of the panel].

    ``begin`` and ``end`` count pairs of group and chunk.
    """
    channels = plan.channels // plan.weight_groups
    outputs = plan.out_channels // plan.weight_groups
    wide = plan.column_vectors * plan.lanes
    chunks = (plan.taps + plan.chunk - 1) // plan.chunk
    line = rounded(plan.chunk * channels, wide)
    for pair in range(begin, end):
        group = pair // chunks
        first = (pair - group * chunks) * plan.chunk
        length = (min(plan.taps, first + plan.chunk) - first) * channels
        for o in range(outputs):
            row = ((group * outputs + o) * plan.taps + first) * channels
            for column in range(0, line, wide):
                at = pair * outputs * line + column * outputs + o * wide
                valid = max(0, min(wide, length - column))
                for i in range(valid):
                    out[at + i] = weight[row + column + i]
                out[at + valid : at + wide] = 0


@entry
@no_type_check
def unpack_outputs(plan, packed, line, out, begin, end):
    """Write gradients [group][tap][channel][output of ``line``] as (O, taps, C / groups)."""
    outputs = plan.out_channels // plan.weight_groups
    depth = plan.taps * (plan.channels // plan.weight_groups)
    for group in range(begin, end):
        _transpose(
            packed, group * depth * line, line, depth, outputs, out, group * outputs * depth, depth,
            None, ZERO, ZERO,
        )  # fmt: skip


@jit
@no_type_check
def weigh_backward(plan, tap, channel, length, count, slope, row, weights, columns, column, line):
    """Write the gradients of the samples of a tap, if depthwise."""
    for p in range(count):
        at = p * line + column
        for c in range(length):
            columns[at + c] = 0
        for j in range(plan.depthwise):
            there = j * plan.channels + channel
            here = tap * plan.depthwise * plan.channels + there
            simd.add_products(weights, here, slope, p * row + there, columns, at, length)


@jit
@no_type_check
def add_weight_gradients(plan, tap, channel, length, count, slope, row, columns, column, line,
                         total, g_weight):  # fmt: skip
    """Add the gradients of the weights of a tap, if depthwise.

    ``total`` is summed over the tile first, for the sake of rounding errors.
    """
    for j in range(plan.depthwise):
        there = j * plan.channels + channel
        here = tap * plan.depthwise * plan.channels + there
        for c in range(length):
            total[c] = 0
        for p in range(count):
            simd.add_products(
                slope, p * row + there, columns, p * line + column, total, ZERO, length
            )
        for c in range(length):
            g_weight[here + c] += total[c]


@jit
@no_type_check
def _outputs_at(plan, image, channel, pixel, channels_last):
    """Return where an output channel of a pixel stands, and the next pixel's and channel's."""
    pixels = plan.out_depth * plan.out_height * plan.out_width
    if channels_last:
        return (image * pixels + pixel) * plan.out_channels + channel, plan.out_channels, 1
    return (image * plan.out_channels + channel) * pixels + pixel, 1, pixels


@jit
@no_type_check
def write_outputs(plan, image, group, pixel, count, sums, line, bias, out, channels_last):
    """Write the outputs of a group at the pixels of a tile: the sums and the bias.

    The sums of a depthwise convolution are (outputs of a channel, channels).
    """
    outputs, several = plan.out_channels // plan.weight_groups, max(1, plan.depthwise)
    channels = outputs // several
    for j in range(several):
        first = group * outputs + j
        at, next_pixel, next_channel = _outputs_at(plan, image, first, pixel, channels_last)
        if channels_last:
            for p in range(count):
                for c in range(channels):
                    out[at + p * next_pixel + c * several] = (
                        sums[p * line + j * channels + c] + bias[first + c * several]
                    )
        else:
            _transpose(
                sums, j * channels, line, count, channels, out, at, next_channel * several, bias,
                first, several,
            )  # fmt: skip


@jit
@no_type_check
def read_outputs(plan, image, group, pixel, count, g_out, channels_last, slope, line):
    """Read the gradients of the outputs of a group at the pixels of a tile.

    They stand as the sums of :func:`write_outputs`.
    """
    outputs, several = plan.out_channels // plan.weight_groups, max(1, plan.depthwise)
    channels = outputs // several
    for j in range(several):
        first = group * outputs + j
        at, next_pixel, next_channel = _outputs_at(plan, image, first, pixel, channels_last)
        if channels_last:
            for p in range(count):
                for c in range(channels):
                    slope[p * line + j * channels + c] = g_out[at + p * next_pixel + c * several]
        else:
            _transpose(
                g_out, at, next_channel * several, channels, count, slope, j * channels, line,
                None, ZERO, ZERO,
            )  # fmt: skip


@entry
@no_type_check
def forward(plan, begin, end, image_data, field, omega, head, points, centre, dilation, mask,
            packed, bias, out, out_channels_last):  # fmt: skip
    """Convolve the pixels ``begin <= pixel of all images < end``."""
    kind = image_data.dtype
    tile, chunk, lanes = plan.tile, plan.chunk, plan.lanes
    pixels = plan.out_height * plan.out_width
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
    matrices = aligned(6 * LINE, kind)
    metric = matrices if plan.kind == RADIAL else aligned(6 * LINE, kind)
    work = np.zeros(LINES * LINE)
    y, x = aligned(tile, kind), aligned(tile, kind)
    centre_y, centre_x = aligned(tile, kind), aligned(tile, kind)
    corner, weight = aligned(chunk * 4 * LINE, np.int64), aligned(chunk * 4 * LINE, kind)
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(tile, end - at, pixels - pixel)
        base = image * plan.height * plan.width
        centres(plan, centre, pixel, count, centre_y, centre_x)
        placed_group = placed_first = -1
        # Those of a depthwise convolution are (outputs of a channel, channels), as its weights are.
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
                        place(
                            plan, field, omega, head, points, dilation, mask, image, sample_group,
                            pixel, count, first, last, centre_y, centre_x, matrices, metric, work,
                            y, x, None, corner, weight,
                        )  # fmt: skip
                        placed_group, placed_first = sample_group, first
                    shift = base * plan.channels + channel
                    for tap in range(first, last):
                        column = (tap - first) * each + channel - group * channels
                        corners = (tap - first) * 4 * LINE
                        if not plan.depthwise:
                            _blend(
                                image_data, shift, corner, weight, corners, columns, column, line,
                                count, length,
                            )  # fmt: skip
                        for j in range(plan.depthwise):
                            there = j * plan.channels + channel
                            factors = tap * plan.depthwise * plan.channels + there
                            _sample(
                                image_data, shift, corner, weight, corners, packed, factors, sums,
                                there, panels * wide, count, length,
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
    """Add the gradients that come from the pixels ``begin <= pixel of all images < end``.

    The range is a piece of a part that begins at the pixel ``part``. The gradient of an image that
    begins in another part goes to ``g_image_private`` (only the first image of a part can be such).
    ``g_weight`` is the part's own.
    """
    kind = image_data.dtype
    tile, chunk, lanes = plan.tile, plan.chunk, plan.lanes
    pixels = plan.out_height * plan.out_width
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
    matrices = aligned(6 * LINE, kind)
    metric = matrices if plan.kind == RADIAL else aligned(6 * LINE, kind)
    totals, spare_lines = aligned(6 * LINE, kind), aligned(4 * LINE, kind)
    work = np.zeros(LINES * LINE)
    y, x = aligned(tile, kind), aligned(tile, kind)
    centre_y, centre_x = aligned(tile, kind), aligned(tile, kind)
    shares = aligned(chunk * 8 * LINE, kind)
    corner, weight = aligned(chunk * 4 * LINE, np.int64), aligned(chunk * 4 * LINE, kind)
    g_y, g_x = aligned(chunk * LINE, kind), aligned(chunk * LINE, kind)
    g_factor = aligned(chunk * LINE, kind)
    products = aligned(4 * tile, kind)
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(tile, end - at, pixels - pixel)
        base = image * plan.height * plan.width
        if image * pixels >= part:
            target = g_image
            target_at = base * plan.channels
        else:
            target = g_image_private
            target_at = 0
        centres(plan, centre, pixel, count, centre_y, centre_x)
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
                        place(
                            plan, field, omega, head, points, dilation, mask, image, sample_group,
                            pixel, count, first, last, centre_y, centre_x, matrices, metric, work,
                            y, x, shares, corner, weight,
                        )  # fmt: skip
                        placed_group, placed_first = sample_group, first
                    shift = base * plan.channels + channel
                    place_shift = target_at + channel - shift
                    for tap in range(first, last):
                        column = (tap - first) * each + channel - group * channels
                        factors = (
                            (image * plan.sample_groups + sample_group) * plan.taps + tap
                        ) * pixels + pixel
                        if plan.depthwise:
                            weigh_backward(
                                plan, tap, channel, length, count, slope, out_line, packed,
                                columns, column, line,
                            )  # fmt: skip
                        _blend_backward(
                            needs_image, image_data, shift, corner, weight,
                            (tap - first) * 4 * LINE, columns, column, line, products, target,
                            place_shift, count, length,
                        )  # fmt: skip
                        if needs_weight and plan.depthwise:
                            add_weight_gradients(
                                plan, tap, channel, length, count, slope, out_line, columns,
                                column, line, spare, g_weight,
                            )  # fmt: skip
                        if needs_field:
                            blend_backward(
                                plan, products, shares, tap - first, mask, factors, count, g_y,
                                g_x, g_factor, spare_lines,
                            )  # fmt: skip
                    if needs_field:
                        place_backward(
                            plan, head, points, dilation, image, sample_group, pixel, count, first,
                            last, totals, matrices, metric, work, g_y, g_x, g_factor, g_field,
                            g_omega, g_mask,
                        )  # fmt: skip
                    channel += length
                if needs_weight and not plan.depthwise:
                    multiply(
                        columns, ZERO, ONE, line, slope, ZERO, out_wide, out_line, g_weight,
                        (group * plan.taps + first) * channels * out_line, out_line, width, count,
                        out_panels, plan.out_vectors, lanes, ONE, spare,
                    )  # fmt: skip
        at += count
