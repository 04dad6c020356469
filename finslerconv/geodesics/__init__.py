"""Metric fields on grids: geodesic distances, geodesics, geodesic balls."""

from finslerconv.geodesics._balls import InjectivityWarning, StarShapeWarning, geodesic_ball
from finslerconv.geodesics._chord import chord_distance
from finslerconv.geodesics._distances import DistanceMap, distance
from finslerconv.geodesics._exponential import GeodesicFlow, exponential, geodesic_flow
from finslerconv.geodesics._grid import FunctionMetric, GridMetric, MetricField
from finslerconv.geodesics._logarithm import ConvergenceWarning, geodesic, logarithm
from finslerconv.geodesics._paths import minimal_path, path_length
from finslerconv.geodesics._sources import Curve

__all__ = [
    "GridMetric",
    "FunctionMetric",
    "MetricField",
    "distance",
    "DistanceMap",
    "Curve",
    "chord_distance",
    "exponential",
    "geodesic_flow",
    "GeodesicFlow",
    "logarithm",
    "geodesic",
    "ConvergenceWarning",
    "minimal_path",
    "path_length",
    "geodesic_ball",
    "InjectivityWarning",
    "StarShapeWarning",
]
