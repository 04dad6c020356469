"""Minimal paths against closed-form geodesics, and against the walls that they go round."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fields import constant, half_plane, known_fields, pull_back, pull_back_3d

from finslerconv.geodesics import GridMetric, distance, minimal_path, path_length
from finslerconv.metrics import Randers


def plane(*shape):
    return GridMetric(np.broadcast_to(np.eye(len(shape)), (*shape, len(shape), len(shape))))


@pytest.mark.parametrize("field", [*known_fields(), pull_back_3d()], ids=str)
def test_paths_are_geodesics_of_the_closed_form(field):
    grid = field.grid(65 if field.dim == 2 else 25)
    source, to = (
        field.point(*(0.43, 0.41, 0.5)[: field.dim]),
        field.point(*(0.7, 0.65, 0.6)[: field.dim]),
    )
    path = minimal_path(distance(grid, source, full=True), to)
    exact = field.distance(source, to)
    h = max(grid.spacing)
    # The excess is of second order in what a point of the path is off.
    excess = field.distance(source.expand_as(path), path) + field.distance(path, to.expand_as(path))
    step = field.at(to).norm(torch.full_like(to, h))
    assert (excess - exact).max() < 0.2 * step
    beyond = field.distance(source.expand_as(path), path) > 0.3 * exact
    assert (excess - exact)[beyond].max() < 0.02 * step
    torch.testing.assert_close(path_length(field, path), exact, rtol=5e-3, atol=0)
    torch.testing.assert_close(path[0], source, rtol=0, atol=0.02 * h)
    assert torch.equal(path[-1], to)


def test_the_length_of_a_path_is_the_distance():
    field = pull_back()
    for n in (33, 65):
        grid = field.grid(n)
        distances = distance(grid, field.point(0.5, 0.5), full=True)
        nodes = grid.nodes()[4::8, 4::8].reshape(-1, 2)
        paths = minimal_path(distances, nodes)
        lengths = torch.stack([path_length(grid, path) for path in paths])
        values = distances.distance[4::8, 4::8].reshape(-1)
        assert (lengths - values).abs().max() < 6 / n**2


def test_to_the_source_the_way_is_another():
    field = half_plane().grid(33)
    omega = 0.4 / field.nodes()[..., :1] * torch.tensor([0.6, 0.8])
    wind = GridMetric(field.M, omega, field.spacing, field.origin)
    a, b = half_plane().point(0.2, 0.3), half_plane().point(0.8, 0.7)
    there = minimal_path(distance(wind, b, full=True, reverse=True), a)
    assert torch.equal(there[0], a)
    torch.testing.assert_close(there[-1], b, rtol=0, atol=1e-3)
    same = minimal_path(distance(wind, a, full=True), b)
    torch.testing.assert_close(path_length(wind, there), path_length(wind, same), rtol=1e-3, atol=0)


def test_a_constant_metric_has_straight_paths():
    grid = constant([[4.0, 1.0], [1.0, 2.0]], (0.5, -0.3)).grid(17)
    to, source = grid.nodes()[14, 11], torch.tensor([0.2, 0.3], dtype=torch.float64)
    path = minimal_path(distance(grid, source, full=True), to)
    along = (to - source) / torch.linalg.norm(to - source)
    off = (path - source) @ torch.tensor([[-along[1]], [along[0]]]).double()
    assert off.abs().max() < 0.2 / 16


@pytest.mark.parametrize("gap", [1, 3])
def test_walls_are_not_crossed(gap):
    free = np.ones((21, 21), bool)
    free[10] = False
    free[10, 15 : 15 + gap] = True
    path = minimal_path(distance(plane(21, 21), (2, 2), mask=free, full=True), (18, 3.5))
    fine = np.concatenate(
        [path[:-1] + t * (path[1:] - path[:-1]) for t in np.linspace(0, 1, 9)[:, None, None]]
    )
    assert free[tuple(np.rint(fine).astype(int).T)].all()
    corner = np.hypot(8, 13) + np.hypot(8, 11.5)
    assert abs(path_length(plane(21, 21), path) - corner) < 1.5
    np.testing.assert_allclose(path[[0, -1]], [[2, 2], [18, 3.5]])


def test_a_labyrinth_is_left():
    free = np.ones((31, 31), bool)
    for n, row in enumerate(range(3, 28, 4)):
        free[row] = False
        free[row, 1 if n % 2 else -2] = True
    path = minimal_path(distance(plane(31, 31), (0, 0), mask=free, full=True), (30, 15))
    assert free[tuple(np.rint(path).astype(int).T)].all()
    np.testing.assert_allclose(path[0], (0, 0))
    assert path_length(plane(31, 31), path) > 7 * 27


@pytest.mark.slow
@given(st.integers(0, 10**6))
@settings(max_examples=6)
def test_paths_end_at_a_source_in_any_field(seed):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-1.5, 1.5, (12, 14, 1, 1))
    field = GridMetric(scale * np.eye(2))
    free = rng.uniform(size=(12, 14)) > 0.2
    sources = np.zeros((12, 14), bool)
    sources.reshape(-1)[rng.choice(np.flatnonzero(free), 2)] = True
    distances = distance(field, sources, mask=free, full=True)
    ends = np.argwhere(np.isfinite(distances.distance)).astype(float)
    for path, end in zip(minimal_path(distances, ends), ends, strict=True):
        assert np.isfinite(path).all()
        np.testing.assert_array_equal(path[-1], end)
        assert np.linalg.norm(np.argwhere(sources) - path[0], axis=-1).min() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_paths_end_at_the_source_of_a_rough_and_very_anisotropic_field(seed):
    """Its fronts jump over neighbours: a node may be lower than all of those and no source."""
    rng = np.random.default_rng(seed)
    angle, stretch = rng.uniform(0, np.pi, (20, 24)), 30.0 ** rng.uniform(0, 1, (20, 24))
    u = np.stack((np.cos(angle), np.sin(angle)), axis=-1)
    along, across = u[..., :, None] * u[..., None, :], np.eye(2) - u[..., :, None] * u[..., None, :]
    M = along / stretch[..., None, None] + across * stretch[..., None, None]
    field = GridMetric(M, 0.5 * u / np.sqrt(stretch)[..., None])
    distances = distance(field, (3.3, 4.6), full=True)
    inner = distances.distance[1:-1, 1:-1]
    around = [
        distances.distance[1 + i : 19 + i, 1 + j : 23 + j]
        for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j
    ]  # fmt: skip
    assert (inner < np.min(around, axis=0)).sum() > 1  # more lows than the source's
    ends = np.argwhere(distances.distance > 0).astype(float)
    for path, end in zip(minimal_path(distances, ends), ends, strict=True):
        np.testing.assert_array_equal(path[-1], end)
        np.testing.assert_allclose(path[0], (3.3, 4.6), atol=1e-12)


def test_the_nearest_of_several_sources_is_reached():
    distances = distance(plane(9, 21), [[4, 2], [4, 18]], full=True)
    for to, source in (((1, 5), (4, 2)), ((7, 12), (4, 18)), ((4, 18), (4, 18))):
        np.testing.assert_allclose(minimal_path(distances, to)[0], source, atol=1e-6)


def test_several_problems_and_several_ends():
    both = distance(plane(9, 9), [[[2, 2]], [[6, 6]]], full=True)
    paths = minimal_path(both, [(2, 7), (2, 7)])
    assert [p[0].round(6).tolist() for p in paths] == [[2, 2], [6, 6]]
    one = distance(plane(9, 9), (2, 2), full=True)
    assert len(minimal_path(one, [(2, 7), (4, 4), (0, 0)])) == 3
    assert minimal_path(one, (2, 2)).shape[1] == 2


def test_lengths_have_gradients():
    field = pull_back()
    curve = torch.stack([field.point(0.3 + 0.1 * i, 0.4 + 0.02 * i * i) for i in range(5)])
    assert torch.autograd.gradcheck(lambda c: path_length(field, c), curve.requires_grad_())
    grid = pull_back().grid(9)
    M, omega = (u.clone().requires_grad_() for u in (grid.M, grid.omega))

    def length(M, omega):
        symmetric = GridMetric((M + M.mT) / 2, omega, grid.spacing, grid.origin, validate=False)
        return path_length(symmetric, curve.detach())

    assert torch.autograd.gradcheck(length, (M, omega), fast_mode=True)


def test_lengths_of_curves_in_a_batch_of_fields():
    field = GridMetric(np.stack([np.broadcast_to(s * np.eye(2), (5, 5, 2, 2)) for s in (1.0, 4.0)]))
    curve = np.zeros((3, 2, 7, 2))
    curve[..., 0] = np.arange(3)[:, None, None]
    np.testing.assert_allclose(path_length(field, curve), [[2.0] * 7, [4.0] * 7])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("to", "options", "error", "message"),
    [
        ((9, 1), {}, ValueError, r"to: expected positions inside the grid, .*got \(9, 1\)"),
        ((np.nan, 1), {}, ValueError, "inside the grid"),
        ((7, 1), {}, ValueError, "no front has reached"),
        ((1, 1, 1), {}, ValueError, r"to: expected shape \(2,\)"),
        ("there", {}, TypeError, "to: expected positions"),
        ((1, 1), {"step": 2.0}, ValueError, "step: expected"),
    ],
)
def test_what_is_wrong_is_named(to, options, error, message):
    free = np.ones((9, 9), bool)
    free[5] = False
    distances = distance(plane(9, 9), (1, 1), mask=free, full=True)
    with pytest.raises(error, match=message):
        minimal_path(distances, to, **options)


@pytest.mark.unchecked
def test_what_is_no_map_and_no_curve_is_named():
    with pytest.raises(TypeError, match="distances: expected a DistanceMap, got ndarray"):
        minimal_path(np.zeros((4, 4)), (1, 1))
    for curve in (np.zeros(2), np.zeros((1, 2)), np.zeros((4, 3))):
        with pytest.raises(ValueError, match="curve: expected at least two points"):
            path_length(plane(4, 4), curve)
    bad = np.array([[0.0, 1.0], [np.nan, 2.0]])
    with pytest.raises(ValueError, match=r"curve: expected finite numbers.*index \(1,\)"):
        path_length(plane(4, 4), bad)
    many = GridMetric(np.broadcast_to(np.eye(2), (3, 4, 4, 2, 2)))
    for curve in (np.zeros((5, 2)), np.zeros((5, 2, 2))):
        with pytest.raises(ValueError, match=r"curve: expected shape \(n, 3, ..., 2\) for a batch"):
            path_length(many, curve)
    assert path_length(many, np.zeros((5, 3, 2))).shape == (3,)


def crosses(free, path, wide=0.5 + 2.0**-11):
    """Return whether a path in index coordinates meets a wall, grown a little so that those that
    touch at a corner overlap: each side against each wall's square (or cube), by clipping."""
    walls = np.argwhere(~free)
    for a, b in itertools.pairwise(path):
        first, last = np.zeros(len(walls)), np.ones(len(walls))
        for x, v, c in zip(a, b - a, walls.T, strict=True):
            low, high = c - wide - x, c + wide - x
            if v == 0:
                last = np.where((low < 0) & (high > 0), last, -1.0)
            else:
                first = np.maximum(first, np.minimum(low / v, high / v))
                last = np.minimum(last, np.maximum(low / v, high / v))
        if (first < last).any():
            return True
    return False


