"""Filters of equal weights, each the samples of a unit ball, and how well they denoise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from finslerconv.balls import ReferenceSet, lattice, polar
from finslerconv.geodesics._balls import geodesic_positions
from finslerconv.metrics import Randers, Riemannian
from finslerconv.ops import ConvGeometry, deform_conv2d, metric_conv2d


@dataclass(frozen=True)
class BallFilter:
    """The mean over samples of each pixel's unit ball."""

    name: str
    samples: str
    metric: Riemannian | Randers
    reference: ReferenceSet

    def __call__(
        self,
        image: Float[Tensor, "1 channels height width"],
        advance: Callable[[int], None] = lambda taps: None,
    ) -> Float[Tensor, "1 channels height width"]:
        """Filter a picture, held constant beyond its border.

        Some taps at a time, so that large pictures fit in memory; ``advance`` hears how many.
        """
        omega = self.metric.omega if isinstance(self.metric, Randers) else None
        points = torch.as_tensor(self.reference.points, dtype=image.dtype, device=image.device)
        channels = image.shape[1]
        total = torch.zeros_like(image)
        # Odd numbers of taps in a row: their kernel has a centre.
        for part in points.split(self.reference.kernel_shape[-1]):
            weight = image.new_full((channels, 1, 1, len(part)), 1 / len(points))
            total += metric_conv2d(
                image,
                self.metric.M,
                omega,
                part,
                weight,
                padding="same",
                padding_mode="replicate",
            )
            advance(len(part))
        return total


@dataclass(frozen=True)
class GeodesicFilter(BallFilter):
    """The mean over samples of each pixel's unit geodesic ball.

    The samples are those of ``polar(k, k)``: ``k`` rings of ``k`` samples on ``k`` rays.
    """

    steps: int = 16
    """Integration steps of each geodesic; balls along strong edges reach over many pixels."""

    def __call__(
        self,
        image: Float[Tensor, "1 channels height width"],
        advance: Callable[[int], None] = lambda taps: None,
    ) -> Float[Tensor, "1 channels height width"]:
        """Filter a picture, held constant beyond its border, one ray of every ball at a time."""
        points = torch.as_tensor(self.reference.points, device=image.device)
        channels = image.shape[1]
        total = torch.zeros_like(image)
        rays = self.reference.kernel_shape[-1]
        for ray in range(rays):
            part = points[ray::rays]
            positions = self.positions(part)
            weight = image.new_full((channels, 1, 1, len(part)), 1 / len(points))
            taps = ConvGeometry.of(weight.shape[2:]).taps(positions)
            total += deform_conv2d(
                image,
                (positions - taps).movedim((-2, -1), (1, 2)).flatten(1, 2),
                weight,
                padding=(0, len(part) // 2),
                padding_mode="replicate",
            )
            advance(len(part))
        return total

    def positions(
        self, points: Float[Tensor, "n 2"], centres: Float[Tensor, "m 2"] | None = None
    ) -> Float[Tensor, "1 *centres n 2"]:
        """Return where reference points lie around some pixels, or around all, as displacements."""
        omega = self.metric.omega if isinstance(self.metric, Randers) else None
        return geodesic_positions(self.metric.M, omega, points, centres=centres, steps=self.steps)


def ball_filters(metric: Randers, kernel_size: int, radius: float) -> list[BallFilter]:
    """Return the filters of ``kernel_size`` x ``kernel_size`` samples, ``kernel_size`` odd.

    The last is the geodesic one.

    ``radius`` is that of the isotropic ball, in pixels.
    """
    k = kernel_size
    reach = k // 2
    grid, rays = lattice(k), polar(k, k)
    return [
        BallFilter("box", f"{k} x {k} grid", _discs(metric, reach), grid),
        BallFilter("dilated box", f"{k} x {k} grid, dilation 2", _discs(metric, 2 * reach), grid),
        BallFilter("isotropic ball", f"disc of radius {radius:g}", _discs(metric, radius), rays),
        BallFilter("Riemannian ball", "ellipses along edges", metric.symmetrize(), rays),
        BallFilter("Randers ball", "the same, shifted along them", metric, rays),
        GeodesicFilter("geodesic ball", "bent with the edges", metric.symmetrize(), rays),
    ]


def _discs(metric: Randers, radius: float) -> Riemannian:
    """Return the metric whose balls are discs, on the same grid."""
    identity = torch.eye(2, dtype=metric.M.dtype, device=metric.M.device)
    return Riemannian((identity / radius**2).expand_as(metric.M), validate=False)


@dataclass(frozen=True)
class Score:
    """How near a picture is to the clean one: PSNR in decibels, and SSIM."""

    psnr: float
    ssim: float

    @classmethod
    def of(
        cls,
        picture: Float[np.ndarray, "channels height width"],
        clean: Float[np.ndarray, "channels height width"],
    ) -> "Score":
        """Compare pictures whose range is [0, 1]."""
        return cls(
            float(peak_signal_noise_ratio(clean, picture, data_range=1.0)),
            float(structural_similarity(clean, picture, data_range=1.0, channel_axis=0)),
        )


def with_noise(
    clean: Float[np.ndarray, "channels height width"], sigma: float, seed: int
) -> Float[np.ndarray, "channels height width"]:
    """Return the picture with Gaussian noise of standard deviation ``sigma``, not clipped."""
    noise = np.random.default_rng(seed).standard_normal(clean.shape, dtype=np.float32)
    return clean + np.float32(sigma) * noise
