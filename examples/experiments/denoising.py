"""Denoising by one layer: filters learned on some photographs, tested on others.

The experiment of "Metric Convolutions" (ICCV 2025) on data sets. One convolution of k x k samples
reads a grey noisy picture and gives the clean one. It is standard, deformable, or metric
(Riemannian or Randers, Cholesky heads), and a convolution of the same picture predicts where it
samples. Its kernel is fixed at 1 / k^2 or learned from there, so at the start every layer is the
box filter; a standard layer with a fixed kernel stays it, and is not trained. For one seed all see
the same patches and noise.

Photographs are grey, their middle squares reduced to 256 x 256 pixels as in the paper. By default
they are those that scikit-image and scikit-learn ship: four for training, three for validation.
With --data-root they come from a folder of yours, such as BSDS300/images, VOC2012/JPEGImages or
DIV2K: subfolders named after training ("train") and after validation or test ("val", "test") divide
them; without such names every fifth file is for validation.

    python examples/experiments/denoising.py --quick     # half a minute
    python examples/experiments/denoising.py             # a quarter of an hour
    python examples/experiments/denoising.py --data-root BSDS300/images --steps 5000 --batch 32

Adam with a cosine takes the place of the paper's SGD, whose rates are not published. Every layer is
trained with each of the rates, and the table shows the one with the lowest training loss at the
end, the mean over the seeds: the budget is the same for all, and validation photographs have no
part in the choice.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR

from engine import (
    Column,
    Experiment,
    Patches,
    Record,
    Run,
    Scores,
    Trainer,
    divided_photographs,
    main,
    setting,
    summary,
    validate,
    with_best_rate,
)
from finslerconv.nn import DeformConv2d, MetricConv2d

#: Classes of the layers, with options.
LAYERS: dict[str, tuple[type[nn.Conv2d], dict[str, Any]]] = {
    "standard": (nn.Conv2d, {}),
    "deformable": (DeformConv2d, {}),
    "Riemannian": (MetricConv2d, {"eps_omega": 1.0}),
    "Randers": (MetricConv2d, {"eps_omega": 0.1}),
}


#: Scores in the table: title, key, form, whether with the spread over the seeds.
SCORES = (("PSNR (dB)", "psnr", ".2f", True), ("SSIM", "ssim", ".3f", False))


def filter_layer(name: str, kernel_size: int, fixed: bool) -> nn.Conv2d:
    """Return a layer from one channel to one that starts as the box filter."""
    kind, options = LAYERS[name]
    layer = kind(
        1, 1, kernel_size, padding=kernel_size // 2, bias=False, padding_mode="replicate", **options
    )
    nn.init.constant_(layer.weight, 1 / kernel_size**2)
    layer.weight.requires_grad_(not fixed)
    return layer


@dataclass(frozen=True)
class Denoising(Experiment):
    """Denoising by one layer, learned on some photographs and tested on others."""

    name = "denoising"

    data_root: Path | None = setting(None, "folder of photographs (default: those shipped)")
    layers: tuple[str, ...] = setting(tuple(LAYERS), "the layers", choices=tuple(LAYERS))
    kernels: tuple[str, ...] = setting(
        ("fixed", "learned"), "of the layers", choices=("fixed", "learned")
    )
    kernel_sizes: tuple[int, ...] = setting((5, 11), "odd", quick=(5,))
    sigmas: tuple[float, ...] = setting((0.1, 0.3, 0.5), "deviations of the noise", quick=(0.3,))
    rates: tuple[float, ...] = setting((1e-3, 1e-2), "learning rates to choose from", quick=(1e-2,))
    steps: int = setting(250, "steps of training", quick=50)
    batch: int = setting(4, "patches in a batch; the paper's 32 are whole pictures")
    seeds: int = setting(1, "how often everything is repeated")

    def runs(self) -> list[Run]:
        """Return every layer with every kernel, noise and rate, seed by seed."""
        settings = {
            "data": "shipped" if self.data_root is None else str(self.data_root),
            "steps": self.steps,
            "batch": self.batch,
        }
        return [
            {
                "kernel_size": kernel_size,
                "sigma": sigma,
                "kernel": kernel,
                "layer": layer,
                "rate": rate,
                "seed": seed,
                **settings,
            }
            for seed in range(self.seeds)
            for kernel_size in self.kernel_sizes
            for sigma in self.sigmas
            for kernel in self.kernels
            for layer in self.layers
            for rate in (self.rates if (layer, kernel) != ("standard", "fixed") else (0.0,))
        ]

    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Train a layer and denoise the validation photographs."""
        training, validation = divided_photographs(self.data_root, 256)
        model = filter_layer(run["layer"], run["kernel_size"], run["kernel"] == "fixed")
        numbers = [each.numel() for each in model.parameters() if each.requires_grad]
        if numbers:
            trainer.train(
                model,
                Patches(training, run["sigma"], run["seed"], batch=run["batch"]),
                lambda model, noisy, clean: mse_loss(model(noisy), clean),
                steps=run["steps"],
                optimiser=lambda model: torch.optim.Adam(
                    [each for each in model.parameters() if each.requires_grad], lr=run["rate"]
                ),
                schedule=lambda plain: CosineAnnealingLR(plain, run["steps"]),
            )
        scores = validate(model, validation, run["sigma"], trainer.fabric.device)
        last = trainer.losses[-max(run["steps"] // 5, 1) :] or [0.0]
        return {**scores, "last_losses": statistics.mean(last), "parameters": sum(numbers)}

    def table(self, records: Sequence[Record]) -> str:
        """Return PSNR and SSIM for each noise; rows are layers."""
        columns = [
            Column(f"{title}, sigma {sigma}", key, form, {"sigma": sigma}, spread=spread)
            for title, key, form, spread in SCORES
            for sigma in self.sigmas
        ]
        columns.append(Column("parameters", "parameters", ".0f", spread=False))
        chosen = with_best_rate(records, "last_losses", min)
        return summary(chosen, ["kernel_size", "kernel", "layer"], columns)

    def plot(self, records: Sequence[Record]) -> Figure:
        """Draw the gain over the box of the same size where it is there, a panel for each size."""
        chosen = with_best_rate(records, "last_losses", min)
        figure = Figure(figsize=(5.2 * len(self.kernel_sizes), 4.4), layout="constrained")
        axes = figure.subplots(1, len(self.kernel_sizes), sharey=True, squeeze=False)[0]

        def means(kernel_size: int, kernel: str, layer: str) -> np.ndarray:
            shown = {"kernel_size": kernel_size, "kernel": kernel, "layer": layer}
            groups = ([r for r in chosen if r.matches({**shown, "sigma": s})] for s in self.sigmas)
            return np.array([statistics.mean(r["psnr"] for r in group) for group in groups])

        has_box = "standard" in self.layers and "fixed" in self.kernels
        for axis, kernel_size in zip(axes, self.kernel_sizes, strict=True):
            box = means(kernel_size, "fixed", "standard") if has_box else 0.0
            for layer in self.layers:
                for kernel in self.kernels:
                    axis.plot(
                        self.sigmas,
                        means(kernel_size, kernel, layer) - box,
                        "o--" if kernel == "fixed" else "o-",
                        color=f"C{list(LAYERS).index(layer)}",
                        ms=4,
                        label=f"{layer}, {kernel} kernel",
                    )
            axis.set(title=f"k = {kernel_size}", xlabel="deviation of the noise")
            axis.set_xticks(self.sigmas)
        axes[0].set_ylabel("PSNR minus the box's (dB)" if has_box else "PSNR (dB)")
        handles, labels = axes[0].get_legend_handles_labels()
        columns = 2 * len(self.kernel_sizes)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        return figure


if __name__ == "__main__":
    main(Denoising)
