"""Fast marching in space, compiled: upwind differences along Selling's six vectors.

With ``M^-1 = sum of rho_k e_k e_k'`` the eikonal equation is ``sum of rho_k q_k^2 = 1``, where q_k
is the difference of u less the one-form along the one of ``-e_k``, ``e_k`` that goes with the
front, or 0 if there is none. First every node gets the value of first order,
``q_k = max(0, u - u(x + e_k) + omega . e_k, u - u(x - e_k) - omega . e_k)``. For Riemannian metrics
it depends on smaller values only, and nodes are opened once, in order. With a one-form it may
depend on larger ones, and a node whose value falls is opened again, until none does.

With order 2 or factorisation the values are then computed again, node after node, with
``q_k = c_k (u - U_k) + k_k + omega . e_k`` as in the plane (`_plane`). A node whose upwind
neighbour comes after it takes that one q_k from the values of first order; in a factored node,
directions without a neighbour may take theirs from the model, the cone around the source.

Where some of the twelve neighbours are outside the grid or behind walls, single steps along the
axes are tried as well, so that every node which a path of such steps reaches gets a value.

The walk back is the implicit adjoint: with ``m_k = rho_k q_k``, ``S = sum m_k c_k``,
``S du = sum m_k (c_k dU_k - dk_k - domega . e_k) - sum q_k^2 drho_k / 2``.

The ``code`` of a node tells where its value comes from:

==========  =====================================================================
value       meaning
==========  =====================================================================
bits 0-11   two for each vector: NONE, FORWARDS, BACKWARDS, or from the MODEL
bits 12-17  one for each vector: of second order
bits 18-23  one for each vector: of first order, because the neighbour comes later
bit 24      factored
bit 25      a step along an axis instead
bits 26-28  which: 0 to 2 forwards, 3 to 5 backwards, 7: the value of first order
-1 - s      the node has the value of seed s
==========  =====================================================================
"""

from typing import NamedTuple

import numpy as np

from finslerconv._compiled import entry_unfused, inlined_unfused, jit_unfused
from finslerconv.geodesics.distances._heap import ACCEPTED, FAR, pop, push
from finslerconv.geodesics.distances._sight import visible_in_space

NONE, FORWARDS, BACKWARDS, MODEL = 0, 1, 2, 3
_SIDES, _SECOND, _LATER, FACTORED, AXIS, _WHICH = 4095, 12, 18, 1 << 24, 1 << 25, 26
_KEEP = AXIS | 7 << _WHICH

# Of a node, beside the bits of its neighbours: it lacks some of the twelve, and so does one of the
# nodes a step along an axis away.
_ALL, _LACKS, _BESIDE = 4095, 1 << 12, 1 << 13

# The code of a node that has no value yet.
_NOTHING = -(2**31) + 1

# As in the plane, but for a step as long as all six vectors allow.
_MOVE = 1.0
_AGREE = 0.7

# Where directions take their values from the model it must be a better one.
_AGREE_ALL = 0.97

# Nodes that come before more than this part of what they depend on keep their first-order values.
_MOST = 0.5

# A value that falls by less than this, relatively, is not worth opening the node again.
_SAME = 1e-14

# How often a node may be opened again on average before all are swept, and how often those.
_OPENINGS = 16
_SWEEPS = 10_000

# The most walks back where nodes depend on each other.
_WALKS = 10_000


class Field(NamedTuple):
    """A field with its stencils (`SellingStencils`) and walls, as the kernels read it."""

    M: np.ndarray
    omega: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    step: np.ndarray
    """int32, the offsets as differences of row-major indices."""
    open_: np.ndarray
    """int16, the neighbours of each node, see :func:`neighbours` and :func:`prepare`."""
    walls: np.ndarray
    walled: bool


class Sources(NamedTuple):
    """The sources of a problem: positions, metrics, and whether each is factored."""

    position: np.ndarray
    metric: np.ndarray
    alone: np.ndarray


class _Room(NamedTuple):
    """Room for the terms of one node: its six vectors, and a number of each kind for each."""

    e: np.ndarray
    c: np.ndarray
    U: np.ndarray
    k: np.ndarray
    rho: np.ndarray


@jit_unfused
def _room():
    return _Room(np.empty((6, 3)), np.empty(6), np.empty(6), np.empty(6), np.empty(6))


