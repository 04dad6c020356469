"""The compiled CPU kernels that aggregate samples: placed in tiles, combined channel by channel.

A kernel works alone on a range of the queries of all groups of all images, a group after the other,
so that its reads and its additions to the value's gradient stay within the channels of a group. The
samples of a tile of queries are placed together; then the samples of each query are combined, all
channels at once, in registers.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from finslerconv._compiled import entry, jit
from finslerconv.ops.backends.numba import _simd as simd
from finslerconv.ops.backends.numba._kernels import rounded

# The samples that are placed at once should leave room in a first-level cache of 32 KiB.
_TILE = 256

# Loops go over multiples of this, so that no remainder is left to slow ones. What lies beyond the
# last sample is computed and not used.
_STEP = 2 * simd.PLACED


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


@jit
@no_type_check
def _queries_of(sizes):
    """Return how many queries a tile has."""
    return max(1, _TILE // (sizes.levels * sizes.points))


@jit
@no_type_check
def _levels(sizes, table):
    """Return rows, columns and first pixel of the level of every sample of a tile."""
    queries = _queries_of(sizes)
    level_of = np.ones((3, rounded(queries * sizes.levels * sizes.points, _STEP) + 16), np.int32)
    at = 0
    for _ in range(queries):
        for level in range(sizes.levels):
            for _ in range(sizes.points):
                for i in range(3):
                    level_of[i, at] = table[3 * level + i]
                at += 1
    return level_of


@jit
@no_type_check
def _read(sizes, image, group, query, count, frames, locations, weights, samples):
    """Read the samples of ``count`` queries: write x, y and the weight of each."""
    n = sizes.levels * sizes.points
    x, y, factor = samples[0], samples[1], samples[2]
    for q in range(count):
        at = ((image * sizes.queries + query + q) * sizes.groups + group) * n
        row = (query + q) // sizes.width
        left = x.dtype.type((query + q - row * sizes.width) * sizes.right)
        top = x.dtype.type(row * sizes.down)
        for s in range(n):
            x[q * n + s] = frames[4 * s] * locations[2 * (at + s)] + (frames[4 * s + 2] + left)
            y[q * n + s] = frames[4 * s + 1] * locations[2 * (at + s) + 1] + (
                frames[4 * s + 3] + top
            )
            factor[q * n + s] = weights[at + s]


@jit
@no_type_check
def _place_backward(n, samples, axes, products, along):
    """Write the gradients of x, y and the weight of ``n`` samples to the rows of ``along``.

    ``products`` has for each sample the products of the output's gradient with its four pixels.
    """
    factor = samples[2, :n]
    left, right, left_in, right_in = axes[0, :n], axes[1, :n], axes[2, :n], axes[3, :n]
    top, bottom, top_in, bottom_in = axes[4, :n], axes[5, :n], axes[6, :n], axes[7, :n]
    g_x, g_y, g_factor = along[0, :n], along[1, :n], along[2, :n]
    upper, lower = along[3, :n], along[4, :n]
    for s in range(n):
        upper[s] = right_in[s] * products[4 * s + 1] - left_in[s] * products[4 * s]
    for s in range(n):
        lower[s] = right_in[s] * products[4 * s + 3] - left_in[s] * products[4 * s + 2]
    for s in range(n):
        g_x[s] = factor[s] * (top[s] * upper[s] + bottom[s] * lower[s])
    for s in range(n):
        upper[s] = left[s] * products[4 * s] + right[s] * products[4 * s + 1]
    for s in range(n):
        lower[s] = left[s] * products[4 * s + 2] + right[s] * products[4 * s + 3]
    for s in range(n):
        g_y[s] = factor[s] * (bottom_in[s] * lower[s] - top_in[s] * upper[s])
    for s in range(n):
        g_factor[s] = top[s] * upper[s] + bottom[s] * lower[s]


@jit
@no_type_check
def _packs(sizes, begin, end):
    """Return whether the queries of a range take enough samples that a group is packed for them.

    The pixels of a group lie ``groups * channels`` numbers apart, and where this is a power of two
    few of them find room in a first-level cache.
    """
    samples = min(end - begin, sizes.queries) * sizes.levels * sizes.points
    return sizes.groups > 1 and samples >= sizes.pixels


@jit
@no_type_check
def _pack(sizes, value, at, packed):
    """Copy a group of an image, so that its pixels lie one beside the other."""
    channels = np.uint64(sizes.channels)
    stride = np.uint64(sizes.groups * sizes.channels)
    at, there = np.uint64(at), np.uint64(0)
    for _ in range(sizes.pixels):
        for c in range(channels):
            packed[there + c] = value[at + c]
        at += stride
        there += channels


@jit
@no_type_check
def _add(sizes, packed, target, at, stride):
    """Add a packed group of an image to another, and set it to zero."""
    channels = np.uint64(sizes.channels)
    at, here, stride = np.uint64(at), np.uint64(0), np.uint64(stride)
    for _ in range(sizes.pixels):
        for c in range(channels):
            target[at + c] += packed[here + c]
            packed[here + c] = 0
        at += stride
        here += channels


@entry
@no_type_check
def forward(sizes, begin, end, value, table, frames, locations, weights, out):
    """Aggregate for the queries ``begin <= query of all groups of all images < end``."""
    kind = value.dtype
    n = sizes.levels * sizes.points
    level_of = _levels(sizes, table)
    room = level_of.shape[1]
    samples, axes = np.zeros((3, room), kind), np.empty((8, room), kind)
    lines, shares = np.empty((4, room), np.int32), np.empty((4, room), kind)
    packs = _packs(sizes, begin, end)
    source, stride = value, sizes.groups * sizes.channels
    if packs:
        source, stride = np.empty(sizes.pixels * sizes.channels, kind), sizes.channels
    at = begin
    while at < end:
        pair = at // sizes.queries
        query = at - pair * sizes.queries
        count = min(_queries_of(sizes), end - at, sizes.queries - query)
        image = pair // sizes.groups
        group = pair - image * sizes.groups
        _read(sizes, image, group, query, count, frames, locations, weights, samples)
        simd.place(samples, level_of, room, rounded(count * n, _STEP), lines, shares, axes)
        here = (image * sizes.pixels * sizes.groups + group) * sizes.channels
        if packs:
            if query == 0 or at == begin:
                _pack(sizes, value, here, source)
            here = 0
        for q in range(count):
            there = ((image * sizes.queries + query + q) * sizes.groups + group) * sizes.channels
            simd.combine(
                source, here, stride, lines, shares, room, q * n, n, out, there, sizes.channels
            )
        at += count


@entry
@no_type_check
def backward(sizes, begin, end, part, value, table, frames, locations, weights, slope, g_value,
             g_private, g_locations, g_weights, needs_value, needs_samples):  # fmt: skip
    """Write the gradients that come from the queries ``begin <= query < end``, as in forward.

    The range is a piece of a part that begins at the query ``part``. The gradient of the value is
    added to ``g_value``; that of a group that begins in another part goes to ``g_private`` (one
    group of one image: only the first group of a part can be such).
    """
    kind = value.dtype
    n = sizes.levels * sizes.points
    level_of = _levels(sizes, table)
    room = level_of.shape[1]
    samples, axes = np.zeros((3, room), kind), np.empty((8, room), kind)
    lines, shares = np.empty((4, room), np.int32), np.empty((4, room), kind)
    products, along = np.zeros(4 * room, kind), np.empty((5, room), kind)
    g_x, g_y, g_factor = along[0], along[1], along[2]
    packs = _packs(sizes, begin, end)
    source, stride, packed = value, sizes.groups * sizes.channels, g_private
    if packs:
        source, stride = np.empty(sizes.pixels * sizes.channels, kind), sizes.channels
        packed = np.zeros(sizes.pixels * sizes.channels if needs_value else 0, kind)
    at = begin
    while at < end:
        pair = at // sizes.queries
        query = at - pair * sizes.queries
        count = min(_queries_of(sizes), end - at, sizes.queries - query)
        image = pair // sizes.groups
        group = pair - image * sizes.groups
        whole = rounded(count * n, _STEP)
        _read(sizes, image, group, query, count, frames, locations, weights, samples)
        simd.place(samples, level_of, room, whole, lines, shares, axes)
        products[: 4 * whole] = 0
        here = (image * sizes.pixels * sizes.groups + group) * sizes.channels
        target, target_at, target_stride = g_value, here, sizes.groups * sizes.channels
        if pair * sizes.queries < part:
            target, target_at, target_stride = g_private, 0, sizes.channels
        total, total_at, total_stride = target, target_at, target_stride
        if packs:
            if query == 0 or at == begin:
                _pack(sizes, value, here, source)
            here = 0
            target, target_at, target_stride = packed, 0, sizes.channels
        for q in range(count):
            there = ((image * sizes.queries + query + q) * sizes.groups + group) * sizes.channels
            if needs_value:
                simd.combine_scatter(
                    source, here, stride, lines, shares, room, q * n, n, slope, there,
                    sizes.channels, products, target, target_at, target_stride,
                )  # fmt: skip
            else:
                simd.combine_backward(
                    source, here, stride, lines, shares, room, q * n, n, slope, there,
                    sizes.channels, products, target, target_at, target_stride,
                )  # fmt: skip
        if needs_samples:
            _place_backward(whole, samples, axes, products, along)
            for q in range(count):
                there = ((image * sizes.queries + query + q) * sizes.groups + group) * n
                for s in range(n):
                    g_locations[2 * (there + s)] = frames[4 * s] * g_x[q * n + s]
                    g_locations[2 * (there + s) + 1] = frames[4 * s + 1] * g_y[q * n + s]
                    g_weights[there + s] = g_factor[q * n + s]
        at += count
        if packs and needs_value and (at == end or query + count == sizes.queries):
            _add(sizes, packed, total, total_at, total_stride)
