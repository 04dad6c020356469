"""The Triton kernels of the convolutions at displaced taps, for CUDA devices.

Layout. The image is read channels last: a sample is four runs of contiguous channels, which the
threads of a warp read together. A program holds a tile of output pixels; for each tap it computes
the tile's positions from the offsets or metrics in registers, gathers ``[pixels, channels]`` blocks
of samples, and feeds them to the tensor cores against ``[channels, outputs]`` blocks of weights.
Neither positions nor columns go to memory: the bytes moved are those of image, field, weights and
output, times the number of tiles that share them in cache.

The image's gradient is added up by atomics, in an order that differs from run to run; all else is
summed in a fixed order.
"""

from typing import no_type_check

import triton
import triton.language as tl

OFFSETS = tl.constexpr(0)
RADIAL = tl.constexpr(1)
AFFINE = tl.constexpr(2)

ZEROS = tl.constexpr(0)
REPLICATE = tl.constexpr(1)
REFLECT = tl.constexpr(2)
CIRCULAR = tl.constexpr(3)

# Coordinates beyond this are outside every image; integers and floats hold it exactly.
_FAR = tl.constexpr(2.0**30)


@triton.jit
@no_type_check
def _product(a, b, total):
    """``total + a @ b``; in double precision without tensor cores, which not all devices have."""
    if a.dtype == tl.float64:
        return total + tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
@no_type_check
def _axis(position, known, size, MODE: tl.constexpr):
    """Return the two pixels around each position, the share of the second, and which count."""
    position = tl.where(known, position, 0.0)
    floor = tl.floor(position)
    low = floor.to(tl.int32)
    high = low + 1
    low_in = known
    high_in = known
    if MODE == CIRCULAR:
        low = (low % size + size) % size
        high = (high % size + size) % size
    elif MODE == REFLECT:
        period = tl.maximum(2 * (size - 1), 1)
        low = (low % period + period) % period
        high = (high % period + period) % period
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
def _metric(field, omega, here, valid, KIND: tl.constexpr, HAS_OMEGA: tl.constexpr):
    """Load M and omega of each pixel; the identity where there is none."""
    m00 = tl.load(field + 4 * here, mask=valid, other=1.0)
    m01 = tl.load(field + 4 * here + 1, mask=valid, other=0.0)
    m10 = tl.load(field + 4 * here + 2, mask=valid, other=0.0)
    m11 = tl.load(field + 4 * here + 3, mask=valid, other=1.0)
    w0 = tl.zeros_like(m00)
    w1 = tl.zeros_like(m00)
    if HAS_OMEGA:
        w0 = tl.load(omega + 2 * here, mask=valid, other=0.0)
        w1 = tl.load(omega + 2 * here + 1, mask=valid, other=0.0)
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
def _prepare(field, omega, here, valid, like, KIND: tl.constexpr, HAS_OMEGA: tl.constexpr):
    """Return six numbers per pixel: M and omega (radial), or centre W and root R (affine)."""
    if KIND == OFFSETS:
        nothing = tl.zeros_like(like)
        return nothing, nothing, nothing, nothing, nothing, nothing
    m00, m01, m10, m11, w0, w1 = _metric(field, omega, here, valid, KIND, HAS_OMEGA)
    if KIND == AFFINE:
        _, _, _, _, _, a0, a1, lam, d00, d01, d10, d11, s, n = _dual(m00, m01, m10, m11, w0, w1)
        return -a0 / lam, -a1 / lam, (d00 + s) / n, d01 / n, d10 / n, (d11 + s) / n
    return m00, m01, m10, m11, w0, w1


@triton.jit
@no_type_check
def _position(
    field, points, group, tap, taps, pixels, pixel, valid, centre_y, centre_x,
    dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND: tl.constexpr,
):  # fmt: skip
    """Return the positions of one tap at each pixel; ``group`` counts over all images."""
    g0 = tl.load(points + 2 * tap)
    g1 = tl.load(points + 2 * tap + 1)
    if KIND == OFFSETS:
        here = 2 * (group * taps + tap) * pixels + pixel
        y = centre_y + (tl.load(field + here, mask=valid, other=0.0) + g0)
        x = centre_x + (tl.load(field + here + pixels, mask=valid, other=0.0) + g1)
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
def _pixel(flat, pixels, out_width, stride_y, stride_x, origin_y, origin_x, like: tl.constexpr):
    """Return image, pixel, and the kernel's centre for output pixels counted over all images."""
    image = flat // pixels
    pixel = flat - image * pixels
    row = pixel // out_width
    column = pixel - row * out_width
    centre_y = (row * stride_y).to(like) + origin_y
    centre_x = (column * stride_x).to(like) + origin_x
    return image, pixel, centre_y, centre_x


