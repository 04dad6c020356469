"""Rational functions as a polynomial times powers of irreducible polynomials.

The formulas of this package divide by the same few polynomials (det M, lambda det M, a norm). Kept
factored, these cancel by trial division; SymPy's fields of fractions would compute a multivariate
greatest common divisor for every sum.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from sympy import ZZ, primerange
from sympy.polys.rings import ring as polynomial_ring

from finslerconv.symbolic._factoring import factor_list

_PRIMES = tuple(primerange(50, 1000))


class Quotient:
    """The rational function ``constant * polynomial * product of f ** powers[f]``.

    The f are irreducible, and their exponents may be negative; the polynomial need not be
    irreducible. The ring has integer coefficients.
    """

    __slots__ = ("constant", "polynomial", "powers", "ring")

    def __init__(
        self,
        ring: Any,
        constant: Fraction,
        polynomial: Any,
        powers: Mapping[Any, int] | None = None,
    ) -> None:
        self.ring = ring
        self.constant = constant
        self.polynomial = polynomial
        self.powers = {f: k for f, k in (powers or {}).items() if k}
        if not (constant and polynomial):
            self.constant, self.polynomial, self.powers = Fraction(0), ring.zero, {}
            return
        for f in [f for f, k in self.powers.items() if k < 0]:
            self._cancel(f)
        content, self.polynomial = self.polynomial.primitive()
        self.constant = self.constant * int(content)

    @classmethod
    def number(cls, ring: Any, value: Fraction | int) -> "Quotient":
        """Return a constant."""
        return cls(ring, Fraction(value), ring.one)

    @classmethod
    def of(cls, polynomial: Any) -> "Quotient":
        """Return a polynomial as a quotient."""
        return cls(polynomial.ring, Fraction(1), polynomial)

    def _cancel(self, f: Any) -> None:
        """Cancel factors f of the polynomial against a negative power of f."""
        while self.powers[f] < 0 and (quotient := _divided(self.polynomial, f)) is not None:
            self.polynomial = quotient
            self.powers[f] += 1
        if not self.powers[f]:
            del self.powers[f]

    def __bool__(self) -> bool:
        return bool(self.polynomial)

    def __add__(self, other: "Quotient") -> "Quotient":
        if not self:
            return other
        if not other:
            return self
        common = {
            f: min(self.powers.get(f, 0), other.powers.get(f, 0))
            for f in {**self.powers, **other.powers}
        }
        divisor = self.constant.denominator * other.constant.denominator
        total = self.ring.zero
        for term in (self, other):
            part = term.polynomial * ZZ(int(term.constant * divisor))
            for f, k in common.items():
                part = part * f ** (term.powers.get(f, 0) - k)
            total = total + part
        return type(self)(self.ring, Fraction(1, divisor), total, common)

    def __mul__(self, other: "Quotient") -> "Quotient":
        powers = dict(self.powers)
        for f, k in other.powers.items():
            powers[f] = powers.get(f, 0) + k
        return type(self)(
            self.ring, self.constant * other.constant, self.polynomial * other.polynomial, powers
        )

    def __pow__(self, exponent: int) -> "Quotient":
        if exponent == 1:
            return self
        if exponent < 0:
            self = self.factored()
            if not self:
                raise ZeroDivisionError("a denominator is zero")
        return type(self)(
            self.ring,
            self.constant**exponent,
            self.polynomial ** max(exponent, 0),
            {f: k * exponent for f, k in self.powers.items()},
        )

    def factored(self, likely: Iterable[Any] = ()) -> "Quotient":
        """Return the same function with all of the polynomial moved to the powers.

        Division by the ``likely`` irreducible factors is tried first: it is quicker than factoring.
        """
        polynomial, powers = self.polynomial, dict(self.powers)
        for f in likely:
            while (quotient := _divided(polynomial, f)) is not None:
                polynomial = quotient
                powers[f] = powers.get(f, 0) + 1
        content, factors = _factors(polynomial)
        for f, k in factors:
            powers[f] = powers.get(f, 0) + k
        return type(self)(self.ring, self.constant * int(content), self.ring.one, powers)

    def numerator(self) -> Any:
        """Return the numerator, up to a constant, as a polynomial."""
        result = self.polynomial
        for f, k in self.powers.items():
            result = result * f ** max(k, 0)
        return result

    def denominator(self) -> Any:
        """Return the denominator, up to a constant, as a polynomial."""
        result = self.ring.one
        for f, k in self.powers.items():
            result = result * f ** max(-k, 0)
        return result


def _factors(polynomial: Any) -> tuple[int, list[tuple[Any, int]]]:
    """Return the content and the irreducible factors of a polynomial, with exponents."""
    ring = polynomial.ring
    used = [i for i, degree in enumerate(polynomial.degrees()) if degree > 0]
    if not used:
        return int(polynomial.coeff(1)), []
    # SymPy's recursion goes through all variables of the ring, so the unused are left out.
    small, *_ = polynomial_ring([ring.symbols[i] for i in used], ring.domain)
    terms = {tuple(exponents[i] for i in used): c for exponents, c in polynomial.terms()}
    content, factors = factor_list(small.from_dict(terms))
    lifted = []
    for factor, k in factors:
        full = ring.zero
        for exponents, c in factor.terms():
            place = dict(zip(used, exponents, strict=True))
            full[tuple(place.get(i, 0) for i in range(ring.ngens))] = c
        lifted.append((full, k))
    return int(content), lifted


def _divided(polynomial: Any, f: Any) -> Any:
    """Return polynomial / f, or None if f is constant or does not divide."""
    degrees = f.degrees()
    if f.is_ground or any(a < b for a, b in zip(polynomial.degrees(), degrees, strict=True)):
        return None
    # Most trials fail, and most of these already at one point.
    if _value(polynomial) % (_value(f) or 1):
        return None
    quotient, rest = polynomial.div(f)
    return None if rest else quotient


def _value(polynomial: Any) -> int:
    """Return the value of a polynomial in a point of large primes."""
    total = 0
    for exponents, coefficient in polynomial.terms():
        term = int(coefficient)
        for i, k in enumerate(exponents):
            if k:
                term *= _PRIMES[i % len(_PRIMES)] ** k
        total += term
    return total
