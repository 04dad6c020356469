"""What a metric field is, and how positions are given to it."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv.geodesics.fields._kinds import (
    as_kind_of,
    as_tensor,
    check_finite,
    is_integral,
    is_numpy,
    is_tensor,
    plain_numbers,
)
from finslerconv.metrics import FinslerMetric, Randers


@runtime_checkable
class MetricField(Protocol):
    """What geodesics ask of a field: its dimension, and the metric at any position.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import MetricField
    >>> from finslerconv.metrics import Riemannian
    >>> class Slow:  # an object of your own: steps cost more where the row is large
    ...     dim = 2
    ...     def at(self, x):
    ...         return Riemannian((1 + x[..., :1, None]) ** 2 * torch.eye(2, dtype=x.dtype))
    >>> isinstance(Slow(), MetricField)
    True
    """

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the space."""
        ...

    def at(self, positions: Float[Array, "*batch d"]) -> FinslerMetric:
        """Return the metrics at ``positions`` (physical), of batch shape ``(*batch,)``.

        Of any kind. What needs a Randers metric (distances) says so.
        """
        ...


def randers_at(field: MetricField, x: Float[Tensor, "*batch d"], advice: str) -> Randers:
    """Return the Randers metrics of a field; the error for others ends in the ``advice``."""
    metric = field.at(x)
    form = metric.randers_form(x)
    if form is None:
        raise TypeError(
            f"field: expected Riemannian or Randers metrics, got {type(metric).__name__}; {advice}"
        )
    return Randers(*form.with_omega(), validate=False)


def read_positions(field: MetricField, **given: Any) -> list[Any]:
    """Return positions, or vectors, as arrays of floats.

    Arrays of floats stay as they are, and integers become floats. Numbers, alone or in nested
    sequences, become an array of the kind, dtype and device of the first array among those given,
    or else of the field (a float64 tensor for a function).
    """
    if not callable(getattr(field, "at", None)):
        hint = ""
        if isinstance(field, FinslerMetric):
            hint = (
                "; GridMetric.from_metric(metric, shape) is the field of a constant Riemannian or "
                "Randers metric, and in a constant metric the distance from a to b is "
                "metric.norm(b - a)"
            )
        raise TypeError(
            "field: expected a GridMetric, a FunctionMetric or another MetricField, got "
            f"{type(field).__name__}{hint}"
        )
    arrays = [x for x in given.values() if _is_array(x) and not is_integral(x)]
    held = getattr(field, "like", torch.empty(0, dtype=torch.float64))
    example = arrays[0] if arrays else held
    return [_as_floats(name, x, example) for name, x in given.items()]


def _is_array(x: object) -> bool:
    return is_numpy(x) or is_tensor(x)


def _as_floats(name: str, x: Any, example: Array) -> Array:
    if _is_array(x) and not is_integral(x):
        return x
    values = x if _is_array(x) else plain_numbers(x)
    if values is None:
        raise TypeError(
            f"{name}: expected a NumPy array, a torch.Tensor, or numbers in nested sequences of "
            f"equal lengths, got {type(x).__name__}"
        )
    floats = torch.as_tensor(values).to(as_tensor(name, example))
    return as_kind_of(floats, x if _is_array(x) else example)


def check_positions(x: Tensor, d: int, name: str = "positions") -> None:
    """Check that ``x`` has shape (..., d), and finite numbers."""
    if x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(
            f"{name}: expected {d} coordinates on the last axis, shape (..., {d}), got shape "
            f"{tuple(x.shape)}"
        )
    check_finite(name, x)
