"""The roofline: the least time that a machine can take, for the bytes and operations of a case.

The machine is measured: how fast it copies arrays that no cache holds, and how fast it multiplies
matrices. A case takes at least as long as its arguments and results take to be read and written
once, and as its operations take at the rate of the product.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Work(NamedTuple):
    """What a case has to do."""

    bytes: float
    """Read and written, every array once."""
    operations: float
    """Multiplications and additions."""


class Roofline(NamedTuple):
    """What a machine can do."""

    bandwidth: float
    """Bytes a second that a copy reads and writes."""
    rate: float
    """Operations a second of a product of matrices."""

    def seconds(self, work: Work) -> float:
        """Return the least time for the work."""
        return max(work.bytes / self.bandwidth, work.operations / self.rate)

    def bound(self, work: Work) -> str:
        """Return what bounds the work: memory or arithmetic."""
        by_memory = work.bytes / self.bandwidth > work.operations / self.rate
        return "memory" if by_memory else "arithmetic"


def measure(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
    megabytes: int = 256,
    side: int = 1024,
) -> Roofline:
    """Measure this machine, on the threads that PyTorch uses: the best of several runs."""
    count = megabytes * 2**20 // dtype.itemsize
    source, target = (torch.ones(count, device=device, dtype=dtype) for _ in range(2))
    A, B, C = (torch.ones(side, side, device=device, dtype=dtype) / side for _ in range(3))
    copying = _least(lambda: target.copy_(source), device, clock)
    product = _least(lambda: torch.mm(A, B, out=C), device, clock)
    return Roofline(2 * count * dtype.itemsize / copying, 2 * side**3 / product)


def _least(run: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    best = math.inf
    for _ in range(8):
        wait(device)
        start = clock()
        run()
        wait(device)
        best = min(best, clock() - start)
    return best


def wait(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def displaced_convolution(
    size: tuple[int, int, int, int, int, int],
    itemsize: int,
    positions: int,
    backward: bool,
    head: int = 0,
    groups: int = 1,
) -> Work:
    """Return the work of a convolution on a square image, at displaced taps or plain.

    ``size`` is (batch, channels, side, outputs, kernel, stride). ``positions`` is how many numbers
    say where the taps of a pixel are, 0 of a plain convolution; ``head`` how many channels a
    convolution of the same kernel computes of the image for it, in one group. A displaced tap is
    the mean of four pixels. The backward pass reads everything again with the gradient of the
    result, writes the gradients of all arguments, and has two products for each one of the forward
    pass.
    """
    batch, channels, side, outputs, k, stride = size
    rows = (side + 2 * (k // 2) - k) // stride + 1
    pixels = batch * rows * rows
    image, result = batch * channels * side * side, pixels * outputs
    taps = channels * k * k
    weights = taps // groups * outputs + taps * head
    arguments = image + weights + pixels * positions
    numbers = arguments + result
    operations = 2 * pixels * weights + (8 * pixels * taps if positions else 0)
    if backward:
        # Forwards; then the arguments and the result's gradient are read, gradients are written.
        numbers = numbers + arguments + result + arguments
        operations *= 3
    return Work(numbers * itemsize, operations)
