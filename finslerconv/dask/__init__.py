"""Pictures, volumes and sources too many for one machine: the library over Dask's arrays.

A function here computes what the function of the same purpose computes in memory, chunk by chunk,
and returns a Dask array, which is computed by ``compute()``. Numbers of the whole picture without
which there is no such array (its largest gradient, its largest ball) are computed first, in passes
that the docstrings name. Chunks are NumPy arrays. It needs the extra ``dask``.
"""

from finslerconv import _optional

with _optional.needs("dask", "finslerconv.dask"):
    import dask.array as _  # noqa: F401 - the extra, asked for once

from finslerconv.dask._conv import ball_reach, metric_conv
from finslerconv.dask._distance import distance
from finslerconv.dask._image_metric import image_metric

__all__ = ["image_metric", "metric_conv", "ball_reach", "distance"]
