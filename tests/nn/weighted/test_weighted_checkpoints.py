"""Checkpoints in the layout of the paper's own implementation."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from finslerconv.nn.weighted import (
    SeparableDensity,
    TensorDensity,
    WeightedConv1d,
    WeightedConv2d,
    WeightedConv3d,
    load_reference_checkpoint,
    weight_convolution,
)

WEIGHTED = {1: WeightedConv1d, 2: WeightedConv2d, 3: WeightedConv3d}
OUTER = {1: "i->i", 2: "i,j->ij", 3: "i,j,k->ijk"}
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def theirs(n, den, prefix="", trainable=False, bias=True):
    """A layer's entries as the reference implementation lays them out."""
    den = torch.tensor(den)
    alfa = torch.cat([den, torch.ones(1), den.flip(0)])
    phi = torch.einsum(OUTER[n], *[alfa] * n)
    entries = {"weight": torch.randn(3, 2, *phi.shape)}
    if bias:
        entries["bias"] = torch.randn(3)
    entries |= {"den": den} if trainable else {"alfa": alfa, "Phi": phi}
    return {prefix + k: v for k, v in entries.items()}, phi


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_layer_computes_what_theirs_does(n, trainable, bias):
    state, phi = theirs(n, [0.27, 0.17, 0.54], trainable=trainable, bias=bias)
    start = SeparableDensity((7,) * n, [0.5, 0.5, 0.5], trainable=trainable)
    conv = WEIGHTED[n](2, 3, 7, bias=bias, density=start)
    load_reference_checkpoint(conv, state)
    x = torch.randn(1, 2, *(7,) * n)
    expected = CONV[n](x, state["weight"] * phi, state.get("bias"))
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)
    if trainable:
        torch.testing.assert_close(conv.density.profile_0.detach(), state["den"])


@pytest.mark.parametrize(
    "density",
    [
        SeparableDensity((3, 3), [0.5]),
        SeparableDensity((3, 3), [0.5, 1.0, 0.5]),
        SeparableDensity((3, 3), [0.5], trainable=True),
        SeparableDensity((3, 3), [0.5, 1.0, 0.5], trainable=True),
        SeparableDensity((3, 3), [0.5], trainable=True, positive=True),
        TensorDensity(torch.ones(3, 3)),
        TensorDensity(torch.ones(3, 3), trainable=True, positive=True),
    ],
)
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("how", ["module", "parametrization"])
def test_any_of_our_densities_that_can_take_the_values_does(density, trainable, how):
    state, phi = theirs(2, [0.7], "block.0.", trainable)
    state |= {"block.1.weight": torch.rand(3), "block.1.bias": torch.rand(3)}
    conv = (
        WeightedConv2d(2, 3, 3, density=density)
        if how == "module"
        else weight_convolution(nn.Conv2d(2, 3, 3), density)
    )
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.ModuleDict({"block": nn.Sequential(conv, norm)})
    load_reference_checkpoint(model, state)
    torch.testing.assert_close(density().detach(), phi)
    weight = conv.weight if how == "module" else conv.parametrizations.weight.original
    torch.testing.assert_close(weight.detach(), state["block.0.weight"])
    torch.testing.assert_close(norm.weight.detach(), state["block.1.weight"])


def test_layers_that_share_a_density():
    shared = SeparableDensity((3, 3), [0.5])
    model = nn.Sequential(*[WeightedConv2d(2, 3, 3, density=shared) for _ in range(2)])
    first, phi = theirs(2, [0.7], "0.")
    load_reference_checkpoint(model, first | theirs(2, [0.7], "1.")[0])
    torch.testing.assert_close(shared(), phi)
    with pytest.raises(ValueError, match="layers '0' and '1' share one density"):
        load_reference_checkpoint(model, first | theirs(2, [0.6], "1.")[0])


def test_refusals_name_the_layer_and_leave_the_model():
    model = nn.Sequential(WeightedConv2d(2, 3, 3, density=[0.5]))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    good, _ = theirs(2, [0.7], "0.")
    cases = [
        ({"0.weight": good["0.weight"]}, "no checkpoint of the reference"),
        ({k: v for k, v in good.items() if k != "0.alfa"}, "layer '0'.*both 'alfa' and 'Phi'"),
        (good | {"0.Phi": torch.ones(3, 3)}, "layer '0'.*not the product"),
        (theirs(2, [0.7], "1.")[0], "layer '1' is not in the model"),
        (theirs(2, [0.7, 0.8], "0.")[0], r"5 taps.*kernel_size is \(3, 3\)"),
    ]
    for state, message in cases:
        with pytest.raises(ValueError, match=message):
            load_reference_checkpoint(model, state)
    with pytest.raises(ValueError, match="layer '0' is weighted in the checkpoint but not in"):
        load_reference_checkpoint(nn.Sequential(nn.Conv2d(2, 3, 3)), good)
    per_axis = SeparableDensity((3, 3), [[0.7], [0.7]], trainable=True)
    with pytest.raises(ValueError, match="one profile for all axes"):
        load_reference_checkpoint(nn.Sequential(WeightedConv2d(2, 3, 3, density=per_axis)), good)
    positive = SeparableDensity((3, 3), [0.7], trainable=True, positive=True)
    with pytest.raises(ValueError, match="not positive"):
        load_reference_checkpoint(
            nn.Sequential(WeightedConv2d(2, 3, 3, density=positive)), theirs(2, [-0.7], "0.")[0]
        )
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_reference_checkpoint(model, {k: v for k, v in good.items() if k != "0.bias"})
