"""Fast marching for norms that are no Randers metrics: exact cases, orders, derivatives, paths."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finslerconv.geodesics import (
    Curve,
    DistanceMethod,
    EikonalProblem,
    GridMetric,
    Seeds,
    distance,
    minimal_path,
    path_length,
)
from finslerconv.geodesics.distances import FastMarching
from finslerconv.geodesics.distances._method import FinslerProblem
from finslerconv.geodesics.distances._norms import rows_of
from finslerconv.geodesics.distances._seeding import seed_norms
from finslerconv.geodesics.distances._stencils import acute_stencils, norm_stencils
from finslerconv.metrics import (
    AsymmetricQuadratic,
    CallableMetric,
    Kropina,
    Matsumoto,
    Maximum,
    PNorm,
    Randers,
    Riemannian,
    Sum,
    Tabulated,
)

ONE = torch.ones(2, dtype=torch.float64)


def tilted(condition=9.0, degrees=30.0):
    """Return a matrix, and its Cholesky factor, which makes one-forms of given M-norm."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    M = np.array([[c, -s], [s, c]]) @ np.diag([1.0, condition]) @ np.array([[c, s], [-s, c]])
    return M, np.linalg.cholesky(M)


def norms():
    """Return constant norms of every family, by name, in NumPy."""
    M, L = tilted()
    asymmetric = AsymmetricQuadratic(M, L @ [1.0, 2.0])
    return {
        "asymmetric": asymmetric,
        "half": AsymmetricQuadratic(M, L @ [10.0, -20.0]),
        "matsumoto": Matsumoto(M, L @ [0.2, -0.4]),
        "tabulated": Tabulated.of(asymmetric, 45),
    }


def problem_of(metric, source, shape, walls=None):
    """Return one problem in nodes, whatever the metric."""
    family, rows = rows_of(metric, ONE)
    seeds = [Seeds(torch.tensor([source]).double(), torch.zeros(1, dtype=torch.float64))]
    walls = torch.zeros(1, *shape, dtype=torch.bool) if walls is None else walls[None]
    return FinslerProblem(family, rows.expand(*shape, -1)[None], seeds, walls)


def rough(kind, shape, bound, seed=0):
    """Return a metric that jumps from node to node, with one-forms of M-norm up to ``bound``."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((*shape, 2, 2)))[0]
    M = (Q * 10 ** -rng.random((*shape, 1, 2))) @ Q.swapaxes(-1, -2)
    omega = rng.standard_normal((*shape, 2))
    size = np.sqrt((omega * np.linalg.solve(M, omega[..., None])[..., 0]).sum(-1, keepdims=True))
    return kind((M + M.swapaxes(-1, -2)) / 2, omega / size * bound * rng.random((*shape, 1)))


# --- The norm of a constant field, and of one that is pulled back ---------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", norms())
@pytest.mark.parametrize("source", [(12.0, 9.0), (11.25, 6.5)])
@pytest.mark.parametrize("order", [1, 2])
def test_constant_norms_are_exact(name, source, order):
    metric = norms()[name]
    field = GridMetric.from_metric(metric, (25, 19), spacing=(0.5, 0.75), origin=(1.0, -2.0))
    here = np.array([1.0, -2.0]) + np.array([0.5, 0.75]) * source
    v = field.nodes() - here
    there = distance(field, here, order=order, full=True)
    np.testing.assert_allclose(there.distance, metric.norm(v), rtol=1e-12, atol=1e-12)
    back = distance(field, here, order=order, reverse=True)
    np.testing.assert_allclose(back, metric.norm(-v), rtol=1e-12, atol=1e-12)
    length = metric.norm(v)[..., None]
    away = np.where(length > 0, v / np.where(length > 0, length, 1.0), 0.0)
    np.testing.assert_allclose(there.flow, away, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_a_norm_with_corners_is_exact(order):
    """The taxicab's: its table has the corners among its directions. Order 2 would be wrong."""
    taxicab = Tabulated.of(CallableMetric(lambda v: np.abs(v).sum(-1)), 32)
    field = GridMetric.from_metric(taxicab, (15, 13), spacing=(0.5, 0.75))
    lengths = distance(field, (2.0, 3.0), order=order)
    exact = np.abs(field.nodes() - [2.0, 3.0]).sum(-1)
    np.testing.assert_allclose(lengths, exact, rtol=1e-12, atol=1e-12)


