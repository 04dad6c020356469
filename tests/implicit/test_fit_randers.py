"""The metric that explains a kernel's positions: exact where it is, optimal where it is not."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, minimize
from strategies import cases, relative

from finslerconv._hulls import planar_hulls
from finslerconv.balls import (
    Ellipse,
    affine,
    concentric,
    lattice,
    overlap,
    polar,
    radial,
    sunflower,
)
from finslerconv.implicit import Misfit, fit_randers
from finslerconv.implicit._overlap import shared_area, shared_area_derivatives
from finslerconv.metrics import Polytope, Randers, Riemannian

MAPS = {"radial": radial, "affine": affine}
REFERENCES = {
    "lattice": lattice(3),
    "concentric": concentric(3),
    "polar": polar(2, 5, centre=True),
    "sunflower": sunflower(9),
    "lattice 4x5": lattice((4, 5)),
}


def positions(metric, reference, map):
    """Return the images (batch, n, 2) of the reference points."""
    points = reference.points.reshape(-1, *(1,) * len(metric.batch_shape), 2)
    return np.moveaxis(MAPS[map](metric, points), 0, -2)


def deformed(seed, batch, noise=0.3, k=3):
    """Return the positions of kernels whose taps are displaced at random."""
    rng = np.random.default_rng(seed)
    return lattice(k).points * (k // 2) + noise * rng.standard_normal((batch, k * k, 2))


def drift_error(fitted, true):
    """Return |omega - omega'| in the true metric, shape (batch,)."""
    return Riemannian(np.linalg.inv(true.M)).norm(fitted.omega - true.omega)


# --- Where a metric made the positions, it is found again ---


