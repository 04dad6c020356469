"""Metric convolutions of pictures in chunks, equal to those of the whole picture."""

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import torch
from torch import Tensor

from finslerconv import ops
from finslerconv._arrays import is_number, shown
from finslerconv.balls import MapName, ball_map
from finslerconv.dask._windows import Axes, Windows, as_dask, check_picture, space_axes
from finslerconv.metrics import Randers, Riemannian
from finslerconv.ops import ConvGeometry, Convolution, PaddingMode, Positions, convolve

# Relative differences of a reach that are rounding.
_ROUNDING = 1e-5


def metric_conv(
    input: da.Array,
    M: da.Array | np.ndarray,
    omega: da.Array | np.ndarray | None,
    points: Any,
    weight: Any,
    bias: Any = None,
    dilation: int | Sequence[int] = 1,
    mask: da.Array | np.ndarray | None = None,
    *,
    map: MapName = "radial",
    padding_mode: PaddingMode = "zeros",
    reach: float | Sequence[float] | None = None,
) -> da.Array:
    r"""Convolve a picture in chunks at samples of the unit balls of a field of metrics.

    The same as :func:`finslerconv.ops.metric_conv2d` with ``padding="same"`` (1d and 3d for
    signals and volumes), within rounding and at the borders too. Every chunk is computed with a
    halo as wide as the largest ball; chunks that are smaller than that are joined.

    Parameters
    ----------
    input : dask.array.Array, shape (B, C, \*space)
        With one, two or three axes of space, in chunks of any size, of floats.
    M : dask or NumPy array, shape (B, \*space, d, d) or (B, G, \*space, d, d)
        Symmetric positive definite matrices, in 1 / pixels^2, such as :func:`image_metric` returns.
    omega : dask or NumPy array, shape (B, \*space, d) or (B, G, \*space, d), or None
        One-forms; None for a Riemannian metric.
    points : array, shape (taps, d)
        Reference points of the Euclidean unit ball, in the order of the kernel.
    weight : array, shape (O, C // groups, \*kernel_size)
        With ``points`` and ``bias``, a NumPy array or a tensor. Gradients do not come back.
    bias : array, shape (O,), optional
    dilation : int or sequence of int
    mask : dask or NumPy array, shape (B, G * taps, \*space), optional
        A factor for every sample.
    map, padding_mode
        As of :func:`finslerconv.ops.metric_conv2d`.
    reach : float or sequence of float, optional
        How far samples are from their pixels at most, for all axes or each, in pixels: the width of
        the halo. Without it :func:`ball_reach` is **computed now**, which computes the metric once,
        in a first pass. With it nothing is computed, and a larger ball is an error of its chunk.

    Returns
    -------
    dask.array.Array, shape (B, O, \*space)
        NumPy's in the chunks, of the dtype of the input.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If shapes do not fit, or a metric is not valid. Where ``reach`` is given metrics are taken
        as valid, and a ball that goes beyond it is an error when the result is computed.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from finslerconv.balls import concentric
    >>> from finslerconv.dask import image_metric, metric_conv
    >>> from finslerconv.images import photograph, structure_tensor_metric
    >>> photo = da.from_array(photograph()[None, None] / 255, chunks=200)
    >>> M, omega = image_metric(photo, structure_tensor_metric)
    >>> mean = np.full((1, 1, 5, 5), 1 / 25)
    >>> smooth = metric_conv(photo, M, omega, concentric(5).points, mean, padding_mode="reflect")
    >>> smooth.shape, smooth.chunks[2]
    ((1, 1, 512, 512), (200, 200, 112))
    """
    check_picture("input", input, (1, 2, 3))
    dims = input.ndim - 2
    weight, points = _array("weight", weight), _array("points", points)
    bias = None if bias is None else _array("bias", bias)
    if weight.ndim != input.ndim:
        raise ValueError(
            f"weight: expected shape (O, C // groups, *kernel_size) with {dims} axes of the "
            f"kernel, got {tuple(weight.shape)}"
        )
    geometry = ConvGeometry.of(tuple(weight.shape[2:]), 1, "same", dilation, dims=dims)
    _check(input, M, omega, points, weight, bias, mask, geometry, map, padding_mode)
    if reach is None:
        found = ball_reach(M, omega, points, dilation=dilation, map=map).compute()
        extent = tuple(float(each) for each in found)
    else:
        extent = _as_reach(reach, dims)
    # A sample between pixels reads the next one.
    halo = [
        math.ceil(min(each, size) + abs(centre)) + 1
        for each, size, centre in zip(extent, input.shape[2:], geometry.origin, strict=True)
    ]
    windows = Windows.of(input, halo, circular=padding_mode == "circular")
    space = space_axes(dims)
    batch = [windows.picture.chunks[0]]
    chunks = list(windows.picture.chunks[2:])
    groups = M.ndim == dims + 4
    front: Axes = ("batch", "group", *space) if groups else ("batch", *space)
    whole = [-1] if groups else []
    others: list[tuple[da.Array, Axes]] = [
        (as_dask("M", M, [*batch, *whole, *chunks, -1, -1]), (*front, "row", "column"))
    ]
    if omega is not None:
        others.append((as_dask("omega", omega, [*batch, *whole, *chunks, -1]), (*front, "row")))
    if mask is not None:
        others.append((as_dask("mask", mask, [*batch, -1, *chunks]), ("batch", "tap", *space)))
    return windows.map(
        _convolved, ("batch", "out", *space), others, input.dtype,
        new_axes={"out": weight.shape[0]}, has_omega=omega is not None,
        has_mask=mask is not None, groups=groups, points=points, weight=weight, bias=bias,
        geometry=geometry, ball=map, padding_mode=padding_mode,
        reach=None if reach is None else extent,
    )  # fmt: skip


