"""Identities of metrics beside Randers': asymmetric quadratic, Matsumoto, Kropina, navigation."""

from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._identity import Identity
from finslerconv.symbolic._linear_algebra import dot, identity_like, inverse
from finslerconv.symbolic._navigation import Navigation, PNorm
from finslerconv.symbolic._one_form import AsymmetricQuadratic, Kropina, Matsumoto
from finslerconv.symbolic._parameters import Parameters
from finslerconv.symbolic._riemannian import Riemannian
from finslerconv.symbolic._spaces import funk_ball, funk_norm, klein_ball

#: The speed that gravity adds straight down a wall.
_PULL = sympy.Symbol("c", positive=True)
_SLOPE = sympy.Symbol("s", real=True)


def _asymmetric_dual(P: Parameters) -> tuple[Any, Any]:
    F = AsymmetricQuadratic(P.M, P.omega)
    away, towards = F.halves()
    dual_away, dual_towards = F.dual().halves()
    return (inverse(dual_away.M), inverse(dual_towards.M)), (towards.M, away.M)


def _asymmetric_halves(P: Parameters) -> tuple[Any, Any]:
    F = AsymmetricQuadratic(P.M, P.omega)
    form = F.dual().omega
    root, slope = sympy.sqrt(1 + F.square), F.beta(P.v)
    sides = tuple(dot(form, half.M * P.v) for half in F.halves())
    return sides, (-slope / root, -root * slope)


def _longer(P: Parameters) -> tuple[sympy.Expr, ...]:
    return (*given.definite(P.M), 1 + AsymmetricQuadratic(P.M, P.omega).square)


def _walk(P: Parameters) -> tuple[Any, Any]:
    # Walked along u = v / |v|, gravity's part c sin(slope) downhill adds its component along u.
    ground = Riemannian(identity_like(P.M) + P.p * P.p.T)
    downhill = -_PULL * inverse(ground.M) * P.p
    length = ground.norm(P.v)
    pace = 1 + dot(downhill, ground.M, P.v / length)
    return length / pace, Matsumoto.from_slope(P.p, pull=_PULL).norm(P.v)


def _paces(P: Parameters) -> tuple[sympy.Expr, ...]:
    M = identity_like(P.M) + P.p * P.p.T
    return (1 + dot(P.p, P.p), *given.nonzero(P.v, M))


def _steepness(P: Parameters) -> tuple[Any, Any]:
    square = dot(P.p, P.p)
    return Matsumoto.from_slope(P.p, pull=_PULL).square, _PULL**2 * square / (1 + square)


def _matsumoto_convexity(P: Parameters) -> tuple[Any, Any]:
    F = Matsumoto(P.M, P.omega)
    return F.convexity(_SLOPE), (1 - 3 * _SLOPE + 2 * F.square) / (1 - _SLOPE) ** 3


def _kropina_ball(P: Parameters) -> tuple[Any, Any]:
    F = Kropina(P.M, P.omega)
    centre = inverse(P.M) * P.omega / 2
    distance = dot(P.v - centre, P.M, P.v - centre) - dot(centre, P.M, centre)
    return distance, F.beta(P.v) * (F.norm(P.v) - 1)


def _kropina_convexity(P: Parameters) -> tuple[Any, Any]:
    F = Kropina(P.M, P.omega)
    return F.convexity(_SLOPE), 2 * F.square / _SLOPE**3


def _navigation_dual(P: Parameters) -> tuple[Any, Any]:
    boat = Navigation(Riemannian(P.h), P.W)
    return boat.randers().dual_norm(P.p), boat.dual_norm(P.p)


def _navigation_condition(P: Parameters) -> tuple[sympy.Expr, ...]:
    return (*given.wind(P), *given.nonzero(P.p, inverse(P.h)))


def _navigation_norm(P: Parameters) -> tuple[Any, Any]:
    F = P.navigated.norm(P.v)
    return dot(P.v - F * P.W, P.h, P.v - F * P.W), F**2


def _winds_add_up(P: Parameters) -> tuple[Any, Any]:
    boat = Navigation(P.metric, -2 * P.metric.zermelo().W).randers()
    return (boat.M, boat.omega), (P.M, -P.omega)


def _p_norm_dual(P: Parameters) -> tuple[Any, Any]:
    # By the symmetry of the norm the components may be taken positive.
    v, w = (
        sympy.ImmutableMatrix([sympy.Symbol(f"{name}_{i}", positive=True) for i in range(P.v.rows)])
        for name in ("a", "w")
    )
    F = PNorm(4, w)
    return (F.conjugate, F.dual_norm(F.gradient(v))), (sympy.Rational(4, 3), sympy.S.One)


def _inside(P: Parameters) -> tuple[sympy.Expr, ...]:
    return (1 - dot(P.x, P.x), *given.nonzero(P.v))


