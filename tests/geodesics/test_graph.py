"""The graph method: its edges, its walls, and the angles that it lacks."""

import itertools
import math

import numpy as np
import pytest
import torch
from metric_fields import constant, known_fields, random_smooth, tilted, trusted, truth

from finslerconv.geodesics import GridMetric, chord_distance, distance
from finslerconv.geodesics.distances._graph import offsets
from finslerconv.metrics import Euclidean


def slow_distances(field, source, mask, ring, rule):
    """Return distances by Bellman and Ford's relaxation over every pair of near nodes."""
    nodes = list(itertools.product(*(range(n) for n in field.grid_shape)))
    pairs = []
    for (i, x), (j, y) in itertools.product(enumerate(nodes), repeat=2):
        e = [b - a for a, b in zip(x, y, strict=True)]
        if max(map(abs, e)) <= ring and math.gcd(*e) == 1 and not blocked(mask, x, y):
            pairs.append((i, j))
    first, second = torch.tensor(pairs).T
    position = field.nodes().reshape(-1, field.dim)
    a, b = position[first], position[second]
    if rule == "midpoint":
        weight = chord_distance(field, a, b, "midpoint")
    else:
        weight = (field.at(a).norm(b - a) + field.at(b).norm(b - a)) / 2
    u = torch.full((len(nodes),), math.inf, dtype=torch.float64)
    u[nodes.index(source)] = 0.0
    while True:
        better = u.scatter_reduce(0, second, u[first] + weight, "amin")
        if torch.equal(better, u):
            return u.reshape(field.grid_shape)
        u = better


def blocked(mask, x, y):
    """Return whether the segment meets a wall, or two that touch at a corner, by points on it.

    In the plane; pixels are squares, and multiples of 1/96 hit the corners of steps up to 4.
    """
    if mask.all():
        return False
    e = np.array(y) - np.array(x)
    p = np.array(x) + np.linspace(0, 1, 97)[:, None] * e + 0.5
    ahead = 1e-9 * np.sign(e)

    def wall(shift):
        return ~mask[tuple(np.floor(p + shift).astype(int).T)]

    aside = ahead * (1, -1)
    return bool((wall(ahead) | wall(-ahead) | (wall(aside) & wall(-aside))).any())


@pytest.mark.parametrize("rule", ["midpoint", "trapezoid"])
@pytest.mark.parametrize(("ring", "shape"), [(1, (6, 5)), (2, (6, 5)), (3, (5, 6)), (1, (3, 4, 3))])
def test_shortest_paths_are_bellman_fords(ring, shape, rule):
    field = random_smooth(len(shape), condition=30.0, strength=0.8, seed=ring).grid(shape)
    source = (2, 1, 0)[: len(shape)]
    slow = slow_distances(field, source, np.ones(shape, bool), ring, rule)
    position = field.nodes()[source]
    got = distance(field, position, "graph", ring=ring, rule=rule)
    torch.testing.assert_close(got, slow, rtol=1e-12, atol=1e-12)


def test_walls_block_the_steps_that_meet_them():
    field = random_smooth(condition=4.0, strength=0.5).grid((7, 8))
    mask = np.random.default_rng(5).random((7, 8)) > 0.3
    mask[3, 2] = True
    slow = slow_distances(field, (3, 2), mask, 3, "midpoint")
    got = distance(field, field.nodes()[3, 2], "graph", mask=mask)
    assert got.isfinite().any()
    assert not got.isfinite().all()
    torch.testing.assert_close(got, slow, rtol=1e-12, atol=1e-12)


def test_two_walls_that_touch_at_a_corner_are_closed():
    """In the plane, as in the other methods; one of them alone is passed at its corner."""
    field = GridMetric.from_metric(Euclidean(2), (2, 2))
    mask = np.array([[True, False], [False, True]])
    assert distance(field, (0, 0), "graph", mask=mask)[1, 1] == math.inf
    mask[0, 1] = True
    assert distance(field, (0, 0), "graph", mask=mask)[1, 1] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(("ring", "directions"), [(1, 8), (2, 16), (3, 32)])
def test_the_angles_that_are_missing(ring, directions):
    """The Euclidean distance is too long by at most 1 / cos of half the widest gap."""
    assert len(offsets(2, ring)) == directions
    angles = np.sort([math.atan2(b, a) for a, b in offsets(2, ring)])
    widest = np.diff(angles).max()
    field = constant(np.eye(2)).grid(121)
    source = field.nodes()[0, 0]
    got, exact = distance(field, source, "graph", ring=ring), field.nodes().norm(dim=-1)
    ratio = (got / exact)[exact > 0]
    assert ratio.min() >= 1 - 1e-12
    assert ratio.max() == pytest.approx(1 / math.cos(widest / 2), abs=1e-4)
    # The figures of the docstring.
    assert 100 * (ratio.max() - 1) == pytest.approx({1: 8.2, 2: 2.7, 3: 1.3}[ring], abs=0.1)


@pytest.mark.parametrize("field", known_fields(), ids=str)
def test_never_shorter_than_the_truth(field):
    """Up to the quadrature along single steps; and too long by the missing angles."""
    grid = field.grid(41)
    source = field.point(0.5, 0.5)
    exact = truth(field, grid, source)
    near = trusted(exact)
    errors = []
    for ring in (1, 2, 4):
        got = distance(grid, source, "graph", ring=ring)
        assert ((got - exact)[near] >= -3e-3 * exact.max()).all()
        errors.append(float((got - exact)[near].mean()))
    # Rings further out have steps in the directions of those within.
    assert errors[0] >= errors[1] >= errors[2]


def test_sources_between_nodes_and_starting_values():
    field = tilted(4.0, 20.0, 0.4)
    grid = field.grid(9)
    two = torch.stack((field.point(0.31, 0.47), field.point(0.9, 0.81)))
    values = torch.tensor([0.3, -0.2], dtype=torch.float64)
    got = distance(grid, two, "graph", values=values, full=True)
    each = torch.stack([distance(grid, x, "graph") for x in two]) + values[:, None, None]
    torch.testing.assert_close(got.distance, each.min(0).values)
    assert torch.equal(got.label, each.argmin(0))
    # Within the ring about a source the step is straight: exact where the metric is constant.
    x = grid.nodes()[3, 4]
    torch.testing.assert_close(distance(grid, two[0], "graph")[3, 4], field.distance(two[0], x))


def test_it_says_that_it_has_no_gradients():
    grid = tilted(4.0, 20.0).grid(5)
    M = grid.M.clone().requires_grad_()
    field = GridMetric(M, grid.omega, grid.spacing)
    with pytest.raises(ValueError, match=r"method: 'graph' gives no gradients"):
        distance(field, (0.5, 0.5), "graph")
    with torch.no_grad():
        assert torch.equal(
            distance(field, (0.5, 0.5), "graph"), distance(field.detach(), (0.5, 0.5), "graph")
        )


@pytest.mark.unchecked
def test_wrong_options_are_refused():
    grid = tilted(4.0, 20.0).grid(5)
    with pytest.raises(ValueError, match="ring: expected a positive integer, got 0"):
        distance(grid, (0.5, 0.5), "graph", ring=0)
    with pytest.raises(ValueError, match="rule: expected 'midpoint' or 'trapezoid', got 'simpson'"):
        distance(grid, (0.5, 0.5), "graph", rule="simpson")
