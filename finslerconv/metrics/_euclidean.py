"""The Euclidean metric."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float

from finslerconv._arrays import Array, check_vectors, constant_like, identity_like, safe_sqrt
from finslerconv._linalg import dot
from finslerconv.metrics._base import FinslerMetric, RandersForm


@final
@dataclass(frozen=True)
class Euclidean(FinslerMetric):
    """The Euclidean metric ``F(v) = |v|``.

    Parameters
    ----------
    d : int
        Dimension of the space, at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> float(Euclidean().norm(np.array([3.0, 4.0])))
    5.0
    """

    d: int = 2

    def __post_init__(self) -> None:
        if self.d < 1:
            raise ValueError(f"d: expected a dimension of at least 1, got {self.d}")

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.d

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``|v|``, shape ``(...)``; the derivative at 0 is taken as 0."""
        check_vectors("v", v, self.d)
        return safe_sqrt(dot(v, v))

    def energy(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the energies ``|v|^2 / 2``, shape ``(...)``: smooth, at 0 too."""
        check_vectors("v", v, self.d)
        return dot(v, v) / 2

    def unit_ball(self, points: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the points themselves."""
        check_vectors("points", points, self.d)
        return points

    def randers_form(self, like: Array | None = None) -> RandersForm:
        """Return the identity matrix, of the kind of ``like`` if that is given."""
        return RandersForm(identity_like(self.d, self.like if like is None else like), None)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``|p|``: the metric is its own dual."""
        return self.norm(p)

    def dual(self) -> "Euclidean":
        """Return the metric itself."""
        return self

    def reverse(self) -> "Euclidean":
        """Return the metric itself."""
        return self

    def symmetrize(self) -> "Euclidean":
        """Return the metric itself."""
        return self

    def asymmetry_ratio(self) -> Float[Array, ""]:
        """Return 1."""
        return constant_like(1.0, self.like)

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return the identity matrix for every ``v``, shape ``(..., d, d)``."""
        xp = check_vectors("v", v, self.d)
        return identity_like(self.d, v) + xp.zeros_like(v)[..., None]

    def validate(self) -> None:
        """Do nothing: the metric is always valid."""
