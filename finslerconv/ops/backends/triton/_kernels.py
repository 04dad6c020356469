"""The Triton kernels of the convolutions at displaced taps.

Layout. Images are channels last, so that a sample is four runs of contiguous channels, of which
neighbouring threads read 16 bytes each. A program holds a tile of output pixels. For each tap it
computes the tile's positions and bilinear weights once, in registers; for each block of channels it
gathers the samples ``[pixels, channels]`` and multiplies them by weights on the tensor cores, for
up to 128 outputs at a time. Neither positions nor samples go to global memory.

Groups. Channels that share both a weight group and a sample group form a *run*, of
``gcd(channels_of, sampled)`` channels: kernels loop over runs, so that a block of channels never
crosses a group.

Specialisation. Sizes are run-time integers on which nothing is specialised, so layers of all sizes
share compiled kernels. Compile-time constants say what changes the code: the kind of positions, the
padding mode, which tensors are absent (None), the dtypes, and

- ``C_UNIT``, ``O_UNIT``: a number that divides the channels of a run and the outputs of a group; 8
  makes every access 16 bytes wide (1 where nothing is known);
- ``INDEX``: the integer type of offsets in memory;
- ``PRECISION``: how float32 is multiplied, ``"tf32"`` or ``"ieee"``;
- ``BLOCK_P``, ``BLOCK_C``, ``BLOCK_O``: pixels, channels and outputs of a tile.

The image's gradient is added up by atomics, in an order that differs from run to run; all else is
summed in a fixed order.
"""

from typing import no_type_check

import triton
import triton.language as tl

from finslerconv.ops.backends.triton._heads import NUMBERS, store_gradient

OFFSETS = tl.constexpr(0)
RADIAL = tl.constexpr(1)
AFFINE = tl.constexpr(2)

ZEROS = tl.constexpr(0)
REPLICATE = tl.constexpr(1)
REFLECT = tl.constexpr(2)
CIRCULAR = tl.constexpr(3)

# Coordinates beyond this are outside every image; integers and floats hold it exactly.
FAR = tl.constexpr(2.0**30)

# Run-time sizes, in the order in which every kernel takes them.
SIZES = (
    "total", "channels", "height", "width", "out_channels", "out_width", "pixels", "taps",
    "sample_groups", "sampled", "channels_of", "outputs_of", "run", "stride_y", "stride_x",
    "dilation_y", "dilation_x", "origin_y", "origin_x",
)  # fmt: skip


@triton.jit
@no_type_check
def multiple(size, UNIT: tl.constexpr):
    """Return ``size``, which ``UNIT`` divides, in a form in which the compiler sees that."""
    return size // UNIT * UNIT


@triton.jit
@no_type_check
def product(a, b, total, PRECISION: tl.constexpr):
    """Return ``total + a @ b``; in double precision without ``tl.dot``, which may not take it."""
    if a.dtype == tl.float64:
        total += tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
