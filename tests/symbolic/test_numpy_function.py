"""Formulas become NumPy functions that broadcast."""

import numpy as np
import pytest
import sympy

from finslerconv.symbolic import Randers, numpy_function, parameters

P = parameters(2)
F = Randers(P.M, P.omega)
RNG = np.random.default_rng(0)
FIELD = np.eye(2) + 0.1 * np.ones((5, 1, 2, 2))
WIND = 0.3 * RNG.uniform(-1, 1, (7, 2))


def test_metrics_and_vectors_broadcast():
    norm = numpy_function(F.norm(P.v), P.M, P.omega, P.v)
    v = RNG.standard_normal((3, 1, 1, 2))
    value = norm(FIELD, WIND, v)
    assert value.shape == (3, 5, 7)
    expected = np.sqrt(v[2, 0, 0] @ FIELD[4, 0] @ v[2, 0, 0]) + WIND[6] @ v[2, 0, 0]
    np.testing.assert_allclose(value[2, 4, 6], expected, rtol=1e-14)


def test_results_have_the_shapes_of_the_formulas():
    tensor, wind, lam = numpy_function((F.zermelo().h, F.zermelo().W, F.lam), P.M, P.omega)(
        FIELD, WIND
    )
    assert tensor.shape == (5, 7, 2, 2)
    assert wind.shape == (5, 7, 2)
    assert lam.shape == (5, 7)


def test_entries_that_are_constant_are_spread_over_the_batch():
    s = sympy.Symbol("s")
    formula = sympy.ImmutableMatrix([[1, s], [s, 0]])
    value = numpy_function(formula, s)(np.arange(4.0))
    np.testing.assert_array_equal(value[3], [[1, 3], [3, 0]])
    assert value.shape == (4, 2, 2)


def test_rows_and_columns_keep_their_order():
    p = numpy_function(P.M * P.v, P.M, P.v)([[1.0, 2.0], [2.0, 5.0]], [1.0, 10.0])
    np.testing.assert_array_equal(p, [21.0, 52.0])


@pytest.mark.unchecked
def test_errors_name_the_argument():
    norm = numpy_function(F.norm(P.v), P.M, P.omega, P.v)
    with pytest.raises(ValueError, match="expected 3 arrays, got 2"):
        norm(FIELD, WIND)
    with pytest.raises(ValueError, match=r"expected an array of shape \(..., 2\), got \(5, 3\)"):
        norm(FIELD, np.ones((5, 3)), np.ones(2))
    with pytest.raises(ValueError, match="the formula also holds v_0, v_1"):
        numpy_function(F.norm(P.v), P.M, P.omega)
    with pytest.raises(ValueError, match="expected symbols, got 2"):
        numpy_function(F.norm(P.v), 2 * P.M / P.M[0, 0], P.omega, P.v)
    with pytest.raises(ValueError, match="each symbol in one argument only"):
        numpy_function(F.norm(P.v), P.M, P.omega, P.v, P.v)
    with pytest.raises(ValueError, match="size that is a number"):
        numpy_function(parameters("any").M, P.M)
