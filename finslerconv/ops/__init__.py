"""The convolution operators, as functions of tensors.

Each is one function with backends behind it: compiled ones for the CPU (Numba) and CUDA devices
(Triton), and the reference, plain PyTorch, which is their definition. :class:`use_backend` chooses
one; :class:`ConvBackend` and :func:`register_backend` add another.
"""

from finslerconv._head_formula import HeadFormula
from finslerconv.balls import MapName
from finslerconv.ops._aggregation import (
    aggregate,
    aggregation_geometry,
    dcnv3,
    dcnv4,
    level_table,
    ms_deform_attn,
    tap_grid,
)
from finslerconv.ops._aggregation_operator import aggregation_of
from finslerconv.ops._autotune import autotune
from finslerconv.ops._checks import multiplied_dtype
from finslerconv.ops._functions import (
    convolve,
    deform_conv1d,
    deform_conv2d,
    deform_conv3d,
    head_conv2d,
    metric_conv1d,
    metric_conv2d,
    metric_conv3d,
    metric_positions,
)
from finslerconv.ops._geometry import ConvGeometry, PaddingMode
from finslerconv.ops._onnx import aggregation_for_onnx, for_onnx
from finslerconv.ops._operator import convolution_of
from finslerconv.ops._torchvision import replace_torchvision
from finslerconv.ops.backends import (
    Aggregation,
    AggregationBackend,
    AggregationGradients,
    ConvBackend,
    Convolution,
    Gradients,
    Needs,
    Positions,
    current_backend,
    is_compiled,
    memory_format,
    reference,
    register_backend,
    use_backend,
    why_reference,
)

__all__ = [
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
    "metric_conv1d",
    "metric_conv2d",
    "metric_conv3d",
    "head_conv2d",
    "HeadFormula",
    "metric_positions",
    "dcnv3",
    "dcnv4",
    "ms_deform_attn",
    "aggregate",
    "aggregation_geometry",
    "tap_grid",
    "level_table",
    "ConvGeometry",
    "replace_torchvision",
    "PaddingMode",
    "MapName",
    "use_backend",
    "autotune",
    "current_backend",
    "is_compiled",
    "why_reference",
    "multiplied_dtype",
    "register_backend",
    "ConvBackend",
    "Convolution",
    "convolve",
    "Positions",
    "Needs",
    "Gradients",
    "AggregationBackend",
    "Aggregation",
    "AggregationGradients",
    "memory_format",
    "convolution_of",
    "aggregation_of",
    "for_onnx",
    "aggregation_for_onnx",
    "reference",
]
