"""The formulas, as NumPy functions, agree with the numerical core."""

import numpy as np
import pytest
import sympy
import torch

from finslerconv import balls, metrics, symbolic
from finslerconv.symbolic import numpy_function, parameters

TOLERANCE = 1e-12
W = sympy.ImmutableMatrix([sympy.Rational(1, 2), 2])


def random_fields(d, n=200):
    """Return metrics of condition number at most 25 and |omega| at most 0.8, and vectors."""
    rng = np.random.default_rng(d)
    axes = np.linalg.qr(rng.standard_normal((n, d, d)))[0]
    values = rng.uniform(0.2, 5.0, (n, d))
    M = np.einsum("nij,nj,nkj->nik", axes, values, axes)
    M = (M + M.swapaxes(-1, -2)) / 2
    direction = rng.standard_normal((n, d))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    omega = np.einsum("nij,nj,nj->ni", axes, values**0.5, direction * rng.uniform(0, 0.8, (n, 1)))
    return M, omega, rng.standard_normal((n, d))


def symbolic_and_numerical(d):
    """Return pairs (formula of a metric and a vector, method of the core) by name."""
    P = parameters(d)
    F = symbolic.Randers(P.M, P.omega)
    R = symbolic.Riemannian(P.M)
    ellipse = symbolic.Ellipse.of(F)

    def printed(name):
        return symbolic.identities()[name].equation(d).rhs

    pairs = {
        "norm": (F.norm(P.v), lambda m, v: m.norm(v)),
        "dual_norm": (F.dual_norm(P.v), lambda m, v: m.dual_norm(v)),
        "dual": ((F.dual().M, F.dual().omega), lambda m, v: (m.dual().M, m.dual().omega)),
        "zermelo": (tuple(F.zermelo()), lambda m, v: tuple(m.zermelo())),
        # As the pages print them.
        "zermelo_data": (printed("zermelo_data"), lambda m, v: tuple(m.zermelo())),
        "dual_metric": (printed("dual_metric")[:2], lambda m, v: (m.dual().M, m.dual().omega)),
        "reverse": (F.reverse().norm(P.v), lambda m, v: m.reverse().norm(v)),
        "symmetrize": (F.symmetrize().norm(P.v), lambda m, v: m.symmetrize().norm(v)),
        "fundamental_tensor": (F.fundamental_tensor(P.v), lambda m, v: m.fundamental_tensor(v)),
        "riemannian_norm": (R.norm(P.v), lambda m, v: metrics.Riemannian(m.M).norm(v)),
        "riemannian_dual_norm": (
            R.dual_norm(P.v),
            lambda m, v: metrics.Riemannian(m.M).dual_norm(v),
        ),
        "indicatrix": (P.v / F.norm(P.v), lambda m, v: m.indicatrix(v)),
        "unit_ball": (symbolic.radial(F, P.v), lambda m, v: m.unit_ball(v)),
        "radial": (symbolic.radial(F, P.v), balls.radial),
    }
    if d < 3:
        pairs["affine"] = (symbolic.affine(F, P.v), balls.affine)
        pairs["riemannian_affine"] = (
            symbolic.affine(R, P.v),
            lambda m, v: balls.affine(metrics.Riemannian(m.M), v),
        )
    if d == 2:
        pairs["centre"] = (ellipse.centre, lambda m, v: balls.Ellipse.of(m).centre)
        pairs["shape"] = (ellipse.shape, lambda m, v: balls.Ellipse.of(m).shape)
        pairs["area"] = (ellipse.area, lambda m, v: balls.Ellipse.of(m).area)
        pairs["axes"] = (
            ellipse.axes,
            lambda m, v: tuple(np.moveaxis(balls.Ellipse.of(m).axes, -1, 0)),
        )
        pairs["angle"] = (ellipse.angle, lambda m, v: balls.Ellipse.of(m).angle)
        pairs["support"] = (ellipse.support(P.v), lambda m, v: balls.Ellipse.of(m).support(v))
    return pairs


