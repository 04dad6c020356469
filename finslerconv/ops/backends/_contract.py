"""The contract of a backend: what it is given, what it returns, and in which shapes."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._head_formula import HeadFormula
from finslerconv._transforms import is_transformed
from finslerconv.balls import ball_map
from finslerconv.metrics import Randers, Riemannian
from finslerconv.ops._geometry import ConvGeometry, PaddingMode
from finslerconv.ops.backends._derivatives import differentiate

#: What the field of :class:`Positions` holds.
PositionKind = Literal["offsets", "radial", "affine"]


@dataclass(frozen=True)
class Positions:
    """Where a convolution takes its samples: offsets of the taps, or points in a metric's balls.

    Parameters
    ----------
    kind : {"offsets", "radial", "affine"}
        Offsets, or the map that carries the points into the unit balls.
    field : Tensor, shape (B, G * taps * 2, Ho, Wo), (B, G, Ho, Wo, 2, 2) or (B, G * n, Ho, Wo)
        Offsets (dy, dx) of every tap from its standard place in pixels, or the matrices of the
        metrics, or the ``n`` channels of each metric, for each of the ``G`` groups among which the
        channels are split evenly.
    omega : Tensor, shape (B, G, Ho, Wo, 2), or None
        The one-forms of Randers metrics; None for Riemannian metrics, channels and offsets.
    points : Tensor, shape (taps, 2), or None
        Reference points in the Euclidean unit ball; None for offsets.
    formula : HeadFormula or None
        What makes metrics of channels, if the field holds these.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import Positions
    >>> M = torch.eye(2).expand(1, 1, 6, 6, 2, 2)
    >>> positions = Positions("radial", M, points=torch.zeros(9, 2))
    >>> positions.kind, positions.dtype
    ('radial', torch.float32)
    """

    kind: PositionKind
    field: (
        Float[Tensor, "batch field_channels out_height out_width"]
        | Float[Tensor, "batch groups out_height out_width 2 2"]
    )
    omega: Float[Tensor, "batch groups out_height out_width 2"] | None = None
    points: Float[Tensor, "taps 2"] | None = None
    formula: HeadFormula | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the positions: at least float32, since half cannot name far pixels."""
        return promoted(torch.float32, self.field, self.omega, self.points)

    def with_metrics(self) -> "Positions":
        """Return the positions with matrices and one-forms in place of channels."""
        if self.formula is None:
            return self
        M, omega = self.formula.metrics(self.field)
        return Positions(self.kind, M, omega, self.points)