@entry_unfused
def neighbours(offset, walls, walled, open_):
    """Write which of the twelve neighbours (forwards, then backwards) a node has, as bits."""
    n0, n1, n2 = walls.shape
    shared = len(offset) == 1
    at, e, far = np.empty(3, np.int64), np.empty(3, np.int64), np.zeros(3, np.int64)
    for x in range(walls.size):
        at[0], at[1], at[2] = x // (n1 * n2), x // n2 % n1, x % n2
        row = 0 if shared else x
        if x == 0 or not shared:
            for a in range(3):
                far[a] = 0
                for k in range(6):
                    far[a] = max(far[a], abs(np.int64(offset[row, k, a])))
        deep = far[0] <= at[0] < n0 - far[0] and far[1] <= at[1] < n1 - far[1]
        if not walled and deep and far[2] <= at[2] < n2 - far[2]:
            open_[x] = _ALL
            continue
        bits = 0
        for k in range(6):
            for side in range(2):
                inside = True
                for a in range(3):
                    e[a] = offset[row, k, a] if side == 0 else -offset[row, k, a]
                    inside = inside and 0 <= at[a] + e[a] < walls.shape[a]
                if inside and (not walled or visible_in_space(walls, at, e)):
                    bits |= 1 << (6 * side + k)
        open_[x] = bits


@entry_unfused
def prepare(offset, weight, walls, step, open_):
    """Write ``step``; mark in ``open_`` where neighbours lack, and drop those of no weight."""
    _, n1, n2 = walls.shape
    for x in range(len(offset)):
        for k in range(6):
            row, column, layer = np.int64(offset[x, k, 0]), offset[x, k, 1], offset[x, k, 2]
            step[x, k] = (row * n1 + column) * n2 + layer
    for x in range(walls.size):
        if open_[x] & _ALL != _ALL:
            open_[x] |= _LACKS
            for direction in range(6):
                y = _axis_neighbour(x, direction, walls)
                if y >= 0:
                    open_[y] |= _BESIDE
    for x in range(walls.size):
        for k in range(6):
            if weight[0 if len(weight) == 1 else x, k] <= 0:
                open_[x] &= ~(65 << k)


@entry_unfused
def dependents(step, open_, dependent_start, dependent):
    """Write, for each node, the nodes x that have it as their neighbour k, as ``16 x + k``."""
    nodes = len(open_)
    dependent_start[:] = 0
    # Entry y + 1 counts first, and is then the place of the next entry of y.
    for fill in range(2):
        for x in range(nodes):
            for k in range(12):
                if open_[x] >> k & 1:
                    y = x + (step[x, k] if k < 6 else -step[x, k - 6])
                    if fill:
                        dependent[dependent_start[y + 1]] = 16 * x + k
                    dependent_start[y + 1] += 1
        if fill == 0:
            total = 0
            for y in range(nodes):
                total, dependent_start[y + 1] = total + dependent_start[y + 1], total


@jit_unfused
def _dependent(r, y, bits, shared, step, dependent):
    """Return the r-th node that has y as a neighbour, or -1, and which of its twelve y is.

    If the stencil is shared those are the neighbours of y itself, the other way, as in ``bits``.
    """
    if not shared:
        return np.int64(dependent[r]) >> 4, np.int64(dependent[r]) & 15
    if r < 6:
        return (y - step[0, r] if bits >> (r + 6) & 1 else np.int64(-1)), r
    return (y + step[0, r - 6] if bits >> (r - 6) & 1 else np.int64(-1)), r


@inlined_unfused
def _metric_at(M, omega, x):
    """Return a metric: the upper triangle of M at x, then omega."""
    m = x if len(M) > 1 else 0
    w = x if len(omega) > 1 else 0
    m00, m01, m02, m11, m12, m22 = M[m, 0], M[m, 1], M[m, 2], M[m, 4], M[m, 5], M[m, 8]
    return (m00, m01, m02, m11, m12, m22, omega[w, 0], omega[w, 1], omega[w, 2])


@inlined_unfused
def _times(metric, v):
    """Return M v."""
    m00, m01, m02, m11, m12, m22 = metric[:6]
    return (
        m00 * v[0] + m01 * v[1] + m02 * v[2],
        m01 * v[0] + m11 * v[1] + m12 * v[2],
        m02 * v[0] + m12 * v[1] + m22 * v[2],
    )


@inlined_unfused
def _dot(v, w):
    return v[0] * w[0] + v[1] * w[1] + v[2] * w[2]


@inlined_unfused
def _length(metric, v):
    """Return the norm of v by M alone."""
    return np.sqrt(max(_dot(v, _times(metric, v)), 0.0))


@inlined_unfused
def _form(metric, v):
    return metric[6] * v[0] + metric[7] * v[1] + metric[8] * v[2]


@inlined_unfused
def _norm(metric, v):
    return _length(metric, v) + _form(metric, v)


@inlined_unfused
def _ahead(v, e, times):
    """Return v + times e."""
    return (v[0] + times * e[0], v[1] + times * e[1], v[2] + times * e[2])


@jit_unfused
def _axis_step(M, omega, x, direction):
    """Return F(-a) for the axis vector a of ``direction``: 0 to 2 forwards, 3 to 5 backwards."""
    axis = direction % 3
    form = omega[x if len(omega) > 1 else 0, axis]
    return np.sqrt(M[x if len(M) > 1 else 0, 4 * axis]) + (-form if direction < 3 else form)


