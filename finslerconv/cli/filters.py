"""Filters that remove noise: means over unit balls, the usual filters; scores of pictures.

scikit-image and the geodesics, which take seconds to import, are imported by what needs them.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv.balls import ReferenceSet, concentric, lattice
from finslerconv.cli._options import MetricOptions
from finslerconv.metrics import Randers, Riemannian
from finslerconv.ops import ConvGeometry, deform_conv2d, metric_conv2d

Picture = Float[np.ndarray, "channels height width"]


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

        Some taps at a time, so that large pictures fit in memory; ``advance`` takes their number.
        """
        points = self._points().to(image.device)
        total = torch.zeros_like(image)
        # Odd numbers of taps in a row: their kernel has a centre.
        for part in points.split(self.reference.kernel_shape[-1]):
            weight = image.new_full((image.shape[1], 1, 1, len(part)), 1 / len(points))
            total += self._sum(image, part, weight)
            advance(len(part))
        return total

    def _points(self) -> Tensor:
        return torch.as_tensor(self.reference.points)

    def _sum(self, image: Tensor, points: Tensor, weight: Tensor) -> Tensor:
        M, omega = self.metric.randers_form()
        points = points.to(image.dtype)
        return metric_conv2d(
            image, M, omega, points, weight, padding="same", padding_mode="replicate"
        )


