"""How sound offsets are, in numbers; and what the weights of a checkpoint tell without a model."""

import math

import pytest
import torch
from torch import nn

from finslerconv.implicit import kernel_positions, offset_heads, offset_health
from finslerconv.nn import DeformConv2d, MetricConv2d, ShiftedConv2d


def health_of(offsets, size=(10, 12)):
    """Return the health of a 3 x 3 layer whose offsets (18,) are the same everywhere."""
    layer = DeformConv2d(2, 2, 3, padding=1).double()
    with torch.no_grad():
        layer.offset_conv.bias.copy_(torch.as_tensor(offsets, dtype=torch.float64))
    return offset_health(kernel_positions(layer, torch.rand(1, 2, *size, dtype=torch.float64)))


def test_the_standard_convolution_is_sound():
    health = health_of(torch.zeros(18))
    assert health.complaints == ()
    assert (health.offset, health.exploded, health.collapsed, health.not_finite) == (0, 0, 0, 0)
    # Of 9 * 120 samples, 3 * 2 * (10 + 12) - 4 are in the padding.
    assert health.outside == health.outside_standard == pytest.approx(128 / 1080)


def test_one_offset_for_all():
    health = health_of(torch.tensor([3.0, 4.0]).repeat(9))
    assert health.offset == health.offset_99 == 5
    assert health.exploded == 0  # up to twice the kernel's extent of 3 pixels
    # Columns 3 to 14 and rows 2 to 11, with the taps beside them.
    rows = sum(sum(0 <= i + 3 + t < 10 for t in (-1, 0, 1)) for i in range(10))
    columns = sum(sum(0 <= j + 4 + t < 12 for t in (-1, 0, 1)) for j in range(12))
    assert health.outside == pytest.approx(1 - rows * columns / 1080)
    assert "outside the picture" in health.complaints[0]


def test_exploded_collapsed_and_not_finite():
    assert health_of(torch.full((18,), 5.0)).exploded == 1
    taps = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2))
    collapsed = health_of(-0.9 * taps.flatten())
    assert collapsed.collapsed == 1
    assert "collapsed to one place" in str(collapsed)
    assert health_of(-0.7 * taps.flatten()).collapsed == 0
    offsets = torch.zeros(18)
    offsets[3] = math.nan
    broken = health_of(offsets)
    assert broken.not_finite == pytest.approx(1 / 9)
    assert broken.offset == 0
    assert "NaN" in broken.complaints[0]
    nothing = health_of(torch.full((18,), math.inf))
    assert math.isnan(nothing.offset)
    assert nothing.not_finite == 1


def test_heads_by_the_names_of_their_weights():
    torch.manual_seed(0)
    pack, beside = nn.Module(), nn.Module()
    pack.weight, pack.conv_offset = nn.Parameter(torch.zeros(4, 6, 3, 3)), nn.Conv2d(6, 54, 3)
    beside.conv2, beside.conv2_offset = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 27, 1)
    beside.no_offset = nn.Conv2d(2, 4, 3)
    model = nn.ModuleDict(
        {
            "ours": DeformConv2d(2, 4, (1, 3), offset_groups=2, modulation=True),
            "shifted": ShiftedConv2d(2, 4, 3),
            "metric": MetricConv2d(2, 4, 3),
            "pack": pack,
            "beside": beside,
        }
    )
    found = {head.name: head for head in offset_heads(model.state_dict())}
    assert {name: (h.kind, h.groups) for name, h in found.items()} == {
        "ours.offset_conv": ("offsets and factors", 2),
        "shifted.offset_conv": ("offsets", 1),
        "metric.head.conv": ("metrics", None),
        "pack.conv_offset": ("offsets", 3),
        "beside.conv2_offset": ("offsets and factors", 1),
    }
    assert found["ours.offset_conv"].kernel_size == (1, 3)
    assert found["beside.conv2_offset"].layer == "beside.conv2"


def test_gain_is_the_deviation_of_the_offsets():
    torch.manual_seed(0)
    layer = DeformConv2d(3, 2, 3).double()
    nn.init.normal_(layer.offset_conv.weight, std=0.1)
    (head,) = offset_heads(layer.state_dict())
    offsets = layer.offsets(torch.randn(64, 3, 40, 40, dtype=torch.float64))
    assert head.gain == pytest.approx(offsets.square().mean().sqrt().item(), rel=0.02)


