"""What did a deformable network learn? Its kernels read as metrics, beside a metric network's own.

Small networks learn to read scikit-learn's digits, rotated, scaled and sheared at random. In each,
the last two convolutions are of one family, and every other thing is alike: weights at the start,
digits, warps.

- standard: nn.Conv2d;
- deformable: DeformConv2d, an offset for each of the 9 taps of a kernel, 18 numbers a pixel;
- metric: MetricConv2d, a Randers metric for each kernel, 5 numbers a pixel.

Then the kernels are read as metrics (``finslerconv.implicit.implicit_metric``). The metric network
says its metrics itself; the same fit, to where it samples, finds them again. Three questions:

- How much of the offsets does a metric explain? The Randers metric that carries the taps of the
  standard kernel nearest to the samples leaves some distance; explained is one less its mean
  square over the mean square of the offsets. Beside it, the same of random offsets as long.
- What balls do the samples cover? Size, anisotropy and asymmetry of the ellipse that shares most
  with the samples' convex hull (``overlap``, their intersection over union).
- Do they follow the strokes? ``edges`` is +1 if the balls lie along the picture's edges, -1 if
  across, 0 if they do not care (the mean of cos(2 angle), by elongation and gradient).

    python examples/what_did_it_learn.py --quick   # about a minute: one seed
    python examples/what_did_it_learn.py           # some minutes on one core

Every finished run is a file in the output folder, and the same command goes on where it was
stopped. It writes ``table.md`` and ``plot.png``.

Result of ``python examples/what_did_it_learn.py`` (three seeds, 30 epochs, 174 s of CPU on one
core), medians over the pixels, mean ± standard deviation over the seeds:

    | network    | accuracy (%) | layer | explained (%) | of random | overlap     |
    |------------|--------------|-------|---------------|-----------|-------------|
    | standard   | 95.2 ± 0.7   |       |               |           |             |
    | deformable | 97.6 ± 0.5   | 1     | 62 ± 6        | 27 ± 3    | 0.85 ± 0.04 |
    |            |              | 2     | 56 ± 6        | 27 ± 2    | 0.84 ± 0.02 |
    | metric     | 96.2 ± 0.5   | 1     | 100 ± 0       | 29 ± 0    | 0.87 ± 0.01 |
    |            |              | 2     | 100 ± 0       | 28 ± 0    | 0.87 ± 0.01 |

    | network    | layer | size (px)   | anisotropy  | asymmetry   | edges        |
    |------------|-------|-------------|-------------|-------------|--------------|
    | deformable | 1     | 2.25 ± 0.07 | 1.57 ± 0.04 | 0.26 ± 0.13 | +0.16 ± 0.15 |
    |            | 2     | 1.91 ± 0.10 | 1.42 ± 0.11 | 0.24 ± 0.08 | -0.23 ± 0.06 |
    | metric     | 1     | 2.23 ± 0.23 | 1.39 ± 0.10 | 0.39 ± 0.02 | +0.06 ± 0.09 |
    |            | 2     | 1.89 ± 0.27 | 1.44 ± 0.16 | 0.26 ± 0.04 | -0.06 ± 0.02 |

With 18 free numbers a pixel the deformable network learned offsets more than half of which are the
5 numbers of a metric, twice as much as of random ones. Both networks learned balls alike: twice the
standard size, longer than wide by half, off centre. They hardly follow the strokes: only those of
the deformable network's second layer lie, weakly, across the edges for every seed. The deformable
network reads best, the metric one lies between it and the standard one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from finslerconv import plotting
from finslerconv.implicit import fit_randers, implicit_metric
from finslerconv.nn import DeformConv2d, MetricConv2d

FAMILIES = {
    "standard": nn.Conv2d,
    "deformable": DeformConv2d,
    # Half-axes between exp(-1.5) and exp(1.5) times that of the standard kernel.
    "metric": partial(MetricConv2d, head="log_euclidean", eps_omega=0.5),
}
SIZE = 24

ORANGE, GREEN, BLUE, INK = "#E69F00", "#009E73", "#0072B2", "#22272E"

#: Training pictures and labels, test pictures and labels.
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def network(family: str, width: int) -> nn.Sequential:
    """Return a network whose last two convolutions are of a family."""
    conv = FAMILIES[family]
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(18 * width, 10),
    )


def digits(seed: int) -> Data:
    """Load scikit-learn's digits of 8 x 8 pixels, half of each class for training."""
    pictures, labels = load_digits(return_X_y=True)
    split = train_test_split(
        pictures.reshape(-1, 1, 8, 8) / 16,
        labels,
        train_size=0.5,
        stratify=labels,
        random_state=seed,
    )
    train, test = (torch.from_numpy(p).float() for p in split[:2])
    return train, torch.from_numpy(split[2]), test, torch.from_numpy(split[3])


