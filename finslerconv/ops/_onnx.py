"""The operators in the words of ONNX: ``DeformConv``, ``GridSample``, and others."""

from dataclasses import replace
from typing import no_type_check

import torch
from torch import Tensor
from torch.nn import functional

from finslerconv._tracing import is_traced_by_torchscript
from finslerconv.ops.backends import (
    Aggregation,
    Convolution,
    Positions,
    current_backend,
    head_coefficients,
    head_formulas_in,
    reference,
)

# Offsets beyond this are outside every image; integers of 32 bits hold it.
_FAR = 2.0**30


def for_onnx(conv: Convolution) -> Tensor:
    """Return the convolution by operators that ONNX has, in as few as there are for it.

    It is one ``DeformConv`` after what computes its offsets, unless that is impossible: the
    operator knows no volumes and no padding but zeros, and the exporter through TorchScript, and
    PyTorch before ``torch.onnx.ops``, cannot name it. Otherwise, and where the reference backend is
    chosen, it is made of elementary operators.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import ConvGeometry, Convolution, Positions
    >>> offset = torch.zeros(1, 18, 6, 6)
    >>> geometry = ConvGeometry.of((3, 3), padding=(1, 1))
    >>> conv = Convolution(
    ...     input=torch.rand(1, 2, 6, 6), positions=Positions("offsets", offset),
    ...     weight=torch.rand(4, 2, 3, 3), bias=None, mask=None,
    ...     geometry=geometry, padding_mode="zeros",
    ... )
    >>> from finslerconv.ops import for_onnx
    >>> for_onnx(conv).shape
    torch.Size([1, 4, 6, 6])
    """
    if conv.dims == 1:
        return for_onnx(conv.as_image()).squeeze(2)
    if (
        conv.dims != 2
        or conv.padding_mode != "zeros"
        or current_backend() == "reference"
        or is_traced_by_torchscript()
        or not hasattr(torch.onnx, "ops")
    ):
        conv = replace(conv, positions=Positions("offsets", _offsets(conv)))
        return reference.convolve(conv, taps_at_once=conv.geometry.n_taps)
    return _deform_conv(conv, _offsets(conv))


def aggregation_for_onnx(aggregation: Aggregation) -> Tensor:
    """Return an aggregation by operators that ONNX has: a ``GridSample`` for each level.

    Where the reference backend is chosen, it is made of indices and products alone.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import Aggregation, aggregation_for_onnx
    >>> value, weights = torch.rand(1, 12, 2, 4), torch.rand(1, 5, 2, 1, 3)
    >>> locations = 3 * torch.rand(1, 5, 2, 1, 3, 2)
    >>> aggregation_for_onnx(Aggregation(value, locations, weights, (3, 4))).shape
    torch.Size([1, 5, 2, 4])
    """
    if current_backend() == "reference":
        return reference.aggregate(aggregation)
    value, dtype, weights = aggregation.value, aggregation.dtype, aggregation.weights
    batch, queries, groups, _, points = weights.shape
    positions = aggregation.positions()
    # A runtime may take the integer of NaN, or of infinity, for a place in the image.
    positions = torch.where(positions.abs() < _FAR, positions, -_FAR)
    pixels = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)
    total: Tensor | None = None
    for i, (rows, columns, first) in enumerate(_sizes(aggregation)):
        maps = pixels.narrow(2, first, rows * columns).unflatten(2, (rows, columns))
        size = torch.stack([torch.scalar_tensor(n, dtype=dtype) for n in (columns, rows)])
        grid = (2 * positions[:, :, :, i] + 1) / size - 1
        grid = grid.transpose(1, 2).reshape(batch * groups, queries, points, 2)
        samples = functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        factors = weights[:, :, :, i].to(dtype).transpose(1, 2)
        term = samples * factors.reshape(batch * groups, 1, queries, points)
        total = term if total is None else total + term
    assert total is not None
    output = total.sum(-1).unflatten(0, (batch, groups)).permute(0, 3, 1, 2)
    return output.to(value.dtype)


def _sizes(aggregation: Aggregation) -> list[tuple[int, int, int]]:
    """Return rows, columns and first pixel of each level, as numbers that a trace may not know."""
    if not isinstance(aggregation.levels, Tensor):
        return [(*aggregation.levels, 0)]
    pixels = aggregation.value.shape[1]
    found = []
    for rows, columns, first in aggregation.levels.tolist():
        for number in (rows, columns):
            torch._check(number >= 1)
        torch._check(first >= 0)
        torch._check(first + rows * columns <= pixels)
        found.append((rows, columns, first))
    return found


