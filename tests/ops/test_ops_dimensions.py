"""Convolutions of signals and volumes, against PyTorch's, those of the plane, and formulas."""

import dataclasses
import math

import pytest
import torch
from convolution_cases import MODES, Case
from torch.nn import functional

from finslerconv import ops
from finslerconv.balls import ball_map
from finslerconv.metrics import Randers

LINE = Case(size=(9,), kernel=(3,))
VOLUME = Case(size=(4, 5, 6), kernel=(2, 3, 1), padding=(1, 1, 0))


@pytest.fixture(params=["reference", "numba"], autouse=True)
def _backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with ops.use_backend(request.param):
        yield


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"),
    [
        ((9,), (3,), 1, 1),
        ((10,), (4,), 1, 2),
        ((7,), (2,), 2, 1),
        ((5, 6, 4), (3, 3, 3), 1, 1),
        ((5, 6, 7), (2, 3, 1), 1, (1, 2, 1)),
        ((5, 4, 6), (3, 1, 2), (2, 1, 3), 1),
    ],
    ids=str,
)
def test_without_displacement_it_is_the_standard_convolution(mode, size, kernel, stride, dilation):
    case = Case(
        size=size, kernel=kernel, stride=stride, dilation=dilation, padding_mode=mode, groups=2,
        padding="same" if stride == 1 else 1, mask=False,
    )  # fmt: skip
    input, offset, _, weight, bias, _ = case.tensors()
    ends = zip(case.geometry.padding_before, case.geometry.padding_after, strict=True)
    pads = [n for both in reversed(list(ends)) for n in both]
    padded = functional.pad(input, pads, mode="constant" if mode == "zeros" else mode)
    convolve = functional.conv1d if len(size) == 1 else functional.conv3d
    expected = convolve(padded, weight, bias, stride, 0, dilation, case.groups)
    output = case(input, 0 * offset, None, weight, bias, None)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("map", ["radial", "affine"])
@pytest.mark.parametrize("case", [LINE, dataclasses.replace(VOLUME, kernel=(3, 3, 3))], ids=str)
def test_at_the_lattice_of_a_ball_it_is_the_standard_convolution(case, map):
    """With ``M = I / r^2`` and the taps themselves, divided by ``r``, as reference points."""
    radius = 1.7
    case = dataclasses.replace(case, kind=map, padding=1, mask=False)
    input, M, _, weight, bias, _ = case.tensors()
    M = (torch.eye(case.dims, dtype=M.dtype) / radius**2).expand(M.shape)
    points = case.geometry.taps(M) / radius
    metric = (ops.metric_conv1d, ops.metric_conv2d, ops.metric_conv3d)[case.dims - 1]
    convolve = functional.conv1d if case.dims == 1 else functional.conv3d
    for omega in (None, torch.zeros(M.shape[:-1], dtype=M.dtype)):
        output = metric(input, M, omega, points, weight, bias, padding=1, map=map)
        expected = convolve(input, weight, bias, padding=1)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)


def test_a_ball_on_a_line_is_an_interval_longer_to_one_side():
    M, omega = torch.tensor([[4.0]]).double(), torch.tensor([-1.0]).double()
    points = torch.tensor([[-1.0], [0.0], [0.5], [1.0]]).double()
    ends = -1 / 3, 1.0  # of sqrt(4) |v| - v <= 1
    radial = ops.metric_positions(M, omega, points)[:, 0]
    torch.testing.assert_close(radial, torch.tensor([ends[0], 0, 0.5, ends[1]]).double())
    affine = ops.metric_positions(M, omega, points, map="affine")[:, 0]
    middle, half = sum(ends) / 2, (ends[1] - ends[0]) / 2
    torch.testing.assert_close(affine, middle + half * points[:, 0])


@pytest.mark.parametrize("map", ["radial", "affine"])
def test_positions_in_space_are_those_of_the_maps(map):
    case = dataclasses.replace(VOLUME, kind=map, dilation=(1, 2, 3), padding=3)
    _, M, omega, *_ = case.tensors()
    found = ops.metric_positions(M, omega, case.points, dilation=case.dilation, map=map)
    metric = Randers(M, omega)
    for point, position in zip(case.points, found.unbind(-2), strict=True):
        inside = ball_map(map)(metric, point.expand(M.shape[:-1]))
        torch.testing.assert_close(position, inside * torch.tensor(case.dilation))
        if map == "radial":
            length = torch.linalg.vector_norm(point).expand(M.shape[:-2])
            torch.testing.assert_close(metric.norm(inside), length, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["offsets", "radial", "affine"])
