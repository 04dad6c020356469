"""Geodesics of metrics that are not Randers ones, by the spray: closed forms and gradients."""

import warnings

import numpy as np
import pytest
import torch
from metric_fields import funk, half_plane, pull_back, random_pair, rotation_wind
from torch import nn

from finslerconv.balls import concentric, polar
from finslerconv.geodesics import (
    FunctionMetric,
    GridMetric,
    InjectivityWarning,
    chord_distance,
    exponential,
    geodesic_ball,
    geodesic_flow,
    logarithm,
    path_length,
)
from finslerconv.geodesics.flow import NodeField
from finslerconv.metrics import CallableMetric, FinslerMetric, Randers, Riemannian
from finslerconv.nn import GeodesicConv2d, MetricConv2d


class Matsumoto(FinslerMetric):
    """F(v) = a^2 / (a - b) with a = sqrt(v' M v), b = beta' v, |beta|_{M^-1} < 1/2."""

    def __init__(self, M, beta):
        self.M, self.beta = M, beta

    @property
    def like(self):
        return self.M

    def norm(self, v):
        a = (v * (self.M @ v[..., None])[..., 0]).sum(-1).sqrt()
        return a**2 / (a - (self.beta * v).sum(-1))

    def __getitem__(self, index):
        return Matsumoto(self.M[index], self.beta[index])


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def four(v):
    return (v**4).sum(-1) ** (1 / 4)


SLOPE = Matsumoto(tensor([1.0, 0.2], [0.2, 0.6]), tensor(0.25, -0.1))
MINKOWSKI = {"4-norm": four, "Matsumoto": SLOPE.norm}


def wobbled(x):
    """A diffeomorphism of the plane."""
    return torch.stack(
        (x[..., 0] + 0.2 * torch.sin(x[..., 1]), x[..., 1] + 0.1 * x[..., 0] ** 2), -1
    )


def pushed(x, v):
    return torch.stack(
        (
            v[..., 0] + 0.2 * torch.cos(x[..., 1]) * v[..., 1],
            v[..., 1] + 0.2 * x[..., 0] * v[..., 0],
        ),
        dim=-1,
    )


def pulled_back(norm):
    """The field F_x(v) = norm(Dphi v), whose geodesics phi carries to straight lines."""
    return FunctionMetric(lambda x: CallableMetric(lambda v: norm(pushed(x, v)), like=x))


def disguised(field):
    """A field of Randers metrics of which only the norm is known."""
    return FunctionMetric(
        lambda x: CallableMetric(field.metric(x).norm, dim=field.dim, like=x), field.dim
    )


def some(n=5, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, n, d, dtype=torch.float64, generator=generator)
        * tensor(0.4, 0.7)[:, None, None]
    )


# Closed forms.


