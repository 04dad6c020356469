"""The compiled CPU kernels of the convolutions at displaced taps.

Layout. The image is read channels last, so that a sample is four runs of contiguous channels. The
output's pixels are taken in tiles; for a chunk of the kernel's taps at a time the samples of a tile
("columns", one row per pixel) are written to a buffer that stays in the second-level cache, and are
multiplied there with the weights, which have been packed into panels as wide as the register tile.
Columns exist nowhere else: the backward pass samples again.

A kernel works on a range of the pixels of all images, alone, and is given its own buffers; which
thread runs it makes no difference to the result.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from finslerconv._compiled import entry, jit
from finslerconv.ops.backends.numba import _simd as simd

# Coordinates beyond this are outside every image; integers and floats hold it exactly.
_FAR = 2.0**30

# Where the samples' positions come from.
OFFSETS, RADIAL, AFFINE = 0, 1, 2

# The image's continuation.
ZEROS, REPLICATE, REFLECT, CIRCULAR = 0, 1, 2, 3


class Plan(NamedTuple):
    """The sizes of a convolution, and how it is cut up."""

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    taps: int
    sample_groups: int
    weight_groups: int
    stride_y: int
    stride_x: int
    kind: int
    mode: int
    has_omega: int
    has_mask: int
    tile: int
    """Pixels of a tile, a multiple of ``simd.TILE_ROWS``."""
    chunk: int
    """Taps whose columns are held at once."""
    out_vectors: int
    """Vectors in a row of the register tile, across output channels."""
    column_vectors: int
    """The same across columns."""
    lanes: int


_PRODUCT_4 = simd.product_tiles.get(4, simd.product_tiles[2])
_PRODUCT_2 = simd.product_tiles[2]
_PRODUCT_1 = simd.product_tiles[1]
_ROWS_4 = simd.tile_rows.get(4, simd.tile_rows[2])
_ROWS_2 = simd.tile_rows[2]
_ROWS_1 = simd.tile_rows[1]
_blend = simd.blend
_blend_backward = simd.blend_backward
_blend_scatter = simd.blend_scatter
_SPARE_ROWS = simd.TILE_ROWS

# Products that are summed before they are added to what stands.
_BLOCK = 384


@jit
@no_type_check
def _product(vectors, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add):
    if vectors == 4:
        _PRODUCT_4(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add)
    elif vectors == 2:
        _PRODUCT_2(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add)
    else:
        _PRODUCT_1(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add)


@jit
@no_type_check
def _multiply(
    a,
    a_at,
    a_row,
    a_k,
    b,
    b_at,
    b_panel,
    b_k,
    c,
    c_at,
    c_row,
    rows,
    depth,
    panels,
    vectors,
    lanes,
    add,
    spare,
):
    """``c (+)= a @ b``, b in panels of ``vectors * lanes`` columns; c has room for whole panels.

    The sum over ``depth`` is a sum of sums over blocks: so rounding errors of float32 grow with
    the block's length and the number of blocks, not with their product.
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
            adds = add if block == 0 else 1
            row = 0
            while row + step <= rows:
                _product(
                    vectors, a, a_here + row * a_row, a_row, a_k, b, b_here, b_k,
                    c, c_here + row * c_row, c_row, length, adds,
                )  # fmt: skip
                row += step
            if row < rows:
                # The register tile is of one size: rows beyond the last are computed and dropped.
                _product(
                    vectors, a, a_here + row * a_row, a_row, a_k, b, b_here, b_k,
                    spare, 0, wide, length, 0,
                )  # fmt: skip
                for i in range(rows - row):
                    for j in range(wide):
                        at = c_here + (row + i) * c_row + j
                        value = spare[i * wide + j]
                        c[at] = c[at] + value if adds else value