@inlined_unfused
def _index(x, walls):
    """Return the index of node x along each axis."""
    _, n1, n2 = walls.shape
    i = x // (n1 * n2)
    rest = x - i * (n1 * n2)
    j = rest // n2
    return i, j, rest - j * n2


@jit_unfused
def _axis_neighbour(x, direction, walls):
    """Return the node one step along an axis, which may be a wall; -1 if it is outside."""
    n0, n1, n2 = walls.shape
    axis = direction % 3
    stride = n1 * n2 if axis == 0 else (n2 if axis == 1 else 1)
    size = n0 if axis == 0 else (n1 if axis == 1 else n2)
    at = x // stride % size
    if direction < 3:
        return x + stride if at + 1 < size else -1
    return x - stride if at > 0 else -1


@inlined_unfused
def _first_order(x, M, omega, offset, weight, step, open_, walls, u, low, order):
    """Return the value of first order at x, and the code of how it came about.

    ``low`` and ``order`` are room for six numbers each.
    """
    row = 0 if len(offset) == 1 else x
    at = x if len(omega) > 1 else 0
    omega_0, omega_1, omega_2 = omega[at, 0], omega[at, 1], omega[at, 2]
    symmetric = omega_0 == 0 and omega_1 == 0 and omega_2 == 0
    bits = np.int64(open_[x])
    known = 0
    sides = 0
    for k in range(6):
        if bits & 65 << k == 0:
            continue
        form = 0.0
        if not symmetric:
            form = omega_0 * offset[row, k, 0]
            form += omega_1 * offset[row, k, 1] + omega_2 * offset[row, k, 2]
        least, side = np.inf, NONE
        if bits >> k & 1:
            least, side = u[x + step[row, k]] - form, FORWARDS
        if bits >> (6 + k) & 1 and u[x - step[row, k]] + form < least:
            least, side = u[x - step[row, k]] + form, BACKWARDS
        if least < np.inf:
            sides |= side << (2 * k)
            at = known
            while at > 0 and low[at - 1] > least:
                low[at], order[at] = low[at - 1], order[at - 1]
                at -= 1
            low[at], order[at] = least, k
            known += 1
    best, code = np.inf, 0
    if known > 0:
        base = low[0]
        sum_0, sum_1, sum_2 = 0.0, 0.0, -1.0
        for n in range(known):
            rho, fall = weight[row, order[n]], low[n] - base
            # The value from the lesser ones is no greater: the sum of their squares is 1 before.
            if (sum_0 * fall - 2 * sum_1) * fall + sum_2 >= 0:
                break
            sum_0 += rho
            sum_1 += rho * fall
            sum_2 += rho * fall * fall
            code |= sides & (3 << (2 * order[n]))
        root = np.sqrt(max(sum_1 * sum_1 - sum_0 * sum_2, 0.0))
        best = base + (sum_1 + root) / sum_0
    if bits & _LACKS:
        for direction in range(6):
            y = _axis_neighbour(x, direction, walls)
            if y >= 0 and u[y] + _axis_step(M, omega, x, direction) < best:
                best = u[y] + _axis_step(M, omega, x, direction)
                code = (code & _SIDES) | AXIS | (direction << _WHICH)
    return best, code


@entry_unfused
def begin(potential, seed_node, seed_value, u, code, queue):
    """Put the seeds into the queue; everything else has no value yet."""
    keys, heap, place, state = queue
    count = 0
    u[:] = np.inf
    code[:] = _NOTHING
    for s in range(len(seed_node)):
        x = seed_node[s]
        if seed_value[s] < u[x]:
            u[x] = seed_value[s]
            code[x] = -1 - s
            count = push(keys, heap, place, count, x, u[x] - potential[x])
    state[0] = count


@jit_unfused
def _reach_target(y, value, left, limit, targets):
    """Take y from the targets that are left, see :func:`march`; return how many are left now."""
    if left > 0 and targets[y]:
        targets[y] = False
        left -= 1
        limit[3] = max(limit[3], value)
        if left == 0:
            limit[0] = min(limit[0], limit[2] + limit[1] * (limit[3] - limit[2]))
    return left


