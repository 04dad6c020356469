"""Metric fields on grids and by functions, and how positions and arrays are read."""

from finslerconv.geodesics.fields._function import FunctionMetric
from finslerconv.geodesics.fields._grid import (
    GridMetric,
    ensure_valid,
    first_rows,
    grid_nodes,
    per_axis,
    put_inside,
)
from finslerconv.geodesics.fields._interpolation import (
    Outside,
    cell,
    cell_along,
    corner,
    interpolate,
    locate,
    nodes_around,
    slope_factor,
    upper_entries,
)
from finslerconv.geodesics.fields._kinds import (
    Positions,
    as_kind_of,
    as_tensor,
    as_tensors,
    check_finite,
    is_numpy,
    is_tensor,
    plain_numbers,
    shown_position,
    shown_shape,
)
from finslerconv.geodesics.fields._protocol import (
    MetricField,
    check_positions,
    randers_at,
    read_positions,
)
from finslerconv.geodesics.fields._tangents import tangent_vectors

__all__ = [
    "FunctionMetric",
    "GridMetric",
    "MetricField",
    "Outside",
    "Positions",
    "as_tensor",
    "as_tensors",
    "cell",
    "cell_along",
    "check_finite",
    "check_positions",
    "corner",
    "ensure_valid",
    "first_rows",
    "grid_nodes",
    "interpolate",
    "is_numpy",
    "is_tensor",
    "as_kind_of",
    "locate",
    "nodes_around",
    "per_axis",
    "plain_numbers",
    "put_inside",
    "randers_at",
    "read_positions",
    "shown_position",
    "shown_shape",
    "slope_factor",
    "upper_entries",
    "tangent_vectors",
]
