"""Marches that stop at their targets, and marches that are stopped."""

import os
import signal
import time

import numpy as np
import pytest
import torch

import finslerconv
from finslerconv import _progress
from finslerconv.geodesics import Curve, GridMetric, distance, minimal_path
from finslerconv.geodesics.distances.fast_marching import _nodes
from finslerconv.metrics import Matsumoto, Randers

RANDOM = np.random.default_rng(0)
COST = GridMetric.from_cost(RANDOM.uniform(1, 2, (31, 34)))
EYE = np.broadcast_to(np.eye(2), (31, 34, 2, 2))
FIELDS = {
    "plane": COST,
    "wind": GridMetric.from_metric(
        Randers(EYE, RANDOM.uniform(-0.4, 0.4, (31, 34, 2))), spacing=(0.5, 2.0), origin=3.0
    ),
    "slope": GridMetric.from_metric(
        Matsumoto(np.eye(2), RANDOM.uniform(-0.2, 0.2, (31, 34, 2))), spacing=0.5
    ),
    "space": GridMetric.from_cost(RANDOM.uniform(1, 2, (13, 12, 11)), origin=-2.0),
    "wind in space": GridMetric.from_metric(
        Randers(np.eye(3), np.array([0.3, -0.2, 0.1])), (13, 12, 11)
    ),
}


@pytest.fixture(params=FIELDS)
def field(request):
    return FIELDS[request.param]


def position(field, *index):
    return np.asarray(field.origin) + np.asarray(field.spacing) * index


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_finite_is_as_without_targets(field, reverse):
    source, target = (position(field, *[at] * field.dim) for at in (4.0, 7.3))
    whole = distance(field, source, reverse=reverse)
    stopped = distance(field, source, targets=target, reverse=reverse)
    reached = np.isfinite(stopped)
    np.testing.assert_array_equal(stopped[reached], whole[reached])
    assert reached[(slice(7, 9),) * field.dim].all()
    assert reached.mean() < 0.7
    # What was left out is as far as the targets, but for the errors of first order.
    assert whole[~reached].min() > 0.9 * stopped[reached].max()


def test_paths_to_targets_are_the_same(field):
    source, target = (position(field, *[at] * field.dim) for at in (4.0, 8.3))
    expected = minimal_path(distance(field, source, full=True), target)
    stopped = distance(field, source, targets=target, full=True)
    np.testing.assert_array_equal(minimal_path(stopped, target), expected)
    far = position(field, *(n - 1 for n in field.grid_shape))
    with pytest.raises(ValueError, match="to: no front has reached"):
        minimal_path(stopped, far)


def test_gradients_are_the_same():
    cost = torch.tensor(RANDOM.uniform(1, 2, (15, 16)), requires_grad=True)

    def gradient(**options):
        lengths = distance(GridMetric.from_cost(cost), (3, 3), **options)
        (found,) = torch.autograd.grad(lengths[8, 9], cost)
        return found

    torch.testing.assert_close(gradient(targets=(8, 9)), gradient(), rtol=0, atol=0)


def test_each_problem_has_its_targets():
    sources = np.array([[[2.0, 2.0]], [[20.0, 25.0]]])
    targets = np.array([[[6.0, 6.0], [2.0, 9.0]], [[21.0, 25.0], [20.0, 25.5]]])
    both = distance(COST, sources, targets=targets)
    for p in range(2):
        alone = distance(COST, sources[p], targets=targets[p])
        np.testing.assert_array_equal(both[p], alone)
    assert np.isfinite(both[1]).sum() < 100
    # One set of targets for all problems, as nodes, a curve or positions.
    nodes = np.zeros((31, 34), bool)
    nodes[10, 11] = True
    for same in (nodes, Curve(np.array([[10.0, 11.0]])), (10, 11), [[10.0, 11.0]]):
        lengths = distance(COST, sources, targets=same)
        assert np.isfinite(lengths[:, 10, 11]).all()
        assert not np.isfinite(lengths).all()


