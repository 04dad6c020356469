"""Deformable layers of other libraries made ours: by their attributes, and by their checkpoints."""

import pytest
import torch
from torch import nn

from finslerconv import ops
from finslerconv.nn import (
    DeformAlign2d,
    DeformConv2d,
    GivenOffsetConv2d,
    convert,
    load_deformable_checkpoint,
)

# Modules with the attributes, the keys and the forward methods of the libraries' own.


class MmcvDeform(nn.Module):
    """mmcv.ops.DeformConv2d: called with offsets, without bias."""

    def __init__(self, channels, out, kernel=3, groups=1, deform_groups=1, bias=False, **sizes):
        super().__init__()
        self.in_channels, self.out_channels, self.groups = channels, out, groups
        self.kernel_size = (kernel, kernel)
        for name, usual in {"stride": 1, "padding": 0, "dilation": 1}.items():
            setattr(self, name, (sizes.get(name, usual),) * 2)
        self.deform_groups = deform_groups
        self.weight = nn.Parameter(torch.randn(out, channels // groups, kernel, kernel) / 5)
        if bias:
            self.bias = nn.Parameter(torch.randn(out))

    def convolve(self, x, offset, mask=None):
        sizes = self.stride, self.padding, self.dilation
        return ops.deform_conv2d(x, offset, self.weight, getattr(self, "bias", None), *sizes, mask)

    def forward(self, x, offset):
        return self.convolve(x, offset)

    def head(self, channels, features=None):
        conv = nn.Conv2d(
            features or self.in_channels, channels, self.kernel_size, self.stride, self.padding,
            self.dilation,
        )  # fmt: skip
        nn.init.normal_(conv.bias)
        return conv


class MmcvPack(MmcvDeform):
    """mmcv.ops.DeformConv2dPack."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.conv_offset = self.head(2 * self.deform_groups * self.kernel_size[0] ** 2)

    def forward(self, x):
        return self.convolve(x, self.conv_offset(x))


def offsets_and_factors(channels):
    first, second, mask = channels.chunk(3, dim=1)
    return torch.cat((first, second), dim=1), mask.sigmoid()


class MmcvModulatedPack(MmcvDeform):
    """mmcv.ops.ModulatedDeformConv2dPack."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.conv_offset = self.head(3 * self.deform_groups * self.kernel_size[0] ** 2)

    def forward(self, x):
        return self.convolve(x, *offsets_and_factors(self.conv_offset(x)))


class Dcnv2(nn.Module):
    """DCN of the DCNv2 repositories: other names, and no groups."""

    def __init__(self, channels, out, deformable_groups=1):
        super().__init__()
        self.in_channels, self.out_channels = channels, out
        self.kernel_size, self.stride, self.padding, self.dilation = (3, 3), (2, 2), (1, 1), (1, 1)
        self.deformable_groups = deformable_groups
        self.weight = nn.Parameter(torch.randn(out, channels, 3, 3) / 5)
        self.bias = nn.Parameter(torch.randn(out))
        self.conv_offset_mask = nn.Conv2d(channels, 27 * deformable_groups, 3, 2, 1)

    def forward(self, input):
        offset, mask = offsets_and_factors(self.conv_offset_mask(input))
        sizes = self.stride, self.padding, self.dilation
        return ops.deform_conv2d(input, offset, self.weight, self.bias, *sizes, mask)


class BasicsrPack(MmcvDeform):
    """BasicSR's DCNv2Pack: offsets from other features."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.conv_offset = self.head(3 * self.deform_groups * self.kernel_size[0] ** 2, 6)

    def forward(self, x, feat):
        return self.convolve(x, *offsets_and_factors(self.conv_offset(feat)))


class Detectron2Deform(MmcvDeform):
    """detectron2.layers.ModulatedDeformConv, which normalises and activates its output."""

    def __init__(self, channels, out):
        super().__init__(channels, out, padding=1)
        del self.deform_groups
        self.deformable_groups = 1
        self.norm, self.activation = nn.BatchNorm2d(out), None

    def forward(self, x, offset, mask):
        return self.norm(self.convolve(x, offset, mask))


class Bottleneck(nn.Module):
    """As detectron2's DeformBottleneckBlock: the offsets' convolution is beside the layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 1)
        self.conv2_offset = nn.Conv2d(4, 27, 3, padding=1)
        self.conv2 = Detectron2Deform(4, 4)

    def forward(self, x):
        x = self.conv1(x).relu()
        return self.conv2(x, *offsets_and_factors(self.conv2_offset(x))).relu()


class ThreeConvolutions(nn.Module):
    """The layer that many networks write for torchvision's function."""

    def __init__(self, channels, out):
        super().__init__()
        self.offset_conv = nn.Conv2d(channels, 18, 3, padding=1)
        self.modulator_conv = nn.Conv2d(channels, 9, 3, padding=1)
        self.regular_conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)

    def forward(self, x):
        mask = 2 * torch.sigmoid(self.modulator_conv(x))
        return ops.deform_conv2d(
            x, self.offset_conv(x), self.regular_conv.weight, padding=1, mask=mask
        )


