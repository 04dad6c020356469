"""Vector instructions for the compiled CPU kernels of the convolutions.

These are the tile of a matrix product, held in registers, and the sampling of all channels of a
pixel.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from finslerconv.ops.backends.numba import _vectors as vec
from finslerconv.ops.backends.numba._vectors import (
    FAR,
    PLACED,
    VECTOR_BYTES,
    Tile,
    constant,
    lanes,
)

#: Rows of the register tile for each number of vectors in a row, widest first: enough independent
#: sums to hide the latency of the multiply-adds, and no more registers than the machine has (16
#: with AVX2, 32 with AVX-512 and on Arm).
tile_rows = {2: 6, 1: 12} if VECTOR_BYTES == 32 else {4: 6, 2: 12, 1: 12}

#: Rows of a register tile for what is left below the others.
LAST_ROWS = 2

#: Rows of every register tile divide this.
TILE_ROWS = 12


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
            width = lanes(vec.size_of(element))
            size = depth.type
            a_data = vec.at(
                builder, vec.data(context, builder, signature.args[0], a), a_at, element
            )
            b_data = vec.at(
                builder, vec.data(context, builder, signature.args[4], b), b_at, element
            )
            c_data = vec.at(
                builder, vec.data(context, builder, signature.args[7], c), c_at, element
            )
            a_rows = [
                vec.at(builder, a_data, builder.mul(a_row, ir.Constant(size, i)), element)
                for i in range(rows)
            ]
            c_rows = [
                vec.at(builder, c_data, builder.mul(c_row, ir.Constant(size, i)), element)
                for i in range(rows)
            ]
            c_places = [
                vec.at(builder, row, ir.Constant(size, j * width), element)
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
            b_line = vec.at(builder, b_data, builder.mul(k, b_k), element)
            b_places = [
                vec.at(builder, b_line, ir.Constant(size, j * width), element)
                for j in range(vectors)
            ]
            b_values = [vec.load(builder, place, element, width) for place in b_places]
            a_offset = builder.mul(k, a_k)
            after = []
            for i in range(rows):
                scalar = vec.load(
                    builder, vec.at(builder, a_rows[i], a_offset, element), element, 1
                )
                factor = vec.splat(builder, scalar, width)
                after += [
                    vec.fma(builder, factor, b_values[j], sums[i * vectors + j])
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
                        before = vec.load(builder, place, element, width)
                        vec.store(builder, builder.fadd(before, value), place, element)
                with otherwise:
                    for place, value in zip(c_places, sums, strict=True):
                        vec.store(builder, value, place, element)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(product_tile)


#: Register tiles of the matrix product, by the number of vectors in a row; the last ones.
product_tiles = {vectors: _product_tile(vectors, rows) for vectors, rows in tile_rows.items()}
last_tiles = {vectors: _product_tile(vectors, LAST_ROWS) for vectors in tile_rows}


@intrinsic
@no_type_check
def transpose_block(
    typing, source, at, row, out, out_at, out_row, columns, shift, shift_at, shift_row
):
    """``out[j, i] = source[i, j] + shift[j]`` for as many rows as a vector is wide.

    Columns beyond ``columns`` are read, if a vector is wider, but not written. Nothing is added if
    ``shift`` is None.
    """
    signature = types.void(
        source, at, row, out, out_at, out_row, columns, shift, shift_at, shift_row
    )

    @no_type_check
    def codegen(context, builder, signature, arguments):
        source, at, row, out, out_at, out_row, columns, shift, shift_at, shift_row = arguments
        types_ = signature.args
        element = context.get_value_type(types_[0].dtype)
        width = lanes(vec.size_of(element))

        def line(data, at, row, i):
            at = builder.add(at, builder.mul(row, ir.Constant(row.type, i)))
            return vec.at(builder, data, at, element)

        data = vec.data(context, builder, types_[0], source)
        rows = [vec.load(builder, line(data, at, row, i), element, width) for i in range(width)]
        step = 1
        while step < width:
            # In every square of 2 x 2 pieces of this size, exchange the two off the diagonal.
            low = [l if l & step == 0 else width + l - step for l in range(width)]
            high = [l + step if l & step == 0 else width + l for l in range(width)]
            for i in range(width):
                if i & step == 0:
                    a, b = rows[i], rows[i + step]
                    rows[i], rows[i + step] = (
                        builder.shuffle_vector(
                            a, b, ir.Constant(ir.VectorType(ir.IntType(32), width), places)
                        )
                        for places in (low, high)
                    )
            step *= 2
        data = vec.data(context, builder, types_[3], out)
        for j, value in enumerate(rows):
            here = builder.icmp_signed(">", columns, ir.Constant(columns.type, j))
            with builder.if_then(here, likely=True):
                if not isinstance(types_[7], types.NoneType):
                    added = vec.data(context, builder, types_[7], shift)
                    added = vec.load(builder, line(added, shift_at, shift_row, j), element, 1)
                    value = builder.fadd(value, vec.splat(builder, added, width))
                vec.store(builder, value, line(data, out_at, out_row, j), element)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
@no_type_check
def add_products(typing, a, a_at, b, b_at, out, out_at, count):
    """``out[i] += a[i] * b[i]`` over ``count`` numbers."""
    signature = types.void(a, a_at, b, b_at, out, out_at, count)

    @no_type_check
    def codegen(context, builder, signature, arguments):
        element = context.get_value_type(signature.args[0].dtype)
        a, b, out = (
            vec.at(
                builder, vec.data(context, builder, signature.args[i], arguments[i]),
                arguments[i + 1], element,
            )
            for i in (0, 2, 4)
        )  # fmt: skip

        def body(offset, width):
            x, y, before = (
                vec.load(builder, vec.at(builder, place, offset, element), element, width)
                for place in (a, b, out)
            )
            after = vec.fma(builder, x, y, before)
            vec.store(builder, after, vec.at(builder, out, offset, element), element)

        vec.each_vector(builder, arguments[6], lanes(vec.size_of(element)), body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
@no_type_check
def place(
    typing, y, x, height, width, row_size, pixel_size, inside, period_y, period_x, reflects, row,
    count, corners, corners_at, weights, weights_at, shares, shares_at,
):  # fmt: skip
    """Find the four pixels around each of ``count`` positions, and their shares of the sample.

    The arrays have lines of ``row`` numbers, a multiple of :data:`PLACED`, of which more than
    ``count`` may be written: ``corners`` four, where in an image of ``row_size`` numbers a row and
    ``pixel_size`` a pixel each pixel begins, ``weights`` four, the products of shares, ``shares``
    eight, four for each axis: the shares, and whether each pixel counts (1 or 0), which is the
    share's derivative up to sign; it may be None. Pixels beyond the image do not count if
    ``inside``. Where the image is continued with a period, this is not 0; ``reflects`` tells
    whether every other half comes in reverse.
    """
    signature = types.void(
        y, x, height, width, row_size, pixel_size, inside, period_y, period_x, reflects, row, count,
        corners, corners_at, weights, weights_at, shares, shares_at,
    )  # fmt: skip

    @no_type_check
    def codegen(context, builder, signature, arguments):
        (y, x, height, width, row_size, pixel_size, inside, period_y, period_x, reflects, row,
         count, corners, corners_at, weights, weights_at, shares,
         shares_at) = arguments  # fmt: skip
        types_, index = signature.args, count.type
        element = context.get_value_type(types_[0].dtype)
        y, x, corners, weights = (
            vec.data(context, builder, types_[i], arguments[i]) for i in (0, 1, 12, 14)
        )
        int32, double = ir.IntType(32), ir.DoubleType()
        corners = vec.at(builder, corners, corners_at, ir.IntType(64))
        weights = vec.at(builder, weights, weights_at, element)
        keeps_shares = not isinstance(types_[16], types.NoneType)
        if keeps_shares:
            shares = vec.data(context, builder, types_[16], shares)
            shares = vec.at(builder, shares, shares_at, element)
        long = ir.VectorType(ir.IntType(64), PLACED)
        wide = ir.VectorType(double, PLACED)
        one, zero, none = constant(1.0, element), constant(0.0, element), constant(0, int32)
        far, step = constant(FAR, element), constant(1, int32)

        def yes(number):
            return builder.icmp_signed("!=", number, ir.Constant(number.type, 0))

        def number32(number):
            return vec.splat(builder, builder.trunc(number, int32), PLACED)

        everywhere = vec.splat(builder, builder.not_(yes(inside)), PLACED)
        reflects = yes(reflects)
        row_size, pixel_size = (
            builder.sext(number32(size), long) for size in (row_size, pixel_size)
        )
        start, stride = ir.Constant(index, 0), ir.Constant(index, PLACED)
        with cgutils.for_range_slice(builder, start, count, stride, index) as (sample, _):
            tile = Tile(builder, row, sample)
            positions = [tile.load(array, element) for array in (y, x)]
            known = builder.and_(
                *(
                    builder.fcmp_ordered("<", vec.call(builder, "fabs", position), far)
                    for position in positions
                )
            )

            def least(a, b):
                return builder.select(builder.icmp_signed("<", a, b), a, b)

            def continued(pixel, size, period):
                """Return the pixel of the image that stands at a place."""
                found = cgutils.alloca_once_value(builder, pixel)
                with builder.if_then(yes(period)):
                    # Doubles hold every int32, and their quotients are exact enough to be floored.
                    length = vec.splat(builder, builder.sitofp(period, double), PLACED)
                    where = builder.sitofp(pixel, wide)
                    turns = vec.call(builder, "floor", builder.fdiv(where, length))
                    here = builder.fsub(where, builder.fmul(turns, length))
                    here = builder.fptosi(here, none.type)
                    mirrored = least(here, builder.sub(number32(period), here))
                    builder.store(builder.select(reflects, mirrored, here), found)
                pixel = builder.load(found)
                pixel = builder.select(builder.icmp_signed("<", pixel, none), none, pixel)
                return least(pixel, builder.sub(size, step))

            def axis(position, size, period, line):
                size = number32(size)
                # Two pixels before the image: both pixels of an unknown position are outside.
                position = builder.select(known, position, constant(-2.0, element))
                floor = vec.call(builder, "floor", position)
                share = builder.fsub(position, floor)
                low = builder.fptosi(floor, none.type)
                pixels, parts = [], []
                both = ((low, builder.fsub(one, share)), (builder.add(low, step), share))
                for i, (pixel, part) in enumerate(both):
                    # As an unsigned number a negative one is too large.
                    counts = builder.icmp_unsigned("<", pixel, size)
                    counts = builder.and_(known, builder.or_(counts, everywhere))
                    parts.append(builder.select(counts, part, zero))
                    if keeps_shares:
                        tile.store(parts[i], shares, line + i)
                        tile.store(builder.select(counts, one, zero), shares, line + 2 + i)
                    pixel = continued(pixel, size, period)
                    pixels.append(builder.sext(pixel, long))
                return pixels, parts

            down, near_y = axis(positions[0], height, period_y, 0)
            across, near_x = axis(positions[1], width, period_x, 4)
            down = [builder.mul(pixel, row_size) for pixel in down]
            across = [builder.mul(pixel, pixel_size) for pixel in across]
            for i in range(4):
                tile.store(builder.add(down[i // 2], across[i % 2]), corners, i)
                tile.store(builder.fmul(near_y[i // 2], near_x[i % 2]), weights, i)
        return context.get_dummy_value()

    return signature, codegen


def _corner_sum(
    builder: Any, places: Any, weights: Any, offset: Any, element: Any, width: int
) -> Any:
    """Return the four corners' values of a vector of channels, and their weighted sum."""
    values, total = [], None
    for place, weight in zip(places, weights, strict=True):
        value = vec.load(builder, vec.at(builder, place, offset, element), element, width)
        weight = vec.splat(builder, weight, width)
        total = (
            builder.fmul(weight, value) if total is None else vec.fma(builder, weight, value, total)
        )
        values.append(value)
    return values, total


