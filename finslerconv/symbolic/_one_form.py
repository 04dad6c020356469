"""Metrics made of a Riemannian norm and a one-form, beside Randers', in sympy."""

from collections.abc import Callable
from dataclasses import dataclass

import sympy

from finslerconv.symbolic._linear_algebra import (
    MatrixLike,
    check_column,
    check_symmetric,
    dot,
    identity_like,
    inverse,
    transpose,
)
from finslerconv.symbolic._norm import Norm
from finslerconv.symbolic._riemannian import Riemannian

Function = Callable[[sympy.Expr], sympy.Expr]


@dataclass(frozen=True, eq=False)
class _OneForm(Norm):
    """A metric of a symmetric positive definite matrix M and a one-form omega."""

    M: MatrixLike
    omega: MatrixLike

    def __post_init__(self) -> None:
        check_symmetric("M", self.M)
        check_column("omega", self.omega, self.M)

    def alpha(self, v: MatrixLike) -> sympy.Expr:
        """Return the Riemannian norm sqrt(v' M v)."""
        return Riemannian(self.M).norm(v)

    def beta(self, v: MatrixLike) -> sympy.Expr:
        """Return the value omega' v of the one-form."""
        return dot(self.omega, v)

    @property
    def square(self) -> sympy.Expr:
        """The number b^2 = omega' M^-1 omega."""
        return dot(self.omega, inverse(self.M), self.omega)


@dataclass(frozen=True)
class AsymmetricQuadratic(_OneForm):
    """The metric F(v) = sqrt(v' M v + max(0, omega' v)^2).

    Parameters
    ----------
    M : (d, d) matrix
        Symmetric positive definite, explicit or a matrix symbol.
    omega : (d, 1) matrix
        Any one-form.

    Examples
    --------
    >>> F = AsymmetricQuadratic(sympy.ImmutableMatrix.eye(2), sympy.ImmutableMatrix([0, 1]))
    >>> [F.norm(sympy.ImmutableMatrix([0, sign])) for sign in (1, -1)]
    [sqrt(2), 1]
    """

    def norm(self, v: MatrixLike) -> sympy.Expr:
        """Return F(v) for a (d, 1) vector."""
        slope = self.beta(v)
        return sympy.sqrt(dot(v, self.M, v) + ((slope + sympy.Abs(slope)) / 2) ** 2)

    def gradient(self, v: MatrixLike) -> MatrixLike:
        """Return the covector (M v + max(0, omega' v) omega) / F, the gradient of F at v != 0."""
        slope = self.beta(v)
        return (self.M * v + (slope + sympy.Abs(slope)) / 2 * self.omega) / self.norm(v)

    def fundamental_tensor(self, v: MatrixLike) -> MatrixLike:
        """Return M, or M + omega omega' where omega' v > 0; in between, their mean."""
        away, towards = self.halves()
        side = (1 + sympy.sign(self.beta(v))) / 2
        return (1 - side) * away.M + side * towards.M

    def halves(self) -> tuple[Riemannian, Riemannian]:
        """Return the Riemannian metrics that F is where omega' v <= 0, and where it is >= 0."""
        return Riemannian(self.M), Riemannian(self.M + self.omega * transpose(self.omega))

    def dual(self) -> "AsymmetricQuadratic":
        """Return the dual metric, an asymmetric quadratic one on covectors."""
        _, costly = self.halves()
        form = -inverse(self.M) * self.omega / sympy.sqrt(1 + self.square)
        return AsymmetricQuadratic(inverse(costly.M), form)

    def dual_norm(self, p: MatrixLike) -> sympy.Expr:
        """Return F*(p), the largest p' v over the unit ball, for a (d, 1) covector."""
        return self.dual().norm(p)


