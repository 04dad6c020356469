"""How weighted models are trained: groups for an optimiser, and the paper's own checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finslerconv.nn.weighted._density import Density, SeparableDensity, TensorDensity, outer
from finslerconv.nn.weighted._parametrize import Weighting, density_of


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


def load_reference_checkpoint(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a ``state_dict`` of the paper's own implementation.

    There a layer ``L`` with a fixed density has the keys ``L.weight``, ``L.bias``, ``L.alfa`` (the
    full profile) and ``L.Phi``; one with a trainable density has ``L.den`` (the half-profile)
    instead of the last two. Here ``L`` must be weighted, and its density fixed, of any kind, or a
    trainable :class:`TensorDensity`, or a trainable :class:`SeparableDensity` with one profile for
    all axes. All other keys are loaded as PyTorch loads them, strictly.

    Parameters
    ----------
    model : nn.Module
        The model, with the layers' names of the checkpoint; loaded in place.
    state_dict : mapping of str to Tensor
        The checkpoint, as ``torch.load`` gives it.

    Raises
    ------
    ValueError
        If a layer is missing or not weighted, its density cannot take the values, ``Phi`` is
        not the product of ``alfa``, or layers that share a density disagree about it. Nothing is
        loaded then.
    RuntimeError
        From PyTorch, if the other keys or the shapes do not match.

    Notes
    -----
    Layout: github.com/cammarasana123/weightedConvolution2.0, ``wConv.py`` and its trainable
    variant.

    Examples
    --------
    >>> from finslerconv.nn.weighted import WeightedConv2d
    >>> alfa = torch.tensor([0.7, 1.0, 0.7])
    >>> theirs = {"weight": torch.ones(1, 1, 3, 3), "alfa": alfa, "Phi": torch.outer(alfa, alfa)}
    >>> conv = WeightedConv2d(1, 1, 3, bias=False, density=[0.5])
    >>> load_reference_checkpoint(conv, theirs)
    >>> conv.density()[0]
    tensor([0.4900, 0.7000, 0.4900])
    """
    state = dict(state_dict)
    layers = sorted({k.rpartition(".")[0] for k in state if k.rpartition(".")[2] in _THEIRS})
    if not layers:
        raise ValueError(
            "state_dict has no key 'alfa', 'Phi' or 'den', so it is no checkpoint of the reference "
            "implementation; load it with model.load_state_dict"
        )
    taken: dict[int, tuple[str, Tensor]] = {}
    for layer in layers:
        dot = f"{layer}." if layer else ""
        profile = _their_profile(layer, *(state.pop(dot + key, None) for key in _THEIRS))
        module, density = _weighted_layer(model, layer)
        first, known = taken.setdefault(id(density), (layer, profile))
        if known.shape != profile.shape or not torch.allclose(known, profile):
            raise ValueError(
                f"layers {first!r} and {layer!r} share one density, but the checkpoint has two "
                "different ones; give each layer its own density"
            )
        inside = f"{dot}density."
        if any(isinstance(m, Weighting) for m in module.modules()):
            inside = f"{dot}parametrizations.weight.0.density."
            state[f"{dot}parametrizations.weight.original"] = state.pop(f"{dot}weight")
        name, value = _our_entry(layer, density, profile)
        state[inside + name] = value
    model.load_state_dict(state)


_THEIRS = ("alfa", "Phi", "den")


def _their_profile(
    layer: str, alfa: Tensor | None, phi: Tensor | None, den: Tensor | None
) -> Tensor:
    """Return the full profile of a layer of the checkpoint; Phi is checked."""
    if den is not None:
        return torch.cat([den, den.new_ones(1), den.flip(0)])
    if alfa is None or phi is None:
        raise ValueError(f"layer {layer!r}: the checkpoint must have both 'alfa' and 'Phi'")
    product = outer([alfa] * phi.dim())
    if product.shape != phi.shape or not torch.allclose(product, phi, rtol=1e-5):
        raise ValueError(f"layer {layer!r}: the checkpoint's 'Phi' is not the product of 'alfa'")
    return alfa


def _weighted_layer(model: nn.Module, layer: str) -> tuple[nn.Module, Density]:
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        raise ValueError(f"the checkpoint's layer {layer!r} is not in the model") from None
    density = density_of(module)
    if density is None:
        raise ValueError(
            f"layer {layer!r} is weighted in the checkpoint but not in the model; convert the "
            "model first (to_weighted)"
        )
    return module, density


def _our_entry(layer: str, density: Density, profile: Tensor) -> tuple[str, Tensor]:
    """Return the name and value in the density's state_dict that stand for a profile."""
    k, n = len(profile), len(density.kernel_size)
    if density.kernel_size != (k,) * n:
        raise ValueError(
            f"layer {layer!r}: the checkpoint's density has {k} taps along each axis, "
            f"the model's kernel_size is {density.kernel_size}"
        )
    value = outer([profile] * n)
    if not density.trainable:
        return "phi", value
    parameters = dict(density.named_parameters())
    name = next(iter(parameters))
    if isinstance(density, SeparableDensity) and len(parameters) == 1:
        value = profile[: len(parameters[name])]
    elif not isinstance(density, TensorDensity):
        raise ValueError(
            f"layer {layer!r}: a trainable {type(density).__name__} cannot take the checkpoint's "
            "profile; use a SeparableDensity with one profile for all axes"
        )
    if not name.startswith("log_"):
        return name, value
    if not (value > 0).all():
        raise ValueError(
            f"layer {layer!r}: the checkpoint's density is not positive, the model's must be"
        )
    return name, value.log()
