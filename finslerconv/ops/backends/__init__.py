"""Who computes the operators: the reference, Numba for the CPU, Triton for GPUs."""
