"""The compiled CPU backend: equal to the reference, and well behaved beside threads and forks."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from convolution_cases import Case, assert_equal_results, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import finslerconv
from finslerconv import _progress, ops
from finslerconv.ops.backends.numba import _backend

pytest.importorskip("numba")


@pytest.fixture
def threads():
    """Set the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@settings(max_examples=60)
@given(case=cases())
def test_equals_the_reference(case):
    assert_equal_results(case.results("numba"), case.results("reference"), case.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 3])
@settings(max_examples=25)
@given(data=st.data())
def test_equals_the_reference_on_lines_and_in_space(dims, data):
    case = data.draw(cases(most=8, dims=dims))
    assert_equal_results(case.results("numba"), case.results("reference"), case.dtype)


@cache
def by_reference(case):
    return case.results("reference")


LARGE = [
    Case(channels=40, out_channels=34, size=(9, 12, 10), kernel=(3, 3, 3), groups=2, batch=2),
    Case(channels=48, out_channels=70, size=(40, 37), batch=3),
    Case(channels=32, out_channels=34, size=(61, 50), batch=1, sample_groups=2, groups=2),
    Case(kind="radial", channels=3, out_channels=16, size=(70, 60), batch=1, kernel=(7, 7)),
    Case(channels=33, out_channels=33, groups=33, size=(19, 23), batch=3),
    Case(
        kind="radial", channels=20, out_channels=60, groups=20, sample_groups=4, kernel=(5, 3),
        size=(30, 21), stride=2, padding_mode="reflect",
    ),
    Case(channels=9, out_channels=18, groups=9, sample_groups=9, size=(11, 10), channels_last=True),
    Case(channels=6, out_channels=12, groups=6, sample_groups=3, size=(6, 7, 8), kernel=(3, 1, 2)),
    Case(kind="affine", channels=260, out_channels=20, size=(20, 20), batch=2, kernel=(5, 5)),
]  # fmt: skip


@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_several_tiles_chunks_and_parts(case, count, threads):
    threads(count)
    assert_equal_results(case.results("numba"), by_reference(case), case.dtype)


