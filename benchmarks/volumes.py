"""Deformable convolutions of volumes and signals against their plain PyTorch forms.

Claim: on a CPU ours take at most a fifth of the time of the plain form of a volume, which is a
five-dimensional ``grid_sample`` and a product, forwards and with the backward pass.

    python benchmarks/volumes.py                  # processor time, one thread

The two take turns, round after round; the least times and their ratio are printed.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from finslerconv import ops

VOLUMES = [(1, 16, 24, 16), (1, 32, 16, 32)]  # batch, channels, side, outputs
SIGNAL = (4, 64, 2048, 64)

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours_3d(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return ops.deform_conv3d(x, offset, weight, padding=1)


def plain_3d(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    size = x.shape[2:]
    geometry = ops.ConvGeometry.of(3, padding=1, dims=3)
    moved = offset.unflatten(1, (27, 3)) + geometry.taps(offset)[..., None, None, None]
    centres = torch.broadcast_tensors(*geometry.centres(tuple(size), offset))
    moved = moved + torch.stack(centres)
    axes = [(2 * moved[:, :, i] + 1) / size[i] - 1 for i in (2, 1, 0)]
    grid = torch.stack(axes, -1).flatten(1, 2)
    samples = functional.grid_sample(x, grid, align_corners=False)
    samples = samples.unflatten(2, (27, size[0])).flatten(1, 2)
    return functional.conv3d(samples, weight.flatten(1)[..., None, None, None])


def ours_1d(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return ops.deform_conv1d(x, offset, weight, padding=1)


def plain_1d(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    with ops.use_backend("reference"):
        return ours_1d(x, offset, weight)


def least(contestants: list[Convolution], tensors: list[Tensor], backward: bool) -> list[float]:
    """Return the least processor time of each contestant in milliseconds."""
    times: list[list[float]] = [[] for _ in contestants]
    for turn in range(6):
        for taken, convolve in zip(times, contestants, strict=True):
            start = time.process_time()
            output = convolve(*tensors)
            if backward:
                torch.autograd.grad(output, tensors, torch.ones_like(output))
            if turn > 0:  # the first one compiles
                taken.append(1e3 * (time.process_time() - start))
    return [min(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="as torch.set_num_threads")
    torch.set_num_threads(parser.parse_args().threads)
    cases = [(size, 3, [ours_3d, plain_3d]) for size in VOLUMES]
    cases.append((SIGNAL, 1, [ours_1d, plain_1d]))
    for (batch, channels, side, outputs), dims, contestants in cases:
        taps = 3**dims
        tensors = [
            torch.randn(batch, channels, *(side,) * dims),
            torch.randn(batch, dims * taps, *(side,) * dims),
            torch.randn(outputs, channels, *(3,) * dims) / (channels * taps) ** 0.5,
        ]
        for label, backward in (("forward", False), ("with backward", True)):
            live = [t.requires_grad_(backward) for t in tensors]
            ours, plain = least(contestants, live, backward)
            size = (batch, channels, side, outputs)
            print(f"{dims}d {size} {label}: {ours:.1f} ms, plain {plain:.1f}, {plain / ours:.1f} x")


if __name__ == "__main__":
    main()