@pytest.mark.slow
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=15)
@given(case=cases(dims=(2,), kinds=("numpy",), dtypes=("float64",), max_condition=1e3))
def test_metric_is_recovered_exactly(name, map, case):
    assume((case.lam > 0.04).all())
    true, reference = case.metric, REFERENCES[name]
    fit = fit_randers(positions(true, reference, map), reference=reference, map=map)
    assert fit.explained.all()
    assert fit.converged.all()
    assert relative(fit.metric.M, true.M, axes=2).max() < 1e-8
    assert drift_error(fit.metric, true).max() < 1e-8
    assert (fit.residual < 1e-8 * Ellipse.of(true).axes[:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("map", MAPS)
@settings(max_examples=25)
@given(case=cases(dims=(2,), kinds=("numpy",), dtypes=("float64",), max_condition=1e2))
def test_closed_form_alone_recovers_the_metric(map, case):
    assume((case.lam > 0.5).all())
    points = positions(case.metric, lattice(3), map)
    fit = fit_randers(points, reference=lattice(3), map=map, refine=False)
    assert relative(fit.metric.M, case.metric.M, axes=2).max() < 1e-8
    assert drift_error(fit.metric, case.metric).max() < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("map", MAPS)
@settings(max_examples=15)
@given(case=cases(dims=(2,), kinds=("numpy",), dtypes=("float64",), max_condition=1e3))
def test_riemannian_metric_is_recovered_exactly(map, case):
    true = Riemannian(case.M)
    points = positions(true, concentric(3), map)
    fit = fit_randers(points, reference=concentric(3), map=map, kind="riemannian")
    assert isinstance(fit.metric, Riemannian)
    assert fit.explained.all()
    assert relative(fit.metric.M, true.M, axes=2).max() < 1e-8


@pytest.mark.slow
@settings(max_examples=15)
@given(case=cases(dims=(2,), kinds=("numpy",), dtypes=("float64",), max_condition=1e3))
def test_rings_on_level_sets_give_the_metric(case):
    """Samples with F(v) = |g|, whatever their directions are."""
    assume((case.lam > 0.04).all())
    reference = concentric(5)
    points = positions(case.metric, reference, "radial")
    by_rings = fit_randers(points, objective="gauge")
    by_levels = fit_randers(
        points, objective="gauge", levels=np.linalg.norm(reference.points, axis=1)
    )
    by_reference = fit_randers(points, objective="gauge", reference=reference)
    for fit in (by_rings, by_levels, by_reference):
        assert fit.explained.all()
        assert relative(fit.metric.M, case.metric.M, axes=2).max() < 1e-8
        assert drift_error(fit.metric, case.metric).max() < 1e-8
        assert fit.residual.max() < 1e-8


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize(("k", "dilation"), [(3, 1), (3, 4), (5, 1), (7, 2)])
def test_standard_and_dilated_convolutions_are_discs(k, dilation, map, refine):
    radius = dilation * (k // 2)
    fit = fit_randers(radius * lattice(k).points, reference=lattice(k), map=map, refine=refine)
    assert pytest.approx(np.eye(2) / radius**2, abs=1e-13) == fit.metric.M
    assert fit.metric.omega == pytest.approx(np.zeros(2), abs=1e-13)


def test_uneven_dilation_is_an_ellipse():
    fit = fit_randers(lattice(3).points * [2.0, 3.0], reference=lattice(3), map="affine")
    assert pytest.approx(np.diag([1 / 4, 1 / 9]), abs=1e-13) == fit.metric.M


def test_moments_of_a_filled_ellipse_are_the_ellipse():
    """Of very many samples of equal areas, the closed-form start is the ellipse itself."""
    true = Randers(np.array([[0.5, 0.2], [0.2, 1.0]]), np.array([0.3, -0.2]))
    fit = fit_randers(affine(true, sunflower(4000).points), refine=False)
    assert relative(fit.metric.M, true.M, axes=2) < 1e-3
    assert overlap(fit.metric, true) > 0.999


@pytest.mark.parametrize("map", MAPS)
def test_error_is_proportional_to_the_noise(map):
    rng = np.random.default_rng(0)
    true = Randers(np.diag([0.4, 1.2]), np.array([0.2, 0.3]))
    clean = positions(true, lattice(3), map)
    noise = rng.standard_normal((400, *clean.shape))
    errors = []
    for size in (0.01, 0.05):
        fit = fit_randers(clean + size * noise, reference=lattice(3), map=map)
        errors.append(np.median(np.linalg.norm(fit.metric.M - true.M, axis=(1, 2))))
        assert np.median(fit.residual) == pytest.approx(size * np.sqrt(2), rel=0.3)
    assert errors[1] / errors[0] == pytest.approx(5, rel=0.15)


# --- Where none did, what is found is optimal ---


def khachiyan_bound(points, steps=20000):
    """Return a lower bound of the area of ellipses around the points, from the dual problem."""
    lifted = np.concatenate((points, np.ones((len(points), 1))), axis=1)
    p = np.full(len(points), 1 / len(points))
    for _ in range(steps):
        X = np.einsum("n,ni,nj->ij", p, lifted, lifted)
        p *= np.einsum("ni,ij,nj->n", lifted, np.linalg.inv(X), lifted) / 3
    centre = p @ points
    S = np.einsum("n,ni,nj->ij", p, points - centre, points - centre)
    return np.pi * 2 * np.sqrt(np.linalg.det(S))


@pytest.mark.slow
def test_smallest_enclosing_ball_is_smallest():
    points = deformed(0, 6)
    fit = fit_randers(points)
    norms = fit.metric.norm(np.moveaxis(points, -2, 0))
    assert fit.converged.all()
    assert norms.max(axis=0) == pytest.approx(1, abs=1e-6)
    assert (norms <= 1 + 1e-12).all()
    assert (fit.inside == 1).all()
    for v, area in zip(points, Ellipse.of(fit.metric).area, strict=True):
        bound = khachiyan_bound(v)
        assert bound <= area * (1 + 1e-9)
        assert area == pytest.approx(bound, rel=2e-4)  # what the slow loop reaches


def test_smallest_enclosing_riemannian_ball_is_smallest():
    """Around the origin it is the smallest around the samples and their mirror images."""
    points = deformed(1, 6)
    fit = fit_randers(points, kind="riemannian")
    mirrored = fit_randers(np.concatenate((points, -points), axis=1))
    assert relative(fit.metric.M, mirrored.metric.M, axes=2).max() < 1e-7
    assert np.abs(mirrored.metric.omega).max() < 1e-7


def test_enclosing_ball_is_the_circle_of_a_regular_polygon():
    angles = 2 * np.pi * np.arange(7) / 7
    points = 3 * np.stack((np.sin(angles), np.cos(angles)), axis=-1) + [1.0, 0.5]
    ellipse = Ellipse.of(fit_randers(points).metric)
    assert ellipse.centre == pytest.approx([1.0, 0.5], abs=1e-8)
    assert ellipse.axes == pytest.approx([3.0, 3.0], abs=1e-8)


def test_iou_is_that_of_the_hull():
    points = deformed(2, 40)
    for objective in ("enclosing", "overlap"):
        fit = fit_randers(points, objective=objective)
        assert fit.pixel_in_hull.all()
        # The hull has corners, so the quadrature is good to about 1e-4.
        assert fit.iou == pytest.approx(overlap(fit.metric, Polytope(points)), abs=3e-4)
    assert fit.residual == pytest.approx(1 - fit.iou, abs=1e-12)


@pytest.mark.slow
def test_overlap_is_largest():
    points = deformed(3, 2)
    fit = fit_randers(points, objective="overlap")
    assert fit.converged.all()
    for v, best, metric in zip(points, fit.iou, (fit.metric[i] for i in range(2)), strict=True):
        hull = Polytope(v)
        factor = np.linalg.cholesky(metric.M)
        start = np.array([factor[0, 0], factor[1, 0], factor[1, 1], *metric.omega])

        def loss(x, hull=hull):
            L = np.array([[x[0], 0.0], [x[1], x[2]]])
            if np.linalg.norm(np.linalg.solve(L, x[3:])) > 0.99:
                return 1.0
            return -overlap(Randers(L @ L.T, x[3:], validate=False), hull)

        found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-4, "maxiter": 150})
        assert -found.fun <= -loss(start) + 1e-4
        assert best >= fit_randers(v, objective="enclosing").iou


@pytest.mark.parametrize("objective", ["reference", "gauge"])
def test_least_squares_are_least(objective):
    """SciPy, started at the optimum and elsewhere, finds nothing better."""
    points = deformed(4, 8, noise=0.2)
    g = lattice(3)
    levels = np.abs(g.points).max(axis=1)
    options = {"reference": g} if objective == "reference" else {}
    fit = fit_randers(points, objective=objective, **options)
    assert fit.converged.all()
    assert fit.explained.all()
    for v, residual in zip(points, fit.residual, strict=True):

        def errors(x, v=v):
            L = np.array([[x[0], 0.0], [x[1], x[2]]])
            drift = L @ x[3:] / np.sqrt(1 + x[3:] @ x[3:])
            metric = Randers(L @ L.T, drift, validate=False)
            if objective == "reference":
                return (radial(metric, g.points) - v).ravel() / 3
            return (metric.norm(v) - levels) / 3

        found = least_squares(errors, np.array([1.0, 0.0, 1.0, 0.0, 0.0]), xtol=1e-12, ftol=1e-12)
        assert residual == pytest.approx(np.sqrt(2 * found.cost), rel=1e-6)


def test_affine_matching_is_linear_least_squares():
    points = deformed(5, 8)
    g = lattice(3).points
    fit = fit_randers(points, reference=lattice(3), map="affine")
    for v, metric in zip(points, (fit.metric[i] for i in range(8)), strict=True):
        # Unknowns B00, B01, B11, W0, W1.
        zero, one = np.zeros(9), np.ones(9)
        down = np.stack((g[:, 0], g[:, 1], zero, one, zero), axis=-1)
        right = np.stack((zero, g[:, 0], g[:, 1], zero, one), axis=-1)
        x = np.linalg.lstsq(np.concatenate((down, right)), v.T.ravel(), rcond=None)[0]
        B = np.array([[x[0], x[1]], [x[1], x[2]]])
        ellipse = Ellipse.of(metric)
        assert ellipse.shape == pytest.approx(B @ B, rel=1e-9)
        assert ellipse.centre == pytest.approx(x[3:], abs=1e-9)


@pytest.mark.slow
@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    angle=st.floats(0, 6.28),
    scale=st.floats(1e-3, 1e3),
    objective=st.sampled_from(["enclosing", "overlap", "gauge"]),
)
def test_fit_turns_and_grows_with_the_samples(seed, angle, scale, objective):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = deformed(seed, 3, noise=0.1)
    fit = fit_randers(points, objective=objective)
    moved = fit_randers(scale * points @ turn.T, objective=objective)
    assert relative(moved.metric.M, turn @ fit.metric.M @ turn.T / scale**2, axes=2).max() < 1e-6
    assert np.abs(scale * moved.metric.omega - fit.metric.omega @ turn.T).max() < 1e-6


