"""What a compiled backend's backward pass returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gradients:
    """The gradients of the arguments; None where they were not wanted."""

    input: Tensor | None
    field: Tensor | None
    omega: Tensor | None
    weight: Tensor | None
    mask: Tensor | None
