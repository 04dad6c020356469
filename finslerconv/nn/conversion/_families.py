"""What a convolution can be converted to, and which convolutions each of these can take."""

import abc
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from finslerconv._arrays import has_values
from finslerconv._models import named
from finslerconv.nn._adaptive import _CONV_ARGUMENTS, AdaptiveConv, own_tensor, unlike_plain
from finslerconv.nn._constructor import arguments_of
from finslerconv.nn._geodesic_conv import GeodesicConv2d
from finslerconv.nn._metric_conv import MetricConv1d, MetricConv2d, MetricConv3d
from finslerconv.nn._offset_conv import DeformConv1d, DeformConv2d, DeformConv3d, ShiftedConv2d
from finslerconv.nn.conversion._aggregations import is_own_aggregation
from finslerconv.nn.conversion._found import is_adaptive, is_ours
from finslerconv.nn.conversion._report import described
from finslerconv.nn.weighted import (
    WEIGHTED,
    Folder,
    Weighter,
    density_of,
    shared_kernels,
    shared_outside,
)

#: What a user may ask for: a name, an adaptive class, or a function from a convolution to a module.
To = str | type[AdaptiveConv] | Callable[..., nn.Module]

#: How the kernels start: as those that they replace, or at the constant ``1 / (taps C_in)``.
Start = Literal["weights", "constant"]

#: A new layer that has taken over the old one's parameters, and the notes for the report.
Made = tuple[nn.Module, tuple[str, ...]]

#: The last step of a conversion, which changes the model's parameters.
Finish = Callable[[], Made]

Modules = Collection[nn.Module]

#: The adaptive layers by the names that ``convert(to=...)`` takes, that for images first.
ADAPTIVE: dict[str, tuple[type[AdaptiveConv], ...]] = {
    "metric": (MetricConv2d, MetricConv1d, MetricConv3d),
    "geodesic": (GeodesicConv2d,),
    "deform": (DeformConv2d, DeformConv1d, DeformConv3d),
    "shifted": (ShiftedConv2d,),
}

# The hooks of a module that a replacement takes over, and those that it cannot.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Family(abc.ABC):
    """What convolutions are converted to, and which of them.

    The methods are called in their order, all before the model is changed, so that errors leave it
    as it was.
    """

    def stranger(self, module: nn.Module) -> str | None:
        """Return why a module is outside this family, selected or not; or None."""
        return None

    @abc.abstractmethod
    def refuse(self, module: nn.Module) -> str | None:
        """Return why a selected module is left alone, or None."""

    @abc.abstractmethod
    def prepare(self, name: str, conv: Any) -> Finish | str:
        """Return the last step of a module's conversion, or why the module is left alone."""

    def withdraw(self, model: nn.Module, prepared: Modules) -> dict[nn.Module, str]:
        """Return which prepared modules are left alone after all, and why."""
        return {}


def family(to: To, start: Start, options: dict[str, Any]) -> Family:
    """Return the family that ``to`` names; raise if there is none, or an option does not fit."""
    if start not in ("weights", "constant"):
        raise ValueError(f"start: expected 'weights' or 'constant', got {start!r}")
    if isinstance(to, str):
        if to == "weighted":
            _check_start(start, to)
            _check_options(to, {"density", "preserve"}, options)
            return _Weighted(**options)
        if to not in ADAPTIVE:
            raise ValueError(
                f"to: expected one of {sorted([*ADAPTIVE, 'native', 'weighted'])}, a class of "
                f"adaptive layers or a function from a convolution to a module, got {to!r}"
            )
        classes = ADAPTIVE[to]
        _check_layer_options(classes[0], options)
        return _Adaptive(classes, start == "constant", options)
    if isinstance(to, type):
        if not issubclass(to, AdaptiveConv):
            raise TypeError(
                f"to: expected a class of adaptive layers, got {to.__name__}; give a function "
                f"that makes one from a convolution, such as lambda conv: {to.__name__}(...)"
            )
        _check_layer_options(to, options)
        return _Adaptive((to,), start == "constant", options)
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
    _check_start(start, "a function")
    return _Factory(to, options)


