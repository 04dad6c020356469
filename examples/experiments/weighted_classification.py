"""Classification with standard and weighted convolutions: a small VGG and ResNet, same seeds.

By default on scikit-learn's 8 x 8 digits, of which a fifth trains and the rest tests (with more the
networks are right too often to differ); on CIFAR-10 or CIFAR-100 where you have the data, which is
never downloaded. Each network is trained five times over, with the kinds of convolutions of
``weighted_variants.py``. For one seed all five see the same split, initial weights and batches.

    python examples/experiments/weighted_classification.py --quick   # half a minute
    python examples/experiments/weighted_classification.py           # some minutes on one core
    python examples/experiments/weighted_classification.py --dataset cifar100 --data-root ~/data

The results are in ``recorded/weighted_classification``, beside this file.

No gain here: with the paper's density these small networks are as good as without it or slightly
worse, and from the same start they are worse for every single seed.
"""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from engine import (
    Column,
    Difference,
    Experiment,
    Record,
    Run,
    Scores,
    Shuffled,
    Trainer,
    accuracy,
    labelled,
    main,
    plot_runs,
    setting,
    summary,
)
from weighted_variants import VARIANTS, optimiser, with_convolutions


def conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, and batch norm."""
    padding = kernel_size // 2
    return [
        nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class VGG(nn.Module):
    """Simonyan and Zisserman 2015, in small: pairs of convolutions, each pair then pooled."""

    def __init__(self, channels: int, classes: int, kernel_size: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in range(2):
            for _ in range(2):
                layers += [*conv(channels, width << stage, kernel_size), nn.ReLU()]
                channels = width << stage
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    """He et al. 2016: two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv(inputs, outputs, kernel_size, stride),
            nn.ReLU(),
            *conv(outputs, outputs, kernel_size),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut."""
        return functional.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and three residual blocks."""

    def __init__(self, channels: int, classes: int, kernel_size: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv(channels, width, kernel_size),
            nn.ReLU(),
            Residual(width, width, kernel_size, 1),
            Residual(width, 2 * width, kernel_size, 2),
            Residual(2 * width, 4 * width, kernel_size, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.features(x).mean((2, 3)))


MODELS = {"VGG": VGG, "ResNet": ResNet}


@dataclass(frozen=True)
class WeightedClassification(Experiment):
    """Classification with standard and weighted convolutions."""

    name = "weighted_classification"

    dataset: str = setting(
        "digits", "what is classified", choices=("digits", "cifar10", "cifar100")
    )
    data_root: Path | None = setting(None, "folder of your copy of CIFAR")
    epochs: int = setting(40, "epochs of training", quick=15)
    seeds: int = setting(10, "how often everything is repeated", quick=2)
    width: int = setting(12, "channels of the first layer; 64 is usual for CIFAR")
    kernel_size: int = setting(3, "of the convolutions", choices=(3, 5, 7))

    def runs(self) -> list[Run]:
        """Return every network with every kind of convolutions, seed by seed."""
        settings = {
            "dataset": self.dataset,
            "epochs": self.epochs,
            "width": self.width,
            "kernel_size": self.kernel_size,
        }
        return [
            {"network": network, "convolutions": variant, "seed": seed, **settings}
            for seed in range(self.seeds)
            for network in MODELS
            for variant in VARIANTS
        ]

    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Train a network and classify the test pictures."""
        seed, kernel_size = run["seed"], run["kernel_size"]
        data = labelled(run["dataset"], seed, self.data_root)
        pictures, labels, test, test_labels, classes = data
        model = MODELS[run["network"]](pictures.shape[1], classes, kernel_size, run["width"])
        model = with_convolutions(model, run["convolutions"], kernel_size)
        batches = Shuffled(pictures, labels, batch=64, seed=seed)
        steps = run["epochs"] * batches.batches
        trainer.train(
            model,
            batches,
            lambda model, x, y: functional.cross_entropy(model(x), y),
            steps=steps,
            optimiser=lambda model: optimiser(model, weight_decay=1e-2),
            schedule=lambda plain: CosineAnnealingLR(plain, steps),
        )
        return {"accuracy": accuracy(model, test, test_labels, trainer.fabric.device)}

    def table(self, records: list[Record]) -> str:
        """Mean and spread over the seeds, and the difference from standard, seed by seed."""
        title = "minus standard, seed by seed"
        columns = [
            Column("test accuracy (%)", "accuracy"),
            Difference(title, "accuracy", {"convolutions": "standard"}),
        ]
        return summary(records, ["network", "convolutions"], columns)

    def plot(self, records: list[Record]) -> Figure:
        """One panel per network: a line per seed through the kinds of convolutions."""
        return plot_runs(records, "network", "convolutions", "accuracy", "test accuracy (%)")


if __name__ == "__main__":
    main(WeightedClassification)
