"""The adaptive layers of a whole model, found by running it once."""

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from finslerconv._models import evaluating
from finslerconv.implicit._aggregations import read_attention
from finslerconv.implicit._positions import KernelPositions
from finslerconv.implicit._readers import (
    deformable_positions,
    in_levels,
    is_no_image_layer,
    reader_of,
)
from finslerconv.ops import ConvGeometry, convolution_of


@dataclass(frozen=True, eq=False)
class AdaptiveLayer:
    """A call of a convolution whose positions are its own, within a model.

    Parameters
    ----------
    name : str
        The dotted name of the module in the model; for a convolution that is called as a function,
        that of the module that calls it. Empty for the model itself.
    call : int
        How many earlier calls there were from that module.
    module : nn.Module
    positions : KernelPositions
        Where it took its samples.
    offset_module : str or None
        The name of the convolution whose output were the offsets (or a part of it, also put
        together again, as by ``chunk`` and ``cat``), where that is another module of the model;
        None where anything was computed in between.
    level : int or None
        Which of several levels, for attention over several; ``positions`` are those on it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from finslerconv.implicit import find_adaptive_layers
    >>> from finslerconv.nn import DeformConv2d
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), DeformConv2d(4, 4, 3, padding=1))
    >>> [(layer.name, layer.call) for layer in find_adaptive_layers(model, torch.rand(1, 1, 8, 8))]
    [('1', 0)]
    """

    name: str
    call: int
    module: nn.Module
    positions: KernelPositions
    offset_module: str | None = None
    level: int | None = None

    @property
    def key(self) -> str:
        """The name, or ``(model)`` for the model itself; then the call and the level.

        ``#2`` and so on for the second call; ``@0``, ``@1`` and so on for one of several levels.
        """
        call = "" if self.call == 0 else f"#{self.call + 1}"
        level = "" if self.level is None else f"@{self.level}"
        return f"{self.name or '(model)'}{call}{level}"


