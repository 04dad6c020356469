"""Arguments that are one number: of any kind of number, everywhere, and nothing else."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from finslerconv import balls, geodesics, implicit, nn, plotting
from finslerconv._arrays import as_integer, as_number, is_integer, is_number
from finslerconv.metrics import Randers

TWOS = (2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2))
HALVES = (0.5, np.float32(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2))
NO_NUMBERS = (
    True, np.True_, np.array(True), torch.tensor(True), "2", None, 2j, [2], np.array([2]),
    torch.tensor([2]), torch.tensor(2.0, requires_grad=True),
)  # fmt: skip


@pytest.mark.parametrize("two", TWOS, ids=lambda x: type(x).__name__)
def test_an_integer_is_whatever_has_an_index(two):
    assert is_integer(two)
    number = as_integer("steps", two)
    assert type(number) is int
    assert number == 2
    with pytest.raises(ValueError, match="steps: expected an integer of at least 3, got"):
        as_integer("steps", two, least=3)


@pytest.mark.parametrize("half", HALVES, ids=lambda x: type(x).__name__)
def test_a_number_is_whatever_is_real(half):
    assert is_number(half)
    assert not is_integer(half)
    number = as_number("time", half)
    assert type(number) is float
    assert number == 0.5
    with pytest.raises(ValueError, match="steps: expected a positive integer, got"):
        as_integer("steps", half)


@pytest.mark.parametrize("x", NO_NUMBERS, ids=repr)
def test_nothing_else_is_one(x):
    assert not is_number(x)
    assert not is_integer(x)
    with pytest.raises(ValueError, match="time: expected a finite number, got"):
        as_number("time", x)


def test_bounds_of_numbers():
    for x in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="radius: expected a positive number, got"):
            as_number("radius", x, above=0)


FIELD = geodesics.GridMetric(np.broadcast_to(np.eye(2), (9, 9, 2, 2)))
X, Y = np.array([4.0, 4.0]), np.array([5.0, 4.5])
CONV = torch.nn.Conv2d(2, 2, 3)

# Functions of an integer (2) and of a number (0.5), in every package.
OF_AN_INTEGER = {
    "lattice": lambda n: balls.lattice(n).points,
    "polar": lambda n: balls.polar(n, n).points,
    "sunflower": lambda n: balls.sunflower(n).points,
    "exponential": lambda n: geodesics.exponential(FIELD, X, Y - X, steps=n),
    "logarithm": lambda n: geodesics.logarithm(FIELD, X, Y, iterations=n, steps=n),
    "geodesic": lambda n: geodesics.geodesic(FIELD, X, Y, n, steps=n),
    "geodesic_ball": lambda n: geodesics.geodesic_ball(FIELD, X, balls.polar(1, 4), 1.0, steps=n),
    "windows": lambda n: geodesics.geodesic_ball(
        FIELD, X, balls.polar(1, 4), 1.0, method="eikonal", resolution=n
    ),
    "chord_distance": lambda n: geodesics.chord_distance(FIELD, X, Y, n=n),
    "graph": lambda n: geodesics.distance(FIELD, X, "graph", ring=n),
    "fast_marching": lambda n: geodesics.distance(FIELD, X, order=n),
    "spacing": lambda n: geodesics.GridMetric(FIELD.M, spacing=n, origin=n).nodes(),
    "FunctionMetric": lambda n: geodesics.FunctionMetric(lambda x: x, n).dim,
    "GeodesicConv2d": lambda n: nn.GeodesicConv2d(2, 2, 3, steps=n).steps,
    "DeformConv2d": lambda n: nn.DeformConv2d(2, 2, 3, offset_groups=n).sample_groups,
    "every": lambda n: implicit.kernel_positions(CONV, torch.zeros(1, 2, 8, 8)).every(n).points,
    "fit_randers": lambda n: implicit.fit_randers(
        balls.lattice(3).points, max_steps=n
    ).metric.M,
}  # fmt: skip
OF_A_NUMBER = {
    "spacing": lambda h: geodesics.GridMetric(FIELD.M, spacing=h, origin=(h, 0)).nodes(),
    "exponential": lambda h: geodesics.exponential(FIELD, X, Y - X, time=h),
    "radius of distance": lambda h: geodesics.distance(FIELD, X, radius=h),
    "values": lambda h: geodesics.distance(FIELD, X, values=h),
    "heat": lambda h: geodesics.distance(FIELD, X, "heat", time=h),
    "geodesic_ball": lambda h: geodesics.geodesic_ball(FIELD, X, balls.polar(1, 4), h),
    "fit_randers": lambda h: implicit.fit_randers(balls.lattice(3).points, margin=h).metric.M,
}


@pytest.mark.unchecked
@pytest.mark.parametrize("function", OF_AN_INTEGER.values(), ids=OF_AN_INTEGER)
def test_integers_of_every_kind_are_taken(function):
    expected = np.asarray(function(2))
    for two in TWOS:
        np.testing.assert_array_equal(np.asarray(function(two)), expected)


@pytest.mark.unchecked
@pytest.mark.parametrize("function", OF_A_NUMBER.values(), ids=OF_A_NUMBER)
def test_numbers_of_every_kind_are_taken(function):
    expected = np.asarray(function(0.5))
    for half in HALVES:
        np.testing.assert_array_equal(np.asarray(function(half)), expected)


@pytest.mark.unchecked
def test_what_is_drawn_takes_them_too():
    field = Randers(np.broadcast_to(np.eye(2), (6, 6, 2, 2)), np.zeros((6, 6, 2)))
    for two in TWOS:
        ax = plotting.ball_field(field, spacing=two)
        assert len(ax.collections) + len(ax.patches) + len(ax.lines) > 0
        plotting.distance_map(geodesics.distance(FIELD, X), levels=two)
