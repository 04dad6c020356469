"""Whole models made weighted, and plain again; weights that layers share stay shared."""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from finslerconv._arrays import has_values
from finslerconv._models import first_few, named, replace_modules
from finslerconv.nn._selection import Where, as_selection
from finslerconv.nn.weighted._density import Density, DensityLike, as_density, paper_profile
from finslerconv.nn.weighted._modules import WEIGHTED, Weighted
from finslerconv.nn.weighted._parametrize import (
    Weighting,
    check_divisible,
    density_of,
    divide,
    remove_parametrizations,
    weight_convolution,
)

#: Which density: one for all, one for each kernel size, or one made for each layer.
DensityChoice = (
    DensityLike
    | Mapping[int | tuple[int, ...], DensityLike]
    | Callable[[tuple[int, ...]], DensityLike]
)


def to_weighted(
    model: nn.Module,
    density: DensityChoice,
    where: Where = None,
    *,
    preserve: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """Put a density on the convolutions of a model.

    Parameters
    ----------
    model : nn.Module
        Any model, or a single convolution.
    density : Density, Tensor, sequence, mapping or callable
        A :class:`Density` is shared by all chosen layers; a tensor or a profile gives each
        layer a fixed density of its own; a mapping gives one of these for each kernel size,
        ``{3: [0.7], 5: [0.2, 0.8]}`` (a tuple such as ``(3, 5)`` for kernels that are not
        square); a callable makes one from each layer's ``kernel_size``, so
        ``lambda k: SeparableDensity(k, [0.7], trainable=True)`` trains one per layer.
    where : Selection, str, sequence of str, int, sequence of int, class or callable, optional
        Which convolutions, as in :func:`finslerconv.nn.convert`; by default all of more than one
        tap, and with a mapping, of a kernel size in it.
    preserve : bool
        Whether to divide the weights by Phi, so that only the training of the model changes, and
        not its output. On the meta device nothing is divided: weights loaded later are below Phi.
    inplace : bool
        Whether to change the model itself (parameters keep their identity, so an optimiser goes
        on working); by default a copy is changed.

    Returns
    -------
    nn.Module
        The weighted model. Each ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` is a
        ``WeightedConvNd`` with the same names of parameters; other convolutions (transposed,
        subclasses) are weighted by :func:`weight_convolution`. Shared weights stay shared.

    Raises
    ------
    ValueError
        If no convolution is chosen, one is weighted already, the density does not fit one, or
        ``preserve`` is set and a weight cannot be divided: Phi has a zero, a parametrization or a
        hook computes the weight, or it is shared with a layer that is not to be divided, or not by
        the same Phi. The message names the layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 1, 1))
    >>> [type(layer).__name__ for layer in to_weighted(net, {3: [0.7], 5: [0.2, 0.8]})]
    ['WeightedConv2d', 'ReLU', 'WeightedConv2d', 'Conv2d']
    """
    if not inplace:
        model = copy.deepcopy(model)
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, _ConvNd)]
    weighter = Weighter(density, preserve)
    selection = as_selection(where)
    chosen = {
        name: conv
        for name, conv in convolutions
        if (weighter.takes(conv) if where is None else selection(name, conv))
    }
    if not chosen:
        found = first_few([f"{named(name)} {m.kernel_size}" for name, m in convolutions])
        raise ValueError(
            f"no convolution of the model matches where={where!r}; it has: {found or 'none'}"
        )
    # All are checked before the first is changed: a refused model stays as it was.
    for name, conv in chosen.items():
        weighter.prepare(name, conv)
    reasons = weighter.unshareable(model, chosen.values())
    for name, conv in chosen.items():
        if conv in reasons:
            raise ValueError(
                f"layer {name!r}: {reasons[conv]}; choose both or neither by where, with "
                "one density, or use preserve=False"
            )
    return replace_modules(model, lambda _, module: weighter(module))


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
    >>> fold(nn.Sequential(WeightedConv2d(1, 2, 3, density=[0.7]), nn.ReLU()))[0]
    Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    if all(density_of(module) is None for module in model.modules()):
        raise ValueError("model has no weighted convolution to fold")
    model = model if inplace else copy.deepcopy(model)
    folder = Folder(model, list(model.modules()))
    return replace_modules(model, lambda _, module: folder(module))


