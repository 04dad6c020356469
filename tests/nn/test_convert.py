"""Whole models converted: the same function, everything kept, everything told."""

import copy
import io
import re
import warnings

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from finslerconv.nn import (
    AdaptiveConv2d,
    DeformConv2d,
    MetricConv2d,
    SeparableDensity,
    ShiftedConv2d,
    WeightedConv2d,
    convert,
    convert_back,
    convert_resnet,
    select,
    weight_convolution,
)

FAMILIES = ["metric", "deform", "shifted", "weighted"]
CLASSES = {"metric": MetricConv2d, "deform": DeformConv2d, "shifted": ShiftedConv2d}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Block(nn.Module):
    """A basic residual block, with the names that torchvision and timm use."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class SmallResNet(nn.Module):
    def __init__(self, widths=(4, 8, 8, 8)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = widths[0]
        for number, width in enumerate(widths, 1):
            stride = 1 if number == 1 else 2
            stage = nn.Sequential(Block(before, width, stride), Block(width, width, 1))
            self.add_module(f"layer{number}", stage)
            before = width
        self.fc = nn.Linear(before, 5)

    def forward(self, x):
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2

    def right_inverse(self, weight):
        return 2 * weight


def torchvision_models():
    """Return torchvision.models, or skip where it is missing or broken."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"torchvision cannot be used: {error}")
    return models


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


def timm_models():
    try:
        import timm
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"timm cannot be used: {error}")
    return timm


def assert_trains(model, x, steps=6):
    """The loss on a batch of random labels falls within a few steps."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    labels = torch.arange(len(x)) % 5
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def names(rows):
    return [row.name for row in rows]


def reasons(report):
    return {row.name: row.reason for row in report.left_alone}


@pytest.mark.slow
@pytest.mark.parametrize("to", FAMILIES)
def test_a_network_computes_what_it_did_and_then_trains(to):
    net = SmallResNet().eval()
    x = torch.randn(4, 3, 64, 64)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    converted, report = convert(net, to)
    torch.testing.assert_close(converted(x), net(x), rtol=0, atol=1e-4)
    # The model itself is untouched, and shares nothing with the copy.
    assert len(report.converted) == 17
    assert not any(isinstance(m, AdaptiveConv2d | WeightedConv2d) for m in net.modules())
    assert_trains(converted.train(), x)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("to", FAMILIES)
def test_a_state_dict_goes_into_a_freshly_converted_model(to):
    x = torch.randn(2, 3, 32, 32)
    trained, _ = convert(SmallResNet(), to, 3)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    again, _ = convert(SmallResNet(), to, 3)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again.eval()(x), trained.eval()(x))


@pytest.mark.uninstrumented
def test_a_converted_network_compiles():
    net = SmallResNet().eval()
    for stage, to in enumerate(FAMILIES, 1):
        net, _ = convert(net, to, select(kernel_size=3, stage=stage), inplace=True)
    x = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))


class TestSelection:
    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (7, {"conv1"}),
            ((7, 7), {"conv1"}),
            ("layer2.*.conv1", {"layer2.0.conv1", "layer2.1.conv1"}),
            (re.compile(r"r[34]\.0.*2$"), {"layer3.0.conv2", "layer4.0.conv2"}),
            (lambda name, conv: conv.stride == (2, 2) and conv.kernel_size == (3, 3),
             {"layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"}),
            (select(kernel_size=3, name="layer[34].*", predicate=lambda n, m: "1.conv1" in n),
             {"layer3.1.conv1", "layer4.1.conv1"}),
            (select(stage=2) & ~select(name="*.0.*"), {"layer2.1.conv1", "layer2.1.conv2"}),
            (select(kernel_size=7) | (lambda name, _: name == "layer1.0.conv1"),
             {"conv1", "layer1.0.conv1"}),
            (["conv1", "layer4.*.conv2"], {"conv1", "layer4.0.conv2", "layer4.1.conv2"}),
            (nn.Conv2d, {n for n, m in SmallResNet().named_modules()
                         if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)}),
            (select(type=nn.Conv2d, stage=[4], name="*.conv2"),
             {"layer4.0.conv2", "layer4.1.conv2"}),
        ],
    )  # fmt: skip
    def test_exactly_these(self, where, expected):
        converted, report = convert(SmallResNet(), "shifted", where)
        assert set(names(report.converted)) == expected
        found = {n for n, m in converted.named_modules() if isinstance(m, ShiftedConv2d)}
        assert found == expected
        assert set(reasons(report)) | expected == {
            n for n, m in SmallResNet().named_modules() if isinstance(m, nn.Conv2d)
        }

    @pytest.mark.parametrize(
        ("name", "stage"),
        [
            ("layer3.0.conv", 3),
            ("backbone.stages.12.blocks.0.conv", 12),
            ("stage1", 1),
            ("block2.0", 2),
            ("features.3.conv", None),
            ("multilayer3.conv", None),
            ("layer.conv", None),
        ],
    )
    def test_stages_are_numbered_as_in_the_names(self, name, stage):
        conv = nn.Conv2d(1, 1, 3)
        assert [n for n in range(20) if select(stage=n)(name, conv)] == (
            [] if stage is None else [stage]
        )

    def test_shown(self):
        late = select(stage=(3, 4)) & ~select(name=re.compile("conv1$"), type=nn.Conv2d)
        assert str(late) == "(select(stage=(3, 4)) & ~select(name='conv1$', type=Conv2d))"


class TestWhatIsLeftAlone:
    def test_every_kind_and_why(self):
        class Standardised(nn.Conv2d):
            def forward(self, x):
                return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

        patched = nn.Conv2d(2, 2, 3)
        patched.forward = lambda x: x
        observed = nn.Conv2d(2, 2, 3)
        observed.register_buffer("maximum", torch.zeros(()))
        net = nn.ModuleDict(
            {
                "plain": nn.Conv2d(2, 2, 3),
                "single": nn.Conv2d(2, 2, 1),
                "transposed": nn.ConvTranspose2d(2, 2, 3),
                "line": nn.ConvTranspose1d(2, 2, 3),
                "lazy": nn.LazyConv2d(2, 3),
                "own": Standardised(2, 2, 3),
                "patched": patched,
                "observed": observed,
                "pruned": prune.l1_unstructured(nn.Conv2d(2, 2, 3), "weight", 0.5),
                "metric": MetricConv2d(2, 2, 3, modulation=True),
                "weighted": WeightedConv2d(2, 2, 3, density=[0.5]),
                "density": weight_convolution(nn.Conv2d(2, 2, 3), [0.5]),
            }
        )
        converted, report = convert(net, "deform", inplace=True)
        assert converted is net
        assert names(report.converted) == ["plain"]
        expected = {
            "single": "its single tap has no support to shape",
            "transposed": "transposed",
            "line": "transposed",
            "lazy": "is lazy and has no weights yet",
            "own": "Standardised computes something else than nn.Conv2d",
            "patched": "its forward was replaced on the object",
            "observed": "it holds maximum besides its weights",
            "pruned": "its weight is computed by a hook",
            "metric": "adaptive already",
            "metric.head.conv": "part of metric (MetricConv2d)",
            "metric.modulation_conv": "part of metric (MetricConv2d)",
            "weighted": "weighted already",
            "density": "weighted already",
        }
        told = reasons(report)
        assert set(told) == set(expected)
        for name, reason in expected.items():
            assert told[name].startswith(reason), name

    def test_nothing_is_converted_twice(self):
        once, _ = convert(SmallResNet(), "metric", 3)
        twice, report = convert(once, "deform", inplace=True)
        assert names(report.converted) == ["conv1"]
        assert isinstance(twice.layer1[0].conv1, MetricConv2d)

    def test_what_a_factory_gives_back(self):
        net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 2, 3))
        _, report = convert(net, lambda c: c if c.out_channels == 2 else nn.Conv2d(1, 1, 5))
        assert names(report.converted) == ["0"]
        assert reasons(report) == {"1": "the factory gave it back"}

    def test_adaptive_layers_of_other_libraries_and_what_computes_their_offsets(self):
        class Dense(nn.Module):
            """A convolution that does not derive from PyTorch's."""

            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(4, 4, 3, 3))
                self.stride = self.padding = self.dilation = (1, 1)

        class Pack(Dense):
            """One that is called without its offsets, as mmcv's."""

            def __init__(self):
                super().__init__()
                self.deform_groups = 2
                self.conv_offset = nn.Conv2d(4, 36, 3)

        class Telling(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Conv2d(4, 18, 3)

            def positions(self, x):
                raise AssertionError

            def geometry(self):
                raise AssertionError

        pair = nn.ModuleDict(
            {
                "offset_conv": nn.Conv2d(4, 36, 3),
                "factors": nn.Conv2d(4, 18, 3),
                "wide": nn.Conv2d(4, 64, 3),
                "deformable": Pack(),
            }
        )
        net = nn.ModuleDict({"pair": pair, "telling": Telling(), "own": Dense()})
        _, report = convert(net, "metric")
        assert reasons(report) == {
            "pair.offset_conv": "by its name, it computes offsets of pair.deformable (Pack)",
            "pair.deformable": "adaptive already",
            "pair.deformable.conv_offset": "part of pair.deformable (Pack)",
            "telling": "adaptive already",
            "telling.inner": "part of telling (Telling)",
            "own": "no convolution of PyTorch but of its own kind, Dense",
        }
        notes = {row.name: row.notes for row in report.converted}
        assert notes["pair.wide"] == ()
        assert notes["pair.factors"][0].startswith(
            "its 18 channels fit the samples of pair.deformable (Pack)"
        )

    def test_weighted_ones_without_a_density_for_their_size(self):
        net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 9), nn.Conv1d(1, 1, 3))
        _, report = convert(net, "weighted")
        assert names(report.converted) == ["0"]
        assert "gives no profile for kernel_size 9" in reasons(report)["1"]
        _, report = convert(net, "weighted", density={9: [1, 0.9, 0.8, 0.7]})
        assert names(report.converted) == ["1"]
        _, report = convert(net, "weighted", select(type=nn.Conv1d), density=[0.5])
        assert names(report.converted) == ["2"]


