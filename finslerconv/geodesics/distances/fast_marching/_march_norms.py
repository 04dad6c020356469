"""Fast marching in the plane for norms of any family, as one differentiable operation.

The march and the walk back are compiled. The walk back gives the gradient in the value of every
node. A value is a sum of norms at places that are held fixed (envelope theorem), so PyTorch has the
rest: the gradient in the norms' parameters, by the norms' own operations.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finslerconv._memory import array_of
from finslerconv.geodesics._derivatives import first_only
from finslerconv.geodesics.distances._heap import ACCEPTED
from finslerconv.geodesics.distances._method import FinslerProblem, Front
from finslerconv.geodesics.distances._norms import Family
from finslerconv.geodesics.distances._seeding import NormStart, seed_norms
from finslerconv.geodesics.distances._stencils import norm_stencils
from finslerconv.geodesics.distances.fast_marching import _general as general
from finslerconv.geodesics.distances.fast_marching._nodes import March, Queue, entries
from finslerconv.geodesics.distances.fast_marching._plane import (
    FACTORED,
    SECOND_A,
    SECOND_B,
    SECTOR,
    begin,
    dependents,
)


def march_norms(problem: FinslerProblem, order: int, factorise: bool) -> Front:
    """Return the front of all problems, differentiable in the parameters and the seeds."""
    starts = [seed_norms(problem[p : p + 1]) for p in range(len(problem.seeds))]
    if not factorise:
        starts = [start._replace(alone=torch.zeros_like(start.alone)) for start in starts]
    floats = [x for start in starts for x in (start.value, start.position, start.rows)]
    march: Any = _March.apply
    return Front(*march(problem, starts, order, problem.rows, *floats))


class _March(torch.autograd.Function):
    """The march as one operation; its backward pass is the walk back."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: FinslerProblem,
        starts: list[NormStart],
        order: int,
        rows: Tensor,
        *floats: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grid, problems = problem.grid, len(starts)
        nodes = math.prod(grid)
        keep = any(ctx.needs_input_grad)
        distance = torch.empty((problems, *grid), dtype=torch.float64)
        label = torch.empty((problems, *grid), dtype=torch.int64)
        flow = torch.empty((problems, *grid, 2), dtype=torch.float64)

        def ready(p: int) -> general.Field:
            return _field(problem[p : p + 1])

        shared = ready(0) if problem.shared else None
        marches = March(nodes, problems)

        def solve(p: int) -> "_Walk | None":
            u, velocity = array_of(distance[p].view(-1)), array_of(flow[p].view(nodes, 2))
            field = shared or ready(p)
            walk = _march(field, problem, p, starts[p], order, marches, u, velocity)
            beyond = ~((u <= problem.radius) & (u < np.inf))
            u[beyond], walk.label[beyond], velocity[beyond] = np.inf, -1, 0.0
            label[p].view(-1).copy_(torch.from_numpy(walk.label))
            return walk if keep else None

        ctx.walks = marches.run(solve)
        ctx.family, ctx.starts = problem.family, starts
        ctx.save_for_backward(distance, rows, *floats)
        ctx.mark_non_differentiable(label, flow)
        return distance, label, flow

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        distance, *inputs = ctx.saved_tensors
        rows, floats = inputs[0], inputs[1:]
        g_rows = torch.zeros_like(rows)
        flat = g_rows.view(len(rows), -1, rows.shape[-1])
        others: list[Tensor] = []
        for p, walk in enumerate(ctx.walks):
            # Infinite distances depend on nothing.
            g_u = array_of(gradient[p].where(distance[p].isfinite(), 0.0).reshape(-1)).copy()
            g_seed = walk.back(g_u, len(ctx.starts[p].node))
            f = p if len(rows) > 1 else 0
            _, position, own = floats[3 * p : 3 * p + 3]
            taken = (rows[f].flatten(0, -2), own, position)
            node, (g_here, g_own, g_position) = walk.pull(ctx.family, g_u, *taken)
            flat[f].index_add_(0, node, g_here)
            others += [torch.from_numpy(g_seed), g_position, g_own]
        return None, None, None, *first_only((g_rows, *others), (gradient, *inputs))


def _field(problem: FinslerProblem) -> general.Field:
    """Return the field of one problem, with its stencils."""
    walls = np.ascontiguousarray(array_of(problem.walls[0]))
    rows = entries(problem.rows[0], problem.rows.shape[-1])
    norms = problem.family.compiled(torch.from_numpy(rows))
    start, offset, shared = norm_stencils(norms, walls)
    dependent_start = np.zeros(1 if shared else walls.size + 1, np.int64)
    dependent = np.empty(0 if shared else len(offset), np.int32)
    if not shared:
        dependents(start, offset, walls.shape[1], dependent_start, dependent)
    walled = bool(walls.any())
    return general.Field(norms, start, offset, shared, dependent_start, dependent, walls, walled)


