"""Integration of geodesics: steps of the classical Runge-Kutta method, or of adaptive ones."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from finslerconv._transforms import refuse_transforms

Rates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From positions, and momenta or velocities, to the derivatives of both in time."""

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")

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
    f: Rates, x: Tensor, p: Tensor, times: list[float], method: str, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return the states (times, ...) by an adaptive method of torchdiffeq."""
    refuse_transforms(
        f"method: {method!r}",
        "take 'rk4', which has the others too, with as many steps as you need",
        (x, p),
    )
    d = x.shape[-1]
    evaluations = 0

    def norm(y: Tensor) -> Tensor:
        return (y.reshape(-1, 2 * d) ** 2).mean(-1).max().sqrt()

    def right_side(t: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations > _MOST_EVALUATIONS:
            raise ValueError(
                f"method: {method!r} with tolerance {tolerance:g} came to time {float(t):.3g} of "
                f"{times[-1]:g} within {_MOST_EVALUATIONS} evaluations of the field; take 'rk4' "
                "with as many steps as you need, a larger tolerance, or for a grid "
                "interpolation='cubic', which has no kinks at the lines of nodes"
            )
        return torch.cat(f(state[..., :d], state[..., d:]), dim=-1)

    # Steps end at the times that are asked for: between, the interpolant is of order 4 only.
    t = torch.tensor([0.0, *times], dtype=torch.float64, device=x.device)
    first = int(times[0] == 0)
    state = torch.cat((x, p), dim=-1)
    if len(t) - first == 1 or state.numel() == 0:
        flow = state.expand(len(times), *state.shape)
    else:
        try:
            flow = odeint(
                right_side, state, t[first:], rtol=tolerance, atol=tolerance, method=method,
                options={"norm": norm, "step_t": t[first:]},
            )[1 - first :]  # fmt: skip
        except AssertionError as error:
            raise ValueError(
                f"method: {method!r} cannot go on, because a geodesic leaves where the field is "
                "finite, or the field jumps; take 'rk4' with as many steps as you need, or a "
                f"shorter time ({error.args[0].partition(':')[0]})"
            ) from error
    return flow[..., :d], flow[..., d:]
