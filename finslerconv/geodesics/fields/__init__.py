"""Metric fields on grids and by functions, and how positions and arrays are read."""

from finslerconv.geodesics.fields._grid import (
    FunctionMetric,
    GridMetric,
    MetricField,
    Outside,
    first_rows,
    grid_nodes,
    per_axis,
    put_inside,
    read_positions,
    validate_fields,
)
from finslerconv.geodesics.fields._kinds import (
    Positions,
    as_tensor,
    as_tensors,
    check_finite,
    is_numpy,
    is_tensor,
    like,
    plain_numbers,
    shown_position,
    shown_shape,
)

__all__ = [
    "FunctionMetric",
    "GridMetric",
    "MetricField",
    "Outside",
    "Positions",
    "as_tensor",
    "as_tensors",
    "check_finite",
    "first_rows",
    "grid_nodes",
    "is_numpy",
    "is_tensor",
    "like",
    "per_axis",
    "plain_numbers",
    "put_inside",
    "read_positions",
    "shown_position",
    "shown_shape",
    "validate_fields",
]
