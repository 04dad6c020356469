"""Spray, connections and curvature of fields, pinned by spaces whose geometry is known."""

import math

import pytest
import torch
from metric_fields import funk, half_plane, pull_back
from torch import nn

from finslerconv.geodesics import FunctionMetric, GridMetric, exponential, tensors
from finslerconv.metrics import CallableMetric, Euclidean, FinslerMetric, Randers, Riemannian

DTYPE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def disguised(metric, d=2):
    """The field of which only the norm is known."""
    return FunctionMetric(lambda x: CallableMetric(metric(x).norm, dim=d, like=x), d)


def scaled(factor):
    return lambda x: Riemannian(factor(x)[..., None, None] * torch.eye(x.shape[-1], dtype=x.dtype))


def square(x):
    return (x * x).sum(-1)


def graph_metric(x):
    """The sphere from its centre (gnomonic): (1 + r^2) |v|^2 - (x v)^2 over (1 + r^2)^2."""
    r = 1 + square(x)[..., None, None]
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    return Riemannian((r * eye - x[..., :, None] * x[..., None, :]) / r**2)


def polar_sphere(x):
    sine = torch.sin(x[..., :1])
    return Riemannian(torch.diag_embed(torch.cat((sine**0, sine**2), -1)))


def stereographic(x):
    return scaled(lambda x: 4 / (1 + square(x)) ** 2)(x)


def klein(x):
    """Hilbert's metric of the unit ball, (F(v) + F(-v)) / 2 of Funk's F."""
    F = funk(x.shape[-1]).metric(x)
    return CallableMetric(lambda v: (F.norm(v) + F.norm(-v)) / 2, dim=x.shape[-1], like=x)


def turning(x):
    """The unit sphere, stereographic, under the Killing wind of a rotation about its axis."""
    wind = 0.3 * torch.cat((-x[..., 1:2], x[..., :1], 0 * x[..., 2:]), -1)
    return Randers.from_zermelo(stereographic(x).M, wind, validate=False)


SPACES = {  # metric, dimension, curvature
    "sphere, stereographic": (stereographic, 2, 1),
    "sphere, gnomonic": (graph_metric, 2, 1),
    "sphere, polar": (lambda x: polar_sphere(x + 1.2), 2, 1),
    "sphere, 3-D": (stereographic, 3, 1),
    "half-plane": (lambda x: half_plane().metric(x + 1.5), 2, -1),
    "Poincare's disc": (scaled(lambda x: 4 / (1 - square(x)) ** 2), 2, -1),
    "half-space": (lambda x: half_plane(3).metric(x + 1.5), 3, -1),
    "Funk": (funk().metric, 2, -1 / 4),
    "Funk, 3-D": (funk(3).metric, 3, -1 / 4),
    "Hilbert": (klein, 2, -1),
    "Killing wind": (turning, 2, 1),
    "Killing wind, 3-D": (turning, 3, 1),
}


@pytest.mark.parametrize("name", SPACES)
def test_constant_flag_curvature(name):
    metric, d, K = SPACES[name]
    field = FunctionMetric(metric, d)
    x, v, w = 0.25 * torch.tanh(normal(4, d)), normal(4, d, seed=1), normal(4, d, seed=2)
    found = tensors.flag_curvature(field, x, v, w)
    torch.testing.assert_close(found, torch.full_like(found, K), rtol=1e-9, atol=1e-9)
    F2 = field.at(x).norm(v) ** 2
    torch.testing.assert_close(tensors.ricci(field, x, v), (d - 1) * K * F2, rtol=1e-9, atol=1e-9)
    # R^i_k = K (F^2 delta^i_k - v^i p_k), with its indices in this order.
    R, p = tensors.riemann_curvature(field, x, v), field.at(x).legendre(v)
    constant = F2[:, None, None] * torch.eye(d) - v[:, :, None] * p[:, None, :]
    torch.testing.assert_close(R, K * constant, rtol=1e-8, atol=1e-8)


