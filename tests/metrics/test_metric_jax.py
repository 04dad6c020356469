"""JAX arrays go through the geometry core as NumPy's do, under jit and grad too."""

import numpy as np
import pytest

from finslerconv import balls, metrics

jax = pytest.importorskip("jax")


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


M = np.array([[1.0, 0.3], [0.3, 0.5]])
OMEGA = np.array([0.2, 0.3])
V = np.array([[1.0, 2.0], [3.0, -1.0]])


@pytest.mark.slow
def test_values_are_numpys():
    ours = metrics.Randers(jax.numpy.asarray(M), jax.numpy.asarray(OMEGA))
    theirs = metrics.Randers(M, OMEGA)
    v = jax.numpy.asarray(V)
    for name in ("norm", "dual_norm", "indicatrix", "unit_ball", "fundamental_tensor"):
        value = getattr(ours, name)(v)
        assert isinstance(value, jax.Array)
        np.testing.assert_allclose(value, getattr(theirs, name)(V), rtol=1e-13)
    np.testing.assert_allclose(balls.affine(ours, v), balls.affine(theirs, V), rtol=1e-13)
    np.testing.assert_allclose(balls.volume(ours), balls.volume(theirs), rtol=1e-12)
    by_search = metrics.CallableMetric(ours.norm, like=v)
    np.testing.assert_allclose(by_search.dual_norm(v), theirs.dual_norm(V), rtol=1e-12)


def test_jit_and_grad():
    def norm(M, v):
        return metrics.Randers(M, jax.numpy.asarray(OMEGA), validate=False).norm(v)

    np.testing.assert_allclose(jax.jit(norm)(M, V), metrics.Randers(M, OMEGA).norm(V), rtol=1e-13)
    gradient = jax.grad(norm)(jax.numpy.asarray(M), jax.numpy.asarray(V[0]))
    expected = np.outer(V[0], V[0]) / (2 * np.sqrt(V[0] @ M @ V[0]))
    np.testing.assert_allclose(gradient, expected, rtol=1e-13)
    at_zero = jax.grad(norm)(jax.numpy.asarray(M), jax.numpy.zeros(2))
    np.testing.assert_array_equal(at_zero, np.zeros((2, 2)))
