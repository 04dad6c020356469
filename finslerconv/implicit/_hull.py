"""Convex hulls of the planar samples of very many kernels."""

from functools import partial
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, Int

from finslerconv._compiled import compile_and_keep


def planar_hulls(
    points: Float[np.ndarray, "batch n 2"],
    present: Bool[np.ndarray, "batch n"],
    relative_tolerance: float,
) -> tuple[Int[np.ndarray, "batch h"], Int[np.ndarray, " batch"]]:
    """Return the corners of convex hulls, and their numbers.

    Corners are indices into the points, turning from axis 0 towards axis 1; shorter rows repeat
    their last. Corners that stand out by less than ``relative_tolerance`` of the hull's size are
    left out, and points that coincide up to it count once. A hull has 0 corners without points, 1
    if they coincide, 2 if they are collinear. Only points that are ``present`` count.
    """
    corners = np.zeros(points.shape[:2], dtype=np.int64)
    count = np.zeros(len(points), dtype=np.int64)
    _monotone_chains(points, present, relative_tolerance, corners, count)
    return corners[:, : max(1, int(count.max(initial=1)))], count


@partial(compile_and_keep, nogil=True)
@no_type_check
def _monotone_chains(points, present, relative_tolerance, corners, count):
    """Andrew's monotone chain, kernel by kernel."""
    n = points.shape[1]
    order = np.empty(n, dtype=np.int64)
    chain = np.empty(2 * n + 1, dtype=np.int64)
    for b in range(len(points)):
        p = points[b]
        m = 0
        for i in range(n):
            if not present[b, i]:
                continue
            place = m
            while place > 0 and (
                p[order[place - 1], 0] > p[i, 0]
                or (p[order[place - 1], 0] == p[i, 0] and p[order[place - 1], 1] > p[i, 1])
            ):
                order[place] = order[place - 1]
                place -= 1
            order[place] = i
            m += 1
        if m == 0:
            continue
        lowest, highest = p[order[0], 1], p[order[0], 1]
        for k in range(1, m):
            lowest, highest = min(lowest, p[order[k], 1]), max(highest, p[order[k], 1])
        extent = max(p[order[m - 1], 0] - p[order[0], 0], highest - lowest)
        tolerance = relative_tolerance * extent * extent

        size = 0
        # Along one side to the last point, and back along the other. The corners of a side begin
        # at `floor`, after the corner that the two sides share.
        floor = 2
        for step in range(2 * m - 1):
            i = order[step] if step < m else order[2 * m - 2 - step]
            if step == m:
                floor = size + 1
            while size >= floor:
                q, r = chain[size - 2], chain[size - 1]
                turn = (p[r, 0] - p[q, 0]) * (p[i, 1] - p[q, 1]) - (p[r, 1] - p[q, 1]) * (
                    p[i, 0] - p[q, 0]
                )
                if turn > tolerance:
                    break
                size -= 1
            chain[size] = i
            size += 1
        # The walk ends where it began.
        size = max(1, size - 1)
        if size == 2:
            q, r = chain[0], chain[1]
            apart = max(abs(p[r, 0] - p[q, 0]), abs(p[r, 1] - p[q, 1]))
            if apart == 0.0:
                size = 1
        count[b] = size
        for k in range(n):
            corners[b, k] = chain[min(k, size - 1)]
