"""The neighbours that a metric needs on a grid: acute stencils in 2-D, Selling's vectors in 3-D.

Everything here is in pixels: the metric is the one of index coordinates, ``M h h`` and ``omega h``
for the spacing ``h``, offsets are integers.
"""

from typing import Any, NamedTuple

import numpy as np

from finslerconv._compiled import entry_unfused, jit_unfused, put
from finslerconv.geodesics.distances._norms import Norms, norm_at, slope
from finslerconv.geodesics.distances._sight import visible

# Rounding must not decide whether a right angle is acute, or a transposed grid would get another
# stencil than the grid.
_TIE = 1e-12

# Longer offsets than this are outside every grid.
_LONGEST = 32000

# Vertices still to come while one sector is refined; no more than the anisotropy of the metric.
_STACK = 65536


class Stencils(NamedTuple):
    """The 2-D stencils of all nodes of a grid, in compressed rows.

    The vertices of the stencil of node ``x`` (row-major) are ``offset[start[x]:start[x + 1]]``, in
    order of angle; consecutive ones, cyclically, span the sectors. A vertex that is outside the
    grid, or behind a wall, is the offset (0, 0): no neighbour, but it keeps its place.

    ``shared``: the metric is the same everywhere, and ``start`` is (0, K): the one stencil serves
    all nodes, with vertices outside the grid not marked.
    """

    start: np.ndarray
    """int64 (N + 1,), or (2,) if shared."""
    offset: np.ndarray
    """int16 (K, 2)."""
    shared: bool


@entry_unfused
def alike(rows):
    """Return whether all rows are the same."""
    for x in range(1, len(rows)):
        for k in range(rows.shape[1]):
            if rows[x, k] != rows[0, k]:
                return False
    return True


@jit_unfused
def metric_at(M, omega, x):
    """Return ``(m00, m01, m11, omega0, omega1)`` at a node."""
    m = x if len(M) > 1 else 0
    w = x if len(omega) > 1 else 0
    return (M[m, 0], M[m, 1], M[m, 3], omega[w, 0], omega[w, 1])


@jit_unfused
def _measured(metric, a0, a1):
    """Return what sectors ask of a vertex: M a, the length of a by M, and its one-form or 0."""
    m00, m01, m11, w0, w1 = metric
    p0, p1 = m00 * a0 + m01 * a1, m01 * a0 + m11 * a1
    return p0, p1, np.sqrt(p0 * a0 + p1 * a1), max(w0 * a0 + w1 * a1, 0.0)


@jit_unfused
def _obtuse(a0, a1, of_a, b0, b1, of_b):
    """Return whether the sector (a, b) must be split.

    <dF(-a), -b> < 0 or <dF(-b), -a> < 0 spoils the causality of the scheme. The one-form can make
    up for an angle above 90 degrees in M. Such a sector is split too, since the first-order error
    grows with the angle in M alone.
    """
    p0, p1, length_a, form_a = of_a
    _, _, length_b, form_b = of_b
    product = p0 * b0 + p1 * b1
    least = min(product - form_b * length_a, product - form_a * length_b)
    return least < -_TIE * length_a * length_b


@jit_unfused
def _measured_by_norm(metric, a0, a1):
    """Return what sectors ask of a vertex: dF(-a), dF(a) and F(a)."""
    _, p0, p1 = slope(metric, -float(a0), -float(a1))
    length, q0, q1 = slope(metric, float(a0), float(a1))
    return p0, p1, q0, q1, length


@jit_unfused
def _obtuse_for_norm(a0, a1, of_a, b0, b1, of_b):
    """Return whether the sector (a, b) must be split, for a norm of any family.

    It is if it is obtuse for F, or for the symmetric norm (F(v) + F(-v)) / 2: of a Randers metric
    that is the norm of M.
    """
    p0, p1, q0, q1, length_a = of_a
    there, across = -p0 * b0 - p1 * b1, q0 * b0 + q1 * b1
    p0, p1, q0, q1, length_b = of_b
    back, beyond = -p0 * a0 - p1 * a1, q0 * a0 + q1 * a1
    return (
        min(there, 0.5 * (there + across)) < -_TIE * length_b
        or min(back, 0.5 * (back + beyond)) < -_TIE * length_a
    )


