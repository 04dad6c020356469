"""What the experiments share: runs that survive interruption, training, data, tables, plots."""

from engine.data import (
    DATA_SETS,
    Patches,
    Repeated,
    Shuffled,
    enlarged,
    labelled,
    photograph,
    with_noise,
)
from engine.experiment import Experiment, main, setting
from engine.records import Record, Records, Run, Scores
from engine.report import Column, Difference, Known, markdown, plot_runs, summary
from engine.scores import accuracy, psnr, ssim
from engine.training import Trainer

__all__ = [
    "Experiment",
    "setting",
    "main",
    "Run",
    "Scores",
    "Record",
    "Records",
    "Trainer",
    "Patches",
    "Shuffled",
    "Repeated",
    "photograph",
    "with_noise",
    "DATA_SETS",
    "labelled",
    "enlarged",
    "psnr",
    "ssim",
    "accuracy",
    "Column",
    "Difference",
    "Known",
    "summary",
    "markdown",
    "plot_runs",
]
