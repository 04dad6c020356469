"""Many numbers as one value of a compiled kernel: arithmetic on vectors, written as on numbers.

A kernel that computes the same in many places at once takes lanes where it would take a float:
:data:`LANES` numbers, side by side in the machine's registers. Numba leaves vectors to LLVM, which
finds them in simple loops only. Here every operation is one of LLVM's on a vector, which it cuts
into the registers that the machine has. What branches in scalar code chooses by :func:`where`.

Lanes come from arrays of float32 or float64 (:func:`load`), and what is computed of them has their
precision. A number among them stands for as many equal ones.
"""

import operator
from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core.typeconv import Conversion
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

from finslerconv._llvm import call, splat

#: How many numbers one value holds: a power of two.
LANES = 16

_REALS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class Lanes(types.Type):  # type: ignore[misc]
    """Numba's type of lanes of a precision."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(name=f"lanes({dtype})")
        self.dtype = dtype
        self.vector = ir.VectorType(_REALS[dtype], LANES)

    def can_convert_from(self, context: Any, other: Any) -> Any:
        number = isinstance(other, types.Float | types.Integer)
        return Conversion.promote if number else None


class _Mask(types.Type):  # type: ignore[misc]
    """Numba's type of truth values, one for each of the lanes."""

    def __init__(self) -> None:
        super().__init__(name="mask")


mask = _Mask()

_KINDS = tuple(Lanes(dtype) for dtype in _REALS)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.vector)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.IntType(1), LANES))


def index(i: int) -> Any:
    """Return the index of one of the lanes."""
    return ir.Constant(ir.IntType(32), i)


@lower_cast(types.Float, Lanes)
@lower_cast(types.Integer, Lanes)
@no_type_check
def _from_number(context, builder, source, target, value):
    return splat(builder, context.cast(builder, value, source, target.dtype), LANES)


# The operators, by what the builder of LLVM calls them.
_ARITHMETIC = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
    operator.neg: "fneg",
}
_COMPARISONS = {operator.lt: "<", operator.gt: ">", operator.ge: ">="}


def _define(function: Any, signatures: list[Any], emit: Any) -> None:
    """Say what an operator is."""

    @no_type_check
    def lower(context, builder, signature, arguments):
        return emit(builder, *arguments)

    infer_global(function)(type(function.__name__, (ConcreteTemplate,), {"cases": signatures}))
    for each in signatures:
        lower_builtin(function, *each.args)(lower)


def _define_all() -> None:
    for function, name in _ARITHMETIC.items():
        count = 1 if function is operator.neg else 2
        signatures = [signature(kind, *[kind] * count) for kind in _KINDS]
        _define(function, signatures, lambda builder, *x, name=name: getattr(builder, name)(*x))
    for function, sign in _COMPARISONS.items():
        signatures = [signature(mask, kind, kind) for kind in _KINDS]
        _define(function, signatures, lambda builder, *x, sign=sign: builder.fcmp_ordered(sign, *x))
    _define(operator.and_, [signature(mask, mask, mask)], lambda builder, x, y: builder.and_(x, y))
    _define(operator.invert, [signature(mask, mask)], lambda builder, x: builder.not_(x))


_define_all()


def _kind(*candidates: Any) -> Any:
    """Return the type of lanes among types, of which others may be of numbers."""
    return next((kind for kind in candidates if isinstance(kind, Lanes)), None)


@intrinsic
@no_type_check
def spread(typing, number, like):
    """Return a number as lanes, in the precision of others."""

    @no_type_check
    def codegen(context, builder, signature, arguments):
        return arguments[0]

    return like(like, like), codegen


@intrinsic
@no_type_check
def where(typing, condition, x, y):
    """Return ``x`` where the condition holds and ``y`` elsewhere; one of them is lanes."""

    @no_type_check
    def codegen(context, builder, signature, arguments):
        return builder.select(*arguments)

    kind = _kind(x, y)
    return kind(mask, kind, kind), codegen


def _chosen(sign: str) -> Any:
    @intrinsic
    @no_type_check
    def function(typing, x, y):
        @no_type_check
        def codegen(context, builder, signature, arguments):
            return builder.select(builder.fcmp_ordered(sign, *arguments), *arguments)

        kind = _kind(x, y)
        return kind(kind, kind), codegen

    return function


maximum = _chosen(">")
minimum = _chosen("<")


def _of_llvm(name: str) -> Any:
    @intrinsic
    @no_type_check
    def function(typing, x):
        @no_type_check
        def codegen(context, builder, signature, arguments):
            return call(builder, name, *arguments)

        return x(x), codegen

    return function


sqrt = _of_llvm("sqrt")
floor = _of_llvm("floor")
absolute = _of_llvm("fabs")


@intrinsic
@no_type_check
def load(typing, array, row):
    """Return the numbers of a row of a contiguous array, (rows, LANES)."""

    @no_type_check
    def codegen(context, builder, signature, arguments):
        pointer, size = _row(context, builder, signature, arguments)
        return builder.load(pointer, align=size)

    return Lanes(array.dtype)(array, types.intp), codegen


@intrinsic
@no_type_check
def store(typing, array, row, x):
    """Write numbers to a row of a contiguous array, (rows, LANES)."""

    @no_type_check
    def codegen(context, builder, signature, arguments):
        pointer, size = _row(context, builder, signature, arguments)
        builder.store(arguments[2], pointer, align=size)
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes(array.dtype)), codegen


def _row(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, int]:
    kind = signature.args[0]
    data = context.make_array(kind)(context, builder, arguments[0]).data
    vectors = builder.bitcast(data, Lanes(kind.dtype).vector.as_pointer())
    return builder.gep(vectors, [arguments[1]]), kind.dtype.bitwidth // 8
