"""The backend for the CPU: kernels compiled by Numba."""

from finslerconv.ops.backends.numba._backend import NumbaBackend

__all__ = ["NumbaBackend"]
