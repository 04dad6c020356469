"""The deformable convolution: at the start the one it replaces, then where its offsets say."""

import pytest
import torch
from adaptive_layers import stirred

from finslerconv.nn import DeformConv2d


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def torchvision_ops():
    """Return torchvision.ops, or skip where it is missing or broken."""
    try:
        from torchvision import ops
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"torchvision cannot be used: {error}")
    return ops


def slow_convolution(layer, x):
    """Loop over output pixels and taps, with bilinear interpolation, from the two inner nets."""
    offsets = layer.offset_conv(x)
    mask = torch.ones_like(offsets)
    if layer.modulation_conv is not None:
        mask = 2 * torch.sigmoid(layer.modulation_conv(x))
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    per_group = layer.in_channels // layer.offset_groups
    kernel = layer.weight.flatten(2)
    output = torch.zeros(len(x), layer.out_channels, *offsets.shape[2:], dtype=x.dtype)
    for b, i, j, tap, channel in torch.cartesian_prod(
        *(torch.arange(n) for n in (len(x), *offsets.shape[2:], taps, layer.in_channels))
    ).tolist():
        k = (channel // per_group) * taps + tap
        row, column = divmod(tap, layer.kernel_size[1])
        y = (
            i * layer.stride[0] - layer.padding[0] + row * layer.dilation[0]
            + offsets[b, 2 * k, i, j]
        )  # fmt: skip
        z = (
            j * layer.stride[1] - layer.padding[1] + column * layer.dilation[1]
            + offsets[b, 2 * k + 1, i, j]
        )  # fmt: skip
        value = bilinear(x[b, channel], y, z) * mask[b, k, i, j]
        output[b, :, i, j] += kernel[:, channel, tap] * value
    return output + layer.bias[:, None, None]


def bilinear(image, row, column):
    rows = (1 - (torch.arange(image.shape[0]) - row).abs()).clamp(min=0)
    columns = (1 - (torch.arange(image.shape[1]) - column).abs()).clamp(min=0)
    return rows @ image @ columns


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modulation": True, "offset_groups": 2},
        {"kernel_size": (3, 2), "stride": 2, "padding": (2, 0), "dilation": (1, 2)},
    ],
)
def test_it_samples_where_the_offsets_say(options):
    layer = stirred(DeformConv2d(2, 3, **({"kernel_size": 3, "padding": 1} | options)).double())
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), slow_convolution(layer, x), rtol=1e-10, atol=1e-10)
    assert layer.why_not_standard() is not None


@pytest.mark.parametrize("modulation", [False, True])
@pytest.mark.parametrize("offset_groups", [1, 2])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 2, 2)])
def test_torchvisions_layer_agrees(offset_groups, modulation, stride, dilation, groups):
    ops = torchvision_ops()
    arguments = (4, 6, (3, 5), stride, (1, 2), dilation, groups)
    layer = DeformConv2d(*arguments, offset_groups=offset_groups, modulation=modulation).double()
    stirred(layer, 0.5)
    theirs = ops.DeformConv2d(*arguments).double()
    theirs.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = torch.randn(2, 4, 13, 14, dtype=torch.float64)
    mask = 2 * torch.sigmoid(layer.modulation_conv(x)) if modulation else None
    expected = theirs(x, layer.offsets(x), mask)
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 2])
def test_positions_are_the_taps_displaced(groups):
    layer = DeformConv2d(4, 2, (3, 2), padding=1, dilation=(2, 3), offset_groups=groups).double()
    with torch.no_grad():
        layer.offset_conv.bias.copy_(torch.arange(12 * groups) / 7)
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    positions = layer.positions(x)
    rows, columns = layer.geometry().output_size(8, 9)
    group_axis = () if groups == 1 else (2,)
    assert positions.shape == (2, *group_axis, rows, columns, 6, 2)
    taps = [(dy, dx) for dy in (-2, 0, 2) for dx in (-1.5, 1.5)]
    for group in range(groups):
        there = positions[:, group] if groups > 1 else positions
        for k, (dy, dx) in enumerate(taps):
            channel = 2 * (6 * group + k)
            expected = torch.tensor([dy + channel / 7, dx + (channel + 1) / 7]).double()
            torch.testing.assert_close(
                there[..., k, :], expected.expand_as(there[..., k, :]), rtol=0, atol=1e-6
            )


def test_modulation_is_one_at_the_start_and_in_the_order_of_the_kernel():
    layer = DeformConv2d(4, 2, 3, padding=1, offset_groups=2, modulation=True)
    x = torch.randn(1, 4, 5, 6)
    assert torch.equal(layer.modulation(x), torch.ones(1, 2, 5, 6, 9))
    with torch.no_grad():
        layer.modulation_conv.bias.copy_(torch.arange(18) - 9)
    expected = 2 * torch.sigmoid(torch.arange(18) - 9.0).view(2, 1, 1, 9).expand(2, 5, 6, 9)
    torch.testing.assert_close(layer.modulation(x[0])[0], expected)
    assert DeformConv2d(4, 2, 3).modulation(x) is None


def test_gradcheck():
    layer = stirred(DeformConv2d(1, 1, 3, padding=1, modulation=True).double(), 0.1)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


def test_shift_equivariance_on_a_torus():
    layer = stirred(DeformConv2d(2, 3, 3, padding=1, padding_mode="circular").double())
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    expected = torch.roll(layer(x), (3, -2), dims=(2, 3))
    torch.testing.assert_close(layer(torch.roll(x, (3, -2), dims=(2, 3))), expected)


def test_state_keys():
    assert set(DeformConv2d(3, 4, 3, modulation=True, bias=False).state_dict()) == {
        "weight", "offset_conv.weight", "offset_conv.bias",
        "modulation_conv.weight", "modulation_conv.bias",
    }  # fmt: skip


def test_printed():
    shown = repr(DeformConv2d(4, 2, 3, offset_groups=2, fixed_kernel=True))
    assert shown.startswith("DeformConv2d(\n  4, 2, kernel_size=(3, 3), stride=(1, 1), offset")
    assert "offset_groups=2, fixed_kernel=True" in shown
