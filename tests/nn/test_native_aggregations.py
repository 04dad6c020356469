"""DCNv3, DCNv4 and attention of other libraries made ours, against their papers' formulas."""

import pytest
import torch
from aggregation_forms import attention_form, dcnv3_form, dcnv4_form, normal
from torch import nn
from torch.nn import functional

from finslerconv.implicit import kernel_positions, level_positions
from finslerconv.nn import (
    DCNv3,
    DCNv4,
    MSDeformAttn,
    MSDeformAttnCore,
    MultiScaleDeformableAttention,
    TransformersDeformAttn,
    convert,
    convert_back,
    load_deformable_checkpoint,
)

SIZES = ((5, 4), (3, 2))
SHAPES, STARTS = torch.tensor(SIZES), torch.tensor([0, 20])

# Modules with the attributes, the keys and the forward methods of the libraries' own.


class ToChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Taps(nn.Module):
    """What InternImage's and DCNv4's layers share."""

    def __init__(self, channels, group, kernel_size=3, pad=1, dilation=1, **options):
        super().__init__()
        self.channels, self.group, self.group_channels = channels, group, channels // group
        self.kernel_size, self.stride, self.pad, self.dilation = kernel_size, 1, pad, dilation
        self.offset_scale = options.get("offset_scale", 1.0)
        self.center_feature_scale = options.get("center_feature_scale", False)
        self.remove_center = int(options.get("remove_center", False))
        self.taps = group * (kernel_size**2 - self.remove_center)
        if self.center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
            self.center_feature_scale_module = nn.Identity()  # without parameters there too

    def depthwise(self, size):
        return nn.Conv2d(
            self.channels, self.channels, size, padding=(size - 1) // 2, groups=self.channels
        )

    def arguments(self):
        pairs = [(n, n) for n in (self.kernel_size, self.stride, self.pad, self.dilation)]
        return *pairs, self.group, self.offset_scale, self.remove_center

    def mixed(self, y, projected, features):
        if not self.center_feature_scale:
            return y
        scale = functional.linear(
            features, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        ).sigmoid()
        scale = scale.repeat_interleave(self.group_channels, -1)
        return y * (1 - scale) + projected * scale


class InternImage(Taps):
    """DCNv3 and DCNv3_pytorch of InternImage."""

    def __init__(self, channels, group, size=3, norm="LN", act=nn.GELU, **options):
        super().__init__(channels, group, **options)
        self.dw_kernel_size = size
        norm = (
            nn.Sequential(ToChannelsLast(), nn.LayerNorm(channels, eps=1e-6))
            if norm == "LN"
            else nn.Sequential(nn.BatchNorm2d(channels), ToChannelsLast())
        )
        self.dw_conv = nn.Sequential(self.depthwise(size), norm, act())
        self.offset = nn.Linear(channels, self.taps * 2)
        self.mask = nn.Linear(channels, self.taps)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, input):
        projected, features = self.input_proj(input), self.dw_conv(input.permute(0, 3, 1, 2))
        mask = self.mask(features).unflatten(-1, (self.group, -1)).softmax(-1).flatten(-2)
        y = dcnv3_form(projected, self.offset(features), mask, *self.arguments())
        return self.output_proj(self.mixed(y, projected, features))


