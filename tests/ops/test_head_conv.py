"""Convolutions from a head's channels: equal to the formulas in PyTorch, and at home in PyTorch."""

from dataclasses import replace

import pytest
import torch
from convolution_cases import FORMULAS, assert_equal_results

from finslerconv import ops
from finslerconv._parametrization import PARAMETRIZATIONS, Cholesky, MatrixParametrization
from finslerconv.ops.backends import _head_numbers as numbers

pytest.importorskip("numba")


def tensors(formula, groups=1, dtype=torch.float64, size=(5, 6)):
    """Return input, channels, weight, mask."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    channels = 1.2 * normal(2, groups * formula.n_channels, *size)
    channels[0, :, 0, :2] = 0  # where every formula degenerates
    channels[1, :, 1] *= 1e-2  # where series take over
    return normal(2, 4, *size), channels, normal(3, 4, 3, 3), normal(2, groups * 9, *size)


# Drawn before any tracing, which knows no generators.
POINTS = 2 * torch.rand(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
POINTS[0] = 0


def convolve(formula, input, channels, weight, mask, map="radial"):
    at = POINTS.to(torch.promote_types(weight.dtype, torch.float32))
    return ops.head_conv2d(input, channels, formula, at, weight, padding=1, mask=mask, map=map)


def results(backend, formula, arguments, map="radial"):
    live = [t.detach().requires_grad_() for t in arguments]
    with ops.use_backend(backend):
        output = convolve(formula, *live, map)
    direction = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, live, direction.to(output))]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f"{f.name} {f.eps_omega}")
@pytest.mark.parametrize("map", ["radial", "affine"])
def test_values_and_gradients_are_those_of_the_formulas(formula, map):
    for groups, dtype in ((2, torch.float64), (1, torch.float32)):
        arguments = tensors(formula, groups, dtype)
        found = results("numba", formula, arguments, map)
        expected = results("reference", formula, arguments, map)
        for got, wanted in zip(found, expected, strict=True):
            assert got.dtype == dtype
            if dtype == torch.float64:
                torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
            else:
                error = (got - wanted).abs() / wanted.abs().amax()
                assert error.median() < 1e-5


def test_several_tiles_and_threads():
    formula = FORMULAS[0]
    arguments = tensors(formula, size=(23, 31))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = results("numba", formula, arguments)
    finally:
        torch.set_num_threads(before)
    assert_equal_results(found, results("reference", formula, arguments), torch.float64)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_the_formula_of_one_pixel_is_that_of_tensors(name):
    """In NumPy, as it is written; its reverse against autograd."""
    formula = ops.HeadFormula(PARAMETRIZATIONS[name](), 1.0)
    generator = torch.Generator().manual_seed(2)
    raw = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    raw[:, 0] = 0
    live = raw[: formula.n_channels].clone().requires_grad_()
    M = formula.parametrization.matrix(live.T)
    g = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(
        (M[:, 0, 0] * g[0] + M[:, 0, 1] * g[1] + M[:, 1, 1] * g[2]).sum(), live
    )
    of_kind = numbers.coefficients(formula)[:4]
    a, b, c = getattr(numbers, name)(*raw.numpy(), *of_kind)
    g_raw = getattr(numbers, f"{name}_back")(*raw.numpy(), *of_kind, *g.numpy())
    found = torch.stack([torch.as_tensor(x) for x in g_raw])
    for got, wanted in zip((a, b, c), (M[:, 0, 0], M[:, 0, 1], M[:, 1, 1]), strict=True):
        torch.testing.assert_close(torch.as_tensor(got), wanted.detach(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(found[: formula.n_channels], expected, rtol=1e-11, atol=1e-13)
    assert not found[formula.n_channels :].any()


def test_channels_of_half_precision_are_raised():
    formula = FORMULAS[0]
    input, channels, weight, mask = tensors(formula, dtype=torch.float32)
    low = channels.bfloat16()
    found = results("numba", formula, (input, low, weight, mask))
    exact = results("numba", formula, (input, low.float(), weight, mask))
    assert torch.equal(found[0], exact[0])
    assert found[2].dtype == torch.bfloat16
    torch.testing.assert_close(found[2], exact[2].bfloat16())


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_autocast_lowers_values_and_never_positions(backend):
    """The reference multiplies in half precision; the operator takes the image in it too."""
    formula = FORMULAS[0]
    input, channels, weight, _ = tensors(formula, dtype=torch.float32)
    with ops.use_backend(backend):
        exact = convolve(formula, input, channels, weight, None)
        with torch.autocast("cpu", torch.bfloat16):
            low = convolve(formula, input, channels, weight, None)
            same = convolve(formula, input.bfloat16(), channels, weight.bfloat16(), None)
    for found in (low, same):
        assert found.dtype == torch.bfloat16
        # Positions rounded to eight bits would be off by far more.
        assert (found.float() - exact).abs().max() < 2**-6 * exact.abs().max()
    assert backend == "reference" or torch.equal(low, same)


@pytest.mark.slow
def test_derivatives_of_second_order():
    formula = ops.HeadFormula(PARAMETRIZATIONS["spectral"](), 0.3)
    arguments = [t[:1, :, :2, :2] for t in tensors(formula)]
    arguments[0], arguments[2] = arguments[0][:, :1], tensors(formula)[2][:1, :1]
    arguments = [t.clone().requires_grad_() for t in arguments]
    arguments[1].data += 0.3

    def function(*arguments):
        return convolve(formula, *arguments)

    with ops.use_backend("numba"):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.uninstrumented
def test_opcheck():
    formula = replace(FORMULAS[0], radius=1.25)
    input, channels, weight, mask = (t.requires_grad_() for t in tensors(formula))
    arguments = (
        input, channels, None, POINTS, weight, None, mask, "radial", (1, 1), (1, 1), (1, 1),
        (1, 1), "zeros", formula.name, formula.numbers, "auto",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.finslerconv.sampled_conv, arguments)


@pytest.mark.uninstrumented
def test_compiles_and_exports_as_one_operator():
    formula = FORMULAS[3]
    arguments = tensors(formula)

    class Layer(torch.nn.Module):
        def forward(self, *arguments):
            return convolve(formula, *arguments)

    expected = results("auto", formula, arguments)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    live = [t.clone().requires_grad_() for t in arguments]
    direction = torch.linspace(-1, 1, expected[0].numel(), dtype=torch.float64)
    output = compiled(*live)
    gradients = torch.autograd.grad(output, live, direction.view(output.shape))
    for got, wanted in zip((output, *gradients), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    program = torch.export.export(Layer(), arguments)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("finslerconv.sampled_conv.default") == 1
    assert not any("tanh" in name or "sigmoid" in name for name in called)
    torch.testing.assert_close(program.module()(*arguments), expected[0])


@pytest.mark.unchecked
def test_transforms_of_torch_func_go_by_the_formulas():
    formula = FORMULAS[0]
    input, channels, weight, _ = tensors(formula)

    def loss(channels):
        return convolve(formula, input, channels, weight, None).square().sum()

    live = channels.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(live), live)
    torch.testing.assert_close(torch.func.grad(loss)(channels), expected, rtol=1e-9, atol=1e-9)


class Doubled(MatrixParametrization):
    """A parametrisation that the backends do not know."""

    n_channels = 2

    def matrix(self, raw):
        return torch.diag_embed(torch.exp(2 * raw))


class Inherited(ops.ConvBackend):
    """A backend that does not know channels."""

    def forward(self, conv):
        assert conv.positions.formula is None
        return ops.reference.forward(conv)


@pytest.mark.parametrize("which", ["formula", "backend"])
def test_what_is_not_compiled_is_computed_first(which, monkeypatch):
    from finslerconv.ops.backends import _choice

    monkeypatch.setitem(_choice._devices, "inherited", "cpu")
    monkeypatch.setitem(_choice._loaders, "inherited", Inherited)
    formula = ops.HeadFormula(Doubled() if which == "formula" else Cholesky(), 0.2)
    arguments = tensors(formula)
    found = results("numba" if which == "formula" else "inherited", formula, arguments)
    assert_equal_results(found, results("reference", formula, arguments), torch.float64)


@pytest.mark.unchecked
def test_wrong_arguments_are_named():
    formula = FORMULAS[0]
    input, channels, weight, mask = tensors(formula)
    with pytest.raises(ValueError, match=r"channels: expected shape \(2, G \* 5, 5, 6\)"):
        convolve(formula, input, channels[:, 1:], weight, None)
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 9, 5, 6\)"):
        convolve(formula, input, channels, weight, mask[:, 1:])
    with pytest.raises(TypeError, match="formula: expected a HeadFormula, got Cholesky"):
        convolve(Cholesky(), input, channels, weight, None)
    with pytest.raises(ValueError, match="omega_constraint: expected one of"):
        ops.HeadFormula(Cholesky(), omega_constraint="hard")


@pytest.mark.parametrize("x", [0.0, 1e-9, -0.3, 0.49999, 0.5, 3.0, -30.0])
def test_elementary_functions_are_exact(x):
    wanted = torch.tensor(x, dtype=torch.float64)
    for name in ("expm1", "tanh", "sigmoid"):
        got = torch.as_tensor(getattr(numbers, name)(x))
        torch.testing.assert_close(got, getattr(torch, name)(wanted), rtol=1e-15, atol=0)
