"""DCNv3, DCNv4 and deformable attention read as clouds of points with metrics."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from finslerconv.balls import Ellipse, lattice, radial
from finslerconv.implicit import (
    Misfit,
    find_adaptive_layers,
    fit_randers,
    implicit_metric,
    kernel_positions,
    level_positions,
    offset_heads,
    offset_health,
)
from finslerconv.metrics import Randers
from finslerconv.nn import DCNv3, DCNv4, MSDeformAttn

SIZES = ((9, 7), (5, 4))
SHAPES = torch.tensor(SIZES)
PIXELS = sum(rows * columns for rows, columns in SIZES)


def randomised(layer, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = scale * noise.to(parameter)
    return layer


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bilinear(image, row, column):
    """Return the value of an image (H, W, C) at a place, zero outside."""
    height, width = image.shape[:2]
    total = torch.zeros(image.shape[2], dtype=image.dtype)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j]
    return total


def attention_arguments(queries=6, boxes=False):
    query = normal(2, queries, 16, seed=2)
    reference = torch.rand(
        2, queries, 2, 4 if boxes else 2, dtype=torch.float64,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    return query, reference, normal(2, PIXELS, 16, seed=4), SHAPES


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "remove_center"), [(3, False), (3, True), (2, False)])
@pytest.mark.parametrize("cls", [DCNv3, DCNv4])
def test_the_layer_gathers_its_output_at_the_positions(cls, kernel, remove_center):
    """The output is the slow sum over the samples that the positions name."""
    layer = cls(8, kernel, 2, 1, 2, group=2, offset_scale=0.7, remove_center=remove_center).double()
    randomised(layer)
    image = normal(2, 7, 9, 8)
    x, projection = (image,), getattr(layer, "input_proj", None)
    if cls is DCNv4:
        x, projection = (image.flatten(1, 2), (7, 9)), layer.value_proj
    where = kernel_positions(layer, x)
    assert where.kind == cls.__name__.lower()
    assert where.kernel_name == f"{kernel}x{kernel}"
    assert len(where.reference) == where.points.shape[-2]
    values = projection(image)
    centres = where.centres()[0]
    gathered = torch.zeros(2, *where.output_size, 8, dtype=torch.float64)
    for b in range(2):
        for g in range(2):
            part = slice(4 * g, 4 * g + 4)
            for i, j, k in np.ndindex(*where.points.shape[2:5]):
                place = centres[i, j] + where.points[b, g, i, j, k]
                value = bilinear(values[b][..., part], *place.tolist())
                gathered[b, i, j, part] += where.modulation[b, g, i, j, k] * value
    torch.testing.assert_close(layer.output_proj(gathered).flatten(1, -2), layer(*x).flatten(1, -2))


@pytest.mark.parametrize("boxes", [False, True])
def test_attention_gathers_its_output_at_the_positions(boxes):
    layer = randomised(MSDeformAttn(16, 2, 4, 3).double())
    arguments = attention_arguments(boxes=boxes)
    levels = level_positions(layer, arguments)
    assert [level.input_size for level in levels] == list(SIZES)
    values = layer.value_proj(arguments[2]).split([r * c for r, c in SIZES], dim=1)
    gathered = torch.zeros(2, 6, 16, dtype=torch.float64)
    for where, value in zip(levels, values, strict=True):
        assert (where.kind, where.kernel_name, where.groups) == ("attention", "3 points", 4)
        value = value.unflatten(1, where.input_size)
        for b, h, _, q, k in np.ndindex(*where.points.shape[:-1]):
            part = slice(4 * h, 4 * h + 4)
            place = where.centres()[b, 0, q] + where.points[b, h, 0, q, k]
            sample = bilinear(value[b][..., part], *place.tolist())
            gathered[b, q, part] += where.modulation[b, h, 0, q, k] * sample
    torch.testing.assert_close(layer.output_proj(gathered), layer(*arguments))
    own = layer.samples(*arguments)
    torch.testing.assert_close(own.positions[:, :, :, 1], levels[1].points[:, :, 0])
    torch.testing.assert_close(own.weights[:, :, :, 1], levels[1].modulation[:, :, 0])


def test_a_metric_in_the_offsets_is_found_again():
    """Offsets that put each tap into the ball of a metric imply that metric, in every group."""
    metrics = Randers(
        torch.tensor([[[0.5, 0.1], [0.1, 0.8]], [[1.2, -0.2], [-0.2, 0.4]]]).double(),
        torch.tensor([[0.1, -0.2], [0.0, 0.3]]).double(),
    )
    layer = DCNv3(8, group=2).double()
    taps = torch.as_tensor(lattice(3).points)
    points = torch.stack([radial(metrics[g], taps) for g in range(2)])
    # Taps column by column, (x, y).
    offsets = (points - taps).unflatten(1, (3, 3)).transpose(1, 2)
    layer.offset.bias.data = offsets.flip(-1).flatten()
    result = implicit_metric(layer, normal(1, 6, 5, 8))
    assert result.summary.explained == 1
    torch.testing.assert_close(result.metric.M[0, :, 2, 3], metrics.M, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.metric.omega[0, :, 2, 3], metrics.omega, rtol=0, atol=1e-8)
    assert result.summary.edges is not None  # of the input, channels last


def test_weights_of_the_taps_enter_the_fit():
    layer = randomised(DCNv4(8, group=2).double(), scale=0.1)
    x = (normal(1, 30, 8), (6, 5))
    where = kernel_positions(layer, x)
    result = implicit_metric(layer, x)
    by_hand = fit_randers(
        where.points, where.modulation.abs(), reference=lattice(3), map=result.map
    )
    torch.testing.assert_close(result.metric.M, by_hand.metric.M)
    alike = fit_randers(where.points, reference=lattice(3), map=result.map)
    assert not torch.allclose(result.metric.M, alike.metric.M)


def test_untrained_layers_are_the_discs_of_their_taps():
    """All heads of an attention together start as square rings up to the number of points."""
    attention = MSDeformAttn(16, 2, 8, 3).double()
    query, reference, maps, shapes = attention_arguments()
    results = implicit_metric(attention, (query, reference, maps, shapes), together=True)
    assert list(results) == ["MSDeformAttn@0", "MSDeformAttn@1"]
    for result in results.values():
        expected = torch.eye(2).double().expand(2, 1, 6, 2, 2) / 9
        torch.testing.assert_close(result.metric.M, expected)
    # In boxes they reach to the sides: half as far as these are long.
    boxes = attention_arguments(boxes=True)
    result = implicit_metric(attention, boxes, together=True)["MSDeformAttn@1"]
    sides = boxes[1][:, :, 1, 2:].flip(-1) * torch.tensor(SIZES[1]) / 2
    torch.testing.assert_close(
        result.metric.M[:, 0], torch.diag_embed(sides**-2), rtol=1e-7, atol=1e-9
    )
    # A head alone is a ray.
    alone = implicit_metric(attention, (query, reference, maps, shapes))["MSDeformAttn@0"]
    assert (alone.fit.reason == Misfit.DEGENERATE).all()
    dcn = implicit_metric(
        DCNv3(8, 3, dilation=2, pad=2, remove_center=True), torch.rand(1, 6, 6, 8)
    )
    torch.testing.assert_close(dcn.metric.M[0, 0, 0, 0], torch.eye(2) / 4)


def test_heads_are_fitted_by_the_moments_of_their_weighted_points():
    layer = randomised(MSDeformAttn(16, 2, 2, 6).double(), scale=1.0)
    arguments = attention_arguments(queries=20)
    result = implicit_metric(layer, arguments)["MSDeformAttn@1"]
    where = level_positions(layer, arguments)[1]
    good = result.fit.explained
    assert 0.2 < good.double().mean() < 1
    ellipse = Ellipse.of(result.metric)
    weights = (where.modulation / where.modulation.sum(-1, keepdim=True))[..., None]
    mean = (weights * where.points).sum(-2)
    away = where.points - mean[..., None, :]
    covariance = (weights[..., None] * away[..., :, None] * away[..., None, :]).sum(-3)
    torch.testing.assert_close(ellipse.centre[good], mean[good], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ellipse.shape[good], 4 * covariance[good], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(result.fit.residual[good], torch.zeros_like(mean[good][:, 0]))
    # Elsewhere the ball that has these moments does not hold the reference point.
    outside = result.fit.reason == Misfit.OUTSIDE
    inverse = torch.linalg.inv(4 * covariance[outside])
    assert (torch.einsum("ni,nij,nj->n", mean[outside], inverse, mean[outside]) > 0.99).all()
    drawn = (ellipse.centre[outside] - mean[outside]).norm(dim=-1)
    torch.testing.assert_close(result.fit.residual[outside], drawn)


def test_moments_of_a_riemannian_metric_are_about_the_pixel():
    points = normal(4, 5, 2)
    fit = fit_randers(points, objective="moments", kind="riemannian")
    moments = torch.einsum("bni,bnj->bij", points, points) / 5
    torch.testing.assert_close(torch.linalg.inv(fit.metric.M), 4 * moments)
    assert (fit.residual == 0).all()
    assert fit.explained.all()
    with pytest.raises(ValueError, match=r"reference: the objective 'moments' does not use it"):
        fit_randers(normal(4, 9, 2), objective="moments", reference=lattice(3))


class Encoder(nn.Module):
    """Attention inside a model, called with names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.dcn = DCNv3(16, group=2)
        self.attention = MSDeformAttn(16, 2, 4, 3)

    def forward(self, image):
        x = self.dcn(self.first(image).permute(0, 2, 3, 1))
        small = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        tokens = torch.cat((x.flatten(1, 2), small.flatten(1, 2)), dim=1)
        places = []
        for level in (x, small):
            axes = ((torch.arange(n).to(x) + 0.5) / n for n in level.shape[1:3])
            rows, columns = torch.meshgrid(*axes, indexing="ij")
            places.append(torch.stack((columns, rows), dim=-1).flatten(0, 1))
        reference = torch.cat(places)[None, :, None].expand(len(x), -1, 2, -1)
        shapes = torch.tensor([x.shape[1:3], small.shape[1:3]])
        return self.attention(tokens, reference, input_flatten=tokens, input_spatial_shapes=shapes)


