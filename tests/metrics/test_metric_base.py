"""What a metric gets from its norm alone, and the door for norms of the user's own."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import as_numpy, assert_bounded, cases

from finslerconv.balls import radial, volume
from finslerconv.metrics import CallableMetric, Euclidean, FinslerMetric, Randers, Riemannian


class PNorm(FinslerMetric):
    """All that a subclass must give is its norm."""

    def __init__(self, exponent):
        self.exponent = exponent

    def norm(self, v):
        if np.isinf(self.exponent):
            return np.abs(v).max(-1)
        return (np.abs(v) ** self.exponent).sum(-1) ** (1 / self.exponent)


class PNorm3D(PNorm):
    @property
    def dim(self):
        return 3


def q_norm(p, exponent):
    conjugate = {1: np.inf, np.inf: 1}.get(exponent) or exponent / (exponent - 1)
    return np.linalg.norm(p, ord=conjugate, axis=-1)


@pytest.mark.parametrize("exponent", [1, 1.5, 2, 4, np.inf])
def test_dual_of_a_p_norm_is_the_q_norm_in_the_plane(exponent):
    metric = PNorm(exponent)
    p = np.random.default_rng(0).standard_normal((200, 2))
    p[:4] = [[1, 0], [0, -1], [1, 1], [-1, 1]]  # normals of edges, and into corners
    np.testing.assert_allclose(metric.dual_norm(p), q_norm(p, exponent), rtol=1e-10)
    assert metric.dual_norm(np.zeros(2)) == 0
    np.testing.assert_allclose(metric.dual().dual_norm(p[:20]), metric.norm(p[:20]), rtol=1e-10)


@pytest.mark.parametrize("exponent", [1.5, 2, 3])
def test_dual_of_a_p_norm_is_the_q_norm_in_space(exponent):
    p = np.random.default_rng(1).standard_normal((100, 3))
    # The second derivative of the 1.5-norm is infinite on the coordinate planes, near which
    # Newton's method slows down.
    tolerance = 1e-9 if exponent < 2 else 1e-12
    np.testing.assert_allclose(PNorm3D(exponent).dual_norm(p), q_norm(p, exponent), rtol=tolerance)


def test_dual_norm_of_a_polytope_in_space_is_right_or_refused():
    """Newton's method wants a smooth norm: without one it must not return a wrong number."""
    p = np.random.default_rng(2).standard_normal((20, 3))
    for exponent in (1, np.inf):
        for q in p:
            try:
                found = PNorm3D(exponent).dual_norm(q)
            except RuntimeError:
                continue
            assert found == pytest.approx(q_norm(q, exponent), rel=1e-3)


@pytest.mark.parametrize("metric", [PNorm(1), PNorm(1.5), PNorm(4), PNorm(np.inf), PNorm3D(3)])
def test_everything_else_follows_from_the_norm(metric):
    metric.validate()
    assert metric.batch_shape == ()
    v = np.random.default_rng(0).standard_normal((50, metric.dim))
    np.testing.assert_allclose(metric.norm(metric.indicatrix(v)), 1, rtol=1e-15 * 4)
    g = v / np.linalg.norm(v, axis=-1, keepdims=True)
    np.testing.assert_allclose(metric.norm(0.5 * metric.unit_ball(g)), 0.5, rtol=1e-14)
    np.testing.assert_allclose(metric.norm(metric.unit_ball(0.5 * g)), 0.5, rtol=1e-14)
    assert (metric.unit_ball(0 * v) == 0).all()
    np.testing.assert_allclose(metric.energy(v), metric.norm(v) ** 2 / 2)
    assert metric.asymmetry_ratio() == 1
    np.testing.assert_array_equal(metric.reverse().norm(v), metric.norm(-v))
    np.testing.assert_allclose(metric.symmetrize().norm(v), metric.norm(v))
    assert (metric.contains(v) == (metric.norm(v) <= 1)).all()


