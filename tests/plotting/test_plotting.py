import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from finslerconv import balls, plotting
from finslerconv.geodesics import GridMetric
from finslerconv.metrics import CallableMetric, Euclidean, Randers, Riemannian

RANDERS = Randers(np.array([[0.3, 0.1], [0.1, 0.15]]), np.array([0.1, 0.22]))


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def closed():
    """For what draws on pyplot's figures."""
    mpl.use("Agg")
    from matplotlib import pyplot

    yield
    pyplot.close("all")


def field(kind=np.float64, size=(12, 16)):
    """A field whose balls grow to the right, drifting against the columns."""
    growth = 1 + np.arange(size[1]) / size[1]
    M = np.eye(2) * np.array([1.0, 0.25]) / growth[:, None, None] ** 2
    omega = np.stack((np.zeros(size[1]), 0.2 / growth), axis=-1)
    M, omega = (np.broadcast_to(x, (1, size[0], *x.shape)).copy() for x in (M, omega))
    if kind is torch:
        return Randers(torch.tensor(M), torch.tensor(omega, requires_grad=True))
    return Randers(M, omega)


def outlines(ax):
    """The balls' boundaries as (row, column)."""
    last = [c for c in ax.collections if isinstance(c, PolyCollection)][-1]
    return [path.vertices[:-1, ::-1] for path in last.get_paths()]


def scattered(ax):
    return [c for c in ax.collections if isinstance(c, PathCollection)]


METRICS = {
    "euclidean": Euclidean(),
    "riemannian": Riemannian(np.diag([1.0, 1e-4])),
    "randers": RANDERS,
    "randers, extreme": Randers(np.diag([1.0, 1e-3]), np.array([0.0, 0.99e-3**0.5])),
    "taxicab": CallableMetric(lambda v: np.abs(v).sum(-1)),
    "torch": Randers(torch.eye(2), torch.tensor([0.1, 0.5], requires_grad=True)),
}


@pytest.mark.parametrize("name", METRICS)
def test_single_ball_is_the_indicatrix_with_columns_as_x(name, ax):
    metric = METRICS[name]
    assert plotting.unit_balls(metric, ax=ax) is ax
    (boundary,) = outlines(ax)
    lengths = metric.norm(torch.tensor(boundary.copy()).float() if name == "torch" else boundary)
    np.testing.assert_allclose(
        np.asarray(lengths.detach() if name == "torch" else lengths), 1, rtol=1e-5
    )
    # The polygon is the ball to the eye: its area is that of the ball to a percent.
    rows, columns = boundary.T
    area = abs(np.sum(rows * np.roll(columns, 1) - columns * np.roll(rows, 1))) / 2
    if name != "euclidean":
        assert area == pytest.approx(
            float(torch.as_tensor(balls.volume(metric)).detach()), rel=0.01
        )
    bottom, top = ax.get_ylim()
    assert bottom > top  # rows run down


def test_balls_of_a_field_are_those_of_its_pixels(ax):
    metric = field()
    pixels = np.array([[2, 3], [10, 14]])
    plotting.unit_balls(metric, pixels, image=np.zeros((12, 16)), ax=ax)
    for (row, column), boundary in zip(pixels, outlines(ax), strict=True):
        np.testing.assert_allclose(
            metric[0, row, column].norm(boundary - [row, column]), 1, rtol=1e-9
        )
    marks = scattered(ax)[-1].get_offsets()
    np.testing.assert_array_equal(marks, pixels[:, ::-1])


@pytest.mark.parametrize("batch", [(), (1,)])
def test_balls_of_a_grid_are_where_its_nodes_are(batch, ax):
    M = np.broadcast_to(np.diag([1 / 20**2, 1 / 5**2]), (*batch, 9, 13, 2, 2))
    grid = GridMetric(M, spacing=(30.0, 10.0), origin=(200.0, -50.0))
    plotting.ball_field(grid, image=np.zeros((9, 13)), spacing=4, ax=ax)
    centres = scattered(ax)[-1].get_offsets()[:, ::-1]
    rows, columns = 200 + 30 * np.array([0, 4, 8]), -50 + 10 * np.array([0, 4, 8, 12])
    np.testing.assert_allclose(centres.reshape(3, 4, 2)[:, 0, 0], rows)
    np.testing.assert_allclose(centres.reshape(3, 4, 2)[0, :, 1], columns)
    for centre, boundary in zip(centres, outlines(ax), strict=True):
        np.testing.assert_allclose(np.linalg.norm((boundary - centre) / (20, 5), axis=-1), 1)
    assert ax.images[0].get_extent() == [-55, 75, 455, 185]
    assert (*ax.get_xlim(), *ax.get_ylim()) == (-55, 75, 455, 185)
    assert ax.get_aspect() == 1
    other = Figure().subplots()
    plotting.unit_balls(grid, at=[[2, 3]], ax=other)
    np.testing.assert_allclose(scattered(other)[-1].get_offsets(), [[-20, 260]])
    assert (*other.get_xlim(), *other.get_ylim()) == (-55, 75, 455, 185)


