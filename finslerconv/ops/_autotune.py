"""The choice between tiles from a table and tiles that are timed first."""

from finslerconv.ops._process_choice import ProcessChoice


class autotune(ProcessChoice):  # noqa: N801 - used as a function and as a context manager
    """Time the GPU kernels' tiles at every new shape, from now on or within a ``with`` block.

    By default the tile of pixels, channels and outputs on which a Triton kernel works comes from a
    small table, so that a first call compiles one variant of each kernel, and layers of different
    shapes share it. With autotuning, the first call at each shape compiles and times every variant
    in the table, at most three for each kernel, and keeps the fastest until the process ends. Other
    backends have nothing to tune.

    The choice holds for the whole process. It must not be made while a CUDA graph is captured:
    call the layer once before.

    Parameters
    ----------
    enabled : bool
        Whether kernels are timed.

    Examples
    --------
    >>> from finslerconv import ops
    >>> with ops.autotune():
    ...     pass  # the first steps of a training
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = bool(enabled)
        self._choose()


def is_autotuned() -> bool:
    """Return what :class:`autotune` has chosen last."""
    return bool(autotune._in_force) and autotune._in_force[-1]._enabled