class _Adaptive(Family):
    """Layers of one adaptive kind: of one class for each number of axes that the kind serves."""

    def __init__(
        self, classes: tuple[type[AdaptiveConv], ...], constant: bool, options: dict[str, Any]
    ) -> None:
        self._classes, self._constant, self._options = classes, constant, options

    def _class_for(self, module: nn.Module) -> type[AdaptiveConv]:
        """Return the class for a convolution's axes; the first if there is none."""
        fitting = (cls for cls in self._classes if isinstance(module, cls._plain))
        return next(fitting, self._classes[0])

    def _unlike_plain(self, module: nn.Module) -> str | None:
        return unlike_plain(module, self._class_for(module)._plain)

    def refuse(self, module: nn.Module) -> str | None:
        checks = _wrong_kind, self._unlike_plain, _hidden_weight, _single_tap, _has_more
        reason = next(filter(None, (check(module) for check in checks)), None)
        if reason is None and self._constant and parametrize.is_parametrized(module, "weight"):
            reason = "its weight is parametrised, which a constant start would undo"
        return reason

    def prepare(self, name: str, conv: Any) -> Finish:
        try:
            layer = self._class_for(conv)._with_arguments_of(conv, **self._options)
            if layer.fixed_kernel and not self._constant:
                raise ValueError(
                    'fixed_kernel: would discard the weights; say so by start="constant"'
                )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (at {named(name)}: {described(conv)})") from error
        if layer.fixed_kernel:
            layer.bias = conv.bias
        else:
            _take_over_weights(conv, layer)
        # The meta device has no values to tell from.
        why = layer.why_not_standard() if has_values(own_tensor(layer)) else None

        def finish() -> Made:
            if self._constant:
                with torch.no_grad():
                    layer.weight.fill_(1 / layer.weight[0].numel())
            notes = []
            if not any(parameter.requires_grad for parameter in conv.parameters()):
                notes.append("frozen weights; what is new is trained")
            if why is not None:
                notes.append(f"computes something else than it did: {why}")
            if parametrize.is_parametrized(layer):
                names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
                notes.append(f"parametrisation of {names} carried over")
            return layer, (*notes, *take_over_surroundings(conv, layer))

        return finish

    def withdraw(self, model: nn.Module, prepared: Modules) -> dict[nn.Module, str]:
        return shared_outside(model, prepared) if self._constant else {}


class _Weighted(Family):
    """Weighted layers; without a density, the paper's for each kernel size."""

    def __init__(self, density: Any = None, preserve: bool = True) -> None:
        self._weighter, self._preserve = Weighter(density, preserve), preserve

    def refuse(self, module: Any) -> str | None:
        reason = _wrong_kind(module)
        if reason is None and parametrize.type_before_parametrizations(module) not in WEIGHTED:
            reason = unlike_plain(module, nn.Conv2d)
        if not reason and isinstance(module._parameters.get("weight"), nn.UninitializedParameter):
            reason = "is lazy and has no weights yet; run it once first"
        reason = reason or _hidden_weight(module) or _single_tap(module)
        if reason is None and self._preserve and parametrize.is_parametrized(module, "weight"):
            reason = (
                "its weight is parametrised, so that it cannot be divided by the density; "
                "preserve=False puts the density on top of it"
            )
        return reason or self._weighter.lacks(tuple(module.kernel_size))

    def prepare(self, name: str, conv: _ConvNd) -> Finish:
        self._weighter.prepare(name, conv)
        undivided = self._preserve and not has_values(conv.weight)
        notes = ("on the meta device, where no weight is divided by its density",) * undivided
        return lambda: (self._weighter(conv), notes)

    def withdraw(self, model: nn.Module, prepared: Modules) -> dict[nn.Module, str]:
        return self._weighter.unshareable(model, prepared)


