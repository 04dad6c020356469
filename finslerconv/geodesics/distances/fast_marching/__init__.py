"""Fast marching: a front that goes over the nodes once."""

from finslerconv.geodesics.distances.fast_marching._march import Front, fast_marching
from finslerconv.geodesics.distances.fast_marching._space import neighbours

__all__ = [
    "Front",
    "fast_marching",
    "neighbours",
]
