"""Layers read as metrics: closed forms, recovery, summaries."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from finslerconv.balls import Ellipse, affine, lattice, radial, reference_set
from finslerconv.implicit import (
    ImplicitMetric,
    KernelPositions,
    Misfit,
    find_adaptive_layers,
    implicit_metric,
    register_positions,
)
from finslerconv.metrics import Polytope, Randers, Riemannian
from finslerconv.nn import DeformConv2d, MetricConv2d, ShiftedConv2d, WeightedConv2d
from finslerconv.ops import ConvGeometry

X = torch.randn(2, 3, 12, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def randers_field(*batch, seed=0, strength=0.8):
    """Return random metrics, axes from 0.7 to 3 pixels, with a drift of up to ``strength``."""
    random = np.random.default_rng(seed)
    axes = random.uniform(0.7, 3.0, (*batch, 2))
    angle = random.uniform(0, math.pi, batch)
    turn = np.stack((np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)), -1)
    turn = turn.reshape(*batch, 2, 2)
    M = np.einsum("...ij,...j,...kj->...ik", turn, axes**-2, turn)
    direction = random.normal(size=(*batch, 2))
    norm = np.sqrt(np.einsum("...i,...ij,...j->...", direction, np.linalg.inv(M), direction))
    length = strength * random.uniform(0, 1, batch)
    omega = direction * (length / norm)[..., None]
    return Randers(torch.tensor(M), torch.tensor(omega))


class FieldHead(nn.Module):
    """A head that returns a known field."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, x):
        return self.field


def test_a_summary_prints_a_number_a_line():
    layer = MetricConv2d(3, 4, 3, padding=1).double()
    layer.head = FieldHead(randers_field(2, 12, 14))
    summary = implicit_metric(layer, X).summary
    lines = str(summary).split("\n")
    assert max(map(len, lines)) <= 80
    values = dict(line.split(maxsplit=1) for line in lines)
    assert list(values) == list(vars(summary))
    assert float(values["anisotropy"]) == pytest.approx(summary.anisotropy, rel=0.01)
    assert len(values["orientation"].split()) == 12


# What theory says of convolutions with fixed positions.