CASES = {
    "seed": st.integers(0, 2**32 - 1),
    "d": st.sampled_from((2, 2, 3)),
    "condition": st.floats(1, 1000),
    "wind": st.floats(0, 0.95),
    "reverse": st.booleans(),
}


def constant_field(rng, d, condition, wind, shape):
    """A constant field of any axes, spacing and origin; and its metric."""
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    stretch = np.array([1.0, condition, condition ** rng.uniform()])[:d]
    along = rng.standard_normal(d)
    omega = Q @ (np.sqrt(stretch) * along) * wind / np.linalg.norm(along)
    metric = Randers(Q @ np.diag(stretch) @ Q.T, omega)
    spacing, origin = np.exp(rng.uniform(-1.5, 1.5, d)).tolist(), rng.uniform(-5, 5, d).tolist()
    return GridMetric.from_metric(metric, shape, spacing=spacing, origin=origin), metric


@pytest.mark.slow
@given(**CASES, method=st.sampled_from(("fast_marching", "fast_iterative", "graph")))
@settings(max_examples=12)
def test_the_shortest_path_of_a_constant_field_is_straight(
    seed, d, condition, wind, reverse, method
):
    """However narrow its valleys are, and however wrong the distances of a coarse method."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(2, 24 if d == 2 else 9, d).tolist()
    field, metric = constant_field(rng, d, condition, wind, shape)
    corner = np.asarray(field.spacing) * (np.asarray(shape) - 1)
    source, to = field.origin + rng.uniform(0, 1, (2, d)) * corner
    path = minimal_path(distance(field, source, method, reverse=reverse, full=True), to)
    exact = metric.norm(source - to if reverse else to - source)
    np.testing.assert_allclose(path_length(field, path), exact, rtol=1e-9)


def test_a_narrow_valley_across_the_grid():
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    M = turn @ np.diag([100.0, 1.0]) @ turn.T
    field = GridMetric(np.broadcast_to(M, (21, 21, 2, 2)))
    distances = distance(field, (20, 0), full=True)
    lengths = [path_length(field, path) for path in minimal_path(distances, [(12, 17), (3, 4)])]
    np.testing.assert_allclose(lengths, [distances.distance[12, 17], distances.distance[3, 4]])


@pytest.mark.parametrize("wind", [0.0, 0.6])
def test_lengths_in_narrow_and_winding_valleys_converge(wind):
    """The plane by a map in which geodesics are straight: valleys along sines, 20 to 1."""

    def image(x):
        return torch.stack((20 * (x[..., 0] - 0.1 * torch.sin(6 * x[..., 1])), x[..., 1]), -1)

    def at(x):
        slope = -12 * torch.cos(6 * x[..., 1])
        zero = torch.zeros_like(slope)
        J = torch.stack(
            (torch.stack((20 + zero, slope), -1), torch.stack((zero, 1 + zero), -1)), -2
        )
        form = torch.tensor([0.0, wind], dtype=x.dtype).expand_as(x)
        return J.mT @ J, (J.mT @ form[..., None])[..., 0]

    ends = [[0.5, 0.9], [0.4, 0.6], [0.7, 0.75], [0.25, 0.1]]
    source, to = torch.tensor([0.45, 0.1]).double(), torch.tensor(ends).double()
    run = image(to) - image(source)
    exact = torch.linalg.norm(run, dim=-1) + wind * run[:, 1]
    errors = []
    for n in (33, 65, 129):
        field = GridMetric.from_function(at, (n, n), spacing=1 / (n - 1))
        paths = minimal_path(distance(field, source, full=True), to)
        lengths = torch.stack([path_length(field, path) for path in paths])
        errors.append(float((lengths / exact - 1).abs().max()))
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


@pytest.mark.slow
@given(**CASES, method=st.sampled_from(("fast_marching", "graph")), share=st.floats(0.05, 0.45))
@settings(max_examples=10)
def test_no_path_crosses_a_wall(seed, d, condition, wind, reverse, method, share):
    """In mazes: not through a wall, not between two that touch, and no longer than need be."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(4, 13 if d == 2 else 7, d).tolist()
    field, _ = constant_field(rng, d, condition, wind, shape)
    free = rng.random(shape) > share
    free.reshape(-1)[0] = True
    origin, spacing = np.asarray(field.origin), np.asarray(field.spacing)
    nodes = np.argwhere(free)
    inside = np.clip(nodes + rng.uniform(-0.45, 0.45, nodes.shape), 0, np.array(shape) - 1.0)
    source = inside[rng.integers(len(nodes))]
    options = {"mask": free, "reverse": reverse}
    distances = distance(field, origin + spacing * source, method, full=True, **options)
    graph = distance(field, origin + spacing * source, "graph", ring=3 if d == 2 else 1, **options)
    reached = np.isfinite(distances.distance[tuple(nodes.T)])
    ends = rng.permutation(nodes[reached])[:4]
    paths = minimal_path(distances, origin + spacing * ends)
    for end, path in zip(ends, paths, strict=True):
        steps = (path[::-1] if reverse else path) - origin
        assert not crosses(free, steps / spacing)
        np.testing.assert_allclose(steps[0] / spacing, source, atol=1e-9)
        np.testing.assert_allclose(steps[-1] / spacing, end, atol=1e-9)
        assert path_length(field, path) <= 1.05 * graph[tuple(end)] + 1e-9


