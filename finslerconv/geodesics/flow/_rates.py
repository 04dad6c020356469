"""The equations of geodesics: Hamilton's for Randers metrics, the spray's for all others.

The Hamiltonian is ``H(x, p) = F*_x(p)^2 / 2``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._transforms import has_tangent, is_transformed
from finslerconv.geodesics.fields import MetricField
from finslerconv.geodesics.flow._steps import Rates
from finslerconv.geodesics.tensors import equation_of_motion
from finslerconv.metrics import FinslerMetric


def hamiltonian(metric: FinslerMetric, p: Float[Tensor, "*_ d"]) -> Float[Tensor, "..."]:
    """Return the energies ``H = F*(p)^2 / 2`` of momenta."""
    return metric.dual_norm(p) ** 2 / 2


def rates(
    field: MetricField,
    x: Float[Tensor, "*batch d"],
    p: Float[Tensor, "*batch d"],
    length: Float[Tensor, "*batch"],
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Return ``(dx/dt, dp/dt) = (dH/dp, -dH/dx)`` of any field, by automatic differentiation.

    The Hamiltonian is ``L F*_x(p)`` with the ray's ``length`` L. Its geodesics are those of
    ``F*_x(p)^2 / 2`` with ``F* = L``, but velocities have the length L whatever the size of ``p``:
    no ray runs away in a rough field or by long steps. Where gradients are recorded the rates can
    be differentiated again, in the field's parameters too.
    """

    def total(x: Tensor, p: Tensor) -> Tensor:
        return (length * field.at(x).dual_norm(p)).sum()

    if is_transformed():
        H_x, H_p = torch.func.grad(total, argnums=(0, 1))(x, p)
        return H_p, -H_x
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        # New names: p and the length may themselves have been computed from x.
        x, p = (
            u.view_as(u) if (recording and u.requires_grad) or has_tangent(u) else u.detach()
            for u in (x, p)
        )
        x, p = (u if u.requires_grad else u.requires_grad_() for u in (x, p))
        H = total(x, p)
        H_x, H_p = torch.autograd.grad(
            H, (x, p), create_graph=recording, allow_unused=True, materialize_grads=True
        )
    return H_p, -H_x


def velocity_rates(
    field: MetricField, x: Float[Tensor, "*batch d"], length: Float[Tensor, "*batch"]
) -> Rates:
    """Return the derivatives of positions and velocities, of rays of these lengths from ``x``.

    As in :func:`rates` of the Hamiltonian, positions move with velocities of that length, whatever
    the size of the velocity that is given.
    """
    motion = equation_of_motion(field, x)

    def f(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        F, a = motion(x, v)
        pace = (length / F)[..., None]
        return pace * v, pace * a

    return f
