"""The reference backend against loops, PyTorch's convolution, torchvision, finite differences."""

import dataclasses
import math

import pytest
import torch
from convolution_cases import MODES, Case, cases, slow_convolution
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from finslerconv import ops

pytestmark = pytest.mark.usefixtures("reference")

SHAPES = [
    Case(),
    Case(groups=2, sample_groups=4, out_channels=4),
    Case(groups=4, sample_groups=2, out_channels=8, stride=2),
    Case(stride=(2, 1), padding=(0, 2), dilation=(1, 2), mask=False),
    Case(kernel=(2, 5), padding=2, bias=False),
    Case(spread=8.0),
    Case(batch=0),
    Case(size=(3, 3), padding=0),
]


def absolute_positions(case, displacements):
    centres = case.geometry.centres(case.out_size, displacements)
    return torch.stack([displacements[:, :, :, i] + c for i, c in enumerate(centres)], 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
@settings(max_examples=8)
@given(data=st.data())
def test_samples_are_where_the_loops_say(dims, data):
    case = data.draw(cases(dtypes=(torch.float64,), most=4, dims=dims))
    case = dataclasses.replace(case, kind="offsets")
    input, offset, _, weight, bias, mask = case.tensors()
    taps, groups = case.geometry.n_taps, case.sample_groups
    shape = (case.batch, groups, taps, -1, *case.out_size)
    at = (..., *(None,) * dims)
    displacements = offset.reshape(shape) + case.geometry.taps(offset)[at]
    expected = slow_convolution(
        input,
        absolute_positions(case, displacements),
        weight,
        bias,
        None if mask is None else mask.reshape(shape).squeeze(3),
        case.groups,
        case.padding_mode,
    )
    output = case(input, offset, None, weight, bias, mask)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@settings(max_examples=25)
@given(case=cases(dtypes=(torch.float64,), most=8))
def test_metric_convolution_is_deformable_convolution_at_the_metric_positions(case):
    case = dataclasses.replace(case, kind="radial" if case.kind == "offsets" else case.kind)
    input, M, omega, weight, bias, mask = case.tensors()
    positions = ops.metric_positions(
        M, omega, case.points, dilation=case.geometry.dilation, map=case.kind
    )
    displacements = positions.movedim((-2, -1), (2, 3))
    offset = (displacements - case.geometry.taps(M)[..., None, None]).flatten(1, 3)
    as_offsets = dataclasses.replace(case, kind="offsets")
    torch.testing.assert_close(
        case(input, M, omega, weight, bias, mask),
        as_offsets(input, offset, None, weight, bias, mask),
        rtol=1e-11,
        atol=1e-11,
    )


@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchvision(case, dtype, torchvision_deform_conv2d):
    case = dataclasses.replace(case, dtype=dtype)
    tensors = case.tensors()
    if case.mask is False:
        tensors[5] = None
    live = [t if t is None else t.requires_grad_() for t in tensors]
    input, offset, _, weight, bias, mask = live
    expected = torchvision_deform_conv2d(
        input, offset, weight, bias, *(case.stride, case.padding, case.dilation), mask
    )
    direction = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
    wanted = [t for t in live if t is not None]
    gradients = torch.autograd.grad(expected, wanted, direction)
    output = case(*live)
    found = torch.autograd.grad(output, wanted, direction)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for got, wished in zip((output, *found), (expected, *gradients), strict=True):
        scale = wished.abs().max().clamp(min=1).item() if wished.numel() else 1.0
        torch.testing.assert_close(got, wished, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2)], ids=str)
def test_without_displacement_it_is_the_standard_convolution(mode, kernel):
    case = Case(kernel=kernel, padding="same", dilation=(1, 2), padding_mode=mode, mask=False)
    input, offset, _, weight, bias, _ = case.tensors()
    before, after = case.geometry.padding_before, case.geometry.padding_after
    padded = functional.pad(
        input,
        (before[1], after[1], before[0], after[0]),
        mode="constant" if mode == "zeros" else mode,
    )
    expected = functional.conv2d(padded, weight, bias, dilation=case.dilation)
    torch.testing.assert_close(
        case(input, 0 * offset, None, weight, bias, None), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["offsets", "radial", "affine"])