def test_balls_of_a_grid_are_apart_along_both_axes(ax):
    """By default: 20 on the longer side, in its units, not in nodes."""
    M = np.broadcast_to(np.eye(2), (201, 41, 2, 2))
    plotting.ball_field(GridMetric(M, spacing=(1.0, 10.0)), ax=ax)
    rows, columns = (np.unique(c) for c in scattered(ax)[-1].get_offsets()[:, ::-1].T)
    assert np.diff(rows).max() == np.diff(columns).max() == 20


@pytest.mark.unchecked
@pytest.mark.parametrize("draw", [plotting.ball_field, lambda m, ax: plotting.unit_balls(m, ax=ax)])
def test_messages_say_what_can_be_done(draw, ax):
    own = CallableMetric(lambda v: (v**2).sum(-1) ** 0.5 * np.ones((3, 4, 5)))
    with pytest.raises(ValueError, match="CallableMetric has no items: make it for one picture"):
        draw(own, ax=ax)
    several = Riemannian(np.broadcast_to(np.eye(2), (3, 4, 5, 2, 2)))
    with pytest.raises(ValueError, match=r"take one of a batch with metric\[i\]"):
        draw(several, ax=ax)
    grids = GridMetric(np.broadcast_to(np.eye(2), (3, 4, 5, 2, 2)))
    with pytest.raises(ValueError, match=r"GridMetric\.from_metric\(field\.metric\[i\]"):
        draw(grids, ax=ax)
    # The advice can be followed.
    draw_one = GridMetric.from_metric(grids.metric[1])
    plotting.ball_field(draw_one, ax=ax)
    with pytest.raises(ValueError, match="field: expected one in the plane"):
        draw(GridMetric(np.broadcast_to(np.eye(3), (4, 4, 4, 3, 3))), ax=ax)
    with pytest.raises(TypeError, match="expected a FinslerMetric or a GridMetric, got ndarray"):
        draw(np.eye(2), ax=ax)


@pytest.mark.parametrize("colour_by", [None, "anisotropy", "asymmetry"])
@pytest.mark.parametrize("kind", [np.float64, torch])
def test_field_of_balls(kind, colour_by, ax):
    metric = field(kind)
    plotting.ball_field(metric, spacing=4, scale=0.5, colour_by=colour_by, ax=ax)
    boundaries = outlines(ax)
    assert len(boundaries) == 3 * 4
    centres = scattered(ax)[-1].get_offsets()[:, ::-1]
    plain = field()
    for centre, boundary in zip(centres, boundaries, strict=True):
        at = plain[0, int(centre[0]), int(centre[1])]
        np.testing.assert_allclose(at.norm(boundary - centre), 0.5, rtol=1e-9)
    if colour_by is not None:
        drawn = [c for c in ax.collections if isinstance(c, PolyCollection)][-1].get_array()
        index = 0, centres[:, 0].astype(int), centres[:, 1].astype(int)
        expected = (
            plain[index].asymmetry_ratio()
            if colour_by == "asymmetry"
            else np.divide(*balls.Ellipse.of(plain[index]).axes.T)
        )
        np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_field_of_a_metric_that_knows_only_its_norm(ax):
    size = np.linspace(1, 2, 6)
    metric = CallableMetric(lambda v: np.abs(v).max(-1) / size + np.zeros((5, 6)))
    plotting.ball_field(metric, spacing=1, colour_by="anisotropy", ax=ax)
    boundaries = outlines(ax)
    values = [c for c in ax.collections if isinstance(c, PolyCollection)][-1].get_array()
    np.testing.assert_allclose(values, 1, rtol=0.02)  # squares
    widths = [np.ptp(b[:, 1]) for b in boundaries[:6]]
    np.testing.assert_allclose(widths, 2 * size, rtol=0.01)


