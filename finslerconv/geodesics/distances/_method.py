"""The contract of a distance method: the problem that it is given, and the front that it returns.

A method is a frozen dataclass of its options with a method ``solve``. Its name in
:func:`finslerconv.geodesics.distance` is what it is registered under.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv._arrays import shown
from finslerconv.geodesics.distances._norms import Family


class Seeds(NamedTuple):
    """The sources of one problem, that is of one distance map.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import Seeds
    >>> position, value = torch.tensor([[1.0, 1.0]]), torch.zeros(1)
    >>> seeds = Seeds(position.double(), value.double())
    >>> seeds.position.tolist(), seeds.value.tolist()
    ([[1.0, 1.0]], [0.0])
    """

    position: Float[Tensor, "sources d"]
    """Coordinates, float64."""

    value: Float[Tensor, "sources"]
    """The distance at which each source starts, float64."""


@dataclasses.dataclass(frozen=True, eq=False)
class EikonalProblem:
    r"""Distance problems on one grid: ``F*_x(du) = 1``, where ``u`` is given at the sources.

    Coordinates are indices of nodes, and all vectors are in nodes: the norm of a step ``v`` from a
    node is ``sqrt(v' M v) + omega' v``. The direction is from the sources.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import EikonalProblem, Seeds
    >>> position, value = torch.tensor([[1.0, 1.0]]), torch.zeros(1)
    >>> seeds = Seeds(position.double(), value.double())
    >>> M = torch.eye(2, dtype=torch.float64).expand(1, 4, 5, 2, 2)
    >>> omega = torch.zeros(1, 4, 5, 2, dtype=torch.float64)
    >>> problem = EikonalProblem(M, omega, [seeds], torch.zeros(1, 4, 5, dtype=torch.bool))
    >>> problem.dim, problem.grid, problem.shared
    (2, (4, 5), True)
    """

    M: Float[Tensor, "fields *grid d d"]
    """The matrices, shape (1, \\*grid, d, d) if all problems have the same, else one a problem."""

    omega: Float[Tensor, "forms *grid d"]
    """The one-forms, in the same way; 0 for Riemannian fields."""

    seeds: list[Seeds]
    """The sources of each problem, on the CPU."""

    walls: Bool[Tensor, "masks *grid"]
    """True where one may not walk: one mask for all problems or one a problem, on the CPU."""

    radius: float = math.inf
    """Distances beyond it need not be computed, and are to be infinite."""

    targets: list[Int[np.ndarray, "_"]] | None = None
    """The nodes of each problem, flat, at which a front may stop when it has reached all of them;
    what it has not reached is then infinite. Given only to a method with ``stops_at_targets``."""

    flow: bool = True
    """Whether the velocities of the front are wanted; if not, a method need not compute them."""

    def __post_init__(self) -> None:
        d = self.M.shape[-1]
        if d not in (2, 3) or self.M.ndim != d + 3:
            raise ValueError(
                "M: expected a field of 2 x 2 matrices on a 2-D grid or of 3 x 3 matrices on a 3-D "
                f"grid, shape (problems, *grid, d, d), got {tuple(self.M.shape)}"
            )

    @property
    def dim(self) -> int:
        """The dimension of the space, 2 or 3."""
        return self.M.shape[-1]

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of nodes along each axis."""
        return tuple(self.M.shape[1:-2])

    @property
    def shared(self) -> bool:
        """Whether all problems have the same field and walls."""
        return len(self.M) == len(self.omega) == len(self.walls) == 1

    def __getitem__(self, part: slice) -> "EikonalProblem":
        """Return some of the problems."""
        M, omega, walls = (x[part] if len(x) > 1 else x for x in (self.M, self.omega, self.walls))
        targets = None if self.targets is None else self.targets[part]
        seeds = self.seeds[part]
        return EikonalProblem(M, omega, seeds, walls, self.radius, targets, self.flow)


@dataclasses.dataclass(frozen=True, eq=False)
class FinslerProblem:
    r"""Distance problems of any norms on one grid, as :class:`EikonalProblem` for Randers metrics.

    A norm is a row of parameters of a family of norms: the norm of a step ``v`` from a node is
    ``family.norm(row, v)``.

    Examples
    --------
    A method for norms reads it:

    >>> import torch
    >>> from finslerconv.geodesics import DistanceMethod, Front
    >>> class AtTheSource(DistanceMethod):  # exact where the norm is the same everywhere
    ...     norms = True
    ...     front = gradients = False
    ...     def solve(self, problem):
    ...         axes = map(torch.arange, problem.grid)
    ...         nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    ...         steps = nodes - problem.seeds[0].position[0]
    ...         return Front(problem.family.norm(problem.rows[0], steps)[None])
    """

    family: Family

    rows: Float[Tensor, "fields *grid parameters"]
    r"""The parameters, float64 on the CPU: (1, \*grid, parameters) if all problems have the same,
    else one a problem."""

    seeds: list[Seeds]
    """The sources of each problem, on the CPU."""

    walls: Bool[Tensor, "masks *grid"]
    """True where one may not walk: one mask for all problems or one a problem, on the CPU."""

    radius: float = math.inf
    """Distances beyond it need not be computed, and are to be infinite."""

    targets: list[Int[np.ndarray, "_"]] | None = None
    """The nodes of each problem, flat, at which a front may stop when it has reached all of them;
    what it has not reached is then infinite. Given only to a method with ``stops_at_targets``."""

    @property
    def dim(self) -> int:
        """The dimension of the space, 2 or 3."""
        return self.rows.ndim - 2

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of nodes along each axis."""
        return tuple(self.rows.shape[1:-1])

    @property
    def shared(self) -> bool:
        """Whether all problems have the same field and walls."""
        return len(self.rows) == len(self.walls) == 1

    def __getitem__(self, part: slice) -> "FinslerProblem":
        """Return some of the problems."""
        rows, walls = (x[part] if len(x) > 1 else x for x in (self.rows, self.walls))
        targets = None if self.targets is None else self.targets[part]
        return FinslerProblem(self.family, rows, self.seeds[part], walls, self.radius, targets)


class Front(NamedTuple):
    """What a method returns: distances, nearest sources, and the velocities of the paths.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import Front
    >>> front = Front(torch.zeros(1, 3, 3, dtype=torch.float64))
    >>> tuple(front.distance.shape), front.label
    ((1, 3, 3), None)
    """

    distance: Float[Tensor, "problems *grid"]
    """Infinite where no path leads, or none within the radius."""

    label: Int[Tensor, "problems *grid"] | None = None
    """The index of the nearest source, -1 where none is; None of a method without ``front``."""

    flow: Float[Tensor, "problems *grid d"] | None = None
    """The velocities of the arriving paths, ``F(flow) = 1``, in nodes; 0 at the sources and where
    none arrives; None of a method without ``front``, or where they are not wanted."""


class DistanceMethod(ABC):
    """A way to compute distances on a grid. Subclasses are frozen dataclasses of their options.

    Options are checked in ``__post_init__``. The class attributes say what a method can do.

    Examples
    --------
    The number of steps along the axes from the sources, whatever the metric:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import torch
    >>> from finslerconv.geodesics import DistanceMethod, Front, GridMetric, distance
    >>> @dataclass(frozen=True)
    ... class Steps(DistanceMethod):
    ...     front = gradients = False
    ...     def solve(self, problem):
    ...         axes = map(torch.arange, problem.grid)
    ...         nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    ...         steps = [
    ...             (nodes - s.position[:, None, None]).abs().sum(-1).amin(0) for s in problem.seeds
    ...         ]
    ...         return Front(torch.stack(steps))
    >>> field = GridMetric(np.broadcast_to(np.eye(2), (3, 4, 2, 2)))
    >>> distance(field, (1, 0), Steps())
    array([[1., 2., 3., 4.],
           [0., 1., 2., 3.],
           [1., 2., 3., 4.]])
    """

    front: ClassVar[bool] = True
    """Whether there are labels and a flow, as well as distances."""

    gradients: ClassVar[bool] = True
    """Whether the distances are differentiable in the metric, the seeds' positions and values."""

    stops_at_targets: ClassVar[bool] = False
    """Whether a front ends when it has reached the problem's ``targets``."""

    any_device: ClassVar[bool] = False
    """Whether ``M`` and ``omega`` stay on the device and in the dtype of the field; else they are
    float64 on the CPU. The front is moved back in both cases."""

    @abstractmethod
    def solve(self, problem: EikonalProblem) -> Front:
        """Return the front of all problems."""

    def solve_finsler(self, problem: FinslerProblem) -> Front:
        """Return the front of all problems of norms that are not Randers metrics.

        Raises
        ------
        TypeError
            Unless a subclass replaces it.
        """
        raise TypeError(
            f"field: expected Riemannian or Randers metrics, which {type(self).__name__} is for; "
            "method 'fast_marching' takes any metric in the plane, and 'graph' in space too"
        )


_METHODS: dict[str, type[DistanceMethod]] = {}


def register_method(name: str, method: type[DistanceMethod]) -> None:
    """Make a distance method known to :func:`finslerconv.geodesics.distance` by a name.

    Raises
    ------
    TypeError
        If ``method`` is no subclass of :class:`DistanceMethod` that is a dataclass.
    ValueError
        If another method has the name.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch
    >>> from finslerconv.geodesics import DistanceMethod, Front, register_method
    >>> @dataclass(frozen=True)
    ... class Nowhere(DistanceMethod):
    ...     front = gradients = False
    ...     def solve(self, problem):
    ...         return Front(torch.full((len(problem.seeds), *problem.grid), torch.inf))
    >>> register_method("nowhere", Nowhere)
    """
    if not (
        isinstance(method, type)
        and issubclass(method, DistanceMethod)
        and dataclasses.is_dataclass(method)
    ):
        raise TypeError(
            "method: expected a subclass of DistanceMethod that is a dataclass, got "
            f"{shown(method)}"
        )
    known = _METHODS.setdefault(name, method)
    # The same class again is a notebook's cell that runs again.
    if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"name: expected a new one, got {name!r}, which is {known.__qualname__}")
    _METHODS[name] = method


