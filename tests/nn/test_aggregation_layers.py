"""DCNv3, DCNv4 and MSDeformAttn against their papers' layers, written out in plain PyTorch."""

import math

import pytest
import torch
from aggregation_forms import attention_form, dcnv3_form, dcnv4_form, normal
from torch.nn import functional

from finslerconv.nn import (
    DCNv3,
    DCNv4,
    MSDeformAttn,
    MultiScaleDeformableAttention,
    TransformersDeformAttn,
)

SHAPES = [(5, 4), (3, 2)]


def trained(layer, seed=0):
    """Return the layer in double precision, with parameters as if it had been trained."""
    torch.manual_seed(seed)
    for name, p in layer.named_parameters():
        torch.nn.init.normal_(p, std=0.3)
        if name.endswith("dw_conv.1.1.weight"):
            p.data += 1
    return layer.double().eval()


def with_gradients(function, layer, x):
    x = x.clone().requires_grad_()
    output = function(x)
    wanted = [x, *layer.parameters()]
    return (output, *torch.autograd.grad(output, wanted, normal(*output.shape, seed=9)))


def assert_equal(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def linear(x, p, name):
    return functional.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def centre_scale(features, p, channels):
    scale = functional.linear(
        features, p["center_feature_scale_proj_weight"], p["center_feature_scale_proj_bias"]
    ).sigmoid()
    groups = scale.shape[-1]
    return scale[..., None].repeat(1, 1, 1, 1, channels // groups).flatten(-2)


def dcnv3_layer(x, layer, norm, activation):
    """The forward pass of InternImage's layer, of an output as large as the input."""
    p = dict(layer.named_parameters())
    group, taps = layer.group, layer.kernel_size**2 - layer.remove_center
    features = functional.conv2d(
        x.permute(0, 3, 1, 2), p["dw_conv.0.weight"], p["dw_conv.0.bias"], groups=layer.channels,
        padding=layer.dw_kernel_size // 2,
    )  # fmt: skip
    if norm == "LN":
        features = functional.layer_norm(
            features.permute(0, 2, 3, 1), (layer.channels,), p["dw_conv.1.1.weight"],
            p["dw_conv.1.1.bias"], 1e-6,
        )  # fmt: skip
    else:
        buffers = dict(layer.named_buffers())
        features = functional.batch_norm(
            features, buffers["dw_conv.1.0.running_mean"], buffers["dw_conv.1.0.running_var"],
            p["dw_conv.1.0.weight"], p["dw_conv.1.0.bias"],
        ).permute(0, 2, 3, 1)  # fmt: skip
    features = activation(features)
    mask = linear(features, p, "mask").unflatten(-1, (group, taps)).softmax(-1).flatten(-2)
    projected = linear(x, p, "input_proj")
    pair = [(n, n) for n in (layer.kernel_size, layer.stride, layer.pad, layer.dilation)]
    y = dcnv3_form(
        projected, linear(features, p, "offset"), mask, *pair, group, layer.offset_scale,
        layer.remove_center,
    )  # fmt: skip
    if layer.center_feature_scale:
        scale = centre_scale(features, p, layer.channels)
        y = y * (1 - scale) + projected * scale
    return linear(y, p, "output_proj")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "norm", "activation"),
    [
        ({}, "LN", functional.gelu),
        ({"kernel_size": 5, "pad": 2, "dw_kernel_size": 3, "group": 2}, "LN", functional.gelu),
        ({"offset_scale": 2.0, "center_feature_scale": True}, "LN", functional.gelu),
        ({"remove_center": True, "act_layer": "SiLU"}, "LN", functional.silu),
        ({"dilation": 2, "pad": 2, "norm_layer": "BN", "act_layer": "ReLU"}, "BN", torch.relu),
    ],
)
def test_dcnv3_is_the_papers_layer(options, norm, activation):
    layer = trained(DCNv3(**{"channels": 12, "group": 3, **options}))
    x = normal(2, 6, 5, 12)
    found = with_gradients(layer, layer, x)
    assert_equal(found, with_gradients(lambda x: dcnv3_layer(x, layer, norm, activation), layer, x))


