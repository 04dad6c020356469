"""Distances on a grid in a single pass: fast marching on stencils adapted to the metric."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from finslerconv._arrays import is_integer, shown
from finslerconv._memory import array_of
from finslerconv.geodesics._derivatives import first_only
from finslerconv.geodesics.distances._heap import ACCEPTED
from finslerconv.geodesics.distances._method import (
    DistanceMethod,
    EikonalProblem,
    FinslerProblem,
    Front,
)
from finslerconv.geodesics.distances._seeding import Start, seed_nodes
from finslerconv.geodesics.distances._stencils import (
    acute_stencils,
    inverses,
    selling_stencils,
)
from finslerconv.geodesics.distances.fast_marching import _plane as plane
from finslerconv.geodesics.distances.fast_marching import _space as space
from finslerconv.geodesics.distances.fast_marching._march_norms import march_norms
from finslerconv.geodesics.distances.fast_marching._nodes import March, Queue, entries

# Takes the gradient of the distances, which it overwrites, and those of M, omega, the seeds'
# values, and the sources' M, omega and position, which it adds to.
_Back = Callable[[np.ndarray, tuple[np.ndarray, ...]], None]


class _Front(NamedTuple):
    """The front of one problem, filled by a march; row-major."""

    u: np.ndarray
    label: np.ndarray
    flow: np.ndarray | None
    """None if it is not wanted, and would cost something."""


@dataclass(frozen=True)
class FastMarching(DistanceMethod):
    """A front that goes over the nodes once, on stencils adapted to the metric; on the CPU.

    In 2-D the scheme is semi-Lagrangian on acute stencils, which makes it causal for every Randers
    metric (Mirebeau, "Efficient fast marching with Finsler metrics", 2014); in 3-D it is upwind on
    Selling's decomposition (Mirebeau, "Riemannian fast marching on Cartesian grids using Voronoi's
    first reduction of quadratic forms", 2019), causal for Riemannian metrics, and for the others
    nodes are opened again until nothing changes. Steps of the scheme that are longer than a pixel
    do not jump over walls. Gradients are those of the implicit adjoint, which goes over the nodes
    backwards in the order of acceptance; those in ``M`` are symmetric.

    Differences are of ``order`` 1 or 2; for norms with corners, such as the taxicab's, of order 1
    always. Before they are formed, ``factorise`` takes the front's roundness about a source out, so
    that a constant metric comes out exact; not for sources with others within 4 pixels.
    """

    order: int = 2
    factorise: bool = True

    stops_at_targets = True

    def __post_init__(self) -> None:
        if not is_integer(self.order) or self.order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {shown(self.order)}")
        if not isinstance(self.factorise, bool):
            raise TypeError(f"factorise: expected True or False, got {self.factorise!r}")

    def solve(self, problem: EikonalProblem) -> Front:
        """Return the front, differentiable in the metric and the seeds."""
        starts = [seed_nodes(problem[p : p + 1]) for p in range(len(problem.seeds))]
        floats = [
            x for start in starts for x in (start.value, start.position, start.M, start.omega)
        ]
        march: Any = _March.apply
        found = Front(*march(self, problem, starts, problem.M, problem.omega, *floats))
        return found if problem.flow else found._replace(flow=None)

    def solve_finsler(self, problem: FinslerProblem) -> Front:
        """Return the front for norms in the plane, differentiable in parameters and the seeds."""
        if problem.dim != 2:
            raise TypeError(
                "field: expected Riemannian or Randers metrics, which 'fast_marching' is for in "
                "space; method 'graph' takes the others, and the plane any metric"
            )
        # Across the kinks of such distances no difference of second order is right.
        order = 1 if problem.family.corners else int(self.order)
        return march_norms(problem, order, self.factorise)


class _March(torch.autograd.Function):
    """The march as one operation; its backward pass is the walk back."""

    @staticmethod
    def forward(
        ctx: Any,
        method: FastMarching,
        problem: EikonalProblem,
        starts: list[Start],
        M: Tensor,
        omega: Tensor,
        *floats: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grid, dim, problems = problem.grid, problem.dim, len(starts)
        nodes = math.prod(grid)
        keep = any(ctx.needs_input_grad)
        distance = torch.empty((problems, *grid), dtype=torch.float64)
        label = torch.empty((problems, *grid), dtype=torch.int64)
        flow = torch.empty((problems, *grid, dim), dtype=torch.float64)

        def ready(p: int) -> Any:
            one = problem[p : p + 1]
            walls = np.ascontiguousarray(array_of(one.walls[0]))
            rows = (entries(one.M[0], dim * dim), entries(one.omega[0], dim), walls)
            return _Plane(*rows) if dim == 2 else _Space(*rows)

        shared = ready(0) if problem.shared else None
        marches = March(nodes, problems)

        def solve(p: int) -> _Back | None:
            u, velocity = array_of(distance[p].view(-1)), array_of(flow[p].view(nodes, dim))
            wanted = problem.flow or dim == 2  # in the plane a march knows it by the way
            front = _Front(u, np.empty(nodes, np.int32), velocity if wanted else None)
            radius = float(problem.radius)
            targets = None if problem.targets is None else problem.targets[p]
            field = shared or ready(p)
            back = field.march(starts[p], method, radius, targets, marches, front, keep)
            if dim == 3 and targets is not None and len(targets):
                # Beyond the targets values of first order may have been left unfinished.
                radius = min(radius, float(u[targets].max()))
            beyond = ~((u <= radius) & (u < np.inf))
            u[beyond], front.label[beyond] = np.inf, -1
            if problem.flow:
                velocity[beyond] = 0.0
            label[p].view(-1).copy_(torch.from_numpy(front.label))
            return back

        ctx.backs = marches.run(solve)
        ctx.starts = starts
        ctx.save_for_backward(distance, M, omega, *floats)
        ctx.mark_non_differentiable(label, flow)
        return distance, label, flow

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        distance, *inputs = ctx.saved_tensors
        shape_M, shape_omega = inputs[0].shape, inputs[1].shape
        dim, nodes = shape_M[-1], math.prod(shape_M[1:-2])
        g_M = np.zeros((shape_M[0], nodes, dim * dim))
        g_omega = np.zeros((shape_omega[0], nodes, dim))
        floats: list[Tensor] = []
        for p, (start, back) in enumerate(zip(ctx.starts, ctx.backs, strict=True)):
            # Infinite distances depend on nothing.
            g_u = array_of(gradient[p].where(distance[p].isfinite(), 0.0).reshape(-1)).copy()
            sources = len(start.position)
            g_seed = np.zeros(len(start.node))
            s_M, s_omega = np.zeros((sources, dim * dim)), np.zeros((sources, dim))
            s_position = np.zeros((sources, dim))
            m, w = p if len(g_M) > 1 else 0, p if len(g_omega) > 1 else 0
            back(g_u, (g_M[m], g_omega[w], g_seed, s_M, s_omega, s_position))
            s_M = s_M.reshape(sources, dim, dim)
            floats += map(torch.from_numpy, (g_seed, s_position, s_M, s_omega))
        gradients = (
            torch.from_numpy(g_M).view(shape_M),
            torch.from_numpy(g_omega).view(shape_omega),
            *floats,
        )
        return None, None, None, *first_only(gradients, (gradient, *inputs))


class _Plane:
    """A 2-D field made ready to march on."""

    def __init__(self, M: np.ndarray, omega: np.ndarray, walls: np.ndarray) -> None:
        stencils = acute_stencils(M, omega, walls)
        start, offset, shared = stencils
        dependent_start = np.zeros(1 if shared else walls.size + 1, np.int64)
        dependent = np.empty(0 if shared else len(offset), np.int32)
        if not shared:
            plane.dependents(start, offset, walls.shape[1], dependent_start, dependent)
        walled = bool(walls.any())
        self.field = plane.Field(M, omega, *stencils, dependent_start, dependent, walls, walled)

    def march(
        self,
        start: Start,
        method: FastMarching,
        radius: float,
        targets: np.ndarray | None,
        marches: March,
        front: _Front,
        keep: bool,
    ) -> _Back | None:
        """Fill the front; return the walk back, if it is to be kept."""
        nodes = self.field.walls.size
        code, sequence = np.empty(nodes, np.int32), np.empty(nodes, np.int32)
        node, label, value, position, _, _, alone = map(array_of, start)
        alone = alone & method.factorise
        sources = plane.Sources(node, value, label, position, _source_metric(start), alone)
        queue, flags = Queue.of(self.field.walls, targets)
        order = int(method.order)
        u, label, _ = front
        plane.begin(sources, u, label, code, queue)

        def step(steps: int) -> bool:
            return plane.march(
                self.field, sources, order, radius, *front, code, sequence, queue, flags, steps
            )

        marches.go(step, queue)
        u[queue.place != ACCEPTED] = np.inf
        if not keep:
            return None
        done = int(queue.state[1])
        known = (front.u.copy(), front.label.copy(), code, sequence[:done].copy())

        def back(g_u: np.ndarray, gradients: tuple[np.ndarray, ...]) -> None:
            plane.march_back(self.field, sources, *known, g_u, gradients)

        return back


def _source_metric(start: Start) -> np.ndarray:
    """Return the sources' metrics as rows: the upper triangle of M, then omega."""
    M, omega = array_of(start.M), array_of(start.omega)
    upper = np.triu_indices(M.shape[-1])
    return np.concatenate([M[:, upper[0], upper[1]], omega], 1)