class Weighter:
    """Put densities on the convolutions of a model, one by one; the inverse of :class:`Folder`.

    Without a ``choice`` the densities are the paper's. ``preserve`` divides the weights by them.
    """

    def __init__(self, choice: DensityChoice | None, preserve: bool) -> None:
        self._choice = choice
        self._preserve = preserve
        self._densities: dict[nn.Module, Density] = {}
        self._divided: set[Memory] = set()

    def lacks(self, kernel_size: tuple[int, ...]) -> str | None:
        """Return why there is no density for a kernel size, or None."""
        if isinstance(self._choice, Mapping) and self._entry(kernel_size) is None:
            return f"density has no entry for kernel_size {kernel_size}"
        if self._choice is None:
            try:
                _paper_profiles(kernel_size)
            except ValueError as error:
                return str(error)
        return None

    def takes(self, conv: _ConvNd) -> bool:
        """Whether a convolution has more than one tap, and there is a density for it."""
        kernel_size = tuple(conv.kernel_size)
        return any(k > 1 for k in kernel_size) and self.lacks(kernel_size) is None

    def prepare(self, name: str, conv: _ConvNd) -> None:
        """Make the density of a convolution; raise, naming the layer, if it does not fit."""
        kernel_size = tuple(conv.kernel_size)
        choice: Any = self._choice
        try:
            if density_of(conv) is not None:
                raise ValueError("it is weighted already; leave it out by where, or fold it first")
            if choice is None:
                choice = _paper_profiles(kernel_size)
            elif isinstance(choice, Mapping):
                reason = self.lacks(kernel_size)
                if reason is not None:
                    raise ValueError(f"{reason}; it has {list(choice)}")
                choice = self._entry(kernel_size)
            elif not isinstance(choice, Density | Tensor | Sequence) and callable(choice):
                choice = choice(kernel_size)
            density = as_density(choice, kernel_size, conv.weight)
            if self._preserve:
                check_divisible(conv, density)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {named(name)!r}: {error}") from error
        self._densities[conv] = density

    def unshareable(self, model: nn.Module, chosen: Iterable[nn.Module]) -> dict[nn.Module, str]:
        """Return which of the prepared layers share a weight that cannot be divided for all."""
        if not self._preserve:
            return {}
        return _unshareable(model, {layer: self._densities[layer] for layer in chosen})

    def __call__(self, conv: nn.Module) -> nn.Module:
        """Return what a prepared convolution becomes; another module as it is."""
        density = self._densities.get(conv)
        if density is None or not isinstance(conv, _ConvNd):
            return conv
        if self._preserve and _memory(conv.weight) not in self._divided:
            self._divided.add(_memory(conv.weight))
            divide(conv, density)
        cls = WEIGHTED.get(type(conv))
        if cls is None or parametrize.is_parametrized(conv):
            return weight_convolution(conv, density)
        new = _recast(conv, cls)
        new.density = density
        return new

    def _entry(self, kernel_size: tuple[int, ...]) -> DensityLike | None:
        densities: Any = self._choice
        if kernel_size in densities:
            return densities[kernel_size]
        return densities.get(kernel_size[0]) if len(set(kernel_size)) == 1 else None


