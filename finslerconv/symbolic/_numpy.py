"""Formulas as NumPy functions of fields of metrics and vectors."""

from collections.abc import Callable
from typing import Any

import sympy
from sympy.external import import_module


def numpy_function(formula: Any, *arguments: Any) -> Callable[..., Any]:
    """Return a formula as a NumPy function that broadcasts over batches.

    Parameters
    ----------
    formula : expression, matrix, array or tuple of them
        In symbols of `parameters` of a number of dimensions.
    *arguments : symbol or matrix of symbols
        What the function takes, in order. A (d, d) matrix stands for an array of shape
        (..., d, d), of whose equal entries the first is read; a (d, 1) column for one of shape
        (..., d), and so does a 1 x 1 matrix; a symbol stands for one of shape (...).

    Returns
    -------
    callable
        It returns arrays of shape (...), (..., d), (..., d, d) and so on, or a tuple of them.

    Raises
    ------
    ValueError
        If an argument is not made of symbols, or if the formula holds others; later, if the
        arrays are not as many as the arguments, or not of their shapes.

    Examples
    --------
    >>> from finslerconv.symbolic import Randers, parameters
    >>> P = parameters(2)
    >>> norm = numpy_function(Randers(P.M, P.omega).norm(P.v), P.M, P.omega, P.v)
    >>> float(norm([[4.0, 0.0], [0.0, 1.0]], [0.5, 0.0], [-1.0, 0.0]))
    1.5
    """
    readers = [_reader(argument) for argument in arguments]
    symbols = [symbol for reader in readers for symbol in reader]
    if len(set(symbols)) < len(symbols):
        raise ValueError("arguments: expected each symbol in one argument only")
    parts = formula if isinstance(formula, tuple) else (formula,)
    entries = [entry for part in parts for entry in _entries(part)]
    missing = set().union(*(entry.free_symbols for entry in entries)) - set(symbols)
    if missing:
        raise ValueError(
            f"arguments: the formula also holds {', '.join(sorted(map(str, missing)))}; "
            "give the argument that they belong to"
        )
    compiled = sympy.lambdify(symbols, entries, modules="numpy", cse=True)
    np = import_module("numpy")  # on use only: the package itself is free of NumPy

    def function(*arrays: Any) -> Any:
        if len(arrays) != len(arguments):
            raise ValueError(f"expected {len(arguments)} arrays, got {len(arrays)}")
        arrays = tuple(np.asarray(array) for array in arrays)
        batch = np.broadcast_shapes(*map(_batch, arrays, arguments))
        scalars = [
            array[(..., *index)]
            for array, reader in zip(arrays, readers, strict=True)
            for index in reader.values()
        ]
        values = iter([np.broadcast_to(value, batch) for value in compiled(*scalars)])
        results = tuple(
            np.stack([next(values) for _ in _entries(part)], axis=-1).reshape(batch + _shape(part))
            for part in parts
        )
        return results if isinstance(formula, tuple) else results[0]

    return function


def _entries(part: Any) -> list[sympy.Expr]:
    if isinstance(part, sympy.MatrixBase):
        return list(part)
    if isinstance(part, sympy.NDimArray):
        return list(part.reshape(len(part)))
    if isinstance(part, sympy.MatrixExpr):
        raise ValueError(
            f"expected matrices of a size that is a number, got {part}; use parameters(2)"
        )
    return [sympy.sympify(part)]


def _shape(part: Any) -> tuple[int, ...]:
    if isinstance(part, sympy.NDimArray):
        return tuple(map(int, part.shape))  # of a nested list sympy counts in its own integers
    if not isinstance(part, sympy.MatrixBase):
        return ()
    return (part.rows,) if part.cols == 1 else part.shape


def _reader(argument: Any) -> dict[sympy.Symbol, tuple[int, ...]]:
    """Return where in an array each symbol of an argument is first found."""
    found: dict[sympy.Symbol, tuple[int, ...]] = {}
    size = len(_shape(argument))
    for position, entry in enumerate(_entries(argument)):
        if not isinstance(entry, sympy.Symbol):
            raise ValueError(f"arguments: expected symbols, got {entry}")
        index = divmod(position, argument.cols) if size == 2 else (position,)[:size]
        found.setdefault(entry, index)
    return found


def _batch(array: Any, argument: Any) -> tuple[int, ...]:
    shape = _shape(argument)
    if array.shape[array.ndim - len(shape) :] != shape:
        wanted = ", ".join(["...", *map(str, shape)])
        raise ValueError(f"{argument}: expected an array of shape ({wanted}), got {array.shape}")
    return array.shape[: array.ndim - len(shape)]
