"""Convex hulls of very many small sets of points, in the plane and in space."""

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


def polygon_edges(
    points: Float[np.ndarray, "batch n 2"], tolerance: float
) -> tuple[Int[np.ndarray, "batch f 2"], np.ndarray]:
    """Return the two corners of every edge, and which hulls have no area."""
    corners, count = planar_hulls(points, np.ones(points.shape[:2], dtype=bool), tolerance)
    following = np.roll(corners, -1, axis=1)
    # Shorter rows repeat their last corner: repeat the first edge there instead.
    place = np.arange(corners.shape[1])
    spare = place >= count[:, None]
    following = np.where(place == count[:, None] - 1, corners[:, :1], following)
    edges = np.stack((corners, following), axis=-1)
    # The determinant of both is the distance from the origin times the length: positive outwards.
    return np.where(spare[..., None], edges[:, :1], edges), count < 3


def polyhedron_facets(
    points: Float[np.ndarray, "batch n 3"], tolerance: float
) -> tuple[Int[np.ndarray, "batch f 3"], np.ndarray]:
    """Return three corners of every facet, and which hulls have no volume; by Qhull, one by one."""
    from scipy.spatial import QhullError  # costs 0.1 s, and planar hulls need none of it

    found: list[np.ndarray] = []
    flat = np.zeros(len(points), dtype=bool)
    for b, cloud in enumerate(points):
        try:
            found.append(_spatial_facets(cloud, tolerance))
        except QhullError:
            flat[b] = True
            found.append(np.zeros((1, 3), dtype=np.int64))
    most = max((len(facets) for facets in found), default=1)
    padded = [np.concatenate((f, np.repeat(f[:1], most - len(f), axis=0))) for f in found]
    return np.reshape(padded, (len(points), most, 3)), flat


def _spatial_facets(cloud: Float[np.ndarray, "n 3"], tolerance: float) -> np.ndarray:
    from scipy.spatial import ConvexHull

    hull = ConvexHull(cloud)
    corners = cloud[hull.simplices]
    areas = facet_areas(corners)
    # Qhull splits a face of many corners into triangles, slivers among them: the largest has the
    # most accurate plane.
    size = np.abs(cloud).max()
    planes = hull.equations / np.array([1.0, 1.0, 1.0, size])
    kept: list[int] = []
    for i in np.argsort(-areas):
        if all(np.abs(planes[i] - planes[k]).max() > 1e4 * tolerance for k in kept):
            kept.append(int(i))
    simplices = hull.simplices[kept].astype(np.int64)
    # Oriented so that each normal, by the right-hand rule, points outwards.
    edges = corners[kept, 1:] - corners[kept, :1]
    normals = np.linalg.cross(edges[:, 0], edges[:, 1])
    inwards = (normals * hull.equations[kept, :3]).sum(-1) < 0
    return np.where(inwards[:, None], simplices[:, ::-1], simplices)


def facet_areas(corners: np.ndarray) -> np.ndarray:
    """Return the lengths of edges, or twice the areas of triangles, of shape (..., d, d)."""
    edges = corners[..., 1:, :] - corners[..., :1, :]
    normals = edges[..., 0, :]
    if corners.shape[-1] == 3:
        normals = np.linalg.cross(normals, edges[..., 1, :])
    areas = np.linalg.norm(normals, axis=-1)
    return np.where(areas > 0, areas, 1.0)


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
