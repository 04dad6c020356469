"""DCNv3, DCNv4 and deformable attention against their plain PyTorch forms, on the CPU.

Claim: forward and backward pass together take at most a tenth of the time of the plain form for the
encoder of Deformable DETR, and a fifth for the four stages of InternImage-T. The plain forms run
without a compiler and are made of ``grid_sample``: InternImage ships one for DCNv3, Deformable DETR
one for attention. DCNv4 has no form but its CUDA kernel; here it is that of DCNv3.

    python benchmarks/aggregation.py               # all sizes
    python benchmarks/aggregation.py --only attn --clock cpu    # processor time, on a busy machine

The contestants take turns, round after round, in one process; the least time of each counts.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from finslerconv import ops

# InternImage-T at 224 pixels: channels, side, groups of each stage.
STAGES = [(64, 56, 4), (128, 28, 8), (256, 14, 16), (512, 7, 32)]
# The encoder of Deformable DETR: 256 channels, 8 heads, 4 points, and the four levels (strides 8 to
# 64) of an image of 800 x 1066 and of half of that.
PYRAMIDS = {
    "800 x 1066": [(100, 134), (50, 67), (25, 34), (13, 17)],
    "400 x 533": [(50, 67), (25, 34), (13, 17), (7, 9)],
}

Contestant = Callable[[], Tensor]


def plain_taps(image: Tensor, offset: Tensor, mask: Tensor, groups: int) -> Tensor:
    """Aggregate 3 x 3 taps at (B, H, W, C), by ``grid_sample``."""
    batch, height, width, channels = image.shape
    padded = functional.pad(image, (0, 0, 1, 1, 1, 1))
    size = torch.tensor([width + 2.0, height + 2.0])
    y, x = torch.meshgrid(torch.arange(height) + 1.5, torch.arange(width) + 1.5, indexing="ij")
    dx, dy = torch.meshgrid(torch.arange(-1.0, 2), torch.arange(-1.0, 2), indexing="ij")
    centres = torch.stack((x, y), -1).reshape(1, -1, 1, 1, 2)
    taps = torch.stack((dx, dy), -1).reshape(1, 1, 1, 9, 2)
    where = (centres + taps + offset.reshape(batch, -1, groups, 9, 2)) / size * 2 - 1
    maps = padded.flatten(1, 2).transpose(1, 2)
    maps = maps.reshape(batch * groups, channels // groups, height + 2, width + 2)
    grid = where.transpose(1, 2).flatten(0, 1)
    samples = functional.grid_sample(maps, grid, align_corners=False)
    weights = mask.reshape(batch, -1, groups, 9).transpose(1, 2).reshape(batch * groups, 1, -1, 9)
    output = (samples * weights).sum(-1).reshape(batch, channels, -1)
    return output.transpose(1, 2).reshape(image.shape)


def plain_attention(
    value: Tensor, shapes: list[tuple[int, int]], where: Tensor, weights: Tensor
) -> Tensor:
    """Attend to points of several maps, by ``grid_sample``."""
    batch, _, heads, channels = value.shape
    queries, levels, points = where.shape[1], where.shape[3], where.shape[4]
    grids = 2 * where - 1
    samples = []
    for level, part in enumerate(value.split([rows * columns for rows, columns in shapes], 1)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(functional.grid_sample(maps, grid, align_corners=False))
    flat = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(samples, -2).flatten(-2) * flat).sum(-1)
    return output.reshape(batch, heads * channels, queries).transpose(1, 2)


def dcn(version: int, batch: int, size: tuple[int, int, int]) -> dict[str, Contestant]:
    """Return DCNv3 or DCNv4 at a stage's size, ours and plain, forward and backward."""
    channels, side, groups = size
    image = torch.randn(batch, side, side, channels, requires_grad=True)
    direction = torch.randn(batch, side, side, channels)
    if version == 3:
        offset = torch.randn(batch, side, side, groups * 18, requires_grad=True)
        mask = torch.rand(batch, side, side, groups * 9, requires_grad=True)
        tensors = (image, offset, mask)
        calls: dict[str, Contestant] = {
            "ours": lambda: ops.dcnv3(image, offset, mask, group=groups),
            "plain": lambda: plain_taps(image, offset, mask, groups),
        }
    else:
        both = torch.randn(batch, side, side, -(-groups * 27 // 8) * 8, requires_grad=True)
        tensors = (image, both)

        def plain() -> Tensor:
            parts = both[..., : groups * 27].reshape(batch, side, side, groups, 27)
            return plain_taps(image, parts[..., :18], parts[..., 18:], groups)

        calls = {"ours": lambda: ops.dcnv4(image, both, group=groups), "plain": plain}
    return with_backward(calls, tensors, direction)


def attention(batch: int, shapes: list[tuple[int, int]]) -> dict[str, Contestant]:
    """Return the attention of an encoder: every pixel of every level is a query."""
    pixels = sum(rows * columns for rows, columns in shapes)
    reference = torch.cat(
        [
            torch.cartesian_prod(
                (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
            ).flip(1)
            for rows, columns in shapes
        ]
    )
    sizes = torch.tensor(shapes).flip(1)
    spread = 3 * torch.randn(batch, pixels, 8, 4, 4, 2)
    where = (reference[None, :, None, None, None] + spread / sizes[:, None]).requires_grad_()
    value = torch.randn(batch, pixels, 8, 32, requires_grad=True)
    weights = torch.rand(batch, pixels, 8, 4, 4, requires_grad=True)
    calls: dict[str, Contestant] = {
        "ours": lambda: ops.ms_deform_attn(value, shapes, None, where, weights),
        "plain": lambda: plain_attention(value, shapes, where, weights),
    }
    return with_backward(calls, (value, where, weights), torch.randn(batch, pixels, 256))


def with_backward(
    calls: dict[str, Contestant], tensors: tuple[Tensor, ...], direction: Tensor
) -> dict[str, Contestant]:
    """Return the calls, forward only and with their backward passes, which agree."""
    found = [(call(), *torch.autograd.grad(call(), tensors, direction)) for call in calls.values()]
    for ours, plain in zip(*found, strict=True):
        difference = (ours - plain).abs()
        # A position beside a pixel's edge may fall to either side.
        assert (difference > 1e-3 * plain.abs().max()).double().mean() < 1e-3

    def both(call: Contestant) -> Contestant:
        return lambda: torch.autograd.grad(call(), tensors, direction)[0]

    def forward(call: Contestant) -> Contestant:
        def run() -> Tensor:
            with torch.no_grad():
                return call()

        return run

    return {
        **{f"{name} forward": forward(call) for name, call in calls.items()},
        **{name: both(call) for name, call in calls.items()},
    }


def least(runs: dict[str, Contestant], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the least time of each in milliseconds, over rounds in which they take turns."""
    times = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times[name] = min(times[name], 1e3 * (clock() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="images of DCNv3 and DCNv4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["dcnv3", "dcnv4", "attn"])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cases: dict[str, Callable[[], dict[str, Contestant]]] = {}
    for version in (3, 4):
        for i, size in enumerate(STAGES):
            name = f"dcnv{version}: stage {i + 1}, {options.batch} images, {size}"
            cases[name] = lambda v=version, s=size: dcn(v, options.batch, s)  # type: ignore[misc]
    for name, shapes in PYRAMIDS.items():
        cases[f"attn: encoder, one image of {name}"] = lambda s=shapes: attention(1, s)  # type: ignore[misc]
    print(f"ms, {options.threads} threads, PyTorch {torch.__version__}: ours, plain, ratio")
    for name, make in cases.items():
        if options.only and not name.startswith(options.only):
            continue
        t = least(make(), options.rounds, clock)
        cells = []
        for label, ours, plain in (
            ("forward", "ours forward", "plain forward"), ("with backward", "ours", "plain"),
        ):  # fmt: skip
            ratio = t[plain] / t[ours]
            cells.append(f"{label} {t[ours]:7.2f} {t[plain]:8.1f} {ratio:5.1f}")
        print(f"{name:44}{'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
