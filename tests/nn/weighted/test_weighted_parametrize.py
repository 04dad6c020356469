"""Convolutions weighted in place, and made plain again."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from finslerconv.nn.weighted import (
    SeparableDensity,
    WeightedConv2d,
    fold,
    unweight_convolution,
    weight_convolution,
)

EVERY = [
    (nn.Conv1d, (3,), functional.conv1d),
    (nn.Conv2d, (3, 5), functional.conv2d),
    (nn.Conv3d, (3, 1, 3), functional.conv3d),
    (nn.ConvTranspose1d, (4,), functional.conv_transpose1d),
    (nn.ConvTranspose2d, (3, 4), functional.conv_transpose2d),
    (nn.ConvTranspose3d, (1, 3, 3), functional.conv_transpose3d),
]
ids = [cls.__name__ for cls, *_ in EVERY]


def asymmetric(kernel):
    torch.manual_seed(3)
    return [(torch.rand(k) + 0.2).tolist() for k in kernel]


def phi_of(kernel):
    return SeparableDensity(kernel, asymmetric(kernel), dtype=torch.float64)()


@pytest.mark.parametrize(("cls", "kernel", "function"), EVERY, ids=ids)
@pytest.mark.parametrize("groups", [1, 2])
def test_every_convolution_is_that_of_weight_times_phi(cls, kernel, function, groups):
    conv = cls(4, 6, kernel, stride=2, groups=groups, dtype=torch.float64)
    weight = conv.weight.detach().clone()
    parameter = conv.weight
    assert weight_convolution(conv, asymmetric(kernel)) is conv
    x = torch.randn(2, 4, *(9,) * len(kernel), dtype=torch.float64)
    expected = function(x, weight * phi_of(kernel), conv.bias, stride=2, groups=groups)
    torch.testing.assert_close(conv(x), expected)
    assert conv.parametrizations.weight.original is parameter
    torch.testing.assert_close(parameter.detach(), weight, rtol=0, atol=0)
    folded = fold(conv)
    assert type(folded) is cls
    torch.testing.assert_close(folded(x), expected)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(("cls", "kernel", "function"), EVERY, ids=ids)
def test_preserve_keeps_the_function(cls, kernel, function):
    conv = cls(4, 6, kernel, dtype=torch.float64)
    before = copy.deepcopy(conv)
    weight_convolution(conv, asymmetric(kernel), preserve=True)
    x = torch.randn(2, 4, *(9,) * len(kernel), dtype=torch.float64)
    torch.testing.assert_close(conv(x), before(x))
    torch.testing.assert_close(
        conv.parametrizations.weight.original, before.weight / phi_of(kernel)
    )


@pytest.mark.parametrize("keep", ["function", "weights"])
def test_and_back(keep):
    conv = nn.Conv2d(2, 3, 3)
    parameter, before = conv.weight, conv.weight.detach().clone()
    handle = conv.register_forward_hook(lambda module, args, output: output)
    weight_convolution(conv, [0.7])
    effective = conv.weight.detach()
    unweight_convolution(conv, keep=keep)
    assert type(conv) is nn.Conv2d
    assert conv.weight is parameter
    assert len(conv._forward_hooks) == 1
    handle.remove()
    torch.testing.assert_close(
        conv.weight.detach(), effective if keep == "function" else before, rtol=0, atol=0
    )


def test_assigning_a_weight_sets_the_kernel_that_is_applied():
    conv = weight_convolution(nn.Conv2d(2, 3, 3, dtype=torch.float64), [0.7])
    wanted = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    conv.weight = wanted
    torch.testing.assert_close(conv.weight.detach(), wanted)


def test_state_dict_keys_and_round_trip():
    conv = weight_convolution(nn.Conv2d(2, 3, 3), [0.7])
    assert set(conv.state_dict()) == {
        "bias",
        "parametrizations.weight.original",
        "parametrizations.weight.0.density.phi",
    }
    other = weight_convolution(nn.Conv2d(2, 3, 3), [0.1])
    other.load_state_dict(conv.state_dict())
    torch.testing.assert_close(other.weight, conv.weight, rtol=0, atol=0)


@pytest.mark.parametrize("trainable", [False, True])
def test_pickle_and_deepcopy(trainable):
    density = SeparableDensity((3, 3), [0.7], trainable=trainable)
    model = nn.Sequential(
        weight_convolution(nn.Conv2d(2, 2, 3, bias=False), density),
        weight_convolution(nn.ConvTranspose2d(2, 2, 3), density),
    ).eval()
    x = torch.randn(1, 2, 6, 6)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
        first, second = (m.parametrizations.weight[0].density for m in other)
        assert first is second
        assert first is not density
        assert not any(m.training for m in other)
        assert list(other.state_dict()) == list(model.state_dict())
        pickle.loads(pickle.dumps(other))
    # The copies train on their own.
    torch.testing.assert_close(model(x), pickle.loads(pickle.dumps(model))(x))


def test_beside_another_parametrization():
    conv = parametrizations.weight_norm(nn.Conv2d(2, 2, 3))
    normed = conv.weight.detach().clone()
    weight_convolution(conv, [0.7])
    phi = SeparableDensity((3, 3), [0.7])()
    torch.testing.assert_close(conv.weight.detach(), normed * phi)
    with pytest.raises(RuntimeError, match="can be pickled; got parametrizations"):
        pickle.dumps(conv)
    with pytest.raises(ValueError, match="other parametrizations"):
        unweight_convolution(conv)
    folded = fold(conv)
    assert not parametrize.is_parametrized(folded)
    torch.testing.assert_close(folded.weight.detach(), normed * phi)


def test_a_computed_weight_cannot_be_preserved():
    conv = parametrizations.spectral_norm(nn.Conv2d(2, 2, 3))
    weight = conv.eval().weight.detach().clone()
    with pytest.raises(ValueError, match="the weight is computed, by a parametrization"):
        weight_convolution(conv, [0.7], preserve=True)
    assert torch.equal(conv.weight, weight)


def test_a_copy_with_a_parametrized_bias_keeps_its_weight():
    class Halved(nn.Module):
        def forward(self, bias):
            return bias / 2

    conv = parametrize.register_parametrization(nn.Conv2d(2, 2, 3), "bias", Halved())
    other = copy.deepcopy(conv)
    weight_convolution(conv, [0.7])
    assert not parametrize.is_parametrized(other, "weight")
    assert torch.equal(other.weight, conv.parametrizations.weight.original)


def test_a_weighted_layer_with_a_parametrization_on_its_weight():
    conv = parametrizations.weight_norm(WeightedConv2d(2, 2, 3, density=[0.7]))
    x = torch.randn(1, 2, 6, 6)
    folded = fold(conv)
    assert type(folded) is nn.Conv2d
    assert list(folded.state_dict()) == ["bias", "weight"]
    torch.testing.assert_close(folded(x), conv(x))


def test_a_subclass_keeps_its_class():
    class Own(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    conv = Own(1, 1, 3)
    x = torch.randn(1, 1, 5, 5)
    y = weight_convolution(conv, [0.5])(x)
    assert isinstance(conv, Own)
    torch.testing.assert_close(fold(conv)(x), y)


def test_fold_keeps_what_is_not_weighted_and_does_not_touch_the_model():
    weighted = WeightedConv2d(2, 2, 3, density=[0.7])
    model = nn.ModuleDict({"a": weighted, "b": nn.BatchNorm2d(2), "again": weighted}).eval()
    seen = []
    weighted.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    weighted.bias.requires_grad_(False)
    folded = fold(model)
    assert type(folded["a"]) is nn.Conv2d
    assert folded["a"] is folded["again"]
    assert list(folded["a"].state_dict()) == ["weight", "bias"]
    assert folded["a"].weight.requires_grad
    assert not folded["a"].bias.requires_grad
    assert not folded["a"].training
    assert model["a"] is weighted
    assert weighted.density is not None
    folded["a"](torch.randn(1, 2, 5, 5))
    assert seen == [nn.Conv2d]
    assert fold(model, inplace=True) is model
    assert type(model["a"]) is nn.Conv2d


@pytest.mark.unchecked
def test_refusals():
    with pytest.raises(TypeError, match="must be a convolution of PyTorch; got Linear"):
        weight_convolution(nn.Linear(2, 2), [0.7])
    with pytest.raises(ValueError, match="has no weights yet"):
        weight_convolution(nn.LazyConv2d(2, 3), [0.7])
    conv = weight_convolution(nn.Conv2d(1, 1, 3), [0.7])
    with pytest.raises(ValueError, match="weighted already"):
        weight_convolution(conv, [0.7])
    with pytest.raises(ValueError, match="weighted already"):
        weight_convolution(WeightedConv2d(1, 1, 3, density=[0.7]), [0.7])
    with pytest.raises(ValueError, match="keep must be 'function' or 'weights'; got 'both'"):
        unweight_convolution(conv, keep="both")
    with pytest.raises(ValueError, match="no density on it"):
        unweight_convolution(nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match="fold"):
        unweight_convolution(WeightedConv2d(1, 1, 3, density=[0.7]))
    with pytest.raises(ValueError, match="no weighted convolution"):
        fold(nn.Linear(2, 2))


def test_a_zero_is_refused_where_it_cannot_be_divided_by():
    zero = [0.0, 1.0]
    conv = nn.Conv1d(1, 1, 5)
    with pytest.raises(ValueError, match=r"no zero with preserve=True; Phi is 0 at tap \(0,\)"):
        weight_convolution(conv, zero, preserve=True)
    assert not parametrize.is_parametrized(conv)
    weight_convolution(conv, zero)
    with pytest.raises(ValueError, match="no zero when a weight is assigned"):
        conv.weight = torch.ones(1, 1, 5)
