"""Tangent vectors as users give them: positions, and vectors there, of one batch."""

import torch
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv.geodesics.fields._grid import GridMetric
from finslerconv.geodesics.fields._kinds import as_tensors, check_finite, shown_shape
from finslerconv.geodesics.fields._protocol import MetricField


def tangent_vectors(field: MetricField, x: Array, **vectors: Array) -> list[Tensor]:
    """Return positions and vectors as tensors of one shape and dtype.

    Raises
    ------
    TypeError
        If arrays are of different kinds, or not of float32 or float64.
    ValueError
        If shapes do not fit the field or each other, or numbers are not finite.
    """
    tensors = as_tensors(x=x, **vectors)
    d = field.dim
    shape, dtype = tensors[0].shape, tensors[0].dtype
    for name, u in zip(("x", *vectors), tensors, strict=True):
        if u.ndim == 0 or u.shape[-1] != d:
            raise ValueError(
                f"{name}: expected {d} components on the last axis, shape (..., {d}), got shape "
                f"{tuple(u.shape)}"
            )
        check_finite(name, u)
        try:
            shape = torch.broadcast_shapes(shape, u.shape)
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected a shape that broadcasts with that of x, {tuple(shape)}, got "
                f"{tuple(u.shape)}"
            ) from error
        dtype = torch.promote_types(dtype, u.dtype)
    batch = field.batch_shape if isinstance(field, GridMetric) else ()
    if shape[: len(batch)] != batch or len(shape) <= len(batch):
        raise ValueError(
            f"x: expected shape {shown_shape(batch, '...', str(d))} for a batch of fields, "
            f"got {tuple(shape)}"
        )
    return [u.to(dtype).expand(shape) for u in tensors]
