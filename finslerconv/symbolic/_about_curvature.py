"""Identities of fields of metrics: spray and curvature of the classical spaces, one-forms."""

from collections.abc import Callable
from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._field import MetricField
from finslerconv.symbolic._identity import Identity
from finslerconv.symbolic._linear_algebra import MatrixLike, dot, identity_like, inverse
from finslerconv.symbolic._parameters import Parameters
from finslerconv.symbolic._randers import Randers
from finslerconv.symbolic._riemannian import Riemannian
from finslerconv.symbolic._spaces import (
    funk_ball,
    funk_norm,
    half_space,
    klein_ball,
    poincare_ball,
    sphere,
    sphere_by_angles,
)


def _as_it_stands(expression: Any) -> Any:
    return expression


def _field(at: Callable[[MatrixLike], Any], P: Parameters) -> MetricField:
    """Return a field whose expressions nothing has simplified: the proof does."""
    return MetricField(at(P.x).norm(P.v), P.x, P.v, _as_it_stands)


def _curved(F: MetricField, K: Any) -> tuple[Any, Any]:
    """Return the Riemann curvature and what it is where all flags have the curvature K."""
    sphere_like = 2 * F.energy * identity_like(F.fundamental_tensor) - F.v * F.legendre.T
    return F.riemann_curvature, K * sphere_like


def _everywhere(P: Parameters) -> tuple[sympy.Expr, ...]:
    return (1 + dot(P.x, P.x),)


def _inside(P: Parameters) -> tuple[sympy.Expr, ...]:
    return (1 - dot(P.x, P.x),)


def _chord(P: Parameters) -> tuple[sympy.Expr, ...]:
    """Assume that x is inside the unit ball and v != 0; the others follow."""
    chord = dot(P.v, P.v) * (1 - dot(P.x, P.x)) + dot(P.x, P.v) ** 2
    return (*_inside(P), *given.nonzero(P.v), chord)


def _by_angles(P: Parameters) -> tuple[Any, Any]:
    # With t = tan(latitude / 2) sine and cosine are rational in t.
    t = sympy.Symbol("t", real=True)
    angle = P.x[0, 0]
    values = {sympy.sin(angle): 2 * t / (1 + t**2), sympy.cos(angle): (1 - t**2) / (1 + t**2)}
    return tuple(side.xreplace(values) for side in _curved(_field(sphere_by_angles, P), 1))


def _jet(P: Parameters, closed: bool = False) -> tuple[MatrixLike, MatrixLike, MatrixLike]:
    """Return M(x), omega(x) and the matrix of the slopes of omega, linear in x.

    The spray at x = 0 holds first derivatives only, so linear functions stand for all.
    """
    d = P.x.rows
    slopes = sympy.ImmutableMatrix(
        d,
        d,
        lambda i, j: sympy.Symbol(
            f"D_{min(i, j)}{max(i, j)}" if closed else f"D_{i}{j}", real=True
        ),
    )
    M = sympy.ImmutableMatrix(
        d,
        d,
        lambda i, j: (
            P.M[i, j]
            + sum(
                P.x[k] * sympy.Symbol(f"A_{min(i, j)}{max(i, j)}{k}", real=True) for k in range(d)
            )
        ),
    )
    return M, P.omega + slopes * P.x, slopes


def _at_origin(side: Any, P: Parameters) -> Any:
    return side.xreplace(dict.fromkeys(P.x, sympy.S.Zero))


def _riemannian_spray(P: Parameters) -> tuple[Any, Any]:
    M, _, _ = _jet(P)
    F = MetricField(Riemannian(M).norm(P.v), P.x, P.v, _as_it_stands)
    d = range(P.x.rows)
    first_kind = sympy.ImmutableMatrix(
        [
            sum(
                (M[l, j].diff(P.x[k]) + M[l, k].diff(P.x[j]) - M[j, k].diff(P.x[l]))
                * P.v[j]
                * P.v[k]
                / 4
                for j in d
                for k in d
            )
            for l in d
        ]
    )
    return _at_origin(F.spray, P), inverse(P.M) * first_kind


def _euler_lagrange(L: sympy.Expr, P: Parameters) -> MatrixLike:
    """Return L_xv v - L_x, the Euler-Lagrange equation's part without accelerations."""
    slope = sympy.ImmutableMatrix([L.diff(a) for a in P.v])
    return slope.jacobian(P.x) * P.v - sympy.ImmutableMatrix([L.diff(a) for a in P.x])