def method_named(method: Any, options: dict[str, Any]) -> tuple[str, DistanceMethod]:
    """Return a method with its options set, and what to call it in messages."""
    if isinstance(method, DistanceMethod):
        if options:
            raise TypeError(
                f"{next(iter(options))}: expected no options beside a {type(method).__name__}, "
                "which has its own"
            )
        return next((n for n, m in _METHODS.items() if m is type(method)), str(method)), method
    if not isinstance(method, str) or method not in _METHODS:
        hint = "; chord_distance compares pairs of points" if str(method) == "chord" else ""
        wanted = ", ".join(repr(name) for name in _METHODS)
        raise ValueError(f"method: expected one of {wanted}, got {shown(method)}{hint}")
    known = _options(method)
    for name in options:
        if name not in known:
            others = [repr(other) for other in _METHODS if name in _options(other)]
            hint = f" (one of {' and '.join(others)})" if others else ""
            raise TypeError(
                f"{name}: method {method!r} has no such option{hint}; it has {', '.join(known)}"
            )
    return method, _METHODS[method](**options)


def _options(method: str) -> list[str]:
    return [option.name for option in dataclasses.fields(_METHODS[method])]  # type: ignore[arg-type]


def solve(
    method: DistanceMethod,
    M: Float[Tensor, "fields *grid_and_matrix"],
    omega: Float[Tensor, "forms *grid_and_form"] | None,
    spacing: float | Sequence[float],
    origin: float | Sequence[float],
    seeds: list[Seeds],
    walls: Bool[Tensor, "..."] | None = None,
    radius: float = math.inf,
    targets: list[Int[np.ndarray, "_"]] | None = None,
    flow: bool = True,
) -> Front:
    """Return the front of a method on a grid in physical units, as tensors like ``M``.

    ``omega`` is None for Riemannian fields. Node ``i`` lies at ``origin + spacing * i``. Walls are
    one mask for all problems or one a problem. ``flow`` tells whether the velocities are wanted.
    """
    d, grid = M.shape[-1], M.shape[1:-2]
    h = torch.as_tensor(spacing, dtype=torch.float64).expand(d)
    wanted = M if method.any_device else torch.empty(0, dtype=torch.float64)
    fields = M.to(wanted)
    forms = fields.new_zeros(d).expand(1, *grid, d) if omega is None else omega.to(wanted)
    if not bool((h == 1).all()):
        fields, forms = fields * (h[:, None] * h).to(wanted), forms * h.to(wanted)
    starts, blocked = _in_nodes(seeds, walls, grid, h, origin)
    problem = EikonalProblem(fields, forms, starts, blocked, radius, targets, flow)
    return _in_units(method.solve(problem), h, M)