@entry_unfused
def march_once(
    field, dependent_start, dependent, limit, nodes, code, sequence, queue, targets, steps
):
    """Open the next nodes as :func:`march` does, for a Riemannian metric: each once, in order.

    ``sequence`` gets the nodes in this order. The neighbours of a node come in the order of their
    values, so that each lowers the node's value, and of ``e_k`` and ``-e_k`` the first counts:
    ``code``, 0 at first, has their sides. A row of ``nodes`` has what is read of a node, in one
    place: u; and of those neighbours the sum of ``rho_k`` (-1 of a seed), the mean of u by these
    weights, and the sum of its squared deviations times ``rho_k``.
    """
    M, omega, offset, weight, step, open_, walls, _ = field
    keys, heap, place, state = queue
    count, opened, left = state[0], state[1], state[2]
    u = nodes[:, 0]
    shared = len(weight) == 1
    low, order = np.empty(6), np.empty(6, np.int64)
    begin, end = np.int64(0), np.int64(12)
    while count > 0 and steps > 0:
        steps -= 1
        y = np.int64(heap[0])
        count = pop(keys, heap, place, count)
        place[y] = ACCEPTED
        value = u[y]
        left = _reach_target(y, value, left, limit, targets)
        if value > limit[0]:
            u[y] = np.inf
            continue
        sequence[opened] = y
        opened += 1
        bits = np.int64(open_[y])
        if not shared:
            begin, end = dependent_start[y], dependent_start[y + 1]
        for r in range(begin, end):
            x, k = _dependent(r, y, bits, shared, step, dependent)
            if x < 0 or place[x] <= ACCEPTED or u[x] <= value:
                continue
            total, mean, spread = nodes[x, 1], nodes[x, 2], nodes[x, 3]
            if total < 0:
                new, how = _first_order(
                    x, M, omega, offset, weight, step, open_, walls, u, low, order
                )
                if new < u[x]:
                    u[x] = new
                    code[x] = how
                    count = push(keys, heap, place, count, x, new)
                continue
            n, side = (k, FORWARDS) if k < 6 else (k - 6, BACKWARDS)
            sides = code[x] & _SIDES
            if sides >> (2 * n) & 3:
                continue
            sides |= side << (2 * n)
            rho = weight[0 if shared else x, n]
            rise = value - mean
            spread += rise * rise * rho * total / (total + rho)
            mean += rise * rho / (total + rho)
            total += rho
            nodes[x, 1], nodes[x, 2], nodes[x, 3] = total, mean, spread
            # The sum of rho (u - u_k)^2 is that about the mean and total (u - mean)^2.
            root = mean + np.sqrt(max(1 - spread, 0.0) / total)
            if root < u[x]:
                u[x] = root
                code[x] = sides
                count = push(keys, heap, place, count, x, root)
            else:
                code[x] |= sides
        if bits & _BESIDE:
            for direction in range(6):
                x = _axis_neighbour(y, direction, walls)
                if x < 0 or not open_[x] & _LACKS or place[x] <= ACCEPTED or u[x] <= value:
                    continue
                back = direction + 3 if direction < 3 else direction - 3
                new = value + _axis_step(M, omega, x, back)
                if new < u[x]:
                    u[x] = new
                    code[x] = (max(code[x], 0) & _SIDES) | AXIS | back << _WHICH
                    count = push(keys, heap, place, count, x, new)
    state[0], state[1], state[2] = count, opened, left
    return count > 0


@entry_unfused
def march(field, dependent_start, dependent, potential, limit, u, code, queue, targets, steps):
    """Open the next nodes, at most ``steps``, for values of first order; return whether to go on.

    Nodes are taken in order of ``u - potential``, whose gradient is the one-form or nearly: in that
    order every metric is causal as far as its one-form has a potential, and few nodes are opened
    again. The values do not depend on it. Where the one-form turns strongly, nodes may be opened
    very often; after a while :func:`settle` is to sweep all nodes instead.

    Values above ``limit[0]`` are passed on to none. When the last target has been opened it falls
    to the largest value that one had (a bound of the final ones), widened to ``limit[1]`` times the
    difference from ``limit[2]``, the least seed.
    """
    M, omega, offset, weight, step, open_, walls, _ = field
    keys, heap, place, state = queue
    count, opened, left = state[0], state[1], state[2]
    shared = len(weight) == 1
    low, order = np.empty(6), np.empty(6, np.int64)
    begin, end = np.int64(0), np.int64(12)
    while count > 0 and opened <= _OPENINGS * len(u) and steps > 0:
        steps -= 1
        opened += 1
        y = np.int64(heap[0])
        count = pop(keys, heap, place, count)
        place[y] = ACCEPTED
        value = u[y]
        left = _reach_target(y, value, left, limit, targets)
        if value > limit[0]:
            continue
        bits = np.int64(open_[y])
        if not shared:
            begin, end = dependent_start[y], dependent_start[y + 1]
        for r in range(begin, end + (6 if bits & _BESIDE else 0)):
            if r >= end:
                x = _axis_neighbour(y, r - end, walls)
                if x < 0 or not open_[x] & _LACKS:
                    continue
            else:
                x, _ = _dependent(r, y, bits, shared, step, dependent)
                if x < 0:
                    continue
            if place[x] < ACCEPTED:
                continue
            new, how = _first_order(x, M, omega, offset, weight, step, open_, walls, u, low, order)
            if new < u[x] - _SAME * (abs(u[x]) + abs(new)) or (u[x] == np.inf and new < np.inf):
                u[x] = new
                code[x] = how
                if place[x] == ACCEPTED:
                    place[x] = FAR
                count = push(keys, heap, place, count, x, new - potential[x])
    state[0], state[1], state[2] = count, opened, left
    return count > 0 and opened <= _OPENINGS * len(u)