@jit
@no_type_check
def _locate(position, other, size, mode, low, high, near, far, near_in, far_in):
    """Find the two pixels of an axis between which each position lies, and their shares.

    ``near_in`` and ``far_in`` say (1 or 0) whether the pixel counts: they are the derivatives of
    the shares, up to sign. In short loops over few arrays, each of which LLVM turns into vectors.
    """
    count = len(position)
    size = np.int32(size)
    one = near.dtype.type(1)
    zero = near.dtype.type(0)
    limit = near.dtype.type(_FAR)
    # Two pixels before the image: an unknown position's corners are both outside.
    nowhere = near.dtype.type(-2)
    for p in range(count):
        y = position[p]
        known = (abs(y) < limit) & (abs(other[p]) < limit)
        y = y if known else nowhere
        floor = np.floor(y)
        low[p] = np.int32(floor)
        far[p] = y - floor
    if mode == ZEROS:
        for p in range(count):
            near_in[p] = one if (low[p] >= 0) & (low[p] < size) else zero
        for p in range(count):
            far_in[p] = one if (low[p] >= -1) & (low[p] < size - np.int32(1)) else zero
    else:
        for p in range(count):
            known = (abs(position[p]) < limit) & (abs(other[p]) < limit)
            near_in[p] = one if known else zero
            far_in[p] = near_in[p]
    for p in range(count):
        near[p] = (one - far[p]) * near_in[p]
    for p in range(count):
        far[p] = far[p] * far_in[p]
    if mode in (ZEROS, REPLICATE):
        for p in range(count):
            high[p] = min(max(low[p] + np.int32(1), np.int32(0)), size - np.int32(1))
        for p in range(count):
            low[p] = min(max(low[p], np.int32(0)), size - np.int32(1))
    elif mode == CIRCULAR:
        for p in range(count):
            high[p] = np.int32((low[p] + 1) % size)
            low[p] = np.int32(low[p] % size)
    else:
        period = max(2 * (size - 1), 1)
        for p in range(count):
            i = low[p] % period
            j = (low[p] + 1) % period
            low[p] = np.int32(min(min(i, period - i), size - 1))
            high[p] = np.int32(min(min(j, period - j), size - 1))


@jit
@no_type_check
def _ellipse(plan, M, omega, at, out):
    """Write the centre ``W`` and the root ``R`` of the ball's ellipse: the affine map W + R g."""
    m00, m01, m10, m11 = M[4 * at], M[4 * at + 1], M[4 * at + 2], M[4 * at + 3]
    det = m00 * m11 - m01 * m10
    i00, i01, i10, i11 = m11 / det, -m01 / det, -m10 / det, m00 / det
    a0 = a1 = out.dtype.type(0)
    lam = out.dtype.type(1)
    if plan.has_omega:
        w0, w1 = omega[2 * at], omega[2 * at + 1]
        a0 = i00 * w0 + i01 * w1
        a1 = i10 * w0 + i11 * w1
        lam = lam - (w0 * a0 + w1 * a1)
    d00 = i00 / lam + a0 * a0 / (lam * lam)
    d01 = i01 / lam + a0 * a1 / (lam * lam)
    d10 = i10 / lam + a1 * a0 / (lam * lam)
    d11 = i11 / lam + a1 * a1 / (lam * lam)
    # A determinant below rounding may come out negative: then it counts as 0.
    s = np.sqrt(max(d00 * d11 - d01 * d10, out.dtype.type(0)))
    n = np.sqrt(d00 + d11 + 2 * s)
    out[0] = -a0 / lam
    out[1] = -a1 / lam
    out[2] = (d00 + s) / n
    out[3] = d01 / n
    out[4] = d10 / n
    out[5] = (d11 + s) / n