@given(st.integers(0, 10**6))
def test_shared_area_and_its_derivatives(seed):
    """Against finite differences along the flow of an affine field."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((1, 8, 2))
    order, count = planar_hulls(points, np.ones((1, 8), dtype=bool), 1e-14)
    polygon = torch.as_tensor(points[0, order[0, : count[0]]])[None]
    a = torch.as_tensor(0.5 * rng.standard_normal(5))
    generator = torch.zeros(3, 3, dtype=torch.float64)
    generator[:2] = torch.stack((a[[0, 1, 3]], a[[1, 2, 4]]))

    def area(t):
        back = torch.linalg.matrix_exp(-t * generator)
        return shared_area(polygon @ back[:2, :2].T + back[:2, 2]) * torch.exp(t * (a[0] + a[2]))

    found = shared_area_derivatives(polygon)
    # A corner on the circle or an edge along it is a kink of the second derivative.
    assume((polygon.norm(dim=-1) - 1).abs().min() > 0.02)
    assume(float(found.hessian.abs().max()) < 30)
    h = 1e-4
    assert area(0.0).item() == pytest.approx(found.value.item(), abs=1e-14)
    first = (area(h) - area(-h)) / (2 * h)
    assert first.item() == pytest.approx((found.gradient @ a).item(), abs=1e-5)
    second = (area(h) - 2 * area(0.0) + area(-h)) / h**2
    assert second.item() == pytest.approx((a @ found.hessian[0] @ a).item(), abs=2e-3)


# --- Where no metric explains the samples, it says so ---


def assert_valid(fit):
    fit.metric.validate()
    for values in (fit.residual, fit.iou, fit.inside):
        assert not np.isnan(values).any()


OPTIONS = [
    {"refine": False},
    {"objective": "enclosing"},
    {"objective": "overlap"},
    {"objective": "gauge"},
    {"reference": lattice(3)},
    {"reference": lattice(3), "map": "affine"},
]


@pytest.mark.parametrize("kind", ["randers", "riemannian"])
@pytest.mark.parametrize("options", OPTIONS)
def test_degenerate_samples_are_named(options, kind):
    line = np.linspace(-1, 2, 9)[:, None] * np.array([1.0, 0.5])
    place = np.full((9, 2), 0.7)
    nothing = np.zeros((9, 2))
    good = lattice(3).points
    fit = fit_randers(np.stack((line, place, nothing, good)), kind=kind, **options)
    assert fit.reason.tolist() == [Misfit.DEGENERATE] * 3 + [Misfit.NONE]
    assert fit.explained.tolist() == [False] * 3 + [True]
    assert_valid(fit)


@pytest.mark.parametrize("options", OPTIONS[:3] + OPTIONS[5:])
def test_pixel_outside_its_ball_is_named(options):
    points = lattice(3).points + np.array([[[0.0, 5.0]], [[0.0, 0.3]]])
    fit = fit_randers(points, **options)
    assert fit.reason.tolist() == [Misfit.OUTSIDE, Misfit.NONE]
    assert fit.pixel_in_hull.tolist() == [False, True]
    assert fit.metric.omega_norm()[0] == pytest.approx(0.999, abs=1e-4)
    assert_valid(fit)


@pytest.mark.parametrize("distance", [2.0, 5.0, 30.0])
def test_a_ball_that_overlaps_is_found_however_far_the_samples_are(distance):
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    turns = np.stack((np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)), -1)
    away = lattice(3).points + np.array([0.0, distance])
    fit = fit_randers(away @ turns.reshape(-1, 2, 2).mT, objective="overlap")
    # A thin ellipse from the pixel to the samples' far side has about twice this overlap.
    assert (fit.iou > 1 / (distance + 1)).all()


def test_enclosing_ball_that_must_hold_the_pixel_still_holds_the_samples():
    points = lattice(3).points + np.array([0.0, 5.0])
    fit = fit_randers(points, margin=0.1)
    assert fit.reason == Misfit.OUTSIDE
    assert fit.inside == 1
    assert fit.metric.omega_norm() == pytest.approx(0.9, abs=1e-6)


def test_turned_samples_are_named():
    g = lattice(3).points
    quarter, half = g[:, ::-1] * [1.0, -1.0], -g
    fit = fit_randers(np.stack((quarter, half, g)), reference=lattice(3), map="affine")
    assert fit.reason.tolist() == [Misfit.TURNED, Misfit.TURNED, Misfit.NONE]
    assert_valid(fit)


@pytest.mark.parametrize(
    "reference", [lattice(3), concentric(5), polar(3, 5)], ids=lambda s: s.name
)
def test_the_moments_of_turned_samples_are_those_of_the_reference_points(reference):
    """Whatever their spread in the disc, the ellipse is that which they were turned in."""
    true = Randers(np.array([[0.5, 0.2], [0.2, 1.0]]), np.array([0.3, -0.2]))
    turned = affine(true, -reference.points)
    fit = fit_randers(turned, reference=reference, map="affine")
    assert fit.reason == Misfit.TURNED
    assert relative(fit.metric.M, true.M, axes=2) < 1e-9
    assert relative(fit.metric.omega, true.omega, axes=1) < 1e-9


def test_pixel_outside_the_hull_but_inside_the_ball():
    """The ball of the samples may hold the pixel where their hull does not."""
    true = Randers(np.eye(2), np.array([0.0, 0.9]))
    points = positions(true, sunflower(9), "affine")
    fit = fit_randers(points, reference=sunflower(9), map="affine")
    assert fit.explained
    assert not fit.pixel_in_hull
    with pytest.raises(ValueError, match="not strictly inside"):
        Polytope(points)


@pytest.mark.parametrize("kind", ["randers", "riemannian"])
def test_pixel_outside_every_sample_is_named_though_taps_are_known(kind):
    """Along its rays from the pixel no ball reaches samples that are all on one side."""
    taps = lattice(3)
    fit = fit_randers(taps.points + np.array([0, 3.0]), reference=taps, kind=kind)
    assert fit.reason == Misfit.OUTSIDE
    assert fit.residual > 2
    assert_valid(fit)
    # A shift that leaves the pixel inside is the metric's to explain, as far as it can.
    assert fit_randers(taps.points + np.array([0, 0.6]), reference=taps, kind=kind).explained


def test_riemannian_affine_fit_that_does_not_reach_the_samples_is_named():
    fit = fit_randers(
        lattice(3).points + np.array([0, 3.0]),
        reference=lattice(3),
        map="affine",
        kind="riemannian",
    )
    assert fit.reason == Misfit.OUTSIDE


@pytest.mark.parametrize("kind", ["randers", "riemannian"])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_part_of_a_kernel_beside_the_pixel_is_explained(kind, noise):
    """Samples of a metric that do not surround the pixel: only part of the kernel has weight."""
    true = Randers(np.array([[0.6, 0.2], [0.2, 0.4]]), np.array([0.2, 0.1]))
    true = Riemannian(true.M) if kind == "riemannian" else true
    reference = sunflower(25)
    points = positions(true, reference, "radial")
    points = points + noise * np.random.default_rng(0).standard_normal(points.shape)
    weights = (reference.points[:, 0] > 0.1).astype(float)
    fit = fit_randers(points, weights, reference=reference, kind=kind)
    assert not fit.pixel_in_hull
    assert fit.explained
    if noise == 0:
        assert relative(fit.metric.M, true.M, axes=2) < 1e-8


def test_ball_that_grows_without_end_is_named():
    """Three points on the level 1: a strip has them all at its rim, and no ellipse has."""
    points = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    fit = fit_randers(points, objective="gauge", levels=np.ones(3), kind="riemannian")
    assert fit.reason == Misfit.DIVERGED
    assert not fit.explained
    assert_valid(fit)
    # Cut off at 100 times the farthest sample; the strip is |v_0| <= 1.
    assert Ellipse.of(fit.metric).axes == pytest.approx([100 * np.sqrt(2), 1.0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["randers", "riemannian"])
@pytest.mark.parametrize("objective", ["reference", "gauge", "enclosing", "overlap"])
def test_explained_balls_are_not_running_away(objective, kind, dtype):
    """Noise of nearly a pixel: most kernels are explained still, those that diverge are named."""
    points = deformed(11, 300, noise=0.8).astype(dtype)
    options = {"reference": lattice(3)} if objective == "reference" else {}
    fit = fit_randers(points, objective=objective, kind=kind, **options)
    assert_valid(fit)
    farthest = np.linalg.norm(points, axis=-1).max(axis=-1)
    times = Ellipse.of(fit.metric).axes[:, 0] / farthest
    diverged = fit.reason == Misfit.DIVERGED
    assert (times[fit.explained & ~fit.converged] < 2.001).all()
    assert (times[fit.explained] < 1001).all()
    assert (times[diverged] > 1.999).all()
    assert fit.explained.mean() > 0.6
    # Those two objectives always have a best ball.
    assert diverged.any() == (objective in ("reference", "gauge"))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["randers", "riemannian"])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e308, "float64"), (1e160, "float64"), (1e-160, "float64"), (1e-310, "float64"),
     (1e30, "float32"), (1e-20, "float32")],
)  # fmt: skip
def test_metrics_beyond_the_dtype_are_named(size, dtype, kind, options):
    points = (size * deformed(12, 3, noise=0.1)).astype(dtype)
    fit = fit_randers(points, kind=kind, **options)
    assert (fit.reason == Misfit.UNREPRESENTABLE).all()
    assert_valid(fit)


@pytest.mark.parametrize("options", OPTIONS)
def test_sizes_that_the_dtype_holds_are_all_alike(options):
    points = deformed(13, 3, noise=0.1)
    fit = fit_randers(points, **options)
    for size in (1e-60, 1e60):
        other = fit_randers(size * points, **options)
        assert other.explained.all()
        assert relative(size**2 * other.metric.M, fit.metric.M, axes=2).max() < 1e-6


@pytest.mark.slow
@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(0, 10),
    options=st.sampled_from(OPTIONS),
)
def test_whatever_comes_the_answer_is_a_metric(seed, scale, shift, options):
    rng = np.random.default_rng(seed)
    points = scale * (rng.standard_normal((8, 9, 2)) * rng.random((8, 1, 2)) ** 4 + shift)
    fit = fit_randers(points, rng.random((8, 9)).round(), **options)
    assert_valid(fit)
    assert (fit.iou >= 0).all()
    assert (fit.iou <= 1).all()


# --- Weights, kinds of array, errors ---


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_a_sample_of_weight_zero_is_not_there(options):
    points = deformed(6, 5)
    weights = np.ones((5, 9))
    weights[:, 4:6] = 0
    fit = fit_randers(points, weights, **options)
    points[:, 4:6] = 100.0
    far = fit_randers(points, weights, **options)
    few = fit_randers(np.delete(points, [4, 5], axis=1), **options)
    for other in (far, few):
        assert relative(other.metric.M, fit.metric.M, axes=2).max() < 1e-6
        assert other.iou == pytest.approx(fit.iou, abs=1e-7)
        assert (other.inside == fit.inside).all()


def test_weights_move_the_fit_and_their_scale_does_not():
    points, weights = deformed(7, 5), np.random.default_rng(7).random((5, 9)) + 0.1
    plain = fit_randers(points, reference=lattice(3))
    fit = fit_randers(points, weights, reference=lattice(3))
    scaled = fit_randers(points, 1e-3 * weights, reference=lattice(3))
    assert relative(scaled.metric.M, fit.metric.M, axes=2).max() < 1e-7
    assert relative(plain.metric.M, fit.metric.M, axes=2).min() > 1e-3
    # A weight of 2 is a sample that is there twice.
    twice = np.concatenate((points, points[:, :1]), axis=1)
    double = fit_randers(points, np.array([2.0, *[1.0] * 8]), refine=False)
    assert (
        relative(fit_randers(twice, refine=False).metric.M, double.metric.M, axes=2).max() < 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_in_torch_out(dtype):
    points = deformed(8, 6)
    expected = fit_randers(points)
    given_ = torch.as_tensor(points, dtype=dtype).reshape(2, 3, 9, 2).requires_grad_()
    fit = fit_randers(given_, torch.ones(2, 3, 9, dtype=dtype))
    assert fit.metric.M.shape == (2, 3, 2, 2)
    assert fit.metric.M.dtype == fit.residual.dtype == dtype
    assert not fit.metric.M.requires_grad
    assert fit.explained.shape == fit.pixel_in_hull.shape == (2, 3)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert relative(fit.metric.M.reshape(6, 2, 2), expected.metric.M, axes=2).max() < tolerance
    assert "explained=6 of 6" in repr(fit)


def test_single_kernels_empty_batches_and_chunks(monkeypatch):
    points = deformed(9, 20)
    together = fit_randers(points)
    single = fit_randers(points[3])
    assert single.metric.batch_shape == single.residual.shape == ()
    assert fit_randers(points[:0]).metric.batch_shape == (0,)
    monkeypatch.setattr("finslerconv.implicit._fit._CHUNK", 50)
    cut = fit_randers(points)
    assert relative(cut.metric.M, together.metric.M, axes=2).max() < 1e-9
    assert relative(single.metric.M, together.metric.M[3], axes=2) < 1e-9


def test_radial_map_needs_five_rays():
    three_rays = polar(3, 3)
    points = three_rays.points
    with pytest.raises(ValueError, match="lie along 3 rays, and the radial map needs 5"):
        fit_randers(points, reference=three_rays)
    assert fit_randers(points, reference=three_rays, map="affine").explained
    assert fit_randers(points, reference=three_rays, kind="riemannian").explained


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.zeros((9, 3)),), {}, ValueError, r"points: .* the samples last but one, got .*9, 3"),
        ((np.zeros((9, 2), dtype=int),), {}, TypeError, "points: expected a real floating-point"),
        (([[0.0, 1.0]],), {}, TypeError, "points: expected an array"),
        ((np.full((2, 9, 2), np.nan),), {}, ValueError, r"points: expected finite .* \(0, 0\)"),
        ((np.zeros((9, 2)), np.ones(8)), {}, ValueError, r"weights: expected shape \(9,\)"),
        ((np.zeros((9, 2)), -np.ones(9)), {}, ValueError, "weights: expected finite weights"),
        ((np.zeros((9, 2)), torch.ones(9)), {}, TypeError, "one kind"),
        ((np.zeros((9, 2)),), {"kind": "finsler"}, ValueError, "kind: expected 'randers'"),
        ((np.zeros((9, 2)),), {"objective": "best"}, ValueError, "objective: expected"),
        ((np.zeros((9, 2)),), {"objective": "reference"}, ValueError, "reference: .* needs"),
        ((np.zeros((9, 2)),), {"margin": 0.0}, ValueError, "margin: expected"),
        ((np.zeros((9, 2)),), {"max_steps": 0}, ValueError, "max_steps: expected"),
        ((np.zeros((9, 2)),), {"map": "linear"}, ValueError, "map: expected"),
        ((np.zeros((9, 2)),), {"reference": lattice(5)}, ValueError, "expected 9 planar points"),
        ((np.zeros((9, 2)),), {"reference": "lattice"}, TypeError, "expected a ReferenceSet"),
        (
            (np.zeros((9, 2)),),
            {"reference": lattice(3), "objective": "overlap"},
            ValueError,
            "does not use it",
        ),
        ((np.zeros((9, 2)),), {"levels": np.ones(9)}, ValueError, "levels: are for"),
        ((np.zeros((8, 2)),), {"objective": "gauge"}, ValueError, "levels: 8 samples are no"),
        (
            (np.zeros((9, 2)),),
            {"objective": "gauge", "levels": np.ones(8)},
            ValueError,
            "levels: expected 9 numbers",
        ),
        ((np.zeros((9, 2)),), {"map": "affine"}, ValueError, "map: is for .* give the reference"),
        (
            (np.zeros((9, 2)),),
            {"objective": "gauge", "map": "affine", "reference": lattice(3)},
            ValueError,
            "map: is for the objective 'reference', not for 'gauge'$",
        ),
        (
            (np.zeros((9, 2)),),
            {"objective": "gauge", "levels": np.ones(9), "reference": lattice(3)},
            ValueError,
            "levels: the reference points have levels of their own",
        ),
        ((np.zeros((9, 2)),), {"margin": "a"}, ValueError, "margin: expected a number"),
        (
            (np.zeros((9, 2)), np.ones(8)),
            {},
            ValueError,
            r"weights: expected shape \(9,\), one for each",
        ),
        (
            (np.zeros((1, 2)),),
            {"reference": lattice(1)},
            ValueError,
            "lie on one line .*; no map determines a metric",
        ),
    ],
)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        fit_randers(*arguments, **options)
