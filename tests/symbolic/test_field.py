"""Fields by formula: classical tensors written out, and the numerical core's derivatives."""

from functools import cache

import numpy as np
import pytest
import sympy
import torch
from sympy import ImmutableMatrix, Rational, cos, sin, sqrt

from finslerconv import metrics, symbolic
from finslerconv.geodesics import FunctionMetric, tensors
from finslerconv.symbolic import MetricField, numpy_function, parameters, simplified

# Forward mode in PyTorch compiles its own decompositions by this.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

P = parameters(2)
(X, Y), (A, B) = P.x, P.v
POINTS = np.array([[0.3, -0.2], [-0.1, 0.4], [0.25, 0.3]])
VECTORS = np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, -1.1]])


def as_it_stands(expression):
    return expression


def test_christoffel_symbols_of_the_sphere_by_angles():
    sphere = MetricField.of(symbolic.sphere_by_angles)
    G = sphere.christoffel_symbols
    assert G[0, 1, 1] == sin(X) * cos(X)
    assert G[1, 0, 1] == G[1, 1, 0] == -sin(X) / cos(X)
    assert sum(entry != 0 for entry in G.reshape(8)) == 3
    assert sphere.flag_curvature() == 1
    assert sphere.ricci == simplified(sphere.norm**2)
    assert sphere.is_riemannian
    assert sphere.is_berwald


@pytest.mark.parametrize(
    ("space", "dimension", "curvature"),
    [
        (symbolic.sphere, 2, 1),
        (symbolic.half_space, 2, -1),
        (symbolic.half_space, 3, -1),
        (symbolic.poincare_ball, 2, -1),
        (symbolic.hilbert_ball, 2, -1),
    ],
)
def test_flag_curvatures_of_the_classical_spaces(space, dimension, curvature):
    P = parameters(dimension)
    flag = None if dimension == 2 else P.p
    assert MetricField.of(space, dimension).flag_curvature(flag) == curvature


def test_the_scale_of_a_space_scales_its_curvature():
    # A sphere of radius 3 has the curvature 1 / 9: no normalisation hides in the formula.
    large = MetricField(3 * symbolic.sphere(P.x).norm(P.v), P.x, P.v)
    assert large.flag_curvature() == Rational(1, 9)


def test_the_flag_matters_where_the_space_is_no_space_form():
    # A sphere times a line: planes along the line are flat, the sphere's own is not.
    Q = parameters(3)
    norm = sqrt(symbolic.sphere_by_angles(Q.x[:2, :]).norm(Q.v[:2, :]) ** 2 + Q.v[2] ** 2)
    product = MetricField(norm, Q.x, Q.v)
    east = {Q.v[0]: 0, Q.v[1]: 1, Q.v[2]: 0}
    assert product.flag_curvature((1, 0, 0)).subs(east) == 1
    assert product.flag_curvature((0, 0, 1)).subs(east) == 0
    with pytest.raises(ValueError, match="flag: expected a vector that spans a plane"):
        product.flag_curvature()


def test_the_s_curvature_of_a_volume_that_is_not_the_metrics():
    # Of the plane with the density exp(x): minus the slope of its logarithm.
    plane = MetricField(sqrt(A**2 + B**2), P.x, P.v)
    assert plane.s_curvature(sympy.exp(X)) == -A
    sphere = MetricField.of(symbolic.sphere)
    assert sphere.s_curvature(symbolic.sphere(P.x).volume_density()) == 0


@pytest.mark.slow
def test_berwald_exactly_if_the_form_is_parallel():
    norm = sqrt(A**2 + B**2)
    parallel = MetricField(norm + A / 2, P.x, P.v)
    closed = MetricField(norm + X * A / 4, P.x, P.v)
    assert parallel.is_berwald
    assert not parallel.is_riemannian
    assert not closed.is_berwald
    # A closed form leaves the straight lines of the plane straight.
    assert simplified(closed.spray[0] * B - closed.spray[1] * A) == 0
    turning = MetricField(norm + (X * B - Y * A) / 4, P.x, P.v)
    assert simplified(turning.spray[0] * B - turning.spray[1] * A) != 0
    with pytest.raises(ValueError, match="christoffel_symbols: expected a Riemannian metric"):
        _ = closed.christoffel_symbols


def formulas():
    """Return pairs of a symbolic field and the core's, none Riemannian but the first."""

    wave = ImmutableMatrix([Rational(3, 10) + Y / 5, X * Y / 10])
    room = 1 + X**2

    def sea(x):
        return (1 + x[..., 0] ** 2)[..., None, None] * torch.eye(2, dtype=x.dtype)

    def slope(x):
        return torch.stack((0.3 + 0.2 * x[..., 1], 0.1 * x[..., 0] * x[..., 1]), -1)

    M = room * ImmutableMatrix.eye(2)
    return {
        "klein": (symbolic.klein_ball(P.x), None),
        "randers": (symbolic.Randers(M, wave), lambda x: metrics.Randers(sea(x), slope(x))),
        "matsumoto": (symbolic.Matsumoto(M, wave), lambda x: metrics.Matsumoto(sea(x), slope(x))),
        "navigation": (
            symbolic.Navigation(symbolic.Riemannian(M), wave),
            lambda x: metrics.Navigation(metrics.Riemannian(sea(x)), slope(x)),
        ),
    }


