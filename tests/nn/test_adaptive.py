"""What every adaptive layer is as a module, and what the base classes hold their subclasses to."""

import copy
import io
import pickle

import pytest
import torch
from adaptive_layers import GROUPS_ARGUMENT, LINE_AND_SPACE, assert_it_learns, stirred
from torch import nn
from torch.nn.utils import parametrize

from finslerconv.metrics import Riemannian
from finslerconv.nn import AdaptiveConv2d, DeformConv2d, GeodesicConv2d, MetricConv2d
from finslerconv.nn.conversion._families import ADAPTIVE

every_layer = pytest.mark.parametrize("family", GROUPS_ARGUMENT, ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def sampling_parameters(layer):
    """Return the names of the parameters that place the samples and weigh them."""
    return {name for name, _ in layer.named_parameters()} - {"weight", "bias"}


def test_the_families_that_a_model_can_be_converted_to_are_tested_here():
    families = {family for classes in ADAPTIVE.values() for family in classes}
    assert families == {*GROUPS_ARGUMENT, *LINE_AND_SPACE}


@every_layer
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "conv_groups", "padding_mode"),
    [
        (3, 1, 1, 1, 1, "zeros"),
        ((3, 5), 2, (1, 2), 2, 2, "reflect"),
        ((2, 3), (1, 2), 0, (2, 1), 4, "zeros"),
        (2, 1, 1, 1, 1, "circular"),
        (1, 1, 0, 1, 1, "zeros"),
        (5, 1, "same", 1, 2, "replicate"),
    ],
)
def test_it_begins_as_the_convolution_that_it_replaces(
    family, groups, kernel_size, stride, padding, dilation, conv_groups, padding_mode
):
    conv = nn.Conv2d(
        4, 8, kernel_size, stride, padding, dilation, conv_groups, padding_mode=padding_mode
    )
    options = {} if groups is None else {GROUPS_ARGUMENT[family]: groups, "modulation": True}
    layer = family.from_conv2d(conv, **options)
    x = torch.randn(2, 4, 17, 19)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)
    assert layer.why_not_standard() is None
    assert stirred(layer).why_not_standard() is not None


@every_layer
def test_it_takes_over_what_the_convolution_is(family):
    conv = nn.Conv2d(3, 4, 3, bias=False).double().eval()
    conv.weight.requires_grad_(False)
    layer = family.from_conv2d(conv, modulation=True)
    assert type(layer) is family
    assert not layer.training
    assert layer.bias is None
    assert {u.dtype for u in layer.parameters()} == {torch.float64}
    assert {name for name, u in layer.named_parameters() if u.requires_grad} == (
        sampling_parameters(layer)
    )
    assert layer.weight.data_ptr() != conv.weight.data_ptr()


@every_layer
def test_it_learns_and_every_parameter_gets_a_gradient(family):
    layer = family(3, 4, 3, padding=1, modulation=True)
    assert_it_learns(layer, torch.randn(2, 3, 12, 12), steps=8)


@every_layer
def test_a_fixed_kernel_is_uniform_and_not_learned(family):
    layer = family(4, 4, 3, groups=4, padding=1, bias=False, fixed_kernel=True)
    assert {name for name, _ in layer.named_parameters()} == sampling_parameters(layer)
    assert "weight" in layer.state_dict()
    torch.testing.assert_close(layer.weight, torch.full((4, 1, 3, 3), 1 / 9))
    x = torch.full((1, 4, 9, 9), 2.0)
    torch.testing.assert_close(layer(x)[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1])
    layer.weight.zero_()
    layer.reset_parameters()
    torch.testing.assert_close(layer.weight, torch.full((4, 1, 3, 3), 1 / 9))


@every_layer
def test_a_fixed_kernel_can_be_parametrised(family):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            # Of another dtype than the layer, which is not to be taken for the layer's.
            self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, weight):
            return weight * self.scale

    layer = stirred(family(4, 4, 3, padding=1, bias=False, fixed_kernel=True))
    x = torch.randn(1, 4, 8, 8)
    expected = 3 * layer(x)
    parametrize.register_parametrization(layer, "weight", Scaled())
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.parametrizations["weight"][0].scale.grad is not None
    assert layer.double()(x.double()).dtype == torch.float64