class Flash(Taps):
    """DCNv4 of FlashInternImage."""

    def __init__(self, channels, group, size=None, bias=True, alone=False, **options):
        super().__init__(channels, group, **options)
        self.dw_kernel_size, self.without_pointwise = size, alone
        if size is not None:
            self.offset_mask_dw = self.depthwise(size)
        self.offset_mask = nn.Linear(channels, -(-3 * self.taps // 8) * 8)
        if not alone:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=bias)

    def forward(self, input, shape=None):
        image = input.unflatten(1, shape)
        projected = image if self.without_pointwise else self.value_proj(image)
        features = image
        if self.dw_kernel_size is not None:
            features = self.offset_mask_dw(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = dcnv4_form(projected, self.offset_mask(features), *self.arguments())
        y = self.mixed(y, projected, y).flatten(1, 2)
        return y if self.without_pointwise else self.output_proj(y)


def add_heads(layer, channels, values, samples):
    layer.sampling_offsets = nn.Linear(channels, 2 * samples)
    layer.attention_weights = nn.Linear(channels, samples)
    layer.value_proj = nn.Linear(channels, values)
    layer.output_proj = nn.Linear(values, channels)


class Core(nn.Module):
    """MultiScaleDeformableAttention inside the newer attentions of transformers."""

    def forward(
        self, value, value_spatial_shapes, value_spatial_shapes_list, level_start_index,
        sampling_locations, attention_weights, im2col_step,
    ):  # fmt: skip
        return attention_form(
            value, value_spatial_shapes.tolist(), sampling_locations, attention_weights
        )


def attend(layer, counts, query, reference, maps, padding, core=None):
    """Deformable attention, without what the libraries put around it."""
    heads, levels, points = counts
    value = layer.value_proj(maps)
    if padding is not None:
        value = value.masked_fill(padding[..., None], 0)
    value = value.unflatten(-1, (heads, -1))
    offsets = layer.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
    weights = layer.attention_weights(query).unflatten(-1, (heads, levels * points))
    weights = weights.softmax(-1).unflatten(-1, (levels, points))
    unit = 1 / SHAPES.flip(-1)[:, None].double()
    if reference.shape[-1] == 4:
        unit = reference[:, :, None, :, None, 2:] * 0.5 / points
    where = reference[:, :, None, :, None, :2] + offsets * unit
    samples = (core or Core())(value, SHAPES, SIZES, STARTS, where, weights, 64)
    return layer.output_proj(samples), weights


class DeformableDetr(nn.Module):
    """MSDeformAttn of Deformable DETR, Mask2Former and DINO."""

    def __init__(self, d_model, n_levels, n_heads, n_points):
        super().__init__()
        self.im2col_step, self.d_model, self.n_levels = 64, d_model, n_levels
        self.n_heads, self.n_points = n_heads, n_points
        add_heads(self, d_model, d_model, n_heads * n_levels * n_points)

    def forward(
        self, query, reference_points, input_flatten, input_spatial_shapes,
        input_level_start_index, input_padding_mask=None,
    ):  # fmt: skip
        counts = self.n_heads, self.n_levels, self.n_points
        return attend(
            self, counts, query, reference_points, input_flatten, input_padding_mask
        )[0]  # fmt: skip


class Mmcv(nn.Module):
    """MultiScaleDeformableAttention of mmcv and detrex."""

    def __init__(self, embed_dims, num_heads, num_levels, num_points, batch_first=False, ratio=1):
        super().__init__()
        self.embed_dims, self.num_heads, self.batch_first = embed_dims, num_heads, batch_first
        self.num_levels, self.num_points, self.im2col_step = num_levels, num_points, 64
        self.dropout = nn.Dropout(0.25)
        values = int(embed_dims * ratio)
        add_heads(self, embed_dims, values, num_heads * num_levels * num_points)

    def forward(
        self, query, key=None, value=None, identity=None, query_pos=None, key_padding_mask=None,
        reference_points=None, spatial_shapes=None, level_start_index=None, **kwargs,
    ):  # fmt: skip
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        counts = self.num_heads, self.num_levels, self.num_points
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        output, _ = attend(self, counts, query, reference_points, value, key_padding_mask)
        output = output if self.batch_first else output.transpose(0, 1)
        return self.dropout(output) + identity


class GroundingDino(Mmcv):
    """MultiScaleDeformableAttention of Grounding DINO: nothing around it."""

    def __init__(self, *args):
        super().__init__(*args, batch_first=True)
        del self.dropout

    def forward(
        self, query, key=None, value=None, query_pos=None, key_padding_mask=None,
        reference_points=None, spatial_shapes=None, level_start_index=None, **kwargs,
    ):  # fmt: skip
        query = query if query_pos is None else query + query_pos
        counts = self.num_heads, self.num_levels, self.num_points
        return attend(self, counts, query, reference_points, value, key_padding_mask)[0]


class Transformers(DeformableDetr):
    """DeformableDetrMultiscaleDeformableAttention of transformers, and its likes."""

    core = None

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None,
        encoder_attention_mask=None, position_embeddings=None, reference_points=None,
        spatial_shapes=None, level_start_index=None, output_attentions=False,
    ):  # fmt: skip
        query = hidden_states + position_embeddings
        counts = self.n_heads, self.n_levels, self.n_points
        padding = None if attention_mask is None else ~attention_mask
        core = self._modules.get("attn")
        return attend(self, counts, query, reference_points, encoder_hidden_states, padding, core)


class NewTransformers(Transformers):
    """The same with the computation in a module inside."""

    def __init__(self, *args):
        super().__init__(*args)
        self.attn = Core()


class OneFormerPixelDecoderEncoderMultiscaleDeformableAttention(Transformers):
    """Its mask has True where there is padding."""

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None,
        encoder_attention_mask=None, position_embeddings=None, reference_points=None,
        spatial_shapes=None, level_start_index=None, output_attentions=False,
    ):  # fmt: skip
        return super().forward(
            hidden_states, ~attention_mask, encoder_hidden_states,
            position_embeddings=position_embeddings, reference_points=reference_points,
        )  # fmt: skip


class Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(Transformers):
    """Its mask has True where there is padding, and shapes come as a list."""

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None,
        encoder_attention_mask=None, position_embeddings=None, reference_points=None,
        spatial_shapes_list=None, level_start_index=None, output_attentions=False,
    ):  # fmt: skip
        return super().forward(
            hidden_states, ~attention_mask, encoder_hidden_states,
            position_embeddings=position_embeddings, reference_points=reference_points,
        )  # fmt: skip


def trained(layer):
    """Return the layer in double precision, with parameters as if it had been trained."""
    torch.manual_seed(0)
    for name, p in layer.named_parameters():
        nn.init.normal_(p, std=0.3)
        if name.endswith(("dw_conv.1.1.weight", "dw_conv.1.0.weight")):
            p.data += 1
    return layer.double().eval()


MAPS, QUERY, ADDED = normal(2, 26, 12), normal(2, 7, 12, seed=1), normal(2, 7, 12, seed=2)
POINTS = torch.rand(2, 7, 2, 2, dtype=torch.float64)
BOXES = torch.rand(2, 7, 1, 4, dtype=torch.float64)
PADDING = torch.arange(52).view(2, 26) % 3 == 0
TENSORS = {"spatial_shapes": SHAPES, "level_start_index": STARTS}

# The layer, ours, and the arguments after the first, by their names.
LAYERS = {
    "DCNv3": (lambda: InternImage(12, 3), DCNv3, normal(2, 6, 5, 12), {}),
    "DCNv3 with batch norm": (
        lambda: InternImage(
            12, 2, 5, "BN", nn.SiLU, center_feature_scale=True, remove_center=True, dilation=2,
            pad=2, offset_scale=0.7,
        ),
        DCNv3,
        normal(2, 6, 5, 12),
        {},
    ),
    "DCNv4": (lambda: Flash(12, 3), DCNv4, normal(2, 30, 12), {"shape": (6, 5)}),
    "DCNv4 with all": (
        lambda: Flash(
            12, 2, 5, bias=False, center_feature_scale=True, remove_center=True, offset_scale=0.7
        ),
        DCNv4,
        normal(2, 30, 12),
        {"shape": (6, 5)},
    ),
    "DCNv4 alone": (
        lambda: Flash(12, 2, alone=True), DCNv4, normal(2, 30, 12), {"shape": (6, 5)},
    ),
    "Deformable DETR": (
        lambda: DeformableDetr(12, 2, 3, 4),
        MSDeformAttn,
        QUERY,
        {
            "reference_points": POINTS, "input_flatten": MAPS, "input_spatial_shapes": SHAPES,
            "input_level_start_index": STARTS, "input_padding_mask": PADDING,
        },
    ),
    "mmcv": (
        lambda: Mmcv(12, 3, 2, 4, ratio=0.5),
        MultiScaleDeformableAttention,
        QUERY.transpose(0, 1),
        {
            "value": MAPS.transpose(0, 1), "identity": ADDED.transpose(0, 1),
            "query_pos": ADDED.transpose(0, 1), "key_padding_mask": PADDING,
            "reference_points": BOXES, **TENSORS,
        },
    ),
    "mmcv in an encoder": (
        lambda: Mmcv(12, 3, 2, 4, batch_first=True),
        MultiScaleDeformableAttention,
        MAPS,
        {"reference_points": torch.rand(1, 26, 1, 2, dtype=torch.float64), **TENSORS},
    ),
    "Grounding DINO": (
        lambda: GroundingDino(12, 3, 2, 4),
        MultiScaleDeformableAttention,
        QUERY,
        {"value": MAPS, "query_pos": ADDED, "reference_points": POINTS, **TENSORS},
    ),
    **{
        kind.__name__: (
            lambda kind=kind: kind(12, 2, 3, 4),
            TransformersDeformAttn,
            QUERY,
            {
                "attention_mask": PADDING, "encoder_hidden_states": MAPS,
                "position_embeddings": ADDED, "reference_points": BOXES, **shapes,
            },
        )
        for kind, shapes in (
            (Transformers, TENSORS),
            (OneFormerPixelDecoderEncoderMultiscaleDeformableAttention, TENSORS),
            (
                Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
                {"spatial_shapes_list": SIZES},
            ),
        )
    },
}  # fmt: skip


