"""Polyhedral metrics: the unit ball is a convex polygon or polyhedron."""

from typing import Any, final

import array_api_compat
import numpy as np
from jaxtyping import Float

from finslerconv._arrays import Array, check_floating, check_vectors, detached, namespace
from finslerconv._linalg import batch_index, dot, matvec, solve
from finslerconv.metrics._base import FinslerMetric


@final
class Polytope(FinslerMetric):
    r"""The metric whose unit ball is the convex hull of points around the origin.

    ``F(v) = max_f a_f . v`` over the facets of the hull, each on its plane ``a_f . x = 1``: the
    gauge of the hull. The dual norm, the support function of the hull, is ``F*(p) = max_i v_i . p``
    over the points themselves. Of a kernel that samples at those points this is the exact metric;
    a Randers metric explains it by an ellipse (:func:`finslerconv.implicit.fit_randers`).

    Differentiable in the points almost everywhere. The hulls are found on the CPU. Immutable by
    convention.

    Parameters
    ----------
    points : array, shape (\*batch, n, d)
        The points, **the last axis but one**, as the modules' ``positions`` return them; in the
        plane or in space. Those inside the hull count for nothing.

    Raises
    ------
    TypeError
        If ``points`` is no array of real floats.
    ValueError
        If a point is not finite, or the origin not strictly inside a hull (by 1e-9 of its size in
        float64), so that no metric has this ball.

    Attributes
    ----------
    points : array, shape (\*batch, n, d)
    facets : array, shape (\*batch, f, d)
        The covectors ``a_f``; where a hull has fewer facets than another, one is repeated.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Polytope
    >>> metric = Polytope(np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))
    >>> v = np.array([0.5, -2.0])
    >>> metric.norm(v), metric.dual_norm(v)
    (np.float64(2.0), np.float64(2.5))
    """

    def __init__(self, points: Float[Array, "*batch n d"]) -> None:
        self.points = points
        self.facets = _facets(points)

    @classmethod
    def _of(cls, points: Array, facets: Array) -> "Polytope":
        """Return the metric of points whose facets are known."""
        metric = cls.__new__(cls)
        metric.points, metric.facets = points, facets
        return metric

    @classmethod
    def from_facets(cls, facets: Float[Array, "*batch f d"]) -> "Polytope":
        r"""Return the metric ``F(v) = max_f a_f . v``, of the unit ball ``a_f . v <= 1`` for all f.

        Parameters
        ----------
        facets : array, shape (\*batch, f, d)
            Covectors ``a_f``, in the plane or in space, with the origin strictly inside their hull:
            otherwise the ball has no end in some direction.

        Raises
        ------
        ValueError
            As for the points: this is the dual of the metric of these points.
        """
        return cls(facets).dual()

    def __repr__(self) -> str:
        return (
            f"Polytope(dim={self.dim}, batch_shape={self.batch_shape}, "
            f"points={self.points.shape[-2]}, dtype={self.points.dtype})"
        )

    def __getitem__(self, index: Any) -> "Polytope":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        index = (*batch_index(index), slice(None), slice(None))
        return Polytope._of(self.points[index], self.facets[index])

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

    def dual(self) -> "Polytope":
        """Return the dual metric: its unit ball is the polar polytope, the hull of the ``a_f``."""
        return Polytope._of(self.facets, self.points)

    def reverse(self) -> "Polytope":
        """Return the reversed metric ``F(-v)``, of the points' mirror images."""
        return Polytope._of(-self.points, -self.facets)

    def moved(self, wind: Float[Array, "*_ d"]) -> "Polytope":
        """Return the metric whose unit ball is the polytope moved by ``wind``, shape ``(..., d)``.

        The origin must stay inside, which is not checked; :class:`Navigation` does.
        """
        check_vectors("wind", wind, self.dim, self.points)
        reach = 1 + matvec(self.facets, wind)
        return Polytope._of(self.points + wind[..., None, :], self.facets / reach[..., None])

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
            "finslerconv.implicit.fit_randers gives a smooth metric of the same points"
        )

    def validate(self) -> None:
        """Check that the origin is strictly inside every polytope.

        Raises
        ------
        ValueError
            It names the first of which it is not.
        """
        _facets(self.points)


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
            "points: expected shape (*batch, n, 2) or (*batch, n, 3), the points last but one, "
            f"got shape {shape}"
        )
    if shape[-2] == 0:
        raise ValueError(f"points: expected points around the origin, got none, shape {shape}")
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
            f"points: so near to the origin{where} that the metric overflows {points.dtype}; give "
            "lengths in a smaller unit"
        )
    extent = np.where(extent > 0, extent, 1.0)
    values = values / extent[:, None, None]
    # Numba, and for hulls in space SciPy, are loaded with the first polytope.
    from finslerconv._hulls import facet_areas, polygon_edges, polyhedron_facets

    find = polygon_edges if d == 2 else polyhedron_facets
    corners, flat_hulls = find(values, 16 * eps)

    size = np.abs(values).max(axis=(-2, -1))
    facet_points = np.take_along_axis(values[:, None], corners[..., None], axis=2)
    # The distance of the facet's plane from the origin, outwards positive.
    distance = np.linalg.det(facet_points) / facet_areas(facet_points)
    outside = flat_hulls | ~(distance > max(1e-9, 4 * eps) * size[:, None]).all(axis=1)
    if outside.any():
        where = f" at {int(outside.sum())} of {outside.size} indices, first" if batch else ""
        raise ValueError(
            f"points: the origin is not strictly inside the convex hull of the points{where}"
            f"{_first(outside, batch)}; no metric has that unit ball. "
            "finslerconv.implicit.fit_randers finds an ellipse that holds the origin, and says "
            "where that explains nothing"
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
