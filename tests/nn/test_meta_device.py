"""Layers built without memory, on the meta device: what they compute once they have values."""

import copy
import io
import pickle

import pytest
import torch
from every_layer import LAYERS
from torch import nn

from finslerconv.metrics import Randers
from finslerconv.nn import (
    FreeProfile,
    GeodesicConv2d,
    MetricConv2d,
    MetricDensity,
    PowerProfile,
    SeparableDensity,
    TensorDensity,
    TrainableRanders,
    convert,
    convert_back,
)

every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ordinary_and_empty(name):
    """Return a layer with values, and one of its kind that was built on the meta device."""
    layer = LAYERS[name]()
    with torch.device("meta"):
        empty = LAYERS[name]()
    assert {t.device.type for t in (*empty.parameters(), *empty.buffers())} == {"meta"}
    assert empty.state_dict().keys() == layer.state_dict().keys()
    return layer, empty


def assert_same(layer, other):
    """Outputs, and the gradients of the input and of all parameters, are equal."""
    x = torch.randn(2, 4, 7, 8)
    results = []
    for each in (layer, other):
        live = x.clone().requires_grad_()
        output = each(live)
        wanted = [live, *each.parameters()]
        results.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
        with torch.no_grad():
            assert torch.equal(each(x), output)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@every_layer
def test_loaded_by_assignment(name):
    layer, empty = ordinary_and_empty(name)
    empty.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    for each in (copy.deepcopy(empty), pickle.loads(pickle.dumps(empty)), empty):
        assert_same(layer, each)


@every_layer
def test_loaded_by_assignment_and_moved(name):
    layer, empty = ordinary_and_empty(name)
    empty.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    assert_same(layer, empty.to("cpu"))


@every_layer
def test_given_memory_and_loaded(name):
    layer, empty = ordinary_and_empty(name)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert_same(layer, empty)


@every_layer
def test_as_the_skeleton_of_a_functional_call(name):
    layer, empty = ordinary_and_empty(name)
    x = torch.randn(2, 4, 7, 8)
    state = dict(layer.state_dict())
    assert torch.equal(torch.func.functional_call(empty, state, x), layer(x))


@every_layer
def test_it_is_printed(name):
    _, empty = ordinary_and_empty(name)
    assert type(empty).__name__ in repr(empty)


@pytest.mark.parametrize("family", [MetricConv2d, GeodesicConv2d])
def test_weights_of_another_dtype_bring_exact_reference_points(family):
    layer = family(3, 4, 5, reference="concentric").double()
    with torch.device("meta"):
        empty = family(3, 4, 5, reference="concentric")
    empty.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    assert torch.equal(empty(x), layer(x))
    assert torch.equal(empty.positions(x), layer.positions(x))


def test_a_first_pass_in_inference_mode_leaves_the_layer_trainable():
    layer = MetricConv2d(3, 4, 3)
    with torch.device("meta"):
        empty = MetricConv2d(3, 4, 3)
    empty.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        empty(x)
    empty(x).sum().backward()
    assert empty.weight.grad.abs().max() > 0


@pytest.mark.parametrize("to", ["metric", "geodesic", "deform", "shifted", "weighted"])
@pytest.mark.parametrize("within", [True, False], ids=["within the context", "after it"])
def test_a_model_is_converted_before_it_has_values(to, within):
    def make():
        shared = nn.Conv2d(4, 4, 3, padding=1)
        other = nn.Conv2d(4, 4, 3, padding=1)
        other.weight = shared.weight
        return nn.Sequential(shared, nn.ReLU(), other)

    model = convert(make(), to).model
    with torch.device("meta"):
        empty = make()
        if within:
            empty, report = convert(empty, to)
    if not within:
        empty, report = convert(empty, to)
    empty.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(2, 4, 7, 8)
    assert torch.equal(empty(x), model(x))
    for each in report.converted:
        undivided = [note for note in each.notes if "no weight is divided" in note]
        assert len(undivided) == (to == "weighted")


def test_a_layer_without_values_is_not_taken_for_a_standard_convolution():
    with torch.device("meta"):
        layer = MetricConv2d(2, 2, 3)
    with pytest.raises(ValueError, match=r"head\.conv\.weight is on the meta device"):
        convert_back(layer)


def test_one_profile_on_the_meta_device_serves_several_densities():
    with torch.device("meta"):
        profile = FreeProfile([1.0, 0.5], 2.0, trainable=True)
        densities = [MetricDensity((k, k), TrainableRanders(torch.eye(2)), profile) for k in (3, 5)]
    assert [density().shape for density in densities] == [(3, 3), (5, 5)]


def test_values_that_are_there_are_still_checked():
    with torch.device("meta"):
        with pytest.raises(ValueError, match="finite"):
            SeparableDensity((3, 3), [float("nan")])
        # Those of a tensor on the meta device are not there.
        TensorDensity(torch.ones(3, 3), positive=True)
        Randers(torch.eye(2), torch.zeros(2))
        MetricDensity((3, 3), Randers(torch.eye(2), torch.zeros(2)), PowerProfile(1.0))
    with pytest.raises(ValueError, match="omega: expected"):
        Randers(torch.eye(2), torch.ones(2))


def test_a_checkpoint_on_disk_mapped_into_memory(tmp_path):
    layer = MetricConv2d(3, 4, 3)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    with torch.device("meta"):
        empty = MetricConv2d(3, 4, 3)
    empty.load_state_dict(torch.load(tmp_path / "layer.pt", mmap=True), assign=True)
    x = torch.randn(1, 3, 9, 9)
    assert torch.equal(empty(x), layer(x))
    buffer = io.BytesIO()
    torch.save(empty, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), layer(x))
