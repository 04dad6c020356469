"""Where DCNv3, DCNv4 and multi-scale deformable attention take their samples."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._foreign import attention_call, attention_counts
from finslerconv.balls import ReferenceSet, lattice
from finslerconv.implicit._positions import KernelPositions
from finslerconv.nn import DCNv3, DCNv4, MSDeformAttn
from finslerconv.ops import tap_grid


def read_taps(layer: DCNv3 | DCNv4, input: Tensor, *shape: Any) -> KernelPositions:
    """Return the positions of DCNv3 or DCNv4: taps in rows, around the kernel's middle."""
    points, weights = layer.samples(input, *shape)
    geometry = layer.geometry()
    rows, columns = input.shape[1:3]
    if isinstance(layer, DCNv4):
        rows, columns = next(filter(None, shape), (math.isqrt(input.shape[1]),) * 2)
    size = rows, columns
    # Kernels of even size are centred on a tap there, and between taps here.
    origin, taps = tap_grid(geometry, layer.remove_center, points.new_empty(0))
    shift = origin.flip(-1) - origin.new_tensor(geometry.origin)
    rows, columns = geometry.kernel_size
    order = torch.arange(rows * columns, device=points.device)
    order = order.view(columns, rows).T.flatten()
    reference = None
    if layer.remove_center:
        middle = len(order) // 2
        order = order[order != middle]
        order = order - (order > middle).long()
        whole = lattice(geometry.kernel_size)
        kept = [i for i in range(len(whole)) if i != middle]
        reference = ReferenceSet("lattice", (len(kept),), whole.points[kept], whole.weights[kept])
    standard = layer.offset_scale * taps.flip(-1)
    points = (points + shift)[..., order, :]
    weights = weights[..., order].to(points.dtype)
    if layer.group == 1:
        points, weights = points[:, 0], weights[:, 0]
    return KernelPositions(
        points, geometry, size, type(layer).__name__.lower(), True, weights,
        reference=reference, standard=(standard + shift)[order],
    )  # fmt: skip


def read_attention(layer: Any, *args: Any) -> tuple[KernelPositions, ...]:
    """Return the positions of the heads of multi-scale deformable attention, on each level."""
    heads, levels, n = attention_counts(layer)
    query, reference, shapes = attention_call(layer, *args)
    expected = (*query.shape[:2], levels)
    if reference.ndim != 4 or reference.shape[3] not in (2, 4):
        raise ValueError(
            f"reference_points: expected shape {(*expected, 2)} or {(*expected, 4)}, got "
            f"{tuple(reference.shape)}"
        )
    if len(shapes) != levels:
        raise ValueError(f"spatial_shapes: expected {levels} levels, got {len(shapes)}")
    offsets = layer.sampling_offsets(query).unflatten(-1, (heads, levels, n, 2))
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32)).flip(-1)
    weights = layer.attention_weights(query).unflatten(-1, (heads, levels * n)).softmax(-1)
    weights = weights.unflatten(-1, (levels, n)).to(offsets.dtype)
    reference = reference.to(offsets.dtype).expand(expected + reference.shape[3:])
    rays = MSDeformAttn.rays(heads, n).flip(-1).to(offsets)
    return tuple(
        _on_level(offsets[:, :, :, i], weights[:, :, :, i], reference[:, :, i], rays, size)
        for i, size in enumerate(shapes)
    )


def _on_level(
    offsets: Float[Tensor, "batch queries heads n 2"],
    weights: Float[Tensor, "batch queries heads n"],
    reference: Float[Tensor, "batch queries k"],
    rays: Float[Tensor, "heads n 2"],
    size: tuple[int, int],
) -> KernelPositions:
    """Return the positions on one level, the queries as one row of pixels."""
    pixels = offsets.new_tensor(size)
    # The centre of the first pixel is (0, 0).
    places = (reference[..., :2].flip(-1) * pixels - 0.5)[:, None]
    # Offsets are in pixels, or in halves of a box that n steps cross.
    unit = torch.ones_like(places)
    if reference.shape[-1] == 4:
        unit = (reference[..., 2:].flip(-1) * pixels * (0.5 / rays.shape[1]))[:, None]
    unit = unit[:, None, ..., None, :]
    points = offsets.transpose(1, 2)[:, :, None] * unit
    standard = rays[:, None, None] * unit
    weights = weights.transpose(1, 2)[:, :, None]
    if len(rays) == 1:
        points, standard, weights = points[:, 0], standard[:, 0], weights[:, 0]
    return KernelPositions(
        points, None, size, "attention", True, weights, standard=standard, places=places
    )
