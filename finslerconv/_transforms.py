"""Derivatives that only PyTorch's own operations carry: forward mode, and ``torch.func``.

Compiled code has a backward pass and nothing else. Where a tensor has a tangent
(``torch.autograd.forward_ad``) or a transform of ``torch.func`` is active, a function uses
PyTorch's operations or refuses: its values would be right, but its derivatives silently zero.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Return whether transforms of ``torch.func`` are active."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def has_tangent(*arguments: Any) -> bool:
    """Return whether one of the arguments is a tensor that carries a forward-mode derivative."""
    return not torch.compiler.is_compiling() and any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in arguments
    )


def needs_formulas(*arguments: Any) -> bool:
    """Return whether derivatives of these arguments go through PyTorch's operations only."""
    return is_transformed() or has_tangent(*arguments)


def refuse_transforms(name: str, advice: str, arguments: Iterable[Any] = ()) -> None:
    """Raise a RuntimeError if derivatives are asked for that ``name`` does not have."""
    if needs_formulas(*arguments):
        raise RuntimeError(
            f"{name}: there are no forward-mode derivatives and no transforms of torch.func (jvp, "
            f"grad, jacrev, vmap), only reverse mode by backward() or torch.autograd.grad; {advice}"
        )


def values(x: Tensor) -> np.ndarray:
    """Return a tensor's values as an array, also under transforms of ``torch.func``.

    Under ``torch.vmap`` the array has all that is mapped over, in another shape.
    """
    x = x.detach().cpu()
    if not is_transformed():
        return x.numpy()
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    with torch._C._DisableFuncTorch():
        return x.numpy()


def is_mapped() -> bool:
    """Return whether ``torch.vmap`` is active, under which no value can be read."""
    return "Vmap" in _kinds()


def differentiations() -> int:
    """Return how many nested transforms of ``torch.func`` differentiate."""
    return sum(kind in ("Grad", "Jvp") for kind in _kinds())


def _kinds() -> list[str]:
    if not is_transformed():
        return []
    stack = torch._C._functorch.get_interpreter_stack() or []
    return [level.key().name for level in stack]
