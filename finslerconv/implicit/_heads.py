"""Deformable layers in a checkpoint: what the weights alone tell, without the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The convolution of the offsets is inside its layer, or beside it under the layer's name.
_INSIDE = re.compile(r"(?P<layer>(.*\.)?)(conv_offset_mask|conv_offset|offset_conv)$")
_BESIDE = re.compile(r"(?P<layer>.*)_offset(_mask)?$")
_METRIC = re.compile(r"(?P<layer>(.*\.)?)head\.conv$")

# Where the factors have a convolution of their own.
_FACTORS = ("modulation_conv", "modulator_conv")


@dataclass(frozen=True)
class OffsetHead:
    """The convolution that computes a layer's offsets, or its metrics, as its weights show it.

    Attributes
    ----------
    layer : str
        The name of the layer; empty for the model itself.
    name : str
        That of the convolution.
    kind : str
        ``"offsets"``, ``"offsets and factors"`` or ``"metrics"``.
    kernel_size : tuple of int
        Of the layer, or if its weights are not there, of the head.
    groups : int or None
        The number of sets of offsets at a pixel; None for metrics, whose parametrisation weights do
        not tell, and for numbers of channels that fit no such layer.
    in_channels, channels : int
    constant : float
        The largest offset, in pixels, that the bias alone makes; for metrics its largest entry.
    gain : float
        The standard deviation of an output channel, root mean square over the channels of offsets,
        for inputs that are independent and of variance 1; without weights that have learned it is
        0.
    finite : bool
        Whether all weights are finite.

    Examples
    --------
    >>> from finslerconv.implicit import offset_heads
    >>> from finslerconv.nn import DeformConv2d
    >>> head = offset_heads(DeformConv2d(1, 2, 3, padding=1).state_dict())[0]
    >>> head.kind, head.kernel_size, head.channels
    ('offsets', (3, 3), 18)
    """

    layer: str
    name: str
    kind: str
    kernel_size: tuple[int, int]
    groups: int | None
    in_channels: int
    channels: int
    constant: float
    gain: float
    finite: bool


def offset_heads(state_dict: Mapping[str, Any]) -> list[OffsetHead]:
    """Return the heads of the deformable and the metric layers in a ``state_dict``.

    They are known by their names: ``conv_offset`` (mmcv, BasicSR), ``conv_offset_mask`` (DCNv2),
    ``conv2_offset`` beside ``conv2`` (detectron2), ``offset_conv`` (this library, and layers of
    three convolutions), ``head.conv`` (:class:`~finslerconv.nn.MetricConv2d`).

    Parameters
    ----------
    state_dict : mapping
        From names to tensors.

    Returns
    -------
    list of OffsetHead
        In the order of the names.

    Examples
    --------
    >>> from finslerconv.implicit import offset_heads
    >>> from finslerconv.nn import DeformConv2d
    >>> head, = offset_heads(DeformConv2d(4, 8, 3, modulation=True).state_dict())
    >>> head.name, head.kind, head.groups, head.gain
    ('offset_conv', 'offsets and factors', 1, 0.0)
    """
    found = []
    for key, weight in state_dict.items():
        name = key.removesuffix(".weight")
        if name == key or not isinstance(weight, Tensor) or weight.ndim != 4:
            continue
        inside = _INSIDE.match(name) or _METRIC.match(name)
        beside = None if inside else _BESIDE.match(name)
        if inside is None and beside is None:
            continue
        layer = (inside or beside)["layer"].removesuffix(".")  # type: ignore[index]
        if beside is not None and f"{layer}.weight" not in state_dict:
            continue
        found.append(_head(state_dict, layer, name, weight))
    return found


def _head(state: Mapping[str, Any], layer: str, name: str, weight: Tensor) -> OffsetHead:
    prefix = f"{layer}." if layer else ""
    own = state.get(f"{prefix}weight", state.get(f"{prefix}regular_conv.weight", weight))
    rows, columns = own.shape[-2:]
    channels, samples = len(weight), rows * columns
    kind, groups, offsets = "metrics", None, channels
    if not name.endswith("head.conv"):
        apart = any(f"{prefix}{factors}.weight" in state for factors in _FACTORS)
        # Six channels a sample are three groups, or two with factors: a name may tell.
        joint = not apart and (
            name.endswith("mask") or (channels % (2 * samples) != 0 and channels != 2)
        )
        kind = "offsets and factors" if apart or joint else "offsets"
        each = (3 if joint else 2) * samples
        if channels == 2:
            groups = 1  # one offset for all taps
        elif channels % each == 0:
            groups = channels // each
            offsets = 2 * samples * groups
    weight = weight[:offsets].detach().float()
    bias = state.get(f"{name}.bias")
    bias = torch.zeros(len(weight)) if bias is None else bias[:offsets].detach().float()
    if kind != "metrics" and len(bias) % 2 == 0:
        constant = bias.unflatten(0, (-1, 2)).norm(dim=1).max()
    else:
        constant = bias.abs().max()
    return OffsetHead(
        layer, name, kind, (rows, columns), groups, weight.shape[1], channels,
        float(constant), float(weight.square().sum((1, 2, 3)).mean().sqrt()),
        bool(weight.isfinite().all() and bias.isfinite().all()),
    )  # fmt: skip
