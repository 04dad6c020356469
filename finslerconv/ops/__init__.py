"""The convolution operators, as functions of tensors.

Each is one function with a backend behind it; the reference backend is plain PyTorch, runs on every
device and is differentiable twice.
"""

from finslerconv.ops._deform_conv2d import deform_conv2d
from finslerconv.ops._geometry import ConvGeometry, PaddingMode
from finslerconv.ops._metric_conv2d import MapName, metric_conv2d, metric_positions

__all__ = [
    "deform_conv2d",
    "metric_conv2d",
    "metric_positions",
    "ConvGeometry",
    "PaddingMode",
    "MapName",
]
