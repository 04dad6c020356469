"""The aggregation on the CPU: tensors in and out of the kernels, a part for each thread.

Parts are cut by the sizes and ``torch.get_num_threads()`` alone, and partial results are added up
in a fixed order, so equal calls give equal bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finslerconv._memory import array_of
from finslerconv._threads import bands, run, share
from finslerconv.ops.backends import Aggregation, AggregationBackend, AggregationGradients
from finslerconv.ops.backends.numba import _aggregate as kernels

# Below so many multiplications a second thread costs more than it brings.
_PART_WORK = 500_000

# Multiplications of one compiled call, about a tenth of a second: between calls Ctrl-C is heard.
_BAND_WORK = 1_000_000_000

# Threads beyond the first on a group hold a gradient of it each; this bounds how many.
_PARTS_PER_GROUP = 4
_LEAST_PARTS = 8


@dataclass(frozen=True)
class _Job:
    """The arguments that both passes hand to the kernels, as flat arrays of one dtype."""

    sizes: kernels.Sizes
    pairs: int
    """Groups of all images."""
    value: np.ndarray
    table: np.ndarray
    frames: np.ndarray
    strides: tuple[kernels.Strides, kernels.Strides]
    locations: np.ndarray
    weights: np.ndarray

    @property
    def work(self) -> int:
        return self.weights.size * (self.sizes.channels + 16) * 4

    @property
    def band(self) -> int:
        """Queries of a compiled call."""
        return max(1, _BAND_WORK * self.pairs * self.sizes.queries // max(1, self.work))

    @property
    def parts(self) -> int:
        limit = max(_LEAST_PARTS, _PARTS_PER_GROUP * self.pairs)
        return max(1, min(torch.get_num_threads(), self.work // _PART_WORK, limit))

    def ranges(self, parts: int) -> list[tuple[int, int]]:
        """Return the queries of each part, counted over all groups of all images."""
        sizes = self.sizes
        # The kernels share a group among parts only where its pixels lie one beside the other.
        multiple = 1 if sizes.packs or sizes.groups == 1 else sizes.queries
        return [share(self.pairs * sizes.queries, part, parts, multiple) for part in range(parts)]


class NumbaAggregation(AggregationBackend):
    """The part of the CPU backend that aggregates."""

    def aggregate(self, aggregation: Aggregation) -> Tensor:
        """Return the weighted samples' sums."""
        value = aggregation.value
        shape = (*aggregation.locations.shape[:3], value.shape[3])
        out = torch.empty(shape, dtype=aggregation.dtype)
        if out.numel() == 0:
            return out.to(value.dtype)
        job = _job(aggregation)
        ranges = job.ranges(job.parts)
        flat = array_of(out).reshape(-1)

        def combine(part: int) -> Iterator[None]:
            for band in bands(*ranges[part], job.band):
                kernels.forward(
                    job.sizes, *band, job.value, job.table, job.frames, job.strides,
                    job.locations, job.weights, flat,
                )  # fmt: skip
                yield

        run(combine, len(ranges))
        return out.to(value.dtype)

    def aggregate_backward(
        self, grad: Tensor, aggregation: Aggregation, needs_value: bool, needs_samples: bool
    ) -> AggregationGradients:
        """Return the gradients that are needed."""
        dtype = aggregation.dtype
        empty = torch.empty(0, dtype=dtype)
        value, locations, weights = aggregation.differentiated
        # All samples are written, while the value's pixels are added to.
        g_value = torch.zeros(value.shape, dtype=dtype) if needs_value else empty
        g_locations = torch.empty(locations.shape, dtype=dtype) if needs_samples else empty
        g_weights = torch.empty(weights.shape, dtype=dtype) if needs_samples else empty
        if grad.numel() > 0:
            job = _job(aggregation)
            sizes, ranges = job.sizes, job.ranges(job.parts)
            slope = _flat(grad, dtype)
            targets = [array_of(t).reshape(-1) for t in (g_value, g_locations, g_weights)]
            private = [
                torch.zeros(sizes.pixels, sizes.channels, dtype=dtype)
                if needs_value and begin < end and begin % sizes.queries != 0
                else None
                for begin, end in ranges
            ]

            def differentiate(part: int) -> Iterator[None]:
                own = private[part]
                for band in bands(*ranges[part], job.band):
                    kernels.backward(
                        sizes, *band, ranges[part][0], job.value, job.table, job.frames,
                        job.strides, job.locations, job.weights, slope, targets[0],
                        array_of(empty if own is None else own).reshape(-1), *targets[1:],
                        needs_value, needs_samples,
                    )  # fmt: skip
                    yield

            run(differentiate, len(ranges))
            for (begin, _), own in zip(ranges, private, strict=True):
                if own is not None:
                    image, group = divmod(begin // sizes.queries, sizes.groups)
                    g_value[image, :, group] += own
        elif needs_samples:  # no channels
            g_locations.zero_()
            g_weights.zero_()
        return AggregationGradients(
            g_value.to(value.dtype) if needs_value else None,
            g_locations if needs_samples else None,
            g_weights if needs_samples else None,
        )


def _job(aggregation: Aggregation) -> _Job:
    value, dtype = aggregation.value, aggregation.dtype
    batch, pixels, groups, channels = value.shape
    _, queries, _, levels, points = aggregation.weights.shape
    given = aggregation.levels
    table = given.tolist() if isinstance(given, Tensor) else [[*given, 0]]
    for rows, columns, first in table:
        # The kernels would read memory that is not the value's.
        if min(rows, columns) < 1 or first < 0 or first + rows * columns > pixels:
            raise ValueError(
                f"value: expected a level of {rows} x {columns} pixels, the first at index "
                f"{first}, among its {pixels} pixels on axis 1"
            )
    frames = aggregation.frames
    if frames is None:
        frames = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(levels, points, 4)
    width, right, down = aggregation.grid or (queries, 0, 0)
    # Copying a group costs as much as reading some samples at every pixel's place.
    packs = groups > 1 and queries * levels * points >= pixels
    locations, across = _flat_rows(aggregation.locations, dtype)
    weights, along = _flat_rows(aggregation.weights, dtype)
    return _Job(
        kernels.Sizes(pixels, queries, groups, channels, levels, points, width, right, down, packs),
        batch * groups,
        _flat(value, dtype),
        np.array(table, np.int64).reshape(-1),
        _flat(frames, dtype),
        (across, along),
        locations,
        weights,
    )


def _flat(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    return array_of(tensor.to(dtype).contiguous().view(-1))


def _flat_rows(tensor: Tensor, dtype: torch.dtype) -> tuple[np.ndarray, kernels.Strides]:
    """Return a tensor (B, Q, G, ...) as a flat array, with its strides along B, Q and G.

    It is not copied if what a group has lies in one piece, as in the packed tensor of DCNv4.
    """
    tensor = tensor.to(dtype)
    if not tensor.is_contiguous():
        if not tensor[0, 0, 0].is_contiguous():
            tensor = tensor.contiguous()
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        flat = tensor.as_strided((last + 1,), (1,))
    else:
        flat = tensor.view(-1)
    return array_of(flat), kernels.Strides(*tensor.stride()[:3])
