"""Closed-form ellipses from samples: their moments, an affine map, a conic through the rim.

Everything here is over a flat batch of kernels and in the plane. Weights are non-negative and sum
to 1 over a kernel's samples.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finslerconv._linalg import inverse, matvec, outer
from finslerconv.balls import Ellipse

#: Half-axes are kept above this share of the longer one.
_FLATTEST = 1e-3


def moment_ellipse(
    points: Float[Tensor, "batch n 2"],
    weights: Float[Tensor, "batch n"],
    centred: bool,
    levels: Float[Tensor, " n"] | None = None,
) -> Ellipse:
    """Return the ellipses over which a uniform density has the samples' first two moments.

    The second moments of a uniform ellipse of matrix ``P`` are ``P / 4`` about its centre (``P / (d
    + 2)`` in ``d`` dimensions). Of samples that are known to lie at ``levels`` in the unit ball,
    they are ``P`` times half the mean square of the levels.
    """
    centre = torch.zeros_like(points[:, 0]) if centred else _mean(points, weights)
    away = points - centre[:, None]
    moments = torch.einsum("bn,bni,bnj->bij", weights, away, away)
    if levels is None:
        return Ellipse(centre, 4 * moments)
    # Samples at the centre only have no size.
    half = (weights * levels**2).sum(1)[:, None, None].clamp_min(torch.finfo(moments.dtype).tiny)
    return Ellipse(centre, 2 * moments / half)


def hull_ellipse(hull: Float[Tensor, "batch h 2"], centred: bool) -> Ellipse:
    """Return the ellipses of the first two moments of convex polygons, uniformly filled.

    The corners turn from axis 0 towards axis 1; the polygon must have an area.
    """
    # A fan of triangles from one corner: a triangle has the first two moments of three equal masses
    # at the middles of its edges.
    apex = hull[:, :1]
    p, q = hull, hull.roll(-1, dims=1)
    area = ((p - apex)[..., 0] * (q - apex)[..., 1] - (p - apex)[..., 1] * (q - apex)[..., 0]) / 2
    middles = torch.cat(((p + q) / 2, (p + apex) / 2, (q + apex) / 2), dim=1)
    share = (area / area.sum(1, keepdim=True) / 3).repeat(1, 3)
    return moment_ellipse(middles, share, centred)


def affine_ellipse(
    points: Float[Tensor, "batch n 2"],
    weights: Float[Tensor, "batch n"],
    reference: Float[Tensor, "n 2"],
    centred: bool,
) -> tuple[Ellipse, Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Return the ellipses whose affine maps ``W + B g`` come nearest to the samples.

    Linear least squares over symmetric ``B`` (and ``W``): exact where such a map made the samples.
    Returned is also where the reference points of non-zero weight are not on one line, and where
    ``B`` is positive definite; the other ellipses are meaningless.
    """
    g = reference.expand(len(points), -1, -1)
    if centred:
        g_mean = v_mean = torch.zeros_like(points[:, 0])
    else:
        g_mean, v_mean = _mean(g, weights), _mean(points, weights)
    g_away, v_away = g - g_mean[:, None], points - v_mean[:, None]
    G = torch.einsum("bn,bni,bnj->bij", weights, g_away, g_away)
    C = torch.einsum("bn,bni,bnj->bij", weights, v_away, g_away)
    # The normal equations B G + G B = C + C' for (B00, B01, B11).
    zero = torch.zeros_like(G[:, 0, 0])
    normal = torch.stack(
        (
            torch.stack((2 * G[:, 0, 0], 2 * G[:, 0, 1], zero), dim=-1),
            torch.stack((G[:, 0, 1], G[:, 0, 0] + G[:, 1, 1], G[:, 0, 1]), dim=-1),
            torch.stack((zero, 2 * G[:, 0, 1], 2 * G[:, 1, 1]), dim=-1),
        ),
        dim=-2,
    )
    right = torch.stack((2 * C[:, 0, 0], C[:, 0, 1] + C[:, 1, 0], 2 * C[:, 1, 1]), dim=-1)
    B = symmetric(_solved(normal, right))
    proper = (B[:, 0, 0] > 0) & (torch.linalg.det(B) > 1e-10 * (B**2).sum(dim=(1, 2)))
    shape = B @ B
    trace = G[:, 0, 0] + G[:, 1, 1]
    determined = torch.linalg.det(G) > 1e-12 * trace**2
    return Ellipse(v_mean - matvec(B, g_mean), (shape + shape.mT) / 2), determined, proper


