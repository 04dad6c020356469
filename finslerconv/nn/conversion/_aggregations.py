"""DCNv3, DCNv4 and deformable attention of other libraries, as layers of this one."""

from itertools import chain
from typing import Any

from torch import nn

from finslerconv._foreign import (
    argument_names,
    attention_counts,
    has_attention_heads,
    is_attention,
    is_batch_first,
)
from finslerconv.nn._aggregation import ACTIVATIONS, DCNv3, DCNv4
from finslerconv.nn._attention import (
    MSDeformAttn,
    MSDeformAttnCore,
    MultiScaleDeformableAttention,
    TransformersDeformAttn,
)

_TAPS = ("channels", "kernel_size", "stride", "pad", "dilation", "group", "offset_scale")

# The modules of PyTorch that hold the parameters of these layers.
_HOLDERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)


class _UnlikeError(Exception):
    """A layer differs from ours; the message says where."""


def is_own_aggregation(module: nn.Module) -> bool:
    """Return whether a module is DCNv3, DCNv4 or deformable attention of this library."""
    return isinstance(module, DCNv3 | DCNv4 | MSDeformAttn | MSDeformAttnCore)


def is_aggregation(module: nn.Module) -> bool:
    """Return whether a module looks like one of these layers of another library."""
    if is_own_aggregation(module):
        return False
    if _is_core(module):
        return True
    if has_attention_heads(module):
        # The newer models of transformers compute all but the parameters in a module inside.
        return not any(
            _is_core(inner) or isinstance(inner, MSDeformAttnCore) for inner in module.children()
        )
    heads = ("offset_mask",), ("offset", "mask")
    return _has_taps(module) and any(_linear(module, *names) for names in heads)


def aggregated_channels(module: Any) -> int | None:
    """Return samples times channels for each output pixel or query; None of other layers."""
    if not is_own_aggregation(module) and not is_aggregation(module):
        return None
    if is_attention(module):
        _, levels, points = attention_counts(module)
        values = _part(module, "value_proj")
        channels = values.out_features if isinstance(values, nn.Linear) else 0
        return levels * points * channels
    if _has_taps(module):
        taps = module.kernel_size**2 - bool(getattr(module, "remove_center", False))
        return taps * module.channels
    return 0


def own_aggregation(module: Any) -> nn.Module | str:
    """Return this library's layer with another one's parameters, or why there is none."""
    try:
        if _is_core(module):
            return MSDeformAttnCore()
        made: nn.Module
        if has_attention_heads(module):
            made = _attention(module)
        else:
            made = _dcnv4(module) if _linear(module, "offset_mask") else _dcnv3(module)
        _take_over_parameters(module, made)
    except (_UnlikeError, ValueError) as reason:
        return str(reason)
    return made


def _dcnv3(module: Any) -> DCNv3:
    parts = list(module.dw_conv) if isinstance(_part(module, "dw_conv"), nn.Sequential) else []
    if len(parts) != 3 or not isinstance(parts[0], nn.Conv2d):
        raise _UnlikeError("its dw_conv is not a convolution, a norm and an activation in sequence")
    acts = (name for name, kind in ACTIVATIONS.items() if type(parts[2]) is kind)
    act = next(acts, type(parts[2]).__name__)
    if getattr(parts[2], "approximate", "none") != "none":
        raise _UnlikeError(f"its activation is {parts[2]}, not the exact one")
    batch_norm = any(isinstance(part, nn.BatchNorm2d) for part in parts[1].modules())
    return DCNv3(
        module.channels, module.kernel_size, parts[0].kernel_size[0],
        act_layer=act, norm_layer="BN" if batch_norm else "LN",
        **_shared_arguments(module, ["input"]),
    )  # fmt: skip


def _dcnv4(module: Any) -> DCNv4:
    dw_conv, projection = _part(module, "offset_mask_dw"), _part(module, "output_proj")
    return DCNv4(
        module.channels, module.kernel_size,
        dw_kernel_size=dw_conv.kernel_size[0] if isinstance(dw_conv, nn.Conv2d) else None,
        output_bias=getattr(projection, "bias", None) is not None,
        without_pointwise=projection is None,
        **_shared_arguments(module, ["input", "shape"]),
    )  # fmt: skip


