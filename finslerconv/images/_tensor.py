"""Fields of symmetric 2x2 tensors: their leading directions, without an eigendecomposition.

A symmetric tensor ``J`` with eigenvalues ``mu_1 >= mu_2`` and leading eigenvector ``n`` is ``mean I
+ (gap / 2) (2 n n' - I)``, with ``mean = (mu_1 + mu_2) / 2`` and ``gap = mu_1 - mu_2``. The
reflection ``2 n n' - I`` holds the direction without a sign, and every function of ``J`` is
written with it; where the gap vanishes there is no direction, and it is taken as 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import safe_sqrt
from finslerconv.images._checks import Direction


@dataclass(frozen=True, eq=False)
class TensorField:
    """A field of symmetric 2x2 tensors by its spectral parts."""

    mean: Float[Tensor, "*batch"]
    gap: Float[Tensor, "*batch"]
    deviator: Float[Tensor, "*batch 2 2"]
    """``J - mean I``, which is ``(gap / 2)`` times the reflection."""

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
    def reflection(self) -> Float[Tensor, "*batch 2 2"]:
        """``2 n n' - I``, and 0 where there is no direction."""
        directed = self.gap > 0
        half_gap = torch.where(directed, self.gap, torch.ones_like(self.gap)) / 2
        deviator = torch.where(
            directed[..., None, None], self.deviator, torch.zeros_like(self.deviator)
        )
        return deviator / half_gap[..., None, None]

    def with_eigenvalues(
        self, along: Float[Tensor, "*batch"], across: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch 2 2"]:
        """Return the tensors of eigenvalue ``along`` for ``n`` and ``across`` for the other.

        The two must be equal where there is no direction.
        """
        return self._sum((along + across) / 2, (along - across) / 2, self.reflection)

    def function(
        self,
        along: Float[Tensor, "*batch"],
        across: Float[Tensor, "*batch"],
        slope: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch 2 2"]:
        """Return ``f(J)``, from ``f`` at both eigenvalues and its derivative at their mean.

        Smooth where the eigenvalues meet: the divided difference of ``f`` gives way to the
        derivative before the difference is lost to rounding.
        """
        apart = self.gap > torch.finfo(self.gap.dtype).eps ** (1 / 3)
        gap = torch.where(apart, self.gap, torch.ones_like(self.gap))
        divided = torch.where(apart, (along - across) / gap, slope)
        return self._sum((along + across) / 2, divided, self.deviator)

    def oriented(self, hint: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Return unit vectors along ``n``, on the side of ``hint``.

        Zero where there is no direction, or where ``hint``, of order 1 like the tensors, is
        across it and so prefers no side.
        """
        projected = torch.where(
            (self.gap > 0)[..., None],
            hint + (self.reflection @ hint[..., None])[..., 0],
            torch.zeros_like(hint),
        )
        squared = (projected * projected).sum(-1)
        # Where the two terms above cancel, what is left is rounding.
        rounding = 64 * torch.finfo(hint.dtype).eps
        sided = squared > rounding**2 * torch.clamp((hint * hint).sum(-1), min=1)
        length = torch.where(sided, squared, torch.ones_like(squared)).sqrt()
        return torch.where(sided[..., None], projected / length[..., None], 0.0)

    @staticmethod
    def _sum(mean: Tensor, factor: Tensor, traceless: Tensor) -> Tensor:
        identity = torch.eye(2, dtype=mean.dtype, device=mean.device)
        return mean[..., None, None] * identity + factor[..., None, None] * traceless


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
