"""The heat method against exact distances, and its invariances."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fields import (
    fast_marching,
    funk,
    half_plane,
    heat_distance,
    pull_back,
    pull_back_3d,
    random_smooth,
    rotation_wind,
    tilted,
    trusted,
    truth,
    zermelo_constant_wind,
)

from finslerconv.geodesics import Seeds
from finslerconv.geodesics.distances import Heat, window_distances
from finslerconv.metrics import Randers


def grid(field, n):
    g = field.grid(n)
    return torch.as_tensor(g.M)[None], torch.as_tensor(g.omega)[None], g.spacing, g.origin


def at(*positions, value=None):
    position = torch.stack([torch.as_tensor(p, dtype=torch.float64) for p in positions])
    return Seeds(position, torch.zeros(len(position)).double() if value is None else value)


def errors(field, n, **options):
    """Return the largest and the mean error, in the largest distance, off the border's shadow."""
    g = field.grid(n)
    source = torch.as_tensor(g.nodes())[(n // 2, n // 3, n // 2)[: field.dim]]
    exact = truth(field, g, source)
    inside = trusted(exact)
    found = heat_distance(*grid(field, n), [at(source)], **options)[0]
    error = (found - exact).abs()[inside] / exact[inside].max()
    return float(error.max()), float(error.mean())


@pytest.mark.parametrize(
    "field",
    [
        tilted(9, 30, 0.6),
        tilted(100, 30),
        zermelo_constant_wind(),
        rotation_wind(),
        pull_back(wobble=0.15),
        half_plane(),
        funk(),
    ],
    ids=str,
)
def test_errors_are_small_and_fall_with_the_spacing(field):
    coarse, fine = errors(field, 33), errors(field, 97)
    assert coarse[0] < 0.025
    assert fine[0] < 0.011
    assert fine[0] < coarse[0] * 3**-0.5


@pytest.mark.parametrize("field", [pull_back_3d(), half_plane(3)], ids=str)
def test_errors_in_space(field):
    largest, mean = errors(field, 13)
    assert largest < 0.04
    assert mean < 0.015


def test_where_the_form_turns_the_error_falls_with_the_time():
    # In a rotation's wind, the form is no gradient, and the linear equation has an error of eps.
    field, h = rotation_wind(), 2 / 64
    means = [errors(field, 65, time=(scale * h) ** 2)[1] for scale in (8.0, 4.0, 2.0)]
    assert means[1] < 0.7 * means[0]
    assert means[2] < 0.7 * means[1]


def test_gradients_added_to_the_form_are_added_to_the_distance():
    # The gauge invariance that makes asymmetry exact: psi is linear, its differences are exact.
    field = random_smooth(2, 20.0, 0.3, seed=4)
    M, omega, spacing, origin = grid(field, 25)
    slope = torch.tensor([0.25, -0.3]).double()
    source = field.point(0.4, 0.55)
    options = {"time": 0.003}
    plain = heat_distance(M, omega, spacing, origin, [at(source)], **options)
    leaning = heat_distance(M, omega + slope, spacing, origin, [at(source)], **options)
    psi = (torch.as_tensor(field.grid(25).nodes()) - source) @ slope
    assert torch.allclose(leaning[0], plain[0] + psi, rtol=0, atol=1e-10)


def test_the_source_is_where_paths_start():
    # Along the form is dear, against it cheap: a transposition or a sign would swap them.
    M = torch.eye(2).double().expand(1, 31, 31, 2, 2)
    omega = torch.tensor([0.0, 0.5]).double().expand(1, 31, 31, 2)
    d = heat_distance(M, omega, 1.0, 0.0, [at((15.0, 15.0))])[0]
    assert abs(d[15, 25] - 15.0) < 0.15
    assert abs(d[15, 5] - 5.0) < 0.15
    assert abs(d[25, 15] - 10.0) < 0.15


def test_it_is_symmetric_under_transposition_and_flips():
    M, omega, _, _ = grid(random_smooth(2, 20.0, 0.7), 27)
    d = heat_distance(M, omega, 1.0, 0.0, [at((10.3, 17.6))])
    turned = heat_distance(
        M.transpose(1, 2).flip(-1, -2), omega.transpose(1, 2).flip(-1), 1.0, 0.0, [at((17.6, 10.3))]
    )
    mirror = torch.diag(torch.tensor([-1.0, 1.0]).double())
    flipped = heat_distance(
        (mirror @ M @ mirror).flip(1), (omega @ mirror).flip(1), 1.0, 0.0, [at((26 - 10.3, 17.6))]
    )
    assert torch.allclose(turned.mT, d, rtol=0, atol=1e-10)
    assert torch.allclose(flipped.flip(1), d, rtol=0, atol=1e-10)


def test_it_does_not_underflow():
    # exp(-d / eps) is down to exp(-1000) here, which neither precision can hold.
    field = tilted(9, 30, 0.6)
    M, omega, spacing, origin = grid(field, 101)
    source = field.point(0.5, 0.5)
    exact = truth(field, field.grid(101), source)
    eps = float(exact.max()) / 1000
    d = heat_distance(M, omega, spacing, origin, [at(source)], time=eps**2)[0]
    inside = trusted(exact)
    assert (d - exact).abs()[inside].max() < 0.01 * exact[inside].max()
    single = heat_distance(M.float(), omega.float(), spacing, origin, [at(source)], time=eps**2)[0]
    assert single.dtype == torch.float32
    assert (single - d).abs().max() < 1e-5 * d.max()


def test_problems_are_independent_and_fields_can_be_shared():
    fields = [random_smooth(2, 9.0, 0.5, seed=s) for s in (0, 1)]
    M, omega = (torch.cat(x) for x in zip(*(grid(f, 21)[:2] for f in fields), strict=True))
    seeds = [at((5.0, 6.0)), at((12.5, 14.0), (3.0, 3.0))]
    both = heat_distance(
        M, omega, 0.05, 0.0, seeds := [Seeds(s.position * 0.05, s.value) for s in seeds]
    )
    for p in range(2):
        one = slice(p, p + 1)
        alone = heat_distance(M[one], omega[one], 0.05, 0.0, seeds[one])
        assert torch.allclose(both[one], alone, rtol=0, atol=1e-11)
    shared = heat_distance(M[:1], omega[:1], 0.05, 0.0, seeds)
    assert torch.allclose(shared[0], both[0], rtol=0, atol=1e-11)


def test_a_source_that_is_reached_before_it_starts_has_no_say():
    M = torch.eye(2).double().expand(1, 31, 31, 2, 2)
    alone = heat_distance(M, None, 1.0, 0.0, [at((15.0, 8.0))])
    late = at((15.0, 8.0), (15.0, 22.0), value=torch.tensor([0.0, 60.0]).double())
    assert torch.allclose(heat_distance(M, None, 1.0, 0.0, [late]), alone, rtol=0, atol=1e-6)


def test_walls():
    M = torch.eye(2).double().expand(1, 30, 30, 2, 2)
    mask = torch.ones(30, 30, dtype=torch.bool)
    mask[:, 20] = False
    mask[5:, 10] = False
    d = heat_distance(M, None, 1.0, 0.0, [at((20.0, 5.0))], mask=mask)[0]
    assert d[:, 20:].isinf().all()
    assert d[:, :20][mask[:, :20]].isfinite().all()
    exact = fast_marching(M, None, 1.0, 0.0, [at((20.0, 5.0))], mask=mask).distance[0]
    error = (d - exact).abs()[mask & exact.isfinite()]
    assert error.max() < 0.05 * exact[exact.isfinite()].max()


def test_gradients_are_those_of_finite_differences():
    field = random_smooth(2, 20.0, 0.7)
    M, omega, spacing, origin = grid(field, 11)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 11, 11, generator=generator, dtype=torch.float64)

    def total(M, omega, position, value):
        seeds = [Seeds(position, value)]
        d = heat_distance((M + M.mT) / 2, omega, spacing, origin, seeds, time=0.01)
        return (weights * d).sum()

    value = torch.tensor([0.4]).double()
    inputs = [x.clone().requires_grad_() for x in (M, omega, field.point(0.43, 0.37)[None], value)]
    gradients = torch.autograd.grad(total(*inputs), inputs)
    for k, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * float(inputs[k].detach().abs().mean())
        ends = []
        for sign in (1, -1):
            moved = [x.detach().clone() for x in inputs]
            moved[k] += sign * step * direction
            ends.append(total(*moved))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert torch.isclose((gradient * direction).sum(), slope, rtol=1e-5)


def test_windows_are_small_grids():
    M, omega, _, _ = grid(random_smooth(2, 9.0, 0.5), 40)
    corners = torch.tensor([[0, 0], [7, 12], [20, 25]])
    windows = [M[0, i : i + 13, j : j + 13] for i, j in corners]
    forms = [omega[0, i : i + 13, j : j + 13] for i, j in corners]
    centre = torch.tensor([[6, 6], [5, 7], [6, 6]])
    d = window_distances(Heat(), torch.stack(windows), torch.stack(forms), 0.2, centre)
    for n in range(3):
        seed = Seeds(centre[n][None].double() * 0.2, torch.zeros(1).double())
        one = heat_distance(windows[n][None], forms[n][None], 0.2, 0.0, [seed])
        assert torch.allclose(d[n], one[0], rtol=0, atol=1e-11)
        assert d[n][tuple(centre[n])].abs() < 1e-12


def test_the_kernel_is_the_exponential_of_the_squared_norm_of_the_way_to_the_source():
    # In a normed space, exp(-F(-x)^2 / 4t) / t solves the Finsler heat equation u' = div L*(du)
    # with L*(p) = d(F*^2 / 2)(p): it is F of the displacement, and squared.
    metric = Randers(
        torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double(), torch.tensor([0.4, -0.3]).double()
    )

    def kernel(x, t, exponent):
        return torch.exp(-exponent(x) / (4 * t)) / t

    def defect(x, t, exponent):
        def flux(x):
            p = torch.func.grad(kernel)(x, t, exponent)
            return torch.func.grad(lambda p: metric.dual_norm(p) ** 2 / 2)(p)

        divergence = torch.func.jacrev(flux)(x).trace()
        return torch.func.grad(kernel, argnums=1)(x, t, exponent) - divergence

    t = torch.tensor(0.7).double()
    for x in torch.tensor([[0.5, 0.2], [-0.3, 0.8], [0.1, -0.9], [-1.0, -0.4]]).double():
        assert abs(defect(x, t, lambda x: metric.norm(-x) ** 2)) < 1e-12
        assert abs(defect(x, t, lambda x: metric.norm(-x))) > 1e-3
        assert abs(defect(x, t, lambda x: metric.dual_norm(-x) ** 2)) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 0.0}, "time: expected a positive number"),
        ({"time": math.nan}, "time: expected a positive number"),
    ],
)
@pytest.mark.unchecked
def test_wrong_options(options, message):
    M = torch.eye(2).double().expand(1, 9, 9, 2, 2)
    with pytest.raises(ValueError, match=message):
        heat_distance(M, None, 1.0, 0.0, [at((4.0, 4.0))], **options)


