"""The geometries of a convex body: Funk's and Hilbert's metrics at its points."""

from typing import Any, final

from jaxtyping import Float

from finslerconv._arrays import Array, check_vectors, namespace
from finslerconv._linalg import batch_index
from finslerconv._norms import norm_off_zero
from finslerconv.metrics._base import FinslerMetric, RandersForm
from finslerconv.metrics._combinators import batch_shapes, metric_at
from finslerconv.metrics._navigation import Navigation
from finslerconv.metrics._polytope import Polytope


class _BodyMetric(FinslerMetric):
    """A metric at points ``x`` inside the unit ball of a metric, the body."""

    def __init__(
        self, body: FinslerMetric, x: Float[Array, "*batch d"], *, validate: bool = True
    ) -> None:
        check_vectors("x", x, body.dim)
        self.body = body
        self.x = x
        self._batch_shape = batch_shapes("x", body.batch_shape, tuple(x.shape[:-1]))
        # The body as it is seen from x: its unit ball moved by -x.
        self._seen = Navigation(body, -x, validate=False)
        if validate:
            self._seen.check_wind("x", "a point inside the body, F(x)")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.body!r}, x=<{tuple(self.x.shape)}>)"

    def __getitem__(self, index: Any) -> FinslerMetric:
        """Return the metrics at an index of the batch."""
        x = namespace(self.x).broadcast_to(self.x, (*self.batch_shape, self.dim))
        return type(self)(
            metric_at(self.body, index, self.batch_shape),
            x[(*batch_index(index), slice(None))],
            validate=False,
        )

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.body.dim

    @property
    def like(self) -> Array:
        """The points ``x``: vectors are made in their kind, dtype and device."""
        return self.x

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self._batch_shape

    def validate(self) -> None:
        """Check the body, and that every ``x`` is inside.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        self.body.validate()
        self._seen.check_wind("x", "a point inside the body, F(x)")


@final
class Funk(_BodyMetric):
    """Funk's metric at points ``x`` of a convex body: ``x + v / F(x, v)`` is on the body's rim.

    So the unit ball at ``x`` is the body itself, seen from ``x``: this is :class:`Navigation` on
    the body's metric in the wind ``-x``. Its geodesics are straight lines, its flag curvature is
    -1/4, and distances have a closed form (:meth:`distance`). The rim is infinitely far away, but
    the way back from the rim is short. ``FunctionMetric(lambda x: Funk(body, x))`` is the metric
    field.

    Parameters
    ----------
    body : FinslerMetric
        The metric whose unit ball is the body: :class:`Euclidean` for the disc,
        :class:`Polytope` for a convex polygon.
    x : array, shape (..., d)
        Points inside the body. Their batch and that of the body broadcast.
    validate : bool
        Whether to check that they are inside.

    Raises
    ------
    TypeError
        If ``x`` is no array of real floats.
    ValueError
        If the shapes do not fit, or a point is not inside; the message names the first.

    Notes
    -----
    Funk, "Über Geometrien, bei denen die Geraden die Kürzesten sind" (Math. Ann. 1929); Shen,
    "Lectures on Finsler Geometry" (2001), section 2.3.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Euclidean, Funk
    >>> metric = Funk(Euclidean(), np.array([0.0, 0.5]))
    >>> metric.norm(np.array([[0.0, 1.0], [0.0, -1.0]])).round(4)
    array([2.    , 0.6667])
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``F(x, v)``, shape ``(...)``: in closed form where Navigation is."""
        return self._seen.norm(v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``G*(p) - p(x)``, ``G`` the body's metric, shape ``(...)``."""
        return self._seen.dual_norm(p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0."""
        return self._seen.legendre_inverse(p)

    def dual(self) -> FinslerMetric:
        """Return the dual metric: of the closed form's own kind where there is one."""
        return self._seen.dual()

    def reverse(self) -> Navigation:
        """Return the reversed metric."""
        return self._seen.reverse()

    def symmetrize(self) -> "Hilbert":
        """Return Hilbert's metric at the same points."""
        return Hilbert(self.body, self.x, validate=False)

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``M`` and ``omega`` if the body is an ellipsoid, None otherwise."""
        return self._seen.randers_form(like)

    def distance(self, y: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the distances from ``x`` to points ``y``, along straight lines, shape ``(...)``.

        They are ``-log(1 - F(x, y - x))``: infinity from the rim on.
        """
        check_vectors("y", y, self.dim, self.x)
        return _outwards(norm_off_zero(self.norm, y - self.x))


@final
class Hilbert(_BodyMetric):
    """Hilbert's metric at points of a convex body, ``(F(x, v) + F(x, -v)) / 2`` of Funk's ``F``.

    Symmetric, with straight lines as geodesics. In a ball, and so in every ellipsoid, it is Klein's
    model of hyperbolic geometry, Riemannian with curvature -1; a triangle becomes isometric to a
    normed plane. ``FunctionMetric(lambda x: Hilbert(body, x))`` is the metric field.

    Parameters
    ----------
    body : FinslerMetric
        The metric whose unit ball is the body: :class:`Euclidean` for the disc,
        :class:`Polytope` for a convex polygon.
    x : array, shape (..., d)
        Points inside the body. Their batch and that of the body broadcast.
    validate : bool
        Whether to check that they are inside.

    Raises
    ------
    TypeError
        If ``x`` is no array of real floats.
    ValueError
        If the shapes do not fit, or a point is not inside; the message names the first.

    Notes
    -----
    Hilbert, letter to Klein (Math. Ann. 46, 1895), on the straight line as the shortest way.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Euclidean, Hilbert
    >>> metric = Hilbert(Euclidean(), np.array([0.0, 0.5]))
    >>> metric.norm(np.array([[0.0, 1.0], [1.0, 0.0]])).round(4)
    array([1.3333, 1.1547])
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``(F(x, v) + F(x, -v)) / 2``, shape ``(...)``."""
        return (self._seen.norm(v) + self._seen.norm(-v)) / 2

    def reverse(self) -> "Hilbert":
        """Return the metric itself: it is symmetric."""
        return self

    def symmetrize(self) -> "Hilbert":
        """Return the metric itself: it is symmetric."""
        return self

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``M``, and None for the one-form, if the body is an ellipsoid, None otherwise."""
        form = self._seen.randers_form(like)
        return None if form is None else RandersForm(form.M, None)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms of covectors, shape ``(...)``.

        In closed form for ellipsoids and polytopes: where the body's facets, seen from ``x``, are
        ``a_f``, the dual ball is the hull of all ``(a_f - a_g) / 2``.
        """
        check_vectors("p", p, self.dim, self.x)
        seen = self._seen.closed_form()
        if isinstance(seen, Polytope):
            a = seen.facets
            differences = (a[..., :, None, :] - a[..., None, :, :]) / 2
            shape = (*a.shape[:-2], a.shape[-2] ** 2, self.dim)
            return Polytope(namespace(a).reshape(differences, shape)).norm(p)
        if seen is not None:
            return seen.symmetrize().dual_norm(p)
        return FinslerMetric.dual_norm(self, p)

    def distance(self, y: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the distances from ``x`` to points ``y``, along straight lines, shape ``(...)``.

        Half the logarithm of the cross-ratio of ``x``, ``y`` and the two ends of the chord through
        them: ``(log(1 + F(x, x - y)) - log(1 - F(x, y - x))) / 2``.
        """
        check_vectors("y", y, self.dim, self.x)
        there = norm_off_zero(self._seen.norm, y - self.x)
        back = norm_off_zero(self._seen.norm, self.x - y)
        return (namespace(y).log1p(back) + _outwards(there)) / 2


def _outwards(length: Array) -> Array:
    """Return ``-log(1 - length)``, infinity where the length is 1 or more."""
    xp = namespace(length)
    inside = length < 1
    logarithm = -xp.log1p(-xp.where(inside, length, xp.zeros_like(length)))
    return xp.where(inside, logarithm, xp.full_like(length, float("inf")))