@dataclass(frozen=True)
class Convolution:
    """One call of the operator, its arguments checked.

    ``output(x) = bias + sum_k weight_k mask_k(x) input(centre(x) + displacement_k(x))``, read
    between pixels by bilinear interpolation, and beyond the image by ``padding_mode``. Samples at
    NaN or infinite positions are zero.

    Parameters
    ----------
    input : Tensor, shape (B, C, H, W)
    positions : Positions
        For ``sample_groups`` groups of channels.
    weight : Tensor, shape (O, C // weight_groups, kh, kw)
    bias : Tensor, shape (O,), or None
    mask : Tensor, shape (B, sample_groups * taps, Ho, Wo), or None
        A factor for every sample.
    geometry : ConvGeometry
    padding_mode : {"zeros", "reflect", "replicate", "circular"}

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import ConvGeometry, Convolution, Positions
    >>> offset = torch.zeros(1, 18, 6, 6)
    >>> geometry = ConvGeometry.of((3, 3), padding=(1, 1))
    >>> conv = Convolution(
    ...     input=torch.rand(1, 2, 6, 6), positions=Positions("offsets", offset),
    ...     weight=torch.rand(4, 2, 3, 3), bias=None, mask=None,
    ...     geometry=geometry, padding_mode="zeros",
    ... )
    >>> conv.sample_groups, conv.weight_groups, conv.out_size
    (1, 1, (6, 6))
    """

    input: Float[Tensor, "batch channels height width"]
    positions: Positions
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"]
    bias: Float[Tensor, " out_channels"] | None
    mask: Float[Tensor, "batch mask_channels out_height out_width"] | None
    geometry: ConvGeometry
    padding_mode: PaddingMode

    @property
    def sample_groups(self) -> int:
        """The number of sets of positions at a pixel."""
        channels = self.positions.field.shape[1]
        if self.positions.kind == "offsets":
            return channels // (2 * self.geometry.n_taps)
        formula = self.positions.formula
        return channels if formula is None else channels // formula.n_channels

    @property
    def weight_groups(self) -> int:
        """The number of groups of channels that the weights keep apart."""
        return self.input.shape[1] // self.weight.shape[1]

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows, columns = self.positions.field.shape[2:4]
        return rows, columns

    @property
    def points(self) -> Float[Tensor, "taps 2"]:
        """The reference points, or for offsets the taps' standard places around the centre."""
        if self.positions.points is not None:
            return self.positions.points
        like = self.positions.field.new_empty(0, dtype=self.positions.dtype)
        return self.geometry.taps(like)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds positions, image, weights and mask without loss."""
        return promoted(self.positions.dtype, self.input, self.weight, self.mask)

    @property
    def differentiated(self) -> tuple[Tensor | None, ...]:
        """The tensors whose gradients a backend computes, in the order of Gradients."""
        where = self.positions
        return self.input, where.field, where.omega, self.weight, self.mask

    def with_differentiated(self, tensors: Sequence[Any]) -> "Convolution":
        """Return the convolution of other such tensors, without bias."""
        input, field, omega, weight, mask = tensors
        positions = replace(self.positions, field=field, omega=omega)
        return replace(self, input=input, positions=positions, weight=weight, bias=None, mask=mask)

    def displacements(self) -> Float[Tensor, "batch groups taps 2 out_height out_width"]:
        """Return the taps' displacements from the kernel's centre in pixels, in plain PyTorch."""
        field, kind = self.positions.field, self.positions.kind
        if kind == "offsets":
            groups, taps = self.sample_groups, self.geometry.n_taps
            offsets = field.to(self.positions.dtype).unflatten(1, (groups, taps, 2))
            return offsets + self.points[..., None, None]
        metrics = self.positions.with_metrics()
        positions = in_balls(
            metrics.field, metrics.omega, self.points, self.geometry.dilation, kind
        )
        return positions.movedim((-2, -1), (2, 3))


class Needs(NamedTuple):
    """The gradients that are wanted; ``positions`` includes the mask.

    Examples
    --------
    >>> from finslerconv.ops import Needs
    >>> Needs(input=False)
    Needs(input=False, positions=True, weight=True)
    """

    input: bool = True
    positions: bool = True
    weight: bool = True

    @property
    def each(self) -> tuple[bool, bool, bool, bool, bool]:
        """Whether each of :class:`Gradients` is needed."""
        return self.input, self.positions, self.positions, self.weight, self.positions


class Gradients(NamedTuple):
    """The gradients of a convolution's arguments, in their shapes; None where not needed.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import Gradients
    >>> Gradients(input=torch.zeros(1, 3, 8, 8)).weight is None
    True
    """

    input: Float[Tensor, "batch channels height width"] | None = None
    field: Float[Tensor, "..."] | None = None
    omega: Float[Tensor, "batch groups out_height out_width 2"] | None = None
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"] | None = None
    mask: Float[Tensor, "batch mask_channels out_height out_width"] | None = None


class ConvBackend(abc.ABC):
    """The base class of what computes the convolutions for one type of device.

    A subclass computes the output. Its gradients follow by automatic differentiation if it uses
    PyTorch's operations; compiled code has a :meth:`backward` of its own. Autocast and
    ``torch.compile`` are handled outside, ``torch.func`` and second derivatives by the reference.
    See :func:`register_backend`.

    Attributes
    ----------
    takes_channels : bool
        Whether positions may come as the channels of a head with their formula
        (``Positions.formula``); otherwise they come as metrics.

    Examples
    --------
    >>> from finslerconv import ops
    >>> class Same(ops.ConvBackend):  # a backend that hands everything to the reference
    ...     def forward(self, conv):
    ...         return ops.reference.forward(conv)
    >>> ops.register_backend("same", "cpu", Same)
    """

    takes_channels = False

    @abc.abstractmethod
    def forward(
        self, conv: Convolution
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Return the output, in the dtype and memory format of the input."""

    def backward(
        self,
        grad: Float[Tensor, "batch out_channels out_height out_width"],
        conv: Convolution,
        needs: Needs,
    ) -> Gradients:
        """Return the gradients that are needed, from that of the output.

        The reference points have no gradient, and that of the bias is computed outside.
        """
        found = differentiate(
            lambda tensors: self.forward(conv.with_differentiated(tensors)),
            conv.differentiated,
            needs.each,
            grad,
        )
        return Gradients(*found)


def promoted(dtype: torch.dtype, *tensors: Tensor | None) -> torch.dtype:
    """Return the dtype to which all are promoted; None does not count."""
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def in_balls(
    M: Float[Tensor, "*batch 2 2"],
    omega: Float[Tensor, "*batch 2"] | None,
    points: Float[Tensor, "taps 2"],
    dilation: tuple[int, int],
    map: str,
) -> Float[Tensor, "*batch taps 2"]:
    """Return the points in the unit balls of the metrics, in pixels, float32 at least."""
    dtype = promoted(torch.float32, M, omega, points)
    M = M.to(dtype)
    metric: Randers | Riemannian
    if omega is None:
        metric = Riemannian(M, validate=False)
    else:
        metric = Randers(M, omega.to(dtype), validate=False)
    g = points.to(dtype).reshape(-1, *(1,) * (M.ndim - 2), 2)
    positions = ball_map(map)(metric, g).movedim(0, -2)
    if dilation == (1, 1):
        return positions
    return positions * torch.tensor(dilation, dtype=dtype, device=positions.device)


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the layout of the output for an input ``x``: channels first where it is both.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import memory_format
    >>> x = torch.rand(1, 3, 8, 8).to(memory_format=torch.channels_last)
    >>> memory_format(x)
    torch.channels_last
    """
    # Inside vmap the question has no answer.
    if is_transformed() or x.is_contiguous():
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
