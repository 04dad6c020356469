"""Masks of the places that count, and the refusal of wrong values there."""

from typing import Any

from finslerconv._arrays import Array, constant_like, first_index, has_values, namespace


def as_mask(mask: Any, shape: tuple[int, ...], like: Array) -> Array | None:
    """Return a boolean array that broadcasts to ``shape``, of the kind of ``like``; None stays."""
    if mask is None:
        return None
    if not str(getattr(mask, "dtype", "")).endswith("bool"):
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(
            f"mask: expected a boolean array, true where one may go, got {kind}; compare it, for "
            "example mask > 0"
        )
    xp = namespace(like)
    if type(mask) is not type(like):
        mask = xp.asarray(mask, device=getattr(like, "device", None))
    try:
        return xp.broadcast_to(mask, shape)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"mask: expected a shape that broadcasts to {shape}, got {tuple(mask.shape)}"
        ) from error


def filled(x: Array, mask: Array | None, value: float = 0.0) -> Array:
    """Return ``x`` with a value where the mask is False; the mask has the leading axes of x."""
    if mask is None:
        return x
    xp = namespace(x)
    mask = xp.reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))
    return xp.where(mask, x, constant_like(value, x))


def check_where(name: str, good: Array, wanted: str, got: Any, hint: str) -> None:
    """Raise a ValueError that names the first place that is not ``good``, and counts the others.

    ``got(index)`` describes the place.
    """
    if not has_values(good):
        return
    xp = namespace(good)
    bad = ~good
    count = int(xp.sum(xp.astype(bad, xp.int64)))
    if count == 0:
        return
    index = first_index(bad)
    where = f" at index {index}" if index else ""
    others = f" (and at {count - 1} other places)" if count > 1 else ""
    raise ValueError(f"{name}: expected {wanted}, got {got(index)}{where}{others}; {hint}")