@entry_unfused
def settle(field, limit, u, code, rest):
    """Sweep all nodes back and forth until they are at ``rest``; return whether they are."""
    M, omega, offset, weight, step, open_, walls, _ = field
    low, order = np.empty(6), np.empty(6, np.int64)
    sweeps = 0
    while not rest and sweeps < _SWEEPS:
        rest = True
        for n in range(len(u)):
            x = n if sweeps % 2 == 0 else len(u) - 1 - n
            if walls.flat[x]:
                continue
            new, how = _first_order(x, M, omega, offset, weight, step, open_, walls, u, low, order)
            if new < u[x] - _SAME * (abs(u[x]) + abs(new)) or (u[x] == np.inf and new < np.inf):
                u[x] = new
                code[x] = how
                rest = False
        sweeps += 1
    for x in range(len(u)):
        if u[x] > limit[0]:
            u[x] = np.inf
    return rest


@inlined_unfused
def _vector(e, n):
    return (e[n, 0], e[n, 1], e[n, 2])


@inlined_unfused
def _ends(x, code, offset, e):
    """Set ``e`` to the six vectors, turned towards where the values come from."""
    row = 0 if len(offset) == 1 else x
    for k in range(6):
        sign = -1.0 if code >> (2 * k) & 3 == BACKWARDS else 1.0
        for a in range(3):
            e[k, a] = sign * offset[row, k, a]


@inlined_unfused
def _terms(x, code, weight, step, first, u, metric, model, v, room):
    """Set the terms ``q = c (u - U) + k`` (the one-form is in k), and their weights ``rho``."""
    e, c, U, k, rho = room
    row = 0 if len(step) == 1 else x
    factored = code & FACTORED != 0
    slope = _times(model, v)
    length, here = 1.0, 0.0
    if factored:
        length = np.sqrt(_dot(v, slope))
        here = length + _form(model, v)
    for n in range(6):
        side = code >> (2 * n) & 3
        rho[n] = 0.0 if side == NONE else weight[row, n]
        if rho[n] == 0:
            continue
        d = np.int64(-step[row, n] if side == BACKWARDS else step[row, n])
        e_n = _vector(e, n)
        q = _form(metric, e_n)
        if code >> (_LATER + n) & 1:
            c[n], U[n], k[n] = 0.0, 0.0, q + first[x] - first[x + d]
            continue
        slant, end = 0.0, 0.0
        if side != MODEL:
            slant, end = 1.0, u[x + d]
            if code >> (_SECOND + n) & 1:
                slant = 1.5
                end += (end - u[x + 2 * d]) / 3
        if factored:
            q -= _dot(slope, e_n) / length + _form(model, e_n)
            if side != MODEL:
                there = _norm(model, _ahead(v, e_n, 1))
                if slant > 1:
                    there += (there - _norm(model, _ahead(v, e_n, 2))) / 3
                q += slant * (there - here)
        c[n], U[n], k[n] = slant, end, q


@inlined_unfused
def _solve(room):
    """Return the greater root of ``sum of rho (c (u - U) + k)^2 = 1``; NaN if there is none."""
    _, c, U, k, rho = room
    base = np.inf
    for n in range(6):
        if rho[n] > 0 and c[n] > 0:
            base = min(base, U[n])
    if base == np.inf:
        return np.nan
    sum_0, sum_1, sum_2 = 0.0, 0.0, -1.0
    for n in range(6):
        if rho[n] > 0:
            r = c[n] * (U[n] - base) - k[n]
            sum_0 += rho[n] * c[n] * c[n]
            sum_1 += rho[n] * c[n] * r
            sum_2 += rho[n] * r * r
    return base + (sum_1 + np.sqrt(sum_1 * sum_1 - sum_0 * sum_2)) / sum_0


@inlined_unfused
def _model(at, s, source, source_metric, metric):
    """Return the mean of the metrics at the node ``at`` and at its source, and the way there."""
    v = (at[0] - source[s, 0], at[1] - source[s, 1], at[2] - source[s, 2])
    m00, m01, m02, m11, m12, m22, w0, w1, w2 = metric
    m00, m01 = 0.5 * (m00 + source_metric[s, 0]), 0.5 * (m01 + source_metric[s, 1])
    m02, m11 = 0.5 * (m02 + source_metric[s, 2]), 0.5 * (m11 + source_metric[s, 3])
    m12, m22 = 0.5 * (m12 + source_metric[s, 4]), 0.5 * (m22 + source_metric[s, 5])
    w0, w1 = 0.5 * (w0 + source_metric[s, 6]), 0.5 * (w1 + source_metric[s, 7])
    w2 = 0.5 * (w2 + source_metric[s, 8])
    return (m00, m01, m02, m11, m12, m22, w0, w1, w2), v


