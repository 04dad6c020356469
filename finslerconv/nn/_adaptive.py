"""The base classes of the layers that compute their sampling positions from their own input."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from finslerconv import ops
from finslerconv._arrays import has_values, is_integer
from finslerconv._tracing import recorded
from finslerconv.nn._constructor import constructor
from finslerconv.nn._side_conv import channels_of

#: One integer for all axes, or one for each.
Size = int | tuple[int, ...]

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

# The axes of an input, by their number.
_AXES = {1: "L", 2: "H, W", 3: "D, H, W"}

_DEFORM_CONV = {1: ops.deform_conv1d, 2: ops.deform_conv2d, 3: ops.deform_conv3d}

Layer = TypeVar("Layer", bound="AdaptiveConv")


class AdaptiveConv(_ConvNd, abc.ABC):
    """A convolution whose sampling positions are computed from its own input: the base class.

    Layers derive from it through :class:`AdaptiveConv1d`, :class:`AdaptiveConv2d` or
    :class:`AdaptiveConv3d`, which say over how many axes they go. A subclass computes the positions
    (:meth:`_positions`) and the output (:meth:`_convolve`), resets its own parameters
    (:meth:`_reset_sampling`), and says when its positions are the standard ones
    (:meth:`_why_not_standard_positions`). It is an ``nn.Conv2d`` (``nn.Conv1d``, ``nn.Conv3d``) to
    ``isinstance`` too, with the same arguments, weight and bias. Code that replaces the
    convolutions of a model should leave those inside this layer alone.

    In shapes, ``*size`` stands for the axes of the input, ``L``, ``H, W`` or ``D, H, W``, and
    ``*out`` for those of the output.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, \
