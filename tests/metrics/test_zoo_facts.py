"""What is known of the single metrics, against their sources and independent constructions."""

import numpy as np
import pytest
import torch

from finslerconv.balls import volume
from finslerconv.geodesics import FunctionMetric, exponential
from finslerconv.metrics import (
    TTI,
    AlphaBeta,
    AsymmetricQuadratic,
    CallableMetric,
    Euclidean,
    FinslerMetric,
    Funk,
    Hilbert,
    Kropina,
    Matsumoto,
    Maximum,
    Navigation,
    PNorm,
    Polytope,
    PulledBack,
    Randers,
    Riemannian,
    Scaled,
    Sum,
)

M = np.array([[1.5, 0.4], [0.4, 0.8]])
OMEGA = np.array([0.3, -0.2])
SQUARE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def circle(n=400):
    angles = 2 * np.pi * (np.arange(n) + 0.5) / n
    return np.stack((np.cos(angles), np.sin(angles)), axis=-1)


# (alpha, beta)-metrics


@pytest.mark.parametrize("d", [1, 2, 3])
def test_alpha_beta_of_one_plus_s_is_randers(d):
    rng = np.random.default_rng(d)
    A = rng.standard_normal((d, d)) / 2
    matrix, form = A @ A.T + np.eye(d), 0.5 * rng.standard_normal(d) / d
    v = rng.standard_normal((50, d))
    ours, randers = AlphaBeta(lambda s: 1 + s, matrix, form), Randers(matrix, form)
    for name in ("norm", "dual_norm", "indicatrix", "unit_ball"):
        np.testing.assert_allclose(getattr(ours, name)(v), getattr(randers, name)(v), rtol=1e-12)
    np.testing.assert_allclose(
        AlphaBeta(lambda s: 1 / (1 - s), matrix, form / 2).norm(v),
        Matsumoto(matrix, form / 2).norm(v),
        rtol=1e-14,
    )


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("phi", "good", "bad", "where"),
    [
        # phi - s phi' + (b^2 - s^2) phi'' of 1 + s^2 is 1 + 2 b^2 - 3 s^2: least at s = b.
        (lambda s: 1 + s**2, 0.99, 1.01, r"s = 1\.0"),
        # Of 1 - s^2 it is 1 - 2 b^2 + 3 s^2: least at s = 0.
        (lambda s: 1 - s**2, 0.7, 0.715, r"s = -?0\.0"),
        # Of (1 + s)^2 it is 1 + 2 b^2 - 3 s^2.
        (lambda s: (1 + s) ** 2, 0.99, 1.0, r"s = (-1|1|-0\.99)"),
        (lambda s: 1 / (1 - s), 0.49, 0.51, r"s = 0\.51"),
    ],
)
@pytest.mark.parametrize("d", [2, 3])
def test_alpha_beta_is_checked_by_its_condition(phi, good, bad, where, d):
    direction = np.eye(d)[0]
    metric = AlphaBeta(phi, np.eye(d), good * direction)
    FinslerMetric.validate(metric)
    with pytest.raises(
        ValueError, match=rf"phi: expected phi.*> 0 for .* fails at {where}.*\(1,\)"
    ):
        AlphaBeta(phi, np.eye(d), np.stack((0.4 * direction, bad * direction)))
    AlphaBeta(phi, np.eye(1), np.array([0.5 * bad]))


def test_on_the_line_only_positivity_counts():
    assert AlphaBeta(lambda s: 1 / (1 - s), np.eye(1), np.array([0.8])).norm(
        np.ones(1)
    ) == pytest.approx(5)
    with pytest.raises(ValueError, match=r"phi: expected phi\(s\) > 0 for .* s = -1.1"):
        AlphaBeta(lambda s: 1 + s, np.eye(1), np.array([1.1]))


