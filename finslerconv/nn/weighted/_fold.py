"""Folding: weighted convolutions made plain ones that compute the same, at no cost."""

import copy

import torch
from torch import nn

from finslerconv.nn.weighted._modules import _Weighted
from finslerconv.nn.weighted._parametrize import (
    PLAIN,
    recast,
    remove_parametrizations,
    replace_modules,
    weighting_of,
)


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
        of the plain model, so it can be loaded and exported anywhere.

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
    return replace_modules(model if inplace else copy.deepcopy(model), _plain)


def _plain(name: str, module: nn.Module) -> nn.Module:
    if weighting_of(module) is None:
        return module
    if not isinstance(module, _Weighted):
        remove_parametrizations(module, leave_parametrized=True)
        return module
    conv = recast(module, PLAIN[_base(module)])
    del conv._modules["density"]
    with torch.no_grad():
        effective = module.effective_weight
    conv.weight = nn.Parameter(effective.detach(), requires_grad=module.weight.requires_grad)
    return conv


def _base(module: _Weighted) -> type[_Weighted]:
    return next(cls for cls in type(module).__mro__ if cls in PLAIN)