def solve_finsler(
    method: DistanceMethod,
    family: Family,
    rows: Float[Tensor, "fields *grid_and_row"],
    spacing: float | Sequence[float],
    origin: float | Sequence[float],
    seeds: list[Seeds],
    like: Tensor,
    walls: Bool[Tensor, "..."] | None = None,
    radius: float = math.inf,
    targets: list[Int[np.ndarray, "_"]] | None = None,
) -> Front:
    """Return the front of a method for any norms, as :func:`solve` does; as tensors like ``like``.

    The rows are those of norms of steps in nodes.
    """
    grid = rows.shape[1:-1]
    h = torch.as_tensor(spacing, dtype=torch.float64).expand(len(grid))
    starts, blocked = _in_nodes(seeds, walls, grid, h, origin)
    problem = FinslerProblem(family, rows, starts, blocked, radius, targets)
    return _in_units(method.solve_finsler(problem), h, like)


def _in_nodes(
    seeds: list[Seeds],
    walls: Tensor | None,
    grid: Sequence[int],
    h: Tensor,
    origin: float | Sequence[float],
) -> tuple[list[Seeds], Tensor]:
    """Return seeds in coordinates of nodes, and walls over the grid, on the CPU."""
    o = torch.as_tensor(origin, dtype=torch.float64).expand(len(grid))
    starts = [
        Seeds((position.cpu().double() - o) / h, value.cpu().double()) for position, value in seeds
    ]
    blocked = torch.zeros(tuple(grid), dtype=torch.bool) if walls is None else walls
    return starts, blocked.cpu().reshape(-1, *grid)


def _in_units(front: Front, h: Tensor, like: Tensor) -> Front:
    """Return a front with velocities in physical units, as tensors like ``like``."""
    distance, label, flow = front
    return Front(
        distance.to(like),
        None if label is None else label.to(like.device),
        None if flow is None else (flow * h.to(flow)).to(like),
    )


def window_distances(
    method: DistanceMethod,
    M: Float[Tensor, "windows *window_and_matrix"],
    omega: Float[Tensor, "windows *window_and_form"],
    spacing: float,
    centre: Int[Tensor, "windows d"],
) -> Float[Tensor, "windows *window"]:
    """Return the distances in many windows, each with a field of its own, from a node of each.

    ``centre`` holds the indices of those nodes. The fields are in the units of ``spacing``.
    """
    zero = torch.zeros(1, dtype=torch.float64)
    seeds = [Seeds(index[None] * spacing, zero) for index in centre.double()]
    return solve(method, M, omega, spacing, 0.0, seeds, flow=False).distance
