"""The formula of a metric head for one pixel, and its reverse: for the compiled backends.

The functions take and return single numbers and have no branches. They are written in NumPy's
words, and run as they are; :func:`in_words_of` returns them in those of a compiler, so that the
kernels of the CPU and of the GPU share one source. :class:`finslerconv.ops.HeadFormula` is their
definition.

From channels to matrices ``[[a, b], [b, c]]`` and back, all parametrisations are alike: five
channels (those that a parametrisation does not have are not looked at), then four coefficients,
those of :func:`coefficients`.
"""

import inspect
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, no_type_check

from numpy import absolute, exp, maximum, sqrt, where

from finslerconv._head_formula import HeadFormula

#: The parametrisations and constraints, by the numbers that the kernels know them by; 0 is none.
PARAMETRIZATIONS = {
    "cholesky": 1, "ldl": 2, "spectral": 3, "spectral_scaled": 4, "log_euclidean": 5,
}  # fmt: skip
CONSTRAINTS = {"sigmoid": 1, "sigmoid_detached": 2, "clip": 3}


def codes(formula: HeadFormula | None) -> tuple[int, int]:
    """Return the numbers of a formula's parametrisation and constraint."""
    if formula is None:
        return 0, 0
    assert formula.name is not None
    kind, constraint = formula.name.split()
    return PARAMETRIZATIONS[kind], 0 if formula.is_riemannian else CONSTRAINTS[constraint]


def coefficients(formula: HeadFormula | None) -> tuple[float, ...]:
    """Return ``eps_L``, the scale's least value, range and shift, ``1 - eps_omega``, the radius."""
    if formula is None:
        return (0.0,) * 6
    eps_L, least, greatest, eps_omega, radius = formula.numbers
    shift = 0.0
    if greatest > least:
        share = (1 - least) / (greatest - least)
        shift = math.log(share / (1 - share))
    return eps_L, least, greatest - least, shift, 1 - eps_omega, radius


_functions: list[Callable[..., Any]] = []


@no_type_check
def _formula(function):
    _functions.append(function)
    return function


def in_words_of(
    words: dict[str, Any], compiled: Callable[[Callable[..., Any]], Any]
) -> dict[str, Any]:
    """Return the functions of this module by their names, compiled.

    Parameters
    ----------
    words : dict
        What stands for ``absolute``, ``exp``, ``maximum``, ``sqrt`` and ``where``, and what else
        the compiler looks for beside a function.
    compiled : callable
        The compiler's decorator.
    """
    found = {"__name__": __name__, **words}
    for function in _functions:
        plain = inspect.unwrap(function)
        assert isinstance(plain, FunctionType)
        # A function's names are looked up when it is compiled: in the new dictionary.
        found[plain.__name__] = compiled(FunctionType(plain.__code__, found, plain.__name__))
    return found


@_formula
@no_type_check
def expm1(x):
    """Return ``exp(x) - 1``, exact near zero too."""
    series = x * (
        1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (
            1 / 5040 + x * (1 / 40320 + x * (1 / 362880 + x * (1 / 3628800 + x * (
                1 / 39916800 + x * (1 / 479001600 + x * (1 / 6227020800 + x * (1 / 87178291200)
        ))))))))))))
    )  # fmt: skip
    return where(absolute(x) < 0.5, series, exp(x) - 1.0)


@_formula
@no_type_check
def tanh(x):
    size = absolute(x)
    e = expm1(2.0 * where(size > 20.0, 20.0, size))
    t = e / (e + 2.0)
    return where(x < 0.0, -t, t)


@_formula
@no_type_check
def sigmoid(x):
    return 1.0 / (1.0 + exp(-x))


@_formula
@no_type_check
def away_from_zero(x, eps):
    """Return the eigenvalue or factor of a channel: 1 at zero, ``eps`` at least."""
    return absolute(1.0 - eps + x) + eps


@_formula
@no_type_check
def away_from_zero_back(x, eps, g):
    inner = 1.0 - eps + x
    return where(inner > 0.0, g, where(inner < 0.0, -g, 0.0 * g))


@_formula
@no_type_check
def clipped_back(x, bound, g):
    """Return the gradients of ``x`` and the bound from that of ``bound tanh(x / bound)``."""
    z = x / bound
    t = tanh(z)
    slope = 1.0 - t * t
    return g * slope, g * (t - z * slope)


@_formula
@no_type_check
def cholesky(r0, r1, r2, r3, r4, eps, least, span, shift):
    first = away_from_zero(r0, eps)
    second = away_from_zero(r1, eps)
    bound = 300.0 * second
    below = bound * tanh(r2 / bound)
    return first * first, first * below, below * below + second * second


