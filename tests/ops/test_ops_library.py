"""The operators in PyTorch's own machinery: opcheck, compile, export, autocast, vmap, choice."""

import dataclasses

import pytest
import torch
from convolution_cases import Case
from torch.profiler import profile

from finslerconv import ops
from finslerconv.ops.backends import _choice

pytest.importorskip("numba")
KINDS = ("offsets", "radial", "affine")
SMALL = Case(batch=1, channels=2, size=(3, 4), out_channels=2, kernel=(2, 2), padding=0)


def live(case):
    return [t if t is None else t.requires_grad_() for t in case.tensors()]


VOLUME = Case(batch=1, channels=2, size=(2, 3, 2), out_channels=2, kernel=(2, 1, 2), padding=0)
LINE = Case(batch=1, channels=2, size=(5,), out_channels=2, kernel=(2,), padding=0)
ELLIPSOID, INTERVAL = (dataclasses.replace(case, kind="radial") for case in (VOLUME, LINE))


def operator(case, tensors):
    input, where, omega, weight, bias, mask = tensors
    points = None if case.kind == "offsets" else case.points
    geometry = case.geometry
    return torch.ops.finslerconv.sampled_conv, (
        input, where, omega, points, weight, bias, mask, case.kind, geometry.stride,
        geometry.padding_before, geometry.padding_after, geometry.dilation, case.padding_mode,
        "", (), "auto",
    )  # fmt: skip


