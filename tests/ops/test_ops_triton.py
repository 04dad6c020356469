"""The Triton kernels, proved right in Triton's interpreter; on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convolution_cases import Case, assert_equal_results, cases
from hypothesis import given, settings

from finslerconv import ops

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")
on_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter():
    # The interpreter must be chosen before Triton is first imported.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def kernel_results(case):
    """Return output and gradients as :meth:`Case.results` does, from the kernels themselves."""
    from finslerconv.ops.backends.triton import TritonBackend

    conv = case.convolution()
    output = TritonBackend().forward(conv)
    generator = torch.Generator().manual_seed(case.seed + 2)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    found = TritonBackend().backward(direction, conv, ops.Needs())
    g_bias = None if conv.bias is None else direction.sum((0, 2, 3))
    everything = (output, found.input, found.field, found.omega, found.weight, g_bias, found.mask)
    return [t for t in everything if t is not None]


@interpreted
@settings(max_examples=12)
@given(case=cases(most=4))
def test_equals_the_reference(case):
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


@interpreted
@pytest.mark.parametrize("kind", ["offsets", "radial", "affine"])
def test_several_blocks_of_everything(kind):
    case = Case(
        kind=kind, channels=24, out_channels=40, size=(6, 7), groups=2, sample_groups=3, batch=1
    )
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


@interpreted
def test_samples_nowhere_are_zero():
    from finslerconv.ops.backends.triton import TritonBackend

    case = Case()
    tensors = case.tensors()
    offset = tensors[1]
    offset[0, 4, 2, 3], offset[1, 3, 1, 1] = torch.nan, 1e30
    output = TritonBackend().forward(case.convolution(tensors))
    expected = case.results("reference", tensors)
    torch.testing.assert_close(output, expected[0], rtol=1e-12, atol=1e-12)


@interpreted
def test_the_deterministic_way_gives_the_same():
    case = Case(sample_groups=2)
    torch.use_deterministic_algorithms(True)
    try:
        found = kernel_results(case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_results(found, case.results("reference"), case.dtype)


@on_gpu
@settings(max_examples=60)
@given(case=cases())
def test_equals_the_reference_on_the_gpu(case):
    tensors = [None if t is None else t.cuda() for t in case.tensors()]
    with torch.device("cuda"):
        expected = case.results("reference")
        assert_equal_results(
            [t.cpu() for t in case.results("triton", tensors)], expected, case.dtype
        )


@on_gpu
def test_equal_calls_give_equal_bits_if_asked():
    case = Case(channels=32, out_channels=32, size=(40, 40), dtype=torch.float32)
    tensors = [None if t is None else t.cuda() for t in case.tensors()]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = case.results("triton", tensors), case.results("triton", tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_leaves_tensors_of_other_devices_to_the_reference():
    with ops.use_backend("triton"):
        case = Case()  # on the CPU
        output = case(*case.tensors())
    assert torch.equal(output, case.results("reference")[0])
