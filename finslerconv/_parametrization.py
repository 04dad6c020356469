"""From unconstrained numbers to positive definite matrices, with zero for the identity.

Every parametrisation takes any output of a convolution to a positive definite matrix, in single
precision too. Zero gives exactly the identity, so a layer whose head outputs zero is the standard
convolution.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._linalg import dot, from_eigenvalues, outer

# The determinant of [[a, b], [b, c]] loses the ratio of a c to itself in digits. Held below the
# square of this, it keeps two of single precision's seven.
_MAX_SHEAR = 300.0

# Symmetric d x d matrices of entries up to this over d have eigenvalues up to this in size, and the
# exponentials of the 2 x 2 and 3 x 3 ones condition numbers up to 5000.
_MAX_LOGARITHM = 6.0


@dataclass(frozen=True)
class MatrixParametrization(abc.ABC):
    """A smooth map from ``n_channels`` free numbers onto positive definite matrices.

    Parameters
    ----------
    eps_L : float
        What keeps the factors (or eigenvalues) from zero, in (0, 1).
    dim : {1, 2, 3}
        The number of rows of the matrices: of axes of the layer that it is for.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import MatrixParametrization, MetricConv2d
    >>> class Diagonal(MatrixParametrization):  # balls along the axes
    ...     n_channels = 2
    ...     def matrix(self, raw):
    ...         return torch.diag_embed(torch.exp(raw))
    >>> MetricConv2d(3, 8, 3, padding=1, head=Diagonal())(torch.rand(1, 3, 6, 6)).shape
    torch.Size([1, 8, 6, 6])
    """

    eps_L: float = 0.01
    dim: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.eps_L < 1:
            raise ValueError(f"eps_L: expected a number in (0, 1), got {self.eps_L}")
        if self.dim not in (1, 2, 3):
            raise ValueError(f"dim: expected 1, 2 or 3, got {self.dim!r}")

    @property
    @abc.abstractmethod
    def n_channels(self) -> int:
        """How many numbers make a matrix."""

    @property
    def n_direction_channels(self) -> int:
        """How many of them, the first, are a direction.

        At equal eigenvalues a direction has no effect and so no gradient: its weights must start
        at random where all others start at zero.
        """
        return 0

    @abc.abstractmethod
    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d d"]:
        """Return the matrices ``M`` of the numbers ``raw``; zero gives the identity."""

    def _positive(self, raw: Tensor) -> Tensor:
        return (1 - self.eps_L + raw).abs() + self.eps_L


class _Triangular(MatrixParametrization):
    """A map from the entries of a lower triangle: the diagonal first, then row by row below it."""

    @property
    def n_channels(self) -> int:
        """The entries of a triangle: 1, 3 or 6."""
        return self.dim * (self.dim + 1) // 2

    def _entries(self, raw: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the diagonal, and of each row what is below it."""
        entries = iter(raw.unbind(-1))
        diagonal = [next(entries) for _ in range(self.dim)]
        return diagonal, [[next(entries) for _ in range(i)] for i in range(self.dim)]

    def _max_shear(self, row: int) -> float:
        """Return the bound of each entry of a row below the diagonal, over that on it."""
        # The rows share the loss of digits, and the entries of a row its share.
        return _MAX_SHEAR ** (1 / max(self.dim - 1, 1)) / math.sqrt(row)


@final
@dataclass(frozen=True)
class Cholesky(_Triangular):
    """``M = L L'`` with ``L`` lower triangular, of diagonal ``|1 - eps_L + raw| + eps_L``.

    The entries below the diagonal are softly held to a multiple of the diagonal entry of their row:
    300 for 2 x 2 matrices, 17 and 12 for the second and the third row of 3 x 3 ones.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Cholesky
    >>> head = Cholesky()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (3, [[1.0, 0.0], [0.0, 1.0]])
    """

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d d"]:
        """Return the matrices ``L L'``."""
        diagonal, below = self._entries(raw)
        L = []
        for i, row in enumerate(below):
            here = self._positive(diagonal[i])
            L.append([*(soft_clip(x, self._max_shear(i) * here) for x in row), here])
        return _product(L, L)


@final
@dataclass(frozen=True)
class LDL(_Triangular):
    """``M = L D L'`` with ``L`` unit lower triangular, ``D = |1 - eps_L + raw| + eps_L``.

    The entries below the diagonal are softly held where the determinant would be lost to rounding.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import LDL
    >>> head = LDL()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (3, [[1.0, 0.0], [0.0, 1.0]])
    """

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d d"]:
        """Return the matrices ``L D L'``."""
        diagonal, below = self._entries(raw)
        D = [self._positive(x) for x in diagonal]
        L = [
            [soft_clip(x, self._max_shear(i) * (D[i] / D[j]).sqrt()) for j, x in enumerate(row)]
            for i, row in enumerate(below)
        ]
        LD = [[*(x * D[j] for j, x in enumerate(row)), D[i]] for i, row in enumerate(L)]
        return _product([[*row, torch.ones_like(D[0])] for row in L], LD)


