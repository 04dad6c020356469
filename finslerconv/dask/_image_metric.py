"""Metrics of pictures in chunks, equal to those of the whole picture."""

from collections.abc import Callable

import dask.array as da
import numpy as np
import torch
from torch import Tensor

from finslerconv import _parts
from finslerconv._arrays import as_integer
from finslerconv.dask._windows import Axes, Windows, check_picture, space_axes
from finslerconv.metrics import FinslerMetric, RandersForm

# The side of the picture on which a function is tried.
_TRIED = 8


def image_metric(
    image: da.Array,
    function: Callable[[Tensor], FinslerMetric],
    *,
    margin: int | None = None,
    lazy: bool = False,
) -> RandersForm:
    r"""Return the metric that a function computes of a picture, chunk by chunk.

    It is the metric of the whole picture within rounding: chunks see as far around themselves as
    the function looks, borders are those of the picture, and what :mod:`finslerconv.images` takes
    relative to the largest gradient is relative to that of the whole picture. These largest values
    are **computed now**, in a pass over the picture for each, two for each of the library's
    functions; the metric is not.

    Parameters
    ----------
    image : dask.array.Array, shape (batch, channels, \*space)
        A picture in two axes or a volume in three, in chunks of any size, float32 or float64.
    function : callable
        From a picture, a tensor (batch, channels, \*space), to a Riemannian or Randers metric of
        batch shape (batch, \*space): a function of :mod:`finslerconv.images`, with
        ``functools.partial`` for its options, or one that calls such functions, or your own.
    margin : int, optional
        How many pixels around a pixel ``function`` itself uses, besides what functions of
        :mod:`finslerconv.images` do in it: 0 where it works pixel by pixel. It may be left out of a
        function that calls one of these, and is 0 then. A value below the truth gives wrong metrics
        along the borders of chunks, without an error.
    lazy : bool
        Whether to leave the largest values to be computed with the metric, each time anew. The
        chunks of the picture are then held from the first pass to the last.

    Returns
    -------
    RandersForm
        ``M``, a Dask array (batch, \*space, d, d), and ``omega``, (batch, \*space, d), or None for
        a Riemannian metric. NumPy's in the chunks, of the picture's dtype.

    Raises
    ------
    TypeError
        If ``image`` is no Dask array of float32 or float64, or ``function`` returns no metric.
    ValueError
        If the shape of the image or of the metric does not fit, the metric is of another kind, or
        nothing tells the margin. What ``function`` itself raises comes when a chunk is computed.

    Examples
    --------
    >>> from functools import partial
    >>> import dask.array as da
    >>> import numpy as np
    >>> from finslerconv.dask import image_metric
    >>> from finslerconv.images import gradient_metric, photograph
    >>> photo = photograph()[None, None] / 255
    >>> M, omega = image_metric(da.from_array(photo, chunks=200), partial(gradient_metric, tau=0.5))
    >>> M
    dask.array<getitem, shape=(1, 512, 512, 2, 2), dtype=float64, chunksize=(1, 200, 200, 2, 2), chunktype=numpy.ndarray>
    >>> np.abs(M.compute() - gradient_metric(photo, tau=0.5).M).max() < 1e-12
    np.True_
    """  # noqa: E501
    check_picture("image", image, (2, 3))
    if image.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"image: expected float32 or float64, got {image.dtype}; convert it with "
            "image.astype(float)"
        )
    tried, form = _try(function, image)
    if margin is not None:
        margin = as_integer("margin", margin, least=0)
    elif tried.margin is None:
        raise ValueError(
            "margin: expected how many pixels around a pixel the function uses, since it calls no "
            "filter of finslerconv.images, got None; give 0 if it works pixel by pixel"
        )
    dims = image.ndim - 2
    windows = Windows.of(image, ((margin or 0) + (tried.margin or 0),) * dims)
    space = space_axes(dims)
    answers: list[tuple[da.Array, Axes]] = []
    for number, width in enumerate(tried.asked):
        asked = windows.map(
            _largest, ("batch", "largest", *space), answers, image.dtype, size=1,
            new_axes={"largest": width}, of=function,
        )  # fmt: skip
        largest = asked.max(axis=tuple(range(2, image.ndim)))
        if not lazy:
            largest = da.from_array(largest.compute(), chunks=largest.chunks)
        answers.append((largest, ("batch", f"answer {number}")))
    # One array, so that M and omega of a chunk are computed together.
    columns = dims + (form.omega is not None)
    entries = windows.map(
        _entries, ("batch", *space, "row", "column"), answers, image.dtype,
        new_axes={"row": dims, "column": columns}, of=function,
    )  # fmt: skip
    omega = None if form.omega is None else entries[..., dims]
    return RandersForm(entries[..., :dims], omega)


