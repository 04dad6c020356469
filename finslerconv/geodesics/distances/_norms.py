"""Norms as compiled kernels read them: a family of norms, and a row of parameters at every node.

Kernels compute a norm and its derivative by :func:`slope`, whatever the family: the number of the
family is the same at all nodes, so the branch costs nothing. A class of metrics that has no formula
there is tabulated over directions.

Rows can be averaged: the mean of the parameters of two norms is that of a norm, for every family.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from numba.extending import overload
from torch import Tensor

from finslerconv._compiled import UNFUSED, jit_unfused
from finslerconv._memory import array_of
from finslerconv._norms import norm_off_zero
from finslerconv._sphere import over_batch, quadrature
from finslerconv._tables import OFF_ENDS, has_corners, slope_weights
from finslerconv.geodesics.fields import as_tensor, as_tensors
from finslerconv.metrics import (
    AsymmetricQuadratic,
    FinslerMetric,
    Matsumoto,
    Randers,
    Tabulated,
)

# Numbers of the families.
RANDERS, ASYMMETRIC_QUADRATIC, MATSUMOTO, TABULATED = range(4)

# A table has samples before the first and after the last, so that none is looked up modulo n.
_BEFORE, _AFTER = 2, 3

# Tables have as many directions as it takes to be this exact half-way between them, relative to the
# norm, on the nodes that are looked at; or the most.
_EXACT = 1e-5
_DIRECTIONS = (32, 64, 128, 256)
_LOOKED_AT = 512


class OneForms(NamedTuple):
    """Norms of a matrix and a one-form, as kernels read them: all nodes', or one that all have."""

    family: int
    rows: np.ndarray
    """float64 (N or 1, 5): m00, m01, m11, omega0, omega1."""


class Tables(NamedTuple):
    """Tabulated norms, as kernels read them: all nodes', or one that all have."""

    rows: np.ndarray
    """float64 (N or 1, n + 5): the samples, with the last two before and the first three after."""
    directions: np.ndarray
    """float64 (n, 2)."""
    weights: np.ndarray
    """float64 (2,): of the samples one and two steps away in the slope of a table."""
    scale: np.ndarray
    """float64 (2,): what vectors are multiplied by before they are looked up."""


Norms = OneForms | Tables


@jit_unfused
def _one_form_at(norms, x):
    row = norms.rows[x if len(norms.rows) > 1 else 0]
    return (norms.family, row[0], row[1], row[2], row[3], row[4])


@jit_unfused
def _table_at(norms, x):
    row = norms.rows[x if len(norms.rows) > 1 else 0]
    return (row, norms.directions, norms.weights, norms.scale)


@jit_unfused
def _one_form_mean(p, q):
    m00, m01, m11 = 0.5 * (p[1] + q[1]), 0.5 * (p[2] + q[2]), 0.5 * (p[3] + q[3])
    return (p[0], m00, m01, m11, 0.5 * (p[4] + q[4]), 0.5 * (p[5] + q[5]))


@jit_unfused
def _table_mean(p, q):
    return (0.5 * (p[0] + q[0]), p[1], p[2], p[3])


@jit_unfused
def _one_form_slope(metric, v0, v1):
    family, m00, m01, m11, w0, w1 = metric
    p0, p1 = m00 * v0 + m01 * v1, m01 * v0 + m11 * v1
    square = v0 * p0 + v1 * p1
    beta = w0 * v0 + w1 * v1
    if family == ASYMMETRIC_QUADRATIC:
        beta = max(beta, 0.0)
        length = np.sqrt(square + beta * beta)
        scale = 1 / length
        return length, (p0 + beta * w0) * scale, (p1 + beta * w1) * scale
    alpha = np.sqrt(square)
    if family == RANDERS:
        scale = 1 / alpha
        return alpha + beta, p0 * scale + w0, p1 * scale + w1
    # With s = beta / alpha the factor alpha of the norm is 1 / (1 - s).
    fraction = 1 / (alpha - beta)
    factor = alpha * fraction
    scale = fraction * (2 - factor)
    factor *= factor
    return square * fraction, p0 * scale + factor * w0, p1 * scale + factor * w1


@jit_unfused
def _left(row, k, cosine, sine, weights):
    """Return how far the k-th side of the dual ball's polygon is touched along its edge; the edge.

    Both times the sine of the angle between directions (`finslerconv._tables.deficits`).
    """
    edge = max(row[k + 1] + row[k + 3] - 2 * cosine * row[k + 2], 0.0)
    tangent = weights[0] * (row[k + 3] - row[k + 1]) + weights[1] * (row[k + 4] - row[k])
    left = sine * tangent - cosine * row[k + 2] + row[k + 1]
    return min(max(left, OFF_ENDS * edge), (1 - OFF_ENDS) * edge), edge