def phi(x):
    stretch = torch.tensor([0.9, 1.3], dtype=x.dtype)
    shear = torch.tensor([[1.0, 0.4], [-0.2, 0.7]], dtype=x.dtype)
    return (torch.sinh(stretch * x) / stretch) @ shear.T


@cache
def pulled_back(kind, n):
    """Return the field of ``v -> norm(phi'(x) v)`` on n x n nodes, and the nodes' distances."""
    M, L = (torch.from_numpy(x) for x in tilted(3.0))
    norm = {
        "asymmetric": AsymmetricQuadratic(M, L @ torch.tensor([0.5, 1.0]).double()),
        "matsumoto": Matsumoto(M, L @ torch.tensor([0.2, 0.3]).double()),
        "function": CallableMetric(quartic, like=M),
    }[kind]
    step = 2 / (n - 1)

    def metric(x):
        J = torch.vmap(torch.func.jacrev(phi))(x.reshape(-1, 2)).reshape(*x.shape, 2)
        if isinstance(norm, CallableMetric):
            return CallableMetric(lambda v: norm.norm((J @ v[..., None])[..., 0]), like=x)
        return type(norm)(J.mT @ norm.M @ J, J.mT @ norm.omega)

    field = GridMetric.from_function(metric, (n, n), spacing=step, origin=-1.0)
    x = field.nodes()
    exact = norm.norm(phi(x) - phi(torch.zeros(2, dtype=torch.float64)))
    rim = min(float(e.min()) for e in (exact[0], exact[-1], exact[:, 0], exact[:, -1]))
    return field, exact, exact < rim


def quartic(v):
    return ((v**2).sum(-1) ** 2 + 2 * v[..., 0] ** 4).sqrt().sqrt() + 0.3 * v[..., 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["asymmetric", "matsumoto", "function"])
@pytest.mark.parametrize(("order", "least"), [(1, 0.85), (2, 1.75)])
def test_a_pulled_back_norm_converges_at_the_order_of_the_scheme(kind, order, least):
    errors = []
    for n in (17, 65) if kind == "function" else (33, 129):
        field, exact, near = pulled_back(kind, n)
        error = distance(field, (0.0, 0.0), order=order) - exact
        errors.append(float(error[near].abs().mean()))
    assert np.log2(errors[0] / errors[1]) / 2 > least


# --- The Randers solver ---------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "factorise"), [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("walled", [False, True])
def test_randers_metrics_by_the_general_solver_are_those_of_their_own(order, factorise, walled):
    """To the tolerance of the update: a part 1e-14 of a step, added along the way."""
    shape = (31, 26)
    rng = np.random.default_rng(3)
    i, j = np.indices(shape) / 10
    M = np.eye(2) * (1 + 0.4 * np.sin(i + 2 * j))[..., None, None]
    M[..., 0, 1] = M[..., 1, 0] = 0.5 * np.cos(i)
    M[..., 1, 1] += 2
    omega = 0.4 * np.stack((np.cos(j), np.sin(i)), -1)
    metric = Randers(torch.from_numpy(M), torch.from_numpy(omega))
    walls = torch.from_numpy(rng.random(shape) < (0.15 if walled else 0))
    walls[15, 11] = False
    problem = problem_of(metric, (15.2, 11.1), shape, walls)
    own = EikonalProblem(metric.M[None], metric.omega[None], problem.seeds, problem.walls)
    method = FastMarching(order, factorise)
    general, special = method.solve_finsler(problem), method.solve(own)
    torch.testing.assert_close(general.distance, special.distance, rtol=1e-11, atol=1e-11)
    assert torch.equal(general.label, special.label)
    torch.testing.assert_close(general.flow, special.flow, rtol=0, atol=1e-5)


def test_stencils_of_randers_metrics_are_those_of_their_own():
    metric = rough(Randers, (20, 20), 0.95)
    _, rows = rows_of(metric, ONE)
    norms = problem_of(metric, (0, 0), (20, 20)).family.compiled(rows.reshape(400, -1))
    walls = np.zeros((20, 20), bool)
    general = norm_stencils(norms, walls)
    special = acute_stencils(metric.M.reshape(-1, 4), metric.omega.reshape(-1, 2), walls)
    for one, other in zip(general, special, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=30)
