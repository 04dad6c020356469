r"""The Finsler heat method: distances on grids from two linear solves, differentiable.

With ``eps = sqrt(time)``, one implicit step of heat from the sources,

    ``u - (eps div + omega) . M^-1 (eps grad + omega) u = delta``

(div that of the volume ``sqrt(det M)``), has ``u ~ exp(-d / eps)`` for a Randers metric, formally:
put ``u = exp(-d / eps)`` in, and what is left as eps goes to 0 is the eikonal equation
``|grad d - omega|_{M^-1} = 1``. Only the direction of ``grad u / u`` is used: made a covector of
dual norm 1 it is the slope of the distance, and a Poisson equation finds the function for it.
Derivation and errors: the page "The heat method" of the documentation.

All of it is invariant under ``omega -> omega + grad psi, d -> d + psi``, on the grid as in the
plane: the form is summed along the edges, as a gauge field is. Far from the sources, where u
underflows, the same invariance divides a first estimate of the distance out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse
import torch
from jaxtyping import Bool, Float, Int, Num
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor

from finslerconv._arrays import as_number
from finslerconv._memory import array_of
from finslerconv.geodesics._derivatives import first_only
from finslerconv.geodesics.distances import _stencils
from finslerconv.geodesics.distances._method import DistanceMethod, EikonalProblem, Front
from finslerconv.geodesics.distances._seeding import chord_norm
from finslerconv.geodesics.distances._sight import seen
from finslerconv.geodesics.fields import interpolate, nodes_around

# eps in mean lengths of an edge is this times the cube root of the nodes along an axis, which makes
# both errors, of eps and of the grid, fall as h^(2/3); and never below the second number.
_EPS, _LEAST_EPS = 0.3, 0.8

# A node with an offset that has neither end on the grid has edges along the axes too. Their
# conductance is this fraction of the metric's in their direction: the matrix stays regular, and the
# distances hardly change.
_STAY = 0.01

# Where u, relative to 1 at the sources, is below this it has lost digits to underflow.
_TINY = 1e-280

# The largest eps with which heat is tried, in lengths of the shortest edge.
_MOST_REACH = 1e6

# Heat has no direction where eps is below this part of an edge's length (u falls too steeply), or
# above this many times the length of the grid (u is even up to rounding).
_SHORT, _LONG = 1e-6, 1e5

# Nodes that are solved for at once.
_CHUNK = 400_000

# Chords are used up to this many nodes away from a source.
_NEAR = 3


class _Graph(NamedTuple):
    """Grids as a weighted graph, all nodes of all fields in one row; in pixels.

    A directed edge carries half of the energy ``vol rho (e . grad u)^2`` of its first node;
    ``M^-1 = sum of rho e e'`` is Selling's decomposition.
    """

    grid: tuple[int, ...]
    M: Float[Tensor, "nodes d d"]
    dual: Float[Tensor, "nodes d d"]
    omega: Float[Tensor, "nodes d"]
    offset: Float[Tensor, "nodes k d"]
    """The vectors e, 3 in 2-D and 6 in 3-D."""
    weight: Float[Tensor, "nodes k"]
    """rho."""
    neighbour: Int[Tensor, "nodes k 2"]
    """The nodes x + e and x - e, -1 where there is none."""
    axis: Int[Tensor, "nodes d 2"]
    """The nodes next to x along the axes, ahead and behind, or -1."""
    poor: Bool[Tensor, "nodes"]
    """Whether an offset has no neighbour at either end."""
    start: Int[Tensor, "edges"]
    end: Int[Tensor, "edges"]
    step: Float[Tensor, "edges d"]
    conductance: Float[Tensor, "edges"]
    open_at: Int[Tensor, "openings"]
    """Nodes with an offset that leads out of the grid or into a wall, once for each."""
    leak: Float[Tensor, "openings"]
    """The conductance that leads out."""
    part: Int[Tensor, "nodes"]
    """The connected component of each node."""


def _graph(problem: EikonalProblem) -> _Graph:
    """Return the graph of the fields of a problem, differentiable in the metric."""
    d, grid = problem.dim, problem.grid
    fields = max(len(problem.M), len(problem.omega), len(problem.walls))
    matrices = problem.M.expand(fields, *grid, d, d).reshape(-1, d, d)
    forms = problem.omega.expand(fields, *grid, d).reshape(-1, d)
    walls = problem.walls.expand(fields, *grid)
    nodes = len(matrices)
    dual = torch.linalg.inv(matrices)
    offset = _selling_offsets(dual.detach())
    weight = selling_weights(dual, offset)
    volume = torch.linalg.det(matrices).sqrt()

    neighbour = torch.stack([_ends(s * offset, walls) for s in (1, -1)], -1)
    axes = torch.eye(d, dtype=torch.long).expand(nodes, d, d)
    axis = torch.stack([_ends(s * axes, walls) for s in (1, -1)], -1)
    there = ~walls.reshape(-1)
    poor = (neighbour < 0).all(-1).any(-1) & there

    conductance = 0.5 * volume[:, None] * weight
    starts, ends, steps, values = [], [], [], []
    stay = _STAY * 0.5 * volume[:, None] / torch.diagonal(matrices, dim1=-2, dim2=-1)
    for to, moves, amounts, some in (
        (neighbour, offset, conductance, there),
        (axis, axes, stay, poor),
    ):
        for side, sign in ((0, 1), (1, -1)):
            x, k = torch.nonzero((to[..., side] >= 0) & some[:, None], as_tuple=True)
            starts.append(x)
            ends.append(to[x, k, side])
            steps.append(sign * moves[x, k].double())
            values.append(amounts[x, k])
    start, end = torch.cat(starts), torch.cat(ends)
    out, k, _ = torch.nonzero((neighbour < 0) & there[:, None, None], as_tuple=True)
    links = sparse.coo_matrix((np.ones(len(start)), (start, end)), shape=(nodes, nodes))
    part = torch.from_numpy(connected_components(links, directed=False)[1]).long()
    return _Graph(
        grid, matrices, dual, forms, offset.double(), weight, neighbour, axis, poor,
        start, end, torch.cat(steps), torch.cat(values), out, conductance[out, k], part,
    )  # fmt: skip


def _selling_offsets(dual: Float[Tensor, "nodes d d"]) -> Int[Tensor, "nodes k d"]:
    """Return the integer vectors of Selling's decomposition."""
    if dual.shape[-1] == 3:
        return torch.from_numpy(_stencils.selling_stencils(array_of(dual)).offset).long()
    base = torch.tensor([[1, 0], [0, 1], [-1, -1]]).repeat(len(dual), 1, 1)
    rows = torch.arange(len(dual))
    while len(rows):
        v = base[rows].double()
        gram = v @ dual[rows] @ v.mT
        pairs = gram[:, (0, 1, 0), (1, 2, 2)]
        # Rounding must not decide whether a right angle is obtuse.
        worst, which = (pairs - 1e-12 * torch.diagonal(gram, dim1=1, dim2=2).sum(1, True)).max(1)
        rows, which = rows[worst > 0], which[worst > 0]
        i = torch.tensor([0, 1, 0])[which]
        j = torch.tensor([1, 2, 2])[which]
        a, b = base[rows, i], base[rows, j]
        base[rows] = torch.stack((-a, b, a - b), 1)
    return torch.stack((-base[..., 1], base[..., 0]), -1)


