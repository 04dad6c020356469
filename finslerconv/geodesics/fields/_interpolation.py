"""How a field on a grid is read between its nodes and beyond them."""

import itertools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Interpolation = Literal["linear", "cubic"]
"""How a field is read between the nodes: multilinear, or by Catmull-Rom's cubic (C1)."""

Outside = Literal["constant", "reflect"]
"""How a field goes on beyond the outermost nodes: held constant, or mirrored at them."""


class Tap(NamedTuple):
    """Nodes that contribute to positions, as far as one axis goes: flat indices and weights."""

    rows: Tensor
    weight: Tensor


def continued(t: Tensor, n: int, outside: Outside) -> Tensor:
    """Return the coordinates ``t``, in steps, brought into [0, n - 1]."""
    last = n - 1.0
    if outside == "constant" or n == 1:
        return t.clamp(0.0, last)
    return last - (t.remainder(2 * last) - last).abs()


def continued_index(i: Tensor, n: int, outside: Outside) -> Tensor:
    last = n - 1
    if outside == "constant" or n == 1:
        return i.clamp(0, last)
    return last - (i.remainder(2 * last) - last).abs()


def linear(f: Tensor) -> list[tuple[int, Tensor]]:
    """Return the steps to the nodes around, and their weights."""
    return [(0, 1 - f), (1, f)]


def catmull_rom(f: Tensor) -> list[tuple[int, Tensor]]:
    """Return the steps and weights of Catmull and Rom (1974), of tension 1/2."""
    g = 1 - f
    return [
        (-1, -0.5 * f * g * g),
        (0, 1 + f * f * (1.5 * f - 2.5)),
        (1, 1 + g * g * (1.5 * g - 2.5)),
        (2, -0.5 * g * f * f),
    ]


def packed(M: Tensor, omega: Tensor | None) -> list[Tensor]:
    d = M.shape[-1]
    # The mean of both halves, so that the gradient in M is symmetric as M is.
    entries = [(M[..., i, j] + M[..., j, i]) / 2 for i in range(d) for j in range(i, d)]
    entries += [] if omega is None else [omega[..., i] for i in range(d)]
    return [e.flatten().contiguous() for e in entries]


def unpacked(entries: list[Tensor], d: int) -> tuple[Tensor, Tensor]:
    upper = {ij: n for n, ij in enumerate(itertools.combinations_with_replacement(range(d), 2))}
    rows = [entries[upper[min(i, j), max(i, j)]] for i in range(d) for j in range(d)]
    M = torch.stack(rows, dim=-1).unflatten(-1, (d, d))
    omega = entries[len(upper) :]
    return M, torch.stack(omega, dim=-1) if omega else torch.zeros_like(M[..., 0])
