"""How values on a grid are read between its nodes and beyond them, by PyTorch and compiled.

Coordinates are indices of nodes. Each rule stands here twice, for tensors (differentiable) and for
compiled kernels:

=======================================================  ===========================
tensors                                                  compiled
=======================================================  ===========================
:func:`cell_along` and :func:`slope_factor` of an axis   :func:`locate`
:func:`interpolate`, :func:`nodes_around`                :func:`cell`, :func:`corner`
=======================================================  ===========================
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finslerconv._compiled import inlined, jit
from finslerconv._lanes import absolute, floor, maximum, minimum, spread, where

Interpolation = Literal["linear", "cubic"]
"""How a field is read between the nodes: multilinear, or by Catmull-Rom's cubic (C1)."""

Outside = Literal["constant", "reflect"]
"""How a field goes on beyond the outermost nodes: held constant, or mirrored at them."""

# Coordinates beyond this are outside every grid; integers hold it exactly.
_FAR = 2.0**30


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
        node, f = cell_along(t[..., axis].contiguous(), n, outside)
        stride = math.prod(shape[axis + 1 :])
        axes.append(
            [
                (_continued_index(node + step, n, outside) * stride, weight)
                for step, weight in kernel(f)
            ]
        )
    for (node, weight), *others in itertools.product(*axes):
        for more, factor in others:
            node, weight = node + more, weight * factor
        yield node, weight


def cell_along(
    t: Float[Tensor, "*batch"], n: int, outside: Outside
) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return the first of the two nodes around coordinates along an axis, and the place between."""
    last = n - 1.0
    if outside == "constant" or n == 1:
        s = t.clamp(0.0, last)
    else:
        folded = t.remainder(2 * last)
        s = torch.where(folded > last, 2 * last - folded, folded)
    first = s.detach().floor().clamp(0, max(n - 2, 0))
    return first.long(), s - first


def slope_factor(t: Float[Tensor, "*batch"], n: int, outside: Outside) -> Float[Tensor, "*batch"]:
    """Return what interpolated slopes are multiplied by: 1 inside.

    Outside it changes over one node to 0 or -1, its value there, so that a ray along the edge does
    not depend on a rounding error.
    """
    last = n - 1.0
    if n == 1:
        return torch.zeros_like(t)
    beyond = torch.maximum(-t, t - last)
    if outside == "constant":
        return (1 - beyond).clamp(0.0, 1.0)
    far = 1.0 - 2.0 * (t.remainder(2 * last) > last).to(t.dtype)
    return torch.where(beyond > last, far, (1 - 2 * beyond).clamp(-1.0, 1.0))


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


@inlined
@no_type_check
def locate(c, n, reflect):
    """Return :func:`cell_along` and :func:`slope_factor` for coordinates, with derivatives.

    Coordinates, and all that is returned, are lanes (:mod:`finslerconv._lanes`).

    Returns
    -------
    first, place, turn, factor, factor_slope
        ``turn`` is the derivative of the place in ``c``, ``factor_slope`` that of the factor.
    """
    if n == 1:
        zero = spread(0.0, c)
        return zero, zero, zero, zero, zero
    last = n - 1.0
    one = spread(1.0, c)
    steep = 2.0 * one if reflect else one
    beyond = maximum(-c, c - last)
    outside = beyond > 0.0
    factor = where(outside, maximum(1.0 - steep * beyond, 1.0 - steep), 1.0)
    factor_slope = where(outside & (beyond < 1.0), where(c < 0.0, steep, -steep), 0.0)
    turn = where(outside, 0.0, one)
    inside = where(c > 0.0, minimum(c, last), 0.0)  # 0 for NaN
    if reflect:
        folds = outside & (absolute(c) < _FAR)
        folded = c - 2.0 * last * floor(c / (2.0 * last))
        side = where(folded > last, -one, one)
        inside = where(folds, where(folded > last, 2.0 * last - folded, folded), inside)
        turn = where(folds, side, turn)
        far = folds & (beyond > last)
        factor = where(far, side, factor)
        factor_slope = where(far, 0.0, factor_slope)
    first = minimum(floor(inside), n - 2.0)
    return first, inside - first, turn, factor, factor_slope


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


def upper_entries(
    M: Float[Tensor, "*batch d d"], omega: Float[Tensor, "*batch d"] | None
) -> list[Float[Tensor, "*batch"]]:
    """Return the upper triangle of ``M`` row by row, then ``omega``, if there is one."""
    d = M.shape[-1]
    # The mean of both halves, so that the gradient in M is symmetric as M is.
    entries = [(M[..., i, j] + M[..., j, i]) / 2 for i in range(d) for j in range(i, d)]
    return entries + ([] if omega is None else [omega[..., i] for i in range(d)])


def packed(M: Tensor, omega: Tensor | None) -> list[Tensor]:
    """Return the entries of a field as :func:`interpolate` takes them, each of shape (nodes,)."""
    return [e.flatten().contiguous() for e in upper_entries(M, omega)]


def unpacked(entries: list[Tensor], d: int) -> tuple[Tensor, Tensor]:
    """Return ``(M, omega)`` of the entries; ``omega`` is 0 where there is none."""
    upper = {ij: n for n, ij in enumerate(itertools.combinations_with_replacement(range(d), 2))}
    rows = [entries[upper[min(i, j), max(i, j)]] for i in range(d) for j in range(d)]
    M = torch.stack(rows, dim=-1).unflatten(-1, (d, d))
    omega = entries[len(upper) :]
    return M, torch.stack(omega, dim=-1) if omega else torch.zeros_like(M[..., 0])
