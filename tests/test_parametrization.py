"""Parametrisations reach only positive matrices, start at the identity and are smooth."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finslerconv._parametrization import PARAMETRIZATIONS, from_spectrum
from finslerconv.nn import LDL, Cholesky, LogEuclidean, Spectral, SpectralScaled

ALL = [kind() for kind in PARAMETRIZATIONS.values()]
seeds = st.integers(0, 2**31)


def raw_numbers(kind, seed, spread=2.0, n=7):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, kind.n_channels, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_the_identity(kind, dtype):
    M = kind.matrix(torch.zeros(4, kind.n_channels, dtype=dtype))
    assert M.dtype == dtype
    torch.testing.assert_close(M, torch.eye(2, dtype=dtype).expand(4, 2, 2))


@pytest.mark.parametrize("kind", ALL, ids=repr)
@given(seed=seeds)
def test_every_value_is_symmetric_positive_definite(kind, seed):
    M = kind.matrix(raw_numbers(kind, seed))
    assert torch.equal(M, M.mT)
    assert (torch.linalg.eigvalsh(M) > 0).all()


@given(seed=seeds)
def test_every_positive_matrix_is_reached_by_the_free_parametrisations(seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(5, 2, 2, dtype=torch.float64, generator=generator)
    M = A @ A.mT + 0.01 * torch.eye(2, dtype=torch.float64)
    eps = 0.01
    L = torch.linalg.cholesky(M)
    diagonal = L.diagonal(dim1=-2, dim2=-1)
    # The soft bounds on what is below the diagonal, and on logarithms, are undone.
    bound = 300 * diagonal[:, 1]
    below = bound * torch.atanh(L[:, 1, 0] / bound)
    raw = torch.stack((diagonal[:, 0] - 1, diagonal[:, 1] - 1, below), dim=-1)
    torch.testing.assert_close(Cholesky(eps).matrix(raw), M)
    D = diagonal**2
    # D - 1 gives |1 - eps + D - 1| + eps = D where D >= eps.
    bound = 300 * (D[:, 1] / D[:, 0]).sqrt()
    below = bound * torch.atanh(L[:, 1, 0] / L[:, 0, 0] / bound)
    raw = torch.stack((D[:, 0] - 1, D[:, 1] - 1, below), dim=-1)
    reachable = (eps < D).all(-1)
    torch.testing.assert_close(LDL(eps).matrix(raw)[reachable], M[reachable])
    values, vectors = torch.linalg.eigh(M)
    raw = torch.cat((3 * vectors[:, :, 0], values - 1), dim=-1)
    torch.testing.assert_close(Spectral(eps).matrix(raw), M)
    S = vectors @ torch.diag_embed(values.log()) @ vectors.mT
    raw = 3 * torch.atanh(torch.stack((S[:, 0, 0], S[:, 1, 1], S[:, 0, 1]), dim=-1) / 3)
    reachable = raw.isfinite().all(-1)
    torch.testing.assert_close(LogEuclidean().matrix(raw)[reachable], M[reachable])


@given(seed=seeds)
def test_log_euclidean_is_the_matrix_exponential(seed):
    raw = raw_numbers(LogEuclidean(), seed)
    a, c, b = (3 * torch.tanh(raw / 3)).unbind(-1)
    S = torch.stack((torch.stack((a, b), -1), torch.stack((b, c), -1)), -2)
    torch.testing.assert_close(LogEuclidean().matrix(raw), torch.linalg.matrix_exp(S))


@pytest.mark.parametrize("square", [0.0, 1e-12, 9.999e-3, 1.0001e-2, 3.0])
def test_log_euclidean_series_and_closed_form_meet(square):
    entries = torch.tensor([square**0.5, -(square**0.5), 0.0], dtype=torch.float64)
    M = LogEuclidean().matrix(3 * torch.atanh(entries / 3))
    expected = torch.diag(torch.exp(entries[:2]))
    torch.testing.assert_close(M, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("kind", ALL, ids=repr)
@given(seed=seeds)
def test_single_precision_cannot_leave_the_positive_matrices(kind, spread, seed):
    raw = raw_numbers(kind, seed, spread, n=200).float().requires_grad_()
    M = kind.matrix(raw)
    determinant = M[:, 0, 0] * M[:, 1, 1] - M[:, 0, 1] * M[:, 1, 0]
    assert (determinant > 0).all()
    (gradient,) = torch.autograd.grad(torch.log(determinant).sum() + M.sum(), raw)
    assert gradient.isfinite().all()


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


@given(seed=seeds)
def test_spectral_scaled_stays_within_its_bounds(seed):
    kind = SpectralScaled(eps_L=0.05, scale_min=0.2, scale_max=3.0)
    values = torch.linalg.eigvalsh(kind.matrix(raw_numbers(kind, seed, spread=20.0)))
    assert (values >= 0.05 * 0.2 * (1 - 1e-12)).all()
    assert (values <= 1.95 * 3.0 * (1 + 1e-12)).all()


def test_from_spectrum_has_these_eigenvectors():
    direction = torch.tensor([3.0, -4.0], dtype=torch.float64)
    M = from_spectrum(direction, torch.tensor(5.0).double(), torch.tensor(2.0).double())
    across = torch.tensor([4.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(M @ direction, 5 * direction)
    torch.testing.assert_close(M @ across, 2 * across)


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
    with pytest.raises(ValueError, match="scale_min < 1 < scale_max"):
        SpectralScaled(scale_min=1.2)
