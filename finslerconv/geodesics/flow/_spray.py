"""The spray: the geodesic equation of any Finsler metric, ``x'' = a(x, x')``, from the norm alone.

Geodesics are stationary for the energy ``E(x, v) = F_x(v)^2 / 2``. Their Euler-Lagrange equation is

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

from finslerconv._linalg import dot, matvec, solve
from finslerconv.geodesics.fields import MetricField
from finslerconv.geodesics.flow._hamiltonian import scaled
from finslerconv.geodesics.flow._steps import Rates
from finslerconv.metrics import FinslerMetric

Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From positions and velocities to the derivatives of the energy, ``(E_x, E_v)``."""

# The part of the geodesic equation that may stay unsolved where g_v is singular.
_UNSOLVED = 0.25


def energy_slopes(field: MetricField) -> Slopes:
    """Return the derivatives of a field's energy: its own, or by automatic differentiation."""
    own: Slopes | None = getattr(field, "energy_slopes", None)

    def total(x: Tensor, v: Tensor) -> Tensor:
        return field.at(x).energy(v).sum()

    return own or torch.func.grad(total, argnums=(0, 1))


def legendre(metric: FinslerMetric, v: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """Return Legendre's transform ``p = E_v`` of velocities; 0 for 0."""
    u, size, still = scaled(v)
    p = torch.func.grad(lambda v: metric.energy(v).sum())(torch.where(still, 1.0, u))
    return torch.where(still, 0.0, size * p)


def velocity_rates(field: MetricField, length: Float[Tensor, "*batch"]) -> Rates:
    """Return the derivatives of positions and velocities, of rays of these lengths.

    As in :func:`rates` of the Hamiltonian, positions move with velocities of that length, whatever
    the size of the velocity that is given.
    """
    slopes = energy_slopes(field)

    def f(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        F, a = spray(slopes, x, v)
        pace = (length / F)[..., None]
        return pace * v, pace * a

    return f


def spray(
    slopes: Slopes, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch d"]]:
    """Return the norms ``F`` of velocities, and the accelerations ``a`` of their geodesics.

    Parameters
    ----------
    slopes : callable
        Of :func:`energy_slopes`.
    x, v : Tensor, shape (..., d)
        Positions and velocities, none zero.

    Returns
    -------
    F : Tensor, shape (...)
    a : Tensor, shape (..., d)
        Homogeneous of degree 2 in ``v``. NaN where ``g_v`` is singular, as of a norm with corners,
        and no acceleration solves the equation.
    """
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