class Folder:
    """Fold layers of a model, one by one; the inverse of :class:`Weighter`.

    A shared weight is multiplied in place, once, if all its holders are folded with equal
    densities. Otherwise the layer gets a copy, and :meth:`note` says so.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        found = {layer: density_of(layer) for layer in layers}
        self._densities = {
            layer: density for layer, density in found.items() if density is not None
        }
        self._unshareable = _unshareable(model, self._densities)
        self._multiplied: set[Memory] = set()

    def note(self, layer: nn.Module) -> str | None:
        """Return what changes in a layer besides its density, or None."""
        if layer in self._unshareable:
            return f"{self._unshareable[layer]}; this one is a copy"
        if _kernel(layer) is None:
            return "the other parametrisations of its weight are folded with the density"
        return None

    @torch.no_grad()
    def __call__(self, layer: nn.Module) -> nn.Module:
        """Return the plain convolution that a layer becomes; another module as it is."""
        density = self._densities.get(layer)
        if density is None:
            return layer
        weight = _kernel(layer)
        if weight is None or layer in self._unshareable:
            effective: Any = layer.effective_weight if isinstance(layer, Weighted) else layer.weight
            held: Any = layer
            if parametrize.is_parametrized(layer, "weight"):
                held = layer.parametrizations["weight"]  # type: ignore[index]
            names = ("weight", "original")  # without the density and the bias
            trained = any(
                p.requires_grad for n, p in held._parameters.items() if n.startswith(names)
            )
            weight = nn.Parameter(effective.detach().clone(), requires_grad=trained)
        elif _memory(weight) not in self._multiplied:
            self._multiplied.add(_memory(weight))
            weight.mul_(density().to(weight.dtype))
        if parametrize.is_parametrized(layer, "weight"):
            functions: Any = layer.parametrizations["weight"]  # type: ignore[index]
            if functions.is_tensor:
                # PyTorch would write the result into the original, which others may hold.
                functions.original = weight
            remove_parametrizations(layer, leave_parametrized=not functions.is_tensor)
        conv: Any = layer
        if isinstance(layer, Weighted):
            plain = next(plain for plain, ours in WEIGHTED.items() if isinstance(layer, ours))
            conv = _recast(layer, plain)
            del conv._modules["density"]
        conv.weight = weight
        return conv


#: Where a tensor begins. Tied parameters may be one object, or two of the same memory.
Memory = tuple[int, int]


def shared_kernels(model: nn.Module) -> dict[nn.Module, list[tuple[str, nn.Module]]]:
    """Return for each module the others that hold the parameter of its kernel, if any do."""
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
                holders.setdefault(_memory(parameter), []).append((name, module))
    others = {}
    for module in model.modules():
        weight = _kernel(module)
        if weight is not None and not isinstance(weight, nn.UninitializedParameter):
            others[module] = [(n, m) for n, m in holders[_memory(weight)] if m is not module]
    return {module: found for module, found in others.items() if found}


def shared_outside(model: nn.Module, chosen: Collection[nn.Module]) -> dict[nn.Module, str]:
    """Return which chosen modules share a kernel with one that is not chosen, and with which."""
    return {
        module: f"its weight is shared with {name}, which keeps it as it is"
        for module, others in shared_kernels(model).items()
        for name, other in others
        if module in chosen and (other not in chosen or _kernel(other) is None)
    }


@torch.no_grad()
def _unshareable(model: nn.Module, densities: Mapping[nn.Module, Density]) -> dict[nn.Module, str]:
    """Return which modules share a weight with one that has another density or none, and why."""
    reasons = shared_outside(model, densities.keys())
    different = {
        module: f"its weight is shared with {name}, whose density is another"
        for module, others in shared_kernels(model).items()
        if module in densities and module not in reasons
        for name, other in others
        if not _equal(densities[module], densities[other])
    }
    return reasons | different


def _equal(a: Density, b: Density) -> bool:
    if a is b or a.kernel_size != b.kernel_size:
        return a is b
    first, second = a(), b()
    # On the meta device they may be equal, and nothing is multiplied.
    return not (has_values(first) and has_values(second)) or torch.equal(first, second)


def _memory(tensor: Tensor) -> Memory:
    """Return where a tensor begins, on the meta device too."""
    try:
        return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
    except (NotImplementedError, RuntimeError):
        # Sparse tensors and some subclasses have no such storage.
        return id(tensor), 0


def _kernel(module: nn.Module) -> Tensor | None:
    """Return the parameter that is a module's weight, with or without a density; or None."""
    weight = module._parameters.get("weight")
    if weight is None and parametrize.is_parametrized(module, "weight"):
        functions: Any = module.parametrizations["weight"]  # type: ignore[index]
        alone = len(functions) == 1 and isinstance(functions[0], Weighting)
        weight = functions.original if alone else None
    return weight


def _recast(module: nn.Module, cls: type[nn.Module]) -> Any:
    """Make a module of another class with the same parameters, hooks, and attributes."""
    new = nn.Module.__new__(cls)
    # Copies of the containers share their contents: hooks and parameters keep their identity.
    for name, value in module.__dict__.items():
        new.__dict__[name] = value.copy() if isinstance(value, dict) else value
    return new


def _paper_profiles(kernel_size: tuple[int, ...]) -> list[Any]:
    profiles = [paper_profile(k, len(kernel_size)) for k in kernel_size]
    return profiles if len(set(kernel_size)) > 1 else profiles[0]
