"""The closed-form ellipse of a planar Randers ball."""

import math

import numpy as np
import pytest
from hypothesis import given
from strategies import as_numpy, assert_bounded, cases

from finslerconv.balls import Ellipse, volume
from finslerconv.metrics import CallableMetric, Euclidean, Randers, Riemannian


@pytest.mark.slow
@given(cases(dims=(2,)))
def test_support_function_is_the_dual_norm(case):
    p = case.array(case.vectors(8))
    dual = as_numpy(case.metric.dual_norm(p))
    assert_bounded(as_numpy(Ellipse.of(case.metric).support(p)) / dual - 1, case.bound(2))


@given(cases(dims=(2,)))
def test_contains_agrees_with_the_metric(case):
    """Away from the boundary, by more than rounding can decide."""
    if (case.bound(2) > 0.05).any():
        return
    boundary = case.vectors(8) / case.exact.norm(case.vectors(8))[..., None]
    ellipse = Ellipse.of(case.metric)
    for factor in (0.0, 0.5, 0.95, 1.05, 2.0):
        v = case.array(factor * boundary)
        expected = np.full(boundary.shape[:-1], factor < 1)
        assert (np.asarray(ellipse.contains(v)) == expected).all()
        assert (np.asarray(case.metric.contains(v)) == expected).all()


@given(cases(dims=(2,)))
def test_axes_and_angle_against_eigh(case):
    ellipse = Ellipse.of(case.metric)
    shape = as_numpy(ellipse.shape)
    values, vectors = np.linalg.eigh(shape)
    axes = as_numpy(ellipse.axes)
    # Rounding errors are relative to the larger eigenvalue, here and in eigh.
    # A matrix that rounding left indefinite has a small axis of length 0.
    error = np.abs(axes**2 - values[:, ::-1].clip(0)) / values[:, 1:]
    assert (error <= 8 * case.eps).all()
    angle = as_numpy(ellipse.angle)
    right_angle = as_numpy(case.array(math.pi / 2))  # to which rounding may close the interval
    assert (np.abs(angle) <= right_angle).all()
    across = np.cos(angle) * vectors[:, 0, 1] - np.sin(angle) * vectors[:, 1, 1]
    gap = 1 - values[:, 0] / values[:, 1]
    assert_bounded(across, 8 * case.eps / np.maximum(gap, case.eps))


@given(cases(dims=(2,)))
def test_boundary_is_on_the_indicatrix(case):
    boundary = as_numpy(Ellipse.of(case.metric).boundary(24))
    assert boundary.shape == (24, len(case.lam), 2)
    assert_bounded(case.exact.norm(boundary) - 1, case.bound(2))


@pytest.mark.slow
@given(cases(dims=(2,)))
def test_area_closed_form_polygon_and_quadrature(case):
    area = as_numpy(Ellipse.of(case.metric).area)
    closed = math.pi / (case.lam**1.5 * np.sqrt(np.linalg.det(case.M)))
    assert_bounded(area / closed - 1, case.bound(1))
    # The polygon through the indicatrix along n directions, spread evenly where M is round. There
    # the ellipse has eccentricity |omega|, the directions are true anomalies, and the eccentric
    # anomaly steps by no more than 2 pi / n sqrt((1 + |omega|) / (1 - |omega|)) = s: the inscribed
    # polygon lacks at most s^2 / 6 of the area.
    n = 2000
    angles = 2 * math.pi * np.arange(n) / n
    circle = np.stack((np.cos(angles), np.sin(angles)), -1)
    values, axes = np.linalg.eigh(case.M)
    u = np.einsum("bij,bj,nj->nbi", axes, values**-0.5, circle)
    y, x = np.moveaxis(case.exact.indicatrix(u), -1, 0)
    shoelace = np.abs((y * np.roll(x, -1, 0) - x * np.roll(y, -1, 0)).sum(0)) / 2
    strength = np.sqrt(1 - case.lam)
    missing = (2 * math.pi / n) ** 2 * (1 + strength) / (1 - strength) / 6
    assert_bounded(np.maximum((area - shoelace) / closed, 0), missing + case.bound(2))
    assert_bounded(np.maximum((shoelace - area) / closed, 0), case.bound(2))
    if case.dtype == "float64":
        summation = 1024 * case.eps  # of the quadrature's directions, one after the other
        assert_bounded(as_numpy(volume(case.metric)) / closed - 1, case.bound(2) + summation)


def test_centre_axes_and_angle_of_ellipses_drawn_by_hand():
    """Conventions: (down, right), the large axis first, angles from right towards down."""
    down = Ellipse.of(Riemannian(np.diag([0.25, 1.0])))  # stretched along the rows' direction
    np.testing.assert_allclose(down.axes, [2, 1], rtol=1e-15)
    assert down.angle == math.pi / 2
    across = Ellipse.of(Riemannian(np.diag([1.0, 0.25])))
    np.testing.assert_allclose(across.axes, [2, 1], rtol=1e-15)
    assert across.angle == 0
    diagonal = Ellipse(np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))  # towards down right
    assert diagonal.angle == pytest.approx(math.pi / 4, abs=1e-15)
    np.testing.assert_allclose(diagonal.axes, [math.sqrt(3), 1], rtol=1e-15)
    circle = Ellipse.of(Euclidean())
    assert circle.angle == 0
    assert circle.axes.tolist() == [1, 1]
    assert circle.area == math.pi
    np.testing.assert_allclose(circle.boundary(4), [[0, 1], [1, 0], [0, -1], [-1, 0]], atol=1e-15)
    wind = Ellipse.of(Randers(np.eye(2), np.array([0.6, 0.0])))  # dear to go down: centre above
    np.testing.assert_allclose(wind.centre, [-0.9375, 0], rtol=1e-15)


def test_fields_broadcast():
    rng = np.random.default_rng(0)
    omega = 0.3 * rng.uniform(-1, 1, (4, 3, 2))
    ellipse = Ellipse.of(Randers(np.eye(2), omega))
    assert ellipse.shape.shape == (4, 3, 2, 2)
    assert ellipse.centre.shape == (4, 3, 2)
    assert ellipse.axes.shape == (4, 3, 2)
    assert ellipse.angle.shape == ellipse.area.shape == (4, 3)
    assert ellipse.boundary(5).shape == (5, 4, 3, 2)
    assert ellipse.support(rng.standard_normal((7, 1, 1, 2))).shape == (7, 4, 3)


@pytest.mark.unchecked
def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"metric: expected a planar metric \(dim 2\), got dim 3"):
        Ellipse.of(Euclidean(3))
    with pytest.raises(TypeError, match="metric: the ball of CallableMetric is no ellipse"):
        Ellipse.of(CallableMetric(lambda v: np.abs(v).max(-1)))
    with pytest.raises(ValueError, match="n: expected a positive number of points, got 0"):
        Ellipse.of(Euclidean()).boundary(0)
    with pytest.raises(ValueError, match=r"p: expected vectors of 2 components.*got shape \(3,\)"):
        Ellipse.of(Euclidean()).support(np.ones(3))
    with pytest.raises(TypeError, match="v: expected a real floating-point dtype, got int64"):
        Ellipse.of(Euclidean()).contains(np.array([0, 1]))
