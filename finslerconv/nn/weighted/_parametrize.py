"""Any existing convolution made weighted in place, by a parametrization, and made plain again."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from finslerconv.nn.weighted._density import Density, DensityLike, as_density, check_no_zero
from finslerconv.nn.weighted._modules import Weighted

Conv = TypeVar("Conv", bound=_ConvNd)


class Weighting(nn.Module):
    """The parametrization ``weight = original * Phi`` that :func:`weight_convolution` registers.

    Assigning to ``conv.weight`` divides the assigned kernel by Phi, which must then have no zero.
    """

    def __init__(self, density: Density) -> None:
        super().__init__()
        self.density = density
        self._identity = False

    def forward(self, original: Tensor) -> Tensor:
        return original * self.density().to(original.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        if self._identity:
            return weight
        phi = self.density().to(weight.dtype)
        check_no_zero(phi, "when a weight is assigned")
        return weight / phi


def weight_convolution(conv: Conv, density: DensityLike, *, preserve: bool = False) -> Conv:
    """Put a density on the taps of any convolution, transposed ones too, in place.

    Parameters
    ----------
    conv : nn.Module
        A convolution of PyTorch, or of a class derived from one. It keeps its identity, its hooks
        and its parameter objects, so an optimiser that holds them goes on working (a trainable
        density's parameters are new to it).
    density : Density, Tensor, or sequence
        As in :class:`WeightedConv2d`.
    preserve : bool
        Whether to divide the weights by Phi, so that only the training of the layer changes, and
        not its output.

    Returns
    -------
    nn.Module
        ``conv``.

    Raises
    ------
    TypeError
        If ``conv`` is no convolution.
    ValueError
        If the density does not fit, the convolution is weighted already, or ``preserve`` is set
        and Phi has a zero, or the weight is computed (by a parametrization or a hook), so that
        there is nothing to divide.

    Notes
    -----
    Built on :mod:`torch.nn.utils.parametrize`: ``conv.weight`` becomes ``original * Phi``, and
    the ``state_dict`` keys are ``parametrizations.weight.original`` and, under
    ``parametrizations.weight.0.density.``, those of the density. PyTorch refuses to pickle
    parametrized modules; one that is parametrized by this function alone can be pickled and
    copied. For a plain ``nn.ConvNd``, :func:`to_weighted` keeps the keys ``weight``, ``bias`` and
    is faster. A weight that other layers hold too is divided for them as well;
    :func:`to_weighted` sees all of a model, and refuses that.

    Examples
    --------
    >>> conv = weight_convolution(nn.ConvTranspose2d(2, 4, 3), [0.7])
    >>> conv(torch.rand(1, 2, 8, 8)).shape
    torch.Size([1, 4, 10, 10])
    """
    if not isinstance(conv, _ConvNd):
        raise TypeError(f"conv must be a convolution of PyTorch; got {type(conv).__name__}")
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin) and conv.has_uninitialized_params():
        raise ValueError("conv has no weights yet; run it once, then put a density on it")
    if density_of(conv) is not None:
        raise ValueError("conv is weighted already; make it plain first (unweight_convolution)")
    density = as_density(density, conv.kernel_size, conv.weight)
    if preserve:
        divide(conv, density)
    own_class(conv)
    weighting = Weighting(density)
    weighting._identity = True
    parametrize.register_parametrization(conv, "weight", weighting, unsafe=True)
    weighting._identity = False
    # PyTorch made this class for one object, so it can hold how to pickle it.
    type(conv).__reduce_ex__ = _reduce_weighted  # type: ignore[assignment, method-assign]
    return conv


def unweight_convolution(conv: Conv, *, keep: str = "function") -> Conv:
    """Take the density off a convolution that :func:`weight_convolution` weighted, in place.

    Parameters
    ----------
    conv : nn.Module
        The convolution.
    keep : {"function", "weights"}
        ``"function"``: the weights become ``weight * Phi``, and the layer computes what it did.
        ``"weights"``: the weights are those below Phi, as if there had never been a density.

    Returns
    -------
    nn.Module
        ``conv``, of its former class, with the same parameter objects.

    Raises
    ------
    ValueError
        If it has no such density, or ``keep`` is neither value.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 1, 3)
    >>> unweight_convolution(weight_convolution(conv, [0.7]), keep="weights") is conv
    True
    """
    if keep not in ("function", "weights"):
        raise ValueError(f"keep must be 'function' or 'weights'; got {keep!r}")
    if isinstance(conv, Weighted):
        raise ValueError(
            f"{type(conv).__name__} is weighted by its class, which cannot be taken off in place; "
            "fold(conv) gives a plain convolution with the same output"
        )
    if density_of(conv) is None:
        raise ValueError("conv has no density on it (weight_convolution puts one)")
    if len(conv.parametrizations["weight"]) > 1:  # type: ignore[index]
        raise ValueError(
            "conv.weight has other parametrizations beside the density; remove all of them with "
            "torch.nn.utils.parametrize.remove_parametrizations, or use fold"
        )
    remove_parametrizations(conv, leave_parametrized=keep == "function")
    return conv


def remove_parametrizations(module: nn.Module, *, leave_parametrized: bool) -> None:
    """Remove all parametrizations of a module's weight, and of no copy's."""
    own_class(module)
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=leave_parametrized)


def own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own, which its copies do not share."""
    if parametrize.is_parametrized(module):
        cls = type(module)
        module.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))


def check_divisible(conv: _ConvNd, density: Density) -> None:
    """Raise if the weight of a convolution cannot be divided by the density."""
    if "weight" not in conv._parameters:
        raise ValueError(
            "the weight is computed, by a parametrization or a hook, and cannot be divided by the "
            "density with preserve=True; make it a plain parameter first "
            "(torch.nn.utils.parametrize.remove_parametrizations), or use preserve=False, which "
            "multiplies what is computed"
        )
    with torch.no_grad():
        check_no_zero(density().to(conv.weight.dtype), "with preserve=True")


@torch.no_grad()
def divide(conv: _ConvNd, density: Density) -> None:
    """Divide the weight of a convolution by the density, so that their product is the weight."""
    check_divisible(conv, density)
    conv.weight.div_(density().to(conv.weight.dtype))


def density_of(module: nn.Module) -> Density | None:
    """Return the density on the taps of a module, by class or by parametrization, or None."""
    if isinstance(module, Weighted):
        return module.density
    if parametrize.is_parametrized(module, "weight"):
        for parametrization in module.parametrizations["weight"]:  # type: ignore[index]
            if isinstance(parametrization, Weighting):
                return parametrization.density
    return None


def _reduce_weighted(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickle a weighted convolution as the plain one and its density."""
    modules = dict(self._modules)
    parametrizations: Any = modules.pop("parametrizations")
    names = list(parametrizations)
    if names != ["weight"] or len(parametrizations["weight"]) != 1:
        raise RuntimeError(
            "only a convolution whose sole parametrization is its density can be pickled; got "
            f"parametrizations of {names}; save its state_dict() instead"
        )
    weights = parametrizations["weight"]
    state = {**self.__dict__, "_modules": modules}, weights.original, weights[0].density
    plain_class = type(self).__mro__[1]
    return plain_class.__new__, (plain_class,), state, None, None, _restore_weighted


def _restore_weighted(conv: nn.Module, state: tuple[dict[str, Any], Tensor, Density]) -> None:
    plain, weight, density = state
    conv.__dict__.update(plain)
    conv._parameters["weight"] = weight  # type: ignore[assignment]
    weight_convolution(conv, density)  # type: ignore[type-var]
