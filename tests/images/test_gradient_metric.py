import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CENTRE, disc, noise, ramp, sinusoid, unit

from finslerconv.balls import Ellipse
from finslerconv.images import gradient_metric
from finslerconv.metrics import Randers

ANGLES = st.floats(-math.pi, math.pi)
METRICS = {
    "gaussian": lambda image, **kw: gradient_metric(image, **kw),
    "sobel": lambda image, **kw: gradient_metric(image, derivative="sobel", sigma=0.0, **kw),
}


@pytest.mark.parametrize("derivative", METRICS)
@settings(max_examples=12)
@given(angle=ANGLES, stretch=st.sampled_from(["along", "across"]))
def test_ramp_has_the_stated_eigenvectors_and_eigenvalues(derivative, angle, stretch):
    """A ramp's gradient is the same everywhere inside, and (replicated borders) nowhere larger."""
    metric = METRICS[derivative](
        ramp(angle), stretch=stretch, anisotropy=4.0, scale=0.2, padding="replicate"
    )
    at = metric[0, CENTRE[0], CENTRE[1]]
    n, t = unit(angle), unit(angle + math.pi / 2)
    long, short = (n, t) if stretch == "along" else (t, n)
    torch.testing.assert_close(at.M @ long, 0.2 / 5 * long, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(at.M @ short, 0.2 * 5 * short, rtol=1e-9, atol=1e-11)


@settings(max_examples=12)
@given(angle=ANGLES, stretch=st.sampled_from(["along", "across"]), tau=st.floats(-0.99, 0.99))
def test_drift_points_where_it_is_said_to(angle, stretch, tau):
    n = unit(angle)
    left = torch.stack((-n[1], n[0]))  # right, (0, 1), turns to up, (-1, 0)
    for omega, direction in (("along", n), ("across", left)):
        metric = gradient_metric(
            ramp(angle), stretch=stretch, tau=tau, omega=omega, padding="replicate"
        )
        drift = metric[0, CENTRE[0], CENTRE[1]].omega
        assert float(drift @ direction) == pytest.approx(
            math.copysign(float(drift.norm()), tau), abs=1e-12
        )


def test_ball_of_positive_tau_shifts_downhill():
    metric = gradient_metric(ramp(0.0), tau=0.5)[0, CENTRE[0], CENTRE[1]]
    assert metric.zermelo().W[1] < 0


@settings(max_examples=12)
@given(
    seed=st.integers(0, 100),
    tau=st.floats(-0.999, 0.999),
    omega=st.sampled_from(["along", "across"]),
    stretch=st.sampled_from(["along", "across"]),
    channels=st.sampled_from([1, 3]),
)
def test_norm_of_omega_is_tau_and_the_determinant_scale_squared(
    seed, tau, omega, stretch, channels
):
    metric = gradient_metric(
        noise(channels, seed), tau=tau, omega=omega, stretch=stretch, scale=0.3, padding="replicate"
    )
    metric.validate()
    torch.testing.assert_close(
        metric.omega_norm(), torch.full_like(metric.omega_norm(), abs(tau)), rtol=0, atol=1e-10
    )
    determinant = torch.linalg.det(metric.M)
    torch.testing.assert_close(determinant, torch.full_like(determinant, 0.09), rtol=1e-10, atol=0)


@pytest.mark.slow
@settings(max_examples=12)
@given(
    seed=st.integers(0, 100),
    tau=st.floats(-0.95, 0.95),
    omega=st.sampled_from(["along", "across"]),
    stretch=st.sampled_from(["along", "across"]),
    channels=st.sampled_from([1, 3]),
)
def test_balls_have_the_stated_half_axes_and_areas(seed, tau, omega, stretch, channels):
    """As ellipses around their centres, whatever the drift; pictures without a flat pixel."""
    image = noise(channels, seed, size=(11, 12))
    options = {"stretch": stretch, "anisotropy": 9.0, "scale": 0.3, "padding": "replicate"}
    disc = gradient_metric(image, **options)
    ellipse = Ellipse.of(gradient_metric(image, tau=tau, omega=omega, **options))
    u = (torch.linalg.eigvalsh(disc.M)[..., 1] / 0.3).clamp(min=1)
    r, lam = 0.3**-0.5, 1 - tau**2
    long, short = r * u.sqrt(), r / u.sqrt()
    if omega == stretch:  # the drift is in the stretched direction
        long, short = long / lam, short / lam**0.5
        largest_ratio = 10 / lam**0.5
    else:
        long, short = long / lam**0.5, short / lam
        largest_ratio = 10 * lam**0.5
    expected = torch.stack((torch.maximum(long, short), torch.minimum(long, short)), dim=-1)
    torch.testing.assert_close(ellipse.axes, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        ellipse.area, torch.full_like(ellipse.area, math.pi * r**2 / lam**1.5), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(
        ellipse.centre.norm(dim=-1), abs(tau) * (long if omega == stretch else short), rtol=1e-6,
        atol=1e-12,
    )  # fmt: skip
    ratio = (long / short).amax(dim=(1, 2))
    torch.testing.assert_close(ratio, torch.full_like(ratio, largest_ratio), rtol=1e-6, atol=0)


def test_gradient_of_a_disc_is_radial():
    metric = gradient_metric(disc(), tau=0.5, sigma=0.5)
    for angle in (0.0, 0.5, math.pi / 2, 2.0, -2.5):
        at = metric[
            0, CENTRE[0] + round(12 * math.sin(angle)), CENTRE[1] + round(12 * math.cos(angle))
        ]
        offset = torch.tensor(
            [round(12 * math.sin(angle)), round(12 * math.cos(angle))], dtype=torch.float64
        )
        inwards = -offset / offset.norm()
        assert float(at.omega @ inwards / at.omega.norm()) > 0.999  # bright inside: uphill


def test_no_drift_where_the_gradient_is_zero():
    """Mirrored at its border, a picture has no gradient at its corners."""
    metric = gradient_metric(noise(), tau=0.5)
    assert (metric.omega[:, 0, 0] == 0).all()


def test_stretch_follows_the_relative_gradient():
    """On sin x the derivative is proportional to cos x, whatever the Gaussian."""
    wavelength = 12.0
    metric = gradient_metric(sinusoid(0.0, wavelength), anisotropy=9.0, scale=1.0, sigma=1.5)
    columns = torch.arange(10) + CENTRE[1] - 5
    across = metric.M[0, CENTRE[0], columns, 1, 1]
    phase = 2 * math.pi / wavelength * (columns - CENTRE[1]).double()
    torch.testing.assert_close(across, 1 + 9 * phase.cos().abs(), rtol=1e-9, atol=0)


def rotated(field, turns):
    """The field of the picture turned by quarter turns: values move, vectors turn with them."""
    angle = turns * math.pi / 2
    # torch.rot90 turns from the first axis towards the second.
    cosine, sine = round(math.cos(angle)), round(math.sin(angle))
    R = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    M = torch.rot90(field.M, turns, (1, 2))
    omega = torch.rot90(field.omega, turns, (1, 2))
    return R @ M @ R.T, omega @ R.T


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("omega", ["along", "across"])
@pytest.mark.parametrize("derivative", METRICS)
@pytest.mark.parametrize("channels", [1, 3])
def test_turns_with_the_picture(turns, omega, derivative, channels):
    image = noise(channels)
    M, drift = rotated(METRICS[derivative](image, tau=0.6, omega=omega), turns)
    turned = METRICS[derivative](torch.rot90(image, turns, (2, 3)), tau=0.6, omega=omega)
    torch.testing.assert_close(turned.M, M, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned.omega, drift, rtol=0, atol=1e-11)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("omega", "sign"), [("along", 1), ("across", -1)])
def test_flips_with_the_picture(axis, omega, sign):
    """A mirror turns left into right, so the drift across the gradient changes its side."""
    image = noise()
    straight = gradient_metric(image, tau=0.6, omega=omega)
    flipped = gradient_metric(image.flip(axis + 2), tau=0.6, omega=omega)
    S = torch.ones(2, dtype=torch.float64)
    S[axis] = -1
    M = straight.M.flip(axis + 1) * S[:, None] * S
    drift = sign * straight.omega.flip(axis + 1) * S
    torch.testing.assert_close(flipped.M, M, rtol=0, atol=1e-12)
    torch.testing.assert_close(flipped.omega, drift, rtol=0, atol=1e-11)


def test_equal_channels_are_grey():
    image = noise()
    grey = gradient_metric(image, tau=0.4)
    colour = gradient_metric(image.expand(-1, 3, -1, -1), tau=0.4)
    torch.testing.assert_close(colour.M, grey.M, rtol=0, atol=1e-12)
    torch.testing.assert_close(colour.omega, grey.omega, rtol=0, atol=1e-11)


def test_colour_sees_an_edge_that_the_mean_of_the_channels_does_not():
    edge = ramp(0.3)
    metric = gradient_metric(torch.cat((edge, -edge), 1), tau=0.5, padding="replicate")
    at = metric[0, CENTRE[0], CENTRE[1]]
    n = unit(0.3)
    torch.testing.assert_close(at.M @ n, 0.1 * 101 * n, rtol=1e-9, atol=1e-11)
    assert (at.omega == 0).all()  # the channels disagree on which way is up


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 255.0, 1e30])
def test_units_do_not_count(factor):
    image = noise(dtype=torch.float64) - 0.5
    metric, other = gradient_metric(image), gradient_metric(factor * image)
    torch.testing.assert_close(other.M, metric.M, rtol=1e-10, atol=1e-10)


