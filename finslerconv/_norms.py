"""What is computed of a norm that is only a function: derivatives, optima, the ball's volume.

The searches (dual norms, asymmetry ratios) are derivative-free in the norm, vectorised over the
batch, and end in a direction; the callers evaluate the wanted ratio at that direction once more,
and by the envelope theorem the gradient of that single evaluation is the gradient of the optimum.
"""

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from finslerconv._arrays import (
    Array,
    constant_like,
    detached,
    identity_like,
    namespace,
    no_gradient,
)
from finslerconv._linalg import det, dot, matvec, outer, single_or_better, solve
from finslerconv._sphere import Norm, over_batch, quadrature, round_frame, scattered

_GOLDEN = (math.sqrt(5) - 1) / 2


def norm_off_zero(norm: Norm, v: Array) -> Array:
    """Return ``norm(v)``, and 0 at ``v = 0`` without a call of ``norm`` there.

    The derivatives at 0 are 0 too: those of a user's norm may be infinity or NaN, which no factor
    of zero removes.
    """
    xp = namespace(v)
    zero = xp.all(v == 0, axis=-1)
    lengths = norm(xp.where(zero[..., None], xp.ones_like(v), v))
    return xp.where(zero, xp.zeros_like(lengths), lengths)


def dual_direction(norm: Norm, p: Array) -> Array:
    """Return vectors ``v`` that maximise ``p(v) / norm(v)``, shape ``(..., d)``.

    A RuntimeError says that the ascent did not converge: ``d >= 3``, and a norm that is not smooth
    and strongly convex.
    """
    match p.shape[-1]:
        case 1:
            return _dual_direction_line(norm, p)
        case 2:
            return _dual_direction_plane(norm, p)
        case _:
            return _dual_direction_space(norm, p)


def _dual_direction_line(norm: Norm, p: Array) -> Array:
    xp = namespace(p)
    ones = xp.ones_like(p)
    return xp.where(p < 0, -ones, ones) + xp.zeros_like(norm(ones))[..., None]


def _dual_direction_plane(norm: Norm, p: Array) -> Array:
    """Golden-section search over the half-circle around ``p``.

    There ``p(u) / norm(u)`` is strictly quasi-concave for every convex norm, smooth or not.
    """
    xp = namespace(p)
    length = xp.sqrt(dot(p, p))[..., None]
    along = xp.where(length > 0, p / xp.where(length > 0, length, 1.0), constant_like([1.0, 0], p))

    def value(angle: Array) -> Array:
        return xp.cos(angle) / norm(_turned(along, angle))

    half_circle = math.pi / 2 * xp.ones_like(norm(along))
    return _turned(along, golden_section(value, -half_circle, half_circle))


def _turned(u: Array, angle: Array) -> Array:
    """Return the plane vectors ``u`` turned by ``angle``."""
    xp = namespace(u)
    across = xp.stack((-u[..., 1], u[..., 0]), axis=-1)
    return xp.cos(angle)[..., None] * u + xp.sin(angle)[..., None] * across


def golden_section(value: Norm, lower: Array, upper: Array) -> Array:
    """Return the maximiser of a unimodal ``value`` between ``lower`` and ``upper``."""
    xp = namespace(lower)
    left, right = upper - _GOLDEN * (upper - lower), lower + _GOLDEN * (upper - lower)
    value_left, value_right = value(left), value(right)
    for _ in range(64):  # 0.618^64 is 4e-14 of the interval
        keep_left = value_left > value_right
        lower, upper = xp.where(keep_left, lower, left), xp.where(keep_left, right, upper)
        step = _GOLDEN * (upper - lower)
        probe = xp.where(keep_left, upper - step, lower + step)
        value_probe = value(probe)
        left, right = xp.where(keep_left, probe, right), xp.where(keep_left, left, probe)
        value_left, value_right = (
            xp.where(keep_left, value_probe, value_right),
            xp.where(keep_left, value_left, value_probe),
        )
    return xp.where(value_left > value_right, left, right)


