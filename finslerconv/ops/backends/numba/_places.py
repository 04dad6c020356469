"""Where the samples of the compiled CPU kernels lie, and the gradients of their places.

The functions work on a tile of output pixels. A sample's place is kept as its four pixels and their
shares of it, in arrays of one entry for each tap and pixel.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from finslerconv._compiled import jit
from finslerconv.ops.backends.numba._metrics import LINE, add_metric_gradients, read_metrics

#: Coordinates beyond this are outside every image; integers and floats hold it exactly.
FAR = 2.0**30

# Where the samples' positions come from.
OFFSETS, RADIAL, AFFINE = 0, 1, 2

# The image's continuation.
ZEROS, REPLICATE, REFLECT, CIRCULAR = 0, 1, 2, 3


class Plan(NamedTuple):
    """The sizes of a convolution, and how it is cut up."""

    batch: int
    size: tuple[int, ...]
    """The image's size, axis by axis. The length of the tuple, which Numba has in its type, says
    for how many axes a kernel is compiled."""
    pixels: int
    channels: int
    out_size: tuple[int, ...]
    out_pixels: int
    out_channels: int
    taps: int
    sample_groups: int
    weight_groups: int
    stride: tuple[int, ...]
    kind: int
    mode: int
    has_omega: int
    has_mask: int
    head: int
    """The parametrisation of the channels of metrics, or 0 if the field holds no channels."""
    constraint: int
    """That of omega, or 0 if there is none."""
    matrix_channels: int
    """Channels of M."""
    tile: int
    """Pixels of a tile, a multiple of ``simd.TILE_ROWS``."""
    chunk: int
    """Taps whose columns are held at once."""
    out_vectors: int
    """Vectors in a row of the register tile, across output channels."""
    column_vectors: int
    """The same across columns."""
    lanes: int


@jit
@no_type_check
def locate(position, other, size, mode, low, high, near, far, near_in, far_in):
    """Find the two pixels of an axis between which each position lies, and their shares.

    ``near_in`` and ``far_in`` say (1 or 0) whether the pixel counts: they are the derivatives of
    the shares, up to sign. LLVM vectorises loops over few arrays, hence many short ones.
    """
    count = len(position)
    size = np.int32(size)
    one = near.dtype.type(1)
    zero = near.dtype.type(0)
    limit = near.dtype.type(FAR)
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
def _ellipses(metric, count):
    """Put the centre ``W`` and the root ``R`` of the ball's ellipse in the place of M and omega.

    The affine map is ``W + R g``.
    """
    for p in range(count):
        m00, m01, m10, m11, w0, w1 = _six(metric, p)
        det = m00 * m11 - m01 * m10
        i00, i01, i10, i11 = m11 / det, -m01 / det, -m10 / det, m00 / det
        a0 = i00 * w0 + i01 * w1
        a1 = i10 * w0 + i11 * w1
        lam = 1 - (w0 * a0 + w1 * a1)
        d00 = i00 / lam + a0 * a0 / (lam * lam)
        d01 = i01 / lam + a0 * a1 / (lam * lam)
        d10 = i10 / lam + a1 * a0 / (lam * lam)
        d11 = i11 / lam + a1 * a1 / (lam * lam)
        # A determinant below rounding may come out negative: then it counts as 0.
        s = np.sqrt(max(d00 * d11 - d01 * d10, metric.dtype.type(0)))
        n = np.sqrt(d00 + d11 + 2 * s)
        metric[p] = -a0 / lam
        metric[LINE + p] = -a1 / lam
        metric[2 * LINE + p] = (d00 + s) / n
        metric[3 * LINE + p] = d01 / n
        metric[4 * LINE + p] = d10 / n
        metric[5 * LINE + p] = (d11 + s) / n


@jit
@no_type_check
def _six(lines, p):
    return (
        lines[p], lines[LINE + p], lines[2 * LINE + p], lines[3 * LINE + p], lines[4 * LINE + p],
        lines[5 * LINE + p],
    )  # fmt: skip


@jit
@no_type_check
def _ellipses_backward(metric, g, count):
    """Put the gradients of M and omega in the place of those of W and R; undo _ellipses."""
    zero = g.dtype.type(0)
    for p in range(count):
        gW0, gW1, g00, g01, g10, g11 = _six(g, p)
        if (
            gW0 == zero and gW1 == zero and g00 == zero and g01 == zero and g10 == zero
            and g11 == zero
        ):  # fmt: skip
            continue
        m00, m01, m10, m11, w0, w1 = _six(metric, p)
        det = m00 * m11 - m01 * m10
        i00, i01, i10, i11 = m11 / det, -m01 / det, -m10 / det, m00 / det
        a0 = i00 * w0 + i01 * w1
        a1 = i10 * w0 + i11 * w1
        lam = 1 - (w0 * a0 + w1 * a1)
        l2 = lam * lam
        d00 = i00 / lam + a0 * a0 / l2
        d01 = i01 / lam + a0 * a1 / l2
        d10 = i10 / lam + a1 * a0 / l2
        d11 = i11 / lam + a1 * a1 / l2
        s = np.sqrt(max(d00 * d11 - d01 * d10, zero))
        n = np.sqrt(d00 + d11 + 2 * s)
        gn = -(g00 * (d00 + s) + g01 * d01 + g10 * d10 + g11 * (d11 + s)) / (n * n)
        gs = (g00 + g11) / n + gn / n
        gt = gn / (2 * n)
        gd = gs / (2 * s) if s > 0 else zero
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
        g[4 * LINE + p] = -glam * a0 + ga0 * i00 + ga1 * i10
        g[5 * LINE + p] = -glam * a1 + ga0 * i01 + ga1 * i11
        g00 = g00 / lam + ga0 * w0
        g01 = g01 / lam + ga0 * w1
        g10 = g10 / lam + ga1 * w0
        g11 = g11 / lam + ga1 * w1
        gdet = -(g00 * i00 + g01 * i01 + g10 * i10 + g11 * i11) / det
        g[p] = g11 / det + gdet * m11
        g[LINE + p] = -g01 / det - gdet * m10
        g[2 * LINE + p] = -g10 / det - gdet * m01
        g[3 * LINE + p] = g00 / det + gdet * m00


@jit
@no_type_check
def place(plan, field, omega, head, points, dilation, image, group, pixel, count, first, last,
           centre_at, metric, work, where, samples, shares):  # fmt: skip
    """Place the taps ``first`` to ``last`` of the pixels of a tile: corners and their shares."""
    tile = plan.tile
    pixels = plan.out_pixels
    zero = centre_at.dtype.type(0)
    at = image * plan.sample_groups + group
    if plan.kind != OFFSETS:
        read_metrics(plan, field, omega, head, at, pixel, count, metric, work)
    if plan.kind == AFFINE:
        _ellipses(metric, count)
    m00, m01, m10 = metric[:LINE], metric[LINE : 2 * LINE], metric[2 * LINE : 3 * LINE]
    m11, w0, w1 = metric[3 * LINE : 4 * LINE], metric[4 * LINE : 5 * LINE], metric[5 * LINE :]
    y, x = where[0, :count], where[1, :count]
    centre_y, centre_x = centre_at[0], centre_at[1]
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
        else:  # the lines of "metric" are W0, W1, R00, R01, R10, R11
            for p in range(count):
                y[p] = centre_y[p] + (m00[p] + (m10[p] * g0 + m11[p] * g1)) * dilation[0]
            for p in range(count):
                x[p] = centre_x[p] + (m01[p] + (w0[p] * g0 + w1[p] * g1)) * dilation[1]
        here = (tap - first) * tile
        end = here + count
        locate(
            y, x, plan.size[0], plan.mode,
            samples[0, here:end], samples[1, here:end], shares[0, here:end], shares[1, here:end],
            shares[2, here:end], shares[3, here:end],
        )  # fmt: skip
        locate(
            x, y, plan.size[1], plan.mode,
            samples[2, here:end], samples[3, here:end], shares[4, here:end], shares[5, here:end],
            shares[6, here:end], shares[7, here:end],
        )  # fmt: skip


@jit
@no_type_check
def centres(plan, centre, pixel, count, centre_at):
    """Write the kernel's centre at the pixels of a tile: a line for each axis."""
    row = pixel // plan.out_size[1]
    column = pixel - row * plan.out_size[1]
    for p in range(count):
        centre_at[0, p] = centre[0] + row * plan.stride[0]
        centre_at[1, p] = centre[1] + column * plan.stride[1]
        column += 1
        if column == plan.out_size[1]:
            column = 0
            row += 1


