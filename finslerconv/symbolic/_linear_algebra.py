"""Linear algebra that reads the same for explicit matrices and for matrices of any size."""

from typing import Any, TypeAlias

import sympy
from sympy.printing.precedence import PRECEDENCE

MatrixLike: TypeAlias = sympy.MatrixBase | sympy.MatrixExpr


class Contraction(sympy.Expr):  # type: ignore[misc]  # sympy has no type information
    """The number in a 1 x 1 product such as ``v.T * M * v`` of matrices of any size.

    SymPy does not add a 1 x 1 matrix expression to a number; wrapped in a ``Contraction`` it
    is a real scalar like any other, and it prints as the product that it holds.
    """

    is_commutative = True
    is_extended_real = True
    precedence = PRECEDENCE["Mul"]

    def __new__(cls, product: sympy.MatrixExpr) -> "Contraction":
        if product.shape != (1, 1):
            raise ValueError(
                f"product: expected a 1 x 1 matrix expression, got {product} of shape "
                f"{product.shape}; transpose its first factor"
            )
        return sympy.Expr.__new__(cls, product)

    @property
    def product(self) -> sympy.MatrixExpr:
        """The wrapped 1 x 1 matrix expression."""
        return self.args[0]

    def _latex(self, printer: Any) -> str:
        return printer._print(self.product)

    def _sympystr(self, printer: Any) -> str:
        return printer._print(self.product)


def check_symmetric(name: str, A: MatrixLike) -> None:
    """Raise a ValueError if ``A`` is not square, or not symmetric in its symbols and numbers."""
    if A.rows != A.cols:
        raise ValueError(f"{name}: expected a square matrix, got shape {A.shape}")
    if not isinstance(A, sympy.MatrixBase):
        return
    for i in range(A.rows):
        for j in range(i):
            # Whether longer entries are equal may take minutes to decide.
            if A[i, j].is_Atom and A[j, i].is_Atom and A[i, j] != A[j, i]:
                raise ValueError(
                    f"{name}: expected a symmetric matrix, got {A[j, i]} at {(j, i)} and "
                    f"{A[i, j]} at {(i, j)}"
                )


def check_column(name: str, x: MatrixLike, like: MatrixLike) -> None:
    """Raise a ValueError if ``x`` is not a column that the square matrix ``like`` acts on."""
    if x.shape != (like.rows, 1):
        raise ValueError(f"{name}: expected a column of shape {(like.rows, 1)}, got {x.shape}")


def dot(x: MatrixLike, *factors: MatrixLike) -> sympy.Expr:
    """Return the number ``x' A ... y`` of a column, any number of (d, d) matrices and a column.

    It is a `Contraction` where the size of the matrices is a symbol, and expanded where all entries
    are symbols or numbers.
    """
    if not isinstance(x, sympy.MatrixBase):
        flat = [part for f in factors for part in (f.args if f.is_MatMul else (f,))]
        return Contraction(sympy.MatMul(transpose(x), *flat))
    product = x.T
    for factor in factors:
        product = product * factor
    if product.shape != (1, 1):
        raise ValueError(
            f"expected a column, matrices and a column, got shapes "
            f"{', '.join(str(factor.shape) for factor in (x, *factors))}"
        )
    plain = all(entry.is_Atom for factor in (x, *factors) for entry in factor)
    return sympy.expand(product[0, 0]) if plain else product[0, 0]


def transpose(x: MatrixLike) -> MatrixLike:
    """Return the transpose; of a matrix of symbolic size as it stands, not written out."""
    return x.T if isinstance(x, sympy.MatrixBase) else sympy.Transpose(x)


def inverse(A: MatrixLike) -> MatrixLike:
    """Return the inverse of a (d, d) matrix, as adjugate over determinant when d is a number."""
    if not isinstance(A, sympy.MatrixBase):
        return sympy.Inverse(A)
    cofactors = sympy.ImmutableMatrix(
        A.rows, A.rows, lambda i, j: (-1) ** (i + j) * determinant(A.minor_submatrix(j, i))
    )
    return cofactors / determinant(A)


def determinant(A: MatrixLike) -> sympy.Expr:
    """Return the determinant of a (d, d) matrix, expanded along rows when d is a number.

    SymPy's own methods simplify as they go, which takes minutes for nested roots.
    """
    if not isinstance(A, sympy.MatrixBase):
        return sympy.Determinant(A)
    if A.rows == 0:
        return sympy.S.One
    return sympy.Add(
        *((-1) ** j * A[0, j] * determinant(A.minor_submatrix(0, j)) for j in range(A.rows))
    )


def identity_like(A: MatrixLike) -> MatrixLike:
    """Return the identity matrix of the size and the kind of the (d, d) matrix ``A``."""
    if isinstance(A, sympy.MatrixBase):
        return sympy.ImmutableMatrix.eye(A.rows)
    return sympy.Identity(A.rows)


def zeros_like(x: MatrixLike) -> MatrixLike:
    """Return the zero matrix of the shape and the kind of ``x``."""
    if isinstance(x, sympy.MatrixBase):
        return sympy.ImmutableMatrix.zeros(*x.shape)
    return sympy.ZeroMatrix(*x.shape)
