"""The one rule of walls: against slow walks from cell to cell, and the same in every method."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finslerconv.geodesics import GridMetric, distance
from finslerconv.geodesics.distances._sight import clear, seen
from finslerconv.metrics import Riemannian

METHODS = ("fast_marching", "fast_iterative", "graph", "heat")


def walks(free, cell, axes, step):
    """Return whether free cells lead across all of ``axes``, one face after the other."""
    if not free[tuple(cell)]:
        return False
    if not axes:
        return True
    return any(
        walks(free, [c + step[a] * (i == a) for i, c in enumerate(cell)], axes - {a}, step)
        for a in axes
    )


def slow(free, a, b):
    """Return whether the line between two nodes is free, in fractions."""
    run = [y - x for x, y in zip(a, b, strict=True)]
    step = [int(math.copysign(1, v)) for v in run]
    times = sorted({Fraction(2 * i + 1, 2 * abs(v)) for v in run for i in range(abs(v))})
    cell = list(a)
    if not free[tuple(cell)]:
        return False
    for time in times:
        crossed = {k for k, v in enumerate(run) if v and (time * abs(v) - Fraction(1, 2)) % 1 == 0}
        if not walks(free, cell, crossed, step):
            return False
        cell = [c + step[k] * (k in crossed) for k, c in enumerate(cell)]
    return True


@given(st.integers(0, 2**32 - 1), st.sampled_from((2, 3)), st.floats(0.05, 0.5))
@settings(max_examples=60)
def test_lines_between_nodes(seed, d, share):
    rng = np.random.default_rng(seed)
    shape = (7, 9, 5)[:d]
    free = rng.random(shape) > share
    a, b = (np.stack([rng.integers(0, n, 40) for n in shape], -1) for _ in range(2))
    expected = [slow(free, x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert seen(~free, a, b).tolist() == expected
    assert seen(~free, b, a).tolist() == expected
    # Rounding does not decide whether a corner is met.
    assert seen(~free, np.clip(a + 1e-13, 0, None), b).tolist() == expected


def test_the_rule_is_the_same_without_compilation():
    # As with NUMBA_DISABLE_JIT=1, where there is no py_func.
    plain = getattr(clear, "py_func", clear)
    rng = np.random.default_rng(0)
    shape = (6, 7, 5)
    walls = rng.random(shape) < 0.1
    a, b = (np.stack([rng.integers(0, n, 30) for n in shape], -1).astype(float) for _ in range(2))
    found = [
        plain(walls.ravel(), shape, tuple(x), tuple(y), 0.0) for x, y in zip(a, b, strict=True)
    ]
    assert found == seen(walls, a, b).tolist()
    assert {*found} == {True, False}


@pytest.mark.parametrize("d", [2, 3])
def test_every_corner(d):
    """Through the middle of all arrangements of the walls about it."""
    for walls in itertools.product((False, True), repeat=2**d):
        wall = np.array(walls).reshape((2,) * d)
        for start in itertools.product((0, 1), repeat=d):
            end = [1 - i for i in start]
            expected = walks(~wall, list(start), set(range(d)), [1 - 2 * i for i in start])
            assert seen(wall, np.array([start]), np.array([end])).tolist() == [expected]


@given(st.integers(0, 2**32 - 1), st.sampled_from((2, 3)))
@settings(max_examples=30)
def test_lines_between_any_points(seed, d):
    rng = np.random.default_rng(seed)
    shape = (7, 9, 5)[:d]
    free = rng.random(shape) > 0.2
    a, b = (rng.uniform(0, np.array(shape) - 1, (40, d)) for _ in range(2))
    fine = a + np.linspace(0, 1, 2001)[:, None, None] * (b - a)
    clear = free[tuple(np.moveaxis(np.rint(fine).astype(int), -1, 0))].all(0)
    got = seen(~free, a, b)
    assert not (got & ~clear).any()  # what a point says is behind no wall
    assert (got != clear).sum() <= 1  # a corner may be cut between two points


def test_lines_along_walls():
    """One passes along a wall, none between two walls, nor from one side of a line to the other."""
    wall = np.zeros((4, 5), bool)
    wall[1, 1], wall[2, 3] = True, True
    start = np.array([[1.5, 0.0], [1.5, 0.0], [1.5, 0.0]])
    end = np.array([[1.5, 2.0], [1.5, 2.6], [1.5, 4.0]])
    assert seen(wall, start, end).tolist() == [True, True, True]
    wall[2, 2] = True  # touches the other at the corner (1.5, 1.5), where the line would change
    assert seen(wall, start, end).tolist() == [False, False, False]
    wall = np.zeros((4, 5), bool)
    wall[1, 1] = wall[2, 1] = True
    assert not seen(wall, start, end).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_walls_that_touch_at_corners_are_closed(method, mirrored, sign):
    """On either diagonal, whichever way the metric's valleys run."""
    free = ~np.eye(13, dtype=bool)
    if mirrored:
        free = free[:, ::-1].copy()
    M = np.array([[1.0, 0.9 * sign], [0.9 * sign, 1.0]])
    field = GridMetric.from_metric(Riemannian(M), (13, 13))
    source, behind = ((10, 3), (3, 10)) if not mirrored else ((10, 10), (2, 2))
    assert distance(field, source, method, mask=free)[behind] == math.inf
    # With a gap at the end the way leads round.
    free[np.unravel_index(np.flatnonzero(~free)[0], free.shape)] = True
    got = distance(field, source, method, mask=free)[behind]
    wanted = distance(field, source, "graph", mask=free, ring=6)[behind]
    assert got == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_in_space_cubes_that_touch_along_edges_are_closed(method):
    free = np.broadcast_to(~np.eye(7, dtype=bool)[:, :, None], (7, 7, 5))
    M = np.array([[1.0, -0.8, 0.1], [-0.8, 1.0, 0.0], [0.1, 0.0, 1.0]])
    for field in (Riemannian(M), Riemannian(np.eye(3))):
        grid = GridMetric.from_metric(field, (7, 7, 5))
        got = distance(grid, (6, 0, 2), method, mask=free.copy())
        assert np.isinf(got[0, 6]).all()
        assert np.isfinite(got[6, :6]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_source_near_where_two_walls_touch(method, mirrored):
    """Between nodes: it starts on its own side only."""
    free = np.zeros((4, 4), bool)
    free[:2, :2] = free[2:, 2:] = True
    where, side = (1.3, 1.3), free & (np.arange(4) < 2)
    if mirrored:
        free, side, where = free[:, ::-1].copy(), side[:, ::-1], (1.3, 1.7)
    field = GridMetric.from_metric(Riemannian(np.eye(2)), (4, 4))
    got = distance(field, where, method, mask=free)
    assert (np.isfinite(got) == side).all()
