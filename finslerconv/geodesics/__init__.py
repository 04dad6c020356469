"""Metric fields on grids: geodesic distances, geodesics, geodesic balls."""

from finslerconv.geodesics import tensors as tensors
from finslerconv.geodesics._lengths import chord_distance, path_length
from finslerconv.geodesics._paths import minimal_path
from finslerconv.geodesics.balls import InjectivityWarning, StarShapeWarning, geodesic_ball
from finslerconv.geodesics.distances import (
    Curve,
    DistanceMap,
    DistanceMethod,
    EikonalProblem,
    FinslerProblem,
    Front,
    Seeds,
    distance,
    register_method,
)
from finslerconv.geodesics.fields import FunctionMetric, GridMetric, MetricField
from finslerconv.geodesics.flow import (
    ConvergenceWarning,
    GeodesicFlow,
    JacobiField,
    conjugate_time,
    exponential,
    geodesic,
    geodesic_flow,
    jacobi_field,
    logarithm,
    parallel_transport,
)

__all__ = [
    "GridMetric",
    "FunctionMetric",
    "MetricField",
    "distance",
    "DistanceMap",
    "Curve",
    "DistanceMethod",
    "EikonalProblem",
    "FinslerProblem",
    "Seeds",
    "Front",
    "register_method",
    "chord_distance",
    "exponential",
    "geodesic_flow",
    "GeodesicFlow",
    "logarithm",
    "geodesic",
    "ConvergenceWarning",
    "parallel_transport",
    "jacobi_field",
    "JacobiField",
    "conjugate_time",
    "minimal_path",
    "path_length",
    "geodesic_ball",
    "InjectivityWarning",
    "StarShapeWarning",
]
