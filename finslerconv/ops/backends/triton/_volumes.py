"""The Triton kernels of the convolutions of volumes: those of :mod:`_kernels`, with a third axis.

A sample has eight corners, and positions come as offsets. Depthwise convolutions have no kernels of
their own here: their groups are merged.
"""

from typing import no_type_check

import triton
import triton.language as tl

from finslerconv.ops.backends.triton._kernels import FAR, axis, multiple, product, quads, scatter

# Run-time sizes, in the order in which every kernel takes them.
SIZES = (
    "total", "channels", "depth", "height", "width", "out_channels", "out_height", "out_width",
    "pixels", "taps", "sample_groups", "sampled", "channels_of", "outputs_of", "run",
    "stride_z", "stride_y", "stride_x", "dilation_z", "dilation_y", "dilation_x",
    "origin_z", "origin_y", "origin_x",
)  # fmt: skip


@triton.jit
@no_type_check
def _voxels(
    tile, total, pixels, out_height, out_width, stride_z, stride_y, stride_x,
    origin_z, origin_y, origin_x, like: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return a tile of output voxels: number, whether it exists, image, voxel, kernel's centre."""
    flat = tile * tl.full((BLOCK_P,), BLOCK_P, INDEX) + tl.arange(0, BLOCK_P)
    last = tl.minimum(flat, total - 1)
    image = last // pixels
    voxel = last - image * pixels
    line = voxel // out_width
    layer = line // out_height
    centre_z = (layer * stride_z).to(like) + origin_z
    centre_y = ((line - layer * out_height) * stride_y).to(like) + origin_y
    centre_x = ((voxel - line * out_width) * stride_x).to(like) + origin_x
    return flat, flat < total, image, voxel, centre_z, centre_y, centre_x


@triton.jit
@no_type_check
def _corners(
    field, points, at, tap, taps, pixels, voxel, centre_z, centre_y, centre_x, image,
    depth, height, width, channels, MODE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Return where the eight voxels around each position of a tap begin, and which of them count.

    Then the shares of the far voxels along each axis. ``at`` counts sample groups over all images.
    """
    place = field + 3 * (at * taps + tap) * pixels + voxel
    z = centre_z + (tl.load(place) + tl.load(points + 3 * tap))
    y = centre_y + (tl.load(place + pixels) + tl.load(points + 3 * tap + 1))
    x = centre_x + (tl.load(place + 2 * pixels) + tl.load(points + 3 * tap + 2))
    known = (tl.abs(z) < FAR) & (tl.abs(y) < FAR) & (tl.abs(x) < FAR)
    front, back, behind, front_in, back_in = axis(z, known, depth, MODE)
    top, bottom, below, top_in, bottom_in = axis(y, known, height, MODE)
    left, right, beside, left_in, right_in = axis(x, known, width, MODE)
    layers = image.to(INDEX) * depth
    l00 = ((layers + front) * height + top) * width
    l01 = ((layers + front) * height + bottom) * width
    l10 = ((layers + back) * height + top) * width
    l11 = ((layers + back) * height + bottom) * width
    in00, in01 = front_in & top_in, front_in & bottom_in
    in10, in11 = back_in & top_in, back_in & bottom_in
    return (
        (l00 + left) * channels, (l00 + right) * channels,
        (l01 + left) * channels, (l01 + right) * channels,
        (l10 + left) * channels, (l10 + right) * channels,
        (l11 + left) * channels, (l11 + right) * channels,
        in00 & left_in, in00 & right_in, in01 & left_in, in01 & right_in,
        in10 & left_in, in10 & right_in, in11 & left_in, in11 & right_in,
        behind, below, beside,
    )  # fmt: skip


@triton.jit
@no_type_check
def _layer(
    block, share, c00, c01, c10, c11, in00, in01, in10, in11, below, beside, inside,
    real: tl.constexpr,
):  # fmt: skip
    """Gather [voxels, channels] from one of the two layers around each sample, times its share."""
    above = share * (1.0 - below)
    below = share * below
    before = 1.0 - beside
    v00 = tl.load(block + c00[:, None], mask=in00[:, None] & inside[None, :], other=0.0)
    v01 = tl.load(block + c01[:, None], mask=in01[:, None] & inside[None, :], other=0.0)
    v10 = tl.load(block + c10[:, None], mask=in10[:, None] & inside[None, :], other=0.0)
    v11 = tl.load(block + c11[:, None], mask=in11[:, None] & inside[None, :], other=0.0)
    samples = v00.to(real) * (above * before)[:, None]
    samples += v01.to(real) * (above * beside)[:, None]
    samples += v10.to(real) * (below * before)[:, None]
    samples += v11.to(real) * (below * beside)[:, None]
    return samples


@triton.jit
@no_type_check
def _samples(
    x, mask, here, c000, c001, c010, c011, c100, c101, c110, c111,
    in000, in001, in010, in011, in100, in101, in110, in111, behind, below, beside,
    channel, inside, real: tl.constexpr,
):  # fmt: skip
    """Gather samples [voxels, channels]; ``here`` is where a voxel's factor in the mask is."""
    before = 1.0 - behind
    if mask is not None:
        factor = tl.load(mask + here)
        before *= factor
        behind *= factor
    block = x + channel[None, :]
    samples = _layer(
        block, before, c000, c001, c010, c011, in000, in001, in010, in011, below, beside, inside,
        real,
    )  # fmt: skip
    samples += _layer(
        block, behind, c100, c101, c110, c111, in100, in101, in110, in111, below, beside, inside,
        real,
    )  # fmt: skip
    return samples


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def forward(
    x, field, omega, points, mask, weight, bias, out,
    total, channels, depth, height, width, out_channels, out_height, out_width, pixels, taps,
    sample_groups, sampled, channels_of, outputs_of, run, stride_z, stride_y, stride_x,
    dilation_z, dilation_y, dilation_x, origin_z, origin_y, origin_x,
    MODE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    C_UNIT: tl.constexpr, O_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Convolve a tile of voxels into a block of output channels of one weight group.

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
    flat, valid, image, voxel, centre_z, centre_y, centre_x = _voxels(
        tl.program_id(0), total, pixels, out_height, out_width, stride_z, stride_y, stride_x,
        origin_z, origin_y, origin_x, real, INDEX, BLOCK_P,
    )  # fmt: skip
    sums = tl.zeros((BLOCK_P, BLOCK_O), real)
    for begin in range(0, channels_of, run):
        first = group * channels_of + begin
        at = image * sample_groups + first // sampled
        for tap in range(taps):
            (
                c000, c001, c010, c011, c100, c101, c110, c111,
                in000, in001, in010, in011, in100, in101, in110, in111, behind, below, beside,
            ) = _corners(
                field, points, at, tap, taps, pixels, voxel, centre_z, centre_y, centre_x, image,
                depth, height, width, channels, MODE, INDEX,
            )  # fmt: skip
            line = ((group * taps + tap) * outputs_of + o) * channels_of + begin
            for c in range(0, run, BLOCK_C):
                channel = c + tl.arange(0, BLOCK_C)
                inside = channel < run
                samples = _samples(
                    x, mask, (at * taps + tap) * pixels + voxel,
                    c000, c001, c010, c011, c100, c101, c110, c111,
                    in000, in001, in010, in011, in100, in101, in110, in111, behind, below, beside,
                    first + channel, inside, real,
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


@triton.jit
@no_type_check
def _layer_backward(
    x, g_x, valid, share, c00, c01, c10, c11, in00, in01, in10, in11, below, beside,
    first, second, run, g, h, p00, p01, p10, p11, g_field, real: tl.constexpr,
):  # fmt: skip
    """Differentiate one of the two layers around each sample, for a block of channels.

    The gradients of the samples are ``g`` and ``h``, for the channels ``first`` and ``second``. The
    products with the layer's voxels are added to ``p00`` to ``p11``, which are returned.
    """
    if g_field is not None:
        u00 = quads(x + first, c00, in00, first < run)
        u01 = quads(x + first, c01, in01, first < run)
        u10 = quads(x + first, c10, in10, first < run)
        u11 = quads(x + first, c11, in11, first < run)
        v00 = quads(x + second, c00, in00, second < run)
        v01 = quads(x + second, c01, in01, second < run)
        v10 = quads(x + second, c10, in10, second < run)
        v11 = quads(x + second, c11, in11, second < run)
        p00 += tl.sum(u00.to(real) * g + v00.to(real) * h, axis=2)
        p01 += tl.sum(u01.to(real) * g + v01.to(real) * h, axis=2)
        p10 += tl.sum(u10.to(real) * g + v10.to(real) * h, axis=2)
        p11 += tl.sum(u11.to(real) * g + v11.to(real) * h, axis=2)
    if g_x is not None:
        above, before = share * (1.0 - below), 1.0 - beside
        below = share * below
        scatter(g_x + first, c00, above * before, g, in00 & valid, first < run)
        scatter(g_x + second, c00, above * before, h, in00 & valid, second < run)
        scatter(g_x + first, c01, above * beside, g, in01 & valid, first < run)
        scatter(g_x + second, c01, above * beside, h, in01 & valid, second < run)
        scatter(g_x + first, c10, below * before, g, in10 & valid, first < run)
        scatter(g_x + second, c10, below * before, h, in10 & valid, second < run)
        scatter(g_x + first, c11, below * beside, g, in11 & valid, first < run)
        scatter(g_x + second, c11, below * beside, h, in11 & valid, second < run)
    return p00, p01, p10, p11


@triton.jit
@no_type_check
def _position_backward(p00, p01, p10, p11, below, beside):
    """Return a layer's share of the gradients of y, x and the factor, from its voxels' products."""
    p00 = tl.sum(p00, axis=1)
    p01 = tl.sum(p01, axis=1)
    p10 = tl.sum(p10, axis=1)
    p11 = tl.sum(p11, axis=1)
    upper = p00 + beside * (p01 - p00)
    lower = p10 + beside * (p11 - p10)
    g_x = p01 - p00 + below * (p11 - p10 - p01 + p00)
    return lower - upper, g_x, upper + below * (lower - upper)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def backward_samples(
    x, slope, field, omega, points, mask, weight, g_x, g_field, g_mask,
    total, channels, depth, height, width, out_channels, out_height, out_width, pixels, taps,
    sample_groups, sampled, channels_of, outputs_of, run, stride_z, stride_y, stride_x,
    dilation_z, dilation_y, dilation_x, origin_z, origin_y, origin_x,
    MODE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    C_UNIT: tl.constexpr, O_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Differentiate a tile of voxels of one sample group in the image, the offsets and the mask.

    ``slope`` is the gradient of the output, channels last; ``weight`` is [group][tap][channel]
    [output]. ``g_x``, channels last and of float32 at least, is added to, unless it is None;
    ``g_field`` and ``g_mask`` are None where they are not wanted. The taps are shared among the
    programs of the third axis.
    """
    real = points.dtype.element_ty
    channels, out_channels = multiple(channels, C_UNIT), multiple(out_channels, O_UNIT)
    channels_of, outputs_of = multiple(channels_of, C_UNIT), multiple(outputs_of, O_UNIT)
    sampled, run = multiple(sampled, C_UNIT), multiple(run, C_UNIT)
    s = tl.program_id(1)
    flat, valid, image, voxel, centre_z, centre_y, centre_x = _voxels(
        tl.program_id(0), total, pixels, out_height, out_width, stride_z, stride_y, stride_x,
        origin_z, origin_y, origin_x, real, INDEX, BLOCK_P,
    )  # fmt: skip
    at = image * sample_groups + s
    # As in the plane: threads take four channels, and the product's columns are in the order in
    # which tl.split makes of them the halves of the channels.
    fours = (4 * tl.arange(0, BLOCK_C // 8)[:, None] + tl.arange(0, 4)[None, :])[None, :, :]
    columns = tl.arange(0, BLOCK_C)
    columns = columns // 8 * 4 + columns % 4 + columns // 4 % 2 * (BLOCK_C // 2)
    for tap in range(tl.program_id(2), taps, tl.num_programs(2)):
        (
            c000, c001, c010, c011, c100, c101, c110, c111,
            in000, in001, in010, in011, in100, in101, in110, in111, behind, below, beside,
        ) = _corners(
            field, points, at, tap, taps, pixels, voxel, centre_z, centre_y, centre_x, image,
            depth, height, width, channels, MODE, INDEX,
        )  # fmt: skip
        here = (at * taps + tap) * pixels + voxel
        factor = tl.full((BLOCK_P,), 1.0, real)
        if mask is not None:
            factor = tl.load(mask + here)
        p000 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p001 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p010 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p011 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p100 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p101 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p110 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        p111 = tl.zeros((BLOCK_P, BLOCK_C // 8), real)
        for begin in range(s * sampled, (s + 1) * sampled, run):
            group = begin // channels_of
            for c in range(0, run, BLOCK_C):
                channel = c + columns
                line = (group * taps + tap) * channels_of + begin - group * channels_of + channel
                gradient = tl.zeros((BLOCK_P, BLOCK_C), real)
                for o_begin in range(0, outputs_of, BLOCK_O):
                    o = o_begin + tl.arange(0, BLOCK_O)
                    w = tl.load(
                        weight + (line * outputs_of)[None, :] + o[:, None],
                        mask=(channel < run)[None, :] & (o < outputs_of)[:, None],
                        other=0.0,
                    )
                    d = tl.load(
                        slope + (flat * out_channels)[:, None] + (group * outputs_of + o)[None, :],
                        mask=valid[:, None] & (o < outputs_of)[None, :],
                        other=0.0,
                    )
                    gradient = product(d, w, gradient, PRECISION)
                gradient = tl.reshape(gradient, (BLOCK_P, BLOCK_C // 8, 2, 4))
                g, h = tl.split(tl.permute(gradient, (0, 1, 3, 2)))
                first = c + fours
                second = first + BLOCK_C // 2
                g_block = g_x
                if g_x is not None:
                    g_block = g_x + begin
                p000, p001, p010, p011 = _layer_backward(
                    x + begin, g_block, valid, factor * (1.0 - behind), c000, c001, c010, c011,
                    in000, in001, in010, in011, below, beside, first, second, run, g, h,
                    p000, p001, p010, p011, g_field, real,
                )  # fmt: skip
                p100, p101, p110, p111 = _layer_backward(
                    x + begin, g_block, valid, factor * behind, c100, c101, c110, c111,
                    in100, in101, in110, in111, below, beside, first, second, run, g, h,
                    p100, p101, p110, p111, g_field, real,
                )  # fmt: skip
        if g_field is not None:
            y0, x0, front = _position_backward(p000, p001, p010, p011, below, beside)
            y1, x1, back = _position_backward(p100, p101, p110, p111, below, beside)
            place = g_field + 3 * (at * taps + tap) * pixels + voxel
            tl.store(place, factor * (back - front), mask=valid)
            tl.store(place + pixels, factor * (y0 + behind * (y1 - y0)), mask=valid)
            tl.store(place + 2 * pixels, factor * (x0 + behind * (x1 - x0)), mask=valid)
            if g_mask is not None:
                tl.store(g_mask + here, front + behind * (back - front), mask=valid)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def backward_weight(
    x, slope, field, omega, points, mask, g_weight,
    total, channels, depth, height, width, out_channels, out_height, out_width, pixels, taps,
    sample_groups, sampled, channels_of, outputs_of, run, stride_z, stride_y, stride_x,
    dilation_z, dilation_y, dilation_x, origin_z, origin_y, origin_x,
    MODE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    C_UNIT: tl.constexpr, O_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Differentiate in a block of the weights of one tap, over a share of the voxels.

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
        flat, valid, image, voxel, centre_z, centre_y, centre_x = _voxels(
            tile, total, pixels, out_height, out_width, stride_z, stride_y, stride_x,
            origin_z, origin_y, origin_x, real, INDEX, BLOCK_P,
        )  # fmt: skip
        at = image * sample_groups + begin // sampled
        (
            c000, c001, c010, c011, c100, c101, c110, c111,
            in000, in001, in010, in011, in100, in101, in110, in111, behind, below, beside,
        ) = _corners(
            field, points, at, tap, taps, pixels, voxel, centre_z, centre_y, centre_x, image,
            depth, height, width, channels, MODE, INDEX,
        )  # fmt: skip
        d = tl.load(
            slope + (flat * out_channels)[:, None] + (group * outputs_of + o)[None, :],
            mask=valid[:, None] & o_inside[None, :],
            other=0.0,
        )
        samples = _samples(
            x, mask, (at * taps + tap) * pixels + voxel,
            c000, c001, c010, c011, c100, c101, c110, c111,
            in000, in001, in010, in011, in100, in101, in110, in111, behind, below, beside,
            channel, inside, real,
        )  # fmt: skip
        sums = product(tl.trans(samples.to(d.dtype)), d, sums, PRECISION)
    size = channels * taps * outputs_of
    line = (group * taps + tap) * channels_of + channel - group * channels_of
    tl.store(
        g_weight + tl.program_id(1).to(tl.int64) * size + (line * outputs_of)[:, None] + o[None, :],
        sums,
        mask=inside[:, None] & o_inside[None, :],
    )
