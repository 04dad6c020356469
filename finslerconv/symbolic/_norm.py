"""What every norm has in sympy: gradient, Legendre transform and tensors, by differentiation."""

import abc
from typing import Literal, TypeAlias

import sympy

from finslerconv.symbolic._linear_algebra import MatrixLike, transpose

VolumeKind: TypeAlias = Literal["busemann_hausdorff", "holmes_thompson"]


class Norm(abc.ABC):
    """A norm F(v) on one tangent space, by its formula.

    A subclass must give `norm`; it replaces what it knows in closed form. Derivatives are taken
    component by component, so the vector is a column of d expressions, d a number.
    """

    @abc.abstractmethod
    def norm(self, v: MatrixLike) -> sympy.Expr:
        """Return F(v) for a (d, 1) vector."""

    def gradient(self, v: MatrixLike) -> MatrixLike:
        """Return the covector dF(v), the gradient of F at a (d, 1) vector v != 0."""
        u = _variables(v)
        return sympy.ImmutableMatrix([self.norm(u).diff(a) for a in u]).xreplace(_values(u, v))

    def legendre(self, v: MatrixLike) -> MatrixLike:
        """Return the covector F(v) dF(v), the Legendre transform of v != 0."""
        return self.norm(v) * self.gradient(v)

    def fundamental_tensor(self, v: MatrixLike) -> MatrixLike:
        """Return half the Hessian of F^2 at a (d, 1) vector v != 0."""
        u = _variables(v)
        return sympy.hessian(self.norm(u) ** 2 / 2, list(u)).as_immutable().xreplace(_values(u, v))

    def angular_metric(self, v: MatrixLike) -> MatrixLike:
        """Return F times the Hessian of F, which is g_v - dF dF'; v itself has length 0 in it."""
        slope = self.gradient(v)
        return self.fundamental_tensor(v) - slope * transpose(slope)

    def cartan_tensor(self, v: MatrixLike) -> sympy.NDimArray:
        """Return half the derivative of the fundamental tensor, C_ijk = (d g_ij / d v^k) / 2."""
        u = _variables(v)
        tensor = self.fundamental_tensor(u)
        return stacked([tensor.diff(a) / 2 for a in u]).xreplace(_values(u, v))


def stacked(matrices: list[sympy.MatrixBase]) -> sympy.ImmutableDenseNDimArray:
    """Return the array A[i, j, k] of matrices A_k[i, j]."""
    d, _ = matrices[0].shape
    entries = [[[A[i, j] for A in matrices] for j in range(d)] for i in range(d)]
    return sympy.ImmutableDenseNDimArray(entries)


def _variables(v: MatrixLike) -> sympy.ImmutableMatrix:
    """Return independent variables in place of a vector: its entries, if they are."""
    if not isinstance(v, sympy.MatrixBase):
        raise ValueError(
            f"v: expected a vector of a dimension that is a number, got {v}; use parameters(2)"
        )
    if all(entry.is_Symbol for entry in v) and len(set(v)) == v.rows:
        return v
    return sympy.ImmutableMatrix([sympy.Dummy(f"u_{i}", real=True) for i in range(v.rows)])


def _values(u: MatrixLike, v: MatrixLike) -> dict[sympy.Expr, sympy.Expr]:
    return {a: b for a, b in zip(u, v, strict=True) if a != b}
