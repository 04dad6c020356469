"""The contract of a backend: what it is given, what it returns, and in which shapes."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

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
    r"""Where a convolution takes its samples: offsets of the taps, or points in a metric's balls.

    Parameters
    ----------
    kind : {"offsets", "radial", "affine"}
        Offsets, or the map that carries the points into the unit balls.
    field : Tensor, shape (B, G * taps * d, \*out), (B, G, \*out, d, d) or (B, G * n, \*out)
        Offsets of every tap from its standard place in pixels, axis by axis ((dy, dx) in the
        plane), or the matrices of the metrics, or the ``n`` channels of each metric, for each of
        the ``G`` groups among which the channels are split evenly.
    omega : Tensor, shape (B, G, \*out, d), or None
        The one-forms of Randers metrics; None for Riemannian metrics, channels and offsets.
    points : Tensor, shape (taps, d), or None
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
    # Offsets and channels have other axes than metrics: the docstring says which.
    field: Float[Tensor, "batch ..."]
    omega: Float[Tensor, "batch groups *out_size d"] | None = None
    points: Float[Tensor, "taps d"] | None = None
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
    r"""One call of the operator, its arguments checked.

    ``output(x) = bias + sum_k weight_k mask_k(x) input(centre(x) + displacement_k(x))``, read
    between pixels by linear interpolation along each axis, and beyond the image by
    ``padding_mode``. Samples at NaN or infinite positions are zero. The image has ``d`` axes, of
    ``size`` (H, W in the plane).

    Parameters
    ----------
    input : Tensor, shape (B, C, \*size)
    positions : Positions
        For ``sample_groups`` groups of channels.
    weight : Tensor, shape (O, C // weight_groups, \*kernel_size)
    bias : Tensor, shape (O,), or None
    mask : Tensor, shape (B, sample_groups * taps, \*out), or None
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

    input: Float[Tensor, "batch channels *size"]
    positions: Positions
    weight: Float[Tensor, "out_channels group_channels *kernel_size"]
    bias: Float[Tensor, " out_channels"] | None
    mask: Float[Tensor, "batch mask_channels *out_size"] | None
    geometry: ConvGeometry
    padding_mode: PaddingMode

    @property
    def dims(self) -> int:
        """The number ``d`` of the image's axes."""
        return self.geometry.dims

    @property
    def sample_groups(self) -> int:
        """The number of sets of positions at a pixel."""
        channels = self.positions.field.shape[1]
        if self.positions.kind == "offsets":
            return channels // (self.dims * self.geometry.n_taps)
        formula = self.positions.formula
        return channels if formula is None else channels // formula.n_channels

    @property
    def weight_groups(self) -> int:
        """The number of groups of channels that the weights keep apart."""
        return self.input.shape[1] // self.weight.shape[1]

    @property
    def out_size(self) -> tuple[int, ...]:
        """The output's size: rows and columns in the plane."""
        return tuple(self.positions.field.shape[2 : 2 + self.dims])

    @property
    def points(self) -> Float[Tensor, "taps d"]:
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

    def displacements(self) -> Float[Tensor, "batch groups taps d *out_size"]:
        """Return the taps' displacements from the kernel's centre in pixels, in plain PyTorch."""
        field, kind = self.positions.field, self.positions.kind
        if kind == "offsets":
            shape = (self.sample_groups, self.geometry.n_taps, self.dims)
            offsets = field.to(self.positions.dtype)
            offsets = offsets.unflatten(1, shape)
            return offsets + self._everywhere(self.points)
        metrics = self.positions.with_metrics()
        positions = in_balls(
            metrics.field, metrics.omega, self.points, self.geometry.dilation, kind
        )
        return positions.movedim((-2, -1), (2, 3))

    def with_offsets(self) -> "Convolution":
        """Return the convolution with offsets in the place of metrics, by plain PyTorch."""
        if self.positions.kind == "offsets":
            return self
        displacements = self.displacements()
        offsets = displacements - self._everywhere(self.geometry.taps(displacements))
        return replace(self, positions=Positions("offsets", offsets.flatten(1, 3)))

    def as_image(self) -> "Convolution":
        """Return a convolution of one axis as that of an image of one row, which is the same.

        Every sample lies on the row, whose two neighbours have no share in it.
        """
        where, geometry = self.positions, self.geometry
        if where.kind == "offsets":
            both = functional.pad(where.field.unsqueeze(2), (0, 0, 1, 0)).flatten(1, 2)
            positions = Positions("offsets", both.unsqueeze(2))
        else:
            # The ball's extent across the row is of no account; that of the unit disc will do.
            across = functional.pad(where.field.new_ones(1, 1), (0, 1, 0, 1))
            omega, points = (
                None if t is None else functional.pad(t, (1, 0))
                for t in (where.omega, where.points)
            )
            positions = Positions(
                where.kind,
                functional.pad(where.field, (1, 0, 1, 0)).unsqueeze(2) + across,
                None if omega is None else omega.unsqueeze(2),
                points,
            )
        return Convolution(
            self.input.unsqueeze(2),
            positions,
            self.weight.unsqueeze(2),
            self.bias,
            None if self.mask is None else self.mask.unsqueeze(2),
            ConvGeometry(
                (1, *geometry.kernel_size),
                (1, *geometry.stride),
                (1, *geometry.dilation),
                (0, *geometry.padding_before),
                (0, *geometry.padding_after),
            ),
            self.padding_mode,
        )

    def _everywhere(self, points: Float[Tensor, "taps d"]) -> Float[Tensor, "taps d *ones"]:
        """Return points with an axis of one entry for each of the output's."""
        return points.reshape(*points.shape, *(1,) * self.dims)


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

    input: Float[Tensor, "batch channels *size"] | None = None
    field: Float[Tensor, "..."] | None = None
    omega: Float[Tensor, "batch groups *out_size d"] | None = None
    weight: Float[Tensor, "out_channels group_channels *kernel_size"] | None = None
    mask: Float[Tensor, "batch mask_channels *out_size"] | None = None


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
    dims : tuple of int
        The numbers of axes of the images that it takes, two at least. Images of one axis come as
        images of one row; the reference computes what it does not take.

    Examples
    --------
    >>> from finslerconv import ops
    >>> class Same(ops.ConvBackend):  # a backend that hands everything to the reference
    ...     def forward(self, conv):
    ...         return ops.reference.forward(conv)
    >>> ops.register_backend("same", "cpu", Same)
    """

    takes_channels = False
    dims: tuple[int, ...] = (2,)

    @abc.abstractmethod
    def forward(self, conv: Convolution) -> Float[Tensor, "batch out_channels *out_size"]:
        """Return the output, in the dtype and memory format of the input."""

    def backward(
        self,
        grad: Float[Tensor, "batch out_channels *out_size"],
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

    def backward_of_offsets(
        self,
        grad: Float[Tensor, "batch out_channels *out_size"],
        conv: Convolution,
        needs: Needs,
    ) -> Gradients:
        """Return the gradients of a convolution of metrics from those of its offsets.

        For backends whose kernels take offsets only.
        """
        found = self.backward(grad, conv.with_offsets(), needs)
        if not needs.positions:
            return found
        assert found.field is not None
        where = conv.positions

        def offsets(metrics: Sequence[Any]) -> Tensor:
            field, omega = metrics
            given = replace(conv, positions=replace(where, field=field, omega=omega))
            return given.with_offsets().positions.field

        field, omega = differentiate(
            offsets, (where.field, where.omega), (True, where.omega is not None), found.field
        )
        return found._replace(field=field, omega=omega)


def promoted(dtype: torch.dtype, *tensors: Tensor | None) -> torch.dtype:
    """Return the dtype to which all are promoted; None does not count."""
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def in_balls(
    M: Float[Tensor, "*batch d d"],
    omega: Float[Tensor, "*batch d"] | None,
    points: Float[Tensor, "taps d"],
    dilation: tuple[int, ...],
    map: str,
) -> Float[Tensor, "*batch taps d"]:
    """Return the points in the unit balls of the metrics, in pixels, float32 at least."""
    dtype = promoted(torch.float32, M, omega, points)
    M = M.to(dtype)
    metric: Randers | Riemannian
    if omega is None:
        metric = Riemannian(M, validate=False)
    else:
        metric = Randers(M, omega.to(dtype), validate=False)
    g = points.to(dtype).reshape(-1, *(1,) * (M.ndim - 2), M.shape[-1])
    positions = ball_map(map)(metric, g).movedim(0, -2)
    if max(dilation) == 1:
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
    last = channels_last(x.ndim - 2)
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format


def channels_last(dims: int) -> torch.memory_format:
    """Return the layout that PyTorch calls channels last, for images of ``dims`` axes.

    It has none for one axis.
    """
    return {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims, torch.contiguous_format)
