"""NumPy and PyTorch in and out: everything in between computes on tensors."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from finslerconv._arrays import Array, first_index, is_number
from finslerconv._transforms import is_mapped

FLOATS = (torch.float32, torch.float64)

# Positions, or vectors, as a user may write them: an array, or nested sequences of numbers.
Positions = Real[Array, "*_ d"] | Sequence[Any]


def as_tensor(name: str, array: Array) -> Tensor:
    """Return an array of float32 or float64 as a tensor, which shares its memory where it can."""
    if not isinstance(array, Tensor | np.ndarray):
        raise TypeError(
            f"{name}: expected a NumPy array or a torch.Tensor, got {type(array).__name__}; "
            "convert it first, for example with numpy.asarray(..., dtype=float)"
        )
    tensor = array if isinstance(array, Tensor) else _from_numpy(array)
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32 or float64, got {array.dtype}; convert it explicitly, so "
            "that no precision is lost in silence"
        )
    return tensor


def as_tensors(**arrays: Array | None) -> tuple[Any, ...]:
    """Return arrays of one kind, float32 or float64, as tensors; None stays None."""
    given = {name: array for name, array in arrays.items() if array is not None}
    if any(is_tensor(a) for a in given.values()) and any(is_numpy(a) for a in given.values()):
        kinds = ", ".join(
            f"{name} is a {'torch.Tensor' if is_tensor(array) else 'NumPy array'}"
            for name, array in given.items()
        )
        raise TypeError(f"{', '.join(given)}: expected arrays of one kind, but {kinds}")
    return tuple(None if a is None else as_tensor(name, a) for name, a in arrays.items())


def as_kind_of(result: Tensor, array: Array) -> Array:
    """Return ``result``, as a NumPy array where ``array`` is one."""
    return result.detach().cpu().numpy() if is_numpy(array) else result


def is_numpy(array: object) -> bool:
    """Return whether ``array`` is a NumPy array (or one of its scalars)."""
    return isinstance(array, np.ndarray | np.generic)


def is_tensor(array: object) -> bool:
    """Return whether ``array`` is a PyTorch tensor."""
    return isinstance(array, Tensor)


def is_integral(array: Array) -> bool:
    """Return whether a NumPy array or a tensor is one of integers."""
    if is_tensor(array):
        return not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool)
    return bool(np.issubdtype(array.dtype, np.integer))


def plain_numbers(x: Any) -> np.ndarray | None:
    """Return a number, or nested sequences of equal lengths, as float64; None for all else."""

    def plain(x: Any) -> bool:
        return is_number(x) or (isinstance(x, list | tuple | range) and all(map(plain, x)))

    def numbers(x: Any) -> Any:
        return float(x) if is_number(x) else [numbers(y) for y in x]

    if not plain(x):
        return None
    try:
        return np.array(numbers(x), dtype=float)
    except ValueError:  # ragged
        return None


def check_finite(name: str, vectors: Float[Tensor, "*_ d"]) -> None:
    """Raise a ValueError that names the first of the vectors that is not finite."""
    if is_mapped():  # torch.vmap hides the values
        return
    bad = ~vectors.detach().isfinite().all(-1)
    if bool(bad.any()):
        index = first_index(bad)
        where = f" at index {index}" if index else ""
        # Not tolist: PyTorch 2.6 cannot, where torch.func follows derivatives.
        got = [float(number) for number in vectors.detach()[index]]
        raise ValueError(f"{name}: expected finite numbers, got {got}{where}")


def shown_position(position: Iterable[float]) -> str:
    """Return a position as one writes it."""
    return "(" + ", ".join(f"{float(x):.10g}" for x in position) + ")"


def shown_shape(shape: tuple[int, ...], *names: str) -> str:
    """Return a shape as one writes it, of axes of known size and of named ones."""
    axes = [*map(str, shape), *names]
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def distinct(x: Array) -> Array:
    """Return an array with what it repeats, as broadcasts do, only once: axes of length 1."""
    strides = x.stride() if is_tensor(x) else x.strides
    part: Array = x[tuple(slice(None) if stride else slice(1) for stride in strides)]
    return part


def _from_numpy(array: np.ndarray) -> Tensor:
    # PyTorch warns of read-only arrays and refuses negative strides.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        return torch.as_tensor(distinct(array).copy()).expand(array.shape)
    return torch.as_tensor(array)
