"""Metric fields whose distances, and most of whose exponential maps, are known in closed form.

Positions are float64 tensors of shape (..., d). A :class:`Field` is a
:class:`finslerconv.geodesics.MetricField` with its truth; ``field.grid(n)`` samples it on a grid
over its box ``lower`` to ``upper``, where the geodesics between most points stay (see
:func:`trusted`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finslerconv.geodesics import EikonalProblem, GridMetric, Seeds
from finslerconv.geodesics.distances import FastMarching, Heat, _seeding
from finslerconv.geodesics.distances._method import solve
from finslerconv.geodesics.distances.fast_iterative import FastIterative
from finslerconv.metrics import Randers

Map = Callable[[Tensor, Tensor], Tensor]


def fast_marching(*grid, mask=None, radius=math.inf, **options):
    """Return the front on a grid, given as ``M, omega, spacing, origin, seeds``."""
    return solve(FastMarching(**options), *grid, None if mask is None else ~mask, radius)


def fast_iterative(*grid, mask=None, radius=math.inf, **options):
    return solve(FastIterative(**options), *grid, None if mask is None else ~mask, radius)


def seed_nodes(position, value, M, omega=None, walls=None):
    """Return the start of one problem, given in nodes."""
    omega = torch.zeros_like(M[..., 0]) if omega is None else omega
    walls = torch.zeros(M.shape[:-2], dtype=torch.bool) if walls is None else walls
    seeds = [Seeds(position, value)]
    problem = EikonalProblem(M[None], omega[None], seeds, torch.as_tensor(walls)[None])
    return _seeding.seed_nodes(problem)


def heat_distance(*grid, mask=None, **options):
    return solve(Heat(**options), *grid, None if mask is None else ~mask).distance


@dataclass(frozen=True)
class Field:
    """A metric field, its distance d(x, y) from x to y and its exponential map exp_x(v)."""

    name: str
    metric: Callable[[Tensor], Randers]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    distance: Map | None = None
    exp: Map | None = None
    past: Map | None = None
    """Where the geodesic that passes x with velocity v was a unit of time before."""

    def __str__(self) -> str:
        return self.name

    @property
    def dim(self) -> int:
        return len(self.lower)

    def at(self, positions: Tensor) -> Randers:
        """Return the metrics at positions (..., d)."""
        return self.metric(positions)

    def grid(self, shape: int | Sequence[int], **options) -> GridMetric:
        """Return the field at the nodes of a grid over the box; an integer: nodes on each axis."""
        shape = (shape,) * self.dim if isinstance(shape, int) else tuple(shape)
        spacing = [(u - l) / (n - 1) for l, u, n in zip(self.lower, self.upper, shape, strict=True)]
        return GridMetric.from_function(
            self.metric, shape, spacing=tuple(spacing), origin=self.lower, **options
        )

    def point(self, *fractions: float) -> Tensor:
        """Return the position at fractions of the box, (0.5, 0.5) being its centre."""
        low, up = torch.tensor(self.lower).double(), torch.tensor(self.upper).double()
        return low + (up - low) * torch.tensor(fractions, dtype=torch.float64)


def truth(field: Field, grid: GridMetric, source: Tensor, reverse: bool = False) -> Tensor:
    """Return the exact distances from ``source`` to every node (to it where ``reverse``)."""
    nodes = torch.as_tensor(grid.nodes())
    source = source.expand(nodes.shape)
    return field.distance(nodes, source) if reverse else field.distance(source, nodes)


def trusted(exact: Tensor) -> Tensor:
    """Return the nodes nearer to the source than the border is, a boolean of ``exact``'s shape.

    Shortest paths to those cannot leave the box, so that the distance inside it is the exact one.
    """
    border = torch.ones(exact.shape, dtype=torch.bool)
    border[(slice(1, -1),) * exact.ndim] = False
    return exact < exact[border].min()


def _tensor(values) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=float))


def constant(M, omega=None, size: float = 1.0, name: str = "constant") -> Field:
    """Return a constant Randers metric on the box from 0 to ``size``: straight lines."""
    M = _tensor(M)
    omega = torch.zeros(M.shape[-1], dtype=M.dtype) if omega is None else _tensor(omega)
    d = M.shape[-1]
    one = Randers(M, omega)

    def metric(x: Tensor) -> Randers:
        batch = x.shape[:-1]
        return Randers(M.expand(*batch, d, d), omega.expand(*batch, d), validate=False)

    return Field(
        name=name,
        metric=metric,
        lower=(0.0,) * d,
        upper=(float(size),) * d,
        distance=lambda x, y: one.norm(y - x),
        exp=lambda x, v: x + v,
    )


def tilted(condition: float, degrees: float, strength: float = 0.0, along=(1.0, 0.5), size=1.0):
    """Return a constant metric: cond(M), the angle of its fast axis, |omega|_{M^-1} and direction.

    The eigenvalue is 1 along ``(cos, sin)`` of the angle and ``condition`` across.
    """
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    R = np.array([[c, -s], [s, c]])
    M = R @ np.diag([1.0, condition]) @ R.T
    omega = np.asarray(along, dtype=float)
    omega = omega * strength / math.sqrt(omega @ np.linalg.solve(M, omega))
    return constant(M, omega, size, name=f"tilted({condition:g}, {degrees:g}, {strength:g})")


def zermelo_constant_wind(wind=(0.3, -0.5), speed: float = 1.0, size: float = 1.0) -> Field:
    """Return a boat of constant ``speed`` in a constant ``wind``; distances are travel times."""
    wind = np.asarray(wind, dtype=float)
    one = Randers.from_zermelo(np.eye(len(wind)) / speed**2, wind)
    return constant(one.M, one.omega, size, name="constant wind")


def pull_back(A=((1.0, 0.4), (-0.2, 0.7)), rates=(0.9, 1.3), c=(0.3, -0.4), wobble: float = 0.0):
    r"""Return the pull-back of a Euclidean space by ``phi``, plus the exact form ``d psi``.

    ``phi(x) = A (sinh(a_i x_i) / a_i)`` carries the box into a parallelepiped, which is convex:
    shortest paths stay in the box. ``psi = c . phi + wobble cos(3 phi_0)``; with ``wobble`` 0
    the metric is the pull-back of a constant one, and its exponential map is known. The distance
    is ``|phi(y) - phi(x)| + psi(y) - psi(x)``.
    """
    A, a, c = _tensor(A), _tensor(rates), _tensor(c)
    d = len(a)

    def phi(x: Tensor) -> Tensor:
        return (torch.sinh(a * x) / a) @ A.T

    def phi_inverse(z: Tensor) -> Tensor:
        return torch.asinh(a * (z @ torch.linalg.inv(A).T)) / a

    def psi(x: Tensor) -> Tensor:
        z = phi(x)
        return z @ c + wobble * torch.cos(3 * z[..., 0])

    def jacobian(x: Tensor) -> Tensor:
        return A * torch.cosh(a * x)[..., None, :]

    def metric(x: Tensor) -> Randers:
        J = jacobian(x)
        slope = c - 3 * wobble * torch.sin(3 * phi(x)[..., :1]) * torch.eye(d, dtype=x.dtype)[0]
        return Randers(J.mT @ J, (J.mT @ slope[..., None])[..., 0], validate=False)

    def exp(x: Tensor, v: Tensor) -> Tensor:
        return phi_inverse(phi(x) + (jacobian(x) @ v[..., None])[..., 0])

    return Field(
        name=f"pull-back {d}-D{' wobbling' if wobble else ''}",
        metric=metric,
        lower=(-1.0,) * d,
        upper=(1.0,) * d,
        distance=lambda x, y: torch.linalg.norm(phi(y) - phi(x), dim=-1) + psi(y) - psi(x),
        exp=None if wobble else exp,
    )


def pull_back_3d(wobble: float = 0.0) -> Field:
    """Return :func:`pull_back` in three dimensions."""
    A = ((1.0, 0.3, 0.0), (-0.2, 0.8, 0.3), (0.1, 0.0, 0.6))
    return pull_back(A, (0.9, 1.2, 0.7), (0.3, -0.3, 0.2), wobble)


def half_plane(d: int = 2) -> Field:
    """Return the hyperbolic half-space, ``M = I / y^2`` with ``y`` the first coordinate."""

    def metric(x: Tensor) -> Randers:
        M = torch.eye(d, dtype=x.dtype) / x[..., :1, None] ** 2
        return Randers(M, torch.zeros_like(x), validate=False)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        # 2 asinh(|y - x| / 2 sqrt(x_0 y_0)): exact where arcosh(1 + ...) would cancel.
        gap = torch.linalg.norm(y - x, dim=-1)
        return 2 * torch.asinh(gap / (2 * torch.sqrt(x[..., 0] * y[..., 0])))

    def exp(x: Tensor, v: Tensor) -> Tensor:
        # In the plane spanned by v and the upward axis, with z = s + i y: the vertical line e^t i,
        # turned about i by the Moebius map of a rotation, then scaled by y and moved by x.
        height = x[..., 0]
        speed = torch.linalg.norm(v, dim=-1)
        t = speed / height
        side = v[..., 1:]
        across = torch.linalg.norm(side, dim=-1)
        turn = torch.atan2(-across, v[..., 0]) / 2  # of the tangent i by twice that
        i, e = torch.complex(torch.zeros_like(t), torch.ones_like(t)), torch.exp(t)
        z = (torch.cos(turn) * e * i + torch.sin(turn)) / (
            -torch.sin(turn) * e * i + torch.cos(turn)
        )
        direction = side / torch.where(across == 0, torch.ones_like(across), across)[..., None]
        return torch.cat(
            (
                (height * z.imag)[..., None],
                x[..., 1:] + (height * z.real)[..., None] * direction,
            ),
            dim=-1,
        )

    return Field(
        name=f"half-plane {d}-D",
        metric=metric,
        lower=(1.0,) + (-0.5,) * (d - 1),
        upper=(2.0,) + (0.5,) * (d - 1),
        distance=distance,
        exp=exp,
    )


def funk(d: int = 2) -> Field:
    """Return Funk's metric on the unit ball: ``x + v / F_x(v)`` lies on the unit sphere.

    A Randers metric with straight geodesics and an infinite distance to the sphere.
    """

    def metric(x: Tensor) -> Randers:
        room = 1 - (x * x).sum(-1)
        M = torch.eye(d, dtype=x.dtype) / room[..., None, None]
        M = M + x[..., :, None] * x[..., None, :] / room[..., None, None] ** 2
        return Randers(M, x / room[..., None], validate=False)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        # log(|x - a| / |y - a|), a being where the ray from x through y meets the sphere: with
        # a = x + (y - x) / s that is -log(1 - s), and s = F_x(y - x).
        return -torch.log1p(-metric(x).norm(y - x))

    def exp(x: Tensor, v: Tensor) -> Tensor:
        F = metric(x).norm(v)[..., None]
        return x - v * torch.where(F == 0, -torch.ones_like(F), torch.expm1(-F) / F)

    def past(x: Tensor, v: Tensor) -> Tensor:
        # On the line through x along v, at the place q from which the distance to x is F(v): the
        # distance to the sphere ahead is exp(F(v)) times that from x.
        F = metric(x).norm(v)[..., None]
        return x - v * torch.expm1(F) / F

    side = 0.6 if d == 2 else 0.5
    return Field(
        name=f"Funk {d}-D",
        metric=metric,
        lower=(-side,) * d,
        upper=(side,) * d,
        distance=distance,
        exp=exp,
        past=past,
    )


def rotation_wind(rate: float = 0.6, size: float = 1.0) -> Field:
    """Return a boat of unit speed in the wind ``rate (-x_1, x_0)``, a rigid rotation.

    The wind keeps lengths, so in the turning frame the boat goes straight: from x, heading u, it
    is after the time T at ``R(rate T) (x + T u)``. Distances are travel times.
    """

    def turned(x: Tensor, angle: Tensor) -> Tensor:
        c, s = torch.cos(angle), torch.sin(angle)
        return torch.stack((c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]), -1)

    def wind(x: Tensor) -> Tensor:
        return rate * torch.stack((-x[..., 1], x[..., 0]), dim=-1)

    def metric(x: Tensor) -> Randers:
        h = torch.eye(2, dtype=x.dtype).expand(*x.shape, 2)
        return Randers.from_zermelo(h, wind(x), validate=False)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        # The root of |R(-rate T) y - x| - T, which falls: its slope is at most rate |y| - 1 < 0.
        x, y = torch.broadcast_tensors(x, y)
        low = torch.zeros_like(x[..., 0])
        high = torch.linalg.norm(x, dim=-1) + torch.linalg.norm(y, dim=-1)
        for _ in range(60):
            T = (low + high) / 2
            early = torch.linalg.norm(turned(y, -rate * T) - x, dim=-1) > T
            low, high = torch.where(early, T, low), torch.where(early, high, T)
        return (low + high) / 2

    def exp(x: Tensor, v: Tensor, sign: float = 1.0) -> Tensor:
        T = metric(x).norm(v)
        heading = v / torch.where(T == 0, torch.ones_like(T), T)[..., None] - wind(x)
        return turned(x + sign * T[..., None] * heading, sign * rate * T)

    return Field(
        name="rotation wind",
        metric=metric,
        lower=(-size, -size),
        upper=(size, size),
        distance=distance,
        exp=exp,
        past=lambda x, v: exp(x, v, -1.0),
    )


def random_smooth(
    d: int = 2, condition: float = 1000.0, strength: float = 0.95, seed: int = 0, waves: float = 1.0
) -> Field:
    """Return a smooth random field: cond(M) up to ``condition``, |omega|_{M^-1} to ``strength``.

    Eigenvalues, axes and drift come from sums of plane waves of about ``waves`` periods over the
    box from 0 to 1; both extremes are reached. No distance is known.
    """
    rng = np.random.default_rng(seed)
    terms = 6
    pairs = [(i, j) for i in range(d) for j in range(i + 1, d)]
    channels = d + len(pairs) + d  # log-eigenvalues, rotation angles, drift
    K = _tensor(rng.normal(size=(channels, terms, d)) * 2 * math.pi * waves / math.sqrt(d))
    phase = _tensor(rng.uniform(0, 2 * math.pi, (channels, terms)))

    def metric(x: Tensor) -> Randers:
        arguments = torch.einsum("cti,...i->...ct", K, x) + phase
        g = torch.tanh(torch.sin(arguments).sum(-1))
        spread = g[..., :1] * torch.linspace(1, -1, d, dtype=x.dtype)
        values = condition ** (spread / 2) * torch.exp(g[..., 1:2] / 2)
        R = torch.eye(d, dtype=x.dtype).expand(*x.shape, d)
        for n, (i, j) in enumerate(pairs):
            angle = math.pi * g[..., d + n]
            turn = torch.eye(d, dtype=x.dtype).repeat(*x.shape[:-1], 1, 1)
            turn[..., i, i], turn[..., j, j] = torch.cos(angle), torch.cos(angle)
            turn[..., i, j], turn[..., j, i] = -torch.sin(angle), torch.sin(angle)
            R = R @ turn
        M = (R * values[..., None, :]) @ R.mT
        drift = g[..., -d:]
        length = torch.linalg.norm(drift, dim=-1, keepdim=True)
        drift = drift * strength * torch.tanh(2 * length) / length
        omega = (R @ (torch.sqrt(values) * drift)[..., None])[..., 0]
        return Randers((M + M.mT) / 2, omega, validate=False)

    return Field(
        name=f"random {d}-D, seed {seed}", metric=metric, lower=(0.0,) * d, upper=(1.0,) * d
    )


def random_pair(field: Field, n: int, seed: int = 0, margin: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return ``n`` positions and ``n`` others, uniform in the box less a margin of fractions."""
    rng = np.random.default_rng(seed)
    low, up = np.asarray(field.lower), np.asarray(field.upper)
    low, up = low + margin * (up - low), up - margin * (up - low)
    x, y = rng.uniform(low, up, (2, n, field.dim))
    return _tensor(x), _tensor(y)


def known_fields() -> list[Field]:
    """Return one of each field whose distance is known, in the plane."""
    return [
        tilted(9, 30, 0.6),
        tilted(100, 30),
        zermelo_constant_wind(),
        rotation_wind(),
        pull_back(),
        pull_back(wobble=0.15),
        half_plane(),
        funk(),
    ]


def known_fields_3d() -> list[Field]:
    """Return one of each field whose distance is known, in space."""
    return [
        constant(np.diag([1.0, 4.0, 9.0]) + 0.8 * np.ones((3, 3)), (0.3, -0.5, 0.9)),
        zermelo_constant_wind((0.3, -0.4, 0.2)),
        pull_back_3d(),
        pull_back_3d(0.1),
        half_plane(3),
        funk(3),
    ]
