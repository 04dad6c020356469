"""The Triton kernels, proved right in Triton's interpreter; on a GPU where there is one."""

import dataclasses

import pytest
import torch
import triton_interpreter
from convolution_cases import FORMULAS, MODES, Case, assert_equal_results, cases
from hypothesis import given, settings
from triton_interpreter import INTERPRETED

from finslerconv import ops

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")
on_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter():
    triton_interpreter.assert_tests_pass(__file__)


@pytest.fixture(autouse=INTERPRETED, scope="module")
def _quick():
    # The interpreter's time is that of the programs, whatever their size.
    from finslerconv.ops.backends.triton import _tiles

    with pytest.MonkeyPatch.context() as patch, triton_interpreter.quick():
        for kernel in _tiles.TILES.values():
            patch.setitem(kernel, "double", (_tiles.Tile(64, 16, 16, 128),))
        yield


def kernel_results(case, tensors=None):
    """Return output and gradients as :meth:`Case.results` does, from the kernels themselves."""
    from finslerconv.ops.backends.triton import TritonBackend

    conv = case.convolution(tensors)
    output = TritonBackend().forward(conv)
    generator = torch.Generator().manual_seed(case.seed + 2)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    found = TritonBackend().backward(direction, conv, ops.Needs())
    g_bias = None if conv.bias is None else direction.sum((0, *range(2, direction.ndim)))
    everything = (output, found.input, found.field, found.omega, found.weight, g_bias, found.mask)
    return [t for t in everything if t is not None]


@interpreted
@settings(max_examples=12)
@given(case=cases(most=4, kernels=((1, 1), (2, 2), (1, 3))))
def test_equals_the_reference(case):
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


# The interpreter takes two seconds for a volume of this size.
IN_SPACE = Case(kernel=(2, 1, 2), size=(3, 2, 4), batch=1, padding=0, out_channels=4)


@interpreted
@pytest.mark.parametrize(
    "case",
    [
        dataclasses.replace(IN_SPACE, stride=(1, 2, 1), padding=1, dtype=torch.float32),
        dataclasses.replace(IN_SPACE, kind="radial", dilation=(2, 1, 1), padding="same"),
        dataclasses.replace(IN_SPACE, kind="affine", padding_mode="reflect", batch=2, spread=6.0),
        dataclasses.replace(IN_SPACE, kernel=(1, 3, 1), padding=(0, 1, 0), channels_last=True),
    ],
    ids=str,
)
def test_equals_the_reference_in_space(case):
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


@interpreted
@pytest.mark.parametrize("kind", ["offsets", "radial", "affine"])
def test_several_blocks_of_everything(kind):
    case = Case(
        kind=kind, channels=24, out_channels=40, groups=2, sample_groups=3, batch=1,
        kernel=(1, 2), size=(6, 12), padding=0,
    )  # fmt: skip
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


# Small kernels and images: the interpreter takes its time.
SMALL = {"kernel": (1, 2), "size": (4, 5), "batch": 1, "padding": 0}
GROUPS = [
    # channels, outputs, groups, sample groups
    (6, 4, 2, 3),  # a run of channels lies in two groups that cross
    (8, 8, 8, 1),  # depthwise
    (12, 12, 12, 3),
    (8, 16, 8, 2),  # two outputs a channel: groups are merged
    (32, 24, 4, 2),
    (5, 7, 1, 1),  # nothing is aligned
    (48, 8, 1, 2),  # several blocks of aligned channels
]


@interpreted
@pytest.mark.parametrize(
    ("groups", "kind", "mode", "dtype"),
    [
        (groups, ("offsets", "radial", "affine")[i % 3], MODES[i % 4], dtype)
        for i, groups in enumerate(GROUPS)
        for dtype in (torch.float64, torch.float32)
        if dtype == torch.float64 or i in (1, 4, 5)
    ],
)
def test_groups_of_every_kind(groups, kind, mode, dtype):
    channels, outputs, groups, sample_groups = groups
    case = Case(
        channels=channels, out_channels=outputs, groups=groups, sample_groups=sample_groups,
        kind=kind, padding_mode=mode, dtype=dtype, mask=sample_groups > 1, **SMALL,
    )  # fmt: skip
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


every_formula = pytest.mark.parametrize(
    "formula", FORMULAS, ids=lambda f: f"{f.name} {f.eps_omega}"
)


def heads(formula, map):
    """Return convolutions of a head's channels, in float64 and in float32."""
    return [
        Case(map, formula, sample_groups=groups, dtype=dtype, **SMALL)
        for groups, dtype in ((2, torch.float64), (1, torch.float32))
    ]


def assert_those_of_the_formula(found, case):
    # As for the CPU (test_head_conv.py): the lengths of the balls vary by orders of magnitude.
    for got, wanted in zip(found, case.results("reference"), strict=True):
        assert got.dtype == case.dtype
        if case.dtype == torch.float64:
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
        else:
            error = (got - wanted).abs() / wanted.abs().amax()
            assert error.median() < 1e-5


@interpreted
@every_formula
@pytest.mark.parametrize("map", ["radial", "affine"])
def test_metrics_of_a_head_are_those_of_the_formula(formula, map):
    for case in heads(formula, map):
        assert_those_of_the_formula(kernel_results(case), case)