@_formula
@no_type_check
def cholesky_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc):
    first = away_from_zero(r0, eps)
    second = away_from_zero(r1, eps)
    bound = 300.0 * second
    below = bound * tanh(r2 / bound)
    g2, g_bound = clipped_back(r2, bound, first * gb + 2.0 * below * gc)
    g0 = away_from_zero_back(r0, eps, 2.0 * first * ga + below * gb)
    g1 = away_from_zero_back(r1, eps, 2.0 * second * gc + 300.0 * g_bound)
    return g0, g1, g2, 0.0 * g2, 0.0 * g2


@_formula
@no_type_check
def ldl(r0, r1, r2, r3, r4, eps, least, span, shift):
    first = away_from_zero(r0, eps)
    second = away_from_zero(r1, eps)
    bound = 300.0 * sqrt(second / first)
    below = bound * tanh(r2 / bound)
    return first, below * first, below * below * first + second


@_formula
@no_type_check
def ldl_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc):
    first = away_from_zero(r0, eps)
    second = away_from_zero(r1, eps)
    bound = 300.0 * sqrt(second / first)
    below = bound * tanh(r2 / bound)
    g2, g_bound = clipped_back(r2, bound, first * gb + 2.0 * below * first * gc)
    g_bound = g_bound * bound / 2.0
    g0 = away_from_zero_back(r0, eps, ga + below * gb + below * below * gc - g_bound / first)
    g1 = away_from_zero_back(r1, eps, gc + g_bound / second)
    return g0, g1, g2, 0.0 * g2, 0.0 * g2


@_formula
@no_type_check
def unit(x, y):
    """Return the length of a direction and its unit vector: 1 and the first axis if it is zero."""
    square = x * x + y * y
    known = square > 0.0
    length = sqrt(where(known, square, 1.0))
    return length, where(known, x / length, 1.0), where(known, y / length, 0.0 * y)


@_formula
@no_type_check
def spectrum(x, y, first, second):
    """Return the matrix with the eigenvalue ``first`` along the direction and ``second`` across."""
    _, u, v = unit(x, y)
    floor = maximum(first, second) * (1 / 90000)
    along = maximum(first, floor)
    across = maximum(second, floor)
    return (
        along * (u * u) + across * (v * v),
        (along - across) * (u * v),
        along * (v * v) + across * (u * u),
    )


@_formula
@no_type_check
def spectrum_back(x, y, first, second, ga, gb, gc):
    length, u, v = unit(x, y)
    floor = maximum(first, second) * (1 / 90000)
    along = maximum(first, floor)
    across = maximum(second, floor)
    turn = (along - across) * ((u * u - v * v) * gb + 2.0 * (u * v) * (gc - ga)) / length
    turn = where(x * x + y * y > 0.0, turn, 0.0 * turn)
    g_along = ga * (u * u) + gb * (u * v) + gc * (v * v)
    g_across = ga * (v * v) - gb * (u * v) + gc * (u * u)
    # A raised eigenvalue follows the larger one.
    low_first = first < floor
    low_second = second < floor
    g_first = where(low_first, 0.0 * ga, g_along)
    g_first += where(low_second, g_across * (1 / 90000), 0.0 * ga)
    g_second = where(low_second, 0.0 * ga, g_across)
    g_second += where(low_first, g_along * (1 / 90000), 0.0 * ga)
    return -v * turn, u * turn, g_first, g_second


@_formula
@no_type_check
def spectral(r0, r1, r2, r3, r4, eps, least, span, shift):
    return spectrum(r0, r1, away_from_zero(r2, eps), away_from_zero(r3, eps))


@_formula
@no_type_check
def spectral_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc):
    g0, g1, g_first, g_second = spectrum_back(
        r0, r1, away_from_zero(r2, eps), away_from_zero(r3, eps), ga, gb, gc
    )
    g2 = away_from_zero_back(r2, eps, g_first)
    g3 = away_from_zero_back(r3, eps, g_second)
    return g0, g1, g2, g3, 0.0 * g3


@_formula
@no_type_check
def spectral_scaled(r0, r1, r2, r3, r4, eps, least, span, shift):
    scale = least + span * sigmoid(r4 + shift)
    first = eps + (2.0 - 2.0 * eps) * sigmoid(r2)
    second = eps + (2.0 - 2.0 * eps) * sigmoid(r3)
    return spectrum(r0, r1, scale * first, scale * second)


@_formula
@no_type_check
def spectral_scaled_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc):
    s2 = sigmoid(r2)
    s3 = sigmoid(r3)
    s4 = sigmoid(r4 + shift)
    scale = least + span * s4
    first = eps + (2.0 - 2.0 * eps) * s2
    second = eps + (2.0 - 2.0 * eps) * s3
    g0, g1, g_first, g_second = spectrum_back(r0, r1, scale * first, scale * second, ga, gb, gc)
    g2 = g_first * scale * (2.0 - 2.0 * eps) * s2 * (1.0 - s2)
    g3 = g_second * scale * (2.0 - 2.0 * eps) * s3 * (1.0 - s3)
    g4 = (g_first * first + g_second * second) * span * s4 * (1.0 - s4)
    return g0, g1, g2, g3, g4


