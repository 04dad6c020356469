"""A training step of a ResNet with torchvision's layers, before and after ``replace_torchvision``.

Claim: on two cores of a CPU the step is at least three times as fast with
``ops.replace_torchvision()``, the model's code unchanged.

    python benchmarks/replace_torchvision.py
    python benchmarks/replace_torchvision.py --clock cpu  # processor time, on a busy machine

The network is torchvision's ResNet-18 with a deformable convolution, whose offsets a standard one
predicts, in place of the second 3 x 3 convolution of every block of stages 3 to 5, as in the paper
on DCNv1. Both ways take turns in one process; the least time of each counts.
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from finslerconv import ops


def network() -> nn.Module:
    """Return the network."""
    import torchvision

    class Deformable(nn.Module):
        """torchvision's layer with the convolution that predicts its offsets."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.offset = nn.Conv2d(channels, 18, 3, padding=1)
            nn.init.normal_(self.offset.weight, std=0.02)
            self.conv = torchvision.ops.DeformConv2d(channels, channels, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, self.offset(x))

    model = torchvision.models.resnet18(num_classes=10)
    for stage in (model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.conv2 = Deformable(block.conv2.out_channels)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images = torch.randn(options.images, 3, options.size, options.size)
    labels = torch.randint(10, (options.images,))

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def replaced() -> float:
        with ops.replace_torchvision():
            return step()

    times = {"torchvision": float("inf"), "replaced": float("inf")}
    step()
    replaced()
    for _ in range(options.rounds):
        for name, run in (("torchvision", step), ("replaced", replaced)):
            start = clock()
            run()
            times[name] = min(times[name], clock() - start)
    print(
        f"a training step, {options.images} images of {options.size} pixels, {options.threads} "
        f"threads: torchvision {times['torchvision']:.3f} s, replaced {times['replaced']:.3f} s, "
        f"ratio {times['torchvision'] / times['replaced']:.1f}"
    )


if __name__ == "__main__":
    main()
