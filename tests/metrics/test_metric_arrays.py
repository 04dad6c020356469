"""Arrays in, the same kind of array out; and what is refused, by name."""

import array_api_strict
import numpy as np
import pytest
import torch
from strategies import as_numpy

from finslerconv.balls import Ellipse, affine, overlap, radial, volume
from finslerconv.metrics import CallableMetric, Euclidean, FinslerMetric, Randers, Riemannian

MAKERS = {
    "numpy float64": lambda x: np.asarray(x, dtype=np.float64),
    "numpy float32": lambda x: np.asarray(x, dtype=np.float32),
    "torch float64": lambda x: torch.tensor(x, dtype=torch.float64),
    "torch float32": lambda x: torch.tensor(x, dtype=torch.float32),
    # Speaks the array API standard and nothing beyond it.
    "strict float64": lambda x: array_api_strict.asarray(np.asarray(x, dtype=np.float64)),
    "strict float32": lambda x: array_api_strict.asarray(np.asarray(x, dtype=np.float32)),
}
HALF = {
    "torch float16": lambda x: torch.tensor(x, dtype=torch.float16),
    "torch bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "numpy float16": lambda x: np.asarray(x, dtype=np.float16),
}


def everything(make, dim, like=None):
    """Return every public result of the core for one metric, by name."""
    like = make if like is None else like
    M = np.eye(dim) * np.linspace(1, 2, dim)
    metric = Randers(like(M), like(np.full(dim, 0.25)))
    riemannian, euclidean = Riemannian(like(M)), Euclidean(dim)
    plain = CallableMetric(metric.norm, dim=dim, like=like(M))
    v = make(np.random.default_rng(0).standard_normal((3, dim)))
    again = Randers.from_zermelo(*metric.zermelo())
    results = {"omega_norm": metric.omega_norm(), "M": again.M, "omega": again.omega}
    results |= {f"zermelo {i}": x for i, x in enumerate(metric.zermelo())}
    if dim < 3:
        results["volume"] = volume(metric)
        results["overlap"] = overlap(metric, riemannian)
        results["overlap euclidean"] = overlap(euclidean, metric)
    for m in (metric, riemannian, euclidean, plain, metric.dual(), riemannian.dual()):
        name = type(m).__name__
        results |= {
            f"{name}.norm": m.norm(v),
            f"{name}.energy": m.energy(v),
            f"{name}.dual_norm": m.dual_norm(v),
            f"{name}.indicatrix": m.indicatrix(v),
            f"{name}.unit_ball": radial(m, v),
            f"{name}.fundamental_tensor": m.fundamental_tensor(v),
            f"{name}.reverse": m.reverse().norm(v),
            f"{name}.symmetrize": m.symmetrize().norm(v),
        }
        if m is not euclidean:
            results[f"{name}.asymmetry_ratio"] = m.asymmetry_ratio()
        if m is not plain:
            results[f"{name}.affine"] = affine(m, v)
        m.validate()
    if dim == 2:
        ellipse = Ellipse.of(metric)
        results |= {
            name: getattr(ellipse, name) for name in ("centre", "shape", "axes", "angle", "area")
        }
        results |= {"support": ellipse.support(v), "boundary": ellipse.boundary(5)}
        assert ellipse.contains(v).shape == (3,)
    return results


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_kind_and_dtype_are_kept_and_the_numbers_agree(name, dim):
    make = MAKERS[name]
    wanted = make(np.zeros(1))
    # A single number is a scalar in NumPy.
    kinds = (np.ndarray, np.floating) if isinstance(wanted, np.ndarray) else type(wanted)
    reference = everything(MAKERS["numpy float64"], dim)
    eps = 2.3e-16 if "64" in name else 1.2e-7
    for key, result in everything(make, dim).items():
        assert isinstance(result, kinds), key
        assert result.dtype == wanted.dtype, key
        # A scalar of NumPy 2.0 does not name its device.
        assert getattr(result, "device", "cpu") == getattr(wanted, "device", "cpu"), key
        # Second differences and the searches by them are right to the root of rounding.
        searched = key.startswith("CallableMetric")
        np.testing.assert_allclose(
            as_numpy(result),
            as_numpy(reference[key]),
            rtol=1000 * eps if not searched else 10 * eps**0.5,
            atol=100 * eps if not searched else 10 * eps**0.5,
            err_msg=key,
        )


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_half_precision(name, dim):
    """Every closed form works in halves (of one digit or three)."""
    make = HALF[name]
    M, omega = np.eye(dim) * np.linspace(1, 2, dim), np.full(dim, 0.25)
    v = np.array([[0.5] * dim, [0.0] * dim, [-0.25] + [1.0] * (dim - 1)])
    metric, exact = Randers(make(M), make(omega)), Randers(M, omega)
    riemannian, h = Riemannian(make(M)), make(v)
    eps = 2.0**-7 if "bfloat" in name else 2.0**-10
    for result, expected in (
        (metric.norm(h), exact.norm(v)),
        (metric.dual_norm(h), exact.dual_norm(v)),
        (metric.unit_ball(h), exact.unit_ball(v)),
        (affine(metric, h), affine(exact, v)),
        (affine(riemannian, h), affine(Riemannian(M), v)),
        (metric.dual().M, exact.dual().M),
        (metric.zermelo().h, exact.zermelo().h),
        (metric.asymmetry_ratio(), exact.asymmetry_ratio()),
        (Euclidean(dim).norm(h), Euclidean(dim).norm(v)),
    ):
        assert result.dtype == h.dtype
        x = result.float() if hasattr(result, "float") else result
        np.testing.assert_allclose(as_numpy(x), expected, rtol=16 * eps, atol=8 * eps)


