"""Vector instructions for the compiled CPU kernels, written out in LLVM's own language.

Numba leaves vectorisation to LLVM. The two innermost loops are spelled out here instead, over the
widest vectors of the machine: the tile of a matrix product held in registers, and the sampling of
all channels of a pixel.
"""

from typing import Any, no_type_check

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _vector_bytes() -> int:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    if features.get("avx2"):
        return 32
    return 16


#: Width of the machine's vectors in bytes.
VECTOR_BYTES = _vector_bytes()

#: Rows of the register tile for each number of vectors in a row, widest first: enough independent
#: sums to hide the latency of the multiply-adds, and no more registers than the machine has (16
#: with AVX2, 32 with AVX-512 and on Arm).
tile_rows = {2: 6, 1: 12} if VECTOR_BYTES == 32 else {4: 6, 2: 12, 1: 12}

#: Rows of every register tile divide this.
TILE_ROWS = 12


def lanes(itemsize: int) -> int:
    """Return how many numbers of ``itemsize`` bytes a vector holds."""
    return VECTOR_BYTES // itemsize


# Every intrinsic takes flat arrays, each followed by the index at which it starts.


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _at(builder: Any, pointer: Any, index: Any, element: Any) -> Any:
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [index])


def _splat(builder: Any, scalar: Any, width: int) -> Any:
    if width == 1:
        return scalar
    vector = ir.VectorType(scalar.type, width)
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(single, undefined, zeros)


def _load(builder: Any, pointer: Any, element: Any, width: int) -> Any:
    kind = element if width == 1 else ir.VectorType(element, width)
    pointer = builder.bitcast(pointer, kind.as_pointer())
    return builder.load(pointer, align=_bytes(element))


def _store(builder: Any, value: Any, pointer: Any, element: Any) -> None:
    pointer = builder.bitcast(pointer, value.type.as_pointer())
    builder.store(value, pointer, align=_bytes(element))


def _bytes(element: Any) -> int:
    return 8 if isinstance(element, ir.DoubleType) else 4


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # "muladd" fuses where the machine can and never calls a slow software routine.
    kind = a.type
    vector = isinstance(kind, ir.VectorType)
    name = f"f{8 * _bytes(kind.element if vector else kind)}"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind] * 3),
        f"llvm.fmuladd.v{kind.count}{name}" if vector else f"llvm.fmuladd.{name}",
    )
    return builder.call(function, [a, b, c])


def _each_vector(builder: Any, count: Any, widest: int, body: Any) -> None:
    """Emit ``body(offset, width)`` over ``count`` numbers: whole vectors, then ever halved ones."""
    index = count.type
    step = ir.Constant(index, widest)
    whole = builder.sub(count, builder.srem(count, step))
    with cgutils.for_range_slice(builder, ir.Constant(index, 0), whole, step, index) as (at, _):
        body(at, widest)
    offset = cgutils.alloca_once_value(builder, whole)
    width = widest // 2
    while width >= 1:
        bit = builder.and_(count, ir.Constant(index, width))
        with builder.if_then(builder.icmp_signed("!=", bit, ir.Constant(index, 0))):
            at = builder.load(offset)
            body(at, width)
            builder.store(builder.add(at, ir.Constant(index, width)), offset)
        width //= 2


def _sums(builder: Any, vectors: Any) -> Any:
    """Return the sums of the lanes of four vectors as one vector.

    Halves are added, the same tree on every machine of this width.
    """

    def added(a: Any, b: Any, low: Any, high: Any) -> Any:
        kind = ir.VectorType(ir.IntType(32), len(low))
        return builder.fadd(
            builder.shuffle_vector(a, b, ir.Constant(kind, list(low))),
            builder.shuffle_vector(a, b, ir.Constant(kind, list(high))),
        )

    width = vectors[0].type.count
    while width > 4:
        width //= 2
        halves = (range(width), range(width, 2 * width))
        vectors = [added(v, ir.Constant(v.type, ir.Undefined), *halves) for v in vectors]
    if width == 4:
        vectors = [added(*pair, (0, 1, 4, 5), (2, 3, 6, 7)) for pair in (vectors[:2], vectors[2:])]
    else:
        join = ir.Constant(ir.VectorType(ir.IntType(32), 4), list(range(4)))
        vectors = [builder.shuffle_vector(*pair, join) for pair in (vectors[:2], vectors[2:])]
    return added(*vectors, (0, 2, 4, 6), (1, 3, 5, 7))


