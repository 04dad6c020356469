"""The formulas of the metrics and of their unit balls in sympy, with proofs.

The classes have the names and the methods of :mod:`finslerconv.metrics` and
:mod:`finslerconv.balls`, and take matrices of symbols. Every identity among them that the library
relies on is an object that proves itself:

>>> from finslerconv.symbolic import identities
>>> print(identities()["dual_involution"].prove())
dual_involution: proved for d = 1, 2, 3, any

A proof is exact algebra in general symbols under the assumptions that the identity lists, in the
dimensions 1, 2 and 3 and, by theorems on changes of low rank, in any dimension at once.
"""

from finslerconv.symbolic._balls import Ellipse, affine, radial, radial_jacobian, sqrtm
from finslerconv.symbolic._field import MetricField
from finslerconv.symbolic._identity import Equation, Identity, Proof
from finslerconv.symbolic._navigation import Navigation, PNorm
from finslerconv.symbolic._numpy import numpy_function
from finslerconv.symbolic._one_form import AlphaBeta, AsymmetricQuadratic, Kropina, Matsumoto
from finslerconv.symbolic._parameters import Parameters, parameters
from finslerconv.symbolic._randers import Randers, Zermelo
from finslerconv.symbolic._registry import identities
from finslerconv.symbolic._riemannian import Riemannian
from finslerconv.symbolic._simplified import simplified
from finslerconv.symbolic._spaces import (
    funk_ball,
    half_space,
    hilbert_ball,
    klein_ball,
    poincare_ball,
    sphere,
    sphere_by_angles,
)

__all__ = [
    "parameters",
    "Parameters",
    "Riemannian",
    "Randers",
    "Zermelo",
    "AsymmetricQuadratic",
    "AlphaBeta",
    "Matsumoto",
    "Kropina",
    "Navigation",
    "PNorm",
    "MetricField",
    "sphere",
    "sphere_by_angles",
    "half_space",
    "poincare_ball",
    "klein_ball",
    "funk_ball",
    "hilbert_ball",
    "simplified",
    "Ellipse",
    "radial",
    "affine",
    "radial_jacobian",
    "sqrtm",
    "numpy_function",
    "identities",
    "Identity",
    "Equation",
    "Proof",
]
