"""Whole models made weighted: which convolutions, and with which density."""

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from finslerconv._arrays import is_integer
from finslerconv.nn._messages import first_few
from finslerconv.nn.weighted._density import Density, as_density
from finslerconv.nn.weighted._modules import DensityLike
from finslerconv.nn.weighted._parametrize import (
    WEIGHTED,
    check_divisible,
    divide,
    recast,
    replace_modules,
    weight_convolution,
    weighting_of,
)
from finslerconv.nn.weighted._sharing import Memory, memory, unshareable

#: Which convolutions: a kernel size, a pattern of names, a predicate, or all (None).
Where = int | Sequence[int] | str | Callable[[str, nn.Module], bool] | None
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
    where : int, sequence of int, str, callable, optional
        An integer or a tuple: the convolutions of that kernel size. A string: those whose
        dotted name matches this pattern (as file names do: ``"features.*"``). A callable
        ``(name, module) -> bool``. By default all convolutions that have more than one tap, and
        with a mapping, those whose kernel size is in it.
    preserve : bool
        Whether to divide the weights by Phi, so that the model computes what it did and only its
        training changes. On the meta device there is nothing to divide: what is loaded later are
        weights below Phi.
    inplace : bool
        Whether to change the model itself (parameters keep their identity, so an optimiser goes
        on working); by default a copy is changed.

    Returns
    -------
    nn.Module
        The weighted model. Each ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` is a
        ``WeightedConvNd`` with the same names of parameters; other convolutions (transposed,
        subclasses) are weighted by :func:`weight_convolution`.

    Raises
    ------
    ValueError
        If no convolution is chosen, one is weighted already, the density does not fit one, or
        ``preserve`` is set and a weight cannot be divided: Phi has a zero, a parametrization or a
        hook computes the weight, or it is shared with a layer that is not to be divided, or not by
        the same Phi. The message names the layer.

    Notes
    -----
    Weights that layers share stay shared.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 1, 1))
    >>> to_weighted(net, {3: [0.7], 5: [0.2, 0.8]})
    Sequential(
      (0): WeightedConv2d(
        1, 8, kernel_size=(5, 5), stride=(1, 1)
        (density): SeparableDensity(kernel_size=(5, 5), trainable=False)
      )
      (1): ReLU()
      (2): WeightedConv2d(
        8, 8, kernel_size=(3, 3), stride=(1, 1)
        (density): SeparableDensity(kernel_size=(3, 3), trainable=False)
      )
      (3): Conv2d(8, 1, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    if not inplace:
        model = copy.deepcopy(model)
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, _ConvNd)]
    chosen = {name: conv for name, conv in convolutions if _matches(name, conv, where, density)}
    if not chosen:
        there = [f"{name or '(the model itself)'} {m.kernel_size}" for name, m in convolutions]
        found = ", ".join(first_few(there)) or "none"
        raise ValueError(f"no convolution of the model matches where={where!r}; it has: {found}")
    # All are checked before the first is changed: a refused model stays as it was.
    densities = {
        id(conv): _density_for(name, conv, density, preserve) for name, conv in chosen.items()
    }
    if preserve:
        reasons = unshareable(model, densities)
        for name, conv in chosen.items():
            if id(conv) in reasons:
                raise ValueError(
                    f"layer {name!r}: {reasons[id(conv)]}; choose both or neither by where, with "
                    "one density, or use preserve=False"
                )
    divided: set[Memory] | None = set() if preserve else None

    def weighted(_: str, module: nn.Module) -> nn.Module:
        if not isinstance(module, _ConvNd) or id(module) not in densities:
            return module
        return _weighted(module, densities[id(module)], divided)

    return replace_modules(model, weighted)


def _matches(name: str, conv: _ConvNd, where: Where, density: DensityChoice) -> bool:
    kernel_size = tuple(conv.kernel_size)
    if isinstance(where, str):
        matched = fnmatch.fnmatchcase(name, where)
    elif is_integer(where):
        matched = all(k == where for k in kernel_size)
    elif isinstance(where, Sequence):
        matched = kernel_size == tuple(where)
    elif where is not None:
        matched = bool(where(name, conv))  # type: ignore[operator]
    else:
        matched = any(k > 1 for k in kernel_size)
        if isinstance(density, Mapping):
            matched = _in_mapping(kernel_size, density) is not None
    return matched


def _in_mapping(
    kernel_size: tuple[int, ...], densities: Mapping[int | tuple[int, ...], DensityLike]
) -> DensityLike | None:
    if kernel_size in densities:
        return densities[kernel_size]
    return densities.get(kernel_size[0]) if len(set(kernel_size)) == 1 else None


def _density_for(name: str, conv: _ConvNd, choice: DensityChoice, preserve: bool) -> Density:
    kernel_size = tuple(conv.kernel_size)
    try:
        if weighting_of(conv) is not None:
            raise ValueError("it is weighted already; leave it out by where, or fold it first")
        if isinstance(choice, Mapping):
            found = _in_mapping(kernel_size, choice)
            if found is None:
                raise ValueError(
                    f"density has no entry for kernel_size {kernel_size}; it has {list(choice)}"
                )
        elif isinstance(choice, Density | Tensor | Sequence):
            found = choice
        elif callable(choice):
            found = choice(kernel_size)
        else:
            found = choice
        density = as_density(found, kernel_size, conv.weight)
        if preserve:
            check_divisible(conv, density)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name or '(the model itself)'!r}: {error}") from error
    return density


def _weighted(conv: _ConvNd, density: Density, divided: set[Memory] | None) -> nn.Module:
    """Return a convolution with a density on it.

    ``divided`` are the weights that were divided by theirs, each once however many share it; None
    if none is to be.
    """
    if divided is not None and memory(conv.weight) not in divided:
        divided.add(memory(conv.weight))
        divide(conv, density)
    cls = WEIGHTED.get(type(conv))
    if cls is None or parametrize.is_parametrized(conv):
        return weight_convolution(conv, density)
    new: nn.Module = recast(conv, cls)
    new.density = density
    return new
