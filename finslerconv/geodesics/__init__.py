"""Metric fields on grids: geodesic distances, geodesics, geodesic balls."""

__all__: list[str] = []