LAYERS = {
    "mmcv pack": (lambda: MmcvPack(4, 6, groups=2, deform_groups=2, padding=1), DeformConv2d),
    "mmcv modulated pack": (
        lambda: MmcvModulatedPack(4, 6, deform_groups=2, padding=2, dilation=2, bias=True),
        DeformConv2d,
    ),
    "DCNv2": (lambda: Dcnv2(4, 3, deformable_groups=2), DeformConv2d),
    "three convolutions": (lambda: ThreeConvolutions(4, 3), DeformConv2d),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_another_library_becomes_ours_with_equal_output(name):
    make, kind = LAYERS[name]
    model = nn.Sequential(nn.Conv2d(4, 4, 3), make()).double().eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    converted, report = convert(model, "native")
    assert type(converted[1]) is kind
    assert type(model[1]) is not kind
    assert type(converted[0]) is nn.Conv2d
    (row,) = report.converted
    assert row.name == "1"
    if name == "mmcv pack":  # ours multiply by factors besides, where there are any
        assert row.before == row.after
    torch.testing.assert_close(converted(x), model(x), rtol=0, atol=1e-12)
    assert not converted.training


def test_layers_called_with_their_offsets():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(4, 36, 3, padding=1)
            self.conv = MmcvDeform(4, 6, groups=2, padding=1)

        def forward(self, x):
            return self.conv(x, self.head(x))

    for model in (Model().double(), Bottleneck().double().eval()):
        x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
        converted = convert(model, "native").model
        kinds = {type(m) for m in converted.modules()}
        assert GivenOffsetConv2d in kinds
        assert not kinds & {MmcvDeform, Detectron2Deform}
        torch.testing.assert_close(converted(x), model(x), rtol=0, atol=1e-12)
        # The keys are the same, so its checkpoints load as they are.
        converted.load_state_dict(model.state_dict())


def test_a_layer_that_aligns_by_other_features():
    model = BasicsrPack(4, 6, deform_groups=2, padding=1).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    features = torch.randn(2, 6, 7, 6, dtype=torch.float64)
    converted = convert(model, "native").model
    assert type(converted) is DeformAlign2d
    torch.testing.assert_close(converted(x, features), model(x, features), rtol=0, atol=1e-12)


def test_in_place_with_the_same_parameters():
    model = nn.Sequential(MmcvModulatedPack(4, 6))
    weight, before = model[0].weight, model[0].weight.detach().clone()
    converted = convert(model, "native", inplace=True).model
    assert converted is model
    assert model[0].weight is weight
    torch.testing.assert_close(weight, before / 2, rtol=0, atol=0)


def test_what_is_not_understood_is_left_alone_with_the_reason():
    odd = MmcvPack(4, 6)
    odd.conv_offset = nn.Sequential(nn.Conv2d(4, 18, 3))
    short = MmcvPack(4, 6)
    short.conv_offset = nn.Conv2d(4, 19, 3)
    model = nn.Sequential(odd, short, nn.Conv2d(4, 4, 3))
    reasons = {row.name: row.reason for row in convert(model, "native").report.left_alone}
    assert "conv_offset is a Sequential, not one convolution" in reasons["0"]
    assert "19 channels, not 2 or 3 for each of 9 samples" in reasons["1"]
    assert reasons["2"] == "no deformable layer of another library"


@pytest.mark.unchecked
def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="start: 'constant' is for adaptive layers"):
        convert(MmcvPack(4, 6), "native", start="constant")
    with pytest.raises(TypeError, match="head: no option of native"):
        convert(MmcvPack(4, 6), "native", head="ldl")


