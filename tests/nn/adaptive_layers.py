"""The adaptive layers of the library, and how to make them sample away from their taps."""

import torch

from finslerconv.nn import (
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    GeodesicConv2d,
    MetricConv1d,
    MetricConv2d,
    MetricConv3d,
    ShiftedConv2d,
)

#: The layers for images, and what each calls its groups.
GROUPS_ARGUMENT = {
    MetricConv2d: "metric_groups",
    GeodesicConv2d: "metric_groups",
    DeformConv2d: "offset_groups",
    ShiftedConv2d: "offset_groups",
}

#: The layers for sequences and volumes.
LINE_AND_SPACE = {
    MetricConv1d: "metric_groups",
    MetricConv3d: "metric_groups",
    DeformConv1d: "offset_groups",
    DeformConv3d: "offset_groups",
}


def stirred(layer, amount=0.3):
    """Move every parameter that says where the layer samples, or how much."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name not in ("weight", "bias"):
                parameter.add_(amount * torch.randn_like(parameter))
    return layer


def assert_it_learns(layer, x, steps):
    """Assert that gradient descent lowers a loss, and that every parameter gets a gradient."""
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05)
    y = torch.randn_like(layer(x))
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
