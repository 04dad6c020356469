"""The metrics of a tile of pixels for the compiled CPU kernels, and where their gradients go.

Metrics come as matrices and one-forms, or as the channels of a head. The head's formula is computed
for a tile at once, in float64, in lines of one array a constant length apart: that is what LLVM
needs to know to compute several pixels by one instruction.
"""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from finslerconv._compiled import inlined, jit
from finslerconv.ops.backends import _head_numbers as heads

#: The longest tile, and the length of a line of ``work``.
LINE = 192

# The lines of "work": five channels of M and two of omega; the matrix [[a, b], [b, c]] and omega,
# before the radius; the gradients of both; the gradients of the channels.
_R0, _R1, _R2, _R3, _R4, _X, _Y = (np.uint64(i * LINE) for i in range(7))
_A, _B, _C, _W0, _W1 = (np.uint64(i * LINE) for i in range(7, 12))
_GA, _GB, _GC, _GW0, _GW1 = (np.uint64(i * LINE) for i in range(12, 17))
_G0, _G1, _G2, _G3, _G4, _GX, _GY = (np.uint64(i * LINE) for i in range(17, 24))
LINES = 24

_CHOLESKY, _LDL, _SPECTRAL, _SPECTRAL_SCALED = 1, 2, 3, 4
_DETACHED, _CLIP = heads.CONSTRAINTS["sigmoid_detached"], heads.CONSTRAINTS["clip"]


@intrinsic
@no_type_check
def _power_of_two(typing, k):
    @no_type_check
    def codegen(context, builder, signature, arguments):
        long = ir.IntType(64)
        exponent = builder.add(builder.sext(arguments[0], long), ir.Constant(long, 1023))
        return builder.bitcast(builder.shl(exponent, ir.Constant(long, 52)), ir.DoubleType())

    return types.float64(types.int32), codegen


@no_type_check
def _exp(x):
    """``exp(x)`` in arithmetic that LLVM vectorises, to a few units in the last place."""
    y = -700.0 if x < -700.0 else (700.0 if x > 700.0 else x)
    k = np.floor(y * 1.4426950408889634 + 0.5)
    k = k if k == k else 0.0  # NaN is no integer; the result is NaN by y
    r = (y - k * 0.6931471803691238) - k * 1.9082149292705877e-10
    series = 1.0 + r * (
        1.0 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (
            1 / 5040 + r * (1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * (
                1 / 39916800 + r * (1 / 479001600 + r * (1 / 6227020800))
        ))))))))))
    )  # fmt: skip
    return series * _power_of_two(np.int32(k))


@no_type_check
def _where(condition, a, b):
    return a if condition else b


@no_type_check
def _maximum(a, b):
    return a if a > b else b


_head = heads.in_words_of(
    {
        "absolute": abs, "exp": inlined(_exp), "maximum": inlined(_maximum), "sqrt": np.sqrt,
        "where": inlined(_where),
    },
    inlined,
)  # fmt: skip


@no_type_check
def _loops(name):
    """Return the loops over a tile of a parametrisation and of its reverse."""
    matrix, matrix_back = _head[name], _head[f"{name}_back"]

    @jit
    @no_type_check
    def forth(work, count, eps, least, span, shift):
        for p in range(np.uint64(count)):
            work[_A + p], work[_B + p], work[_C + p] = matrix(
                work[_R0 + p], work[_R1 + p], work[_R2 + p], work[_R3 + p], work[_R4 + p],
                eps, least, span, shift,
            )  # fmt: skip

    @jit
    @no_type_check
    def back(work, count, eps, least, span, shift):
        for p in range(np.uint64(count)):
            g0, g1, g2, g3, g4 = matrix_back(
                work[_R0 + p], work[_R1 + p], work[_R2 + p], work[_R3 + p], work[_R4 + p],
                eps, least, span, shift, work[_GA + p], work[_GB + p], work[_GC + p],
            )  # fmt: skip
            work[_G0 + p] = g0
            work[_G1 + p] = g1
            work[_G2 + p] = g2
            work[_G3 + p] = g3
            work[_G4 + p] = g4

    return forth, back


_cholesky, _cholesky_back = _loops("cholesky")
_ldl, _ldl_back = _loops("ldl")
_spectral, _spectral_back = _loops("spectral")
_spectral_scaled, _spectral_scaled_back = _loops("spectral_scaled")
_log_euclidean, _log_euclidean_back = _loops("log_euclidean")


@no_type_check
def _constraint_loops(name):
    """Return the loops over a tile of a constraint on omega and of its reverse."""
    dual, factor = _head["dual"], _head[name]

    @jit
    @no_type_check
    def forth(work, count, keep):
        for p in range(np.uint64(count)):
            x, y = work[_X + p], work[_Y + p]
            _, _, square = dual(work[_A + p], work[_B + p], work[_C + p], x, y)
            f, _ = factor(square, keep)
            work[_W0 + p] = f * x
            work[_W1 + p] = f * y

    @jit
    @no_type_check
    def back(work, count, keep, follows):
        """``follows`` is 0 if the factor counts as a constant, and else 1."""
        for p in range(np.uint64(count)):
            x, y = work[_X + p], work[_Y + p]
            u, v, square = dual(work[_A + p], work[_B + p], work[_C + p], x, y)
            f, slope = factor(square, keep)
            g0, g1 = work[_GW0 + p], work[_GW1 + p]
            g_square = (g0 * x + g1 * y) * slope * follows
            work[_GA + p] -= g_square * u * u
            work[_GB + p] -= 2.0 * g_square * u * v
            work[_GC + p] -= g_square * v * v
            work[_GX + p] = f * g0 + 2.0 * g_square * u
            work[_GY + p] = f * g1 + 2.0 * g_square * v

    return forth, back


