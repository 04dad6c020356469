"""Densities against their definition: profiles, products, distances, and what they refuse."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finslerconv.metrics import Euclidean, FinslerMetric, Randers, Riemannian
from finslerconv.nn.weighted import (
    Density,
    FreeProfile,
    GaussianProfile,
    MetricDensity,
    PowerProfile,
    Profile,
    SeparableDensity,
    TensorDensity,
    TrainableRanders,
    paper_profile,
)

DOUBLE = {"dtype": torch.float64}


def test_half_profile_is_the_papers_outer_product():
    phi = SeparableDensity((5, 5), [0.2, 0.8], **DOUBLE)()
    alpha = [0.2, 0.8, 1.0, 0.8, 0.2]
    expected = [[a * b for b in alpha] for a in alpha]
    torch.testing.assert_close(phi, torch.tensor(expected, **DOUBLE))


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_half_profile_reads_from_the_outermost_tap_inwards(k, n_axes):
    half = [0.1 * (i + 1) for i in range(k // 2)]
    phi = SeparableDensity((k,) * n_axes, half, **DOUBLE)()
    centre = (k // 2,) * (n_axes - 1)
    assert phi[(*centre, 0)] == pytest.approx(half[0], abs=0)
    assert phi[(*centre, k // 2 - 1)] == pytest.approx(half[-1], abs=0)
    assert phi[(*centre, k // 2)] == 1
    torch.testing.assert_close(phi, phi.flip(-1), rtol=0, atol=0)
    assert phi[(0,) * n_axes] == pytest.approx(half[0] ** n_axes)


def test_axes_are_in_array_order_and_may_differ():
    rows, columns = [0.5], [0.1, 0.2, 0.3, 0.4, 0.5]
    phi = SeparableDensity((3, 5), [rows, columns], **DOUBLE)()
    assert phi.shape == (3, 5)
    assert phi[0, 4] == pytest.approx(0.5 * 0.5)
    assert phi[1, 0] == pytest.approx(0.1)
    assert phi[1, 4] == pytest.approx(0.5)


@given(
    st.lists(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=6), min_size=1, max_size=3)
)
def test_full_profiles_give_the_tensor_product(profiles):
    kernel_size = tuple(len(p) for p in profiles)
    density = SeparableDensity(kernel_size, profiles, trainable=True, **DOUBLE)
    expected = torch.einsum(
        {1: "i->i", 2: "i,j->ij", 3: "i,j,k->ijk"}[len(profiles)],
        *(torch.tensor(p, **DOUBLE) for p in profiles),
    )
    torch.testing.assert_close(density().detach(), expected)
    torch.testing.assert_close(SeparableDensity(kernel_size, profiles, **DOUBLE)(), expected)


def test_one_tap_needs_no_value():
    assert SeparableDensity((1, 1), [])().item() == 1
    assert SeparableDensity((1, 1), [2.0])().item() == 4


def test_a_profile_for_all_axes_is_one_parameter_and_one_per_axis_are_as_many():
    shared = SeparableDensity((3, 3), [0.7], trainable=True)
    own = SeparableDensity((3, 3), [[0.7], [0.7]], trainable=True)
    assert list(shared.state_dict()) == ["profile_0"]
    assert list(own.state_dict()) == ["profile_0", "profile_1"]
    assert list(SeparableDensity((3, 3), [0.7]).state_dict()) == ["phi"]
    assert [p.shape for p in shared.profiles()] == [(3,), (3,)]


@pytest.mark.parametrize("profile", [[0.3], [[0.3], [0.4]], [[0.3, 0.9, 0.5], [0.4]]])
@pytest.mark.parametrize("positive", [False, True])
def test_trainable_density_has_right_gradients(profile, positive):
    density = SeparableDensity((3, 3), profile, trainable=True, positive=positive, **DOUBLE)
    torch.testing.assert_close(
        density().detach(), SeparableDensity((3, 3), profile, **DOUBLE)(), rtol=1e-14, atol=0
    )
    names, values = zip(*density.named_parameters(), strict=True)

    def phi(*parameters):
        return torch.func.functional_call(density, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(phi, values)


def test_positive_stays_positive_whatever_the_step():
    density = SeparableDensity((5,), [0.2, 0.8], trainable=True, positive=True)
    optimiser = torch.optim.SGD(density.parameters(), lr=10.0)
    density().sum().backward()
    optimiser.step()
    assert (density() > 0).all()
    assert density()[0] < 0.2


def test_fixed_float32_density_is_rounded_once():
    phi = SeparableDensity((7, 7), [0.25, 0.15, 0.55])()
    exact = SeparableDensity((7, 7), [0.25, 0.15, 0.55], **DOUBLE)()
    assert phi.dtype == torch.float32
    torch.testing.assert_close(phi, exact.float(), rtol=0, atol=0)


def test_tensor_density_copies_and_trains():
    values = torch.rand(2, 3, **DOUBLE) + 0.1
    fixed = TensorDensity(values)
    trained = TensorDensity(values, trainable=True, positive=True)
    assert fixed.kernel_size == trained.kernel_size == (2, 3)
    torch.testing.assert_close(trained().detach(), values)
    assert list(fixed.state_dict()) == ["phi"]
    assert list(trained.state_dict()) == ["log_values"]
    values.zero_()
    assert (fixed() > 0).all()


def test_paper_profiles_fit_their_kernels():
    for k, n_axes in [(1, 2), (3, 2), (5, 2), (7, 2), (1, 3), (3, 3), (5, 3)]:
        assert SeparableDensity((k,) * n_axes, paper_profile(k, n_axes))().shape == (k,) * n_axes
    assert paper_profile(7) == [0.25, 0.15, 0.55]
    with pytest.raises(ValueError, match="no profile for kernel_size 9 in 2"):
        paper_profile(9)


# --- of a metric's distance -------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 3), (2, 4)])
def test_metric_density_is_the_profile_of_the_taps_distances(kernel_size):
    M, omega = np.array([[2.0, 0.3], [0.3, 0.5]]), np.array([0.4, -0.2])
    phi = MetricDensity(kernel_size, Randers(M, omega), GaussianProfile(1.5), **DOUBLE)()
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            g = np.array([i - (kernel_size[0] - 1) / 2, j - (kernel_size[1] - 1) / 2])
            F = math.sqrt(g @ M @ g) + omega @ g
            assert phi[i, j].item() == pytest.approx(math.exp(-(F**2) / (2 * 1.5**2)), rel=1e-13)


def test_randers_density_is_heavier_where_the_metric_is_cheap():
    # omega points right: moving right is dear, so the right tap is farther.
    metric = Randers(torch.eye(2), torch.tensor([0.0, 0.5]))
    phi = MetricDensity((3, 3), metric, PowerProfile(1.0))()
    assert phi[1, 2].item() == pytest.approx(1 / 2.5)
    assert phi[1, 0].item() == pytest.approx(1 / 1.5)
    assert phi[0, 1] == phi[2, 1] == 0.5


def test_euclidean_gaussian_is_separable():
    # exp(-(a^2 + b^2) / 2) = exp(-a^2 / 2) exp(-b^2 / 2): the two kinds of density agree.
    half = [math.exp(-2.0), math.exp(-0.5)]
    separable = SeparableDensity((5, 5), half, **DOUBLE)()
    radial = MetricDensity((5, 5), Euclidean(2), GaussianProfile(1.0), **DOUBLE)()
    torch.testing.assert_close(radial, separable)


@pytest.mark.parametrize("n_axes", [1, 3])
def test_metric_density_in_other_dimensions(n_axes):
    phi = MetricDensity((3,) * n_axes, Euclidean(n_axes), PowerProfile(1.0), **DOUBLE)()
    assert phi[(0,) * n_axes].item() == pytest.approx(1 / (1 + math.sqrt(n_axes)))
    assert phi[(1,) * n_axes] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda t: GaussianProfile(1.3, trainable=t),
        lambda t: PowerProfile(0.7, trainable=t),
        lambda t: FreeProfile([1.0, 0.6, 0.9], 2.0, trainable=t),
        lambda t: FreeProfile([1.0, 0.6, 0.9], 2.0, trainable=t, positive=True),
    ],
)
def test_trained_profiles_agree_with_fixed_ones_and_have_right_gradients(make):
    metric = Riemannian(torch.tensor([[1.0, 0.2], [0.2, 2.0]], **DOUBLE))
    fixed = MetricDensity((3, 5), metric, make(False), **DOUBLE)
    trained = MetricDensity((3, 5), metric, make(True), **DOUBLE)
    assert not fixed.trainable
    assert trained.trainable
    torch.testing.assert_close(trained().detach(), fixed())
    names, values = zip(*trained.named_parameters(), strict=True)

    def phi(*parameters):
        return torch.func.functional_call(trained, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(phi, values)


def test_free_profile_interpolates_its_values():
    profile = FreeProfile([1.0, 0.2, 0.6], radius=4.0)
    r = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 7.0], **DOUBLE)
    expected = np.interp(r.numpy(), [0, 2, 4], [1.0, 0.2, 0.6])
    np.testing.assert_allclose(profile(r).numpy(), expected)


def test_trainable_randers_starts_where_it_is_told_and_stays_a_metric():
    M = torch.tensor([[2.0, 0.5], [0.5, 1.0]], **DOUBLE)
    omega = torch.tensor([0.6, -0.3], **DOUBLE)
    metric = TrainableRanders(M, omega)
    torch.testing.assert_close(metric().M.detach(), M)
    torch.testing.assert_close(metric().omega.detach(), omega)
    for parameter in metric.parameters():
        nn.init.normal_(parameter, std=3.0)
    metric().validate()


def test_trained_metric_has_right_gradients_and_none_at_the_centre():
    metric = TrainableRanders(torch.eye(2, **DOUBLE) * 0.5)
    density = MetricDensity((3, 3), metric, GaussianProfile(1.0), **DOUBLE)
    names, values = zip(*density.named_parameters(), strict=True)
    assert set(names) == {"metric.lower", "metric.log_diagonal", "metric.one_form"}

    def phi(*parameters):
        return torch.func.functional_call(density, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(phi, values)
    centre = torch.autograd.grad(density()[1, 1], values)
    assert all((g == 0).all() for g in centre)


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 3), (2, 4)])
@pytest.mark.parametrize("what", ["metric", "profile", "both"])
def test_what_is_trained_keeps_the_side_of_an_asymmetric_metric(kernel_size, what):
    """Against the formula, tap by tap: where a one-form points is dear, and the opposite cheap."""
    M, omega = np.array([[2.0, 0.3], [0.3, 0.5]]), np.array([0.4, 0.2])
    metric = Randers(M, omega)
    if what != "profile":
        metric = TrainableRanders(torch.tensor(M), torch.tensor(omega))
    profile = GaussianProfile(1.5, trainable=what != "metric")
    density = MetricDensity(kernel_size, metric, profile, **DOUBLE)
    assert density.trainable
    phi = density()
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            g = np.array([i - (kernel_size[0] - 1) / 2, j - (kernel_size[1] - 1) / 2])
            F = math.sqrt(g @ M @ g) + omega @ g
            assert phi[i, j].item() == pytest.approx(math.exp(-(F**2) / (2 * 1.5**2)), rel=1e-13)


class TrainableStretch(nn.Module):
    """The metric of diag(a) as a norm of one's own, which may not be asked at 0."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.5, 2.0], **DOUBLE))

    def forward(self):
        return Stretched(self.a)


