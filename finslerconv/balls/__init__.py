"""Unit balls: point sets of the Euclidean ball, the maps into a metric's ball, closed forms.

Everything takes and returns NumPy, PyTorch, CuPy or JAX arrays, as :mod:`finslerconv.metrics`.
"""

from finslerconv.balls._ellipse import Ellipse
from finslerconv.balls._maps import BallMap, MapName, affine, ball_map, radial
from finslerconv.balls._measure import overlap, volume
from finslerconv.balls._reference import (
    ReferenceSet,
    concentric,
    fibonacci_ball,
    lattice,
    polar,
    radius,
    reference_set,
    sunflower,
)

__all__ = [
    "ReferenceSet",
    "lattice",
    "concentric",
    "polar",
    "sunflower",
    "fibonacci_ball",
    "reference_set",
    "radius",
    "BallMap",
    "MapName",
    "radial",
    "affine",
    "ball_map",
    "Ellipse",
    "volume",
    "overlap",
]
