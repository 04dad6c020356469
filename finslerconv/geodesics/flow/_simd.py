"""Vector instructions of the geodesic kernels: all numbers of a cell's four nodes at once.

A node's 16 numbers lie side by side, and are read, blended and added to as one vector of 16, which
LLVM cuts into the registers that the machine has. Numba would go through them one by one.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

#: Numbers a node: a power of two, of which the last is unused.
WIDE = 16

_DOUBLE = ir.DoubleType()
_VECTOR = ir.VectorType(_DOUBLE, WIDE)


def _index(i: int) -> Any:
    return ir.Constant(ir.IntType(32), i)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    pointer = builder.gep(builder.bitcast(data, _DOUBLE.as_pointer()), [place])
    return builder.bitcast(pointer, _VECTOR.as_pointer())


def _splat(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDE), [0] * WIDE)
    single = builder.insert_element(undefined, scalar, _index(0))
    return builder.shuffle_vector(single, undefined, zeros)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # "muladd" fuses where the machine can and never calls a slow software routine.
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{WIDE}f64"
    )
    return builder.call(function, [a, b, c])


def _sum(builder: Any, vector: Any) -> Any:
    """Add up the numbers in halves, the same tree on every machine."""
    width = WIDE
    while width > 1:
        width //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        kind = ir.VectorType(ir.IntType(32), width)
        low, high = (
            builder.shuffle_vector(vector, undefined, ir.Constant(kind, list(numbers)))
            for numbers in (range(width), range(width, 2 * width))
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, _index(0))


@intrinsic
@no_type_check
def blend(typing, field, n00, n01, n10, n11, a, b):
    """Return the numbers between four nodes: bilinear at ``a`` down and ``b`` to the right."""
    signature = types.UniTuple(types.float64, WIDE)(field, n00, n01, n10, n11, a, b)

    @no_type_check
    def codegen(context, builder, signature, arguments):
        field, *nodes, a, b = arguments
        f00, f01, f10, f11 = (
            builder.load(_pointer(context, builder, signature.args[0], field, n), align=8)
            for n in nodes
        )
        down, right = _splat(builder, a), _splat(builder, b)
        top = _fma(builder, right, builder.fsub(f01, f00), f00)
        bottom = _fma(builder, right, builder.fsub(f11, f10), f10)
        out = _fma(builder, down, builder.fsub(bottom, top), top)
        numbers = [builder.extract_element(out, _index(k)) for k in range(WIDE)]
        return context.make_tuple(builder, signature.return_type, numbers)

    return signature, codegen


@intrinsic
@no_type_check
def blend_backward(typing, field, slope, n00, n01, n10, n11, a, b, gradients):
    """Add the gradient of :func:`blend` to that of the nodes; return those of ``a`` and ``b``.

    ``gradients`` is a tuple of as many numbers as a node has.
    """
    result = types.UniTuple(types.float64, 2)
    signature = result(field, slope, n00, n01, n10, n11, a, b, gradients)

    @no_type_check
    def codegen(context, builder, signature, arguments):
        field, slope, *nodes, a, b, gradients = arguments
        f00, f01, f10, f11 = (
            builder.load(_pointer(context, builder, signature.args[0], field, n), align=8)
            for n in nodes
        )
        g = ir.Constant(_VECTOR, ir.Undefined)
        for k in range(WIDE):
            g = builder.insert_element(g, builder.extract_value(gradients, k), _index(k))
        one = ir.Constant(_DOUBLE, 1.0)
        up, left = builder.fsub(one, a), builder.fsub(one, b)
        # One after the other, since nodes coincide on a grid of one row.
        for n, v, h in zip(nodes, (up, up, a, a), (left, b, left, b), strict=True):
            place = _pointer(context, builder, signature.args[1], slope, n)
            weight = _splat(builder, builder.fmul(v, h))
            before = builder.load(place, align=8)
            builder.store(_fma(builder, weight, g, before), place, align=8)
        top, side = builder.fsub(f01, f00), builder.fsub(f10, f00)
        twist = builder.fsub(builder.fsub(f11, f10), top)
        by_a = _fma(builder, _splat(builder, b), twist, side)
        by_b = _fma(builder, _splat(builder, a), twist, top)
        sums = [_sum(builder, builder.fmul(g, by)) for by in (by_a, by_b)]
        return context.make_tuple(builder, signature.return_type, sums)

    return signature, codegen