@given(st.floats(0, 180), st.floats(1, 100), st.floats(0, 360), st.floats(0, 20))
def test_stencils_are_acute_for_the_norm(degrees, condition, turn, size):
    M, L = tilted(condition, degrees)
    form = L @ [np.cos(np.radians(turn)), np.sin(np.radians(turn))]
    for metric in (AsymmetricQuadratic(M, size * form), Matsumoto(M, size / 41 * form)):
        family, rows = rows_of(metric, ONE)
        stencil = norm_stencils(family.compiled(rows[None]), np.zeros((1, 1), bool)).offset
        a, b = stencil.astype(float), np.roll(stencil, -1, 0).astype(float)
        assert (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0] == 1).all()
        exact = type(metric)(torch.from_numpy(metric.M), torch.from_numpy(metric.omega))
        for one, other in ((a, b), (b, a)):
            # No difference: the second derivative of the first of these norms jumps.
            v = torch.from_numpy(-one).requires_grad_()
            (p,) = torch.autograd.grad(exact.norm(v).sum(), v)
            slope = (p.numpy() * -other).sum(-1)
            assert (slope >= -1e-7 * metric.norm(-other)).all()


# --- The scheme, slowly and obviously -------------------------------------------------------------


def slow(metric, problem):
    """Return the fixed point of ``u(x) = min over sectors and l``, by going round and round."""
    shape = problem.grid
    walls = problem.walls[0].numpy()
    norms = problem.family.compiled(problem.rows[0].reshape(-1, problem.rows.shape[-1]))
    start, offset, _ = norm_stencils(norms, walls)
    rows = []
    for x in range(walls.size):
        at = np.array(divmod(x, shape[1]))
        if walls[tuple(at)]:
            continue
        e = offset[start[x] : start[x + 1]].astype(int)
        for a, b in zip(e, np.roll(e, -1, 0), strict=True):
            ends = [(at + s) @ (shape[1], 1) if s.any() else walls.size for s in (a, b)]
            rows.append((x, *ends, *a, *b))
    node, left, right, *vectors = np.array(rows).T
    a, b = np.stack(vectors[:2], -1).astype(float), np.stack(vectors[2:], -1).astype(float)
    own = metric[tuple(np.unravel_index(node, shape))]
    first = seed_norms(problem)
    seeds = np.full(walls.size + 1, np.inf)
    np.minimum.at(seeds, first.node.numpy(), first.value.numpy())
    u = seeds.copy()

    def value(l):
        with np.errstate(invalid="ignore"):
            mixed = np.where(l == 1, 0, (1 - l) * u[left]) + np.where(l == 0, 0, l * u[right])
        v = -((1 - l)[:, None] * a + l[:, None] * b)
        length = np.asarray(own.norm(np.where((v == 0).all(-1)[:, None], 1.0, v)))
        return np.where(np.isnan(mixed), np.inf, mixed) + length

    golden = (np.sqrt(5) - 1) / 2
    for _ in range(200):
        low, high = np.zeros(len(node)), np.ones(len(node))
        for _ in range(32):  # a square of the width is below rounding
            p, q = high - golden * (high - low), low + golden * (high - low)
            lower = value(p) < value(q)
            low, high = np.where(lower, low, p), np.where(lower, q, high)
        best = np.minimum(value((low + high) / 2), np.minimum(value(low * 0), value(low * 0 + 1)))
        new = seeds.copy()
        np.minimum.at(new, node, best)
        new[-1] = np.inf
        if np.array_equal(np.isfinite(new), np.isfinite(u)):
            known = np.isfinite(u)
            if np.abs(new[known] - u[known]).max() < 1e-14:
                break
        u = new
    return u[:-1].reshape(shape)


@pytest.mark.parametrize("walled", [False, True])
@pytest.mark.parametrize("kind", ["asymmetric", "matsumoto", "tabulated"])
def test_first_order_is_the_fixed_point_of_its_scheme(kind, walled):
    shape = (9, 10)
    metric = {
        "asymmetric": rough(AsymmetricQuadratic, shape, 4.0),
        "matsumoto": rough(Matsumoto, shape, 0.45),
        "tabulated": Tabulated.of(rough(Matsumoto, shape, 0.45), 32),
    }[kind]
    walls = np.random.default_rng(5).random(shape) < (0.2 if walled else 0)
    walls[4, 3] = False
    problem = problem_of(metric, (4.2, 3.3), shape, torch.from_numpy(walls))
    front = FastMarching(order=1, factorise=False).solve_finsler(problem)
    expected = slow(metric, problem)
    np.testing.assert_allclose(front.distance[0].numpy(), expected, rtol=1e-9, atol=1e-9)