def test_fundamental_tensor_of_a_quartic_norm():
    """Of (x^4 + y^4)^(1/4), whose energy's second derivatives are taken by hand."""
    x, y = 0.8, -0.5
    s = x**4 + y**4
    expected = np.array(
        [
            [3 * x**2 / s**0.5 - 2 * x**6 / s**1.5, -2 * x**3 * y**3 / s**1.5],
            [-2 * x**3 * y**3 / s**1.5, 3 * y**2 / s**0.5 - 2 * y**6 / s**1.5],
        ]
    )
    found = PNorm(4).fundamental_tensor(np.array([x, y]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"v: expected non-zero vectors, got zero at index \(1,\)"):
        PNorm(4).fundamental_tensor(np.array([[1.0, 0], [0, 0]]))


@pytest.mark.slow
@given(cases(dtypes=("float64",), batch=2))
@settings(max_examples=15)
def test_asymmetry_ratio_by_search_equals_the_closed_form(case):
    plain = CallableMetric(case.metric.norm, dim=case.dim, like=case.metric.M)
    ratio = as_numpy(plain.asymmetry_ratio()) / as_numpy(case.metric.asymmetry_ratio())
    # "To rounding in one and two dimensions, to about four digits above."
    assert_bounded(ratio - 1, case.bound(1) + (0 if case.dim <= 2 else 1e-4))


def test_a_field_in_a_callable():
    """The batch of the function broadcasts against the vectors from the right."""
    scale = np.array([1.0, 2.0, 4.0])
    metric = CallableMetric(lambda v: scale * np.sqrt((v**2).sum(-1)))
    assert metric.batch_shape == (3,)
    np.testing.assert_allclose(
        metric.norm(np.ones((5, 1, 2))), np.sqrt(2) * scale + np.zeros((5, 1))
    )
    np.testing.assert_allclose(metric.dual_norm(np.array([3.0, 4.0])), 5 / scale, rtol=1e-12)
    np.testing.assert_allclose(metric.asymmetry_ratio(), np.ones(3))
    np.testing.assert_allclose(volume(metric), np.pi / scale**2, rtol=1e-12)
    assert radial(metric, np.ones((7, 1, 2))).shape == (7, 3, 2)
    metric.validate()


def test_pickle_and_deepcopy():
    M, omega = np.array([[2.0, 0.3], [0.3, 1.0]]), np.array([0.4, -0.2])
    randers = Randers(M, omega)
    plain = CallableMetric(randers.norm)
    v = np.array([0.3, -1.2])
    metrics = [randers, Riemannian(M), Euclidean(), plain, PNorm(4)]
    metrics += [plain.dual(), plain.reverse(), plain.symmetrize(), PNorm(1.5).dual().reverse()]
    for metric in metrics:
        for again in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
            assert type(again) is type(metric)
            assert again.norm(v) == metric.norm(v)
    assert copy.deepcopy(randers).M is not randers.M


def test_repr():
    M = np.zeros((4, 3, 2, 2)) + np.eye(2)
    assert repr(Randers(M, np.zeros(2))) == "Randers(dim=2, batch_shape=(4, 3), dtype=float64)"
    assert repr(Riemannian(M)) == "Riemannian(dim=2, batch_shape=(4, 3), dtype=float64)"
    assert repr(Euclidean(3)) == "Euclidean(d=3)"
    assert repr(CallableMetric(abs, dim=3)) == "CallableMetric(<built-in function abs>, dim=3)"


@pytest.mark.slow
def test_a_million_points_in_one_pass():
    """A field of 10^6 Randers metrics, vector by vector, against one of them computed alone."""
    n = 1_000_000
    rng = np.random.default_rng(0)
    M = np.zeros((n, 2, 2))
    M[:, 0, 0], M[:, 1, 1], M[:, 0, 1] = (
        1 + rng.random((3, n)) * [[1], [1], [0.5]] - [[0], [0], [1]]
    )
    M[:, 1, 0] = M[:, 0, 1]
    omega = rng.uniform(-0.3, 0.3, (n, 2))
    v = rng.standard_normal((n, 2))
    metric = Randers(M, omega)
    F = metric.norm(v)
    assert F.shape == (n,)
    assert (F > 0).all()
    i = 123_456
    assert F[i] == pytest.approx(np.sqrt(v[i] @ M[i] @ v[i]) + omega[i] @ v[i], rel=1e-13)
    assert metric[i].norm(v[i]) == F[i]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda v: v[..., 0], r"expected a positive norm, which fails along \["),
        (lambda v: np.abs(v).sum(-1) - np.abs(v).max(-1) * 1.5, "expected a positive norm"),
        (lambda v: np.abs(v).sum(-1) * np.nan, r"expected a positive norm.* along \[1.0, 0.0\]"),
        (lambda v: (v**2).sum(-1), r"homogeneous norm, which fails along \[1.0, 0.0\]"),
        (lambda v: (np.abs(v) ** 0.5).sum(-1) ** 2, "expected a convex norm, which fails along"),
        (
            lambda v: np.sqrt((v**2).sum(-1)) + np.array([0.0, 0.0, 2.0]) * v[..., 1],
            r"expected a positive norm, which fails along \[.*\] at index \(2,\)",
        ),
    ],
)
def test_validation_names_the_first_direction_that_fails(function, message):
    with pytest.raises(ValueError, match="CallableMetric: .*" + message):
        CallableMetric(function).validate()


@pytest.mark.unchecked
def test_validation_sees_what_is_not_finite_away_from_the_sphere():
    def norm(v):
        size = np.abs(v).sum(-1)
        return np.where(size > 2, np.nan, size)

    with pytest.raises(ValueError, match="positively homogeneous"):
        CallableMetric(norm).validate()


@pytest.mark.unchecked
def test_wrong_arguments():
    with pytest.raises(ValueError, match="dim: expected a dimension of at least 1, got 0"):
        CallableMetric(abs, dim=0)
    with pytest.raises(ValueError, match="d: expected a dimension of at least 1, got -1"):
        Euclidean(-1)
    with pytest.raises(TypeError, match="abstract"):
        FinslerMetric()
    metric = PNorm(2)
    with pytest.raises(ValueError, match=r"u: expected non-zero vectors, got zero$"):
        metric.indicatrix(np.zeros(2))
    for call, name in (
        (metric.indicatrix, "u"),
        (metric.unit_ball, "points"),
        (metric.dual_norm, "p"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: expected vectors of 2 components"):
            call(np.ones(3))


def test_a_metric_says_whether_it_is_a_randers_metric():
    M, omega = np.array([[2.0, 0.3], [0.3, 1.0]]), np.array([0.4, -0.2])
    assert CallableMetric(lambda v: np.abs(v).max(-1)).randers_form() is None
    riemannian = Riemannian(M).randers_form()
    assert riemannian.M is M
    assert riemannian.omega is None
    np.testing.assert_array_equal(riemannian.with_omega()[1], [0.0, 0.0])
    np.testing.assert_array_equal(Euclidean(3).randers_form().M, np.eye(3))
    like = torch.zeros(1, dtype=torch.float32)
    assert Euclidean().randers_form(like).M.dtype == torch.float32
    metric = Randers(M, omega)
    assert metric.randers_form() == (M, omega)
    p = np.array([[1.0, 0.5], [-0.3, 0.8]])
    for each in (metric, Riemannian(M)):
        dual = Randers(*each.randers_form().dual().with_omega())
        np.testing.assert_allclose(dual.norm(p), each.dual_norm(p))
