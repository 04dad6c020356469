"""What a density does to training: a learning rate and a weight decay of its own for each tap."""

import pytest
import torch
from torch.nn import functional

from finslerconv.nn.weighted import SeparableDensity, WeightedConv2d, fold

LR = 0.05


def setting(outer=0.3):
    torch.manual_seed(0)
    density = SeparableDensity((3, 5), [[0.5], [outer, 0.9]], dtype=torch.float64)
    conv = WeightedConv2d(3, 4, (3, 5), padding="same", density=density, dtype=torch.float64)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    target = torch.randn(2, 4, 9, 9, dtype=torch.float64)

    def loss(module):
        return functional.mse_loss(torch.tanh(module(x)), target)

    return conv, density(), loss


def per_tap_sgd(plain, phi, loss, steps, *, weight_decay=0.0, momentum=0.0):
    """SGD on the applied kernel w with the rate lr Phi^2 and the decay weight_decay / Phi^2."""
    velocities = [torch.zeros_like(plain.weight), torch.zeros_like(plain.bias)]
    scales = [phi**2, torch.ones(())]
    for _ in range(steps):
        plain.zero_grad()
        loss(plain).backward()
        with torch.no_grad():
            for p, v, scale in zip(plain.parameters(), velocities, scales, strict=True):
                v.mul_(momentum).add_(p.grad + weight_decay / scale * p)
                p.sub_(LR * scale * v)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 5])
def test_sgd_steps_are_those_with_scaled_rates_and_decays(steps, momentum, weight_decay):
    conv, phi, loss = setting()
    plain = fold(conv)
    optimiser = torch.optim.SGD(
        conv.parameters(), lr=LR, momentum=momentum, weight_decay=weight_decay
    )
    for _ in range(steps):
        optimiser.zero_grad()
        loss(conv).backward()
        optimiser.step()
    per_tap_sgd(plain, phi, loss, steps, weight_decay=weight_decay, momentum=momentum)
    torch.testing.assert_close(conv.effective_weight, plain.weight)
    torch.testing.assert_close(conv.bias, plain.bias)
    assert not torch.allclose(conv.weight, plain.weight)


def per_tap_adam(plain, phi, loss, steps, *, eps, coupled=0.0, decoupled=0.0):
    """Adam on w with the rate lr |Phi| and eps / |Phi|, and the two kinds of weight decay."""
    means = [torch.zeros_like(p) for p in plain.parameters()]
    squares = [torch.zeros_like(p) for p in plain.parameters()]
    scales = [phi.abs(), torch.ones((), dtype=phi.dtype)]
    for t in range(1, steps + 1):
        plain.zero_grad()
        loss(plain).backward()
        with torch.no_grad():
            for p, m, s, scale in zip(plain.parameters(), means, squares, scales, strict=True):
                rate, decay = LR * scale, decoupled / scale
                g = p.grad + coupled / scale**2 * p
                m.mul_(0.9).add_(0.1 * g)
                s.mul_(0.999).add_(0.001 * g**2)
                p.sub_(rate * decay * p)
                root = (s / (1 - 0.999**t)).sqrt()
                p.sub_(rate * (m / (1 - 0.9**t)) / (root + eps / scale))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_adams_steps_have_the_rate_of_phi_itself(kind, weight_decay):
    # Adam divides the gradient's size out, so one factor of Phi is left, at every step; the decay
    # of AdamW is no part of the gradient.
    conv, phi, loss = setting(outer=-0.3)
    plain, eps = fold(conv), 1e-3  # large enough to show where it goes
    optimiser = getattr(torch.optim, kind)(
        conv.parameters(), lr=LR, eps=eps, weight_decay=weight_decay
    )
    for _ in range(6):
        optimiser.zero_grad()
        loss(conv).backward()
        optimiser.step()
    decay = {"Adam": "coupled", "AdamW": "decoupled"}[kind]
    per_tap_adam(plain, phi, loss, 6, eps=eps, **{decay: weight_decay})
    torch.testing.assert_close(conv.effective_weight, plain.weight)
    torch.testing.assert_close(conv.bias, plain.bias)
    assert not torch.allclose(conv.weight, plain.weight)


def test_the_set_of_functions_is_unchanged():
    # Any kernel w is reached, by the parameter w / Phi.
    conv, phi, _ = setting()
    wanted = torch.randn_like(conv.weight)
    with torch.no_grad():
        conv.weight.copy_(wanted / phi)
    torch.testing.assert_close(conv.effective_weight.detach(), wanted)
