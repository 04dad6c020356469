"""Shared configuration of the operators' tests."""

import warnings

import pytest

from finslerconv import ops


@pytest.fixture
def reference():
    """Compute with the reference backend for one test."""
    with ops.use_backend("reference"):
        yield


@pytest.fixture
def torchvision_deform_conv2d():
    """Give torchvision's function, if there is one that works."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"torchvision cannot be used: {error}")
    return deform_conv2d