@jit
@no_type_check
def _ellipse_backward(plan, M, omega, at, g, gM, gomega):
    """Add the gradients of M and omega, from those of W and R (``g``); the reverse of _ellipse."""
    m00, m01, m10, m11 = M[4 * at], M[4 * at + 1], M[4 * at + 2], M[4 * at + 3]
    det = m00 * m11 - m01 * m10
    i00, i01, i10, i11 = m11 / det, -m01 / det, -m10 / det, m00 / det
    w0 = w1 = g.dtype.type(0)
    if plan.has_omega:
        w0, w1 = omega[2 * at], omega[2 * at + 1]
    a0 = i00 * w0 + i01 * w1
    a1 = i10 * w0 + i11 * w1
    lam = 1 - (w0 * a0 + w1 * a1)
    l2 = lam * lam
    d00 = i00 / lam + a0 * a0 / l2
    d01 = i01 / lam + a0 * a1 / l2
    d10 = i10 / lam + a1 * a0 / l2
    d11 = i11 / lam + a1 * a1 / l2
    s = np.sqrt(max(d00 * d11 - d01 * d10, g.dtype.type(0)))
    n = np.sqrt(d00 + d11 + 2 * s)
    gW0, gW1, g00, g01, g10, g11 = g[0], g[1], g[2], g[3], g[4], g[5]
    gn = -(g00 * (d00 + s) + g01 * d01 + g10 * d10 + g11 * (d11 + s)) / (n * n)
    gs = (g00 + g11) / n + gn / n
    gt = gn / (2 * n)
    gd = gs / (2 * s) if s > 0 else g.dtype.type(0)
    g00 = g00 / n + gt + gd * d11
    g11 = g11 / n + gt + gd * d00
    g01 = g01 / n - gd * d10
    g10 = g10 / n - gd * d01
    glam = (
        -(g00 * i00 + g01 * i01 + g10 * i10 + g11 * i11) / l2
        - 2 * (g00 * a0 * a0 + (g01 + g10) * a0 * a1 + g11 * a1 * a1) / (l2 * lam)
        + (gW0 * a0 + gW1 * a1) / l2
    )
    ga0 = (2 * g00 * a0 + (g01 + g10) * a1) / l2 - gW0 / lam - glam * w0
    ga1 = (2 * g11 * a1 + (g01 + g10) * a0) / l2 - gW1 / lam - glam * w1
    if plan.has_omega:
        gomega[2 * at] += -glam * a0 + ga0 * i00 + ga1 * i10
        gomega[2 * at + 1] += -glam * a1 + ga0 * i01 + ga1 * i11
    g00 = g00 / lam + ga0 * w0
    g01 = g01 / lam + ga0 * w1
    g10 = g10 / lam + ga1 * w0
    g11 = g11 / lam + ga1 * w1
    gdet = -(g00 * i00 + g01 * i01 + g10 * i10 + g11 * i11) / det
    gM[4 * at] += g11 / det + gdet * m11
    gM[4 * at + 1] += -g01 / det - gdet * m10
    gM[4 * at + 2] += -g10 / det - gdet * m01
    gM[4 * at + 3] += g00 / det + gdet * m00


@jit
@no_type_check
def _place(plan, field, omega, points, dilation, image, group, pixel, count, first, last,
           centre_y, centre_x, metric, y, x, samples, shares):  # fmt: skip
    """Place the taps ``first`` to ``last`` of the pixels of a tile: corners and their shares."""
    tile = plan.tile
    pixels = plan.out_height * plan.out_width
    zero = y.dtype.type(0)
    at = image * plan.sample_groups + group
    m00, m01, m10 = metric[:tile], metric[tile : 2 * tile], metric[2 * tile : 3 * tile]
    m11, w0, w1 = metric[3 * tile : 4 * tile], metric[4 * tile : 5 * tile], metric[5 * tile :]
    if plan.kind == RADIAL:
        line = field[4 * (at * pixels + pixel) :]
        for p in range(count):
            m00[p] = line[4 * p]
            m01[p] = line[4 * p + 1]
            m10[p] = line[4 * p + 2]
            m11[p] = line[4 * p + 3]
        if plan.has_omega:
            line = omega[2 * (at * pixels + pixel) :]
            for p in range(count):
                w0[p] = line[2 * p]
                w1[p] = line[2 * p + 1]
        else:
            w0[:] = 0
            w1[:] = 0
    elif plan.kind == AFFINE:
        for p in range(count):
            _ellipse(plan, field, omega, at * pixels + pixel + p, y)
            for i in range(6):
                metric[i * tile + p] = y[i]
    y, x = y[:count], x[:count]
    for tap in range(first, last):
        g0 = points[2 * tap]
        g1 = points[2 * tap + 1]
        if plan.kind == OFFSETS:
            here = 2 * (at * plan.taps + tap) * pixels + pixel
            down, right = field[here : here + count], field[here + pixels : here + pixels + count]
            for p in range(count):
                y[p] = centre_y[p] + (down[p] + g0)
            for p in range(count):
                x[p] = centre_x[p] + (right[p] + g1)
        elif plan.kind == RADIAL:
            length = np.sqrt(g0 * g0 + g1 * g1)
            for p in range(count):
                q = g0 * (m00[p] * g0 + m01[p] * g1) + g1 * (m10[p] * g0 + m11[p] * g1)
                F = np.sqrt(max(q, zero)) + (w0[p] * g0 + w1[p] * g1)
                y[p] = length / F if length > zero else zero
            for p in range(count):
                x[p] = centre_x[p] + g1 * y[p] * dilation[1]
            for p in range(count):
                y[p] = centre_y[p] + g0 * y[p] * dilation[0]
        else:  # the columns of "metric" are W0, W1, R00, R01, R10, R11
            for p in range(count):
                y[p] = centre_y[p] + (m00[p] + (m10[p] * g0 + m11[p] * g1)) * dilation[0]
            for p in range(count):
                x[p] = centre_x[p] + (m01[p] + (w0[p] * g0 + w1[p] * g1)) * dilation[1]
        here = (tap - first) * tile
        end = here + count
        _locate(
            y, x, plan.height, plan.mode,
            samples[0, here:end], samples[1, here:end], shares[0, here:end], shares[1, here:end],
            shares[2, here:end], shares[3, here:end],
        )  # fmt: skip
        _locate(
            x, y, plan.width, plan.mode,
            samples[2, here:end], samples[3, here:end], shares[4, here:end], shares[5, here:end],
            shares[6, here:end], shares[7, here:end],
        )  # fmt: skip


