"""torchvision's function computed by this library: who is reached, and how it is undone."""

import functools
import sys
import threading

import pytest
import torch
from torch import nn

from finslerconv import ops


def arguments(dtype=torch.float64):
    torch.manual_seed(0)
    tensors = (
        torch.randn(2, 4, 7, 6), torch.randn(2, 2 * 2 * 9, 4, 3), torch.randn(6, 2, 3, 3),
        torch.randn(6),
    )  # fmt: skip
    tensors = [t.to(dtype).requires_grad_() for t in tensors]
    return (*tensors, 2, 1, 1, torch.rand(2, 2 * 9, 4, 3).to(dtype).requires_grad_())


def operator_of(output):
    """Return whose operator computed, "ours" or "theirs"."""
    return "ours" if "finslerconv" in type(output.grad_fn).__name__.lower() else "theirs"


def computed_by(function, *given):
    return operator_of(function(*given))


@pytest.fixture
def deform(torchvision_deform_conv2d):
    yield torchvision_deform_conv2d
    assert computed_by(torchvision_deform_conv2d, *arguments()) == "theirs"


def test_values_and_gradients_are_theirs(deform):
    given = arguments()
    live = [t for t in given if isinstance(t, torch.Tensor)]

    def results():
        output = deform(*given)
        return (output, *torch.autograd.grad(output.square().sum(), live))

    expected = results()
    with ops.replace_torchvision():
        found = results()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_every_name_of_the_function_is_reached(deform):
    import torchvision

    given = arguments()
    partial = functools.partial(deform, given[0])

    class Layer(torchvision.ops.DeformConv2d):
        pass

    layer = Layer(4, 6, 3, stride=2, padding=1, groups=2).double()
    calls = {
        "imported before": lambda: deform(*given),
        "attribute": lambda: torchvision.ops.deform_conv2d(*given),
        "partial": lambda: partial(*given[1:]),
        "module": lambda: layer(given[0], given[1], given[-1]),
        "by keyword": lambda: deform(
            input=given[0], offset=given[1], weight=given[2], stride=2, padding=(1, 1)
        ),
    }
    with ops.replace_torchvision():
        found = {name: computed_by(call) for name, call in calls.items()}
    assert set(found.values()) == {"ours"}, found
    assert {computed_by(call) for call in calls.values()} == {"theirs"}


def test_as_a_function_until_restored(deform):
    replacement = ops.replace_torchvision()
    try:
        assert computed_by(deform, *arguments()) == "ours"
    finally:
        replacement.restore()
    assert computed_by(deform, *arguments()) == "theirs"
    replacement.restore()  # nothing is left to undo


def test_blocks_nest_and_end_with_errors(deform):
    outer = ops.replace_torchvision()
    with pytest.raises(KeyError), ops.replace_torchvision():
        raise KeyError
    assert computed_by(deform, *arguments()) == "ours"
    inner = ops.replace_torchvision()
    outer.restore()  # not in the order of their beginning
    assert computed_by(deform, *arguments()) == "ours"
    with inner:
        inner.restore()
        assert computed_by(deform, *arguments()) == "theirs"


def test_blocks_of_several_threads_leave_nothing_behind(deform):
    given = arguments()
    expected = deform(*given)
    errors = []

    def work():
        for _ in range(20):
            with ops.replace_torchvision():
                output = deform(*given)
                if operator_of(output) != "ours":
                    errors.append("not replaced")
                if not torch.allclose(output, expected):
                    errors.append("wrong")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_the_choice_of_a_backend_holds(deform):
    with ops.replace_torchvision(), ops.use_backend("reference"):
        # Made of PyTorch's operations.
        assert "convolution" in type(deform(*arguments()).grad_fn).__name__.lower()


def test_devices_without_a_backend_keep_their_operator(deform):
    given = [t.detach().to("meta") if isinstance(t, torch.Tensor) else t for t in arguments()]
    with ops.replace_torchvision():
        assert deform(*given).shape == (2, 6, 4, 3)


def test_a_trained_network_trains_on(deform):
    import torchvision

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Conv2d(3, 18, 3, padding=1)
            self.conv = torchvision.ops.DeformConv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x, self.offset(x)).relu()

    def trained():
        torch.manual_seed(0)
        model = nn.Sequential(Block(), Block()).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = torch.randn(2, 3, 8, 8).double()
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    expected = trained()
    with ops.replace_torchvision():
        found = trained()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.uninstrumented
def test_compiled_code_notices(torchvision_deform_conv2d):
    def function(*given):
        return torchvision_deform_conv2d(*given).sin()

    compiled = torch.compile(function, backend="aot_eager")
    given = arguments()
    outputs = []
    for _ in range(2):
        outputs.append(compiled(*given))
        with ops.replace_torchvision(), torch.profiler.profile() as found:
            outputs.append(compiled(*given))
        assert any("finslerconv::sampled_conv" in e.name for e in found.events())
    for output in outputs:
        torch.testing.assert_close(output, function(*given))


def test_a_symbolic_trace_records_a_call(deform):
    with ops.replace_torchvision():

        class Layer(nn.Module):
            def forward(self, x, offset, weight):
                return deform(x, offset, weight, padding=1)

        traced = torch.fx.symbolic_trace(Layer())
    x, offset, weight = torch.randn(1, 2, 5, 5), torch.randn(1, 18, 5, 5), torch.randn(2, 2, 3, 3)
    expected = deform(x, offset, weight, padding=1)
    torch.testing.assert_close(traced(x, offset, weight), expected, rtol=1e-5, atol=1e-5)


def test_without_torchvision_an_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops.deform_conv", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="replace_torchvision: torchvision cannot be imported"):
        ops.replace_torchvision()
