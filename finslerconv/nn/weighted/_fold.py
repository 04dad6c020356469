"""Folding: weighted convolutions made plain ones that compute the same, at no cost."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finslerconv.nn.weighted._modules import _Weighted
from finslerconv.nn.weighted._parametrize import (
    PLAIN,
    kernel_parameter,
    recast,
    remove_parametrizations,
    replace_modules,
    weighting_of,
)
from finslerconv.nn.weighted._sharing import Memory, memory, unshareable


def fold(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Multiply every density into its weights: plain convolutions with the same output.

    Parameters
    ----------
    model : nn.Module
        A weighted convolution, or a model that holds some.
    inplace : bool
        Whether to fold the model itself; by default a copy is folded and the model stays as
        it is.

    Returns
    -------
    nn.Module
        The model without densities: each ``WeightedConvNd`` an ``nn.ConvNd``, and each convolution
        weighted by :func:`weight_convolution` of its former class. Its ``state_dict`` has the keys
        of the plain model, so it can be loaded and exported anywhere. Weights that layers share
        stay shared where all of these are folded with the same density.

    Raises
    ------
    ValueError
        If there is no weighted convolution in it.

    Examples
    --------
    >>> from finslerconv.nn.weighted import WeightedConv2d
    >>> fold(nn.Sequential(WeightedConv2d(1, 2, 3, density=[0.7]), nn.ReLU()))
    Sequential(
      (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
    )
    """
    if all(weighting_of(module) is None for module in model.modules()):
        raise ValueError("model has no weighted convolution to fold")
    model = model if inplace else copy.deepcopy(model)
    folding = Folding(model, [m for m in model.modules() if weighting_of(m) is not None])
    return replace_modules(model, lambda _, module: folding(module))


class Folding:
    """The folding of some layers of a model, one by one.

    A weight is multiplied by its density where it is, once, if all who hold it are folded with the
    same density. Otherwise the layer gets one of its own, and :meth:`note` tells so.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        found = {id(layer): weighting_of(layer) for layer in layers}
        self._densities = {key: density for key, density in found.items() if density is not None}
        self._unshareable = unshareable(model, self._densities)
        self._multiplied: set[Memory] = set()

    def note(self, layer: nn.Module) -> str | None:
        """Return what is to be told of a layer that is not as it was but for its density."""
        if id(layer) in self._unshareable:
            return f"{self._unshareable[id(layer)]}; this one is a copy"
        if kernel_parameter(layer) is None:
            return "the other parametrisations of its weight are folded with the density"
        return None

    @torch.no_grad()
    def __call__(self, layer: nn.Module) -> nn.Module:
        """Return the plain convolution that a layer becomes; another module as it is."""
        density = self._densities.get(id(layer))
        if density is None:
            return layer
        weight = kernel_parameter(layer)
        if weight is None or id(layer) in self._unshareable:
            effective = layer.effective_weight if isinstance(layer, _Weighted) else layer.weight
            trained = any(p.requires_grad for p in _held(layer))
            weight = nn.Parameter(effective.detach().clone(), requires_grad=trained)  # type: ignore[operator]
        elif memory(weight) not in self._multiplied:
            self._multiplied.add(memory(weight))
            weight.mul_(density().to(weight.dtype))
        if parametrize.is_parametrized(layer, "weight"):
            functions: Any = layer.parametrizations["weight"]  # type: ignore[index]
            if functions.is_tensor:
                # PyTorch leaves what it held, and would write the result into what others may hold.
                functions.original = weight
            remove_parametrizations(layer, leave_parametrized=not functions.is_tensor)
        conv = layer
        if isinstance(layer, _Weighted):
            conv = recast(layer, PLAIN[_base(layer)])
            del conv._modules["density"]
        conv.weight = weight
        return conv


def _held(layer: nn.Module) -> list[Tensor]:
    """Return the parameters of which a layer's weight is computed, but for the density's."""
    held: Any = layer
    if parametrize.is_parametrized(layer, "weight"):
        held = layer.parametrizations["weight"]  # type: ignore[index]
    return [p for name, p in held._parameters.items() if name.startswith(("weight", "original"))]


def _base(module: _Weighted) -> type[_Weighted]:
    return next(cls for cls in type(module).__mro__ if cls in PLAIN)
