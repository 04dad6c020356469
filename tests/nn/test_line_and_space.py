"""The adaptive layers of one and three dimensions: intervals, ellipsoids, and free offsets."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
from adaptive_layers import GROUPS_ARGUMENT, LINE_AND_SPACE, assert_it_learns, stirred
from torch import nn

from finslerconv._parametrization import PARAMETRIZATIONS
from finslerconv.implicit import find_adaptive_layers, kernel_positions
from finslerconv.metrics import CallableMetric, Randers, Riemannian
from finslerconv.nn import (
    Cholesky,
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    MetricConv1d,
    MetricConv2d,
    MetricConv3d,
    MetricHead,
    SpectralScaled,
    convert,
    convert_back,
)

every_layer = pytest.mark.parametrize("family", LINE_AND_SPACE, ids=lambda f: f.__name__)
every_metric = pytest.mark.parametrize("family", [MetricConv1d, MetricConv3d])

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZE = {1: (11,), 2: (6, 7), 3: (4, 5, 6)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def picture(family, channels=4, batch=2, dtype=torch.float64):
    return torch.randn(batch, channels, *SIZE[family.dims], dtype=dtype)


def from_plain(family, conv, **options):
    return getattr(family, f"from_conv{family.dims}d")(conv, **options)


def interpolated(image, position):
    """Read an image (C, *size) between its pixels, linearly along each axis; zero outside."""
    for coordinate in reversed(position.unbind()):
        pixels = torch.arange(image.shape[-1], dtype=image.dtype)
        image = image @ (1 - (pixels - coordinate).abs()).clamp(min=0)
    return image


def slow_convolution(layer, x, positions):
    """Loop over output pixels and taps, at positions (B, *out, taps, dims) from the centre."""
    out = layer.geometry().output_size(*x.shape[2:])
    centres = torch.stack(torch.broadcast_tensors(*layer.geometry().centres(out, x)), dim=-1)
    kernel = layer.weight.flatten(2)
    output = torch.zeros(len(x), layer.out_channels, *out, dtype=x.dtype)
    for b, *place in itertools.product(range(len(x)), *map(range, out)):
        there = (b, *place)
        for tap, shift in enumerate(positions[there]):
            value = interpolated(x[b], centres[tuple(place)] + shift)
            output[(b, slice(None), *place)] += kernel[:, :, tap] @ value
    return output + layer.bias.view(-1, *(1,) * layer.dims)


@every_layer
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "conv_groups", "padding_mode"),
    [
        (3, 1, 1, 1, 1, "zeros"),
        (2, 2, 1, 1, 4, "circular"),
        ((3, 1, 2), (1, 2, 1), (1, 0, 1), (2, 1, 1), 2, "zeros"),
        (3, 1, "same", 1, 1, "replicate"),
    ],
)
def test_it_begins_as_the_convolution_that_it_replaces(
    family, kernel_size, stride, padding, dilation, conv_groups, padding_mode
):
    sizes = [
        v[: family.dims] if isinstance(v, tuple) else v
        for v in (kernel_size, stride, padding, dilation)
    ]
    conv = PLAIN[family.dims](4, 8, *sizes, conv_groups, padding_mode=padding_mode).double()
    x = picture(family)
    for options in ({}, {LINE_AND_SPACE[family]: 2, "modulation": True}):
        layer = from_plain(family, conv, **options)
        assert isinstance(layer, PLAIN[family.dims])
        torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-12)
        assert layer.why_not_standard() is None
        back = convert_back(layer).model
        assert type(back) is PLAIN[family.dims]
        torch.testing.assert_close(back(x), conv(x), rtol=0, atol=1e-12)
        assert stirred(layer).why_not_standard() is not None


@every_metric
@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("head", PARAMETRIZATIONS)
def test_every_head_begins_there(family, head, map):
    conv = PLAIN[family.dims](4, 3, 3, padding=1).double()
    x = picture(family)
    for eps_omega in (0.1, 1):
        layer = from_plain(family, conv, head=head, map=map, eps_omega=eps_omega)
        torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-12)


@every_layer
@pytest.mark.parametrize("options", [{}, {"stride": 2, "dilation": 2, "kernel_size": 2}])
def test_it_samples_where_it_says(family, options):
    layer = family(2, 3, **({"kernel_size": 3, "padding": 1} | options)).double()
    stirred(layer)
    x = picture(family, channels=2, batch=1)
    expected = slow_convolution(layer, x, layer.positions(x))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@every_layer
def test_groups_sample_for_their_channels(family):
    """Two groups are two layers side by side, each with its positions and its factors."""
    argument = LINE_AND_SPACE[family]
    both = family(4, 6, 3, padding=1, groups=2, modulation=True, **{argument: 2}).double()
    stirred(both)
    x = picture(family)
    positions, factors = both.positions(x), both.modulation(x)
    taps = 3**family.dims
    assert positions.shape == (2, 2, *SIZE[family.dims], taps, family.dims)
    assert factors.shape == (2, 2, *SIZE[family.dims], taps)
    outputs = []
    for g, part in enumerate(x.chunk(2, dim=1)):
        one = family(2, 3, 3, padding=1).double()
        with torch.no_grad():
            one.weight.copy_(both.weight[3 * g : 3 * g + 3])
            one.bias.copy_(both.bias[3 * g : 3 * g + 3])
        mask = factors[:, g].movedim(-1, 1)
        outputs.append(one._convolve_at(part, positions[:, g], mask))
    torch.testing.assert_close(both(x), torch.cat(outputs, dim=1))


def test_the_interval_of_a_metric_on_a_line():
    """From -1 / (a - w) to 1 / (a + w) for F(v) = a |v| + w v; the affine map keeps spacings."""
    x = torch.randn(1, 2, 20, dtype=torch.float64)
    for map in ("radial", "affine"):
        layer = stirred(MetricConv1d(2, 3, 5, padding=2, dilation=3, map=map).double())
        metric, positions = layer.metric(x), layer.positions(x)[..., 0] / 3
        a, w = metric.M[..., 0, 0].sqrt(), metric.omega[..., 0]
        torch.testing.assert_close(positions[..., 0], -1 / (a - w))
        torch.testing.assert_close(positions[..., 4], 1 / (a + w))
        middle = torch.zeros_like(a) if map == "radial" else (1 / (a + w) - 1 / (a - w)) / 2
        torch.testing.assert_close(positions[..., 2], middle)
        torch.testing.assert_close(positions[..., 1], (positions[..., 0] + positions[..., 2]) / 2)
        assert (positions[..., 0] + positions[..., 4]).abs().max() > 0.1


@pytest.mark.parametrize("reference", ["lattice", "concentric", "fibonacci_ball"])
def test_the_ellipsoid_of_a_metric_in_space(reference):
    """The radial map keeps lengths, F(y) = |g|; the affine one lands around the wind."""
    x = torch.randn(1, 2, 3, 4, 3, dtype=torch.float64)
    for map in ("radial", "affine"):
        layer = MetricConv3d(2, 3, 3, padding=1, reference=reference, map=map).double()
        stirred(layer, 0.1)
        g = torch.tensor(layer.reference.points)
        metric, positions = layer.metric(x), layer.positions(x)
        assert metric.asymmetry_ratio().max() > 1.1
        lengths = metric.norm(positions.movedim(-2, 0)).movedim(0, -1)
        if map == "radial":
            torch.testing.assert_close(lengths, g.norm(dim=-1).expand_as(lengths))
            continue
        inside = g.norm(dim=-1) <= 1 + 1e-12
        assert (lengths[..., inside] <= 1 + 1e-10).all()
        h, wind = metric.zermelo()
        apart = positions - wind[..., None, :]
        squares = torch.einsum("...ni,...ij,...nj->...n", apart, h, apart)
        torch.testing.assert_close(squares, g.square().sum(-1).expand_as(squares))


def test_a_kernel_of_one_slice_is_the_layer_for_images():
    """In each slice, as long as no offset leaves it."""
    space = stirred(DeformConv3d(2, 3, (1, 3, 3), padding=(0, 1, 1), modulation=True).double())
    plane = DeformConv2d(2, 3, 3, padding=1, modulation=True).double()
    with torch.no_grad():
        for conv in (space.offset_conv,):
            conv.weight[::3] = 0
            conv.bias[::3] = 0
        along = [i for i in range(27) if i % 3]
        plane.offset_conv.weight.copy_(space.offset_conv.weight[along, :, 0])
        plane.offset_conv.bias.copy_(space.offset_conv.bias[along])
        for a, b in ((plane.modulation_conv, space.modulation_conv), (plane, space)):
            a.weight.copy_(b.weight[:, :, 0])
            a.bias.copy_(b.bias)
    x = torch.randn(1, 2, 4, 6, 7, dtype=torch.float64)
    expected = torch.stack([plane(x[:, :, i]) for i in range(4)], dim=2)
    torch.testing.assert_close(space(x), expected)


@every_metric
def test_the_metric_is_valid_whatever_the_head_puts_out(family):
    for head in PARAMETRIZATIONS:
        layer = family(3, 4, 3, padding=1, head=head, eps_omega=0.05)
        metric = stirred(layer, 0.5).double().metric(picture(family, channels=3))
        assert isinstance(metric, Randers)
        assert metric.dim == family.dims
        metric.validate()
        assert (metric.omega_norm() <= 0.95 + 1e-9).all()


@every_metric
def test_a_metric_of_ones_own(family):
    """Riemannian, or known by its norm alone; then it is placed by the radial map."""

    class Own(nn.Module):
        def __init__(self, general):
            super().__init__()
            self.general = general

        def forward(self, x):
            M = torch.eye(family.dims, dtype=x.dtype) * (1 + x[:, 0, ..., None, None] ** 2)
            if not self.general:
                return Riemannian(M)
            return CallableMetric(
                lambda v: M[..., 0, 0].sqrt() * v.square().sum(-1).sqrt(), family.dims, like=M
            )

    layers = [family(2, 3, 3, padding=1, metric=Own(general)).double() for general in (False, True)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = picture(family, channels=2)
    torch.testing.assert_close(layers[0](x), layers[1](x))
    torch.testing.assert_close(
        layers[0](x[:1]), slow_convolution(layers[0], x[:1], layers[0].positions(x[:1]))
    )


@pytest.mark.slow
@every_layer
def test_gradcheck(family):
    layer = stirred(family(1, 1, 2, modulation=True).double(), 0.1)
    size = {1: (5,), 3: (2, 3, 2)}[family.dims]
    x = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@every_layer
def test_it_learns_and_every_parameter_gets_a_gradient(family):
    layer = family(3, 4, 3, padding=1, modulation=True)
    assert_it_learns(layer, picture(family, channels=3, dtype=torch.float32), steps=4)


@every_layer
def test_copies_and_saved_states(family):
    layer = stirred(family(3, 4, 3, padding=1, modulation=True))
    x = picture(family, channels=3, batch=1, dtype=torch.float32)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    other = family(3, 4, 3, padding=1, modulation=True)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    own = "head.conv" if isinstance(layer, MetricConv1d | MetricConv3d) else "offset_conv"
    assert set(layer.state_dict()) == {
        f"{part}{name}"
        for part in ("", f"{own}.", "modulation_conv.")
        for name in ("weight", "bias")
    }


@every_layer
def test_a_fixed_kernel_and_a_new_start(family):
    layer = family(4, 4, 3, groups=4, padding=1, bias=False, fixed_kernel=True)
    torch.testing.assert_close(layer.weight, torch.full_like(layer.weight, 3.0**-family.dims))
    assert "weight" not in dict(layer.named_parameters())
    stirred(layer).reset_parameters()
    assert layer.why_not_standard() is None


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(family, dtype):
    layer = stirred(family(3, 4, 3, padding=1, modulation=True), 0.02)
    x = picture(family, channels=3, batch=1, dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        assert layer.positions(x).dtype == torch.float32
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() < 0.05 * expected.abs().max()
    half = layer.to(dtype)
    assert half(x.to(dtype)).dtype == dtype
    assert half.positions(x.to(dtype)).dtype == torch.float32


@every_layer
def test_unbatched_and_empty_batches(family):
    layer = stirred(family(3, 4, 3, padding=1, modulation=True))
    x = picture(family, channels=3, batch=1, dtype=torch.float32)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    assert layer(x[:0]).shape == (0, 4, *SIZE[family.dims])


@pytest.mark.slow
@every_layer
def test_meta_device(family):
    layer = family(4, 4, 2, device="meta", modulation=True)
    x = torch.empty(2, 4, *SIZE[family.dims], device="meta")
    assert layer(x).shape == (2, 4, *(n - 1 for n in SIZE[family.dims]))
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.why_not_standard() is None


@every_layer
@pytest.mark.uninstrumented
def test_compile(family):
    layer = stirred(family(4, 4, 2, modulation=True, **{LINE_AND_SPACE[family]: 2}))
    x = picture(family, batch=1, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    parameters = tuple(layer.parameters())
    gradients = torch.autograd.grad(layer(x).square().sum(), parameters)
    again = torch.autograd.grad(compiled(x).square().sum(), parameters)
    torch.testing.assert_close(again, gradients)


@every_layer
@pytest.mark.uninstrumented
def test_export_for_inputs_of_any_number_and_size(family):
    layer = stirred(family(4, 4, 2, stride=2, padding=1)).eval()
    free = dict.fromkeys((0, *range(2, 2 + family.dims)), torch.export.Dim.DYNAMIC)
    x = torch.randn(2, 4, *(9, 8, 7)[: family.dims])
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,), dynamic_shapes=(free,)), buffer)
    buffer.seek(0)
    exported = torch.export.load(buffer).module()
    for size in ((2, 9, 8, 7), (5, 6, 11, 4)):
        x = torch.randn(size[0], 4, *size[1 : 1 + family.dims])
        assert torch.equal(exported(x), layer(x))


@every_layer
def test_printed(family):
    shown = repr(family(4, 2, 3, fixed_kernel=True, **{LINE_AND_SPACE[family]: 2}))
    kernel = ", ".join("3" * family.dims) + ("," if family.dims == 1 else "")
    assert f"4, 2, kernel_size=({kernel})" in shown
    assert f"{LINE_AND_SPACE[family]}=2, fixed_kernel=True" in shown


class VolumeNet(nn.Module):
    """A U-Net of one level."""

    def __init__(self, plain=nn.Conv3d, up=nn.ConvTranspose3d):
        super().__init__()
        self.inner = plain(1, 4, 3, padding=1)
        self.down = plain(4, 8, 2, stride=2)
        self.middle = plain(8, 8, 3, padding=1)
        self.up = up(8, 4, 2, stride=2)
        self.outer = plain(8, 4, 3, padding=1)
        self.out = plain(4, 1, 1)

    def forward(self, x):
        fine = self.inner(x).relu()
        coarse = self.middle(self.down(fine).relu()).relu()
        return self.out(self.outer(torch.cat((fine, self.up(coarse)), dim=1)).relu())


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("to", ["metric", "deform"])
def test_a_network_is_converted_and_back(dims, to):
    up = {1: nn.ConvTranspose1d, 3: nn.ConvTranspose3d}[dims]
    net = VolumeNet(PLAIN[dims], up).double()
    x = torch.randn(1, 1, *(8, 6, 4)[:dims], dtype=torch.float64)
    converted, report = convert(net, to, modulation=True, example=x)
    classes = {"metric": (MetricConv1d, MetricConv3d), "deform": (DeformConv1d, DeformConv3d)}
    kind = classes[to][dims == 3]
    assert [row.name for row in report.converted] == ["inner", "down", "middle", "outer"]
    assert all(type(getattr(converted, row.name)) is kind for row in report.converted)
    reasons = {row.name: row.reason for row in report.left_alone}
    assert reasons == {"up": "transposed", "out": "its single tap has no support to shape"}
    torch.testing.assert_close(converted(x), net(x), rtol=0, atol=1e-12)
    row = report.converted[0]
    assert row.after.output_size == tuple(x.shape[2:])
    # The kernel, its head, the factors' convolution; interpolation and factors, per sample.
    taps = 3**dims
    head = {"metric": {1: 2, 3: 9}[dims], "deform": dims * taps}[to]
    assert row.before.multiply_adds == 4 * taps
    assert row.after.multiply_adds == (4 + head + taps) * taps + (2**dims + 1) * taps
    assert f"-> {kind.__name__}" in str(report)
    back, _ = convert_back(converted)
    torch.testing.assert_close(back(x), net(x), rtol=0, atol=1e-12)
    assert {type(m) for m in back.modules()} == {type(m) for m in net.modules()}


def test_what_has_no_form_on_a_line_or_in_space_is_left_alone():
    net = nn.ModuleList([nn.Conv1d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv3d(1, 1, 3)])
    for to in ("geodesic", "shifted", MetricConv2d):
        _, report = convert(net, to)
        assert [row.name for row in report.converted] == ["1"]
        assert [row.reason for row in report.left_alone] == [
            "expected an nn.Conv2d, got Conv1d", "expected an nn.Conv2d, got Conv3d",
        ]  # fmt: skip
    _, report = convert(net, MetricConv3d)
    assert [row.name for row in report.converted] == ["2"]


def test_an_object_as_head_is_for_one_dimension():
    net = nn.ModuleList([nn.Conv2d(1, 1, 3), nn.Conv3d(1, 1, 3)])
    head = Cholesky(eps_L=0.1, dim=3)
    with pytest.raises(ValueError, match=r"of 2 x 2 matrices, got Cholesky.* \(at 0: Conv2d"):
        convert(net, "metric", head=head)
    converted, _ = convert(net, "metric", "1", head=head)
    assert converted[1].head.parametrization is head


def test_a_constant_modulation_is_multiplied_into_the_weights():
    layer = MetricConv3d(2, 3, (1, 2, 3), modulation=True, metric_groups=2).double()
    with torch.no_grad():
        layer.modulation_conv.bias.copy_(torch.randn(12))
    x = picture(MetricConv3d, channels=2)
    back = convert_back(layer).model
    torch.testing.assert_close(back(x), layer(x))


@pytest.mark.unchecked
class TestErrors:
    @every_layer
    def test_of_the_arguments(self, family):
        number = {1: "one integer", 3: "one or three integers"}[family.dims]
        for option, words in (
            ({"kernel_size": (3, 3)}, rf"kernel_size: expected {number} .* got \(3, 3\)"),
            ({"stride": 0}, f"stride: expected {number} of at least 1, got 0"),
            ({"padding": "full"}, "padding: expected integers, 'same' or 'valid', got 'full'"),
            ({LINE_AND_SPACE[family]: 3}, f"{LINE_AND_SPACE[family]}: expected a divisor of the 4"),
        ):
            with pytest.raises(ValueError, match=words):
                family(4, 2, **({"kernel_size": 3} | option))

    @every_layer
    def test_of_the_input(self, family):
        axes = {1: "L", 3: "D, H, W"}[family.dims]
        layer = family(2, 2, 3)
        with pytest.raises(ValueError, match=rf"\(B, 2, {axes}\) or \(2, {axes}\), got \(1, 3, 5"):
            layer(torch.randn(1, 3, *(5,) * family.dims))
        with pytest.raises(ValueError, match=rf"\(B, 2, {axes}\) or \(2, {axes}\), got \(2, 2, 5"):
            layer(torch.randn(2, 2, *(5,) * (family.dims + 1)))

    @every_layer
    def test_of_the_convolution_that_it_is_made_from(self, family):
        name = f"nn.Conv{family.dims}d"
        with pytest.raises(TypeError, match=f"conv: expected an {name}, got Conv2d"):
            from_plain(family, nn.Conv2d(2, 2, 3))
        with pytest.raises(
            TypeError, match=f"{family.__name__} computes something else than {name}"
        ):
            from_plain(family, family(2, 2, 3))
        assert not hasattr(family, "from_conv2d")

    @every_metric
    def test_of_the_head(self, family):
        d = family.dims
        with pytest.raises(
            ValueError, match=rf"head: .* of {d} x {d} matrices, got Cholesky.*dim={d}"
        ):
            family(2, 2, 3, head=Cholesky())
        layer = family(2, 2, 3, head=SpectralScaled(scale_max=2.0, dim=d))
        assert layer.head.parametrization.scale_max == 2
        with pytest.raises(ValueError, match="conv: expected a convolution over 2 axes"):
            MetricHead(PLAIN[d](2, 5, 3), Cholesky())
        other = {1: "on the line", 3: "in space"}[d]
        with pytest.raises(ValueError, match=f"points {other} for a kernel"):
            family(2, 2, 3, reference=MetricConv2d(2, 2, 3).reference)
        with pytest.raises(ValueError, match="kernel_size: sunflower is two-dimensional"):
            family(2, 2, 3, reference="sunflower")

    @every_metric
    def test_of_a_metric_of_another_dimension(self, family):
        class Flat(nn.Module):
            def forward(self, x):
                return Riemannian(torch.eye(2), validate=False)

        words = f"metric: expected metrics of dimension {family.dims}, got 2"
        with pytest.raises(ValueError, match=words):
            family(2, 2, 3, metric=Flat())(picture(family, channels=2, dtype=torch.float32))

    @every_layer
    def test_it_is_not_read_as_an_implicit_metric(self, family):
        layer = family(2, 2, 3)
        x = picture(family, channels=2, dtype=torch.float32)
        words = f"layer: {family.__name__} .* images"
        with pytest.raises(TypeError, match=words):
            kernel_positions(layer, x)
        assert find_adaptive_layers(nn.Sequential(nn.Identity(), layer), x) == []


def test_the_layers_for_images_are_those_of_two_axes():
    assert {family.dims for family in GROUPS_ARGUMENT} == {2}
    assert math.prod(MetricConv3d(1, 1, (1, 2, 3)).positions(torch.zeros(1, 1, 3, 4, 5)).shape) == (
        3 * 3 * 3 * 6 * 3
    )
