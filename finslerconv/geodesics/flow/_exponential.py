"""The exponential map: geodesics from their starts and first velocities."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint

from finslerconv._arrays import Array, as_integer, as_number, is_number, shown
from finslerconv._memory import array_of
from finslerconv._threads import run, share
from finslerconv._transforms import is_transformed, needs_formulas, refuse_transforms
from finslerconv.geodesics.fields import (
    GridMetric,
    MetricField,
    Positions,
    as_tensors,
    check_finite,
    first_rows,
    like,
    read_positions,
    shown_shape,
)
from finslerconv.geodesics.flow import _numba as kernels
from finslerconv.geodesics.flow._hamiltonian import (
    Grid,
    grid_metric,
    grid_rates,
    grid_table,
    momentum,
    rates,
    scaled,
    velocity,
)
from finslerconv.geodesics.flow._simd import WIDE

Method = Literal["auto", "rk4", "dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
"""How geodesics are integrated: Runge-Kutta of fixed steps, or torchdiffeq's adaptive methods."""

_ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")

# Rays that are integrated at once by PyTorch; of more, the states between steps would fill memory.
_TILE = 2**17

# Of the field, by an adaptive method: about 10 s for a few rays.
_MOST_EVALUATIONS = 20_000

# Below so many evaluations of the field a second thread costs more than it brings.
_PART_WORK = 20_000
_MOST_PARTS = 16


class GeodesicFlow(NamedTuple):
    r"""Geodesics at given times: where they are, how fast, and with which momentum.

    All of shape (times, \*batch, d).
    """

    position: Array
    velocity: Array
    """Of constant length ``F_x(velocity)`` along a geodesic."""

    momentum: Array
    """``p = F dF(velocity)``, of constant dual length."""

    def __repr__(self) -> str:
        return f"GeodesicFlow(times={len(self.position)}, batch_shape={self.position.shape[1:-1]})"


