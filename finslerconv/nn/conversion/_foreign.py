"""Deformable layers of other libraries: recognised without importing them, and made ours."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finslerconv._foreign import OFFSET_HEADS
from finslerconv.nn._given_offset_conv import DeformAlign2d, GivenOffsetConv2d
from finslerconv.nn._offset_conv import DeformConv2d
from finslerconv.nn.conversion._aggregations import is_aggregation, own_aggregation
from finslerconv.nn.conversion._families import (
    Family,
    Finish,
    Made,
    Modules,
    take_over_surroundings,
)
from finslerconv.nn.conversion._found import is_foreign, is_three_convolutions
from finslerconv.nn.weighted import shared_outside


class Native(Family):
    """Layers of this library for the deformable ones of other libraries, with equal outputs."""

    def __init__(self) -> None:
        self._halved: set[nn.Module] = set()
        self._done: set[nn.Parameter] = set()

    def stranger(self, module: nn.Module) -> str | None:
        """Return why a module is outside this family, or None."""
        return None if is_foreign(module) else "no deformable layer of another library"

    def refuse(self, module: nn.Module) -> str | None:
        """Return why a selected module is left alone, or None."""
        if callable(getattr(module, "positions", None)):
            return "it tells its positions itself, and is understood as it is"
        return None

    def prepare(self, name: str, conv: Any) -> Finish | str:
        """Return the last step of a module's conversion, or why the module is left alone."""
        if is_aggregation(conv):
            made = own_aggregation(conv)
            return made if isinstance(made, str) else self._finish(conv, made)
        if is_three_convolutions(conv):
            return self._finish(conv, *_of_three(conv))
        head = next((h for h in OFFSET_HEADS if hasattr(conv, h)), None)
        inputs = _n_inputs(conv)
        if head is None:
            if inputs not in (2, 3):
                return f"it takes {inputs} inputs, not an image, offsets and perhaps a mask"
            return self._finish(conv, _given(conv))
        offsets = getattr(conv, head)
        if not isinstance(offsets, nn.Conv2d):
            return f"its {head} is a {type(offsets).__name__}, not one convolution"
        if inputs not in (1, 2):
            return f"it takes {inputs} inputs, not an image and perhaps features"
        return self._pack(conv, offsets, aligned=inputs == 2)

    def withdraw(self, model: nn.Module, prepared: Modules) -> dict[nn.Module, str]:
        """Return which prepared modules are left alone after all, and why."""
        return shared_outside(model, [module for module in prepared if module in self._halved])

    def _pack(self, conv: Any, head: nn.Conv2d, aligned: bool) -> Finish | str:
        groups = int(getattr(conv, "deform_groups", getattr(conv, "deformable_groups", 1)))
        samples = groups * conv.weight.shape[-2:].numel()
        per_sample = head.out_channels / samples
        if per_sample not in (2, 3):
            return (
                f"its offsets' convolution has {head.out_channels} channels, not 2 or 3 for each "
                f"of {samples} samples"
            )
        modulated = per_sample == 3
        options: dict[str, Any] = {"offset_groups": groups, "modulation": modulated}
        cls = DeformAlign2d if aligned else DeformConv2d
        layer = _with_arguments(cls, conv, **options)
        notes: tuple[str, ...] = ()
        if modulated:
            layer.offset_conv, layer.modulation_conv = _split(head, 2 * samples)
            self._halved.add(conv)
            notes = ("its factors are sigmoids, ours twice a sigmoid: weights are halved",)
        else:
            layer.offset_conv = head
        return self._finish(conv, layer, notes)

    def _finish(self, old: nn.Module, layer: nn.Module, notes: tuple[str, ...] = ()) -> Finish:
        def finish() -> Made:
            weight: Any = getattr(layer, "weight", None)
            if old in self._halved and weight not in self._done:
                self._done.add(weight)
                with torch.no_grad():
                    weight.mul_(0.5)
            return layer, (*notes, *take_over_surroundings(old, layer))

        return finish


def native(start: str, options: dict[str, Any]) -> Native:
    """Return the family; raise if the arguments of ``convert`` do not fit it."""
    if start != "weights":
        raise ValueError(f"start: {start!r} is for adaptive layers; 'native' keeps the weights")
    if options:
        raise TypeError(f"{', '.join(sorted(options))}: no option of native, which has none")
    return Native()


def _split(head: nn.Conv2d, first: int) -> list[nn.Conv2d]:
    """Return a convolution as two: of its first output channels, and of the others."""
    made = []
    for part in (slice(None, first), slice(first, None)):
        conv = copy.deepcopy(head)
        for name, parameter in head.named_parameters(recurse=False):
            values = parameter.detach()[part].clone()
            setattr(conv, name, nn.Parameter(values, parameter.requires_grad))
        conv.out_channels = len(conv.weight)
        made.append(conv)
    return made


def _of_three(module: Any) -> tuple[DeformConv2d, tuple[str, ...]]:
    """Return the layer of ``offset_conv``, ``modulator_conv`` and ``regular_conv``."""
    conv = module.regular_conv
    groups = module.offset_conv.out_channels // (2 * conv.weight.shape[-2:].numel())
    layer = _with_arguments(DeformConv2d, conv, offset_groups=groups, modulation=True)
    layer.offset_conv, layer.modulation_conv = module.offset_conv, module.modulator_conv
    return layer, ("taken for 2 sigmoid of its modulator_conv, which its forward must compute",)


def _given(conv: Any) -> GivenOffsetConv2d:
    norm, activation = getattr(conv, "norm", None), getattr(conv, "activation", None)
    return _with_arguments(GivenOffsetConv2d, conv, norm=norm, activation=activation)


def _with_arguments(cls: Callable[..., Any], conv: Any, **options: Any) -> Any:
    """Return a layer with the arguments of a module, and its very weights."""
    weight, bias = conv.weight, getattr(conv, "bias", None)
    # DCNv2's layers do not say their groups.
    groups = getattr(conv, "groups", 1)
    layer = cls(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[-2:]), conv.stride,
        conv.padding, conv.dilation, groups, isinstance(bias, Tensor), device="meta",
        dtype=weight.dtype, **options,
    )  # fmt: skip
    layer.weight = weight
    if isinstance(bias, Tensor):
        layer.bias = bias
    return layer


def _n_inputs(module: nn.Module) -> int:
    """Return how many inputs a module takes, with the optional ones."""
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
