"""The Hamiltonian ``H(x, p) = F*_x(p)^2 / 2`` of Randers metrics, whose flow is the geodesics'."""

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import safe_sqrt
from finslerconv._linalg import dot, inverse, matvec
from finslerconv._transforms import has_tangent, is_transformed
from finslerconv.geodesics.fields import MetricField
from finslerconv.metrics import FinslerMetric


def scaled(v: Float[Tensor, "*batch d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors divided by their sizes, the sizes ``(..., 1)``, and which count as zero.

    For functions that are homogeneous in a vector: the squares of the quotient's components neither
    underflow nor overflow. The size is the largest component; it carries no gradient, since by
    homogeneity the result does not depend on it. Vectors so small that their quotients would lose
    digits count as zero: they come back as 0, of size 1.
    """
    info = torch.finfo(v.dtype)
    size = v.detach().abs().amax(-1, keepdim=True)
    still = size < info.tiny / info.eps
    size = torch.where(still, 1.0, size)
    return torch.where(still, 0.0, v) / size, size, still


def momentum(metric: FinslerMetric, v: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """Return Legendre's transform ``p = F(v) dF(v)`` of velocities; 0 for 0.

    ``F*(p) = F(v)``. Metrics are Randers ones, here and below.
    """
    M, omega = _entries(metric, v)
    still = (v == 0).all(-1, keepdim=True)
    v = torch.where(still, torch.ones_like(v), v)
    Mv = matvec(M, v)
    alpha = dot(v, Mv).sqrt()
    F = alpha + dot(omega, v)
    p = F[..., None] * (Mv / alpha[..., None] + omega)
    return torch.where(still, torch.zeros_like(p), p)


def hamiltonian(metric: FinslerMetric, p: Float[Tensor, "*_ d"]) -> Float[Tensor, "..."]:
    """Return the energies ``H = F*(p)^2 / 2`` of momenta."""
    return metric.dual_norm(p) ** 2 / 2


def velocity(metric: FinslerMetric, p: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """Return the velocities ``dH/dp``, Legendre's transform back; 0 for 0.

    With ``z = M^-1 (p - F omega)``, F the dual norm of ``p``, it is ``(F / root) z``, ``root``
    the square root in :meth:`finslerconv.metrics.Randers.dual_norm`.
    """
    p, size, still = scaled(p)
    z, root, F = normal(*_entries(metric, p), torch.where(still, 1.0, p))
    return torch.where(still, 0.0, size * (F / root)[..., None] * z)


def _entries(metric: FinslerMetric, v: Tensor) -> tuple[Tensor, Tensor]:
    form = metric.randers_form(v)
    assert form is not None
    return form.with_omega()


def normal(M: Tensor, omega: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``z = M^-1 (p - F omega)``, the square root and ``F``, the dual norm of ``p``."""
    M_inverse = inverse(M)
    a = matvec(M_inverse, omega)
    y = matvec(M_inverse, p)
    lam = 1.0 - dot(omega, a)
    q, s = dot(p, y), dot(a, p)
    root = safe_sqrt(lam * q + s * s)
    positive = s > 0
    # Written so that nothing cancels.
    F = torch.where(positive, q / torch.where(positive, root + s, 1.0), (root - s) / lam)
    return y - F[..., None] * a, root, F


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
