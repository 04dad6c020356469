"""Distances of a metric field on its grid, by any of the methods."""

import math
from dataclasses import dataclass
from typing import Any, Literal, final, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv._arrays import Array, is_number, shown
from finslerconv._transforms import refuse_transforms
from finslerconv.geodesics.distances._graph import Graph
from finslerconv.geodesics.distances._heat import Heat
from finslerconv.geodesics.distances._method import (
    DistanceMethod,
    method_named,
    register_method,
    solve,
    solve_finsler,
)
from finslerconv.geodesics.distances._norms import rows_of
from finslerconv.geodesics.distances._sources import Curve, Problems, seeds_of, targets_of
from finslerconv.geodesics.distances.descent import paths_of
from finslerconv.geodesics.distances.fast_iterative import FastIterative
from finslerconv.geodesics.distances.fast_marching import FastMarching
from finslerconv.geodesics.fields import (
    GridMetric,
    as_kind_of,
    as_tensors,
    ensure_valid,
    is_numpy,
    is_tensor,
)

register_method("fast_marching", FastMarching)
register_method("fast_iterative", FastIterative)
register_method("heat", Heat)
register_method("graph", Graph)


@final
@dataclass(frozen=True, eq=False, repr=False)
class DistanceMap:
    r"""Distances from sources to every node of a grid, with the fronts that carried them.

    All arrays are of the kind and on the device of the field.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, distance
    >>> field = GridMetric(np.broadcast_to(np.eye(2), (5, 5, 2, 2)))
    >>> found = distance(field, [(0, 0), (4, 4)], full=True)
    >>> float(found.distance[0, 2]), found.label[0].tolist()
    (2.0, [0, 0, 0, 0, 0])
    >>> found.path((0, 1)).round(3).tolist()
    [[0.0, 0.0], [0.0, 0.25], [0.0, 0.5], [0.0, 0.75], [0.0, 1.0]]
    """

    distance: Float[Array, "*problems_and_grid"]
    r"""The distances, shape (\*problems, \*grid); infinite where no path leads, or none within the
    radius."""

    label: Int[Array, "*problems_and_grid"]
    """The index of the nearest source, which makes the Voronoi diagram; -1 where none arrives."""

    flow: Float[Array, "*problems_and_grid d"]
    r"""The velocity of the shortest path at the node, of unit speed ``F(flow) = 1``: with which it
    arrives from the source, or with ``reverse`` leaves for it. 0 at the sources and where none
    arrives. Without gradients. Shape (\*problems, \*grid, d)."""

    sources: list[Array]
    """The positions of the sources of each problem, row-major, each of shape (sources, d), which
    ``label`` counts."""

    field: GridMetric
    """The field whose distances these are."""

    reverse: bool
    """Whether the distances are those *to* the sources."""

    values: list[Array]
    """The distances at which the sources of each problem start, each of shape (sources,)."""

    mask: Bool[Array, "*problems_and_grid"] | None
    """Where one may walk, as given."""

    def __repr__(self) -> str:
        grid = self.field.grid_shape
        shape = tuple(self.distance.shape)
        problems = shape[: len(shape) - len(grid)]
        counts = sorted({len(each) for each in self.sources})
        return (
            f"DistanceMap(problems={problems}, grid_shape={grid}, sources={counts[0]}"
            f"{f' to {counts[-1]}' if len(counts) > 1 else ''}, reverse={self.reverse})"
        )

    def path(self, to: Any, *, step: float = 0.25) -> Array | list[Array]:
        """Return the shortest path from the source to the position ``to`` (from it, ``reverse``).

        See :func:`finslerconv.geodesics.minimal_path`.
        """
        walls = None if self.mask is None else _walls(self.field, self.mask)
        return paths_of(self, walls, to, step)


@overload
def distance(
    field: GridMetric,
    sources: Any,
    method: str | DistanceMethod = ...,
    *,
    values: Any = ...,
    reverse: bool = ...,
    mask: Array | None = ...,
    radius: float = ...,
    targets: Any = ...,
    full: Literal[False] = ...,
    **options: Any,
) -> Array: ...


@overload
def distance(
    field: GridMetric,
    sources: Any,
    method: str | DistanceMethod = ...,
    *,
    values: Any = ...,
    reverse: bool = ...,
    mask: Array | None = ...,
    radius: float = ...,
    targets: Any = ...,
    full: Literal[True],
    **options: Any,
) -> DistanceMap: ...