def test_a_time_too_short_for_a_form_that_turns_is_an_error():
    M = torch.eye(2).double().expand(1, 12, 12, 2, 2)
    sign = torch.where(torch.arange(12) % 2 == 0, 0.95, -0.95).double()
    omega = torch.stack((sign.expand(12, 12), torch.zeros(12, 12)), -1)[None]
    with pytest.raises(
        ValueError, match=r"of time 0\.01 underflows .* give a longer time, "
    ) as error:
        heat_distance(M, omega, 1.0, 0.0, [at((6.0, 6.0))], time=0.01)
    longer = float(re.search("longer time, (.*) arrives", str(error.value))[1])
    d = heat_distance(M, omega, 1.0, 0.0, [at((6.0, 6.0))], time=longer)
    assert bool((d.isfinite() & (d >= 0)).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "time"), [((20_000, 2), 1.0), ((120, 120), 0.001), ((60, 60), 1e-11)]
)
def test_it_does_not_underflow_where_an_edge_is_long(shape, time):
    """On the grid the heat falls more slowly than exp(-d / eps), by any factor over a long way."""
    M = torch.eye(2).double().expand(1, *shape, 2, 2)
    d = heat_distance(M, None, 1.0, 0.0, [at((0.0, 0.0))], time=time)[0]
    exact = torch.hypot(*torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij"))
    assert (d - exact).abs().max() < 3e-3 * exact.max()


def test_times_without_a_direction_are_refused():
    M = torch.eye(2).double().expand(1, 30, 30, 2, 2)
    for time in (1e-300, 1e300):
        with pytest.raises(
            ValueError, match=r"time: expected \S+ to \S+ on this grid, got"
        ) as error:
            heat_distance(M, None, 1.0, 0.0, [at((0.0, 0.0))], time=time)
        ends = re.search(r"expected (\S+) to (\S+) on", str(error.value))
        exact = torch.hypot(*torch.meshgrid(*[torch.arange(30).double()] * 2, indexing="ij"))
        d = heat_distance(M, None, 1.0, 0.0, [at((0.0, 0.0))], time=float(ends[1 + (time > 1)]))
        assert (d - exact).abs().max() < 0.1 * exact.max()


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), time=st.none() | st.floats(-6, 6))
@settings(max_examples=60)
def test_distances_are_never_negative_nor_lost(seed, time):
    """On any small grid, between several sources and walls: a distance, or a time that works."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(4, 24, 2))
    smooth = random_constant if seed % 2 else random_jumping
    M, omega = smooth(rng, shape)
    free = torch.as_tensor(rng.random(shape) > 0.2 * (seed % 3))
    places = torch.nonzero(free).double()
    sources = at(*places[rng.choice(len(places), min(3, len(places)), replace=False)])
    time = None if time is None else 10.0**time
    try:
        d = heat_distance(M, omega, 1.0, 0.0, [sources], time=time, mask=free)[0]
    except ValueError as error:
        longer = float(re.search("longer time, (.*) arrives", str(error))[1])
        d = heat_distance(M, omega, 1.0, 0.0, [sources], time=longer, mask=free)[0]
    assert (d >= 0).all()
    assert (d[tuple(sources.position.long().T)] == 0).all()
    reached = fast_marching(M, omega, 1.0, 0.0, [sources], mask=free).distance[0].isfinite()
    assert d[reached].isfinite().all()


def random_jumping(rng, shape, condition=10.0, strength=0.9):
    """Return M and omega of one field that jumps from node to node."""
    q = np.linalg.qr(rng.standard_normal((*shape, 2, 2)))[0]
    M = np.einsum("...ij,...j,...kj->...ik", q, condition ** -rng.random((*shape, 2)), q)
    u = rng.standard_normal((*shape, 2))
    u *= strength * rng.random((*shape, 1)) / np.linalg.norm(u, axis=-1, keepdims=True)
    omega = np.einsum("...ij,...j->...i", np.linalg.cholesky(M), u)
    return torch.as_tensor(M)[None], torch.as_tensor(omega)[None]


def random_constant(rng, shape):
    """Return M and omega of one constant field, long and with a strong wind."""
    M, omega = random_jumping(rng, (1, 1), 100.0, 0.95)
    return M.expand(1, *shape, 2, 2), omega.expand(1, *shape, 2)
