"""Identities of the norm: positivity, symmetry, derivatives."""

from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._identity import Identity
from finslerconv.symbolic._linear_algebra import MatrixLike, determinant, dot, inverse
from finslerconv.symbolic._parameters import Parameters
from finslerconv.symbolic._riemannian import Riemannian

_SCALE = sympy.Symbol("s", real=True)


def _cauchy_schwarz(P: Parameters) -> tuple[Any, Any]:
    x = inverse(P.M) * P.omega
    n, slope = dot(P.omega, x), dot(P.omega, P.v)
    rest = n * P.v - slope * x
    return n * (n * dot(P.v, P.M, P.v) - slope**2), dot(rest, P.M, rest)


def _product(P: Parameters, v: MatrixLike) -> sympy.Expr:
    return P.metric.norm(v) * P.metric.norm(-v)


def _steepest(P: Parameters) -> tuple[Any, Any]:
    v = inverse(P.M) * P.omega
    n = sympy.sqrt(dot(P.omega, v))
    return P.metric.norm(v) / P.metric.norm(-v), (1 + n) / (1 - n)


def _below_one(P: Parameters) -> tuple[sympy.Expr, ...]:
    square = dot(P.omega, inverse(P.M), P.omega)
    signs = (P.omega[0, 0],) if P.dimension == 1 else ()
    return (*given.definite(P.M), *signs, square, 1 - sympy.sqrt(square))


def _gradient(P: Parameters) -> tuple[Any, Any]:
    derivative = sympy.ImmutableMatrix([P.metric.norm(P.v).diff(x) for x in P.v])
    return derivative, P.metric.gradient(P.v)


def _hessian(P: Parameters) -> tuple[Any, Any]:
    energy = P.metric.norm(P.v) ** 2 / 2
    hessian = sympy.ImmutableMatrix([[energy.diff(x, y) for x in P.v] for y in P.v])
    return hessian, P.metric.fundamental_tensor(P.v)


def _fundamental_determinant(P: Parameters) -> tuple[Any, Any]:
    stretch = P.metric.norm(P.v) / Riemannian(P.M).norm(P.v)
    tensor = P.metric.fundamental_tensor(P.v)
    return determinant(tensor), stretch ** (P.d + 1) * determinant(P.M)


IDENTITIES = (
    Identity(
        "cauchy_schwarz",
        r"The right side is a square, so $(\omega^{\top} v)^{2} \le n\, v^{\top} M v$ with "
        r"$n = \omega^{\top} M^{-1} \omega$. Where $n < 1$ this gives "
        r"$|\omega^{\top} v| < \sqrt{v^{\top} M v}$ for $v \ne 0$.",
        sides=_cauchy_schwarz,
        positive=lambda P: given.definite(P.M),
    ),
    Identity(
        "norm_product",
        r"For every $\omega$, whatever the sign of $\lambda$. By cauchy_schwarz the right side is "
        r"at least $\lambda\, v^{\top} M v$. So where $\lambda > 0$, both $F(v)$ and $F(-v)$ are "
        r"positive, for their sum $2 \sqrt{v^{\top} M v}$ is.",
        sides=lambda P: (_product(P, P.v), dot(P.v, P.M - P.omega * P.omega.T, P.v)),
        positive=lambda P: (*given.definite(P.M), *given.nonzero(P.v, P.M)),
    ),
    Identity(
        "norm_product_least",
        r"The product $F(v) F(-v)$ at $v = M^{-1} \omega$, where it is least in proportion to "
        r"$v^{\top} M v$, which is $1 - \lambda$ there. Where $\lambda \le 0$ the product is not "
        r"positive, and $F$ is not a metric.",
        sides=lambda P: (_product(P, inverse(P.M) * P.omega), P.metric.lam * (1 - P.metric.lam)),
        positive=lambda P: given.definite(P.M),
    ),
    Identity(
        "homogeneity",
        r"$F$ is positively homogeneous: for $s > 0$.",
        sides=lambda P: (P.metric.norm(_SCALE * P.v), _SCALE * P.metric.norm(P.v)),
        positive=lambda P: (_SCALE, *given.metric_and_vector(P)),
        kind="definition",
    ),
    Identity(
        "reversal",
        r"The reversed metric $v \mapsto F(-v)$ is Randers with the one-form $-\omega$.",
        sides=lambda P: (P.metric.norm(-P.v), P.metric.reverse().norm(P.v)),
        positive=given.metric_and_vector,
        right=r"\sqrt{v^{\top} M v} - \omega^{\top} v",
        kind="definition",
    ),
    Identity(
        "symmetrisation",
        r"The symmetrised metric is Riemannian, that of $M$.",
        sides=lambda P: (
            (P.metric.norm(P.v) + P.metric.norm(-P.v)) / 2,
            P.metric.symmetrize().norm(P.v),
        ),
        positive=given.metric_and_vector,
        kind="definition",
    ),
    Identity(
        "asymmetry",
        r"The ratio $F(v) / F(-v)$ at $v = M^{-1} \omega \ne 0$. By cauchy_schwarz it is nowhere "
        r"larger. The radicand is $1 - \lambda$.",
        sides=_steepest,
        positive=_below_one,
    ),
    Identity(
        "gradient",
        r"The derivative of $F$, by differentiation of the components.",
        sides=_gradient,
        positive=given.metric_and_vector,
        dimensions=(1, 2, 3),
        left=r"\nabla F(v)",
        right=r"\frac{M v}{\sqrt{v^{\top} M v}} + \omega",
    ),
    Identity(
        "euler",
        "Euler's theorem for a homogeneous function.",
        sides=lambda P: (dot(P.v, P.metric.gradient(P.v)), P.metric.norm(P.v)),
        positive=given.metric_and_vector,
    ),
    Identity(
        "fundamental_tensor",
        r"Half the Hessian of $F^{2}$, by differentiation of the components.",
        sides=_hessian,
        positive=given.metric_and_vector,
        dimensions=(2, 3),
        left=r"\tfrac{1}{2} \nabla^{2} F^{2}(v)",
        right=r"g_{v} = \frac{F(v)}{\alpha} "
        r"\left(M - l l^{\top}\right) + \left(l + \omega\right) \left(l + \omega\right)^{\top},"
        r"\quad \alpha = \sqrt{v^{\top} M v},\ l = \tfrac{1}{\alpha} M v",
    ),
    Identity(
        "fundamental_norm",
        r"The fundamental tensor measures its own direction as $F$ does.",
        sides=lambda P: (dot(P.v, P.metric.fundamental_tensor(P.v), P.v), P.metric.norm(P.v) ** 2),
        positive=given.metric_and_vector,
    ),
    Identity(
        "fundamental_determinant",
        r"By the determinant theorem for a change of rank two. So the fundamental tensor is "
        r"positive definite: its determinant has no zero on the way from $\omega = 0$, where it is "
        "$M$. (Bao, Chern and Shen, An Introduction to Riemann-Finsler Geometry, chapter 11.)",
        sides=_fundamental_determinant,
        positive=given.positive_norm,
    ),
)