@inlined_unfused
def _unknown(x, sides, metric, model, v, weight, step, open_, u, e):
    """Return MODEL for the directions without a neighbour whose term the model may give.

    In those the model has no earlier neighbour that is open and has a value.
    """
    bits = np.int64(0)
    row = 0 if len(step) == 1 else x
    here = _norm(model, v)
    for n in range(6):
        if sides >> (2 * n) & 3 == NONE and weight[row, n] > 0:
            e_n = _vector(e, n)
            form = _form(metric, e_n)
            d = step[row, n]
            ahead = open_[x] >> n & 1 and u[x + d] < np.inf
            behind = open_[x] >> (6 + n) & 1 and u[x - d] < np.inf
            if not (
                (ahead and _norm(model, _ahead(v, e_n, 1)) - form < here)
                or (behind and _norm(model, _ahead(v, e_n, -1)) + form < here)
            ):
                bits |= MODEL << (2 * n)
    return bits


@inlined_unfused
def _second(x, at, sides, offset, step, walls, walled, key):
    """Return the bits of the neighbours that have a node of smaller key behind them."""
    n0, n1, n2 = walls.shape
    row = 0 if len(step) == 1 else x
    bits = np.int64(0)
    for n in range(6):
        side = sides >> (2 * n) & 3
        if side == NONE:
            continue
        sign = np.int64(1 if side == FORWARDS else -1)
        e = (sign * offset[row, n, 0], sign * offset[row, n, 1], sign * offset[row, n, 2])
        i, j, k = at[0] + 2 * e[0], at[1] + 2 * e[1], at[2] + 2 * e[2]
        if not (0 <= i < n0 and 0 <= j < n1 and 0 <= k < n2):
            continue
        d = sign * step[row, n]
        if key[x + 2 * d] <= key[x + d] < key[x] and (
            not walled or visible_in_space(walls, (at[0] + e[0], at[1] + e[1], at[2] + e[2]), e)
        ):
            bits |= 1 << (_SECOND + n)
    return bits


@inlined_unfused
def _velocity(value, room):
    """Return the sum of the m_k c_k, and the velocity of the arriving geodesic, of M-norm 1."""
    e, c, U, k, rho = room
    total, f0, f1, f2 = 0.0, 0.0, 0.0, 0.0
    for n in range(6):
        if rho[n] > 0:
            m = rho[n] * (c[n] * (value - U[n]) + k[n])
            total += m * c[n]
            f0 -= m * e[n, 0]
            f1 -= m * e[n, 1]
            f2 -= m * e[n, 2]
    return total, (f0, f1, f2)


@entry_unfused
def trace_first_order(field, sequence, u, code):
    """Set ``code`` to how the values of first order come from each other."""
    M, omega, offset, weight, step, open_, walls, _ = field
    low, ranks = np.empty(6), np.empty(6, np.int64)
    for t in range(len(sequence)):
        x = np.int64(sequence[t])
        if code[x] >= 0:
            _, code[x] = _first_order(
                x, M, omega, offset, weight, step, open_, walls, u, low, ranks
            )


@entry_unfused
def recompute(field, sources, sequence, key, order, label, first, first_code, u, code):
    """Compute the values again, in ``sequence``, with what is better than first order.

    ``sequence`` is in order of ``key``. ``u`` is infinite but at seeds, and ``code`` is 0 there.
    """
    M, omega, offset, weight, step, open_, walls, walled = field
    source, source_metric, source_alone = sources
    room = _room()
    e, _, _, k, rho = room
    low, ranks = np.empty(6), np.empty(6, np.int64)
    # Then no neighbour comes later.
    causal = len(omega) == 1 and omega[0, 0] == 0 and omega[0, 1] == 0 and omega[0, 2] == 0
    for t in range(len(sequence)):
        x = np.int64(sequence[t])
        if code[x] < 0:
            continue
        row = 0 if len(step) == 1 else x
        metric = _metric_at(M, omega, x)
        at = _index(x, walls)
        s = label[x]
        model, v = _model(at, s, source, source_metric, metric)
        trial, plain = _first_order(x, M, omega, offset, weight, step, open_, walls, u, low, ranks)
        sides = plain & _SIDES
        later = np.int64(0)
        if not causal and first_code[x] & AXIS == 0:
            for n in range(6):
                side = first_code[x] >> (2 * n) & 3
                y = x + (step[row, n] if side == FORWARDS else -step[row, n])
                if side != NONE and u[y] == np.inf:
                    sides = (sides & ~np.int64(3 << (2 * n))) | side << (2 * n)
                    later |= 1 << (_LATER + n)
        heaviest = 0.0
        for n in range(6):
            if sides >> (2 * n) & 3 != NONE:
                heaviest = max(heaviest, weight[row, n])
        _ends(x, sides, offset, e)
        share = 0.0
        if later:
            plain = sides | later
            _terms(x, plain, weight, step, first, u, metric, model, v, room)
            trial = _solve(room)
            for n in range(6):
                if later >> (_LATER + n) & 1:
                    share += rho[n] * k[n] * k[n]
        code[x], u[x] = plain, trial
        if not trial < np.inf or share > _MOST:
            code[x], u[x] = _KEEP, first[x]
            continue
        if sides == 0:
            continue
        longest = 1 / np.sqrt(heaviest)
        second = np.int64(0)
        if order == 2:
            second = _second(x, at, sides, offset, step, walls, walled, key)
        known = sides
        if later:
            for n in range(6):
                if later >> (_LATER + n) & 1:
                    known &= ~np.int64(3 << (2 * n))
            _ends(x, known, offset, e)
        unknown = np.int64(0)
        if source_alone[s]:
            unknown = _unknown(x, known, metric, model, v, weight, step, open_, u, e)
        for attempt in range(3):
            # Factored and of second order, then either.
            if attempt < 2:
                if not source_alone[s]:
                    continue
                bits = known | FACTORED | unknown
            elif plain & AXIS:
                continue
            else:
                bits = sides | later
            if attempt == 0:
                bits |= second
            elif attempt == 2:
                # A source may lie between two nodes that are seeds.
                bits |= second & ~_across(x, second, sides, step, code)
            if attempt != 1 and bits >> _SECOND & 63 == 0:
                continue
            if later:
                _ends(x, bits, offset, e)
            _terms(x, bits, weight, step, first, u, metric, model, v, room)
            value = _solve(room)
            total, velocity = _velocity(value, room)
            # A NaN is not good.
            good = total > 0 and abs(value - trial) <= _MOVE * longest
            if good and bits & FACTORED:
                slope = _times(metric, v)
                agree = _AGREE_ALL if unknown else _AGREE
                good = _dot(velocity, slope) > agree * np.sqrt(_dot(v, slope))
            if good:
                code[x], u[x] = bits, value
                break


