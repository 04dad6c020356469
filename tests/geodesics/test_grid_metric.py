"""GridMetric and FunctionMetric: interpolation, continuation, gradients, errors."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fields import half_plane, known_fields, known_fields_3d, pull_back, random_smooth
from scipy.ndimage import map_coordinates

from finslerconv.balls import polar
from finslerconv.geodesics import (
    FunctionMetric,
    GridMetric,
    chord_distance,
    distance,
    exponential,
    geodesic,
    geodesic_ball,
    geodesic_flow,
    logarithm,
    path_length,
)
from finslerconv.geodesics.fields import _grid
from finslerconv.images import gradient_metric
from finslerconv.metrics import CallableMetric, Euclidean, Randers, Riemannian

DOUBLE = torch.float64


def random_arrays(shape, seed=0):
    """Return valid M and omega on a grid, that jump from node to node."""
    rng = np.random.default_rng(seed)
    d = len(shape)
    A = rng.standard_normal((*shape, d, d))
    M = A @ A.swapaxes(-1, -2) + 0.1 * np.eye(d)
    u = rng.standard_normal((*shape, d))
    u *= 0.95 * rng.random((*shape, 1)) / np.linalg.norm(u, axis=-1, keepdims=True)
    return M, np.einsum("...ij,...j->...i", np.linalg.cholesky(M), u)


def positions_in(field, n, seed=0, beyond=0.0):
    rng = np.random.default_rng(seed)
    last = np.array(field.grid_shape) - 1.0
    t = rng.uniform(-beyond * last, (1 + beyond) * last, (n, field.dim))
    return np.asarray(field.origin) + t * np.asarray(field.spacing)


@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 6)])
@pytest.mark.parametrize("outside", ["constant", "reflect"])
def test_linear_interpolation_is_scipys(shape, outside):
    M, omega = random_arrays(shape)
    d = len(shape)
    spacing, origin = (0.5, 2.0, 1.5)[:d], (-1.0, 3.0, 0.5)[:d]
    field = GridMetric(M, omega, spacing, origin, outside=outside)
    x = positions_in(field, 200, beyond=1.7)
    got = field.at(x)
    t = ((x - np.array(origin)) / np.array(spacing)).T
    mode = {"constant": "nearest", "reflect": "mirror"}[outside]

    def read(entry):
        return map_coordinates(entry, t, order=1, mode=mode)

    for i in range(d):
        np.testing.assert_allclose(got.omega[:, i], read(omega[..., i]), atol=1e-12)
        for j in range(d):
            np.testing.assert_allclose(got.M[:, i, j], read(M[..., i, j]), atol=1e-12)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 6), (1, 4), (2, 3)])
def test_nodes_are_interpolated_exactly(shape, interpolation):
    M, omega = random_arrays(shape)
    field = GridMetric(M, omega, 0.25, 1.0, interpolation, validate=False)
    nodes = field.nodes()
    assert nodes.shape == (*shape, len(shape))
    assert np.array_equal(nodes[(-1,) * len(shape)], 1.0 + 0.25 * (np.array(shape) - 1))
    got = field.at(nodes)
    np.testing.assert_allclose(got.M, M, atol=1e-14)
    np.testing.assert_allclose(got.omega, omega, atol=1e-14)


@pytest.mark.slow
@given(
    shape=st.lists(st.integers(1, 300), min_size=2, max_size=2),
    spacing=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    offset=st.lists(st.floats(-4, 4), min_size=2, max_size=2),
    side=st.sampled_from((-1, 1)),
    dtypes=st.sampled_from(
        [(a, b) for a in ("float32", "float64") for b in ("float32", "float64")]
    ),
)
@settings(max_examples=200)
def test_a_grid_contains_its_own_nodes(shape, spacing, offset, side, dtypes):
    """Wherever the grid is, of whatever spacing; and nothing that is a step away.

    The origin is up to 10^4 steps away, so that the steps are well above the rounding of float32.
    """
    spacing = tuple(10.0**x for x in spacing)
    origin = tuple(side * 10.0**a * s for a, s in zip(offset, spacing, strict=True))
    M = np.broadcast_to(np.eye(2, dtype=dtypes[0]), (*shape, 2, 2))
    field = GridMetric(M, spacing=spacing, origin=origin, validate=False)
    nodes = field.nodes()
    assert field.contains(nodes).all()
    # As one computes them oneself, in either dtype.
    corners = np.array([(0, 0), (shape[0] - 1, 0), (0, shape[1] - 1), (shape[0] - 1, shape[1] - 1)])
    own = (np.array(origin) + np.array(spacing) * corners).astype(dtypes[1])
    assert field.contains(own).all()
    step = np.array(spacing)
    for axis in range(2):
        away = np.where(np.arange(2) == axis, step, 0.0)
        assert not field.contains((own[0] - away).astype(dtypes[1]))
        assert not field.contains((own[3] + away).astype(dtypes[1]))


@given(
    seed=st.integers(0, 2**32 - 1),
    dtypes=st.sampled_from(
        [(a, b) for a in ("float32", "float64") for b in ("float32", "float64")]
    ),
)
@settings(max_examples=20)
def test_every_node_can_be_a_source(seed, dtypes):
    rng = np.random.default_rng(seed)
    spacing = 10.0 ** rng.uniform(-2, 2, 2)
    origin = rng.uniform(-1e3, 1e3, 2) * spacing
    shape = tuple(rng.integers(2, 9, 2))
    M = np.broadcast_to(np.eye(2, dtype=dtypes[0]), (*shape, 2, 2))
    field = GridMetric(M, spacing=tuple(spacing), origin=tuple(origin))
    where = tuple(rng.integers(0, n) for n in shape) if seed % 2 else (shape[0] - 1, shape[1] - 1)
    mask = np.zeros(shape, bool)
    mask[where] = True
    exact = np.linalg.norm((np.indices(shape).transpose(1, 2, 0) - where) * spacing, axis=-1)
    tolerance = 1e-9 * exact.max() if dtypes == ("float64", "float64") else 2e-3 * spacing.max()
    for sources in (mask, field.nodes()[where].astype(dtypes[1])):
        np.testing.assert_allclose(distance(field, sources), exact, atol=tolerance)


def test_a_source_on_the_border_has_a_gradient_where_rounding_left_the_grid():
    M = torch.eye(2).double().expand(20, 20, 2, 2)
    field = GridMetric(M, spacing=(0.01, 1.0), origin=(210.8, 0.0))
    source = (field.nodes()[-1, 3] + torch.tensor([1e-13, 0.0])).requires_grad_()
    distance(field, source)[0, 3].backward()
    torch.testing.assert_close(source.grad, torch.tensor([1.0, 0.0]).double(), atol=1e-6, rtol=0)


NUMBERS = {
    "tuple": lambda i, j: (i, j),
    "list of floats": lambda i, j: [float(i), float(j)],
    "unravel_index": lambda i, j: np.unravel_index(9 * i + j, (7, 9)),
    "scalars of NumPy and arrays without axes": lambda i, j: (np.float32(i), np.array(j)),
}


def what_takes_positions(field, x, y):
    """Return, by name, the results of everything that takes positions or vectors."""
    fast: dict = {"method": "rk4", "steps": 2}
    results = {
        "at": field.at(x).M,
        "exponential": exponential(field, x, y, **fast),
        "geodesic_flow": geodesic_flow(field, x, y, [0, 0.5], **fast).position,
        "logarithm": logarithm(field, x, y, start=x, **fast),
        "geodesic": geodesic(field, x, y, 3, **fast),
        "chord_distance": chord_distance(field, x, y),
        "geodesic_ball": geodesic_ball(field, x, polar(1, 4), 0.1, check=False),
    }
    if isinstance(field, GridMetric):
        results["contains"] = field.contains(x)
    return results


@cache
def read_from_arrays(kind):
    """Return a field of a kind, two positions as its arrays, and what these give."""
    M, omega = np.broadcast_to(np.diag([1.0, 2.0]), (7, 9, 2, 2)), np.full((7, 9, 2), 0.3)
    field = GridMetric(M, omega)
    if kind == "function":
        field = FunctionMetric(lambda x: Riemannian(torch.eye(2).to(x)))
    elif kind != "numpy":
        field = field.to(torch.float32 if kind == "float32" else DOUBLE)
    x, y = (
        torch.tensor(p, dtype=torch.float32 if kind == "float32" else DOUBLE)
        for p in ((2, 3), (3, 2))
    )
    if kind == "numpy":
        x, y = x.numpy(), y.numpy()
    return field, x, y, what_takes_positions(field, x, y)


@pytest.mark.parametrize("write", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("kind", ["numpy", "torch", "float32", "function"])
def test_positions_are_read_alike_everywhere(kind, write):
    """Numbers mean the array of them in the kind of the field."""
    field, x, y, expected = read_from_arrays(kind)
    got = what_takes_positions(field, write(2, 3), write(3, 2))
    mixed = what_takes_positions(field, write(2, 3), y)
    for name, value in expected.items():
        for other in (got[name], mixed[name]):
            assert type(other) is type(value), name
            assert other.dtype == value.dtype, name
            assert np.array_equal(other, value), name
    curve = path_length(field, [write(2, 3), write(3, 2)])
    assert curve == path_length(field, np.stack((x, y)) if kind == "numpy" else torch.stack((x, y)))


@pytest.mark.unchecked
def test_what_is_no_position_is_refused():
    field = GridMetric(np.broadcast_to(np.eye(2), (5, 5, 2, 2)))
    for x in (None, "ab", (True, False), [[1, 2], [3]], (1 + 1j, 2)):
        with pytest.raises(
            TypeError, match=r"positions: expected a NumPy array, a torch\.Tensor, or"
        ):
            field.at(x)


def catmull_rom(values, t):
    """Return the textbook's spline through ``values`` at ``t``, with the end values repeated."""
    i = min(int(np.floor(t)), len(values) - 2)
    p0, p1, p2, p3 = (values[min(max(k, 0), len(values) - 1)] for k in range(i - 1, i + 3))
    f = t - i
    return 0.5 * (
        2 * p1
        + (p2 - p0) * f
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * f**2
        + (3 * p1 - p0 - 3 * p2 + p3) * f**3
    )


