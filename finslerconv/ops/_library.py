"""The operators as PyTorch knows them: ``finslerconv::deform_conv2d`` and ``::metric_conv2d``.

Each comes with a backward operator, and each with kernels for the CPU (Numba) and CUDA devices
(Triton), fake kernels, autograd, autocast and vmap rules. Backward operators differentiate through
the reference, so that second derivatives are there, at the reference's price.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast, no_type_check

import torch
from torch import Tensor

from finslerconv.ops import _layout as layout
from finslerconv.ops._geometry import ConvGeometry, PaddingMode
from finslerconv.ops._positions import Kind, Positions
from finslerconv.ops.backends import _reference

_NAMESPACE = "finslerconv"
_library = torch.library.Library(_NAMESPACE, "DEF")

# The geometry, as schemas can say it: the padding after the image shows in the output's size.
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, str padding_mode"

_library.define(
    "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
    f"{_GEOMETRY}) -> Tensor"
)
_library.define(
    "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, "
    f"Tensor? mask, {_GEOMETRY}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "metric_conv2d(Tensor input, Tensor M, Tensor? omega, Tensor points, Tensor weight, "
    f"Tensor? bias, Tensor? mask, str map, {_GEOMETRY}) -> Tensor"
)
_library.define(
    "metric_conv2d_backward(Tensor grad, Tensor input, Tensor M, Tensor? omega, Tensor points, "
    f"Tensor weight, Tensor? mask, str map, {_GEOMETRY}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_ops = torch.ops.finslerconv


def convolve(
    input: Tensor,
    positions: Positions,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: ConvGeometry,
    padding_mode: PaddingMode,
) -> Tensor:
    """Call the operator for the positions."""
    where = (
        list(geometry.stride), list(geometry.padding_before), list(geometry.dilation), padding_mode,
    )  # fmt: skip
    if positions.kind == "offsets":
        return _ops.deform_conv2d(input, positions.field, weight, bias, mask, *where)
    return _ops.metric_conv2d(
        input, positions.field, positions.omega, positions.points, weight, bias, mask,
        positions.kind, *where,
    )  # fmt: skip


# Arguments, unpacked. ``needs`` says for which of input, positions (with the mask) and weight
# gradients are wanted; a tensor of no elements stands for a gradient that is not there.


def _geometry(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> ConvGeometry:
    before = (padding[0], padding[1])
    return ConvGeometry(
        (weight.shape[2], weight.shape[3]),
        (stride[0], stride[1]),
        (dilation[0], dilation[1]),
        before,
        before,
    )


def _offsets(offset: Tensor, geometry: ConvGeometry) -> Positions:
    dtype = torch.promote_types(offset.dtype, torch.float32)
    return Positions("offsets", offset, None, geometry.taps(offset.new_empty(0, dtype=dtype)))


def _metrics(M: Tensor, omega: Tensor | None, points: Tensor, map: str) -> Positions:
    return Positions(cast(Kind, map), M, omega, points)


def _backend(device: str) -> Any:
    """Return the module of the device's backend, imported on first use."""
    if device == "cpu":
        from finslerconv.ops.backends.numba import _backend as _numba

        return _numba
    from finslerconv.ops.backends.triton import _backend as _triton

    return _triton


def _deform_kernel(device: str) -> Callable[..., Tensor]:
    @no_type_check
    def deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation, padding_mode):
        geometry = _geometry(weight, stride, padding, dilation)
        return _backend(device).forward(
            input, _offsets(offset, geometry), weight, bias, mask, geometry, padding_mode
        )

    return deform_conv2d


