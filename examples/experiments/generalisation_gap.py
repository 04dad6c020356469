"""Generalisation: offsets of every pixel against metrics of every pixel, learned from one noise.

The experiment of "Metric Convolutions" (ICCV 2025). A filter of equal weights denoises one
photograph. Where it samples is learned, by 100 steps of plain gradient descent towards the clean
photograph: the 2 k^2 offsets of every pixel, or the Cholesky factor of M and omega, 5 numbers for
every pixel, from the metric of the gradient. Then the filter sees the same photograph with another
noise. The gap is (test MSE - training MSE) / training MSE.

    python examples/experiments/generalisation_gap.py --quick   # half a minute
    python examples/experiments/generalisation_gap.py           # a quarter of an hour
    python examples/experiments/generalisation_gap.py --kernel-sizes 31   # two hours

The rates are the paper's, at 256 x 256 pixels; its k = 31 has no published rate and takes that of
k = 11, for offsets times the number of samples (the gradient in an offset is 1 / k^2 of that in
the filtered pixel).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from engine import (
    Column,
    Experiment,
    Known,
    Record,
    Repeated,
    Run,
    Scores,
    Trainer,
    main,
    photograph,
    setting,
    summary,
    with_noise,
)
from finslerconv import ops
from finslerconv.balls import polar
from finslerconv.images import gradient_metric
from finslerconv.nn import Cholesky

#: The learning rates of the paper's code by kernel size, for sigma = 0.1, 0.3, 0.5.
RATES = {
    "deformable": {5: (4.6e6, 1.5e6, 5.7e5), 11: (2.4e7, 7.4e6, 2.9e6)},
    "metric, eps_omega 0.9": {5: (3.7e5, 1e4, 1e3), 11: (4e5, 1e4, 5e3)},
    "metric, eps_omega 0.1": {5: (2.5e5, 1e4, 2e3), 11: (3e5, 1e4, 5e3)},
}

#: The paper's gaps at sigma = 0.3, by kernel size.
PAPER = {
    "deformable": {5: 265, 11: 74, 31: 28, 51: 18, 121: 6.6},
    "metric, eps_omega 0.9": {5: 1.1, 11: 0.9, 31: 1.1, 51: 0.8, 121: 1.2},
    "metric, eps_omega 0.1": {5: 1.3, 11: 1.1, 31: 1.3, 51: 1.4, 121: 1.5},
}


def paper_gap(method: str, kernel_size: int, sigma: float) -> str:
    """Return the paper's gap, nothing where it is not known."""
    return str(PAPER[method].get(kernel_size, "")) if sigma == 0.3 else ""


def rate(method: str, kernel_size: int, sigma: float, size: int) -> float:
    """Return the learning rate; the loss is a mean over the pixels."""
    known = 5 if kernel_size < 8 else 11
    per_sigma = dict(zip((0.1, 0.3, 0.5), RATES[method][known], strict=True))
    nearest = min(per_sigma, key=lambda each: abs(each - sigma))
    taps = (kernel_size / known) ** 2 if method == "deformable" else 1.0
    return per_sigma[nearest] * taps * (size / 256) ** 2


