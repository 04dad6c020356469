"""Distances on a grid in a single pass: fast marching on stencils adapted to the metric."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from finslerconv._arrays import is_integer, shown
from finslerconv._memory import array_of
from finslerconv.geodesics._derivatives import first_only
from finslerconv.geodesics.distances._heap import FAR, WALL
from finslerconv.geodesics.distances._method import DistanceMethod, EikonalProblem, Front
from finslerconv.geodesics.distances._seeding import Start, seed_nodes
from finslerconv.geodesics.distances._stencils import acute_stencils, selling_stencils
from finslerconv.geodesics.distances.fast_marching import _plane as plane
from finslerconv.geodesics.distances.fast_marching import _space as space

# From the gradient of the distances, which it overwrites, to those of M, omega, the seeds' values,
# and the sources' M, omega and position, which it adds to.
_Back = Callable[..., None]


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

    Parameters
    ----------
    order : 1 or 2
        Of the difference quotients of the accepted values.
    factorise : bool
        Whether the front's roundness about a source is taken out before differences are formed. A
        constant metric then comes out exact. Not done for sources with others within 4 pixels.
    """

    order: int = 2
    factorise: bool = True

    def __post_init__(self) -> None:
        if not is_integer(self.order) or self.order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {shown(self.order)}")
        if not isinstance(self.factorise, bool):
            raise TypeError(f"factorise: expected True or False, got {self.factorise!r}")

    def solve(self, problem: EikonalProblem) -> Front:
        """Return the front, differentiable in the metric and the seeds.

        Raises
        ------
        ValueError
            If all sources of a problem are inside obstacles.
        RuntimeError
            If a one-form in space turns so strongly that the values don't settle.
        """
        starts = [seed_nodes(problem[p : p + 1]) for p in range(len(problem.seeds))]
        floats = [
            x for start in starts for x in (start.value, start.position, start.M, start.omega)
        ]
        march: Any = _March.apply
        return Front(*march(self, problem, starts, problem.M, problem.omega, *floats))


class _March(torch.autograd.Function):
    """The solver as one operation: forward walks, backward walks back."""

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
            rows = (_rows(one.M[0], dim * dim), _rows(one.omega[0], dim), walls)
            return _Plane(*rows) if dim == 2 else _Space(*rows)

        shared = ready(0) if problem.shared else None

        def solve(p: int) -> _Back | None:
            field = shared or ready(p)
            start = starts[p]
            alone = array_of(start.alone) & method.factorise
            u = array_of(distance[p].view(-1))
            labels = np.empty(nodes, np.int32)
            velocity = array_of(flow[p].view(nodes, dim))
            radius = float(problem.radius)
            back = field.march(start, alone, int(method.order), radius, u, labels, velocity, keep)
            beyond = ~((u <= radius) & (u < np.inf))
            u[beyond], labels[beyond], velocity[beyond] = np.inf, -1, 0.0
            label[p].view(-1).copy_(torch.from_numpy(labels))
            return back

        ctx.backs = _side_by_side(solve, problems)
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
            back(
                g_u,
                g_M[p if len(g_M) > 1 else 0],
                g_omega[p if len(g_omega) > 1 else 0],
                g_seed,
                s_M,
                s_omega,
                s_position,
            )
            floats += map(
                torch.from_numpy, (g_seed, s_position, s_M.reshape(sources, dim, dim), s_omega)
            )
        gradients = (
            torch.from_numpy(g_M).view(shape_M),
            torch.from_numpy(g_omega).view(shape_omega),
            *floats,
        )
        return None, None, None, *first_only(gradients, (gradient, *inputs))


def _rows(field: Tensor, size: int) -> np.ndarray:
    """Return the entries of a field, one row a node, or one row if all nodes have the same."""
    field = field.detach()
    flat = field.reshape(-1, size) if field.is_contiguous() else None
    first = field[(0,) * (field.ndim - (1 if size == field.shape[-1] else 2))]
    last = field[(-1,) * (field.ndim - first.ndim)]
    if bool((first == last).all()) and bool((field == first).all()):
        return array_of(first.reshape(1, size).contiguous())
    if flat is None:
        flat = field.contiguous().view(-1, size)
    return array_of(flat)


def _side_by_side(task: Callable[[int], Any], parts: int) -> list[Any]:
    """Return ``[task(0), ...]``, in as many threads as ``torch.set_num_threads`` allows.

    Plain threads serve, since a march is one call that holds no lock and runs no operation of
    PyTorch's.
    """
    workers = min(parts, torch.get_num_threads(), os.cpu_count() or 1)
    if workers <= 1:
        return [task(p) for p in range(parts)]
    with ThreadPoolExecutor(workers, thread_name_prefix="finslerconv") as pool:
        return list(pool.map(task, range(parts)))


