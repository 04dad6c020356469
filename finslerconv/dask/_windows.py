"""Arrays cut into windows: each chunk with a halo of what is around it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.array.overlap import overlap

#: The axes of an array by their names: those of the same name in two arrays are cut at one place.
Axes = Sequence[str]


def space_axes(dims: int) -> tuple[str, ...]:
    """Return the names of the ``dims`` axes of space of a picture."""
    return ("first", "second", "third")[:dims]


@dataclass(frozen=True)
class Windows:
    """A picture (batch, channels, *space), each chunk with its halo, all channels in each."""

    array: da.Array
    """The windows, which overlap."""
    picture: da.Array
    """The picture, of the chunks that are the cores of the windows."""
    places: list[da.Array]
    """For each axis of space an array (blocks, 2): where the core begins, and its size."""

    @classmethod
    def of(cls, picture: da.Array, halo: Sequence[int], *, circular: bool = False) -> "Windows":
        """Return windows with ``halo`` pixels more on both sides, an entry for each axis of space.

        They end at the borders of the picture, or with ``circular`` go on at its other end. Chunks
        thinner than the halo become one with their neighbours. A chunk that is the whole axis needs
        no halo: it has all that there is.
        """
        space = range(2, picture.ndim)
        chunks = dict(enumerate(picture.chunks)) | {1: (picture.shape[1],)}
        for axis, depth in zip(space, halo, strict=True):
            chunks[axis] = _at_least(chunks[axis], depth)
        picture = picture.rechunk(chunks)
        depths = {
            axis: depth if len(chunks[axis]) > 1 else 0
            for axis, depth in zip(space, halo, strict=True)
        }
        around = "periodic" if circular else "none"
        array = overlap(
            picture, depth={0: 0, 1: 0, **depths}, boundary=dict.fromkeys(space, around)
        )
        places = []
        for axis in space:
            table = np.array([(depths[axis], size) for size in chunks[axis]])
            if not circular:
                table[0, 0] = 0
            places.append(da.from_array(table, chunks=(1, 2)))
        return cls(array, picture, places)

    @property
    def dims(self) -> int:
        """The number of axes of space."""
        return len(self.places)

    def map(
        self,
        function: Callable[..., np.ndarray],
        axes: Axes,
        others: Iterable[tuple[da.Array, Axes]],
        dtype: np.dtype,
        *,
        new_axes: dict[str, int] | None = None,
        size: int | None = None,
        **options: Any,
    ) -> da.Array:
        """Return an array of what ``function(window, places, *others, **options)`` makes of each.

        ``axes`` are those of the result, whose chunks are as the cores, or of ``size`` along each
        axis of space; ``others`` are arrays with their axes.
        """
        space = space_axes(self.dims)
        given: list[Any] = [self.array, ("batch", "channel", *space)]
        for axis, table in zip(space, self.places, strict=True):
            given += [table, (axis, "place")]
        for array, names in others:
            given += [array, tuple(names)]
        cores = self.picture.chunks[2:]
        chunks = (
            dict(zip(space, cores, strict=True)) if size is None else dict.fromkeys(space, size)
        )
        return da.blockwise(
            _called, tuple(axes), *given, function=function, dims=self.dims, options=options,
            new_axes=new_axes or {}, adjust_chunks=chunks, align_arrays=False, concatenate=True,
            dtype=dtype, meta=np.empty((0,) * len(axes), dtype),
        )  # fmt: skip


def _called(
    window: np.ndarray,
    *arrays: np.ndarray,
    function: Callable[..., np.ndarray],
    dims: int,
    options: dict[str, Any],
) -> np.ndarray:
    places = [(int(begin), int(begin + size)) for ((begin, size),) in arrays[:dims]]
    return function(window, [slice(*each) for each in places], *arrays[dims:], **options)


def check_picture(name: str, array: Any, dims: Sequence[int]) -> None:
    """Raise an error unless ``array`` is a Dask array (batch, channels, *space) of floats."""
    if not isinstance(array, da.Array):
        raise TypeError(
            f"{name}: expected a dask.array.Array, got {type(array).__name__}; make one with "
            "dask.array.from_array(..., chunks=...) or from_zarr"
        )
    if array.ndim - 2 not in dims:
        wanted = " or ".join(f"{n} axes" for n in dims)
        raise ValueError(
            f"{name}: expected shape (batch, channels, *space) with {wanted} of space, got "
            f"{array.shape}"
        )
    if np.isnan(array.shape).any():
        raise ValueError(
            f"{name}: expected chunks of known sizes, got shape {array.shape}; call "
            "compute_chunk_sizes()"
        )
    if 0 in array.shape:
        raise ValueError(f"{name}: expected no axis of length 0, got shape {array.shape}")


def as_dask(name: str, array: Any, chunks: Sequence[Any]) -> da.Array:
    """Return an array as one of Dask of these chunks; -1 stands for a whole axis."""
    if isinstance(array, np.ndarray):
        return da.from_array(array, chunks=tuple(chunks))
    if not isinstance(array, da.Array):
        raise TypeError(
            f"{name}: expected a dask.array.Array or a NumPy array, got {type(array).__name__}"
        )
    return array.rechunk(tuple(chunks))


def _at_least(sizes: tuple[int, ...], least: int) -> tuple[int, ...]:
    """Return chunk sizes in which neighbours are joined until all are of at least ``least``."""
    joined: list[int] = []
    for size in sizes:
        if joined and joined[-1] < least:
            joined[-1] += size
        else:
            joined.append(size)
    if len(joined) > 1 and joined[-1] < least:
        last = joined.pop()
        joined[-1] += last
    return tuple(joined)
