"""The fast iterative method: the same scheme on all nodes at once."""

from finslerconv.geodesics.distances.fast_iterative._method import FastIterative

__all__ = ["FastIterative"]
