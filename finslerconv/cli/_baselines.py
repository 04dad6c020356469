"""The usual filters, with which the means over unit balls are compared."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from finslerconv.cli._denoise import Result

Picture = Float[np.ndarray, "channels height width"]


def baselines(noisy: Picture, clean: Picture, noise: float) -> list[Result]:
    """Filter a picture with the best of the small boxes and three filters set by the noise.

    The size of the box is chosen with the clean picture in sight, which no other filter sees: no
    box does better. The factors of the others were chosen on the pictures that
    :class:`MetricOptions` names.
    """
    boxes = [
        Result.of(
            "best small box",
            f"{size} x {size} grid, the best size",
            uniform_filter(noisy, (0, size, size), mode="nearest"),
            clean,
        )
        for size in (3, 5, 7, 9)
    ]
    width = 2.8 * noise**0.5
    weight = 1.8 * noise**1.4
    others: list[tuple[str, str, Callable[[Picture], Picture]]] = [
        (
            "Gaussian",
            f"of deviation {width:.2g} pixels",
            lambda x: gaussian_filter(x, (0, width, width), mode="nearest"),
        ),
        (
            "total variation",
            f"of weight {weight:.2g}",
            lambda x: denoise_tv_chambolle(x, weight=weight, channel_axis=0),
        ),
        (
            "non-local means",
            "patches of 5 x 5 within 13 x 13",
            lambda x: _non_local_means(x, noise),
        ),
    ]
    return [
        max(boxes, key=lambda box: box.score.psnr),
        *(Result.of(name, how, make(noisy), clean) for name, how, make in others),
    ]


def _non_local_means(picture: Picture, noise: float) -> Picture:
    options = {"h": 0.6 * noise, "sigma": noise, "patch_size": 5, "patch_distance": 6}
    if len(picture) == 1:  # with one channel scikit-image returns the transpose
        return denoise_nl_means(picture[0], **options)[None]
    return denoise_nl_means(picture, channel_axis=0, **options)
