"""Convolutions to be compared: their arguments, at random, and the slow, obvious truth."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st

from finslerconv import ops
from finslerconv._head_formula import OMEGA_CONSTRAINTS
from finslerconv._parametrization import PARAMETRIZATIONS
from finslerconv.ops import ConvGeometry

MODES = ("zeros", "reflect", "replicate", "circular")

# Every formula of a head that the compiled backends know.
FORMULAS = [
    ops.HeadFormula(kind(), 0.1, constraint, 1.5)
    for kind, constraint in itertools.product(PARAMETRIZATIONS.values(), OMEGA_CONSTRAINTS)
] + [ops.HeadFormula(kind(eps_L=0.2), 1.0) for kind in PARAMETRIZATIONS.values()]


@dataclass(frozen=True)
class Case:
    """The arguments of one convolution, as they determine tensors."""

    kind: str = "offsets"
    formula: ops.HeadFormula | None = None
    batch: int = 2
    channels: int = 4
    size: tuple[int, ...] = (7, 8)
    out_channels: int = 6
    kernel: tuple[int, ...] = (3, 3)
    groups: int = 1
    sample_groups: int = 1
    stride: Any = 1
    padding: Any = 1
    dilation: Any = 1
    padding_mode: str = "zeros"
    mask: bool = True
    omega: bool = True
    bias: bool = True
    channels_last: bool = False
    dtype: torch.dtype = torch.float64
    spread: float = 2.0
    seed: int = 0

    @property
    def dims(self):
        return len(self.size)

    @property
    def out_size(self):
        return self.geometry.output_size(*self.size)

    @property
    def geometry(self):
        return ConvGeometry.of(
            self.kernel, self.stride, self.padding, self.dilation, dims=self.dims
        )

    def tensors(self):
        """Return input, field, omega, weight, bias, mask; absent ones are None.

        With a formula the field is the channels of a head.
        """
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        taps, groups, out_size = self.geometry.n_taps, self.sample_groups, self.out_size
        dims = self.dims
        input = normal(self.batch, self.channels, *self.size)
        weight = normal(self.out_channels, self.channels // self.groups, *self.kernel)
        omega = None
        if self.kind == "offsets":
            where = self.spread * normal(self.batch, groups * taps * dims, *out_size)
        elif self.formula is not None:
            where = 1.2 * normal(self.batch, groups * self.formula.n_channels, *out_size)
            where[:1, :, 0, :2] = 0  # where every formula degenerates
            where[-1:, :, 1] *= 1e-2  # where series take over
        else:
            root = normal(self.batch, groups, *out_size, dims, dims)
            where = (root @ root.mT + 0.3 * torch.eye(dims)) / self.spread**2
            if self.omega:
                omega = normal(self.batch, groups, *out_size, dims)
                norm = (omega * torch.linalg.solve(where, omega)).sum(-1, keepdim=True).sqrt()
                omega = 0.9 * omega / (1 + norm)
        tensors = [
            input,
            where,
            omega,
            weight / math.sqrt(weight[0].numel()),
            normal(self.out_channels) if self.bias else None,
            torch.rand(self.batch, groups * taps, *out_size, generator=generator).double()
            if self.mask
            else None,
        ]
        tensors = [None if t is None else t.to(self.dtype) for t in tensors]
        if self.channels_last and self.dims > 1:
            last = torch.channels_last if self.dims == 2 else torch.channels_last_3d
            tensors[0] = tensors[0].contiguous(memory_format=last)
        return tensors

    @cached_property
    def points(self):
        """Reference points in the cube of half side 1, the first at the origin."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        points = 2 * torch.rand(self.geometry.n_taps, self.dims, generator=generator) - 1
        points[0] = 0
        return points.to(self.dtype)

    def __call__(self, input, where, omega, weight, bias, mask):
        """Return the convolution of such tensors, by the current backend."""
        common = (weight, bias, self.stride, self.padding, self.dilation, mask)
        if self.kind == "offsets":
            deform = (ops.deform_conv1d, ops.deform_conv2d, ops.deform_conv3d)[self.dims - 1]
            return deform(input, where, *common, padding_mode=self.padding_mode)
        points = self.points.to(where.device)
        how = {"map": self.kind, "padding_mode": self.padding_mode}
        if self.formula is not None:
            return ops.head_conv2d(input, where, self.formula, points, *common, **how)
        metric = (ops.metric_conv1d, ops.metric_conv2d, ops.metric_conv3d)[self.dims - 1]
        return metric(input, where, omega, points, *common, **how)

    def convolution(self, tensors=None):
        """Return the convolution of such tensors as backends are given it."""
        input, where, omega, weight, bias, mask = self.tensors() if tensors is None else tensors
        points = None if self.kind == "offsets" else self.points
        positions = ops.Positions(self.kind, where, omega, points, self.formula)
        return ops.Convolution(
            input, positions, weight, bias, mask, self.geometry, self.padding_mode
        )

    def results(self, backend, tensors=None):
        """Return the output and the gradients of all arguments, along a random direction."""
        tensors = self.tensors() if tensors is None else tensors
        live = [t.detach().requires_grad_() if t is not None else None for t in tensors]
        with ops.use_backend(backend):
            output = self(*live)
        generator = torch.Generator().manual_seed(self.seed + 2)
        direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        wanted = [t for t in live if t is not None]
        gradients = torch.autograd.grad(output, wanted, direction.to(output))
        return [output.detach(), *gradients]


def as_tuple(value, dims):
    return value if isinstance(value, tuple) else (value,) * dims