def klein(x):
    r = 1 - (x * x).sum(-1)[..., None, None]
    eye = torch.eye(2, dtype=x.dtype)
    return metrics.Riemannian(eye / r + x[..., :, None] * x[..., None, :] / r**2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["klein", "randers", "matsumoto", "navigation"])
def test_spray_and_tensors_agree_with_the_core(name):
    metric, core = formulas()[name]
    field = MetricField(metric.norm(P.v), P.x, P.v, as_it_stands)
    core = FunctionMetric(core or klein)
    x, v = torch.tensor(POINTS), torch.tensor(VECTORS)
    values = numpy_function((field.fundamental_tensor, field.cartan_tensor, field.spray), P.x, P.v)
    at = core.at(x)
    expected = at.fundamental_tensor(v), at.cartan_tensor(v), tensors.spray(core, x, v)
    for one, other in zip(values(POINTS, VECTORS), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@cache
def turning():
    """Return the field of a Euclidean metric with a one-form that turns."""
    wave = ImmutableMatrix([Rational(3, 10), X / 5])
    metric = symbolic.Randers(ImmutableMatrix.eye(2), wave)
    return MetricField(metric.norm(P.v), P.x, P.v, as_it_stands)


@pytest.mark.slow
def test_connections_and_curvature_agree_with_the_core():
    field = turning()

    def core(x):
        form = torch.stack((0.3 + 0 * x[..., 0], 0.2 * x[..., 0]), -1)
        return metrics.Randers(torch.eye(2, dtype=x.dtype), form)

    core = FunctionMetric(core)
    x, v = torch.tensor(POINTS), torch.tensor(VECTORS)
    values = numpy_function(
        (
            field.nonlinear_connection,
            field.berwald_connection,
            field.chern_connection,
            field.riemann_curvature,
            field.flag_curvature(),
        ),
        P.x,
        P.v,
    )(POINTS, VECTORS)
    expected = (
        tensors.nonlinear_connection(core, x, v),
        tensors.berwald_connection(core, x, v),
        tensors.chern_connection(core, x, v),
        tensors.riemann_curvature(core, x, v),
        tensors.flag_curvature(core, x, v, torch.tensor([0.2, 1.0], dtype=torch.float64)),
    )
    for one, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_berwalds_connection_is_cherns_and_landsbergs_tensor():
    F = turning()
    g, berwald, chern, landsberg = numpy_function(
        (F.fundamental_tensor, F.berwald_connection, F.chern_connection, F.landsberg_tensor),
        P.x,
        P.v,
    )(POINTS, VECTORS)
    lowered = np.einsum("nil,nljk->nijk", g, berwald - chern)
    assert np.abs(landsberg).max() > 1e-3
    np.testing.assert_allclose(lowered, landsberg, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_s_curvature_agrees_with_the_core():
    metric, core = formulas()["randers"]
    field = MetricField(metric.norm(P.v), P.x, P.v, as_it_stands)
    for kind in ("busemann_hausdorff", "holmes_thompson"):
        S = numpy_function(field.s_curvature(metric.volume_density(kind)), P.x, P.v)
        expected = tensors.s_curvature(FunctionMetric(core), POINTS, VECTORS, kind)
        np.testing.assert_allclose(S(POINTS, VECTORS), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (1 / (sqrt(X + 1) - sqrt(X)), sqrt(X) + sqrt(X + 1)),
        (cos(X) ** 2 + sin(X) ** 2, 1),
        ((X**2 - 1) / (X - 1), X + 1),
        (X / (X**2) ** Rational(1, 3), X / (X**2) ** Rational(1, 3)),
        (sympy.Abs(X * Y) ** 2, X**2 * Y**2),
        (1 / (X**3 + Y) ** Rational(3, 4), (X**3 + Y) ** Rational(1, 4) / (X**3 + Y)),
        (sympy.exp(X) / (sympy.exp(X) * Y), 1 / Y),
        (2 / sqrt(sympy.Integer(2)), sqrt(2)),
    ],
)
def test_what_is_equal_looks_alike(expression, expected):
    found = simplified(expression)
    assert simplified(expected) == found
    here = {X: Rational(7, 5), Y: Rational(3, 7)}
    assert abs((found - expression).subs(here).evalf(30)) < 1e-25


@pytest.mark.unchecked
def test_fields_refuse_what_are_no_symbols():
    with pytest.raises(ValueError, match="v: expected different symbols"):
        MetricField(A, P.x, (A, A))
    with pytest.raises(ValueError, match="x, v: expected as many symbols"):
        MetricField(A, P.x, P.x)
    Q = parameters("any")
    with pytest.raises(ValueError, match="v: expected a vector of a dimension that is a number"):
        symbolic.Riemannian(Q.M).cartan_tensor(Q.v)
