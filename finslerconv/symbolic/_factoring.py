"""Factoring of polynomials in a short time, whatever points SymPy draws.

SymPy factors a polynomial at random points and lifts the factors found there. An irreducible
polynomial may split at a point: those of this package do at up to one in ten. SymPy tries three
points; where the polynomial splits at all of them, SymPy lifts factors that do not exist, for
seconds or hours. Twelve such points in a row do not happen, and the first at which the polynomial
does not split ends the search.
"""

from functools import lru_cache
from typing import Any

import sympy
from sympy.polys.polyconfig import using

_POINTS = 12


@lru_cache(maxsize=4096)  # the assumptions of different identities are mostly the same
def factor_list(polynomial: Any) -> tuple[Any, list[tuple[Any, int]]]:
    """Return the content of an element of a polynomial ring, and its factors with exponents."""
    with using(EEZ_NUMBER_OF_CONFIGS=_POINTS):
        return polynomial.factor_list()


def factor(expression: sympy.Expr) -> sympy.Expr:
    """Return an expression as a product of irreducible factors."""
    with using(EEZ_NUMBER_OF_CONFIGS=_POINTS):
        return sympy.factor(expression)