def ball_reach(
    M: da.Array | np.ndarray,
    omega: da.Array | np.ndarray | None,
    points: Any,
    *,
    dilation: int | Sequence[int] = 1,
    map: MapName = "radial",
) -> da.Array:
    r"""Return how far the samples of a metric convolution are from their pixels at most.

    That is the largest extent of the unit balls along each axis, to either side, times the length
    of the longest reference point: a bound, which a point in the direction of the axis attains.

    Parameters
    ----------
    M, omega, points, dilation, map
        As of :func:`metric_conv`, with any axes before the last of ``M`` and ``omega``.

    Returns
    -------
    dask.array.Array, shape (d,)
        In pixels.

    Raises
    ------
    ValueError
        When it is computed, if a metric is not valid.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from finslerconv.dask import ball_reach
    >>> M = da.from_array(np.broadcast_to(np.diag([1.0, 0.04]), (1, 64, 64, 2, 2)), chunks=32)
    >>> ball_reach(M, None, np.array([[-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])).compute()
    array([1., 5.])
    """
    ball_map(map)  # raises if there is no such map
    d = M.shape[-1]
    points = _array("points", points)
    steps = ConvGeometry.of(1, 1, 0, dilation, dims=d).dilation
    front = M.ndim - 2
    batch = ("auto",) * front
    M = as_dask("M", M, [*(M.chunks[:front] if isinstance(M, da.Array) else batch), -1, -1])
    names = tuple(f"batch {i}" for i in range(front))
    given: list[Any] = [M, (*names, "row", "column")]
    if omega is not None:
        given += [as_dask("omega", omega, [*M.chunks[:front], -1]), (*names, "row")]
    each = da.blockwise(
        _extent_of_block, (*names, "axis"), *given, new_axes={"axis": d},
        adjust_chunks=dict.fromkeys(names, 1), concatenate=True, align_arrays=False,
        dtype=np.float64, meta=np.empty((0,) * (front + 1)), points=points, steps=steps, ball=map,
    )  # fmt: skip
    return each.max(axis=tuple(range(front))) if front else each


def _extent_of_block(
    M: np.ndarray,
    omega: np.ndarray | None = None,
    *,
    points: np.ndarray,
    steps: tuple[int, ...],
    ball: MapName,
) -> np.ndarray:
    Riemannian(M) if omega is None else Randers(M, omega)  # which checks the values
    extent = _extent(M, omega, points, steps, ball)
    return np.array(extent).reshape(*(1,) * (M.ndim - 2), len(extent))


