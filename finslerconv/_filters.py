"""Gaussian and Sobel filters of pictures that have been continued beyond their borders.

The result of a filter is smaller than its input, by the filter's radius on every side. A picture
is continued once, by :func:`continued`, so that a chain of filters sees one picture.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from finslerconv import _parts

Padding = Literal["reflect", "replicate"]
"""How a picture goes on beyond its border: mirrored at its outermost pixels, or held constant."""

SOBEL_RADIUS = 1


def continued(
    image: Float[Tensor, "batch channels height width"], margin: int, padding: Padding
) -> Float[Tensor, "batch channels tall wide"]:
    """Return the picture with ``margin`` pixels more on every side, however small it is."""
    _parts.look(margin)
    for axis in (-2, -1):
        # torch's own padding refuses to mirror a picture smaller than the margin.
        index = _continued_index(image.shape[axis], margin, padding)
        image = image.index_select(axis, torch.tensor(index, device=image.device))
    return image


def gaussian_radius(sigma: float) -> int:
    """Return the radius in pixels of the filters of standard deviation ``sigma``."""
    return math.ceil(4 * sigma)


def smooth(
    image: Float[Tensor, "batch channels tall wide"], sigma: float
) -> Float[Tensor, "batch channels height width"]:
    """Return the picture convolved with a Gaussian of standard deviation ``sigma`` pixels."""
    if sigma == 0:
        return image
    kernel = _gaussian(sigma)
    return _correlate(_correlate(image, kernel, -2), kernel, -1)


def gaussian_gradient(
    image: Float[Tensor, "batch channels tall wide"], sigma: float
) -> Float[Tensor, "batch channels height width 2"]:
    """Return the derivatives of the smoothed picture, along the rows' axis and the columns'."""
    return _gradient(image, _gaussian(sigma), _gaussian_slope(sigma))


def gaussian_hessian(
    image: Float[Tensor, "batch channels tall wide"], sigma: float
) -> Float[Tensor, "batch channels height width 2 2"]:
    """Return the second derivatives of the smoothed picture."""
    kernel, slope, bend = _gaussian(sigma), _gaussian_slope(sigma), _gaussian_bend(sigma)
    down = _correlate(_correlate(image, bend, -2), kernel, -1)
    mixed = _correlate(_correlate(image, slope, -2), slope, -1)
    right = _correlate(_correlate(image, kernel, -2), bend, -1)
    rows = torch.stack((down, mixed), dim=-1), torch.stack((mixed, right), dim=-1)
    return torch.stack(rows, dim=-2)


def sobel_gradient(
    image: Float[Tensor, "batch channels tall wide"],
) -> Float[Tensor, "batch channels height width 2"]:
    """Return Sobel's derivatives, divided by 8: those of a ramp are its slopes."""
    return _gradient(image, [0.25, 0.5, 0.25], [-0.5, 0.0, 0.5])


def _gradient(image: Tensor, kernel: list[float], slope: list[float]) -> Tensor:
    down = _correlate(_correlate(image, slope, -2), kernel, -1)
    right = _correlate(_correlate(image, slope, -1), kernel, -2)
    return torch.stack((down, right), dim=-1)


def _gaussian(sigma: float) -> list[float]:
    samples = [math.exp(-((i / sigma) ** 2) / 2) for i in _offsets(sigma)]
    return [sample / sum(samples) for sample in samples]


def _gaussian_slope(sigma: float) -> list[float]:
    # Scaled so that the derivative of a ramp is its slope, for every sigma.
    samples = [i * math.exp(-((i / sigma) ** 2) / 2) for i in _offsets(sigma)]
    total = sum(i * sample for i, sample in zip(_offsets(sigma), samples, strict=True))
    return [sample / total for sample in samples]


def _gaussian_bend(sigma: float) -> list[float]:
    # Of sum 0, and scaled so that the second derivative of x^2 / 2 is 1, for every sigma.
    samples = _gaussian(sigma)
    offsets = list(_offsets(sigma))
    spread = sum(i * i * sample for i, sample in zip(offsets, samples, strict=True))
    bend = [(i * i - spread) * sample for i, sample in zip(offsets, samples, strict=True)]
    total = sum(i * i * each for i, each in zip(offsets, bend, strict=True)) / 2
    return [each / total for each in bend]


def _offsets(sigma: float) -> range:
    radius = gaussian_radius(sigma)
    return range(-radius, radius + 1)


def _correlate(image: Tensor, kernel: list[float], axis: int) -> Tensor:
    batch, channels, *size = image.shape
    weight = torch.tensor(kernel, dtype=image.dtype, device=image.device)
    shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
    result = functional.conv2d(image.reshape(batch * channels, 1, *size), weight.reshape(shape))
    return result.reshape(batch, channels, *result.shape[-2:])


def _continued_index(size: int, margin: int, padding: Padding) -> list[int]:
    positions = range(-margin, size + margin)
    if padding == "replicate":
        return [min(max(i, 0), size - 1) for i in positions]
    period = max(1, 2 * (size - 1))
    return [min(i % period, period - i % period) if size > 1 else 0 for i in positions]
