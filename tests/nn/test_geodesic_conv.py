"""The convolution on geodesic balls: its samples are where its metric field's geodesics end."""

import dataclasses

import numpy as np
import pytest
import torch
from adaptive_layers import stirred
from torch import nn

from finslerconv.balls import ball_map, concentric
from finslerconv.geodesics import GridMetric, exponential
from finslerconv.metrics import CallableMetric, Randers, Riemannian
from finslerconv.nn import GeodesicConv2d, MetricConv2d, convert


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Constant(nn.Module):
    """One Randers metric everywhere."""

    def forward(self, x):
        M = torch.tensor([[0.5, 0.2], [0.2, 1.0]], dtype=x.dtype)
        omega = torch.tensor([0.3, -0.2], dtype=x.dtype)
        shape = (len(x), *x.shape[2:])
        return Randers(M.expand(*shape, 2, 2), omega.expand(*shape, 2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "spectral_scaled", "eps_omega": 1.0, "map": "affine"},
        {"metric_groups": 2, "modulation": True, "stride": 2, "dilation": 2, "padding": 2},
        {"padding_mode": "reflect", "padding": 1, "stride": (2, 1), "dilation": (1, 3)},
    ],
    ids=str,
)
def test_it_begins_as_the_convolution_that_it_replaces(options):
    x = torch.randn(2, 4, 12, 13, dtype=torch.float64)
    names = ("stride", "dilation", "padding", "padding_mode")
    conv = nn.Conv2d(4, 6, 3, **{n: options[n] for n in names if n in options}).double()
    layer = GeodesicConv2d.from_conv2d(conv, **{n: v for n, v in options.items() if n not in names})
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-10, atol=1e-10)
    assert layer(x[0]).shape == conv(x[0]).shape


class Smooth(nn.Module):
    """A Randers metric over the output pixels that varies smoothly from pixel to pixel."""

    def __init__(self, size):
        super().__init__()
        i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
        M = torch.stack(
            (
                1 + 0.4 * torch.sin(0.3 * i),
                0.3 * torch.cos(0.25 * j),
                1 + 0.3 * torch.cos(0.3 * i + 0.2 * j),
            ),
            dim=-1,
        )
        self.M = M[..., (0, 1, 1, 2)].unflatten(-1, (2, 2))
        self.omega = torch.stack((0.3 * torch.sin(0.2 * j), 0.3 * torch.cos(0.3 * i)), dim=-1)

    def forward(self, x):
        return Randers(
            self.M.expand(len(x), *self.M.shape), self.omega.expand(len(x), *self.omega.shape)
        )