def exponential(
    field: MetricField,
    x: Positions,
    v: Positions,
    *,
    time: float = 1.0,
    method: Method = "auto",
    steps: int = 16,
    tolerance: float | None = None,
) -> Float[Array, "*_ d"]:
    r"""Return where the geodesics that pass ``x`` at time 0 with velocity ``v`` are at a time.

    From time 0 on this is the exponential map ``exp_x(time v)``. At a negative time it is the
    geodesic's own past, which on an asymmetric metric is another place than ``exp_x(time v)``: see
    the notes.

    A geodesic keeps its speed ``F(v)``, so ``exp_x(v)`` is at distance ``F_x(v)`` from ``x`` as
    long as no other path is shorter (on a linear grid up to its error, see below). Differentiable
    in ``x``, ``v`` and the field; at ``v = 0`` the value is ``x`` and the derivatives are those of
    ``x + v``.

    Parameters
    ----------
    field : GridMetric, FunctionMetric or MetricField
    x : array or sequence, shape (\*batch, ..., d)
        Starts, physical positions; float32 or float64, NumPy or PyTorch, or nested sequences of
        numbers, taken in the kind of ``v`` or else of the field. Of a :class:`GridMetric` of
        several fields the first axes are the batch of the fields.
    v : array or sequence, shape (\*batch, ..., d)
        Velocities, in positions per unit of time; broadcast against ``x``.
    time : float
        The time of the journey; negative for where the geodesic was before it came to ``x``.
    method : {"auto", "rk4", "dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"}
        ``"rk4"`` takes ``steps`` equal steps of the classical method of order 4: for a planar
        :class:`GridMetric` with linear interpolation on the CPU it is compiled and runs on all
        threads, elsewhere it goes through PyTorch in tiles. The others are the adaptive methods of
        torchdiffeq. ``"auto"`` is ``"rk4"`` for grids and ``"dopri8"`` for other fields.
    steps : int
        Number of steps of ``"rk4"``.
    tolerance : float, optional
        Error per step of the adaptive methods, relative and absolute, of the worst geodesic;
        1e-10 in float64 and 1e-5 in float32 unless given. On a linear grid steps shrink at every
        line of nodes: 1e-6 is enough there for the grid's own error, and several times as fast.

    Returns
    -------
    array, shape (\*batch, ..., d)

    Raises
    ------
    TypeError
        If arrays are of different kinds, or not of float32 or float64.
    ValueError
        If shapes do not fit, numbers are not finite, or an option is unknown, or an adaptive
        method cannot keep its tolerance: within 20 000 evaluations of the field, or at all.
    RuntimeError
        If the result of the compiled ``"rk4"`` is differentiated twice, or an adaptive method is
        asked for forward-mode derivatives or called under a transform of ``torch.func``.

    Notes
    -----
    *Two ways back.* The past of the geodesic, ``exponential(field, x, v, time=-t)``, is on the
    curve that arrives at ``x`` with velocity ``v``; the reversed metric leads there too, as
    ``exponential(field.reverse(), x, -v, time=t)``. A geodesic that sets out from ``x`` the
    opposite way, ``exp_x(-t v)``, is ``exponential(field, x, -v, time=t)``. Both are the same for
    Riemannian metrics; for others the second may be another curve, and its speed is ``F(-v)``.

    Geodesics are the flow of ``H(x, p) = F*_x(p)^2 / 2`` from ``p = F(v) dF_x(v)``. The error of
    ``"rk4"`` falls with the fourth power of ``steps`` for smooth fields, and with the second across
    the lines of nodes of a linear grid, where the force is continuous but has a kink.

    On a linear grid every method follows one flow, whose force interpolates central differences
    of the nodes. It is the derivative of the interpolated metric only up to the square of the
    spacing, and so ``H`` and the speed drift by as much however many steps are taken; with cubic
    interpolation they are kept up to the error of the steps.

    Twice differentiable with cubic interpolation and for fields that are functions; the compiled
    ``"rk4"`` of linear grids has first derivatives, and says so when it is asked for others.
    Forward-mode derivatives and the transforms of ``torch.func`` are for ``"rk4"``, of any field;
    they go through PyTorch's operations.

    Examples
    --------
    In the hyperbolic half-plane the geodesic that sets out sideways is a half-circle, and
    comes down to height ``1 / cosh(t)``:

    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, exponential
    >>> from finslerconv.metrics import Riemannian
    >>> half_plane = FunctionMetric(
    ...     lambda x: Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
    ... )
    >>> x, v = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> exponential(half_plane, x, v)
    tensor([0.6481, 0.7616], dtype=torch.float64)
    """
    x, v = read_positions(field, x=x, v=v)
    start, speed = _checked(field, x, v)
    time = _finite_time(time)
    (position,) = _flow(field, start, speed, [time], method, steps, tolerance).position
    return like(position, x)


def geodesic_flow(
    field: MetricField,
    x: Positions,
    v: Positions,
    times: Sequence[float] | Float[Array, " times"],
    *,
    method: Method = "auto",
    steps: int = 16,
    tolerance: float | None = None,
) -> GeodesicFlow:
    r"""Return the geodesics of :func:`exponential` at several times, with their velocities.

    Parameters
    ----------
    field, x, v, method, tolerance
        As of :func:`exponential`.
    times : sequence of float
        All positive or all negative, away from zero; zero may come first. Negative ones are the
        geodesics' own past, as of :func:`exponential`.
    steps : int
        Number of steps of ``"rk4"`` until the last time, at least one between two times.

    Returns
    -------
    GeodesicFlow
        Positions, velocities and momenta, each of shape (times, \*batch, d), in the kind of ``x``.

    Raises
    ------
    TypeError, ValueError
        As :func:`exponential`, and if ``times`` do not run away from zero.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, geodesic_flow
    >>> from finslerconv.metrics import Randers
    >>> wind = GridMetric.from_metric(Randers(np.eye(2), np.array([0.0, 0.5])), (8, 8))
    >>> flow = geodesic_flow(wind, np.array([2.0, 2.0]), np.array([0.0, 1.0]), [0.0, 1.0, 3.0])
    >>> flow.position
    array([[2., 2.],
           [2., 3.],
           [2., 5.]])
    """
    x, v = read_positions(field, x=x, v=v)
    start, speed = _checked(field, x, v)
    moments = _moments(times)
    flow = _flow(field, start, speed, moments, method, steps, tolerance)
    return GeodesicFlow(*(like(u, x) for u in flow))


