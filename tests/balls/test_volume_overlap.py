"""Volumes and overlaps of unit balls, against closed forms and against counted pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import as_numpy, assert_bounded, cases

from finslerconv.balls import overlap, volume
from finslerconv.metrics import CallableMetric, Euclidean, Randers, Riemannian

UNIT_BALL = {1: 2.0, 2: math.pi, 3: 4 * math.pi / 3, 4: math.pi**2 / 2, 5: 8 * math.pi**2 / 15}


@pytest.mark.slow
@given(cases(dims=(1, 2, 3), dtypes=("float64",), batch=2))
@settings(max_examples=30)
def test_volume_of_randers_balls(case):
    d = case.dim
    closed = UNIT_BALL[d] / (case.lam ** ((d + 1) / 2) * np.sqrt(np.linalg.det(case.M)))
    # In space the docstring claims 1e-13 and 3e-5 for |omega| = 0.9 and 0.999. Sums of n terms,
    # one after the other, are wrong by up to n eps / 2.
    quadrature = {
        1: 2 * case.eps,
        2: 1024 * case.eps,
        3: np.where(case.lam < 0.19, 3e-5, 1e-13) + 96 * 48 * case.eps,
    }[d]
    assert_bounded(as_numpy(volume(case.metric)) / closed - 1, case.bound(2) + quadrature)


@pytest.mark.parametrize(("strength", "error"), [(0.0, 1e-12), (0.5, 1e-12), (0.9, 2e-7)])
def test_volume_in_five_dimensions(strength, error):
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    values = np.array([1.0, 3.0, 10.0, 100.0, 1000.0])
    M = axes * values @ axes.T
    omega = axes @ (np.sqrt(values) * strength / math.sqrt(5))
    closed = UNIT_BALL[5] / ((1 - strength**2) ** 3 * math.sqrt(values.prod()))
    assert volume(Randers((M + M.T) / 2, omega)) == pytest.approx(closed, rel=error)


def test_volume_of_polytopes_converges_as_stated():
    square, diamond = (
        CallableMetric(lambda v: abs(v).max(-1)),
        CallableMetric(lambda v: abs(v).sum(-1)),
    )
    spacing = (2 * math.pi / 1024) ** 2
    assert volume(square) == pytest.approx(4, rel=spacing)
    assert volume(diamond) == pytest.approx(2, rel=spacing)
    assert volume(Euclidean()) == pytest.approx(math.pi, rel=1e-14)


@given(st.floats(0, 6), st.floats(0, math.pi))
def test_overlap_of_crossed_ellipses(exponent, angle):
    """Of the ellipses with half-axes 1 and b, crossed: they share 4 b arctan(b)."""
    b = 10 ** (-exponent / 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    def ellipse(first, second):
        M = turn * np.array([first, second]) ** -2.0 @ turn.T
        return Riemannian((M + M.T) / 2)

    shared = 4 * b * math.atan(b)
    expected = shared / (2 * math.pi * b - shared)
    # The intersection has four corners: an error of about the spacing squared.
    measured = overlap(ellipse(1, b), ellipse(b, 1))
    assert measured == pytest.approx(expected, rel=2 * (2 * math.pi / 1024) ** 2)


@pytest.mark.slow
@given(
    cases(dims=(2,), kinds=("numpy",), dtypes=("float64",), max_condition=30.0, batch=2),
)
@settings(max_examples=15)
def test_overlap_against_counted_pixels(case):
    if (case.lam < 0.1).any() or len(case.lam) < 2:
        return
    first, second = case.exact[0], case.exact[1]
    n = 600
    support = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    reach = max(first.dual_norm(support).max(), second.dual_norm(support).max())
    grid = (np.arange(n) + 0.5) / n * 2 * reach - reach
    v = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    a, b = first.contains(v), second.contains(v)
    union = (a | b).sum()
    # A convex curve enters and leaves a row and a column at most once, so it passes through at
    # most 4 n pixels; of those about half are counted wrongly, to both sides alike.
    tolerance = 2 * n / union
    assert overlap(first, second) == pytest.approx((a & b).sum() / union, abs=tolerance)


@pytest.mark.slow
@given(cases(dims=(2,), dtypes=("float64",), batch=2))
@settings(max_examples=20)
def test_overlap_is_symmetric_and_one_for_equal_balls(case):
    metric, other = case.metric, case.metric.reverse()
    # Both volumes and the intersection are then the same sums.
    assert_bounded(as_numpy(overlap(metric, metric)) - 1, 4 * case.eps)
    forth, back = as_numpy(overlap(metric, other)), as_numpy(overlap(other, metric))
    assert_bounded(forth / back - 1, case.bound(2) + 1024 * case.eps)
    assert ((forth > 0) & (forth <= 1 + case.bound(2))).all()


def test_overlap_in_space():
    """Of the ball and its reflection: an ellipsoid of revolution and two of its caps less."""
    strength = 0.6
    metric = Randers(np.eye(3), np.array([0.0, 0.0, strength]))
    # The gauge of the intersection is |v| + |omega' v|: twice the half of the ball beyond z = 0.
    a = 1 - strength**2
    z = np.linspace(0, 1 / (1 + strength), 200_001)
    # The ball's section at z: |v| = 1 - strength z.
    section = math.pi * ((1 - strength * z) ** 2 - z**2)
    shared = 2 * np.trapezoid(section, z)
    whole = UNIT_BALL[3] / a**2
    assert overlap(metric, metric.reverse()) == pytest.approx(
        shared / (2 * whole - shared), rel=(2 * math.pi / 48) ** 2
    )


def test_overlap_of_nested_balls_is_the_ratio_of_their_volumes():
    M = np.array([[2.0, 0.5], [0.5, 1.0]])
    assert overlap(Riemannian(M), Riemannian(4 * M)) == pytest.approx(1 / 4, rel=1e-13)
    line = Randers(np.array([[1.0]]), np.array([0.5]))  # the ball is [-2, 2 / 3]
    assert volume(line) == pytest.approx(8 / 3, rel=1e-15)
    assert overlap(line, Euclidean(1)) == pytest.approx((5 / 3) / 3, rel=1e-15)


def test_batches_kinds_and_gradients():
    rng = np.random.default_rng(0)
    omega = torch.tensor(0.5 * rng.uniform(-1, 1, (4, 1, 2)), requires_grad=True)
    other = Riemannian(
        torch.eye(2, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    )
    metric = Randers(torch.eye(2, dtype=torch.float64), omega)
    assert overlap(metric, other).shape == (4, 3)
    # Euclidean is for arrays of every kind.
    assert isinstance(overlap(Euclidean(), other), torch.Tensor)
    torch.testing.assert_close(overlap(Euclidean(), other), overlap(other, Euclidean()))
    # d/d omega of pi (1 - |omega|^2)^(-3/2).
    (gradient,) = torch.autograd.grad(volume(metric).sum(), omega)
    lam = 1 - (omega**2).sum(-1, keepdim=True)
    torch.testing.assert_close(gradient, 3 * math.pi * omega.detach() * lam.detach() ** -2.5)


@pytest.mark.unchecked
def test_dimensions_must_agree():
    with pytest.raises(
        ValueError, match="second: expected a metric of dimension 2, as the first, got 3"
    ):
        overlap(Euclidean(2), Euclidean(3))