def _refiner(measured: Any, obtuse: Any) -> Any:
    """Return the function that refines a stencil until no sector is ``obtuse``.

    That is asked with what is ``measured`` of each vertex.
    """

    @jit_unfused
    def refine(metric, stack, out, first):
        """Write the vertices of the acute stencil to ``out`` from ``first`` on; return their end.

        Those that find no room are only counted. From the four axes, each sector (a, b) is split
        into (a, a + b) and (a + b, b) until it is acute (Mirebeau, "Efficient fast marching with
        Finsler metrics", 2014, section 3): the walk of the Stern-Brocot tree in order of angle.
        ``stack`` holds the vertices still to come.
        """
        room = len(out)
        depth = len(stack)
        a0, a1 = 1, 0
        of_a = measured(metric, a0, a1)
        for _ in range(4):
            stack[0, 0], stack[0, 1] = -a1, a0  # the next axis
            top = 0
            while top >= 0:
                b0, b1 = stack[top, 0], stack[top, 1]
                of_b = measured(metric, b0, b1)
                s0, s1 = a0 + b0, a1 + b1
                if (
                    max(abs(s0), abs(s1)) <= _LONGEST
                    and top + 1 < depth
                    and obtuse(a0, a1, of_a, b0, b1, of_b)
                ):
                    top += 1
                    stack[top, 0], stack[top, 1] = s0, s1
                    continue
                if first < room:
                    out[first, 0], out[first, 1] = a0, a1
                first += 1
                a0, a1, of_a = b0, b1, of_b
                top -= 1
        return first

    return refine


_refine = _refiner(_measured, _obtuse)
_refine_for_norm = _refiner(_measured_by_norm, _obtuse_for_norm)


@entry_unfused
def _one_stencil(M, omega, stack):
    metric = metric_at(M, omega, 0)
    out = np.empty((_refine(metric, stack, np.empty((0, 2), np.int16), 0), 2), np.int16)
    _refine(metric, stack, out, 0)
    return out


@entry_unfused
def _stencil_of_norm(norms, x, stack):
    metric = norm_at(norms, x)
    out = np.empty((_refine_for_norm(metric, stack, np.empty((0, 2), np.int16), 0), 2), np.int16)
    _refine_for_norm(metric, stack, out, 0)
    return out


def _filler(metric_of: Any, refine: Any) -> Any:
    """Return the function that finds the stencils of all nodes, whose metrics ``metric_of`` reads.

    It fills ``start``, and returns the vertices.
    """

    @jit_unfused
    def fill(field, start, stack):
        out = np.empty((10 * len(start), 2), np.int16)
        start[0] = 0
        for x in range(len(start) - 1):
            metric = metric_of(field, x)
            first = start[x]
            last = refine(metric, stack, out, first)
            if last > len(out):
                more = np.empty((2 * last, 2), np.int16)
                for k in range(first):
                    put(more[k], out[k])
                out = more
                refine(metric, stack, out, first)
            start[x + 1] = last
        return out[: start[-1]]

    return fill


@jit_unfused
def _metric_of(field, x):
    M, omega = field
    return metric_at(M, omega, x)


_fill = _filler(_metric_of, _refine)
_fill_for_norms = _filler(norm_at, _refine_for_norm)


@entry_unfused
def _stencils_of_metrics(M, omega, start, stack):
    return _fill((M, omega), start, stack)


@entry_unfused
def _stencils_of_norms(norms, start, stack):
    return _fill_for_norms(norms, start, stack)


@entry_unfused
def _mark(walls, walled, reach, start, offset):
    """Put (0, 0) in place of vertices that are outside the grid or behind walls.

    ``reach`` is the longest component of them all.
    """
    height, width = walls.shape
    for row in range(height):
        deep = not walled and reach <= row < height - reach
        for column in range(width):
            if deep and reach <= column < width - reach:
                continue
            x = row * width + column
            for k in range(start[x], start[x + 1]):
                i, j = row + offset[k, 0], column + offset[k, 1]
                inside = 0 <= i < height and 0 <= j < width
                if not inside or (
                    walled and not visible(walls, row, column, offset[k, 0], offset[k, 1])
                ):
                    offset[k] = 0


def acute_stencils(M: np.ndarray, omega: np.ndarray, walls: np.ndarray) -> Stencils:
    """Return the stencils of a field: M (N or 1, 4), omega (N or 1, 2), walls (height, width)."""
    stack = np.empty((_STACK, 2), np.int32)
    if len(M) == 1 and len(omega) == 1 and not walls.any():
        return _shared(_one_stencil(M, omega, stack))
    start = np.empty(walls.size + 1, np.int64)
    return _marked(walls, start, _stencils_of_metrics(M, omega, start, stack))


def norm_stencils(norms: Norms, walls: np.ndarray) -> Stencils:
    """Return the stencils of norms on a grid with walls (height, width)."""
    stack = np.empty((_STACK, 2), np.int32)
    if len(norms.rows) == 1 and not walls.any():
        return _shared(_stencil_of_norm(norms, 0, stack))
    start = np.empty(walls.size + 1, np.int64)
    return _marked(walls, start, _stencils_of_norms(norms, start, stack))


def _marked(walls: np.ndarray, start: np.ndarray, offset: np.ndarray) -> Stencils:
    longest = max(int(offset.max()), -int(offset.min()))
    _mark(walls, bool(walls.any()), longest, start, offset)
    return Stencils(start, offset, False)


