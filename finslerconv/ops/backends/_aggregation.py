"""The contract of a backend that aggregates samples: DCNv3, DCNv4 and deformable attention."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finslerconv.ops.backends._contract import promoted
from finslerconv.ops.backends._derivatives import differentiate


@dataclass(frozen=True)
class Aggregation:
    """One call of the operator ``aggregate``, its arguments checked.

    ``output[q, g] = sum_lp weights[q, g, l, p] value_l(positions[q, g, l, p])``: the channels of a
    group ``g`` are read at positions of its own on the pixel grids of several levels, bilinearly
    and as zero outside, weighted and added up. There are no weights from channel to channel.
    Samples at NaN or infinite positions are zero.

    Positions are (x, y) in pixels of their level, (0, 0) being the centre of its first pixel:
    ``positions[q, g, l, p] = scale_lp locations[q, g, l, p] + origin_lp + place_q``.

    Parameters
    ----------
    value : Tensor, shape (B, S, G, D)
        The pixels of all levels, each level row by row.
    locations : Tensor, shape (B, Q, G, L, P, 2)
        (x, y) of the ``P`` samples on each of the ``L`` levels for each of the ``Q`` outputs.
    weights : Tensor, shape (B, Q, G, L, P)
    levels : Tensor of integers, shape (L, 3), or tuple of two ints
        Rows, columns and first pixel (an index into ``S``) of each level; or rows and columns of
        the only one.
    frames : Tensor, shape (L, P, 4), or None
        Scale (x, y) and origin (x, y) of the frame in which each point has its locations; None for
        1 and 0. It has no gradient.
    grid : tuple of three ints or None
        Where outputs lie on a grid, in whole rows: how many are in a row, and the steps in pixels
        from one to the next, right and down. Output ``q`` is at ``(q % n * right, q // n * down)``;
        None for 0.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.ops import Aggregation, reference
    >>> value = torch.arange(6.0).reshape(1, 6, 1, 1)  # one level of 2 x 3 pixels, one group
    >>> locations = torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 1, 1, 2)  # (x, y): half-way down
    >>> aggregation = Aggregation(value, locations, torch.ones(1, 1, 1, 1, 1), levels=(2, 3))
    >>> reference.aggregate(aggregation).tolist()  # the mean of pixels 1 and 4
    [[[[2.5]]]]
    """

    value: Float[Tensor, "batch pixels groups channels"]
    locations: Float[Tensor, "batch queries groups levels points 2"]
    weights: Float[Tensor, "batch queries groups levels points"]
    levels: Int[Tensor, "levels 3"] | tuple[int, int]
    frames: Float[Tensor, "levels points 4"] | None = None
    grid: tuple[int, int, int] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which is computed: at least float32, since half cannot name far pixels."""
        return promoted(torch.float32, self.value, self.locations, self.weights, self.frames)

    @property
    def differentiated(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors whose gradients a backend computes."""
        return self.value, self.locations, self.weights

    def with_differentiated(self, tensors: Sequence[Any]) -> "Aggregation":
        """Return the aggregation of other such tensors."""
        value, locations, weights = tensors
        return replace(self, value=value, locations=locations, weights=weights)

    def positions(self) -> Float[Tensor, "batch queries groups levels points 2"]:
        """Return the samples' positions (x, y) in pixels, in plain PyTorch."""
        positions = self.locations.to(self.dtype)
        if self.frames is not None:
            scale, origin = self.frames.to(self.dtype).split(2, -1)
            positions = positions * scale + origin
        if self.grid is not None:
            width, right, down = self.grid
            positions = positions.unflatten(1, (-1, width))
            rows, columns = (torch.arange(n, device=positions.device) for n in positions.shape[1:3])
            places = torch.broadcast_tensors(columns * right, (rows * down)[:, None])
            places = torch.stack(places, -1).to(self.dtype)[:, :, None, None, None]
            positions = (positions + places).flatten(1, 2)
        return positions

    def level_table(self, device: torch.device | None = None) -> Int[Tensor, "levels 3"]:
        """Return rows, columns and first pixel of each level as a tensor."""
        if isinstance(self.levels, Tensor):
            return self.levels.to(device or self.levels.device)
        return torch.tensor([[*self.levels, 0]], device=device)


class AggregationGradients(NamedTuple):
    """The gradients of an aggregation's arguments, in their shapes; None where not needed.

    Examples
    --------
    >>> from finslerconv.ops import AggregationGradients
    >>> AggregationGradients().value is None
    True
    """

    value: Float[Tensor, "batch pixels groups channels"] | None = None
    locations: Float[Tensor, "batch queries groups levels points 2"] | None = None
    weights: Float[Tensor, "batch queries groups levels points"] | None = None


class AggregationBackend(abc.ABC):
    """The base class of what aggregates samples for one type of device.

    A backend that is registered by :func:`register_backend` may be of this class besides
    :class:`ConvBackend`; where it is not, the reference aggregates. What holds for
    :class:`ConvBackend` about gradients, autocast and ``torch.compile`` holds here.

    Examples
    --------
    >>> from finslerconv import ops
    >>> class Same(ops.ConvBackend, ops.AggregationBackend):  # the reference under another name
    ...     def forward(self, conv):
    ...         return ops.reference.forward(conv)
    ...     def aggregate(self, aggregation):
    ...         return ops.reference.aggregate(aggregation)
    >>> issubclass(Same, ops.AggregationBackend)
    True
    """

    @abc.abstractmethod
    def aggregate(self, aggregation: Aggregation) -> Float[Tensor, "batch queries groups channels"]:
        """Return the output, in the dtype of the value."""

    def aggregate_backward(
        self,
        grad: Float[Tensor, "batch queries groups channels"],
        aggregation: Aggregation,
        needs_value: bool,
        needs_samples: bool,
    ) -> AggregationGradients:
        """Return the gradients that are needed, of the value and of locations and weights."""
        found = differentiate(
            lambda tensors: self.aggregate(aggregation.with_differentiated(tensors)),
            aggregation.differentiated,
            (needs_value, needs_samples, needs_samples),
            grad,
        )
        return AggregationGradients(*found)
