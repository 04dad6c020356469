"""Fast marching in the plane, compiled: the front's walk over the nodes, and the walk back.

A trial value is of first order: the least of ``l u(x + a) + (1 - l) u(x + b) + F_x(-l a - (1 - l)
b)`` over the sectors (a, b) of the stencil of x whose ends are accepted. When x is accepted, its
value is computed again in the sector of the least, by better differences. With ``q_i = c_i (u -
U_i) + k_i + omega . e_i``, the difference of u along ``-e_i`` less that of the one-form, the
eikonal equation is ``q' G^-1 q = 1``, where G is the Gram matrix of the sector's ends in M:

- first order: ``c = 1``, ``U = u(x + e)``;
- second order, where x + 2 e is accepted before x + e: ``c = 3/2``,
  ``U = (4 u(x + e) - u(x + 2 e)) / 3``;
- factored: ``k`` is the error of the same difference for the cone ``u0(y) = F_m(y - s)`` around
  the source s. ``F_m`` is the mean of the metrics at s and at x.

An end alone (``l`` 0 or 1) is ``c (u - U) = F_x(-e)``, factored by the ratio of the difference of
u0 to ``F_m(-e)`` if the chord from the source passes within a pixel of the end.

The ``code`` of a node tells where its value comes from:

========  ==========================================================
value     meaning
========  ==========================================================
bit 0     from a sector, not from one end
bits 1-2  the first, the second end is of second order
bit 3     factored
bits 4-   the place in the stencil of the sector's first end
-1 - s    the node has the value of seed s
========  ==========================================================

The walk back is the implicit adjoint. With ``m = G^-1 q``, ``v = -sum m_i e_i`` (the velocity of
the geodesic, of M-norm 1) and ``S = sum c_i m_i``:
``S du = sum m_i (c_i dU_i - dk_i) + v . domega + v' dM v / 2``.
"""

from typing import NamedTuple

import numpy as np

from finslerconv._compiled import entry_unfused, jit_unfused
from finslerconv.geodesics.distances._heap import ACCEPTED, FAR, WALL, pop, push
from finslerconv.geodesics.distances._sight import visible
from finslerconv.geodesics.distances._stencils import metric_at

SECTOR, SECOND_A, SECOND_B, FACTORED = 1, 2, 4, 8
_BITS = 4

# The code of a node that has no value yet.
_NOTHING = -(2**31) + 1

# At kinks better differences are wrong. So the better value counts if it is within this fraction of
# a step of the first-order one, and its geodesic at most so far outside the sector.
_MOVE = 0.5
_OUTSIDE = 0.3

# The model of the front is used where it runs the same way as the front (cosine in M).
_AGREE = 0.7

# How far, in pixels across, the chord may pass an end that is factored. In a constant metric it
# passes within one pixel; sources at round positions must not lie on the limit.
_ALIGNED = 1.0137


class Field(NamedTuple):
    """A field with its stencils (`Stencils`) and walls, as the kernels read it."""

    M: np.ndarray
    omega: np.ndarray
    start: np.ndarray
    offset: np.ndarray
    shared: bool
    dependent_start: np.ndarray
    dependent: np.ndarray
    walls: np.ndarray
    walled: bool


class Sources(NamedTuple):
    """The seeds (node, value, label) and the sources (position, metric, alone) of a problem."""

    node: np.ndarray
    value: np.ndarray
    label: np.ndarray
    position: np.ndarray
    metric: np.ndarray
    alone: np.ndarray


@entry_unfused
def dependents(start, offset, width, dependent_start, dependent):
    """Write, for each node, the places in ``offset`` of the stencils that have it as a vertex."""
    nodes = len(start) - 1
    dependent_start[:] = 0
    # Entry y + 1 counts first, and is then the place of the next entry of y.
    for fill in range(2):
        for x in range(nodes):
            for j in range(start[x], start[x + 1]):
                a, b = np.int64(offset[j, 0]), np.int64(offset[j, 1])
                if a != 0 or b != 0:
                    y = x + a * width + b
                    if fill:
                        dependent[dependent_start[y + 1]] = j
                    dependent_start[y + 1] += 1
        if fill == 0:
            total = 0
            for y in range(nodes):
                total, dependent_start[y + 1] = total + dependent_start[y + 1], total