def _deform_backward_kernel(device: str) -> Callable[..., tuple[Tensor, ...]]:
    @no_type_check
    def deform_conv2d_backward(
        grad, input, offset, weight, mask, stride, padding, dilation, padding_mode, needs
    ):
        geometry = _geometry(weight, stride, padding, dilation)
        gradients = _backend(device).backward(
            grad, input, _offsets(offset, geometry), weight, mask, geometry, padding_mode,
            needs_input=needs[0], needs_positions=needs[1], needs_weight=needs[2],
        )  # fmt: skip
        return (
            _present(gradients.input, input),
            _present(gradients.field, offset),
            _present(gradients.weight, weight),
            _present(gradients.mask, input if mask is None else mask),
        )

    return deform_conv2d_backward


def _metric_kernel(device: str) -> Callable[..., Tensor]:
    @no_type_check
    def metric_conv2d(
        input, M, omega, points, weight, bias, mask, map, stride, padding, dilation, padding_mode
    ):
        geometry = _geometry(weight, stride, padding, dilation)
        positions = _metrics(M, omega, points, map)
        return _backend(device).forward(
            input, positions, weight, bias, mask, geometry, padding_mode
        )

    return metric_conv2d


def _metric_backward_kernel(device: str) -> Callable[..., tuple[Tensor, ...]]:
    @no_type_check
    def metric_conv2d_backward(
        grad, input, M, omega, points, weight, mask, map, stride, padding, dilation, padding_mode,
        needs,
    ):  # fmt: skip
        geometry = _geometry(weight, stride, padding, dilation)
        positions = _metrics(M, omega, points, map)
        gradients = _backend(device).backward(
            grad, input, positions, weight, mask, geometry, padding_mode,
            needs_input=needs[0], needs_positions=needs[1], needs_weight=needs[2],
        )  # fmt: skip
        return (
            _present(gradients.input, input),
            _present(gradients.field, M),
            _present(gradients.omega, M if omega is None else omega),
            _present(gradients.weight, weight),
            _present(gradients.mask, input if mask is None else mask),
        )

    return metric_conv2d_backward


