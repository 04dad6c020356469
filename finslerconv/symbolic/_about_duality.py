"""Identities of the dual metric and of the Legendre transform."""

from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._balls import Ellipse
from finslerconv.symbolic._identity import Identity
from finslerconv.symbolic._linear_algebra import dot, identity_like, inverse
from finslerconv.symbolic._parameters import Parameters


def _support_bound(P: Parameters) -> tuple[Any, Any]:
    q = inverse(P.h) * P.p
    size, along = dot(P.p, q), dot(P.p, P.v - P.W)
    rest = size * (P.v - P.W) - along * q
    return size * (size * dot(P.v - P.W, P.h, P.v - P.W) - along**2), dot(rest, P.h, rest)


def _support_attained(P: Parameters) -> tuple[Any, Any]:
    ellipse = Ellipse(P.W, inverse(P.h))
    v = ellipse.touching(P.p)
    return (dot(v - P.W, P.h, v - P.W), dot(P.p, v)), (sympy.S.One, ellipse.support(P.p))


def _ellipse_and_covector(P: Parameters) -> tuple[sympy.Expr, ...]:
    return (*given.definite(P.h), *given.nonzero(P.p, inverse(P.h)))


def _dual_terms(P: Parameters) -> tuple[sympy.Expr, sympy.Expr, sympy.Expr]:
    """Return q = p' M^-1 p, s = omega' M^-1 p and the root of lambda q + s^2."""
    x = inverse(P.M) * P.p
    q, s = dot(P.p, x), dot(P.omega, x)
    return q, s, sympy.sqrt(P.metric.lam * q + s**2)


def _dual_norm_terms(P: Parameters) -> tuple[Any, Any]:
    norm = P.metric.dual_norm(P.p)
    q, s, root = _dual_terms(P)
    return (norm, norm), ((root - s) / P.metric.lam, q / (root + s))


def _covector(P: Parameters) -> tuple[sympy.Expr, ...]:
    _, s, root = _dual_terms(P)
    return (*given.metric(P), *given.nonzero(P.p, inverse(P.M)), root**2, root + s)


def _involution(P: Parameters) -> tuple[Any, Any]:
    twice = P.metric.dual().dual()
    return (twice.M, twice.omega), (P.M, P.omega)


def _inverse_tensors(P: Parameters) -> tuple[Any, Any]:
    F = P.metric
    dual_tensor = F.dual().fundamental_tensor(F.legendre(P.v))
    return dual_tensor * F.fundamental_tensor(P.v), identity_like(P.M)


IDENTITIES = (
    Identity(
        "support_bound",
        "The Cauchy-Schwarz inequality in h. The right side is a square, so for the points v of an "
        "ellipse, (v - W)' h (v - W) <= 1, it gives p' v <= p' W + sqrt(p' h^-1 p).",
        sides=_support_bound,
        positive=_ellipse_and_covector,
    ),
    Identity(
        "support_attained",
        "The bound is reached in v = W + h^-1 p / sqrt(p' h^-1 p), which is on the boundary: the "
        "first component is (v - W)' h (v - W), the second p' v. With support_bound this is the "
        "support function of the ellipse.",
        sides=_support_attained,
        positive=_ellipse_and_covector,
    ),
    Identity(
        "dual_norm",
        "The dual norm is the support function of the unit ball, which is the ellipse (h, W) of "
        "the identity unit_ball.",
        sides=lambda P: (Ellipse.of(P.metric).support(P.p), P.metric.dual_norm(P.p)),
        positive=_covector,
    ),
    Identity(
        "dual_norm_terms",
        "The dual norm in p' M^-1 p and omega' M^-1 p, in two forms. The second has no difference "
        "of near numbers where omega' M^-1 p > 0.",
        sides=_dual_norm_terms,
        positive=_covector,
        dimensions=(1, 2, "any"),
    ),
    Identity(
        "dual_zermelo",
        "The dual metric in Zermelo data: its matrix is the shape of the ball, its one-form the "
        "wind.",
        sides=lambda P: (
            (P.metric.dual().M, P.metric.dual().omega),
            (inverse(P.metric.zermelo().h), P.metric.zermelo().W),
        ),
        positive=given.metric,
    ),
    Identity(
        "dual_involution",
        "The dual of the dual is the metric.",
        sides=_involution,
        positive=given.metric,
    ),
    Identity(
        "dual_lambda",
        "|omega*| in M*^-1 equals |omega| in M^-1, with lambda = 1 - |omega|^2: the dual is a "
        "Randers metric exactly if the metric is one.",
        sides=lambda P: (P.metric.dual().lam, P.metric.lam),
        positive=given.metric,
    ),
    Identity(
        "gradient_on_dual_ball",
        "The gradient of F lies on the boundary of the dual ball.",
        sides=lambda P: (P.metric.dual_norm(P.metric.gradient(P.v)), sympy.S.One),
        positive=given.positive_norm,
        dimensions=(1, 2, "any"),
    ),
    Identity(
        "legendre",
        "The Legendre transform F grad F of a vector is the covector that the fundamental tensor "
        "makes of it.",
        sides=lambda P: (P.metric.legendre(P.v), P.metric.fundamental_tensor(P.v) * P.v),
        positive=given.metric_and_vector,
    ),
    Identity(
        "legendre_inverse",
        "The Legendre transform of the dual metric undoes that of the metric: along a geodesic the "
        "velocity is F* grad F* of the momentum.",
        sides=lambda P: (P.metric.dual().legendre(P.metric.legendre(P.v)), P.v),
        positive=given.positive_norm,
        dimensions=(1, 2, "any"),
    ),
    Identity(
        "legendre_tensors",
        "The fundamental tensors of the dual and of the metric are inverse at a vector and its "
        "Legendre transform.",
        sides=_inverse_tensors,
        positive=given.positive_norm,
        dimensions=(1, 2, "any"),
    ),
)
