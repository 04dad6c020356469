"""What every metric of the library keeps: the axioms, duality, arrays, derivatives, fields."""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from finslerconv.metrics import (
    TTI,
    AlphaBeta,
    AsymmetricQuadratic,
    CallableMetric,
    Dual,
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
    Randers,
    Reversed,
    Riemannian,
    Scaled,
    Symmetrized,
    Tabulated,
)

HEXAGON = np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], -1)


def square_of_slope(s):
    return (1 + s) ** 2


def spd(rng, d):
    A = rng.standard_normal((2, d, d)) / 2
    return A @ A.swapaxes(-1, -2) + np.eye(d)


def sym(M):
    """Numerical derivatives vary every entry by itself."""
    return (M + M.swapaxes(-1, -2)) / 2


def below(rng, M, bound):
    """One-forms of a norm below ``bound``."""
    omega = rng.standard_normal(M.shape[:-1])
    size = np.sqrt(np.einsum("bi,bi->b", omega, np.linalg.solve(M, omega[..., None])[..., 0]))
    return omega * (bound * rng.uniform(0.5, 1, 2) / size)[:, None]


def one_form(bound):
    def draw(rng, d):
        M = spd(rng, d)
        return {"M": M, "omega": below(rng, M, bound)}

    return draw


def quartic(rng, d):
    return {"a": rng.uniform(0.8, 1.2, (2, d)), "W": rng.uniform(-0.3, 0.3, (2, d))}


def polygon(rng, d):
    corners = HEXAGON if d == 2 else np.concatenate((np.eye(d), -np.eye(d)))
    return {"points": corners + rng.uniform(-0.2, 0.2, (2, *corners.shape))}


def rock(rng, d):
    return {
        "vp": rng.uniform(2, 3, 2),
        "vs": rng.uniform(1, 1.5, 2),
        "epsilon": rng.uniform(0, 0.3, 2),
        "delta": rng.uniform(-0.1, 0.2, 2),
        "axis": rng.standard_normal((2, d)),
    }


def two(rng, d):
    M = spd(rng, d)
    return {"M": M, "omega": below(rng, M, 0.4), "a": rng.uniform(0.5, 2, (2, d))}


def body(rng, d):
    return polygon(rng, d) | {"x": rng.uniform(-0.2, 0.2, (2, d))}


@dataclass(frozen=True)
class Kind:
    """How to make metrics of a kind: random parameters, a batch of two, and the metrics of them."""

    draw: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    make: Callable[..., FinslerMetric]
    dims: tuple[int, ...] = (2, 3)
    dual_dims: tuple[int, ...] = (1, 2, 3, 4)  # where the dual norm is found


