"""A small experiment that several processes share: ``python small_denoiser.py --help``."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import mse_loss

from engine import Column, Experiment, Patches, main, photograph, plot_runs, setting, summary
from finslerconv.nn import MetricConv2d


@dataclass(frozen=True)
class SmallDenoiser(Experiment):
    """Trains two metric convolutions, without what would depend on the process."""

    name = "small_denoiser"
    steps: int = setting(8, "steps of training")

    def runs(self):
        return [{"model": "metric", "seed": 0, "steps": self.steps}]

    def perform(self, run, trainer):
        model = nn.Sequential(
            MetricConv2d(1, 4, 3, padding=1), nn.ReLU(), MetricConv2d(4, 1, 3, padding=1)
        )
        trainer.train(
            model,
            Patches([photograph("camera", 64)], 0.1, run["seed"], batch=4, size=16),
            lambda model, noisy, clean: mse_loss(model(noisy), clean),
            steps=run["steps"],
            optimiser=lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        )
        return {"processes": trainer.fabric.world_size}

    def table(self, records):
        return summary(records, ["model"], [Column("processes", "processes")])

    def plot(self, records):
        return plot_runs(records, "model", "steps", "processes", "processes")


if __name__ == "__main__":
    main(SmallDenoiser)
