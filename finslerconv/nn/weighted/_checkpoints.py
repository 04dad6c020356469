"""Checkpoints of the paper's own implementation, loaded into our modules."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finslerconv.nn.weighted._density import Density, SeparableDensity, TensorDensity
from finslerconv.nn.weighted._parametrize import Weighting, weighting_of

_OURS = "parametrizations.weight.0."


def load_reference_checkpoint(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a ``state_dict`` of the paper's own implementation.

    There a layer ``L`` with a fixed density has the keys ``L.weight``, ``L.bias``, ``L.alfa`` (the
    full profile) and ``L.Phi``; one with a trainable density ``L.weight``, ``L.bias`` and
    ``L.den`` (the half-profile). Here ``L`` must be weighted, by either way, and its density
    take the values: a fixed density of any kind takes Phi; a trainable
    :class:`SeparableDensity` with one profile for all axes, or a :class:`TensorDensity`, takes
    what the checkpoint has. All other keys are loaded as PyTorch loads them, strictly.

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
    layers = sorted({_layer(key) for key in state if _leaf(key) in ("alfa", "Phi", "den")})
    if not layers:
        raise ValueError(
            "state_dict has no key 'alfa', 'Phi' or 'den', so it is no checkpoint of the reference "
            "implementation; load it with model.load_state_dict"
        )
    ours: dict[str, Tensor] = {}
    values: dict[int, tuple[str, Tensor]] = {}
    for layer in layers:
        dot = f"{layer}." if layer else ""
        half, phi = _their_density(layer, {k: state.pop(dot + k, None) for k in _THEIRS})
        module, density = _weighted_layer(model, layer)
        first, taken = values.setdefault(id(density), (layer, phi))
        if taken.shape != phi.shape or not torch.allclose(taken, phi):
            raise ValueError(
                f"layers {first!r} and {layer!r} share one density, but the checkpoint has two "
                "different ones; give each layer its own density"
            )
        inside = dot
        if any(isinstance(m, Weighting) for m in module.modules()):
            inside += _OURS
            ours[f"{dot}parametrizations.weight.original"] = state.pop(f"{dot}weight")
        for key, value in _our_density(layer, density, half, phi).items():
            ours[f"{inside}density.{key}"] = value
    model.load_state_dict({**state, **ours})


_THEIRS = ("alfa", "Phi", "den")


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _their_density(layer: str, held: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Return a layer's half-profile and its profile, each one tensor; Phi is checked."""
    den, alfa, phi = held["den"], held["alfa"], held["Phi"]
    if den is not None:
        return den, torch.cat([den, den.new_ones(1), den.flip(0)])
    if alfa is None or phi is None:
        raise ValueError(f"layer {layer!r}: the checkpoint must have both 'alfa' and 'Phi'")
    product = alfa
    for _ in range(phi.dim() - 1):
        product = product[..., None] * alfa
    if product.shape != phi.shape or not torch.allclose(product, phi, rtol=1e-5):
        raise ValueError(f"layer {layer!r}: the checkpoint's 'Phi' is not the product of 'alfa'")
    return alfa[: len(alfa) // 2], alfa


def _weighted_layer(model: nn.Module, layer: str) -> tuple[nn.Module, Density]:
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        raise ValueError(f"the checkpoint's layer {layer!r} is not in the model") from None
    density = weighting_of(module)
    if density is None:
        raise ValueError(
            f"layer {layer!r} is weighted in the checkpoint but not in the model; convert the "
            "model first (to_weighted)"
        )
    return module, density


def _our_density(layer: str, density: Density, half: Tensor, alfa: Tensor) -> dict[str, Tensor]:
    """Return the entries of the density's own state_dict for the checkpoint's values."""
    if density.kernel_size != (len(alfa),) * len(density.kernel_size):
        raise ValueError(
            f"layer {layer!r}: the checkpoint's density has {len(alfa)} taps along each axis, "
            f"the model's kernel_size is {density.kernel_size}"
        )
    phi = alfa
    for _ in density.kernel_size[1:]:
        phi = phi[..., None] * alfa
    names = [name for name, _ in density.named_parameters()]
    if not density.trainable:
        return {"phi": phi}
    if isinstance(density, TensorDensity):
        name, value = names[0], phi
    elif isinstance(density, SeparableDensity) and len(names) == 1:
        name = names[0]
        value = alfa if len(density.get_parameter(name)) == len(alfa) else half
    else:
        raise ValueError(
            f"layer {layer!r}: a trainable {type(density).__name__} cannot take the checkpoint's "
            "profile; use a SeparableDensity with one profile for all axes"
        )
    if name.startswith("log_"):
        if not (value > 0).all():
            raise ValueError(
                f"layer {layer!r}: the checkpoint's density is not positive, the model's must be"
            )
        value = value.log()
    return {name: value}
