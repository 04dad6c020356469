"""An exported program with this library's operators replaced by those that ONNX has."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from finslerconv.ops import aggregation_for_onnx, aggregation_of, convolution_of, for_onnx


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Return a program in which the library's operators are those that ONNX has.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Of a model with layers or operators of this library; it is left as it is. Under
        ``ops.use_backend("reference")`` it has none of them to begin with.

    Returns
    -------
    torch.export.ExportedProgram
        For ``torch.onnx.export`` alone. It does not run: PyTorch has no ``DeformConv``, and gives
        zeros in its place.

    Raises
    ------
    TypeError
        If ``program`` is not an exported program.
    ValueError
        If it holds operators of this library that have no form in ONNX, such as that of
        :class:`~finslerconv.nn.GeodesicConv2d`; the message says what to do.

    Examples
    --------
    >>> import torch
    >>> import finslerconv.onnx
    >>> from finslerconv.nn import DeformConv2d
    >>> image = torch.rand(2, 3, 16, 16)
    >>> program = torch.export.export(DeformConv2d(3, 8, 3), (image,), strict=False)
    >>> ready = finslerconv.onnx.decompose(program)
    >>> any("finslerconv" in str(node.target) for node in ready.graph.nodes)
    False
    """
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"program: expected a torch.export.ExportedProgram, got {type(program).__name__}; a "
            "module goes to torch.onnx.export itself"
        )
    with warnings.catch_warnings():
        # PyTorch warns of its own use of what it deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        program = program.run_decompositions(
            {
                torch.ops.finslerconv.sampled_conv.default: _convolve,
                torch.ops.finslerconv.aggregate.default: _aggregate,
            }
        )
    left = sorted(
        str(node.target)
        for node in program.graph.nodes
        if node.op == "call_function" and str(node.target).startswith("finslerconv.")
    )
    if left:
        raise ValueError(
            f"program: holds {left[0]}, which has no form in operators of ONNX; give "
            "torch.onnx.export the module itself, or export the program under "
            'finslerconv.ops.use_backend("reference")'
        )
    return program


def _convolve(*arguments: Any) -> Tensor:
    return for_onnx(convolution_of(*arguments))


def _aggregate(*arguments: Any) -> Tensor:
    return aggregation_for_onnx(aggregation_of(*arguments))