def test_float64_is_never_lowered():
    metric = Randers(np.eye(2, dtype=np.float32), np.zeros(2, dtype=np.float32))
    for function in (metric.norm, metric.dual_norm, metric.unit_ball, metric.fundamental_tensor):
        assert function(np.ones(2)).dtype == np.float64
    assert Euclidean().norm(np.ones(2, dtype=np.float32)).dtype == np.float32


def test_batches_broadcast_from_the_right():
    rng = np.random.default_rng(0)
    omega = rng.uniform(-0.4, 0.4, (4, 3, 2))
    metric = Randers(np.eye(2), omega)
    assert metric.batch_shape == (4, 3)
    v = rng.standard_normal((7, 1, 1, 2))
    F = metric.norm(v)
    assert F.shape == (7, 4, 3)
    slow = [[[np.hypot(*u) + w @ u for w in row] for row in omega] for u in v[:, 0, 0]]
    np.testing.assert_allclose(F, slow, rtol=1e-13)
    for function in (metric.dual_norm, CallableMetric(metric.norm).dual_norm):
        assert function(v).shape == (7, 4, 3)
    for function in (metric.unit_ball, metric.indicatrix, lambda g: affine(metric, g)):
        assert function(v).shape == (7, 4, 3, 2)
    assert metric.fundamental_tensor(v).shape == (7, 4, 3, 2, 2)
    assert Riemannian(np.eye(2)[None]).fundamental_tensor(v).shape == (7, 1, 1, 2, 2)
    assert metric.asymmetry_ratio().shape == metric.omega_norm().shape == (4, 3)
    assert metric.norm(np.zeros((0, 1, 1, 2))).shape == (0, 4, 3)
    assert Randers(np.zeros((0, 2, 2)), np.zeros((0, 2))).norm(np.ones(2)).shape == (0,)


@pytest.mark.parametrize("make", [MAKERS["numpy float64"], MAKERS["torch float64"]])
def test_indexing_a_field(make):
    rng = np.random.default_rng(0)
    scale = 1 + rng.random((5, 4, 3, 1, 1))
    omega = rng.uniform(-0.4, 0.4, (4, 3, 2))
    riemannian, randers = (
        Riemannian(make(scale * np.eye(2))),
        Randers(make(scale * np.eye(2)), make(omega)),
    )
    v = make(np.array([0.3, -0.7]))
    mask = rng.random((5, 4, 3)) < 0.5
    for metric in (riemannian, randers):
        F = as_numpy(metric.norm(v))
        for index in (0, (1, 2), (..., 1), (slice(None), 0), (0, ..., 2), None, (4, 3, 2)):
            one = metric[index]
            assert type(one) is type(metric)
            assert one.batch_shape == F[index].shape
            assert (as_numpy(one.norm(v)) == F[index]).all()
        picked = metric[mask if isinstance(v, np.ndarray) else torch.tensor(mask)]
        assert (as_numpy(picked.norm(v)) == F[mask]).all()
        with pytest.raises(IndexError):
            metric[7]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "function", ["norm", "dual_norm", "unit_ball", "indicatrix", "fundamental_tensor"]
)
@pytest.mark.parametrize(
    "metric", [Euclidean(), Riemannian(np.eye(2)), Randers(np.eye(2), np.zeros(2))], ids=repr
)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, 0.0], TypeError, r"\w+: expected an array .*got list; convert it first"),
        (3.0, TypeError, r"\w+: expected an array .*got float"),
        (np.array([1, 0]), TypeError, r"\w+: expected a real floating-point dtype, got int64"),
        (
            np.array([1, 0j]),
            TypeError,
            r"\w+: expected a real floating-point dtype, got complex128",
        ),
        (torch.tensor([1, 0]), TypeError, r"\w+: expected a real floating-point .*got torch.int64"),
        (np.ones(3), ValueError, r"\w+: expected vectors of 2 components .*got shape \(3,\)"),
        (np.array(1.0), ValueError, r"\w+: expected vectors of 2 components .*got shape \(\)"),
    ],
    ids=["list", "float", "integers", "complex", "torch integers", "three", "scalar"],
)
def test_vectors_that_are_refused(metric, function, value, error, message):
    with pytest.raises(error, match=message):
        getattr(metric, function)(value)


