"""Identities of the tensors at one point: Euler's theorem, Cartan's tensor, volume densities."""

from typing import Any

import sympy

from finslerconv.symbolic import _conditions as given
from finslerconv.symbolic._balls import Ellipse
from finslerconv.symbolic._identity import Identity
from finslerconv.symbolic._linear_algebra import determinant, dot
from finslerconv.symbolic._one_form import AlphaBeta
from finslerconv.symbolic._parameters import Parameters
from finslerconv.symbolic._riemannian import Riemannian

_DEGREE = sympy.Symbol("k", integer=True)
#: The values of phi and of its first two derivatives at one s.
_JET = sympy.symbols("phi_:3", real=True)


def _euler_powers(P: Parameters) -> tuple[Any, Any]:
    power = P.metric.norm(P.v) ** _DEGREE
    slope = sympy.ImmutableMatrix([power.diff(a) for a in P.v])
    return dot(P.v, slope), _DEGREE * power


def _slices(tensor: sympy.NDimArray) -> tuple[sympy.MatrixBase, ...]:
    """Return the matrices A[:, :, k] of a tensor of order three."""
    d = tensor.shape[0]
    return tuple(sympy.ImmutableMatrix(d, d, lambda i, j, k=k: tensor[i, j, k]) for k in range(d))


def _euler_tensors(P: Parameters) -> tuple[Any, Any]:
    F = P.metric
    contracted = sum(
        (a * C for a, C in zip(P.v, _slices(F.cartan_tensor(P.v)), strict=True)), 0 * P.M
    )
    sides = F.fundamental_tensor(P.v) * P.v, F.angular_metric(P.v) * P.v, contracted
    return sides, (F.legendre(P.v), 0 * P.v, 0 * P.M)


def _cartan_riemannian(P: Parameters) -> tuple[Any, Any]:
    F = Riemannian(P.M)
    energy = F.norm(P.v) ** 2 / 2
    hessian = sympy.ImmutableMatrix([[energy.diff(a, b) for a in P.v] for b in P.v])
    return (hessian, *(hessian.diff(a) / 2 for a in P.v)), (P.M, *(0 * P.M for _ in P.v))


def _cartan_randers(P: Parameters) -> tuple[Any, Any]:
    F, R = P.metric, Riemannian(P.M)
    h = F.angular_metric(P.v)
    tau = F.gradient(P.v) / F.norm(P.v) - R.gradient(P.v) / R.norm(P.v)
    closed = tuple((h * tau[k] + h[:, k] * tau.T + tau * h[k, :]) / 2 for k in range(P.v.rows))
    return _slices(F.cartan_tensor(P.v)), closed


def _any_phi(P: Parameters, s: sympy.Expr) -> AlphaBeta:
    """Return the metric of a function with the values `_JET` at s: a polynomial will do."""
    a, b, c = _JET
    return AlphaBeta(lambda t: a + b * (t - s) + c * (t - s) ** 2 / 2, P.M, P.omega)


def _one(s: sympy.Expr) -> sympy.Expr:
    return sympy.S.One


def _alpha_beta_tensor(P: Parameters) -> tuple[Any, Any]:
    s = sympy.Symbol("s", real=True)
    F = _any_phi(P, s)
    energy = F.norm(P.v) ** 2 / 2
    hessian = sympy.ImmutableMatrix([[energy.diff(a, b) for a in P.v] for b in P.v])
    return tuple(
        tensor.xreplace({s: F.slope(P.v)}) for tensor in (hessian, F.fundamental_tensor(P.v))
    )


def _alpha_beta_determinant(P: Parameters) -> tuple[Any, Any]:
    s = AlphaBeta(_one, P.M, P.omega).slope(P.v)
    F = _any_phi(P, s)
    a, b, _ = _JET
    tensor = F.fundamental_tensor(P.v)
    power = a ** (P.d + 1) * (a - s * b) ** (P.d - 2)
    return determinant(tensor), power * F.convexity(s) * determinant(P.M)


def _busemann_hausdorff(P: Parameters) -> tuple[Any, Any]:
    unit_ball = sympy.pi ** (P.d / 2) / sympy.gamma(P.d / 2 + 1)
    density = P.metric.volume_density("busemann_hausdorff")
    return unit_ball / Ellipse.of(P.metric).volume, density


def _holmes_thompson(P: Parameters) -> tuple[Any, Any]:
    unit_ball = sympy.pi ** (P.d / 2) / sympy.gamma(P.d / 2 + 1)
    dual_ball = Ellipse.of(P.metric.dual())
    return dual_ball.volume / unit_ball, P.metric.volume_density("holmes_thompson")


def _affine_density(P: Parameters) -> tuple[Any, Any]:
    shape = Ellipse.of(P.metric).shape
    return determinant(shape), 1 / P.metric.volume_density("busemann_hausdorff") ** 2


