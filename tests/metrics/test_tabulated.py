"""Tabulated norms: their samples, convexity, smoothness, order, derivatives, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finslerconv._tables import has_corners
from finslerconv.metrics import (
    AsymmetricQuadratic,
    CallableMetric,
    Euclidean,
    Matsumoto,
    PNorm,
    Polytope,
    Randers,
    Tabulated,
)


def around(n):
    angles = 2 * np.pi * np.arange(n) / n
    return np.stack((np.cos(angles), np.sin(angles)), -1)


@st.composite
def convex_samples(draw):
    """Return the support function of a random polygon or disc around 0 at n directions."""
    n = draw(st.integers(8, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = rng.standard_normal((draw(st.integers(3, 9)), 2)) * draw(st.floats(0.1, 3.0))
    radius = draw(st.sampled_from([0.05, 0.5, 2.0]))
    size = 3 * np.abs(corners @ around(n).T).max()
    return (corners @ around(n).T).max(0) + radius + size * draw(st.floats(0.4, 2.0))


@pytest.mark.slow
@settings(max_examples=60)
@given(convex_samples())
def test_every_convex_table_is_a_norm_that_has_its_samples(samples):
    metric = Tabulated(samples)
    n = len(samples)
    np.testing.assert_allclose(metric.norm(around(n)), samples, rtol=1e-13)
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((2, 4000, 2))
    whole = metric.norm(u) + metric.norm(w)
    assert (metric.norm(u) > 0).all()
    assert (metric.norm(u + w) <= whole * (1 + 1e-13)).all()
    # Nearby directions too, which meet in one cone or its neighbour.
    near = u + 0.05 * w
    assert (metric.norm((u + near) / 2) <= (metric.norm(u) + metric.norm(near)) / 2 + 1e-13).all()
    np.testing.assert_allclose(metric.norm(3 * u), 3 * metric.norm(u), rtol=1e-12)


def test_the_derivative_is_continuous():
    """On both sides of every sampled direction, for samples of a smooth norm."""
    n = 24
    samples = Tabulated.of(Matsumoto(np.eye(2), np.array([0.2, 0.3])), n).samples
    metric = Tabulated(torch.from_numpy(samples))
    slopes = []
    for side in (-1e-9, 1e-9):
        turn = 2 * np.pi * np.arange(n) / n + side
        v = torch.from_numpy(np.stack((np.cos(turn), np.sin(turn)), -1)).requires_grad_()
        slopes.append(torch.autograd.grad(metric.norm(v).sum(), v)[0])
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "metric",
    [Euclidean(), Randers(np.diag([1.0, 2.0]), np.array([0.3, 0.4])),
     Matsumoto(np.eye(2), np.array([0.2, 0.3]))],
    ids=["euclidean", "randers", "matsumoto"],
)  # fmt: skip
def test_smooth_norms_are_met_to_the_fourth_order(metric):
    v = around(3001)
    errors = [np.abs(Tabulated.of(metric, n).norm(v) / metric.norm(v) - 1).max() for n in (48, 96)]
    assert np.log2(errors[0] / errors[1]) > 3.6
    if isinstance(metric, Euclidean):
        assert np.abs(Tabulated.of(metric, 64).norm(v) - 1).max() < 8e-7


def test_corners_among_the_directions_are_kept():
    taxicab = CallableMetric(lambda v: np.abs(v).sum(-1))
    v = np.random.default_rng(0).standard_normal((500, 2))
    np.testing.assert_allclose(Tabulated.of(taxicab, 16).norm(v), np.abs(v).sum(-1), rtol=1e-13)


@pytest.mark.slow
def test_batches_index_and_gradients():
    rng = np.random.default_rng(2)
    samples = torch.from_numpy(1 + 0.02 * rng.random((4, 5, 17))).requires_grad_()
    metric = Tabulated(samples)
    assert metric.batch_shape == (4, 5)
    v = torch.from_numpy(rng.standard_normal((3, 1, 1, 2))).requires_grad_()
    norms = metric.norm(v)
    assert norms.shape == (3, 4, 5)
    torch.testing.assert_close(metric[2, 3].norm(v[:, 0, 0]), norms[:, 2, 3])
    assert torch.autograd.gradcheck(lambda s, v: Tabulated(s, validate=False).norm(v), (samples, v))
    zero = Tabulated(samples).norm(torch.zeros(2, dtype=torch.float64))
    assert (zero == 0).all()
    half = Tabulated(samples.detach().float())
    assert half.norm(v.detach().float()).dtype == torch.float32


def test_a_table_of_a_metric_carries_its_gradients():
    form = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    metric = AsymmetricQuadratic(torch.eye(2, dtype=torch.float64), form)
    u = torch.from_numpy(around(16))[3]
    got = torch.autograd.grad(Tabulated.of(metric, 16).norm(u), form)[0]
    expected = torch.autograd.grad(metric.norm(u), form)[0]
    torch.testing.assert_close(got, expected)


@pytest.mark.unchecked
def test_what_is_no_norm_is_refused():
    with pytest.raises(ValueError, match=r"at least 8 directions"):
        Tabulated(np.ones(7))
    with pytest.raises(ValueError, match=r"finite and positive, which fails at direction 2 of 9"):
        Tabulated(np.array([1.0, 1, -1, 1, 1, 1, 1, 1, 1]))
    dented = np.ones((2, 16))
    dented[1, 5] = 1.2
    with pytest.raises(
        ValueError, match=r"convex, which fails at direction 5 of 16 at index \(1,\)"
    ):
        Tabulated(dented)
    with pytest.raises(ValueError, match="in between"):
        Tabulated(1 + 1.05 * np.cos(2 * np.pi * (np.arange(8) + 0.5) / 8))
    with pytest.raises(ValueError, match="plane"):
        Tabulated.of(Euclidean(3))
    with pytest.raises(TypeError, match="floating"):
        Tabulated(np.ones(8, int))


@pytest.mark.parametrize("n", [16, 64, 256])
def test_tables_tell_corners_from_what_is_smooth(n):
    square = Tabulated.of(CallableMetric(lambda v: np.abs(v).max(-1)), n).samples
    triangle = Polytope.from_facets(np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]]))
    assert has_corners(square)
    assert has_corners(Tabulated.of(triangle, n).samples)
    round_ones = [
        Euclidean(),
        Randers(np.diag([1.0, 0.5]), np.array([0.3, 0.2])),
        PNorm(3.0, np.array([1.0, 1.0])),
    ]
    for metric in round_ones:
        assert not has_corners(Tabulated.of(metric, n).samples)