def _flow(
    field: MetricField,
    x: Tensor,
    v: Tensor,
    times: list[float],
    method: Method,
    steps: int,
    tolerance: float | None,
) -> GeodesicFlow:
    if method not in ("auto", "rk4", *_ADAPTIVE):
        raise ValueError(f"method: expected 'auto', 'rk4' or one of {_ADAPTIVE}, got {method!r}")
    steps = as_integer("steps", steps)
    if tolerance is not None:
        tolerance = as_number("tolerance", tolerance, above=0)
    on_grid = isinstance(field, GridMetric)
    if isinstance(field, GridMetric):
        field = field.torch()
    if method == "auto":
        method = "rk4" if on_grid else "dopri8"
    if tolerance is None:
        tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5
    if method == "rk4" and isinstance(field, GridMetric) and field.interpolation == "linear":
        flow = _grid_flow(field, x, v, times, steps)
    else:
        solver = _fixed_steps(steps) if method == "rk4" else _adaptive(method, tolerance)
        flow = _plain_flow(field, x, v, times, solver)
    # What stands still has no momentum to differentiate; to first order it goes straight on.
    still = scaled(v)[2]
    t = x.new_tensor(times).reshape(-1, *(1,) * x.ndim)
    return GeodesicFlow(
        torch.where(still, x + t * v, flow.position),
        torch.where(still, v, flow.velocity),
        flow.momentum,
    )


# Any field, through PyTorch.

_Rates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_Solver = Callable[[MetricField, Tensor, Tensor, Tensor, list[float]], tuple[Tensor, Tensor]]


def _plain_flow(
    field: MetricField, x: Tensor, v: Tensor, times: list[float], solver: _Solver
) -> GeodesicFlow:
    here = field.at(x.detach())
    tracked = any(u.requires_grad for u in (x, v, here.M, here.omega))
    with torch.set_grad_enabled(tracked and torch.is_grad_enabled()):
        metric = field.at(x)
        u, size, _ = scaled(v)
        length = size[..., 0] * metric.norm(u)
        positions, momenta = solver(field, x, momentum(metric, u), length, times)
        momenta = size * momenta
        velocities = [velocity(field.at(x), p) for x, p in zip(positions, momenta, strict=True)]
        return GeodesicFlow(positions, torch.stack(velocities), momenta)


