"""Ellipses that hold the pixel as points of a manifold, and the frame in which each is a disc.

The unit balls of Randers metrics are ellipses of matrix ``P`` around a centre ``W`` with
``z = P^{-1/2} W`` in the open unit disc, ``|z| = |omega|_{M^-1}``: the manifold of positive
definite matrices times the ball of the drift. A tangent vector is a field ``X(y) = E y + e`` in
the frame ``y = P^{-1/2} (v - W)``, in five components ``(E00, E01, E11, e0, e1)``; a Riemannian
ball keeps ``z = 0`` and has the first three.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv._linalg import dot, inverse, matvec, spd_sqrt
from finslerconv.balls import Ellipse
from finslerconv.implicit._moments import symmetric

#: The shares of its bound at which |z| stops, and from which it counts as on the bound.
_STOP, _AT_BOUND = 1 - 1e-5, 1 - 3e-5


class Frame(NamedTuple):
    """The frame in which an ellipse is the unit disc around the origin."""

    root: Float[Tensor, "batch 2 2"]
    """``P^{1/2}``."""

    inverse_root: Float[Tensor, "batch 2 2"]
    wind: Float[Tensor, "batch 2"]
    """``z``; the pixel is at ``-z``."""

    @classmethod
    def of(cls, ellipse: Ellipse) -> "Frame":
        """Return the frame of each ellipse."""
        root = spd_sqrt(ellipse.shape)
        inverse_root = inverse(root)
        return cls(root, inverse_root, matvec(inverse_root, ellipse.centre))

    def vectors(self, v: Float[Tensor, "batch n 2"]) -> Float[Tensor, "batch n 2"]:
        """Return displacements ``v`` from the pixel in the frame, seen from the pixel."""
        return v @ self.inverse_root

    def places(self, v: Float[Tensor, "batch n 2"]) -> Float[Tensor, "batch n 2"]:
        """Return displacements ``v`` from the pixel in the frame, seen from the centre."""
        return self.vectors(v) - self.wind[:, None]

    def norm(self, q: Float[Tensor, "batch n 2"]) -> Float[Tensor, "batch n"]:
        """Return the norms of vectors of the frame: ``|q / F - z| = 1``."""
        z = self.wind[:, None]
        lam = 1 - dot(z, z)
        along = dot(q, z)
        squared = dot(q, q)
        root = (along**2 + lam * squared).sqrt()
        # Of two forms the one without cancellation.
        smaller = torch.where(squared > 0, root + along, torch.ones_like(root))
        return torch.where(along > 0, squared / smaller, (root - along) / lam)


def moved(ellipse: Ellipse, step: Float[Tensor, "batch p"], limit: float) -> Ellipse:
    """Return the ellipses after tangent vectors ``step`` (5 or 3 components), ``|z| < limit``.

    The retraction ``P + T + T P^{-1} T / 2`` of a tangent ``T`` at ``P`` is of second order, and
    positive definite for every ``T``.
    """
    frame = Frame.of(ellipse)
    tangent = 2 * frame.root @ symmetric(step[:, :3]) @ frame.root
    shape = ellipse.shape + tangent + tangent @ inverse(ellipse.shape) @ tangent / 2
    shape = (shape + shape.mT) / 2
    if step.shape[1] == 3:
        return Ellipse(ellipse.centre, shape)
    root = spd_sqrt(shape)
    wind = matvec(inverse(root), ellipse.centre + matvec(frame.root, step[:, 3:]))
    bound = _STOP * limit
    wind = wind * (bound / wind.norm(dim=-1, keepdim=True).clamp_min(bound))
    return Ellipse(matvec(root, wind), shape)


def holding_pixel(ellipse: Ellipse, limit: float) -> tuple[Ellipse, Bool[Tensor, " batch"]]:
    """Move centres towards the pixel until ``|z| <= limit``; return also which were moved."""
    wind = Frame.of(ellipse).wind.norm(dim=-1)
    factor = (limit / wind.clamp_min(limit))[:, None]
    return Ellipse(ellipse.centre * factor, ellipse.shape), wind >= _AT_BOUND * limit


def stretched_to_pixel(ellipse: Ellipse, limit: float) -> Ellipse:
    """Stretch ellipses along their centres ``c`` until ``|z| <= limit``, so that they hold more."""
    wind = Frame.of(ellipse).wind.norm(dim=-1).clamp_min(limit)
    # c.(P + t c c^T)^-1 c = 1 / (1 / |z|^2 + t)
    t = limit**-2 - wind**-2
    c = ellipse.centre
    return Ellipse(c, ellipse.shape + t[:, None, None] * c[:, :, None] * c[:, None, :])


def where(condition: Bool[Tensor, " batch"], yes: Ellipse, no: Ellipse) -> Ellipse:
    """Return the ellipses ``yes`` where the condition holds, ``no`` elsewhere."""
    return Ellipse(_pick(condition, yes.centre, no.centre), _pick(condition, yes.shape, no.shape))


def take(ellipse: Ellipse, index: Tensor) -> Ellipse:
    """Return some of the ellipses."""
    return Ellipse(ellipse.centre[index], ellipse.shape[index])


def put(ellipse: Ellipse, index: Int[Tensor, " some"], values: Ellipse) -> Ellipse:
    """Return the ellipses with some of them replaced."""
    return Ellipse(
        ellipse.centre.index_copy(0, index, values.centre),
        ellipse.shape.index_copy(0, index, values.shape),
    )


class Refinement(NamedTuple):
    """The most steps of an optimisation under ``|z| <= limit``, or ``z = 0`` if ``centred``."""

    centred: bool
    limit: float
    steps: int


class Model(NamedTuple):
    """A function of an ellipse to the second order in the frame's tangent vectors."""

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch 5"]
    hessian: Float[Tensor, "batch 5 5"]
    far: Float[Tensor, "batch 5 5"]
    """An approximation of the Hessian to use while steps are long, such as Gauss and Newton's."""


