"""Which convolutions there are in a model, and which of them are parts of adaptive layers."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from finslerconv._foreign import OFFSET_HEADS, torchvision_deform
from finslerconv._models import named
from finslerconv.nn._adaptive import AdaptiveConv
from finslerconv.nn._given_offset_conv import GivenOffsetConv2d
from finslerconv.nn.conversion._aggregations import is_aggregation, is_own_aggregation
from finslerconv.nn.weighted import density_of


@dataclass(frozen=True)
class Found:
    """A convolution of a model, by all its dotted names.

    ``part`` names the adaptive layer that it belongs to, and keeps it from being converted;
    ``note`` is for the report if it is converted.
    """

    names: list[str]
    module: nn.Module
    part: str | None
    note: str | None


def find_convolutions(model: nn.Module) -> list[Found]:
    """Return all convolutions of a model, those of other libraries too."""
    names: dict[nn.Module, list[str]] = {}
    parts: dict[nn.Module, str] = {}
    notes: dict[nn.Module, str] = {}
    named_modules = list(model.named_modules(remove_duplicate=False))
    for name, module in named_modules:
        if isinstance(module, _ConvNd) or is_adaptive(module) or _has_kernel(module):
            names.setdefault(module, []).append(name)
        if is_adaptive(module):
            for inner in module.modules():
                if inner is not module:
                    parts.setdefault(inner, f"part of {_shown(name, module)}")
    for name, parent in named_modules:
        if parent in parts:
            continue
        for child_name, layer in parent.named_children():
            if is_foreign(layer):
                shown = _shown(f"{name}.{child_name}" if name else child_name, layer)
                for beside, conv in parent.named_children():
                    if not isinstance(conv, nn.Conv2d) or is_adaptive(conv):
                        continue
                    if "offset" in beside:
                        parts.setdefault(conv, f"by its name, it computes offsets of {shown}")
                    elif _may_compute_samples(conv, layer):
                        notes[conv] = (
                            f"its {conv.out_channels} channels fit the samples of {shown}; if it "
                            "computes their offsets or factors, leave it out by where"
                        )
    return [Found(found, m, parts.get(m), notes.get(m)) for m, found in names.items()]


def is_adaptive(module: nn.Module) -> bool:
    """Whether a module is a weighted or an adaptive layer already, of any library."""
    return is_ours(module) or is_own_aggregation(module) or is_foreign(module)


def is_ours(module: nn.Module) -> bool:
    """Whether a module is a convolution of this library."""
    return isinstance(module, AdaptiveConv) or density_of(module) is not None


def is_foreign(module: nn.Module) -> bool:
    """Whether a module is an adaptive layer of another library; none of them is imported.

    It is known by torchvision's class, attributes of mmcv's, detectron2's, DCNv2's and BasicSR's,
    the parts of DCNv3, DCNv4 and deformable attention, or the methods of this library's layers.
    """
    if isinstance(module, AdaptiveConv | GivenOffsetConv2d):
        return False
    if all(callable(getattr(module, name, None)) for name in ("positions", "geometry")):
        return True
    if torchvision_deform(module) is not None:
        return True
    if is_three_convolutions(module) or is_aggregation(module):
        return True
    names = ("deform_groups", "deformable_groups", *OFFSET_HEADS)
    return _has_kernel(module) and any(hasattr(module, name) for name in names)


def is_three_convolutions(module: nn.Module) -> bool:
    """Whether a module is the deformable layer that many networks write for torchvision's function.

    It holds ``offset_conv``, ``modulator_conv`` and the ``regular_conv`` whose weights it uses.
    """
    names = ("offset_conv", "modulator_conv", "regular_conv")
    return all(isinstance(module._modules.get(name), nn.Conv2d) for name in names)


def _has_kernel(module: nn.Module) -> bool:
    """Whether a module is a two-dimensional convolution that is not PyTorch's own."""
    if isinstance(module, _ConvNd):
        return False
    weight = module._parameters.get("weight")
    if weight is None or isinstance(weight, nn.UninitializedParameter):
        return False
    return weight.ndim == 4 and all(hasattr(module, n) for n in ("stride", "padding", "dilation"))


def _may_compute_samples(conv: nn.Conv2d, layer: Any) -> bool:
    """Whether the channels are offsets (2), factors (1), or both (3), for a number of groups."""
    if not _has_kernel(layer):
        return False
    taps = layer.weight.shape[-2:].numel()
    channels = getattr(layer, "in_channels", layer.weight.shape[1])
    groups = [conv.out_channels / (each * taps) for each in (1, 2, 3)]
    return taps > 1 and any(g.is_integer() and channels % g == 0 for g in groups)


def _shown(name: str, module: nn.Module) -> str:
    return f"{named(name)} ({type(module).__name__})"
