"""Constructors whose errors name the class that was called, and what it takes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Self = TypeVar("Self")


def constructor(
    init: Callable[Concatenate[Self, P], None],
) -> Callable[Concatenate[Self, P], None]:
    """Make an ``__init__`` name the object's class in errors about its arguments.

    Python names the base class that holds the constructor.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Self, /, *arguments: P.args, **options: P.kwargs) -> None:
        try:
            signature.bind(self, *arguments, **options)
        except TypeError as error:
            taken = ", ".join(arguments_of(type(self)))
            raise TypeError(f"{type(self).__name__}: {error}; it takes {taken}") from None
        init(self, *arguments, **options)

    return checked


def arguments_of(cls: type[Any]) -> list[str]:
    """Return the names of the arguments of a class's constructor, in their order.

    Where a constructor passes ``**options`` on, the arguments of the base class are included.
    ``"..."`` comes last if no base class ends the chain.
    """
    found: dict[str, None] = {}
    for kind in cls.__mro__:
        if kind is object or "__init__" not in vars(kind):
            continue
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        found = {**dict.fromkeys(named), **found} if found else dict.fromkeys(named)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return list(found)
    return [*found, "..."]
