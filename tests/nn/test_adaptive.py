"""What the adaptive layers' base classes hold their subclasses to."""

import pytest
import torch
from torch import nn

from finslerconv.metrics import Riemannian
from finslerconv.nn import AdaptiveConv2d, MetricConv2d


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.unchecked
def test_a_metric_of_the_wrong_size():
    class Flat(nn.Module):
        def forward(self, x):
            return Riemannian(torch.eye(2), validate=False)

    layer = MetricConv2d(2, 2, 3, metric=Flat())
    with pytest.raises(ValueError, match=r"each output pixel, batch shape \(1, 3, 3\), got \(\)"):
        layer(torch.randn(1, 2, 5, 5))


def test_a_base_class_makes_no_layer():
    with pytest.raises(TypeError, match="abstract"):
        AdaptiveConv2d(2, 2, 3)
