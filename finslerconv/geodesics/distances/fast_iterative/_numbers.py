"""The numbering of the nodes of many problems in one row."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def first_number(node: Int[Tensor, "n"], stride: int, shared: bool) -> Int[Tensor, "n"]:
    """Return what to subtract from nodes to have their number in the updates."""
    return node // stride * stride if shared else torch.zeros_like(node)


def expand(
    start: Int[Tensor, "numbers"],
    entries: Int[Tensor, "entries"] | None,
    node: Int[Tensor, "n"],
    stride: int,
    shared: bool,
) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
    """Return the entries ``start[x]`` to ``start[x + 1]`` of all nodes x, and whose each is."""
    number = node - first_number(node, stride, shared)
    first = start.index_select(0, number)
    counts = start.index_select(0, number + 1) - first
    source = torch.repeat_interleave(counts)
    shift = (first - counts.cumsum(0) + counts).index_select(0, source)
    place = shift + torch.arange(len(source), device=node.device)
    return source, place if entries is None else entries.index_select(0, place)


def compress(which: Bool[Tensor, "n"], *rows: Tensor) -> tuple[Tensor, ...]:
    """Return the chosen entries of each tensor (faster than indexing each by the booleans)."""
    index = which.nonzero()[:, 0]
    return tuple(x.index_select(0, index) for x in rows)


def unique(
    node: Int[Tensor, "n"],
    ticket: Int[Tensor, "all"],
    among: Bool[Tensor, "n"] | None = None,
) -> Bool[Tensor, "n"]:
    """Return a choice of entries (of those ``among``) that has each node once."""
    number = torch.arange(len(node), device=node.device)
    if among is None:
        ticket[node] = number
    else:
        some, chosen = compress(among, node, number)
        ticket[some] = chosen
    return ticket.index_select(0, node) == number


class MetricAt(NamedTuple):
    """The metric at some numbers, differentiable."""

    M: Float[Tensor, "n d d"]
    omega: Float[Tensor, "n d"]

    @classmethod
    def of(cls, M: Tensor, omega: Tensor, number: Tensor, stride: int) -> "MetricAt":
        """Return that of the fields ``M`` (P or 1, *grid, d, d) and ``omega``."""
        d, size = M.shape[-1], stride - 1
        problem, place = number // stride, number % stride
        index = [place + (problem * size if len(x) > 1 else 0) for x in (M, omega)]
        return cls(M.reshape(-1, d, d)[index[0]], omega.reshape(-1, d)[index[1]])
