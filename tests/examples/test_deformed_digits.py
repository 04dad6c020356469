"""The experiment on deformed digits: deformations, budgets, statistics, a small run."""

import json
import math

import pytest
import torch

import deformed_digits
from deformed_digits import FAMILIES, LAYERS, compared, deformation, deformed, network, size
from engine import Record, labelled, main


def second_moments(picture):
    """Return the centre and the covariance of a picture, of coordinates x (right), y (down)."""
    axis = torch.arange(len(picture)) - (len(picture) - 1) / 2
    weights = picture / picture.sum()
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    centre = (weights[..., None] * places).sum((0, 1))
    moved = places - centre
    return centre, torch.einsum("ij,ija,ijb->ab", weights, moved, moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deformation_acts_on_the_moments_of_a_blob(family):
    axis = torch.arange(64.0) - 31.5
    blob = torch.exp(-(((axis[:, None] - 3) / 8) ** 2) - ((axis + 2) / 5) ** 2)
    centre, moments = second_moments(blob)
    for strength in FAMILIES[family]:
        matrix = deformation(family, strength)
        moved_centre, moved_moments = second_moments(
            deformed(blob[None, None], family, strength)[0, 0]
        )
        torch.testing.assert_close(moved_centre, matrix @ centre, atol=0.05, rtol=0)
        torch.testing.assert_close(moved_moments, matrix @ moments @ matrix.T, atol=0.4, rtol=0)


def test_deformations_are_what_they_are_called():
    """A positive angle turns right towards down; a slope moves what is below to the right."""
    right, down = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    turned = deformation("turned", 30) @ right
    torch.testing.assert_close(turned, torch.tensor([math.sqrt(3) / 2, 0.5]))
    torch.testing.assert_close(deformation("scaled", 1.4) @ down, 1.4 * down)
    torch.testing.assert_close(deformation("sheared", 0.5) @ down, torch.tensor([0.5, 1.0]))
    assert sum(len(strengths) - 1 for strengths in FAMILIES.values()) == 14


@pytest.mark.parametrize("parameters", [3_000, 25_000])
def test_networks_have_equal_numbers_of_parameters(parameters):
    widths = {layers: deformed_digits.width_for(layers, parameters) for layers in LAYERS}
    for layers, width in widths.items():
        found = size(network(layers, width))
        assert found == pytest.approx(parameters, rel=0.15 if parameters < 10_000 else 0.05)
        below, above = (size(network(layers, width + step)) for step in (-1, 1))
        assert below < found < above
    assert widths["deformable"] < widths["metric"] < widths["standard"]


def test_the_paired_test_by_hand():
    """Differences 1, 2, 3: t = 2 sqrt(3), whose tail with two degrees has a closed form."""
    mean, low, high, p = compared([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    t = 2 * math.sqrt(3)
    assert mean == 2.0
    assert p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    # The 0.975 quantile with two degrees: 0.95 sqrt(2 / (1 - 0.95^2)).
    reach = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - reach, 2 + reach))
    assert compared([2.0], [1.5])[0] == 0.5


def test_the_rate_is_chosen_on_upright_digits_and_applied_to_all_seeds():
    def record(layers, rate, seed, choice, shown):
        scores = {family: [shown] * len(values) for family, values in FAMILIES.items()}
        scores |= {"choice": choice, "upright": 99.0, "deformed": shown, "network parameters": 7}
        return Record({"layers": layers, "rate": rate, "seed": seed}, scores, 1.0, "")

    records = [
        record(layers, rate, seed, choice, shown + i * (1 + seed))
        for i, layers in enumerate(LAYERS)
        for rate, seed, choice, shown in [
            (1e-3, 0, 90.0, 70.0), (1e-3, 1, 94.0, 72.0),
            (4e-3, 0, 91.0, 80.0), (4e-3, 1, 91.0, 80.0),
        ]
    ]  # fmt: skip
    lines = deformed_digits.DeformedDigits().table(records).splitlines()
    spread = " | ".join(["74.00 ± 2.83"] * 4)
    assert lines[4] == f"| metric | 7 | 0.001 | 99.00 ± 0.00 | {spread} |"
    assert lines[-2].startswith("| metric minus standard | +3.00 |")


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, scores, monkeypatch):
    train, labels, rest, rest_labels, classes = labelled("digits", 0)
    few = train[:64], labels[:64], rest[:128], rest_labels[:128], classes
    monkeypatch.setattr(deformed_digits, "labelled", lambda name, seed: few)
    options = ["--parameters", "600", "--epochs", "1", "--seeds", "1", "--rates", "4e-3"]
    main(deformed_digits.DeformedDigits, [*options, "--output", str(tmp_path)])
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["run"]["layers"] for record in records] == list(LAYERS)
    for record in records:
        found = record["scores"]
        assert found["turned"][3] == found["scaled"][2] == found["sheared"][2] == found["upright"]
        wrong = sum(sum(found[family]) for family in FAMILIES) - 3 * found["upright"]
        assert found["deformed"] == pytest.approx(wrong / 14)
    assert "| metric minus deformable |" in capsys.readouterr().out
