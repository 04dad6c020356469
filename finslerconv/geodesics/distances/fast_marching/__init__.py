"""Fast marching: a front that goes over the nodes once."""

from finslerconv.geodesics.distances.fast_marching._march import FastMarching
from finslerconv.geodesics.distances.fast_marching._space import neighbours

__all__ = ["FastMarching", "neighbours"]
