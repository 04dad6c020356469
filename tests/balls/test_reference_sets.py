"""The reference point sets: their order, their radii, their weights as a quadrature."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import j1

from finslerconv.balls import (
    ReferenceSet,
    concentric,
    fibonacci_ball,
    lattice,
    polar,
    radial,
    radius,
    reference_set,
    sunflower,
)
from finslerconv.metrics import Riemannian

SIZES = st.integers(1, 9)


def integral(reference, f):
    return (reference.weights * f(reference.points)).sum()


@given(SIZES, SIZES)
def test_lattice_is_the_standard_convolution_in_its_ball(rows, columns):
    """In the ball of I / r^2 the taps are whole pixels apart, centred as a convolution's are."""
    r = radius((rows, columns))
    assert r == max(1, max(rows, columns) // 2)
    taps = radial(Riemannian(np.eye(2) / r**2), lattice((rows, columns)).points)
    expected = [
        (i - (rows - 1) / 2, j - (columns - 1) / 2) for i in range(rows) for j in range(columns)
    ]
    np.testing.assert_allclose(taps, expected, rtol=0, atol=8 * r * 2.3e-16)


@pytest.mark.parametrize("sizes", [(1,), (4,), (5,), (3, 3, 3), (2, 5, 3)])
def test_lattice_in_any_dimension(sizes):
    reference = lattice(sizes)
    assert reference.kernel_shape == sizes
    assert reference.dim == len(sizes)
    assert len(reference) == math.prod(sizes)
    places = np.array(list(np.ndindex(*sizes)))
    centre = (np.array(sizes) - 1) / 2
    np.testing.assert_allclose(reference.points, (places - centre) / radius(sizes), atol=1e-15)


@given(st.integers(2, 11))
def test_lattice_is_the_trapezoidal_or_the_midpoint_rule(k):
    """Of the square [-1, 1]^2: exact for bilinear functions; the error of x^2 is known."""
    reference = lattice(k)
    step = 1 / radius(k)
    assert integral(reference, lambda g: 1 + 0 * g[:, 0]) == pytest.approx(4, rel=1e-14)
    for monomial in (lambda g: g[:, 0], lambda g: g[:, 1], lambda g: g[:, 0] * g[:, 1]):
        assert integral(reference, monomial) == pytest.approx(0, abs=1e-14)
    # (b - a) h^2 f'' / 12, and minus half of that; times the length 2 of the other axis.
    error = 2 * step**2 / 3 if k % 2 else -(step**2) / 3
    for axis in (0, 1):
        measured = integral(reference, lambda g, axis=axis: g[:, axis] ** 2)
        assert measured == pytest.approx(4 / 3 + error, rel=1e-13)


def test_lattice_of_one_tap_and_of_rectangles():
    assert lattice(1).points.tolist() == [[0, 0]]
    assert lattice(1).weights.tolist() == [1]
    # Three rows of a kernel five wide reach half way up: 1.5 by 2 of the square.
    assert lattice((3, 5)).weights.sum() == pytest.approx(3, rel=1e-15)


@pytest.mark.parametrize("k", [3, 5, 7, 11])
def test_concentric_rings(k):
    """Ring j: 8 j points at radius j / r, equally spaced, in the places of the grid's ring j."""
    reference = concentric(k)
    r = k // 2
    places = np.array(list(np.ndindex(k, k))) - r
    ring = np.abs(places).max(-1)
    np.testing.assert_allclose(np.linalg.norm(reference.points, axis=-1), ring / r, atol=1e-15)
    for j in range(1, r + 1):
        points = reference.points[ring == j]
        assert len(points) == 8 * j
        angles = np.sort(np.arctan2(*points.T))
        gaps = np.diff(np.append(angles, angles[0] + 2 * math.pi))
        np.testing.assert_allclose(gaps, 2 * math.pi / (8 * j), rtol=1e-13)
    # Places keep their octants: the rows' signs, the columns' signs, which of them is larger.
    np.testing.assert_array_equal(
        np.sign(np.where(np.abs(reference.points) < 1e-12, 0, reference.points)), np.sign(places)
    )
    on_axis_or_diagonal = (places == 0).any(-1) | (np.abs(places[:, 0]) == np.abs(places[:, 1]))
    straight = places * (ring / np.maximum(np.linalg.norm(places, axis=-1), 1))[:, None] / r
    np.testing.assert_allclose(
        reference.points[on_axis_or_diagonal], straight[on_axis_or_diagonal], atol=1e-15
    )
    assert reference.points[len(reference) // 2].tolist() == [0, 0]


@given(SIZES, SIZES)
def test_concentric_serves_rectangular_and_even_kernels(rows, columns):
    grid, reference = lattice((rows, columns)), concentric((rows, columns))
    assert reference.kernel_shape == (rows, columns)
    length = np.linalg.norm(reference.points, axis=-1)
    assert (length <= 1 + 1e-15).all()
    np.testing.assert_allclose(length, np.abs(grid.points).max(-1), atol=1e-15)
    # The map keeps ratios of areas: each weight is pi / 4 of the grid's.
    np.testing.assert_allclose(reference.weights, math.pi / 4 * grid.weights, rtol=1e-15)


@given(SIZES, SIZES)
def test_concentric_is_shirley_and_chius_map(rows, columns):
    """Point by point: in each quarter, the larger coordinate is the radius."""
    expected = []
    for a, b in lattice((rows, columns)).points:
        if a == b == 0:
            expected.append((0, 0))
        elif abs(b) >= abs(a):
            expected.append((b * math.sin(math.pi / 4 * a / b), b * math.cos(math.pi / 4 * a / b)))
        else:
            expected.append((a * math.cos(math.pi / 4 * b / a), a * math.sin(math.pi / 4 * b / a)))
    np.testing.assert_allclose(concentric((rows, columns)).points, expected, rtol=0, atol=1e-15)


@given(st.integers(1, 4))
def test_concentric_weights_are_areas_of_cells(r):
    """Counted: many points of the disc, sent back to the square, fall into each cell."""
    k = 2 * r + 1
    fine = concentric(k * 41)  # its points are the images of a fine grid, of equal cells
    places = lattice(k * 41).points
    cell = np.rint(places * r).astype(int) + r
    counted = np.zeros((k, k))
    np.add.at(counted, (cell[:, 0], cell[:, 1]), fine.weights)
    spacing = 2 / (k * 41)
    np.testing.assert_allclose(
        concentric(k).weights, counted.reshape(-1), atol=4 * spacing * math.pi / 4
    )


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_concentric_on_a_line_is_the_lattice(k):
    grid, reference = lattice((k,)), concentric((k,))
    assert reference.name == "concentric"
    np.testing.assert_array_equal(reference.points, grid.points)
    np.testing.assert_array_equal(reference.weights, grid.weights)


@pytest.mark.parametrize("k", [3, 5, 7])
def test_concentric_cubes_become_spheres(k):
    """Cube j: 24 j^2 + 2 points at radius j / r, in the places of the grid, each in its octant."""
    reference = concentric((k, k, k))
    r = k // 2
    places = np.array(list(np.ndindex(k, k, k))) - r
    cube = np.abs(places).max(-1)
    np.testing.assert_allclose(np.linalg.norm(reference.points, axis=-1), cube / r, atol=1e-15)
    for j in range(1, r + 1):
        assert (cube == j).sum() == 24 * j**2 + 2
    points = np.where(np.abs(reference.points) < 1e-12, 0, reference.points)
    np.testing.assert_array_equal(np.sign(points), np.sign(places))
    # Centres of faces, middles of edges and corners stay on their rays.
    straight = (np.abs(places) == cube[:, None]) | (places == 0)
    rays = places / np.maximum(np.linalg.norm(places, axis=-1), 1)[:, None]
    kept = straight.all(-1)
    np.testing.assert_allclose(points[kept], (rays * cube[:, None] / r)[kept], atol=1e-15)
    # All symmetries of the cube are symmetries of the set.
    grid = reference.points.reshape(k, k, k, 3)
    turned = np.transpose(grid, (2, 0, 1, 3))[..., [2, 0, 1]]
    np.testing.assert_allclose(turned, grid, atol=1e-15)
    np.testing.assert_allclose(grid[::-1] * [-1, 1, 1], grid, atol=1e-15)


@given(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)))
def test_concentric_serves_boxes_and_even_kernels(sizes):
    grid, reference = lattice(sizes), concentric(sizes)
    assert reference.kernel_shape == sizes
    length = np.linalg.norm(reference.points, axis=-1)
    assert (length <= 1 + 1e-15).all()
    np.testing.assert_allclose(length, np.abs(grid.points).max(-1), atol=1e-15)
    np.testing.assert_allclose(reference.weights, math.pi / 6 * grid.weights, rtol=1e-15)