@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("reference", ["lattice", "concentric", "sunflower"])
def test_where_the_metric_is_constant_it_is_the_metric_convolution(map, reference):
    options = {"metric": Constant(), "map": map, "reference": reference, "padding": "same"}
    straight = MetricConv2d(3, 4, 5, **options).double()
    layer = GeodesicConv2d(3, 4, 5, **options).double()
    layer.load_state_dict(straight.state_dict())
    x = torch.randn(1, 3, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer.positions(x), straight.positions(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(layer(x), straight(x), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("map", "options"),
    [
        ("radial", {"padding": 1}),
        ("affine", {"padding": 1}),
        ("radial", {"stride": 2, "padding": 1}),
        ("radial", {"dilation": (2, 1), "stride": (1, 2), "padding": 2}),
    ],
    ids=str,
)
def test_it_samples_where_the_geodesics_end(map, options):
    x = torch.zeros(1, 2, 10, 11, dtype=torch.float64)
    size = nn.Conv2d(2, 1, 5, **options).double()(x).shape[2:]
    options |= {"map": map, "metric": Smooth(size)}
    metric = options["metric"](x)
    # The field in pixels: lengths of the metric are in spacings between taps.
    layer = GeodesicConv2d(2, 3, 5, **options).double()
    dilation = torch.tensor(layer.dilation, dtype=x.dtype)
    rows, columns = layer.geometry().centres(tuple(size), x)
    field = GridMetric(
        metric.M[0] / (dilation[:, None] * dilation),
        metric.omega[0] / dilation,
        spacing=tuple(float(s) for s in layer.stride),
        origin=(float(rows[0, 0]), float(columns[0, 0])),
    )
    centres = torch.stack(torch.broadcast_tensors(rows, columns), dim=-1)
    points = torch.as_tensor(layer.reference.points, dtype=x.dtype)
    here = Randers(metric.M[0], metric.omega[0])
    v = ball_map(map)(here, points[:, None, None, :]) * dilation
    ends = exponential(field, centres.expand(25, -1, -1, -1), v, steps=1024)
    expected = (ends - centres).movedim(0, -2)[None]

    def error(steps):
        layer = GeodesicConv2d(2, 3, 5, steps=steps, **options).double()
        return (layer.positions(x) - expected).abs().max()

    # The field is linear between its nodes: a step across a node, where its slope jumps, is of
    # first order.
    assert error(256) < 1e-3
    assert error(256) < error(8) / 4
    # The balls are bent: the samples of the straight ones are elsewhere.
    straight = MetricConv2d(2, 3, 5, **options).double()
    assert (straight.positions(x) - expected).abs().max() > 0.05


def test_its_output_is_the_sum_over_its_samples():
    layer = stirred(GeodesicConv2d(2, 3, 3, padding=1, bias=False).double())
    n = 9
    r, c = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    # Bilinear interpolation is exact on these two.
    x = torch.stack((0.5 * r - c, r + 0.25 * c))[None].double()
    at = layer.positions(x) + torch.stack((r, c), dim=-1)[:, :, None]
    values = torch.stack((0.5 * at[..., 0] - at[..., 1], at[..., 0] + 0.25 * at[..., 1]))
    expected = torch.einsum("ock,cbijk->boij", layer.weight.flatten(2), values)
    inside = ((at >= 0) & (at <= n - 1)).all(-1).all(-1)[0]
    assert inside.sum() > 20
    torch.testing.assert_close(layer(x)[:, :, inside], expected[:, :, inside])


def test_its_state_dict_is_the_metric_convolutions():
    options = {"padding": 1, "metric_groups": 2, "modulation": True}
    straight = stirred(MetricConv2d(4, 4, 3, **options))
    layer = GeodesicConv2d(4, 4, 3, **options)
    layer.load_state_dict(straight.state_dict())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(layer.metric(x).M, straight.metric(x).M)


def test_groups_of_metrics_bend_their_own_channels():
    layer = stirred(GeodesicConv2d(4, 2, 3, padding=1, metric_groups=2, groups=2).double())
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    metric = layer.metric(x)
    for group in range(2):

        class Given(nn.Module):
            def forward(self, x, group=group):
                return Randers(metric.M[:, group], metric.omega[:, group])

        single = GeodesicConv2d(2, 1, 3, padding=1, metric=Given()).double()
        single.weight.data, single.bias.data = (
            layer.weight.data[group : group + 1],
            layer.bias.data[group : group + 1],
        )
        part = single(x[:, 2 * group : 2 * group + 2])
        torch.testing.assert_close(layer(x)[:, group : group + 1], part)


def test_shift_equivariance():
    layer = stirred(GeodesicConv2d(1, 2, 3, padding=1).double())
    x = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    x[..., 9:17, 8:16] = torch.randn(8, 8, dtype=torch.float64)
    moved = torch.roll(x, (2, 3), (2, 3))
    inner = (..., slice(5, 22), slice(5, 22))
    torch.testing.assert_close(torch.roll(layer(x), (2, 3), (2, 3))[inner], layer(moved)[inner])


@pytest.mark.slow
@pytest.mark.parametrize("map", ["radial", "affine"])
def test_gradcheck_through_the_flow(map):
    # Points off the axes: rays along grid lines, where the slope of the field jumps, have no
    # derivative.
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    turned = dataclasses.replace(concentric(3), points=concentric(3).points @ turn)
    options = {"reference": turned, "map": map, "steps": 2}
    layer = stirred(GeodesicConv2d(1, 1, 3, padding=1, **options).double(), 0.05)
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def run(x, *values):
        named = dict(zip(dict(layer.named_parameters()), values, strict=True))
        return torch.func.functional_call(layer, named, (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters), eps=1e-7, atol=1e-5)


def test_half_precision_keeps_the_geometry():
    half = stirred(GeodesicConv2d(2, 3, 3, padding=1).to(torch.bfloat16), 0.03)
    layer = GeodesicConv2d(2, 3, 3, padding=1)
    layer.load_state_dict(half.state_dict())
    x = torch.randn(1, 2, 9, 9).bfloat16()
    y = half(x)
    assert y.dtype == torch.bfloat16
    assert half.positions(x).dtype == torch.float32
    torch.testing.assert_close(half.positions(x), layer.positions(x.float()), rtol=0, atol=0.1)
    torch.testing.assert_close(y.float(), layer(x.float()), rtol=0, atol=0.1)


def test_it_is_what_convert_makes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    converted, _ = convert(model, "geodesic", steps=2)
    assert isinstance(converted[0], GeodesicConv2d)
    assert converted[0].steps == 2
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)


class Cubic(nn.Module):
    def forward(self, x):
        return CallableMetric(
            lambda v: (1 + 0 * x.mean(1)) * v.abs().pow(3).sum(-1).pow(1 / 3), like=x
        )


@pytest.mark.unchecked
def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="map: expected 'radial' or 'affine', got 'polar'"):
        GeodesicConv2d(1, 1, 3, map="polar")
    with pytest.raises(ValueError, match="steps: expected a positive integer, got 0"):
        GeodesicConv2d(1, 1, 3, steps=0)
    layer = GeodesicConv2d(1, 1, 3, padding=1, metric=Cubic())
    with pytest.raises(TypeError, match=r"Riemannian or Randers metric.*CallableMetric"):
        layer(torch.randn(1, 1, 5, 5))


def test_a_riemannian_metric_needs_no_omega():
    class Disc(nn.Module):
        def forward(self, x):
            scale = 1 + 0.2 * x.mean(1)
            return Riemannian(scale[..., None, None] * torch.eye(2, dtype=x.dtype))

    layer = GeodesicConv2d(1, 1, 3, padding=1, metric=Disc())
    assert layer(torch.rand(1, 1, 6, 6)).isfinite().all()