class TestWhatIsKept:
    def test_parameters_themselves_in_place(self):
        net = SmallResNet()
        before = dict(net.named_parameters())
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        converted, _ = convert(net, "metric", inplace=True)
        assert converted is net
        after = dict(net.named_parameters())
        assert all(after[name] is parameter for name, parameter in before.items())
        weight = net.layer2[0].conv1.weight.detach().clone()
        net(torch.randn(2, 3, 32, 32)).square().sum().backward()
        optimiser.step()
        assert not torch.equal(net.layer2[0].conv1.weight, weight)

    def test_dtype_mode_and_requires_grad(self):
        net = SmallResNet().double()
        net.layer3.eval()
        net.layer2.requires_grad_(False)
        net.layer4[0].conv1.weight.requires_grad_(False)
        converted, report = convert(net, "metric")
        assert not converted.layer3[0].conv1.training
        assert not converted.layer3[0].conv1.head.conv.training
        assert converted.layer1[0].conv1.training
        frozen = converted.layer2[0].conv1
        assert not frozen.weight.requires_grad
        # What is new is there to be trained.
        assert frozen.head.conv.weight.requires_grad
        assert frozen.head.conv.weight.dtype == torch.float64
        notes = {row.name: row.notes for row in report.converted}
        assert notes["layer2.0.conv1"] == ("frozen weights; what is new is trained",)
        assert notes["layer1.0.conv1"] == ()

    def test_meta_device(self):
        with torch.device("meta"):
            net = SmallResNet()
        converted, _ = convert(net, "deform", 3)
        assert converted.layer1[0].conv1.offset_conv.weight.device.type == "meta"

    def test_shared_modules_stay_shared_and_any_of_their_names_counts(self):
        conv = nn.Conv2d(4, 4, 3, padding=1)
        net = nn.Sequential(nn.Sequential(conv), nn.ReLU(), nn.ModuleDict({"again": conv}))
        for where in (None, "0.0", "2.again"):
            converted, report = convert(net, "metric", where)
            assert converted[0][0] is converted[2]["again"]
            (row,) = report.converted
            assert (row.name, row.also) == ("0.0", ("2.again",))
        assert report.parameters_after - report.parameters_before == 5 * 36 + 5

    def test_shared_parameters_stay_shared(self):
        net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        net[1].weight = net[0].weight
        converted, _ = convert(net, "deform")
        assert converted[0].weight is converted[1].weight

    @pytest.mark.parametrize("inplace", [False, True])
    def test_shared_weights_are_divided_once(self, inplace):
        net = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        net[2].weight = net[0].weight
        x = torch.randn(1, 4, 9, 9)
        before, weight = net(x), net[0].weight
        converted, report = convert(net, "weighted", inplace=inplace)
        torch.testing.assert_close(converted(x), before)
        assert converted[0].weight is converted[2].weight
        assert len(report.converted) == 3
        back, report = convert_back(converted, inplace=inplace)
        torch.testing.assert_close(back(x), before)
        assert back[0].weight is back[2].weight
        assert (back[0].weight is weight) == inplace
        assert all(row.notes == () for row in report.converted)

    @pytest.mark.parametrize("options", [{"to": "weighted"}, {"to": "metric", "start": "constant"}])
    def test_weights_shared_with_a_layer_that_stays_are_left_alone(self, options):
        net = nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        )
        net[2].weight = net[1].weight = net[0].weight
        x = torch.randn(1, 4, 9, 9)
        converted, report = convert(net, **options)
        torch.testing.assert_close(converted[:3](x), net[:3](x))
        assert names(report.converted) == ["3"]
        assert reasons(report) == {
            "0": "its weight is shared with 2, which keeps it as it is",
            "1": "its weight is shared with 2, which keeps it as it is",
            "2": "transposed",
        }

    def test_memory_that_is_shared_is_left_alone_too(self):
        net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        net[1].weight = nn.Parameter(net[0].weight.data.transpose(0, 1))
        _, report = convert(net, "weighted", inplace=True)
        assert reasons(report)["0"].startswith("its weight is shared with 1")

    def test_weights_shared_under_two_densities(self):
        net = nn.Sequential(*[nn.Conv2d(4, 4, 3) for _ in range(3)])
        net[1].weight = net[0].weight
        x = torch.randn(1, 4, 9, 9)
        sizes = iter([[0.5], [0.7], [0.7]])
        converted, report = convert(net, "weighted", density=lambda _: next(sizes))
        assert reasons(report) == {
            "0": "its weight is shared with 1, whose density is another",
            "1": "its weight is shared with 0, whose density is another",
        }
        torch.testing.assert_close(converted(x), net(x))
        # Trained apart, two densities need two weights, and the report says so.
        converted, _ = convert(net, "weighted", density=[0.5])
        converted[0].density.phi[0, 0] = 0.1
        back, report = convert_back(converted)
        torch.testing.assert_close(back(x), converted(x))
        assert report.converted[0].notes == (
            "its weight is shared with 1, whose density is another; this one is a copy",
        )

    def test_a_shared_weight_takes_no_modulation(self):
        net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        net[1].weight = net[0].weight
        converted, _ = convert(net, "deform", "0", modulation=True)
        nn.init.ones_(converted[0].modulation_conv.bias)
        with pytest.raises(ValueError, match="its weight is shared with another layer"):
            convert_back(converted)

    @pytest.mark.parametrize("inplace", [False, True])
    def test_hooks(self, inplace):
        seen = []
        net = nn.Sequential(nn.Conv2d(2, 2, 3))
        handle = net[0].register_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
        net[0].register_forward_pre_hook(
            lambda m, args, kwargs: seen.append("before"), with_kwargs=True
        )
        net[0].register_full_backward_hook(lambda m, i, o: seen.append("backward"))
        converted, report = convert(net, "shifted", inplace=inplace)
        assert report.converted[0].notes == ("hooks carried over",)
        converted(torch.randn(1, 2, 5, 5, requires_grad=True)).sum().backward()
        assert seen == ["before", "ShiftedConv2d", "backward"]
        if inplace:
            handle.remove()
            seen.clear()
            converted(torch.randn(1, 2, 5, 5))
            assert seen == ["before"]

    def test_attributes_of_ones_own(self):
        conv = nn.Conv2d(2, 2, 3)
        conv.role = "stem"
        assert convert(conv, "metric").model.role == "stem"

    def test_a_single_convolution(self):
        conv = nn.Conv2d(2, 3, 3)
        layer, report = convert(conv, "metric", "*")
        assert isinstance(layer, MetricConv2d)
        assert names(report.converted) == [""]
        assert "(the model itself)" in str(report)

    @pytest.mark.parametrize("to", CLASSES)
    def test_parametrisations(self, to):
        net = nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
            parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
        )
        x = torch.randn(2, 3, 9, 9)
        net(x)
        before = copy.deepcopy(net.state_dict())
        converted, report = convert(net, to)
        assert all(torch.equal(v, converted.state_dict()[k]) for k, v in before.items())
        torch.testing.assert_close(converted.eval()(x), net.eval()(x))
        assert isinstance(converted[0], CLASSES[to])
        assert parametrize.is_parametrized(converted[0], "weight")
        assert report.converted[1].notes == ("parametrisation of weight carried over",)
        assert report.converted[0].old == "Conv2d(3, 4, 3x3)"
        converted.train()(x).sum().backward()
        assert converted[0].parametrizations.weight.original1.grad is not None
        back, _ = convert_back(converted)
        torch.testing.assert_close(back.eval()(x), converted.eval()(x))

    @pytest.mark.parametrize("to", CLASSES)
    def test_a_parametrisation_that_remembers_what_it_was_given(self, to):
        """An orthogonal one holds the weight that it was registered on as its base."""
        net = nn.Sequential(parametrizations.orthogonal(nn.Conv2d(4, 4, 3)))
        x = torch.randn(2, 4, 9, 9)
        with torch.no_grad():
            net[0].parametrizations.weight.original.add_(torch.randn(4, 4, 3, 3))
        before = net(x)
        converted, _ = convert(net, to)
        torch.testing.assert_close(converted(x), before)
        back, _ = convert_back(converted)
        torch.testing.assert_close(back(x), before)
        assert parametrize.is_parametrized(back[0], "weight")
        torch.testing.assert_close(net(x), before)

    def test_the_mode_of_a_parametrisation(self):
        conv = parametrizations.spectral_norm(nn.Conv2d(2, 2, 3))
        conv.parametrizations.eval()
        layer, _ = convert(conv, "metric")
        assert layer.training
        assert layer.head.training
        assert not layer.parametrizations.weight[0].training

    @pytest.mark.parametrize("inplace", [False, True])
    @pytest.mark.parametrize(
        "parametrised",
        [
            parametrizations.weight_norm,
            parametrizations.spectral_norm,
            parametrizations.orthogonal,
            lambda conv: parametrize.register_parametrization(conv, "weight", Halved()),
        ],
    )
    def test_a_parametrised_weight_is_not_divided(self, parametrised, inplace):
        net = nn.Sequential(parametrised(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3)).eval()
        x = torch.randn(1, 4, 9, 9)
        before = net(x)
        converted, report = convert(net, "weighted", inplace=inplace)
        torch.testing.assert_close(converted(x), before)
        assert reasons(report)["0"].startswith("its weight is parametrised, so that it cannot")
        back, _ = convert_back(converted)
        torch.testing.assert_close(back(x), before)
        assert parametrize.is_parametrized(back[0], "weight")
        # As asked for, the density comes on top, and folding takes all of it into the weight.
        multiplied, _ = convert(back, "weighted", "0", preserve=False, density=[0.5])
        folded, report = convert_back(multiplied)
        torch.testing.assert_close(folded(x), multiplied(x))
        assert report.converted[0].notes == (
            "the other parametrisations of its weight are folded with the density",
        )

    @pytest.mark.parametrize("to", FAMILIES)
    def test_a_parametrised_bias_of_a_model_that_stays(self, to):
        net = nn.Sequential(nn.Conv2d(2, 2, 3))
        parametrize.register_parametrization(net[0], "bias", Halved())
        x = torch.randn(1, 2, 9, 9)
        before = net(x)
        converted, _ = convert(net, to)
        torch.testing.assert_close(converted(x), before)
        # The two share the class that PyTorch made for the convolution.
        torch.testing.assert_close(net(x), before)

    def test_one_evaluation_of_a_parametrised_weight_for_each_pass(self):
        class Counting(nn.Module):
            calls = 0

            def forward(self, weight):
                type(self).calls += 1
                return weight

        conv = nn.Conv2d(2, 2, 3)
        parametrize.register_parametrization(conv, "weight", Counting())
        layer = convert(conv, "metric").model.double()
        Counting.calls = 0
        layer(torch.randn(1, 2, 5, 5, dtype=torch.float64))
        assert Counting.calls == 1