IDENTITIES = (
    Identity(
        "euler_powers",
        r"Euler's theorem for a function of degree $k$, a power of $F$. For $k = 1$ it is euler, "
        r"for $k = 2$ it says that $v$ paired with its Legendre transform is $F^{2}$.",
        sides=_euler_powers,
        positive=given.positive_norm,
        dimensions=(2, 3),
        left=r"v^{\top} \nabla (F^{k})(v)",
        right=r"k\, F(v)^{k}",
    ),
    Identity(
        "euler_tensors",
        r"Euler's theorem for the derivatives: $\nabla F$ is of degree 0, so its Hessian and with "
        r"it the angular metric $h_{v} = F\, \nabla^{2} F$ have $v$ in their kernel; the "
        r"fundamental tensor is of degree 0, so the Cartan tensor has. By differentiation of the "
        "components.",
        sides=_euler_tensors,
        positive=given.positive_norm,
        dimensions=(2, 3),
        left=r"\left(g_{v} v,\ h_{v} v,\ C_{v}(\cdot, \cdot, v)\right)",
        right=r"\left(F(v) \nabla F(v),\ 0,\ 0\right)",
    ),
    Identity(
        "cartan_riemannian",
        r"A Riemannian metric has one fundamental tensor, $M$, and no Cartan tensor. Conversely, "
        r"where the Cartan tensor vanishes $g_{v} = g$ does not depend on $v$, and by "
        r"fundamental_norm $F(v)^{2} = v^{\top} g\, v$. So the Cartan tensor is zero exactly for "
        "Riemannian metrics.",
        sides=_cartan_riemannian,
        positive=lambda P: given.nonzero(P.v, P.M),
        dimensions=(2, 3),
        left=r"\left(g_{v},\ C_{v}\right)",
        right=r"\left(M,\ 0\right),\quad \omega = 0",
    ),
    Identity(
        "cartan_randers",
        r"The Cartan tensor of a Randers metric, by differentiation of the components. It vanishes "
        r"exactly if $\tau$ does, that is if $F / \alpha$ is constant, if $\omega = 0$. "
        "(Matsumoto, On C-reducible Finsler spaces, Tensor 24, 1972.)",
        sides=_cartan_randers,
        positive=given.positive_norm,
        dimensions=(2, 3),
        left=r"C_{ijk}",
        right=r"\tfrac{1}{2} \left(h_{ij} \tau_{k} + h_{jk} \tau_{i} + h_{ki} \tau_{j}\right),"
        r"\quad \tau = \frac{\nabla F}{F} - \frac{\nabla \alpha}{\alpha},"
        r"\ h = F\, \nabla^{2} F",
    ),
    Identity(
        "alpha_beta_tensor",
        r"The fundamental tensor of $F = \alpha\, \varphi(s)$ with $s = \beta / \alpha$, for every "
        r"function $\varphi$: only its value and two derivatives at $s$ enter, so a polynomial of "
        r"degree two stands for it. By differentiation of the components.",
        sides=_alpha_beta_tensor,
        positive=lambda P: (*given.definite(P.M), *given.nonzero(P.v, P.M)),
        dimensions=(2, 3),
        left=r"\tfrac{1}{2} \nabla^{2} F^{2}(v)",
        right=r"\varphi \left(\varphi - s \varphi'\right) \left(M - l l^{\top}\right) + "
        r"\varphi \varphi'' n n^{\top} + p p^{\top},\quad l = \tfrac{1}{\alpha} M v,"
        r"\ n = \omega - s l,\ p = \left(\varphi - s \varphi'\right) l + \varphi' \omega",
    ),
    Identity(
        "alpha_beta_determinant",
        r"By the determinant theorem for a change of low rank, with $b^{2} = \omega^{\top} M^{-1} "
        r"\omega$. So $F$ is a strongly convex norm if $\varphi > 0$ and the last bracket is "
        r"positive for all $|s| \le b$. Then $\varphi - s \varphi'$ is positive too: times "
        r"$\sqrt{b^{2} - s^{2}}$ it falls from $s = 0$ to either end, where it vanishes. (Chern "
        r"and "
        "Shen, Riemann-Finsler Geometry, 2005, lemma 1.1.2.)",
        sides=_alpha_beta_determinant,
        positive=lambda P: (*given.definite(P.M), *given.nonzero(P.v, P.M)),
        dimensions=(2, "any"),
        left=r"\det(g_{v})",
        right=r"\varphi^{d + 1} \left(\varphi - s \varphi'\right)^{d - 2} \left[\varphi - s "
        r"\varphi' "
        r"+ (b^{2} - s^{2})\, \varphi''\right] \det(M)",
    ),
    Identity(
        "busemann_hausdorff",
        r"The density of Busemann and Hausdorff: the volume of the Euclidean unit ball over that "
        r"of the unit ball.",
        sides=_busemann_hausdorff,
        positive=given.metric,
        left=r"\frac{\operatorname{vol}\{|v| \le 1\}}{\operatorname{vol}\{F \le 1\}}",
        right=r"\lambda^{\frac{d + 1}{2}} \sqrt{\det(M)}",
    ),
    Identity(
        "affine_density",
        r"The affine map has the constant Jacobian determinant $\det(h^{-1/2})$. It is one over "
        r"the density of Busemann and Hausdorff: the map carries the Lebesgue measure of the "
        "reference ball, up to that factor, to the Lebesgue measure of the unit ball.",
        sides=_affine_density,
        positive=given.metric,
        left=r"\det(h^{-1/2})^{2}",
        right=r"\sigma_{\mathrm{BH}}^{-2},\quad \sigma_{\mathrm{BH}} = \lambda^{\frac{d + 1}{2}} "
        r"\sqrt{\det(M)}",
    ),
    Identity(
        "holmes_thompson",
        r"The density of Holmes and Thompson: the volume of the dual unit ball over that of the "
        r"Euclidean one. The one-form does not enter, for it only moves the dual ball.",
        sides=_holmes_thompson,
        positive=given.metric,
        dimensions=(1, 2, "any"),
        left=r"\frac{\operatorname{vol}\{F^{*} \le 1\}}{\operatorname{vol}\{|p| \le 1\}}",
        right=r"\sqrt{\det(M)}",
    ),
)
