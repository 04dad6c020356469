"""Fields of symmetric 2x2 tensors: their leading directions, without an eigendecomposition.

A symmetric tensor ``J`` with eigenvalues ``mu_1 >= mu_2`` and leading eigenvector ``n`` is ``mean I
+ (gap / 2) (2 n n' - I)``, with ``mean = (mu_1 + mu_2) / 2`` and ``gap = mu_1 - mu_2``. Every
function of ``J`` is even in ``n``, whose sign is therefore free; where the gap vanishes there is no
direction.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

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
        """Take tensors of order 1 apart, values and derivatives finite everywhere.

        Gaps below ``eps^2`` are those of products of gradients of order ``eps``: rounding errors,
        which count as none.
        """
        mean = (J[..., 0, 0] + J[..., 1, 1]) / 2
        a, b = (J[..., 0, 0] - J[..., 1, 1]) / 2, (J[..., 0, 1] + J[..., 1, 0]) / 2
        squared = a * a + b * b
        directed = squared > torch.finfo(J.dtype).eps ** 4
        gap = 2 * safe_sqrt(torch.where(directed, squared, torch.zeros_like(squared)))
        return cls(mean, gap, torch.stack((torch.stack((a, b), -1), torch.stack((b, -a), -1)), -2))

    @property
    def direction(self) -> Float[Tensor, "*batch 2"]:
        """The unit vectors ``n``, of either sign, and the first axis where there is no direction.

        Both components are exact to a few roundings of themselves.
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
        """Return the tensors of eigenvalue ``along`` for ``n`` and ``across`` for the other.

        The two must be equal where there is no direction.
        """
        return from_eigenvalues(self.direction, along, across)

    def function(
        self,
        along: Float[Tensor, "*batch"],
        across: Float[Tensor, "*batch"],
        slope: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch 2 2"]:
        """Return ``f(J)``, from ``f`` at both eigenvalues and its derivative at their mean.

        Smooth where the eigenvalues meet: what is written with their direction gives way to the
        derivative before the direction is lost to rounding.
        """
        apart = self.gap > torch.finfo(self.gap.dtype).eps ** (1 / 3)
        identity = torch.eye(2, dtype=self.gap.dtype, device=self.gap.device)
        near = ((along + across) / 2)[..., None, None] * identity
        near = near + slope[..., None, None] * self.deviator
        return torch.where(apart[..., None, None], self.with_eigenvalues(along, across), near)

    def oriented(self, hint: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Return unit vectors along ``n``, on the side of ``hint``.

        Zero where there is no direction, or where ``hint``, of order 1 like the tensors, is
        across it and so prefers no side.
        """
        n = self.direction
        side = (n * hint).sum(-1)
        # Where the two terms of the product cancel, what is left is rounding.
        rounding = 32 * torch.finfo(hint.dtype).eps
        sided = side.abs() > rounding * torch.linalg.vector_norm(hint.detach(), dim=-1).clamp(min=1)
        sign = torch.where(sided & (self.gap > 0), side.detach().sign(), 0.0)
        return sign[..., None] * n


def drift(
    n: Float[Tensor, "*batch 2"],
    along: Float[Tensor, "*batch"],
    across: Float[Tensor, "*batch"],
    direction: Direction,
    tau: float,
) -> Float[Tensor, "*batch 2"]:
    """Return the one-form along or across ``n`` of norm ``|tau|`` in the inverse of the metric.

    ``n`` and the quarter turn of ``n`` (to the left, as one sees the picture) are eigenvectors of
    the metric, so that the norm of either is one over the root of its eigenvalue.
    """
    if direction == "along":
        return tau * along.sqrt()[..., None] * n
    left = torch.stack((-n[..., 1], n[..., 0]), dim=-1)
    return tau * across.sqrt()[..., None] * left