def _product_tile(vectors: int, rows: int) -> Any:
    @no_type_check
    def product_tile(typing, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add):
        """``c[rows, vectors * lanes] (+)= a[rows, depth] @ b[depth, vectors * lanes]``.

        The product is summed from zero and added to ``c`` at its end.
        """
        signature = types.void(a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add)

        @no_type_check
        def codegen(context, builder, signature, arguments):
            a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row, depth, add = arguments
            element = context.get_value_type(signature.args[0].dtype)
            width = lanes(_bytes(element))
            size = depth.type
            a_data = _at(builder, _data(context, builder, signature.args[0], a), a_at, element)
            b_data = _at(builder, _data(context, builder, signature.args[4], b), b_at, element)
            c_data = _at(builder, _data(context, builder, signature.args[7], c), c_at, element)
            a_rows = [
                _at(builder, a_data, builder.mul(a_row, ir.Constant(size, i)), element)
                for i in range(rows)
            ]
            c_rows = [
                _at(builder, c_data, builder.mul(c_row, ir.Constant(size, i)), element)
                for i in range(rows)
            ]
            c_places = [
                _at(builder, row, ir.Constant(size, j * width), element)
                for row in c_rows
                for j in range(vectors)
            ]
            zero = ir.Constant(ir.VectorType(element, width), [0.0] * width)
            start = builder.block
            loop = builder.append_basic_block("product.loop")
            body = builder.append_basic_block("product.body")
            done = builder.append_basic_block("product.done")
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(size)
            sums = [builder.phi(zero.type) for _ in c_places]
            k.add_incoming(ir.Constant(size, 0), start)
            for phi in sums:
                phi.add_incoming(zero, start)
            builder.cbranch(builder.icmp_signed("<", k, depth), body, done)
            builder.position_at_end(body)
            b_line = _at(builder, b_data, builder.mul(k, b_k), element)
            b_places = [
                _at(builder, b_line, ir.Constant(size, j * width), element) for j in range(vectors)
            ]
            b_values = [_load(builder, place, element, width) for place in b_places]
            a_offset = builder.mul(k, a_k)
            after = []
            for i in range(rows):
                scalar = _load(builder, _at(builder, a_rows[i], a_offset, element), element, 1)
                factor = _splat(builder, scalar, width)
                after += [
                    _fma(builder, factor, b_values[j], sums[i * vectors + j])
                    for j in range(vectors)
                ]
            k.add_incoming(builder.add(k, ir.Constant(size, 1)), builder.block)
            for phi, value in zip(sums, after, strict=True):
                phi.add_incoming(value, builder.block)
            builder.branch(loop)
            builder.position_at_end(done)
            adds = builder.icmp_signed("!=", add, ir.Constant(add.type, 0))
            with builder.if_else(adds) as (then, otherwise):
                with then:
                    for place, value in zip(c_places, sums, strict=True):
                        before = _load(builder, place, element, width)
                        _store(builder, builder.fadd(before, value), place, element)
                with otherwise:
                    for place, value in zip(c_places, sums, strict=True):
                        _store(builder, value, place, element)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(product_tile)


#: Register tiles of the matrix product, by the number of vectors in a row.
product_tiles = {vectors: _product_tile(vectors, rows) for vectors, rows in tile_rows.items()}


def _corner_sum(
    builder: Any, places: Any, weights: Any, offset: Any, element: Any, width: int
) -> Any:
    """Return the four corners' values of a vector of channels, and their weighted sum."""
    values, total = [], None
    for place, weight in zip(places, weights, strict=True):
        value = _load(builder, _at(builder, place, offset, element), element, width)
        weight = _splat(builder, weight, width)
        total = (
            builder.fmul(weight, value) if total is None else _fma(builder, weight, value, total)
        )
        values.append(value)
    return values, total


