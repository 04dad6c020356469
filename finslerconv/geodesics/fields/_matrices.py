"""The matrices and one-forms of metrics, and their checks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array, first_index
from finslerconv.geodesics.fields._kinds import as_kind_of, as_tensor
from finslerconv.metrics import FinslerMetric, Randers, Riemannian


def entries_of(name: str, metric: object, like: Array | None = None) -> tuple[Array, Array | None]:
    """Return ``M`` and ``omega`` of a metric, or of a pair of them."""
    match metric.randers_form(like) if isinstance(metric, FinslerMetric) else metric:
        case (M, omega):
            return M, omega
    raise TypeError(
        f"{name}: expected a metric (or the pair (M, omega) of a function), got "
        f"{type(metric).__name__}"
    )


def over_grid(name: str, x: Array, shape: tuple[int, ...], core: int) -> Array:
    """Return ``x`` broadcast over the grid, whose axes stand before the last ``core``."""
    tensor = as_tensor(name, x)
    axes = tuple(tensor.shape[tensor.ndim - core :])
    batch = tuple(tensor.shape[: max(tensor.ndim - core - len(shape), 0)])
    try:
        return as_kind_of(tensor.expand(*batch, *shape, *axes), x)
    except RuntimeError as error:
        raise ValueError(
            f"{name}: expected a metric whose batch broadcasts over {shape}, got "
            f"{tuple(tensor.shape[: tensor.ndim - core])}"
        ) from error


def over_batch(name: str, metric: FinslerMetric, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the batch shape of a metric, broadcast over the grid ``shape`` if that is given."""
    batch = tuple(metric.batch_shape)
    if shape is None:
        return batch
    try:
        whole = tuple(torch.broadcast_shapes(batch, tuple(shape)))
        if whole[-len(shape) :] != tuple(shape):
            raise RuntimeError
    except RuntimeError as error:
        raise ValueError(
            f"{name}: expected a metric whose batch broadcasts over {tuple(shape)}, got {batch}"
        ) from error
    return whole


def check_matrices(M: Tensor) -> int:
    shape = tuple(M.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] not in (2, 3):
        raise ValueError(
            "M: expected 2 x 2 or 3 x 3 matrices on the last two axes, shape (*batch, *grid, d, "
            f"d), got shape {shape}"
        )
    d = shape[-1]
    if len(shape) < d + 2 or 0 in shape:
        raise ValueError(
            f"M: expected a grid of {d} axes (none empty) before the {d} x {d} matrices, got "
            f"shape {shape}; GridMetric.from_metric broadcasts a constant metric over a grid"
        )
    return d


def broadcast(M: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    d = M.shape[-1]
    try:
        if omega.shape[-1] != d:
            raise RuntimeError
        batch = torch.broadcast_shapes(M.shape[:-2], omega.shape[:-1])
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"omega: expected shape (*batch, *grid, {d}) that broadcasts with M of shape "
            f"{tuple(M.shape)}, got {tuple(omega.shape)}"
        ) from error
    return M.expand(*batch, d, d), omega.expand(*batch, d)


def validate_fields(
    M: Float[Tensor, "*#batch d d"], omega: Float[Tensor, "*#batch d"] | None = None
) -> None:
    """Raise a ValueError that names the first of the metrics that is none."""
    if omega is None:
        Riemannian(M)
        return
    bad = ~omega.isfinite().all(-1)
    if bool(bad.any()):
        index = first_index(bad)
        raise ValueError(
            f"omega: expected finite one-forms, got {omega[index].tolist()} at index {index}"
        )
    Randers(M, omega)
