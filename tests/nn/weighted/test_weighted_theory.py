"""What a density does to training: a learning rate and a weight decay of its own for each tap."""

import copy

import pytest
import torch
from torch.nn import functional

from finslerconv.nn.weighted import SeparableDensity, WeightedConv2d, fold

LR = 0.05


def setting():
    torch.manual_seed(0)
    density = SeparableDensity((3, 5), [[0.5], [0.3, 0.9]], dtype=torch.float64)
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


def test_adams_first_step_scales_with_phi_itself():
    # Adam divides the gradient's size out, so one factor of Phi is left, not two.
    conv, phi, loss = setting()
    plain = fold(conv)
    before = copy.deepcopy(plain)
    for module in (conv, plain):
        optimiser = torch.optim.Adam(module.parameters(), lr=LR, eps=1e-300)
        loss(module).backward()
        optimiser.step()
    step = plain.weight - before.weight
    torch.testing.assert_close(conv.effective_weight - before.weight, phi * step)


def test_the_set_of_functions_is_unchanged():
    # Any kernel w is reached, by the parameter w / Phi.
    conv, phi, _ = setting()
    wanted = torch.randn_like(conv.weight)
    with torch.no_grad():
        conv.weight.copy_(wanted / phi)
    torch.testing.assert_close(conv.effective_weight.detach(), wanted)
