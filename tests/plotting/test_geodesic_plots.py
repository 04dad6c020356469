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


def test_unreached_nodes_stay_blank(ax):
    distances = np.hypot(*np.mgrid[0:6, 0:8])
    distances[2:4, 2:5] = np.inf
    plotting.distance_map(distances, label=None, ax=ax)
    shown = ax.images[-1].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.isinf(distances))
    assert len(ax.figure.axes) == 1  # no colour bar


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("distances", "options", "message"),
    [
        (np.zeros((2, 5, 5)), {}, "distances: expected those of one problem in the plane"),
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
