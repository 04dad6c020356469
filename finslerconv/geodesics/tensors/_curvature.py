"""The curvatures of a Finsler metric: Riemann's, Ricci's, of flags, and Shen's S-curvature."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array, first_index
from finslerconv._linalg import dot, matvec
from finslerconv._norms import along_axes, linearized
from finslerconv._transforms import is_mapped
from finslerconv.geodesics.fields import MetricField, Positions, as_kind_of
from finslerconv.geodesics.tensors._arguments import read_tangents, refuse_linear
from finslerconv.geodesics.tensors._connections import (
    fundamental_tensor_at,
    nonlinear_connection_at,
)
from finslerconv.geodesics.tensors._spray import coefficients
from finslerconv.metrics import Volume


def riemann_curvature(field: MetricField, x: Positions, v: Positions) -> Float[Array, "*_ d d"]:
    r"""Return the Riemann curvature ``R^i_k`` in the direction ``v``.

    .. math:: R^i_k = 2 \frac{\partial G^i}{\partial x^k}
        - v^j \frac{\partial N^i_k}{\partial x^j} + 2 G^j \frac{\partial N^i_k}{\partial v^j}
        - N^i_j N^j_k

    A field ``J`` of neighbours of a geodesic turns by ``D D J = -R(x, x') J``
    (:func:`jacobi_field`). All other components of the curvature are derivatives of these in ``v``.

    Parameters
    ----------
    field, x, v
        As of :func:`spray`; of a :class:`GridMetric` with cubic interpolation.

    Returns
    -------
    array, shape (\*batch, ..., d, d)
        Homogeneous of degree 2 in ``v``, self-adjoint for ``g_v``, zero along ``v``.

    Raises
    ------
    TypeError, ValueError
        As of :func:`spray`, and if the field is a grid's with linear interpolation.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = [2.0, 0.0], [0.0, 1.0]
    >>> tensors.riemann_curvature(half_plane, x, v).round(decimals=6).tolist()
    [[-0.25, -0.0], [-0.0, 0.0]]
    """
    refuse_linear("the curvature", field)
    field, kind, x, v = read_tangents(field, x, v=v)
    return as_kind_of(_riemann(field, x, v), kind)


def ricci(field: MetricField, x: Positions, v: Positions) -> Float[Array, "..."]:
    r"""Return the Ricci curvature ``Ric(v) = R^i_i``, the trace of :func:`riemann_curvature`.

    It is ``F(v)^2`` times the sum of the flag curvatures of ``d - 1`` flags that are orthogonal for
    ``g_v``: ``(d - 1) K F^2`` where they are constant.

    Parameters
    ----------
    field, x, v
        As of :func:`riemann_curvature`.

    Returns
    -------
    array, shape (\*batch, ...)
        Homogeneous of degree 2 in ``v``.

    Raises
    ------
    TypeError, ValueError
        As of :func:`riemann_curvature`.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = [2.0, 0.0], [0.0, 1.0]
    >>> round(float(tensors.ricci(half_plane, x, v)), 6)  # K F^2 with K = -1
    -0.25
    """
    refuse_linear("the curvature", field)
    field, kind, x, v = read_tangents(field, x, v=v)
    return as_kind_of(_trace(_riemann(field, x, v)), kind)


def flag_curvature(
    field: MetricField, x: Positions, pole: Positions, flag: Positions
) -> Float[Array, "..."]:
    r"""Return the flag curvature ``K(pole, flag)``, of a plane with one of its vectors.

    .. math:: K(v, w) = \frac{g_v(R_v w, w)}{g_v(v, v)\, g_v(w, w) - g_v(v, w)^2}

    With the pole ``v`` and any ``w`` of the plane. Of a Riemannian metric it is the sectional
    curvature, which depends on the plane alone; in two dimensions there is one plane, and it
    depends on the pole alone.

    Parameters
    ----------
    field, x
        As of :func:`riemann_curvature`.
    pole, flag : array or sequence, shape (\*batch, ..., d)
        Vectors, none zero and nowhere parallel; they broadcast with ``x``.

    Returns
    -------
    array, shape (\*batch, ...)
        In one over lengths squared. Homogeneous of degree 0 in both.

    Raises
    ------
    TypeError, ValueError
        As of :func:`riemann_curvature`, and if pole and flag are parallel.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> half_plane = FunctionMetric(
    ...     lambda x: Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
    ... )
    >>> K = tensors.flag_curvature(half_plane, [2.0, 0.0], pole=[1.0, 0.5], flag=[0.0, 1.0])
    >>> round(float(K), 12)
    -1.0
    """
    refuse_linear("the curvature", field)
    field, kind, x, v, w = read_tangents(field, x, pole=pole, flag=flag)
    g = fundamental_tensor_at(field)(x, v)
    gv, gw = matvec(g, v), matvec(g, w)
    product = dot(v, gv) * dot(w, gw)
    area = product - dot(v, gw) ** 2
    parallel = ~(area.detach() > 16 * torch.finfo(x.dtype).eps * product.detach())
    if not is_mapped() and bool(parallel.any()):
        index = first_index(parallel)
        where = f" at index {index}" if index else ""
        raise ValueError(
            f"flag: expected vectors that are not parallel to the pole, got {w[index].tolist()} "
            f"for the pole {v[index].tolist()}{where}"
        )
    return as_kind_of(dot(matvec(_riemann(field, x, v), w), gw) / area, kind)


def s_curvature(
    field: MetricField,
    x: Positions,
    v: Positions,
    volume: Volume | Callable[[Tensor], Tensor] = "busemann_hausdorff",
) -> Float[Array, "..."]:
    r"""Return Shen's S-curvature: the rate of the distortion along the geodesic of ``v``.

    .. math:: S(x, v) = \frac{\mathrm d}{\mathrm dt} \ln \frac{\sqrt{\det g_{\dot x}}}{\sigma(x)}
        = N^i_i - v^i \frac{\partial \ln \sigma}{\partial x^i}

    Parameters
    ----------
    field, x, v
        As of :func:`spray`.
    volume : {"busemann_hausdorff", "holmes_thompson"} or callable
        The volume whose density is ``sigma``: one of
        :meth:`~finslerconv.metrics.FinslerMetric.volume_density`, or a function from positions, a
        tensor of shape (..., d), to densities, of shape (...).

    Returns
    -------
    array, shape (\*batch, ...)
        Homogeneous of degree 1 in ``v``. Zero for a Riemannian metric and its volume, and for
        the Busemann-Hausdorff volume of every Berwald metric.

    Raises
    ------
    TypeError, ValueError
        As of :func:`spray`, and if ``volume`` is unknown.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.geodesics import FunctionMetric, tensors
    >>> from finslerconv.metrics import Riemannian
    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> half_plane = FunctionMetric(lambda x: Riemannian(eye / x[..., :1, None] ** 2))
    >>> x, v = [2.0, 0.0], [0.0, 1.0]
    >>> abs(round(float(tensors.s_curvature(half_plane, x, v)), 6))  # 0 for every Riemannian metric
    0.0
    """
    field, kind, x, v = read_tangents(field, x, v=v)

    def logarithm(x: Tensor) -> Tensor:
        density = volume(x) if callable(volume) else field.at(x).volume_density(volume)
        return density.expand(x.shape[:-1]).log()

    _, push = linearized(logarithm, x)
    (growth,) = push(v)
    return as_kind_of(_trace(nonlinear_connection_at(field, x)(x, v)) - growth, kind)


def _riemann(field: MetricField, x: Tensor, v: Tensor) -> Tensor:
    G = coefficients(field, x)
    N, push = linearized(nonlinear_connection_at(field, x), x, v)
    (along,) = push(v, -2 * G(x, v))
    return 2 * along_axes(lambda x: G(x, v))(x) - along - N @ N


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)
