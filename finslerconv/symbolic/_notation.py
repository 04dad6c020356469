"""Short names in place of formulas, for statements that are printed and not computed.

One function of the parameters makes the two sides of an identity. Given the names of this module it
returns what is printed, F(v) or h; given symbols, what is proved.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter

from finslerconv.symbolic._linear_algebra import Contraction, MatrixLike
from finslerconv.symbolic._parameters import Parameters, parameters
from finslerconv.symbolic._randers import Randers, Zermelo


@dataclass(frozen=True)
class _NamedRanders(Randers):
    """A Randers metric whose methods return names; ``mark`` distinguishes it, as in F^*."""

    mark: str = ""

    @property
    def lam(self) -> sympy.Expr:
        return sympy.Symbol(rf"\lambda{_superscript(self.mark)}", positive=True)

    def norm(self, v: MatrixLike) -> sympy.Expr:
        return sympy.Symbol(f"F{_superscript(self.mark)}{_argument(v)}", positive=True)

    def dual_norm(self, p: MatrixLike) -> sympy.Expr:
        return self.dual().norm(p)

    def gradient(self, v: MatrixLike) -> MatrixLike:
        return self._symbol(rf"\nabla F{_superscript(self.mark)}{_argument(v)}", 1)

    def fundamental_tensor(self, v: MatrixLike) -> MatrixLike:
        return self._symbol(f"g{_superscript(self.mark)}_{{{_latex(v)}}}", self.M.rows)

    def dual(self) -> "_NamedRanders":
        return self._marked("*")

    def reverse(self) -> "_NamedRanders":
        return self._marked("-")

    def zermelo(self) -> Zermelo:
        mark = _superscript(self.mark)
        return Zermelo(self._symbol(f"h{mark}", self.M.rows), self._symbol(f"W{mark}", 1))

    def _marked(self, mark: str) -> "_NamedRanders":
        marks = self.mark + mark
        M = self._symbol(f"M^{{{marks}}}", self.M.rows)
        return _NamedRanders(M, self._symbol(rf"\omega^{{{marks}}}", 1), mark=marks)

    def _symbol(self, name: str, columns: Any) -> sympy.MatrixSymbol:
        return sympy.MatrixSymbol(name, self.M.rows, columns)


@dataclass(frozen=True)
class _Names(Parameters):
    """The parameters of any dimension with named metrics."""

    @property
    def metric(self) -> Randers:
        return _NamedRanders(self.M, self.omega)

    @property
    def navigated(self) -> Randers:
        return self.metric


@cache
def names() -> Parameters:
    """Return parameters that make an identity's sides readable."""
    P = parameters("any")
    return _Names(P.dimension, P.M, P.omega, P.h, P.W, P.v, P.p, P.g, P.x)


def side_to_latex(side: Any) -> str:
    """Return the LaTeX of an expression, a matrix or a tuple of them."""
    parts = side if isinstance(side, tuple) else (side,)
    listed = r",\ ".join(_latex(part) for part in parts)
    return listed if len(parts) == 1 else rf"\left({listed}\right)"


class _Printer(LatexPrinter):  # type: ignore[misc]  # sympy has no type information
    """SymPy's LaTeX with det(A), I, the sign of a transpose, and positive terms first."""

    def _print_Determinant(self, expr: sympy.Determinant) -> str:
        return rf"\det{_parenthesised(self._print(expr.arg))}"

    def _print_Transpose(self, expr: sympy.Transpose) -> str:
        return super()._print_Transpose(expr).removesuffix("^{T}") + r"^{\top}"

    def _print_Identity(self, expr: sympy.Identity) -> str:
        return "I"

    def _print_MatAdd(self, expr: sympy.MatAdd) -> str:
        return self._print_sum(expr.args)

    def _print_Add(self, expr: sympy.Add, order: str | None = None) -> str:
        return self._print_sum(self._as_ordered_terms(expr, order=order))

    def _print_sum(self, terms: Iterable[Any]) -> str:
        printed = sorted((self._print(term) for term in terms), key=lambda t: t.startswith("-"))
        signed = (f"- {t[1:].lstrip()}" if t[0] == "-" else f"+ {t}" for t in printed[1:])
        return " ".join([printed[0], *signed])

    def _needs_mul_brackets(self, expr: sympy.Expr, **position: bool) -> bool:
        # Two adjacent products of matrices would read as one.
        return isinstance(expr, Contraction) or super()._needs_mul_brackets(expr, **position)


def _latex(expression: Any) -> str:
    return _Printer().doprint(sympy.sympify(expression))


def _parenthesised(latex: str) -> str:
    return rf"\left({latex}\right)" if "\\" in latex else f"({latex})"


def _argument(v: MatrixLike) -> str:
    return _parenthesised(_latex(v))


def _superscript(mark: str) -> str:
    return f"^{{{mark}}}" if mark else ""