@jit
@no_type_check
def _centres(plan, centre, pixel, count, centre_y, centre_x):
    row = pixel // plan.out_width
    column = pixel - row * plan.out_width
    for p in range(count):
        centre_y[p] = centre[0] + row * plan.stride_y
        centre_x[p] = centre[1] + column * plan.stride_x
        column += 1
        if column == plan.out_width:
            column = 0
            row += 1


@jit
@no_type_check
def _rounded(n, step):
    return (n + step - 1) // step * step


@entry
@no_type_check
def channels_last(source, out, batch, channels, pixels, begin, end):
    """Write channels-first images as channels-last ones, ``begin <= pixel of all images < end``."""
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(16, end - at, pixels - pixel)
        corner = source[image * channels * pixels + pixel :]
        for p in range(count):
            line = out[(at + p) * channels : (at + p + 1) * channels]
            for c in range(channels):
                line[c] = corner[c * pixels + p]
        at += count


@entry
@no_type_check
def channels_first(source, out, batch, channels, pixels, begin, end):
    """Undo :func:`channels_last`."""
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(32, end - at, pixels - pixel)
        for c in range(channels):
            line = (image * channels + c) * pixels + pixel
            for p in range(count):
                out[line + p] = source[(at + p) * channels + c]
        at += count


@entry
@no_type_check
def pack_outputs(plan, weight, out, begin, end):
    """Pack weights (O, C / groups, taps) as [group][panel][tap][channel][column of the panel].

    ``begin`` and ``end`` count panels over all groups.
    """
    channels = plan.channels // plan.weight_groups
    outputs = plan.out_channels // plan.weight_groups
    wide = plan.out_vectors * plan.lanes
    panels = (outputs + wide - 1) // wide
    depth = plan.taps * channels
    for panel in range(begin, end):
        group = panel // panels
        first = (panel - group * panels) * wide
        valid = min(wide, outputs - first)
        line = (group * outputs + first) * depth
        for c in range(channels):
            for tap in range(plan.taps):
                at = (panel * depth + tap * channels + c) * wide
                for o in range(valid):
                    out[at + o] = weight[line + o * depth + c * plan.taps + tap]
                for o in range(valid, wide):
                    out[at + o] = 0


@entry
@no_type_check
def pack_columns(plan, weight, out, begin, end):
    """Pack weights (O, C / groups, taps) as [group][chunk][panel][output][column of the panel].

    ``begin`` and ``end`` count pairs of group and chunk.
    """
    channels = plan.channels // plan.weight_groups
    outputs = plan.out_channels // plan.weight_groups
    wide = plan.column_vectors * plan.lanes
    chunks = (plan.taps + plan.chunk - 1) // plan.chunk
    line = _rounded(plan.chunk * channels, wide)
    for pair in range(begin, end):
        group = pair // chunks
        first = (pair - group * chunks) * plan.chunk
        last = min(plan.taps, first + plan.chunk)
        base = pair * outputs * line
        for o in range(outputs):
            row = (group * outputs + o) * channels * plan.taps
            for c in range(channels):
                for tap in range(first, last):
                    column = (tap - first) * channels + c
                    panel = column // wide
                    out[base + (panel * outputs + o) * wide + column - panel * wide] = weight[
                        row + c * plan.taps + tap
                    ]
            for column in range((last - first) * channels, line):
                panel = column // wide
                out[base + (panel * outputs + o) * wide + column - panel * wide] = 0


