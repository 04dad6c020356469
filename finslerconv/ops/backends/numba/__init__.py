"""The backend for the CPU: kernels compiled by Numba."""
