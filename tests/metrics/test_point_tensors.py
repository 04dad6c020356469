"""Tensors of a metric at a point: closed forms, automatic differentiation and differences agree."""

import math

import numpy as np
import pytest
import torch

from finslerconv.balls import volume
from finslerconv.metrics import CallableMetric, Euclidean, Randers, Riemannian

TENSORS = ("fundamental_tensor", "cartan_tensor", "angular_metric", "legendre", "legendre_inverse")
KINDS = ("busemann_hausdorff", "holmes_thompson")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def randers(d, n=4, strength=0.6, seed=0):
    A, w = normal(n, d, d, seed=seed), normal(n, d, seed=seed + 1)
    M = A @ A.mT + torch.eye(d)
    w = strength * w / Randers(M, w, validate=False).omega_norm()[:, None]
    return Randers(M, w)


def matsumoto(v):
    beta = torch.tensor([0.3, -0.2, 0.1], dtype=v.dtype)[: v.shape[-1]]
    return (v * v).sum(-1) / ((v * v).sum(-1).sqrt() - (beta * v).sum(-1))


def slope(d):
    return CallableMetric(matsumoto, dim=d, like=torch.zeros((), dtype=torch.float64))


def contracted(T, v):
    return (T * v.reshape(*v.shape[:-1], *(1,) * (T.ndim - 2), v.shape[-1])).sum(-1)


