"""Pictures in chunks and many sources: equal to one call in memory, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dask.array")
import dask
import dask.array as da

from finslerconv import geodesics, images, ops
from finslerconv.balls import concentric, fibonacci_ball, lattice
from finslerconv.dask import ball_reach, distance, image_metric, metric_conv
from finslerconv.geodesics import Curve, GridMetric
from finslerconv.metrics import AsymmetricQuadratic, Riemannian

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def cuts(size):
    """Chunk sizes that sum up to ``size``."""
    ends = st.sets(st.integers(1, max(1, size - 1)), max_size=3)
    return ends.map(lambda e: tuple(np.diff([0, *sorted(e - {size}), size]).tolist()))


def chunks(*sizes):
    return st.tuples(*map(cuts, sizes))


def random(*shape, seed=0, dtype=float):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def metrics(*shape, d, seed=0, largest=4.0, tau=0.7):
    """Matrices and one-forms of random balls, the longest half-axes of about ``largest``."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(*shape, d, d))
    rotation = np.linalg.qr(A)[0]
    axes = rng.uniform(0.5, largest, (*shape, d))
    M = np.einsum("...ik,...k,...jk->...ij", rotation, axes**-2.0, rotation)
    u = rng.normal(size=(*shape, d))
    omega = np.linalg.cholesky(M) @ (tau * u / np.linalg.norm(u, axis=-1, keepdims=True))[..., None]
    return M, omega[..., 0]


# Metrics of pictures


PICTURE = random(2, 3, 41, 33)
FUNCTIONS = {
    "gradient": partial(images.gradient_metric, tau=0.5),
    "across": partial(images.gradient_metric, tau=-0.8, omega="across", padding="replicate"),
    "sobel": partial(images.gradient_metric, derivative="sobel", sigma=0.0),
    "edges": partial(images.structure_tensor_metric, tau=0.5),
    "flows": partial(images.structure_tensor_metric, law="coherence", padding="replicate"),
    "one scale": partial(images.structure_tensor_metric, scales=[(0.5, 0.0)]),
    "ridges": images.ridge_metric,
    "bright": partial(images.ridge_metric, ridges="bright", scales=(0.7, 1.5), padding="replicate"),
    "made of two": lambda x: images.gradient_metric(x.mean(1, keepdim=True)).pullback(
        2 * torch.eye(2, dtype=x.dtype)
    ),
}


def assert_equal_metrics(form, whole):
    np.testing.assert_allclose(form.M.compute(), whole.M, **CLOSE)
    if form.omega is None:
        assert whole.omega is None
    else:
        assert form.omega.shape == whole.omega.shape
        np.testing.assert_allclose(form.omega.compute(), whole.omega, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=6)
@given(data=st.data())
def test_a_metric_of_chunks_is_that_of_the_picture(name, data):
    function = FUNCTIONS[name]
    height, width = data.draw(st.tuples(st.integers(1, 41), st.integers(1, 33)), "size")
    picture = PICTURE[:, :, :height, :width]
    cut = data.draw(chunks(2, 3, height, width), "chunks")
    lazy = data.draw(st.booleans(), "lazy")
    form = image_metric(da.from_array(picture, chunks=cut), function, lazy=lazy)
    assert_equal_metrics(form, function(torch.tensor(picture)).randers_form())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradient", "edges", "ridges"])
def test_largest_values_are_those_of_the_whole_picture(name):
    """Far from a blob gradients are below rounding, relative to the largest one."""
    y, x = np.mgrid[:120, :90]
    blob = np.exp(-((y - 20.0) ** 2 + (x - 30.0) ** 2) / 50)
    blank = np.full((120, 90), 0.3)
    half = np.where(x < 50, 0.3, blob)
    pictures = np.stack([blob, blank, half])[:, None]
    form = image_metric(da.from_array(pictures, chunks=(1, 1, 23, 31)), FUNCTIONS[name])
    assert_equal_metrics(form, FUNCTIONS[name](torch.tensor(pictures)).randers_form())


def test_float32_stays_and_a_metric_has_chunks_like_its_picture():
    picture = da.from_array(PICTURE.astype(np.float32), chunks=(1, 1, 20, 11))
    M, omega = image_metric(picture, images.gradient_metric)
    assert M.dtype == omega.dtype == M.compute().dtype == np.float32
    assert M.chunks == ((1, 1), (20, 21), (11, 11, 11), (2,), (2,))
    assert omega.chunks == M.chunks[:-1]


