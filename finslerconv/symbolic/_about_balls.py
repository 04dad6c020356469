"""Identities of the unit ball: Zermelo data, the ellipse, its area."""

from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._balls import Ellipse, sqrtm
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
from finslerconv.symbolic._riemannian import Riemannian

_SCALE = sympy.Symbol("s", real=True)


def completed_square(P: Parameters) -> tuple[Any, Any]:
    """Return the matrix and the centre of the ellipse v' (M - omega omega') v + 2 omega' v <= 1."""
    A = P.M - P.omega * P.omega.T
    # The centre is where the quadratic form has no slope; there it takes the value -size.
    centre = -inverse(A) * P.omega
    size = 1 + dot(P.omega, inverse(A), P.omega)
    return A / size, centre


def _unit_ball(P: Parameters) -> tuple[Any, Any]:
    F = P.metric
    h, W = F.zermelo()
    return dot(P.v - W, h, P.v - W) - 1, F.lam * (F.norm(P.v) - 1) * (F.norm(-P.v) + 1)


def _wind_norm(P: Parameters) -> tuple[Any, Any]:
    h, W = P.metric.zermelo()
    return dot(W, h, W), dot(P.omega, inverse(P.M), P.omega)


def _round_trip(P: Parameters) -> tuple[Any, Any]:
    back = Randers.from_zermelo(*P.metric.zermelo())
    return (back.M, back.omega), (P.M, P.omega)


def _riemannian(P: Parameters) -> tuple[Any, Any]:
    metric = Randers(P.M, zeros_like(P.omega))
    ball, dual = metric.zermelo(), metric.dual()
    zero = zeros_like(P.omega)
    return (ball.h, ball.W, dual.M, dual.omega), (P.M, zero, Riemannian(P.M).dual().M, zero)


def _reversed(P: Parameters) -> tuple[Any, Any]:
    h, W = P.metric.zermelo()
    return tuple(P.metric.reverse().zermelo()), (h, -W)


def _dilated(P: Parameters) -> tuple[Any, Any]:
    h, W = P.metric.zermelo()
    dilated = Randers(P.M / _SCALE**2, P.omega / _SCALE).zermelo()
    return tuple(dilated), (h / _SCALE**2, _SCALE * W)


def _volume(P: Parameters) -> tuple[Any, Any]:
    unit_ball = sympy.pi ** (P.d / 2) / sympy.gamma(P.d / 2 + 1)
    power = P.metric.lam ** ((P.d + 1) / 2)
    return Ellipse.of(P.metric).volume, unit_ball / (power * sympy.sqrt(determinant(P.M)))


# The symbols of M serve as a general positive definite matrix in what follows.


def _axes(P: Parameters) -> tuple[Any, Any]:
    axes = Ellipse(P.W, P.M).axes
    characteristic = [determinant(P.M - axis**2 * identity_like(P.M)) for axis in axes]
    zero = sympy.S.Zero
    return (*characteristic, axes[0] ** 2 * axes[1] ** 2), (zero, zero, determinant(P.M))


def _angle(P: Parameters) -> tuple[Any, Any]:
    ellipse = Ellipse(P.W, P.M)
    [double_angle] = ellipse.angle.atoms(sympy.atan2)
    sine, cosine = double_angle.args  # up to their common length
    length = sympy.sqrt(sine**2 + cosine**2)
    reflection = sympy.ImmutableMatrix([[-cosine, sine], [sine, cosine]]) / length
    projection = (identity_like(P.M) + reflection) / 2
    return P.M * projection, ellipse.axes[0] ** 2 * projection


