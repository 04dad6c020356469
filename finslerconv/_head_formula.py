"""From the channels of a metric head to its metrics: the formula, in PyTorch's operations.

The compiled backends of :mod:`finslerconv.ops` compute the same from
``ops/backends/_head_numbers.py``.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._linalg import dot, solve
from finslerconv._parametrization import PARAMETRIZATIONS, MatrixParametrization

#: From raw one-forms (..., d), matrices M (..., d, d) and eps_omega to one-forms (..., d).
OmegaConstraint = Callable[[Tensor, Tensor, float], Tensor]


def sigmoid(
    raw: Float[Tensor, "*batch d"], M: Float[Tensor, "*batch d d"], eps_omega: float
) -> Float[Tensor, "*batch d"]:
    """Keep the direction and bring the norm ``n`` to ``(2 sigmoid(n) - 1) (1 - eps_omega)``.

    A smooth function of ``raw``, at zero too (the factor ``tanh(n/2) / n`` is smooth in ``n^2``).
    """
    return raw * _sigmoid_factor(raw, M, eps_omega)


def sigmoid_detached(
    raw: Float[Tensor, "*batch d"], M: Float[Tensor, "*batch d d"], eps_omega: float
) -> Float[Tensor, "*batch d"]:
    """Have the values of :func:`sigmoid`, with the factor taken as a constant in the gradient."""
    return raw * _sigmoid_factor(raw, M, eps_omega).detach()


def clip(
    raw: Float[Tensor, "*batch d"], M: Float[Tensor, "*batch d d"], eps_omega: float
) -> Float[Tensor, "*batch d"]:
    """Keep one-forms of norm up to ``1 - eps_omega`` and shorten the others to that norm."""
    square = _square_norm(raw, M)
    long = square > (1 - eps_omega) ** 2
    factor = (1 - eps_omega) / torch.where(long, square, 1.0).sqrt()
    return raw * torch.where(long, factor, 1.0)[..., None]


#: The constraints by the names that ``MetricConv2d(omega_constraint=...)`` takes.
OMEGA_CONSTRAINTS: dict[str, OmegaConstraint] = {
    "sigmoid": sigmoid,
    "sigmoid_detached": sigmoid_detached,
    "clip": clip,
}


def _square_norm(omega: Tensor, M: Tensor) -> Tensor:
    """Return ``omega' M^-1 omega``."""
    d = M.shape[-1]
    if d <= 2:
        return dot(omega, solve(M, omega))
    # Squares over the pivots of Gauss's elimination: no more digits are lost than M has lost.
    A = [[M[..., i, j] for j in range(i + 1)] for i in range(d)]
    w = list(omega.unbind(-1))
    total = w[0] * w[0] / A[0][0]
    for k in range(1, d):
        for i in range(k, d):
            factor = A[i][k - 1] / A[k - 1][k - 1]
            w[i] = w[i] - factor * w[k - 1]
            for j in range(k, i + 1):
                A[i][j] = A[i][j] - factor * A[j][k - 1]
        total = total + w[k] * w[k] / A[k][k]
    return total


def _sigmoid_factor(raw: Tensor, M: Tensor, eps_omega: float) -> Tensor:
    square = _square_norm(raw, M)
    small = square < 1e-2
    # tanh(x) / x at x = n / 2, by its series in x^2 near zero.
    x2 = torch.where(small, square, 0.0) / 4
    series = 1 - x2 / 3 + x2**2 * (2 / 15) - x2**3 * (17 / 315) + x2**4 * (62 / 2835)
    n = torch.where(small, 1.0, square).sqrt()
    factor = torch.where(small, series / 2, torch.tanh(n / 2) / n)
    return ((1 - eps_omega) * factor)[..., None]


