"""The identities of Randers metrics, for all of them: norm axioms, duality, Zermelo's data."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, as_numpy, assert_bounded, cases, relative

from finslerconv.metrics import CallableMetric, Randers, Riemannian


def norm(case: Case, v: np.ndarray) -> np.ndarray:
    return as_numpy(case.metric.norm(case.array(v)))


@given(cases())
def test_norm_is_that_of_the_rounded_numbers(case):
    v = case.vectors(8)
    error = np.abs(norm(case, v) - case.exact.norm(v))
    assert (error <= case.norm_error(v)).all()


@given(cases())
def test_norm_is_positive_except_at_zero(case):
    v = case.vectors(8)
    certain = case.norm_error(v) < case.exact.norm(v)
    assert (norm(case, v)[certain] > 0).all()
    assert (norm(case, 0 * v) == 0).all()


@given(cases(), st.integers(-8, 8))
def test_norm_is_exactly_homogeneous_for_powers_of_two(case, exponent):
    v = case.vectors(8)
    assert (norm(case, 2.0**exponent * v) == 2.0**exponent * norm(case, v)).all()


@given(cases(), st.floats(1e-3, 1e3))
def test_norm_is_homogeneous(case, factor):
    v = case.vectors(8)
    w = case.rounded(factor * v)
    # Rounding factor * v moves it by no more than one more rounding of each term would.
    error = np.abs(norm(case, w) - factor * norm(case, v))
    assert (error <= 2 * case.norm_error(w) + factor * case.norm_error(v)).all()


@given(cases())
def test_triangle_inequality(case):
    u, v = case.vectors(8, 0), case.vectors(8, 1)
    w = case.rounded(u + v)
    slack = case.norm_error(u) + case.norm_error(v) + 2 * case.norm_error(w)
    assert (norm(case, w) <= norm(case, u) + norm(case, v) + slack).all()


@given(cases(), st.floats(0, 1))
def test_ball_is_convex(case, t):
    """Chords of the unit ball stay in it."""
    first, second = (
        v / case.exact.norm(v)[..., None] for v in (case.vectors(8), case.vectors(8, 1))
    )
    v = case.rounded((1 - t) * first + t * second)
    slack = case.norm_error(first) + case.norm_error(second) + 2 * case.norm_error(v)
    assert (norm(case, v) <= 1 + slack).all()


@given(cases())
def test_indicatrix_has_norm_one(case):
    v = case.vectors(8)
    certain = case.norm_error(v) < 0.1 * case.exact.norm(v)
    x = as_numpy(case.metric.indicatrix(case.array(v)))
    error = 3 * case.norm_error(v) / case.exact.norm(v)
    assert (np.abs(case.exact.norm(x) - 1)[certain] <= error[certain]).all()


@given(cases())
def test_reverse_and_symmetrize(case):
    v = case.array(case.vectors(8))
    metric = case.metric
    assert (as_numpy(metric.reverse().norm(v)) == as_numpy(metric.norm(-v))).all()
    assert (as_numpy(metric.reverse().reverse().norm(v)) == as_numpy(metric.norm(v))).all()
    mean = as_numpy(metric.norm(v) + metric.norm(-v)) / 2
    symmetric = as_numpy(metric.symmetrize().norm(v))
    # (alpha + beta) + (alpha - beta): three roundings, each of a number below 2 alpha.
    assert (np.abs(mean - symmetric) <= 4 * case.eps * symmetric).all()
    assert isinstance(metric.symmetrize(), Riemannian)


@given(cases())
def test_energy_and_contains(case):
    v = case.array(case.vectors(8))
    F = case.metric.norm(v)
    assert (as_numpy(case.metric.energy(v)) == as_numpy(F * F / 2)).all()
    assert (np.asarray(case.metric.contains(v, 0.5)) == (as_numpy(F) <= 0.5)).all()


@given(cases())
def test_duality_inequality_with_equality_at_the_support_point(case):
    p, v = case.vectors(8, 0), case.vectors(8, 1)
    F, dual = case.exact.norm(v), as_numpy(case.metric.dual_norm(case.array(p)))
    pairing = (p * v).sum(-1)
    assert_bounded(np.maximum(pairing / (dual * F) - 1, 0), case.bound(1))
    # The boundary point with outer normal p, from the ellipse (v - W)' h (v - W) = 1.
    h, W = case.exact.zermelo()
    normal = np.linalg.solve(h, p[..., None])[..., 0]
    support = W + normal / np.sqrt((p * normal).sum(-1))[..., None]
    assert_bounded((p * support).sum(-1) / dual - case.exact.norm(support), case.bound(2))


@given(cases())
def test_dual_norm_is_the_norm_of_the_dual(case):
    p = case.array(case.vectors(8))
    dual_norm = as_numpy(case.metric.dual_norm(p))
    assert_bounded(as_numpy(case.metric.dual().norm(p)) / dual_norm - 1, case.bound(2))


@given(cases())
def test_riemannian_is_randers_without_drift(case):
    metric, v = case.metric.symmetrize(), case.array(case.vectors(8))
    still = Randers(metric.M, 0 * case.metric.omega, validate=False)
    assert (as_numpy(metric.norm(v)) == as_numpy(still.norm(v))).all()
    values, axes = np.linalg.eigh(case.M)
    turned = np.einsum("bij,nbi->nbj", axes, as_numpy(v)) / np.sqrt(values)
    closed = np.linalg.norm(turned, axis=-1)
    for other in (metric.dual_norm(v), metric.dual().norm(v), still.dual_norm(v)):
        assert_bounded(as_numpy(other) / closed - 1, case.bound(0))


@given(cases())
def test_dual_of_dual_is_the_metric(case):
    again = case.metric.dual().dual()
    assert_bounded(relative(again.M, case.metric.M, axes=2), case.bound(2))
    assert_bounded(relative(again.omega, case.metric.omega, axes=1), case.bound(2))
    riemannian = case.metric.symmetrize()
    again = riemannian.dual().dual()
    assert_bounded(relative(again.M, riemannian.M, axes=2), case.bound(0))


@given(cases(dtypes=("float64",), batch=2))
@settings(max_examples=20)
def test_closed_form_dual_equals_the_dual_by_optimisation(case):
    p = case.array(case.vectors(4))
    plain = CallableMetric(case.metric.norm, dim=case.dim, like=case.metric.M)
    closed = as_numpy(case.metric.dual_norm(p))
    assert_bounded(as_numpy(plain.dual_norm(p)) / closed - 1, case.bound(1))


@given(cases())
def test_zermelo_round_trip_from_the_metric(case):
    again = Randers.from_zermelo(*case.metric.zermelo(), validate=False)
    assert_bounded(relative(again.M, case.metric.M, axes=2), case.bound(2))
    assert_bounded(relative(again.omega, case.metric.omega, axes=1), case.bound(2))


@given(cases())
def test_zermelo_round_trip_from_the_ellipse(case):
    h = case.exact.M
    W = case.rounded(np.linalg.solve(h, case.exact.omega[..., None])[..., 0])
    mu = 1 - np.einsum("bi,bij,bj->b", W, h, W)
    possible = mu > 0  # rounding may move the origin out of the ellipse
    h, W, mu = h[possible], W[possible], mu[possible]
    sea, wind = Randers.from_zermelo(case.array(h), case.array(W), validate=False).zermelo()
    # M = h / mu + ... is 1 / mu times worse conditioned than h.
    bound = 4 * (case.dim + 1) * case.eps * case.condition[possible] / mu**2
    assert_bounded(relative(sea, h, axes=2), bound)
    assert_bounded(relative(wind, W, axes=1), bound)


@given(cases())
def test_indicatrix_is_the_ellipse_of_the_zermelo_data(case):
    h, W = (as_numpy(x) for x in case.metric.zermelo())
    v = case.vectors(8)
    x = v / case.exact.norm(v)[..., None] - W
    assert_bounded(np.einsum("...i,...ij,...j->...", x, h, x) - 1, case.bound(2))


@given(cases())
def test_asymmetry_ratio_is_attained_along_the_drift(case):
    ratio = as_numpy(case.metric.asymmetry_ratio())
    v = case.vectors(32)
    sampled = case.exact.norm(-v) / case.exact.norm(v)
    assert_bounded(np.maximum(sampled / ratio - 1, 0), case.bound(1))
    direction = -np.linalg.solve(case.exact.M, case.exact.omega[..., None])[..., 0]
    drifting = (direction != 0).any(-1)
    opposite, along = (case.exact.norm(v)[drifting] for v in (-direction, direction))
    assert_bounded(opposite / along / ratio[drifting] - 1, case.bound(1)[drifting])
    assert_bounded(as_numpy(case.metric.omega_norm()) ** 2 - (1 - case.lam), case.bound(0))


@given(cases())
def test_fundamental_tensor_reproduces_norm_and_dual(case):
    """g_v(v, v) = F(v)^2, and g_v v is the covector whose dual norm is F(v), attained at v."""
    v = case.vectors(8)
    g = as_numpy(case.metric.fundamental_tensor(case.array(v)))
    assert (
        np.abs(g - g.swapaxes(-1, -2)) <= 8 * case.eps * np.abs(g).max((-2, -1))[..., None, None]
    ).all()
    F = case.exact.norm(v)
    assert_bounded(np.einsum("...i,...ij,...j->...", v, g, v) / F**2 - 1, case.bound(2))
    if case.dtype == "float64":
        assert_bounded(
            case.exact.dual_norm(np.einsum("...ij,...j->...i", g, v)) / F - 1, case.bound(2)
        )
        assert (np.linalg.eigvalsh(g)[..., 0] > 0).all()


@given(cases(dtypes=("float64",), max_condition=10.0))
@settings(max_examples=30)
def test_fundamental_tensor_equals_the_finite_differences(case):
    v = case.array(case.vectors(4))
    plain = CallableMetric(case.metric.norm, dim=case.dim, like=case.metric.M)
    closed = case.metric.fundamental_tensor(v)
    # Second differences of step h = eps^(1/4): h^2 = 1.5e-8 times a fourth derivative in units of
    # the vector, which grows with the distortion of the ball.
    distortion = case.condition**2 / case.lam**2
    assert_bounded(relative(plain.fundamental_tensor(v), closed, axes=2), 1e-7 * distortion)


class Truth:
    """Every closed form of one metric in arithmetic of 50 digits."""

    def __init__(self, M: np.ndarray, omega: np.ndarray) -> None:
        self.M, self.omega = mpmath.matrix(M.tolist()), mpmath.matrix(omega.tolist())
        self.M_inverse = self.M**-1
        self.a = self.M_inverse * self.omega
        self.lam = 1 - (self.omega.T * self.a)[0]

    def dual_norm(self, p: np.ndarray) -> mpmath.mpf:
        """Return max p(v) over the ellipse (v - W)' h (v - W) <= 1."""
        p = mpmath.matrix(p.tolist())
        h = self.lam * (self.M - self.omega * self.omega.T)
        return (p.T * (-self.a / self.lam))[0] + mpmath.sqrt((p.T * (h**-1) * p)[0])


