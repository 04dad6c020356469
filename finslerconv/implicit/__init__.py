"""Convolutions read as metrics: from a layer's sampling positions to the metric they imply.

:func:`implicit_metric` does all for a layer or a model; the other functions are its steps.
"""

from finslerconv.implicit._fit import Misfit, ObjectiveName, RandersFit, fit_randers
from finslerconv.implicit._heads import OffsetHead, offset_heads
from finslerconv.implicit._health import OffsetHealth, offset_health
from finslerconv.implicit._implicit import ImplicitMetric, implicit_metric, metric_of_positions
from finslerconv.implicit._layers import AdaptiveLayer, find_adaptive_layers
from finslerconv.implicit._positions import KernelPositions
from finslerconv.implicit._readers import (
    Positioned,
    kernel_positions,
    level_positions,
    register_positions,
)
from finslerconv.implicit._summary import MetricSummary

__all__ = [
    "implicit_metric",
    "ImplicitMetric",
    "metric_of_positions",
    "MetricSummary",
    "kernel_positions",
    "level_positions",
    "KernelPositions",
    "Positioned",
    "register_positions",
    "find_adaptive_layers",
    "AdaptiveLayer",
    "offset_health",
    "OffsetHealth",
    "offset_heads",
    "OffsetHead",
    "fit_randers",
    "RandersFit",
    "Misfit",
    "ObjectiveName",
]