def test_pole_and_flag_are_told_apart():
    """In the product of a line and a sphere a flag with the line is flat, whichever is the pole.

    Under a one-form that is not closed the pole counts: K(v, w) is not K(w, v).
    """

    def product(x):
        sine = torch.sin(x[..., 1:2])
        return Riemannian(torch.diag_embed(torch.cat((sine**0, sine**0, sine**2), -1)))

    field, x = FunctionMetric(product, 3), torch.tensor([0.3, 1.1, 0.2], dtype=DTYPE)
    along, across, round_ = torch.eye(3, dtype=DTYPE)
    flat = tensors.flag_curvature(field, x.expand(2, 3), along, torch.stack((across, round_)))
    torch.testing.assert_close(flat, torch.zeros(2, dtype=DTYPE), rtol=0, atol=1e-12)
    assert float(tensors.flag_curvature(field, x, across, round_)) == pytest.approx(1)

    wind = FunctionMetric(lambda x: Randers(product(x).M, 0.3 * torch.sin(x.roll(1, -1))), 3)
    v, w = normal(3), normal(3, seed=1)
    one, other = tensors.flag_curvature(wind, x, v, w), tensors.flag_curvature(wind, x, w, v)
    assert abs(float(one - other)) > 1e-2
    torch.testing.assert_close(tensors.flag_curvature(wind, x, 2 * v, w - 3 * v), one)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
def test_funk_is_projectively_flat(d):
    """G = (F / 2) v: straight geodesics; S = (d + 1) / 2 F, and closed-form distances."""
    field, x, v = FunctionMetric(funk(d).metric, d), 0.4 * torch.tanh(normal(4, d)), normal(4, d)
    F = field.at(x).norm(v)
    torch.testing.assert_close(tensors.spray(field, x, v), F[:, None] / 2 * v)
    torch.testing.assert_close(tensors.s_curvature(field, x, v), (d + 1) / 2 * F)
    end = exponential(field, x, v, method="rk4", steps=64)
    torch.testing.assert_close(funk(d).distance(x, end), F, rtol=1e-6, atol=1e-6)


def test_hilberts_metric_of_the_disc_is_kleins():
    def riemannian(x):
        room = 1 - square(x)[..., None, None]
        eye = torch.eye(2, dtype=x.dtype)
        return Riemannian(eye / room + x[..., :, None] * x[..., None, :] / room**2)

    x, v = 0.5 * torch.tanh(normal(5, 2)), normal(5, 2, seed=1)
    torch.testing.assert_close(klein(x).norm(v), riemannian(x).norm(v))
    one, other = FunctionMetric(klein), FunctionMetric(riemannian)
    torch.testing.assert_close(tensors.spray(one, x, v), tensors.spray(other, x, v))


@pytest.mark.slow
def test_geodesics_in_a_killing_wind_are_carried_great_circles():
    field = FunctionMetric(turning)
    x, v = 0.5 * torch.tanh(normal(6, 2)), normal(6, 2, seed=1)
    T = field.at(x).norm(v)[:, None]
    heading = v / T - 0.3 * torch.stack((-x[:, 1], x[:, 0]), -1)

    def lifted(x):
        r = square(x)[:, None]
        return torch.cat((2 * x, r - 1), -1) / (1 + r)

    # The heading on the sphere, by a difference, and a great circle of length T.
    step = 1e-6
    point = lifted(x)
    tangent = (lifted(x + step * heading) - lifted(x - step * heading)) / (2 * step)
    end = torch.cos(T) * point + torch.sin(T) * tangent
    still = end[:, :2] / (1 - end[:, 2:])
    c, s = torch.cos(0.3 * T[:, 0]), torch.sin(0.3 * T[:, 0])
    carried = torch.stack(
        (c * still[:, 0] - s * still[:, 1], s * still[:, 0] + c * still[:, 1]), -1
    )
    torch.testing.assert_close(exponential(field, x, v), carried, rtol=1e-8, atol=1e-8)


def cylinder(one_form):
    """The product of a line and a curved surface, with a one-form."""

    def metric(x):
        M = stereographic(x[..., 1:]).M
        M = torch.nn.functional.pad(M, (1, 0, 1, 0))
        return Randers(M + torch.diag(torch.tensor([1.0, 0, 0], dtype=x.dtype)), one_form(x))

    return FunctionMetric(metric, 3)