def test_matsumoto_is_the_slope_of_a_mountain():
    """The construction of the paper, in space.

    Who walks on the slope gets in unit time to a circle of radius ``speed``, which gravity moves
    straight down by its part in the plane; of that the walker keeps what is along the way, so that
    the rim is the foot of the perpendicular from the origin to the moved circle's tangents.
    """
    speed, pull, gradient = 1.3, 0.7, np.array([0.5, -0.8])
    plane = np.linalg.qr(np.array([[1.0, 0.0, gradient[0]], [0.0, 1.0, gradient[1]]]).T)[0]
    gravity = plane @ plane.T @ np.array([0.0, 0.0, -pull])
    moved = speed * circle(4000) @ plane.T + gravity
    v = np.random.default_rng(0).standard_normal((20, 2))
    way = np.concatenate((v, v @ gradient[:, None]), axis=-1)  # on the slope
    length = np.linalg.norm(way, axis=-1)
    advance = (moved @ (way / length[:, None]).T).max(0)
    metric = Matsumoto.from_slope(gradient, speed, pull)
    np.testing.assert_allclose(metric.norm(v), length / advance, rtol=1e-6)


def test_matsumoto_is_the_published_formula():
    """``alpha^2 / (v alpha - w beta)`` on the graph of a height, alpha its length, beta = df."""
    p, q, speed, w = 0.4, -0.3, 2.0, 0.8
    x, y = np.random.default_rng(1).standard_normal((2, 20))
    alpha = np.sqrt((1 + p**2) * x**2 + 2 * p * q * x * y + (1 + q**2) * y**2)
    expected = alpha**2 / (speed * alpha - w * (p * x + q * y))
    metric = Matsumoto.from_slope(np.array([p, q]), speed, w)
    np.testing.assert_allclose(metric.norm(np.stack((x, y), -1)), expected, rtol=1e-13)
    assert metric.norm(np.array([p, q])) > metric.norm(-np.array([p, q]))  # up takes longer
    sine = np.hypot(p, q) / np.sqrt(1 + p**2 + q**2)
    assert metric.omega_norm() == pytest.approx(w / speed * sine)


@pytest.mark.unchecked
def test_the_limacon_is_convex_up_to_one_half():
    b, t = 0.4, np.linspace(0, 2 * np.pi, 50)
    rim = Matsumoto(np.eye(2), np.array([b, 0.0])).indicatrix(np.stack((np.cos(t), np.sin(t)), -1))
    np.testing.assert_allclose(np.hypot(*rim.T), 1 - b * np.cos(t), rtol=1e-13)
    FinslerMetric.validate(Matsumoto(np.eye(2), np.array([0.499, 0.0])))
    beyond = Matsumoto(np.eye(2), np.array([0.6, 0.0]), validate=False)
    with pytest.raises(ValueError, match="expected a convex norm"):
        FinslerMetric.validate(beyond)
    with pytest.raises(ValueError, match=r"omega: expected .* < 0.5, got 0.6 at index \(1,\)"):
        Matsumoto(np.eye(2), np.array([[0.1, 0.2], [0.0, -0.6]]))
    with pytest.raises(ValueError, match=r"omega: expected .* < 0.5"):
        Matsumoto.from_slope(np.array([5.0, 0.0]), speed=1.0, pull=0.6)


