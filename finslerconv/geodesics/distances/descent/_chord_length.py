"""The length of a chord through a sampled field, compiled.

Points are in index coordinates and always of three components: a plane is a space of one layer.
The ``table`` holds rows with a node's ``M00, M01, M02, M11, M12, M22, omega0, omega1, omega2``, in
units of nodes, whose entries are interpolated; or it is the norms of other metrics in the plane
(`finslerconv.geodesics.distances._norms`), whose lengths are.
"""

import numpy as np
from numba import types
from numba.extending import overload

from finslerconv._compiled import OPTIONS, jit
from finslerconv.geodesics.distances._norms import norm, norm_at
from finslerconv.geodesics.fields import cell, corner

# Where Gauss's rule of two nodes reads a piece of length 1.
_GAUSS = 0.5 - np.sqrt(1.0 / 12.0)


@jit
def _norm_of_entries(table, shape, x, v):
    at = cell(x, shape)
    square, form = 0.0, 0.0
    for number in range(8):
        node, weight = corner(at, shape, number)
        if weight <= 0.0:
            continue
        row = table[node]
        square += weight * (
            v[0] * (row[0] * v[0] + 2.0 * (row[1] * v[1] + row[2] * v[2]))
            + v[1] * (row[3] * v[1] + 2.0 * row[4] * v[2])
            + row[5] * v[2] * v[2]
        )
        form += weight * (row[6] * v[0] + row[7] * v[1] + row[8] * v[2])
    return np.sqrt(max(square, 0.0)) + form


@jit
def _mean_norm(norms, shape, x, v):
    at = cell(x, shape)
    total = 0.0
    for number in range(4):
        node, weight = corner(at, shape, number)
        if weight > 0.0:
            total += weight * norm(norm_at(norms, node), v[0], v[1])
    return total


def _norm(table, shape, x, v):
    """Return ``F_x(v)``, interpolated linearly between the nodes."""
    rows = isinstance(table, np.ndarray)
    return (_norm_of_entries if rows else _mean_norm)(table, shape, x, v)


@overload(_norm, jit_options=OPTIONS)
def _compiled_norm(table, shape, x, v):
    if isinstance(table, types.Array):
        return lambda table, shape, x, v: _norm_of_entries(table, shape, x, v)
    return lambda table, shape, x, v: _mean_norm(table, shape, x, v)


@jit
def chord_length(table, shape, a, b):
    """Return the length of the chord from ``a`` to ``b``, by two points of Gauss a node."""
    v = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
    far = max(abs(v[0]), abs(v[1]), abs(v[2]))
    if far == 0.0:
        return 0.0
    pieces = max(int(np.ceil(far - 1e-9)), 1)
    total = 0.0
    for piece in range(pieces):
        for place in (_GAUSS, 1.0 - _GAUSS):
            t = (piece + place) / pieces
            x = (a[0] + t * v[0], a[1] + t * v[1], a[2] + t * v[2])
            total += _norm(table, shape, x, v)
    return total / (2 * pieces)
