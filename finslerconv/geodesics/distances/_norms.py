"""Norms as compiled kernels read them: a family of norms, and a row of parameters at every node.

Kernels compute a norm and its derivative by :func:`slope`, whatever the family: the number of the
family is the same at all nodes, so the branch costs nothing. A class of metrics that has no formula
there is tabulated over directions.

Rows can be averaged: the mean of the parameters of two norms is that of a norm, for every family.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._compiled import jit_unfused
from finslerconv._memory import array_of
from finslerconv._norms import norm_off_zero
from finslerconv._sphere import over_batch, quadrature
from finslerconv._tables import OFF_ENDS, slope_weights
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


class Norms(NamedTuple):
    """The norms of all nodes, or one norm that all have, as kernels read them."""

    family: int
    rows: np.ndarray
    """float64 (N or 1, parameters)."""
    directions: np.ndarray
    """float64 (n, 2): those that a table has values for; else empty."""
    weights: np.ndarray
    """float64 (2,): of the samples one and two steps away in the slope of a table."""
    scale: np.ndarray
    """float64 (2,): what vectors are multiplied by before they are looked up in a table."""


@jit_unfused
def slope(norms, x, v0, v1):
    """Return ``F(v)`` at node x and its derivative, a pair of components; v is not 0."""
    rows = norms.rows
    r = x if len(rows) > 1 else 0
    if norms.family == TABULATED:
        return _table_slope(norms, r, v0, v1)
    m00, m01, m11, w0, w1 = rows[r, 0], rows[r, 1], rows[r, 2], rows[r, 3], rows[r, 4]
    p0, p1 = m00 * v0 + m01 * v1, m01 * v0 + m11 * v1
    square = v0 * p0 + v1 * p1
    beta = w0 * v0 + w1 * v1
    if norms.family == ASYMMETRIC_QUADRATIC:
        beta = max(beta, 0.0)
        length = np.sqrt(square + beta * beta)
        return length, (p0 + beta * w0) / length, (p1 + beta * w1) / length
    alpha = np.sqrt(square)
    if norms.family == RANDERS:
        return alpha + beta, p0 / alpha + w0, p1 / alpha + w1
    length = square / (alpha - beta)
    share = length / (alpha - beta)
    scale = (2 - length / alpha) / (alpha - beta)
    return length, p0 * scale + share * w0, p1 * scale + share * w1


@jit_unfused
def _left(row, k, cosine, sine, one, two):
    """Return how far the k-th side of the dual ball's polygon is touched along its edge; the edge.

    Both times the sine of the angle between directions (`finslerconv._tables.deficits`).
    """
    edge = max(row[k + 1] + row[k + 3] - 2 * cosine * row[k + 2], 0.0)
    tangent = one * (row[k + 3] - row[k + 1]) + two * (row[k + 4] - row[k])
    left = sine * tangent - cosine * row[k + 2] + row[k + 1]
    return min(max(left, OFF_ENDS * edge), (1 - OFF_ENDS) * edge), edge


@jit_unfused
def _table_slope(norms, r, v0, v1):
    """The norm of :class:`finslerconv.metrics.Tabulated`, and its derivative."""
    scale = norms.scale
    v0, v1 = scale[0] * v0, scale[1] * v1
    directions = norms.directions
    n = len(directions)
    row = norms.rows[r]
    k = np.int64(np.floor(np.arctan2(v1, v0) * (n / (2 * np.pi))))
    k = k + n if k < 0 else (k - n if k >= n else k)
    j = k + 1 if k + 1 < n else 0
    c0, s0, c1, s1 = directions[k, 0], directions[k, 1], directions[j, 0], directions[j, 1]
    cosine, sine = directions[1, 0], directions[1, 1]
    a, b = (v0 * s1 - v1 * c1) / sine, (v1 * c0 - v0 * s0) / sine
    left, edge = _left(row, k, cosine, sine, norms.weights[0], norms.weights[1])
    A = edge - left
    B, _ = _left(row, k + 1, cosine, sine, norms.weights[0], norms.weights[1])
    whole = B * a + A * b
    share, rest = (A * b / whole, B * a / whole) if whole > 0 else (0.0, 0.0)
    fa = row[k + 2] - B * share * share
    fb = row[k + 3] - A * rest * rest
    p0, p1 = (s1 * fa - s0 * fb) / sine, (c0 * fb - c1 * fa) / sine
    return a * fa + b * fb, scale[0] * p0, scale[1] * p1


@jit_unfused
def norm(norms, x, v0, v1):
    """Return ``F(v)`` at node x, 0 at 0."""
    return slope(norms, x, v0, v1)[0] if v0 != 0.0 or v1 != 0.0 else 0.0


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
    """What steps are multiplied by before they are looked up in a table."""

    def compiled(self, rows: Float[Tensor, "rows parameters"]) -> Norms:
        """Return rows as kernels read them."""
        assert self.number is not None
        table, weights = np.empty((0, 2)), np.zeros(2)
        if self.directions:
            table = quadrature(2, self.directions)[0]
            weights = np.array(slope_weights(self.directions))
        return Norms(self.number, array_of(rows), table, weights, np.array(self.scale))


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

    return Family(norm, _ONE_FORM[kind] if d == 2 else None), rows


def _table_rows(metric: FinslerMetric, scale: Tensor) -> tuple[Family, Tensor]:
    table = metric if isinstance(metric, Tabulated) else Tabulated.of(metric, _resolution(metric))
    samples = as_tensor("samples", table.samples).to("cpu", torch.float64)
    rows = torch.cat((samples[..., -_BEFORE:], samples, samples[..., :_AFTER]), -1)

    def norm(rows: Tensor, v: Tensor) -> Tensor:
        return Tabulated(rows[..., _BEFORE:-_AFTER], validate=False).norm(scale * v)

    return Family(norm, TABULATED, samples.shape[-1], tuple(scale.tolist())), rows


def _resolution(metric: FinslerMetric) -> int:
    """Return the number of directions that the table of a metric takes."""
    batch = metric.batch_shape
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
