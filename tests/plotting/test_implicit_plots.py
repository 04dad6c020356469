"""The pictures of implicit metrics: what is drawn is what was fitted."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from torch import nn

from finslerconv import plotting
from finslerconv.balls import lattice, radial
from finslerconv.implicit import (
    ImplicitMetric,
    KernelPositions,
    implicit_metric,
    metric_of_positions,
)
from finslerconv.metrics import Randers
from finslerconv.nn import MetricConv2d
from finslerconv.ops import ConvGeometry


class Head(nn.Module):
    """Balls of 2 x 1 pixels, long to the right; those on the right drift down."""

    def forward(self, x):
        M = torch.diag(torch.tensor([1.0, 0.25], dtype=x.dtype)).expand(len(x), 8, 10, 2, 2)
        omega = torch.zeros(len(x), 8, 10, 2, dtype=x.dtype)
        omega[:, :, 5:, 0] = -0.5
        return Randers(M, omega)


@pytest.fixture(scope="module")
def result():
    layer = MetricConv2d(1, 1, 3, padding=1, metric=Head()).double()
    return implicit_metric(layer, torch.rand(2, 1, 8, 10, dtype=torch.float64))


#: Twice the size of the layer's input.
PICTURE = np.linspace(0, 1, 16 * 20).reshape(16, 20)

GEOMETRY = ConvGeometry.of(3, padding=1)


@pytest.fixture
def ax():
    return Figure().subplots()


def outlines(ax):
    last = [c for c in ax.collections if isinstance(c, PolyCollection)][-1]
    return [path.vertices[:-1, ::-1] for path in last.get_paths()]


def test_balls_are_those_of_the_pixels_in_pixels_of_the_picture(result, ax):
    plotting.implicit_balls(result, PICTURE, [[2, 3], [9, 16]], scale=1.0, ax=ax)
    # The nearest output pixels are (1, 1) and (4, 8), at 2 i + 0.5.
    left, right = outlines(ax)
    centre = np.array([2.5, 2.5])
    norms = np.sqrt((((left - centre) / [2, 4]) ** 2).sum(-1))
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    v = (right - [8.5, 16.5]) / 2
    lengths = np.sqrt(v[:, 0] ** 2 + v[:, 1] ** 2 / 4) - 0.5 * v[:, 0]
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    # And the samples lie in it, the corners of the square outside.
    samples = next(c for c in ax.collections if isinstance(c, PathCollection)).get_offsets()
    assert len(samples) == 18
    np.testing.assert_allclose(samples[4], [2.5, 2.5], atol=1e-9)
    np.testing.assert_allclose(samples[5], [6.5, 2.5], atol=1e-6)
    assert ax.get_title() == "unit balls and samples"


def test_grid_of_balls_stays_apart(result, ax):
    plotting.implicit_balls(result, PICTURE, samples=False, ax=ax)
    balls = outlines(ax)
    centres = np.array([b.mean(axis=0) for b in balls])
    assert len(balls) >= 4
    assert ax.get_title() == "unit balls"
    widths = [np.ptp(b[:, 1]) for b in balls]
    columns = np.unique(np.round(centres[:, 1], 3))
    assert np.diff(columns).min() > 0.95 * max(widths)


def test_scale_is_named(result, ax):
    plotting.implicit_balls(result, PICTURE, [3, 3], scale=2.5, ax=ax)
    assert ax.get_title().endswith("drawn 2.5 times as large")
    assert np.ptp(outlines(ax)[0][:, 1]) == pytest.approx(2.5 * 8, rel=1e-3)


@pytest.mark.parametrize(("what", "left", "right"), [("anisotropy", 2, None), ("drift", 0, 0.5)])
def test_colour_fields(result, what, left, right, ax):
    plotting.implicit_field(result, PICTURE, what, ax=ax)
    drawn = ax.images[-1]
    values = drawn.get_array()
    assert values.shape == (8, 10)
    np.testing.assert_allclose(values[:, :5], left, atol=1e-6)
    if right is not None:
        np.testing.assert_allclose(values[:, 5:], right, rtol=1e-6)
    np.testing.assert_allclose(drawn.get_extent(), [-0.5, 19.5, 15.5, -0.5], atol=1e-9)
    if what == "drift":
        (arrows,) = [c for c in ax.collections if hasattr(c, "U")]
        assert (arrows.X > 9).all()  # where there is a drift
        assert (arrows.V > 0).all()  # down: against omega, rows run down
        np.testing.assert_allclose(arrows.U, 0, atol=1e-9)


def test_unexplained_pixels_have_no_colour(ax):
    points = torch.tensor(lattice(3).points).expand(1, 8, 10, 9, 2).clone()
    points[:, :, :5] += 5.0
    points[:, :, 5] *= 2
    result = metric_of_positions("half", KernelPositions(points, GEOMETRY, (8, 10), "", True))
    plotting.implicit_field(result, PICTURE, limit=2.0, ax=ax)
    assert (ax.images[-1].get_array().mask == (np.arange(10) < 5)).all()


def test_no_pixel_explained_is_said():
    result = implicit_metric(nn.Conv2d(1, 1, (1, 3)), torch.rand(1, 1, 8, 10))
    for what in ("anisotropy", "drift"):
        ax = Figure().subplots()
        plotting.implicit_field(result, PICTURE, what, ax=ax)
        assert len(ax.images) == 1  # the picture alone
        assert ax.texts[0].get_text() == "no pixel\nhas a metric"
    rose = plotting.orientation_rose(result, ax=Figure().add_subplot(projection="polar"))
    assert [text.get_text() for text in rose.texts] == ["no pixel\nhas a metric"]
    plotting.implicit_balls(result, PICTURE, ax=Figure().subplots())
    plotting.implicit_metric(result, PICTURE).canvas.draw()


def test_rose_shows_directions_as_one_sees_them(result):
    ax = Figure().add_subplot(projection="polar")
    assert plotting.orientation_rose(result, ax=ax) is ax
    angles = np.array([bar.get_x() + bar.get_width() / 2 for bar in ax.patches])
    radii = np.array([bar.get_height() for bar in ax.patches])
    assert len(radii) == 24
    # All long axes run to the right or left: the sectors beside 0 and pi.
    long = np.abs(np.sin(angles[radii > 0]))
    assert (long < math.sin(math.radians(8))).all()
    assert ax.get_theta_direction() == -1
    assert (radii**2).sum() / 2 == pytest.approx(12)


def test_field_that_is_the_same_everywhere_is_said():
    result = implicit_metric(nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 10))
    for what, text in (("anisotropy", "anisotropy 1"), ("drift", "drift 0")):
        ax = Figure().subplots()
        plotting.implicit_field(result, PICTURE, what, ax=ax)
        assert len(ax.images) == 1
        assert ax.texts[0].get_text() == f"the same everywhere:\n{text}"


@pytest.mark.parametrize("top", [1.1, 1.5, 3.0, 40.0, 1e3, 1e5])
def test_tick_labels_of_the_anisotropy_stay_apart(result, top, ax):
    plotting.implicit_field(result, PICTURE, limit=top, ax=ax)
    ax.figure.canvas.draw()
    bar = ax.figure.axes[-1]
    labels = [label.get_window_extent() for label in bar.get_xticklabels()]
    assert len(labels) >= 2
    for left, right in itertools.pairwise(labels):
        assert left.x1 < right.x0


def test_diverged_share_is_in_the_title():
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor(lattice(3).points).expand(1, 8, 10, 9, 2)
    points = points + torch.randn(points.shape, generator=generator, dtype=points.dtype)
    result = metric_of_positions("wild", KernelPositions(points, GEOMETRY, (8, 10), "", True))
    share = 100 * result.summary.diverged
    assert share > 5
    title = plotting.implicit_metric(result, PICTURE).subfigs[0].get_suptitle()
    assert f"{share:.3g} % diverged" in title


def test_rose_of_discs():
    result = implicit_metric(nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 10))
    ax = plotting.orientation_rose(result, ax=Figure().add_subplot(projection="polar"))
    assert "all balls" in ax.texts[0].get_text()


def test_whole_figure(result):
    figure = plotting.implicit_metric(result, PICTURE, batch=1)
    assert isinstance(figure, Figure)
    assert len(figure.subfigs) == 1
    colour = np.stack([PICTURE] * 3)
    other = implicit_metric(nn.Conv2d(1, 1, 5, padding=2), torch.rand(1, 1, 16, 20))
    figure = plotting.implicit_metric({"one": result, "two": other}, colour)
    assert [part.get_suptitle().split()[0] for part in figure.subfigs] == ["MetricConv2d", "Conv2d"]
    figure.canvas.draw()


def test_groups():
    layer = MetricConv2d(2, 2, 3, metric_groups=2).double()
    layer.head.conv.bias.data[0] = 1.0
    result = implicit_metric(layer, torch.rand(1, 2, 8, 10, dtype=torch.float64))
    drawn = []
    for group in (0, 1):
        ax = Figure().subplots()
        plotting.implicit_field(result, PICTURE, group=group, limit=5.0, ax=ax)
        drawn.append(float(ax.images[-1].get_array().mean()))
        assert ax.get_title().endswith(f", group {group}")
    assert drawn[0] > 1.2 * drawn[1]
    (part,) = plotting.implicit_metric(result, PICTURE, group=1).subfigs
    assert part.get_suptitle().endswith("its own metric, group 1 of 0 to 1")
    assert part.axes[0].get_title().endswith(", group 1")
    titles = [axes.get_title() for axes in part.axes]
    assert "long axes, all 2 groups" in titles


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: plotting.implicit_metric({}, PICTURE), ValueError, "at least one layer"),
        (
            lambda r: plotting.implicit_metric(3, PICTURE),
            TypeError,
            "result: expected what finslerconv.implicit.implicit_metric returns, got int",
        ),
        (
            lambda r: plotting.implicit_metric(r, PICTURE, batch=2),
            ValueError,
            "batch: expected an index below 2, got 2",
        ),
        (
            lambda r: plotting.implicit_field(r, PICTURE, group=1),
            ValueError,
            "group: expected an index below 1",
        ),
        (
            lambda r: plotting.implicit_field(r, PICTURE, "size"),
            ValueError,
            "what: expected 'anisotropy' or 'drift', got 'size'",
        ),
        (
            lambda r: plotting.implicit_balls(r, PICTURE, scale=0.0),
            ValueError,
            "scale: expected a positive number",
        ),
        (
            lambda r: plotting.implicit_balls(r, PICTURE, [[0, 20]]),
            ValueError,
            r"at: expected pixels of a field of 16 rows and 20 columns, got \[0, 20\]",
        ),
        (
            lambda r: plotting.orientation_rose(r, ax=Figure().subplots()),
            TypeError,
            "ax: expected polar axes",
        ),
    ],
)
def test_wrong_inputs(result, call, error, message):
    assert isinstance(result, ImplicitMetric)
    with pytest.raises(error, match=message):
        call(result)


def test_queries_are_drawn_where_they_are(ax):
    """Around given places, of two heads: balls at chosen queries, and one dot for each."""
    places = torch.rand(1, 1, 60, 2, generator=torch.Generator().manual_seed(0)).double()
    places = places * torch.tensor([7.0, 9.0])
    M = torch.diag(torch.tensor([4.0, 1.0])).double().expand(1, 2, 1, 60, 2, 2)
    points = radial(Randers(M, torch.zeros(1, 2, 1, 60, 2).double()), _taps()).movedim(0, -2)
    where = KernelPositions(
        points, None, (8, 10), "attention", True, standard=points, places=places
    )
    result = metric_of_positions("cloud", where, objective="enclosing")
    pixels = 2 * places[0, 0].numpy() + 0.5
    plotting.implicit_balls(result, PICTURE, pixels[7:8].round().astype(int), group=1, ax=ax)
    assert ax.get_title().endswith(", head 1")
    nearest = np.abs(pixels - pixels[7].round()).astype(float)
    nearest = pixels[(nearest**2).sum(-1).argmin()]
    (ball,) = outlines(ax)
    np.testing.assert_allclose(ball.mean(axis=0), nearest, atol=0.05)
    ax.clear()
    plotting.implicit_balls(result, PICTURE, scale=1.0, ax=ax)
    centres = np.array([ball.mean(axis=0) for ball in outlines(ax)])
    gaps = np.linalg.norm(centres[:, None] - centres, axis=-1) + 99 * np.eye(len(centres))
    assert 4 <= len(centres) < 60
    assert gaps.min() > 0.5
    for what in ("anisotropy", "drift"):
        ax.clear()
        plotting.implicit_field(result, PICTURE, what, limit=3.0, ax=ax)
        dots = next(c for c in ax.collections if isinstance(c, PathCollection))
        np.testing.assert_allclose(dots.get_offsets()[:, ::-1], pixels, atol=1e-6)
        assert np.ptp(dots.get_array()) < 1e-6
    figure = plotting.implicit_metric(result, PICTURE)
    assert "head 0 of 0 to 1" in figure.subfigs[0].get_suptitle()


def _taps():
    """Return the four corners of a square, and its middle sides, (8, 1, 1, 1, 1, 2)."""
    turn = torch.arange(8).double() * math.pi / 4
    return torch.stack((turn.sin(), turn.cos()), -1).view(8, 1, 1, 1, 1, 2)
