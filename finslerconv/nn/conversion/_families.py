"""What a convolution can be converted to, and which convolutions each of these can take."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from finslerconv._arrays import has_values
from finslerconv.nn._adaptive import (
    _CONV_ARGUMENTS,
    AdaptiveConv2d,
    own_tensor,
    unlike_conv2d,
)
from finslerconv.nn._constructor import arguments_of
from finslerconv.nn._deform_conv import DeformConv2d
from finslerconv.nn._geodesic_conv import GeodesicConv2d
from finslerconv.nn._metric_conv import MetricConv2d
from finslerconv.nn._shifted_conv import ShiftedConv2d
from finslerconv.nn.conversion._found import is_foreign
from finslerconv.nn.conversion._report import described, named
from finslerconv.nn.conversion._takeover import take_over_surroundings, take_over_weights
from finslerconv.nn.weighted import paper_profile
from finslerconv.nn.weighted._convert import _density_for, _in_mapping, _weighted
from finslerconv.nn.weighted._density import Density
from finslerconv.nn.weighted._parametrize import WEIGHTED, weighting_of
from finslerconv.nn.weighted._sharing import Memory, shared_outside, unshareable

#: What a user may ask for: a name, an adaptive class, or a function from a convolution to a module.
To = str | type[AdaptiveConv2d] | Callable[..., nn.Module]

#: How the kernels start: as those that they replace, or at the constant ``1 / (k^2 C_in)``.
Start = Literal["weights", "constant"]

#: What ends a conversion: puts the parameters and hooks of the old layer into the new one.
Finish = Callable[[], tuple[nn.Module, tuple[str, ...]]]

#: The adaptive layers by the names that ``convert(to=...)`` takes.
ADAPTIVE: dict[str, type[AdaptiveConv2d]] = {
    "metric": MetricConv2d,
    "geodesic": GeodesicConv2d,
    "deform": DeformConv2d,
    "shifted": ShiftedConv2d,
}


@dataclass(frozen=True)
class Family:
    """What convolutions are converted to.

    Parameters
    ----------
    refuse : callable
        From a convolution to why it is left alone, or None.
    prepare : callable
        From a name and a convolution to what ends its conversion, or why it is left alone. All
        that can fail happens here, before anything is changed.
    withdraw : callable
        From a model and the identities of the convolutions that are prepared to which of them are
        left alone after all, and why.
    """

    refuse: Callable[[nn.Module], str | None]
    prepare: Callable[[str, Any], Finish | str]
    withdraw: Callable[[nn.Module, Collection[int]], dict[int, str]] = lambda model, chosen: {}


def family(to: To, start: Start, options: dict[str, Any]) -> Family:
    """Return what a user's ``to`` stands for.

    Raises
    ------
    TypeError, ValueError
        If it stands for nothing, or an option makes no sense with it.
    """
    if start not in ("weights", "constant"):
        raise ValueError(f"start: expected 'weights' or 'constant', got {start!r}")
    if isinstance(to, str):
        if to == "weighted":
            _only_weights(start, to)
            _check_options(to, {"density", "preserve"}, options)
            return _weighted_family(**options)
        if to not in ADAPTIVE:
            raise ValueError(
                f"to: expected one of {sorted([*ADAPTIVE, 'weighted'])}, a class of adaptive "
                f"layers or a function from a convolution to a module, got {to!r}"
            )
        to = ADAPTIVE[to]
    if isinstance(to, type):
        if not issubclass(to, AdaptiveConv2d):
            raise TypeError(
                f"to: expected a class of adaptive layers, got {to.__name__}; give a function "
                f"that makes one from a convolution, such as lambda conv: {to.__name__}(...)"
            )
        taken = _options_of(to)
        if taken is not None:
            _check_options(to.__name__, taken, options)
        return _adaptive_family(to, start, options)
    if isinstance(to, nn.Module):
        raise TypeError(
            f"to: expected a function that makes a module from each convolution, got a module, "
            f"{type(to).__name__}; lambda conv: {type(to).__name__}(...) makes a new one for each"
        )
    if not callable(to):
        raise TypeError(
            "to: expected a name, a class of adaptive layers or a function from a convolution to "
            f"a module, got {type(to).__name__}"
        )
    _only_weights(start, "a function")
    return _factory_family(to, options)


def _adaptive_family(cls: type[AdaptiveConv2d], start: Start, options: dict[str, Any]) -> Family:
    constant = start == "constant"

    def refuse(module: nn.Module) -> str | None:
        reason = _wrong_kind(module) or unlike_conv2d(module) or _hidden_weight(module)
        reason = reason or _single_tap(module) or _has_more(module)
        if reason is None and constant and parametrize.is_parametrized(module, "weight"):
            reason = "its weight is parametrised, which a constant start would undo"
        return reason

    def prepare(name: str, conv: nn.Conv2d) -> Finish:
        with located(name, conv):
            layer = cls._with_arguments_of(conv, **options)
            if layer.fixed_kernel and not constant:
                raise ValueError(
                    'fixed_kernel: would discard the weights; say so by start="constant"'
                )
        if layer.fixed_kernel:
            layer.bias = conv.bias
        else:
            take_over_weights(conv, layer)
        # On the meta device there are no values to tell by.
        departure = layer.departure() if has_values(own_tensor(layer)) else None

        def finish() -> tuple[nn.Module, tuple[str, ...]]:
            if constant:
                with torch.no_grad():
                    layer.weight.fill_(1 / layer.weight[0].numel())
            notes = ["frozen weights; what is new is trained"] if _is_frozen(conv) else []
            if departure is not None:
                notes.append(f"computes something else than it did: {departure}")
            if parametrize.is_parametrized(layer):
                names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
                notes.append(f"parametrisation of {names} carried over")
            return layer, (*notes, *take_over_surroundings(conv, layer))

        return finish

    if constant:
        return Family(refuse, prepare, shared_outside)
    return Family(refuse, prepare)


def _weighted_family(density: Any = None, preserve: bool = True) -> Family:
    """Weighted layers; without a density, the paper's for each kernel size."""
    densities: dict[int, Density] = {}
    divided: set[Memory] | None = set() if preserve else None

    def chosen(conv: _ConvNd) -> Any:
        if density is not None:
            return density
        profiles = [paper_profile(k, len(conv.kernel_size)) for k in conv.kernel_size]
        return profiles if len(set(conv.kernel_size)) > 1 else profiles[0]

    def refuse(module: nn.Module) -> str | None:
        reason = _wrong_kind(module)
        if reason is None and type(module) not in WEIGHTED and not _is_parametrized_conv(module):
            reason = unlike_conv2d(module)
        reason = reason or _lazy(module) or _hidden_weight(module) or _single_tap(module)
        if reason is None and preserve and parametrize.is_parametrized(module, "weight"):
            reason = (
                "its weight is parametrised, so that it cannot be divided by the density; "
                "preserve=False puts the density on top of it"
            )
        if reason is None and density is None:
            try:
                chosen(module)  # type: ignore[arg-type]
            except ValueError as error:
                reason = str(error)
        if reason is None and isinstance(density, Mapping):
            kernel_size = tuple(module.kernel_size)  # type: ignore[arg-type]
            if _in_mapping(kernel_size, density) is None:
                reason = f"density has no entry for kernel_size {kernel_size}"
        return reason

    def prepare(name: str, conv: _ConvNd) -> Finish:
        made = densities[id(conv)] = _density_for(name, conv, chosen(conv), preserve)

        undivided = preserve and not has_values(conv.weight)
        notes = ("on the meta device, where no weight is divided by its density",) * undivided

        def finish() -> tuple[nn.Module, tuple[str, ...]]:
            return _weighted(conv, made, divided), notes

        return finish

    def withdraw(model: nn.Module, prepared: Collection[int]) -> dict[int, str]:
        return unshareable(model, {key: densities[key] for key in prepared}) if preserve else {}

    return Family(refuse, prepare, withdraw)


