"""Shared configuration of the tests."""

import os
import subprocess
import sys

import jaxtyping
import pytest
from hypothesis import settings

# Machines are noisy and first calls compile: no deadline per example. Derandomised, so that
# one commit gives one result.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")

_IN_SUBPROCESS = "FINSLERCONV_TEST_SUBPROCESS"


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "unchecked: run without the run-time check of annotations, so that the library's own "
        "error messages are what is tested",
    )
    config.addinivalue_line(
        "markers",
        "uninstrumented: run in a process of its own where annotations were never instrumented, "
        "because torch.compile and torch.export cannot trace through the instrumentation",
    )


@pytest.fixture(autouse=True)
def _annotation_checks(request):
    if request.node.get_closest_marker("unchecked") is None:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if pyfuncitem.get_closest_marker("uninstrumented") is None or os.environ.get(_IN_SUBPROCESS):
        return None
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "--override-ini", "addopts=--strict-markers", pyfuncitem.nodeid],
        env={**os.environ, _IN_SUBPROCESS: "1"},
        cwd=pyfuncitem.config.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.fail(result.stdout[-8000:] + result.stderr[-2000:], pytrace=False)
    return True
