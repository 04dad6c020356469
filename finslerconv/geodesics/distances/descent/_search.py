"""A path from a source to a position, searched with a distance map as the guide.

The search is A* from the position back to the sources, and the distance of a node is what it
expects to be left there. Steps have any angle (Theta*: A. Nash, K. Daniel, S. Koenig, A. Felner,
"Theta*: any-angle path planning on grids", 2007): a node is joined to the node before last, or to
the last one, whichever chord makes the path shorter. Chords are measured in the field itself, so an
error of the map costs time and not length; and where there is a path between free cells, it is
found.

Chords between nodes may run through corners of walls; what shortens the path takes it off them.
"""

import numpy as np

from finslerconv._compiled import entry, jit, put
from finslerconv.geodesics.distances._heap import ACCEPTED, FAR, pop, push
from finslerconv.geodesics.distances._sight import clear, passes
from finslerconv.geodesics.distances.descent._chord_length import chord_length

# The longest chord along any axis, in nodes.
_REACH = 16

# What the map says is left counts a little more than what is measured, so that of equally good
# nodes those nearer to a source come first.
_EAGER = 1.01


@jit
def _near(a, b):
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]), abs(a[2] - b[2])) <= _REACH


@jit
def _free(walls, walled, shape, a, b):
    return not walled or clear(walls, shape, a, b, 0.0)


@jit
def _point(node, shape):
    _, n1, n2 = shape
    return float(node // (n1 * n2)), float(node // n2 % n1), float(node % n2)


@entry
def search(
    table, walls, walled, shape, left, last, label, sources, values, goal, reached, before, place,
    keys, nodes,
):  # fmt: skip
    """Return a path (n, 3) from a source to ``goal``; empty if there is none.

    ``left`` are the distances; ``last`` stands in where there is none. The scratch arrays from
    ``reached`` on have an entry for each node, and ``place`` is and stays ``FAR``.
    """
    n0, n1, n2 = shape
    end = (goal[0], goal[1], goal[2])
    touched = [np.int64(0) for _ in range(0)]
    # Neighbours: in narrow valleys a second ring finds more of the ways that there are.
    ring = 2 if n2 == 1 else 1
    count = 0
    best, best_node, best_source = np.inf, -1, -1
    # The corners of the cell around the end, and straight from there to the source of the least.
    nearest = -1
    for corner in range(8):
        node, inside = 0, True
        for axis in range(3):
            low = min(max(int(goal[axis]), 0), shape[axis] - 1)
            i = low + (corner >> axis & 1)
            inside = inside and abs(i - goal[axis]) < 1.0 and i < shape[axis]
            node = node * shape[axis] + i
        if not inside or not np.isfinite(left[node]):
            continue
        if not passes(walls, walled, shape, _point(node, shape), end):
            continue
        if nearest < 0 or left[node] < left[nearest]:
            nearest = node
        reached[node] = chord_length(table, shape, _point(node, shape), end)
        before[node] = -1
        touched.append(node)
        count = push(keys, nodes, place, count, node, reached[node] + _EAGER * left[node])
    if nearest >= 0 and label[nearest] >= 0:
        s = label[nearest]
        source = (sources[s, 0], sources[s, 1], sources[s, 2])
        if _near(source, end) and passes(walls, walled, shape, source, end):
            best = chord_length(table, shape, source, end) + _EAGER * values[s]
            best_source = s
    while count > 0 and keys[0] < best:
        node = nodes[0]
        count = pop(keys, nodes, place, count)
        place[node] = ACCEPTED
        here = _point(node, shape)
        if label[node] >= 0:
            s = label[node]
            source = (sources[s, 0], sources[s, 1], sources[s, 2])
            if _near(source, here) and passes(walls, walled, shape, source, here):
                whole = reached[node] + chord_length(table, shape, source, here)
                if whole + _EAGER * values[s] < best:
                    best, best_node, best_source = whole + _EAGER * values[s], node, s
        previous = before[node]
        corner = end if previous < 0 else _point(previous, shape)
        passed = 0.0 if previous < 0 else reached[previous]
        i, j, k = int(here[0]), int(here[1]), int(here[2])
        for p in range(max(i - ring, 0), min(i + ring + 1, n0)):
            for q in range(max(j - ring, 0), min(j + ring + 1, n1)):
                for r in range(max(k - ring, 0), min(k + ring + 1, n2)):
                    other = (p * n1 + q) * n2 + r
                    if place[other] == ACCEPTED or (walled and walls[other]):
                        continue
                    there = (float(p), float(q), float(r))
                    length, by = np.inf, node
                    if _free(walls, walled, shape, there, here):
                        length = reached[node] + chord_length(table, shape, there, here)
                    if _near(there, corner) and (
                        _free(walls, walled, shape, there, corner)
                        if previous >= 0
                        else passes(walls, walled, shape, there, corner)
                    ):
                        straight = passed + chord_length(table, shape, there, corner)
                        if straight < length:
                            length, by = straight, previous
                    if length == np.inf or (place[other] != FAR and length >= reached[other]):
                        continue
                    if place[other] == FAR:
                        touched.append(other)
                    reached[other] = length
                    before[other] = by
                    rest = left[other] if np.isfinite(left[other]) else last
                    count = push(keys, nodes, place, count, other, length + _EAGER * rest)
    for node in touched:
        place[node] = FAR
    if best == np.inf:
        return np.empty((0, 3))
    steps = 2
    node = best_node
    while node >= 0:
        steps += 1
        node = before[node]
    out = np.empty((steps, 3))
    put(out[0], sources[best_source])
    put(out[steps - 1], goal)
    node = best_node
    for step in range(1, steps - 1):
        out[step, 0], out[step, 1], out[step, 2] = _point(node, shape)
        node = before[node]
    return out
