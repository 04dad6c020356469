"""Minimal paths against closed-form geodesics and against the distances that they are read off."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fields import constant, half_plane, known_fields, pull_back, pull_back_3d

from finslerconv.geodesics import GridMetric, distance
from finslerconv.geodesics._paths import minimal_path, path_length


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
        ((9, 1), {}, ValueError, r"to: expected positions inside the grid, got \[9.0, 1.0\]"),
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
