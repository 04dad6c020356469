"""A path made as short as it can be without leaving its way round the walls.

A path is a polyline of sides of about a node. Its corners move together: each has places to choose
from across the path, and dynamic programming finds the shortest combination. The width between the
places is halved again and again, so that long bends go first. Between the rounds corners that a
shorter chord passes by are left out. No round makes a path longer or leads it into a wall.
"""

import numpy as np

from finslerconv._compiled import entry, jit, put
from finslerconv.geodesics.distances._sight import MARGIN, passes, turns
from finslerconv.geodesics.distances.descent._chord_length import chord_length

# Widths between the places of a corner, in nodes: the first, and what it is halved to.
_WIDEST, _LEAST = 2.0, 2.0**-10

# Rounds of one width; another one only where the last has shortened the path by this part of it.
_ROUNDS, _GAIN = 8, 1e-5

# A little more than what paths keep off walls.
_BESIDE = 1.01 * MARGIN

# Chords that take the place of corners are no longer than this, in nodes.
_CHORD = 8.0


@jit
def _size(a, b):
    return np.sqrt((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2 + (b[2] - a[2]) ** 2)


@jit
def split(path, longest):
    """Return the path with sides of at most ``longest`` nodes."""
    count = 1
    for i in range(len(path) - 1):
        count += max(int(np.ceil(_size(path[i], path[i + 1]) / longest - 1e-9)), 1)
    out = np.empty((count, 3))
    at = 0
    for i in range(len(path) - 1):
        parts = max(int(np.ceil(_size(path[i], path[i + 1]) / longest - 1e-9)), 1)
        for part in range(parts):
            t = part / parts
            for axis in range(3):
                out[at, axis] = path[i, axis] + t * (path[i + 1, axis] - path[i, axis])
            at += 1
    put(out[at], path[-1])
    return out


@jit
def _tighten(table, walls, walled, shape, path, longest):
    """Return the path without corners where the chord is no longer than the two sides."""
    out = np.empty_like(path)
    sides = np.empty(len(path))
    put(out[0], path[0])
    count = 1
    for i in range(1, len(path)):
        side = chord_length(table, shape, out[count - 1], path[i])
        while count > 1 and _size(out[count - 2], path[i]) <= longest:
            chord = chord_length(table, shape, out[count - 2], path[i])
            if chord > sides[count - 1] + side:
                break
            if not passes(walls, walled, shape, out[count - 2], path[i]):
                break
            count -= 1
            side = chord
        put(out[count], path[i])
        sides[count] = side
        count += 1
    return out[:count].copy()


@jit
def _way_round(walls, shape, before, step, tied, out):
    """Write the cells between ``before`` and the one a step away along the axes ``tied``.

    Each shares a face with the last, and all are free; return their number, 0 if there are none.
    """
    for order in range(6):
        first, second = order % 3, (order % 3 + 1 + order // 3) % 3
        third = 3 - first - second
        cell = (before[0], before[1], before[2])
        count = 0
        free = True
        for axis in (first, second, third):
            if not tied[axis]:
                continue
            cell = (
                cell[0] + (step[0] if axis == 0 else 0),
                cell[1] + (step[1] if axis == 1 else 0),
                cell[2] + (step[2] if axis == 2 else 0),
            )
            free = free and not walls[(cell[0] * shape[1] + cell[1]) * shape[2] + cell[2]]
            out[count, 0], out[count, 1], out[count, 2] = cell
            count += 1
        if free:
            return count - 1
    return 0


@jit
def _off_walls(walls, shape, path):
    """Return the path with corners beside those of walls that its sides run through."""
    out = [path[0].copy()]
    cells = np.empty((3, 3), np.int64)
    tied = np.zeros(3, np.bool_)
    before, step = np.zeros(3, np.int64), np.zeros(3, np.int64)
    x = np.empty(3)
    for i in range(1, len(path)):
        a, b = path[i - 1], path[i]
        done = passes(walls, True, shape, a, b)
        t = 0.0
        while not done:
            # The next time at which the side crosses borders along several axes at once.
            after = 1.0
            for axis in range(3):
                run = b[axis] - a[axis]
                for crossing in range(int(abs(run) + 1.0)):
                    way = 1.0 if run > 0.0 else -1.0
                    time = (np.floor(a[axis] + 0.5) + way * (crossing + 0.5) - a[axis]) / run
                    if not t + 1e-9 < time < after:
                        continue
                    several = 0
                    for other in range(3):
                        c = a[other] + time * (b[other] - a[other]) + 0.5
                        several += abs(c - np.rint(c)) < 1e-9 and a[other] != b[other]
                    if several > 1:
                        after = time
            done = after >= 1.0
            if done:
                break
            t = after
            for axis in range(3):
                run = b[axis] - a[axis]
                x[axis] = a[axis] + t * run
                c = x[axis] + 0.5
                step[axis] = 1 if run > 0.0 else -1
                tied[axis] = abs(c - np.rint(c)) < 1e-9 and run != 0.0
                before[axis] = np.int64(np.floor(c))
                if tied[axis]:
                    x[axis] = np.rint(c) - 0.5
                    before[axis] = np.int64(np.rint(c)) - (1 if run > 0.0 else 0)
            for cell in range(_way_round(walls, shape, before, step, tied, cells)):
                corner = x.copy()
                for axis in range(3):
                    if tied[axis]:
                        corner[axis] += _BESIDE if cells[cell, axis] > x[axis] else -_BESIDE
                out.append(corner)
        out.append(b.copy())
    result = np.empty((len(out), 3))
    for i in range(len(out)):
        put(result[i], out[i])
    return result


@jit
def _across(a, b, d, out):
    """Write unit vectors across the direction from ``a`` to ``b``, one or two; else 0."""
    size = _size(a, b)
    out[:] = 0.0
    if size == 0.0:
        return
    t0, t1, t2 = (b[0] - a[0]) / size, (b[1] - a[1]) / size, (b[2] - a[2]) / size
    if d == 2:
        out[0, 0], out[0, 1] = -t1, t0
        return
    # The axis that is least along the direction, made orthogonal to it; and the product of both.
    axis = 0
    if abs(t1) < abs(t0):
        axis = 1
    if abs(t2) < min(abs(t0), abs(t1)):
        axis = 2
    along = t0 if axis == 0 else (t1 if axis == 1 else t2)
    out[0, axis] = 1.0
    out[0, 0] -= along * t0
    out[0, 1] -= along * t1
    out[0, 2] -= along * t2
    across = np.sqrt(1.0 - along * along)
    for axis in range(3):
        out[0, axis] /= across
    out[1, 0] = t1 * out[0, 2] - t2 * out[0, 1]
    out[1, 1] = t2 * out[0, 0] - t0 * out[0, 2]
    out[1, 2] = t0 * out[0, 1] - t1 * out[0, 0]


@jit
def _to_edge(walls, shape, place, pair):
    """Move a place to the nearby wall edge in the plane of two axes, if one wall alone is there."""
    p, q = (0, 1) if pair == 0 else ((0, 2) if pair == 1 else (1, 2))
    cell = (
        np.int64(np.floor(place[0] + 0.5)), np.int64(np.floor(place[1] + 0.5)),
        np.int64(np.floor(place[2] + 0.5)),
    )  # fmt: skip
    i, j = np.int64(np.floor(place[p])), np.int64(np.floor(place[q]))
    if i + 1 >= shape[p] or j + 1 >= shape[q]:
        return
    count, a, b = 0, 0, 0
    for corner in range(4):
        index = 0
        for axis in range(3):
            at = cell[axis]
            if axis == p:
                at = i + (corner & 1)
            if axis == q:
                at = j + (corner >> 1)
            index = index * shape[axis] + at
        if walls[index]:
            count += 1
            a, b = corner & 1, corner >> 1
    if count == 1:
        place[p] = i + 0.5 + (-_BESIDE if a else _BESIDE)
        place[q] = j + 0.5 + (-_BESIDE if b else _BESIDE)


@jit
def _settle(table, walls, walled, shape, d, path, width):
    """Move the corners by multiples of ``width`` to the shortest combination; return its length."""
    n = len(path)
    sideways = 3 ** (d - 1)
    # Near walls also their edges, where the shortest paths bend.
    choices = sideways + (2 * d - 3 if walled else 0)
    places = np.empty((n, choices, 3))
    length = np.full((n, choices), np.inf)
    before = np.zeros((n, choices), np.int8)
    across = np.zeros((2, 3))
    for i in range(n):
        if 0 < i < n - 1:
            _across(path[i - 1], path[i + 1], d, across)
        for choice in range(choices):
            put(places[i, choice], path[i])
            if choice >= sideways:
                _to_edge(walls, shape, places[i, choice], choice - sideways)
                continue
            # The first choice is to stay.
            first, second = (choice + 1) % 3 - 1, (choice // 3 + 1) % 3 - 1
            for axis in range(3 if choice > 0 else 0):
                c = path[i, axis] + width * (first * across[0, axis] + second * across[1, axis])
                places[i, choice, axis] = min(max(c, 0.0), shape[axis] - 1.0)
    length[0, 0] = 0.0
    for i in range(1, n):
        for choice in range(choices if i < n - 1 else 1):
            b = places[i, choice]
            if choice > 0 and not turns(walls, walled, shape, b):
                continue
            for other in range(choices if i > 1 else 1):
                if not length[i - 1, other] < length[i, choice]:
                    continue
                a = places[i - 1, other]
                whole = length[i - 1, other] + chord_length(table, shape, a, b)
                if whole < length[i, choice] and (
                    (choice == 0 and other == 0) or passes(walls, walled, shape, a, b)
                ):
                    length[i, choice] = whole
                    before[i, choice] = other
    choice = 0
    for i in range(n - 1, 0, -1):
        put(path[i], places[i, choice])
        choice = before[i, choice]
    return length[n - 1, 0]


@entry
def shorten(table, walls, walled, shape, d, path, step):
    """Return a path (n, 3) of the same ends, as short as it can be made, with sides of ``step``."""
    straight = np.empty((2, 3))
    put(straight[0], path[0])
    put(straight[1], path[-1])
    whole = 0.0
    for i in range(len(path) - 1):
        whole += chord_length(table, shape, path[i], path[i + 1])
    if chord_length(table, shape, path[0], path[-1]) <= whole and passes(
        walls, walled, shape, path[0], path[-1]
    ):
        path = straight
    if walled:
        path = _off_walls(walls, shape, path)
    width = _WIDEST
    while width >= _LEAST:
        for _ in range(_ROUNDS):
            path = split(_tighten(table, walls, walled, shape, path, _CHORD), 1.0)
            length = _settle(table, walls, walled, shape, d, path, width)
            gain = whole - length
            whole = length
            if gain < _GAIN * whole:
                break
        width /= 2
    return split(_tighten(table, walls, walled, shape, path, _CHORD), step)