class _Written:
    """Writes samples to ``out``; where there are ``factors``, adds their products with them."""

    def __init__(self, context: Any, builder: Any, kinds: Any, arguments: Any) -> None:
        factors, factors_at, out, out_at = arguments
        self._builder = builder
        self._element = element = context.get_value_type(kinds[2].dtype)
        self._out = vec.at(builder, vec.data(context, builder, kinds[2], out), out_at, element)
        self._factors = None
        if not isinstance(kinds[0], types.NoneType):
            data = vec.data(context, builder, kinds[0], factors)
            self._factors = vec.at(builder, data, factors_at, element)

    def write(self, value: Any, offset: Any, width: int) -> None:
        builder, element = self._builder, self._element
        there = vec.at(builder, self._out, offset, element)
        if self._factors is not None:
            factor = vec.at(builder, self._factors, offset, element)
            factor = vec.load(builder, factor, element, width)
            value = vec.fma(builder, factor, value, vec.load(builder, there, element, width))
        vec.store(builder, value, there, element)


def _blend(few: int | None) -> Any:
    @no_type_check
    def blend(
        typing, source, i0, i1, i2, i3, w0, w1, w2, w3, factors, factors_at, out, out_at, count
    ):
        """``out[c] = sum_j w_j source[i_j + c]`` over ``count`` channels.

        With ``factors``, if not None: ``out[c] += factors[c] sum_j ...``.
        """
        signature = types.void(
            source, i0, i1, i2, i3, w0, w1, w2, w3, factors, factors_at, out, out_at, count
        )

        @no_type_check
        def codegen(context, builder, signature, arguments):
            source, *corners = arguments[:9]
            count = arguments[13]
            element = context.get_value_type(signature.args[0].dtype)
            data = vec.data(context, builder, signature.args[0], source)
            places = [vec.at(builder, data, i, element) for i in corners[:4]]
            out = _Written(context, builder, signature.args[9:13], arguments[9:13])

            def body(offset, width):
                _, total = _corner_sum(builder, places, corners[4:], offset, element, width)
                out.write(total, offset, width)

            if few is None:
                vec.each_vector(builder, count, lanes(vec.size_of(element)), body)
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
            data = vec.data(context, builder, signature.args[0], source)
            places = [vec.at(builder, data, i, element) for i in corners[:4]]
            target = vec.at(
                builder, vec.data(context, builder, signature.args[13], target), target_at, element
            )
            out = vec.at(
                builder, vec.data(context, builder, signature.args[11], out), out_at, element
            )
            targets = [vec.at(builder, target, i, element) for i in corners[:4]]
            column = vec.at(
                builder, vec.data(context, builder, signature.args[9], column), column_at, element
            )

            def body(offset, width):
                here = vec.at(builder, column, offset, element)
                gradient = vec.load(builder, here, element, width)
                values, total = _corner_sum(builder, places, corners[4:], offset, element, width)
                vec.store(builder, total, here, element)
                if scatters:
                    for j in range(4):
                        there = vec.at(builder, targets[j], offset, element)
                        weight = vec.splat(builder, corners[4 + j], width)
                        value = vec.load(builder, there, element, width)
                        vec.store(
                            builder, vec.fma(builder, weight, gradient, value), there, element
                        )
                return gradient, values

            if few is not None:
                gradient, values = body(ir.Constant(count.type, 0), few)
                products = [builder.fmul(gradient, value) for value in values]
            else:
                widest = lanes(vec.size_of(element))
                zero = ir.Constant(ir.VectorType(element, widest), [0.0] * widest)
                sums = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]

                def adding(offset, width):
                    gradient, values = body(offset, width)
                    for place, value in zip(sums, values, strict=True):
                        before = vec.load(builder, place, element, width)
                        vec.store(
                            builder, vec.fma(builder, gradient, value, before), place, element
                        )

                vec.each_vector(builder, count, widest, adding)
                products = [vec.load(builder, place, element, widest) for place in sums]
            vec.store(builder, vec.sum_four(builder, products, element), out, element)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(blend_backward)