def descend(
    function: Callable[[Ellipse, Tensor], Model], ellipse: Ellipse, refinement: Refinement
) -> tuple[Ellipse, Bool[Tensor, " batch"]]:
    """Minimise a function of each ellipse by a damped Riemannian Newton method.

    ``function`` takes ellipses and their indices in the batch. A step that raises the value is
    rejected, and the damping grows tenfold: the Hessian may be indefinite, or an approximation.
    Returned is also where the last step was shorter than 1e-9, in units of the ball, or predicted a
    relative decrease below 1e-14.
    """
    centred, limit, steps = refinement
    p = 3 if centred else 5
    # Steps from the bound lead nowhere: begin further inside.
    inside, at_bound = holding_pixel(ellipse, 0.9 * limit)[0], holding_pixel(ellipse, limit)[1]
    ellipse = where(at_bound, inside, ellipse)
    active = torch.arange(len(ellipse.centre), device=ellipse.centre.device)
    at_rest = torch.zeros(len(active), dtype=torch.bool, device=active.device)
    eye = torch.eye(p, dtype=ellipse.centre.dtype, device=active.device)
    here, model = ellipse, function(ellipse, active)
    damping = torch.full_like(model.value, 1e-4)
    length = torch.full_like(model.value, torch.inf)
    for _ in range(steps):
        if len(active) == 0:
            break
        hessian = _pick(length < 0.05, model.hessian, model.far)[:, :p, :p]
        # A Hessian can vanish, that of a linear function: the step then follows the gradient.
        size = hessian.diagonal(dim1=-2, dim2=-1).abs().mean(-1).clamp_min(1e-100)
        damped = hessian + (damping * size)[:, None, None] * eye
        step = -torch.linalg.solve_ex(damped, model.gradient[:, :p])[0]
        length = step.norm(dim=-1)
        # The quadratic model does not hold for longer steps.
        step = step * (0.7 / length.clamp_min(0.7))[:, None]
        promised = -(model.gradient[:, :p] * step).sum(-1)
        there = moved(here, step, limit)
        trial = function(there, active)
        better = trial.value <= model.value  # False for NaN too
        here = where(better, there, here)
        model = Model(*(_pick(better, new, old) for new, old in zip(trial, model, strict=True)))
        rests = (length < 1e-9) & ((damping < 1e-8) | ~better)
        rests = rests | (
            (promised < 1e-14 * model.value.abs()) & (promised >= 0) & (damping < 1e-3)
        )
        damping = torch.where(better, damping / 100, (damping * 10).clamp_min(1e-2))
        damping = damping.clamp_min(1e-16)
        ellipse = put(ellipse, active, here)
        at_rest = at_rest.index_copy(0, active, rests)
        if bool(rests.any()):
            going = (~rests).nonzero().squeeze(-1)
            active, damping, length = (part[going] for part in (active, damping, length))
            here = take(here, going)
            model = Model(*(part[going] for part in model))
    return ellipse, at_rest


def _pick(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)