def distance(
    field: GridMetric,
    sources: Any,
    method: str | DistanceMethod = "fast_marching",
    *,
    values: Any = None,
    reverse: bool = False,
    mask: Array | None = None,
    radius: float = math.inf,
    targets: Any = None,
    full: bool = False,
    **options: Any,
) -> Any:
    r"""Return the lengths of the shortest paths from sources to every node of a grid.

    The length of a path ``x(t)`` is the integral of ``F_{x(t)}(x'(t))``; for a Randers metric the
    way there and the way back differ.

    Parameters
    ----------
    field : GridMetric
        A field, or a batch of them; of metrics of any kind in the plane (see the notes).
    sources : array, Curve or list
        Where distances are 0, each problem a set of sources of which the nearest counts:

        - positions, of shape (d,), (sources, d) or (\*problems, sources, d), physical (those of
          nodes are their indices where spacing is 1 and origin 0), between nodes too; integers and
          nested lists of numbers are welcome;
        - a boolean array of shape (\*grid) or (\*problems, \*grid), true at the nodes that are
          sources;
        - a :class:`Curve`, whose points are sources, an eighth of a step apart;
        - a list with one of those for each problem, of as many sources as each likes.

        The axes of the problems broadcast with those of the batch of fields.
    method : {"fast_marching", "fast_iterative", "heat", "graph"} or DistanceMethod
        How: see the notes. A method of your own is passed itself, or by the name under which
        :func:`register_method` has it.
    values : array, optional
        The distances at which the sources start instead of 0, of a shape that broadcasts with
        (\*problems, sources).
    reverse : bool
        Whether to measure the distances *to* the sources.
    mask : bool array, optional
        True where one may walk, of shape (\*grid) or with axes before it that broadcast with the
        problems. Where no path leads around the obstacles the distance is infinite. Each False is
        a wall that fills the cell (square or cube) around its node. In all methods, and in paths, a
        way leads from cell to cell through their faces: it may touch the corner of a wall, but not
        pass between two walls that touch at a corner (in space, along an edge).
    radius : float
        The distance at which to stop: beyond it the result is infinite, and nothing is computed.
    targets : array, Curve or list, optional
        Positions at which to stop, as those of ``sources``: when the front has reached all of them
        (the nodes around each), so that paths lead there. What is finite then is what it would be
        without targets; the nodes that the front has not reached are infinite. By "fast_marching"
        only. Where one of them is not reached at all, behind walls or beyond the radius, all that
        is reached is computed.
    full : bool
        Whether to return a :class:`DistanceMap`, with the front's labels and flow; not by "heat",
        which has no front.
    \*\*options
        Of the method, see the notes.

    Returns
    -------
    array, shape (\*problems, \*grid), or DistanceMap
        Of the kind, dtype and device of the field. Differentiable (once) in ``field.M`` and
        ``field.omega`` or the parameters of other metrics, the positions of the sources and
        ``values`` where those are tensors, but for "graph".

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, an option is not one of the method's, or the method is
        not for the field's metrics.
    ValueError
        If there is no source, or one outside the grid, not finite, or inside an obstacle (its
        nearest node counts; of a curve or a boolean array, if all of it is); if the metrics, the
        mask or an option are wrong.
    RuntimeError
        If the result is differentiated twice: second derivatives are not computed. If forward-mode
        derivatives are asked for, or under a transform of ``torch.func`` (``jvp``, ``grad``,
        ``jacrev``, ``vmap``): there is reverse mode by ``backward()`` only.

    Notes
    -----
    The methods, and their options:

    ``"fast_marching"``
        A front goes over the nodes once, by a priority queue: compiled, on the CPU. ``order`` is 1
        or 2 (the default), that of the differences. ``factorise`` (True) takes the front's
        roundness about a lone source out of them. With order 2 the mean error falls at an
        order of 1.7 to 2 in the spacing on smooth fields, and the largest at 1.3 to 2.
    ``"fast_iterative"``
        The same scheme of first order, by Jeong and Whitaker's iteration over all nodes and
        problems at once: PyTorch, on a GPU too. ``factorise`` as above, in the plane only. An
        update counts that lowers a value by more than the fraction ``tolerance`` (0) of it; after
        ``max_iterations`` passes (by default more than the longest maze takes) a RuntimeError says
        that the values have not settled.
    ``"heat"``
        Two sparse linear solves, smooth in everything, on the CPU. ``time`` is that of the step of
        heat, in squared units of distance (by default of the order of a squared edge).
    ``"graph"``
        Dijkstra over straight steps of up to ``ring`` (3) nodes, whose lengths are read by the
        ``rule`` "midpoint" or "trapezoid"; no gradients.

    All are for Riemannian and Randers metrics. ``"fast_marching"`` takes metrics of any kind in the
    plane, and ``"graph"`` too, and in space asymmetric quadratic and Matsumoto metrics. Stencils
    are acute for the norm itself. The norms of :class:`~finslerconv.metrics.AsymmetricQuadratic`,
    :class:`~finslerconv.metrics.Matsumoto` and :class:`~finslerconv.metrics.Tabulated` are
    compiled. Others are tabulated, along 32 to 256 directions: as many as it takes for a relative
    error of 1e-5 between them at the nodes that are looked at (512 of them), or the most.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, distance
    >>> from finslerconv.metrics import Randers
    >>> wind = Randers(np.eye(2), np.array([0.0, 0.5]))  # costly to the right, cheap to the left
    >>> field = GridMetric.from_metric(wind, (5, 5))
    >>> distance(field, (2, 2))[2].round(6)
    array([1. , 0.5, 0. , 1.5, 3. ])
    >>> distance(field, (2, 2), reverse=True)[2].round(6)
    array([3. , 1.5, 0. , 0.5, 1. ])
    """
    if not isinstance(field, GridMetric):
        raise TypeError(
            f"field: expected a GridMetric, got {type(field).__name__}; GridMetric.from_metric and "
            "GridMetric.from_function make one"
        )
    name, solver = method_named(method, options)
    _check_flag("reverse", reverse)
    _check_flag("full", full)
    if full and not solver.front:
        raise ValueError(
            f"full: expected False, because {name!r} has no front whose label and flow could be; "
            "use 'fast_marching'"
        )
    if targets is not None and not solver.stops_at_targets:
        raise ValueError(
            f"targets: expected None, because {name!r} does not find distances in their order; use "
            "'fast_marching', or stop at a radius"
        )
    if not (is_number(radius) and radius > 0):  # NaN neither
        raise ValueError(f"radius: expected a positive number, got {shown(radius)}")
    like, M, omega = as_tensors(like=field.like, M=field.M, omega=field.omega)
    given = _tensors(sources, values)
    refuse_transforms(
        "distance",
        "for positions that are near each other chord_distance has the others too",
        _tensors(M, omega, like, *given),
    )
    ensure_valid(field)
    rows = None
    if M is None:
        scale = torch.tensor(field.spacing, dtype=torch.float64)
        family, rows = rows_of(field.metric, -scale if reverse else scale)
    if torch.is_grad_enabled():
        if not solver.gradients and _wants_gradients(M, omega, rows, *given):
            raise ValueError(
                f"method: {name!r} gives no gradients, and an argument asks for them; detach it "
                "(field.detach()), or use 'fast_marching'"
            )
        if not is_tensor(field.like) and _wants_gradients(*given):
            raise TypeError(
                "field: expected tensors, since the sources or values ask for gradients, got NumPy "
                "arrays; take field.torch(), or detach the sources"
            )
    walls = None if mask is None else _walls(field, mask)
    problems = seeds_of(field, sources, values, walls)
    d = field.dim
    walls = None if walls is None else _per_problem(walls, d, 0, problems)
    stops = None if targets is None else targets_of(field, targets, problems, walls)
    grid = (field.spacing, field.origin, problems.seeds)
    if rows is not None:
        whole = rows.expand(*field.batch_shape, *field.grid_shape, rows.shape[-1])
        each = _per_problem(whole, d, 1, problems)
        front = solve_finsler(solver, family, each, *grid, like, walls, float(radius), stops)
    else:
        M = _per_problem(M, d, 2, problems)
        omega = (
            None if omega is None else _per_problem(-omega if reverse else omega, d, 1, problems)
        )
        front = solve(solver, M, omega, *grid, walls, float(radius), stops, full)
    shape = (*problems.shape, *field.grid_shape)
    lengths = as_kind_of(front.distance.reshape(shape), field.like)
    if not full:
        return lengths
    assert front.label is not None
    assert front.flow is not None
    flow = front.flow.reshape(*shape, d)
    return DistanceMap(
        distance=lengths,
        label=as_kind_of(front.label.reshape(shape), field.like),
        flow=as_kind_of(-flow if reverse else flow, field.like),
        sources=[as_kind_of(seeds.position.detach(), field.like) for seeds in problems.seeds],
        field=field,
        reverse=reverse,
        values=[as_kind_of(seeds.value.detach(), field.like) for seeds in problems.seeds],
        mask=mask,
    )


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


