"""Classical spaces: functions from a position to the metric there, in sympy."""

import sympy

from finslerconv.symbolic._linear_algebra import MatrixLike, dot, identity_like, transpose
from finslerconv.symbolic._randers import Randers
from finslerconv.symbolic._riemannian import Riemannian


def sphere(x: MatrixLike) -> Riemannian:
    """Return the unit sphere's metric in stereographic coordinates: ``2 |v| / (1 + |x|^2)``.

    Examples
    --------
    >>> from sympy import Matrix
    >>> from finslerconv.symbolic import sphere
    >>> sphere(Matrix([0, 0])).M
    Matrix([
    [4, 0],
    [0, 4]])
    """
    return _conformal(x, 2 / (1 + dot(x, x)))


def sphere_by_angles(x: MatrixLike) -> Riemannian:
    """Return the metric of the unit sphere in the plane of angles: latitude and longitude.

    Latitude counts from the equator: the squared length is ``v_0^2 + cos(x_0)^2 v_1^2``.

    Examples
    --------
    >>> from finslerconv.symbolic import MetricField, sphere_by_angles
    >>> MetricField.of(sphere_by_angles).flag_curvature()
    1
    """
    return Riemannian(sympy.ImmutableMatrix.diag(1, sympy.cos(x[0, 0]) ** 2))


def half_space(x: MatrixLike) -> Riemannian:
    """Return the hyperbolic metric ``|v| / x_0`` of positive heights, the first coordinate.

    Examples
    --------
    >>> from sympy import Matrix
    >>> from finslerconv.symbolic import half_space
    >>> half_space(Matrix([2, 0])).M
    Matrix([
    [1/4,   0],
    [  0, 1/4]])
    """
    return _conformal(x, 1 / x[0, 0])


def poincare_ball(x: MatrixLike) -> Riemannian:
    """Return the hyperbolic metric ``2 |v| / (1 - |x|^2)`` of the unit ball: angles are true.

    Examples
    --------
    >>> from sympy import Matrix
    >>> from finslerconv.symbolic import poincare_ball
    >>> poincare_ball(Matrix([0, 0])).M
    Matrix([
    [4, 0],
    [0, 4]])
    """
    return _conformal(x, 2 / (1 - dot(x, x)))


def klein_ball(x: MatrixLike) -> Riemannian:
    """Return the hyperbolic metric of the unit ball whose geodesics are straight.

    Its matrix is ``I / r + x x' / r^2`` with ``r = 1 - |x|^2``.

    Examples
    --------
    >>> from sympy import Matrix
    >>> from finslerconv.symbolic import klein_ball
    >>> klein_ball(Matrix([0, 0])).M
    Matrix([
    [1, 0],
    [0, 1]])
    """
    r = 1 - dot(x, x)
    return Riemannian(identity_like(x * transpose(x)) / r + x * transpose(x) / r**2)


def funk_ball(x: MatrixLike) -> Randers:
    """Return the Funk metric of the unit ball: x + v / F(v) lies on the sphere.

    It is a Randers metric, of Klein's matrix and the one-form ``x / (1 - |x|^2)``.

    Examples
    --------
    >>> from sympy import Matrix, Rational
    >>> from finslerconv.symbolic import funk_ball
    >>> funk_ball(Matrix([Rational(1, 2), 0])).norm(Matrix([1, 0]))  # half a radius from the rim
    2
    """
    return Randers(klein_ball(x).M, x / (1 - dot(x, x)))


def funk_norm(x: MatrixLike, v: MatrixLike) -> sympy.Expr:
    """Return the norm of `funk_ball` with its root over one denominator."""
    r, slope = 1 - dot(x, x), dot(x, v)
    return (sympy.sqrt(r * dot(v, v) + slope**2) + slope) / r


def hilbert_ball(x: MatrixLike) -> Riemannian:
    """Return the Hilbert metric of the unit ball: the mean of Funk's there and back.

    Examples
    --------
    >>> from sympy import Matrix, Rational
    >>> from finslerconv.symbolic import hilbert_ball, klein_ball
    >>> x = Matrix([Rational(1, 2), 0])
    >>> hilbert_ball(x).M == klein_ball(x).M
    True
    """
    return funk_ball(x).symmetrize()


def _conformal(x: MatrixLike, factor: sympy.Expr) -> Riemannian:
    return Riemannian(factor**2 * identity_like(x * transpose(x)))