def _fixed_steps(steps: int) -> _Solver:
    def solve(
        field: MetricField, x: Tensor, p: Tensor, length: Tensor, times: list[float]
    ) -> tuple[Tensor, Tensor]:
        def f(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
            return rates(field, x, p, length)

        states = []
        for span, count in _segments(times, steps):
            for _ in range(count):
                x, p = _rk4(f, x, p, span / count)
            states.append((x, p))
        positions, momenta = zip(*states, strict=True)
        return torch.stack(positions), torch.stack(momenta)

    return solve


def _adaptive(method: str, tolerance: float) -> _Solver:
    def solve(
        field: MetricField, x: Tensor, p: Tensor, length: Tensor, times: list[float]
    ) -> tuple[Tensor, Tensor]:
        refuse_transforms(
            f"method: {method!r}",
            "take 'rk4', which has the others too, with as many steps as you need",
            (x, p, length),
        )
        d = x.shape[-1]

        def norm(y: Tensor) -> Tensor:
            return (y.reshape(-1, 2 * d) ** 2).mean(-1).max().sqrt()

        slopes = _right_side(field, x, length)
        evaluations = 0

        def f(t: Tensor, state: Tensor) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            if evaluations > _MOST_EVALUATIONS:
                raise ValueError(
                    f"method: {method!r} with tolerance {tolerance:g} came to time {float(t):.3g} "
                    f"of {times[-1]:g} within {_MOST_EVALUATIONS} evaluations of the field; "
                    "take 'rk4' with as many steps as you need, a larger tolerance, or for a grid "
                    "interpolation='cubic', which has no kinks at the lines of nodes"
                )
            return torch.cat(slopes(state[..., :d], state[..., d:]), dim=-1)

        # Steps end at the times that are asked for: between, the interpolant is of order 4 only.
        t = torch.tensor([0.0, *times], dtype=torch.float64, device=x.device)
        first = int(times[0] == 0)
        state = torch.cat((x, p), dim=-1)
        if len(t) - first == 1 or state.numel() == 0:
            flow = state.expand(len(times), *state.shape)
        else:
            try:
                flow = odeint(
                    f, state, t[first:], rtol=tolerance, atol=tolerance, method=method,
                    options={"norm": norm, "step_t": t[first:]},
                )[1 - first :]  # fmt: skip
            except AssertionError as error:
                raise ValueError(
                    f"method: {method!r} cannot go on, because a geodesic leaves where the field "
                    "is finite, or the field jumps; take 'rk4' with as many steps as you need, "
                    f"or a shorter time ({error.args[0].partition(':')[0]})"
                ) from error
        return flow[..., :d], flow[..., d:]

    return solve


def _right_side(field: MetricField, x: Tensor, length: Tensor) -> _Rates:
    """Return the derivatives of geodesics at positions like ``x``.

    For a grid read linearly those of :func:`shoot`, so that there is one flow by all methods.
    """
    if not (isinstance(field, GridMetric) and field.interpolation == "linear"):
        return lambda x, p: rates(field, x, p, length)
    grid = Grid(field.grid_shape, field.spacing, field.outside)
    table = grid_table(grid, field.M, field.omega).to(x)
    first = first_rows(field, x)
    origin, spacing = x.new_tensor(field.origin), x.new_tensor(field.spacing)
    still = length == 0

    def f(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.where(still[..., None], 1.0, p)
        return grid_rates(grid, table, first, (x - origin) / spacing, p, length)

    return f


def _rk4(f: _Rates, x: Tensor, p: Tensor, h: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the state after a step of the classical Runge-Kutta method."""
    e1, f1 = f(x, p)
    e2, f2 = f(x + h / 2 * e1, p + h / 2 * f1)
    e3, f3 = f(x + h / 2 * e2, p + h / 2 * f2)
    e4, f4 = f(x + h * e3, p + h * f3)
    return x + h / 6 * (e1 + 2 * (e2 + e3) + e4), p + h / 6 * (f1 + 2 * (f2 + f3) + f4)


def _segments(times: list[float], steps: int) -> list[tuple[float, int]]:
    """Return the time from each record to the next, and in how many steps it passes."""
    whole = abs(times[-1]) or 1.0
    spans = [b - a for a, b in itertools.pairwise([0.0, *times])]
    # A rounding error above a whole number is that number.
    return [(span, max(1, math.ceil(steps * abs(span) / whole - 1e-9))) for span in spans]


# Fans of rays on grids.


class Schedule(NamedTuple):
    """Where in time the rays of a fan are recorded, and by how many steps they get there.

    Ray ``r`` runs through the segments ``segments[r]`` to ``segments[r + 1]``; segment ``s`` is
    ``spans[s]`` long in time, takes ``steps[s]`` steps, and ends in the record ``places[s]``.
    """

    segments: list[int]
    steps: list[int]
    spans: list[float]
    places: list[int]

    @property
    def rays(self) -> int:
        """The number of rays of a fan."""
        return len(self.segments) - 1

    @classmethod
    def of(cls, records: Sequence[Sequence[tuple[float, int]]], steps: Sequence[int]) -> "Schedule":
        """Return the schedule of rays with ``(time, place)`` records and numbers of steps."""
        segments, counts, spans, places = [0], [], [], []
        for ray, count in zip(records, steps, strict=True):
            for span, n in _segments([time for time, _ in ray], count):
                spans.append(span)
                counts.append(n)
            places += [place for _, place in ray]
            segments.append(len(places))
        return cls(segments, counts, spans, places)


def shoot(
    grid: Grid,
    table: Float[Tensor, "nodes entries"],
    starts: Float[Tensor, "fields n d"],
    velocities: Float[Tensor, "fields n rays d"],
    schedule: Schedule,
    *,
    momenta: bool = False,
    compiled: bool | None = None,
) -> Float[Tensor, "fields n points records"]:
    """Return the displacements of fans of rays through linearly interpolated fields.

    Parameters
    ----------
    grid : Grid
    table : Tensor, shape (fields * nodes, entries)
        As of :func:`finslerconv.geodesics.flow._hamiltonian.grid_rates`.
    starts : Tensor, shape (fields, n, d)
        In nodes: ``(position - origin) / spacing``.
    velocities : Tensor, shape (fields, n, rays, d)
        Physical.
    schedule : Schedule
        The same for all fans.
    momenta : bool
        Whether momenta follow the displacements.
    compiled : bool, optional
        Whether to use the compiled kernels, for planar grids on the CPU, or PyTorch's operations;
        unless given, the former where possible and all derivatives wanted are in reverse mode.

    Returns
    -------
    Tensor, shape (fields, n, points, d or 2 d)
        In the dtype of ``velocities``. Differentiable in table, starts and velocities: once by
        the compiled kernels, twice by PyTorch.
    """
    d = len(grid.shape)
    if compiled is None:
        compiled = d == 2 and velocities.device.type == "cpu"
        compiled = compiled and not needs_formulas(table, starts, velocities)
    fields, n, rays, _ = velocities.shape
    if compiled:
        if table.shape[-1] == 9:
            # Riemannian: entries and slopes of omega are 0.
            table = torch.nn.functional.pad(table.unflatten(-1, (3, 3)), (0, 2)).flatten(-2)
        table = torch.nn.functional.pad(table, (0, WIDE - table.shape[-1]))
        out = _shoot(
            table.double(), starts.double().reshape(-1, d),
            velocities.reshape(fields * n, rays, d), list(grid.shape),
            [1 / s for s in grid.spacing], grid.outside == "reflect", *schedule, momenta,
        )  # fmt: skip
        return out.reshape(fields, n, *out.shape[1:])
    nodes = math.prod(grid.shape)
    first = torch.arange(fields, device=table.device)[:, None] * nodes
    parts = (first.expand(fields, n).flatten(), starts.flatten(0, 1), velocities.flatten(0, 1))

    def tile(*arguments: Tensor) -> Tensor:
        return _shoot_tile(grid, schedule, momenta, *arguments)

    if torch.compiler.is_exporting():
        # A number of tiles would tie the program to the sizes that it was exported with.
        out = tile(table, *parts)
        return out.reshape(fields, n, *out.shape[1:])
    tiles = zip(*(u.split(max(1, _TILE // max(1, rays))) for u in parts), strict=True)
    tracked = torch.is_grad_enabled() and any(u.requires_grad for u in (table, *parts))
    # torch.func has no checkpoints.
    many = len(parts[0]) * rays > _TILE and not is_transformed()
    outs = [
        cast(Tensor, checkpoint(tile, table, *arguments, use_reentrant=False))
        if tracked and many
        else tile(table, *arguments)
        for arguments in tiles
    ]
    out = torch.cat(outs) if outs else velocities.new_empty(0, len(schedule.places), d)
    return out.reshape(fields, n, *out.shape[1:])


def _shoot_tile(
    grid: Grid,
    schedule: Schedule,
    momenta: bool,
    table: Tensor,
    first: Tensor,
    starts: Tensor,
    velocities: Tensor,
) -> Tensor:
    """Integrate some fans, each ray as long as it has steps to go."""
    dtype, device = velocities.dtype, velocities.device
    plans = [
        [
            (schedule.spans[s] / schedule.steps[s], schedule.places[s], i == schedule.steps[s] - 1)
            for s in range(begin, end)
            for i in range(schedule.steps[s])
        ]
        for begin, end in itertools.pairwise(schedule.segments)
    ]
    # Those with the most steps come first, so that the rays still under way are the first ones.
    order = sorted(range(len(plans)), key=lambda ray: -len(plans[ray]))
    plans = [plans[ray] for ray in order]
    table = table.to(dtype)
    c, rows = starts.to(dtype)[:, None], first[:, None]
    v = velocities[:, order]
    u, size, still = scaled(v)
    u = torch.where(still, 1.0, u)
    spacing = torch.tensor(grid.spacing, dtype=dtype, device=device)
    metric = grid_metric(grid, table, rows, c)
    x, p, length = torch.zeros_like(v), momentum(metric, u), size[..., 0] * metric.norm(u)
    times = torch.zeros(len(plans), 1, dtype=dtype, device=device)
    records, places = [], []
    for step in range(max((len(plan) for plan in plans), default=0)):
        going = [plan[step] for plan in plans if len(plan) > step]
        x, p, size, still, v, speed = (u[:, : len(going)] for u in (x, p, size, still, v, length))
        h = torch.tensor([[h] for h, _, _ in going], dtype=dtype, device=device)

        def f(x: Tensor, p: Tensor, speed: Tensor = speed) -> tuple[Tensor, Tensor]:
            return grid_rates(grid, table, rows, c + x / spacing, p, speed)

        x, p = _rk4(f, x, p, h)
        times = times[: len(going)] + h
        done = [ray for ray, (_, _, ends) in enumerate(going) if ends]
        places += [going[ray][1] for ray in done]
        record = torch.where(still[:, done], (times * v)[:, done], x[:, done])
        if momenta:
            rest = torch.where(still[:, done], 0.0, (size * p)[:, done])
            record = torch.cat((record, rest), dim=-1)
        records.append(record)
    out = torch.cat(records, dim=1)
    return out[:, sorted(range(len(places)), key=places.__getitem__)]


def _grid_flow(
    field: GridMetric, x: Tensor, v: Tensor, times: list[float], steps: int
) -> GeodesicFlow:
    d, batch = field.dim, field.batch_shape
    grid = Grid(field.grid_shape, field.spacing, field.outside)
    table = grid_table(grid, field.M, field.omega).to(x)
    shape = x.shape[len(batch) : -1]
    fields = math.prod(batch)
    starts = ((x - x.new_tensor(field.origin)) / x.new_tensor(field.spacing)).reshape(fields, -1, d)
    schedule = Schedule.of([[(time, i) for i, time in enumerate(times)]], [steps])
    out = shoot(grid, table, starts, v.reshape(fields, -1, 1, d), schedule, momenta=True)
    out = out.movedim(2, 0).reshape(len(times), *batch, *shape, 2 * d)
    positions, momenta = x + out[..., :d], out[..., d:]
    # Samples do not lead for a batch of fields, whose axes come first.
    metric = field.at(positions.movedim(0, len(batch)))
    velocities = velocity(metric, momenta.movedim(0, len(batch))).movedim(len(batch), 0)
    return GeodesicFlow(positions, velocities, momenta)


# The compiled kernels as an operator, so that torch.compile and torch.export know it.


@torch.library.custom_op("finslerconv::geodesic_rays", mutates_args=())
def _shoot(
    table: Tensor,
    starts: Tensor,
    velocities: Tensor,
    shape: Sequence[int],
    rate: Sequence[float],
    reflect: bool,
    segments: Sequence[int],
    steps: Sequence[int],
    spans: Sequence[float],
    places: Sequence[int],
    momenta: bool,
) -> Tensor:
    """Return the records (starts, points, 2 or 4) of the rays of all starts."""
    count = len(velocities)
    out = velocities.new_empty(count, len(places), 4 if momenta else 2)
    arguments = _arguments(
        table, starts, velocities, shape, rate, reflect, segments, steps, spans, places
    )
    result = array_of(out)

    parts = _parts(count, steps)

    def task(part: int) -> None:
        kernels.forward(*arguments, *share(count, part, parts), result)

    run(task, parts)
    return out


@_shoot.register_fake
def _(
    table: Tensor,
    starts: Tensor,
    velocities: Tensor,
    shape: Sequence[int],
    rate: Sequence[float],
    reflect: bool,
    segments: Sequence[int],
    steps: Sequence[int],
    spans: Sequence[float],
    places: Sequence[int],
    momenta: bool,
) -> Tensor:
    return velocities.new_empty(velocities.shape[0], len(places), 4 if momenta else 2)


@torch.library.custom_op("finslerconv::geodesic_rays_backward", mutates_args=())
def _shoot_backward(
    gradient: Tensor,
    table: Tensor,
    starts: Tensor,
    velocities: Tensor,
    shape: Sequence[int],
    rate: Sequence[float],
    reflect: bool,
    segments: Sequence[int],
    steps: Sequence[int],
    spans: Sequence[float],
    places: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of table, starts and velocities."""
    count = len(velocities)
    g_starts, g_velocities = torch.zeros_like(starts), torch.zeros_like(velocities)
    arguments = _arguments(
        table, starts, velocities, shape, rate, reflect, segments, steps, spans, places
    )
    given = array_of(gradient.contiguous())
    parts = _parts(4 * count, steps)
    # Every part has a gradient of the field to itself; their sum is always taken in one order.
    slopes = [torch.zeros_like(table) for _ in range(parts)]

    def task(part: int) -> None:
        kernels.backward(
            *arguments, *share(count, part, parts), given, array_of(slopes[part]).reshape(-1),
            array_of(g_starts), array_of(g_velocities),
        )  # fmt: skip

    run(task, parts)
    total = slopes[0]
    for slope in slopes[1:]:
        total += slope
    # The kernel's are per unit of length, the starts are in nodes.
    g_starts /= torch.tensor(rate, dtype=g_starts.dtype)
    return total, g_starts, g_velocities


@_shoot_backward.register_fake
def _(
    gradient: Tensor,
    table: Tensor,
    starts: Tensor,
    velocities: Tensor,
    shape: Sequence[int],
    rate: Sequence[float],
    reflect: bool,
    segments: Sequence[int],
    steps: Sequence[int],
    spans: Sequence[float],
    places: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(table), torch.empty_like(starts), torch.empty_like(velocities)


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:  # type: ignore[type-arg]
    table, starts, velocities, *plan, _ = inputs
    ctx.save_for_backward(table, starts, velocities)
    ctx.plan = plan  # type: ignore[attr-defined]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple:  # type: ignore[type-arg]
    saved = ctx.saved_tensors  # type: ignore[attr-defined]
    gradients = _shoot_backward(gradient, *saved, *ctx.plan)  # type: ignore[attr-defined]
    return *gradients, *(None,) * 8


_shoot.register_autograd(_differentiate, setup_context=_remember)


def _refuse(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple:  # type: ignore[type-arg]
    raise RuntimeError(
        "geodesics: the compiled 'rk4' on a linear grid has first derivatives only; for second "
        "ones take GridMetric(..., interpolation='cubic'), whose geodesics and balls by 'exp' can "
        "be differentiated twice"
    )


_shoot_backward.register_autograd(_refuse)


def _arguments(
    table: Tensor,
    starts: Tensor,
    velocities: Tensor,
    shape: Sequence[int],
    rate: Sequence[float],
    reflect: bool,
    segments: Sequence[int],
    steps: Sequence[int],
    spans: Sequence[float],
    places: Sequence[int],
) -> tuple[object, ...]:
    """Return what both kernels take first."""
    height, width = shape
    fields = len(table) // (height * width)
    starts_per_field = max(1, len(starts) // max(1, fields))
    whole = (np.asarray(u, dtype=np.int64) for u in (segments, steps, places))
    segment_array, step_array, place_array = whole
    return (
        array_of(table.contiguous()).reshape(-1),
        (fields, height, width, starts_per_field),
        (float(rate[0]), float(rate[1])),
        kernels.REFLECT if reflect else kernels.CONSTANT,
        array_of(starts.contiguous()),
        array_of(velocities.contiguous()),
        velocities.shape[1],
        segment_array,
        step_array,
        np.asarray(spans, dtype=np.float64),
        place_array,
    )


def _parts(count: int, steps: Sequence[int]) -> int:
    work = 4 * count * sum(steps)
    return max(1, min(torch.get_num_threads(), work // _PART_WORK, count, _MOST_PARTS))


# Arguments.


def _checked(field: MetricField, x: Array, v: Array) -> tuple[Tensor, Tensor]:
    """Return starts and velocities as tensors of one shape and dtype."""
    start, speed = as_tensors(x=x, v=v)
    d = field.dim
    for name, u in (("x", start), ("v", speed)):
        if u.ndim == 0 or u.shape[-1] != d:
            raise ValueError(
                f"{name}: expected {d} components on the last axis, shape (..., {d}), got shape "
                f"{tuple(u.shape)}"
            )
        check_finite(name, u)
    try:
        shape = torch.broadcast_shapes(start.shape, speed.shape)
    except RuntimeError as error:
        raise ValueError(
            f"v: expected a shape that broadcasts with that of x, {tuple(start.shape)}, got "
            f"{tuple(speed.shape)}"
        ) from error
    batch = field.batch_shape if isinstance(field, GridMetric) else ()
    if shape[: len(batch)] != batch or len(shape) <= len(batch):
        raise ValueError(
            f"x: expected shape {shown_shape(batch, '...', str(d))} for a batch of fields, "
            f"got {tuple(shape)}"
        )
    dtype = torch.promote_types(start.dtype, speed.dtype)
    return start.to(dtype).expand(shape), speed.to(dtype).expand(shape)


def _finite_time(time: object) -> float:
    if not is_number(time):
        raise TypeError(
            f"time: expected a number, got {type(time).__name__}; geodesic_flow takes several times"
        )
    return as_number("time", time)


def _moments(times: object) -> list[float]:
    """Return the times of a sequence or an array, that run away from zero."""
    try:
        moments = [float(t) for t in times]  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"times: expected a sequence of numbers such as [0.5, 1.0], got {shown(times)}"
        ) from error
    _check_times(moments)
    return moments


def _check_times(times: list[float]) -> None:
    forward = all(a < b for a, b in itertools.pairwise(times))
    backward = all(a > b for a, b in itertools.pairwise(times))
    if not times or not all(math.isfinite(t) for t in times):
        raise ValueError(f"times: expected finite numbers, at least one, got {times}")
    if not ((forward and times[0] >= 0) or (backward and times[0] <= 0)):
        raise ValueError(
            f"times: expected numbers that run away from zero, zero allowed as the first, got "
            f"{times}"
        )
