"""A small experiment; ``torchrun small_denoiser.py FOLDER`` shares it among two processes."""

import contextlib
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

from engine import Column, Experiment, Patches, main, photograph, plot_runs, setting, summary
from finslerconv.nn import MetricConv2d


class CutOffError(Exception):
    """The end of a call that does not reach its own."""


@dataclass(frozen=True)
class SmallDenoiser(Experiment):
    """Trains two metric convolutions, without what would depend on the process."""

    name = "small_denoiser"
    steps: int = setting(8, "steps of training")
    cut_at: int = setting(0, "the step in which it is cut off")

    def runs(self):
        return [{"model": "metric", "seed": 0, "steps": self.steps}]

    def perform(self, run, trainer):
        model = nn.Sequential(
            MetricConv2d(1, 4, 3, padding=1), nn.ReLU(), MetricConv2d(4, 1, 3, padding=1)
        )
        steps = itertools.count(1)

        def loss(model, noisy, clean):
            if next(steps) == self.cut_at:
                raise CutOffError
            return mse_loss(model(noisy), clean)

        trainer.train(
            model,
            Patches([photograph("camera", 64)], 0.1, run["seed"], batch=4, size=16),
            loss,
            steps=run["steps"],
            optimiser=lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
        )
        return {"processes": trainer.fabric.world_size}

    def table(self, records):
        return summary(records, ["model"], [Column("processes", "processes")])

    def plot(self, records):
        return plot_runs(records, "model", "steps", "processes", "processes")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    common = ["--accelerator", "cpu", "--devices", "2", "--checkpoint-every", "4", "--output"]
    main(SmallDenoiser, [*common, str(folder / "ddp"), "--strategy", "ddp"])
    sharded = [*common, str(folder / "fsdp2"), "--strategy", "fsdp2"]
    with contextlib.suppress(CutOffError):
        main(SmallDenoiser, [*sharded, "--cut-at", "6"])
    assert len(list((folder / "fsdp2" / "checkpoints").iterdir())) == 1
    main(SmallDenoiser, sharded)
