"""Identities of the dual metric and of the Legendre transform."""

from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._about_balls import completed_square
from finslerconv.symbolic._balls import Ellipse
from finslerconv.symbolic._identity import Identity
from finslerconv.symbolic._linear_algebra import dot, identity_like, inverse
from finslerconv.symbolic._parameters import Parameters
from finslerconv.symbolic._randers import Randers


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


def _dual_metric(P: Parameters) -> tuple[Any, Any]:
    h, W = completed_square(P)
    # Written out, so that the statement shows the formulas.
    dual = Randers.dual(P.metric)
    return (inverse(h), W), (dual.M, dual.omega)


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
        r"The Cauchy-Schwarz inequality in $h$. The right side is a square, so for the points $v$ "
        r"of an ellipse, $(v - W)^{\top} h\, (v - W) \le 1$, it gives "
        r"$p^{\top} v \le p^{\top} W + \sqrt{p^{\top} h^{-1} p}$.",
        sides=_support_bound,
        positive=_ellipse_and_covector,
    ),
    Identity(
        "support_attained",
        r"The bound is reached in $v = W + h^{-1} p / \sqrt{p^{\top} h^{-1} p}$, which is on the "
        r"boundary: the first component is $(v - W)^{\top} h\, (v - W)$, the second "
        r"$p^{\top} v$. With support_bound this is the support function of the ellipse.",
        sides=_support_attained,
        positive=_ellipse_and_covector,
    ),
    Identity(
        "dual_norm",
        r"The dual norm is the support function of the unit ball, which is the ellipse $(h, W)$ of "
        "the identity unit_ball.",
        sides=lambda P: (Ellipse.of(P.metric).support(P.p), P.metric.dual_norm(P.p)),
        positive=_covector,
    ),
    Identity(
        "dual_norm_terms",
        r"The dual norm in $p^{\top} M^{-1} p$ and $\omega^{\top} M^{-1} p$, in two forms. The "
        r"second has no difference of near numbers where $\omega^{\top} M^{-1} p > 0$.",
        sides=_dual_norm_terms,
        positive=_covector,
        dimensions=(1, 2, "any"),
    ),
    Identity(
        "dual_metric",
        "The matrix of the dual metric is the shape matrix of the ball, its one-form the centre, "
        "the wind; here in the parameters of the metric. The first equation is dual_norm. The "
        "second is proved for the ellipse that zermelo_data finds by completing the square, by "
        "Woodbury's formula for the inverse after a change of rank one.",
        sides=_dual_metric,
        positive=given.metric,
        left=r"\left(M^{*},\ \omega^{*}\right) = \left(h^{-1},\ W\right)",
    ),
    Identity(
        "dual_involution",
        "The dual of the dual is the metric.",
        sides=_involution,
        positive=given.metric,
    ),
    Identity(
        "dual_lambda",
        r"Since $\lambda = 1 - |\omega|_{M^{-1}}^{2}$, the one-forms $\omega^{*}$ and $\omega$ are "
        r"of equal length, each in the inverse of its matrix: the dual is a Randers metric exactly "
        r"if the metric is one.",
        sides=lambda P: (P.metric.dual().lam, P.metric.lam),
        positive=given.metric,
    ),
    Identity(
        "gradient_on_dual_ball",
        r"The gradient of $F$ lies on the boundary of the dual ball.",
        sides=lambda P: (P.metric.dual_norm(P.metric.gradient(P.v)), sympy.S.One),
        positive=given.positive_norm,
        dimensions=(1, 2, "any"),
    ),
    Identity(
        "legendre",
        r"The Legendre transform $F(v) \nabla F(v)$ of a vector is the covector that the "
        r"fundamental tensor makes of it.",
        sides=lambda P: (P.metric.legendre(P.v), P.metric.fundamental_tensor(P.v) * P.v),
        positive=given.metric_and_vector,
    ),
    Identity(
        "legendre_inverse",
        r"The Legendre transform of the dual metric undoes that of the metric: along a geodesic "
        r"the velocity is $F^{*} \nabla F^{*}$ of the momentum.",
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