def test_layers_that_are_given_their_offsets():
    layer = GivenOffsetConv2d(4, 6, 3, 2, 1, groups=2).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    offset = torch.randn(2, 36, 4, 3, dtype=torch.float64)
    mask = torch.rand(2, 18, 4, 3, dtype=torch.float64)
    expected = ops.deform_conv2d(x, offset, layer.weight, layer.bias, 2, 1, 1, mask)
    torch.testing.assert_close(layer(x, offset, mask), expected, rtol=0, atol=0)
    plain = nn.Conv2d(4, 6, 3, 2, 1, groups=2).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x, 0 * offset), plain(x), rtol=0, atol=1e-12)
    aligned = DeformAlign2d(4, 6, 3, 2, 1, groups=2, feature_channels=5, offset_groups=2).double()
    aligned.load_state_dict(layer.state_dict(), strict=False)
    features = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(aligned(x, features), plain(x), rtol=0, atol=1e-12)


OURS = {
    "mmcv pack": lambda: DeformConv2d(4, 6, 3, padding=1, groups=2, offset_groups=2, bias=False),
    "mmcv modulated pack": lambda: DeformConv2d(
        4, 6, 3, padding=2, dilation=2, offset_groups=2, modulation=True
    ),
    "DCNv2": lambda: DeformConv2d(4, 3, 3, 2, 1, offset_groups=2, modulation=True),
    "three convolutions": lambda: DeformConv2d(4, 3, 3, padding=1, bias=False, modulation=True),
}


@pytest.mark.parametrize("name", OURS)
def test_a_checkpoint_of_another_library_loads(name):
    trained = nn.Sequential(nn.Conv2d(4, 4, 3), LAYERS[name][0]()).double()
    model = nn.Sequential(nn.Conv2d(4, 4, 3), OURS[name]()).double()
    state = {f"module.{key}": value for key, value in trained.state_dict().items()}
    report = load_deformable_checkpoint(model, {"state_dict": state, "epoch": 7})
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), trained(x), rtol=0, atol=1e-12)
    assert report.missing == report.unexpected == ()
    assert report.unchanged + len({new for _, new, _ in report.renamed}) == len(model.state_dict())


def test_offsets_beside_the_layer():
    trained = Bottleneck().double().eval()
    del trained.conv2.norm
    trained.conv2.norm = nn.Identity()

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(4, 4, 1)
            self.conv2 = DeformConv2d(4, 4, 3, padding=1, bias=False, modulation=True)

        def forward(self, x):
            return self.conv2(self.conv1(x).relu()).relu()

    model = Ours().double()
    report = load_deformable_checkpoint(model, trained.state_dict())
    assert "conv2_offset.weight -> conv2.offset_conv.weight (the first 18 channels)" in str(report)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), trained(x), rtol=0, atol=1e-12)


def test_checkpoints_that_do_not_fit_change_nothing():
    model = DeformConv2d(4, 6, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modulated = MmcvModulatedPack(4, 6, bias=True).state_dict()
    plain = MmcvPack(4, 6).state_dict()
    odd = {**plain, "conv_offset.weight": torch.zeros(20, 4, 3, 3)}
    for state, words in (
        ({"epoch": 3}, "expected a state_dict"),
        (modulated, "make the layer with modulation=True"),
        (plain, r"1 missing \(bias\)"),
        (odd, "20 channels; expected 2 or 3 for each of the 9 samples"),
    ):
        with pytest.raises(ValueError, match=words):
            load_deformable_checkpoint(model, state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    report = load_deformable_checkpoint(model, plain, strict=False)
    assert report.missing == ("bias",)
    assert torch.equal(model.offset_conv.bias, plain["conv_offset.bias"])