def warped(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 45 degrees, scale by 0.75 to 1.25 along each axis, shear by up to 0.4."""
    n = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, shear = uniform(-0.785, 0.785), uniform(-0.4, 0.4)
    # From the canvas back to the digit, which fills two thirds of it.
    x, y = 1.5 / uniform(0.75, 1.25), 1.5 / uniform(0.75, 1.25)
    cosine, sine = angle.cos(), angle.sin()
    rows = [x * (cosine + shear * sine), x * (sine - shear * cosine), -y * sine, y * cosine]
    zero = torch.zeros(n)
    matrix = torch.stack([rows[0], rows[1], zero, rows[2], rows[3], zero], -1).reshape(n, 2, 3)
    grid = functional.affine_grid(matrix, [n, 1, SIZE, SIZE], align_corners=False)
    canvas = functional.grid_sample(pictures, grid, mode="bicubic", align_corners=False)
    return canvas.clamp(0, 1)


def train(
    model: nn.Module, data: Data, epochs: int, seed: int, advance: Callable[[], None]
) -> None:
    """Train by Adam with a cosine schedule, every picture warped anew in each epoch."""
    optimiser = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=1e-3)
    batches = len(data[0]) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        pictures = warped(data[0], generator)
        order = torch.randperm(len(pictures), generator=generator)
        for chosen in order[: batches * 64].split(64):
            optimiser.zero_grad()
            functional.cross_entropy(model(pictures[chosen]), data[1][chosen]).backward()
            optimiser.step()
            schedule.step()
        advance()
    model.eval()


@torch.no_grad()
def examine(model: nn.Sequential, data: Data, seed: int) -> dict[str, Any]:
    """Return the accuracy on warped test pictures, and what the adaptive layers imply."""
    pictures = warped(data[2], torch.Generator().manual_seed(1000 + seed))
    right = sum(
        (model(x).argmax(1) == y).sum().item()
        for x, y in zip(pictures.split(300), data[3].split(300), strict=True)
    )
    record: dict[str, Any] = {"accuracy": 100 * right / len(data[3]), "layers": []}
    if not any(isinstance(m, DeformConv2d | MetricConv2d) for m in model):
        return record
    generator = torch.Generator().manual_seed(seed)
    nearest = implicit_metric(model, pictures[:24])
    covering = implicit_metric(model, pictures[:24], objective="overlap")
    for name, result in nearest.items():
        where, s = result.positions, covering[name].summary
        taps = where.geometry.taps(where.points)
        squared = (where.points - taps).square().sum(-1).mean(-1)
        # Random offsets, at every pixel of the same mean square as those that were learned.
        noise = torch.randn(where.points[:8].shape, generator=generator)
        noise = noise * (squared[:8] / 2).sqrt()[..., None, None]
        null = fit_randers(taps + noise, reference=where.reference, map=result.map)
        record["layers"].append(
            {
                "offset": squared.sqrt().median().item(),
                "explained": explained(result.fit.residual, squared),
                "of random": explained(null.residual, noise.square().sum(-1).mean(-1)),
                "map": result.map,
                "fits": result.summary.explained,
                "overlap": s.iou,
                "size": s.size,
                "anisotropy": s.anisotropy,
                "asymmetry": s.asymmetry,
                "edges": s.edges,
            }
        )
    return record


def explained(residual: Tensor, squared: Tensor) -> float:
    """Return the median share of a kernel's mean squared offset that the metric accounts for."""
    moved = squared > 1e-4
    return (1 - residual.square()[moved] / squared[moved]).median().item()


def recovery_error(layer: MetricConv2d, features: Tensor) -> float:
    """Return how far the implicit metrics are from the layer's own: the largest relative error."""
    own = layer.metric(features)
    samples = layer.positions(features)
    found = fit_randers(samples, reference=layer.reference, map=layer.map).metric
    apart = torch.linalg.matrix_norm(found.M - own.M) / torch.linalg.matrix_norm(own.M)
    return apart.max().item()


NUMBERS = {
    "offset": ("offset (px)", "{:.2f}"),
    "explained": ("explained by a metric (%)", "{:.0f}"),
    "of random": ("of random offsets (%)", "{:.0f}"),
    "overlap": ("overlap", "{:.2f}"),
    "size": ("size (px)", "{:.2f}"),
    "anisotropy": ("anisotropy", "{:.2f}"),
    "asymmetry": ("asymmetry", "{:.2f}"),
    "edges": ("edges", "{:+.2f}"),
}

Runs = dict[tuple[str, int], dict[str, Any]]


def mean_and_spread(values: list[float], form: str) -> str:
    """Return the mean and the standard deviation over the seeds as text."""
    text = form.format(statistics.mean(values))
    spread = form.replace("+", "")
    return text + (f" ± {spread.format(statistics.stdev(values))}" if len(values) > 1 else "")


def values_of(runs: Runs, family: str, layer: int, name: str) -> list[float]:
    """Return a number of a layer for all seeds, shares in percent."""
    factor = 100 if name in ("explained", "of random") else 1
    records = [run for (f, _), run in runs.items() if f == family]
    return [factor * run["layers"][layer][name] for run in records]


def table(runs: Runs) -> str:
    """Return what was found: medians over pixels, mean over seeds."""
    lines = ["| network | test accuracy (%) |", "|---|---|"]
    for family in FAMILIES:
        accuracy = [run["accuracy"] for (f, _), run in runs.items() if f == family]
        lines.append(f"| {family} | {mean_and_spread(accuracy, '{:.1f}')} |")
    titles = " | ".join(title for title, _ in NUMBERS.values())
    lines += ["", f"| network | layer | {titles} |", "|---" * (2 + len(NUMBERS)) + "|"]
    for family in ("deformable", "metric"):
        for layer in range(2):
            cells = [
                mean_and_spread(values_of(runs, family, layer, name), form)
                for name, (_, form) in NUMBERS.items()
            ]
            lines.append(f"| {family} | {layer + 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.no_grad()
def plot(models: dict[str, nn.Sequential], runs: Runs, data: Data, path: Path) -> None:
    """Draw the first layer's balls on some digits, implicit and explicit, and the numbers."""
    first = [int((data[3] == digit).nonzero()[0]) for digit in (2, 3, 4, 5, 7, 9)]
    pictures = warped(data[2][first], torch.Generator().manual_seed(5))
    implicit = implicit_metric(models["deformable"], pictures, objective="overlap")["3"]
    metric_layer = models["metric"][3]
    features = models["metric"][:3](pictures)
    own, samples = metric_layer.metric(features), metric_layer.positions(features)
    figure = Figure(figsize=(12.4, 4.0), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[3.3, 1])
    axes = left.subplots(2, len(first))
    for i, (picture, above, below) in enumerate(zip(pictures, *axes, strict=True)):
        places = on_strokes(picture[0])
        plotting.implicit_balls(implicit, 1 - picture, places, batch=i, scale=1.0, ax=above)
        above.set_title("")
        plotting.unit_balls(own[i], places, image=1 - picture, colour=GREEN, dim=0.45, ax=below)
        at = torch.as_tensor(places)
        points = samples[i, at[:, 0], at[:, 1]] + at[:, None]
        below.scatter(points[..., 1], points[..., 0], s=4, color=BLUE, lw=0, zorder=5)
    for ax, text in zip(axes[:, 0], ("deformable:\nimplicit", "metric:\nits own"), strict=True):
        colour = ORANGE if "implicit" in text else GREEN
        ax.set_ylabel(text, fontsize=11, fontweight="bold", color=colour)
    for ax in axes.flat:
        ax.set(xlim=(-1.5, SIZE + 0.5), ylim=(SIZE + 0.5, -1.5))
    left.suptitle("Unit balls on the strokes, and where the kernels sample", fontsize=11)
    bars = right.subplots(3, 1)
    bar_panel(bars[0], runs, "explained", "offsets explained\nby a metric (%)")
    bar_panel(bars[1], runs, "anisotropy", "anisotropy")
    bar_panel(bars[2], runs, "edges", "along edges (+1)\nor across (−1)")
    figure.savefig(path, dpi=130)


def on_strokes(picture: Tensor) -> Any:
    """Return pixels of dark strokes that are at least 4 pixels apart, the darkest first."""
    chosen: list[Tensor] = []
    for place in picture.flatten().argsort(descending=True)[:120]:
        pixel = torch.stack((place // SIZE, place % SIZE))
        if all((pixel - other).abs().max() >= 4 for other in chosen):
            chosen.append(pixel)
    return torch.stack(chosen).numpy()


def bar_panel(ax: Any, runs: Runs, name: str, title: str) -> None:
    """Draw one number of both layers and networks, a dot for each seed."""
    for x, (family, colour) in enumerate((("deformable", ORANGE), ("metric", GREEN))):
        for layer in range(2):
            values = values_of(runs, family, layer, name)
            at = 2.4 * x + layer
            ax.bar(at, statistics.mean(values), 0.8, color=colour, alpha=0.75)
            ax.plot([at] * len(values), values, "o", color=INK, ms=2.5)
            if name == "explained":
                random = statistics.mean(values_of(runs, family, layer, "of random"))
                ax.plot([at - 0.45, at + 0.45], [random] * 2, color=INK, lw=1.5)
    if name == "explained":
        ax.plot([], [], color=INK, lw=1.5, label="of random offsets")
        ax.legend(frameon=False, fontsize=7.5, loc="upper left", borderaxespad=0, handlelength=1)
    ax.axhline(0, color=INK, lw=0.6)
    ax.set_xticks([0, 1, 2.4, 3.4], ["layer 1", "2", "layer 1", "2"], fontsize=8)
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=8, length=2)
    for side in ("top", "right", "bottom"):
        ax.spines[side].set_visible(False)


def main() -> None:
    """Train what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: 1 seed, 10 epochs")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/what_did_it_learn"))
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.seeds = 10, 1
    matplotlib.use("agg")
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)

    runs: Runs = {}
    models: dict[str, nn.Sequential] = {}
    seconds = 0.0
    with Progress() as progress:
        task = progress.add_task("training", total=options.seeds * len(FAMILIES) * options.epochs)
        for seed in range(options.seeds):
            for family in FAMILIES:
                progress.update(task, description=f"{family}, seed {seed}")
                model, run = finished_or_trained(
                    family, seed, options, lambda: progress.advance(task)
                )
                runs[family, seed] = run
                seconds += run["cpu_seconds"]
                models.setdefault(family, model)
    text = table(runs)
    (options.output / "table.md").write_text(text + "\n")
    data = digits(0)
    plot(models, runs, data, options.output / "plot.png")
    print(text)
    features = models["metric"][:3](warped(data[2][:20], torch.Generator().manual_seed(0)))
    error = recovery_error(models["metric"][3], features)
    print(f"\nThe fit finds the metric network's own metrics again, within {error:.1e} of each.")
    print(f"{options.seeds} seeds, {options.epochs} epochs each, {seconds:.0f} s of CPU in all")


def finished_or_trained(
    family: str, seed: int, options: argparse.Namespace, advance: Callable[[], None]
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return a trained network and its record, from the output folder if they are there."""
    name = f"{family}-seed{seed}-epochs{options.epochs}-width{options.width}"
    log, weights = options.output / f"{name}.json", options.output / f"{name}.pt"
    torch.manual_seed(seed)
    model = network(family, options.width)
    if log.exists() and weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        for _ in range(options.epochs):
            advance()
        return model.eval(), json.loads(log.read_text())
    start = time.process_time()
    data = digits(seed)
    train(model, data, options.epochs, seed, advance)
    run = examine(model, data, seed)
    run["cpu_seconds"] = round(time.process_time() - start, 1)
    torch.save(model.state_dict(), weights)
    log.write_text(json.dumps(run, indent=1) + "\n")
    return model, run


if __name__ == "__main__":
    main()