IDENTITIES = (
    Identity(
        "zermelo_data",
        r"By completing the square. Squared, $\sqrt{v^{\top} M v} \le 1 - \omega^{\top} v$ is "
        r"$v^{\top} A v + 2 \omega^{\top} v \le 1$ with $A = M - \omega \omega^{\top}$, an ellipse "
        r"around $W = -A^{-1} \omega$ whose shape matrix is the inverse of "
        r"$h = A / (1 + \omega^{\top} A^{-1} \omega)$. The proof is that these are the formulas on "
        r"the right; unit_ball proves that the ellipse is the unit ball.",
        # The method of the class, so that the statement shows the formulas and not their names.
        sides=lambda P: (completed_square(P), tuple(Randers.zermelo(P.metric))),
        positive=given.metric,
        left=r"\left(h,\ W\right)",
    ),
    Identity(
        "unit_ball",
        r"The unit ball $\{F \le 1\}$ is the ellipse $\{(v - W)^{\top} h\, (v - W) \le 1\}$: "
        r"$\lambda > 0$, and $F(-v) + 1 > 0$ (see norm_product), so both sides have the sign of "
        r"$F(v) - 1$. Squaring $\sqrt{v^{\top} M v} = 1 - \omega^{\top} v$ brings in the branch "
        r"$F(-v) = -1$, which is empty.",
        sides=_unit_ball,
        positive=given.metric_and_vector,
    ),
    Identity(
        "wind_norm",
        r"$|W|_{h} = |\omega|_{M^{-1}}$: one is below 1 exactly if the other is. In other words "
        r"$\lambda = 1 - W^{\top} h W$.",
        sides=_wind_norm,
        positive=given.metric,
    ),
    Identity(
        "zermelo_lambda",
        r"For the metric $(M, \omega)$ made from Zermelo data $(h, W)$: positive for "
        r"$|W|_{h} < 1$.",
        sides=lambda P: (P.navigated.lam, 1 - dot(P.W, P.h, P.W)),
        positive=given.wind,
    ),
    Identity(
        "zermelo_round_trip",
        "From a metric to Zermelo data and back. (Bao, Robles and Shen, Zermelo navigation on "
        "Riemannian manifolds, J. Differential Geom. 66, 2004.)",
        sides=_round_trip,
        positive=given.metric,
    ),
    Identity(
        "zermelo_inverse_round_trip",
        "From Zermelo data to a metric and back. So every ellipse that holds the origin inside is "
        "the unit ball of exactly one Randers metric.",
        sides=lambda P: (tuple(Randers.zermelo(P.navigated)), (P.h, P.W)),
        positive=given.wind,
    ),
    Identity(
        "zermelo_determinant",
        r"By the determinant theorem for a change of rank one, "
        r"$\det(M - \omega \omega^{\top}) = \lambda \det(M)$.",
        sides=lambda P: (
            determinant(P.metric.zermelo().h),
            P.metric.lam ** (P.d + 1) * determinant(P.M),
        ),
        positive=given.metric,
    ),
    Identity(
        "volume",
        r"The volume of the unit ball: that of the Euclidean one over $\sqrt{\det(h)}$. In the "
        r"plane it is the area, $\pi / (\lambda^{3/2} \sqrt{\det(M)})$.",
        sides=_volume,
        positive=given.metric,
    ),
    Identity(
        "axes",
        r"The squared half-axes $a^{2} \ge b^{2}$ of an ellipse in the plane are the eigenvalues "
        r"of its shape matrix $A$, which is $h^{-1}$ for the unit ball.",
        sides=_axes,
        positive=lambda P: given.definite(P.M),
        dimensions=(2,),
        left=r"\left(\det(A - a^{2} I),\ \det(A - b^{2} I),\ a^{2} b^{2}\right)",
        right=r"\left(0,\ 0,\ \det(A)\right),"
        r"\quad a, b = \sqrt{\tfrac{1}{2} \left(\operatorname{tr} A "
        r"\pm \sqrt{(A_{00} - A_{11})^{2} + 4 A_{01}^{2}}\right)}",
    ),
    Identity(
        "angle",
        r"The direction $u$ of the large half-axis $a$ of an ellipse of shape matrix $A$ that is "
        r"no circle. Proved for the projection $u u^{\top}$, whose entries are those of the double "
        r"angle.",
        sides=_angle,
        positive=lambda P: given.definite(P.M),
        dimensions=(2,),
        left=r"A\, u u^{\top}",
        right=r"a^{2}\, u u^{\top},\quad u = \left(\sin \theta,\ \cos \theta\right),"
        r"\ \theta = \tfrac{1}{2} \operatorname{atan2}(2 A_{01}, A_{11} - A_{00})",
    ),
    Identity(
        "riemannian_ball",
        r"A Riemannian metric is the Randers metric of $\omega = 0$: its ball is "
        r"$\{v^{\top} M v \le 1\}$, centred and of shape matrix $M^{-1}$.",
        sides=_riemannian,
        positive=lambda P: given.definite(P.M),
        left=r"\left(h,\ W,\ M^{*},\ \omega^{*}\right)_{\omega = 0}",
        right=r"\left(M,\ 0,\ M^{-1},\ 0\right)",
        kind="definition",
    ),
    Identity(
        "reversed_ball",
        r"The ball of the reversed metric (marked $-$) is the point reflection of the ball.",
        sides=_reversed,
        positive=given.metric,
        kind="definition",
    ),
    Identity(
        "dilated_ball",
        r"The ball of $(M / s^{2},\ \omega / s)$ is $s$ times the ball: to dilate a kernel is to "
        r"scale the metric.",
        sides=_dilated,
        positive=lambda P: (_SCALE, *given.metric(P)),
        left=r"\left(h,\ W\right)_{M / s^{2},\ \omega / s}",
        right=r"\left(\tfrac{1}{s^{2}} h,\ s W\right)_{M,\ \omega}",
        kind="definition",
    ),
    Identity(
        "sqrtm",
        r"The root of a positive definite $2 \times 2$ matrix. It is positive definite itself, as "
        "a sum of such matrices, hence the principal root.",
        sides=lambda P: (sqrtm(P.M) ** 2, P.M),
        positive=lambda P: given.definite(P.M),
        dimensions=(1, 2),
        left=r"\left(\frac{A + \sqrt{\det(A)}\, I}{\sqrt{\operatorname{tr} A + "
        r"2 \sqrt{\det(A)}}}\right)^{2}",
        right="A",
    ),
)
