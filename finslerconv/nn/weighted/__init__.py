"""Weighted convolution: a kernel multiplied tap by tap with a spatial density.

The second source of the library, Cammarasana and Patanè (arXiv 2505.24558): a density Phi on the
taps changes how a network trains, not what it can compute, and costs nothing at inference.
"""

from finslerconv.nn.weighted._density import (
    Density,
    DensityLike,
    SeparableDensity,
    TensorDensity,
    paper_profile,
)
from finslerconv.nn.weighted._metric_density import MetricDensity, TrainableRanders
from finslerconv.nn.weighted._models import (
    Folder,
    Weighter,
    fold,
    shared_kernels,
    shared_outside,
    to_weighted,
)
from finslerconv.nn.weighted._modules import (
    WEIGHTED,
    WeightedConv1d,
    WeightedConv2d,
    WeightedConv3d,
)
from finslerconv.nn.weighted._parametrize import (
    density_of,
    unweight_convolution,
    weight_convolution,
)
from finslerconv.nn.weighted._profiles import FreeProfile, GaussianProfile, PowerProfile, Profile
from finslerconv.nn.weighted._search import (
    DensitySearch,
    Evaluation,
    paper_bounds,
    plot_density_search,
    search_density,
)
from finslerconv.nn.weighted._training import density_parameter_groups, load_reference_checkpoint

__all__ = [
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
    # What conversion and the reading of positions share with this package.
    "DensityLike",
    "density_of",
    "WEIGHTED",
    "Weighter",
    "Folder",
    "shared_kernels",
    "shared_outside",
]