@jit_unfused
def _dot(metric, a0, a1, b0, b1):
    """Return the product of two vectors in M, of ``metric = (m00, m01, m11, omega0, omega1)``."""
    return metric[0] * a0 * b0 + metric[1] * (a0 * b1 + a1 * b0) + metric[2] * a1 * b1


@jit_unfused
def _norm(metric, a0, a1):
    return np.sqrt(_dot(metric, a0, a1, a0, a1)) + metric[3] * a0 + metric[4] * a1


@jit_unfused
def _mean(p, q):
    m00, m01, m11 = 0.5 * (p[0] + q[0]), 0.5 * (p[1] + q[1]), 0.5 * (p[2] + q[2])
    return (m00, m01, m11, 0.5 * (p[3] + q[3]), 0.5 * (p[4] + q[4]))


@jit_unfused
def _triangle(metric, a0, a1, b0, b1, wa, wb):
    """Return the first-order value of a sector, infinite where its minimum is at an end.

    ``wa``, ``wb`` are the ends' values less ``omega . e``.
    """
    aa = _dot(metric, a0, a1, a0, a1)
    bb = _dot(metric, b0, b1, b0, b1)
    ab = _dot(metric, a0, a1, b0, b1)
    side = _dot(metric, a0 - b0, a1 - b1, a0 - b0, a1 - b1)
    rise = wb - wa
    under = side - rise * rise
    if under <= 0:
        return np.inf
    det = metric[0] * metric[2] - metric[1] * metric[1]  # the sector's own determinant is 1
    t = ((aa - ab) * rise + np.sqrt(det * under)) / side
    if (bb - ab) * t + ab * rise <= 0 or (aa - ab) * t - aa * rise <= 0:
        return np.inf
    return wa + t


@jit_unfused
def _differences(bits, row, column, width, u, e, c, U):
    """Set ``c`` and ``U`` of the ends in ``e``, by the orders that ``bits`` names."""
    for i in range(2 if bits & SECTOR else 1):
        y = (row + e[i, 0]) * width + column + e[i, 1]
        if bits & (SECOND_A << i):
            z = y + e[i, 0] * width + e[i, 1]
            c[i] = 1.5
            U[i] = u[y] + (u[y] - u[z]) / 3
        else:
            c[i] = 1.0
            U[i] = u[y]


@jit_unfused
def _second(ends, row, column, walls, walled, u, place, e):
    """Return the bits of the ends that have an accepted node of smaller value behind them."""
    height, width = walls.shape
    bits = 0
    for i in range(ends):
        i1, j1 = row + e[i, 0], column + e[i, 1]
        i2, j2 = i1 + e[i, 0], j1 + e[i, 1]
        if 0 <= i2 < height and 0 <= j2 < width:
            z = i2 * width + j2
            if (
                place[z] == ACCEPTED
                and u[z] <= u[i1 * width + j1]
                and (not walled or visible(walls, i1, j1, e[i, 0], e[i, 1]))
            ):
                bits |= SECOND_A << i
    return bits


@jit_unfused
def _across(second, y, width, code, e):
    """Return those of the bits ``second`` whose ends are seeds like the node behind them.

    A source may lie between the two, where the distance has a kink.
    """
    bits = 0
    for i in range(2):
        if second & (SECOND_A << i):
            z = y + e[i, 0] * width + e[i, 1]
            if code[z] < 0 and code[z + z - y] < 0:
                bits |= SECOND_A << i
    return bits


