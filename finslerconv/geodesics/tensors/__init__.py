"""Tensors of a metric field that take derivatives in the position: spray, connections, curvature.

They follow from the norm alone, by automatic differentiation, for every kind of metric that
computes in PyTorch; of Riemannian and Randers metrics the spray has a closed form. What needs no
derivative in the position is a method of :class:`finslerconv.metrics.FinslerMetric`.

All take batches of positions and vectors, and all can be differentiated again: in positions,
vectors and the parameters of the field, such as those of a module that computes it.

Of a :class:`GridMetric` the derivatives are those of its interpolation. The linear one has first
derivatives that jump at the lines of nodes, and no second ones: curvatures refuse it. Those of the
cubic one converge to the field's with the square of the spacing, second ones with the spacing.
"""

from finslerconv.geodesics.tensors._arguments import read_tangents
from finslerconv.geodesics.tensors._connections import (
    berwald_connection,
    chern_connection,
    fundamental_tensor_at,
    nonlinear_connection,
    nonlinear_connection_at,
)
from finslerconv.geodesics.tensors._curvature import (
    flag_curvature,
    ricci,
    riemann_curvature,
    s_curvature,
)
from finslerconv.geodesics.tensors._spray import equation_of_motion, spray

__all__ = [
    "spray",
    "nonlinear_connection",
    "berwald_connection",
    "chern_connection",
    "riemann_curvature",
    "ricci",
    "flag_curvature",
    "s_curvature",
    "equation_of_motion",
    "fundamental_tensor_at",
    "nonlinear_connection_at",
    "read_tangents",
]
