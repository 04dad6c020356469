"""The parallel solver finds what fast marching of first order finds, and its derivatives."""

import math

import pytest
import torch
from metric_fields import (
    fast_iterative,
    fast_marching,
    funk,
    half_plane,
    pull_back,
    pull_back_3d,
    random_smooth,
    tilted,
)

from finslerconv.geodesics import Seeds
from finslerconv.geodesics.distances.fast_iterative import _method as _fast_iterative


def grid(field, n):
    g = field.grid(n)
    return torch.as_tensor(g.M)[None], torch.as_tensor(g.omega)[None], g.spacing, g.origin


def at(*positions, value=None):
    position = torch.stack([torch.as_tensor(p, dtype=torch.float64) for p in positions])
    return Seeds(position, torch.zeros(len(position)).double() if value is None else value)


def random_field(n, problems=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(problems, n, n, 2, 2, generator=generator, dtype=torch.float64)
    M = A @ A.mT + 0.3 * torch.eye(2)
    omega = torch.randn(problems, n, n, 2, generator=generator, dtype=torch.float64)
    norm = (omega * torch.linalg.solve(M, omega[..., None])[..., 0]).sum(-1, keepdim=True).sqrt()
    return M, 0.7 * torch.rand(norm.shape, generator=generator, dtype=torch.float64) * omega / norm


@pytest.mark.parametrize("factorise", [False, True])
@pytest.mark.parametrize(
    "field",
    [
        tilted(9, 30, 0.6),
        tilted(100, 30),
        pull_back(wobble=0.15),
        half_plane(),
        funk(),
        random_smooth(2, 1000.0, 0.95, seed=1),
    ],
    ids=str,
)
def test_it_is_fast_marching_of_first_order(field, factorise):
    M, omega, spacing, origin = grid(field, 26)
    seeds = [at(field.point(0.51, 0.37))]
    ours = fast_iterative(M, omega, spacing, origin, seeds, factorise=factorise)
    theirs = fast_marching(M, omega, spacing, origin, seeds, order=1, factorise=factorise)
    scale = theirs.distance.max()
    assert torch.allclose(ours.distance, theirs.distance, rtol=0, atol=1e-12 * scale)
    assert torch.equal(ours.label, theirs.label)
    assert torch.allclose(
        ours.flow, theirs.flow, rtol=0, atol=1e-7 * float(theirs.flow.abs().max())
    )


@pytest.mark.parametrize("field", [pull_back_3d(0.1), half_plane(3), funk(3)], ids=str)
def test_it_is_fast_marching_in_space(field):
    M, omega, spacing, origin = grid(field, 9)
    seeds = [at(field.point(0.51, 0.37, 0.6))]
    ours = fast_iterative(M, omega, spacing, origin, seeds)
    theirs = fast_marching(M, omega, spacing, origin, seeds, order=1, factorise=False)
    assert torch.allclose(ours.distance, theirs.distance, rtol=0, atol=1e-12)
    assert torch.allclose(ours.flow, theirs.flow, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_it_settles_where_a_one_form_in_space_turns_at_every_node():
    """No order makes such a field causal: nodes are lowered again and again."""
    generator = torch.Generator().manual_seed(0)
    A, omega = (torch.randn(1, 9, 9, 9, *s, generator=generator).double() for s in ((3, 3), (3,)))
    M = torch.eye(3) + 0.1 * A @ A.mT
    norm = (omega * torch.linalg.solve(M, omega[..., None])[..., 0]).sum(-1, keepdim=True).sqrt()
    fields = M.requires_grad_(), (0.95 * omega / norm).requires_grad_()
    seeds = [at((4.0, 4.0, 4.0))]
    ours = fast_iterative(*fields, 1.0, 0.0, seeds)
    theirs = fast_marching(*fields, 1.0, 0.0, seeds, order=1, factorise=False)
    assert torch.allclose(ours.distance, theirs.distance, rtol=0, atol=1e-10)
    (in_M, in_omega), (their_M, their_omega) = (
        torch.autograd.grad(front.distance.sum(), fields) for front in (ours, theirs)
    )
    assert torch.allclose(in_M + in_M.mT, 2 * their_M, rtol=0, atol=1e-8)
    assert torch.allclose(in_omega, their_omega, rtol=0, atol=1e-8)


def test_factored_it_is_exact_in_a_constant_metric():
    field = tilted(9, 30, 0.6)
    M, omega, spacing, origin = grid(field, 33)
    source = field.point(0.4, 0.63)
    front = fast_iterative(M, omega, spacing, origin, [at(source)])
    nodes = torch.as_tensor(field.grid(33).nodes())
    exact = field.distance(source.expand(nodes.shape), nodes)
    assert torch.allclose(front.distance[0], exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("factorise", [False, True])
def test_many_problems_at_once_are_those_one_by_one(factorise):
    M, omega = random_field(15, problems=3)
    mask = torch.rand(3, 15, 15, generator=torch.Generator().manual_seed(1)) > 0.2
    mask[:, 3, 4] = mask[:, 10, 10] = True
    seeds = [
        at((3.0, 4.0)),
        at((3.0, 4.0), (10.0, 10.0)),
        at((10.0, 10.0), (3.0, 4.0), value=torch.tensor([1.5, 0.0]).double()),
    ]
    whole = fast_iterative(M, omega, 1.0, 0.0, seeds, mask=mask, factorise=factorise)
    for p in range(3):
        one = slice(p, p + 1)
        alone = fast_marching(
            M[one], omega[one], 1.0, 0.0, seeds[one], mask=mask[p], order=1, factorise=factorise
        )
        assert torch.equal(whole.distance[p].isinf(), alone.distance[0].isinf())
        assert torch.allclose(whole.distance[p], alone.distance[0], rtol=1e-12)
        assert torch.equal(whole.label[p], alone.label[0])
    shared = fast_iterative(M[:1], omega[:1], 1.0, 0.0, seeds, mask=mask[0], factorise=factorise)
    assert torch.allclose(shared.distance[0], whole.distance[0], rtol=1e-12)


def test_behind_walls_is_infinite():
    M, omega = random_field(12)
    mask = torch.ones(12, 12, dtype=torch.bool)
    mask[:, 6] = False
    front = fast_iterative(M, omega, 1.0, 0.0, [at((5.0, 2.0))], mask=mask)
    assert front.distance[0, :, :6].isfinite().all()
    assert front.distance[0, :, 6:].isinf().all()
    assert (front.label[0, :, 6:] == -1).all()
    assert (front.flow[0, :, 6:] == 0).all()


@pytest.mark.parametrize("factorise", [False, True])
def test_radius_stops_the_front_and_changes_nothing_inside(factorise):
    M, omega = random_field(25)
    seeds = [at((12.0, 11.5))]
    whole = fast_iterative(M, omega, 1.0, 0.0, seeds, factorise=factorise).distance
    radius = float(whole.median())
    part = fast_iterative(M, omega, 1.0, 0.0, seeds, factorise=factorise, radius=radius)
    inside = whole <= radius
    assert torch.equal(part.distance.isfinite(), inside)
    assert torch.equal(part.distance[inside], whole[inside])
    assert torch.equal(part.label >= 0, inside)


def assert_gradients(function, inputs, seed=0):
    """Assert that the derivative along a random direction of each input is the difference's."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(function(*inputs), inputs)
    for k, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * float(inputs[k].detach().abs().mean())
        moved = [
            [
                x.detach() + sign * step * direction if n == k else x.detach()
                for n, x in enumerate(inputs)
            ]
            for sign in (1, -1)
        ]
        slope = (function(*moved[0]) - function(*moved[1])) / (2 * step)
        assert torch.isclose((gradient * direction).sum(), slope, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("factorise", [False, True])
def test_gradients_are_those_of_finite_differences(factorise):
    field = random_smooth(2, 20.0, 0.7)
    M, omega, spacing, origin = grid(field, 14)
    position = field.point(0.43, 0.37)[None]
    weights = torch.rand(1, 14, 14, generator=torch.Generator().manual_seed(0)).double()

    def total(M, omega, position, value):
        seeds = [Seeds(position, value)]
        symmetric = (M + M.mT) / 2
        front = fast_iterative(symmetric, omega, spacing, origin, seeds, factorise=factorise)
        return (weights * front.distance).sum()

    assert_gradients(total, (M, omega, position, torch.tensor([0.4]).double()))


def test_gradients_in_space_are_those_of_finite_differences():
    field = pull_back_3d(0.1)
    M, omega, spacing, origin = grid(field, 6)
    position = field.point(0.43, 0.47, 0.62)[None]
    weights = torch.rand(1, 6, 6, 6, generator=torch.Generator().manual_seed(0)).double()

    def total(M, omega, position, value):
        seeds = [Seeds(position, value)]
        front = fast_iterative((M + M.mT) / 2, omega, spacing, origin, seeds)
        return (weights * front.distance).sum()

    assert_gradients(total, (M, omega, position, torch.tensor([0.4]).double()))


def test_gradients_are_fast_marchings():
    field = random_smooth(2, 100.0, 0.9)
    M, omega, spacing, origin = grid(field, 30)
    weights = torch.rand(1, 30, 30, generator=torch.Generator().manual_seed(0)).double()
    gradients = []
    for solver, options in ((fast_iterative, {}), (fast_marching, {"order": 1})):
        inputs = [x.clone().requires_grad_() for x in (M, omega)]
        front = solver(*inputs, spacing, origin, [at(field.point(0.5, 0.4))], **options)
        gradients.append(torch.autograd.grad((weights * front.distance).sum(), inputs))
    for ours, theirs in zip(*gradients, strict=True):
        # Of matrices that stay symmetric, only the symmetric part matters.
        if ours.ndim == 5:
            ours, theirs = ours + ours.mT, theirs + theirs.mT
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-8 * float(theirs.abs().max()))


def test_a_cycle_of_dependences_is_summed_up():
    # v0 = 1 + v1 / 2, v1 = 1 + v0 / 2, and node 2 hands on to node 0.
    parent = torch.tensor([[1], [0], [0]])
    weight = torch.tensor([[0.5], [0.5], [1.0]]).double()
    v = _fast_iterative._transposed_solve(torch.ones(3).double(), parent, weight)
    matrix = torch.eye(3).double()
    for x in range(3):
        matrix[parent[x, 0], x] -= weight[x, 0]
    assert torch.allclose(matrix @ v, torch.ones(3).double(), rtol=1e-12)


def test_single_precision_keeps_six_digits():
    field = random_smooth(2, 100.0, 0.9, seed=2)
    M, omega, spacing, origin = grid(field, 48)
    # Far from zero: only differences of values may matter.
    seeds = [at(field.point(0.5, 0.5), value=torch.tensor([100.0]).double())]
    exact = fast_iterative(M, omega, spacing, origin, seeds, factorise=False).distance
    rough = fast_iterative(M.float(), omega.float(), spacing, origin, seeds, factorise=False)
    assert rough.distance.dtype == torch.float32
    assert (rough.distance - exact).abs().max() < 2e-6 * exact.max()


def test_it_is_symmetric_under_transposition():
    M, omega = random_field(17, seed=5)
    straight = fast_iterative(M, omega, 1.0, 0.0, [at((5.0, 11.0))]).distance
    turned = fast_iterative(
        M.transpose(1, 2).flip(-1, -2), omega.transpose(1, 2).flip(-1), 1.0, 0.0, [at((11.0, 5.0))]
    )
    assert torch.allclose(turned.distance.mT, straight, rtol=1e-12)


def test_the_passes_end_with_an_error_not_a_hang():
    M, omega = random_field(20)
    with pytest.raises(RuntimeError, match=r"max_iterations: .* not settled after 5 passes"):
        fast_iterative(M, omega, 1.0, 0.0, [at((5.0, 5.0))], max_iterations=5)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -1.0}, "tolerance: expected a fraction"),
        ({"tolerance": math.nan}, "tolerance: expected a fraction"),
        ({"max_iterations": 0}, "max_iterations: expected a positive integer"),
    ],
)
def test_wrong_options(options, message):
    M, omega = random_field(5)
    with pytest.raises(ValueError, match=message):
        fast_iterative(M, omega, 1.0, 0.0, [at((2.0, 2.0))], **options)


@pytest.mark.unchecked
def test_no_factorisation_in_space():
    M = torch.eye(3).double().expand(1, 5, 5, 5, 3, 3)
    with pytest.raises(ValueError, match=r"factorise: .* in the plane only; leave the option"):
        fast_iterative(M, None, 1.0, 0.0, [at((2.0, 2.0, 2.0))], factorise=True)
