"""Shared configuration of the tests."""

import jaxtyping
import pytest
from hypothesis import settings

# Machines are noisy and first calls compile: no deadline per example. Derandomised, so that
# one commit gives one result.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "unchecked: run without the run-time check of annotations, so that the library's own "
        "error messages (or its compiled code) are what is tested",
    )


@pytest.fixture(autouse=True)
def _annotation_checks(request):
    if request.node.get_closest_marker("unchecked") is None:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
