"""The choice of a backend: one for each kind of device, unless the user says otherwise."""

import importlib
import warnings
from threading import Lock
from types import TracebackType
from typing import Literal, get_args

import torch

#: Who computes the operators. ``"auto"`` takes Numba for tensors on the CPU, Triton for those on
#: CUDA devices, and the reference where these are missing and for all others.
Backend = Literal["auto", "reference", "numba", "triton"]

_DEVICES = {"numba": "cpu", "triton": "cuda"}
_chosen: list["use_backend"] = []
_lock = Lock()

# The last of them; a plain global, which torch.compile watches.
_choice: Backend = "auto"
_loaded: dict[str, bool] = {}


class use_backend:  # noqa: N801 - used as a function and as a context manager
    """Choose who computes the operators, from now on or within a ``with`` block.

    The choice holds for the whole process, for all threads; backward passes keep to the backend
    of their forward pass. Programs for ONNX (``torch.onnx.export``) are made of the reference,
    whatever is chosen.

    Parameters
    ----------
    backend : {"auto", "reference", "numba", "triton"}
        ``"auto"``: Numba on the CPU, Triton on CUDA devices, the reference where these are
        missing (which a warning says once) and on all other devices. ``"reference"``: plain
        PyTorch everywhere, differentiable any number of times, in forward mode too. ``"numba"``,
        ``"triton"``: that one for tensors of its device, and an error if it is missing; the
        reference for tensors of other devices.

    Raises
    ------
    ValueError
        If there is no backend of this name.
    ImportError
        If it is asked for by name and cannot be loaded.

    Examples
    --------
    >>> from finslerconv import ops
    >>> with ops.use_backend("reference"):
    ...     ops.current_backend()
    'reference'
    >>> ops.current_backend()
    'auto'
    """

    def __init__(self, backend: Backend) -> None:
        if backend not in get_args(Backend):
            raise ValueError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
        if backend in _DEVICES:
            _import(backend)
        self._backend = backend
        with _lock:
            _chosen.append(self)
            _update()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Its own choice and no other: blocks of other threads may have begun in between.
        with _lock:
            _chosen.remove(self)
            _update()


def _update() -> None:
    global _choice
    _choice = _chosen[-1]._backend if _chosen else "auto"


def current_backend() -> Backend:
    """Return what :class:`use_backend` has chosen last."""
    return _choice


def is_compiled(device: torch.device) -> bool:
    """Return whether tensors on the device go to a compiled backend now, not to the reference."""
    # ONNX has none of our operators, but all of which the reference is made.
    if _choice == "reference" or torch.onnx.is_in_onnx_export():
        return False
    if _choice != "auto":
        return _DEVICES[_choice] == device.type
    for backend, kind in _DEVICES.items():
        if kind == device.type:
            return _available(backend)
    return False


def _available(backend: str) -> bool:
    if backend not in _loaded:
        try:
            _import(backend)
        except ImportError as error:
            _loaded[backend] = False
            warnings.warn(
                f"finslerconv: the {backend} backend cannot be loaded ({error}), so convolutions "
                f"on {_DEVICES[backend]} tensors fall back to the slower reference backend; "
                f"install {backend}, or silence this with ops.use_backend('reference')",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            _loaded[backend] = True
    return _loaded[backend]


# What torch.compiler.assume_constant_result does, without its two seconds of importing Dynamo.
_available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _import(backend: str) -> None:
    importlib.import_module(f"finslerconv.ops.backends.{backend}._backend")
