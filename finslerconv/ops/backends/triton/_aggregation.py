"""The aggregation on CUDA devices: tensors in and out of the Triton kernels."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from finslerconv.ops.backends import (
    Aggregation,
    AggregationBackend,
    AggregationGradients,
    reference,
)
from finslerconv.ops.backends.triton import _aggregate as kernels

# Tensors with more elements need offsets of 64 bits; tiles at the end may reach a little further.
_INT32 = 2**31 - 2**20

# Numbers of a tile, rows times channels, that fit the registers with the four pixels of a sample.
_TILE = 2048
_THREADS = 128


class TritonAggregation(AggregationBackend):
    """The part of the CUDA backend that aggregates.

    Where ``torch.use_deterministic_algorithms`` is on, the value's gradient is taken from the
    reference, whose gradients PyTorch then computes in a fixed order.
    """

    def aggregate(self, aggregation: Aggregation) -> Tensor:
        """Return the weighted samples' sums."""
        value = aggregation.value
        out = value.new_empty((*aggregation.locations.shape[:3], value.shape[3]))
        if out.numel() > 0:
            with torch.cuda.device_of(value):
                tensors, sizes, constants = _arguments(aggregation)
                rows, channels = constants["BLOCK_R"], constants["BLOCK_C"]
                grid = (triton.cdiv(sizes[0], rows), triton.cdiv(value.shape[3], channels))
                kernels.aggregate[grid](*tensors, out, *sizes, **constants)
        return out

    def aggregate_backward(
        self, grad: Tensor, aggregation: Aggregation, needs_value: bool, needs_samples: bool
    ) -> AggregationGradients:
        """Return the gradients that are needed."""
        value, dtype = aggregation.value, aggregation.dtype
        by_formula = needs_value and torch.are_deterministic_algorithms_enabled()
        g_value = g_locations = g_weights = None
        if needs_value and not by_formula:
            g_value = torch.zeros_like(value, dtype=dtype, memory_format=torch.contiguous_format)
        if needs_samples:
            g_locations, g_weights = (
                torch.zeros_like(t, dtype=dtype, memory_format=torch.contiguous_format)
                for t in (aggregation.locations, aggregation.weights)
            )
        if grad.numel() > 0 and (g_value is not None or needs_samples):
            with torch.cuda.device_of(value):
                (image, *samples), sizes, constants = _arguments(aggregation)
                low = dtype if dtype == torch.float64 else value.dtype
                slope = grad.to(low).contiguous()
                # Its atomics need registers too, most of all those of single numbers.
                fewer = 2 if constants["C_UNIT"] == 8 and dtype != torch.float64 else 4
                constants["BLOCK_R"] //= fewer
                kernels.aggregate_backward[(triton.cdiv(sizes[0], constants["BLOCK_R"]),)](
                    image, slope, *samples, g_value, g_locations,
                    g_weights, *sizes, **constants,
                )  # fmt: skip
        if by_formula:
            found = reference.aggregate_backward(grad, aggregation, True, False)
            return AggregationGradients(found.value, g_locations, g_weights)
        if g_value is not None:
            g_value = g_value.to(value.dtype)
        return AggregationGradients(g_value, g_locations, g_weights)


def _arguments(
    aggregation: Aggregation,
) -> tuple[tuple[Tensor | None, ...], tuple[int, ...], dict[str, Any]]:
    """Return the kernels' tensors, sizes, and compile-time constants with the launch's options."""
    value, real, levels = aggregation.value, aggregation.dtype, aggregation.levels
    _, pixels, groups, channels = value.shape
    batch, queries, _, n_levels, points = aggregation.weights.shape
    table, size = (levels, (0, 0)) if isinstance(levels, Tensor) else (None, levels)
    total = batch * queries * groups
    double = real == torch.float64
    tensors = (
        value.detach().to(real if double else value.dtype).contiguous(),
        *(t.detach().to(real).contiguous() for t in (aggregation.locations, aggregation.weights)),
        None if aggregation.frames is None else aggregation.frames.to(real).contiguous(),
        None if table is None else table.to(value.device).contiguous(),
    )
    largest = max(value.numel(), total * channels, 2 * aggregation.weights.numel())
    block = min(32 if double else 64, max(16, triton.next_power_of_2(channels)))
    room = _TILE // 2 if double else _TILE
    sizes = (
        total, queries * groups, groups, channels, pixels, *size, n_levels, points,
        *(aggregation.grid or (1, 0, 0)),
    )  # fmt: skip
    constants = {
        "INDEX": tl.int64 if largest > _INT32 else tl.int32,
        "C_UNIT": 8 if channels % 8 == 0 else 1,
        "BLOCK_R": room // block,
        "BLOCK_C": block,
        "num_warps": _THREADS // 32,
    }
    return tensors, sizes, constants