def _dual_direction_space(norm: Norm, p: Array) -> Array:
    """Damped Newton descent of ``norm(v)^2 / 2 - p(v)``, whose minimum is ``-F*(p)^2 / 2``.

    Derivatives are finite differences in the frame where the ball is round, so that one step
    size suits all directions.
    """
    xp = namespace(p)
    d = p.shape[-1]
    T = round_frame(norm, d, p)
    q = matvec(xp.matrix_transpose(T), p)
    length = xp.sqrt(dot(q, q))[..., None]
    axis = constant_like([1.0] + [0.0] * (d - 1), p)
    q = xp.where(length > 0, q / xp.where(length > 0, length, 1.0), axis)

    def energy(y: Array) -> Array:
        return norm(matvec(T, y)) ** 2 / 2

    eps = float(xp.finfo(p.dtype).eps)
    # The best multiple of the covector itself is a descent point that cannot be at zero.
    y = q / (2 * energy(q))[..., None]
    steps = constant_like(0.5 ** np.arange(12), p)
    steps = xp.concat((steps, xp.zeros_like(steps[:1])))
    steps = xp.reshape(steps, (-1,) + (1,) * y.ndim)
    for _ in range(60):
        residual = differences(energy, y, 1) - q
        newton = -matvec(_damped_inverse(differences(energy, y, 2)), residual)
        candidates = y + steps * newton
        best = xp.argmin(energy(candidates) - dot(q, candidates), axis=0)
        taken = xp.take(xp.reshape(steps, (-1,)), xp.reshape(best, (-1,)), axis=0)
        move = xp.reshape(taken, best.shape)[..., None] * newton
        y = y + move
        if bool(xp.all(dot(move, move) <= eps * dot(y, y))):
            break
    residual = differences(energy, y, 1) - q
    if not bool(xp.all(dot(residual, residual) <= 1e-4)):
        raise RuntimeError(
            "dual_norm: the ascent did not converge; the norm seems not to be smooth and strongly "
            "convex. Give the metric a dual_norm of its own"
        )
    return matvec(T, y)


def _damped_inverse(H: Array) -> Array:
    xp = namespace(H)
    d = H.shape[-1]
    size = xp.max(xp.abs(H), axis=(-2, -1), keepdims=True)
    eps = float(xp.finfo(H.dtype).eps)
    return single_or_better(xp.linalg.inv, H + eps**0.5 * size * identity_like(d, H))


def derivative(function: Norm, v: Array, order: int) -> Array:
    """Return the derivatives of an order of ``function`` at ``v``, shape ``(..., d, ..., d)``.

    PyTorch takes them exactly, and can differentiate the result again; for arrays of other kinds
    they are :func:`differences`.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(v, torch.Tensor):
        return differences(function, v, order)
    # The sum over a batch has the derivatives of each only if no vector serves several.
    v = v.broadcast_to((*function(v).shape, v.shape[-1]))
    found = torch.func.grad(lambda v: function(v).sum())
    for _ in range(order - 1):
        found = along_axes(found)
    return found(v)


def along_axes(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return the function of the derivatives along each axis, on a new last one: of tensors."""

    def slopes(v: Array) -> Array:
        xp = namespace(v)
        _, push = linearized(function, v)
        axes = identity_like(v.shape[-1], v)
        columns = [push(xp.broadcast_to(axes[i, :], v.shape))[0] for i in range(v.shape[-1])]
        return xp.stack(columns, axis=-1)

    return slopes


def linearized(
    function: Callable[..., Any], *arguments: Array
) -> tuple[Any, Callable[..., tuple[Array, ...]]]:
    """Return what a function of tensors gives, and how that changes: from rates to rates.

    By reverse mode twice, which is faster here than forward mode and asks less of the function: the
    derivative of ``pull``, which is linear, is its transpose, and that of the transpose.
    """
    torch: Any = sys.modules["torch"]
    result, pull = torch.func.vjp(function, *arguments)
    alone = isinstance(result, torch.Tensor)
    zeros = [torch.zeros_like(x) for x in ((result,) if alone else result)]
    _, transpose = torch.func.vjp(lambda *u: pull(u[0] if alone else u), *zeros)
    return result, lambda *rates: transpose(rates)