def dcnv4_layer(x, layer, rows, columns):
    """The forward pass of the paper's layer, of an output as large as the input."""
    p = dict(layer.named_parameters())
    image = x.reshape(len(x), rows, columns, -1)
    projected = image if layer.without_pointwise else linear(image, p, "value_proj")
    features = image
    if layer.dw_kernel_size is not None:
        features = functional.conv2d(
            image.permute(0, 3, 1, 2), p["offset_mask_dw.weight"], p["offset_mask_dw.bias"],
            groups=layer.channels, padding=layer.dw_kernel_size // 2,
        ).permute(0, 2, 3, 1)  # fmt: skip
    pair = [(n, n) for n in (layer.kernel_size, layer.stride, layer.pad, layer.dilation)]
    y = dcnv4_form(
        projected, linear(features, p, "offset_mask"), *pair, layer.group, layer.offset_scale,
        layer.remove_center,
    )  # fmt: skip
    if layer.center_feature_scale:
        scale = centre_scale(y, p, layer.channels)
        y = y * (1 - scale) + projected * scale
    y = y.flatten(1, 2)
    return y if layer.without_pointwise else linear(y, p, "output_proj")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dw_kernel_size": 5, "output_bias": False},
        {"without_pointwise": True, "offset_scale": 0.5},
        {"center_feature_scale": True, "group": 2},
        {"remove_center": True, "dilation": 2, "pad": 2},
    ],
)
def test_dcnv4_is_the_papers_layer(options):
    layer = trained(DCNv4(**{"channels": 12, "group": 3, **options}))
    x = normal(2, 30, 12)
    found = with_gradients(lambda x: layer(x, (6, 5)), layer, x)
    assert_equal(found, with_gradients(lambda x: dcnv4_layer(x, layer, 6, 5), layer, x))


@pytest.mark.parametrize("cls", [DCNv3, DCNv4])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": 3, "pad": 0},
        {"pad": 2},
        {"kernel_size": 2, "pad": 0},
        {"kernel_size": 4, "pad": 2, "stride": 2},
        {"dilation": 3, "pad": 1},
    ],
)
def test_other_sizes_take_the_fields_at_the_kernels_centres(cls, options):
    options = {"channels": 4, "group": 2, "center_feature_scale": True, **options}
    layer = trained(cls(**options))
    x = normal(1, 9, 9, 4)
    given = x if cls is DCNv3 else x.flatten(1, 2)
    # With one step and the margin that keeps the size, every pixel is a centre.
    k, dilation = layer.kernel_size, layer.dilation
    same = cls(**{**options, "stride": 1, "pad": 0}).double().eval()
    same.load_state_dict(layer.state_dict())
    before = dilation * (k - 1) // 2
    after = dilation * (k - 1) - before
    positions = layer.samples(given).positions
    rows = (9 + 2 * layer.pad - dilation * (k - 1) - 1) // layer.stride + 1
    assert positions.shape == (1, 2, rows, rows, k * k, 2)
    output = layer(given).reshape(1, rows, rows, 4)
    if layer.pad <= before:
        # Output i is centred on this pixel; that of the layer without padding on i + before.
        centres = [before - layer.pad + layer.stride * i for i in range(rows)]
        inner = [(i, c - before) for i, c in enumerate(centres) if before <= c < 9 - after]
        mine, theirs = ([pair[k] for pair in inner] for k in (0, 1))
        found, whole = layer.samples(given).weights, same.samples(given).weights
        assert_equal([found[:, :, mine][:, :, :, mine]], [whole[:, :, theirs][:, :, :, theirs]])
        whole = same(given).reshape(1, 9 - before - after, -1, 4)
        assert_equal([output[:, mine][:, :, mine]], [whole[:, theirs][:, :, theirs]])
    else:
        # Kernels centred beyond the image have the fields of a feature of zero there.
        corner = layer.samples(given).weights[0, :, 0, 0]
        bias = layer.mask.bias.reshape(2, -1).softmax(-1) if cls is DCNv3 else (
            layer.offset_mask.bias[: 3 * layer.K].reshape(2, -1)[:, 2 * k * k :]
        )  # fmt: skip
        assert_equal([corner], [bias])


