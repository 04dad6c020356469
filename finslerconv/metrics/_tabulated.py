"""Norms of the plane that are known along some directions only."""

import math
from typing import Any, final

import numpy as np
from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    as_integer,
    check_floating,
    check_vectors,
    constant_like,
    first_index,
    has_values,
    namespace,
    no_gradient,
)
from finslerconv._linalg import batch_index
from finslerconv._norms import norm_off_zero
from finslerconv._sphere import over_batch, quadrature
from finslerconv._tables import deficits, second_differences
from finslerconv.metrics._base import FinslerMetric


@final
class Tabulated(FinslerMetric):
    r"""The norm of the plane with given values along equispaced directions.

    It has the given values there, and is convex and smooth in between: for a norm that is measured,
    or that comes as a function which is slow or cannot be compiled. Immutable by convention.

    Parameters
    ----------
    samples : array, shape (..., n)
        The lengths of the unit vectors ``(cos t, sin t)``, ``t = 2 pi k / n``, n at least 8.
    validate : bool
        Whether to check the values (one pass over the data; on a GPU it waits for them).

    Raises
    ------
    TypeError
        If ``samples`` is no array of real floats.
    ValueError
        If there are fewer than 8 directions, or the samples are those of no norm: not finite and
        positive, or not convex; the message names the first.

    Notes
    -----
    Samples ``h_k`` along ``u_k`` are those of a convex norm exactly if ``m_k = h_(k-1) + h_(k+1) -
    2 cos(2 pi / n) h_k >= 0``. The dual ball then is inside the polygon of the sides ``<p, u_k> <=
    h_k``, of edges as long as ``m_k / sin(2 pi / n)``, and touches each; here it is bounded by one
    arc of a parabola from each side to the next. Where an edge is touched follows from five
    samples, exactly for trigonometric polynomials of degree 2, but no nearer to its ends than an
    eighth of it. So the derivatives are continuous but for corners of the samples themselves, where
    ``m_k = 0``. Between the directions the error is of the order of ``n^-4`` where the norm is
    smooth: for the Euclidean norm 1.2e-5 with n = 32, 8e-7 with 64. A norm ten times longer one way
    than the other takes about ten times the directions.

    Above the plane there is no such table; :class:`CallableMetric` takes a function.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Tabulated
    >>> angle = 2 * np.pi * np.arange(32) / 32
    >>> metric = Tabulated(1 + 0.5 * np.cos(angle))
    >>> metric.norm(np.array([[1.0, 0.0], [3.0, 4.0]])).round(3)
    array([1.5, 6.5])
    """

    def __init__(self, samples: Float[Array, "*batch n"], *, validate: bool = True) -> None:
        check_floating(samples=samples)
        if samples.ndim == 0 or samples.shape[-1] < 8:
            raise ValueError(
                "samples: expected the norms of at least 8 directions on the last axis, shape "
                f"(..., n), got shape {tuple(samples.shape)}"
            )
        self.samples = samples
        if validate:
            self.validate()

    @classmethod
    def of(cls, metric: FinslerMetric, n: int = 64, *, validate: bool = True) -> "Tabulated":
        """Return the table of a metric of the plane, with its gradients.

        Parameters
        ----------
        metric : FinslerMetric
            Of any kind, at a point or over a batch of points.
        n : int
            The number of directions, at least 8.

        Raises
        ------
        ValueError
            If the metric is not one of the plane.

        Examples
        --------
        >>> import numpy as np
        >>> from finslerconv.metrics import CallableMetric, Tabulated
        >>> taxicab = CallableMetric(lambda v: np.abs(v).sum(-1))
        >>> float(Tabulated.of(taxicab).norm(np.array([3.0, 4.0])).round(12))
        7.0
        """
        if metric.dim != 2:
            raise ValueError(
                f"metric: expected one of the plane, got one of dimension {metric.dim}; a table of "
                "directions is for the plane only"
            )
        n = as_integer("n", n, 8)
        directions = over_batch(quadrature(2, n)[0], metric.like, len(metric.batch_shape))
        norms = metric.norm(directions)
        return cls(namespace(norms).moveaxis(norms, 0, -1), validate=validate)

    def __repr__(self) -> str:
        return (
            f"Tabulated(directions={self.samples.shape[-1]}, batch_shape={self.batch_shape}, "
            f"dtype={self.samples.dtype})"
        )

    def __getitem__(self, index: Any) -> "Tabulated":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        return Tabulated(self.samples[(*batch_index(index), slice(None))], validate=False)

    @property
    def like(self) -> Array:
        """The samples: vectors are made in their kind, dtype and device."""
        return self.samples

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return tuple(self.samples.shape[:-1])

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths of ``v``, shape ``(...)``; at 0 the derivative is taken as 0."""
        check_vectors("v", v, 2, self.samples)
        return norm_off_zero(self._norm, v)

    def _norm(self, v: Array) -> Array:
        # In the cone of u_k and u_(k+1), of coordinates v = a u_k + b u_(k+1), the norm is
        # h_k a + h_(k+1) b - D with the parallel sum D = 1 / (1 / (B a) + 1 / (A b)). D is concave
        # for all A, B >= 0, so the norm is convex in the cone. Along u_k its derivatives are those
        # of <p, .> with the point p where the dual ball touches the k-th side, in both cones that
        # meet there: a function with continuous derivatives that is convex in every cone is convex.
        # Where m_k = 0 both cones have D = 0 and meet in the corner of the samples.
        xp = namespace(v)
        n = self.samples.shape[-1]
        step = 2 * math.pi / n
        after, before = deficits(self.samples)
        with no_gradient():
            k = xp.astype(xp.floor(xp.atan2(v[..., 1], v[..., 0]) / step), xp.int64) % n
            k = k + xp.zeros(self.batch_shape, dtype=k.dtype, device=getattr(k, "device", None))
            start = xp.reshape(
                xp.arange(math.prod(self.batch_shape), device=getattr(k, "device", None)) * n,
                self.batch_shape,
            )

        def at(values: Array, k: Array) -> Array:
            flat = xp.take(xp.reshape(values, (-1,)), xp.reshape(k, (-1,)))
            return xp.reshape(flat, k.shape)

        directions = constant_like(quadrature(2, n)[0], v)
        following = (k + 1) % n
        (c0, s0), (c1, s1) = (
            (at(directions[:, 0], j), at(directions[:, 1], j)) for j in (k, following)
        )
        a = (v[..., 0] * s1 - v[..., 1] * c1) / math.sin(step)
        b = (v[..., 1] * c0 - v[..., 0] * s0) / math.sin(step)
        here = start + k
        A, B = at(after, here), at(before, here)
        whole = B * a + A * b
        deficit = A * B * a * b / xp.where(whole > 0, whole, xp.ones_like(whole))
        return at(self.samples, here) * a + at(self.samples, start + following) * b - deficit

    def validate(self) -> None:
        """Check that the samples are finite, positive and convex, and the norm between them too.

        Raises
        ------
        ValueError
            It names the first that is not, by its index in the batch and its direction.
        """
        if not has_values(self.samples):
            return
        xp, h = namespace(self.samples), self.samples
        n = h.shape[-1]
        with no_gradient():
            _check(xp.isfinite(h) & (h > 0), h, "finite and positive")
            tolerance = 16 * float(xp.finfo(h.dtype).eps) * xp.max(h, axis=-1, keepdims=True)
            _check(second_differences(h) >= -tolerance, h, "convex")
            # Between samples that leave a norm of one sign undecided: four places in each cone.
            angles = 2 * math.pi * (np.arange(4 * n) / 4 + 0.125) / n
            between = np.stack((np.cos(angles), np.sin(angles)), -1)
            lengths = self.norm(over_batch(between, h, len(self.batch_shape)))
            lengths = xp.moveaxis(lengths, 0, -1)
            good = xp.all(xp.reshape(lengths > 0, (*self.batch_shape, n, 4)), axis=-1)
            _check(good, h, "dense enough for a norm that is positive in between")


def _check(good: Array, samples: Array, wanted: str) -> None:
    xp = namespace(good)
    if not bool(xp.all(good)):
        *index, k = where = first_index(~good)
        place = f" at index {tuple(index)}" if index else ""
        raise ValueError(
            f"samples: expected the norms of equispaced directions to be {wanted}, which fails at "
            f"direction {k} of {samples.shape[-1]}{place}, {float(samples[where]):.6g}"
        )
