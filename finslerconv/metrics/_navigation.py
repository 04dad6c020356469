"""Zermelo's navigation: any sea under a wind."""

import math
from typing import Any, final

from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    check_vectors,
    detached,
    namespace,
    no_gradient,
)
from finslerconv._linalg import batch_index, dot
from finslerconv._norms import norm_off_zero
from finslerconv.metrics._base import FinslerMetric, RandersForm
from finslerconv.metrics._combinators import batch_shapes, metric_at
from finslerconv.metrics._one_form import check_below
from finslerconv.metrics._polytope import Polytope
from finslerconv.metrics._randers import Randers


@final
class Navigation(FinslerMetric):
    """The travel times of a boat of unit speed on a sea that a wind carries along.

    The sea is any Finsler metric ``G``. In unit time the boat gets to the unit ball of ``G`` moved
    by the wind ``W``: that is the unit ball of this metric, ``F(v) <= 1`` where ``G(v - W) <= 1``.
    So ``F`` solves ``G(v / F(v) - W) = 1``, and its dual is ``F*(p) = G*(p) + p(W)``. The wind must
    be one against which the boat makes way, ``G(-W) < 1``. Immutable by convention.

    On a Riemannian or Randers sea it is the :class:`Randers` metric of the moved ellipse
    (:meth:`Randers.from_zermelo`), on a :class:`Polytope` the moved polytope, both in closed form.

    Parameters
    ----------
    sea : FinslerMetric
        The metric ``G``.
    wind : array, shape (..., d)
        The winds ``W``, in pixels per unit of time. Their batch and that of the sea broadcast.
    validate : bool
        Whether to check the winds.

    Raises
    ------
    TypeError
        If ``wind`` is no array of real floats.
    ValueError
        If the shapes do not fit, or a wind is too strong; the message names the first.

    Notes
    -----
    Zermelo, "Über das Navigationsproblem" (Z. Angew. Math. Mech. 11, 1931), on the plane; Shen,
    "Finsler metrics with K = 0 and S = 0" (Canad. J. Math. 2003), for any sea.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Navigation, PNorm
    >>> metric = Navigation(PNorm(4.0, np.ones(2)), np.array([0.0, 0.5]))
    >>> metric.norm(np.array([[0.0, 1.5], [0.0, -0.5]]))  # with the wind, and against it
    array([1., 1.])
    """

    def __init__(
        self, sea: FinslerMetric, wind: Float[Array, "*batch d"], *, validate: bool = True
    ) -> None:
        check_vectors("wind", wind, sea.dim)
        self.sea = sea
        self.wind = wind
        self._batch_shape = batch_shapes("wind", sea.batch_shape, tuple(wind.shape[:-1]))
        if validate:
            self.check_wind("wind", "F(-wind)")

    def __repr__(self) -> str:
        return f"Navigation({self.sea!r}, wind=<{tuple(self.wind.shape)}>)"

    def __getitem__(self, index: Any) -> "Navigation":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        wind = namespace(self.wind).broadcast_to(self.wind, (*self.batch_shape, self.dim))
        return Navigation(
            metric_at(self.sea, index, self.batch_shape),
            wind[(*batch_index(index), slice(None))],
            validate=False,
        )

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.sea.dim

    @property
    def like(self) -> Array:
        """The winds: vectors are made in their kind, dtype and device."""
        return self.wind

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self._batch_shape

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the travel times ``F(v)``, shape ``(...)``.

        Without a closed form, by bisection; derivatives up to the third are right where those of
        the sea's norm are.
        """
        check_vectors("v", v, self.dim, self.wind)
        closed = self.closed_form()
        if closed is not None:
            return closed.norm(v)
        return norm_off_zero(self._travel_time, v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``G*(p) + p(W)`` of covectors ``p``, shape ``(...)``."""
        check_vectors("p", p, self.dim, self.wind)
        return self.sea.dual_norm(p) + dot(self.wind, p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0.

        They are ``F*(p) (w / G*(p) + W)``, with ``w`` the sea's own inverse transforms.
        """
        check_vectors("p", p, self.dim, self.wind)
        xp = namespace(p)
        calm = self.sea.dual_norm(p)
        scale = xp.where(calm > 0, calm, xp.ones_like(calm))[..., None]
        return self.dual_norm(p)[..., None] * (self.sea.legendre_inverse(p) / scale + self.wind)

    def dual(self) -> FinslerMetric:
        """Return the dual metric: of the closed form's own kind where there is one."""
        closed = self.closed_form()
        return FinslerMetric.dual(self) if closed is None else closed.dual()

    def reverse(self) -> "Navigation":
        """Return the reversed metric: the reversed sea, and the wind from the other side."""
        return Navigation(self.sea.reverse(), -self.wind, validate=False)

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``M`` and ``omega`` over a Riemannian or Randers sea, None over any other."""
        form = self.sea.randers_form(self.wind)
        if form is None:
            return None
        h, W = Randers(*form.with_omega(), validate=False).zermelo()
        return Randers.from_zermelo(h, W + self.wind, validate=False).randers_form()

    def validate(self) -> None:
        """Check the sea, and that every wind is weak enough, ``G(-W) < 1``.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        self.sea.validate()
        self.check_wind("wind", "F(-wind)")

    def check_wind(self, name: str, meaning: str) -> None:
        """Raise a ValueError that names the first wind that is too strong."""
        with no_gradient():
            against = norm_off_zero(self.sea.norm, -self.wind)
        check_below(name, against, 1, f"{meaning} of the sea")

    def closed_form(self) -> Randers | Polytope | None:
        """Return the same metric as one of closed form, or None if the sea has none."""
        form = self.randers_form()
        if form is not None:
            return Randers(*form.with_omega(), validate=False)
        return self.sea.moved(self.wind) if isinstance(self.sea, Polytope) else None

    def _travel_time(self, v: Array) -> Array:
        """Return the zeros of ``G(v - t W) - t``, a convex and decreasing function of ``t``."""
        xp = namespace(v)

        def lead(t: Array) -> Array:
            return norm_off_zero(self.sea.norm, v - t[..., None] * self.wind) - t

        with no_gradient():
            calm = self.sea.norm(v)
            low = calm / (1 + norm_off_zero(self.sea.norm, self.wind))
            high = calm / (1 - norm_off_zero(self.sea.norm, -self.wind))
            for _ in range(int(-math.log2(float(xp.finfo(v.dtype).eps)))):
                middle = xp.sqrt(low) * xp.sqrt(high)
                late = lead(middle) < 0
                low, high = xp.where(late, low, middle), xp.where(late, middle, high)
            t = detached(high)
            h = float(xp.finfo(v.dtype).eps) ** (1 / 3) * t
            slope = detached((lead(t + h) - lead(t - h)) / (2 * h))
        # Chord steps: every one gives one more derivative.
        for _ in range(4):
            t = t - lead(t) / slope
        return t
