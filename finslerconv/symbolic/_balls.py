"""The unit ball of a Randers metric as an ellipse, and the maps into a unit ball, in sympy."""

from dataclasses import dataclass

import sympy

from finslerconv.symbolic._linear_algebra import (
    MatrixLike,
    check_column,
    check_symmetric,
    determinant,
    dot,
    identity_like,
    inverse,
    transpose,
)
from finslerconv.symbolic._randers import Randers
from finslerconv.symbolic._riemannian import Riemannian


def sqrtm(A: MatrixLike) -> MatrixLike:
    """Return the symmetric positive definite square root of a symmetric positive definite matrix.

    In two dimensions the closed form (A + s I) / sqrt(tr A + 2 s) with s = sqrt(det A), which
    follows from the characteristic polynomial of the root.

    Parameters
    ----------
    A : (d, d) matrix
        With d = 1 or 2, or of symbolic size (then the root is left as a power).

    Raises
    ------
    ValueError
        If d is a number above 2.

    Examples
    --------
    >>> sqrtm(sympy.ImmutableMatrix([[4, 0], [0, 9]]))
    Matrix([
    [2, 0],
    [0, 3]])
    """
    if not isinstance(A, sympy.MatrixBase):
        return A ** sympy.Rational(1, 2)
    match A.rows:
        case 1:
            return A.applyfunc(sympy.sqrt)
        case 2:
            s = sympy.sqrt(determinant(A))
            return (A + s * identity_like(A)) / sympy.sqrt(A.trace() + 2 * s)
    raise ValueError(
        f"A: expected a 1 x 1 or 2 x 2 matrix, or one of symbolic size, got {A.rows} x {A.cols}; "
        "larger roots have no closed form here"
    )


@dataclass(frozen=True)
class Ellipse:
    """The set (v - centre)' shape^-1 (v - centre) <= 1, an ellipsoid in d dimensions.

    Parameters
    ----------
    centre : (d, 1) matrix
    shape : (d, d) matrix
        Symmetric positive definite; its eigenvalues are the squares of the half-axes.

    Examples
    --------
    >>> from finslerconv.symbolic import parameters
    >>> P = parameters(2)
    >>> Ellipse(P.W, P.M).area
    pi*sqrt(M_00*M_11 - M_01**2)
    """

    centre: MatrixLike
    shape: MatrixLike

    def __post_init__(self) -> None:
        check_symmetric("shape", self.shape)
        check_column("centre", self.centre, self.shape)

    @classmethod
    def of(cls, metric: Randers) -> "Ellipse":
        """Return the unit ball of a Randers metric: centre W and shape h^-1 (Zermelo data)."""
        h, W = metric.zermelo()
        return cls(W, inverse(h))

    def quadratic(self, v: MatrixLike) -> sympy.Expr:
        """Return (v - centre)' shape^-1 (v - centre): at most 1 inside, 1 on the boundary."""
        return dot(v - self.centre, inverse(self.shape), v - self.centre)

    def image(self, g: MatrixLike) -> MatrixLike:
        """Return centre + shape^{1/2} g, which carries the Euclidean unit ball onto the ellipse."""
        return self.centre + sqrtm(self.shape) * g

    def support(self, p: MatrixLike) -> sympy.Expr:
        """Return the largest p' v over the ellipse, centre' p + sqrt(p' shape p)."""
        return dot(self.centre, p) + sympy.sqrt(dot(p, self.shape, p))

    def touching(self, p: MatrixLike) -> MatrixLike:
        """Return the boundary point in which p' v is largest over the ellipse, for p != 0."""
        return self.centre + self.shape * p / sympy.sqrt(dot(p, self.shape, p))

    @property
    def volume(self) -> sympy.Expr:
        """The volume, that of the Euclidean unit ball times sqrt(det shape)."""
        d = sympy.sympify(self.shape.rows)
        unit_ball = sympy.pi ** (d / 2) / sympy.gamma(d / 2 + 1)
        return unit_ball * sympy.sqrt(determinant(self.shape))

    @property
    def area(self) -> sympy.Expr:
        """The area of an ellipse in the plane, pi sqrt(det shape)."""
        return sympy.pi * sympy.sqrt(determinant(self._planar()))

    @property
    def axes(self) -> tuple[sympy.Expr, sympy.Expr]:
        """The half-axes of an ellipse in the plane, the large one first."""
        A = self._planar()
        gap = sympy.sqrt((A[0, 0] - A[1, 1]) ** 2 + 4 * A[0, 1] ** 2)
        return sympy.sqrt((A.trace() + gap) / 2), sympy.sqrt((A.trace() - gap) / 2)

    @property
    def angle(self) -> sympy.Expr:
        """The direction (sin angle, cos angle) of the large half-axis, from columns to rows."""
        A = self._planar()
        return sympy.atan2(2 * A[0, 1], A[1, 1] - A[0, 0]) / 2

    def _planar(self) -> sympy.MatrixBase:
        A = self.shape
        if isinstance(A, sympy.MatrixBase) and A.shape == (2, 2):
            return A
        raise ValueError(
            f"shape: expected an explicit 2 x 2 matrix, got one of size {A.shape}; "
            "an ellipsoid of another dimension has a volume"
        )


def radial(metric: Randers | Riemannian, g: MatrixLike) -> MatrixLike:
    """Return the image ``g |g| / F(g)`` of a reference point ``g != 0``, on the same ray.

    Examples
    --------
    >>> from sympy import Matrix, eye
    >>> from finslerconv.symbolic import Riemannian, radial
    >>> radial(Riemannian(eye(2) / 4), Matrix([0, 1]))
    Matrix([
    [0],
    [2]])
    """
    return g * sympy.sqrt(dot(g, g)) / metric.norm(g)


def radial_jacobian(metric: Randers | Riemannian, g: MatrixLike) -> MatrixLike:
    """Return the radial map's derivative ``|g| / F (I + g (g / |g|^2 - grad F / F)')``.

    Examples
    --------
    >>> from sympy import Matrix, eye
    >>> from finslerconv.symbolic import Riemannian, radial_jacobian
    >>> radial_jacobian(Riemannian(eye(2) / 4), Matrix([0, 1]))
    Matrix([
    [2, 0],
    [0, 2]])
    """
    norm = metric.norm(g)
    slope = g / dot(g, g) - metric.gradient(g) / norm
    return sympy.sqrt(dot(g, g)) / norm * (identity_like(g * g.T) + g * transpose(slope))


def affine(metric: Randers | Riemannian, g: MatrixLike) -> MatrixLike:
    """Return the image W + h^{-1/2} g of a reference point: equal areas stay equal.

    The derivative is h^{-1/2} at every g.

    Examples
    --------
    >>> from sympy import Matrix, Rational, eye
    >>> from finslerconv.symbolic import Randers, affine
    >>> affine(Randers(eye(2), Matrix([0, Rational(3, 5)])), Matrix([0, 0]))
    Matrix([
    [     0],
    [-15/16]])
    """
    if isinstance(metric, Riemannian):
        return sqrtm(inverse(metric.M)) * g
    return Ellipse.of(metric).image(g)