def test_berwald_exactly_if_the_one_form_is_parallel():
    x, v, w = 0.3 * normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    axis = torch.tensor([0.4, 0, 0], dtype=DTYPE)
    parallel = cylinder(lambda x: axis.expand_as(x))
    B = tensors.berwald_connection(parallel, x, v)
    torch.testing.assert_close(B, tensors.berwald_connection(parallel, x, w))
    torch.testing.assert_close(B, tensors.chern_connection(parallel, x, v))
    still = tensors.s_curvature(parallel, x, v)
    torch.testing.assert_close(still, torch.zeros_like(still), rtol=0, atol=1e-12)
    # Neither closed nor of constant length is enough.
    for one_form in (lambda x: axis * torch.cos(x[..., :1]), lambda x: axis.roll(1).expand_as(x)):
        other = cylinder(one_form)
        change = tensors.berwald_connection(other, x, v) - tensors.berwald_connection(other, x, w)
        assert float(change.abs().max()) > 1e-2


def wavy(x):
    """A Randers metric without symmetry."""
    a, b = torch.sin(x[..., 0] + 2 * x[..., 1]), torch.cos(x[..., 0] * x[..., 1])
    M = torch.stack((1.5 + 0.5 * a, 0.3 * b, 0.3 * b, 1.2 - 0.3 * a), -1).unflatten(-1, (2, 2))
    return Randers(M, torch.stack((0.4 * b, 0.3 * a), -1), validate=False)


def hill(x):
    """Matsumoto's metric over a hilly plain: not Randers."""
    beta = 0.4 * torch.sin(x + 0.5 * x.flip(-1) ** 2)
    return CallableMetric(
        lambda v: square(v) / (square(v).sqrt() - (beta * v).sum(-1)), dim=x.shape[-1], like=x
    )


@pytest.mark.slow
@pytest.mark.parametrize("metric", [wavy, hill])
def test_eulers_theorem(metric):
    field, x, v, w = (
        FunctionMetric(metric),
        normal(4, 2),
        normal(4, 2, seed=1),
        normal(4, 2, seed=2),
    )
    G, N = tensors.spray(field, x, v), tensors.nonlinear_connection(field, x, v)
    B, C = tensors.berwald_connection(field, x, v), tensors.chern_connection(field, x, v)

    def applied(T):
        return (T * v.reshape(4, *(1,) * (T.ndim - 2), 2)).sum(-1)

    torch.testing.assert_close(applied(N), 2 * G)
    torch.testing.assert_close(applied(B), N)
    torch.testing.assert_close(applied(C), N)
    torch.testing.assert_close(C, C.mT)
    torch.testing.assert_close(tensors.spray(field, x, 3 * v), 9 * G)
    torch.testing.assert_close(tensors.nonlinear_connection(field, x, 3 * v), 3 * N)
    torch.testing.assert_close(tensors.berwald_connection(field, x, 3 * v), B)
    torch.testing.assert_close(tensors.chern_connection(field, x, 3 * v), C)
    R = tensors.riemann_curvature(field, x, v)
    torch.testing.assert_close(tensors.riemann_curvature(field, x, 3 * v), 9 * R)
    torch.testing.assert_close(applied(R), torch.zeros_like(v), rtol=0, atol=1e-11)
    lowered = field.at(x).fundamental_tensor(v) @ R
    torch.testing.assert_close(lowered, lowered.mT, rtol=1e-9, atol=1e-10)
    S = tensors.s_curvature(field, x, v)
    torch.testing.assert_close(tensors.s_curvature(field, x, 3 * v), 3 * S)
    K = tensors.flag_curvature(field, x, v, w)
    torch.testing.assert_close(tensors.flag_curvature(field, x, 3 * v, -2 * w), K)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wavy", "Funk, 3-D"])