@inlined_unfused
def _across(x, second, sides, step, code):
    """Return those of the bits ``second`` whose ends are seeds like the node behind them."""
    row = 0 if len(step) == 1 else x
    bits = np.int64(0)
    for n in range(6):
        if second >> (_SECOND + n) & 1:
            d = step[row, n] if sides >> (2 * n) & 3 == FORWARDS else -step[row, n]
            if code[x + d] < 0 and code[x + 2 * d] < 0:
                bits |= 1 << (_SECOND + n)
    return bits


@entry_unfused
def propagate_labels(sequence, step, key, walls, code, label):
    """Give every node the label of the neighbour that comes first, of those it depends on."""
    for t in range(len(sequence)):
        x = np.int64(sequence[t])
        if code[x] < 0:
            continue
        before = np.inf
        row = 0 if len(step) == 1 else x
        for n in range(6):
            side = code[x] >> (2 * n) & 3
            if side != NONE:
                y = x + (step[row, n] if side == FORWARDS else -step[row, n])
                if key[y] < before and label[y] >= 0:
                    before = key[y]
                    label[x] = label[y]
        if code[x] & AXIS:
            y = _axis_neighbour(x, code[x] >> _WHICH & 7, walls)
            if key[y] < before:
                label[x] = label[y]


@entry_unfused
def arrival_velocities(field, sources, sequence, label, first, first_code, u, code, flow):
    """Set ``flow`` to the velocities of the arriving geodesics."""
    M, omega, offset, weight, step, _, walls, _ = field
    source, source_metric, _ = sources
    room = _room()
    for t in range(len(sequence)):
        x = np.int64(sequence[t])
        metric = _metric_at(M, omega, x)
        model, v = _model(_index(x, walls), label[x], source, source_metric, metric)
        bits, values = np.int64(code[x]), u
        if bits == _KEEP:
            bits, values = np.int64(first_code[x]), first
        velocity = v
        if bits >= 0 and bits & AXIS:
            direction = bits >> _WHICH & 7
            step_back = -1.0 if direction < 3 else 1.0
            axis = direction % 3
            velocity = (
                step_back if axis == 0 else 0.0,
                step_back if axis == 1 else 0.0,
                step_back if axis == 2 else 0.0,
            )
        elif bits >= 0:
            _ends(x, bits, offset, room.e)
            _terms(x, bits, weight, step, first, values, metric, model, v, room)
            _, velocity = _velocity(values[x], room)
        length = _norm(metric, velocity)
        for a in range(3):
            flow[x, a] = velocity[a] / length if length > 0 else 0.0


@jit_unfused
def _add_square(gradient, row, weight, v, w):
    """Add ``weight (v w' + w v') / 2`` to the gradient of a matrix."""
    for i in range(3):
        for j in range(3):
            gradient[row, 3 * i + j] += weight * 0.5 * (v[i] * w[j] + w[i] * v[j])


@jit_unfused
def _add_norm(weight, model, v, x, s, g_M, g_omega, s_M, s_omega, s_position):
    """Add the gradient of ``weight F_m(v)``, where ``v`` moves with the source."""
    slope = _times(model, v)
    length = np.sqrt(max(_dot(v, slope), 0.0))
    if length == 0:
        return
    half = 0.5 * weight  # the model is the mean of two metrics
    _add_square(g_M, x, half / (2 * length), v, v)
    _add_square(s_M, s, half / (2 * length), v, v)
    for i in range(3):
        g_omega[x, i] += half * v[i]
        s_omega[s, i] += half * v[i]
        s_position[s, i] -= weight * (slope[i] / length + model[6 + i])


