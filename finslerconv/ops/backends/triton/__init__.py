"""The backend for GPUs: kernels compiled by Triton."""
