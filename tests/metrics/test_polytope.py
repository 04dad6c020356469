"""The exact metric of a convex hull, against linear programming and Qhull."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull
from torch import nn

from finslerconv.balls import lattice, radial, volume
from finslerconv.metrics import CallableMetric, FinslerMetric, Polytope, Randers
from finslerconv.nn import MetricConv2d
from finslerconv.ops import deform_conv2d


def clouds(seed, batch, n=9, d=2):
    """Return points around the origin, shape (batch, n, d)."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((batch, n, d))
    # A small cross-polytope keeps the origin inside.
    points[:, :d], points[:, d : 2 * d] = 0.3 * np.eye(d), -0.3 * np.eye(d)
    return points


def gauge(points, v):
    """Return the least total weight with which the points make up v: a linear programme."""
    found = linprog(np.ones(len(points)), A_eq=points.T, b_eq=v)
    assert found.success
    return found.fun


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_norm_is_the_gauge(seed, d):
    points = clouds(seed, 2, n=10, d=d)
    v = np.random.default_rng(seed + 1).standard_normal((3, 2, d))
    norm = Polytope(points).norm(v)
    assert norm.shape == (3, 2)
    for i in range(3):
        for b in range(2):
            assert norm[i, b] == pytest.approx(gauge(points[b], v[i, b]), rel=1e-7)


@pytest.mark.parametrize("d", [2, 3])
def test_facets_are_those_of_qhull(d):
    points = clouds(0, 60, n=12, d=d)
    v = np.random.default_rng(1).standard_normal((20, 60, d))
    norm = Polytope(points).norm(v)
    for b in range(60):
        planes = ConvexHull(points[b]).equations
        expected = (v[:, b] @ (-planes[:, :d] / planes[:, d:]).T).max(axis=-1)
        assert norm[:, b] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("d", [2, 3])
def test_lattice_is_the_maximum_norm(d):
    """Its facets hold many points, on lines and planes."""
    metric = Polytope(lattice((5,) * d).points)
    v = np.random.default_rng(2).standard_normal((50, d))
    assert metric.facets.shape == (2 * d, d)
    assert metric.norm(v) == pytest.approx(np.abs(v).max(axis=-1), rel=1e-14)
    assert metric.dual_norm(v) == pytest.approx(np.abs(v).sum(axis=-1), rel=1e-14)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_it_is_a_metric_with_that_ball(seed):
    points = clouds(seed, 3)
    metric = Polytope(points)
    metric.validate()
    samples = np.moveaxis(points, 1, 0)
    assert (metric.norm(samples) <= 1 + 1e-12).all()
    assert metric.norm(samples).max(axis=0) == pytest.approx(1, abs=1e-12)
    middle = (samples[:, None] + samples[None]) / 2
    assert (metric.norm(middle) <= 1 + 1e-12).all()


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_dual_reverse_and_asymmetry(seed):
    metric = Polytope(clouds(seed, 3))
    v = np.random.default_rng(seed).standard_normal((5, 3, 2))
    by_search = CallableMetric(metric.norm)
    assert metric.dual_norm(v) == pytest.approx(by_search.dual_norm(v), rel=1e-6)
    dual = metric.dual()
    assert isinstance(dual, Polytope)
    assert dual.norm(v) == pytest.approx(metric.dual_norm(v), rel=1e-12)
    assert dual.dual_norm(v) == pytest.approx(metric.norm(v), rel=1e-12)
    # The polar polygon, made from its own corners.
    assert Polytope(metric.facets).norm(v) == pytest.approx(metric.dual_norm(v), rel=1e-9)
    assert (metric.reverse().norm(v) == metric.norm(-v)).all()
    ratio = metric.asymmetry_ratio()
    assert (ratio >= FinslerMetric.asymmetry_ratio(metric) - 1e-9).all()
    angles = np.linspace(0, 2 * np.pi, 20001)
    u = np.stack((np.sin(angles), np.cos(angles)), axis=-1)[:, None]
    assert ratio == pytest.approx((metric.norm(-u) / metric.norm(u)).max(axis=0), rel=2e-2)


def test_ball_of_many_samples_is_that_of_their_metric():
    true = Randers(np.array([[0.6, 0.1], [0.1, 0.2]]), np.array([0.2, -0.1]))
    angles = 2 * np.pi * np.arange(200) / 200
    circle = np.stack((np.sin(angles), np.cos(angles)), axis=-1)
    metric = Polytope(true.indicatrix(circle))
    assert metric.norm(circle) == pytest.approx(true.norm(circle), rel=1e-12)
    assert volume(metric) == pytest.approx(volume(true), rel=1e-3)
    assert metric.asymmetry_ratio() == pytest.approx(true.asymmetry_ratio(), rel=1e-3)


