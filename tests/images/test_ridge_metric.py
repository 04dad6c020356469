"""The metric of ridges against the closed forms of waves, lines and spots."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CENTRE, grid, noise, ramp, unit

from finslerconv import _filters
from finslerconv.images import gradient_metric, ridge_metric, structure_tensor_metric
from finslerconv.metrics import Riemannian

ANGLES = st.floats(-math.pi, math.pi)


def wave(angle, wavelength=12.0):
    """A wave that is darkest at the centre, and varies along (sin angle, cos angle)."""
    return -torch.cos(2 * math.pi / wavelength * ramp(angle))


@settings(max_examples=10)
@given(angle=ANGLES, contrast=st.floats(0.3, 1.0), speed=st.floats(1, 30), ratio=st.floats(1, 9))
def test_wave(angle, contrast, speed, ratio):
    """Smoothing multiplies a wave of frequency k by exp(-(s k)^2 / 2), a derivative by k.

    So the strength is that of the centre times the wave, where it is dark, whichever scale wins.
    """
    options = {"contrast": contrast, "speed": speed, "anisotropy": ratio, "scale": 0.3}
    metric = ridge_metric(wave(angle), scales=(1.5, 2.0), padding="replicate", **options)
    n, t = unit(angle), unit(angle + math.pi / 2)
    # Far from the border, over one wave.
    for step in range(-6, 7):
        row, column = (round(c) for c in (step * n).tolist())
        phase = 2 * math.pi / 12 * float(n @ torch.tensor([row, column], dtype=torch.float64))
        strength = max(math.cos(phase), 0.0)
        v = -math.expm1(-((strength / contrast) ** 2))
        along = 0.3 / (1 + (speed - 1) * v) ** 2
        across = along * (1 + (ratio - 1) * v) ** 2
        M = metric.M[0, CENTRE[0] + row, CENTRE[1] + column]
        # The filters end at four deviations, where a Gaussian has fallen to exp(-8).
        tolerance = 3 * math.exp(-8) * max(along, across)
        torch.testing.assert_close(M @ t, along * t, rtol=0, atol=tolerance)
        torch.testing.assert_close(M @ n, across * n, rtol=0, atol=tolerance)


def test_second_derivatives_of_polynomials_are_exact():
    rows, columns = grid()
    picture = (rows**2 - 3 * rows * columns + 0.5 * columns**2 + rows - 7)[None, None]
    hessian = _filters.gaussian_hessian(picture, 1.3)
    expected = torch.tensor([[2.0, -3.0], [-3.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(hessian, expected.expand_as(hessian), rtol=1e-11, atol=1e-11)


def test_the_scale_of_a_line_is_found():
    """The normalised response of a Gaussian profile of deviation t is largest at sqrt(2) t."""
    rows, _ = grid()

    def response(t, s):
        picture = -torch.exp(-((rows / t) ** 2) / 2)[None, None]
        wide = _filters.continued(picture, _filters.gaussian_radius(s), "replicate")
        return float(s**2 * _filters.gaussian_hessian(wide, s)[0, 0, *CENTRE, 0, 0])

    scales = [1.0, math.sqrt(2), 2.0, 2 * math.sqrt(2), 4.0]
    assert [max(scales, key=lambda s: response(t, s)) for t in (1.0, 2.0)] == [scales[1], scales[3]]


def test_dark_and_bright():
    picture = noise(3)
    dark, bright = ridge_metric(picture), ridge_metric(-picture, ridges="bright")
    torch.testing.assert_close(dark.M, bright.M)
    # A dark line is no bright ridge.
    rows, _ = grid()
    line = 1 - torch.exp(-((rows / 2) ** 2))[None, None]
    metric = ridge_metric(line, ridges="bright", scales=(2.0,), contrast=1.0, scale=0.5)
    torch.testing.assert_close(
        metric.M[0, CENTRE[0]], (0.5 * torch.eye(2)).expand(41, 2, 2).double()
    )


def test_round_spots_and_saddles_are_no_ridges():
    rows, columns = grid()
    spot = 1 - torch.exp(-(rows**2 + columns**2) / 18)
    line = 1 - torch.exp(-((rows - 15) ** 2) / 8)
    saddle = torch.exp(-(rows**2 + columns**2) / 200) * rows * columns / 100
    for picture in (spot, saddle):
        metric = ridge_metric((picture * line)[None, None], scales=(2.0,), contrast=1.0)
        torch.testing.assert_close(metric.M[0, *CENTRE], torch.eye(2).double(), rtol=0, atol=1e-3)


def test_units_and_channels_do_not_count():
    picture = noise()
    expected = ridge_metric(picture).M
    torch.testing.assert_close(ridge_metric(1e4 * picture + 3).M, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ridge_metric(picture.expand(-1, 3, -1, -1)).M, expected)


def test_turned_pictures_have_turned_metrics():
    picture = noise()
    turned = ridge_metric(picture.transpose(-1, -2).contiguous()).M
    expected = ridge_metric(picture).M.transpose(1, 2).flip((-1, -2))
    torch.testing.assert_close(turned, expected, rtol=1e-8, atol=1e-9)


def test_each_picture_of_a_batch_is_alone():
    picture = noise() * torch.tensor([1.0, 50.0]).double()[:, None, None, None]
    whole = ridge_metric(picture)
    assert whole.batch_shape == (2, 49, 41)
    for i in range(2):
        torch.testing.assert_close(whole.M[i], ridge_metric(picture[i : i + 1]).M[0])
    assert ridge_metric(picture[:0]).batch_shape == (0, 49, 41)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 3.7])
def test_flat_pictures_are_euclidean(value, dtype):
    picture = torch.full((1, 2, 9, 8), value, dtype=dtype, requires_grad=True)
    metric = ridge_metric(picture, scale=0.25)
    assert metric.M.dtype == dtype
    torch.testing.assert_close(metric.M, (0.25 * torch.eye(2, dtype=dtype)).expand(1, 9, 8, 2, 2))
    (gradient,) = torch.autograd.grad(metric.M.sum(), picture)
    assert torch.isfinite(gradient).all()


@pytest.mark.slow
def test_gradients():
    picture = noise(2, size=(7, 6))[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ridge_metric(x, scales=(0.8, 1.2)).M, picture)


@pytest.mark.parametrize("function", [gradient_metric, structure_tensor_metric, ridge_metric])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_pictures(function, dtype):
    picture = noise().numpy().astype(dtype)
    expected = function(torch.from_numpy(picture.copy()))
    picture.flags.writeable = False
    metric = function(picture)
    assert isinstance(metric.M, np.ndarray)
    assert metric.M.dtype == dtype
    for entry, tensor in zip(metric.randers_form(), expected.randers_form(), strict=True):
        if entry is not None:
            np.testing.assert_array_equal(entry, tensor.numpy())
    # Views that are not contiguous, and numbers of another byte order.
    other = np.asarray(picture[..., ::-1], picture.dtype.newbyteorder())
    np.testing.assert_array_equal(function(other).M, function(picture[..., ::-1].copy()).M)


def test_single_precision_is_positive():
    metric = ridge_metric(noise(dtype=torch.float32), speed=100.0, anisotropy=100.0)
    assert isinstance(metric, Riemannian)
    metric.validate()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": np.zeros((1, 1, 4, 4), np.uint8)}, TypeError, "float32 or float64, got uint8"),
        ({"image": np.zeros((4, 4))}, ValueError, r"image\[None, None\]"),
        ({"ridges": "grey"}, ValueError, "ridges: expected 'dark' or 'bright', got 'grey'"),
        ({"scales": ()}, ValueError, "scales: expected positive finite numbers.*got none"),
        ({"scales": (1.0, 0.0)}, ValueError, "scales: .*got 0.0 at index 1"),
        ({"contrast": 0.0}, ValueError, "contrast: expected a number above 0"),
        ({"speed": 0.5}, ValueError, "speed: expected a number of at least 1, got 0.5"),
        ({"anisotropy": 0.0}, ValueError, "anisotropy: expected a number of at least 1"),
        ({"anisotropy": 1e9}, ValueError, r"anisotropy: expected anisotropy\^2 <="),
        ({"scale": -1.0}, ValueError, "scale: expected a number above 0"),
        ({"padding": "zeros"}, ValueError, "padding: expected"),
    ],
)
def test_errors(change, error, message):
    arguments = {"image": noise(), **change}
    with pytest.raises(error, match=message):
        ridge_metric(arguments.pop("image"), **arguments)