# --- Directions, sources, walls, labels -----------------------------------------------------------


def test_reverse_measures_the_way_back():
    metric = rough(AsymmetricQuadratic, (16, 17), 2.0)
    field = GridMetric(metric, spacing=0.5)
    back = distance(field, (3.0, 4.0), reverse=True, full=True)
    of_reversed = distance(field.reverse(), (3.0, 4.0), full=True)
    np.testing.assert_allclose(back.distance, of_reversed.distance, rtol=1e-13)
    np.testing.assert_allclose(back.flow, -of_reversed.flow, rtol=1e-10, atol=1e-10)


def test_the_nearest_source_counts():
    metric = norms()["matsumoto"]
    field = GridMetric.from_metric(metric, (21, 23))
    sources = np.array([[4.0, 5.0], [15.0, 18.0], [10.0, 3.0]])
    diagram = distance(field, sources, full=True, values=[0.0, 0.5, 1.0])
    each = np.stack([metric.norm(field.nodes() - s) for s in sources]) + np.array(
        [0.0, 0.5, 1.0]
    ).reshape(3, 1, 1)
    clear = np.sort(each, 0)[1] - each.min(0) > 1.0  # not on the borders between the cells
    assert (diagram.label == each.argmin(0))[clear].all()
    np.testing.assert_allclose(diagram.distance[clear], each.min(0)[clear], atol=0.3)


def test_kinds_batches_masks_and_radius():
    metric = rough(Matsumoto, (12, 14), 0.4)
    field = GridMetric(metric)
    plain = distance(field, (3, 4))
    tensors = field.torch()
    assert isinstance(distance(tensors, (3, 4)), torch.Tensor)
    np.testing.assert_array_equal(distance(tensors, (3, 4)).numpy(), plain)
    single = tensors.to(torch.float32)
    lengths = distance(single, (3, 4))
    assert lengths.dtype == torch.float32
    np.testing.assert_allclose(lengths.numpy(), plain, rtol=1e-5)
    np.testing.assert_array_equal(tensors.numpy().metric.M, metric.M)

    several = distance(field, [[[3, 4]], [[7, 7]]])
    np.testing.assert_array_equal(several[0], plain)
    two = GridMetric(Matsumoto(np.stack((metric.M, 4 * metric.M)), metric.omega))
    assert two.batch_shape == (2,)
    both = distance(two, (3, 4))
    np.testing.assert_array_equal(both[0], plain)
    np.testing.assert_array_equal(
        both[1], distance(GridMetric(Matsumoto(4 * metric.M, metric.omega)), (3, 4))
    )
    near = distance(field, (3, 4), radius=3.0)
    assert np.array_equal(np.isfinite(near), plain <= 3.0)
    np.testing.assert_array_equal(near[plain <= 3.0], plain[plain <= 3.0])
    mask = np.ones((12, 14), bool)
    mask[:, 8] = False
    cut = distance(field, (3, 4), mask=mask)
    assert np.isinf(cut[:, 8:]).all()
    assert np.isfinite(cut[:, :8]).all()
    curve = distance(field, Curve(np.array([[0.0, 0.0], [11.0, 0.0]])))
    assert (curve[:, 0] == 0).all()


@pytest.mark.parametrize("combine", [Sum, Maximum])
def test_fields_of_combined_metrics_change_their_kind(combine):
    """The arrays are those of the parts."""
    grid = (5, 4)
    M = np.broadcast_to(np.eye(2), (*grid, 2, 2)) * np.arange(1.0, 6.0)[:, None, None, None]
    part = Matsumoto(M, np.full((*grid, 2), 0.1))
    field = GridMetric(combine(part, Riemannian(2 * np.eye(2))))
    x, v = np.array([1.5, 2.25]), np.array([1.0, -2.0])
    expected = field.at(x).norm(v)
    found = field.torch().at(torch.from_numpy(x)).norm(torch.from_numpy(v))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)
    live = torch.from_numpy(M.copy()).requires_grad_()
    recording = GridMetric(combine(Matsumoto(live, torch.full((*grid, 2), 0.1).double())))
    assert distance(recording, (2, 2)).requires_grad
    assert not distance(recording.detach(), (2, 2)).requires_grad


