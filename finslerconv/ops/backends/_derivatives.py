"""The gradients of plain PyTorch code inside an operator."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiate(
    function: Callable[[Sequence[Tensor | None]], Tensor],
    tensors: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
) -> list[Tensor | None]:
    """Return the gradients of ``function(tensors)``, from that of its result.

    None where a gradient is not needed, or a tensor is None.
    """
    variables = [
        None if tensor is None else tensor.detach().requires_grad_(wanted)
        for tensor, wanted in zip(tensors, needed, strict=True)
    ]
    wanted = [variable for variable in variables if variable is not None and variable.requires_grad]
    # PyTorch calls operators with automatic differentiation switched off in the dispatcher.
    differentiating = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    with differentiating, torch.enable_grad():
        output = function(variables)
        found = iter(torch.autograd.grad(output, wanted, grad, materialize_grads=True))
    return [next(found) if v is not None and v.requires_grad else None for v in variables]
