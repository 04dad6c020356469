"""The compiled CPU kernels that aggregate samples: placed in tiles, combined channel by channel.

A kernel works alone on a range of the queries of all groups of all images, a group after the other,
so that its reads and its additions to the value's gradient stay within the channels of a group. The
samples of a tile of queries are placed together; then the samples of each query are combined, all
channels at once, in registers.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from finslerconv._compiled import entry, jit
from finslerconv.ops.backends.numba import _simd_aggregate as simd
from finslerconv.ops.backends.numba._buffers import aligned, prefetch, rounded
from finslerconv.ops.backends.numba._vectors import PLACED

# What is kept of a tile of so many samples should leave room in a first-level cache of 32 KiB.
_TILE = 128

# The numbers of a group lie far apart, query after query. The processor does not foresee such
# steps, so they are prefetched so many queries ahead.
_AHEAD = 8


class Sizes(NamedTuple):
    """The sizes of an aggregation, and the grid on which its outputs lie."""

    pixels: int
    queries: int
    groups: int
    channels: int
    levels: int
    points: int
    width: int
    right: int
    down: int
    packs: bool
    """Whether the channels of a group are copied, so that its pixels lie one beside the other.

    They lie ``groups * channels`` numbers apart, and where this is a power of two few of them find
    room in a first-level cache.
    """


class Strides(NamedTuple):
    """How many numbers lie between the samples of images, of queries and of groups."""

    image: int
    query: int
    group: int


@jit
@no_type_check
def _queries_of(sizes):
    """Return how many queries a tile has."""
    return max(1, _TILE // (sizes.levels * sizes.points))


@jit
@no_type_check
def _frames(sizes, table, frames):
    """Return the frame and the level of every sample of a tile, as :func:`simd.place` takes them.

    The origins are those of the tile at the beginning of a row.
    """
    queries, n = _queries_of(sizes), sizes.levels * sizes.points
    room = rounded(queries * n, PLACED)
    frame_of, level_of = np.zeros((4, room), frames.dtype), np.ones((3, room), np.int32)
    for q in range(queries):
        for s in range(n):
            at = q * n + s
            for i in range(4):
                frame_of[i, at] = frames[4 * s + i]
            frame_of[2, at] += q * sizes.right
            for i in range(3):
                level_of[i, at] = table[s // sizes.points * 3 + i]
    return frame_of, level_of


@jit
@no_type_check
def _tile(sizes, at, end):
    """Return image, group, first query and number of queries of the tile that begins at ``at``.

    A tile is a piece of a row of the grid.
    """
    pair = at // sizes.queries
    query = at - pair * sizes.queries
    in_row = min(sizes.width - query % sizes.width, sizes.queries - query)
    count = min(_queries_of(sizes), end - at, in_row)
    image = pair // sizes.groups
    return image, pair - image * sizes.groups, query, count


@jit
@no_type_check
def _read(sizes, strides, image, group, query, count, array, each, out):
    """Read what the samples of ``count`` queries have, ``each`` numbers."""
    n = sizes.levels * sizes.points * each
    at = image * strides.image + query * strides.query + group * strides.group
    for q in range(count):
        here = at + q * strides.query
        prefetch(array, here + _AHEAD * strides.query, n)
        simd.copy(array, here, out, q * n, n)


@jit
@no_type_check
def _write(sizes, image, group, query, count, array, each, out):
    """Write what the samples of ``count`` queries have, ``each`` numbers."""
    n = sizes.levels * sizes.points * each
    for q in range(count):
        there = ((image * sizes.queries + query + q) * sizes.groups + group) * n
        prefetch(out, there + _AHEAD * sizes.groups * n, n)
        simd.copy(array, q * n, out, there, n)


@jit
@no_type_check
def _pack(sizes, value, at, packed):
    """Copy a group of an image, so that its pixels lie one beside the other."""
    for pixel in range(sizes.pixels):
        here = at + pixel * sizes.groups * sizes.channels
        simd.copy(value, here, packed, pixel * sizes.channels, sizes.channels)


@jit
@no_type_check
def _add(sizes, packed, target, at, stride):
    """Add a packed group of an image to another, and set it to zero."""
    for pixel in range(sizes.pixels):
        here = pixel * sizes.channels
        simd.move(packed, here, target, at + pixel * stride, sizes.channels)


@entry
@no_type_check
def forward(sizes, begin, end, value, table, frames, strides, locations, weights, out):
    """Aggregate for the queries ``begin <= query of all groups of all images < end``.

    ``strides`` are those of locations and of weights.
    """
    # Samples are read and placed here and in backward: one function for both, even inlined, made
    # them slower by a tenth.
    kind = value.dtype
    n = sizes.levels * sizes.points
    frame_of, level_of = _frames(sizes, table, frames)
    room = frame_of.shape[1]
    where, factor, axes = np.zeros(2 * room, kind), np.zeros(room, kind), np.empty(8 * room, kind)
    corners, shares = np.empty(4 * room, np.int64), np.empty(4 * room, kind)
    source, stride = value, sizes.groups * sizes.channels
    if sizes.packs:
        source, stride = aligned(sizes.pixels * sizes.channels, kind), sizes.channels
    at = begin
    while at < end:
        image, group, query, count = _tile(sizes, at, end)
        _read(sizes, strides[0], image, group, query, count, locations, 2, where)
        _read(sizes, strides[1], image, group, query, count, weights, 1, factor)
        row = query // sizes.width
        left = value.dtype.type((query - row * sizes.width) * sizes.right)
        top = value.dtype.type(row * sizes.down)
        simd.place(
            where, factor, frame_of, level_of, left, top, stride, room,
            rounded(count * n, PLACED), corners, shares, axes,
        )  # fmt: skip
        here = (image * sizes.pixels * sizes.groups + group) * sizes.channels
        if sizes.packs:
            if query == 0 or at == begin:
                _pack(sizes, value, here, source)
            here = 0
        for q in range(count):
            there = ((image * sizes.queries + query + q) * sizes.groups + group) * sizes.channels
            simd.combine(source, here, corners, shares, room, q * n, n, out, there, sizes.channels)
        at += count


@entry
@no_type_check
def backward(sizes, begin, end, part, value, table, frames, strides, locations, weights, slope,
             g_value, g_private, g_locations, g_weights, needs_value, needs_samples):  # fmt: skip
    """Write the gradients that come from the queries ``begin <= query < end``, as in forward.

    The range is a piece of a part that begins at the query ``part``. The gradient of the value is
    added to ``g_value``; that of a group that begins in another part goes to ``g_private`` (one
    group of one image: only the first group of a part can be such).
    """
    kind = value.dtype
    n = sizes.levels * sizes.points
    frame_of, level_of = _frames(sizes, table, frames)
    room = frame_of.shape[1]
    where, factor, axes = np.zeros(2 * room, kind), np.zeros(room, kind), np.empty(8 * room, kind)
    corners, shares = np.empty(4 * room, np.int64), np.empty(4 * room, kind)
    products = np.zeros(4 * room, kind)
    source, stride, packed = value, sizes.groups * sizes.channels, g_private
    if sizes.packs:
        source, stride = aligned(sizes.pixels * sizes.channels, kind), sizes.channels
        packed = aligned(sizes.pixels * sizes.channels if needs_value else 0, kind)
        packed[:] = 0
    at = begin
    while at < end:
        image, group, query, count = _tile(sizes, at, end)
        _read(sizes, strides[0], image, group, query, count, locations, 2, where)
        _read(sizes, strides[1], image, group, query, count, weights, 1, factor)
        row = query // sizes.width
        left = value.dtype.type((query - row * sizes.width) * sizes.right)
        top = value.dtype.type(row * sizes.down)
        whole = rounded(count * n, PLACED)
        simd.place(
            where, factor, frame_of, level_of, left, top, stride, room, whole, corners, shares, axes
        )
        products[: 4 * whole] = 0
        here = (image * sizes.pixels * sizes.groups + group) * sizes.channels
        total, total_at, total_stride = g_value, here, sizes.groups * sizes.channels
        if (image * sizes.groups + group) * sizes.queries < part:
            # Only with packed groups, or one group: the pixels are ``channels`` apart.
            total, total_at, total_stride = g_private, 0, sizes.channels
        target, target_at = total, total_at
        if sizes.packs:
            if query == 0 or at == begin:
                _pack(sizes, value, here, source)
            here = 0
            target, target_at = packed, 0
        for q in range(count):
            there = ((image * sizes.queries + query + q) * sizes.groups + group) * sizes.channels
            prefetch(slope, there + _AHEAD * sizes.groups * sizes.channels, sizes.channels)
            if needs_value:
                simd.combine_scatter(
                    source, here, corners, shares, room, q * n, n, slope, there, sizes.channels,
                    products, target, target_at,
                )  # fmt: skip
            else:
                simd.combine_backward(
                    source, here, corners, shares, room, q * n, n, slope, there, sizes.channels,
                    products, target, target_at,
                )  # fmt: skip
        if needs_samples:
            # In place of the locations and weights, which are not read again.
            simd.place_backward(products, axes, factor, frame_of, room, whole, where, factor)
            _write(sizes, image, group, query, count, where, 2, g_locations)
            _write(sizes, image, group, query, count, factor, 1, g_weights)
        at += count
        if sizes.packs and needs_value and (at == end or query + count == sizes.queries):
            _add(sizes, packed, total, total_at, total_stride)
