"""The logarithm: the first velocity of the geodesic from one point to another, by shooting."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array, as_integer, as_number, first_index, scaled
from finslerconv._transforms import differentiations, has_tangent, is_mapped, is_transformed
from finslerconv.geodesics._derivatives import refuse_second
from finslerconv.geodesics.fields import (
    GridMetric,
    MetricField,
    Positions,
    as_kind_of,
    as_tensors,
    check_finite,
    read_positions,
)
from finslerconv.geodesics.flow._exponential import Method, exponential, geodesic_flow

_SECOND = (
    "logarithm: second derivatives are not computed, and create_graph=True, or one derivative "
    "within another, asks for them; take finite differences of the first ones"
)

# A Newton step that does not lower the error is halved; below this it is given up.
_LEAST_FACTOR = 1e-3


class ConvergenceWarning(UserWarning):
    """Shooting has not hit some of the points; their results are NaN.

    Attributes
    ----------
    pairs : ndarray of int, shape (k, ...)
        The indices of those pairs among all, row-major.

    Examples
    --------
    >>> import warnings
    >>> from finslerconv.geodesics import ConvergenceWarning
    >>> warnings.simplefilter("error", ConvergenceWarning)  # a failed search raises from now on
    >>> warnings.resetwarnings()
    """

    def __init__(self, message: str, pairs: np.ndarray) -> None:
        super().__init__(message)
        self.pairs = pairs


def logarithm(
    field: MetricField,
    x: Positions,
    y: Positions,
    *,
    start: Positions | None = None,
    iterations: int = 30,
    tolerance: float | None = None,
    method: Method = "auto",
    steps: int = 16,
) -> Float[Array, "*_ d"]:
    r"""Return ``log_x(y)``: the velocity ``v`` with which a geodesic from ``x`` is at ``y`` at 1.

    ``F_x(v)`` is the geodesic's length: the distance from ``x`` to ``y``, if no other geodesic is
    shorter. Differentiable, once, in ``x``, ``y`` and the field (implicit function theorem).

    Parameters
    ----------
    field : GridMetric, FunctionMetric or MetricField
    x, y : array or sequence, shape (\*batch, ..., d)
        Physical positions, which broadcast; of a :class:`GridMetric` of several fields the first
        axes are the batch of the fields. Numbers are taken in the kind of the other, or else of
        the field.
    start : array or sequence, shape (\*batch, ..., d), optional
        The velocity to begin with; the chord ``y - x`` unless given. Where several geodesics lead
        from ``x`` to ``y`` it decides which is found.
    iterations : int
        Newton steps at most.
    tolerance : float, optional
        The largest distance left between the geodesic's end and ``y``, as a fraction of
        ``|y - x|`` and beyond the rounding of positions; 1e-10 in float64 and 1e-4 in float32
        unless given, but 1e-5 for an adaptive method on a linear grid, which knows the ends of
        geodesics no better.
    method, steps
        As of :func:`exponential`.

    Returns
    -------
    array, shape (\*batch, ..., d)
        NaN for pairs that were not connected.

    Warns
    -----
    ConvergenceWarning
        If some pairs were not connected: beyond the injectivity radius the chord may be too far
        from any geodesic. A minimal path (:func:`minimal_path`) has no such limit.

    Raises
    ------
    TypeError, ValueError
        As :func:`exponential`.
    RuntimeError
        If the result is differentiated twice (with ``create_graph=True``, or by nested transforms
        of ``torch.func``), or called under ``torch.vmap``.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, logarithm
    >>> from finslerconv.metrics import Riemannian
    >>> half_plane = FunctionMetric(
    ...     lambda x: Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
    ... )
    >>> x, y = torch.tensor([[1.0, 0.0], [2.718281828, 0.0]], dtype=torch.float64)
    >>> logarithm(half_plane, x, y).round(decimals=6)
    tensor([1., 0.], dtype=torch.float64)
    """
    if differentiations() > 1:
        raise RuntimeError(_SECOND)
    if is_mapped():
        raise RuntimeError(
            "logarithm: Newton's method looks at what it finds, and torch.vmap lets no value be "
            "looked at; give all pairs in one batch without vmap"
        )
    x, y = read_positions(field, x=x, y=y)
    if start is not None:
        _, start = read_positions(field, x=x, start=start)
    first, last, guess = as_tensors(x=x, y=y, start=start)
    iterations = as_integer("iterations", iterations)
    if tolerance is not None:
        tolerance = as_number("tolerance", tolerance, above=0)
    try:
        shape = torch.broadcast_shapes(first.shape, last.shape)
    except RuntimeError as error:
        raise ValueError(
            f"y: expected a shape that broadcasts with that of x, {tuple(first.shape)}, got "
            f"{tuple(last.shape)}"
        ) from error
    dtype = torch.promote_types(first.dtype, last.dtype)
    first, last = first.to(dtype).expand(shape), last.to(dtype).expand(shape)
    if tolerance is None:
        kinks = isinstance(field, GridMetric) and field.interpolation == "linear"
        exact = 1e-5 if kinks and method not in ("auto", "rk4") else 1e-10
        tolerance = exact if dtype == torch.float64 else 1e-4
    if guess is None:
        guess = last - first
    try:
        guess = guess.to(dtype).expand(shape).detach()
    except RuntimeError as error:
        raise ValueError(
            f"start: expected a velocity for each pair, of a shape that broadcasts to "
            f"{tuple(shape)}, got {tuple(guess.shape)}"
        ) from error
    check_finite("start", guess)

    def shoot(field: MetricField, x: Tensor, v: Tensor) -> Tensor:
        return exponential(field, x, v, method=method, steps=steps)

    fixed = field.detach() if isinstance(field, GridMetric) else field
    v, hit = _newton(
        lambda v: shoot(fixed, first.detach()[..., None, :], v), last.detach(), first.detach(),
        guess, iterations, tolerance,
    )  # fmt: skip
    # Where no gradients are recorded there may still be tangents.
    rest = shoot(field, first, v) - last
    tangent = has_tangent(rest)
    if rest.requires_grad or tangent or is_transformed():
        if rest.requires_grad and tangent:
            raise RuntimeError(_SECOND)
        jacobian = _jacobian(lambda v: shoot(fixed, first.detach(), v), v)
        v = v - _solve(jacobian, rest - rest.detach())
        # The Jacobian carries no gradient: second derivatives would be wrong.
        if v.requires_grad and not is_transformed():
            refuse_second(v, _SECOND)
    v = torch.where(hit[..., None], v, torch.nan)
    _warn_of_misses(hit)
    return as_kind_of(v, x)


def geodesic(
    field: MetricField,
    x: Positions,
    y: Positions,
    n: int = 50,
    *,
    start: Positions | None = None,
    method: Method = "auto",
    steps: int = 16,
) -> Float[Array, "n *_ d"]:
    r"""Return ``n`` points of the geodesic from ``x`` to ``y``, equally spaced in length.

    Parameters
    ----------
    field, x, y, start, method, steps
        As of :func:`logarithm`, by which the geodesic is found.
    n : int
        Number of points, both ends included, at least 2.

    Returns
    -------
    array, shape (n, \*batch, ..., d)
        NaN for pairs that were not connected, of which a :class:`ConvergenceWarning` tells.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, geodesic
    >>> from finslerconv.metrics import Riemannian
    >>> half_plane = FunctionMetric(
    ...     lambda x: Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
    ... )
    >>> x, y = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    >>> top = geodesic(half_plane, x, y, 3)[1]  # of a circle around the origin
    >>> top.round(decimals=6) + 0.0
    tensor([1.4142, 0.0000], dtype=torch.float64)
    """
    n = as_integer("n", n, least=2)
    x, y = read_positions(field, x=x, y=y)
    v = logarithm(field, x, y, start=start, method=method, steps=steps)
    first, speed = as_tensors(x=x, v=v)
    lost = ~speed.isfinite().all(-1, keepdim=True)
    speed = torch.where(lost, 0.0, speed)
    times = [i / (n - 1) for i in range(n)]
    curve = geodesic_flow(field, first, speed, times, method=method, steps=steps).position
    curve = torch.where(lost, torch.nan, curve)
    return as_kind_of(curve, x)


def _newton(
    end: Callable[[Tensor], Tensor],
    y: Tensor,
    x: Tensor,
    v: Tensor,
    iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Return velocities whose geodesics end at ``y``, and for which pairs they do.

    Newton's method with a Jacobian from differences; a step that does not lower the error is
    halved.
    """
    gap = _length(y - x)
    # Rounding in the course of the steps moves an end by about this much.
    rounding = 8 * torch.finfo(y.dtype).eps * torch.maximum(x.abs(), y.abs()).amax(-1)
    allowed = tolerance * gap + rounding
    rest, jacobian = _with_differences(end, v, y)
    error = _length(rest)
    factor = torch.ones_like(error)
    for _ in range(iterations):
        open_ = ~(error <= allowed) & (factor > _LEAST_FACTOR)
        if not bool(open_.any()):
            break
        step = -_solve(jacobian, rest)
        # A step of several chords is a sign of a singular Jacobian.
        limit = 2 * _length(v) + gap
        size = _length(step).clamp(min=torch.finfo(v.dtype).tiny)
        step = step * (factor * (limit / size).clamp(max=1.0))[..., None]
        tried = torch.where((open_ & step.isfinite().all(-1))[..., None], v + step, v)
        tried_rest, tried_jacobian = _with_differences(end, tried, y)
        tried_error = _length(tried_rest)
        better = open_ & (tried_error < error)
        v = torch.where(better[..., None], tried, v)
        rest = torch.where(better[..., None], tried_rest, rest)
        jacobian = torch.where(better[..., None, None], tried_jacobian, jacobian)
        error = torch.where(better, tried_error, error)
        factor = torch.where(better, (2 * factor).clamp(max=1.0), factor / 2)
    return v, error <= allowed


