"""The shifted convolution: the standard one, on an image displaced pixel by pixel."""

import pytest
import torch
from adaptive_layers import stirred
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finslerconv.nn import DeformConv2d, ShiftedConv2d


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@given(dy=st.floats(-6, 6), dx=st.floats(-6, 6))
def test_a_constant_offset_is_the_convolution_of_the_displaced_image(dy, dx):
    """On a torus, with bilinear interpolation between the whole shifts."""
    layer = ShiftedConv2d(2, 3, 3, padding=1, padding_mode="circular").double()
    with torch.no_grad():
        layer.offset_conv.bias.copy_(torch.tensor([dy, dx], dtype=torch.float64))
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64)

    def between(x, offset, dim):
        low = int(offset // 1)
        share = offset - low
        return (1 - share) * torch.roll(x, -low, dim) + share * torch.roll(x, -low - 1, dim)

    displaced = between(between(x, dy, 2), dx, 3)
    padded = nn.functional.pad(displaced, (1, 1, 1, 1), mode="circular")
    expected = nn.functional.conv2d(padded, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 2])
def test_all_taps_move_alike(groups):
    layer = stirred(ShiftedConv2d(4, 3, (3, 2), padding=1, offset_groups=groups).double())
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    positions = layer.positions(x)
    moved = positions - layer.geometry().taps(x)
    torch.testing.assert_close(moved, moved[..., :1, :].expand_as(moved))
    raw = layer.offset_conv(x).unflatten(1, (groups, 2)).movedim(2, -1)
    torch.testing.assert_close(moved[..., 0, :], raw if groups > 1 else raw[:, 0])
    assert layer.offset_conv.out_channels == 2 * groups
    assert layer.offsets(x).shape[1] == 2 * groups * 6


def test_the_deformable_convolution_with_equal_offsets_agrees():
    layer = stirred(ShiftedConv2d(4, 3, 3, padding=1, offset_groups=2, modulation=True).double())
    deform = DeformConv2d(4, 3, 3, padding=1, offset_groups=2, modulation=True).double()
    state = layer.state_dict()
    for name in ("offset_conv.weight", "offset_conv.bias"):
        state[name] = torch.cat([half.repeat(9, *[1] * (half.ndim - 1))
                                 for half in state[name].chunk(2)])  # fmt: skip
    deform.load_state_dict(state)
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(x), deform(x))
    torch.testing.assert_close(layer.offsets(x), deform.offsets(x))


def test_state_keys():
    keys = set(ShiftedConv2d(3, 4, 3).state_dict())
    assert keys == {"weight", "bias", "offset_conv.weight", "offset_conv.bias"}
