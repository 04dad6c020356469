"""The memory layout of images, which the operators keep from input to output."""

import torch
from torch import Tensor

from finslerconv._transforms import is_transformed


def is_channels_last(x: Tensor) -> bool:
    """Return whether ``x`` is laid out channels last, and not channels first at the same time."""
    if is_transformed():  # inside vmap the question has no answer
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the layout that the output has for an input ``x``."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
