"""Derivatives in PyTorch: right where they exist, finite where they do not."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from finslerconv.balls import Ellipse, affine, overlap, radial, volume
from finslerconv.metrics import (
    CallableMetric,
    Euclidean,
    FinslerMetric,
    Maximum,
    Randers,
    Riemannian,
)

FLOAT64 = {"dtype": torch.float64}


def parameters(dim, strength=0.6):
    """Return (M, omega) of a batch of two, leaves that record gradients."""
    rng = np.random.default_rng(dim)
    A = rng.standard_normal((2, dim, dim)) / 2
    M = A @ A.swapaxes(-1, -2) + np.eye(dim)
    omega = rng.standard_normal((2, dim))
    size = np.sqrt(np.einsum("bi,bi->b", omega, np.linalg.solve(M, omega[..., None])[..., 0]))
    omega *= strength / size[:, None]
    return [torch.tensor(x, requires_grad=True) for x in (M, omega)]


def vectors(dim, n=3):
    values = np.random.default_rng(dim + 10).standard_normal((n, 1, dim))
    return torch.tensor(values, requires_grad=True)


def randers(M, omega):
    return Randers(M, omega, validate=False)


FUNCTIONS = {
    "norm": lambda M, omega, v: randers(M, omega).norm(v),
    "dual_norm": lambda M, omega, v: randers(M, omega).dual_norm(v),
    "unit_ball": lambda M, omega, v: radial(randers(M, omega), v),
    "affine": lambda M, omega, v: affine(randers(M, omega), v),
    "dual": lambda M, omega, v: randers(M, omega).dual().norm(v),
    "zermelo": lambda M, omega, v: randers(M, omega).zermelo(),
    "from_zermelo": lambda M, omega, v: Randers.from_zermelo(
        M, torch.linalg.solve(M, omega), validate=False
    ).norm(v),
    "fundamental_tensor": lambda M, omega, v: randers(M, omega).fundamental_tensor(v),
    "asymmetry_ratio": lambda M, omega, v: randers(M, omega).asymmetry_ratio(),
    "riemannian": lambda M, omega, v: Riemannian(M, validate=False).dual_norm(v),
    "affine_riemannian": lambda M, omega, v: affine(Riemannian(M, validate=False), v),
}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(name, dim):
    inputs = (*parameters(dim), vectors(dim))
    # Above the plane along random directions only: the same statement, in a tenth of the time.
    assert gradcheck(FUNCTIONS[name], inputs, fast_mode=dim > 2)
    assert gradgradcheck(FUNCTIONS[name], inputs, fast_mode=dim > 2)


@pytest.mark.parametrize("dim", [2, 3])
def test_affine_at_equal_eigenvalues(dim):
    """M = I exactly, where the derivative of an eigendecomposition does not exist."""
    M = torch.eye(dim, **FLOAT64).requires_grad_()
    omega = torch.zeros(dim, **FLOAT64, requires_grad=True)
    g = torch.tensor(np.random.default_rng(0).standard_normal((3, dim)))
    assert gradcheck(lambda M, omega: affine(randers(M, omega), g), (M, omega))
    assert gradgradcheck(
        lambda M, omega: affine(randers(M, omega), g), (M, omega), fast_mode=dim > 2
    )
    # Around I, (I + E)^(-1/2) = I - E / 2: of the first point's first component.
    (gradient,) = torch.autograd.grad(affine(randers(M, omega), g)[0, 0], M)
    expected = torch.zeros(dim, dim, **FLOAT64)
    expected[0] -= g[0] / 4
    expected[:, 0] -= g[0] / 4
    symmetric = (gradient + gradient.T) / 2
    torch.testing.assert_close(symmetric, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_everything_is_finite_at_zero(dim, drift):
    """v = 0, g = 0, p = 0, omega = 0 and M = I: values, first and second derivatives."""
    M = torch.eye(dim, **FLOAT64).requires_grad_()
    omega = torch.full((dim,), drift / dim**0.5, **FLOAT64).requires_grad_()
    v = torch.zeros(2, dim, **FLOAT64, requires_grad=True)
    metric = randers(M, omega)
    symmetric = metric.symmetrize()
    outputs = [metric.norm(v), metric.energy(v), metric.dual_norm(v), metric.unit_ball(v)]
    outputs += [affine(metric, v), metric.dual().norm(v), metric.asymmetry_ratio()]
    outputs += [
        metric.omega_norm(),
        symmetric.norm(v),
        symmetric.dual_norm(v),
        affine(symmetric, v),
    ]
    outputs += list(Randers.from_zermelo(*metric.zermelo(), validate=False).zermelo())
    if dim == 2:
        ellipse = Ellipse.of(metric)
        outputs += [ellipse.axes, ellipse.angle, ellipse.area, ellipse.support(v)]
        outputs += [ellipse.boundary(5)]
    for output in outputs:
        assert torch.isfinite(output).all()
        first = torch.autograd.grad(
            output.sum(), (M, omega, v), create_graph=True, retain_graph=True, allow_unused=True
        )
        first = [g for g in first if g is not None]
        assert all(torch.isfinite(g).all() for g in first)
        total = sum(g.square().sum() for g in first)
        if total.requires_grad:
            second = torch.autograd.grad(total, (M, omega, v), retain_graph=True, allow_unused=True)
            assert all(torch.isfinite(g).all() for g in second if g is not None)


def test_derivatives_at_zero_are_the_stated_ones():
    M = torch.eye(2, **FLOAT64).requires_grad_()
    omega = torch.tensor([0.3, -0.2], **FLOAT64).requires_grad_()
    zero = torch.zeros(2, **FLOAT64, requires_grad=True)
    metric = randers(M, omega)
    # That of the root is taken as 0, so the one-form's remains; in the metric there is none.
    (at_zero,) = torch.autograd.grad(metric.norm(zero), zero)
    torch.testing.assert_close(at_zero, omega.detach())
    in_metric = torch.autograd.grad(metric.unit_ball(zero).sum(), (M, omega))
    assert all((g == 0).all() for g in in_metric)


class Weighted(FinslerMetric):
    """The norm sqrt(a . v^2), which may not be asked at 0, where its derivative in a is NaN."""

    def __init__(self, a):
        self.a = a

    def norm(self, v):
        assert (v != 0).any(-1).all(), "asked for the norm of 0"
        return (self.a * v**2).sum(-1).sqrt()

    @property
    def dim(self):
        return self.a.shape[-1]

    @property
    def like(self):
        return self.a


OWN = {
    "class": Weighted,
    "function": lambda a: CallableMetric(Weighted(a).norm, dim=a.shape[-1], like=a),
}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("own", OWN)
def test_a_norm_of_ones_own_is_never_asked_at_zero(own, dim):
    """Whatever is asked of the metric: values and both derivatives are the closed form's."""
    a = torch.tensor([0.5, 2.0, 1.5][:dim], **FLOAT64, requires_grad=True)
    v = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.4, 0.5]], **FLOAT64)[:, :dim].requires_grad_()
    metric, closed = OWN[own](a), Riemannian(torch.diag(a))
    questions = {
        "unit_ball": lambda F: F.unit_ball(v),
        "dual_norm": lambda F: F.dual_norm(v),
        "dual": lambda F: F.dual().norm(v),
        "dual of dual": lambda F: F.dual().dual_norm(v),
        "reverse": lambda F: F.reverse().norm(v),
        "symmetrize": lambda F: F.symmetrize().norm(v),
        "scaled": lambda F: (2.0 * F).norm(v),
        "sum": lambda F: (F + F).norm(v),
        "maximum": lambda F: Maximum(F, F).norm(v),
        "pullback": lambda F: F.pullback(2 * torch.eye(dim, **FLOAT64)).norm(v),
        "asymmetry_ratio": lambda F: F.asymmetry_ratio(),
        "volume": volume,
        "overlap": lambda F: overlap(F, Euclidean(dim)),
    }
    for name, ask in questions.items():
        values, expected = ask(metric), ask(closed)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12, msg=name)
        grad, wanted = (
            torch.autograd.grad(
                x.sum() + 0 * a.sum(), (a, v), create_graph=True, materialize_grads=True
            )
            for x in (values, expected)
        )
        # The search finds the direction of a dual norm, on which its gradient depends, to the root
        # of rounding; at p = 0 every point of the ball is a derivative.
        kept = 1 if "dual" in name else 2
        for x, y in zip(grad[:kept], wanted[:kept], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=name)
        assert all(x.isfinite().all() for x in grad)
        total = sum(x.square().sum() for x in grad)
        if total.requires_grad:
            second = torch.autograd.grad(total, (a, v), materialize_grads=True)
            assert all(x.isfinite().all() for x in second), name
    assert metric.contains(v, radius=0.1).tolist() == [True, False]
    assert metric.batch_shape == ()
    metric.validate()
    metric.fundamental_tensor(v[1:])
    with pytest.raises(ValueError, match="u: expected non-zero vectors"):
        metric.indicatrix(v)


