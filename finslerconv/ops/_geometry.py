"""The geometry of a convolution: where its kernel stands, and how large its output is."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

#: What lies beyond the image, in the words of ``torch.nn.Conv2d``. It holds for every sample that
#: falls outside, however far.
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

#: One integer for all axes, or one for each.
Ints = int | Sequence[int]


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel, stride, padding and dilation of a convolution in any number of axes, all in pixels.

    Parameters
    ----------
    kernel_size, stride, dilation : tuple of int
        One for each axis, as in ``torch.nn.Conv2d``.
    padding_before, padding_after : tuple of int
        Padding at the two ends of each axis; they differ for ``"same"`` with even kernels.

    Examples
    --------
    >>> from finslerconv.ops import ConvGeometry
    >>> geometry = ConvGeometry.of((3, 3), stride=(2, 2), padding=(1, 1))
    >>> geometry.n_taps, geometry.output_size(8, 8)
    (9, (4, 4))
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_before: tuple[int, ...]
    padding_after: tuple[int, ...]

    @classmethod
    def of(
        cls,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        *,
        dims: int = 2,
    ) -> "ConvGeometry":
        """Return the geometry of arguments as ``torch.nn.functional.conv2d`` takes them.

        ``dims`` is the number of axes.

        Raises
        ------
        ValueError
            If an argument is not one integer in its range, or ``dims`` of them; or ``"same"`` comes
            with a stride.
        """
        kernel = int_tuple("kernel_size", kernel_size, dims, least=1)
        strides = int_tuple("stride", stride, dims, least=1)
        dilations = int_tuple("dilation", dilation, dims, least=1)
        if isinstance(padding, str):
            before, after = _named_padding(padding, kernel, strides, dilations)
        else:
            before = after = int_tuple("padding", padding, dims, least=0)
        return cls(kernel, strides, dilations, before, after)

    @property
    def dims(self) -> int:
        """The number of axes."""
        return len(self.kernel_size)

    @property
    def n_taps(self) -> int:
        """The number of taps of the kernel."""
        return math.prod(self.kernel_size)

    def output_size(self, *size: int) -> tuple[int, ...]:
        """Return the size of the output for an image of ``size``, axis by axis.

        Raises
        ------
        ValueError
            If the kernel is larger than the padded image.
        """
        output = tuple(
            (n + before + after - step * (k - 1) - 1) // stride + 1
            for n, before, after, step, k, stride in zip(
                size,
                self.padding_before,
                self.padding_after,
                self.dilation,
                self.kernel_size,
                self.stride,
                strict=True,
            )
        )
        if min(output) < 1:
            raise ValueError(
                f"input: an image of {times(size)} is smaller than the kernel of "
                f"{times(self.kernel_size)} with dilation {self.dilation} and padding "
                f"{self.padding_before}; pad it or take a smaller kernel"
            )
        return output

    @property
    def origin(self) -> tuple[float, ...]:
        """Position of the kernel's centre at the first output pixel; halves if even."""
        return tuple(
            step * (k - 1) / 2 - before
            for step, k, before in zip(
                self.dilation, self.kernel_size, self.padding_before, strict=True
            )
        )

    def centres(self, output_size: tuple[int, ...], like: Tensor) -> tuple[Tensor, ...]:
        """Return the positions of the kernel's centre at each output pixel, axis by axis.

        In two dimensions these are rows (Ho, 1) and columns (1, Wo). In pixels of the input, with
        the dtype and device of ``like``. Even kernels are centred between pixels.
        """
        axes = (
            torch.arange(size, dtype=like.dtype, device=like.device) * stride + first
            for size, stride, first in zip(output_size, self.stride, self.origin, strict=True)
        )
        return tuple(
            axis.reshape(*(-1 if i == j else 1 for j in range(self.dims)))
            for i, axis in enumerate(axes)
        )

    def taps(self, like: Tensor) -> Tensor:
        """Return the displacements (n_taps, dims) of the standard kernel's taps from its centre."""
        axes = [
            step * (torch.arange(k, dtype=like.dtype, device=like.device) - (k - 1) / 2)
            for k, step in zip(self.kernel_size, self.dilation, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, self.dims)


def int_tuple(name: str, value: Ints, dims: int, least: int) -> tuple[int, ...]:
    """Return one integer or ``dims`` of them, of at least ``least``, as a tuple of ``dims``."""
    given = tuple(value) if isinstance(value, Sequence) else (value,)
    try:
        # NumPy's integers and the sizes in torch.jit.trace are not of type int.
        given = tuple(x if isinstance(x, int) else operator.index(x) for x in given)
    except TypeError:
        given = ()
    if len(given) == 1:
        given = given * dims
    if len(given) != dims or min(given) < least:
        number = {1: "one integer", 2: "one or two integers", 3: "one or three integers"}[dims]
        raise ValueError(f"{name}: expected {number} of at least {least}, got {value!r}")
    return given


def times(size: Sequence[int]) -> str:
    """Return a size in words, such as ``"3 x 5"``."""
    return " x ".join(map(str, size))


def _named_padding(
    padding: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if padding != "same":
        raise ValueError(f"padding: expected integers, 'same' or 'valid', got {padding!r}")
    if max(stride) > 1:
        raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
    totals = tuple(step * (k - 1) for k, step in zip(kernel, dilation, strict=True))
    # An odd total puts the extra row or column after the image, as PyTorch does.
    before = tuple(total // 2 for total in totals)
    return before, tuple(total - b for total, b in zip(totals, before, strict=True))


def check_padding_mode(mode: str) -> None:
    """Raise a ValueError if ``mode`` is no :data:`PaddingMode`."""
    if mode not in get_args(PaddingMode):
        raise ValueError(f"padding_mode: expected one of {get_args(PaddingMode)}, got {mode!r}")
