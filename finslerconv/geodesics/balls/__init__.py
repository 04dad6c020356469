"""Geodesic balls: reference points carried to their distances from a centre."""

from finslerconv.geodesics.balls._ball import (
    InjectivityWarning,
    StarShapeWarning,
    geodesic_ball,
)
from finslerconv.geodesics.balls._fan import fan, geodesic_positions, metric_positions

__all__ = [
    "InjectivityWarning",
    "StarShapeWarning",
    "fan",
    "geodesic_ball",
    "geodesic_positions",
    "metric_positions",
]
