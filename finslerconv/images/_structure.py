"""The metric of a picture's structure tensor: unit balls that keep to edges or follow flows."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv import _filters, _parts
from finslerconv._filters import Padding
from finslerconv._transforms import is_transformed
from finslerconv.images._checks import (
    Direction,
    Picture,
    check_choice,
    check_image,
    check_number,
    check_spectrum,
    check_tau,
    of_kind,
)
from finslerconv.images._tensor import TensorField, gradient_unit, largest_or_one, one_form
from finslerconv.metrics import Randers

#: The constant for which the flux s g(s^2) of Weickert's edge-enhancing diffusivity peaks at s = 1.
_EDGE = 3.31488

# Numbers of a picture, all channels and pictures, that a strip of rows has.
_STRIP = 1 << 20


def structure_tensor_metric(
    image: Float[Picture, "batch channels height width"],
    *,
    law: Literal["edge", "coherence"] = "edge",
    scales: Sequence[tuple[float, float]] = ((1.0, 1.0), (2.0, 2.0)),
    contrast: float = 0.1,
    alpha: float = 0.01,
    scale: float = 0.1,
    tau: float = 0.0,
    omega: Direction = "along",
    padding: Padding = "reflect",
) -> Randers:
    r"""Return the metric in which a picture's anisotropic diffusion is isotropic.

    ``M = scale D^{-1}``, where ``D`` is one of Weickert's diffusion tensors, a function of the
    multi-scale structure tensor ``J``. Without a one-form the half-axes of the unit balls are
    ``sqrt(d / scale)`` for the eigenvalues ``d`` of ``D``, which lie in ``[alpha, 1]``; a one-form
    changes them as in :func:`gradient_metric`.

    With the eigenvalues ``mu_1 >= mu_2`` of ``J`` in units of ``contrast^2`` times the largest
    trace of ``J`` in the picture, the eigenvalues of ``D`` are

    - ``"edge"`` (edge-enhancing): ``alpha + (1 - alpha) (1 - exp(-3.31488 / mu_i^4))`` for both:
      large discs in flat regions, shrinking across edges only, and to a point at corners;
    - ``"coherence"`` (coherence-enhancing): ``alpha`` in the leading direction, across the flow,
      and ``alpha + (1 - alpha) exp(-1 / (mu_1 - mu_2)^2)`` along the flow: small discs wherever
      the picture has no direction, long ellipses along lines and flows.

    Parameters
    ----------
    image : Tensor or ndarray, shape (batch, channels, height, width)
        Grey or colour pictures, float32 or float64, in any units.
    law : {"edge", "coherence"}
        Which diffusion.
    scales : sequence of pairs of float
        Inner and outer scales in pixels: the standard deviation of the Gaussian in the
        derivatives, positive, and of the one that averages the tensors, at least 0.
    contrast : float
        Gradients of this part of the largest are edges, positive.
    alpha : float
        The least eigenvalue of ``D``, 0 < alpha <= 1. It bounds the ratio of a ball's half-axes by
        ``1 / sqrt(alpha (1 - tau^2))``. It is at least ``8 eps / (1 - tau^2)``, so that the metrics
        stay positive under rounding.
    scale : float
        The eigenvalue of ``M`` where diffusion is free, positive, in 1 / pixels^2.
    tau, omega, padding
        The one-form and the border, as in :func:`gradient_metric`. The gradient here is the leading
        eigenvector of ``J``, on the side of the sum of all gradients.

    Returns
    -------
    Randers
        Of batch shape (batch, height, width), of the kind, device and dtype of the picture;
        ``symmetrize()`` is its Riemannian part. Differentiable in the picture, with finite
        derivatives in flat regions too, and smooth in ``J`` where its eigenvalues meet.

    Raises
    ------
    TypeError
        If ``image`` is no array of float32 or float64.
    ValueError
        If it is not of four axes or not finite, or an option is out of range, or metrics of these
        eigenvalues would not stay positive in the picture's dtype.

    Notes
    -----
    ``J`` is the mean over the scales and channels of ``G_outer * (s g)(s g)'``, with the gradient
    ``g`` at inner scale ``s``, multiplied by ``s`` so that the scales can be compared (Lindeberg's
    normalised derivatives).

    The laws are those of Weickert, "Anisotropic Diffusion in Image Processing" (1998), sections 5.1
    and 5.2, up to two details: the edge-enhancing diffusivity is applied to both eigenvalues, which
    is the same for the tensor of a single gradient and makes ``D`` a smooth function of ``J``
    everywhere; and it is held above ``alpha``, so that the metric is finite.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.balls import Ellipse
    >>> from finslerconv.images import structure_tensor_metric
    >>> stripes = torch.sin(torch.arange(64.0)).expand(1, 1, 64, 64)
    >>> metric = structure_tensor_metric(stripes, law="coherence", scale=0.01)
    >>> float(Ellipse.of(metric[0, 32, 32]).axes[0]) > 9  # along the stripes
    True
    """
    picture = check_image(image)
    check_choice("law", law, ("edge", "coherence"))
    _check_scales(scales)
    check_number("contrast", contrast, above=0)
    check_number("alpha", alpha, above=0)
    if alpha > 1:
        raise ValueError(f"alpha: expected 0 < alpha <= 1, got {alpha!r}")
    check_number("scale", scale, above=0)
    check_tau(tau)
    check_spectrum(
        "alpha, tau", "1 / alpha", least=scale, largest=scale / alpha, tau=tau, dtype=picture.dtype
    )
    check_choice("omega", omega, ("along", "across"))
    check_choice("padding", padding, ("reflect", "replicate"))

    strips = _strips(picture, scales)
    structure = _structure(picture, scales, contrast, padding, strips)
    parts = []
    for _ in strips:
        J, hint = structure.pop(0)  # which frees its memory
        tensors = TensorField.of(J)
        M, along, across = _law(tensors, law, scale, alpha)
        parts.append((M, one_form(tensors.oriented(hint), along, across, omega, tau)))
    M, form = (
        each[0] if len(strips) == 1 else torch.cat(each, dim=1) for each in zip(*parts, strict=True)
    )
    return Randers(of_kind(M, image), of_kind(form, image), validate=False)


def _law(
    tensors: TensorField, law: str, scale: float, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices, and their eigenvalues along and across the gradient."""
    if law == "edge":
        mu_1, mu_2 = tensors.mean + tensors.gap / 2, tensors.mean - tensors.gap / 2
        along, across = (scale / _edge_diffusivity(mu, alpha) for mu in (mu_1, mu_2))
        slope = scale * _edge_slope(tensors.mean, alpha)
        return tensors.function(along, across, slope), along, across
    along = torch.full_like(tensors.gap, scale / alpha)
    coherence = torch.exp(-1 / tensors.gap.clamp(min=0.03) ** 2)  # clamped as below
    across = scale / (alpha + (1 - alpha) * coherence)
    return tensors.with_eigenvalues(along, across), along, across


