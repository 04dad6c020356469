"""The registry of backends, and the choice among them: by the device, or as the user says."""

import warnings
from collections.abc import Callable

import torch

from finslerconv.ops._process_choice import ProcessChoice
from finslerconv.ops.backends._contract import ConvBackend
from finslerconv.ops.backends.reference import Reference

# The type of device of each backend; the first of a type is the device's own.
_devices: dict[str, str] = {}
_loaders: dict[str, Callable[[], ConvBackend]] = {}
# None where loading failed; the errors are in _missing.
_loaded: dict[str, ConvBackend | None] = {}
_missing: dict[str, ImportError] = {}

# The types of device for which a warning has said that the reference computes.
_told: set[str] = set()

# The name of the backend that is chosen: a plain global, which torch.compile watches.
_choice = "auto"

reference = Reference()


def register_backend(name: str, device: str, load: Callable[[], ConvBackend]) -> None:
    """Add a backend, which :class:`use_backend` then takes by its name.

    Parameters
    ----------
    name : str
    device : str
        The type of the tensors that it computes with, such as ``"cpu"``. The first backend that is
        registered for a type of device is the one that ``"auto"`` takes there.
    load : callable
        Returns the backend; called once, at the first use. A class will do. An ``ImportError``
        says that the backend is missing here.

    Raises
    ------
    ValueError
        If there is a backend of this name already.

    Examples
    --------
    >>> from finslerconv import ops
    >>> class Traced(ops.ConvBackend):
    ...     def forward(self, conv):
    ...         print(tuple(conv.input.shape), "by", conv.geometry.kernel_size)
    ...         return ops.reference.forward(conv)
    >>> ops.register_backend("traced", "cpu", Traced)
    >>> import torch
    >>> x, offset, weight = torch.ones(1, 2, 4, 4), torch.zeros(1, 18, 2, 2), torch.ones(1, 2, 3, 3)
    >>> with ops.use_backend("traced"):
    ...     ops.deform_conv2d(x, offset, weight).shape
    (1, 2, 4, 4) by (3, 3)
    torch.Size([1, 1, 2, 2])
    """
    if name in _names():
        raise ValueError(f"name: expected a new one, there is a backend {name!r} already")
    _devices[name], _loaders[name] = device, load


class use_backend(ProcessChoice):  # noqa: N801 - used as a function and as a context manager
    """Choose who computes the operators, from now on or within a ``with`` block.

    The choice holds for the whole process, for all threads; backward passes keep to the backend
    of their forward pass. Programs for ONNX (``torch.onnx.export``) are made of the reference,
    whatever is chosen.

    Parameters
    ----------
    backend : str
        ``"auto"``: Numba on the CPU, Triton on CUDA devices, the reference where these are
        missing (which a warning says once) and on all other devices. ``"reference"``: plain
        PyTorch everywhere, differentiable any number of times, in forward mode too. ``"numba"``,
        ``"triton"``, or a name given to :func:`register_backend`: that one for tensors of its
        device, and an error if it is missing; the reference for tensors of other devices.

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

    def __init__(self, backend: str) -> None:
        if backend not in _names():
            raise ValueError(f"backend: expected one of {_names()}, got {backend!r}")
        if backend in _loaders and _loaded.get(backend) is None:
            _loaded[backend] = _loaders[backend]()
        self._backend = backend
        self._choose()

    def _changed(self) -> None:
        global _choice
        _choice = self._in_force[-1]._backend if self._in_force else "auto"


def _names() -> tuple[str, ...]:
    return ("auto", "reference", *_devices)


def current_backend(device: torch.device | str | None = None) -> str:
    """Return what :class:`use_backend` has chosen last, or who computes on a device now.

    Parameters
    ----------
    device : torch.device or str, optional

    Returns
    -------
    str
        Without ``device``, the choice: ``"auto"`` or the name of a backend. With it, the name of
        the backend that computes with tensors of that device.

    Examples
    --------
    >>> from finslerconv import ops
    >>> ops.current_backend(), ops.current_backend("cpu")
    ('auto', 'numba')
    """
    if device is None:
        return _choice
    device = torch.device(device)
    if not is_compiled(device):
        return "reference"
    own = _backend_of(device.type)
    return own if own is not None and _choice == "auto" else _choice


def is_compiled(device: torch.device) -> bool:
    """Return whether tensors on the device go to a backend of their own now, not the reference.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> with ops.use_backend("reference"):
    ...     print(ops.is_compiled(torch.device("cpu")))
    False
    """
    # ONNX has the operators of which the reference is made, not ours.
    if _choice == "reference" or torch.onnx.is_in_onnx_export():
        return False
    if _choice != "auto":
        return _devices[_choice] == device.type
    own = _backend_of(device.type)
    return _tell_of_reference(device.type) if own is None else _available(own)


def has_backend(device_type: str) -> bool:
    """Return whether a backend is made for a type of device, whatever is chosen."""
    return _backend_of(device_type) is not None


def why_reference(device: torch.device) -> str:
    """Return why the reference computes with tensors of a device, in words.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import ops
    >>> with ops.use_backend("reference"):
    ...     print(ops.why_reference(torch.device("cpu")))
    ops.use_backend('reference') is in force
    """
    if _choice != "auto":
        return f"ops.use_backend({_choice!r}) is in force"
    own = _backend_of(device.type)
    if own is None:
        return f"no other backend is made for {device.type} tensors"
    return f"the {own} backend cannot be loaded: {_missing.get(own)}"


def backend_for(name: str, device: torch.device) -> ConvBackend:
    """Return the named backend if it is for the device, and else the device's own."""
    own = name if _devices.get(name) == device.type else _backend_of(device.type)
    found = _loaded[own] if own is not None and _available(own) else None
    return found or reference


def _backend_of(device_type: str) -> str | None:
    return next((name for name, kind in _devices.items() if kind == device_type), None)


def _available(name: str) -> bool:
    if name not in _loaded:
        try:
            _loaded[name] = _loaders[name]()
        except ImportError as error:
            _loaded[name], _missing[name] = None, error
            warnings.warn(
                f"finslerconv: the {name} backend cannot be loaded ({error}), so convolutions "
                f"on {_devices[name]} tensors fall back to the slower reference backend; "
                f"install {name}, or silence this with ops.use_backend('reference')",
                RuntimeWarning,
                stacklevel=2,
            )
    return _loaded[name] is not None


def _tell_of_reference(device_type: str) -> bool:
    """Warn once that no backend is made for a type of device, and return False."""
    if device_type != "meta" and device_type not in _told:
        _told.add(device_type)
        warnings.warn(
            f"finslerconv: no backend is made for {device_type} tensors, so their convolutions are "
            "computed by the slower reference backend; silence this with "
            "ops.use_backend('reference')",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


# What torch.compiler.assume_constant_result does, without its two seconds of importing Dynamo.
_available._dynamo_marked_constant = True  # type: ignore[attr-defined]
_tell_of_reference._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _numba() -> ConvBackend:
    from finslerconv.ops.backends.numba import NumbaBackend

    return NumbaBackend()


def _triton() -> ConvBackend:
    from finslerconv.ops.backends.triton import TritonBackend

    return TritonBackend()


register_backend("numba", "cpu", _numba)
register_backend("triton", "cuda", _triton)