def _extent(
    M: np.ndarray,
    omega: np.ndarray | None,
    points: np.ndarray,
    steps: tuple[int, ...],
    ball: MapName,
) -> tuple[float, ...]:
    """Return bounds of the samples' distances along the axes, in pixels."""
    metric: Randers | Riemannian = (
        Riemannian(M, validate=False) if omega is None else Randers(M, omega, validate=False)
    )
    longest = float(np.sqrt((points.astype(float) ** 2).sum(-1).max()))
    extent = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for axis, step in zip(np.eye(M.shape[-1], dtype=M.dtype), steps, strict=True):
            # The dual norm is the ball's support: how far it goes in a direction.
            ahead, behind = metric.dual_norm(axis), metric.dual_norm(-axis)
            if ball == "radial":
                far = longest * np.maximum(ahead, behind)
            else:  # the ellipse about its centre is scaled, and the centre stays
                far = (longest * (ahead + behind) + np.abs(ahead - behind)) / 2
            extent.append(step * float(np.max(far)))
    return tuple(extent)


def _convolved(
    window: np.ndarray,
    core: list[slice],
    M: np.ndarray,
    *others: np.ndarray,
    has_omega: bool,
    has_mask: bool,
    groups: bool,
    points: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    geometry: ConvGeometry,
    ball: MapName,
    padding_mode: PaddingMode,
    reach: tuple[float, ...] | None,
) -> np.ndarray:
    """Return the convolution of a core."""
    omega = others[0] if has_omega else None
    mask = others[-1] if has_mask else None
    if reach is not None:
        found = _extent(M, omega, points, geometry.dilation, ball)
        if not all(a <= b * (1 + _ROUNDING) for a, b in zip(found, reach, strict=True)):
            raise ValueError(
                "reach: expected at least the extent of the largest ball, which is "
                f"{_shown(found)} pixels along the axes in this chunk, got {_shown(reach)}; leave "
                "reach out to have it computed"
            )
    # Padding that is negative lets the output begin at the core.
    before = tuple(b - c.start for b, c in zip(geometry.padding_before, core, strict=True))
    after = tuple(
        a - (n - c.stop)
        for a, c, n in zip(geometry.padding_after, core, window.shape[2:], strict=True)
    )
    inner = ConvGeometry(geometry.kernel_size, geometry.stride, geometry.dilation, before, after)
    field, form = _tensor(M), None if omega is None else _tensor(omega)
    if not groups:
        field, form = field[:, None], None if form is None else form[:, None]
    conv = Convolution(
        _tensor(window),
        Positions(ball, field, form, _tensor(points)),
        _tensor(weight),
        None if bias is None else _tensor(bias),
        None if mask is None else _tensor(mask),
        inner,
        padding_mode,
    )
    with torch.no_grad():
        return convolve(conv).numpy()


def _check(
    input: da.Array,
    M: Any,
    omega: Any,
    points: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    mask: Any,
    geometry: ConvGeometry,
    map: MapName,
    padding_mode: PaddingMode,
) -> None:
    """Check a convolution's arguments as the operators do, on tensors without values."""

    def meta(name: str, array: Any) -> Tensor:
        if not isinstance(array, da.Array | np.ndarray):
            raise TypeError(
                f"{name}: expected a dask.array.Array or a NumPy array, got {type(array).__name__}"
            )
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        return torch.empty(array.shape, dtype=dtype, device="meta")

    def optional(name: str, array: Any) -> Tensor | None:
        return None if array is None else meta(name, array)

    call = (ops.metric_conv1d, ops.metric_conv2d, ops.metric_conv3d)[geometry.dims - 1]
    call(
        meta("input", input), meta("M", M), optional("omega", omega), meta("points", points),
        meta("weight", weight), optional("bias", bias), 1, "same", geometry.dilation,
        optional("mask", mask), map=map, padding_mode=padding_mode,
    )  # fmt: skip


def _array(name: str, array: Any) -> np.ndarray:
    """Return a small argument, which goes with every task, as a NumPy array."""
    if isinstance(array, Tensor):
        return array.detach().cpu().numpy()
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name}: expected a NumPy array or a torch.Tensor, got {type(array).__name__}"
        )
    return array


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _as_reach(reach: Any, dims: int) -> tuple[float, ...]:
    """Return the argument ``reach`` for each axis."""
    each = [reach] * dims if is_number(reach) else list(reach) if np.iterable(reach) else []
    if len(each) != dims or not all(is_number(x) and 0 <= x < math.inf for x in each):
        raise ValueError(
            f"reach: expected a finite number of at least 0, or {dims} of them, got {shown(reach)}"
        )
    return tuple(float(x) for x in each)


def _shown(reach: Sequence[float]) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in reach) + ")"
