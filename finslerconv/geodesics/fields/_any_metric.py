"""Metrics of any kind at the nodes of a grid: their arrays, and how they are read between nodes."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv.geodesics.fields._interpolation import nodes_around
from finslerconv.geodesics.fields._kinds import as_kind_of, as_tensor, is_numpy, is_tensor
from finslerconv.metrics import CallableMetric, FinslerMetric


def arrays_of(metric: FinslerMetric) -> Iterator[Array]:
    """Yield the arrays that a metric holds, and those of metrics that it holds."""
    for value in vars(metric).values():
        for part in value if isinstance(value, tuple) else (value,):
            if is_numpy(part) or is_tensor(part):
                yield part
            elif isinstance(part, FinslerMetric):
                yield from arrays_of(part)


def with_arrays(metric: FinslerMetric, convert: Callable[[Array], Array]) -> FinslerMetric:
    """Return a copy of a metric whose arrays are converted.

    A metric that is a function has none: its vectors are converted, and its lengths back.
    """
    if isinstance(metric, CallableMetric) or not type(metric).__module__.startswith("finslerconv."):
        like = convert(metric.like)
        if is_numpy(like) == is_numpy(metric.like):
            return metric

        def norm(v: Array) -> Array:
            own = as_tensor("v", v).detach().cpu().to(as_tensor("like", metric.like).dtype)
            lengths = as_tensor("norm", metric.norm(as_kind_of(own, metric.like)))
            return as_kind_of(lengths.to(as_tensor("v", v)), v)

        return CallableMetric(norm, metric.dim, like=like)

    def converted(value: Any) -> Any:
        if is_numpy(value) or is_tensor(value):
            return convert(value)
        if isinstance(value, FinslerMetric):
            return with_arrays(value, convert)
        return tuple(map(converted, value)) if type(value) is tuple else value

    made = copy.copy(metric)
    for name, value in vars(metric).items():
        setattr(made, name, converted(value))
    return made


def between_nodes(
    metric: FinslerMetric, shape: tuple[int, ...], grid: tuple[int, ...], t: Tensor, first: Any
) -> FinslerMetric:
    """Return the metrics at coordinates ``t`` in nodes: of the energies, interpolated linearly.

    Parameters
    ----------
    metric : FinslerMetric
        Whose batch broadcasts to ``shape``, that of the batch of fields and the grid.
    grid : tuple of int
        The last axes of ``shape``.
    t : Tensor, shape (..., d)
    first : Tensor of int
        The number of the first node of the grid that each of ``t`` is in.
    """
    if metric.batch_shape == ():
        return metric
    if not hasattr(metric, "__getitem__"):
        raise TypeError(
            "field: expected metrics that can be indexed, to be read between the nodes: by a "
            "method __getitem__, by which metric[index] is the metric at an index of the batch, "
            f"got {type(metric).__name__}; metrics.Tabulated.of(metric) has one"
        )
    own = (1,) * (len(shape) - len(metric.batch_shape)) + metric.batch_shape
    around = []
    for node, weight in nodes_around(t, grid):
        index = torch.unravel_index(node + first, shape)
        held = [i * (n > 1) for i, n in zip(index, own, strict=True)][-len(metric.batch_shape) :]
        around.append((metric[tuple(as_kind_of(i, metric.like) for i in held)], weight))

    def norm(v: Array) -> Array:
        # Energies of norms add up to that of a norm.
        parts = [torch.as_tensor(m.energy(v)) * w.to(as_tensor("v", v)) for m, w in around]
        total = 2 * sum(parts[1:], parts[0])
        return as_kind_of(total.sqrt(), v)

    return CallableMetric(norm, metric.dim, like=metric.like)
