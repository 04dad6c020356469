"""Geodesic balls: closed forms, the three methods against each other, folds, gradients."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from metric_fields import (
    constant,
    funk,
    half_plane,
    known_fields,
    pull_back,
    pull_back_3d,
    rotation_wind,
)
from scipy.ndimage import map_coordinates

from finslerconv import balls
from finslerconv.balls import affine, concentric, lattice, polar, radial, sunflower
from finslerconv.geodesics import (
    FunctionMetric,
    GridMetric,
    StarShapeWarning,
    conjugate_time,
    distance,
)
from finslerconv.geodesics.balls import (
    InjectivityWarning,
    _windows,
    fan,
    geodesic_ball,
    geodesic_positions,
)
from finslerconv.metrics import Randers, Riemannian

CURVED = [pull_back(), half_plane(), funk(), rotation_wind()]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth_field(batch=1, shape=(9, 8), seed=0):
    """Return M and omega that vary gently from node to node."""
    A = normal(batch, 4, 2, 2, seed=seed)
    ys, xs = torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij")
    waves = torch.stack(
        [torch.ones_like(xs), (ys / 3).sin(), (xs / 3).cos(), (xs - ys).mul(0.2).sin()]
    )
    S = torch.einsum("nhw,bnij->bhwij", waves, 0.1 * A)
    M = 0.3 * torch.eye(2) + S @ S.mT
    omega = 0.08 * torch.einsum("nhw,bni->bhwi", waves, A[..., 0] / 2)
    return M, omega


def area(polygon):
    x, y = polygon[..., 0], polygon[..., 1]
    return ((x * y.roll(-1, 0) - y * x.roll(-1, 0)).sum(0) / 2).abs()


# Closed forms.


@pytest.mark.slow
@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("method", ["exp", "eikonal"])
def test_the_ball_of_a_constant_metric_is_its_tangent_ball(method, map):
    metric = Randers(np.array([[2.0, 0.6], [0.6, 0.7]]), np.array([0.4, -0.3]))
    field = GridMetric.from_metric(metric, (9, 9))
    points = sunflower(30)
    x = np.array([[4.0, 4.0], [3.3, 5.1]])
    carry = {"radial": radial, "affine": affine}[map]
    expected = x + 1.5 * carry(metric, points.points)[:, None]
    ball = geodesic_ball(field, x, points, 1.5, method=method, map=map)
    assert isinstance(ball, np.ndarray)
    np.testing.assert_allclose(ball, expected, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("field", [*CURVED, pull_back_3d()], ids=str)
def test_samples_are_at_their_distance(field):
    x = torch.stack([field.point(*[0.5] * field.dim), field.point(*[0.4] * field.dim)])
    reference = polar(2, 8) if field.dim == 2 else lattice((3, 3, 3))
    ball = geodesic_ball(field, x, reference, 0.2)
    wanted = 0.2 * torch.linalg.norm(torch.as_tensor(reference.points), dim=-1)[:, None]
    found = field.distance(x.expand_as(ball), ball)
    assert (found - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("field", CURVED, ids=str)
def test_level_sets_are_second_order_in_the_resolution(field):
    x, reference = field.point(0.5, 0.5), polar(2, 16)
    wanted = 0.2 * torch.linalg.norm(torch.as_tensor(reference.points), dim=-1)
    errors = []
    for resolution in (8, 32):
        ball = geodesic_ball(field, x, reference, 0.2, method="eikonal", resolution=resolution)
        errors.append((field.distance(x.expand_as(ball), ball) - wanted).abs().mean())
    assert errors[1] < 1e-3 * 0.2
    assert errors[1] < errors[0] / 2


@pytest.mark.slow
def test_level_sets_in_space():
    field = half_plane(3)
    x, reference = field.point(0.5, 0.5, 0.5), lattice((3, 3, 3))
    ball = geodesic_ball(field, x, reference, 0.1, method="eikonal", resolution=8)
    wanted = 0.1 * torch.linalg.norm(torch.as_tensor(reference.points), dim=-1)
    assert (field.distance(x.expand_as(ball), ball) - wanted).abs().max() < 0.005 * 0.1


@pytest.mark.slow
@pytest.mark.parametrize("field", [*known_fields()], ids=str)
def test_three_ways_to_one_ball(field):
    x, rim = field.point(0.5, 0.5), polar(1, 90)
    found = {
        method: geodesic_ball(field, x, rim, 0.2, method=method, resolution=16)
        for method in ("exp", "eikonal", "heat")
    }
    size = area(found["exp"])
    torch.testing.assert_close(area(found["eikonal"]), size, rtol=2e-3, atol=0)
    torch.testing.assert_close(area(found["heat"]), size, rtol=2e-2, atol=0)
    for method, tolerance in (("eikonal", 2e-3), ("heat", 2e-2)):
        ball = found[method]
        level = field.distance(x.expand_as(ball), ball)
        assert (level / 0.2 - 1).abs().max() < tolerance


@pytest.mark.slow
def test_the_default_resolution_falls_with_the_dimension():
    for metric, resolution in ((np.diag([1.0, 2.0]), 24), (np.diag([1.0, 2.0, 0.5]), 8)):
        d = len(metric)
        slower = np.linspace(1.0, 1.5, 6).reshape(-1, *(1,) * (d + 1))
        field = GridMetric(np.broadcast_to(slower * metric, (*(6,) * d, d, d)))
        x = np.full(d, 2.4)
        ball, same = (
            geodesic_ball(field, x, np.eye(d), method="eikonal", **options)
            for options in ({}, {"resolution": resolution})
        )
        np.testing.assert_array_equal(ball, same)
        assert abs(field.at(x).norm(ball - x) - 1).max() < 0.2


@pytest.mark.parametrize("method", ["exp", "eikonal", "heat"])
def test_no_centres_no_balls(method):
    field = GridMetric(np.broadcast_to(np.eye(2), (5, 5, 2, 2)))
    assert geodesic_ball(field, np.zeros((0, 2)), method=method).shape == (121, 0, 2)


def test_straight_rays_are_followed_to_the_level():
    field = pull_back()
    x = field.point(0.4, 0.6)
    reference = concentric(5)
    ball = geodesic_ball(field, x, reference, 0.3, method="eikonal")
    tangent = radial(field.at(x), torch.as_tensor(reference.points))
    along = (ball - x)[..., 0] * tangent[..., 1] - (ball - x)[..., 1] * tangent[..., 0]
    assert along.abs().max() < 1e-12
    assert torch.equal(ball[12], x)


@pytest.mark.slow
def test_a_ball_larger_than_its_first_window():
    # F = exp(-x_1) |v|: to the right, s is at distance 1 - exp(-s), and a radius of 1 has no end.
    field = FunctionMetric(
        lambda x: Riemannian(torch.exp(-2 * x[..., 1:, None]) * torch.eye(2).double())
    )
    x, sides = torch.zeros(2).double(), torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double()
    ball = geodesic_ball(field, x, sides, 0.95, method="eikonal", resolution=16)
    np.testing.assert_allclose(ball[:, 1], [np.log(20), -np.log(1.95)], rtol=2e-2)
    with pytest.raises(ValueError, match="reaches beyond 12 times the size of its tangent ball"):
        geodesic_ball(field, x, sides, 1.5, method="eikonal", resolution=4)


@pytest.mark.parametrize("wind", [(0.9, 0.0), (0.0, -0.9), (-0.6, 0.7)])
def test_the_first_window_is_around_the_ball_and_not_around_its_centre(wind, monkeypatch):
    metric = Randers.from_zermelo(np.diag([0.25, 4.0]), np.array([2.0, 0.5]) * wind)
    field = GridMetric.from_metric(metric, (9, 7), spacing=(0.5, 2.0), origin=(-1.0, 3.0))
    x, rim = np.array([1.0, 9.0]), polar(1, 12)
    # No window is tried but one that is little larger than the ball.
    monkeypatch.setattr(_windows, "_MARGINS", (1.1,))
    ball = geodesic_ball(field, x, rim, 0.8, method="eikonal", resolution=20)
    np.testing.assert_allclose(ball, x + 0.8 * radial(metric, rim.points), atol=1e-9)


@pytest.mark.parametrize("method", ["exp", "eikonal", "heat"])
def test_balls_are_of_distances_from_the_centre_on_grids_of_uneven_spacing(method):
    # The Funk metric: the way back is of another length, and either axis has its own.
    truth = funk()
    field = GridMetric.from_function(
        truth.metric, (61, 31), spacing=(0.02, 0.04), origin=(-0.6, -0.6)
    )
    x, rim = torch.tensor([0.3, -0.1]).double(), polar(1, 16)
    ball = geodesic_ball(field, x, rim, 0.2, method=method, steps=16, resolution=16)
    there, back = truth.distance(x.expand_as(ball), ball), truth.distance(ball, x.expand_as(ball))
    assert (there / 0.2 - 1).abs().max() < 0.02
    assert (back / 0.2 - 1).abs().max() > 0.2


# Symmetries.


@pytest.mark.parametrize("method", ["exp", "eikonal"])
def test_transposes_and_flips_carry_balls_along(method):
    M, omega = smooth_field(shape=(8, 8))
    field = GridMetric(M[0], omega[0])
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).double()
    points = torch.as_tensor(sunflower(12).points)
    ball = geodesic_ball(field, x, points, method=method, resolution=12)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    flip = torch.diag(torch.tensor([-1.0, 1.0])).double()
    shift = torch.tensor([7.0, 0.0]).double()
    for J, turned, move in (
        (swap, lambda u: u.transpose(0, 1), 0.0),
        (flip, lambda u: u.flip(0), shift),
    ):
        other = GridMetric(turned(J @ field.M @ J), turned(field.omega @ J))
        same = geodesic_ball(other, x @ J + move, points @ J, method=method, resolution=12)
        torch.testing.assert_close(same, ball @ J + move, rtol=0, atol=1e-9)


def test_a_batch_of_fields_and_nodes_by_default():
    M, omega = smooth_field(3)
    both = GridMetric(M, omega)
    ball = geodesic_ball(both, reference=concentric(3))
    assert ball.shape == (9, 3, 9, 8, 2)
    one = GridMetric(M[1], omega[1])
    torch.testing.assert_close(ball[:, 1], geodesic_ball(one, reference=concentric(3)))
    centres = one.nodes()[2:4, 3:4]
    level = geodesic_ball(
        both, centres.expand(3, 2, 1, 2), concentric(3), method="eikonal", resolution=10
    )
    assert level.shape == (9, 3, 2, 1, 2)
    alone = geodesic_ball(one, centres, concentric(3), method="eikonal", resolution=10)
    torch.testing.assert_close(level[:, 1], alone)


# Beyond cut points.


def cylinder(drift=0.0):
    """Return the field ``|dx| / |x| + drift d(angle)``: a flat cylinder, and its distance.

    In the coordinates (log |x|, angle) the metric is constant. The geodesics that go around it
    either way meet at the angles ``pi (1 - drift)`` and, the other way, ``pi (1 + drift)``, first
    at the length ``pi (1 - drift^2)``.
    """

    def metric(x):
        square = (x * x).sum(-1)[..., None]
        turn = torch.stack((-x[..., 1], x[..., 0]), dim=-1)
        return Randers(
            torch.eye(2, dtype=x.dtype) / square[..., None], drift * turn / square, validate=False
        )

    def distance(x, y):
        angle = torch.atan2(y[..., 1], y[..., 0]) - torch.atan2(x[..., 1], x[..., 0])
        rise = torch.log(y.norm(dim=-1) / x.norm(dim=-1))
        turns = angle[..., None] + 2 * torch.pi * torch.arange(-2, 3).double()
        return (torch.hypot(rise[..., None], turns) + drift * turns).amin(-1)

    return FunctionMetric(metric), distance


def sphere():
    """Return the unit sphere in stereographic coordinates, and its distance."""

    def metric(x):
        scale = 4 / (1 + (x * x).sum(-1)) ** 2
        return Riemannian(scale[..., None, None] * torch.eye(2, dtype=x.dtype), validate=False)

    def distance(x, y):
        across = x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]
        far = torch.hypot(1 + (x * y).sum(-1), across)
        return 2 * torch.atan2((y - x).norm(dim=-1), far)

    return FunctionMetric(metric), distance


def named(field, x, reference, radius, **options):
    """Return the samples, their lengths, and which of them a warning names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ball = geodesic_ball(field, x, reference, radius, **options)
    carry = {"radial": radial, "affine": affine}[options.get("map", "radial")]
    lead = torch.as_tensor(reference.points).reshape(-1, *(1,) * (x.ndim - 1), x.shape[-1])
    lengths = field.at(x).norm(radius * carry(field.at(x), lead))
    flags = torch.zeros(lengths.shape, dtype=torch.bool)
    for each in caught:
        assert isinstance(each.message, InjectivityWarning)
        flags[tuple(each.message.samples.T)] = True
        np.testing.assert_array_equal(
            each.message.centres, np.argwhere(np.atleast_1d(flags.any(0).numpy()))
            if x.ndim > 1 else np.zeros((1, 0)),
        )  # fmt: skip
    return ball, lengths, flags