KINDS = {
    "Riemannian": Kind(lambda rng, d: {"M": spd(rng, d)}, lambda M: Riemannian(sym(M)), (1, 2, 3)),
    "Randers": Kind(one_form(0.8), lambda M, omega: Randers(sym(M), omega), (1, 2, 3)),
    "AsymmetricQuadratic": Kind(
        one_form(3.0), lambda M, omega: AsymmetricQuadratic(sym(M), omega), (1, 2, 3)
    ),
    "AlphaBeta": Kind(one_form(0.6), lambda M, omega: AlphaBeta(square_of_slope, sym(M), omega)),
    "Matsumoto": Kind(one_form(0.45), lambda M, omega: Matsumoto(sym(M), omega), (1, 2, 3)),
    "PNorm": Kind(
        lambda rng, d: {"p": rng.uniform(1.2, 4, 2), "weights": rng.uniform(0.5, 2, (2, d))},
        PNorm,
        (1, 2, 3),
    ),
    "Polytope": Kind(polygon, Polytope),
    "TTI": Kind(rock, TTI),
    "Tabulated": Kind(
        lambda rng, d: {"samples": 1 + 0.4 * np.cos(np.arange(32) * np.pi / 16 + [[0.3], [2.0]])},
        Tabulated,
        dims=(2,),
    ),
    "Navigation": Kind(quartic, lambda a, W: Navigation(PNorm(4.0, a), W)),
    "Navigation on an ellipse": Kind(
        lambda rng, d: {"M": spd(rng, d), "W": rng.uniform(-0.3, 0.3, (2, d))},
        lambda M, W: Navigation(Riemannian(sym(M)), W),
    ),
    "Funk": Kind(body, lambda points, x: Funk(Polytope(points), x)),
    "Funk of a disc": Kind(
        lambda rng, d: {"x": quartic(rng, d)["W"]}, lambda x: Funk(Euclidean(x.shape[-1]), x)
    ),
    "Hilbert": Kind(body, lambda points, x: Hilbert(Polytope(points), x)),
    "Scaled": Kind(
        lambda rng, d: two(rng, d) | {"c": rng.uniform(0.5, 2, 2)},
        lambda M, omega, a, c: c * Randers(sym(M), omega),
    ),
    "Reversed": Kind(one_form(0.45), lambda M, omega: Reversed(Matsumoto(sym(M), omega))),
    "Symmetrized": Kind(one_form(0.45), lambda M, omega: Symmetrized(Matsumoto(sym(M), omega))),
    "Dual": Kind(one_form(0.45), lambda M, omega: Dual(Matsumoto(sym(M), omega))),
    "Sum": Kind(two, lambda M, omega, a: Randers(sym(M), omega) + PNorm(3.0, a)),
    "Maximum": Kind(
        two, lambda M, omega, a: Maximum(Randers(sym(M), omega), PNorm(3.0, a)), dual_dims=(2,)
    ),
    "PulledBack": Kind(
        lambda rng, d: two(rng, d) | {"A": np.eye(d) + rng.uniform(-0.2, 0.2, (2, d, d))},
        lambda M, omega, a, A: Matsumoto(sym(M), omega).pullback(A),
    ),
    "PulledBack to a plane": Kind(
        lambda rng, d: two(rng, 3) | {"A": rng.standard_normal((2, 3, d))},
        lambda M, omega, a, A: Matsumoto(sym(M), omega).pullback(A),
        dims=(2,),
    ),
}
CASES = [(name, d) for name, kind in KINDS.items() for d in kind.dims]
every = pytest.mark.parametrize(("name", "d"), CASES)


def parameters(name, d, seed=0, convert=np.asarray):
    drawn = KINDS[name].draw(np.random.default_rng((seed, d)), d)
    return {key: convert(value) for key, value in drawn.items()}


def metric_of(name, d, seed=0, convert=np.asarray):
    return KINDS[name].make(**parameters(name, d, seed, convert))


def vectors(d, n=5, seed=7):
    return np.random.default_rng(seed).standard_normal((n, 1, d))


@every
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_axioms(name, d, seed):
    """Positive, positively homogeneous, convex; the ball is where the norm is at most 1."""
    metric = metric_of(name, d, seed)
    u, v = vectors(d, 40, seed), vectors(d, 40, seed + 1)
    F, G = metric.norm(u), metric.norm(v)
    assert F.shape == (40, 2)
    assert (F > 0).all()
    np.testing.assert_allclose(metric.norm(3 * u), 3 * F, rtol=1e-10)
    assert (metric.norm(u + v) <= (F + G) * (1 + 1e-10)).all()
    np.testing.assert_allclose(metric.norm(metric.indicatrix(u)), 1, rtol=1e-10)
    g = u / np.linalg.norm(u, axis=-1, keepdims=True)
    np.testing.assert_allclose(metric.norm(metric.unit_ball(0.5 * g)), 0.5, rtol=1e-10)
    assert (metric.norm(0 * u) == 0).all()
    np.testing.assert_allclose(metric.energy(u), F**2 / 2, rtol=1e-10)
    np.testing.assert_allclose(metric.reverse().norm(u), metric.norm(-u), rtol=1e-10)
    there_and_back = (F + metric.norm(-u)) / 2
    np.testing.assert_allclose(metric.symmetrize().norm(u), there_and_back, rtol=1e-10)
    form = metric.randers_form()
    if form is not None:
        np.testing.assert_allclose(Randers(*form.with_omega()).norm(u), F, rtol=1e-10)


@every
def test_validate_finds_no_fault(name, d):
    metric = metric_of(name, d)
    metric.validate()
    FinslerMetric.validate(metric)  # on sampled directions
    assert metric.dim == d
    assert metric.batch_shape == (2,)
    assert np.shape(metric.asymmetry_ratio()) == (2,)


