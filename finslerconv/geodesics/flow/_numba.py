"""The compiled flow of many short geodesics through a planar grid of metrics, and its adjoint.

From every start a fan of rays leaves, all integrated by the classical Runge-Kutta method in
displacement and momentum ``(d, p)``; a ray is recorded wherever its schedule says. The field is
read bilinearly from 16 numbers a node: ``M00, M01, M11, omega0, omega1``, then their slopes along
either axis, and one unused. Arithmetic is in double precision whatever the arrays hold, since
scalar code gains nothing from less.

The flow is that of ``L F*_x(p)``, with ``L`` the ray's length: the same geodesics as those of
``F*_x(p)^2 / 2``, on which ``F* = L``, but of velocities that have the length ``L`` whatever
``p``. So no ray can run away, however rough the field and however long the steps.

The adjoint is that of the discrete steps, so gradients are exact to rounding: it keeps where the
stages of a ray's steps looked, and goes back over them.
"""

import numpy as np

from finslerconv._compiled import entry, jit
from finslerconv.geodesics.fields import locate
from finslerconv.geodesics.flow._simd import WIDE, blend, blend_backward

# Velocities below this stand still: the smallest of which every digit is held.
_STILL = np.finfo(np.float64).tiny / np.finfo(np.float64).eps


@jit
def _corners(base, i, j, height, width):
    """Return the places of a cell's four nodes in the flat field."""
    below = min(i + 1, height - 1)
    right = min(j + 1, width - 1)
    return (
        base + WIDE * (i * width + j),
        base + WIDE * (i * width + right),
        base + WIDE * (below * width + j),
        base + WIDE * (below * width + right),
    )


@jit
def _dual(m00, m01, m11, w0, w1, p0, p1):
    """Return the pieces of the dual norm: ``M^-1``, ``a``, ``lambda``, ``y``, ``root``, ``F``."""
    scale = 1.0 / (m00 * m11 - m01 * m01)
    i00, i01, i11 = m11 * scale, -m01 * scale, m00 * scale
    a0, a1 = i00 * w0 + i01 * w1, i01 * w0 + i11 * w1
    y0, y1 = i00 * p0 + i01 * p1, i01 * p0 + i11 * p1
    lam = 1.0 - (w0 * a0 + w1 * a1)
    q = p0 * y0 + p1 * y1
    s = a0 * p0 + a1 * p1
    root = np.sqrt(lam * q + s * s)
    # Written so that nothing cancels, and without a branch.
    above = q if s > 0.0 else root - s
    below = root + s if s > 0.0 else lam
    F = above / below
    return i00, i01, i11, a0, a1, y0, y1, lam, root, F


@jit
def _rates(field, base, height, width, reflect, L, c0, c1, p0, p1):
    """Return ``(dx/dt, dp/dt) = (L F*_p, -L F*_x)`` at the coordinates ``c``.

    With ``z = M^-1 (p - F omega)`` the velocity is ``(L / root) z``, and ``-F*_x`` is the
    derivative of ``F_x(v)`` at that velocity, times ``F* / L``.
    """
    i, a, _, sa, _ = locate(c0, height, reflect)
    j, b, _, sb, _ = locate(c1, width, reflect)
    n00, n01, n10, n11 = _corners(base, i, j, height, width)
    values = blend(field, n00, n01, n10, n11, a, b)
    m00, m01, m11, w0, w1 = values[:5]
    m00_0, m01_0, m11_0, w0_0, w1_0 = values[5:10]
    m00_1, m01_1, m11_1, w0_1, w1_1 = values[10:15]
    _, _, _, a0, a1, y0, y1, _, root, F = _dual(m00, m01, m11, w0, w1, p0, p1)
    z0, z1 = y0 - F * a0, y1 - F * a1
    c = L / root
    h0 = 0.5 * (m00_0 * z0 * z0 + 2.0 * m01_0 * z0 * z1 + m11_0 * z1 * z1)
    h1 = 0.5 * (m00_1 * z0 * z0 + 2.0 * m01_1 * z0 * z1 + m11_1 * z1 * z1)
    return (
        c * z0,
        c * z1,
        sa * c * (h0 + F * (w0_0 * z0 + w1_0 * z1)),
        sb * c * (h1 + F * (w0_1 * z0 + w1_1 * z1)),
    )


