"""DCNv3, DCNv4 and deformable attention against the papers' formulas, by every backend."""

import pytest
import torch
from aggregation_forms import (
    attention_form,
    dcnv3_arguments,
    dcnv3_form,
    dcnv4_form,
    normal,
    with_gradients,
)
from torch.profiler import profile

from finslerconv import ops

pytest.importorskip("numba")
BACKENDS = ["reference", "numba"]

BASE = {
    "batch": 2, "size": (6, 7), "channels": 12, "kernel": (3, 3), "stride": (1, 1), "pad": (1, 1),
    "dilation": (1, 1), "group": 3, "offset_scale": 1.0, "remove_center": False,
}  # fmt: skip
CASES = {
    "plain": {},
    "one group": {"group": 1},
    "a channel a group": {"group": 12},
    "stride": {"stride": (2, 3)},
    "even kernel": {"kernel": (2, 4), "pad": (1, 2), "offset_scale": 0.5},
    "rectangular kernel": {"kernel": (5, 3), "pad": (2, 0), "dilation": (1, 2)},
    "without centre": {"remove_center": True, "offset_scale": 2.0},
    "without centre, rectangular": {"remove_center": True, "kernel": (3, 5), "pad": (1, 2)},
    "wide pad": {"pad": (3, 2)},
    "dilated": {"dilation": (2, 3), "pad": (2, 3)},
    "many channels": {"channels": 3 * 53, "size": (4, 3)},
    "no images": {"batch": 0},
}
SHAPES = [(5, 4), (3, 2), (1, 1)]


def case_of(name):
    return {**BASE, **CASES[name]}


def form_arguments(case):
    names = ("kernel", "stride", "pad", "dilation", "group", "offset_scale", "remove_center")
    return [case[name] for name in names]