def _blend(few: int | None) -> Any:
    @no_type_check
    def blend(typing, source, i0, i1, i2, i3, w0, w1, w2, w3, out, out_at, count):
        """``out[c] = sum_j w_j source[i_j + c]`` over ``count`` channels."""
        signature = types.void(source, i0, i1, i2, i3, w0, w1, w2, w3, out, out_at, count)

        @no_type_check
        def codegen(context, builder, signature, arguments):
            source, *corners, out, out_at, count = arguments
            element = context.get_value_type(signature.args[0].dtype)
            data = _data(context, builder, signature.args[0], source)
            places = [_at(builder, data, i, element) for i in corners[:4]]
            out = _at(builder, _data(context, builder, signature.args[9], out), out_at, element)

            def body(offset, width):
                _, total = _corner_sum(builder, places, corners[4:], offset, element, width)
                _store(builder, total, _at(builder, out, offset, element), element)

            if few is None:
                _each_vector(builder, count, lanes(_bytes(element)), body)
            else:
                body(ir.Constant(count.type, 0), few)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(blend)


def _blend_backward(scatters: bool, few: int | None) -> Any:
    @no_type_check
    def blend_backward(
        typing, source, i0, i1, i2, i3, w0, w1, w2, w3, column, column_at, products, products_at,
        target, target_at, count,
    ):  # fmt: skip
        """Run the blend and its derivative in one pass over the channels.

        ``column`` comes in as the gradient of the blend and goes out as the blend. To ``products``
        go the four numbers ``sum_c gradient[c] source[i_j + c]``, one for each corner; the
        gradients ``w_j gradient[c]`` are added to ``target`` (if it scatters at all), corner after
        corner, since corners may coincide.
        """
        signature = types.void(
            source, i0, i1, i2, i3, w0, w1, w2, w3, column, column_at, products, products_at,
            target, target_at, count,
        )  # fmt: skip

        @no_type_check
        def codegen(context, builder, signature, arguments):
            source, *corners, column, column_at, out, out_at, target, target_at, count = arguments
            element = context.get_value_type(signature.args[0].dtype)
            data = _data(context, builder, signature.args[0], source)
            places = [_at(builder, data, i, element) for i in corners[:4]]
            target = _at(
                builder, _data(context, builder, signature.args[13], target), target_at, element
            )
            out = _at(builder, _data(context, builder, signature.args[11], out), out_at, element)
            targets = [_at(builder, target, i, element) for i in corners[:4]]
            column = _at(
                builder, _data(context, builder, signature.args[9], column), column_at, element
            )

            def body(offset, width):
                here = _at(builder, column, offset, element)
                gradient = _load(builder, here, element, width)
                values, total = _corner_sum(builder, places, corners[4:], offset, element, width)
                _store(builder, total, here, element)
                if scatters:
                    for j in range(4):
                        there = _at(builder, targets[j], offset, element)
                        weight = _splat(builder, corners[4 + j], width)
                        value = _load(builder, there, element, width)
                        _store(builder, _fma(builder, weight, gradient, value), there, element)
                return gradient, values

            if few is not None:
                gradient, values = body(ir.Constant(count.type, 0), few)
                products = [builder.fmul(gradient, value) for value in values]
            else:
                widest = lanes(_bytes(element))
                zero = ir.Constant(ir.VectorType(element, widest), [0.0] * widest)
                sums = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]

                def adding(offset, width):
                    gradient, values = body(offset, width)
                    for place, value in zip(sums, values, strict=True):
                        before = _load(builder, place, element, width)
                        _store(builder, _fma(builder, gradient, value, before), place, element)

                _each_vector(builder, count, widest, adding)
                products = [_load(builder, place, element, widest) for place in sums]
            _store(builder, _sums(builder, products), out, element)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(blend_backward)


#: Numbers of channels that make one vector: their sampling has no loop.
FEW = (4, 8)

blend = _blend(None)
blend_backward = _blend_backward(False, None)
blend_scatter = _blend_backward(True, None)
blend_4, blend_8 = (_blend(few) for few in FEW)
blend_backward_4, blend_backward_8 = (_blend_backward(False, few) for few in FEW)
blend_scatter_4, blend_scatter_8 = (_blend_backward(True, few) for few in FEW)
