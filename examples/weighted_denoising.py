"""Denoising with standard and weighted convolutions: DnCNN and a small NAFNet, same seeds.

The natural photographs that scikit-image and scikit-learn ship are split by photograph: camera,
coffee, rocket and china are for training, astronaut, chelsea and flower for validation. Grey
patches with white Gaussian noise (sigma 25 / 255) train each network five times over:

- standard: with ordinary convolutions;
- weighted: with the paper's fixed density;
- same start: the same, but with the initial weights divided by Phi (``preserve=True``), so that
  the network starts as the standard one does and only its training differs;
- folded start: the other way round, ordinary convolutions that start as the weighted ones do;
- trained density: with a density trained in each layer, starting from the paper's.

For one seed all five see the same initial weights, patches and noise.

    python examples/weighted_denoising.py --quick   # about a minute: fewer steps, two seeds
    python examples/weighted_denoising.py           # some minutes on one core

Every finished run is a line in ``runs.jsonl`` of the output folder, and the same command goes on
where it was stopped. It writes ``table.md`` and ``plot.png``.

Result of ``python examples/weighted_denoising.py`` (three seeds, 300 steps, 589 s of CPU on one
core), mean ± standard deviation over the seeds:

    | network | convolutions    | PSNR (dB)    | SSIM            | PSNR - standard |
    |---------|-----------------|--------------|-----------------|-----------------|
    | DnCNN   | standard        | 25.81 ± 0.25 | 0.7562 ± 0.0172 |                 |
    | DnCNN   | weighted        | 26.47 ± 0.19 | 0.7813 ± 0.0097 | +0.664 ± 0.115  |
    | DnCNN   | same start      | 25.60 ± 0.38 | 0.7486 ± 0.0212 | -0.206 ± 0.124  |
    | DnCNN   | folded start    | 26.50 ± 0.21 | 0.7819 ± 0.0099 | +0.694 ± 0.075  |
    | DnCNN   | trained density | 26.53 ± 0.14 | 0.7823 ± 0.0087 | +0.718 ± 0.114  |
    | NAFNet  | standard        | 26.07 ± 0.07 | 0.7559 ± 0.0041 |                 |
    | NAFNet  | weighted        | 26.19 ± 0.06 | 0.7631 ± 0.0008 | +0.118 ± 0.034  |
    | NAFNet  | same start      | 26.05 ± 0.07 | 0.7544 ± 0.0033 | -0.024 ± 0.010  |
    | NAFNet  | folded start    | 26.17 ± 0.04 | 0.7632 ± 0.0015 | +0.097 ± 0.031  |
    | NAFNet  | trained density | 26.20 ± 0.07 | 0.7631 ± 0.0020 | +0.130 ± 0.090  |

Weighted is better here, and all of it is the start: ordinary convolutions that start from the
weighted network's kernels gain as much, weighted ones that start as the standard network nothing.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.progress import track
from skimage import data as photographs
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import rescale
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional

from finslerconv.nn.weighted import (
    SeparableDensity,
    density_parameter_groups,
    fold,
    paper_profile,
    to_weighted,
)

SIGMA = 25 / 255
VARIANTS = ("standard", "weighted", "same start", "folded start", "trained density")


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


def load_photographs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Load training and validation photographs, grey in [0, 1], halved against their own noise."""
    train = [photographs.camera(), photographs.coffee(), photographs.rocket()]
    train.append(load_sample_image("china.jpg"))
    validation = [photographs.astronaut(), photographs.chelsea(), load_sample_image("flower.jpg")]

    def grey(picture: np.ndarray) -> np.ndarray:
        picture = rgb2gray(picture) if picture.ndim == 3 else picture / 255
        return rescale(picture, 0.5, anti_aliasing=True).astype(np.float32)

    return [grey(p) for p in train], [grey(p) for p in validation]