class AlphaBeta(_OneForm):
    """The metric F(v) = alpha phi(s), with alpha = sqrt(v' M v) and s = omega' v / alpha.

    Parameters
    ----------
    phi : callable
        From an expression s to the expression phi(s).
    M : (d, d) matrix
        Symmetric positive definite, explicit or a matrix symbol.
    omega : (d, 1) matrix
        The one-form.

    Notes
    -----
    The fundamental tensor and its determinant after Chern and Shen, "Riemann-Finsler Geometry"
    (2005), section 1.1.

    Examples
    --------
    >>> from finslerconv.symbolic import Randers, parameters
    >>> P = parameters(2)
    >>> F = AlphaBeta(lambda s: 1 + s, P.M, P.omega)
    >>> sympy.simplify(F.norm(P.v) - Randers(P.M, P.omega).norm(P.v))
    0
    """

    phi: Function

    def __init__(self, phi: Function, M: MatrixLike, omega: MatrixLike) -> None:
        object.__setattr__(self, "phi", phi)
        super().__init__(M, omega)

    def slope(self, v: MatrixLike) -> sympy.Expr:
        """Return s = omega' v / sqrt(v' M v)."""
        return self.beta(v) / self.alpha(v)

    def jet(self, s: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
        """Return phi and its first two derivatives at s."""
        t = sympy.Dummy("s", real=True)
        phi = sympy.sympify(self.phi(t))
        phi0, phi1, phi2 = (phi.diff(t, k).subs(t, s) for k in range(3))
        return phi0, phi1, phi2

    def norm(self, v: MatrixLike) -> sympy.Expr:
        """Return F(v) for a (d, 1) vector."""
        return self.alpha(v) * self.phi(self.slope(v))

    def gradient(self, v: MatrixLike) -> MatrixLike:
        """Return the covector (phi - s phi') l + phi' omega, the gradient of F at v != 0.

        Here l = M v / alpha.
        """
        s = self.slope(v)
        phi, phi1, _ = self.jet(s)
        return (phi - s * phi1) * Riemannian(self.M).gradient(v) + phi1 * self.omega

    def fundamental_tensor(self, v: MatrixLike) -> MatrixLike:
        """Return half the Hessian of F^2 at a (d, 1) vector v != 0.

        With l = M v / alpha, n = omega - s l and p the gradient of F it is
        phi (phi - s phi') (M - l l') + phi phi'' n n' + p p'.
        """
        s = self.slope(v)
        phi, phi1, phi2 = self.jet(s)
        l, p = Riemannian(self.M).gradient(v), self.gradient(v)
        n = self.omega - s * l
        return (
            phi * (phi - s * phi1) * (self.M - l * transpose(l))
            + phi * phi2 * (n * transpose(n))
            + p * transpose(p)
        )

    def convexity(self, s: sympy.Expr) -> sympy.Expr:
        """Return phi - s phi' + (b^2 - s^2) phi'' with b^2 = omega' M^-1 omega.

        Where this and phi are positive for all ``|s| <= b`` the fundamental tensor is positive
        definite.
        """
        phi, phi1, phi2 = self.jet(s)
        return phi - s * phi1 + (self.square - s**2) * phi2


class Matsumoto(AlphaBeta):
    """The metric F(v) = alpha^2 / (alpha - beta) of a slope: phi(s) = 1 / (1 - s).

    Parameters
    ----------
    M : (d, d) matrix
        Symmetric positive definite, explicit or a matrix symbol.
    omega : (d, 1) matrix
        The one-form, of M^-1 norm below 1/2.

    Notes
    -----
    Matsumoto, "A slope of a mountain is a Finsler surface with respect to a time measure", J.
    Math. Kyoto Univ. 29 (1989).

    Examples
    --------
    >>> hill = Matsumoto.from_slope(sympy.ImmutableMatrix([sympy.Rational(3, 4), 0]))
    >>> [hill.norm(sympy.ImmutableMatrix([4 * sign, 0])) for sign in (1, -1)]
    [50/7, 50/13]
    """

    def __init__(self, M: MatrixLike, omega: MatrixLike) -> None:
        super().__init__(_matsumoto, M, omega)

    @classmethod
    def from_slope(
        cls,
        gradient: MatrixLike,
        speed: sympy.Expr = sympy.S.One,
        pull: sympy.Expr = sympy.S.Half,
    ) -> "Matsumoto":
        """Return the walking times on the graph of a height, in the coordinates of the map.

        Parameters
        ----------
        gradient : (d, 1) matrix
            The gradient of the height, which points uphill.
        speed : expression
            The walker's speed on the plain.
        pull : expression
            The speed that gravity adds straight down a wall, Matsumoto's g / 2.
        """
        M = identity_like(gradient * transpose(gradient)) + gradient * transpose(gradient)
        return cls(M / speed**2, pull / speed**2 * gradient)


class Kropina(AlphaBeta):
    """The metric F(v) = alpha^2 / beta on the half-space beta > 0: phi(s) = 1 / s.

    Parameters
    ----------
    M : (d, d) matrix
        Symmetric positive definite, explicit or a matrix symbol.
    omega : (d, 1) matrix
        The one-form, not zero.

    Examples
    --------
    >>> F = Kropina(sympy.ImmutableMatrix.eye(2), sympy.ImmutableMatrix([0, 1]))
    >>> F.norm(sympy.ImmutableMatrix([1, 1])), F.dual_norm(sympy.ImmutableMatrix([0, 1]))
    (2, 1)
    """

    def __init__(self, M: MatrixLike, omega: MatrixLike) -> None:
        super().__init__(_kropina, M, omega)

    def dual_norm(self, p: MatrixLike) -> sympy.Expr:
        """Return the support function of the unit ball, an ellipse through the origin."""
        A = inverse(self.M)
        b = sympy.sqrt(dot(self.omega, A, self.omega))
        return (b * sympy.sqrt(dot(p, A, p)) + dot(self.omega, A, p)) / 2


def _matsumoto(s: sympy.Expr) -> sympy.Expr:
    return 1 / (1 - s)


def _kropina(s: sympy.Expr) -> sympy.Expr:
    return 1 / s
