"""The updates of the values: which nodes they read, and what they give."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from finslerconv._memory import array_of
from finslerconv.geodesics.distances._heat import selling_weights
from finslerconv.geodesics.distances._method import EikonalProblem
from finslerconv.geodesics.distances._seeding import chord_norm
from finslerconv.geodesics.distances._stencils import acute_stencils, selling_stencils
from finslerconv.geodesics.distances.fast_iterative._numbers import MetricAt
from finslerconv.geodesics.distances.fast_marching import neighbours


class Updates(NamedTuple):
    """The updates of a field, which of them read a node, and what they need of the metric.

    In 2-D an update is a sector ``(e1, e2)`` of the stencil of a node; in 3-D there is one update
    a node, with Selling's six pairs of neighbours and the six along the axes. A problem of N nodes
    has N + 1 numbers: the last is a node that is never reached and stands for missing neighbours.
    Where every problem has a field of its own, the numbers run on from problem to problem.
    """

    node: Int[Tensor, "updates"]
    """The node that is updated."""
    neighbour: Int[Tensor, "updates k"]
    """The nodes that are read: (x + e1, x + e2), or all x + e, all x - e, and the axes'."""
    offset: Float[Tensor, "updates k d"]
    """Their offsets, in nodes."""
    table: Float[Tensor, "updates c"]
    """2-D: the entries 11, 12, 22 and the determinant of the Gram matrix of (e1, e2) in M, and
    ``omega . e``, two. 3-D: the six weights of ``M^-1 = sum of weight e e'``, ``omega . e``, and
    the lengths of the axes' steps."""
    M: Float[Tensor, "nodes d d"]
    omega: Float[Tensor, "nodes d"]
    """The metric at every number, in nodes."""
    place: Float[Tensor, "nodes d"]
    """The place of every number in its grid."""
    start: Int[Tensor, "nodes_and_one"]
    dependent: Int[Tensor, "readings"]
    """The updates that read node y are ``dependent[start[y]:start[y + 1]]``."""
    shared: bool
    """Whether all problems use the same."""
    causal: bool
    """Whether a node depends on none of a larger value."""