def assert_equal(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_dcnv3_is_the_papers_formula(name, backend):
    case = case_of(name)
    tensors, arguments = dcnv3_arguments(case), form_arguments(case)
    with ops.use_backend(backend):
        found = with_gradients(lambda *t: ops.dcnv3(*t, *arguments), tensors)
    assert_equal(found, with_gradients(lambda *t: dcnv3_form(*t, *arguments), tensors))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_dcnv4_is_the_papers_formula(name, backend):
    case = case_of(name)
    input, offset, mask = dcnv3_arguments(case)
    channels = -(-(offset.shape[3] + mask.shape[3]) // 8) * 8
    tensors = (input, 2 * normal(*offset.shape[:3], channels, seed=5))
    arguments = form_arguments(case)
    with ops.use_backend(backend):
        found = with_gradients(lambda *t: ops.dcnv4(*t, *arguments), tensors)
    assert_equal(found, with_gradients(lambda *t: dcnv4_form(*t, *arguments), tensors))


def attention_arguments(batch=2, queries=5, heads=3, channels=6, points=4, spread=0.4):
    value = normal(batch, sum(r * c for r, c in SHAPES), heads, channels)
    locations = 0.5 + spread * normal(batch, queries, heads, len(SHAPES), points, 2, seed=1)
    weights = normal(batch, queries, heads, len(SHAPES), points, seed=2)
    return value, locations, weights


def attend(value, locations, weights):
    return ops.ms_deform_attn(
        value, torch.tensor(SHAPES), torch.tensor([0, 20, 26]), locations, weights
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes",
    [{}, {"heads": 1, "channels": 33}, {"queries": 300}, {"queries": 0}, {"batch": 0},
     {"points": 1}],
)  # fmt: skip
def test_attention_is_the_papers_formula(sizes, backend):
    tensors = attention_arguments(**sizes)
    with ops.use_backend(backend):
        found = with_gradients(attend, tensors)
    assert_equal(found, with_gradients(lambda v, *t: attention_form(v, SHAPES, *t), tensors))


@pytest.mark.parametrize("backend", BACKENDS)
def test_levels_may_lie_anywhere_in_the_value(backend):
    value, locations, weights = attention_arguments()
    gaps = torch.full((2, 2, 3, 6), torch.nan, dtype=torch.float64)
    # The first level comes last, and pixels of no level lie between.
    moved = torch.cat((value[:, 20:], gaps, value[:, :20]), 1)
    with ops.use_backend(backend):
        found = ops.ms_deform_attn(moved, SHAPES, [9, 0, 6], locations, weights)
        assert_equal([found], [attend(value, locations, weights)])
        assert_equal([found], [ops.ms_deform_attn(value, SHAPES, None, locations, weights)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_that_are_no_numbers_count_as_zero(backend):
    value, locations, weights = attention_arguments()
    flat = locations.reshape(-1, 2)
    flat[::3, 0], flat[1::7, 1], flat[2::11, 0] = torch.nan, torch.inf, 1e300
    known = (flat.abs() < 1e9).all(-1).reshape(weights.shape)
    with ops.use_backend(backend):
        found = with_gradients(attend, (value, locations, weights))
        expected = with_gradients(
            attend, (value, torch.where(known[..., None], locations, 0.0), weights * known)
        )
    assert_equal(found[:2], expected[:2])
    assert_equal([found[2]], [expected[2]])
    assert_equal([found[3]], [expected[3] * known])


def test_on_the_edge_of_the_image_and_on_its_pixels():
    image = normal(1, 12, 1, 5)
    marks = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1.0, 1.5, 2.0, 3.0, 3.5, 4.0], dtype=torch.float64)
    where = torch.cartesian_prod(marks, marks).reshape(1, -1, 1, 1, 1, 2)
    tensors = (image, where, normal(*where.shape[:-1], seed=3))
    results = []
    for backend in BACKENDS:
        with ops.use_backend(backend):
            results.append(with_gradients(lambda *t: ops.aggregate(*t, (3, 4)), tensors))
    assert_equal(*results)


@pytest.mark.parametrize(
    "lay",
    [lambda t: t[..., 1:], lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)[..., :36],
     lambda t: t[:1, :, :1, :36].expand(2, -1, 3, -1), lambda t: t.mT.contiguous().mT[..., :36]],
    ids=["packed", "groups first", "expanded", "far apart"],
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_are_read_wherever_they_lie(backend, lay):
    value, *_ = attention_arguments()
    both = normal(2, 5, 3, 37, seed=4)

    def parts(both):
        locations, weights = lay(both).split((24, 12), -1)
        return locations.unflatten(-1, (3, 4, 2)), weights.unflatten(-1, (3, 4))

    with ops.use_backend(backend):
        found = with_gradients(lambda v, t: attend(v, *parts(t)), (value, both))
    expected = with_gradients(lambda v, t: attention_form(v, SHAPES, *parts(t)), (value, both))
    assert_equal(found, expected)


@pytest.mark.parametrize("sizes", [{"queries": 50}, {"queries": 1}, {"heads": 1}])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_groups(threads, sizes, monkeypatch):
    from finslerconv.ops.backends.numba import _aggregation

    monkeypatch.setattr(_aggregation, "_PART_WORK", 1)
    before = torch.get_num_threads()
    tensors = attention_arguments(**{"batch": 1, "heads": 2, "queries": 9, **sizes})
    torch.set_num_threads(threads)
    try:
        found = [with_gradients(attend, tensors) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert_equal(found[0], with_gradients(lambda v, *t: attention_form(v, SHAPES, *t), tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_of_every_dtype(dtype, backend):
    value, locations, weights = attention_arguments()
    low = value.to(dtype)
    with ops.use_backend(backend):
        found = with_gradients(attend, (low, locations.float(), weights.float()))
        exact = with_gradients(attend, (low.double(), locations, weights))
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    tolerance = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    for got, wanted in zip(found, exact, strict=True):
        assert (got - wanted).abs().max() < tolerance * wanted.abs().max()


def test_only_what_is_wanted_gets_a_gradient():
    tensors = attention_arguments()
    expected = with_gradients(attend, tensors)
    direction = normal(*expected[0].shape, seed=99)
    for chosen in range(3):
        live = [t.clone().requires_grad_(i == chosen) for i, t in enumerate(tensors)]
        attend(*live).backward(direction)
        assert_equal([live[chosen].grad], [expected[1 + chosen]])
        assert [t.grad is None for t in live] == [i != chosen for i in range(3)]


@pytest.mark.slow
def test_derivatives_of_first_and_second_order():
    tensors = [
        t.requires_grad_()
        for t in (normal(1, 6, 2, 2), 0.9 * normal(1, 2, 2, 1, 2, 2, seed=1), normal(1, 2, 2, 1, 2))
    ]

    def function(*t):
        return ops.aggregate(*t, (2, 3))

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def operator():
    value, locations, weights = attention_arguments(batch=1, queries=3, heads=2, channels=3)
    table = torch.tensor([[5, 4, 0], [3, 2, 20], [1, 1, 26]])
    frames = normal(3, 4, 4, seed=8).abs()
    op = torch.ops.finslerconv.aggregate
    return op, (value, locations, weights, frames, table, [], [2, 1, 1], "auto")


@pytest.mark.uninstrumented
def test_opcheck():
    op, (value, locations, weights, *rest) = operator()
    live = [t.requires_grad_() for t in (value, locations, weights)]
    torch.library.opcheck(op, (*live, *rest))
    plain = [t.detach() for t in live]
    backward = torch.ops.finslerconv.aggregate_backward
    grad = torch.randn_like(op(*plain, *rest))
    # The tracing of the operator is that of its backward operator too.
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(backward, (grad, *plain, *rest, [True, True]), test_utils=tests)
    one_level = (
        plain[0],
        plain[1][:, :, :, :1],
        plain[2][:, :, :, :1],
        None,
        None,
        [9, 3],
        [],
        "auto",
    )
    torch.library.opcheck(op, one_level)


@pytest.mark.uninstrumented
def test_compiles_in_one_graph():
    case = case_of("stride")
    arguments = form_arguments(case)
    functions = [
        (lambda *t: ops.dcnv3(*t, *arguments).sin(), dcnv3_arguments(case)),
        (lambda *t: attend(*t).sin(), attention_arguments()),
    ]
    for function, tensors in functions:
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        with profile() as found:
            results = with_gradients(compiled, tensors)
        assert any("finslerconv::aggregate" in e.name for e in found.events())
        assert_equal(results, with_gradients(function, tensors))


@pytest.mark.uninstrumented
def test_exports_with_sizes_that_vary():
    class Layer(torch.nn.Module):
        def forward(self, x, offset, mask):
            return ops.dcnv3(x, offset, mask, group=3)

    def tensors(batch, size):
        return dcnv3_arguments({**BASE, "batch": batch, "size": size})

    dynamic = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(
        Layer(), tensors(2, (6, 7)), dynamic_shapes=(dynamic, dynamic, dynamic)
    )
    other = tensors(3, (9, 5))
    torch.testing.assert_close(program.module()(*other), Layer()(*other))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_lowers_values_and_never_positions(backend):
    image = normal(1, 600, 600, 4).float()
    offset = torch.full((1, 598, 598, 18), 0.25)
    mask = torch.full((1, 598, 598, 9), 1 / 9)
    with ops.use_backend(backend):
        exact = ops.dcnv3(image, offset, mask, pad=0, group=1)
        with torch.autocast("cpu", torch.bfloat16):
            low = ops.dcnv3(image, offset, mask, pad=0, group=1)
    assert low.dtype == torch.bfloat16
    # A position in bfloat16 would be wrong by pixels on the far side.
    assert (low - exact)[:, -50:, -50:].abs().max() < 0.02


# PyTorch's own forward-mode formulas are scripted.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.unchecked
def test_transforms_of_torch_func():
    value, locations, weights = attention_arguments()

    def loss(value, locations, weights):
        return attend(value[None], locations[None], weights[None]).square().sum()

    per_image = torch.vmap(torch.func.grad(loss, (0, 1, 2)))(value, locations, weights)
    live = [t.requires_grad_() for t in (value, locations, weights)]
    total = attend(*live).square().sum()
    assert_equal(per_image, torch.autograd.grad(total, live))
    tangents = tuple(normal(*t.shape, seed=7) for t in live)
    plain = tuple(t.detach() for t in live)
    _, along = torch.func.jvp(attend, plain, tangents)
    step = 1e-6
    ahead = attend(*(t + step * d for t, d in zip(plain, tangents, strict=True)))
    behind = attend(*(t - step * d for t, d in zip(plain, tangents, strict=True)))
    torch.testing.assert_close(along, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6)


def test_vmap_of_the_operator_itself():
    op, (value, *rest) = operator()
    twice = torch.vmap(op, in_dims=(0, *[None] * 7))(torch.stack((value, -value)), *rest)
    assert_equal(twice, (op(value, *rest), op(-value, *rest)))


def test_a_backend_that_only_convolves_leaves_the_aggregation_to_the_reference():
    class Convolves(ops.ConvBackend):
        def forward(self, conv):
            return ops.reference.forward(conv)

    ops.register_backend("convolves", "cpu", Convolves)
    tensors = attention_arguments()
    with ops.use_backend("convolves"):
        found = with_gradients(attend, tensors)
    assert_equal(found, with_gradients(attend, tensors))


def test_a_symbolic_trace_records_a_call():
    class Layer(torch.nn.Module):
        def forward(self, x, offset, mask):
            return ops.dcnv3(x, offset, mask, group=3)

    traced = torch.fx.symbolic_trace(Layer())
    tensors = dcnv3_arguments(BASE)
    torch.testing.assert_close(traced(*tensors), ops.dcnv3(*tensors, group=3))


X, OFFSET, MASK = torch.zeros(1, 4, 4, 8), torch.zeros(1, 4, 4, 72), torch.zeros(1, 4, 4, 36)
VALUE, WHERE, HOW = (
    torch.zeros(1, 8, 2, 3),
    torch.zeros(1, 5, 2, 1, 4, 2),
    torch.zeros(1, 5, 2, 1, 4),
)
WRONG = {
    "dimensions": (lambda: ops.dcnv3(X[0], OFFSET, MASK), "input: expected shape .B, H, W, C."),
    "group": (lambda: ops.dcnv3(X, OFFSET, MASK, group=3), "group: expected a divisor of .* 8"),
    "offset": (lambda: ops.dcnv3(X, MASK, MASK), r"offset: expected shape \(1, 4, 4, 72\)"),
    "mask": (lambda: ops.dcnv3(X, OFFSET, OFFSET), r"mask: expected shape \(1, 4, 4, 36\)"),
    "pad": (lambda: ops.dcnv3(X, OFFSET, MASK, pad=-1), "pad: expected one or two integers"),
    "centre": (
        lambda: ops.dcnv3(X, OFFSET, MASK, kernel_size=2, remove_center=True),
        "remove_center: expected a kernel of odd size",
    ),
    "offset_mask": (lambda: ops.dcnv4(X, OFFSET), "offset_mask: expected .* 108 channels at least"),
    "value": (lambda: ops.aggregate(VALUE[0], WHERE, HOW, (2, 4)), "value: expected shape"),
    "weights": (lambda: ops.aggregate(VALUE, WHERE, HOW[0], (2, 4)), "weights: expected shape"),
    "locations": (lambda: ops.aggregate(VALUE, HOW, HOW, (2, 4)), "locations: expected shape"),
    "levels": (lambda: ops.aggregate(VALUE, WHERE, HOW, (3, 4)), "levels: expected the rows and"),
    "table": (
        lambda: ops.aggregate(VALUE, WHERE, HOW, torch.zeros(2, 3, dtype=torch.int64)),
        r"levels: expected integers of shape \(1, 3\)",
    ),
    "outside": (
        lambda: ops.ms_deform_attn(VALUE, [(3, 4)], None, WHERE, HOW),
        "value: expected a level of 3 x 4 pixels",
    ),
    "negative start": (
        lambda: ops.ms_deform_attn(VALUE, [(2, 4)], [-1], WHERE, HOW),
        "value: expected a level of 2 x 4 pixels, the first at index -1",
    ),
    "shapes": (
        lambda: ops.ms_deform_attn(VALUE, [2, 4], None, WHERE, HOW),
        r"value_spatial_shapes: expected shape \(L, 2\)",
    ),
    "starts": (
        lambda: ops.ms_deform_attn(VALUE, [(2, 4)], [0, 1], WHERE, HOW),
        r"value_level_start_index: expected shape \(1,\)",
    ),
    "sampling_locations": (
        lambda: ops.ms_deform_attn(VALUE, [(2, 4), (1, 1)], None, WHERE, HOW),
        r"sampling_locations: expected shape \(B, Q, heads, 2, P, 2\)",
    ),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_expected(name):
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.unchecked
def test_only_numbers_of_the_right_kind():
    with pytest.raises(TypeError, match="offset: expected a floating dtype"):
        ops.dcnv3(X, OFFSET.long(), MASK)
    with pytest.raises(TypeError, match="value_spatial_shapes: expected integers"):
        ops.ms_deform_attn(VALUE, [(2.0, 4.0)], None, WHERE, HOW)
