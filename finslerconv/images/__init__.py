"""Metrics computed from pictures, by convolution and differentiably; a photograph to try them."""

from finslerconv.images._gradient import gradient_metric
from finslerconv.images._photograph import photograph
from finslerconv.images._ridge import ridge_metric
from finslerconv.images._structure import structure_tensor_metric

__all__ = ["gradient_metric", "structure_tensor_metric", "ridge_metric", "photograph"]
