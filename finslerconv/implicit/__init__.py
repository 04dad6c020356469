"""Convolutions read as metrics: from a layer's sampling positions to the metric they imply."""

__all__: list[str] = []