def _try(
    function: Callable[[Tensor], FinslerMetric], image: da.Array
) -> tuple[_parts.Part, RandersForm]:
    """Return what a function asks of a small picture, and the metric that it has there."""
    dims = image.ndim - 2
    size = (_TRIED,) * dims
    picture = torch.zeros(1, image.shape[1], *size, dtype=_torch_dtype(image.dtype))
    whole = _parts.Part(slice(0, _TRIED), slice(0, _TRIED))
    with _parts.computing(whole):
        return whole, _form(function, picture)


def _form(function: Callable[[Tensor], FinslerMetric], picture: Tensor) -> RandersForm:
    """Return the metric of a picture by tensors over its batch and space."""
    with torch.no_grad():
        metric = function(picture)
    if not isinstance(metric, FinslerMetric):
        raise TypeError(f"function: expected it to return a metric, got {type(metric).__name__}")
    form = metric.randers_form(picture)
    if form is None:
        raise ValueError(
            f"function: expected a Riemannian or Randers metric, got {type(metric).__name__}, "
            "which has no convolution"
        )
    batch = (len(picture), *picture.shape[2:])
    d = len(batch) - 1
    try:
        M = torch.broadcast_to(torch.as_tensor(form.M), (*batch, d, d))
        omega = form.omega
        if omega is not None:
            omega = torch.broadcast_to(torch.as_tensor(omega), (*batch, d))
    except RuntimeError as error:
        raise ValueError(
            f"function: expected a metric of batch shape {batch} and dimension {d} for a picture "
            f"of shape {tuple(picture.shape)}, got {metric.batch_shape} and {metric.dim}"
        ) from error
    return RandersForm(M, omega)


def _largest(
    window: np.ndarray,
    core: list[slice],
    *answers: np.ndarray,
    of: Callable[[Tensor], FinslerMetric],
) -> np.ndarray:
    """Return the largest values that the function asks for beyond the answers, of a core."""
    try:
        _form_of_part(window, core, answers, of)
    except _parts.Unknown as question:
        largest = question.largest.detach().numpy()
        return largest.reshape(*largest.shape, *(1,) * len(core))
    raise RuntimeError(
        "function: expected it to compute the same for every picture, but it asked for fewer of "
        "the picture's largest values than on another one"
    )


def _entries(
    window: np.ndarray,
    core: list[slice],
    *answers: np.ndarray,
    of: Callable[[Tensor], FinslerMetric],
) -> np.ndarray:
    """Return the matrices of a core, and the one-forms as one more column."""
    form = _form_of_part(window, core, answers, of)
    inner = (slice(None), *core)
    columns = [form.M[inner]]
    if form.omega is not None:
        columns.append(form.omega[inner][..., None])
    return torch.cat(columns, dim=-1).numpy()


def _form_of_part(
    window: np.ndarray,
    core: list[slice],
    answers: tuple[np.ndarray, ...],
    function: Callable[[Tensor], FinslerMetric],
) -> RandersForm:
    part = _parts.Part(core[-2], core[-1], [torch.as_tensor(answer) for answer in answers])
    picture = torch.from_numpy(np.require(window, requirements=("C", "W")))
    with _parts.computing(part):
        return _form(function, picture)


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
