"""The geodesic flow: the exponential map, and its inverse, the logarithm."""

from finslerconv.geodesics.flow._exponential import GeodesicFlow, exponential, geodesic_flow
from finslerconv.geodesics.flow._grid import (
    Grid,
    grid_metric,
    grid_table,
    in_nodes,
    is_linear,
    tabulated,
)
from finslerconv.geodesics.flow._jacobi import (
    JacobiField,
    conjugate_time,
    first_conjugate,
    jacobi_field,
    parallel_transport,
)
from finslerconv.geodesics.flow._logarithm import ConvergenceWarning, geodesic, logarithm
from finslerconv.geodesics.flow._nodes import NodeField
from finslerconv.geodesics.flow._rays import Schedule, shoot

__all__ = [
    "ConvergenceWarning",
    "GeodesicFlow",
    "Grid",
    "JacobiField",
    "NodeField",
    "Schedule",
    "conjugate_time",
    "exponential",
    "first_conjugate",
    "geodesic",
    "geodesic_flow",
    "grid_metric",
    "grid_table",
    "in_nodes",
    "is_linear",
    "jacobi_field",
    "logarithm",
    "parallel_transport",
    "shoot",
    "tabulated",
]