def selling_weights(
    dual: Float[Tensor, "nodes d d"], offset: Num[Tensor, "nodes k d"]
) -> Float[Tensor, "nodes k"]:
    """Return rho with ``dual = sum of rho e e'``, linear in ``dual``."""
    e = offset.to(dual)
    squares = e[..., :, None] * e[..., None, :]
    d = dual.shape[-1]
    i, j = torch.triu_indices(d, d)
    return torch.linalg.solve(squares[..., i, j].mT, dual[..., i, j]).clamp(min=0.0)


def _ends(
    offset: Int[Tensor, "nodes k d"], walls: Bool[Tensor, "fields *grid"]
) -> Int[Tensor, "nodes k"]:
    """Return where the offsets lead, -1 outside the grid or where a wall is in the way."""
    fields, *grid = walls.shape
    size = math.prod(grid)
    index = torch.stack(torch.unravel_index(torch.arange(size), tuple(grid)), -1)
    index = index.repeat(fields, 1)[:, None]
    field = (torch.arange(fields) * size).repeat_interleave(size)[:, None]
    target = index + offset
    good = ((target >= 0) & (target < torch.tensor(grid))).all(-1)
    if bool(walls.any()):
        x, k = torch.nonzero(good, as_tuple=True)
        good[x, k] = _clear(walls, field[x, 0] // size, index[x, 0], target[x, k])
    return torch.where(good, field + _flat(target, grid), -1)


def _clear(
    walls: Bool[Tensor, "fields *grid"],
    field: Int[Tensor, "n"],
    start: Num[Tensor, "n d"],
    end: Num[Tensor, "n d"],
) -> Bool[Tensor, "n"]:
    """Return whether the lines from ``start`` to ``end``, each in a field of its own, are free."""
    clear = torch.empty(len(field), dtype=torch.bool)
    for f in field.unique().tolist():
        here = field == f
        clear[here] = torch.from_numpy(
            seen(array_of(walls[f]), array_of(start[here]), array_of(end[here]))
        )
    return clear


class _Solve(torch.autograd.Function):
    """The solutions (n, columns) of sparse systems, differentiable in entries and right sides."""

    @staticmethod
    def forward(ctx: Any, entry: Tensor, row: Tensor, column: Tensor, right: Tensor) -> Tensor:
        lu = _factorise(entry, row, column, len(right))
        solution = torch.from_numpy(lu.solve(np.asarray(right.detach())))
        ctx.lu = lu
        ctx.save_for_backward(entry, row, column, right, solution)
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        entry, row, column, right, solution = ctx.saved_tensors
        solution = solution.detach()
        dual = torch.from_numpy(ctx.lu.solve(np.ascontiguousarray(array_of(grad)), "T"))
        gradients = -(dual[row] * solution[column]).sum(1), dual
        g_entry, g_right = first_only(gradients, (grad, entry, right))
        return g_entry, None, None, g_right


def _factorise(entry: Tensor, row: Tensor, column: Tensor, n: int) -> SuperLU:
    matrix = sparse.coo_matrix((array_of(entry), (array_of(row), array_of(column))), (n, n))
    # The pattern is symmetric, and of an M-matrix the diagonal is a safe pivot.
    return splu(
        matrix.tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )


def _log_heat(
    graph: _Graph,
    eps: Float[Tensor, "nodes"],
    source: Float[Tensor, "nodes columns"],
    potential: Float[Tensor, "nodes"] | None = None,
) -> Float[Tensor, "nodes columns"]:
    """Return ``-eps log u`` of the step of heat from ``source``; NaN where u is not positive.

    u is the mean of two solutions, with walls and border that reflect or absorb; the images of the
    sources behind a straight border cancel in it. With a ``potential`` the unknown is
    ``u exp(potential / eps)``.
    """
    x, y = graph.start, graph.end
    scale = eps[x]
    turn = 0.5 * ((graph.omega[x] + graph.omega[y]) * graph.step).sum(-1)
    right = source
    if potential is not None:
        turn = turn + potential[x] - potential[y]
        # Far away the exponential is infinite, and there is no source.
        lift = torch.where((source > 0).any(1), potential / eps, 0.0).exp()
        right = source * lift[:, None]
    here = scale * scale * graph.conductance
    nodes = torch.arange(len(eps))
    volume = graph.M.det().sqrt()
    row = torch.cat((x, y, x, y, nodes))
    column = torch.cat((y, x, x, y, nodes))
    entry = torch.cat(
        (-here * (turn / scale).exp(), -here * (-turn / scale).exp(), here, here, volume)
    )
    if not bool(entry.isfinite().all() & right.isfinite().all()):
        return torch.full_like(right, math.nan)
    total = torch.zeros_like(right)
    for absorbing in (False, True):
        if absorbing:
            o = graph.open_at
            row, column = torch.cat((row, o)), torch.cat((column, o))
            # The value beyond the border is minus the one here.
            entry = torch.cat((entry, 4 * eps[o] ** 2 * graph.leak))
        try:
            total = total + _Solve.apply(entry, row, column, right)  # type: ignore[no-untyped-call]
        except RuntimeError:  # SuperLU: a pivot is 0 by underflow
            return torch.full_like(right, math.nan)
    back = 0.0 if potential is None else potential[:, None]
    there = (total > 0) & total.isfinite()
    level = back - eps[:, None] * torch.where(there, total, 1.0).log()
    return torch.where(there, level, math.nan)


def _slope(
    graph: _Graph, eps: Float[Tensor, "nodes"], level: Float[Tensor, "nodes"]
) -> Float[Tensor, "nodes d"]:
    """Return the covectors of dual norm 1 in the direction of the differences of ``level``.

    On the grid ``exp(-q . x / eps)`` travels not along ``M^-1 q`` but along the flux of the scheme,
    ``sum of rho sinh(q . e / eps) eps e``: the direction is taken from that. 0 where it is flat.
    """
    ahead, behind = graph.neighbour.unbind(-1)
    along = _differences(level, ahead, behind)
    along = along - (graph.omega[:, None] * graph.offset).sum(-1)
    along = eps[:, None] * (along / eps[:, None]).clamp(-30, 30).sinh()
    velocity = ((graph.weight * along)[..., None] * graph.offset).sum(1)
    plain = _differences(level, *graph.axis.unbind(-1)) - graph.omega
    plain = (graph.dual @ plain[..., None])[..., 0]
    velocity = torch.where(graph.poor[:, None], plain, velocity)
    momentum = (graph.M @ velocity[..., None])[..., 0]
    square = (momentum * velocity).sum(-1)
    flat = square <= 0
    length = torch.where(flat, 1.0, torch.where(flat, 1.0, square).sqrt())
    return torch.where(flat[:, None], 0.0, momentum / length[:, None]) + graph.omega


def _differences(
    level: Float[Tensor, "nodes"], ahead: Int[Tensor, "nodes k"], behind: Int[Tensor, "nodes k"]
) -> Float[Tensor, "nodes k"]:
    """Return central differences, one-sided ones where a side is missing, 0 where both are."""
    here = level[:, None]
    up = torch.where(ahead >= 0, level[ahead.clamp(min=0)], here)
    down = torch.where(behind >= 0, level[behind.clamp(min=0)], here)
    sides = (ahead >= 0).to(level.dtype) + (behind >= 0).to(level.dtype)
    return (up - down) / sides.clamp(min=1)


class _Sources(NamedTuple):
    """The sources of all columns, one column for each problem that shares the graph."""

    heat: Float[Tensor, "nodes columns"]
    """Where heat starts."""
    node: Int[Tensor, "n"]
    """Nodes near a source, each once in a column."""
    column: Int[Tensor, "n"]
    value: Float[Tensor, "n"]
    """Their distances by the chord from the source."""
    group: Int[Tensor, "n"]
    """The number of the source, over all columns."""
    start: Float[Tensor, "n"]
    """The distance at which the source starts."""


def _integrate(
    graph: _Graph,
    slope: Float[Tensor, "nodes d columns"],
    sources: _Sources,
    tolerance: Float[Tensor, "nodes"],
) -> Float[Tensor, "nodes columns"]:
    """Return the functions of nearest slope (least squares), at the sources' own level.

    Near the sources, where the slope jumps, the differences are those of the chords. A source does
    not count if another one reaches it before it starts, by more than ``tolerance``.
    """
    nodes, _, columns = slope.shape
    x, y = graph.start, graph.end
    row, column = torch.cat((x, y, x, y)), torch.cat((y, x, x, y))
    entry = torch.cat((-graph.conductance,) * 2 + (graph.conductance,) * 2)
    # The first node of every component is held at 0.
    parts = int(graph.part.max()) + 1
    first = torch.full((parts,), nodes).scatter_reduce(0, graph.part, torch.arange(nodes), "amin")
    kept = torch.ones(nodes, dtype=torch.bool)
    kept[first] = False
    number = kept.cumsum(0) - 1
    inner = kept[row] & kept[column]
    row, column, entry = number[row[inner]], number[column[inner]], entry[inner]

    group = sources.column * parts + graph.part[sources.node]
    alive = torch.ones(len(sources.node), dtype=torch.bool)
    for _ in range(2):
        near = torch.full((nodes, columns), math.nan, dtype=slope.dtype)
        place = (sources.node[alive], sources.column[alive])
        near = near.index_put(place, sources.value[alive])
        rows = []
        for k in range(columns):
            rise = (slope[x, :, k] * graph.step).sum(-1)
            chord = near[y, k] - near[x, k]
            known = ~chord.isnan()
            rise = torch.where(known, torch.where(known, chord, 0.0), rise)
            flux = graph.conductance * rise
            rows.append(
                torch.zeros(nodes, dtype=slope.dtype).index_add(0, y, flux).index_add(0, x, -flux)
            )
        right = torch.stack(rows, 1)[kept]
        inside: Tensor = _Solve.apply(entry, row, column, right)  # type: ignore[no-untyped-call]
        d = torch.zeros((nodes, columns), dtype=slope.dtype).index_put(
            (kept.nonzero()[:, 0],), inside
        )
        # The level that each source asks for, and the least of those in each component.
        gap = sources.value - d[sources.node, sources.column]
        count = int(sources.group.max()) + 1
        asked = torch.zeros(count, dtype=d.dtype).scatter_reduce(
            0, sources.group, gap, "mean", include_self=False
        )
        level = torch.full((columns * parts,), math.inf, dtype=d.dtype).scatter_reduce(
            0, group, asked[sources.group], "amin"
        )
        late = (asked[sources.group] - level[group] > tolerance[sources.node]) & alive
        if not bool(late.any()):
            break
        alive = alive & ~late
    # Sources of a component that ask for a little more or less share the difference.
    level = level.scatter_reduce(0, group[alive], gap[alive], "mean", include_self=False)
    reached = level.reshape(columns, parts)[:, graph.part].T
    there = reached.isfinite()
    d = torch.where(there, d + torch.where(there, reached, 0.0), math.inf)
    # Near the sources the chords are the better answer.
    d = d.index_put((sources.node[alive], sources.column[alive]), sources.value[alive])
    place = (sources.node[~alive], sources.column[~alive])
    d = d.index_put(place, torch.minimum(d[place], sources.value[~alive]))
    # No distance is below the least start, but what is integrated may be, by the error.
    least = torch.full((columns * parts,), math.inf, dtype=d.dtype).scatter_reduce(
        0, group, sources.start, "amin"
    )
    least = least.reshape(columns, parts)[:, graph.part].T
    return torch.where(d < least, least, d)


def _distances(
    graph: _Graph, eps: Float[Tensor, "nodes"], sources: _Sources
) -> Float[Tensor, "nodes columns"]:
    """Return the heat method's distances."""
    with torch.no_grad():
        reach = torch.zeros(int(graph.part.max()) + 1, sources.heat.shape[1], dtype=torch.bool)
        reach[graph.part[sources.node], sources.column] = True
    level = _log_heat(graph, eps, sources.heat)
    there = reach[graph.part]
    lowest = -math.log(_TINY) * eps[:, None]
    clear = level < lowest
    if bool((there & ~clear).any()):
        # What to divide out comes from heat with four times the eps.
        if float(eps.max()) > _MOST_REACH * float(_edge_length(graph).detach().min()):
            raise _NoHeatError(None)
        with torch.no_grad():
            rough = _distances(graph, 4 * eps, sources)
            potential = _like_level(torch.where(there, rough, 0.0), level, there & clear)
        level = torch.cat(
            [
                _log_heat(graph, eps, sources.heat[:, k : k + 1], potential[:, k])
                for k in range(potential.shape[1])
            ],
            1,
        )
        if bool((there & ~((level - potential).abs() < lowest)).any()):
            raise _NoHeatError(16 * float(eps.max()) ** 2)
    level = torch.where(there, level, 0.0)
    slope = torch.stack([_slope(graph, eps, column) for column in level.unbind(1)], -1)
    return _integrate(graph, slope, sources, eps)


class _NoHeatError(Exception):
    """Heat underflows on its way to a node, whatever is divided out."""

    def __init__(self, longer: float | None) -> None:
        self.longer = longer
        """A time for which it arrives; None if none does."""


def _like_level(
    rough: Float[Tensor, "nodes columns"],
    level: Float[Tensor, "nodes columns"],
    known: Bool[Tensor, "nodes columns"],
) -> Float[Tensor, "nodes columns"]:
    """Return the distances ``rough``, scaled to the levels where those are known.

    On the grid the level rises more slowly than the distance. Over thousands of nodes dividing the
    distance itself out would overflow.
    """
    ratio = torch.where(known, level, 0.0).sum(0) / torch.where(known, rough, 0.0).sum(0)
    return rough * torch.where((ratio > 0) & (ratio < 1), ratio, 1.0)


def _edge_length(graph: _Graph) -> Float[Tensor, "nodes"]:
    """Return the mean length in M of the stencil's edges at each node, weighted for error."""
    e = graph.offset
    square = torch.einsum("nki,nij,nkj->nk", e, graph.M, e)
    return (graph.weight * square * square).sum(-1).sqrt()


def _eps(graph: _Graph, fields: int, time: float | None) -> Float[Tensor, "nodes"]:
    nodes = len(graph.M)
    if time is not None:
        return torch.full((nodes,), math.sqrt(time), dtype=torch.float64)
    # The mean of each component, so that nodes behind walls do not count.
    parts = int(graph.part.max()) + 1
    length = torch.zeros(parts, dtype=torch.float64).scatter_reduce(
        0, graph.part, _edge_length(graph), "mean", include_self=False
    )
    axis = (nodes // fields) ** (1 / len(graph.grid))
    return max(_LEAST_EPS, _EPS * axis ** (1 / 3)) * length[graph.part]


def _sources(
    graph: _Graph,
    eps: Float[Tensor, "nodes"],
    walls: Bool[Tensor, "fields *grid"],
    columns: int,
    position: Float[Tensor, "sources d"],
    value: Float[Tensor, "sources"],
    field: Int[Tensor, "sources"],
    column: Int[Tensor, "sources"],
) -> _Sources:
    """Return the sources at ``position``, each with its field and column."""
    d, grid = len(graph.grid), torch.tensor(graph.grid)
    size = math.prod(graph.grid)
    M, omega = interpolate((graph.M, graph.omega), position, graph.grid, first=field * size)

    # Heat starts at the corners of the cell, in the shares of linear interpolation; the values
    # are counted from the least in their column, so that none underflows alone.
    least = torch.full((columns * len(walls),), math.inf, dtype=torch.float64)
    place = column * len(walls) + field
    least.scatter_reduce_(0, place, value.detach(), "amin")
    heat = torch.zeros((len(graph.M), columns), dtype=torch.float64)
    walled = bool(walls.any())
    for row, share in nodes_around(position, graph.grid):
        index = torch.stack(torch.unravel_index(row, graph.grid), -1)
        node = field * size + row
        delay = value - least[place] + (graph.omega[node] * (index - position)).sum(-1)
        some = share.detach() > 0
        if walled:
            some &= _clear(walls, field, position.detach(), index)
        heat = heat.index_put(
            (node[some], column[some]), (share * (-delay / eps[node]).exp())[some], accumulate=True
        )

    # Near each source, the chords: half by the metric of either end, wrong by the cube of it.
    axis = torch.arange(-_NEAR, _NEAR + 2)
    box = torch.stack(torch.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    index = position.detach().floor().long()[:, None] + box
    near = (index - position.detach()[:, None]).abs() <= _NEAR
    which, k = torch.nonzero((near & (index >= 0) & (index < grid)).all(-1), as_tuple=True)
    index = index[which, k]
    node = field[which] * size + _flat(index, graph.grid)
    if walled:
        keep = _clear(walls, field[which], position.detach()[which], index)
        which, index, node = which[keep], index[keep], node[keep]
    v = index - position[which]
    chord = chord_norm(M[which], omega[which], v) + chord_norm(graph.M[node], graph.omega[node], v)
    length = value[which] + chord / 2
    # Of several chords to a node the shortest counts.
    order = torch.argsort(length.detach(), descending=True, stable=True)
    mark = torch.full((columns * len(graph.M),), -1)
    # One after the other, where they are the same place: the last write is the shortest.
    array_of(mark)[array_of((column[which] * len(graph.M) + node)[order])] = array_of(order)
    chosen = mark[mark >= 0]
    which = which[chosen]
    return _Sources(heat, node[chosen], column[which], length[chosen], which, value[which])


def _flat(index: Int[Tensor, "*batch d"], grid: Sequence[int]) -> Int[Tensor, "*batch"]:
    stride = torch.tensor([math.prod(grid[a + 1 :]) for a in range(len(grid))])
    return (index * stride).sum(-1)


@dataclass(frozen=True)
class Heat(DistanceMethod):
    """The Finsler heat method: two linear solves, on the CPU in float64.

    No distance is below the least start of the sources.

    ``time`` is that of the step of heat, in squared units of distance; by default of the order of
    the squared length of an edge, which makes the error of first order in it. A longer time
    smooths: it fills narrow valleys of the metric and rounds the ridges where fronts meet. One
    whose heat underflows on its way, or is even up to rounding, is refused.

    K. Crane, C. Weischedel, M. Wardetzky, "Geodesics in Heat" (2013), for the three steps; F.
    Bonnans, G. Bonnet, J.-M. Mirebeau, "A linear finite-difference scheme for approximating Randers
    distances on Cartesian grids" (2021), for a linear equation with Randers distances, here in
    divergence form.
    """

    time: float | None = None

    front = False

    def __post_init__(self) -> None:
        if self.time is not None:
            object.__setattr__(self, "time", as_number("time", self.time, above=0))

    def solve(self, problem: EikonalProblem) -> Front:
        """Return the distances, differentiable in the metric and the seeds."""
        problems = len(problem.seeds)
        if problem.shared:
            distance = self._solve(problem)
        else:
            # Fields that differ are solved for in groups, which bounds the memory.
            step = max(1, _CHUNK // math.prod(problem.grid))
            groups = (problem[p : p + step] for p in range(0, problems, step))
            distance = torch.cat([self._solve(group) for group in groups])
        # All nodes at once: nothing is saved by stopping early.
        return Front(torch.where(distance <= problem.radius, distance, math.inf))

    def _solve(self, problem: EikonalProblem) -> Float[Tensor, "problems *grid"]:
        graph = _graph(problem)
        problems, fields = len(problem.seeds), len(graph.M) // math.prod(problem.grid)
        time = self.time
        eps = _eps(graph, fields, time)
        if time is not None:
            _check_reach(graph, time)
        position, value = (torch.cat(x) for x in zip(*problem.seeds, strict=True))
        counts = torch.tensor([len(seeds.value) for seeds in problem.seeds])
        number = torch.arange(problems).repeat_interleave(counts)
        none = torch.zeros_like(number)
        # A field of its own for each problem, or a column for each that shares the one.
        field, column = (none, number) if problem.shared else (number, none)
        columns = problems if problem.shared else 1
        walls = problem.walls.expand(fields, *problem.grid)
        sources = _sources(graph, eps, walls, columns, position, value, field, column)
        try:
            distance = _distances(graph, eps, sources)
        except _NoHeatError as error:
            given = "the default time" if time is None else f"time {time:g}"
            advice = "use 'fast_marching'"
            if error.longer is not None:
                advice = f"give a longer time, {error.longer:.3g} arrives, or {advice}"
            raise ValueError(
                f"time: expected heat that arrives at every node, but that of {given} underflows "
                f"on its way; {advice}"
            ) from error
        return distance.T.reshape(-1, *problem.grid)


def _check_reach(graph: _Graph, time: float) -> None:
    edge = float(_edge_length(graph).detach().max())
    low, high = (_SHORT * edge) ** 2, (_LONG * edge * sum(graph.grid)) ** 2
    if not low <= time <= high:
        raise ValueError(
            f"time: expected {1.01 * low:.3g} to {0.99 * high:.3g} on this grid, got {time:g}: "
            "heat of a shorter or longer time has no direction up to rounding. None is a good one"
        )
