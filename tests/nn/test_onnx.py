"""Layers and operators exported to ONNX, and run by ONNX Runtime."""

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from adaptive_layers import stirred
from torch import nn

import finslerconv.onnx
from finslerconv import ops
from finslerconv.nn import (
    DCNv3,
    DCNv4,
    DeformConv1d,
    DeformConv2d,
    GeodesicConv2d,
    MetricConv1d,
    MetricConv2d,
    MetricConv3d,
    MSDeformAttn,
    convert,
    select,
)

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.8", reason="PyTorch's exporter says that it exports since 2.8"
)

# The first is traced, the others are of other numbers, heights and widths.
SIZES = ((2, 4, 9, 12), (1, 4, 8, 8), (5, 4, 21, 6))
FREE = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)


class Beside(nn.Module):
    """Modules that are given the same input: several for the cost of one export."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return [module(x) for module in self.children()]


class Exported:
    """A model in ONNX Runtime, from a module or from an exported program."""

    def __init__(self, model, arguments=(), **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, arguments, dynamo=True, verbose=False, **options)
        self.operators = Counter(node.op_type for node in program.model.graph)
        self._session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs):
        names = [each.name for each in self._session.get_inputs()]
        given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return list(map(torch.as_tensor, self._session.run(None, given)))


def exported(model):
    model.eval().requires_grad_(False)
    return Exported(model, (torch.randn(SIZES[0]),), dynamic_shapes=(FREE,))


def check(onnx, model, atol=1e-5):
    for size in SIZES:
        x = torch.randn(size)
        for found, expected in zip(onnx(x), model(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.uninstrumented
def test_layers_become_the_deformable_convolution_of_onnx():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    model = Beside(
        deform=DeformConv2d(4, 6, 3, padding=1, groups=2, modulation=True, offset_groups=2),
        even=DeformConv2d(4, 3, (2, 4), padding="same", dilation=(1, 2), bias=False),
        radial=MetricConv2d(4, 4, (1, 3), stride=2, padding=1, dilation=(1, 2), metric_groups=2),
        affine=MetricConv2d(4, 2, (1, 2), map="affine", head="log_euclidean", eps_omega=1),
        converted=convert(network, "deform").model,
    )
    onnx = exported(stirred(model, 0.1))
    assert onnx.operators["DeformConv"] == 5
    assert not {"GatherElements", "GatherND", "GridSample"} & set(onnx.operators)
    check(onnx, model)


@pytest.mark.uninstrumented
def test_other_paddings_become_elementary_operators():
    torch.manual_seed(0)
    modes = ("reflect", "circular")
    model = Beside(**{mode: DeformConv2d(4, 3, (1, 2), padding_mode=mode) for mode in modes})
    with torch.no_grad():
        for layer in model.children():
            layer.offset_conv.bias.uniform_(-20, 20)  # beyond the image, and beyond its images
    onnx = exported(model)
    assert "DeformConv" not in onnx.operators
    check(onnx, model)


@pytest.mark.uninstrumented
def test_the_reference_backend_is_elementary_operators():
    torch.manual_seed(0)
    layer = Beside(layer=stirred(MetricConv2d(4, 4, (1, 2), eps_omega=1, metric_groups=2), 0.1))
    with ops.use_backend("reference"):
        onnx = exported(layer)
    assert "DeformConv" not in onnx.operators
    check(onnx, layer)


@pytest.mark.uninstrumented
def test_geodesic_layers():
    torch.manual_seed(0)
    model = Beside(layer=stirred(GeodesicConv2d(4, 3, 3, padding=1), 0.02))
    onnx = exported(model)
    # All stages of all steps are the body of one loop.
    assert onnx.operators["Scan"] == onnx.operators["DeformConv"] == 1
    assert sum(onnx.operators.values()) < 480
    check(onnx, model)


@pytest.mark.uninstrumented
def test_a_metric_layer_is_a_few_dozen_operators():
    torch.manual_seed(0)
    layer = stirred(MetricConv2d(4, 4, 3, padding=1), 0.1).eval()
    x = torch.randn(SIZES[0])
    onnx = Exported(layer, (x,))
    assert sum(onnx.operators.values()) < 90
    torch.testing.assert_close(onnx(x)[0], layer(x), rtol=0, atol=1e-5)


@pytest.mark.uninstrumented
def test_layers_for_sequences_are_deformable_convolutions_of_images_of_one_row():
    torch.manual_seed(0)
    model = Beside(deform=DeformConv1d(4, 3, 2, stride=2), metric=MetricConv1d(4, 3, 2))
    stirred(model, 0.1).eval().requires_grad_(False)
    free = dict.fromkeys((0, 2), torch.export.Dim.DYNAMIC)
    onnx = Exported(model, (torch.randn(2, 4, 9),), dynamic_shapes=(free,))
    assert onnx.operators["DeformConv"] == 2
    for size in ((2, 4, 9), (3, 4, 21)):
        x = torch.randn(size)
        for found, expected in zip(onnx(x), model(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Block(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, channels, out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    """Two stages of one block each."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.layer1, self.layer2 = Block(8, 8), Block(8, 16, 2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.conv1(x))).mean((2, 3)))