def _deform_conv(conv: Convolution, offsets: Tensor) -> Tensor:
    geometry, dtype = conv.geometry, conv.dtype
    # A runtime may take the integer of NaN, or of infinity, for a place in the image.
    offsets = torch.where(offsets.abs() < _FAR, offsets, -_FAR)
    tensors = (conv.input, conv.weight, offsets, conv.bias, conv.mask)
    output = torch.onnx.ops.symbolic(
        "DeformConv",
        [None if tensor is None else tensor.to(dtype) for tensor in tensors],
        {
            "kernel_shape": geometry.kernel_size,
            "strides": geometry.stride,
            "dilations": geometry.dilation,
            "pads": (*geometry.padding_before, *geometry.padding_after),
            "group": conv.weight_groups,
            "offset_group": conv.sample_groups,
        },
        dtype=dtype,
        shape=(conv.input.shape[0], conv.weight.shape[0], *conv.out_size),
        version=19,
    )
    return output.to(conv.input.dtype)


def _offsets(conv: Convolution) -> Tensor:
    """Return the offsets of the taps, (B, G * taps * d, *out).

    Those in the plane are computed as :mod:`finslerconv.balls` does, but in few operators: the
    entries of a metric are tensors of their own, and what is linear in them is one product of
    matrices for all taps. The affine map in space does without the inverse of a matrix.
    """
    where, geometry = conv.positions, conv.geometry
    if where.kind == "offsets" or (conv.dims == 3 and where.kind == "radial"):
        return conv.with_offsets().positions.field
    g = conv.points.to(where.dtype)
    # Not torch.tensor, which a decomposition must not call.
    unit = torch.stack([g.new_full((), step) for step in geometry.dilation])
    if conv.dims == 3:
        where = where.with_metrics()
        omega = None if where.omega is None else where.omega.to(where.dtype)
        offsets = _affine_in_space(g, where.field.to(where.dtype), omega) * unit - geometry.taps(g)
        return offsets.movedim((-2, -1), (2, 3)).flatten(1, 3)
    radius, entries = _entries(where)
    unit = radius * unit
    map = _radial if where.kind == "radial" else _affine
    offsets = map(g, *entries) * unit.repeat(len(g)) - geometry.taps(g).reshape(-1)
    return offsets.movedim(-1, 2).flatten(1, 2)


def _entries(where: Positions) -> tuple[float, tuple[Tensor | None, ...]]:
    """Return a radius and the entries ``a, b, c, x, y`` of metrics, (B, G, Ho, Wo) each.

    The unit balls are those of ``M = [[a, b], [b, c]]`` and ``omega = (x, y)``, enlarged by the
    radius. Of a Riemannian metric, ``x`` and ``y`` are None.
    """
    formula = where.formula
    if formula is None or formula.name is None:
        where = where.with_metrics()
        M = where.field.to(where.dtype)
        x = y = None
        if where.omega is not None:
            x, y = where.omega.to(where.dtype).unbind(-1)
        return 1.0, (M[..., 0, 0], M[..., 0, 1], M[..., 1, 1], x, y)
    kind, constraint = formula.name.split()
    *shape, keep, radius = head_coefficients(formula)
    raw = where.field.to(where.dtype)
    channels = [raw[:, i :: formula.n_channels] for i in range(formula.n_channels)]
    n = formula.parametrization.n_channels
    a, b, c = _heads[kind](*(channels[i] if i < n else None for i in range(5)), *shape)
    if formula.is_riemannian:
        return radius, (a, b, c, None, None)
    x, y = channels[n:]
    _, _, square = _heads["dual"](a, b, c, x, y)
    factor, _ = _heads["clip_factor" if constraint == "clip" else "sigmoid_factor"](square, keep)
    return radius, (a, b, c, factor * x, factor * y)


_heads = head_formulas_in(
    {
        "absolute": torch.abs, "exp": torch.exp, "maximum": torch.maximum, "sqrt": torch.sqrt,
        "where": torch.where,
    },
    lambda function: function,
)  # fmt: skip
# ONNX has these as operators.
_heads.update(expm1=torch.expm1, tanh=torch.tanh, sigmoid=torch.sigmoid)


