"""The spray: the geodesic equation of any Finsler metric, from the norm alone.

Geodesics ``x'' = -2 G(x, x')`` are stationary for the energy ``E(x, v) = F_x(v)^2 / 2``. Euler and
Lagrange's equation for their accelerations ``a = -2 G`` is

    g_v a = E_x - E_vx v,

with the fundamental tensor ``g_v = E_vv``, which a Finsler metric has positive definite. It asks
for no dual norm, which few metrics know in closed form: derivatives of the norm off zero are
enough, the first ones in the position and the second ones in the velocity. PyTorch takes them, and
can differentiate the result again. Hamilton's equations would need the maximiser of a dual norm
found by optimisation, to the square root of rounding, and once more for the gradient.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv._linalg import dot, matvec, outer, solve
from finslerconv.geodesics.fields import MetricField, Positions, as_kind_of
from finslerconv.geodesics.tensors._arguments import read_tangents
from finslerconv.metrics import RandersForm

Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From positions and velocities to the derivatives of the energy, ``(E_x, E_v)``."""

Motion = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From positions and velocities to the norms ``F`` of velocities, and accelerations."""

# The part of the geodesic equation that may stay unsolved where g_v is singular.
_UNSOLVED = 0.25


def spray(field: MetricField, x: Positions, v: Positions) -> Float[Array, "*_ d"]:
    r"""Return the spray coefficients ``G(x, v)``: geodesics are the curves ``x'' = -2 G(x, x')``.

    Parameters
    ----------
    field : GridMetric, FunctionMetric or MetricField
        Of any metrics that compute in PyTorch.
    x : array or sequence, shape (\*batch, ..., d)
        Positions; of a :class:`GridMetric` of several fields the first axes are the batch.
    v : array or sequence, shape (\*batch, ..., d)
        Vectors, none zero; broadcast against ``x``.

    Returns
    -------
    array, shape (\*batch, ..., d)
        Homogeneous of degree 2 in ``v``; of a Riemannian metric half its Christoffel symbols,
        applied to ``v`` twice. Differentiable in everything, as often as the field is. NaN where
        the fundamental tensor is singular, as of a norm with corners, and the geodesic equation
        has no solution.

    Raises
    ------
    TypeError
        If arrays are of different kinds, or not of float32 or float64, or the field's metrics do
        not compute in PyTorch.
    ValueError
        If shapes do not fit, a number is not finite, or a vector is zero.

    References
    ----------
    Shen, "Lectures on Finsler Geometry" (2001), whose conventions are those of this module.

    Examples
    --------
    In polar coordinates of the plane ``(r, phi)``, a straight line across has ``r'' = r phi'^2``:

    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> def polar_metric(x):
    ...     r = x[..., :1]
    ...     return Riemannian(torch.diag_embed(torch.cat((r**0, r**2), -1)))
    >>> polar = FunctionMetric(polar_metric)
    >>> G = tensors.spray(polar, [2.0, 0.0], [0.0, 1.0])
    >>> round(float(G[0]), 12), round(abs(float(G[1])), 12)
    (-1.0, 0.0)
    """
    field, kind, x, v = read_tangents(field, x, v=v)
    return as_kind_of(coefficients(field, x)(x, v), kind)


def coefficients(
    field: MetricField, x: Float[Tensor, "*batch d"]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from positions, of the shape of ``x``, and vectors to ``G(x, v)``."""
    motion = equation_of_motion(field, x)
    return lambda x, v: -0.5 * motion(x, v)[1]


def equation_of_motion(field: MetricField, x: Float[Tensor, "*batch d"]) -> Motion:
    """Return the geodesic equation of a field whose kind of metric is looked at, at ``x``.

    By the closed form for Randers metrics; otherwise by the field's own derivatives
    ``energy_slopes(x, v)`` of the energy, if it has some, or by automatic differentiation.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> velocity, acceleration = tensors.equation_of_motion(half_plane, x)(x, v)
    >>> acceleration.tolist()
    [-0.5, 0.0]
    """
    own: Slopes | None = getattr(field, "energy_slopes", None)
    if own is None and field.at(x).randers_form(x) is not None:
        return lambda x, v: _of_randers(field, x, v)

    def total(x: Tensor, v: Tensor) -> Tensor:
        return field.at(x).energy(v).sum()

    slopes: Slopes = own or torch.func.grad(total, argnums=(0, 1))
    return lambda x, v: _of_any(slopes, x, v)


def _of_randers(
    field: MetricField, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch d"]]:
    def form(x: Tensor) -> tuple[Tensor, Tensor]:
        form = field.at(x).randers_form(x)
        assert form is not None
        M, omega = form.with_omega()
        return M.expand(*x.shape, x.shape[-1]), omega.expand_as(x)

    (M, omega), pull = torch.func.vjp(form, x)  # type: ignore[misc]
    # The derivative along v is the transpose of pull, which is linear.
    none = (torch.zeros_like(M), torch.zeros_like(omega))
    _, push = torch.func.vjp(lambda *u: pull(u)[0], *none)  # type: ignore[misc]
    M_v, omega_v = push(v)
    Mv = matvec(M, v)
    alpha = dot(v, Mv).sqrt()
    F = alpha + dot(omega, v)
    (E_x,) = pull(((F / (2 * alpha))[..., None, None] * outer(v, v), F[..., None] * v))
    # The rate of E_v = F (M v / alpha + omega) along v.
    slope = Mv / alpha[..., None] + omega
    rise = matvec(M_v, v)
    stretch = dot(v, rise) / (2 * alpha)
    turn = (rise - (stretch / alpha)[..., None] * Mv) / alpha[..., None] + omega_v
    rate = (stretch + dot(omega_v, v))[..., None] * slope + F[..., None] * turn
    return F, solve(RandersForm(M, omega).fundamental_tensor(v), E_x - rate)


def _of_any(
    slopes: Slopes, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch d"]]:
    # Typed as if it had three results: it has the third where the function has auxiliary ones.
    (force, p), pull = torch.func.vjp(lambda v: slopes(x, v), v)  # type: ignore[misc]
    none = torch.zeros_like(v)
    eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    rest = force - pull((v, none))[0]
    g = torch.stack([pull((none, axis.expand_as(v)))[0] for axis in eye], dim=-2)
    # The 4-norm, for one, is flat along the axes. There a constant field has 0 a = 0, which the
    # ridge answers by 0.
    size = g.detach().diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    a = solve(g + 4 * torch.finfo(v.dtype).eps * size * eye, rest)
    left = (matvec(g, a) - rest).detach()
    unsolved = dot(left, left) > _UNSOLVED**2 * dot(rest, rest).detach()
    return dot(p, v).sqrt(), torch.where(unsolved[..., None], torch.nan, a)