@triton.jit
@no_type_check
def forward(
    x, field, omega, points, mask, weight, bias, out,
    batch, channels, height, width, out_channels, out_width, pixels, taps,
    sample_groups, weight_groups, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    KIND: tl.constexpr, MODE: tl.constexpr, HAS_OMEGA: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Convolve a tile of pixels into a block of output channels of one weight group.

    ``weight`` is [group][tap][channel][output]; ``out`` channels last.
    """
    real = points.dtype.element_ty
    channels_of = channels // weight_groups
    outputs_of = out_channels // weight_groups
    sampled = channels // sample_groups
    total = batch.to(tl.int64) * pixels
    blocks = tl.cdiv(outputs_of, BLOCK_O)
    group = tl.program_id(1) // blocks
    o = (tl.program_id(1) % blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
    flat = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = flat < total
    image, pixel, centre_y, centre_x = _pixel(
        flat, pixels, out_width, stride_y, stride_x, origin_y, origin_x, real
    )
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float64 if real == tl.float64 else tl.float32)
    first = group * channels_of
    for s in range(first // sampled, (first + channels_of - 1) // sampled + 1):
        at = image * sample_groups + s
        n0, n1, n2, n3, n4, n5 = _prepare(
            field, omega, at * pixels + pixel, valid, centre_y, KIND, HAS_OMEGA
        )
        begin = tl.maximum(first, s * sampled)
        end = tl.minimum(first + channels_of, (s + 1) * sampled)
        for tap in range(taps):
            py, px = _position(
                field, points, at, tap, taps, pixels, pixel, valid, centre_y, centre_x,
                dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
            )  # fmt: skip
            known = valid & (tl.abs(py) < _FAR) & (tl.abs(px) < _FAR)
            top, bottom, below, top_in, bottom_in = _axis(py, known, height, MODE)
            left, right, beside, left_in, right_in = _axis(px, known, width, MODE)
            above_share = tl.where(top_in, 1.0 - below, 0.0)
            below_share = tl.where(bottom_in, below, 0.0)
            left_share = tl.where(left_in, 1.0 - beside, 0.0)
            right_share = tl.where(right_in, beside, 0.0)
            if HAS_MASK:
                factor = tl.load(mask + (at * taps + tap) * pixels + pixel, mask=valid, other=0.0)
                above_share *= factor
                below_share *= factor
            upper = (image * height + top) * width
            lower = (image * height + bottom) * width
            for c in range(begin, end, BLOCK_C):
                channel = c + tl.arange(0, BLOCK_C)
                inside = channel < end
                here = valid[:, None] & inside[None, :]
                block = x + channel[None, :]
                v = tl.load(block + ((upper + left) * channels)[:, None], mask=here, other=0.0)
                columns = v.to(real) * (above_share * left_share)[:, None]
                v = tl.load(block + ((upper + right) * channels)[:, None], mask=here, other=0.0)
                columns += v.to(real) * (above_share * right_share)[:, None]
                v = tl.load(block + ((lower + left) * channels)[:, None], mask=here, other=0.0)
                columns += v.to(real) * (below_share * left_share)[:, None]
                v = tl.load(block + ((lower + right) * channels)[:, None], mask=here, other=0.0)
                columns += v.to(real) * (below_share * right_share)[:, None]
                line = (group * taps + tap) * channels_of + channel - first
                w = tl.load(
                    weight + line[:, None] * outputs_of + o[None, :],
                    mask=inside[:, None] & (o < outputs_of)[None, :],
                    other=0.0,
                )
                sums = _product(columns.to(w.dtype), w, sums)
    if HAS_BIAS:
        b = tl.load(bias + group * outputs_of + o, mask=o < outputs_of, other=0.0)
        sums += b.to(sums.dtype)[None, :]
    tl.store(
        out + flat[:, None] * out_channels + (group * outputs_of + o)[None, :],
        sums.to(out.dtype.element_ty),
        mask=valid[:, None] & (o < outputs_of)[None, :],
    )


@triton.jit
@no_type_check
def backward_samples(
    x, slope, field, omega, points, mask, weight, g_x, g_field, g_omega, g_mask,
    batch, channels, height, width, out_channels, out_width, pixels, taps,
    sample_groups, weight_groups, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    KIND: tl.constexpr, MODE: tl.constexpr, HAS_OMEGA: tl.constexpr, HAS_MASK: tl.constexpr,
    NEEDS_X: tl.constexpr, NEEDS_FIELD: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Differentiate a tile of pixels of one sample group in the image, the field and the mask.

    ``slope`` is the gradient of the output, channels last; ``weight`` is [group][tap][output]
    [channel]; ``g_x`` is channels last, of float32 at least, and added to.
    """
    real = points.dtype.element_ty
    channels_of = channels // weight_groups
    outputs_of = out_channels // weight_groups
    sampled = channels // sample_groups
    total = batch.to(tl.int64) * pixels
    s = tl.program_id(1)
    flat = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = flat < total
    image, pixel, centre_y, centre_x = _pixel(
        flat, pixels, out_width, stride_y, stride_x, origin_y, origin_x, real
    )
    at = image * sample_groups + s
    metric_at = at * pixels + pixel
    n0, n1, n2, n3, n4, n5 = _prepare(field, omega, metric_at, valid, centre_y, KIND, HAS_OMEGA)
    t0 = tl.zeros_like(centre_y)
    t1 = tl.zeros_like(centre_y)
    t2 = tl.zeros_like(centre_y)
    t3 = tl.zeros_like(centre_y)
    t4 = tl.zeros_like(centre_y)
    t5 = tl.zeros_like(centre_y)
    for tap in range(taps):
        py, px = _position(
            field, points, at, tap, taps, pixels, pixel, valid, centre_y, centre_x,
            dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
        )  # fmt: skip
        known = valid & (tl.abs(py) < _FAR) & (tl.abs(px) < _FAR)
        top, bottom, below, top_in, bottom_in = _axis(py, known, height, MODE)
        left, right, beside, left_in, right_in = _axis(px, known, width, MODE)
        above_share = tl.where(top_in, 1.0 - below, 0.0)
        below_share = tl.where(bottom_in, below, 0.0)
        left_share = tl.where(left_in, 1.0 - beside, 0.0)
        right_share = tl.where(right_in, beside, 0.0)
        factor = tl.full((BLOCK_P,), 1.0, real)
        if HAS_MASK:
            factor = tl.load(mask + (at * taps + tap) * pixels + pixel, mask=valid, other=0.0)
        upper = (image * height + top) * width
        lower = (image * height + bottom) * width
        p00 = tl.zeros_like(centre_y)
        p01 = tl.zeros_like(centre_y)
        p10 = tl.zeros_like(centre_y)
        p11 = tl.zeros_like(centre_y)
        for group in range(s * sampled // channels_of, ((s + 1) * sampled - 1) // channels_of + 1):
            first = group * channels_of
            begin = tl.maximum(first, s * sampled)
            end = tl.minimum(first + channels_of, (s + 1) * sampled)
            for c in range(begin, end, BLOCK_C):
                channel = c + tl.arange(0, BLOCK_C)
                inside = channel < end
                here = valid[:, None] & inside[None, :]
                gradient = tl.zeros(
                    (BLOCK_P, BLOCK_C), tl.float64 if real == tl.float64 else tl.float32
                )
                for o in range(0, outputs_of, BLOCK_O):
                    output = o + tl.arange(0, BLOCK_O)
                    there = output < outputs_of
                    d = tl.load(
                        slope + flat[:, None] * out_channels
                        + (group * outputs_of + output)[None, :],
                        mask=valid[:, None] & there[None, :],
                        other=0.0,
                    )  # fmt: skip
                    line = (group * taps + tap) * outputs_of + output
                    w = tl.load(
                        weight + line[:, None] * channels_of + (channel - first)[None, :],
                        mask=there[:, None] & inside[None, :],
                        other=0.0,
                    )
                    gradient = _product(d, w, gradient)
                gradient = gradient.to(real)
                c00 = ((upper + left) * channels)[:, None] + channel[None, :]
                c01 = ((upper + right) * channels)[:, None] + channel[None, :]
                c10 = ((lower + left) * channels)[:, None] + channel[None, :]
                c11 = ((lower + right) * channels)[:, None] + channel[None, :]
                if NEEDS_FIELD:
                    v = tl.load(x + c00, mask=here, other=0.0).to(real)
                    p00 += tl.sum(v * gradient, axis=1)
                    v = tl.load(x + c01, mask=here, other=0.0).to(real)
                    p01 += tl.sum(v * gradient, axis=1)
                    v = tl.load(x + c10, mask=here, other=0.0).to(real)
                    p10 += tl.sum(v * gradient, axis=1)
                    v = tl.load(x + c11, mask=here, other=0.0).to(real)
                    p11 += tl.sum(v * gradient, axis=1)
                if NEEDS_X:
                    gradient = gradient * factor[:, None]
                    kind = g_x.dtype.element_ty
                    share = (above_share * left_share)[:, None]
                    on = here & (top_in & left_in)[:, None]
                    tl.atomic_add(g_x + c00, (gradient * share).to(kind), mask=on, sem="relaxed")
                    share = (above_share * right_share)[:, None]
                    on = here & (top_in & right_in)[:, None]
                    tl.atomic_add(g_x + c01, (gradient * share).to(kind), mask=on, sem="relaxed")
                    share = (below_share * left_share)[:, None]
                    on = here & (bottom_in & left_in)[:, None]
                    tl.atomic_add(g_x + c10, (gradient * share).to(kind), mask=on, sem="relaxed")
                    share = (below_share * right_share)[:, None]
                    on = here & (bottom_in & right_in)[:, None]
                    tl.atomic_add(g_x + c11, (gradient * share).to(kind), mask=on, sem="relaxed")
        if NEEDS_FIELD:
            upper_sum = left_share * p00 + right_share * p01
            lower_sum = left_share * p10 + right_share * p11
            left_sum = above_share * p00 + below_share * p10
            right_sum = above_share * p01 + below_share * p11
            g_y = factor * (tl.where(bottom_in, lower_sum, 0.0) - tl.where(top_in, upper_sum, 0.0))
            g_across = factor * (
                tl.where(right_in, right_sum, 0.0) - tl.where(left_in, left_sum, 0.0)
            )
            if HAS_MASK:
                tl.store(
                    g_mask + (at * taps + tap) * pixels + pixel,
                    above_share * upper_sum + below_share * lower_sum,
                    mask=valid,
                )
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
    if NEEDS_FIELD and KIND != OFFSETS:
        if KIND == RADIAL:
            t2 = t1
        else:
            t0, t1, t2, t3, t4, t5 = _affine_gradient(
                field, omega, metric_at, valid, t0, t1, t2, t3, t4, t5, KIND, HAS_OMEGA
            )
        tl.store(g_field + 4 * metric_at, t0, mask=valid)
        tl.store(g_field + 4 * metric_at + 1, t1, mask=valid)
        tl.store(g_field + 4 * metric_at + 2, t2, mask=valid)
        tl.store(g_field + 4 * metric_at + 3, t3, mask=valid)
        if HAS_OMEGA:
            tl.store(g_omega + 2 * metric_at, t4, mask=valid)
            tl.store(g_omega + 2 * metric_at + 1, t5, mask=valid)


@triton.jit
@no_type_check
def _affine_gradient(
    field, omega, here, valid, gW0, gW1, g00, g01, g10, g11,
    KIND: tl.constexpr, HAS_OMEGA: tl.constexpr,
):  # fmt: skip
    """Return the gradients of M and omega from those of the ellipse's centre W and root R."""
    m00, m01, m10, m11, w0, w1 = _metric(field, omega, here, valid, KIND, HAS_OMEGA)
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


@triton.jit
@no_type_check
def backward_weight(
    x, slope, field, omega, points, mask, g_weight,
    batch, channels, height, width, out_channels, out_width, pixels, taps,
    sample_groups, weight_groups, stride_y, stride_x, dilation_y, dilation_x, origin_y, origin_x,
    splits,
    KIND: tl.constexpr, MODE: tl.constexpr, HAS_OMEGA: tl.constexpr, HAS_MASK: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Differentiate in a block of the weights, over one of ``splits`` shares of the pixels.

    ``g_weight`` is [split][group][tap][channel][output]; the splits are added up afterwards, in
    order.
    """
    real = points.dtype.element_ty
    channels_of = channels // weight_groups
    outputs_of = out_channels // weight_groups
    sampled = channels // sample_groups
    total = batch.to(tl.int64) * pixels
    o_blocks = tl.cdiv(outputs_of, BLOCK_O)
    c_blocks = tl.cdiv(channels_of, BLOCK_C)
    block = tl.program_id(0)
    o = (block % o_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
    block = block // o_blocks
    within = (block % c_blocks) * BLOCK_C
    block = block // c_blocks
    tap = block % taps
    group = block // taps
    split = tl.program_id(1)
    first = group * channels_of + within
    channel = first + tl.arange(0, BLOCK_C)
    last = tl.minimum(first + BLOCK_C, (group + 1) * channels_of)
    sums = tl.zeros((BLOCK_C, BLOCK_O), tl.float64 if real == tl.float64 else tl.float32)
    tiles = tl.cdiv(total, BLOCK_P)
    for tile in range(split, tiles, splits):
        flat = (tl.zeros((BLOCK_P,), tl.int64) + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        valid = flat < total
        image, pixel, centre_y, centre_x = _pixel(
            flat, pixels, out_width, stride_y, stride_x, origin_y, origin_x, real
        )
        columns = tl.zeros((BLOCK_P, BLOCK_C), real)
        for s in range(first // sampled, (last - 1) // sampled + 1):
            at = image * sample_groups + s
            n0, n1, n2, n3, n4, n5 = _prepare(
                field, omega, at * pixels + pixel, valid, centre_y, KIND, HAS_OMEGA
            )
            py, px = _position(
                field, points, at, tap, taps, pixels, pixel, valid, centre_y, centre_x,
                dilation_y, dilation_x, n0, n1, n2, n3, n4, n5, KIND,
            )  # fmt: skip
            known = valid & (tl.abs(py) < _FAR) & (tl.abs(px) < _FAR)
            top, bottom, below, top_in, bottom_in = _axis(py, known, height, MODE)
            left, right, beside, left_in, right_in = _axis(px, known, width, MODE)
            above_share = tl.where(top_in, 1.0 - below, 0.0)
            below_share = tl.where(bottom_in, below, 0.0)
            left_share = tl.where(left_in, 1.0 - beside, 0.0)
            right_share = tl.where(right_in, beside, 0.0)
            if HAS_MASK:
                factor = tl.load(mask + (at * taps + tap) * pixels + pixel, mask=valid, other=0.0)
                above_share *= factor
                below_share *= factor
            upper = (image * height + top) * width
            lower = (image * height + bottom) * width
            inside = (channel >= s * sampled) & (channel < (s + 1) * sampled) & (channel < last)
            here = valid[:, None] & inside[None, :]
            base = x + channel[None, :]
            v = tl.load(base + ((upper + left) * channels)[:, None], mask=here, other=0.0)
            columns += v.to(real) * (above_share * left_share)[:, None]
            v = tl.load(base + ((upper + right) * channels)[:, None], mask=here, other=0.0)
            columns += v.to(real) * (above_share * right_share)[:, None]
            v = tl.load(base + ((lower + left) * channels)[:, None], mask=here, other=0.0)
            columns += v.to(real) * (below_share * left_share)[:, None]
            v = tl.load(base + ((lower + right) * channels)[:, None], mask=here, other=0.0)
            columns += v.to(real) * (below_share * right_share)[:, None]
        d = tl.load(
            slope + flat[:, None] * out_channels + (group * outputs_of + o)[None, :],
            mask=valid[:, None] & (o < outputs_of)[None, :],
            other=0.0,
        )
        sums = _product(tl.trans(columns.to(d.dtype)), d, sums)
    line = ((split.to(tl.int64) * weight_groups + group) * taps + tap) * channels_of
    line = line + channel - group * channels_of
    tl.store(
        g_weight + line[:, None] * outputs_of + o[None, :],
        sums,
        mask=(channel < last)[:, None] & (o < outputs_of)[None, :],
    )
