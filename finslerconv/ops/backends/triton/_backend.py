"""The CUDA backend: tensors in and out of the Triton kernels.

Where ``torch.use_deterministic_algorithms`` is on, the image's gradient, which the kernels add up
by atomics, is taken from the reference, whose gradients PyTorch then computes in a fixed order.
"""

import math
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from finslerconv._head_formula import HeadFormula
from finslerconv.ops.backends import (
    ConvBackend,
    Convolution,
    Gradients,
    Needs,
    memory_format,
    reference,
)
from finslerconv.ops.backends.triton import _heads as heads
from finslerconv.ops.backends.triton import _kernels as kernels
from finslerconv.ops.backends.triton import _volumes as volumes
from finslerconv.ops.backends.triton._aggregation import TritonAggregation
from finslerconv.ops.backends.triton._tiles import Arithmetic, Tile, choose

_KINDS = {"offsets": 0, "radial": 1, "affine": 2}
_MODES = {"zeros": 0, "replicate": 1, "reflect": 2, "circular": 3}
_KERNELS: dict[str, Any] = {
    "forward": kernels.forward,
    "forward_depthwise": kernels.forward_depthwise,
    "backward_samples": kernels.backward_samples,
    "backward_samples_depthwise": kernels.backward_samples,
    "backward_weight": kernels.backward_weight,
    "backward_weight_depthwise": kernels.backward_weight_depthwise,
    "forward_volume": volumes.forward,
    "backward_samples_volume": volumes.backward_samples,
    "backward_weight_volume": volumes.backward_weight,
}

# The interpreter runs the kernels on the CPU, to prove them right: there is no driver to ask.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Programs that fill a large device: where tiles of pixels are fewer, other axes are split too.
_PROGRAMS = 512

# For the kernels that compute metrics and their gradients: a thread for each pixel.
_METRICS = Tile(pixels=128, channels=0, outputs=0, threads=128, registers=168)

# Tensors with more elements need offsets of 64 bits; tiles at the end may reach a little further.
_INT32 = 2**31 - 2**20


@dataclass(frozen=True)
class _Sizes:
    """What every kernel takes, in the order of ``SIZES``; tuples have a number for each axis."""

    total: int
    """Output pixels of all images."""
    channels: int
    size: tuple[int, ...]
    out_channels: int
    out_lines: tuple[int, ...]
    """The output's size without the first axis."""
    pixels: int
    """Output pixels of an image."""
    taps: int
    sample_groups: int
    sampled: int
    """Channels of a sample group."""
    channels_of: int
    """Channels of a weight group."""
    outputs_of: int
    """Outputs of a weight group."""
    run: int
    """Channels that share both groups."""
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    origin: tuple[float, ...]
    """The kernel's centre at output pixel 0."""

    def flat(self) -> tuple[float, ...]:
        """Return all the numbers."""
        parts = (v if isinstance(v, tuple) else (v,) for v in astuple(self))
        return tuple(number for part in parts for number in part)