class _Factory(Family):
    """What a user's function makes of a convolution."""

    def __init__(self, factory: Callable[..., nn.Module], options: dict[str, Any]) -> None:
        self._factory, self._options = factory, options

    def refuse(self, module: nn.Module) -> str | None:
        return _wrong_kind(module)

    def prepare(self, name: str, conv: nn.Module) -> Finish | str:
        made = self._factory(conv, **self._options)
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"to: expected the function to return an nn.Module, got {type(made).__name__}"
            )
        if made is conv:
            return "the factory gave it back"

        def finish() -> Made:
            if any(module is conv for module in made.modules()):
                # It is still in use and keeps what it has.
                return made.train(conv.training), ()
            return made, take_over_surroundings(conv, made)

        return finish


class Plain(Family):
    """Plain convolutions, of layers of this library that compute nothing else."""

    def __init__(self, model: nn.Module, strict: bool) -> None:
        self._strict = strict
        self._shared = shared_kernels(model)
        self._weighted: list[nn.Module] = []
        self._refused: list[str] = []

    def stranger(self, module: nn.Module) -> str | None:
        if is_own_aggregation(module):
            return "no convolution, and no plain one stands for it"
        return None if is_ours(module) else "no layer of this library"

    def refuse(self, module: nn.Module) -> str | None:
        return None

    def prepare(self, name: str, conv: nn.Module) -> Finish | str:
        if not isinstance(conv, AdaptiveConv):
            self._weighted.append(conv)

            def fold() -> Made:
                note = self._folder.note(conv)
                return self._folder(conv), () if note is None else (note,)

            return fold
        reason = conv.why_not_standard()
        if reason is None and _constant_modulation(conv) is not None:
            if parametrize.is_parametrized(conv, "weight"):
                reason = "its modulation is constant, but its weight is parametrised"
            elif conv in self._shared:
                reason = "its modulation is constant, but its weight is shared with another layer"
        if reason is None:
            return lambda: _standard(conv)
        self._refused.append(f"{named(name)}: {reason}")
        return f"would not be exact: {reason}"

    def withdraw(self, model: nn.Module, prepared: Modules) -> dict[nn.Module, str]:
        if self._strict and self._refused:
            raise ValueError(
                "model: expected layers that are exactly standard convolutions; these are not "
                "(leave them out by where, or by strict=False):\n  " + "\n  ".join(self._refused)
            )
        self._folder = Folder(model, self._weighted)
        return {}


