"""The symbols in which the formulas are written: one general metric and its arguments."""

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import sympy

from finslerconv.symbolic._linear_algebra import MatrixLike
from finslerconv.symbolic._randers import Randers

Dimension: TypeAlias = int | Literal["any"]


@dataclass(frozen=True)
class Parameters:
    """General symbols of one dimension, in array-axis order (component 0 runs along rows).

    Parameters
    ----------
    dimension : int or "any"
        The dimension d of the tangent space; "any" leaves it a symbol.
    M, omega : (d, d) and (d, 1) matrix
        The symmetric Riemannian part of a metric, and its one-form.
    h, W : (d, d) and (d, 1) matrix
        Zermelo data: the symmetric Riemannian sea, and the wind.
    v, p, g : (d, 1) matrix
        A tangent vector, a covector, and a reference point of the Euclidean unit ball.
    x : (d, 1) matrix
        A position.

    Examples
    --------
    >>> from finslerconv.symbolic import parameters
    >>> P = parameters(2)
    >>> P.dimension, P.M.shape, P.omega.shape
    (2, (2, 2), (2, 1))
    """

    dimension: Dimension
    M: MatrixLike
    omega: MatrixLike
    h: MatrixLike
    W: MatrixLike
    v: MatrixLike
    p: MatrixLike
    g: MatrixLike
    x: MatrixLike

    @property
    def d(self) -> sympy.Expr:
        """The dimension as a sympy number or, for "any", as a positive integer symbol."""
        return sympy.sympify(self.M.rows)

    @property
    def metric(self) -> Randers:
        """The metric (M, omega)."""
        return Randers(self.M, self.omega)

    @property
    def navigated(self) -> Randers:
        """The metric of the Zermelo data (h, W), as general as `metric`."""
        return Randers.from_zermelo(self.h, self.W)


def _entries(name: str, d: int) -> sympy.ImmutableMatrix:
    return sympy.ImmutableMatrix(d, 1, [sympy.Symbol(f"{name}_{i}", real=True) for i in range(d)])


def _symmetric(name: str, d: int) -> sympy.ImmutableMatrix:
    return sympy.ImmutableMatrix(
        d, d, lambda i, j: sympy.Symbol(f"{name}_{min(i, j)}{max(i, j)}", real=True)
    )


@cache
def parameters(dimension: Dimension = 2) -> Parameters:
    """Return the general symbols of a dimension.

    Parameters
    ----------
    dimension : int or "any"
        A positive integer gives explicit matrices with a real symbol for every entry;
        "any" gives matrix symbols whose size is the symbol ``d``.

    Raises
    ------
    ValueError
        If the dimension is neither a positive integer nor "any".

    Examples
    --------
    >>> parameters(2).M
    Matrix([
    [M_00, M_01],
    [M_01, M_11]])
    >>> parameters("any").M.shape
    (d, d)
    """
    if dimension == "any":
        d = sympy.Symbol("d", integer=True, positive=True)
        M, h = (sympy.MatrixSymbol(name, d, d) for name in ("M", "h"))
        omega, W, v, p, g, x = (
            sympy.MatrixSymbol(name, d, 1) for name in ("omega", "W", "v", "p", "g", "x")
        )
    elif isinstance(dimension, int) and dimension >= 1:
        M, h = (_symmetric(name, dimension) for name in ("M", "h"))
        omega, W, v, p, g, x = (
            _entries(name, dimension) for name in ("omega", "W", "v", "p", "g", "x")
        )
    else:
        raise ValueError(
            f'dimension: expected a positive integer or "any", got {dimension!r}; '
            "2 is the dimension of an image"
        )
    return Parameters(dimension, M, omega, h, W, v, p, g, x)
