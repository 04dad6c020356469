"""The recorded results: complete; the committed tables are theirs, and what the page says."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from classification import Classification
from deformed_digits import DeformedDigits
from denoising import Denoising
from engine import Record, main
from explicit_filters import ExplicitFilters
from generalisation_gap import GeneralisationGap
from weighted_classification import WeightedClassification
from weighted_denoising import WeightedDenoising

approx = partial(pytest.approx, abs=0.005)  # what the page shows

RECORDED = Path(__file__).parents[2] / "examples" / "experiments" / "recorded"

WARPED = ["--dataset", "warped digits"]
LEARNED = ["--starts", "scratch", "--kernels", "learned"]

#: The experiment of each folder, with the options of its run.
RUNS = {
    "explicit_filters": (ExplicitFilters, []),
    "generalisation_gap": (GeneralisationGap, ["--kernel-sizes", "5"]),
    "generalisation_gap_11": (GeneralisationGap, ["--kernel-sizes", "11"]),
    "generalisation_gap_31": (
        GeneralisationGap,
        ["--kernel-sizes", "31", "--sigmas", "0.3", "--photographs", "camera"],
    ),
    "denoising": (Denoising, []),
    "classification_warped_digits": (Classification, WARPED),
    "classification_rates": (
        Classification,
        [*WARPED, *LEARNED, "--rates", "5e-4", "2e-3", "8e-3"],
    ),
    "classification_geodesic": (
        Classification,
        [*WARPED, *LEARNED, "--layers", "standard", "Riemannian", "geodesic"],
    ),
    "classification_mnist5k": (
        Classification,
        ["--dataset", "mnist5k", *LEARNED, "fixed", "--epochs", "10"],
    ),
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


def records(folder: str) -> list[Record]:
    entries = json.loads((RECORDED / folder / "results.json").read_text())
    return [Record(**entry) for entry in entries]


def leads(better: str, others: Sequence[str]) -> list[float]:
    """Return by how many decibels a filter leads the best of others, for each picture and noise."""
    found: dict[tuple, dict[str, float]] = {}
    for record in records("explicit_filters"):
        picture = found.setdefault((record["photograph"], record["sigma"]), {})
        picture[record["filter"]] = record["psnr"]
    assert len(found) == 18
    return [psnr[better] - max(psnr[other] for other in others) for psnr in found.values()]


def test_adapted_balls_are_never_worse_than_a_box():
    lead = leads("adapted UTB", ["box"])
    assert (min(lead), max(lead)) == (approx(0.12), approx(6.43))


def test_adapted_balls_are_better_than_fixed_filters_but_twice():
    fixed = ["box", "dilated box", "interpolated box, 5 x 5", "UTB, disc"]
    lost = sorted(lead for lead in leads("adapted UTB", fixed) if lead <= 0)
    assert lost == [approx(-0.34), approx(-0.03)]


def test_gaps_of_metrics_and_of_offsets():
    for folder, largest, least_ratio in [
        ("generalisation_gap", 1.61, 14),
        ("generalisation_gap_11", 1.55, 9),
        ("generalisation_gap_31", 1.57, 49),
    ]:
        gaps: dict[tuple, dict[str, float]] = {}
        for record in records(folder):
            case = gaps.setdefault((record["photograph"], record["sigma"]), {})
            case[record["method"]] = record["gap"]
        metrics = [max(g for m, g in case.items() if m != "deformable") for case in gaps.values()]
        ratios = [g["deformable"] / m for g, m in zip(gaps.values(), metrics, strict=True)]
        assert max(metrics) == approx(largest)
        assert min(ratios) >= least_ratio