def test_fields_are_read_between_nodes_by_their_energies():
    metric = rough(AsymmetricQuadratic, (6, 7), 2.0)
    field = GridMetric(metric, spacing=0.5, origin=(1.0, 2.0))
    v = np.array([0.3, -0.8])
    node = field.at(field.nodes())
    np.testing.assert_allclose(node.norm(v), metric.norm(v), rtol=1e-14)
    middle = field.at(np.array([1.25, 2.0])).norm(v)
    np.testing.assert_allclose(middle**2, (metric.norm(v)[:2, 0] ** 2).mean(), rtol=1e-14)
    assert "kind=AsymmetricQuadratic" in repr(field)
    np.testing.assert_array_equal(field.symmetrize().metric.norm(v), metric.symmetrize().norm(v))


# --- Paths ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asymmetric", "matsumoto", "tabulated"])
@pytest.mark.parametrize("reverse", [False, True])
def test_paths_of_constant_norms_are_straight(name, reverse):
    field = GridMetric.from_metric(norms()[name], (21, 24), spacing=0.5)
    a, b = np.array([2.0, 3.0]), np.array([8.3, 9.1])
    path = minimal_path(distance(field, a, full=True, reverse=reverse), b)
    ends = (b, a) if reverse else (a, b)
    np.testing.assert_allclose(path[[0, -1]], ends, atol=1e-12)
    side = ends[1] - ends[0]
    across = (path - ends[0]) @ np.array([-side[1], side[0]]) / np.linalg.norm(side)
    assert np.abs(across).max() < 1e-3
    np.testing.assert_allclose(path_length(field, path), norms()[name].norm(side), rtol=1e-6)


@pytest.mark.slow
def test_a_path_leads_round_walls_as_long_as_the_distance_says():
    field, _, _ = pulled_back("matsumoto", 65)
    mask = torch.ones(65, 65, dtype=torch.bool)
    mask[20:, 32] = False
    end = torch.tensor([0.5, 0.6], dtype=torch.float64)
    there = distance(field, (0.5, -0.5), mask=mask, full=True)
    path = there.path(end)
    node = torch.round((end + 1) * 32).long()
    assert float(path[:, 0].min()) < -1 + 20 / 32
    length = float(path_length(field, path))
    assert length == pytest.approx(float(there.distance[tuple(node)]), rel=0.02)


# --- Gradients ------------------------------------------------------------------------------------