class _Plane:
    """A 2-D field made ready to march on."""

    def __init__(self, M: np.ndarray, omega: np.ndarray, walls: np.ndarray) -> None:
        self.M, self.omega, self.walls = M, omega, walls
        self.walled = bool(walls.any())
        self.stencils = acute_stencils(M, omega, walls)
        start, offset, shared = self.stencils
        self.dependent_start = np.zeros(1 if shared else walls.size + 1, np.int64)
        self.dependent = np.empty(0 if shared else len(offset), np.int32)
        if not shared:
            plane.dependents(start, offset, walls.shape[1], self.dependent_start, self.dependent)

    def march(
        self,
        start: Start,
        alone: np.ndarray,
        order: int,
        radius: float,
        u: np.ndarray,
        label: np.ndarray,
        flow: np.ndarray,
        keep: bool,
    ) -> _Back | None:
        """Fill u, label and flow; return the walk back, if it is to be kept."""
        nodes = self.walls.size
        code, sequence = np.empty(nodes, np.int32), np.empty(nodes, np.int32)
        place = np.where(self.walls.reshape(-1), np.int32(WALL), np.int32(FAR))
        source = array_of(start.position)
        source_metric = _source_metric(start)
        done = plane.march(
            self.M, self.omega, *self.stencils, self.dependent_start, self.dependent,
            self.walls, self.walled, array_of(start.node), array_of(start.value),
            array_of(start.label), source, source_metric, alone, order, radius,
            u, label, code, flow, sequence, place, np.empty(nodes), np.empty(nodes, np.int32),
        )  # fmt: skip
        if not keep:
            return None
        sequence = sequence[:done].copy()
        values, labels = u.copy(), label.copy()

        def back(g_u: np.ndarray, *gradients: np.ndarray) -> None:
            plane.march_back(
                self.M, self.omega, *self.stencils, self.walls.shape[1], source, source_metric,
                values, labels, code, sequence, g_u, *gradients,
            )  # fmt: skip

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
        self.M, self.omega, self.walls = M, omega, walls
        self.walled = bool(walls.any())
        self.causal = not omega.any()
        self.potential = _potential(omega, walls.shape)
        self.dual = np.linalg.inv(M.reshape(-1, 3, 3))
        self.offset, self.weight, self.base = selling_stencils(self.dual)
        _, n1, n2 = walls.shape
        self.step = self.offset.astype(np.int64) @ np.array([n1 * n2, n2, 1])
        self.open = np.empty(walls.size, np.int16)
        space.neighbours(self.offset, walls, self.walled, self.open)
        # Without walls every node has the one stencil, as far as it is inside the grid.
        shared = len(self.offset) == 1 and not self.walled
        if not shared and len(self.offset) == 1:
            for name in ("offset", "weight", "base", "step", "dual"):
                setattr(self, name, np.repeat(getattr(self, name), walls.size, 0))
        self.dependent_start = np.zeros(1 if shared else walls.size + 1, np.int64)
        ones = 0 if shared else int(np.bitwise_count(self.open).sum())
        self.dependent = np.empty(ones, np.int32)
        if not shared:
            space.dependents(self.step, self.open, self.dependent_start, self.dependent)

    def march(
        self,
        start: Start,
        alone: np.ndarray,
        order: int,
        radius: float,
        u: np.ndarray,
        label: np.ndarray,
        flow: np.ndarray,
        keep: bool,
    ) -> _Back | None:
        """Fill u, label and flow; return the walk back, if it is to be kept."""
        nodes = self.walls.size
        first, code = np.empty(nodes), np.empty(nodes, np.int32)
        place = np.where(self.walls.reshape(-1), np.int32(WALL), np.int32(FAR))
        metric = np.concatenate([array_of(start.M).reshape(-1, 9), array_of(start.omega)], 1)
        source = array_of(start.position)
        # Values of first order are too large: those beyond the radius may come back within it.
        limit = radius * 1.5
        done = space.march(
            self.M, self.omega, self.offset, self.weight, self.step, self.open,
            self.dependent_start, self.dependent, self.walls, self.causal, self.potential,
            array_of(start.node), array_of(start.value), limit, first, code, place,
            np.empty(nodes), np.empty(nodes, np.int32),
        )  # fmt: skip
        if not done:
            raise RuntimeError(
                "omega: turns too strongly from node to node for distances on this grid to come to "
                "rest; take a finer grid, or a smaller one-form"
            )
        key = first - self.potential
        sequence = np.argsort(key, kind="stable")[: int(np.isfinite(first).sum())]
        stencil = (self.offset, self.weight, self.step)
        fields = (self.M, self.omega, *stencil)
        space.trace_first_order(*fields, self.open, self.walls, sequence, first, code)
        label[:] = -1
        seeded = sequence[code[sequence] < 0]
        label[seeded] = array_of(start.label)[-1 - code[seeded]]
        space.propagate_labels(sequence, self.step, key, self.walls, code, label)

        first_code = code
        u[:], flow[:] = first, 0.0
        better = order == 2 or bool(alone.any())
        if better:
            code = np.where(first_code < 0, first_code, 0)
            u[first_code >= 0] = np.inf
            space.recompute(
                *fields, self.open, self.walls, self.walled, sequence,
                source, metric, alone, key, order, label, first, first_code, u, code,
            )  # fmt: skip
        space.arrival_velocities(
            *fields, self.walls, sequence, source, metric, label, first, first_code, u, code, flow
        )
        if not keep:
            return None
        values, labels = u.copy(), label.copy()

        def back(g_u: np.ndarray, *gradients: np.ndarray) -> None:
            g_first = np.zeros(nodes) if better else g_u
            given = (
                self.M, self.dual, self.omega, *stencil, self.base, self.walls, source, metric,
                labels, sequence, first,
            )  # fmt: skip
            walks = 1
            if better:
                walks = space.march_back(*given, values, code, g_first, g_u, *gradients)
            if g_first.any():
                none = np.zeros(0)
                walks *= space.march_back(*given, first, first_code, none, g_first, *gradients)
            if not walks:
                raise RuntimeError(
                    "fast_marching: the adjoint of a Randers metric in 3-D did not settle; "
                    "|omega| is too near to 1 for this grid"
                )

        return back
