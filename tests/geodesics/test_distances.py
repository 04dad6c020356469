"""distance() as a whole: every method against the truths and against the others."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fields import (
    constant,
    half_plane,
    known_fields,
    known_fields_3d,
    pull_back,
    random_smooth,
    rotation_wind,
    tilted,
    trusted,
    truth,
)

from finslerconv.balls import Ellipse, lattice
from finslerconv.geodesics import Curve, DistanceMap, GridMetric, distance, geodesic_flow
from finslerconv.metrics import Euclidean, Randers

METHODS = ("fast_marching", "fast_iterative", "heat", "graph")
FRONTS = ("fast_marching", "fast_iterative", "graph")
DIFFERENTIABLE = ("fast_marching", "fast_iterative", "heat")
DOUBLE = torch.float64

# Mean errors relative to the largest distance, in the plane (65 x 65 nodes) and in space (13 along
# an axis): of second order, of first order (in space without factorisation), of the heat's time, of
# the angles that the graph lacks.
MEAN_ERROR = {
    2: {"fast_marching": 2.5e-3, "fast_iterative": 1.2e-2, "heat": 3e-2, "graph": 6e-2},
    3: {"fast_marching": 2e-2, "fast_iterative": 2.5e-1, "heat": 6e-2, "graph": 2e-2},
}


# Relative errors of a path of 34 steps that bends round a corner, at which a front is not smooth.
CORNER = {"fast_marching": 0.03, "fast_iterative": 0.05, "heat": 0.08, "graph": 1e-9}


def euclidean(*shape, **options):
    return GridMetric.from_metric(Euclidean(len(shape)), shape, **options)


def mild(n=12, seed=0, d=2):
    """Return a random field on which every method is in its element."""
    return random_smooth(d, condition=4.0, strength=0.4, seed=seed, waves=0.5).grid(n)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("field", [*known_fields(), *known_fields_3d()[1:5:2]], ids=str)
def test_the_truth(field, method):
    grid = field.grid(65 if field.dim == 2 else 13)
    source = field.point(*(0.47, 0.52, 0.49)[: field.dim])
    exact = truth(field, grid, source)
    near = trusted(exact)
    error = (distance(grid, source, method) - exact)[near].abs()
    assert float(error.mean() / exact[near].max()) < MEAN_ERROR[field.dim][method]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_distances_to_the_source(method):
    field = rotation_wind()
    grid, source = field.grid(49), field.point(0.45, 0.55)
    exact = truth(field, grid, source, reverse=True)
    got = distance(grid, source, method, reverse=True)
    near = trusted(exact)
    assert float((got - exact)[near].abs().mean() / exact[near].max()) < MEAN_ERROR[2][method]
    # They are the distances from it in the reversed field, and not those from it.
    torch.testing.assert_close(got, distance(grid.reverse(), source, method), rtol=0.0, atol=0.0)
    assert float((got - distance(grid, source, method)).abs().max()) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_triangle_inequality_and_asymmetry(method):
    """d(a, c) <= d(a, b) + d(b, c), up to the error of the method; d(a, b) is not d(b, a)."""
    grid = random_smooth(condition=4.0, strength=0.5, waves=0.5).grid(25)
    places = torch.tensor([[5, 5], [18, 7], [12, 12], [7, 19], [20, 18]])
    maps = distance(grid, grid.nodes()[tuple(places.T)][:, None], method)
    table = maps[:, places[:, 0], places[:, 1]]
    excess = table[:, None, :] - table[:, :, None] - table[None, :, :]
    # Graph distances obey it exactly.
    assert float(excess.max()) <= (1e-12 if method == "graph" else 5e-3 * float(table.max()))
    # The heat method's distances are 0 at a source up to the smoothing of its tip.
    assert float(table.diagonal().abs().max()) < (0.02 if method == "heat" else 1e-12)
    assert float((table - table.T).abs().max()) > 0.2 * float(table.max())


def transposed(field):
    omega = None if field.omega is None else field.omega.mT.permute(2, 0, 1).flip(-1)
    return GridMetric(
        field.M.transpose(0, 1).flip(-1, -2),
        None if omega is None else field.omega.transpose(0, 1).flip(-1),
        field.spacing[::-1],
        field.origin[::-1],
    )


def flipped(field):
    sign = torch.tensor([-1.0, 1.0], dtype=DOUBLE)
    return GridMetric(
        field.M.flip(0) * sign[:, None] * sign,
        None if field.omega is None else field.omega.flip(0) * sign,
        field.spacing,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=4)
@given(seed=st.integers(0, 1000))
def test_symmetry_of_the_grid(method, seed):
    """Transposed and flipped fields have transposed and flipped distances."""
    field = random_smooth(condition=50.0, strength=0.8, seed=seed).grid((13, 13))
    field = GridMetric(field.M, field.omega, (1.0, 0.7))
    got = distance(field, torch.tensor([4.0, 5.6]), method)
    turned = distance(transposed(field), torch.tensor([5.6, 4.0]), method)
    torch.testing.assert_close(turned, got.T, rtol=1e-9, atol=1e-9)
    mirrored = distance(flipped(field), torch.tensor([8.0, 5.6]), method)
    torch.testing.assert_close(mirrored, got.flip(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("d", "factorise"), [(2, False), (2, True), (3, False)])
def test_the_two_schemes_have_one_fixed_point(d, factorise):
    hard = {"condition": 300.0, "strength": 0.9} if d == 2 else {"condition": 9.0, "strength": 0.5}
    field = random_smooth(d, **hard, seed=2).grid(33 if d == 2 else 7)
    source = field.nodes()[(5,) * d] + 0.003
    first = distance(field, source, order=1, factorise=factorise)
    same = distance(field, source, "fast_iterative", factorise=factorise)
    assert float((first - same).abs().max()) < 1e-6 * float(first.max())


@pytest.mark.slow
@pytest.mark.parametrize("method", FRONTS)
def test_voronoi_labels_and_the_flow(method):
    field = rotation_wind()
    grid = field.grid(33)
    sources = torch.stack([field.point(*x) for x in ((0.2, 0.3), (0.7, 0.2), (0.55, 0.8))])
    full = distance(grid, sources, method, full=True)
    assert isinstance(full, DistanceMap)
    assert torch.equal(full.distance, distance(grid, sources, method))
    exact = torch.stack([truth(field, grid, x) for x in sources])
    two = exact.sort(0).values
    clear = two[1] - two[0] > 0.1  # elsewhere the error of the method may decide
    assert torch.equal(full.label[clear], exact.argmin(0)[clear])
    assert clear.double().mean() > 0.7
    # Unit speed, and in the direction of the fastest increase where one is not at a ridge.
    speed = grid.metric.norm(full.flow)
    moving = full.distance > 0
    torch.testing.assert_close(speed[moving], torch.ones_like(speed)[moving])
    back = distance(grid, sources, method, full=True, reverse=True)
    torch.testing.assert_close(
        grid.metric.norm(back.flow)[back.distance > 0],
        speed.new_ones(int((back.distance > 0).sum())),
    )


def test_flow_of_a_constant_metric():
    field = tilted(9.0, 30.0, 0.6)
    grid = field.grid(21)
    source = grid.nodes()[10, 10]
    for reverse in (False, True):
        full = distance(grid, source, full=True, reverse=reverse)
        v = (grid.nodes() - source) * (-1 if reverse else 1)
        norm = grid.metric.norm(v)
        expected = torch.where(norm[..., None] > 0, v / norm[..., None], torch.zeros_like(v))
        torch.testing.assert_close(full.flow, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_walls(method):
    """A wall with a door: paths bend round its edge; a closed one cannot be passed."""
    grid = euclidean(31, 31)
    mask = np.ones((31, 31), bool)
    mask[:20, 15] = False
    got = distance(grid, (8, 3), method, mask=mask)
    around = 2 * math.hypot(12, 12)
    assert got[8, 27] == pytest.approx(around, rel=CORNER[method])
    assert np.isinf(got[:20, 15]).all()
    mask[:, 15] = False
    got = distance(grid, (8, 3), method, mask=mask)
    assert np.isinf(got[:, 15:]).all()
    assert np.isfinite(got[:, :15]).all()
    if method != "heat":
        full = distance(grid, (8, 3), method, mask=mask, full=True)
        assert (full.label[:, 15:] == -1).all()
        assert (full.flow[:, 15:] == 0).all()
        assert (full.label[:, :15] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_radius(method):
    field = mild(25)
    source = field.nodes()[12, 12]
    whole, some = distance(field, source, method), distance(field, source, method, radius=0.3)
    inside = whole <= 0.3
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(some.isfinite(), inside)
    torch.testing.assert_close(some[inside], whole[inside])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kinds_and_dtypes_stay(method, kind, dtype):
    truth = mild(15)
    field = truth.to(getattr(torch, dtype))
    field = field.numpy() if kind == "numpy" else field
    source = truth.nodes()[4, 6]
    got = distance(field, source, method)
    assert type(got) is type(field.M)
    assert got.dtype == field.M.dtype
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(got, distance(truth, source, method), atol=tolerance)
    if method != "heat":
        full = distance(field, source, method, full=True)
        assert type(full.label) is type(full.flow) is type(field.M)
        assert full.flow.dtype == field.M.dtype


def test_all_the_ways_to_say_where():
    """Numbers, arrays of any kind, masks, curves and lists mean the same sources.

    Asked of the graph, whose distances to several sources are exactly the least of those to each.
    """

    def at(sources):
        return distance(euclidean(9, 10), sources, "graph")

    one, other = at((2, 3)), at((7, 7))
    assert one.shape == (9, 10)
    where = np.zeros((9, 10), bool)
    where[2, 3] = True
    for sources in [
        [2, 3],
        [[2, 3]],
        np.unravel_index(23, (9, 10)),
        [np.float32(2.0), np.array(3)],
        (torch.tensor(2), torch.tensor(3.0)),
        np.array([2, 3]),
        torch.tensor([[2.0, 3.0]]),
        where,
        torch.as_tensor(where),
        Curve(np.array([[2.0, 3.0]])),
    ]:
        assert np.array_equal(at(sources), one), sources
    two = at([[2, 3], [7, 7]])
    assert np.array_equal(two, np.minimum(one, other))
    # Problems: axes before the sources, or a list with one entry for each, of any length.
    for sources, expected in [
        (np.array([[[2, 3]], [[7, 7]]]), (one, other)),
        ([np.array([2, 3]), np.array([7, 7])], (one, other)),
        ([np.array([2, 3]), where, [(2, 3), (7, 7)]], (one, one, two)),
        ([[[2, 3]], [[2, 3], [7, 7]]], (one, two)),
        (np.stack((where, where)), (one, one)),
    ]:
        assert np.array_equal(at(sources), np.stack(expected)), sources


def test_a_curve_is_a_continuous_source():
    field = euclidean(31, 31, spacing=0.1)
    curve = Curve(np.array([[0.55, 0.35], [0.55, 2.65]]))
    got = distance(field, curve, order=1)
    x = field.nodes()
    beside = (x[..., 1] >= 0.35) & (x[..., 1] <= 2.65)
    np.testing.assert_allclose(got[beside], np.abs(x[..., 0] - 0.55)[beside], atol=5e-3)
    closed = Curve(np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 2.0], [2.0, 1.0], [1.0, 1.0]]))
    got = distance(field, closed, order=1)
    assert got[15, 12] == pytest.approx(0.2, abs=5e-3)
    assert got[10:21, 10].max() == pytest.approx(0.0, abs=1e-12)


def test_starting_values():
    """A source that starts late enough has no say; one that starts earlier wins ground."""
    field = mild(21)
    nodes = field.nodes()
    two = torch.stack((nodes[5, 5], nodes[15, 12]))
    each = [distance(field, x) for x in two]
    got = distance(field, two, values=[0.0, 0.05])
    torch.testing.assert_close(got, torch.minimum(each[0], each[1] + 0.05), rtol=0.0, atol=5e-3)
    late = distance(field, two, values=[0.0, 100.0], full=True)
    torch.testing.assert_close(late.distance, each[0], rtol=0.0, atol=5e-3)
    assert bool((late.label == 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_batches_of_fields_and_problems(method):
    fields = [mild(11, seed) for seed in range(3)]
    batch = GridMetric(
        torch.stack([f.M for f in fields]), torch.stack([f.omega for f in fields]), 0.1
    )
    one = [GridMetric(f.M, f.omega, 0.1) for f in fields]
    a, b = torch.tensor([[0.3, 0.4]]), torch.tensor([[0.72, 0.5]])
    shared = distance(batch, a, method)
    assert shared.shape == (3, 11, 11)
    for field, got in zip(one, shared, strict=True):
        torch.testing.assert_close(got, distance(field, a, method))
    table = distance(batch, torch.stack((a, b))[:, None], method)
    assert table.shape == (2, 3, 11, 11)
    torch.testing.assert_close(table[1, 2], distance(one[2], b, method))
    mask = torch.ones((2, 1, 11, 11), dtype=torch.bool)
    mask[1, :, 5:7] = False
    walled = distance(batch, a, method, mask=mask)
    assert walled.shape == (2, 3, 11, 11)
    torch.testing.assert_close(walled[0], shared)
    assert bool(walled[1, :, 7:].isinf().all())


def directional(function, arguments, seed=0, step=1e-6):
    """Return the derivative along a random direction, by autograd and by central differences."""
    generator = torch.Generator().manual_seed(seed)
    arguments = [a.detach().clone().requires_grad_() for a in arguments]
    moves = [torch.randn(a.shape, dtype=DOUBLE, generator=generator) for a in arguments]
    gradients = torch.autograd.grad(function(*arguments), arguments)
    slope = sum(float((g * m).sum()) for g, m in zip(gradients, moves, strict=True))
    with torch.no_grad():
        ahead, behind = (
            function(*(a + s * step * m for a, m in zip(arguments, moves, strict=True)))
            for s in (1, -1)
        )
    return slope, float((ahead - behind) / (2 * step))


@pytest.mark.slow
@pytest.mark.parametrize("method", DIFFERENTIABLE)
@pytest.mark.parametrize("d", [2, 3])
def test_gradients_in_the_metric(method, d):
    field = random_smooth(d, condition=9.0, strength=0.6, seed=1).grid(15 if d == 2 else 5)
    source = field.nodes()[(2,) * d] + 0.013
    weight = torch.rand(field.grid_shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))

    def total(M, omega):
        M = (M + M.mT) / 2
        moved = GridMetric(M, omega, field.spacing, validate=False)
        return (weight * distance(moved, source, method)).sum()

    for seed in range(3):
        slope, expected = directional(total, (field.M, field.omega), seed)
        assert slope == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", DIFFERENTIABLE)
def test_gradients_in_the_sources(method):
    field = random_smooth(condition=4.0, strength=0.5, seed=1).grid(15)
    position = torch.stack((field.nodes()[3, 4], field.nodes()[11, 9])) + 0.017
    values = torch.tensor([0.0, 0.03], dtype=DOUBLE)

    def total(position, values):
        return distance(field, position, method, values=values).sum()

    slope, expected = directional(total, (position, values), step=1e-5)
    assert slope == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", DIFFERENTIABLE)
def test_the_gradients_cannot_be_differentiated_again(method):
    """They are computed by hand: autograd would take parts of them for constant."""
    scale = torch.ones((), dtype=DOUBLE, requires_grad=True)
    reached = distance(
        GridMetric(scale * torch.eye(2, dtype=DOUBLE).expand(9, 9, 2, 2)), (4, 4), method
    )
    for total in (reached.sum(), reached.square().sum()):
        (slope,) = torch.autograd.grad(total, scale, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives of distances are not computed"):
            torch.autograd.grad(slope, scale, retain_graph=True)


def test_nested_lists_of_booleans_are_a_mask():
    field = euclidean(4, 2)
    where = np.zeros((4, 2), bool)
    where[3, 1] = True
    np.testing.assert_array_equal(distance(field, where.tolist()), distance(field, where))


@pytest.mark.parametrize("method", DIFFERENTIABLE)
def test_unreached_nodes_have_no_gradient_and_no_nan(method):
    field = mild(11)
    M = field.M.clone().requires_grad_()
    mask = torch.ones(11, 11, dtype=torch.bool)
    mask[5] = False
    got = distance(
        GridMetric(M, field.omega, field.spacing), field.nodes()[2, 2], method, mask=mask
    )
    got[got.isfinite()].sum().backward()
    assert bool(M.grad.isfinite().all())
    assert bool((M.grad[6:] == 0).all())
    assert bool((M.grad[:5] != 0).any())


def test_half_plane_converges():
    """The second order of the default method, seen through the whole."""
    field = half_plane()
    source = field.point(0.5, 0.5)
    errors = []
    for n in (33, 65, 129):
        grid = field.grid(n)
        exact = truth(field, grid, source)
        errors.append(float((distance(grid, source) - exact)[trusted(exact)].abs().mean()))
    assert errors[0] / errors[2] > 4**2 * 0.6, errors


@pytest.mark.parametrize("method", METHODS)
def test_one_node_wide_grids(method):
    """A grid that is a line, and the smallest ones."""
    line = GridMetric.from_metric(Randers(np.eye(2), np.array([0.0, 0.5])), (1, 6))
    got = distance(line, (0, 2), method)
    np.testing.assert_allclose(got, [[1.0, 0.5, 0.0, 1.5, 3.0, 4.5]], atol=0.05)
    assert distance(euclidean(1, 1), (0, 0), method).item() == 0.0


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((3, 99), r"inside the grid, from \(0, 0\) to \(8, 9\), got \(3, 99\) at index 0"),
        ([[1, 1], [-1, 2]], r"got \(-1, 2\) at index 1"),
        (np.array([[[1, 1]], [[1, 10]]]), r"sources in problem 1: .* got \(1, 10\) at index 0"),
        ([], "expected at least one source, got an empty list"),
        (np.zeros((0, 2)), "expected at least one source, got none"),
        (np.zeros((0, 3, 2)), "expected at least one problem"),
        (np.zeros((9, 10), bool), "expected at least one source, got none"),
        ([np.ones((1, 2)), np.zeros((0, 2))], "got none in problem 1"),
        (np.array([[1.0, np.nan]]), r"expected finite numbers, got nan at index \(0, 1\)"),
        (np.zeros((4, 3)), r"expected positions of 2 coordinates .* got shape \(4, 3\)"),
        (np.zeros((9, 9), bool), r"expected a boolean mask over the grid, shape \(..., 9, 10\)"),
        (Curve(np.zeros((0, 2))), "Curve: points: expected the corners of a polyline"),
        (Curve(np.array([[1.0, np.inf]])), "Curve: points: expected finite numbers"),
    ],
    ids=str,
)
def test_wrong_sources_are_refused(sources, message):
    with pytest.raises(ValueError, match=message):
        distance(euclidean(9, 10), sources)


@pytest.mark.unchecked
def test_sources_inside_obstacles():
    mask = np.ones((9, 10), bool)
    mask[3:6, 3:6] = False
    field = euclidean(9, 10)
    message = r"mask is False at the node nearest to source 0, which is at \(4, 4\)"
    with pytest.raises(ValueError, match=message):
        distance(field, (4, 4), mask=mask)
    with pytest.raises(ValueError, match=r"nearest to source 1 in problem 1, which is at \(3, 3\)"):
        distance(field, [np.array([[0, 0]]), np.array([[1, 1], [3, 3]])], mask=mask)
    # Of what is drawn as a whole, the part outside is enough.
    drawn = np.zeros((9, 10), bool)
    drawn[0, 0] = drawn[5, 5] = True
    np.testing.assert_array_equal(
        distance(field, drawn, mask=mask), distance(field, (0, 0), mask=mask)
    )
    through = Curve(np.array([[2.0, 4.0], [4.0, 4.0]]))
    assert np.isfinite(distance(field, through, mask=mask)[mask]).all()
    drawn[0, 0] = False
    with pytest.raises(ValueError, match="sources outside the obstacles"):
        distance(field, drawn, mask=mask)


@pytest.mark.unchecked
def test_wrong_arguments_are_refused():
    field = euclidean(9, 10)
    for arguments, options, message in [
        ({"method": "dijkstra"}, {}, "method: expected one of 'fast_marching', 'fast_iterative', "),
        ({"method": "chord"}, {}, "chord_distance compares pairs of points"),
        ({"radius": -1.0}, {}, "radius: expected a positive number, got -1.0"),
        ({"radius": math.nan}, {}, "radius: expected a positive number, got nan"),
        ({"radius": "far"}, {}, "radius: expected a positive number, got 'far'"),
        ({"method": "heat", "time": "long"}, {}, "time: expected a positive number, got"),
        ({"method": "graph", "ring": 1.5}, {}, "ring: expected a positive integer, got 1.5"),
        ({"method": "fast_iterative", "tolerance": "a"}, {}, "tolerance: expected a fraction"),
        (
            {"method": "fast_iterative", "max_iterations": 2.5},
            {},
            "max_iterations: expected a positive int",
        ),
        ({"mask": np.ones((9, 9), bool)}, {}, r"mask: expected the shape of the grid \(9, 10\)"),
        ({"method": "heat", "full": True}, {}, "full: expected False, because 'heat'"),
        ({"values": [0.0, 1.0]}, {}, "values: expected one number for each source"),
        ({"values": [math.nan]}, {}, "values: expected finite numbers, got nan"),
        ({"mask": np.ones((2, 9, 10), bool)}, {"sources": np.ones((3, 1, 2))}, "broadcast"),
    ]:
        sources = options.pop("sources", (1, 1))
        with pytest.raises(ValueError, match=message):
            distance(field, sources, **arguments)
    for method, options, message in [
        ("heat", {"order": 2}, r"order: method 'heat' has no such option \(one of 'fast_marching'"),
        ("graph", {"factorise": True}, "factorise: method 'graph' has no such option"),
        ("fast_marching", {"rnig": 2}, "rnig: method 'fast_marching' has no such option; it has"),
        ("fast_marching", {"mask": np.ones((9, 10))}, "mask: expected a boolean array"),
        ("fast_marching", {"sources": "centre"}, "sources: expected an array of positions"),
        ("fast_marching", {"values": "a"}, "values: expected numbers, got 'a'"),
        ("fast_marching", {"reverse": "no"}, "reverse: expected True or False, got 'no'"),
        ("fast_marching", {"full": 1}, "full: expected True or False, got 1"),
        ("fast_marching", {"factorise": "no"}, "factorise: expected True or False, got 'no'"),
        ("fast_iterative", {"factorise": "no"}, "factorise: expected True, False or None"),
        (
            "fast_marching",
            {"sources": torch.ones(2, requires_grad=True)},
            r"field: expected tensors, since .* ask for gradients",
        ),
    ]:
        sources = options.pop("sources", (1, 1))
        with pytest.raises(TypeError, match=message):
            distance(field, sources, method, **options)
    with pytest.raises(TypeError, match="field: expected a GridMetric, got Randers"):
        distance(Randers(np.eye(2), np.zeros(2)), (1, 1))


def test_results_are_shown_in_a_line():
    """By what they are, not by their arrays."""
    field = euclidean(60, 60)
    shown = repr(distance(field, [[(1, 1)], [(2, 2), (3, 3)]], full=True))
    assert shown == "DistanceMap(problems=(2,), grid_shape=(60, 60), sources=1 to 2, reverse=False)"
    assert repr(Curve(np.zeros((50, 2)))) == "Curve(50 points)"
    flow = geodesic_flow(field, np.zeros((50, 2)), np.ones((50, 2)), [0, 1])
    assert repr(flow) == "GeodesicFlow(times=2, batch_shape=(50,))"
    for result in (lattice(11), Ellipse.of(field.metric), field.metric.zermelo(), field):
        assert len(repr(result)) < 120
        assert "array" not in repr(result)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"values": [["a"] * 90] * 90}, "values"),
        ({"radius": np.ones((90, 90))}, "radius"),
        ({"method": np.ones((90, 90))}, "method"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_wrong_argument_is_not_printed_whole(options, name):
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected ") as error:
        distance(euclidean(9, 10), (1, 1), **options)
    assert len(str(error.value)) < 300


@pytest.mark.unchecked
@pytest.mark.parametrize("method", METHODS)
def test_broken_metrics_are_refused_by_every_method(method):
    """Also those that were let through where the field was made."""
    M = np.tile(np.eye(2), (6, 6, 1, 1))
    for index, value in (((2, 3), np.nan), ((4, 1), -np.eye(2)), ((0, 5), np.zeros((2, 2)))):
        bad = M.copy()
        bad[index] = value
        with pytest.raises(
            ValueError, match=rf"M: expected .* at index \({index[0]}, {index[1]}\)"
        ):
            distance(GridMetric(bad, validate=False), (1, 1), method)


@pytest.mark.slow
def test_many_conditions_and_methods_agree():
    """Where no truth is known: second and first order, and heat, draw together as n grows."""
    gaps = []
    for n in (33, 65):
        grid = random_smooth(condition=20.0, strength=0.7, seed=4).grid(n)
        source = torch.tensor([0.5, 0.5])
        best = distance(grid, source)
        others = [distance(grid, source, m) for m in ("fast_iterative", "heat")]
        gaps.append([float((o - best).abs().mean() / best.max()) for o in others])
    assert max(gaps[1]) < 0.06
    assert all(fine < coarse for coarse, fine in zip(*gaps, strict=True))


def test_pull_back_with_a_curve_of_sources():
    """The distance to a set is the least of those to its points."""
    field = pull_back(wobble=0.15)
    grid = field.grid(49)
    corners = torch.stack((field.point(0.4, 0.45), field.point(0.6, 0.5)))
    samples = corners[0] + torch.linspace(0, 1, 200, dtype=DOUBLE)[:, None, None, None] * (
        corners[1] - corners[0]
    )
    exact = field.distance(samples, grid.nodes()).min(0).values
    near = trusted(exact)
    error = (distance(grid, Curve(corners), order=1) - exact)[near].abs()
    assert float(error.mean() / exact[near].max()) < 2e-2


def test_a_constant_metric_is_exact_in_space():
    field = constant(np.diag([1.0, 4.0, 9.0]))
    grid = field.grid(15)
    source = grid.nodes()[7, 7, 7]
    torch.testing.assert_close(distance(grid, source), truth(field, grid, source))
