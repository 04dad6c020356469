"""The metric of a picture's ridges: unit balls that are long along lines and vessels."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv import _filters
from finslerconv._filters import Padding
from finslerconv.images._checks import (
    Picture,
    check_choice,
    check_image,
    check_number,
    check_spectrum,
    of_kind,
)
from finslerconv.images._tensor import TensorField, gradient_unit, largest_or_one
from finslerconv.metrics import Riemannian


def ridge_metric(
    image: Float[Picture, "batch channels height width"],
    *,
    ridges: Literal["dark", "bright"] = "dark",
    scales: Sequence[float] = (1.0, 2.0, 4.0),
    contrast: float = 0.2,
    speed: float = 20.0,
    anisotropy: float = 4.0,
    scale: float = 1.0,
    padding: Padding = "reflect",
) -> Riemannian:
    r"""Return the metric in which moving along thin lines is cheap: vessels, roads, fibres.

    At a scale ``s`` let ``a_1 >= a_2`` be the eigenvalues of ``s^2 H``, the Hessian ``H`` of the
    picture smoothed by a Gaussian of standard deviation ``s``, with the opposite sign for bright
    ridges. The strength of a ridge is ``rho = min(a_1 - a_2, a_1 + a_2)``, or 0 if that is
    negative: ``a_1`` on a straight line, 0 on round spots, saddles and ridges of the other kind. Of
    the scales, each pixel takes the one of the greatest strength, and the direction across the
    ridge from its leading eigenvector. With the largest strength ``rho_max`` of the picture,

    .. math:: v = 1 - \exp\bigl(-(\rho / (c\, \rho_{max}))^2\bigr), \quad c = \text{contrast}.

    In pixels, with ``r = 1 / sqrt(scale)``, the half-axes of the unit balls are ``r (1 + (speed -
    1) v)`` along the ridge, and across it that divided by ``1 + (anisotropy - 1) v``: discs of
    radius ``r`` away from ridges.

    Parameters
    ----------
    image : Tensor or ndarray, shape (batch, channels, height, width)
        Grey or colour pictures, float32 or float64, in any units: only strengths relative to the
        strongest of each picture count. Of several channels the mean is taken.
    ridges : {"dark", "bright"}
        Whether lines are darker or brighter than what surrounds them.
    scales : sequence of float
        Standard deviations of the Gaussians in pixels, positive. A bar of width ``w`` answers most
        strongly at ``s = w / 2``, a line with a Gaussian profile of deviation ``t`` at
        ``s = sqrt(2) t``.
    contrast : float
        Strengths of this part of the largest are ridges, positive.
    speed : float
        How many times as far one gets, for the same length, along the clearest ridge than away from
        ridges; at least 1.
    anisotropy : float
        The ratio of the half-axes on the clearest ridge, at least 1. Its square may be at most
        ``1 / (8 eps)``, so that the metrics stay positive under rounding.
    scale : float
        The eigenvalue of ``M`` away from ridges, positive, in 1 / pixels^2.
    padding : {"reflect", "replicate"}
        How the picture goes on beyond its border.

    Returns
    -------
    Riemannian
        Of batch shape (batch, height, width), of the kind, device and dtype of the picture.
        Differentiable in the picture (not where two scales are equally strong), with finite
        derivatives in flat regions too.

    Raises
    ------
    TypeError
        If ``image`` is no array of float32 or float64.
    ValueError
        If it is not of four axes or not finite, or an option is out of range, or metrics of these
        eigenvalues would not stay positive in the picture's dtype.

    Notes
    -----
    Ridges by the eigenvalues of Hessians of scale-normalised derivatives: Lindeberg, "Edge
    detection and ridge detection with automatic scale selection" (IJCV 30, 1998); the greatest of
    several scales as in Frangi, Niessen, Vincken, Viergever, "Multiscale vessel enhancement
    filtering" (MICCAI 1998). Minimal paths in such metrics: Benmansour, Cohen, "Tubular structure
    segmentation based on minimal path method and anisotropic enhancement" (IJCV 92, 2011). One side
    of a strong edge answers like a faint ridge, as with every filter of second derivatives.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.images import ridge_metric
    >>> picture = np.ones((1, 1, 32, 32))
    >>> picture[..., 15:18, :] = 0.0  # a dark bar along the row 16
    >>> metric = ridge_metric(picture, speed=10.0, anisotropy=5.0)
    >>> down, right = np.eye(2)
    >>> [float(1 / metric[0, 16, 16].norm(v).round(3)) for v in (right, down)]
    [10.0, 2.0]
    >>> float(metric[0, 3, 16].norm(right).round(3))  # away from the bar
    1.0
    """
    picture = check_image(image)
    check_choice("ridges", ridges, ("dark", "bright"))
    _check_scales(scales)
    check_number("contrast", contrast, above=0)
    check_number("speed", speed, least=1)
    check_number("anisotropy", anisotropy, least=1)
    check_number("scale", scale, above=0)
    check_choice("padding", padding, ("reflect", "replicate"))
    for least in (scale / speed**2, scale):
        check_spectrum(
            "anisotropy", "anisotropy^2", least=least, largest=least * anisotropy**2, tau=0.0,
            dtype=picture.dtype,
        )  # fmt: skip

    tensors, strength = _strongest(picture, scales, ridges, padding)
    v = -torch.expm1(-((strength / (contrast * largest_or_one(strength))) ** 2))
    reach = 1 + (speed - 1) * v
    along = scale / reach**2
    across = along * (1 + (anisotropy - 1) * v) ** 2
    M = tensors.with_eigenvalues(across, along)
    return Riemannian(of_kind(M, image), validate=False)


def _strongest(
    image: Tensor, scales: Sequence[float], ridges: str, padding: Padding
) -> tuple[TensorField, Tensor]:
    """Return the Hessians of the scale with the strongest ridge at each pixel, and its strength."""
    grey = image.mean(dim=1, keepdim=True)
    hessians = []
    for sigma in scales:
        picture = _filters.continued(grey, _filters.gaussian_radius(sigma), padding)
        hessians.append(sigma**2 * _filters.gaussian_hessian(picture, sigma)[:, 0])
    unit = gradient_unit(image, [hessian.detach().abs().amax(dim=(3, 4)) for hessian in hessians])
    best: TensorField | None = None
    strength = torch.empty(0)
    for hessian in hessians:
        each = TensorField.of(hessian / unit if ridges == "dark" else -hessian / unit)
        rho = torch.minimum(each.gap, 2 * each.mean).clamp(min=0)
        if best is None:
            best, strength = each, rho
            continue
        stronger = rho > strength
        strength = torch.where(stronger, rho, strength)
        best = best.replaced(stronger, each)
    assert best is not None
    return best, strength


def _check_scales(scales: Sequence[float]) -> None:
    wanted = "scales: expected positive finite numbers, at least one"
    if len(scales) == 0:
        raise ValueError(f"{wanted}, got none")
    for i, scale in enumerate(scales):
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"{wanted}; got {scale!r} at index {i}")
