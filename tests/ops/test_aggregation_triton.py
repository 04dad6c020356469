"""The aggregation's Triton kernels: right in the interpreter, and compiled to what is fast."""

from importlib.util import find_spec

import pytest
import torch
import triton_interpreter
from aggregation_forms import normal
from triton_interpreter import INTERPRETED

from finslerconv import ops

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")
compiled = pytest.mark.skipif(
    INTERPRETED or find_spec("triton.knobs") is None,
    reason="the interpreter does not compile, nor for other devices does Triton before 3.4",
)
on_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs CUDA")

HALF, FLOAT, DOUBLE = torch.float16, torch.float32, torch.float64


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter():
    triton_interpreter.assert_tests_pass(__file__)


@pytest.fixture(autouse=INTERPRETED, scope="module")
def _quick():
    with triton_interpreter.quick():
        yield


def aggregation(channels=5, levels=2, frames=True, grid=True, batch=2, queries=6, dtype=DOUBLE):
    table = torch.tensor([[4, 6, 0], [2, 3, 24]]) if levels == 2 else (5, 6)
    locations = 2 * normal(batch, queries, 3, levels, 4, 2, seed=1)
    locations[:1, :1, 0, 0, 0, 0], locations[:1, :1, 1, 0, 1, 1] = torch.nan, -torch.inf
    return ops.Aggregation(
        normal(batch, 30, 3, channels).to(dtype),
        locations.to(torch.promote_types(dtype, FLOAT)),
        normal(batch, queries, 3, levels, 4, seed=2).to(torch.promote_types(dtype, FLOAT)),
        table,
        normal(levels, 4, 4, seed=3).abs() + 0.5 if frames else None,
        (3, 1, 2) if grid else None,
    )


def results(backend, aggregation, needs=(True, True)):
    output = backend.aggregate(aggregation)
    direction = normal(*output.shape, seed=4).to(output)
    found = backend.aggregate_backward(direction, aggregation, *needs)
    return [output, *(t for t in found if t is not None)]


@interpreted
@pytest.mark.parametrize(
    "sizes",
    [
        {}, {"channels": 16, "levels": 1}, {"channels": 72, "frames": False},
        {"levels": 1, "grid": False}, {"queries": 60, "channels": 1}, {"queries": 0}, {"batch": 0},
        {"channels": 16, "dtype": FLOAT},
    ],
)  # fmt: skip
def test_equals_the_reference(sizes):
    from finslerconv.ops.backends.triton import TritonBackend

    case = aggregation(**sizes)
    tolerance = 1e-11 if case.value.dtype == DOUBLE else 1e-4
    expected = results(ops.reference, case)
    for got, wanted in zip(results(TritonBackend(), case), expected, strict=True):
        torch.testing.assert_close(got, wanted.to(got.dtype), rtol=tolerance, atol=tolerance)


@interpreted
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_what_is_wanted_gets_a_gradient(needs):
    from finslerconv.ops.backends.triton import TritonBackend

    case = aggregation()
    found = results(TritonBackend(), case, needs)
    expected = results(ops.reference, case, needs)
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@on_gpu
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FLOAT, DOUBLE])
def test_on_a_device(dtype):
    value = normal(2, 30, 4, 32).to("cuda", dtype)
    locations = (0.5 + 0.3 * normal(2, 50, 4, 2, 4, 2, seed=1)).cuda()
    weights = normal(2, 50, 4, 2, 4, seed=2).cuda()
    real = torch.promote_types(dtype, FLOAT)
    tensors = [t.requires_grad_() for t in (value, locations.to(real), weights.to(real))]
    found = []
    for backend in ("triton", "reference"):
        with ops.use_backend(backend):
            output = ops.ms_deform_attn(tensors[0], [(4, 6), (2, 3)], None, *tensors[1:])
        found.append((output, *torch.autograd.grad(output.sum(), tensors)))
    tolerance = {HALF: 1e-2, torch.bfloat16: 8e-2, FLOAT: 1e-3, DOUBLE: 1e-10}[dtype]
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


# Batch, queries, groups, channels, levels, points: InternImage's first and last stage, Deformable
# DETR's encoder, and channels that 8 does not divide.
SHAPES = {
    "stage 1": (8, 56 * 56, 4, 16, 0, 9),
    "stage 4": (8, 49, 32, 16, 0, 9),
    "wide": (8, 196, 4, 64, 0, 9),
    "attention": (2, 17821, 8, 32, 4, 4),
    "odd": (2, 49, 3, 5, 0, 9),
}
FEW = [
    ("sm_90", "stage 1", HALF),
    ("sm_90", "attention", HALF),
    ("sm_90", "attention", FLOAT),
    ("sm_90", "odd", FLOAT),
    ("sm_90", "wide", DOUBLE),
    ("sm_80", "stage 4", FLOAT),
    ("sm_80", "wide", torch.bfloat16),
    ("sm_100", "wide", HALF),
    ("gfx942", "stage 1", HALF),
]


def empty(*shape, dtype=FLOAT):
    return torch.empty(shape, dtype=dtype, device="meta")


@compiled
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id="-".join(map(str, case)),
            marks=[] if case[0] in ("sm_100", "gfx942") else [pytest.mark.slow],
        )
        for case in FEW
    ],
)
def test_compiles_to_what_is_fast(case, tmp_path, monkeypatch):
    import compiled_kernels as static

    from finslerconv.ops.backends.triton import TritonBackend

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target, shape, dtype = case
    batch, queries, groups, channels, levels, points = SHAPES[shape]
    real = torch.promote_types(dtype, FLOAT)
    samples = (batch, queries, groups, levels or 1, points)
    given = ops.Aggregation(
        empty(batch, queries, groups, channels, dtype=dtype),
        empty(*samples, 2, dtype=real),
        empty(*samples, dtype=real),
        empty(levels, 3, dtype=torch.int64) if levels else (7, queries // 7),
        empty(levels or 1, points, 4, dtype=real),
        None if levels else (7, 1, 1),
    )
    backend = TritonBackend()
    with static.compiling_for(target) as done:
        backend.aggregate_backward(backend.aggregate(given), given, True, True)
    assert [c.kernel for c in done] == ["aggregate", "aggregate_backward"]
    if target == "gfx942":
        return
    for c in done:
        facts = static.facts(c)
        assert facts.spills == facts.stack == 0, facts
        assert facts.shared <= static.SHARED_MEMORY[target], facts
        assert facts.blocks(target) >= (3 if channels % 8 == 0 else 2), facts
        if channels % 8 == 0:
            # Each of a sample's four corners, four or eight channels at once.
            assert facts.loads_16 == 0, facts
            assert facts.loads_128 + facts.loads_64 >= 4, facts


@pytest.mark.slow
@compiled
def test_large_tensors_have_wide_offsets(tmp_path, monkeypatch):
    import compiled_kernels as static

    from finslerconv.ops.backends.triton import TritonBackend

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    for batch in (1024, 131072):
        shape = (batch, 49, 32, 1, 9)
        given = ops.Aggregation(
            empty(batch, 49, 32, 16, dtype=HALF), empty(*shape, 2), empty(*shape), (7, 7)
        )
        with static.compiling_for("sm_90") as done:
            TritonBackend().aggregate(given)
        found.append(str(done[0].constants["INDEX"]))
    assert found == ["int32", "int64"]