def _potential(omega: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Return the function on the grid whose gradient is nearest to the one-form, flat."""
    if not omega.any():
        return np.zeros(math.prod(grid))
    form = np.broadcast_to(omega, (math.prod(grid), len(grid))).reshape(*grid, len(grid))
    divergence, symbol = np.zeros(grid), np.zeros(grid)
    for axis, size in enumerate(grid):
        component = np.moveaxis(form[..., axis], axis, 0)
        outflow = np.moveaxis(divergence, axis, 0)
        edges = (component[1:] + component[:-1]) / 2
        outflow[:-1] += edges
        outflow[1:] -= edges
        shape = [1] * len(grid)
        shape[axis] = size
        symbol += (2 * np.cos(np.pi * np.arange(size) / size) - 2).reshape(shape)
    symbol[(0,) * len(grid)] = 1.0
    return idctn(dctn(divergence) / symbol).reshape(-1)


class _Space:
    """A 3-D field made ready to march on."""

    def __init__(self, M: np.ndarray, omega: np.ndarray, walls: np.ndarray) -> None:
        walled = bool(walls.any())
        self.causal = not omega.any()
        self.potential = _potential(omega, walls.shape)
        self.dual = np.empty((len(M), 3, 3))
        inverses(M, self.dual)
        offset, weight, self.base = selling_stencils(self.dual)
        # Without walls every node has the one stencil, as far as it is inside the grid.
        shared = len(offset) == 1 and not walled
        if not shared and len(offset) == 1:
            offset, weight, self.base, self.dual = (
                np.repeat(x, walls.size, 0) for x in (offset, weight, self.base, self.dual)
            )
        step, open_ = np.empty(offset.shape[:2], np.int32), np.empty(walls.size, np.int16)
        space.neighbours(offset, walls, walled, open_)
        space.prepare(offset, weight, walls, step, open_)
        self.dependent_start = np.zeros(1 if shared else walls.size + 1, np.int64)
        count = 0 if shared else int(np.bitwise_count(open_ & np.int16(4095)).sum())
        small = 16 * walls.size < 2**31
        self.dependent = np.empty(count, np.int32 if small else np.int64)
        if not shared:
            space.dependents(step, open_, self.dependent_start, self.dependent)
        self.field = space.Field(M, omega, offset, weight, step, open_, walls, walled)

    def march(
        self,
        start: Start,
        method: FastMarching,
        radius: float,
        targets: np.ndarray | None,
        marches: March,
        front: _Front,
        keep: bool,
    ) -> _Back | None:
        """Fill the front; return the walk back, if it is to be kept."""
        u, label, flow = front
        walls, field = self.field.walls, self.field
        first, code = np.empty(walls.size), np.empty(walls.size, np.int32)
        alone = array_of(start.alone) & method.factorise
        sources = space.Sources(array_of(start.position), _source_metric(start), alone)
        # Values of first order are too large: those beyond the radius may come back within it.
        # Those of a Riemannian metric do not depend on farther ones.
        margin = 1.0 if self.causal else 1.5
        node, value = array_of(start.node), array_of(start.value)
        limit = np.array([radius * 1.5, margin, value.min(), -np.inf])
        queue, flags = Queue.of(walls, targets)
        space.begin(self.potential, node, value, first, code, queue)
        dependents = (self.dependent_start, self.dependent)
        key = first
        sequence: np.ndarray = np.empty(walls.size, np.int32)
        if self.causal:
            rows = np.zeros((walls.size, 4))
            rows[:, 0] = first
            rows[code >= -len(node), 1] = -1.0
            code[code < -len(node)] = 0

            def step(steps: int) -> bool:
                return space.march_once(
                    field, *dependents, limit, rows, code, sequence, queue, flags, steps
                )

            marches.go(step, queue)
            sequence, first[:] = sequence[: int(queue.state[1])].copy(), rows[:, 0]
        else:

            def step(steps: int) -> bool:
                return space.march(
                    field, *dependents, self.potential, limit, first, code, queue, flags, steps
                )

            marches.go(step, queue)
            if not space.settle(field, limit, first, code, queue.state[0] == 0):
                raise RuntimeError(
                    "omega: turns too strongly from node to node for distances on this grid to "
                    "come to rest; take a finer grid, or a smaller one-form"
                )
            key = first - self.potential
            sequence = np.argsort(key, kind="stable")[: int(np.isfinite(first).sum())]
            space.trace_first_order(field, sequence, first, code)
        label[:] = -1
        if len(start.position) == 1:
            label[sequence] = 0
        else:
            seeded = sequence[code[sequence] < 0]
            label[seeded] = array_of(start.label)[-1 - code[seeded]]
            space.propagate_labels(sequence, field.step, key, walls, code, label)

        first_code = code
        u[:] = first
        order = int(method.order)
        better = order == 2 or bool(alone.any())
        if better:
            code = np.where(first_code < 0, first_code, 0)
            u[first_code >= 0] = np.inf
            space.recompute(field, sources, sequence, key, order, label, first, first_code, u, code)
        if flow is not None:
            flow[:] = 0.0
            space.arrival_velocities(
                field, sources, sequence, label, first, first_code, u, code, flow
            )
        if not keep:
            return None
        values, labels = u.copy(), label.copy()

        def back(g_u: np.ndarray, gradients: tuple[np.ndarray, ...]) -> None:
            g_first = np.zeros(walls.size) if better else g_u
            given = (field, self.dual, self.base, sources, labels, sequence, first)
            walks = 1
            if better:
                walks = space.march_back(*given, values, code, g_first, g_u, gradients)
            if g_first.any():
                none = np.zeros(0)
                walks *= space.march_back(*given, first, first_code, none, g_first, gradients)
            if not walks:
                raise RuntimeError(
                    "fast_marching: the adjoint of a Randers metric in 3-D did not settle; "
                    "|omega| is too near to 1 for this grid"
                )

        return back