@dataclass(frozen=True)
class _Job:
    """A convolution as the kernels take it."""

    image: Tensor
    """Channels last."""
    field: Tensor
    omega: Tensor | None
    head: Tensor | None
    """The channels of which field and omega are computed."""
    points: Tensor
    mask: Tensor | None
    sizes: _Sizes
    constants: dict[str, Any]
    """Compile-time constants and a head's numbers, of which each kernel takes those it names."""
    arithmetic: Arithmetic
    merged: int
    """How many weight groups of the convolution make one of the kernels' (see _merged)."""
    depthwise: bool

    @property
    def groups(self) -> int:
        """The kernels' weight groups."""
        return self.sizes.channels // self.sizes.channels_of

    @property
    def positions(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """The tensors that say where samples are taken, and their factors."""
        return self.field, self.omega, self.points, self.mask

    def launch(
        self,
        name: str,
        grid: Callable[[Tile], tuple[int, ...]],
        *tensors: Tensor | None,
        added_to: Tensor | None = None,
    ) -> None:
        """Run a kernel on a tile of its table; ``added_to`` is emptied first."""
        if self.depthwise:
            name += "_depthwise"
        elif len(self.sizes.size) == 3:
            name += "_volume"
        kernel, s = _KERNELS[name], self.sizes

        def run(tile: Tile) -> None:
            constants = {
                **self.constants,
                "DEPTHWISE": self.depthwise,
                "ONE_SLOPE": not self.depthwise
                and s.run == s.sampled
                and s.outputs_of <= tile.outputs,
                "BLOCK_P": tile.pixels,
                "BLOCK_C": tile.channels,
                "BLOCK_O": tile.outputs,
            }
            kernel[grid(tile)](
                *tensors,
                *s.flat(),
                **_named(constants, kernel),
                **_options(tile),
            )

        tile = choose(
            name,
            self.arithmetic,
            aligned=self.constants["C_UNIT"] > 1,
            outputs=s.outputs_of,
            key=(s, self.constants["KIND"]),
            run=run,
        )
        if added_to is not None:
            added_to.zero_()
        run(tile)

    def packed(self, weight: Tensor, outputs_last: bool) -> Tensor:
        """Return the weights [group][tap][output][channel], or with the last two exchanged.

        Those of a depthwise convolution are [tap][channel].
        """
        weight = weight.to(self.image.dtype).flatten(2)
        if self.depthwise:
            return weight[:, 0].t().contiguous()
        weight = weight.unflatten(0, (self.groups, self.merged, -1))
        if self.merged > 1:
            # Zero where output and channel are of different groups among the merged.
            weight = torch.diag_embed(weight.movedim(1, -1), dim1=1, dim2=3).flatten(3, 4)
        weight = weight.flatten(1, 2)
        order = (0, 3, 2, 1) if outputs_last else (0, 3, 1, 2)
        return weight.permute(order).contiguous()

    def unpacked(self, gradient: Tensor) -> Tensor:
        """Return [output, channel, tap] of gradients [group][tap][channel][output]."""
        if self.depthwise:
            return gradient.t().unsqueeze(1)
        merged = self.merged
        blocks = gradient.permute(0, 3, 2, 1).unflatten(2, (merged, -1)).unflatten(1, (merged, -1))
        return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(0, 2)


class TritonBackend(TritonAggregation, ConvBackend):
    """Kernels compiled by Triton when first used."""

    takes_channels = True
    dims = (2, 3)

    def forward(self, conv: Convolution) -> Tensor:
        """Return the convolution."""
        conv = conv.with_offsets() if conv.dims == 3 else conv
        with torch.cuda.device_of(conv.input):
            return self._forward(conv)

    def backward(self, grad: Tensor, conv: Convolution, needs: Needs) -> Gradients:
        """Return the gradients that are needed."""
        if conv.dims == 3 and conv.positions.kind != "offsets":
            return self.backward_of_offsets(grad, conv, needs)
        with torch.cuda.device_of(conv.input):
            return self._backward(grad, conv, needs)

    def _forward(self, conv: Convolution) -> Tensor:
        job = _job(conv)
        s = job.sizes
        out = conv.input.new_empty((len(conv.input), *conv.out_size, s.out_channels))

        def grid(tile: Tile) -> tuple[int, int]:
            if job.depthwise:
                blocks = s.sample_groups * triton.cdiv(s.sampled, tile.channels)
            else:
                blocks = job.groups * triton.cdiv(s.outputs_of, tile.outputs)
            return triton.cdiv(s.total, tile.pixels), blocks

        if out.numel() > 0:
            job.launch(
                "forward", grid, job.image, *job.positions,
                job.packed(conv.weight, outputs_last=False),
                None if conv.bias is None else conv.bias.contiguous(), out,
            )  # fmt: skip
        return out.movedim(-1, 1).contiguous(memory_format=memory_format(conv.input))

    def _backward(self, grad: Tensor, conv: Convolution, needs: Needs) -> Gradients:
        input, weight = conv.input, conv.weight
        job = _job(conv)
        g_input = g_image = g_field = g_omega = g_weight = g_mask = None
        if needs.positions:
            g_field = torch.zeros_like(job.field if job.head is None else job.head)
            if job.omega is not None and job.head is None:
                g_omega = torch.zeros_like(job.omega)
            g_mask = None if job.mask is None else torch.zeros_like(job.mask)
        if input.numel() == 0 or grad.numel() == 0:
            g_input = torch.zeros_like(input) if needs.input else None
            g_weight = torch.zeros_like(weight) if needs.weight else None
            return Gradients(g_input, g_field, g_omega, g_weight, g_mask)
        slope = grad.movedim(1, -1).to(job.image.dtype).contiguous()
        if needs.input and not torch.are_deterministic_algorithms_enabled():
            g_image = torch.empty_like(job.image, dtype=job.points.dtype)
        if needs.positions or g_image is not None:
            _backward_samples(job, slope, weight, g_image, g_field, g_omega, g_mask)
        if g_image is not None:
            g_input = g_image.movedim(-1, 1).to(input.dtype)
            g_input = g_input.contiguous(memory_format=memory_format(input))
        elif needs.input:
            g_input = reference.backward(grad, conv, Needs(True, False, False)).input
        if needs.weight:
            g_weight = _backward_weight(job, slope).reshape(weight.shape)
            g_weight = g_weight.to(weight.dtype).contiguous()
        return Gradients(g_input, g_field, g_omega, g_weight, g_mask)


def _backward_samples(
    job: _Job,
    slope: Tensor,
    weight: Tensor,
    g_image: Tensor | None,
    g_field: Tensor | None,
    g_omega: Tensor | None,
    g_mask: Tensor | None,
) -> None:
    """Write the gradients that are not None."""
    s = job.sizes
    tiles = s.sample_groups * triton.cdiv(s.total, 64)
    shares = triton.cdiv(s.taps, triton.cdiv(s.taps, max(1, min(s.taps, _PROGRAMS // tiles))))
    of_metrics = g_field is not None and job.constants["KIND"] != _KINDS["offsets"]
    g_positions = g_field
    if of_metrics:
        g_positions = job.points.new_empty((shares, 6, s.total * s.sample_groups))

    def grid(tile: Tile) -> tuple[int, int, int]:
        return triton.cdiv(s.total, tile.pixels), s.sample_groups, shares

    job.launch(
        "backward_samples", grid, job.image, slope, *job.positions,
        job.packed(weight, outputs_last=True), g_image, g_positions, g_mask, added_to=g_image,
    )  # fmt: skip
    if of_metrics:
        assert g_positions is not None
        _launch_over_metrics(
            kernels.backward_metric, g_positions.shape[2], job.constants, g_positions, job.field,
            job.omega, job.head, g_field, g_omega, shares, s.pixels,
        )  # fmt: skip


def _backward_weight(job: _Job, slope: Tensor) -> Tensor:
    """Return the weights' gradient [output, channel, tap]."""
    s = job.sizes
    runs = s.channels // s.run
    columns = triton.cdiv(s.outputs_of, 128)
    programs = s.taps * runs * triton.cdiv(s.run, 64) * columns
    shares = max(1, min(triton.cdiv(_PROGRAMS, programs), triton.cdiv(s.total, 512)))
    shape = [s.taps, s.channels]
    if not job.depthwise:
        shape = [job.groups, s.taps, s.channels_of, s.outputs_of]
    partial = torch.empty((shares, *shape), dtype=job.points.dtype, device=slope.device)

    def grid(tile: Tile) -> tuple[int, int]:
        blocks = s.taps * runs * triton.cdiv(s.run, tile.channels)
        if not job.depthwise:
            blocks *= triton.cdiv(s.outputs_of, tile.outputs)
        return blocks, shares

    job.launch("backward_weight", grid, job.image, slope, *job.positions, partial)
    return job.unpacked(partial.sum(0))


def _job(conv: Convolution) -> _Job:
    input, positions = conv.input, conv.positions
    real = conv.dtype
    low = real if real == torch.float64 else input.dtype
    batch, channels, *size = input.shape
    outputs, channels_of = conv.weight.shape[:2]
    groups = conv.weight_groups
    depthwise = conv.dims == 2 and channels_of == 1 and outputs == groups
    merged = 1 if depthwise else _merged(groups, channels_of, outputs // groups)
    channels_of, outputs_of = merged * channels_of, merged * outputs // groups
    sampled = channels // conv.sample_groups
    run = sampled if depthwise else math.gcd(channels_of, sampled)
    taps, pixels = conv.geometry.n_taps, math.prod(conv.out_size)
    largest = max(
        input.numel(),
        positions.field.numel(),
        merged * conv.weight.numel(),
        batch * pixels * max(outputs, 6 * conv.sample_groups * taps),
    )

    def in_order(tensor: Tensor) -> Tensor:
        return tensor.detach().to(real).contiguous()

    constants = {
        "KIND": _KINDS[positions.kind],
        "MODE": _MODES[conv.padding_mode],
        "INDEX": tl.int64 if largest > _INT32 else tl.int32,
        "PRECISION": "tf32" if _arithmetic(low) == "tf32" else "ieee",
        "C_UNIT": 8 if run % 8 == 0 else 1,
        "O_UNIT": 8 if outputs_of % 8 == 0 else 1,
        **heads.constants(positions.formula),
    }
    field = in_order(positions.field)
    omega = None if positions.omega is None else in_order(positions.omega)
    head = None
    if positions.formula is not None:
        head = field
        field, omega = _metrics(head, positions.formula, constants)
    return _Job(
        image=input.detach().to(low).movedim(1, -1).contiguous(),
        field=field,
        omega=omega,
        head=head,
        points=in_order(conv.points),
        mask=None if conv.mask is None else in_order(conv.mask),
        sizes=_Sizes(
            batch * pixels, channels, tuple(size), outputs, conv.out_size[1:], pixels, taps,
            conv.sample_groups, sampled, channels_of, outputs_of, run, conv.geometry.stride,
            conv.geometry.dilation, conv.geometry.origin,
        ),
        constants=constants,
        arithmetic=_arithmetic(low),
        merged=merged,
        depthwise=depthwise,
    )  # fmt: skip


def _metrics(
    head: Tensor, formula: HeadFormula, constants: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return the metrics of a head's channels."""
    batch, channels, *size = head.shape
    shape = (batch, channels // formula.n_channels, *size)
    M = head.new_empty((*shape, 2, 2))
    omega = None if formula.is_riemannian else head.new_empty((*shape, 2))
    if M.numel() > 0:
        _launch_over_metrics(
            heads.metrics, math.prod(shape), constants, head, M, omega, math.prod(size)
        )
    return M, omega


def _launch_over_metrics(
    kernel: Any, plane: int, constants: dict[str, Any], *arguments: Tensor | int | None
) -> None:
    """Run a kernel over ``plane`` metrics."""
    kernel[(triton.cdiv(plane, _METRICS.pixels),)](
        *arguments,
        plane,
        BLOCK_P=_METRICS.pixels,
        **_named(constants, kernel),
        **_options(_METRICS),
    )


def _merged(groups: int, channels_of: int, outputs_of: int) -> int:
    """Return how many weight groups to compute as one.

    Tensor cores multiply blocks of 16: small groups fill them together, with zeros between channels
    and outputs of different groups.
    """
    for merged in range(1, groups + 1):
        fits = merged * max(channels_of, outputs_of) <= 64
        if groups % merged == 0 and merged * min(channels_of, outputs_of) >= 16 and fits:
            return merged
    return 1


def _arithmetic(low: torch.dtype) -> Arithmetic:
    """Return how numbers are multiplied; float32 as PyTorch's convolutions do it."""
    if low == torch.float64:
        return "double"
    if low != torch.float32:
        return "half"
    cudnn = torch.backends.cudnn
    # PyTorch refuses to answer for the older switch where the newer one was used.
    allowed = cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32
    return "tf32" if allowed and _has_tf32() else "ieee"


def _has_tf32() -> bool:
    """Return whether the current device multiplies TF32."""
    if _INTERPRETED:
        return True
    target = triton.runtime.driver.active.get_current_target()
    return target.arch >= 80 if target.backend == "cuda" else target.arch == "gfx942"


def _named(constants: dict[str, Any], kernel: Any) -> dict[str, Any]:
    """Return the constants that a kernel names."""
    return {name: value for name, value in constants.items() if name in kernel.arg_names}


def _options(tile: Tile) -> dict[str, int]:
    """Return the compiler's options for the tile on the current device."""
    if _INTERPRETED:
        return {}
    target = triton.runtime.driver.active.get_current_target()
    return tile.options(target.warp_size, capped=target.backend == "cuda")