_sigmoid, _sigmoid_back = _constraint_loops("sigmoid_factor")
_clip, _clip_back = _constraint_loops("clip_factor")


@jit
@no_type_check
def _read_head(plan, channels, head, at, pixel, count, work):
    """Compute the metrics of a tile, before the radius, of the channels of a head."""
    pixels = plan.out_height * plan.out_width
    n = plan.matrix_channels
    own = n + 2 if plan.has_omega else n
    for i in range(own):
        here = (at * own + i) * pixels + pixel
        line = (i if i < n else 5 + i - n) * LINE
        for p in range(count):
            work[line + p] = channels[here + p]
    eps, least, span, shift = head[0], head[1], head[2], head[3]
    if plan.head == _CHOLESKY:
        _cholesky(work, count, eps, least, span, shift)
    elif plan.head == _LDL:
        _ldl(work, count, eps, least, span, shift)
    elif plan.head == _SPECTRAL:
        _spectral(work, count, eps, least, span, shift)
    elif plan.head == _SPECTRAL_SCALED:
        _spectral_scaled(work, count, eps, least, span, shift)
    else:
        _log_euclidean(work, count, eps, least, span, shift)
    if plan.constraint == _CLIP:
        _clip(work, count, head[4])
    elif plan.constraint:
        _sigmoid(work, count, head[4])


@jit
@no_type_check
def read_metrics(plan, field, omega, head, at, pixel, count, metric, work):
    """Write the lines M00, M01, M10, M11, omega0, omega1 of a tile; ``at`` counts groups."""
    if plan.head:
        _read_head(plan, field, head, at, pixel, count, work)
        radius = head[5]
        for i in range(6):
            line = (7 + i if i < 2 else 6 + i) * LINE  # b stands for M01 and M10
            scale = 1.0 / (radius * radius) if i < 4 else 1.0 / radius
            if i < 4 or plan.has_omega:
                for p in range(count):
                    metric[i * LINE + p] = work[line + p] * scale
            else:
                metric[i * LINE : i * LINE + count] = 0
        return
    first = at * plan.out_height * plan.out_width + pixel
    line = field[4 * first :]
    for i in range(4):
        for p in range(count):
            metric[i * LINE + p] = line[4 * p + i]
    if plan.has_omega:
        line = omega[2 * first :]
        for i in range(2):
            for p in range(count):
                metric[(4 + i) * LINE + p] = line[2 * p + i]
    else:
        metric[4 * LINE :] = 0


@jit
@no_type_check
def add_metric_gradients(plan, head, at, pixel, count, gradients, work, g_field, g_omega):
    """Add the gradients that come as the lines of :func:`read_metrics` to those of the field.

    ``work`` is as that has left it.
    """
    pixels = plan.out_height * plan.out_width
    if not plan.head:
        first = at * pixels + pixel
        for i in range(4):
            for p in range(count):
                g_field[4 * (first + p) + i] += gradients[i * LINE + p]
        if plan.has_omega:
            for i in range(2):
                for p in range(count):
                    g_omega[2 * (first + p) + i] += gradients[(4 + i) * LINE + p]
        return
    radius = head[5]
    square = radius * radius
    for p in range(count):
        work[_GA + p] = gradients[p] / square
    for p in range(count):
        work[_GB + p] = (gradients[LINE + p] + gradients[2 * LINE + p]) / square
    for p in range(count):
        work[_GC + p] = gradients[3 * LINE + p] / square
    if plan.has_omega:
        for i in range(2):
            for p in range(count):
                work[(15 + i) * LINE + p] = gradients[(4 + i) * LINE + p] / radius
        if plan.constraint == _CLIP:
            _clip_back(work, count, head[4], 1.0)
        else:
            _sigmoid_back(work, count, head[4], 0.0 if plan.constraint == _DETACHED else 1.0)
    eps, least, span, shift = head[0], head[1], head[2], head[3]
    if plan.head == _CHOLESKY:
        _cholesky_back(work, count, eps, least, span, shift)
    elif plan.head == _LDL:
        _ldl_back(work, count, eps, least, span, shift)
    elif plan.head == _SPECTRAL:
        _spectral_back(work, count, eps, least, span, shift)
    elif plan.head == _SPECTRAL_SCALED:
        _spectral_scaled_back(work, count, eps, least, span, shift)
    else:
        _log_euclidean_back(work, count, eps, least, span, shift)
    n = plan.matrix_channels
    own = n + 2 if plan.has_omega else n
    for i in range(own):
        here = (at * own + i) * pixels + pixel
        line = (17 + i if i < n else 22 + i - n) * LINE
        for p in range(count):
            g_field[here + p] += work[line + p]
