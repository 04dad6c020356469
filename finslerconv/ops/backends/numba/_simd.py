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


def _sum_lanes(builder: Any, vector: Any) -> Any:
    """Add up the lanes in halves, the same tree on every machine of this width."""
    width = vector.type.count
    undefined = ir.Constant(vector.type, ir.Undefined)
    while width > 1:
        width //= 2
        kind = ir.VectorType(ir.IntType(32), width)
        low = ir.Constant(kind, list(range(width)))
        high = ir.Constant(kind, list(range(width, 2 * width)))
        vector = builder.fadd(
            builder.shuffle_vector(vector, undefined, low),
            builder.shuffle_vector(vector, undefined, high),
        )
        undefined = ir.Constant(vector.type, ir.Undefined)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _sum_four(builder: Any, vectors: list[Any], element: Any) -> Any:
    """Return the sums of the lanes of four vectors, as a vector of four."""
    four = ir.VectorType(element, 4)
    width = vectors[0].type.count if isinstance(vectors[0].type, ir.VectorType) else 1
    if width < 4:
        total = ir.Constant(four, ir.Undefined)
        for i, vector in enumerate(vectors):
            single = vector if width == 1 else _sum_lanes(builder, vector)
            total = builder.insert_element(total, single, ir.Constant(ir.IntType(32), i))
        return total

    def merged(a: Any, b: Any, low: tuple[int, ...], high: tuple[int, ...]) -> Any:
        """Add two shuffles of (a, b), which go the same way in every four lanes."""

        def shuffle(places: tuple[int, ...]) -> Any:
            indices = [
                lane + (place if place < 4 else width + place - 4)
                for lane in range(0, width, 4)
                for place in places
            ]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), width), indices)
            return builder.shuffle_vector(a, b, mask)

        return builder.fadd(shuffle(low), shuffle(high))

    a, b, c, d = vectors
    ab = merged(a, b, (0, 4, 1, 5), (2, 6, 3, 7))
    cd = merged(c, d, (0, 4, 1, 5), (2, 6, 3, 7))
    total = merged(ab, cd, (0, 1, 4, 5), (2, 3, 6, 7))
    while width > 4:
        width //= 2
        kind = ir.VectorType(ir.IntType(32), width)
        undefined = ir.Constant(total.type, ir.Undefined)
        total = builder.fadd(
            builder.shuffle_vector(total, undefined, ir.Constant(kind, list(range(width)))),
            builder.shuffle_vector(
                total, undefined, ir.Constant(kind, list(range(width, 2 * width)))
            ),
        )
    return total


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
            _store(builder, _sum_four(builder, products, element), out, element)
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


# The intrinsics of the aggregation. A tile of samples is placed: ``lines`` (int32) gets the pixels
# at which the upper and the lower line of each begin, and its left and right columns, ``shares``
# the shares of its four corners. Then the samples of a query, ``first`` to ``first + samples``, are
# combined; ``source`` has ``stride`` numbers from pixel to pixel. All arrays have rows of ``row``.

# Coordinates beyond this are outside every image; integers and floats hold it exactly.
_FAR = 2.0**30

#: How many samples are placed at once.
PLACED = 16


