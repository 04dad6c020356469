"""How sound the offsets of a deformable layer are, in a few numbers."""

import math
from dataclasses import dataclass

import torch

from finslerconv.implicit._fit import RandersFit
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
        percentile, in pixels of the layer's input. The standard kernel of an attention are its
        points before it has learned: a ray for each head.
    exploded : float
        The share of samples farther from that place than twice the standard kernel's extent (over
        all heads of an attention).
    outside : float
        The share of samples outside the picture, where they read padding.
    outside_standard : float
        The share that the standard kernel would have there.
    collapsed : float
        The share of kernels whose samples spread (root mean square distance from their mean) less
        than a quarter of the standard kernel's: they read one place.
    not_finite : float
        The share of samples at NaN or infinite positions, which count for none of the above.
    explained : float or None
        The share of kernels that a metric explains; None where none was fitted.

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
    explained: float | None = None

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
        if self.explained is not None:
            lines[-1] += f", {self.explained:.1%} explained by a metric"
        return "\n".join([*lines, *(f"! {complaint}" for complaint in self.complaints)])


@torch.no_grad()
def offset_health(positions: KernelPositions, fit: RandersFit | None = None) -> OffsetHealth:
    """Return how sound the sampling positions of a layer are.

    Parameters
    ----------
    positions : KernelPositions
        As of :func:`kernel_positions` or :func:`level_positions`, or in the layers of
        :func:`find_adaptive_layers`.
    fit : RandersFit, optional
        Metrics of these positions, as in what :func:`implicit_metric` returns, for the share that
        is explained.

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
    points, standard = positions.points, positions.standard
    assert standard is not None
    finite = points.isfinite().all(-1)
    away = (points - standard).norm(dim=-1)[finite]
    # Of several groups, the kernel is all of them together.
    over = (-2, 1) if points.ndim == 6 else (-2,)
    extent = (standard.amax(over, keepdim=True) - standard.amin(over, keepdim=True)).amax(-1) + 1
    far = (points - standard).norm(dim=-1) > 2 * extent
    centres = positions.centres()[..., None, :]
    if points.ndim == 6:
        centres = centres[:, None]
    last = points.new_tensor(positions.input_size) - 1

    def outside(places: torch.Tensor) -> torch.Tensor:
        return ((places < 0) | (places > last)).any(-1)

    whole = finite.all(-1)
    collapsed = _spread(points) < _COLLAPSED * _spread(standard)
    nothing = not len(away)
    return OffsetHealth(
        offset=math.nan if nothing else float(away.median()),
        offset_99=math.nan if nothing else float(away.kthvalue(math.ceil(0.99 * len(away))).values),
        exploded=_share(far[finite]),
        outside=_share(outside(centres + points)[finite]),
        outside_standard=_share(outside(centres + standard)),
        collapsed=_share(collapsed[whole]),
        not_finite=_share(~finite),
        explained=None if fit is None else float(fit.explained.double().mean()),
    )


def _spread(points: torch.Tensor) -> torch.Tensor:
    return (points - points.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()


def _share(which: torch.Tensor) -> float:
    return float(which.double().mean()) if which.numel() else 0.0