def test_anisotropy_of_a_rectangle_off_centre(ax):
    """Seen from within, at a quarter: the second moments do not depend on where from."""
    metric = CallableMetric(
        lambda v: (
            np.stack(
                np.broadcast_arrays(np.abs(v[..., 0]), v[..., 1] / 4.5, -v[..., 1] / 1.5), -1
            ).max(-1)
            + np.zeros((2, 2))
        )
    )
    plotting.ball_field(metric, spacing=1, colour_by="anisotropy", ax=ax)
    values = [c for c in ax.collections if isinstance(c, PolyCollection)][-1].get_array()
    np.testing.assert_allclose(values, 3, rtol=0.01)


def test_kernel_samples(ax):
    points = balls.lattice(3).points
    weights = np.arange(-4.0, 5.0).reshape(3, 3)
    plotting.kernel_samples(torch.tensor(points), weights, at=(5, 7), image=np.ones((9, 9)), ax=ax)
    markers = scattered(ax)[0]
    np.testing.assert_allclose(markers.get_offsets(), (points + np.array([5, 7]))[:, ::-1])
    np.testing.assert_allclose(markers.get_sizes(), 60 * np.abs(weights).ravel() / 4)
    colours = markers.cmap(markers.norm(markers.get_array()))
    assert colours[0][2] > colours[0][0]  # negative is blue
    assert colours[-1][0] > colours[-1][2]  # positive is red


@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("order", ["numbers", "line", None])
def test_reference_points(map, order, ax):
    reference = balls.concentric(3)
    plotting.reference_points(reference, RANDERS, map=map, order=order, ax=ax)
    images = getattr(balls, map)(RANDERS, reference.points)[:, ::-1]
    np.testing.assert_allclose(scattered(ax)[-1].get_offsets(), images)
    if order == "numbers":
        assert [text.get_text() for text in ax.texts] == [str(i) for i in range(9)]
        np.testing.assert_allclose([text.xy for text in ax.texts], images)
    if order == "line":
        np.testing.assert_allclose(ax.lines[0].get_xydata(), images)


def test_reference_set_by_itself_is_in_the_disc(ax):
    plotting.reference_points(balls.sunflower(20), ax=ax)
    np.testing.assert_allclose(scattered(ax)[-1].get_offsets(), balls.sunflower(20).points[:, ::-1])


def test_side_by_side():
    pictures = [torch.rand(1, 3, 20, 30), np.random.default_rng(0).random((20, 30))]
    zoom = plotting.Zoom(2, 5, 8, 10)
    figure = plotting.side_by_side(pictures, ["one", "two"], zoom=zoom, highlight=1)
    assert isinstance(figure, Figure)
    first, second, detail, _ = figure.axes
    assert [first.get_title(), second.get_title()] == ["one", "two"]
    assert second.title.get_fontweight() == "bold"
    np.testing.assert_allclose(
        detail.images[0].get_array(), pictures[0][0, :, 2:10, 5:15].permute(1, 2, 0)
    )
    figure.canvas.draw()