device, dtype
        As in ``nn.Conv2d``. ``padding_mode`` holds for every sample outside the image.
    sample_groups : int
        The number of sets of positions at each pixel, one for each group of input channels.
    fixed_kernel : bool
        Whether the weights are uniform and not learned, ``1 / (taps in_channels / groups)``: only
        the positions are (the FKW of Dagès et al.).
    modulation : bool
        Whether every sample is multiplied by a learned factor in (0, 2), from 1 at the start.

    Raises
    ------
    ValueError
        If an argument is out of its range; the message says what was expected.

    Attributes
    ----------
    dims : int
        The number of axes, 1, 2 or 3.
    modulation_conv : nn.Module or None
        The convolution that computes the factors of the samples.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import AdaptiveConv2d, MetricConv2d
    >>> layer = MetricConv2d(3, 8, kernel_size=3, padding=1)
    >>> isinstance(layer, AdaptiveConv2d), layer.positions(torch.rand(1, 3, 6, 6)).shape
    (True, torch.Size([1, 6, 6, 9, 2]))
    """

    padding_mode: ops.PaddingMode

    dims: ClassVar[int]

    # The convolution that a layer stands for, and the class of those inside.
    _plain: ClassVar[Any]

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
        sizes = ops.ConvGeometry.of(kernel_size, stride, padding, dilation, dims=self.dims)
        for name, value in (("fixed_kernel", fixed_kernel), ("modulation", modulation)):
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected True or False, got {value!r}")
        # nn.Conv2d's constructor calls reset_parameters before our attributes exist.
        self._constructed = False
        # The next class is the plain convolution, whose arguments these are, and not _ConvNd.
        plain: Any = super()
        plain.__init__(
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
        self.modulation_conv = (
            self._conv_over_output(sample_groups * sizes.n_taps) if modulation else None
        )
        if self.modulation_conv is not None:
            zero_(self.modulation_conv)
        self._constructed = True

    @abc.abstractmethod
    def _positions(self, x: Tensor) -> Tensor:
        r"""Return the displacements from the kernel's centre in pixels, for a batched input.

        Of shape (B, \*out, taps, dims), or (B, sample_groups, \*out, taps, dims) if there is more
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
    def _from_conv(cls: type[Layer], conv: nn.Module, **options: Any) -> Layer:
        reason = unlike_plain(conv, cls._plain)
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
    def _with_arguments_of(cls: type[Layer], conv: Any, **options: Any) -> Layer:
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

    def positions(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""Return the sampling positions for the input ``x``.

        Parameters
        ----------
        x : Tensor, shape (B, C, \*size) or (C, \*size)

        Returns
        -------
        Tensor, shape (B, \*out, taps, dims), or (B, groups, \*out, taps, dims)
            Displacements from the kernel's centre at each output pixel, in pixels and in the order
            of the axes (for images down, right), the taps in the order of the kernel (row-major),
            in float32 at least. :meth:`geometry` says where the centres are. The axis of groups is
            there if there is more than one set of positions (``metric_groups``,
            ``offset_groups``).
        """
        return self._positions(self._batched(x))

    def modulation(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."] | None:
        r"""Return the factors of the samples for the input ``x``; None without modulation.

        Parameters
        ----------
        x : Tensor, shape (B, C, \*size) or (C, \*size)

        Returns
        -------
        Tensor, shape (B, \*out, taps), or (B, groups, \*out, taps), or None
            Each in (0, 2), in the order of the kernel.
        """
        mask = self._mask(self._batched(x))
        if mask is None:
            return None
        factors = mask.unflatten(1, (self.sample_groups, -1)).movedim(2, -1)
        return factors.squeeze(1) if self.sample_groups == 1 else factors

    def geometry(self) -> ops.ConvGeometry:
        """Return kernel size, stride, padding and dilation, and with them the kernel's centres."""
        return ops.ConvGeometry.of(
            self.kernel_size, self.stride, self.padding, self.dilation, dims=self.dims
        )

    def why_not_standard(self) -> str | None:
        """Return what makes the layer more than a standard convolution, or None if nothing does.

        None means that it computes, for every input, what the plain convolution of the same
        arguments does (with its weights multiplied tap by tap, where a modulation is constant):
        :func:`finslerconv.nn.convert_back` makes it one.
        """
        reason = self._why_not_standard_positions()
        if reason is None and self.modulation_conv is not None:
            reason = nonzero("modulation_conv.weight", self.modulation_conv.weight)
        return reason

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        r"""Return the convolution of ``input``, shape (B, O, \*out) or (O, \*out).

        Parameters
        ----------
        input : Tensor, shape (B, C, \*size) or (C, \*size)
        """
        return _output(self, input)

    @property
    def itself(self) -> "AdaptiveConv":
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
        if self.sample_groups == 1:
            offsets = offsets.unsqueeze(1)
        return self._deform(x, offsets.movedim((-2, -1), (2, 3)).flatten(1, 3), mask)

    def _deform(self, x: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
        """Return the convolution at offsets as ``ops.deform_conv2d`` takes them."""
        return _DEFORM_CONV[self.dims](
            x, offsets, *self._arguments(mask), padding_mode=self.padding_mode
        )

    def _arguments(self, mask: Tensor | None) -> tuple[Any, ...]:
        """Return what the operators take after the positions."""
        return (self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def _mask(self, x: Tensor) -> Tensor | None:
        if self.modulation_conv is None:
            return None
        return 2 * torch.sigmoid(channels_of(self.modulation_conv, x))

    def _conv_over_output(self, channels: int) -> Any:
        """Return a convolution from the input to ``channels`` numbers at each output pixel."""
        like = own_tensor(self)
        return self._plain(
            self.in_channels, channels, self.kernel_size, self.stride, self.padding, self.dilation,
            padding_mode=self.padding_mode, device=like.device, dtype=like.dtype,
        )  # fmt: skip

    def _batched(self, x: Tensor) -> Tensor:
        """Return a checked input with its batch axis."""
        like = own_tensor(self)
        if not isinstance(x, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(x).__name__}")
        axes = self.dims + 1
        if x.ndim not in (axes, axes + 1) or x.shape[-axes] != self.in_channels:
            shape = f"{self.in_channels}, {_AXES[self.dims]}"
            raise ValueError(
                f"input: expected shape (B, {shape}) or ({shape}), got {tuple(x.shape)}"
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
        return x if x.ndim > axes else x.unsqueeze(0)

    @torch.no_grad()
    def _reset_fixed_kernel(self) -> None:
        self.weight.fill_(1 / self.weight[0].numel())
        if self.bias is not None:
            self.bias.zero_()


@recorded
def _output(layer: AdaptiveConv, input: Tensor) -> Tensor:
    x = layer._batched(input)
    output = layer._convolve(x, layer._mask(x))
    return output if input.ndim == x.ndim else output.squeeze(0)


class AdaptiveConv1d(AdaptiveConv, nn.Conv1d):
    """A convolution over one axis whose sampling positions are computed from its own input.

    The base class of :class:`DeformConv1d` and :class:`MetricConv1d`; see :class:`AdaptiveConv`.

    Examples
    --------
    >>> from finslerconv.nn import AdaptiveConv1d, DeformConv1d
    >>> layer = DeformConv1d(3, 8, kernel_size=3)
    >>> isinstance(layer, AdaptiveConv1d), layer.dims
    (True, 1)
    """

    dims = 1
    _plain = nn.Conv1d

    @classmethod
    def from_conv1d(cls: type[Layer], conv: nn.Conv1d, **options: Any) -> Layer:
        """Return a layer that begins as an ``nn.Conv1d``; as :meth:`AdaptiveConv2d.from_conv2d`."""
        return cls._from_conv(conv, **options)


class AdaptiveConv2d(AdaptiveConv, nn.Conv2d):
    """A convolution over two axes whose sampling positions are computed from its own input.

    The base class of the layers for images; see :class:`AdaptiveConv`.

    Examples
    --------
    >>> from finslerconv.nn import AdaptiveConv2d, DeformConv2d
    >>> layer = DeformConv2d(3, 8, kernel_size=3)
    >>> isinstance(layer, AdaptiveConv2d), layer.dims
    (True, 2)
    """

    dims = 2
    _plain = nn.Conv2d

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
        return cls._from_conv(conv, **options)


class AdaptiveConv3d(AdaptiveConv, nn.Conv3d):
    """A convolution over three axes whose sampling positions are computed from its own input.

    The base class of :class:`DeformConv3d` and :class:`MetricConv3d`; see :class:`AdaptiveConv`.

    Examples
    --------
    >>> from finslerconv.nn import AdaptiveConv3d, DeformConv3d
    >>> layer = DeformConv3d(3, 8, kernel_size=3)
    >>> isinstance(layer, AdaptiveConv3d), layer.dims
    (True, 3)
    """

    dims = 3
    _plain = nn.Conv3d

    @classmethod
    def from_conv3d(cls: type[Layer], conv: nn.Conv3d, **options: Any) -> Layer:
        """Return a layer that begins as an ``nn.Conv3d``; as :meth:`AdaptiveConv2d.from_conv2d`."""
        return cls._from_conv(conv, **options)


def unlike_plain(module: nn.Module, plain: type[Any]) -> str | None:
    """Return why a module does not compute what ``plain`` does, ``nn.Conv2d`` or such; or None."""
    name = f"nn.{plain.__name__}"
    if not isinstance(module, plain):
        return f"expected an {name}, got {type(module).__name__}"
    cls: Any = type(module)
    if cls.forward is not plain.forward or cls._conv_forward is not plain._conv_forward:
        return (
            f"{cls.__name__} computes something else than {name}, which would be lost; make it "
            "a plain convolution first (finslerconv.nn.convert_back does for this library's "
            "layers)"
        )
    if "forward" in vars(module):
        return "its forward was replaced on the object, which would be lost"
    if isinstance(module._parameters.get("weight"), nn.UninitializedParameter):
        return "is lazy and has no weights yet; run it once first"
    return None


def own_tensor(conv: Any) -> Tensor:
    """Return a tensor of a layer's device and dtype, without computing a parametrised weight."""
    if parametrize.is_parametrized(conv, "weight"):
        functions = conv.parametrizations["weight"]
        # A parameter, or the buffer of a fixed kernel. The parametrisation may be elsewhere.
        return functions.original if functions.is_tensor else functions.original0
    weight: Tensor = conv.weight
    return weight


@torch.no_grad()
def zero_(conv: nn.Module) -> None:
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