@pytest.mark.parametrize("own", OWN)
def test_energy_of_a_norm_of_ones_own_at_zero(own):
    a = torch.tensor([0.5, 2.0], **FLOAT64, requires_grad=True)
    v = torch.tensor([[0.0, 0.0], [0.3, -0.4]], **FLOAT64, requires_grad=True)
    energy = OWN[own](a).energy(v)
    torch.testing.assert_close(energy, (a * v**2).sum(-1) / 2)
    in_a, in_v = torch.autograd.grad(energy.sum(), (a, v))
    torch.testing.assert_close(in_a, (v.detach() ** 2).sum(0) / 2)
    torch.testing.assert_close(in_v, (a * v).detach())


def test_energies_that_are_quadratic_are_so_at_zero():
    """Their second derivative is the matrix, everywhere."""
    M = torch.tensor([[2.0, 0.3], [0.3, 1.0]], **FLOAT64)
    zero = torch.zeros(2, **FLOAT64)
    hessian = torch.autograd.functional.hessian
    torch.testing.assert_close(hessian(Riemannian(M).energy, zero), M)
    torch.testing.assert_close(hessian(Euclidean().energy, zero), torch.eye(2, **FLOAT64))
    jacobian = torch.autograd.functional.jacobian(Euclidean().unit_ball, zero)
    torch.testing.assert_close(jacobian, torch.eye(2, **FLOAT64))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_dual_norm_by_optimisation_is_differentiable(dim):
    """By the envelope theorem, in the covector as in the metric, to first order."""
    M, omega = parameters(dim)
    p = vectors(dim)
    plain = CallableMetric(randers(M, omega).norm, dim=dim, like=M)
    by_search = torch.autograd.grad(plain.dual_norm(p).sum(), (M, omega, p))
    closed = torch.autograd.grad(randers(M, omega).dual_norm(p).sum(), (M, omega, p))
    for a, b in zip(by_search, closed, strict=True):
        # The direction is found to the root of rounding, and the gradient is linear in it. The
        # matrices' gradients differ off their diagonals by convention: compare symmetric parts.
        if a.ndim == 3 and a.shape[-1] == a.shape[-2] == dim and a is by_search[0]:
            a, b = a + a.mT, b + b.mT
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_fundamental_tensor_is_the_second_derivative_of_the_energy(dim):
    M, omega = (x.detach()[0] for x in parameters(dim))
    metric = Randers(M, omega)
    v = vectors(dim).detach()[0, 0]
    torch.testing.assert_close(
        metric.fundamental_tensor(v), torch.autograd.functional.hessian(metric.energy, v)
    )


def test_metrics_made_under_no_grad_stay_without_history():
    M, omega = parameters(2)
    assert randers(M, omega).norm(torch.ones(2, **FLOAT64)).requires_grad
    with torch.no_grad():
        assert not randers(M, omega).norm(torch.ones(2, **FLOAT64)).requires_grad
    plain = CallableMetric(randers(M, omega).norm, like=M)
    assert plain.batch_shape == (2,)
    assert torch.is_grad_enabled()
    assert plain.asymmetry_ratio().requires_grad
