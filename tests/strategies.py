"""Random metrics and vectors for the property tests, with the error bounds that belong to them.

The metrics span condition numbers of ``M`` up to 1e6 and norms of ``omega`` up to 0.999, in float64
and float32, as NumPy arrays and PyTorch tensors, in the dimensions 1, 2, 3 and 5.

The truth is always the metric of the *rounded* numbers. In float32 rounding alone may leave an
ill-conditioned ``M`` indefinite, or ``|omega|`` at 1 or above: such numbers are no metric, and are
not generated. The bounds are first-order bounds of rounding errors, ``C eps cond(M) / lambda^p``
with ``lambda = 1 - |omega|^2``. At the extremes of float32 they come near 1, where a first-order
bound says nothing: there the tests ask for finite values only (:func:`assert_bounded`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st

from finslerconv.metrics import Randers

DIMENSIONS = (1, 2, 3, 5)
KINDS = ("numpy", "torch")
DTYPES = ("float64", "float32")
MAX_CONDITION = 1e6
MAX_OMEGA = 0.999


def as_kind(values: Any, kind: str = "numpy", dtype: str = "float64") -> Any:
    """Return ``values`` as an array of the kind and dtype that are named."""
    values = np.array(values, dtype=dtype)
    return values if kind == "numpy" else torch.as_tensor(values)


def as_numpy(x: Any) -> np.ndarray:
    """Return any array as NumPy float64."""
    return np.asarray(x.detach() if hasattr(x, "detach") else x, dtype=np.float64)


def assert_bounded(error: Any, bound: Any) -> None:
    """Assert that relative errors are finite, and below their bounds where those mean something."""
    error, bound = np.broadcast_arrays(np.abs(error), bound)
    assert np.isfinite(error).all()
    bad = (error > bound) & (bound < 0.1)
    assert not bad.any(), f"worst error / bound: {(error / bound)[bad].max():.3g}"


def relative(actual: Any, expected: Any, axes: int = 0) -> np.ndarray:
    """Return relative errors: of numbers, of vectors (axes=1) or of matrices (axes=2), by norms."""
    actual, expected = as_numpy(actual), as_numpy(expected)
    over = tuple(range(-axes, 0))
    size = np.sqrt((expected**2).sum(over))
    return np.sqrt(((actual - expected) ** 2).sum(over)) / np.where(size > 0, size, 1.0)


@dataclass(frozen=True)
class Case:
    """A batch of Randers metrics in the kind under test, and its truth.

    ``M`` and ``omega`` are rounded to ``dtype`` but held in NumPy float64, as in the metric
    ``exact``; ``condition`` and ``lam`` are cond(M) and 1 - |omega|^2 of those, shape (batch,).
    """

    M: np.ndarray
    omega: np.ndarray
    kind: str
    dtype: str
    condition: np.ndarray
    lam: np.ndarray
    seed: int

    def __repr__(self) -> str:
        M, omega = self.M.tolist(), self.omega.tolist()
        return f"Case({self.kind}, {self.dtype}, seed={self.seed}, M={M}, omega={omega})"

    # Not built in the strategy: the run-time check of annotations draws random numbers, which
    # hypothesis forbids there.
    @cached_property
    def metric(self) -> Randers:
        return Randers(self.array(self.M), self.array(self.omega), validate=False)

    @cached_property
    def exact(self) -> Randers:
        return Randers(self.M, self.omega, validate=False)

    @property
    def dim(self) -> int:
        return self.M.shape[-1]

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    def array(self, values: Any) -> Any:
        """Return ``values`` in the kind and dtype under test."""
        return as_kind(values, self.kind, self.dtype)

    def rounded(self, values: Any) -> np.ndarray:
        """Return ``values`` as the dtype under test holds them, in NumPy float64."""
        return np.asarray(values).astype(self.dtype).astype(np.float64)

    def vectors(self, n: int, salt: int = 0) -> np.ndarray:
        """Return ``n`` vectors for each metric, rounded, shape (n, batch, d).

        Every other one is spread evenly in the frame where the metric looks round, so that the
        short and the long axes of the ball are both visited.
        """
        rng = np.random.default_rng((self.seed, salt))
        v = rng.standard_normal((n, len(self.lam), self.dim))
        values, axes = np.linalg.eigh(self.M)
        v[::2] = np.einsum("bij,bj,nbj->nbi", axes, values**-0.5, v[::2])
        return self.rounded(v)

    def bound(self, power: float, constant: float = 4.0) -> np.ndarray:
        """Return ``constant (d + 1) eps cond(M) / lambda^power``, shape (batch,).

        Every formula of the core is a handful (the constant) of sums of ``d`` or ``d + 1`` rounded
        terms, whose errors the inverse of ``M`` amplifies by cond(M) and each division by
        ``lambda``, itself a difference of numbers of size 1, by 1 / lambda.
        """
        return constant * (self.dim + 1) * self.eps * self.condition / self.lam**power

    def norm_error(self, v: np.ndarray) -> np.ndarray:
        """Return a bound of the rounding error of ``metric.norm(v)``, vector by vector.

        The running error bound of ``sqrt(v' M v) + omega' v``. A sum of products of ``d`` terms
        is wrong by at most ``d eps`` times the sum of their moduli (``eps`` is twice the unit
        roundoff), a double sum by twice that; the root divides it by the root.
        """
        size, M, omega = np.abs(v), np.abs(self.M), np.abs(self.omega)
        moduli = np.einsum("...i,...ij,...j->...", size, M, size)
        alpha = np.sqrt(np.einsum("...i,...ij,...j->...", v, self.M, v).clip(0))
        one_form = (omega * size).sum(-1)
        tiny = np.finfo(float).tiny
        return (self.dim + 2) * self.eps * (moduli / np.maximum(alpha, tiny) + one_form + alpha)


@st.composite
def cases(draw, dims=DIMENSIONS, kinds=KINDS, dtypes=DTYPES, max_condition=MAX_CONDITION, batch=4):
    """Draw a batch of Randers metrics, as a :class:`Case`."""
    dim, kind, dtype = (draw(st.sampled_from(x)) for x in (dims, kinds, dtypes))
    condition = 10.0 ** draw(st.floats(0, np.log10(max_condition)))
    # Between 0 and 1e-6 there is nothing new but underflow.
    strength = draw(st.sampled_from((0.0, MAX_OMEGA)) | st.floats(1e-6, MAX_OMEGA))
    scale = 10.0 ** draw(st.floats(-2, 2))
    seed = draw(st.integers(0, 2**32 - 1))

    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((batch, dim, dim)))[0]
    values = condition ** -rng.random((batch, dim))
    values[:, 0] = 1.0
    if dim > 1:
        values[:, -1] = 1 / condition
    M = scale * np.einsum("bij,bj,bkj->bik", axes, values, axes)
    M = (M + M.swapaxes(-1, -2)) / 2
    u = rng.standard_normal((batch, dim))
    u *= strength / np.linalg.norm(u, axis=-1, keepdims=True)
    omega = np.einsum("bij,bj,bj->bi", axes, np.sqrt(scale * values), u)

    M, omega = (x.astype(dtype).astype(np.float64) for x in (M, omega))
    spectrum = np.linalg.eigvalsh(M)
    good = spectrum[:, 0] > 0
    assume(good.any())
    M, omega, spectrum = M[good], omega[good], spectrum[good]
    lam = 1 - np.einsum("bi,bi->b", omega, np.linalg.solve(M, omega[..., None])[..., 0])
    good = lam > 0
    assume(good.any())
    M, omega, spectrum, lam = M[good], omega[good], spectrum[good], lam[good]
    return Case(
        M=M,
        omega=omega,
        kind=kind,
        dtype=dtype,
        condition=spectrum[:, -1] / spectrum[:, 0],
        lam=lam,
        seed=seed,
    )
