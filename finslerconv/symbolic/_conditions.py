"""What the identities assume: lists of expressions that are positive."""

from itertools import combinations

import sympy

from finslerconv.symbolic._linear_algebra import MatrixLike, determinant, dot, identity_like
from finslerconv.symbolic._parameters import Parameters

Positive = tuple[sympy.Expr, ...]


def nothing(P: Parameters) -> Positive:
    """Assume nothing but real entries."""
    return ()


def definite(A: MatrixLike) -> Positive:
    """Assume that ``A`` is positive definite: its principal minors, or its determinant, are."""
    if not isinstance(A, sympy.MatrixBase):
        return (determinant(A),)
    return tuple(
        determinant(A.extract(chosen, chosen))
        for size in range(1, A.rows + 1)
        for chosen in combinations(range(A.rows), size)
    )


def metric(P: Parameters) -> Positive:
    """Assume that (M, omega) is a Randers metric: lambda > 0, which in one dimension is |n| < 1."""
    if P.dimension == 1:
        n = P.omega[0, 0] / sympy.sqrt(P.M[0, 0])
        return (*definite(P.M), 1 - n, 1 + n)
    return (*definite(P.M), P.metric.lam)


def wind(P: Parameters) -> Positive:
    """Assume that (h, W) are Zermelo data: W' h W < 1, which in one dimension is |n| < 1."""
    if P.dimension == 1:
        n = P.W[0, 0] * sympy.sqrt(P.h[0, 0])
        return (*definite(P.h), 1 - n, 1 + n)
    return (*definite(P.h), 1 - dot(P.W, P.h, P.W))


def nonzero(x: MatrixLike, A: MatrixLike | None = None) -> Positive:
    """Assume that the vector ``x`` is not zero: x' A x is positive.

    In one dimension the axis points along ``x``. That is no restriction: the identities are for
    every omega, whose sign changes with the axis.
    """
    A = identity_like(x * x.T) if A is None else A
    if isinstance(x, sympy.MatrixBase) and x.rows == 1:
        return (x[0, 0], dot(x, A, x))
    return (dot(x, A, x),)


def metric_and_vector(P: Parameters) -> Positive:
    """Assume a Randers metric and v != 0."""
    return (*metric(P), *nonzero(P.v, P.M))


def positive_norm(P: Parameters) -> Positive:
    """Assume a Randers metric, v != 0 and F(v) > 0, which follows (see ``norm_product``)."""
    return (*metric_and_vector(P), P.metric.norm(P.v))


def reference_point(P: Parameters) -> Positive:
    """Assume a Randers metric, a reference point g != 0 and F(g) > 0, which follows."""
    return (*metric(P), *nonzero(P.g), *nonzero(P.g, P.M), P.metric.norm(P.g))
