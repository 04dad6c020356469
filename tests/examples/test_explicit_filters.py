"""The experiment on filters: the filters that are its own, and a small run."""

import json
import math

import numpy as np
import pytest
from scipy.ndimage import correlate, uniform_filter

import explicit_filters
from engine import main, photograph, with_noise


def noisy_photograph(size=40, sigma=0.1):
    return with_noise(photograph("camera", size)[None], sigma, np.random.default_rng(1))


def test_boxes_are_means_over_squares():
    noisy = noisy_photograph()
    found = explicit_filters.filters(5, noisy)
    box = uniform_filter(noisy[0], 5, mode="nearest")
    np.testing.assert_allclose(found["box"](noisy)[0], box, atol=1e-5)
    taps = np.zeros((9, 9))
    taps[::2, ::2] = 1 / 25
    dilated = correlate(noisy[0], taps, mode="nearest")
    np.testing.assert_allclose(found["dilated box"](noisy)[0], dilated, atol=1e-5)
    np.testing.assert_allclose(found["interpolated box, 5 x 5"](noisy)[0], box, atol=1e-5)


def test_the_disc_is_the_mean_over_its_polar_samples():
    """On a ramp it is the ramp, on a bowl the mean of the samples' squares is added."""
    rows = np.mgrid[0:41, 0:41][0].astype(np.float32) - 20
    disc = explicit_filters.filters(5, rows[None])["UTB, disc"]
    radii = math.sqrt(10) * np.arange(1, 6) / 5
    ramp = disc(rows[None] / 40)[0]
    np.testing.assert_allclose(ramp[8:-8], rows[8:-8] / 40, atol=1e-5)
    bowl = disc(rows[None] ** 2 / 400)[0]
    # Between pixels, a parabola is interpolated by chords, at most 1/4 above it.
    added = 400 * bowl[20, 20]
    assert (radii**2).mean() / 2 <= added <= (radii**2).mean() / 2 + 0.25


def test_bilateral_is_the_mean_by_distance_and_difference():
    noisy = noisy_photograph(12)
    noise = explicit_filters.estimated_noise(noisy)
    spatial, colour = 1 + 4 * noise, 4 * noise
    reach = math.ceil(2 * spatial)
    at = lambda i, j: noisy[0, min(max(i, 0), 11), min(max(j, 0), 11)]  # noqa: E731
    found = explicit_filters.bilateral(noisy)[0]
    for i, j in [(0, 0), (5, 7), (11, 3)]:
        offsets = [(a, b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
        weights = [
            math.exp(-(a * a + b * b) / (2 * spatial**2))
            * math.exp(-((at(i + a, j + b) - at(i, j)) ** 2) / (2 * colour**2))
            for a, b in offsets
        ]
        values = [at(i + a, j + b) for a, b in offsets]
        assert found[i, j] == pytest.approx(np.average(values, weights=weights), abs=1e-5)


def test_guided_is_the_mean_of_the_windows_linear_fits():
    """The fit of a window to itself, by ridge regression: the slope costs eps."""
    noisy = noisy_photograph(16).astype(np.float64)
    noise = explicit_filters.estimated_noise(noisy)
    reach, eps = max(1, round(6 * noise)), (4 * noise) ** 2
    found = explicit_filters.guided(noisy)[0]
    for i, j in [(5, 7), (8, 8)]:
        fits = []
        for a in range(i - reach, i + reach + 1):
            for b in range(j - reach, j + reach + 1):
                window = noisy[0, a - reach : a + reach + 1, b - reach : b + reach + 1].ravel()
                rows = np.stack([window, np.ones_like(window)], axis=1)
                penalty = np.diag([len(window) * eps, 0.0])
                slope, level = np.linalg.solve(rows.T @ rows + penalty, rows.T @ window)
                fits.append(slope * noisy[0, i, j] + level)
        assert found[i, j] == pytest.approx(np.mean(fits), abs=1e-12)


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, scores):
    options = ["--size", "32", "--sigmas", "0.1", "--kernel-size", "3"]
    options += ["--photographs", "camera", "moon", "--output", str(tmp_path)]
    main(explicit_filters.ExplicitFilters, options)
    names = list(explicit_filters.filters(3, noisy_photograph()))
    records = json.loads((tmp_path / "results.json").read_text())
    # Geodesic balls are tried on the first photograph only.
    quick = [name for name in names if "UGB" not in name]
    assert [record["run"]["filter"] for record in records] == names + quick
    psnr = {record["run"]["filter"]: record["scores"]["psnr"] for record in records[: len(names)]}
    assert psnr["noisy"] == pytest.approx(20, abs=0.5)
    assert psnr["adapted UTB"] > psnr["noisy"] + 1
    assert psnr["best small box"] >= psnr["box"] - 1e-3
    first, means, each = capsys.readouterr().out.split(":\n\n")[1:4]
    assert "| UTB across | 25.69 |" in first
    assert "| UGB across |" in first
    assert "| filter | PSNR (dB), sigma 0.1 | SSIM, sigma 0.1 |" in means
    assert "| UTB across |" in means
    assert "UGB" not in means + each
    row = f"| camera | 0.1 | {psnr['noisy']:.2f} | {psnr['box']:.2f} | "
    assert row in each
