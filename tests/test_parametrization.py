"""Parametrisations reach only positive matrices, start at the identity and are smooth."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from finslerconv._parametrization import PARAMETRIZATIONS, from_spectrum
from finslerconv.nn import LDL, Cholesky, LogEuclidean, Spectral, SpectralScaled

ALL = [kind(dim=d) for kind in PARAMETRIZATIONS.values() for d in (1, 2, 3)]
seeds = st.integers(0, 2**31)


def raw_numbers(kind, seed, spread=2.0, n=7):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, kind.n_channels, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_the_identity(kind, dtype):
    M = kind.matrix(torch.zeros(4, kind.n_channels, dtype=dtype))
    assert M.dtype == dtype
    d = kind.dim
    assert torch.equal(M, torch.eye(d, dtype=dtype).expand(4, d, d))


def test_the_numbers_of_channels():
    """Of a triangle, or of eigenvalues with a direction: a vector, a quaternion."""
    numbers = {
        name: [kind(dim=d).n_channels for d in (1, 2, 3)] for name, kind in PARAMETRIZATIONS.items()
    }
    triangle = [1, 3, 6]
    assert numbers == {
        "cholesky": triangle, "ldl": triangle, "log_euclidean": triangle,
        "spectral": [1, 4, 7], "spectral_scaled": [2, 5, 8],
    }  # fmt: skip
    assert [Spectral(dim=d).n_direction_channels for d in (1, 2, 3)] == [0, 2, 4]


@pytest.mark.parametrize("kind", ALL, ids=repr)
@given(seed=seeds)
def test_every_value_is_symmetric_positive_definite(kind, seed):
    M = kind.matrix(raw_numbers(kind, seed))
    assert torch.equal(M, M.mT)
    assert (torch.linalg.eigvalsh(M) > 0).all()


def lower(matrices, scale=1.0):
    """Return the entries below the diagonal, row by row, divided by ``scale``."""
    d = matrices.shape[-1]
    rows, columns = torch.tril_indices(d, d, -1)
    return (matrices / scale)[..., rows, columns]


def shear_bounds(d):
    """Return the bounds of a row's entries below the diagonal, over that on it, as (d, 1)."""
    rows = torch.arange(d, dtype=torch.float64).clamp(min=1)
    return (300 ** (1 / max(d - 1, 1)) / rows.sqrt())[:, None]