@entry
@no_type_check
def forward(plan, begin, end, image_data, field, omega, points, centre, dilation, mask, packed,
            bias, out, out_channels_last):  # fmt: skip
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
    line = _rounded(chunk * channels, lanes)
    columns = np.empty((tile + _SPARE_ROWS) * line, kind)
    sums = np.empty(tile * panels * wide, kind)
    spare = np.empty(_SPARE_ROWS * wide, kind)
    metric = np.empty(6 * tile, kind)
    y, x = np.empty(tile, kind), np.empty(tile, kind)
    centre_y, centre_x = np.empty(tile, kind), np.empty(tile, kind)
    samples = np.empty((4, chunk * tile), np.int32)
    shares = np.empty((8, chunk * tile), kind)
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(tile, end - at, pixels - pixel)
        base = image * plan.height * plan.width
        _centres(plan, centre, pixel, count, centre_y, centre_x)
        placed_group = placed_first = -1
        for group in range(plan.weight_groups):
            for first in range(0, plan.taps, chunk):
                last = min(plan.taps, first + chunk)
                channel = group * channels
                while channel < (group + 1) * channels:
                    sample_group = channel // sampled
                    length = min((sample_group + 1) * sampled, (group + 1) * channels) - channel
                    if sample_group != placed_group or first != placed_first:
                        _place(
                            plan, field, omega, points, dilation, image, sample_group, pixel,
                            count, first, last, centre_y, centre_x, metric, y, x, samples, shares,
                        )  # fmt: skip
                        placed_group, placed_first = sample_group, first
                    for tap in range(first, last):
                        here = (tap - first) * tile
                        column = (tap - first) * channels + channel - group * channels
                        factors = (
                            (image * plan.sample_groups + sample_group) * plan.taps + tap
                        ) * pixels + pixel
                        for p in range(count):
                            q = here + p
                            top = (base + np.int64(samples[0, q]) * plan.width) * plan.channels
                            bottom = (base + np.int64(samples[1, q]) * plan.width) * plan.channels
                            left = np.int64(samples[2, q]) * plan.channels + channel
                            right = np.int64(samples[3, q]) * plan.channels + channel
                            above, below = shares[0, q], shares[1, q]
                            if plan.has_mask:
                                above *= mask[factors + p]
                                below *= mask[factors + p]
                            west, east = shares[4, q], shares[5, q]
                            _blend(
                                image_data, top + left, top + right, bottom + left,
                                bottom + right, above * west, above * east, below * west,
                                below * east, columns, p * line + column, length,
                            )  # fmt: skip
                    channel += length
                _multiply(
                    columns, 0, line, 1, packed,
                    group * panels * depth * wide + first * channels * wide, depth * wide, wide,
                    sums, 0, panels * wide, count, (last - first) * channels, panels,
                    plan.out_vectors, lanes, int(first > 0), spare,
                )  # fmt: skip
            for o in range(outputs):
                b = bias[group * outputs + o]
                if out_channels_last:
                    there = (image * pixels + pixel) * plan.out_channels + group * outputs + o
                    for p in range(count):
                        out[there + p * plan.out_channels] = sums[p * panels * wide + o] + b
                else:
                    there = (image * plan.out_channels + group * outputs + o) * pixels + pixel
                    for p in range(count):
                        out[there + p] = sums[p * panels * wide + o] + b
        at += count


