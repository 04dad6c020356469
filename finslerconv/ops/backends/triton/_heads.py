"""From the channels of a head to metrics, and from their gradients to those of the channels.

A head's formula is computed for each pixel once, by a kernel of its own, and not in the kernels of
the convolution. There a pixel is in several threads, and in programs for every block of outputs
and, for the weights' gradient, for every tap: to evaluate the formula so often takes longer than to
read six numbers. Its reverse is a part of ``backward_metric``, which has the metrics' gradients in
registers.

The compile-time constants ``HEAD`` and ``CONSTRAINT`` say which formula (0 is none) and
``M_CHANNELS`` how many channels make the matrix; the formula's numbers are run-time arguments.

All is computed in the dtype of the metrics: in float32 they are as exact as those of the formula in
PyTorch's operations, and float64 would take 64 times as long on many cards.
"""

import struct
from typing import no_type_check

import triton
import triton.language as tl

from finslerconv._head_formula import HeadFormula
from finslerconv.ops.backends import _head_numbers as heads

_CHOLESKY = tl.constexpr(heads.PARAMETRIZATIONS["cholesky"])
_LDL = tl.constexpr(heads.PARAMETRIZATIONS["ldl"])
_SPECTRAL = tl.constexpr(heads.PARAMETRIZATIONS["spectral"])
_SPECTRAL_SCALED = tl.constexpr(heads.PARAMETRIZATIONS["spectral_scaled"])
_DETACHED = tl.constexpr(heads.CONSTRAINTS["sigmoid_detached"])
_CLIP = tl.constexpr(heads.CONSTRAINTS["clip"])

# The numbers of a formula, as the kernels name them.
NUMBERS = ("eps", "least", "span", "shift", "keep", "radius")


def constants(formula: HeadFormula | None) -> dict[str, int]:
    """Return what the kernels have to know of a formula, by the names that they have for it.

    Triton hands floating-point numbers over in single precision, so they come as the bits of
    doubles.
    """
    head, constraint = heads.codes(formula)
    of_head = heads.coefficients(formula)
    bits = struct.unpack(f"{len(of_head)}q", struct.pack(f"{len(of_head)}d", *of_head))
    return {
        "HEAD": head,
        "M_CHANNELS": 0 if formula is None else formula.parametrization.n_channels,
        "CONSTRAINT": constraint,
        **dict(zip(NUMBERS, bits, strict=True)),
    }


@triton.jit
@no_type_check
def _number(bits, like):
    """Return a number in the precision of ``like``."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(like.dtype)


@triton.jit
@no_type_check
def _absolute(x):
    return tl.abs(x)


@triton.jit
@no_type_check
def _exp(x):
    return tl.exp(x)


@triton.jit
@no_type_check
def _maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
@no_type_check
def _sqrt(x):
    return tl.sqrt(x)


@triton.jit
@no_type_check
def _where(condition, a, b):
    return tl.where(condition, a, b)


_head = heads.in_words_of(
    {
        "tl": tl, "absolute": _absolute, "exp": _exp, "maximum": _maximum, "sqrt": _sqrt,
        "where": _where,
    },
    triton.jit,
)  # fmt: skip
_cholesky, _cholesky_back = _head["cholesky"], _head["cholesky_back"]
_ldl, _ldl_back = _head["ldl"], _head["ldl_back"]
_spectral, _spectral_back = _head["spectral"], _head["spectral_back"]
_spectral_scaled = _head["spectral_scaled"]
_spectral_scaled_back = _head["spectral_scaled_back"]
_log_euclidean, _log_euclidean_back = _head["log_euclidean"], _head["log_euclidean_back"]
_dual = _head["dual"]
_sigmoid_factor, _clip_factor = _head["sigmoid_factor"], _head["clip_factor"]


@triton.jit
@no_type_check
def _place(flat, pixels, M_CHANNELS: tl.constexpr, CONSTRAINT: tl.constexpr):
    """Return where a pixel's first channel is; ``flat`` counts over all groups and images."""
    others: tl.constexpr = M_CHANNELS - 1 if CONSTRAINT == 0 else M_CHANNELS + 1
    return flat + flat // pixels * others * pixels


@triton.jit
@no_type_check
def _channels(channels, flat, pixels, M_CHANNELS: tl.constexpr, CONSTRAINT: tl.constexpr):
    """Load five channels of M and two of omega; what a head does not have is 0."""
    place = channels + _place(flat, pixels, M_CHANNELS, CONSTRAINT)
    r0 = tl.load(place)
    r1 = tl.load(place + pixels)
    r2 = tl.load(place + 2 * pixels)
    r3 = tl.zeros_like(r0)
    r4 = tl.zeros_like(r0)
    x = tl.zeros_like(r0)
    y = tl.zeros_like(r0)
    if M_CHANNELS > 3:
        r3 = tl.load(place + 3 * pixels)
    if M_CHANNELS > 4:
        r4 = tl.load(place + 4 * pixels)
    if CONSTRAINT != 0:
        x = tl.load(place + M_CHANNELS * pixels)
        y = tl.load(place + (M_CHANNELS + 1) * pixels)
    return r0, r1, r2, r3, r4, x, y