def attention_layer(query, layer, points, maps, padding):
    """The forward pass of Deformable DETR's layer."""
    p = dict(layer.named_parameters())
    heads, levels, n = layer.n_heads, layer.n_levels, layer.n_points
    value = linear(maps, p, "value_proj")
    if padding is not None:
        value = value.masked_fill(padding[..., None], 0)
    value = value.unflatten(-1, (heads, -1))
    offsets = linear(query, p, "sampling_offsets").unflatten(-1, (heads, levels, n, 2))
    weights = linear(query, p, "attention_weights").unflatten(-1, (heads, levels * n))
    weights = weights.softmax(-1).unflatten(-1, (levels, n))
    if points.shape[-1] == 2:
        size = torch.tensor([(columns, rows) for rows, columns in SHAPES])
        where = points[:, :, None, :, None] + offsets / size[:, None]
    else:
        where = points[:, :, None, :, None, :2] + (
            offsets / n * points[:, :, None, :, None, 2:] * 0.5
        )
    return linear(attention_form(value, SHAPES, where, weights), p, "output_proj")


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_the_papers_layer(coordinates, padded):
    layer = trained(MSDeformAttn(12, n_levels=2, n_heads=3, n_points=4))
    maps, points = normal(2, 26, 12), torch.rand(2, 7, 2, coordinates, dtype=torch.float64)
    padding = torch.rand(2, 26) < 0.3 if padded else None
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 20])
    query = normal(2, 7, 12, seed=3)
    found = with_gradients(
        lambda query: layer(query, points, maps, shapes, starts, padding), layer, query
    )
    expected = with_gradients(
        lambda query: attention_layer(query, layer, points, maps, padding), layer, query
    )
    assert_equal(found, expected)


