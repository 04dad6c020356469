"""Travel times of boats against the law of cosines."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finslerconv.geodesics import GridMetric, distance
from finslerconv.metrics import Randers
from finslerconv.physics import zermelo_metric


@given(
    speed=st.floats(0.5, 20),
    ratio=st.floats(0, 0.95),
    wind_angle=st.floats(-4, 4),
    angle=st.floats(-4, 4),
)
def test_speed_over_the_ground(speed, ratio, wind_angle, angle):
    """The boat's own velocity is that over the ground less the wind: its length is speed."""
    wind = ratio * speed * np.array([math.sin(wind_angle), math.cos(wind_angle)])
    direction = np.array([math.sin(angle), math.cos(angle)])
    time = float(zermelo_metric(wind, speed).norm(direction))
    assert np.linalg.norm(direction / time - wind) == pytest.approx(speed, rel=1e-10)


def test_in_space_with_speeds_of_places():
    random = np.random.default_rng(0)
    wind, speed = random.uniform(-1, 1, (3, 4, 2, 3)), random.uniform(2, 3, (3, 4, 2))
    metric = zermelo_metric(wind, speed)
    assert (metric.batch_shape, metric.dim) == ((3, 4, 2), 3)
    v = random.standard_normal(3)
    over_ground = v / metric.norm(v)[..., None]
    np.testing.assert_allclose(np.linalg.norm(over_ground - wind, axis=-1), speed, rtol=1e-12)
    # A speed for each column broadcasts.
    one = zermelo_metric(wind, speed[:1, :1])
    np.testing.assert_array_equal(one.M[2, 3], zermelo_metric(wind[2, 3], speed[0, 0]).M)


def test_there_and_back_in_a_river():
    """Downstream at 2 + 1, upstream at 2 - 1, across at sqrt(2^2 - 1^2)."""
    wind = np.zeros((9, 9, 2))
    wind[..., 1] = 1.0
    times = distance(GridMetric.from_metric(zermelo_metric(wind, 2.0)), (4, 4))
    assert times[4, 8] == pytest.approx(4 / 3, rel=1e-9)
    assert times[4, 0] == pytest.approx(4, rel=1e-9)
    assert times[0, 4] == pytest.approx(4 / math.sqrt(3), rel=1e-9)


def test_land_is_not_looked_at():
    wind = np.array([[[0.5, 0.0], [np.nan, np.nan]], [[9.0, 0.0], [0.0, 0.5]]])
    sea = np.array([[True, False], [False, True]])
    metric = zermelo_metric(wind, np.array([[1.0, np.nan], [0.0, 1.0]]), mask=sea)
    metric.validate()
    np.testing.assert_array_equal(metric.M[0, 1], np.eye(2))
    np.testing.assert_array_equal(metric.omega[0, 1], np.zeros(2))
    np.testing.assert_allclose(metric.zermelo().W[sea], wind[sea])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_gradients(dtype):
    wind = torch.tensor([[0.3, -0.2], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    metric = zermelo_metric(wind, 1.5, mask=torch.tensor([True, False]))
    assert isinstance(metric, Randers)
    assert metric.M.dtype == dtype
    (gradient,) = torch.autograd.grad(
        metric.norm(torch.tensor([1.0, 0.0], dtype=dtype)).sum(), wind
    )
    assert gradient[0].abs().min() > 0
    assert not gradient[1].any()
    if dtype == torch.float64:
        speed = torch.tensor([1.5, 2.0], dtype=dtype, requires_grad=True)
        inputs = (torch.tensor([[0.3, -0.2], [0.0, 0.0]], dtype=dtype, requires_grad=True), speed)
        assert torch.autograd.gradcheck(lambda w, s: zermelo_metric(w, s).M, inputs)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            ([[[0.0, 0.5], [0.0, 3.0]], [[4.0, 0.0], [0.0, 0.0]]], 3.0),
            {},
            ValueError,
            r"wind: expected a wind weaker than the boat, \|wind\| < speed, got a wind of 3 "
            r"against 3 at index \(0, 1\) \(and at 1 other places\); leave such places out by mask",
        ),
        (([[0.0, math.nan]], 1.0), {}, ValueError, r"wind of nan against 1 at index \(0,\);"),
        (([0.0, 0.0], 0.0), {}, ValueError, "speed: expected positive numbers, got 0.0; a boat"),
        (([0.0, 0.0], "fast"), {}, TypeError, "speed: expected an array"),
        (([[0.0, 0.0]], np.ones(3)), {}, ValueError, r"speed: .* shape \(1,\), got an array of"),
        (([[0.0, 0.0]], 1.0), {"mask": [True]}, TypeError, "mask: expected a boolean array"),
        (
            ([[0.0, 0.0]], 1.0),
            {"mask": np.array([True, False])},
            ValueError,
            r"mask: expected a shape that broadcasts to \(1,\), got \(2,\)",
        ),
    ],
)
def test_errors(arguments, options, error, message):
    wind, speed = arguments
    with pytest.raises(error, match=message):
        zermelo_metric(np.array(wind), speed, **options)
    with pytest.raises(TypeError, match="wind: expected a real floating"):
        zermelo_metric(np.zeros((2, 2), int), 1.0)
