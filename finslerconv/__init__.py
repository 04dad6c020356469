"""Convolutions from metrics: a kernel's positions are samples of the unit ball of a metric.

The subpackages, from the mathematics to the tools, are imported on first use, so that
``import finslerconv`` is quick and the geometry core never loads PyTorch:

=========================  ==========================================================
``finslerconv.metrics``    pointwise Finsler geometry: norms, duals, unit balls
``finslerconv.balls``      reference point sets, maps into a unit ball, ellipses
``finslerconv.symbolic``   the same formulas in sympy, with their proofs
``finslerconv.geodesics``  distances, geodesics and geodesic balls of metric fields
``finslerconv.images``     metrics computed from pictures
``finslerconv.physics``    metrics of physical models: slopes, winds, diffusion
``finslerconv.ops``        the convolution operators
``finslerconv.onnx``       exported programs in operators that ONNX has
``finslerconv.nn``         PyTorch modules
``finslerconv.implicit``   existing convolutions read as metrics
``finslerconv.dask``       arrays in chunks, on many machines
``finslerconv.plotting``   pictures
``finslerconv.cli``        the command ``finslerconv``
=========================  ==========================================================

``finslerconv.doctor()`` checks the library on this machine; inside ``with finslerconv.progress():``
long calls show how far they are.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = (
    "metrics",
    "balls",
    "symbolic",
    "geodesics",
    "images",
    "physics",
    "ops",
    "onnx",
    "nn",
    "implicit",
    "dask",
    "plotting",
    "cli",
)

_DOCTOR = ("doctor", "Report", "Check")

__all__ = ["__version__", *_DOCTOR, "progress", *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _DOCTOR:
        return getattr(import_module(f"{__name__}._doctor"), name)
    if name == "progress":
        return import_module(f"{__name__}._progress").progress
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
