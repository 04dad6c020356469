import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import CENTRE, noise, ramp, sinusoid, unit

from finslerconv.balls import Ellipse
from finslerconv.images import _structure, structure_tensor_metric
from finslerconv.images._tensor import TensorField

LAWS = ["edge", "coherence"]
ANGLES = st.floats(-math.pi, math.pi)


def edge(mu, alpha):
    return alpha + (1 - alpha) * (1 - math.exp(-3.31488 / mu**4))


def coherence(gap, alpha):
    return alpha + (1 - alpha) * math.exp(-1 / gap**2)


def at_centre(metric):
    return metric[0, CENTRE[0], CENTRE[1]]


@settings(max_examples=10)
@given(angle=ANGLES, contrast=st.floats(0.5, 2.0), alpha=st.floats(0.01, 1.0))
def test_ramp_obeys_both_laws(angle, contrast, alpha):
    """The tensor of a ramp is that of one gradient, mu_1 = the largest trace, mu_2 = 0."""
    n, t = unit(angle), unit(angle + math.pi / 2)
    mu = 1 / contrast**2
    options = {"contrast": contrast, "alpha": alpha, "scale": 0.2, "scales": [(1.0, 1.0)]}
    M = at_centre(structure_tensor_metric(ramp(angle), padding="replicate", **options)).M
    torch.testing.assert_close(M @ n, 0.2 / edge(mu, alpha) * n, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(M @ t, 0.2 * t, rtol=1e-8, atol=1e-9)
    M = at_centre(
        structure_tensor_metric(ramp(angle), law="coherence", padding="replicate", **options)
    ).M
    torch.testing.assert_close(M @ n, 0.2 / alpha * n, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(M @ t, 0.2 / coherence(mu, alpha) * t, rtol=1e-8, atol=1e-9)


@settings(max_examples=10)
@given(angle=ANGLES)
def test_coherent_balls_lie_along_the_stripes(angle):
    metric = structure_tensor_metric(sinusoid(angle, 8.0), law="coherence", scales=[(1.0, 4.0)])
    values, vectors = torch.linalg.eigh(at_centre(metric).M)
    stripes = unit(angle + math.pi / 2)
    assert abs(float(vectors[:, 0] @ stripes)) > 0.999  # the small eigenvalue: the long half-axis
    assert values[1] / values[0] > 90


def test_scales_are_normalised_and_averaged():
    """At scale s, s times the derivative of cos(k x) has the amplitude s k exp(-(s k)^2 / 2).

    Averaged over many waves, a sum of waves down and right has the tensor diag(E_down, E_right).
    """
    k_down, k_right = 2 * math.pi / 16, 2 * math.pi / 8
    x = torch.arange(49, dtype=torch.float64)  # whole waves: mirrored, they go on
    image = torch.cos(k_down * x)[:, None] + torch.cos(k_right * x)
    inner = (1.5, 2.5)
    metric = structure_tensor_metric(
        image[None, None], scales=[(s, 15.0) for s in inner], contrast=0.5
    )

    def energy(k):
        return sum((s * k) ** 2 * math.exp(-((s * k) ** 2)) for s in inner)

    for axis, k in ((0, k_down), (1, k_right)):
        mu = energy(k) / (energy(k_down) + energy(k_right)) / 0.25
        across = metric.M[0, :, :, axis, axis]
        torch.testing.assert_close(
            across, torch.full_like(across, 0.1 / edge(mu, 0.01)), rtol=2e-3, atol=0
        )


def test_coarse_scale_sees_what_the_fine_one_sees_weakly():
    """Two half pictures, fine and coarse stripes: the scale decides which one is the stronger."""
    x = torch.arange(200, dtype=torch.float64)
    stripes = torch.where(x < 100, torch.sin(2 * x), torch.sin(0.2 * x)).expand(1, 1, 40, 200)

    def stretch(scales):
        M = structure_tensor_metric(stripes, law="coherence", scales=scales, contrast=0.5).M[0, 20]
        values = torch.linalg.eigvalsh(M)
        ratio = values[:, 1] / values[:, 0]
        return float(ratio[30:70].mean()), float(ratio[130:170].mean())

    fine, coarse = stretch([(0.4, 4.0)])
    assert fine > 10 * coarse
    fine, coarse = stretch([(3.0, 4.0)])
    assert coarse > 10 * fine
    fine, coarse = stretch([(0.4, 4.0), (3.0, 4.0)])
    assert min(fine, coarse) > 5  # together they see both


@pytest.mark.parametrize("law", LAWS)
@given(
    seed=st.integers(0, 100),
    tau=st.floats(-0.999, 0.999),
    omega=st.sampled_from(["along", "across"]),
    alpha=st.floats(0.01, 1.0),
)
@settings(max_examples=8)
def test_valid_with_the_stated_drift_and_bounds(law, seed, tau, omega, alpha):
    metric = structure_tensor_metric(
        noise(3, seed), law=law, tau=tau, omega=omega, alpha=alpha, padding="replicate"
    )
    metric.validate()
    torch.testing.assert_close(
        metric.omega_norm(), torch.full_like(metric.omega_norm(), abs(tau)), rtol=0, atol=1e-10
    )
    values = torch.linalg.eigvalsh(metric.M)
    assert values.min() >= 0.1 * (1 - 1e-9)
    assert values.max() <= 0.1 / alpha * (1 + 1e-9)


@pytest.mark.parametrize("law", LAWS)
@given(
    seed=st.integers(0, 100),
    tau=st.floats(-0.95, 0.95),
    omega=st.sampled_from(["along", "across"]),
    alpha=st.floats(0.01, 1.0),
)
@settings(max_examples=8)
def test_balls_have_the_stated_half_axes(law, seed, tau, omega, alpha):
    """Those of diffusion, times 1 / (1 - tau^2) in the drift's direction and its root beside it."""
    image = noise(3, seed, size=(11, 12))
    options = {"law": law, "alpha": alpha, "padding": "replicate"}
    reach = structure_tensor_metric(image, **options).dual().M  # D / scale
    metric = structure_tensor_metric(image, tau=tau, omega=omega, **options)
    e = structure_tensor_metric(image, tau=0.5, omega=omega, **options).omega
    e = e / e.norm(dim=-1, keepdim=True)
    lam = 1 - tau**2
    shape = reach / lam + (1 / lam**2 - 1 / lam) * (
        (e[..., None, :] @ reach @ e[..., None]) * e[..., None] * e[..., None, :]
    )
    ellipse = Ellipse.of(metric)
    torch.testing.assert_close(ellipse.shape, shape, rtol=1e-8, atol=1e-8 / lam**2)
    axes = ellipse.axes
    assert (axes[..., 0] / axes[..., 1]).max() <= (alpha * lam) ** -0.5 * (1 + 1e-9)
    along = (e * (ellipse.shape @ e[..., None])[..., 0]).sum(-1).sqrt()
    torch.testing.assert_close(ellipse.centre, -tau * along[..., None] * e, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positive_up_to_the_stated_bound(law, dtype):
    image = noise(3, size=(128, 129), dtype=dtype)
    least = 8 * torch.finfo(dtype).eps
    metric = structure_tensor_metric(image, law=law, alpha=1.001 * least)
    metric.validate()
    axes = Ellipse.of(metric).axes
    # A determinant off by an eighth is a ratio off by a sixteenth.
    assert float((axes[..., 0] / axes[..., 1]).max()) < 1.08 * least**-0.5
    with pytest.raises(ValueError, match="alpha, tau: expected 1 / alpha <= "):
        structure_tensor_metric(image, law=law, alpha=0.999 * least)


@pytest.mark.parametrize("mu", [0.7, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("alpha", [1e-6, 1e-2])
def test_edge_law_at_strong_edges_in_single_precision(mu, alpha):
    """Where hardly anything diffuses, the little that does is right to single precision."""
    M = at_centre(
        structure_tensor_metric(
            ramp(0.0).float(), contrast=mu**-0.5, alpha=alpha, scale=1.0, padding="replicate"
        )
    ).M
    diffusivity = alpha - (1 - alpha) * math.expm1(-3.31488 / mu**4)
    assert float(M[1, 1]) == pytest.approx(1 / diffusivity, rel=1e-3)


@pytest.mark.parametrize("law", LAWS)
def test_turns_and_flips_with_the_picture(law):
    image = noise(3)
    straight = structure_tensor_metric(image, law=law, tau=0.5)
    R = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    turned = structure_tensor_metric(torch.rot90(image, 1, (2, 3)), law=law, tau=0.5)
    torch.testing.assert_close(
        turned.M, R @ torch.rot90(straight.M, 1, (1, 2)) @ R.T, rtol=0, atol=1e-9
    )
    torch.testing.assert_close(
        turned.omega, torch.rot90(straight.omega, 1, (1, 2)) @ R.T, rtol=0, atol=1e-9
    )
    S = torch.tensor([1.0, -1.0], dtype=torch.float64)
    flipped = structure_tensor_metric(image.flip(3), law=law, tau=0.5)
    torch.testing.assert_close(flipped.M, straight.M.flip(2) * S[:, None] * S, rtol=0, atol=1e-9)
    torch.testing.assert_close(flipped.omega, straight.omega.flip(2) * S, rtol=0, atol=1e-9)


@pytest.mark.parametrize("law", LAWS)
def test_equal_channels_are_grey(law):
    image = noise()
    grey = structure_tensor_metric(image, law=law, tau=0.4)
    colour = structure_tensor_metric(image.expand(-1, 3, -1, -1), law=law, tau=0.4)
    torch.testing.assert_close(colour.M, grey.M, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(colour.omega, grey.omega, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("law", "eigenvalue"), [("edge", 0.1), ("coherence", 10.0)])
def test_flat_picture_gives_discs(law, eigenvalue, dtype):
    image = torch.full((1, 2, 20, 17), 0.7, dtype=dtype, requires_grad=True)
    metric = structure_tensor_metric(image, law=law, tau=0.5)
    torch.testing.assert_close(
        metric.M.detach(), eigenvalue * torch.eye(2, dtype=dtype).expand_as(metric.M)
    )
    assert (metric.omega == 0).all()
    (metric.M.sum() + metric.omega.sum()).backward()
    assert torch.isfinite(image.grad).all()


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_gradcheck_with_a_flat_region(law):
    image = noise(size=(6, 7))[:1]
    image[..., :2] = 0.5
    image.requires_grad_()

    def parts(image):
        metric = structure_tensor_metric(
            image, law=law, contrast=0.7, alpha=0.1, tau=0.5, scales=[(0.5, 0.7)]
        )
        return metric.M, metric.omega

    assert torch.autograd.gradcheck(parts, (image,), atol=1e-4)


@pytest.mark.parametrize("gap", [0.0, 1e-300, 1e-20, 1e-12, 1e-6, 4e-6, 1e-5, 1e-3, 0.5])
def test_function_of_a_tensor_is_smooth_where_eigenvalues_meet(gap):
    """Against the derivative of the matrix exponential, through the meeting of eigenvalues."""
    a = torch.tensor([0.6 * gap, 0.8 * gap], dtype=torch.float64) / 2
    J = 0.7 * torch.eye(2, dtype=torch.float64)
    J = J + torch.stack((torch.stack((a[0], a[1])), torch.stack((a[1], -a[0]))))
    J.requires_grad_()

    def exponential(J):
        field = TensorField.of(J)
        mu_1, mu_2 = field.mean + field.gap / 2, field.mean - field.gap / 2
        return field.function(mu_1.exp(), mu_2.exp(), field.mean.exp())

    probe = torch.tensor([[1.0, 0.3], [0.3, -2.0]], dtype=torch.float64)
    (mine,) = torch.autograd.grad((exponential(J) * probe).sum(), J)
    (truth,) = torch.autograd.grad((torch.linalg.matrix_exp(J) * probe).sum(), J)
    torch.testing.assert_close(exponential(J), torch.linalg.matrix_exp(J), rtol=0, atol=1e-12)
    torch.testing.assert_close((mine + mine.T) / 2, (truth + truth.T) / 2, rtol=0, atol=1e-8)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": "flow"}, "law: expected 'edge' or 'coherence', got 'flow'"),
        ({"scales": []}, "scales: expected pairs .* got none"),
        ({"scales": [(1.0, 1.0), (0.0, 1.0)]}, r"got \(0.0, 1.0\) at index 1"),
        ({"scales": [(1.0, -1.0)]}, r"got \(1.0, -1.0\) at index 0"),
        ({"scales": [1.0]}, "got 1.0 at index 0"),
        ({"contrast": 0.0}, "contrast: expected a number above 0"),
        ({"alpha": 0.0}, "alpha: expected a number above 0"),
        ({"alpha": 1.5}, "alpha: expected 0 < alpha <= 1, got 1.5"),
        ({"scale": -1.0}, "scale: expected a number above 0"),
        ({"tau": -1.0}, "tau: expected -1 < tau < 1"),
        ({"omega": "up"}, "omega: expected 'along' or 'across'"),
        ({"padding": "circular"}, "padding: expected 'reflect' or 'replicate'"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        structure_tensor_metric(noise(), **change)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_strips_give_what_the_whole_gives(law, padding, monkeypatch):
    """Strips of 28 and 21 rows; their units are those of the whole picture, which vary over it."""
    picture = noise(3) * torch.linspace(0.1, 3, 49).double()[:, None]
    options = {"law": law, "padding": padding, "tau": 0.3, "scales": [(0.5, 0.5), (0.7, 1.0)]}
    whole = structure_tensor_metric(picture, **options)
    monkeypatch.setattr(_structure, "_STRIP", 1)
    assert [s.stop for s in _structure._strips(picture, options["scales"])] == [28, 49]
    strips = structure_tensor_metric(picture, **options)
    torch.testing.assert_close(strips.M, whole.M, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(strips.omega, whole.omega, rtol=1e-12, atol=1e-13)
    # Where gradients are recorded there is one strip.
    recording = picture.clone().requires_grad_()
    assert len(_structure._strips(recording, options["scales"])) == 1