def directional(function, inputs, seed=0, h=1e-6):
    """Return the derivative of a function along a random direction, by differences and autograd."""
    generator = torch.Generator().manual_seed(seed)
    ways = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(function(*leaves), leaves)
    slope = sum(float((g * w).sum()) for g, w in zip(gradients, ways, strict=True))
    ends = [function(*(x + s * h * w for x, w in zip(inputs, ways, strict=True))) for s in (1, -1)]
    return slope, float(ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("kind", [AsymmetricQuadratic, Matsumoto])
@pytest.mark.parametrize(("order", "factorise"), [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_in_the_parameters(kind, order, factorise, reverse):
    shape = (13, 12)
    i, j = (torch.from_numpy(x) for x in np.indices(shape) / 6.0)
    # Not isotropic: right angles would leave the stencil to rounding.
    M = torch.tensor([[1.2, 0.4], [0.4, 2.3]]).double()
    M = M * (1.5 + 0.4 * torch.sin(i + 2 * j))[..., None, None]
    omega = 0.3 * torch.stack((torch.cos(j), torch.sin(i)), -1)
    position, value = torch.tensor([[3.33, 2.41]]).double(), torch.tensor([0.1]).double()
    weight = torch.from_numpy(np.random.default_rng(1).random(shape))

    def total(M, omega, position, value):
        M = (M + M.mT) / 2
        field = GridMetric(kind(M, omega, validate=False), spacing=(0.5, 0.6), validate=False)
        lengths = distance(
            field, position, values=value, reverse=reverse, order=order, factorise=factorise
        )
        return (weight * lengths).sum()

    slope, expected = directional(total, (M, omega, position, value))
    assert slope == pytest.approx(expected, rel=2e-6)


@pytest.mark.slow
def test_gradients_in_the_parameters_of_a_function():
    """Through the table, whose resolution does not change."""
    shape = (12, 13)
    i, j = (torch.from_numpy(x) for x in np.indices(shape) / 6.0)
    speed = 1.5 + 0.4 * torch.sin(i + 2 * j)
    power = torch.tensor(0.5, dtype=torch.float64)

    def total(speed, power):
        def norm(v):
            return speed * ((v**2).sum(-1) ** 2 + power * v[..., 0] ** 4).sqrt().sqrt()

        field = GridMetric(CallableMetric(norm, like=speed), validate=False)
        return distance(field, (4, 4)).sum()

    slope, expected = directional(total, (speed, power))
    assert slope == pytest.approx(expected, rel=2e-6)


def test_the_gradient_of_a_constant_norm_is_that_of_its_length():
    M, L = (torch.from_numpy(x) for x in tilted())
    form = (L @ torch.tensor([0.2, 0.3]).double()).requires_grad_()
    M = M.requires_grad_()
    metric = Matsumoto(M, form)
    field = GridMetric.from_metric(metric, (15, 15))
    v = torch.tensor([6.0, -3.0], dtype=torch.float64)
    got = torch.autograd.grad(distance(field, (7, 7))[13, 4], (M, form))
    expected = torch.autograd.grad(metric.norm(v), (M, form))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.unchecked
def test_methods_for_randers_metrics_say_so():
    field = GridMetric.from_metric(norms()["matsumoto"], (6, 6))
    for method in ("heat", "fast_iterative"):
        with pytest.raises(
            TypeError, match=r"field: expected Riemannian or Randers metrics.*plane"
        ):
            distance(field, (2, 2), method)
    space = GridMetric.from_metric(AsymmetricQuadratic(np.eye(3), np.ones(3)), (5, 5, 5))
    with pytest.raises(TypeError, match=r"'fast_marching' is for in space; method 'graph'"):
        distance(space, (2, 2, 2))
    with pytest.raises(TypeError, match=r"field: expected metrics in space that are Riemannian"):
        distance(GridMetric.from_metric(PNorm(3.0, np.ones(3)), (5, 5, 5)), (2, 2, 2), "graph")
    with pytest.raises(TypeError, match=r"field: expected norms that are finite in all directions"):
        distance(GridMetric.from_metric(Kropina(np.eye(2), np.ones(2)), (6, 6)), (2, 2))

    class Own(DistanceMethod):
        def solve(self, problem):
            raise AssertionError

    with pytest.raises(TypeError, match="which Own is for"):
        distance(field, (2, 2), Own())


@pytest.mark.unchecked
def test_fields_of_any_metric_are_checked():
    metric = norms()["matsumoto"]
    with pytest.raises(ValueError, match=r"M: expected a batch of metrics over a grid of 2 axes"):
        GridMetric(metric)
    with pytest.raises(ValueError, match=r"interpolation: expected 'linear' for metrics"):
        GridMetric.from_metric(metric, (4, 4), interpolation="cubic")
    with pytest.raises(ValueError, match=r"shape: expected a metric whose batch broadcasts"):
        GridMetric.from_metric(rough(Matsumoto, (3, 3), 0.4), (4, 4))
    wrong = AsymmetricQuadratic(-np.eye(2), np.ones(2), validate=False)
    with pytest.raises(ValueError, match="M: "):
        GridMetric.from_metric(wrong, (4, 4))
    unchecked = GridMetric.from_metric(wrong, (4, 4), validate=False)
    with pytest.raises(ValueError, match="M: "):
        distance(unchecked, (2, 2))


@pytest.mark.parametrize("dim", [2, 3])
def test_the_graph_takes_any_norm(dim):
    """Its lengths are those of paths: never too short, and exact along its own steps."""
    metric = AsymmetricQuadratic(np.eye(dim), np.array([1.0, 2.0, 0.5])[:dim])
    field = GridMetric.from_metric(metric, (7,) * dim, spacing=0.5)
    v = field.nodes() - 1.5
    lengths, exact = distance(field, (1.5,) * dim, "graph"), metric.norm(v)
    assert (lengths >= exact - 1e-12).all()
    straight = (np.abs(np.rint(2 * v)).max(-1) <= 1) & (np.abs(v).max(-1) > 0)
    np.testing.assert_allclose(lengths[straight], exact[straight], rtol=1e-12)
