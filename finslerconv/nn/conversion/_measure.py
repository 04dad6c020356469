"""How long each convolution of a model takes with an example, and how large its output is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finslerconv._models import evaluating
from finslerconv.nn.conversion._aggregations import aggregated_channels

Example = Tensor | Sequence[Any] | Mapping[str, Any]

_REPEATS = 3


@dataclass(frozen=True)
class Measurement:
    """The quickest of several passes forward with an example, without gradients.

    ``seconds`` is that of the whole model; ``layers`` has the fields of a :class:`Cost` that were
    measured for each layer that ran: the size of its last output, and the time of all its calls.
    """

    seconds: float | None
    layers: dict[nn.Module, dict[str, Any]]


@torch.no_grad()
def measure(model: nn.Module, layers: Sequence[nn.Module], example: Example) -> Measurement:
    """Run a model with an example, in evaluation mode, and time it and some of its layers."""
    sizes: dict[nn.Module, tuple[int, ...]] = {}
    running: dict[nn.Module, float] = {}
    started: dict[nn.Module, float] = {}

    def before(module: nn.Module, _: Any) -> None:
        _synchronize()
        started[module] = time.perf_counter()

    def after(module: nn.Module, _: Any, output: Any) -> None:
        _synchronize()
        running[module] = running.get(module, 0.0) + time.perf_counter() - started[module]
        # DCNv3, DCNv4 and attention have channels last.
        axes = slice(2, None) if aggregated_channels(module) is None else slice(1, -1)
        sizes[module] = tuple(output.shape[axes]) if isinstance(output, Tensor) else ()

    totals: list[float] = []
    passes: list[dict[nn.Module, float]] = []
    with evaluating(model):
        _run(model, example)
        # The whole model is timed without the hooks, which make a GPU wait at every layer.
        for _ in range(_REPEATS):
            _synchronize()
            start = time.perf_counter()
            _run(model, example)
            _synchronize()
            totals.append(time.perf_counter() - start)
        handles = [layer.register_forward_pre_hook(before) for layer in layers]
        handles += [layer.register_forward_hook(after) for layer in layers]
        try:
            for _ in range(_REPEATS):
                running.clear()
                _run(model, example)
                passes.append(dict(running))
        finally:
            for handle in handles:
                handle.remove()
    measured = {
        layer: {"output_size": size, "seconds": min(run[layer] for run in passes if layer in run)}
        for layer, size in sizes.items()
    }
    return Measurement(min(totals), measured)


def _run(model: nn.Module, example: Example) -> None:
    if isinstance(example, Tensor):
        model(example)
    elif isinstance(example, Mapping):
        model(**example)
    else:
        model(*example)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
