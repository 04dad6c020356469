"""What the Triton kernels compile to, on machines without a GPU: what makes them fast, and fit.

By default a few convolutions are compiled that together use every kernel, tile, kind of positions
and dtype; FINSLERCONV_ALL_KERNELS=1 compiles every combination for every device (forty minutes).
"""

import itertools
import os
import re

import pytest
import torch

pytest.importorskip("triton.knobs")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter does not compile", allow_module_level=True)

import compiled_kernels as static
from convolution_cases import FORMULAS

from finslerconv import ops
from finslerconv.ops.backends.triton import _tiles as tiles

ALL_KERNELS = os.environ.get("FINSLERCONV_ALL_KERNELS") == "1"
HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
KINDS = ("offsets", "radial", "affine")

# Batch, channels, side, outputs; and what else.
SHAPES = {
    "narrow": ((4, 16, 56, 32), {"omega": False}),
    "square": ((16, 64, 56, 64), {}),
    "wide": ((16, 256, 14, 256), {"stride": 2}),
    "stem": ((4, 3, 64, 64), {"kernel": 7, "bias": True}),
    "odd": ((4, 20, 28, 10), {"mask": True, "bias": True}),
    "depthwise": ((16, 64, 28, 64), {"groups": 64}),
    "odd depthwise": ((4, 20, 28, 20), {"groups": 20, "bias": True}),
    "volume": ((2, 32, 24, 64), {"dims": 3, "mask": True}),
    "odd volume": ((2, 3, 24, 10), {"dims": 3, "bias": True}),
    "grouped": ((16, 128, 28, 128), {"groups": 32, "sample_groups": 2, "mask": True}),
}
FEW = [
    ("sm_90", "square", "radial", HALF, "tf32"),
    ("sm_90", "wide", "affine", BF16, "tf32"),
    ("sm_90", "wide", "offsets", FLOAT, "tf32"),
    ("sm_90", "narrow", "radial", FLOAT, "tf32"),
    ("sm_90", "stem", "affine", HALF, "tf32"),
    ("sm_90", "grouped", "offsets", HALF, "tf32"),
    ("sm_90", "depthwise", "radial", FLOAT, "tf32"),
    ("sm_90", "odd", "radial", FLOAT, "ieee"),
    ("sm_90", "odd depthwise", "affine", HALF, "tf32"),
    ("sm_90", "square", "affine", DOUBLE, "ieee"),
    ("sm_90", "volume", "offsets", FLOAT, "tf32"),
    ("sm_90", "volume", "offsets", DOUBLE, "ieee"),
    ("sm_90", "odd volume", "offsets", FLOAT, "ieee"),
    ("sm_80", "volume", "offsets", BF16, "tf32"),
    ("sm_80", "odd volume", "offsets", FLOAT, "tf32"),
    ("sm_80", "square", "affine", FLOAT, "tf32"),
    ("sm_80", "wide", "radial", HALF, "tf32"),
    ("sm_80", "depthwise", "offsets", HALF, "tf32"),
    ("sm_80", "narrow", "affine", BF16, "tf32"),
    ("sm_100", "square", "radial", HALF, "tf32"),
    ("gfx942", "square", "radial", HALF, "tf32"),
    ("gfx942", "grouped", "offsets", FLOAT, "tf32"),
]
ALL = [
    (target, shape, kind, dtype, precision)
    for target, shape, kind, dtype in itertools.product(
        static.TARGETS, SHAPES, KINDS, (HALF, BF16, FLOAT, DOUBLE)
    )
    if kind == "offsets" or "volume" not in shape
    for precision in (("tf32", "ieee") if dtype == FLOAT else ("ieee",))
]
# The kernels of the convolution are those for metrics, whatever these are computed of.
HEADS = list(itertools.product(static.TARGETS, FORMULAS, KINDS[1:], (FLOAT, DOUBLE)))
FEW_HEADS = [
    (list(static.TARGETS)[i % 4], formula, KINDS[1 + i // 4 % 2], DOUBLE if i % 5 == 4 else FLOAT)
    for i, formula in enumerate(FORMULAS)
]
CASES = [
    pytest.param(case, id="-".join(str(c).removeprefix("torch.") for c in case), marks=marks)
    for case in (ALL if ALL_KERNELS else FEW)
    for marks in ([pytest.mark.slow] if "volume" in case[1] else [],)
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def precision():
    """Set how PyTorch's convolutions multiply float32."""
    before = torch.backends.cudnn.allow_tf32

    def set_precision(value):
        torch.backends.cudnn.allow_tf32 = value == "tf32"

    yield set_precision
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiles_to_what_is_fast(case, precision):
    target, shape, kind, dtype, how = case
    precision(how)
    sizes, rest = SHAPES[shape]
    compiled = static.compile_convolution(target, *sizes, kind=kind, dtype=dtype, **rest)
    depthwise = "depthwise" in shape
    assert len(compiled) == (3 if kind == "offsets" else 4)
    if target == "gfx942":
        for c in compiled:
            if multiplies(c, depthwise):
                assert ("v_mfma" in c.binary.asm["amdgcn"]) == (dtype != DOUBLE), c.kernel
        return
    for c in compiled:
        facts = static.facts(c)
        assert facts.spills == facts.stack == 0, (c.kernel, facts)
        assert facts.shared <= static.SHARED_MEMORY[target], (c.kernel, facts)
        assert facts.blocks(target) >= 2, (c.kernel, facts)
        if multiplies(c, depthwise):
            fast = dtype in (HALF, BF16) or (dtype == FLOAT and how == "tf32")
            assert (facts.tensor_core > 0) == fast, (c.kernel, facts)
        if c.constants.get("C_UNIT") == 8:
            assert facts.loads_16 == 0, (c.kernel, facts)
            # Each of a sample's four corners. Where the image's gradient is added up by atomics of
            # four floats, the image is loaded like that; doubles come in smaller tiles.
            vectors = facts.loads_128 + facts.async_128
            if c.kernel == "backward_samples" and dtype != FLOAT:
                vectors = facts.loads_64
            assert vectors >= 4, (c.kernel, facts)
            if c.kernel == "backward_samples" and dtype != DOUBLE and target != "sm_80":
                assert re.search(r"\.add\.v4\.f32", c.binary.asm["ptx"])


def multiplies(compilation, depthwise):
    return compilation.kernel != "backward_metric" and not depthwise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "formula", "kind", "dtype"),
    HEADS if ALL_KERNELS else FEW_HEADS,
    ids=lambda v: f"{v.name} {v.eps_omega}" if hasattr(v, "name") else None,
)
def test_heads_compile_to_what_is_fast(target, formula, kind, dtype):
    compiled = static.compile_convolution(
        target, 4, 16, 56, 32, kind=kind, dtype=dtype, formula=formula
    )
    own = [c for c in compiled if c.constants.get("HEAD")]
    assert [c.kernel for c in own] == ["metrics", "metrics", "backward_metric"]
    if target == "gfx942":
        return
    for c in own[1:]:
        facts = static.facts(c)
        assert facts.spills == facts.stack == 0, (c.kernel, facts)
        assert facts.blocks(target) >= 2, (c.kernel, facts)


@pytest.mark.slow
def test_float32_is_multiplied_as_pytorch_says(precision):
    for how in ("ieee", "tf32"):
        precision(how)
        compiled = static.compile_convolution("sm_90", 1, 16, 8, 16, kind="offsets", dtype=FLOAT)
        assert {c.constants["PRECISION"] for c in compiled} == {how}


@pytest.mark.slow
def test_large_tensors_have_wide_offsets():
    large = static.compile_convolution("sm_90", 2048, 1024, 32, 8, kind="offsets")
    small = static.compile_convolution("sm_90", 1024, 1024, 32, 8, kind="offsets")
    assert {str(c.constants["INDEX"]) for c in large} == {"int64"}
    assert {str(c.constants["INDEX"]) for c in small} == {"int32"}


@pytest.mark.slow
def test_the_layers_of_a_resnet_share_kernels():
    # ResNet-18's 3 x 3 convolutions at 224 pixels; those of 1 x 1 have no positions to learn.
    layers = [(3, 224, 64, 7, 2), (64, 56, 64, 3, 1)]
    for width, side in ((128, 56), (256, 28), (512, 14)):
        layers += [(width // 2, side, width, 3, 2), (width, side // 2, width, 3, 1)]
    compiled = [
        c
        for channels, side, outputs, kernel, stride in layers
        for c in static.compile_convolution(
            "sm_90", 32, channels, side, outputs, kernel=kernel, stride=stride
        )
    ]
    assert len(compiled) == 4 * len(layers)
    assert len({c.key for c in compiled}) <= 10


def test_tuning_is_on_request_and_remembered(monkeypatch):
    few, many = tiles.TILES["forward"]["half"][1:]
    tried = []

    def time(run):
        run()
        return 1.0 if tried[-1] == few else 0.5

    monkeypatch.setattr(tiles.triton.testing, "do_bench", time)
    monkeypatch.setattr(tiles.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tiles, "_fastest", {})

    def choose(outputs=64):
        how = {"aligned": True, "outputs": outputs, "key": outputs, "run": tried.append}
        return tiles.choose("forward", "half", **how)

    assert (choose(), choose(65), choose(1000)) == (few, many, many)
    assert not tried
    with ops.autotune():
        assert choose() == choose() == many
        assert tried == [few, many]
        with ops.autotune(False):
            assert choose() == few
        choose(32)
        assert len(tried) == 4
    assert choose() == few


def test_few_tiles():
    assert all(len(few) <= 3 for kernel in tiles.TILES.values() for few in kernel.values())
