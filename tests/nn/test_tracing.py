"""What PyTorch's tracers make of the layers: torch.fx, torch.export and torch.compile."""

import copy
import io
import pickle
import shutil
import warnings

import pytest
import torch
from adaptive_layers import GROUPS_ARGUMENT, LINE_AND_SPACE, stirred
from every_layer import LAYERS, OTHER_DIMENSIONS, WEIGHTED
from torch import nn

from finslerconv import ops
from finslerconv.nn import (
    DCNv3,
    DCNv4,
    DeformConv2d,
    DeformConv3d,
    GeodesicConv2d,
    MetricConv1d,
    MetricConv2d,
    MSDeformAttn,
)

# The first is traced, the others are of other numbers, heights and widths.
SIZES = ((2, 4, 9, 12), (1, 4, 8, 8), (5, 4, 21, 6))
FREE = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)

every_family = pytest.mark.parametrize("family", GROUPS_ARGUMENT, ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(family):
    """Return a layer of few samples, and so of few nodes in a graph of PyTorch's operators."""
    options = {"steps": 1} if family is GeodesicConv2d else {}
    options[(GROUPS_ARGUMENT | LINE_AND_SPACE)[family]] = 2
    kernel = (1, 2, 1)[-family.dims :] if family.dims > 1 else 2
    return stirred(family(4, 4, kernel, stride=2, padding=1, modulation=True, **options))


class Beside(nn.ModuleList):
    """Layers that are given the same input: several for the cost of one compilation."""

    def __init__(self, layers):
        super().__init__(layers.values())

    def forward(self, x):
        return [layer(x) for layer in self]


def free(family):
    """Return how an export is told that an input's number of images and its sizes may vary."""
    return (dict.fromkeys((0, *range(2, 2 + family.dims)), torch.export.Dim.DYNAMIC),)


def image(family, size):
    """Return an input (B, C, *axes) for a layer, of the first of these sizes."""
    return torch.randn(*size[:2], *(*size[2:], 7)[: family.dims])


def called_operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.unchecked
class TestSymbolicTrace:
    """``torch.fx.symbolic_trace`` records layers and operators as they are."""

    @staticmethod
    def check(traced, model, *inputs):
        """Compare outputs and gradients of the parameters, which are those of the model."""
        for x in inputs:
            output = traced(x)
            assert torch.equal(output, model(x))
            parameters = tuple(traced.parameters())
            assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
            gradients = torch.autograd.grad(output.square().sum(), parameters)
            again = torch.autograd.grad(model(x).square().sum(), parameters)
            assert all(map(torch.equal, gradients, again))

    @pytest.mark.parametrize("name", LAYERS)
    def test_of_a_model(self, name):
        model = nn.Sequential(LAYERS[name](), nn.ReLU())
        traced = torch.fx.symbolic_trace(model)
        traced.graph.lint()
        x = torch.randn(SIZES[0])
        self.check(traced, model, x, torch.randn(SIZES[1]))
        assert torch.equal(copy.deepcopy(traced)(x), model(x))
        assert torch.equal(pickle.loads(pickle.dumps(traced))(x), model(x))

    # PyTorch's own transposed convolutions have no such trace.
    @pytest.mark.parametrize("name", [name for name in LAYERS if "Transpose" not in name])
    def test_of_a_layer_by_itself(self, name):
        layer = LAYERS[name]()
        traced = torch.fx.symbolic_trace(layer)
        self.check(traced, layer, *map(torch.randn, SIZES[:2]), torch.randn(4, 7, 8))

    @pytest.mark.parametrize("name", OTHER_DIMENSIONS)
    def test_in_other_dimensions(self, name):
        make, axes = OTHER_DIMENSIONS[name]
        model = nn.Sequential(nn.Identity(), make())
        x = torch.randn(2, 4, *(7, 6, 5)[:axes])
        self.check(torch.fx.symbolic_trace(model), model, x)

    def test_hooks_run_once(self):
        layer = DeformConv2d(4, 4, 3)
        layer.register_forward_hook(lambda module, arguments, output: 2 * output)
        model = nn.Sequential(layer)
        x = torch.randn(1, 4, 6, 6)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))

    def test_a_subclass_adds_to_the_output_once(self):
        class Residual(DeformConv2d):
            def forward(self, input):
                return input + super().forward(input)

        model = nn.Sequential(Residual(4, 4, 3, padding=1))
        x = torch.randn(1, 4, 6, 6)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))

    def test_of_the_operators(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

            def forward(self, x, offset, M, points):
                y = ops.deform_conv2d(x, offset, self.weight, padding=1)
                positions = ops.metric_positions(M, None, points)
                y = ops.metric_conv2d(y, M, None, points, weight=self.weight, padding=1)
                return y, positions

        model = Model()
        x, offset = torch.randn(2, 4, 5, 6), torch.randn(2, 18, 5, 6)
        M, points = torch.eye(2).expand(2, 5, 6, 2, 2), torch.rand(9, 2)
        found = torch.fx.symbolic_trace(model)(x, offset, M, points)
        for each, expected in zip(found, model(x, offset, M, points), strict=True):
            assert torch.equal(each, expected)

    @every_family
    def test_features_by_torchvision(self, family):
        try:
            from torchvision.models.feature_extraction import create_feature_extractor
        except (ImportError, RuntimeError, AttributeError) as error:
            pytest.skip(f"torchvision cannot be used: {error}")
        model = nn.Sequential()
        model.add_module("first", stirred(family(4, 4, 3, padding=1)))
        model.add_module("second", nn.Conv2d(4, 2, 1))
        features = create_feature_extractor(model, {"first": "a", "second": "b"})
        x = torch.randn(2, 4, 7, 8)
        assert torch.equal(features(x)["a"], model.first(x))
        assert torch.equal(features(x)["b"], model(x))


@pytest.mark.uninstrumented
def test_export_by_the_reference_is_of_pytorchs_operators_alone():
    for family in (*GROUPS_ARGUMENT, MetricConv1d, DeformConv3d):
        layer = small(family).eval()
        with ops.use_backend("reference"):
            x = image(family, SIZES[0])
            program = torch.export.export(layer, (x,), dynamic_shapes=free(family))
            module = program.module()
            for size in SIZES:
                x = image(family, size)
                torch.testing.assert_close(module(x), layer(x), rtol=0, atol=1e-6)
        assert not {target for target in called_operators(program) if "finslerconv" in target}


@pytest.mark.uninstrumented
def test_export_of_weighted_layers():
    model = Beside({name: make() for name, make in WEIGHTED.items()}).eval()
    program = torch.export.export(model, (torch.randn(SIZES[0]),), dynamic_shapes=(FREE,))
    module = program.module()
    for size in SIZES:
        x = torch.randn(size)
        for name, found, expected in zip(WEIGHTED, module(x), model(x), strict=True):
            assert torch.equal(found, expected), name


@pytest.mark.uninstrumented
def test_compile_once_for_inputs_of_any_number_and_size():
    families = (*GROUPS_ARGUMENT, *LINE_AND_SPACE)
    weighted = {name: make() for name, make in WEIGHTED.items()}
    for dims in (1, 2, 3):
        layers = {f.__name__: small(f) for f in families if f.dims == dims}
        model = Beside(layers | (weighted if dims == 2 else {}))
        torch.compiler.reset()
        graphs = []

        def backend(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return graph

        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        # Not 2 images: the compiler would take the 2 components of the reference points for them.
        for size in ((3, 4, 9, 12), (5, 4, 21, 6)):
            x = torch.randn(*size[:2], *(*size[2:], 7)[:dims])
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
        assert len(graphs) == 1, dims


@pytest.mark.uninstrumented
def test_compile_and_export_after_a_load_by_assignment():
    layer = MetricConv2d(4, 4, 3)
    with torch.device("meta"):
        empty = MetricConv2d(4, 4, 3)
    empty.load_state_dict(layer.state_dict(), assign=True)
    x, y = torch.randn(SIZES[0]), torch.randn(SIZES[1])
    compiled = torch.compile(empty, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    program = torch.export.export(empty, (x,), dynamic_shapes=(FREE,))
    assert torch.equal(program.module()(y), layer(y))


@pytest.mark.uninstrumented
def test_torchscript_by_tracing():
    def traced(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function = torch.jit.trace(layer, (image(type(layer), SIZES[0]),))
            file = io.BytesIO()
            torch.jit.save(function, file)
            file.seek(0)
            return torch.jit.load(file)

    for family in (DeformConv2d, MetricConv2d, *LINE_AND_SPACE):
        layer = small(family).eval()
        function = traced(layer)
        for size in SIZES:
            x = image(family, size)
            assert torch.equal(function(x), layer(x))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record.*torch\.export"):
        traced(small(GeodesicConv2d))


@pytest.mark.uninstrumented
def test_torchscript_by_tracing_of_aggregations():
    shapes = torch.tensor([[5, 6], [3, 2]])
    maps, query, points = torch.randn(2, 36, 8), torch.randn(2, 7, 8), torch.rand(2, 7, 2, 2)
    cases = (
        (DCNv3(8, group=2), (torch.randn(2, 5, 6, 8),)),
        (DCNv4(8, group=2), (torch.randn(2, 36, 8),)),
        (MSDeformAttn(8, 2, 2, 3), (query, points, maps, shapes)),
    )
    for layer, arguments in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function = torch.jit.trace(layer.eval(), arguments)
        torch.testing.assert_close(function(*arguments), layer(*arguments), rtol=0, atol=1e-6)


@pytest.mark.uninstrumented
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_package_of_aotinductor(tmp_path):
    layer = stirred(DeformConv2d(4, 4, (1, 2), modulation=True)).eval().requires_grad_(False)
    program = torch.export.export(layer, (torch.randn(SIZES[0]),), dynamic_shapes=(FREE,))
    path = str(tmp_path / "layer.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        package = torch._inductor.aoti_load_package(path)
    for size in SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(package(x), layer(x), rtol=1e-6, atol=1e-6)
