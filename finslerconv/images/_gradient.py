"""The metric of a picture's gradient: unit balls that follow the edges, or cross them."""

from typing import Literal

import torch
from jaxtyping import Float

from finslerconv import _filters
from finslerconv._arrays import safe_sqrt
from finslerconv._filters import Padding
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


def gradient_metric(
    image: Float[Picture, "batch channels height width"],
    *,
    stretch: Direction = "across",
    anisotropy: float = 100.0,
    scale: float = 0.1,
    tau: float = 0.0,
    omega: Direction = "along",
    derivative: Literal["gaussian", "sobel"] = "gaussian",
    sigma: float = 1.0,
    padding: Padding = "reflect",
) -> Randers:
    r"""Return the Randers metric whose unit balls are stretched along or across the gradient.

    With the gradient ``g`` of the smoothed picture and ``u = 1 + anisotropy |g| / max |g|``, the
    matrix ``M`` has the eigenvectors along and across ``g`` and the eigenvalues ``scale / u`` in
    the stretched direction and ``scale u`` in the other. In pixels, the half-axes of the ball of
    ``M`` are ``r sqrt(u)`` and ``r / sqrt(u)``, where ``r = 1 / sqrt(scale)``: a disc of radius
    ``r`` where the picture is flat, and an ellipse of the same area at an edge.

    The one-form makes the half-axis in its direction ``1 / (1 - tau^2)`` times as long, the other
    ``1 / sqrt(1 - tau^2)`` times, and the area ``pi r^2 / (1 - tau^2)^(3/2)``. It shifts the centre
    against itself, by ``|tau|`` times the half-axis.

    Parameters
    ----------
    image : Tensor or ndarray, shape (batch, channels, height, width)
        Grey or colour pictures, float32 or float64, in any units: only the gradient relative to
        the largest of each picture counts.
    stretch : {"across", "along"}
        Where the balls are long: across the gradient, which is along the edge, or along it.
    anisotropy : float
        How much the strongest gradient stretches, at least 0: to a ratio ``1 + anisotropy`` of the
        half-axes, which a one-form in the stretched direction (``omega`` the same as ``stretch``)
        divides by ``sqrt(1 - tau^2)``, and one in the other direction multiplies by that.
        ``(1 + anisotropy)^2`` may be at most ``(1 - tau^2) / (8 eps)``, so that the metrics stay
        positive under rounding: without it, a ratio of 1024 in float32.
    scale : float
        The eigenvalue where the picture is flat, positive, in 1 / pixels^2.
    tau : float
        The length of the one-form, ``|omega|_{M^-1} = |tau|`` with -1 < tau < 1. The sign
        chooses between the two orientations; 0 gives a symmetric metric.
    omega : {"along", "across"}
        The direction of the one-form for positive ``tau``: along the gradient (uphill, so that the
        balls shift downhill), or across it, along the gradient turned to the left by a
        quarter as one sees the picture (the balls shift to the right of uphill).
    derivative : {"gaussian", "sobel"}
        Derivatives of a Gaussian of standard deviation ``sigma``, or Sobel's of the picture
        smoothed by it.
    sigma : float
        The scale of the derivatives in pixels: positive, or zero for Sobel's alone.
    padding : {"reflect", "replicate"}
        How the picture goes on beyond its border.

    Returns
    -------
    Randers
        Of batch shape (batch, height, width), of the kind, device and dtype of the picture.
        Differentiable in the picture, with finite derivatives in flat regions too.

    Raises
    ------
    TypeError
        If ``image`` is no array of float32 or float64.
    ValueError
        If it is not of four axes or not finite, or an option is out of range, or metrics of these
        eigenvalues would not stay positive in the picture's dtype.

    Notes
    -----
    The heuristic of Dagès, Lindenbaum and Bruckstein, "Metric Convolutions" (ICCV 2025, section
    5), whose setting is ``derivative="sobel"``, ``sigma=0``, ``scale=0.1``, ``anisotropy=100``.

    In colour, ``g`` is the leading direction of the mean over the channels of the tensors ``g_c
    g_c'`` (Di Zenzo, 1986) and its length the root of the difference of the two eigenvalues
    (Sapiro and Ringach, 1996), which is zero where the channels agree on no direction. Its
    orientation is that of the mean of the channels' gradients. Equal channels give what one
    of them gives. Where the gradient is zero, up to rounding, or has no orientation, omega is 0.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.images import gradient_metric
    >>> ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)  # brighter to the right
    >>> metric = gradient_metric(ramp, anisotropy=3.0, scale=1.0)
    >>> metric
    Randers(dim=2, batch_shape=(1, 32, 32), dtype=torch.float32)
    >>> down, right = torch.eye(2)
    >>> [round(float(metric[0, 16, 16].norm(v)), 3) for v in (down, right)]
    [0.5, 2.0]
    """
    picture = check_image(image)
    check_choice("stretch", stretch, ("across", "along"))
    check_number("anisotropy", anisotropy, least=0)
    check_number("scale", scale, above=0)
    check_tau(tau)
    most = 1.0 + anisotropy
    check_spectrum(
        "anisotropy, tau", "(1 + anisotropy)^2", least=scale / most, largest=scale * most, tau=tau,
        dtype=picture.dtype,
    )  # fmt: skip
    check_choice("omega", omega, ("along", "across"))
    check_choice("derivative", derivative, ("gaussian", "sobel"))
    check_choice("padding", padding, ("reflect", "replicate"))
    above, least = (0, None) if derivative == "gaussian" else (None, 0)
    check_number("sigma", sigma, above=above, least=least)

    margin = _filters.gaussian_radius(sigma)
    if derivative == "gaussian":
        wide = _filters.continued(picture, margin, padding)
        gradients = _filters.gaussian_gradient(wide, sigma)
    else:
        wide = _filters.continued(picture, margin + _filters.SOBEL_RADIUS, padding)
        gradients = _filters.sobel_gradient(_filters.smooth(wide, sigma))
    gradients = gradients / gradient_unit(picture, [gradients.detach().abs().amax(dim=(1, 4))])
    tensors = TensorField.of(torch.einsum("bchwi,bchwj->bhwij", gradients, gradients))
    u = 1 + anisotropy * safe_sqrt(tensors.gap / largest_or_one(tensors.gap))
    along, across = (scale * u, scale / u) if stretch == "across" else (scale / u, scale * u)
    M = tensors.with_eigenvalues(along, across)
    n = tensors.oriented(gradients.sum(dim=1))
    form = one_form(n, along, across, omega, tau)
    return Randers(of_kind(M, image), of_kind(form, image), validate=False)
