"""The priority queue of fast marching: a 4-ary heap of nodes that knows where each node lies.

A heap is three arrays: ``keys`` (float64) and ``nodes`` (int32) in heap order, and ``place``
(int32), with the position in the heap of each node of the grid, or one of the states below. The
functions take the number of entries and return the new one. Four children lie in one or two cache
lines of keys, and the tree is half as deep as a binary one.
"""

from finslerconv._compiled import jit_unfused

#: States of a node that is not in the heap.
FAR, ACCEPTED, WALL = -1, -2, -3


@jit_unfused
def sift_up(keys, nodes, place, at, node, key):
    """Put ``node`` at the free place ``at``, or above it, where ``key`` belongs."""
    while at > 0:
        parent = (at - 1) >> 2
        if keys[parent] <= key:
            break
        keys[at] = keys[parent]
        nodes[at] = nodes[parent]
        place[nodes[at]] = at
        at = parent
    keys[at] = key
    nodes[at] = node
    place[node] = at


@jit_unfused
def push(keys, nodes, place, count, node, key):
    """Put a node in, or lower the key of one that is in; return the number of entries."""
    at = place[node]
    if at < 0:
        at = count
        count += 1
    sift_up(keys, nodes, place, at, node, key)
    return count


@jit_unfused
def pop(keys, nodes, place, count):
    """Take the node of the least key, ``nodes[0]`` before the call, out of the heap."""
    count -= 1
    key = keys[count]
    node = nodes[count]
    at = 0
    while True:
        child = 4 * at + 1
        if child >= count:
            break
        best = child
        last = min(child + 4, count)
        for other in range(child + 1, last):
            if keys[other] < keys[best]:
                best = other
        if keys[best] >= key:
            break
        keys[at] = keys[best]
        nodes[at] = nodes[best]
        place[nodes[at]] = at
        at = best
    if count > 0:
        keys[at] = key
        nodes[at] = node
        place[node] = at
    return count
