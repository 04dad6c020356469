"""The polyhedral Finsler metric whose unit ball is the convex hull of given points."""

from typing import Any, final

import array_api_compat
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull, QhullError

from finslerconv._arrays import Array, check_floating, check_vectors, detached, namespace
from finslerconv._linalg import batch_index, dot, solve
from finslerconv.implicit._hull import planar_hulls
from finslerconv.metrics import FinslerMetric


@final
class GaugeMetric(FinslerMetric):
    r"""The metric whose unit ball is the convex hull of points around the origin.

    ``F(v) = max_f a_f . v`` over the facets of the hull, each on its plane ``a_f . x = 1``: the
    gauge of the hull. It is the exact metric of a kernel that samples at those points, where a
    Randers metric is an explanation by an ellipse. The dual norm, the support function of the hull,
    is ``F*(p) = max_i v_i . p`` over the points themselves.

    Differentiable in the points almost everywhere. The hulls are found on the CPU. Immutable by
    convention.

    Parameters
    ----------
    points : array, shape (\*batch, n, d)
        The points, **the samples last but one**, as the modules' ``positions`` return them; in the
        plane or in space.

    Raises
    ------
    TypeError
        If ``points`` is no array of real floats.
    ValueError
        If a point is not finite, or the origin not strictly inside a hull (by 1e-9 of its size in
        float64), so that no metric has this ball; :func:`fit_randers` says so without an error.

    Attributes
    ----------
    points : array, shape (\*batch, n, d)
    facets : array, shape (\*batch, f, d)
        The covectors ``a_f``; where a hull has fewer facets than another, one is repeated.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import lattice
    >>> from finslerconv.implicit import GaugeMetric
    >>> metric = GaugeMetric(lattice(3).points)
    >>> v = np.array([0.5, -2.0])
    >>> metric.norm(v), metric.dual_norm(v)
    (np.float64(2.0), np.float64(2.5))
    """

    def __init__(self, points: Float[Array, "*batch n d"]) -> None:
        self.points = points
        self.facets = _facets(points)

    @classmethod
    def _of(cls, points: Array, facets: Array) -> "GaugeMetric":
        """Return the metric of points whose facets are known."""
        metric = cls.__new__(cls)
        metric.points, metric.facets = points, facets
        return metric

    def __repr__(self) -> str:
        return (
            f"GaugeMetric(dim={self.dim}, batch_shape={self.batch_shape}, "
            f"points={self.points.shape[-2]}, dtype={self.points.dtype})"
        )

    def __getitem__(self, index: Any) -> "GaugeMetric":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        index = (*batch_index(index), slice(None), slice(None))
        return GaugeMetric._of(self.points[index], self.facets[index])

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.points.shape[-1]

    @property
    def like(self) -> Array:
        """The points: vectors are made in their kind, dtype and device."""
        return self.points

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return tuple(self.points.shape[:-2])

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the gauges ``max_f a_f . v``, shape ``(...)``."""
        check_vectors("v", v, self.dim, self.points)
        return _support(self.facets, v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``max_i v_i . p`` of covectors, shape ``(...)``."""
        check_vectors("p", p, self.dim, self.points)
        return _support(self.points, p)

    def dual(self) -> "GaugeMetric":
        """Return the dual metric: its unit ball is the polar polytope, the hull of the ``a_f``."""
        return GaugeMetric._of(self.facets, self.points)

    def reverse(self) -> "GaugeMetric":
        """Return the reversed metric ``F(-v)``, of the points' mirror images."""
        return GaugeMetric._of(-self.points, -self.facets)

    def asymmetry_ratio(self) -> Float[Array, "*batch"]:
        """Return the largest ``F(-v) / F(v)``, which is attained at a point: ``max F(-v_i)``."""
        xp = namespace(self.points)
        norms = [self.norm(-self.points[..., i, :]) for i in range(self.points.shape[-2])]
        return xp.max(xp.stack(norms), axis=0)

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Raise: a polyhedral norm has none.

        Raises
        ------
        TypeError
            Always: inside the cone of a facet it is singular, and between two it does not exist.
        """
        raise TypeError(
            "fundamental_tensor: a polyhedral metric has none, its ball has flat facets; "
            "finslerconv.implicit.fit_randers gives a smooth metric of the same samples"
        )


def _support(points: Array, p: Array) -> Array:
    """Return ``max_i points_i . p``, point after point: no array is larger than the result."""
    xp = namespace(points, p)
    largest = dot(points[..., 0, :], p)
    for i in range(1, points.shape[-2]):
        largest = xp.maximum(largest, dot(points[..., i, :], p))
    return largest


def _facets(points: Array) -> Array:
    """Return the covectors of the facets of the hulls, all checked to be around the origin."""
    xp = check_floating(points=points)
    shape = tuple(points.shape)
    if len(shape) < 2 or shape[-1] not in (2, 3):
        raise ValueError(
            "points: expected shape (*batch, n, 2) or (*batch, n, 3), the samples last but one, "
            f"got shape {shape}"
        )
    if shape[-2] == 0:
        raise ValueError(f"points: expected points around the pixel, got none, shape {shape}")
    batch, n, d = shape[:-2], shape[-2], shape[-1]
    flat = xp.reshape(points, (-1, n, d))
    values = detached(flat)
    values = np.asarray(values.cpu() if hasattr(values, "cpu") else values, dtype=np.float64)
    bad = ~np.isfinite(values).all(axis=-1)
    if bad.any():
        index = np.unravel_index(int(bad.argmax()), (*batch, n))
        got = values.reshape(*batch, n, d)[index].tolist()
        raise ValueError(
            f"points: expected finite positions, got {got} at index {tuple(int(i) for i in index)}"
        )
    eps = float(xp.finfo(points.dtype).eps)
    # Points may be huge or tiny: divide by the largest before multiplying.
    extent = np.abs(values).max(axis=(-2, -1))
    tiny = (extent > 0) & (extent < 4 * float(xp.finfo(points.dtype).smallest_normal))
    if tiny.any():
        where = f" at index{_first(tiny, batch)}" if batch else ""
        raise ValueError(
            f"points: so near to the pixel{where} that the metric overflows {points.dtype}; give "
            "lengths in a smaller unit"
        )
    extent = np.where(extent > 0, extent, 1.0)
    values = values / extent[:, None, None]
    corners, flat_hulls = (_planar if d == 2 else _spatial)(values, 16 * eps)

    size = np.abs(values).max(axis=(-2, -1))
    facet_points = np.take_along_axis(values[:, None], corners[..., None], axis=2)
    # The distance of the facet's plane from the origin, outwards positive.
    distance = np.linalg.det(facet_points) / _facet_areas(facet_points)
    outside = flat_hulls | ~(distance > max(1e-9, 4 * eps) * size[:, None]).all(axis=1)
    if outside.any():
        where = f" at {int(outside.sum())} of {outside.size} indices, first" if batch else ""
        raise ValueError(
            f"points: the pixel is not strictly inside the convex hull of its samples{where}"
            f"{_first(outside, batch)}; no metric has that unit ball. fit_randers finds an "
            "ellipse that holds the pixel, and says where that explains nothing"
        )

    f = corners.shape[1]
    index = xp.asarray(corners.reshape(len(corners), f * d), device=array_api_compat.device(points))
    index = xp.broadcast_to(index[..., None], (len(corners), f * d, d))
    unit = xp.asarray(extent, dtype=points.dtype, device=array_api_compat.device(points))
    unit = xp.reshape(unit, (*batch, 1, 1))
    of_facets = xp.reshape(xp.take_along_axis(flat, index, axis=1), (*batch, f, d, d))
    of_facets = of_facets / unit[..., None]
    return solve(of_facets, xp.ones_like(of_facets[..., 0])) / unit


def _first(mask: np.ndarray, batch: tuple[int, ...]) -> str:
    if not batch:
        return ""
    index = np.unravel_index(int(mask.argmax()), batch)
    return f" {tuple(int(i) for i in index)}"


def _planar(
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


def _spatial(
    points: Float[np.ndarray, "batch n 3"], tolerance: float
) -> tuple[Int[np.ndarray, "batch f 3"], np.ndarray]:
    """Return three corners of every facet, and which hulls have no volume; by Qhull, one by one."""
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
    hull = ConvexHull(cloud)
    corners = cloud[hull.simplices]
    areas = _facet_areas(corners)
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


def _facet_areas(corners: np.ndarray) -> np.ndarray:
    """Return the lengths of edges, or twice the areas of triangles, of shape (..., d, d)."""
    edges = corners[..., 1:, :] - corners[..., :1, :]
    normals = edges[..., 0, :]
    if corners.shape[-1] == 3:
        normals = np.linalg.cross(normals, edges[..., 1, :])
    areas = np.linalg.norm(normals, axis=-1)
    return np.where(areas > 0, areas, 1.0)
