"""The deformable convolution: at the start the one it replaces, then where its offsets say."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

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


def stirred(layer, amount=0.3):
    """Move every parameter that moves samples."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith(("offset_conv.", "modulation_conv.")):
                parameter.add_(amount * torch.randn_like(parameter))
    return layer


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


@pytest.mark.parametrize("options", [{}, {"modulation": True}, {"offset_groups": 2}])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    [
        (3, 1, 1, 1, 1, "zeros"),
        ((3, 5), 2, (1, 2), 2, 2, "reflect"),
        (2, 1, 1, 1, 1, "circular"),
        ((2, 3), (1, 2), 0, (2, 1), 4, "zeros"),
        (1, 1, 0, 1, 1, "zeros"),
        (5, 1, "same", 1, 2, "replicate"),
    ],
)
def test_it_begins_as_the_convolution_that_it_replaces(
    kernel_size, stride, padding, dilation, groups, padding_mode, options
):
    conv = nn.Conv2d(
        4, 8, kernel_size, stride, padding, dilation, groups, padding_mode=padding_mode
    )
    layer = DeformConv2d.from_conv2d(conv, **options)
    x = torch.randn(2, 4, 17, 19)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)
    assert layer.departure() is None


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
    assert layer.departure() is not None


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


def test_it_learns_and_every_parameter_gets_a_gradient():
    layer = DeformConv2d(3, 4, 3, padding=1, modulation=True)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05)
    x, y = torch.randn(2, 3, 12, 12), torch.randn(2, 4, 12, 12)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_shift_equivariance_on_a_torus():
    layer = stirred(DeformConv2d(2, 3, 3, padding=1, padding_mode="circular").double())
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    expected = torch.roll(layer(x), (3, -2), dims=(2, 3))
    torch.testing.assert_close(layer(torch.roll(x, (3, -2), dims=(2, 3))), expected)


class TestAsAModule:
    def test_deepcopy_pickle_and_state(self):
        layer = stirred(DeformConv2d(3, 4, 3, padding=1, modulation=True))
        x = torch.randn(1, 3, 8, 8)
        expected = layer(x)
        assert torch.equal(copy.deepcopy(layer)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        other = DeformConv2d(3, 4, 3, padding=1, modulation=True)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(x), expected)

    def test_state_keys(self):
        assert set(DeformConv2d(3, 4, 3, modulation=True, bias=False).state_dict()) == {
            "weight", "offset_conv.weight", "offset_conv.bias",
            "modulation_conv.weight", "modulation_conv.bias",
        }  # fmt: skip

    @pytest.mark.uninstrumented
    def test_compile_and_export(self):
        layer = stirred(DeformConv2d(3, 4, 3, padding=1, modulation=True))
        x = torch.randn(1, 3, 8, 8)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
        gradient = torch.autograd.grad(layer(x).square().sum(), layer.offset_conv.weight)
        again = torch.autograd.grad(compiled(x).square().sum(), layer.offset_conv.weight)
        torch.testing.assert_close(again, gradient)
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))

    def test_autocast(self):
        layer = stirred(DeformConv2d(3, 4, 3, padding=1, modulation=True), 0.05)
        x = torch.randn(2, 3, 12, 12)
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
            positions = layer.positions(x)
        assert output.dtype == torch.bfloat16
        assert positions.dtype == torch.float32
        output.float().square().sum().backward()
        assert layer.offset_conv.weight.grad.isfinite().all()
        reference = layer(x)
        assert (output - reference).abs().max() < 0.05 * reference.abs().max()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_dtypes(self, dtype):
        layer = stirred(DeformConv2d(3, 4, 7, padding=3, modulation=True), 0.02).to(dtype)
        x = torch.randn(1, 3, 300, 9, dtype=dtype)
        assert layer(x).dtype == dtype
        # Half precision cannot hold positions 300 rows away from the first.
        assert layer.positions(x).dtype == torch.promote_types(dtype, torch.float32)

    def test_channels_last_in_channels_last_out(self):
        layer = stirred(DeformConv2d(3, 4, 3, padding=1))
        x = torch.randn(2, 3, 8, 9)
        output = layer(x.contiguous(memory_format=torch.channels_last))
        assert output.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(output, layer(x))

    def test_unbatched_and_empty_batches(self):
        layer = stirred(DeformConv2d(3, 4, 3, padding=1, modulation=True))
        x = torch.randn(1, 3, 8, 9)
        torch.testing.assert_close(layer(x[0]), layer(x)[0])
        assert layer(x[:0]).shape == (0, 4, 8, 9)

    def test_from_conv2d_takes_over_what_the_convolution_is(self):
        conv = nn.Conv2d(3, 4, 3, bias=False).double().eval()
        conv.weight.requires_grad_(False)
        layer = DeformConv2d.from_conv2d(conv, offset_groups=3)
        assert isinstance(layer, DeformConv2d)
        assert not layer.training
        assert layer.bias is None
        assert layer.offset_conv.weight.dtype == torch.float64
        assert not layer.weight.requires_grad
        assert layer.offset_conv.weight.requires_grad
        assert layer.weight.data_ptr() != conv.weight.data_ptr()

    def test_reset_parameters_starts_anew(self):
        layer = stirred(DeformConv2d(3, 4, 3, padding=1, modulation=True))
        before = layer.weight.detach().clone()
        layer.reset_parameters()
        x = torch.randn(1, 3, 8, 8)
        plain = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-5)
        assert not torch.equal(layer.weight, before)

    def test_meta_device(self):
        layer = DeformConv2d(4, 4, 3, padding=1, device="meta", fixed_kernel=True)
        assert layer(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 4, 8, 8)
        layer = layer.to_empty(device="cpu")
        layer.reset_parameters()
        torch.testing.assert_close(layer.weight, torch.full((4, 4, 3, 3), 1 / 36))
        assert layer.departure() is None

    def test_printed(self):
        shown = repr(DeformConv2d(4, 2, 3, offset_groups=2, fixed_kernel=True))
        assert shown.startswith("DeformConv2d(\n  4, 2, kernel_size=(3, 3), stride=(1, 1), offset")
        assert "offset_groups=2, fixed_kernel=True" in shown


