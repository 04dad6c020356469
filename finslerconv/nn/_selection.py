"""Which convolutions of a model are meant."""

import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from finslerconv._arrays import is_integer
from finslerconv._models import first_few, named

#: From a dotted name and a module to whether it is meant.
Predicate = Callable[[str, nn.Module], bool]

#: What ``where`` may be: a kernel size, patterns of names, a class, a predicate, or all (None).
Where = (
    int | Sequence[int] | str | re.Pattern[str] | Sequence[str] | type[nn.Module] | Predicate | None
)

# "layer3", "stage3", "stages.3", "block3": how networks number their stages.
_STAGE = re.compile(r"(?:^|\.)(?:layer|stages?|blocks?)[._]?(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Selection:
    """A predicate on the names and modules of a model that can be combined with others.

    ``a & b``, ``a | b`` and ``~a`` are selections too, and ``b`` may be any function of a name and
    a module. :func:`select` makes selections.

    Parameters
    ----------
    matches : callable
        From a dotted name and a module to whether it is meant.
    description : str
        What is shown.

    Examples
    --------
    >>> from torch import nn
    >>> from finslerconv.nn import Selection, select
    >>> wide = Selection(lambda name, module: module.in_channels >= 8, "wide ones")
    >>> print(select(kernel_size=3) & ~wide)
    (select(kernel_size=3) & ~wide ones)
    """

    matches: Predicate
    description: str

    def __call__(self, name: str, module: nn.Module) -> bool:
        return bool(self.matches(name, module))

    def __and__(self, other: Predicate) -> "Selection":
        return Selection(
            lambda name, module: self(name, module) and bool(other(name, module)),
            f"({self} & {_description(other)})",
        )

    def __or__(self, other: Predicate) -> "Selection":
        return Selection(
            lambda name, module: self(name, module) or bool(other(name, module)),
            f"({self} | {_description(other)})",
        )

    def __invert__(self) -> "Selection":
        return Selection(lambda name, module: not self(name, module), f"~{self}")

    def __str__(self) -> str:
        return self.description


def select(
    *,
    kernel_size: int | Sequence[int] | None = None,
    name: str | re.Pattern[str] | Sequence[str] | None = None,
    stage: int | Iterable[int] | None = None,
    type: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,  # noqa: A002
    predicate: Predicate | None = None,
) -> Selection:
    """Select the convolutions for which everything that is given holds.

    Parameters
    ----------
    kernel_size : int or sequence of int, optional
        The kernel size; an integer for one that is the same along all axes.
    name : str, compiled regular expression, or sequence of str, optional
        A pattern as for file names that the whole dotted name matches (``"layer[234].*"``), or an
        expression of :mod:`re` that is found somewhere in it; or several patterns, of which one
        matches.
    stage : int or iterable of int, optional
        The number of the stage, as it stands in the name: 3 for ``layer3.0.conv1``,
        ``stage3.conv``, ``stages.3.blocks.0.conv`` (the first such number counts).
    type : class or tuple of classes, optional
        A class of which the module is an instance.
    predicate : callable, optional
        From a name and a module to whether it is meant.

    Returns
    -------
    Selection
        A function of a name and a module; selections combine by ``&``, ``|`` and ``~``.

    Raises
    ------
    TypeError
        If an argument is of another kind.

    Examples
    --------
    >>> late = select(kernel_size=3, stage=(3, 4))
    >>> late("layer3.0.conv1", nn.Conv2d(8, 8, 3)), late("layer2.0.conv1", nn.Conv2d(8, 8, 3))
    (True, False)
    >>> print(late & ~select(name="*.conv1"))
    (select(kernel_size=3, stage=(3, 4)) & ~select(name='*.conv1'))
    """
    criteria: dict[str, tuple[Any, Callable[[Any], Predicate]]] = {
        "kernel_size": (kernel_size, _has_kernel_size),
        "name": (name, _has_name),
        "stage": (stage, _is_in_stage),
        "type": (type, _is_instance),
        "predicate": (predicate, partial(_predicate, "predicate")),
    }
    given = {key: each for key, each in criteria.items() if each[0] is not None}
    tests = [test(value) for value, test in given.values()]
    shown = ", ".join(f"{key}={_shown(value)}" for key, (value, _) in given.items())
    return Selection(
        lambda name, module: all(test(name, module) for test in tests), f"select({shown})"
    )


def as_selection(where: Where) -> Selection:
    """Return what an argument ``where`` stands for."""
    if where is None:
        return Selection(lambda name, module: True, "all")
    if isinstance(where, Selection):
        return where
    anything: Any = where
    if isinstance(where, str | re.Pattern):
        return select(name=where)
    if isinstance(where, type):
        return select(type=anything)
    if callable(where) and not isinstance(where, nn.Module):
        return Selection(_predicate("where", where), _description(where))
    if isinstance(where, Sequence) and where and all(isinstance(each, str) for each in where):
        return select(name=anything)
    if is_integer(where) or isinstance(where, Sequence):
        return select(kernel_size=anything)
    raise TypeError(
        "where: expected a selection such as select(kernel_size=3), a pattern of names or several, "
        f"a kernel size, a class, or a function of (name, module), got {_short(where)}"
    )


def unmatched(where: Where, names: Sequence[str]) -> str:
    """Return the message that ``where`` selects none of the convolutions of these names."""
    hint = ""
    if isinstance(where, str) and fnmatch.filter(names, f"{where}.*"):
        hint = f' "{where}.*" would match those inside it: a pattern matches the whole name.'
    shown = first_few([named(name) for name in names])
    return (
        f"where: {as_selection(where)} matches none of the model's {len(names)} convolutions."
        f"{hint} They are: {shown}"
    )


def _is_instance(wanted: Any) -> Predicate:
    classes = wanted if isinstance(wanted, tuple) else (wanted,)
    if not classes or not all(isinstance(c, type) and issubclass(c, nn.Module) for c in classes):
        raise TypeError(
            f"type: expected a class of modules, such as nn.Conv2d, or a tuple of them, got "
            f"{wanted!r}"
        )
    return lambda _, module: isinstance(module, classes)


def _predicate(argument: str, function: Any) -> Predicate:
    """Return a function that can be called with a name and a module, or refuse it."""
    expected = f"{argument}: expected a function of (name, module), got"
    if not callable(function):
        raise TypeError(f"{expected} {function!r}")
    try:
        inspect.signature(function).bind("", None)
    except TypeError as error:
        raise TypeError(f"{expected} {_description(function)} ({error})") from error
    except ValueError:
        # Some functions that are not written in Python do not tell what they take.
        pass
    checked: Predicate = function
    return checked


def _has_kernel_size(kernel_size: int | Sequence[int]) -> Predicate:
    single = not isinstance(kernel_size, Sequence)
    sizes = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,)
    if not sizes or not all(map(is_integer, sizes)):
        raise TypeError(f"kernel_size: expected integers, got {kernel_size!r}")

    def matches(_: str, module: nn.Module) -> bool:
        if not isinstance(module, _ConvNd):
            return False
        wanted = sizes * len(module.kernel_size) if single else sizes
        return tuple(module.kernel_size) == wanted

    return matches


