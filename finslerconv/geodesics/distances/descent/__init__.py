"""Shortest paths, searched with a distance map as the guide."""

from finslerconv.geodesics.distances.descent._paths import paths_of

__all__ = ["paths_of"]