class _Spectral(MatrixParametrization):
    """A map from what turns the eigenvectors, and then the eigenvalues."""

    @property
    def n_direction_channels(self) -> int:
        """A vector of the plane, or a quaternion: 0, 2 or 4."""
        return {1: 0, 2: 2, 3: 4}[self.dim]


@final
@dataclass(frozen=True)
class Spectral(_Spectral):
    """A direction and the eigenvalues ``|1 - eps_L + raw| + eps_L``.

    In the plane the eigenvector of the first eigenvalue is the direction, normalised; the zero
    direction counts as the first axis. In space the eigenvectors are the axes turned by a
    quaternion, normalised; zero does not turn. The smaller eigenvalues are held above 1 / 90000 of
    the largest one.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Spectral
    >>> head = Spectral()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (4, [[1.0, 0.0], [0.0, 1.0]])
    """

    @property
    def n_channels(self) -> int:
        """Those of the direction, and the eigenvalues: 1, 4 or 7."""
        return self.n_direction_channels + self.dim

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d d"]:
        """Return the matrices with these eigenvectors and eigenvalues."""
        n = self.n_direction_channels
        return from_spectrum(raw[..., :n], self._positive(raw[..., n:]))


@final
@dataclass(frozen=True)
class SpectralScaled(_Spectral):
    """A direction, bounded eigenvalues and a common scale: the paper's head of networks.

    Directions are those of :class:`Spectral`. The eigenvalues are ``2 sigmoid(raw)``, kept
    ``eps_L`` away from 0 and 2, and the smaller ones above 1 / 90000 of the largest; the scale is a
    sigmoid onto ``[scale_min, scale_max]``, shifted so that it is 1 at zero. So the unit ball stays
    within fixed bounds.

    Parameters
    ----------
    eps_L : float
    scale_min, scale_max : float
        Bounds of the scale, ``0 < scale_min < 1 < scale_max``.
    dim : {1, 2, 3}

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import SpectralScaled
    >>> head = SpectralScaled(scale_max=2.0)
    >>> head.n_channels, head.matrix(torch.zeros(5)).round(decimals=5).tolist()
    (5, [[1.0, 0.0], [0.0, 1.0]])
    """

    scale_min: float = 0.1
    scale_max: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale_min < 1 < self.scale_max:
            raise ValueError(
                "scale_min, scale_max: expected 0 < scale_min < 1 < scale_max, so that the scale "
                f"can start at 1, got {self.scale_min} and {self.scale_max}"
            )

    @property
    def n_channels(self) -> int:
        """Those of the direction, the eigenvalues and the scale: 2, 5 or 8."""
        return self.n_direction_channels + self.dim + 1

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d d"]:
        """Return the matrices with these eigenvectors, eigenvalues and scale."""
        n = self.n_direction_channels
        share = (1 - self.scale_min) / (self.scale_max - self.scale_min)
        shift = math.log(share / (1 - share))
        scale = self.scale_min + (self.scale_max - self.scale_min) * torch.sigmoid(
            raw[..., -1:] + shift
        )
        span = 2 - 2 * self.eps_L
        eigenvalues = scale * (self.eps_L + span * torch.sigmoid(raw[..., n:-1]))
        return from_spectrum(raw[..., :n], eigenvalues)


@final
@dataclass(frozen=True)
class LogEuclidean(_Triangular):
    """The matrix exponential of a symmetric matrix; ``eps_L`` is not needed.

    The entries of the symmetric ``d x d`` matrix are softly held to [-6/d, 6/d]: the half-axes of
    the ball then stay between ``exp(-3)`` and ``exp(3)`` times those at the start.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import LogEuclidean
    >>> head = LogEuclidean()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (3, [[1.0, 0.0], [0.0, 1.0]])
    """

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d d"]:
        """Return the exponentials, in closed form up to 2 x 2."""
        diagonal, below = self._entries(soft_clip(raw, _MAX_LOGARITHM / self.dim))
        rows = [[*row, diagonal[i]] for i, row in enumerate(below)]
        if self.dim == 1:
            return symmetric(rows).exp()
        if self.dim > 2:
            return _exp(symmetric(rows))
        (first,), (off, second) = rows
        mean, half = (first + second) / 2, (first - second) / 2
        square = half * half + off * off
        # exp(mean I + S) with S^2 = square I; both factors are smooth functions of the square.
        cosh, sinhc = _cosh_sinhc(square)
        size = mean.exp()
        return symmetric(
            [[size * (cosh + sinhc * half)], [size * sinhc * off, size * (cosh - sinhc * half)]]
        )


