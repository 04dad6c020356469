"""The logarithm and two-point geodesics against closed forms, and where there is none."""

import numpy as np
import pytest
import torch
from metric_fields import (
    funk,
    half_plane,
    known_fields,
    known_fields_3d,
    pull_back,
    random_pair,
    rotation_wind,
)

from finslerconv.geodesics import FunctionMetric, GridMetric, path_length
from finslerconv.geodesics.flow._exponential import exponential
from finslerconv.geodesics.flow._logarithm import ConvergenceWarning, geodesic, logarithm
from finslerconv.metrics import Riemannian

# A lens makes geodesics cross: slow in the middle, F = n(x) |v|.
LENS = FunctionMetric(
    lambda x: Riemannian(
        (1 + 3 * torch.exp(-2 * (x * x).sum(-1)))[..., None, None] ** 2 * torch.eye(2).double()
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("field", known_fields() + known_fields_3d(), ids=str)
def test_the_logarithm_is_as_long_as_the_distance(field):
    x, y = random_pair(field, 3, margin=0.35)
    v = logarithm(field, x, y)
    torch.testing.assert_close(field.at(x).norm(v), field.distance(x, y), rtol=0, atol=1e-8)
    torch.testing.assert_close(exponential(field, x, v), y, rtol=0, atol=1e-8)


def test_the_logarithm_undoes_the_exponential_on_a_grid():
    field = pull_back().grid(33)
    x, _ = random_pair(pull_back(), 30, margin=0.3)
    v = 0.4 * torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logarithm(field, x, exponential(field, x, v)), v, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["function", "linear", "cubic"])
def test_points_that_are_nearly_one_are_connected(kind, dtype):
    # From a chord whose square underflows to some roundings of the positions.
    info = torch.finfo(dtype)
    field = FunctionMetric(rotation_wind().metric)
    if kind != "function":
        field = rotation_wind().grid(5, interpolation=kind).to(dtype)
    sizes = [0.2, info.tiny**0.6, info.smallest_normal * info.eps, 0.0]
    sizes += [info.eps, 3 * info.eps, 100 * info.eps]
    place = torch.tensor([0.0] * 4 + [0.7] * 3, dtype=dtype)
    x = torch.stack((place, place), -1)
    y = x + torch.tensor(sizes, dtype=dtype)[:, None] * torch.tensor([0.6, -0.8], dtype=dtype)
    x.requires_grad_(), y.requires_grad_()
    v = logarithm(field, x, y, method="rk4", steps=4)
    by_x, by_y = torch.autograd.grad(v.sum(), (x, y))
    chord = (y - x).detach()
    assert by_x.isfinite().all()
    torch.testing.assert_close(v[1:4].detach(), chord[1:4], rtol=1e-5, atol=info.tiny)
    torch.testing.assert_close(v[4:].detach(), chord[4:], rtol=0, atol=10 * info.eps)
    torch.testing.assert_close(by_y[1:], torch.ones_like(by_y[1:]), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_adaptive_methods_find_the_same_on_a_linear_grid():
    field = pull_back().grid(9)
    x, y = (u[0] for u in random_pair(pull_back(), 1, margin=0.35))
    found = logarithm(field, x, y, method="dopri5")
    torch.testing.assert_close(found, logarithm(field, x, y, steps=256), rtol=0, atol=2e-5)


def test_numpy_in_numpy_out_and_a_batch_of_fields():
    field = pull_back().grid(17)
    many = GridMetric(
        field.M.expand(2, *field.M.shape).numpy(),
        field.omega.expand(2, *field.omega.shape).numpy(),
        field.spacing,
        field.origin,
    )
    x, y = (u.numpy().reshape(2, 3, 2) for u in random_pair(pull_back(), 6, margin=0.3))
    v = logarithm(many, x, y)
    assert isinstance(v, np.ndarray)
    np.testing.assert_allclose(exponential(many, x, v), y, atol=1e-8)
    curve = geodesic(many, x, y, 5)
    assert curve.shape == (5, 2, 3, 2)
    np.testing.assert_allclose(curve[-1], y, atol=1e-8)


def test_the_same_point_is_no_way():
    x = torch.tensor([[1.2, 0.1], [1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(logarithm(half_plane(), x, x), torch.zeros_like(x))


@pytest.mark.slow
def test_the_gradient_of_the_length_is_that_of_the_distance():
    field = pull_back()
    x, y = (u.requires_grad_() for u in random_pair(field, 3, margin=0.3))
    length = field.at(x).norm(logarithm(field, x, y))
    found = torch.autograd.grad(length.sum(), (x, y))
    exact = torch.autograd.grad(field.distance(x, y).sum(), (x, y))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_gradient_in_a_fields_parameters():
    x, y = random_pair(half_plane(), 3)
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def length(a):
        field = FunctionMetric(lambda x: Riemannian(a * torch.eye(2) / x[..., :1, None] ** 2))
        return field.at(x).norm(logarithm(field, x, y)).sum()

    # The metric is scaled, and all lengths by its root.
    (slope,) = torch.autograd.grad(length(a), a)
    torch.testing.assert_close(slope, length(a.detach()) / 4, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_second_derivatives_are_refused():
    x, y = random_pair(half_plane(), 1)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="logarithm: second derivatives are not computed"):
        torch.autograd.grad(logarithm(half_plane(), x, y).sum(), x, create_graph=True)


@pytest.mark.slow
@pytest.mark.parametrize("field", [half_plane(), funk()], ids=str)
def test_geodesics_are_shortest_and_evenly_spaced(field):
    x, y = random_pair(field, 2)
    curve = geodesic(field, x, y, 5)
    torch.testing.assert_close(curve[[0, -1]], torch.stack((x, y)), rtol=0, atol=1e-8)
    steps = field.distance(curve[:-1], curve[1:])
    torch.testing.assert_close(steps, steps.mean(0).expand_as(steps), rtol=0, atol=1e-8)
    torch.testing.assert_close(steps.sum(0), field.distance(x, y), rtol=0, atol=1e-8)
    long = path_length(field, geodesic(field, x, y, 33, method="rk4"))
    torch.testing.assert_close(long, field.distance(x, y), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_where_geodesics_cross_the_start_decides():
    x, y = torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=torch.float64)
    straight = logarithm(LENS, x, y, method="rk4")
    assert abs(float(straight[1])) < 1e-8
    up, down = (
        logarithm(LENS, x, y, start=torch.tensor([2.0, s]).double(), method="rk4") for s in (3, -3)
    )
    torch.testing.assert_close(up, down * torch.tensor([1.0, -1.0]).double(), rtol=0, atol=1e-6)
    # Around the lens is shorter than through it.
    assert LENS.at(x).norm(up) < 0.9 * LENS.at(x).norm(straight)


@pytest.mark.slow
def test_pairs_that_no_geodesic_was_found_for_are_named():
    # Out of Funk's ball no geodesic leads.
    field = funk()
    x = torch.zeros(2, 2, dtype=torch.float64)
    y = torch.tensor([[0.3, 0.4], [1.2, 0.9]], dtype=torch.float64)
    with pytest.warns(
        ConvergenceWarning, match=r"1 of 2 pairs, the first at index \(1,\)"
    ) as record:
        v = logarithm(field, x, y, method="rk4", steps=8)
    assert record[0].message.pairs.tolist() == [[1]]
    assert v[0].isfinite().all()
    assert v[1].isnan().all()
    with pytest.warns(ConvergenceWarning):
        curve = geodesic(field, x, y, 3, method="rk4", steps=8)
    assert curve[:, 0].isfinite().all()
    assert curve[:, 1].isnan().all()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: logarithm(f, x, np.zeros((3, 2))), None),
        (lambda f, x: logarithm(f, np.zeros((2, 2)), np.zeros((3, 2))), "y: expected a shape"),
        (lambda f, x: logarithm(f, x, x, iterations=0), "iterations: expected"),
        (lambda f, x: logarithm(f, x, x, tolerance=-1.0), "tolerance: expected"),
        (lambda f, x: logarithm(f, x, np.full(2, np.nan)), "expected finite"),
        (
            lambda f, x: logarithm(f, x, x, start=np.zeros(3)),
            r"start: expected a velocity .* \(2,\), got \(3,\)",
        ),
        (lambda f, x: logarithm(f, x, x, start=np.full(2, np.nan)), "start: expected finite"),
        (lambda f, x: geodesic(f, x, x, 1), "n: expected an integer"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    field = GridMetric(np.broadcast_to(np.eye(2), (4, 4, 2, 2)))
    if message is None:
        assert call(field, np.zeros(2)).shape == (3, 2)
        return
    with pytest.raises(ValueError, match=message):
        call(field, np.zeros(2))
