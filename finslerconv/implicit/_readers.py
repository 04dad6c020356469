"""Where an existing layer takes its samples: what is known of which kinds of layers."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from finslerconv._foreign import OFFSET_HEADS, is_attention, torchvision_deform
from finslerconv.balls import ReferenceSet
from finslerconv.implicit._aggregations import read_attention, read_taps
from finslerconv.implicit._positions import KernelPositions
from finslerconv.metrics import Randers, Riemannian
from finslerconv.nn import (
    AdaptiveConv,
    DCNv3,
    DCNv4,
    DeformConv2d,
    GeodesicConv2d,
    GivenOffsetConv2d,
    MetricConv2d,
    ShiftedConv2d,
)
from finslerconv.nn.weighted import density_of
from finslerconv.ops import ConvGeometry


@runtime_checkable
class Positioned(Protocol):
    """A layer that tells its positions itself, as ``finslerconv.nn.MetricConv2d`` does.

    Any module with these two methods is understood. It may also have a method ``modulation(x)``
    (a factor for every sample, shape (B, [G,] Ho, Wo, n), or None), and the attributes ``weight``,
    ``reference`` (a ReferenceSet) and ``map``. Both methods get the arguments of ``forward``.

    Examples
    --------
    >>> from finslerconv.implicit import Positioned
    >>> from finslerconv.nn import MetricConv2d
    >>> isinstance(MetricConv2d(3, 8, 3), Positioned)
    True
    """

    def positions(self, x: Any) -> Tensor:
        """Return displacements (B, [G,] Ho, Wo, n, 2) from the kernel's centre, in pixels."""

    def geometry(self) -> ConvGeometry:
        """Return kernel size, stride, padding and dilation."""


#: From a layer and the arguments of its forward method to its positions, or to those on each level.
Reader = Callable[..., KernelPositions | tuple[KernelPositions, ...]]

_Registered = TypeVar("_Registered", bound=Reader)

_readers: dict[type[nn.Module], Reader] = {DCNv3: read_taps, DCNv4: read_taps}


