"""The geodesic flow: the exponential map, and its inverse, the logarithm."""

from finslerconv.geodesics.flow._exponential import (
    GeodesicFlow,
    Schedule,
    exponential,
    geodesic_flow,
    shoot,
)
from finslerconv.geodesics.flow._hamiltonian import Grid, grid_metric, grid_table
from finslerconv.geodesics.flow._logarithm import ConvergenceWarning, geodesic, logarithm

__all__ = [
    "ConvergenceWarning",
    "GeodesicFlow",
    "Grid",
    "Schedule",
    "exponential",
    "geodesic",
    "geodesic_flow",
    "grid_metric",
    "grid_table",
    "logarithm",
    "shoot",
]