@interpreted
def test_channels_of_half_precision_are_raised():
    case = Case("radial", FORMULAS[0], dtype=torch.float32, **SMALL)
    tensors = case.tensors()
    low = [t.bfloat16() if i == 1 else t for i, t in enumerate(tensors)]
    same = [t.float() if i == 1 else t for i, t in enumerate(low)]
    for got, wanted in zip(kernel_results(case, low), kernel_results(case, same), strict=True):
        assert torch.equal(got, wanted)


@interpreted
def test_a_head_without_pixels():
    case = Case("radial", FORMULAS[0], **{**SMALL, "batch": 0})
    found = kernel_results(case, case.tensors())
    assert [t.shape for t in found] == [t.shape for t in case.results("reference")]


@interpreted
@pytest.mark.parametrize(
    ("groups", "mode"), [(GROUPS[i], MODES[i % 4]) for i in (0, 1, 3, 5, 6)], ids=str
)
def test_groups_of_every_kind_in_space(groups, mode):
    channels, outputs, groups, sample_groups = groups
    case = Case(
        channels=channels, out_channels=outputs, groups=groups, sample_groups=sample_groups,
        padding_mode=mode, mask=sample_groups > 1, kernel=(1, 1, 2), size=(2, 2, 3), batch=1,
        padding=0,
    )  # fmt: skip
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


@interpreted
@pytest.mark.parametrize(
    ("kind", "formula"), [("offsets", None), ("radial", None), ("radial", FORMULAS[0])]
)
@pytest.mark.parametrize(
    ("dtype", "groups"),
    # The interpreter's tl.dot cannot read bfloat16, which depthwise convolutions do without.
    [(torch.float16, 1), (torch.float16, 8), (torch.bfloat16, 8)],
)
def test_half_precision_rounds_what_is_multiplied(dtype, groups, kind, formula):
    # Image and weights of few bits, positions in float32: what is left is the rounding of samples,
    # slopes and results.
    case = Case(
        kind, formula, channels=8, out_channels=8, groups=groups, dtype=torch.float32, **SMALL
    )
    exact = case.tensors()
    for i in (0, 3, 4):
        exact[i] = exact[i].to(dtype).float()
    half = [t.to(dtype) if i in (0, 3, 4) else t for i, t in enumerate(exact)]
    found, expected = kernel_results(case, half), case.results("reference", exact)
    for got, wanted in zip(found, expected, strict=True):
        error = torch.linalg.vector_norm(got.double() - wanted) / torch.linalg.vector_norm(wanted)
        assert error < 4 * torch.finfo(dtype).eps


@interpreted
@pytest.mark.parametrize(
    ("kind", "formula"), [("offsets", None), ("affine", None), ("affine", FORMULAS[3])]
)
def test_offsets_of_64_bits_give_the_same(kind, formula, monkeypatch):
    from finslerconv.ops.backends.triton import _backend

    case = Case(kind, formula, channels=4, sample_groups=2, **SMALL)
    monkeypatch.setattr(_backend, "_INT32", 0)
    assert_equal_results(kernel_results(case), case.results("reference"), case.dtype)


@interpreted
def test_taps_shared_among_few_or_many_programs(monkeypatch):
    from finslerconv.ops.backends.triton import _backend

    case = Case(kind="radial", kernel=(1, 5), size=(3, 4), padding=(0, 2), batch=1)
    expected = case.results("reference")
    for programs in (1, 2, 512):
        monkeypatch.setattr(_backend, "_PROGRAMS", programs)
        assert_equal_results(kernel_results(case), expected, case.dtype)


@interpreted
def test_samples_nowhere_are_zero():
    from finslerconv.ops.backends.triton import TritonBackend

    case = Case(kernel=(1, 3))
    tensors = case.tensors()
    offset = tensors[1]
    offset[0, 4, 2, 3], offset[1, 3, 1, 1] = torch.nan, 1e30
    with triton_interpreter.overflows_checked(True):
        output = TritonBackend().forward(case.convolution(tensors))
    expected = case.results("reference", tensors)
    torch.testing.assert_close(output, expected[0], rtol=1e-12, atol=1e-12)


@interpreted
@pytest.mark.parametrize("how", [{}, {"kind": "radial", "formula": FORMULAS[0]}])
def test_the_deterministic_way_gives_the_same(how):
    case = Case(**how, sample_groups=2, **SMALL)
    torch.use_deterministic_algorithms(True)
    try:
        found = kernel_results(case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_results(found, case.results("reference"), case.dtype)


@pytest.fixture(scope="module")
def _whole_float32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@on_gpu
@pytest.mark.usefixtures("_whole_float32")
@settings(max_examples=60)
@given(case=cases())
def test_equals_the_reference_on_the_gpu(case):
    tensors = [None if t is None else t.cuda() for t in case.tensors()]
    found = [t.cpu() for t in case.results("triton", tensors)]
    assert_equal_results(found, case.results("reference"), case.dtype)


@on_gpu
@pytest.mark.usefixtures("_whole_float32")
@every_formula
@pytest.mark.parametrize("map", ["radial", "affine"])
def test_metrics_of_a_head_are_those_of_the_formula_on_the_gpu(formula, map):
    for case in heads(formula, map):
        tensors = [None if t is None else t.cuda() for t in case.tensors()]
        found = [t.cpu() for t in case.results("triton", tensors)]
        assert_those_of_the_formula(found, case)


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
