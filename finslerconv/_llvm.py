"""Instructions on vectors of numbers, in LLVM's own language, for all kernels that write such."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils


def size_of(element: Any) -> int:
    if isinstance(element, ir.IntType):
        return element.width // 8
    return 8 if isinstance(element, ir.DoubleType) else 4


def splat(builder: Any, scalar: Any, width: int) -> Any:
    if width == 1:
        return scalar
    vector = ir.VectorType(scalar.type, width)
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(single, undefined, zeros)


def call(builder: Any, name: str, *arguments: Any) -> Any:
    """Call LLVM's function of floating numbers or vectors of that name, as ``floor``."""
    kind = arguments[0].type
    vector = isinstance(kind, ir.VectorType)
    number = f"f{8 * size_of(kind.element if vector else kind)}"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind] * len(arguments)),
        f"llvm.{name}.v{kind.count}{number}" if vector else f"llvm.{name}.{number}",
    )
    return builder.call(function, arguments)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # "muladd" fuses where the machine can and never calls a slow software routine.
    return call(builder, "fmuladd", a, b, c)
