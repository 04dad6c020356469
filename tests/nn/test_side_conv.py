"""What computes positions and factors gets images of few channels in the order that is quick."""

import pytest
import torch
from torch import nn

from finslerconv.nn import DeformConv2d, MetricConv2d
from finslerconv.nn._side_conv import channels_of


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("channels_last", [False, True])
def test_values_and_gradients_are_the_modules(channels, channels_last):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 5, 3, padding=1)
    x = torch.randn(2, channels, 9, 11)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    arguments = [x.requires_grad_(), conv.weight, conv.bias]
    expected, actual = conv(x), channels_of(conv, x)
    slope = torch.randn(expected.shape)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(actual, arguments, slope),
        torch.autograd.grad(expected, arguments, slope),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("channels", "dtype"), [(3, torch.float32), (3, torch.float64), (16, None)]
)
def test_the_order_of_the_input(channels, dtype):
    conv = nn.Conv2d(channels, 5, 3, dtype=dtype)
    seen = []
    conv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.randn(2, channels, 9, 11, dtype=dtype)
    assert channels_of(conv, x).is_contiguous()
    reordered = channels == 3 and dtype == torch.float32
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == reordered
    assert (seen[0] is x) == (not reordered)


@pytest.mark.parametrize("Layer", [MetricConv2d, DeformConv2d])
def test_transforms_get_the_module_as_it_is(Layer):
    torch.manual_seed(0)
    layer = Layer(3, 4, 3, padding=1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(5, 1, 3, 6, 7)
    torch.testing.assert_close(
        torch.func.vmap(layer)(x), torch.stack([layer(one) for one in x]), rtol=1e-4, atol=1e-5
    )
