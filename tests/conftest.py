"""Shared configuration of the tests."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from functools import cache, partial
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

# Machines are noisy and first calls compile: no deadline per example. Derandomised, so that
# one commit gives one result.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")

# A check of annotations costs several times what a small function does. Each test is checked for so
# many seconds; what a long test repeats later on was checked before.
_CHECKED_SECONDS = 0.1

_jaxtyped = jaxtyping.jaxtyped


def _jaxtyped_if_checked(fn=None, /, **options):
    """Decorate as `jaxtyping.jaxtyped` does, but for inner functions made while nothing is checked.

    Instrumentation decorates every function where it is defined. An inner function is defined by
    each call of the outer one, and decorating it takes milliseconds.
    """
    if fn is None:
        return partial(_jaxtyped_if_checked, **options)
    inner = "<locals>" in getattr(fn, "__qualname__", "")
    return fn if inner and jaxtyping.config.jaxtyping_disable else _jaxtyped(fn, **options)


jaxtyping.jaxtyped = _jaxtyped_if_checked

# Where tests without instrumentation leave their outcomes, in the process that runs them.
_OUTCOMES = "FINSLERCONV_TEST_OUTCOMES"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    # A file's tests share processes and compiled state. The order of files is that of their names:
    # pytest-xdist would end with those of the fewest tests, which are the longest.
    option = config.option
    if getattr(option, "numprocesses", None) and option.dist == "no":
        option.dist = "loadfile"
        option.loadscopereorder = False


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "unchecked: run without the run-time check of annotations, so that the library's own "
        "error messages are what is tested",
    )
    config.addinivalue_line(
        "markers",
        "uninstrumented: run in a process where annotations were never instrumented, "
        "because torch.compile and torch.export cannot trace through the instrumentation",
    )


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their markers
def pytest_collection_modifyitems(items):
    for item in items:
        if _uninstrumented(item):
            item.add_marker(pytest.mark.timeout(1800))  # the first one waits for all of its file
            item.add_marker(pytest.mark.slow)  # a process of its own, and a compiler at work


@pytest.fixture(autouse=True)
def _annotation_checks(request):
    if _OUTCOMES in os.environ:
        import torch

        torch.compiler.reset()
        yield
        return
    unchecked = request.node.get_closest_marker("unchecked") is not None
    stop = threading.Timer(0.0 if unchecked else _CHECKED_SECONDS, _check_annotations, (False,))
    if unchecked:
        _check_annotations(False)
    else:
        stop.start()
    yield
    stop.cancel()
    _check_annotations(True)


def _check_annotations(wanted):
    jaxtyping.config.update("jaxtyping_disable", not wanted)


def _uninstrumented(item):
    return item.get_closest_marker("uninstrumented") is not None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not _uninstrumented(pyfuncitem) or _OUTCOMES in os.environ:
        return None
    together = [
        item.nodeid
        for item in pyfuncitem.session.items
        if item.path == pyfuncitem.path and _uninstrumented(item)
    ]
    config = pyfuncitem.config
    outcomes, output = _run_uninstrumented(
        str(config.rootpath), tuple(config.option.plugins), tuple(together)
    )
    outcome, text = outcomes.get(pyfuncitem.nodeid, ("failed", output))
    if outcome == "skipped":
        pytest.skip(text)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)
    return True


@pytest.fixture
def ctrl_c():
    """Let SIGINT interrupt, also where a shell has put the tests into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@cache
def _run_uninstrumented(root, plugins, tests):
    """Run tests in one process; return the outcome of each with its text, and all output."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += [part for name in plugins for part in ("-p", name)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes"
        path.touch()
        done = subprocess.run(
            [*command, "--override-ini", "addopts=--strict-markers", *tests],
            env={**os.environ, _OUTCOMES: str(path)},
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        found = [json.loads(line) for line in path.read_text().splitlines()]
    outcomes = {nodeid: (outcome, text) for nodeid, outcome, text in found}
    return outcomes, done.stdout[-8000:] + done.stderr[-2000:]


def pytest_runtest_logreport(report):
    if _OUTCOMES not in os.environ or (report.when != "call" and report.passed):
        return
    text = str(report.longrepr[2]) if report.skipped else report.longreprtext
    with open(os.environ[_OUTCOMES], "a") as file:
        file.write(json.dumps((report.nodeid, report.outcome, text[-8000:])) + "\n")