@jit
@no_type_check
def _place_backward(plan, field, omega, points, dilation, image, group, pixel, count, first, last,
                    totals, metric, g_y, g_x, g_mask, g_field, g_omega, g_factors):  # fmt: skip
    """Add what the gradients of a chunk's positions and factors give to the arguments."""
    tile = plan.tile
    pixels = plan.out_height * plan.out_width
    at = image * plan.sample_groups + group
    if plan.has_mask:
        for tap in range(first, last):
            here = (tap - first) * tile
            there = (at * plan.taps + tap) * pixels + pixel
            for p in range(count):
                g_factors[there + p] += g_mask[here + p]
    if plan.kind == OFFSETS:
        for tap in range(first, last):
            here = (tap - first) * tile
            there = 2 * (at * plan.taps + tap) * pixels + pixel
            for p in range(count):
                g_field[there + p] += g_y[here + p]
                g_field[there + pixels + p] += g_x[here + p]
        return
    zero = totals.dtype.type(0)
    totals[:] = 0
    for tap in range(first, last):
        here = (tap - first) * tile
        g0 = points[2 * tap]
        g1 = points[2 * tap + 1]
        if plan.kind == RADIAL:
            length = np.sqrt(g0 * g0 + g1 * g1)
            for p in range(count):
                along = g_y[here + p] * g0 * dilation[0] + g_x[here + p] * g1 * dilation[1]
                if along != zero:
                    q = g0 * (metric[p] * g0 + metric[tile + p] * g1) + g1 * (
                        metric[2 * tile + p] * g0 + metric[3 * tile + p] * g1
                    )
                    alpha = np.sqrt(max(q, zero))
                    F = alpha + (metric[4 * tile + p] * g0 + metric[5 * tile + p] * g1)
                    g_F = -along * length / (F * F)
                    g_q = g_F / (2 * alpha) if alpha > zero else zero
                    totals[p] += g_q * g0 * g0
                    totals[tile + p] += g_q * g0 * g1
                    totals[2 * tile + p] += g_q * g1 * g1
                    totals[3 * tile + p] += g_F * g0
                    totals[4 * tile + p] += g_F * g1
        else:
            for p in range(count):
                u = g_y[here + p] * dilation[0]
                v = g_x[here + p] * dilation[1]
                totals[p] += u
                totals[tile + p] += v
                totals[2 * tile + p] += u * g0
                totals[3 * tile + p] += u * g1
                totals[4 * tile + p] += v * g0
                totals[5 * tile + p] += v * g1
    six = totals[6 * tile :]
    for p in range(count):
        there = at * pixels + pixel + p
        if plan.kind == RADIAL:
            g_field[4 * there] += totals[p]
            g_field[4 * there + 1] += totals[tile + p]
            g_field[4 * there + 2] += totals[tile + p]
            g_field[4 * there + 3] += totals[2 * tile + p]
            if plan.has_omega:
                g_omega[2 * there] += totals[3 * tile + p]
                g_omega[2 * there + 1] += totals[4 * tile + p]
        else:
            flat = True
            for i in range(6):
                six[i] = totals[i * tile + p]
                flat = flat and six[i] == zero
            if not flat:
                _ellipse_backward(plan, field, omega, there, six, g_field, g_omega)


