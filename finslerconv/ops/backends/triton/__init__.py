"""The backend for GPUs: kernels compiled by Triton."""

from finslerconv.ops.backends.triton._backend import TritonBackend

__all__ = ["TritonBackend"]