@pytest.mark.unchecked
@pytest.mark.parametrize("function", ["norm", "dual_norm", "unit_ball", "fundamental_tensor"])
def test_mixed_kinds_are_refused_both_ways(function):
    for here, there in ((np.eye(2), torch.ones(2)), (torch.eye(2), np.ones(2))):
        for metric in (Riemannian(here), Randers(here, here[0] * 0)):
            with pytest.raises(TypeError, match=r"v|p: expected the kind of array that the metric"):
                getattr(metric, function)(there)
            with pytest.raises(TypeError, match="points: expected the kind of array"):
                affine(metric, there)
    with pytest.raises(
        TypeError, match=r"all arrays must be of one kind, got numpy.ndarray, torch"
    ):
        Randers(np.eye(2), torch.zeros(2))
    with pytest.raises(TypeError, match="p: expected the kind of array"):
        Ellipse.of(Riemannian(np.eye(2))).support(torch.ones(2))


@pytest.mark.unchecked
@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("M", "message"),
    [
        (np.ones((2, 3)), r"M: expected square matrices .*got shape \(2, 3\)"),
        (np.ones(2), r"M: expected square matrices .*got shape \(2,\)"),
        (np.ones((0, 0)), r"M: expected square matrices .*got shape \(0, 0\)"),
        (np.array([[1.0, 0.5], [0, 1]]), r"M: expected symmetric matrices, got \[\[1.0, 0.5\]"),
        (np.diag([1.0, -1]), r"M: expected positive definite matrices, got \[\[1.0, 0.0\]"),
        (-np.eye(3), "M: expected positive definite matrices"),
        (np.ones((50, 50)), "M: expected positive definite matrices, got one of 50 x 50$"),
        (np.diag([1.0, np.nan]), "M: expected finite matrices"),
        (np.zeros((1, 1)), r"M: expected positive definite matrices, got \[\[0.0\]\]"),
        (
            np.stack([np.eye(2), np.diag([1.0, 0]), -np.eye(2)]).reshape(3, 1, 2, 2),
            r"M: expected positive definite matrices, got \[\[1.0, 0.0\], \[0.0, 0.0\]\] at index "
            r"\(1, 0\)",
        ),
    ],
)
def test_matrices_that_are_refused(make, M, message):
    for build in (Riemannian, lambda M: Randers(M, M.reshape(-1)[: M.shape[-1]] * 0)):
        with pytest.raises(ValueError, match=message):
            build(make(M))


@pytest.mark.unchecked
@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_drifts_that_are_refused(make):
    M = make(np.diag([4.0, 1.0]))
    with pytest.raises(ValueError, match=r"omega: expected \|omega\|_\{M\^-1\} < 1, got 1$"):
        Randers(M, make(np.array([2.0, 0.0])))
    field = np.zeros((2, 3, 2))
    field[1, 1:] = [0.0, 1.5]
    with pytest.raises(ValueError, match=r"omega: expected .* < 1, got 1.5 at index \(1, 1\)"):
        Randers(M, make(field))
    field[1, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"omega: expected .* < 1, got nan at index \(1, 1\)"):
        Randers(M, make(field))
    with pytest.raises(ValueError, match=r"omega: expected vectors of 2 components.*\(3,\)"):
        Randers(M, make(np.zeros(3)))
    with pytest.raises(ValueError, match=r"M, omega: expected batch shapes that broadcast, got"):
        Randers(make(np.stack([np.eye(2)] * 3)), make(np.zeros((2, 2))))
    with pytest.raises(TypeError, match="omega: expected a real floating-point dtype, got"):
        Randers(M, make(np.zeros(2, dtype=int)))
    with pytest.raises(ValueError, match=r"W: expected the h-norm of W < 1, got 2"):
        Randers.from_zermelo(M, make(np.array([1.0, 0.0])))
    with pytest.raises(ValueError, match="h: expected positive definite matrices"):
        Randers.from_zermelo(-M, make(np.zeros(2)))
    with pytest.raises(ValueError, match=r"h, W: expected batch shapes that broadcast, got"):
        Randers.from_zermelo(make(np.stack([np.eye(2)] * 3)), make(np.zeros((2, 2))))
    Randers(M, make(np.array([5.0, 0.0])), validate=False)  # the caller's word is taken


def test_nan_is_never_swallowed():
    for v in (np.array([np.nan, 0.0]), np.array([0.0, np.nan])):
        for metric in (Euclidean(), Riemannian(np.eye(2)), Randers(np.eye(2), np.zeros(2))):
            assert np.isnan(metric.norm(v))
            assert np.isnan(metric.dual_norm(v))
            assert np.isnan(metric.unit_ball(v)).any()


def test_the_core_is_an_abstraction_over_one_method():
    assert FinslerMetric.__abstractmethods__ == {"norm"}
