"""Functions whose calls ``torch.fx`` records as they are, in place of the operations inside."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import nn
from torch.fx import Proxy

P = ParamSpec("P")
R = TypeVar("R")


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Have a call of a function be one node of a symbolic trace, as that of a function of PyTorch.

    A trace has no shapes, devices or dtypes, at which our functions look. ``torch.fx.wrap`` would
    do the same, but only for the name in one module, and not for the root of a trace: a module
    among the arguments that is the root itself is found by its attribute ``itself``.

    Parameters
    ----------
    function : callable
        Of a module's namespace, where a saved trace finds it again.
    """

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        for argument in (*arguments, *options.values()):
            if isinstance(argument, Proxy):
                return _record(argument.tracer, call, arguments, options)
        return function(*arguments, **options)

    return call


def _record(tracer: Any, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    def argument(value: Any) -> Any:
        if isinstance(value, nn.Module) and value is tracer.root:
            return tracer.create_proxy("get_attr", "itself", (), {})
        return value

    return tracer.create_proxy(
        "call_function",
        function,
        tuple(map(argument, arguments)),
        {name: argument(value) for name, value in options.items()},
    )