@intrinsic
@no_type_check
def place(typing, samples, level_of, row, count, lines, shares, axes):
    """Place ``count`` samples, a multiple of :data:`PLACED`.

    ``samples`` has x, y and a factor for each, ``level_of`` the rows, columns and first pixel of
    its level. ``axes`` gets eight rows, four for x and then for y: the shares along the axis of the
    near and the far pixel, and whether they are in the image (1 or 0).
    """
    signature = types.void(samples, level_of, row, count, lines, shares, axes)

    @no_type_check
    def codegen(context, builder, signature, arguments):
        samples, level_of, row, count, lines, shares, axes = arguments
        types_, index = signature.args, count.type
        element = context.get_value_type(types_[0].dtype)
        whole = ir.IntType(32)
        samples, level_of, lines, shares, axes = (
            _data(context, builder, types_[i], array)
            for i, array in ((0, samples), (1, level_of), (4, lines), (5, shares), (6, axes))
        )

        def splat(number, kind):
            return ir.Constant(ir.VectorType(kind, PLACED), [number] * PLACED)

        def unary(name, vector):
            kind = vector.type
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(kind, [kind]),
                f"llvm.{name}.v{PLACED}f{8 * _bytes(element)}",
            )
            return builder.call(function, [vector])

        one, zero, none = splat(1.0, element), splat(0.0, element), splat(0, whole)
        step = ir.Constant(index, PLACED)
        start = ir.Constant(index, 0)
        with cgutils.for_range_slice(builder, start, count, step, index) as (at, _):

            def here(pointer, line, kind):
                place = builder.add(builder.mul(row, ir.Constant(index, line)), at)
                return _at(builder, pointer, place, kind)

            def load(pointer, line, kind=element):
                vector = ir.VectorType(kind, PLACED)
                pointer = builder.bitcast(here(pointer, line, kind), vector.as_pointer())
                return builder.load(pointer, align=4 if kind == whole else _bytes(element))

            def store(value, pointer, line):
                kind = value.type.element
                pointer = builder.bitcast(here(pointer, line, kind), value.type.as_pointer())
                builder.store(value, pointer, align=4 if kind == whole else _bytes(element))

            x, y, factor = (load(samples, line) for line in range(3))
            rows, columns, first = (load(level_of, line, whole) for line in range(3))
            far = splat(_FAR, element)
            known = builder.and_(
                builder.fcmp_ordered("<", unary("fabs", x), far),
                builder.fcmp_ordered("<", unary("fabs", y), far),
            )

            def axis(position, size, line):
                # Two pixels before the image: the corners of an unknown position are outside.
                position = builder.select(known, position, splat(-2.0, element))
                floor = unary("floor", position)
                share = builder.fsub(position, floor)
                low = builder.fptosi(floor, ir.VectorType(whole, PLACED))
                high = builder.add(low, splat(1, whole))
                pixels, parts = [], []
                for i, (pixel, part) in enumerate(((low, builder.fsub(one, share)), (high, share))):
                    # As an unsigned number a negative one is too large.
                    inside = builder.icmp_unsigned("<", pixel, size)
                    pixels.append(builder.select(inside, pixel, none))
                    parts.append(builder.select(inside, part, zero))
                    store(parts[i], axes, line + i)
                    store(builder.select(inside, one, zero), axes, line + 2 + i)
                return pixels, parts

            (left, right), (near_x, far_x) = axis(x, columns, 0)
            (top, bottom), (near_y, far_y) = axis(y, rows, 4)
            for line, pixel in enumerate((top, bottom)):
                store(builder.add(first, builder.mul(pixel, columns)), lines, line)
            store(left, lines, 2)
            store(right, lines, 3)
            upper, lower = builder.fmul(factor, near_y), builder.fmul(factor, far_y)
            corners = ((upper, near_x), (upper, far_x), (lower, near_x), (lower, far_x))
            for line, (down, across) in enumerate(corners):
                store(builder.fmul(down, across), shares, line)
        return context.get_dummy_value()

    return signature, codegen


def _corners(
    builder: Any, lines: Any, shares: Any, row: Any, sample: Any, stride: Any, element: Any
) -> list[tuple[Any, Any]]:
    """Return the offset of each corner of a sample, and its share."""
    places = [builder.add(builder.mul(row, ir.Constant(row.type, i)), sample) for i in range(4)]
    top, bottom, left, right = (
        builder.sext(builder.load(_at(builder, lines, at, ir.IntType(32)), align=4), row.type)
        for at in places
    )
    corners = ((top, left), (top, right), (bottom, left), (bottom, right))
    return [
        (
            builder.mul(builder.add(line, column), stride),
            _load(builder, _at(builder, shares, at, element), element, 1),
        )
        for (line, column), at in zip(corners, places, strict=True)
    ]


