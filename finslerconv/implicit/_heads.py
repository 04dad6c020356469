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

# Linear maps of DCNv3, DCNv4 and attention; beside the first and the last is one for the weights.
_LINEAR = re.compile(r"(?P<layer>(.*\.)?)(?P<name>offset|offset_mask|sampling_offsets)$")
_WEIGHTS = {"offset": "mask", "sampling_offsets": "attention_weights"}

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
        ``"offsets"``, ``"offsets and factors"``, ``"metrics"``, ``"dcnv3"``, ``"dcnv4"`` or
        ``"attention"``.
    kernel_size : tuple of int, or None
        Of the layer, or if its weights are not there, of the head. None where weights do not tell,
        as of DCNv3 and of attention; of DCNv4 it is taken to be 3 x 3.
    groups : int or None
        The number of sets of offsets at a pixel; None for metrics, whose parametrisation weights do
        not tell, for numbers of channels that fit no such layer, and where there is no kernel size.
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
    kernel_size: tuple[int, int] | None
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
    three convolutions), ``head.conv`` (:class:`~finslerconv.nn.MetricConv2d`), and by their linear
    maps: ``offset`` and ``mask`` (DCNv3), ``offset_mask`` (DCNv4), ``sampling_offsets`` and
    ``attention_weights`` (multi-scale deformable attention).

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
        if name == key or not isinstance(weight, Tensor):
            continue
        if weight.ndim == 2 and (linear := _LINEAR.match(name)):
            found += _linear_head(state_dict, linear, name, weight)
        if weight.ndim != 4:
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
        plain = channels // (2 * samples) if channels % (2 * samples) == 0 else 0
        if not plain or weight.shape[1] % plain != 0:
            # Groups of offsets share the channels evenly.
            plain = channels == 2
        # Six channels a sample are three groups, or two with factors: a name may tell.
        joint = not apart and (name.endswith("mask") or not plain)
        kind = "offsets and factors" if apart or joint else "offsets"
        each = (3 if joint else 2) * samples
        if channels == 2:
            groups = 1  # one offset for all taps
        elif channels % each == 0:
            groups = channels // each
            offsets = 2 * samples * groups
    return _measured(state, layer, name, kind, (rows, columns), groups, weight, slice(offsets))


def _linear_head(
    state: Mapping[str, Any], match: re.Match[str], name: str, weight: Tensor
) -> list[OffsetHead]:
    """Return the head of DCNv3, DCNv4 or attention, if its channels fit."""
    prefix, head = match["layer"], match["name"]
    layer = prefix.removesuffix(".")
    if head == "offset_mask":
        # The paper's code has 3 x 3 taps: each group 18 channels of offsets and 9 of weights, their
        # number rounded up to a multiple of 8.
        channels = torch.arange(len(weight))
        groups = len(weight) // 27
        if -(-27 * groups // 8) * 8 != len(weight):
            return [_measured(state, layer, name, "dcnv4", None, None, weight, channels)]
        offsets = channels[(channels < 27 * groups) & (channels % 27 < 18)]
        return [_measured(state, layer, name, "dcnv4", (3, 3), groups, weight, offsets)]
    beside = state.get(f"{prefix}{_WEIGHTS[head]}.weight")
    if not isinstance(beside, Tensor) or 2 * len(beside) != len(weight):
        return []
    kind = "dcnv3" if head == "offset" else "attention"
    return [_measured(state, layer, name, kind, None, None, weight, slice(None))]


def _measured(
    state: Mapping[str, Any],
    layer: str,
    name: str,
    kind: str,
    kernel_size: tuple[int, int] | None,
    groups: int | None,
    weight: Tensor,
    offsets: slice | Tensor,
) -> OffsetHead:
    """Return a head of a known kind with its statistics, over the channels that are offsets."""
    channels = len(weight)
    weight = weight[offsets].detach().float()
    bias = state.get(f"{name}.bias")
    bias = torch.zeros(len(weight)) if bias is None else bias[offsets].detach().float()
    if kind != "metrics" and len(bias) % 2 == 0:
        constant = bias.unflatten(0, (-1, 2)).norm(dim=1).max()
    else:
        constant = bias.abs().max()
    return OffsetHead(
        layer, name, kind, kernel_size, groups, weight.shape[1], channels,
        float(constant), float(weight.flatten(1).square().sum(1).mean().sqrt()),
        bool(weight.isfinite().all() and bias.isfinite().all()),
    )  # fmt: skip