#: The parametrisations by the names that ``MetricConv2d(head=...)`` takes.
PARAMETRIZATIONS: dict[str, type[MatrixParametrization]] = {
    "cholesky": Cholesky,
    "ldl": LDL,
    "spectral": Spectral,
    "spectral_scaled": SpectralScaled,
    "log_euclidean": LogEuclidean,
}


def soft_clip(x: Tensor, bound: Tensor | float) -> Tensor:
    """Return ``bound tanh(x / bound)``: ``x`` where it is small, and never beyond ``bound``."""
    return bound * torch.tanh(x / bound)


def symmetric(rows: Sequence[Sequence[Tensor]]) -> Float[Tensor, "*batch d d"]:
    """Return the symmetric matrices with these rows of a lower triangle."""
    d = len(rows)
    full = [[rows[max(i, j)][min(i, j)] for j in range(d)] for i in range(d)]
    return torch.stack([torch.stack(row, dim=-1) for row in full], dim=-2)


def _product(
    A: Sequence[Sequence[Tensor]], B: Sequence[Sequence[Tensor]]
) -> Float[Tensor, "*batch d d"]:
    """Return the products ``A B'`` of lower triangles that are symmetric."""
    return symmetric(
        [
            [
                sum((A[i][k] * B[j][k] for k in range(1, j + 1)), start=A[i][0] * B[j][0])
                for j in range(i + 1)
            ]
            for i in range(len(A))
        ]
    )


def from_spectrum(
    direction: Float[Tensor, "*batch n"], eigenvalues: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch d d"]:
    """Return the matrices of these eigenvalues, with eigenvectors as :class:`Spectral` turns them.

    The smaller eigenvalues are raised to what the largest one's rounding leaves of them.
    """
    dim = eigenvalues.shape[-1]
    if dim == 1:
        return eigenvalues[..., None]
    least = eigenvalues.amax(dim=-1, keepdim=True) / _MAX_SHEAR**2
    eigenvalues = torch.maximum(eigenvalues, least)
    turn = _unit(direction)
    if dim == 2:
        return from_eigenvalues(turn, eigenvalues[..., 0], eigenvalues[..., 1])
    vectors = _rotation(turn)
    parts = [eigenvalues[..., k, None, None] * outer(v, v) for k, v in enumerate(vectors)]
    return parts[0] + parts[1] + parts[2]


def _unit(v: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Return the vectors at length 1; zero counts as the first axis."""
    square = dot(v, v)
    known = square > 0
    length = torch.where(known, square, 1.0).sqrt()
    parts = enumerate(v.unbind(-1))
    return torch.stack([torch.where(known, x / length, float(i == 0)) for i, x in parts], dim=-1)


def _rotation(quaternion: Float[Tensor, "*batch 4"]) -> list[Float[Tensor, "*batch 3"]]:
    """Return where unit quaternions ``w, x, y, z`` turn the three axes."""
    w, x, y, z = quaternion.unbind(-1)
    turned = (
        (w * w + x * x - y * y - z * z, 2 * (x * y + w * z), 2 * (x * z - w * y)),
        (2 * (x * y - w * z), w * w - x * x + y * y - z * z, 2 * (y * z + w * x)),
        (2 * (x * z + w * y), 2 * (y * z - w * x), w * w - x * x - y * y + z * z),
    )
    return [torch.stack(axis, dim=-1) for axis in turned]


def _exp(S: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Return the exponentials of symmetric matrices of norms up to 6, to rounding."""
    # Sums and no matrix products: those of a GPU may have but three digits (TF32). The series is
    # that of a 16th, of norm up to 3/8, whose 13th power over 13! is below double precision's eps.
    X = S / 16
    identity = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    E = identity + X / 12
    for k in range(11, 0, -1):
        E = identity + _matmul(X, E) / k
    for _ in range(4):
        E = _matmul(E, E)
    return (E + E.mT) / 2


def _matmul(A: Tensor, B: Tensor) -> Float[Tensor, "*batch d d"]:
    columns = [outer(A[..., :, k], B[..., k, :]) for k in range(A.shape[-1])]
    return sum(columns[1:], start=columns[0])


def _cosh_sinhc(square: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``cosh(r)`` and ``sinh(r) / r`` as functions of ``square = r^2``, smooth at zero."""
    small = square < 1e-2
    series = torch.where(small, square, 0.0)
    cosh_series = 1 + series / 2 * (1 + series / 12 * (1 + series / 30 * (1 + series / 56)))
    sinhc_series = 1 + series / 6 * (1 + series / 20 * (1 + series / 42 * (1 + series / 72)))
    r = torch.where(small, 1.0, square).sqrt()
    return (
        torch.where(small, cosh_series, r.cosh()),
        torch.where(small, sinhc_series, r.sinh() / r),
    )