# The maps: from points (taps, 2) and the entries of metrics to (B, G, Ho, Wo, taps * 2).


@no_type_check
def _radial(g, a, b, c, x, y):
    length = g.square().sum(1, keepdim=True).sqrt()
    # The norm of g = 0 is of no account, and must not be zero.
    u, v = torch.where(length > 0, g, 1.0).unbind(1)
    squares = torch.stack((a, b, c), -1) @ torch.stack((u * u, 2 * u * v, v * v))
    norm = squares.clamp(min=0).sqrt()
    if x is not None:
        norm = norm + torch.stack((x, y), -1) @ torch.stack((u, v))
    return (g * length / norm[..., None]).flatten(-2)


@no_type_check
def _affine(g, a, b, c, x, y):
    det = a * c - b * b
    first, off, second = c / det, -b / det, a / det
    if x is not None:
        u, v, square = _heads["dual"](a, b, c, x, y)
        rest = 1 - square
        first, off, second = (
            (entry + product / rest) / rest
            for entry, product in ((first, u * u), (off, u * v), (second, v * v))
        )
    # The square root of the ellipse's matrix, by Cayley and Hamilton.
    root = (first * second - off * off).clamp(min=0).sqrt()
    scale = (first + second + 2 * root).rsqrt()
    numbers = [(first + root) * scale, off * scale, (second + root) * scale]
    zero, one = torch.zeros_like(g[:, 0]), torch.ones_like(g[:, 0])
    p, q = g.unbind(1)
    factors = [torch.stack((p, zero), 1), torch.stack((q, p), 1), torch.stack((zero, q), 1)]
    if x is not None:
        numbers += [-u / rest, -v / rest]
        factors += [torch.stack((one, zero), 1), torch.stack((zero, one), 1)]
    return torch.stack(numbers, -1) @ torch.stack(factors).flatten(1)


# In space matrices stay matrices, (B, G, D, H, W, 3, 3), and ONNX has no inverse of them.


def _affine_in_space(g: Tensor, M: Tensor, omega: Tensor | None) -> Tensor:
    """Return the points (taps, 3) in the ellipsoids of metrics, (B, G, D, H, W, taps, 3)."""
    shape, _ = _inverse(M)
    if omega is None:
        return g @ _root(shape)
    u = shape @ omega[..., None]
    rest = 1 - (omega[..., None] * u).sum(-2, keepdim=True)
    shape = (shape + u @ u.mT / rest) / rest
    return g @ _root(shape) - (u / rest).mT


def _inverse(A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverses and determinants of positive definite matrices, by elimination."""
    xx, xy, xz, yy, yz, zz = (A[..., i, j] for i in range(3) for j in range(i, 3))
    # A = L D L' with the entries a; b, c below the diagonal of L.
    a, b = xy / xx, xz / xx
    second, off = yy - a * xy, yz - a * xz
    c = off / second
    third = zz - b * xz - c * off
    corner = a * c - b
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    rows = torch.stack((one, zero, zero, -a, one, zero, corner, -c, one), -1).unflatten(-1, (3, 3))
    pivots = torch.stack((xx, second, third), -1)
    return rows.mT @ (rows / pivots[..., None]), xx * second * third


def _root(A: Tensor) -> Tensor:
    """Return the square roots of positive definite matrices, as ``spd_sqrt`` computes them."""
    xx, xy, xz, yy, yz, zz = (A[..., i, j] for i in range(3) for j in range(i, 3))
    trace = xx + yy + zz
    minors = xx * yy - xy * xy + yy * zz - yz * yz + xx * zz - xz * xz
    minors = minors.clamp(min=0)
    det = _inverse(A)[1].clamp(min=0).sqrt()
    # The invariants i and j of the root; each step makes their error nine times smaller.
    i = trace.sqrt()
    for _ in range(9 if A.dtype == torch.float32 else 18):
        j = (minors + 2 * det * i).sqrt()
        i = (trace + 2 * j).sqrt()
    one = torch.eye(3, dtype=A.dtype, device=A.device)
    inverse, _ = _inverse(A + j[..., None, None] * one)
    return (i[..., None, None] * A + det[..., None, None] * one) @ inverse
