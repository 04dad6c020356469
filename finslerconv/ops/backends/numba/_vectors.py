"""The vocabulary of the compiled CPU kernels' vector instructions, in LLVM's own language.

Numba leaves vectorisation to LLVM. The innermost loops are spelled out instead, over the widest
vectors of the machine, by intrinsics (:mod:`_simd`, :mod:`_simd_aggregate`). An intrinsic takes
flat arrays, each followed by the index at which it starts.
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

from finslerconv._llvm import call as call
from finslerconv._llvm import fma as fma
from finslerconv._llvm import size_of as size_of
from finslerconv._llvm import splat as splat

#: Coordinates beyond this are outside every image; integers and floats hold it exactly.
FAR = 2.0**30

#: How many samples are placed at once.
PLACED = 16


def _vector_bytes() -> int:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    if features.get("avx2"):
        return 32
    return 16


#: Width of the machine's vectors in bytes.
VECTOR_BYTES = _vector_bytes()


def lanes(itemsize: int) -> int:
    """Return how many numbers of ``itemsize`` bytes a vector holds."""
    return VECTOR_BYTES // itemsize


def data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def at(builder: Any, pointer: Any, index: Any, element: Any) -> Any:
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [index])


def load(builder: Any, pointer: Any, element: Any, width: int) -> Any:
    kind = element if width == 1 else ir.VectorType(element, width)
    pointer = builder.bitcast(pointer, kind.as_pointer())
    return builder.load(pointer, align=size_of(element))


def store(builder: Any, value: Any, pointer: Any, element: Any) -> None:
    pointer = builder.bitcast(pointer, value.type.as_pointer())
    builder.store(value, pointer, align=size_of(element))


def each_vector(builder: Any, count: Any, widest: int, body: Any) -> None:
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


def sum_lanes(builder: Any, vector: Any) -> Any:
    """Return the sum of the lanes of a vector."""
    total = _halved(builder, vector, 1)
    return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))


def _halved(builder: Any, vector: Any, width: int) -> Any:
    """Add up halves until ``width`` lanes are left, by one tree on every machine of this width."""
    while vector.type.count > width:
        half = vector.type.count // 2
        kind = ir.VectorType(ir.IntType(32), half)
        undefined = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(
                vector, undefined, ir.Constant(kind, list(range(first, first + half)))
            )
            for first in (0, half)
        )
        vector = builder.fadd(low, high)
    return vector


def sum_four(builder: Any, vectors: list[Any], element: Any) -> Any:
    """Return the sums of the lanes of four vectors, as a vector of four."""
    four = ir.VectorType(element, 4)
    width = vectors[0].type.count if isinstance(vectors[0].type, ir.VectorType) else 1
    if width < 4:
        total = ir.Constant(four, ir.Undefined)
        for i, vector in enumerate(vectors):
            single = vector if width == 1 else sum_lanes(builder, vector)
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
    return _halved(builder, merged(ab, cd, (0, 1, 4, 5), (2, 3, 6, 7)), 4)


class Tile:
    """Reads and writes vectors of :data:`PLACED` samples of arrays of a tile."""

    def __init__(self, builder: Any, row: Any, sample: Any) -> None:
        self._builder, self._row, self._sample = builder, row, sample

    def load(self, array: Any, kind: Any, line: int = 0) -> Any:
        """Return the samples' numbers in a row of the array."""
        return load(self._builder, self._at(array, kind, line), kind, PLACED)

    def store(self, value: Any, array: Any, line: int = 0) -> None:
        """Write the samples' numbers in a row of the array."""
        kind = value.type.element
        store(self._builder, value, self._at(array, kind, line), kind)

    def load_several(self, array: Any, kind: Any, several: int) -> list[Any]:
        """Return the first, the second, ... of ``several`` numbers that each sample has."""
        builder = self._builder
        first = builder.mul(self._sample, ir.Constant(self._sample.type, several))
        wide = load(builder, at(builder, array, first, kind), kind, several * PLACED)
        return [
            self._shuffle(wide, wide, [several * s + i for s in range(PLACED)])
            for i in range(several)
        ]

    def store_pairs(self, pair: tuple[Any, Any], array: Any) -> None:
        """Write the two numbers that each sample has, one beside the other."""
        kind, builder = pair[0].type.element, self._builder
        first = builder.mul(self._sample, ir.Constant(self._sample.type, 2))
        wide = self._shuffle(*pair, [s + i * PLACED for s in range(PLACED) for i in range(2)])
        store(builder, wide, at(builder, array, first, kind), kind)

    def _at(self, array: Any, kind: Any, line: int) -> Any:
        start = self._builder.mul(self._row, ir.Constant(self._row.type, line))
        return at(self._builder, array, self._builder.add(start, self._sample), kind)

    def _shuffle(self, a: Any, b: Any, places: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
        return self._builder.shuffle_vector(a, b, mask)


def constant(number: float, kind: Any) -> Any:
    """Return a number for each of :data:`PLACED` samples."""
    return ir.Constant(ir.VectorType(kind, PLACED), [number] * PLACED)