def _has_name(pattern: str | re.Pattern[str] | Sequence[str]) -> Predicate:
    if isinstance(pattern, re.Pattern):
        return lambda name, _: pattern.search(name) is not None
    patterns = [pattern] if isinstance(pattern, str) else pattern
    if not isinstance(patterns, Sequence) or not all(isinstance(each, str) for each in patterns):
        raise TypeError(
            f"name: expected a string, a compiled expression or several strings, got {pattern!r}"
        )
    return lambda name, _: any(fnmatch.fnmatchcase(name, each) for each in patterns)


def _is_in_stage(stage: int | Iterable[int]) -> Predicate:
    stages = set(stage) if isinstance(stage, Iterable) else {stage}
    if not all(map(is_integer, stages)):
        raise TypeError(f"stage: expected integers, got {stage!r}")

    def matches(name: str, _: nn.Module) -> bool:
        found = _STAGE.search(name)
        return found is not None and int(found[1]) in stages

    return matches


def _description(where: Predicate) -> str:
    return str(where) if isinstance(where, Selection) else getattr(where, "__name__", repr(where))


def _short(value: object) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)


def _shown(value: object) -> str:
    if isinstance(value, re.Pattern):
        return repr(value.pattern)
    return getattr(value, "__name__", None) or repr(value)
