"""How long each convolution of a model takes with an example, and how large its output is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finslerconv._models import evaluating

Example = Tensor | Sequence[Any] | Mapping[str, Any]

_REPEATS = 3


@dataclass(frozen=True)
class Measurement:
    """Times of an example: the quickest of several passes forward, without gradients.

    ``seconds`` is for the whole model. ``layers`` maps the identity of each layer that ran to the
    spatial size of its last output and the seconds of all its calls within a pass.
    """

    seconds: float
    layers: dict[int, tuple[tuple[int, ...], float]]

    def of(self, layer: nn.Module) -> dict[str, Any]:
        """Return the measured fields of a :class:`Cost`; none if the layer did not run."""
        if id(layer) not in self.layers:
            return {}
        size, seconds = self.layers[id(layer)]
        return {"output_size": size, "seconds": seconds}


@torch.no_grad()
def measure(model: nn.Module, layers: Sequence[nn.Module], example: Example) -> Measurement:
    """Run a model with an example, in evaluation mode, and time it and some of its layers."""
    sizes: dict[int, tuple[int, ...]] = {}
    running: dict[int, float] = {}
    started: dict[int, float] = {}

    def before(module: nn.Module, _: Any) -> None:
        _synchronize()
        started[id(module)] = time.perf_counter()

    def after(module: nn.Module, _: Any, output: Any) -> None:
        _synchronize()
        key = id(module)
        running[key] = running.get(key, 0.0) + time.perf_counter() - started[key]
        sizes[key] = tuple(output.shape[2:]) if isinstance(output, Tensor) else ()

    totals: list[float] = []
    passes: list[dict[int, float]] = []
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
    keys = {key for run in passes for key in run}
    seconds = {key: min(run[key] for run in passes if key in run) for key in keys}
    return Measurement(min(totals), {key: (sizes[key], seconds[key]) for key in seconds})


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
