"""The samples of a flat batch of kernels, checked, with their convex hulls."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv._arrays import Array, check_floating, first_index
from finslerconv._hulls import planar_hulls


@dataclass(frozen=True, eq=False)
class Samples:
    """Sampling positions of kernels in float64, on one device, each in units of its own size.

    The root mean square distance of ``points`` from the pixel is 1, or 0; those of weight 0 are at
    the pixel. ``weights`` sum to 1, or to 0 if all are 0. ``hull`` holds the corners of the hull of
    the weighted samples in order, ``corners`` of them and then the last repeated. ``scale`` is the
    unit in pixels.
    """

    points: Float[Tensor, "batch n 2"]
    weights: Float[Tensor, "batch n"]
    hull: Float[Tensor, "batch h 2"]
    corners: Int[Tensor, " batch"]
    scale: Float[Tensor, " batch"]

    @classmethod
    def of(cls, points: Float[Tensor, "batch n 2"], weights: Float[Tensor, "batch n"]) -> "Samples":
        """Return the samples of positions and weights, both already checked."""
        tolerance = 16 * torch.finfo(points.dtype).eps
        points, weights = points.double(), weights.double()
        # Modulations may be huge or near 0: divide by the largest first.
        weights = weights / weights.amax(dim=1, keepdim=True).clamp_min(1e-300)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-300)
        points = torch.where((weights > 0)[..., None], points, 0.0)
        # Positions may be huge or tiny: divide by the largest before squaring.
        extent = _positive(points.abs().amax(dim=(1, 2)))
        points = points / extent[:, None, None]
        size = _positive((weights * (points**2).sum(-1)).sum(1).sqrt())
        points = points / size[:, None, None]
        order, corners = planar_hulls(points.cpu().numpy(), (weights > 0).cpu().numpy(), tolerance)
        index = torch.as_tensor(order, device=points.device)[..., None]
        return cls(
            points,
            weights,
            torch.take_along_dim(points, index, dim=1),
            torch.as_tensor(corners, device=points.device),
            extent * size,
        )

    def farthest(self) -> Float[Tensor, " batch"]:
        """Return the largest distance of a sample from the pixel."""
        return self.points.norm(dim=-1).amax(dim=1)

    def __getitem__(self, index: Tensor) -> "Samples":
        """Return the samples of some kernels."""
        return Samples(*(part[index] for part in vars(self).values()))

    def pixel_in_hull(self) -> Bool[Tensor, " batch"]:
        """Return whether the origin is strictly inside the hull, by more than rounding."""
        p, q = self.hull, self.hull.roll(-1, dims=1)
        length = (q - p).norm(dim=-1)
        distance = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]) / length.clamp_min(1e-300)
        extent = p.abs().amax(dim=(1, 2))[:, None]
        inside = (distance > 1e-9 * extent) | (length == 0)
        return inside.all(dim=1) & (self.corners >= 3)


def flat_tensors(points: Array, weights: Array | None) -> tuple[Tensor, Tensor]:
    """Return positions (batch, n, 2) and weights (batch, n) as tensors, checked."""
    if weights is None:
        check_floating(points=points)
    else:
        check_floating(points=points, weights=weights)
    shape = tuple(points.shape)
    if len(shape) < 2 or shape[-1] != 2 or shape[-2] == 0:
        raise ValueError(
            "points: expected positions of shape (*batch, n, 2), the samples last but one, got "
            f"shape {shape}"
        )
    flat = as_tensor(points)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    _check("points", flat, torch.isfinite(flat).all(dim=-1), "finite positions")
    flat = flat.reshape(-1, *shape[-2:])
    if weights is None:
        return flat, torch.ones_like(flat[..., 0])
    given = as_tensor(weights)
    if tuple(given.shape) not in (shape[:-1], shape[-2:-1]):
        wanted = " or ".join(str(each) for each in dict.fromkeys((shape[:-1], shape[-2:-1])))
        raise ValueError(
            f"weights: expected shape {wanted}, one for each sample, got {tuple(given.shape)}"
        )
    if given.device != flat.device:
        raise ValueError(f"weights: expected device {flat.device}, got {given.device}")
    _check("weights", given, torch.isfinite(given) & (given >= 0), "finite weights of 0 or more")
    given = given.to(flat.dtype)
    return flat, given.expand(shape[:-1]).reshape(-1, shape[-2])


def as_tensor(array: Array) -> Tensor:
    """Return a NumPy array or a tensor as a tensor without gradient history."""
    if isinstance(array, Tensor):
        return array.detach()
    if isinstance(array, np.ndarray):
        # PyTorch warns of arrays that NumPy protects from writing.
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    raise TypeError(f"points: expected NumPy arrays or tensors, got {type(array).__name__}")


def as_kind(tensor: Tensor, like: Array) -> Array:
    """Return a tensor as the kind of array that ``like`` is."""
    return tensor.cpu().numpy() if isinstance(like, np.ndarray) else tensor


def _positive(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, torch.ones_like(values))


def _check(name: str, values: Tensor, good: Tensor, wanted: str) -> None:
    if bool(good.all()):
        return
    index = first_index(~good)
    raise ValueError(f"{name}: expected {wanted}, got {values[index].tolist()} at index {index}")