def test_closed_forms_are_what_differentiation_gives(name):
    metric, d = (wavy, 2) if name == "wavy" else (funk(3).metric, 3)
    x, v, w = 0.3 * torch.tanh(normal(4, d)), normal(4, d, seed=1), normal(4, d, seed=2)
    fields = FunctionMetric(metric, d), disguised(metric, d)
    for find in (
        tensors.spray, tensors.nonlinear_connection, tensors.berwald_connection,
        tensors.chern_connection, tensors.riemann_curvature, tensors.ricci, tensors.s_curvature,
    ):  # fmt: skip
        one, other = (find(field, x, v) for field in fields)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    one, other = (tensors.flag_curvature(field, x, v, w) for field in fields)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_minkowski_spaces_are_flat():
    """In coordinates in which they are not constant."""

    def metric(x):
        J = torch.stack(
            (1 + 0 * x[..., 0], 0.2 * torch.cos(x[..., 1]), 0.2 * x[..., 0], 1 + 0 * x[..., 1]), -1
        ).unflatten(-1, (2, 2))

        def norm(v):
            u = (J @ v[..., None])[..., 0]
            return square(u) / (square(u).sqrt() - 0.3 * u[..., 0] + 0.1 * u[..., 1])

        return CallableMetric(norm, like=x)

    field, x, v, w = (
        FunctionMetric(metric),
        normal(4, 2),
        normal(4, 2, seed=1),
        normal(4, 2, seed=2),
    )
    assert float(tensors.spray(field, x, v).abs().max()) > 1e-2
    zero = torch.zeros(4, dtype=DTYPE)
    for found in (
        tensors.flag_curvature(field, x, v, w),
        tensors.ricci(field, x, v),
        tensors.s_curvature(field, x, v),
        tensors.s_curvature(field, x, v, "holmes_thompson"),
    ):
        torch.testing.assert_close(found, zero, rtol=0, atol=1e-9)
    B = tensors.berwald_connection(field, x, v)
    torch.testing.assert_close(B, tensors.berwald_connection(field, x, w), rtol=1e-9, atol=1e-10)


def test_s_curvature_is_the_rate_of_distortion():
    """By differences along the geodesic, with each volume: they have different S-curvatures."""
    field, x, v = FunctionMetric(wavy), normal(3, 2), normal(3, 2, seed=1)
    step = 1e-4
    there = exponential(field, x, v, time=step, method="rk4", steps=1)
    back = exponential(field, x, v, time=-step, method="rk4", steps=1)
    speed = [
        (exponential(field, x, v, time=t + step / 2, method="rk4", steps=1)
         - exponential(field, x, v, time=t - step / 2, method="rk4", steps=1)) / step
        for t in (step, -step)
    ]  # fmt: skip

    def distortion(x, v, volume):
        density = volume(x) if callable(volume) else field.at(x).volume_density(volume)
        return (torch.linalg.det(field.at(x).fundamental_tensor(v)).sqrt() / density).log()

    found = {}
    for volume in ("busemann_hausdorff", "holmes_thompson", lambda x: 1 + square(x)):
        rise = distortion(there, speed[0], volume) - distortion(back, speed[1], volume)
        found[volume] = tensors.s_curvature(field, x, v, volume)
        torch.testing.assert_close(found[volume], rise / (2 * step), rtol=1e-4, atol=1e-5)
    one, other, _ = found.values()
    assert float((one - other).abs().max()) > 1e-3


