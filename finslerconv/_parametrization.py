"""From unconstrained numbers to positive definite matrices, with zero for the identity.

Every parametrisation takes any output of a convolution to a positive definite matrix, in single
precision too. Zero gives exactly the identity, so a layer whose head outputs zero is the standard
convolution.
"""

import abc
import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._linalg import from_eigenvalues

# The determinant of [[a, b], [b, c]] loses the ratio of a c to itself in digits. Held below the
# square of this, it keeps two of single precision's seven.
_MAX_SHEAR = 300.0

# Symmetric matrices of entries up to this have exponentials of condition numbers up to 5000.
_MAX_LOGARITHM = 3.0


@dataclass(frozen=True)
class MatrixParametrization(abc.ABC):
    """A smooth map from ``n_channels`` free numbers onto 2 x 2 positive definite matrices.

    Parameters
    ----------
    eps_L : float
        What keeps the factors (or eigenvalues) from zero, in (0, 1).

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

    def __post_init__(self) -> None:
        if not 0 < self.eps_L < 1:
            raise ValueError(f"eps_L: expected a number in (0, 1), got {self.eps_L}")

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
    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 2 2"]:
        """Return the matrices ``M`` of the numbers ``raw``; zero gives the identity."""


@final
@dataclass(frozen=True)
class Cholesky(MatrixParametrization):
    """``M = L L'`` with ``L`` lower triangular, of diagonal ``|1 - eps_L + raw| + eps_L``.

    The entry below the diagonal is softly held to 300 times the diagonal entry beside it.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Cholesky
    >>> head = Cholesky()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (3, [[1.0, 0.0], [0.0, 1.0]])
    """

    n_channels = 3  #: Two diagonal entries, one below.

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 2 2"]:
        """Return the matrices ``L L'``."""
        first, second, below = raw.unbind(-1)
        first, second = self._positive(first), self._positive(second)
        below = soft_clip(below, _MAX_SHEAR * second)
        return symmetric(first * first, first * below, below * below + second * second)

    def _positive(self, raw: Tensor) -> Tensor:
        return (1 - self.eps_L + raw).abs() + self.eps_L


@final
@dataclass(frozen=True)
class LDL(MatrixParametrization):
    """``M = L D L'`` with ``L`` unit lower triangular, ``D = |1 - eps_L + raw| + eps_L``.

    The entry below the diagonal is softly held where the determinant would be lost to rounding.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import LDL
    >>> head = LDL()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (3, [[1.0, 0.0], [0.0, 1.0]])
    """

    n_channels = 3  #: Two diagonal entries, one below.

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 2 2"]:
        """Return the matrices ``L D L'``."""
        first, second, below = raw.unbind(-1)
        first = (1 - self.eps_L + first).abs() + self.eps_L
        second = (1 - self.eps_L + second).abs() + self.eps_L
        below = soft_clip(below, _MAX_SHEAR * (second / first).sqrt())
        return symmetric(first, below * first, below * below * first + second)


@final
@dataclass(frozen=True)
class Spectral(MatrixParametrization):
    """A direction and two eigenvalues ``|1 - eps_L + raw| + eps_L``.

    The eigenvector of the first eigenvalue is the direction, normalised; the zero direction
    counts as the first axis. The smaller eigenvalue is held above 1 / 90000 of the larger one.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Spectral
    >>> head = Spectral()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (4, [[1.0, 0.0], [0.0, 1.0]])
    """

    n_channels = 4  #: Two of the direction, two eigenvalues.
    n_direction_channels = 2

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 2 2"]:
        """Return the matrices with these eigenvectors and eigenvalues."""
        eigenvalues = (1 - self.eps_L + raw[..., 2:]).abs() + self.eps_L
        return from_spectrum(raw[..., :2], eigenvalues[..., 0], eigenvalues[..., 1])


@final
@dataclass(frozen=True)
class SpectralScaled(MatrixParametrization):
    """A direction, two bounded eigenvalues and a common scale: the paper's head of networks.

    The eigenvalues are ``2 sigmoid(raw)``, kept ``eps_L`` away from 0 and 2, and the smaller one
    above 1 / 90000 of the larger; the scale is a sigmoid onto ``[scale_min, scale_max]``,
    shifted so that it is 1 at zero. So the unit ball stays within fixed bounds.

    Parameters
    ----------
    eps_L : float
    scale_min, scale_max : float
        Bounds of the scale, ``0 < scale_min < 1 < scale_max``.

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

    n_channels = 5  #: Two of the direction, two eigenvalues, the scale.
    n_direction_channels = 2

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 2 2"]:
        """Return the matrices with these eigenvectors, eigenvalues and scale."""
        share = (1 - self.scale_min) / (self.scale_max - self.scale_min)
        shift = math.log(share / (1 - share))
        scale = self.scale_min + (self.scale_max - self.scale_min) * torch.sigmoid(
            raw[..., 4] + shift
        )
        span = 2 - 2 * self.eps_L
        eigenvalues = scale[..., None] * (self.eps_L + span * torch.sigmoid(raw[..., 2:4]))
        return from_spectrum(raw[..., :2], eigenvalues[..., 0], eigenvalues[..., 1])


@final
@dataclass(frozen=True)
class LogEuclidean(MatrixParametrization):
    """The matrix exponential of a symmetric matrix, in closed form; ``eps_L`` is not needed.

    The entries of the symmetric matrix are softly held to [-3, 3]: the half-axes of the ball then
    stay between ``exp(-3)`` and ``exp(3)`` times those at the start.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import LogEuclidean
    >>> head = LogEuclidean()
    >>> head.n_channels, head.matrix(torch.zeros(head.n_channels)).tolist()
    (3, [[1.0, 0.0], [0.0, 1.0]])
    """

    n_channels = 3  #: The entries of a symmetric matrix.

    def matrix(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 2 2"]:
        """Return the exponentials."""
        first, second, off = soft_clip(raw, _MAX_LOGARITHM).unbind(-1)
        mean, half = (first + second) / 2, (first - second) / 2
        square = half * half + off * off
        # exp(mean I + S) with S^2 = square I; both factors are smooth functions of the square.
        cosh, sinhc = _cosh_sinhc(square)
        size = mean.exp()
        return symmetric(
            size * (cosh + sinhc * half), size * sinhc * off, size * (cosh - sinhc * half)
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


def symmetric(a: Tensor, b: Tensor, c: Tensor) -> Float[Tensor, "*batch 2 2"]:
    """Return the matrices ``[[a, b], [b, c]]``."""
    return torch.stack((torch.stack((a, b), dim=-1), torch.stack((b, c), dim=-1)), dim=-2)


def from_spectrum(direction: Tensor, first: Tensor, second: Tensor) -> Float[Tensor, "*batch 2 2"]:
    """Return the matrices with eigenvalue ``first`` along ``direction`` and ``second`` across.

    The smaller eigenvalue is raised to what the larger one's rounding leaves of it.
    """
    u, v = direction.unbind(-1)
    square = u * u + v * v
    known = square > 0
    length = torch.where(known, square, 1.0).sqrt()
    n = torch.stack((torch.where(known, u / length, 1.0), torch.where(known, v / length, 0.0)), -1)
    least = torch.maximum(first, second) / _MAX_SHEAR**2
    return from_eigenvalues(n, torch.maximum(first, least), torch.maximum(second, least))


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
