"""Denoising with standard and weighted convolutions: DnCNN and a small NAFNet, same seeds.

The natural photographs that scikit-image and scikit-learn ship are split by photograph: camera,
coffee, rocket and china are for training, astronaut, chelsea and flower for validation. Grey
patches with white Gaussian noise (sigma 25 / 255) train each network five times over, with the
kinds of convolutions of ``weighted_variants.py``. For one seed all five see the same initial
weights, patches and noise.

    python examples/experiments/weighted_denoising.py --quick   # half a minute
    python examples/experiments/weighted_denoising.py           # some minutes on one core

The results are in ``recorded/weighted_denoising``, beside this file.

Weighted is better here, and all of it is the start: ordinary convolutions that start from the
weighted network's kernels gain as much, weighted ones that start as the standard network nothing.
"""

from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR

from engine import (
    TRAINING,
    VALIDATION,
    Column,
    Difference,
    Experiment,
    Patches,
    Picture,
    Record,
    Run,
    Scores,
    Trainer,
    main,
    photograph,
    plot_runs,
    setting,
    summary,
    validate,
)
from weighted_variants import VARIANTS, optimiser, with_convolutions

SIGMA = 25 / 255


class DnCNN(nn.Module):
    """Zhang et al. 2017, in small: convolutions and batch norms that predict the noise."""

    def __init__(self, kernel_size: int, width: int = 24, depth: int = 6) -> None:
        super().__init__()
        settings = {"kernel_size": kernel_size, "padding": kernel_size // 2}
        layers: list[nn.Module] = [nn.Conv2d(1, width, **settings), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, bias=False, **settings),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.noise = nn.Sequential(*layers, nn.Conv2d(width, 1, **settings))

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the predicted noise."""
        return x - self.noise(x)


class NAFBlock(nn.Module):
    """Chen et al. 2022: a gated depthwise convolution with channel attention, no activation."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.spatial = nn.Conv2d(
            2 * width, 2 * width, kernel_size, padding=kernel_size // 2, groups=2 * width
        )
        self.attention = nn.Conv2d(width, width, 1)
        self.project = nn.Conv2d(width, width, 1)
        self.mlp = nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, 2 * width, 1))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add both halves of the block."""
        a, b = self.spatial(self.expand(self.norm(x))).chunk(2, dim=1)
        gated = a * b
        x = x + self.project(gated * self.attention(gated.mean((2, 3), keepdim=True)))
        a, b = self.mlp(x).chunk(2, dim=1)
        return x + self.out(a * b)


class NAFNet(nn.Module):
    """A NAFNet of one level down: block, down, two blocks, up, block."""

    def __init__(self, kernel_size: int, width: int = 12) -> None:
        super().__init__()
        settings = {"kernel_size": kernel_size, "padding": kernel_size // 2}
        self.stem = nn.Conv2d(1, width, **settings)
        self.first = NAFBlock(width, kernel_size)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.middle = nn.Sequential(*(NAFBlock(2 * width, kernel_size) for _ in range(2)))
        self.up = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2))
        self.last = NAFBlock(width, kernel_size)
        self.head = nn.Conv2d(width, 1, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Add the predicted correction."""
        skip = self.first(self.stem(x))
        y = skip + self.up(self.middle(self.down(skip)))
        return x + self.head(self.last(y))


MODELS = {"DnCNN": DnCNN, "NAFNet": NAFNet}


@dataclass(frozen=True)
class WeightedDenoising(Experiment):
    """Denoising with standard and weighted convolutions."""

    name = "weighted_denoising"

    steps: int = setting(300, "steps of training", quick=20)
    seeds: int = setting(3, "how often everything is repeated", quick=2)
    kernel_size: int = setting(3, "of the convolutions", choices=(3, 5, 7))

    def runs(self) -> list[Run]:
        """Return every network with every kind of convolutions, seed by seed."""
        settings = {"steps": self.steps, "kernel_size": self.kernel_size}
        return [
            {"network": network, "convolutions": variant, "seed": seed, **settings}
            for seed in range(self.seeds)
            for network in MODELS
            for variant in VARIANTS
        ]

    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Train a network and denoise the validation photographs."""
        model = MODELS[run["network"]](run["kernel_size"])
        model = with_convolutions(model, run["convolutions"], run["kernel_size"])
        trainer.train(
            model,
            Patches([photograph(name) for name in TRAINING], SIGMA, run["seed"]),
            lambda model, noisy, clean: mse_loss(model(noisy), clean),
            steps=run["steps"],
            optimiser=lambda model: optimiser(model, weight_decay=1e-4),
            schedule=lambda plain: CosineAnnealingLR(plain, run["steps"]),
        )
        pictures = [middle(photograph(name)) for name in VALIDATION]
        return validate(model, pictures, SIGMA, trainer.fabric.device)

    def table(self, records: list[Record]) -> str:
        """Mean and spread over the seeds, and the difference from standard, seed by seed."""
        title = "PSNR minus standard, seed by seed"
        columns = [
            Column("PSNR (dB)", "psnr"),
            Column("SSIM", "ssim", ".4f"),
            Difference(title, "psnr", {"convolutions": "standard"}, "+.3f"),
        ]
        return summary(records, ["network", "convolutions"], columns)

    def plot(self, records: list[Record]) -> Figure:
        """One panel per network: a line per seed through the kinds of convolutions."""
        return plot_runs(records, "network", "convolutions", "psnr", "validation PSNR (dB)")


def middle(picture: Picture) -> Picture:
    """Return the centre of 144 x 144 pixels."""
    i, j = ((n - 144) // 2 for n in picture.shape)
    return picture[i : i + 144, j : j + 144]


if __name__ == "__main__":
    main(WeightedDenoising)
