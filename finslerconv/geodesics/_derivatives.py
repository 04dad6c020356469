"""A guard for derivatives that are computed by hand and cannot be differentiated again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def first_only(
    gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of an operation, such that differentiating them is an error.

    What a backward pass computes outside autograd would count as constant under
    ``create_graph=True``, and second derivatives would be wrong without a word.

    Parameters
    ----------
    gradients : sequence of Tensor or None
        What the backward pass returns.
    inputs : sequence of Tensor or None
        What the operation was given, on which the gradients depend.
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    guarded: tuple[Tensor | None, ...] = _FirstOnly.apply(len(gradients), *gradients, *inputs)  # type: ignore[no-untyped-call]
    return guarded


def refuse_second(result: Tensor, message: str) -> None:
    """Make it an error to ask for a gradient of ``result`` that can be differentiated again.

    For results whose gradient goes through autograd but holds terms that it takes for constant.
    """

    def refuse(_: Tensor) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError(message)

    result.register_hook(refuse)


class _FirstOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if x is None else x.clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "geodesics: second derivatives of distances are not computed; take finite differences "
            "of the first ones, or, for positions that are near each other, chord_distance, which "
            "can be differentiated as often as one likes"
        )
