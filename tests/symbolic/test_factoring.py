"""Factoring takes a short time whatever points SymPy draws."""

import itertools
import random

import pytest
import sympy
from sympy.polys import factortools
from sympy.polys.rings import ring

from finslerconv.symbolic._factoring import factor, factor_list


@pytest.fixture
def irreducible():
    _, M, a, b, p, q, r, s = ring("M, a, b, p, q, r, s", sympy.ZZ)
    return (M * q - s**2 * p) ** 2 + r**2 * q**2 - s**2 * (a * q - b * p) ** 2


@pytest.fixture
def unlucky_points(monkeypatch):
    """Draw three points at which that polynomial splits, for r is 0; refuse to lift its factors."""
    splitting = [(-2, 0, 1, 2, 0, -1), (2, 2, -3, -2, 0, -3), (-3, 2, 1, -2, 0, 3)]
    first, more = itertools.chain.from_iterable(splitting), random.Random(0)

    def draw(low, high):
        value = next(first, None)
        return more.randint(low, high) if value is None else value

    def lift(*_):
        pytest.fail("factors that do not exist were lifted")

    monkeypatch.setattr(factortools, "_randint", lambda _: draw)
    monkeypatch.setattr(factortools, "dmp_zz_wang_hensel_lifting", lift)


@pytest.mark.usefixtures("unlucky_points")
def test_an_irreducible_polynomial_that_splits_at_the_first_points(irreducible):
    assert factor_list(irreducible) == (1, [(irreducible, 1)])


def test_an_expression_of_such_a_polynomial(irreducible):
    expression = irreducible.as_expr()
    assert factor(3 * expression) == sympy.Mul(3, expression, evaluate=False)


def test_factors_and_exponents():
    _, x, y = ring("x, y", sympy.ZZ)
    content, factors = factor_list(12 * (x**2 + y) ** 3 * (x - y))
    assert content == 12
    assert set(factors) == {(x**2 + y, 3), (x - y, 1)}
