"""The convolution by ``weight * Phi``, with a step that writes to memory it already has.

The product costs a CPU little arithmetic, but the ordinary ``conv(x, weight * phi)`` asks for a
fresh tensor of the weight's size in each direction, and in wide layers the page faults of fresh
memory can cost 10 % of the whole step (they do unless the heap is warm). Here the layer hands the
product's buffer from one step to the next, and the gradient of the product, which belongs to nobody
else, is scaled in place. Wherever that is not possible or not needed (small weights; a GPU, whose
allocator is cheap; a compiler, which fuses by itself; inference, for which one folds) the plain
definition is used.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from finslerconv._transforms import needs_formulas

_CONV: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}

# Smaller tensors come from the heap without page faults, and Python's overhead would show.
_SMALLEST_FUSED_BYTES = 2**20

# At most one idle buffer a layer. Beside the modules, so that no copy or pickle carries it.
_SPARE: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()


class Geometry(NamedTuple):
    """Where the taps of a convolution fall, one number per spatial axis, and its groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def weighted_conv(
    layer: nn.Module,
    x: Tensor,
    weight: Tensor,
    phi: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Convolve ``x``, with or without a batch axis, by ``weight * phi``.

    ``layer`` is whose buffer is used.
    """
    n_axes = phi.dim()
    phi = phi.to(weight.dtype)
    if not _worth_fusing(x, weight, phi, bias):
        return _CONV[n_axes](x, weight * phi, bias, *geometry)
    spare = _SPARE.setdefault(layer, [])
    batched = x.dim() == n_axes + 2
    batch = x if batched else x.unsqueeze(0)
    y: Tensor = _WeightedConvolution.apply(batch, weight, phi, bias, geometry, spare)  # type: ignore[no-untyped-call]
    return y if batched else y.squeeze(0)


class _WeightedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        phi: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        spare: list[Tensor],
    ) -> Tensor:
        kernel = torch.mul(weight, _tile(phi, weight), out=_take(spare, weight))
        ctx.save_for_backward(x, weight, phi)
        # Not a saved tensor: nobody else sees it, and backward hands it on.
        ctx.kernel = kernel
        ctx.geometry, ctx.spare = geometry, spare
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return _CONV[phi.dim()](x, kernel, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, phi = ctx.saved_tensors
        want_x, want_weight, want_phi, want_bias, *_ = ctx.needs_input_grad
        # Under create_graph the backward pass is itself recorded and must own its tensors.
        recorded = torch.is_grad_enabled()
        kernel, ctx.kernel = ctx.kernel, None
        if recorded or kernel is None:
            kernel = weight * phi
        grad_x, grad_kernel, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            kernel,
            ctx.bias_sizes,
            ctx.geometry.stride,
            ctx.geometry.padding,
            ctx.geometry.dilation,
            False,
            [0] * phi.dim(),
            ctx.geometry.groups,
            [want_x, want_weight or want_phi, want_bias],
        )
        grad_weight = grad_phi = None
        if want_phi:
            product = torch.mul(grad_kernel, weight, out=None if recorded else kernel)
            grad_phi = _sum_to_taps(product)
        if want_weight:
            grad_weight = grad_kernel * phi if recorded else grad_kernel.mul_(_tile(phi, weight))
        if not recorded and not ctx.spare:
            ctx.spare.append(kernel)
        return grad_x, grad_weight, grad_phi, grad_bias, None, None


def _take(spare: list[Tensor], weight: Tensor) -> Tensor:
    """Take the layer's idle buffer, or a new one if there is none that fits."""
    try:
        buffer = spare.pop()
    except IndexError:
        return torch.empty_like(weight)
    fits = (
        buffer.shape == weight.shape
        and buffer.stride() == weight.stride()
        and buffer.dtype == weight.dtype
        and buffer.is_inference() == torch.is_inference_mode_enabled()
    )
    return buffer if fits else torch.empty_like(weight)


def _sum_to_taps(product: Tensor) -> Tensor:
    """Sum over filters and channels, in at least single precision."""
    wide = product.dtype if product.dtype.itemsize >= 4 else torch.float32
    # Filters first: their sum runs along contiguous memory.
    return product.sum(0, dtype=wide).sum(0).to(product.dtype)


def _tile(phi: Tensor, weight: Tensor) -> Tensor:
    """Repeat Phi over the input channels: the product's inner loop is longer."""
    return phi.expand(weight.shape[1:]).contiguous() if weight.is_contiguous() else phi


def _worth_fusing(x: Tensor, weight: Tensor, phi: Tensor, bias: Tensor | None) -> bool:
    # What is not an ordinary tensor has semantics of its own: fakes, tracers, subclasses.
    ordinary = (Tensor, nn.Parameter)
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(x) in ordinary
        and type(weight) in ordinary
        and weight.nbytes >= _SMALLEST_FUSED_BYTES
        and x.device.type == weight.device.type == phi.device.type == "cpu"
        and x.dtype == weight.dtype
        and weight.is_floating_point()
        and phi.dim() + 1 <= x.dim() <= phi.dim() + 2
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._is_tracing()
        and not needs_formulas(x, weight, phi, bias)
    )


def same_padding(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...] | None:
    """Return the padding that keeps the size, or None where an axis's two ends differ in it."""
    total = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
