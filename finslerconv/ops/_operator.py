"""The operator as PyTorch knows it: ``finslerconv::sampled_conv``, and its backward operator.

The backends compute both. Fake kernels and rules for autograd, autocast and vmap are here; second
derivatives are those of the reference, at its cost.
"""

from typing import no_type_check

import torch
from torch import Tensor

from finslerconv._head_formula import HeadFormula
from finslerconv.ops._geometry import ConvGeometry
from finslerconv.ops._rules import mapped, register_autocast, second_gradients
from finslerconv.ops.backends import (
    ConvBackend,
    Convolution,
    Needs,
    Positions,
    backend_for,
    current_backend,
    memory_format,
    reference,
)

_library = torch.library.Library("finslerconv", "DEF")
_ops = torch.ops.finslerconv

_ARGUMENTS = (
    "Tensor input, Tensor field, Tensor? omega, Tensor? points, Tensor weight, Tensor? bias, "
    "Tensor? mask, str kind, int[] stride, int[] padding_before, int[] padding_after, "
    "int[] dilation, str padding_mode, str formula, float[] numbers, str backend"
)
_INPUT, _FIELD, _OMEGA, _POINTS, _WEIGHT, _BIAS, _MASK = range(7)
_N_ARGUMENTS = 16

# The arguments that have a gradient from a backend, in the order of Gradients.
_DIFFERENTIATED = (_INPUT, _FIELD, _OMEGA, _WEIGHT, _MASK)

_library.define(f"sampled_conv({_ARGUMENTS}) -> Tensor")
# ``needs`` holds the fields of Needs. A gradient that is not there is a tensor without elements.
_library.define(
    f"sampled_conv_backward(Tensor grad, {_ARGUMENTS}, bool[] needs) "
    "-> (Tensor input, Tensor field, Tensor omega, Tensor weight, Tensor mask)"
)


def call_operator(conv: Convolution) -> Tensor:
    """Return the convolution, by the backend that is chosen now."""
    where, geometry = conv.positions, conv.geometry
    formula = where.formula
    # The formula by its name and numbers; no name says that there is none.
    name, numbers = ("", ()) if formula is None else (formula.name, formula.numbers)
    return _ops.sampled_conv(
        conv.input, where.field, where.omega, where.points, conv.weight, conv.bias, conv.mask,
        where.kind, geometry.stride, geometry.padding_before, geometry.padding_after,
        geometry.dilation, conv.padding_mode, name, numbers, current_backend(),
    )  # fmt: skip


def takes_channels(device: torch.device) -> bool:
    """Return whether the chosen backend makes metrics of a head's channels."""
    return backend_for(current_backend(), device).takes_channels


# What torch.compiler.assume_constant_result does: whether a backend is loaded is not for a graph.
takes_channels._dynamo_marked_constant = True  # type: ignore[attr-defined]


@no_type_check
def convolution_of(
    input, field, omega, points, weight, bias, mask, kind, stride, padding_before, padding_after,
    dilation, padding_mode, formula, numbers, backend,
):  # fmt: skip
    """Return the convolution that the arguments of ``finslerconv::sampled_conv`` describe.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import convolution_of
    >>> image, weight = torch.rand(1, 2, 6, 6), torch.rand(4, 2, 3, 3)
    >>> offset = torch.zeros(1, 18, 6, 6)
    >>> conv = convolution_of(
    ...     image, offset, None, None, weight, None, None, "offsets",
    ...     stride=[1, 1], padding_before=[1, 1], padding_after=[1, 1], dilation=[1, 1],
    ...     padding_mode="zeros", formula="", numbers=[], backend="reference",
    ... )
    >>> conv.out_size
    (6, 6)
    """
    sizes = (weight.shape[2:], stride, dilation, padding_before, padding_after)
    geometry = ConvGeometry(*map(tuple, sizes))
    positions = Positions(
        kind, field, omega, points, HeadFormula.of(formula, numbers) if formula else None
    )
    return Convolution(input, positions, weight, bias, mask, geometry, padding_mode)


# One kernel for all devices: the registry knows the backend of each.


@no_type_check
def _forward(*arguments):
    backend = backend_for(arguments[-1], arguments[_INPUT].device)
    conv = convolution_of(*arguments)
    return _computed_by(backend, conv).forward(conv)


