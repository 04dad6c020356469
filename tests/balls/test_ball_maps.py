"""The maps from the Euclidean unit ball into a metric's: radial and affine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import as_kind, as_numpy, assert_bounded, cases

from finslerconv.balls import affine, radial
from finslerconv.metrics import CallableMetric, Euclidean, Riemannian


def in_unit_ball(case, n, radius=1.0, salt=0):
    """Return points with ``|g| <= radius``, the first of them on the sphere, rounded inwards."""
    rng = np.random.default_rng((case.seed, 7, salt))
    g = rng.standard_normal((n, len(case.lam), case.dim))
    g /= np.linalg.norm(g, axis=-1, keepdims=True)
    g[n // 2 :] *= rng.random((n - n // 2, len(case.lam), 1))
    return case.rounded(radius * (1 - 2 * case.dim * case.eps) * g)


@pytest.mark.slow
@given(cases(), st.floats(0.01, 1.0))
def test_radial_carries_smaller_balls_into_smaller_balls(case, s):
    g = in_unit_ball(case, 8, s)
    certain = case.norm_error(g) < 0.1 * case.exact.norm(g)
    v = as_numpy(radial(case.metric, case.array(g)))
    F = case.exact.norm(v)
    # v = g |g| / F(g): the relative error of F(v) is thrice that of F(g), and F(v) = |g|.
    error = 4 * case.norm_error(g) / case.exact.norm(g)
    assert (F / s <= 1 + error)[certain].all()
    length = np.linalg.norm(g, axis=-1)
    assert (np.abs(F - length) <= length * error)[certain].all()
    # Rays keep their directions.
    assert (
        np.abs(v * length[..., None] - g * np.linalg.norm(v, axis=-1, keepdims=True))
        <= 8 * case.dim * case.eps * np.linalg.norm(v, axis=-1, keepdims=True)
    ).all()


@pytest.mark.slow
@given(cases())
def test_affine_carries_the_ball_into_the_ball(case):
    v = as_numpy(affine(case.metric, case.array(in_unit_ball(case, 8))))
    assert_bounded(np.maximum(case.exact.norm(v) - 1, 0), case.bound(2))


@pytest.mark.slow
@given(cases())
def test_affine_carries_the_sphere_onto_the_indicatrix(case):
    g = in_unit_ball(case, 8)[:4]
    v = as_numpy(affine(case.metric, case.array(g)))
    assert_bounded(case.exact.norm(v) - 1, case.bound(2))


@pytest.mark.slow
@given(cases(dtypes=("float64",)))
def test_affine_has_the_constant_jacobian_of_its_docstring(case):
    """An affine map is known from its values at the origin and on a basis."""
    d = case.dim
    frame = np.concatenate((np.zeros((1, d)), np.eye(d)))[:, None, :]
    images = as_numpy(affine(case.metric, case.array(frame)))
    jacobian = (images[1:] - images[:1]).transpose(1, 2, 0)
    wind = -np.linalg.solve(case.M, case.omega[..., None])[..., 0] / case.lam[:, None]
    scale = np.linalg.norm(jacobian, axis=(-2, -1))
    assert_bounded(np.linalg.norm(images[0] - wind, axis=-1) / scale, case.bound(1))
    assert_bounded(
        np.linalg.norm(jacobian - jacobian.swapaxes(-1, -2), axis=(-2, -1)) / scale, case.bound(1)
    )
    expected = case.lam ** (-(d + 1) / 2) * np.linalg.det(case.M) ** -0.5
    # The images hold W, larger than the short axes; their differences lose that much.
    assert_bounded(np.linalg.det(jacobian) / expected - 1, case.bound(2))
    g = in_unit_ball(case, 4)
    direct = as_numpy(affine(case.metric, case.array(g)))
    linear = images[0] + np.einsum("bij,nbj->nbi", jacobian, g)
    assert_bounded(np.linalg.norm(direct - linear, axis=-1) / scale, case.bound(1))


@pytest.mark.slow
@given(cases())
def test_affine_of_a_riemannian_metric_is_its_inverse_square_root(case):
    metric = case.metric.symmetrize()
    g = in_unit_ball(case, 8)
    v = as_numpy(affine(metric, case.array(g)))
    values, axes = np.linalg.eigh(case.M)
    expected = np.einsum("bij,bj,bkj,nbk->nbi", axes, values**-0.5, axes, g)
    size = values[:, 0] ** -0.5
    assert_bounded(np.linalg.norm(v - expected, axis=-1) / size, case.bound(0))


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_both_maps_are_the_identity_for_the_euclidean_metric(dim, kind, dtype):
    g = as_kind(np.random.default_rng(dim).uniform(-1, 1, (50, dim)), kind, dtype)
    for metric in (Euclidean(dim), Riemannian(as_kind(np.eye(dim), kind, dtype))):
        assert (as_numpy(radial(metric, g)) == as_numpy(g)).all()
        # The root of the identity is computed in more than two dimensions: to a few roundings.
        assert np.abs(as_numpy(affine(metric, g)) - as_numpy(g)).max() <= 8 * np.finfo(dtype).eps


def test_radial_serves_any_metric_and_affine_refuses_it():
    metric = CallableMetric(lambda v: np.abs(v).max(-1))
    g = np.array([[0.0, 0.0], [0.6, 0.8], [-0.3, 0.1]])
    expected = [[0, 0], [0.75, 1.0], [-np.sqrt(0.1), np.sqrt(0.1) / 3]]
    np.testing.assert_allclose(radial(metric, g), expected, atol=1e-15)
    with pytest.raises(
        TypeError, match=r"metric: the affine map is for.*CallableMetric use the rad"
    ):
        affine(metric, g)
    assert (radial(metric, np.zeros((0, 2))).shape) == (0, 2)


def test_vectors_too_small_to_square_stay_finite():
    """|g|^2 may underflow in the metric's own scale before it does in the Euclidean one."""
    metric = Riemannian(1e-8 * np.eye(2))
    assert (radial(metric, np.array([1e-160, 0.0])) < 1e-150).all()