@pytest.mark.slow
@every
def test_dual_norm_is_the_support_function(name, d):
    """Against many points of the ball, and the dual of the dual against the norm."""
    if d not in KINDS[name].dual_dims:
        return
    metric = metric_of(name, d)
    p = vectors(d, 4)
    dual = metric.dual_norm(p)
    u = vectors(d, 4000, seed=3)
    values = np.einsum("pbi,nbi->pnb", np.broadcast_to(p, (4, 2, d)), metric.indicatrix(u))
    largest = values.max(1)
    assert (largest <= dual * (1 + 1e-12)).all()
    np.testing.assert_allclose(largest, dual, rtol=5e-3 if d < 3 else 0.1)
    np.testing.assert_allclose(metric.dual().norm(p), dual, rtol=1e-10)
    np.testing.assert_allclose(metric.dual().dual_norm(p), metric.norm(p), rtol=1e-10)
    assert (metric.dual_norm(0 * p) == 0).all()
    if d == 2:
        by_search = CallableMetric(metric.norm).dual_norm(p)
        np.testing.assert_allclose(by_search, dual, rtol=1e-10)
        again = CallableMetric(metric.dual_norm).dual_norm(p)
        np.testing.assert_allclose(again, metric.norm(p), rtol=1e-9)


@every
def test_asymmetry_is_the_largest_ratio(name, d):
    metric = metric_of(name, d)
    u = vectors(d, 4000, seed=3)
    ratio, seen = metric.asymmetry_ratio(), (metric.norm(-u) / metric.norm(u)).max(0)
    assert (seen <= ratio * (1 + (1e-4 if d < 3 else 1e-2))).all()
    np.testing.assert_allclose(seen, ratio, rtol=1e-2 if d < 3 else 0.1)


@every
def test_a_field_is_its_metrics(name, d):
    metric = metric_of(name, d)
    v = vectors(d)
    p = v if d in KINDS[name].dual_dims else v[:0]
    for i in range(2):
        assert metric[i].batch_shape == ()
        np.testing.assert_allclose(metric[i].norm(v[:, 0]), metric.norm(v)[:, i], rtol=1e-12)
        np.testing.assert_allclose(
            metric[i].dual_norm(p[:, 0]), metric.dual_norm(p)[:, i], rtol=1e-10
        )
    np.testing.assert_allclose(metric[1:].norm(v), metric.norm(v)[:, 1:], rtol=1e-12)
    np.testing.assert_allclose(
        metric[np.array([True, False])].norm(v), metric.norm(v)[:, :1], rtol=1e-12
    )


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tensors(name, d, dtype):
    """PyTorch computes NumPy's numbers."""
    questions = ["norm", "unit_ball"]
    if d == 2 or (d in KINDS[name].dual_dims and dtype == torch.float64):
        questions.append("dual_norm")
    rtol = 1e-10 if dtype == torch.float64 else 1e-3
    assert_numpys(name, d, lambda x: torch.as_tensor(x, dtype=dtype), rtol, questions)


