"""Metrics of physical models: travel times on slopes, in winds and currents; diffusion.

Each function returns the metrics of all nodes of a grid, for
:class:`finslerconv.geodesics.GridMetric`. NumPy or PyTorch (or any other) arrays go in and the same
kind comes out, differentiable where they are.
"""

from finslerconv.physics._diffusion import diffusion_metric
from finslerconv.physics._slope import slope_metric
from finslerconv.physics._zermelo import zermelo_metric

__all__ = ["slope_metric", "zermelo_metric", "diffusion_metric"]
