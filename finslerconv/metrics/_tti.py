"""The metric of P waves in tilted transversely isotropic rock."""

from typing import Any, final

from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    check_floating,
    check_vectors,
    constant_like,
    first_index,
    has_values,
    namespace,
    safe_sqrt,
)
from finslerconv._linalg import batch_index, dot
from finslerconv._norms import norm_off_zero
from finslerconv.metrics._base import FinslerMetric
from finslerconv.metrics._combinators import batch_shapes, gradient_of_dual
from finslerconv.metrics._one_form import check_all
from finslerconv.metrics._revolution import dual_of_revolution, profile_values

_PARAMETERS = ("vp", "vs", "epsilon", "delta")


@final
class TTI(FinslerMetric):
    r"""The travel times of P waves in tilted transversely isotropic rock (TTI).

    Such rock is layered, and so has an axis of symmetry, across the layers; tilted, since the axis
    has any direction. Its **dual** norm has a closed form, the eikonal equation ``F*(p) = 1``: the
    covectors of norm 1 are the phase slownesses ``n / V(n)``. The unit ball of ``F`` is the
    group-velocity surface, where a wavefront is after one second. It is a wavefront of P waves
    alone (strictly, quasi-P). Symmetric: ``F(-v) = F(v)``. Immutable by convention.

    Parameters
    ----------
    vp : float or array, shape (...)
        P velocity along the axis, in pixels per unit of time.
    vs : float or array, shape (...)
        S velocity along the axis, ``0 <= vs < vp``. It matters little; 0 is the acoustic
        approximation.
    epsilon, delta : float or array, shape (...)
        Thomsen's parameters. ``1 + 2 epsilon`` is the square of the ratio of the P velocities
        across and along the axis; ``delta`` is the curvature of the wavefront on the axis.
    axis : array, shape (..., d)
        Directions of the axis of symmetry, of any length but zero; in the plane, that of the
        section through the axis. All batches broadcast.
    validate : bool
        Whether to check the values.

    Raises
    ------
    TypeError
        If ``axis`` is no array of real floats, or another argument neither a number nor an array.
    ValueError
        If the shapes do not fit, a velocity, a parameter or an axis is not what is said above, or
        the phase slownesses do not bound a convex body, so that there is no norm; the message names
        the first.

    Notes
    -----
    With ``f = 1 - vs^2 / vp^2`` and the angle :math:`\theta` from the axis, the phase velocity is

    .. math:: \frac{V^2(\theta)}{v_p^2} = 1 + \epsilon \sin^2\theta - \frac f2 + \frac f2
        \sqrt{\Big(1 + \frac{2 \epsilon \sin^2\theta}{f}\Big)^2
        - \frac{2 (\epsilon - \delta) \sin^2 2\theta}{f}}

    exactly (Tsvankin, "P-wave signatures and notation for transversely isotropic media", Geophysics
    1996, equation 10; Thomsen, "Weak elastic anisotropy", Geophysics 1986). In elastic moduli
    ``vp^2 = c33 / rho``, ``vs^2 = c55 / rho``, ``epsilon = (c11 - c33) / (2 c33)`` and
    ``delta = ((c13 + c55)^2 - (c33 - c55)^2) / (2 c33 (c33 - c55))``: :meth:`from_stiffness`. The
    slowness surface of P waves is the innermost sheet of three, and so convex whenever the moduli
    are those of a stable solid and it does not touch the next (Musgrave, "Crystal Acoustics",
    1970). Those of S waves need not be: their wavefronts fold, and are no unit balls.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import TTI
    >>> shale = TTI(3.0, 1.5, 0.25, 0.1, axis=np.array([1.0, 0.0]))  # layers lie flat
    >>> shale.norm(np.array([[3.0, 0.0], [0.0, 3.0]])).round(4)  # down, and along the layers
    array([1.    , 0.8165])
    """

    def __init__(
        self,
        vp: float | Float[Array, "*#batch"],
        vs: float | Float[Array, "*#batch"],
        epsilon: float | Float[Array, "*#batch"],
        delta: float | Float[Array, "*#batch"],
        axis: Float[Array, "*#batch d"],
        *,
        validate: bool = True,
    ) -> None:
        check_floating(axis=axis)
        if axis.ndim == 0 or axis.shape[-1] < 2:
            raise ValueError(
                "axis: expected vectors of at least 2 components on the last axis, shape (..., d), "
                f"got shape {tuple(axis.shape)}"
            )
        values: dict[str, Any] = {"vp": vp, "vs": vs, "epsilon": epsilon, "delta": delta}
        for name, value in values.items():
            values[name] = (
                constant_like(float(value), axis) if isinstance(value, int | float) else value
            )
        check_floating(**values, axis=axis)
        self.vp, self.vs = values["vp"], values["vs"]
        self.epsilon, self.delta = values["epsilon"], values["delta"]
        self.axis = axis
        shapes = [tuple(value.shape) for value in values.values()]
        names = ", ".join((*_PARAMETERS, "axis"))
        self._batch_shape = batch_shapes(names, *shapes, tuple(axis.shape[:-1]))
        if validate:
            self.validate()

    @classmethod
    def from_stiffness(
        cls,
        c11: float | Float[Array, "*#batch"],
        c33: float | Float[Array, "*#batch"],
        c13: float | Float[Array, "*#batch"],
        c55: float | Float[Array, "*#batch"],
        axis: Float[Array, "*#batch d"],
        *,
        validate: bool = True,
    ) -> "TTI":
        """Return the metric of elastic moduli, divided by the density.

        Parameters
        ----------
        c11, c33, c13, c55 : float or array, shape (...)
            In Voigt's notation, 3 the axis; in pixels^2 per unit of time^2. ``c66`` plays no part.
        axis : array, shape (..., d)
            Directions of the axis of symmetry.
        validate : bool
            Whether to check the values.
        """
        delta = ((c13 + c55) ** 2 - (c33 - c55) ** 2) / (2 * c33 * (c33 - c55))
        return cls(c33**0.5, c55**0.5, (c11 - c33) / (2 * c33), delta, axis, validate=validate)

    def __repr__(self) -> str:
        return f"TTI(dim={self.dim}, batch_shape={self.batch_shape}, dtype={self.axis.dtype})"

    def __getitem__(self, index: Any) -> "TTI":
        """Return the metrics at an index of the batch, such as one pixel of a field."""
        xp = namespace(self.axis)
        index = batch_index(index)
        vp, vs, epsilon, delta = (
            xp.broadcast_to(getattr(self, name), self.batch_shape)[index] for name in _PARAMETERS
        )
        axis = xp.broadcast_to(self.axis, (*self.batch_shape, self.dim))
        return TTI(vp, vs, epsilon, delta, axis[(*index, slice(None))], validate=False)

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.axis.shape[-1]

    @property
    def like(self) -> Array:
        """The axes: vectors are made in their kind, dtype and device."""
        return self.axis

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self._batch_shape

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the travel times ``F(v)``, shape ``(...)``.

        The largest ``p(v)`` over the slownesses ``p`` in the plane of ``v`` and the axis, found by
        golden section; derivatives in ``v`` and all parameters are right to every order of use.
        """
        check_vectors("v", v, self.dim, self.axis)
        return norm_off_zero(self._travel_time, v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``|p| V(p / |p|)`` of covectors ``p``, shape ``(...)``.

        The eikonal equation of a wavefront ``T`` is ``F*(dT) = 1``.
        """
        check_vectors("p", p, self.dim, self.axis)
        along = dot(self.axis, p) ** 2 / dot(self.axis, self.axis)
        return self._phase(along, dot(p, p))

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the vectors whose Legendre transforms are the covectors ``p``; 0 for 0."""
        return gradient_of_dual(self, p)

    def phase_velocity(self, n: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the phase velocities along directions ``n`` of any length, shape ``(...)``."""
        return self.dual_norm(n) / safe_sqrt(dot(n, n))

    def reverse(self) -> "TTI":
        """Return the metric itself: it is symmetric."""
        return self

    def symmetrize(self) -> "TTI":
        """Return the metric itself: it is symmetric."""
        return self

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return 1 everywhere, shape ``(*batch)``."""
        xp = namespace(self.axis)
        return xp.broadcast_to(xp.ones_like(self.axis[..., 0]), self.batch_shape)

    def validate(self) -> None:
        """Check velocities, parameters and axes, and that the slownesses bound a convex body.

        Raises
        ------
        ValueError
            It names the first at which they do not.
        """
        xp = namespace(self.axis)
        check_all("vp", (self.vp > 0) & xp.isfinite(self.vp), self.vp, "positive finite numbers")
        check_all("vs", (self.vs >= 0) & (self.vs < self.vp), self.vs + 0 * self.vp, "0 <= vs < vp")
        across = 1 + 2 * self.epsilon
        check_all("epsilon", across > 0, self.epsilon, "a number above -1/2")
        # (c13 + c55)^2 is not negative.
        bound = self.vs**2 / self.vp**2 - 1
        least = 2 * self.delta - bound
        check_all("delta", least >= 0, self.delta + 0 * least, "delta >= (vs^2 / vp^2 - 1) / 2")
        length = dot(self.axis, self.axis)
        check_all("axis", (length > 0) & xp.isfinite(length), length, "vectors of length > 0")
        if not has_values(self.axis):
            return
        ones = xp.ones_like(xp.broadcast_to(length, self.batch_shape))
        values, convexity, s = profile_values(lambda s: self._phase(s * s, xp.ones_like(s)), ones)
        tolerance = 16 * float(xp.finfo(ones.dtype).eps) * xp.max(xp.abs(values), axis=0)
        bad = ~((values > 0) & (convexity > -2e3 * tolerance))
        if bool(xp.any(bad)):
            sample, *index = first_index(bad)
            where = f" at index {tuple(index)}" if index else ""
            raise ValueError(
                "epsilon, delta: expected a convex slowness surface, V + V'' > 0, which fails at "
                f"cos(theta) = {float(s[(sample, *index)]):.6g}{where}"
            )

    def _phase(self, along: Array, square: Array) -> Array:
        """Return ``|p| V`` from the square of the part of ``p`` along the axis, and ``|p|^2``."""
        vp2 = self.vp**2
        f = 1 - self.vs**2 / vp2
        across = square - along
        first = f * square + 2 * self.epsilon * across
        root = safe_sqrt(first**2 - 8 * f * (self.epsilon - self.delta) * along * across)
        return safe_sqrt(vp2 * ((1 - f / 2) * square + self.epsilon * across + root / 2))

    def _travel_time(self, v: Array) -> Array:
        length = safe_sqrt(dot(v, v))
        size = safe_sqrt(dot(self.axis, self.axis))
        along = dot(self.axis, v) / (size * length)
        xp = namespace(v)
        if self.dim == 2:
            # With its sign, so that nothing is singular on the axis.
            across = (self.axis[..., 0] * v[..., 1] - self.axis[..., 1] * v[..., 0]) / (
                size * length
            )
        else:
            across = safe_sqrt(1 - along**2)

        def profile(s: Array) -> Array:
            return self._phase(s * s, xp.ones_like(s))

        return length * dual_of_revolution(profile, along, across)
