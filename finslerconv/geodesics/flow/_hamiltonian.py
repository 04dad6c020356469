"""The Hamiltonian ``H(x, p) = F*_x(p)^2 / 2``, whose flow is the flow of geodesics."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from finslerconv._arrays import safe_sqrt
from finslerconv._linalg import dot, inverse, matvec
from finslerconv._transforms import has_tangent, is_transformed
from finslerconv.geodesics.fields import MetricField, Outside
from finslerconv.metrics import Randers


def scaled(v: Float[Tensor, "*batch d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors divided by their sizes, the sizes ``(..., 1)``, and which count as zero.

    For what is homogeneous in a vector: squares of its components underflow or overflow long
    before the components do, those of the quotient never. The size is the largest component, and
    no gradient goes through it, since by homogeneity the result does not depend on it. Vectors so
    small that their quotients would lose digits count as zero; they and their sizes come back as
    0 and 1.
    """
    info = torch.finfo(v.dtype)
    size = v.detach().abs().amax(-1, keepdim=True)
    still = size < info.tiny / info.eps
    size = torch.where(still, 1.0, size)
    return torch.where(still, 0.0, v) / size, size, still


def momentum(metric: Randers, v: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """Return Legendre's transform ``p = F(v) dF(v)`` of velocities; 0 for 0.

    ``F*(p) = F(v)``.
    """
    still = (v == 0).all(-1, keepdim=True)
    v = torch.where(still, torch.ones_like(v), v)
    Mv = matvec(metric.M, v)
    alpha = dot(v, Mv).sqrt()
    F = alpha + dot(metric.omega, v)
    p = F[..., None] * (Mv / alpha[..., None] + metric.omega)
    return torch.where(still, torch.zeros_like(p), p)


def hamiltonian(metric: Randers, p: Float[Tensor, "*_ d"]) -> Float[Tensor, "..."]:
    """Return the energies ``H = F*(p)^2 / 2`` of momenta."""
    return metric.dual_norm(p) ** 2 / 2


def velocity(metric: Randers, p: Float[Tensor, "*_ d"]) -> Float[Tensor, "*_ d"]:
    """Return the velocities ``dH/dp``, Legendre's transform back; 0 for 0.

    With ``z = M^-1 (p - F omega)``, F the dual norm of ``p``, it is ``(F / root) z``, ``root``
    the square root in :meth:`finslerconv.metrics.Randers.dual_norm`.
    """
    p, size, still = scaled(p)
    z, root, F = _normal(metric.M, metric.omega, torch.where(still, 1.0, p))
    return torch.where(still, 0.0, size * (F / root)[..., None] * z)


def _normal(M: Tensor, omega: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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

    The Hamiltonian is ``L F*_x(p)`` with the ray's ``length`` L: the same geodesics as those of
    ``F*_x(p)^2 / 2`` with ``F* = L``, but of velocities that have the length L whatever ``p``. So
    no ray can run away, however rough the field and however long the steps, and ``p`` may be of
    any size. Where gradients are recorded they can be differentiated again, in the field's
    parameters too.
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


class Grid(NamedTuple):
    """The geometry of fields that are read from a table of their nodes' entries."""

    shape: tuple[int, ...]
    """The number of nodes along each axis."""

    spacing: tuple[float, ...]
    outside: Outside


def grid_table(
    grid: Grid,
    M: Float[Tensor, "*nodes d d"],
    omega: Float[Tensor, "*nodes d"] | None,
) -> Float[Tensor, "rows entries"]:
    """Return the table of fields: a row for each node, fields one after the other.

    A row holds the upper triangle of ``M`` row by row and ``omega``, if there is one, then their
    slopes along each axis: central differences, one-sided at the ends. Between the nodes slopes are
    interpolated as the entries are. They differ by the order of the error, the square of the
    spacing, from the slopes of the interpolated entries, but those jump at every line of nodes:
    these do not, so that long steps serve, and a ray along such a line sees both sides of it.
    """
    d = M.shape[-1]
    # The mean of both halves, so that the gradient in M is symmetric as M is.
    columns = [
        (M[..., i, j] + M[..., j, i]) / 2 if i < j else M[..., i, i]
        for i in range(d)
        for j in range(i, d)
    ]
    if omega is not None:
        columns += [omega[..., i] for i in range(d)]
    entries = torch.stack(columns, dim=-1)
    slopes = [_slope(entries, axis - d - 1, grid.spacing[axis]) for axis in range(d)]
    return torch.cat((entries, *slopes), dim=-1).flatten(0, -2)


def _slope(f: Tensor, axis: int, step: float) -> Tensor:
    """Return the slopes along an axis counted from the last, 0 along one of a single node."""
    n = f.shape[axis]
    # Without a case of its own for small n, so that a program exported for one size serves all.
    rise = torch.cat((f.narrow(axis, 0, 1), f, f.narrow(axis, n - 1, 1)), dim=axis).diff(dim=axis)
    place = torch.arange(n, device=f.device).reshape(-1, *(1,) * (-axis - 1))
    at_end = (place == 0) | (place == n - 1)
    apart = 2 - at_end.to(f.dtype)
    return (rise.narrow(axis, 0, n) + rise.narrow(axis, 1, n)) / (apart * step)


def grid_metric(
    grid: Grid,
    table: Float[Tensor, "nodes entries"],
    first: Int[Tensor, "*#batch"],
    c: Float[Tensor, "*#batch d"],
) -> Randers:
    """Return the metrics of fields read linearly; arguments as of :func:`grid_rates`."""
    (M, omega), _ = _read(grid, table, first, c)
    return Randers(M, omega, validate=False)


def grid_rates(
    grid: Grid,
    table: Float[Tensor, "nodes entries"],
    first: Int[Tensor, "*#batch"],
    c: Float[Tensor, "*#batch d"],
    p: Float[Tensor, "*#batch d"],
    length: Float[Tensor, "*#batch"],
) -> tuple[Float[Tensor, "*_ d"], Float[Tensor, "*_ d"]]:
    """Return :func:`rates` for fields read linearly from their grids, in closed form.

    The force ``-dF*/dx`` is the derivative of ``F_x(v)`` in ``x`` at the velocity, times
    ``F* / L``.

    Parameters
    ----------
    grid : Grid
    table : Tensor, shape (nodes, entries)
        Of :func:`grid_table`.
    first : Tensor, shape (...)
        The row of the table at which a ray's field begins.
    c : Tensor, shape (..., d)
        Coordinates in nodes.
    p : Tensor, shape (..., d)
        Momenta, none zero.
    length : Tensor, shape (...)
        The lengths ``L`` of velocities.
    """
    (M, omega), slopes = _read(grid, table, first, c)
    z, root, F = _normal(M, omega, p)
    scale = length / root
    force = [scale * (dot(z, matvec(dM, z)) / 2 + F * dot(domega, z)) for dM, domega in slopes]
    return scale[..., None] * z, torch.stack(force, dim=-1)


_Entries = tuple[Tensor, Tensor]


def _read(grid: Grid, table: Tensor, first: Tensor, c: Tensor) -> tuple[_Entries, list[_Entries]]:
    """Return ``(M, omega)`` at the coordinates, and their slopes along each axis."""
    d = len(grid.shape)
    offsets = torch.zeros_like(first)[..., None]
    weights = torch.ones_like(c[..., :1])
    signs = []
    for axis, n in enumerate(grid.shape):
        t, sign = _continued(c[..., axis], n, grid.outside)
        signs.append(sign)
        i = t.detach().floor().clamp(0, max(n - 2, 0))
        nodes = torch.stack((i, (i + 1).clamp(max=n - 1)), dim=-1).long()
        w = torch.stack((1 - (t - i), t - i), dim=-1)
        weights = (weights[..., :, None] * w[..., None, :]).flatten(-2)
        offsets = (n * offsets[..., :, None] + nodes[..., None, :]).flatten(-2)
    rows = embedding(first[..., None] + offsets, table)
    value, *slopes = (rows * weights[..., None]).sum(-2).chunk(d + 1, dim=-1)
    return _unpacked(value, d), [
        _unpacked(slope * sign[..., None], d) for slope, sign in zip(slopes, signs, strict=True)
    ]


def _continued(c: Tensor, n: int, outside: Outside) -> tuple[Tensor, Tensor]:
    """Return coordinates brought into [0, n - 1], and what slopes are multiplied by there.

    Outside that changes within a node to what it is there, 0 or -1, so that no ray along the edge
    hangs on a rounding error.
    """
    last = n - 1.0
    if n == 1:
        return torch.zeros_like(c), torch.zeros_like(c)
    beyond = torch.maximum(-c, c - last)
    if outside == "constant":
        return c.clamp(0.0, last), (1 - beyond).clamp(0.0, 1.0)
    folded = c.remainder(2 * last)
    mirrored = folded > last
    far = 1.0 - 2.0 * mirrored.to(c.dtype)
    sign = torch.where(beyond > last, far, (1 - 2 * beyond).clamp(-1.0, 1.0))
    return torch.where(mirrored, 2 * last - folded, folded), sign


def _unpacked(entries: Tensor, d: int) -> _Entries:
    upper = [(i, j) for i in range(d) for j in range(i, d)]
    places = [upper.index((min(i, j), max(i, j))) for i in range(d) for j in range(d)]
    M = entries[..., places].unflatten(-1, (d, d))
    omega = entries[..., len(upper) :]
    return M, omega if omega.shape[-1] else torch.zeros_like(M[..., 0])