def register_positions(kind: type[nn.Module]) -> Callable[[_Registered], _Registered]:
    """Teach :func:`kernel_positions` a class of layers from elsewhere.

    Parameters
    ----------
    kind : type
        A class of modules; it holds for its subclasses too, unless they are registered themselves.

    Returns
    -------
    callable
        A decorator of a function ``(layer, *args) -> KernelPositions``, where ``args`` are what the
        layer's ``forward`` takes; of a layer that samples several images, it returns a tuple, one
        for each. A second registration of a class replaces the first.

    Raises
    ------
    TypeError
        If ``kind`` is no class of modules.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from finslerconv.implicit import KernelPositions, kernel_positions, register_positions
    >>> class Blur(nn.Module):
    ...     def forward(self, x):
    ...         return nn.functional.avg_pool2d(x, 3, 1, 1)
    >>> @register_positions(Blur)
    ... def read(layer, x):
    ...     return kernel_positions(nn.Conv2d(1, 1, 3, padding=1), x[:, :1])
    >>> kernel_positions(Blur(), torch.rand(1, 4, 6, 6)).points.shape
    torch.Size([1, 6, 6, 9, 2])
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"kind: expected a class of nn.Module, got {kind!r}")

    def register(reader: _Registered) -> _Registered:
        _readers[kind] = reader
        return reader

    return register


@torch.no_grad()
def kernel_positions(layer: nn.Module, x: Tensor | Sequence[Any]) -> KernelPositions:
    """Return where a layer takes its samples at every output pixel, for the input ``x``.

    Parameters
    ----------
    layer : nn.Module
        One of

        - ``nn.Conv2d``, with stride and dilation, weighted or not;
        - :class:`~finslerconv.nn.GivenOffsetConv2d`, ``torchvision.ops.DeformConv2d``, and the
          layers of mmcv and detectron2 that are called with their offsets;
        - a pack, which holds the convolution of its offsets (``conv_offset`` or
          ``conv_offset_mask``, with 2 or 3 channels a tap), as mmcv's ``DeformConv2dPack`` and
          ``ModulatedDeformConv2dPack``;
        - :class:`~finslerconv.nn.DCNv3` and :class:`~finslerconv.nn.DCNv4`;
        - multi-scale deformable attention (:class:`~finslerconv.nn.MSDeformAttn`, that of
          Deformable DETR, mmcv or transformers) on one level;
        - a layer for images that tells its positions (:class:`Positioned`), as those of this
          library do;
        - a layer of a class given to :func:`register_positions`.
    x : Tensor or tuple
        The input (B, C, H, W) or (C, H, W); or the tuple of the arguments of the layer's
        ``forward``, such as ``(x, offset)`` or ``(x, offset, mask)``.

    Returns
    -------
    KernelPositions
        Without gradient.

    Raises
    ------
    TypeError
        If the layer is of none of these kinds; :func:`find_adaptive_layers` finds those in it.
    ValueError
        If the input does not fit the layer, the layer is lazy and was never called, or it samples
        several levels, whose positions :func:`level_positions` returns.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from finslerconv.implicit import kernel_positions
    >>> where = kernel_positions(nn.Conv2d(3, 8, 3, dilation=2), torch.rand(1, 3, 16, 16))
    >>> where.kind, where.points.shape
    ('dilated', torch.Size([1, 12, 12, 9, 2]))
    >>> where.points[0, 0, 0, 0]
    tensor([-2., -2.])
    """
    levels = level_positions(layer, x)
    if len(levels) != 1:
        raise ValueError(
            f"layer: {type(layer).__name__} samples {len(levels)} levels; level_positions returns "
            "the positions on each"
        )
    return levels[0]


@torch.no_grad()
def level_positions(layer: nn.Module, x: Tensor | Sequence[Any]) -> tuple[KernelPositions, ...]:
    """Return where a layer takes its samples on each of the levels that it samples.

    Parameters
    ----------
    layer : nn.Module
        A layer that :func:`kernel_positions` knows; all but attention have one level.
    x : Tensor or tuple
        Its input, or the tuple of the arguments of its ``forward``.

    Returns
    -------
    tuple of KernelPositions
        Without gradient.

    Raises
    ------
    TypeError, ValueError
        As :func:`kernel_positions`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.implicit import level_positions
    >>> from finslerconv.nn import MSDeformAttn
    >>> layer = MSDeformAttn(d_model=64, n_levels=2, n_heads=4, n_points=3)
    >>> shapes = torch.tensor([[8, 6], [4, 3]])
    >>> maps, query = torch.randn(1, 60, 64), torch.randn(1, 10, 64)
    >>> where = level_positions(layer, (query, torch.rand(1, 10, 2, 2), maps, shapes))
    >>> where[1].input_size, where[1].points.shape  # image, head, one row of queries, point
    ((4, 3), torch.Size([1, 4, 1, 10, 3, 2]))
    """
    reader = reader_of(layer)
    if reader is None and is_no_image_layer(layer):
        raise TypeError(
            f"layer: {type(layer).__name__} is over {layer.dims} axes, and implicit metrics are "
            "read from layers for images, over two; layer.positions(x) returns its samples, and "
            "layer.metric(x) the metrics of a metric convolution"
        )
    if reader is None:
        raise TypeError(
            f"layer: {type(layer).__name__} is not known; find_adaptive_layers(model, x) finds the "
            "layers inside a model, and register_positions teaches the positions of a class"
        )
    arguments = tuple(x) if isinstance(x, tuple | list) else (x,)
    if not arguments or not isinstance(arguments[0], Tensor):
        got = type(arguments[0]).__name__ if arguments else "nothing"
        raise TypeError(f"x: expected a Tensor, or the tuple of the layer's arguments, got {got}")
    return in_levels(reader(layer, *arguments))


def in_levels(read: KernelPositions | tuple[KernelPositions, ...]) -> tuple[KernelPositions, ...]:
    """Return what a reader returned as one for each level."""
    return read if isinstance(read, tuple) else (read,)


def reader_of(layer: nn.Module) -> Reader | None:
    """Return the function that reads a layer's positions, None if it is of no known kind."""
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer: expected an nn.Module, got {type(layer).__name__}")
    for kind in type(layer).__mro__:
        if kind in _readers:
            return _readers[kind]
    if is_no_image_layer(layer):
        return None
    if isinstance(layer, Positioned):
        return _read_positioned
    if is_attention(layer):
        return read_attention
    if isinstance(layer, nn.Conv2d) and (density_of(layer) is not None or _runs(layer, nn.Conv2d)):
        return _read_conv2d
    # What follows may also derive from nn.Conv2d, with a forward method of its own.
    if not _has_kernel(layer):
        return None
    if _offset_conv(layer) is not None:
        return _read_pack
    named = isinstance(layer, GivenOffsetConv2d) or any(
        hasattr(layer, name) for name in ("deform_groups", "deformable_groups")
    )
    torchvisions = torchvision_deform(layer)
    own = torchvisions is not None and _runs(layer, torchvisions)
    return _read_deformable if named or own else None


