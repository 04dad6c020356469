"""The CPU backend: tensors in and out of the compiled kernels, cut into one part for each thread.

How the work is cut depends on the shapes and on ``torch.get_num_threads()`` alone, and partial
results are added up in a fixed order, so equal calls give equal bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finslerconv._memory import array_of
from finslerconv._progress import counted
from finslerconv._threads import bands, run, share
from finslerconv.ops._geometry import ConvGeometry
from finslerconv.ops.backends import (
    ConvBackend,
    Convolution,
    Gradients,
    Needs,
    channels_last,
    memory_format,
)
from finslerconv.ops.backends import _head_numbers as heads
from finslerconv.ops.backends.numba import _kernels as kernels
from finslerconv.ops.backends.numba import _places as places
from finslerconv.ops.backends.numba import _simd as simd
from finslerconv.ops.backends.numba import _vectors as vec
from finslerconv.ops.backends.numba import _volumes as volumes
from finslerconv.ops.backends.numba._aggregation import NumbaAggregation

_KINDS = {"offsets": places.OFFSETS, "radial": places.RADIAL, "affine": places.AFFINE}
_MODES = {
    "zeros": places.ZEROS, "replicate": places.REPLICATE, "reflect": places.REFLECT,
    "circular": places.CIRCULAR,
}  # fmt: skip

# The kernels by the number of axes.
_COMPILED = {2: kernels, 3: volumes}

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}

# The columns held at once should leave room in a second-level cache of 512 KiB and more.
_COLUMN_BYTES = 256 * 1024

# Taps of a depthwise convolution that are placed at once: they need no columns, but places.
_PLACED_TAPS = 9

# Below so many multiplications a second thread costs more than it brings.
_PART_WORK = 500_000

# Numbers that are turned to another order of axes in the time that a second thread costs.
_PART_TURNED = 100_000

# Multiplications of one compiled call, about a tenth of a second: between calls Ctrl-C is heard.
_BAND_WORK = 1_000_000_000

# With fewer images than threads, the threads beyond the first on an image hold a gradient of it
# each; this bounds how many.
_PARTS_PER_IMAGE = 4
_LEAST_PARTS = 8


@dataclass(frozen=True)
class _Job:
    """The arguments that both passes hand to the kernels, as flat arrays of one dtype."""

    plan: places.Plan
    image: np.ndarray
    field: np.ndarray
    omega: np.ndarray
    head: np.ndarray
    points: np.ndarray
    centre: np.ndarray
    dilation: np.ndarray
    mask: np.ndarray
    weight: np.ndarray
    dtype: torch.dtype
    copied: Tensor | None = None
    """The memory of ``image``, if it is a copy."""

    @property
    def image_pixels(self) -> int:
        """Pixels of an image."""
        return self.plan.depth * self.plan.height * self.plan.width

    @property
    def out_pixels(self) -> int:
        """Pixels of an output."""
        return self.plan.out_depth * self.plan.out_height * self.plan.out_width

    @property
    def pixels(self) -> int:
        """Pixels of all outputs."""
        return self.plan.batch * self.out_pixels

    @property
    def work(self) -> int:
        return self.pixels * self._pixel_work

    @property
    def band(self) -> int:
        """Pixels of a compiled call, a multiple of the tile."""
        return max(1, _BAND_WORK // (self._pixel_work * self.plan.tile)) * self.plan.tile

    @property
    def _pixel_work(self) -> int:
        plan = self.plan
        if plan.depthwise:
            return plan.taps * 8 * plan.channels * (1 + plan.depthwise)
        depth = plan.taps * (plan.channels // plan.weight_groups + 8)
        return depth * max(plan.out_channels, 16)


class NumbaBackend(NumbaAggregation, ConvBackend):
    """Kernels compiled by Numba, on the threads of PyTorch."""

    takes_channels = True
    dims = (2, 3)

    def forward(self, conv: Convolution) -> Tensor:
        """Return the convolution."""
        conv = conv.with_offsets() if conv.dims == 3 else conv
        compiled: Any = _COMPILED[conv.dims]
        input, weight, bias = conv.input, conv.weight, conv.bias
        layout = memory_format(input)
        out = torch.empty(
            (len(input), len(weight), *conv.out_size), dtype=input.dtype, memory_format=layout
        )
        if out.numel() == 0:
            return out
        job = _job(conv)
        plan = job.plan
        parts = _parts(job, job.pixels)
        groups = plan.weight_groups
        packed = job.weight
        if not plan.depthwise:
            panels = groups * _ceil(plan.out_channels // groups, plan.out_vectors * plan.lanes)
            depth = plan.taps * (plan.channels // groups)
            packed = _empty(panels * depth * plan.out_vectors * plan.lanes, job)
            _turn(
                panels, packed.size, parts, kernels.pack_outputs, plan, _taps_first(job, parts),
                packed,
            )  # fmt: skip
        job = _with_image(input, job, parts)
        shift = np.zeros(plan.out_channels, packed.dtype)
        if bias is not None:
            shift = _flat(bias, job.dtype)
        result = out if out.dtype == job.dtype else torch.empty_like(out, dtype=job.dtype)
        last = layout != torch.contiguous_format
        result_flat = _flat_pixels(result, last)

        def convolve(part: int) -> Iterator[None]:
            for band in bands(*share(job.pixels, part, parts, simd.TILE_ROWS), job.band):
                compiled.forward(
                    plan, *band, job.image, job.field, job.omega, job.head, job.points, job.centre,
                    job.dilation, job.mask, packed, shift, result_flat, last,
                )  # fmt: skip
                advance(band[1] - band[0])
                yield

        with counted("Convolving", job.pixels) as advance:
            run(convolve, parts)
        return out if result is out else out.copy_(result)

    def backward(self, grad: Tensor, conv: Convolution, needs: Needs) -> Gradients:
        """Return the gradients that are needed."""
        if conv.dims == 3 and conv.positions.kind != "offsets":
            return self.backward_of_offsets(grad, conv, needs)
        compiled: Any = _COMPILED[conv.dims]
        input, weight = conv.input, conv.weight
        job = _job(conv)
        plan = job.plan
        g_field, g_omega, g_mask = (
            torch.zeros(argument.shape, dtype=job.dtype)
            if needs.positions and argument is not None
            else None
            for argument in (conv.positions.field, conv.positions.omega, conv.mask)
        )
        g_input = g_weight = None
        if input.numel() == 0 or grad.numel() == 0:
            g_input = torch.zeros_like(input) if needs.input else None
            g_weight = torch.zeros_like(weight) if needs.weight else None
            return Gradients(g_input, g_field, g_omega, g_weight, g_mask)

        limit = max(_LEAST_PARTS, _PARTS_PER_IMAGE * plan.batch)
        parts = min(_parts(job, job.pixels), limit)
        groups = plan.weight_groups
        channels, outputs = plan.channels // groups, plan.out_channels // groups
        packed = job.weight
        if not plan.depthwise:
            chunks = _ceil(plan.taps, plan.chunk)
            line = _ceil(plan.chunk * channels, plan.column_vectors * plan.lanes)
            line *= plan.column_vectors * plan.lanes
            packed = _empty(groups * chunks * outputs * line, job)
            _turn(
                groups * chunks, packed.size, parts, kernels.pack_columns, plan,
                _taps_first(job, parts), packed,
            )  # fmt: skip
        job = _with_image(input, job, parts)
        slope_last = memory_format(grad) != torch.contiguous_format
        slope = _flat_pixels(grad.to(job.dtype), slope_last)

        image_size = plan.channels * job.image_pixels
        out_pixels = job.out_pixels
        ranges = [share(job.pixels, part, parts, simd.TILE_ROWS) for part in range(parts)]
        total = torch.zeros(plan.batch * image_size if needs.input else 0, dtype=job.dtype)
        total_flat = array_of(total)
        # A part that begins inside an image keeps what it adds to that image to itself.
        private = [
            np.zeros(image_size, packed.dtype)
            if needs.input and begin < end and begin % out_pixels != 0
            else None
            for begin, end in ranges
        ]
        out_line = _ceil(outputs, plan.out_vectors * plan.lanes) * plan.out_vectors * plan.lanes
        weight_size = packed.size if plan.depthwise else groups * plan.taps * channels * out_line
        weights = [
            torch.zeros(weight_size if needs.weight else 0, dtype=job.dtype) for _ in range(parts)
        ]
        field_flat, omega_flat, mask_flat = (
            _flat(gradient, job.dtype) for gradient in (g_field, g_omega, g_mask)
        )

        def differentiate(part: int) -> Iterator[None]:
            own = private[part]
            for band in bands(*ranges[part], job.band):
                compiled.backward(
                    plan, *band, ranges[part][0], job.image, slope, slope_last, job.field,
                    job.omega, job.head, job.points, job.centre, job.dilation, job.mask, packed,
                    total_flat, _empty(0, job) if own is None else own, array_of(weights[part]),
                    field_flat, omega_flat, mask_flat, needs.input, needs.weight, needs.positions,
                )  # fmt: skip
                advance(band[1] - band[0])
                yield

        with counted("Differentiating", job.pixels) as advance:
            run(differentiate, parts)
        if needs.input:
            for (begin, _), own in zip(ranges, private, strict=True):
                if own is not None:
                    image = begin // out_pixels
                    total_flat[image * image_size : (image + 1) * image_size] += own
            del private
            g_input = _image_gradient(total, input, job, parts)
        if needs.weight:
            for other in weights[1:]:
                weights[0] += other
            if plan.depthwise:
                summed = weights[0].reshape(plan.taps, plan.depthwise, channels).permute(2, 1, 0)
                g_weight = summed.reshape(weight.shape).contiguous()
            else:
                g_weight = _weight_gradient(weights[0], job, out_line, parts).reshape(weight.shape)
        return Gradients(g_input, g_field, g_omega, g_weight, g_mask)


def _job(conv: Convolution) -> _Job:
    """Cut up a convolution; the image is still missing."""
    weight, geometry, dtype = conv.weight, conv.geometry, conv.dtype
    points, formula = conv.positions.points, conv.positions.formula
    head, constraint = heads.codes(formula)
    batch, channels = conv.input.shape[:2]
    # An image is a volume of one layer.
    layers = (1,) * (3 - conv.dims)
    depth, height, width = (*layers, *conv.input.shape[2:])
    out_depth, out_height, out_width = (*layers, *conv.out_size)
    stride_z, stride_y, stride_x = (*layers, *geometry.stride)
    taps, groups, depthwise = geometry.n_taps, conv.weight_groups, 0
    if groups == channels > 1:
        # All channels are sampled together, and nothing is summed over them.
        depthwise, groups = len(weight) // channels, 1
        weight = weight.reshape(channels, depthwise, taps).permute(2, 1, 0)
    elif groups == conv.sample_groups == 1 and 2 < channels < 8:
        # With channels of zeros a sample is one vector.
        channels = next(few for few in simd.FEW if channels <= few)
    lanes = vec.lanes(dtype.itemsize)
    line = channels // groups * dtype.itemsize
    # Large weights are read once for every tile: then larger tiles.
    large = weight.numel() * dtype.itemsize > 512 * 1024
    small = taps * line * 192 <= _COLUMN_BYTES
    tile = 192 if (large or small) and not depthwise else 96
    chunk = min(taps, _PLACED_TAPS if depthwise else max(1, _COLUMN_BYTES // (tile * line)))
    chunk = _ceil(taps, _ceil(taps, chunk))
    plan = places.Plan(
        batch=batch,
        depth=depth,
        height=height,
        width=width,
        channels=channels,
        out_depth=out_depth,
        out_height=out_height,
        out_width=out_width,
        out_channels=len(conv.weight),
        taps=taps,
        sample_groups=conv.sample_groups,
        weight_groups=groups,
        depthwise=depthwise,
        stride_z=stride_z,
        stride_y=stride_y,
        stride_x=stride_x,
        kind=_KINDS[conv.positions.kind],
        mode=_MODES[conv.padding_mode],
        has_omega=int(conv.positions.omega is not None or constraint > 0),
        has_mask=int(conv.mask is not None),
        head=head,
        constraint=constraint,
        matrix_channels=0 if formula is None else formula.parametrization.n_channels,
        tile=tile,
        chunk=chunk,
        out_vectors=_vectors(len(conv.weight) // groups, lanes),
        column_vectors=_vectors(chunk * (channels // groups), lanes),
        lanes=lanes,
    )
    return _Job(
        plan=plan,
        image=_flat(None, dtype),
        field=_flat(conv.positions.field, dtype),
        omega=_flat(conv.positions.omega, dtype),
        head=np.array(heads.coefficients(formula)),
        points=_flat(points, dtype) if points is not None else _taps(geometry, dtype),
        centre=np.array(geometry.origin, _DTYPES[dtype]),
        dilation=np.array(geometry.dilation, _DTYPES[dtype]),
        mask=_flat(conv.mask, dtype),
        weight=_flat(weight, dtype),
        dtype=dtype,
    )


@lru_cache
def _taps(geometry: ConvGeometry, dtype: torch.dtype) -> np.ndarray:
    """Return the taps' standard places around the centre."""
    return _flat(geometry.taps(torch.empty(0, dtype=dtype)), dtype)