@pytest.mark.parametrize("case", LARGE[:2], ids=str)
def test_equal_calls_give_equal_bits(case, threads):
    threads(3)
    case = dataclasses.replace(case, dtype=torch.float32)
    first, second = case.results("numba"), case.results("numba")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("channels", "kernel", "size", "outputs"), [(2048, 3, 5, 4), (4, 3, 120, 16), (8, 1, 7, 3000)]
)
def test_long_sums_in_float32_are_as_exact_as_those_of_pytorch(channels, kernel, size, outputs):
    """Of the output over channels, the weight's gradient over pixels, the input's over outputs."""
    x = torch.randn(1, channels, size, size)
    weight = torch.randn(outputs, channels, kernel, kernel)
    offset = torch.zeros(1, 2 * kernel**2, size, size)
    slope = torch.randn(1, outputs, size, size)

    def results(convolve, dtype):
        live = [t.to(dtype).requires_grad_() for t in (x, weight)]
        output = convolve(*live)
        return [output, *torch.autograd.grad(output, live, slope.to(dtype))]

    def adaptive(x, weight):
        with ops.use_backend("numba"):
            return ops.deform_conv2d(x, offset, weight, padding=kernel // 2)

    def plain(x, weight):
        return torch.nn.functional.conv2d(x, weight, padding=kernel // 2)

    exact = results(plain, torch.float64)
    ours, theirs = results(adaptive, torch.float32), results(plain, torch.float32)
    for got, peer, wanted in zip(ours, theirs, exact, strict=True):
        error, known = ((u - wanted).square().mean().sqrt() for u in (got, peer))
        assert error < 2 * known


@pytest.mark.parametrize("kind", ["offsets", "radial", "affine"])
def test_the_memory_of_no_tensor_is_pinned(kind):
    """Storage can be resized afterwards, as sharded training does with parameters."""
    case = Case(kind=kind)
    live = [None if t is None else t.requires_grad_() for t in case.tensors()]
    with ops.use_backend("numba"):
        output = case(*live)
    present = [t for t in live if t is not None]
    gradients = torch.autograd.grad(output, present, torch.ones_like(output))
    for tensor in (*present, output, *gradients):
        tensor.untyped_storage().resize_(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["offsets", "radial"])
def test_half_precision_computes_in_single(kind, dtype):
    case = Case(kind=kind, channels=16, size=(9, 9))
    tensors = case.tensors()
    low = [None if t is None else t.to(dtype) for t in tensors]
    low[1] = tensors[1].float()  # positions keep their precision
    low[2] = None if low[2] is None else tensors[2].float()
    found = case.results("numba", low)
    exact = case.results("numba", [None if t is None else t.double() for t in low])
    assert found[0].dtype == dtype
    for got, wanted in zip(found, exact, strict=True):
        error = (got.double() - wanted).abs().amax() / wanted.abs().amax()
        assert error < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("kind", ["offsets", "affine"])
def test_empty_batches(kind, backend):
    case = Case(kind=kind, batch=0)
    found = case.results(backend)
    assert found[0].shape == (0, 6, 7, 8)
    assert found[-3].abs().sum() == 0  # the weight's gradient


def test_learned_reference_points_have_gradients():
    case = Case(kind="radial")
    input, M, omega, weight, bias, mask = case.tensors()
    gradients = []
    for backend in ("numba", "reference"):
        points = case.points.requires_grad_()
        with ops.use_backend(backend):
            output = ops.metric_conv2d(input, M, omega, points, weight, bias, 1, 1, 1, mask)
        gradients.append(torch.autograd.grad(output.square().sum(), points)[0])
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_keeps_the_layout_of_the_input():
    case = Case(channels=8, channels_last=True)
    input, offset, _, weight, bias, mask = case.tensors()
    with ops.use_backend("numba"):
        output = case(input.requires_grad_(), offset, None, weight, bias, mask)
    assert output.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(output.sum(), input)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", LARGE[:3])
def test_bands_change_nothing(case, count, threads, monkeypatch):
    """Compiled calls of one tile: also those that begin within an image that a part began."""
    threads(count)
    monkeypatch.setattr(_backend, "_BAND_WORK", 1)
    assert_equal_results(case.results("numba"), by_reference(case), case.dtype)


@pytest.mark.parametrize("count", [1, 3])
def test_ctrl_c_ends_a_convolution(count, threads, monkeypatch, ctrl_c):
    threads(count)
    monkeypatch.setattr(_backend, "_BAND_WORK", 1)
    told = []

    class Bars:
        def add_task(self, what, total):
            told.append(-total)

        def advance(self, task, done):
            told.append(done)
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.001)

        def remove_task(self, task):
            pass

    monkeypatch.setattr(_progress, "_shown", Bars())
    x, weight = torch.rand(1, 8, 128, 128), torch.rand(8, 8, 3, 3)
    M, points = torch.eye(2).expand(1, 128, 128, 2, 2), torch.rand(9, 2)
    with pytest.raises(KeyboardInterrupt):
        ops.metric_conv2d(x, M, None, points, weight, padding=1)
    total, *parts = told
    assert sum(parts) < -total / 2


def test_two_threads_at_once():
    ones = [Case(size=(30, 31), seed=seed, dtype=torch.float32) for seed in range(6)]
    alone = [case.results("numba") for case in ones]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda case: case.results("numba"), ones))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _in_a_child(queue):
    # OpenMP's threads do not survive a fork, so PyTorch is told to use one, as in the workers of
    # a DataLoader; the pool of the kernels is asked for two all the same.
    torch.set_num_threads(1)
    torch.get_num_threads = lambda: 2
    queue.put(Case(size=(40, 40), channels=16).results("numba")[0].sum().item())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, where it is installed
def test_works_in_a_forked_child(threads):
    threads(2)
    expected = Case(size=(40, 40), channels=16).results("numba")[0].sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_a_child, args=(queue,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert queue.get() == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_needs_no_writable_place_for_its_cache(tmp_path):
    package = tmp_path / "site" / "finslerconv"
    shutil.copytree(
        Path(finslerconv.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    # A file where Numba would make a folder, in the package and at home: nobody may write there,
    # not even root.
    (package / "ops" / "__pycache__").touch()
    home = tmp_path / "home"
    home.touch()
    package.chmod(stat.S_IRUSR | stat.S_IXUSR)
    script = (
        "from finslerconv.ops.backends.numba import _kernels as k\n"
        "import numpy as np\n"
        "a = np.arange(6.0); b = np.empty(6)\n"
        "k.channels_last(a, b, 2, 2, 3, 0, 3)\n"
        "assert b.tolist() == [0, 3, 1, 4, 2, 5], b\n"
    )
    environment = {
        **os.environ, "PYTHONPATH": str(tmp_path / "site"), "HOME": str(home),
        "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
