"""What the experiments share: runs that survive interruption, training, data, tables, plots."""

from engine.data import (
    DATA_SETS,
    TRAINING,
    VALIDATION,
    Patches,
    Picture,
    Repeated,
    Shuffled,
    divided_photographs,
    enlarged,
    labelled,
    moved,
    photograph,
    with_noise,
)
from engine.experiment import Experiment, main, setting
from engine.records import Record, Records, Run, Scores
from engine.report import Column, Difference, Known, markdown, plot_runs, summary, with_best_rate
from engine.scores import accuracy, psnr, ssim, validate
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
    "Picture",
    "Patches",
    "Shuffled",
    "Repeated",
    "photograph",
    "TRAINING",
    "VALIDATION",
    "divided_photographs",
    "with_noise",
    "DATA_SETS",
    "labelled",
    "enlarged",
    "moved",
    "psnr",
    "ssim",
    "validate",
    "accuracy",
    "Column",
    "Difference",
    "Known",
    "with_best_rate",
    "summary",
    "markdown",
    "plot_runs",
]
