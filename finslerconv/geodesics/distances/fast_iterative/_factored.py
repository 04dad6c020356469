"""Values computed again with the cone around their source taken out, in the plane."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv.geodesics.distances._seeding import Start, chord_norm
from finslerconv.geodesics.distances.fast_iterative._numbers import MetricAt


class Ends(NamedTuple):
    """The terms of the factored values of nodes, differentiable."""

    e: Float[Tensor, "n 2 2"]
    M: Float[Tensor, "n 2 2"]
    omega: Float[Tensor, "n 2"]
    mean_M: Float[Tensor, "n 2 2"]
    mean_omega: Float[Tensor, "n 2"]
    v: Float[Tensor, "n 2"]
    """From the source to the node."""
    alone: Bool[Tensor, "n"]

    @classmethod
    def between(
        cls,
        offset: Float[Tensor, "n 2 2"],
        at: MetricAt,
        sources: Start,
        label: Int[Tensor, "n"],
        place: Float[Tensor, "n 2"],
        factorise: bool,
    ) -> "Ends":
        M, omega, v = sources.M[label], sources.omega[label], place - sources.position[label]
        alone = sources.alone[label] & factorise
        return cls(offset, at.M, at.omega, (at.M + M) / 2, (at.omega + omega) / 2, v, alone)


class FactoredValues(NamedTuple):
    """Values, with ``S du = sum of m_i (du_i - dk_i) + v' domega + v' dM v / 2``."""

    value: Float[Tensor, "n"]
    weight: Float[Tensor, "n 2"]
    """m / S."""
    local: Float[Tensor, "n"]
    """A term of the derivative that the value has in the metric and the source."""
    velocity: Float[Tensor, "n 2"]


# As in fast marching in the plane, see there.
_MOVE, _OUTSIDE, _AGREE, _ALIGNED = 0.5, 0.3, 0.7, 1.0137


def factored_values(
    ends: Ends,
    read: Float[Tensor, "n 2"],
    weight: Float[Tensor, "n 2"],
    trial: Float[Tensor, "n"],
) -> FactoredValues:
    """Return the values, corrected for the error of the differences of the cone ``F(v)``.

    F is the mean of the metrics at the source and at the node. The trial value stays where the
    cone's direction is not near the front's, or the corrected value not near the trial value.
    """
    e, v = ends.e, ends.v[:, None]
    M, omega, mean_M, mean_omega = (
        ends.M[:, None], ends.omega[:, None], ends.mean_M[:, None], ends.mean_omega[:, None]
    )  # fmt: skip
    cone = chord_norm(mean_M, mean_omega, v)
    there = chord_norm(mean_M, mean_omega, v + e)
    length = (cone - (mean_omega * v).sum(-1)).clamp(min=1e-30)
    slope = torch.einsum("nai,naij,nbj->nb", v, mean_M, e) / length + (mean_omega * e).sum(-1)
    k = there - cone - slope
    steps = chord_norm(M, omega, -e)
    present = weight > 0

    # From two ends.
    with torch.no_grad():
        gram = torch.einsum("nai,nij,nbj->nab", e, ends.M, e)
        (aa, ab), (_, bb) = gram[:, 0].unbind(1), gram[:, 1].unbind(1)
        det = aa * bb - ab * ab
        base = read.amin(1)
        ra, rb = (read - base[:, None] - k - (omega * e).sum(-1)).unbind(1)
        ga, gb = (bb - ab) / det, (aa - ab) / det
        quadratic = ga + gb
        t = (ra * ga + rb * gb + (quadratic - (rb - ra) ** 2 / det).sqrt()) / quadratic
        ma, mb = (bb * (t - ra) - ab * (t - rb)) / det, (aa * (t - rb) - ab * (t - ra)) / det
        m = torch.stack((ma, mb), 1)
        velocity = -(m[..., None] * e).sum(1)
        along = torch.einsum("ni,nij,nj->n", velocity, ends.M, ends.v)
        both = present.all(1)
        good = both & (ma * aa.sqrt() > -_OUTSIDE) & (mb * bb.sqrt() > -_OUTSIDE) & (ma + mb > 0)
        good &= along > _AGREE * torch.einsum("ni,nij,nj->n", ends.v, ends.M, ends.v).sqrt()
        good &= ends.alone & ((base + t - trial).abs() <= _MOVE * steps.amax(1))

        # From one.
        one = (~present[:, 0]).long()[:, None]
        reach = read.gather(1, one)[:, 0]
        across = e[..., 1] * v[..., 0] - e[..., 0] * v[..., 1]
        single = ~both & ends.alone & (across.gather(1, one)[:, 0].abs() < _ALIGNED)
    # Neighbours that are missing have offset 0.
    chord = chord_norm(mean_M, mean_omega, -e)
    ratio = (cone - there) / torch.where(chord > 0, chord, 1.0)
    rise = (steps * ratio).gather(1, one)[:, 0]
    plain = steps.gather(1, one)[:, 0]
    single = single & ((reach + rise - trial).abs() <= _MOVE * plain).detach()

    value = torch.where(good, base + t, torch.where(single, reach + rise.detach(), trial))
    # Without factorisation the weights of the trial value are m / S, and v its velocity.
    move = -(weight[..., None] * e).sum(1)
    size = torch.einsum("ni,nij,nj->n", move, ends.M, move).detach().sqrt()
    velocity = torch.where(good[:, None], velocity, move / size[:, None])
    total = torch.where(good, ma + mb, 1 / size)
    square = torch.einsum("ni,nij,nj->n", velocity, ends.M, velocity)
    drift = (velocity * ends.omega).sum(1)
    shift = (torch.where(good[:, None], m, 0.0) * k).sum(1)
    local = (square / 2 + drift - shift) / total
    local = torch.where(both, local, torch.where(single, rise, plain))
    weight = torch.where(good[:, None], m / total[:, None], weight)
    # From one end that is factored, the front comes along the chord.
    velocity = torch.where(single[:, None], ends.v, velocity)
    return FactoredValues(value, weight, local, velocity)
