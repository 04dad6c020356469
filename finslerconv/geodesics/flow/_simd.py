"""Vector instructions of the geodesic kernels: what many rays read of a field, and its gradient.

A node's 16 numbers lie side by side, and are read, blended and added to as one vector. The vectors
of 16 rays are then transposed, so that each number of all rays is a value of lanes.
"""

import itertools
from typing import Any, no_type_check

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from finslerconv._lanes import LANES, Lanes, index, mask
from finslerconv._llvm import fma, size_of, splat

#: Numbers a node, of which the last is unused: as many as rays, so that they can be transposed.
WIDE = LANES


def _between(builder: Any, x: Any, y: Any, place: Any) -> Any:
    """Return what is at a place between two vectors."""
    return fma(builder, place, builder.fsub(y, x), x)


def _merged(builder: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Return the first halves of two vectors, numbers in turns, and the second halves."""
    half = WIDE // 2
    places = (
        [i + side for i in range(first, first + half) for side in (0, WIDE)] for first in (0, half)
    )
    kind = ir.VectorType(ir.IntType(32), WIDE)
    low, high = (builder.shuffle_vector(x, y, ir.Constant(kind, each)) for each in places)
    return low, high


def _pairs(builder: Any, rows: list[Any]) -> list[tuple[Any, Any]]:
    """Merge each of the first half of the vectors with one of the second half."""
    half = len(rows) // 2
    return [_merged(builder, x, y) for x, y in zip(rows[:half], rows[half:], strict=True)]


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of as many vectors as each has numbers."""
    for _ in range(WIDE.bit_length() - 1):
        rows = list(itertools.chain(*_pairs(builder, rows)))
    return rows


def _sums(builder: Any, rows: list[Any]) -> Any:
    """Return the sum of each vector's numbers, by one tree on every machine."""
    while len(rows) > 1:
        rows = [builder.fadd(*pair) for pair in _pairs(builder, rows)]
    return rows[0]


class _Cells:
    """The cells that the rays are in, in tables of the nodes of a field.

    ``base`` is the number of the field's first node; ``i`` and ``j`` are the row and the column of
    each ray's cell, ``a`` and ``b`` its place in the cell.
    """

    def __init__(
        self, context: Any, builder: Any, kind: Any, base: Any, height: Any, width: Any, *cell: Any
    ) -> None:
        self._context, self._builder = context, builder
        self.vector = kind.vector
        i, j, self.a, self.b = cell
        row, column = self._whole(i, height), self._whole(j, width)
        first = builder.add(builder.mul(row, splat(builder, width, LANES)), column)
        self._first = builder.add(first, splat(builder, base, LANES))
        down = builder.mul(self._step(height), width)
        right = self._step(width)
        self._around = [None, right, down, builder.add(down, right)]

    def _whole(self, x: Any, n: Any) -> Any:
        """Return numbers of cells along an axis of ``n`` nodes, inside whatever they are."""
        builder = self._builder
        longs = ir.VectorType(n.type, LANES)
        last = splat(builder, builder.sub(n, ir.Constant(n.type, 2)), LANES)
        zero = ir.Constant(longs, [0] * LANES)
        x = builder.fptosi(x, longs)
        x = builder.select(builder.icmp_signed("<", x, last), x, last)
        return builder.select(builder.icmp_signed(">", x, zero), x, zero)

    def _step(self, n: Any) -> Any:
        """Return the step from a node to the next along an axis of ``n``: 0 along one of one."""
        return self._builder.zext(self._builder.icmp_signed(">", n, ir.Constant(n.type, 1)), n.type)

    def around(self, kind: Any, table: Any, ray: int) -> list[Any]:
        """Return pointers to the four nodes around a ray in a table."""
        builder = self._builder
        data = self._context.make_array(kind)(self._context, builder, table).data
        nodes = builder.bitcast(data, self.vector.as_pointer())
        first = builder.gep(nodes, [builder.extract_element(self._first, index(ray))])
        return [first if step is None else builder.gep(first, [step]) for step in self._around]

    def load(self, pointer: Any) -> Any:
        """Return the numbers of a node."""
        return self._builder.load(pointer, align=self._align)

    def store(self, numbers: Any, pointer: Any) -> None:
        """Write the numbers of a node."""
        self._builder.store(numbers, pointer, align=self._align)

    @property
    def _align(self) -> int:
        return size_of(self.vector.element)

    def spread(self, x: Any, ray: int) -> Any:
        """Return the number of one ray as a vector."""
        return splat(self._builder, self._builder.extract_element(x, index(ray)), LANES)


@intrinsic
@no_type_check
def blend(typing, table, base, height, width, i, j, a, b):
    """Return the numbers between four nodes: bilinear at ``a`` down and ``b`` to the right.

    ``table (nodes, 16)`` is flat; the other arguments are those of :class:`_Cells`.
    """
    kind, long = Lanes(table.dtype), types.intp
    signature = types.UniTuple(kind, WIDE)(table, long, long, long, kind, kind, kind, kind)

    @no_type_check
    def codegen(context, builder, signature, arguments):
        table, *cell = arguments
        cells = _Cells(context, builder, kind, *cell)
        rows = []
        for ray in range(LANES):
            around = cells.around(signature.args[0], table, ray)
            f00, f01, f10, f11 = map(cells.load, around)
            down, across = cells.spread(cells.a, ray), cells.spread(cells.b, ray)
            top, bottom = _between(builder, f00, f01, across), _between(builder, f10, f11, across)
            rows.append(_between(builder, top, bottom, down))
        return context.make_tuple(builder, signature.return_type, _transposed(builder, rows))

    return signature, codegen


@intrinsic
@no_type_check
def blend_backward(typing, table, slope, base, height, width, i, j, a, b, live, gradients):
    """Add the gradient of :func:`blend` to that of the nodes; return those of ``a`` and ``b``.

    ``gradients`` is a tuple of as many numbers as a node has. It counts for rays that are ``live``.
    """
    kind, long = Lanes(table.dtype), types.intp
    signature = types.UniTuple(kind, 2)(
        table, slope, long, long, long, kind, kind, kind, kind, mask, types.UniTuple(kind, WIDE)
    )

    @no_type_check
    def codegen(context, builder, signature, arguments):
        table, slope, *cell, live, gradients = arguments
        cells = _Cells(context, builder, kind, *cell)
        zero, one = (ir.Constant(kind.vector, [number] * LANES) for number in (0.0, 1.0))
        columns = [builder.extract_value(gradients, k) for k in range(WIDE)]
        rows = _transposed(builder, [builder.select(live, g, zero) for g in columns])
        up, left = builder.fsub(one, cells.a), builder.fsub(one, cells.b)
        weights = [builder.fmul(v, h) for v in (up, cells.a) for h in (left, cells.b)]
        by_a, by_b = [], []
        for ray, g in enumerate(rows):
            # One after the other: rays share nodes, and a grid of one row has one node for two.
            around = cells.around(signature.args[1], slope, ray)
            for pointer, weight in zip(around, weights, strict=True):
                cells.store(
                    fma(builder, cells.spread(weight, ray), g, cells.load(pointer)), pointer
                )
            f00, f01, f10, f11 = map(cells.load, cells.around(signature.args[0], table, ray))
            top, side = builder.fsub(f01, f00), builder.fsub(f10, f00)
            twist = builder.fsub(builder.fsub(f11, f10), top)
            by_a.append(builder.fmul(g, fma(builder, cells.spread(cells.b, ray), twist, side)))
            by_b.append(builder.fmul(g, fma(builder, cells.spread(cells.a, ray), twist, top)))
        sums = [_sums(builder, rows) for rows in (by_a, by_b)]
        return context.make_tuple(builder, signature.return_type, sums)

    return signature, codegen