@pytest.mark.parametrize(
    ("surface", "start", "reference", "radius", "map"),
    [
        (cylinder(), (1.0, 0.0), polar(10, 36), 4.0, "radial"),
        (cylinder(), (1.0, 0.0), polar(1, 60), 4.0, "radial"),
        (cylinder(0.6), (1.0, 0.3), polar(8, 24), 3.0, "radial"),
        (cylinder(0.6), (1.0, 0.3), lattice(7), 1.8, "affine"),
        pytest.param(sphere(), (0.9, 0.5), polar(1, 6), 3.5, "radial", marks=pytest.mark.slow),
    ],
)
def test_samples_beyond_a_cut_point_are_named(surface, start, reference, radius, map):
    field, distance = surface
    x = torch.tensor(start).double()
    ball, lengths, flags = named(field, x, reference, radius, map=map)
    short = distance(x.expand_as(ball), ball) / lengths
    assert flags.any()
    assert (short[flags] < 1 - 1e-6).all()
    assert (flags[short < 0.95]).all()


@pytest.mark.parametrize(
    ("surface", "start", "reference", "radius"),
    [
        (cylinder(), (1.0, 0.0), polar(10, 36), 3.1),
        (cylinder(), (1.0, 0.0), polar(1, 60), 2.8),
        (cylinder(0.6), (1.0, 0.3), polar(8, 24), 0.98 * torch.pi * 0.64),
        pytest.param(sphere(), (0.9, 0.5), polar(1, 6), 3.1, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_named_within_the_injectivity_radius(surface, start, reference, radius):
    field, distance = surface
    x = torch.tensor(start).double()
    ball, lengths, flags = named(field, x, reference, radius)
    assert not flags.any()
    torch.testing.assert_close(distance(x.expand_as(ball), ball), lengths, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_samples_beyond_a_cut_point_are_named_in_space():
    # The cylinder times a line: the same geodesics, at every height.
    def metric(x):
        across = 1 / (x[..., :2] * x[..., :2]).sum(-1, keepdim=True).expand(*x.shape[:-1], 2)
        M = torch.diag_embed(torch.cat((across, torch.ones_like(x[..., :1])), -1))
        return Riemannian(M, validate=False)

    x = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 1.0]]).double()
    around = torch.linspace(0.1, 3.1, 7).double()
    directions = torch.stack((0 * around, torch.cos(around), torch.sin(around)), dim=-1)
    reference = torch.cat((0.5 * directions, directions))
    field = FunctionMetric(metric, 3)
    with pytest.warns(InjectivityWarning, match="of 28 samples.* 2 of 2 centres") as record:
        geodesic_ball(field, x, reference, 4.0)
    # Those that go more than half around the axis.
    v = 4 * radial(field.at(x), reference[:, None])
    beyond = np.argwhere((v[..., 1] / x[:, 0]).abs().numpy() > torch.pi)
    assert record[0].message.samples.tolist() == beyond.tolist()


def test_a_batch_of_fields_names_its_own_centres():
    # A slow spot: geodesics that pass it on both sides cross behind it.
    ys, xs = np.mgrid[:33, :33]
    n = 1 + 4 * np.exp(-((ys - 16) ** 2 + (xs - 16) ** 2) / 8)
    plain = np.ones_like(n)
    field = GridMetric(np.stack((plain, n))[..., None, None] ** 2 * np.eye(2) / 100)
    x = np.array([[16.0, 8.0], [16.0, 16.0], [4.0, 4.0]])
    with pytest.warns(InjectivityWarning, match=r"1 of 6 centres.*index \(1, 0\)") as record:
        folded = geodesic_ball(field, np.stack((x, x)), polar(8, 32), 3.0, steps=64)
    assert record[0].message.centres.tolist() == [[1, 0]]
    # Only behind the spot, where fast marching finds shorter ways.
    fast = distance(GridMetric(field.M[1]), x[:1])
    for sample, *_ in record[0].message.samples:
        nearest = np.rint(folded[sample, 1, 0]).astype(int)
        assert nearest[1] > 16
        if (nearest < 33).all() and (nearest >= 0).all():
            assert fast[tuple(nearest)] < 3.0 * np.linalg.norm(polar(8, 32).points[sample])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        geodesic_ball(field, np.stack((x, x)), polar(8, 32), 0.5)


# Balls that straight rays do not fill.


def true_cover(field, x, rim, radius, spacing):
    """Return the part of ``{d <= radius}`` inside the polygon ``rim``, on a fine grid around it."""
    half = 1.1 * radius
    n = int(2 * half / spacing) + 1
    fine = GridMetric.from_function(
        lambda y: field.function(y), (n, n), spacing=spacing, origin=tuple((x - half).tolist())
    )
    inside = distance(fine, x) <= radius
    nodes = fine.nodes().reshape(-1, 2)
    held = Path(rim.numpy()).contains_points(np.asarray(nodes)).reshape(n, n)
    return float((np.asarray(inside) & held).sum() / np.asarray(inside).sum())


def slow_wall(x):
    """Return the metric of a plane with a slow wall of length 1.6 at (0, 0.8)."""
    wall = torch.exp(-(((x[..., 1] - 0.8) / 0.2) ** 2))
    slowness = 1 + 10 * wall * torch.sigmoid((0.8 - x[..., 0].abs()) / 0.05)
    return Riemannian(slowness[..., None, None] ** 2 * torch.eye(2, dtype=x.dtype))


def bent_valley(x):
    """Return the metric of a fast circle of radius 1 in a slow plane."""
    slowness = 1 + 9 * (1 - torch.exp(-(((x.norm(dim=-1) - 1) / 0.25) ** 2)))
    return Riemannian(slowness[..., None, None] ** 2 * torch.eye(2, dtype=x.dtype))


@pytest.mark.parametrize("method", ["eikonal", "heat"])
def test_a_ball_that_is_not_star_shaped_is_named(method):
    # The wall casts a shadow, which the ball reaches around its ends.
    field, x = FunctionMetric(slow_wall), torch.zeros(2).double()
    with pytest.warns(StarShapeWarning, match="reach at most .*not star-shaped") as record:
        ball = geodesic_ball(field, x, polar(1, 180), 2.5, method=method, resolution=16)
    share = true_cover(field, x, ball, 2.5, 0.05)
    assert share < 0.95
    assert share - 0.02 < record[0].message.covered < share + 0.06
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        geodesic_ball(field, x, polar(1, 180), 0.2, method=method, resolution=16)


def test_samples_that_miss_their_distances_are_named():
    # The window is too coarse for the valley; its samples are measured on one four times finer.
    field, x = FunctionMetric(bent_valley), torch.tensor([0.0, 1.0]).double()
    with pytest.warns(StarShapeWarning, match="of the distances that they should have") as record:
        ball = geodesic_ball(field, x, polar(1, 180), 1.0, method="eikonal", resolution=12)
    fine = GridMetric.from_function(bent_valley, (301, 301), spacing=0.01, origin=(-1.5, -0.5))
    at = (ball - torch.tensor([-1.5, -0.5])) / 0.01
    levels = map_coordinates(np.asarray(distance(fine, x)), at.numpy().T, order=1)
    # An estimate, from two resolutions that are both too low.
    off, estimate = 1 - levels.min(), 1 - record[0].message.levels[0, 0]
    assert off > 0.1
    assert 0.5 * off < estimate < 2 * off


# Displacements for a layer.


@pytest.mark.slow
@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_positions_are_those_of_the_reference(map, dtype):
    M, omega = (u.to(dtype).requires_grad_() for u in smooth_field(2))
    points = torch.as_tensor(concentric(5).points).to(dtype)
    results = []
    for compiled in (True, False):
        out = geodesic_positions(M, omega, points, map=map, compiled=compiled)
        assert out.shape == (2, 9, 8, 25, 2)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out, (M, omega), normal(*out.shape).to(dtype))
        results.append((out, *gradients))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for a, b in zip(*results, strict=True):
        scale = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def test_positions_are_the_balls():
    M, omega = smooth_field(2)
    out = geodesic_positions(M, omega, torch.as_tensor(lattice(3).points), steps=8)
    field = GridMetric(M, omega)
    ball = geodesic_ball(field, reference=lattice(3), steps=8)
    torch.testing.assert_close(out, (ball - field.nodes()).movedim(0, -2))