@triton.jit
@no_type_check
def _matrix(r0, r1, r2, r3, r4, eps, least, span, shift, HEAD: tl.constexpr):
    """Return ``a``, ``b``, ``c`` of the matrix [[a, b], [b, c]], before the radius."""
    if HEAD == _CHOLESKY:
        a, b, c = _cholesky(r0, r1, r2, r3, r4, eps, least, span, shift)
    elif HEAD == _LDL:
        a, b, c = _ldl(r0, r1, r2, r3, r4, eps, least, span, shift)
    elif HEAD == _SPECTRAL:
        a, b, c = _spectral(r0, r1, r2, r3, r4, eps, least, span, shift)
    elif HEAD == _SPECTRAL_SCALED:
        a, b, c = _spectral_scaled(r0, r1, r2, r3, r4, eps, least, span, shift)
    else:
        a, b, c = _log_euclidean(r0, r1, r2, r3, r4, eps, least, span, shift)
    return a, b, c


@triton.jit
@no_type_check
def _factor(square, keep, CONSTRAINT: tl.constexpr):
    """Return what omega is multiplied by, and its derivative by the square of omega's norm."""
    if CONSTRAINT == _CLIP:
        factor, slope = _clip_factor(square, keep)
    else:
        factor, slope = _sigmoid_factor(square, keep)
    return factor, slope


@triton.jit(do_not_specialize=["plane", "pixels", *NUMBERS])
@no_type_check
def metrics(
    channels, field, omega, pixels, plane, eps, least, span, shift, keep, radius,
    HEAD: tl.constexpr, M_CHANNELS: tl.constexpr, CONSTRAINT: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write M [pixel][2][2] and omega [pixel][2], which is None if Riemannian."""
    flat = tl.program_id(0).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = flat < plane
    flat = tl.minimum(flat, plane - 1)
    r0, r1, r2, r3, r4, x, y = _channels(channels, flat, pixels, M_CHANNELS, CONSTRAINT)
    a, b, c = _matrix(
        r0, r1, r2, r3, r4, _number(eps, r0), _number(least, r0), _number(span, r0),
        _number(shift, r0), HEAD,
    )  # fmt: skip
    length = _number(radius, r0)
    area = length * length
    tl.store(field + 4 * flat, a / area, mask=valid)
    tl.store(field + 4 * flat + 1, b / area, mask=valid)
    tl.store(field + 4 * flat + 2, b / area, mask=valid)
    tl.store(field + 4 * flat + 3, c / area, mask=valid)
    if omega is not None:
        _, _, square = _dual(a, b, c, x, y)
        factor, _ = _factor(square, _number(keep, r0), CONSTRAINT)
        tl.store(omega + 2 * flat, factor * x / length, mask=valid)
        tl.store(omega + 2 * flat + 1, factor * y / length, mask=valid)


@triton.jit
@no_type_check
def store_gradient(
    channels, g_channels, flat, pixels, valid, eps, least, span, shift, keep, radius,
    ga, gb, gc, g0, g1, HEAD: tl.constexpr, M_CHANNELS: tl.constexpr, CONSTRAINT: tl.constexpr,
):  # fmt: skip
    """Write the channels' gradients, from those of M00, of M01 and M10 together, M11 and omega."""
    r0, r1, r2, r3, r4, x, y = _channels(channels, flat, pixels, M_CHANNELS, CONSTRAINT)
    eps, least, span = _number(eps, r0), _number(least, r0), _number(span, r0)
    shift, length = _number(shift, r0), _number(radius, r0)
    area = length * length
    ga /= area
    gb /= area
    gc /= area
    place = g_channels + _place(flat, pixels, M_CHANNELS, CONSTRAINT)
    if CONSTRAINT != 0:
        a, b, c = _matrix(r0, r1, r2, r3, r4, eps, least, span, shift, HEAD)
        u, v, square = _dual(a, b, c, x, y)
        factor, slope = _factor(square, _number(keep, r0), CONSTRAINT)
        g0 /= length
        g1 /= length
        g_square = (g0 * x + g1 * y) * slope
        if CONSTRAINT == _DETACHED:
            g_square = tl.zeros_like(g_square)
        ga -= g_square * u * u
        gb -= 2.0 * g_square * u * v
        gc -= g_square * v * v
        of_omega = place + M_CHANNELS * pixels
        tl.store(of_omega, factor * g0 + 2.0 * g_square * u, mask=valid)
        tl.store(of_omega + pixels, factor * g1 + 2.0 * g_square * v, mask=valid)
    if HEAD == _CHOLESKY:
        r0, r1, r2, r3, r4 = _cholesky_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc)
    elif HEAD == _LDL:
        r0, r1, r2, r3, r4 = _ldl_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc)
    elif HEAD == _SPECTRAL:
        r0, r1, r2, r3, r4 = _spectral_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc)
    elif HEAD == _SPECTRAL_SCALED:
        r0, r1, r2, r3, r4 = _spectral_scaled_back(
            r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc
        )
    else:
        r0, r1, r2, r3, r4 = _log_euclidean_back(
            r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc
        )
    tl.store(place, r0, mask=valid)
    tl.store(place + pixels, r1, mask=valid)
    tl.store(place + 2 * pixels, r2, mask=valid)
    if M_CHANNELS > 3:
        tl.store(place + 3 * pixels, r3, mask=valid)
    if M_CHANNELS > 4:
        tl.store(place + 4 * pixels, r4, mask=valid)