def differences(function: Norm, v: Array, order: int) -> Array:
    """Return central differences of an order of ``function``, shape ``(..., d, ..., d)``.

    Their steps are the best ones: of the orders 1, 2 and 3 they have 10, 7 and 6 digits in float64.
    """
    xp = namespace(v)
    d = v.shape[-1]
    h, shifts = _shifts(v, float(xp.finfo(v.dtype).eps) ** (1 / (order + 2)))

    def difference(axes: tuple[int, ...], v: Array) -> Array:
        if not axes:
            return function(v)
        s, rest = shifts[axes[0]], axes[1:]
        return (difference(rest, v + s) - difference(rest, v - s)) / (2 * h)

    found = {
        axes: difference(axes, v)
        for axes in itertools.combinations_with_replacement(range(d), order)
    }

    def entries(axes: tuple[int, ...]) -> Array:
        if len(axes) == order:
            return found[tuple(sorted(axes))]
        return xp.stack([entries((*axes, i)) for i in range(d)], axis=len(axes) - order)

    return entries(())


def _shifts(v: Array, relative_step: float) -> tuple[Array, list[Array]]:
    """Return a step in proportion to ``v``, and the vectors of that length along the axes."""
    h = relative_step * namespace(v).sqrt(dot(v, v))
    eye = identity_like(v.shape[-1], v)
    return h, [h[..., None] * eye[i, :] for i in range(v.shape[-1])]


def asymmetric_direction(norm: Norm, dim: int, like: Array) -> Array:
    """Return vectors ``v`` that maximise ``norm(-v) / norm(v)``, shape ``(*batch, d)``.

    A search over evenly spread directions of the round frame, refined around the best one: by
    golden section in the plane, by shrinking clouds of directions above.
    """
    xp = namespace(like)
    T = round_frame(norm, dim, like)

    def ratio(u: Array) -> Array:
        v = matvec(T, u)
        return norm(-v) / norm(v)

    def best_of(candidates: Array) -> Array:
        values = ratio(candidates)
        chosen = xp.argmax(values, axis=0)
        candidates = candidates + xp.zeros_like(values)[..., None]
        picked = xp.astype(
            xp.arange(values.shape[0], device=getattr(like, "device", None)), chosen.dtype
        )
        picked = xp.reshape(picked, (-1,) + (1,) * chosen.ndim) == chosen
        return xp.sum(xp.where(picked[..., None], candidates, 0.0), axis=0)

    batch_ndim = T.ndim - 2
    u = best_of(over_batch(scattered(dim, 512 if dim <= 2 else 4096), like, batch_ndim))
    if dim == 2:
        spacing = 2 * math.pi / 512 * xp.ones_like(u[..., 0])
        best = golden_section(lambda angle: ratio(_turned(u, angle)), -spacing, spacing)
        u = _turned(u, best)
    elif dim > 2:
        cloud = over_batch(scattered(dim, 64), like, batch_ndim)
        for round_number in range(40):
            u = best_of(xp.concat((u[None, ...], u + 0.5 * 0.7**round_number * cloud)))
            u = u / xp.sqrt(dot(u, u))[..., None]
    return matvec(T, u)


def ball_volume(norm: Norm, dim: int, like: Array) -> Array:
    """Return the volume of the unit ball of a norm, by quadrature over directions."""
    # The integral is the same in every frame, so its derivative in the frame is 0.
    with no_gradient():
        frame = round_frame(norm, dim, like)
        if dim > 2:
            # The integrand peaks in the direction of greatest asymmetry.
            frame = _aligned(frame, asymmetric_direction(norm, dim, like))
        frame = detached(frame)
    xp = namespace(frame)
    points, weights = quadrature(dim, {2: 1024, 3: 96}.get(dim, 48))
    batch_ndim = frame.ndim - 2
    radii = 1 / norm(matvec(frame, over_batch(points, frame, batch_ndim)))
    cells = constant_like(weights.reshape((-1,) + (1,) * batch_ndim), frame)
    return xp.abs(det(frame)) * xp.sum(cells * radii**dim, axis=0) / dim


def _aligned(frame: Array, v: Array) -> Array:
    """Return the frame turned so that its first axis, where nodes are dense, lies along ``v``."""
    xp = namespace(frame)
    axis = solve(frame, v)
    axis = axis / xp.sqrt(dot(axis, axis))[..., None]
    # A Householder reflection; its sign is chosen so that nothing cancels.
    sign = xp.where(axis[..., :1] < 0, -xp.ones_like(axis[..., :1]), xp.ones_like(axis[..., :1]))
    mirror = axis + sign * identity_like(frame.shape[-1], frame)[0, :]
    image = 2 * matvec(frame, mirror) / dot(mirror, mirror)[..., None]
    return frame - outer(image, mirror)
