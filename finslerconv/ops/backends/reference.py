"""The reference backend: plain PyTorch, the definition of the operators.

It runs on every device and is differentiable any number of times. A convolution goes tap by tap, so
only the columns are as large as the image times the kernel.
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from finslerconv.ops._geometry import PaddingMode
from finslerconv.ops.backends._aggregation import Aggregation, AggregationBackend
from finslerconv.ops.backends._contract import ConvBackend, Convolution, memory_format

# Coordinates beyond this are outside every image; integers and floats hold it exactly.
_FAR = 2.0**30


class Reference(ConvBackend, AggregationBackend):
    """Plain PyTorch, for all devices."""

    takes_channels = True
    dims = (1, 2, 3)

    def forward(self, conv: Convolution) -> Float[Tensor, "batch out_channels *out_size"]:
        """Return the convolution, differentiable by whatever PyTorch offers."""
        return self.convolve(conv, taps_at_once=1)

    def convolve(
        self, conv: Convolution, taps_at_once: int
    ) -> Float[Tensor, "batch out_channels *out_size"]:
        """Return the convolution; with all taps at once, by the fewest operations."""
        batch, channels, *size = conv.input.shape
        groups, taps, weight = conv.sample_groups, conv.geometry.n_taps, conv.weight
        displacements = conv.displacements()
        centres = conv.geometry.centres(conv.out_size, displacements)
        pixels = conv.input.reshape(batch, groups, channels // groups, math.prod(size))
        mask = conv.mask
        if mask is not None:
            mask = mask.reshape(batch, groups, taps, *conv.out_size)
        samples = []
        for first in range(0, taps, taps_at_once):
            chosen = slice(first, first + taps_at_once)
            moved = displacements[:, :, chosen]
            sample = _interpolate(
                pixels,
                [(c + moved[:, :, :, i]).flatten(2, 3) for i, c in enumerate(centres)],
                size,
                conv.padding_mode,
            ).unflatten(3, (moved.shape[2], -1))
            if mask is not None:
                sample = sample * mask[:, :, None, chosen]
            samples.append(sample.to(conv.input.dtype))
        stacked = torch.cat(samples, dim=3).reshape(batch, channels * taps, *conv.out_size)
        output = _PLAIN[conv.dims](
            stacked,
            weight.reshape(weight.shape[0], -1, *(1,) * conv.dims),
            conv.bias,
            groups=conv.weight_groups,
        )
        return output.contiguous(memory_format=memory_format(conv.input))

    def aggregate(self, aggregation: Aggregation) -> Float[Tensor, "batch queries groups channels"]:
        """Return the weighted samples' sums, differentiable by whatever PyTorch offers."""
        value, real = aggregation.value, aggregation.dtype
        batch, queries, groups, levels, points = aggregation.weights.shape
        rows: int | Tensor
        columns: int | Tensor
        first: int | Tensor
        if isinstance(aggregation.levels, Tensor):
            table = aggregation.levels.to(value.device)
            rows, columns, first = table[:, :1], table[:, 1:2], table[:, 2:]
        else:
            (rows, columns), first = aggregation.levels, 0
        weights = aggregation.weights.to(real)
        x, y = aggregation.positions().unbind(-1)
        known = (x.abs() < _FAR) & (y.abs() < _FAR)
        x, y = torch.where(known, x, 0.0), torch.where(known, y, 0.0)
        left, top = x.floor(), y.floor()
        beside, below = x - left, y - top
        pixels = value.transpose(1, 2)
        total: Tensor | None = None
        for row, column, share in (
            (top, left, (1 - below) * (1 - beside)),
            (top, left + 1, (1 - below) * beside),
            (top + 1, left, below * (1 - beside)),
            (top + 1, left + 1, below * beside),
        ):
            inside = known & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            pixel = torch.where(inside, first + row.long() * columns + column.long(), 0)
            share = torch.where(inside, share, 0.0) * weights
            # Queries and groups change places, as in the pixels; levels and points become one.
            index = pixel.transpose(1, 2).reshape(batch, groups, queries * levels * points, 1)
            values = pixels.gather(2, index.expand(-1, -1, -1, value.shape[3])).to(real)
            values = values.reshape(batch, groups, queries, levels * points, value.shape[3])
            shares = share.transpose(1, 2).reshape(batch, groups, queries, 1, levels * points)
            term = (shares @ values).squeeze(3)
            total = term if total is None else total + term
        assert total is not None
        return total.transpose(1, 2).to(value.dtype).contiguous()


# PyTorch's convolutions by the number of axes.
_PLAIN = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _interpolate(
    pixels: Float[Tensor, "batch groups channels pixels"],
    positions: Sequence[Float[Tensor, "batch groups *out_size"]],
    size: Sequence[int],
    padding_mode: PaddingMode,
) -> Float[Tensor, "batch groups channels *out_size"]:
    """Return samples of an image of ``size``; ``positions`` are given axis by axis."""
    # NaN, infinity and absurd coordinates are outside: zero, with zero gradients.
    known = functools.reduce(operator.and_, (x.abs() < _FAR for x in positions))
    positions = [torch.where(known, x, 0.0) for x in positions]
    floors = [x.floor() for x in positions]
    fractions = [x - floor for x, floor in zip(positions, floors, strict=True)]
    total: Tensor | None = None
    for corner in itertools.product((0, 1), repeat=len(size)):
        index = share = None
        inside = known
        for n, floor, fraction, far in zip(size, floors, fractions, corner, strict=True):
            i, counts = _wrap((floor + 1 if far else floor).long(), n, padding_mode)
            part = fraction if far else 1 - fraction
            inside = inside & counts
            index = i if index is None else index * n + i
            share = part if share is None else share * part
        assert index is not None
        assert share is not None
        share = torch.where(inside, share, 0.0)
        index = index.flatten(2)[:, :, None].expand(-1, -1, pixels.shape[2], -1)
        values = pixels.gather(3, index)
        term = values.reshape(*values.shape[:3], *share.shape[2:]) * share[:, :, None]
        total = term if total is None else total + term
    assert total is not None
    return total


def _wrap(
    index: Int[Tensor, "..."], size: int, mode: PaddingMode
) -> tuple[Int[Tensor, "..."], Tensor]:
    """Return the pixel that stands for each index, and whether it counts."""
    everywhere = torch.ones_like(index, dtype=torch.bool)
    # A remainder by a tensor, not by a number: ONNX has the one for sizes that are not known.
    if mode == "circular":
        return index.remainder(index.new_full((), size)), everywhere
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        folded = index.remainder(index.new_full((), period))
        return torch.minimum(folded, period - folded).clamp(max=size - 1), everywhere
    inside = everywhere if mode == "replicate" else (index >= 0) & (index < size)
    return index.clamp(0, size - 1), inside
