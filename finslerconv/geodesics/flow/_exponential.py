"""The exponential map: geodesics from their starts and first velocities."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array, as_integer, as_number, is_number, scaled, shown
from finslerconv.geodesics.fields import (
    GridMetric,
    MetricField,
    Positions,
    as_kind_of,
    read_positions,
    tangent_vectors,
)
from finslerconv.geodesics.flow._grid import in_nodes, is_linear, momentum_rates, tabulated
from finslerconv.geodesics.flow._rates import velocity_rates
from finslerconv.geodesics.flow._rays import Schedule, shoot
from finslerconv.geodesics.flow._steps import ADAPTIVE, Rates, adaptive, fixed

Method = Literal["auto", "rk4", "dopri8", "dopri5", "bosh3"]
"""How geodesics are integrated: Runge-Kutta of fixed steps, or of steps that fit a tolerance."""


class GeodesicFlow(NamedTuple):
    r"""Geodesics at given times: where they are, how fast, and with which momentum.

    All of shape (times, \*batch, d).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, geodesic_flow
    >>> from finslerconv.metrics import Euclidean
    >>> field = FunctionMetric(lambda x: Euclidean())
    >>> flow = geodesic_flow(field, [0.0, 0.0], [1.0, 2.0], times=[0.0, 0.5])
    >>> flow.position.round(decimals=6).tolist()
    [[0.0, 0.0], [0.5, 1.0]]
    >>> flow.velocity.round(decimals=6).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
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
    method : {"auto", "rk4", "dopri8", "dopri5", "bosh3"}
        ``"rk4"`` takes ``steps`` equal steps of the classical method of order 4: for a planar
        :class:`GridMetric` with linear interpolation on the CPU it is compiled and runs on all
        threads, elsewhere it goes through PyTorch in tiles. The others are adaptive: the methods of
        Dormand and Prince of order 8 and 5, and that of Bogacki and Shampine of order 3. ``"auto"``
        is ``"rk4"`` for grids and ``"dopri8"`` for other fields.
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
    start, speed = tangent_vectors(field, x, v=v)
    time = _finite_time(time)
    (position,) = _flow(field, start, speed, [time], method, steps, tolerance).position
    return as_kind_of(position, x)


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
    start, speed = tangent_vectors(field, x, v=v)
    moments = read_times(times)
    flow = _flow(field, start, speed, moments, method, steps, tolerance)
    return GeodesicFlow(*(as_kind_of(u, x) for u in flow))


def _flow(
    field: MetricField,
    x: Tensor,
    v: Tensor,
    times: list[float],
    method: Method,
    steps: int,
    tolerance: float | None,
) -> GeodesicFlow:
    """Return :func:`geodesic_flow` of tensors."""
    if method not in ("auto", "rk4", *ADAPTIVE):
        raise ValueError(f"method: expected 'auto', 'rk4' or one of {ADAPTIVE}, got {method!r}")
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
    if method == "rk4" and is_linear(field):
        flow = _grid_flow(field, x, v, times, steps)
    else:
        flow = _plain_flow(field, x, v, times, method, steps, tolerance)
    # What stands still has no momentum to differentiate; to first order it goes straight on.
    still = scaled(v)[2]
    t = x.new_tensor(times).reshape(-1, *(1,) * x.ndim)
    return GeodesicFlow(
        torch.where(still, x + t * v, flow.position),
        torch.where(still, v, flow.velocity),
        flow.momentum,
    )


def _grid_flow(
    field: GridMetric, x: Tensor, v: Tensor, times: list[float], steps: int
) -> GeodesicFlow:
    """Return the flow of a linear field, whose rays have kernels of their own."""
    d, batch = field.dim, field.batch_shape
    grid, table = tabulated(field, x)
    shape = x.shape[len(batch) : -1]
    fields = math.prod(batch)
    starts = in_nodes(field, x).reshape(fields, -1, d)
    schedule = Schedule.of([[(time, i) for i, time in enumerate(times)]], [steps])
    out = shoot(grid, table, starts, v.reshape(fields, -1, 1, d), schedule, momenta=True)
    out = out.movedim(2, 0).reshape(len(times), *batch, *shape, 2 * d)
    positions, momenta = x + out[..., :d], out[..., d:]
    # Samples do not lead for a batch of fields, whose axes come first.
    metric = field.at(positions.movedim(0, len(batch)))
    velocities = metric.legendre_inverse(momenta.movedim(0, len(batch))).movedim(len(batch), 0)
    return GeodesicFlow(positions, velocities, momenta)


def _plain_flow(
    field: MetricField,
    x: Tensor,
    v: Tensor,
    times: list[float],
    method: str,
    steps: int,
    tolerance: float,
) -> GeodesicFlow:
    """Return the flow of any field, in PyTorch's operations.

    The state is a position with a momentum for Randers metrics, with a velocity for others.
    """
    with torch.set_grad_enabled(records_gradients(field, x, v)):
        start = setting_out(field, x, v)
        if method == "rk4":
            positions, states = fixed(start.rates, x, start.state, times, steps)
        else:
            # Rates jump, or bend, at the lines of nodes.
            smooth = not isinstance(field, GridMetric)
            positions, states = adaptive(
                start.rates, x, start.state, times, method, tolerance, smooth=smooth
            )
        states = torch.where(start.still, 0.0, start.size * states)

        def dual(x: Tensor, y: Tensor) -> Tensor:
            metric = field.at(x)
            return metric.legendre_inverse(y) if start.momenta else metric.legendre(y)

        others = torch.stack([dual(*both) for both in zip(positions, states, strict=True)])
        both = (others, states) if start.momenta else (states, others)
        return GeodesicFlow(positions, *both)


def records_gradients(field: MetricField, x: Tensor, *vectors: Tensor) -> bool:
    """Return whether a gradient is wanted of the field, of positions or of vectors.

    The rates of geodesics are derivatives themselves, and record theirs wherever they may.
    """
    here = field.at(x.detach()).norm(torch.ones_like(x))
    return torch.is_grad_enabled() and any(u.requires_grad for u in (here, x, *vectors))


class Start(NamedTuple):
    """Geodesics that set out: the state beside their positions, and how both go on."""

    rates: Rates
    state: Tensor
    """Momenta of Randers metrics, velocities of others, divided by the sizes of velocities."""

    momenta: bool
    """Whether the state is one of momenta."""

    length: Tensor
    """The lengths of velocities, to which the rates are proportional."""

    size: Tensor
    still: Tensor


def setting_out(
    field: MetricField, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]
) -> Start:
    """Return what :func:`fixed` and :func:`adaptive` integrate from ``x`` with velocities ``v``."""
    u, size, still = scaled(v)
    u = torch.where(still, 1.0, u)
    metric = field.at(x)
    length = torch.where(still, 0.0, size)[..., 0] * metric.norm(u)
    if metric.randers_form(x) is None:
        return Start(velocity_rates(field, x, length), u, False, length, size, still)
    rates = momentum_rates(field, x, length)
    return Start(rates, metric.legendre(u), True, length, size, still)


# Arguments.


def _finite_time(time: object) -> float:
    if not is_number(time):
        raise TypeError(
            f"time: expected a number, got {type(time).__name__}; geodesic_flow takes several times"
        )
    return as_number("time", time)


def read_times(times: object) -> list[float]:
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
