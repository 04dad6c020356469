"""The compiled flow of many short geodesics through a planar grid of metrics, and its adjoint.

From every start a fan of rays leaves, all integrated by the classical Runge-Kutta method in
displacement and momentum ``(d, p)``; a ray is recorded wherever its schedule says. The field is
read bilinearly from 16 numbers a node: ``M00, M01, M11, omega0, omega1``, then their slopes along
either axis, and one unused. The rays of one number from 16 starts run together, as lanes
(:mod:`finslerconv._lanes`), since their steps are the same.

The flow is that of ``L F*_x(p)``, with ``L`` the ray's length: the same geodesics as those of
``F*_x(p)^2 / 2``, on which ``F* = L``, but of velocities that have the length ``L`` whatever
``p``. So no ray can run away, however rough the field and however long the steps. The momentum that
is integrated is one of dual norm 1.

The adjoint is that of the discrete steps, so gradients are exact to rounding: it keeps what the
stages of a ray's steps read, and goes back over them.
"""

import numpy as np

from finslerconv._compiled import entry, inlined
from finslerconv._lanes import LANES, absolute, load, maximum, spread, sqrt, store, where
from finslerconv.geodesics.fields import locate
from finslerconv.geodesics.flow._simd import blend, blend_backward

# Velocities below this stand still: the smallest of which every digit is held.
_STILL_SINGLE = np.finfo(np.float32).tiny / np.finfo(np.float32).eps
_STILL_DOUBLE = np.finfo(np.float64).tiny / np.finfo(np.float64).eps

# What a look at the field leaves in the memory of a ray: the 15 numbers, then the cell, the place
# in it, and the factors of slopes, with their derivatives in the coordinates.
_CELL, _PLACE, _TURN, _FACTOR, _FACTOR_SLOPE = 15, 17, 19, 21, 23
_LOOK = 25
# A stage of a step leaves a look and a momentum. The look at the start, which all rays share, comes
# before the first.
_STAGE = _LOOK + 2


@inlined
def _look(field, base, height, width, reflect, c0, c1, memory, at):
    """Read the field at the coordinates ``c``; what is found there goes to the memory."""
    i, a, qa, sa, ta = locate(c0, height, reflect)
    j, b, qb, sb, tb = locate(c1, width, reflect)
    values = blend(field, base, height, width, i, j, a, b)
    for k in range(15):
        store(memory, at + k, values[k])
    store(memory, at + _CELL, i)
    store(memory, at + _CELL + 1, j)
    store(memory, at + _PLACE, a)
    store(memory, at + _PLACE + 1, b)
    store(memory, at + _TURN, qa)
    store(memory, at + _TURN + 1, qb)
    store(memory, at + _FACTOR, sa)
    store(memory, at + _FACTOR + 1, sb)
    store(memory, at + _FACTOR_SLOPE, ta)
    store(memory, at + _FACTOR_SLOPE + 1, tb)


@inlined
def _five(memory, at):
    """Return five numbers of the field, or their slopes along an axis."""
    return (
        load(memory, at),
        load(memory, at + 1),
        load(memory, at + 2),
        load(memory, at + 3),
        load(memory, at + 4),
    )


@inlined
def _dual(m00, m01, m11, w0, w1, p0, p1):
    """Return the pieces of the dual norm: ``M^-1``, ``a``, ``lambda``, ``y``, ``root``, ``F``."""
    scale = 1.0 / (m00 * m11 - m01 * m01)
    i00, i01, i11 = m11 * scale, -m01 * scale, m00 * scale
    a0, a1 = i00 * w0 + i01 * w1, i01 * w0 + i11 * w1
    y0, y1 = i00 * p0 + i01 * p1, i01 * p0 + i11 * p1
    lam = 1.0 - (w0 * a0 + w1 * a1)
    q = p0 * y0 + p1 * y1
    s = a0 * p0 + a1 * p1
    root = sqrt(lam * q + s * s)
    # Written so that nothing cancels.
    F = where(s > 0.0, q, root - s) / where(s > 0.0, root + s, lam)
    return i00, i01, i11, a0, a1, y0, y1, lam, root, F