@jit_unfused
def _table_slope(metric, v0, v1):
    row, directions, weights, scale = metric
    n = len(directions)
    v0, v1 = scale[0] * v0, scale[1] * v1
    k = np.int64(np.floor(np.arctan2(v1, v0) * (n / (2 * np.pi))))
    k = k + n if k < 0 else (k - n if k >= n else k)
    j = k + 1 if k + 1 < n else 0
    c0, s0, c1, s1 = directions[k, 0], directions[k, 1], directions[j, 0], directions[j, 1]
    cosine, sine = directions[1, 0], directions[1, 1]
    a, b = (v0 * s1 - v1 * c1) / sine, (v1 * c0 - v0 * s0) / sine
    left, edge = _left(row, k, cosine, sine, weights)
    A = edge - left
    B, _ = _left(row, k + 1, cosine, sine, weights)
    whole = B * a + A * b
    share, rest = (A * b / whole, B * a / whole) if whole > 0 else (0.0, 0.0)
    fa = row[k + 2] - B * share * share
    fb = row[k + 3] - A * rest * rest
    p0, p1 = (s1 * fa - s0 * fb) / sine, (c0 * fb - c1 * fa) / sine
    return a * fa + b * fb, scale[0] * p0, scale[1] * p1


def norm_at(norms, x):
    """Return the norm at node x, as the functions below take it."""
    return (_one_form_at if isinstance(norms, OneForms) else _table_at)(norms, x)


def mean(p, q):
    """Return the norm of the mean parameters."""
    return (_one_form_mean if len(p) == 6 else _table_mean)(p, q)


def slope(metric, v0, v1):
    """Return ``F(v)`` and its derivative, a pair of components; v is not 0."""
    return (_one_form_slope if len(metric) == 6 else _table_slope)(metric, v0, v1)


# The kernels are compiled once for each type of norms: which of the functions are called is known
# then, and a norm of five numbers is kept in registers.
@overload(norm_at, jit_options=UNFUSED)
def _compiled_norm_at(norms, x):
    if norms.instance_class is OneForms:
        return lambda norms, x: _one_form_at(norms, x)
    return lambda norms, x: _table_at(norms, x)


@overload(mean, jit_options=UNFUSED)
def _compiled_mean(p, q):
    if len(p) == 6:
        return lambda p, q: _one_form_mean(p, q)
    return lambda p, q: _table_mean(p, q)


@overload(slope, jit_options=UNFUSED)
def _compiled_slope(metric, v0, v1):
    if len(metric) == 6:
        return lambda metric, v0, v1: _one_form_slope(metric, v0, v1)
    return lambda metric, v0, v1: _table_slope(metric, v0, v1)


@jit_unfused
def norm(metric, v0, v1):
    """Return ``F(v)``, 0 at 0."""
    return slope(metric, v0, v1)[0] if v0 != 0.0 or v1 != 0.0 else 0.0


@dataclass(frozen=True)
class Family:
    """A family of norms: rows of parameters, and the norms that they stand for."""

    norm: Callable[[Tensor, Tensor], Tensor]
    """From rows (..., parameters) and steps in nodes (..., d) to lengths (...); differentiable."""

    number: int | None = None
    """By which kernels know it; None if they do not."""

    directions: int = 0
    """Those of a table."""

    scale: tuple[float, ...] = (1.0, 1.0)
    """What steps are multiplied by before they are looked up in a table, one number an axis."""

    corners: bool = False
    """Whether norms may have corners, across which differences of second order are wrong."""

    def compiled(self, rows: Float[Tensor, "rows parameters"]) -> Norms:
        """Return rows as kernels read them."""
        assert self.number is not None
        if self.number != TABULATED:
            return OneForms(self.number, array_of(rows))
        table, weights = quadrature(2, self.directions)[0], slope_weights(self.directions)
        return Tables(array_of(rows), table, np.array(weights), np.array(self.scale))