class TestStart:
    @pytest.mark.parametrize("to", CLASSES)
    def test_constant_kernels(self, to):
        net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 2, 5, bias=False))
        converted, _ = convert(net, to, start="constant")
        torch.testing.assert_close(converted[0].weight, torch.full((6, 2, 3, 3), 1 / 18))
        torch.testing.assert_close(converted[1].weight, torch.full((2, 6, 5, 5), 1 / 150))
        assert torch.equal(converted[0].bias, net[0].bias)
        assert converted[0].weight.requires_grad

    def test_fixed_kernels(self):
        net = nn.Sequential(nn.Conv2d(4, 6, 3))
        converted, report = convert(net, "deform", start="constant", fixed_kernel=True)
        assert "weight" not in dict(converted[0].named_parameters())
        torch.testing.assert_close(converted[0].weight, torch.full((6, 4, 3, 3), 1 / 36))
        assert torch.equal(converted[0].bias, net[0].bias)
        assert report.parameters_after == 6 + 18 * 37

    @pytest.mark.unchecked
    def test_weights_are_not_discarded_unasked(self):
        class Fixed(DeformConv2d):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options, fixed_kernel=True)

        net = nn.Sequential(nn.Conv2d(4, 6, 3))
        for to, options in (("deform", {"fixed_kernel": True}), (Fixed, {})):
            with pytest.raises(ValueError, match=r'fixed_kernel: .* start="constant" \(at 0: Conv'):
                convert(net, to, inplace=True, **options)
        assert type(net[0]) is nn.Conv2d

    @pytest.mark.parametrize("reference", ["concentric", "polar"])
    def test_other_references_are_told_of(self, reference):
        net = nn.Sequential(nn.Conv2d(1, 1, 3))
        assert convert(net, "metric", reference=reference).report.converted[0].notes == (
            f"computes something else than it did: its reference set is {reference!r}, not the "
            "lattice",
        )

    def test_a_parametrised_kernel_is_not_made_constant(self):
        net = nn.Sequential(nn.Conv2d(2, 2, 3), parametrizations.weight_norm(nn.Conv2d(2, 2, 3)))
        _, report = convert(net, "metric", start="constant")
        assert reasons(report)["1"].startswith("its weight is parametrised")


