"""Programs of ``torch.export`` made ready for ``torch.onnx.export``.

A module needs nothing: ``torch.onnx.export(model, ...)`` writes its convolutions as ``DeformConv``
or, where that operator does not do, by elementary ones. A program that was exported before holds
the library's own operators, which ONNX does not have; :func:`decompose` replaces them.
"""

from finslerconv.onnx._decompose import decompose

__all__ = ["decompose"]
