"""Learn a Randers metric from travel times there and back, with confidence intervals.

Stations stand in a medium whose waves run faster along some directions (M) and are carried by a
wind (omega). Each station sends, all others write down when the signal arrives, with noise. Times
in both directions are needed: a wind that speeds the way there slows the way back, which a
Riemannian metric cannot do.

The metric is free at the nodes of a coarse grid and interpolated in between, which keeps it a
metric. Each node is a point of a manifold, and geoopt's Riemannian Adam walks there without
constraints or projections: a positive definite matrix M with the affine-invariant distance, and a
point u of the open unit disc with the Poincaré distance, omega = L u with M = L L', so that
|omega|_{M^-1} = |u| < 1. The loss is the misfit of the times over their noise, plus the squared
distance of each node from an isotropic metric over that of the prior; the times are those of fast
marching, with its gradient.

The intervals are those of a Gaussian posterior around the estimate (Laplace's approximation): the
derivatives of all times in the coordinates of the tangent spaces, and the precision of the prior.
The true times come from a grid twice as fine, so that the intervals are tested against the errors
of the solver too.

    python examples/learn_from_travel_times.py --quick   # half a minute: a smaller medium
    python examples/learn_from_travel_times.py           # two minutes on one core

It needs geoopt (the extra "examples"), and writes ``table.md`` and ``plot.png``.

Result of ``python examples/learn_from_travel_times.py`` (132 s of CPU on one core): 80 numbers from
380 times with noise of 1 %.

    | unit ball       | rms error | mean standard deviation | true value in 95 % interval |
    |-----------------|-----------|-------------------------|-----------------------------|
    | centre, down    | 0.074     | 0.088                   | 15 of 16                    |
    | centre, right   | 0.127     | 0.106                   | 14 of 16                    |
    | long half-axis  | 0.171     | 0.168                   | 15 of 16                    |
    | short half-axis | 0.041     | 0.061                   | 16 of 16                    |

The times are met to 0.96 of their noise, and 60 of the 64 values lie in their intervals, 94 %.
Nodes at the rim, which few paths pass, have the widest intervals. The intervals hold where the
search has converged: after 250 steps only 43 to 55 of the values lay in theirs, though the misfit
was 1.0 to 1.3 of the noise. On the small grid of ``--quick`` the solver's own errors are as large
as the noise, and the intervals too short.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import geoopt
import matplotlib
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from finslerconv.balls import Ellipse
from finslerconv.geodesics import GridMetric, distance
from finslerconv.metrics import Randers

SPD = geoopt.SymmetricPositiveDefinite()  # with the affine-invariant metric
DISC = geoopt.PoincareBall()

# The prior: metrics lie about this far from an isotropic one, in the distances of the manifolds.
PRIOR_M, PRIOR_U = 1.0, 1.0

ORANGE, GREEN, BLUE, INK = "#E69F00", "#009E73", "#0072B2", "#22272E"


@dataclass(frozen=True)
class Survey:
    """What was observed: stations, and the time from each to each, with noise."""

    stations: Tensor
    """Nodes of the grid, shape (n, 2)."""

    times: Tensor
    """``times[i, j]`` is that from station ``i`` to ``j``, shape (n, n); its diagonal is 0."""

    noise: float
    """Standard deviation of the times."""


def to_grid(M: Tensor, u: Tensor, size: int) -> Randers:
    """Return the metrics at the nodes of a grid (size, size), of those at the coarse nodes.

    Entries of ``M`` and ``omega`` are interpolated bilinearly: pairs with ``M > omega omega'`` are
    a convex set, so metrics come out.
    """
    entries = torch.cat((M.flatten(-2), one_forms(M, u)), -1).movedim(-1, 0)[None]
    fine = functional.interpolate(entries, (size, size), mode="bilinear", align_corners=True)
    fine = fine[0].movedim(0, -1)
    return Randers(fine[..., :4].unflatten(-1, (2, 2)), fine[..., 4:], validate=False)


def one_forms(M: Tensor, u: Tensor) -> Tensor:
    """Return ``omega = L u`` with ``M = L L'``, so that ``|omega|_{M^-1} = |u|``."""
    return (torch.linalg.cholesky(M) @ u[..., None])[..., 0]


def travel_times(metric: Randers, stations: Tensor, refined: int = 1) -> Tensor:
    """Return the times from each station to each, shape (n, n)."""
    field = GridMetric(metric, spacing=1 / refined, validate=False)
    maps = distance(field, stations[:, None].to(metric.M.dtype))
    rows, columns = (stations * refined).unbind(-1)
    return maps[:, rows, columns]