def test_kropina_is_navigation_in_a_wind_as_strong_as_the_boat():
    metric = Kropina(M, OMEGA)
    centre = np.linalg.solve(M, OMEGA) / 2
    h = M / (centre @ M @ centre)  # of radius 1 around the centre, through the origin
    rim = centre + circle() @ np.linalg.inv(np.linalg.cholesky(h))
    np.testing.assert_allclose(metric.norm(rim), 1, rtol=1e-10)
    p = np.random.default_rng(0).standard_normal((20, 2))
    np.testing.assert_allclose(metric.dual_norm(p), (p @ rim.T).max(-1), rtol=1e-3, atol=1e-3)
    near = Randers.from_zermelo(h, (1 - 1e-5) * centre)
    v = rim[rim @ OMEGA > 0.05]
    np.testing.assert_allclose(metric.norm(v), near.norm(v), rtol=1e-3)
    np.testing.assert_allclose(metric.dual_norm(p), near.dual_norm(p), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(Kropina(2 * M, 2 * OMEGA).norm(rim), 1, rtol=1e-10)
    assert volume(metric) == pytest.approx(np.pi / np.sqrt(np.linalg.det(h)), rel=1e-3)


def test_kropina_outside_its_half_space():
    metric = Kropina(torch.eye(2), torch.tensor([0.0, 1.0]))
    v = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    assert metric.norm(v).tolist() == [np.inf, np.inf, 0.0, 2.0]
    assert metric.unit_ball(v).tolist()[:3] == [[0.0, 0.0]] * 3
    assert metric.indicatrix(v[:2]).tolist() == [[0.0, 0.0]] * 2
    (gradient,) = torch.autograd.grad(metric.unit_ball(v).sum() + metric.norm(v)[3], v)
    assert gradient.isfinite().all()
    assert metric.contains(v).tolist() == [False, False, True, False]
    assert metric.reverse().norm(v).tolist() == [1.0, np.inf, 0.0, np.inf]
    assert metric.asymmetry_ratio() == np.inf
    p = torch.tensor([[0.3, 0.4]])
    torch.testing.assert_close(metric.legendre(metric.legendre_inverse(p)), p)
    with pytest.raises(TypeError, match="has no way back"):
        metric.symmetrize()
    with pytest.raises(ValueError, match=r"omega: expected \|omega\|.* > 0, got 0 at index \(1,\)"):
        Kropina(np.eye(2), np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_asymmetric_quadratic_is_two_half_ellipses():
    omega = np.array([1.5, -0.8])
    metric = AsymmetricQuadratic(M, omega)
    v = circle()
    ahead = v @ omega > 0
    np.testing.assert_allclose(
        metric.norm(v)[ahead], Riemannian(M + np.outer(omega, omega)).norm(v)[ahead], rtol=1e-13
    )
    np.testing.assert_allclose(metric.norm(v)[~ahead], Riemannian(M).norm(v)[~ahead], rtol=1e-13)
    # Legendre: the derivatives of the energy have the same length.
    x = torch.tensor(v, requires_grad=True)
    tensors = AsymmetricQuadratic(torch.tensor(M), torch.tensor(omega))
    (p,) = torch.autograd.grad(tensors.energy(x).sum(), x)
    torch.testing.assert_close(tensors.dual_norm(p), tensors.norm(x).detach())
    g = tensors.fundamental_tensor(torch.tensor(v))
    torch.testing.assert_close(torch.einsum("nij,nj->ni", g, torch.tensor(v)), p)
    # A very long one-form forbids to go along it.
    forbidden = AsymmetricQuadratic(np.eye(2), np.array([1e8, 0.0]))
    assert forbidden.norm(np.array([1.0, 0.0])) == pytest.approx(1e8)
    np.testing.assert_allclose(forbidden.dual_norm(np.array([[1.0, 0.0], [-1.0, 0.0]])), [1e-8, 1])
    with pytest.raises(ValueError, match=r"omega: expected finite one-forms, got nan at index"):
        AsymmetricQuadratic(np.eye(2), np.array([0.0, np.nan]))


# Norms


@pytest.mark.parametrize("d", [1, 2, 4])
def test_p_norms(d):
    exponents = np.array([1.0, 1.3, 2.0, 7.0, 1e4, np.inf])
    weights = np.random.default_rng(0).uniform(0.5, 2, d)
    v = np.random.default_rng(1).standard_normal((9, 1, d))
    v[0] = 0
    v[1, :, 0] = 0
    metric = PNorm(exponents, weights)
    dual = metric.dual()
    conjugate = [np.inf, 1.3 / 0.3, 2.0, 7 / 6, 1e4 / (1e4 - 1), 1.0]
    np.testing.assert_allclose(dual.p, conjugate)
    for i, p in enumerate(exponents):
        expected = [np.linalg.norm(weights * x[0], ord=p) if p < 1e3 else None for x in v]
        if p < 1e3:
            np.testing.assert_allclose(metric.norm(v)[:, i], expected, rtol=1e-13)
        else:
            largest = np.abs(weights * v[:, 0]).max(-1)
            np.testing.assert_allclose(metric.norm(v)[:, i], largest, rtol=1e-3)
        np.testing.assert_allclose(
            metric.dual_norm(v)[:, i],
            [np.linalg.norm(x[0] / weights, ord=conjugate[i]) for x in v],
            rtol=1e-12,
        )
    for size in (1e-300, 1e300):
        np.testing.assert_allclose(metric.norm(size * v), size * metric.norm(v), rtol=1e-12)


def test_the_exponent_learns():
    """The derivative in p, at the ends too, and where components are zero or equal."""
    p = torch.tensor([1.0, 1.5, 3.0, 50.0, torch.inf], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[[3.0, -4.0]], [[1.0, 0.0]], [[2.0, 2.0]], [[0.0, 0.0]]], dtype=torch.float64)
    norm = PNorm(p, torch.ones(2, dtype=torch.float64)).norm(v)
    (slope,) = torch.autograd.grad(norm[2].sum(), p, retain_graph=True)
    # 2 * 2^(1/p) has the derivative -2 log 2 2^(1/p) / p^2.
    finite = p.detach()[:4]
    expected = -2 * np.log(2) * 2 ** (1 / finite) / finite**2
    torch.testing.assert_close(slope[:4], expected)
    assert slope[4] == 0
    (all_of_them,) = torch.autograd.grad(norm.sum(), p)
    assert all_of_them.isfinite().all()
    inner = p.detach()[1:4].clone().requires_grad_()
    ones = torch.ones(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: PNorm(p, ones).norm(v), inner)
    assert torch.autograd.gradcheck(lambda p: PNorm(p, ones).dual_norm(v), inner)


def test_polytope_by_facets():
    box = Polytope.from_facets(np.array([[0.5, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    np.testing.assert_allclose(box.norm(np.array([[2.0, 0.0], [-2.0, 0.5]])), [1, 2])
    assert box.dual_norm(np.array([1.0, 1.0])) == pytest.approx(3)
    moved = Polytope(SQUARE).moved(np.array([[0.2, 0.1], [0.0, 0.0]]))
    np.testing.assert_allclose(
        moved[0].norm(circle()), Polytope(SQUARE + np.array([0.2, 0.1])).norm(circle()), rtol=1e-12
    )
    assert moved.batch_shape == (2,)


def christoffel(c11, c33, c13, c55, sine, cosine):
    """The largest eigenvalue of the Christoffel matrix: the squared phase velocity."""
    rows = [
        [c11 * sine**2 + c55 * cosine**2, (c13 + c55) * sine * cosine],
        [(c13 + c55) * sine * cosine, c55 * sine**2 + c33 * cosine**2],
    ]
    return np.linalg.eigvalsh(np.array(rows))[-1]


STIFFNESS = (14.0, 9.0, 4.0, 2.3)


@pytest.mark.parametrize("d", [2, 3])
def test_tti_solves_christoffels_equation(d):
    rng = np.random.default_rng(d)
    axis = rng.standard_normal(d)
    metric = TTI.from_stiffness(*STIFFNESS, axis)
    n = rng.standard_normal((20, d))
    n /= np.linalg.norm(n, axis=-1, keepdims=True)
    cosine = n @ axis / np.linalg.norm(axis)
    squares = [christoffel(*STIFFNESS, np.sqrt(1 - c**2), c) for c in cosine]
    np.testing.assert_allclose(metric.phase_velocity(n) ** 2, squares, rtol=1e-12)


def test_the_ball_of_tti_is_the_group_velocity_surface():
    """``V n + dV/dn``, from differences of Christoffel's eigenvalue."""
    turn = 0.7
    axis = np.array([np.cos(turn), np.sin(turn)])
    across = np.array([-np.sin(turn), np.cos(turn)])
    metric = TTI.from_stiffness(*STIFFNESS, axis)

    def V(t):
        return np.sqrt(christoffel(*STIFFNESS, np.sin(t), np.cos(t)))

    for t in np.linspace(0, 2 * np.pi, 25):
        h = 1e-4
        slope = (V(t + h) - V(t - h)) / (2 * h)
        along = V(t) * np.cos(t) - slope * np.sin(t)
        beside = V(t) * np.sin(t) + slope * np.cos(t)
        assert metric.norm(along * axis + beside * across) == pytest.approx(1, rel=1e-7)


def test_elliptical_rock_is_riemannian():
    axis = np.array([0.0, 0.6, 0.8])
    metric = TTI(2.0, 1.0, 0.3, 0.3, axis)
    rest = np.eye(3) - np.outer(axis, axis)
    expected = Riemannian(np.outer(axis, axis) / 4 + rest / (4 * 1.6))
    v = np.random.default_rng(0).standard_normal((30, 3))
    np.testing.assert_allclose(metric.norm(v), expected.norm(v), rtol=1e-12)
    assert TTI(2.0, 1.0, 0.0, 0.0, axis).norm(axis) == pytest.approx(0.5)
    acoustic = TTI(2.0, 0.0, 0.3, 0.1, axis)
    np.testing.assert_allclose(acoustic.norm(v), TTI(2.0, 0.6, 0.3, 0.1, axis).norm(v), rtol=0.01)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vp": -1.0}, "vp: expected positive finite numbers, got -1"),
        ({"vs": 2.0}, "vs: expected 0 <= vs < vp, got 2"),
        ({"epsilon": -0.6}, "epsilon: expected a number above -1/2, got -0.6"),
        ({"delta": -0.5}, r"delta: expected delta >= .*, got -0.5"),
        ({"axis": np.zeros(2)}, "axis: expected vectors of length > 0, got 0"),
        ({"axis": np.ones(1)}, "axis: expected vectors of at least 2 components"),
        ({"vs": 0.0, "epsilon": -0.4, "delta": 0.8}, "expected a convex slowness surface"),
        ({"vs": np.array([1.0, 2.5])}, r"vs: .*, got 2.5 at index \(1,\)"),
        ({"vs": np.ones(3), "axis": np.ones((2, 2))}, "expected batch shapes that broadcast"),
    ],
)
def test_tti_is_refused(change, message):
    arguments = {"vp": 2.0, "vs": 1.0, "epsilon": 0.2, "delta": 0.1, "axis": np.array([1.0, 0.0])}
    with pytest.raises(ValueError, match=message):
        TTI(**(arguments | change))


# Navigation, Funk, Hilbert

SEAS = {
    "disc": Euclidean(),
    "ellipse": Riemannian(M),
    "Randers": Randers(M, OMEGA),
    "square": Polytope(SQUARE),
    "quartic": PNorm(4.0, np.array([1.0, 1.3])),
    "slope": Matsumoto(M, OMEGA),
    "taxicab": CallableMetric(lambda v: np.abs(v).sum(-1)),
}
WIND = np.array([0.25, -0.3])


@pytest.mark.parametrize("sea", SEAS)
def test_navigation_moves_the_ball(sea):
    sea = SEAS[sea]
    metric = Navigation(sea, WIND)
    rim = sea.indicatrix(circle())
    np.testing.assert_allclose(metric.norm(rim + WIND), 1, rtol=1e-10)
    v = np.random.default_rng(0).standard_normal((30, 2))
    t = metric.norm(v)
    np.testing.assert_allclose(sea.norm(v / t[:, None] - WIND), 1, rtol=1e-9)
    np.testing.assert_allclose(metric.dual_norm(v), sea.dual_norm(v) + v @ WIND, rtol=1e-12)
    # Without wind, nothing; and back again by the opposite wind.
    np.testing.assert_allclose(Navigation(sea, 0 * WIND).norm(v), sea.norm(v), rtol=1e-12)
    np.testing.assert_allclose(Navigation(metric, -WIND).norm(v), sea.norm(v), rtol=1e-9)


def test_navigation_on_a_riemannian_sea_is_randers():
    h, W = np.stack((M, 2 * M)), np.array([0.2, 0.3])
    metric, expected = Navigation(Riemannian(h), W), Randers.from_zermelo(h, W)
    v = np.random.default_rng(0).standard_normal((30, 1, 2))
    np.testing.assert_allclose(metric.norm(v), expected.norm(v), rtol=1e-12)
    for found, wanted in zip(metric.randers_form(), expected.randers_form(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert isinstance(metric.dual(), Randers)
    disc = Navigation(Euclidean(), torch.tensor([0.5, 0.0]))
    assert disc.norm(torch.tensor([1.5, 0.0])) == 1
    hidden = Navigation(CallableMetric(Riemannian(h).norm), W)
    np.testing.assert_allclose(hidden.norm(v), expected.norm(v), rtol=1e-12)


@pytest.mark.unchecked
def test_too_much_wind_is_refused():
    with pytest.raises(ValueError, match=r"wind: expected F\(-wind\) of the sea < 1, got 1.2 at"):
        Navigation(Euclidean(), np.array([[0.1, 0.1], [0.0, 1.2]]))
    # A one-sided sea: the same wind from the other side is weak enough.
    sea = Randers(np.eye(2), np.array([0.5, 0.0]))
    Navigation(sea, np.array([1.2, 0.0])).validate()
    with pytest.raises(ValueError, match="wind: expected"):
        Navigation(sea, np.array([-1.2, 0.0]))
    with pytest.raises(
        ValueError, match=r"x: expected a point inside the body, F\(x\) .*< 1, got 1"
    ):
        Funk(Euclidean(), np.array([0.6, 0.8]))
    with pytest.raises(ValueError, match=r"wind: expected batch shapes that broadcast"):
        Navigation(Riemannian(np.stack((M, M))), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="wind: expected vectors of 2 components"):
        Navigation(Euclidean(), np.zeros(3))


@pytest.mark.parametrize("sea", ["disc", "Randers", "square", "quartic"])
def test_funk_and_hilbert_by_their_definitions(sea):
    """``x + v / F`` is on the rim; straight lines add up to the closed-form distances."""
    body = SEAS[sea]
    rng = np.random.default_rng(0)
    x, v = body.unit_ball(0.7 * circle(5)), rng.standard_normal((7, 1, 2))
    F = Funk(body, x).norm(v)
    np.testing.assert_allclose(body.norm(x + v / F[..., None]), 1, rtol=1e-9)
    symmetric = (F + Funk(body, x).norm(-v)) / 2
    np.testing.assert_allclose(Hilbert(body, x).norm(v), symmetric, rtol=1e-12)
    start, end = x[0], x[2]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    on_the_way = start + (nodes[:, None] + 1) / 2 * (end - start)
    for kind in (Funk, Hilbert):
        length = (weights / 2 * kind(body, on_the_way).norm(end - start)).sum()
        assert kind(body, start).distance(end) == pytest.approx(length, rel=1e-6)
        assert kind(body, start).distance(start) == 0
        assert kind(body, start).distance(3 * end) == np.inf
    # The cross-ratio of the chord's ends, far behind and far ahead.
    u = (end - start) / np.linalg.norm(end - start)
    ahead, behind = 1 / Funk(body, start).norm(u), 1 / Funk(body, start).norm(-u)
    gap = np.linalg.norm(end - start)
    cross_ratio = ahead * (behind + gap) / (behind * (ahead - gap))
    assert Hilbert(body, start).distance(end) == pytest.approx(np.log(cross_ratio) / 2)
    assert Hilbert(body, end).distance(start) == pytest.approx(np.log(cross_ratio) / 2)


def test_hilbert_of_the_disc_is_kleins_model():
    x, v = 0.8 * circle(6), np.random.default_rng(0).standard_normal((5, 1, 2))
    rest = 1 - (x**2).sum(-1)
    expected = np.sqrt((v**2).sum(-1) / rest + ((x * v).sum(-1) / rest) ** 2)
    metric = Hilbert(Euclidean(), x)
    np.testing.assert_allclose(metric.norm(v), expected, rtol=1e-12)
    assert metric.randers_form().omega is None
    # From the centre, hyperbolic distances are artanh of the radius.
    centre = Hilbert(Euclidean(), np.zeros(2))
    assert centre.distance(np.array([0.0, 0.6])) == pytest.approx(np.arctanh(0.6))
    p = np.random.default_rng(1).standard_normal((5, 1, 2))
    np.testing.assert_allclose(
        metric.dual_norm(p), CallableMetric(metric.norm).dual_norm(p), rtol=1e-10
    )


@pytest.mark.slow
def test_straight_lines_are_the_geodesics_of_funk():
    body = PNorm(4.0, torch.ones(2, dtype=torch.float64))
    field = FunctionMetric(lambda x: Funk(body, x))
    start = torch.tensor([0.1, -0.2], dtype=torch.float64)
    velocity = torch.tensor([0.3, 0.5], dtype=torch.float64)
    end = exponential(field, start, velocity)
    way = end - start
    assert abs(way[0] * velocity[1] - way[1] * velocity[0]) < 1e-6
    length = Funk(body, start).norm(velocity)
    assert Funk(body, start).distance(end) == pytest.approx(length.item(), rel=1e-5)


# Combinators


def test_the_ball_of_a_maximum_is_the_intersection():
    parts = (Randers(M, OMEGA), PNorm(1.0, np.array([0.9, 0.8])), Euclidean())
    metric = Maximum(*parts)
    v = 2 * np.random.default_rng(0).standard_normal((200, 2))
    inside = np.all([part.contains(v) for part in parts], axis=0)
    assert 0 < inside.sum() < 200
    np.testing.assert_array_equal(metric.contains(v), inside)
    np.testing.assert_allclose(metric.reverse().norm(v), metric.norm(-v))


def test_a_sum_of_duals_is_the_dual_of_the_minkowski_sum():
    first, second = Randers(M, OMEGA), Polytope(SQUARE)
    metric = Sum(first.dual(), second.dual()).dual()
    balls = (first.indicatrix(circle(300)), SQUARE)
    points = (balls[0][:, None] + balls[1]).reshape(-1, 2)
    expected = Polytope(points)
    v = np.random.default_rng(0).standard_normal((20, 2))
    np.testing.assert_allclose(metric.norm(v), expected.norm(v), rtol=1e-4)
    np.testing.assert_allclose(metric.dual_norm(v), expected.dual_norm(v), rtol=3e-4)


def test_pulled_back_by_polar_coordinates():
    def polar(x):
        xp = torch if isinstance(x, torch.Tensor) else np
        return xp.stack((x[..., 0] * xp.cos(x[..., 1]), x[..., 0] * xp.sin(x[..., 1])), -1)

    x = np.array([[2.0, 0.3], [0.5, -1.0], [1.5, 2.0]])
    v = np.random.default_rng(0).standard_normal((7, 3, 2))
    expected = np.sqrt(v[..., 0] ** 2 + x[:, 0] ** 2 * v[..., 1] ** 2)
    for convert in (np.asarray, torch.as_tensor):
        metric = PulledBack.along(Euclidean(), polar, convert(x))
        np.testing.assert_allclose(metric.norm(convert(v)), expected, rtol=1e-9)
        M, omega = metric.randers_form()
        np.testing.assert_allclose(M[:, 1, 1], x[:, 0] ** 2, rtol=1e-9)
        assert omega is None
    r = torch.tensor([2.0, 0.3], dtype=torch.float64, requires_grad=True)
    speed = torch.tensor([0.6, 0.4], dtype=torch.float64)
    (slope,) = torch.autograd.grad(PulledBack.along(Euclidean(), polar, r).norm(speed), r)
    length = np.sqrt(0.36 + 4 * 0.16)
    torch.testing.assert_close(slope, torch.tensor([2 * 0.16 / length, 0.0], dtype=torch.float64))


def test_pulled_back_to_a_surface():
    """The length on a graph, of a metric of space."""
    space, slope = (
        Randers(np.diag([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3])),
        np.array([0.4, -0.7]),
    )
    A = np.array([[1.0, 0.0], [0.0, 1.0], slope])
    metric = space.pullback(A)
    v = np.random.default_rng(0).standard_normal((9, 2))
    expected = space.norm(np.concatenate((v, v @ slope[:, None]), -1))
    np.testing.assert_allclose(metric.norm(v), expected)
    form = Randers(*metric.randers_form())
    np.testing.assert_allclose(form.norm(v), expected)
    np.testing.assert_allclose(metric.dual_norm(v), form.dual_norm(v), rtol=1e-10)


def test_forms_of_combined_metrics():
    base = Randers(M, OMEGA)
    v = np.random.default_rng(0).standard_normal((9, 2))
    A = np.array([[1.0, 0.3], [-0.2, 0.8]])
    made = [3 * base, base * np.array([2.0]), base.pullback(A), base.dual(), 2.0 * Euclidean()]
    for metric in made:
        form = Randers(*metric.randers_form().with_omega())
        np.testing.assert_allclose(form.norm(v), metric.norm(v), rtol=1e-12)
    assert (base + Euclidean()).randers_form() is None
    assert repr(3.0 * Euclidean()) == "Scaled(Euclidean(d=2), 3.0)"
    assert isinstance(np.float64(2.0) * base, Scaled)
    assert (np.array([1.0, 2.0]) * base).batch_shape == (2,)
    assert (torch.tensor(2.0) * Euclidean()).norm(torch.tensor([3.0, 4.0])) == 10


def test_parts_of_mixed_batches():
    """An index of the batch finds its place in every part, whose own batches are smaller."""
    rows, columns = 1 + np.arange(3.0)[:, None], 1 + np.arange(4.0)
    first = Riemannian(rows[..., None, None] * np.eye(2))
    second = PNorm(3.0, columns[:, None] * np.ones(2))
    metric = Maximum(first, second, Euclidean())
    v = np.random.default_rng(0).standard_normal(2)
    values = metric.norm(v)
    assert values.shape == metric.batch_shape == (3, 4)
    for index in ((1, 2), 2, (slice(None), 1), (..., 3), values > 2, (slice(1, 3), slice(None, 2))):
        np.testing.assert_allclose(metric[index].norm(v), values[index])
        wind = Navigation(second, np.zeros((3, 1, 2)))
        np.testing.assert_allclose(wind[index].norm(v), wind.norm(v)[index])
    tensors = Maximum(
        Riemannian(torch.as_tensor(first.M)), PNorm(3.0, torch.as_tensor(second.weights))
    )
    np.testing.assert_allclose(tensors[1:, 2].norm(torch.as_tensor(v)), values[1:, 2])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AlphaBeta(1.0, M, OMEGA), TypeError, "phi: expected a callable, got float"),
        (lambda: AlphaBeta(np.exp, M, np.ones(3)), ValueError, "omega: expected vectors of 2"),
        (lambda: Matsumoto(np.ones((3, 2, 2)), OMEGA), ValueError, r"M: .* at index \(0,\)"),
        (
            lambda: Matsumoto(np.eye(2) * np.ones((3, 1, 1)), np.zeros((2, 2))),
            ValueError,
            "broadcast",
        ),
        (
            lambda: PNorm(np.array([2.0, 0.5]), np.ones(2)),
            ValueError,
            r"p: .*1, got 0.5 at .*\(1,\)",
        ),
        (lambda: PNorm(np.nan, np.ones(2)), ValueError, "p: expected exponents of at least 1"),
        (
            lambda: PNorm(2.0, np.array([1.0, -1.0])),
            ValueError,
            r"weights: .* got -1 at index \(1,\)",
        ),
        (lambda: PNorm(2.0, np.ones(2, dtype=int)), TypeError, "weights: expected a real"),
        (lambda: PNorm(2, np.array(1.0)), ValueError, "weights: expected one for every component"),
        (lambda: PNorm(np.ones(3), np.ones((2, 2))), ValueError, "p, weights: .* broadcast"),
        (lambda: -1.0 * Euclidean(), ValueError, "factor: expected a positive finite number"),
        (
            lambda: np.array([1.0, 0.0]) * Euclidean(),
            ValueError,
            r"factor: .* got 0 at index \(1,\)",
        ),
        (lambda: Euclidean() * "2", TypeError, "factor: expected an array"),
        (lambda: Euclidean() + 1.0, TypeError, "unsupported operand"),
        (lambda: Sum(), ValueError, "Sum: expected metrics, got none"),
        (lambda: Sum(Euclidean(), 1.0), TypeError, "Sum: expected metrics, got float"),
        (lambda: Maximum(Euclidean(2), Euclidean(3)), ValueError, r"one dimension, got \[2, 3\]"),
        (lambda: Euclidean().pullback(np.ones((3, 2))), ValueError, r"A: .* got shape \(3, 2\)"),
        (lambda: Euclidean().pullback(np.ones((2, 2))), ValueError, "A: expected finite injective"),
        (
            lambda: CallableMetric(lambda v: np.ones(3) * v[..., 0]).reverse()[0],
            TypeError,
            "no items",
        ),
        (
            lambda: Matsumoto.from_slope(np.ones(2), speed=0.0),
            ValueError,
            "speed: expected a positive",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
