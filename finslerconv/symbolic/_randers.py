"""The Randers metric F(v) = sqrt(v' M v) + omega' v in sympy."""

from dataclasses import dataclass
from typing import NamedTuple

import sympy

from finslerconv.symbolic._linear_algebra import (
    MatrixLike,
    check_column,
    check_symmetric,
    dot,
    inverse,
    transpose,
)
from finslerconv.symbolic._norm import Norm, VolumeKind
from finslerconv.symbolic._riemannian import Riemannian


class Zermelo(NamedTuple):
    """Zermelo data: the metric of a boat of unit speed on a sea ``h`` in a wind ``W``.

    Examples
    --------
    >>> from finslerconv.symbolic import parameters
    >>> P = parameters(1)
    >>> P.metric.zermelo().W
    Matrix([[-omega_0/(M_00*(1 - omega_0**2/M_00))]])
    """

    h: MatrixLike
    W: MatrixLike


@dataclass(frozen=True)
class Randers(Norm):
    """The metric F(v) = sqrt(v' M v) + omega' v.

    Parameters
    ----------
    M : (d, d) matrix
        Symmetric positive definite, explicit or a matrix symbol.
    omega : (d, 1) matrix
        The one-form, of M^-1 norm below 1.

    Notes
    -----
    Zermelo data after Bao, Robles and Shen, "Zermelo navigation on Riemannian manifolds",
    J. Differential Geom. 66 (2004); the fundamental tensor after Bao, Chern and Shen, "An
    Introduction to Riemann-Finsler Geometry" (2000), chapter 11.

    Examples
    --------
    >>> from finslerconv.symbolic import parameters
    >>> P = parameters(1)
    >>> Randers(P.M, P.omega).lam
    1 - omega_0**2/M_00
    """

    M: MatrixLike
    omega: MatrixLike

    def __post_init__(self) -> None:
        check_symmetric("M", self.M)
        check_column("omega", self.omega, self.M)

    @property
    def lam(self) -> sympy.Expr:
        """The number lambda = 1 - omega' M^-1 omega, positive if F is a metric."""
        return 1 - dot(self.omega, inverse(self.M), self.omega)

    def norm(self, v: MatrixLike) -> sympy.Expr:
        """Return F(v) for a (d, 1) vector."""
        return Riemannian(self.M).norm(v) + dot(self.omega, v)

    def gradient(self, v: MatrixLike) -> MatrixLike:
        """Return the covector M v / sqrt(v' M v) + omega, the gradient of F at v != 0."""
        return Riemannian(self.M).gradient(v) + self.omega

    def legendre(self, v: MatrixLike) -> MatrixLike:
        """Return the covector F(v) grad F(v), the Legendre transform of v != 0."""
        return self.norm(v) * self.gradient(v)

    def fundamental_tensor(self, v: MatrixLike) -> MatrixLike:
        """Return half the Hessian of F^2 at a (d, 1) vector v != 0.

        With alpha = sqrt(v' M v) and l = M v / alpha it is
        F / alpha (M - l l') + (l + omega)(l + omega)'.
        """
        l = Riemannian(self.M).gradient(v)
        p = l + self.omega
        stretch = self.norm(v) / Riemannian(self.M).norm(v)
        return stretch * (self.M - l * transpose(l)) + p * transpose(p)

    def dual(self) -> "Randers":
        """Return the dual metric F*, a Randers metric on covectors."""
        A, omega, lam = inverse(self.M), self.omega, self.lam
        return Randers((lam * A + A * omega * omega.T * A) / lam**2, -A * omega / lam)

    def dual_norm(self, p: MatrixLike) -> sympy.Expr:
        """Return F*(p), the largest p' v over the unit ball, for a (d, 1) covector."""
        return self.dual().norm(p)

    def zermelo(self) -> Zermelo:
        """Return the Zermelo data (h, W): the unit ball is (v - W)' h (v - W) <= 1."""
        h = self.lam * (self.M - self.omega * self.omega.T)
        return Zermelo(h, -inverse(self.M) * self.omega / self.lam)

    @classmethod
    def from_zermelo(cls, h: MatrixLike, W: MatrixLike) -> "Randers":
        """Return the metric whose unit ball is (v - W)' h (v - W) <= 1.

        Parameters
        ----------
        h : (d, d) matrix
            Symmetric positive definite.
        W : (d, 1) matrix
            The wind, with W' h W < 1.
        """
        mu = 1 - dot(W, h, W)
        return cls(h / mu + h * W * W.T * h / mu**2, -h * W / mu)

    def reverse(self) -> "Randers":
        """Return the metric v -> F(-v)."""
        return Randers(self.M, -self.omega)

    def symmetrize(self) -> Riemannian:
        """Return the metric v -> (F(v) + F(-v)) / 2, which is Riemannian."""
        return Riemannian(self.M)

    def volume_density(self, kind: VolumeKind = "busemann_hausdorff") -> sympy.Expr:
        """Return the density of a volume at the point, that of the Euclidean metric being 1.

        Parameters
        ----------
        kind : {"busemann_hausdorff", "holmes_thompson"}
            The volume of the Euclidean unit ball over that of the unit ball of the metric, which is
            lambda^((d+1)/2) sqrt(det M); or the volume of the dual unit ball over that of the
            Euclidean one, which is sqrt(det M).
        """
        density = Riemannian(self.M).volume_density()
        if kind == "holmes_thompson":
            return density
        d = sympy.sympify(self.M.rows)
        return self.lam ** ((d + 1) / 2) * density
