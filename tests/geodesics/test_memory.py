"""No function pins the memory of its tensors: their storage can be resized afterwards."""

import pytest
import torch

from finslerconv.geodesics import (
    DistanceMap,
    GridMetric,
    chord_distance,
    distance,
    exponential,
    geodesic,
    geodesic_ball,
    geodesic_flow,
    logarithm,
    minimal_path,
    path_length,
)

FUNCTIONS = {
    "fast_marching": lambda field, x, y: distance(field, x, full=True),
    "fast_iterative": lambda field, x, y: distance(field, x, "fast_iterative"),
    "heat": lambda field, x, y: distance(field, x, "heat"),
    "graph": lambda field, x, y: distance(field, x, "graph"),
    "minimal_path": lambda field, x, y: minimal_path(distance(field, x, full=True), y[0]),
    "exponential": lambda field, x, y: exponential(field, x, y - x),
    "geodesic_flow": lambda field, x, y: geodesic_flow(field, x, y - x, [0.5, 1.0]),
    "logarithm": logarithm,
    "geodesic": geodesic,
    "chord_distance": chord_distance,
    "path_length": lambda field, x, y: path_length(field, torch.stack((x, y))),
    "ball by exp": lambda field, x, y: geodesic_ball(field, x),
    "ball by eikonal": lambda field, x, y: geodesic_ball(field, x, method="eikonal", resolution=4),
    "ball by heat": lambda field, x, y: geodesic_ball(field, x, method="heat", resolution=4),
}


def _tensors(result):
    if isinstance(result, DistanceMap):
        return [result.distance, result.label, result.flow]
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.filterwarnings("ignore::finslerconv.geodesics.StarShapeWarning")
def test_storage_can_be_resized_afterwards(function):
    M = torch.eye(2, dtype=torch.float64).repeat(9, 8, 1, 1)
    omega = torch.full((9, 8, 2), 0.2, dtype=torch.float64)
    x = torch.tensor([[3.0, 4.0], [5.5, 2.25]], dtype=torch.float64)
    y = x + torch.tensor([1.0, -0.5], dtype=torch.float64)
    results = _tensors(function(GridMetric(M, omega), x, y))
    for tensor in (M, omega, x, y, *results):
        tensor.untyped_storage().resize_(0)
