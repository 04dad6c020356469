"""The Riemannian metric F(v) = sqrt(v' M v) in sympy."""

from dataclasses import dataclass

import sympy

from finslerconv.symbolic._linear_algebra import (
    MatrixLike,
    check_symmetric,
    determinant,
    dot,
    inverse,
)
from finslerconv.symbolic._norm import Norm, VolumeKind


@dataclass(frozen=True)
class Riemannian(Norm):
    """The metric F(v) = sqrt(v' M v).

    Parameters
    ----------
    M : (d, d) matrix
        Symmetric positive definite, explicit or a matrix symbol.

    Examples
    --------
    >>> Riemannian(sympy.ImmutableMatrix([[4, 0], [0, 1]])).norm(sympy.ImmutableMatrix([1, 0]))
    2
    """

    M: MatrixLike

    def __post_init__(self) -> None:
        check_symmetric("M", self.M)

    def norm(self, v: MatrixLike) -> sympy.Expr:
        """Return F(v) for a (d, 1) vector."""
        return sympy.sqrt(dot(v, self.M, v))

    def gradient(self, v: MatrixLike) -> MatrixLike:
        """Return the covector M v / F(v), the gradient of F at a (d, 1) vector v != 0."""
        return self.M * v / self.norm(v)

    def fundamental_tensor(self, v: MatrixLike) -> MatrixLike:
        """Return half the Hessian of F^2: M, at every v."""
        return self.M

    def dual(self) -> "Riemannian":
        """Return the dual metric, of matrix M^-1."""
        return Riemannian(inverse(self.M))

    def dual_norm(self, p: MatrixLike) -> sympy.Expr:
        """Return F*(p), the largest p' v over the unit ball, for a (d, 1) covector."""
        return self.dual().norm(p)

    def volume_density(self, kind: VolumeKind = "busemann_hausdorff") -> sympy.Expr:
        """Return the density sqrt(det M) of the volume, the same of both kinds."""
        return sympy.sqrt(determinant(self.M))