def test_positions_at_other_centres_and_spacings():
    M, omega = smooth_field(2)
    points = torch.as_tensor(lattice(3).points)
    options = {"spacing": 2.0, "origin": (1.0, -3.0)}
    centres = torch.tensor([[[3.0, 1.0], [4.2, 6.5]]]).double()
    out = geodesic_positions(M, omega, points, centres=centres, steps=8, **options)
    assert out.shape == (2, 1, 2, 9, 2)
    field = GridMetric(M, omega, **options)
    ball = geodesic_ball(field, centres.expand(2, 1, 2, 2), lattice(3), steps=8)
    torch.testing.assert_close(out, (ball - centres).movedim(0, -2))
    nodes = geodesic_positions(M, omega, points, steps=8, **options)
    torch.testing.assert_close(out[:, 0, 0], nodes[:, 1, 2])


def test_without_a_form_it_is_riemannian():
    M, _ = smooth_field(1)
    points = torch.as_tensor(concentric(3).points)
    for compiled in (True, False):
        torch.testing.assert_close(
            geodesic_positions(M, None, points, compiled=compiled),
            geodesic_positions(M, torch.zeros_like(M[..., 0]), points, compiled=compiled),
        )


def test_points_on_one_ray_share_a_geodesic():
    M, omega = smooth_field(1)
    points = torch.as_tensor(lattice(5).points)
    shared = fan(points, steps=16)
    assert shared.schedule.rays == 17
    alone = fan(points.clone().requires_grad_(), steps=16)
    assert alone.schedule.rays == 25
    together, apart = (geodesic_positions(M, omega, f) for f in (shared, alone))
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    assert torch.equal(together[..., 12, :], torch.zeros_like(together[..., 12, :]))


