"""Distances from sources to every node of a grid, by several methods."""

from finslerconv.geodesics.distances._distance import DistanceMap, distance
from finslerconv.geodesics.distances._heat import Heat
from finslerconv.geodesics.distances._method import (
    DistanceMethod,
    EikonalProblem,
    FinslerProblem,
    Front,
    Seeds,
    register_method,
    window_distances,
)
from finslerconv.geodesics.distances._sources import Curve
from finslerconv.geodesics.distances.fast_marching import FastMarching

__all__ = [
    "Curve",
    "DistanceMap",
    "DistanceMethod",
    "EikonalProblem",
    "FastMarching",
    "FinslerProblem",
    "Front",
    "Heat",
    "Seeds",
    "distance",
    "register_method",
    "window_distances",
]
