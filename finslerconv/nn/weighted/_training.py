"""Training help: the density's parameters in an optimiser group of their own."""

from typing import Any

from torch import nn

from finslerconv.nn.weighted._density import Density


def density_parameter_groups(
    model: nn.Module,
    lr: float,
    density_lr: float,
    *,
    weight_decay: float = 0.0,
    density_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Split a model's parameters into those of its densities and all others.

    Parameters
    ----------
    model : nn.Module
        A model with weighted convolutions.
    lr, density_lr : float
        Learning rates of the weights and of the densities (the paper: 1e-4 and 1e-2, AdamW).
    weight_decay, density_weight_decay : float
        Their weight decays. By default 0: a decay draws a density to 0, or, where it is
        ``positive``, to 1.

    Returns
    -------
    list of dict
        Two groups for any optimiser of PyTorch, named ``"weights"`` and ``"densities"``, so that
        each may have its own schedule too. Every parameter that requires a gradient is in
        exactly one, also when layers share it. The second is empty when all densities are fixed.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn.weighted import SeparableDensity, WeightedConv2d
    >>> conv = WeightedConv2d(1, 1, 3, density=SeparableDensity((3, 3), [0.7], trainable=True))
    >>> groups = density_parameter_groups(conv, lr=1e-4, density_lr=1e-2, weight_decay=1e-2)
    >>> [(group["name"], len(group["params"])) for group in groups]
    [('weights', 2), ('densities', 1)]
    >>> optimiser = torch.optim.AdamW(groups)
    """
    of_densities = {
        id(p): p for m in model.modules() if isinstance(m, Density) for p in m.parameters()
    }
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in of_densities]
    return [
        {"name": "weights", "params": others, "lr": lr, "weight_decay": weight_decay},
        {
            "name": "densities",
            "params": [p for p in of_densities.values() if p.requires_grad],
            "lr": density_lr,
            "weight_decay": density_weight_decay,
        },
    ]