def test_equal_points_are_equal_samples():
    M, omega = smooth_field(1)
    points = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.5], [0.0, 0.0]]).double()
    out = geodesic_positions(M, omega, points)
    assert torch.equal(out[..., 1, :], out[..., 4, :])
    torch.testing.assert_close(out[..., 0, :], out[..., 2, :], rtol=0, atol=1e-4)


def test_gradients_of_positions_are_those_of_differences():
    M, omega = smooth_field(1, (4, 5))
    points = torch.as_tensor(concentric(3).points)[[0, 1, 3]]

    def positions(M, omega, points):
        return geodesic_positions((M + M.mT) / 2, omega, points, steps=2)

    inputs = [u.clone().requires_grad_() for u in (M, omega, points)]
    assert torch.autograd.gradcheck(positions, inputs, fast_mode=True)


@pytest.mark.parametrize("method", ["exp", "eikonal", "heat"])
def test_gradients_of_balls_are_those_of_differences(method):
    M, omega = smooth_field(1, (6, 6))
    x = torch.tensor([2.6, 2.3]).double()
    along = normal(*M[0].shape, seed=5), normal(*omega[0].shape, seed=6)
    along = ((along[0] + along[0].mT) / 2, along[1])
    weight = normal(9, 2, seed=7)

    def value(t):
        field = GridMetric(M[0] + t * along[0], omega[0] + t * along[1], validate=False)
        options = {"steps": 4} if method == "exp" else {"resolution": 12}
        return (weight * geodesic_ball(field, x, lattice(3), method=method, **options)).sum()

    t = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)
    h = 1e-5
    with torch.no_grad():
        difference = (value(torch.tensor(h).double()) - value(torch.tensor(-h).double())) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exp", "eikonal"])
