"""The base class of the layers that compute their sampling positions from their own input."""

import abc
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finslerconv import ops
from finslerconv._arrays import has_values, is_integer
from finslerconv._tracing import recorded
from finslerconv.nn._constructor import constructor

Size = int | tuple[int, int]

_CONV_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)

Layer = TypeVar("Layer", bound="AdaptiveConv2d")


class AdaptiveConv2d(nn.Conv2d, abc.ABC):
    """A convolution whose sampling positions are computed from its own input: the base class.

    A subclass computes the positions (:meth:`_positions`) and the output (:meth:`_convolve`),
    resets its own parameters (:meth:`_reset_sampling`), and says when its positions are the
    standard ones (:meth:`_why_not_standard_positions`). It is an ``nn.Conv2d`` to ``isinstance``
    too, with the same arguments, weight and bias. Code that replaces the convolutions of a model
    should leave those inside this layer alone.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype
        As in ``nn.Conv2d``. ``padding_mode`` holds for every sample outside the image.
    sample_groups : int
        The number of sets of positions at each pixel, one for each group of input channels.
    fixed_kernel : bool
        Whether the weights are uniform and not learned, ``1 / (kh kw in_channels / groups)``: only
        the positions are (the FKW of Dagès et al.).
    modulation : bool
        Whether every sample is multiplied by a learned factor in (0, 2), from 1 at the start.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Attributes
    ----------
    modulation_conv : nn.Conv2d or None
        The convolution that computes the factors of the samples.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import AdaptiveConv2d, MetricConv2d
    >>> layer = MetricConv2d(3, 8, kernel_size=3, padding=1)
    >>> isinstance(layer, AdaptiveConv2d), layer.positions(torch.rand(1, 3, 6, 6)).shape
    (True, torch.Size([1, 6, 6, 9, 2]))
    """

    # What nn.Conv2d makes of its arguments.
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    padding_mode: ops.PaddingMode

    # The name of the argument sample_groups in a subclass.
    _groups_argument = "sample_groups"

    @constructor
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: ops.PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        sample_groups: int = 1,
        fixed_kernel: bool = False,
        modulation: bool = False,
    ) -> None:
        # nn.Conv2d does not check these.
        sizes = ops.ConvGeometry.of(kernel_size, stride, padding, dilation)
        for name, value in (("fixed_kernel", fixed_kernel), ("modulation", modulation)):
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected True or False, got {value!r}")
        # nn.Conv2d's constructor calls reset_parameters before our attributes exist.
        self._constructed = False
        super().__init__(
            in_channels, out_channels, sizes.kernel_size, sizes.stride,
            padding if isinstance(padding, str) else sizes.padding_before, sizes.dilation, groups,
            bias, padding_mode, device, dtype,
        )  # fmt: skip
        if not is_integer(sample_groups) or sample_groups < 1 or in_channels % sample_groups:
            raise ValueError(
                f"{self._groups_argument}: expected a divisor of the {in_channels} input channels, "
                f"got {sample_groups}"
            )
        self.sample_groups = int(sample_groups)
        self.fixed_kernel = fixed_kernel
        if fixed_kernel:
            weight = self.weight.detach()
            del self.weight
            self.register_buffer("weight", weight)
            self._reset_fixed_kernel()
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.modulation_conv = self._conv_over_output(sample_groups * taps) if modulation else None
        if self.modulation_conv is not None:
            zero_(self.modulation_conv)
        self._constructed = True

    @abc.abstractmethod
    def _positions(self, x: Tensor) -> Tensor:
        """Return the displacements from the kernel's centre in pixels, for a batched input.

        Of shape (B, Ho, Wo, kh * kw, 2), or (B, sample_groups, Ho, Wo, kh * kw, 2) if there is more
        than one group.
        """

    @abc.abstractmethod
    def _convolve(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the convolution of a batched input with the factors ``mask`` of its samples.

        :meth:`_convolve_at` does it for positions of any kind; a subclass may have a quicker way.
        """

    @abc.abstractmethod
    def _reset_sampling(self) -> None:
        """Reset what computes the positions."""

    @abc.abstractmethod
    def _why_not_standard_positions(self) -> str | None:
        """Return why the positions are not the standard taps for every input, or None."""

    @classmethod
    def from_conv2d(cls: type[Layer], conv: nn.Conv2d, **options: Any) -> Layer:
        """Return a layer of this class that begins as the convolution ``conv``.

        Parameters
        ----------
        conv : nn.Conv2d
            Its arguments, weights, device, dtype, training mode and ``requires_grad`` are taken
            over; it is left as it is, and shares nothing with the result. Not a class that
            computes something else from them, such as one of these layers.
        **options
            The keyword arguments of the class after ``dtype``. With the defaults the output is
            that of ``conv`` until training moves it.

        Returns
        -------
        AdaptiveConv2d
            Of the class on which this was called.

        Raises
        ------
        TypeError
            If ``conv`` is not an (initialised) ``nn.Conv2d``.
        ValueError
            If ``fixed_kernel`` is asked for, which would discard the weights.
        """
        reason = unlike_conv2d(conv)
        if reason is not None:
            raise TypeError(f"conv: {reason}")
        if options.get("fixed_kernel"):
            raise ValueError(
                f"fixed_kernel: would discard the weights of conv; construct {cls.__name__} "
                "directly"
            )
        layer = cls._with_arguments_of(conv, **options)
        for name in ("weight", "bias"):
            source, target = getattr(conv, name), getattr(layer, name)
            if source is not None:
                target.data.copy_(source.data)
                target.requires_grad_(source.requires_grad)
        return layer.train(conv.training)

    @classmethod
    def _with_arguments_of(cls: type[Layer], conv: nn.Conv2d, **options: Any) -> Layer:
        """Return a new layer with the arguments, device and dtype of ``conv``, not its weights."""
        arguments = {name: getattr(conv, name) for name in _CONV_ARGUMENTS}
        like = own_tensor(conv)
        return cls(
            **arguments, bias=conv.bias is not None, device=like.device, dtype=like.dtype, **options
        )

    def reset_parameters(self) -> None:
        """Start anew: the weights as ``nn.Conv2d`` does, the positions as the standard ones."""
        if not self._constructed:
            super().reset_parameters()
            return
        if self.fixed_kernel:
            self._reset_fixed_kernel()
        else:
            super().reset_parameters()
        self._reset_sampling()
        if self.modulation_conv is not None:
            zero_(self.modulation_conv)

    def positions(self, x: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "..."]:
        """Return the sampling positions for the input ``x``.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W) or (C, H, W)

        Returns
        -------
        Tensor, shape (B, Ho, Wo, kh * kw, 2), or (B, groups, Ho, Wo, kh * kw, 2)
            Displacements (down, right) from the kernel's centre at each output pixel, in pixels,
            in the order of the kernel (row-major), in float32 at least. :meth:`geometry` says
            where the centres are. The axis of groups is there if there is more than one set of
            positions (``metric_groups``, ``offset_groups``).
        """
        return self._positions(self._batched(x))

    def modulation(
        self, x: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "..."] | None:
        """Return the factors of the samples for the input ``x``; None without modulation.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W) or (C, H, W)

        Returns
        -------
        Tensor, shape (B, Ho, Wo, kh * kw), or (B, groups, Ho, Wo, kh * kw), or None
            Each in (0, 2), in the order of the kernel.
        """
        mask = self._mask(self._batched(x))
        if mask is None:
            return None
        factors = mask.unflatten(1, (self.sample_groups, -1)).movedim(2, -1)
        return factors.squeeze(1) if self.sample_groups == 1 else factors

    def geometry(self) -> ops.ConvGeometry:
        """Return kernel size, stride, padding and dilation, and with them the kernel's centres."""
        return ops.ConvGeometry.of(self.kernel_size, self.stride, self.padding, self.dilation)

    def why_not_standard(self) -> str | None:
        """Return what makes the layer more than a standard convolution, or None if nothing does.

        None means that it computes, for every input, what an ``nn.Conv2d`` of the same arguments
        does (with its weights multiplied tap by tap, where a modulation is constant):
        :func:`finslerconv.nn.convert_back` makes it one.
        """
        reason = self._why_not_standard_positions()
        if reason is None and self.modulation_conv is not None:
            reason = nonzero("modulation_conv.weight", self.modulation_conv.weight)
        return reason

    def forward(
        self, input: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch out_channels out_height out_width"]:
        """Return the convolution of ``input``, shape (B, O, Ho, Wo) or (O, Ho, Wo).

        Parameters
        ----------
        input : Tensor, shape (B, C, H, W) or (C, H, W)
        """
        return _output(self, input)

    @property
    def itself(self) -> "AdaptiveConv2d":
        """The layer itself, under a name for the root of a symbolic trace."""
        return self

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        parts = [super().extra_repr(), *self._repr_parts()]  # type: ignore[no-untyped-call]
        if self.fixed_kernel:
            parts.append("fixed_kernel=True")
        return ", ".join(parts)

    def _repr_parts(self) -> Sequence[str]:
        return ()

    def _convolve_at(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Return the convolution at positions as :meth:`_positions` returns them."""
        offsets = positions - self.geometry().taps(positions)
        if offsets.ndim == 5:
            offsets = offsets.unsqueeze(1)
        offsets = offsets.movedim((-2, -1), (2, 3)).flatten(1, 3)
        return ops.deform_conv2d(x, offsets, *self._arguments(mask), padding_mode=self.padding_mode)

    def _arguments(self, mask: Tensor | None) -> tuple[Any, ...]:
        """Return what the operators take after the positions."""
        return (self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def _mask(self, x: Tensor) -> Tensor | None:
        if self.modulation_conv is None:
            return None
        return 2 * torch.sigmoid(self.modulation_conv(x))

    def _conv_over_output(self, channels: int) -> nn.Conv2d:
        """Return a convolution from the input to ``channels`` numbers at each output pixel."""
        like = own_tensor(self)
        return nn.Conv2d(
            self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation,
            padding_mode=self.padding_mode, device=like.device, dtype=like.dtype,
        )  # fmt: skip

    def _batched(self, x: Tensor) -> Tensor:
        """Return a checked input with its batch axis."""
        like = own_tensor(self)
        if not isinstance(x, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(x).__name__}")
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"input: expected shape (B, {self.in_channels}, H, W) or "
                f"({self.in_channels}, H, W), got {tuple(x.shape)}"
            )
        if x.device != like.device:
            raise ValueError(
                f"input: expected the layer's device {like.device}, got {x.device}; move the input "
                "or the layer"
            )
        if ops.multiplied_dtype(x) != ops.multiplied_dtype(like):
            raise TypeError(
                f"input: expected the layer's dtype {like.dtype}, got {x.dtype}; convert the input "
                "or the layer (layer.to(...))"
            )
        return x if x.ndim == 4 else x.unsqueeze(0)

    @torch.no_grad()
    def _reset_fixed_kernel(self) -> None:
        self.weight.fill_(1 / self.weight[0].numel())
        if self.bias is not None:
            self.bias.zero_()


@recorded
def _output(layer: AdaptiveConv2d, input: Tensor) -> Tensor:
    x = layer._batched(input)
    output = layer._convolve(x, layer._mask(x))
    return output if input.ndim == 4 else output.squeeze(0)


def unlike_conv2d(module: nn.Module) -> str | None:
    """Return why a module does not compute what ``nn.Conv2d`` does, or None if it does."""
    if not isinstance(module, nn.Conv2d):
        return f"expected an nn.Conv2d, got {type(module).__name__}"
    cls = type(module)
    if cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward:
        return (
            f"{cls.__name__} computes something else than nn.Conv2d, which would be lost; make it "
            "a plain convolution first (finslerconv.nn.convert_back does for this library's "
            "layers)"
        )
    if "forward" in vars(module):
        return "its forward was replaced on the object, which would be lost"
    if isinstance(module._parameters.get("weight"), nn.UninitializedParameter):
        return "is lazy and has no weights yet; run it once first"
    return None


def own_tensor(conv: nn.Conv2d) -> Tensor:
    """Return a tensor of a layer's device and dtype, without computing a parametrised weight."""
    if parametrize.is_parametrized(conv, "weight"):
        functions: Any = conv.parametrizations["weight"]  # type: ignore[index]
        # A parameter, or the buffer of a fixed kernel. The parametrisation may be elsewhere.
        return functions.original if functions.is_tensor else functions.original0
    return conv.weight


@torch.no_grad()
def zero_(conv: nn.Conv2d) -> None:
    """Set the weights and biases of a convolution to zero."""
    for parameter in conv.parameters():
        parameter.zero_()


def nonzero(name: str, values: Tensor | None) -> str | None:
    """Return the sentence that a tensor is not all zeros, or None."""
    if values is not None and not has_values(values):
        return f"{name} is on the meta device, and has no values yet"
    if values is None or not values.any():
        return None
    return f"{name} is not zero (its largest value is {values.detach().abs().max().item():.3g})"
