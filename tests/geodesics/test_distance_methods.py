"""The contract of distance methods: one of a user's own, registered by a line."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from finslerconv.geodesics import (
    DistanceMethod,
    EikonalProblem,
    Front,
    GridMetric,
    distance,
    register_method,
)
from finslerconv.geodesics.distances import _method
from finslerconv.metrics import Randers


@dataclass(frozen=True)
class AxisEdges(DistanceMethod):
    """Bellman and Ford's relaxation over steps along the axes, from sources at nodes."""

    rounds: int = 100

    front = False

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError("rounds: expected a positive number")

    def solve(self, problem: EikonalProblem) -> Front:
        found = []
        for p in range(len(problem.seeds)):
            one = problem[p : p + 1]
            M, omega, walls, seeds = one.M[0], one.omega[0], one.walls[0], one.seeds[0]
            u = torch.full(problem.grid, math.inf, dtype=M.dtype)
            u = u.index_put(tuple(seeds.position.long().T), seeds.value)
            for _ in range(self.rounds):
                for axis in range(problem.dim):
                    for sign in (1, -1):
                        cost = M[..., axis, axis].sqrt() + sign * omega[..., axis]
                        last = (
                            torch.arange(problem.grid[axis])
                            == (0 if sign == 1 else -1) % (problem.grid[axis])
                        )
                        moved = (u + cost).roll(sign, axis).movedim(axis, -1)
                        moved = torch.where(last, math.inf, moved).movedim(-1, axis)
                        u = torch.minimum(u, torch.where(walls, math.inf, moved))
            found.append(u)
        return Front(torch.stack(found))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(_method, "_METHODS", dict(_method._METHODS))
    register_method("axis_edges", AxisEdges)


FIELD = GridMetric.from_metric(
    Randers(np.diag([4.0, 1.0]), np.array([0.5, -0.25])), (7, 9), spacing=(0.5, 2.0), origin=1.0
)


def exact(source, sign=1):
    """Return the lengths of ways along the axes, in closed form."""
    v = sign * (FIELD.nodes() - np.asarray(source))
    return np.abs(v) @ np.array([2.0, 1.0]) + v @ np.array([0.5, -0.25])


@pytest.mark.parametrize("method", ["axis_edges", AxisEdges()])
@pytest.mark.usefixtures("registered")
def test_a_method_of_ones_own(method):
    source = (2.0, 7.0)
    assert np.allclose(distance(FIELD, source, method), exact(source))
    assert np.allclose(distance(FIELD, source, method, reverse=True), exact(source, -1))
    walls = np.zeros((7, 9), bool)
    walls[:, 5] = True
    found = distance(FIELD, source, method, mask=~walls)
    assert np.allclose(found[:, :5], exact(source)[:, :5])
    assert np.isinf(found[:, 5:]).all()


@pytest.mark.usefixtures("registered")
def test_it_gets_problems_batches_options_and_gradients():
    field = FIELD.to(torch.float32)
    sources = torch.tensor([[[2.0, 7.0]], [[1.0, 1.0]]])
    found = distance(field, sources, "axis_edges", rounds=20)
    assert found.dtype == torch.float32
    assert found.shape == (2, 7, 9)
    assert torch.allclose(found[1].double(), torch.from_numpy(exact((1.0, 1.0))))
    M = field.M.double().requires_grad_()
    again = GridMetric(M, field.omega.double(), field.spacing, field.origin)
    (gradient,) = torch.autograd.grad(distance(again, (2.0, 7.0), "axis_edges")[2, 4], M)
    # One step of 2 along the second axis: dF = v v' / 2 |v|.
    assert torch.allclose(gradient[..., 1, 1].sum(), torch.tensor(1.0).double())


@pytest.mark.usefixtures("registered")
def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="full: expected False, because 'axis_edges' has no front"):
        distance(FIELD, (2.0, 7.0), "axis_edges", full=True)
    with pytest.raises(TypeError, match="order: method 'axis_edges' has no such option"):
        distance(FIELD, (2.0, 7.0), "axis_edges", order=2)
    with pytest.raises(ValueError, match="rounds: expected"):
        distance(FIELD, (2.0, 7.0), "axis_edges", rounds=0)
    with pytest.raises(TypeError, match="rounds: expected no options beside a AxisEdges"):
        distance(FIELD, (2.0, 7.0), AxisEdges(), rounds=3)
    with pytest.raises(ValueError, match="name: expected a new one, got 'graph'"):
        register_method("graph", AxisEdges)


@pytest.mark.unchecked
def test_only_methods_are_registered():
    with pytest.raises(TypeError, match="expected a subclass of DistanceMethod"):
        register_method("nothing", dict)