@jit_unfused
def _add_slope(weight, model, v, e, x, s, g_M, g_omega, s_M, s_omega, s_position):
    """Add the gradient of ``weight dF_m(v) . e``."""
    across, along = _times(model, v), _times(model, e)
    length = np.sqrt(_dot(v, across))
    product = _dot(v, along)
    half = 0.5 * weight
    for side in range(2):
        gradient, row = (g_M, x) if side == 0 else (s_M, s)
        _add_square(gradient, row, -half * product / (2 * length**3), v, v)
        _add_square(gradient, row, half / length, v, e)
    for i in range(3):
        g_omega[x, i] += half * e[i]
        s_omega[s, i] += half * e[i]
        s_position[s, i] -= weight * (along[i] / length - product * across[i] / length**3)


@jit_unfused
def _raised(dual, v):
    """Return M^-1 v."""
    w = (np.float64(v[0]), np.float64(v[1]), np.float64(v[2]))
    return (_dot(dual[0], w), _dot(dual[1], w), _dot(dual[2], w))


@entry_unfused
def march_back(
    field, dual, base, sources, label, sequence, first, u, code, g_first, g_u, gradients
):
    """Walk back over ``sequence`` from the gradient ``g_u`` (overwritten) to the others.

    ``g_first`` is that of the values of first order. Where nodes depend on each other it walks
    again with what is left. Return the number of walks, 0 if they did not come to an end.
    """
    M, omega, offset, weight, step, _, walls, _ = field
    source, source_metric, _ = sources
    g_M, g_omega, g_seed, s_M, s_omega, s_position = gradients
    room = _room()
    e, c, U, k, rho = room
    whole = 0.0
    for t in range(len(sequence)):
        whole = max(whole, abs(g_u[sequence[t]]))
    for walks in range(1, _WALKS + 1):
        for t in range(len(sequence) - 1, -1, -1):
            x = np.int64(sequence[t])
            g = g_u[x]
            if g == 0:
                continue
            g_u[x] = 0.0
            if code[x] < 0:
                g_seed[-1 - code[x]] += g
                continue
            if code[x] == _KEEP:
                g_first[x] += g
                continue
            if code[x] & AXIS:
                direction = code[x] >> _WHICH & 7
                axis = direction % 3
                g_u[_axis_neighbour(x, direction, walls)] += g
                g_M[x, 4 * axis] += g / (2 * np.sqrt(M[x if len(M) > 1 else 0, 4 * axis]))
                g_omega[x, axis] += -g if direction < 3 else g
                continue
            s = np.int64(label[x])
            metric = _metric_at(M, omega, x)
            model, v = _model(_index(x, walls), s, source, source_metric, metric)
            bits = np.int64(code[x])
            _ends(x, bits, offset, e)
            _terms(x, bits, weight, step, first, u, metric, model, v, room)
            total, _ = _velocity(u[x], room)
            row = 0 if len(step) == 1 else x
            n = -1
            for i in range(4):
                for j in range(i + 1, 4):
                    n += 1
                    if rho[n] == 0:
                        continue
                    q = c[n] * (u[x] - U[n]) + k[n]
                    share = g / total * rho[n] * q
                    for a in range(3):
                        g_omega[x, a] -= share * e[n, a]
                    raised = _raised(dual[row], base[row, i]), _raised(dual[row], base[row, j])
                    _add_square(g_M, x, -0.5 * g / total * q * q, *raised)
                    side = bits >> (2 * n) & 3
                    d = -step[row, n] if side == BACKWARDS else step[row, n]
                    if bits >> (_LATER + n) & 1:
                        g_first[x] -= share
                        g_first[x + d] += share
                        continue
                    if side != MODEL:
                        if c[n] > 1:
                            g_u[x + d] += share * c[n] * 4 / 3
                            g_u[x + 2 * d] -= share * c[n] / 3
                        else:
                            g_u[x + d] += share
                    if bits & FACTORED:
                        args = (x, s, g_M, g_omega, s_M, s_omega, s_position)
                        e_n = _vector(e, n)
                        _add_slope(share, model, v, e_n, *args)
                        if side != MODEL:
                            _add_norm(share * c[n], model, v, *args)
                            ahead = _ahead(v, e_n, 1)
                            if c[n] > 1:
                                _add_norm(-share * c[n] * 4 / 3, model, ahead, *args)
                                _add_norm(share * c[n] / 3, model, _ahead(v, e_n, 2), *args)
                            else:
                                _add_norm(-share * c[n], model, ahead, *args)
        left = 0.0
        for t in range(len(sequence)):
            left = max(left, abs(g_u[sequence[t]]))
        if left <= 1e-14 * whole:
            return walks
    return 0