class TestFamilies:
    def test_a_factory(self):
        def strip(conv, width):
            return nn.Conv2d(conv.in_channels, conv.out_channels, (1, width), padding="same")

        net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 1, 1)).eval()
        converted, report = convert(net, strip, "0", width=5)
        assert converted[0].kernel_size == (1, 5)
        assert not converted[0].training
        assert report.converted[0].new == "Conv2d(2, 3, 1x5)"
        # A factory is asked about single taps too.
        assert names(convert(net, strip, width=5).report.converted) == ["0", "1"]

    def test_a_factory_that_wraps_the_convolution(self):
        net = nn.Sequential(nn.Conv2d(2, 3, 3))
        seen = []
        net[0].register_forward_hook(lambda *_: seen.append(1))
        converted, _ = convert(net, lambda conv: nn.Sequential(conv, nn.ReLU()), inplace=True)
        converted(torch.randn(1, 2, 5, 5))
        assert len(seen) == 1

    def test_an_adaptive_class_of_ones_own(self):
        class Mine(DeformConv2d):
            pass

        converted, _ = convert(SmallResNet(), Mine, 7, modulation=True)
        assert isinstance(converted.conv1, Mine)
        assert converted.conv1.modulation_conv is not None

    def test_weighted_options(self):
        x = torch.randn(1, 3, 32, 32)
        net = SmallResNet().eval()
        shared = SeparableDensity((3, 3), [0.7], trainable=True)
        converted, _ = convert(net, "weighted", 3, density=shared, preserve=False)
        assert converted.layer1[0].conv1.density is converted.layer4[1].conv2.density
        assert not torch.allclose(converted(x), net(x), atol=1e-4)

    def test_options_reach_the_layers(self):
        converted, _ = convert(
            SmallResNet(), "metric", 3, head="log_euclidean", eps_omega=1.0, modulation=True
        )
        layer = converted.layer3[0].conv2
        assert layer.head.conv.out_channels == 3
        assert layer.modulation_conv is not None