@jit
def _momentum(field, base, height, width, reflect, c0, c1, v0, v1):
    """Return ``F(v)`` and ``p = F dF(v)``, v not 0."""
    i, a, _, _, _ = locate(c0, height, reflect)
    j, b, _, _, _ = locate(c1, width, reflect)
    n00, n01, n10, n11 = _corners(base, i, j, height, width)
    m00, m01, m11, w0, w1 = blend(field, n00, n01, n10, n11, a, b)[:5]
    u0, u1 = m00 * v0 + m01 * v1, m01 * v0 + m11 * v1
    alpha = np.sqrt(v0 * u0 + v1 * u1)
    F = alpha + w0 * v0 + w1 * v1
    return F, F * (u0 / alpha + w0), F * (u1 / alpha + w1)


@jit
def _step(field, base, height, width, reflect, L, s0, s1, r0, r1, d0, d1, p0, p1, h, stages):
    """Return the state after one step of the classical Runge-Kutta method.

    Where its four stages looked is written to ``stages (4, 4)``.
    """
    e0, e1, f0, f1 = 0.0, 0.0, 0.0, 0.0
    t0, t1, g0, g1 = 0.0, 0.0, 0.0, 0.0
    k = 0.0
    for stage in range(4):
        x0, x1, q0, q1 = d0 + k * e0, d1 + k * e1, p0 + k * f0, p1 + k * f1
        stages[stage, 0], stages[stage, 1], stages[stage, 2], stages[stage, 3] = x0, x1, q0, q1
        e0, e1, f0, f1 = _rates(
            field, base, height, width, reflect, L, s0 + r0 * x0, s1 + r1 * x1, q0, q1
        )
        weight = h / 6.0 if stage == 0 or stage == 3 else h / 3.0
        t0 += weight * e0
        t1 += weight * e1
        g0 += weight * f0
        g1 += weight * f1
        k = h if stage == 2 else 0.5 * h
    return d0 + t0, d1 + t1, p0 + g0, p1 + g1