def with_gradients(layer, x, arguments):
    """Return the output and the gradients of the input and all parameters, by their names."""
    x = x.clone().requires_grad_()
    output = layer(x, **arguments)
    outputs = output if isinstance(output, tuple) else (output,)
    names, parameters = zip(*sorted(layer.named_parameters()), strict=True)
    seeds = [normal(*each.shape, seed=9) for each in outputs]
    gradients = torch.autograd.grad(outputs, [x, *parameters], seeds)
    return [*outputs, *gradients], names


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_becomes_ours_with_equal_output_and_gradients(name):
    make, kind, x, arguments = LAYERS[name]
    model = nn.ModuleList([nn.Linear(3, 3), trained(make())])
    converted, report = convert(model, "native")
    assert type(converted[1]) is kind
    assert type(model[1]) is not kind
    assert [(row.name, row.old) for row in report.converted] == [("1", type(model[1]).__name__)]
    assert report.converted[0].new == kind.__name__
    assert report.converted[0].before == report.converted[0].after
    expected, names = with_gradients(model[1], x, arguments)
    found, same = with_gradients(converted[1], x, arguments)
    assert names == same
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert not converted[1].training


@pytest.mark.parametrize("name", LAYERS)
def test_its_checkpoint_loads_into_a_converted_model(name):
    make, _, x, arguments = LAYERS[name]
    theirs, model = trained(make()), convert(make().double().eval(), "native").model
    report = load_deformable_checkpoint(
        model, {"state_dict": {f"module.{key}": v for key, v in theirs.state_dict().items()}}
    )
    assert (report.renamed, report.unchanged) == ((), len(theirs.state_dict()))
    assert report.missing == report.unexpected == ()
    found, expected = (each(x, **arguments) for each in (model, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_only_the_computation_inside_is_replaced_where_it_is_a_module():
    model = trained(NewTransformers(12, 2, 3, 4))
    converted, report = convert(model, "native")
    assert type(converted) is NewTransformers
    assert type(converted.attn) is MSDeformAttnCore
    assert [row.name for row in report.converted] == ["attn"]
    arguments = LAYERS["Transformers"][3]
    for ours, theirs in zip(
        with_gradients(converted, QUERY, arguments)[0],
        with_gradients(model, QUERY, arguments)[0],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_dropout_and_mode_are_kept():
    model = trained(Mmcv(12, 3, 2, 4)).train()
    converted = convert(model, "native").model
    assert converted.dropout.p == 0.25
    assert converted.dropout.training
    assert converted.embed_dims == 12  # callers may read the old attributes
    arguments = dict(LAYERS["mmcv"][3], value=MAPS.transpose(0, 1))
    torch.manual_seed(3)
    expected = model(QUERY.transpose(0, 1), **arguments)
    torch.manual_seed(3)
    found = converted(QUERY.transpose(0, 1), **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_in_place_the_parameters_are_the_same():
    model = nn.ModuleList([trained(InternImage(12, 3)), trained(Mmcv(12, 3, 2, 4))])
    before = dict(model.named_parameters())
    assert convert(model, "native", inplace=True).model is model
    assert [type(layer) for layer in model] == [DCNv3, MultiScaleDeformableAttention]
    for name, parameter in model.named_parameters():
        assert parameter is before[name]


def test_what_was_converted_is_read_as_points():
    """As the same layer of this library is, whatever the call."""
    layer = trained(DeformableDetr(12, 2, 3, 4))
    points, _ = convert(trained(Transformers(12, 2, 3, 4)), "native")
    own = MSDeformAttn(12, 2, 3, 4).double()
    own.load_state_dict(layer.state_dict())
    call = QUERY, None, MAPS, None, ADDED, POINTS, SHAPES
    expected = level_positions(own, (QUERY + ADDED, POINTS, MAPS, SHAPES))
    for found, wanted in zip(level_positions(points, call), expected, strict=True):
        torch.testing.assert_close(found.points, wanted.points)
    dcn = convert(trained(InternImage(12, 3)), "native").model
    assert kernel_positions(dcn, normal(1, 6, 5, 12)).kind == "dcnv3"


class OtherCall(DeformableDetr):
    def forward(self, query, reference_points, value, value_spatial_shapes):
        return query


class ImageCall(InternImage):
    def forward(self, x):
        return x


def changed(layer, **parts):
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


def with_buffer(layer):
    layer.register_buffer("n_points_scale", torch.ones(8))
    return layer


UNLIKE = {
    "call": (
        lambda: OtherCall(12, 2, 3, 4),
        "it takes query, reference_points, value, value_spatial_shapes, which is no known call",
    ),
    "numbers": (
        lambda: changed(DeformableDetr(12, 2, 3, 4), n_points=5),
        "its numbers of heads, levels and points do not fit its linear maps",
    ),
    "no projection": (
        lambda: changed(Mmcv(12, 3, 2, 4), output_proj=None),
        "its output_proj is a NoneType, not a Linear",
    ),
    "buffer": (
        lambda: with_buffer(Transformers(12, 2, 3, 4)),
        "it holds n_points_scale besides, for which ours has no use",
    ),
    "boxes": (
        lambda: changed(DeformableDetr(12, 2, 3, 4), use_4D_normalizer=True),
        "its use_4D_normalizer gives offsets in boxes another unit",
    ),
    "dropout": (
        lambda: changed(Mmcv(12, 3, 2, 4), dropout=nn.AlphaDropout()),
        "its dropout is a AlphaDropout",
    ),
    "image": (lambda: ImageCall(12, 3), "it takes x, not input"),
    "features": (
        lambda: changed(InternImage(12, 3), dw_conv=nn.Conv2d(12, 12, 3, padding=1)),
        "its dw_conv is not a convolution, a norm and an activation in sequence",
    ),
    "activation": (
        lambda: InternImage(12, 3, act=nn.Tanh),
        "act_layer: expected one of ('ReLU', 'SiLU', 'GELU'), got 'Tanh'",
    ),
    "rounded activation": (
        lambda: InternImage(12, 3, act=lambda: nn.GELU("tanh")),
        "its activation is GELU(approximate='tanh'), not the exact one",
    ),
    "shape": (
        lambda: changed(Flash(12, 3), offset_mask=nn.Linear(12, 81)),
        "its offset_mask.weight has shape (81, 12), not (88, 12)",
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_not_understood_is_left_alone_with_the_reason(name):
    make, words = UNLIKE[name]
    model = nn.ModuleList([make()])
    converted, report = convert(model, "native")
    assert type(converted[0]) is type(model[0])
    reasons = {row.name: row.reason for row in report.left_alone}
    assert reasons["0"].startswith(words)


def test_other_conversions_leave_these_layers_alone():
    model = nn.Sequential(InternImage(12, 3), DCNv3(12, group=3), nn.Conv2d(3, 3, 3))
    _, report = convert(model, "metric")
    reasons = {row.name: row.reason for row in report.left_alone}
    assert reasons == {
        "0": "adaptive already", "1": "adaptive already",
        "0.dw_conv.0": "part of 0 (InternImage)", "1.dw_conv.0": "part of 1 (DCNv3)",
    }  # fmt: skip
    _, report = convert_back(nn.Sequential(DCNv3(12, group=3)))
    assert report.left_alone[0].reason == "no convolution, and no plain one stands for it"


def test_the_costs_of_a_layer():
    """For each pixel: its linear maps and convolution, and five operations for each sample."""
    layer = InternImage(12, 3).double()
    _, report = convert(layer, "native", example=normal(1, 6, 5, 12))
    row = report.converted[0]
    maps = 12 * (2 * 27 + 27 + 12 + 12) + 9 * 12
    assert row.after.multiply_adds == maps + 5 * 9 * 12
    assert row.before.output_size == row.after.output_size == (6, 5)


@pytest.mark.unchecked
def test_arguments_that_attention_needs():
    layer = MultiScaleDeformableAttention(12, 3, 2, 4)
    with pytest.raises(ValueError, match="spatial_shapes: attention needs it, got None"):
        layer(QUERY.float(), reference_points=POINTS.float())
    with pytest.raises(ValueError, match="encoder_hidden_states: attention needs it, got None"):
        TransformersDeformAttn(12, 2, 3)(QUERY.float(), reference_points=POINTS.float())
    with pytest.raises(ValueError, match="value_proj_ratio: expected 3 heads to divide"):
        MultiScaleDeformableAttention(12, 3, value_proj_ratio=0.4)
    assert "residual=False" in repr(MultiScaleDeformableAttention(12, 3, residual=False))
    assert "mask_is_padding=True" in repr(TransformersDeformAttn(12, 2, 3, mask_is_padding=True))
