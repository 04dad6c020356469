"""Whole models: which layers are chosen, what they get, and what stays."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from finslerconv.nn.weighted import (
    MetricDensity,
    SeparableDensity,
    WeightedConv2d,
    density_of,
    density_parameter_groups,
    fold,
    to_weighted,
    weight_convolution,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 5, padding=2)
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)
        )
        self.wide = nn.Conv2d(4, 4, (3, 5), padding=(1, 2))
        self.up = nn.ConvTranspose2d(4, 2, 3)

    def forward(self, x):
        return self.up(self.wide(self.body(self.stem(x))))


def weighted_names(model):
    return [name for name, m in model.named_modules() if density_of(m) is not None]


ANY = {3: [0.7], 5: [0.2, 0.8], (3, 5): [[0.7], [0.2, 0.8]]}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, ["stem", "body.0", "wide", "up"]),
        (3, ["body.0", "up"]),
        (5, ["stem"]),
        ((3, 5), ["wide"]),
        ("body.*", ["body.0", "body.3"]),
        ("*", ["stem", "body.0", "body.3", "wide", "up"]),
        (lambda name, m: isinstance(m, nn.ConvTranspose2d), ["up"]),
    ],
)
def test_where(where, names):
    assert weighted_names(to_weighted(Net(), lambda k: torch.rand(k) + 1, where)) == names


def test_a_mapping_chooses_by_its_kernel_sizes():
    assert weighted_names(to_weighted(Net(), {3: [0.7]})) == ["body.0", "up"]
    assert weighted_names(to_weighted(Net(), {(3, 5): torch.ones(3, 5)})) == ["wide"]


def test_each_layer_computes_weight_times_its_density():
    model = Net().eval()
    weighted = to_weighted(model, ANY)
    by_hand = copy.deepcopy(model)
    for name, conv in by_hand.named_modules():
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and max(conv.kernel_size) > 1:
            profile = ANY.get(conv.kernel_size, ANY.get(conv.kernel_size[0]))
            conv.weight.data *= SeparableDensity(conv.kernel_size, profile)()
            assert name in weighted_names(weighted)
    x = torch.randn(2, 1, 9, 9)
    torch.testing.assert_close(weighted(x), by_hand(x))
    torch.testing.assert_close(fold(weighted)(x), by_hand(x))
    assert set(fold(weighted).state_dict()) == set(model.state_dict())
    assert isinstance(weighted.stem, WeightedConv2d)
    assert type(model.stem) is nn.Conv2d


def test_preserve_keeps_the_function_and_changes_the_training():
    model = Net().double().eval()
    weighted = to_weighted(model, ANY, preserve=True)
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(weighted(x), model(x))
    before = weighted(x).detach()
    for m in (model, weighted):
        optimiser = torch.optim.SGD(m.parameters(), lr=1e-2)
        m(x).square().mean().backward()
        optimiser.step()
    assert not torch.allclose(weighted(x), model(x))
    assert not torch.allclose(weighted(x), before)


def test_inplace_keeps_parameters_hooks_and_names():
    model = Net()
    stem, weight = model.stem, model.stem.weight
    calls = []
    stem.register_forward_pre_hook(lambda module, args: calls.append(module))
    keys = list(model.state_dict())
    assert to_weighted(model, [0.2, 0.8], 5, inplace=True) is model
    assert model.stem is not stem
    assert model.stem.weight is weight
    model(torch.randn(1, 1, 9, 9))
    assert calls == [model.stem]
    assert [k for k in model.state_dict() if "density" not in k] == keys


def test_a_density_object_is_shared_and_a_callable_makes_new_ones():
    shared = SeparableDensity((3, 3), [0.7], trainable=True)
    one = to_weighted(Net(), shared, 3)
    assert density_of(one.body[0]) is density_of(one.up) is shared
    many = to_weighted(Net(), lambda k: SeparableDensity(k, [0.7], trainable=True), 3)
    assert density_of(many.body[0]) is not density_of(many.up)
    groups = density_parameter_groups(many, lr=1e-4, density_lr=1e-2)
    assert [len(g["params"]) for g in groups] == [len(list(Net().parameters())), 2]


def test_a_module_used_twice_is_converted_once():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    model = to_weighted(nn.Sequential(conv, nn.ReLU(), conv), [0.7])
    assert model[0] is model[2]
    assert isinstance(model[0], WeightedConv2d)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_shared_weight_stays_shared_and_is_divided_once(inplace):
    """Also where one of the two is weighted by a parametrization, and back again."""
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    ).double()
    model[1].weight = model[0].weight
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    before = model(x)
    weighted = to_weighted(model, [0.7], preserve=True, inplace=inplace)
    torch.testing.assert_close(weighted(x), before)
    assert weighted[0].weight is weighted[1].parametrizations.weight.original
    folded = fold(weighted, inplace=inplace)
    torch.testing.assert_close(folded(x), before)
    assert folded[0].weight is folded[1].weight


def test_folding_one_of_two_that_share_a_weight_leaves_the_other():
    conv, plain = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    plain.weight = conv.weight
    up = nn.ConvTranspose2d(2, 2, 3)
    up.weight = conv.weight
    model = nn.ModuleList([*to_weighted(nn.ModuleList([conv, up]), [0.7], inplace=True), plain])
    x = torch.randn(1, 2, 9, 9)
    before = [layer(x) for layer in model]
    assert not torch.allclose(before[0], before[2])
    folded = fold(model)
    for layer, output in zip(folded, before, strict=True):
        torch.testing.assert_close(layer(x), output)


def test_a_single_convolution():
    conv = nn.Conv2d(2, 2, 3)
    weighted = to_weighted(conv, [0.7])
    assert type(weighted) is WeightedConv2d
    assert type(to_weighted(conv, [0.7], inplace=True)) is WeightedConv2d


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("density", "where", "message"),
    [
        ([0.7], None, "layer 'stem': profile must have 2 values"),
        ({7: [0.1, 0.2, 0.3]}, None, r"no convolution.*stem \(5, 5\), body.0 \(3, 3\)"),
        ({3: [0.7]}, 5, r"layer 'stem': density has no entry for kernel_size \(5, 5\)"),
        ([0.7], "head*", r"where='head\*'"),
        (SeparableDensity((3, 3), [0.7]), None, "layer 'stem': density is for kernel_size"),
    ],
)
def test_refusals_name_the_layer(density, where, message):
    model = Net()
    with pytest.raises(ValueError, match=message):
        to_weighted(model, density, where, inplace=True)
    assert weighted_names(model) == []


@pytest.mark.unchecked
def test_other_refusals():
    with pytest.raises(TypeError, match="layer 'stem': density must be a Density"):
        to_weighted(Net(), 0.7)
    with pytest.raises(ValueError, match="layer 'stem': it is weighted already"):
        to_weighted(to_weighted(Net(), [0.2, 0.8], 5), [0.2, 0.8], 5)
    with pytest.raises(ValueError, match="it has: none"):
        to_weighted(nn.Linear(1, 1), [0.7])
    model = Net()
    with pytest.raises(ValueError, match=r"layer 'up': .*preserve=True; Phi is 0 at tap \(0, 0\)"):
        to_weighted(model, [0.0], "up", preserve=True, inplace=True)
    assert weighted_names(model) == []
    model.up.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    model.body[0].weight = model.up.weight
    with pytest.raises(ValueError, match=r"layer 'up': its weight is shared with body\.0, which"):
        to_weighted(model, [0.7], "up", preserve=True, inplace=True)
    parametrizations.weight_norm(model.stem)
    with pytest.raises(ValueError, match="layer 'stem': the weight is computed, by a param"):
        to_weighted(model, [0.2, 0.8], "stem", preserve=True, inplace=True)
    assert weighted_names(model) == []


def test_parameter_groups_hold_each_parameter_once():
    shared = SeparableDensity((3, 3), [0.7], trainable=True)
    model = nn.Sequential(
        WeightedConv2d(1, 1, 3, density=shared),
        weight_convolution(nn.Conv2d(1, 1, 3), shared),
        WeightedConv2d(1, 1, 3, density=[0.7]),
        nn.BatchNorm2d(1),
    )
    model[3].bias.requires_grad_(False)
    weights, densities = density_parameter_groups(
        model, lr=1e-4, density_lr=1e-2, weight_decay=1e-2, density_weight_decay=1e-3
    )
    assert [p is shared.profile_0 for p in densities["params"]] == [True]
    assert (densities["lr"], densities["weight_decay"]) == (1e-2, 1e-3)
    assert (weights["lr"], weights["weight_decay"]) == (1e-4, 1e-2)
    held = [id(p) for g in (weights, densities) for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    optimiser = torch.optim.AdamW([weights, densities])
    model(torch.randn(2, 1, 9, 9)).square().mean().backward()
    optimiser.step()
    assert shared.profile_0.item() == pytest.approx(0.7, abs=0.011)
    assert shared.profile_0.item() != pytest.approx(0.7, abs=0.009)


def test_metric_densities_convert_too():
    from finslerconv.metrics import Randers
    from finslerconv.nn.weighted import GaussianProfile

    metric = Randers(torch.eye(2), torch.tensor([0.3, 0.0]))
    profile = GaussianProfile(1.0, trainable=True)
    model = to_weighted(Net(), lambda k: MetricDensity(k, metric, profile))
    x = torch.randn(2, 1, 9, 9)
    torch.testing.assert_close(fold(model.eval())(x), model(x))
    assert len(density_parameter_groups(model, 1e-3, 1e-2)[1]["params"]) == 1
