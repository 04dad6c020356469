"""Parallel transport, Jacobi fields and conjugate points, in spaces where they are known."""

import math

import pytest
import torch
from metric_fields import funk, half_plane, pull_back

from finslerconv.geodesics import (
    FunctionMetric,
    GridMetric,
    conjugate_time,
    exponential,
    geodesic_flow,
    jacobi_field,
    parallel_transport,
    tensors,
)
from finslerconv.metrics import CallableMetric, Randers, Riemannian

DTYPE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def square(x):
    return (x * x).sum(-1)


def stereographic(x):
    scale = 4 / (1 + square(x)) ** 2
    return Riemannian(
        scale[..., None, None] * torch.eye(x.shape[-1], dtype=x.dtype), validate=False
    )


def turning(x):
    wind = 0.3 * torch.cat((-x[..., 1:2], x[..., :1], 0 * x[..., 2:]), -1)
    return Randers.from_zermelo(stereographic(x).M, wind, validate=False)


def hill(x):
    beta = 0.4 * torch.sin(x + 0.5 * x.flip(-1) ** 2)
    return CallableMetric(lambda v: square(v) / (square(v).sqrt() - (beta * v).sum(-1)), like=x)


def inner(field, x, v, a, b):
    g = field.at(x).fundamental_tensor(v)
    return torch.einsum("...ij,...i,...j->...", g, a, b)


def start(field, n=4, d=2, length=1.0):
    x, v = 0.3 * torch.tanh(normal(n, d)), normal(n, d, seed=1)
    return x, length * v / field.at(x).norm(v)[:, None]


