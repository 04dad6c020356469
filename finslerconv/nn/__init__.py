"""PyTorch modules: convolutions that sample unit balls, in the place of ``nn.Conv2d``.

:class:`MetricConv2d` samples the unit balls of metrics that it computes from its input,
:class:`GeodesicConv2d` their unit geodesic balls; :class:`DeformConv2d` and :class:`ShiftedConv2d`
are their relatives without a metric; the weighted convolutions put a density on a kernel's taps.
:func:`convert` puts any of them into a whole model.
"""

from finslerconv.nn import conversion, weighted
from finslerconv.nn._adaptive import AdaptiveConv2d
from finslerconv.nn._geodesic_conv import GeodesicConv2d
from finslerconv.nn._head import MetricHead, metric_penalty
from finslerconv.nn._metric_conv import MetricConv2d
from finslerconv.nn._offset_conv import DeformConv2d, ShiftedConv2d
from finslerconv.nn._parametrization import (
    LDL,
    Cholesky,
    LogEuclidean,
    MatrixParametrization,
    Spectral,
    SpectralScaled,
)
from finslerconv.nn.conversion import *  # noqa: F403 - all that its __all__ names
from finslerconv.nn.weighted import *  # noqa: F403

__all__ = [
    "MetricConv2d",
    "GeodesicConv2d",
    "DeformConv2d",
    "ShiftedConv2d",
    "AdaptiveConv2d",
    "MetricHead",
    "metric_penalty",
    "MatrixParametrization",
    "Cholesky",
    "LDL",
    "Spectral",
    "SpectralScaled",
    "LogEuclidean",
]
__all__ += conversion.__all__
__all__ += weighted.__all__
