"""PSNR, SSIM and accuracy, by torchmetrics, which is imported when a score is wanted."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from engine.data import Picture, with_noise
from engine.records import Scores

Pictures = Float[Tensor, "batch channels height width"]


def psnr(picture: Pictures, clean: Pictures) -> float:
    """Return the peak signal-to-noise ratio in decibels; pictures are in [0, 1]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(picture, clean, data_range=1.0))


def ssim(picture: Pictures, clean: Pictures) -> float:
    """Return the mean structural similarity of all windows of 7 x 7 pixels within the pictures.

    The windows are those of scikit-image's function, which estimates variances by n - 1 = 48.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(
        picture, clean, gaussian_kernel=False, kernel_size=7, data_range=1.0, return_full_image=True
    )[1]
    return float(similarity[..., 3:-3, 3:-3].mean())


@torch.no_grad()
def validate(
    model: torch.nn.Module, pictures: Sequence[Picture], sigma: float, device: torch.device
) -> Scores:
    """Return the mean PSNR (dB) and SSIM of denoised pictures, with one fixed noise."""
    model.eval()
    generator = np.random.default_rng(10_000)
    scores = []
    for picture in pictures:
        noisy = torch.from_numpy(with_noise(picture, sigma, generator)).to(device)
        denoised = model(noisy[None, None]).clamp(0, 1).cpu()
        clean = torch.from_numpy(picture.copy())[None, None]
        scores.append((psnr(denoised, clean), ssim(denoised, clean)))
    means = np.mean(scores, axis=0)
    return {"psnr": float(means[0]), "ssim": float(means[1])}


@torch.no_grad()
def accuracy(
    model: torch.nn.Module,
    pictures: Pictures,
    labels: Int[Tensor, " batch"],
    device: torch.device,
) -> float:
    """Return the share of pictures that a classifier gets right, in percent."""
    from torchmetrics.functional.classification import multiclass_accuracy

    model.eval()
    logits = torch.cat([model(part.to(device)).cpu() for part in pictures.split(500)])
    right = multiclass_accuracy(logits, labels, logits.shape[1], average="micro")
    return 100 * float(right)
