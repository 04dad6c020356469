"""Filters on noisy photographs: means over the unit balls of gradient metrics, and what others use.

The comparison of "Metric Convolutions" (ICCV 2025) on more photographs and more noise. All means
are of k x k samples of equal weight. They sample

- fixed balls: the box, the dilated box, a small box between the pixels, a disc;
- unit tangent balls (UTB) of the metric of the noisy picture's Sobel gradient, with the paper's
  parameters, stretched along the gradient or across it, with a one-form of length tau;
- unit geodesic balls (UGB) of such a metric;
- "adapted" balls, whose metric suits the noise, estimated from the picture: ``finslerconv denoise``
  uses them.

Beside them are filters that are no means of equal weights. Their parameters and those of the
adapted balls follow from the noise by rules that were chosen on other photographs. The best small
box is chosen by the clean picture.

    python examples/experiments/explicit_filters.py --quick   # a quarter of a minute
    python examples/experiments/explicit_filters.py           # some minutes on one core
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter
from torch import Tensor

from engine import (
    Column,
    Experiment,
    Known,
    Record,
    Run,
    Scores,
    Trainer,
    main,
    photograph,
    psnr,
    setting,
    ssim,
    summary,
    with_noise,
)
from finslerconv.balls import ReferenceSet, concentric, lattice, polar
from finslerconv.cli.filters import (
    BallFilter,
    GeodesicFilter,
    MetricOptions,
    box,
    chosen,
    discs,
    estimated_noise,
    usual_filters,
)
from finslerconv.images import gradient_metric
from finslerconv.metrics import Randers, Riemannian
from finslerconv.plotting import Zoom, side_by_side

#: A filter of a noisy picture (1, height, width).
Filter = Callable[[np.ndarray], np.ndarray]

#: The published code on a camera man of 256 x 256 pixels, sigma = 0.1, k = 11: PSNR in dB.
PUBLISHED = {
    "noisy": "19.95",
    "box": "19.32",
    "dilated box": "15.94",
    "interpolated box, 5 x 5": "22.54",
    "UTB, disc": "23.09",
    "UTB along": "25.35",
    "UTB across": "25.69",
    "UTB across, omega across, tau 0.5": "25.64",
    "UTB across, omega across, tau 0.9": "25.44",
}

#: The filters in the table of every photograph.
COMPARED = ("noisy", "box", "UTB, disc", "UTB across", "adapted UTB", "best small box")

#: The filters in the picture of results.
SHOWN = (
    "noisy",
    "box",
    "best small box",
    "UTB, disc",
    "UTB along",
    "UTB across",
    "UGB across",
    "adapted UTB",
    "non-local means",
)


def over_balls(
    metric_of: Callable[[Tensor], Riemannian | Randers],
    samples: ReferenceSet,
    kind: type[BallFilter] = BallFilter,
) -> Filter:
    """Return the mean over samples of the balls of a metric that is computed from the picture."""

    def apply(noisy: np.ndarray) -> np.ndarray:
        picture = torch.from_numpy(noisy)[None]
        return kind("", "", metric_of(picture), samples)(picture)[0].numpy()

    return apply


#: The metric of the paper's filters.
sobel_metric = partial(gradient_metric, derivative="sobel", sigma=0.0)


def adapted_metric(noisy: Tensor, k: int) -> Riemannian:
    """Return the metric of which ``finslerconv denoise`` takes the balls of k x k samples."""
    noise = estimated_noise(noisy[0].numpy())
    options = chosen(noisy, noise, k, MetricOptions.for_noise(noise, k, tau=0.0))
    return options.of(noisy).symmetrize()


def bilateral(noisy: np.ndarray) -> np.ndarray:
    """Weigh pixels by distance and difference (Tomasi and Manduchi, 1998).

    scikit-image 0.26 has this filter with its spatial weights in wrong places.
    """
    noise, picture = estimated_noise(noisy), noisy[0]
    spatial, colour = 1 + 4 * noise, 4 * noise
    reach = math.ceil(2 * spatial)
    height, width = picture.shape
    wide = np.pad(picture, reach, mode="edge")
    total, weights = np.zeros_like(picture), np.zeros_like(picture)
    for i in range(2 * reach + 1):
        for j in range(2 * reach + 1):
            other = wide[i : i + height, j : j + width]
            square = ((i - reach) ** 2 + (j - reach) ** 2) / spatial**2
            weight = np.exp(-(square + ((other - picture) / colour) ** 2) / 2)
            total += weight * other
            weights += weight
    return (total / weights)[None]


def guided(noisy: np.ndarray) -> np.ndarray:
    """Fit the picture by a linear function of itself in each window (He et al., 2013)."""
    noise, picture = estimated_noise(noisy), noisy[0]
    mean = partial(uniform_filter, size=2 * max(1, round(6 * noise)) + 1, mode="nearest")
    centre = mean(picture)
    variance = mean(picture**2) - centre**2
    slope = variance / (variance + (4 * noise) ** 2)
    return (mean(slope) * picture + mean((1 - slope) * centre))[None]


def usual(noisy: np.ndarray, name: str) -> np.ndarray:
    """Apply one of the usual filters of ``finslerconv denoise``."""
    filters = usual_filters(estimated_noise(noisy))
    return next(each for each in filters if each.name == name)(noisy)


def filters(k: int, clean: np.ndarray) -> dict[str, Filter]:
    """Return all filters, those of ``k`` x ``k`` samples first, by name."""

    def square(radius: float) -> Filter:
        return over_balls(lambda noisy: discs(gradient_metric(noisy), radius), lattice(k))

    def tangent(**options: Any) -> Filter:
        return over_balls(partial(sobel_metric, **{"anisotropy": 100.0, **options}), polar(k, k))

    def geodesic(stretch: str) -> Filter:
        metric = partial(sobel_metric, anisotropy=10.0, scale=1.0, stretch=stretch)
        samples = polar(k, k)
        return over_balls(lambda noisy: metric(noisy).symmetrize(), samples, GeodesicFilter)

    def best_small_box(noisy: np.ndarray) -> np.ndarray:
        results = [box(size)(noisy) for size in (3, 5, 7, 9)]
        return min(results, key=lambda result: float(((result - clean) ** 2).mean()))

    found: dict[str, Filter] = {
        "noisy": lambda noisy: noisy,
        "box": square(k // 2),
        "dilated box": square(2 * (k // 2)),
        "interpolated box, 5 x 5": square(2),
        "UTB, disc": tangent(anisotropy=0.0),
    }
    for stretch in ("along", "across"):
        found[f"UTB {stretch}"] = tangent(stretch=stretch)
        for omega in ("along", "across"):
            for tau in (0.5, 0.9):
                name = f"UTB {stretch}, omega {omega}, tau {tau}"
                found[name] = tangent(stretch=stretch, omega=omega, tau=tau)
    metric = partial(adapted_metric, k=k)
    return found | {
        "UGB along": geodesic("along"),
        "UGB across": geodesic("across"),
        "adapted UTB": over_balls(metric, concentric(k)),
        "adapted UGB": over_balls(metric, concentric(k), GeodesicFilter),
        "best small box": best_small_box,
        "Gaussian": partial(usual, name="Gaussian"),
        "bilateral": bilateral,
        "guided": guided,
        "total variation": partial(usual, name="total variation"),
        "non-local means": partial(usual, name="non-local means"),
    }


@dataclass(frozen=True)
class ExplicitFilters(Experiment):
    """Filters on noisy photographs: means over unit balls, and what others use."""

    name = "explicit_filters"

    photographs: tuple[str, ...] = setting(
        ("camera", "rocket", "china", "flower", "brick", "moon"),
        "of scikit-image and scikit-learn",
        quick=("camera",),
    )
    size: int = setting(256, "height and width in pixels", quick=96)
    sigmas: tuple[float, ...] = setting((0.1, 0.3, 0.5), "deviations of the noise", quick=(0.1,))
    kernel_size: int = setting(11, "boxes and balls have this many samples squared; odd")

    def runs(self) -> list[Run]:
        """Return every filter on every photograph with every noise.

        Geodesic balls, which would take most of the time, see the first photograph and noise.
        """
        first = (self.photographs[0], self.sigmas[0])
        names = filters(self.kernel_size, np.zeros(0))
        return [
            {
                "filter": name,
                "photograph": photograph,
                "sigma": sigma,
                "size": self.size,
                "kernel_size": self.kernel_size,
            }
            for photograph in self.photographs
            for sigma in self.sigmas
            for name in names
            if "UGB" not in name or (photograph, sigma) == first
        ]

    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Filter a photograph; the time is without what is compiled at the first call."""
        clean, noisy = pictures(run["photograph"], run["size"], run["sigma"])
        apply = filters(run["kernel_size"], clean)[run["filter"]]
        if run["filter"] != "best small box":
            apply(noisy[:, :32, :32])
        start = time.process_time()
        filtered = apply(noisy)
        seconds = time.process_time() - start
        pair = torch.from_numpy(filtered)[None], torch.from_numpy(clean)[None]
        return {"psnr": psnr(*pair), "ssim": ssim(*pair), "seconds": seconds}

    def table(self, records: Sequence[Record]) -> str:
        """Return three tables.

        The first photograph with the paper's figures; means over the photographs; and, for each
        photograph, adapted balls beside balls and boxes that do not adapt.
        """
        first = {"photograph": self.photographs[0], "sigma": self.sigmas[0]}
        of_first = [
            Known("published code, PSNR (dB)", lambda run: PUBLISHED.get(run["filter"], "")),
            Column("PSNR (dB)", "psnr"),
            Column("SSIM", "ssim", ".3f"),
            Column("time (s of CPU)", "seconds"),
        ]
        columns = [
            Column(f"{title}, sigma {sigma}", key, form, {"sigma": sigma}, spread=False)
            for title, key, form in (("PSNR (dB)", "psnr", ".2f"), ("SSIM", "ssim", ".3f"))
            for sigma in self.sigmas
        ]
        numbers = Counter(record["filter"] for record in records)
        everywhere = [
            record for record in records if numbers[record["filter"]] == max(numbers.values())
        ]
        compared = [
            Column(f"{name}, PSNR (dB)", "psnr", where={"filter": name}, spread=False)
            for name in COMPARED
        ]
        return "\n\n".join(
            [
                f"{first['photograph']}, sigma {first['sigma']}:",
                summary([r for r in records if r.matches(first)], ["filter"], of_first),
                f"Means over {', '.join(self.photographs)}:",
                summary(everywhere, ["filter"], columns),
                "Every photograph:",
                summary(everywhere, ["photograph", "sigma"], compared),
            ]
        )

    def plot(self, records: Sequence[Record]) -> Figure:
        """Show what some filters make of the first photograph."""
        clean, noisy = pictures(self.photographs[0], self.size, self.sigmas[0])
        made = filters(self.kernel_size, clean)
        shown = [made[name](noisy) for name in SHOWN]
        scores = [psnr(*(torch.from_numpy(each)[None] for each in (p, clean))) for p in shown]
        captions = [f"{name}, {score:.2f} dB" for name, score in zip(SHOWN, scores, strict=True)]
        zoom = Zoom(*(round(self.size * part) for part in (0.12, 0.35, 0.3, 0.3)))
        return side_by_side([*shown, clean], [*captions, "the original"], zoom=zoom, columns=5)


def pictures(name: str, size: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph without and with noise, (1, height, width)."""
    clean = photograph(name, size)[None]
    return clean, with_noise(clean, sigma, np.random.default_rng(0))


if __name__ == "__main__":
    main(ExplicitFilters)