@pytest.mark.parametrize(
    "name", ["AsymmetricQuadratic", "AlphaBeta", "PNorm", "Polytope", "Funk", "Hilbert"]
)
def test_jax_arrays(name):
    """JAX computes NumPy's numbers; what is found by search is slow there without jit."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        assert_numpys(name, 2, jax.numpy.asarray, 1e-10, ["norm"])


def assert_numpys(name, d, convert, rtol, questions):
    """The numbers of NumPy, in the kind of array and dtype of what was given."""
    metric, expected = metric_of(name, d, convert=convert), metric_of(name, d)
    v = vectors(d)
    for question in questions:
        found = getattr(metric, question)(convert(v))
        assert type(found) is type(convert(v))
        assert found.dtype == convert(v).dtype
        assert tuple(found.shape) == np.shape(getattr(expected, question)(v))
        np.testing.assert_allclose(
            np.asarray(found), getattr(expected, question)(v), rtol=rtol, atol=rtol
        )
    assert type(metric.like) is type(convert(v))


@pytest.mark.slow
@every
def test_derivatives_in_all_parameters(name, d):
    """By torch, against differences: first and second ones of norm and dual norm."""
    kind = KINDS[name]
    given_ = parameters(name, d, convert=lambda x: torch.tensor(x, requires_grad=True))
    v = torch.tensor(vectors(d, 2), requires_grad=True)

    def norm(v, *values):
        return kind.make(**dict(zip(given_, values, strict=True))).norm(v)

    def dual_norm(v, *values):
        return kind.make(**dict(zip(given_, values, strict=True))).dual_norm(v)

    inputs = (v, *given_.values())
    assert gradcheck(norm, inputs, fast_mode=True)
    assert gradgradcheck(norm, inputs, fast_mode=True)
    if d in kind.dual_dims and d < 3:
        assert gradcheck(dual_norm, inputs, fast_mode=True)


#: Without corners, so that the fundamental tensor is there and can be inverted; of the norms that
#: are found by search only those of the plane, for the tests' speed.
SMOOTH = [
    (n, d)
    for n, d in CASES
    if n not in ("Polytope", "Funk", "Hilbert", "Maximum")
    and (d == 2 or n not in ("TTI", "Navigation"))
]


@pytest.mark.parametrize(("name", "d"), SMOOTH)
def test_tensors_are_right_for_every_way_of_computing(name, d):
    """Automatic differentiation, forward mode too, against differences; Legendre's transform."""
    if d not in KINDS[name].dual_dims:
        return
    metric, numpy = metric_of(name, d, convert=torch.as_tensor), metric_of(name, d)
    v = vectors(d, 3)
    g = metric.fundamental_tensor(torch.as_tensor(v))
    # Differences lose digits where the next derivatives are large, as near the axes of a p-norm.
    np.testing.assert_allclose(g, numpy.fundamental_tensor(v), rtol=1e-3, atol=1e-5)
    p = torch.einsum("...ij,...j->...i", g, torch.as_tensor(v))
    torch.testing.assert_close(metric.legendre(torch.as_tensor(v)), p, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(metric.dual_norm(p), metric.norm(torch.as_tensor(v)))
    back = metric.legendre_inverse(p)
    torch.testing.assert_close(back, torch.as_tensor(v).expand_as(back), rtol=1e-6, atol=1e-6)
    inverse = metric.dual().fundamental_tensor(p)
    torch.testing.assert_close(inverse @ g, torch.eye(d).expand_as(g).double(), rtol=0, atol=1e-5)


@every
def test_everything_is_finite_at_zero(name, d):
    given_ = parameters(name, d, convert=lambda x: torch.tensor(x, requires_grad=True))
    metric = KINDS[name].make(**given_)
    zero = torch.zeros(3, 1, d, dtype=torch.float64, requires_grad=True)
    outputs = [metric.norm(zero), metric.energy(zero), metric.unit_ball(zero)]
    if d < 3:
        outputs.append(metric.dual_norm(zero))
    for output in outputs:
        assert (output == 0).all()
        leaves = (zero, *given_.values())
        gradients = torch.autograd.grad(
            output.sum(), leaves, materialize_grads=True, retain_graph=True
        )
        for gradient in gradients:
            assert gradient.isfinite().all()


@every
def test_pickle_and_repr(name, d):
    metric = metric_of(name, d)
    again = pickle.loads(pickle.dumps(metric))
    v = vectors(d)
    np.testing.assert_array_equal(again.norm(v), metric.norm(v))
    assert repr(metric).startswith(type(metric).__name__ + "(")
    assert "\n" not in repr(metric)


@every
def test_nothing_warns(name, d):
    """No division by zero or overflow on the way, where NumPy would say so."""
    metric = metric_of(name, d)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.norm(np.concatenate((np.zeros((1, 1, d)), np.eye(d)[:, None], vectors(d))))
        if d in KINDS[name].dual_dims and d < 3:
            metric.dual_norm(np.concatenate((np.zeros((1, 1, d)), np.eye(d)[:, None], vectors(d))))


def test_the_list_is_complete():
    """Every metric that the package exports is among the kinds, or has its own tests."""
    from finslerconv import metrics

    classes = {
        c
        for c in map(metrics.__dict__.get, metrics.__all__)
        if isinstance(c, type) and issubclass(c, FinslerMetric)
    }
    seen = {type(metric_of(name, kind.dims[-1])) for name, kind in KINDS.items()}
    own = {FinslerMetric, metrics.OneFormMetric, CallableMetric, Euclidean, Kropina}
    assert classes - own == seen
    assert Scaled in seen