# Across the geodesics: of constant curvature K, sin(sqrt(K) t) / sqrt(K) and its derivative.
CURVED = {
    "sphere": (stereographic, 2, math.sin, math.cos),
    "Killing wind": (turning, 2, math.sin, math.cos),
    "sphere, 3-D": (stereographic, 3, math.sin, math.cos),
    "half-plane": (lambda x: half_plane().metric(x + 1.5), 2, math.sinh, math.cosh),
    "Funk": (funk().metric, 2, lambda t: 2 * math.sinh(t / 2), lambda t: math.cosh(t / 2)),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "half-plane" else pytest.param(name, marks=pytest.mark.slow)
        for name in CURVED
    ],
)
def test_jacobi_fields_of_constant_curvature(name):
    metric, d, s, c = CURVED[name]
    field = FunctionMetric(metric, d)
    x, v = start(field, n=2, d=d)
    w = normal(*x.shape, seed=2)
    w = w - inner(field, x, v, v, w)[:, None] * v
    # Two fields along each geodesic: one is zero at the start, one sets out parallel.
    J, DJ = torch.stack((torch.zeros_like(w), w)), torch.stack((w, torch.zeros_like(w)))
    found = jacobi_field(field, x, v, J, DJ, [0.4, 0.8], steps=10)
    for i, t in enumerate((0.4, 0.8)):
        here = (field, found.position[i, 0], found.velocity[i, 0])
        # Parallel along the geodesic, and of that size.
        E = parallel_transport(field, x, v, w, t, steps=6)
        expected = torch.stack((s(t) * E, c(t) * E))
        torch.testing.assert_close(found.field[i], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.derivative[i, 0], c(t) * E, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            inner(*here, E, E), inner(field, x, v, w, w), rtol=1e-5, atol=1e-6
        )
        assert float(inner(*here, E, here[2]).abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("metric", [pull_back(wobble=0.3).metric, hill])
def test_jacobi_fields_are_derivatives_of_the_exponential_map(metric):
    field = FunctionMetric(metric)
    x, v = start(field, n=1)
    eye = torch.eye(2, dtype=DTYPE)

    def end(v):
        return exponential(field, x[0], v, method="rk4", steps=4)

    J = torch.autograd.functional.jacobian(end, v[0]).mT
    found = jacobi_field(field, x, v, torch.zeros_like(eye), eye, [1.0], steps=4)
    torch.testing.assert_close(found.field[0], J, rtol=1e-9, atol=1e-10)
    # And a field that starts at the neighbours: its derivative is covariant.
    N = tensors.nonlinear_connection(field, x, v)[0]
    moved = jacobi_field(field, x, v, eye, (N @ eye).mT, [1.0], steps=4)

    def shifted(x):
        return exponential(field, x, v[0], method="rk4", steps=4)

    J = torch.autograd.functional.jacobian(shifted, x[0]).mT
    torch.testing.assert_close(moved.field[0], J, rtol=1e-9, atol=1e-10)


def test_the_jacobi_equation():
    """D D J = -R J, by differences of D J."""
    field = FunctionMetric(hill)
    x, v = start(field, n=2)
    J, DJ, step = normal(2, 2, seed=3), normal(2, 2, seed=4), 1e-3
    found = jacobi_field(field, x, v, J, DJ, [step, 2 * step], steps=2)
    there = (field, found.position[0], found.velocity[0])

    def applied(A, u):
        return (A @ u[..., None])[..., 0]

    turn = applied(tensors.nonlinear_connection(*there), found.derivative[0])
    rate = (found.derivative[1] - DJ) / (2 * step) + turn
    expected = -applied(tensors.riemann_curvature(*there), found.field[0])
    torch.testing.assert_close(rate, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_parallel_transport_of_a_pulled_back_plane_is_constant_there():
    truth = pull_back()
    field = FunctionMetric(truth.metric)
    x, v = start(field)
    u = normal(4, 2, seed=2)

    def pushed(x, u):
        J = (
            torch.tensor([[1.0, 0.4], [-0.2, 0.7]], dtype=DTYPE)
            * torch.cosh(torch.tensor([0.9, 1.3], dtype=DTYPE) * x)[..., None, :]
        )
        return (J @ u[..., None])[..., 0]

    found = parallel_transport(field, x, v, u, 0.7, steps=12)
    end = truth.exp(x, 0.7 * v)
    torch.testing.assert_close(pushed(end, found), pushed(x, u), rtol=1e-4, atol=1e-5)
    # The velocity is parallel, and the way back is the way back.
    flow = geodesic_flow(field, x, v, [0.7], method="rk4", steps=12)
    carried = parallel_transport(field, x, v, v, 0.7, steps=12)
    torch.testing.assert_close(carried, flow.velocity[0], rtol=1e-4, atol=1e-5)
    back = parallel_transport(field, flow.position[0], flow.velocity[0], found, -0.7, steps=12)
    torch.testing.assert_close(back, u, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
def test_conjugate_points_of_the_sphere(d):
    """At the distance pi, whatever the speed; in space two Jacobi fields vanish at once."""
    field = FunctionMetric(stereographic, d)
    x, v = start(field, n=3, d=d)
    speed = torch.tensor([0.7, 1.0, 1.9], dtype=DTYPE)
    # Around the middle of the chart, that no geodesic comes near its far end.
    x = x / torch.linalg.norm(x, dim=-1, keepdim=True)
    v = v - 0.9 * (v * x).sum(-1, keepdim=True) * x
    v = speed[:, None] * v / field.at(x).norm(v)[:, None]
    found = conjugate_time(field, x, v, 4.9, steps=24)
    torch.testing.assert_close(found * speed, torch.full_like(speed, math.pi), rtol=1e-2, atol=0)
    assert conjugate_time(field, x[:1], v[:1], 4.0, steps=8) == math.inf
    # A geodesic through the opposite point of the chart's middle, to the fourth order.
    steps = (12, 24)
    errors = [abs(float(conjugate_time(field, x[1], v[1], 3.5, steps=n)) - math.pi) for n in steps]
    assert errors[1] < errors[0] / 8


@pytest.mark.slow
def test_conjugate_points_in_a_killing_wind():
    """Great circles that are carried meet where they did."""
    field = FunctionMetric(turning)
    x = torch.tensor([0.9, 0.1], dtype=DTYPE)
    v = torch.tensor([[0.2, 1.0], [0.1, -1.0]], dtype=DTYPE)
    v = v / field.at(x).norm(v)[:, None]
    found = conjugate_time(field, x, v, 4.0, steps=16)
    torch.testing.assert_close(found, torch.full_like(found, math.pi), rtol=1e-2, atol=0)


@pytest.mark.slow
def test_where_no_curvature_is_positive_no_point_is_conjugate():
    for metric in (lambda x: half_plane().metric(x + 1.5), funk().metric):
        field = FunctionMetric(metric)
        x, v = start(field, n=2)
        assert bool((conjugate_time(field, x, v, 3.0, steps=8) == math.inf).all())


@pytest.mark.slow
def test_gradient_of_the_conjugate_time():
    """The radius of a sphere, a parameter of the field; and no gradient where there is none."""
    radius = torch.tensor(1.3, dtype=DTYPE, requires_grad=True)
    x = torch.tensor([0.9, 0.0], dtype=DTYPE)

    def time(v, until, K):
        metric = FunctionMetric(
            lambda x: Riemannian(radius**2 * stereographic(x).M, validate=False)
        )
        v = torch.tensor([0.0, v], dtype=DTYPE) / (2 / (1 + 0.81))
        return conjugate_time(metric, x, v, until, steps=K)

    (slope,) = torch.autograd.grad(time(1.0, 5.0, 8), radius)
    # At time pi * radius / F(v), and F(v) = radius: it does not depend on it.
    assert abs(float(slope)) < 1e-8
    scale = torch.tensor(1.0, dtype=DTYPE, requires_grad=True)
    sphere = FunctionMetric(stereographic)
    up = torch.tensor([0.0, (1 + 0.81) / 2], dtype=DTYPE)
    (slope,) = torch.autograd.grad(conjugate_time(sphere, x, scale * up, 4.0, steps=12), scale)
    assert float(slope) == pytest.approx(-math.pi, rel=1e-2)
    (slope,) = torch.autograd.grad(conjugate_time(sphere, x, scale * up / 2, 4.0, steps=8), scale)
    assert float(slope) == 0


@pytest.mark.parametrize("interpolation", ["linear", pytest.param("cubic", marks=pytest.mark.slow)])
def test_conjugate_points_on_grids(interpolation):
    field = GridMetric.from_function(
        stereographic, (65, 65), spacing=4 / 64, origin=-2.0, interpolation=interpolation
    )
    x, v = [1.0, 0.0], [0.0, 1.0]
    found = float(conjugate_time(field, x, v, 4.0, steps=12))
    assert found == pytest.approx(math.pi, rel=0.03)
    # In NumPy, and a batch of fields with several rays each.
    both = GridMetric(
        torch.stack((field.M, 4 * field.M)).numpy(), None, field.spacing, field.origin,
        interpolation,
    )  # fmt: skip
    rays = torch.tensor([v, [0.0, -1.0], [0.1, 1.0]], dtype=DTYPE).expand(2, 3, 2)
    times = conjugate_time(both, torch.tensor(x, dtype=DTYPE).numpy(), rays.numpy(), 4.0, steps=12)
    assert times.shape == (2, 3)
    assert times[1] == pytest.approx(times[0])
    assert times[0, 0] == pytest.approx(found)


@pytest.mark.unchecked
def test_what_is_refused():
    field = FunctionMetric(stereographic)
    x, v = [0.1, 0.2], [1.0, 0.0]
    with pytest.raises(ValueError, match="v: expected non-zero vectors"):
        conjugate_time(field, x, [0.0, 0.0])
    with pytest.raises(ValueError, match="time: expected a positive number"):
        conjugate_time(field, x, v, -1.0)
    with pytest.raises(ValueError, match="steps: expected an integer of at least 2"):
        conjugate_time(field, x, v, steps=1)
    with pytest.raises(ValueError, match="times: expected numbers that run away from zero"):
        jacobi_field(field, x, v, v, v, [1.0, 0.5])
    with pytest.raises(ValueError, match="u: expected 2 components"):
        parallel_transport(field, x, v, [1.0, 0.0, 0.0])