class Sea(nn.Module):
    """A field that a network computes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)).double()

    def forward(self, x):
        y = self.net(x)
        L = torch.stack((1 + 0.3 * y[..., 0], 0 * y[..., 1], y[..., 1], 1 + 0.3 * y[..., 2]), -1)
        L = L.unflatten(-1, (2, 2))
        return Randers(L @ L.mT, 0.3 * torch.tanh(y[..., 3:]), validate=False)


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_gradients_of_flag_curvature_in_the_parameters(known):
    sea = Sea()
    field = FunctionMetric(sea) if known else disguised(sea)
    x, v, w = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)

    def total():
        return tensors.flag_curvature(field, x, v, w).sum() + tensors.s_curvature(field, x, v).sum()

    weight = sea.net[0].weight
    (slope,) = torch.autograd.grad(total(), weight)
    direction, step = normal(*weight.shape, seed=5), 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -2, 1):
            weight += sign * step * direction
            values.append(float(total()))
    expected = (values[0] - values[1]) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_gradients_of_the_holmes_thompson_s_curvature():
    """A second derivative of a volume that is found by optimisation."""
    strength = torch.tensor(0.4, dtype=DTYPE, requires_grad=True)

    def metric(x):
        beta = strength * torch.sin(x)
        return CallableMetric(lambda v: square(v) / (square(v).sqrt() - (beta * v).sum(-1)), like=x)

    x, v = torch.tensor([0.5, 0.2], dtype=DTYPE), torch.tensor([1.0, 0.5], dtype=DTYPE)

    def found():
        return tensors.s_curvature(FunctionMetric(metric), x, v, "holmes_thompson")

    (slope,) = torch.autograd.grad(found(), strength)
    with torch.no_grad():
        strength += 1e-5
        above = found()
        strength -= 2e-5
        below = found()
    assert float(slope) == pytest.approx(float(above - below) / 2e-5, rel=1e-5)


@pytest.mark.slow
def test_cubic_grids_converge_to_the_field():
    """Of the second order in the spacing for the spray, of the first for the curvature."""
    field = pull_back(wobble=0.2)
    x, v, w = 0.5 * torch.tanh(normal(50, 2)), normal(50, 2, seed=1), normal(50, 2, seed=2)
    exact = FunctionMetric(field.metric)
    errors = {"spray": [], "curvature": []}
    for n in (33, 65, 129):
        grid = field.grid(n, interpolation="cubic")
        spray = tensors.spray(grid, x, v) - tensors.spray(exact, x, v)
        K = [tensors.flag_curvature(f, x, v, w) for f in (grid, exact)]
        errors["spray"].append(float(spray.abs().max()))
        errors["curvature"].append(float((K[0] - K[1]).abs().mean()))
    for name, order in (("spray", 2), ("curvature", 1)):
        first, _, last = errors[name]
        assert math.log2(first / last) / 2 > order - 0.3, errors


@pytest.mark.slow
def test_grids_of_every_kind():
    field = pull_back()
    x, v, w = 0.5 * torch.tanh(normal(7, 2)), normal(7, 2, seed=1), normal(7, 2, seed=2)
    one = field.grid(17, interpolation="cubic")
    exact = tensors.flag_curvature(one, x, v, w)
    # In NumPy.
    there = GridMetric(
        one.M.numpy(), one.omega.numpy(), one.spacing, one.origin, interpolation="cubic"
    )
    found = tensors.flag_curvature(there, x.numpy(), v.numpy(), w.numpy())
    assert type(found).__module__ == "numpy"
    torch.testing.assert_close(torch.from_numpy(found), exact)
    # A batch of fields, whose axes come first, with vectors that broadcast.
    both = GridMetric(
        torch.stack((one.M, 4 * one.M)), torch.stack((one.omega, 2 * one.omega)), one.spacing,
        one.origin, interpolation="cubic",
    )  # fmt: skip
    found = tensors.flag_curvature(both, x.expand(2, 7, 2), v, w)
    torch.testing.assert_close(found, torch.stack((exact, exact / 4)))
    # In float32.
    field32 = FunctionMetric(wavy)
    single = tensors.flag_curvature(field32, x.float(), v.float(), w.float())
    assert single.dtype == torch.float32
    exact = tensors.flag_curvature(field32, x, v, w)
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-3)
    # A linear grid has first derivatives.
    linear = field.grid(129)
    torch.testing.assert_close(
        tensors.spray(linear, x, v), tensors.spray(FunctionMetric(field.metric), x, v),
        rtol=0.1, atol=0.1,
    )  # fmt: skip


@pytest.mark.unchecked
def test_what_tensors_refuse():
    field = FunctionMetric(stereographic)
    x, v = [0.1, 0.2], [1.0, 0.0]
    with pytest.raises(ValueError, match="v: expected non-zero vectors"):
        tensors.spray(field, x, [0.0, 0.0])
    with pytest.raises(ValueError, match="flag: expected vectors that are not parallel"):
        tensors.flag_curvature(field, x, v, [-2.0, 0.0])
    with pytest.raises(ValueError, match=r"second derivatives .* interpolation='cubic'"):
        tensors.ricci(half_plane().grid(9), [1.5, 0.0], v)
    with pytest.raises(ValueError, match="v: expected 2 components"):
        tensors.spray(field, x, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="kind: expected 'busemann_hausdorff'"):
        tensors.s_curvature(field, x, v, "lebesgue")

    class InNumPy(FinslerMetric):
        def norm(self, v):
            return (v.numpy() ** 2).sum(-1) ** 0.5

    numpy_field = FunctionMetric(lambda x: InNumPy())
    with pytest.raises(TypeError, match="expected metrics that compute in PyTorch"):
        tensors.spray(numpy_field, x, v)


def test_a_constant_field_is_flat():
    field = FunctionMetric(lambda x: Euclidean(2))
    x, v, w = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    for found in (tensors.spray(field, x, v), tensors.flag_curvature(field, x, v, w)):
        assert bool((found == 0).all())