@inlined
def _rates(memory, at, L, p0, p1):
    """Return ``(dx/dt, dp/dt) = (L F*_p, -L F*_x)`` where a look was taken.

    With ``z = M^-1 (p - F omega)`` the velocity is ``(L / root) z``, and ``-F*_x`` is the
    derivative of ``F_x(v)`` at that velocity, times ``F* / L``.
    """
    m00, m01, m11, w0, w1 = _five(memory, at)
    _, _, _, a0, a1, y0, y1, _, root, F = _dual(m00, m01, m11, w0, w1, p0, p1)
    z0, z1 = y0 - F * a0, y1 - F * a1
    c = L / root
    force0 = _force(memory, at + 5, z0, z1, F)
    force1 = _force(memory, at + 10, z0, z1, F)
    return (
        c * z0,
        c * z1,
        load(memory, at + _FACTOR) * c * force0,
        load(memory, at + _FACTOR + 1) * c * force1,
    )


@inlined
def _force(memory, at, z0, z1, F):
    """Return ``z' dM z / 2 + F domega z`` of the slopes along an axis."""
    m00, m01, m11, w0, w1 = _five(memory, at)
    half = 0.5 * (m00 * z0 * z0 + m11 * z1 * z1) + m01 * z0 * z1
    return half + F * (w0 * z0 + w1 * z1)


@inlined
def _first_momentum(memory, v0, v1):
    """Return ``F(v)`` at the start, v not 0, and the momentum ``dF(v)``."""
    m00, m01, m11, w0, w1 = _five(memory, 0)
    u0, u1 = m00 * v0 + m01 * v1, m01 * v0 + m11 * v1
    alpha = sqrt(v0 * u0 + v1 * u1)
    return alpha + w0 * v0 + w1 * v1, u0 / alpha + w0, u1 / alpha + w1


@inlined
def _step(
    field, base, height, width, reflect, L, s0, s1, r0, r1, d0, d1, p0, p1, h, memory, at, begins
):
    """Return the state after one step of the classical Runge-Kutta method.

    What its four stages read goes to the memory, stage by stage from ``at`` on; the first stage of
    a ray that ``begins`` has its look already.
    """
    e0, e1, f0, f1 = spread(0.0, d0), spread(0.0, d0), spread(0.0, d0), spread(0.0, d0)
    t0, t1, g0, g1 = d0, d1, p0, p1
    k = 0.0
    for stage in range(4):
        q0, q1 = p0 + k * f0, p1 + k * f1
        look = at + _STAGE * stage
        store(memory, look + _LOOK, q0)
        store(memory, look + _LOOK + 1, q1)
        if begins and stage == 0:
            look = 0
        else:
            x0, x1 = d0 + k * e0, d1 + k * e1
            _look(field, base, height, width, reflect, s0 + r0 * x0, s1 + r1 * x1, memory, look)
        e0, e1, f0, f1 = _rates(memory, look, L, q0, q1)
        weight = h / 6.0 if stage == 0 or stage == 3 else h / 3.0
        t0 = t0 + weight * e0
        t1 = t1 + weight * e1
        g0 = g0 + weight * f0
        g1 = g1 + weight * f1
        k = h if stage == 2 else 0.5 * h
    return t0, t1, g0, g1


@inlined
def _start(starts, n, count, axis, row):
    """Return a coordinate of ``count`` starts from ``n`` on; the last stands for those missing."""
    for k in range(LANES):
        row[0, k] = starts[n + min(k, count - 1), axis]
    return load(row, 0)


@inlined
def _read(array, n, count, ray, axis, row):
    """Return a number of a ray from each of ``count`` starts, as :func:`_start`."""
    for k in range(LANES):
        row[0, k] = array[n + min(k, count - 1), ray, axis]
    return load(row, 0)


@inlined
def _write(array, n, count, ray, axis, row, x):
    """Write a number of a ray from each of ``count`` starts."""
    store(row, 0, x)
    for k in range(count):
        array[n + k, ray, axis] = row[0, k]


