"""What the tests of the experiments share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads():
    """Keep the number of PyTorch's threads, which an experiment sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scores():
    """Skip a test where torchmetrics cannot be imported."""
    try:
        import torchmetrics  # noqa: F401
    except RuntimeError as error:  # of a torchvision that was built for another PyTorch
        pytest.skip(f"torchmetrics cannot be imported: {error}")