def _one_form_force(P: Parameters) -> tuple[Any, Any]:
    _, omega, slopes = _jet(P)
    return _euler_lagrange(dot(omega, P.v), P), (slopes - slopes.T) * P.v


def _randers_spray(P: Parameters) -> tuple[Any, Any]:
    M, omega, slopes = _jet(P)
    F = MetricField(Randers(M, omega).norm(P.v), P.x, P.v, _as_it_stands)
    R = MetricField(Riemannian(M).norm(P.v), P.x, P.v, _as_it_stands)
    here, alpha = Randers(P.M, P.omega), Riemannian(P.M).norm(P.v)
    G = _at_origin(R.spray, P)
    # r_00 and s^i_0 of the covariant derivative of omega, which is D - omega Gamma.
    along = dot(P.v, slopes, P.v) - 2 * dot(P.omega, G)
    turn = inverse(P.M) * (slopes - slopes.T) * P.v / 2
    rate = (along - 2 * alpha * dot(P.omega, turn)) / (2 * here.norm(P.v))
    closed = G + rate * P.v + alpha * turn
    tensor = here.fundamental_tensor(P.v)
    return _at_origin(F.spray_covector, P), 2 * tensor * closed


def _closed_form(P: Parameters) -> tuple[Any, Any]:
    M, omega, slopes = _jet(P, closed=True)
    F = MetricField(Randers(M, omega).norm(P.v), P.x, P.v, _as_it_stands)
    R = MetricField(Riemannian(M).norm(P.v), P.x, P.v, _as_it_stands)
    here = Randers(P.M, P.omega)
    G = _at_origin(R.spray, P)
    along = dot(P.v, slopes, P.v) - 2 * dot(P.omega, G)
    closed = G + along / (2 * here.norm(P.v)) * P.v
    return _at_origin(F.spray_covector, P), 2 * here.fundamental_tensor(P.v) * closed


def _conformal(P: Parameters) -> tuple[Any, Any]:
    # The curvature at x = 0 holds two derivatives of u: exp(u) = 1 + ... to that order.
    x, y = P.x
    names = sympy.symbols("u_0 u_1 u_00 u_01 u_11", real=True)
    a, b, aa, ab, bb = names
    u = a * x + b * y + (aa * x**2 + 2 * ab * x * y + bb * y**2) / 2
    scale = sympy.Symbol("rho", positive=True)
    factor = scale * (1 + u + u**2 / 2)
    F = MetricField(factor * sympy.sqrt(dot(P.v, P.v)), P.x, P.v, _as_it_stands)
    return _at_origin(F.flag_curvature(), P), -(aa + bb) / scale**2


def _klein_spray(P: Parameters) -> tuple[Any, Any]:
    return _field(klein_ball, P).spray, dot(P.x, P.v) / (1 - dot(P.x, P.x)) * P.v


def _okada(P: Parameters) -> tuple[Any, Any]:
    F = funk_norm(P.x, P.v)
    return tuple(
        sympy.ImmutableMatrix([F.diff(a) for a in column]) * factor
        for column, factor in ((P.x, 1), (P.v, F))
    )


def _funk_field(P: Parameters) -> MetricField:
    return MetricField(funk_norm(P.x, P.v), P.x, P.v, _as_it_stands)


def _funk_spray(P: Parameters) -> tuple[Any, Any]:
    F = _funk_field(P)
    return F.spray_covector, F.fundamental_tensor * (F.norm * P.v)


class _Straight(MetricField):
    """The Funk metric with the spray that funk_spray has proved."""

    @property
    def spray(self) -> MatrixLike:
        return self.norm / 2 * self.v


def _funk_curvature(P: Parameters) -> tuple[Any, Any]:
    F = _Straight(funk_norm(P.x, P.v), P.x, P.v, _as_it_stands)
    return _curved(F, sympy.Rational(-1, 4))


def _funk_s_curvature(P: Parameters) -> tuple[Any, Any]:
    F = _Straight(funk_norm(P.x, P.v), P.x, P.v, _as_it_stands)
    density = funk_ball(P.x).volume_density("busemann_hausdorff")
    return (density, F.s_curvature(density)), (sympy.S.One, sympy.Rational(P.d + 1, 2) * F.norm)