def test_side_by_side_in_rows():
    figure = plotting.side_by_side([np.zeros((4, 4))] * 5, list("abcde"), columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", "d", "e", ""]


@pytest.mark.parametrize(
    "picture",
    [
        np.full((6, 5), 0.25),
        torch.full((1, 6, 5), 0.25),
        torch.full((1, 1, 6, 5), 0.25, dtype=torch.bfloat16, requires_grad=True),
        np.full((6, 5, 1), 0.25, dtype=np.float16),
    ],
)
def test_show_takes_any_layout(picture, ax):
    plotting.show(picture, dim=0.2, ax=ax)
    np.testing.assert_allclose(ax.images[0].get_array(), np.full((6, 5), 0.4), rtol=1e-3)


def test_integers_are_divided_by_their_largest(ax):
    plotting.show(np.full((3, 4, 4), 255, dtype=np.uint8), ax=ax)
    assert (ax.images[0].get_array() == 1).all()


@pytest.mark.usefixtures("closed")
def test_new_figures_are_those_of_pyplot():
    from matplotlib import pyplot

    ax = plotting.unit_balls(RANDERS)
    assert ax.figure.number in pyplot.get_fignums()


@pytest.mark.slow
def test_import_leaves_pyplot_alone():
    code = "import sys, finslerconv.plotting; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_balls_have_the_colour_asked_for(ax):
    plotting.unit_balls(RANDERS, colour="#0072B2", label="here", ax=ax)
    assert tuple(ax.collections[1].get_edgecolor()[0]) == to_rgba("#0072B2")
    assert ax.get_legend_handles_labels()[1] == ["here"]


POINTS = balls.lattice(3).points


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plotting.unit_balls(Euclidean(3), ax=ax), "metric: expected a planar metric"),
        (lambda ax: plotting.unit_balls(field(), ax=ax), "at: expected the pixels"),
        (lambda ax: plotting.unit_balls(RANDERS, [[0, 0]], ax=ax), "this is a single metric"),
        (lambda ax: plotting.unit_balls(field(), [[0.5, 1.0]], ax=ax), "at: expected integer"),
        (lambda ax: plotting.unit_balls(field(), [[0, 0, 1]], ax=ax), r"shape \(n, 2\)"),
        (
            lambda ax: plotting.unit_balls(field(), [[1, 1], [12, 3]], ax=ax),
            r"12 rows and 16 columns, got \[12, 3\] at index 1",
        ),
        (
            lambda ax: plotting.unit_balls(field(), [1, 1], image=np.zeros((16, 12)), ax=ax),
            r"image: expected the height and width of the field, \(12, 16\), got \(16, 12\)",
        ),
        (
            lambda ax: plotting.ball_field(Randers(np.eye(2), np.zeros((3, 4, 5, 2))), ax=ax),
            r"got batch shape \(3, 4, 5\)",
        ),
        (lambda ax: plotting.ball_field(RANDERS, ax=ax), "unit_balls draws that"),
        (lambda ax: plotting.ball_field(field(), spacing=0, ax=ax), "spacing: expected"),
        (lambda ax: plotting.ball_field(field(), scale=-1, ax=ax), "scale: expected"),
        (lambda ax: plotting.ball_field(field(), colour_by="x", ax=ax), "colour_by: expected"),
        (lambda ax: plotting.kernel_samples(np.zeros((3, 3)), ax=ax), "positions: expected points"),
        (
            lambda ax: plotting.kernel_samples(np.array([[0, 0], [0, np.nan]]), ax=ax),
            "at index 1",
        ),
        (lambda ax: plotting.kernel_samples(POINTS, np.ones(8), ax=ax), "weights: expected 9"),
        (lambda ax: plotting.kernel_samples(POINTS, at=3.0, ax=ax), "at: expected a pixel"),
        (
            lambda ax: plotting.reference_points(balls.lattice(3), field(), ax=ax),
            "metric: expected a single planar metric",
        ),
        (
            lambda ax: plotting.reference_points(balls.lattice(3), map="polar", ax=ax),
            "map: expected 'radial' or 'affine'",
        ),
        (
            lambda ax: plotting.reference_points(balls.lattice(3), order="snake", ax=ax),
            "order: expected",
        ),
        (lambda ax: plotting.reference_points(balls.lattice((3, 3, 3)), ax=ax), "reference: exp"),
        (lambda ax: plotting.show(np.zeros((2, 5, 5)), ax=ax), r"got \(2, 5, 5\)"),
        (lambda ax: plotting.show(np.zeros((0, 5)), ax=ax), r"got \(0, 5\)"),
        (lambda ax: plotting.show(np.zeros((5, 5)), dim=2, ax=ax), "dim: expected"),
        (lambda ax: plotting.side_by_side([], []), "images: expected at least one"),
        (lambda ax: plotting.side_by_side([np.zeros((4, 4))], []), "captions: expected 1"),
        (
            lambda ax: plotting.side_by_side([np.zeros((4, 4)), np.zeros((4, 5))], ["", ""]),
            "got 4 x 5 at index 1",
        ),
        (
            lambda ax: plotting.side_by_side(
                [np.zeros((4, 4))], [""], zoom=plotting.Zoom(2, 2, 3, 1)
            ),
            "zoom: expected a part of 4 x 4 pixels",
        ),
        (lambda ax: plotting.side_by_side([np.zeros((4, 4))], [""], columns=0), "columns:"),
        (lambda ax: plotting.side_by_side([np.zeros((4, 4))], [""], highlight=1), "highlight:"),
    ],
)
def test_errors(draw, message, ax):
    with pytest.raises(ValueError, match=message):
        draw(ax)


@pytest.mark.unchecked
def test_complex_numbers_are_no_picture(ax):
    with pytest.raises(TypeError, match="image: expected real numbers"):
        plotting.show(np.zeros((4, 4), dtype=complex), ax=ax)
