"""The stencils and the seeds: what they promise, for every metric."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metric_fields import seed_nodes
from strategies import cases

from finslerconv.geodesics.distances._seeding import chord_norm
from finslerconv.geodesics.distances._sight import seen, visible
from finslerconv.geodesics.distances._stencils import acute_stencils, reach, selling_stencils

FREE = np.zeros((1, 1), bool)


def stencil(M, omega):
    return acute_stencils(M.reshape(1, 4), omega.reshape(1, 2), FREE).offset.astype(np.int64)


@given(cases(dims=(2,), kinds=("numpy",), dtypes=("float64",), batch=2))
def test_sectors_are_acute_and_cover_the_circle(case):
    for M, omega, strength in zip(case.M, case.omega, 1 - case.lam, strict=True):
        if strength > 0.99**2:
            omega = omega * 0.99 / np.sqrt(strength)
        a = stencil(M, omega)
        b = np.roll(a, -1, axis=0)
        # Each sector is half a unit square of the lattice, counter-clockwise ...
        assert (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0] == 1).all()
        # ... they go round once ...
        angles = np.unwrap(np.arctan2(a[:, 1], a[:, 0]))
        assert (np.diff(angles) > 0).all()
        assert angles[-1] - angles[0] < 2 * np.pi
        # ... the four nearest nodes are among them, so that every node can be reached ...
        assert {(1, 0), (0, 1), (-1, 0), (0, -1)} <= set(map(tuple, a.tolist()))

        # ... and <dF(-a), -b> and <dF(-b), -a> are not negative, nor is <a, b> in M.
        def slope(v, w, M=M, omega=omega):
            gradient = -(v @ M) / np.sqrt(np.einsum("ki,ij,kj->k", v, M, v))[:, None] + omega
            return -(gradient * w).sum(-1)

        size = np.sqrt(np.einsum("ki,ij,kj->k", a, M, a))
        bound = 1e-9 * np.maximum(size, np.roll(size, -1))
        assert (slope(a, b) >= -bound).all()
        assert (slope(b, a) >= -bound).all()
        assert (np.einsum("ki,ij,kj->k", a, M, b) >= -1e-9 * size * np.roll(size, -1)).all()


def test_stencils_of_known_metrics():
    four = [[1, 0], [0, 1], [-1, 0], [0, -1]]
    assert stencil(np.eye(2), np.zeros(2)).tolist() == four
    assert stencil(np.diag([100.0, 1.0]), np.zeros(2)).tolist() == four
    # The fast direction is (1, 1): sectors along it are split, those across are acute.
    M = np.array([[1.0, -0.9], [-0.9, 1.0]])
    assert [1, 1] in stencil(M, np.zeros(2)).tolist()
    assert [1, -1] not in stencil(M, np.zeros(2)).tolist()


@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_no_vertex_can_be_left_out(seed, exponent):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((2, 2)))[0]
    M = Q @ np.diag([1.0, 10.0**exponent]) @ Q.T
    a = stencil(M, np.zeros(2))
    axes = {(1, 0), (0, 1), (-1, 0), (0, -1)}
    for k, vertex in enumerate(a.tolist()):
        before, after = a[k - 1], a[(k + 1) % len(a)]
        if tuple(vertex) not in axes and (before + after == vertex).all():
            assert before @ M @ after < 0


def test_field_and_walls_mark_what_is_no_neighbour():
    rng = np.random.default_rng(0)
    height, width = 7, 9
    A = rng.standard_normal((height * width, 2, 2))
    M = (A @ A.swapaxes(1, 2) + 0.05 * np.eye(2)).reshape(-1, 4)
    omega = np.zeros((1, 2))
    wall = np.zeros((height, width), bool)
    wall[3, 2:6] = True
    found = acute_stencils(M, omega, wall)
    for x in range(height * width):
        here = np.array(divmod(x, width))
        alone = stencil(M[x], omega[0])
        offset = found.offset[found.start[x] : found.start[x + 1]].astype(np.int64)
        assert len(offset) == len(alone)
        for got, e in zip(offset, alone, strict=True):
            there = here + e
            inside = ((there >= 0) & (there < (height, width))).all()
            # The squares that the line runs through, from points on it off the lattice.
            line = here + np.linspace(0, 1, 997)[:, None] * e
            cells = np.rint(line[(np.abs(line % 1 - 0.5) > 1e-9).all(-1)]).astype(int)
            clear = inside and not wall[tuple(cells.T)].any()
            assert (got == (e if clear else 0)).all()


def test_no_line_between_two_walls_that_touch_at_a_corner():
    wall = np.array([[False, True], [True, False]])
    assert not visible(wall, 0, 0, 1, 1)
    assert visible(np.array([[False, True], [False, False]]), 0, 0, 1, 1)
    start, end = np.array([[0.0, 0.0], [0.1, 0.0]]), np.array([[1, 1], [0, 0]])
    assert seen(wall, start, end).tolist() == [False, True]
    # A source on the border of a wall sees along it, and nothing behind it.
    wall = np.zeros((5, 5), bool)
    wall[3] = True
    start = np.repeat([[2.5, 1.0]], 4, axis=0)
    end = np.array([[2, 1], [2, 4], [1, 3], [4, 1]])
    assert seen(wall, start, end).tolist() == [True, True, True, False]


@given(cases(dims=(3,), kinds=("numpy",), dtypes=("float64",), batch=3))
def test_selling_decomposition(case):
    D = np.linalg.inv(case.M)
    D = (D + D.swapaxes(1, 2)) / 2
    found = selling_stencils(D)
    e = found.offset.astype(float)
    again = np.einsum("xk,xki,xkj->xij", found.weight, e, e)
    assert (found.weight >= 0).all()
    scale = np.abs(D).max((1, 2), keepdims=True)
    assert (np.abs(again - D) <= 1e-9 * scale).all()
    # A superbase: three of its vectors span the lattice, and the four add up to 0.
    assert (found.base.sum(1) == 0).all()
    assert np.allclose(np.abs(np.linalg.det(found.base[:, :3].astype(float))), 1)


def test_selling_decomposition_of_the_identity_is_the_axes():
    found = selling_stencils(np.eye(3)[None])
    used = found.offset[0][found.weight[0] > 0]
    assert sorted(map(tuple, np.abs(used).tolist())) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert reach(np.eye(3), np.zeros(3)) == 1


@pytest.mark.parametrize("where", [(5.0, 4.0), (5.25, 4.0), (5.25, 4.75)])
def test_seeds_surround_the_source_with_the_chord_s_length(where):
    M = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64).expand(9, 9, 2, 2)
    omega = torch.tensor([0.4, -0.2], dtype=torch.float64).expand(9, 9, 2)
    position = torch.tensor([where], dtype=torch.float64)
    start = seed_nodes(position, torch.tensor([0.5]).double(), M, omega, np.zeros((9, 9), bool))
    index = torch.stack(torch.unravel_index(start.node, (9, 9)), -1)
    expected = [
        (i, j)
        for i in range(9)
        for j in range(9)
        if abs(i - where[0]) <= 1 and abs(j - where[1]) <= 1
    ]
    assert sorted(map(tuple, index.tolist())) == expected
    v = index - position
    assert torch.allclose(start.value, 0.5 + chord_norm(M[0, 0], omega[0, 0], v))
    assert start.alone.all()


def test_seeds_of_a_varying_metric_are_right_to_the_cube_of_the_chord():
    def M(x):  # in one coordinate: the distance is the integral of 1 + x
        return (1 + x[..., :1, None]) ** 2 * torch.eye(2, dtype=torch.float64)

    errors = []
    for h in (0.1, 0.05, 0.025):
        axis = torch.arange(9, dtype=torch.float64)
        x = h * torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
        start = seed_nodes(
            torch.tensor([[4.0, 4.0]]).double(), torch.zeros(1).double(), M(x) * h**2, None,
            np.zeros((9, 9), bool),
        )  # fmt: skip
        column = start.node % 9 == 4
        a, b = x[4, 4, 0], x.reshape(-1, 2)[start.node[column], 0]
        exact = ((b + b**2 / 2) - (a + a**2 / 2)).abs()
        errors.append(float((start.value[column] - exact).abs().max()))
    assert max(errors) < 1e-14  # the trapezoidal rule is exact for a linear speed


def test_crowded_sources_are_no_round_fronts():
    M = torch.eye(2).double().expand(20, 20, 2, 2)
    position = torch.tensor([[2.0, 2.0], [4.0, 2.0], [15.0, 15.0]]).double()
    start = seed_nodes(position, torch.zeros(3).double(), M, None, np.zeros((20, 20), bool))
    assert start.alone.tolist() == [False, False, True]


@pytest.mark.unchecked
def test_sources_in_walls_start_nothing():
    M = torch.eye(2).double().expand(6, 6, 2, 2)
    wall = np.zeros((6, 6), bool)
    wall[1, 1] = True
    position = torch.tensor([[1.0, 1.0], [4.0, 4.0]]).double()
    start = seed_nodes(position, torch.zeros(2).double(), M, None, wall)
    assert set(start.label.tolist()) == {1}
    with pytest.raises(ValueError, match="inside obstacles"):
        seed_nodes(position[:1], torch.zeros(1).double(), M, None, wall)