def test_each_picture_of_a_batch_has_its_own_largest_gradient():
    image = noise()
    both = gradient_metric(torch.cat((image[:1], 100 * image[1:])))
    alone = gradient_metric(image[1:])
    torch.testing.assert_close(both.M[1:], alone.M, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1e4])
@pytest.mark.parametrize("derivative", METRICS)
def test_flat_picture_gives_discs(value, dtype, derivative):
    image = torch.full((1, 3, 20, 17), value, dtype=dtype, requires_grad=True)
    metric = METRICS[derivative](image, tau=0.5)
    identity = torch.eye(2, dtype=dtype).expand_as(metric.M)
    torch.testing.assert_close(metric.M.detach(), 0.1 * identity)
    assert (metric.omega == 0).all()
    (metric.M.sum() + metric.omega.sum()).backward()
    assert torch.isfinite(image.grad).all()


def test_half_flat_picture_has_finite_gradients():
    image = noise()
    image[..., :20] = 0.5
    image.requires_grad_()
    metric = gradient_metric(image, tau=0.5)
    (metric.M.sum() + metric.omega.sum()).backward()
    assert torch.isfinite(image.grad).all()
    assert (metric.omega[..., :10, :] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("omega", ["along", "across"])
def test_gradcheck(channels, omega):
    image = noise(channels, size=(5, 6)).requires_grad_()

    def parts(image):
        metric = gradient_metric(image, anisotropy=3.0, tau=0.5, omega=omega)
        return metric.M, metric.omega

    assert torch.autograd.gradcheck(parts, (image,), atol=1e-4)


def test_single_precision_agrees_with_double():
    image = noise(3)
    single, double = gradient_metric(image.float(), tau=0.3), gradient_metric(image, tau=0.3)
    assert single.M.dtype == torch.float32
    torch.testing.assert_close(single.M.double(), double.M, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.0, 0.9])