@inlined
def _setting_out(memory, v0, v1, radial, still_below):
    """Return what rays set out with: whether they stand still, directions, lengths and momenta.

    The directions are ``v`` over the sizes, which are returned too, so that no square underflows.
    """
    size = maximum(absolute(v0), absolute(v1))
    still = size < still_below
    size = where(still, 1.0, size)
    v0, v1 = where(still, 1.0, v0 / size), where(still, 1.0, v1 / size)
    F, p0, p1 = _first_momentum(memory, v0, v1)
    if radial:
        F = sqrt(v0 * v0 + v1 * v1)
    return still, size, v0, v1, where(still, 0.0, size * F), p0, p1


@entry
def forward(
    field, shape, rate, reflect, radial, starts, velocities, rays, segments, steps, spans, places,
    begin, end, out,
):  # fmt: skip
    """Record the displacements (and momenta) of the rays of the starts ``begin`` to ``end``.

    ``field`` (flat), ``shape = (fields, height, width, starts of a field)``, ``rate`` 1 / spacing,
    ``starts (N, 2)`` in nodes, ``velocities (N, rays, 2)``, if ``radial`` those of which the radial
    map makes velocities. Ray ``r`` runs through the segments ``segments[r]`` to ``segments[r +
    1]``, each of ``steps`` steps, ``spans`` long in time, after which it is recorded at ``places``
    of ``out (N, points, 2 or 4)``.
    """
    _, height, width, share = shape
    r0, r1 = rate
    wide = out.shape[2]
    still_below = _STILL_SINGLE if field.itemsize == 4 else _STILL_DOUBLE
    # What stands still goes straight on, to first order; a point that is 0 stays.
    pace = 0.0 if radial else 1.0
    memory = np.empty((_LOOK + 4 * _STAGE, LANES), field.dtype)
    row = np.empty((1, LANES), field.dtype)
    n = begin
    while n < end:
        # Of one field.
        count = min(LANES, end - n, share - n % share)
        base = n // share * height * width
        s0, s1 = _start(starts, n, count, 0, row), _start(starts, n, count, 1, row)
        _look(field, base, height, width, reflect, s0, s1, memory, 0)
        for ray in range(rays):
            v0 = _read(velocities, n, count, ray, 0, row)
            v1 = _read(velocities, n, count, ray, 1, row)
            still, _, _, _, L, p0, p1 = _setting_out(memory, v0, v1, radial, still_below)
            d0, d1 = spread(0.0, v0), spread(0.0, v0)
            time = 0.0
            begins = True
            for segment in range(segments[ray], segments[ray + 1]):
                h = spans[segment] / steps[segment]
                time += pace * spans[segment]
                for _ in range(steps[segment]):
                    d0, d1, p0, p1 = _step(
                        field, base, height, width, reflect, L, s0, s1, r0, r1, d0, d1, p0, p1, h,
                        memory, _LOOK, begins,
                    )  # fmt: skip
                    begins = False
                place = places[segment]
                _write(out, n, count, place, 0, row, where(still, time * v0, d0))
                _write(out, n, count, place, 1, row, where(still, time * v1, d1))
                if wide == 4:
                    _write(out, n, count, place, 2, row, L * p0)
                    _write(out, n, count, place, 3, row, L * p1)
        n += count


