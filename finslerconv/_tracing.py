"""What is done under tracers; functions whose calls ``torch.fx`` records, and not their insides."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.fx import Proxy

P = ParamSpec("P")
R = TypeVar("R")


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Make a call of a function one node of a symbolic trace, as for PyTorch's own functions.

    Our functions look at shapes, devices and dtypes, which a trace does not have. Unlike
    ``torch.fx.wrap`` this works for every name of the function, and with the root of the trace
    among the arguments: it is found by its attribute ``itself``. The function must be in a module's
    namespace, where a saved trace finds it again.
    """

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        for argument in (*arguments, *options.values()):
            if isinstance(argument, Proxy):
                return _record(argument.tracer, call, arguments, options)
        return function(*arguments, **options)

    return call


def is_traced_by_torchscript() -> bool:
    """Return whether ``torch.jit.trace`` is recording."""
    if torch.compiler.is_compiling():
        return False
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


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
