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

IntPair = int | Sequence[int]


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel, stride, padding and dilation of a two-dimensional convolution, all in pixels.

    Parameters
    ----------
    kernel_size, stride, dilation : tuple of int
        Rows and columns, as in ``torch.nn.Conv2d``.
    padding_before, padding_after : tuple of int
        Padding at the top left and at the bottom right; they differ for ``"same"`` with even
        kernels.

    Examples
    --------
    >>> from finslerconv.ops import ConvGeometry
    >>> geometry = ConvGeometry.of((3, 3), stride=(2, 2), padding=(1, 1))
    >>> geometry.n_taps, geometry.output_size(8, 8)
    (9, (4, 4))
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding_before: tuple[int, int]
    padding_after: tuple[int, int]

    @classmethod
    def of(
        cls,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
    ) -> "ConvGeometry":
        """Return the geometry of arguments as ``torch.nn.functional.conv2d`` takes them.

        Raises
        ------
        ValueError
            If an argument is no pair of integers in its range, or ``"same"`` comes with a stride.
        """
        kernel = pair("kernel_size", kernel_size, least=1)
        strides = pair("stride", stride, least=1)
        dilations = pair("dilation", dilation, least=1)
        if isinstance(padding, str):
            before, after = _named_padding(padding, kernel, strides, dilations)
        else:
            before = after = pair("padding", padding, least=0)
        return cls(kernel, strides, dilations, before, after)

    @property
    def n_taps(self) -> int:
        """The number of taps of the kernel."""
        return math.prod(self.kernel_size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the output for an image of ``height`` by ``width``.

        Raises
        ------
        ValueError
            If the kernel is larger than the padded image.
        """
        rows, columns = (
            (size + before + after - step * (k - 1) - 1) // stride + 1
            for size, before, after, step, k, stride in zip(
                (height, width),
                self.padding_before,
                self.padding_after,
                self.dilation,
                self.kernel_size,
                self.stride,
                strict=True,
            )
        )
        if rows < 1 or columns < 1:
            raise ValueError(
                f"input: an image of {height} x {width} is smaller than the kernel of "
                f"{self.kernel_size[0]} x {self.kernel_size[1]} with dilation {self.dilation} and "
                f"padding {self.padding_before}; pad it or take a smaller kernel"
            )
        return rows, columns

    @property
    def origin(self) -> tuple[float, float]:
        """Row and column of the kernel's centre at the first output pixel; halves if even."""
        row, column = (
            step * (k - 1) / 2 - before
            for step, k, before in zip(
                self.dilation, self.kernel_size, self.padding_before, strict=True
            )
        )
        return row, column

    def centres(self, output_size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (Ho, 1) and columns (1, Wo) of the kernel's centre at each output pixel.

        In pixels of the input, with the dtype and device of ``like``. Even kernels are centred
        between pixels.
        """
        rows, columns = (
            torch.arange(size, dtype=like.dtype, device=like.device) * stride + first
            for size, stride, first in zip(output_size, self.stride, self.origin, strict=True)
        )
        return rows[:, None], columns[None, :]

    def taps(self, like: Tensor) -> Tensor:
        """Return the displacements (n_taps, 2) of the standard kernel's taps from its centre."""
        axes = [
            step * (torch.arange(k, dtype=like.dtype, device=like.device) - (k - 1) / 2)
            for k, step in zip(self.kernel_size, self.dilation, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


def pair(name: str, value: IntPair, least: int) -> tuple[int, int]:
    """Return one integer or two, of at least ``least``, as two."""
    both = tuple(value) if isinstance(value, Sequence) else (value,)
    try:
        # NumPy's integers and the sizes in torch.jit.trace are not of type int.
        both = tuple(x if isinstance(x, int) else operator.index(x) for x in both)
    except TypeError:
        both = ()
    if len(both) == 1:
        both = both * 2
    if len(both) != 2 or min(both) < least:
        raise ValueError(f"{name}: expected one or two integers of at least {least}, got {value!r}")
    return both[0], both[1]


def _named_padding(
    padding: str, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f"padding: expected integers, 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
    totals = [step * (k - 1) for k, step in zip(kernel, dilation, strict=True)]
    # An odd total puts the extra row or column after the image, as PyTorch does.
    before = (totals[0] // 2, totals[1] // 2)
    return before, (totals[0] - before[0], totals[1] - before[1])


def check_padding_mode(mode: str) -> None:
    """Raise a ValueError if ``mode`` is no :data:`PaddingMode`."""
    if mode not in get_args(PaddingMode):
        raise ValueError(f"padding_mode: expected one of {get_args(PaddingMode)}, got {mode!r}")