@inlined
def _rates_backward(memory, at, L, p0, p1, gv0, gv1, gq0, gq1):
    """Return the gradients of what :func:`_rates` takes from those of what it gives.

    Those of the coordinates as far as the factors of slopes depend on them, of the momentum, of
    ``L``, and of the field's numbers.
    """
    m00, m01, m11, w0, w1 = _five(memory, at)
    m00_0, m01_0, m11_0, w0_0, w1_0 = _five(memory, at + 5)
    m00_1, m01_1, m11_1, w0_1, w1_1 = _five(memory, at + 10)
    i00, i01, i11, a0, a1, y0, y1, lam, root, F = _dual(m00, m01, m11, w0, w1, p0, p1)
    z0, z1 = y0 - F * a0, y1 - F * a1
    over = 1.0 / root
    c = L * over
    force0 = _force(memory, at + 5, z0, z1, F)
    force1 = _force(memory, at + 10, z0, z1, F)

    # Slopes come with the sign of the continuation outside.
    gc0 = load(memory, at + _FACTOR_SLOPE) * c * gq0 * force0
    gc1 = load(memory, at + _FACTOR_SLOPE + 1) * c * gq1 * force1
    gq0, gq1 = load(memory, at + _FACTOR) * gq0, load(memory, at + _FACTOR + 1) * gq1

    # The last lines of the formula, v = c z and force = c (z' dM z / 2 + F domega z).
    g_c = gv0 * z0 + gv1 * z1 + gq0 * force0 + gq1 * force1
    k0, k1 = c * gq0, c * gq1
    u0 = k0 * w0_0 + k1 * w0_1
    u1 = k0 * w1_0 + k1 * w1_1
    t00 = k0 * m00_0 + k1 * m00_1
    t01 = k0 * m01_0 + k1 * m01_1
    t11 = k0 * m11_0 + k1 * m11_1
    gz0 = c * gv0 + t00 * z0 + t01 * z1 + F * u0
    gz1 = c * gv1 + t01 * z0 + t11 * z1 + F * u1
    g_F = u0 * z0 + u1 * z1
    g_L = g_c * over
    g_root = -g_L * c
    # z = y - F a.
    g_F = g_F - (gz0 * a0 + gz1 * a1)
    ga0, ga1 = -F * gz0, -F * gz1
    # root = lambda F + s, and F is the root of lambda F^2 + 2 s F - q.
    g_F = g_F + lam * g_root
    g_q = 0.5 * g_F * over
    g_s = g_root - 2.0 * F * g_q
    g_lam = F * g_root - F * F * g_q
    gy0, gy1 = gz0 + g_q * p0, gz1 + g_q * p1
    ga0 = ga0 + g_s * p0 - g_lam * w0
    ga1 = ga1 + g_s * p1 - g_lam * w1
    # y = M^-1 p and a = M^-1 omega.
    e0, e1 = i00 * gy0 + i01 * gy1, i01 * gy0 + i11 * gy1
    f0, f1 = i00 * ga0 + i01 * ga1, i01 * ga0 + i11 * ga1
    gp0 = g_q * y0 + g_s * a0 + e0
    gp1 = g_q * y1 + g_s * a1 + e1
    gm00 = -(e0 * y0 + f0 * a0)
    gm01 = -(e0 * y1 + e1 * y0 + f0 * a1 + f1 * a0)
    gm11 = -(e1 * y1 + f1 * a1)
    gw0, gw1 = f0 - g_lam * a0, f1 - g_lam * a1

    h00, h01, h11, hw0, hw1 = 0.5 * z0 * z0, z0 * z1, 0.5 * z1 * z1, F * z0, F * z1
    gradients = (
        gm00, gm01, gm11, gw0, gw1,
        k0 * h00, k0 * h01, k0 * h11, k0 * hw0, k0 * hw1,
        k1 * h00, k1 * h01, k1 * h11, k1 * hw0, k1 * hw1,
        spread(0.0, L),
    )  # fmt: skip
    return gc0, gc1, gp0, gp1, g_L, gradients


@inlined
def _look_backward(field, slope, base, height, width, live, memory, at, gradients):
    """Return the gradients of a look's coordinates from those of the field's numbers.

    Those of the field are added to ``slope``.
    """
    da, db = blend_backward(
        field, slope, base, height, width, load(memory, at + _CELL), load(memory, at + _CELL + 1),
        load(memory, at + _PLACE), load(memory, at + _PLACE + 1), live, gradients,
    )  # fmt: skip
    return load(memory, at + _TURN) * da, load(memory, at + _TURN + 1) * db


