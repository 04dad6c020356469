"""Distances on a grid by an iteration that is parallel over nodes, problems and images.

The discretisation is fast marching's of first order; only the order of the updates differs. All
values start at infinity and only fall. A node whose value fell is *pending*; a pass takes pending
nodes and redoes the updates that read them (of the sectors that they span, in 2-D). Where no node
is pending, no update lowers any value: that is the fixed point, and the one that the priority queue
of fast marching finds.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finslerconv._arrays import as_integer, is_number
from finslerconv.geodesics._derivatives import first_only
from finslerconv.geodesics.distances._method import DistanceMethod, EikonalProblem, Front
from finslerconv.geodesics.distances._seeding import Start, chord_norm, seed_nodes
from finslerconv.geodesics.distances.fast_iterative._factored import Ends, factored_values
from finslerconv.geodesics.distances.fast_iterative._iteration import (
    Fronts,
    iterate,
    iterate_factored,
)
from finslerconv.geodesics.distances.fast_iterative._numbers import (
    MetricAt,
    compress,
    first_number,
    unique,
)
from finslerconv.geodesics.distances.fast_iterative._updates import (
    Updates,
    updates_of,
    upwind_terms,
    weights_of,
)

# Nodes of all problems together that are iterated at once: on a CPU no more than its cache holds.
_CPU_GROUP, _GROUP = 600_000, 8_000_000


@dataclass(frozen=True)
class FastIterative(DistanceMethod):
    """The scheme of fast marching of first order, iterated over all problems at once.

    The same result, in operations on tensors that any device has; only stencils are made on the
    CPU, in float64. On a CPU fast marching is the quicker one: for 64 sources on 256 x
    256 nodes, on one core, 2.4 s against 17 s without and 68 s with factorisation.

    In 2-D the cone around a lone source is taken out of the differences unless ``factorise`` is
    False. An update counts that lowers a value by more than the fraction ``tolerance`` of it; with
    0 the result is the fixed point to the last digit. ``max_iterations`` passes are allowed, by
    default four for each node of the grid and a thousand.

    The list of nodes that changed is that of W.-K. Jeong, R. Whitaker, "A fast iterative method for
    eikonal equations" (2008); here it is one over all problems, taken by bands of value.
    """

    factorise: bool | None = None
    tolerance: float = 0.0
    max_iterations: int | None = None

    any_device = True

    def __post_init__(self) -> None:
        if not isinstance(self.factorise, bool | None):
            raise TypeError(f"factorise: expected True, False or None, got {self.factorise!r}")
        if not (is_number(self.tolerance) and 0 <= self.tolerance < 1):
            raise ValueError(f"tolerance: expected a fraction, at least 0, got {self.tolerance!r}")
        object.__setattr__(self, "tolerance", float(self.tolerance))
        if self.max_iterations is not None:
            limit = as_integer("max_iterations", self.max_iterations)
            object.__setattr__(self, "max_iterations", limit)

    def solve(self, problem: EikonalProblem) -> Front:
        """Return the front, differentiable in the metric and the seeds by the implicit adjoint."""
        if self.factorise and problem.dim != 2:
            raise ValueError(
                "factorise: 'fast_iterative' takes the cone around a source out in the plane only; "
                "leave the option away, or use 'fast_marching'"
            )
        updates = updates_of(problem) if problem.shared else None
        limit = _CPU_GROUP if problem.M.device.type == "cpu" else _GROUP
        step = max(1, limit // math.prod(problem.grid))
        groups = [problem[p : p + step] for p in range(0, len(problem.seeds), step)]
        fronts = [self._solve(group, updates or updates_of(group)) for group in groups]
        return Front(*(torch.cat(x) for x in zip(*fronts, strict=True)))

    def _solve(self, problem: EikonalProblem, updates: Updates) -> Front:
        """Return the front of problems that are iterated together."""
        M, d, grid = problem.M, problem.dim, problem.grid
        problems, stride = len(problem.seeds), math.prod(grid) + 1
        starts = [seed_nodes(problem[p : p + 1]) for p in range(problems)]
        sources = _join(starts, stride).to(M)
        factored = self.factorise is not False and d == 2 and bool(sources.alone.any())
        total = problems * stride
        ticket = torch.empty(total, dtype=torch.int64, device=M.device)
        fronts = Fronts(
            M.new_full((total,), math.inf),
            M.new_full((total,), math.inf),
            torch.full((total,), -1, device=M.device),
            torch.full((total,), -1, device=M.device),
            M.new_zeros((total if factored else 0, 2)),
        )
        start = sources.value.detach()
        fronts.trial.scatter_reduce_(0, sources.node, start, "amin")
        least = start == fronts.trial[sources.node]
        least &= unique(sources.node, ticket, least)
        node, label = compress(least, sources.node, sources.label)
        fronts.value[node], fronts.label[node] = start[least], label
        passes = self.max_iterations or 4 * (stride - 1) + 1000
        limits = (stride, problem.radius, self.tolerance, passes)
        with torch.no_grad():
            if factored:
                iterate_factored(updates, fronts, sources.detach(), *limits)
            else:
                iterate(updates, fronts, *limits)
                _follow_labels(updates, fronts, stride)
        beyond = fronts.value > problem.radius
        fronts.value[beyond], fronts.label[beyond] = math.inf, -1
        distance, flow = _linearised(
            problem, updates, sources, fronts, node, label, sources.value[least], factored
        )

        # Sources are counted over all problems.
        counts = torch.tensor([len(start.position) for start in starts], device=M.device)
        firsts = (counts.cumsum(0) - counts).repeat_interleave(stride)
        label = torch.where(fronts.label >= 0, fronts.label - firsts, -1)

        def on_grid(x: Tensor) -> Tensor:
            rest = x.shape[1:]
            return x.reshape(problems, stride, *rest)[:, :-1].reshape(problems, *grid, *rest)

        return Front(on_grid(distance), on_grid(label), on_grid(flow))


def _linearised(
    problem: EikonalProblem,
    updates: Updates,
    sources: Start,
    fronts: Fronts,
    node: Int[Tensor, "n"],
    label: Int[Tensor, "n"],
    value: Float[Tensor, "n"],
    factored: bool,
) -> tuple[Float[Tensor, "all"], Float[Tensor, "all d"]]:
    """Return the fixed point as a function of the metric and the sources, and the velocities.

    ``node``, ``label`` and ``value`` are those of the nodes that were seeded.
    """
    M, omega, d = problem.M, problem.omega, problem.dim
    total, stride = len(fronts.value), math.prod(problem.grid) + 1
    reached = fronts.value.isfinite()
    arrived = ((fronts.update >= 0) & reached).nonzero()[:, 0]
    update, came = fronts.update[arrived], fronts.label[arrived]
    base = first_number(arrived, stride, updates.shared)
    neighbour = updates.neighbour[update] + base[:, None]
    at = MetricAt.of(M, omega, arrived, stride)
    read = fronts.value[neighbour]
    offset, table = updates.offset[update], updates.table[update]
    weight = fronts.weight[arrived] if factored else weights_of(read, table)
    if d == 2:
        position = updates.place[arrived - base]
        ends = Ends.between(offset, at, sources, came, position, factored)
        trial = (fronts.trial if factored else fronts.value)[arrived]
        linear = factored_values(ends, read, weight, trial)
        weight, local, move = linear.weight, linear.local, linear.velocity
    else:
        local, move = upwind_terms(offset, at, fronts.value[arrived], read, weight)

    parent = torch.zeros((total, weight.shape[1]), dtype=torch.int64, device=M.device)
    weights = M.new_zeros((total, weight.shape[1])).detach()
    parent[arrived], weights[arrived] = neighbour, weight.detach()
    seeded = (fronts.update[node] < 0) & reached[node]
    node, label, value = node[seeded], label[seeded], value[seeded]
    terms = M.new_zeros(total).index_put((arrived,), local).index_put((node,), value)
    distance: Tensor = _Dependence.apply(terms, fronts.value, parent, weights)  # type: ignore[no-untyped-call]

    flow = M.new_zeros((total, d)).detach()
    with torch.no_grad():
        flow[arrived] = move / chord_norm(at.M, at.omega, move)[:, None]
        away = updates.place[node % stride if updates.shared else node] - sources.position[label]
        here = MetricAt.of(M, omega, node, stride)
        length = chord_norm(here.M, here.omega, away)[:, None]
        flow[node] = torch.where(length > 0, away / length.clamp(min=1e-30), 0.0)
    return distance, flow


def _follow_labels(updates: Updates, fronts: Fronts, stride: int) -> None:
    """Give every node the label of the node that its value comes from, the lowest that it reads."""
    root = torch.arange(len(fronts.value), device=fronts.value.device)
    arrived = (fronts.update >= 0).nonzero()[:, 0]
    update = fronts.update[arrived]
    neighbour = updates.neighbour[update]
    neighbour = neighbour + first_number(arrived, stride, updates.shared)[:, None]
    read = fronts.value[neighbour]
    weight = weights_of(read, updates.table[update])
    read = torch.where(weight > 0, read, math.inf)
    root[arrived] = neighbour.gather(1, read.argmin(1, keepdim=True))[:, 0]
    # Every round doubles the steps; more of them than there are nodes lead no further.
    for _ in range(len(root).bit_length()):
        further = root[root]
        if torch.equal(further, root):
            break
        root = further
    fronts.label.copy_(fronts.label[root])


class _Dependence(torch.autograd.Function):
    """The values of all nodes as a function of the updates' own terms, by the implicit adjoint.

    ``u(x) = local(x) + sum over k of weight(x, k) u(parent(x, k))``: the linearised fixed point.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, value: Tensor, parent: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(local, parent, weight)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        local, parent, weight = ctx.saved_tensors
        gradient = _transposed_solve(grad.detach(), parent, weight)
        return *first_only((gradient,), (grad, local)), None, None, None


