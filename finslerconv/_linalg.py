"""Linear algebra of fields of small matrices, written so that a million of them cost one pass.

Products are sums over the (few) components, which every array library vectorises over the batch;
inverses and roots are closed forms up to dimension 2, the dimension of images.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float

from finslerconv._arrays import Array, first_index, has_values, identity_like, namespace, safe_sqrt

# Larger matrices are named in errors by their size.
_SHOWN = 5


def dot(u: Float[Array, "... d"], v: Float[Array, "... d"]) -> Float[Array, "..."]:
    """Return the inner products ``u . v`` over the last axis."""
    total = u[..., 0] * v[..., 0]
    for i in range(1, u.shape[-1]):
        total = total + u[..., i] * v[..., i]
    return total


def matvec(A: Float[Array, "... n d"], v: Float[Array, "... d"]) -> Float[Array, "... n"]:
    """Return the products ``A v``."""
    total = A[..., :, 0] * v[..., 0, None]
    for j in range(1, A.shape[-1]):
        total = total + A[..., :, j] * v[..., j, None]
    return total


def outer(u: Float[Array, "... d"], v: Float[Array, "... d"]) -> Float[Array, "... d d"]:
    """Return the matrices ``u v'``."""
    return u[..., :, None] * v[..., None, :]


def det(A: Float[Array, "... d d"]) -> Float[Array, "..."]:
    """Return the determinants of ``A``."""
    match A.shape[-1]:
        case 1:
            return A[..., 0, 0]
        case 2:
            return A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]
        case _:
            return single_or_better(namespace(A).linalg.det, A)


def inverse(A: Float[Array, "... d d"]) -> Float[Array, "... d d"]:
    """Return the inverses of ``A``."""
    xp = namespace(A)
    match A.shape[-1]:
        case 1:
            return 1.0 / A
        case 2:
            rows = (
                xp.stack((A[..., 1, 1], -A[..., 0, 1]), axis=-1),
                xp.stack((-A[..., 1, 0], A[..., 0, 0]), axis=-1),
            )
            return xp.stack(rows, axis=-2) / det(A)[..., None, None]
        case _:
            return single_or_better(xp.linalg.inv, A)


