"""Fast marching in the plane for norms of any family, compiled: the walk there and the walk back.

The scheme is that of `_plane`, with the norm in place of formulas. With ``e_i`` the ends of a
sector, and ``c_i``, ``U_i`` and ``k_i`` as there, a value is

    u(x) = min over t of the sum of l_i (U_i - k_i / c_i) + F_x(v),   v = -sum of l_i e_i / c_i,

``l = (1 - t, t)``: for second order and factored too, since ``F*(p) = 1`` says that the largest of
``p(v) - F(v)`` is 0, and ``p(-e_i) = c_i (u - U_i) + k_i``. So every update is the minimum of a
convex function of one variable. First-order values have ``t`` in (0, 1).

By the envelope theorem the walk back needs no derivative of the minimum: with ``t`` fixed, u is
linear in the values at the ends, and the norm's parameters come in by the norms alone, whose
derivatives are taken outside (`_march_norms`).
"""

from typing import NamedTuple

import numpy as np

from finslerconv._compiled import entry_unfused, jit_unfused
from finslerconv.geodesics.distances._heap import ACCEPTED, FAR, WALL, pop, push
from finslerconv.geodesics.distances._norms import Norms, mean, norm, norm_at, slope
from finslerconv.geodesics.distances.fast_marching._plane import (
    FACTORED,
    SECOND_A,
    SECOND_B,
    SECTOR,
    _across,
    _differences,
    _ends,
    _second,
)

BITS = 4
_NOTHING = -(2**31) + 1

# As in the plane march of Randers metrics; what is measured there in M is here in the symmetric
# norm S(v) = (F(v) + F(-v)) / 2, which for a Randers metric is the norm of M.
_MOVE = 0.5
_OUTSIDE = 0.3
_AGREE = 0.7
_ALIGNED = 1.0137

# Slopes within this part of the norm are 0.
_TIE = 1e-12

# The minimum of better differences is looked for so many times the sector beyond its ends.
_FAR = 64.0

# The minimum is found when another step would lower it by less than this part of the norm, or when
# it is between places that are nearer than _NARROW.
_GAIN = 1e-14
_NARROW = 1e-14
_ROUNDS = 100


class Field(NamedTuple):
    """A field of norms with its stencils (`Stencils`) and walls."""

    norms: Norms
    start: np.ndarray
    offset: np.ndarray
    shared: bool
    dependent_start: np.ndarray
    dependent: np.ndarray
    walls: np.ndarray
    walled: bool


class Sources(NamedTuple):
    """The seeds (node, value, label) and the sources (position, norms, alone) of a problem."""

    node: np.ndarray
    value: np.ndarray
    label: np.ndarray
    position: np.ndarray
    norms: Norms
    alone: np.ndarray


class Front(NamedTuple):
    """What is known of the nodes; ``code`` as in `_plane`, ``weight`` is t."""

    u: np.ndarray
    label: np.ndarray
    flow: np.ndarray
    code: np.ndarray
    weight: np.ndarray
    place: np.ndarray


@jit_unfused
def _least(metric, a, b, wa, wb, low, high, best):
    """Return the least of ``(1 - t) wa + t wb + F(-(1 - t) a - t b)`` between two ends, and t.

    ``low`` and ``high`` are triples of t, the value and its slope. Infinity where the minimum is at
    an end, or not below ``best``.
    """
    side0, side1 = a[0] - b[0], a[1] - b[1]
    left, g_left, d_left = low
    right, g_right, d_right = high
    if not (d_left < 0.0 and d_right > 0.0):
        return np.inf, left
    width = right - left
    rise = g_right - g_left
    # The function is above its tangents.
    if g_left + d_left * (d_right * width - rise) / (d_right - d_left) >= best:
        return np.inf, left
    # First the minimum of the cubic with these values and slopes, then secants of the slope.
    z = d_left + d_right - 3.0 * rise / width
    root = np.sqrt(max(z * z - d_left * d_right, 0.0))
    t = right - width * (d_right + root - z) / (d_right - d_left + 2.0 * root)
    last, d_last = (left, d_left) if -d_left < d_right else (right, d_right)
    value = np.inf
    for turn in range(_ROUNDS):
        if not (left < t and t < right) or turn % 8 == 7:
            t = 0.5 * (left + right)
        length, p0, p1 = slope(metric, (t - 1.0) * a[0] - t * b[0], (t - 1.0) * a[1] - t * b[1])
        value = (1.0 - t) * wa + t * wb + length
        d = wb - wa + p0 * side0 + p1 * side1
        if d < 0.0:
            left = t
        else:
            right = t
        bend = (d - d_last) / (t - last) if t != last else 0.0
        last, d_last = t, d
        if right - left <= _NARROW:
            break
        if bend > 0.0:
            t -= d / bend
            if 0.5 * d * d <= _GAIN * length * bend:
                break
        else:
            t = left
    return value, min(max(t, left), right)


