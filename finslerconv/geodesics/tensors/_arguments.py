"""The arguments that all tensors of a field share."""

from collections.abc import Collection
from typing import Any

from finslerconv._arrays import check_nonzero, shown
from finslerconv._transforms import is_mapped
from finslerconv.geodesics.fields import (
    GridMetric,
    MetricField,
    Positions,
    is_tensor,
    read_positions,
    tangent_vectors,
)


def read_tangents(
    field: MetricField, x: Positions, *, zero: Collection[str] = (), **vectors: Positions
) -> tuple[Any, ...]:
    """Return a field of tensors, an array of the kind of the result, positions and vectors.

    Vectors are not zero but for those whose names are in ``zero``.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = [2.0, 0.0], [0.0, 1.0]
    >>> field, like, positions, vectors = tensors.read_tangents(half_plane, x, v=v)
    >>> positions.tolist(), vectors.dtype
    ([2.0, 0.0], torch.float64)
    """
    arrays = read_positions(field, x=x, **vectors)
    places, *found = tangent_vectors(
        field, arrays[0], **dict(zip(vectors, arrays[1:], strict=True))
    )
    if isinstance(field, GridMetric):
        field = field.torch()
    if not is_mapped():  # torch.vmap hides the values
        for name, v in zip(vectors, found, strict=True):
            if name not in zero:
                check_nonzero(name, v)
    lengths = field.at(places).norm(found[0])
    if not is_tensor(lengths):
        raise TypeError(
            "field: expected metrics that compute in PyTorch, which takes the derivatives, but "
            f"their norm of tensors is {shown(lengths)}"
        )
    # Forward mode has no derivatives of tensors whose elements share their memory.
    return (field, arrays[0], *(u.contiguous() for u in (places, *found)))


def refuse_linear(name: str, field: MetricField) -> None:
    """Raise a ValueError for a field without second derivatives in the position."""
    if isinstance(field, GridMetric) and field.interpolation == "linear":
        raise ValueError(
            f"field: {name} is made of second derivatives of the field, which linear interpolation "
            "has not: between the nodes they are 0, and across them infinite; take "
            "GridMetric(..., interpolation='cubic')"
        )
