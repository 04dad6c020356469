"""The geometry of diffusion: ways along which diffusion is quick are short."""

from typing import Literal

from jaxtyping import Bool, Float

from finslerconv._arrays import Array, as_integer, check_matrices, identity_like, namespace
from finslerconv._linalg import check_spd, det, inverse
from finslerconv.metrics import Riemannian
from finslerconv.physics._mask import as_mask, filled


def diffusion_metric(
    tensors: Float[Array, "*batch d d"],
    *,
    form: Literal["inverse", "adjugate"] = "inverse",
    power: int = 1,
    mask: Bool[Array, "..."] | None = None,
) -> Riemannian:
    r"""Return the Riemannian metric of a field of diffusion tensors.

    The half-axes of its unit balls are the square roots of the eigenvalues of the tensor: with
    ``M = D^-1`` diffusion is that of heat in the metric, and in a time ``t`` it gets to distances
    of the order of ``sqrt(t)``, whatever the direction.

    Parameters
    ----------
    tensors : array, shape (..., d, d)
        Symmetric positive definite diffusion tensors ``D``, components in the order of the grid's
        axes; of diffusion MRI for instance, in mm^2 / s.
    form : {"inverse", "adjugate"}
        ``M = D^-1``, or ``M = det(D) D^-1``, whose diffusion in space has no drift beside that of
        the tensors.
    power : int
        Tensors are raised to this power, and divided by the power less one of their mean
        eigenvalue: 2 or more sharpens them, so that ways keep to the leading directions.
    mask : bool array, shape (...), optional
        True where tensors count. Elsewhere they are not looked at, zero or NaN is welcome, and the
        metric is the Euclidean one; give the mask to :func:`finslerconv.geodesics.distance` too.

    Returns
    -------
    Riemannian
        Of the batch shape of ``tensors``, differentiable in them.

    Raises
    ------
    TypeError
        If ``tensors`` is no array of real floats, or the mask not boolean.
    ValueError
        If the shape is wrong, or a tensor that counts is not symmetric positive definite, as
        unconstrained fits leave them where there is noise alone; the message names the first.

    Notes
    -----
    O'Donnell, Haker, Westin, "New approaches to estimation of white matter connectivity in
    diffusion tensor MRI: elliptic PDEs and geodesics in a tensor-warped space" (MICCAI 2002); the
    adjugate is that of Fuster, Dela Haije, Tristán-Vega, Plantinga, Westin, Florack, "Adjugate
    diffusion tensors for geodesic tractography in white matter" (J. Math. Imaging Vis. 54, 2016).

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.physics import diffusion_metric
    >>> metric = diffusion_metric(np.diag([4.0, 1.0, 1.0]))
    >>> metric.norm(np.eye(3))  # twice as quick along the first axis
    array([0.5, 1. , 1. ])
    """
    xp = check_matrices("tensors", tensors)
    if form not in ("inverse", "adjugate"):
        raise ValueError(f"form: expected 'inverse' or 'adjugate', got {form!r}")
    power = as_integer("power", power)
    d = tensors.shape[-1]
    here = as_mask(mask, tuple(tensors.shape[:-2]), tensors)
    identity = identity_like(d, tensors)
    D = filled(tensors, here)
    if here is not None:
        outside = xp.astype(~here, tensors.dtype)
        D = D + outside[..., None, None] * identity
    check_spd("tensors", D)
    mean = _trace(D) / d
    relative = D / mean[..., None, None]
    sharp = relative
    for _ in range(power - 1):
        sharp = sharp @ relative
    D = sharp * mean[..., None, None]
    M = inverse(D)
    M = (M + xp.matrix_transpose(M)) / 2  # of nearly singular tensors the inverse is not symmetric
    if form == "adjugate":
        M = M * det(D)[..., None, None]
    return Riemannian(M, validate=False)


def _trace(A: Array) -> Array:
    return namespace(A).sum(A * identity_like(A.shape[-1], A), axis=(-2, -1))