@jit_unfused
def _end(metric, t, a, b, wa, wb):
    """Return t with the value of :func:`_least` there and its slope."""
    length, p0, p1 = slope(metric, (t - 1.0) * a[0] - t * b[0], (t - 1.0) * a[1] - t * b[1])
    slant = wb - wa + p0 * (a[0] - b[0]) + p1 * (a[1] - b[1])
    return t, (1.0 - t) * wa + t * wb + length, slant


@jit_unfused
def _size(metric, v0, v1):
    """Return the symmetric norm."""
    return 0.5 * (norm(metric, v0, v1) + norm(metric, -v0, -v1))


@jit_unfused
def _agree(metric, f0, f1, v0, v1):
    """Return whether both vectors run the same way."""
    _, p0, p1 = slope(metric, f0, f1)
    _, q0, q1 = slope(metric, -f0, -f1)
    along = 0.5 * ((p0 - q0) * v0 + (p1 - q1) * v1)
    return along > _AGREE * _size(metric, v0, v1)


@jit_unfused
def _cone(model, v0, v1, e0, e1, c):
    """Return the model of the front at the end e, as differences of the order of ``c`` read it."""
    there = norm(model, v0 + e0, v1 + e1)
    if c > 1.0:
        there += (there - norm(model, v0 + 2 * e0, v1 + 2 * e1)) / 3
    return there


@jit_unfused
def _from_sector(metric, model, factored, v, e, c, U):
    """Return the value from two ends, t, the velocity, and whether it comes from the sector."""
    a = (e[0, 0] / c[0], e[0, 1] / c[0])
    b = (e[1, 0] / c[1], e[1, 1] / c[1])
    base = min(U[0], U[1])  # or cancellation would eat the result
    wa, wb = U[0] - base, U[1] - base
    if factored:
        here, p0, p1 = slope(model, v[0], v[1])
        wa -= _cone(model, v[0], v[1], e[0, 0], e[0, 1], c[0]) - here - p0 * a[0] - p1 * a[1]
        wb -= _cone(model, v[0], v[1], e[1, 0], e[1, 1], c[1]) - here - p0 * b[0] - p1 * b[1]
    low, high = _end(metric, 0.0, a, b, wa, wb), _end(metric, 1.0, a, b, wa, wb)
    # A norm that is flat between the ends has its minimum everywhere.
    tie = _TIE * (low[1] - wa + high[1] - wb)
    # Ends of very different lengths leave room far beyond the shorter one.
    reach = 1.0
    while low[2] > tie and reach <= _FAR:
        low = _end(metric, -reach, a, b, wa, wb)
        reach *= 4.0
    reach = 1.0
    while high[2] < -tie and reach <= _FAR:
        high = _end(metric, 1.0 + reach, a, b, wa, wb)
        reach *= 4.0
    value, t = _least(metric, a, b, wa, wb, low, high, np.inf)
    if max(abs(low[2]), abs(high[2])) <= tie:
        t, value, _ = low
        if factored:  # then the way from the source counts
            turn_a, turn_b = a[0] * v[1] - a[1] * v[0], b[0] * v[1] - b[1] * v[0]
            t = min(max(turn_a / (turn_a - turn_b), 0.0), 1.0) if turn_a != turn_b else 0.0
    elif 0.0 <= low[2] <= tie:
        t, value, _ = low
    elif -tie <= high[2] <= 0.0:
        t, value, _ = high
    f0, f1 = (t - 1.0) * a[0] - t * b[0], (t - 1.0) * a[1] - t * b[1]
    good = value < np.inf
    if good and not 0.0 <= t <= 1.0:
        limit = _OUTSIDE * _size(metric, f0, f1)
        good = (1.0 - t) * _size(metric, a[0], a[1]) > -limit
        good = good and t * _size(metric, b[0], b[1]) > -limit
    if good and factored:
        good = _agree(metric, f0, f1, v[0], v[1])
    return base + value, t, f0, f1, good