def solve(A: Float[Array, "... d d"], b: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Return the solutions ``x`` of ``A x = b``."""
    return matvec(inverse(A), b)


def from_eigenvalues(
    n: Float[Array, "... 2"], along: Float[Array, "..."], across: Float[Array, "..."]
) -> Float[Array, "... 2 2"]:
    """Return the planar matrices of eigenvalue ``along`` for unit vectors ``n``, ``across`` beside.

    No entry is a difference of large numbers, so each is exact to a few roundings. The matrices are
    positive as long as the condition number is well below one over the rounding error.
    """
    xp = namespace(n, along)
    u, v = n[..., 0], n[..., 1]
    off = (along - across) * (u * v)
    rows = (
        xp.stack((along * (u * u) + across * (v * v), off), axis=-1),
        xp.stack((off, along * (v * v) + across * (u * u)), axis=-1),
    )
    return xp.stack(rows, axis=-2)


def spd_sqrt(A: Float[Array, "... d d"]) -> Float[Array, "... d d"]:
    """Return the symmetric positive definite square roots of ``A``, smooth in ``A``.

    Up to dimension 3 from the invariants (Cayley-Hamilton); above, by the Denman-Beavers iteration.
    None divides by a difference of eigenvalues, so derivatives at equal eigenvalues are right.
    """
    xp = namespace(A)
    match A.shape[-1]:
        case 1:
            return xp.sqrt(A)
        case 2:
            # A determinant below rounding may come out negative: then it counts as 0.
            root_det = safe_sqrt(det(A))
            trace = A[..., 0, 0] + A[..., 1, 1]
            numerator = A + root_det[..., None, None] * identity_like(2, A)
            return numerator / xp.sqrt(trace + 2.0 * root_det)[..., None, None]
        case 3:
            return single_or_better(_sqrt_in_space, A)
        case _:
            return single_or_better(_denman_beavers, A)


def _sqrt_in_space(A: Array) -> Array:
    trace = A[..., 0, 0] + A[..., 1, 1] + A[..., 2, 2]
    minors = det(A[..., :2, :2]) + det(A[..., 1:, 1:]) + det(A[..., ::2, ::2])
    root_det = safe_sqrt(det(A))
    # The invariants i and j of the root solve i^2 = trace + 2 j, j^2 = minors + 2 root_det i. Each
    # step makes the error at least nine times smaller, since i j >= 9 root_det.
    i = safe_sqrt(trace)
    for _ in range(18):
        j = safe_sqrt(minors + 2.0 * root_det * i)
        i = safe_sqrt(trace + 2.0 * j)
    j = safe_sqrt(minors + 2.0 * root_det * i)
    one = identity_like(3, A)
    root = (i[..., None, None] * A + root_det[..., None, None] * one) @ inverse(
        A + j[..., None, None] * one
    )
    return (root + namespace(A).matrix_transpose(root)) / 2


def _denman_beavers(A: Array) -> Array:
    xp = namespace(A)
    d = A.shape[-1]
    Y, Z = A, xp.broadcast_to(identity_like(d, A), A.shape)
    # Each of the first steps scales the determinants to 1, which brings any condition number
    # that the dtype can hold to where the iteration converges quadratically.
    for step in range(20):
        Y_inverse, Z_inverse = inverse(Y), inverse(Z)
        if step < 8:
            gamma = xp.abs(det(Y) * det(Z)) ** (-1.0 / (2 * d))
            gamma = gamma[..., None, None]
        else:
            gamma = xp.ones_like(Y[..., :1, :1])
        Y, Z = (gamma * Y + Z_inverse / gamma) / 2, (gamma * Z + Y_inverse / gamma) / 2
    return (Y + xp.matrix_transpose(Y)) / 2


def single_or_better(function: Callable[[Array], Array], A: Array) -> Array:
    """Apply ``function``, in single precision where ``A`` is half (LAPACK has no half)."""
    xp = namespace(A)
    if xp.finfo(A.dtype).bits >= 32:
        return function(A)
    return xp.astype(function(xp.astype(A, xp.float32)), A.dtype)


def batch_index(index: Any) -> tuple[Any, ...]:
    """Return ``index`` into a batch as a tuple that full slices of the last axes may follow."""
    index = index if isinstance(index, tuple) else (index,)
    return index if any(i is ... for i in index) else (*index, ...)


def check_spd(name: str, A: Array) -> None:
    """Raise a ValueError that names the first matrix of ``A`` that is not SPD."""
    if not has_values(A):
        return
    xp = namespace(A)
    _raise_at(name, A, ~xp.all(xp.isfinite(A), axis=(-2, -1)), "finite")
    scale = xp.max(xp.abs(A), axis=(-2, -1))
    skew = xp.max(xp.abs(A - xp.matrix_transpose(A)), axis=(-2, -1))
    _raise_at(name, A, skew > xp.finfo(A.dtype).eps ** 0.5 * scale, "symmetric")
    if A.shape[-1] <= 2:
        indefinite = (A[..., 0, 0] <= 0) | (det(A) <= 0)
    elif _has_cholesky(A):
        return
    else:
        # Slower, but it says which.
        indefinite = single_or_better(xp.linalg.eigvalsh, A)[..., 0] <= 0
    _raise_at(name, A, indefinite, "positive definite")


def _has_cholesky(A: Array) -> bool:
    xp = namespace(A)
    try:
        L = single_or_better(xp.linalg.cholesky, A)
    except Exception:  # every array library raises an error of its own
        return False
    return bool(xp.all(xp.isfinite(L)))


def _raise_at(name: str, A: Array, bad: Array, wanted: str) -> None:
    if not bool(namespace(A).any(bad)):
        return
    index = first_index(bad)
    where = f" at index {index}" if index else ""
    d = A.shape[-1]
    values: Any = f"one of {d} x {d}"
    if d <= _SHOWN:
        values = [[float(x) for x in row] for row in _rows(A[(*index, ...)])]
    raise ValueError(f"{name}: expected {wanted} matrices, got {values}{where}")


def _rows(matrix: Array) -> list[list[Array]]:
    d = matrix.shape[-1]
    return [[matrix[i, j] for j in range(d)] for i in range(d)]
