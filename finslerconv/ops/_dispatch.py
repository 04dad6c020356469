"""From checked arguments to the backend that computes them."""

import torch
from torch import Tensor

from finslerconv._transforms import needs_formulas
from finslerconv.ops import _library
from finslerconv.ops._backend import is_compiled
from finslerconv.ops._geometry import ConvGeometry, PaddingMode
from finslerconv.ops._positions import Positions
from finslerconv.ops.backends import _reference


def convolve(
    input: Tensor,
    positions: Positions,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: ConvGeometry,
    padding_mode: PaddingMode,
) -> Tensor:
    """Return the convolution, by the backend chosen for the device of the input."""
    tensors = (input, positions.field, positions.omega, positions.points, weight, bias, mask)
    if not is_compiled(input.device) or needs_formulas(*tensors):
        return _reference.convolve(input, positions, weight, bias, mask, geometry, padding_mode)
    points = positions.points
    if positions.kind != "offsets" and points.requires_grad and torch.is_grad_enabled():
        # The operators differentiate in the metric alone; learned reference points go the long
        # way, through the positions.
        displacements = positions.displacements(geometry.dilation)
        points = geometry.taps(displacements)
        offsets = (displacements - points[..., None, None]).flatten(1, 3)
        positions = Positions("offsets", offsets, None, points)
    return _library.convolve(input, positions, weight, bias, mask, geometry, padding_mode)
