"""Where the samples of the compiled CPU kernels lie, and the gradients of their places.

The functions work on a tile of output pixels. A sample's place is kept as its four pixels and their
shares of it, in arrays of one entry for each tap and pixel.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from finslerconv._compiled import jit
from finslerconv.ops.backends.numba import _simd as simd
from finslerconv.ops.backends.numba._buffers import prefetch
from finslerconv.ops.backends.numba._metrics import LINE, add_metric_gradients, read_metrics

# Lines of an array. Indices without a sign spare a test for negative ones, and with a constant
# distance between lines LLVM need not ask whether they overlap.
_0, _1, _2, _3, _4, _5, _6, _7 = (np.uint64(i * LINE) for i in range(8))

# Where the samples' positions come from.
OFFSETS, RADIAL, AFFINE = 0, 1, 2

# The numbers of a tap lie far from those of the next, and the processor does not foresee such
# steps: they are prefetched so many taps ahead.
_AHEAD = 4

# The image's continuation.
ZEROS, REPLICATE, REFLECT, CIRCULAR = 0, 1, 2, 3


class Plan(NamedTuple):
    """The sizes of a convolution, and how it is cut up."""

    batch: int
    depth: int
    """Layers of a volume; 1 for images, whose kernels do not look at it."""
    height: int
    width: int
    channels: int
    out_depth: int
    out_height: int
    out_width: int
    out_channels: int
    taps: int
    sample_groups: int
    weight_groups: int
    """Groups of channels whose samples are multiplied with weights of their own; 1 if depthwise."""
    depthwise: int
    """Outputs of each channel, if an output has one channel alone; else 0."""
    stride_z: int
    stride_y: int
    stride_x: int
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
def _ellipses(matrices, metric, count):
    """Write the centre ``W`` and the root ``R`` of the ball's ellipse: the affine map W + R g."""
    for p in range(count):
        m00, m01, m10, m11, w0, w1 = _six(matrices, p)
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
    """Put the gradients of M and omega in place of those of W and R; undo _ellipses."""
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
def _period(mode, size):
    """Return after how many pixels an axis of the image comes again, or 0 if it does not."""
    if mode == CIRCULAR:
        return size
    return max(2 * (size - 1), 1) if mode == REFLECT else 0


@jit
@no_type_check
def _prefetch_tap(plan, array, at, tap, pixel, count, each):
    """Prefetch what the pixels of a tile have ``_AHEAD`` taps after this one, ``each`` numbers.

    After the last tap this is what the next tile has at the first ones.
    """
    pixels = plan.out_height * plan.out_width
    tap += _AHEAD
    if tap >= plan.taps:
        tap -= plan.taps
        pixel += count
    for i in range(each):
        prefetch(array, ((at * plan.taps + tap) * each + i) * pixels + pixel, count)


@jit
@no_type_check
def place(plan, field, omega, head, points, dilation, mask, image, group, pixel, count, first, last,
          centre_y, centre_x, matrices, metric, work, y, x, shares, corner, weight):  # fmt: skip
    """Place the taps ``first`` to ``last`` of the pixels of a tile.

    ``matrices`` takes M and omega, ``metric`` what the map is made of (for the radial one the same
    array).

    For each tap ``corner`` takes four lines, where the four pixels of each sample begin in the
    image, and ``weight`` their weights; ``shares``, if not None, takes eight: the shares along each
    axis, and whether they count, as of :func:`_simd.place`.
    """
    pixels = plan.out_height * plan.out_width
    zero = y.dtype.type(0)
    at = image * plan.sample_groups + group
    if plan.kind != OFFSETS:
        read_metrics(plan, field, omega, head, at, pixel, count, matrices, work)
    if plan.kind == AFFINE:
        _ellipses(matrices, metric, count)
    reflects = int(plan.mode == REFLECT)
    period_y, period_x = _period(plan.mode, plan.height), _period(plan.mode, plan.width)
    n = np.uint64(count)
    for tap in range(first, last):
        g0 = points[2 * tap]
        g1 = points[2 * tap + 1]
        if plan.kind == OFFSETS:
            _prefetch_tap(plan, field, at, tap, pixel, count, 2)
            down = np.uint64(2 * (at * plan.taps + tap) * pixels + pixel)
            right = down + np.uint64(pixels)
            for p in range(n):
                y[p] = centre_y[p] + (field[down + p] + g0)
            for p in range(n):
                x[p] = centre_x[p] + (field[right + p] + g1)
        elif plan.kind == RADIAL:
            length = np.sqrt(g0 * g0 + g1 * g1)
            for p in range(n):
                q = g0 * (metric[_0 + p] * g0 + metric[_1 + p] * g1) + g1 * (
                    metric[_2 + p] * g0 + metric[_3 + p] * g1
                )
                F = np.sqrt(max(q, zero)) + (metric[_4 + p] * g0 + metric[_5 + p] * g1)
                y[p] = length / F if length > zero else zero
            for p in range(n):
                x[p] = centre_x[p] + g1 * y[p] * dilation[1]
            for p in range(n):
                y[p] = centre_y[p] + g0 * y[p] * dilation[0]
        else:  # the lines of "metric" are W0, W1, R00, R01, R10, R11
            for p in range(n):
                shift = metric[_0 + p] + (metric[_2 + p] * g0 + metric[_3 + p] * g1)
                y[p] = centre_y[p] + shift * dilation[0]
            for p in range(n):
                shift = metric[_1 + p] + (metric[_4 + p] * g0 + metric[_5 + p] * g1)
                x[p] = centre_x[p] + shift * dilation[1]
        here = (tap - first) * 4 * LINE
        simd.place(
            y, x, plan.height, plan.width, plan.channels * plan.width, plan.channels,
            int(plan.mode == ZEROS), period_y, period_x, reflects, LINE, count, corner, here,
            weight, here, shares, here + here,
        )  # fmt: skip
        if plan.has_mask:
            _prefetch_tap(plan, mask, at, tap, pixel, count, 1)
            there = np.uint64((at * plan.taps + tap) * pixels + pixel)
            for i in range(4):
                line = np.uint64(here + i * LINE)
                for p in range(n):
                    weight[line + p] *= mask[there + p]


