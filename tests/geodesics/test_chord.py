"""Chord distances: closed forms, the orders of their errors, gradients."""

import numpy as np
import pytest
import torch
from metric_fields import (
    funk,
    half_plane,
    known_fields,
    known_fields_3d,
    pull_back,
    random_pair,
    random_smooth,
    rotation_wind,
)

from finslerconv.geodesics import (
    FunctionMetric,
    GridMetric,
    chord_distance,
    exponential,
    logarithm,
)
from finslerconv.implicit import fit_randers
from finslerconv.metrics import CallableMetric

RULES = ("start", "midpoint", "gauss")


def slopes(field, rule, n=None, halvings=5):
    """Return the orders at which the mean error falls as the pairs draw together."""
    x, y = random_pair(field, 100, margin=0.3)
    v = (y - x) / torch.linalg.norm(y - x, dim=-1, keepdim=True)
    errors = []
    for k in range(halvings):
        z = x + 0.3 * 2.0**-k * v
        errors.append(
            float((chord_distance(field, x, z, rule, n) - field.distance(x, z)).abs().mean())
        )
    return np.log2(np.divide(errors[:-1], errors[1:]))


@pytest.mark.parametrize(
    "field", [pull_back(wobble=0.15), half_plane(), rotation_wind(), half_plane(3)], ids=str
)
@pytest.mark.parametrize(("rule", "order"), [("start", 2), ("midpoint", 3), ("gauss", 3)])
def test_error_orders(field, rule, order):
    assert slopes(field, rule)[-2:] == pytest.approx([order, order], abs=0.12)


def test_error_orders_where_geodesics_are_straight():
    """On Funk's metric only the quadrature is wrong: h^2, h^3, and h^(2n+1) for n points."""
    field = funk()
    expected = {("start", None): 2, ("midpoint", None): 3, ("gauss", 1): 3, ("gauss", 2): 5}
    for (rule, n), order in expected.items():
        assert slopes(field, rule, n)[-2:] == pytest.approx([order, order], abs=0.15)
    x, y = random_pair(field, 50)
    torch.testing.assert_close(
        chord_distance(field, x, y, n=20), field.distance(x, y), rtol=1e-10, atol=0.0
    )


@pytest.mark.parametrize("field", [*known_fields(), *known_fields_3d()], ids=str)
def test_the_chord_is_no_shorter_than_the_distance(field):
    x, y = random_pair(field, 200)
    chord, exact = chord_distance(field, x, y, n=12), field.distance(x, y)
    assert bool((chord >= exact * (1 - 1e-9)).all())
    if field.name.startswith(("tilted", "constant")):
        for rule in RULES:
            torch.testing.assert_close(chord_distance(field, x, y, rule), exact)


def test_gauss_is_the_integral_along_the_chord():
    field = random_smooth(condition=9.0, strength=0.6, seed=3, waves=0.5)
    x, y = random_pair(field, 20)
    t = (torch.arange(4000, dtype=x.dtype) + 0.5)[:, None, None] / 4000
    dense = field.at(x + t * (y - x)).norm(y - x).mean(0)
    torch.testing.assert_close(chord_distance(field, x, y, n=40), dense, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(
        chord_distance(field, x, y, n=1), chord_distance(field, x, y, "midpoint")
    )


def test_the_chord_is_asymmetric():
    field = rotation_wind()
    x, y = random_pair(field, 20)
    forth, back = chord_distance(field, x, y), chord_distance(field, y, x)
    assert bool(((forth - back).abs() > 1e-3).any())
    reverse = FunctionMetric(lambda p: field.at(p).reverse())
    torch.testing.assert_close(chord_distance(reverse, x, y), back)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_gradients(rule):
    field = random_smooth(condition=9.0, strength=0.6)
    grid = field.grid((5, 6))
    x, y = random_pair(field, 4)

    def length(M, omega, x, y):
        M = (M + M.mT) / 2
        new = type(grid)(M, omega, grid.spacing, grid.origin, validate=False)
        return chord_distance(new, x, y, rule)

    arguments = (grid.M, grid.omega, x, y)
    assert torch.autograd.gradcheck(length, [a.clone().requires_grad_() for a in arguments])


def test_batches_broadcast_and_kinds_stay():
    grid = pull_back().grid((9, 9))
    x, y = random_pair(pull_back(), 12)
    table = chord_distance(grid, x[:, None], y[None])
    assert table.shape == (12, 12)
    torch.testing.assert_close(table[3, 5], chord_distance(grid, x[3], y[5]))
    arrays = chord_distance(grid.numpy(), x.numpy()[:, None], y.numpy()[None])
    assert isinstance(arrays, np.ndarray)
    np.testing.assert_allclose(arrays, table)
    batch = type(grid)(
        torch.stack((grid.M, 4 * grid.M)),
        torch.stack((grid.omega, 2 * grid.omega)),
        grid.spacing,
        grid.origin,
    )
    two = chord_distance(batch, x[None], y[None])
    torch.testing.assert_close(two, torch.stack((two[0], 2 * two[0])))


@pytest.mark.unchecked
def test_wrong_arguments_are_refused():
    field = half_plane()
    x, y = random_pair(field, 3)
    with pytest.raises(ValueError, match="rule: expected 'start', 'midpoint' or 'gauss', got 'si"):
        chord_distance(field, x, y, "simpson")
    with pytest.raises(ValueError, match="n: expected None, because 'start' reads one point"):
        chord_distance(field, x, y, "start", 3)
    with pytest.raises(ValueError, match="n: expected a positive integer, got 0"):
        chord_distance(field, x, y, n=0)
    with pytest.raises(ValueError, match=r"b: expected 2 coordinates .* got shape \(3, 3\)"):
        chord_distance(field, x, torch.ones(3, 3, dtype=x.dtype))
    with pytest.raises(ValueError, match="a, b: expected shapes that broadcast"):
        chord_distance(field, x, y[:2])
    with pytest.raises(TypeError, match="a, b: expected arrays of one kind"):
        chord_distance(field, x, y.numpy())
    y[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"b: expected finite numbers.*index \(1,\)"):
        chord_distance(half_plane().grid((5, 5)), x, y)


@pytest.mark.unchecked
def test_a_norm_that_has_no_grid_is_told_the_way():
    """The messages name ways that work."""
    norm = CallableMetric(lambda v: (v**4).sum(-1) ** 0.25)
    a, b = np.array([1.0, 2.0]), np.array([3.0, 3.0])
    assert chord_distance(GridMetric.from_metric(norm, (4, 4)), a, b) == pytest.approx(
        norm.norm(b - a)
    )
    assert chord_distance(FunctionMetric(lambda x: norm), a, b) == pytest.approx(norm.norm(b - a))
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    directions = np.stack((np.cos(turn), np.sin(turn)), -1)
    near = GridMetric.from_metric(fit_randers(norm.indicatrix(directions)).metric, (4, 4))
    # The circle around the ball of |v|_4 touches it on the diagonals, at the radius 2^(1/4).
    assert chord_distance(near, a, b) == pytest.approx(np.hypot(2, 1) / 2**0.25, rel=1e-2)
    for function in (chord_distance, exponential, logarithm):
        with pytest.raises(TypeError, match=r"field: expected a Grid.* metric\.norm\(b - a\)"):
            function(norm, a, b)
    with pytest.raises(TypeError, match=r"field: expected a GridMetric.* got int$"):
        chord_distance(3, a, b)
