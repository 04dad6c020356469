"""What the two experiments on weighted convolution share: five kinds of convolutions."""

import torch
from torch import nn

from finslerconv.nn.weighted import (
    SeparableDensity,
    density_parameter_groups,
    fold,
    paper_profile,
    to_weighted,
)

#: The kinds of convolutions of a network:
#:
#: - standard: ordinary ones;
#: - weighted: with the paper's fixed density;
#: - same start: the same, but with the initial weights divided by Phi (``preserve=True``), so that
#:   the network starts as the standard one does and only its training differs;
#: - folded start: the other way round, ordinary ones that start as the weighted ones do;
#: - trained density: with a density trained in each layer, starting from the paper's.
VARIANTS = ("standard", "weighted", "same start", "folded start", "trained density")


def with_convolutions(model: nn.Module, variant: str, kernel_size: int) -> nn.Module:
    """Give a network one of the kinds of convolutions."""
    profile = paper_profile(kernel_size)
    if variant == "standard":
        return model
    if variant == "trained density":
        return to_weighted(
            model,
            lambda k: SeparableDensity(k, profile, trainable=True, positive=True),
            kernel_size,
            inplace=True,
        )
    preserve = variant == "same start"
    model = to_weighted(model, profile, kernel_size, preserve=preserve, inplace=True)
    return fold(model) if variant == "folded start" else model


def optimiser(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW, which trains the density ten times faster than the weights."""
    groups = density_parameter_groups(model, lr=2e-3, density_lr=2e-2, weight_decay=weight_decay)
    return torch.optim.AdamW([group for group in groups if group["params"]])