def array(x: mpmath.matrix) -> np.ndarray:
    return np.array(x.tolist(), dtype=np.float64).squeeze(-1 if x.cols == 1 else ())


@pytest.mark.slow
@given(cases(batch=1))
def test_closed_forms_against_50_digits(case):
    with mpmath.workdps(50):
        truth = Truth(case.exact.M[0], case.exact.omega[0])
        dual = case.metric.dual()
        h = truth.lam * (truth.M - truth.omega * truth.omega.T)
        matrix = truth.M_inverse / truth.lam + truth.a * truth.a.T / truth.lam**2
        p = case.vectors(4)
        dual_norm = np.array([[float(truth.dual_norm(q[0]))] for q in p])
        h, matrix, wind = array(h), array(matrix), array(-truth.a / truth.lam)
        wind = wind.reshape(case.dim)
        h, matrix = h.reshape(case.dim, case.dim), matrix.reshape(case.dim, case.dim)
    assert_bounded(as_numpy(case.metric.dual_norm(case.array(p))) / dual_norm - 1, case.bound(1))
    assert_bounded(relative(dual.M[0], matrix, axes=2), case.bound(1))
    assert_bounded(relative(dual.omega[0], wind, axes=1), case.bound(1))
    sea = case.metric.zermelo()
    assert_bounded(relative(sea.h[0], h, axes=2), case.bound(1))
    assert_bounded(relative(sea.W[0], wind, axes=1), case.bound(1))


@pytest.mark.slow
@given(cases())
def test_valid_metrics_are_accepted_and_never_give_nan(case):
    metric = case.metric
    # Closer to the edge the validation, which rounds as well, may refuse what is just a metric.
    if (case.bound(1) < 0.1).all():
        metric.validate()
    v = case.vectors(4)
    certain = (case.norm_error(v) < 0.1 * case.exact.norm(v)).all(-1)
    v = case.array(v[certain])
    for x in (metric.norm(v), metric.dual_norm(v), metric.indicatrix(v), metric.unit_ball(v)):
        assert np.isfinite(as_numpy(x)).all()


@given(cases(dtypes=("float64",)))
@settings(max_examples=30)
def test_sampled_validation_accepts_every_randers_norm(case):
    CallableMetric(case.metric.norm, dim=case.dim, like=case.metric.M).validate()