def test_layers_of_a_model():
    torch.manual_seed(0)
    model = randomised(Encoder(), scale=0.2)
    picture = torch.rand(1, 3, 8, 12)
    layers = find_adaptive_layers(model, picture)
    assert [(layer.key, layer.level) for layer in layers] == [
        ("dcn", None), ("attention@0", 0), ("attention@1", 1),
    ]  # fmt: skip
    sizes = [(8, 12), (8, 12), (4, 6)]
    assert [layer.positions.input_size for layer in layers] == sizes
    results = implicit_metric(model, picture, max_size=5)
    assert list(results) == ["dcn", "attention@0", "attention@1"]
    assert results["attention@0"].fit.reason.shape == (1, 4, 1, 25)
    assert results["attention@1"].summary.edges is not None
    _, centres = results["attention@1"].in_picture(8, 12)
    assert centres.shape == (1, 1, 25, 2)
    # The query in the picture's pixels is where it was, on every level.
    torch.testing.assert_close(centres, results["attention@0"].positions.centres())


def test_thinned_queries_are_spread():
    layer = MSDeformAttn(16, 1, 4, 3).double()
    axes = ((torch.arange(32).double() + 0.5) / 32,) * 2
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1).flip(-1)
    maps = normal(1, 1024, 16)
    (where,) = level_positions(layer, (maps, places[None, :, None], maps, torch.tensor([[32, 32]])))
    few = where.thinned(8)
    assert few.points.shape == (1, 4, 1, 64, 3, 2)
    kept = few.places[0, 0]
    assert len(kept.unique(dim=0)) == 64
    assert (where.places[0, 0][:, None] == kept).all(-1).any(0).all()
    # Each quarter of the picture has its share.
    counts = torch.bincount((2 * (kept[:, 0] > 15.5) + (kept[:, 1] > 15.5)).long())
    assert ((counts - 16).abs() <= 4).all(), counts
    assert where.thinned(32) is where


