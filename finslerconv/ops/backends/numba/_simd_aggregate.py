"""Vector instructions for the compiled CPU kernels of the aggregation.

A tile of samples is placed, :data:`PLACED` at once: each gets the offsets of its four corners
(int64, in numbers of the value; top left, top right, bottom left, bottom right) and the shares of
them. Then the samples of a query, ``first`` to ``first + samples``, are combined, all channels in
registers. Arrays of a tile have rows of ``row`` numbers, one for each sample.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from finslerconv.ops.backends.numba import _vectors as vec
from finslerconv.ops.backends.numba._vectors import FAR, PLACED, Tile, constant

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


@intrinsic
@no_type_check
def place(
    typing, locations, weights, frames, level_of, left, top, stride, row, count, corners, shares,
    axes,
):  # fmt: skip
    """Place ``count`` samples, a multiple of :data:`PLACED`.

    A sample is at ``scale * location + origin + (left, top)``; ``locations`` has pairs (x, y), the
    rows of ``frames`` have the scales and the origins of x and y, ``level_of`` rows, columns and
    first pixel of the sample's level. The value has ``stride`` numbers from pixel to pixel.
    ``axes`` gets eight rows, four for x and then for y: the shares along the axis of the near and
    the far pixel, and whether they are in the image (1 or 0).
    """
    signature = types.void(
        locations, weights, frames, level_of, left, top, stride, row, count, corners, shares, axes
    )

    @no_type_check
    def codegen(context, builder, signature, arguments):
        (locations, weights, frames, level_of, left, top, stride, row, count, corners, shares,
         axes) = arguments  # fmt: skip
        types_, index = signature.args, count.type
        element = context.get_value_type(types_[0].dtype)
        locations, weights, frames, level_of, corners, shares, axes = (
            vec.data(context, builder, types_[i], arguments[i]) for i in (0, 1, 2, 3, 9, 10, 11)
        )
        long = ir.VectorType(_INT64, PLACED)
        one, zero, none = constant(1.0, element), constant(0.0, element), constant(0, _INT32)
        far = constant(FAR, element)
        left, top = (vec.splat(builder, shift, PLACED) for shift in (left, top))
        stride = vec.splat(builder, stride, PLACED)

        def unary(name, vector):
            return vec.call(builder, name, vector)

        step, start = ir.Constant(index, PLACED), ir.Constant(index, 0)
        with cgutils.for_range_slice(builder, start, count, step, index) as (sample, _):
            tile = Tile(builder, row, sample)
            x, y = tile.load_several(locations, element, 2)
            scale_x, scale_y, origin_x, origin_y = (
                tile.load(frames, element, line) for line in range(4)
            )
            x = vec.fma(builder, scale_x, x, builder.fadd(origin_x, left))
            y = vec.fma(builder, scale_y, y, builder.fadd(origin_y, top))
            rows, columns, first = (tile.load(level_of, _INT32, line) for line in range(3))
            known = builder.and_(
                builder.fcmp_ordered("<", unary("fabs", x), far),
                builder.fcmp_ordered("<", unary("fabs", y), far),
            )

            def axis(position, size, line):
                # Two pixels before the image: the corners of an unknown position are outside.
                position = builder.select(known, position, constant(-2.0, element))
                floor = unary("floor", position)
                share = builder.fsub(position, floor)
                low = builder.fptosi(floor, none.type)
                high = builder.add(low, constant(1, _INT32))
                pixels, parts = [], []
                for i, (pixel, part) in enumerate(((low, builder.fsub(one, share)), (high, share))):
                    # As an unsigned number a negative one is too large.
                    inside = builder.icmp_unsigned("<", pixel, size)
                    pixels.append(builder.select(inside, pixel, none))
                    parts.append(builder.select(inside, part, zero))
                    tile.store(parts[i], axes, line + i)
                    tile.store(builder.select(inside, one, zero), axes, line + 2 + i)
                return pixels, parts

            across, near_x = axis(x, columns, 0)
            down, near_y = axis(y, rows, 4)
            lines = [builder.add(first, builder.mul(pixel, columns)) for pixel in down]
            lines, across = (
                [builder.mul(builder.sext(pixel, long), stride) for pixel in pixels]
                for pixels in (lines, across)
            )
            factor = tile.load(weights, element)
            for i in range(4):
                tile.store(builder.add(lines[i // 2], across[i % 2]), corners, i)
                share = builder.fmul(builder.fmul(factor, near_y[i // 2]), near_x[i % 2])
                tile.store(share, shares, i)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
@no_type_check
def place_backward(
    typing, products, axes, weights, frames, row, count, g_locations, g_weights
):  # fmt: skip
    """Make the gradients of ``count`` samples' locations (pairs x, y) and weights.

    ``products`` has four numbers a sample, those of the output's gradient with its corners; the
    other arrays are as :func:`place` takes and leaves them.
    """
    signature = types.void(products, axes, weights, frames, row, count, g_locations, g_weights)

    @no_type_check
    def codegen(context, builder, signature, arguments):
        products, axes, weights, frames, row, count, g_locations, g_weights = arguments
        types_, index = signature.args, count.type
        element = context.get_value_type(types_[0].dtype)
        products, axes, weights, frames, g_locations, g_weights = (
            vec.data(context, builder, types_[i], arguments[i]) for i in (0, 1, 2, 3, 6, 7)
        )

        def weighed(a, p, b, q):
            return vec.fma(builder, a, p, builder.fmul(b, q))

        def differing(a, p, b, q):
            return vec.fma(builder, a, p, builder.fneg(builder.fmul(b, q)))

        step, start = ir.Constant(index, PLACED), ir.Constant(index, 0)
        with cgutils.for_range_slice(builder, start, count, step, index) as (sample, _):
            tile = Tile(builder, row, sample)
            p00, p01, p10, p11 = tile.load_several(products, element, 4)
            left, right, left_in, right_in, top, bottom, top_in, bottom_in = (
                tile.load(axes, element, line) for line in range(8)
            )
            scale_x, scale_y = (tile.load(frames, element, line) for line in range(2))
            factor = tile.load(weights, element)
            g_x = weighed(
                top, differing(right_in, p01, left_in, p00),
                bottom, differing(right_in, p11, left_in, p10),
            )  # fmt: skip
            upper, lower = weighed(left, p00, right, p01), weighed(left, p10, right, p11)
            g_y = differing(bottom_in, lower, top_in, upper)
            tile.store(weighed(top, upper, bottom, lower), g_weights)
            pair = (
                builder.fmul(builder.fmul(factor, scale), gradient)
                for scale, gradient in ((scale_x, g_x), (scale_y, g_y))
            )
            tile.store_pairs(tuple(pair), g_locations)
        return context.get_dummy_value()

    return signature, codegen


def _corners(
    builder: Any, corners: Any, shares: Any, row: Any, sample: Any, element: Any
) -> list[tuple[Any, Any]]:
    """Return the offset of each corner of a sample, and its share."""
    places = [builder.add(builder.mul(row, ir.Constant(row.type, i)), sample) for i in range(4)]
    return [
        (
            vec.load(builder, vec.at(builder, corners, at, _INT64), _INT64, 1),
            vec.load(builder, vec.at(builder, shares, at, element), element, 1),
        )
        for at in places
    ]


@intrinsic
@no_type_check
def combine(typing, source, source_at, corners, shares, row, first, samples, out, out_at, count):
    """``out[c] = sum_sk share_sk source[corner_sk + c]`` over ``count`` channels."""
    signature = types.void(
        source, source_at, corners, shares, row, first, samples, out, out_at, count
    )

    @no_type_check
    def codegen(context, builder, signature, arguments):
        source, source_at, corners, shares, row, first, samples, out, out_at, count = arguments
        types_ = signature.args
        element = context.get_value_type(types_[0].dtype)
        source = vec.at(builder, vec.data(context, builder, types_[0], source), source_at, element)
        corners = vec.data(context, builder, types_[2], corners)
        shares = vec.data(context, builder, types_[3], shares)
        out = vec.at(builder, vec.data(context, builder, types_[7], out), out_at, element)
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
                found = _corners(builder, corners, shares, row, sample, element)
                for total, (corner, share) in zip(sums, found, strict=True):
                    here = vec.at(builder, source, builder.add(corner, offset), element)
                    value = vec.load(builder, here, element, width)
                    before = builder.load(total)
                    builder.store(
                        vec.fma(builder, vec.splat(builder, share, width), value, before), total
                    )
            a, b, c, d = (builder.load(total) for total in sums)
            total = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
            vec.store(builder, total, vec.at(builder, out, offset, element), element)

        # Two vectors at once share the loads of corners and shares.
        vec.each_vector(builder, count, 2 * vec.lanes(vec.size_of(element)), body)
        return context.get_dummy_value()

    return signature, codegen


def _combine_backward(scatters: bool) -> Any:
    @no_type_check
    def combine_backward(
        typing, source, source_at, corners, shares, row, first, samples, slope, slope_at, count,
        products, target, target_at,
    ):  # fmt: skip
        """Run the derivative of :func:`combine`, ``slope`` being the gradient of its result.

        The products ``sum_c slope[c] source[corner_sk + c]`` are added to ``products``, four for
        each sample; the gradients ``share_sk slope[c]`` are added to ``target`` (if it scatters at
        all), corner after corner, since corners may coincide.
        """
        signature = types.void(
            source, source_at, corners, shares, row, first, samples, slope, slope_at, count,
            products, target, target_at,
        )  # fmt: skip

        @no_type_check
        def codegen(context, builder, signature, arguments):
            (source, source_at, corners, shares, row, first, samples, slope, slope_at, count,
             products, target, target_at) = arguments  # fmt: skip
            types_ = signature.args
            element = context.get_value_type(types_[0].dtype)

            def start(i, at):
                array = vec.data(context, builder, types_[i], arguments[i])
                return vec.at(builder, array, at, element)

            source, slope, target = start(0, source_at), start(7, slope_at), start(11, target_at)
            corners = vec.data(context, builder, types_[2], corners)
            shares = vec.data(context, builder, types_[3], shares)
            products = vec.data(context, builder, types_[10], products)
            last = builder.add(first, samples)

            def body(offset, width):
                gradient = vec.load(
                    builder, vec.at(builder, slope, offset, element), element, width
                )
                one = ir.Constant(first.type, 1)
                with cgutils.for_range_slice(builder, first, last, one, first.type) as (sample, _):
                    found = _corners(builder, corners, shares, row, sample, element)
                    found = [(builder.add(corner, offset), share) for corner, share in found]
                    along = []
                    for corner, _share in found:
                        here = vec.at(builder, source, corner, element)
                        value = vec.load(builder, here, element, width)
                        along.append(builder.fmul(gradient, value))
                    four = builder.mul(sample, ir.Constant(first.type, 4))
                    four = vec.at(builder, products, four, element)
                    before = vec.load(builder, four, element, 4)
                    summed = vec.sum_four(builder, along, element)
                    vec.store(builder, builder.fadd(before, summed), four, element)
                    if scatters:
                        for corner, share in found:
                            at = vec.at(builder, target, corner, element)
                            value = vec.load(builder, at, element, width)
                            share = vec.splat(builder, share, width)
                            value = vec.fma(builder, share, gradient, value)
                            vec.store(builder, value, at, element)

            vec.each_vector(builder, count, vec.lanes(vec.size_of(element)), body)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(combine_backward)


combine_backward = _combine_backward(scatters=False)
combine_scatter = _combine_backward(scatters=True)


def _copy(moves: bool) -> Any:
    @no_type_check
    def copy(typing, source, source_at, target, target_at, count):
        """Copy a few numbers; or move them, added to those of the target and zero afterwards."""
        signature = types.void(source, source_at, target, target_at, count)

        @no_type_check
        def codegen(context, builder, signature, arguments):
            types_, count = signature.args, arguments[4]
            element = context.get_value_type(types_[0].dtype)
            source, target = (
                vec.at(
                    builder, vec.data(context, builder, types_[i], arguments[i]), arguments[i + 1],
                    element,
                )
                for i in (0, 2)
            )  # fmt: skip

            def body(offset, width):
                here = vec.at(builder, source, offset, element)
                there = vec.at(builder, target, offset, element)
                value = vec.load(builder, here, element, width)
                if moves:
                    vec.store(builder, ir.Constant(value.type, None), here, element)
                    value = builder.fadd(vec.load(builder, there, element, width), value)
                vec.store(builder, value, there, element)

            vec.each_vector(builder, count, vec.lanes(vec.size_of(element)), body)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(copy)


copy = _copy(moves=False)
move = _copy(moves=True)
