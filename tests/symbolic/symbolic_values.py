"""Random numbers for the symbols, and values of expressions that no proof has a part in."""

import random
from functools import singledispatch

import mpmath
import numpy as np
import sympy

from finslerconv.symbolic._linear_algebra import Contraction


def metric_data(d, seed):
    """Return the entries of random M, omega, h, W, v, p, g, x as fractions, by name."""
    rng = random.Random(seed)

    def fraction(low=-1, high=1):
        return sympy.Rational(rng.randint(1000 * low, 1000 * high), 1000)

    def definite():
        root = sympy.Matrix(d, d, lambda i, j: fraction() if i != j else fraction() + 2)
        return root * root.T

    def positive(n):
        return sympy.Matrix([abs(fraction()) + sympy.Rational(1, 10) for _ in range(n)])

    M, h = definite(), definite()
    # In one dimension the assumptions fix the direction of the axis.
    vector = positive if d == 1 else lambda n: sympy.Matrix([fraction() for _ in range(n)])
    omega, W = vector(d), vector(d)
    omega = omega * sympy.Rational(9, 10) / (1 + (omega.T * M.inv() * omega)[0, 0])
    W = W * sympy.Rational(9, 10) / (1 + (W.T * h * W)[0, 0])
    return {
        "M": M,
        "omega": omega,
        "h": h,
        "W": W,
        "v": vector(d),
        "p": vector(d),
        "g": vector(d),
        # Inside the unit ball, and above the boundary of the half-space.
        "x": positive(d) / (2 * d),
    }


def numbers(P, seed):
    """Return a number for each symbol of explicit parameters."""
    data = metric_data(P.dimension, seed)
    return {
        symbol: value
        for name, matrix in data.items()
        for symbol, value in zip(getattr(P, name), matrix, strict=True)
    }


def precise(expressions, *several, digits=40):
    """Return expressions as mpmath numbers, given numbers for (some of) their symbols.

    A list of them for each of the ``several`` choices of numbers.
    """
    symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
    function = sympy.lambdify(symbols, expressions, modules="mpmath", cse=True)
    results = []
    for values in several:
        chosen = [values.get(s, sympy.Rational(3 + i, 7)) for i, s in enumerate(symbols)]
        with mpmath.workdps(digits):
            fractions = (mpmath.mpf(int(value.p)) / int(value.q) for value in chosen)
            results.append([mpmath.mpf(value) for value in function(*fractions)])
    return results


@singledispatch
def evaluate(node, arrays):
    """Return a matrix expression of any size with NumPy arrays for its symbols."""
    if isinstance(node, sympy.Number | sympy.NumberSymbol):
        return float(node)
    raise TypeError(type(node))


@evaluate.register(sympy.MatrixSymbol)
@evaluate.register(sympy.Symbol)
def _(node, arrays):
    return arrays[node.name]


@evaluate.register(sympy.Identity)
def _(node, arrays):
    return np.eye(arrays["d"])


@evaluate.register(sympy.ZeroMatrix)
def _(node, arrays):
    return np.zeros([1 if size == 1 else arrays["d"] for size in node.shape])


@evaluate.register(sympy.Transpose)
def _(node, arrays):
    return evaluate(node.arg, arrays).T


@evaluate.register(sympy.Inverse)
def _(node, arrays):
    return np.linalg.inv(evaluate(node.arg, arrays))


@evaluate.register(sympy.MatPow)
def _(node, arrays):
    values, axes = np.linalg.eigh(evaluate(node.base, arrays))
    return axes * values ** float(node.exp) @ axes.T


@evaluate.register(sympy.Determinant)
def _(node, arrays):
    return np.linalg.det(evaluate(node.arg, arrays))


@evaluate.register(Contraction)
def _(node, arrays):
    return evaluate(node.product, arrays).item()


@evaluate.register(sympy.Add)
@evaluate.register(sympy.MatAdd)
def _(node, arrays):
    return sum(evaluate(term, arrays) for term in node.args)


@evaluate.register(sympy.Mul)
@evaluate.register(sympy.MatMul)
def _(node, arrays):
    product = 1.0
    for factor in (evaluate(factor, arrays) for factor in node.args):
        both = np.ndim(product) and np.ndim(factor)
        product = product @ factor if both else product * factor
    return product


@evaluate.register(sympy.Pow)
def _(node, arrays):
    return evaluate(node.base, arrays) ** evaluate(node.exp, arrays)


@evaluate.register(sympy.gamma)
def _(node, arrays):
    return float(mpmath.gamma(evaluate(node.args[0], arrays)))
