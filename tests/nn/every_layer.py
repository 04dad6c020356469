"""Every kind of layer of the library, with every kind of density, and ways to make them."""

import torch
from adaptive_layers import GROUPS_ARGUMENT, LINE_AND_SPACE, stirred
from torch import nn

from finslerconv.metrics import Euclidean
from finslerconv.nn import (
    FreeProfile,
    GaussianProfile,
    MetricDensity,
    PowerProfile,
    SeparableDensity,
    TensorDensity,
    TrainableRanders,
    WeightedConv1d,
    WeightedConv2d,
    WeightedConv3d,
    weight_convolution,
)

DENSITIES = {
    "profile": lambda: [0.7],
    "values": lambda: 0.5 + torch.rand(3, 3),
    "separable": lambda: SeparableDensity((3, 3), [0.7], trainable=True, positive=True),
    "tensor": lambda: TensorDensity(0.5 + torch.rand(3, 3), trainable=True),
    "metric": lambda: MetricDensity((3, 3), Euclidean(2), GaussianProfile(1.0)),
    "metric and trained profile": lambda: MetricDensity(
        (3, 3), Euclidean(2), FreeProfile([1.0, 0.5], 2.0, trainable=True)
    ),
    "trained metric": lambda: MetricDensity(
        (3, 3), TrainableRanders(torch.eye(2)), PowerProfile(1.0)
    ),
}

ADAPTIVE = {
    f"{family.__name__}{suffix}": lambda family=family, options=options: stirred(
        family(4, 6, 3, padding=1, **{GROUPS_ARGUMENT[family]: 2, **options})
    )
    for family in GROUPS_ARGUMENT
    for suffix, options in {
        " with modulation": {"modulation": True},
        " of a fixed kernel": {"fixed_kernel": True},
    }.items()
}

WEIGHTED = {
    f"WeightedConv2d by {name}": lambda density=density: WeightedConv2d(
        4, 6, 3, padding=1, density=density()
    )
    for name, density in DENSITIES.items()
} | {
    f"ConvTranspose2d by {name}": lambda density=density: weight_convolution(
        nn.ConvTranspose2d(4, 6, 3, padding=1), density()
    )
    for name, density in DENSITIES.items()
    if name in ("profile", "trained metric")
}

#: Constructors of layers that take inputs (B, 4, H, W).
LAYERS = ADAPTIVE | WEIGHTED

#: Constructors of the layers of other dimensions, and the numbers of axes of their inputs.
OTHER_DIMENSIONS = {
    "WeightedConv1d": (lambda: WeightedConv1d(4, 6, 3, density=[0.7]), 1),
    "WeightedConv3d": (lambda: WeightedConv3d(4, 6, 3, density=[0.7]), 3),
} | {
    family.__name__: (
        lambda family=family: stirred(
            family(4, 6, 3, padding=1, modulation=True, **{LINE_AND_SPACE[family]: 2})
        ),
        family.dims,
    )
    for family in LINE_AND_SPACE
}