@pytest.mark.parametrize("kernel_size", [3, 5, 7, (3, 5)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_standard_and_dilated_convolutions(kernel_size, dilation):
    """The metric is I / (r d)^2: its unit ball is the disc inscribed in the square of the taps."""
    conv = nn.Conv2d(3, 4, kernel_size, padding=9, dilation=dilation)
    result = implicit_metric(conv, X)
    radius = dilation * (np.max(kernel_size) // 2)
    expected = torch.eye(2, dtype=torch.float64) / radius**2
    torch.testing.assert_close(
        result.metric.M, expected.expand_as(result.metric.M), rtol=1e-8, atol=1e-8
    )
    assert float(result.metric.omega.abs().max()) < 1e-8
    assert bool(result.fit.explained.all())
    s = result.summary
    assert s.explained == 1
    assert s.size == pytest.approx(radius, rel=1e-8)
    assert s.anisotropy == pytest.approx(1, abs=1e-6)
    assert s.residual < 1e-8
    assert (s.orientation, s.edges, s.uphill) == (None, None, None)
    assert result.map == "radial"
    assert s.n == math.prod(result.positions.output_size) * len(X)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [2, 4, 5])
def test_smallest_ball_around_the_taps(size, dilation):
    """Without the order of the taps: the disc through the corners."""
    conv = nn.Conv2d(3, 4, size, dilation=dilation)
    # The fallback of 2 x 2 taps, whose four rays determine no metric.
    options = {} if size == 2 else {"objective": "enclosing"}
    result = implicit_metric(conv, X, **options)
    expected = 2 * torch.eye(2, dtype=torch.float64) / ((size - 1) * dilation) ** 2
    torch.testing.assert_close(
        result.metric.M, expected.expand_as(result.metric.M), rtol=1e-6, atol=1e-8
    )
    assert result.summary.inside == 1
    assert result.map is None


def test_shifted_convolution_drifts_by_its_offset():
    """The ball of the shifted disc has its centre at the shift, as long as it holds the pixel."""
    layer = ShiftedConv2d(3, 4, 5, padding=2).double()
    layer.offset_conv.bias.data = torch.tensor([0.4, -0.9], dtype=torch.float64)
    result = implicit_metric(layer, X, objective="enclosing")
    ellipse = Ellipse.of(result.metric)
    shift = torch.tensor([0.4, -0.9], dtype=torch.float64)
    torch.testing.assert_close(
        ellipse.centre, shift.expand_as(ellipse.centre), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(result.summary.drift, [0.4, -0.9], atol=1e-6)
    assert result.summary.asymmetry > 0.2
    layer.offset_conv.bias.data *= 10  # the pixel is outside its own ball
    assert implicit_metric(layer, X, objective="enclosing").summary.explained == 0


def test_kernels_of_one_row_have_no_metric():
    result = implicit_metric(nn.Conv2d(3, 4, (1, 5)), X)
    assert result.summary.explained == 0
    assert math.isnan(result.summary.size)
    assert result.summary.orientation is None
    assert bool(torch.isfinite(result.metric.M).all())


def test_two_by_two_taps():
    """Four taps have no order that determines a metric: the disc through the corners."""
    result = implicit_metric(nn.Conv2d(3, 4, 2), X)
    expected = 2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(
        result.metric.M, expected.expand_as(result.metric.M), rtol=1e-6, atol=1e-8
    )


def test_density_does_not_move_an_exact_fit():
    weighted = WeightedConv2d(3, 4, 5, density=[0.2, 0.8])
    result = implicit_metric(weighted, X)
    np.testing.assert_allclose(result.summary.size, 2, rtol=1e-6)
    assert result.positions.modulation is not None


# Recovery.


@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9])
def test_deformable_layer_gives_its_metric_back(kernel_size, strength, map):
    """Offsets made from a known Randers field: the field again, whichever map made them."""
    field = randers_field(1, 12, 14, seed=kernel_size, strength=strength)
    where = ConvGeometry.of(kernel_size, padding=kernel_size // 2)
    points = torch.tensor(lattice(kernel_size).points)[:, None, None, None]
    positions = {"radial": radial, "affine": affine}[map](field, points).movedim(0, -2)
    offsets = positions - where.taps(positions)

    class Offsets(nn.Module):
        def forward(self, x):
            return offsets.movedim((-2, -1), (1, 2)).flatten(1, 2)

    layer = DeformConv2d(3, 4, kernel_size, padding=kernel_size // 2).double()
    layer.offset_conv = Offsets()
    result = implicit_metric(layer, X[:1])
    assert result.map == map
    assert bool(result.fit.explained.all())
    torch.testing.assert_close(result.metric.M, field.M, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.metric.omega, field.omega, rtol=1e-6, atol=1e-6)


def test_torchvision_layer_gives_its_metric_back():
    try:
        from torchvision.ops import DeformConv2d as Theirs
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    field = randers_field(2, 12, 14, seed=5)
    points = torch.tensor(lattice(3).points)
    positions = radial(field, points[:, None, None, None])
    offset = (positions - points[:, None, None, None]).movedim((0, -1), (1, 2)).flatten(1, 2)
    layer = Theirs(3, 4, 3, padding=1)
    result = implicit_metric(layer, (X.float(), offset.float()))
    assert result.metric.M.dtype == torch.float32
    torch.testing.assert_close(result.metric.M.double(), field.M, rtol=0, atol=1e-3)
    torch.testing.assert_close(result.metric.omega.double(), field.omega, rtol=0, atol=1e-3)


@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("reference", ["lattice", "concentric", "sunflower"])
def test_metric_layer_gives_its_metric_back(reference, map):
    """Also dilated: there the layer's metric is in spacings, the implicit one in pixels."""
    field = randers_field(2, 8, 10, seed=1)
    layer = MetricConv2d(
        3, 4, 3, dilation=2, reference=reference_set(reference, 3), map=map, metric=FieldHead(field)
    ).double()
    own, fitted = implicit_metric(layer, X), implicit_metric(layer, X, objective="reference")
    assert (own.explicit, fitted.explicit) == (True, False)
    for result in (own, fitted):
        torch.testing.assert_close(result.metric.M, field.M / 4, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result.metric.omega, field.omega / 2, rtol=1e-6, atol=1e-6)
        assert result.summary.residual < 1e-6
        assert result.map == map
        assert result.summary.explained == 1
    torch.testing.assert_close(own.fit.iou, fitted.fit.iou)
    torch.testing.assert_close(own.fit.inside, fitted.fit.inside)


@pytest.mark.parametrize("map", ["radial", "affine"])
def test_metric_layer_whose_positions_do_not_determine_it(map):
    """A polar set of three angles: five numbers cannot be told from three rays."""
    field = randers_field(2, 12, 14, seed=6)
    layer = MetricConv2d(3, 4, 3, padding=1, reference="polar", map=map, metric=FieldHead(field))
    result = implicit_metric(layer.double(), X, max_size=7)
    assert result.explicit
    assert "explicit metrics" in repr(result)
    torch.testing.assert_close(result.metric.M, field.M[:, ::2, ::2])
    if map == "radial":
        with pytest.raises(ValueError, match="lie along 3 rays"):
            implicit_metric(layer, X, objective="reference")
        # Fitted by wish, and no order of the taps tells: around all samples.
        assert implicit_metric(layer, X, margin=0.01).summary.inside == 1
    else:
        fitted = implicit_metric(layer, X, margin=0.01)
        torch.testing.assert_close(fitted.metric.M, field.M, rtol=1e-6, atol=1e-6)
        assert (fitted.map, fitted.explicit) == ("affine", False)


def test_metric_layer_with_a_metric_of_another_kind_is_fitted():
    class Hull(nn.Module):
        def forward(self, x):
            square = torch.tensor(lattice(3).points[[0, 2, 6, 8]])
            return Polytope(square.expand(len(x), 10, 12, 4, 2))

    result = implicit_metric(MetricConv2d(3, 4, 3, metric=Hull()).double(), X)
    assert not result.explicit
    assert result.summary.residual > 0.01


def test_fits_that_diverge_are_counted():
    layer = DeformConv2d(3, 4, 3, padding=1).double()

    class Offsets(nn.Module):
        def forward(self, x):
            return 0.9 * torch.randn(
                2, 18, 12, 14, dtype=x.dtype, generator=torch.Generator().manual_seed(0)
            )

    layer.offset_conv = Offsets()
    result = implicit_metric(layer, X, map="radial")
    s = result.summary
    assert s.diverged == pytest.approx(
        float((result.fit.reason == Misfit.DIVERGED).double().mean())
    )
    assert 0.05 < s.diverged < 1 - s.explained + 1e-12
    assert s.anisotropy_90 < 100


def test_groups_have_a_metric_each():
    field = randers_field(2, 3, 10, 12, seed=2)
    layer = MetricConv2d(3, 3, 3, metric_groups=3, metric=FieldHead(field)).double()
    result = implicit_metric(layer, X)
    assert result.metric.batch_shape == (2, 3, 10, 12)
    torch.testing.assert_close(result.metric.M, field.M, rtol=1e-6, atol=1e-6)
    assert result.summary.edges is not None
    assert result.summary.n == 2 * 3 * 10 * 12


def test_thinned():
    field = randers_field(1, 12, 14, seed=4)
    layer = MetricConv2d(3, 3, 3, padding=1, metric=FieldHead(field)).double()
    result = implicit_metric(layer, X[:1], max_size=5)
    assert result.metric.batch_shape == (1, 4, 5)
    torch.testing.assert_close(result.metric.M, field.M[:, ::3, ::3], rtol=1e-6, atol=1e-6)


def test_riemannian_fit():
    field = randers_field(1, 12, 14, seed=4, strength=0.0)
    layer = MetricConv2d(3, 3, 3, padding=1, metric=FieldHead(field)).double()
    result = implicit_metric(layer, X[:1], kind="riemannian")
    assert isinstance(result.metric, Riemannian)
    torch.testing.assert_close(result.metric.M, field.M, rtol=1e-6, atol=1e-6)
    assert result.summary.asymmetry == 0
    assert isinstance(result.in_picture(24, 28)[0], Randers)


# Models.


def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        MetricConv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(2),
        DeformConv2d(4, 4, 3, padding=1, modulation=True),
    ).double()
    for parameter in (*net[1].head.parameters(), *net[3].offset_conv.parameters()):
        nn.init.normal_(parameter, std=0.1)
    return net


def test_every_adaptive_layer_of_a_model():
    net = model()
    results = implicit_metric(net, X)
    assert list(results) == ["1", "3"]
    assert [r.positions.kind for r in results.values()] == ["metric", "deformable"]
    with torch.no_grad():
        explicit = net[1].metric(net[0](X))
    torch.testing.assert_close(results["1"].metric.M, explicit.M, rtol=1e-6, atol=1e-6)
    assert results["3"].positions.input_size == (6, 7)
    assert list(implicit_metric(net, X, include_fixed=True)) == ["0", "1", "3"]
    assert not any(r.metric.M.requires_grad for r in results.values())
    assert net.training


def test_layers_of_a_model_in_pixels_of_the_picture():
    """Behind a pooling by 2, a pixel is two of the picture."""
    result = implicit_metric(model(), X)["3"]
    metric, centres = result.in_picture(12, 14)
    torch.testing.assert_close(centres[0, :, 3, 0], torch.arange(6).double() * 2 + 0.5)
    torch.testing.assert_close(centres[0, 2, :, 1], torch.arange(7).double() * 2 + 0.5)
    inner, outer = Ellipse.of(result.metric), Ellipse.of(metric)
    torch.testing.assert_close(outer.axes, 2 * inner.axes)
    torch.testing.assert_close(outer.centre, 2 * inner.centre)
    stretched = Ellipse.of(result.in_picture(6, 21)[0])  # three times as wide
    torch.testing.assert_close(stretched.area, 3 * inner.area)
    torch.testing.assert_close(
        stretched.centre, inner.centre * torch.tensor([1.0, 3.0], dtype=torch.float64)
    )


def test_works_under_inference_mode():
    with torch.inference_mode():
        assert implicit_metric(MetricConv2d(3, 4, 3).double(), X).summary.explained == 1


# Summaries.


def constant(M, omega=(0.0, 0.0), size=(1, 16, 16)):
    M = torch.tensor(M, dtype=torch.float64).expand(*size, 2, 2)
    omega = torch.tensor(omega, dtype=torch.float64).expand(*size, 2)
    return MetricConv2d(1, 1, 3, padding=1, metric=FieldHead(Randers(M, omega))).double()


def ramp(direction):
    """Return a picture that grows along a direction (down, right)."""
    place = torch.arange(16, dtype=torch.float64)
    return (direction[0] * place[:, None] + direction[1] * place[None, :])[None, None] / 32


def turned(angle, long=2.0, short=1.0):
    """Return the matrix of the ball whose long axis has that angle, from right to down."""
    along = np.array([math.sin(angle), math.cos(angle)])
    across = np.array([math.cos(angle), -math.sin(angle)])
    return np.outer(along, along) / long**2 + np.outer(across, across) / short**2


@pytest.mark.parametrize("angle", [0.1, 0.7, 1.5, -0.4, -1.4])
def test_balls_along_and_across_edges(angle):
    layer = constant(turned(angle).tolist())
    down, right = math.sin(angle), math.cos(angle)
    across = implicit_metric(layer, ramp((down, right))).summary
    along = implicit_metric(layer, ramp((right, -down))).summary
    diagonal = implicit_metric(
        layer, ramp((math.sin(angle + 0.785398), math.cos(angle + 0.785398)))
    )
    assert across.edges == pytest.approx(-1, abs=1e-6)
    assert along.edges == pytest.approx(1, abs=1e-6)
    assert diagonal.summary.edges == pytest.approx(0, abs=1e-5)
    assert (across.size, across.anisotropy) == pytest.approx((math.sqrt(2), 2), rel=1e-6)
    (sector,) = np.flatnonzero(np.asarray(across.orientation) > 1e-9)
    assert sector == math.floor((math.degrees(angle) + 90) / 15)
    assert sum(across.orientation) == pytest.approx(1)


@pytest.mark.parametrize("omega", [(0.3, 0.0), (0.0, -0.4), (0.2, 0.2)])
def test_drift_uphill_and_downhill(omega):
    """The centre of a Randers ball lies against omega."""
    layer = constant(np.eye(2).tolist(), omega)
    s = implicit_metric(layer, ramp(omega)).summary
    assert s.uphill == pytest.approx(-1, abs=1e-6)
    assert s.asymmetry == pytest.approx(math.hypot(*omega), rel=1e-6)
    lam = 1 - np.dot(omega, omega)
    np.testing.assert_allclose(s.drift, -np.array(omega) / lam, atol=1e-9)
    back = implicit_metric(layer, ramp((-omega[0], -omega[1]))).summary
    assert back.uphill == pytest.approx(1, abs=1e-6)


def test_alignment_needs_a_gradient():
    layer = constant(turned(0.3).tolist(), (0.1, 0.1))
    flat = implicit_metric(layer, torch.full((1, 1, 16, 16), 0.3, dtype=torch.float64)).summary
    assert (flat.edges, flat.uphill) == (None, None)
    dark = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    layer = constant(turned(0.3).tolist())
    other = implicit_metric(layer, dark, image=ramp((1.0, 0.0)))  # its edges run to the right
    assert other.summary.edges == pytest.approx(math.cos(0.6), abs=1e-6)
    assert other.summary.uphill is None


def test_summary_counts_what_is_explained():
    """Half of the pixels are outside their own balls: numbers are about the others."""
    far = torch.tensor(lattice(3).points).expand(1, 4, 6, 9, 2).clone()
    far[..., :3, :, :] += 5.0

    class Half(nn.Module):
        def forward(self, x):
            return x

    @register_positions(Half)
    def read(layer, x):
        return KernelPositions(far, ConvGeometry.of(3, padding=1), (4, 6), "half", True)

    result = implicit_metric(Half(), torch.zeros(1, 1, 4, 6).double(), objective="enclosing")
    assert result.summary.explained == 0.5
    assert result.summary.size == pytest.approx(math.sqrt(2), rel=1e-6)


def test_repr():
    assert repr(implicit_metric(nn.Conv2d(3, 4, 3), X)) == (
        "ImplicitMetric('Conv2d', standard, 240 metrics, size 1 px, anisotropy 1, asymmetry 0, "
        "100 % explained)"
    )


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: implicit_metric("net", X), TypeError, "layer_or_model: expected an nn.Module"),
        (
            lambda: implicit_metric(nn.Sequential(nn.Conv2d(3, 4, 3)).double(), X),
            ValueError,
            "called no adaptive layer; include_fixed=True lists the standard",
        ),
        (lambda: implicit_metric(nn.ReLU(), X, include_fixed=True), ValueError, "layer$"),
        (lambda: implicit_metric(nn.Conv2d(3, 4, 3), X, max_size=0), ValueError, "max_size"),
        (
            lambda: implicit_metric(nn.Conv2d(3, 4, 3), X[:0]),
            ValueError,
            "x: expected at least one picture, got an empty batch",
        ),
        (
            lambda: implicit_metric(nn.Conv2d(3, 4, 1), X, objective="reference"),
            ValueError,
            "layer 'Conv2d': reference: .* no map determines a metric",
        ),
        (
            lambda: implicit_metric(nn.Conv2d(3, 4, 3), X, image=X[0]),
            ValueError,
            r"image: expected a floating Tensor \(B, C, H, W\), got \(3, 12, 14\)",
        ),
        (
            lambda: implicit_metric(nn.Conv2d(3, 4, 3), X, image=X[[0, 0, 1]]),
            ValueError,
            "image: expected 1 picture or as many as in x, 2, got 3",
        ),
        (
            lambda: implicit_metric(nn.Conv2d(3, 4, 3), X, objective="best"),
            ValueError,
            "layer 'Conv2d': objective: expected",
        ),
    ],
)
def test_wrong_inputs(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.unchecked
def test_positions_that_are_not_finite_name_the_layer():
    net = model()
    net[3].offset_conv.bias.data[0] = math.nan
    with pytest.raises(ValueError, match=r"layer '3': points: expected finite"):
        implicit_metric(net, X)


def test_found_layers_and_metrics_are_the_same():
    net = model()
    found = find_adaptive_layers(net, X)
    results = implicit_metric(net, X)
    for layer in found:
        assert isinstance(results[layer.key], ImplicitMetric)
        torch.testing.assert_close(layer.positions.points, results[layer.key].positions.points)


def test_to_dict_is_plain_python():
    """A layer without a fit has None for its numbers, so that strict JSON holds them."""
    result = implicit_metric(nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 8))
    held = result.to_dict()
    assert json.loads(json.dumps(held, allow_nan=False)) == held
    assert held["summary"]["size"] == pytest.approx(result.summary.size)
    assert held["summary"]["drift"] == list(result.summary.drift)
    none = replace(result, summary=replace(result.summary, size=math.nan, drift=(math.nan,) * 2))
    assert none.to_dict()["summary"]["size"] is None
    assert none.to_dict()["summary"]["drift"] == [None, None]