@pytest.mark.uninstrumented
def test_a_converted_resnet():
    torch.manual_seed(0)
    model = convert(ResNet(), "metric", where=select(kernel_size=3, stage=2)).model
    model = stirred(model, 0.05).eval().requires_grad_(False)
    onnx = Exported(model, (torch.randn(2, 3, 32, 24),), dynamic_shapes=(FREE,))
    assert onnx.operators["DeformConv"] == 2
    for size in ((2, 3, 32, 24), (1, 3, 20, 40)):
        x = torch.randn(size)
        torch.testing.assert_close(onnx(x)[0], model(x), rtol=0, atol=1e-5)


@pytest.mark.uninstrumented
def test_torchvisions_resnet_converted():
    try:
        from torchvision.models import resnet18
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"torchvision cannot be used: {error}")
    torch.manual_seed(0)
    model = convert(resnet18(), "deform", where=select(kernel_size=3, stage=4)).model.eval()
    for name, parameter in model.named_parameters():
        if "offset_conv" in name:
            nn.init.normal_(parameter, std=0.05)
    x = torch.randn(2, 3, 64, 64)
    onnx = Exported(model.requires_grad_(False), (x,))
    assert onnx.operators["DeformConv"] == 4
    torch.testing.assert_close(onnx(x)[0], model(x), rtol=0, atol=1e-5)


class Aggregations(nn.Module):
    """DCNv3, and attention over two levels of sizes that are an input."""

    def __init__(self):
        super().__init__()
        self.dcnv3 = DCNv3(8, group=2, offset_scale=1.5, dilation=2, pad=2, remove_center=True)
        self.attention = MSDeformAttn(8, n_levels=2, n_heads=2, n_points=3)

    def forward(self, x, query, points, maps, shapes):
        return self.dcnv3(x), self.attention(query, points, maps, shapes)


def aggregation_inputs(batch, height, width, queries, sizes):
    pixels = sum(rows * columns for rows, columns in sizes)
    points = 1.4 * torch.rand(batch, queries, 2, 2) - 0.2  # some outside
    query, maps = torch.randn(batch, queries, 8), torch.randn(batch, pixels, 8)
    return torch.randn(batch, height, width, 8), query, points, maps, torch.tensor(sizes)


