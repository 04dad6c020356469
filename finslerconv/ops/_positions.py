"""Where a convolution takes its samples, as the user said it and as positions."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._tracing import recorded
from finslerconv.balls import affine, radial
from finslerconv.metrics import Randers, Riemannian
from finslerconv.ops._checks import check_tensors, compute_dtype
from finslerconv.ops._geometry import IntPair, pair

#: How points are carried into a unit ball: :func:`finslerconv.balls.radial` or ``affine``.
MapName = Literal["radial", "affine"]

MAPS = {"radial": radial, "affine": affine}


#: What a field of :class:`Positions` holds.
Kind = Literal["offsets", "radial", "affine"]


@dataclass(frozen=True)
class Positions:
    """Positions as the backends take them: offsets, or points carried into a metric's ball.

    Parameters
    ----------
    kind : {"offsets", "radial", "affine"}
        What the field holds: displacements of the taps, or metrics and which map to use.
    field : Tensor
        Offsets (B, G * taps * 2, Ho, Wo), or matrices (B, G, Ho, Wo, 2, 2).
    omega : Tensor, shape (B, G, Ho, Wo, 2), or None
        The one-forms, if the metrics are Randers.
    points : Tensor, shape (taps, 2)
        The standard taps' displacements from the centre, or reference points.
    """

    kind: Kind
    field: Tensor
    omega: Tensor | None
    points: Tensor

    @property
    def groups(self) -> int:
        """The number of sets of positions, among which the channels are split."""
        if self.kind == "offsets":
            return self.field.shape[1] // (2 * self.points.shape[0])
        return self.field.shape[1]

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows, columns = self.field.shape[2:4]
        return rows, columns

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the positions: at least float32, since half cannot name far pixels."""
        dtype = torch.promote_types(self.field.dtype, torch.float32)
        if self.omega is not None:
            dtype = torch.promote_types(dtype, self.omega.dtype)
        if self.kind != "offsets":
            dtype = torch.promote_types(dtype, self.points.dtype)
        return dtype

    def displacements(
        self, dilation: tuple[int, int]
    ) -> Float[Tensor, "batch groups taps 2 out_height out_width"]:
        """Return the taps' displacements from the kernel's centre, in pixels, in plain PyTorch."""
        if self.kind != "offsets":
            positions = _in_balls(self.field, self.omega, self.points, dilation, self.kind)
            return positions.movedim((-2, -1), (2, 3))
        batch, taps = self.field.shape[0], self.points.shape[0]
        offsets = self.field.to(self.dtype).reshape(batch, self.groups, taps, 2, *self.out_size)
        return offsets + self.points.to(self.dtype)[..., None, None]


@recorded
def metric_positions(
    M: Float[Tensor, "*batch 2 2"],
    omega: Float[Tensor, "*batch 2"] | None,
    points: Float[Tensor, "taps 2"],
    *,
    dilation: IntPair = 1,
    map: MapName = "radial",
) -> Float[Tensor, "*batch taps 2"]:
    """Return the displacements of a metric convolution's taps from the kernel's centre.

    Parameters
    ----------
    M, omega, points, dilation, map
        As for :func:`metric_conv2d`, with any batch.

    Returns
    -------
    Tensor, shape (..., taps, 2)
        In pixels, float32 at least.

    Raises
    ------
    TypeError
        If an argument is no tensor, or not floating.
    ValueError
        If the shapes do not fit, or the tensors are on different devices.
    """
    check_tensors(M=M, omega=omega, points=points)
    if M.ndim < 2 or M.shape[-2:] != (2, 2):
        raise ValueError(f"M: expected shape (..., 2, 2), got {tuple(M.shape)}")
    if omega is not None and omega.shape != M.shape[:-1]:
        raise ValueError(f"omega: expected shape {tuple(M.shape[:-1])}, got {tuple(omega.shape)}")
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points: expected shape (taps, 2), got {tuple(points.shape)}")
    check_map(map)
    return _in_balls(M, omega, points, pair("dilation", dilation, least=1), map)


def check_map(map: str) -> None:
    """Raise a ValueError if ``map`` is no :data:`MapName`."""
    if map not in MAPS:
        raise ValueError(f"map: expected 'radial' or 'affine', got {map!r}")


def _in_balls(
    M: Tensor, omega: Tensor | None, points: Tensor, dilation: tuple[int, int], map: str
) -> Tensor:
    dtype = torch.promote_types(compute_dtype(M), points.dtype)
    if omega is not None:
        dtype = torch.promote_types(dtype, omega.dtype)
    M = M.to(dtype)
    metric: Randers | Riemannian
    if omega is None:
        metric = Riemannian(M, validate=False)
    else:
        metric = Randers(M, omega.to(dtype), validate=False)
    g = points.to(dtype).reshape(-1, *(1,) * (M.ndim - 2), 2)
    positions = MAPS[map](metric, g).movedim(0, -2)
    if dilation == (1, 1):
        return positions
    return positions * torch.tensor(dilation, dtype=dtype, device=positions.device)