def _chord(P: Parameters) -> tuple[sympy.Expr, ...]:
    root = dot(P.v, P.v) * (1 - dot(P.x, P.x)) + dot(P.x, P.v) ** 2
    return (*_inside(P), root, dot(P.v, klein_ball(P.x).M, P.v))


def _funk_definition(P: Parameters) -> tuple[Any, Any]:
    F = funk_norm(P.x, P.v)
    sides = dot(F * P.x + P.v, F * P.x + P.v), funk_ball(P.x).norm(P.v)
    return sides, (F**2, F)


def _hilbert(P: Parameters) -> tuple[Any, Any]:
    F = funk_ball(P.x)
    return (F.norm(P.v) + F.norm(-P.v)) / 2, klein_ball(P.x).norm(P.v)


IDENTITIES = (
    Identity(
        "asymmetric_quadratic_dual",
        r"The dual of $F(v)^{2} = v^{\top} M v + \max(0, \omega^{\top} v)^{2}$ is of the same "
        r"kind, "
        r"with $M^{*} = (M + \omega \omega^{\top})^{-1}$ and "
        r"$\omega^{*} = -M^{-1} \omega / \sqrt{1 + b^{2}}$, $b^{2} = \omega^{\top} M^{-1} "
        r"\omega$. On "
        r"each half-space $F$ is Riemannian, and so is its dual: the two matrices of the dual are "
        r"inverse to those of the metric. asymmetric_quadratic_halves says that the half-spaces "
        "belong together. (Mirebeau's model AsymmetricQuadratic.)",
        sides=_asymmetric_dual,
        positive=_longer,
        dimensions=(1, 2, "any"),
        left=r"\left((M^{*})^{-1},\ (M^{*} + \omega^{*} \omega^{*\top})^{-1}\right)",
        right=r"\left(M + \omega \omega^{\top},\ M\right)",
    ),
    Identity(
        "asymmetric_quadratic_halves",
        r"The Legendre transform $p$ of $v$ is $M v$ where $\omega^{\top} v \le 0$, and "
        r"$(M + \omega \omega^{\top}) v$ where it is positive. Either way $\omega^{*}$ has the "
        r"opposite sign on $p$ that $\omega$ has on $v$.",
        sides=_asymmetric_halves,
        positive=_longer,
        dimensions=(1, 2, "any"),
        left=r"\left(\omega^{*\top} M v,\ \omega^{*\top} (M + \omega \omega^{\top}) v\right)",
        right=r"\left(- \frac{1}{\sqrt{1 + b^{2}}}\, \omega^{\top} v,\ "
        r"- \sqrt{1 + b^{2}}\; \omega^{\top} v\right)",
    ),
    Identity(
        "matsumoto_slope",
        r"Matsumoto's metric from the slope of a mountain. On the graph of a height with the "
        r"gradient $f$ a step $v$ on the map has the length $|v|_{h}$, $h = I + f f^{\top}$. Who "
        r"walks at speed 1 on the plain is carried by gravity with $G = -c\, h^{-1} f$, "
        r"downhill, of "
        r"which the part along the path counts: the pace along $u = v / |v|_{h}$ is "
        r"$1 + u^{\top} h\, G$. (Matsumoto, A slope of a mountain is a Finsler surface with "
        r"respect "
        "to a time measure, J. Math. Kyoto Univ. 29, 1989; his constant is half the acceleration.)",
        sides=_walk,
        positive=_paces,
        dimensions=(1, 2, 3),
        left=r"\frac{|v|_{h}}{1 + u^{\top} h\, G}",
        right=r"\frac{\alpha^{2}}{\alpha - \beta},\quad M = I + f f^{\top},\ \omega = c f",
    ),
    Identity(
        "matsumoto_steepness",
        r"The one-form of matsumoto_slope is as long as gravity's pull along the ground, $c \sin "
        r"\varepsilon$ on a slope of the angle $\varepsilon$, $|f| = \tan \varepsilon$. With "
        r"matsumoto_convexity: convex exactly where $c \sin \varepsilon < 1/2$.",
        sides=_steepness,
        positive=lambda P: (1 + dot(P.p, P.p),),
        dimensions=(1, 2, 3),
        left=r"|\omega|_{M^{-1}}^{2}",
        right=r"c^{2}\, \frac{|f|^{2}}{1 + |f|^{2}} = c^{2} \sin^{2} \varepsilon",
    ),
    Identity(
        "matsumoto_convexity",
        r"The bracket of alpha_beta_determinant for $\varphi(s) = 1 / (1 - s)$. It is least at "
        r"$s = b$, where the numerator is $(1 - b)(1 - 2 b)$: Matsumoto's metric is strongly "
        r"convex "
        r"exactly if $b = |\omega|_{M^{-1}} < 1/2$.",
        sides=_matsumoto_convexity,
        positive=lambda P: given.definite(P.M),
        left=r"\varphi - s \varphi' + (b^{2} - s^{2})\, \varphi''",
        right=r"\frac{1 - 3 s + 2 b^{2}}{(1 - s)^{3}},\quad \varphi = \frac{1}{1 - s}",
    ),
    Identity(
        "kropina_ball",
        r"The unit ball of Kropina's metric $\alpha^{2} / \beta$ on the half-space $\beta > 0$ is "
        r"an ellipse with 0 on its boundary: a boat in a wind as strong as itself.",
        sides=_kropina_ball,
        positive=lambda P: (*given.definite(P.M), *given.nonzero(P.v, P.M)),
        left=r"(v - c)^{\top} M (v - c) - c^{\top} M c",
        right=r"\beta \left(F(v) - 1\right),\quad c = \tfrac{1}{2} M^{-1} \omega",
    ),
    Identity(
        "kropina_convexity",
        r"The bracket of alpha_beta_determinant for $\varphi(s) = 1 / s$: positive on the whole "
        r"half-space, where $s > 0$.",
        sides=_kropina_convexity,
        positive=lambda P: given.definite(P.M),
        left=r"\varphi - s \varphi' + (b^{2} - s^{2})\, \varphi''",
        right=r"\frac{2 b^{2}}{s^{3}},\quad \varphi = \frac{1}{s}",
    ),
    Identity(
        "navigation_dual",
        r"Zermelo's navigation in the dual. The unit ball in the wind is the sea's, moved by $W$; "
        r"the support function of a moved set is the set's plus $p^{\top} W$. So the dual norm is "
        r"the sea's dual norm plus the wind's value, whatever the sea. Here for the Riemannian sea "
        r"$h$, where the left side is the dual of the Randers metric of $(h, W)$.",
        sides=_navigation_dual,
        positive=_navigation_condition,
        dimensions=(1, 2, "any"),
        left=r"F^{*}(p)",
        right=r"\sqrt{p^{\top} h^{-1} p} + p^{\top} W",
    ),
    Identity(
        "navigation_norm",
        r"The travel time $F(v)$ is the time after which the boat, at unit speed in the sea $h$ "
        r"and "
        r"carried by $W$, has made the displacement $v$.",
        sides=_navigation_norm,
        positive=given.wind,
        dimensions=(1, 2, "any"),
        left=r"\left|v - F(v)\, W\right|_{h}^{2}",
        right=r"F(v)^{2}",
    ),
    Identity(
        "navigation_back",
        r"Winds add up: a Randers metric is a sea $h$ in the wind $W$. In the wind $-2 W$ on top "
        r"of it the wind is $-W$, and the metric is the reversed one.",
        sides=_winds_add_up,
        positive=given.metric,
        dimensions=(1, 2, "any"),
        left=r"\left(M,\ \omega\right)_{(h,\, W - 2 W)}",
        right=r"\left(M,\ - \omega\right)",
    ),
    Identity(
        "p_norm_dual",
        r"The dual of a weighted $p$-norm has the inverse weights and the conjugate exponent: the "
        r"gradient has dual norm 1. For $p = 4$ and $q = 4/3$; the components are positive, which "
        "by symmetry is no restriction.",
        sides=_p_norm_dual,
        positive=given.nothing,
        dimensions=(2, 3),
        left=r"\left(q,\ F_{q, 1 / w}(\nabla F_{p, w}(v))\right)",
        right=r"\left(\tfrac{4}{3},\ 1\right),\quad F_{p, w}(v) = "
        r"\left(\sum_{i} |w_{i} v_{i}|^{p}\right)^{1 / p},\ p = 4",
    ),
    Identity(
        "funk_definition",
        r"The Funk metric of the unit ball: the ray from $x$ along $v$ leaves the ball in "
        r"$x + v / F$, so the unit ball at $x$ is the whole ball as seen from $x$. It is the "
        r"Randers metric of Klein's matrix $M$.",
        sides=_funk_definition,
        positive=_chord,
        dimensions=(2, 3),
        left=r"\left(\left|F x + v\right|^{2},\ \sqrt{v^{\top} M v} + "
        r"\tfrac{1}{1 - |x|^{2}}\, x^{\top} v\right)",
        right=r"\left(F^{2},\ F\right),\quad F = \frac{\sqrt{(1 - |x|^{2}) |v|^{2} + (x^{\top} "
        r"v)^{2}} + "
        r"x^{\top} v}{1 - |x|^{2}}",
    ),
    Identity(
        "hilbert_is_klein",
        r"The Hilbert metric, the mean of the Funk metrics there and back, is on the unit ball "
        "Klein's model of the hyperbolic space.",
        sides=_hilbert,
        positive=_chord,
        dimensions=(1, 2, 3),
        left=r"\tfrac{1}{2} \left(F(v) + F(-v)\right)",
        right=r"\sqrt{\frac{|v|^{2}}{1 - |x|^{2}} + \frac{(x^{\top} v)^{2}}{(1 - |x|^{2})^{2}}},"
        r"\quad F\ \text{of Funk}",
    ),
)