def _shared(offset: np.ndarray) -> Stencils:
    return Stencils(np.array([0, len(offset)]), offset, True)


def reach(M: np.ndarray, omega: np.ndarray) -> int:
    """Return the longest component of the offsets of one metric's stencil, in pixels."""
    if len(M) == 2:
        M, omega = M.reshape(1, 4), omega.reshape(1, 2)
        offset = _one_stencil(M, omega, np.empty((_STACK, 2), np.int32))
    else:
        offset = selling_stencils(np.linalg.inv(M)[None]).offset
    return int(np.abs(offset).max())


def reach_of_norm(norms: Norms, x: int) -> int:
    """Return the longest component of the offsets of a norm's stencil, in pixels."""
    return int(np.abs(_stencil_of_norm(norms, x, np.empty((_STACK, 2), np.int32))).max())


class SellingStencils(NamedTuple):
    """Selling's decomposition ``M^-1 = sum of weight e e'`` at every node, six vectors in 3-D."""

    offset: np.ndarray
    """int16 (N or 1, 6, 3)."""
    weight: np.ndarray
    """float64 (N or 1, 6), not negative."""
    base: np.ndarray
    """int16 (N or 1, 4, 3), the obtuse superbase: weight (i, j) is ``-base_i' M^-1 base_j``."""


@jit_unfused
def _product(D, v, w):
    total = 0.0
    for a in range(3):
        for b in range(3):
            total += v[a] * D[a, b] * w[b]
    return total


@entry_unfused
def _selling(dual, offset, weight, bases):
    base = np.empty((4, 3), np.int64)
    for x in range(len(dual)):
        D = dual[x]
        base[:] = 0
        for i in range(3):
            base[i, i] = 1
            base[3, i] = -1
        # Every round lowers the sum of the vectors' squared norms, over a lattice: it ends. The
        # bound is for matrices that rounding has left indefinite.
        for _ in range(10_000):
            worst = 0.0
            p, q = -1, -1
            for i in range(4):
                for j in range(i + 1, 4):
                    excess = _product(D, base[i], base[j])
                    if excess <= worst:
                        continue
                    excess -= _TIE * (_product(D, base[i], base[i]) + _product(D, base[j], base[j]))
                    if excess > worst:
                        worst = excess
                        p, q = i, j
            if p < 0:
                break
            for k in range(4):
                if k not in (p, q):
                    for a in range(3):
                        base[k, a] += base[p, a]
            for a in range(3):
                base[p, a] = -base[p, a]
        for i in range(4):
            put(bases[x, i], base[i])
        n = 0
        for i in range(4):
            for j in range(i + 1, 4):
                # The other two, in order.
                k = 0 if i > 0 else (1 if j > 1 else 2)
                l = 6 - i - j - k
                weight[x, n] = max(-_product(D, base[i], base[j]), 0.0)
                for a in range(3):
                    b, c = (a + 1) % 3, (a + 2) % 3
                    offset[x, n, a] = base[k, b] * base[l, c] - base[k, c] * base[l, b]
                n += 1


@entry_unfused
def inverses(M, inverse):
    """Write the inverses of symmetric positive definite matrices, (N, 9) and (N, 3, 3).

    By ``M = L D L'``, which is as exact as the condition of ``M`` allows.
    """
    for x in range(len(M)):
        m00, m01, m02 = M[x, 0], M[x, 1], M[x, 2]
        l1, l2 = m01 / m00, m02 / m00
        d1 = M[x, 4] - l1 * m01
        rest = M[x, 5] - l1 * m02
        l3 = rest / d1
        d2 = M[x, 8] - l2 * m02 - l3 * rest
        k = l1 * l3 - l2  # the inverse of L has the rows (1), (-l1, 1), (k, -l3, 1)
        D = inverse[x]
        D[0, 0] = 1 / m00 + l1 * l1 / d1 + k * k / d2
        D[1, 1] = 1 / d1 + l3 * l3 / d2
        D[2, 2] = 1 / d2
        D[0, 1] = D[1, 0] = -l1 / d1 - k * l3 / d2
        D[0, 2] = D[2, 0] = k / d2
        D[1, 2] = D[2, 1] = -l3 / d2


def selling_stencils(dual: np.ndarray) -> SellingStencils:
    """Return Selling's decomposition of the matrices ``dual = M^-1``, (N or 1, 3, 3) float64.

    The six vectors come from a superbase that is obtuse for ``dual`` (Selling 1874; Fehrenbach
    and Mirebeau, "Sparse non-negative stencils for anisotropic diffusion", 2014).
    """
    offset = np.empty((len(dual), 6, 3), np.int16)
    weight = np.empty((len(dual), 6))
    base = np.empty((len(dual), 4, 3), np.int16)
    _selling(np.ascontiguousarray(dual), offset, weight, base)
    return SellingStencils(offset, weight, base)
