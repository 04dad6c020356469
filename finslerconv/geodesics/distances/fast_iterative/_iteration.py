"""The two iterations: values that only fall, and those of the factored scheme."""

import math
import sys
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv.geodesics.distances._seeding import Start
from finslerconv.geodesics.distances.fast_iterative._factored import Ends, factored_values
from finslerconv.geodesics.distances.fast_iterative._numbers import (
    MetricAt,
    compress,
    expand,
    first_number,
    unique,
)
from finslerconv.geodesics.distances.fast_iterative._updates import (
    Updates,
    sector,
    value_of,
    weights_of,
)

# Where values depend on lower ones only, a pass takes the pending nodes of a problem up to this
# fraction of the way from the least of their values to the mean. With 1 there are fewer passes, but
# twice the repeated updates. (Elsewhere a pass takes all of them: the lowest ones would be lowered
# over and over before the others move.)
_BAND = 0.5

# Nodes that one pass takes at most, which bounds its memory: about 3 KiB for each.
_PASS = 200_000


class Fronts(NamedTuple):
    """The state of all problems in one row of numbers, changed in place."""

    trial: Float[Tensor, "all"]
    """The least value that an update, or a seed, gave."""
    value: Float[Tensor, "all"]
    """What neighbours read: the same, or computed again with source factorisation."""
    update: Int[Tensor, "all"]
    """The update that gave the trial value; -1 at seeds and where nothing arrived."""
    label: Int[Tensor, "all"]
    """The source whose front arrived, counted over all problems; -1 where none did."""
    weight: Float[Tensor, "all k"]
    """How much of each neighbour is in the trial value (kept where values are factored)."""


def iterate(
    updates: Updates,
    fronts: Fronts,
    stride: int,
    radius: float,
    tolerance: float,
    max_iterations: int,
) -> None:
    """Lower the values to the fixed point."""
    value = fronts.value
    ticket = torch.empty(value.shape, dtype=torch.int64, device=value.device)
    pending = _Pending(value)
    for _ in range(max_iterations):
        if len(pending.nodes) == 0:
            return
        taken = pending.take(value if updates.causal else None, stride, _PASS)
        # All updates that read a node taken, of those nodes that it may still lower.
        source, update, base, node = _dependents(updates, taken, stride)
        if updates.causal:
            reached = value.index_select(0, taken).index_select(0, source)
            may = value.index_select(0, node) > reached
        else:
            may = unique(node, ticket)
        update, base, node = compress(may, update, base, node)

        neighbour = updates.neighbour.index_select(0, update) + base[:, None]
        read = value.index_select(0, neighbour.flatten()).reshape(neighbour.shape)
        candidate = value_of(read, updates.table.index_select(0, update))
        lower = candidate + tolerance * candidate.abs() < value.index_select(0, node)
        update, node, candidate = compress(lower, update, node, candidate)
        value.scatter_reduce_(0, node, candidate, "amin")
        best = candidate == value.index_select(0, node)
        best &= unique(node, ticket, best)
        update, node, candidate = compress(best, update, node, candidate)
        fronts.update[node] = update
        pending.put(node, candidate <= radius)
    raise _not_settled(max_iterations, pending, tolerance)


def iterate_factored(
    updates: Updates,
    fronts: Fronts,
    sources: Start,
    stride: int,
    radius: float,
    tolerance: float,
    max_iterations: int,
) -> None:
    """Find the fixed point of the factored scheme.

    A better value may be above the trial value that it replaces, so that values also rise. A node
    is therefore computed anew from all its sectors whenever one of its neighbours changed. Fast
    marching reads only nodes accepted before. ``time`` is the value in its queue at which it would
    accept a node: for candidates ``c`` whose ends are accepted by ``K`` it is the least
    ``max(c, K)``, and the trial value is the least ``c`` among those with ``K <= time``.
    """
    value, device = fronts.value, fronts.value.device
    seeded, seed_label = value.clone(), fronts.label.clone()
    time, told = value.clone(), torch.full_like(value, math.inf)
    ticket = torch.empty(value.shape, dtype=torch.int64, device=device)
    pending = _Pending(value)
    # The updates of a node are neighbours in the list.
    numbers = torch.arange(len(updates.M) + 1, device=device)
    rows = torch.searchsorted(updates.node.contiguous(), numbers)
    for _ in range(max_iterations):
        if len(pending.nodes) == 0:
            return
        taken = pending.take(time, stride)
        source, _, _, node = _dependents(updates, taken, stride)
        since = torch.minimum(time, told).index_select(0, taken).index_select(0, source)
        told[taken] = time[taken]
        may = time.index_select(0, node) > since
        may &= unique(node, ticket, may)
        (node,) = compress(may, node)
        old, old_time = value.index_select(0, node), time.index_select(0, node)

        # All candidates: each sector, and its first end alone.
        source, update = expand(rows, None, node, stride, updates.shared)
        base = first_number(node, stride, updates.shared)[source]
        neighbour = updates.neighbour.index_select(0, update) + base[:, None]
        read, ready = value[neighbour], time[neighbour]
        table = updates.table.index_select(0, update)
        first = read.clone()
        first[:, 1] = math.inf
        inner, weight = sector(read, table)
        inner = inner.masked_fill(~(weight > 0).all(1), math.inf)
        candidate = torch.cat((inner, sector(first, table)[0]))
        needs = torch.cat((ready.amax(1), ready[:, 0]))
        owner = source.repeat(2)
        here = seeded.index_select(0, node)
        accepted = here.clone().scatter_reduce_(0, owner, candidate.maximum(needs), "amin")
        usable = candidate.masked_fill(needs > accepted[owner], math.inf)
        trial = here.clone().scatter_reduce_(0, owner, usable, "amin")
        best = (usable == trial[owner]) & (usable < here[owner])
        best &= unique(owner, ticket, best)
        (chosen,) = compress(best, torch.arange(len(owner), device=device))

        fronts.trial[node], fronts.value[node] = trial, here
        # Neighbours that are computed in the same pass still read the label of before.
        (kept,) = compress(trial >= here, node)
        fronts.update[kept], fronts.label[kept] = -1, seed_label[kept]
        which = chosen % len(update)
        read = torch.where((chosen < len(update))[:, None], read[which], first[which])
        at = owner[chosen]
        _settle(
            updates, fronts, sources, update[which], node[at], trial[at], read, neighbour[which]
        )
        time[node] = accepted
        now = value.index_select(0, node)
        changed = (now - old).abs() > tolerance * now.abs()
        changed |= (accepted - old_time).abs() > tolerance * now.abs()
        pending.put(node, changed & (accepted.minimum(now) <= radius))
    raise _not_settled(max_iterations, pending, tolerance)


