"""The experiments on weighted convolution: what their networks start as, a small run."""

import copy
import json

import pytest
import torch

import weighted_classification
from engine import main
from weighted_denoising import MODELS
from weighted_variants import VARIANTS, optimiser, with_convolutions


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_the_networks_start_as(name):
    torch.manual_seed(0)
    plain = MODELS[name](3).eval()
    x = torch.rand(1, 1, 16, 16)
    variants = {
        variant: with_convolutions(copy.deepcopy(plain), variant, 3).eval() for variant in VARIANTS
    }
    outputs = {variant: model(x) for variant, model in variants.items()}
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(outputs["standard"], plain(x), **close)
    torch.testing.assert_close(outputs["same start"], plain(x), **close)
    torch.testing.assert_close(outputs["folded start"], outputs["weighted"], **close)
    torch.testing.assert_close(outputs["trained density"], outputs["weighted"], **close)
    assert not torch.allclose(outputs["weighted"], plain(x), atol=1e-3)
    shapes = [parameter.shape for parameter in plain.parameters()]
    assert [parameter.shape for parameter in variants["folded start"].parameters()] == shapes


def test_the_density_is_trained_ten_times_faster():
    plain, trained = (
        optimiser(with_convolutions(MODELS["DnCNN"](3), variant, 3), weight_decay=0.1)
        for variant in ("standard", "trained density")
    )
    assert {group["lr"] for group in plain.param_groups} == {2e-3}
    assert {group["lr"] for group in trained.param_groups} == {2e-3, 2e-2}


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, scores):
    options = ["--width", "2", "--epochs", "1", "--seeds", "1", "--output", str(tmp_path)]
    main(weighted_classification.WeightedClassification, options)
    records = json.loads((tmp_path / "results.json").read_text())
    runs = [(record["run"]["network"], record["run"]["convolutions"]) for record in records]
    assert runs == [(network, variant) for network in ("VGG", "ResNet") for variant in VARIANTS]
    losses = {run: record["losses"] for run, record in zip(runs, records, strict=True)}
    for network in ("VGG", "ResNet"):
        standard, weighted = losses[network, "standard"], losses[network, "weighted"]
        assert losses[network, "same start"][0] == pytest.approx(standard[0], abs=1e-5)
        assert losses[network, "folded start"][0] == pytest.approx(weighted[0], abs=1e-5)
    assert "| ResNet | trained density |" in capsys.readouterr().out
