"""Fast marching finds the fixed point of its scheme, the truth as n grows, and its derivatives."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fields import (
    constant,
    fast_marching,
    funk,
    half_plane,
    pull_back,
    pull_back_3d,
    random_smooth,
    rotation_wind,
    seed_nodes,
    tilted,
    trusted,
    truth,
)

from finslerconv.geodesics import Seeds
from finslerconv.geodesics.distances._stencils import acute_stencils, selling_stencils


def grid(field, n):
    g = field.grid(n)
    return torch.as_tensor(g.M)[None], torch.as_tensor(g.omega)[None], g.spacing, g.origin


def at(*positions, value=None):
    position = torch.stack([torch.as_tensor(p, dtype=torch.float64) for p in positions])
    return Seeds(position, torch.zeros(len(position)).double() if value is None else value)


def pixels(shape, condition=4.0, strength=0.5, seed=0):
    """Return a rough random field, nothing like smooth: (M, omega) with a batch of one."""
    rng = np.random.default_rng(seed)
    d = len(shape)
    Q = np.linalg.qr(rng.standard_normal((*shape, d, d)))[0]
    values = condition ** -rng.random((*shape, d))
    M = (Q * values[..., None, :]) @ Q.swapaxes(-1, -2)
    omega = rng.standard_normal((*shape, d))
    norm = np.sqrt((omega * np.linalg.solve(M, omega[..., None])[..., 0]).sum(-1, keepdims=True))
    omega = omega / norm * strength * rng.random((*shape, 1))
    return torch.from_numpy((M + M.swapaxes(-1, -2)) / 2)[None], torch.from_numpy(omega)[None]


@pytest.mark.parametrize("degrees", range(0, 360, 45))
def test_a_constant_form_costs_no_accuracy(degrees):
    """It is added exactly: what is left is the error of the Riemannian part, whatever the form.

    Of first order, without factorisation, in a metric of condition 9 at 30 degrees.
    """
    n, turn = 513, np.radians(30)
    R = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    M = R @ np.diag([1.0, 9.0]) @ R.T
    form = np.linalg.cholesky(M) @ [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))] * 0.6
    v = np.indices((n, n)).transpose(1, 2, 0) - n // 2
    exact = np.sqrt(np.einsum("...i,ij,...j->...", v, M, v)) + v @ form
    front = fast_marching(
        torch.as_tensor(M).expand(1, n, n, 2, 2), torch.as_tensor(form).expand(1, n, n, 2),
        1.0, 0.0, [at((n // 2, n // 2))], order=1, factorise=False,
    )  # fmt: skip
    assert np.abs(front.distance[0].numpy() - exact).max() / n < 1.8e-3


def test_a_source_given_twice_is_one():
    """Also where its coordinates were computed differently: the distance stays exact."""
    field = tilted(9, 30, 0.6)
    M, omega, spacing, origin = grid(field, 21)
    source = field.point(0.3, 0.6)
    (exact,) = fast_marching(M, omega, spacing, origin, [at(source)]).distance
    for again in (source, source * (1 + 1e-15)):
        front = fast_marching(M, omega, spacing, origin, [at(source, again)])
        torch.testing.assert_close(front.distance[0], exact, rtol=0, atol=1e-12)
    late = at(source, source, value=torch.tensor([0.5, 0.0]).double())
    front = fast_marching(M, omega, spacing, origin, [late])
    torch.testing.assert_close(front.distance[0], exact, rtol=0, atol=1e-12)
    assert (front.label == 1).all()


# --- The scheme, slowly and obviously ------------------------------------------------------------


def settled(new, u):
    known = np.isfinite(u)
    if not np.array_equal(known, np.isfinite(new)):
        return False
    return np.abs(new[known] - u[known]).max() < 1e-14


def slow_plane(M, omega, start, wall):
    """Return the fixed point of ``u(x) = min over sectors and l`` by going round and round."""
    height, width = wall.shape
    rows = []
    for x in range(height * width):
        row, column = divmod(x, width)
        if wall[row, column]:
            continue
        m, w = M.reshape(-1, 2, 2)[x], omega.reshape(-1, 2)[x]
        s = acute_stencils(m.reshape(1, 4), w.reshape(1, 2), np.zeros((1, 1), bool))
        e = s.offset.astype(int)
        for a, b in zip(e, np.roll(e, -1, 0), strict=True):
            ends = []
            for end in (a, b):
                i, j = row + end[0], column + end[1]
                clear = 0 <= i < height and 0 <= j < width
                if clear and wall.any():
                    line = (row, column) + np.linspace(0, 1, 997)[:, None] * end
                    cells = np.rint(line[(np.abs(line % 1 - 0.5) > 1e-9).all(-1)]).astype(int)
                    clear = not wall[tuple(cells.T)].any()
                ends.append(i * width + j if clear else -1)
            rows.append((x, *ends, a, b, m, w))
    node, left, right = (np.array([r[k] for r in rows]) for k in range(3))
    a, b, m, w = (np.array([r[k] for r in rows], float) for k in range(3, 7))
    u = np.full(height * width + 1, np.inf)
    seeds = np.full_like(u, np.inf)
    np.minimum.at(seeds, start.node.numpy(), start.value.detach().numpy())
    u = seeds.copy()

    def value(l):
        v = -(l[:, None] * a + (1 - l)[:, None] * b)
        F = np.sqrt(np.einsum("ki,kij,kj->k", v, m, v)) + (w * v).sum(-1)
        with np.errstate(invalid="ignore"):
            mixed = np.where(l == 0, 0, l * u[left]) + np.where(l == 1, 0, (1 - l) * u[right])
        return np.where(np.isnan(mixed), np.inf, mixed) + F

    golden = (math.sqrt(5) - 1) / 2
    for _ in range(10 * (height + width)):
        low, high = np.zeros(len(node)), np.ones(len(node))
        for _ in range(45):  # the section search of a convex function
            p, q = high - golden * (high - low), low + golden * (high - low)
            first = value(p) < value(q)
            low, high = np.where(first, low, p), np.where(first, q, high)
        best = np.minimum(value((low + high) / 2), np.minimum(value(low * 0), value(low * 0 + 1)))
        new = seeds.copy()
        np.minimum.at(new, node, best)
        if settled(new, u):
            break
        u = new
    return u[:-1].reshape(height, width)


def slow_space(M, omega, start, shape):
    """Return the fixed point of ``sum of rho max(0, u - w)^2 = 1`` and of steps along the axes."""
    nodes = math.prod(shape)
    M, omega = M.reshape(nodes, 3, 3), omega.reshape(nodes, 3)
    s = selling_stencils(np.linalg.inv(M))
    at = np.stack(np.unravel_index(np.arange(nodes), shape), -1)

    def neighbour(e):
        there = at + e
        inside = ((there >= 0) & (there < shape)).all(-1)
        return np.where(inside, np.ravel_multi_index(tuple(there.T), shape, mode="clip"), nodes)

    e = s.offset.astype(int)
    ends = [(neighbour(e[:, k]), neighbour(-e[:, k])) for k in range(6)]
    forms = np.einsum("xi,xki->xk", omega, e)
    cut = np.stack([n == nodes for pair in ends for n in pair]).any(0)
    axes = [sign * np.eye(3, dtype=int)[i] for i in range(3) for sign in (1, -1)]
    seeds = np.full(nodes + 1, np.inf)
    np.minimum.at(seeds, start.node.numpy(), start.value.detach().numpy())
    u = seeds.copy()
    for _ in range(60 * max(shape)):
        w = np.stack(
            [np.minimum(u[p] - f, u[q] + f) for (p, q), f in zip(ends, forms.T, strict=True)], 1
        )
        w[s.weight <= 0] = np.inf
        low = w.min(1)
        known = np.isfinite(low)
        low = np.where(known, low, 0.0)
        high = low + 1 / np.sqrt(np.where(s.weight > 0, s.weight, np.inf).min(1))
        for _ in range(70):  # bisection of an increasing function
            middle = (low + high) / 2
            gap = np.maximum(0, middle[:, None] - w)
            early = (s.weight * np.where(np.isfinite(w), gap, 0) ** 2).sum(1) < 1
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        best = np.where(known, high, np.inf)
        for axis in axes:
            F = np.sqrt(np.einsum("i,xij,j->x", axis, M, axis)) - omega @ axis
            best = np.where(cut, np.minimum(best, u[neighbour(axis)] + F), best)
        new = np.append(np.minimum(seeds[:-1], best), np.inf)
        if settled(new, u):
            break
        u = new
    return u[:-1].reshape(shape)


@pytest.mark.parametrize(
    ("condition", "strength", "seed"), [(1, 0, 0), (10, 0.5, 1), (100, 0.9, 2), (1000, 0.95, 3)]
)
@pytest.mark.parametrize("walled", [False, True])
def test_first_order_is_the_fixed_point_of_its_scheme(condition, strength, seed, walled):
    shape = (9, 10)
    M, omega = pixels(shape, condition, strength, seed)
    mask = torch.ones(shape, dtype=torch.bool)
    if walled:
        mask[4, 2:8] = False
        mask[1, 6] = mask[2, 5] = False
    wall = ~mask.numpy()
    source = at((3.2, 3.7))
    found = fast_marching(M, omega, 1.0, 0.0, [source], mask=mask, order=1, factorise=False)
    start = seed_nodes(source.position, source.value, M[0], omega[0], wall)
    slow = slow_plane(M[0].numpy(), omega[0].numpy(), start, wall)
    u = found.distance[0].numpy()
    assert np.array_equal(np.isfinite(u), ~wall)
    assert np.abs(u[~wall] - slow[~wall]).max() < 1e-10


@pytest.mark.parametrize(("condition", "strength"), [(1, 0), (20, 0), (10, 0.5), (50, 0.8)])
def test_first_order_is_the_fixed_point_of_its_scheme_in_space(condition, strength):
    shape = (5, 6, 7)
    M, omega = pixels(shape, condition, strength, 4)
    source = at((2.2, 2.7, 3.1))
    found = fast_marching(M, omega, 1.0, 0.0, [source], order=1, factorise=False)
    start = seed_nodes(source.position, source.value, M[0], omega[0], np.zeros(shape, bool))
    slow = slow_space(M[0].numpy(), omega[0].numpy(), start, shape)
    assert np.abs(found.distance[0].numpy() - slow).max() < 1e-10


@pytest.mark.parametrize("strength", [0, 0.5])
def test_seeds_that_another_front_overtakes_in_space(strength):
    shape = (5, 6, 7)
    M, omega = pixels(shape, 20, strength, 4)
    source = at((2.2, 2.7, 3.1), (0.4, 4.6, 5.2), value=torch.tensor([0.0, 2.0]).double())
    found = fast_marching(M, omega, 1.0, 0.0, [source], order=1, factorise=False)
    start = seed_nodes(source.position, source.value, M[0], omega[0], np.zeros(shape, bool))
    slow = slow_space(M[0].numpy(), omega[0].numpy(), start, shape)
    u = found.distance[0].numpy()
    late = start.node[start.label == 1].numpy()
    overtaken = u.flat[late] < start.value[start.label == 1].numpy()
    assert overtaken.any()
    assert np.abs(u - slow).max() < 1e-10


# --- The truth -----------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 3),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_factored_a_constant_metric_is_exact(seed, exponent, strength, on_grid, order):
    rng = np.random.default_rng(seed)
    along = rng.standard_normal(2)
    field = tilted(10.0**exponent, rng.uniform(0, 180), strength, along, size=40)
    M, omega, spacing, origin = grid(field, 41)
    source = rng.uniform(5, 35, 2)
    source = torch.from_numpy(np.round(source) if on_grid else source)
    found = fast_marching(M, omega, spacing, origin, [at(source)], order=order)
    exact = truth(field, field.grid(41), source)
    assert float((found.distance[0] - exact).abs().max()) < 1e-11 * 10.0**exponent
    # The geodesics are straight.
    nodes = torch.as_tensor(field.grid(41).nodes())
    v = nodes - source
    v = v / field.at(nodes).norm(v).where(v.abs().sum(-1) > 0, 1.0)[..., None]
    assert float((found.flow[0] - v).abs().max()) < 1e-6 * float(v.abs().max())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("M", [np.eye(3), np.diag([1.0, 4.0, 9.0]) + 0.8, np.diag([1.0, 30, 2])])
@pytest.mark.parametrize("omega", [(0.0, 0.0, 0.0), (0.3, -0.5, 0.4)])
def test_factored_a_constant_metric_is_exact_in_space(order, M, omega):
    field = constant(M, omega, size=14)
    g = grid(field, 15)
    for source in ((7.0, 5.0, 6.0), (7.3, 5.45, 6.8)):
        form = g[1] if any(omega) else None
        found = fast_marching(g[0], form, *g[2:], [at(source)], order=order)
        exact = truth(field, field.grid(15), torch.tensor(source, dtype=torch.float64))
        assert float((found.distance[0] - exact).abs().max()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "field", [pull_back(), pull_back(wobble=0.15), half_plane(), rotation_wind(), funk()], ids=str
)
@pytest.mark.parametrize(("order", "factorise"), [(1, False), (1, True), (2, True)])
def test_it_converges_at_its_order(field, order, factorise):
    source = field.point(0.5, 0.45)  # a node of all three grids
    errors = []
    for n in (81, 161, 321):
        found = fast_marching(*grid(field, n), [at(source)], order=order, factorise=factorise)
        exact = truth(field, field.grid(n), source)
        near = trusted(exact)
        errors.append(float((found.distance[0] - exact).abs()[near].mean()))
    rate = math.log2(errors[0] / errors[2]) / 2
    # Without factorisation the error of first order is h log(1 / h).
    assert rate > {1: 0.9 if factorise else 0.65, 2: 1.7}[order], errors


@pytest.mark.slow
def test_it_converges_for_hard_metrics():
    """Condition 1000 and |omega| 0.95, varying."""
    A = np.diag([1.0, 1000**-0.5]) @ [[0.9, 0.4359], [-0.4359, 0.9]]
    c = np.array([0.8, 0.5]) * 0.95 / math.hypot(0.8, 0.5)
    field = pull_back(A, (0.5, 0.7), c)
    source = field.point(0.52, 0.47)
    errors = []
    for n in (101, 401):
        found = fast_marching(*grid(field, n), [at(source)])
        exact = truth(field, field.grid(n), source)
        assert found.distance.isfinite().all()
        errors.append(float((found.distance[0] - exact).abs()[trusted(exact)].mean()))
    assert errors[1] < errors[0] / 8, errors


@pytest.mark.slow
@pytest.mark.parametrize("field", [pull_back_3d(), half_plane(3), funk(3)], ids=str)
@pytest.mark.parametrize(("order", "factorise"), [(1, True), (2, True), (2, False)])
def test_it_converges_at_its_order_in_space(field, order, factorise):
    source = field.point(0.52, 0.47, 0.51)
    errors = []
    for n in (13, 49):
        found = fast_marching(*grid(field, n), [at(source)], order=order, factorise=factorise)
        exact = truth(field, field.grid(n), source)
        errors.append(float((found.distance[0] - exact).abs()[trusted(exact)].mean()))
    rate = math.log2(errors[0] / errors[1]) / 2
    assert rate > (1.6 if order == 2 and factorise else 0.85), errors


def test_errors_on_the_known_constant_metrics():
    """Maximal and mean errors over n without factorisation, source in the centre, n = 256."""
    for field, most, mean in [
        (tilted(9, 120, 0.6, (1, 0.5)), 3.1e-3, 1.5e-3),
        (tilted(1, 0), 6.0e-3, 3.5e-3),
        (tilted(100, 120), 7.5e-3, 9e-4),
    ]:
        n = 256
        M = torch.as_tensor(field.at(torch.zeros(2).double()).M).expand(1, n, n, 2, 2)
        omega = torch.as_tensor(field.at(torch.zeros(2).double()).omega).expand(1, n, n, 2)
        source = torch.tensor([n / 2, n / 2]).double()
        u = fast_marching(M, omega, 1.0, 0.0, [at(source)], order=1, factorise=False).distance[0]
        x = torch.stack(torch.meshgrid(*[torch.arange(n)] * 2, indexing="ij"), -1)
        error = (u - field.distance(source, x.double())).abs() / n
        assert float(error.max()) < most
        assert float(error.mean()) < mean


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("factorise", [False, True])
def test_corners_are_reached_at_any_anisotropy(order, factorise):
    for degrees in (17.0, 45.0, 88.0):
        M, omega, *place = grid(tilted(1000, degrees, 0.95, (0.3, 1), size=30), 31)
        found = fast_marching(M, omega, *place, [at((2.0, 3.0))], order=order, factorise=factorise)
        assert found.distance.isfinite().all()
    M, omega = pixels((8, 8, 8), 1000, 0.8)
    for form in (omega, None):
        found = fast_marching(M, form, 1.0, 0.0, [at((0.3, 7.0, 4.0))], order=order)
        assert found.distance.isfinite().all()


# --- Symmetries and invariants -------------------------------------------------------------------


@pytest.mark.parametrize(("order", "factorise"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("d", [2, 3])
def test_symmetric_under_transposition_and_flips(order, factorise, d):
    n = 33 if d == 2 else 12
    field = random_smooth(d, 50.0, 0.7, seed=5)
    M, omega, *_ = grid(field, n)
    source = torch.full((d,), 0.37 * n).double() + torch.arange(d) * 1.1
    options = {"order": order, "factorise": factorise}
    u = fast_marching(M, omega, 1.0, 0.0, [at(source)], **options).distance[0]
    P = torch.flip(torch.eye(d), [0]).double()
    axes = list(range(d))[::-1]
    turned = fast_marching(
        (P @ M @ P).permute(0, *[1 + a for a in axes], -2, -1),
        (omega @ P).permute(0, *[1 + a for a in axes], -1),
        1.0, 0.0, [at(source.flip(0))], **options,
    )  # fmt: skip
    assert float((turned.distance[0].permute(axes) - u).abs().max()) < 1e-9
    S = torch.diag(torch.tensor([-1.0] + [1.0] * (d - 1))).double()
    moved = source.clone()
    moved[0] = n - 1 - source[0]
    flipped = fast_marching(
        (S @ M @ S).flip(1), (omega @ S).flip(1), 1.0, 0.0, [at(moved)], **options
    )
    assert float((flipped.distance[0].flip(0) - u).abs().max()) < 1e-9


def test_spacing_and_origin_are_a_change_of_coordinates():
    M, omega = pixels((12, 14), 8, 0.6)
    h, o = torch.tensor([0.5, 2.0]).double(), torch.tensor([-1.0, 7.0]).double()
    source = torch.tensor([4.3, 8.1]).double()
    plain = fast_marching(M, omega, 1.0, 0.0, [at(source)])
    scaled = fast_marching(
        M / (h[:, None] * h), omega / h, h.tolist(), o.tolist(), [at(o + h * source)]
    )
    assert torch.allclose(scaled.distance, plain.distance, atol=1e-12)
    assert torch.allclose(scaled.flow, plain.flow * h, atol=1e-9)
    assert torch.equal(scaled.label, plain.label)


@pytest.mark.parametrize("d", [2, 3])
def test_flow_has_unit_speed_and_runs_along_the_gradient(d):
    field = pull_back() if d == 2 else pull_back_3d()
    n = 41 if d == 2 else 21
    source = field.point(*[0.5] * d)
    M, omega, h, o = grid(field, n)
    front = fast_marching(M, omega, h, o, [at(source)])
    speed = field.grid(n).metric.norm(front.flow[0])
    here = front.flow[0].abs().sum(-1) > 0
    assert int((~here).sum()) == 1
    assert float((speed[here] - 1).abs().max()) < 1e-9
    # du . flow = 1 along the geodesic.
    du = torch.stack(torch.gradient(front.distance[0], spacing=h[0]), -1)
    inner = (slice(3, -3),) * d
    far = front.distance[0][inner] > 0.3 * float(front.distance.max())
    assert float(((du * front.flow[0]).sum(-1)[inner][far] - 1).abs().max()) < 0.03


def test_labels_are_the_nearest_source_s():
    n = 40
    M = torch.eye(2).double().expand(1, n, n, 2, 2)
    where = torch.tensor([[5.0, 5.0], [30.0, 12.0], [17.3, 33.6]], dtype=torch.float64)
    value = torch.tensor([0.0, 2.0, 1.0]).double()
    front = fast_marching(M, None, 1.0, 0.0, [at(*where, value=value)])
    x = torch.stack(torch.meshgrid(*[torch.arange(n)] * 2, indexing="ij"), -1).double()
    all_of_them = (x[None] - where[:, None, None]).norm(dim=-1) + value[:, None, None]
    exact, nearest = all_of_them.min(0)
    clear = all_of_them.sort(0).values
    clear = clear[1] - clear[0] > 6  # no neighbour belongs to another
    assert float((front.distance[0] - exact).abs()[clear].max()) < 1e-12
    assert float((front.distance[0] - exact).abs().max()) < 0.2  # where fronts meet
    assert torch.equal(front.label[0][clear], nearest[clear])


def test_a_straight_curve_of_sources_has_a_straight_front():
    n = 30
    M = torch.eye(2).double().expand(1, n, n, 2, 2)
    points = torch.stack([torch.full((59,), 7.3), torch.arange(59) / 2], 1).double()
    u = fast_marching(M, None, 1.0, 0.0, [at(*points)]).distance[0]
    exact = (torch.arange(n).double() - 7.3).abs()[:, None].expand(n, n)
    assert float((u - exact).abs().max()) < 0.03


# --- Walls, radius, problems ---------------------------------------------------------------------


def test_round_an_obstacle():
    n = 61
    M = torch.eye(2).double().expand(1, n, n, 2, 2)
    mask = torch.ones(n, n, dtype=torch.bool)
    mask[30, 10:] = False
    u = fast_marching(M, None, 1.0, 0.0, [at((20.0, 40.0))], mask=mask).distance[0]
    assert u[~mask].isinf().all()
    assert u[mask].isfinite().all()
    # Past the last free nodes at the end of the wall, (29, 9), (30, 9) and (31, 9).
    exact = 2 * math.hypot(20 - 29, 40 - 9) + 2
    assert abs(float(u[40, 40]) - exact) < 0.3
    assert abs(float(u[10, 40]) - 10) < 1e-12


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("diagonal", [False, True])
def test_nothing_leaks_through_thin_walls(d, diagonal):
    n = 14
    shape = (n,) * d
    index = np.indices(shape)
    wall = index[0] + index[1] == n if diagonal else index[0] == 6
    behind = index[0] + index[1] > n if diagonal else index[0] > 6
    M, omega = pixels(shape, 1000, 0.9)
    source = [3.0, 4.0] if d == 2 else [3.0, 4.0, 5.0]
    u = fast_marching(M, omega, 1.0, 0.0, [at(source)], mask=torch.from_numpy(~wall))
    assert u.distance[0][torch.from_numpy(wall | behind)].isinf().all()
    assert u.distance[0][torch.from_numpy(~(wall | behind))].isfinite().all()
    assert (u.label[0][torch.from_numpy(behind)] == -1).all()
    assert (u.flow[0][torch.from_numpy(behind)] == 0).all()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("d", [2, 3])
def test_radius_stops_the_front_and_changes_nothing_inside(order, d):
    field = random_smooth(d, 20.0, 0.6, seed=2)
    n = 40 if d == 2 else 13
    M, omega, *_ = grid(field, n)
    source = at([n / 2 + 0.3] * d)
    whole = fast_marching(M, omega, 1.0, 0.0, [source], order=order)
    radius = 0.4 * float(whole.distance.max())
    part = fast_marching(M, omega, 1.0, 0.0, [source], order=order, radius=radius)
    inside = whole.distance < 0.99 * radius
    assert torch.allclose(part.distance[inside], whole.distance[inside], rtol=1e-9)
    assert part.distance[whole.distance > 1.01 * radius].isinf().all()
    assert float(part.distance[part.distance.isfinite()].max()) <= radius
    assert (part.label[part.distance.isinf()] == -1).all()


@pytest.mark.parametrize("d", [2, 3])
def test_problems_side_by_side_are_those_one_by_one(d):
    n = 24 if d == 2 else 9
    fields = [pixels((n,) * d, 10, 0.5, seed) for seed in range(3)]
    M, omega = (torch.cat(x) for x in zip(*fields, strict=True))
    seeds = [at([2.0 + p] * d, [n - 3.4] * d) for p in range(3)]
    masks = torch.ones(3, *[n] * d, dtype=torch.bool)
    masks[1, n // 2, : n // 2] = False
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = fast_marching(M, omega, 1.0, 0.0, seeds, mask=masks)
        shared = fast_marching(M[:1], omega[:1], 1.0, 0.0, seeds)
    finally:
        torch.set_num_threads(threads)
    for p in range(3):
        one = fast_marching(M[p : p + 1], omega[p : p + 1], 1.0, 0.0, [seeds[p]], mask=masks[p])
        assert all(torch.equal(a[p], b[0]) for a, b in zip(together, one, strict=True))
        one = fast_marching(M[:1], omega[:1], 1.0, 0.0, [seeds[p]])
        assert all(torch.equal(a[p], b[0]) for a, b in zip(shared, one, strict=True))


def test_a_constant_field_is_recognised_however_it_is_stored():
    field = tilted(30, 20, 0.7, size=20)
    M, omega, h, o = grid(field, 21)
    strided = M[:, :1, :1].expand(1, 21, 21, 2, 2), omega[:, :1, :1].expand(1, 21, 21, 2)
    seeds = [at((8.3, 9.9))]
    stored = fast_marching(M, omega, h, o, seeds)
    # An invisible change of one node makes it a field, with a stencil for each node.
    other = M.clone()
    other[0, 0, 0] *= 1 + 1e-15
    for again in (fast_marching(*strided, h, o, seeds), fast_marching(other, omega, h, o, seeds)):
        assert torch.allclose(again.distance, stored.distance, atol=1e-11)


def test_it_runs_in_python_s_threads():
    M, omega = pixels((30, 30), 20, 0.5)
    expected = fast_marching(M, omega, 1.0, 0.0, [at((3.0, 4.0))]).distance
    found = []

    def work():
        found.append(fast_marching(M, omega, 1.0, 0.0, [at((3.0, 4.0))]).distance)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(x, expected) for x in found)


@pytest.mark.parametrize("d", [2, 3])
def test_single_precision_in_and_out(d):
    M, omega = pixels((12,) * d, 10, 0.5)
    seeds = [at([4.3] * d)]
    double = fast_marching(M, omega, 1.0, 0.0, seeds)
    single = fast_marching(M.float(), omega.float(), 1.0, 0.0, seeds)
    assert single.distance.dtype == single.flow.dtype == torch.float32
    assert torch.allclose(single.distance.double(), double.distance, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (1, 1, 1), (1, 5, 1), (2, 3, 2)])
@pytest.mark.parametrize("order", [1, 2])
def test_tiny_grids(shape, order):
    M, omega = pixels(shape, 30, 0.6)
    u = fast_marching(M, omega, 1.0, 0.0, [at([0.0] * len(shape))], order=order).distance
    assert u.isfinite().all()
    assert float(u.reshape(-1)[0]) == 0


# --- Derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("factorise", [False, True])
@pytest.mark.parametrize("randers", [False, True])
def test_gradients_are_those_of_finite_differences(d, order, factorise, randers):
    shape = (7, 8) if d == 2 else (4, 5, 4)
    M, omega = pixels(shape, 3.0, 0.5, seed=1)
    h = [0.7, 1.2, 0.9][:d]
    where = torch.tensor([[2.313, 1.624, 1.171], [4.227, 5.139, 2.921]]).double()[:, :d]
    where = where * torch.tensor(h)
    value = torch.tensor([0.0, 0.1]).double()
    weight = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).double()

    def loss(M, omega, where, value):
        M = (M + M.mT) / 2
        form = omega if randers else None
        front = fast_marching(
            M, form, h, 0.3, [Seeds(where + 0.3, value)], order=order, factorise=factorise
        )
        return (front.distance * weight).sum()

    given = [M, omega, where, value] if randers else [M, where, value]

    def of(*tensors):
        return loss(*tensors) if randers else loss(tensors[0], omega, *tensors[1:])

    tensors = [x.clone().requires_grad_() for x in given]
    gradients = torch.autograd.grad(of(*tensors), tensors)
    rng = torch.Generator().manual_seed(1)
    for k, gradient in enumerate(gradients):
        for _ in range(4):
            direction = torch.randn(gradient.shape, generator=rng, dtype=torch.float64)
            step = 1e-6
            ahead, behind = list(given), list(given)
            ahead[k], behind[k] = given[k] + step * direction, given[k] - step * direction
            slope = float(of(*ahead) - of(*behind)) / (2 * step)
            assert abs(slope - float((gradient * direction).sum())) < 1e-6 * (
                1 + float(gradient.norm() * direction.norm())
            )


def test_gradient_of_a_constant_metric_s_distance_is_the_closed_form():
    """d/dM of F(v) is v v' / 2 |v|, summed over the field, which is shared by all nodes."""
    n = 15
    M = torch.tensor([[2.0, 0.4], [0.4, 1.0]], dtype=torch.float64, requires_grad=True)
    omega = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    where = torch.tensor([[4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    front = fast_marching(
        M.expand(1, n, n, 2, 2), omega.expand(1, n, n, 2), 1.0, 0.0, [Seeds(where, value)]
    )
    node = (12, 9)
    gradients = torch.autograd.grad(front.distance[0][node], (M, omega, where, value))
    v = torch.tensor(node).double() - where.detach()[0]
    norm = (v @ M.detach() @ v).sqrt()
    exact = (
        v[:, None] * v / (2 * norm), v, -(M.detach() @ v / norm + omega.detach())[None],
        torch.ones(1).double(),
    )  # fmt: skip
    for found, truth_ in zip(gradients, exact, strict=True):
        assert torch.allclose(found, truth_, atol=1e-10)


def test_gradient_is_nought_where_no_front_came():
    M, omega = pixels((8, 8), 4, 0.5)
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[4] = False
    M.requires_grad_()
    u = fast_marching(M, omega, 1.0, 0.0, [at((1.0, 2.0))], mask=mask).distance
    u.where(u.isfinite(), 0.0).sum().backward()
    assert M.grad.isfinite().all()
    assert (M.grad[0, 4:] == 0).all()
    assert (M.grad[0, :4] != 0).any()


def test_gradient_descent_finds_a_source():
    """The distances' derivatives in a source's position lead to where it was."""
    M, omega = (x[:1] for x in grid(random_smooth(2, 4.0, 0.4, seed=3), 24)[:2])
    target = fast_marching(M, omega, 1.0, 0.0, [at((14.4, 9.7))]).distance
    where = torch.tensor([[10.2, 12.9]], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([where], line_search_fn="strong_wolfe", max_iter=40)

    def closure():
        optimiser.zero_grad()
        seeds = [Seeds(where, torch.zeros(1).double())]
        loss = ((fast_marching(M, omega, 1.0, 0.0, seeds).distance - target) ** 2).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.allclose(where.detach(), torch.tensor([[14.4, 9.7]]).double(), atol=1e-3)


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.unchecked
def test_wrong_arguments_are_refused():
    M, omega = pixels((4, 4))
    with pytest.raises(ValueError, match="order: expected 1 or 2, got 3"):
        fast_marching(M, omega, 1.0, 0.0, [at((1.0, 1.0))], order=3)
    with pytest.raises(ValueError, match=r"got \(1, 4, 1, 1\)"):
        fast_marching(torch.ones(1, 4, 1, 1).double(), None, 1.0, 0.0, [at((1.0,))])
    nowhere = torch.zeros(4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="inside obstacles"):
        fast_marching(M, omega, 1.0, 0.0, [at((1.0, 1.0))], mask=nowhere)


@pytest.mark.parametrize("d", [2, 3])
def test_no_number_is_no_hang(d):
    M, omega = pixels((6,) * d)
    M[0, 3] = math.nan
    u = fast_marching(M, omega, 1.0, 0.0, [at([1.0] * d)]).distance
    assert u[0, 0].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("condition", [9.0, 300.0])
def test_one_forms_that_turn_strongly_in_space_do_not_take_for_ever(condition):
    """In the order of values alone, nodes of these fields are opened again a million times."""
    field = random_smooth(3, condition=condition, strength=0.9).grid(9)
    M, omega = (torch.as_tensor(u)[None] for u in (field.M, field.omega))
    source = at(field.nodes()[4, 4, 4])
    found = fast_marching(
        M, omega, field.spacing, field.origin, [source], order=1, factorise=False
    ).distance[0]
    # In nodes, as the slow loop has it.
    h = field.spacing[0]
    in_nodes = Seeds((source.position - torch.tensor(field.origin)) / h, source.value)
    M, omega = h**2 * M[0], h * omega[0]
    start = seed_nodes(in_nodes.position, in_nodes.value, M, omega, np.zeros((9, 9, 9), bool))
    slow = slow_space(M.numpy(), omega.numpy(), start, (9, 9, 9))
    assert np.abs(found.numpy() - slow).max() < 1e-9
