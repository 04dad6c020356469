"""How sound the offsets of a deformable layer are, in a few numbers."""

import math
from dataclasses import dataclass

import torch

from finslerconv.implicit._positions import KernelPositions

# A kernel is collapsed if its samples spread less than this share of the standard kernel's.
_COLLAPSED = 0.25

# Shares above these are named among the complaints.
_TOLERATED = 0.01
_TOLERATED_COLLAPSED = 0.1
_TOLERATED_OUTSIDE = 0.1


@dataclass(frozen=True)
class OffsetHealth:
    """Where a layer's samples are, beside where the standard kernel's would be.

    Offsets that grow during training, until samples leave the picture and have no gradients, are
    the usual way in which a deformable network fails.

    Attributes
    ----------
    offset, offset_99 : float
        The median distance of a sample from its place in the standard kernel, and its 99th
        percentile, in pixels of the layer's input.
    exploded : float
        The share of samples farther from that place than twice the standard kernel's extent.
    outside : float
        The share of samples outside the picture, where they read padding.
    outside_standard : float
        The share that the standard kernel would have there.
    collapsed : float
        The share of kernels whose samples spread (root mean square distance from their mean) less
        than a quarter of the standard kernel's: they read one place.
    not_finite : float
        The share of samples at NaN or infinite positions, which count for none of the above.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.implicit import kernel_positions, offset_health
    >>> from finslerconv.nn import DeformConv2d
    >>> layer = DeformConv2d(1, 2, 3, padding=1)
    >>> health = offset_health(kernel_positions(layer, torch.rand(1, 1, 8, 8)))
    >>> health.offset, health.collapsed
    (0.0, 0.0)
    """

    offset: float
    offset_99: float
    exploded: float
    outside: float
    outside_standard: float
    collapsed: float
    not_finite: float

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is not as it should be, in words; empty if nothing is."""
        found = []
        if self.not_finite > 0:
            found.append(f"{self.not_finite:.1%} of the samples are at NaN or infinity")
        if self.exploded > _TOLERATED:
            found.append(f"offsets explode: {self.exploded:.1%} of the samples are far away")
        if self.outside > self.outside_standard + _TOLERATED_OUTSIDE:
            found.append(
                f"{self.outside:.1%} of the samples are outside the picture, of a standard "
                f"convolution {self.outside_standard:.1%}"
            )
        if self.collapsed > _TOLERATED_COLLAPSED:
            found.append(f"{self.collapsed:.1%} of the kernels are collapsed to one place")
        return tuple(found)

    def __str__(self) -> str:
        lines = [
            f"offsets: median {self.offset:.2f}, 99th percentile {self.offset_99:.2f} pixels",
            f"samples: {self.exploded:.1%} far away, {self.outside:.1%} outside the picture "
            f"(standard {self.outside_standard:.1%}), {self.not_finite:.1%} not finite",
            f"kernels: {self.collapsed:.1%} collapsed",
        ]
        return "\n".join([*lines, *(f"! {complaint}" for complaint in self.complaints)])


@torch.no_grad()
def offset_health(positions: KernelPositions) -> OffsetHealth:
    """Return how sound the sampling positions of a layer are.

    Parameters
    ----------
    positions : KernelPositions
        As of :func:`kernel_positions`, or in the layers of :func:`find_adaptive_layers`.

    Returns
    -------
    OffsetHealth

    Examples
    --------
    >>> import torch
    >>> from finslerconv.implicit import kernel_positions, offset_health
    >>> from finslerconv.nn import DeformConv2d
    >>> layer = DeformConv2d(3, 8, 3, padding=1)
    >>> layer.offset_conv.bias.data += 30
    >>> health = offset_health(kernel_positions(layer, torch.rand(1, 3, 16, 16)))
    >>> health.complaints[0]
    'offsets explode: 100.0% of the samples are far away'
    """
    points, geometry = positions.points, positions.geometry
    taps = geometry.taps(points)
    finite = points.isfinite().all(-1)
    known = points[finite]
    away = (points - taps).norm(dim=-1)[finite]
    extent = float((taps.amax(0) - taps.amin(0)).amax()) + 1
    rows, columns = positions.centres()
    centres = torch.stack(torch.broadcast_tensors(rows, columns), dim=-1)[..., None, :]
    last = points.new_tensor(positions.input_size) - 1

    def outside(places: torch.Tensor) -> torch.Tensor:
        return ((places < 0) | (places > last)).any(-1)

    whole = finite.all(-1)
    spread = _spread(points[whole])
    standard = float(_spread(taps))
    nothing = not len(known)
    return OffsetHealth(
        offset=math.nan if nothing else float(away.median()),
        offset_99=math.nan if nothing else float(away.kthvalue(math.ceil(0.99 * len(away))).values),
        exploded=_share(away > 2 * extent),
        outside=_share(outside(centres + points)[finite]),
        outside_standard=_share(outside(centres + taps)),
        collapsed=_share(spread < _COLLAPSED * standard),
        not_finite=_share(~finite),
    )


def _spread(points: torch.Tensor) -> torch.Tensor:
    return (points - points.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()


def _share(which: torch.Tensor) -> float:
    return float(which.double().mean()) if which.numel() else 0.0
