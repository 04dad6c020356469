"""The scores of the experiments, against scikit-image's and by hand."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from engine import accuracy, photograph, psnr, ssim, with_noise


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_psnr_and_ssim_are_those_of_scikit_image(sigma, scores):
    clean = photograph("camera", 64)
    noisy = with_noise(clean, sigma, np.random.default_rng(0))
    a, b = (torch.from_numpy(each)[None, None] for each in (noisy, clean))
    assert psnr(a, b) == pytest.approx(
        peak_signal_noise_ratio(clean, noisy, data_range=1), abs=1e-4
    )
    similarity = structural_similarity(clean, noisy, data_range=1, use_sample_covariance=False)
    assert ssim(a, b) == pytest.approx(similarity, abs=2e-5)


def test_accuracy_counts_what_is_right(scores):
    class First(nn.Module):
        def forward(self, x):
            return x[:, :3, 0, 0]

    pictures = torch.zeros(1203, 3, 1, 1)
    labels = torch.arange(1203) % 3
    pictures[torch.arange(1203), labels] = 1
    labels[:401] = (labels[:401] + 1) % 3
    found = accuracy(First(), pictures, labels, torch.device("cpu"))
    assert found == pytest.approx(100 * 802 / 1203, abs=1e-4)


def test_photographs_are_grey_and_of_the_size():
    for name in ("camera", "coffee", "china"):
        picture = photograph(name, 48)
        assert picture.shape == (48, 48)
        assert picture.dtype == np.float32
        assert 0 <= picture.min() < picture.max() <= 1
    assert photograph("coffee").shape == (200, 300)