def _transposed_solve(
    grad: Float[Tensor, "all"], parent: Int[Tensor, "all k"], weight: Float[Tensor, "all k"]
) -> Float[Tensor, "all"]:
    """Return v with ``v(y) = grad(y) + sum of weight(x, k) v(x)`` over all k, x of parent y.

    A node is done when all that depend on it are: every pass finishes a whole layer. Nodes on a
    cycle (3-D Randers metrics, now and then) are left. For those the series is summed: the weights
    of a node add up to 1, and every chain leads to a seed.
    """
    v = grad.clone()
    waiting = torch.zeros(v.shape, dtype=torch.int32, device=v.device)
    links = weight != 0
    one = torch.ones((), dtype=torch.int32, device=v.device)
    waiting.index_put_((parent[links],), one, accumulate=True)
    ticket = torch.empty(v.shape, dtype=torch.int64, device=v.device)
    done = torch.zeros(v.shape, dtype=torch.bool, device=v.device)
    ready = (waiting == 0).nonzero()[:, 0]
    while len(ready) > 0:
        done[ready] = True
        linked = links[ready]
        target = parent[ready][linked]
        v.index_put_((target,), (weight[ready] * v[ready, None])[linked], accumulate=True)
        waiting.index_put_((target,), -one, accumulate=True)
        target = target[waiting[target] == 0]
        ready = target[unique(target, ticket)]
    rest = (~done).nonzero()[:, 0]
    if len(rest) > 0:
        part = torch.zeros_like(v)
        part[rest] = v[rest]
        small = torch.finfo(v.dtype).eps * float(part.abs().max())
        while float(part.abs().max()) > small:
            pushed = (weight[rest] * part[rest, None])[links[rest]]
            part = torch.zeros_like(v).index_put_(
                (parent[rest][links[rest]],), pushed, accumulate=True
            )
            v += part
    return v


def _join(starts: list[Start], stride: int) -> Start:
    """Return the starts of all problems in one: nodes by number, sources counted over all."""
    counts = [0, *itertools.accumulate(len(start.position) for start in starts)]
    nodes = [start.node + p * stride for p, start in enumerate(starts)]
    labels = [start.label + n for start, n in zip(starts, counts, strict=False)]
    rest = zip(*((s.value, s.position, s.M, s.omega, s.alone) for s in starts), strict=True)
    return Start(torch.cat(nodes), torch.cat(labels), *(torch.cat(x) for x in rest))
