"""Fans of rays in the words of ONNX: one loop over the stages of all steps."""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding, pad

from finslerconv._arrays import scaled
from finslerconv.balls import ball_map
from finslerconv.metrics import Randers

# The stages of the classical Runge-Kutta method: how far each next one is from the step's start,
# and what its slope counts. After the last the step is done.
_AHEAD = (1 / 2, 1 / 2, 1.0, 0.0)
_SHARE = (1 / 6, 1 / 3, 1 / 3, 1 / 6)

# Entries of a row of the table that are no slopes, omega included.
_VALUES = 5


def shoot_by_scan(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    table: Float[Tensor, "nodes entries"],
    starts: Float[Tensor, "fields n 2"],
    velocities: Float[Tensor, "fields n rays 2"],
    lengths: list[list[float]],
    records: list[tuple[int, int]],
    radial: bool = False,
) -> Float[Tensor, "fields n points 2"]:
    """Return the displacements of fans of rays through planar fields, held constant outside.

    Arguments as of :func:`finslerconv.geodesics.flow.shoot`. Ray ``r`` takes steps of
    ``lengths[r]`` in time; point ``i`` is where the ray ``records[i][0]`` is after
    ``records[i][1]`` steps.
    The stages of the steps are one ``Scan``, which runs its body again and again.
    """
    # Not public in PyTorch yet: only an export to ONNX may depend on it.
    from torch._higher_order_ops.scan import scan_op

    # Not len, which would tie the program to the number of images.
    fields, (height, width), dtype = velocities.shape[0], shape, velocities.dtype
    if table.shape[1] == 9:
        # Riemannian: entries and slopes of omega are 0.
        table = pad(table.unflatten(1, (3, 3)), (0, 2)).flatten(1)
    field = _Field(
        table.to(dtype),
        torch.arange(fields, device=table.device)[:, None, None, None] * (height * width),
        torch.stack([torch.scalar_tensor(k, dtype=dtype) for k in shape])[:, None, None],
        (1 / velocities.new_tensor(spacing))[:, None, None],
        starts.to(dtype).permute(0, 2, 1)[..., None],
    )
    a, b, c, x, y = (e[:, 0, :, :, None] for e in field.read(0.0)[0].split(1, 1))
    M = torch.cat((a, b, b, c), -1).unflatten(-1, (2, 2))
    metric = Randers(M, torch.cat((x, y), -1), validate=False)
    if radial:
        velocities = ball_map("radial")(metric, velocities)
    u, scale, still = scaled(velocities)
    u = torch.where(still, 1.0, u)
    length = (scale[..., 0] * metric.norm(u))[:, None]
    momentum = metric.legendre(u).permute(0, 3, 1, 2)
    start = torch.cat((torch.zeros_like(momentum), momentum), 1)

    steps = max(map(len, lengths))
    # A ray that has arrived takes steps of length 0.
    h = velocities.new_tensor([[*ray, *[0.0] * (steps - len(ray))] for ray in lengths]).T
    stages = [
        (h[:, None] * velocities.new_tensor(share)[:, None]).flatten(0, 1)
        for share in (_AHEAD, _SHARE)
    ]
    ends = torch.tensor([False, False, False, True], device=h.device).repeat(steps)
    carried = [start, start.clone(), start.clone()]
    *_, paths = scan_op(_stage, carried, [*stages, ends], (length, *field))
    times = [list(itertools.accumulate(ray, initial=0.0)) for ray in lengths]
    points = []
    for ray, step in records:
        moved = times[ray][step] * velocities[:, :, ray]
        reached = paths[4 * step - 1, :, :, :, ray].permute(0, 2, 1)
        points.append(torch.where(still[:, :, ray], moved, reached))
    return torch.stack(points, 2)


class _Field(NamedTuple):
    """Tables of fields, and where the rays start in them. Axes: field, entry, start, ray."""

    table: Tensor
    first: Tensor
    """The row of the table at which each field begins."""

    size: Tensor
    """Rows and columns of the grid, as floats."""

    rate: Tensor
    """Nodes per unit of length."""

    places: Tensor
    """The starts in nodes."""

    def read(self, x: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return values and slopes of the entries at displacements, (fields, 2, n, rays)."""
        c = self.places + x * self.rate
        last = self.size - 1
        inside = torch.minimum(c.clamp(min=0), last)
        node = torch.minimum(inside.floor(), (last - 1).clamp(min=0))
        other = torch.minimum(node + 1, last).long()
        share, node = inside - node, node.long()
        (top, left), (bottom, right) = node.split(1, 1), other.split(1, 1)
        below, beside = share.split(1, 1)
        rows, columns = torch.cat((top, bottom), 1), torch.cat((left, right), 1)
        index = rows[:, :, None] * self.size[1].long() + columns[:, None]
        weights = (
            torch.cat((1 - below, below), 1)[:, :, None]
            * torch.cat((1 - beside, beside), 1)[:, None]
        )
        corners = embedding(self.first + index.flatten(1, 2), self.table)
        entries = (corners * weights.flatten(1, 2)[..., None]).sum(1).permute(0, 3, 1, 2)
        # Outside, slopes go to zero within one node.
        factor = (1 - torch.maximum(-c, c - last)).clamp(0.0, 1.0)
        slopes = entries[:, _VALUES:].unflatten(1, (2, _VALUES)) * factor[:, :, None]
        return entries[:, :_VALUES], slopes


def _stage(
    base: Tensor,
    now: Tensor,
    total: Tensor,
    ahead: Tensor,
    share: Tensor,
    end: Tensor,
    length: Tensor,
    *field: Tensor,
) -> list[Tensor]:
    """Return the states after a stage, and how far the rays are.

    Of a step, ``base`` is the state at its start, ``total`` with all slopes so far, ``now`` where
    the next slope is taken.
    """
    slope = _rates(_Field(*field), now, length)
    total = total + share * slope
    base = torch.where(end, total, base)
    # No result may be a view of another.
    return [base, base + ahead * slope, total, base[:, :2].clone()]


def _rates(field: _Field, state: Tensor, length: Tensor) -> Tensor:
    """Return the rates of displacements and momenta, as ``grid_rates`` does."""
    x, p = state.split(2, 1)
    entries, slopes = field.read(x)
    a, b, c, *omega = entries.split(1, 1)
    p0, p1 = p.split(1, 1)
    first, second = torch.cat((p0, omega[0]), 1), torch.cat((p1, omega[1]), 1)
    det = a * c - b * b
    # The inverse of M times the momentum, and times omega.
    up, across = (c * first - b * second) / det, (a * second - b * first) / det
    (y0, w0), (y1, w1) = up.split(1, 1), across.split(1, 1)
    y, w = torch.cat((y0, y1), 1), torch.cat((w0, w1), 1)
    lam = 1 - (w * entries[:, 3:]).sum(1, keepdim=True)
    s = (w * p).sum(1, keepdim=True)
    q = (p * y).sum(1, keepdim=True)
    root = (lam * q + s * s).clamp(min=0).sqrt()
    # Written so that nothing cancels.
    norm = torch.where(s > 0, q / (root + s.clamp(min=0)), (root - s) / lam)
    z = y - norm * w
    z0, z1 = z.split(1, 1)
    force = torch.cat((z0 * z0 / 2, z0 * z1, z1 * z1 / 2, norm * z), 1)
    force = (slopes * force[:, None]).sum(2)
    return length / root * torch.cat((z, force), 1)
