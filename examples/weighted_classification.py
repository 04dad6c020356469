"""Classification with standard and weighted convolutions: a small VGG and ResNet, same seeds.

By default on scikit-learn's 8 x 8 digits, of which a fifth trains and the rest tests (with more the
networks are right too often to differ); on CIFAR-10 or CIFAR-100 where you have the data, which is
never downloaded. Each network is trained five times over:

- standard: with ordinary convolutions;
- weighted: with the paper's fixed density;
- same start: the same, but with the initial weights divided by Phi (``preserve=True``), so that
  the network starts as the standard one does and only its training differs;
- folded start: the other way round, ordinary convolutions that start as the weighted ones do;
- trained density: with a density trained in each layer, starting from the paper's.

For one seed all five see the same split, initial weights and batches.

    python examples/weighted_classification.py --quick   # about a minute: two seeds
    python examples/weighted_classification.py           # some minutes on one core
    python examples/weighted_classification.py --dataset cifar100 --data-root ~/data --device cuda

Every finished run is a line in ``runs.jsonl`` of the output folder, and the same command goes on
where it was stopped. It writes ``table.md`` and ``plot.png``.

Result of ``python examples/weighted_classification.py`` (digits, ten seeds, 40 epochs, 185 s of CPU
on one core), mean ± standard deviation over the seeds:

    | network | convolutions    | test accuracy (%) | minus standard, seed by seed |
    |---------|-----------------|-------------------|------------------------------|
    | VGG     | standard        | 97.58 ± 0.58      |                              |
    | VGG     | weighted        | 97.39 ± 0.58      | -0.19 ± 0.41                 |
    | VGG     | same start      | 97.08 ± 0.64      | -0.50 ± 0.27                 |
    | VGG     | folded start    | 97.70 ± 0.62      | +0.12 ± 0.39                 |
    | VGG     | trained density | 97.51 ± 0.60      | -0.07 ± 0.26                 |
    | ResNet  | standard        | 96.59 ± 0.56      |                              |
    | ResNet  | weighted        | 96.46 ± 0.46      | -0.13 ± 0.29                 |
    | ResNet  | same start      | 96.12 ± 0.56      | -0.47 ± 0.13                 |
    | ResNet  | folded start    | 96.70 ± 0.54      | +0.11 ± 0.40                 |
    | ResNet  | trained density | 96.34 ± 0.55      | -0.25 ± 0.38                 |

No gain here: with the paper's density these small networks are as good as without it or slightly
worse, and from the same start they are worse for every single seed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from finslerconv.nn.weighted import (
    SeparableDensity,
    density_parameter_groups,
    fold,
    paper_profile,
    to_weighted,
)

VARIANTS = ("standard", "weighted", "same start", "folded start", "trained density")


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

#: Training pictures and labels, test pictures and labels, number of classes.
Data = tuple[Tensor, Tensor, Tensor, Tensor, int]


def digits(seed: int) -> Data:
    """Load scikit-learn's digits, a fifth of each class for training."""
    pictures, labels = load_digits(return_X_y=True)
    split = train_test_split(
        pictures.reshape(-1, 1, 8, 8) / 16,
        labels,
        train_size=0.2,
        stratify=labels,
        random_state=seed,
    )
    train, test = (torch.from_numpy(p).float() for p in split[:2])
    return train, torch.from_numpy(split[2]), test, torch.from_numpy(split[3]), 10


def cifar(name: str, root: Path) -> Data:
    """Load CIFAR through torchvision, from the user's own copy."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise SystemExit("CIFAR needs torchvision: pip install torchvision") from error
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100

    def tensors(train: bool) -> tuple[Tensor, Tensor]:
        held = kind(root, train=train, download=False)
        pictures = torch.from_numpy(held.data).permute(0, 3, 1, 2).float() / 255
        return (pictures - 0.47) / 0.25, torch.tensor(held.targets)

    return *tensors(True), *tensors(False), len(kind(root, download=False).classes)


def build(
    name: str, variant: str, shape: tuple[int, int], kernel_size: int, width: int
) -> nn.Module:
    """Build a network; the caller's seed gives all variants the same weights."""
    model = MODELS[name](*shape, kernel_size, width)
    profile = paper_profile(kernel_size)
    if variant in ("weighted", "same start", "folded start"):
        preserve = variant == "same start"
        model = to_weighted(model, profile, kernel_size, preserve=preserve, inplace=True)
        if variant == "folded start":
            model = fold(model)
    elif variant == "trained density":
        model = to_weighted(
            model,
            lambda k: SeparableDensity(k, profile, trainable=True, positive=True),
            kernel_size,
            inplace=True,
        )
    return model


