"""The operator in the words of ONNX: ``DeformConv``, known from opset 19 on, and others."""

import torch
from torch import Tensor

from finslerconv.ops.backends import Convolution, current_backend, reference

# Offsets beyond this are outside every image; integers of 32 bits hold it.
_FAR = 2.0**30


def for_onnx(conv: Convolution) -> Tensor:
    """Return the convolution by operators that ONNX has, in as few as there are for it.

    It is one ``DeformConv`` after what computes its offsets, unless that is impossible: the
    operator knows no padding but zeros, and the exporter through TorchScript, and PyTorch before
    ``torch.onnx.ops``, cannot name it. Otherwise, and where the reference backend is chosen, it is
    made of elementary operators.
    """
    if (
        conv.padding_mode != "zeros"
        or current_backend() == "reference"
        or torch.jit.is_tracing()
        or not hasattr(torch.onnx, "ops")
    ):
        return reference.convolve(conv, taps_at_once=conv.geometry.n_taps)
    return _deform_conv(conv)


def _deform_conv(conv: Convolution) -> Tensor:
    geometry, dtype = conv.geometry, conv.dtype
    offsets = _offsets(conv)
    # A runtime may take the integer of NaN, or of infinity, for a place in the image.
    offsets = torch.where(offsets.abs() < _FAR, offsets, -_FAR)
    tensors = (conv.input, conv.weight, offsets, conv.bias, conv.mask)
    output = torch.onnx.ops.symbolic(
        "DeformConv",
        [None if tensor is None else tensor.to(dtype) for tensor in tensors],
        {
            "kernel_shape": geometry.kernel_size,
            "strides": geometry.stride,
            "dilations": geometry.dilation,
            "pads": (*geometry.padding_before, *geometry.padding_after),
            "group": conv.weight_groups,
            "offset_group": conv.sample_groups,
        },
        dtype=dtype,
        shape=(conv.input.shape[0], conv.weight.shape[0], *conv.out_size),
        version=19,
    )
    return output.to(conv.input.dtype)


def _offsets(conv: Convolution) -> Tensor:
    """Return the offsets of the taps, (B, G * taps * 2, Ho, Wo)."""
    if conv.positions.kind == "offsets":
        return conv.positions.field
    if conv.positions.kind == "radial":
        displacements = _radial(conv).movedim((-2, -1), (2, 3))
    else:
        displacements = conv.displacements()
    return (displacements - conv.geometry.taps(displacements)[..., None, None]).flatten(1, 3)


def _radial(conv: Convolution) -> Tensor:
    """Return the points ``g |g| / F(g)`` in pixels, (B, G, Ho, Wo, taps, 2), by few operators.

    Both terms of the norm are sums of entries with factors that depend on the point alone: each is
    one product of matrices for all points.
    """
    where = conv.positions.with_metrics()
    g = conv.points.to(where.dtype)
    length = g.square().sum(1, keepdim=True).sqrt()
    # The norm of g = 0 is of no account, and must not be zero.
    u, v = torch.where(length > 0, g, 1.0).unbind(1)
    squares = where.field.to(g.dtype).flatten(-2) @ torch.stack((u * u, u * v, u * v, v * v))
    norm = squares.clamp(min=0).sqrt()
    if where.omega is not None:
        norm = norm + where.omega.to(g.dtype) @ torch.stack((u, v))
    return g * length * g.new_tensor(conv.geometry.dilation) / norm[..., None]