@pytest.mark.uninstrumented
def test_aggregations_become_samples_of_grids():
    torch.manual_seed(0)
    model = stirred(Aggregations(), 0.3).eval().requires_grad_(False)
    inputs = aggregation_inputs(2, 6, 7, 5, [(6, 7), (3, 4)])
    D = torch.export.Dim.DYNAMIC
    sizes = {0: D, 1: D}, {0: D, 1: D, 2: D}
    onnx = Exported(model, inputs, dynamic_shapes=(sizes[1], *[sizes[0]] * 3, None))
    assert onnx.operators["GridSample"] == 3
    assert not {"GatherElements", "GatherND", "Loop"} & set(onnx.operators)
    assert sum(onnx.operators.values()) < 240
    for case in ((2, 6, 7, 5, [(6, 7), (3, 4)]), (1, 9, 4, 11, [(2, 5), (8, 1)])):
        inputs = aggregation_inputs(*case)
        for found, expected in zip(onnx(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Aggregate(nn.Module):
    """The operator itself, at positions that are NaN, infinite and far away too, and DCNv4."""

    def __init__(self):
        super().__init__()
        self.dcnv4 = stirred(DCNv4(4, group=2, stride=2).double(), 0.3)

    def forward(self, value, positions, weights):
        found = ops.aggregate(value, positions, weights, (5, 6))
        return found, self.dcnv4(value.flatten(2)[..., :4], (5, 6))


@pytest.mark.uninstrumented
def test_a_program_with_aggregations_decomposed():
    generator = torch.Generator().manual_seed(0)
    positions = 8 * torch.rand(2, 7, 2, 1, 4, 2, generator=generator, dtype=torch.float64) - 1
    positions.view(-1)[::9] = torch.tensor([np.nan, np.inf, -np.inf, 1e300, 1e10]).repeat(5)
    value = torch.randn(2, 30, 2, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 7, 2, 1, 4, generator=generator, dtype=torch.float64)
    inputs = value, positions, weights
    model = Aggregate().eval().requires_grad_(False)
    program = finslerconv.onnx.decompose(torch.export.export(model, inputs))
    onnx = Exported(program)
    assert onnx.operators["GridSample"] == 2
    for found, expected in zip(onnx(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


class Operators(nn.Module):
    """The operators themselves, with all that they take as inputs."""

    def forward(self, x, offset, M, omega, points, weight):
        deformed = ops.deform_conv2d(x, offset, weight, padding=1)
        radial = ops.metric_conv2d(x, M, omega, points, weight, padding=1)
        affine = ops.metric_conv2d(x, M, omega, points, weight, padding=1, map="affine")
        return deformed, radial, affine


@pytest.mark.uninstrumented
def test_a_program_of_operators_decomposed():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    offset = 3 * torch.randn(2, 18, 5, 6, generator=generator, dtype=torch.float64)
    # Samples at NaN or infinity, and those too far for an integer, are zero.
    offset.view(-1)[::7] = torch.tensor([np.nan, np.inf, -np.inf, 1e300, 1e10]).repeat(31)[:155]
    root = torch.eye(2) + 0.3 * torch.randn(2, 5, 6, 2, 2, generator=generator, dtype=torch.float64)
    M = root @ root.mT + 0.1 * torch.eye(2)
    omega = 0.1 * torch.randn(2, 5, 6, 2, generator=generator, dtype=torch.float64)
    points = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    points[4] = 0
    weight = torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64)
    inputs = x, offset, M, omega, points, weight
    program = torch.export.export(Operators(), inputs)
    onnx = Exported(finslerconv.onnx.decompose(program))
    assert onnx.operators["DeformConv"] == 3
    for found, expected in zip(onnx(*inputs), Operators()(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.uninstrumented
def test_what_cannot_be_decomposed_says_what_to_do():
    with pytest.raises(TypeError, match=r"program: expected a torch\.export\.ExportedProgram, got"):
        finslerconv.onnx.decompose(DeformConv2d(4, 4, 3))
    program = torch.export.export(GeodesicConv2d(4, 4, 2), (torch.randn(SIZES[0]),))
    with pytest.raises(ValueError, match=r"finslerconv\.geodesic_rays.*the module itself"):
        finslerconv.onnx.decompose(program)


class Signals(nn.Module):
    def forward(self, x, offset, M, omega, points, weight):
        first = ops.deform_conv1d(x, offset, weight, padding=1)
        return first, ops.metric_conv1d(x, M, omega, points, weight, padding=1, map="affine")


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = stirred(MetricConv3d(3, 4, (1, 1, 2), map="affine", eps_omega=1), 0.2)

    def forward(self, x, offset, M, omega, points, weight):
        deformed = ops.deform_conv3d(x, offset, weight, padding=1)
        radial = ops.metric_conv3d(x, M, omega, points, weight, padding=1)
        return deformed, radial, self.layer(x)


@pytest.mark.uninstrumented
@pytest.mark.parametrize(("model", "size"), [(Signals, (9,)), (Volumes, (3, 4, 3))], ids=str)
def test_signals_and_volumes(model, size):
    torch.manual_seed(0)
    model = model().eval().requires_grad_(False)
    dims = len(size)
    taps = 3**dims
    arguments = (
        torch.randn(2, 3, *size), torch.randn(2, dims * taps, *size),
        torch.eye(dims).expand(2, *size, dims, dims), 0.3 * torch.rand(2, *size, dims),
        2 * torch.rand(taps, dims) - 1, torch.randn(4, 3, *(3,) * dims),
    )  # fmt: skip
    onnx = Exported(model, arguments)
    # A signal is an image of one row; for volumes there is no such operator.
    assert onnx.operators["DeformConv"] == (2 if dims == 1 else 0)
    for found, expected in zip(onnx(*arguments), model(*arguments), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