def _strips(image: Tensor, scales: Sequence[tuple[float, float]]) -> list[slice]:
    """Return the rows that are computed at a time: what is in between takes much memory.

    All at once where gradients are recorded, for that keeps everything, under transforms, and of a
    part of a larger picture.
    """
    batch, channels, height, width = image.shape
    rows = height
    recorded = image.requires_grad and torch.is_grad_enabled()
    if not (recorded or is_transformed() or _parts.current()):
        margin = max(_filters.gaussian_radius(i) + _filters.gaussian_radius(o) for i, o in scales)
        rows = max(4 * margin, _STRIP // max(1, batch * channels * width))
    return [slice(a, min(a + rows, height)) for a in range(0, height, rows)]


def _structure(
    image: Tensor,
    scales: Sequence[tuple[float, float]],
    contrast: float,
    padding: Padding,
    strips: list[slice],
) -> list[tuple[Tensor, Tensor]]:
    """Return ``J`` in units of the contrast, and the gradient that gives its direction a sign.

    A pair for each strip, which is computed from as many rows around it as the filters reach. Both
    units are those of the whole picture.
    """
    width = image.shape[-1]
    margins = [_filters.gaussian_radius(i) + _filters.gaussian_radius(o) for i, o in scales]
    pictures = [_filters.continued(image, margin, padding) for margin in margins]

    def gradients(rows: slice) -> list[Tensor]:
        return [
            inner
            * _filters.gaussian_gradient(picture[:, :, rows.start : rows.stop + 2 * margin], inner)
            for (inner, _), picture, margin in zip(scales, pictures, margins, strict=True)
        ]

    kept = gradients(strips[0]) if len(strips) == 1 else None
    largest = [
        g.detach().abs().amax(dim=(1, 4)) for rows in strips for g in (kept or gradients(rows))
    ]
    unit = gradient_unit(image, largest)
    found = []
    for rows in strips:
        height = rows.stop - rows.start
        J = image.new_zeros((len(image), 2, 2, height, width))
        hint = image.new_zeros((len(image), height, width, 2))
        for (_, outer), g in zip(scales, kept or gradients(rows), strict=True):
            g = g / unit
            products = torch.einsum("bchwi,bchwj->bijhw", g, g)
            J = J + _filters.smooth(products.flatten(1, 2), outer).reshape(J.shape)
            r = _filters.gaussian_radius(outer)
            hint = hint + g[:, :, r : r + height, r : r + width].sum(dim=1)
        found.append((J, hint))
    traces = [J[:, 0, 0] + J[:, 1, 1] for J, _ in found]
    whole = largest_or_one(traces[0] if len(strips) == 1 else torch.cat(traces, dim=1))
    energy = (contrast**2 * whole)[:, None, None]
    return [((J / energy).permute(0, 3, 4, 1, 2), hint) for J, hint in found]


# Below these arguments the exponentials are 0 in double precision: the clamps change no value and
# keep 0 / 0 out of the derivatives.


def _edge_diffusivity(mu: Tensor, alpha: float) -> Tensor:
    return alpha - (1 - alpha) * torch.expm1(-_EDGE / mu.clamp(min=0.2) ** 4)


def _edge_slope(mu: Tensor, alpha: float) -> Tensor:
    """Return the derivative of one over the diffusivity."""
    mu = mu.clamp(min=0.2)
    fall = (1 - alpha) * torch.exp(-_EDGE / mu**4) * 4 * _EDGE / mu**5
    return fall / _edge_diffusivity(mu, alpha) ** 2


def _check_scales(scales: Sequence[tuple[float, float]]) -> None:
    wanted = "scales: expected pairs (inner > 0, outer >= 0) of finite numbers, at least one"
    if len(scales) == 0:
        raise ValueError(f"{wanted}, got none")
    for i, pair in enumerate(scales):
        two = isinstance(pair, tuple | list) and len(pair) == 2
        if not (two and all(math.isfinite(s) for s in pair) and pair[0] > 0 and pair[1] >= 0):
            raise ValueError(f"{wanted}; got {pair!r} at index {i}")
