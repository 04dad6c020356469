"""The recorded results: complete, and the committed tables are theirs."""

import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from classification import Classification
from deformed_digits import DeformedDigits
from denoising import Denoising
from engine import main
from explicit_filters import ExplicitFilters
from generalisation_gap import GeneralisationGap
from weighted_classification import WeightedClassification
from weighted_denoising import WeightedDenoising

RECORDED = Path(__file__).parents[2] / "examples" / "experiments" / "recorded"

#: The experiment of each folder, with the options of its run.
RUNS = {
    "explicit_filters": (ExplicitFilters, []),
    "generalisation_gap": (GeneralisationGap, ["--kernel-sizes", "5"]),
    "generalisation_gap_11": (
        GeneralisationGap,
        ["--kernel-sizes", "11", "--sigmas", "0.3"],
    ),
    "denoising": (Denoising, []),
    "classification_warped_digits": (Classification, ["--dataset", "warped digits"]),
    "deformed_digits": (DeformedDigits, []),
    "weighted_denoising": (WeightedDenoising, []),
    "weighted_classification": (WeightedClassification, []),
}


def test_every_recorded_folder_is_tested():
    assert {path.name for path in RECORDED.iterdir() if path.is_dir()} == set(RUNS)


@pytest.mark.parametrize("folder", RUNS)
def test_a_recorded_table_is_that_of_its_results(folder, tmp_path, monkeypatch):
    kind, options = RUNS[folder]
    shutil.copytree(RECORDED / folder, tmp_path / folder)

    def missing(self, run, trainer):
        raise AssertionError(f"not recorded: {run}")

    monkeypatch.setattr(kind, "perform", missing)
    monkeypatch.setattr(kind, "plot", lambda self, records: Figure())
    main(kind, [*options, "--accelerator", "cpu", "--output", str(tmp_path / folder)])
    table = (tmp_path / folder / "table.md").read_text()
    assert table == (RECORDED / folder / "table.md").read_text()
