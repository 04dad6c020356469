"""The options of the metric, which the commands share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

#: The least height and width of a picture, in pixels.
SMALLEST: Final = 16

if TYPE_CHECKING:
    from torch import Tensor

    from finslerconv.metrics import Randers


@dataclass(frozen=True)
class MetricOptions:
    """The options of :func:`finslerconv.images.gradient_metric` that the commands offer.

    The defaults are for figures, :meth:`for_noise` is for filters. ``radius`` and the direction of
    the balls are those of "Metric Convolutions" (ICCV 2025). A drift ``tau`` is for show: with
    equal weights, filters are best without.
    """

    radius: float = 3.2
    anisotropy: float = 30.0
    tau: float = 0.3
    smoothing: float = 2.0

    @classmethod
    def for_noise(
        cls,
        noise: float,
        kernel_size: int,
        radius: float | None = None,
        anisotropy: float | None = None,
        tau: float = 0.3,
        smoothing: float | None = None,
    ) -> "MetricOptions":
        """Return options for filters of ``kernel_size`` squared samples; given ones stay.

        The more noise, the larger and rounder the balls and the smoother the derivatives; few
        samples stay near each other. :func:`chosen` refines them on the picture. The rules were
        chosen on ``astronaut``, ``coins``, ``chelsea`` and ``coffee`` of scikit-image, in
        grey, reduced to 128, 256 and 512 pixels, with noise of standard deviation 0.03, 0.1 and
        0.25; not on the default picture.
        """
        noise = min(max(noise, 2e-3), 10.0)
        return cls(
            min(8 * noise**0.7, 0.3 + 0.4 * kernel_size) if radius is None else radius,
            min(2 / noise, 40.0) if anisotropy is None else anisotropy,
            tau,
            min(max(4 * noise**0.4, 0.5), 10.0) if smoothing is None else smoothing,
        )

    # The annotation is a string, since --help imports this module but not PyTorch.
    def of(self, image: "Tensor") -> "Randers":
        """Return the metric of a picture (1, C, H, W): balls and drift along the edges."""
        from finslerconv.images import gradient_metric

        return gradient_metric(
            image,
            scale=self.radius**-2,
            anisotropy=self.anisotropy,
            sigma=self.smoothing,
            tau=self.tau,
            omega="across",
        )
