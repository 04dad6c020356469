"""Deformable layers of other libraries, known by their parts: none of the libraries is imported."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: What packs call the convolution of their offsets: mmcv and BasicSR, DCNv2.
OFFSET_HEADS = ("conv_offset", "conv_offset_mask")

# The names of attention's arguments: of the papers' code and ours, of mmcv, of transformers.
_QUERY = ("query", "hidden_states")
_ADDED = ("query_pos", "position_embeddings")
_SHAPES = ("input_spatial_shapes", "spatial_shapes", "spatial_shapes_list")
_COUNTS = (("n_heads", "num_heads"), ("n_levels", "num_levels"), ("n_points", "num_points"))


def torchvision_deform(module: nn.Module) -> type[nn.Module] | None:
    """Return torchvision's ``DeformConv2d`` if a module is one; torchvision is not imported."""
    for kind in type(module).__mro__:
        if kind.__name__ == "DeformConv2d" and kind.__module__.startswith("torchvision."):
            return kind
    return None


def has_attention_heads(layer: Any) -> bool:
    """Return whether a layer has the two linear maps of deformable attention."""
    names = ("sampling_offsets", "attention_weights")
    return all(isinstance(getattr(layer, name, None), nn.Linear) for name in names)


def is_attention(layer: Any) -> bool:
    """Return whether a layer is multi-scale deformable attention, ours or another library's."""
    if not has_attention_heads(layer):
        return False
    counts: list[Any] = [_count(layer, names) for names in _COUNTS]
    if not all(isinstance(count, int) for count in counts):
        return False
    samples = counts[0] * counts[1] * counts[2]
    taken = set(argument_names(layer))
    if "reference_points" not in taken or not taken & set(_QUERY) or not taken & set(_SHAPES):
        return False
    channels = [layer.sampling_offsets.out_features, layer.attention_weights.out_features]
    return channels == [2 * samples, samples]


def attention_counts(layer: Any) -> tuple[int, int, int]:
    """Return the numbers of heads, levels and points of an attention."""
    heads, levels, points = (_count(layer, names) for names in _COUNTS)
    return heads, levels, points


def is_batch_first(layer: Any) -> bool:
    """Return whether an attention takes queries (B, Q, C), and not (Q, B, C)."""
    return getattr(layer, "batch_first", True) is not False


class AttentionCall(NamedTuple):
    """What an attention was called with: queries (B, Q, C), points, rows and columns of levels."""

    query: Tensor
    reference_points: Tensor
    shapes: list[tuple[int, int]]


def attention_call(layer: Any, *args: Any) -> AttentionCall:
    """Return what decides where an attention samples, of the arguments of its forward method."""
    given = inspect.signature(layer.forward).bind(*args).arguments
    query, reference = _argument(given, _QUERY), given.get("reference_points")
    if reference is None:
        raise ValueError("reference_points: attention samples around them; got none")
    for added in (given.get(name) for name in _ADDED):
        query = query if added is None else query + added
    if not is_batch_first(layer):
        query = query.transpose(0, 1)
    shapes = torch.as_tensor(_argument(given, _SHAPES)).tolist()
    return AttentionCall(query, reference, [(rows, columns) for rows, columns in shapes])


def argument_names(layer: nn.Module | type[nn.Module]) -> list[str]:
    """Return the names of the arguments of a module's forward method; none if it hides them."""
    try:
        parameters = list(inspect.signature(layer.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    if isinstance(layer, type):
        parameters = parameters[1:]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _count(layer: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(layer, name) for name in names if hasattr(layer, name)), None)


def _argument(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    found = next((given[name] for name in names if given.get(name) is not None), None)
    if found is None:
        raise ValueError(f"x: expected the argument {' or '.join(names)} of attention, got none")
    return found
