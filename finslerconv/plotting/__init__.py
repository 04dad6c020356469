"""Pictures of metrics, unit balls, kernels and results.

Every function takes NumPy arrays or tensors in array-axis order (down, right), draws on the ``ax``
that it is given or on a new figure of pyplot's, and returns what it drew on. Only here are (row,
column) turned into (x, y); axes run down and to the right, as in a picture. The colours are those
of Okabe and Ito and of matplotlib's perceptually uniform maps, safe for colour-blind readers.
"""

from finslerconv._optional import needs as _needs

with _needs("plot", "finslerconv.plotting"):
    from finslerconv.plotting._balls import ball_field, unit_balls
    from finslerconv.plotting._canvas import BLUE, GREEN, show
    from finslerconv.plotting._geodesics import distance_map, paths
    from finslerconv.plotting._implicit import (
        implicit_balls,
        implicit_field,
        implicit_metric,
        orientation_rose,
    )
    from finslerconv.plotting._kernels import kernel_samples, reference_points
    from finslerconv.plotting._results import Zoom, side_by_side

__all__ = [
    "unit_balls",
    "ball_field",
    "kernel_samples",
    "reference_points",
    "implicit_metric",
    "implicit_balls",
    "implicit_field",
    "orientation_rose",
    "distance_map",
    "paths",
    "side_by_side",
    "Zoom",
    "show",
    "BLUE",
    "GREEN",
]
