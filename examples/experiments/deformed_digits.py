"""Digits turned, scaled and sheared as none was in training.

A task where geometry should matter: sampling positions that follow the picture might recognise a
deformed digit as the digit that they know. This protocol was written before the first run, and
whatever came out is reported.

- Data: scikit-learn's digits, enlarged to 16 x 16 pixels, with a border of 4 black ones. By the
  seed, 359 upright ones are for training, 359 for the choice of the rate, 1079 for the test. There
  is no augmentation.
- Test: upright, and under 14 deformations, each of all test digits: turned by +-15, +-30, +-45
  degrees, scaled by 0.7, 0.85, 1.2, 1.4, sheared by +-0.25, +-0.5. The outcome is the mean accuracy
  over the 14.
- Networks: a 3 x 3 convolution, then three 3 x 3 layers that are standard, deformable or metric
  (Randers, the library's defaults), with batch norms, two poolings, a linear classifier. The
  kernels of all are initialised as a standard convolution's, so at the start the other layers are
  one too.
- Equal budgets: the width is the one whose number of parameters is closest to 25,000, offsets and
  heads included; the same steps, batches, Adam, weight decay, cosine; the same two rates to choose
  from, by the mean accuracy of the five seeds on the 359 upright digits.
- Comparison: metric minus standard and metric minus deformable, seed by seed, five seeds: the mean,
  its 95 % confidence interval and the two-sided paired t-test, p-values multiplied by two for the
  two comparisons (Bonferroni).

    python examples/experiments/deformed_digits.py --quick   # a quarter of a minute
    python examples/experiments/deformed_digits.py           # some minutes on one core
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from engine import (
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
    markdown,
    moved,
    setting,
    with_best_rate,
)
from finslerconv.nn import DeformConv2d, MetricConv2d

LAYERS: dict[str, type[nn.Conv2d]] = {
    "standard": nn.Conv2d,
    "deformable": DeformConv2d,
    "metric": MetricConv2d,
}

#: The strengths of each family of deformations: degrees, factors, slopes; 0 and 1 are upright.
FAMILIES: dict[str, tuple[float, ...]] = {
    "turned": (-45, -30, -15, 0, 15, 30, 45),
    "scaled": (0.7, 0.85, 1, 1.2, 1.4),
    "sheared": (-0.5, -0.25, 0, 0.25, 0.5),
}

UPRIGHT = {"turned": 0, "scaled": 1, "sheared": 0}


def deformation(family: str, strength: float) -> Tensor:
    """Return the matrix by which a digit is deformed, of coordinates x (right), y (down)."""
    if family == "turned":
        c, s = math.cos(math.radians(strength)), math.sin(math.radians(strength))
        return torch.tensor([[c, -s], [s, c]])
    if family == "scaled":
        return strength * torch.eye(2)
    return torch.tensor([[1.0, strength], [0.0, 1.0]])


def deformed(pictures: Tensor, family: str, strength: float) -> Tensor:
    """Return pictures that are deformed about their centres."""
    inverse = torch.linalg.inv(deformation(family, strength))
    zero = torch.zeros(len(pictures), 2, 1)
    return moved(pictures, inverse.expand(len(pictures), 2, 2), zero)


def network(layers: str, width: int) -> nn.Sequential:
    """Return a classifier of ten digits with three layers of a kind."""

    def block(kind: type[nn.Conv2d], inputs: int, outputs: int) -> list[nn.Module]:
        conv = kind(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    kind = LAYERS[layers]
    return nn.Sequential(
        *block(nn.Conv2d, 1, width),
        *block(kind, width, width),
        nn.MaxPool2d(2),
        *block(kind, width, 2 * width),
        nn.MaxPool2d(2),
        *block(kind, 2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def size(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def width_for(layers: str, parameters: int) -> int:
    """Return the width with which a network has the number of parameters most closely."""
    width = next(width for width in count(1) if size(network(layers, width)) > parameters)
    return min(width, max(width - 1, 1), key=lambda w: abs(size(network(layers, w)) - parameters))


def compared(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the mean of paired differences, its 95 % interval, the p-value of the paired t-test.

    With one pair there is no interval.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, math.nan, math.nan, math.nan
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach, float(stats.ttest_rel(ours, theirs).pvalue)


@dataclass(frozen=True)
class DeformedDigits(Experiment):
    """Digits turned, scaled and sheared as none was in training."""

    name = "deformed_digits"

    parameters: int = setting(25_000, "of every network, about", quick=3_000)
    rates: tuple[float, ...] = setting((1e-3, 4e-3), "learning rates to choose from", quick=(4e-3,))
    epochs: int = setting(40, "epochs of training", quick=10)
    seeds: int = setting(5, "how often everything is repeated", quick=2)

    def runs(self) -> list[Run]:
        """Return every kind of layers with every rate, seed by seed."""
        return [
            {
                "layers": layers,
                "rate": rate,
                "seed": seed,
                "epochs": self.epochs,
                "parameters": self.parameters,
            }
            for seed in range(self.seeds)
            for layers in LAYERS
            for rate in self.rates
        ]

    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Train on upright digits and test on deformed ones."""
        train, labels, rest, rest_labels, _ = labelled("digits", run["seed"])
        train, rest = (functional.pad(enlarged(part), (4, 4, 4, 4)) for part in (train, rest))
        choice, test = rest[: len(train)], rest[len(train) :]
        choice_labels, test_labels = rest_labels[: len(train)], rest_labels[len(train) :]
        model = network(run["layers"], width_for(run["layers"], run["parameters"]))
        batches = Shuffled(train, labels, batch=64, seed=run["seed"])
        steps = run["epochs"] * batches.batches
        trainer.train(
            model,
            batches,
            lambda model, x, y: functional.cross_entropy(model(x), y),
            steps=steps,
            optimiser=lambda model: optim.Adam(
                model.parameters(), lr=run["rate"], weight_decay=1e-4
            ),
            schedule=lambda plain: CosineAnnealingLR(plain, steps),
        )
        device = trainer.fabric.device
        upright = accuracy(model, test, test_labels, device)
        scores = {
            family: [
                upright
                if strength == UPRIGHT[family]
                else accuracy(model, deformed(test, family, strength), test_labels, device)
                for strength in strengths
            ]
            for family, strengths in FAMILIES.items()
        }
        return {
            "choice": accuracy(model, choice, choice_labels, device),
            "upright": upright,
            "deformed": deformed_mean(scores),
            "network parameters": size(model),
            **scores,
        }

    def table(self, records: Sequence[Record]) -> str:
        """Return the accuracies, and the comparisons of the metric layers with the others."""
        chosen = _chosen(records)
        rows = []
        for layers, group in chosen.items():
            families = [
                [deformed_mean({family: record[family]}) for record in group] for family in FAMILIES
            ]
            columns = [[record["upright"] for record in group], *families]
            columns.append([record["deformed"] for record in group])
            numbers = [str(group[0]["network parameters"]), f"{group[0]['rate']:g}"]
            rows.append([layers, *numbers, *map(_spread, columns)])
        titles = ["layers", "parameters", "rate", "upright (%)"]
        titles += [f"{family} (%)" for family in FAMILIES]
        comparisons = []
        ours = [record["deformed"] for record in chosen["metric"]]
        for other in ("standard", "deformable"):
            theirs = [record["deformed"] for record in chosen[other]]
            mean, low, high, p = compared(ours, theirs)
            known = not math.isnan(p)
            interval = f"{low:+.2f} to {high:+.2f}" if known else ""
            p_value = f"{min(2 * p, 1):.3g}" if known else ""
            comparisons.append([f"metric minus {other}", f"{mean:+.2f}", interval, p_value])
        heads = ["all deformed (%)", "mean over the seeds", "95 % interval", "p, times two"]
        return "\n\n".join(
            [markdown([*titles, "all deformed (%)"], rows), markdown(heads, comparisons)]
        )

    def plot(self, records: Sequence[Record]) -> Figure:
        """Draw the accuracy over the strength of each family, the seeds' spread as a band."""
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        axes = figure.subplots(1, len(FAMILIES), sharey=True)
        labels = ("angle (degrees)", "factor", "slope")
        for axis, (family, strengths), label in zip(axes, FAMILIES.items(), labels, strict=True):
            for i, (layers, group) in enumerate(_chosen(records).items()):
                columns = list(zip(*(record[family] for record in group), strict=True))
                means = [statistics.mean(column) for column in columns]
                axis.plot(strengths, means, "o-", color=f"C{i}", ms=4, label=layers)
                lows, highs = ([end(column) for column in columns] for end in (min, max))
                axis.fill_between(strengths, lows, highs, color=f"C{i}", alpha=0.15, lw=0)
            axis.set(title=family, xlabel=label)
        axes[0].set_ylabel("test accuracy (%)")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        return figure


def _chosen(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of the layers, with the rate that is best on the digits for the choice."""
    best = with_best_rate(records, "choice", max)
    return {layers: [each for each in best if each["layers"] == layers] for layers in LAYERS}


def deformed_mean(scores: Mapping[str, Sequence[float]]) -> float:
    """Return the mean accuracy over the deformations of some families, without the upright."""
    return statistics.mean(
        score
        for family, values in scores.items()
        for strength, score in zip(FAMILIES[family], values, strict=True)
        if strength != UPRIGHT[family]
    )


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main(DeformedDigits)
