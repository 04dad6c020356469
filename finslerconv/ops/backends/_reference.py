"""The reference backend: a convolution at given positions in plain PyTorch, the definition.

``output = bias + sum over taps k of weight_k mask_k input(centre + displacement_k)``, with bilinear
interpolation between pixels. It runs on every device and is differentiable twice. Tap by tap,
so that nothing but the columns is as large as the image times the kernel.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from finslerconv.ops._geometry import ConvGeometry, PaddingMode
from finslerconv.ops._layout import memory_format
from finslerconv.ops._positions import Positions

# Coordinates beyond this are outside every image; integers and floats hold it exactly.
_FAR = 2.0**30


def convolve(
    input: Float[Tensor, "batch channels height width"],
    positions: Positions,
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None,
    mask: Float[Tensor, "batch mask_channels out_height out_width"] | None,
    geometry: ConvGeometry,
    padding_mode: PaddingMode,
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Return the convolution at the positions. Arguments are taken as checked."""
    if mask is not None:
        mask = mask.reshape(mask.shape[0], positions.groups, geometry.n_taps, *mask.shape[2:])
    displacements = positions.displacements(geometry.dilation)
    return convolve_at(input, displacements, weight, bias, mask, geometry, padding_mode)


def convolve_at(
    input: Float[Tensor, "batch channels height width"],
    displacements: Float[Tensor, "batch groups taps 2 out_height out_width"],
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None,
    mask: Float[Tensor, "batch groups taps out_height out_width"] | None,
    geometry: ConvGeometry,
    padding_mode: PaddingMode,
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Return the convolution whose taps are displaced from the kernel's centre, in pixels.

    The channels of the input are split evenly among the ``groups`` of displacements. Arguments
    are taken as checked.
    """
    batch, channels, height, width = input.shape
    groups, taps = displacements.shape[1:3]
    output_size = displacements.shape[-2:]
    rows, columns = geometry.centres((output_size[0], output_size[1]), displacements)
    pixels = input.reshape(batch, groups, channels // groups, height * width)
    samples = []
    for tap in range(taps):
        sample = _bilinear(
            pixels,
            rows + displacements[:, :, tap, 0],
            columns + displacements[:, :, tap, 1],
            (height, width),
            padding_mode,
        )
        if mask is not None:
            sample = sample * mask[:, :, tap, None]
        samples.append(sample.to(input.dtype))
    stacked = torch.stack(samples, dim=3).reshape(batch, channels * taps, *output_size)
    output = functional.conv2d(
        stacked,
        weight.reshape(weight.shape[0], -1, 1, 1),
        bias,
        groups=channels // weight.shape[1],
    )
    return output.contiguous(memory_format=memory_format(input))


def _bilinear(
    pixels: Float[Tensor, "batch groups channels pixels"],
    rows: Float[Tensor, "batch groups out_height out_width"],
    columns: Float[Tensor, "batch groups out_height out_width"],
    size: tuple[int, int],
    padding_mode: PaddingMode,
) -> Float[Tensor, "batch groups channels out_height out_width"]:
    # NaN, infinity and absurd coordinates are outside: zero, with zero gradients.
    known = (rows.abs() < _FAR) & (columns.abs() < _FAR)
    rows, columns = torch.where(known, rows, 0.0), torch.where(known, columns, 0.0)
    top, left = rows.floor(), columns.floor()
    below, right = rows - top, columns - left
    corners = (
        (top, left, (1 - below) * (1 - right)),
        (top, left + 1, (1 - below) * right),
        (top + 1, left, below * (1 - right)),
        (top + 1, left + 1, below * right),
    )
    total: Tensor | None = None
    for row, column, share in corners:
        i, inside_rows = _wrap(row.long(), size[0], padding_mode)
        j, inside_columns = _wrap(column.long(), size[1], padding_mode)
        share = torch.where(known & inside_rows & inside_columns, share, 0.0)
        index = (i * size[1] + j).flatten(2)[:, :, None]
        values = pixels.gather(3, index.expand(-1, -1, pixels.shape[2], -1))
        term = values.reshape(*values.shape[:3], *rows.shape[2:]) * share[:, :, None]
        total = term if total is None else total + term
    assert total is not None
    return total


def _wrap(
    index: Int[Tensor, "..."], size: int, mode: PaddingMode
) -> tuple[Int[Tensor, "..."], Tensor]:
    """Return the pixel that stands for each index, and whether it counts."""
    if mode == "circular":
        return index.remainder(size), torch.ones_like(index, dtype=torch.bool)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        folded = index.remainder(period)
        return torch.minimum(folded, period - folded).clamp(max=size - 1), torch.ones_like(
            index, dtype=torch.bool
        )
    inside = (index >= 0) & (index < size)
    if mode == "replicate":
        inside = torch.ones_like(inside)
    return index.clamp(0, size - 1), inside
