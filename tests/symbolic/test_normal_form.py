"""The normal form is equal to the expression, and equal for equal expressions."""

import numpy as np
import pytest
import sympy
from symbolic_values import evaluate, metric_data

from finslerconv.symbolic import parameters
from finslerconv.symbolic._linear_algebra import Contraction, determinant, dot, inverse
from finslerconv.symbolic._normal_form import _product, normal_form

P = parameters("any")
M, omega, v, p = P.M, P.omega, P.v, P.p
A = inverse(M)
RANK_ONE = 3 * M - omega * omega.T
RANK_TWO = 2 * A + v * p.T + p * v.T + 5 * p * p.T

EXPRESSIONS = {
    "product": M * A * M * v,
    "sum": M * v + 2 * (omega - M * v) * dot(omega, v),
    "outer products": (omega * v.T) * (v * omega.T),
    "transpose": sympy.Transpose(A * omega * v.T * M),
    "number": dot(v, M, v) * dot(omega, A, p) + dot(p, A, omega),
    "inverse of rank one": inverse(RANK_ONE),
    "inverse of rank two": inverse(RANK_TWO) * p,
    "inverse of an inverse": inverse(inverse(RANK_ONE)),
    "inverse of a multiple": inverse(7 * M) * v,
    "change of the identity": inverse(sympy.Identity(P.d) + p * p.T),
    "determinant of rank one": determinant(RANK_ONE),
    "determinant of rank two": determinant(RANK_TWO),
    "determinant of the identity": determinant(2 * sympy.Identity(P.d) + v * p.T),
    "root": (4 * M) ** sympy.Rational(-1, 2) * M * v,
}


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_normal_form_has_the_value_of_the_expression(name, d):
    expression = EXPRESSIONS[name]
    data = {k: np.array(x.tolist(), dtype=float) for k, x in metric_data(d, seed=d).items()}
    arrays = {**data, "d": d}
    expected = evaluate(expression, arrays)
    total = 0.0
    for word, coefficient in normal_form(expression).items():
        value = evaluate(_product(word), arrays) if word else 1.0
        if not word and getattr(expression, "is_Matrix", False):
            value = np.eye(d)
        total = total + evaluate(coefficient, arrays) * value
    np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-12)


def test_equal_expressions_have_one_normal_form():
    assert normal_form(dot(omega, A, v)) == normal_form(dot(v, A, omega))
    assert normal_form(M * A * v) == normal_form(v)
    assert normal_form(M * v - M * v + omega) == {((omega, "column"),): 1}
    assert normal_form(sympy.Transpose(M) * v) == normal_form(M * v)


def test_different_expressions_have_different_ones():
    assert normal_form(M * omega * v.T) != normal_form(M * v * omega.T)
    assert normal_form(dot(omega, M, v)) != normal_form(dot(omega, A, v))


def test_what_has_no_normal_form_is_an_error():
    with pytest.raises(ValueError, match="power of one matrix plus terms of low rank"):
        normal_form(inverse(M + P.h))
    with pytest.raises(ValueError, match="power of one matrix plus terms of low rank"):
        normal_form(inverse(v * p.T))
    with pytest.raises(ValueError, match="no power 1/2"):
        normal_form(RANK_ONE ** sympy.Rational(1, 2))
    with pytest.raises(TypeError, match="no rule for HadamardProduct"):
        normal_form(sympy.HadamardProduct(M, P.h))


def test_a_contraction_is_a_number():
    with pytest.raises(ValueError, match="expected a 1 x 1 matrix expression"):
        Contraction(M * v)
    assert str(dot(v, M, v)) == "v.T*M*v"
    assert sympy.latex(dot(v, M, v) ** 2) == r"\left(v^{T} M v\right)^{2}"
