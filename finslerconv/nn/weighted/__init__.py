"""Weighted convolution: a kernel multiplied tap by tap with a spatial density.

The second source of the library, Cammarasana and Patanè (arXiv 2505.24558): a density Phi on the
taps changes how a network trains, not what it can compute, and costs nothing at inference.

What is imported ``as`` itself is for the other rooms, not for users.
"""

from finslerconv.nn.weighted._density import (
    Density,
    SeparableDensity,
    TensorDensity,
    paper_profile,
)
from finslerconv.nn.weighted._metric_density import MetricDensity, TrainableRanders
from finslerconv.nn.weighted._models import Folder as Folder
from finslerconv.nn.weighted._models import Weighter as Weighter
from finslerconv.nn.weighted._models import fold, to_weighted
from finslerconv.nn.weighted._models import shared_kernels as shared_kernels
from finslerconv.nn.weighted._models import shared_outside as shared_outside
from finslerconv.nn.weighted._modules import WEIGHTED as WEIGHTED
from finslerconv.nn.weighted._modules import WeightedConv1d, WeightedConv2d, WeightedConv3d
from finslerconv.nn.weighted._parametrize import density_of as density_of
from finslerconv.nn.weighted._parametrize import unweight_convolution, weight_convolution
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
]