# Kernels, strides, paddings and dilations to draw from, by the number of axes.
SHAPES = {
    1: (((3,), (1,), (2,), (5,)), (1, 1, 2, (3,)), (0, 1, (2,), "same"), (1, 1, 2)),
    2: (
        ((3, 3), (1, 1), (2, 2), (1, 3), (5, 4)),
        (1, 1, 2, (2, 1)),
        (0, 1, (2, 3), "same"),
        (1, 1, 2, (1, 2)),
    ),
    3: (
        ((3, 3, 3), (1, 1, 1), (2, 2, 2), (1, 3, 2), (2, 1, 4)),
        (1, 1, 2, (2, 1, 3)),
        (0, 1, (2, 0, 1), "same"),
        (1, 1, 2, (1, 2, 1)),
    ),
}


@st.composite
def cases(draw, dtypes=(torch.float64, torch.float32), most=20, dims=2, kernels=None):
    """Draw a convolution of any shape and arguments."""
    groups, sample_groups = draw(st.sampled_from((1, 1, 2, 4))), draw(st.sampled_from((1, 1, 2, 4)))
    channels = 4 * draw(st.integers(1, most // 4))
    every_kernel, strides, paddings, dilations = SHAPES[dims]
    kernel = draw(st.sampled_from(kernels or every_kernel))
    stride = draw(st.sampled_from(strides))
    padding = draw(st.sampled_from(paddings)) if stride == 1 else 1
    dilation = draw(st.sampled_from(dilations))
    # From the least size upwards, so that a single row or pixel of output comes now and then.
    reach = [d * (k - 1) for k, d in zip(kernel, as_tuple(dilation, dims), strict=True)]
    around = reach if padding == "same" else [2 * p for p in as_tuple(padding, dims)]
    size = tuple(
        max(1, r + 1 - a) + draw(st.integers(0, most // dims))
        for r, a in zip(reach, around, strict=True)
    )
    return Case(
        kind=draw(st.sampled_from(("offsets", "radial", "affine"))),
        batch=draw(st.integers(1, 3)),
        channels=channels,
        size=size,
        out_channels=4 * draw(st.integers(1, most // 4)),
        kernel=kernel,
        groups=groups,
        sample_groups=sample_groups,
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=draw(st.sampled_from(MODES)),
        mask=draw(st.booleans()),
        omega=draw(st.booleans()),
        bias=draw(st.booleans()),
        channels_last=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        spread=draw(st.sampled_from((0.5, 2.0, 6.0))),
        seed=draw(st.integers(0, 2**20)),
    )


def assert_equal_results(found, expected, dtype):
    """Compare outputs and gradients, each relative to its largest entry (1 at least: the data's).

    In float32 a position near a pixel's centre line may fall to either side, where the gradient of
    the position jumps: then a few entries may differ, and the rest must agree.
    """
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        if wanted.numel() == 0:
            continue
        error = (got - wanted).abs() / wanted.abs().amax().clamp(min=1)
        if dtype == torch.float64:
            assert error.amax() < 1e-11
        else:
            assert (error > 3e-4).double().mean() < 2e-3
            assert error.median() < 2e-6


def slow_convolution(input, positions, weight, bias, mask, groups, padding_mode):
    """Convolve with loops over everything, sample by sample.

    ``positions`` (B, G, taps, d, *out) are absolute, ``mask`` (B, G, taps, *out).
    """
    batch, channels, *size = input.shape
    sample_groups, taps = positions.shape[1:3]
    out_size = positions.shape[4:]
    out_channels = weight.shape[0]
    output = torch.zeros(batch, out_channels, *out_size, dtype=input.dtype)
    pixel = Pixels(input, size, padding_mode)
    for b, o, *place in itertools.product(*map(range, (batch, out_channels, *out_size))):
        group = o // (out_channels // groups)
        total = 0.0 if bias is None else float(bias[o])
        for i, k in itertools.product(range(channels // groups), range(taps)):
            channel = group * (channels // groups) + i
            s = channel // (channels // sample_groups)
            factor = 1.0 if mask is None else float(mask[(b, s, k, *place)])
            tap = weight[o, i].flatten()[k]
            where = positions[(b, s, k, slice(None), *place)].tolist()
            total += float(tap) * factor * pixel.between(b, channel, where)
        output[(b, o, *place)] = total
    return output


class Pixels:
    """An image continued over the whole plane, line or space."""

    def __init__(self, values, size, mode):
        self.values, self.size, self.mode = values.tolist(), size, mode

    def between(self, b, channel, where):
        if not all(map(math.isfinite, where)):
            return 0.0
        first = map(math.floor, where)
        corners = itertools.product(*((i, i + 1) for i in first))
        return sum(
            math.prod(1 - abs(x - i) for x, i in zip(where, corner, strict=True))
            * self.at(b, channel, corner)
            for corner in corners
        )

    def at(self, b, channel, index):
        value = self.values[b][channel]
        for i, n in zip(index, self.size, strict=True):
            folded = self.fold(i, n)
            if folded is None:
                return 0.0
            value = value[folded]
        return value

    def fold(self, index, n):
        if 0 <= index < n:
            return index
        if self.mode == "zeros":
            return None
        if self.mode == "replicate":
            return 0 if index < 0 else n - 1
        if self.mode == "circular":
            return index % n
        if n == 1:
            return 0
        while not 0 <= index < n:  # reflect: bounce until inside
            index = -index if index < 0 else 2 * (n - 1) - index
        return index
