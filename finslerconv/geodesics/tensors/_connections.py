"""The connections of a Finsler metric: how vectors are carried along, direction by direction.

All are made of the spray ``G`` and of the fundamental tensor ``g``. Derivatives of the position
come with ``N``: the horizontal ones ``d/dx^k - N^m_k d/dv^m`` keep the norm of ``v``.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv._linalg import inverse
from finslerconv._norms import along_axes, linearized
from finslerconv.geodesics.fields import MetricField, Positions, as_kind_of
from finslerconv.geodesics.tensors._arguments import read_tangents
from finslerconv.geodesics.tensors._spray import coefficients


def nonlinear_connection(field: MetricField, x: Positions, v: Positions) -> Float[Array, "*_ d d"]:
    r"""Return the nonlinear connection ``N^i_j = dG^i / dv^j``.

    A vector ``u`` is parallel along a geodesic ``x(t)`` if ``u' = -N(x, x') u``.

    Parameters
    ----------
    field, x, v
        As of :func:`spray`.

    Returns
    -------
    array, shape (\*batch, ..., d, d)
        Homogeneous of degree 1 in ``v``, with ``N v = 2 G``.

    Raises
    ------
    TypeError, ValueError
        As of :func:`spray`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = [2.0, 0.0], [0.0, 1.0]
    >>> tensors.nonlinear_connection(half_plane, x, v).tolist()
    [[-0.0, 0.5], [-0.5, -0.0]]
    """
    field, kind, x, v = read_tangents(field, x, v=v)
    return as_kind_of(nonlinear_connection_at(field, x)(x, v), kind)


def berwald_connection(field: MetricField, x: Positions, v: Positions) -> Float[Array, "*_ d d d"]:
    r"""Return the Berwald connection ``G^i_jk = d^2 G^i / dv^j dv^k``.

    It does not depend on ``v`` exactly if the metric is a Berwald metric: of a Randers metric, if
    ``omega`` is parallel. Of a Riemannian metric these are the Christoffel symbols.

    Parameters
    ----------
    field, x, v
        As of :func:`spray`.

    Returns
    -------
    array, shape (\*batch, ..., d, d, d)
        ``[..., i, j, k]``, symmetric in ``j`` and ``k``, homogeneous of degree 0 in ``v``, with
        ``G_jk v^k = N_j``.

    Raises
    ------
    TypeError, ValueError
        As of :func:`spray`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = [2.0, 0.0], [0.0, 1.0]
    >>> tensors.berwald_connection(half_plane, x, v)[0].tolist()  # Christoffel's symbols of the row
    [[-0.5, 0.0], [0.0, 0.5]]
    """
    field, kind, x, v = read_tangents(field, x, v=v)
    N = nonlinear_connection_at(field, x)
    return as_kind_of(along_axes(lambda v: N(x, v))(v), kind)


def chern_connection(field: MetricField, x: Positions, v: Positions) -> Float[Array, "*_ d d d"]:
    r"""Return the Chern (Rund) connection, torsion-free and horizontally metric.

    .. math:: \Gamma^i_{jk} = \tfrac12 g^{il}
        \left(\delta_j g_{lk} + \delta_k g_{lj} - \delta_l g_{jk}\right), \qquad
        \delta_k = \frac{\partial}{\partial x^k} - N^m_k \frac{\partial}{\partial v^m}.

    It is the Berwald connection less the Landsberg tensor, and the Christoffel symbols of a
    Riemannian metric.

    Parameters
    ----------
    field, x, v
        As of :func:`spray`.

    Returns
    -------
    array, shape (\*batch, ..., d, d, d)
        ``[..., i, j, k]``, symmetric in ``j`` and ``k``, homogeneous of degree 0 in ``v``, with
        ``Gamma_jk v^k = N_j``.

    Raises
    ------
    TypeError, ValueError
        As of :func:`spray`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = [2.0, 0.0], [0.0, 1.0]
    >>> tensors.chern_connection(half_plane, x, v)[0].tolist()  # here Levi-Civita's
    [[-0.5, 0.0], [0.0, 0.5]]
    """
    field, kind, x, v = read_tangents(field, x, v=v)
    N = nonlinear_connection_at(field, x)(x, v)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    g = fundamental_tensor_at(field)
    # [..., i, j, k] is the derivative of g_ij along k.
    tensor, push = linearized(g, x, v)
    slopes = torch.stack(
        [push(axis.expand_as(x), -N[..., :, k])[0] for k, axis in enumerate(eye)], dim=-1
    )
    lowered = (slopes.mT + slopes - slopes.movedim(-1, -3)) / 2
    raised = inverse(tensor) @ lowered.flatten(-2)
    return as_kind_of(raised.unflatten(-1, tuple(eye.shape)), kind)


def nonlinear_connection_at(
    field: MetricField, x: Float[Tensor, "*batch d"]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from positions, of the shape of ``x``, and vectors to ``N(x, v)``.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> tensors.nonlinear_connection_at(half_plane, x)(x, v).tolist()
    [[-0.0, 0.5], [-0.5, -0.0]]
    """
    G = coefficients(field, x)
    return lambda x, v: along_axes(lambda v: G(x, v))(v)


def fundamental_tensor_at(field: MetricField) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from positions and vectors to ``g_v``, of their batch.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> tensors.fundamental_tensor_at(half_plane)(x, v).tolist()
    [[0.25, 0.0], [0.0, 0.25]]
    """

    def g(x: Tensor, v: Tensor) -> Tensor:
        tensor: Tensor = field.at(x).fundamental_tensor(v)
        return tensor.expand(*x.shape, x.shape[-1])

    return g
