"""The spaces in which geodesics are integrated: positions with momenta, or with velocities.

Both follow the flow of a ray's ``length`` L, in which velocities have the length L whatever the
size of the momentum or velocity: no ray runs away in a rough field or by long steps.
"""

import abc
from typing import final

import torch
from torch import Tensor

from finslerconv.geodesics.fields import MetricField, first_rows
from finslerconv.geodesics.flow._grid import grid_rates, in_nodes, is_linear, tabulated
from finslerconv.geodesics.flow._hamiltonian import momentum, rates, scaled, velocity
from finslerconv.geodesics.flow._spray import energy_slopes, legendre, spray
from finslerconv.geodesics.flow._steps import Rates
from finslerconv.metrics import FinslerMetric


class Space(abc.ABC):
    """The states of rays through a field: positions, and a vector that says where they go."""

    def __init__(self, field: MetricField, x: Tensor) -> None:
        self.field = field
        self.x = x

    @abc.abstractmethod
    def enter(self, metric: FinslerMetric, v: Tensor) -> Tensor:
        """Return the second half of the state for velocities, none zero."""

    @abc.abstractmethod
    def rates(self, length: Tensor) -> Rates:
        """Return the derivatives of states in time, of rays of these lengths."""

    @abc.abstractmethod
    def leave(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocities and momenta of states."""


@final
class Momenta(Space):
    """Hamilton's equations in position and momentum, in closed form: for Randers metrics."""

    def enter(self, metric: FinslerMetric, v: Tensor) -> Tensor:
        return momentum(metric, v)

    def rates(self, length: Tensor) -> Rates:
        field = self.field
        if not is_linear(field):
            return lambda x, p: rates(field, x, p, length)
        # The flow of the fans of rays, so that all methods have one flow.
        grid, table = tabulated(field, self.x)
        first = first_rows(field, self.x)
        return lambda x, p: grid_rates(grid, table, first, in_nodes(field, x), p, length)

    def leave(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return velocity(self.field.at(x), y), y


@final
class Velocities(Space):
    """The geodesic equation in position and velocity, from the norm alone: for any metric."""

    def enter(self, metric: FinslerMetric, v: Tensor) -> Tensor:
        return v

    def rates(self, length: Tensor) -> Rates:
        slopes = energy_slopes(self.field)

        def f(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            F, a = spray(slopes, x, v)
            pace = (length / F)[..., None]
            return pace * v, pace * a

        return f

    def leave(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        u, size, still = scaled(y)
        p = legendre(self.field.at(x), torch.where(still, 1.0, u))
        return y, torch.where(still, 0.0, size * p)


def space_of(field: MetricField, metric: FinslerMetric, x: Tensor) -> Space:
    """Return the space in which rays are followed from ``x``, where they find the ``metric``."""
    kind = Velocities if metric.randers_form(x) is None else Momenta
    return kind(field, x)
