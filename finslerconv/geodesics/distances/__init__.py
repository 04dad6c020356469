"""Distances from sources to every node of a grid, by several methods."""

from finslerconv.geodesics.distances._distance import DistanceMap, distance
from finslerconv.geodesics.distances._heat import heat_windows
from finslerconv.geodesics.distances._sources import Curve, Seeds

__all__ = [
    "Curve",
    "DistanceMap",
    "Seeds",
    "distance",
    "heat_windows",
]