@jit
@no_type_check
def centres(plan, centre, pixel, count, centre_y, centre_x):
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
def blend_backward(plan, products, shares, tap, mask, factors, count, g_y, g_x, g_mask, spare):
    """Make the gradients of positions and factors of those of the four pixels' weights.

    ``products`` has four numbers a pixel; ``tap`` counts those in ``shares``, and ``factors`` is
    where the mask of the tap begins.
    """
    n = np.uint64(count)
    at, here = np.uint64(8 * LINE * tap), np.uint64(LINE * tap)
    above, below, upper_in, lower_in = at, at + _1, at + _2, at + _3
    west, east, west_in, east_in = at + _4, at + _5, at + _6, at + _7
    one, two, four = np.uint64(1), np.uint64(2), np.uint64(4)
    for p in range(n):
        i = four * p
        spare[_0 + p] = shares[west + p] * products[i] + shares[east + p] * products[i + one]
    for p in range(n):
        i = four * p + two
        spare[_1 + p] = shares[west + p] * products[i] + shares[east + p] * products[i + one]
    for p in range(n):
        i = four * p
        spare[_2 + p] = shares[above + p] * products[i] + shares[below + p] * products[i + two]
    for p in range(n):
        i = four * p + one
        spare[_3 + p] = shares[above + p] * products[i] + shares[below + p] * products[i + two]
    for p in range(n):
        g_y[here + p] = shares[lower_in + p] * spare[_1 + p] - shares[upper_in + p] * spare[_0 + p]
    for p in range(n):
        g_x[here + p] = shares[east_in + p] * spare[_3 + p] - shares[west_in + p] * spare[_2 + p]
    if plan.has_mask:
        for p in range(n):
            g_mask[here + p] = shares[above + p] * spare[_0 + p] + shares[below + p] * spare[_1 + p]
        factors = np.uint64(factors)
        for p in range(n):
            g_y[here + p] *= mask[factors + p]
        for p in range(n):
            g_x[here + p] *= mask[factors + p]


@jit
@no_type_check
def place_backward(plan, head, points, dilation, image, group, pixel, count, first, last, totals,
                   matrices, metric, work, g_y, g_x, g_mask, g_field, g_omega,
                   g_factors):  # fmt: skip
    """Add what the gradients of a chunk's positions and factors give to the arguments.

    ``matrices``, ``metric`` and ``work`` are as :func:`place` has left them.
    """
    pixels = plan.out_height * plan.out_width
    at = image * plan.sample_groups + group
    if plan.has_mask:
        for tap in range(first, last):
            here = (tap - first) * LINE
            there = (at * plan.taps + tap) * pixels + pixel
            _prefetch_tap(plan, g_factors, at, tap, pixel, count, 1)
            for p in range(count):
                g_factors[there + p] += g_mask[here + p]
    if plan.kind == OFFSETS:
        for tap in range(first, last):
            here = (tap - first) * LINE
            there = 2 * (at * plan.taps + tap) * pixels + pixel
            _prefetch_tap(plan, g_field, at, tap, pixel, count, 2)
            for p in range(count):
                g_field[there + p] += g_y[here + p]
                g_field[there + pixels + p] += g_x[here + p]
        return
    zero, one = totals.dtype.type(0), totals.dtype.type(1)
    totals[:] = 0
    n = np.uint64(count)
    for tap in range(first, last):
        here = np.uint64((tap - first) * LINE)
        g0 = points[2 * tap]
        g1 = points[2 * tap + 1]
        if plan.kind == RADIAL:
            length = np.sqrt(g0 * g0 + g1 * g1)
            down, right = g0 * dilation[0], g1 * dilation[1]
            for p in range(n):
                along = g_y[here + p] * down + g_x[here + p] * right
                q = g0 * (metric[_0 + p] * g0 + metric[_1 + p] * g1) + g1 * (
                    metric[_2 + p] * g0 + metric[_3 + p] * g1
                )
                alpha = np.sqrt(max(q, zero))
                F = alpha + (metric[_4 + p] * g0 + metric[_5 + p] * g1)
                # Where nothing counts, the norm may be anything.
                moves = along != zero
                F = F if moves else one
                g_F = -along * length / (F * F)
                g_q = g_F / (alpha + alpha) if moves & (alpha > zero) else zero
                totals[_0 + p] += g_q * g0 * g0
                totals[_1 + p] += g_q * g0 * g1
                totals[_3 + p] += g_q * g1 * g1
                totals[_4 + p] += g_F * g0
                totals[_5 + p] += g_F * g1
        else:
            for p in range(n):
                u = g_y[here + p] * dilation[0]
                v = g_x[here + p] * dilation[1]
                totals[_0 + p] += u
                totals[_1 + p] += v
                totals[_2 + p] += u * g0
                totals[_3 + p] += u * g1
                totals[_4 + p] += v * g0
                totals[_5 + p] += v * g1
    if plan.kind == RADIAL:
        for p in range(n):
            totals[_2 + p] = totals[_1 + p]
    if plan.kind == AFFINE:
        _ellipses_backward(matrices, totals, count)
    add_metric_gradients(plan, head, at, pixel, count, totals, work, g_field, g_omega)
