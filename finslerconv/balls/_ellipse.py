"""The ellipse that is the unit ball of a Randers metric in the plane, in closed form."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from finslerconv._arrays import Array, check_vectors, constant_like, namespace, safe_sqrt
from finslerconv._linalg import det, dot, inverse, matvec, spd_sqrt
from finslerconv.metrics import FinslerMetric


@dataclass(frozen=True, eq=False, repr=False)
class Ellipse:
    """The ellipse ``(v - centre)' shape^{-1} (v - centre) <= 1``, or a field of them.

    Parameters
    ----------
    centre : array, shape (..., 2)
        In array-axis order (down, right), in pixels.
    shape : array, shape (..., 2, 2)
        Symmetric positive definite matrices, in pixels^2: the squares of the half-axes are
        their eigenvalues.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import Ellipse
    >>> from finslerconv.metrics import Randers
    >>> ellipse = Ellipse.of(Randers(np.eye(2), np.array([0.0, 0.6])))
    >>> ellipse.centre, ellipse.axes
    (array([-0.    , -0.9375]), array([1.5625, 1.25  ]))
    """

    centre: Float[Array, "*batch 2"]
    shape: Float[Array, "*batch 2 2"]

    def __repr__(self) -> str:
        batch = tuple(self.shape.shape[:-2])
        if batch:
            return f"Ellipse(batch_shape={batch}, dtype={self.shape.dtype})"
        return f"Ellipse(centre={self.centre!r}, shape={self.shape!r})"

    @classmethod
    def of(cls, metric: FinslerMetric) -> "Ellipse":
        """Return the unit ball of a planar Randers, Riemannian or Euclidean metric.

        Of a Randers metric, the centre is the wind ``W`` and the matrix ``h^{-1}`` of its Zermelo
        data, which are the one-form and the matrix of the dual metric.

        Raises
        ------
        TypeError
            If the metric is of another kind: its ball is no ellipse.
        ValueError
            If it is not two-dimensional.
        """
        if metric.dim != 2:
            raise ValueError(f"metric: expected a planar metric (dim 2), got dim {metric.dim}")
        form = metric.randers_form()
        if form is None:
            raise TypeError(
                f"metric: the ball of {type(metric).__name__} is no ellipse in closed form; "
                "metric.indicatrix gives its boundary"
            )
        shape, centre = form.dual()
        xp = namespace(shape)
        if centre is None:
            return cls(xp.zeros_like(shape[..., 0]), shape)
        batch = metric.batch_shape
        return cls(xp.broadcast_to(centre, (*batch, 2)), xp.broadcast_to(shape, (*batch, 2, 2)))

    @property
    def axes(self) -> Float[Array, "*batch 2"]:
        """The half-axes, the larger first, in pixels."""
        xp = namespace(self.shape)
        mean = (self.shape[..., 0, 0] + self.shape[..., 1, 1]) / 2
        half_difference = (self.shape[..., 0, 0] - self.shape[..., 1, 1]) / 2
        large = mean + safe_sqrt(half_difference**2 + self.shape[..., 0, 1] ** 2)
        # The product of the eigenvalues is the determinant: no cancellation in the smaller.
        return safe_sqrt(xp.stack((large, det(self.shape) / large), axis=-1))

    @property
    def angle(self) -> Float[Array, "*batch"]:
        """The direction of the large axis, ``(sin angle, cos angle)``, in (-pi/2, pi/2] radians.

        Measured from the columns' direction (right) towards the rows' (down); 0 for a circle.
        """
        xp = namespace(self.shape)
        sine, cosine = 2 * self.shape[..., 0, 1], self.shape[..., 1, 1] - self.shape[..., 0, 0]
        circle = (sine == 0) & (cosine == 0)
        # Adding 0 turns -0 into 0, for which atan2 is pi, not -pi, on the negative axis.
        return xp.atan2(sine + 0.0, xp.where(circle, xp.ones_like(cosine), cosine)) / 2

    @property
    def area(self) -> Float[Array, "*batch"]:
        """The area, ``pi / (lambda^{3/2} sqrt(det M))`` of a Randers metric, in pixels^2."""
        return math.pi * safe_sqrt(det(self.shape))

    def support(self, p: Float[Array, "*_ 2"]) -> Float[Array, "..."]:
        """Return the support function ``max {p(v) : v in the ellipse}``: the dual norm.

        Parameters
        ----------
        p : array, shape (..., 2)
            Covectors; their batch broadcasts against the ellipse's.
        """
        check_vectors("p", p, 2, self.shape)
        return dot(p, self.centre) + safe_sqrt(dot(p, matvec(self.shape, p)))

    def boundary(self, n: int = 64) -> Float[Array, "{n} *batch 2"]:
        """Return ``n`` points around the boundary, shape ``(n, *batch, 2)``.

        They start in the columns' direction (right) and turn towards the rows' (down); equal steps
        bound sectors of equal area as seen from the centre.
        """
        if n < 1:
            raise ValueError(f"n: expected a positive number of points, got {n}")
        angles = 2 * math.pi * np.arange(n) / n
        circle = np.stack((np.sin(angles), np.cos(angles)), axis=-1)
        circle = circle.reshape((n,) + (1,) * (self.centre.ndim - 1) + (2,))
        points = constant_like(circle, self.shape)
        return self.centre + matvec(spd_sqrt(self.shape), points)

    def contains(self, v: Float[Array, "*_ 2"]) -> Bool[Array, "..."]:
        """Return whether the vectors lie in the ellipse, boundary included, shape ``(...)``."""
        check_vectors("v", v, 2, self.shape)
        offset = v - self.centre
        return dot(offset, matvec(inverse(self.shape), offset)) <= 1
