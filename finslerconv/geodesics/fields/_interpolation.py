"""How values on a grid are read between its nodes and beyond them, by PyTorch and compiled.

Coordinates are indices of nodes. :func:`interpolate` is for tensors and differentiable;
:func:`cell` and :func:`corner` are the same linear rule for compiled kernels.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finslerconv._compiled import jit

Interpolation = Literal["linear", "cubic"]
"""How a field is read between the nodes: multilinear, or by Catmull-Rom's cubic (C1)."""

Outside = Literal["constant", "reflect"]
"""How a field goes on beyond the outermost nodes: held constant, or mirrored at them."""


def interpolate(
    values: Sequence[Float[Tensor, "..."]],
    t: Float[Tensor, "*batch d"],
    shape: tuple[int, ...],
    interpolation: Interpolation = "linear",
    outside: Outside = "constant",
    first: Int[Tensor, "..."] | int = 0,
) -> list[Tensor]:
    """Return values of nodes, each of shape (nodes, ...), at the coordinates ``t`` in nodes.

    Several grids stand one after the other; ``first`` is the number of the first node of the grid
    that each of ``t`` is in. Values of shape (nodes,) are gathered three times as fast as short
    rows, and their gradients ten times.
    """
    found: list[Tensor] = []
    for node, weight in nodes_around(t, shape, interpolation, outside):
        row = node + first
        flat = row.flatten()
        parts = []
        for x in values:
            entries = x.index_select(0, flat).reshape(row.shape + x.shape[1:])
            parts.append(weight.reshape(weight.shape + (1,) * (x.ndim - 1)) * entries)
        found = [a + b for a, b in zip(found, parts, strict=True)] if found else parts
    return found


def nodes_around(
    t: Float[Tensor, "*batch d"],
    shape: tuple[int, ...],
    interpolation: Interpolation = "linear",
    outside: Outside = "constant",
) -> Iterator[tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]]:
    """Yield the nodes that coordinates are interpolated from, by row-major number, with weights."""
    kernel = _linear if interpolation == "linear" else _catmull_rom
    axes = []
    for axis, n in enumerate(shape):
        s = _continued(t[..., axis].contiguous(), n, outside)
        floor = s.detach().floor().clamp(0, max(n - 2, 0))
        node = floor.long()
        stride = math.prod(shape[axis + 1 :])
        axes.append(
            [
                (_continued_index(node + step, n, outside) * stride, weight)
                for step, weight in kernel(s - floor)
            ]
        )
    for (node, weight), *others in itertools.product(*axes):
        for more, factor in others:
            node, weight = node + more, weight * factor
        yield node, weight


def _continued(t: Tensor, n: int, outside: Outside) -> Tensor:
    """Return the coordinates ``t`` brought into [0, n - 1]."""
    last = n - 1.0
    if outside == "constant" or n == 1:
        return t.clamp(0.0, last)
    return last - (t.remainder(2 * last) - last).abs()


def _continued_index(i: Tensor, n: int, outside: Outside) -> Tensor:
    last = n - 1
    if outside == "constant" or n == 1:
        return i.clamp(0, last)
    return last - (i.remainder(2 * last) - last).abs()


def _linear(f: Tensor) -> list[tuple[int, Tensor]]:
    """Return the steps to the nodes around, and their weights."""
    return [(0, 1 - f), (1, f)]


def _catmull_rom(f: Tensor) -> list[tuple[int, Tensor]]:
    """Return the steps and weights of Catmull and Rom (1974), of tension 1/2."""
    g = 1 - f
    return [
        (-1, -0.5 * f * g * g),
        (0, 1 + f * f * (1.5 * f - 2.5)),
        (1, 1 + g * g * (1.5 * g - 2.5)),
        (2, -0.5 * g * f * f),
    ]


@jit
@no_type_check
def cell(x, shape):
    """Return the cell of a point inside a grid: its first node, and the place in it, as 6 numbers.

    Points have three coordinates; a plane is a space of one layer.
    """
    i = min(max(int(x[0]), 0), max(shape[0] - 2, 0))
    j = min(max(int(x[1]), 0), max(shape[1] - 2, 0))
    k = min(max(int(x[2]), 0), max(shape[2] - 2, 0))
    return i, j, k, x[0] - i, x[1] - j, x[2] - k


@jit
@no_type_check
def corner(at, shape, number):
    """Return one of the eight nodes around a place ``at`` of :func:`cell`, and its weight.

    The bits of ``number`` tell the end along each axis. Nodes outside the grid have weight 0.
    """
    i, j, k, f, g, h = at
    p, q, r = number & 1, number >> 1 & 1, number >> 2
    weight = (f if p else 1.0 - f) * (g if q else 1.0 - g) * (h if r else 1.0 - h)
    return ((i + p) * shape[1] + j + q) * shape[2] + k + r, weight


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
