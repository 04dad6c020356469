"""Walking times against Tobler's function and the hulls of its speeds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from finslerconv.geodesics import GridMetric, distance
from finslerconv.metrics import AlphaBeta, Matsumoto
from finslerconv.physics import slope_metric

LEVEL = 6 / 3.6 * math.exp(-3.5 * 0.05)


def plane(gradient, shape=(6, 7), spacing=(1.0, 1.0)):
    """A terrain of constant gradient."""
    rows, columns = np.indices(shape)
    return gradient[0] * spacing[0] * rows + gradient[1] * spacing[1] * columns


def tobler(slope):
    """Speed in m/s."""
    return 6 / 3.6 * np.exp(-3.5 * np.abs(slope + 0.05))


def unit(angle):
    return np.array([math.sin(angle), math.cos(angle)])


@given(steepness=st.floats(0, 1 / 3.5), uphill=st.floats(-4, 4), angle=st.floats(-4, 4))
def test_gentle_slopes_are_toblers(steepness, uphill, angle):
    gradient = steepness * unit(uphill)
    metric = slope_metric(plane(gradient))[3, 3]
    time = float(metric.norm(unit(angle)))
    assert 1 / time == pytest.approx(float(tobler(gradient @ unit(angle))), rel=1e-9)


@pytest.mark.slow
@settings(max_examples=15)
@given(steepness=st.floats(0.05, 3.0))
def test_unit_balls_are_the_hulls_of_the_speeds(steepness):
    """The ball of the quickest zigzags: the convex hull of the velocities."""
    angles = np.linspace(0, 2 * math.pi, 40001)
    directions = np.stack((np.sin(angles), np.cos(angles)), -1)
    velocities = directions * tobler(steepness * np.sin(angles))[:, None]
    hull = ConvexHull(velocities)
    some = directions[::977]
    # The gauge of a polygon around the origin is the largest of its sides' linear functions.
    gauge = (some @ (hull.equations[:, :2] / -hull.equations[:, 2:]).T).max(-1)
    metric = slope_metric(plane((steepness, 0.0)))[3, 3]
    np.testing.assert_allclose(metric.norm(some), gauge, rtol=1e-6)
    metric.validate()


def test_steep_ways_cost_height_alone():
    metric = slope_metric(plane((2.0, 0.0)))[2, 2]
    straight, zigzag = np.array([1.0, 0.0]), np.array([1.0, 5.0])
    assert metric.norm(straight) == pytest.approx(float(metric.norm(zigzag)))
    # At the best slope, 1 / 3.5, a climb of 2 m takes 7 m on the map.
    assert metric.norm(straight) == pytest.approx(7 / float(tobler(1 / 3.5)))


def test_there_and_back():
    dem = 0.2 * np.arange(21.0)[:, None] * np.ones((21, 9)) * 30
    field = GridMetric.from_metric(slope_metric(dem, 30.0), spacing=30.0)
    up = distance(field, (0, 120))[20, 4]
    down = distance(field, (600, 120))[0, 4]
    assert up == pytest.approx(600 / float(tobler(0.2)), rel=1e-4)
    assert down == pytest.approx(600 / float(tobler(-0.2)), rel=1e-4)


def test_spacing_and_speed():
    gradient, spacing = (0.1, -0.2), (10.0, 25.0)
    metric = slope_metric(plane(gradient, spacing=spacing), spacing, speed=2.0)
    v = np.array([3.0, -1.0])
    expected = np.linalg.norm(v) / (tobler(v @ gradient / np.linalg.norm(v)) * 2.0 / LEVEL)
    np.testing.assert_allclose(metric.norm(v), np.full((6, 7), expected), rtol=1e-12)


def test_matsumoto():
    """Along the fall line, on a slope of angle e, the speed on the path is speed -+ pull sin e."""
    e = math.atan(0.4)
    metric = slope_metric(plane((0.4, 0.0)), model="matsumoto", speed=1.2, pull=0.9)[2, 2]
    assert isinstance(metric, Matsumoto)
    up, down = metric.norm(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert up == pytest.approx(1 / math.cos(e) / (1.2 - 0.9 * math.sin(e)))
    assert down == pytest.approx(1 / math.cos(e) / (1.2 + 0.9 * math.sin(e)))
    slope_metric(plane((50.0, 0.0)), model="matsumoto").validate()
    with pytest.raises(ValueError, match=r"omega: expected \|omega\|_\{M\^-1\} < 0.5"):
        slope_metric(plane((3.0, 0.0)), model="matsumoto", pull=0.9, speed=1.2)


def test_masked_heights_are_not_looked_at():
    dem = plane((0.1, 0.2))
    dem[2, 3] = np.nan
    here = np.isfinite(dem)
    metric = slope_metric(dem, mask=here)
    assert isinstance(metric, AlphaBeta)
    # Beside the hole derivatives are one-sided, so those of a plane stay right.
    expected = np.broadcast_to([0.1, 0.2], (6, 7, 2)) / LEVEL
    np.testing.assert_allclose(metric.omega[here], expected[here], rtol=1e-12)
    island = np.zeros((6, 7), bool)
    island[1, 1] = True
    np.testing.assert_array_equal(slope_metric(dem, mask=island).omega, 0.0)


def test_batches_tensors_and_gradients():
    dem = np.random.default_rng(0).uniform(0, 0.2, (2, 5, 4))
    metric = slope_metric(dem)
    assert metric.batch_shape == (2, 5, 4)
    torch.testing.assert_close(
        slope_metric(torch.from_numpy(dem)).omega, torch.from_numpy(metric.omega)
    )
    np.testing.assert_allclose(metric.omega[1], slope_metric(dem[1]).omega)
    assert slope_metric(dem.astype(np.float32)).M.dtype == np.float32
    v = torch.tensor([0.6, -0.8], dtype=torch.float64)
    dem = torch.from_numpy(dem).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: slope_metric(x).norm(v), dem)


def test_gradients_of_travel_times():
    dem = torch.from_numpy(plane((0.1, 0.05), (5, 5))).requires_grad_()
    field = GridMetric.from_metric(slope_metric(dem))
    distance(field, (0, 0))[4, 4].backward()
    # Raising the end of the climb makes the climb longer.
    assert dem.grad[4, 4] > 0
    assert dem.grad[0, 0] < 0


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dem": np.zeros((3, 3), np.int16)}, TypeError, "dem: expected a real floating-point"),
        (
            {"dem": np.zeros(3)},
            ValueError,
            r"dem: expected shape \(..., height, width\), got \(3,\)",
        ),
        (
            {"dem": np.array([[0.0, 1.0], [np.nan, 2.0]])},
            ValueError,
            r"dem: expected finite heights, got nan at index \(1, 0\); mask=isfinite\(dem\)",
        ),
        ({"spacing": 0.0}, ValueError, "spacing: expected a positive number"),
        ({"spacing": (1.0, 2.0, 3.0)}, ValueError, "spacing: expected a positive number, or two"),
        ({"model": "naismith"}, ValueError, "model: expected 'tobler' or 'matsumoto'"),
        ({"speed": -1.0}, ValueError, "speed: expected a positive number"),
        ({"pull": 0.1}, ValueError, "pull: expected None for 'tobler'"),
        ({"mask": np.ones((3, 3))}, TypeError, "mask: expected a boolean array"),
    ],
)
def test_errors(change, error, message):
    arguments = {"dem": np.zeros((3, 3)), **change}
    with pytest.raises(error, match=message):
        slope_metric(arguments.pop("dem"), **arguments)
