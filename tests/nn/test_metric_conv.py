"""The metric convolution: at the start the one it replaces, and what its metric says afterwards."""

import copy
import itertools

import numpy as np
import pytest
import torch
from adaptive_layers import stirred
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from finslerconv import ops
from finslerconv._head_formula import OMEGA_CONSTRAINTS
from finslerconv._parametrization import PARAMETRIZATIONS
from finslerconv.balls import lattice, sunflower
from finslerconv.metrics import CallableMetric, Randers, Riemannian
from finslerconv.nn import (
    Cholesky,
    MetricConv2d,
    MetricHead,
    SpectralScaled,
    WeightedConv2d,
    metric_penalty,
)

HEADS = list(PARAMETRIZATIONS)
MAPS = ["radial", "affine"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def slow_convolution(layer, x):
    """Loop over output pixels and taps, with the metric's own norm and bilinear interpolation."""
    metric = layer.metric(x)
    rows, columns = layer.geometry().output_size(*x.shape[2:])
    centre_rows, centre_columns = layer.geometry().centres((rows, columns), x)
    kernel = layer.weight.flatten(2)
    output = torch.zeros(len(x), layer.out_channels, rows, columns, dtype=x.dtype)
    for b in range(len(x)):
        for i in range(rows):
            for j in range(columns):
                here = metric[b, i, j]
                for k, g in enumerate(torch.tensor(layer.reference.points, dtype=x.dtype)):
                    y = g * g.norm() / here.norm(g) if g.norm() > 0 else g
                    y = y * torch.tensor(layer.dilation, dtype=x.dtype)
                    value = bilinear(x[b], centre_rows[i, 0] + y[0], centre_columns[0, j] + y[1])
                    output[b, :, i, j] += kernel[:, :, k] @ value
    return output + layer.bias[:, None, None]


def bilinear(image, row, column):
    total = torch.zeros(image.shape[0], dtype=image.dtype)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            share = (1 - (row - i).abs()).clamp(min=0) * (1 - (column - j).abs()).clamp(min=0)
            total = total + share * image[:, i, j]
    return total


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    [
        (3, 1, 1, 1, 1, "zeros"),
        ((3, 5), 2, (1, 2), 2, 2, "reflect"),
        (2, 1, 1, 1, 1, "circular"),
        ((2, 3), (1, 2), 0, (2, 1), 4, "zeros"),
        (1, 1, 0, 1, 1, "zeros"),
        (7, 1, "same", 1, 2, "replicate"),
        (5, 1, "valid", 2, 1, "zeros"),
    ],
)
def test_it_begins_as_the_convolution_that_it_replaces(
    kernel_size, stride, padding, dilation, groups, padding_mode, head, map
):
    conv = nn.Conv2d(
        4, 8, kernel_size, stride, padding, dilation, groups, padding_mode=padding_mode
    )
    x = torch.randn(2, 4, 17, 19)
    for metric_groups, modulation, eps_omega in ((1, False, 0.1), (2, True, 1.0)):
        layer = MetricConv2d.from_conv2d(
            conv, head=head, map=map, metric_groups=metric_groups, modulation=modulation,
            eps_omega=eps_omega,
        )  # fmt: skip
        torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_same_padding_of_an_even_kernel_is_pytorchs():
    conv = nn.Conv2d(2, 3, (4, 2), padding="same")
    x = torch.randn(1, 2, 9, 8)
    layer = MetricConv2d.from_conv2d(conv)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "dilation": 2},
        {"kernel_size": (3, 2), "padding": (2, 0), "reference": "concentric"},
    ],
)
def test_it_samples_where_the_metric_says(options):
    layer = MetricConv2d(2, 3, **({"kernel_size": 3, "padding": 1} | options)).double()
    stirred(layer)
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), slow_convolution(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reference", ["concentric", "polar", "sunflower", "lattice"])
@pytest.mark.parametrize("map", MAPS)
def test_positions_are_in_the_unit_ball(reference, map):
    layer = stirred(MetricConv2d(3, 4, 5, padding=2, reference=reference, map=map).double())
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    metric, positions = layer.metric(x), layer.positions(x)
    assert positions.shape == (1, 8, 8, 25, 2)
    norms = metric.norm(positions.movedim(-2, 0))
    inside = torch.tensor(layer.reference.points).norm(dim=-1) <= 1 + 1e-12
    assert inside.any()
    assert (norms[inside] <= 1 + 1e-9).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("constraint", OMEGA_CONSTRAINTS)
def test_the_metric_is_valid_whatever_the_head_puts_out(head, constraint):
    layer = MetricConv2d(3, 4, 3, padding=1, head=head, omega_constraint=constraint, eps_omega=0.05)
    stirred(layer, amount=0.5)
    metric = layer.double().metric(torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert isinstance(metric, Randers)
    metric.validate()
    assert (metric.omega_norm() <= 0.95 + 1e-9).all()


@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("head", HEADS)
def test_single_precision_survives_a_head_gone_wild(head, map, spread):
    layer = MetricConv2d(2, 2, 3, padding=1, head=head, map=map, eps_omega=0.01)
    stirred(layer, spread)
    x = torch.randn(1, 2, 24, 24)
    assert (layer.metric(x).omega_norm() < 1).all()
    assert layer.positions(x).isfinite().all()
    output = layer(x)
    assert output.isfinite().all()
    output.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_no_omega_channels_for_a_riemannian_metric():
    layer = MetricConv2d(3, 4, 3, head="cholesky", eps_omega=1.0)
    assert layer.head.conv.out_channels == 3
    assert isinstance(layer.metric(torch.randn(1, 3, 8, 8)), Riemannian)


SHIFTS = [
    ({}, (3, -2)),
    ({"stride": 2}, (2, 4)),
    ({"metric_groups": 2, "modulation": True}, (1, 1)),
]


@pytest.mark.parametrize(("options", "shift"), SHIFTS)
def test_shift_equivariance(options, shift):
    """Theorem 3 of the paper: a shifted image gives the shifted output, in the interior."""
    # Bounded balls, so that there is an interior: no sample is further than 6 pixels away.
    head = SpectralScaled(eps_L=0.4, scale_min=0.9, scale_max=1.1)
    layer = MetricConv2d(2, 3, 3, padding=1, head=head, eps_omega=0.7, **options).double()
    stirred(layer)
    x = torch.randn(1, 2, 40, 40, dtype=torch.float64)
    assert 1.5 < layer.positions(x).abs().max() < 6
    stride = layer.stride[0]
    expected = torch.roll(layer(x), (shift[0] // stride, shift[1] // stride), dims=(2, 3))
    moved = torch.roll(x, shift, dims=(2, 3))
    margin = 12 // stride
    interior = (..., slice(margin, -margin), slice(margin, -margin))
    torch.testing.assert_close(layer(moved)[interior], expected[interior], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("options", "shift"), SHIFTS)
def test_shift_equivariance_everywhere_on_a_torus(options, shift):
    layer = MetricConv2d(2, 3, 3, padding=1, padding_mode="circular", **options).double()
    stirred(layer)
    x = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    stride = layer.stride[0]
    expected = torch.roll(layer(x), (shift[0] // stride, shift[1] // stride), dims=(2, 3))
    moved = torch.roll(x, shift, dims=(2, 3))
    torch.testing.assert_close(layer(moved), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("constraint", ["sigmoid", "clip"])
@pytest.mark.parametrize("head", HEADS)
def test_gradcheck_through_heads_maps_and_constraints(head, constraint, map):
    layer = MetricConv2d(
        1, 1, 3, padding=1, head=head, map=map, omega_constraint=constraint, modulation=True
    ).double()
    stirred(layer, 0.1)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


def test_state_keys_hold_those_of_the_convolution():
    keys = set(MetricConv2d(3, 4, 3).state_dict())
    assert keys == {"weight", "bias", "head.conv.weight", "head.conv.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_moves_keep_the_reference_points_exact(dtype):
    layer = MetricConv2d(3, 4, 7, padding=3).to(dtype)
    layer = layer.to(torch.bfloat16).double()
    assert torch.equal(layer.points, torch.tensor(lattice(7).points))
    layer = MetricConv2d(3, 4, 7, device="meta", dtype=dtype)
    assert layer.points.device.type == "meta"
    layer = layer.to_empty(device="cpu").double()
    assert torch.equal(layer.points, torch.tensor(lattice(7).points))


def test_from_conv2d_hands_options_on():
    assert MetricConv2d.from_conv2d(nn.Conv2d(3, 4, 3), eps_omega=0.5).head.eps_omega == 0.5


def test_modulation_multiplies_each_sample():
    layer = stirred(MetricConv2d(2, 3, 3, padding=1, modulation=True, metric_groups=2).double())
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    mask = 2 * torch.sigmoid(layer.modulation_conv(x))
    metric = layer.metric(x)
    expected = layer.bias[:, None, None].expand(1, 3, 6, 6)
    # One tap at a time, of a kernel that is zero elsewhere, each with its own factors.
    for group, tap in itertools.product(range(2), range(9)):
        kernel = torch.zeros_like(layer.weight)
        kernel[:, group].view(3, 9)[:, tap] = layer.weight[:, group].view(3, 9)[:, tap]
        sampled = ops.metric_conv2d(x, metric.M, metric.omega, layer.points, kernel, padding=1)
        expected = expected + sampled * mask[:, 9 * group + tap, None]
    torch.testing.assert_close(layer(x), expected)


def test_metric_groups_are_independent():
    layer = stirred(MetricConv2d(4, 2, 3, padding=1, metric_groups=2).double())
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    metric = layer.metric(x)
    assert metric.batch_shape == (1, 2, 8, 8)
    halves = [
        ops.metric_conv2d(
            x[:, 2 * g : 2 * g + 2], metric.M[:, g], metric.omega[:, g], layer.points,
            layer.weight[:, 2 * g : 2 * g + 2], padding=1,
        )
        for g in range(2)
    ]  # fmt: skip
    expected = halves[0] + halves[1] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_channels_of_the_head_are_the_matrix_and_then_the_one_form():
    """Group by group: L's diagonal, what is below it, and omega, down before right."""
    layer = MetricConv2d(2, 2, 5, padding=2, metric_groups=2, head=Cholesky(eps_L=0.01)).double()
    raw = [[0.5, -0.25, 0.3, 0.4, -0.2], [0.0, 1.0, -0.5, -0.1, 0.3]]
    with torch.no_grad():
        layer.head.conv.bias.copy_(torch.tensor(raw).flatten())
    metric = layer.metric(torch.randn(1, 2, 6, 7, dtype=torch.float64))
    for group, (first, second, below, *omega) in enumerate(raw):
        L = np.array([[1 + first, 0], [below, 1 + second]])
        n = np.linalg.norm(np.linalg.solve(L, omega))  # |omega| in the inverse of L L'
        shortened = 0.9 * np.tanh(n / 2) / n * np.array(omega)
        here = metric[0, group, 3, 4]
        np.testing.assert_allclose(here.M.detach(), L @ L.T / 2**2, rtol=1e-5)
        np.testing.assert_allclose(here.omega.detach(), shortened / 2, rtol=1e-5)


class Cubic(nn.Module):
    """A metric of one's own: a p-norm scaled by the image."""

    def forward(self, x):
        size = 1 + x.mean(1).abs()
        return CallableMetric(lambda v: size * (v.abs() ** 3).sum(-1) ** (1 / 3), like=x)


class Constant(nn.Module):
    """A learned Randers metric, the same at every pixel."""

    def __init__(self):
        super().__init__()
        self.M = nn.Parameter(torch.tensor([[1.3, 0.2], [0.2, 0.8]]))
        self.omega = nn.Parameter(torch.tensor([0.1, -0.3]))

    def forward(self, x):
        batch = (len(x), *x.shape[2:])
        return Randers(self.M.expand(*batch, 2, 2), self.omega.expand(*batch, 2), validate=False)


def test_a_metric_of_ones_own():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    layer = MetricConv2d(3, 4, 3, padding=1, metric=Cubic(), reference="concentric").double()
    norms = layer.metric(x).norm(layer.positions(x).movedim(-2, 0))
    radii = torch.tensor(layer.reference.points).norm(dim=-1)
    torch.testing.assert_close(norms, radii[:, None, None, None].expand_as(norms))
    assert layer(x).shape == (2, 4, 8, 8)


class Stretch(nn.Module):
    """The metric of diag(a), as a norm of one's own or in closed form."""

    def __init__(self, closed):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.7, 1.6], dtype=torch.float64))
        self.closed = closed

    def forward(self, x):
        batch = (len(x), *x.shape[2:])
        if self.closed:
            return Riemannian(torch.diag(self.a).expand(*batch, 2, 2), validate=False)
        one = x.new_ones(batch)
        return CallableMetric(lambda v: one * (self.a * v**2).sum(-1).sqrt(), like=x)


@pytest.mark.parametrize("reference", ["lattice", "concentric", "polar", "sunflower"])
def test_gradients_of_a_metric_of_ones_own_are_those_of_its_closed_form(reference):
    """The centre sample, at g = 0, adds nothing to them: not NaN either."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    gradients = []
    for closed in (False, True):
        layer = MetricConv2d(2, 2, 3, padding=1, metric=Stretch(closed), reference=reference)
        layer = layer.double()
        with torch.no_grad():
            layer.weight.copy_(torch.arange(36.0).sin().reshape(2, 2, 3, 3))
            layer.bias.fill_(0.3)
        layer(x).square().sum().backward()
        gradients.append(layer.head.a.grad)
    torch.testing.assert_close(*gradients)


def test_a_randers_metric_of_ones_own_trains():
    layer = MetricConv2d(3, 4, 3, padding=1, metric=Constant())
    layer(torch.randn(1, 3, 8, 8)).square().sum().backward()
    assert layer.head.M.grad.abs().max() > 0
    assert layer.head.omega.grad.abs().max() > 0


def test_callable_and_closed_form_metrics_agree():
    x = torch.randn(1, 3, 8, 8)
    known = Constant()
    metric = known(x)

    class Opaque(nn.Module):
        def forward(self, x):
            return CallableMetric(metric.norm, like=x)

    layer = MetricConv2d(3, 4, (3, 5), padding=(2, 6), dilation=(2, 3), metric=known)
    opaque = copy.deepcopy(layer)
    opaque.head = Opaque()
    torch.testing.assert_close(opaque(x), layer(x))
    torch.testing.assert_close(opaque.positions(x), layer.positions(x))


@given(strength=st.floats(0.1, 1e4), seed=st.integers(0, 1000))
def test_metric_penalty(strength, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        stirred(MetricConv2d(2, 3, 3)), nn.ReLU(), stirred(MetricConv2d(3, 2, 3, head="spectral"))
    )
    values = torch.cat(
        [p.flatten() for n, p in model.named_parameters() if "head.conv" in n]
    ).detach()
    torch.testing.assert_close(
        metric_penalty(model, strength).detach(), strength * values.abs().mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.1, 10.0])
def test_the_default_of_the_penalty_lets_the_metric_learn(size):
    """Adam's steps are of one size: a pull beyond the loss's gradient holds the metric still."""
    x = torch.randn(4, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    wanted = functional.avg_pool2d(x, (1, 7), 1, (0, 3))  # the mean over a long ball

    def learned(*strength):
        torch.manual_seed(0)
        layer = MetricConv2d(1, 1, 3, padding=1)
        optimiser = torch.optim.Adam(layer.parameters(), 0.01)
        for _ in range(60):
            optimiser.zero_grad()
            loss = size * functional.mse_loss(layer(x), wanted)
            if strength != (0.0,):
                loss = loss + metric_penalty(layer, *strength)
            loss.backward()
            optimiser.step()
        return metric_penalty(layer, 1.0).item()

    free = learned(0.0)
    assert learned() > 0.3 * free
    assert learned(5000.0) < 0.1 * free


def test_metric_penalty_is_zero_at_the_start():
    assert metric_penalty(MetricConv2d(2, 3, 3, head="log_euclidean")) == 0


@pytest.mark.unchecked
class TestErrors:
    def test_wrong_names(self):
        with pytest.raises(ValueError, match=r"head: expected one of \['cholesky'"):
            MetricConv2d(2, 2, 3, head="qr")
        with pytest.raises(ValueError, match="map: expected 'radial' or 'affine', got 'linear'"):
            MetricConv2d(2, 2, 3, map="linear")
        with pytest.raises(ValueError, match="reference: expected 'lattice'"):
            MetricConv2d(2, 2, 3, reference="hexagonal")
        with pytest.raises(ValueError, match="omega_constraint: expected one of"):
            MetricConv2d(2, 2, 3, omega_constraint="tanh")

    def test_numbers_out_of_range(self):
        with pytest.raises(ValueError, match=r"eps_omega: expected a number in \[0\.01, 1\]"):
            MetricConv2d(2, 2, 3, eps_omega=0)
        with pytest.raises(ValueError, match="metric_groups: expected a divisor of the 4"):
            MetricConv2d(4, 2, 3, metric_groups=3)

    def test_a_reference_set_of_another_size(self):
        with pytest.raises(ValueError, match=r"expected 9 points .* got 10 in dimension 2"):
            MetricConv2d(2, 2, 3, reference=sunflower(10))

    def test_from_conv2d(self):
        with pytest.raises(TypeError, match=r"conv: expected an nn\.Conv2d, got Linear"):
            MetricConv2d.from_conv2d(nn.Linear(2, 2))
        for conv in (MetricConv2d(2, 2, 3), WeightedConv2d(2, 2, 3, density=[0.5])):
            with pytest.raises(TypeError, match="computes something else than"):
                MetricConv2d.from_conv2d(conv)
        with pytest.raises(TypeError, match="lazy"):
            MetricConv2d.from_conv2d(nn.LazyConv2d(2, 3))
        with pytest.raises(ValueError, match="fixed_kernel: would discard"):
            MetricConv2d.from_conv2d(nn.Conv2d(2, 2, 3), fixed_kernel=True)

    def test_input_shape(self):
        with pytest.raises(ValueError, match=r"input: expected shape \(B, 2, H, W\) or"):
            MetricConv2d(2, 2, 3)(torch.randn(5, 5))
        with pytest.raises(
            ValueError, match=r"expected shape \(B, 2, H, W\) .* got \(1, 3, 5, 5\)"
        ):
            MetricConv2d(2, 2, 3)(torch.randn(1, 3, 5, 5))
        with pytest.raises(
            TypeError, match=r"the layer's dtype torch\.float32, got torch\.float64"
        ):
            MetricConv2d(2, 2, 3)(torch.randn(1, 2, 5, 5).double())
        with pytest.raises(TypeError, match="input: expected a Tensor, got ndarray"):
            MetricConv2d(2, 2, 3)(np.zeros((1, 2, 5, 5)))

    def test_no_heads_to_penalise(self):
        with pytest.raises(ValueError, match="found none"):
            metric_penalty(nn.Conv2d(2, 2, 3))

    def test_head_of_the_wrong_width(self):
        with pytest.raises(ValueError, match="conv: expected 7 output channels, got 6"):
            MetricHead(nn.Conv2d(2, 6, 3), SpectralScaled())

    def test_metric_of_the_wrong_batch(self):
        class Flat(nn.Module):
            def forward(self, x):
                return CallableMetric(lambda v: v.abs().sum(-1), like=x)

        with pytest.raises(ValueError, match=r"batch shape \(1, 3, 3\), got \(\)"):
            MetricConv2d(2, 2, 3, metric=Flat())(torch.randn(1, 2, 5, 5))
        with pytest.raises(ValueError, match=r"batch shape \(1, 3, 3\), got \(1, 5, 5\)"):
            MetricConv2d(2, 2, 3, metric=Cubic())(torch.randn(1, 2, 5, 5))

    def test_metric_of_the_wrong_kind(self):
        with pytest.raises(TypeError, match=r"metric: expected an nn\.Module"):
            MetricConv2d(2, 2, 3, metric=lambda x: x)
        with pytest.raises(TypeError, match="to return a FinslerMetric, got Tensor"):
            MetricConv2d(2, 2, 3, metric=nn.Identity())(torch.randn(1, 2, 5, 5))
        with pytest.raises(
            TypeError, match="reference: expected a name or a ReferenceSet, got int"
        ):
            MetricConv2d(2, 2, 3, reference=3)
        with pytest.raises(ValueError, match="or a MatrixParametrization"):
            MetricConv2d(2, 2, 3, head=SpectralScaled)


@pytest.mark.parametrize("metric_groups", [1, 2])
def test_a_layer_computes_metrics_itself_unless_a_hook_wants_to_see_them(metric_groups):
    layer = MetricConv2d(4, 3, 3, padding=1, metric_groups=metric_groups).double()
    nn.init.normal_(layer.head.conv.weight, std=0.2)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    seen = []
    fused = layer(x)
    handle = layer.head.register_forward_hook(lambda head, arguments, metric: seen.append(metric))
    torch.testing.assert_close(layer(x), fused, rtol=1e-11, atol=1e-12)
    handle.remove()
    layer(x)
    assert len(seen) == 1
    assert isinstance(seen[0], Randers)
    assert seen[0].batch_shape == layer.metric(x).batch_shape


def test_a_head_of_another_number_of_groups_is_refused():
    head = MetricConv2d(4, 3, 3, padding=1, metric_groups=2).head
    layer = MetricConv2d(4, 3, 3, padding=1, metric=head)
    with pytest.raises(ValueError, match="metric: expected one metric for each output pixel"):
        layer(torch.randn(1, 4, 6, 5))