class OffsetFilter(nn.Module):
    """The mean of k x k samples of every pixel, at free offsets from the box."""

    def __init__(self, kernel_size: int, size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.offset = nn.Parameter(torch.zeros(1, 2 * kernel_size**2, size, size))

    def forward(self, picture: Tensor) -> Tensor:
        """Filter the picture of the size."""
        weight = mean_of(self.kernel_size, picture)
        padding = self.kernel_size // 2
        return ops.deform_conv2d(
            picture, self.offset, weight, padding=padding, padding_mode="replicate"
        )


class MetricFilter(nn.Module):
    """The mean of k x k samples of the unit ball of every pixel's Randers metric."""

    def __init__(self, kernel_size: int, eps_omega: float, picture: Tensor) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.formula = ops.HeadFormula(Cholesky(), eps_omega)
        self.register_buffer("points", torch.from_numpy(polar(kernel_size, kernel_size).points))
        metric = gradient_metric(picture, derivative="sobel", sigma=0.0, anisotropy=10.0)
        L = torch.linalg.cholesky(metric.M)
        zero = torch.zeros_like(L[..., 0, 0])
        # The parametrisation counts the diagonal from 1, and bounds what is below far from here.
        channels = [L[..., 0, 0] - 1, L[..., 1, 1] - 1, L[..., 1, 0], zero, zero]
        self.channels = nn.Parameter(torch.stack(channels, dim=1))

    def forward(self, picture: Tensor) -> Tensor:
        """Filter a picture of the size of the first."""
        return ops.head_conv2d(
            picture,
            self.channels,
            self.formula,
            self.points.to(picture.dtype),
            mean_of(self.kernel_size, picture),
            padding=self.kernel_size // 2,
            padding_mode="replicate",
        )


def mean_of(kernel_size: int, picture: Tensor) -> Tensor:
    """Return the kernel of equal weights."""
    return picture.new_full((1, 1, kernel_size, kernel_size), 1 / kernel_size**2)


@dataclass(frozen=True)
class GeneralisationGap(Experiment):
    """Offsets of every pixel against metrics of every pixel, learned from one noise."""

    name = "generalisation_gap"

    photographs: tuple[str, ...] = setting(
        ("camera", "china"), "of scikit-image and scikit-learn", quick=("camera",)
    )
    size: int = setting(256, "height and width in pixels", quick=64)
    kernel_sizes: tuple[int, ...] = setting((5, 11), "odd; 31 takes hours", quick=(5,))
    sigmas: tuple[float, ...] = setting((0.1, 0.3, 0.5), "deviations of the noise", quick=(0.3,))
    seeds: int = setting(1, "pairs of noises")
    steps: int = setting(100, "of gradient descent")

    def runs(self) -> list[Run]:
        """Return every method with every kernel and noise, small kernels first."""
        return [
            {
                "method": method,
                "kernel_size": kernel_size,
                "sigma": sigma,
                "seed": seed,
                "photograph": name,
                "size": self.size,
                "steps": self.steps,
            }
            for kernel_size in self.kernel_sizes
            for name in self.photographs
            for sigma in self.sigmas
            for method in RATES
            for seed in range(self.seeds)
        ]

    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Learn on one noise, test on another."""
        size, kernel_size, sigma = run["size"], run["kernel_size"], run["sigma"]
        generator = np.random.default_rng(run["seed"])
        picture = photograph(run["photograph"], size)[None, None]
        clean = torch.from_numpy(picture)
        noisy, other = (torch.from_numpy(with_noise(picture, sigma, generator)) for _ in range(2))
        model: nn.Module
        if run["method"] == "deformable":
            model = OffsetFilter(kernel_size, size)
        else:
            model = MetricFilter(kernel_size, float(run["method"].split()[-1]), noisy)
        trainer.train(
            model,
            Repeated(noisy, clean),
            lambda model, noisy, clean: mse_loss(model(noisy), clean),
            steps=run["steps"],
            optimiser=lambda model: torch.optim.SGD(
                model.parameters(), lr=rate(run["method"], kernel_size, sigma, size)
            ),
        )
        with torch.no_grad():
            device = trainer.fabric.device
            train, test = (
                mse_loss(model(each.to(device)).cpu(), clean).item() for each in (noisy, other)
            )
        return {"train_mse": train, "test_mse": test, "gap": (test - train) / train}

    def table(self, records: Sequence[Record]) -> str:
        """Return the gaps, beside the paper's, and the errors."""
        columns = [
            Column("gap", "gap", ",.2f"),
            Known("paper", lambda run: paper_gap(run["method"], run["kernel_size"], run["sigma"])),
            Column("training MSE", "train_mse", ".2e"),
            Column("test MSE", "test_mse", ".2e"),
        ]
        return summary(records, ["photograph", "sigma", "kernel_size", "method"], columns)

    def plot(self, records: Sequence[Record]) -> Figure:
        """Draw the losses of training: offsets fit the noise, metrics do not."""
        figure = Figure(figsize=(4.2 * len(self.sigmas), 3.6), layout="constrained")
        axes = figure.subplots(1, len(self.sigmas), sharey=True, squeeze=False)[0]
        for axis, sigma in zip(axes, self.sigmas, strict=True):
            shown = {"sigma": sigma, "seed": 0, "photograph": self.photographs[0]}
            for record in records:
                if record.matches(shown):
                    colour = f"C{list(RATES).index(record['method'])}"
                    style = ("-", "--", ":")[self.kernel_sizes.index(record["kernel_size"]) % 3]
                    label = f"{record['method']}, k = {record['kernel_size']}"
                    steps = np.linspace(1, record["steps"], len(record.losses))
                    axis.semilogy(steps, record.losses, style, color=colour, label=label)
                    axis.semilogy(record["steps"], record["test_mse"], "o", color=colour, ms=4)
            axis.set(title=f"{self.photographs[0]}, sigma {sigma}", xlabel="step")
        axes[0].set_ylabel("MSE (dots: other noise)")
        handles, labels = axes[0].get_legend_handles_labels()
        columns = min(len(self.sigmas), 3)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        return figure


if __name__ == "__main__":
    main(GeneralisationGap)
