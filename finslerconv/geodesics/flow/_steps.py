"""Integration of geodesics: steps of the classical Runge-Kutta method, or of adaptive ones."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import DOP853, RK23, RK45
from torch import Tensor

from finslerconv._transforms import refuse_transforms

Rates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From positions, and momenta or velocities, to the derivatives of both in time."""

# The coefficients of the adaptive methods, from SciPy's classes.
_RULES = {"dopri8": DOP853, "dopri5": RK45, "bosh3": RK23}

ADAPTIVE = tuple(_RULES)

# The least and the greatest factor from one step to the next.
_GROWTH = (0.2, 10.0)

# Evaluations of the field by an adaptive method: about 10 s for a few rays.
_MOST_EVALUATIONS = 20_000


def rk4(f: Rates, x: Tensor, p: Tensor, h: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the state after a step of the classical Runge-Kutta method."""
    e1, f1 = f(x, p)
    e2, f2 = f(x + h / 2 * e1, p + h / 2 * f1)
    e3, f3 = f(x + h / 2 * e2, p + h / 2 * f2)
    e4, f4 = f(x + h * e3, p + h * f3)
    return x + h / 6 * (e1 + 2 * (e2 + e3) + e4), p + h / 6 * (f1 + 2 * (f2 + f3) + f4)


def segments(times: list[float], steps: int) -> list[tuple[float, int]]:
    """Return the time from each record to the next, and the number of steps between them."""
    whole = abs(times[-1]) or 1.0
    spans = [b - a for a, b in itertools.pairwise([0.0, *times])]
    # A rounding error above a whole number is that number.
    return [(span, max(1, math.ceil(steps * abs(span) / whole - 1e-9))) for span in spans]


def fixed(f: Rates, x: Tensor, p: Tensor, times: list[float], steps: int) -> tuple[Tensor, Tensor]:
    """Return the states (times, ...) by ``steps`` equal steps until the last time."""
    states = []
    for span, count in segments(times, steps):
        for _ in range(count):
            x, p = rk4(f, x, p, span / count)
        states.append((x, p))
    positions, momenta = zip(*states, strict=True)
    return torch.stack(positions), torch.stack(momenta)


def adaptive(
    f: Rates,
    x: Tensor,
    p: Tensor,
    times: list[float],
    method: str,
    tolerance: float,
    *,
    smooth: bool,
) -> tuple[Tensor, Tensor]:
    """Return the states (times, ...) by steps whose estimated errors are within a tolerance.

    The tolerance is absolute and relative, and holds for the worst trajectory. Steps end at the
    times that are asked for. Gradients are those of the steps, whose lengths are held fixed. For
    rates that are not ``smooth`` errors are estimated with more caution.

    References
    ----------
    Hairer, Norsett, Wanner, "Solving ordinary differential equations I" (1993), section II.4.
    """
    refuse_transforms(
        f"method: {method!r}",
        "take 'rk4', which has the others too, with as many steps as you need",
        (x, p),
    )
    d = x.shape[-1]
    y = torch.cat((x, p), dim=-1)
    if times[-1] == 0 or y.numel() == 0:
        flow = y.expand(len(times), *y.shape)
        return flow[..., :d], flow[..., d:]
    t, evaluations = 0.0, 0

    def rates(y: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations > _MOST_EVALUATIONS:
            raise ValueError(
                f"method: {method!r} with tolerance {tolerance:g} came to time {t:.3g} of "
                f"{times[-1]:g} within {_MOST_EVALUATIONS} evaluations of the field; take 'rk4' "
                "with as many steps as you need, a larger tolerance, or for a grid "
                "interpolation='cubic', which has no kinks at the lines of nodes"
            )
        return torch.cat(f(y[..., :d], y[..., d:]), dim=-1)

    rule = _RULES[method]
    cautious = rule is DOP853 and not smooth
    power = -1 / ((5 if cautious else rule.error_estimator_order) + 1)
    slope = rates(y)
    h = _first_step(rates, y, slope, times[-1], power, tolerance)
    states = []
    for end in times:
        after_failure = False
        while t != end:
            if not abs(t + h - t) > 0:  # a NaN is not
                raise ValueError(
                    f"method: {method!r} cannot go on, because a geodesic leaves where the field "
                    "is finite, or the field jumps; take 'rk4' with as many steps as you need, or "
                    f"a shorter time (steps became too short at time {t:.3g})"
                )
            last = abs(h) >= abs(end - t)
            step = end - t if last else h
            new, new_slope, error = _try_step(rule, rates, y, slope, step, tolerance, cautious)
            factor = 0.9 * error**power if error > 0 else _GROWTH[1]
            # A NaN is no success, and the least factor.
            factor = min(max(_GROWTH[0], factor), 1.0 if after_failure else _GROWTH[1])
            after_failure = not error <= 1
            if not after_failure:
                t, y, slope = end if last else t + step, new, new_slope
                # A step that was cut short at a time says nothing of longer ones.
                h = max(h, step * factor, key=abs) if last else step * factor
            else:
                h = step * factor
        states.append(y)
    flow = torch.stack(states)
    return flow[..., :d], flow[..., d:]


def _try_step(
    rule: Any,
    rates: Callable[[Tensor], Tensor],
    y: Tensor,
    slope: Tensor,
    step: float,
    tolerance: float,
    cautious: bool,
) -> tuple[Tensor, Tensor, float]:
    """Return the state after a step, the slope there, and the error in tolerances."""
    slopes = [slope]
    for stage in range(1, rule.n_stages):
        slopes.append(rates(y + step * _weighted(rule.A[stage, :stage], slopes)))
    new = y + step * _weighted(rule.B, slopes)
    slopes.append(rates(new))
    with torch.no_grad():
        size = torch.maximum(y.abs(), new.abs())
        square = _squares(_weighted(rule.E5 if rule is DOP853 else rule.E, slopes), size, tolerance)
        errors = square.sqrt()
        if rule is DOP853 and not cautious:
            # From the estimates of the orders 5 and 3 that of order 7, if the rates are smooth.
            third = _squares(_weighted(rule.E3, slopes), size, tolerance)
            whole = (square + 0.01 * third).sqrt()
            errors = torch.where(whole > 0, square / whole, whole)
        return new, slopes[-1], abs(step) * float(errors.max())


def _first_step(
    rates: Callable[[Tensor], Tensor],
    y: Tensor,
    slope: Tensor,
    time: float,
    power: float,
    tolerance: float,
) -> float:
    """Return the length of the first step, from the derivatives at the start."""

    def norm(v: Tensor) -> float:
        return float(_squares(v, y.abs(), tolerance).max().sqrt())

    with torch.no_grad():
        size, speed = norm(y), norm(slope)
        h = 0.01 * size / speed if min(size, speed) > 1e-5 else 1e-6
        h = math.copysign(h, time)
        bend = norm(rates(y + h * slope) - slope) / abs(h)
        most = max(speed, bend)
        short = (0.01 / most) ** -power if most > 1e-15 else max(1e-6, 1e-3 * abs(h))
        return math.copysign(min(100 * abs(h), short), time)


def _weighted(weights: np.ndarray, slopes: list[Tensor]) -> Tensor:
    return torch.tensordot(slopes[0].new_tensor(weights), torch.stack(slopes), 1)


def _squares(y: Tensor, size: Tensor, tolerance: float) -> Tensor:
    """Return the mean square of each trajectory, in tolerances of a state of this size."""
    scaled = y / (tolerance + tolerance * size)
    return (scaled**2).mean(-1)