def is_no_image_layer(layer: nn.Module) -> bool:
    """Return whether a layer is one of this library's for sequences or volumes."""
    return isinstance(layer, AdaptiveConv) and layer.dims != 2


def deformable_positions(
    input_size: tuple[int, int],
    geometry: ConvGeometry,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
) -> KernelPositions:
    """Return the positions of offsets (B, G * n * 2, Ho, Wo) from the taps."""
    n = geometry.n_taps
    rows, columns = geometry.output_size(*input_size)
    if offset.ndim != 4 or offset.shape[1] % (2 * n) or tuple(offset.shape[2:]) != (rows, columns):
        raise ValueError(
            f"offset: expected shape (B, {2 * n} * groups, {rows}, {columns}) for a kernel of "
            f"{geometry.kernel_size[0]} x {geometry.kernel_size[1]}, got {tuple(offset.shape)}"
        )
    groups = offset.shape[1] // (2 * n)
    if mask is not None and tuple(mask.shape) != (len(offset), groups * n, rows, columns):
        raise ValueError(
            f"mask: expected shape {(len(offset), groups * n, rows, columns)}, got "
            f"{tuple(mask.shape)}"
        )
    offset = _exact(offset).unflatten(1, (groups, n, 2)).permute(0, 1, 4, 5, 2, 3)
    points = offset + geometry.taps(offset)
    if mask is not None:
        mask = _exact(mask).unflatten(1, (groups, n)).movedim(2, -1)
    if groups == 1:
        points, mask = points[:, 0], None if mask is None else mask[:, 0]
    return KernelPositions(points, geometry, input_size, "deformable", True, mask, weight)


def _read_positioned(layer: Any, *args: Any) -> KernelPositions:
    told = getattr(layer, "modulation", None)
    factors = told(*args) if callable(told) else None
    reference, weight, map = (getattr(layer, name, None) for name in ("reference", "weight", "map"))
    kinds = (kind for cls, kind in _KINDS.items() if isinstance(layer, cls))
    return KernelPositions(
        _exact(layer.positions(*args)),
        layer.geometry(),
        _size(args[0]),
        next(kinds, type(layer).__name__),
        True,
        None if factors is None else _exact(factors),
        weight if isinstance(weight, Tensor) else None,
        reference if isinstance(reference, ReferenceSet) else None,
        map if map in ("radial", "affine") else None,
        _own_metric(layer, args),
    )


def _own_metric(layer: Any, args: tuple[Any, ...]) -> Randers | Riemannian | None:
    """Return the metric of a metric convolution in pixels, if it is of these kinds."""
    form = layer.metric(*args).randers_form() if isinstance(layer, MetricConv2d) else None
    if form is None:
        return None
    # The layer's lengths are in spacings between taps.
    M = _exact(form.M)
    shrink = 1 / torch.tensor(layer.dilation, dtype=M.dtype, device=M.device)
    M = shrink[:, None] * M * shrink
    if form.omega is None:
        return Riemannian(M, validate=False)
    return Randers(M, shrink * _exact(form.omega), validate=False)