@_formula
@no_type_check
def cosh_sinhc(square):
    """Return ``cosh(r)``, ``sinh(r) / r`` and its derivative by ``square = r^2``."""
    small = square < 1e-2
    x = where(small, square, 0.0 * square)
    cosh_series = 1.0 + x * (1 / 2 + x * (1 / 24 + x * (1 / 720 + x * (1 / 40320))))
    sinhc_series = 1.0 + x * (1 / 6 + x * (1 / 120 + x * (1 / 5040 + x * (1 / 362880))))
    slope_series = 1 / 6 + x * (1 / 60 + x * (1 / 1680 + x * (1 / 90720)))
    square = where(small, 1.0 + 0.0 * square, square)
    r = sqrt(square)
    e = expm1(r)
    cosh = 1.0 + e * e / (2.0 * (e + 1.0))
    sinhc = (e + e / (e + 1.0)) / (2.0 * r)
    slope = (cosh - sinhc) / (2.0 * square)
    return (
        where(small, cosh_series, cosh),
        where(small, sinhc_series, sinhc),
        where(small, slope_series, slope),
    )


@_formula
@no_type_check
def log_euclidean(r0, r1, r2, r3, r4, eps, least, span, shift):
    first = 3.0 * tanh(r0 / 3.0)
    second = 3.0 * tanh(r1 / 3.0)
    off = 3.0 * tanh(r2 / 3.0)
    half = (first - second) / 2.0
    cosh, sinhc, _ = cosh_sinhc(half * half + off * off)
    size = exp((first + second) / 2.0)
    return size * (cosh + sinhc * half), size * sinhc * off, size * (cosh - sinhc * half)


@_formula
@no_type_check
def log_euclidean_back(r0, r1, r2, r3, r4, eps, least, span, shift, ga, gb, gc):
    t0 = tanh(r0 / 3.0)
    t1 = tanh(r1 / 3.0)
    t2 = tanh(r2 / 3.0)
    half = 1.5 * (t0 - t1)
    off = 3.0 * t2
    cosh, sinhc, slope = cosh_sinhc(half * half + off * off)
    size = exp(1.5 * (t0 + t1))
    trace = size * (ga + gc)
    skew = size * (ga - gc)
    cross = size * gb
    odd = half * skew + off * cross
    g_square = trace * sinhc / 2.0 + odd * slope
    g_half = sinhc * skew + 2.0 * half * g_square
    g_off = sinhc * cross + 2.0 * off * g_square
    g_mean = cosh * trace + sinhc * odd
    return (
        (g_mean + g_half) / 2.0 * (1.0 - t0 * t0),
        (g_mean - g_half) / 2.0 * (1.0 - t1 * t1),
        g_off * (1.0 - t2 * t2),
        0.0 * g_off,
        0.0 * g_off,
    )


@_formula
@no_type_check
def dual(a, b, c, x, y):
    """Return the inverse of a matrix times a one-form, and the square of the one-form's norm."""
    det = a * c - b * b
    u = (c * x - b * y) / det
    v = (a * y - b * x) / det
    return u, v, x * u + y * v


@_formula
@no_type_check
def sigmoid_factor(square, keep):
    """Return what makes the norm ``n`` be ``keep tanh(n / 2)``, and its derivative by ``n^2``."""
    small = square < 1e-2
    z = where(small, square, 0.0 * square) / 4.0
    series = 1.0 - z * (1 / 3 - z * (2 / 15 - z * (17 / 315 - z * (62 / 2835))))
    slope_series = -1 / 3 + z * (4 / 15 - z * (51 / 315 - z * (248 / 2835)))
    square = where(small, 1.0 + 0.0 * square, square)
    n = sqrt(square)
    t = tanh(n / 2.0)
    factor = t / n
    slope = ((1.0 - t * t) / 4.0 - factor / 2.0) / square
    return (
        keep * where(small, series / 2.0, factor),
        keep * where(small, slope_series / 8.0, slope),
    )


@_formula
@no_type_check
def clip_factor(square, keep):
    """Return what makes the norm ``n`` be ``keep`` at most, and its derivative by ``n^2``."""
    long = square > keep * keep
    square = where(long, square, 1.0 + 0.0 * square)
    factor = keep / sqrt(square)
    slope = -factor / (2.0 * square)
    return where(long, factor, 1.0 + 0.0 * factor), where(long, slope, 0.0 * slope)