@jit_unfused
def _corrections(bits, model, v0, v1, e, c, k):
    """Set ``k``, what the differences of the norm ``model`` at ``v`` get wrong along the ends."""
    length = np.sqrt(_dot(model, v0, v1, v0, v1))
    here = length + model[3] * v0 + model[4] * v1
    for i in range(2 if bits & SECTOR else 1):
        e0, e1 = e[i, 0], e[i, 1]
        there = _norm(model, v0 + e0, v1 + e1)
        if c[i] > 1:
            there += (there - _norm(model, v0 + 2 * e0, v1 + 2 * e1)) / 3
        slope = _dot(model, v0, v1, e0, e1) / length + model[3] * e0 + model[4] * e1
        k[i] = c[i] * (there - here) - slope


@jit_unfused
def _edge(metric, model, factored, v0, v1, e, c, U):
    """Return the value from one end."""
    a0, a1 = e[0, 0], e[0, 1]
    step = _norm(metric, -a0, -a1)
    if factored:
        there = _norm(model, v0 + a0, v1 + a1)
        if c[0] > 1:
            there += (there - _norm(model, v0 + 2 * a0, v1 + 2 * a1)) / 3
        step *= c[0] * (_norm(model, v0, v1) - there) / _norm(model, -a0, -a1)
    return U[0] + step / c[0]


@jit_unfused
def _sector(metric, e, c, U, k):
    """Return the value from two ends, and the weights m of the geodesic; NaN if there is none."""
    a0, a1, b0, b1 = e[0, 0], e[0, 1], e[1, 0], e[1, 1]
    aa = _dot(metric, a0, a1, a0, a1)
    bb = _dot(metric, b0, b1, b0, b1)
    ab = _dot(metric, a0, a1, b0, b1)
    det = metric[0] * metric[2] - metric[1] * metric[1]
    base = min(U[0], U[1])  # or cancellation would eat the result
    ra = c[0] * (U[0] - base) - k[0] - metric[3] * a0 - metric[4] * a1
    rb = c[1] * (U[1] - base) - k[1] - metric[3] * b0 - metric[4] * b1
    ga = (bb * c[0] - ab * c[1]) / det
    gb = (aa * c[1] - ab * c[0]) / det
    quadratic = c[0] * ga + c[1] * gb
    linear = ra * ga + rb * gb
    # linear^2 - quadratic constant, without the difference of two large numbers
    cross = c[0] * rb - c[1] * ra
    t = (linear + np.sqrt(quadratic - cross * cross / det)) / quadratic
    qa, qb = c[0] * t - ra, c[1] * t - rb
    return base + t, (bb * qa - ab * qb) / det, (aa * qb - ab * qa) / det


@jit_unfused
def _ends(shared, start, offset, y, code, e):
    """Set ``e`` to the ends of the sector, or to the one end, that gave node y its value."""
    first = 0 if shared else start[y]
    last = len(offset) if shared else start[y + 1]
    j = first + (code >> _BITS)
    e[0, 0], e[0, 1] = offset[j, 0], offset[j, 1]
    if code & SECTOR:
        j = j + 1 if j + 1 < last else first
        e[1, 0], e[1, 1] = offset[j, 0], offset[j, 1]


@entry_unfused
def begin(sources, u, label, code, queue):
    """Put the seeds into the queue; everything else has no value yet."""
    keys, heap, place, state = queue
    count = 0
    u[:] = np.inf
    label[:] = -1
    code[:] = _NOTHING
    for s in range(len(sources.node)):
        x = sources.node[s]
        if sources.value[s] < u[x]:
            u[x] = sources.value[s]
            code[x] = -1 - s
            count = push(keys, heap, place, count, x, u[x])
    state[0] = count