@inlined
def _step_backward(
    field, slope, base, height, width, live, L, r0, r1, h, memory, at, begins, shared,
    gd0, gd1, gp0, gp1, g_L,
):  # fmt: skip
    """Return the gradient in the state before a step from that in the state after it.

    That of ``L`` is added to ``g_L``, and those of the numbers that the look at the start found to
    ``shared``.
    """
    t0, t1, t2, t3 = gd0, gd1, gp0, gp1
    x0, x1, x2, x3 = spread(0.0, L), spread(0.0, L), spread(0.0, L), spread(0.0, L)
    for back in range(4):
        stage = 3 - back
        weight = h / 6.0 if stage == 0 or stage == 3 else h / 3.0
        # How far this stage's rates carried the next stage.
        carry = 0.0 if stage == 3 else (h if stage == 2 else 0.5 * h)
        own = at + _STAGE * stage
        first = begins and stage == 0
        look = 0 if first else own
        x0, x1, x2, x3, more, gradients = _rates_backward(
            memory, look, L, load(memory, own + _LOOK), load(memory, own + _LOOK + 1),
            weight * gd0 + carry * x0, weight * gd1 + carry * x1,
            weight * gp0 + carry * x2, weight * gp1 + carry * x3,
        )  # fmt: skip
        if first:
            _add(shared, live, gradients)
        else:
            y0, y1 = _look_backward(
                field, slope, base, height, width, live, memory, look, gradients
            )
            x0, x1 = x0 + y0, x1 + y1
        x0, x1 = r0 * x0, r1 * x1
        g_L = g_L + more
        t0 = t0 + x0
        t1 = t1 + x1
        t2 = t2 + x2
        t3 = t3 + x3
    return t0, t1, t2, t3, g_L


@inlined
def _add(shared, live, gradients):
    """Add gradients of the live rays to those of the numbers that all rays share."""
    for k in range(15):
        store(shared, k, load(shared, k) + where(live, gradients[k], 0.0))


@inlined
def _first_momentum_backward(memory, v0, v1, g_F, gp0, gp1):
    """Return the gradients in the velocity and the field's numbers of :func:`_first_momentum`."""
    m00, m01, m11, w0, w1 = _five(memory, 0)
    u0, u1 = m00 * v0 + m01 * v1, m01 * v0 + m11 * v1
    over = 1.0 / sqrt(v0 * u0 + v1 * u1)
    # F = alpha + omega v and p = u / alpha + omega with u = M v, alpha^2 = v u.
    k = 0.5 * over * (g_F - (gp0 * u0 + gp1 * u1) * over * over)
    gu0, gu1 = over * gp0 + k * v0, over * gp1 + k * v1
    gv0 = g_F * w0 + k * u0 + m00 * gu0 + m01 * gu1
    gv1 = g_F * w1 + k * u1 + m01 * gu0 + m11 * gu1
    zero = spread(0.0, v0)
    gradients = (
        gu0 * v0, gu0 * v1 + gu1 * v0, gu1 * v1, gp0 + g_F * v0, gp1 + g_F * v1,
        zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero,
    )  # fmt: skip
    return gv0, gv1, gradients


