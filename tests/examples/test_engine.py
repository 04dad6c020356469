"""The engine of the experiments: runs that go on where they were cut, records, tables, ranks."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from engine import (
    Column,
    Difference,
    Experiment,
    Patches,
    Record,
    Records,
    Repeated,
    Shuffled,
    main,
    plot_runs,
    setting,
    summary,
)

EXPERIMENTS = Path(__file__).parents[2] / "examples" / "experiments"


@dataclass(frozen=True)
class Line(Experiment):
    """Fits lines, with dropout, shuffled batches, and a second training. And more."""

    name = "line"
    steps: int = setting(12, "steps of training", quick=4)
    widths: tuple[int, ...] = setting((3, 5), "numbers of inputs")
    seeds: int = setting(1, "how often")
    kind: str = setting("plain", "which", choices=("plain", "other"))

    cut_at = None

    def runs(self):
        return [
            {"width": width, "seed": seed, "steps": self.steps}
            for seed in range(self.seeds)
            for width in self.widths
        ]

    def perform(self, run, trainer):
        model = nn.Sequential(nn.Linear(run["width"], 4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.fit(model, run, trainer, training=1)
        # The second starts from what the first has learned, and from new weights.
        model[2] = nn.Linear(4, 1)
        self.fit(model, run, trainer, training=2)
        return {"norm": sum(p.norm().item() for p in model.parameters())}

    def fit(self, model, run, trainer, training):
        x = torch.randn(20, run["width"])
        batches = Shuffled(x, x.sum(1, keepdim=True), batch=4, seed=run["seed"])

        def loss(model, x, y):
            if self.cut_at == (run["width"], training, batches.next):
                raise KeyboardInterrupt
            return mse_loss(model(x), y)

        trainer.train(
            model,
            batches,
            loss,
            steps=run["steps"],
            optimiser=lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
            schedule=lambda plain: torch.optim.lr_scheduler.CosineAnnealingLR(plain, run["steps"]),
        )

    def table(self, records):
        return summary(records, ["width"], [Column("norm", "norm", ".6f")])

    def plot(self, records):
        return plot_runs(records, "steps", "width", "norm", "norm")


def call(kind, folder, *options):
    main(
        kind, ["--accelerator", "cpu", "--checkpoint-every", "5", "--output", str(folder), *options]
    )
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("training", "step"), [(1, 2), (1, 5), (1, 6), (2, 1), (2, 12)])
def test_a_run_that_was_cut_ends_as_one_that_was_not(training, step, tmp_path, capsys):
    whole = call(Line, tmp_path / "whole")

    class Cut(Line):
        cut_at = (5, training, step)

    with pytest.raises(KeyboardInterrupt):
        call(Cut, tmp_path / "cut")
    left = list((tmp_path / "cut" / "checkpoints").iterdir())
    assert len(left) == (training - 1) + (step > 5)
    resumed = call(Line, tmp_path / "cut")
    for one, other in zip(whole, resumed, strict=True):
        assert one["run"] == other["run"]
        assert one["scores"] == other["scores"]
        assert one["losses"] == other["losses"]
    assert [len(record["losses"]) for record in resumed] == [24, 24]
    table = (tmp_path / "whole" / "table.md").read_text()
    assert table == (tmp_path / "cut" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())
    assert (tmp_path / "cut" / "plot.png").stat().st_size > 1000


def test_finished_runs_are_not_repeated_and_others_are_added(tmp_path):
    first = call(Line, tmp_path, "--quick")
    assert [record["run"]["steps"] for record in first] == [4, 4]
    # What is given goes before --quick.
    more = call(Line, tmp_path, "--quick", "--steps", "3", "--widths", "2", "3", "--kind", "other")
    assert more[:2] == first
    settings = [(record["run"]["width"], record["run"]["steps"]) for record in more[2:]]
    assert settings == [(2, 3), (3, 3)]
    assert len((tmp_path / "table.md").read_text().splitlines()) == 4


def test_help_names_the_settings(capsys):
    with pytest.raises(SystemExit):
        main(Line, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Fits lines, with dropout, shuffled batches, and a second training." in text
    assert "--widths WIDTHS [WIDTHS ...] numbers of inputs (default: 3 5)" in text
    assert "steps of training (default: 12, with --quick 4)" in text
    with pytest.raises(SystemExit):
        main(Line, ["--kind", "third"])


def test_records_are_read_as_they_were_written(tmp_path):
    record = Record({"a": 1, "b": "x"}, {"score": 0.5}, 1.25, "a machine", [3.0, 2.0])
    Records(tmp_path / "results.json").add(record)
    found = Records(tmp_path / "results.json")
    assert found.find({"b": "x", "a": 1}) == record
    assert found.find({"a": 1}) is None
    assert (record["a"], record["score"]) == (1, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_summary():
    records = [
        Record({"net": net, "kind": kind, "seed": seed}, {"score": score}, 0.0, "")
        for net, kind, seed, score in [
            ("A", "plain", 0, 1.0),
            ("A", "new", 0, 2.0),
            ("A", "plain", 1, 3.0),
            ("A", "new", 1, 3.5),
        ]
    ]
    columns = [
        Column("mean", "score", ".1f"),
        Difference("gain", "score", {"kind": "plain"}, "+.2f"),
    ]
    assert summary(records, ["net", "kind"], columns).splitlines() == [
        "| net | kind | mean | gain |",
        "| --- | --- | --- | --- |",
        "| A | plain | 2.0 ± 1.4 |  |",
        "| A | new | 2.8 ± 1.1 | +0.75 ± 0.35 |",
    ]
    assert summary(records[:2], ["kind"], columns[:1]).splitlines()[2:] == [
        "| plain | 1.0 |",
        "| new | 2.0 |",
    ]


def batches_of(kind):
    x = torch.arange(22.0)
    if kind == "patches":
        pictures = [torch.rand(30, 50).numpy(), torch.rand(45, 31).numpy()]
        return lambda: Patches(pictures, 0.1, seed=3, batch=2, size=20)
    return {
        "shuffled": lambda: Shuffled(x, -x, batch=4, seed=1),
        "repeated": lambda: Repeated(x),
    }[kind]


@pytest.mark.parametrize("kind", ["patches", "shuffled", "repeated"])
@pytest.mark.parametrize("n", [1, 5, 7])
def test_batches_go_on_where_they_were(kind, n):
    make = batches_of(kind)
    batches = make()
    for _ in range(n):
        next(batches)
    state, again = batches.state_dict(), make()
    again.load_state_dict(state)
    for _ in range(12):
        for one, other in zip(next(batches), next(again), strict=True):
            assert torch.equal(one, other)


def test_an_epoch_shows_each_example_once():
    x = torch.arange(22)
    batches = Shuffled(x, -x, batch=4, seed=1)
    epochs = [torch.cat([next(batches)[0] for _ in range(batches.batches)]) for _ in range(2)]
    assert all(len(epoch.unique()) == 20 for epoch in epochs)
    assert not torch.equal(*epochs)
    a, b = next(batches)
    assert torch.equal(a, -b)


def test_patches_are_of_the_pictures_with_noise_of_the_deviation():
    picture = torch.arange(3000.0).reshape(50, 60).numpy()
    noisy, clean = next(Patches([picture], 0.5, seed=0, batch=64, size=20))
    assert noisy.shape == clean.shape == (64, 1, 20, 20)
    assert float((noisy - clean).std()) == pytest.approx(0.5, rel=0.02)
    # Turned and flipped, neighbours still differ by a column or a row.
    steps = (clean[..., 1:, :] - clean[..., :-1, :]).abs()
    assert set(steps.unique().tolist()) == {1.0, 60.0}