def truth(nodes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return smooth random metrics at the coarse nodes: fast along a turning direction, windy."""
    i, j = torch.meshgrid(*(torch.linspace(0, 1, nodes, dtype=torch.float64),) * 2, indexing="ij")
    phase = 2 * math.pi * torch.rand(4, generator=generator, dtype=torch.float64)
    angle = phase[0] + 1.5 * i + 1.2 * j
    along = torch.stack((angle.cos(), angle.sin()), -1)
    eye = torch.eye(2, dtype=torch.float64)
    stretch = (1.3 + 0.5 * torch.sin(3 * j + phase[1]))[..., None, None]
    fast = along[..., :, None] * along[..., None, :]
    M = (eye - fast) * stretch + fast / stretch
    turn = phase[2] + 3 * i - 2 * j
    strength = 0.35 + 0.2 * torch.cos(3 * i + phase[3])
    return M, strength[..., None] * torch.stack((turn.cos(), turn.sin()), -1)


def observe(
    M: Tensor, u: Tensor, size: int, n_stations: int, noise: float, generator: torch.Generator
) -> Survey:
    """Place stations and measure the times between them."""
    chosen: list[Tensor] = []
    while len(chosen) < n_stations:  # none next to another
        place = torch.randint(1, size - 1, (2,), generator=generator)
        if all((place - other).abs().max() > size // 12 for other in chosen):
            chosen.append(place)
    stations = torch.stack(chosen)
    exact = travel_times(to_grid(M, u, 2 * size - 1), stations, refined=2)
    sigma = noise * float(exact.mean())
    errors = sigma * torch.randn(exact.shape, generator=generator, dtype=exact.dtype)
    return Survey(stations, exact + errors.fill_diagonal_(0), sigma)


def isotropic(survey: Survey, nodes: int) -> Tensor:
    """Return the isotropic metric of the mean slowness, at all nodes: where the search starts."""
    apart = torch.cdist(survey.stations.double(), survey.stations.double())
    slowness = float(survey.times.sum() / apart.sum())
    return (slowness**2 * torch.eye(2, dtype=torch.float64)).expand(nodes, nodes, 2, 2).clone()


def learn(survey: Survey, size: int, nodes: int, steps: int) -> tuple[Tensor, Tensor, list[float]]:
    """Return the most probable metrics at the coarse nodes, and the misfit at each step."""
    start = isotropic(survey, nodes)
    M = geoopt.ManifoldParameter(start.clone(), manifold=SPD)
    # Distances from the centre of the disc have no derivative there.
    u = geoopt.ManifoldParameter(torch.full_like(start[..., 0], 1e-3), manifold=DISC)
    optimiser = geoopt.optim.RiemannianAdam([M, u], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=1e-4)
    n = len(survey.stations)
    misfits = []
    for _ in track(range(steps), description="learning"):
        optimiser.zero_grad()
        times = travel_times(to_grid(M, u, size), survey.stations)
        misfit = ((times - survey.times) / survey.noise).square().sum()
        away_M = (torch.linalg.eigvalsh(M) / start[..., 0, :1]).log() / PRIOR_M
        away_u = DISC.dist0(u) / PRIOR_U
        prior = away_M.square().sum() + away_u.square().sum()
        ((misfit + prior) / 2).backward()
        optimiser.step()
        schedule.step()
        misfits.append(math.sqrt(misfit.item() / (n * n - n)))
    return M.detach(), u.detach(), misfits


def intervals(M: Tensor, u: Tensor, survey: Survey, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return covariances of the tangent coordinates, and the derivatives of the balls in them.

    Coordinates of a node: three of a symmetric S with ``L exp(S) L'``, ``M = L L'``, and two of the
    step of ``u`` in the length of the Poincaré metric. The third tensor holds the balls: centre
    and half-axes of each node's unit ball.
    """
    L = torch.linalg.cholesky(M)
    basis = torch.tensor(
        [[[1.0, 0], [0, 0]], [[0, 0], [0, 1.0]], [[0, 0.5**0.5], [0.5**0.5, 0]]], dtype=M.dtype
    )
    conformal = (1 - u.square().sum(-1, keepdim=True)) / 2
    theta = torch.zeros(*u.shape[:-1], 5, dtype=M.dtype, requires_grad=True)
    step = torch.linalg.matrix_exp(torch.einsum("...k,kij->...ij", theta[..., :3], basis))
    moved = L @ step @ L.mT, u + conformal * theta[..., 3:]

    times = travel_times(to_grid(*moved, size), survey.stations)
    pairs = (~torch.eye(len(times), dtype=torch.bool)).nonzero()
    J = torch.stack(
        [
            torch.autograd.grad(times[i, j], theta, retain_graph=True)[0].flatten()
            for i, j in track(pairs, description="derivatives")
        ]
    )
    prior = torch.tensor([PRIOR_M**-2] * 3 + [PRIOR_U**-2] * 2, dtype=M.dtype)
    precision = J.mT @ J / survey.noise**2 + torch.diag(prior.repeat(len(J[0]) // 5))
    balls = ball_numbers(*moved)
    slopes = torch.stack(
        [
            torch.autograd.grad(number, theta, retain_graph=True)[0].flatten()
            for number in balls.flatten()
        ]
    )
    return torch.linalg.inv(precision), slopes, balls.detach()


NUMBERS = ("centre, down", "centre, right", "long half-axis", "short half-axis")


def ball_numbers(M: Tensor, u: Tensor) -> Tensor:
    """Return centre and half-axes of the unit balls, shape (..., 4)."""
    ellipse = Ellipse.of(Randers(M, one_forms(M, u), validate=False))
    return torch.cat((ellipse.centre, ellipse.axes), -1)


def report(found: Tensor, deviation: Tensor, true: Tensor, misfit: float) -> str:
    """Return the table: errors, widths of the intervals, and coverage."""
    lines = ["| unit ball | rms error | mean standard deviation | true value in 95 % interval |"]
    lines.append("|---|---|---|---|")
    error = (found - true).flatten(0, -2)
    deviation = deviation.flatten(0, -2)
    inside = error.abs() <= 1.96 * deviation
    for k, name in enumerate(NUMBERS):
        rms = float(error[:, k].square().mean().sqrt())
        hits, n = int(inside[:, k].sum()), len(inside)
        lines.append(
            f"| {name} | {rms:.3f} | {float(deviation[:, k].mean()):.3f} | {hits} of {n} |"
        )
    hits, n = int(inside.sum()), inside.numel()
    lines += ["", f"Misfit {misfit:.2f} of the noise; {hits} of {n} values in their intervals."]
    return "\n".join(lines)


def plot(
    true: Randers, found: Randers, survey: Survey, size: int, bars: Tensor, values: Tensor,
    true_values: Tensor, misfits: list[float], path: Path,
) -> None:  # fmt: skip
    """Draw the balls, the centres with their intervals, and the misfit."""
    figure = Figure(figsize=(12.4, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1, 0.9])
    nodes = true.M.shape[0]
    step = (size - 1) / (nodes - 1)
    angles = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    circle = torch.stack((angles.cos(), angles.sin()), -1)[:, None, None]
    at = step * torch.stack(
        torch.meshgrid(*(torch.arange(nodes, dtype=torch.float64),) * 2, indexing="ij"), -1
    )
    for metric, colour, width, label in (
        (true, INK, 1.0, "true"), (found, ORANGE, 1.8, "learned"),
    ):  # fmt: skip
        rim = at + 0.3 * step * metric.indicatrix(circle)
        left.plot(*rim.flatten(1, 2).movedim(-1, 0).flip(0), color=colour, lw=width)
        left.plot([], [], color=colour, lw=width, label=label)
    left.scatter(
        *survey.stations.T.flip(0), s=22, color=BLUE, zorder=5, label="station", marker="^"
    )
    left.set(xlim=(-0.6 * step, size + 0.6 * step), ylim=(size + 0.6 * step, -0.6 * step))
    left.set(aspect="equal", xlabel="column (px)", ylabel="row (px)")
    left.set_title("Unit balls at the nodes")
    left.legend(frameon=False, fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.14))
    for k, (colour, name) in enumerate(((GREEN, "down"), (BLUE, "right"))):
        middle.errorbar(
            true_values[..., k].flatten(), values[..., k].flatten(), 1.96 * bars[..., k].flatten(),
            fmt="o", ms=3.5, lw=1, color=colour, label=name,
        )  # fmt: skip
    span = [float(true_values[..., :2].min()), float(true_values[..., :2].max())]
    middle.plot(span, span, color=INK, lw=0.8, zorder=0)
    middle.set(xlabel="true (px)", ylabel="learned, with 95 % interval (px)")
    middle.set_title("Centre of the unit ball: the wind")
    middle.legend(frameon=False, fontsize=8, loc="upper left")
    right.semilogy(misfits, color=ORANGE)
    right.axhline(1, color=INK, lw=0.8)
    right.text(len(misfits), 1.04, "the noise", ha="right", va="bottom", fontsize=8)
    right.set(xlabel="step of Riemannian Adam", title="Misfit of the times, over the noise")
    for ax in (middle, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Make a medium, observe it, learn it, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute: a smaller medium")
    parser.add_argument("--size", type=int, default=49, help="nodes of the grid along a side")
    parser.add_argument("--nodes", type=int, default=4, help="coarse nodes along a side")
    parser.add_argument("--stations", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.01, help="of the mean time")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/travel_times"))
    options = parser.parse_args()
    if options.quick:
        options.size, options.nodes, options.stations, options.steps = 25, 3, 10, 150
    matplotlib.use("agg")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)

    start = time.process_time()
    generator = torch.Generator().manual_seed(options.seed)
    M, u = truth(options.nodes, generator)
    survey = observe(M, u, options.size, options.stations, options.noise, generator)
    found_M, found_u, misfits = learn(survey, options.size, options.nodes, options.steps)
    covariance, slopes, balls = intervals(found_M, found_u, survey, options.size)
    deviation = (slopes @ covariance @ slopes.mT).diagonal().sqrt().reshape(balls.shape)
    true_balls = ball_numbers(M, u)

    text = report(balls, deviation, true_balls, misfits[-1])
    (options.output / "table.md").write_text(text + "\n")
    metrics = [Randers(m, one_forms(m, w)) for m, w in ((M, u), (found_M, found_u))]
    plot(
        *metrics, survey, options.size, deviation, balls, true_balls, misfits,
        options.output / "plot.png",
    )  # fmt: skip
    print(text)
    n = options.stations
    print(
        f"{n * n - n} times between {n} stations, {5 * options.nodes**2} numbers, "
        f"{time.process_time() - start:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