def test_coincident_and_collinear_points_do_no_harm():
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    nearly = square * (1 + 1e-16 * np.arange(4)[:, None]) + 1e-16
    points = np.concatenate((square, square, nearly, (square + square[[1, 2, 3, 0]]) / 2))
    v = np.random.default_rng(3).standard_normal((50, 2))
    assert Polytope(points).norm(v) == pytest.approx(np.abs(v).max(axis=-1), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
def test_gradients_in_points_and_vectors(d):
    points = torch.as_tensor(clouds(4, 2, n=8, d=d)).requires_grad_()
    v = torch.as_tensor(np.random.default_rng(5).standard_normal((3, 2, d))).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, v: Polytope(p).norm(v), (points, v))
    assert torch.autograd.gradcheck(lambda p, v: Polytope(p).dual_norm(v), (points, v))


def test_fields_kinds_and_indices():
    points = torch.as_tensor(clouds(6, 6), dtype=torch.float32).reshape(2, 3, 9, 2)
    metric = Polytope(points)
    assert metric.batch_shape == (2, 3)
    assert metric.dim == 2
    assert metric.norm(torch.ones(5, 1, 1, 2)).dtype == torch.float32
    one = metric[1, 2]
    assert one.batch_shape == ()
    assert torch.equal(one.norm(points[1, 2]), Polytope(points[1, 2]).norm(points[1, 2]))
    assert "batch_shape=(2, 3)" in repr(metric)


class Deformed(nn.Module):
    """The hull of a deformable kernel's taps as a metric."""

    def __init__(self, channels):
        super().__init__()
        self.offsets = nn.Conv2d(channels, 18, 3, padding=1)
        self.taps = torch.as_tensor(lattice(3).points)

    def forward(self, x):
        offsets = 0.1 * torch.tanh(self.offsets(x)).unflatten(1, (9, 2)).permute(0, 3, 4, 1, 2)
        return Polytope(self.taps + offsets)


@pytest.mark.slow
def test_hull_metric_in_a_metric_convolution():
    torch.manual_seed(0)
    module = Deformed(2).double()
    layer = MetricConv2d(2, 3, 3, padding=1, metric=module, reference="concentric").double()
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    output = layer(x)
    metric = layer.metric(x)
    assert metric.batch_shape == (1, 6, 5)
    positions = radial(metric, layer.points.reshape(9, 1, 1, 1, 2)).movedim(0, -2)
    assert torch.allclose(layer.positions(x), positions)
    # At the rim of the hull: concentric points of radius 1 have norm 1.
    assert metric.norm(positions.movedim(-2, 0)).amax(0).detach() == pytest.approx(1, abs=1e-12)
    offsets = (positions - torch.as_tensor(lattice(3).points)).permute(0, 3, 4, 1, 2)
    expected = deform_conv2d(x, offsets.flatten(1, 2), layer.weight, layer.bias, padding=1)
    assert torch.allclose(output, expected)
    output.square().mean().backward()
    assert module.offsets.weight.grad.abs().max() > 0


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_sizes_near_the_ends_of_the_dtype(size):
    points = clouds(8, 3)
    v = np.random.default_rng(8).standard_normal((4, 3, 2))
    assert Polytope(size * points).norm(size * v) == pytest.approx(Polytope(points).norm(v))


@pytest.mark.unchecked
def test_errors_name_the_pixels():
    points = clouds(7, 6).reshape(2, 3, 9, 2)
    points[1, 0] += 10
    points[1, 2] = 1.0
    with pytest.raises(ValueError, match=r"not strictly inside .* 2 of 6 indices, first \(1, 0\)"):
        Polytope(points)
    with pytest.raises(ValueError, match="not strictly inside"):
        Polytope(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))  # on the rim
    with pytest.raises(ValueError, match="not strictly inside"):
        Polytope(np.concatenate((np.eye(3), -np.eye(3)))[:, :] * [1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"finite positions, got \[inf, inf\] at index \(0,\)"):
        Polytope(np.full((4, 2), np.inf))
    with pytest.raises(ValueError, match=r"got \[nan, nan\] at index \(1, 0, 0\)"):
        Polytope(np.where(np.arange(6).reshape(2, 3, 1, 1) == 3, np.nan, points))
    with pytest.raises(ValueError, match="expected points around the origin, got none"):
        Polytope(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="overflows float32; give lengths in a smaller unit"):
        Polytope((1e-40 * lattice(3).points).astype(np.float32))
    with pytest.raises(ValueError, match="points: expected shape"):
        Polytope(np.zeros((4, 4)))
    with pytest.raises(TypeError, match="points: expected a real"):
        Polytope(np.zeros((4, 2), dtype=int))
    metric = Polytope(lattice(3).points)
    with pytest.raises(TypeError, match="polyhedral metric has none"):
        metric.fundamental_tensor(np.ones(2))
    with pytest.raises(ValueError, match="v: expected vectors of 2"):
        metric.norm(np.ones(3))
