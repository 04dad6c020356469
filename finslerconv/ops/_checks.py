"""Checks of the operators' arguments."""

import math

import torch
from torch import Tensor

from finslerconv.ops._geometry import ConvGeometry, check_padding_mode

# The arguments that may be None.
_OPTIONAL = ("omega", "bias", "mask")


def kernel_size(weight: Tensor) -> tuple[int, int]:
    """Return the kernel size of checked weights (O, C // groups, kh, kw)."""
    if weight.ndim != 4:
        raise ValueError(
            f"weight: expected shape (O, C // groups, kh, kw), got {tuple(weight.shape)}"
        )
    return weight.shape[2], weight.shape[3]


def check_tensors(**tensors: Tensor | None) -> None:
    """Check that all arguments of an operator are floating tensors on one device."""
    device = None
    for name, tensor in tensors.items():
        if tensor is None and name in _OPTIONAL:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a Tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
        # With one tensor on the meta device PyTorch would compute shapes only, without an error.
        device = device or tensor.device
        if tensor.device != device:
            raise ValueError(f"{name}: expected device {device}, got {tensor.device}")


def multiplied_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor is multiplied: autocast lowers all but float64.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import multiplied_dtype
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     print(multiplied_dtype(torch.zeros(1)))
    torch.bfloat16
    """
    kind = tensor.device.type
    if (
        tensor.dtype != torch.float64
        and torch.amp.is_autocast_available(kind)
        and torch.is_autocast_enabled(kind)
    ):
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def check_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, padding_mode: str
) -> tuple[int, int]:
    """Check what every convolution takes, and return the size of its output.

    Dtypes are compared after autocast where that is on.
    """
    check_padding_mode(padding_mode)
    if input.ndim != 4:
        raise ValueError(f"input: expected shape (B, C, H, W), got {tuple(input.shape)}")
    for name, tensor in {"weight": weight, "bias": bias}.items():
        if tensor is not None and multiplied_dtype(tensor) != multiplied_dtype(input):
            raise TypeError(f"{name}: expected the input's dtype {input.dtype}, got {tensor.dtype}")
    channels, (out_channels, group_channels) = input.shape[1], weight.shape[:2]
    if group_channels == 0 or channels % group_channels != 0:
        raise ValueError(
            f"weight: expected a number of channels that divides the input's {channels} on axis 1, "
            f"got {group_channels}"
        )
    groups = channels // group_channels
    if groups == 0 or out_channels % groups != 0:
        raise ValueError(
            f"weight: expected a number of output channels divisible by the {groups} groups, got "
            f"{out_channels}"
        )
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"bias: expected shape ({out_channels},), got {tuple(bias.shape)}")
    return geometry.output_size(input.shape[2], input.shape[3])


def check_field(
    name: str, field: Tensor, input: Tensor, channels_per_group: int, output_size: tuple[int, int]
) -> int:
    """Check a field (B, G * channels_per_group, Ho, Wo) over the output, and return G."""
    rows, columns = output_size
    if (
        field.ndim != 4
        or field.shape[0] != input.shape[0]
        or field.shape[2:] != output_size
        or field.shape[1] == 0
        or field.shape[1] % channels_per_group != 0
    ):
        raise ValueError(
            f"{name}: expected shape ({input.shape[0]}, G * {channels_per_group}, {rows}, "
            f"{columns}) for G groups, got {tuple(field.shape)}"
        )
    groups = field.shape[1] // channels_per_group
    check_sample_groups(name, groups, input)
    return groups


def check_sample_groups(name: str, groups: int, input: Tensor) -> None:
    """Check that the input's channels can be split among ``groups`` sets of sampling positions."""
    if input.shape[1] % groups != 0:
        raise ValueError(
            f"{name}: expected a number of groups that divides the input's {input.shape[1]} "
            f"channels, got {groups}"
        )


def n_points(points: Tensor, geometry: ConvGeometry) -> int:
    """Check reference points (n, 2) against a kernel, and return n."""
    taps = math.prod(geometry.kernel_size)
    if points.shape != (taps, 2):
        raise ValueError(
            f"points: expected shape ({taps}, 2), a reference point for every tap of the "
            f"{geometry.kernel_size[0]} x {geometry.kernel_size[1]} kernel, got "
            f"{tuple(points.shape)}"
        )
    return taps
