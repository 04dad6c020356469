"""Fields of symmetric 2x2 tensors: leading directions without eigendecomposition, and units.

A symmetric tensor ``J`` with eigenvalues ``mu_1 >= mu_2`` and leading eigenvector ``n`` is ``mean I
+ (gap / 2) (2 n n' - I)``, with ``mean = (mu_1 + mu_2) / 2`` and ``gap = mu_1 - mu_2``. The sign of
``n`` is free; where the gap vanishes there is no direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finslerconv import _parts
from finslerconv._arrays import safe_sqrt
from finslerconv._linalg import from_eigenvalues
from finslerconv.images._checks import Direction


@dataclass(frozen=True, eq=False)
class TensorField:
    """A field of symmetric 2x2 tensors by its spectral parts."""

    mean: Float[Tensor, "*batch"]
    gap: Float[Tensor, "*batch"]
    deviator: Float[Tensor, "*batch 2 2"]
    """``J - mean I``, which is ``(gap / 2) (2 n n' - I)``."""

    @classmethod
    def of(cls, J: Float[Tensor, "*batch 2 2"]) -> "TensorField":
        """Decompose tensors of order 1, with finite values and derivatives everywhere.

        Gaps below ``eps^2`` are rounding errors, as of gradients of order ``eps``, and become 0.
        """
        mean = (J[..., 0, 0] + J[..., 1, 1]) / 2
        a, b = (J[..., 0, 0] - J[..., 1, 1]) / 2, (J[..., 0, 1] + J[..., 1, 0]) / 2
        squared = a * a + b * b
        directed = squared > torch.finfo(J.dtype).eps ** 4
        gap = 2 * safe_sqrt(torch.where(directed, squared, torch.zeros_like(squared)))
        return cls(mean, gap, torch.stack((torch.stack((a, b), -1), torch.stack((b, -a), -1)), -2))

    def replaced(self, where: Bool[Tensor, "*batch"], other: "TensorField") -> "TensorField":
        """Return the tensors of ``other`` where told, and these elsewhere."""
        return TensorField(
            torch.where(where, other.mean, self.mean),
            torch.where(where, other.gap, self.gap),
            torch.where(where[..., None, None], other.deviator, self.deviator),
        )

    @property
    def direction(self) -> Float[Tensor, "*batch 2"]:
        """The unit vectors ``n``, of either sign; the first axis where there is no direction.

        Both components have small relative errors.
        """
        directed = self.gap > 0
        half_gap = torch.where(directed, self.gap, torch.ones_like(self.gap)) / 2
        # 2 n n' - I = [[cosine, sine], [sine, -cosine]], of twice the angle of n.
        cosine = torch.where(directed, self.deviator[..., 0, 0] / half_gap, 1.0)
        sine = torch.where(directed, self.deviator[..., 0, 1] / half_gap, 0.0)
        # The larger component has no cancellation; the other follows from their product.
        larger = ((1 + cosine.abs()) / 2).sqrt()
        smaller = sine / (2 * larger)
        down = torch.where(cosine < 0, smaller, larger)
        right = torch.where(cosine < 0, larger, smaller)
        return torch.stack((down, right), dim=-1)

    def with_eigenvalues(
        self, along: Float[Tensor, "*batch"], across: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch 2 2"]:
        """Return tensors of eigenvalues along and across ``n``, equal where there is none."""
        return from_eigenvalues(self.direction, along, across)

    def function(
        self,
        along: Float[Tensor, "*batch"],
        across: Float[Tensor, "*batch"],
        slope: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch 2 2"]:
        """Return ``f(J)``, from ``f`` at both eigenvalues and its derivative at their mean.

        The derivative serves where the eigenvalues are so near that rounding spoils the direction.
        """
        apart = self.gap > torch.finfo(self.gap.dtype).eps ** (1 / 3)
        identity = torch.eye(2, dtype=self.gap.dtype, device=self.gap.device)
        near = ((along + across) / 2)[..., None, None] * identity
        near = near + slope[..., None, None] * self.deviator
        return torch.where(apart[..., None, None], self.with_eigenvalues(along, across), near)

    def oriented(self, hint: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Return ``n`` of the sign of ``n . hint``, 0 where there is no direction or sign.

        ``hint`` is of order 1, as the tensors are.
        """
        n = self.direction
        side = (n * hint).sum(-1)
        # Where the two terms of the product cancel, the rest is rounding.
        rounding = 32 * torch.finfo(hint.dtype).eps
        sided = side.abs() > rounding * torch.linalg.vector_norm(hint.detach(), dim=-1).clamp(min=1)
        sign = torch.where(sided & (self.gap > 0), side.detach().sign(), 0.0)
        return sign[..., None] * n


def one_form(
    n: Float[Tensor, "*batch 2"],
    along: Float[Tensor, "*batch"],
    across: Float[Tensor, "*batch"],
    direction: Direction,
    tau: float,
) -> Float[Tensor, "*batch 2"]:
    """Return the one-form along ``n``, or left of it in the picture, of dual norm ``|tau|``.

    Both are eigenvectors of the metric, so their dual norm is one over the root of the eigenvalue.
    """
    if direction == "along":
        return tau * along.sqrt()[..., None] * n
    left = torch.stack((-n[..., 1], n[..., 0]), dim=-1)
    return tau * across.sqrt()[..., None] * left


def gradient_unit(
    image: Float[Tensor, "batch channels height width"],
    components: Sequence[Float[Tensor, "batch _ _"]],
) -> Float[Tensor, "batch 1 1 1 1"]:
    """Return the largest component of each picture's gradients, to divide them by.

    ``components`` are the absolute values of the largest component at each pixel, on the picture
    or with a margin around it. The unit is infinite, so that quotients are 0, if rounding errors of
    a constant explain the gradients. It is not differentiated, so results must not depend on it.
    """
    if image.numel() == 0:
        return image.new_ones((len(image), 1, 1, 1, 1))
    size = (image.shape[2], image.shape[3])
    each = [_parts.core(c.detach(), size).flatten(1).amax(dim=1) for c in components]
    brightest = _parts.core(image.detach().abs().amax(dim=1), size).flatten(1).amax(dim=1)
    both = torch.stack((torch.stack(each).amax(dim=0), brightest), dim=1)
    largest, brightest = _parts.over_whole(both).unbind(1)
    textured = largest > 16 * torch.finfo(image.dtype).eps * brightest
    unit = torch.where(textured, largest, torch.full_like(largest, torch.inf))
    return unit[:, None, None, None, None]


def largest_or_one(energy: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch 1 1"]:
    """Return the largest energy of each picture, and 1 where all are 0."""
    if energy.numel() == 0:
        return energy.new_ones((len(energy), 1, 1))
    inner = _parts.core(energy, (energy.shape[1], energy.shape[2]))
    largest = _parts.over_whole(inner.flatten(1).amax(dim=1, keepdim=True))[:, :, None]
    return torch.where(largest > 0, largest, torch.ones_like(largest))
