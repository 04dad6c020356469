"""Benchmarks compare the figures of two runs, and know the least time that a machine can take."""

import argparse
import io
import json
import math

import pytest
import report
import roofline
from rich.console import Console

OLD = {
    "machine": {"processor": "one", "threads": 1},
    "results": [
        {"size": [4, 64, 56], "both": {"conv": {"ms": 2.0, "ratio": 1.0}}, "memory": None},
        {"size": [1, 3, 1024], "both": {"conv": {"ms": 8.0, "ratio": 1.0}}},
        {"name": "randers", "n": 64, "factorise": True, "seconds": 1.0},
        {"name": "randers", "n": 64, "factorise": False, "seconds": 3.0},
    ],
    "pair": [0.5, 0.0],
}
NEW = {
    "machine": {"processor": "two", "threads": 1},
    "results": [
        {"name": "randers", "n": 64, "factorise": False, "seconds": 1.5},
        {"name": "randers", "n": 128, "factorise": False, "seconds": 9.0},
        {"size": [1, 3, 1024], "both": {"conv": {"ms": 2.0, "ratio": 1.0}}},
        {"size": [4, 64, 56], "both": {"conv": {"ms": 2.0, "ratio": 1.0}}},
    ],
    "pair": [0.25, 0.0],
}


def test_rows_are_matched_by_what_names_them_in_any_order():
    found = {c.name: (c.old, c.new) for c in report.changes(OLD, NEW)}
    assert found == {
        "results, randers, n 64, seconds": (3.0, 1.5),
        "results, size 1 3 1024, both, conv, ms": (8.0, 2.0),
        "results, size 1 3 1024, both, conv, ratio": (1.0, 1.0),
        "results, size 4 64 56, both, conv, ms": (2.0, 2.0),
        "results, size 4 64 56, both, conv, ratio": (1.0, 1.0),
        "pair, 0": (0.5, 0.25),
        "pair, 1": (0.0, 0.0),
    }


def test_ratios_and_their_geometric_means():
    found = report.changes(OLD, NEW)
    assert found[0].ratio == 0.5
    assert math.isnan(found[-1].ratio)
    means = report.means(found)
    assert means["seconds"] == pytest.approx(0.5)
    assert means["ms"] == pytest.approx(math.sqrt(0.25 * 1.0))
    assert "1" not in means  # no ratio of zeros


def test_a_run_is_written_and_compared(tmp_path):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    old, new = tmp_path / "old.json", tmp_path / "folder" / "new.json"
    old.write_text(json.dumps(OLD))
    options = parser.parse_args(["--json", str(new), "--compare", str(old)])
    console = Console(width=120, file=io.StringIO())
    report.finish(options, NEW, console)
    assert json.loads(new.read_text()) == NEW
    shown = console.file.getvalue()
    assert "'processor': 'one'" in shown
    row = next(line for line in shown.splitlines() if "results, randers, n 64, seconds" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["results, randers, n 64, seconds", "3", "1.5", "0.50"]
    assert "figures in one run only: 1 old, 1 new" in shown


def test_what_is_no_result_is_refused(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for path in (broken, tmp_path / "none.json"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--compare", str(path)])
        assert "expected a file that --json wrote" in capsys.readouterr().err


def test_the_roofline_is_the_slower_of_memory_and_arithmetic():
    machine = roofline.Roofline(bandwidth=10.0, rate=100.0)
    assert machine.seconds(roofline.Work(bytes=20.0, operations=100.0)) == 2.0
    assert machine.bound(roofline.Work(bytes=20.0, operations=100.0)) == "memory"
    assert machine.seconds(roofline.Work(bytes=20.0, operations=300.0)) == 3.0
    assert machine.bound(roofline.Work(bytes=20.0, operations=300.0)) == "arithmetic"


def test_the_work_of_a_convolution():
    size = (2, 3, 8, 5, 3, 2)  # 4 x 4 pixels of the result
    plain = roofline.displaced_convolution(size, 4, 0, False)
    image, weight, result = 2 * 3 * 8 * 8, 5 * 3 * 9, 2 * 5 * 4 * 4
    assert plain == (4 * (image + weight + result), 2 * result * 3 * 9)
    displaced = roofline.displaced_convolution(size, 4, 18, False)
    assert displaced.bytes - plain.bytes == 4 * 18 * 2 * 16
    assert displaced.operations - plain.operations == 8 * 2 * 16 * 3 * 9
    # Backwards the arguments and the result's gradient are read again, and gradients are written.
    both = roofline.displaced_convolution(size, 4, 0, True)
    assert both == (4 * (3 * (image + weight) + 2 * result), 3 * plain.operations)
    head = roofline.displaced_convolution(size, 4, 0, False, head=5)
    assert head.operations == 2 * plain.operations


def test_the_work_of_a_depthwise_convolution():
    size = (2, 6, 8, 6, 3, 1)
    plain = roofline.displaced_convolution(size, 4, 0, False)
    depthwise = roofline.displaced_convolution(size, 4, 0, False, groups=6)
    assert depthwise.operations == plain.operations / 6 == 2 * 2 * 8 * 8 * 6 * 9
    assert plain.bytes - depthwise.bytes == 4 * 5 * 6 * 9


def test_the_machine_is_measured():
    found = roofline.measure(megabytes=1, side=32)
    assert found.bandwidth > 0
    assert found.rate > 0
