"""Lanes of compiled kernels: what NumPy does with arrays, in both precisions."""

import numpy as np
import pytest

from finslerconv._compiled import jit
from finslerconv._lanes import (
    LANES,
    absolute,
    floor,
    load,
    maximum,
    minimum,
    spread,
    sqrt,
    store,
    where,
)


@jit
def computed(x, y, out):
    """Write the result of each operation to a row."""
    a, b = load(x, 0), load(y, 0)
    store(out, 0, a + b)
    store(out, 1, a - 2)
    store(out, 2, 0.5 * a * b)
    store(out, 3, a / b)
    store(out, 4, -a)
    store(out, 5, where((a > b) & ~(a >= 1.0), a, 7.0))
    store(out, 6, where(a < b, 3.0, b))
    store(out, 7, maximum(a, b))
    store(out, 8, minimum(a, 0.25))
    store(out, 9, sqrt(absolute(a)))
    store(out, 10, floor(a))
    store(out, 11, spread(1.5, a))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operations_are_numpys(dtype):
    rng = np.random.default_rng(0)
    a, b = 3 * rng.standard_normal((2, 1, LANES)).astype(dtype)
    out = np.empty((12, LANES), dtype)
    computed(a, b, out)
    expected = [
        a + b,
        a - 2,
        dtype(0.5) * a * b,
        a / b,
        -a,
        np.where((a > b) & ~(a >= 1), a, 7),
        np.where(a < b, 3, b),
        np.maximum(a, b),
        np.minimum(a, 0.25),
        np.sqrt(abs(a)),
        np.floor(a),
        np.full_like(a, 1.5),
    ]
    assert np.allclose(out, np.concatenate(expected), rtol=2 * np.finfo(dtype).eps, atol=0)


def test_comparisons_with_nan_are_false():
    a = np.full((1, LANES), np.nan)
    out = np.empty((12, LANES))
    computed(a, np.ones_like(a), out)
    assert np.array_equal(out[5], np.full(LANES, 7.0))
    assert np.array_equal(out[6], np.ones(LANES))