@pytest.mark.parametrize("d", [1, 2, 3])
def test_formulas_agree_with_the_core(d):
    P = parameters(d)
    M, omega, v = random_fields(d)
    metric = metrics.Randers(M, omega)
    for name, (formula, method) in symbolic_and_numerical(d).items():
        # A 1 x 1 matrix counts as a column.
        entries = M[..., 0] if d == 1 else M
        expected = numpy_function(formula, P.M, P.omega, P.v)(entries, omega, v)
        actual = method(metric, v)
        if not isinstance(formula, tuple):
            expected, actual = (expected,), (actual,)
        for one, other in zip(expected, actual, strict=True):
            one = one.reshape(other.shape)
            scale = np.abs(one).max()
            np.testing.assert_allclose(other, one, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_from_zermelo_agrees_with_the_core():
    P = parameters(2)
    F = symbolic.Randers.from_zermelo(P.h, P.W)
    h, W = metrics.Randers(*random_fields(2)[:2]).zermelo()
    M, omega = numpy_function((F.M, F.omega), P.h, P.W)(h, W)
    metric = metrics.Randers.from_zermelo(h, W)
    np.testing.assert_allclose(metric.M, M, rtol=TOLERANCE, atol=TOLERANCE * np.abs(M).max())
    np.testing.assert_allclose(metric.omega, omega, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_boundary_of_the_core_lies_on_the_symbolic_ellipse():
    P = parameters(2)
    M, omega, _ = random_fields(2)
    points = balls.Ellipse.of(metrics.Randers(M, omega)).boundary(16)
    F = symbolic.Randers(P.M, P.omega)
    ellipse = symbolic.Ellipse.of(F)
    quadratic, norm = numpy_function((ellipse.quadratic(P.v), F.norm(P.v)), P.M, P.omega, P.v)(
        M, omega, points
    )
    np.testing.assert_allclose(quadratic, 1.0, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(norm, 1.0, rtol=0, atol=TOLERANCE)


def other_metrics():
    """Return (formula, class of the core) of metrics made of M and a one-form, by name."""

    def square(s):
        return (1 + s) ** 2

    return {
        "asymmetric_quadratic": (symbolic.AsymmetricQuadratic, metrics.AsymmetricQuadratic),
        "matsumoto": (symbolic.Matsumoto, metrics.Matsumoto),
        "kropina": (symbolic.Kropina, metrics.Kropina),
        "square": (
            lambda M, omega: symbolic.AlphaBeta(square, M, omega),
            lambda M, omega: metrics.AlphaBeta(square, M, omega),
        ),
    }


@pytest.mark.parametrize("name", list(other_metrics()))
def test_other_metrics_agree_with_the_core(name):
    P = parameters(2)
    formula, core = other_metrics()[name]
    M, omega, v = random_fields(2, 50)
    omega = omega / 2  # Matsumoto's metric is convex below 1/2
    v = np.where((v * omega).sum(-1, keepdims=True) > 0, v, -v)  # Kropina's half-space
    F = formula(P.M, P.omega)
    metric = core(torch.tensor(M), torch.tensor(omega))
    norm, tensor = numpy_function((F.norm(P.v), F.fundamental_tensor(P.v)), P.M, P.omega, P.v)(
        M, omega, v
    )
    np.testing.assert_allclose(metric.norm(torch.tensor(v)), norm, rtol=1e-12)
    scale = np.abs(tensor).max((-1, -2), keepdims=True)
    found = metric.fundamental_tensor(torch.tensor(v)).numpy() / scale
    np.testing.assert_allclose(found, tensor / scale, rtol=0, atol=1e-10)
    if hasattr(F, "dual_norm"):
        dual = numpy_function(F.dual_norm(P.p), P.M, P.omega, P.p)
        np.testing.assert_allclose(metric.dual_norm(torch.tensor(v)), dual(M, omega, v), rtol=1e-11)


@pytest.mark.parametrize("p", [1, 2, 4, sympy.oo])
def test_p_norms_agree_with_the_core(p):
    v = np.random.default_rng(0).standard_normal((20, 2))
    F, metric = symbolic.PNorm(p, W), metrics.PNorm(float(p), np.array([0.5, 2.0]))
    Q = parameters(2)
    norm, dual = numpy_function((F.norm(Q.v), F.dual_norm(Q.v)), Q.v)(v)
    np.testing.assert_allclose(metric.norm(v), norm, rtol=1e-12)
    np.testing.assert_allclose(metric.dual_norm(v), dual, rtol=1e-12)