@jit_unfused
def _from_end(metric, model, factored, v, e, c, U):
    """Return the value from one end."""
    a0, a1 = np.float64(e[0, 0]), np.float64(e[0, 1])
    step = norm(metric, -a0, -a1)
    if factored:
        fall = norm(model, v[0], v[1]) - _cone(model, v[0], v[1], a0, a1, c[0])
        step *= c[0] * fall / norm(model, -a0, -a1)
    return U[0] + step / c[0]


@jit_unfused
def _arrive(field, sources, front, order, y, scratch):
    """Compute the value of an accepted node again, and how the geodesic arrives."""
    u, label, _, code, weight, place = front
    e, c, U = scratch
    metric = norm_at(field.norms, y)
    width = field.walls.shape[1]
    row = y // width
    column = y - row * width
    if code[y] < 0:
        label[y] = sources.label[-1 - code[y]]
        s = label[y]
        return row - sources.position[s, 0], column - sources.position[s, 1]
    trial = u[y]
    _ends(field.shared, field.start, field.offset, y, code[y], e)
    ya = y + e[0, 0] * width + e[0, 1]
    step = norm(metric, -np.float64(e[0, 0]), -np.float64(e[0, 1]))
    ends = 1
    label[y] = label[ya]
    if code[y] & SECTOR:
        ends = 2
        yb = y + e[1, 0] * width + e[1, 1]
        step = max(step, norm(metric, -np.float64(e[1, 0]), -np.float64(e[1, 1])))
        if u[yb] < u[ya]:
            label[y] = label[yb]
    s = label[y]
    v = (row - sources.position[s, 0], column - sources.position[s, 1])
    alone = sources.alone[s]
    model = mean(metric, norm_at(sources.norms, s)) if alone else metric
    second = _second(ends, row, column, field.walls, field.walled, u, place, e) if order == 2 else 0
    f0, f1 = v
    for attempt in range(4):
        # Factored and of second order, then either, then neither.
        bits = np.int64(code[y] & ~np.int64(SECOND_A | SECOND_B | FACTORED))
        if attempt == 2:
            second &= ~_across(second, y, width, code, e)
        if attempt in (0, 2):
            bits |= second
            if second == 0:
                continue
        if attempt < 2:
            if not alone:
                continue
            bits |= FACTORED
        factored = bits & FACTORED != 0
        _differences(bits, row, column, width, u, e, c, U)
        t = 0.0
        if ends == 1:
            if factored and abs(v[0] * e[0, 1] - v[1] * e[0, 0]) >= _ALIGNED:
                continue
            value = _from_end(metric, model, factored, v, e, c, U)
            f0, f1 = -np.float64(e[0, 0]), -np.float64(e[0, 1])
            if factored:
                f0, f1 = v
            good = True
        else:
            value, t, f0, f1, good = _from_sector(metric, model, factored, v, e, c, U)
        # A NaN is not good.
        if (good and abs(value - trial) <= _MOVE * step) or attempt == 3:
            u[y] = value if attempt < 3 else trial
            code[y] = bits
            weight[y] = t
            break
    return f0, f1


