"""PyTorch modules: convolutions that sample unit balls, in the place of ``nn.Conv2d``."""

from finslerconv.nn._head import MetricHead, metric_penalty
from finslerconv.nn._metric_conv import MetricConv2d
from finslerconv.nn._parametrization import (
    LDL,
    Cholesky,
    LogEuclidean,
    MatrixParametrization,
    Spectral,
    SpectralScaled,
)

__all__ = [
    "MetricConv2d",
    "MetricHead",
    "metric_penalty",
    "MatrixParametrization",
    "Cholesky",
    "LDL",
    "Spectral",
    "SpectralScaled",
    "LogEuclidean",
]