@no_type_check
def _pixels(
    tile, total, pixels, out_width, stride_y, stride_x, origin_y, origin_x,
    like: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return a tile of output pixels: number, whether it exists, image, pixel, kernel's centre.

    Numbers count over all images. Pixels that do not exist have the place of the last one, so that
    they can be read and need not be masked.
    """
    flat = tile * tl.full((BLOCK_P,), BLOCK_P, INDEX) + tl.arange(0, BLOCK_P)
    last = tl.minimum(flat, total - 1)
    image = last // pixels
    pixel = last - image * pixels
    row = pixel // out_width
    column = pixel - row * out_width
    centre_y = (row * stride_y).to(like) + origin_y
    centre_x = (column * stride_x).to(like) + origin_x
    return flat, flat < total, image, pixel, centre_y, centre_x


@triton.jit
@no_type_check
def _metric(field, omega, here):
    """Load M and omega of each pixel; omega is 0 where there is none."""
    m00 = tl.load(field + 4 * here)
    m01 = tl.load(field + 4 * here + 1)
    m10 = tl.load(field + 4 * here + 2)
    m11 = tl.load(field + 4 * here + 3)
    w0 = tl.zeros_like(m00)
    w1 = tl.zeros_like(m00)
    if omega is not None:
        w0 = tl.load(omega + 2 * here)
        w1 = tl.load(omega + 2 * here + 1)
    return m00, m01, m10, m11, w0, w1


@triton.jit
@no_type_check
def _dual(m00, m01, m10, m11, w0, w1):
    """Return the inverse of M, a = M^-1 omega, lambda, the dual matrix D, its root's s and n."""
    det = m00 * m11 - m01 * m10
    i00 = m11 / det
    i01 = -m01 / det
    i10 = -m10 / det
    i11 = m00 / det
    a0 = i00 * w0 + i01 * w1
    a1 = i10 * w0 + i11 * w1
    lam = 1.0 - (w0 * a0 + w1 * a1)
    d00 = i00 / lam + a0 * a0 / (lam * lam)
    d01 = i01 / lam + a0 * a1 / (lam * lam)
    d10 = i10 / lam + a1 * a0 / (lam * lam)
    d11 = i11 / lam + a1 * a1 / (lam * lam)
    # A determinant below rounding may come out negative: then it counts as 0.
    s = tl.sqrt(tl.maximum(d00 * d11 - d01 * d10, 0.0))
    n = tl.sqrt(d00 + d11 + 2.0 * s)
    return det, i00, i01, i10, i11, a0, a1, lam, d00, d01, d10, d11, s, n


@triton.jit
@no_type_check
def _shape(field, omega, here, like, KIND: tl.constexpr):
    """Return six numbers per pixel: M and omega (radial), or centre W and root R (affine)."""
    if KIND == OFFSETS:
        nothing = tl.zeros_like(like)
        return nothing, nothing, nothing, nothing, nothing, nothing
    m00, m01, m10, m11, w0, w1 = _metric(field, omega, here)
    if KIND == AFFINE:
        _, _, _, _, _, a0, a1, lam, d00, d01, d10, d11, s, n = _dual(m00, m01, m10, m11, w0, w1)
        return -a0 / lam, -a1 / lam, (d00 + s) / n, d01 / n, d10 / n, (d11 + s) / n
    return m00, m01, m10, m11, w0, w1


@triton.jit
@no_type_check
def _position(
    field, points, at, tap, taps, pixels, pixel, centre_y, centre_x, dilation_y, dilation_x,
    n0, n1, n2, n3, n4, n5, KIND: tl.constexpr,
):  # fmt: skip
    """Return the positions of one tap; ``at`` counts sample groups over all images."""
    g0 = tl.load(points + 2 * tap)
    g1 = tl.load(points + 2 * tap + 1)
    if KIND == OFFSETS:
        here = 2 * (at * taps + tap) * pixels + pixel
        y = centre_y + (tl.load(field + here) + g0)
        x = centre_x + (tl.load(field + here + pixels) + g1)
    elif KIND == RADIAL:
        length = tl.sqrt(g0 * g0 + g1 * g1)
        q = g0 * (n0 * g0 + n1 * g1) + g1 * (n2 * g0 + n3 * g1)
        norm = tl.sqrt(tl.maximum(q, 0.0)) + (n4 * g0 + n5 * g1)
        scale = tl.where(length > 0.0, length / tl.where(length > 0.0, norm, 1.0), 0.0)
        y = centre_y + g0 * scale * dilation_y
        x = centre_x + g1 * scale * dilation_x
    else:
        y = centre_y + (n0 + (n2 * g0 + n3 * g1)) * dilation_y
        x = centre_x + (n1 + (n4 * g0 + n5 * g1)) * dilation_x
    return y, x


@triton.jit
@no_type_check
def axis(position, known, size, MODE: tl.constexpr):
    """Return the two pixels around each position, the share of the second, and which count."""
    position = tl.where(known, position, 0.0)
    floor = tl.floor(position)
    low = floor.to(tl.int32)
    high = low + 1
    low_in = known
    high_in = known
    if MODE == CIRCULAR:
        low = (low % size + size) % size
        high = tl.where(low + 1 == size, 0, low + 1)
    elif MODE == REFLECT:
        period = tl.maximum(2 * (size - 1), 1)
        low = (low % period + period) % period
        high = tl.where(low + 1 == period, 0, low + 1)
        low = tl.minimum(tl.minimum(low, period - low), size - 1)
        high = tl.minimum(tl.minimum(high, period - high), size - 1)
    else:
        if MODE == ZEROS:
            low_in = known & (low >= 0) & (low < size)
            high_in = known & (high >= 0) & (high < size)
        low = tl.minimum(tl.maximum(low, 0), size - 1)
        high = tl.minimum(tl.maximum(high, 0), size - 1)
    return low, high, position - floor, low_in, high_in


@triton.jit
@no_type_check
def _corners(y, x, image, height, width, channels, MODE: tl.constexpr, INDEX: tl.constexpr):
    """Return where the four pixels around each position begin, and their weights along each axis.

    Then which rows and columns count. Positions that are not finite, or absurd, count nowhere.
    """
    known = (tl.abs(y) < FAR) & (tl.abs(x) < FAR)
    top, bottom, below, top_in, bottom_in = axis(y, known, height, MODE)
    left, right, beside, left_in, right_in = axis(x, known, width, MODE)
    upper = (image.to(INDEX) * height + top) * width
    lower = (image.to(INDEX) * height + bottom) * width
    return (
        (upper + left) * channels, (upper + right) * channels,
        (lower + left) * channels, (lower + right) * channels,
        top_in & left_in, top_in & right_in, bottom_in & left_in, bottom_in & right_in,
        below, beside,
    )  # fmt: skip


@triton.jit
@no_type_check
def _samples(
    x, mask, c00, c01, c10, c11, in00, in01, in10, in11, below, beside, here, channel, inside,
    real: tl.constexpr,
):  # fmt: skip
    """Gather samples [pixels, channels]; ``here`` is where a pixel's factor in the mask is."""
    above = 1.0 - below
    if mask is not None:
        factor = tl.load(mask + here)
        above *= factor
        below *= factor
    before = 1.0 - beside
    block = x + channel[None, :]
    v00 = tl.load(block + c00[:, None], mask=in00[:, None] & inside[None, :], other=0.0)
    v01 = tl.load(block + c01[:, None], mask=in01[:, None] & inside[None, :], other=0.0)
    v10 = tl.load(block + c10[:, None], mask=in10[:, None] & inside[None, :], other=0.0)
    v11 = tl.load(block + c11[:, None], mask=in11[:, None] & inside[None, :], other=0.0)
    samples = v00.to(real) * (above * before)[:, None]
    samples += v01.to(real) * (above * beside)[:, None]
    samples += v10.to(real) * (below * before)[:, None]
    samples += v11.to(real) * (below * beside)[:, None]
    return samples


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def forward(
    x, field, omega, points, mask, weight, bias, out,
    total, channels, height, width, out_channels, out_width, pixels, taps, sample_groups, sampled,
    channels_of, outputs_of, run, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    KIND: tl.constexpr, MODE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    C_UNIT: tl.constexpr, O_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Convolve a tile of pixels into a block of output channels of one weight group.

    ``weight`` is [group][tap][output][channel]; ``out`` is channels last.
    """
    real = points.dtype.element_ty
    channels, out_channels = multiple(channels, C_UNIT), multiple(out_channels, O_UNIT)
    channels_of, outputs_of = multiple(channels_of, C_UNIT), multiple(outputs_of, O_UNIT)
    run = multiple(run, C_UNIT)
    blocks = tl.cdiv(outputs_of, BLOCK_O)
    group = tl.program_id(1) // blocks
    o = tl.program_id(1) % blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    o_inside = o < outputs_of
    flat, valid, image, pixel, centre_y, centre_x = _pixels(
        tl.program_id(0), total, pixels, out_width, stride_y, stride_x, origin_y, origin_x,
        real, INDEX, BLOCK_P,
    )  # fmt: skip
    sums = tl.zeros((BLOCK_P, BLOCK_O), real)
    for begin in range(0, channels_of, run):
        first = group * channels_of + begin
        at = image * sample_groups + first // sampled
        n0, n1, n2, n3, n4, n5 = _shape(field, omega, at * pixels + pixel, centre_y, KIND)
        for tap in range(taps):
            py, px = _position(
                field, points, at, tap, taps, pixels, pixel, centre_y, centre_x,
                dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
            )  # fmt: skip
            c00, c01, c10, c11, in00, in01, in10, in11, below, beside = _corners(
                py, px, image, height, width, channels, MODE, INDEX
            )
            line = ((group * taps + tap) * outputs_of + o) * channels_of + begin
            for c in range(0, run, BLOCK_C):
                channel = c + tl.arange(0, BLOCK_C)
                inside = channel < run
                samples = _samples(
                    x, mask, c00, c01, c10, c11, in00, in01, in10, in11, below, beside,
                    (at * taps + tap) * pixels + pixel, first + channel, inside, real,
                )  # fmt: skip
                w = tl.load(
                    weight + line[None, :] + channel[:, None],
                    mask=inside[:, None] & o_inside[None, :],
                    other=0.0,
                )
                sums = product(samples.to(w.dtype), w, sums, PRECISION)
    if bias is not None:
        b = tl.load(bias + group * outputs_of + o, mask=o_inside, other=0.0)
        sums += b.to(sums.dtype)[None, :]
    tl.store(
        out + (flat * out_channels)[:, None] + (group * outputs_of + o)[None, :],
        sums.to(out.dtype.element_ty),
        mask=valid[:, None] & o_inside[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def forward_depthwise(
    x, field, omega, points, mask, weight, bias, out,
    total, channels, height, width, out_channels, out_width, pixels, taps, sample_groups, sampled,
    channels_of, outputs_of, run, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    KIND: tl.constexpr, MODE: tl.constexpr, INDEX: tl.constexpr, C_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Convolve a tile of pixels and a block of channels of one sample group, each with its weight.

    ``weight`` is [tap][channel]. The sums of products need no tensor cores.
    """
    real = points.dtype.element_ty
    channels, sampled = multiple(channels, C_UNIT), multiple(sampled, C_UNIT)
    blocks = tl.cdiv(sampled, BLOCK_C)
    s = tl.program_id(1) // blocks
    within = tl.program_id(1) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = within < sampled
    channel = s * sampled + within
    flat, valid, image, pixel, centre_y, centre_x = _pixels(
        tl.program_id(0), total, pixels, out_width, stride_y, stride_x, origin_y, origin_x,
        real, INDEX, BLOCK_P,
    )  # fmt: skip
    at = image * sample_groups + s
    n0, n1, n2, n3, n4, n5 = _shape(field, omega, at * pixels + pixel, centre_y, KIND)
    sums = tl.zeros((BLOCK_P, BLOCK_C), real)
    for tap in range(taps):
        py, px = _position(
            field, points, at, tap, taps, pixels, pixel, centre_y, centre_x,
            dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
        )  # fmt: skip
        c00, c01, c10, c11, in00, in01, in10, in11, below, beside = _corners(
            py, px, image, height, width, channels, MODE, INDEX
        )
        samples = _samples(
            x, mask, c00, c01, c10, c11, in00, in01, in10, in11, below, beside,
            (at * taps + tap) * pixels + pixel, channel, inside, real,
        )  # fmt: skip
        w = tl.load(weight + tap * channels + channel, mask=inside, other=0.0)
        sums += samples * w.to(real)[None, :]
    if bias is not None:
        sums += tl.load(bias + channel, mask=inside, other=0.0).to(sums.dtype)[None, :]
    tl.store(
        out + (flat * channels)[:, None] + channel[None, :],
        sums.to(out.dtype.element_ty),
        mask=valid[:, None] & inside[None, :],
    )


@triton.jit
@no_type_check
def quads(at, corner, counts, inside):
    """Load four channels a thread [pixels, quads, 4] of each pixel's corner."""
    mask = counts[:, None, None] & inside
    return tl.load(at + corner[:, None, None], mask=mask, other=0.0)


@triton.jit
@no_type_check
def scatter(at, corner, share, g, counts, inside):
    """Add the corner's share of the gradients, laid out as by :func:`quads`."""
    g = (g * share[:, None, None]).to(at.dtype.element_ty)
    mask = counts[:, None, None] & inside
    tl.atomic_add(at + corner[:, None, None], g, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def backward_samples(
    x, slope, field, omega, points, mask, weight, g_x, g_field, g_mask,
    total, channels, height, width, out_channels, out_width, pixels, taps, sample_groups, sampled,
    channels_of, outputs_of, run, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    KIND: tl.constexpr, MODE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    C_UNIT: tl.constexpr, O_UNIT: tl.constexpr, DEPTHWISE: tl.constexpr, ONE_SLOPE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Differentiate a tile of pixels of one sample group in the image, the positions and the mask.

    ``slope`` is the gradient of the output, channels last; ``weight`` is [group][tap][channel]
    [output], or [tap][channel] where ``DEPTHWISE``. ``g_x``, channels last and of float32 at least,
    is added to, unless it is None; ``g_field`` and ``g_mask`` are None where they are not wanted.
    ``g_field`` is that of the offsets, or takes six sums per pixel, [share][sum][sample group over
    all images][pixel], of which :func:`backward_metric` makes the gradients of M and omega. The
    taps are shared among the programs of the third axis. ``ONE_SLOPE`` says that a block of outputs
    holds all that the sample group has part in, so that the slopes are loaded once.
    """
    real = points.dtype.element_ty
    channels, out_channels = multiple(channels, C_UNIT), multiple(out_channels, O_UNIT)
    if not DEPTHWISE:
        channels_of = multiple(channels_of, C_UNIT)
        outputs_of = multiple(outputs_of, O_UNIT)
    sampled, run = multiple(sampled, C_UNIT), multiple(run, C_UNIT)
    s = tl.program_id(1)
    flat, valid, image, pixel, centre_y, centre_x = _pixels(
        tl.program_id(0), total, pixels, out_width, stride_y, stride_x, origin_y, origin_x,
        real, INDEX, BLOCK_P,
    )  # fmt: skip
    at = image * sample_groups + s
    n0, n1, n2, n3, n4, n5 = _shape(field, omega, at * pixels + pixel, centre_y, KIND)
    t0 = tl.zeros_like(centre_y)
    t1 = tl.zeros_like(centre_y)
    t2 = tl.zeros_like(centre_y)
    t3 = tl.zeros_like(centre_y)
    t4 = tl.zeros_like(centre_y)
    t5 = tl.zeros_like(centre_y)
    slopes = slope + (flat * out_channels)[:, None]
    # Threads take four channels: their atomics are 16 bytes, and neighbours fill whole sectors. The
    # product's columns are in the order in which tl.split makes of them the halves of the channels.
    # That split has one layout, which spares the compiler conversions between layouts.
    fours = (4 * tl.arange(0, BLOCK_C // 8)[:, None] + tl.arange(0, 4)[None, :])[None, :, :]
    columns = tl.arange(0, BLOCK_C)
    columns = columns // 8 * 4 + columns % 4 + columns // 4 % 2 * (BLOCK_C // 2)
    if ONE_SLOPE:
        group = s * sampled // channels_of
        o = tl.arange(0, BLOCK_O)
        d = tl.load(
            slopes + (group * outputs_of + o)[None, :],
            mask=valid[:, None] & (o < outputs_of)[None, :],
            other=0.0,
        )
    for tap in range(tl.program_id(2), taps, tl.num_programs(2)):
        py, px = _position(
            field, points, at, tap, taps, pixels, pixel, centre_y, centre_x,
            dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
        )  # fmt: skip
        c00, c01, c10, c11, in00, in01, in10, in11, below, beside = _corners(
            py, px, image, height, width, channels, MODE, INDEX
        )
        here = (at * taps + tap) * pixels + pixel
        factor = tl.full((BLOCK_P,), 1.0, real)
        if mask is not None:
            factor = tl.load(mask + here)
        p00 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p01 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p10 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p11 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        for begin in range(s * sampled, (s + 1) * sampled, run):
            for c in range(0, run, BLOCK_C):
                first = c + fours
                second = first + BLOCK_C // 2
                if g_field is not None:
                    at_first, at_second = x + begin + first, x + begin + second
                    u00 = quads(at_first, c00, in00, first < run)
                    u01 = quads(at_first, c01, in01, first < run)
                    u10 = quads(at_first, c10, in10, first < run)
                    u11 = quads(at_first, c11, in11, first < run)
                    v00 = quads(at_second, c00, in00, second < run)
                    v01 = quads(at_second, c01, in01, second < run)
                    v10 = quads(at_second, c10, in10, second < run)
                    v11 = quads(at_second, c11, in11, second < run)
                if DEPTHWISE:
                    line = weight + tap * channels + begin
                    g = quads(slope + begin + first, flat * channels, valid, first < run).to(real)
                    g *= tl.load(line + first, mask=first < run, other=0.0).to(real)
                    h = quads(slope + begin + second, flat * channels, valid, second < run).to(real)
                    h *= tl.load(line + second, mask=second < run, other=0.0).to(real)
                else:
                    group = begin // channels_of
                    gradient = tl.zeros((BLOCK_P, BLOCK_C), real)
                    channel = c + columns
                    inside = channel < run
                    line = (
                        (group * taps + tap) * channels_of + begin - group * channels_of + channel
                    )
                    if ONE_SLOPE:
                        w = tl.load(
                            weight + (line * outputs_of)[None, :] + o[:, None],
                            mask=inside[None, :] & (o < outputs_of)[:, None],
                            other=0.0,
                        )
                        gradient = product(d, w, gradient, PRECISION)
                    else:
                        for o_begin in range(0, outputs_of, BLOCK_O):
                            o = o_begin + tl.arange(0, BLOCK_O)
                            w = tl.load(
                                weight + (line * outputs_of)[None, :] + o[:, None],
                                mask=inside[None, :] & (o < outputs_of)[:, None],
                                other=0.0,
                            )
                            d = tl.load(
                                slopes + (group * outputs_of + o)[None, :],
                                mask=valid[:, None] & (o < outputs_of)[None, :],
                                other=0.0,
                            )
                            gradient = product(d, w, gradient, PRECISION)
                    gradient = tl.reshape(gradient, (BLOCK_P, BLOCK_C // 8, 2, 4))
                    g, h = tl.split(tl.permute(gradient, (0, 1, 3, 2)))
                if g_field is not None:
                    p00 += tl.sum(u00.to(real) * g + v00.to(real) * h, axis=2)
                    p01 += tl.sum(u01.to(real) * g + v01.to(real) * h, axis=2)
                    p10 += tl.sum(u10.to(real) * g + v10.to(real) * h, axis=2)
                    p11 += tl.sum(u11.to(real) * g + v11.to(real) * h, axis=2)
                if g_x is not None:
                    above, before = factor * (1.0 - below), 1.0 - beside
                    at_first, at_second = g_x + begin + first, g_x + begin + second
                    scatter(at_first, c00, above * before, g, in00 & valid, first < run)
                    scatter(at_second, c00, above * before, h, in00 & valid, second < run)
                    scatter(at_first, c01, above * beside, g, in01 & valid, first < run)
                    scatter(at_second, c01, above * beside, h, in01 & valid, second < run)
                    scatter(at_first, c10, factor * below * before, g, in10 & valid, first < run)
                    scatter(at_second, c10, factor * below * before, h, in10 & valid, second < run)
                    scatter(at_first, c11, factor * below * beside, g, in11 & valid, first < run)
                    scatter(at_second, c11, factor * below * beside, h, in11 & valid, second < run)
        if g_field is not None:
            p00 = tl.sum(p00, axis=1)
            p01 = tl.sum(p01, axis=1)
            p10 = tl.sum(p10, axis=1)
            p11 = tl.sum(p11, axis=1)
            upper = p00 + beside * (p01 - p00)
            lower = p10 + beside * (p11 - p10)
            g_y = factor * (lower - upper)
            g_across = factor * (p01 - p00 + below * (p11 - p10 - p01 + p00))
            if g_mask is not None:
                tl.store(g_mask + here, upper + below * (lower - upper), mask=valid)
            if KIND == OFFSETS:
                place = 2 * (at * taps + tap) * pixels + pixel
                tl.store(g_field + place, g_y, mask=valid)
                tl.store(g_field + place + pixels, g_across, mask=valid)
            else:
                g0 = tl.load(points + 2 * tap)
                g1 = tl.load(points + 2 * tap + 1)
                u = g_y * dilation_y
                v = g_across * dilation_x
                if KIND == RADIAL:
                    length = tl.sqrt(g0 * g0 + g1 * g1)
                    q = g0 * (n0 * g0 + n1 * g1) + g1 * (n2 * g0 + n3 * g1)
                    alpha = tl.sqrt(tl.maximum(q, 0.0))
                    along = u * g0 + v * g1
                    # At g = 0, and where no sample counts, nothing moves: "along" is 0 there.
                    moves = along != 0.0
                    norm = tl.where(moves, alpha + (n4 * g0 + n5 * g1), 1.0)
                    g_norm = tl.where(moves, -along * length / (norm * norm), 0.0)
                    smooth = alpha > 0.0
                    g_q = tl.where(smooth, g_norm / (2.0 * tl.where(smooth, alpha, 1.0)), 0.0)
                    t0 += g_q * g0 * g0
                    t1 += g_q * g0 * g1
                    t3 += g_q * g1 * g1
                    t4 += g_norm * g0
                    t5 += g_norm * g1
                else:
                    t0 += u
                    t1 += v
                    t2 += u * g0
                    t3 += u * g1
                    t4 += v * g0
                    t5 += v * g1
    if g_field is not None and KIND != OFFSETS:
        if KIND == RADIAL:
            t2 = t1
        plane = total.to(INDEX) * sample_groups
        place = g_field + tl.program_id(2) * 6 * plane + at * pixels + pixel
        tl.store(place, t0, mask=valid)
        tl.store(place + plane, t1, mask=valid)
        tl.store(place + 2 * plane, t2, mask=valid)
        tl.store(place + 3 * plane, t3, mask=valid)
        tl.store(place + 4 * plane, t4, mask=valid)
        tl.store(place + 5 * plane, t5, mask=valid)


@triton.jit(do_not_specialize=["plane", "shares", "pixels", *NUMBERS])
@no_type_check
def backward_metric(
    sums, field, omega, channels, g_field, g_omega, shares, pixels, plane,
    eps, least, span, shift, keep, radius,
    KIND: tl.constexpr, HEAD: tl.constexpr, M_CHANNELS: tl.constexpr, CONSTRAINT: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Make the gradients of M and omega of the sums over taps of :func:`backward_samples`.

    Where they were computed of a head's ``channels``, ``g_field`` is the gradient of these.
    """
    here = tl.program_id(0).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = here < plane
    here = tl.minimum(here, plane - 1)
    t0 = tl.zeros((BLOCK_P,), sums.dtype.element_ty)
    t1 = tl.zeros_like(t0)
    t2 = tl.zeros_like(t0)
    t3 = tl.zeros_like(t0)
    t4 = tl.zeros_like(t0)
    t5 = tl.zeros_like(t0)
    plane = plane.to(INDEX)
    for share in range(shares):
        place = sums + 6 * share * plane + here
        t0 += tl.load(place)
        t1 += tl.load(place + plane)
        t2 += tl.load(place + 2 * plane)
        t3 += tl.load(place + 3 * plane)
        t4 += tl.load(place + 4 * plane)
        t5 += tl.load(place + 5 * plane)
    if KIND == AFFINE:
        t0, t1, t2, t3, t4, t5 = _affine_gradient(field, omega, here, t0, t1, t2, t3, t4, t5)
    if HEAD != 0:
        store_gradient(
            channels, g_field, here, pixels, valid, eps, least, span, shift, keep, radius,
            t0, t1 + t2, t3, t4, t5, HEAD, M_CHANNELS, CONSTRAINT,
        )  # fmt: skip
    else:
        tl.store(g_field + 4 * here, t0, mask=valid)
        tl.store(g_field + 4 * here + 1, t1, mask=valid)
        tl.store(g_field + 4 * here + 2, t2, mask=valid)
        tl.store(g_field + 4 * here + 3, t3, mask=valid)
        if g_omega is not None:
            tl.store(g_omega + 2 * here, t4, mask=valid)
            tl.store(g_omega + 2 * here + 1, t5, mask=valid)


@triton.jit
@no_type_check
def _affine_gradient(field, omega, here, gW0, gW1, g00, g01, g10, g11):
    """Return the gradients of M and omega from those of the ellipse's centre W and root R."""
    m00, m01, m10, m11, w0, w1 = _metric(field, omega, here)
    det, i00, i01, i10, i11, a0, a1, lam, d00, d01, d10, d11, s, n = _dual(
        m00, m01, m10, m11, w0, w1
    )
    flat = (gW0 == 0.0) & (gW1 == 0.0) & (g00 == 0.0) & (g01 == 0.0) & (g10 == 0.0) & (g11 == 0.0)
    l2 = lam * lam
    gn = -(g00 * (d00 + s) + g01 * d01 + g10 * d10 + g11 * (d11 + s)) / (n * n)
    gs = (g00 + g11) / n + gn / n
    gt = gn / (2.0 * n)
    gd = tl.where(s > 0.0, gs / (2.0 * tl.where(s > 0.0, s, 1.0)), 0.0)
    h00 = g00 / n + gt + gd * d11
    h11 = g11 / n + gt + gd * d00
    h01 = g01 / n - gd * d10
    h10 = g10 / n - gd * d01
    glam = (
        -(h00 * i00 + h01 * i01 + h10 * i10 + h11 * i11) / l2
        - 2.0 * (h00 * a0 * a0 + (h01 + h10) * a0 * a1 + h11 * a1 * a1) / (l2 * lam)
        + (gW0 * a0 + gW1 * a1) / l2
    )
    ga0 = (2.0 * h00 * a0 + (h01 + h10) * a1) / l2 - gW0 / lam - glam * w0
    ga1 = (2.0 * h11 * a1 + (h01 + h10) * a0) / l2 - gW1 / lam - glam * w1
    gw0 = -glam * a0 + ga0 * i00 + ga1 * i10
    gw1 = -glam * a1 + ga0 * i01 + ga1 * i11
    h00 = h00 / lam + ga0 * w0
    h01 = h01 / lam + ga0 * w1
    h10 = h10 / lam + ga1 * w0
    h11 = h11 / lam + ga1 * w1
    gdet = -(h00 * i00 + h01 * i01 + h10 * i10 + h11 * i11) / det
    return (
        tl.where(flat, 0.0, h11 / det + gdet * m11),
        tl.where(flat, 0.0, -h01 / det - gdet * m10),
        tl.where(flat, 0.0, -h10 / det - gdet * m01),
        tl.where(flat, 0.0, h00 / det + gdet * m00),
        tl.where(flat, 0.0, gw0),
        tl.where(flat, 0.0, gw1),
    )


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def backward_weight(
    x, slope, field, omega, points, mask, g_weight,
    total, channels, height, width, out_channels, out_width, pixels, taps, sample_groups, sampled,
    channels_of, outputs_of, run, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    KIND: tl.constexpr, MODE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    C_UNIT: tl.constexpr, O_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Differentiate in a block of the weights of one tap, over a share of the pixels.

    ``g_weight`` is [share][group][tap][channel][output]; the shares, one for each program of the
    second axis, are added up afterwards, in order.
    """
    real = points.dtype.element_ty
    channels, out_channels = multiple(channels, C_UNIT), multiple(out_channels, O_UNIT)
    channels_of, outputs_of = multiple(channels_of, C_UNIT), multiple(outputs_of, O_UNIT)
    run = multiple(run, C_UNIT)
    o_blocks = tl.cdiv(outputs_of, BLOCK_O)
    c_blocks = tl.cdiv(run, BLOCK_C)
    block = tl.program_id(0)
    o = block % o_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    o_inside = o < outputs_of
    block = block // o_blocks
    tap = block % taps
    block = block // taps
    begin = block // c_blocks * run
    within = block % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = within < run
    channel = begin + within
    group = begin // channels_of
    sums = tl.zeros((BLOCK_C, BLOCK_O), real)
    for tile in range(tl.program_id(1), tl.cdiv(total, BLOCK_P), tl.num_programs(1)):
        flat, valid, image, pixel, centre_y, centre_x = _pixels(
            tile, total, pixels, out_width, stride_y, stride_x, origin_y, origin_x,
            real, INDEX, BLOCK_P,
        )  # fmt: skip
        at = image * sample_groups + begin // sampled
        n0, n1, n2, n3, n4, n5 = _shape(field, omega, at * pixels + pixel, centre_y, KIND)
        py, px = _position(
            field, points, at, tap, taps, pixels, pixel, centre_y, centre_x,
            dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
        )  # fmt: skip
        c00, c01, c10, c11, in00, in01, in10, in11, below, beside = _corners(
            py, px, image, height, width, channels, MODE, INDEX
        )
        d = tl.load(
            slope + (flat * out_channels)[:, None] + (group * outputs_of + o)[None, :],
            mask=valid[:, None] & o_inside[None, :],
            other=0.0,
        )
        samples = _samples(
            x, mask, c00, c01, c10, c11, in00, in01, in10, in11, below, beside,
            (at * taps + tap) * pixels + pixel, channel, inside, real,
        )  # fmt: skip
        sums = product(tl.trans(samples.to(d.dtype)), d, sums, PRECISION)
    size = channels * taps * outputs_of
    line = (group * taps + tap) * channels_of + channel - group * channels_of
    tl.store(
        g_weight + tl.program_id(1).to(tl.int64) * size + (line * outputs_of)[:, None] + o[None, :],
        sums,
        mask=inside[:, None] & o_inside[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def backward_weight_depthwise(
    x, slope, field, omega, points, mask, g_weight,
    total, channels, height, width, out_channels, out_width, pixels, taps, sample_groups, sampled,
    channels_of, outputs_of, run, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    KIND: tl.constexpr, MODE: tl.constexpr, INDEX: tl.constexpr, C_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Differentiate in one tap's weights of a block of channels, each its own output.

    ``g_weight`` is [share][tap][channel], as for :func:`backward_weight`.
    """
    real = points.dtype.element_ty
    channels, sampled = multiple(channels, C_UNIT), multiple(sampled, C_UNIT)
    c_blocks = tl.cdiv(sampled, BLOCK_C)
    tap = tl.program_id(0) % taps
    block = tl.program_id(0) // taps
    s = block // c_blocks
    within = block % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = within < sampled
    channel = s * sampled + within
    sums = tl.zeros((BLOCK_P, BLOCK_C), real)
    for tile in range(tl.program_id(1), tl.cdiv(total, BLOCK_P), tl.num_programs(1)):
        flat, valid, image, pixel, centre_y, centre_x = _pixels(
            tile, total, pixels, out_width, stride_y, stride_x, origin_y, origin_x,
            real, INDEX, BLOCK_P,
        )  # fmt: skip
        at = image * sample_groups + s
        n0, n1, n2, n3, n4, n5 = _shape(field, omega, at * pixels + pixel, centre_y, KIND)
        py, px = _position(
            field, points, at, tap, taps, pixels, pixel, centre_y, centre_x,
            dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
        )  # fmt: skip
        c00, c01, c10, c11, in00, in01, in10, in11, below, beside = _corners(
            py, px, image, height, width, channels, MODE, INDEX
        )
        d = tl.load(
            slope + (flat * channels)[:, None] + channel[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        samples = _samples(
            x, mask, c00, c01, c10, c11, in00, in01, in10, in11, below, beside,
            (at * taps + tap) * pixels + pixel, channel, inside, real,
        )  # fmt: skip
        sums += samples * d.to(real)
    tl.store(
        g_weight + (tl.program_id(1) * taps + tap) * channels + channel,
        tl.sum(sums, axis=0),
        mask=inside,
    )