@pytest.mark.parametrize("d", [1, 2, 3])
@given(seed=seeds)
def test_every_positive_matrix_is_reached_by_the_free_parametrisations(d, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(5, d, d, dtype=torch.float64, generator=generator)
    M = A @ A.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    eps = 0.01
    L = torch.linalg.cholesky(M)
    diagonal = L.diagonal(dim1=-2, dim2=-1)
    # The soft bounds on what is below the diagonal, and on logarithms, are undone.
    bound = shear_bounds(d) * diagonal[..., None]
    raw = torch.cat((diagonal - 1, lower(bound * torch.atanh(L.tril(-1) / bound))), dim=-1)
    torch.testing.assert_close(Cholesky(eps, dim=d).matrix(raw), M)
    D = diagonal**2
    # D - 1 gives |1 - eps + D - 1| + eps = D where D >= eps.
    bound = shear_bounds(d) * (D[..., None] / D[..., None, :]).sqrt()
    below = (L / diagonal[..., None, :]).tril(-1)
    raw = torch.cat((D - 1, lower(bound * torch.atanh(below / bound))), dim=-1)
    reachable = (eps < D).all(-1)
    torch.testing.assert_close(LDL(eps, dim=d).matrix(raw)[reachable], M[reachable])
    values, vectors = torch.linalg.eigh(M)
    raw = torch.cat((3 * turning(vectors), values - 1), dim=-1)
    torch.testing.assert_close(Spectral(eps, dim=d).matrix(raw), M)
    S = vectors @ torch.diag_embed(values.log()) @ vectors.mT
    bound = 6 / d
    entries = torch.cat((S.diagonal(dim1=-2, dim2=-1), lower(S)), dim=-1)
    raw = bound * torch.atanh(entries / bound)
    reachable = raw.isfinite().all(-1)
    torch.testing.assert_close(LogEuclidean(dim=d).matrix(raw)[reachable], M[reachable])


def turning(vectors):
    """Return the direction or the quaternions of orthonormal matrices, by SciPy."""
    d = vectors.shape[-1]
    if d < 3:
        return vectors[..., :, 0] if d == 2 else vectors[..., :0, 0]
    proper = vectors * torch.linalg.det(vectors)[..., None, None]
    x, y, z, w = torch.tensor(Rotation.from_matrix(proper.numpy()).as_quat()).unbind(-1)
    return torch.stack((w, x, y, z), dim=-1)


@pytest.mark.parametrize("d", [1, 2, 3])
@given(seed=seeds)
def test_log_euclidean_is_the_matrix_exponential(d, seed):
    kind = LogEuclidean(dim=d)
    raw = raw_numbers(kind, seed)
    entries = 6 / d * torch.tanh(raw * d / 6)
    rows, columns = torch.tril_indices(d, d, -1)
    S = torch.diag_embed(entries[:, :d])
    S[:, rows, columns] = S[:, columns, rows] = entries[:, d:]
    torch.testing.assert_close(kind.matrix(raw), torch.linalg.matrix_exp(S), rtol=1e-11, atol=0)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_log_euclidean_keeps_the_half_axes_within_bounds(d):
    """Between exp(-3) and exp(3): eigenvalues between exp(-6) and exp(6)."""
    generator = torch.Generator().manual_seed(0)
    kind = LogEuclidean(dim=d)
    raw = 1e3 * torch.randn(500, kind.n_channels, dtype=torch.float64, generator=generator)
    values = torch.linalg.eigvalsh(kind.matrix(raw)).log()
    assert values.abs().max() <= 6 * (1 + 1e-9)
    if d > 1:
        assert (values.amax(-1) - values.amin(-1)).max() < math.log(5000)


@pytest.mark.parametrize("square", [0.0, 1e-12, 9.999e-3, 1.0001e-2, 3.0])
def test_log_euclidean_series_and_closed_form_meet(square):
    entries = torch.tensor([square**0.5, -(square**0.5), 0.0], dtype=torch.float64)
    M = LogEuclidean().matrix(3 * torch.atanh(entries / 3))
    expected = torch.diag(torch.exp(entries[:2]))
    torch.testing.assert_close(M, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("kind", ALL, ids=repr)
@given(seed=seeds)
def test_single_precision_cannot_leave_the_positive_matrices(kind, spread, seed):
    raw = raw_numbers(kind, seed, spread, n=200).float().requires_grad_()
    M = kind.matrix(raw)
    pivots = elimination(M)
    assert all((pivot > 0).all() for pivot in pivots)
    (gradient,) = torch.autograd.grad(sum(p.log().sum() for p in pivots) + M.sum(), raw)
    assert gradient.isfinite().all()


def elimination(M):
    """Return the pivots of Gauss's elimination, in the precision of the matrices."""
    pivots = []
    while M.shape[-1]:
        pivots.append(M[:, 0, 0])
        M = M[:, 1:, 1:] - M[:, 1:, :1] * M[:, :1, 1:] / M[:, :1, :1]
    return pivots


@pytest.mark.parametrize("kind", [Spectral(), SpectralScaled(eps_L=1e-7)], ids=repr)
def test_eigenvalues_far_apart_leave_single_precision_positive(kind):
    """Whatever the direction: the determinant of their matrix is theirs, to a hundredth."""
    angle = torch.linspace(0, 3, 300)
    raw = torch.zeros(300, kind.n_channels)
    raw[:, 0], raw[:, 1] = angle.sin(), angle.cos()
    raw[:, 2], raw[:, 3] = 1e6, -0.99 if isinstance(kind, Spectral) else -1e6
    M = kind.matrix(raw)
    for A in (M, M.double()):
        determinant = A[:, 0, 0] * A[:, 1, 1] - A[:, 0, 1] * A[:, 1, 0]
        expected = (A[:, 0, 0] + A[:, 1, 1]) ** 2 / 300**2
        torch.testing.assert_close(determinant, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("d", [1, 2, 3])
@given(seed=seeds)
def test_spectral_scaled_stays_within_its_bounds(d, seed):
    kind = SpectralScaled(eps_L=0.05, scale_min=0.2, scale_max=3.0, dim=d)
    values = torch.linalg.eigvalsh(kind.matrix(raw_numbers(kind, seed, spread=20.0)))
    assert (values >= 0.05 * 0.2 * (1 - 1e-12)).all()
    assert (values <= 1.95 * 3.0 * (1 + 1e-12)).all()


def test_from_spectrum_has_these_eigenvectors():
    direction = torch.tensor([3.0, -4.0], dtype=torch.float64)
    M = from_spectrum(direction, torch.tensor([5.0, 2.0], dtype=torch.float64))
    across = torch.tensor([4.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(M @ direction, 5 * direction)
    torch.testing.assert_close(M @ across, 2 * across)


def test_from_spectrum_turns_the_axes_by_a_quaternion():
    torch.manual_seed(0)
    quaternion = torch.randn(50, 4, dtype=torch.float64)
    w, x, y, z = quaternion.unbind(-1)
    turned = Rotation.from_quat(torch.stack((x, y, z, w), dim=-1).numpy()).as_matrix()
    values = torch.rand(50, 3, dtype=torch.float64) + 0.1
    expected = torch.tensor(turned * values[:, None].numpy() @ turned.swapaxes(1, 2))
    torch.testing.assert_close(from_spectrum(quaternion, values), expected)


@pytest.mark.parametrize("kind", ALL, ids=repr)
def test_gradients(kind):
    raw = raw_numbers(kind, 3, spread=0.5, n=4).requires_grad_()
    assert torch.autograd.gradcheck(kind.matrix, raw)
    assert torch.autograd.gradgradcheck(kind.matrix, raw)


@pytest.mark.parametrize("kind", ALL, ids=repr)
def test_gradients_are_finite_where_formulas_degenerate(kind):
    raw = torch.zeros(kind.n_channels, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(kind.matrix(raw).sum(), raw, create_graph=True)
    assert gradient.isfinite().all()
    (second,) = torch.autograd.grad(gradient.square().sum(), raw)
    assert second.isfinite().all()


@pytest.mark.unchecked
def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"eps_L: expected a number in \(0, 1\), got 0"):
        Cholesky(0)
    with pytest.raises(ValueError, match="dim: expected 1, 2 or 3, got 4"):
        Cholesky(dim=4)
    with pytest.raises(ValueError, match="scale_min < 1 < scale_max"):
        SpectralScaled(scale_min=1.2)