@pytest.mark.parametrize("omega", ["along", "across"])
def test_positive_up_to_the_stated_bound(dtype, tau, omega):
    """There a determinant is off by at most an eighth, and in the dtype's own arithmetic too."""
    eps = torch.finfo(dtype).eps
    largest = ((1 - tau**2) / (8 * eps)) ** 0.5
    image = noise(3, size=(256, 257), dtype=dtype)
    metric = gradient_metric(image, anisotropy=0.9999 * largest - 1, tau=tau, omega=omega)
    metric.validate()
    M = metric.M
    in_dtype = M[..., 0, 0] * M[..., 1, 1] - M[..., 0, 1] * M[..., 1, 0]
    exact = M[..., 0, 0].double() * M[..., 1, 1].double() - M[..., 0, 1].double() ** 2
    for determinant in (in_dtype, exact) if dtype == torch.float32 else (in_dtype,):
        assert ((determinant / 0.01 - 1).abs() < 1 / 8).all()
    with pytest.raises(ValueError, match=r"anisotropy, tau: expected \(1 \+ anisotropy\)\^2 <= "):
        gradient_metric(image, anisotropy=1.0001 * largest - 1, tau=tau, omega=omega)


def test_refused_metrics_of_single_precision_are_served_in_double():
    """At a ratio of 10,001 float32 held indefinite matrices."""
    image = noise(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"8 eps\) = 1.049e\+06, .* in torch.float32, got 1e\+08"):
        gradient_metric(image, anisotropy=1e4)
    metric = gradient_metric(image.double(), anisotropy=1e4)
    metric.validate()
    axes = Ellipse.of(metric).axes
    assert float((axes[..., 0] / axes[..., 1]).max()) == pytest.approx(10001, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scales_whose_determinants_leave_the_dtype_are_refused(scale):
    gradient_metric(noise(), scale=scale).validate()
    with pytest.raises(ValueError, match=r"scale: expected eigenvalues between 1.08e-19 and 9.22e"):
        gradient_metric(noise(dtype=torch.float32), scale=scale)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_pictures_smaller_than_the_filter(size, padding):
    metric = gradient_metric(noise(size=size), sigma=3.0, tau=0.2, padding=padding)
    assert metric.batch_shape == (2, *size)
    metric.validate()


def test_empty_batch():
    assert gradient_metric(noise()[:0]).batch_shape == (0, 49, 41)


def test_deterministic():
    first, second = (gradient_metric(noise(3), tau=0.5) for _ in range(2))
    assert torch.equal(first.M, second.M)
    assert torch.equal(first.omega, second.omega)


def test_non_contiguous_and_channels_last():
    image = noise(3)
    expected = gradient_metric(image).M
    last = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient_metric(last).M, expected, rtol=0, atol=1e-12)


