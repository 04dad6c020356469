"""Pictures computed part by part: what a part has to know of the whole picture.

A metric of a picture is relative to the picture's largest gradient. Code that needs a largest value
over the whole picture asks :func:`over_whole`. A picture in memory is its own whole. Of a larger
one, :mod:`finslerconv.dask` computes a window at a time within :func:`computing`: in a first pass
every window ends where it asks, by :class:`Unknown` with its own largest values; in the next pass
the answers are known.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


class Unknown(Exception):  # noqa: N818 - it asks, and reports no error
    """A window asks for the largest values over the whole picture; it holds those of its core."""

    def __init__(self, largest: Float[Tensor, "batch values"]) -> None:
        super().__init__("the largest values of the whole picture are not known yet")
        self.largest = largest


@dataclass
class Part:
    """A window on a picture, whose inner part, the core, is wanted."""

    rows: slice
    columns: slice
    """The core's rows and columns in the window."""

    answers: Sequence[Float[Tensor, "batch _"]] | None = None
    """The largest values over the whole picture, in the order in which they are asked for; None if
    the window is the whole."""

    asked: list[int] = field(default_factory=list)
    """How many values were asked for, each time."""

    margin: int | None = None
    """How many pixels around itself a pixel depends on, as far as filters have told."""


_part: ContextVar[Part | None] = ContextVar("finslerconv_part", default=None)


@contextmanager
def computing(part: Part) -> Iterator[Part]:
    """Within the block, take pictures as windows of one ``part``."""
    token = _part.set(part)
    try:
        yield part
    finally:
        _part.reset(token)


def current() -> Part | None:
    """Return the part that is being computed, None for pictures that are whole."""
    return None if torch.compiler.is_compiling() else _part.get()


def core(
    values: Float[Tensor, "batch height width"], size: tuple[int, int]
) -> Float[Tensor, "batch core_height core_width"]:
    """Return what belongs to the core of values on a window of ``size``, or around it.

    Values that reach beyond the window by a margin are returned with that margin around the core.
    """
    part = current()
    if part is None:
        return values
    beyond = [values.shape[1] - size[0], values.shape[2] - size[1]]
    rows = slice(part.rows.start, part.rows.stop + beyond[0])
    columns = slice(part.columns.start, part.columns.stop + beyond[1])
    return values[:, rows, columns]


def over_whole(largest: Float[Tensor, "batch values"]) -> Float[Tensor, "batch values"]:
    """Return the largest values over the whole picture, from those over a part's core."""
    part = current()
    if part is None:
        return largest
    part.asked.append(largest.shape[1])
    if part.answers is None:
        return largest
    if len(part.asked) > len(part.answers):
        raise Unknown(largest)
    return part.answers[len(part.asked) - 1].to(largest)


def look(margin: int) -> None:
    """Note that pixels depend on those up to ``margin`` around them."""
    part = current()
    if part is not None:
        part.margin = max(part.margin or 0, margin)
