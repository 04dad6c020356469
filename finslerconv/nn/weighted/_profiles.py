"""Radial profiles: the density of a tap as a function rho of its distance from the centre."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv._arrays import has_values
from finslerconv.nn.weighted._density import check_values, held


class Profile(nn.Module, ABC):
    r"""A function :math:`\rho(r)` of a distance :math:`r \ge 0`, fixed or trainable.

    Its numbers are kept in double precision until a :class:`MetricDensity` takes it over and
    casts it to its own dtype. One profile may serve many densities, of any kernel size.

    Parameters
    ----------
    trainable : bool
        Whether the profile's numbers are parameters.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Profile
    >>> class Inverse(Profile):
    ...     def forward(self, distance):
    ...         return 1 / (1 + distance)
    >>> Inverse(trainable=False)(torch.tensor([0.0, 1.0])).tolist()
    [1.0, 0.5]
    """

    def __init__(self, trainable: bool) -> None:
        super().__init__()
        self.trainable = trainable

    @abstractmethod
    def forward(self, r: Float[Tensor, "*taps"]) -> Float[Tensor, "*taps"]:
        """Return the density at distances ``r >= 0`` from the centre, in the metric's unit."""

    def _keep(self, name: str, values: Tensor) -> None:
        if self.trainable:
            setattr(self, name, nn.Parameter(values))
        else:
            self.register_buffer(name, values)
        self.to(torch.empty(0).device)  # where PyTorch makes tensors now


def _double(values: float | Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _shown(x: Tensor) -> str:
    return f"{x.item():.6g}" if has_values(x) else "?"


class GaussianProfile(Profile):
    r"""The Gaussian :math:`\rho(r) = \exp(-r^2 / (2 \sigma^2))`: positive, 1 at the centre.

    Parameters
    ----------
    sigma : float
        Width, in the metric's unit; its logarithm is what is trained.
    trainable : bool
        Whether ``sigma`` is a parameter (``log_sigma`` in the ``state_dict``).

    Raises
    ------
    ValueError
        If ``sigma`` is not finite and above zero.

    Examples
    --------
    >>> GaussianProfile(2.0)(torch.tensor([0.0, 2.0]))
    tensor([1.0000, 0.6065])
    """

    log_sigma: Tensor

    def __init__(self, sigma: float, *, trainable: bool = False) -> None:
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be finite and above zero; got {sigma}")
        super().__init__(trainable)
        self._keep("log_sigma", _double(sigma).log())

    def forward(self, r: Float[Tensor, "*taps"]) -> Float[Tensor, "*taps"]:
        scaled = r * torch.exp(-self.log_sigma.to(r.dtype))
        return torch.exp(-0.5 * scaled * scaled)

    def extra_repr(self) -> str:
        return f"sigma={_shown(self.log_sigma.exp())}, trainable={self.trainable}"


class PowerProfile(Profile):
    r"""The power law :math:`\rho(r) = (1 + r)^{-p}`: positive, 1 at the centre.

    Parameters
    ----------
    exponent : float
        ``p``: above zero the density falls outwards, below zero it rises, at zero it is 1.
    trainable : bool
        Whether ``exponent`` is a parameter (``exponent`` in the ``state_dict``).

    Raises
    ------
    ValueError
        If ``exponent`` is not finite.

    Examples
    --------
    >>> PowerProfile(1.0)(torch.tensor([0.0, 1.0, 3.0]))
    tensor([1.0000, 0.5000, 0.2500])
    """

    exponent: Tensor

    def __init__(self, exponent: float, *, trainable: bool = False) -> None:
        if not math.isfinite(exponent):
            raise ValueError(f"exponent must be finite; got {exponent}")
        super().__init__(trainable)
        self._keep("exponent", _double(exponent))

    def forward(self, r: Float[Tensor, "*taps"]) -> Float[Tensor, "*taps"]:
        return (1 + r) ** -self.exponent.to(r.dtype)

    def extra_repr(self) -> str:
        return f"exponent={_shown(self.exponent)}, trainable={self.trainable}"


class FreeProfile(Profile):
    r"""A free profile: linear between values at equally spaced distances, constant beyond.

    Parameters
    ----------
    values : sequence of float
        ``rho`` at the distances ``radius * i / (n - 1)``, ``i = 0 ... n - 1``; at least two.
    radius : float
        Distance of the last value, in the metric's unit.
    trainable : bool
        Whether ``values`` are parameters (``values`` in the ``state_dict``, ``log_values`` under
        ``positive``).
    positive : bool
        Whether the profile must stay positive: the values are checked, and what is kept is their
        logarithm.

    Raises
    ------
    ValueError
        If there are fewer than two values, one is not finite, ``positive`` is set and one is not
        above zero, or ``radius`` is not finite and above zero.

    Examples
    --------
    >>> FreeProfile([1.0, 0.5, 0.5], radius=2.0)(torch.tensor([0.0, 0.5, 9.0]))
    tensor([1.0000, 0.7500, 0.5000])
    """

    def __init__(
        self,
        values: Sequence[float],
        radius: float,
        *,
        trainable: bool = False,
        positive: bool = False,
    ) -> None:
        if len(values) < 2:
            raise ValueError(f"values must hold at least two numbers; got {list(values)}")
        if not (math.isfinite(radius) and radius > 0):
            raise ValueError(f"radius must be finite and above zero; got {radius}")
        kept = _double(values)
        check_values(kept, "values", positive)
        super().__init__(trainable)
        self.radius = float(radius)
        self.positive = positive
        self._keep("log_values" if positive else "values", kept.log() if positive else kept)

    def forward(self, r: Float[Tensor, "*taps"]) -> Float[Tensor, "*taps"]:
        values = held(self, "values", self.positive).to(r.dtype)
        last = len(values) - 1
        position = (r * (last / self.radius)).clamp(max=last)
        left = position.detach().floor().clamp(max=last - 1)
        index = left.long()
        return torch.lerp(values[index], values[index + 1], position - left)

    def extra_repr(self) -> str:
        return f"radius={self.radius:.6g}, trainable={self.trainable}"
