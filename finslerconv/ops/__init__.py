"""The convolution operators, as functions of tensors.

Each is one function with backends behind it: compiled ones for the CPU (Numba) and CUDA devices
(Triton), and the reference, plain PyTorch, which is their definition. See :class:`use_backend`.
"""

from finslerconv.ops._autotune import autotune
from finslerconv.ops._backend import Backend, current_backend, use_backend
from finslerconv.ops._deform_conv2d import deform_conv2d
from finslerconv.ops._geometry import ConvGeometry, PaddingMode
from finslerconv.ops._metric_conv2d import metric_conv2d
from finslerconv.ops._positions import MapName, metric_positions

__all__ = [
    "deform_conv2d",
    "metric_conv2d",
    "metric_positions",
    "use_backend",
    "autotune",
    "current_backend",
    "Backend",
    "ConvGeometry",
    "PaddingMode",
    "MapName",
]