@pytest.mark.slow
@pytest.mark.parametrize(
    "field",
    [rotation_wind(), pull_back(), half_plane(), funk(), half_plane(3), funk(3)],
    ids=str,
)
def test_a_randers_metric_in_disguise_has_its_own_geodesics(field):
    x, _ = random_pair(field, 4)
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    v = 0.3 * v / field.at(x).norm(v)[..., None]
    end = exponential(disguised(field), x, v)
    torch.testing.assert_close(end, field.exp(x, v), rtol=0, atol=1e-10)
    times = [-0.5, -1.0]
    found, known = (geodesic_flow(f, x, v, times) for f in (disguised(field), field))
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MINKOWSKI)
@pytest.mark.parametrize("method", ["rk4", "dopri8"])
def test_a_minkowski_norm_has_straight_lines_at_constant_speed(name, method):
    field = FunctionMetric(lambda x: CallableMetric(MINKOWSKI[name], like=x))
    x, v = some()
    v[0], v[1], v[2] = tensor(0.0, 0.7), tensor(-0.3, 0.0), 0.0  # the 4-norm is flat along the axes
    flow = geodesic_flow(field, x, v, [0.5, 1.0], method=method)
    for t, place, speed in zip((0.5, 1.0), flow.position, flow.velocity, strict=True):
        torch.testing.assert_close(place, x + t * v, rtol=0, atol=1e-13)
        torch.testing.assert_close(speed, v, rtol=0, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", MINKOWSKI)
def test_the_geodesics_of_a_pull_back_are_straight_in_the_image(name):
    field = pulled_back(MINKOWSKI[name])
    x, v = some()
    flow = geodesic_flow(field, x, v, [0.5, 1.0])
    for t, place in zip((0.5, 1.0), flow.position, strict=True):
        torch.testing.assert_close(wobbled(place), wobbled(x) + t * pushed(x, v), rtol=0, atol=1e-8)
    torch.testing.assert_close(logarithm(field, x, flow.position[1]), v, rtol=0, atol=1e-7)


def test_fixed_steps_are_of_order_four():
    field = pulled_back(SLOPE.norm)
    x, v = some()
    exact = wobbled(x) + pushed(x, v)
    errors = [
        (wobbled(exponential(field, x, v, method="rk4", steps=n)) - exact).abs().max()
        for n in (4, 8)
    ]
    assert 11 < errors[0] / errors[1] < 24


def test_speed_and_momentum_along_a_geodesic():
    def at(x):
        return Matsumoto(torch.eye(2).double(), 0.4 * torch.sin(x.flip(-1)) / 2**0.5)

    field = FunctionMetric(at)
    x, v = some()
    flow = geodesic_flow(field, x, v, [0.0, 0.6, 1.5])
    for place, speed, momentum in zip(*flow, strict=True):
        metric = field.at(place)
        torch.testing.assert_close(metric.norm(speed), at(x).norm(v), rtol=1e-9, atol=0)
        # Legendre's transform: p is the covector of dual norm F(v) whose value at v is F(v)^2.
        torch.testing.assert_close((momentum * speed).sum(-1), metric.norm(speed) ** 2)
        torch.testing.assert_close(metric.dual_norm(momentum), metric.norm(speed))


@pytest.mark.unchecked
def test_a_norm_with_corners_is_refused_where_it_varies():
    field = FunctionMetric(
        lambda x: CallableMetric(lambda v: (1 + x[..., 0] ** 2) * v.abs().sum(-1), like=x)
    )
    x, v = tensor([0.3, 0.2], [0.5, 0.6])
    for method in ("rk4", "dopri8"):
        with pytest.raises(ValueError, match="finite"):
            exponential(field, x, v, method=method)


# Derivatives.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_gradients_in_start_velocity_and_field_in_both_modes():
    x, v = (u[:1].requires_grad_() for u in some())
    beta = tensor(0.3, -0.2).requires_grad_()

    def end(x, v, beta):
        field = FunctionMetric(lambda x: Matsumoto(torch.eye(2).double(), beta * torch.cos(x)))
        return exponential(field, x, v, method="rk4", steps=1)

    assert torch.autograd.gradcheck(end, (x, v, beta), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(end, (x, v, beta), fast_mode=True)
    each = torch.func.vmap(lambda x, v: end(x, v, beta))(x, v)
    torch.testing.assert_close(each, end(x, v, beta))


@pytest.mark.slow
def test_the_logarithm_has_gradients():
    field = pulled_back(SLOPE.norm)
    x, v = (u[0] for u in some())
    y = exponential(field, x, v, method="rk4", steps=8).requires_grad_()
    found = pushed(x, logarithm(field, x, y, method="rk4", steps=8))
    for a, b in zip(found, wobbled(y), strict=True):
        (known,) = torch.autograd.grad(b, y, retain_graph=True)
        (slope,) = torch.autograd.grad(a, y, retain_graph=True)
        torch.testing.assert_close(slope, known, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_what_stands_still_stays_and_its_derivative_is_one():
    field = pulled_back(SLOPE.norm)
    x, v = tensor(0.3, 0.1), tensor(0.0, 0.0).requires_grad_()
    end = exponential(field, x, v, time=2.0)
    assert torch.equal(end, x)
    assert torch.equal(torch.autograd.grad(end[0], v)[0], tensor(2.0, 0.0))


# Lengths.


def test_lengths_are_read_by_any_norm_from_tensors_and_arrays():
    field = disguised(funk())
    x, y = random_pair(funk(), 6)
    exact = funk().distance(x, y)
    torch.testing.assert_close(chord_distance(field, x, y, n=12), exact, rtol=1e-8, atol=0)
    length = chord_distance(field, x.numpy(), y.numpy(), n=12)
    assert isinstance(length, np.ndarray)
    np.testing.assert_allclose(length, exact, rtol=1e-8)
    curve = x + torch.linspace(0, 1, 65).double()[:, None, None] * (y - x)
    torch.testing.assert_close(path_length(field, curve), exact, rtol=1e-6, atol=0)
    np.testing.assert_allclose(path_length(field, curve.numpy()), exact, rtol=1e-6)
    flat = FunctionMetric(lambda x: SLOPE)  # whose norm is NaN at zero
    twice = torch.stack((x, x, y))
    torch.testing.assert_close(path_length(flat, twice), SLOPE.norm(y - x))
    assert torch.equal(chord_distance(flat, x, x), torch.zeros(6).double())


# Balls.


@pytest.mark.slow
def test_geodesic_balls_have_their_radius():
    field = pulled_back(SLOPE.norm)
    x, _ = some(1)
    reference = concentric(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InjectivityWarning)
        ball = geodesic_ball(field, x, reference, 0.5)
    distances = SLOPE.norm(torch.where(ball == x, 1.0, wobbled(ball) - wobbled(x)))
    expected = 0.5 * torch.linalg.norm(torch.as_tensor(reference.points), dim=-1)[:, None]
    away = (expected > 0).expand_as(distances)
    torch.testing.assert_close(distances[away], expected.expand_as(distances)[away])
    assert torch.equal(ball[~away], x)


@pytest.mark.slow
def test_cut_points_of_any_metric_are_found():
    def slow(x):
        bump = 1 + 4 * torch.exp(-4 * ((x - tensor(0.0, 0.8)) ** 2).sum(-1))
        return Riemannian(bump[..., None, None] ** 2 * torch.eye(2).double(), validate=False)

    centre, rim = tensor([0.0, 0.0]), polar(1, 12)
    with pytest.warns(InjectivityWarning) as plain:
        geodesic_ball(FunctionMetric(slow), centre, rim, 4.0)
    any_metric = FunctionMetric(lambda x: CallableMetric(slow(x).norm, like=x))
    with pytest.warns(InjectivityWarning) as disguise:
        geodesic_ball(any_metric, centre, rim, 4.0)
    assert len(plain[0].message.samples) > 0
    np.testing.assert_array_equal(disguise[0].message.samples, plain[0].message.samples)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "eikonal"}, r"Riemannian or Randers metrics, got CallableMetric.*method='exp'"),
        ({"method": "heat"}, r"Riemannian or Randers metrics, got CallableMetric.*method='exp'"),
        ({"map": "affine"}, "for CallableMetric use the radial map"),
    ],
)
def test_what_needs_an_ellipse_says_so(options, message):
    with pytest.raises(TypeError, match=message):
        geodesic_ball(pulled_back(four), tensor(0.1, 0.2), **options)


