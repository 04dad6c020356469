"""Rules that PyTorch asks of an operator, the same for all: second derivatives, autocast, vmap."""

from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import torch
from torch import Tensor


def second_gradients(
    formula: Callable[[Sequence[Tensor | None]], Tensor],
    grad: Tensor,
    tensors: Sequence[Tensor | None],
    seeds: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the gradients of an operator's gradients, by differentiating its formula twice.

    Parameters
    ----------
    formula : callable
        Computes the operator from ``tensors`` by PyTorch's operations.
    grad : Tensor
        The gradient of the operator's output.
    tensors : sequence of Tensor or None
        The differentiated arguments; None if absent.
    seeds : sequence of Tensor or None
        The gradients of the arguments' gradients; of another shape where there was none.

    Returns
    -------
    list of Tensor or None
        The gradients of ``grad`` and of the tensors, to be differentiated further if gradients
        are enabled.
    """
    further = torch.is_grad_enabled()

    def renamed(tensor: Tensor) -> Tensor:
        """Return the tensor as a variable of its own."""
        new = tensor.view_as(tensor) if further and tensor.requires_grad else tensor.detach()
        return new if new.requires_grad else new.requires_grad_()

    with torch.enable_grad():
        grad = renamed(grad)
        live = [None if t is None else renamed(t) for t in tensors]
        present = [t for t in live if t is not None]
        output = formula(live)
        found = iter(
            torch.autograd.grad(output, present, grad, create_graph=True, materialize_grads=True)
        )
        first = [None if t is None else next(found) for t in live]
        along = [
            (gradient * seed).sum()
            for gradient, seed in zip(first, seeds, strict=True)
            if gradient is not None and seed is not None and seed.shape == gradient.shape
        ]
        if not along:
            return [None] * (1 + len(live))
        second = iter(
            torch.autograd.grad(
                torch.stack(along).sum(), [grad, *present], create_graph=further,
                materialize_grads=True,
            )
        )  # fmt: skip
        return [next(second), *(None if t is None else next(second) for t in live)]


def register_autocast(library: torch.library.Library, name: str, places: Sequence[int]) -> None:
    """Lower the arguments at these places under autocast, all but float64, and no others."""
    op = getattr(torch.ops.finslerconv, name)

    def rule(device: str) -> Callable[..., Tensor]:
        @no_type_check
        def cast(*arguments):
            dtype = torch.get_autocast_dtype(device)
            lowered = list(arguments)
            for place in places:
                tensor = lowered[place]
                if tensor is not None and tensor.dtype != torch.float64:
                    lowered[place] = tensor.to(dtype)
            with torch.autocast(device, enabled=False):
                return op(*lowered)

        return cast

    for device in ("cpu", "cuda", "mps", "xpu"):
        library.impl(name, rule(device), f"Autocast{device.upper()}")


def mapped(op: Any) -> Callable[..., Any]:
    """Return the rule of vmap that goes slice by slice; every slice is computed in parallel."""

    @no_type_check
    def rule(info, in_dims, *arguments):
        results = [
            op(
                *(
                    a.select(d, i) if isinstance(a, Tensor) and d is not None else a
                    for a, d in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])

    return rule