def test_cubic_interpolation_is_catmull_roms():
    M, omega = random_arrays((6, 5))
    field = GridMetric(M, omega, interpolation="cubic", validate=False)
    for x in positions_in(field, 30):
        along = [catmull_rom(omega[i, :, 1], x[1]) for i in range(6)]
        np.testing.assert_allclose(field.at(x).omega[1], catmull_rom(along, x[0]), atol=1e-12)


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 2), ("cubic", 3)])
def test_order_of_interpolation(interpolation, order):
    """The cubic's error falls as h^3 inside, the linear's as h^2."""
    truth = pull_back(wobble=0.15)
    x = torch.rand((400, 2), dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) - 0.5
    errors = []
    for n in (33, 65, 129):
        got = truth.grid(n, interpolation=interpolation).at(x)
        errors.append(float((got.M - truth.at(x).M).abs().max()))
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (slopes > order - 0.25).all(), slopes


@given(seed=st.integers(0, 2**32 - 1), d=st.sampled_from((2, 3)))
def test_linear_interpolation_never_leaves_the_metrics(seed, d):
    """Convexity of the set of metrics, whatever the nodes and wherever one reads."""
    M, omega = random_arrays((3, 4, 3)[:d], seed)
    field = GridMetric(M, omega)
    field.at(positions_in(field, 50, seed, beyond=0.5)).validate()


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("outside", ["constant", "reflect"])
@pytest.mark.parametrize("d", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_in_position_and_field(interpolation, outside, d):
    shape = (4, 3, 3)[:d]
    M, omega = (torch.as_tensor(a) for a in random_arrays(shape))
    x = torch.as_tensor(
        positions_in(GridMetric(M, omega), 5, seed=3, beyond=0.4), dtype=DOUBLE
    ).requires_grad_()

    def read(M, omega, x):
        M = (M + M.mT) / 2  # gradcheck moves one half of the matrix at a time
        options = {"interpolation": interpolation, "outside": outside, "validate": False}
        metric = GridMetric(M, omega, 0.7, 0.1, **options).at(x)
        return metric.M, metric.omega

    arguments = (M.requires_grad_(), omega.requires_grad_(), x)
    assert torch.autograd.gradcheck(read, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(read, arguments, fast_mode=True)


def test_the_gradient_of_the_matrices_is_symmetric():
    M = torch.as_tensor(random_arrays((3, 3))[0]).requires_grad_()
    GridMetric(M).at(torch.tensor([0.4, 1.3], dtype=DOUBLE)).M[0, 1].backward()
    assert torch.equal(M.grad, M.grad.mT)
    assert M.grad.abs().sum() > 0


def test_continuation_beyond_the_grid():
    M, omega = random_arrays((4, 5))
    constant, mirrored = (GridMetric(M, omega, outside=o) for o in ("constant", "reflect"))
    np.testing.assert_array_equal(constant.at(np.array([-7.0, 9.0])).M, M[0, 4])
    np.testing.assert_allclose(
        mirrored.at(np.array([-0.25, 4.5])).M, mirrored.at(np.array([0.25, 3.5])).M
    )
    # A period and a bit: 2 (n - 1) rows.
    np.testing.assert_allclose(
        mirrored.at(np.array([6.25, 1.0])).M, mirrored.at(np.array([0.25, 1.0])).M
    )


def test_a_batch_of_fields_is_each_of_them():
    many = [random_arrays((4, 5), seed) for seed in range(6)]
    M, omega = (np.stack(a).reshape(2, 3, *a[0].shape) for a in zip(*many, strict=True))
    field = GridMetric(M, omega)
    assert field.batch_shape == (2, 3)
    assert field.grid_shape == (4, 5)
    x = positions_in(field, 2 * 3 * 7).reshape(2, 3, 7, 2)
    got, shared = field.at(x), field.at(x[:1, :1])
    assert shared.batch_shape == (2, 3, 7)
    for i in range(2):
        for j in range(3):
            one = GridMetric(M[i, j], omega[i, j])
            np.testing.assert_array_equal(got.M[i, j], one.at(x[i, j]).M)
            np.testing.assert_array_equal(shared.omega[i, j], one.at(x[0, 0]).omega)
    with pytest.raises(ValueError, match=r"positions: expected shape \(2, 3, ..., 2\)"):
        field.at(x[0])


def test_from_images():
    image = torch.rand((2, 1, 9, 8), dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    image.requires_grad_()
    metric = gradient_metric(image, tau=0.5)
    field = GridMetric.from_metric(metric)
    assert field.batch_shape == (2,)
    assert field.grid_shape == (9, 8)
    at = field.at(torch.tensor([[[2.0, 3.0]]], dtype=DOUBLE).expand(2, 1, 2))
    torch.testing.assert_close(at.M[:, 0], metric.M[:, 2, 3])
    at.M.sum().backward()
    assert image.grad.abs().sum() > 0


def test_from_metrics_of_each_kind():
    constant = Randers(np.diag([1.0, 4.0]), np.array([0.1, 0.0]))
    field = GridMetric.from_metric(constant, (3, 4), spacing=0.5)
    assert field.metric.batch_shape == (3, 4)
    assert field.omega.shape == (3, 4, 2)
    riemannian = GridMetric.from_metric(Riemannian(np.eye(3)), (3, 4, 5))
    assert riemannian.omega is None
    assert (riemannian.metric.omega == 0).all()
    assert np.array_equal(GridMetric.from_metric(Euclidean(2), (2, 2)).M[1, 1], np.eye(2))
    # One axis of the field, the other broadcast.
    rows = Riemannian(np.arange(1.0, 4.0)[:, None, None, None] * np.eye(2))
    assert GridMetric.from_metric(rows, (3, 6)).M[2, 5, 0, 0] == 3.0
    norm = CallableMetric(lambda v: abs(v).sum(-1))
    assert GridMetric.from_metric(norm, (3, 3)).metric is norm
    with pytest.raises(ValueError, match="whose batch broadcasts over"):
        GridMetric.from_metric(rows, (4, 6))


@pytest.mark.parametrize("field", [*known_fields(), *known_fields_3d()], ids=str)
def test_from_a_function(field):
    grid = field.grid(5)
    node = (1, 3, 2)[: field.dim]
    exact = field.at(torch.as_tensor(grid.nodes())[node])
    torch.testing.assert_close(grid.M[node], exact.M)
    torch.testing.assert_close(grid.metric.omega[node], exact.omega)
    torch.testing.assert_close(grid.nodes()[-1, -1, ...].flatten()[-1].item(), field.upper[-1])


def test_function_metric():
    truth = half_plane()
    x = torch.tensor([[1.5, 0.2], [2.0, -1.0]], dtype=DOUBLE, requires_grad=True)
    field = FunctionMetric(truth.metric)
    assert field.dim == 2
    torch.testing.assert_close(field.at(x).M, truth.at(x).M)
    assert isinstance(field.at(x.detach().numpy()).M, np.ndarray)
    pair = FunctionMetric(lambda x: (truth.at(x).M, 0.1 * torch.ones_like(x)))
    assert torch.equal(pair.reverse().at(x).omega, -0.1 * torch.ones_like(x))
    riemannian = FunctionMetric(lambda x: Riemannian(torch.eye(2, dtype=x.dtype)))
    assert riemannian.at(x).batch_shape == (2,)
    field.at(x).M.sum().backward()
    torch.testing.assert_close(x.grad[:, 0], -4 / x.detach()[:, 0] ** 3)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kinds_and_dtypes_stay(kind, dtype):
    M, omega = (a.astype(dtype) for a in random_arrays((4, 5)))
    if kind == "torch":
        M, omega = torch.as_tensor(M), torch.as_tensor(omega)
    field = GridMetric(M, omega)
    x = field.nodes() * 0.9
    for result in (field.at(x).M, field.at(x).omega, x, field.reverse().omega):
        assert type(result) is type(M)
        assert result.dtype == M.dtype
    assert (field.reverse().omega == -field.omega).all()
    assert field.symmetrize().omega is None
    assert isinstance(field.torch().M, torch.Tensor)
    assert isinstance(field.numpy().M, np.ndarray)
    assert field.to(torch.float64).M.dtype == torch.float64


def test_contains():
    field = GridMetric.from_metric(Euclidean(2), (3, 4), spacing=0.1, origin=(5.0, -1.0))
    x = np.array([[5.0, -1.0], [5.2, -0.7], [4.99, -1.0], [5.1, -0.69], [5.1, -0.8]])
    assert field.contains(x).tolist() == [True, True, False, False, True]


def broken(index, value, omega=False, shape=(4, 5)):
    arrays = random_arrays(shape)
    arrays[int(omega)][index] = value
    return arrays


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (broken((1, 2), np.nan), r"M: expected finite matrices.*\(1, 2\)"),
        (broken((3, 0), -np.eye(2)), r"M: expected positive definite matrices.*\(3, 0\)"),
        (broken((0, 1), [[1, 2], [0, 3]]), r"M: expected symmetric matrices.*\(0, 1\)"),
        (broken((2, 2), np.nan, True), r"omega: expected finite one-forms.*\(2, 2\)"),
        (broken((2, 4), 99.0, True), r"omega: expected \|omega\|_\{M\^-1\} < 1.*\(2, 4\)"),
        ((np.eye(2),), r"M: expected a grid of 2 axes .* got shape \(2, 2\)"),
        ((np.eye(4)[None, None, None, None],), "M: expected 2 x 2 or 3 x 3 matrices"),
        ((np.ones((3, 3, 2, 3)),), "M: expected 2 x 2 or 3 x 3 matrices"),
        ((np.zeros((0, 3, 2, 2)),), "none empty"),
        ((random_arrays((4, 5))[0], np.zeros((4, 6, 2))), "omega: expected shape"),
        ((random_arrays((4, 5))[0], np.zeros((4, 5, 3))), "omega: expected shape"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridMetric(*arguments)


@pytest.mark.unchecked
def test_wrong_arguments_are_refused():
    M, omega = random_arrays((4, 5))
    cases = [
        ({"spacing": 0.0}, "spacing: expected positive numbers"),
        ({"spacing": (1.0, 2.0, 3.0)}, "spacing: expected a finite number, or 2 of them"),
        ({"origin": float("nan")}, "origin: expected a finite number"),
        ({"interpolation": "spline"}, "interpolation: expected 'linear' or 'cubic', got 'spline'"),
        ({"outside": "zeros"}, "outside: expected 'constant' or 'reflect', got 'zeros'"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            GridMetric(M, omega, **options)
    with pytest.raises(TypeError, match=r"M: expected a NumPy array or .* got list"):
        GridMetric(M.tolist())
    with pytest.raises(TypeError, match="M: expected float32 or float64, got int64"):
        GridMetric(np.ones((4, 5, 2, 2), int))
    with pytest.raises(TypeError, match="expected arrays of one kind, but M is a NumPy array"):
        GridMetric(M, torch.as_tensor(omega))
    field = GridMetric(M, omega)
    with pytest.raises(TypeError, match="expected arrays of one kind"):
        field.at(torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"positions: expected 2 coordinates .* got shape \(3,\)"):
        field.at(np.zeros(3))
    with pytest.raises(ValueError, match=r"positions: expected finite numbers.* at index \(1,\)"):
        field.at(np.array([[0.0, 0.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match="dim: expected a positive integer, got 0"):
        FunctionMetric(lambda x: x, 0)
    with pytest.raises(TypeError, match="function: expected a metric"):
        FunctionMetric(lambda x: x).at(np.zeros(2))


def test_a_cubic_that_leaves_the_metrics_is_refused():
    M = np.tile(np.eye(2), (6, 6, 1, 1))
    M[2, :, :, :] *= 100.0  # a ridge of one row: the cubic undershoots beside it
    GridMetric(M)
    with pytest.raises(ValueError, match=r"interpolation: the cubic leaves the metrics"):
        GridMetric(M, interpolation="cubic")
    smooth = random_smooth(condition=10.0, strength=0.5).grid(33, interpolation="cubic")
    assert smooth.interpolation == "cubic"


def test_a_batch_of_metrics_makes_a_field():
    M, omega = np.broadcast_to(np.eye(2), (4, 5, 2, 2)), np.full((4, 5, 2), 0.25)
    of_randers = GridMetric(Randers(M, omega), spacing=0.5)
    assert np.array_equal(of_randers.M, M)
    assert np.array_equal(of_randers.omega, omega)
    assert of_randers.spacing == (0.5, 0.5)
    assert GridMetric(Riemannian(M)).omega is None
    with pytest.raises(TypeError, match="omega: expected None beside a metric"):
        GridMetric(Riemannian(M), omega)
    with pytest.raises(ValueError, match="expected a grid of 2 axes"):
        GridMetric(Riemannian(np.eye(2)))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_field_is_checked_once_and_again_after_it_is_written_to(kind, monkeypatch):
    checks = []
    check = _grid.validate_fields
    monkeypatch.setattr(_grid, "validate_fields", lambda *a: checks.append(check(*a)))
    M, omega = kind(np.tile(np.eye(2), (4, 5, 1, 1))), kind(np.zeros((4, 5, 2)))
    field = GridMetric(M, omega)
    for _ in range(2):
        distance(field, (1, 1))
    assert len(checks) == 1
    lazy = GridMetric(M, omega, validate=False)
    for _ in range(2):
        distance(lazy, (1, 1))
    assert len(checks) == 2
    omega[2, 3, 0] = 1.5
    for each in (field, lazy):
        with pytest.raises(ValueError, match="index \\(2, 3\\)"):
            distance(each, (1, 1))


def test_tensors_of_inference_mode_are_checked_every_time():
    with torch.inference_mode():
        M = torch.eye(2).repeat(4, 5, 1, 1)
        field = GridMetric(M)
        distance(field, (1, 1))
        M[2, 3] = -1.0
        with pytest.raises(ValueError, match="index"):
            distance(field, (1, 1))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_costs_are_isotropic_metrics(shape):
    cost = np.random.default_rng(0).uniform(0.5, 2, shape)
    field = GridMetric.from_cost(cost, spacing=2.0, origin=1.0)
    assert (field.grid_shape, field.spacing[0], field.origin[0]) == (shape, 2.0, 1.0)
    v = np.arange(1.0, len(shape) + 1)
    np.testing.assert_allclose(field.metric.norm(v), cost * np.linalg.norm(v))
    batch = GridMetric.from_cost(torch.tensor(cost), 2)
    assert batch.batch_shape == shape[:-2]
    cost = torch.tensor(cost[..., :3, :3], dtype=torch.float32, requires_grad=True)
    field = GridMetric.from_cost(cost, interpolation="cubic", validate=False)
    assert field.like.dtype == torch.float32
    distance(field, (0,) * len(shape)).sum().backward()
    assert (cost.grad[(-1,) * len(shape)] > 0).all()


@pytest.mark.unchecked
def test_costs_that_are_refused():
    cost = np.ones((3, 4))
    cost[1, 2] = 0.0
    with pytest.raises(
        ValueError, match=r"cost: expected positive finite .* got 0.0 at index \(1, 2"
    ):
        GridMetric.from_cost(cost)
    cost[1, 2] = np.inf
    with pytest.raises(ValueError, match="left out by the mask of distance"):
        GridMetric.from_cost(cost)
    with pytest.raises(ValueError, match=r"dim: expected a grid of 2 or 3 axes.* all of the axes"):
        GridMetric.from_cost(np.ones(3))
    with pytest.raises(ValueError, match=r"dim: expected a grid of 2 or 3 axes.* 4 of the axes"):
        GridMetric.from_cost(np.ones((3, 3, 3, 3)), 4)
    with pytest.raises(TypeError, match="cost: expected float32 or float64, got int64"):
        GridMetric.from_cost(np.ones((3, 3), int))