def test_targets_that_are_not_reached():
    mask = np.ones((31, 34), bool)
    mask[:, 10] = False
    whole = distance(COST, (4, 4), mask=mask)
    np.testing.assert_array_equal(distance(COST, (4, 4), mask=mask, targets=(4, 20)), whole)
    np.testing.assert_array_equal(distance(COST, (4, 4), mask=mask, targets=(4, 10)), whole)
    near = distance(COST, (4, 4), radius=5.0)
    np.testing.assert_array_equal(distance(COST, (4, 4), radius=5.0, targets=(20, 20)), near)
    # A target beside a wall waits for the nodes that are none.
    assert np.isfinite(distance(COST, (4, 4), mask=mask, targets=(4, 9.5))[4, 9])


@pytest.mark.unchecked
@pytest.mark.parametrize("method", ["fast_iterative", "heat", "graph"])
def test_other_methods_have_no_targets(method):
    with pytest.raises(ValueError, match=f"targets: expected None, because '{method}' does not"):
        distance(COST, (4, 4), method, targets=(5, 5))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ((99, 0), ValueError, "targets: expected positions inside the grid"),
        ((1.0, 2.0, 3.0), ValueError, "targets: expected positions of 2 coordinates"),
        ([], ValueError, "targets: expected at least one target, got an empty list"),
        (np.zeros((31, 34), bool), ValueError, "targets: expected at least one target, got none"),
        ((np.nan, 1.0), ValueError, "targets: expected finite numbers"),
        (
            np.zeros((3, 1, 2)),
            ValueError,
            r"targets: expected problems that broadcast to .* got \(3",
        ),
        ("there", TypeError, "targets: expected an array of positions"),
    ],
)
def test_errors(targets, error, message):
    with pytest.raises(error, match=message):
        distance(COST, (4, 4), targets=targets)


class Bars:
    """Counts what long calls tell, and presses Ctrl-C at the third time."""

    def __init__(self, presses):
        self.presses, self.told, self.total, self.tasks = presses, [], 0, 0

    def add_task(self, what, total):
        self.total += total
        self.tasks += 1
        return what

    def advance(self, task, done):
        self.told.append(done)
        if self.presses and len(self.told) > 3:
            time.sleep(0.01)  # a thread that is not the main one goes on until that has heard
        if self.presses and len(self.told) == 3:
            os.kill(os.getpid(), signal.SIGINT)  # to the main thread, as a terminal does

    def remove_task(self, task):
        self.tasks -= 1


@pytest.fixture(params=["one thread", "two threads"])
def threads(request, monkeypatch):
    monkeypatch.setattr(_nodes, "_STEPS", 20)
    monkeypatch.setattr(_nodes.torch, "get_num_threads", lambda: 1 + (request.param[0] == "t"))
    monkeypatch.setattr(_nodes.os, "cpu_count", lambda: 2)


def test_steps_do_not_change_the_distances(field, threads, monkeypatch):
    bars = Bars(presses=False)
    monkeypatch.setattr(_progress, "_shown", bars)
    sources = np.stack([position(field, *[at] * field.dim)[None] for at in (2.0, 9.0)])
    pieces = distance(field, sources)
    assert sum(bars.told) == bars.total == 2 * pieces[0].size
    assert bars.tasks == 0
    monkeypatch.setattr(_nodes, "_STEPS", 10**9)
    np.testing.assert_array_equal(distance(field, sources), pieces)


def test_ctrl_c_ends_all_marches(field, threads, monkeypatch, ctrl_c):
    bars = Bars(presses=True)
    monkeypatch.setattr(_progress, "_shown", bars)
    sources = np.stack([position(field, *[at] * field.dim)[None] for at in (2.0, 9.0)])
    with pytest.raises(KeyboardInterrupt):
        distance(field, sources)
    assert len(bars.told) < 40  # of 100 and more
    assert bars.tasks == 0


def test_progress_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with finslerconv.progress():
        distance(COST, (4, 4))
    assert _progress._shown is None
    assert "Marching" in capsys.readouterr().err