def _factory_family(factory: Callable[..., nn.Module], options: dict[str, Any]) -> Family:
    def refuse(module: nn.Module) -> str | None:
        return _wrong_kind(module)

    def prepare(name: str, conv: nn.Conv2d) -> Finish | str:
        made = factory(conv, **options)
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"to: expected the function to return an nn.Module, got {type(made).__name__}"
            )
        if made is conv:
            return "the factory gave it back"

        def finish() -> tuple[nn.Module, tuple[str, ...]]:
            if any(module is conv for module in made.modules()):
                # It is still in use and keeps what it has.
                return made.train(conv.training), ()
            return made, take_over_surroundings(conv, made)

        return finish

    return Family(refuse, prepare)


@contextmanager
def located(name: str, module: nn.Module) -> Iterator[None]:
    """Say in an error at which layer it arose."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} (at {named(name)}: {described(module)})") from error


def _options_of(cls: type[AdaptiveConv2d]) -> set[str] | None:
    """Return what a class takes besides the arguments of a convolution; None if it takes all."""
    found = set(arguments_of(cls))
    if "..." in found:
        return None
    if cls._groups_argument != "sample_groups":
        found.discard("sample_groups")
    return found - {"bias", "device", "dtype", *_CONV_ARGUMENTS}


def _check_options(to: str, taken: Collection[str], options: Collection[str]) -> None:
    unknown = sorted(set(options) - set(taken))
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: no option of {to}, which has {', '.join(sorted(taken))}; what "
            "a convolution has is taken over from it"
        )


def _only_weights(start: Start, to: str) -> None:
    if start != "weights":
        raise ValueError(f"start: {start!r} is for adaptive layers; {to} starts from the weights")


def _wrong_kind(module: nn.Module) -> str | None:
    if isinstance(module, AdaptiveConv2d) or is_foreign(module):
        return "adaptive already"
    if weighting_of(module) is not None:
        return "weighted already"
    if not isinstance(module, _ConvNd):
        return f"no convolution of PyTorch but of its own kind, {type(module).__name__}"
    if isinstance(module, _ConvTransposeNd):
        return "transposed"
    return None


def _single_tap(module: nn.Module) -> str | None:
    if isinstance(module, _ConvNd) and all(k == 1 for k in module.kernel_size):
        return "its single tap has no support to shape"
    return None


def _lazy(module: nn.Module) -> str | None:
    if isinstance(module._parameters.get("weight"), nn.UninitializedParameter):
        return "is lazy and has no weights yet; run it once first"
    return None


def _hidden_weight(module: nn.Module) -> str | None:
    """Return why the weight is not the module's to give away, or None."""
    for name in ("weight", "bias"):
        if name not in module._parameters and not parametrize.is_parametrized(module, name):
            return (
                f"its {name} is computed by a hook (torch.nn.utils.weight_norm, spectral_norm or "
                "prune); remove that, or use torch.nn.utils.parametrizations, which is carried over"
            )
    return None


def _has_more(module: nn.Module) -> str | None:
    """Return what a module holds that a convolution does not, and that would be lost."""
    more = [*module._parameters, *module._buffers, *module._modules]
    more = [name for name in more if name not in ("weight", "bias", "parametrizations")]
    return f"it holds {', '.join(more)} besides its weights, which would be lost" if more else None


def _is_parametrized_conv(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) and (
        parametrize.type_before_parametrizations(module) in WEIGHTED
    )


def _is_frozen(conv: nn.Conv2d) -> bool:
    return not any(parameter.requires_grad for parameter in conv.parameters())