@entry_unfused
def march(field, sources, order, radius, u, label, flow, code, sequence, queue, targets, steps):
    """Accept the next nodes, at most ``steps``: fill ``u``, ``label``, ``flow``, ``code``.

    ``sequence`` gets the nodes in the order of acceptance. Return whether the march goes on.
    """
    keys, heap, place, state = queue
    count, done, left = state[0], state[1], state[2]
    M, omega, start, offset, shared, dependent_start, dependent, walls, walled = field
    _, _, seed_label, source, source_metric, source_alone = sources
    height, width = walls.shape
    e = np.zeros((2, 2), np.int64)
    c, U, k = np.ones(2), np.zeros(2), np.zeros(2)
    first, last = np.int64(0), np.int64(len(offset))
    begin, end = np.int64(0), np.int64(len(offset))
    while count > 0 and left != 0 and steps > 0:
        steps -= 1
        y = np.int64(heap[0])
        count = pop(keys, heap, place, count)
        row = y // width
        column = y - row * width
        metric = metric_at(M, omega, y)

        # The value again, and how the geodesic arrives.
        trial = u[y]
        if code[y] < 0:
            label[y] = seed_label[-1 - code[y]]
            f0 = row - source[label[y], 0]
            f1 = column - source[label[y], 1]
        else:
            _ends(shared, start, offset, y, code[y], e)
            ya = y + e[0, 0] * width + e[0, 1]
            step = _norm(metric, -e[0, 0], -e[0, 1])
            ends = 1
            label[y] = label[ya]
            if code[y] & SECTOR:
                ends = 2
                yb = y + e[1, 0] * width + e[1, 1]
                step = max(step, _norm(metric, -e[1, 0], -e[1, 1]))
                if u[yb] < u[ya]:
                    label[y] = label[yb]
            s = label[y]
            v0, v1 = row - source[s, 0], column - source[s, 1]
            model = _mean(metric, source_metric[s])
            second = _second(ends, row, column, walls, walled, u, place, e) if order == 2 else 0
            f0, f1 = v0, v1
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
                    if not source_alone[s]:
                        continue
                    bits |= FACTORED
                _differences(bits, row, column, width, u, e, c, U)
                if ends == 1:
                    if bits & FACTORED and abs(v0 * e[0, 1] - v1 * e[0, 0]) >= _ALIGNED:
                        continue
                    value = _edge(metric, model, bits & FACTORED != 0, v0, v1, e, c, U)
                    f0, f1 = -np.float64(e[0, 0]), -np.float64(e[0, 1])
                    if bits & FACTORED:
                        f0, f1 = v0, v1
                    good = True
                else:
                    k[0] = k[1] = 0.0
                    if bits & FACTORED:
                        _corrections(bits, model, v0, v1, e, c, k)
                    value, ma, mb = _sector(metric, e, c, U, k)
                    f0 = -ma * e[0, 0] - mb * e[1, 0]
                    f1 = -ma * e[0, 1] - mb * e[1, 1]
                    a = np.sqrt(_dot(metric, e[0, 0], e[0, 1], e[0, 0], e[0, 1]))
                    b = np.sqrt(_dot(metric, e[1, 0], e[1, 1], e[1, 0], e[1, 1]))
                    good = ma * a > -_OUTSIDE and mb * b > -_OUTSIDE and c[0] * ma + c[1] * mb > 0
                    if good and bits & FACTORED:
                        along = _dot(metric, f0, f1, v0, v1)
                        good = along > _AGREE * np.sqrt(_dot(metric, v0, v1, v0, v1))
                # A NaN is not good.
                if (good and abs(value - trial) <= _MOVE * step) or attempt == 3:
                    u[y] = value if attempt < 3 else trial
                    code[y] = bits
                    break
        length = _norm(metric, f0, f1)
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

        # The nodes that read it.
        value = u[y]
        if not shared:
            begin, end = dependent_start[y], dependent_start[y + 1]
        for r in range(begin, end):
            j = np.int64(r) if shared else np.int64(dependent[r])
            a0, a1 = np.int64(offset[j, 0]), np.int64(offset[j, 1])
            row_x, column_x = row - a0, column - a1
            if row_x < 0 or row_x >= height or column_x < 0 or column_x >= width:
                continue
            x = row_x * width + column_x
            if place[x] < FAR or u[x] <= value:
                continue
            if not shared:
                first, last = start[x], start[x + 1]
            metric = metric_at(M, omega, x)
            best = u[x]
            how = np.int64(-1)
            wa = value - metric[3] * a0 - metric[4] * a1
            candidate = wa + np.sqrt(_dot(metric, a0, a1, a0, a1))
            if candidate < best:
                best = candidate
                how = (j - first) << _BITS
            for side in range(2):
                if side == 0:
                    other = j + 1 if j + 1 < last else first
                else:
                    other = j - 1 if j > first else last - 1
                b0, b1 = np.int64(offset[other, 0]), np.int64(offset[other, 1])
                row_z, column_z = row_x + b0, column_x + b1
                if 0 <= row_z < height and 0 <= column_z < width:
                    z = row_z * width + column_z
                    if place[z] == ACCEPTED:
                        wb = u[z] - metric[3] * b0 - metric[4] * b1
                        candidate = _triangle(metric, a0, a1, b0, b1, wa, wb)
                        if candidate < best:
                            best = candidate
                            how = (((j if side == 0 else other) - first) << _BITS) | SECTOR
            if how >= 0:
                u[x] = best
                code[x] = how
                count = push(keys, heap, place, count, x, best)
    state[0], state[1], state[2] = count, done, left
    return count > 0 and left != 0