@entry
@no_type_check
def backward(plan, begin, end, image_data, g_out, g_out_channels_last, field, omega, points,
             centre, dilation, mask, packed, g_image, g_image_private, g_weight, g_field, g_omega,
             g_mask, needs_image, needs_weight, needs_field):  # fmt: skip
    """Add the gradients that come from the pixels ``begin <= pixel of all images < end``.

    The gradient of an image whose first pixel lies in another range goes to ``g_image_private``
    (one image: only the first image of a range can be such). ``g_weight`` is the range's own.
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
    line = _rounded(chunk * channels, wide)
    chunks = (plan.taps + chunk - 1) // chunk
    columns = np.empty((tile + _SPARE_ROWS) * line, kind)
    slope = np.zeros((tile + _SPARE_ROWS) * out_line, kind)
    spare = np.empty(_SPARE_ROWS * max(wide, out_wide), kind)
    metric = np.empty(6 * tile, kind)
    totals = np.empty(6 * tile + 6, kind)
    y, x = np.empty(tile, kind), np.empty(tile, kind)
    centre_y, centre_x = np.empty(tile, kind), np.empty(tile, kind)
    samples = np.empty((4, chunk * tile), np.int32)
    shares = np.empty((8, chunk * tile), kind)
    g_y, g_x = np.empty(chunk * tile, kind), np.empty(chunk * tile, kind)
    g_factor = np.empty(chunk * tile, kind)
    one = kind.type(1)
    at = begin
    while at < end:
        image = at // pixels
        pixel = at - image * pixels
        count = min(tile, end - at, pixels - pixel)
        base = image * plan.height * plan.width
        if image * pixels >= begin:
            target = g_image
            target_at = base * plan.channels
        else:
            target = g_image_private
            target_at = 0
        data = image_data[base * plan.channels :]
        _centres(plan, centre, pixel, count, centre_y, centre_x)
        placed_group = placed_first = -1
        for group in range(plan.weight_groups):
            for o in range(outputs):
                if g_out_channels_last:
                    there = (image * pixels + pixel) * plan.out_channels + group * outputs + o
                    for p in range(count):
                        slope[p * out_line + o] = g_out[there + p * plan.out_channels]
                else:
                    there = (image * plan.out_channels + group * outputs + o) * pixels + pixel
                    for p in range(count):
                        slope[p * out_line + o] = g_out[there + p]
            for first in range(0, plan.taps, chunk):
                last = min(plan.taps, first + chunk)
                width = (last - first) * channels
                _multiply(
                    slope, 0, out_line, 1, packed,
                    (group * chunks + first // chunk) * outputs * line, outputs * wide, wide,
                    columns, 0, line, count, outputs, (width + wide - 1) // wide,
                    plan.column_vectors, lanes, 0, spare,
                )  # fmt: skip
                channel = group * channels
                while channel < (group + 1) * channels:
                    sample_group = channel // sampled
                    length = min((sample_group + 1) * sampled, (group + 1) * channels) - channel
                    if sample_group != placed_group or first != placed_first:
                        _place(
                            plan, field, omega, points, dilation, image, sample_group, pixel,
                            count, first, last, centre_y, centre_x, metric, y, x, samples, shares,
                        )  # fmt: skip
                        placed_group, placed_first = sample_group, first
                    for tap in range(first, last):
                        here = (tap - first) * tile
                        column = (tap - first) * channels + channel - group * channels
                        factors = (
                            (image * plan.sample_groups + sample_group) * plan.taps + tap
                        ) * pixels + pixel
                        for p in range(count):
                            q = here + p
                            top = np.int64(samples[0, q]) * plan.width * plan.channels
                            bottom = np.int64(samples[1, q]) * plan.width * plan.channels
                            left = np.int64(samples[2, q]) * plan.channels + channel
                            right = np.int64(samples[3, q]) * plan.channels + channel
                            above, below = shares[0, q], shares[1, q]
                            west, east = shares[4, q], shares[5, q]
                            factor = mask[factors + p] if plan.has_mask else one
                            s0, s1 = above * factor, below * factor
                            if needs_image:
                                d00, d01, d10, d11 = _blend_scatter(
                                    data, top + left, top + right,
                                    bottom + left, bottom + right, s0 * west, s0 * east,
                                    s1 * west, s1 * east, columns, p * line + column,
                                    target, target_at, length,
                                )  # fmt: skip
                            else:
                                d00, d01, d10, d11 = _blend_backward(
                                    data, top + left, top + right,
                                    bottom + left, bottom + right, s0 * west, s0 * east,
                                    s1 * west, s1 * east, columns, p * line + column,
                                    target, target_at, length,
                                )  # fmt: skip
                            upper = west * d00 + east * d01
                            lower = west * d10 + east * d11
                            g_y[q] = factor * (shares[3, q] * lower - shares[2, q] * upper)
                            g_x[q] = factor * (
                                shares[7, q] * (above * d01 + below * d11)
                                - shares[6, q] * (above * d00 + below * d10)
                            )
                            g_factor[q] = above * upper + below * lower
                    if needs_field:
                        _place_backward(
                            plan, field, omega, points, dilation, image, sample_group, pixel,
                            count, first, last, totals, metric, g_y, g_x, g_factor, g_field,
                            g_omega, g_mask,
                        )  # fmt: skip
                    channel += length
                if needs_weight:
                    _multiply(
                        columns, 0, 1, line, slope, 0, out_wide, out_line, g_weight,
                        (group * plan.taps + first) * channels * out_line, out_line, width, count,
                        out_panels, plan.out_vectors, lanes, 1, spare,
                    )  # fmt: skip
        at += count
