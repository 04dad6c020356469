"""The large tensors that the layers allocate in one forward and backward pass, against nn.Conv2d.

Claim: the adaptive layers allocate the channels of their heads, the image and its gradient in
another order, and little else.

    python benchmarks/temporaries.py --json new.json --compare old.json

A tensor is large if it is at least a quarter of the input. For each layer: how many are allocated,
how much they are together in sizes of the input, and the ratio of the sum to that of nn.Conv2d.
Outputs and gradients are among them. PyTorch's profiler counts; what compiled kernels hold for each
thread, some hundred kilobytes, it does not see.
"""

import argparse
from typing import Any

import report
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from finslerconv.nn import (
    DCNv3,
    DCNv4,
    DeformConv2d,
    GeodesicConv2d,
    MetricConv2d,
    ShiftedConv2d,
)
from finslerconv.nn.weighted import SeparableDensity, WeightedConv2d

#: Input shape and outputs.
SHAPES = [(1, 3, 512, 512, 16), (4, 64, 56, 56, 64)]


def layers(channels: int, outputs: int) -> dict[str, nn.Module]:
    """Return the layers of a size; those of the DCN family keep their channels."""
    sizes: dict[str, Any] = {"kernel_size": 3, "padding": 1}
    found: dict[str, nn.Module] = {
        "nn.Conv2d": nn.Conv2d(channels, outputs, **sizes),
        "MetricConv2d": MetricConv2d(channels, outputs, **sizes),
        "DeformConv2d": DeformConv2d(channels, outputs, **sizes),
        "DeformConv2d, modulated": DeformConv2d(channels, outputs, **sizes, modulation=True),
        "ShiftedConv2d": ShiftedConv2d(channels, outputs, **sizes),
        "GeodesicConv2d": GeodesicConv2d(channels, outputs, **sizes),
        "WeightedConv2d": WeightedConv2d(
            channels, outputs, **sizes, density=SeparableDensity((3, 3), [0.7])
        ),
    }
    if channels == outputs:
        found |= {"DCNv3": DCNv3(channels), "DCNv4": DCNv4(channels)}
    return found


def allocated(layer: nn.Module, x: torch.Tensor) -> list[int]:
    """Return the bytes of each large tensor that one forward and backward pass allocates."""
    rest: list[Any] = []
    if isinstance(layer, DCNv3 | DCNv4):
        x = x.detach().movedim(1, -1).contiguous()
        if isinstance(layer, DCNv4):
            rest, x = [tuple(x.shape[1:3])], x.flatten(1, 2)
        x.requires_grad_()
    arguments = [x, *(p for p in layer.parameters() if p.requires_grad)]
    slope = torch.randn_like(layer(x, *rest))

    def run() -> None:
        torch.autograd.grad(layer(x, *rest), arguments, slope, allow_unused=True)

    run()  # kernels are compiled
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return [size for size in sizes if size >= x.nbytes / 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console()
    results = []
    for *shape, outputs in SHAPES:
        x = torch.randn(*shape, requires_grad=True)
        table = Table(title=f"input {tuple(shape)}, {outputs} outputs, 3 x 3")
        table.add_column("layer")
        for column in ("large tensors", "sum / input", "ratio to nn.Conv2d"):
            table.add_column(column, justify="right")
        plain = 0
        for name, layer in layers(shape[1], outputs).items():
            sizes = allocated(layer, x)
            plain = plain or sum(sizes)
            entry = {
                "tensors": float(len(sizes)),
                "inputs": sum(sizes) / x.nbytes,
                "ratio": sum(sizes) / plain,
            }
            results.append({"shape": [*shape, outputs], "layer": name, **entry})
            table.add_row(name, f"{len(sizes)}", f"{entry['inputs']:.1f}", f"{entry['ratio']:.2f}")
        console.print(table)
    report.finish(options, {"machine": report.machine(), "layers": results}, console)


if __name__ == "__main__":
    main()
