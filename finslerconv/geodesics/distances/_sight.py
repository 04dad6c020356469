"""Whether walls stop a straight line: one rule, for the steps of every method and for paths.

A node stands for the unit cell around it (square or cube, in index coordinates), and a wall for its
whole cell. A line passes from cell to cell through their faces: it may not enter the inside of a
wall. It may touch a wall, at a corner or along a face, but not pass between two walls that share a
face or touch at a corner. A line through a corner (or an edge, in space) is therefore free if the
faces that meet there can be crossed one after the other, in some order, through free cells.
"""

import numpy as np

from finslerconv._compiled import entry_unfused, jit_unfused

# Coordinates that differ by less are equal: a corner is met in spite of rounding.
_TIE = 1e-9

# How far a path keeps off walls, in nodes.
MARGIN = 2.0**-10


@jit_unfused
def _along(a, b, n):
    """Return the first cell along an axis, the number of cells to cross, and which way.

    The way is 0 where the line stays on the border of two cells, the first and the next.
    """
    border_a, border_b = np.rint(a + 0.5), np.rint(b + 0.5)
    on_a, on_b = abs(a + 0.5 - border_a) <= _TIE, abs(b + 0.5 - border_b) <= _TIE
    if on_a and on_b and border_a == border_b:
        return min(max(np.int64(border_a) - 1, 0), n - 1), 0, 0
    way = 1 if b >= a else -1
    first, last = np.floor(a + 0.5), np.floor(b + 0.5)
    # At a border: the cell that the line is in next, and was in last.
    if on_a:
        first = border_a if way > 0 else border_a - 1
    if on_b:
        last = border_b - 1 if way > 0 else border_b
    i = min(max(np.int64(first), 0), n - 1)
    j = min(max(np.int64(last), 0), n - 1)
    return i, abs(j - i), way


@jit_unfused
def _free(walls, n0, n1, n2, i, j, k, w0, w1, w2, axes):
    """Return, as bits, which of the cells are free that steps along some of ``axes`` lead to.

    Bit ``s`` is for the cell reached by a step along each axis whose bit is in ``s``.
    """
    bits = 0
    for s in range(8):
        if s & ~axes:
            continue
        p = min(max(i + w0, 0), n0 - 1) if s & 1 else i
        q = min(max(j + w1, 0), n1 - 1) if s & 2 else j
        r = min(max(k + w2, 0), n2 - 1) if s & 4 else k
        if not walls[(p * n1 + q) * n2 + r]:
            bits |= 1 << s
    return bits


@jit_unfused
def _spread(free, found, both, once):
    """Return ``found`` and the cells that faces lead to from there.

    Faces across the axes ``both`` are crossed both ways, those across ``once`` ahead only.
    """
    before = 0
    while found != before:
        before = found
        for s in range(8):
            if not found >> s & 1:
                continue
            for axis in range(3):
                bit = 1 << axis
                if both & bit or (once & bit and not s & bit):
                    found |= (free >> (s ^ bit) & 1) << (s ^ bit)
    return found


@jit_unfused
def _beside(c, margin):
    """Return the side of the coordinate on which a border is near: -1, 1, or 0 for none."""
    off = c + 0.5 - np.rint(c + 0.5)
    if abs(off) > margin:
        return 0
    return 1 if off < 0.0 else -1