@jit
@no_type_check
def corners(plan, samples, shares, q, channel, factor):
    """Return where in an image the corners of a sample are, at a channel, and their weights."""
    top = np.int64(samples[0, q]) * plan.size[1] * plan.channels
    bottom = np.int64(samples[1, q]) * plan.size[1] * plan.channels
    left = np.int64(samples[2, q]) * plan.channels + channel
    right = np.int64(samples[3, q]) * plan.channels + channel
    above, below = shares[0, q] * factor, shares[1, q] * factor
    west, east = shares[4, q], shares[5, q]
    return (
        (top + left, top + right, bottom + left, bottom + right),
        (above * west, above * east, below * west, below * east),
    )


@jit
@no_type_check
def slope(plan, shares, q, factor, products, g_where, g_factor):
    """Write the gradients of a sample's position and factor, from those of its corners' weights."""
    d00, d01, d10, d11 = products
    above, below = shares[0, q], shares[1, q]
    west, east = shares[4, q], shares[5, q]
    upper = west * d00 + east * d01
    lower = west * d10 + east * d11
    g_where[0, q] = factor * (shares[3, q] * lower - shares[2, q] * upper)
    g_where[1, q] = factor * (
        shares[7, q] * (above * d01 + below * d11) - shares[6, q] * (above * d00 + below * d10)
    )
    g_factor[q] = above * upper + below * lower