def test_returns_a_randers_field():
    assert isinstance(gradient_metric(noise()), Randers)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"image": [[1.0]]},
            TypeError,
            "image: expected a torch.Tensor or a NumPy array, got list",
        ),
        ({"image": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, TypeError, "got torch.uint8"),
        ({"image": torch.zeros(1, 1, 4, 4).half()}, TypeError, "float32 or float64"),
        ({"image": torch.zeros(4, 4)}, ValueError, r"image\[None, None\]"),
        ({"image": torch.zeros(1, 1, 0, 4)}, ValueError, r"got \(1, 1, 0, 4\)"),
        (
            {"image": torch.tensor([[[[0.0, 1.0], [torch.nan, 2.0]]]])},
            ValueError,
            r"got nan at index \(0, 0, 1, 0\)",
        ),
        ({"stretch": "up"}, ValueError, "stretch: expected 'across' or 'along', got 'up'"),
        ({"anisotropy": -1.0}, ValueError, "anisotropy: expected a number of at least 0"),
        ({"scale": 0.0}, ValueError, "scale: expected a number above 0, got 0.0"),
        ({"scale": math.inf}, ValueError, "scale: expected"),
        ({"tau": 1.0}, ValueError, "tau: expected -1 < tau < 1"),
        ({"tau": math.nan}, ValueError, "tau: expected -1 < tau < 1"),
        ({"omega": "left"}, ValueError, "omega: expected 'along' or 'across', got 'left'"),
        ({"derivative": "prewitt"}, ValueError, "derivative: expected 'gaussian' or 'sobel'"),
        ({"sigma": 0.0}, ValueError, "sigma: expected a number above 0"),
        ({"sigma": -1.0, "derivative": "sobel"}, ValueError, "sigma: expected a number of at"),
        ({"padding": "zeros"}, ValueError, "padding: expected 'reflect' or 'replicate'"),
    ],
)
def test_errors(change, error, message):
    arguments = {"image": noise(), **change}
    with pytest.raises(error, match=message):
        gradient_metric(arguments.pop("image"), **arguments)