@pytest.mark.uninstrumented
def test_opcheck():
    # Each kind of positions and each layout in some dimension.
    plane = SMALL, dataclasses.replace(SMALL, kind="radial", channels_last=True)
    space = VOLUME, dataclasses.replace(ELLIPSOID, kind="affine", channels_last=True)
    for case in (*plane, dataclasses.replace(SMALL, kind="affine"), *space, LINE, INTERVAL):
        # The tracing of the operator is that of its backward operator too.
        op, arguments = operator(case, live(case))
        torch.library.opcheck(op, arguments)
        # Second derivatives go through the reference, whose tracing takes minutes and says nothing
        # about the operator: gradgradcheck is their test.
        _, plain = operator(case, case.tensors())
        backward = torch.ops.finslerconv.sampled_conv_backward
        arguments = (torch.randn_like(op(*plain)), *plain, [True, True, True])
        torch.library.opcheck(backward, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "size", [(4,), (3, 2), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str
)
def test_derivatives_of_first_and_second_order(kind, size):
    kernel = (2, 1, 1)[: len(size)]
    case = Case(kind=kind, batch=1, channels=2, size=size, out_channels=2, kernel=kernel, padding=0)
    tensors = live(case)

    def function(*wanted):
        given = iter(wanted)
        return case(*(None if t is None else next(given) for t in tensors))

    wanted = [t for t in tensors if t is not None]
    with ops.use_backend("numba"):
        assert torch.autograd.gradcheck(function, wanted)
        # Along random directions: entry by entry it takes ten times as long.
        assert torch.autograd.gradgradcheck(function, wanted, fast_mode=True)


def test_only_what_is_wanted_gets_a_gradient():
    case = Case()
    complete = case.results("numba")
    for chosen in (0, 1, 3, 4, 5):
        tensors = case.tensors()
        tensors[chosen].requires_grad_()
        with ops.use_backend("numba"):
            output = case(*tensors)
        generator = torch.Generator().manual_seed(case.seed + 2)
        direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        output.backward(direction)
        # Results are in the order output, input, offset, weight, bias, mask: there is no omega.
        expected = complete[1 + chosen - (chosen > 2)]
        torch.testing.assert_close(tensors[chosen].grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.uninstrumented
def test_compiles_in_one_graph():
    plane = (Case(kind=kind) for kind in KINDS)
    for case in (*plane, VOLUME, ELLIPSOID, INTERVAL, LINE):
        case.points  # noqa: B018 - drawn before the tracing, which knows no generators

        def function(*tensors, case=case):
            return case(*tensors).sin()

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        results = []
        for f in (function, compiled):
            tensors = live(case)
            f(*tensors).sum().backward()
            results.append([t.grad for t in tensors if t is not None])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.uninstrumented
def test_compiled_code_notices_another_choice():
    case = Case()
    compiled = torch.compile(lambda *t: case(*t), fullgraph=True, backend="aot_eager")
    tensors = live(case)
    calls = []
    for backend in ("auto", "reference"):
        with ops.use_backend(backend), profile() as found:
            compiled(*tensors)
        calls.append(any("finslerconv::sampled_conv" in e.name for e in found.events()))
    assert calls == [True, False]


@pytest.mark.uninstrumented
@pytest.mark.parametrize("case", [Case(kind="affine"), VOLUME, INTERVAL], ids=str)
def test_exports_as_one_operator(case):
    class Layer(torch.nn.Module):
        def forward(self, *tensors):
            return case(*tensors)

    # Before the export, in which the case would make and keep tensors of the tracer.
    tensors, expected = tuple(case.tensors()), case(*case.tensors())
    program = torch.export.export(Layer(), tensors)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "finslerconv.sampled_conv.default" in called
    torch.testing.assert_close(program.module()(*tensors), expected)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("case", [Case(), VOLUME, LINE], ids=str)
def test_autocast_lowers_values_and_never_positions(case, backend):
    case = dataclasses.replace(case, dtype=torch.float32)
    tensors = live(case)
    # In bfloat16 this offset of half a pixel would be lost.
    tensors[1] = (tensors[1].detach() + 512.5).requires_grad_()
    tensors[0] = tensors[0].detach()
    far = dataclasses.replace(case, padding_mode="circular")
    with ops.use_backend(backend):
        exact = far(*tensors)
        with torch.autocast("cpu", torch.bfloat16):
            low = far(*tensors)
    assert low.dtype == torch.bfloat16
    assert ((low - exact).abs().amax() / exact.abs().amax()) < 0.03
    low.float().sum().backward()
    assert tensors[1].grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("case", [Case(kind="radial"), ELLIPSOID, INTERVAL], ids=str)
def test_autocast_never_lowers_metrics(case, backend):
    case = dataclasses.replace(case, dtype=torch.float32)
    case.points  # noqa: B018 - drawn before the autocast
    tensors = live(case)
    with ops.use_backend(backend):
        exact = case(*tensors)
        with torch.autocast("cpu", torch.bfloat16):
            low = case(*tensors)
        assert low.dtype == torch.bfloat16
        # The same samples, of an image in bfloat16.
        rounded = case(*(t.bfloat16().float() if i in (0, 3) else t for i, t in enumerate(tensors)))
    assert (low - rounded).abs().amax() < 0.005 * exact.abs().amax()
    low.float().sum().backward()
    for position in tensors[1:3]:
        assert position.grad.dtype == torch.float32
        assert position.grad.abs().amax() > 0


@pytest.mark.unchecked
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_does_not_bring_float64_together_with_others(backend):
    input, offset, _, weight, bias, _ = Case().tensors()
    functions = {
        "weight": lambda: ops.deform_conv2d(input, offset, weight.float(), bias, padding=1),
        "bias": lambda: ops.deform_conv2d(input, offset, weight, bias.float(), padding=1),
    }
    with ops.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        # As nn.functional.conv2d, which lowers all but float64.
        assert ops.deform_conv2d(input, offset, weight, bias, padding=1).dtype == torch.float64
        for name, function in functions.items():
            words = f"{name}: expected the input's dtype torch.float64, got torch.float32"
            with pytest.raises(TypeError, match=words):
                function()
        low = ops.deform_conv2d(input.bfloat16(), offset, weight.float(), bias.half(), padding=1)
        assert low.dtype == torch.bfloat16


@pytest.mark.unchecked
@pytest.mark.parametrize("case", [Case(), dataclasses.replace(VOLUME, batch=2), LINE], ids=str)
def test_transforms_of_torch_func(case):
    input, offset, _, weight, bias, mask = case.tensors()

    def loss(weight, x, o, m):
        return case(x[None], o[None], None, weight, bias, m[None]).square().sum()

    per_image = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(
        weight, input, offset, mask
    )
    for i in range(case.batch):
        w = weight.clone().requires_grad_()
        loss(w, input[i], offset[i], mask[i]).backward()
        torch.testing.assert_close(per_image[i], w.grad, rtol=1e-11, atol=1e-11)


def test_vmap_of_the_operator_itself():
    case = Case()
    op, arguments = operator(case, case.tensors())
    twice = torch.stack((arguments[0], -arguments[0]))
    dims = (0, *(None,) * 15)
    mapped = torch.vmap(op, in_dims=dims)(twice, *arguments[1:])
    torch.testing.assert_close(mapped[0], op(*arguments))
    torch.testing.assert_close(mapped[1], op(-arguments[0], *arguments[1:]))


def test_backends_are_chosen_by_context_and_call():
    assert ops.current_backend() == "auto"
    with ops.use_backend("reference"):
        output = Case()(*live(Case()))
        assert "finslerconv" not in output.grad_fn.name()
        with ops.use_backend("numba"):
            assert ops.current_backend() == "numba"
            output = Case()(*live(Case()))
            assert "finslerconv_sampled_conv" in type(output.grad_fn).__name__
        assert ops.current_backend() == "reference"
    ops.use_backend("reference")
    assert ops.current_backend() == "reference"
    ops.use_backend("auto")
    assert ops.current_backend() == "auto"


def test_blocks_of_several_threads_leave_nothing_behind():
    first, second = ops.use_backend("reference"), ops.use_backend("numba")
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)  # not in the order of their beginning
    assert ops.current_backend() == "numba"
    second.__exit__(None, None, None)
    assert ops.current_backend() == "auto"


@pytest.mark.unchecked
def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"backend: expected one of .* got 'cudnn'"):
        ops.use_backend("cudnn")
    assert ops.current_backend() == "auto"


def test_a_missing_backend_warns_once_and_falls_back(monkeypatch):
    def refuse():
        raise ImportError("no numba here")

    monkeypatch.setitem(_choice._loaders, "numba", refuse)
    monkeypatch.setattr(_choice, "_loaded", {})
    case = Case()
    with pytest.warns(RuntimeWarning, match="numba backend cannot be loaded"):
        first = case(*case.tensors())
    case(*case.tensors())  # a second warning would be an error
    with pytest.raises(ImportError):
        ops.use_backend("numba")
    torch.testing.assert_close(first, case.results("reference")[0], rtol=0, atol=0)
