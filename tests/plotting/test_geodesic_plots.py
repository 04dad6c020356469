"""Pictures of distances and paths."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from finslerconv import plotting
from finslerconv.geodesics import GridMetric, distance


@pytest.fixture
def ax():
    return Figure().subplots()


def drawn(ax):
    """Render what has been drawn, as NumPy's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_distances_and_paths_of_a_map(ax):
    field = GridMetric(torch.eye(2).expand(12, 15, 2, 2))
    found = distance(field, (5, 3), full=True)
    plotting.distance_map(found, image=np.zeros((12, 15)), ax=ax)
    plotting.paths([found.path((9.0, 12.0))], labels=["there"], ax=ax)
    # Rows run down, columns to the right.
    line = ax.lines[-1]
    np.testing.assert_allclose(line.get_xydata()[[0, -1]], [[3, 5], [12, 9]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["there"]
    assert drawn(ax).std() > 0


def test_there_and_back_are_both_seen(ax):
    steps = np.arange(41.0)
    stairs = np.stack(
        (np.floor(steps / 2), np.ceil(steps / 2)), -1
    )  # a diagonal from pixel to pixel
    plotting.paths(
        [stairs, stairs[::-1]], labels=["there", "back"], ends=("from", "to"),
        image=np.zeros((21, 21)), ax=ax,
    )  # fmt: skip
    there, back = (line for line in ax.lines if not line.get_label().startswith("_"))
    assert there.get_linestyle() == "-"
    assert back.get_linestyle() == "--"
    # Arrows point along the diagonal, not along a step of the stairs.
    for arrow, sign in zip(ax.patches, (1, -1), strict=True):
        tail, head = arrow._posA_posB
        way = np.subtract(head, tail) / np.linalg.norm(np.subtract(head, tail))
        np.testing.assert_allclose(way, sign * np.sqrt([0.5, 0.5]), atol=0.15)
    # Each end is marked once, the start in white, and named.
    marks = [(tuple(m.get_offsets()[0]), tuple(m.get_facecolor()[0][:3])) for m in ax.collections]
    assert [place for place, _ in marks] == [(0, 0), (20, 20)]
    assert marks[0][1] == (1, 1, 1) != marks[1][1]
    assert [(t.get_text(), t.xy) for t in ax.texts] == [("from", (0, 0)), ("to", (20, 20))]
    # The legend is below the picture.
    drawn(ax)
    assert ax.get_legend().get_window_extent().y1 <= ax.get_window_extent().y0


@pytest.fixture
def terrain():
    """A field of 12 x 15 nodes, far from each other and from the origin."""
    M = np.broadcast_to(np.eye(2), (12, 15, 2, 2))
    return GridMetric(M, spacing=(30.0, 10.0), origin=(200.0, -50.0))


#: Half a node beyond the outermost: left, right, bottom, top.
FRAME = (-55.0, 95.0, 545.0, 185.0)


def test_distances_are_drawn_where_their_field_is(ax, terrain):
    found = distance(terrain, (350.0, 20.0), full=True)
    plotting.distance_map(found, image=np.zeros((12, 15)), ax=ax)
    assert [image.get_extent() for image in ax.images] == [list(FRAME), list(FRAME)]
    assert ax.get_aspect() == 1
    # The lines are circles around the source, in the field's units.
    lines = next(c for c in ax.collections if hasattr(c, "levels"))
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        radii = np.hypot(path.vertices[:, 0] - 20, path.vertices[:, 1] - 350)
        np.testing.assert_allclose(radii, level, atol=4)
    plotting.paths([found.path((500.0, 80.0))], field=terrain, ax=ax)
    np.testing.assert_allclose(ax.lines[-1].get_xydata()[[0, -1]], [[20, 350], [80, 500]])
    assert (ax.get_xlim(), ax.get_ylim()) == (FRAME[:2], FRAME[2:])


def test_arrays_of_distances_take_a_field(ax, terrain):
    plotting.distance_map(distance(terrain, (350.0, 20.0)), field=terrain, ax=ax)
    assert ax.images[0].get_extent() == list(FRAME)
    wrong = GridMetric(np.broadcast_to(np.eye(2), (4, 4, 2, 2)))
    with pytest.raises(ValueError, match=r"field: expected the one of the distances"):
        plotting.distance_map(np.zeros((12, 15)), field=wrong, ax=ax)


def test_paths_over_a_picture_of_the_field(ax, terrain):
    curve = np.array([[200.0, -50.0], [530.0, 90.0]])  # from the first node to the last
    # A node for each pixel, and a picture twice as fine.
    for shape in ((12, 15), (23, 29)):
        plotting.paths(curve, image=np.zeros(shape), field=terrain, ax=ax)
        left, right, bottom, top = ax.images[-1].get_extent()
        height, width = shape
        pixel = (bottom - top) / height, (right - left) / width
        centres = [[left + pixel[1] / 2, top + pixel[0] / 2]]
        centres += [[right - pixel[1] / 2, bottom - pixel[0] / 2]]
        np.testing.assert_allclose(centres, curve[:, ::-1])
    with pytest.raises(ValueError, match="image: expected a picture of 12 x 15"):
        plotting.paths(curve, image=np.zeros((12, 14)), field=terrain, ax=ax)


def test_a_curve_outside_the_picture_asks_for_its_field(ax, terrain):
    curve = np.array([[5.0, 5.0], [530.0, 90.0]])
    with pytest.warns(UserWarning, match=r"point 1 .* outside the picture of 12 x 15 .* field="):
        plotting.paths(curve, image=np.zeros((12, 15)), ax=ax)


def test_rows_run_down_without_a_picture(ax):
    plotting.paths(np.array([[0.0, 0.0], [2.0, 3.0]]), ax=ax)
    assert ax.yaxis_inverted()
    assert ax.get_aspect() == 1


@pytest.mark.parametrize("n", [1, 3, 12, 40])
def test_a_legend_holds_any_number_of_curves(n):
    ax = Figure(layout="constrained").subplots()
    curves = [np.array([[0.0, 0.0], [20.0, i]]) for i in range(n)]
    plotting.paths(curves, labels=[f"path {i}" for i in range(n)], image=np.zeros((41, 60)), ax=ax)
    drawn(ax)
    legend, picture = ax.get_legend().get_window_extent(), ax.get_window_extent()
    whole = ax.figure.get_window_extent()
    assert len(ax.get_legend().get_texts()) == n
    assert whole.x0 <= legend.x0 < legend.x1 <= whole.x1
    assert whole.y0 <= legend.y0 < legend.y1 <= picture.y0
    assert picture.width > whole.width / 2
    # All are told apart.
    named = [line for line in ax.lines if not line.get_label().startswith("_")]
    styles = {(line.get_color(), str(line._dash_pattern)) for line in named}
    assert len(styles) == min(n, 22)


def test_unreached_nodes_stay_blank(ax):
    distances = np.hypot(*np.mgrid[0:6, 0:8])
    distances[2:4, 2:5] = np.inf
    plotting.distance_map(distances, label=None, ax=ax)
    shown = ax.images[-1].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.isinf(distances))
    assert len(ax.figure.axes) == 1  # no colour bar


@pytest.mark.unchecked
def test_a_field_is_a_grid_metric(ax):
    with pytest.raises(TypeError, match="field: expected a GridMetric, got ndarray"):
        plotting.distance_map(np.zeros((4, 4)), field=np.zeros((4, 4)), ax=ax)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("distances", "options", "message"),
    [
        (np.zeros((2, 5, 5)), {}, r"distances: expected those of one problem .* distance\[i\]"),
        (
            np.zeros((4, 4)),
            {"field": GridMetric(np.broadcast_to(np.eye(3), (4,) * 3 + (3, 3)))},
            "field: expected one in the plane",
        ),
        (np.full((4, 4), np.inf), {}, "distances: expected a finite one, got none"),
        (np.zeros((4, 4)), {"levels": 0}, "levels: expected a positive integer, got 0"),
        (np.zeros((4, 4)), {"image": np.zeros((5, 4))}, "image: expected a picture of 4 x 4"),
    ],
)
def test_wrong_distances(ax, distances, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.distance_map(distances, ax=ax, **options)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("curves", "options", "message"),
    [
        (np.zeros((1, 2)), {}, "curves: expected at least two points, got 1"),
        (np.zeros((3, 3)), {}, r"curves: expected points \(row, column\)"),
        ([np.zeros((2, 2))], {"labels": ["a", "b"]}, "labels: expected 1, one for each curve"),
        (np.zeros((2, 2)), {"ends": ("a",)}, "ends: expected the names of the start and the end"),
    ],
)
def test_wrong_curves(ax, curves, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.paths(curves, ax=ax, **options)
