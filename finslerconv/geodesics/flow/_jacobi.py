"""Along geodesics: parallel transport, Jacobi fields, and conjugate points, where these vanish."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array, as_integer, as_number
from finslerconv._linalg import matvec
from finslerconv._norms import linearized
from finslerconv.geodesics.fields import GridMetric, MetricField, Positions, as_kind_of
from finslerconv.geodesics.flow._exponential import read_times, records_gradients, setting_out
from finslerconv.geodesics.flow._steps import fixed
from finslerconv.geodesics.tensors import (
    fundamental_tensor_at,
    nonlinear_connection_at,
    read_tangents,
)

# Radians per unit of time by which phases turn while Jacobi fields are small: of the order of what
# they turn by between two conjugate points within the unit of time.
_PACE = 2 * math.pi


class JacobiField(NamedTuple):
    r"""A Jacobi field along geodesics at given times, and these: all (times, \*batch, d).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, jacobi_field
    >>> from finslerconv.metrics import Euclidean
    >>> flat = FunctionMetric(lambda x: Euclidean())
    >>> found = jacobi_field(flat, [0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], times=[2.0])
    >>> found.field.round(decimals=6).tolist()  # neighbours part at a steady rate
    [[0.0, 2.0]]
    """

    position: Array
    velocity: Array
    field: Array
    """``J``: where neighbouring geodesics are."""

    derivative: Array
    """``D J = J' + N(x, x') J``, its covariant derivative along the geodesic."""

    def __repr__(self) -> str:
        return f"JacobiField(times={len(self.position)}, batch_shape={self.position.shape[1:-1]})"


def parallel_transport(
    field: MetricField,
    x: Positions,
    v: Positions,
    u: Positions,
    time: float = 1.0,
    *,
    steps: int = 64,
) -> Float[Array, "*_ d"]:
    r"""Return vectors carried parallel along the geodesics that pass ``x`` with velocity ``v``.

    A vector is parallel along a geodesic ``x(t)`` if ``u' + N(x, x') u = 0``, with the nonlinear
    connection ``N``. This keeps lengths and angles of the fundamental tensor ``g_{x'}``, not
    ``F(u)``, and the velocity itself is parallel.

    Parameters
    ----------
    field, x, v, time
        As of :func:`exponential`; ``v`` nowhere zero.
    u : array or sequence, shape (\*batch, ..., d)
        Vectors at ``x``; they broadcast with ``x`` and ``v``.
    steps : int
        Steps of the classical Runge-Kutta method, of order 4; of order 1 on a grid with linear
        interpolation, whose connection jumps at the lines of nodes.

    Returns
    -------
    array, shape (\*batch, ..., d)
        Vectors at ``exponential(field, x, v, time=time)``. Differentiable in everything.

    Raises
    ------
    TypeError, ValueError
        As of :func:`exponential`, and if a velocity is zero.

    Examples
    --------
    Along a parallel of latitude vectors would turn; along the equator of the sphere, a geodesic,
    they do not:

    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, parallel_transport
    >>> from finslerconv.metrics import Riemannian
    >>> def round_metric(x):
    ...     sine = torch.sin(x[..., :1])
    ...     return Riemannian(torch.diag_embed(torch.cat((sine**0, sine**2), -1)))
    >>> sphere = FunctionMetric(round_metric)
    >>> equator = torch.tensor([torch.pi / 2, 0.0], dtype=torch.float64)
    >>> parallel_transport(sphere, equator, [0.0, 1.0], [1.0, 0.5]).round(decimals=6) + 0.0
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    field, kind, x, v, u = read_tangents(field, x, v=v, u=u, zero=("u",))
    time, steps = as_number("time", time), as_integer("steps", steps)
    with torch.set_grad_enabled(records_gradients(field, x, v, u)):
        carried = _carried(field, x, v, u, time, steps)
    return as_kind_of(carried, kind)


def jacobi_field(
    field: MetricField,
    x: Positions,
    v: Positions,
    start: Positions,
    derivative: Positions,
    times: object,
    *,
    steps: int = 64,
) -> JacobiField:
    r"""Return Jacobi fields: how the geodesics next to that from ``x`` with velocity ``v`` run.

    A Jacobi field ``J`` is the derivative of geodesics in a parameter. It solves
    ``D D J + R(x, x') J = 0``, with the Riemann curvature (:func:`tensors.riemann_curvature`), and
    is known from ``J`` and ``D J`` at the start. With ``J(0) = 0`` and ``D J(0) = w``, ``J(1)`` is
    the derivative of the exponential map at ``v`` along ``w``.

    Parameters
    ----------
    field, x, v
        As of :func:`exponential`; ``v`` nowhere zero.
    start, derivative : array or sequence, shape (\*batch, ..., d)
        ``J`` and ``D J = J' + N(x, v) J`` at time 0; they broadcast with ``x`` and ``v``.
    times : sequence of float
        As of :func:`geodesic_flow`.
    steps : int
        Steps of the classical Runge-Kutta method until the last time, of order 4.

    Returns
    -------
    JacobiField
        Differentiable in everything. On a grid with linear interpolation it is the derivative of
        the flow that :func:`exponential` follows there, to the first order of the spacing.

    Raises
    ------
    TypeError, ValueError
        As of :func:`geodesic_flow`, and if a velocity is zero.

    Examples
    --------
    In the hyperbolic half-plane neighbours part as ``sinh(t)``:

    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, jacobi_field
    >>> from finslerconv.metrics import Riemannian
    >>> half_plane = FunctionMetric(
    ...     lambda x: Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
    ... )
    >>> found = jacobi_field(half_plane, [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [2.0])
    >>> half_plane.at(found.position).norm(found.field)  # sinh(2) = 3.6269
    tensor([3.6269], dtype=torch.float64)
    """
    field, kind, x, v, J, DJ = read_tangents(
        field, x, v=v, start=start, derivative=derivative, zero=("start", "derivative")
    )
    moments, steps = read_times(times), as_integer("steps", steps)
    with torch.set_grad_enabled(records_gradients(field, x, v, J, DJ)):
        found = _fields(field, x, v, J, DJ, moments, steps)
    return JacobiField(*(as_kind_of(a, kind) for a in found))


def _carried(
    field: MetricField, x: Tensor, v: Tensor, u: Tensor, time: float, steps: int
) -> Tensor:
    d = x.shape[-1]
    start = setting_out(field, x, v)
    N = nonlinear_connection_at(field, x)

    def rates(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x_rate, rate = start.rates(x, state[..., :d])
        return x_rate, torch.cat((rate, -matvec(N(x, x_rate), state[..., d:])), dim=-1)

    _, states = fixed(rates, x, torch.cat((start.state, u), dim=-1), [time], steps)
    return states[0, ..., d:]


def _fields(
    field: MetricField,
    x: Tensor,
    v: Tensor,
    J: Tensor,
    DJ: Tensor,
    times: list[float],
    steps: int,
) -> JacobiField:
    d = x.shape[-1]
    N = nonlinear_connection_at(field, x)
    out = setting_out(field, x, v)

    def launch(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out = setting_out(field, x, v)
        return out.state, out.length

    (state, length), push = linearized(launch, x, v)
    turn, longer = push(J, DJ - matvec(N(x, v), J))
    pace = (longer / length)[..., None]

    def rates(x: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        y, dx, dy = rest.split(d, dim=-1)
        (x_rate, y_rate), push = linearized(out.rates, x, y)
        dx_rate, dy_rate = push(dx, dy)
        others = (y_rate, dx_rate + pace * x_rate, dy_rate + pace * y_rate)
        return x_rate, torch.cat(others, dim=-1)

    position, states = fixed(rates, x, torch.cat((state, J, turn), dim=-1), times, steps)
    ends = [rates(*both) for both in zip(position, states, strict=True)]
    velocity = torch.stack([x_rate for x_rate, _ in ends])
    J, rate = states[..., d : 2 * d], torch.stack([rest[..., d : 2 * d] for _, rest in ends])
    # All times at once; the axes of a batch of fields come first.
    lead = _batch_axes(field)
    places, directions, fields = (u.movedim(0, lead) for u in (position, velocity, J))
    turned = matvec(N(places, directions), fields).movedim(lead, 0)
    return JacobiField(position, velocity, J, rate + turned)


def conjugate_time(
    field: MetricField, x: Positions, v: Positions, time: float = 1.0, *, steps: int = 64
) -> Float[Array, "..."]:
    r"""Return when geodesics come to the first point that is conjugate to their start.

    There a Jacobi field that is zero at the start is zero again: the exponential map folds, its
    neighbours cross, and from there on another path is shorter. On a sphere this is the antipode;
    where no flag curvature is positive there is none.

    Parameters
    ----------
    field, x, v
        As of :func:`exponential`; ``v`` nowhere zero.
    time : float
        Until when it is looked for, positive.
    steps : int
        Steps until ``time`` of the classical Runge-Kutta method. The error is of order 4. At least
        some 8 to the time from a conjugate point to the next, so that none is overlooked.

    Returns
    -------
    array, shape (\*batch, ...)
        Times in ``(0, time]``; infinity where there is no conjugate point. The point itself is
        ``exponential(field, x, t[..., None] * v)``. Differentiable in everything where the point is
        a simple one, in the plane always.

    Raises
    ------
    TypeError, ValueError
        As of :func:`exponential`, and if a velocity is zero or ``time`` is not positive.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, conjugate_time
    >>> from finslerconv.metrics import Riemannian
    >>> def round_metric(x):  # the unit sphere in stereographic coordinates
    ...     scale = 2 / (1 + (x * x).sum(-1))
    ...     return Riemannian(scale[..., None, None] ** 2 * torch.eye(2, dtype=x.dtype))
    >>> sphere = FunctionMetric(round_metric)
    >>> conjugate_time(sphere, [0.9, 0.0], [0.0, 1.0], 4.0).round(decimals=4)  # 1.81 pi / 2
    tensor(2.8431, dtype=torch.float64)
    """
    field, kind, x, v = read_tangents(field, x, v=v)
    time, steps = as_number("time", time, above=0), as_integer("steps", steps, least=2)
    d = x.shape[-1]
    # One Jacobi field for each axis; the axes of a batch of fields come first.
    lead = _batch_axes(field)
    places, directions = (u.expand(d, *x.shape).movedim(0, lead) for u in (x, v))
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    axes = eye.reshape(d, *(1,) * (x.ndim - 1), d).expand(d, *x.shape).movedim(0, lead)
    times = [time * (step + 1) / steps for step in range(steps)]
    found = jacobi_field(
        field, places, directions, torch.zeros_like(axes), axes, times, steps=steps
    )
    position, velocity = (u.select(lead + 1, 0) for u in (found.position, found.velocity))
    places, directions = (u.movedim(0, lead) for u in (position, velocity))
    g = fundamental_tensor_at(field)(places, directions).movedim(lead, 0)
    J, rate = (u.movedim(lead + 1, -1) for u in (found.field, found.derivative))
    # In the frame of the columns of g's Cholesky factor, where g is the identity.
    frame = torch.linalg.cholesky(g).mT
    fraction = first_conjugate(frame @ J, time * frame @ rate)
    return as_kind_of(time * fraction, kind)


def _batch_axes(field: MetricField) -> int:
    return len(field.batch_shape) if isinstance(field, GridMetric) else 0


def first_conjugate(
    J: Float[Tensor, "times *batch d d"],
    rate: Float[Tensor, "times *batch d d"],
    *,
    covariant: bool = True,
) -> Float[Tensor, "*batch"]:
    """Return at which fraction of the time the first conjugate point is; infinity for none.

    Parameters
    ----------
    J, rate : Tensor, shape (times, ..., d, d)
        Jacobi fields as columns, all of which are 0 at time 0, and their derivatives by the
        fraction, at equal times in (0, 1]. In frames in which ``J' rate`` is symmetric.
    covariant : bool
        Whether the derivatives are covariant and the frames orthonormal: then the place between two
        records is of the fourth order in their distance. Otherwise, as of momenta in place of
        derivatives, of the second.

    Notes
    -----
    ``J`` is singular at a conjugate point, and its determinant need not change sign: two fields may
    vanish at once. With ``rate = cot J``, in the sense of ``rate x = J x cot(t)``, the phases ``t``
    of all ``x`` are those of the unitary matrix ``(rate + i J)(rate - i J)^-1``, turn one way
    only where ``J`` is small, and pass a multiple of pi at every conjugate point.
    """
    count, d = J.shape[0], J.shape[-1]
    with torch.no_grad():
        phases = _phases(J, rate)
        total = torch.cat((torch.zeros_like(phases[:1, ..., 0]), phases.sum(-1)))
        passed = ((total[:-1] - total[1:]) / math.pi).round() > 0
        # The number of the first record behind a conjugate point.
        after = torch.where(passed.any(0), passed.to(torch.int8).argmax(0), count)
    none = after == count
    # Before the first record nothing can be told apart from the start.
    after = after.clamp(1, count - 1)

    # Eigenvalues without derivatives, of a flat space for one, stay out of the gradient.
    eye = torch.eye(d, dtype=J.dtype, device=J.device)
    plain = eye * torch.arange(1, d + 1, device=J.device)

    def at(number: Tensor) -> Tensor:
        index = number[None, ..., None, None].expand(1, *J.shape[1:])
        hidden = none[..., None, None]
        return _phases(
            torch.where(hidden, plain, J.gather(0, index)[0]),
            torch.where(hidden, eye, rate.gather(0, index)[0]),
        )

    # The phase that comes to pi, and the one that has passed it: with u = J / rate, the ways from
    # the conjugate point are -u + K u^3 / 3, where K is a mean curvature.
    before, behind = (torch.tan(p) / _PACE for p in (at(after - 1)[..., -1], at(after)[..., 0]))
    before = -before
    h = 1 / count
    way = h * before / (before + behind)
    for _ in range(8 if covariant else 0):
        K = 3 * (before + behind - h) / (way**3 + (h - way) ** 3)
        way = (before - K * way**3 / 3).clamp(0, h)
    return torch.where(none, math.inf, (after.to(way) + 0.0) * h + way)


def _phases(J: Tensor, rate: Tensor) -> Tensor:
    """Return the phases in [0, pi), ascending."""
    J, rate = _PACE * J + 0j, rate + 0j
    unitary = torch.linalg.solve(rate - 1j * J, rate + 1j * J, left=False)
    angle = torch.linalg.eigvals(unitary).angle()
    return (angle.remainder(2 * math.pi) / 2).sort(-1).values
