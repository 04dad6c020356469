"""The Hamiltonian ``H(x, p) = F*_x(p)^2 / 2``, whose flow is the flow of geodesics."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from finslerconv._arrays import safe_sqrt
from finslerconv.geodesics._grid import MetricField, Outside
from finslerconv.metrics import Randers
from finslerconv.metrics._linalg import dot, inverse, matvec


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
    still = (p == 0).all(-1, keepdim=True)
    z, root, F = _normal(metric.M, metric.omega, torch.where(still, torch.ones_like(p), p))
    return torch.where(still, torch.zeros_like(z), (F / root)[..., None] * z)


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
    length: Float[Tensor, "*batch"] | None = None,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Return ``(dx/dt, dp/dt) = (dH/dp, -dH/dx)`` of any field, by automatic differentiation.

    With a ``length`` L the Hamiltonian is ``L F*_x(p)``: the same geodesics, on which ``F* = L``, but
    of velocities that have the length L whatever ``p``; so no ray can run away, however rough the
    field and however long the steps. Where gradients are recorded they can be differentiated again,
    in the field's parameters too.
    """
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        x, p = (u if recording and u.requires_grad else u.detach().requires_grad_() for u in (x, p))
        metric = field.at(x)
        H = hamiltonian(metric, p) if length is None else length * metric.dual_norm(p)
        H = H.sum()
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
    M: Float[Tensor, "*nodes d d"], omega: Float[Tensor, "*nodes d"] | None
) -> Float[Tensor, "rows entries"]:
    """Return the table of fields: a row for each node, fields one after the other."""
    d = M.shape[-1]
    # The mean of both halves, so that the gradient in M is symmetric as M is.
    columns = [
        (M[..., i, j] + M[..., j, i]) / 2 if i < j else M[..., i, i]
        for i in range(d)
        for j in range(i, d)  # itertools' combinations cannot be compiled
    ]
    if omega is not None:
        columns += [omega[..., i] for i in range(d)]
    return torch.stack(columns, dim=-1).flatten(0, -2)


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

    The force ``-dF*/dx`` is the derivative of ``F_x(v)`` in ``x`` at the velocity, times ``F* / L``.

    Parameters
    ----------
    grid : Grid
    table : Tensor, shape (nodes, entries)
        The upper triangle of ``M`` row by row, then ``omega`` if there is one
        (:func:`grid_table`).
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
    force = [
        scale * (dot(z, matvec(dM, z)) / 2 + F * dot(domega, z)) / step
        for (dM, domega), step in zip(slopes, grid.spacing, strict=True)
    ]
    return scale[..., None] * z, torch.stack(force, dim=-1)


_Entries = tuple[Tensor, Tensor]


def _read(grid: Grid, table: Tensor, first: Tensor, c: Tensor) -> tuple[_Entries, list[_Entries]]:
    """Return ``(M, omega)`` at the coordinates, and their derivatives along each axis."""
    d = len(grid.shape)
    indices = first[..., None]
    weights = torch.ones_like(c[..., :1])
    derivatives: list[Tensor] = []
    for axis, n in enumerate(grid.shape):
        t, slope = _continued(c[..., axis], n, grid.outside)
        i = t.detach().floor().clamp(0, max(n - 2, 0))
        f = t - i
        nodes = torch.stack((i, (i + 1).clamp(max=n - 1)), dim=-1).long()
        w = torch.stack((1 - f, f), dim=-1)
        dw = torch.stack((-slope, slope), dim=-1)
        derivatives = [_product(g, w) for g in derivatives] + [_product(weights, dw)]
        weights = _product(weights, w)
        rest = n * (indices - first[..., None])
        indices = first[..., None] + (rest[..., :, None] + nodes[..., None, :]).flatten(-2)
    values = embedding(indices, table)
    value, *slopes = (
        _unpacked((values * w[..., None]).sum(-2), d) for w in (weights, *derivatives)
    )
    return value, slopes


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def _continued(c: Tensor, n: int, outside: Outside) -> tuple[Tensor, Tensor]:
    """Return coordinates brought into [0, n - 1], and the derivative of doing so."""
    last = n - 1.0
    if outside == "constant" or n == 1:
        inside = (c >= 0) & (c <= last) & (n > 1)
        return c.clamp(0.0, last), inside.to(c.dtype)
    c = c.remainder(2 * last)
    mirrored = c > last
    return torch.where(mirrored, 2 * last - c, c), 1.0 - 2.0 * mirrored.to(c.dtype)


def _unpacked(entries: Tensor, d: int) -> _Entries:
    pairs = [(i, j) for i in range(d) for j in range(i, d)]
    upper = {pair: n for n, pair in enumerate(pairs)}
    rows = [entries[..., upper[min(i, j), max(i, j)]] for i in range(d) for j in range(d)]
    M = torch.stack(rows, dim=-1).unflatten(-1, (d, d))
    omega = entries[..., len(upper) :]
    return M, omega if omega.shape[-1] else torch.zeros_like(M[..., 0])