@entry
def forward(
    field, shape, rate, reflect, starts, velocities, rays, segments, steps, spans, places, begin,
    end, out,
):  # fmt: skip
    """Record the displacements (and momenta) of the rays of the starts ``begin`` to ``end``.

    ``field`` (flat), ``shape = (fields, height, width, starts of a field)``, ``rate`` 1 / spacing,
    ``starts (N, 2)`` in nodes, ``velocities (N, rays, 2)``. Ray ``r`` runs through the segments
    ``segments[r]`` to ``segments[r + 1]``, each of ``steps`` steps, ``spans`` long in time, after
    which it is recorded at ``places`` of ``out (N, points, 2 or 4)``.
    """
    _, height, width, share = shape
    r0, r1 = rate
    wide = out.shape[2]
    stages = np.empty((4, 4))
    for n in range(begin, end):
        base = (n // share) * height * width * WIDE
        s0, s1 = starts[n, 0], starts[n, 1]
        for ray in range(rays):
            v0, v1 = np.float64(velocities[n, ray, 0]), np.float64(velocities[n, ray, 1])
            # Velocity and momentum are in units of the size, so that no square underflows.
            size = max(abs(v0), abs(v1))
            still = size < _STILL
            L, d0, d1, p0, p1 = 0.0, 0.0, 0.0, 0.0, 0.0
            if not still:
                L, p0, p1 = _momentum(
                    field, base, height, width, reflect, s0, s1, v0 / size, v1 / size
                )
                L *= size
            for segment in range(segments[ray], segments[ray + 1]):
                if still:
                    d0 += spans[segment] * v0
                    d1 += spans[segment] * v1
                else:
                    h = spans[segment] / steps[segment]
                    for _ in range(steps[segment]):
                        d0, d1, p0, p1 = _step(
                            field, base, height, width, reflect, L, s0, s1, r0, r1, d0, d1, p0, p1,
                            h, stages,
                        )  # fmt: skip
                place = places[segment]
                out[n, place, 0] = d0
                out[n, place, 1] = d1
                if wide == 4:
                    out[n, place, 2] = size * p0
                    out[n, place, 3] = size * p1


@jit
def _rates_backward(
    field, slope, base, height, width, reflect, L, c0, c1, r0, r1, p0, p1, gv0, gv1, gq0, gq1
):
    """Return the gradients in position, momentum and ``L`` from those of what :func:`_rates` gives.

    Those of the field are added to ``slope``.
    """
    i, a, qa, sa, ta = locate(c0, height, reflect)
    j, b, qb, sb, tb = locate(c1, width, reflect)
    n00, n01, n10, n11 = _corners(base, i, j, height, width)
    values = blend(field, n00, n01, n10, n11, a, b)
    m00, m01, m11, w0, w1 = values[:5]
    m00_0, m01_0, m11_0, w0_0, w1_0 = values[5:10]
    m00_1, m01_1, m11_1, w0_1, w1_1 = values[10:15]
    i00, i01, i11, a0, a1, y0, y1, lam, root, F = _dual(m00, m01, m11, w0, w1, p0, p1)
    z0, z1 = y0 - F * a0, y1 - F * a1
    c = L / root
    h0 = 0.5 * (m00_0 * z0 * z0 + 2.0 * m01_0 * z0 * z1 + m11_0 * z1 * z1)
    h1 = 0.5 * (m00_1 * z0 * z0 + 2.0 * m01_1 * z0 * z1 + m11_1 * z1 * z1)
    force0 = h0 + F * (w0_0 * z0 + w1_0 * z1)
    force1 = h1 + F * (w0_1 * z0 + w1_1 * z1)

    # Slopes come with the sign of the continuation outside.
    ga, gb = ta * c * gq0 * force0, tb * c * gq1 * force1
    gq0, gq1 = sa * gq0, sb * gq1

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
    g_L = g_c / root
    g_root = -g_c * c / root
    # z = y - F a.
    g_F -= gz0 * a0 + gz1 * a1
    ga0, ga1 = -F * gz0, -F * gz1
    # root = lambda F + s, and F is the root of lambda F^2 + 2 s F - q.
    g_F += lam * g_root
    g_q = g_F / (2.0 * root)
    g_s = g_root - F * g_F / root
    g_lam = F * g_root - F * F * g_q
    gy0, gy1 = gz0 + g_q * p0, gz1 + g_q * p1
    ga0 += g_s * p0 - g_lam * w0
    ga1 += g_s * p1 - g_lam * w1
    # y = M^-1 p and a = M^-1 omega.
    e0, e1 = i00 * gy0 + i01 * gy1, i01 * gy0 + i11 * gy1
    f0, f1 = i00 * ga0 + i01 * ga1, i01 * ga0 + i11 * ga1
    gp0 = g_q * y0 + g_s * a0 + e0
    gp1 = g_q * y1 + g_s * a1 + e1
    gm00 = -(e0 * y0 + f0 * a0)
    gm01 = -(e0 * y1 + e1 * y0 + f0 * a1 + f1 * a0)
    gm11 = -(e1 * y1 + f1 * a1)
    gw0, gw1 = f0 - g_lam * a0, f1 - g_lam * a1

    h00, h01, h11 = 0.5 * z0 * z0, z0 * z1, 0.5 * z1 * z1
    gradients = (
        gm00, gm01, gm11, gw0, gw1,
        k0 * h00, k0 * h01, k0 * h11, k0 * F * z0, k0 * F * z1,
        k1 * h00, k1 * h01, k1 * h11, k1 * F * z0, k1 * F * z1, 0.0,
    )  # fmt: skip
    da, db = blend_backward(field, slope, n00, n01, n10, n11, a, b, gradients)
    ga += qa * da
    gb += qb * db
    return r0 * ga, r1 * gb, gp0, gp1, g_L


@jit
def _momentum_backward(
    field, slope, base, height, width, reflect, c0, c1, r0, r1, v0, v1, g_F, gp0, gp1
):
    """Return the gradients in position and velocity from those of :func:`_momentum`."""
    i, a, qa, _, _ = locate(c0, height, reflect)
    j, b, qb, _, _ = locate(c1, width, reflect)
    n00, n01, n10, n11 = _corners(base, i, j, height, width)
    m00, m01, m11, w0, w1 = blend(field, n00, n01, n10, n11, a, b)[:5]
    u0, u1 = m00 * v0 + m01 * v1, m01 * v0 + m11 * v1
    alpha = np.sqrt(v0 * u0 + v1 * u1)
    F = alpha + w0 * v0 + w1 * v1
    # p = F l with l = M v / alpha + omega, F = alpha + omega v, alpha^2 = v M v.
    g_F += gp0 * (u0 / alpha + w0) + gp1 * (u1 / alpha + w1)
    l0, l1 = F * gp0, F * gp1
    gw0, gw1 = l0 + g_F * v0, l1 + g_F * v1
    g_alpha = g_F - (l0 * u0 + l1 * u1) / (alpha * alpha)
    k = 0.5 * g_alpha / alpha
    gu0, gu1 = l0 / alpha + k * v0, l1 / alpha + k * v1
    gv0 = g_F * w0 + k * u0 + m00 * gu0 + m01 * gu1
    gv1 = g_F * w1 + k * u1 + m01 * gu0 + m11 * gu1
    gm00, gm01, gm11 = gu0 * v0, gu0 * v1 + gu1 * v0, gu1 * v1
    gradients = (
        gm00, gm01, gm11, gw0, gw1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
    )  # fmt: skip
    ga, gb = blend_backward(field, slope, n00, n01, n10, n11, a, b, gradients)
    return qa * r0 * ga, qb * r1 * gb, gv0, gv1


@jit
def _step_backward(
    field,
    slope,
    base,
    height,
    width,
    reflect,
    L,
    s0,
    s1,
    r0,
    r1,
    h,
    stages,
    gd0,
    gd1,
    gp0,
    gp1,
    g_L,
):
    """Return the gradient in the state before a step from that in the state after it.

    That of ``L`` is added to ``g_L``.
    """
    t0, t1, t2, t3 = gd0, gd1, gp0, gp1
    x0, x1, x2, x3 = 0.0, 0.0, 0.0, 0.0
    for back in range(4):
        stage = 3 - back
        weight = h / 6.0 if stage == 0 or stage == 3 else h / 3.0
        # How far this stage's rates carried the next stage.
        carry = 0.0 if stage == 3 else (h if stage == 2 else 0.5 * h)
        x0, x1, x2, x3, more = _rates_backward(
            field, slope, base, height, width, reflect, L, s0 + r0 * stages[stage, 0],
            s1 + r1 * stages[stage, 1], r0, r1, stages[stage, 2], stages[stage, 3],
            weight * gd0 + carry * x0, weight * gd1 + carry * x1,
            weight * gp0 + carry * x2, weight * gp1 + carry * x3,
        )  # fmt: skip
        g_L += more
        t0 += x0
        t1 += x1
        t2 += x2
        t3 += x3
    return t0, t1, t2, t3, g_L


@entry
def backward(
    field, shape, rate, reflect, starts, velocities, rays, segments, steps, spans, places, begin,
    end, gradient, slope, g_starts, g_velocities,
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
    trail = np.empty((longest, 4, 4))
    for n in range(begin, end):
        base = (n // share) * height * width * WIDE
        s0, s1 = starts[n, 0], starts[n, 1]
        sum0, sum1 = 0.0, 0.0
        for ray in range(rays):
            v0, v1 = np.float64(velocities[n, ray, 0]), np.float64(velocities[n, ray, 1])
            first, last = segments[ray], segments[ray + 1]
            size = max(abs(v0), abs(v1))
            if size < _STILL:
                # exp(t v) = x + t v to first order.
                time, gv0, gv1 = 0.0, 0.0, 0.0
                for segment in range(first, last):
                    time += spans[segment]
                    gv0 += time * gradient[n, places[segment], 0]
                    gv1 += time * gradient[n, places[segment], 1]
                g_velocities[n, ray, 0] = gv0
                g_velocities[n, ray, 1] = gv1
                continue
            d0, d1 = 0.0, 0.0
            v0, v1 = v0 / size, v1 / size
            L, p0, p1 = _momentum(field, base, height, width, reflect, s0, s1, v0, v1)
            L *= size
            count = 0
            for segment in range(first, last):
                h = spans[segment] / steps[segment]
                for _ in range(steps[segment]):
                    d0, d1, p0, p1 = _step(
                        field, base, height, width, reflect, L, s0, s1, r0, r1, d0, d1, p0, p1, h,
                        trail[count],
                    )  # fmt: skip
                    count += 1
            gd0, gd1, gp0, gp1, g_L = 0.0, 0.0, 0.0, 0.0, 0.0
            for back in range(last - first):
                segment = last - 1 - back
                place = places[segment]
                o0, o1 = np.float64(gradient[n, place, 0]), np.float64(gradient[n, place, 1])
                gd0 += o0
                gd1 += o1
                # A displacement does not move with its start; what the field does is added below.
                sum0 -= o0
                sum1 -= o1
                if wide == 4:
                    gp0 += size * gradient[n, place, 2]
                    gp1 += size * gradient[n, place, 3]
                h = spans[segment] / steps[segment]
                for _ in range(steps[segment]):
                    count -= 1
                    gd0, gd1, gp0, gp1, g_L = _step_backward(
                        field, slope, base, height, width, reflect, L, s0, s1, r0, r1, h,
                        trail[count], gd0, gd1, gp0, gp1, g_L,
                    )  # fmt: skip
            gx0, gx1, gv0, gv1 = _momentum_backward(
                field, slope, base, height, width, reflect, s0, s1, r0, r1, v0, v1, size * g_L, gp0,
                gp1,
            )  # fmt: skip
            sum0 += gd0 + gx0
            sum1 += gd1 + gx1
            g_velocities[n, ray, 0] = gv0 / size
            g_velocities[n, ray, 1] = gv1 / size
        g_starts[n, 0] = sum0
        g_starts[n, 1] = sum1