@pytest.mark.parametrize("d", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_closed_forms_are_what_differentiation_gives(d):
    metric, v = randers(d, n=2), normal(3, 2, d, seed=9)
    plain = CallableMetric(metric.norm, dim=d, like=metric.M)
    for name in TENSORS:
        closed, found = getattr(metric, name)(v), getattr(plain, name)(v)
        torch.testing.assert_close(found, closed, rtol=1e-10, atol=1e-10)
    for kind in KINDS:
        closed, found = metric.volume_density(kind), plain.volume_density(kind)
        torch.testing.assert_close(found, closed, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("name", "digits"),
    [("legendre", 1e-9), ("fundamental_tensor", 1e-6), ("cartan_tensor", 3e-5)],
)
def test_differences_in_numpy(name, digits):
    metric, v = randers(2), normal(50, 4, 2, seed=9)
    there = Randers(metric.M.numpy(), metric.omega.numpy())
    plain = CallableMetric(there.norm)
    exact = getattr(there, name)(v.numpy())
    np.testing.assert_allclose(exact, getattr(metric, name)(v).numpy(), rtol=1e-12, atol=1e-12)
    found = getattr(plain, name)(v.numpy())
    assert np.abs(found - exact).max() < digits * np.abs(exact).max()


@pytest.mark.parametrize("d", [2, 3])
def test_eulers_theorem(d):
    """Degree by degree: F^2 of 2, its derivatives of 1, 0 and -1."""
    metric, v, w = slope(d), normal(6, d), normal(d, seed=3)
    F, p = metric.norm(v), metric.legendre(v)
    g, C, h = metric.fundamental_tensor(v), metric.cartan_tensor(v), metric.angular_metric(v)
    torch.testing.assert_close((p * v).sum(-1), F**2)
    torch.testing.assert_close(contracted(g, v), p)
    torch.testing.assert_close(contracted(C, v), torch.zeros_like(g), rtol=0, atol=1e-13)
    torch.testing.assert_close(contracted(h, v), torch.zeros_like(v), rtol=0, atol=1e-13)
    torch.testing.assert_close(metric.legendre(3 * v), 3 * p)
    torch.testing.assert_close(metric.fundamental_tensor(3 * v), g)
    torch.testing.assert_close(metric.cartan_tensor(3 * v), C / 3)
    # C is half, not once or a quarter, of the derivative of g: along w, by differences.
    step = 1e-6
    rise = metric.fundamental_tensor(v + step * w) - metric.fundamental_tensor(v - step * w)
    slope_of_g = rise / (2 * step)
    torch.testing.assert_close(2 * contracted(C, w), slope_of_g, rtol=1e-7, atol=1e-8)
    for i, j, k in ((0, 1, 1), (0, 0, 1)):
        torch.testing.assert_close(C[..., i, j, k], C[..., k, j, i])


def test_cartan_tensor_is_zero_exactly_for_riemannian_metrics():
    v = normal(5, 1, 2)
    M = randers(2).M
    for metric in (Euclidean(2), Riemannian(M), CallableMetric(Riemannian(M).norm, like=M)):
        assert float(metric.cartan_tensor(v).abs().max()) < 1e-14
    for strength in (1e-3, 0.9):
        mean = randers(2, strength=strength).cartan_tensor(v).abs().amax((-3, -2, -1))
        assert bool((mean > 1e-5 * strength).all())


@pytest.mark.parametrize("d", [2, 3])
def test_legendre_there_and_back(d):
    metric, v = slope(d), normal(20, d)
    p = metric.legendre(v)
    torch.testing.assert_close(metric.dual_norm(p), metric.norm(v))
    torch.testing.assert_close(metric.legendre_inverse(p), v, rtol=1e-10, atol=1e-10)
    # Lengths differ by a power that would underflow if it were squared.
    torch.testing.assert_close(metric.legendre_inverse(1e-200 * p), 1e-200 * v, rtol=1e-9, atol=0)
    zero = torch.zeros(2, d, dtype=torch.float64)
    for one in (metric, randers(d, n=2), Riemannian(torch.eye(d).double()), Euclidean(d)):
        assert torch.equal(one.legendre(zero), zero)
        assert torch.equal(one.legendre_inverse(zero), zero)


@pytest.mark.slow
def test_legendre_inverse_has_derivatives_of_its_own():
    """Those of the inverse function: of the covector twice, and of the metric's parameters."""
    beta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    p = normal(2, 2).requires_grad_()

    def found(p, beta):
        def norm(v):
            return (v * v).sum(-1) / ((v * v).sum(-1).sqrt() - (beta * v).sum(-1))

        return CallableMetric(norm, like=p).legendre_inverse(p)

    assert torch.autograd.gradcheck(found, (p, beta))
    assert torch.autograd.gradgradcheck(found, (p, beta))


def test_legendre_of_a_norm_with_corners():
    taxicab = CallableMetric(lambda v: np.abs(v).sum(-1))
    v = np.array([3.0, -4.0])
    np.testing.assert_allclose(taxicab.legendre(v), [7.0, -7.0], atol=1e-8)
    # A corner of the dual ball: every vector of the edge has this covector.
    back = taxicab.legendre_inverse(np.array([7.0, -7.0]))
    assert taxicab.norm(back) == pytest.approx(7.0)
    assert back @ [7.0, -7.0] == pytest.approx(49.0)


@pytest.mark.parametrize("d", [2, 3])
def test_volumes_of_unit_balls(d):
    metric = slope(d)
    ball = math.pi ** (d / 2) / math.gamma(d / 2 + 1)
    density = metric.volume_density()
    torch.testing.assert_close(density * volume(metric), torch.full_like(density, ball))
    if d == 2:
        dual = volume(CallableMetric(metric.dual_norm, like=metric.like))
        torch.testing.assert_close(metric.volume_density("holmes_thompson"), dual / ball)
    M = randers(d).M
    for kind in KINDS:
        torch.testing.assert_close(Riemannian(M).volume_density(kind), torch.linalg.det(M).sqrt())
    assert Euclidean(d).volume_density() == 1


def test_volumes_of_the_square_and_the_diamond():
    """The dual of the square of side 2 is the diamond of area 2."""
    square = CallableMetric(lambda v: np.abs(v).max(-1))
    assert square.volume_density("busemann_hausdorff") == pytest.approx(math.pi / 4, rel=1e-4)
    assert square.volume_density("holmes_thompson") == pytest.approx(2 / math.pi, rel=1e-4)


@pytest.mark.unchecked
def test_what_tensors_refuse():
    zero = np.array([[1.0, 0.0], [0.0, 0.0]])
    plain = CallableMetric(lambda v: np.abs(v).sum(-1))
    for metric in (Euclidean(2), plain, Randers(np.eye(2), np.array([0.1, 0.0]))):
        with pytest.raises(ValueError, match=r"v: expected non-zero vectors.*index \(1,\)"):
            metric.cartan_tensor(zero)
    with pytest.raises(ValueError, match="kind: expected 'busemann_hausdorff' or 'holmes_thompson"):
        Euclidean(2).volume_density("hausdorff")
    with pytest.raises(ValueError, match="p: expected vectors of 2 components"):
        Euclidean(2).legendre_inverse(np.ones(3))