def test_all_groups_together():
    layer = randomised(DCNv3(8, group=2).double())
    where = kernel_positions(layer, normal(1, 5, 6, 8))
    whole = where.together()
    assert (whole.groups, whole.kernel_name) == (1, "18 points")
    expected = torch.cat((where.points[:, 0], where.points[:, 1]), dim=-2)
    torch.testing.assert_close(whole.points, expected)
    torch.testing.assert_close(whole.modulation[..., 9:], where.modulation[:, 1])
    np.testing.assert_array_equal(whole.reference.points[9:], lattice(3).points)
    assert whole.together() is whole


def test_health_of_attention():
    layer = MSDeformAttn(16, 2, 8, 4).double()
    query, _, maps, shapes = attention_arguments(queries=40)
    middle = torch.full((2, 40, 2, 2), 0.5, dtype=torch.float64)
    arguments = query, middle, maps, shapes

    def health(level=0):
        return offset_health(level_positions(layer, arguments)[level])

    sound = health()
    assert (sound.offset, sound.exploded, sound.collapsed) == (0, 0, 0)
    # Rays of 1 to 4 pixels in eight directions, from the middle (4, 3) of 9 x 7 pixels: those to
    # the left and right leave the picture with their last point, as the diagonal ones do.
    assert sound.outside == sound.outside_standard == pytest.approx(6 / 32)
    layer.sampling_offsets.bias.data *= 0.1
    collapsed = health()
    assert collapsed.collapsed == 1
    assert any("collapsed" in complaint for complaint in collapsed.complaints)
    layer.sampling_offsets.bias.data += 40
    exploded = health(1)
    assert exploded.exploded == exploded.outside == 1
    layer.reset_parameters()
    result = implicit_metric(layer, arguments, together=True)["MSDeformAttn@0"]
    assert offset_health(result.positions, result.fit).explained == 1
    assert "100.0% explained by a metric" in str(offset_health(result.positions, result.fit))
    assert offset_health(result.positions).explained is None


