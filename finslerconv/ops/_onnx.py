"""The operator in the words of ONNX: ``DeformConv``, which ONNX has from opset 19 on, and others."""

import torch
from torch import Tensor

from finslerconv._linalg import det
from finslerconv.metrics import RandersForm
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
    where, geometry = conv.positions, conv.geometry
    if where.kind == "offsets":
        return where.field
    points = conv.points.to(where.dtype)
    omega = None if where.omega is None else where.omega.to(where.dtype)
    carried = _radial if where.kind == "radial" else _affine
    positions = carried(points, where.field.to(where.dtype), omega)
    dilation = torch.tensor(geometry.dilation, dtype=points.dtype, device=points.device)
    positions = positions * dilation - geometry.taps(points)
    return positions.movedim((-2, -1), (2, 3)).flatten(1, 3)


# The maps of finslerconv.balls in a few operators: what depends on the points alone is constant, and
# a product of matrices is one operator for all points. Both return (B, G, Ho, Wo, taps, 2).


def _radial(g: Tensor, M: Tensor, omega: Tensor | None) -> Tensor:
    length = g.square().sum(1, keepdim=True).sqrt()
    # The norm of g = 0 is of no account, and must not be zero.
    u, v = torch.where(length > 0, g, 1.0).unbind(1)
    squares = M.flatten(-2) @ torch.stack((u * u, u * v, u * v, v * v))
    norm = squares.clamp(min=0).sqrt()
    if omega is not None:
        norm = norm + omega @ torch.stack((u, v))
    return g * length / norm[..., None]


def _affine(g: Tensor, M: Tensor, omega: Tensor | None) -> Tensor:
    shape, centre = RandersForm(M, omega).dual()
    root = det(shape).clamp(min=0).sqrt()
    scale = (shape[..., 0, 0] + shape[..., 1, 1] + 2 * root).rsqrt()
    images = (g @ shape + g * root[..., None, None]) * scale[..., None, None]
    return images if centre is None else images + centre[..., None, :]
