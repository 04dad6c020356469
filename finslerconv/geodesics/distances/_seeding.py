"""Where a front starts: the nodes around each source, with their first distances.

A node near a source starts from the length of the chord, by the trapezoidal rule: half by the
source's metric and half by the node's, which is wrong by the cube of the chord. "Near" is as far as
the stencil at the source reaches. In a constant metric all nodes beyond then have their upwind
neighbours accepted before them, and source factorisation is exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from finslerconv._memory import array_of
from finslerconv.geodesics.distances import _stencils
from finslerconv.geodesics.distances._method import EikonalProblem, FinslerProblem
from finslerconv.geodesics.distances._sight import seen
from finslerconv.geodesics.fields import interpolate

# A source that has another one nearer than this (in pixels) counts as part of a curve or a region,
# whose front is not round about it.
_ALONE = 4.0


class Start(NamedTuple):
    """The start of one problem, or of several in one numbering; in pixels, differentiable."""

    node: Int[Tensor, "n"]
    """Row-major indices of the nodes; a node may occur more than once."""
    label: Int[Tensor, "n"]
    """The source that each belongs to."""
    value: Float[Tensor, "n"]
    position: Float[Tensor, "sources d"]
    """The sources, in index coordinates."""
    M: Float[Tensor, "sources d d"]
    omega: Float[Tensor, "sources d"]
    alone: Bool[Tensor, "sources"]
    """Whether the front is round about the source, so that factorisation helps."""

    def to(self, like: Tensor) -> "Start":
        """Return it on the device of ``like``, the floats in its dtype."""
        moved = (x.to(like) if x.is_floating_point() else x.to(like.device) for x in self)
        return Start(*moved)

    def detach(self) -> "Start":
        """Return it without its history."""
        return Start(*(x.detach() for x in self))


class NormStart(NamedTuple):
    """The start of one problem of any norms; in pixels, differentiable."""

    node: Int[Tensor, "n"]
    label: Int[Tensor, "n"]
    value: Float[Tensor, "n"]
    position: Float[Tensor, "sources d"]
    rows: Float[Tensor, "sources parameters"]
    """The parameters of the sources' norms."""
    alone: Bool[Tensor, "sources"]


def chord_norm(
    M: Float[Tensor, "... d d"], omega: Float[Tensor, "... d"], v: Float[Tensor, "... d"]
) -> Float[Tensor, "..."]:
    """Return ``sqrt(v' M v) + omega' v``, with gradient ``omega`` and no NaN at ``v = 0``."""
    square = torch.einsum("...i,...ij,...j->...", v, M, v)
    zero = square <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt()) + (omega * v).sum(-1)


def seed_nodes(problem: EikonalProblem) -> Start:
    """Return the nodes from which the fronts of one problem start.

    A source whose nearest node is a wall starts nothing; it is an error if none starts anything.
    """
    position, value = problem.seeds[0]
    M, omega = (x[0].to("cpu", torch.float64) for x in (problem.M, problem.omega))
    dim, grid = problem.dim, problem.grid
    M_s, omega_s = interpolate([x.flatten(0, dim - 1) for x in (M, omega)], position, grid)
    matrices, forms = array_of(M_s), array_of(omega_s)
    node, label, index, alone = _around(
        position, grid, array_of(problem.walls[0]),
        lambda s: _stencils.reach(matrices[s], forms[s]),
    )  # fmt: skip
    v = index - position[label]
    here = tuple(index.T)
    chord = chord_norm(M_s[label], omega_s[label], v) + chord_norm(M[here], omega[here], v)
    return Start(node, label, value[label] + chord / 2, position, M_s, omega_s, alone)


def seed_norms(problem: FinslerProblem) -> NormStart:
    """Return the nodes from which the fronts of one problem of any norms start."""
    position, value = problem.seeds[0]
    rows, dim, grid = problem.rows[0], problem.dim, problem.grid
    (own,) = interpolate([rows.flatten(0, dim - 1)], position, grid)
    norms = problem.family.compiled(own)
    node, label, index, alone = _around(
        position, grid, array_of(problem.walls[0]),
        lambda s: _stencils.reach_of_norm(norms, s),
    )  # fmt: skip
    v = index - position[label]
    norm = problem.family.norm
    chord = norm(own[label], v) + norm(rows[tuple(index.T)], v)
    return NormStart(node, label, value[label] + chord / 2, position, own, alone)


def _around(
    position: Tensor, grid: tuple[int, ...], walls: np.ndarray, reach_of: Callable[[int], int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the nodes near the sources: number, source and index; and which sources are alone.

    ``reach_of`` tells how many nodes the stencil at a source reaches.
    """
    where = array_of(position)
    sources, dim = where.shape
    alone = np.ones(sources, bool)
    if sources > 1:
        # Sources at one place are one, also where they were computed differently.
        places, which = np.unique(where.round(6), axis=0, return_inverse=True)
        if len(places) > 1:
            gaps = cKDTree(places).query(places, k=2, p=np.inf)[0][:, 1]
            alone = gaps[which.reshape(-1)] > _ALONE
    reach = np.ones(sources, np.int64)
    for s in np.flatnonzero(alone):
        reach[s] = min(reach_of(int(s)), max(grid))

    walled = bool(walls.any())
    nodes, labels = [], []
    for size in np.unique(reach):
        group = np.flatnonzero(reach == size)
        axis = np.arange(-size, size + 1)
        box = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
        corner = np.floor(where[group])[:, None, :]
        fraction = where[group][:, None, :] - corner
        # From ceil(s) - size to floor(s) + size: one fewer to the left of a source between nodes.
        inside = ((box > -size) | (fraction == 0)).all(-1)
        index = corner.astype(np.int64) + box
        inside &= ((index >= 0) & (index < grid)).all(-1)
        which, at = np.nonzero(inside)
        index, label = index[which, at], group[which]
        if walled:
            clear = seen(walls, where[label], index)
            index, label = index[clear], label[clear]
        nodes.append(np.ravel_multi_index(tuple(index.T), grid))
        labels.append(label)
    node, label = np.concatenate(nodes), np.concatenate(labels)
    if not len(node):
        raise ValueError(
            f"seeds: all {sources} sources are inside obstacles; place one where mask is True"
        )
    order = np.argsort(label, kind="stable")
    node_t, label_t = torch.from_numpy(node[order]), torch.from_numpy(label[order])
    index_t = torch.stack(torch.unravel_index(node_t, grid), -1)
    return node_t, label_t, index_t, torch.from_numpy(alone)
