"""Where the samples of the compiled CPU kernels lie in volumes: :mod:`_places` for three axes.

A sample has eight corners, and a share of each axis as in the plane. Positions come as offsets.
"""

from typing import no_type_check

import numpy as np

from finslerconv._compiled import jit
from finslerconv.ops.backends.numba._places import FAR, locate, mask_backward


@jit
@no_type_check
def centres(plan, centre, pixel, count, centre_at):
    """Write the kernel's centre at the voxels of a tile: a line for each axis."""
    _, height, width = plan.out_size
    layer = pixel // (height * width)
    row = pixel // width - layer * height
    column = pixel % width
    for p in range(count):
        centre_at[0, p] = centre[0] + layer * plan.stride[0]
        centre_at[1, p] = centre[1] + row * plan.stride[1]
        centre_at[2, p] = centre[2] + column * plan.stride[2]
        column += 1
        if column == width:
            column = 0
            row += 1
            if row == height:
                row = 0
                layer += 1


@jit
@no_type_check
def place(plan, field, omega, head, points, dilation, image, group, pixel, count, first, last,
          centre_at, metric, work, where, samples, shares):  # fmt: skip
    """Place the taps ``first`` to ``last`` of the voxels of a tile: corners and their shares."""
    pixels = plan.out_pixels
    at = image * plan.sample_groups + group
    limit = where.dtype.type(FAR)
    nothing = where.dtype.type(0)
    # The first lines of "metric", which is for the plane, serve as a line of the tile.
    reach = metric[:count]
    for tap in range(first, last):
        for axis in range(3):
            start = (3 * (at * plan.taps + tap) + axis) * pixels + pixel
            moved, g = field[start : start + count], points[3 * tap + axis]
            line, centre = where[axis, :count], centre_at[axis, :count]
            for p in range(count):
                line[p] = centre[p] + (moved[p] + g)
        begin = (tap - first) * plan.tile
        end = begin + count
        for axis in range(3):
            other, third = where[(axis + 1) % 3, :count], where[(axis + 2) % 3, :count]
            for p in range(count):
                near = (abs(other[p]) < limit) & (abs(third[p]) < limit)
                reach[p] = nothing if near else limit
            locate(
                where[axis, :count], reach, plan.size[axis], plan.mode,
                samples[2 * axis, begin:end], samples[2 * axis + 1, begin:end],
                shares[4 * axis, begin:end], shares[4 * axis + 1, begin:end],
                shares[4 * axis + 2, begin:end], shares[4 * axis + 3, begin:end],
            )  # fmt: skip


@jit
@no_type_check
def corners(plan, samples, shares, q, channel, factor):
    """Return where in an image the corners of a sample are, at a channel, and their weights."""
    row = plan.size[2] * plan.channels
    layer = plan.size[1] * row
    front, back = np.int64(samples[0, q]) * layer, np.int64(samples[1, q]) * layer
    top, bottom = np.int64(samples[2, q]) * row, np.int64(samples[3, q]) * row
    left = np.int64(samples[4, q]) * plan.channels + channel
    right = np.int64(samples[5, q]) * plan.channels + channel
    before, behind = shares[0, q] * factor, shares[1, q] * factor
    above, below = shares[4, q], shares[5, q]
    west, east = shares[8, q], shares[9, q]
    s00, s01, s10, s11 = before * above, before * below, behind * above, behind * below
    return (
        (
            front + top + left, front + top + right, front + bottom + left, front + bottom + right,
            back + top + left, back + top + right, back + bottom + left, back + bottom + right,
        ),
        (
            s00 * west, s00 * east, s01 * west, s01 * east,
            s10 * west, s10 * east, s11 * west, s11 * east,
        ),
    )  # fmt: skip


@jit
@no_type_check
def slope(plan, shares, q, factor, products, g_where, g_factor):
    """Write the gradients of a sample's position and factor, from those of its corners' weights."""
    d000, d001, d010, d011, d100, d101, d110, d111 = products
    before, behind, before_in, behind_in = shares[0, q], shares[1, q], shares[2, q], shares[3, q]
    above, below, above_in, below_in = shares[4, q], shares[5, q], shares[6, q], shares[7, q]
    west, east, west_in, east_in = shares[8, q], shares[9, q], shares[10, q], shares[11, q]
    r00, r01 = west * d000 + east * d001, west * d010 + east * d011
    r10, r11 = west * d100 + east * d101, west * d110 + east * d111
    front, back = above * r00 + below * r01, above * r10 + below * r11
    x00, x01 = east_in * d001 - west_in * d000, east_in * d011 - west_in * d010
    x10, x11 = east_in * d101 - west_in * d100, east_in * d111 - west_in * d110
    g_where[0, q] = factor * (behind_in * back - before_in * front)
    g_where[1, q] = factor * (
        before * (below_in * r01 - above_in * r00) + behind * (below_in * r11 - above_in * r10)
    )
    g_where[2, q] = factor * (
        before * (above * x00 + below * x01) + behind * (above * x10 + below * x11)
    )
    g_factor[q] = before * front + behind * back


@jit
@no_type_check
def place_backward(plan, field, omega, head, points, dilation, image, group, pixel, count, first,
                   last, totals, metric, other, work, g_where, g_mask, g_field, g_omega,
                   g_factors):  # fmt: skip
    """Add what the gradients of a chunk's positions and factors give to the arguments."""
    at = image * plan.sample_groups + group
    if plan.has_mask:
        mask_backward(plan, at, pixel, count, first, last, g_mask, g_factors)
    for tap in range(first, last):
        here = (tap - first) * plan.tile
        for axis in range(3):
            there = (3 * (at * plan.taps + tap) + axis) * plan.out_pixels + pixel
            for p in range(count):
                g_field[there + p] += g_where[axis, here + p]