#: Numbers of channels whose sampling has no loop.
FEW = (1, 4, 8)

blend = _blend(None)
blend_backward = _blend_backward(False, None)
blend_scatter = _blend_backward(True, None)
blend_1, blend_4, blend_8 = (_blend(few) for few in FEW)
blend_backward_1, blend_backward_4, blend_backward_8 = (_blend_backward(False, few) for few in FEW)
blend_scatter_1, blend_scatter_4, blend_scatter_8 = (_blend_backward(True, few) for few in FEW)


# The same for samples of eight corners. Their places and weights are in arrays, the first of each
# at ``at`` and the others ``line`` apart.


def _eight(builder: Any, array: Any, at: Any, line: Any, element: Any) -> list[Any]:
    """Load the number of each corner."""
    index = [builder.add(at, builder.mul(line, ir.Constant(at.type, j))) for j in range(8)]
    return [builder.load(vec.at(builder, array, i, element)) for i in index]


@intrinsic
@no_type_check
def blend_corners(
    typing, source, shift, places, weights, at, line, factors, factors_at, out, out_at, count
):
    """``out[c] = sum_j weights[j] source[shift + places[j] + c]`` over ``count`` channels.

    With ``factors``, if not None: ``out[c] += factors[c] sum_j ...``.
    """
    signature = types.void(
        source, shift, places, weights, at, line, factors, factors_at, out, out_at, count
    )

    @no_type_check
    def codegen(context, builder, signature, arguments):
        source, shift, places, weights, at, line = arguments[:6]
        count = arguments[10]
        types_, element = signature.args, context.get_value_type(signature.args[0].dtype)
        data = vec.at(builder, vec.data(context, builder, types_[0], source), shift, element)
        places = vec.data(context, builder, types_[2], places)
        weights = vec.data(context, builder, types_[3], weights)
        places = _eight(builder, places, at, line, ir.IntType(64))
        places = [vec.at(builder, data, i, element) for i in places]
        weights = _eight(builder, weights, at, line, element)
        out = _Written(context, builder, types_[6:10], arguments[6:10])

        def body(offset, width):
            _, total = _corner_sum(builder, places, weights, offset, element, width)
            out.write(total, offset, width)

        vec.each_vector(builder, count, lanes(vec.size_of(element)), body)
        return context.get_dummy_value()

    return signature, codegen