@entry
def backward(
    field, shape, rate, reflect, radial, starts, velocities, rays, segments, steps, spans, places,
    begin, end, gradient, slope, g_starts, g_velocities,
):  # fmt: skip
    """Go back over :func:`forward`, from the gradient of its output.

    Those of the starts (per unit of length) and of the velocities are written, that of the field
    is added to ``slope``.
    """
    _, height, width, share = shape
    r0, r1 = rate
    wide = gradient.shape[2]
    longest = 0
    for ray in range(rays):
        total = 0
        for segment in range(segments[ray], segments[ray + 1]):
            total += steps[segment]
        longest = max(longest, total)
    still_below = _STILL_SINGLE if field.itemsize == 4 else _STILL_DOUBLE
    # What stands still goes straight on, to first order; a point that is 0 stays.
    pace = 0.0 if radial else 1.0
    memory = np.empty((_LOOK + 4 * _STAGE * longest, LANES), field.dtype)
    shared = np.empty((15, LANES), field.dtype)
    row = np.empty((1, LANES), field.dtype)
    n = begin
    while n < end:
        count = min(LANES, end - n, share - n % share)
        base = n // share * height * width
        s0, s1 = _start(starts, n, count, 0, row), _start(starts, n, count, 1, row)
        _look(field, base, height, width, reflect, s0, s1, memory, 0)
        zero = spread(0.0, s0)
        for k in range(15):
            store(shared, k, zero)
        for k in range(LANES):
            row[0, k] = k
        there = load(row, 0) < count
        sum0, sum1 = zero, zero
        for ray in range(rays):
            v0 = _read(velocities, n, count, ray, 0, row)
            v1 = _read(velocities, n, count, ray, 1, row)
            still, size, v0, v1, L, p0, p1 = _setting_out(memory, v0, v1, radial, still_below)
            first, last = segments[ray], segments[ray + 1]
            d0, d1 = zero, zero
            time = 0.0
            at = _LOOK
            for segment in range(first, last):
                h = spans[segment] / steps[segment]
                time += pace * spans[segment]
                for _ in range(steps[segment]):
                    d0, d1, p0, p1 = _step(
                        field, base, height, width, reflect, L, s0, s1, r0, r1, d0, d1, p0, p1, h,
                        memory, at, at == _LOOK,
                    )  # fmt: skip
                    at += 4 * _STAGE
            live = there & ~still
            gd0, gd1, gp0, gp1, g_L = zero, zero, zero, zero, zero
            # exp(t v) = x + t v to first order, of what stands still.
            straight0, straight1 = zero, zero
            for back in range(last - first):
                segment = last - 1 - back
                place = places[segment]
                o0 = _read(gradient, n, count, place, 0, row)
                o1 = _read(gradient, n, count, place, 1, row)
                straight0, straight1 = straight0 + time * o0, straight1 + time * o1
                time -= pace * spans[segment]
                o0, o1 = where(still, 0.0, o0), where(still, 0.0, o1)
                gd0, gd1 = gd0 + o0, gd1 + o1
                # A displacement does not move with its start; what the field does is added below.
                sum0, sum1 = sum0 - o0, sum1 - o1
                if wide == 4:
                    o0 = where(still, 0.0, _read(gradient, n, count, place, 2, row))
                    o1 = where(still, 0.0, _read(gradient, n, count, place, 3, row))
                    gp0, gp1 = gp0 + L * o0, gp1 + L * o1
                    g_L = g_L + p0 * o0 + p1 * o1
                h = spans[segment] / steps[segment]
                for _ in range(steps[segment]):
                    at -= 4 * _STAGE
                    gd0, gd1, gp0, gp1, g_L = _step_backward(
                        field, slope, base, height, width, live, L, r0, r1, h, memory, at,
                        at == _LOOK, shared, gd0, gd1, gp0, gp1, g_L,
                    )  # fmt: skip
                p0, p1 = load(memory, at + _LOOK), load(memory, at + _LOOK + 1)
            g_L = size * g_L
            gv0, gv1, gradients = _first_momentum_backward(
                memory, v0, v1, zero if radial else g_L, gp0, gp1
            )
            if radial:
                g_L = g_L / sqrt(v0 * v0 + v1 * v1)
                gv0, gv1 = gv0 + g_L * v0, gv1 + g_L * v1
            _add(shared, live, gradients)
            sum0, sum1 = sum0 + where(still, 0.0, gd0), sum1 + where(still, 0.0, gd1)
            _write(g_velocities, n, count, ray, 0, row, where(still, straight0, gv0 / size))
            _write(g_velocities, n, count, ray, 1, row, where(still, straight1, gv1 / size))
        gradients = (
            load(shared, 0), load(shared, 1), load(shared, 2), load(shared, 3), load(shared, 4),
            load(shared, 5), load(shared, 6), load(shared, 7), load(shared, 8), load(shared, 9),
            load(shared, 10), load(shared, 11), load(shared, 12), load(shared, 13),
            load(shared, 14), zero,
        )  # fmt: skip
        x0, x1 = _look_backward(field, slope, base, height, width, there, memory, 0, gradients)
        sum0, sum1 = sum0 + r0 * x0, sum1 + r1 * x1
        store(row, 0, sum0)
        for k in range(count):
            g_starts[n + k, 0] = row[0, k]
        store(row, 0, sum1)
        for k in range(count):
            g_starts[n + k, 1] = row[0, k]
        n += count