class Stretched(FinslerMetric):
    def __init__(self, a):
        self.a = a

    def norm(self, v):
        assert (v != 0).any(-1).all(), "asked for the norm of 0"
        return (self.a * v**2).sum(-1).sqrt()

    @property
    def like(self):
        return self.a


def test_a_metric_of_ones_own_is_trained_without_its_norm_at_the_centre():
    density = MetricDensity((3, 5), TrainableStretch(), PowerProfile(1.5), **DOUBLE)
    density().sum().backward()
    a = torch.tensor([0.5, 2.0], **DOUBLE, requires_grad=True)
    rows, columns = np.mgrid[-1:2, -2:3]
    squares = torch.tensor(np.stack((rows, columns), -1) ** 2, **DOUBLE)
    r = (a * squares).sum(-1).reshape(-1)
    r = torch.cat((r[:7], r[8:])).sqrt()
    ((1 + r) ** -1.5).sum().backward()
    torch.testing.assert_close(density.metric.a.grad, a.grad)


def test_one_profile_may_serve_several_kernel_sizes():
    profile = GaussianProfile(1.0, trainable=True)
    small, large = (MetricDensity((k, k), Euclidean(2), profile) for k in (3, 5))
    torch.testing.assert_close(large()[1:4, 1:4], small())
    assert small.profile is large.profile


