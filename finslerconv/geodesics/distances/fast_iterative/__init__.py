"""The fast iterative method: the same scheme on all nodes at once."""

from finslerconv.geodesics.distances.fast_iterative._method import fast_iterative

__all__ = [
    "fast_iterative",
]