@jit_unfused
def clear(walls, shape, a, b, margin):
    """Return whether the line from a to b, points of the grid, is free.

    ``walls`` is flat, and its ``shape`` has three axes, as the points have: a plane is a space of
    one layer. With a ``margin`` the line must also keep that far from walls, between its ends.
    """
    n0, n1, n2 = shape
    (a0, a1, a2), (b0, b1, b2) = a, b
    i, c0, w0 = _along(a0, b0, n0)
    j, c1, w1 = _along(a1, b1, n1)
    k, c2, w2 = _along(a2, b2, n2)
    sides = (w0 == 0) | (w1 == 0) << 1 | (w2 == 0) << 2
    found = 1
    if sides == 0:
        if walls[(i * n1 + j) * n2 + k]:
            return False
    else:
        # Ahead of a border that the line stays on is the second of its cells.
        w0, w1, w2 = 1 if w0 == 0 else w0, 1 if w1 == 0 else w1, 1 if w2 == 0 else w2
        found = _free(walls, n0, n1, n2, i, j, k, w0, w1, w2, sides)
        if found == 0 or (margin > 0.0 and found != _every(sides)):
            return False
    r0, r1, r2 = b0 - a0, b1 - a1, b2 - a2
    tie = _TIE / max(abs(r0), abs(r1), abs(r2), _TIE)
    left = c0 + c1 + c2
    while left > 0:
        # The times at which the line crosses the next border along each axis.
        t0 = (i + 0.5 * w0 - a0) / r0 if c0 > 0 else np.inf
        t1 = (j + 0.5 * w1 - a1) / r1 if c1 > 0 else np.inf
        t2 = (k + 0.5 * w2 - a2) / r2 if c2 > 0 else np.inf
        t = min(t0, t1, t2)
        # Numbers: NumPy's truth values do not add up.
        d0, d1, d2 = int(t0 <= t + tie), int(t1 <= t + tie), int(t2 <= t + tie)
        crossed = d0 | d1 << 1 | d2 << 2
        if margin > 0.0:
            v0 = w0 if d0 else _beside(a0 + t * r0, margin)
            v1 = w1 if d1 else _beside(a1 + t * r1, margin)
            v2 = w2 if d2 else _beside(a2 + t * r2, margin)
            axes = (v0 != 0) | (v1 != 0) << 1 | (v2 != 0) << 2
            if _free(walls, n0, n1, n2, i, j, k, v0, v1, v2, axes) != _every(axes):
                return False
        elif sides != 0 or d0 + d1 + d2 > 1:
            free = _free(walls, n0, n1, n2, i, j, k, w0, w1, w2, sides | crossed)
            reached = _spread(free, found, sides, crossed)
            found = 0
            for s in range(8):
                if s & crossed == crossed and reached >> s & 1:
                    found |= 1 << (s & ~crossed)
            if found == 0:
                return False
        i += d0 * w0
        j += d1 * w1
        k += d2 * w2
        c0 -= d0
        c1 -= d1
        c2 -= d2
        left -= d0 + d1 + d2
        if sides == 0 and walls[(i * n1 + j) * n2 + k]:
            return False
    return True


@jit_unfused
def _every(axes):
    """Return the bits of all cells that steps along some of ``axes`` lead to."""
    bits = 0
    for s in range(8):
        if s & ~axes == 0:
            bits |= 1 << s
    return bits


@jit_unfused
def passes(walls, walled, shape, a, b):
    """Return whether a path may go straight from ``a`` to ``b``, at the margin from all walls.

    The margin keeps rounding from leading a path into a wall, or between two that touch.
    """
    return not walled or clear(walls, shape, (a[0], a[1], a[2]), (b[0], b[1], b[2]), MARGIN)


@jit_unfused
def turns(walls, walled, shape, a):
    """Return whether a path may turn at ``a``: no wall is near."""
    if not walled:
        return True
    n0, n1, n2 = shape
    v0, v1, v2 = _beside(a[0], MARGIN), _beside(a[1], MARGIN), _beside(a[2], MARGIN)
    i = min(int(np.floor(a[0] + 0.5)), n0 - 1)
    j = min(int(np.floor(a[1] + 0.5)), n1 - 1)
    k = min(int(np.floor(a[2] + 0.5)), n2 - 1)
    axes = (v0 != 0) | (v1 != 0) << 1 | (v2 != 0) << 2
    return _free(walls, n0, n1, n2, i, j, k, v0, v1, v2, axes) == _every(axes)


@jit_unfused
def visible(walls, row, column, e0, e1):
    """Return whether the line from a node of the plane along ``e`` is free and inside the grid."""
    n0, n1 = walls.shape
    end0, end1 = row + e0, column + e1
    if end0 < 0 or end0 >= n0 or end1 < 0 or end1 >= n1:
        return False
    return clear(walls.reshape(-1), (n0, n1, 1), (row, column, 0), (end0, end1, 0), 0.0)


@jit_unfused
def visible_in_space(walls, at, e):
    """Return whether the line from the node ``at`` along ``e`` is free and inside the grid."""
    for a in range(3):
        if at[a] + e[a] < 0 or at[a] + e[a] >= walls.shape[a]:
            return False
    end = (at[0] + e[0], at[1] + e[1], at[2] + e[2])
    return clear(walls.reshape(-1), walls.shape, (at[0], at[1], at[2]), end, 0.0)


@entry_unfused
def _seen(walls, shape, start, end, out):
    deep = start.shape[1] == 3
    for n in range(len(start)):
        a2, b2 = (start[n, 2], end[n, 2]) if deep else (0.0, 0.0)
        a, b = (start[n, 0], start[n, 1], a2), (end[n, 0], end[n, 1], b2)
        out[n] = clear(walls, shape, a, b, 0.0)


def seen(walls: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return for each pair of points (n, d) of the grid whether the line between them is free."""
    out = np.empty(len(start), np.bool_)
    ends = (np.ascontiguousarray(x, np.float64) for x in (start, end))
    _seen(np.ascontiguousarray(walls).reshape(-1), (*walls.shape, 1)[:3], *ends, out)
    return out