def test_concentric_keeps_ratios_of_volumes():
    """A small cell, measured between neighbours, has pi / 6 of its volume in the lattice."""
    k = 62
    images = concentric((k, k, k)).points.reshape(k, k, k, 3)
    i, j, m = np.random.default_rng(0).integers(2, k - 2, (3, 1000))
    place = np.sort(np.abs(np.stack((i, j, m)) - (k - 1) / 2), axis=0)
    # Away from the centre and from where two coordinates are equal, where the map has an edge.
    smooth = (np.diff(place, axis=0).min(0) > 1.5) & (place[2] > 12)
    assert smooth.sum() > 500
    edges = [
        (images[i + a, j + b, m + c] - images[i - a, j - b, m - c]) / 2
        for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    volumes = np.linalg.det(np.stack(edges, axis=-1)) * (k // 2) ** 3
    np.testing.assert_allclose(volumes[smooth], math.pi / 6, rtol=0.01)


@given(st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_polar_order_radii_and_weights(n_radii, n_angles, centre):
    reference = polar(n_radii, n_angles, centre=centre)
    n = n_radii * n_angles
    assert reference.kernel_shape == ((n + 1,) if centre else (n_radii, n_angles))
    points = reference.points[1:] if centre else reference.points
    if centre:
        assert reference.points[0].tolist() == [0, 0]
    expected = [
        (
            i / n_radii * math.sin(2 * math.pi * j / n_angles),
            i / n_radii * math.cos(2 * math.pi * j / n_angles),
        )
        for i in range(1, n_radii + 1)
        for j in range(n_angles)
    ]
    np.testing.assert_allclose(points, expected, atol=1e-15)
    # Cells end halfway between the radii: so many areas of discs.
    weights = reference.weights[1:] if centre else reference.weights
    ends = np.append((np.arange(1, n_radii) + 0.5) / n_radii, 1.0)
    start = math.pi / (2 * n_radii) ** 2 if centre else 0.0
    rings = start + weights.reshape(n_radii, n_angles).sum(-1).cumsum()
    np.testing.assert_allclose(rings, math.pi * ends**2, rtol=1e-13)
    np.testing.assert_allclose(weights, np.repeat(weights[::n_angles], n_angles), rtol=1e-15)
    assert reference.weights.sum() == pytest.approx(math.pi, rel=1e-14)


@pytest.mark.parametrize("centre", [False, True])
def test_polar_is_exact_in_the_angle_and_of_second_order_in_the_radius(centre):
    reference = polar(4, 7, centre=centre)
    for degree in range(1, 7):  # of trigonometric degree below the number of angles
        assert integral(
            reference, lambda g, m=degree: ((g[:, 1] + 1j * g[:, 0]) ** m).real
        ) == pytest.approx(0, abs=1e-14)
    assert integral(reference, lambda g: g[:, 0] ** 2) == pytest.approx(
        integral(reference, lambda g: g[:, 1] ** 2), rel=1e-14
    )

    def error(n):
        return integral(polar(n, 3, centre=centre), lambda g: (g**2).sum(-1)) - math.pi / 2

    assert error(64) == pytest.approx(error(32) / 4, rel=0.05)


@given(st.integers(1, 200))
def test_sunflower_is_exact_for_the_squared_radius(n):
    reference = sunflower(n)
    assert reference.kernel_shape == (n,)
    assert (reference.weights == math.pi / n).all()
    length = np.linalg.norm(reference.points, axis=-1)
    np.testing.assert_allclose(length, np.sqrt((np.arange(n) + 0.5) / n), rtol=1e-14)
    assert integral(reference, lambda g: (g**2).sum(-1)) == pytest.approx(math.pi / 2, rel=1e-13)


@pytest.mark.parametrize("n", [1, 7, 60])
def test_sunflower_turns_from_the_columns_towards_the_rows(n):
    """One golden angle a point, the first point to the right: as it is written, point by point."""
    golden = 2 * math.pi * (1 - 2 / (1 + math.sqrt(5)))  # of the turn, the smaller golden section
    expected = [
        (
            math.sqrt((i + 0.5) / n) * math.sin(i * golden),
            math.sqrt((i + 0.5) / n) * math.cos(i * golden),
        )
        for i in range(n)
    ]
    np.testing.assert_allclose(sunflower(n).points, expected, rtol=0, atol=1e-12)
    # 137.5 degrees from right towards down: the second point lies below and to the left.
    if n > 1:
        assert sunflower(n).points[1, 0] > 0 > sunflower(n).points[1, 1]


def test_sunflower_spreads_its_points_evenly():
    """No two points are closer than half of what a square lattice of as many would have."""
    points = sunflower(300).points
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + 9 * np.eye(300)
    assert distance.min() > 0.5 * math.sqrt(math.pi / 300)
    turn = np.arctan2(*points[5]) - np.arctan2(*points[4])
    assert math.cos(turn) == pytest.approx(math.cos(math.pi * (3 - math.sqrt(5))), rel=1e-12)
    moments = [integral(sunflower(n), lambda g: g[:, 0] ** 2) - math.pi / 4 for n in (50, 800)]
    assert abs(moments[1]) < abs(moments[0]) / 4 < 0.01


@given(st.integers(1, 200))
def test_fibonacci_ball_has_a_point_in_every_shell_of_equal_volume(n):
    reference = fibonacci_ball(n)
    assert reference.kernel_shape == (n,)
    np.testing.assert_allclose(reference.weights, 4 * math.pi / 3 / n, rtol=1e-15)
    length = np.linalg.norm(reference.points, axis=-1)
    np.testing.assert_allclose(length**3, (np.arange(n) + 0.5) / n, rtol=1e-12)
    # The directions are those of the Fibonacci sphere: evenly spaced heights, turned from the
    # third axis towards the second by a golden angle from each to the next.
    directions = reference.points / length[:, None]
    directions = directions[np.argsort(-directions[:, 0])]
    np.testing.assert_allclose(directions[:, 0], 1 - (2 * np.arange(n) + 1) / n, atol=1e-12)
    golden = 2 * math.pi * (1 - 2 / (1 + math.sqrt(5)))
    turned = directions[:, 2] + 1j * directions[:, 1]
    np.testing.assert_allclose(
        turned / np.abs(turned), np.exp(1j * golden * np.arange(n)), atol=1e-11
    )


@pytest.mark.parametrize("n", [27, 125, 343])
def test_fibonacci_ball_spreads_its_points_evenly(n):
    """The mean of exp(i s . g) over the ball is 3 (sin s - s cos s) / s^3.

    Random points miss it by about 1 / sqrt(n).
    """
    points = fibonacci_ball(n).points
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + 9 * np.eye(n)
    assert apart.min() > 0.6 * (4 * math.pi / 3 / n) ** (1 / 3)
    directions = fibonacci_ball(100).points
    directions = directions / np.linalg.norm(directions, axis=-1)[:, None]
    for s, share in ((1, 0.1), (3, 0.3), (6, 0.5)):
        means = np.exp(1j * s * points @ directions.T).mean(0)
        error = np.abs(means - 3 * (math.sin(s) - s * math.cos(s)) / s**3)
        assert np.sqrt(np.mean(error**2)) < share / math.sqrt(n)


@pytest.mark.parametrize("n", [8, 27, 125])
def test_fibonacci_ball_fills_every_half_of_the_ball(n):
    """By each plane through the centre, to within a share of the points that falls with n."""
    points = fibonacci_ball(n).points
    normals = np.random.default_rng(0).normal(size=(500, 3))
    share = (points @ normals.T > 0).mean(0)
    assert np.abs(share - 0.5).max() < n ** (-2 / 3)


@pytest.mark.parametrize(
    ("frequency", "equal", "best"),
    [
        (1, True, ["polar", "polar", "sunflower", "sunflower"]),
        (3, True, ["sunflower"] * 4),
        (6, True, ["sunflower"] * 4),
        (1, False, ["polar"] * 4),
        (3, False, ["sunflower", "polar", "polar", "polar"]),
        (6, False, ["sunflower", "sunflower", "sunflower", "polar"]),
    ],
)
def test_which_set_averages_a_wave_best_depends_on_its_length(frequency, equal, best):
    """The mean of exp(i s . g) over the disc is 2 J_1(|s|) / |s|."""
    angles = 2 * math.pi * (np.arange(90) + 0.5) / 90
    s = frequency * np.stack((np.sin(angles), np.cos(angles)))
    exact = 2 * j1(frequency) / frequency

    def error(reference):
        weights = np.ones(len(reference)) if equal else reference.weights
        means = weights @ np.exp(1j * reference.points @ s) / weights.sum()
        return np.mean(np.abs(means - exact) ** 2)

    for k, name in zip((3, 5, 7, 11), best, strict=True):
        sets = (lattice(k), concentric(k), polar(k, k), sunflower(k * k))
        assert min(sets, key=error).name == name


def test_reference_set_by_name():
    for name, same in (
        ("lattice", lattice((3, 5))),
        ("concentric", concentric((3, 5))),
        ("polar", polar(3, 5)),
        ("sunflower", sunflower(15)),
    ):
        reference = reference_set(name, (3, 5))
        assert reference.name == name
        assert reference.kernel_shape == (3, 5)
        assert (reference.points == same.points).all()
        assert (reference.weights == same.weights).all()
    assert reference_set("lattice", 3).kernel_shape == (3, 3)
    for name, sizes, same in (
        ("lattice", (5,), lattice((5,))),
        ("concentric", (5,), concentric((5,))),
        ("lattice", (3, 1, 2), lattice((3, 1, 2))),
        ("concentric", (3, 1, 2), concentric((3, 1, 2))),
        ("fibonacci_ball", (3, 1, 2), fibonacci_ball(6)),
    ):
        reference = reference_set(name, sizes)
        assert (reference.name, reference.kernel_shape) == (name, sizes)
        assert (reference.points == same.points).all()
    again = pickle.loads(pickle.dumps(reference_set("polar", 3)))
    assert (again.points == polar(3, 3).points).all()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lattice(0), "kernel_size: expected positive integers, got 0"),
        (lambda: lattice(3.0), "kernel_size: expected positive integers, got 3.0"),
        (lambda: lattice((3, 2.5)), r"kernel_size: expected positive integers, got \(3, 2.5\)"),
        (lambda: lattice(()), r"kernel_size: expected positive integers, got \(\)"),
        (lambda: lattice("35"), "kernel_size: expected positive integers, got '35'"),
        (lambda: radius((3, -1)), r"kernel_size: expected positive integers, got \(3, -1\)"),
        (
            lambda: concentric((3, 3, 3, 3)),
            "kernel_size: concentric is for one to three dimensions, got",
        ),
        (lambda: reference_set("polar", (3,)), "kernel_size: polar is two-dimensional, got"),
        (
            lambda: reference_set("sunflower", (3, 3, 3)),
            "kernel_size: sunflower is two-dimensional, got",
        ),
        (
            lambda: reference_set("fibonacci_ball", 3),
            "kernel_size: fibonacci_ball is three-dimensional, got 3",
        ),
        (lambda: fibonacci_ball(0), "n: fibonacci_ball needs a positive integer, got 0"),
        (lambda: reference_set("hexagonal", 3), "expected 'lattice', .* got 'hexagonal'"),
        (lambda: polar(0, 3), "n_radii: polar needs a positive integer, got 0"),
        (lambda: polar(3, 2.0), "n_angles: polar needs a positive integer, got 2.0"),
        (lambda: sunflower(-1), "n: sunflower needs a positive integer, got -1"),
        (
            lambda: ReferenceSet("mine", (2, 2), np.zeros((3, 2)), np.ones(4)),
            r"points: expected 4 points for a kernel of shape \(2, 2\), got an array of shape \(3,",
        ),
        (
            lambda: ReferenceSet("mine", (2,), np.zeros((2, 2)), np.ones(3)),
            r"weights: expected shape \(2,\), got \(3,\)",
        ),
        (
            lambda: ReferenceSet("mine", (2,), np.array([[0, 0], [0, np.nan]]), np.ones(2)),
            r"points: expected finite points, got \[ 0. nan\] at index 1",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