# The names and shapes of the papers' checkpoints, of 32 channels.
KEYS = {
    "dcnv3": (
        lambda: DCNv3(32, group=4, center_feature_scale=True),
        {
            "dw_conv.0.weight": (32, 1, 3, 3), "dw_conv.0.bias": (32,),
            "dw_conv.1.1.weight": (32,), "dw_conv.1.1.bias": (32,),
            "offset.weight": (72, 32), "offset.bias": (72,),
            "mask.weight": (36, 32), "mask.bias": (36,),
            "input_proj.weight": (32, 32), "input_proj.bias": (32,),
            "output_proj.weight": (32, 32), "output_proj.bias": (32,),
            "center_feature_scale_proj_weight": (4, 32), "center_feature_scale_proj_bias": (4,),
        },
    ),
    "dcnv3 with batch norm": (
        lambda: DCNv3(32, 5, 7, pad=2, group=2, norm_layer="BN", remove_center=True),
        {
            "dw_conv.0.weight": (32, 1, 7, 7), "dw_conv.0.bias": (32,),
            "dw_conv.1.0.weight": (32,), "dw_conv.1.0.bias": (32,),
            "dw_conv.1.0.running_mean": (32,), "dw_conv.1.0.running_var": (32,),
            "dw_conv.1.0.num_batches_tracked": (),
            "offset.weight": (96, 32), "offset.bias": (96,),
            "mask.weight": (48, 32), "mask.bias": (48,),
            "input_proj.weight": (32, 32), "input_proj.bias": (32,),
            "output_proj.weight": (32, 32), "output_proj.bias": (32,),
        },
    ),
    "dcnv4": (
        lambda: DCNv4(32, group=2, dw_kernel_size=3, output_bias=False),
        {
            "offset_mask_dw.weight": (32, 1, 3, 3), "offset_mask_dw.bias": (32,),
            "offset_mask.weight": (56, 32), "offset_mask.bias": (56,),
            "value_proj.weight": (32, 32), "value_proj.bias": (32,),
            "output_proj.weight": (32, 32),
        },
    ),
    "dcnv4 alone": (
        lambda: DCNv4(32, group=2, without_pointwise=True),
        {"offset_mask.weight": (56, 32), "offset_mask.bias": (56,)},
    ),
    "attention": (
        lambda: MSDeformAttn(32, n_levels=3, n_heads=4, n_points=2),
        {
            "sampling_offsets.weight": (48, 32), "sampling_offsets.bias": (48,),
            "attention_weights.weight": (24, 32), "attention_weights.bias": (24,),
            "value_proj.weight": (32, 32), "value_proj.bias": (32,),
            "output_proj.weight": (32, 32), "output_proj.bias": (32,),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_checkpoints_of_the_papers_load(name):
    make, keys = KEYS[name]
    found = {key: tuple(value.shape) for key, value in make().state_dict().items()}
    assert found == keys


def test_the_start_is_the_papers():
    dcnv3 = DCNv3(8, group=2, dtype=torch.float64)
    x = normal(1, 5, 5, 8)
    positions, weights = dcnv3.samples(x)
    # Column by column, (down, right).
    grid = [(i, j) for j in (-1, 0, 1) for i in (-1, 0, 1)]
    assert_equal([positions[0, 1, 2, 3]], [torch.tensor(grid, dtype=torch.float64)])
    assert_equal([weights], [torch.full((1, 2, 5, 5, 9), 1 / 9, dtype=torch.float64)])
    dcnv4 = DCNv4(8, group=2, dtype=torch.float64)
    assert not dcnv4(x.flatten(1, 2)).any()
    assert_equal([dcnv4.samples(x.flatten(1, 2)).positions], [positions])
    attention = MSDeformAttn(8, n_levels=1, n_heads=8, n_points=3)
    bias = attention.sampling_offsets.bias.detach().reshape(8, 3, 2)
    for head in range(8):
        angle = head * math.pi / 4
        direction = torch.tensor([math.cos(angle), math.sin(angle)])
        direction = direction / direction.abs().max()
        expected = direction * torch.arange(1, 4)[:, None]
        torch.testing.assert_close(bias[head], expected)


def test_resetting_starts_anew():
    for layer in (
        DCNv3(8, group=2, center_feature_scale=True),
        DCNv4(8, group=2, dw_kernel_size=3),
        MSDeformAttn(8, 2, 4, 2),
    ):
        torch.manual_seed(0)
        layer.reset_parameters()
        first = {k: v.clone() for k, v in layer.state_dict().items()}
        for p in layer.parameters():
            torch.nn.init.normal_(p)
        torch.manual_seed(0)
        layer.reset_parameters()
        for key, value in layer.state_dict().items():
            assert torch.equal(value, first[key])


def test_samples_are_those_that_the_layer_takes():
    """Aggregating at the reported samples gives what the layer gives before its projection."""
    layer = trained(DCNv4(6, group=2, without_pointwise=True, offset_scale=0.7, pad=0))
    x = normal(1, 42, 6)
    positions, weights = layer.samples(x, (6, 7))
    image = x.reshape(6, 7, 2, 3)
    found = layer(x, (6, 7)).reshape(4, 5, 2, 3)
    for g, row, column in ((0, 0, 0), (1, 3, 4), (0, 2, 1)):
        total = 0
        centre = torch.tensor([row + 1.0, column + 1.0])
        for place, weight in zip(
            positions[0, g, row, column] + centre, weights[0, g, row, column], strict=True
        ):
            for i in range(6):
                for j in range(7):
                    share = (1 - (place - torch.tensor([i, j])).abs()).clamp(min=0).prod()
                    total = total + weight * share * image[i, j, g]
        assert_equal([found[row, column, g]], [total])


def test_samples_of_the_attention():
    layer = trained(MSDeformAttn(12, n_levels=2, n_heads=3, n_points=4))
    points, query = torch.rand(2, 7, 2, 2, dtype=torch.float64), normal(2, 7, 12)
    maps, shapes = normal(2, 26, 12), torch.tensor(SHAPES)
    positions, weights = layer.samples(query, points, maps, shapes)
    assert positions.shape == (2, 3, 7, 2, 4, 2)
    assert weights.shape == (2, 3, 7, 2, 4)
    offsets = layer.sampling_offsets(query).reshape(2, 7, 3, 2, 4, 2)
    assert_equal([positions[:, 1, :, 0, 2]], [offsets[:, :, 1, 0, 2].flip(-1)])
    assert_equal([weights.sum((3, 4))], [torch.ones(2, 3, 7, dtype=torch.float64)])


@pytest.mark.parametrize("cls", [DCNv3, DCNv4, MSDeformAttn])
def test_half_precision_and_autocast(cls):
    layer = cls(32, group=2) if cls is not MSDeformAttn else cls(32, 2, 4, 2)
    layer = trained(layer).float()
    if cls is MSDeformAttn:
        given = (normal(1, 7, 32).float(), torch.rand(1, 7, 2, 2), normal(1, 26, 32).float(),
                 torch.tensor(SHAPES))  # fmt: skip
    else:
        given = (normal(1, *((5, 5) if cls is DCNv3 else (25,)), 32).float(),)
    exact = layer(*given)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(*given)
    assert low.dtype == torch.bfloat16
    assert (low - exact).abs().max() < 0.15 * exact.abs().max()
    half = layer.bfloat16()(*(t.bfloat16() if t.is_floating_point() else t for t in given))
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.15 * exact.abs().max()


@pytest.mark.uninstrumented
def test_layers_compile_in_one_graph():
    cases = [
        (trained(DCNv3(8, group=2)), (normal(1, 5, 6, 8),)),
        (trained(DCNv4(8, group=2)), (normal(1, 25, 8),)),
        (
            trained(MSDeformAttn(8, 2, 4, 2)),
            (normal(1, 7, 8), torch.rand(1, 7, 2, 2).double(), normal(1, 26, 8),
             torch.tensor(SHAPES)),
        ),
        (
            trained(MultiScaleDeformableAttention(8, 4, 2, 2)),
            (normal(7, 1, 8), None, normal(26, 1, 8), None, None, None,
             torch.rand(1, 7, 2, 2).double(), torch.tensor(SHAPES)),
        ),
        (
            trained(TransformersDeformAttn(8, 2, 4, 2)),
            (normal(1, 7, 8), torch.arange(26)[None] > 5, normal(1, 26, 8), None, None,
             torch.rand(1, 7, 2, 2).double(), torch.tensor(SHAPES)),
        ),
    ]  # fmt: skip
    for layer, given in cases:
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*given), layer(*given), rtol=1e-10, atol=1e-10)


def test_printed_layers_name_their_arguments():
    assert "32, kernel_size=3, stride=1, pad=1" in repr(DCNv3(32))
    assert "n_heads=4" in repr(MSDeformAttn(32, 2, 4, 2))


WRONG = {
    "group": (lambda: DCNv3(10, group=4), "group: expected a divisor of the 10 channels, got 4"),
    "centre": (lambda: DCNv4(8, kernel_size=2, group=2, remove_center=True), "remove_center"),
    "act": (lambda: DCNv3(8, group=2, act_layer="Tanh"), "act_layer: expected one of"),
    "norm": (lambda: DCNv3(8, group=2, norm_layer="GN"), "norm_layer: expected one of"),
    "heads": (lambda: MSDeformAttn(10, n_heads=4), "n_heads: expected a divisor of d_model 10"),
    "levels": (lambda: MSDeformAttn(8, n_levels=0), "n_levels: expected at least 1"),
    "image": (lambda: DCNv3(8, group=2)(torch.zeros(1, 8, 5, 5)), "input: expected shape"),
    "pixels": (lambda: DCNv4(8, group=2)(torch.zeros(1, 5, 5, 8)), "input: expected shape"),
    "shape": (lambda: DCNv4(8, group=2)(torch.zeros(1, 20, 8)), "shape: expected rows and columns"),
    "points": (
        lambda: MSDeformAttn(8, 2, 4)(
            torch.zeros(1, 3, 8), torch.zeros(1, 3, 3, 2), torch.zeros(1, 26, 8),
            torch.tensor(SHAPES),
        ),
        "reference_points: expected shape",
    ),
    "maps": (
        lambda: MSDeformAttn(8, 1, 4)(
            torch.zeros(1, 3, 8), torch.zeros(1, 3, 1, 2), torch.zeros(1, 26, 8),
            torch.tensor(SHAPES),
        ),
        "input_spatial_shapes: expected 1 levels, got 2",
    ),
}  # fmt: skip


@pytest.mark.unchecked
@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_expected(name):
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        call()