def _with_differences(
    end: Callable[[Tensor], Tensor], v: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how far the ends are from ``y``, and their derivatives by forward differences."""
    d = v.shape[-1]
    eye = torch.eye(d, dtype=v.dtype, device=v.device)
    size = _length(v)[..., None, None]
    size = torch.finfo(v.dtype).eps ** 0.4 * torch.where(size > 0, size, 1.0)
    with torch.no_grad():
        ends = end(torch.cat((v[..., None, :], v[..., None, :] + size * eye), dim=-2))
    reached = ends[..., 0, :]
    return reached - y, ((ends[..., 1:, :] - reached[..., None, :]) / size).mT


def _length(v: Tensor) -> Tensor:
    """Return Euclidean lengths, those of vectors too whose squares underflow."""
    u, size, _ = scaled(v)
    return size[..., 0] * torch.linalg.norm(u, dim=-1)


def _jacobian(end: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """Return the derivatives (..., d, d) of the ends in the velocities, a row at a time."""
    d = v.shape[-1]
    if is_transformed():

        def component(v: Tensor, i: int) -> Tensor:
            return end(v)[..., i].sum()

        rows = [torch.func.grad(component)(v.detach(), i).detach() for i in range(d)]
        return torch.stack(rows, dim=-2)
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        reached = end(v)
        rows = [
            torch.autograd.grad(reached[..., i].sum(), v, retain_graph=i < d - 1)[0].detach()
            for i in range(d)
        ]
    return torch.stack(rows, dim=-2)


def _solve(jacobian: Tensor, rest: Tensor) -> Tensor:
    """Return the least-squares solution, so that a singular Jacobian is no error."""
    transposed = jacobian.mT
    normal = transposed @ jacobian
    scale = normal.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(rest.shape[-1], dtype=rest.dtype, device=rest.device)
    ridge = 4 * torch.finfo(rest.dtype).eps * scale
    solvable = torch.where(scale > 0, normal + ridge * eye, eye)
    return torch.linalg.solve(solvable, transposed @ rest[..., None])[..., 0]


def _warn_of_misses(hit: Tensor) -> None:
    if bool(hit.all()):
        return
    missed = ~hit
    pairs = torch.nonzero(missed).cpu().numpy()
    index = first_index(missed)
    where = f", the first at index {index}" if index else ""
    warnings.warn(
        ConvergenceWarning(
            f"no geodesic was found between {len(pairs)} of {hit.numel()} pairs{where}; their "
            "results are NaN. They may lie beyond the injectivity radius: give another start, or "
            "follow a distance map back with minimal_path. The warning's .pairs has the indices",
            pairs,
        ),
        stacklevel=3,
    )