@dataclass(frozen=True)
class HeadFormula:
    """How the channels of a metric head become Randers (or Riemannian) metrics.

    Channels of zero are the metric ``I / radius^2``.

    Parameters
    ----------
    parametrization : MatrixParametrization
        From channels to the matrix ``M``, before the radius.
    eps_omega : float
        How far ``|omega|_{M^-1}`` stays below 1, in [0.01, 1]; at 1 the metric is Riemannian and
        has no channels for omega.
    omega_constraint : {"sigmoid", "sigmoid_detached", "clip"}
        How omega is held to that.
    radius : float
        Radius of the unit ball at zero, in spacings between taps.

    Raises
    ------
    ValueError
        If ``eps_omega`` or ``omega_constraint`` is out of its range.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Cholesky
    >>> from finslerconv.ops import HeadFormula
    >>> formula = HeadFormula(Cholesky(), eps_omega=1.0, radius=2.0)
    >>> formula.eps_omega, formula.radius
    (1.0, 2.0)
    """

    parametrization: MatrixParametrization
    eps_omega: float = 0.1
    omega_constraint: str = "sigmoid"
    radius: float = 1.0

    def __post_init__(self) -> None:
        # With a smaller one, single precision no longer keeps |omega| below 1.
        if not 0.01 <= self.eps_omega <= 1:
            raise ValueError(
                "eps_omega: expected a number in [0.01, 1], 1 for a Riemannian metric, got "
                f"{self.eps_omega}"
            )
        if self.omega_constraint not in OMEGA_CONSTRAINTS:
            raise ValueError(
                f"omega_constraint: expected one of {list(OMEGA_CONSTRAINTS)}, got "
                f"{self.omega_constraint!r}"
            )

    @property
    def dim(self) -> int:
        """The dimension of the metrics."""
        return self.parametrization.dim

    @property
    def is_riemannian(self) -> bool:
        """Whether there is no omega."""
        return self.eps_omega == 1

    @property
    def n_channels(self) -> int:
        """The number of channels that make one metric: those of ``M``, then those of omega."""
        return self.parametrization.n_channels + (0 if self.is_riemannian else self.dim)

    def metrics(
        self, channels: Float[Tensor, "batch channels *size"]
    ) -> tuple[
        Float[Tensor, "batch groups *size d d"],
        Float[Tensor, "batch groups *size d"] | None,
    ]:
        r"""Return ``M`` and ``omega`` (None if Riemannian), in float32 at least.

        Parameters
        ----------
        channels : Tensor, shape (B, G * n_channels, \*size)
            Over the ``dim`` axes of the output.
        """
        raw = channels.to(torch.promote_types(channels.dtype, torch.float32))
        raw = raw.unflatten(1, (-1, self.n_channels)).movedim(2, -1)
        n = self.parametrization.n_channels
        # Positions are geometry: half precision would move them by pixels.
        with _full_precision(raw.device.type):
            M = self.parametrization.matrix(raw[..., :n])
            if self.is_riemannian:
                return M / self.radius**2, None
            constraint = OMEGA_CONSTRAINTS[self.omega_constraint]
            omega = constraint(raw[..., n:], M, self.eps_omega)
            return M / self.radius**2, omega / self.radius

    @property
    def name(self) -> str | None:
        """What the compiled backends call the formula; None if they do not have it."""
        for name, kind in PARAMETRIZATIONS.items():
            if type(self.parametrization) is kind and self.dim == 2:
                return f"{name} {self.omega_constraint}"
        return None

    @property
    def numbers(self) -> tuple[float, ...]:
        """What tells formulas of one name apart, for :meth:`of`."""
        kind = self.parametrization
        bounds = (getattr(kind, "scale_min", 0.0), getattr(kind, "scale_max", 0.0))
        return (kind.eps_L, *bounds, self.eps_omega, self.radius)

    @classmethod
    def of(cls, name: str, numbers: Sequence[float]) -> "HeadFormula":
        """Return the formula of a name and numbers."""
        kind, constraint = name.split()
        eps_L, scale_min, scale_max, eps_omega, radius = numbers
        bounds = (scale_min, scale_max) if kind == "spectral_scaled" else ()
        return cls(PARAMETRIZATIONS[kind](eps_L, *bounds), eps_omega, constraint, radius)


def _full_precision(device_type: str) -> contextlib.AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
