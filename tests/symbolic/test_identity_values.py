"""The identities hold for numbers, and their assumptions are met: no part of the prover is used."""

from functools import cache

import mpmath
import numpy as np
import pytest
import sympy
from symbolic_values import evaluate, metric_data, numbers, precise

from finslerconv.symbolic import identities, parameters

ALL = tuple(identities().values())
ANY = [i for i in ALL if "any" in i.dimensions]
# The larger formulas for d = 3 are left to the test in d = 4.
EXPLICIT = [(i, d) for i in ALL for d in i.dimensions if d in (1, 2) or (d == 3 and i not in ANY)]


@cache
def written_out(identity, dimension):
    return identity.equation(dimension)


def label(case):
    return getattr(case, "name", None) or str(case)


def entries(side):
    for part in side if isinstance(side, tuple) else (side,):
        if isinstance(part, sympy.MatrixBase):
            yield from part
        else:
            yield sympy.sympify(part)


@pytest.mark.parametrize(("identity", "dimension"), EXPLICIT, ids=label)
def test_both_sides_agree_to_thirty_digits(identity, dimension):
    equation = written_out(identity, dimension)
    pairs = list(zip(entries(equation.lhs), entries(equation.rhs), strict=True))
    several = [numbers(parameters(dimension), seed) for seed in range(2)]
    for sides in precise([side for pair in pairs for side in pair], *several):
        for left, right in zip(sides[::2], sides[1::2], strict=True):
            assert mpmath.almosteq(left, right, rel_eps=1e-30, abs_eps=1e-30)


@pytest.mark.parametrize(("identity", "dimension"), EXPLICIT, ids=label)
def test_every_metric_meets_the_assumptions(identity, dimension):
    positive = written_out(identity, dimension).positive
    several = [numbers(parameters(dimension), seed) for seed in range(5)]
    for values in precise([*positive, sympy.S.One], *several):
        assert all(value > 0 for value in values)


@pytest.mark.parametrize("identity", ANY, ids=label)
def test_statements_for_any_dimension_hold_in_dimension_four(identity):
    equation = identity.equation("any")
    data = {k: np.array(v.tolist(), dtype=float) for k, v in metric_data(4, seed=3).items()}
    jet = {"phi_0": 1.3, "phi_1": 0.4, "phi_2": 0.7}
    arrays = {**data, **jet, "d": 4, "s": 1.7, "r": 2.0}
    sides = [side if isinstance(side, tuple) else (side,) for side in (equation.lhs, equation.rhs)]
    for left, right in zip(*sides, strict=True):
        left, right = (evaluate(sympy.sympify(side), arrays) for side in (left, right))
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)
    assert all(evaluate(expression, arrays) > 0 for expression in equation.positive)