@dataclass(frozen=True)
class GeodesicFilter(BallFilter):
    """The mean over samples of each pixel's unit geodesic ball."""

    steps: int = 16
    """Integration steps of each geodesic; balls along strong edges reach over many pixels."""

    def _points(self) -> Tensor:
        # By angle: samples on one ray share a geodesic.
        points = super()._points()
        return points[torch.atan2(points[:, 0], points[:, 1]).argsort(stable=True)]

    def _sum(self, image: Tensor, points: Tensor, weight: Tensor) -> Tensor:
        positions = self.positions(points)
        taps = ConvGeometry.of(weight.shape[2:]).taps(positions)
        offset = (positions - taps).movedim((-2, -1), (1, 2)).flatten(1, 2)
        padding = (0, len(points) // 2)
        return deform_conv2d(image, offset, weight, padding=padding, padding_mode="replicate")

    def positions(
        self, points: Float[Tensor, "n 2"], centres: Float[Tensor, "m 2"] | None = None
    ) -> Float[Tensor, "1 *centres n 2"]:
        """Return where reference points lie around some pixels, or around all, as displacements."""
        from finslerconv.geodesics.balls import geodesic_positions

        M, omega = self.metric.randers_form()
        return geodesic_positions(M, omega, points, centres=centres, steps=self.steps)


def ball_filters(metric: Randers, kernel_size: int, radius: float) -> list[BallFilter]:
    """Return the filters of ``kernel_size`` x ``kernel_size`` samples, the geodesic one last.

    ``radius`` is that of the isotropic ball, in pixels; ``kernel_size`` is odd.
    """
    k = kernel_size
    reach = k // 2
    # The set most like the box: rings of 8 j samples, of equal areas.
    grid, rings = lattice(k), concentric(k)
    return [
        BallFilter("box", f"{k} x {k} grid", discs(metric, reach), grid),
        BallFilter("dilated box", "the same, dilation 2", discs(metric, 2 * reach), grid),
        BallFilter(
            "isotropic ball",
            f"mean over a disc of radius {radius:.2g}",
            discs(metric, radius),
            rings,
        ),
        BallFilter("Riemannian ball", "ellipses along edges", metric.symmetrize(), rings),
        BallFilter("Randers ball", "the same, shifted along them", metric, rings),
        GeodesicFilter("geodesic ball", "bent with the edges", metric.symmetrize(), rings),
    ]


def mean_over_balls(metric: Riemannian | Randers, kernel_size: int) -> BallFilter:
    """Return the filter that removes noise: the mean over the balls of a metric of a picture."""
    return BallFilter("ball", "ellipses along edges", metric, concentric(kernel_size))


def middle(
    image: Float[Tensor, "1 channels height width"], size: int = 512
) -> Float[Tensor, "1 channels rows columns"]:
    """Return the middle of a large picture, on which options are tried."""
    height, width = image.shape[2:]
    top, left = (max(0, (n - size) // 2) for n in (height, width))
    return image[:, :, top : top + size, left : left + size]


def chosen(
    image: Float[Tensor, "1 channels height width"],
    noise: float,
    kernel_size: int,
    start: MetricOptions,
    free: Collection[str] = ("radius", "anisotropy"),
    advance: Callable[[int], None] = lambda taps: None,
) -> MetricOptions:
    """Return the options whose Riemannian balls are estimated to denoise best.

    Larger balls than those of ``start``, up to the area of the box, and rounder ones are tried on
    the noisy picture, whose smoothness the noise alone does not tell.
    """
    reference = concentric(kernel_size)

    def risk(options: MetricOptions) -> float:
        def apply(picture: Tensor) -> Tensor:
            metric = replace(options, tau=0.0).of(picture).symmetrize()
            return BallFilter("", "", metric, reference)(picture, advance)

        return stein_risk(apply, image, noise)

    best, largest = start, max(start.radius, kernel_size / math.sqrt(math.pi))
    if "radius" in free:
        radii = (min(factor * best.radius, largest) for factor in (1.0, 1.5, 2.25))
        best = min((replace(best, radius=radius) for radius in radii), key=risk)
    if "anisotropy" in free:
        stretches = (factor * best.anisotropy for factor in (1.0, 0.25, 0.0))
        best = min((replace(best, anisotropy=stretch) for stretch in stretches), key=risk)
    return best


def stein_risk(
    apply: Callable[[Tensor], Tensor], noisy: Float[Tensor, "*shape"], noise: float
) -> float:
    """Estimate the mean squared error of a filter without the clean picture.

    Stein's unbiased estimate (1981), with the divergence of the filter from one random change of
    the picture (Ramani and others, IEEE Trans. Image Process. 17, 2008).
    """
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, noisy.shape, generator=generator).to(noisy) - 1
    step = 0.1 * noise
    filtered = apply(noisy)
    follows = (signs * (apply(noisy + step * signs) - filtered)).double().mean() / step
    error = (filtered - noisy).double().square().mean()
    return float(error + noise**2 * (2 * follows - 1))


def discs(metric: Randers, radius: float) -> Riemannian:
    """Return the metric whose balls are discs of a radius in pixels, on the grid of another."""
    identity = torch.eye(2, dtype=metric.M.dtype, device=metric.M.device)
    return Riemannian((identity / radius**2).expand_as(metric.M), validate=False)


@dataclass(frozen=True, eq=False)
class Result:
    """What a filter made of the noisy picture; PSNR in decibels and SSIM to the clean one."""

    name: str
    how: str
    picture: Picture
    psnr: float
    ssim: float

    @classmethod
    def of(cls, name: str, how: str, picture: Picture, clean: Picture) -> "Result":
        """Score a picture against the clean one, both in the range [0, 1]."""
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity

        psnr = peak_signal_noise_ratio(clean, picture, data_range=1.0)
        ssim = structural_similarity(clean, picture, data_range=1.0, channel_axis=0)
        return cls(name, how, picture, float(psnr), float(ssim))


@dataclass(frozen=True)
class PlainFilter:
    """A filter without a metric."""

    name: str
    how: str
    apply: Callable[[Picture], Picture]

    def __call__(self, noisy: Picture) -> Picture:
        """Filter a picture."""
        return self.apply(noisy)


def box(size: int) -> PlainFilter:
    """Return the mean over a square of ``size`` x ``size`` pixels."""
    from scipy.ndimage import uniform_filter

    return PlainFilter(
        "box",
        f"{size} x {size} grid",
        lambda noisy: uniform_filter(noisy, (0, size, size), mode="nearest"),
    )


def usual_filters(noise: float) -> list[PlainFilter]:
    """Return three filters set by the deviation of the noise.

    Their factors were chosen on the pictures that :class:`MetricOptions` names.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import denoise_tv_chambolle

    width = 2.8 * noise**0.5
    weight = 1.8 * noise**1.4
    return [
        PlainFilter(
            "Gaussian",
            f"of deviation {width:.2g} pixels",
            lambda noisy: gaussian_filter(noisy, (0, width, width), mode="nearest"),
        ),
        PlainFilter(
            "total variation",
            f"of weight {weight:.2g}",
            lambda noisy: denoise_tv_chambolle(noisy, weight=weight, channel_axis=0),
        ),
        PlainFilter(
            "non-local means",
            "patches of 5 x 5 within 13 x 13",
            lambda noisy: _non_local_means(noisy, noise),
        ),
    ]


def baselines(noisy: Picture, clean: Picture, noise: float) -> list[Result]:
    """Filter a picture with the best of the small boxes and the usual filters.

    The size of the box is the best for the clean picture, which no other filter sees.
    """
    boxes = [box(size) for size in (3, 5, 7, 9)]
    results = [Result.of(each.name, each.how, each(noisy), clean) for each in boxes]
    best = max(results, key=lambda result: result.psnr)
    best = replace(best, name="best small box", how=f"{best.how}, the best size")
    usual = [Result.of(f.name, f.how, f(noisy), clean) for f in usual_filters(noise)]
    return [best, *usual]


def _non_local_means(picture: Picture, noise: float) -> Picture:
    from skimage.restoration import denoise_nl_means

    options = {"h": 0.6 * noise, "sigma": noise, "patch_size": 5, "patch_distance": 6}
    if len(picture) == 1:  # with one channel scikit-image returns the transpose
        return denoise_nl_means(picture[0], **options)[None]
    return denoise_nl_means(picture, channel_axis=0, **options)


def with_noise(clean: Picture, sigma: float, seed: int) -> Picture:
    """Return the picture with Gaussian noise of standard deviation ``sigma``, not clipped."""
    noise = np.random.default_rng(seed).standard_normal(clean.shape, dtype=np.float32)
    return clean + np.float32(sigma) * noise


def estimated_noise(picture: Picture) -> float:
    """Return the standard deviation of a picture's noise, found from the picture alone.

    The median absolute value of Haar's diagonal details over that of a normal variable (Donoho
    and Johnstone, 1994): edges are few, and fine texture counts as noise.
    """
    rows = picture[:, 1:] - picture[:, :-1]
    details = (rows[..., 1:] - rows[..., :-1]) / 2
    return float(np.median(np.abs(details)) / 0.6745)