@pytest.mark.unchecked
def test_what_a_field_cannot_be_is_said():
    assert GridMetric.from_function(lambda x: SLOPE, (4, 4)).metric is SLOPE
    space = FunctionMetric(lambda x: SLOPE, dim=3)
    with pytest.raises(ValueError, match="expected metrics of dimension 3, got 2"):
        space.at(tensor(0.0, 0.0, 0.0))


# The layer.


class Slopes(nn.Module):
    """A field of Matsumoto metrics from the image, or one that does not vary."""

    def __init__(self, constant=False, groups=1):
        super().__init__()
        self.constant = constant
        self.groups = groups
        self.conv = nn.Conv2d(2, 2 * groups, 3, padding=1)

    def forward(self, x):
        beta = 0.4 * torch.tanh(0 * self.conv(x) + 0.5 if self.constant else self.conv(x))
        beta = beta.unflatten(1, (self.groups, 2)).movedim(2, -1)
        beta = beta if self.groups > 1 else beta.squeeze(1)
        return Matsumoto(torch.eye(2).to(x).expand(*beta.shape, 2), beta / 2**0.5)


class Discs(nn.Module):
    """A field of Riemannian metrics from the image, in disguise or not."""

    def __init__(self, disguise):
        super().__init__()
        self.disguise = disguise

    def forward(self, x):
        M = (1 + 0.5 * torch.sin(x.mean(1)))[..., None, None] * torch.eye(2).to(x)
        return Matsumoto(M, torch.zeros_like(M[..., 0])) if self.disguise else Riemannian(M)


