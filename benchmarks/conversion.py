"""A converted ResNet beside the network that it was: parameters, time, and how far the outputs are.

Claim: a metric convolution adds less to a network than a deformable one (a handful of channels per
layer against 2 k^2), and before any training the converted network computes what the original did.

    python benchmarks/conversion.py                 # needs torchvision, or timm with --timm
    python benchmarks/conversion.py --clock cpu     # processor time, on a busy machine
    python benchmarks/conversion.py --quick

The networks take turns, round after round; the least time of each is reported. The 3 x 3
convolutions of stages 2 to 4 are converted, nothing else is changed.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from finslerconv.nn import convert, fold, select

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "weighted": ("weighted", {"density": [0.7]}),
    "shifted": ("shifted", {}),
    "metric, Riemannian": ("metric", {"eps_omega": 1}),
    "metric, cholesky": ("metric", {}),
    "metric, spectral_scaled": ("metric", {"head": "spectral_scaled"}),
    "metric, modulation": ("metric", {"modulation": True}),
    "geodesic, cholesky": ("geodesic", {}),
    "deformable": ("deform", {}),
    "deformable, modulation": ("deform", {"modulation": True}),
}


def resnet18(timm: bool) -> nn.Module:
    if timm:
        from timm import create_model

        model: nn.Module = create_model("resnet18", pretrained=False)
        return model
    from torchvision.models import resnet18

    return resnet18()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def seconds(model: nn.Module, x: torch.Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    model(x)
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller pictures, two rounds")
    parser.add_argument("--timm", action="store_true", help="take timm's ResNet-18")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.quick:
        options.rounds, options.size = 2, 64
    clock = time.process_time if options.clock == "cpu" else time.perf_counter

    plain = resnet18(options.timm).eval()
    where = select(kernel_size=3, stage=(2, 3, 4))
    models = {"as it was": plain}
    for name, (to, arguments) in CASES.items():
        models[name] = convert(plain, to, where=where, **arguments).model
    models["weighted, folded"] = fold(models["weighted"])

    x = torch.randn(1, 3, options.size, options.size)
    best = dict.fromkeys(models, float("inf"))
    with torch.no_grad():
        outputs = {name: model(x) for name, model in models.items()}  # compiles, too
        for _ in range(options.rounds):
            for name, model in models.items():
                best[name] = min(best[name], seconds(model, x, clock))

    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), "
        f"{options.clock} clock, one picture of {options.size} x {options.size}\n\n"
        "| ResNet-18 | parameters | added | forward | outputs differ by |\n|---|---|---|---|---|"
    )
    for name, model in models.items():
        count = parameters(model)
        added = count / parameters(plain) - 1
        difference = float((outputs[name] - outputs["as it was"]).abs().max())
        print(
            f"| {name} | {count:,} | {added:.2%} | {1e3 * best[name]:.0f} ms | {difference:.1e} |"
        )


if __name__ == "__main__":
    main()
