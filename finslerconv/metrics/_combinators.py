"""Metrics made of metrics: scaled, reversed, symmetrised, dual, pulled back, sums and maxima."""

import math
import sys
from collections.abc import Callable
from typing import Any, final

import numpy as np
from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    check_floating,
    check_nonzero,
    check_vectors,
    constant_like,
    first_index,
    has_values,
    identity_like,
    namespace,
    safe_sqrt,
)
from finslerconv._linalg import batch_index, det, dot, inverse, matvec
from finslerconv._norms import norm_off_zero
from finslerconv.metrics._base import FinslerMetric, RandersForm
from finslerconv.metrics._euclidean import Euclidean
from finslerconv.metrics._one_form import check_all


@final
class Scaled(FinslerMetric):
    """The metric ``v -> c F(v)``, whose unit ball is that of ``F``, ``c`` times smaller.

    ``c * metric`` is short for it.

    Parameters
    ----------
    metric : FinslerMetric
        The metric ``F``.
    factor : float or array, shape (...)
        The positive factors ``c``. Their batch and that of the metric broadcast.
    validate : bool
        Whether to check the factors.

    Raises
    ------
    TypeError
        If ``factor`` is neither a number nor an array of real floats.
    ValueError
        If a factor is not positive and finite; the message names the first.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Euclidean
    >>> float((2.0 * Euclidean()).norm(np.array([3.0, 4.0])))
    10.0
    """

    def __init__(
        self,
        metric: FinslerMetric,
        factor: float | Float[Array, "*batch"],
        *,
        validate: bool = True,
    ) -> None:
        if not _is_scalar(factor):
            check_floating(factor=factor)
        self.metric = metric
        self.factor: Any = factor
        if validate:
            self._check_factor()

    def __repr__(self) -> str:
        factor = repr(self.factor) if _is_scalar(self.factor) else f"<{tuple(self.factor.shape)}>"
        return f"Scaled({self.metric!r}, {factor})"

    def __getitem__(self, index: Any) -> "Scaled":
        """Return the metrics at an index of the batch."""
        metric = metric_at(self.metric, index, self.batch_shape)
        factor = self.factor
        if not _is_scalar(factor):
            xp = namespace(factor)
            factor = xp.broadcast_to(factor, self.batch_shape)[batch_index(index)]
        return Scaled(metric, factor, validate=False)

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.metric.dim

    @property
    def like(self) -> Array:
        """An array of the kind, device and dtype in which the metric computes."""
        return _like(self.metric) if _is_scalar(self.factor) else self.factor

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return batch_shapes("factor", self.metric.batch_shape, getattr(self.factor, "shape", ()))

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``c F(v)``, shape ``(...)``."""
        return self.factor * norm_off_zero(self.metric.norm, v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``F*(p) / c``, shape ``(...)``."""
        return self.metric.dual_norm(p) / self.factor

    def dual(self) -> "Scaled":
        """Return the dual metric, the dual of ``F`` scaled by ``1 / c``."""
        return Scaled(self.metric.dual(), 1 / self.factor, validate=False)

    def reverse(self) -> "Scaled":
        """Return the reversed metric."""
        return Scaled(self.metric.reverse(), self.factor, validate=False)

    def symmetrize(self) -> "Scaled":
        """Return the symmetric metric."""
        return Scaled(self.metric.symmetrize(), self.factor, validate=False)

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``c^2 M`` and ``c omega`` if ``F`` is a Randers metric."""
        form = self.metric.randers_form(self.like if like is None else like)
        if form is None:
            return None
        c = self.factor if _is_scalar(self.factor) else self.factor[..., None]
        omega = None if form.omega is None else c * form.omega
        return RandersForm((c**2 if _is_scalar(c) else c[..., None] ** 2) * form.M, omega)

    def validate(self) -> None:
        """Check the metric, and that the factors are positive and finite.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        self.metric.validate()
        self._check_factor()

    def _check_factor(self) -> None:
        if _is_scalar(self.factor):
            if not 0 < self.factor < math.inf:
                raise ValueError(f"factor: expected a positive finite number, got {self.factor!r}")
        else:
            good = (self.factor > 0) & namespace(self.factor).isfinite(self.factor)
            check_all("factor", good, self.factor, "positive finite numbers")


