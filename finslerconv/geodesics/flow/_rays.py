"""Fans of rays through linear fields on grids: by compiled kernels, or in PyTorch by tiles."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from finslerconv._arrays import scaled
from finslerconv._lanes import LANES
from finslerconv._memory import array_of
from finslerconv._threads import run, share
from finslerconv._tracing import is_traced_by_torchscript
from finslerconv._transforms import is_transformed, needs_formulas
from finslerconv.balls import ball_map
from finslerconv.geodesics.flow import _numba as kernels
from finslerconv.geodesics.flow._grid import Grid, grid_metric, grid_rates
from finslerconv.geodesics.flow._onnx import shoot_by_scan
from finslerconv.geodesics.flow._simd import WIDE
from finslerconv.geodesics.flow._steps import rk4, segments

# The most rays that PyTorch integrates at once: the states between steps fill memory.
_TILE = 2**17

# Below so many evaluations of the field a second thread costs more than it brings.
_PART_WORK = 100_000
_MOST_PARTS = 16

# PyTorch before 2.7 does not tell: there a program is tied to its number of tiles.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


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
        bounds, counts, spans, places = [0], [], [], []
        for ray, count in zip(records, steps, strict=True):
            for span, n in segments([time for time, _ in ray], count):
                spans.append(span)
                counts.append(n)
            places += [place for _, place in ray]
            bounds.append(len(places))
        return cls(bounds, counts, spans, places)

    def unrolled(self) -> tuple[list[list[float]], list[tuple[int, int]]]:
        """Return the lengths of each ray's steps, and for each record its ray and step."""
        lengths: list[list[float]] = []
        records = [(0, 0)] * len(self.places)
        for ray, (begin, end) in enumerate(itertools.pairwise(self.segments)):
            lengths.append([])
            for s in range(begin, end):
                lengths[ray] += [self.spans[s] / self.steps[s]] * self.steps[s]
                records[self.places[s]] = ray, len(lengths[ray])
        return lengths, records


