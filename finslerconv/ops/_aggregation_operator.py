"""The aggregation of samples as PyTorch knows it: ``finslerconv::aggregate`` and its backward.

The backends compute both, as for the convolutions (:mod:`finslerconv.ops._operator`).
"""

from dataclasses import replace
from typing import no_type_check

import torch
from torch import Tensor

from finslerconv._tracing import is_traced_by_torchscript
from finslerconv._transforms import needs_formulas
from finslerconv.ops._checks import multiplied_dtype
from finslerconv.ops._rules import mapped, register_autocast, second_gradients
from finslerconv.ops.backends import (
    Aggregation,
    AggregationBackend,
    backend_for,
    current_backend,
    is_compiled,
    reference,
)

_library = torch.library.Library("finslerconv", "FRAGMENT")
_ops = torch.ops.finslerconv

# The levels are a tensor, or ``size`` has the rows and columns of the only one. An empty ``grid``
# stands for none.
_ARGUMENTS = (
    "Tensor value, Tensor locations, Tensor weights, Tensor? frames, Tensor? levels, "
    "SymInt[] size, SymInt[] grid, str backend"
)
_VALUE, _LOCATIONS, _WEIGHTS, _FRAMES, _LEVELS = range(5)
_DIFFERENTIATED = (_VALUE, _LOCATIONS, _WEIGHTS)
_N_ARGUMENTS = 8

_library.define(f"aggregate({_ARGUMENTS}) -> Tensor")
# ``needs`` says whether the gradient of the value, and those of locations and weights, are wanted.
# A gradient that is not there is a tensor without elements.
_library.define(
    f"aggregate_backward(Tensor grad, {_ARGUMENTS}, bool[] needs) "
    "-> (Tensor value, Tensor locations, Tensor weights)"
)


def call_operator(aggregation: Aggregation) -> Tensor:
    """Return the aggregation, by the backend that is chosen now or by plain PyTorch."""
    tensors, levels = aggregation.differentiated, aggregation.levels
    # torch.jit.trace records no lists of sizes that it traces, as the operator takes.
    plain = not is_compiled(aggregation.value.device) or is_traced_by_torchscript()
    if plain or needs_formulas(*tensors):
        return _by_formula(aggregation)
    table, size = (levels, ()) if isinstance(levels, Tensor) else (None, levels)
    return _ops.aggregate(
        *tensors, aggregation.frames, table, size, aggregation.grid or (), current_backend()
    )


def _by_formula(aggregation: Aggregation) -> Tensor:
    """Return the aggregation by plain PyTorch, with the operator's rule for autocast."""
    value = aggregation.value
    kind = value.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return reference.aggregate(aggregation)
    lowered = replace(aggregation, value=value.to(multiplied_dtype(value)))
    with torch.autocast(kind, enabled=False):
        return reference.aggregate(lowered)


@no_type_check
def aggregation_of(value, locations, weights, frames, levels, size, grid, backend):
    """Return the aggregation of the arguments of the operator ``aggregate``.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import aggregation_of
    >>> value, weights = torch.rand(1, 12, 2, 4), torch.rand(1, 5, 2, 1, 3)
    >>> locations = 3 * torch.rand(1, 5, 2, 1, 3, 2)
    >>> aggregation_of(value, locations, weights, None, None, [3, 4], [], "reference").levels
    (3, 4)
    """
    levels = tuple(size) if levels is None else levels
    return Aggregation(value, locations, weights, levels, frames, tuple(grid) or None)


def _backend(name: str, device: torch.device) -> AggregationBackend:
    found = backend_for(name, device)
    return found if isinstance(found, AggregationBackend) else reference


@no_type_check
def _forward(*arguments):
    return _backend(arguments[-1], arguments[_VALUE].device).aggregate(aggregation_of(*arguments))


@no_type_check
def _backward(grad, *arguments):
    *arguments, needs = arguments
    backend = _backend(arguments[-1], grad.device)
    found = backend.aggregate_backward(grad, aggregation_of(*arguments), *needs)
    return tuple(
        argument.new_empty(0) if gradient is None else gradient.to(argument.dtype)
        for argument, gradient in zip(arguments, found, strict=False)
    )


_library.impl("aggregate", _forward, "CompositeExplicitAutograd")
_library.impl("aggregate_backward", _backward, "CompositeExplicitAutograd")


@no_type_check
def _fake(value, locations, *rest):
    batch, _, groups, channels = value.shape
    return value.new_empty(batch, locations.shape[1], groups, channels)


@no_type_check
def _fake_backward(grad, value, locations, weights, *rest):
    needs_value, needs_samples = rest[-1]
    needed = (needs_value, needs_samples, needs_samples)
    return tuple(
        argument.new_empty(argument.shape if wanted else 0)
        for argument, wanted in zip((value, locations, weights), needed, strict=True)
    )


torch.library.register_fake("finslerconv::aggregate", _fake, lib=_library)
torch.library.register_fake("finslerconv::aggregate_backward", _fake_backward, lib=_library)


@no_type_check
def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: _LEVELS + 1])
    ctx.rest = inputs[_LEVELS + 1 :]


@no_type_check
def _gradient(ctx, grad):
    wants = ctx.needs_input_grad
    needs = [wants[_VALUE], wants[_LOCATIONS] or wants[_WEIGHTS]]
    found = _ops.aggregate_backward(grad, *ctx.saved_tensors, *ctx.rest, needs)
    gradients = [None] * _N_ARGUMENTS
    for place, gradient in zip(_DIFFERENTIATED, found, strict=True):
        gradients[place] = gradient if wants[place] else None
    return tuple(gradients)


@no_type_check
def _setup_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: _LEVELS + 2])
    ctx.rest = inputs[_LEVELS + 2 : -1]


@no_type_check
def _second_gradient(ctx, *seeds):
    grad, *tensors = ctx.saved_tensors
    aggregation = aggregation_of(*tensors, *ctx.rest)
    found = second_gradients(
        lambda live: reference.aggregate(aggregation.with_differentiated(live)),
        grad,
        aggregation.differentiated,
        seeds,
    )
    return (*found, *[None] * (_N_ARGUMENTS + 2 - len(found)))


for _name, _rule, _prepare in (
    ("aggregate", _gradient, _setup),
    ("aggregate_backward", _second_gradient, _setup_backward),
):
    torch.library.register_autograd(
        f"finslerconv::{_name}", _rule, setup_context=_prepare, lib=_library
    )

# Autocast lowers the value, never positions; the weights are multiplied in their own dtype.
register_autocast(_library, "aggregate", (_VALUE,))

for _op in (_ops.aggregate, _ops.aggregate_backward):
    torch.library.register_vmap(_op.default, mapped(_op), lib=_library)
