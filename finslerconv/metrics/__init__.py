"""Pointwise Finsler geometry: norms, their duals and their unit balls.

A metric is written once against the array API: NumPy, PyTorch, CuPy or JAX arrays in, the same kind
out, on the same device and in the same dtype. Importing this package loads NumPy and nothing else.
"""

from finslerconv.metrics._alpha_beta import AlphaBeta, Kropina, Matsumoto
from finslerconv.metrics._asymmetric_quadratic import AsymmetricQuadratic
from finslerconv.metrics._base import CallableMetric, FinslerMetric, RandersForm, Volume
from finslerconv.metrics._combinators import (
    Dual,
    Maximum,
    PulledBack,
    Reversed,
    Scaled,
    Sum,
    Symmetrized,
)
from finslerconv.metrics._convex_body import Funk, Hilbert
from finslerconv.metrics._euclidean import Euclidean
from finslerconv.metrics._navigation import Navigation
from finslerconv.metrics._one_form import OneFormMetric
from finslerconv.metrics._p_norm import PNorm
from finslerconv.metrics._polytope import Polytope
from finslerconv.metrics._randers import Randers, Zermelo
from finslerconv.metrics._riemannian import Riemannian
from finslerconv.metrics._tabulated import Tabulated
from finslerconv.metrics._tti import TTI

__all__ = [
    "FinslerMetric",
    "Euclidean",
    "Riemannian",
    "Randers",
    "Zermelo",
    "RandersForm",
    "CallableMetric",
    "Volume",
    "OneFormMetric",
    "AsymmetricQuadratic",
    "AlphaBeta",
    "Matsumoto",
    "Kropina",
    "Tabulated",
    "PNorm",
    "Polytope",
    "TTI",
    "Navigation",
    "Funk",
    "Hilbert",
    "Scaled",
    "Reversed",
    "Symmetrized",
    "Dual",
    "Sum",
    "Maximum",
    "PulledBack",
]