class _OfOne(FinslerMetric):
    """What metrics made of one other, and nothing else, take from it."""

    def __init__(self, metric: FinslerMetric) -> None:
        self.metric = metric

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.metric!r})"

    def __getitem__(self, index: Any) -> FinslerMetric:
        """Return the metrics at an index of the batch."""
        return type(self)(metric_at(self.metric, index, self.batch_shape))

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.metric.dim

    @property
    def like(self) -> Array:
        """An array of the kind, device and dtype in which the metric computes."""
        return self.metric.like

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self.metric.batch_shape

    def validate(self) -> None:
        """Check the metric of which this one is made."""
        self.metric.validate()


@final
class Reversed(_OfOne):
    """The metric ``v -> F(-v)``; its unit ball is the point reflection of that of ``F``.

    :meth:`FinslerMetric.reverse` returns it for a metric that knows nothing better.

    Parameters
    ----------
    metric : FinslerMetric
        The metric ``F``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import AlphaBeta, Reversed
    >>> square = AlphaBeta(lambda s: (1 + s) ** 2, np.eye(2), np.array([0.0, 0.5]))
    >>> float(Reversed(square).norm(np.array([0.0, -1.0])))
    2.25
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``F(-v)``, shape ``(...)``."""
        return norm_off_zero(self.metric.norm, -v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``F*(-p)``, shape ``(...)``."""
        return self.metric.dual_norm(-p)

    def dual(self) -> FinslerMetric:
        """Return the reversed dual metric."""
        return self.metric.dual().reverse()

    def reverse(self) -> FinslerMetric:
        """Return the metric ``F``."""
        return self.metric

    def symmetrize(self) -> FinslerMetric:
        """Return the symmetric metric of ``F``."""
        return self.metric.symmetrize()

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return the largest ratio ``F(-v) / F(v)``: it is the same in both directions."""
        return self.metric.asymmetry_ratio()

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``M`` and ``-omega`` if ``F`` is a Randers metric."""
        form = self.metric.randers_form(like)
        if form is None or form.omega is None:
            return form
        return RandersForm(form.M, -form.omega)


@final
class Symmetrized(_OfOne):
    """The metric ``v -> (F(v) + F(-v)) / 2``, half of the cost there and back.

    :meth:`FinslerMetric.symmetrize` returns it for a metric that knows nothing better.

    Parameters
    ----------
    metric : FinslerMetric
        The metric ``F``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Matsumoto, Symmetrized
    >>> metric = Symmetrized(Matsumoto(np.eye(2), np.array([0.25, 0.0])))
    >>> metric.norm(np.array([[1.0, 0.0], [-1.0, 0.0]])).round(4)
    array([1.0667, 1.0667])
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``(F(v) + F(-v)) / 2``, shape ``(...)``."""
        there, back = (norm_off_zero(self.metric.norm, u) for u in (v, -v))
        return (there + back) / 2

    def reverse(self) -> "Symmetrized":
        """Return the metric itself: it is symmetric."""
        return self

    def symmetrize(self) -> "Symmetrized":
        """Return the metric itself: it is symmetric."""
        return self

    def asymmetry_ratio(self) -> Float[Array, "..."]:
        """Return 1 everywhere, shape ``(*batch)``."""
        return _ones(self)

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``M``, and None for the one-form, if ``F`` is a Randers metric."""
        form = self.metric.randers_form(like)
        return None if form is None else RandersForm(form.M, None)


@final
class Dual(_OfOne):
    """The dual metric ``F*(p) = max {p(v) : F(v) <= 1}``, on covectors; its dual is ``F``.

    :meth:`FinslerMetric.dual` returns it for a metric that knows nothing better.

    Parameters
    ----------
    metric : FinslerMetric
        The metric ``F``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import CallableMetric, Dual
    >>> taxicab = CallableMetric(lambda v: np.abs(v).sum(-1))
    >>> float(Dual(taxicab).norm(np.array([3.0, -4.0])).round(12))
    4.0
    >>> Dual(taxicab).dual() is taxicab
    True
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms ``F*(v)`` of covectors, shape ``(...)``."""
        return self.metric.dual_norm(v)

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``F(p)``, shape ``(...)``; 0 at 0, with derivative 0."""
        check_vectors("p", p, self.dim)
        return norm_off_zero(self.metric.norm, p)

    def dual(self) -> FinslerMetric:
        """Return the metric ``F``."""
        return self.metric

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return the dual form if ``F`` is a Randers metric."""
        form = self.metric.randers_form(like)
        return None if form is None else form.dual()

    def legendre(self, v: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the inverse Legendre transforms of ``F``; 0 for 0."""
        return self.metric.legendre_inverse(v)

    def legendre_inverse(self, p: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
        """Return the Legendre transforms of ``F``; 0 for 0."""
        return self.metric.legendre(p)

    def fundamental_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d"]:
        """Return the inverses of the fundamental tensors of ``F``, at the transforms of ``v``.

        Raises
        ------
        ValueError
            If a covector is zero.
        """
        check_vectors("v", v, self.dim)
        check_nonzero("v", v)
        return inverse(self.metric.fundamental_tensor(self.metric.legendre_inverse(v)))

    def cartan_tensor(self, v: Float[Array, "*_ d"]) -> Float[Array, "... d d d"]:
        """Return those of ``F`` at the transforms of ``v``, indices raised, with the other sign.

        Raises
        ------
        ValueError
            If a covector is zero.
        """
        check_vectors("v", v, self.dim)
        check_nonzero("v", v)
        xp = namespace(v)
        w = self.metric.legendre_inverse(v)
        raising = inverse(self.metric.fundamental_tensor(w))[..., None, :, :]
        tensor = -self.metric.cartan_tensor(w)
        for _ in range(3):  # raise the last index, and bring the next one there
            tensor = xp.moveaxis(xp.matmul(tensor, raising), -1, -3)
        return tensor


class _OfMany(FinslerMetric):
    """What metrics made of several others take from them."""

    def __init__(self, *metrics: FinslerMetric) -> None:
        if not metrics:
            raise ValueError(f"{type(self).__name__}: expected metrics, got none")
        for metric in metrics:
            if not isinstance(metric, FinslerMetric):
                raise TypeError(
                    f"{type(self).__name__}: expected metrics, got {type(metric).__name__}"
                )
        dims = [metric.dim for metric in metrics]
        if len(set(dims)) > 1:
            raise ValueError(
                f"{type(self).__name__}: expected metrics of one dimension, got {dims}"
            )
        self.metrics = metrics
        self._batch_shape = batch_shapes("metrics", *(metric.batch_shape for metric in metrics))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.metrics))})"

    def __getitem__(self, index: Any) -> FinslerMetric:
        """Return the metrics at an index of the batch."""
        return type(self)(*(metric_at(m, index, self.batch_shape) for m in self.metrics))

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.metrics[0].dim

    @property
    def like(self) -> Array:
        """An array of the kind, device and dtype in which the metric computes."""
        return _like(*self.metrics)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self._batch_shape

    def reverse(self) -> FinslerMetric:
        """Return the reversed metric, made of the reversed ones."""
        return type(self)(*(metric.reverse() for metric in self.metrics))

    def validate(self) -> None:
        """Check all metrics of which this one is made."""
        for metric in self.metrics:
            metric.validate()


@final
class Sum(_OfMany):
    r"""The metric ``v -> F_1(v) + F_2(v) + ...``. ``metric + other`` is short for it.

    The sum of **dual** metrics is the dual of the metric whose unit ball is the Minkowski sum
    ``B_1 + B_2 + ...``.

    Parameters
    ----------
    \*metrics : FinslerMetric
        At least one, of one dimension. Their batches broadcast.

    Raises
    ------
    ValueError
        If there is none, or the dimensions differ, or the batches do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Euclidean, PNorm
    >>> float((Euclidean() + PNorm(1.0, np.ones(2))).norm(np.array([3.0, -4.0])))
    12.0
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the sums of the lengths, shape ``(...)``."""
        total = norm_off_zero(self.metrics[0].norm, v)
        for metric in self.metrics[1:]:
            total = total + norm_off_zero(metric.norm, v)
        return total

    def symmetrize(self) -> "Sum":
        """Return the symmetric metric, the sum of the symmetric ones."""
        return Sum(*(metric.symmetrize() for metric in self.metrics))


@final
class Maximum(_OfMany):
    r"""The metric ``v -> max(F_1(v), F_2(v), ...)``; its unit ball is the intersection of theirs.

    Parameters
    ----------
    \*metrics : FinslerMetric
        At least one, of one dimension. Their batches broadcast.

    Raises
    ------
    ValueError
        If there is none, or the dimensions differ, or the batches do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import Euclidean, Maximum, PNorm
    >>> metric = Maximum(Euclidean(), PNorm(1.0, np.array([0.8, 0.8])))  # a disc, corners cut off
    >>> metric.norm(np.array([[1.0, 0.0], [1.0, 1.0]]))
    array([1. , 1.6])
    """

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the largest of the lengths, shape ``(...)``."""
        largest = norm_off_zero(self.metrics[0].norm, v)
        for metric in self.metrics[1:]:
            largest = namespace(v).maximum(largest, norm_off_zero(metric.norm, v))
        return largest


@final
class PulledBack(FinslerMetric):
    """The metric ``v -> F(A v)`` of a linear map ``A``; its unit ball is the preimage of that of F.

    With the derivative of a map ``f`` at a point as ``A``, and ``F`` the metric at the image of the
    point, it is the pullback ``f* F``, for which ``f`` is an isometry: :meth:`along`.

    Parameters
    ----------
    metric : FinslerMetric
        The metric ``F``, of dimension ``m``.
    A : array, shape (..., m, d)
        Injective matrices, ``d <= m``: coordinates of the same space (``d = m``), or of a subspace,
        such as the tangent plane of a surface. Their batch and that of the metric broadcast.
    validate : bool
        Whether to check that they are injective.

    Raises
    ------
    TypeError
        If ``A`` is no array of real floats.
    ValueError
        If the shapes do not fit, or a matrix is not finite or not injective; the message names the
        first.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.metrics import PNorm
    >>> turned = PNorm(1.0, np.ones(2)).pullback(np.array([[1.0, 1.0], [1.0, -1.0]]) / 2)
    >>> float(turned.norm(np.array([3.0, -4.0])))  # the maximum norm
    4.0
    """

    def __init__(
        self, metric: FinslerMetric, A: Float[Array, "*batch m d"], *, validate: bool = True
    ) -> None:
        check_floating(A=A)
        shape = tuple(A.shape)
        if A.ndim < 2 or shape[-2] != metric.dim or not 1 <= shape[-1] <= shape[-2]:
            raise ValueError(
                f"A: expected matrices of shape (..., {metric.dim}, d), d <= {metric.dim}, for a "
                f"metric of dimension {metric.dim}, got shape {shape}"
            )
        self.metric = metric
        self.A = A
        self._batch_shape = batch_shapes("A", metric.batch_shape, shape[:-2])
        if validate:
            self._check_injective()

    @classmethod
    def along(
        cls,
        metric: FinslerMetric,
        f: Callable[[Array], Array],
        x: Float[Array, "*batch d"],
        *,
        validate: bool = True,
    ) -> "PulledBack":
        """Return the pullback ``F_f(x)(Df_x v)`` by a map ``f`` at points ``x``.

        Parameters
        ----------
        metric : FinslerMetric
            The metric at the images: ``field.at(f(x))`` of a metric field.
        f : callable
            From points (..., d) to points (..., m). In PyTorch its derivative is exact and
            differentiable; for other arrays it is found by central differences, to ten digits.
        x : array, shape (..., d)
            The points.
        validate : bool
            Whether to check that the derivative is injective.
        """
        check_floating(x=x)
        return cls(metric, _jacobian(f, x), validate=validate)

    def __repr__(self) -> str:
        return f"PulledBack({self.metric!r}, A=<{tuple(self.A.shape)}>)"

    def __getitem__(self, index: Any) -> "PulledBack":
        """Return the metrics at an index of the batch."""
        xp = namespace(self.A)
        A = xp.broadcast_to(self.A, (*self.batch_shape, *self.A.shape[-2:]))
        return PulledBack(
            metric_at(self.metric, index, self.batch_shape),
            A[(*batch_index(index), slice(None), slice(None))],
            validate=False,
        )

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the tangent spaces."""
        return self.A.shape[-1]

    @property
    def like(self) -> Array:
        """The matrices ``A``: vectors are made in their kind, dtype and device."""
        return self.A

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field: ``()`` for a single metric."""
        return self._batch_shape

    def norm(self, v: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the lengths ``F(A v)``, shape ``(...)``."""
        check_vectors("v", v, self.dim, self.A)
        return norm_off_zero(self.metric.norm, matvec(self.A, v))

    def dual_norm(self, p: Float[Array, "*_ d"]) -> Float[Array, "..."]:
        """Return the dual norms of covectors ``p``, shape ``(...)``.

        For square matrices they are ``F*(A^-T p)``; on a subspace they are found by optimisation.
        """
        if self.dim != self.metric.dim:
            return FinslerMetric.dual_norm(self, p)
        check_vectors("p", p, self.dim, self.A)
        return self.metric.dual_norm(matvec(self._inverse_transpose(), p))

    def dual(self) -> FinslerMetric:
        """Return the dual metric: for square matrices that of ``F``, pulled back by ``A^-T``."""
        if self.dim != self.metric.dim:
            return Dual(self)
        return PulledBack(self.metric.dual(), self._inverse_transpose(), validate=False)

    def reverse(self) -> "PulledBack":
        """Return the reversed metric."""
        return PulledBack(self.metric.reverse(), self.A, validate=False)

    def symmetrize(self) -> "PulledBack":
        """Return the symmetric metric."""
        return PulledBack(self.metric.symmetrize(), self.A, validate=False)

    def randers_form(self, like: Array | None = None) -> RandersForm | None:
        """Return ``A' M A`` and ``A' omega`` if ``F`` is a Randers metric."""
        form = self.metric.randers_form(self.A)
        if form is None:
            return None
        xp = namespace(self.A)
        transposed = xp.matrix_transpose(self.A)
        omega = None if form.omega is None else matvec(transposed, form.omega)
        return RandersForm(xp.matmul(transposed, xp.matmul(form.M, self.A)), omega)

    def validate(self) -> None:
        """Check the metric, and that every matrix is injective.

        Raises
        ------
        ValueError
            It names the first that is not.
        """
        self.metric.validate()
        self._check_injective()

    def _inverse_transpose(self) -> Array:
        return namespace(self.A).matrix_transpose(inverse(self.A))

    def _check_injective(self) -> None:
        if not has_values(self.A):
            return
        xp = namespace(self.A)
        largest = safe_sqrt(xp.max(dot(self.A, self.A), axis=-1))[..., None, None]
        scaled = self.A / xp.where(largest > 0, largest, xp.ones_like(largest))
        eps = float(xp.finfo(self.A.dtype).eps)
        gram = det(xp.matmul(xp.matrix_transpose(scaled), scaled))
        bad = ~(gram > (4 * eps) ** 2)  # NaN is bad too
        if bool(xp.any(bad)):
            index = first_index(bad)
            where = f" at index {index}" if index else ""
            raise ValueError(
                f"A: expected finite injective matrices, got {self.A[(*index, ...)]}{where}"
            )


def _jacobian(f: Callable[[Array], Array], x: Array) -> Array:
    """Return the derivatives of ``f`` at points (..., d), shape (..., m, d)."""
    xp = namespace(x)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        flat = torch.func.vmap(torch.func.jacrev(f))(x.reshape(-1, x.shape[-1]))
        return flat.reshape(*x.shape[:-1], *flat.shape[-2:])
    h = float(xp.finfo(x.dtype).eps) ** 0.2
    columns = []
    for unit in h * identity_like(x.shape[-1], x):
        near, far = f(x + unit) - f(x - unit), f(x + 2 * unit) - f(x - 2 * unit)
        columns.append((8 * near - far) / (12 * h))
    return xp.stack(columns, axis=-1)


def gradient_of_dual(metric: FinslerMetric, p: Array) -> Array:
    """Return the derivatives of ``F*(p)^2 / 2``, for a metric whose dual norm has exact ones."""
    return FinslerMetric.legendre(Dual(metric), p)


def metric_at(metric: FinslerMetric, index: Any, batch_shape: tuple[int, ...]) -> FinslerMetric:
    """Return the part of a metric at an index of a batch to which its own batch broadcasts."""
    own = metric.batch_shape
    if own == ():
        return metric
    if not hasattr(metric, "__getitem__"):
        raise TypeError(
            f"index: {type(metric).__name__} has no items, and so has nothing made of it"
        )
    if own == batch_shape:
        return metric[index]
    places = np.broadcast_to(np.arange(int(np.prod(own))).reshape(own), batch_shape)
    found = np.unravel_index(places[batch_index(index)], own)
    like = metric.like
    if hasattr(like, "detach"):
        # PyTorch takes its own integers as indices.
        found = tuple(constant_like(i, like).long() for i in found)
    return metric[found]


def batch_shapes(names: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape to which batches broadcast."""
    try:
        return tuple(np.broadcast_shapes(*(tuple(shape) for shape in shapes)))
    except ValueError as error:
        got = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{names}: expected batch shapes that broadcast, got {got}") from error


def _is_scalar(factor: Any) -> bool:
    """Return whether a factor is a number; an array without axes may record gradients."""
    return isinstance(factor, int | float)


def _like(*metrics: FinslerMetric) -> Array:
    """Return an array in whose kind all the metrics compute: the Euclidean one does in any."""
    return next((m.like for m in metrics if not isinstance(m, Euclidean)), metrics[0].like)


def _ones(metric: FinslerMetric) -> Array:
    return constant_like(np.ones(metric.batch_shape), metric.like)