def _turn(rows: int, size: int, parts: int, *call: Any) -> None:
    """Run a kernel that turns ``size`` numbers, over shares of the rows.

    ``call`` is the kernel and its arguments before the range of the rows.
    """
    kernel, *arguments = call
    parts = max(1, min(parts, size // _PART_TURNED))

    def turn(part: int) -> None:
        kernel(*arguments, *share(rows, part, parts))

    run(turn, parts)


def _with_image(input: Tensor, job: _Job, parts: int) -> _Job:
    """Add the image, channels last; it is copied only if it is not so yet."""
    plan = job.plan
    tensor = input.detach().to(job.dtype)
    if tensor.is_contiguous(memory_format=channels_last(tensor.ndim - 2)) and (
        plan.channels == tensor.shape[1]
    ):
        return replace(job, image=_flat_pixels(tensor, True))
    pixels = plan.batch * job.image_pixels
    copied = torch.empty(pixels * plan.channels, dtype=job.dtype)
    image, source = array_of(copied), _flat(tensor, job.dtype)
    _turn(
        pixels, image.size, parts, kernels.channels_last, source, image, input.shape[1],
        plan.channels, job.image_pixels,
    )  # fmt: skip
    return replace(job, image=image, copied=copied)


def _taps_first(job: _Job, parts: int) -> np.ndarray:
    """Return the weights as (O, taps, C): taps are pixels of small images."""
    plan = job.plan
    channels, rows = plan.channels // plan.weight_groups, plan.out_channels * plan.taps
    turned = _empty(rows * channels, job)
    _turn(
        rows, turned.size, parts, kernels.channels_last, job.weight, turned,
        job.weight.size // rows, channels, plan.taps,
    )  # fmt: skip
    return turned


def _weight_gradient(total: Tensor, job: _Job, line: int, parts: int) -> Tensor:
    """Return the gradient (O, C, taps) of one [group][tap][channel][output of ``line``]."""
    plan = job.plan
    channels, rows = plan.channels // plan.weight_groups, plan.out_channels * plan.taps
    turned = _empty(rows * channels, job)
    kernels.unpack_outputs(plan, array_of(total), line, turned, 0, plan.weight_groups)
    gradient = torch.empty(job.weight.size, dtype=job.dtype)
    _turn(
        rows, turned.size, parts, kernels.channels_first, turned, array_of(gradient),
        job.weight.size // rows, channels, plan.taps,
    )  # fmt: skip
    return gradient


def _image_gradient(total: Tensor, input: Tensor, job: _Job, parts: int) -> Tensor:
    """Return the gradient, which comes channels last, in the layout and dtype of the input."""
    plan = job.plan
    batch, channels, *size = input.shape
    if memory_format(input) != torch.contiguous_format or channels == 1:
        gradient = total.reshape(batch, *size, plan.channels)[..., :channels]
        return gradient.contiguous().movedim(-1, 1).to(input.dtype)
    if job.copied is not None and channels == plan.channels:
        gradient = job.copied.view(input.shape)  # the image has been read
    else:
        gradient = torch.empty(input.shape, dtype=job.dtype)
    _turn(
        batch * job.image_pixels, total.numel(), parts, kernels.channels_first, array_of(total),
        array_of(gradient).reshape(-1), channels, plan.channels, job.image_pixels,
    )  # fmt: skip
    return gradient.to(input.dtype)


def _vectors(columns: int, lanes: int) -> int:
    """Return how many vectors a row of the register tile should have: little waste, then width."""
    slowness = {4: 1.0, 2: 1.1, 1: 1.4}
    return min(simd.tile_rows, key=lambda n: _ceil(columns, n * lanes) * n * slowness[n])


def _parts(job: _Job, units: int) -> int:
    return max(1, min(torch.get_num_threads(), job.work // _PART_WORK, _ceil(units, 24)))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _flat(tensor: Tensor | None, dtype: torch.dtype) -> np.ndarray:
    if tensor is None:
        return np.empty(0, _DTYPES[dtype])
    return array_of(tensor.to(dtype).contiguous()).reshape(-1)


def _flat_pixels(tensor: Tensor, last: bool) -> np.ndarray:
    if last:
        return array_of(tensor.movedim(1, -1)).reshape(-1)
    return array_of(tensor.contiguous()).reshape(-1)


def _empty(size: int, job: _Job) -> np.ndarray:
    # PyTorch's memory begins with a line of the cache, so that vectors cross none.
    return array_of(torch.empty(size, dtype=job.dtype))