def _shared_arguments(module: Any, inputs: list[str]) -> dict[str, Any]:
    """Return the arguments that DCNv3 and DCNv4 share, of a module that takes these inputs."""
    if argument_names(module) != inputs:
        raise _UnlikeError(f"it takes {_listed(argument_names(module))}, not {_listed(inputs)}")
    arguments = {name: getattr(module, name) for name in _TAPS[2:]}
    for name in ("center_feature_scale", "remove_center"):
        arguments[name] = bool(getattr(module, name, False))
    return {**arguments, "device": "meta"}


def _attention(module: Any) -> MSDeformAttn:
    taken = argument_names(module)
    calls = (MSDeformAttn, MultiScaleDeformableAttention, TransformersDeformAttn)
    kind = next((c for c in calls if _takes(c, taken)), None)
    if kind is None:
        raise _UnlikeError(f"it takes {_listed(taken)}, which is no known call of attention")
    if not is_attention(module):
        raise _UnlikeError("its numbers of heads, levels and points do not fit its linear maps")
    if getattr(module, "use_4D_normalizer", False):
        raise _UnlikeError("its use_4D_normalizer gives offsets in boxes another unit")
    heads, levels, points = attention_counts(module)
    channels = module.sampling_offsets.in_features
    options: dict[str, Any] = {"device": "meta"}
    if kind is MultiScaleDeformableAttention:
        values = getattr(_part(module, "value_proj"), "out_features", channels)
        dropout = _part(module, "dropout")
        if not isinstance(dropout, nn.Dropout | nn.Identity | None):
            raise _UnlikeError(f"its dropout is a {type(dropout).__name__}")
        return MultiScaleDeformableAttention(
            channels, heads, levels, points, dropout=getattr(dropout, "p", 0.0),
            batch_first=is_batch_first(module), value_proj_ratio=(values + 0.5) / channels,
            residual="identity" in taken, **options,
        )  # fmt: skip
    if kind is TransformersDeformAttn:
        names = [cls.__name__ for cls in type(module).__mro__]
        options["mask_is_padding"] = any("PixelDecoder" in name for name in names)
    return kind(channels, levels, heads, points, **options)


def _has_taps(module: nn.Module) -> bool:
    """Return whether a module has the numbers of DCNv3 and DCNv4."""
    return all(isinstance(getattr(module, name, None), int | float) for name in _TAPS)


def _takes(kind: type[nn.Module], names: list[str]) -> bool:
    """Return whether a class's forward method takes all these arguments."""
    return set(names) <= set(argument_names(kind))


def _is_core(module: nn.Module) -> bool:
    """Return whether a module computes attention from samples and weights that it is given."""
    if isinstance(module, MSDeformAttnCore) or module._modules or module._parameters:
        return False
    return argument_names(module) == argument_names(MSDeformAttnCore)


def _take_over_parameters(old: nn.Module, new: nn.Module) -> None:
    """Put the modules of another library's layer that hold its parameters into ours."""
    taken = []
    for name, mine in list(new.named_modules()):
        kind = next((k for k in _HOLDERS if isinstance(mine, k)), None)
        if kind is None:
            continue
        theirs = _part(old, name)
        if not isinstance(theirs, kind):
            raise _UnlikeError(f"its {name} is a {type(theirs).__name__}, not a {kind.__name__}")
        for part in ("weight", "bias"):
            _check_shapes(f"{name}.{part}", getattr(theirs, part), getattr(mine, part))
        owner, _, last = name.rpartition(".")
        new.get_submodule(owner)._modules[last] = theirs
        taken.append(f"{name}.")
    for name, parameter in new._parameters.items():
        theirs = old._parameters.get(name)
        _check_shapes(name, theirs, parameter)
        new._parameters[name] = theirs
        taken.append(name)
    held = chain(old.named_parameters(), old.named_buffers())
    more = [name for name, _ in held if not name.startswith(tuple(taken))]
    if more:
        raise _UnlikeError(f"it holds {_listed(more)} besides, for which ours has no use")


def _check_shapes(name: str, theirs: Any, mine: Any) -> None:
    shapes = [None if part is None else tuple(part.shape) for part in (theirs, mine)]
    if shapes[0] != shapes[1]:
        raise _UnlikeError(f"its {name} has shape {shapes[0]}, not {shapes[1]}")


def _part(module: nn.Module, name: str) -> Any:
    """Return a module inside by its dotted name, None if there is none."""
    found: Any = module
    for step in name.split("."):
        found = None if found is None else found._modules.get(step)
    return found


def _linear(module: nn.Module, *names: str) -> bool:
    return all(isinstance(_part(module, name), nn.Linear) for name in names)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "nothing"
