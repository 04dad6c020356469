"""The CUDA backend: tensors in and out of the Triton kernels.

Where ``torch.use_deterministic_algorithms`` is on, the image's gradient, which the kernels add up
by atomics, is taken from the reference, whose gradients PyTorch then computes in a fixed order.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from finslerconv.ops.backends import (
    ConvBackend,
    Convolution,
    Gradients,
    Needs,
    memory_format,
    reference,
)
from finslerconv.ops.backends.triton import _kernels as kernels

_KINDS = {"offsets": 0, "radial": 1, "affine": 2}
_MODES = {"zeros": 0, "replicate": 1, "reflect": 2, "circular": 3}

# The interpreter runs the kernels on the CPU, to prove them right: it has nothing to tune.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# In double precision the product is a sum over a cube of numbers, which must stay small.
_SMALL = {"BLOCK_P": 16, "BLOCK_C": 16, "BLOCK_O": 16}


def _configs(*shapes: tuple[int, int, int, int, int]) -> list[Any]:
    return [
        triton.Config(
            {"BLOCK_P": p, "BLOCK_C": c, "BLOCK_O": o}, num_warps=warps, num_stages=stages
        )
        for p, c, o, warps, stages in shapes
    ]


_FORWARD = _configs(
    (64, 32, 32, 4, 2), (64, 32, 64, 4, 2), (64, 64, 64, 4, 3), (128, 32, 64, 8, 2),
    (128, 64, 64, 8, 3), (128, 32, 128, 8, 3), (128, 64, 128, 8, 3), (32, 16, 16, 2, 2),
)  # fmt: skip
_BACKWARD = _configs(
    (32, 32, 32, 4, 2), (64, 32, 32, 4, 2), (64, 32, 64, 4, 2), (64, 64, 64, 8, 2),
    (128, 32, 64, 8, 2), (32, 16, 16, 2, 2),
)  # fmt: skip
_KEY = ["channels", "out_channels", "taps", "weight_groups", "sample_groups", "KIND"]


def _tuned(kernel: Any, configs: list[Any], **options: Any) -> Any:
    return triton.autotune(configs, key=_KEY, **options)(kernel)


_KERNELS: dict[str, tuple[Any, Any]] = {
    "forward": (kernels.forward, None),
    "samples": (kernels.backward_samples, None),
    "weight": (kernels.backward_weight, None),
}
if not _INTERPRETED:
    _KERNELS = {
        "forward": (kernels.forward, _tuned(kernels.forward, _FORWARD)),
        # Trials add to the image's gradient too: it is emptied between them.
        "samples": (
            kernels.backward_samples,
            _tuned(kernels.backward_samples, _BACKWARD, reset_to_zero=["g_x"]),
        ),
        "weight": (kernels.backward_weight, _tuned(kernels.backward_weight, _BACKWARD)),
    }


@dataclass(frozen=True)
class _Job:
    """What all kernels are given, in their order."""

    image: Tensor
    field: Tensor
    omega: Tensor
    points: Tensor
    mask: Tensor
    sizes: tuple[int | float, ...]
    flags: dict[str, int | bool]
    out_pixels: int
    groups: int
    low: torch.dtype
    """The dtype of what is multiplied."""

    def launch(self, name: str, grid: Any, *arguments: Any, **flags: Any) -> None:
        """Run a kernel, tuned to the shapes where that is possible."""
        plain, tuned = _KERNELS[name]
        flags = {**self.flags, **flags}
        if tuned is None or self.low == torch.float64:
            blocks = {**_SMALL, "BLOCK_P": 64} if _INTERPRETED else _SMALL
            plain[grid](*arguments, **flags, **blocks)
        else:
            tuned[grid](*arguments, **flags)


class TritonBackend(ConvBackend):
    """Kernels compiled by Triton, tuned to the shapes when first used."""

    def forward(self, conv: Convolution) -> Tensor:
        """Return the convolution."""
        input, weight, bias = conv.input, conv.weight, conv.bias
        job = _job(conv)
        rows, columns = conv.out_size
        outputs, channels = weight.shape[:2]
        out = input.new_empty((len(input), rows, columns, outputs))
        if out.numel() > 0:
            taps = conv.geometry.n_taps
            packed = weight.reshape(job.groups, outputs // job.groups, channels, taps)
            packed = packed.permute(0, 3, 2, 1).to(job.low).contiguous()

            def grid(meta: Any) -> tuple[int, int]:
                blocks = triton.cdiv(outputs // job.groups, meta["BLOCK_O"])
                return triton.cdiv(job.out_pixels, meta["BLOCK_P"]), job.groups * blocks

            job.launch(
                "forward", grid, job.image, job.field, job.omega, job.points, job.mask, packed,
                out if bias is None else bias.contiguous(), out, *job.sizes,
                HAS_BIAS=bias is not None,
            )  # fmt: skip
        return out.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(input))

    def backward(self, grad: Tensor, conv: Convolution, needs: Needs) -> Gradients:
        """Return the gradients that are needed."""
        input, weight, omega, mask = conv.input, conv.weight, conv.positions.omega, conv.mask
        job = _job(conv)
        real = job.points.dtype
        taps = conv.geometry.n_taps
        outputs, channels = weight.shape[:2]
        g_input = g_field = g_omega = g_weight = g_mask = None
        if needs.positions:
            g_field = torch.zeros_like(job.field)
            g_omega = None if omega is None else torch.zeros_like(job.omega)
            g_mask = None if mask is None else torch.zeros_like(job.mask)
        if needs.input:
            g_input = torch.zeros_like(job.image, dtype=real)
        if needs.weight:
            g_weight = torch.zeros_like(weight)
        if input.numel() == 0 or grad.numel() == 0:
            image = None if g_input is None else g_input.permute(0, 3, 1, 2).to(input.dtype)
            return Gradients(image, g_field, g_omega, g_weight, g_mask)
        slope = grad.permute(0, 2, 3, 1).to(job.low).contiguous()
        atomics = needs.input and not torch.are_deterministic_algorithms_enabled()
        if needs.positions or atomics:
            packed = weight.reshape(job.groups, outputs // job.groups, channels, taps)
            packed = packed.permute(0, 3, 1, 2).to(job.low).contiguous()
            nothing = job.image

            def grid(meta: Any) -> tuple[int, int]:
                return triton.cdiv(job.out_pixels, meta["BLOCK_P"]), conv.sample_groups

            job.launch(
                "samples", grid, job.image, slope, job.field, job.omega, job.points, job.mask,
                packed,
                nothing if g_input is None else g_input,
                nothing if g_field is None else g_field,
                nothing if g_omega is None else g_omega,
                nothing if g_mask is None else g_mask,
                *job.sizes, NEEDS_X=atomics, NEEDS_FIELD=needs.positions,
            )  # fmt: skip
        if needs.input and not atomics:
            g_input = reference.backward(grad, conv, Needs(True, False, False)).input
        elif g_input is not None:
            g_input = g_input.permute(0, 3, 1, 2).to(input.dtype)
            g_input = g_input.contiguous(memory_format=memory_format(input))
        if needs.weight:
            # Enough programs to fill the device, and no more partial sums than needed for that.
            c_blocks, o_blocks = math.ceil(channels / 32), math.ceil(outputs / job.groups / 32)
            blocks = job.groups * taps * c_blocks * o_blocks
            splits = max(1, min(math.ceil(512 / blocks), math.ceil(job.out_pixels / 512)))
            partial = torch.empty(
                (splits, job.groups, taps, channels, outputs // job.groups),
                dtype=real,
                device=input.device,
            )

            def weight_grid(meta: Any) -> tuple[int, int]:
                c_blocks = triton.cdiv(channels, meta["BLOCK_C"])
                o_blocks = triton.cdiv(outputs // job.groups, meta["BLOCK_O"])
                return job.groups * taps * c_blocks * o_blocks, splits

            job.launch(
                "weight", weight_grid, job.image, slope, job.field, job.omega, job.points, job.mask,
                partial, *job.sizes, splits,
            )  # fmt: skip
            summed = partial.sum(0).permute(0, 3, 2, 1).reshape(weight.shape)
            g_weight = summed.to(weight.dtype).contiguous()
        return Gradients(g_input, g_field, g_omega, g_weight, g_mask)


def _job(conv: Convolution) -> _Job:
    input, positions, geometry = conv.input, conv.positions, conv.geometry
    real = conv.dtype
    low = real if real == torch.float64 else input.dtype
    image = input.detach().to(low).permute(0, 2, 3, 1).contiguous()
    field = positions.field.detach().to(real).contiguous()
    omega, mask = (
        field if t is None else t.detach().to(real).contiguous()
        for t in (positions.omega, conv.mask)
    )
    rows, columns = conv.out_size
    return _Job(
        image=image,
        field=field,
        omega=omega,
        points=conv.points.detach().to(real).contiguous(),
        mask=mask,
        sizes=(
            *input.shape, len(conv.weight), columns, rows * columns, geometry.n_taps,
            conv.sample_groups, conv.weight_groups, *geometry.stride, *geometry.dilation,
            *geometry.origin,
        ),
        flags={
            "KIND": _KINDS[positions.kind],
            "MODE": _MODES[conv.padding_mode],
            "HAS_OMEGA": positions.omega is not None,
            "HAS_MASK": conv.mask is not None,
        },
        out_pixels=len(input) * rows * columns,
        groups=conv.weight_groups,
        low=low,
    )  # fmt: skip