class AsInTransformers(nn.Module):
    """Attention whose forward has other names, as transformers' for Deformable DETR."""

    def __init__(self, layer):
        super().__init__()
        self.n_heads, self.n_levels, self.n_points = layer.n_heads, layer.n_levels, layer.n_points
        self.sampling_offsets = layer.sampling_offsets
        self.attention_weights = layer.attention_weights

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None,
        position_embeddings=None, reference_points=None, spatial_shapes=None, **kwargs,
    ):  # fmt: skip
        self.sampling_offsets(hidden_states + position_embeddings)
        return encoder_hidden_states


class AsInMmcv(nn.Module):
    """Attention with queries first, as mmcv's."""

    def __init__(self, layer):
        super().__init__()
        self.num_heads, self.num_levels = layer.n_heads, layer.n_levels
        self.num_points, self.batch_first = layer.n_points, False
        self.sampling_offsets = layer.sampling_offsets
        self.attention_weights = layer.attention_weights

    def forward(
        self, query, key=None, value=None, identity=None, query_pos=None, key_padding_mask=None,
        reference_points=None, spatial_shapes=None, level_start_index=None, **kwargs,
    ):  # fmt: skip
        return query


class Caller(nn.Module):
    """A model that calls one layer with names."""

    def __init__(self, layer, **arguments):
        super().__init__()
        self.layer, self.arguments = layer, arguments

    def forward(self, query):
        return self.layer(query, **self.arguments)


def test_attention_of_other_libraries_is_known_by_its_parts():
    layer = randomised(MSDeformAttn(16, 2, 4, 3).double())
    query, reference, maps, shapes = attention_arguments()
    added = normal(*query.shape, seed=9)
    expected = level_positions(layer, (query + added, reference, maps, shapes))
    names = {"reference_points": reference, "spatial_shapes": shapes}
    for model, x in (
        (Caller(AsInTransformers(layer), position_embeddings=added, **names), query),
        (
            Caller(AsInMmcv(layer), query_pos=added.transpose(0, 1), **names),
            query.transpose(0, 1),
        ),
    ):
        found = find_adaptive_layers(model, x)
        assert [each.key for each in found] == ["layer@0", "layer@1"]
        for each, where in zip(found, expected, strict=True):
            torch.testing.assert_close(each.positions.points, where.points)
            torch.testing.assert_close(each.positions.modulation, where.modulation)
            torch.testing.assert_close(each.positions.places, where.places)


def test_what_cannot_be_read_says_why():
    layer = MSDeformAttn(16, 2, 4, 3).double()
    query, reference, maps, shapes = attention_arguments()
    with pytest.raises(ValueError, match=r"samples 2 levels; level_positions returns"):
        kernel_positions(layer, (query, reference, maps, shapes))
    with pytest.raises(ValueError, match=r"reference_points: expected shape \(2, 6, 2, 2\)"):
        level_positions(layer, (query, reference[..., :1], maps, shapes))
    with pytest.raises(ValueError, match="expected 2 levels, got 1"):
        level_positions(layer, (query, reference, maps, shapes[:1]))
    with pytest.raises(ValueError, match="attention samples around them; got none"):
        level_positions(AsInMmcv(layer), (query,))


def test_heads_in_checkpoints():
    dcnv4 = DCNv4(32, group=2)
    with torch.no_grad():
        dcnv4.offset_mask.bias[18:27] = 9.0  # weights of the first group: no offsets
        dcnv4.offset_mask.bias[27:29] = torch.tensor([3.0, 4.0])
    model = nn.ModuleDict({"a": DCNv3(16, group=4), "b": dcnv4, "c": MSDeformAttn(16, 2, 4, 3)})
    heads = {head.layer: head for head in offset_heads(model.state_dict())}
    assert {name: (head.name, head.kind) for name, head in heads.items()} == {
        "a": ("a.offset", "dcnv3"),
        "b": ("b.offset_mask", "dcnv4"),
        "c": ("c.sampling_offsets", "attention"),
    }
    assert (heads["b"].kernel_size, heads["b"].groups, heads["b"].constant) == ((3, 3), 2, 5.0)
    assert heads["c"].kernel_size is None
    # The heads' rays run along the axes, up to their third point.
    assert heads["c"].constant == pytest.approx(3.0)