def _present(gradient: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if gradient is None else gradient.to(like.dtype)


for _device in ("cpu", "cuda"):
    _key = _device.upper()
    _library.impl("deform_conv2d", _deform_kernel(_device), _key)
    _library.impl("deform_conv2d_backward", _deform_backward_kernel(_device), _key)
    _library.impl("metric_conv2d", _metric_kernel(_device), _key)
    _library.impl("metric_conv2d_backward", _metric_backward_kernel(_device), _key)


# Fake kernels: shapes, dtypes and layouts without data.


@no_type_check
def _deform_fake(input, offset, weight, bias, mask, stride, padding, dilation, padding_mode):
    return _fake_output(input, weight, offset.shape[2:])


@no_type_check
def _metric_fake(
    input, M, omega, points, weight, bias, mask, map, stride, padding, dilation, padding_mode
):
    return _fake_output(input, weight, M.shape[2:4])


def _fake_output(input: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    output = input.new_empty(input.shape[0], weight.shape[0], *size)
    return output.to(memory_format=layout.memory_format(input))


@no_type_check
def _deform_backward_fake(
    grad, input, offset, weight, mask, stride, padding, dilation, padding_mode, needs
):
    return (
        _fake_image_gradient(input, needs[0]),
        _fake_gradient(offset, needs[1]),
        _fake_gradient(weight, needs[2]),
        _fake_gradient(mask, needs[1], input),
    )


@no_type_check
def _metric_backward_fake(
    grad, input, M, omega, points, weight, mask, map, stride, padding, dilation, padding_mode, needs
):
    return (
        _fake_image_gradient(input, needs[0]),
        _fake_gradient(M, needs[1]),
        _fake_gradient(omega, needs[1], M),
        _fake_gradient(weight, needs[2]),
        _fake_gradient(mask, needs[1], input),
    )


def _fake_image_gradient(input: Tensor, needed: bool) -> Tensor:
    gradient = input.new_empty(input.shape if needed else (0,))
    return gradient.to(memory_format=layout.memory_format(input)) if needed else gradient


def _fake_gradient(argument: Tensor | None, needed: bool, like: Tensor | None = None) -> Tensor:
    if argument is None or not needed:
        like = argument if argument is not None else like
        assert like is not None
        return like.new_empty(0)
    return argument.new_empty(argument.shape)


torch.library.register_fake("finslerconv::deform_conv2d", _deform_fake, lib=_library)
torch.library.register_fake("finslerconv::metric_conv2d", _metric_fake, lib=_library)
torch.library.register_fake(
    "finslerconv::deform_conv2d_backward", _deform_backward_fake, lib=_library
)
torch.library.register_fake(
    "finslerconv::metric_conv2d_backward", _metric_backward_fake, lib=_library
)


# Autograd.


@no_type_check
def _deform_setup(ctx, inputs, output):
    input, offset, weight, _, mask, *ctx.where = inputs
    ctx.save_for_backward(input, offset, weight, mask)


@no_type_check
def _deform_gradient(ctx, grad):
    input, offset, weight, mask = ctx.saved_tensors
    wants = ctx.needs_input_grad
    g_input, g_offset, g_weight, g_mask = _ops.deform_conv2d_backward(
        grad, input, offset, weight, mask, *ctx.where, [wants[0], wants[1] or wants[4], wants[2]]
    )
    return (
        g_input if wants[0] else None,
        g_offset if wants[1] else None,
        g_weight if wants[2] else None,
        grad.sum((0, 2, 3)) if wants[3] else None,
        g_mask if wants[4] else None,
        None, None, None, None,
    )  # fmt: skip


@no_type_check
def _metric_setup(ctx, inputs, output):
    input, M, omega, points, weight, _, mask, *ctx.where = inputs
    ctx.save_for_backward(input, M, omega, points, weight, mask)


@no_type_check
def _metric_gradient(ctx, grad):
    input, M, omega, points, weight, mask = ctx.saved_tensors
    wants = ctx.needs_input_grad
    if wants[3]:
        raise RuntimeError(
            "finslerconv::metric_conv2d has no derivative in the reference points; call "
            "finslerconv.ops.metric_conv2d, which takes another way for points that require one"
        )
    g_input, g_M, g_omega, g_weight, g_mask = _ops.metric_conv2d_backward(
        grad, input, M, omega, points, weight, mask, *ctx.where,
        [wants[0], wants[1] or wants[2] or wants[6], wants[4]],
    )  # fmt: skip
    return (
        g_input if wants[0] else None,
        g_M if wants[1] else None,
        g_omega if wants[2] else None,
        None,
        g_weight if wants[4] else None,
        grad.sum((0, 2, 3)) if wants[5] else None,
        g_mask if wants[6] else None,
        None, None, None, None, None,
    )  # fmt: skip


torch.library.register_autograd(
    "finslerconv::deform_conv2d", _deform_gradient, setup_context=_deform_setup, lib=_library
)
torch.library.register_autograd(
    "finslerconv::metric_conv2d", _metric_gradient, setup_context=_metric_setup, lib=_library
)


# Second derivatives: the gradients of the reference's gradients.


def _second(
    grad: Tensor,
    live: Sequence[Tensor | None],
    seeds: Sequence[Tensor | None],
    reference: Callable[..., Tensor],
) -> list[Tensor | None]:
    """Return the gradients, in ``grad`` and ``live``, of the gradients in ``live`` along seeds."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # New names for the arguments: derivatives are taken in them, whatever they came from.
        fresh = [
            None if t is None else (t.view_as(t) if further and t.requires_grad else t.detach())
            for t in (grad, *live)
        ]
        for tensor in fresh:
            if tensor is not None and not tensor.requires_grad:
                tensor.requires_grad_()
        present = [t for t in fresh[1:] if t is not None]
        first = torch.autograd.grad(
            reference(*fresh[1:]), present, fresh[0], create_graph=True, materialize_grads=True
        )
        wanted = [seed for t, seed in zip(fresh[1:], seeds, strict=True) if t is not None]
        along = [
            (g * seed).sum()
            for g, seed in zip(first, wanted, strict=True)
            if seed is not None and seed.numel() > 0 and seed.shape == g.shape
        ]
        everything = [t for t in fresh if t is not None]
        second = iter(
            torch.autograd.grad(
                torch.stack(along).sum(), everything, create_graph=further, materialize_grads=True
            )
            if along
            else [None] * len(everything)
        )
        return [None if t is None else next(second) for t in fresh]


@no_type_check
def _deform_backward_setup(ctx, inputs, output):
    grad, input, offset, weight, mask, *ctx.where, _ = inputs
    ctx.save_for_backward(grad, input, offset, weight, mask)


@no_type_check
def _deform_second(ctx, *seeds):
    grad, input, offset, weight, mask = ctx.saved_tensors
    geometry, mode = _geometry(weight, *ctx.where[:3]), ctx.where[3]

    def reference(input, offset, weight, mask):
        return _reference.convolve(
            input, _offsets(offset, geometry), weight, None, mask, geometry, mode
        )

    found = _second(grad, (input, offset, weight, mask), seeds, reference)
    return (*found, None, None, None, None, None)


@no_type_check
def _metric_backward_setup(ctx, inputs, output):
    grad, input, M, omega, points, weight, mask, *ctx.where, _ = inputs
    ctx.save_for_backward(grad, input, M, omega, points, weight, mask)


@no_type_check
def _metric_second(ctx, *seeds):
    grad, input, M, omega, points, weight, mask = ctx.saved_tensors
    map, mode = ctx.where[0], ctx.where[4]
    geometry = _geometry(weight, *ctx.where[1:4])

    def reference(input, M, omega, weight, mask):
        positions = _metrics(M, omega, points, map)
        return _reference.convolve(input, positions, weight, None, mask, geometry, mode)

    g_grad, g_input, g_M, g_omega, g_weight, g_mask = _second(
        grad, (input, M, omega, weight, mask), seeds, reference
    )
    return (
        g_grad, g_input, g_M, g_omega, None, g_weight, g_mask, None, None, None, None, None, None,
    )  # fmt: skip


torch.library.register_autograd(
    "finslerconv::deform_conv2d_backward",
    _deform_second,
    setup_context=_deform_backward_setup,
    lib=_library,
)
torch.library.register_autograd(
    "finslerconv::metric_conv2d_backward",
    _metric_second,
    setup_context=_metric_backward_setup,
    lib=_library,
)


# Autocast lowers what a convolution multiplies, never what says where it samples.


def _autocast(device: str, op: Any, lowered: Sequence[int]) -> Callable[..., Tensor]:
    @no_type_check
    def cast(*arguments):
        dtype = torch.get_autocast_dtype(device)
        arguments = [
            a.to(dtype) if i in lowered and a is not None and a.dtype != torch.float64 else a
            for i, a in enumerate(arguments)
        ]
        with torch.autocast(device, enabled=False):
            return op(*arguments)

    return cast


for _device in ("cpu", "cuda"):
    _key = "AutocastCPU" if _device == "cpu" else "AutocastCUDA"
    _library.impl("deform_conv2d", _autocast(_device, _ops.deform_conv2d, (0, 2, 3)), _key)
    _library.impl("metric_conv2d", _autocast(_device, _ops.metric_conv2d, (0, 4, 5)), _key)


# vmap: slice by slice of the mapped axis; every slice is computed in parallel.


def _mapped(op: Any) -> Callable[..., Any]:
    @no_type_check
    def rule(info, in_dims, *arguments):
        results = [
            op(
                *(
                    a.select(d, i) if isinstance(a, Tensor) and d is not None else a
                    for a, d in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


for _name in (
    "deform_conv2d", "deform_conv2d_backward", "metric_conv2d", "metric_conv2d_backward",
):  # fmt: skip
    torch.library.register_vmap(
        f"{_NAMESPACE}::{_name}", _mapped(getattr(_ops, _name)), lib=_library
    )
