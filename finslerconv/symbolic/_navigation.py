"""Navigation in a wind over any sea, and weighted p-norms, in sympy."""

from dataclasses import dataclass
from typing import Any

import sympy

from finslerconv.symbolic._linear_algebra import MatrixLike, check_column, dot
from finslerconv.symbolic._norm import Norm
from finslerconv.symbolic._randers import Randers
from finslerconv.symbolic._riemannian import Riemannian


@dataclass(frozen=True)
class Navigation(Norm):
    """The travel times of a boat of unit speed on a sea, in a wind.

    The unit ball is that of the sea, moved by the wind, so the dual norm is that of the sea plus
    the one-form p -> p' W.

    Parameters
    ----------
    sea : metric
        What measures lengths in calm water.
    wind : (d, 1) matrix
        The wind W, weaker than the boat: sea(-W) < 1.

    Examples
    --------
    >>> calm = Riemannian(sympy.ImmutableMatrix.eye(2))
    >>> boat = Navigation(calm, sympy.ImmutableMatrix([0, sympy.Rational(1, 2)]))
    >>> [boat.norm(sympy.ImmutableMatrix([0, sign])) for sign in (1, -1)]
    [2/3, 2]
    """

    sea: Any
    wind: MatrixLike

    def dual_norm(self, p: MatrixLike) -> sympy.Expr:
        """Return F*(p) of the sea plus p' W, for a (d, 1) covector."""
        return self.sea.dual_norm(p) + dot(self.wind, p)

    def randers(self) -> Randers:
        """Return the metric of a Riemannian or Randers sea, which is a Randers metric.

        Raises
        ------
        ValueError
            If the sea is another: its norm in the wind is the root of an equation.
        """
        match self.sea:
            case Riemannian():
                h, wind = self.sea.M, self.wind
            case Randers():
                h, own = self.sea.zermelo()
                wind = own + self.wind
            case _:
                raise ValueError(
                    f"sea: expected a Riemannian or a Randers metric, got {self.sea}; the norm has "
                    "no closed form, but dual_norm has"
                )
        check_column("wind", wind, h)
        return Randers.from_zermelo(h, wind)

    def norm(self, v: MatrixLike) -> sympy.Expr:
        """Return F(v) for a (d, 1) vector, on a Riemannian or Randers sea."""
        return self.randers().norm(v)


@dataclass(frozen=True)
class PNorm(Norm):
    """The norm ``F(v) = (sum |w_i v_i|^p)^(1/p)`` of a given p.

    Parameters
    ----------
    p : number or expression
        At least 1; infinity gives the largest ``|w_i v_i|``.
    weights : (d, 1) matrix
        Positive weights w of the components.

    Examples
    --------
    >>> F = PNorm(1, sympy.ImmutableMatrix([1, 2]))
    >>> F.norm(sympy.ImmutableMatrix([3, -4])), F.dual_norm(sympy.ImmutableMatrix([3, -4]))
    (11, 3)
    """

    p: Any
    weights: MatrixLike

    @property
    def conjugate(self) -> sympy.Expr:
        """The exponent q of the dual norm, 1 / p + 1 / q = 1."""
        p = sympy.sympify(self.p)
        if p == 1:
            return sympy.oo
        return sympy.S.One if p == sympy.oo else p / (p - 1)

    def norm(self, v: MatrixLike) -> sympy.Expr:
        """Return F(v) for a (d, 1) vector."""
        lengths = [sympy.Abs(w * a) for w, a in zip(self.weights, v, strict=True)]
        if self.p == sympy.oo:
            return sympy.Max(*lengths)
        return sympy.Add(*(length**self.p for length in lengths)) ** (1 / sympy.sympify(self.p))

    def dual(self) -> "PNorm":
        """Return the dual metric, of the inverse weights and the conjugate exponent."""
        return PNorm(self.conjugate, self.weights.applyfunc(lambda w: 1 / w))

    def dual_norm(self, p: MatrixLike) -> sympy.Expr:
        """Return F*(p), the largest p' v over the unit ball, for a (d, 1) covector."""
        return self.dual().norm(p)