def published(shapes):
    """Return a checkpoint of zeros under names as published."""
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


#: Names and shapes in checkpoints of published models; layer, kind, kernel size and groups.
PUBLISHED = {
    "mmdetection, Mask R-CNN with DCNv2": (
        {
            "backbone.layer2.0.conv2.weight": (128, 128, 3, 3),
            "backbone.layer2.0.conv2.conv_offset.weight": (27, 128, 3, 3),
            "backbone.layer2.0.conv2.conv_offset.bias": (27,),
        },
        ("backbone.layer2.0.conv2", "offsets and factors", (3, 3), 1),
    ),
    "mmdetection of 2018": (
        {
            "backbone.layer2.0.conv2.weight": (128, 128, 3, 3),
            "backbone.layer2.0.conv2_offset.weight": (18, 128, 3, 3),
            "backbone.layer2.0.conv2_offset.bias": (18,),
        },
        ("backbone.layer2.0.conv2", "offsets", (3, 3), 1),
    ),
    "detectron2, ResNet": (
        {
            "backbone.bottom_up.res3.0.conv2_offset.weight": (27, 128, 3, 3),
            "backbone.bottom_up.res3.0.conv2_offset.bias": (27,),
            "backbone.bottom_up.res3.0.conv2.weight": (128, 128, 3, 3),
            "backbone.bottom_up.res3.0.conv2.norm.weight": (128,),
        },
        ("backbone.bottom_up.res3.0.conv2", "offsets and factors", (3, 3), 1),
    ),
    "CenterNet, DLA with DCNv2": (
        {
            "dla_up.ida_0.proj_1.conv.weight": (256, 512, 3, 3),
            "dla_up.ida_0.proj_1.conv.bias": (256,),
            "dla_up.ida_0.proj_1.conv.conv_offset_mask.weight": (27, 512, 3, 3),
            "dla_up.ida_0.proj_1.conv.conv_offset_mask.bias": (27,),
        },
        ("dla_up.ida_0.proj_1.conv", "offsets and factors", (3, 3), 1),
    ),
    "BasicSR, EDVR": (
        {
            "pcd_align.dcn_pack.l3.weight": (64, 64, 3, 3),
            "pcd_align.dcn_pack.l3.bias": (64,),
            "pcd_align.dcn_pack.l3.conv_offset.weight": (216, 64, 3, 3),
            "pcd_align.dcn_pack.l3.conv_offset.bias": (216,),
            "pcd_align.offset_conv1.l3.weight": (64, 128, 3, 3),
        },
        # 216 channels are 12 groups of offsets, or 8 with factors; 12 do not share 64 channels.
        ("pcd_align.dcn_pack.l3", "offsets and factors", (3, 3), 8),
    ),
    "InternImage": (
        {
            "levels.0.blocks.0.dcn.offset.weight": (72, 64),
            "levels.0.blocks.0.dcn.mask.weight": (36, 64),
            "levels.0.blocks.0.dcn.dw_conv.0.weight": (64, 1, 3, 3),
        },
        ("levels.0.blocks.0.dcn", "dcnv3", None, None),
    ),
    "FlashInternImage": (
        {"levels.0.blocks.0.dcn.offset_mask.weight": (112, 64)},
        ("levels.0.blocks.0.dcn", "dcnv4", (3, 3), 4),
    ),
    "Deformable DETR": (
        {
            "transformer.encoder.layers.0.self_attn.sampling_offsets.weight": (256, 256),
            "transformer.encoder.layers.0.self_attn.sampling_offsets.bias": (256,),
            "transformer.encoder.layers.0.self_attn.attention_weights.weight": (128, 256),
        },
        ("transformer.encoder.layers.0.self_attn", "attention", None, None),
    ),
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_names_of_published_checkpoints(source):
    shapes, expected = PUBLISHED[source]
    (head,) = offset_heads(published(shapes))
    assert (head.layer, head.kind, head.kernel_size, head.groups) == expected
