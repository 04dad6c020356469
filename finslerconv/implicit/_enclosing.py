"""The smallest ellipse that holds samples, and the pixel well inside it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finslerconv._linalg import dot
from finslerconv.balls import Ellipse
from finslerconv.implicit._ellipses import Frame, moved, put, take
from finslerconv.implicit._moments import moment_ellipse
from finslerconv.implicit._overlap import field_along, squared_field


def smallest_enclosing(
    points: Float[Tensor, "batch n 2"], *, centred: bool, limit: float, steps: int
) -> tuple[Ellipse, Bool[Tensor, " batch"]]:
    """Return the ellipses of least area that hold all points, with ``|z| <= limit``.

    The problem is convex (in ``P^{-1/2}`` and ``P^{-1/2} W``): its one optimum is found by a
    primal-dual interior-point method whose steps are taken along the manifold. In the frame of the
    current ellipse half the logarithm of ``det P`` grows by ``tr E``, and the slack ``1 - |y|^2``
    of a point at ``y`` by ``2 X(y).y``, to the first order. Returned is also where the area is
    within 1e-9 of the least.
    """
    # The pixel is one more point, with a bound of its own.
    everything = points = torch.cat((points, torch.zeros_like(points[:, :1])), dim=1)
    bound = points.new_ones(points.shape[1])
    bound[-1] = limit**2
    p = 3 if centred else 5
    trace = points.new_tensor((1.0, 0.0, 1.0, 0.0, 0.0))[:p]
    curvature = torch.diag(points.new_tensor((1.0, 2.0, 1.0, 0.0, 0.0))[:p])

    alike = torch.full_like(points[..., 0], 1 / len(bound))
    ellipse = _holding(points, moment_ellipse(points, alike, centred), bound, 1.3)
    y = Frame.of(ellipse).places(points)
    # The slacks are variables of their own, so that steps are not cut short by their curvature.
    slack = bound - dot(y, y)
    multiplier = 1 / (len(bound) * slack)
    active = torch.arange(len(points), device=points.device)
    result, at_rest = ellipse, torch.zeros_like(active, dtype=torch.bool)
    for _ in range(steps):
        growth = 2 * field_along(y, y)[..., :p]
        excess = bound - dot(y, y) - slack
        gap = (multiplier * slack).sum(1)
        imbalance = (trace - torch.einsum("bn,bnp->bp", multiplier, growth)).abs().amax(-1)
        rests = (gap < 1e-10) & (imbalance < 1e-8) & (excess.abs().amax(-1) < 1e-10)
        if bool(rests.any()):
            result = put(result, active[rests], take(ellipse, rests))
            at_rest = at_rest.index_fill(0, active[rests], True)
            going = ~rests
            ellipse = take(ellipse, going)
            active, points, y, slack, multiplier, growth, excess, gap = (
                part[going] for part in (active, points, y, slack, multiplier, growth, excess, gap)
            )
            if len(active) == 0:
                break

        # The smaller the least product, the more centring.
        central = (multiplier * slack).amin(1) * len(bound) / gap
        target = torch.where(central > 0.1, 0.05, 0.4) * gap / len(bound)
        force = (target[:, None] - multiplier * excess) / slack
        matrix = curvature + 2 * squared_field(y, multiplier)[:, :p, :p]
        matrix = matrix + torch.einsum("bn,bnp,bnq->bpq", multiplier / slack, growth, growth)
        push = torch.einsum("bn,bnp->bp", force, growth) - trace
        step = torch.linalg.solve_ex(matrix, push)[0]
        # A singular system gives no step.
        step = torch.where(torch.isfinite(step).all(dim=1, keepdim=True), step, 0.0)
        gain = torch.einsum("bnp,bp->bn", growth, step)
        slack_change = excess + gain
        multiplier_change = force - multiplier - multiplier * gain / slack

        share = _longest(slack, slack_change).minimum(0.7 / step.norm(dim=-1, keepdim=True))
        ellipse = moved(ellipse, share * step, 1.0)
        y = Frame.of(ellipse).places(points)
        slack = slack + share * slack_change
        multiplier = multiplier + _longest(multiplier, multiplier_change) * multiplier_change
    result = put(result, active, ellipse)
    # Enlarged to hold the points that rounding and the last slacks left outside.
    return _holding(everything, result, bound, 1.0), at_rest


def _holding(points: Tensor, ellipse: Ellipse, bound: Tensor, spare: float) -> Ellipse:
    """Return the ellipses enlarged until they hold everything, and by ``spare`` in area."""
    y = Frame.of(ellipse).places(points)
    outermost = (dot(y, y) / bound).amax(dim=1)
    return Ellipse(ellipse.centre, ellipse.shape * (spare * outermost)[:, None, None])


def _longest(value: Tensor, change: Tensor) -> Tensor:
    """Return the largest factors up to 1 after which each value is at least 1 % of itself."""
    ratio = torch.where(change < 0, -0.99 * value / change, torch.inf)
    return ratio.amin(dim=1, keepdim=True).clamp_max(1)
