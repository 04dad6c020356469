"""What one module takes over from another whose place it takes."""

from torch import nn
from torch.nn.utils import parametrize

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def take_over_weights(old: nn.Module, new: nn.Module) -> None:
    """Give a layer the parameter objects of another, and its parametrisations."""
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(old, name):
            _take_over_parametrization(old, new, name)
        else:
            setattr(new, name, getattr(old, name))


def take_over_surroundings(old: nn.Module, new: nn.Module) -> tuple[str, ...]:
    """Give a module the hooks, mode and attributes of another; return notes for the report."""
    # Parametrisations came over with the weights, and keep their modes.
    before = set(old.modules())
    for module in new.modules():
        if module not in before:
            module.training = old.training
    notes = []
    if any(getattr(old, name) for name in _HOOKS):
        notes.append("hooks carried over")
    for name in _HOOKS:
        theirs, ours = getattr(old, name), getattr(new, name)
        if theirs:
            # The old dictionary itself, so that handle.remove() still works.
            theirs.update(ours)
            setattr(new, name, theirs)
    if old._is_full_backward_hook is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
    for name, value in vars(old).items():
        if not name.startswith("_") and name not in vars(new) and not isinstance(value, nn.Module):
            setattr(new, name, value)
    if any(getattr(old, name, None) for name in _STATE_HOOKS):
        notes.append("its state_dict hooks are not carried over")
    return tuple(notes)


def _take_over_parametrization(old: nn.Module, new: nn.Module, name: str) -> None:
    """Give a module the very list of parametrisations of another."""
    # Registering them anew would make them invert the new module's tensor, and some remember what
    # they inverted (the base of an orthogonal one). A placeholder makes room for the list.
    parametrize.register_parametrization(new, name, nn.Identity(), unsafe=True)
    new.parametrizations[name] = old.parametrizations[name]  # type: ignore[index, operator]
