"""Riemannian metrics: a positive definite matrix at every point."""

from typing import Any, final

from jaxtyping import Float

from finslerconv._arrays import Array, check_matrices, check_vectors, namespace, safe_sqrt
from finslerconv._linalg import batch_index, check_spd, dot, inverse, matvec, solve
from finslerconv.metrics._base import FinslerMetric, RandersForm


@final
class Riemannian(FinslerMetric):
    """The Riemannian metric ``F(v) = sqrt(v' M v)``.

    Its unit ball is an ellipse centred at the origin; the half-axes are the eigenvectors of
    ``M``, of lengths one over the square roots of its eigenvalues. Immutable by convention.

    Parameters
    ----------
    M : array, shape (..., d, d)
        Symmetric positive definite matrices, in 1 / pixels^2.
    validate : bool
        Whether to check that they are (one pass over the data; on a GPU it waits for them).

    Raises
    ------
    TypeError
        If ``M`` is no array of real floats.
    ValueError
        If a matrix is not square, symmetric, finite or positive definite; the message names
        the first.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Riemannian
    >>> metric = Riemannian(np.diag([1.0, 0.25]))
    >>> metric.indicatrix(np.array([0.0, 1.0]))
    array([0., 2.])
    """

    def __init__(self, M: Float[Array, "*batch d d"], *, validate: bool = True) -> None:
        check_matrices("M", M)
        self.M = M
        if validate:
            self.validate()

    def __repr__(self) -> str:
        return f"Riemannian(dim={self.dim}, batch_shape={self.batch_shape}, dtype={self.M.dtype})"

    def __getitem__(self, index: Any) -> "Riemannian":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        index = batch_index(index)
        return Riemannian(self.M[(*index, slice(None), slice(None))], validate=False)

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.M.shape[-1]

    @property
    def like(self) -> Array:
        """The matrices ``M``: vectors are made in their kind, dtype and device."""
        return self.M

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return tuple(self.M.shape[:-2])

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``sqrt(v' M v)``, shape ``(...)``; the derivative at 0 is 0."""
        check_vectors("v", v, self.dim, self.M)
        return safe_sqrt(dot(v, matvec(self.M, v)))

    def energy(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the energies ``v' M v / 2``, shape ``(...)``: smooth, at 0 too."""
        check_vectors("v", v, self.dim, self.M)
        return dot(v, matvec(self.M, v)) / 2

    def randers_form(self, like: Array | None = None) -> RandersForm:
        """Return ``M``, and None for the one-form."""
        return RandersForm(self.M, None)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``sqrt(p' M^-1 p)`` of covectors, shape ``(...)``."""
        check_vectors("p", p, self.dim, self.M)
        return safe_sqrt(dot(p, solve(self.M, p)))

    def dual(self) -> "Riemannian":
        """Return the dual metric, of the matrices ``M^-1``."""
        return Riemannian(inverse(self.M), validate=False)

    def reverse(self) -> "Riemannian":
        """Return the metric itself: it is symmetric."""
        return self

    def symmetrize(self) -> "Riemannian":
        """Return the metric itself: it is symmetric."""
        return self

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return 1 everywhere, shape ``(*batch)``."""
        return namespace(self.M).ones_like(self.M[..., 0, 0])

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return ``M`` for every ``v``, shape ``(..., d, d)``."""
        xp = check_vectors("v", v, self.dim, self.M)
        return self.M + xp.zeros_like(v)[..., None]

    def validate(self) -> None:
        """Check that every matrix is symmetric positive definite.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        check_spd("M", self.M)