@pytest.fixture
def image():
    return torch.rand(2, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_where_a_metric_is_constant_the_layer_is_the_metric_convolution(image, groups):
    options = {"padding": 1, "metric_groups": groups, "metric": Slopes(True, groups)}
    bent, straight = (
        layer(2, 4, 3, **options).double() for layer in (GeodesicConv2d, MetricConv2d)
    )
    bent.load_state_dict(straight.state_dict())
    torch.testing.assert_close(bent.positions(image), straight.positions(image))
    torch.testing.assert_close(bent(image), straight(image))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"stride": 2, "dilation": (1, 2), "padding": (1, 2)}])
def test_the_layer_reads_a_riemannian_field_in_disguise_as_it_is(image, options):
    options = {"padding": 1} | options
    size = nn.Conv2d(2, 1, 3, **options).double()(image).shape[2:]
    smooth = nn.functional.adaptive_avg_pool2d(image, size)
    known, found = (
        GeodesicConv2d(2, 3, 3, steps=steps, metric=Discs(disguise), **options).double()
        for steps, disguise in ((64, False), (64, True))
    )
    plain, disguised = (layer._positions_in(layer.head(smooth), image) for layer in (known, found))
    # One flow but for its steps, in momenta or velocities, across the lines of nodes.
    torch.testing.assert_close(disguised, plain, rtol=0, atol=2e-3)
    straight = MetricConv2d(2, 3, 3, metric=Discs(False), **options).double()
    assert (straight._positions_in(straight.head(smooth), image) - plain).abs().max() > 0.05


@pytest.mark.slow
def test_the_layer_learns_its_metric(image):
    layer = GeodesicConv2d(2, 3, 3, padding=1, steps=2, metric=Slopes()).double()
    weight = layer.head.conv.weight
    (slope,) = torch.autograd.grad(layer.positions(image).square().sum(), weight)
    direction = torch.randn(weight.shape, dtype=weight.dtype)
    h = 1e-6
    with torch.no_grad():
        ends = []
        for step in (h, -2 * h):
            weight += step * direction
            ends.append(layer.positions(image).square().sum())
    assert float((slope * direction).sum()) == pytest.approx(
        float(ends[0] - ends[1]) / (2 * h), rel=1e-5
    )
    layer(image).sum().backward()
    assert weight.grad.abs().max() > 0


def test_between_nodes_the_energy_is_that_of_the_interpolated_matrices():
    M = torch.eye(2) + 0.3 * torch.rand(4, 5, 1, 1, dtype=torch.float64) * tensor([2, 1], [1, 1])
    beta = torch.zeros_like(M[..., 0])
    spacing = (0.5, 2.0)
    field, grid = NodeField(Matsumoto(M, beta), spacing), GridMetric(M, spacing=spacing)
    x, v = some(20)
    x = 3 * x.abs() - 0.3
    torch.testing.assert_close(field.at(x).norm(v), grid.at(x).norm(v))
    node = field.nodes(M)[1, 2]
    force, _ = field.energy_slopes(node, v[0])
    central = [
        (Randers(a, 0 * beta[0, 0]).energy(v[0]) - Randers(b, 0 * beta[0, 0]).energy(v[0]))
        / (2 * h)
        for a, b, h in ((M[2, 2], M[0, 2], 0.5), (M[1, 3], M[1, 1], 2.0))
    ]
    torch.testing.assert_close(force, torch.stack(central))
