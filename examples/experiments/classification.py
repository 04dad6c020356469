"""Classification by a ResNet-18 whose 3 x 3 convolutions sample unit balls.

The network of "Metric Convolutions" (ICCV 2025), narrower: a stem for small pictures, 3 x 3
convolutions of stages 2 to 4 replaced, the last stage without its stride and with dilation 2. Its
layers are standard, deformable, shifted, metric (Riemannian or Randers) or geodesic. It is trained
from scratch, or as a standard network first, which is then converted and trained again as long. The
kernels of the replaced layers are learned from the weights that the standard network has, learned
from the constant 1 / (9 inputs) as the paper's, or fixed there. For one seed all see the same
pictures, weights outside the replaced layers, and batches. The extra parameters are those that a
standard network lacks; fixed kernels count as none.

    python examples/experiments/classification.py --quick     # a minute
    python examples/experiments/classification.py             # digits
    python examples/experiments/classification.py --layers standard geodesic --seeds 1  # slow
    python examples/experiments/classification.py --dataset "warped digits"
    python examples/experiments/classification.py --rates 5e-4 2e-3 8e-3  # each layer its best
    python examples/experiments/classification.py --dataset cifar10 --data-root FOLDER --width 64
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from engine import (
    DATA_SETS,
    Column,
    Difference,
    Experiment,
    Record,
    Run,
    Scores,
    Shuffled,
    Trainer,
    accuracy,
    enlarged,
    labelled,
    main,
    plot_runs,
    setting,
    summary,
    with_best_rate,
)
from finslerconv.nn import MetricHead, convert_resnet, metric_penalty

#: The layers, by what ``convert_resnet`` calls them, with options.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("", {}),
    "deformable": ("deform", {}),
    "shifted": ("shifted", {}),
    "Riemannian": ("metric", {"eps_omega": 1.0}),
    "Randers": ("metric", {"eps_omega": 0.1}),
    "geodesic": ("geodesic", {"eps_omega": 1.0, "head": "spectral_scaled"}),
}


KERNELS = ("learned", "from constant", "fixed")


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        reach = {"padding": dilation, "dilation": dilation, "bias": False}
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, **reach)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, **reach)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    """A ResNet-18 for small pictures, whose last stage keeps the resolution."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 1, dilation=2)
        self.fc = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, dilation: int = 1) -> nn.Sequential:
        return nn.Sequential(
            Block(inputs, outputs, stride, 1), Block(outputs, outputs, 1, dilation)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@dataclass(frozen=True)
class Classification(Experiment):
    """Classification by a ResNet-18 whose 3 x 3 convolutions sample unit balls."""

    name = "classification"

    dataset: str = setting("digits", "what is classified", choices=DATA_SETS)
    data_root: Path | None = setting(None, "folder of your copy of MNIST, FashionMNIST or CIFAR")
    layers: tuple[str, ...] = setting(
        ("standard", "deformable", "shifted", "Riemannian", "Randers"),
        "the layers",
        quick=("standard", "deformable", "Randers"),
        choices=tuple(LAYERS),
    )
    starts: tuple[str, ...] = setting(
        ("scratch", "converted"),
        "how networks start",
        quick=("scratch",),
        choices=("scratch", "converted"),
    )
    kernels: tuple[str, ...] = setting(
        KERNELS, "of the layers", quick=("learned",), choices=KERNELS
    )
    epochs: int = setting(20, "epochs of each training", quick=8)
    seeds: int = setting(3, "how often everything is repeated", quick=1)
    width: int = setting(16, "channels of the first stage; the paper's are 64", quick=8)
    rates: tuple[float, ...] = setting(
        (2e-3,), "learning rates to choose from; the paper's is 1e-4"
    )
    penalty: float = setting(1.0, "strength of the penalty on metric heads; the paper's is 5000")

    def runs(self) -> list[Run]:
        """Return every layer with every start and kernel, seed by seed."""
        settings = {
            "dataset": self.dataset,
            "epochs": self.epochs,
            "width": self.width,
            "penalty": self.penalty,
        }
        return [
            {
                "start": start,
                "kernel": kernel,
                "layers": layers,
                "seed": seed,
                "rate": rate,
                **settings,
            }
            for seed in range(self.seeds)
            for start in self.starts
            for kernel in self.kernels
            for layers in self.layers
            if kernel == "learned" or layers != "standard"
            for rate in self.rates
        ]

    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Train a network, and for a converted one the standard network before."""
        pictures, labels, test, test_labels, classes = labelled(
            run["dataset"], run["seed"], self.data_root
        )
        if pictures.shape[-1] < 16:
            pictures, test = enlarged(pictures), enlarged(test)
        model: nn.Module = ResNet18(pictures.shape[1], classes, run["width"])
        plain = sum(parameter.numel() for parameter in model.parameters())

        def train(model: nn.Module) -> None:
            batches = Shuffled(pictures, labels, batch=64, seed=run["seed"])
            steps = run["epochs"] * batches.batches
            has_heads = any(isinstance(module, MetricHead) for module in model.modules())

            def loss(wrapped: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                value = functional.cross_entropy(wrapped(x), y)
                return value + metric_penalty(model, run["penalty"]) if has_heads else value

            trainer.train(
                model,
                batches,
                loss,
                steps=steps,
                optimiser=lambda model: optim.Adam(
                    model.parameters(), lr=run["rate"], weight_decay=1e-4
                ),
                schedule=lambda plain: CosineAnnealingLR(plain, steps),
            )

        if run["start"] == "converted":
            train(model)
        model = with_layers(model, run["layers"], run["kernel"])
        train(model)
        number = sum(parameter.numel() for parameter in model.parameters())
        # A quarter of the test pictures is there to choose a rate, where there are several.
        quarter = len(test) // 4
        choice, rest = (
            accuracy(model, test[part], test_labels[part], trainer.fabric.device)
            for part in (slice(quarter), slice(quarter, None))
        )
        return {
            "accuracy": choice + (rest - choice) * (1 - quarter / len(test)),
            "choice": choice,
            "rest": rest,
            "parameters": number,
            "extra": max(number - plain, 0),
        }

    def table(self, records: Sequence[Record]) -> str:
        """Mean and spread over the seeds, and the difference from standard, seed by seed."""
        records, score = self._scored(records)
        standard = {"layers": "standard", "kernel": "learned"}
        columns: list[Column | Difference] = [Column("test accuracy (%)", score)]
        if "standard" in self.layers and "learned" in self.kernels:
            columns.append(Difference("minus standard, seed by seed", score, standard))
        columns.append(Column("extra parameters", "extra", ".0f", spread=False))
        if len(self.rates) > 1:
            columns.append(Column("rate", "rate", "g", spread=False))
        return summary(records, ["start", "kernel", "layers"], columns)

    def plot(self, records: Sequence[Record]) -> Figure:
        """One panel per start: a line per seed through the layers with learned kernels."""
        records, score = self._scored(records)
        shown = [record for record in records if record["kernel"] == self.kernels[0]]
        return plot_runs(shown, "start", "layers", score, "test accuracy (%)")

    def _scored(self, records: Sequence[Record]) -> tuple[Sequence[Record], str]:
        """Return what is shown, and the score: pictures that chose the rate do not count."""
        if len(self.rates) == 1:
            return records, "accuracy"
        return with_best_rate(records, "choice", max), "rest"


def with_layers(model: nn.Module, layers: str, kernel: str) -> nn.Module:
    """Return a network with other layers; with learned kernels it computes what it did."""
    kind, options = LAYERS[layers]
    if not kind:
        return model
    keep = kernel == "learned"
    if kind in ("metric", "geodesic") and not keep:
        options = {**options, "reference": "concentric"}
    return convert_resnet(
        model,
        kind,
        dilate_last_stage=False,
        start="weights" if keep else "constant",
        fixed_kernel=kernel == "fixed",
        **options,
    ).model


if __name__ == "__main__":
    main(Classification)
