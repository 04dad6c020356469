"""The modules: ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` with a density on their taps."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from finslerconv._tracing import recorded
from finslerconv.nn._constructor import constructor
from finslerconv.nn.weighted._density import Density, DensityLike, as_density


class Weighted(_ConvNd):
    """What the three modules share: a density beside the weight, and the forward pass."""

    density: Density

    @constructor
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: DensityLike,
    ) -> None:
        # The next class is the plain convolution, whose arguments these are, and not _ConvNd.
        plain: Any = super()
        plain.__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip
        self.density = as_density(density, self.kernel_size, self.weight)

    @property
    def effective_weight(self) -> Float[Tensor, "..."]:
        """The kernel that is applied, ``weight * Phi``; the parameter ``weight`` lacks Phi."""
        return self.weight * self.density().to(self.weight.dtype)

    @property
    def itself(self) -> "Weighted":
        """The layer, by a name for it where it is the root of a symbolic trace."""
        return self

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Convolve ``input`` with ``weight * Phi``."""
        return _output(self, input)


@recorded
def _output(layer: Any, x: Tensor) -> Tensor:
    return layer._conv_forward(x, layer.effective_weight, layer.bias)


class WeightedConv1d(Weighted, nn.Conv1d):
    r"""``nn.Conv1d`` whose kernel is multiplied tap by tap with a density.

    The arguments of :class:`torch.nn.Conv1d`, and ``density``; see :class:`WeightedConv2d`.

    Examples
    --------
    >>> import torch
    >>> WeightedConv1d(1, 1, 3, density=[0.7])(torch.ones(1, 1, 8)).shape
    torch.Size([1, 1, 6])
    """


class WeightedConv2d(Weighted, nn.Conv2d):
    r"""``nn.Conv2d`` whose kernel is multiplied tap by tap with a density.

    .. math:: y(x) = b + \sum_g \Phi(g) \, w(g) \, f(x + g)

    The arguments of :class:`torch.nn.Conv2d`, and ``density``. It has as many trainable weights
    as ``nn.Conv2d`` (and those of the density, if it is trained), is one to every ``isinstance``,
    and :func:`fold` makes it one again, with the same output. The parameter ``weight`` is the
    kernel without Phi; ``effective_weight`` is the kernel that is applied.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in :class:`torch.nn.Conv2d`.
    device, dtype
        As there; a density made from a profile or a tensor follows them.
    density : Density, Tensor, or sequence
        A density for this kernel size, which may be shared with other layers; or a tensor of the
        kernel's shape (a fixed :class:`TensorDensity`); or a profile such as ``[0.2, 0.8]``, or
        one per axis (a fixed :class:`SeparableDensity`).

    Raises
    ------
    TypeError
        If ``density`` is none of these.
    ValueError
        If it does not fit the kernel size.

    Notes
    -----
    Source: Cammarasana and Patanè, arXiv 2505.24558. ``state_dict`` keys: ``weight``, ``bias`` as
    in ``nn.Conv2d``, and ``density.phi`` (fixed) or the density's parameters under ``density.``.

    Examples
    --------
    >>> import torch
    >>> conv = WeightedConv2d(3, 8, 5, padding=2, density=[0.2, 0.8])
    >>> conv(torch.rand(1, 3, 16, 16)).shape
    torch.Size([1, 8, 16, 16])
    """


class WeightedConv3d(Weighted, nn.Conv3d):
    r"""``nn.Conv3d`` whose kernel is multiplied tap by tap with a density.

    The arguments of :class:`torch.nn.Conv3d`, and ``density``; see :class:`WeightedConv2d`.

    Examples
    --------
    >>> import torch
    >>> WeightedConv3d(1, 1, 3, density=[0.8])(torch.ones(1, 1, 8, 8, 8)).shape
    torch.Size([1, 1, 6, 6, 6])
    """


#: The module of this library for each of PyTorch's.
WEIGHTED: dict[type[_ConvNd], type[Weighted]] = {
    nn.Conv1d: WeightedConv1d,
    nn.Conv2d: WeightedConv2d,
    nn.Conv3d: WeightedConv3d,
}
