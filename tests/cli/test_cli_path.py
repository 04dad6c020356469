"""The command ``path``: shortest paths between two pixels of a photograph."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from finslerconv.cli import app
from finslerconv.cli._options import MetricOptions
from finslerconv.cli._path import default_ends, journey


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["path", *(str(argument) for argument in arguments)])


def corner_picture(n=64):
    """A bright square in a dark picture: its edge turns at a corner."""
    picture = np.zeros((1, n, n), dtype=np.float32)
    picture[:, n // 4 :, n // 4 :] = 1
    return picture


@pytest.mark.slow
def test_the_path_follows_the_edge_and_the_drift_goes_one_way():
    picture = torch.as_tensor(corner_picture())[None]
    metric = MetricOptions(anisotropy=8.0, tau=0.3).of(picture)
    start, end = (60.0, 15.5), (15.5, 60.0)
    (there, back, straight), _ = journey(metric, start, [end])
    for way in (there, back):
        assert way.length < 0.8 * straight.length
        # From one side of the corner to the other: near the edge all the way.
        off = np.minimum(abs(way.curve[:, 0] - 15.5), abs(way.curve[:, 1] - 15.5))
        assert off.max() < 6
    np.testing.assert_array_equal(there.curve[[0, -1]], [start, end])
    np.testing.assert_array_equal(back.curve[[0, -1]], [end, start])
    # |omega| = 0.3 along the edge: F(v) and F(-v) differ by up to 1.3 / 0.7.
    ratio = max(there.length, back.length) / min(there.length, back.length)
    assert 1.3 < ratio < 1.3 / 0.7
    assert there.pixels > 1.1 * straight.pixels


@pytest.mark.slow
def test_without_a_drift_both_ways_are_as_long():
    picture = torch.as_tensor(corner_picture())[None]
    metric = MetricOptions(anisotropy=8.0, tau=0.0).of(picture)
    (there, back, _), distances = journey(metric, (60.0, 15.5), [(15.5, 60.0)])
    assert there.length == pytest.approx(back.length, rel=0.01)
    # The path is the shortest: its length is the distance.
    assert there.length == pytest.approx(distances.distance[31, 120], rel=0.03)


@pytest.mark.slow
def test_the_command(here):
    Image.fromarray((255 * corner_picture()[0]).astype(np.uint8)).save("corner.png")
    result = run("corner.png", "--from", "60,15.5", "--to", "15,60", "-o", "path.pdf")
    assert result.exit_code == 0, result.output
    assert (here / "path.pdf").read_bytes().startswith(b"%PDF")
    lengths = {
        name: float(re.search(rf"{name}\s+│\s+([\d.]+)", result.stdout)[1])
        for name in ("there", "back", "straight line there")
    }
    assert max(lengths["there"], lengths["back"]) < lengths["straight line there"]


@pytest.mark.slow
def test_several_ends_and_their_coordinates(here):
    Image.fromarray((255 * corner_picture(40)[0]).astype(np.uint8)).save("corner.png")
    ends = ["--to", "10,38", "--to", "30,30"]
    result = run("corner.png", "--from", "38,10", *ends, "--json", "way.json", "--csv", "way.csv")
    assert result.exit_code == 0, result.output
    ways = json.loads((here / "way.json").read_text())
    assert [(w["path"], w["end"]) for w in ways] == [
        (name, end) for end in (0, 1) for name in ("there", "back", "straight line there")
    ]
    for way in ways:
        points = np.array(way["points"])
        corners = [[38, 10], [[10, 38], [30, 30]][way["end"]]]
        assert points[[0, -1]].tolist() == (corners[::-1] if way["path"] == "back" else corners)
        assert way["pixels"] == pytest.approx(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
    with (here / "way.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "end", "row", "column"]
    assert len(rows) == sum(len(way["points"]) for way in ways)
    assert "from (38, 10) to (30, 30)" in result.stdout
    alone = run("corner.png", "--from", "38,10", *ends[:2], "--csv", "-")
    assert alone.stdout.startswith("path,end,row,column\nthere,0,38.0,10.0\n")


def test_the_ends_are_found_on_edges():
    metric = MetricOptions().of(torch.as_tensor(corner_picture())[None])
    start, end = default_ends(metric)
    assert start != end
    assert all(0 <= c <= 63 for c in (*start, *end))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "10,10"], "--from, --to: expected both or neither"),
        (["--from", "10", "--to", "1,1"], "--from: expected ROW,COLUMN such as 120,64, got '10'"),
        (
            ["--from", "1,1", "--to", "1,40"],
            "--to: expected a pixel of the picture of 40 x 40, from 0,0 to 39,39, reduced from "
            "512 x 512 (see --max-size); got 1,40",
        ),
        (["--from", "1,nan", "--to", "1,4"], "--from: expected a pixel of the picture"),
        (["--from", "1,1", "--to", "1,1"], "--to: expected another pixel than --from"),
        (["--output", "path.xyz"], "--output: expected a file ending in one of"),
    ],
)
def test_what_is_wrong_is_named(here, options, message):
    result = run("--max-size", 40, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(here.iterdir())
