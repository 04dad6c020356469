"""The experiment on generalisation: where its filters start, its rates, a small run."""

import json

import numpy as np
import pytest
import torch

import generalisation_gap
from engine import main, photograph, with_noise
from finslerconv.balls import polar
from finslerconv.images import gradient_metric
from finslerconv.ops import metric_conv2d
from generalisation_gap import MetricFilter, OffsetFilter, rate


def noisy_photograph(size=32):
    noisy = with_noise(photograph("camera", size), 0.1, np.random.default_rng(1))
    return torch.from_numpy(noisy)[None, None]


def test_offsets_start_at_the_box():
    noisy = noisy_photograph()
    wide = torch.nn.functional.pad(noisy, (2, 2, 2, 2), mode="replicate")
    box = torch.nn.functional.avg_pool2d(wide, 5, stride=1)
    assert torch.allclose(OffsetFilter(5, 32)(noisy), box, atol=1e-5)


@pytest.mark.parametrize("eps_omega", [0.1, 0.9])
def test_metrics_start_at_that_of_the_gradient(eps_omega):
    noisy = noisy_photograph()
    metric = gradient_metric(noisy, derivative="sobel", sigma=0.0, anisotropy=10.0)
    points = torch.from_numpy(polar(5, 5).points).float()
    weight = torch.full((1, 1, 5, 5), 1 / 25)
    mean = metric_conv2d(noisy, metric.M, None, points, weight, padding=2, padding_mode="replicate")
    found = MetricFilter(5, eps_omega, noisy)
    assert torch.allclose(found(noisy), mean, atol=1e-4)
    found(noisy).square().mean().backward()
    assert (found.channels.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


def test_rates():
    assert rate("deformable", 11, 0.3, 256) == 7.4e6
    assert rate("metric, eps_omega 0.1", 5, 0.1, 256) == 2.5e5
    # An offset's gradient is a k^2-th of the filtered pixel's, and that of a mean over the pixels.
    assert rate("deformable", 31, 0.3, 256) == pytest.approx(7.4e6 * 31**2 / 11**2)
    assert rate("metric, eps_omega 0.9", 31, 0.3, 256) == 1e4
    assert rate("metric, eps_omega 0.9", 5, 0.3, 128) == 2.5e3


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys):
    options = ["--size", "24", "--kernel-sizes", "5", "--sigmas", "0.3", "--photographs", "camera"]
    main(generalisation_gap.GeneralisationGap, [*options, "--output", str(tmp_path)])
    records = json.loads((tmp_path / "results.json").read_text())
    gaps = {record["run"]["method"]: record["scores"]["gap"] for record in records}
    assert list(gaps) == list(generalisation_gap.RATES)
    offsets = gaps.pop("deformable")
    assert all(0 < gap < offsets / 10 for gap in gaps.values())
    for record in records:
        scores = record["scores"]
        gap = scores["test_mse"] / scores["train_mse"] - 1
        assert scores["gap"] == pytest.approx(gap)
        assert record["losses"][-1] == pytest.approx(scores["train_mse"], rel=0.2)
    assert "| camera | 0.3 | 5 | deformable |" in capsys.readouterr().out
