"""Checkpoints of other libraries' deformable layers, loaded into this library's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from finslerconv._foreign import OFFSET_HEADS
from finslerconv._models import first_few, weights_in, without_module
from finslerconv.nn._given_offset_conv import DeformAlign2d
from finslerconv.nn._offset_conv import DeformConv2d


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What of a checkpoint went where; ``print`` shows it.

    Attributes
    ----------
    renamed : tuple of (str, str, str)
        Names in the checkpoint, names in the model, and what was done to the values, if anything.
    unchanged : int
        How many tensors have the same name in both.
    missing, unexpected : tuple of str
        Names that only the model has, and that only the checkpoint has.

    Examples
    --------
    >>> from finslerconv.nn import DeformConv2d, load_deformable_checkpoint
    >>> layer = DeformConv2d(3, 8, 3, padding=1)
    >>> loaded = load_deformable_checkpoint(layer, layer.state_dict())
    >>> loaded.renamed, loaded.missing
    ((), ())
    """

    renamed: tuple[tuple[str, str, str], ...]
    unchanged: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [
            f"{old} -> {new}" + (f" ({note})" if note else "") for old, new, note in self.renamed
        ]
        rows.append(f"{len(self.renamed)} renamed, {self.unchanged} loaded by their names")
        for word, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                rows.append(f"{len(names)} {word}: {first_few(names)}")
        return "\n".join(rows)


def load_deformable_checkpoint(
    model: nn.Module, checkpoint: Mapping[str, Any], *, strict: bool = True
) -> LoadedCheckpoint:
    """Load weights that were trained with another library's deformable layers.

    The model has :class:`DeformConv2d` (or :class:`DeformAlign2d`) where the other had a pack;
    everything else has the same names in both, DCNv3, DCNv4 and deformable attention too. A model
    with the other library's layers needs none of this: load its checkpoint and then
    ``convert(model, "native")``.

    Parameters
    ----------
    model : nn.Module
    checkpoint : mapping
        A ``state_dict``, bare or under a usual name of a training checkpoint (``"state_dict"``,
        ``"model"``, ...); names may all begin with ``module.``, as those of DataParallel.
    strict : bool
        Whether to refuse if a name is missing or left over.

    Returns
    -------
    LoadedCheckpoint

    Raises
    ------
    ValueError
        If there are no weights, a head's channels do not fit its layer, or, with ``strict``, names
        are missing or left over. The model is then as it was.

    Notes
    -----
    For the layer ``conv2``, names are taken from mmcv and BasicSR (``conv2.conv_offset``), DCNv2
    (``conv2.conv_offset_mask``), detectron2 and early mmcv (``conv2_offset``, beside the layer),
    and from layers of three convolutions (``conv2.offset_conv``, ``conv2.modulator_conv``,
    ``conv2.regular_conv``). Three channels a sample are two of offsets and a factor: they are
    split, and since the factors are sigmoids there, and twice a sigmoid here, the layer's weights
    are halved.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import DeformConv2d, load_deformable_checkpoint
    >>> state = {"module.weight": torch.randn(8, 4, 3, 3), "module.bias": torch.randn(8),
    ...          "module.conv_offset.weight": torch.randn(27, 4, 3, 3),
    ...          "module.conv_offset.bias": torch.randn(27)}
    >>> layer = DeformConv2d(4, 8, 3, modulation=True)
    >>> print(load_deformable_checkpoint(layer, {"state_dict": state}))
    weight -> weight (halved)
    conv_offset.weight -> offset_conv.weight (the first 18 channels)
    conv_offset.weight -> modulation_conv.weight (the last 9 channels)
    conv_offset.bias -> offset_conv.bias (the first 18 channels)
    conv_offset.bias -> modulation_conv.bias (the last 9 channels)
    5 renamed, 1 loaded by their names
    """
    found = next(iter(weights_in(checkpoint)), None)
    if found is None:
        raise ValueError("checkpoint: expected a state_dict, or a mapping that holds one")
    state = dict(without_module(found[1]))
    renamed: list[tuple[str, str, str]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, DeformConv2d | DeformAlign2d):
            _rename(name, layer, state, renamed)
    wanted = model.state_dict().keys()
    missing = tuple(name for name in wanted if name not in state)
    unexpected = tuple(name for name in state if name not in wanted)
    if strict and (missing or unexpected):
        words = [f"{len(missing)} missing ({first_few(missing)})"] * bool(missing)
        words += [f"{len(unexpected)} left over ({first_few(unexpected)})"] * bool(unexpected)
        raise ValueError(f"checkpoint: the names do not fit the model: {', '.join(words)}")
    try:
        model.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: {error}") from error
    unchanged = len(wanted) - len(missing) - len({new for _, new, _ in renamed})
    return LoadedCheckpoint(tuple(renamed), unchanged, missing, unexpected)


def _rename(
    name: str,
    layer: DeformConv2d | DeformAlign2d,
    state: dict[str, Any],
    renamed: list[tuple[str, str, str]],
) -> None:
    """Give the tensors of one layer this library's names."""
    prefix = f"{name}." if name else ""

    def move(old: str, new: str, value: Tensor, note: str = "") -> None:
        state[prefix + new] = value
        renamed.append((old, prefix + new, note))

    for ending in ("weight", "bias"):
        for old, new in (("regular_conv.", ""), ("modulator_conv.", "modulation_conv.")):
            if (key := f"{prefix}{old}{ending}") in state:
                move(key, f"{new}{ending}", state.pop(key))
    heads = [f"{prefix}{head}" for head in OFFSET_HEADS] + [f"{name}_offset"] * bool(name)
    head = next((head for head in heads if f"{head}.weight" in state), None)
    if head is None:
        return
    samples = layer.offset_groups * layer.geometry().n_taps
    channels = len(state[f"{head}.weight"])
    if channels not in (2 * samples, 3 * samples):
        raise ValueError(
            f"checkpoint: {head}.weight has {channels} channels; expected 2 or 3 for each of the "
            f"{samples} samples of {name or 'the layer'} ({layer.offset_groups} offset groups)"
        )
    modulated = channels == 3 * samples
    if modulated != (layer.modulation_conv is not None):
        raise ValueError(
            f"checkpoint: {head}.weight has {channels // samples} channels for each sample; make "
            f"{name or 'the layer'} with modulation={modulated}"
        )
    if modulated and f"{prefix}weight" in state:
        move(f"{prefix}weight", "weight", state[f"{prefix}weight"] / 2, "halved")
    for ending in ("weight", "bias"):
        value = state.pop(f"{head}.{ending}", None)
        if value is None:
            continue
        old = f"{head}.{ending}"
        if not modulated:
            move(old, f"offset_conv.{ending}", value)
            continue
        first = 2 * samples
        move(old, f"offset_conv.{ending}", value[:first], f"the first {first} channels")
        move(old, f"modulation_conv.{ending}", value[first:], f"the last {samples} channels")
