"""The samples that a layer takes, at every place where it computes an output."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import as_integer
from finslerconv.balls import ReferenceSet, lattice
from finslerconv.metrics import Randers, Riemannian
from finslerconv.ops import ConvGeometry, MapName

#: Multiples of it, modulo 1, are spread evenly, and in step with no row of a picture.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False, repr=False)
class KernelPositions:
    """The samples that a layer takes around every output pixel, or around every query.

    Parameters
    ----------
    points : Tensor, shape (B, Ho, Wo, n, 2), or (B, G, Ho, Wo, n, 2) for ``G > 1`` groups
        Displacements (down, right) from the kernel's centre, in pixels of the layer's input, in
        the order of the kernel (row-major); float32 at least. The queries of an attention are one
        row, ``Ho = 1``, and its heads are the groups.
    geometry : ConvGeometry or None
        Kernel, stride, padding and dilation; with them the centres. None for samples around given
        ``places``.
    input_size : tuple of int
        Rows and columns of the layer's input.
    kind : str
        What the layer is: ``"standard"``, ``"dilated"``, ``"weighted"``, ``"shifted"``,
        ``"deformable"``, ``"metric"``, ``"geodesic"``, ``"dcnv3"``, ``"dcnv4"``, ``"attention"``,
        or the name of a class from elsewhere.
    adaptive : bool
        Whether the positions depend on the input.
    modulation : Tensor, shape of ``points`` without the last axis, optional
        A factor of every sample: DCNv2's mask, the density of a weighted convolution, the weights
        of an attention.
    weight : Tensor, shape (O, C // groups, kh, kw), optional
        The layer's kernel.
    reference : ReferenceSet, optional
        The places of the taps in the Euclidean unit ball; by default those of the lattice, which
        are the taps divided by the kernel's radius. None if the samples have no such places.
    map : {"radial", "affine"}, optional
        How the layer's metric carries these into its ball; None for layers that have no metric.
    metric : Randers or Riemannian, optional
        The layer's own metric, whose unit balls it samples: batch (B, [G,] Ho, Wo), lengths in
        pixels. None for layers that have none, or one of another kind.
    standard : Tensor, of a shape that broadcasts to that of ``points``, optional
        Where the samples of a layer are that has learned nothing; by default the taps of the
        standard convolution.
    places : Tensor, shape (B, Ho, Wo, 2), optional
        The centres (row, column) in pixels of the input, where there is no geometry.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.implicit import kernel_positions
    >>> from finslerconv.nn import DeformConv2d
    >>> positions = kernel_positions(DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8))
    >>> positions.points.shape, positions.groups, positions.output_size
    (torch.Size([1, 8, 8, 9, 2]), 1, (8, 8))
    """

    points: Float[Tensor, "..."]
    geometry: ConvGeometry | None
    input_size: tuple[int, int]
    kind: str
    adaptive: bool
    modulation: Float[Tensor, "..."] | None = None
    weight: Float[Tensor, "..."] | None = None
    reference: ReferenceSet | None = None
    map: MapName | None = None
    metric: Randers | Riemannian | None = None
    standard: Float[Tensor, "..."] | None = None
    places: Float[Tensor, "batch rows columns 2"] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if self.geometry is None:
            if self.places is None or self.standard is None:
                raise ValueError("geometry: without it, places and standard are needed")
            sites, n = tuple(self.places.shape[1:3]), self.standard.shape[-2]
        else:
            sites = self.geometry.output_size(*self.input_size)
            n = self.geometry.n_taps if self.standard is None else self.standard.shape[-2]
        expected = (*sites, n, 2)
        if len(shape) not in (5, 6) or shape[-4:] != expected:
            raise ValueError(
                f"points: expected shape (B, {', '.join(map(str, expected))}), with an axis of "
                f"groups after the batch if there are several, got {shape}"
            )
        if self.modulation is not None and tuple(self.modulation.shape) != shape[:-1]:
            raise ValueError(
                f"modulation: expected a factor for every sample, shape {shape[:-1]}, got "
                f"{tuple(self.modulation.shape)}"
            )
        if self.metric is not None and self.metric.batch_shape != shape[:-2]:
            raise ValueError(
                f"metric: expected one for every kernel, batch shape {shape[:-2]}, got "
                f"{self.metric.batch_shape}"
            )
        standard = self.standard
        if standard is None:
            assert self.geometry is not None
            standard = self.geometry.taps(self.points)
        object.__setattr__(self, "standard", standard.to(self.points).expand(shape))
        if self.reference is None and self.geometry is not None and n == self.geometry.n_taps:
            object.__setattr__(self, "reference", lattice(self.geometry.kernel_size))

    @property
    def groups(self) -> int:
        """The number of kernels at a pixel, each for its share of the input's channels."""
        return self.points.shape[1] if self.points.ndim == 6 else 1

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows, columns = self.points.shape[-4:-2]
        return rows, columns

    @property
    def kernel_name(self) -> str:
        """The kernel's size, as ``"3x3"``, or the number of samples, as ``"4 points"``."""
        n = self.points.shape[-2]
        if self.geometry is None or self.geometry.n_taps not in (n, n + 1):
            return f"{n} points"
        return "{}x{}".format(*self.geometry.kernel_size)

    def centres(self) -> Float[Tensor, "batch rows columns 2"]:
        """Return (row, column) of each kernel's centre, in pixels of the input.

        Of shape (1, Ho, Wo, 2), or (B, Ho, Wo, 2) for given ``places``.
        """
        if self.geometry is None:
            assert self.places is not None
            return self.places
        axes = self.geometry.centres(self.output_size, self.points)
        return torch.stack(torch.broadcast_tensors(*axes), dim=-1)[None]

    def every(self, step: int) -> "KernelPositions":
        """Return the positions at every ``step``-th output pixel along both axes."""
        step = as_integer("step", step)
        if step == 1:
            return self
        geometry = self.geometry
        if geometry is not None:
            rows, columns = geometry.stride
            geometry = replace(geometry, stride=(step * rows, step * columns))
        part = slice(None, None, step)
        return self._at(part, part, geometry)

    def thinned(self, max_size: int) -> "KernelPositions":
        """Return the positions at so many output pixels on the longer side, evenly spread.

        Of samples around given places, at ``max_size**2`` of these.
        """
        max_size = as_integer("max_size", max_size)
        if self.geometry is not None:
            return self.every(max(1, math.ceil(max(self.output_size) / max_size)))
        rows, columns = self.output_size
        most = max(1, max_size**2 // rows)
        if columns <= most:
            return self
        # Every k-th query would be in the same few columns of the picture.
        spread = np.unique((np.arange(1, most + 1) * _GOLDEN % 1 * columns).astype(int))
        index = torch.as_tensor(spread, device=self.points.device)
        return self._at(slice(None), index, None)

    def _at(
        self, row: slice, column: slice | Tensor, geometry: ConvGeometry | None
    ) -> "KernelPositions":
        """Return the positions at some output pixels."""
        assert self.standard is not None
        return replace(
            self,
            points=self.points[..., row, column, :, :],
            geometry=geometry,
            modulation=None if self.modulation is None else self.modulation[..., row, column, :],
            metric=None if self.metric is None else self.metric[..., row, column],
            standard=self.standard[..., row, column, :, :],
            places=None if self.places is None else self.places[:, row, column],
        )

    def together(self) -> "KernelPositions":
        """Return the samples of all groups, or all heads, as those of one kernel.

        The reference points of several groups are those of each; of an attention, the rays of its
        heads as they start, together.
        """
        if self.groups == 1:
            return self
        assert self.standard is not None

        def joined(each: Tensor) -> Tensor:
            return each.movedim(1, 3).flatten(3, 4)

        standard = joined(self.standard)
        if self.reference is not None:
            name = self.reference.name
            g = np.tile(self.reference.points, (self.groups, 1))
        else:
            name = "rays"
            each = standard.flatten(0, 2)
            # In boxes the rays are as long as these are: a large one tells their directions best.
            largest = each[each.abs().amax((1, 2)).argmax()] if len(each) else each.sum(0)
            g = largest.double().cpu().numpy()
            g = g / np.maximum(np.abs(g).max(axis=0), np.finfo(float).tiny)
        weights = np.full(len(g), math.pi / len(g))
        return replace(
            self,
            points=joined(self.points),
            modulation=None if self.modulation is None else joined(self.modulation),
            weight=None,
            reference=ReferenceSet(name, (len(g),), g, weights),
            metric=None,
            standard=standard,
        )

    def __repr__(self) -> str:
        modulated = "" if self.modulation is None else ", modulated"
        return (
            f"KernelPositions({self.kind} {self.kernel_name}, points={tuple(self.points.shape)}, "
            f"dtype={self.points.dtype}, adaptive={self.adaptive}{modulated})"
        )
