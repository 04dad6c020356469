"""Reading between nodes: by PyTorch, compiled, and by SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from finslerconv._compiled import jit
from finslerconv._lanes import LANES, load, store
from finslerconv.geodesics.fields import (
    cell,
    cell_along,
    corner,
    interpolate,
    locate,
    nodes_around,
    slope_factor,
)


@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 6), (1, 6), (5, 1, 4)])
@pytest.mark.parametrize(("outside", "mode"), [("constant", "nearest"), ("reflect", "mirror")])
def test_linear_is_scipys(shape, outside, mode):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape)
    t = rng.uniform(-0.9, 1.9, (200, len(shape))) * (np.asarray(shape) - 1)
    expected = map_coordinates(values, t.T, order=1, mode=mode)
    flat = torch.from_numpy(values).flatten()
    (found,) = interpolate([flat], torch.from_numpy(t), shape, outside=outside)
    assert np.allclose(found, expected, atol=1e-12)


def test_cubic_is_exact_for_parabolas_and_passes_through_the_nodes():
    x = torch.arange(9.0).double()
    parabola = x**2 - 3 * x
    t = torch.linspace(1.0, 7.0, 50).double()
    (found,) = interpolate([parabola], t[:, None], (9,), "cubic")
    assert torch.allclose(found, t**2 - 3 * t)
    jump = torch.tensor([0.0, 0.0, 1.0, 5.0, 5.0]).double()
    (at_nodes,) = interpolate([jump], x[:5, None], (5,), "cubic")
    assert torch.equal(at_nodes, jump)


def test_entries_of_any_shape_and_several_grids():
    values = torch.arange(24.0).double().reshape(12, 2)  # two grids of 2 x 3 nodes
    t = torch.tensor([[0.5, 1.0], [1.0, 1.5]]).double()
    whole, column = interpolate([values, values[:, 1]], t, (2, 3), first=torch.tensor([0, 6]))
    assert torch.allclose(whole[:, 0], torch.tensor([5.0, 21.0]).double())
    assert torch.allclose(whole[:, 1], column)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_weights_sum_to_one_and_the_derivative_is_that_of_finite_differences(interpolation):
    t = torch.tensor([[1.3, 2.6], [0.2, 4.0], [2.9, 0.1]]).double()
    total = sum(weight for _, weight in nodes_around(t, (4, 5), interpolation))
    assert torch.allclose(total, torch.ones(3).double())
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, t: interpolate([v], t, (4, 5), interpolation)[0], (values, t[:1].requires_grad_())
    )


@pytest.mark.parametrize("shape", [(5, 7, 1), (4, 5, 6), (1, 6, 1)])
def test_the_compiled_rule_is_the_same(shape):
    rng = np.random.default_rng(1)
    values = rng.standard_normal(shape).ravel()
    last = np.asarray(shape) - 1
    points = np.concatenate([rng.uniform(0, 1, (50, 3)) * last, [0.0 * last, 1.0 * last]])
    d = 3 if shape[2] > 1 else 2
    t = torch.from_numpy(points[:, :d])
    (expected,) = interpolate([torch.from_numpy(values)], t, shape[:d])
    for point, value in zip(points, expected, strict=True):
        around = [corner(cell(tuple(point), shape), shape, number) for number in range(8)]
        found = sum(weight * values[node] for node, weight in around if weight > 0)
        assert np.isclose(found, float(value))


@jit
def located(c, n, reflect, found):
    """Write what the rule says of a row of coordinates to the rows of an array."""
    for k, each in enumerate(locate(load(c, 0), n, reflect)):
        store(found, k, each)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("outside", ["constant", "reflect"])
def test_the_compiled_rule_of_an_axis_is_the_same_and_so_are_its_derivatives(n, outside):
    rng = np.random.default_rng(2)
    last = n - 1.0
    # Inside, near the edge, several folds away, and on the edges and the fold.
    c = np.concatenate([rng.uniform(-1.5, n + 0.5, 86), rng.uniform(-40, 40, 40), [0.0, last]])
    t = torch.from_numpy(c).requires_grad_()
    first, place = cell_along(t, n, outside)
    factor = slope_factor(t, n, outside)
    found = np.empty((5, len(c)))
    for at in range(0, len(c), LANES):
        part = np.empty((5, LANES))
        located(c[None, at : at + LANES], n, outside == "reflect", part)
        found[:, at : at + LANES] = part
    found = found.T
    assert np.array_equal(found[:, 0], first)
    assert np.allclose(found[:, 1], place.detach(), rtol=0, atol=1e-12)
    assert np.allclose(found[:, 3], factor.detach(), rtol=0, atol=1e-12)
    (turn,) = torch.autograd.grad(place.sum(), t)
    if n > 1:  # between a node and itself the place has no meaning
        (slope,) = torch.autograd.grad(factor.sum(), t)
        inner = slice(0, -2)  # at an edge the factor has a kink
        assert np.array_equal(found[:, 2], turn)
        assert np.array_equal(found[inner, 4], slope[inner])


@pytest.mark.parametrize(("outside", "beyond"), [("constant", 0.0), ("reflect", -1.0)])
def test_the_factor_of_slopes_goes_over_one_node_to_what_it_is_beyond(outside, beyond):
    t = torch.tensor([0.0, 1.7, 4.0, 4.25, 5.0, 5.5, -0.25, -1.0, -3.0]).double()
    step = 1 - 0.25 * (1 - beyond)
    expected = torch.tensor([1, 1, 1, step, beyond, beyond, step, beyond, beyond]).double()
    assert torch.allclose(slope_factor(t, 5, outside), expected)