def test_fixed_kernel_is_uniform_and_not_learned():
    layer = DeformConv2d(4, 4, 3, groups=4, padding=1, bias=False, fixed_kernel=True)
    assert {name for name, _ in layer.named_parameters()} == {
        "offset_conv.weight", "offset_conv.bias",
    }  # fmt: skip
    torch.testing.assert_close(layer.weight, torch.full((4, 1, 3, 3), 1 / 9))
    assert "weight" in layer.state_dict()


@pytest.mark.unchecked
class TestErrors:
    @pytest.mark.parametrize("groups", [3, 0, -1, 1.5])
    def test_offset_groups(self, groups):
        with pytest.raises(ValueError, match="offset_groups: expected a divisor of the 4 input"):
            DeformConv2d(4, 2, 3, offset_groups=groups, modulation=True)

    def test_from_conv2d(self):
        with pytest.raises(TypeError, match=r"conv: expected an nn\.Conv2d, got Linear"):
            DeformConv2d.from_conv2d(nn.Linear(2, 2))
        with pytest.raises(TypeError, match="DeformConv2d computes something else than"):
            DeformConv2d.from_conv2d(DeformConv2d(2, 2, 3))
        with pytest.raises(ValueError, match="construct DeformConv2d directly"):
            DeformConv2d.from_conv2d(nn.Conv2d(2, 2, 3), fixed_kernel=True)

    def test_from_a_convolution_that_computes_something_else(self):
        class Standardised(nn.Conv2d):
            def _conv_forward(self, x, weight, bias):
                return super()._conv_forward(x, weight - weight.mean(), bias)

        with pytest.raises(TypeError, match="Standardised computes something else"):
            DeformConv2d.from_conv2d(Standardised(2, 2, 3))

    def test_input(self):
        layer = DeformConv2d(2, 2, 3)
        with pytest.raises(ValueError, match=r"expected shape \(B, 2, H, W\) .* got \(1, 3, 5, 5"):
            layer.offsets(torch.randn(1, 3, 5, 5))
        with pytest.raises(TypeError, match=r"the layer's dtype torch\.float32, got torch\.float6"):
            layer.positions(torch.randn(1, 2, 5, 5).double())
        with pytest.raises(ValueError, match="smaller than the kernel"):
            layer.geometry().output_size(2, 2)