@jit_unfused
def _add_square(gradient, row, weight, v0, v1):
    """Add ``weight v v'`` to the gradient of a matrix."""
    gradient[row, 0] += weight * v0 * v0
    gradient[row, 1] += weight * v0 * v1
    gradient[row, 2] += weight * v0 * v1
    gradient[row, 3] += weight * v1 * v1


@jit_unfused
def _add_norm(weight, model, v0, v1, moves, x, s, g_M, g_omega, s_M, s_omega, s_position):
    """Add the gradient of ``weight u0``, ``u0 = F_m(v)``; ``v`` moves with the source if told."""
    length = np.sqrt(_dot(model, v0, v1, v0, v1))
    if length == 0:
        return
    half = 0.5 * weight  # the model is the mean of two metrics
    _add_square(g_M, x, half / (2 * length), v0, v1)
    _add_square(s_M, s, half / (2 * length), v0, v1)
    g_omega[x, 0] += half * v0
    g_omega[x, 1] += half * v1
    s_omega[s, 0] += half * v0
    s_omega[s, 1] += half * v1
    if moves:
        s_position[s, 0] -= weight * ((model[0] * v0 + model[1] * v1) / length + model[3])
        s_position[s, 1] -= weight * ((model[1] * v0 + model[2] * v1) / length + model[4])


@jit_unfused
def _add_slope(weight, model, v0, v1, e0, e1, x, s, g_M, g_omega, s_M, s_omega, s_position):
    """Add the gradient of ``weight dF_m(v) . e``."""
    length = np.sqrt(_dot(model, v0, v1, v0, v1))
    product = _dot(model, v0, v1, e0, e1)
    half = 0.5 * weight
    for side in range(2):
        gradient, row = (g_M, x) if side == 0 else (s_M, s)
        _add_square(gradient, row, -half * product / (2 * length**3), v0, v1)
        gradient[row, 0] += half * v0 * e0 / length
        gradient[row, 1] += half * (v0 * e1 + v1 * e0) / (2 * length)
        gradient[row, 2] += half * (v0 * e1 + v1 * e0) / (2 * length)
        gradient[row, 3] += half * v1 * e1 / length
    g_omega[x, 0] += half * e0
    g_omega[x, 1] += half * e1
    s_omega[s, 0] += half * e0
    s_omega[s, 1] += half * e1
    for axis in range(2):
        p, q = (model[0], model[1]) if axis == 0 else (model[1], model[2])
        along = p * e0 + q * e1
        across = p * v0 + q * v1
        s_position[s, axis] -= weight * (along / length - product * across / length**3)