def test_derivatives_of_first_and_second_order(kind):
    case = Case(
        kind=kind, batch=1, channels=2, size=(3, 2), out_channels=2, kernel=(2, 1), padding=0
    )
    live = [t if t is None else t.requires_grad_() for t in case.tensors()]
    wanted = [t for t in live if t is not None]

    def function(*tensors):
        given = iter(tensors)
        return case(*(None if t is None else next(given) for t in live))

    assert torch.autograd.gradcheck(function, wanted)
    assert torch.autograd.gradgradcheck(function, wanted, fast_mode=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e9, 2.0**31])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_samples_nowhere_are_zero(value, backend):
    with ops.use_backend(backend):
        case = Case()
        input, offset, _, weight, bias, mask = case.tensors()
        offset = offset.clone()
        offset[0, 4, 2, 3] = value
        found = case.results(backend, [input, offset, None, weight, bias, mask])
        silent = mask.clone()
        silent[0, 2, 2, 3] = 0
        offset[0, 4, 2, 3] = 0
        expected = case.results(backend, [input, offset, None, weight, bias, silent])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    for got in found:
        assert got.isfinite().all()
    assert found[2][0, 4, 2, 3] == 0
    assert found[5][0, 2, 2, 3] == 0


def test_views_and_layouts_make_no_difference():
    case = Case(size=(6, 9))
    tensors = case.tensors()
    expected = case(*tensors)
    strided = [
        None
        if t is None
        else torch.stack((t, t), -1)[..., 0].transpose(-1, -2).contiguous().mT
        if t.ndim > 1
        else t
        for t in tensors
    ]
    torch.testing.assert_close(case(*strided), expected, rtol=1e-14, atol=1e-14)
    strided[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    output = case(*strided)
    torch.testing.assert_close(output, expected, rtol=1e-14, atol=1e-14)
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.unchecked
class TestErrors:
    """What does not fit is named."""

    @staticmethod
    def call(**changes):
        input, offset, _, weight, bias, mask = Case().tensors()
        arguments = {
            "input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask,
            "padding": 1,
        }  # fmt: skip
        arguments.update({k: v(arguments[k]) if callable(v) else v for k, v in changes.items()})
        return ops.deform_conv2d(**arguments)

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"input": lambda t: t[0]}, ValueError, r"input: expected shape \(B, C, H, W\)"),
            ({"offset": lambda t: t[:, :-1]}, ValueError, "offset: expected shape"),
            ({"offset": lambda t: t[..., 1:]}, ValueError, "offset: expected shape"),
            ({"mask": lambda t: t[:, :-1]}, ValueError, "mask: expected shape"),
            ({"mask": lambda t: t.repeat(1, 2, 1, 1)}, ValueError, "mask: expected 9 channels"),
            ({"weight": lambda t: t[:, :3]}, ValueError, "weight: expected a number of channels"),
            ({"weight": lambda t: t[:5, :2]}, ValueError, "divisible by the 2 groups"),
            ({"weight": lambda t: t.float()}, TypeError, "weight: expected the input's dtype"),
            ({"bias": lambda t: t[:-1]}, ValueError, "bias: expected shape"),
            ({"input": lambda t: t.long()}, TypeError, "input: expected a floating dtype"),
            ({"padding_mode": "mirror"}, ValueError, "padding_mode: expected one of"),
            ({"stride": 0}, ValueError, "stride: expected one or two integers of at least 1"),
            ({"padding": "half"}, ValueError, "padding: expected integers, 'same' or 'valid'"),
            ({"padding": "same", "stride": 2}, ValueError, "needs stride 1"),
            ({"dilation": 9}, ValueError, "smaller than the kernel"),
        ],
    )
    def test_of_the_deformable_convolution(self, changes, error, words):
        with pytest.raises(error, match=words):
            self.call(**changes)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"M": lambda t: t[..., :1]}, "M: expected shape"),
            ({"omega": lambda t: t[:, :, 1:]}, "omega: expected shape"),
            ({"omega": lambda t: t.repeat(1, 2, 1, 1, 1)}, "omega: expected the 1 groups"),
            ({"points": lambda t: t[1:]}, r"points: expected shape \(9, 2\)"),
            ({"map": "conformal"}, "map: expected 'radial' or 'affine'"),
            ({"mask": lambda t: t[:, 1:]}, "mask: expected shape"),
        ],
    )
    def test_of_the_metric_convolution(self, changes, words):
        case = Case(kind="radial")
        names = ("input", "M", "omega", "weight", "bias", "mask")
        arguments = dict(zip(names, case.tensors(), strict=True))
        arguments |= {"points": case.points, "padding": 1, "map": "radial"}
        for name, change in changes.items():
            arguments[name] = change(arguments[name]) if callable(change) else change
        with pytest.raises(ValueError, match=words):
            ops.metric_conv2d(**arguments)

    @pytest.mark.parametrize(
        ("operator", "name"),
        [
            ("deform_conv2d", name) for name in ("input", "offset", "weight", "bias", "mask")
        ] + [
            ("metric_conv2d", name)
            for name in ("input", "M", "omega", "points", "weight", "bias", "mask")
        ] + [("metric_positions", name) for name in ("M", "omega", "points")],
    )  # fmt: skip
    def test_of_each_tensor_by_itself(self, operator, name):
        case = Case(kind="offsets" if operator == "deform_conv2d" else "radial")
        names = ("input", "M", "omega", "weight", "bias", "mask")
        if operator == "deform_conv2d":
            names = ("input", "offset", "omega", "weight", "bias", "mask")
        given = dict(zip(names, case.tensors(), strict=True)) | {"points": case.points}
        if operator == "deform_conv2d":
            del given["omega"], given["points"]
        if operator == "metric_positions":
            given = {key: given[key] for key in ("M", "omega", "points")}
        else:
            given["padding"] = 1
        function, tensor = getattr(ops, operator), given[name]
        assert function(**given).device.type == "cpu"
        with pytest.raises(TypeError, match=f"{name}: expected a Tensor, got ndarray"):
            function(**given | {name: tensor.numpy()})
        with pytest.raises(TypeError, match=f"{name}: expected a floating dtype, got torch.int64"):
            function(**given | {name: tensor.long()})
        # With one of its arguments on the meta device a custom operator would return no data.
        expected = "expected device cpu, got meta|expected device meta, got cpu"
        with pytest.raises(ValueError, match=expected) as caught:
            function(**given | {name: tensor.to("meta")})
        first = next(iter(given))
        assert str(caught.value).startswith(name) or name == first
        if name in ("omega", "bias", "mask"):
            function(**given | {name: None})
        else:
            with pytest.raises(TypeError, match=f"{name}: expected a Tensor, got NoneType"):
                function(**given | {name: None})

    def test_of_the_positions_of_a_metric(self):
        M, omega, points = torch.eye(2).expand(3, 2, 2), torch.zeros(3, 2), torch.zeros(9, 2)
        for arguments, words in [
            ((M[..., 0], omega, points), r"M: expected shape \(\.\.\., 2, 2\), got \(3, 2\)"),
            ((M, omega[:2], points), r"omega: expected shape \(3, 2\), got \(2, 2\)"),
            ((M, omega, points[0]), r"points: expected shape \(taps, 2\), got \(2,\)"),
        ]:
            with pytest.raises(ValueError, match=words):
                ops.metric_positions(*arguments)
        with pytest.raises(ValueError, match="map: expected 'radial' or 'affine'"):
            ops.metric_positions(M, omega, points, map="conformal")
        with pytest.raises(ValueError, match="dilation: expected one or two integers"):
            ops.metric_positions(M, omega, points, dilation=0)
