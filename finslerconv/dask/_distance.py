"""Distances from many sources, chunk by chunk of the sources."""

import math
from numbers import Number
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.base import get_scheduler
from torch import Tensor

from finslerconv._arrays import as_integer, shown
from finslerconv.geodesics import Curve, DistanceMethod, GridMetric
from finslerconv.geodesics import distance as distance_in_memory


def distance(
    field: GridMetric,
    sources: Any,
    method: str | DistanceMethod = "fast_marching",
    *,
    chunks: int = 8,
    values: Any = None,
    reverse: bool = False,
    mask: Any = None,
    radius: float = math.inf,
    targets: Any = None,
    **options: Any,
) -> da.Array:
    r"""Return the distances of many problems, a task for each chunk of them.

    The same as :func:`finslerconv.geodesics.distance`, which is called for every chunk. The field
    is sent to the workers once: to a cluster it is scattered when this function is called.

    Parameters
    ----------
    field : GridMetric
        One field, without a batch, of arrays in memory.
    sources : array or list
        The sources of each problem, as :func:`finslerconv.geodesics.distance` takes them, with at
        least one axis of problems: positions of shape (\*problems, sources, d), so that of ``n``
        single sources (n, 1, d); boolean arrays (\*problems, \*grid); or a list with an entry for
        each problem. Chunks are cut along the first axis.
    method : str or DistanceMethod
    chunks : int
        How many problems of the first axis are one call.
    values, mask, targets
        Those that have the first axis of the problems are cut with it.
    reverse, radius, \*\*options
        As of :func:`finslerconv.geodesics.distance`.

    Returns
    -------
    dask.array.Array, shape (\*problems, \*grid)
        NumPy's in the chunks, also where the field has tensors, and without gradients.

    Raises
    ------
    TypeError
        If ``field`` is no GridMetric, or ``sources`` no array and no list.
    ValueError
        If the field is a batch, there is one problem only, or an axis of problems does not fit.
        What :func:`finslerconv.geodesics.distance` raises comes when the result is computed.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.dask import distance
    >>> from finslerconv.geodesics import GridMetric
    >>> field = GridMetric(np.broadcast_to(np.eye(2), (32, 32, 2, 2)))
    >>> sources = np.random.default_rng(0).uniform(0, 31, (100, 1, 2))
    >>> lengths = distance(field, sources, chunks=25)
    >>> lengths
    dask.array<concatenate, shape=(100, 32, 32), dtype=float64, chunksize=(25, 32, 32), chunktype=numpy.ndarray>
    >>> lengths.min(axis=0).compute().shape  # to the nearest source
    (32, 32)
    """  # noqa: E501
    if not isinstance(field, GridMetric):
        raise TypeError(f"field: expected a GridMetric, got {type(field).__name__}")
    if field.batch_shape:
        raise ValueError(
            f"field: expected one field, got a batch of shape {field.batch_shape}; call this "
            "function for each"
        )
    chunks = as_integer("chunks", chunks)
    grid = field.grid_shape
    sources, problems = _problems(sources, field)
    cut = {
        "values": (_whole(values), 1),
        "mask": (mask, len(grid)),
        "targets": (_whole(targets), len(grid) if _boolean(targets) else 2),
    }
    shared = _shared(field.detach())
    call = dask.delayed(_distances, pure=False)
    dtype = np.dtype(str(field.like.dtype).removeprefix("torch."))
    found = []
    for first in range(0, problems[0], chunks):
        some = slice(first, min(first + chunks, problems[0]))
        arguments: dict[str, Any] = {
            name: _cut(name, each, core, problems, some) for name, (each, core) in cut.items()
        }
        arguments |= {"reverse": reverse, "radius": radius, **options}
        lengths = call(shared, dask.delayed(sources[some], traverse=False), method, arguments)
        shape = (some.stop - first, *problems[1:], *grid)
        found.append(da.from_delayed(lengths, shape, dtype=dtype, meta=np.empty((0,), dtype)))
    return da.concatenate(found)


def _distances(
    field: GridMetric, sources: Any, method: str | DistanceMethod, arguments: dict[str, Any]
) -> np.ndarray:
    """Return the distances of one chunk of problems."""
    lengths = distance_in_memory(field, sources, method, **arguments)
    return lengths if isinstance(lengths, np.ndarray) else lengths.detach().cpu().numpy()


def _problems(sources: Any, field: GridMetric) -> tuple[Any, tuple[int, ...]]:
    """Return the sources, of which a slice is those of some problems, and the problems' axes."""
    single = f"sources: expected an axis of problems, shape (problems, sources, {field.dim}), got "
    sources = _whole(sources)
    if isinstance(sources, list | tuple):
        if not any(isinstance(x, list | tuple | Curve) or hasattr(x, "shape") for x in sources):
            raise ValueError(f"{single}{shown(sources)}")
        return sources, (len(sources),)
    if not hasattr(sources, "shape"):
        raise TypeError(f"sources: expected an array or a list, got {type(sources).__name__}")
    core = field.dim if _boolean(sources) else 2
    problems = tuple(sources.shape[: max(0, sources.ndim - core)])
    if not problems or 0 in problems:
        raise ValueError(
            f"{single}{tuple(sources.shape)}; of n single sources give shape (n, 1, {field.dim})"
        )
    return sources, problems


def _whole(x: Any) -> Any:
    """Return nested lists of numbers as an array, and tensors without gradient history."""

    def plain(x: Any) -> bool:
        return isinstance(x, Number) or (isinstance(x, list | tuple | range) and all(map(plain, x)))

    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, list | tuple) and plain(x):
        try:
            return np.asarray(x)
        except ValueError:  # a problem each, of different numbers of sources
            return list(x)
    return x


def _boolean(x: Any) -> bool:
    return str(getattr(x, "dtype", "")).endswith("bool")


def _cut(name: str, x: Any, core: int, problems: tuple[int, ...], some: slice) -> Any:
    """Return what belongs to some problems of an argument that has their axes or is for all.

    ``core`` is the number of the axes behind those of the problems.
    """
    if isinstance(x, list | tuple):
        axes: tuple[int, ...] = (len(x),)
    elif hasattr(x, "shape"):
        axes = tuple(x.shape[: max(0, x.ndim - core)])
    else:  # a number, a curve, or nothing
        return x
    if len(axes) < len(problems) or (len(axes) == len(problems) and axes[0] == 1):
        return x
    if len(axes) > len(problems) or axes[0] != problems[0]:
        raise ValueError(
            f"{name}: expected axes of problems that broadcast to those of the sources, "
            f"{problems}, got {axes}"
        )
    return x[some]


def _shared(field: GridMetric) -> Any:
    """Return the field as one object that all tasks take, on the cluster if there is one."""
    client: Any = getattr(get_scheduler(), "__self__", None)
    if client is not None and hasattr(client, "scatter") and not client.asynchronous:
        return client.scatter(field)
    return dask.delayed(field, traverse=False)
