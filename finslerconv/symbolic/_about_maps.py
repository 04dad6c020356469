"""Identities of the maps that carry the Euclidean unit ball into the unit ball of a metric."""

from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._balls import Ellipse, affine, radial, radial_jacobian
from finslerconv.symbolic._identity import Identity
from finslerconv.symbolic._linear_algebra import (
    determinant,
    dot,
    identity_like,
    inverse,
    zeros_like,
)
from finslerconv.symbolic._parameters import Parameters
from finslerconv.symbolic._randers import Randers

_RADIUS = sympy.Symbol("r", real=True)


def _length(P: Parameters) -> sympy.Expr:
    return sympy.sqrt(dot(P.g, P.g))


def _radial_derivative(P: Parameters) -> tuple[Any, Any]:
    return radial(P.metric, P.g).jacobian(P.g), radial_jacobian(P.metric, P.g)


def _radial_determinant(P: Parameters) -> tuple[Any, Any]:
    stretch = _length(P) / P.metric.norm(P.g)
    return determinant(radial_jacobian(P.metric, P.g)), stretch**P.d


def _affine_level(P: Parameters) -> tuple[Any, Any]:
    F = P.navigated
    v = Ellipse(P.W, inverse(P.h)).image(P.g)
    return F.lam * (dot(v, F.M, v) - (1 - dot(F.omega, v)) ** 2), dot(P.g, P.g) - 1


def _affine_determinant(P: Parameters) -> tuple[Any, Any]:
    if isinstance(P.h, sympy.MatrixBase):
        derivative = Ellipse(P.W, inverse(P.h)).image(P.g).jacobian(P.g)
    else:
        derivative = P.h ** sympy.Rational(-1, 2)
    power = P.navigated.lam ** ((P.d + 1) / 2)
    return determinant(derivative), 1 / (power * sympy.sqrt(determinant(P.navigated.M)))


def _lattice(P: Parameters) -> tuple[Any, Any]:
    metric = Randers(identity_like(P.M) / _RADIUS**2, zeros_like(P.omega))
    return (radial(metric, P.g), affine(metric, P.g)), (_RADIUS * P.g, _RADIUS * P.g)


IDENTITIES = (
    Identity(
        "indicatrix",
        r"The ray along $v$ leaves the unit ball in $v / F(v)$.",
        sides=lambda P: (P.metric.norm(P.v / P.metric.norm(P.v)), sympy.S.One),
        positive=given.positive_norm,
        kind="definition",
    ),
    Identity(
        "radial_level",
        r"The radial map $g\, |g| / F(g)$ carries $\{|g| \le s\}$ onto $\{F \le s\}$.",
        sides=lambda P: (P.metric.norm(radial(P.metric, P.g)), _length(P)),
        positive=given.reference_point,
        kind="definition",
    ),
    Identity(
        "radial_derivative",
        "The derivative of the radial map, by differentiation of the components.",
        sides=_radial_derivative,
        positive=given.reference_point,
        dimensions=(1, 2, 3),
        left=r"\frac{\partial}{\partial g} \frac{|g|\, g}{F(g)}",
        right=r"\frac{|g|}{F(g)} "
        r"\left(I + g \left(\frac{g}{|g|^{2}} - \frac{\nabla F(g)}{F(g)}\right)^{\top}\right)",
    ),
    Identity(
        "radial_determinant",
        r"The Jacobian determinant of the radial map: the term of rank one adds nothing, since "
        r"$g^{\top} (g / |g|^{2} - \nabla F(g) / F(g)) = 1 - 1 = 0$ by Euler's theorem.",
        sides=_radial_determinant,
        positive=given.reference_point,
    ),
    Identity(
        "affine_level",
        r"For $v = W + h^{-1/2} g$ the left side is $\lambda (F(v) - 1)(F(-v) + 1)$, so "
        r"$F(v) = 1$ exactly where $|g| = 1$, and $F(v) < 1$ where $|g| < 1$. Proved with "
        r"$(M, \omega)$ made from Zermelo data, which by zermelo_round_trip is no restriction.",
        sides=_affine_level,
        positive=given.wind,
        dimensions=(1, 2, "any"),
    ),
    Identity(
        "affine_determinant",
        r"The Jacobian determinant of the affine map is constant: equal areas stay equal. Proved "
        r"with $(M, \omega)$ made from Zermelo data.",
        sides=_affine_determinant,
        positive=given.wind,
        dimensions=(1, 2, "any"),
    ),
    Identity(
        "lattice",
        r"With $M = I / r^{2}$ and $\omega = 0$ the radial and the affine map multiply by $r > 0$: "
        r"the $k \times k$ lattice divided by $r = \lfloor k / 2 \rfloor$ becomes the taps of the "
        r"standard convolution. With $r = 1$, the Euclidean metric, both maps are the identity.",
        sides=_lattice,
        positive=lambda P: (_RADIUS, *given.nonzero(P.g)),
        dimensions=(1, 2, "any"),
        left=r"\left(\tfrac{|g|}{F(g)}\, g,\ W + h^{-1/2} g\right)",
        right=r"\left(r g,\ r g\right),"
        r"\quad M = \tfrac{1}{r^{2}} I,\ \omega = 0",
        kind="definition",
    ),
)