def updates_of(problem: EikonalProblem) -> Updates:
    """Return the updates of all fields (one, or one a problem), on the device of ``M``."""
    M, omega, walls, d, grid = problem.M, problem.omega, problem.walls, problem.dim, problem.grid
    fields, size = max(len(M), len(omega), len(walls)), math.prod(grid)
    matrices = array_of(M.cpu().double().reshape(-1, size, d, d))
    forms = array_of(omega.cpu().double().reshape(-1, size, d))
    masks = array_of(walls)
    build = _sectors if d == 2 else _selling
    parts = []
    for number in range(fields):
        one = (x[number if len(x) > 1 else 0] for x in (matrices, forms, masks))
        node, neighbour, offset, table = build(*one)
        parts.append((node + number * (size + 1), neighbour + number * (size + 1), offset, table))
    node, neighbour, offset, table = (np.concatenate(part) for part in zip(*parts, strict=True))

    total = fields * (size + 1)
    reads = neighbour.ravel()
    dependent = np.argsort(reads, kind="stable")
    start = np.concatenate(([0], np.cumsum(np.bincount(reads, minlength=total))))
    places = np.indices(grid).reshape(d, -1).T[None]

    def numbers(x: np.ndarray) -> Tensor:
        return torch.as_tensor(x, device=M.device)

    def floats(x: np.ndarray) -> Tensor:
        return torch.as_tensor(x, device=M.device, dtype=M.dtype)

    return Updates(
        node=numbers(node),
        neighbour=numbers(neighbour),
        offset=floats(offset),
        table=floats(table),
        M=_by_number(floats(matrices), fields),
        omega=_by_number(floats(forms), fields),
        place=_by_number(floats(places), fields),
        start=numbers(start),
        dependent=numbers(dependent // neighbour.shape[1]),
        shared=fields == 1,
        causal=d == 2 or not forms.any(),
    )


def _by_number(x: Float[Tensor, "some size *entry"], fields: int) -> Float[Tensor, "all *entry"]:
    """Return the entries of all nodes by number, 0 at the node that is never reached."""
    x = x.expand(fields, *x.shape[1:])
    return torch.cat((x, torch.zeros_like(x[:, :1])), 1).flatten(0, 1)


def _sectors(
    M: np.ndarray, omega: np.ndarray, walls: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return node, neighbours, offsets and table of the sectors of one 2-D field."""
    size, width = len(M), walls.shape[1]
    stencils = acute_stencils(M.reshape(size, 4), omega, walls)
    start, tip = stencils.start, stencils.offset.astype(np.int64)
    follower = np.arange(1, len(tip) + 1)
    follower[start[1:] - 1] = start[:-1]
    node = np.repeat(np.arange(size), np.diff(start))
    e = np.stack((tip, tip[follower]), axis=1)
    row, column = node[:, None] // width + e[..., 0], node[:, None] % width + e[..., 1]
    present = (e != 0).any(axis=2)
    # The one stencil of a grid of one node does not know where the grid ends.
    present &= (row >= 0) & (row < walls.shape[0]) & (column >= 0) & (column < width)
    neighbour = np.where(present, row * width + column, size)
    some = present.any(axis=1) & ~walls.ravel()[node]
    node, neighbour, e, present = node[some], neighbour[some], e[some].astype(float), present[some]
    gram = np.einsum("nki,nij,nlj->nkl", e, M[node], e)
    # A neighbour that is missing is never read: any length will do that leaves no 0 / 0.
    for k in range(2):
        gram[~present[:, k], k, k] = 1.0
    det = gram[:, 0, 0] * gram[:, 1, 1] - gram[:, 0, 1] ** 2
    w = np.einsum("nki,ni->nk", e, omega[node])
    entries = (gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1], det, w[:, 0], w[:, 1])
    return node, neighbour, e, np.stack(entries, axis=1)


def _selling(
    M: np.ndarray, omega: np.ndarray, walls: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return node, neighbours, offsets and table of the six pairs of one 3-D field.

    Where one of the twelve neighbours is missing, the six next nodes are neighbours too.
    """
    size = len(M)
    stencils = selling_stencils(np.linalg.inv(M))
    half = stencils.offset.astype(np.int64)
    bits = np.empty(size, np.int64)
    neighbours(stencils.offset, walls, bool(walls.any()), bits)
    node = np.flatnonzero(~walls.ravel())
    bits = bits[node]
    axes = np.broadcast_to(np.eye(3, dtype=np.int64), (len(node), 3, 3))
    half = half[node]
    e = np.concatenate((half, -half, axes, -axes), axis=1)
    index = np.asarray(np.unravel_index(node, walls.shape)).T[:, None] + e
    inside = np.all((index >= 0) & (index < walls.shape), axis=2)
    flat = np.ravel_multi_index(
        np.moveaxis(np.where(inside[..., None], index, 0), 2, 0), walls.shape
    )
    present = inside & ~walls.ravel()[flat]
    present[:, :12] &= (bits[:, None] >> np.arange(12) & 1).astype(bool)
    present[:, 12:] &= (bits != 4095)[:, None]
    neighbour = np.where(present, flat, size)
    form = (omega[node] if len(omega) > 1 else omega)[:, None]
    w = (half * form).sum(2)
    step = e[:, 12:].astype(float)
    length = np.sqrt(np.einsum("nki,nij,nkj->nk", step, M[node], step)) - (step * form).sum(2)
    table = np.concatenate((stencils.weight[node], w, length), axis=1)
    return node, neighbour, e.astype(float), table


def value_of(read: Float[Tensor, "n k"], table: Float[Tensor, "n c"]) -> Float[Tensor, "n"]:
    """Return the values that updates give whose neighbours have the values ``read``."""
    if read.shape[1] == 2:
        return sector(read, table)[0]
    return _upwind(read, table)[0]


def weights_of(read: Float[Tensor, "n k"], table: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
    """Return the derivatives of the updates' values in ``read``, which are weights of sum 1."""
    return (sector if read.shape[1] == 2 else _upwind)(read, table)[1]


def sector(
    read: Float[Tensor, "n 2"], table: Float[Tensor, "n 6"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 2"]]:
    """Return the least of ``l u1 + (1 - l) u2 + F(-(l e1 + (1 - l) e2))``, and (l, 1 - l).

    With ``a_i = u_i - omega . e_i`` the problem is Riemannian. Its solution is written as the
    height above ``a_1``, so that only differences of nearby values are rounded.
    """
    (u1, u2), (g11, g12, g22, det, w1, w2) = read.unbind(1), table.unbind(1)
    step = (u2 - u1) - (w2 - w1)
    chord = g11 + g22 - 2 * g12
    height = ((g11 - g12) * step + (det * (chord - step * step)).sqrt()) / chord
    l1 = g22 * height - g12 * (height - step)
    l2 = g11 * (height - step) - g12 * height
    # False where the root is not real, or a neighbour infinite: then these are NaN.
    inside = (l1 > 0) & (l2 > 0)
    edge1, edge2 = u1 + (g11.sqrt() - w1), u2 + (g22.sqrt() - w2)
    value = torch.where(inside, u1 + (height - w1), torch.minimum(edge1, edge2))
    one = torch.where(inside, l1 / (l1 + l2), (edge1 <= edge2).to(value.dtype))
    return value, torch.stack((one, 1 - one), 1)


def _upwind(
    read: Float[Tensor, "n 18"], table: Float[Tensor, "n 18"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 18"]]:
    """Return the solution u of ``sum of weight_k max(0, u - m_k)^2 = 1``, and ``du / d read``.

    ``m_k`` is the lesser of ``u(x + e_k) - omega . e_k`` and ``u(x - e_k) + omega . e_k``. A single
    step along an axis counts where it is less.
    """
    weight, w, length = table.split(6, 1)
    ahead, behind = read[:, :6] - w, read[:, 6:12] + w
    m = torch.minimum(ahead, behind).masked_fill(weight <= 0, math.inf)
    m, order = m.sort(1)
    least = m[:, :1]
    known = m.isfinite()
    rise = torch.where(known, m - least, 0.0)
    used = torch.where(known, weight.gather(1, order), 0.0)
    s0, s1, s2 = (x.cumsum(1) for x in (used, used * rise, used * rise * rise))
    heights = (s1 + (s1 * s1 - s0 * (s2 - 1)).sqrt()) / s0
    # The root of the first k terms counts as long as it is above the k-th; at k = 1 it is.
    k = (((heights > rise) & known).sum(1, keepdim=True) - 1).clamp(min=0)
    height = heights.gather(1, k)
    value = torch.where(known[:, :1], least + height, math.inf)[:, 0]
    slope = (used * (height - rise).clamp(min=0)).nan_to_num(0.0)
    slope = slope / slope.sum(1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
    slope = torch.zeros_like(slope).scatter(1, order, slope)
    forwards = ahead <= behind
    slope = torch.cat((slope * forwards, slope * ~forwards), 1)

    single, which = (read[:, 12:] + length).min(1, keepdim=True)
    stepped = single[:, 0] < value
    slope = torch.where(stepped[:, None], 0.0, slope)
    one = torch.zeros_like(length).scatter(1, which, stepped[:, None].to(length.dtype))
    return torch.where(stepped, single[:, 0], value), torch.cat((slope, one), 1)


def upwind_terms(
    offset: Float[Tensor, "n 18 3"],
    at: MetricAt,
    value: Float[Tensor, "n"],
    read: Float[Tensor, "n 18"],
    weight: Float[Tensor, "n 18"],
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Return the local terms of the derivative of 3-D values, and the velocities.

    With ``G = sum of rho_k max(0, u - m_k)^2``, which is 1, ``du = -dG / G_u`` at fixed neighbours.
    """
    e = offset[:, :12]
    rho = selling_weights(torch.linalg.inv(at.M), e[:, :6]).repeat(1, 2)
    used = weight[:, :12] > 0
    form = torch.einsum("nki,ni->nk", e, at.omega)
    rise = torch.where(used, value[:, None] - read[:, :12] + form, 0.0)
    slope = 2 * (rho * rise).sum(1).detach()
    move = -((rho * rise)[..., None] * e).sum(1).detach()
    single = weight[:, 12:].any(1)
    local = -(rho * rise * rise).sum(1) / torch.where(single, 1.0, slope)
    step = -(weight[:, 12:, None] * offset[:, 12:]).sum(1)
    length = chord_norm(at.M, at.omega, step)
    return torch.where(single, length, local), torch.where(single[:, None], step, move)
