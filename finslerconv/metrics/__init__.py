"""Pointwise Finsler geometry: norms, their duals and their unit balls.

A metric is written once against the array API: NumPy, PyTorch, CuPy or JAX arrays in, the same kind
out, on the same device and in the same dtype. Importing this package loads NumPy and nothing else.
"""

from finslerconv.metrics._alpha_beta import AlphaBeta, Kropina, Matsumoto
from finslerconv.metrics._asymmetric_quadratic import AsymmetricQuadratic
from finslerconv.metrics._base import CallableMetric, FinslerMetric, RandersForm, Volume
from finslerconv.metrics._euclidean import Euclidean
from finslerconv.metrics._one_form import OneFormMetric
from finslerconv.metrics._randers import Randers, Zermelo
from finslerconv.metrics._riemannian import Riemannian

__all__ = [
    "FinslerMetric",
    "Euclidean",
    "Riemannian",
    "Randers",
    "Zermelo",
    "RandersForm",
    "Volume",
    "OneFormMetric",
    "AsymmetricQuadratic",
    "AlphaBeta",
    "Matsumoto",
    "Kropina",
    "CallableMetric",
]