def _blend_corners_backward(scatters: bool) -> Any:
    @no_type_check
    def blend_corners_backward(
        typing, source, shift, places, weights, at, line, column, column_at, products, products_at,
        target, target_shift, count,
    ):  # fmt: skip
        """Run :func:`blend_corners` and its derivative in one pass over the channels.

        As :func:`blend_backward`; ``target`` has the places of ``source``, after ``target_shift``.
        """
        signature = types.void(
            source, shift, places, weights, at, line, column, column_at, products, products_at,
            target, target_shift, count,
        )  # fmt: skip

        @no_type_check
        def codegen(context, builder, signature, arguments):
            (source, shift, places, weights, at, line, column, column_at, products, products_at,
             target, target_shift, count) = arguments  # fmt: skip
            types_, element = signature.args, context.get_value_type(signature.args[0].dtype)
            data = vec.at(builder, vec.data(context, builder, types_[0], source), shift, element)
            places = vec.data(context, builder, types_[2], places)
            weights = vec.data(context, builder, types_[3], weights)
            corners = _eight(builder, places, at, line, ir.IntType(64))
            places = [vec.at(builder, data, i, element) for i in corners]
            weights = _eight(builder, weights, at, line, element)
            column = vec.at(
                builder, vec.data(context, builder, types_[6], column), column_at, element
            )
            target = vec.at(
                builder, vec.data(context, builder, types_[10], target), target_shift, element
            )
            targets = [vec.at(builder, target, i, element) for i in corners]
            widest = lanes(vec.size_of(element))
            zero = ir.Constant(ir.VectorType(element, widest), [0.0] * widest)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in corners]
            for total in sums:
                builder.store(zero, total)

            def body(offset, width):
                here = vec.at(builder, column, offset, element)
                gradient = vec.load(builder, here, element, width)
                values, total = _corner_sum(builder, places, weights, offset, element, width)
                vec.store(builder, total, here, element)
                for place, value in zip(sums, values, strict=True):
                    before = vec.load(builder, place, element, width)
                    vec.store(builder, vec.fma(builder, gradient, value, before), place, element)
                if scatters:
                    for place, weight in zip(targets, weights, strict=True):
                        there = vec.at(builder, place, offset, element)
                        value = vec.load(builder, there, element, width)
                        weight = vec.splat(builder, weight, width)
                        vec.store(
                            builder, vec.fma(builder, weight, gradient, value), there, element
                        )

            vec.each_vector(builder, count, widest, body)
            vectors = [vec.load(builder, place, element, widest) for place in sums]
            products = vec.data(context, builder, types_[8], products)
            for j in (0, 4):
                four = vec.sum_four(builder, vectors[j : j + 4], element)
                place = builder.add(products_at, ir.Constant(products_at.type, j))
                vec.store(builder, four, vec.at(builder, products, place, element), element)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(blend_corners_backward)


blend_corners_backward = _blend_corners_backward(scatters=False)
blend_corners_scatter = _blend_corners_backward(scatters=True)