def conic_ellipse(
    directions: Float[Tensor, "batch n 2"],
    levels: Float[Tensor, "batch n"],
    weights: Float[Tensor, "batch n"],
    centred: bool,
) -> tuple[Ellipse, Bool[Tensor, " batch"]]:
    """Return the unit balls of the metrics with ``F(u_i) = l_i``, by linear least squares.

    ``l = sqrt(u' M u) + omega' u`` squared is ``l^2 = u' A u + 2 l omega' u`` with ``A = M - omega
    omega'``, linear in ``A`` and ``omega``: exact where the levels are those of a Randers metric
    and the directions at least five. The weights are those of the equations. Returned is also where
    ``A`` is positive definite; the other ellipses are meaningless.
    """
    u0, u1 = directions[..., 0], directions[..., 1]
    columns = [u0 * u0, 2 * u0 * u1, u1 * u1]
    if not centred:
        columns += [2 * levels * u0, 2 * levels * u1]
    rows = torch.stack(columns, dim=-1) * weights[..., None]
    normal = rows.mT @ rows
    solution = _solved(normal, torch.einsum("bni,bn->bi", rows, weights * levels**2))
    A = symmetric(solution[:, :3])
    omega = torch.zeros_like(directions[:, 0]) if centred else solution[:, 3:]
    trace, det = A[:, 0, 0] + A[:, 1, 1], torch.linalg.det(A)
    proper = torch.isfinite(solution).all(dim=-1) & (trace > 0)
    proper = proper & (det > 1e-2 * _FLATTEST**2 * trace**2)
    A = torch.where(proper[:, None, None], A, torch.eye(2, dtype=A.dtype, device=A.device))
    A_inverse = inverse(A)
    centre = -matvec(A_inverse, omega)
    shape = A_inverse + A_inverse * (omega * -centre).sum(-1)[:, None, None]
    return Ellipse(centre, (shape + shape.mT) / 2), proper


def regularised(ellipse: Ellipse, smallest: Float[Tensor, " batch"]) -> Ellipse:
    """Return the ellipses with half-axes of at least ``smallest`` and 1/1000 of the longer."""
    values, axes = torch.linalg.eigh(ellipse.shape)
    longest = values[:, -1:].clamp_min(0)
    floor = torch.maximum(_FLATTEST**2 * longest, smallest[:, None] ** 2)
    return Ellipse(ellipse.centre, (axes * torch.maximum(values, floor)[:, None]) @ axes.mT)


def capped(ellipse: Ellipse, largest: Float[Tensor, " batch"]) -> Ellipse:
    """Return the ellipses with half-axes of at most ``largest``."""
    values, axes = torch.linalg.eigh(ellipse.shape)
    values = torch.minimum(values, largest[:, None] ** 2)
    return Ellipse(ellipse.centre, (axes * values[:, None]) @ axes.mT)


def symmetric(entries: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 2 2"]:
    """Return the symmetric matrices of the entries (00, 01, 11)."""
    return entries[:, [0, 1, 1, 2]].unflatten(-1, (2, 2))


def spread(points: Float[Tensor, "batch n 2"], weights: Float[Tensor, "batch n"]) -> Tensor:
    """Return the standard deviations along the short and the long axis, shape (batch, 2)."""
    away = points - _mean(points, weights)[:, None]
    values = torch.linalg.eigvalsh((weights[..., None, None] * outer(away, away)).sum(1))
    return values.clamp_min(0).sqrt()


def _mean(points: Tensor, weights: Tensor) -> Tensor:
    return (weights[..., None] * points).sum(1)


def _solved(normal: Tensor, right: Tensor) -> Tensor:
    """Return the solutions of symmetric systems, regularised by rounding errors only."""
    size = normal.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(normal.dtype).tiny)
    eye = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    normal = normal + 1e-15 * size[:, None, None] * eye
    return torch.linalg.solve_ex(normal, right)[0]
