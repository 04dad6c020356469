"""Checks of the arguments that the image metrics share."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from finslerconv._transforms import is_mapped

Direction = Literal["along", "across"]
"""A direction relative to the gradient: along it, or across it (along the edge)."""


Picture = Tensor | np.ndarray
"""What a picture may be; the metric comes in the same kind."""


def check_image(image: Picture) -> Tensor:
    """Return a finite, non-empty picture (B, C, H, W) of floats as a tensor; raise otherwise."""
    if isinstance(image, np.ndarray):
        native = image.dtype.newbyteorder("=")
        if native in (np.float32, np.float64):
            # PyTorch warns of arrays that may not be written to.
            image = torch.from_numpy(np.require(image, native, ("C", "W")))
    elif not isinstance(image, Tensor):
        raise TypeError(
            f"image: expected a torch.Tensor or a NumPy array, got {type(image).__name__}; convert "
            "it first, for example with torch.as_tensor"
        )
    if image.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"image: expected float32 or float64, got {image.dtype}; convert it explicitly (and "
            "divide integers by their largest value)"
        )
    if image.ndim != 4 or 0 in image.shape[1:]:
        raise ValueError(
            "image: expected shape (batch, channels, height, width), none of the last three zero, "
            f"got {tuple(image.shape)}; add axes with image[None, None] to a single grey picture"
        )
    assert isinstance(image, Tensor)
    if is_mapped():  # no value can be looked at
        return image
    bad = ~torch.isfinite(image.detach())
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"image: expected finite values, got {float(image[index].detach())} at index {index}"
        )
    return image


def of_kind(entries: Tensor, image: Picture) -> Any:
    """Return the entries of a metric as a NumPy array if the picture was one."""
    return entries if isinstance(image, Tensor) else entries.numpy()


def check_number(
    name: str, value: float, *, above: float | None = None, least: float | None = None
) -> None:
    """Raise a ValueError unless ``value`` is finite and above, or at least, a bound."""
    wanted = "a finite number"
    good = math.isfinite(value)
    if above is not None:
        wanted, good = f"a number above {above:g}", good and value > above
    if least is not None:
        wanted, good = f"a number of at least {least:g}", good and value >= least
    if not good:
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_tau(tau: float) -> None:
    """Raise a ValueError unless ``-1 < tau < 1``."""
    if not -1 < tau < 1:
        raise ValueError(f"tau: expected -1 < tau < 1, so that the metric is positive, got {tau!r}")


def check_spectrum(
    options: str, condition: str, *, least: float, largest: float, tau: float, dtype: torch.dtype
) -> None:
    """Raise a ValueError unless metrics of these eigenvalues survive the roundings of ``dtype``.

    Entries rounded to the nearest move the determinant, relative to itself, by up to ``eps`` times
    the condition number, and its evaluation by half of that; ``omega' M^-1 omega``, which is
    ``tau^2``, moves by as much and must stay below 1. ``condition`` says how the condition number
    follows from the ``options``.
    """
    info = torch.finfo(dtype)
    bound = (1 - tau * tau) / (8 * info.eps)
    if not largest <= bound * least:
        raise ValueError(
            f"{options}: expected {condition} <= (1 - tau^2) / (8 eps) = {bound:.4g}, so that the "
            f"metrics stay positive in {dtype}, got {largest / least:.4g}; choose smaller ones"
            + ("" if dtype == torch.float64 else ", or give the picture in float64")
        )
    smallest = info.tiny**0.5
    if not (smallest <= least and largest <= 1 / smallest):
        raise ValueError(
            f"scale: expected eigenvalues between {smallest:.3g} and {1 / smallest:.3g}, so that "
            f"determinants are finite in {dtype}, got {least:.3g} to {largest:.3g}; give lengths "
            "in another unit"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of the ``choices``."""
    if value not in choices:
        wanted = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
