"""NumPy views of tensors for the compiled kernels."""

from functools import cache
from typing import Any

import numpy as np


class _Memory:
    """The memory of a tensor, by NumPy's array interface; it keeps the tensor alive."""

    def __init__(self, tensor: Any) -> None:
        size = tensor.element_size()
        self._tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "strides": tuple([n * size for n in tensor.stride()]),
            "typestr": _type_of(tensor.dtype),
        }


@cache
def _type_of(dtype: Any) -> str:
    return np.dtype(str(dtype).removeprefix("torch.")).str


def array_of(tensor: Any) -> np.ndarray:
    """Return the memory of a tensor on the CPU as an array, without its history.

    ``Tensor.numpy()`` would forbid resizing the storage, which fully sharded training does to free
    parameters between uses.
    """
    tensor = tensor.detach()
    if tensor.is_neg() or tensor.is_conj():
        tensor = tensor.resolve_neg().resolve_conj()
    if tensor.numel() == 0:  # it may have no address
        return np.empty(tuple(tensor.shape), _type_of(tensor.dtype))
    return np.asarray(_Memory(tensor))
