"""The zero test proves what is true of real numbers, and nothing else."""

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from sympy import Rational, sqrt

from finslerconv.symbolic._zero_test import remainders

x, y, z = sympy.symbols("x y z", real=True)
n, m = sympy.symbols("n m", integer=True, positive=True)

TRUE = [
    ("rational", 1 / (x - y) - 1 / (x + y) - 2 * y / (x**2 - y**2), ()),
    ("root squared", sqrt(x**2 + 1) ** 4 - (x**2 + 1) ** 2, ()),
    ("absolute value", abs(x) ** 2 - x**2, ()),
    ("absolute value of a product", sqrt(x**2 * y**4) - abs(x) * y**2, ()),
    ("sign", sympy.sign(x) * abs(x) - x, ()),
    ("positive base", sqrt(x**2) - x, (x,)),
    ("negative base", sqrt(x**2) + x, (-x,)),
    ("split product", sqrt(x * y) - sqrt(x) * sqrt(y), (x,)),
    ("split quotient", sqrt(x / y) - sqrt(x) / sqrt(y), (x, y)),
    ("numbers", sqrt(8) - 2 * sqrt(2), ()),
    ("root of a number in a product", sqrt(12 * x) - 2 * sqrt(3) * sqrt(x), (x,)),
    ("cube root", (x**3 * y) ** Rational(1, 3) - x * y ** Rational(1, 3), (x, y)),
    ("nested", sqrt(x + 1 + 2 * sqrt(x)) - sqrt(x) - 1, (x, sqrt(x) + 1)),
    ("conjugate", 1 / (sqrt(x + 1) - sqrt(x)) - sqrt(x + 1) - sqrt(x), (x, x + 1)),
    ("sign of a factor", sqrt((x - y) ** 2 * z) - (x - y) * sqrt(z), (z, z * (x - y))),
    ("constant", sqrt(sympy.pi**3) - sympy.pi * sqrt(sympy.pi), ()),
    ("power n", (x * y) ** (n + 1) - x ** (n + 1) * y**n * y, ()),
    ("power n of a square", (x**2 * y) ** n - x ** (2 * n) * y**n, ()),
    ("half power n", (x * y) ** (n / 2 + 1) - x * y * x ** (n / 2) * y ** (n / 2), (x, y)),
    ("power n of a number", (2 * x) ** n - 2**n * x**n, ()),
    (
        "power n of a negative factor",
        (x * y) ** (n / 2) - (-x) ** (n / 2) * (-y) ** (n / 2),
        (-x, -y),
    ),
    ("other functions are variables", sympy.cos(x) ** 2 * y - y * sympy.cos(x) ** 2, ()),
]

# Each is zero for some sign of the symbols, or looks as if it were.
FALSE = [
    ("rational", 1 / (x - y) - 1 / (x + y), ()),
    ("unknown sign", sqrt(x**2) - x, ()),
    ("wrong sign", sqrt(x**2) - x, (-x,)),
    ("sign of another", sqrt(x**2) - x, (y,)),
    ("absolute value", abs(x) - x, ()),
    ("roots do not add up", sqrt(x + y) - sqrt(x) - sqrt(y), (x, y)),
    ("wrong branch", sqrt(x + 1 - 2 * sqrt(x)) - sqrt(x) + 1, (x,)),
    ("product of unknown signs", sqrt(x * y) - sqrt(x) * sqrt(y), ()),
    ("power n", (x * y) ** (n + 1) - x ** (n + 1) * y**n, ()),
    ("half power n", x ** (n / 2) - x**n, (x,)),
    ("powers n and m", x**n - x**m, (x,)),
    ("nearly", sqrt(x**2 + Rational(1, 10**30)) - x, (x,)),
    ("needs trigonometry", sympy.cos(x) ** 2 + sympy.sin(x) ** 2 - 1, ()),
]


@pytest.mark.parametrize(
    ("expression", "positive"), [c[1:] for c in TRUE], ids=[c[0] for c in TRUE]
)
def test_true_statements_are_proved(expression, positive):
    assert remainders([expression], positive) == (0,)


@pytest.mark.parametrize(
    ("expression", "positive"), [c[1:] for c in FALSE], ids=[c[0] for c in FALSE]
)
def test_false_statements_are_not(expression, positive):
    [rest] = remainders([expression], positive)
    assert rest != 0


def test_each_difference_has_its_own_remainder():
    first, second, third = remainders([x - x, sqrt(x**2) - x, sqrt(x**2) + x], [x])
    assert (first, second) == (0, 0)
    assert third != 0


@pytest.mark.parametrize(
    "expression",
    [1 / (sqrt(x**2) - x), 1 / (x * (y + 1) - x * y - x), sympy.zoo * x, sympy.nan],
    ids=["root", "rational", "infinite", "undefined"],
)
def test_a_zero_denominator_is_an_error(expression):
    with pytest.raises(ValueError, match="denominator is zero"):
        remainders([expression * y], [x])


def test_a_root_that_cannot_be_split_is_an_error():
    with pytest.raises(ValueError, match=r"the sign of .* is not known"):
        remainders([sqrt(x / y) - sqrt(x) / sqrt(y)])
    with pytest.raises(ValueError, match="cannot split a power"):
        remainders([(x * y) ** (n / 2)])


@pytest.mark.parametrize("exponent", [n**2, n * m, n + m, y, sympy.pi, n + sympy.pi])
def test_an_exponent_without_a_rule_is_an_error(exponent):
    with pytest.raises(ValueError, match="no rule for the"):
        remainders([x**exponent - 1], [x, y])


def test_contradictory_assumptions_prove_nothing():
    with pytest.raises(ValueError, match="contradict"):
        remainders([x], [x, -x])
    with pytest.raises(ValueError, match="assumed to be positive, but zero"):
        remainders([x], [x - x])


FACTORS = (x, y, x - y, x + 2 * y, x**2 + y**2)
POINTS = [(a, b) for a in (-3, -1, 2, 5) for b in (-4, -1, 1, 3)]


@given(
    exponents=st.tuples(*(st.sampled_from((0, 0, 1, 2)) for _ in FACTORS)),
    moduli=st.tuples(*(st.booleans() for _ in FACTORS)),
    sign=st.sampled_from((1, -1)),
    positive=st.lists(st.sampled_from([s * f for f in FACTORS for s in (1, -1)]), max_size=3),
)
def test_what_is_proved_holds_wherever_the_assumptions_are_met(exponents, moduli, sign, positive):
    inside = sympy.Mul(*(f**k for f, k in zip(FACTORS, exponents, strict=True)))
    outside = (
        (abs(f) if modulus else f) ** Rational(k, 2)
        for f, modulus, k in zip(FACTORS, moduli, exponents, strict=True)
    )
    difference = sqrt(inside) - sign * sympy.Mul(*outside)
    try:
        proved = remainders([difference], positive) == (0,)
    except ValueError:
        return  # random assumptions often contradict each other
    for a, b in POINTS:
        here = {x: a, y: b}
        if proved and all(f.subs(here) > 0 for f in positive):
            assert abs(difference.subs(here).evalf(30)) < 1e-25
