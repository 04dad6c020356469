"""Asymmetric quadratic metrics: a Riemannian norm that costs more on one side."""

from typing import final

from jaxtyping import Float

from finslerconv._arrays import Array, check_nonzero, check_vectors, namespace, safe_sqrt
from finslerconv._linalg import check_spd, dot, inverse, matvec, outer
from finslerconv.metrics._one_form import OneFormMetric, check_all


@final
class AsymmetricQuadratic(OneFormMetric):
    """The metric ``F(v) = sqrt(v' M v + max(0, omega' v)^2)``, with any one-form ``omega``.

    Its unit ball is two half-ellipses that meet on the line ``omega' v = 0``: that of ``M`` where
    ``omega' v <= 0``, and that of ``M + omega omega'``, flatter, on the other side. With a long
    ``omega`` the ball is nearly a half-ellipse: motion along ``omega`` is almost forbidden.
    Immutable by convention.

    Parameters
    ----------
    M : array, shape (..., d, d)
        Symmetric positive definite matrices, in 1 / pixels^2.
    omega : array, shape (..., d)
        One-forms, in 1 / pixels, of any length. The batches of both broadcast.
    validate : bool
        Whether to check the values (one pass over the data; on a GPU it waits for them).

    Raises
    ------
    TypeError
        If an argument is no array of real floats.
    ValueError
        If the shapes do not fit, a matrix is not symmetric positive definite, or a one-form not
        finite; the message names the first.

    Notes
    -----
    The metric is the model ``AsymmetricQuadratic`` of Mirebeau's HamiltonFastMarching; Duits,
    Meesters, Mirebeau, Portegies, "Optimal paths for variants of the 2D and 3D Reeds-Shepp car
    with applications in image analysis" (JMIV 2018), use it for cars without reverse gear.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import AsymmetricQuadratic
    >>> metric = AsymmetricQuadratic(np.eye(2), np.array([0.0, 0.75]))
    >>> metric.norm(np.array([[0.0, 1.0], [0.0, -1.0]]))
    array([1.25, 1.  ])
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``sqrt(v' M v + max(0, omega' v)^2)``, shape ``(...)``.

        At ``v = 0`` the derivative is taken as 0.
        """
        return safe_sqrt(2 * self.energy(v))

    def energy(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the energies ``F(v)^2 / 2``, shape ``(...)``: once differentiable at 0 too."""
        check_vectors("v", v, self.dim, self.M)
        return (dot(v, matvec(self.M, v)) + _positive(dot(self.omega, v)) ** 2) / 2

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms of covectors ``p``, shape ``(...)``: those of :meth:`dual`."""
        check_vectors("p", p, self.dim, self.M)
        return self.dual().norm(p)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0."""
        return self.dual().legendre(p)

    def dual(self) -> "AsymmetricQuadratic":
        """Return the dual metric, of the same kind.

        With ``a = M^-1 omega`` and ``b^2 = omega' a`` its matrix is ``(M + omega omega')^-1 =
        M^-1 - a a' / (1 + b^2)``, and its one-form ``-a / sqrt(1 + b^2)``.
        """
        M_inverse = inverse(self.M)
        a = matvec(M_inverse, self.omega)
        stretch = (1.0 + dot(self.omega, a))[..., None]
        form = -a / stretch**0.5
        # Of the sum, not the difference above: for a long omega nothing cancels.
        return self._of(inverse(self.M + outer(self.omega, self.omega)), form)

    def legendre(self, v: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the Legendre transforms ``M v + max(0, omega' v) omega``; 0 for 0."""
        check_vectors("v", v, self.dim, self.M)
        return matvec(self.M, v) + _positive(dot(self.omega, v))[..., None] * self.omega

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return the largest ``F(-v) / F(v)``, which is ``sqrt(1 + b^2)``, b = omega_norm()."""
        return (1 + self.omega_norm() ** 2) ** 0.5

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return ``M``, or ``M + omega omega'`` where ``omega' v > 0``, shape ``(..., d, d)``.

        Raises
        ------
        ValueError
            If a vector is zero: the limit there depends on the direction.
        """
        xp = check_vectors("v", v, self.dim, self.M)
        check_nonzero("v", v)
        costly = (dot(self.omega, v) > 0)[..., None, None]
        extra = outer(self.omega, self.omega)
        return self.M + xp.where(costly, extra, xp.zeros_like(extra))

    def validate(self) -> None:
        """Check that every ``M`` is positive definite and every ``omega`` finite.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        check_spd("M", self.M)
        xp = namespace(self.omega)
        check_all("omega", xp.isfinite(self.omega), self.omega, "finite one-forms")


def _positive(x: Array) -> Array:
    xp = namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x))
