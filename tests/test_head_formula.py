"""The constraints on omega keep its norm below one and its direction as it is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finslerconv._head_formula import OMEGA_CONSTRAINTS, clip, sigmoid, sigmoid_detached
from finslerconv._parametrization import PARAMETRIZATIONS
from finslerconv.nn import MetricConv2d

seeds = st.integers(0, 2**31)
eps_omegas = st.floats(0.01, 1.0)


every_dim = pytest.mark.parametrize("d", [1, 2, 3])


def random_pair(seed, d=2, n=6):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, d, d, dtype=torch.float64, generator=generator)
    raw = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return raw * 3, A @ A.mT + 0.1 * torch.eye(d, dtype=torch.float64)


def norm(omega, M):
    return torch.einsum("ni,ni->n", omega, torch.linalg.solve(M, omega)).sqrt()


@every_dim
@pytest.mark.parametrize("name", OMEGA_CONSTRAINTS)
@given(seed=seeds, eps=eps_omegas)
def test_norm_is_held_and_direction_kept(name, d, seed, eps):
    raw, M = random_pair(seed, d)
    omega = OMEGA_CONSTRAINTS[name](raw, M, eps)
    assert (norm(omega, M) <= (1 - eps) * (1 + 1e-12)).all()
    cross = raw[:, :, None] * omega[:, None] - raw[:, None] * omega[:, :, None]
    assert cross.abs().max() <= 1e-12 * raw.square().sum(-1).max()
    assert ((raw * omega).sum(-1) >= 0).all()


@every_dim
@given(seed=seeds, eps=eps_omegas)
def test_sigmoid_law(d, seed, eps):
    raw, M = random_pair(seed, d)
    expected = (2 * torch.sigmoid(norm(raw, M)) - 1) * (1 - eps)
    torch.testing.assert_close(norm(sigmoid(raw, M, eps), M), expected)


@every_dim
@given(seed=seeds)
def test_clip_law(d, seed):
    raw, M = random_pair(seed, d)
    expected = norm(raw, M).clamp(max=0.7)
    torch.testing.assert_close(norm(clip(raw, M, 0.3), M), expected)


@pytest.mark.parametrize("n", [0.0, 1e-9, 0.0999, 0.1001, 2.0, 50.0])
def test_sigmoid_series_and_closed_form_meet(n):
    raw = torch.tensor([[n, 0.0]], dtype=torch.float64)
    omega = sigmoid(raw, torch.eye(2, dtype=torch.float64)[None], 0.1)
    expected = 0.9 * torch.tanh(torch.tensor(n, dtype=torch.float64) / 2)
    torch.testing.assert_close(omega[0, 0], expected, rtol=1e-14, atol=0)


@every_dim
@pytest.mark.parametrize("constraint", [sigmoid, clip])
def test_gradients(constraint, d):
    raw, M = random_pair(1, d)
    arguments = (raw.requires_grad_(), M.requires_grad_())
    assert torch.autograd.gradcheck(lambda w, m: constraint(w, (m + m.mT) / 2, 0.2), arguments)
    assert torch.autograd.gradgradcheck(lambda w, m: constraint(w, (m + m.mT) / 2, 0.2), arguments)


def test_detached_has_the_factor_as_a_constant():
    raw, M = random_pair(2)
    raw.requires_grad_()
    omega = sigmoid_detached(raw, M, 0.1)
    torch.testing.assert_close(omega, sigmoid(raw, M, 0.1))
    (gradient,) = torch.autograd.grad(omega.sum(), raw)
    torch.testing.assert_close(gradient, (omega / raw).detach())


@every_dim
@pytest.mark.parametrize("name", OMEGA_CONSTRAINTS)
def test_zero_stays_zero_with_finite_gradients(name, d):
    raw = torch.zeros(1, d, dtype=torch.float64, requires_grad=True)
    M = torch.eye(d, dtype=torch.float64)[None].requires_grad_()
    omega = OMEGA_CONSTRAINTS[name](raw, M, 0.1)
    assert torch.equal(omega, torch.zeros_like(omega))
    for gradient in torch.autograd.grad(omega.sum(), (raw, M), allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@every_dim
@pytest.mark.parametrize("kind", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
@pytest.mark.parametrize("name", OMEGA_CONSTRAINTS)
@pytest.mark.parametrize("spread", [10.0, 1e4])
def test_wild_outputs_of_a_head_in_float32_are_metrics(kind, name, spread, d):
    """At the least eps_omega that a head takes, whatever its channels say."""
    generator = torch.Generator().manual_seed(0)
    parametrization = kind(dim=d)
    raw = spread * torch.randn(100_000, parametrization.n_channels + d, generator=generator)
    M = parametrization.matrix(raw[:, :-d])
    omega = OMEGA_CONSTRAINTS[name](raw[:, -d:], M, 0.01)
    assert (norm(omega.double(), M.double()) < 1).all()


def test_the_least_eps_omega_is_said():
    with pytest.raises(ValueError, match=r"eps_omega: expected a number in \[0\.01, 1\]"):
        MetricConv2d(3, 4, 3, eps_omega=0.005)