def _read_conv2d(layer: nn.Conv2d, x: Tensor, *_: Any) -> KernelPositions:
    if isinstance(layer.weight, UninitializedParameter):
        raise ValueError(
            f"layer: {type(layer).__name__} is lazy and makes its weights in its first call; call "
            "it once before"
        )
    _check_image(x, layer.in_channels)
    padding: Any = layer.padding
    geometry = ConvGeometry.of(layer.kernel_size, layer.stride, padding, layer.dilation)
    rows, columns = geometry.output_size(*_size(x))
    batch = len(x) if x.ndim == 4 else 1
    taps = geometry.taps(_exact(x.new_empty(0)))
    density = density_of(layer)
    modulation = None
    kind = "standard" if geometry.dilation == (1, 1) else "dilated"
    if density is not None:
        modulation = density().to(taps).reshape(-1).expand(batch, rows, columns, -1)
        kind = "weighted"
    points = taps.expand(batch, rows, columns, -1, -1)
    return KernelPositions(points, geometry, _size(x), kind, False, modulation, layer.weight)


def _read_deformable(layer: Any, x: Tensor, *rest: Any) -> KernelPositions:
    if not rest or not isinstance(rest[0], Tensor):
        raise ValueError(
            f"x: {type(layer).__name__} is called with its offsets; pass the tuple (x, offset) or "
            "(x, offset, mask)"
        )
    _check_image(x, getattr(layer, "in_channels", None))
    mask = rest[1] if len(rest) > 1 else None
    return deformable_positions(_size(x), _geometry_of(layer), rest[0], mask, layer.weight)


def _read_pack(layer: Any, *args: Any) -> KernelPositions:
    x = args[0]
    _check_image(x, getattr(layer, "in_channels", None))
    geometry = _geometry_of(layer)
    conv = _offset_conv(layer)
    assert conv is not None
    # Where a pack takes the features for its offsets separately, they come last.
    channels = conv(args[-1])
    n = geometry.n_taps
    groups = int(getattr(layer, "deform_groups", getattr(layer, "deformable_groups", 1)))
    per_tap = conv.out_channels // (n * groups)
    if per_tap * n * groups != conv.out_channels or per_tap not in (2, 3):
        raise ValueError(
            f"layer: the offsets' convolution of {type(layer).__name__} has {conv.out_channels} "
            f"channels; expected 2 or 3 for each of {groups} x {n} samples"
        )
    offset, mask = channels, None
    if per_tap == 3:
        offset, mask = channels[:, : 2 * n * groups], channels[:, 2 * n * groups :].sigmoid()
    return deformable_positions(_size(x), geometry, offset, mask, layer.weight)


def _geometry_of(layer: Any) -> ConvGeometry:
    kernel = layer.weight.shape[-2:]
    return ConvGeometry.of(tuple(kernel), layer.stride, layer.padding, layer.dilation)


def _has_kernel(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    names = ("stride", "padding", "dilation")
    return isinstance(weight, Tensor) and weight.ndim == 4 and all(hasattr(layer, n) for n in names)


def _offset_conv(layer: nn.Module) -> nn.Conv2d | None:
    for name in OFFSET_HEADS:
        conv = getattr(layer, name, None)
        if isinstance(conv, nn.Conv2d):
            return conv
    return None


def _runs(layer: nn.Module, kind: type[Any]) -> bool:
    """Return whether a layer has the forward method of that class."""
    return type(layer).forward is kind.forward


#: What the layers of this library are called in :class:`KernelPositions`.
_KINDS: dict[type[nn.Module], str] = {
    MetricConv2d: "metric",
    GeodesicConv2d: "geodesic",
    DeformConv2d: "deformable",
    ShiftedConv2d: "shifted",
}


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _check_image(x: Tensor, channels: int | None) -> None:
    if x.ndim not in (3, 4) or (channels is not None and x.shape[-3] != channels):
        wanted = "C" if channels is None else channels
        raise ValueError(
            f"x: expected shape (B, {wanted}, H, W) or ({wanted}, H, W), got {tuple(x.shape)}"
        )


def _exact(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least: half precision would move positions by pixels."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
