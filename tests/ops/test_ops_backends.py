"""The contract of a backend, held by toys, and the registry that makes them known."""

import dataclasses

import pytest
import torch
from convolution_cases import Case, assert_equal_results, slow_convolution
from torch.nn import functional

from finslerconv import ops
from finslerconv.ops.backends import _choice

CASES = [
    Case(padding="same", kernel=(2, 3)),
    Case(kind="radial", groups=2, sample_groups=2),
    Case(kind="affine", omega=False, stride=2, channels_last=True),
]


class GridSample(ops.ConvBackend):
    """PyTorch's own interpolation, for padding by zeros; its gradients by autograd."""

    calls = 0

    def forward(self, conv):
        GridSample.calls += 1
        batch, channels, height, width = conv.input.shape
        groups, taps = conv.sample_groups, conv.geometry.n_taps
        displacements = conv.displacements()
        rows, columns = conv.geometry.centres(conv.out_size, displacements)
        y = (displacements[:, :, :, 0] + rows + 0.5) * 2 / height - 1
        x = (displacements[:, :, :, 1] + columns + 0.5) * 2 / width - 1
        grid = torch.stack((x, y), -1).flatten(0, 1).flatten(1, 2)
        samples = functional.grid_sample(
            conv.input.reshape(batch * groups, -1, height, width), grid, align_corners=False
        )
        samples = samples.reshape(batch, groups, channels // groups, taps, *conv.out_size)
        if conv.mask is not None:
            samples = samples * conv.mask.reshape(batch, groups, 1, taps, *conv.out_size)
        weight = conv.weight.reshape(*conv.weight.shape[:1], -1, 1, 1)
        samples = samples.reshape(batch, channels * taps, *conv.out_size)
        output = functional.conv2d(samples, weight, conv.bias, groups=conv.weight_groups)
        return output.contiguous(memory_format=ops.memory_format(conv.input))


class Loops(ops.ConvBackend):
    """The slow truth, with the reference's gradients."""

    def forward(self, conv):
        displacements = conv.displacements()
        centres = conv.geometry.centres(conv.out_size, displacements)
        positions = torch.stack([displacements[:, :, :, i] + c for i, c in enumerate(centres)], 3)
        mask = conv.mask
        if mask is not None:
            mask = mask.unflatten(1, (conv.sample_groups, -1))
        return slow_convolution(
            conv.input, positions, conv.weight, conv.bias, mask, conv.weight_groups,
            conv.padding_mode,
        )  # fmt: skip

    def backward(self, grad, conv, needs):
        return ops.reference.backward(grad, conv, needs)


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    """Register the toys for one test."""
    for registry in ("_devices", "_loaders", "_loaded"):
        # Without those that the documentation's examples have registered.
        own = {name: getattr(_choice, registry).get(name) for name in ("numba", "triton")}
        own = {name: value for name, value in own.items() if value is not None}
        monkeypatch.setattr(_choice, registry, own)
    ops.register_backend("grid_sample", "cpu", GridSample)
    ops.register_backend("loops", "cpu", Loops)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_backend_made_of_pytorchs_operations_needs_no_backward_pass_of_its_own(case):
    before = GridSample.calls
    found = case.results("grid_sample")
    assert GridSample.calls == before + 2  # the second is differentiated
    assert_equal_results(found, case.results("reference"), case.dtype)


def test_a_backend_with_a_backward_pass_of_its_own():
    case = Case(batch=1, channels=2, size=(3, 4), out_channels=2, padding_mode="reflect")
    found = case.results("loops")
    assert_equal_results(found, case.results("reference"), case.dtype)


@pytest.mark.slow
def test_derivatives_of_first_and_second_order():
    case = Case(
        kind="radial", batch=1, channels=1, size=(3, 2), out_channels=1, kernel=(2, 1), padding=0
    )
    tensors = [t.requires_grad_() for t in case.tensors()]
    with ops.use_backend("grid_sample"):
        assert torch.autograd.gradcheck(case, tensors)
        assert torch.autograd.gradgradcheck(case, tensors)


def test_backward_passes_keep_to_the_backend_of_their_forward_pass():
    case = Case()
    tensors = [t if t is None else t.requires_grad_() for t in case.tensors()]
    with ops.use_backend("grid_sample"):
        output = case(*tensors)
    before = GridSample.calls
    output.sum().backward()
    assert GridSample.calls == before + 1


@pytest.mark.parametrize("needed", range(3))
def test_only_what_is_needed_is_differentiated(needed):
    case = Case(kind="radial")
    needs = ops.Needs(*(i == needed for i in range(3)))
    conv = case.convolution()
    grad = torch.randn_like(ops.reference.forward(conv))
    complete = ops.reference.backward(grad, conv, ops.Needs())
    found = ops.reference.backward(grad, conv, needs)
    for name, wanted, got, everything in zip(
        found._fields, needs.each, found, complete, strict=True
    ):
        assert (got is None) == (not wanted), name
        if got is not None:
            torch.testing.assert_close(got, everything, rtol=1e-12, atol=1e-12)


def test_the_first_backend_of_a_device_is_its_own():
    assert ops.is_compiled(torch.device("cpu"))
    assert not ops.is_compiled(torch.device("meta"))
    ops.register_backend("shapes", "meta", GridSample)
    assert ops.is_compiled(torch.device("meta"))
    with ops.use_backend("loops"):  # for the CPU
        assert not ops.is_compiled(torch.device("meta"))


@pytest.mark.uninstrumented
def test_compiles_in_one_graph():
    case = dataclasses.replace(CASES[0], dtype=torch.float32)
    tensors = case.tensors()
    ops.register_backend("compiled", "cpu", GridSample)
    with ops.use_backend("compiled"):
        compiled = torch.compile(lambda *t: case(*t), fullgraph=True, backend="aot_eager")
        before = GridSample.calls
        torch.testing.assert_close(compiled(*tensors), case(*tensors))
        assert GridSample.calls == before + 2


@pytest.mark.unchecked
def test_a_name_is_taken_once():
    for name in ("auto", "reference", "numba", "loops"):
        with pytest.raises(ValueError, match=f"name: expected a new one, .* {name!r} already"):
            ops.register_backend(name, "cpu", Loops)