def test_gradients_in_space_and_in_the_centres(method):
    field = pull_back_3d().grid(5)
    x = pull_back_3d().point(0.42, 0.53, 0.61)
    along, weight = normal(3, seed=5), normal(4, 3, seed=7)
    points = torch.tensor([[0.0, 0.0, 0.0], [1, 0, 0], [0, 0.5, 0], [0.3, 0.2, -0.6]]).double()

    def value(t):
        there = x + t * along
        ball = geodesic_ball(field, there, points, 0.3, method=method, resolution=4, steps=8)
        return (weight * ball).sum()

    t = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)
    h = 1e-6
    with torch.no_grad():
        difference = (value(torch.tensor(h).double()) - value(torch.tensor(-h).double())) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", [pytest.param("exp", marks=pytest.mark.slow), "eikonal"])
def test_second_derivatives_are_refused_or_right(method):
    M, omega = smooth_field(1, (6, 6))
    x, points = torch.tensor([2.6, 2.3]).double(), lattice(3)

    def value(t, **options):
        field = GridMetric((1 + t * t + t) * M[0], omega[0], **options)
        return geodesic_ball(field, x, points, method=method, resolution=4, steps=2)[0, 0]

    t = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"first derivatives only.*interpolation='cubic'"):
        torch.autograd.grad(torch.autograd.grad(value(t), t, create_graph=True)[0], t)
    if method == "exp":
        assert torch.autograd.gradgradcheck(lambda t: value(t, interpolation="cubic"), t)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_positions():
    M, omega = smooth_field(2)
    rays = fan(concentric(5).points)
    results = []
    for device in ("cpu", "cuda"):
        inputs = [u.to(device).requires_grad_() for u in (M, omega)]
        out = geodesic_positions(*inputs, rays)
        gradients = torch.autograd.grad(out, inputs, normal(*out.shape).to(device))
        results.append([u.cpu() for u in (out, *gradients)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(a.detach().abs().max()))


@pytest.mark.slow
@pytest.mark.uninstrumented
def test_positions_compile_in_one_graph():
    M, omega = (u.float() for u in smooth_field(1))
    rays = fan(concentric(3).points, steps=2)  # each step is traced

    def positions(M, omega):
        return geodesic_positions(M, omega, rays)

    compiled = torch.compile(positions, fullgraph=True, backend="aot_eager")
    M.requires_grad_()
    torch.testing.assert_close(compiled(M, omega), positions(M, omega))
    (slope,) = torch.autograd.grad(compiled(M, omega).sum(), M)
    (expected,) = torch.autograd.grad(positions(M, omega).sum(), M)
    torch.testing.assert_close(slope, expected)


# What is refused.


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros(2),), {"method": "ball"}, "method: expected"),
        ((np.zeros(2),), {"map": "straight"}, "map: expected"),
        ((np.zeros(2),), {"radius": 0.0}, "radius: expected a positive number"),
        ((np.zeros(2),), {"radius": float("nan")}, "radius: expected a positive number"),
        ((np.zeros(2),), {"steps": 0}, "steps: expected"),
        ((np.zeros(2),), {"resolution": 0}, "resolution: expected"),
        ((np.zeros(3),), {}, r"centres: expected shape \(..., 2\), got \(3,\)"),
        ((np.array([[0, 0], [np.inf, 0]]),), {}, r"centres: expected finite.*index \(1,\)"),
        ((np.zeros(2), np.zeros((4, 3))), {}, "reference: expected points of shape"),
        ((np.zeros(2), np.zeros((0, 2))), {}, "reference: expected points of shape"),
        ((np.zeros(2), np.full((4, 2), np.nan)), {}, "reference: expected finite"),
    ],
)
def test_what_is_wrong_is_named(arguments, options, message):
    field = GridMetric(np.broadcast_to(np.eye(2), (5, 5, 2, 2)))
    with pytest.raises(ValueError, match=message):
        geodesic_ball(field, *arguments, **options)