@pytest.mark.parametrize("mode", MODES)
def test_a_line_is_an_image_of_one_row(kind, mode):
    case = dataclasses.replace(LINE, kind=kind, padding_mode=mode, sample_groups=2, spread=5.0)
    conv = case.convolution()
    expected = ops.reference.forward(conv)
    image = conv.as_image()
    torch.testing.assert_close(
        ops.reference.forward(image).squeeze(2), expected, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(case(*case.tensors()), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_samples_within_layers_make_a_volume_a_stack_of_images(mode):
    case = Case(
        size=(3, 6, 5), kernel=(1, 3, 2), padding="same", padding_mode=mode, groups=2,
        sample_groups=2, batch=2,
    )  # fmt: skip
    input, offset, _, weight, bias, mask = case.tensors()
    taps = offset.unflatten(1, (-1, 3))
    taps[:, :, 0] = 0
    output = case(input, taps.flatten(1, 2), None, weight, bias, mask)
    for layer in range(3):
        expected = ops.deform_conv2d(
            input[:, :, layer], taps[:, :, 1:, layer].flatten(1, 2), weight[:, :, 0], bias,
            padding="same", mask=mask[:, :, layer], padding_mode=mode,
        )  # fmt: skip
        torch.testing.assert_close(output[:, :, layer], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("omega", [False, True])
@pytest.mark.parametrize("kind", ["radial", "affine"])
@pytest.mark.parametrize("case", [LINE, VOLUME], ids=str)
def test_in_the_words_of_onnx_it_is_the_same(case, kind, omega):
    """Volumes and other paddings than zeros, for which there is no single operator."""
    case = dataclasses.replace(
        case, kind=kind, omega=omega, sample_groups=2, dilation=2, padding_mode="replicate"
    )
    conv = case.convolution()
    expected = ops.reference.forward(conv)
    torch.testing.assert_close(ops.for_onnx(conv), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, -3e9])
@pytest.mark.parametrize("case", [LINE, VOLUME], ids=str)
def test_samples_nowhere_are_zero(case, value):
    for axis in range(case.dims):
        tensors = case.tensors()
        offset, mask = tensors[1], tensors[5]
        place = (0, case.dims + axis, *(2,) * case.dims)
        offset[place] = value
        backend = ops.current_backend()
        found = case.results(backend, tensors)
        offset[place] = 0
        mask[(0, 1, *place[2:])] = 0
        expected = case.results(backend, tensors)[0]
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)
        assert all(t.isfinite().all() for t in found)
        assert found[2][place] == 0


@pytest.mark.parametrize("kind", ["offsets", "affine"])
@pytest.mark.parametrize("case", [LINE, VOLUME], ids=str)
def test_empty_batches(case, kind):
    case = dataclasses.replace(case, kind=kind, batch=0)
    found = case.results(ops.current_backend())
    assert found[0].shape == (0, 6, *case.out_size)
    assert found[-3].abs().sum() == 0  # the weight's gradient


def test_keeps_the_layout_of_a_volume():
    case = dataclasses.replace(VOLUME, channels=8, channels_last=True)
    input, *rest = case.tensors()
    output = case(input.requires_grad_(), *rest)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    if ops.current_backend() == "numba":
        (gradient,) = torch.autograd.grad(output.sum(), input)
        assert gradient.is_contiguous(memory_format=torch.channels_last_3d)
    plain = case(input.detach().contiguous(), *rest)
    torch.testing.assert_close(output.detach(), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", [LINE, VOLUME], ids=str)
def test_positions_keep_their_precision_in_low_ones(case, dtype):
    tensors = case.tensors()
    low = [None if t is None else t.to(dtype) for t in tensors]
    low[1] = tensors[1].float()
    output = case(*low)
    exact = case(*(None if t is None else t.double() for t in low))
    assert output.dtype == dtype
    error = (output.double() - exact).abs().amax() / exact.abs().amax()
    assert error < 4 * torch.finfo(dtype).eps


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        (LINE, {"input": lambda t: t[0]}, r"input: expected shape \(B, C, L\), got \(4, 9\)"),
        (VOLUME, {"input": lambda t: t[0]}, r"input: expected shape \(B, C, D, H, W\)"),
        (LINE, {"weight": lambda t: t[..., None]}, r"weight: expected shape \(O, C // groups, k\)"),
        (VOLUME, {"weight": lambda t: t[..., 0]}, r"weight: .* \(O, C // groups, kd, kh, kw\)"),
        (LINE, {"offset": lambda t: t[:, :-1]}, r"offset: expected shape \(2, G \* 3, 9\)"),
        (VOLUME, {"offset": lambda t: t[:, :-1]}, r"offset: expected shape \(2, G \* 18, 5"),
        (LINE, {"stride": (1, 1)}, r"stride: expected one integer of at least 1, got \(1, 1\)"),
        (VOLUME, {"dilation": (1, 1)}, "dilation: expected one or three integers of at least 1"),
        (VOLUME, {"dilation": 9}, "an image of 4 x 5 x 6 is smaller than the kernel of 2 x 3 x 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(case, changes, words):
    input, offset, _, weight, bias, mask = case.tensors()
    arguments = {
        "input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask,
        "padding": case.padding,
    }  # fmt: skip
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    deform = ops.deform_conv1d if case.dims == 1 else ops.deform_conv3d
    with pytest.raises(ValueError, match=words):
        deform(**arguments)


@pytest.mark.unchecked
def test_what_does_not_fit_a_metric_is_named():
    case = dataclasses.replace(VOLUME, kind="radial")
    input, M, omega, weight, bias, mask = case.tensors()
    right = {
        "input": input, "M": M, "omega": omega, "points": case.points, "weight": weight,
        "bias": bias, "mask": mask, "padding": case.padding,
    }  # fmt: skip
    for changes, words in [
        ({"M": M[..., :2]}, r"M: expected shape \(2, 5, 5, 6, 3, 3\)"),
        ({"omega": omega[..., :2]}, r"omega: expected shape \(2, 5, 5, 6, 3\)"),
        ({"points": case.points[1:]}, r"points: expected shape \(6, 3\), .* kernel of 2 x 3 x 1"),
        ({"mask": mask[:, 1:]}, r"mask: expected shape \(2, 6, 5, 5, 6\)"),
        ({"map": "conformal"}, "map: expected 'radial' or 'affine'"),
    ]:
        with pytest.raises(ValueError, match=words):
            ops.metric_conv3d(**right | changes)
