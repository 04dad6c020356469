"""Weights that several layers share: who else holds one, and whether a density can go into it."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finslerconv._arrays import has_values
from finslerconv.nn.weighted._density import Density
from finslerconv.nn.weighted._parametrize import kernel_parameter

#: Where a tensor begins. Tied parameters may be one object, or two of the same memory.
Memory = tuple[int, int]


def memory(tensor: Tensor) -> Memory:
    """Return where a tensor begins, also for one that has no data (on the meta device)."""
    try:
        return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
    except (NotImplementedError, RuntimeError):
        # Sparse ones, and those of some libraries, are not stored so.
        return id(tensor), 0


def sharing(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Return for each module, by identity, the others that hold the parameter of its kernel."""
    holders: dict[Memory, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        held = list(module._parameters.values())
        if parametrize.is_parametrized(module):
            for functions in module.parametrizations.values():
                held += functions._parameters.values()
        for parameter in held:
            if parameter is not None and not isinstance(parameter, nn.UninitializedParameter):
                holders.setdefault(memory(parameter), []).append((name, module))
    others = {}
    for _, module in model.named_modules():
        weight = kernel_parameter(module)
        if weight is not None and not isinstance(weight, nn.UninitializedParameter):
            found = [(name, m) for name, m in holders[memory(weight)] if m is not module]
            if found:
                others[id(module)] = found
    return others


def shared_outside(model: nn.Module, chosen: Collection[int]) -> dict[int, str]:
    """Return which of the chosen modules share their weight with one that is not, and with which.

    Both by the identity of the module, as in :func:`sharing`.
    """
    reasons = {}
    for key, others in sharing(model).items():
        for name, module in others:
            outside = id(module) not in chosen or kernel_parameter(module) is None
            if key in chosen and outside:
                reasons[key] = f"its weight is shared with {name}, which keeps it as it is"
    return reasons


@torch.no_grad()
def unshareable(model: nn.Module, densities: Mapping[int, Density]) -> dict[int, str]:
    """Return which modules share a weight that cannot take up all their densities, and why.

    A density is multiplied into a shared weight, or divided out of it, once for all the modules
    that hold it: all must be here, with densities of the same value.
    """
    reasons = shared_outside(model, densities.keys())
    for key, others in sharing(model).items():
        if key in densities and key not in reasons:
            for name, module in others:
                if not _equal(densities[key], densities[id(module)]):
                    reasons[key] = f"its weight is shared with {name}, whose density is another"
    return reasons


def _equal(a: Density, b: Density) -> bool:
    if a is b or a.kernel_size != b.kernel_size:
        return a is b
    first, second = a(), b()
    # Without values they may yet be equal, and nothing is multiplied.
    return not (has_values(first) and has_values(second)) or torch.equal(first, second)