@jit
@no_type_check
def mask_backward(plan, at, pixel, count, first, last, g_mask, g_factors):
    """Add the gradients of a chunk's factors to those of the mask."""
    for tap in range(first, last):
        here = (tap - first) * plan.tile
        there = (at * plan.taps + tap) * plan.out_pixels + pixel
        for p in range(count):
            g_factors[there + p] += g_mask[here + p]


@jit
@no_type_check
def place_backward(plan, field, omega, head, points, dilation, image, group, pixel, count, first,
                   last, totals, metric, other, work, g_where, g_mask, g_field, g_omega,
                   g_factors):  # fmt: skip
    """Add what the gradients of a chunk's positions and factors give to the arguments."""
    tile = plan.tile
    pixels = plan.out_pixels
    at = image * plan.sample_groups + group
    g_y, g_x = g_where[0], g_where[1]
    if plan.has_mask:
        mask_backward(plan, at, pixel, count, first, last, g_mask, g_factors)
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
                    q = g0 * (metric[p] * g0 + metric[LINE + p] * g1) + g1 * (
                        metric[2 * LINE + p] * g0 + metric[3 * LINE + p] * g1
                    )
                    alpha = np.sqrt(max(q, zero))
                    F = alpha + (metric[4 * LINE + p] * g0 + metric[5 * LINE + p] * g1)
                    g_F = -along * length / (F * F)
                    g_q = g_F / (2 * alpha) if alpha > zero else zero
                    totals[p] += g_q * g0 * g0
                    totals[LINE + p] += g_q * g0 * g1
                    totals[2 * LINE + p] += g_q * g0 * g1
                    totals[3 * LINE + p] += g_q * g1 * g1
                    totals[4 * LINE + p] += g_F * g0
                    totals[5 * LINE + p] += g_F * g1
        else:
            for p in range(count):
                u = g_y[here + p] * dilation[0]
                v = g_x[here + p] * dilation[1]
                totals[p] += u
                totals[LINE + p] += v
                totals[2 * LINE + p] += u * g0
                totals[3 * LINE + p] += u * g1
                totals[4 * LINE + p] += v * g0
                totals[5 * LINE + p] += v * g1
    if plan.kind == AFFINE:
        read_metrics(plan, field, omega, head, at, pixel, count, other, work)
        _ellipses_backward(other, totals, count)
    add_metric_gradients(plan, field, head, at, pixel, count, totals, work, g_field, g_omega)