def _march(
    field: general.Field,
    problem: FinslerProblem,
    p: int,
    start: NormStart,
    order: int,
    marches: March,
    u: np.ndarray,
    flow: np.ndarray,
) -> "_Walk":
    """Fill ``u`` and ``flow`` of problem p; return what the walk back needs."""
    nodes = field.walls.size
    own = problem.family.compiled(start.rows)
    node, label, value, position, _, alone = map(array_of, start)
    sources = general.Sources(node, value, label, position, own, alone)
    labels, code, sequence = (np.empty(nodes, np.int32) for _ in range(3))
    weight = np.zeros(nodes)
    targets = None if problem.targets is None else problem.targets[p]
    queue, flags = Queue.of(field.walls, targets)
    front = general.Front(u, labels, flow, code, weight, queue.place)
    begin(sources, u, labels, code, queue)
    radius = float(problem.radius)

    def step(steps: int) -> bool:
        return general.march(field, sources, front, order, radius, sequence, queue, flags, steps)

    marches.go(step, queue)
    u[queue.place != ACCEPTED] = np.inf
    return _Walk(field, labels, code, weight, sequence[: queue.state[1]].copy())


class _Walk(NamedTuple):
    """What a march leaves for its walk back."""

    field: general.Field
    label: np.ndarray
    code: np.ndarray
    weight: np.ndarray
    sequence: np.ndarray

    def back(self, g_u: np.ndarray, seeds: int) -> np.ndarray:
        """Make ``g_u``, the gradient in the results, that in the value of every node.

        Return the gradient in the values of the seeds.
        """
        g_seed = np.zeros(seeds)
        general.march_back(self.field, self.code, self.weight, self.sequence, g_u, g_seed)
        return g_seed

    def pull(
        self, family: Family, g_u: np.ndarray, rows: Tensor, own: Tensor, position: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return nodes, and the gradients in their rows, in the sources' and their positions.

        ``g_u`` is the gradient in the value of every node.
        """
        node = np.flatnonzero((g_u != 0) & (self.code >= 0))
        steps, shares, second = self._steps(node)
        y = torch.from_numpy(node)
        s = torch.from_numpy(self.label[node].astype(np.int64))
        weight = torch.from_numpy(g_u[node])
        index = torch.stack(torch.unravel_index(y, self.field.walls.shape), -1)
        code = torch.from_numpy(self.code[node])
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (rows[y], own, position)]
            here, sources, places = inputs
            total = (weight * _fixed_parts(
                family.norm, here, (here + sources[s]) / 2, index - places[s], code, steps, shares,
                second,
            )).sum()  # fmt: skip
            gradients = torch.autograd.grad(total, inputs, materialize_grads=True)
        return y, gradients

    def _steps(self, node: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ends (2, n, 2) that gave nodes their values, their shares, and if of order 2.

        Where one end alone did, the second has no share.
        """
        code, field = self.code[node], self.field
        first = np.zeros_like(node) if field.shared else field.start[node]
        last = len(field.offset) if field.shared else field.start[node + 1]
        left = first + (code >> general.BITS)
        right = np.where(left + 1 < last, left + 1, first)
        steps = np.stack((field.offset[left], field.offset[right])).astype(float)
        t = np.where(code & SECTOR, self.weight[node], 0.0)
        second = np.stack([(code & bit) != 0 for bit in (SECOND_A, SECOND_B)])
        return tuple(map(torch.from_numpy, (steps, np.stack((1 - t, t)), second)))  # type: ignore[return-value]


def _fixed_parts(
    norm: Callable[[Tensor, Tensor], Tensor],
    here: Tensor,
    model: Tensor,
    v: Tensor,
    code: Tensor,
    steps: Tensor,
    shares: Tensor,
    second: Tensor,
) -> Tensor:
    """Return what values are beside those of their ends, at fixed places (`_general`).

    ``here`` and ``model`` are rows, ``v`` the vectors from the sources.
    """
    c = torch.where(second, 1.5, 1.0)
    w = -(steps * (shares / c)[..., None]).sum(0)
    parts = norm(here, w)
    factored = ((code & FACTORED) != 0).nonzero()[:, 0]
    if not len(factored):
        return parts
    e, share, twice = steps[:, factored], shares[:, factored], second[:, factored]
    m, x, w = model[factored], v[factored], w[factored]
    near, far = (norm(m, x + k * e) for k in (1, 2))
    there = torch.where(twice, (4 * near - far) / 3, near)
    round_about = norm(m, x)
    (momentum,) = torch.autograd.grad(round_about.sum(), x, create_graph=True)
    tangent = (momentum * w).sum(-1)
    fall = round_about - (share * there).sum(0)
    # From two ends the fall is added, but for that of the tangent; from one it is a factor.
    alone = (code[factored] & SECTOR) == 0
    end = torch.where(alone[:, None], -e[0], 1.0)
    value = torch.where(
        alone,
        parts[factored] * c[0, factored] * fall / norm(m, end),
        parts[factored] + fall - tangent,
    )
    return parts.index_put((factored,), value)