@pytest.mark.unchecked
def test_what_has_no_default_is_named():
    with pytest.raises(ValueError, match="centres: a field without a grid"):
        geodesic_ball(half_plane())
    space = constant(np.eye(3)).grid(4)
    with pytest.raises(ValueError, match="reference: there is no default in dimension 3"):
        geodesic_ball(space)
    many = GridMetric(*smooth_field(3))
    with pytest.raises(ValueError, match=r"centres: expected shape \(3, ..., 2\)"):
        geodesic_ball(many, torch.zeros(4, 2).double())
    assert geodesic_ball(space, torch.ones(3).double(), balls.lattice((3, 3, 3))).shape == (27, 3)


@pytest.mark.parametrize("method", ["exp", "eikonal", "heat"])
def test_a_field_of_numpy_takes_centres_of_every_kind(method):
    field = GridMetric(np.broadcast_to(np.diag([1.0, 4.0]), (9, 9, 2, 2)))
    expected = [[4.0, 4.5], [5.0, 4.0], [4.0, 3.5], [3.0, 4.0]]
    for centre in ((4, 4), [4.0, 4], np.unravel_index(40, (9, 9)), np.array([4.0, 4.0])):
        ball = geodesic_ball(field, centre, polar(1, 4), method=method)
        assert isinstance(ball, np.ndarray)
        np.testing.assert_allclose(ball, expected, atol=1e-9 if method != "heat" else 0.05)