@torch.no_grad()
def _standard(layer: AdaptiveConv) -> Made:
    """Return the standard convolution of a layer whose positions are the standard ones."""
    like = own_tensor(layer)
    conv = layer._plain(
        **{name: getattr(layer, name) for name in _CONV_ARGUMENTS},
        bias=layer.bias is not None,
        device=like.device,
        dtype=like.dtype,
    )
    notes: tuple[str, ...] = ()
    if layer.fixed_kernel:
        conv.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        conv.bias = layer.bias
    else:
        _take_over_weights(layer, conv)
    modulation = _constant_modulation(layer)
    if modulation is not None:
        notes = ("its constant modulation is multiplied into the weights",)
        # From a factor of every sample to one of every weight, (O, C / groups, *kernel_size).
        taps = modulation.view(layer.sample_groups, *layer.kernel_size)
        per_channel = taps.repeat_interleave(layer.in_channels // layer.sample_groups, dim=0)
        per_group = per_channel.unflatten(0, (layer.groups, -1))
        conv.weight.mul_(per_group.repeat_interleave(layer.out_channels // layer.groups, dim=0))
    return conv, (*notes, *take_over_surroundings(layer, conv))


def _constant_modulation(layer: AdaptiveConv) -> torch.Tensor | None:
    """Return the constant factors of a layer's samples; None if they are 1."""
    bias = None if layer.modulation_conv is None else layer.modulation_conv.bias
    return None if bias is None or not bias.any() else 2 * torch.sigmoid(bias)


def _check_layer_options(cls: type[AdaptiveConv], options: dict[str, Any]) -> None:
    """Raise if an option is none of the class's keyword arguments after ``dtype``."""
    taken = set(arguments_of(cls)) - {"bias", "device", "dtype", *_CONV_ARGUMENTS}
    if cls._groups_argument != "sample_groups":
        taken.discard("sample_groups")
    if "..." not in taken:  # it takes any option
        _check_options(cls.__name__, taken, options)


def _check_options(to: str, taken: Collection[str], options: Collection[str]) -> None:
    unknown = sorted(set(options) - set(taken))
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: no option of {to}, which has {', '.join(sorted(taken))}; what "
            "a convolution has is taken over from it"
        )


def _check_start(start: Start, to: str) -> None:
    if start != "weights":
        raise ValueError(f"start: {start!r} is for adaptive layers; {to} starts from the weights")


def _wrong_kind(module: nn.Module) -> str | None:
    if density_of(module) is not None:
        return "weighted already"
    if is_adaptive(module):
        return "adaptive already"
    if not isinstance(module, _ConvNd):
        return f"no convolution of PyTorch but of its own kind, {type(module).__name__}"
    if isinstance(module, _ConvTransposeNd):
        return "transposed"
    return None


def _single_tap(module: nn.Module) -> str | None:
    if isinstance(module, _ConvNd) and all(k == 1 for k in module.kernel_size):
        return "its single tap has no support to shape"
    return None


def _hidden_weight(module: nn.Module) -> str | None:
    """Return why the weight or bias is no parameter that can be taken over, or None."""
    for name in ("weight", "bias"):
        if name not in module._parameters and not parametrize.is_parametrized(module, name):
            return (
                f"its {name} is computed by a hook (torch.nn.utils.weight_norm, spectral_norm or "
                "prune); remove that, or use torch.nn.utils.parametrizations, which is carried over"
            )
    return None


def _has_more(module: nn.Module) -> str | None:
    """Return what a module holds besides a convolution's parameters, and would lose; or None."""
    more = [*module._parameters, *module._buffers, *module._modules]
    more = [name for name in more if name not in ("weight", "bias", "parametrizations")]
    return f"it holds {', '.join(more)} besides its weights, which would be lost" if more else None


def _take_over_weights(old: nn.Module, new: nn.Module) -> None:
    """Give a layer the parameter objects of another, and its parametrisations."""
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(old, name):
            _take_over_parametrization(old, new, name)
        else:
            setattr(new, name, getattr(old, name))


def take_over_surroundings(old: nn.Module, new: nn.Module) -> tuple[str, ...]:
    """Give a module the hooks, mode and attributes of another; return notes for the report."""
    # Parametrisations came over with the weights, and keep their modes.
    before = set(old.modules())
    for module in new.modules():
        if module not in before:
            module.training = old.training
    notes = []
    if any(getattr(old, name) for name in _HOOKS):
        notes.append("hooks carried over")
    for name in _HOOKS:
        theirs, ours = getattr(old, name), getattr(new, name)
        if theirs:
            # The old dictionary itself, so that handle.remove() still works.
            theirs.update(ours)
            setattr(new, name, theirs)
    if old._is_full_backward_hook is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
    for name, value in vars(old).items():
        if not name.startswith("_") and name not in vars(new) and not isinstance(value, nn.Module):
            setattr(new, name, value)
    if any(getattr(old, name, None) for name in _STATE_HOOKS):
        notes.append("its state_dict hooks are not carried over")
    return tuple(notes)


def _take_over_parametrization(old: nn.Module, new: nn.Module, name: str) -> None:
    """Give a module the very list of parametrisations of another."""
    # Registering them anew would make them invert the new module's tensor, and some remember what
    # they inverted (the base of an orthogonal one). A placeholder makes room for the list.
    parametrize.register_parametrization(new, name, nn.Identity(), unsafe=True)
    new.parametrizations[name] = old.parametrizations[name]  # type: ignore[index, operator]
