"""PyTorch modules: convolutions that sample unit balls, in place of ``nn.Conv2d``.

:class:`MetricConv2d` samples the unit balls of metrics that it computes from its input,
:class:`GeodesicConv2d` their unit geodesic balls; :class:`DeformConv2d` and :class:`ShiftedConv2d`
are their relatives without a metric; the weighted convolutions put a density on a kernel's taps.
:class:`MetricConv1d`, :class:`MetricConv3d`, :class:`DeformConv1d` and :class:`DeformConv3d` are
for sequences and volumes.
:func:`convert` puts any of them into a whole model.
"""

from finslerconv._parametrization import (
    LDL,
    Cholesky,
    LogEuclidean,
    MatrixParametrization,
    Spectral,
    SpectralScaled,
)
from finslerconv.nn._adaptive import (
    AdaptiveConv,
    AdaptiveConv1d,
    AdaptiveConv2d,
    AdaptiveConv3d,
)
from finslerconv.nn._aggregation import DCNv3, DCNv4, Samples
from finslerconv.nn._attention import (
    MSDeformAttn,
    MSDeformAttnCore,
    MultiScaleDeformableAttention,
    TransformersDeformAttn,
)
from finslerconv.nn._geodesic_conv import GeodesicConv2d
from finslerconv.nn._given_offset_conv import DeformAlign2d, GivenOffsetConv2d
from finslerconv.nn._head import MetricHead, metric_penalty
from finslerconv.nn._metric_conv import MetricConv1d, MetricConv2d, MetricConv3d
from finslerconv.nn._offset_conv import DeformConv1d, DeformConv2d, DeformConv3d, ShiftedConv2d
from finslerconv.nn.conversion import (
    Conversion,
    ConversionReport,
    Converted,
    Cost,
    LeftAlone,
    LoadedCheckpoint,
    Selection,
    convert,
    convert_back,
    convert_resnet,
    load_deformable_checkpoint,
    select,
)
from finslerconv.nn.weighted import (
    Density,
    DensitySearch,
    Evaluation,
    FreeProfile,
    GaussianProfile,
    MetricDensity,
    PowerProfile,
    Profile,
    SeparableDensity,
    TensorDensity,
    TrainableRanders,
    WeightedConv1d,
    WeightedConv2d,
    WeightedConv3d,
    density_parameter_groups,
    fold,
    load_reference_checkpoint,
    paper_bounds,
    paper_profile,
    plot_density_search,
    search_density,
    to_weighted,
    unweight_convolution,
    weight_convolution,
)

__all__ = [
    "MetricConv1d",
    "MetricConv2d",
    "MetricConv3d",
    "GeodesicConv2d",
    "DeformConv1d",
    "DeformConv2d",
    "DeformConv3d",
    "GivenOffsetConv2d",
    "DeformAlign2d",
    "ShiftedConv2d",
    "DCNv3",
    "DCNv4",
    "MSDeformAttn",
    "MultiScaleDeformableAttention",
    "TransformersDeformAttn",
    "MSDeformAttnCore",
    "Samples",
    "AdaptiveConv",
    "AdaptiveConv1d",
    "AdaptiveConv2d",
    "AdaptiveConv3d",
    "MetricHead",
    "metric_penalty",
    "MatrixParametrization",
    "Cholesky",
    "LDL",
    "Spectral",
    "SpectralScaled",
    "LogEuclidean",
    "convert",
    "select",
    "convert_back",
    "convert_resnet",
    "load_deformable_checkpoint",
    "LoadedCheckpoint",
    "Conversion",
    "ConversionReport",
    "Converted",
    "LeftAlone",
    "Cost",
    "Selection",
    "WeightedConv1d",
    "WeightedConv2d",
    "WeightedConv3d",
    "Density",
    "SeparableDensity",
    "TensorDensity",
    "MetricDensity",
    "Profile",
    "GaussianProfile",
    "PowerProfile",
    "FreeProfile",
    "TrainableRanders",
    "paper_profile",
    "weight_convolution",
    "unweight_convolution",
    "to_weighted",
    "fold",
    "density_parameter_groups",
    "load_reference_checkpoint",
    "search_density",
    "DensitySearch",
    "Evaluation",
    "paper_bounds",
    "plot_density_search",
]