@jit_unfused
def _pass_on(field, front, y, keys, heap, count):
    """Lower the values of the nodes that read y; return the number of entries of the heap."""
    u, _, _, code, _, place = front
    norms, shared, start, offset = field.norms, field.shared, field.start, field.offset
    height, width = field.walls.shape
    row = y // width
    column = y - row * width
    value = u[y]
    first, last = np.int64(0), np.int64(len(offset))
    begin, end = first, last
    if not shared:
        begin, end = field.dependent_start[y], field.dependent_start[y + 1]
    for r in range(begin, end):
        j = np.int64(r) if shared else np.int64(field.dependent[r])
        i0, i1 = np.int64(offset[j, 0]), np.int64(offset[j, 1])
        row_x, column_x = row - i0, column - i1
        if row_x < 0 or row_x >= height or column_x < 0 or column_x >= width:
            continue
        x = row_x * width + column_x
        if place[x] < FAR or u[x] <= value:
            continue
        if not shared:
            first, last = start[x], start[x + 1]
        best = u[x]
        how = np.int64(-1)
        metric = norm_at(norms, x)
        a = (np.float64(i0), np.float64(i1))
        length_a, p0, p1 = slope(metric, -a[0], -a[1])
        if value + length_a < best:
            best = value + length_a
            how = (j - first) << BITS
        for side in range(2):
            if side == 0:
                other = j + 1 if j + 1 < last else first
            else:
                other = j - 1 if j > first else last - 1
            k0, k1 = np.int64(offset[other, 0]), np.int64(offset[other, 1])
            row_z, column_z = row_x + k0, column_x + k1
            if not (0 <= row_z < height and 0 <= column_z < width):
                continue
            z = row_z * width + column_z
            if place[z] != ACCEPTED:
                continue
            b = (np.float64(k0), np.float64(k1))
            # The minimum is inside only if it falls at both ends.
            slant = u[z] - value + p0 * (a[0] - b[0]) + p1 * (a[1] - b[1])
            if not slant < 0.0:
                continue
            low = (0.0, value + length_a, slant)
            high = _end(metric, 1.0, a, b, value, u[z])
            candidate, _ = _least(metric, a, b, value, u[z], low, high, best)
            if candidate < best:
                best = candidate
                how = (((j if side == 0 else other) - first) << BITS) | SECTOR
        if how >= 0:
            u[x] = best
            code[x] = how
            count = push(keys, heap, place, count, x, best)
    return count


@entry_unfused
def march(field, sources, front, order, radius, sequence, queue, targets, steps):
    """Accept the next nodes, at most ``steps``; return whether the march goes on.

    ``sequence`` gets the nodes in the order of acceptance.
    """
    u, _, flow, _, _, place = front
    keys, heap, _, state = queue
    count, done, left = state[0], state[1], state[2]
    scratch = (np.zeros((2, 2), np.int64), np.ones(2), np.zeros(2))
    while count > 0 and left != 0 and steps > 0:
        steps -= 1
        y = np.int64(heap[0])
        count = pop(keys, heap, place, count)
        trial = u[y]
        f0, f1 = _arrive(field, sources, front, order, y, scratch)
        length = norm(norm_at(field.norms, y), f0, f1)
        flow[y, 0] = f0 / length if length > 0 else 0.0
        flow[y, 1] = f1 / length if length > 0 else 0.0
        if trial > radius and u[y] > radius:
            place[y] = WALL  # nobody may read it
            continue
        place[y] = ACCEPTED
        sequence[done] = y
        done += 1
        if left > 0 and targets[y]:
            left -= 1
        count = _pass_on(field, front, y, keys, heap, count)
    state[0], state[1], state[2] = count, done, left
    return count > 0 and left != 0


@entry_unfused
def march_back(field, code, weight, sequence, g_u, g_seed):
    """Walk back over ``sequence``: ``g_u`` becomes the gradient in the value of each node.

    It comes as the gradient in the results; ``g_seed`` is added to.
    """
    width = field.walls.shape[1]
    e = np.zeros((2, 2), np.int64)
    for at in range(len(sequence) - 1, -1, -1):
        y = np.int64(sequence[at])
        g = g_u[y]
        if g == 0:
            continue
        if code[y] < 0:
            g_seed[-1 - code[y]] += g
            continue
        bits = np.int64(code[y])
        _ends(field.shared, field.start, field.offset, y, bits, e)
        for i in range(2 if bits & SECTOR else 1):
            share = g * (weight[y] if i else 1.0 - weight[y])
            z = y + e[i, 0] * width + e[i, 1]
            if bits & (SECOND_A << i):
                g_u[z] += share * 4 / 3
                g_u[z + e[i, 0] * width + e[i, 1]] -= share / 3
            else:
                g_u[z] += share