def _settle(
    updates: Updates,
    fronts: Fronts,
    sources: Start,
    update: Int[Tensor, "n"],
    node: Int[Tensor, "n"],
    trial: Float[Tensor, "n"],
    read: Float[Tensor, "n k"],
    neighbour: Int[Tensor, "n k"],
) -> None:
    """Write down the updates of nodes, the labels and the better values."""
    weight = weights_of(read, updates.table.index_select(0, update))
    arrival = torch.where(weight > 0, read, math.inf).argmin(1, keepdim=True)
    label = fronts.label.index_select(0, neighbour.gather(1, arrival)[:, 0])
    fronts.label[node] = label
    fronts.update[node] = update
    fronts.weight[node] = weight
    at = updates.node.index_select(0, update)
    metric = MetricAt(updates.M.index_select(0, at), updates.omega.index_select(0, at))
    offset = updates.offset.index_select(0, update)
    ends = Ends.between(offset, metric, sources, label, updates.place.index_select(0, at), True)
    fronts.value[node] = factored_values(ends, read, weight, trial).value


class _Pending:
    """The nodes whose values have changed since their dependents were updated."""

    def __init__(self, value: Float[Tensor, "all"]) -> None:
        self._queued = value < math.inf
        self.nodes = self._queued.nonzero()[:, 0]

    def take(
        self, order: Float[Tensor, "all"] | None, stride: int, limit: int = sys.maxsize
    ) -> Int[Tensor, "taken"]:
        """Return the next nodes: those low in the ``order``, or all."""
        taken, rest = self.nodes, self.nodes[:0]
        if order is not None:
            taken, rest = _lower_ones(order, taken, stride)
        self.nodes = torch.cat((rest, taken[limit:]))
        taken = taken[:limit]
        self._queued[taken] = False
        return taken

    def put(self, node: Int[Tensor, "n"], changed: Bool[Tensor, "n"]) -> None:
        (fresh,) = compress(changed & ~self._queued.index_select(0, node), node)
        self._queued[fresh] = True
        self.nodes = torch.cat((self.nodes, fresh))


def _dependents(
    updates: Updates, taken: Int[Tensor, "taken"], stride: int
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Return the readings of nodes: the place in ``taken``, the update, its base and its node."""
    source, update = expand(updates.start, updates.dependent, taken, stride, updates.shared)
    base = first_number(taken, stride, updates.shared).index_select(0, source)
    return source, update, base, updates.node.index_select(0, update) + base


def _lower_ones(
    value: Float[Tensor, "all"], pending: Int[Tensor, "pending"], stride: int
) -> tuple[Int[Tensor, "taken"], Int[Tensor, "left"]]:
    """Return the pending nodes in the lower band of their problem's values, and the others."""
    values, problem = value.index_select(0, pending), pending // stride
    least = values.new_full((len(value) // stride,), math.inf)
    least.scatter_reduce_(0, problem, values, "amin")
    mean = torch.zeros_like(least)
    mean.scatter_reduce_(0, problem, values, "mean", include_self=False)
    # Rounding may put the mean of equal values below them.
    bound = torch.lerp(least, mean, _BAND).maximum(least)
    now = values <= bound.index_select(0, problem)
    return pending[now], pending[~now]


def _not_settled(max_iterations: int, pending: _Pending, tolerance: float) -> RuntimeError:
    return RuntimeError(
        f"max_iterations: the distances have not settled after {max_iterations} passes, "
        f"{len(pending.nodes)} nodes are pending; allow more, or a larger tolerance than "
        f"{tolerance:g}"
    )