# Where a ball folds.


def lens(x):
    """A slow spot in the plane: geodesics that pass it cross behind it."""
    slowness = 1 + 1.2 * torch.exp(-(x * x).sum(-1) / 0.5)
    return Riemannian(slowness[..., None, None] ** 2 * torch.eye(2, dtype=x.dtype), validate=False)


@cache
def length_to_the_cusp(start, ahead):
    """Return the length at which the lens's geodesics first cross."""
    start, ahead = torch.tensor((start, ahead)).double()
    return float(conjugate_time(FunctionMetric(lens), start, 5 * ahead, steps=32)) * 5


@pytest.mark.parametrize("gridded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_ball_says_where_it_folds(gridded):
    field = FunctionMetric(lens)
    start, ahead = torch.tensor([[0.0, -2.0], [0.0, 1.0]]).double()
    first = length_to_the_cusp((0.0, -2.0), (0.0, 1.0))
    if gridded:
        field = GridMetric.from_function(lens, (161, 161), spacing=0.05, origin=-4.0)
    # Samples on the rim alone, one of them a little behind the tip of the cusp, where the
    # crossing geodesics are hardly shorter.
    reference = torch.stack((ahead, -ahead, ahead.flip(0), 0.9 * ahead))
    with pytest.warns(InjectivityWarning, match="1 lie beyond a conjugate point") as record:
        geodesic_ball(field, start, reference, 1.08 * first, steps=32)
    warning = record[0].message
    assert warning.samples.tolist() == [[0]]
    assert warning.folds == pytest.approx([1 / 1.08], rel=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        geodesic_ball(field, start, reference, 0.98 * first, steps=32)


@pytest.mark.skipif(torch.__version__ < "2.8", reason="exported to ONNX since PyTorch 2.8")
@pytest.mark.parametrize("points", [lattice(5), polar(2, 3, centre=True)], ids=["lattice", "polar"])
@pytest.mark.parametrize("riemannian", [False, True])
def test_the_loop_for_onnx_takes_the_same_steps(points, riemannian, monkeypatch):
    """Rays that leave the grid, and points that are reached on the way to others."""
    M, omega = smooth_field(batch=2, shape=(5, 4))
    omega = None if riemannian else omega
    points = torch.as_tensor(points.points)
    expected = geodesic_positions(M, omega, points, spacing=(1.0, 0.5), compiled=False)
    monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
    found = geodesic_positions(M, omega, points, spacing=(1.0, 0.5), compiled=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