@every_layer
def test_copies_and_saved_states(family):
    layer = stirred(family(3, 4, 3, padding=1, modulation=True))
    x = torch.randn(1, 3, 8, 8)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = family(3, 4, 3, padding=1, modulation=True)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), expected)


@every_layer
def test_reset_parameters_starts_anew(family):
    layer = stirred(family(3, 4, 3, padding=1, modulation=True))
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    x = torch.randn(1, 3, 8, 8)
    plain = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-5)
    assert not torch.equal(layer.weight, before)


@pytest.mark.slow
@every_layer
def test_meta_device(family):
    layer = family(4, 4, 3, padding=1, device="meta", fixed_kernel=True)
    assert layer(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 4, 8, 8)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.why_not_standard() is None
    x = torch.randn(1, 4, 8, 8)
    plain = nn.functional.conv2d(x, torch.full((4, 4, 3, 3), 1 / 36), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-5)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(family, dtype):
    layer = stirred(family(3, 4, 7, padding=3, modulation=True), 0.02).to(dtype)
    # Half precision could not hold positions 300 rows away from the first.
    x = torch.randn(1, 3, 300, 9, dtype=dtype)
    assert layer(x).dtype == dtype
    assert layer.positions(x).dtype == torch.promote_types(dtype, torch.float32)


@every_layer
def test_autocast(family):
    layer = stirred(family(3, 4, 3, padding=1, modulation=True), 0.05)
    x = torch.randn(2, 3, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        positions = layer.positions(x)
    assert output.dtype == torch.bfloat16
    assert positions.dtype == torch.float32
    output.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
    # 2^-8 is bfloat16's rounding; that of what predicts the samples moves them as well.
    reference = layer(x)
    assert (output - reference).abs().max() < 0.05 * reference.abs().max()


@every_layer
def test_channels_last_in_channels_last_out(family):
    layer = stirred(family(3, 4, 3, padding=1))
    x = torch.randn(2, 3, 8, 9)
    output = layer(x.contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, layer(x))


@every_layer
def test_unbatched_and_empty_batches(family):
    layer = stirred(family(3, 4, 3, padding=1, modulation=True))
    x = torch.randn(1, 3, 8, 9)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    assert layer(x[:0]).shape == (0, 4, 8, 9)


@every_layer
@pytest.mark.uninstrumented
def test_compile(family):
    options = {GROUPS_ARGUMENT[family]: 2, "modulation": True}
    layer = stirred(family(4, 4, 3, padding=1, **options))
    x = torch.randn(1, 4, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    parameters = tuple(layer.parameters())
    gradients = torch.autograd.grad(layer(x).square().sum(), parameters)
    again = torch.autograd.grad(compiled(x).square().sum(), parameters)
    torch.testing.assert_close(again, gradients)


@every_layer
@pytest.mark.uninstrumented
def test_export_for_images_of_any_number_and_size(family):
    options = {GROUPS_ARGUMENT[family]: 2, "modulation": True}
    layer = stirred(family(4, 4, 3, stride=2, padding=1, **options)).eval()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    x = torch.randn(2, 4, 9, 12)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,), dynamic_shapes=(free,)), buffer)
    buffer.seek(0)
    exported = torch.export.load(buffer).module()
    for size in ((2, 9, 12), (1, 8, 8), (5, 21, 6)):
        x = torch.randn(size[0], 4, *size[1:])
        assert torch.equal(exported(x), layer(x))


