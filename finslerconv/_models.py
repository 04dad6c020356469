"""Whole PyTorch models: their modules replaced, run in evaluation mode, listed in messages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# How many entries of a list a message names.
_SHOWN = 5


def replace_modules(model: nn.Module, new: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Replace each module by ``new(name, module)``, called once, wherever the module occurs."""
    made: dict[int, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        replacement = made[id(module)] = new(name, module)
        if replacement is module:
            for child_name, child in module._modules.items():
                if child is not None:
                    path = f"{name}.{child_name}" if name else child_name
                    module._modules[child_name] = visit(path, child)
        return replacement

    return visit("", model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards each of its modules gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def named(name: str) -> str:
    """Return the name of a module as messages show it; the model itself has none."""
    return name or "(the model itself)"


def first_few(entries: Sequence[str]) -> str:
    """Return the first entries of a list, and how many more there are."""
    rest = len(entries) - _SHOWN
    return ", ".join([*entries[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])


#: Where training scripts keep weights in a checkpoint, in the order in which they are tried.
WEIGHT_PLACES = (
    "state_dict", "model", "model_state_dict", "ema", "model_ema", "state_dict_ema", "params",
    "params_ema",
)  # fmt: skip


def weights_in(held: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all mappings from names to tensors in a checkpoint, and where they are."""
    if isinstance(held, nn.Module):
        held = held.state_dict()
    if not isinstance(held, Mapping):
        return
    if any(isinstance(value, Tensor) for value in held.values()):
        # torch.compile puts a prefix before the names of modules; AveragedModel adds a counter.
        names = [name for name in held if name != "n_averaged"]
        yield place, {str(name).replace("_orig_mod.", ""): held[name] for name in names}
    for key in WEIGHT_PLACES:
        if key in held:
            yield from weights_in(held[key], f"{place}.{key}" if place else key)


def without_module(state: dict[str, Any]) -> dict[str, Any]:
    """Return weights without the ``module.`` that DataParallel puts before all names."""
    if not all(name.startswith("module.") for name in state):
        return state
    return {name.removeprefix("module."): value for name, value in state.items()}