def shoot(
    grid: Grid,
    table: Float[Tensor, "nodes entries"],
    starts: Float[Tensor, "fields n d"],
    velocities: Float[Tensor, "fields n rays d"],
    schedule: Schedule,
    *,
    momenta: bool = False,
    radial: bool = False,
    compiled: bool | None = None,
) -> Float[Tensor, "fields n points records"]:
    """Return the displacements of fans of rays through linearly interpolated fields.

    Parameters
    ----------
    grid : Grid
    table : Tensor, shape (fields * nodes, entries)
        As of :func:`finslerconv.geodesics.flow._grid.grid_table`.
    starts : Tensor, shape (fields, n, d)
        In nodes: ``(position - origin) / spacing``.
    velocities : Tensor, shape (fields, n, rays, d)
        Physical.
    schedule : Schedule
        The same for all fans.
    momenta : bool
        Whether momenta follow the displacements.
    radial : bool
        Whether the radial map first carries what is given to velocities: vectors of the same
        directions, whose lengths are the Euclidean norms.
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
    if compiled and is_traced_by_torchscript():
        raise RuntimeError(
            "geodesics: torch.jit.trace cannot record the compiled operator; take torch.export, or "
            'trace within finslerconv.ops.use_backend("reference")'
        )
    if compiled:
        if table.shape[-1] == 9:
            # Riemannian: entries and slopes of omega are 0.
            table = torch.nn.functional.pad(table.unflatten(-1, (3, 3)), (0, 2)).flatten(-2)
        table = torch.nn.functional.pad(table, (0, WIDE - table.shape[-1]))
        out = _shoot(
            table.to(velocities.dtype), starts.double().reshape(-1, d),
            velocities.reshape(fields * n, rays, d), list(grid.shape),
            [1 / s for s in grid.spacing], grid.outside == "reflect", radial, *schedule, momenta,
        )  # fmt: skip
        return out.reshape(fields, n, *out.shape[1:])
    if torch.onnx.is_in_onnx_export() and d == 2 and grid.outside == "constant" and not momenta:
        return shoot_by_scan(
            grid.shape, grid.spacing, table, starts, velocities, *schedule.unrolled(), radial
        )
    nodes = math.prod(grid.shape)
    first = torch.arange(fields, device=table.device)[:, None] * nodes
    parts = (first.expand(fields, n).flatten(), starts.flatten(0, 1), velocities.flatten(0, 1))

    def tile(*arguments: Tensor) -> Tensor:
        return _shoot_tile(grid, schedule, momenta, radial, *arguments)

    if _is_exporting():
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
    radial: bool,
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
    # Rays with the most steps come first: those still under way are then a leading slice.
    order = sorted(range(len(plans)), key=lambda ray: -len(plans[ray]))
    plans = [plans[ray] for ray in order]
    table = table.to(dtype)
    c, rows = starts.to(dtype)[:, None], first[:, None]
    v = velocities[:, order]
    spacing = torch.tensor(grid.spacing, dtype=dtype, device=device)
    metric = grid_metric(grid, table, rows, c)
    if radial:
        v = ball_map("radial")(metric, v)
    u, size, still = scaled(v)
    u = torch.where(still, 1.0, u)
    x, p, length = torch.zeros_like(v), metric.legendre(u), size[..., 0] * metric.norm(u)
    times = torch.zeros(len(plans), 1, dtype=dtype, device=device)
    records, places = [], []
    for step in range(max((len(plan) for plan in plans), default=0)):
        going = [plan[step] for plan in plans if len(plan) > step]
        x, p, size, still, v, speed = (u[:, : len(going)] for u in (x, p, size, still, v, length))
        h = torch.tensor([[h] for h, _, _ in going], dtype=dtype, device=device)

        def f(x: Tensor, p: Tensor, speed: Tensor = speed) -> tuple[Tensor, Tensor]:
            return grid_rates(grid, table, rows, c + x / spacing, p, speed)

        x, p = rk4(f, x, p, h)
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


# The compiled kernels as an operator, so that torch.compile and torch.export know it.


class _Job(NamedTuple):
    """The arguments of the operator and of its derivative: fields, rays and schedule."""

    table: Tensor
    """Of all fields, (fields * nodes, 16), in the dtype of the velocities."""

    starts: Tensor
    """In nodes, (starts, 2), float64, as many of each field."""

    velocities: Tensor
    """(starts, rays, 2)."""

    shape: Sequence[int]
    rate: Sequence[float]
    """Nodes per unit of length, along either axis."""

    reflect: bool
    radial: bool
    """Whether the velocities are points that the radial map carries there."""

    segments: Sequence[int]
    steps: Sequence[int]
    spans: Sequence[float]
    places: Sequence[int]

    def arguments(self) -> tuple[object, ...]:
        """Return what both kernels take first."""
        height, width = self.shape
        fields = len(self.table) // (height * width)
        return (
            array_of(self.table.contiguous()).reshape(-1),
            (fields, height, width, max(1, len(self.starts) // max(1, fields))),
            (float(self.rate[0]), float(self.rate[1])),
            self.reflect,
            self.radial,
            array_of(self.starts.contiguous()),
            array_of(self.velocities.contiguous()),
            self.velocities.shape[1],
            np.asarray(self.segments, dtype=np.int64),
            np.asarray(self.steps, dtype=np.int64),
            np.asarray(self.spans, dtype=np.float64),
            np.asarray(self.places, dtype=np.int64),
        )

    def records(self, momenta: bool) -> Tensor:
        """Return an array for the records, (starts, points, 2 or 4)."""
        return self.velocities.new_empty(
            self.velocities.shape[0], len(self.places), 4 if momenta else 2
        )

    def parts(self, passes: int) -> int:
        """Return the number of threads that share the work, which grows with the passes."""
        count = len(self.velocities)
        work = passes * count * sum(self.steps)
        return max(1, min(torch.get_num_threads(), work // _PART_WORK, count, _MOST_PARTS))


_JOB = (
    "Tensor table, Tensor starts, Tensor velocities, SymInt[] shape, float[] rate, bool reflect, "
    "bool radial, SymInt[] segments, SymInt[] steps, float[] spans, SymInt[] places"
)


@torch.library.custom_op(
    "finslerconv::geodesic_rays", mutates_args=(), schema=f"({_JOB}, bool momenta) -> Tensor"
)
def _shoot(*inputs: Any) -> Tensor:
    """Return the records (starts, points, 2 or 4) of the rays of all starts."""
    job, momenta = _Job(*inputs[:-1]), inputs[-1]
    arguments, out = job.arguments(), job.records(momenta)
    result = array_of(out)
    parts = job.parts(4)

    def task(part: int) -> None:
        kernels.forward(*arguments, *share(len(out), part, parts, LANES), result)

    run(task, parts)
    return out


@_shoot.register_fake
def _(*inputs: Any) -> Tensor:
    return _Job(*inputs[:-1]).records(inputs[-1])


@torch.library.custom_op(
    "finslerconv::geodesic_rays_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, {_JOB}) -> (Tensor, Tensor, Tensor)",
)
def _shoot_backward(gradient: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of table, starts and velocities."""
    job = _Job(*inputs)
    g_starts, g_velocities = torch.empty_like(job.starts), torch.empty_like(job.velocities)
    arguments, given = job.arguments(), array_of(gradient.contiguous())
    parts = job.parts(16)
    # Every part has a gradient of the field to itself; their sum is always taken in one order.
    slopes = [torch.zeros_like(job.table) for _ in range(parts)]

    def task(part: int) -> None:
        kernels.backward(
            *arguments, *share(len(job.velocities), part, parts, LANES), given,
            array_of(slopes[part]).reshape(-1), array_of(g_starts), array_of(g_velocities),
        )  # fmt: skip

    run(task, parts)
    total = slopes[0]
    for slope in slopes[1:]:
        total += slope
    # The kernel's are per unit of length, the starts are in nodes.
    g_starts /= torch.tensor(job.rate, dtype=g_starts.dtype)
    return total, g_starts, g_velocities


@_shoot_backward.register_fake
def _(gradient: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    table, starts, velocities = inputs[:3]
    return torch.empty_like(table), torch.empty_like(starts), torch.empty_like(velocities)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, starts, velocities, *plan, _ = inputs
    ctx.save_for_backward(table, starts, velocities)
    ctx.plan = plan


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    gradients = _shoot_backward(gradient, *ctx.saved_tensors, *ctx.plan)
    return *gradients, *(None,) * (len(ctx.plan) + 1)


_shoot.register_autograd(_differentiate, setup_context=_remember)


def _refuse(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    raise RuntimeError(
        "geodesics: the compiled 'rk4' on a linear grid has first derivatives only; for second "
        "ones take GridMetric(..., interpolation='cubic'), whose geodesics and balls by 'exp' can "
        "be differentiated twice"
    )


_shoot_backward.register_autograd(_refuse)