@pytest.mark.unchecked
class TestErrors:
    @every_layer
    @pytest.mark.parametrize("groups", [3, 0, -1, 1.5])
    def test_groups(self, family, groups):
        name = GROUPS_ARGUMENT[family]
        with pytest.raises(ValueError, match=f"{name}: expected a divisor of the 4 input"):
            family(4, 2, 3, **{name: groups}, modulation=True)

    @every_layer
    @pytest.mark.parametrize(
        ("option", "expected"),
        [
            ({"kernel_size": 0}, "kernel_size: expected one or two integers of at least 1, got 0"),
            ({"kernel_size": (3, 3, 3)}, r"kernel_size: .* got \(3, 3, 3\)"),
            ({"stride": 0}, "stride: expected one or two integers of at least 1, got 0"),
            ({"dilation": (1, 0)}, r"dilation: .* got \(1, 0\)"),
            ({"padding": -1}, "padding: expected one or two integers of at least 0, got -1"),
            ({"padding": "full"}, "padding: expected integers, 'same' or 'valid', got 'full'"),
            ({"modulation": "no"}, "modulation: expected True or False, got 'no'"),
            ({"fixed_kernel": 1}, "fixed_kernel: expected True or False, got 1"),
        ],
    )
    def test_arguments_out_of_their_range(self, family, option, expected):
        with pytest.raises(ValueError, match=expected):
            family(2, 2, **{"kernel_size": 3, **option})

    @every_layer
    def test_arguments_that_it_does_not_take(self, family):
        class Own(family):
            pass

        groups = GROUPS_ARGUMENT[family]
        for cls in (family, Own):
            name = cls.__name__
            taken = f"it takes in_channels, out_channels, kernel_size, .*, {groups}, .*modulation"
            with pytest.raises(TypeError, match=f"^{name}: .* 'offset_group'; {taken}"):
                cls(2, 2, 3, offset_group=2)
            with pytest.raises(TypeError, match=f"^{name}: missing .* 'out_channels'; {taken}"):
                cls(2)
            with pytest.raises(TypeError, match=f"^{name}: too many positional"):
                cls(2, 2, 3, 1, 0, 1, 1, True, "zeros", None, None, 2)

    def test_arguments_that_a_class_of_ones_own_hands_up(self):
        class Own(DeformConv2d):
            def __init__(self, *arguments, gain=1.0, **options):
                super().__init__(*arguments, **options)
                self.gain = gain

        assert Own(2, 2, 3, offset_groups=2, gain=2.0).gain == 2
        words = "^Own: .* 'gains'; it takes in_channels, .*, modulation, gain$"
        with pytest.raises(TypeError, match=words):
            Own(2, 2, 3, gains=2.0)

    @every_layer
    def test_input_device(self, family):
        words = "input: expected the layer's device cpu, got meta"
        with pytest.raises(ValueError, match=words):
            family(2, 2, 3)(torch.empty(1, 2, 5, 5, device="meta"))

    @every_layer
    def test_input_under_autocast(self, family):
        words = r"input: expected the layer's dtype torch\.float32, got torch\.float64"
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=words):
            family(2, 2, 3)(torch.randn(1, 2, 5, 5).double())

    @every_layer
    def test_from_conv2d(self, family):
        name = family.__name__
        with pytest.raises(TypeError, match=r"conv: expected an nn\.Conv2d, got Linear"):
            family.from_conv2d(nn.Linear(2, 2))
        with pytest.raises(TypeError, match=f"{name} computes something else than"):
            family.from_conv2d(family(2, 2, 3))
        with pytest.raises(ValueError, match=f"construct {name} directly"):
            family.from_conv2d(nn.Conv2d(2, 2, 3), fixed_kernel=True)

    @every_layer
    def test_from_a_convolution_that_computes_something_else(self, family):
        class Standardised(nn.Conv2d):
            def _conv_forward(self, x, weight, bias):
                return super()._conv_forward(x, weight - weight.mean(), bias)

        with pytest.raises(TypeError, match="Standardised computes something else"):
            family.from_conv2d(Standardised(2, 2, 3))

    @every_layer
    def test_input(self, family):
        layer = family(2, 2, 3)
        with pytest.raises(ValueError, match=r"expected shape \(B, 2, H, W\) .* got \(1, 3, 5, 5"):
            layer(torch.randn(1, 3, 5, 5))
        with pytest.raises(TypeError, match=r"the layer's dtype torch\.float32, got torch\.float6"):
            layer.positions(torch.randn(1, 2, 5, 5).double())

    @pytest.mark.parametrize("family", [MetricConv2d, GeodesicConv2d])
    def test_a_metric_of_the_wrong_size(self, family):
        class Flat(nn.Module):
            def forward(self, x):
                return Riemannian(torch.eye(2), validate=False)

        layer = family(2, 2, 3, metric=Flat())
        with pytest.raises(ValueError, match=r"output pixel, batch shape \(1, 3, 3\), got \(\)"):
            layer(torch.randn(1, 2, 5, 5))

    def test_a_base_class_makes_no_layer(self):
        with pytest.raises(TypeError, match="abstract"):
            AdaptiveConv2d(2, 2, 3)