@final
class RowMetric(FinslerMetric):
    """The metrics that rows of parameters stand for, in steps of nodes."""

    def __init__(self, family: Family, rows: Float[Tensor, "*batch parameters"]) -> None:
        self.family = family
        self.rows = rows

    def __getitem__(self, index: Any) -> "RowMetric":
        """Return the metrics at an index of the batch."""
        return RowMetric(self.family, self.rows[index])

    @property
    def dim(self) -> int:
        """The dimension of the space."""
        return len(self.family.scale)

    @property
    def like(self) -> Tensor:
        """The rows."""
        return self.rows

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the field."""
        return tuple(self.rows.shape[:-1])

    def norm(self, v: Float[Tensor, "*_ d"]) -> Float[Tensor, "..."]:
        """Return the lengths of steps."""
        return self.family.norm(self.rows, v)


_ONE_FORM = {
    Randers: RANDERS,
    AsymmetricQuadratic: ASYMMETRIC_QUADRATIC,
    Matsumoto: MATSUMOTO,
}


def rows_of(
    metric: FinslerMetric, scale: Float[Tensor, "d"]
) -> tuple[Family, Float[Tensor, "*batch parameters"]]:
    r"""Return the family of a metric, and a row of its parameters for each of its batch.

    The norm of a step ``v`` in nodes is ``metric.norm(scale * v)``: ``scale`` is the spacing,
    negative for the reversed metric. The rows are float64, on the CPU, with gradients.
    """
    if type(metric) in _ONE_FORM:
        return _one_form_rows(metric, scale)
    if metric.dim != 2:
        raise TypeError(
            "field: expected metrics in space that are Riemannian, Randers, AsymmetricQuadratic or "
            f"Matsumoto, got {type(metric).__name__}; other norms are tabulated over directions, "
            "in the plane only"
        )
    return _table_rows(metric, scale)


def _one_form_rows(metric: Any, scale: Tensor) -> tuple[Family, Tensor]:
    kind, d, batch = type(metric), metric.dim, metric.batch_shape
    M, omega = (x.to("cpu", torch.float64) for x in as_tensors(M=metric.M, omega=metric.omega))
    upper = torch.triu_indices(d, d)
    place = torch.zeros(d, d, dtype=torch.long)
    place[upper[0], upper[1]] = place[upper[1], upper[0]] = torch.arange(upper.shape[1])
    # The mean of both halves, so that the gradient in M is symmetric as M is.
    entries = ((M + M.mT) / 2 * (scale[:, None] * scale))[..., upper[0], upper[1]]
    rows = torch.cat((entries.expand(*batch, -1), (omega * scale).expand(*batch, d)), -1)

    def norm(rows: Tensor, v: Tensor) -> Tensor:
        made: FinslerMetric = kind(rows[..., :-d][..., place], rows[..., -d:], validate=False)
        return norm_off_zero(made.norm, v)

    return Family(norm, _ONE_FORM[kind] if d == 2 else None, scale=(1.0,) * d), rows


def _table_rows(metric: FinslerMetric, scale: Tensor) -> tuple[Family, Tensor]:
    table = metric if isinstance(metric, Tabulated) else Tabulated.of(metric, _resolution(metric))
    samples = as_tensor("samples", table.samples).to("cpu", torch.float64)
    rows = torch.cat((samples[..., -_BEFORE:], samples, samples[..., :_AFTER]), -1)

    def norm(rows: Tensor, v: Tensor) -> Tensor:
        return Tabulated(rows[..., _BEFORE:-_AFTER], validate=False).norm(scale * v)

    each = samples.detach().reshape(-1, samples.shape[-1])
    corners = has_corners(each[:: max(1, len(each) // _LOOKED_AT)])
    return Family(norm, TABULATED, samples.shape[-1], tuple(scale.tolist()), corners), rows


def _resolution(metric: FinslerMetric) -> int:
    """Return the number of directions that the table of a metric takes."""
    batch = metric.batch_shape
    axes = over_batch(np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), metric.like, len(batch))
    with torch.no_grad():
        if not bool((metric.norm(axes) < math.inf).all()):
            raise TypeError(
                "field: expected norms that are finite in all directions, got "
                f"{type(metric).__name__}; there is no front where a direction is forbidden"
            )
    nodes = math.prod(batch)
    if nodes > _LOOKED_AT and hasattr(metric, "__getitem__"):
        flat = np.linspace(0, nodes - 1, _LOOKED_AT).astype(np.int64)
        metric = metric[np.unravel_index(flat, batch)]
    with torch.no_grad():
        for n in _DIRECTIONS:
            angles = 2 * math.pi * (np.arange(n) + 0.5) / n
            between = np.stack((np.cos(angles), np.sin(angles)), -1)
            v = over_batch(between, metric.like, len(metric.batch_shape))
            lengths = metric.norm(v)
            error = Tabulated.of(metric, n, validate=False).norm(v) / lengths - 1
            if float(abs(error).max()) <= _EXACT:
                return n
    return _DIRECTIONS[-1]