def find_adaptive_layers(
    model: nn.Module, x: Tensor | Sequence[Any], *, include_fixed: bool = False
) -> list[AdaptiveLayer]:
    """Run a model once and return its adaptive layers, in the order of their calls.

    Found are all layers that :func:`level_positions` knows, and every call of
    ``torchvision.ops.deform_conv2d`` or :func:`finslerconv.ops.deform_conv2d` (by a compiled
    backend) in any module, with the offsets that were passed.

    Parameters
    ----------
    model : nn.Module
        It is run in evaluation mode, without gradients, and left as it was: training modes are
        restored and all hooks removed, also if the run fails.
    x : Tensor or tuple
        Its input, or the tuple of its arguments.
    include_fixed : bool
        Whether to list layers of fixed positions too: standard, dilated and weighted convolutions
        of more than one tap, except those that compute the offsets of another layer or are inside
        a listed one.

    Returns
    -------
    list of AdaptiveLayer
        One for every call: a module that is called twice is there twice. Attention over several
        levels is there once for each.

    Raises
    ------
    TypeError
        If ``model`` is no module, or is compiled by TorchScript, which runs no hooks.
    ValueError
        If a layer's positions cannot be read; the message names the layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from finslerconv.implicit import find_adaptive_layers
    >>> from finslerconv.nn import MetricConv2d
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), MetricConv2d(4, 8, 3))
    >>> [(layer.name, layer.positions.kind) for layer in find_adaptive_layers(
    ...     model, torch.rand(1, 3, 12, 12))]
    [('2', 'metric')]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: it is compiled by TorchScript, which runs no hooks; pass the module it was "
            "made from"
        )
    # What torch.compile returns runs compiled code, the module inside it runs hooks.
    model = getattr(model, "_orig_mod", model)
    arguments = tuple(x) if isinstance(x, tuple | list) else (x,)
    search = _Search(include_fixed)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model))
        # Names are those of the first occurrence: a module that is shared has one.
        for name, module in model.named_modules():
            for handle in search.watch(name, module):
                stack.callback(handle.remove)
        stack.enter_context(search)
        model(*arguments)
    return search.found()


class _Search(TorchDispatchMode):
    """The adaptive layers found so far, and the convolutions whose outputs are still alive.

    Sees calls of modules by hooks, and calls of operators as a dispatch mode.
    """

    def __init__(self, include_fixed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._include_fixed = include_fixed
        self._running: list[tuple[str, nn.Module]] = []
        # The layer that runs or is read: the modules inside belong to it.
        self._inside: nn.Module | None = None
        self._calls: Counter[str] = Counter()
        self._layers: list[AdaptiveLayer] = []
        self._outputs: list[tuple[weakref.ref[Tensor], str]] = []

    def watch(self, name: str, module: nn.Module) -> Iterator[Any]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append((name, module))
            if self._inside is None:
                self._read(name, module, args, kwargs)

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._running.pop()
            if self._inside is module:
                self._inside = None
            if self._inside is None and isinstance(module, nn.Conv2d):
                self._outputs.append((weakref.ref(output), name))

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        read = _OPERATORS.get(str(func))
        if read is not None and self._inside is None and (call := read(*args)) is not None:
            name, module = self._running[-1] if self._running else ("", nn.Identity())
            self._add(name, module, (deformable_positions(*call),), call.offset)
        result = func(*args, **(kwargs or {}))
        if str(func) in _COPIES:
            parts = [args[0]] if isinstance(args[0], Tensor) else args[0]
            sources = {self._source(part) for part in parts}
            if len(sources) == 1 and (source := sources.pop()) is not None:
                self._outputs.append((weakref.ref(result), source))
        return result

    def found(self) -> list[AdaptiveLayer]:
        """Return the layers, without those that computed the offsets of others."""
        parts = {layer.offset_module for layer in self._layers}
        return [layer for layer in self._layers if layer.name not in parts]

    def _read(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        reader = reader_of(module)
        if reader is None:
            if is_no_image_layer(module):
                # The call of its operator is not to be read either.
                self._inside = module
            return
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        if reader is read_attention:
            # Its arguments are told by their names: those after one that was left out count too.
            bound.apply_defaults()
        arguments = bound.args
        self._inside = module
        depth = len(self._running)
        try:
            levels = in_levels(reader(module, *arguments))
        except (TypeError, ValueError) as error:
            raise ValueError(f"layer {name or '(model)'!r}: {error}") from error
        finally:
            del self._running[depth:]
        if not levels[0].adaptive:
            # A plain convolution has nothing inside, and its output may be offsets.
            self._inside = None
            if not self._include_fixed or levels[0].points.shape[-2] == 1:
                return
        offset = arguments[1] if len(arguments) > 1 else None
        self._add(name, module, levels, offset if isinstance(offset, Tensor) else None)

    def _add(
        self,
        name: str,
        module: nn.Module,
        levels: tuple[KernelPositions, ...],
        offset: Tensor | None,
    ) -> None:
        source = None if offset is None else self._source(offset)
        for i, positions in enumerate(levels):
            level = None if len(levels) == 1 else i
            call = self._calls[name]
            self._layers.append(AdaptiveLayer(name, call, module, positions, source, level))
        self._calls[name] += 1

    def _source(self, offset: Tensor) -> str | None:
        """Return the convolution whose output, or a copy of it still alive, has this memory."""
        memory = offset.untyped_storage().data_ptr()
        for reference, name in reversed(self._outputs):
            output = reference()
            if output is not None and output.untyped_storage().data_ptr() == memory:
                return name
        return None


class _Call(NamedTuple):
    """The arguments of :func:`deformable_positions` in the call of an operator."""

    input_size: tuple[int, int]
    geometry: ConvGeometry
    offset: Tensor
    mask: Tensor | None
    weight: Tensor


def _torchvisions(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: Any
) -> _Call:
    stride, padding, dilation = numbers[0:2], numbers[2:4], numbers[4:6]
    geometry = ConvGeometry.of(tuple(weight.shape[-2:]), stride, padding, dilation)
    size = (input.shape[-2], input.shape[-1])
    return _Call(size, geometry, offset, mask if numbers[-1] else None, weight)


def _ours(*arguments: Any) -> _Call | None:
    conv = convolution_of(*arguments)
    if conv.positions.kind != "offsets" or conv.dims != 2:
        return None
    size = (conv.input.shape[-2], conv.input.shape[-1])
    return _Call(size, conv.geometry, conv.positions.field, conv.mask, conv.weight)


_OPERATORS: dict[str, Callable[..., _Call | None]] = {
    "torchvision.deform_conv2d.default": _torchvisions,
    "finslerconv.sampled_conv.default": _ours,
}


# Operators that only move values: offsets are often cut up and put together again.
_COPIES = frozenset(
    f"aten.{name}.default"
    for name in ("cat", "stack", "clone", "_to_copy", "index_select", "flip", "roll")
)