def test_a_function_of_ones_own_tells_its_margin():
    def bright(x):
        """Balls as large as the picture is bright around them, in volumes too."""
        around = torch.nn.functional.max_pool3d(x.abs(), 5, stride=1, padding=2)[:, 0]
        return Riemannian(torch.eye(3, dtype=x.dtype) / (1 + around[..., None, None]))

    volume = random(1, 1, 9, 14, 11)
    lazy = da.from_array(volume, chunks=(1, 1, 4, 5, 6))
    with pytest.raises(ValueError, match="margin: expected how many pixels around a pixel"):
        image_metric(lazy, bright)
    form = image_metric(lazy, bright, margin=2)
    np.testing.assert_array_equal(form.M.compute(), bright(torch.tensor(volume)).M)
    constant = image_metric(lazy, lambda x: Riemannian(torch.eye(3)), margin=0)
    assert constant.M.shape == (1, 9, 14, 11, 3, 3)
    assert constant.omega is None


@pytest.mark.slow
def test_a_margin_is_added_to_those_of_the_library():
    blurred = lambda x: images.gradient_metric(  # noqa: E731
        torch.nn.functional.avg_pool2d(x, 7, stride=1, padding=3), tau=0.3
    )
    picture = random(1, 2, 60, 50)
    form = image_metric(da.from_array(picture, chunks=17), blurred, margin=3)
    inner = (slice(None), slice(3, -3), slice(3, -3))
    whole = blurred(torch.tensor(picture))
    np.testing.assert_allclose(form.M.compute()[inner], whole.M[inner], **CLOSE)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("image", "function", "error", "message"),
    [
        (
            PICTURE,
            images.ridge_metric,
            TypeError,
            "image: expected a dask.array.Array, got ndarray",
        ),
        (da.ones((5, 5)), images.ridge_metric, ValueError, r"with 2 axes or 3 axes of space, got"),
        (da.ones((1, 1, 5, 5), dtype=int), images.ridge_metric, TypeError, "float32 or float64"),
        (da.ones((1, 1, 0, 5)), images.ridge_metric, ValueError, "no axis of length 0"),
        (da.ones((1, 1, 5, 5)), lambda x: x, TypeError, "return a metric, got Tensor"),
        (
            da.ones((1, 1, 5, 5)),
            lambda x: AsymmetricQuadratic(torch.eye(2), torch.zeros(2)),
            ValueError,
            "expected a Riemannian or Randers metric, got AsymmetricQuadratic",
        ),
        (
            da.ones((1, 1, 5, 5)),
            lambda x: Riemannian(torch.eye(2).expand(3, 3, 2, 2)),
            ValueError,
            r"expected a metric of batch shape \(1, 8, 8\) and dimension 2",
        ),
    ],
)
def test_image_metric_refuses(image, function, error, message):
    with pytest.raises(error, match=message):
        image_metric(image, function)


def test_errors_of_the_function_come_when_it_is_computed():
    picture = np.ones((1, 1, 20, 20))
    picture[0, 0, 15, 3] = np.nan
    form = image_metric(da.from_array(picture, chunks=10), images.ridge_metric, lazy=True)
    with pytest.raises(ValueError, match="image: expected finite values, got nan"):
        form.M.compute()


# Convolutions


def both(dims, cut, M, omega, points, weight, bias=None, dilation=1, mask=None, **options):
    """The convolution in chunks, and the one call."""
    input = random(len(M), 4, *M.shape[-2 - dims : -2], seed=1)
    found = metric_conv(
        da.from_array(input, chunks=cut), M, omega, points, weight, bias, dilation, mask, **options
    )
    options.pop("reach", None)
    call = (ops.metric_conv1d, ops.metric_conv2d, ops.metric_conv3d)[dims - 1]
    tensors = [None if x is None else torch.tensor(x) for x in (M, omega, points, weight, bias)]
    masked = None if mask is None else torch.tensor(np.asarray(mask))
    expected = call(torch.tensor(input), *tensors, 1, "same", dilation, masked, **options)
    return found.compute(), expected.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@settings(max_examples=6)