@jit_unfused
def _add_difference(weight, model, c, v0, v1, e0, e1, x, s, g_M, g_omega, s_M, s_omega, s_position):
    """Add the gradient of ``weight c (U0 - u0)``, the norm's difference along e."""
    args = (x, s, g_M, g_omega, s_M, s_omega, s_position)
    _add_norm(-weight * c, model, v0, v1, True, *args)
    if c > 1:
        _add_norm(weight * c * 4 / 3, model, v0 + e0, v1 + e1, True, *args)
        _add_norm(-weight * c / 3, model, v0 + 2 * e0, v1 + 2 * e1, True, *args)
    else:
        _add_norm(weight * c, model, v0 + e0, v1 + e1, True, *args)


@entry_unfused
def march_back(field, sources, u, label, code, sequence, g_u, gradients):
    """Walk back over ``sequence``, from the gradient ``g_u`` (overwritten) to the others."""
    M, omega, start, offset, shared = field[:5]
    width = field.walls.shape[1]
    source, source_metric = sources.position, sources.metric
    g_M, g_omega, g_seed, s_M, s_omega, s_position = gradients
    e = np.zeros((2, 2), np.int64)
    c, U, k, m = np.ones(2), np.zeros(2), np.zeros(2), np.zeros(2)
    for at in range(len(sequence) - 1, -1, -1):
        y = np.int64(sequence[at])
        g = g_u[y]
        if g == 0:
            continue
        if code[y] < 0:
            g_seed[-1 - code[y]] += g
            continue
        row = y // width
        column = y - row * width
        metric = metric_at(M, omega, y)
        s = np.int64(label[y])
        v0, v1 = row - source[s, 0], column - source[s, 1]
        model = _mean(metric, source_metric[s])
        bits = np.int64(code[y])
        _ends(shared, start, offset, y, bits, e)
        _differences(bits, row, column, width, u, e, c, U)
        args = (y, s, g_M, g_omega, s_M, s_omega, s_position)
        ends = 2 if bits & SECTOR else 1
        if ends == 2:
            k[0] = k[1] = 0.0
            if bits & FACTORED:
                _corrections(bits, model, v0, v1, e, c, k)
            _, m[0], m[1] = _sector(metric, e, c, U, k)
            scale = g / (c[0] * m[0] + c[1] * m[1])
            ratio = 1.0
        else:
            a0, a1 = e[0, 0], e[0, 1]
            m[0] = 1 / np.sqrt(_dot(metric, a0, a1, a0, a1))
            scale = g / (c[0] * m[0])
            ratio = 1.0
            if bits & FACTORED:
                # c (u - U) = F(-e) R with R = c (u0 - U0) / F_m(-e)
                step, model_step = _norm(metric, -a0, -a1), _norm(model, -a0, -a1)
                there = _norm(model, v0 + a0, v1 + a1)
                if c[0] > 1:
                    there += (there - _norm(model, v0 + 2 * a0, v1 + 2 * a1)) / 3
                ratio = c[0] * (_norm(model, v0, v1) - there) / model_step
                part = g / c[0] * step / model_step
                _add_difference(-part, model, c[0], v0, v1, a0, a1, *args)
                _add_norm(-part * ratio, model, -a0, -a1, False, *args)
        w0, w1 = 0.0, 0.0
        for i in range(ends):
            w0 -= m[i] * e[i, 0]
            w1 -= m[i] * e[i, 1]
            z = y + e[i, 0] * width + e[i, 1]
            share = scale * m[i] * c[i]
            if c[i] > 1:
                g_u[z] += share * 4 / 3
                g_u[z + e[i, 0] * width + e[i, 1]] -= share / 3
            else:
                g_u[z] += share
            if ends == 2 and bits & FACTORED:
                weight = -scale * m[i]
                _add_difference(weight, model, c[i], v0, v1, e[i, 0], e[i, 1], *args)
                _add_slope(-weight, model, v0, v1, e[i, 0], e[i, 1], *args)
        _add_square(g_M, y, 0.5 * scale * ratio, w0, w1)
        g_omega[y, 0] += scale * ratio * w0
        g_omega[y, 1] += scale * ratio * w1
