"""Units: gradients and energies relative to the largest of each picture."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def gradient_unit(
    image: Float[Tensor, "batch channels height width"],
    gradients: Sequence[Float[Tensor, "..."]],
) -> Float[Tensor, "batch 1 1 1 1"]:
    """Return the largest component of each picture's gradients, for dividing them by it.

    It is infinite for a picture whose gradients are what rounding makes of a constant: what is
    divided by it is 0. The unit is not differentiated, so what is computed from the quotients must
    not depend on it.
    """
    if image.numel() == 0:
        return image.new_ones((len(image), 1, 1, 1, 1))
    each = [g.detach().abs().flatten(1).amax(dim=1) for g in gradients]
    largest = torch.stack(each).amax(dim=0)
    brightest = image.detach().abs().flatten(1).amax(dim=1)
    textured = largest > 16 * torch.finfo(image.dtype).eps * brightest
    unit = torch.where(textured, largest, torch.full_like(largest, torch.inf))
    return unit[:, None, None, None, None]


def relative_to_largest(
    energy: Float[Tensor, "batch height width"],
) -> Float[Tensor, "batch height width"]:
    """Return non-negative energies over the largest of each picture, 0 where all are 0."""
    return energy / largest_or_one(energy)


def largest_or_one(
    energy: Float[Tensor, "batch height width"],
) -> Float[Tensor, "batch 1 1"]:
    """Return the largest energy of each picture, and 1 where all are 0."""
    if energy.numel() == 0:
        return energy.new_ones((len(energy), 1, 1))
    largest = energy.amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, largest, torch.ones_like(largest))
