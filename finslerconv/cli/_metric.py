"""The metric of a picture as the command line has it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from finslerconv.metrics import Randers


@dataclass(frozen=True)
class MetricOptions:
    """The options of :func:`finslerconv.images.gradient_metric` that the commands offer.

    ``radius`` and the direction of the balls are those of "Metric Convolutions" (ICCV 2025).
    ``anisotropy`` and ``smoothing`` were chosen on ``astronaut``, ``coins``, ``chelsea`` and
    ``coffee`` of scikit-image's pictures, with noise of standard deviation 0.1 and 121 samples, not
    on the picture that the commands take by default. ``tau`` is a drift that one sees; with equal
    weights no drift denoises better than none (0.3 costs 0.03 dB on those pictures).
    """

    radius: float = 3.2
    anisotropy: float = 30.0
    tau: float = 0.3
    smoothing: float = 2.0

    # The annotation is a string of PyTorch's: this module is imported by --help, PyTorch is not.
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
