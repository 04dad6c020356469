"""Directions: points on the Euclidean unit sphere, and the frame in which a unit ball looks round.

What a metric does not know in closed form is found by looking in many directions. In the frame
of :func:`round_frame` no direction is missed, however elongated the ball is.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from finslerconv._arrays import Array, constant_like, namespace
from finslerconv.metrics._linalg import matvec


#: A function of vectors, shape ``(..., d)`` to ``(...)``.
Norm = Callable[[Array], Array]


def quadrature(dim: int, n: int = 32) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " m"]]:
    """Return points of the unit sphere of R^dim, with weights that integrate over it.

    On the circle the ``n`` points are equally spaced (spectrally accurate for smooth functions);
    above, circles of points are stacked along Gauss-Legendre nodes of the polar angles, ``n``
    points on each circle and ``n // 2`` nodes for each polar angle.

    Returns
    -------
    points : ndarray, shape (m, dim)
    weights : ndarray, shape (m,)
        Their sum is the area of the sphere (2 for ``dim = 1``, 2 pi for ``dim = 2``).
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
    """Return ``n`` directions of R^dim: evenly spread on the circle, pseudo-random above it."""
    if dim <= 2:
        return quadrature(dim, n)[0]
    points = np.random.default_rng(0).standard_normal((n, dim))
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


def over_batch(points: Float[np.ndarray, "n d"], like: Array, batch_ndim: int) -> Array:
    """Return ``points`` as ``like``'s kind, shape ``(n, 1, ..., 1, d)`` before a batch."""
    n, d = points.shape
    return constant_like(points.reshape((n, *(1,) * batch_ndim, d)), like)


def round_frame(norm: Norm, dim: int, like: Array) -> Float[Array, "*batch d d"]:
    """Return the matrices ``T`` for which the ball of ``v -> norm(T v)`` is nearly round.

    ``T T'`` approaches the second moments of the unit ball's boundary. A few rounds suffice
    because every round looks in evenly spread directions of the frame found by the last.
    """
    xp = namespace(like)
    eye = xp.eye(dim, dtype=like.dtype, device=like.device)
    T = eye + xp.zeros_like(norm(eye[0, :]))[..., None, None]
    directions = over_batch(scattered(dim, 32 * dim), like, T.ndim - 2)
    for _ in range(8):
        u = matvec(T, directions)
        boundary = directions / norm(u)[..., None]
        centred = boundary - xp.mean(boundary, axis=0)
        moments = xp.mean(centred[..., :, None] * centred[..., None, :], axis=0)
        T = xp.matmul(T, xp.linalg.cholesky(dim * moments))
    return T
