"""From unconstrained numbers to one-forms of norm below one, with zero for zero."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._linalg import dot, solve

#: From raw one-forms (..., 2), matrices M (..., 2, 2) and eps_omega to one-forms (..., 2).
OmegaConstraint = Callable[[Tensor, Tensor, float], Tensor]


def sigmoid(
    raw: Float[Tensor, "*batch 2"], M: Float[Tensor, "*batch 2 2"], eps_omega: float
) -> Float[Tensor, "*batch 2"]:
    """Keep the direction and bring the norm ``n`` to ``(2 sigmoid(n) - 1) (1 - eps_omega)``.

    A smooth function of ``raw``, at zero too (the factor ``tanh(n/2) / n`` is smooth in ``n^2``).
    """
    return raw * _sigmoid_factor(raw, M, eps_omega)


def sigmoid_detached(
    raw: Float[Tensor, "*batch 2"], M: Float[Tensor, "*batch 2 2"], eps_omega: float
) -> Float[Tensor, "*batch 2"]:
    """Have the values of :func:`sigmoid`, with the factor taken as a constant in the gradient."""
    return raw * _sigmoid_factor(raw, M, eps_omega).detach()


def clip(
    raw: Float[Tensor, "*batch 2"], M: Float[Tensor, "*batch 2 2"], eps_omega: float
) -> Float[Tensor, "*batch 2"]:
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
    return dot(omega, solve(M, omega))


def _sigmoid_factor(raw: Tensor, M: Tensor, eps_omega: float) -> Tensor:
    square = _square_norm(raw, M)
    small = square < 1e-2
    # tanh(x) / x at x = n / 2, by its series in x^2 near zero.
    x2 = torch.where(small, square, 0.0) / 4
    series = 1 - x2 / 3 + x2**2 * (2 / 15) - x2**3 * (17 / 315) + x2**4 * (62 / 2835)
    n = torch.where(small, 1.0, square).sqrt()
    factor = torch.where(small, series / 2, torch.tanh(n / 2) / n)
    return ((1 - eps_omega) * factor)[..., None]
