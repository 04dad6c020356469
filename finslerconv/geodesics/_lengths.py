"""Distances between nearby points in closed form: the length of the chord, or an estimate."""

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array, as_integer
from finslerconv._norms import norm_off_zero
from finslerconv.geodesics.fields import (
    MetricField,
    Positions,
    as_kind_of,
    as_tensors,
    check_finite,
    check_positions,
    read_positions,
)

ChordRule = Literal["start", "midpoint", "gauss"]
"""Where along the chord the field is read."""


def chord_distance(
    field: MetricField,
    a: Positions,
    b: Positions,
    rule: ChordRule = "gauss",
    n: int | None = None,
) -> Float[Array, "..."]:
    r"""Return estimates of the distances from ``a`` to ``b``, for points that are near each other.

    In closed form, for as many pairs as one likes, and differentiable in everything. With
    ``h = |b - a|`` and a smooth field the error is

    ==========  =======================================  ========  =======================
    rule        value                                    error     exact for
    ==========  =======================================  ========  =======================
    "start"     ``F_a(b - a)``                           O(h^2)    constant metrics
    "midpoint"  ``F_{(a+b)/2}(b - a)``                   O(h^3)    constant metrics
    "gauss"     length of the chord, by ``n`` points     O(h^3)    straight geodesics
    ==========  =======================================  ========  =======================

    where the last is exact up to the quadrature's own O(h^{2n+1}). A chord is a path, so the value
    of "gauss" is an upper bound of the distance, up to the same. At a distance that is not
    small beside the scale on which the field varies, use
    :func:`finslerconv.geodesics.distance`.

    Parameters
    ----------
    field : MetricField
        Of which only ``at`` is used; read between its nodes where it is a
        :class:`finslerconv.geodesics.GridMetric`.
    a, b : array or sequence, shape (..., d)
        Positions, whose batches broadcast (for a batch of fields with its axes first). Numbers are
        taken in the kind of the other, or else of the field.
    rule : {"start", "midpoint", "gauss"}
        Where along the chord the field is read.
    n : int, optional
        The number of points of Gauss's rule, 3 unless told.

    Returns
    -------
    array, shape (...)
        In the kind of ``a`` and ``b``.

    Raises
    ------
    TypeError
        If an array is of another kind than the field.
    ValueError
        If the shapes do not fit, a position is not finite, the rule is unknown, or ``n`` is given
        to a rule that has none.

    Notes
    -----
    *Why these orders.* Along the chord let ``f(t) = F_{x(t)}(b - a)``; as ``F`` is homogeneous,
    the k-th derivative of ``f`` is O(h^{k+1}): one point at the start is wrong by O(h^2), one in
    the middle by O(h^3), ``n`` points by O(h^{2n+1}). A geodesic turns from its chord by an angle
    of O(h) and is stationary for the length, so the chord is longer by O(h) O(h)^2.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, chord_distance
    >>> from finslerconv.metrics import Riemannian
    >>> half_plane = FunctionMetric(
    ...     lambda x: Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
    ... )
    >>> a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.2, 0.0]).double()
    >>> [round(float(chord_distance(half_plane, a, b, rule)), 5)
    ...  for rule in ("start", "midpoint", "gauss")]  # log(1.2) = 0.18232
    [0.2, 0.18182, 0.18232]
    """
    nodes, weights = _points(rule, n)
    a, b = read_positions(field, a=a, b=b)
    x, y = as_tensors(a=a, b=b)
    check_positions(x, field.dim, "a")
    check_positions(y, field.dim, "b")
    try:
        shape = np.broadcast_shapes(tuple(x.shape), tuple(y.shape))
    except ValueError as error:
        raise ValueError(
            f"a, b: expected shapes that broadcast, got {tuple(x.shape)} and {tuple(y.shape)}"
        ) from error
    start, v = as_kind_of(x.expand(shape), a), as_kind_of((y - x).expand(shape), a)
    lengths = [
        w * norm_off_zero(field.at(start + t * v).norm, v)
        for t, w in zip(nodes, weights, strict=True)
    ]
    total = lengths[0]
    for length in lengths[1:]:
        total = total + length
    return total


def _points(rule: str, n: int | None) -> tuple[list[float], list[float]]:
    """Return the nodes in [0, 1] and the weights of a rule."""
    if rule not in ("start", "midpoint", "gauss"):
        raise ValueError(f"rule: expected 'start', 'midpoint' or 'gauss', got {rule!r}")
    if rule != "gauss":
        if n is not None:
            raise ValueError(f"n: expected None, because {rule!r} reads one point, got {n!r}")
        return ([0.0] if rule == "start" else [0.5]), [1.0]
    n = 3 if n is None else as_integer("n", n)
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return ((1 + nodes) / 2).tolist(), (weights / 2).tolist()


def path_length(field: MetricField, curve: Positions) -> Float[Array, "..."]:
    r"""Return the lengths of polylines, ``F`` integrated along them.

    Parameters
    ----------
    field : GridMetric, FunctionMetric or MetricField
    curve : array or sequence, shape (n, \*batch, ..., d)
        Points in the order of travel, physical, at least two; what :func:`geodesic` and
        :func:`minimal_path` return. Of a batch of fields the batch comes after the points.

    Returns
    -------
    array, shape (\*batch, ...)
        Differentiable in the curve and in the field. Each side by Gauss's rule of two nodes.

    Raises
    ------
    TypeError, ValueError
        If ``curve`` is no array of floats of that shape, or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, path_length
    >>> from finslerconv.metrics import Randers
    >>> wind = GridMetric.from_metric(Randers(np.eye(2), np.array([0.0, 0.5])), (8, 8))
    >>> there = np.array([[1.0, 1.0], [1.0, 5.0]])
    >>> float(path_length(wind, there)), float(path_length(wind, there[::-1].copy()))
    (6.0, 2.0)
    """
    (curve,) = read_positions(field, curve=curve)
    (points,) = as_tensors(curve=curve)
    d = field.dim
    if points.ndim < 2 or points.shape[-1] != d or points.shape[0] < 2:
        raise ValueError(
            f"curve: expected at least two points, shape (n, ..., {d}), got {tuple(points.shape)}"
        )
    check_finite("curve", points)
    batch = tuple(getattr(field, "batch_shape", ()))
    given = tuple(points.shape[1:-1])[: len(batch)]
    if len(given) < len(batch) or any(
        n not in (1, wanted) for n, wanted in zip(given, batch, strict=True)
    ):
        raise ValueError(
            f"curve: expected shape (n, {', '.join(map(str, batch))}, ..., {d}) for a batch of "
            f"fields, got {tuple(points.shape)}"
        )
    points = points.movedim(0, -2)
    begin, side = points[..., :-1, :], points[..., 1:, :] - points[..., :-1, :]
    total: Tensor | float = 0.0
    for place in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):
        metric = _as_tensor_field(field).at(begin + place * side)
        total = total + norm_off_zero(metric.norm, side).sum(-1) / 2
    assert isinstance(total, Tensor)
    return as_kind_of(total, curve)


def _as_tensor_field(field: Any) -> MetricField:
    return field.torch() if hasattr(field, "torch") else field
