"""Metrics of diffusion tensors."""

import numpy as np
import pytest
import torch

from finslerconv.physics import diffusion_metric


def tensors(*batch, d=3, seed=0):
    A = np.random.default_rng(seed).standard_normal((*batch, d, d))
    return 1e-3 * (A @ np.swapaxes(A, -1, -2) + 0.1 * np.eye(d))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("form", ["inverse", "adjugate"])
@pytest.mark.parametrize("power", [1, 3])
def test_eigenvalues(d, form, power):
    D = tensors(4, d=d)
    values, vectors = np.linalg.eigh(D)
    mean = values.mean(-1, keepdims=True)
    sharp = values**power / mean ** (power - 1)
    wanted = 1 / sharp
    if form == "adjugate":
        wanted = wanted * sharp.prod(-1, keepdims=True)
    M = diffusion_metric(D, form=form, power=power).M
    expected = np.einsum("nij,nj,nkj->nik", vectors, wanted, vectors)
    np.testing.assert_allclose(M, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


def test_what_is_masked_out_is_not_looked_at():
    D = tensors(3)
    D[1] = np.nan
    metric = diffusion_metric(D, mask=np.array([True, False, True]))
    metric.validate()
    np.testing.assert_array_equal(metric.M[1], np.eye(3))
    np.testing.assert_allclose(metric.M[2], np.linalg.inv(D[2]))


def test_nearly_singular_tensors_have_symmetric_metrics():
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    D = vectors @ np.diag([1e-3, 1e-4, 1e-13]) @ vectors.T
    M = diffusion_metric((D + D.T) / 2).M
    np.testing.assert_array_equal(M, M.T)


def test_tensors_and_gradients():
    D = torch.from_numpy(tensors(2)).mul(1e3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: diffusion_metric((x + x.mT) / 2, power=2, form="adjugate").M, D
    )
    assert diffusion_metric(D.detach().float()).M.dtype == torch.float32


@pytest.mark.unchecked
def test_errors():
    D = tensors(2, 2)
    D[1, 0, 2, 2] = -1.0
    with pytest.raises(
        ValueError, match=r"tensors: expected positive definite .* at index \(1, 0\)"
    ):
        diffusion_metric(D)
    with pytest.raises(ValueError, match="form: expected 'inverse' or 'adjugate', got 'dual'"):
        diffusion_metric(tensors(), form="dual")
    with pytest.raises(ValueError, match="power: expected a positive integer, got 0"):
        diffusion_metric(tensors(), power=0)
    with pytest.raises(ValueError, match="tensors: expected square matrices"):
        diffusion_metric(np.ones((3, 2)))
