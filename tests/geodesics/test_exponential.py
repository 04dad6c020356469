"""The exponential map: closed forms, conservation, the compiled kernels against PyTorch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metric_fields import (
    constant,
    funk,
    half_plane,
    known_fields,
    known_fields_3d,
    pull_back,
    pull_back_3d,
    random_pair,
    random_smooth,
    rotation_wind,
)

from finslerconv.balls import ball_map
from finslerconv.geodesics import FunctionMetric, GridMetric
from finslerconv.geodesics.flow import Schedule, _steps, exponential, geodesic_flow, shoot
from finslerconv.geodesics.flow import _rays as module
from finslerconv.geodesics.flow._grid import Grid, grid_metric, grid_rates, grid_table
from finslerconv.geodesics.flow._rates import hamiltonian, rates
from finslerconv.metrics import Randers, Riemannian

WITH_EXP = [field for field in known_fields() + known_fields_3d() if field.exp]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def directions(field, x, length, seed=1):
    """Return a velocity of the given length at each position."""
    v = normal(*x.shape, seed=seed)
    return length * v / field.at(x).norm(v)[..., None]


def rough_grid(*batch, shape=(7, 6), seed=0, **options):
    """Return a field that jumps from node to node."""
    d = len(shape)
    A = normal(*batch, *shape, d, d, seed=seed)
    M = 0.2 * A @ A.mT + 0.3 * torch.eye(d)
    return GridMetric(M, 0.08 * normal(*batch, *shape, d, seed=seed + 1), **options)


# Closed forms.


@pytest.mark.parametrize("field", WITH_EXP, ids=str)
def test_geodesics_are_those_of_the_closed_form(field):
    x, _ = random_pair(field, 8)
    v = directions(field, x, 0.3)
    torch.testing.assert_close(exponential(field, x, v), field.exp(x, v), rtol=0, atol=1e-10)


@pytest.mark.parametrize("field", WITH_EXP, ids=str)
def test_the_energy_is_conserved(field):
    x, _ = random_pair(field, 8)
    v = directions(field, x, 0.5)
    flow = geodesic_flow(field, x, v, [0.0, 0.4, 1.0])
    for x, v, p in zip(*flow, strict=True):
        assert (hamiltonian(field.at(x), p) - 0.125).abs().max() < 1e-8
        assert (field.at(x).norm(v) - 0.5).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("field", "method", "options", "error"),
    [
        (rotation_wind(), "rk4", None, 1e-6),
        (rotation_wind(), "dopri8", None, 1e-6),
        (rotation_wind(), "rk4", {}, 3e-3),
        (rotation_wind(), "dopri8", {}, 3e-3),
        (rotation_wind(), "rk4", {"interpolation": "cubic"}, 3e-3),
        (funk(), "rk4", {}, 3e-3),
        (funk(3), "rk4", {}, 3e-3),
    ],
    ids=str,
)
def test_a_negative_time_is_the_geodesics_own_past(field, method, options, error):
    # Zermelo's boat and Funk's metric tell apart where a geodesic comes from, and where it leads
    # if it sets out the opposite way.
    x, _ = random_pair(field, 3, margin=0.35)
    v = directions(field, x, 0.2)
    where = field if options is None else field.grid(33 if field.dim == 2 else 15, **options)
    options = {"method": method, "steps": 8, "tolerance": error / 10}

    def end(v, time):
        return exponential(where, x, v, time=time, **options)

    past, opposite = field.past(x, v), field.exp(x, -v)
    assert ((past - opposite).abs().amax(-1) > 0.02).all()
    torch.testing.assert_close(end(v, -1.0), past, rtol=0, atol=error)
    torch.testing.assert_close(end(-v, 1.0), opposite, rtol=0, atol=error)
    flow = geodesic_flow(where, x, v, [-0.5, -1.0], **options)
    torch.testing.assert_close(flow.position[1], past, rtol=0, atol=error)
    torch.testing.assert_close(flow.position[0], field.past(x, v / 2), rtol=0, atol=error)


@pytest.mark.slow
def test_the_distance_run_is_the_speed_times_the_time():
    for field in known_fields():
        x, _ = random_pair(field, 6)
        end = exponential(field, x, directions(field, x, 0.4), time=0.5)
        torch.testing.assert_close(field.distance(x, end), torch.full((6,), 0.2).double())


@pytest.mark.parametrize("d", [2, 3])
def test_a_constant_grid_has_straight_lines(d):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(d, d))
    metric = Randers(A @ A.T + np.eye(d), rng.uniform(-0.4, 0.4, d))
    field = GridMetric.from_metric(metric, (5, 6, 4)[:d])
    x, v = rng.uniform(0, 4, (2, 20, d))
    for method in ("rk4", "dopri8"):
        end = exponential(field, x, v, method=method)
        assert isinstance(end, np.ndarray)
        np.testing.assert_allclose(end, x + v, atol=1e-10)


@pytest.mark.parametrize("field", [half_plane(), pull_back(), pull_back_3d()], ids=str)
def test_fixed_steps_are_of_order_four(field):
    x, _ = random_pair(field, 4)
    v = directions(field, x, 0.5)
    errors = [
        (exponential(field, x, v, method="rk4", steps=n) - field.exp(x, v)).abs().max()
        for n in (4, 8)
    ]
    assert 11 < errors[0] / errors[1] < 24


def test_a_grid_tends_to_the_field_that_it_samples():
    field = pull_back()
    x, _ = random_pair(field, 200, margin=0.3)
    v = directions(field, x, 0.3)
    grids = [field.grid(n) for n in (9, 17, 33)]
    errors = [(exponential(grid, x, v) - field.exp(x, v)).abs().mean() for grid in grids]
    assert errors[2] < 2e-4
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "tolerance", "batch"), [("dopri8", 1e-7, ()), ("dopri5", 1e-9, (2,))]
)
def test_a_linear_grid_has_one_flow_by_all_methods(method, tolerance, batch):
    field = rough_grid(*batch, outside="reflect", spacing=(0.8, 1.3), origin=(1.0, -2.0))
    x = field.nodes()[1:4, 2].expand(*batch, 3, 2) + 0.3
    v = directions(field, x, 0.7)
    v[..., 1, :] = 0.0
    for times in ([0.3, 1.0], [-0.5, -1.0]):
        found = geodesic_flow(field, x, v, times, method=method, tolerance=tolerance)
        fine = geodesic_flow(field, x, v, times, method="rk4", steps=512)
        moving = [0, 2]
        for a, b in zip(found, fine, strict=True):
            torch.testing.assert_close(a[..., moving, :], b[..., moving, :], rtol=0, atol=1e-5)
    rest = exponential(field, x[..., 1:2, :], v[..., 1:2, :], method=method)
    assert torch.equal(rest, x[..., 1:2, :])


@pytest.mark.parametrize("method", ["dopri8", "dopri5", "bosh3"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_adaptive_methods_keep_to_the_tolerance_in_both_directions_of_time(method, sign):
    field = half_plane()
    x, v = torch.tensor([[1.0, 0.0], [2.0, -1.0]]).double(), torch.tensor([[0.0, 1.0]] * 2).double()
    times = [0.0, 0.3 * sign, 1.5 * sign]
    flow = geodesic_flow(field, x, v, times, method=method, tolerance=1e-6)
    for time, position in zip(times, flow.position, strict=True):
        torch.testing.assert_close(position, field.exp(x, time * v), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_adaptive_methods_come_to_an_end_on_a_linear_grid():
    field = pull_back().grid(17)
    x, _ = random_pair(pull_back(), 4, margin=0.3)
    v = directions(field, x, 0.5)
    end = exponential(field, x, v, method="dopri8")
    torch.testing.assert_close(end, exponential(field, x, v, steps=512), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_adaptive_gradients_on_a_linear_grid_are_those_of_differences():
    field = rough_grid(shape=(4, 5))
    x, v = torch.tensor([[1.3, 2.4]]).double(), torch.tensor([[0.4, -0.3]]).double()

    def end(M, omega, x, v):
        grid = GridMetric((M + M.mT) / 2, omega, validate=False)
        return exponential(grid, x, v, method="dopri5", tolerance=1e-6)

    inputs = [u.clone().requires_grad_() for u in (field.M, field.omega, x, v)]
    assert torch.autograd.gradcheck(end, inputs, fast_mode=True, atol=1e-5)


@pytest.mark.slow
def test_the_speed_drifts_with_the_square_of_the_spacing():
    # On a linear grid the force is not the derivative of the interpolated metric.
    field = pull_back()
    x, _ = random_pair(field, 50, margin=0.3)
    v = directions(field, x, 0.4)

    def drift(interpolation, n, steps):
        grid = field.grid(n, interpolation=interpolation)
        flow = geodesic_flow(grid, x, v, [1.0], method="rk4", steps=steps)
        ratio = grid.at(flow.position[0]).dual_norm(flow.momentum[0]) / grid.at(x).norm(v)
        return float((ratio - 1).abs().max())

    coarse, fine = drift("linear", 33, 16), drift("linear", 65, 16)
    more_steps = drift("linear", 65, 64)
    assert 3 < coarse / fine < 5
    assert more_steps == pytest.approx(fine, rel=0.02)
    assert drift("cubic", 65, 64) < 0.02 * fine


# The Hamiltonian.


@given(st.integers(0, 1000), st.sampled_from([2, 3]))
def test_legendre_there_and_back(seed, d):
    A, w, v = normal(d, d, seed=seed), normal(d, seed=seed + 1), normal(5, d, seed=seed + 2)
    M = A @ A.mT + 0.1 * torch.eye(d).double()
    w = 0.9 * w / torch.sqrt(w @ torch.linalg.solve(M, w))
    metric = Randers(M, w)
    p = metric.legendre(v)
    u = v.clone().requires_grad_()
    (slope,) = torch.autograd.grad(metric.energy(u).sum(), u)
    torch.testing.assert_close(p, slope)
    torch.testing.assert_close(metric.dual_norm(p), metric.norm(v))
    torch.testing.assert_close(metric.legendre_inverse(p), v, rtol=1e-8, atol=1e-8)


def test_zero_has_momentum_and_velocity_zero():
    metric = Randers(torch.eye(2).double(), torch.tensor([0.3, 0.0]).double())
    zero = torch.zeros(2).double()
    assert torch.equal(metric.legendre(zero), zero)
    assert torch.equal(metric.legendre_inverse(zero), zero)


@pytest.mark.parametrize("outside", ["constant", "reflect"])
@pytest.mark.parametrize("d", [2, 3])
def test_the_grids_closed_form_is_what_differentiation_gives(d, outside):
    # Entries that rise linearly have the same slope everywhere, so that both are exact.
    shape, spacing = (5, 4, 6)[:d], (0.7, 1.2, 2.0)[:d]
    rise = [0.05 * normal(d, d, seed=k) for k in range(d)]

    def linear(x):
        M = torch.eye(d).double() + sum(x[..., k, None, None] * rise[k] for k in range(d))
        return M + M.mT, 0.05 * x.flip(-1) + 0.1

    field = GridMetric.from_function(linear, shape, spacing=spacing, outside=outside)
    last = torch.tensor(shape).double() - 1
    c = (last + 4) * torch.rand(200, d, dtype=torch.float64) - 2
    # Within a node outside slopes change to what they are there.
    beyond = torch.maximum(-c, c - last)
    c = c[((beyond <= 0) | (beyond >= 1)).all(-1)][:60]
    p = normal(60, d)
    x = c * c.new_tensor(spacing)
    length = field.at(x).dual_norm(p)
    grid = Grid(field.grid_shape, field.spacing, outside)
    first = torch.zeros(60, dtype=torch.long)
    table = grid_table(grid, field.M, field.omega)
    closed = grid_rates(grid, table, first, c, p, length)
    for a, b in zip(closed, rates(field, x, p, length), strict=True):
        torch.testing.assert_close(a, b)


# Properties of the map.


@pytest.mark.slow
def test_time_scales_velocity():
    field = pull_back()
    x, _ = random_pair(field, 5)
    v = directions(field, x, 0.5)
    flow = geodesic_flow(field, x, v, [0.25, 0.5, 1.0])
    for t, position in zip((0.25, 0.5, 1.0), flow.position, strict=True):
        torch.testing.assert_close(exponential(field, x, t * v), position)
        torch.testing.assert_close(exponential(field, x, v, time=t), position)


@pytest.mark.slow
def test_the_reversed_metric_leads_back():
    field = FunctionMetric(pull_back().metric)
    x, _ = random_pair(pull_back(), 5)
    flow = geodesic_flow(field, x, directions(field, x, 0.5), [1.0])
    back = exponential(field.reverse(), flow.position[0], -flow.velocity[0])
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(exponential(field, flow.position[0], flow.velocity[0], time=-1.0), x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("field", [pull_back().grid(9), pull_back()], ids=["grid", "function"])
def test_no_velocity_no_motion_but_a_derivative(field, method):
    x, zero = torch.tensor([0.3, 0.2]).double(), torch.zeros(3, 2).double()

    def end(x, v):
        return exponential(field, x, v, method=method, time=2.0, steps=2, tolerance=1e-3)

    assert torch.equal(end(x, zero), x.expand(3, 2))
    by_x, by_v = torch.autograd.functional.jacobian(end, (x, zero[0]))
    torch.testing.assert_close(by_x, torch.eye(2).double())
    torch.testing.assert_close(by_v, 2 * torch.eye(2).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("d", "interpolation", "method"),
    [
        (2, None, "rk4"),
        (2, None, "dopri5"),
        (2, "linear", "rk4"),
        (2, "linear", "dopri5"),
        (3, "linear", "rk4"),
        (2, "cubic", "rk4"),
    ],
)
def test_tiny_velocities_go_straight_and_hurt_no_other(d, interpolation, method, dtype):
    field = rotation_wind() if d == 2 else funk(3)
    if interpolation is not None:
        field = field.grid(5, interpolation=interpolation).to(dtype)
    # Two velocities whose squares underflow, the smallest number above 0, and 0.
    info = torch.finfo(dtype)
    sizes = [info.tiny**0.6, 10 * info.tiny, info.smallest_normal * info.eps, 0.0]
    direction = torch.tensor([0.6, -0.8, 0.5][:d], dtype=dtype)
    ordinary = torch.tensor([0.02, 0.03, -0.01][:d], dtype=dtype)
    v = torch.stack([ordinary, *(size * direction for size in sizes)]).requires_grad_()
    x = torch.zeros(5, d, dtype=dtype, requires_grad=True)

    def flow(x, v):
        return geodesic_flow(field, x, v, [0.5, 1.0], method=method, steps=2, tolerance=1e-3)

    found, alone = flow(x, v), flow(x[:1], v[:1])
    rounding = 1e-3 if method == "dopri5" else 10 * info.eps
    for many, one in zip(found, alone, strict=True):
        assert many.isfinite().all()
        torch.testing.assert_close(many[:, :1], one, rtol=rounding, atol=0)
    end = found.position[1]
    torch.testing.assert_close(end[1:], v[1:], rtol=100 * info.eps, atol=info.tiny)
    torch.testing.assert_close(found.velocity[1, 1:], v[1:], rtol=100 * info.eps, atol=info.tiny)
    by_x, by_v = torch.autograd.grad(end.sum(), (x, v))
    torch.testing.assert_close(by_x[1:], torch.ones(4, d, dtype=dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(by_v[1:], torch.ones(4, d, dtype=dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", [None, "linear", "cubic"])
def test_the_field_has_no_gradient_of_a_tiny_velocity(interpolation):
    # Of second order in the velocity, and finite.
    M = torch.eye(2).double() * (1 + normal(4, 4, 1, 1).abs())
    M.requires_grad_()
    x, v = torch.tensor([[1.3, 1.4], [3e-170, -4e-170]], dtype=torch.float64)
    if interpolation is None:
        field = FunctionMetric(lambda x: Riemannian(M[0, 0] + x[..., :1, None] ** 2 * M[1, 1]))
    else:
        field = GridMetric(M, interpolation=interpolation, validate=False)
    (slope,) = torch.autograd.grad(exponential(field, x, v, method="rk4").sum(), M)
    assert slope.abs().max() < 1e-160


@pytest.mark.parametrize("interpolation", [None, "cubic"])
def test_the_flow_does_not_depend_on_who_asks_for_gradients(interpolation):
    field = rotation_wind()
    if interpolation is not None:
        field = field.grid(7, interpolation=interpolation)
    x, v = torch.tensor([0.3, 0.2]).double(), torch.tensor([0.2, -0.3]).double()
    plain = exponential(field, x, v, method="rk4", steps=4)
    recorded = exponential(field, x.clone().requires_grad_(), v, method="rk4", steps=4)
    assert torch.equal(recorded, plain)


def test_transposes_and_flips_carry_geodesics_along():
    field = rough_grid(shape=(6, 6))
    x, v = 5 * torch.rand(30, 2, dtype=torch.float64), normal(30, 2)
    end = exponential(field, x, v)

    def same(M, omega, there):
        other = exponential(GridMetric(M, omega), there(x), there(v) - there(0 * v))
        torch.testing.assert_close(other, there(end))

    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    same(
        (swap @ field.M @ swap).transpose(0, 1),
        (field.omega @ swap).transpose(0, 1),
        lambda u: u @ swap,
    )
    flip = torch.diag(torch.tensor([-1.0, 1.0])).double()
    shift = torch.tensor([5.0, 0.0]).double()
    same((flip @ field.M @ flip).flip(0), (field.omega @ flip).flip(0), lambda u: u @ flip + shift)


def test_a_batch_of_fields_is_many_fields():
    field = rough_grid(3)
    x, v = 4 * torch.rand(3, 5, 2, dtype=torch.float64), normal(3, 5, 2)
    ends = exponential(field, x, v)
    flow = geodesic_flow(field, x, v, [0.5, 1.0])
    assert flow.velocity.shape == (2, 3, 5, 2)
    for i in range(3):
        one = GridMetric(field.M[i], field.omega[i])
        alone = geodesic_flow(one, x[i], v[i], [0.5, 1.0])
        torch.testing.assert_close(ends[i], exponential(one, x[i], v[i]))
        for many, single in zip(flow, alone, strict=True):
            torch.testing.assert_close(many[:, i], single)


def test_rough_fields_and_long_steps_do_not_run_away():
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-2, 2, (16, 16, 1, 1))
    field = GridMetric(torch.as_tensor(scale * np.eye(2)))
    x, v = torch.as_tensor(rng.uniform(0, 15, (200, 2))), normal(200, 2)
    v = 3 * v / field.at(x).norm(v)[:, None]
    # The fastest metric has F = |v| / 10: no way of length 3 is longer than 30.
    for n in (1, 3, 10):
        assert torch.linalg.norm(exponential(field, x, v, steps=n) - x, dim=-1).max() <= 30


# The compiled kernels.


def example(fields=2, outside="constant", dtype=torch.float64, count=5):
    """Return arguments of shoot: rays of one and more records, one ray that stands still."""
    field = rough_grid(fields, outside=outside)
    grid = Grid((7, 6), (0.8, 1.3), outside)
    starts = 9 * torch.rand(fields, count, 2, dtype=dtype) - 2
    velocities = normal(fields, count, 4, 2).to(dtype)
    velocities[:, 3, 1] = 0
    schedule = Schedule.of(
        [[(1.0, 0)], [(0.5, 2), (1.0, 3)], [(1.0, 1)], [(0.3, 4), (0.6, 6), (1.0, 5)]], [4, 5, 1, 3]
    )
    tensors = [field.M.to(dtype), field.omega.to(dtype), starts, velocities]
    return grid, [u.requires_grad_() for u in tensors], schedule


def run(grid, tensors, schedule, compiled, **options):
    M, omega, starts, velocities = tensors
    table = grid_table(grid, M, omega)
    options = {"momenta": True, **options}
    return shoot(grid, table, starts, velocities, schedule, compiled=compiled, **options)


# Of 37 starts the kernels take some together, and a few remain.
@pytest.mark.parametrize("outside", ["constant", "reflect"])
@pytest.mark.parametrize(("fields", "count"), [(1, 5), (3, 5), (2, 37)])
@pytest.mark.parametrize("radial", [False, True])
def test_compiled_kernels_take_the_steps_of_the_reference(fields, count, outside, radial):
    grid, tensors, schedule = example(fields, outside, count=count)
    results = []
    for compiled in (True, False):
        out = run(grid, tensors, schedule, compiled, radial=radial)
        results.append((out, *torch.autograd.grad(out, tensors, normal(*out.shape))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.detach().abs().max()))


@pytest.mark.parametrize("compiled", [True, False])
def test_the_radial_map_sets_rays_out_with_the_lengths_of_points(compiled):
    grid, (M, omega, starts, points), schedule = example(2)
    table = grid_table(grid, M, omega).detach()
    first = torch.tensor([0, 42])[:, None, None]
    at = grid_metric(grid, table, first, starts[:, :, None])
    velocities = ball_map("radial")(at, points)
    torch.testing.assert_close(at.norm(velocities), torch.linalg.norm(points, dim=-1))
    expected = shoot(grid, table, starts, velocities, schedule, momenta=True, compiled=compiled)
    found = shoot(grid, table, starts, points, schedule, momenta=True, radial=True,
                  compiled=compiled)  # fmt: skip
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_compiled_gradients_are_those_of_differences():
    grid, tensors, schedule = example(1)

    def end(*tensors):
        return run(grid, tensors, schedule, True)[:, :, [0, 2, 5]]

    velocities = tensors[3].detach().clone()
    velocities[:, 3, 1] = 1.0  # a momentum of 0 has no derivative
    assert torch.autograd.gradcheck(end, (*tensors[:3], velocities.requires_grad_()), atol=1e-6)


def test_space_has_gradients_too():
    field = rough_grid(shape=(4, 4, 4))
    x = 1 + torch.rand(2, 3, dtype=torch.float64)
    v = normal(2, 3)

    def end(M, omega, x, v):
        return exponential(GridMetric(M, omega, validate=False), x, v, steps=3)

    inputs = [u.clone().requires_grad_() for u in (field.M, field.omega, x, v)]

    def symmetric(M, *rest):
        return end((M + M.mT) / 2, *rest)

    assert torch.autograd.gradcheck(symmetric, inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_gradients_of_any_field(method):
    def end(x, v, a):
        field = FunctionMetric(lambda x: Riemannian(a * torch.eye(2) / x[..., :1, None] ** 2))
        return exponential(field, x, v, method=method, steps=4, tolerance=1e-7)

    x = torch.tensor([[1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (x, v, a), atol=1e-6, fast_mode=True)


@pytest.mark.slow
def test_second_derivatives_are_refused_or_right():
    grid, tensors, schedule = example(1)
    (slope,) = torch.autograd.grad(
        run(grid, tensors, schedule, True).sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"first derivatives only.*interpolation='cubic'"):
        torch.autograd.grad(slope.sum(), tensors[:1])
    x, v = torch.tensor([1.3, 1.4]).double(), torch.tensor([0.4, -0.3]).double()
    cubic = constant(np.eye(2)).grid(4, interpolation="cubic")
    bump = torch.zeros_like(cubic.M)
    bump[1, 2] += torch.eye(2)

    def end(a):
        return exponential(GridMetric(cubic.M + a * bump, interpolation="cubic"), x, v, steps=4)

    a = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(end, a)


def test_single_precision_is_double_rounded():
    grid, tensors, schedule = example()
    double = run(grid, tensors, schedule, True)
    single = [u.detach().float() for u in tensors]
    for compiled in (True, False):
        out = run(grid, single, schedule, compiled)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), double.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_tiles_and_threads_make_no_difference(monkeypatch):
    grid, tensors, schedule = example(2, count=37)

    def both(compiled):
        out = run(grid, tensors, schedule, compiled)
        return [out, *torch.autograd.grad(out, tensors, normal(*out.shape))]

    whole, threads = both(False), torch.get_num_threads()
    monkeypatch.setattr(module, "_TILE", 8)
    for a, b in zip(both(False), whole, strict=True):
        torch.testing.assert_close(a, b)
    single = both(True)
    monkeypatch.setattr(module, "_PART_WORK", 1)
    try:
        torch.set_num_threads(3)
        for a, b in zip(both(True), single, strict=True):
            torch.testing.assert_close(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.unchecked
def test_the_operators_are_what_pytorch_expects():
    grid, (M, omega, starts, velocities), schedule = example(1)
    table = torch.nn.functional.pad(grid_table(grid, M, omega).detach(), (0, 1)).requires_grad_()
    arguments = (
        table, starts.detach()[0].clone().requires_grad_(),
        velocities.detach()[0].clone().requires_grad_(), list(grid.shape), [1.25, 0.7], False,
        False, *schedule, False,
    )  # fmt: skip
    torch.library.opcheck(
        module._shoot,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_nothing_to_shoot_is_no_error():
    field = constant(np.eye(2)).grid(4)
    for method in ("rk4", "dopri5"):
        end = exponential(
            field, torch.zeros(0, 2).double(), torch.zeros(0, 2).double(), method=method
        )
        assert end.shape == (0, 2)


@pytest.mark.slow
def test_smooth_random_fields_in_every_way():
    field = random_smooth(condition=30, strength=0.8)
    x = torch.tensor([[0.4, 0.5], [0.6, 0.4]]).double()
    v = directions(field, x, 0.1)
    exact = exponential(field, x, v)
    for method in ("dopri5", "rk4"):
        end = exponential(field, x, v, method=method, tolerance=1e-8, steps=64)
        torch.testing.assert_close(end, exact, rtol=0, atol=1e-6)
    errors = [
        (exponential(field.grid(n, interpolation="cubic"), x, v) - exact).abs().max()
        for n in (65, 129)
    ]
    assert errors[1] < 3e-4
    assert errors[0] / errors[1] > 3


# What is refused.


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("here", np.zeros(2)), {}, TypeError, "x: expected"),
        ((np.zeros(2), torch.zeros(2)), {}, TypeError, "one kind"),
        ((np.zeros(2, complex), np.zeros(2)), {}, TypeError, "x: expected float32 or float64"),
        ((np.zeros(3), np.zeros(3)), {}, ValueError, "x: expected 2 components"),
        (
            (np.zeros((3, 2)), np.zeros((4, 2))),
            {},
            ValueError,
            "v: expected a shape that broadcasts",
        ),
        ((np.array([[0, 0], [0, np.nan]]), np.zeros(2)), {}, ValueError, r"finite.*index \(1,\)"),
        ((np.zeros(2), np.array([np.inf, 0])), {}, ValueError, "v: expected finite"),
        ((np.zeros(2), np.zeros(2)), {"method": "euler"}, ValueError, "method: expected"),
        ((np.zeros(2), np.zeros(2)), {"steps": 0}, ValueError, "steps: expected a positive"),
        ((np.zeros(2), np.zeros(2)), {"tolerance": 0.0}, ValueError, "tolerance: expected"),
        ((np.zeros(2), np.zeros(2)), {"time": math.nan}, ValueError, "time: expected a finite"),
        ((np.zeros(2), np.zeros(2)), {"time": -math.inf}, ValueError, "time: expected a finite"),
        ((np.zeros(2), np.zeros(2)), {"time": np.ones(2)}, TypeError, "time: .*geodesic_flow"),
    ],
)
def test_what_is_wrong_is_named(arguments, options, error, message):
    field = GridMetric(np.broadcast_to(np.eye(2), (4, 4, 2, 2)))
    with pytest.raises(error, match=message):
        exponential(field, *arguments, **options)


@pytest.mark.unchecked
@pytest.mark.slow
def test_an_adaptive_method_says_where_the_field_ends():
    # At the height 1.
    field = FunctionMetric(
        lambda x: Riemannian((1 - x[..., :1, None]) * torch.eye(2), validate=False)
    )
    x, v = torch.tensor([[0.0, 0.0], [4.0, 0.0]]).double()
    with pytest.raises(ValueError, match=r"'dopri5' cannot go on.*take 'rk4'"):
        exponential(field, x, v, method="dopri5")


@pytest.mark.unchecked
def test_an_adaptive_method_says_how_far_it_came(monkeypatch):
    x, v = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()
    monkeypatch.setattr(_steps, "_MOST_EVALUATIONS", 50)
    with pytest.raises(ValueError, match=r"came to time 0\.\d+ of 1 within 50.*'rk4'.*'cubic'"):
        exponential(pull_back().grid(9), x, v, method="dopri5")


@pytest.mark.unchecked
@pytest.mark.parametrize("times", [[], [0.5, 0.2], [-1.0, 1.0], [math.nan], [1.0, 1.0]])
def test_times_run_away_from_zero(times):
    with pytest.raises(ValueError, match="times: expected"):
        geodesic_flow(half_plane(), torch.ones(2).double(), torch.ones(2).double(), times)


@pytest.mark.unchecked
@pytest.mark.parametrize("times", [1.0, "now", ["a"]])
def test_times_are_a_sequence(times):
    with pytest.raises(TypeError, match="times: expected a sequence of numbers"):
        geodesic_flow(half_plane(), torch.ones(2).double(), torch.ones(2).double(), times)


@pytest.mark.unchecked
def test_a_batch_wants_positions_for_each_field():
    with pytest.raises(ValueError, match=r"x: expected shape \(3, ..., 2\)"):
        exponential(rough_grid(3), torch.zeros(4, 2).double(), torch.zeros(4, 2).double())
