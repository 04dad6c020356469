"""Positions read from layers, against sampling at them by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from finslerconv import ops
from finslerconv.balls import lattice
from finslerconv.implicit import (
    KernelPositions,
    find_adaptive_layers,
    kernel_positions,
    register_positions,
)
from finslerconv.nn import (
    DeformConv2d,
    GeodesicConv2d,
    MetricConv2d,
    SeparableDensity,
    ShiftedConv2d,
    WeightedConv2d,
    weight_convolution,
)
from finslerconv.ops import ConvGeometry


@pytest.fixture(scope="module")
def vision():
    try:
        import torchvision.ops
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    return torchvision.ops


def randomised(layer, seed=0, scale=0.3):
    """Give every parameter, those that start at zero included, random values."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = scale * torch.randn(
            parameter.shape, generator=generator, dtype=parameter.dtype
        )
    return layer


def sampled(x, where, weight, bias=None):
    """Convolve slowly: bilinear samples at the positions, one group of the weights."""
    points = where.points if where.points.ndim == 6 else where.points[:, None]
    batch, groups, rows, columns, n, _ = points.shape
    row, column = where.centres()[0].unbind(-1)
    height, width = x.shape[-2:]
    samples = []
    for group, part in enumerate(x.chunk(groups, dim=1)):
        at = points[:, group]
        y, z = at[..., 0] + row[..., None], at[..., 1] + column[..., None]
        grid = torch.stack(((2 * z + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        values = functional.grid_sample(
            part, grid.reshape(batch, rows * columns, n, 2), align_corners=False
        )
        values = values.reshape(batch, -1, rows, columns, n)
        if where.modulation is not None:
            factor = where.modulation if groups == 1 else where.modulation[:, group]
            values = values * factor[:, None]
        samples.append(values)
    output = torch.einsum("bchwn,ocn->bohw", torch.cat(samples, dim=1), weight.flatten(2))
    return output if bias is None else output + bias[:, None, None]


X = torch.randn(2, 4, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

CONVOLUTIONS = {
    "standard": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "rectangular": {"kernel_size": (1, 5), "padding": (0, 2), "dilation": (1, 2)},
    "even, same": {"kernel_size": (2, 4), "padding": "same"},
    "valid": {"kernel_size": 5},
}

LAYERS = {
    **{name: (nn.Conv2d, options) for name, options in CONVOLUTIONS.items()},
    "weighted": (WeightedConv2d, {"kernel_size": 5, "padding": 2, "density": [0.2, 0.8]}),
    "deformable": (DeformConv2d, {"kernel_size": 3, "padding": 1, "modulation": True}),
    "deformable, groups": (
        DeformConv2d,
        {"kernel_size": 3, "stride": 2, "offset_groups": 2, "modulation": True},
    ),
    "shifted": (ShiftedConv2d, {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "metric": (MetricConv2d, {"kernel_size": 3, "padding": 2, "dilation": 2, "modulation": True}),
    "geodesic": (GeodesicConv2d, {"kernel_size": 3, "padding": 1}),
    "metric, groups": (
        MetricConv2d,
        {"kernel_size": 3, "metric_groups": 2, "modulation": True, "reference": "concentric"},
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_sampling_at_the_positions_is_the_layer(name):
    kind, options = LAYERS[name]
    layer = randomised(kind(4, 3, dtype=torch.float64, **options))
    where = kernel_positions(layer, X)
    assert where.points.dtype == torch.float64
    assert not where.points.requires_grad
    expected = sampled(X, where, layer.weight, layer.bias)
    torch.testing.assert_close(layer(X), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "kind", "adaptive"),
    [
        ("strided", "standard", False),
        ("dilated", "dilated", False),
        ("weighted", "weighted", False),
        ("deformable", "deformable", True),
        ("shifted", "shifted", True),
        ("metric", "metric", True),
        ("geodesic", "geodesic", True),
    ],
)
def test_kinds(name, kind, adaptive):
    make, options = LAYERS[name]
    where = kernel_positions(make(4, 3, dtype=torch.float64, **options), X)
    assert (where.kind, where.adaptive) == (kind, adaptive)


def test_fixed_positions_take_no_memory():
    where = kernel_positions(nn.Conv2d(4, 3, 7), X)
    assert where.points.untyped_storage().nbytes() <= 49 * 2 * 8


def test_input_without_batch():
    for make, options in (LAYERS["standard"], LAYERS["deformable"], LAYERS["metric, groups"]):
        layer = randomised(make(4, 3, dtype=torch.float64, **options))
        one, many = kernel_positions(layer, X[0]), kernel_positions(layer, X)
        torch.testing.assert_close(one.points, many.points[:1])


def test_half_precision_is_raised():
    layer = nn.Conv2d(4, 3, 3).bfloat16()
    assert kernel_positions(layer, X.bfloat16()).points.dtype == torch.float32


def test_density_of_a_parametrised_convolution():
    density = SeparableDensity((3, 3), [0.5], dtype=torch.float64)
    conv = weight_convolution(nn.Conv2d(4, 3, 3, padding=1, dtype=torch.float64), density)
    where = kernel_positions(conv, X)
    assert where.kind == "weighted"
    expected = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]).ravel()
    np.testing.assert_array_equal(where.modulation[1, 3, 4], expected)


def test_every_keeps_the_centres():
    layer = randomised(MetricConv2d(4, 3, 3, stride=2, padding=1, modulation=True).double())
    where = kernel_positions(layer, X)
    few = where.every(3)
    torch.testing.assert_close(few.points, where.points[:, ::3, ::3])
    torch.testing.assert_close(few.modulation, where.modulation[:, ::3, ::3])
    torch.testing.assert_close(few.centres(), where.centres()[:, ::3, ::3])
    assert where.every(1) is where


# Layers of other libraries.


class Pack(nn.Module):
    """As mmcv's packs: the offsets' convolution is inside."""

    def __init__(self, modulated, groups=1, dtype=torch.float64):
        super().__init__()
        self.in_channels = 4
        self.stride, self.padding, self.dilation = (1, 1), (1, 1), (1, 1)
        self.deform_groups = groups
        self.weight = nn.Parameter(torch.randn(3, 4, 3, 3, dtype=dtype))
        per_tap = 3 if modulated else 2
        self.conv_offset = nn.Conv2d(4, groups * per_tap * 9, 3, padding=1, dtype=dtype)

    def forward(self, x):
        offset, mask = self.conv_offset(x), None
        if self.conv_offset.out_channels == 27 * self.deform_groups:
            first, second, mask = offset.chunk(3, dim=1)
            offset, mask = torch.cat((first, second), dim=1), mask.sigmoid()
        return ops.deform_conv2d(x, offset, self.weight, None, 1, 1, 1, mask)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_packs(modulated, groups):
    pack = Pack(modulated, groups)
    where = kernel_positions(pack, X)
    assert where.kind == "deformable"
    assert where.groups == groups
    assert (where.modulation is not None) == modulated
    torch.testing.assert_close(pack(X), sampled(X, where, pack.weight), rtol=0, atol=1e-10)
    (found,) = find_adaptive_layers(nn.Sequential(nn.Identity(), pack), X, include_fixed=True)
    assert found.name == "1"
    torch.testing.assert_close(found.positions.points, where.points)


def test_torchvision_layer_with_its_offsets(vision):
    layer = vision.DeformConv2d(4, 3, 3, padding=1, bias=True).double()
    offset = torch.randn(2, 36, 9, 11, dtype=torch.float64)
    mask = torch.rand(2, 18, 9, 11, dtype=torch.float64)
    where = kernel_positions(layer, (X, offset, mask))
    assert where.groups == 2
    expected = sampled(X, where, layer.weight, layer.bias)
    torch.testing.assert_close(layer(X, offset, mask), expected, rtol=0, atol=1e-10)
    assert kernel_positions(layer, (X, offset[:, :18])).groups == 1


class ConvPack(nn.Conv2d):
    """A pack that derives from nn.Conv2d, with a forward method of its own."""

    def __init__(self):
        super().__init__(4, 3, 3, padding=1, dtype=torch.float64)
        self.conv_offset = nn.Conv2d(4, 18, 3, padding=1, dtype=torch.float64)

    def forward(self, x):
        return ops.deform_conv2d(x, self.conv_offset(x), self.weight, self.bias, 1, 1, 1)


def test_pack_that_derives_from_conv2d():
    pack = randomised(ConvPack())
    where = kernel_positions(pack, X)
    assert where.kind == "deformable"
    torch.testing.assert_close(pack(X), sampled(X, where, pack.weight, pack.bias))
    (found,) = find_adaptive_layers(nn.Sequential(pack), X)
    torch.testing.assert_close(found.positions.points, where.points)


class Functional(nn.Module):
    """A block that calls this library's function."""

    def __init__(self, padding):
        super().__init__()
        self.padding = padding
        self.to_offset = nn.Conv2d(4, 16, (2, 4), padding=padding)
        self.weight = nn.Parameter(torch.randn(3, 4, 2, 4))

    def forward(self, x):
        mask = torch.full((2, 8, *self.to_offset(x).shape[2:]), 0.5, dtype=x.dtype)
        return ops.deform_conv2d(x, self.to_offset(x), self.weight, padding=self.padding, mask=mask)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("padding", ["same", "valid", (1, 2)])
def test_calls_of_our_function_are_found(padding):
    block = randomised(Functional(padding).double())
    (layer,) = find_adaptive_layers(nn.Sequential(nn.Identity(), block), X)
    assert layer.name == "1"
    assert layer.offset_module is not None
    where = layer.positions
    assert (where.modulation == 0.5).all()
    torch.testing.assert_close(block(X), sampled(X, where, block.weight), rtol=0, atol=1e-10)


class PutTogether(Functional):
    """A block that cuts its convolution's output up and puts the offsets together again."""

    def __init__(self, between):
        super().__init__((1, 2))
        self.to_offset = nn.Conv2d(4, 24, (2, 4), padding=(1, 2))
        self.between = between

    def forward(self, x):
        first, second, mask = torch.chunk(self.to_offset(x), 3, dim=1)
        offset = self.between(torch.cat((first, second), dim=1))
        return ops.deform_conv2d(x, offset, self.weight, padding=(1, 2), mask=mask.sigmoid())


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (lambda offset: offset, "1.to_offset"),
        (lambda offset: offset.float().double().contiguous().clone(), "1.to_offset"),
        (lambda offset: torch.cat((offset[:, :8], torch.zeros_like(offset[:, 8:])), 1), None),
        (lambda offset: offset.tanh(), None),
    ],
)
def test_offsets_are_followed_through_copies_and_no_further(between, name):
    block = randomised(PutTogether(between).double())
    layers = find_adaptive_layers(nn.Sequential(nn.Identity(), block), X, include_fixed=True)
    deformable = layers[-1]
    assert deformable.offset_module == name
    assert [layer.name for layer in layers] == (["1"] if name else ["1.to_offset", "1"])


def test_repr_is_short():
    where = kernel_positions(
        randomised(LAYERS["deformable"][0](4, 3, 3, modulation=True)).double(), X
    )
    assert repr(where) == (
        "KernelPositions(deformable 3x3, points=(2, 7, 9, 9, 2), dtype=torch.float64, "
        "adaptive=True, modulated)"
    )


@pytest.mark.parametrize("dilation", [1, (2, 3)])
def test_metric_layer_tells_its_own_metric_in_pixels(dilation):
    layer = randomised(
        MetricConv2d(4, 3, 3, dilation=dilation, padding=3, reference="concentric").double()
    )
    where = kernel_positions(layer, X)
    # The concentric points on the rim of the unit ball stay on the rim.
    norms = where.metric.norm(where.points.movedim(-2, 0))
    torch.testing.assert_close(norms.amax(0), torch.ones_like(norms[0]))
    assert where.every(2).metric.batch_shape == where.every(2).points.shape[:3]
    assert kernel_positions(GeodesicConv2d(4, 3, 3).double(), X).metric is None


class Told(nn.Module):
    """A layer of one's own that tells its positions."""

    weight = None

    def positions(self, x):
        return torch.zeros(len(x), *x.shape[2:], 9, 2)

    def modulation(self, x):
        return torch.full((len(x), *x.shape[2:], 9), 0.5)

    def geometry(self):
        return ConvGeometry.of(3, padding=1)

    def forward(self, x):
        return x


def test_protocol_and_registration():
    where = kernel_positions(Told(), X)
    assert where.kind == "Told"
    assert (where.modulation == 0.5).all()

    class Foreign(nn.Module):
        def forward(self, x, extra):
            return x + extra

    with pytest.raises(TypeError, match="Foreign is not known; find_adaptive_layers"):
        kernel_positions(Foreign(), X)

    @register_positions(Foreign)
    def read(layer, x, extra):
        return KernelPositions(extra, ConvGeometry.of(1), (9, 11), "foreign", True)

    class Derived(Foreign):
        pass

    points = torch.randn(2, 9, 11, 1, 2)
    assert kernel_positions(Derived(), (X, points)).points is points


# Whole models.


class Model(nn.Module):
    """Every kind of use: shared, called twice, nested, with fixed convolutions around."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze = nn.Conv2d(4, 4, 1)
        self.block = nn.Sequential(MetricConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.twice = DeformConv2d(4, 4, 3, padding=1)
        self.again = self.twice
        self.fail = False

    def forward(self, x):
        x = self.block(self.squeeze(self.stem(x)))
        x = self.again(self.twice(x))
        if self.fail:
            raise RuntimeError("on purpose")
        return x


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_model_with_shared_layers():
    model = randomised(Model().double())
    model.block.train()
    model.stem.eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    layers = find_adaptive_layers(model, X)
    assert [layer.key for layer in layers] == ["block.0", "twice", "twice#2"]
    assert layers[1].module is layers[2].module is model.twice
    assert [m.training for m in model.modules()] == modes
    assert hooks(model) == 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    # Each call has the positions of its own input.
    with torch.no_grad():
        model.eval()
        first = model.block(model.squeeze(model.stem(X)))
        torch.testing.assert_close(
            layers[1].positions.points, kernel_positions(model.twice, first).points
        )
        torch.testing.assert_close(
            layers[2].positions.points, kernel_positions(model.twice, model.twice(first)).points
        )


def test_fixed_layers_on_request():
    layers = find_adaptive_layers(Model().double(), X, include_fixed=True)
    kinds = [(layer.key, layer.positions.kind) for layer in layers]
    assert kinds == [
        ("stem", "standard"),
        ("block.0", "metric"),
        ("twice", "deformable"),
        ("twice#2", "deformable"),
    ]


def test_hooks_are_removed_after_an_error():
    model = Model().double()
    model.fail = True
    with pytest.raises(RuntimeError, match="on purpose"):
        find_adaptive_layers(model, X)
    assert hooks(model) == 0
    assert all(m.training for m in model.modules())
    with pytest.raises(ValueError, match="layer 'stem': x: expected shape"):
        find_adaptive_layers(model, X[:, :3])
    assert hooks(model) == 0


def test_the_model_itself_is_a_layer():
    (layer,) = find_adaptive_layers(ShiftedConv2d(4, 3, 3).double(), X)
    assert (layer.name, layer.key) == ("", "(model)")


def test_keyword_arguments(vision):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.deform = vision.DeformConv2d(4, 3, 3, padding=1)

        def forward(self, x, offset, mask):
            return self.deform(mask=mask, input=x, offset=offset)

    model = Keywords().double()
    offset = torch.randn(2, 18, 9, 11, dtype=torch.float64)
    mask = torch.rand(2, 9, 9, 11, dtype=torch.float64)
    (layer,) = find_adaptive_layers(model, (X, offset, mask))
    expected = kernel_positions(model.deform, (X, offset, mask))
    torch.testing.assert_close(layer.positions.points, expected.points)
    torch.testing.assert_close(layer.positions.modulation, expected.modulation)


class Pair(nn.Module):
    """The usual home-made block: a module or a function, with a mask or without."""

    def __init__(self, vision, modulated, function):
        super().__init__()
        self.vision, self.modulated, self.function = vision, modulated, function
        self.to_offset = nn.Conv2d(4, 18, 3, padding=1)
        self.to_mask = nn.Conv2d(4, 9, 3, padding=1)
        self.deform = vision.DeformConv2d(4, 3, 3, padding=1)

    def forward(self, x):
        offset = self.to_offset(x)
        mask = 2 * self.to_mask(x).sigmoid() if self.modulated else None
        if not self.function:
            return self.deform(x, offset, mask)
        w, b = self.deform.weight, self.deform.bias
        return self.vision.deform_conv2d(x, offset, w, b, padding=(1, 1), mask=mask)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("function", [False, True])
def test_pairs_of_torchvision(vision, modulated, function):
    pair = randomised(Pair(vision, modulated, function).double())
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), pair).double()
    (layer,) = find_adaptive_layers(model, X)
    assert layer.name == ("1" if function else "1.deform")
    assert layer.offset_module == "1.to_offset"
    where = layer.positions
    assert (where.modulation is not None) == modulated
    with torch.no_grad():
        features = model[0](X)
        expected = sampled(features, where, pair.deform.weight, pair.deform.bias)
        torch.testing.assert_close(pair(features), expected, rtol=0, atol=1e-10)
    # The convolution of the offsets is part of the pair, that of the mask is not known as such.
    names = [layer.name for layer in find_adaptive_layers(model, X, include_fixed=True)]
    assert "1.to_offset" not in names
    assert names[0] == "0"


# Wrong inputs.


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kernel_positions("conv", X), TypeError, "layer: expected an nn.Module, got str"),
        (lambda: kernel_positions(nn.ReLU(), X), TypeError, "layer: ReLU is not known"),
        (lambda: kernel_positions(nn.ConvTranspose2d(4, 3, 3), X), TypeError, "not known"),
        (
            lambda: kernel_positions(nn.Conv2d(4, 3, 3), "picture"),
            TypeError,
            "x: expected a Tensor, or the tuple of the layer's arguments, got str",
        ),
        (lambda: kernel_positions(nn.Conv2d(4, 3, 3), ()), TypeError, "got nothing"),
        (
            lambda: kernel_positions(nn.Conv2d(3, 3, 3), X),
            ValueError,
            r"x: expected shape \(B, 3, H, W\) or \(3, H, W\), got \(2, 4, 9, 11\)",
        ),
        (
            lambda: kernel_positions(nn.Conv2d(4, 3, 13), X),
            ValueError,
            "smaller than the kernel",
        ),
        (
            lambda: kernel_positions(nn.LazyConv2d(3, 8), X),
            ValueError,
            "layer: LazyConv2d is lazy and makes its weights in its first call; call it once",
        ),
        (lambda: find_adaptive_layers(X, X), TypeError, "model: expected an nn.Module"),
        (lambda: register_positions(3), TypeError, "kind: expected a class of nn.Module, got 3"),
        (
            lambda: kernel_positions(nn.Conv2d(4, 3, 3), X).every(0),
            ValueError,
            "step: expected a positive integer, got 0",
        ),
        (
            lambda: KernelPositions(torch.zeros(1, 2, 9, 2), ConvGeometry.of(3), (9, 9), "", True),
            ValueError,
            r"points: expected shape \(B, 7, 7, 9, 2\)",
        ),
        (
            lambda: KernelPositions(
                torch.zeros(1, 7, 7, 9, 2), ConvGeometry.of(3), (9, 9), "", True, torch.ones(9)
            ),
            ValueError,
            r"modulation: expected .* \(1, 7, 7, 9\), got \(9,\)",
        ),
    ],
)
def test_wrong_inputs(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.unchecked
def test_wrong_offsets(vision):
    layer = vision.DeformConv2d(4, 3, 3, padding=1).double()
    with pytest.raises(ValueError, match=r"pass the tuple \(x, offset\)"):
        kernel_positions(layer, X)
    with pytest.raises(ValueError, match=r"offset: expected shape \(B, 18 \* groups, 9, 11\)"):
        kernel_positions(layer, (X, torch.zeros(2, 20, 9, 11).double()))
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 9, 9, 11\)"):
        kernel_positions(layer, (X, torch.zeros(2, 18, 9, 11), torch.zeros(2, 4, 9, 11)))


@pytest.mark.unchecked
def test_errors_name_the_layer():
    class Odd(Told):
        def positions(self, x):
            return torch.zeros(1, 2, 3)

    with pytest.raises(ValueError, match=r"layer '1': points: expected"):
        find_adaptive_layers(nn.Sequential(nn.ReLU(), Odd()), X)


@pytest.mark.unchecked
def test_torchscript_is_refused():
    with pytest.raises(TypeError, match="TorchScript, which runs no hooks"):
        find_adaptive_layers(torch.jit.ScriptModule(), X)


def test_reference_is_the_lattice_or_the_layers_own():
    where = kernel_positions(nn.Conv2d(4, 3, 3), X)
    np.testing.assert_array_equal(where.reference.points, lattice(3).points)
    layer = MetricConv2d(4, 3, 3, reference="sunflower", dtype=torch.float64)
    assert kernel_positions(layer, X).reference.name == "sunflower"
