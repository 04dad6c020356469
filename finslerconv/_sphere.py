"""Directions: points on the Euclidean unit sphere, and the frame in which a unit ball looks round.

What has no closed form is found by looking in many directions. In the frame of
:func:`round_frame` no direction is missed, however elongated the ball is.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from finslerconv._arrays import Array, constant_like, identity_like, namespace
from finslerconv._linalg import matvec, single_or_better

#: A function of vectors, shape ``(..., d)`` to ``(...)``.
Norm = Callable[[Array], Array]


def quadrature(dim: int, n: int = 32) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " m"]]:
    """Return points of the unit sphere of R^dim, with weights that integrate over it.

    The circle has ``n`` equally spaced points (spectrally accurate for smooth functions). Above,
    circles of ``n`` points are stacked along ``n // 2`` Gauss-Legendre nodes of each polar angle.
    The weights sum to the area of the sphere (2 for ``dim = 1``, 2 pi for ``dim = 2``).
    """
    if dim == 1:
        return np.array([[1.0], [-1.0]]), np.array([1.0, 1.0])
    if dim == 2:
        angles = 2 * math.pi * np.arange(n) / n
        points = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
        return points, np.full(n, 2 * math.pi / n)
    nodes, node_weights = np.polynomial.legendre.leggauss(n // 2)
    polar = math.pi / 2 * (nodes + 1)
    polar_weights = math.pi / 2 * node_weights * np.sin(polar) ** (dim - 2)
    points, weights = quadrature(dim - 1, n)
    first = np.broadcast_to(np.cos(polar)[:, None, None], (len(polar), len(points), 1))
    stacked = np.concatenate((first, np.sin(polar)[:, None, None] * points), axis=-1)
    return stacked.reshape(-1, dim), (polar_weights[:, None] * weights).reshape(-1)


def scattered(dim: int, n: int) -> Float[np.ndarray, "n d"]:
    """Return ``n`` directions of R^dim: evenly spread on the circle, pseudo-random above it.

    Above it they are the axes of random frames, so that if ``n`` is a multiple of ``dim`` their
    second moments are exactly those of the sphere.
    """
    if dim <= 2:
        return quadrature(dim, n)[0]
    frames = np.random.default_rng(0).standard_normal((-(-n // dim), dim, dim))
    return np.linalg.qr(frames)[0].reshape(-1, dim)[:n]


def over_batch(points: Float[np.ndarray, "n d"], like: Array, batch_ndim: int) -> Array:
    """Return ``points`` as ``like``'s kind, shape ``(n, 1, ..., 1, d)`` before a batch."""
    n, d = points.shape
    return constant_like(points.reshape((n, *(1,) * batch_ndim, d)), like)


def round_frame(norm: Norm, dim: int, like: Array) -> Float[Array, "*batch d d"]:
    """Return the matrices ``T`` for which the ball of ``v -> norm(T v)`` is nearly round.

    It is the ball of the symmetrised norm ``(F(v) + F(-v)) / 2``, since directions around the
    origin miss most of a ball whose rim is close to it. ``T T'`` approaches the second moments of
    the boundary. Every round looks along evenly spread directions of the last frame, so few rounds
    find any elongation.
    """
    xp = namespace(like)
    eye = identity_like(dim, like)
    T = eye + xp.zeros_like(norm(eye[0, :]))[..., None, None]
    directions = over_batch(scattered(dim, 32 * dim), like, T.ndim - 2)
    for _ in range(30):
        u = matvec(T, directions)
        there, back = norm(u), norm(-u)
        # A conic metric has no way back.
        mean = xp.where(xp.isfinite(there + back), (there + back) / 2, 2 * xp.minimum(there, back))
        boundary = directions / mean[..., None]
        moments = dim * xp.mean(boundary[..., :, None] * boundary[..., None, :], axis=0)
        T = xp.matmul(T, single_or_better(xp.linalg.cholesky, moments))
        if bool(xp.all(xp.abs(moments - eye) < 0.1)):
            break
    return T