@no_type_check
def _backward(grad, *arguments):
    *arguments, needs = arguments
    backend = backend_for(arguments[-1], grad.device)
    conv = convolution_of(*arguments)
    found = _computed_by(backend, conv).backward(grad, conv, Needs(*needs))
    return tuple(
        arguments[_INPUT].new_empty(0) if gradient is None else gradient.to(arguments[place].dtype)
        for place, gradient in zip(_DIFFERENTIATED, found, strict=True)
    )


def _computed_by(backend: ConvBackend, conv: Convolution) -> ConvBackend:
    """Return the backend, or the reference for what the backend does not take.

    Channels that it does not take come only from exported programs, which another backend was to
    run.
    """
    takes = conv.dims in backend.dims
    if conv.positions.formula is not None:
        takes &= backend.takes_channels
    return backend if takes else reference


_library.impl("sampled_conv", _forward, "CompositeExplicitAutograd")
_library.impl("sampled_conv_backward", _backward, "CompositeExplicitAutograd")


# Fake kernels: shapes, dtypes and layouts without data.


@no_type_check
def _fake(*arguments):
    input = arguments[_INPUT]
    size = arguments[_FIELD].shape[2 : input.ndim]
    output = input.new_empty(input.shape[0], arguments[_WEIGHT].shape[0], *size)
    return output.to(memory_format=memory_format(input))


@no_type_check
def _fake_backward(grad, *arguments):
    *arguments, needs = arguments
    input = arguments[_INPUT]
    found = [
        arguments[place].new_empty(arguments[place].shape)
        if needed and arguments[place] is not None
        else input.new_empty(0)
        for place, needed in zip(_DIFFERENTIATED, Needs(*needs).each, strict=True)
    ]
    if needs[0]:
        found[0] = found[0].to(memory_format=memory_format(input))
    return tuple(found)


torch.library.register_fake("finslerconv::sampled_conv", _fake, lib=_library)
torch.library.register_fake("finslerconv::sampled_conv_backward", _fake_backward, lib=_library)


# Autograd.


@no_type_check
def _setup(ctx, inputs, output):
    # The gradients do not depend on the bias.
    ctx.save_for_backward(*inputs[:_BIAS], None, inputs[_MASK])
    ctx.rest = inputs[_MASK + 1 :]


@no_type_check
def _gradient(ctx, grad):
    wants = ctx.needs_input_grad
    if wants[_POINTS]:
        raise RuntimeError(
            "finslerconv::sampled_conv has no derivative in the reference points; call "
            "finslerconv.ops.metric_conv2d, which takes another way for points that require one"
        )
    positions = wants[_FIELD] or wants[_OMEGA] or wants[_MASK]
    found = _ops.sampled_conv_backward(
        grad, *ctx.saved_tensors, *ctx.rest, [wants[_INPUT], positions, wants[_WEIGHT]]
    )
    gradients = [None] * _N_ARGUMENTS
    for place, gradient in zip(_DIFFERENTIATED, found, strict=True):
        gradients[place] = gradient if wants[place] else None
    if wants[_BIAS]:
        gradients[_BIAS] = grad.sum((0, *range(2, grad.ndim)))
    return tuple(gradients)


# Second derivatives: the gradients of the reference's gradients.


@no_type_check
def _setup_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: _MASK + 2])
    ctx.rest = inputs[_MASK + 2 : -1]


@no_type_check
def _second_gradient(ctx, *seeds):
    grad, *tensors = ctx.saved_tensors
    conv = convolution_of(*tensors, *ctx.rest)
    found = second_gradients(
        lambda live: reference.forward(conv.with_differentiated(live)),
        grad,
        conv.differentiated,
        seeds,
    )
    gradients = [None] * (1 + _N_ARGUMENTS + 1)
    for place, gradient in zip((-1, *_DIFFERENTIATED), found, strict=True):
        gradients[1 + place] = gradient
    return tuple(gradients)


for _name, _rule, _prepare in (
    ("sampled_conv", _gradient, _setup),
    ("sampled_conv_backward", _second_gradient, _setup_backward),
):
    torch.library.register_autograd(
        f"finslerconv::{_name}", _rule, setup_context=_prepare, lib=_library
    )


# Autocast lowers what a convolution multiplies, never the positions of its samples.
register_autocast(_library, "sampled_conv", (_INPUT, _WEIGHT, _BIAS))

for _op in (_ops.sampled_conv, _ops.sampled_conv_backward):
    torch.library.register_vmap(_op.default, mapped(_op), lib=_library)