@intrinsic
@no_type_check
def combine(
    typing, source, source_at, stride, lines, shares, row, first, samples, out, out_at, count
):
    """``out[c] = sum_sk share_sk source[pixel_sk stride + c]`` over ``count`` channels."""
    signature = types.void(
        source, source_at, stride, lines, shares, row, first, samples, out, out_at, count
    )

    @no_type_check
    def codegen(context, builder, signature, arguments):
        source, source_at, stride, lines, shares, row, first, samples, out, out_at, count = (
            arguments
        )
        types_ = signature.args
        element = context.get_value_type(types_[0].dtype)
        data = _at(builder, _data(context, builder, types_[0], source), source_at, element)
        lines = _data(context, builder, types_[3], lines)
        shares = _data(context, builder, types_[4], shares)
        out = _at(builder, _data(context, builder, types_[8], out), out_at, element)
        last = builder.add(first, samples)

        def body(offset, width):
            kind = element if width == 1 else ir.VectorType(element, width)
            zero = ir.Constant(kind, 0.0 if width == 1 else [0.0] * width)
            # A sum for each corner, since one would wait for itself.
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]
            for total in sums:
                builder.store(zero, total)
            one = ir.Constant(first.type, 1)
            with cgutils.for_range_slice(builder, first, last, one, first.type) as (sample, _):
                found = _corners(builder, lines, shares, row, sample, stride, element)
                for total, (place, share) in zip(sums, found, strict=True):
                    here = _at(builder, data, builder.add(place, offset), element)
                    value = _load(builder, here, element, width)
                    before = builder.load(total)
                    builder.store(
                        _fma(builder, _splat(builder, share, width), value, before), total
                    )
            a, b, c, d = (builder.load(total) for total in sums)
            total = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
            _store(builder, total, _at(builder, out, offset, element), element)

        # Two vectors at once share the loads of lines and shares.
        _each_vector(builder, count, 2 * lanes(_bytes(element)), body)
        return context.get_dummy_value()

    return signature, codegen


def _combine_backward(scatters: bool) -> Any:
    @no_type_check
    def combine_backward(
        typing, source, source_at, stride, lines, shares, row, first, samples, slope, slope_at,
        count, products, target, target_at, target_stride,
    ):  # fmt: skip
        """Run the derivative of :func:`combine`, ``slope`` being the gradient of its result.

        The products ``sum_c slope[c] source[pixel_sk stride + c]`` are added to ``products``, four
        for each sample; the gradients ``share_sk slope[c]`` are added to ``target`` (if it scatters
        at all), corner after corner, since corners may coincide.
        """
        signature = types.void(
            source, source_at, stride, lines, shares, row, first, samples, slope, slope_at, count,
            products, target, target_at, target_stride,
        )  # fmt: skip

        @no_type_check
        def codegen(context, builder, signature, arguments):
            (source, source_at, stride, lines, shares, row, first, samples, slope, slope_at,
             count, products, target, target_at, target_stride) = arguments  # fmt: skip
            types_ = signature.args
            element = context.get_value_type(types_[0].dtype)
            data = _at(builder, _data(context, builder, types_[0], source), source_at, element)
            lines = _data(context, builder, types_[3], lines)
            shares = _data(context, builder, types_[4], shares)
            slope = _at(builder, _data(context, builder, types_[8], slope), slope_at, element)
            products = _data(context, builder, types_[11], products)
            target = _at(builder, _data(context, builder, types_[12], target), target_at, element)
            last = builder.add(first, samples)

            def body(offset, width):
                gradient = _load(builder, _at(builder, slope, offset, element), element, width)
                one = ir.Constant(first.type, 1)
                with cgutils.for_range_slice(builder, first, last, one, first.type) as (sample, _):
                    found = _corners(builder, lines, shares, row, sample, stride, element)
                    along = []
                    for place, _share in found:
                        here = _at(builder, data, builder.add(place, offset), element)
                        along.append(builder.fmul(gradient, _load(builder, here, element, width)))
                    four = _at(
                        builder, products, builder.mul(sample, ir.Constant(first.type, 4)), element
                    )
                    before = _load(builder, four, element, 4)
                    summed = _sum_four(builder, along, element)
                    _store(builder, builder.fadd(before, summed), four, element)
                    if scatters:
                        there = _corners(
                            builder, lines, shares, row, sample, target_stride, element
                        )
                        for place, share in there:
                            at = _at(builder, target, builder.add(place, offset), element)
                            value = _load(builder, at, element, width)
                            share = _splat(builder, share, width)
                            _store(builder, _fma(builder, share, gradient, value), at, element)

            _each_vector(builder, count, lanes(_bytes(element)), body)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(combine_backward)


combine_backward = _combine_backward(scatters=False)
combine_scatter = _combine_backward(scatters=True)