@pytest.mark.parametrize("method", ["fast_marching", "fast_iterative", "graph"])
@pytest.mark.parametrize(
    ("source", "to", "corners"),
    [
        ((29, 11), (31, 9), [(9.5, 10.5), (9.5, 9.5)]),
        ((35, 20), (29, 20), [(30.5, 9.5), (9.5, 9.5), (9.5, 10.5)]),
    ],
)
def test_around_a_bay_of_walls(method, source, to, corners):
    """The shortest path bends at the walls' corners, and is straight between them."""
    free = np.ones((41, 41), bool)
    free[10:31, 10] = free[10:31, 30] = free[30, 10:31] = False
    metric = Randers(np.eye(2), np.array([0.5, 0.4]))
    field = GridMetric.from_metric(metric, (41, 41))
    path = minimal_path(distance(field, source, method, mask=free, full=True), to)
    exact = metric.norm(np.diff([source, *corners, to], axis=0)).sum()
    assert not crosses(free, path)
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() <= 0.25 + 1e-9
    np.testing.assert_allclose(path_length(field, path), exact, rtol=1e-3)


def test_paths_within_a_radius_and_from_late_sources():
    """Nodes beyond the radius are no walls; and a source may start late."""
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    M = turn @ np.diag([400.0, 1.0]) @ turn.T
    field = GridMetric(np.broadcast_to(M, (31, 31, 2, 2)))
    distances = distance(field, (15, 15), radius=8.0, full=True)
    for end in np.argwhere(np.isfinite(distances.distance)):
        path = minimal_path(distances, end)
        np.testing.assert_allclose(
            path_length(field, path), distances.distance[tuple(end)], atol=1e-9
        )
    late = distance(plane(5, 21), [[2, 2], [2, 18]], values=np.array([0.0, 10.0]), full=True)
    np.testing.assert_array_equal(late.values[0], [0.0, 10.0])
    np.testing.assert_allclose(minimal_path(late, (2, 12))[0], (2, 2))
    np.testing.assert_allclose(minimal_path(late, (2, 16))[0], (2, 18))


def test_a_map_whose_walls_have_changed_has_no_path():
    free = np.ones((5, 5), bool)
    distances = distance(plane(5, 5), (0, 0), full=True)
    free[2] = False
    with pytest.raises(ValueError, match="to: no path leads from a source"):
        minimal_path(dataclasses.replace(distances, mask=free), (4, 4))