@given(data=st.data())
def test_chunks_of_pictures_are_convolved_as_the_picture(padding_mode, data):
    size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 25)), "size")
    groups = data.draw(st.sampled_from([(), (2,)]), "groups")
    largest = data.draw(st.sampled_from([1.0, 3.0, 30.0]), "largest")
    M, omega = metrics(2, *groups, *size, d=2, largest=largest)
    omega = data.draw(st.sampled_from([omega, None]), "omega")
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "kernel")
    taps = kernel[0] * kernel[1]
    points = random(taps, 2, seed=2) / 1.5
    masked = data.draw(st.booleans(), "masked")
    mask = random(2, (2 if groups else 1) * taps, *size, seed=3) if masked else None
    found, expected = both(
        2, data.draw(chunks(2, 4, *size), "chunks"), M, omega, points,
        random(6, 2, *kernel, seed=4), random(6, seed=5),
        data.draw(st.sampled_from([1, 2, (1, 3)]), "dilation"), mask,
        map=data.draw(st.sampled_from(["radial", "affine"]), "map"), padding_mode=padding_mode,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@settings(max_examples=2)
@given(data=st.data())
def test_chunks_of_volumes_are_convolved_as_the_volume(padding_mode, data):
    size = data.draw(st.tuples(*[st.integers(1, 9)] * 3), "size")
    M, omega = metrics(1, *size, d=3, largest=2.0)
    points = fibonacci_ball(27).points
    found, expected = both(
        3, data.draw(chunks(1, 4, *size), "chunks"), M, omega, points,
        random(2, 4, 3, 3, 3, seed=4), padding_mode=padding_mode,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_chunks_of_signals_are_convolved_as_the_signal(padding_mode):
    M, omega = metrics(2, 50, d=1)
    points = np.linspace(-1, 1, 5)[:, None]
    found, expected = both(
        1, (1, 2, 9), M, omega, points, random(4, 2, 5, seed=4), padding_mode=padding_mode
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_the_reference_backend_convolves_chunks_too():
    M, omega = metrics(1, 20, 21, d=2)
    with ops.use_backend("reference"):
        found, expected = both(
            2, (1, 4, 8, 9), M, omega, lattice(3).points / 1.5, random(2, 4, 3, 3), reach=20
        )
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_dtype_of_the_picture_stays(dtype):
    input, weight = random(1, 1, 30, 30, dtype=dtype), random(1, 1, 3, 3, dtype=dtype)
    M, omega = metrics(1, 30, 30, d=2)
    M, omega = M.astype(np.float32), omega.astype(np.float32)
    points = torch.tensor(lattice(3).points, dtype=torch.float32)
    found = metric_conv(
        da.from_array(input, chunks=10),
        M,
        omega,
        points,
        torch.tensor(weight),
        padding_mode="reflect",
    )
    expected = ops.metric_conv2d(
        *map(torch.tensor, (input, M, omega)), points, torch.tensor(weight), padding="same",
        padding_mode="reflect",
    )  # fmt: skip
    assert found.dtype == found.compute().dtype == dtype
    tolerance = 1e-4 if dtype == np.float32 else 2e-2
    np.testing.assert_allclose(found.compute(), expected, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_filter_is_a_metric_and_a_convolution(scheduler):
    photo = images.photograph()[None, None, 100:300, 150:400] / 255
    function = partial(images.structure_tensor_metric, tau=0.5)
    points, weight = concentric(5).points, np.full((1, 1, 5, 5), 1 / 25)
    with dask.config.set(scheduler=scheduler):
        lazy = da.from_array(photo, chunks=(1, 1, 60, 90))
        found = metric_conv(
            lazy, *image_metric(lazy, function), points, weight, padding_mode="reflect"
        ).compute()
    metric = function(torch.tensor(photo))
    expected = ops.metric_conv2d(
        torch.tensor(photo), metric.M, metric.omega, torch.tensor(points), torch.tensor(weight),
        padding="same", padding_mode="reflect",
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_reach_bounds_all_samples_and_is_attained(d, map):
    M, omega = metrics(300, d=d, seed=3)
    directions = random(400 if d > 1 else 2, d)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    if d == 1:
        directions = np.array([[-1.0], [1.0]])
    for length in (0.7, 1.0, 1.5):
        points, dilation = length * directions, (2, 1, 3)[:d]
        reach = ball_reach(da.from_array(M, chunks=70), omega, points, dilation=dilation, map=map)
        found = (
            ops.metric_positions(*map_tensors(M, omega, points), dilation=dilation, map=map)
            .abs()
            .amax((0, 1))
        )
        assert (found <= torch.tensor(reach.compute()) * (1 + 1e-12)).all()
        assert (found >= 0.9 * torch.tensor(reach.compute())).all()


def map_tensors(*arrays):
    return [torch.tensor(x) for x in arrays]


@pytest.mark.slow
def test_nothing_is_computed_where_the_reach_is_given():
    def fail(block):
        raise RuntimeError("computed")

    lazy = da.ones((1, 1, 40, 40), chunks=10).map_blocks(fail, dtype=float, meta=np.empty((0,) * 4))
    M, omega = image_metric(lazy, images.gradient_metric, lazy=True)
    smooth = metric_conv(lazy, M, omega, lattice(3).points, np.ones((1, 1, 3, 3)), reach=20.0)
    assert smooth.shape == (1, 1, 40, 40)
    with pytest.raises(RuntimeError, match="computed"):
        smooth.compute()
    with pytest.raises(RuntimeError, match="computed"):
        metric_conv(lazy, M, omega, lattice(3).points, np.ones((1, 1, 3, 3)))
    with pytest.raises(RuntimeError, match="computed"):
        image_metric(lazy, images.gradient_metric)


@pytest.mark.slow
def test_a_ball_beyond_the_reach_is_an_error():
    M = np.broadcast_to(np.eye(2), (1, 40, 30, 2, 2)).copy()
    M[0, 33, 7] = np.diag([1 / 64.0, 1 / 25])
    points, weight = concentric(3).points, np.ones((1, 4, 3, 3))
    reach = ball_reach(M, None, points).compute()
    np.testing.assert_allclose(reach, [8, 5])
    found, expected = both(2, (1, 4, 10, 10), M, None, points, weight, reach=tuple(reach))
    np.testing.assert_allclose(found, expected, **CLOSE)
    message = r"largest ball, which is \(8, 5\) pixels along the axes in this chunk, got \(7, 7\)"
    with pytest.raises(ValueError, match=message):
        both(2, (1, 4, 10, 10), M, None, points, weight, reach=7)


def test_a_metric_that_is_none_is_an_error():
    M = np.broadcast_to(np.eye(2), (1, 9, 9, 2, 2)).copy()
    M[0, 3, 3, 0, 0] = -1
    with pytest.raises(ValueError, match=r"M: expected positive definite .* at index \(0, 3, 3\)"):
        both(2, (1, 4, 3, 3), M, np.zeros((1, 9, 9, 2)), lattice(3).points, np.ones((1, 4, 3, 3)))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": np.ones((1, 1, 9, 9))}, TypeError, "input: expected a dask.array.Array"),
        ({"M": [[1.0]]}, TypeError, "M: expected a dask.array.Array or a NumPy array, got list"),
        ({"M": np.ones((1, 9, 8, 2, 2))}, ValueError, "M: expected shape"),
        ({"omega": np.ones((1, 9, 9, 3))}, ValueError, "omega: expected shape"),
        ({"points": np.ones((4, 2))}, ValueError, "points: expected shape"),
        ({"points": [[0.0, 1.0]]}, TypeError, "points: expected a NumPy array or a torch.Tensor"),
        ({"weight": np.ones((1, 1, 3))}, ValueError, "weight: expected shape"),
        ({"weight": np.ones((1, 1, 3, 3), np.float32)}, TypeError, "weight: expected the input's"),
        ({"map": "round"}, ValueError, "map: expected"),
        ({"padding_mode": "none"}, ValueError, "padding_mode: expected one of"),
        ({"dilation": 0}, ValueError, "dilation: expected"),
        ({"reach": -1}, ValueError, "reach: expected a finite number of at least 0, or 2 of them"),
        ({"reach": (1, 2, 3)}, ValueError, "reach: expected a finite number"),
        ({"reach": "far"}, ValueError, "reach: expected a finite number"),
    ],
)
def test_metric_conv_refuses(change, error, message):
    given = {
        "input": da.ones((1, 1, 9, 9), chunks=4),
        "M": np.broadcast_to(np.eye(2), (1, 9, 9, 2, 2)),
        "omega": None,
        "points": lattice(3).points,
        "weight": np.ones((1, 1, 3, 3)),
    }
    with pytest.raises(error, match=message):
        metric_conv(**(given | change))


# Distances


def a_field(kind=lambda x: x):
    M, omega = metrics(9, 8, d=2, largest=1.5, seed=7)
    return GridMetric(kind(M), kind(omega), spacing=(0.5, 1.0), origin=(1.0, 0.0))


def somewhere(*shape, seed=0):
    low, high = np.array([1.0, 0.0]), np.array([5.0, 7.0])
    return np.random.default_rng(seed).uniform(low, high, (*shape, 2))


MASK = np.random.default_rng(1).random((7, 9, 8)) > 0.1
CASES = {
    "positions": (somewhere(7, 2), {}),
    "two axes of problems": (somewhere(7, 3, 2), {"reverse": True}),
    "tensors": (torch.tensor(somewhere(7, 1)), {"order": 1}),
    "lists": ([[[1.0, 2.0]], [[3.0, 4.0]], [[2.0, 1.0], [4.0, 6.0]]], {}),
    "curves": ([Curve(somewhere(3)), somewhere(2), somewhere(1)], {}),
    "nodes": (~MASK, {"method": "graph"}),
    "values": (somewhere(7, 2), {"values": random(7, 2) ** 2}),
    "one value": (somewhere(7, 2), {"values": 1.0}),
    "walls of each": (MASK, {"mask": MASK, "radius": 3.0}),
    "walls of all": (somewhere(7, 3), {"mask": np.ones((9, 8), bool)}),
    "targets of each": (somewhere(7, 1), {"targets": somewhere(7, 2, seed=1)}),
    "targets of all": (somewhere(7, 1), {"targets": somewhere(2, seed=1)}),
    "heat": (somewhere(7, 1), {"method": "heat"}),
    "passes over all": (somewhere(7, 1), {"method": "fast_iterative"}),
}


@pytest.mark.parametrize("chunks", [1, 3, 50])
@pytest.mark.parametrize("name", CASES)
def test_chunks_of_sources_have_the_distances_of_one_call(name, chunks):
    sources, options = CASES[name]
    field = a_field(torch.tensor) if name == "tensors" else a_field()
    found = distance(field, sources, chunks=chunks, **options)
    expected = np.asarray(geodesics.distance(field, sources, **options))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.chunks[0] == tuple(
        min(chunks, len(sources) - i) for i in range(0, len(sources), chunks)
    )
    np.testing.assert_allclose(found.compute(), expected, **CLOSE)


def test_metrics_of_any_kind_and_in_space_have_distances_in_chunks():
    drift = AsymmetricQuadratic(np.eye(2), np.array([0.3, 0.4]))
    for field, sources in (
        (GridMetric.from_metric(drift, (8, 9)), np.array([[[1.0, 2.0]], [[5.0, 5.5]], [[7, 8]]])),
        (GridMetric(*metrics(5, 6, 7, d=3, largest=1.5)), random(3, 1, 3) % 4),
    ):
        found = distance(field, sources, chunks=2).compute()
        np.testing.assert_allclose(found, geodesics.distance(field, sources), **CLOSE)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("sources", "change", "error", "message"),
    [
        (somewhere(3, 1), {"field": None}, TypeError, "field: expected a GridMetric, got NoneType"),
        (
            somewhere(3, 1),
            {"field": GridMetric(np.broadcast_to(np.eye(2), (3, 5, 5, 2, 2)))},
            ValueError,
            r"field: expected one field, got a batch of shape \(3,\)",
        ),
        (somewhere(3), {}, ValueError, r"got \(3, 2\); of n single sources give shape \(n, 1, 2\)"),
        ([[1.0, 2.0], [3.0, 4.0]], {}, ValueError, "sources: expected an axis of problems"),
        (Curve(somewhere(3)), {}, TypeError, "sources: expected an array or a list, got Curve"),
        (somewhere(3, 1), {"chunks": 0}, ValueError, "chunks: expected a positive integer, got 0"),
        (
            somewhere(3, 1),
            {"values": np.zeros((2, 1))},
            ValueError,
            r"values: expected axes of problems that broadcast to those of the sources, \(3,\)",
        ),
    ],
)
def test_distance_refuses(sources, change, error, message):
    with pytest.raises(error, match=message):
        distance(**({"field": a_field(), "sources": sources} | change))


# On a cluster


@pytest.mark.slow
def test_a_cluster_of_processes_computes_the_same():
    distributed = pytest.importorskip("distributed")
    photo = images.photograph()[None, None, 100:300, 150:400] / 255
    points, weight = concentric(5).points, np.full((1, 1, 5, 5), 1 / 25)
    metric = images.gradient_metric(torch.tensor(photo), scale=0.3)
    expected = ops.metric_conv2d(
        torch.tensor(photo), metric.M, metric.omega, torch.tensor(points), torch.tensor(weight),
        padding="same",
    )  # fmt: skip
    field, sources = a_field(), somewhere(9, 1)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        dask.config.set(scheduler=None),
    ):
        lazy = da.from_array(photo, chunks=(1, 1, 100, 80))
        function = lambda x: images.gradient_metric(x, scale=0.3)  # noqa: E731
        found = metric_conv(lazy, *image_metric(lazy, function), points, weight).compute()
        lengths = distance(field, sources, chunks=2)
        assert len(lengths.dask) < 40
        lengths = lengths.compute()
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(lengths, geodesics.distance(field, sources), **CLOSE)