def train(model: nn.Module, data: Data, epochs: int, seed: int, device: str) -> None:
    """Train by AdamW, the density ten times faster than the weights, both rates to 0 by cosine."""
    pictures, labels = data[0].to(device), data[1].to(device)
    batches = max(len(pictures) // 64, 1)
    groups = density_parameter_groups(model, lr=2e-3, density_lr=2e-2, weight_decay=1e-2)
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(pictures), generator=generator).to(device)
        for chosen in order[: batches * 64].split(64):
            optimiser.zero_grad()
            functional.cross_entropy(model(pictures[chosen]), labels[chosen]).backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, device: str) -> float:
    """Return the share of test pictures that are classified right, in percent."""
    model.eval()
    pairs = zip(data[2].split(500), data[3].split(500), strict=True)
    right = sum((model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in pairs)
    return 100 * right / len(data[3])


Runs = dict[tuple[str, str, int], dict[str, Any]]


def finished(path: Path, settings: dict[str, Any]) -> Runs:
    """Read the runs of an earlier call with the same settings."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {(r["model"], r["variant"], r["seed"]): r for r in records if r["settings"] == settings}


def spread(values: list[float]) -> float:
    """Return the standard deviation over the seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(runs: Runs, seeds: range) -> str:
    """Mean and spread over the seeds, and the difference from standard, seed by seed."""
    lines = [
        "| network | convolutions | test accuracy (%) | minus standard, seed by seed |",
        "|---|---|---|---|",
    ]
    for model in MODELS:
        standard = [runs[model, "standard", s]["accuracy"] for s in seeds]
        for variant in VARIANTS:
            values = [runs[model, variant, s]["accuracy"] for s in seeds]
            gain = [a - b for a, b in zip(values, standard, strict=True)]
            difference = f"{statistics.mean(gain):+.2f} ± {spread(gain):.2f}"
            lines.append(
                f"| {model} | {variant} | {statistics.mean(values):.2f} ± {spread(values):.2f} | "
                f"{'' if variant == 'standard' else difference} |"
            )
    return "\n".join(lines)


def plot(runs: Runs, seeds: range, path: Path) -> None:
    """One panel per network: a line per seed through the variants."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MODELS), figsize=(10, 3.6), layout="constrained")
    for axis, model in zip(axes, MODELS, strict=True):
        for seed in seeds:
            values = [runs[model, v, seed]["accuracy"] for v in VARIANTS]
            axis.plot(VARIANTS, values, "o-", color="0.75", ms=4, lw=1)
        means = [statistics.mean(runs[model, v, s]["accuracy"] for s in seeds) for v in VARIANTS]
        axis.plot(VARIANTS, means, "_", color="C0", ms=28, mew=2.5, label="mean")
        axis.margins(x=0.2)
        axis.set_xticks(range(len(VARIANTS)), [v.replace(" ", "\n") for v in VARIANTS], fontsize=9)
        axis.set(title=model, ylabel="test accuracy (%)")
    axes[0].plot([], [], "o-", color="0.75", ms=4, lw=1, label="one seed")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run what is missing, then write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: 2 seeds, 15 epochs")
    parser.add_argument("--dataset", choices=["digits", "cifar10", "cifar100"], default="digits")
    parser.add_argument("--data-root", type=Path, help="folder of your copy of CIFAR")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--width", type=int, help="default: 12 for digits, 64 for CIFAR")
    parser.add_argument("--kernel-size", type=int, default=3, choices=[3, 5, 7])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/weighted_classification"))
    options = parser.parse_args()
    if options.dataset != "digits" and options.data_root is None:
        parser.error(f"--dataset {options.dataset} needs --data-root, the folder of your copy")
    if options.quick:
        options.epochs, options.seeds = 15, 2
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    width = options.width or (12 if options.dataset == "digits" else 64)
    settings = {
        "dataset": options.dataset,
        "epochs": options.epochs,
        "width": width,
        "kernel_size": options.kernel_size,
    }
    log = options.output / "runs.jsonl"
    runs = finished(log, settings)
    seeds = range(options.seeds)
    todo = [(m, v, s) for s in seeds for m in MODELS for v in VARIANTS if (m, v, s) not in runs]
    fixed = None if options.dataset == "digits" else cifar(options.dataset, options.data_root)
    for name, variant, seed in track(todo, description="training"):
        start = time.process_time()
        data = fixed or digits(seed)
        torch.manual_seed(seed)
        model = build(name, variant, (data[0].shape[1], data[4]), options.kernel_size, width)
        model.to(options.device)
        train(model, data, options.epochs, seed, options.device)
        record = {
            "model": name,
            "variant": variant,
            "seed": seed,
            "settings": settings,
            "accuracy": accuracy(model, data, options.device),
            "cpu_seconds": round(time.process_time() - start, 1),
        }
        runs[name, variant, seed] = record
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")
    text = table(runs, seeds)
    (options.output / "table.md").write_text(text + "\n")
    plot(runs, seeds, options.output / "plot.png")
    print(text)
    total = sum(runs[m, v, s]["cpu_seconds"] for m in MODELS for v in VARIANTS for s in seeds)
    print(f"\n{options.seeds} seeds, {options.epochs} epochs each, {total:.0f} s of CPU in all")


if __name__ == "__main__":
    main()