class TestConvertBack:
    @pytest.mark.parametrize("to", FAMILIES)
    def test_round_trip(self, to):
        net = SmallResNet().eval()
        net.layer2.requires_grad_(False)
        x = torch.randn(1, 3, 32, 32)
        options = {} if to == "weighted" else {"modulation": True}
        converted, _ = convert(net, to, **options)
        back, report = convert_back(converted)
        torch.testing.assert_close(back(x), converted(x), rtol=0, atol=1e-5)
        assert set(back.state_dict()) == set(net.state_dict())
        assert {type(m) for m in back.modules()} == {type(m) for m in net.modules()}
        assert not back.layer2[0].conv1.weight.requires_grad
        assert len(report.converted) == 17
        assert report.parameters_after == sum(p.numel() for p in net.parameters())

    def test_a_trained_density_is_folded(self):
        net, _ = convert(SmallResNet().eval(), "weighted")
        for module in net.modules():
            if isinstance(module, WeightedConv2d):
                module.density.phi.mul_(torch.rand_like(module.density.phi))
        x = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(convert_back(net).model(x), net(x))

    @pytest.mark.parametrize("head", ["cholesky", "spectral", "spectral_scaled"])
    def test_directions_without_effect_do_not_count(self, head):
        layer = MetricConv2d(2, 3, 3, padding=2, dilation=2, head=head, metric_groups=2)
        x = torch.randn(2, 2, 9, 9)
        torch.testing.assert_close(convert_back(layer).model(x), layer(x), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("sample_groups", [1, 2, 4])
    def test_a_constant_modulation_goes_into_the_weights(self, groups, sample_groups):
        layer = DeformConv2d(
            4, 6, (3, 2), groups=groups, offset_groups=sample_groups, modulation=True
        )
        nn.init.normal_(layer.modulation_conv.bias)
        x = torch.randn(2, 4, 8, 8)
        conv, report = convert_back(layer)
        assert type(conv) is nn.Conv2d
        torch.testing.assert_close(conv(x), layer(x), rtol=0, atol=1e-5)
        assert "modulation is multiplied" in report.converted[0].notes[0]

    def test_fixed_kernels_stay_fixed(self):
        layer = ShiftedConv2d(2, 3, 3, fixed_kernel=True)
        conv, _ = convert_back(layer)
        x = torch.randn(1, 2, 6, 6)
        torch.testing.assert_close(conv(x), layer(x), rtol=0, atol=1e-6)
        assert not conv.weight.requires_grad

    @pytest.mark.unchecked
    def test_refused_where_it_would_not_be_exact(self):
        class Disc(nn.Module):
            def forward(self, x):
                raise AssertionError

        layers = {
            "offset": DeformConv2d(2, 2, 3),
            "shift": ShiftedConv2d(2, 2, 3),
            "head": MetricConv2d(2, 2, 3, head="spectral"),
            "factors": MetricConv2d(2, 2, 3, modulation=True),
            "round": MetricConv2d(2, 2, 3, reference="concentric"),
            "own": MetricConv2d(2, 2, 3, metric=Disc()),
            "exact": MetricConv2d(2, 2, 3),
        }
        with torch.no_grad():
            layers["offset"].offset_conv.weight[3, 1, 2, 0] = 0.25
            layers["shift"].offset_conv.bias[0] = -1e-3
            layers["head"].head.conv.bias[2] = 0.5
            layers["factors"].modulation_conv.weight[0] = 1e-5
        net = nn.ModuleDict(layers)
        with pytest.raises(ValueError, match="exactly standard") as caught:
            convert_back(net, inplace=True)
        for name, reason in {
            "offset": r"offset_conv.weight is not zero (its largest value is 0.25)",
            "shift": "offset_conv.bias is not zero (its largest value is 0.001)",
            "head": "head.conv.bias is not zero (its largest value is 0.5)",
            "factors": "modulation_conv.weight is not zero",
            "round": "its reference set is 'concentric', not the lattice",
            "own": "its metric is a module of its own, Disc",
        }.items():
            assert f"{name}: {reason}" in str(caught.value)
        assert isinstance(net["exact"], MetricConv2d)
        _, report = convert_back(net, strict=False, inplace=True)
        assert names(report.converted) == ["exact"]
        assert reasons(report)["own"].startswith("would not be exact")
        assert type(net["exact"]) is nn.Conv2d

    def test_nothing_to_convert(self):
        net = nn.Sequential(nn.Conv2d(1, 1, 3))
        same, report = convert_back(net, inplace=True)
        assert same is net
        assert type(net[0]) is nn.Conv2d
        assert not report.converted
        assert reasons(report) == {"0": "no layer of this library"}


class TestReport:
    @pytest.mark.parametrize(
        ("to", "channels", "interpolation"),
        [("metric", 5, 4), ("deform", 18, 4), ("shifted", 2, 4), ("weighted", 0, 0)],
    )
    def test_costs(self, to, channels, interpolation):
        """Of a 3 x 3 convolution from 64 to 32 channels: inner channels, and interpolation."""
        net = nn.Sequential(nn.Conv2d(64, 32, 3))
        (row,) = convert(net, to).report.converted
        kernel = 64 * 32 * 9
        assert row.before.multiply_adds == kernel
        expected = kernel + channels * 64 * 9 + interpolation * 64 * 9
        assert row.after.multiply_adds == expected
        assert row.after.parameters - row.before.parameters == channels * (64 * 9 + 1)

    def test_seven_channels_at_most_against_two_for_each_tap(self):
        net = nn.Sequential(nn.Conv2d(16, 16, 5))
        channels = {}
        for head in ("cholesky", "ldl", "spectral", "spectral_scaled", "log_euclidean"):
            channels[head] = convert(net, "metric", head=head).model[0].head.conv.out_channels
        assert sorted(channels.values()) == [5, 5, 5, 6, 7]
        assert convert(net, "deform").model[0].offset_conv.out_channels == 50

    def test_modulation_and_groups(self):
        net = nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, groups=4))
        (row,) = convert(net, "shifted", offset_groups=2, modulation=True).report.converted
        kernel, inner = 8 * 4 // 4 * 9, (4 + 18) * 8 * 9
        assert row.after.multiply_adds == kernel + inner + 5 * 8 * 9

    @pytest.mark.slow
    def test_measured_with_an_example(self):
        net = SmallResNet().train()
        mean = net.bn1.running_mean.clone()
        x = torch.randn(1, 3, 32, 32)
        converted, report = convert(net, "deform", "layer[23].*", example=x)
        sizes = {row.name: row.after.output_size for row in report.converted}
        assert sizes["layer2.0.conv1"] == (4, 4)
        assert sizes["layer3.1.conv2"] == (2, 2)
        assert all(row.before.seconds > 0 and row.after.seconds > 0 for row in report.converted)
        assert report.seconds_before > 0
        assert report.seconds_after > 0
        # Measuring leaves no trace.
        assert torch.equal(net.bn1.running_mean, mean)
        assert torch.equal(converted.bn1.running_mean, mean)
        assert converted.training
        assert not converted.layer2[0].conv1._forward_hooks

    @pytest.mark.parametrize("example", [(torch.ones(1, 2, 5, 5),), {"x": torch.ones(1, 2, 5, 5)}])
    def test_other_ways_to_give_an_example(self, example):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)

            def forward(self, x):
                return self.used(x)

        _, report = convert(Net(), "metric", example=example)
        used, unused = report.converted
        assert used.after.output_size == (3, 3)
        assert unused.after.seconds is None
        assert "not run" in str(report)

    @pytest.mark.slow
    def test_no_column_is_lost_in_a_terminal(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a_backbone_of_a_long_name = nn.Conv2d(64, 128, 3, stride=2, dilation=2)

            def forward(self, x):
                return self.a_backbone_of_a_long_name(x)

        example = torch.ones(1, 64, 205, 205)
        _, report = convert(Net(), "metric", example=example, reference="concentric")
        text = str(report)
        assert max(map(len, text.split("\n"))) <= 80
        assert "…" not in text
        (row,) = report.converted
        for cell in (
            "name", "convolution", "parameters", "multiply-adds", "output", "time / ms",
            "dilation 2)", "MetricConv2d", f"{row.after.parameters:,}", "101 x 101",
            f"-> {1e3 * row.after.seconds:.3g}",
        ):  # fmt: skip
            assert cell in text

    def test_shown(self):
        _, report = convert(SmallResNet(), "metric", select(kernel_size=3, stage=2))
        text = str(report)
        assert "layer2.0.conv1" in text
        assert "MetricConv2d" in text
        assert "Left alone (selected: select(kernel_size=3, stage=2))" in text
        assert report.summary() in text
        assert max(map(len, text.split("\n"))) <= 80
        with Console(record=True, file=io.StringIO(), width=120) as console:
            console.print(report)
        assert "4 converted, 16 left alone" in console.export_text()


class TestResNet:
    ADAPTIVE = frozenset(f"layer{s}.{b}.conv{c}" for s in (2, 3, 4) for b in (0, 1) for c in (1, 2))

    @pytest.mark.parametrize("to", FAMILIES)
    def test_the_recipe(self, to):
        net = SmallResNet().eval()
        converted, report = convert_resnet(net, to)
        assert set(names(report.converted)) == self.ADAPTIVE
        last = converted.layer4
        assert last[0].conv1.stride == (1, 1)
        assert last[0].downsample[0].stride == (1, 1)
        assert last[0].conv2.dilation == (1, 1)
        for conv in (last[1].conv1, last[1].conv2):
            assert (conv.dilation, conv.padding) == ((2, 2), (2, 2))
        assert converted.layer3[0].conv1.stride == (2, 2)
        assert report.changes == (
            "layer4.0.conv1: stride 2 -> 1",
            "layer4.0.downsample.0: stride 2 -> 1",
            "layer4.1.conv1: dilation 1 -> 2",
            "layer4.1.conv2: dilation 1 -> 2",
        )
        # The conversion computes what the plain network with these strides does.
        plain, _ = convert_back(converted)
        x = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(converted(x), plain(x), rtol=0, atol=1e-4)
        # The model itself is as it was.
        assert net.layer4[0].conv1.stride == (2, 2)
        assert net.layer4[1].conv1.dilation == (1, 1)

    @pytest.mark.slow
    def test_small_images(self):
        converted, report = convert_resnet(SmallResNet().eval(), small_images=True)
        assert isinstance(converted.maxpool, nn.Identity)
        stem = converted.conv1
        assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
        assert not stem.training
        assert report.changes[0].startswith("conv1: Conv2d(3, 4, 7x7, stride 2) -> Conv2d(3, 4, 3x")
        assert converted.layer4[0].conv1.head.parametrization.n_channels == 5
        features = {}
        converted.layer4.register_forward_hook(lambda m, i, o: features.update(size=o.shape[2:]))
        assert_trains(converted.train(), torch.randn(4, 3, 16, 16), 4)
        assert features["size"] == (4, 4)

    def test_the_papers_options(self):
        converted, _ = convert_resnet(
            SmallResNet(), start="constant", reference="concentric", eps_omega=0.9
        )
        layer = converted.layer3[1].conv2
        torch.testing.assert_close(layer.weight, torch.full_like(layer.weight, 1 / 72))
        assert layer.reference.name == "concentric"
        assert layer.head.eps_omega == 0.9

    def test_without_the_last_stages_change(self):
        net = SmallResNet().eval()
        x = torch.randn(1, 3, 64, 64)
        converted, report = convert_resnet(net, dilate_last_stage=False)
        assert report.changes == ()
        torch.testing.assert_close(converted(x), net(x), rtol=0, atol=1e-4)

    @pytest.mark.unchecked
    def test_a_refusal_changes_nothing(self):
        net = SmallResNet()
        stem = net.conv1
        with pytest.raises(ValueError, match=r"head: expected one of .*at layer2\.0\.conv1: "):
            convert_resnet(net, head="qr", small_images=True, inplace=True)
        assert net.conv1 is stem
        assert isinstance(net.maxpool, nn.MaxPool2d)
        assert net.layer4[0].conv1.stride == (2, 2)
        assert net.layer4[1].conv1.padding == (1, 1)

    @pytest.mark.unchecked
    def test_other_networks(self):
        with pytest.raises(ValueError, match="Sequential has no layer1"):
            convert_resnet(nn.Sequential(nn.Conv2d(1, 1, 3)))
        net = SmallResNet()
        net.conv1 = nn.Sequential(net.conv1)
        with pytest.raises(ValueError, match="small_images: expected a stem of one convolution"):
            convert_resnet(net, small_images=True)
        net.layer4[0].pool = nn.MaxPool2d(2)
        with pytest.raises(ValueError, match=r"got one of MaxPool2d at layer4\.0\.pool"):
            convert_resnet(net)

    @pytest.mark.parametrize("to", ["metric", "weighted"])
    def test_channel_attention_by_a_convolution_of_one_dimension(self, to):
        net = SmallResNet().eval()
        net.layer4[0].attention = nn.Conv1d(1, 1, 3)
        _, report = convert_resnet(net, to)
        assert reasons(report)["layer4.0.attention"] == "not selected"
        assert not any("attention" in change for change in report.changes)

    def test_average_poolings_in_shortcuts_are_taken_out(self):
        net = SmallResNet().eval()
        convolution = nn.Conv2d(8, 8, 1, bias=False)
        net.layer4[0].downsample = nn.Sequential(nn.AvgPool2d(2), convolution)
        converted, report = convert_resnet(net)
        assert isinstance(converted.layer4[0].downsample[0], nn.Identity)
        assert "layer4.0.downsample.0: pooling taken out" in report.changes
        assert converted(torch.randn(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.unchecked
class TestErrors:
    def test_to(self):
        net = SmallResNet()
        with pytest.raises(
            ValueError, match=r"to: expected one of \['deform', 'geodesic', 'metric', 'native', 'sh"
        ):
            convert(net, "metrics")
        with pytest.raises(TypeError, match="to: expected a class of adaptive layers, got Linear"):
            convert(net, nn.Linear)
        with pytest.raises(TypeError, match="to: expected a name"):
            convert(net, 3)
        with pytest.raises(TypeError, match=r"return an nn\.Module, got NoneType"):
            convert(net, lambda conv: None)
        with pytest.raises(TypeError, match=r"got a module, Linear; lambda conv: Linear\(\.\.\.\)"):
            convert(net, nn.Linear(2, 2))

    def test_where(self):
        net = SmallResNet()
        with pytest.raises(TypeError, match="where: expected a selection"):
            convert(net, "metric", net.layer1)
        with pytest.raises(TypeError, match=r"where: expected a selection .* got True"):
            convert(net, "metric", True)
        with pytest.raises(TypeError, match="kernel_size: expected integers, got True"):
            select(kernel_size=True)
        with pytest.raises(TypeError, match="stage: expected integers"):
            select(stage="34")
        with pytest.raises(TypeError, match="name: expected a string"):
            select(name=3)
        with pytest.raises(TypeError, match="predicate: expected a function"):
            select(predicate="conv")
        with pytest.raises(TypeError, match=r"where: expected a function of \(name, module\)"):
            convert(net, "metric", lambda name: True)
        for wrong in (3, "Conv2d", (nn.Conv2d, 3), int):
            with pytest.raises(TypeError, match="type: expected a class of modules"):
                select(type=wrong)

    def test_nothing_selected(self):
        net = SmallResNet()
        with pytest.raises(ValueError, match=r"none of the model's 20 .*, and 15 more$") as caught:
            convert(net, "metric", "layer4")
        assert '"layer4.*" would match' in str(caught.value)
        with pytest.raises(ValueError, match=r"select\(type=Identity\) matches none"):
            convert(net, "metric", nn.Identity)
        with pytest.raises(ValueError, match=r"select\(kernel_size=6\) matches none"):
            convert_back(convert(net, "metric").model, 6)

    @pytest.mark.parametrize("where", [None, "0"])
    def test_all_are_left_alone(self, where):
        net = nn.Sequential(DeformConv2d(2, 2, 3), nn.Conv2d(2, 2, 1))
        before = str(net)
        x = torch.randn(1, 2, 9, 9)
        same, report = convert(net, "metric", where, example=x)
        assert str(same) == before
        torch.testing.assert_close(same(x), net(x))
        assert report.converted == ()
        assert reasons(report)["0"] == "adaptive already"
        assert set(reasons(report)) == {"0", "0.offset_conv", "1"}
        assert report.parameters_before == report.parameters_after
        assert "0 converted, 3 left alone" in report.summary()

    def test_no_convolutions(self):
        with pytest.raises(ValueError, match="model: expected convolutions in it, found none"):
            convert(nn.Linear(2, 2), "metric")

    def test_start_and_options(self):
        net = SmallResNet()
        with pytest.raises(ValueError, match="start: expected 'weights' or 'constant', got 'ones'"):
            convert(net, "metric", start="ones")
        with pytest.raises(ValueError, match="start: 'constant' is for adaptive layers"):
            convert(net, "weighted", start="constant")
        with pytest.raises(ValueError, match=r"offset_groups: .* 3 .* got 2 \(at conv1"):
            convert(net, "deform", offset_groups=2, inplace=True)
        assert type(net.conv1) is nn.Conv2d
        for to, taken in {
            "deform": "DeformConv2d, which has fixed_kernel, modulation, offset_groups",
            "metric": "MetricConv2d, which has eps_omega, fixed_kernel, head,",
            "weighted": "weighted, which has density, preserve;",
        }.items():
            with pytest.raises(TypeError, match=f"widths: no option of {taken}"):
                convert(net, to, widths=2)
        with pytest.raises(TypeError, match="stride: no option of ShiftedConv2d"):
            convert(net, "shifted", stride=2)
        for refused in (convert, convert_resnet):
            with pytest.raises(TypeError, match="inplace: expected True or False, got 'a'"):
                refused(net, "metric", inplace="a")

    def test_a_model_that_cannot_be_copied(self):
        class Holding(nn.Conv2d):
            def __init__(self):
                super().__init__(1, 1, 3)
                self.product = self.weight * 2

        with pytest.raises(ValueError, match=r"cannot be copied .* with inplace=True"):
            convert(nn.Sequential(Holding()), "metric")

    def test_no_model(self):
        with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
            convert({}, "metric")
        with pytest.raises(TypeError, match="compiled by TorchScript"):
            convert(scripted(nn.Sequential(nn.Conv2d(1, 1, 3))), "metric")


class TestTorchvision:
    def test_resnet18(self):
        net = torchvision_models().resnet18(num_classes=5).eval()
        x = torch.randn(2, 3, 64, 64)
        where = select(kernel_size=3, stage=(2, 3, 4))
        converted, report = convert(net, "metric", where)
        torch.testing.assert_close(converted(x), net(x), rtol=0, atol=1e-4)
        assert len(report.converted) == 12
        assert_trains(converted.train(), x, 3)
        again, _ = convert(net, "metric", where)
        again.load_state_dict(converted.state_dict())
        assert torch.equal(again.eval()(x), converted.eval()(x))

    @pytest.mark.uninstrumented
    def test_resnet18_compiles(self):
        net = torchvision_models().resnet18().eval()
        converted, _ = convert_resnet(net, small_images=True)
        x = torch.randn(1, 3, 16, 16)
        compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), converted(x), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("name", "count"), [("resnet50", 13), ("resnet152", 47)])
    def test_bottlenecks(self, name, count):
        with torch.device("meta"):
            net = getattr(torchvision_models(), name)()
        converted, report = convert_resnet(net, "deform", small_images=True)
        assert len(report.converted) == count
        assert {row.name.rpartition(".")[2] for row in report.converted} == {"conv2"}
        assert converted.layer4[0].conv2.stride == (1, 1)
        assert converted.layer4[0].downsample[0].stride == (1, 1)
        assert converted.layer4[2].conv2.dilation == (2, 2)

    def test_the_deformable_layer_of_torchvision_and_its_offsets(self):
        torchvision_models()
        from torchvision import ops

        net = nn.ModuleDict(
            {"offset": nn.Conv2d(2, 18, 3), "deform": ops.DeformConv2d(2, 2, 3),
             "after": nn.Conv2d(2, 2, 3)}
        )  # fmt: skip
        _, report = convert(net, "metric")
        assert reasons(report) == {
            "offset": "by its name, it computes offsets of deform (DeformConv2d)",
            "deform": "adaptive already",
        }

    def test_a_last_stage_that_is_dilated_already(self):
        models = torchvision_models()
        with torch.device("meta"):
            net = models.resnet50(replace_stride_with_dilation=[False, False, True])
        _, report = convert_resnet(net)
        assert report.changes == ()


class TestTimm:
    @pytest.mark.filterwarnings("default")
    @pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet26d", "ecaresnet26t"])
    def test_resnets(self, name):
        net = timm_models().create_model(name, num_classes=5).eval()
        x = torch.randn(1, 3, 32, 32)
        where = select(kernel_size=3, stage=(2, 3, 4))
        converted, _ = convert(net, "metric", where)
        torch.testing.assert_close(converted(x), net(x), rtol=0, atol=1e-4)
        converted, report = convert_resnet(net)
        assert converted.layer4[0].downsample(torch.randn(1, converted.layer4[0].downsample[
            -2].in_channels, 4, 4)).shape[2:] == (4, 4)  # fmt: skip
        assert converted(x).shape == (1, 5)
        assert any("stride 2 -> 1" in change for change in report.changes)

    @pytest.mark.filterwarnings("default")
    def test_a_network_of_stages(self):
        net = timm_models().create_model("convnext_atto", num_classes=5).eval()
        x = torch.randn(1, 3, 32, 32)
        converted, report = convert(net, "deform", select(kernel_size=7, stage=(2, 3)))
        torch.testing.assert_close(converted(x), net(x), rtol=0, atol=1e-4)
        assert all(row.name.startswith(("stages.2.", "stages.3.")) for row in report.converted)
        with pytest.raises(ValueError, match="ConvNeXt has no layer1"):
            convert_resnet(net)