def batch(pictures: list[np.ndarray], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Sixteen patches of 40 x 40, flipped and turned at random, with and without noise."""
    patches = []
    for _ in range(16):
        picture = pictures[generator.integers(len(pictures))]
        i, j = (generator.integers(n - 40) for n in picture.shape)
        patch = np.rot90(picture[i : i + 40, j : j + 40], generator.integers(4))
        patches.append(patch[:, :: generator.choice([-1, 1])])
    clean = torch.from_numpy(np.stack(patches))[:, None]
    noise = torch.from_numpy(generator.standard_normal(clean.shape, dtype=np.float32))
    return clean, clean + SIGMA * noise


def build(name: str, variant: str, kernel_size: int, seed: int) -> nn.Module:
    """Build a network; for one seed all variants start from the same weights."""
    torch.manual_seed(seed)
    model = MODELS[name](kernel_size)
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


def train(model: nn.Module, pictures: list[np.ndarray], steps: int, seed: int) -> None:
    """Train by AdamW, the density ten times faster than the weights, both rates to 0 by cosine."""
    groups = density_parameter_groups(model, lr=2e-3, density_lr=2e-2, weight_decay=1e-4)
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = np.random.default_rng(seed)
    model.train()
    for _ in range(steps):
        clean, noisy = batch(pictures, generator)
        optimiser.zero_grad()
        functional.mse_loss(model(noisy), clean).backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def validate(model: nn.Module, pictures: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM over the centres of the validation photographs, one fixed noise."""
    model.eval()
    generator = np.random.default_rng(10_000)
    psnr, ssim = [], []
    for picture in pictures:
        i, j = ((n - 144) // 2 for n in picture.shape)
        clean = picture[i : i + 144, j : j + 144]
        noisy = clean + SIGMA * generator.standard_normal(clean.shape, dtype=np.float32)
        denoised = model(torch.from_numpy(noisy)[None, None])[0, 0].clamp(0, 1).numpy()
        psnr.append(peak_signal_noise_ratio(clean, denoised, data_range=1))
        ssim.append(structural_similarity(clean, denoised, data_range=1))
    return {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}


def finished(path: Path, settings: dict[str, int]) -> dict[tuple[str, str, int], dict[str, float]]:
    """Read the runs of an earlier call with the same settings."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {(r["model"], r["variant"], r["seed"]): r for r in records if r["settings"] == settings}


def spread(values: list[float]) -> float:
    """Return the standard deviation over the seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(runs: dict[tuple[str, str, int], dict[str, float]], seeds: range) -> str:
    """Mean and spread over the seeds, and the difference from standard, seed by seed."""
    lines = [
        "| network | convolutions | PSNR (dB) | SSIM | PSNR - standard, seed by seed |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS:
        for variant in VARIANTS:
            psnr = [runs[model, variant, s]["psnr"] for s in seeds]
            ssim = [runs[model, variant, s]["ssim"] for s in seeds]
            gain = [
                p - runs[model, "standard", s]["psnr"] for p, s in zip(psnr, seeds, strict=True)
            ]
            difference = (
                ""
                if variant == "standard"
                else f"{statistics.mean(gain):+.3f} ± {spread(gain):.3f}"
            )
            lines.append(
                f"| {model} | {variant} | {statistics.mean(psnr):.2f} ± {spread(psnr):.2f} | "
                f"{statistics.mean(ssim):.4f} ± {spread(ssim):.4f} | {difference} |"
            )
    return "\n".join(lines)


def plot(runs: dict[tuple[str, str, int], dict[str, float]], seeds: range, path: Path) -> None:
    """One panel per network: a line per seed through the three variants."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MODELS), figsize=(10, 3.6), layout="constrained")
    for axis, model in zip(axes, MODELS, strict=True):
        for seed in seeds:
            values = [runs[model, v, seed]["psnr"] for v in VARIANTS]
            axis.plot(VARIANTS, values, "o-", color="0.75", ms=4, lw=1)
        means = [statistics.mean(runs[model, v, s]["psnr"] for s in seeds) for v in VARIANTS]
        axis.plot(VARIANTS, means, "_", color="C0", ms=28, mew=2.5, label="mean")
        axis.margins(x=0.2)
        axis.set_xticks(range(len(VARIANTS)), [v.replace(" ", "\n") for v in VARIANTS], fontsize=9)
        axis.set(title=model, ylabel="validation PSNR (dB)")
    axes[0].plot([], [], "o-", color="0.75", ms=4, lw=1, label="one seed")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run what is missing, then write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: 40 steps, 2 seeds")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kernel-size", type=int, default=3, choices=[3, 5, 7])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/weighted_denoising"))
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds = 40, 2
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {"steps": options.steps, "kernel_size": options.kernel_size}
    log = options.output / "runs.jsonl"
    runs = finished(log, settings)
    seeds = range(options.seeds)
    todo = [(m, v, s) for s in seeds for m in MODELS for v in VARIANTS if (m, v, s) not in runs]
    training, validation = load_photographs()
    for name, variant, seed in track(todo, description="training"):
        start = time.process_time()
        model = build(name, variant, options.kernel_size, seed)
        train(model, training, options.steps, seed)
        record = {
            "model": name,
            "variant": variant,
            "seed": seed,
            "settings": settings,
            **validate(model, validation),
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
    print(f"\n{options.seeds} seeds, {options.steps} steps each, {total:.0f} s of CPU in all")


if __name__ == "__main__":
    main()