# --- as modules -------------------------------------------------------------------------------

EVERY_KIND = [
    lambda: SeparableDensity((3, 3), [0.7]),
    lambda: SeparableDensity((3, 3), [0.7], trainable=True, positive=True),
    lambda: TensorDensity(torch.rand(3, 3)),
    lambda: TensorDensity(torch.rand(3, 3), trainable=True),
    lambda: MetricDensity((3, 3), Euclidean(2), GaussianProfile(1.0)),
    lambda: MetricDensity((3, 3), Euclidean(2), FreeProfile([1.0, 0.5], 2.0, trainable=True)),
    lambda: MetricDensity((3, 3), TrainableRanders(torch.eye(2)), PowerProfile(1.0)),
]


@pytest.mark.parametrize("make", EVERY_KIND)
def test_copies_pickles_and_state_dicts(make):
    density = make()
    for other in (copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
        torch.testing.assert_close(other(), density(), rtol=0, atol=0)
    fresh = make()
    for tensor in fresh.state_dict().values():
        tensor.fill_(0.1)
    fresh.load_state_dict(density.state_dict())
    torch.testing.assert_close(fresh(), density(), rtol=0, atol=0)
    assert density.double()().dtype == torch.float64
    assert bool(list(density.parameters())) == density.trainable
    assert "kernel_size=(3, 3)" in repr(density)


def test_a_metric_and_a_profile_without_numbers():
    class Round(nn.Module):
        def forward(self):
            return Euclidean(2)

    class Linear(Profile):
        def forward(self, r):
            return 1 - r / 4

    density = MetricDensity((1, 3), Round(), Linear(trainable=False))
    torch.testing.assert_close(density(), torch.tensor([[0.75, 1.0, 0.75]]))


def test_a_density_of_ones_own():
    class Checkerboard(Density):
        def __init__(self, kernel_size):
            super().__init__(kernel_size)
            self.level = nn.Parameter(torch.tensor(0.5))

        def _evaluate(self):
            i, j = torch.meshgrid(*map(torch.arange, self.kernel_size), indexing="ij")
            return torch.where((i + j) % 2 == 0, 1.0, self.level)

    assert Checkerboard((2, 2))().tolist() == [[1, 0.5], [0.5, 1]]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SeparableDensity(3, [0.7]), r"such as \(3, 3\).*got 3"),
        (lambda: SeparableDensity((3, 0), [0.7]), r"positive integer.*got \(3, 0\)"),
        (lambda: SeparableDensity((5, 5), [0.7]), r"must have 2 values.*or 5 values.*got 1"),
        (lambda: SeparableDensity((3, 3), [0.7] * 4), "must have 1 value.*got 4"),
        (lambda: SeparableDensity((4, 4), [0.2, 0.8]), "kernel of 4 taps is even.*full profile"),
        (lambda: SeparableDensity((4, 4), [0.2]), r"must have 4 values \(the full profile\)"),
        (lambda: SeparableDensity((3, 5), [0.2, 0.8]), "differs between axes.*one sequence per"),
        (lambda: SeparableDensity((3, 3), [[0.2]]), "one sequence per axis.*so 2; got 1"),
        (lambda: SeparableDensity((3, 3), [[0.2], 0.3]), "not both"),
        (lambda: SeparableDensity((3, 3), [[0.2], [0.1, 0.2]]), r"profile\[1\] must have 1 value"),
        (lambda: SeparableDensity((3,), [math.nan]), "profile must be finite; got nan at index 0"),
        (
            lambda: SeparableDensity((5,), [0.2, -0.8], positive=True),
            "above zero.*got -0.8.* at index 1",
        ),
        (lambda: SeparableDensity((3,), [0.2]).profiles(), "read density.phi"),
        (
            lambda: TensorDensity(torch.tensor([[1.0, 0.0]]), positive=True),
            r"values must be .*above zero.*index \(0, 1\)",
        ),
        (lambda: GaussianProfile(0.0), "sigma must be finite and above zero; got 0"),
        (lambda: PowerProfile(math.inf), "exponent must be finite"),
        (lambda: FreeProfile([1.0], 2.0), "at least two"),
        (lambda: FreeProfile([1.0, 2.0], -1.0), "radius must be finite and above zero"),
        (lambda: FreeProfile([1.0, -1.0], 1.0, positive=True), "index 1"),
        (
            lambda: MetricDensity((3, 3), Euclidean(3), PowerProfile(1.0)),
            "dimension 2.*got dimension 3",
        ),
        (
            lambda: MetricDensity(
                (3, 3), Riemannian(torch.eye(2).expand(4, 2, 2)), PowerProfile(1.0)
            ),
            r"batch shape \(4,\)",
        ),
        (
            lambda: MetricDensity((3,), Euclidean(1), PowerProfile(-2000.0)),
            r"tap \(0,\), distance 1, it is inf",
        ),
        (
            lambda: TrainableRanders(torch.eye(2), torch.tensor([2.0, 0.0])),
            r"omega: expected \|omega\|",
        ),
    ],
)
def test_refusals_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.unchecked
def test_a_module_that_gives_no_metric_is_refused():
    class Nothing(nn.Module):
        def forward(self):
            return 1

    with pytest.raises(TypeError, match="Nothing, which returns int"):
        MetricDensity((3, 3), Nothing(), PowerProfile(1.0))
