"""Checks of the operators' arguments."""

import torch
from torch import Tensor

from finslerconv.ops._geometry import ConvGeometry, Ints, check_padding_mode, times

# The arguments that may be None.
_OPTIONAL = ("omega", "bias", "mask")


#: The axes of an image in words, by their number.
_AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def geometry_of(
    weight: Tensor, stride: Ints, padding: Ints | str, dilation: Ints, dims: int
) -> ConvGeometry:
    """Return the geometry of a convolution in ``dims`` axes, its arguments checked."""
    if weight.ndim != 2 + dims:
        kernel = ", ".join(f"k{axis.lower()}" for axis in _AXES[dims]) if dims > 1 else "k"
        raise ValueError(
            f"weight: expected shape (O, C // groups, {kernel}), got {tuple(weight.shape)}"
        )
    return ConvGeometry.of(tuple(weight.shape[2:]), stride, padding, dilation, dims=dims)


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
) -> tuple[int, ...]:
    """Check what every convolution takes, and return the size of its output.

    Dtypes are compared after autocast where that is on.
    """
    check_padding_mode(padding_mode)
    if input.ndim != 2 + geometry.dims:
        axes = ", ".join(_AXES[geometry.dims])
        raise ValueError(f"input: expected shape (B, C, {axes}), got {tuple(input.shape)}")
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
    return geometry.output_size(*input.shape[2:])


def check_field(
    name: str, field: Tensor, input: Tensor, channels_per_group: int, output_size: tuple[int, ...]
) -> int:
    """Check a field (B, G * channels_per_group, *output_size), and return G."""
    if (
        field.ndim != input.ndim
        or field.shape[0] != input.shape[0]
        or field.shape[2:] != output_size
        or field.shape[1] == 0
        or field.shape[1] % channels_per_group != 0
    ):
        raise ValueError(
            f"{name}: expected shape ({input.shape[0]}, G * {channels_per_group}, "
            f"{', '.join(map(str, output_size))}) for G groups, got {tuple(field.shape)}"
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


def check_points(points: Tensor, geometry: ConvGeometry) -> None:
    """Check that there is a reference point for every tap of a kernel."""
    expected = (geometry.n_taps, geometry.dims)
    if points.shape != expected:
        raise ValueError(
            f"points: expected shape {expected}, a reference point for every tap of the kernel of "
            f"{times(geometry.kernel_size)}, got {tuple(points.shape)}"
        )


def with_groups(
    name: str, field: Tensor, input: Tensor, output_size: tuple[int, ...], trailing: int
) -> Tensor:
    """Return a checked metric field with its group axis, (B, G, *output_size, d[, d])."""
    dims = len(output_size)
    tail = (*output_size, *(dims,) * trailing)
    shape = tuple(field.shape)
    if len(shape) == 1 + dims + trailing and shape == (input.shape[0], *tail):
        return field.unsqueeze(1)
    if len(shape) == 2 + dims + trailing and shape[0] == input.shape[0] and shape[2:] == tail:
        check_sample_groups(name, shape[1], input)
        return field
    raise ValueError(
        f"{name}: expected shape {(input.shape[0], *tail)}, or with an axis of G metric groups "
        f"after the first, got {shape}"
    )


def check_metric_mask(
    mask: Tensor | None, input: Tensor, groups: int, taps: int, output_size: tuple[int, ...]
) -> None:
    """Check the mask of a convolution with ``groups`` metrics at a pixel."""
    expected = (input.shape[0], groups * taps, *output_size)
    if mask is not None and mask.shape != expected:
        raise ValueError(
            f"mask: expected shape {expected}, {taps} channels for each of the {groups} metrics, "
            f"got {tuple(mask.shape)}"
        )
