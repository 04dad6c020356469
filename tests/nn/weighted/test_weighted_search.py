"""The search: it finds known minima, can be interrupted anywhere, and compares like with like."""

import json
import math
import random

import numpy as np
import pytest
import torch

from finslerconv.nn.weighted import paper_bounds, plot_density_search, search_density

TARGET = {3: [0.8], 5: [0.3, 0.9], 7: [0.2, 0.6, 1.1]}


def bowl(profile):
    target = TARGET[2 * len(profile) + 1]
    return sum((p - t) ** 2 for p, t in zip(profile, target, strict=True))


@pytest.mark.parametrize("k", [3, 5, 7])
def test_it_finds_the_minimum_within_the_papers_bounds(k):
    found = search_density(bowl, k, max_evaluations=150, progress=False)
    assert found.bounds == paper_bounds(k)
    assert found.profile == pytest.approx(TARGET[k], abs=0.05)
    assert len(found.evaluations) == 150 or "len_tol" in found.message
    assert found.best.value == min(e.value for e in found.evaluations)
    for evaluation in found.evaluations:
        for value, (low, high) in zip(evaluation.profile, found.bounds, strict=True):
            assert low <= value <= high


def test_it_prints_in_a_terminal_without_its_candidates():
    found = search_density(bowl, 3, max_evaluations=30, progress=False)
    lines = str(found).split("\n")
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"half-profile [{found.profile[0]:.4g}]: {found.best.value:.4g}")
    assert f"{len(found.evaluations)} candidates, 1 seed(s)" in lines[1]


def test_own_bounds_and_kernel():
    box = [(0.0, 1.0)] * 4
    found = search_density(lambda p: sum(p), 9, box, max_evaluations=60, progress=False)
    assert found.profile == pytest.approx([0] * 4, abs=0.2)


def test_the_standard_convolution_may_win():
    found = search_density(
        lambda p: abs(p[0] - 1.0), 3, [(0.1, 0.5)], max_evaluations=9, progress=False
    )
    assert found.profile == [1.0]
    assert found.best is found.standard


def test_every_candidate_sees_the_same_random_numbers_and_ours_go_on():
    drawn = []

    def objective(profile):
        old_numpy = np.random.random()  # noqa: NPY002 - the generator that users share
        drawn.append((random.random(), old_numpy, torch.rand(()).item()))
        return profile[0]

    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    search_density(objective, 3, [(0.1, 0.5)], seeds=(1, 2), max_evaluations=4, progress=False)
    torch.testing.assert_close(torch.rand(3), before, rtol=0, atol=0)
    assert len(drawn) == 10
    assert len(set(drawn)) == 2
    assert drawn[0::2] == [drawn[0]] * 5


def test_the_value_is_the_mean_over_the_seeds():
    found = search_density(
        lambda p: p[0] + torch.initial_seed(), 3, seeds=(3, 5), max_evaluations=3, progress=False
    )
    for e in (found.standard, *found.evaluations):
        assert e.values == pytest.approx((e.profile[0] + 3, e.profile[0] + 5))
        assert e.value == pytest.approx(e.profile[0] + 4)


@pytest.mark.parametrize("stop", [1, 7, 20])
@pytest.mark.parametrize("cut", [False, True])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path, stop, cut):
    log = tmp_path / "deep" / "search.jsonl"
    whole = search_density(bowl, 5, max_evaluations=30, progress=False)
    calls = []

    def interrupted(profile):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(tuple(profile))
        return bowl(profile)

    with pytest.raises(KeyboardInterrupt):
        search_density(interrupted, 5, max_evaluations=30, log=log, progress=False)
    assert len(log.read_text().splitlines()) == 1 + stop
    if cut:  # in the middle of a line
        log.write_text(log.read_text()[:-9])
    again = []

    def counted(profile):
        again.append(tuple(profile))
        return bowl(profile)

    resumed = search_density(counted, 5, max_evaluations=30, log=log, progress=False)
    assert resumed == whole
    assert len(again) == 31 - stop + cut
    assert not set(again) & set(calls[: stop - cut])
    # A finished log costs no evaluation, and a longer search goes on from it.
    search_density(pytest.fail, 5, max_evaluations=30, log=log, progress=False)
    longer = search_density(bowl, 5, max_evaluations=40, log=log, progress=False)
    assert longer.evaluations[:30] == whole.evaluations


def test_failed_candidates_are_infinite_and_logged(tmp_path):
    def objective(profile):
        return math.inf if profile[0] > 1 else bowl(profile)

    log = tmp_path / "log.jsonl"
    found = search_density(objective, 3, max_evaluations=20, log=log, progress=False)
    assert found.profile == pytest.approx([0.8], abs=0.05)
    again = search_density(pytest.fail, 3, max_evaluations=20, log=log, progress=False)
    assert again == found
    assert json.loads(log.read_text().splitlines()[0])["kernel_size"] == 3


def test_the_progress_bar_shows_the_best(capsys):
    search_density(bowl, 3, max_evaluations=5)
    assert "density search, best" in capsys.readouterr().out


def test_the_plot_shows_every_candidate():
    found = search_density(bowl, 5, max_evaluations=20, progress=False)
    figure = plot_density_search(found)
    progress, outer, inner = figure.axes
    assert len(progress.lines[0].get_xdata()) == 20
    assert list(outer.lines[0].get_xdata()) == [e.profile[0] for e in found.evaluations]
    assert list(inner.lines[1].get_xdata()) == [found.profile[1]]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search_density(bowl, 4), "odd and at least 3.*got 4"),
        (lambda: search_density(bowl, 9), "no bounds for kernel_size 9.*4 free taps"),
        (lambda: search_density(bowl, 5, [(0, 1)]), "must hold 2 pairs.*got 1"),
        (lambda: search_density(bowl, 3, [(1, 0)]), r"bounds\[0\].*low < high; got \(1.0, 0.0\)"),
        (lambda: search_density(bowl, 3, seeds=()), "at least one seed"),
        (lambda: search_density(bowl, 3, max_evaluations=0), "at least 1; got 0"),
        (
            lambda: search_density(lambda p: math.nan, 3, progress=False),
            r"NaN for profile \[1.0\] with seed 0",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_log_of_another_search_is_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    search_density(bowl, 3, max_evaluations=2, log=log, progress=False)
    with pytest.raises(ValueError, match="is of another search"):
        search_density(bowl, 3, seeds=(1,), max_evaluations=2, log=log, progress=False)
