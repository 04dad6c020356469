"""Every way to run tasks side by side runs each of them once, and hands on what they raise."""

import functools
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finslerconv import _threads

OPENMP = _threads._openmp()
WAYS = [
    pytest.param(_threads.run, id="run"),
    pytest.param(_threads._run_pool, id="python threads"),
    pytest.param(
        functools.partial(_threads._run_team, OPENMP),
        id="openmp",
        marks=pytest.mark.skipif(OPENMP is None, reason="PyTorch has no OpenMP of GNU's here"),
    ),
]


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize("parts", [2, 3, 17])
def test_each_part_runs_once(run, parts):
    counts = [0] * parts
    lock = threading.Lock()

    def task(part):
        with lock:
            counts[part] += 1

    run(task, parts)
    assert counts == [1] * parts


@pytest.mark.parametrize("parts", [0, 1])
def test_little_work_stays_in_the_calling_thread(parts):
    threads = []
    _threads.run(lambda part: threads.append(threading.current_thread()), parts)
    assert threads == [threading.current_thread()] * parts


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize("parts", [2, 5])
def test_generators_run_to_their_end(run, parts):
    steps = []

    def task(part):
        for step in range(4):
            steps.append((part, step))
            yield

    run(task, parts)
    assert sorted(steps) == [(part, step) for part in range(parts) for step in range(4)]


@pytest.mark.parametrize("run", WAYS)
def test_generators_stop_where_they_pause_when_another_failed(run):
    failed = threading.Event()
    steps = []

    def task(part):
        if part == 0:
            failed.set()
            raise RuntimeError("part 0")
        for step in range(1000):
            steps.append(step)
            failed.wait(1)
            time.sleep(0.001)
            yield

    with pytest.raises(RuntimeError, match="part 0"):
        run(task, 2)
    assert len(steps) < 500


def test_bands():
    assert list(_threads.bands(3, 10, 4)) == [(3, 7), (7, 10)]
    assert list(_threads.bands(3, 3, 4)) == []


@pytest.mark.parametrize("run", WAYS)
def test_errors_reach_the_caller_when_all_have_ended(run):
    ended = []

    def task(part):
        ended.append(part)
        if part == 2:
            raise RuntimeError("part 2")

    with pytest.raises(RuntimeError, match="part 2"):
        run(task, 4)
    assert sorted(ended) == [0, 1, 2, 3]


@pytest.mark.parametrize("run", WAYS)
def test_parts_run_beside_each_other(run):
    """Each of two parts waits for the other: in turn they would wait for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        barrier = threading.Barrier(2, timeout=60)
        run(lambda part: barrier.wait(), 2)
        assert not barrier.broken
    finally:
        torch.set_num_threads(before)


@given(units=st.integers(0, 200), parts=st.integers(1, 17), multiple=st.integers(1, 8))
def test_shares_are_all_the_units_once_and_begin_at_multiples(units, parts, multiple):
    shares = [_threads.share(units, part, parts, multiple) for part in range(parts)]
    assert [u for begin, end in shares for u in range(begin, end)] == list(range(units))
    assert all(begin % multiple == 0 or begin == units for begin, _ in shares)