def _tensors(*arguments: Any) -> list[Tensor]:
    """Return the tensors among arguments, in curves and lists too."""
    found = []
    for x in arguments:
        if is_tensor(x):
            found.append(x)
        elif isinstance(x, Curve):
            found += _tensors(x.points)
        elif isinstance(x, list | tuple):
            found += _tensors(*x)
    return found


def _walls(field: GridMetric, mask: Array) -> Bool[Tensor, "*problems_and_grid"]:
    """Return where the mask is False, as a tensor on the CPU."""
    if not (is_numpy(mask) or is_tensor(mask)) or not str(mask.dtype).endswith("bool"):
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(
            f"mask: expected a boolean array, true where one may walk, got {kind}; compare it, for "
            "example mask > 0"
        )
    shape, grid = tuple(mask.shape), field.grid_shape
    if shape[len(shape) - field.dim :] != grid:
        raise ValueError(
            f"mask: expected the shape of the grid {grid}, or axes of problems before it, "
            f"got {shape}"
        )
    return ~torch.as_tensor(mask if is_tensor(mask) else mask.copy()).cpu()


def _per_problem(x: Tensor, d: int, core: int, problems: Problems) -> Tensor:
    """Return ``x`` with one axis of problems: of length 1 where it is the same for all."""
    batch, rest = x.shape[: x.ndim - d - core], x.shape[x.ndim - d - core :]
    if math.prod(batch) == 1:
        return x.reshape(1, *rest)
    return x.expand(*problems.shape, *rest).reshape(-1, *rest)