_CURVED = r"R_{v}"
_SPHERE_LIKE = r"\left(F^{2} I - v\, (F\, \nabla F)^{\top}\right)"

IDENTITIES = (
    Identity(
        "riemannian_spray",
        r"The spray of a Riemannian metric holds Christoffel's symbols. Proved for $M(x)$ linear "
        r"in $x$, at $x = 0$: only first derivatives enter.",
        sides=_riemannian_spray,
        positive=lambda P: (*given.definite(P.M), *given.nonzero(P.v, P.M)),
        dimensions=(2,),
        left=r"G^{i}",
        right=r"\tfrac{1}{2} \Gamma^{i}_{jk} v^{j} v^{k},\quad \Gamma^{i}_{jk} = \tfrac{1}{2} "
        r"M^{il} \left(\partial_{k} M_{lj} + \partial_{j} M_{lk} - \partial_{l} M_{jk}\right)",
    ),
    Identity(
        "conformal_curvature",
        r"The flag curvature of a conformal metric $F = \mathrm{e}^{u} |v|$ in the plane is its "
        r"Gaussian curvature. Proved at a point for all values of $u$ and its derivatives to the "
        "second order.",
        sides=_conformal,
        positive=lambda P: given.nonzero(P.v),
        dimensions=(2,),
        left=r"K",
        right=r"- \mathrm{e}^{-2 u} \left(\partial_{0}^{2} u + \partial_{1}^{2} u\right)",
    ),
    Identity(
        "sphere_curvature",
        r"The round sphere in stereographic coordinates, $F = 2 |v| / (1 + |x|^{2})$, has the flag "
        r"curvature 1: for every flag, which is what the matrix says.",
        sides=lambda P: _curved(_field(sphere, P), 1),
        positive=lambda P: (*_everywhere(P), *given.nonzero(P.v)),
        dimensions=(2, 3),
        left=_CURVED,
        right=_SPHERE_LIKE,
    ),
    Identity(
        "sphere_by_angles_curvature",
        r"The same sphere by latitude and longitude, $F^{2} = v_{0}^{2} + \cos^{2}(x_{0})\, "
        r"v_{1}^{2}$: curvature does not depend on the chart. Proved with $\tan(x_{0} / 2)$ as the "
        "variable, in which sine and cosine are rational.",
        sides=_by_angles,
        positive=given.nothing,
        dimensions=(2,),
        left=_CURVED,
        right=_SPHERE_LIKE,
    ),
    Identity(
        "half_space_curvature",
        r"The hyperbolic half-plane and half-space, $F = |v| / x_{0}$, have the flag curvature -1.",
        sides=lambda P: _curved(_field(half_space, P), -1),
        positive=lambda P: (P.x[0, 0], *given.nonzero(P.v)),
        dimensions=(2, 3),
        left=_CURVED,
        right="-" + _SPHERE_LIKE,
    ),
    Identity(
        "poincare_curvature",
        r"Poincaré's ball, $F = 2 |v| / (1 - |x|^{2})$, has the flag curvature -1.",
        sides=lambda P: _curved(_field(poincare_ball, P), -1),
        positive=lambda P: (*_inside(P), *given.nonzero(P.v)),
        dimensions=(2, 3),
        left=_CURVED,
        right="-" + _SPHERE_LIKE,
    ),
    Identity(
        "klein_curvature",
        r"Klein's ball, the Hilbert metric of the ball (hilbert_is_klein), has the flag curvature "
        r"-1.",
        sides=lambda P: _curved(_field(klein_ball, P), -1),
        positive=_chord,
        dimensions=(2,),
        left=_CURVED,
        right="-" + _SPHERE_LIKE,
    ),
    Identity(
        "klein_spray",
        r"Its spray is a multiple of $v$, so that geodesics are straight lines, on which only the "
        r"speed changes.",
        sides=_klein_spray,
        positive=_chord,
        dimensions=(2,),
        left="G",
        right=r"\frac{x^{\top} v}{1 - |x|^{2}}\, v",
    ),
    Identity(
        "funk_equation",
        r"Funk's and Okada's equation, from which the spray and the curvature of the Funk metric "
        r"follow. (Okada, On models of projectively flat Finsler spaces of constant negative "
        "curvature, Tensor 40, 1983.)",
        sides=_okada,
        positive=_chord,
        dimensions=(2, 3),
        left=r"\frac{\partial F}{\partial x}",
        right=r"F\, \frac{\partial F}{\partial v}",
    ),
    Identity(
        "funk_spray",
        r"The spray of the Funk metric is $G = \tfrac{1}{2} F v$: straight geodesics. Proved in "
        r"the "
        r"form that needs no inverse, with the energy $E = \tfrac{1}{2} F^{2}$; the left side is "
        r"$2 g_{v} G$ by definition.",
        sides=_funk_spray,
        positive=_chord,
        dimensions=(2, 3),
        left=r"\frac{\partial^{2} E}{\partial v\, \partial x}\, v - \frac{\partial E}{\partial x}",
        right=r"2 g_{v} \left(\tfrac{1}{2} F v\right)",
    ),
    Identity(
        "funk_curvature",
        r"The Funk metric has the flag curvature -1/4. Computed from the spray that funk_spray "
        "has found.",
        sides=_funk_curvature,
        positive=_chord,
        dimensions=(2,),
        left=_CURVED,
        right=r"- \tfrac{1}{4} " + _SPHERE_LIKE,
    ),
    Identity(
        "funk_s_curvature",
        r"Every unit ball of the Funk metric is the ball itself, moved, so the density of Busemann "
        r"and Hausdorff is 1; the S-curvature is $(d + 1) F / 2$. A volume shrinks along "
        "every geodesic at the same rate.",
        sides=_funk_s_curvature,
        positive=_chord,
        dimensions=(2,),
        left=r"\left(\sigma_{\mathrm{BH}},\ S\right)",
        right=r"\left(1,\ \tfrac{d + 1}{2} F\right)",
    ),
    Identity(
        "one_form_force",
        r"What a one-form adds to the Euler-Lagrange equation of the length is the value of "
        r"$\mathrm{d}\omega$: nothing if $\omega$ is closed. Here $\beta = \omega(x)^{\top} v$, "
        r"and "
        r"$(\mathrm{d} \omega)_{ij} = \partial_{i} \omega_{j} - \partial_{j} \omega_{i}$.",
        sides=_one_form_force,
        positive=given.nothing,
        dimensions=(2, 3),
        left=r"\frac{\partial^{2} \beta}{\partial v^{i}\, \partial x^{j}}\, v^{j} - "
        r"\frac{\partial \beta}{\partial x^{i}}",
        right=r"(\mathrm{d} \omega)_{ji}\, v^{j}",
    ),
    Identity(
        "randers_spray",
        r"The spray $G$ of a Randers metric in $M$ and $\omega$. With the Levi-Civita derivative "
        r"$\nabla$ and the spray $G_{M}$ of $M$: along $v$ it adds to the speed, and across it "
        r"only $\mathrm{d}\omega$ acts, as a magnetic field does. If $\omega$ is parallel, "
        r"$\nabla \omega = 0$, then $G = G_{M}$ is quadratic in $v$ and $F$ is a Berwald metric. "
        r"Proved in the form $2 g_{v} G$, for $M(x)$ and $\omega(x)$ linear in $x$, at $x = 0$: "
        "only first derivatives enter. (Bao, Chern and Shen, chapter 11.)",
        sides=_randers_spray,
        positive=given.positive_norm,
        dimensions=(2,),
        left=r"G",
        right=r"G_{M} + \frac{(\nabla \omega)(v, v) - 2 \alpha\, \omega^{\top} s}{2 F}\, v + "
        r"\alpha\, s,\quad s^{i} = \tfrac{1}{2} M^{ij} (\mathrm{d} \omega)_{kj}\, v^{k}",
    ),
    Identity(
        "closed_form_spray",
        r"If $\omega$ is closed, $\mathrm{d}\omega = 0$, the spray of the Randers metric differs "
        r"from that of $M$ by a multiple of $v$: the geodesics of $F$ are those of $M$ as sets of "
        r"points, run through at another speed. Proved as randers_spray.",
        sides=_closed_form,
        positive=given.positive_norm,
        dimensions=(2,),
        left=r"G",
        right=r"G_{M} + \frac{(\nabla \omega)(v, v)}{2 F}\, v",
    ),
)
