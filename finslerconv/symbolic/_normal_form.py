"""The normal form of matrix expressions of any size, up to low-rank terms.

A word is a product of matrix symbols, such as ``M^-1 omega omega' M^-1``. Every expression in
symmetric matrix symbols, columns, their transposes, sums, products, inverses and determinants is
rewritten as a sum of scalar times word with exact theorems only:

- powers of one symmetric matrix commute and their exponents add up;
- (c A)^k = c^k A^k; for a fraction k, A is positive definite and c positive, as a root needs;
- a product row ... column is a number, and equals its transpose;
- (B + C K R)^-1 = B^-1 - B^-1 C (I + K R B^-1 C)^-1 K R B^-1 (Woodbury);
- det(B + C K R) = det(B) det(I + K R B^-1 C) (Weinstein and Aronszajn).

Two expressions with the same normal form are equal in every dimension.
"""

from typing import Any, TypeAlias

import sympy

from finslerconv.symbolic._factoring import factor
from finslerconv.symbolic._linear_algebra import Contraction, MatrixLike, determinant, inverse

# One factor of a word: a symbol with an exponent, if it is a square matrix, or "column" or "row".
_Factor: TypeAlias = tuple[Any, Any]
_Word: TypeAlias = tuple[_Factor, ...]
_Sum: TypeAlias = dict[_Word, Any]


def normal_form(expression: MatrixLike | sympy.Expr) -> dict[_Word, sympy.Expr]:
    """Return the coefficients of an expression by word; a scalar has the one word ``()``.

    An expression is zero in every dimension if all coefficients are zero.
    """
    if getattr(expression, "is_Matrix", False):
        return _matrix(expression)
    return {(): _scalar(sympy.sympify(expression))}


def _scalar(expression: sympy.Expr) -> sympy.Expr:
    if isinstance(expression, Contraction):
        return _matrix(expression.product).get((), sympy.S.Zero)
    if isinstance(expression, sympy.Determinant):
        return _determinant(_matrix(expression.arg), expression.arg.rows)
    if not expression.has(Contraction, sympy.Determinant):
        return expression
    return expression.func(*(_scalar(argument) for argument in expression.args))


def _matrix(expression: MatrixLike) -> _Sum:
    match expression:
        case sympy.MatrixSymbol():
            kind = "column" if expression.shape[1] == 1 else sympy.S.One
            return {((expression, kind),): sympy.S.One}
        case sympy.Identity():
            return {(): sympy.S.One}
        case sympy.ZeroMatrix():
            return {}
        case sympy.MatAdd():
            return _add(*(_matrix(term) for term in expression.args))
        case sympy.MatMul():
            total: _Sum = {(): sympy.S.One}
            for factor in expression.args:
                total = _multiply(total, normal_form(factor))
            return total
        case sympy.Transpose():
            return _transpose(_matrix(expression.arg))
        case sympy.Inverse():
            return _inverse(_matrix(expression.arg))
        case sympy.MatPow():
            return _power(_matrix(expression.base), expression.exp)
    raise TypeError(f"expression: no rule for {type(expression).__name__} in {expression}")


def _add(*sums: _Sum) -> _Sum:
    total: _Sum = {}
    for one in sums:
        for word, coefficient in one.items():
            total[word] = total.get(word, sympy.S.Zero) + coefficient
    return {word: coefficient for word, coefficient in total.items() if coefficient != 0}


def _multiply(left: _Sum, right: _Sum) -> _Sum:
    products = []
    for u, a in left.items():
        for v, b in right.items():
            number, word = _join(u, v)
            products.append({word: a * b * number})
    return _add(*products)


def _join(left: _Word, right: _Word) -> tuple[sympy.Expr, _Word]:
    """Return the product of two words as a number times a word."""
    word = list(left)
    for symbol, kind in right:
        if word and word[-1][0] == symbol and not {kind, word[-1][1]} & {"row", "column"}:
            exponent = word.pop()[1] + kind
            if exponent != 0:
                word.append((symbol, exponent))
        else:
            word.append((symbol, kind))
    rows = [i for i, (_, kind) in enumerate(word) if kind == "row"]
    columns = [i for i, (_, kind) in enumerate(word) if kind == "column"]
    for start in rows:
        end = next((i for i in columns if i > start), None)
        if end is not None:
            number, rest = _join(tuple(word[:start]), tuple(word[end + 1 :]))
            return number * _contraction(tuple(word[start : end + 1])), rest
    return sympy.S.One, tuple(word)


def _contraction(word: _Word) -> Contraction:
    return Contraction(_product(min(word, _transposed(word), key=str)))


def _product(word: _Word) -> MatrixLike:
    factors = []
    for symbol, kind in word:
        if kind == "row":
            factors.append(symbol.T)
        elif kind == "column" or kind == 1:
            factors.append(symbol)
        else:
            factors.append(symbol**kind)
    return sympy.MatMul(*factors)


def _transposed(word: _Word) -> _Word:
    swap = {"row": "column", "column": "row"}
    return tuple((symbol, swap.get(kind, kind)) for symbol, kind in reversed(word))


def _transpose(terms: _Sum) -> _Sum:
    return {_transposed(word): coefficient for word, coefficient in terms.items()}


def _split(terms: _Sum) -> tuple[Any, _Word, list[_Word], list[_Word], sympy.Matrix]:
    """Return c, w, C, R, K of the expression c w + sum of C_i K_ij R_j, w free of columns."""
    base = [(word, c) for word, c in terms.items() if all(k != "column" for _, k in word)]
    base = [(word, c) for word, c in base if factor(c) != 0]
    if len(base) != 1 or len(base[0][0]) > 1:
        raise ValueError(
            f"expression: expected a power of one matrix plus terms of low rank, got {terms}"
        )
    [(word, c)] = base
    low_rank = {}
    for whole, coefficient in terms.items():
        if whole != word and factor(coefficient) != 0:
            cut = next(i for i, (_, kind) in enumerate(whole) if kind == "column") + 1
            low_rank[whole[:cut], whole[cut:]] = coefficient
    columns = sorted({column for column, _ in low_rank}, key=str)
    rows = sorted({row for _, row in low_rank}, key=str)
    K = sympy.Matrix(
        len(columns), len(rows), lambda i, j: low_rank.get((columns[i], rows[j]), sympy.S.Zero)
    )
    return c, word, columns, rows, K


def _schur(
    c: sympy.Expr, word: _Word, columns: list[_Word], rows: list[_Word], K: sympy.Matrix
) -> tuple[_Sum, sympy.Matrix]:
    """Return B^-1 and the small matrix I + K R B^-1 C."""
    B_inverse = {tuple((symbol, -exponent) for symbol, exponent in word): 1 / c}
    G = sympy.Matrix(
        len(rows),
        len(columns),
        lambda i, j: _multiply(
            _multiply({rows[i]: sympy.S.One}, B_inverse), {columns[j]: sympy.S.One}
        ).get((), sympy.S.Zero),
    )
    return B_inverse, (sympy.eye(len(columns)) + K * G).applyfunc(factor)


def _inverse(terms: _Sum) -> _Sum:
    c, word, columns, rows, K = _split(terms)
    B_inverse, small = _schur(c, word, columns, rows, K)
    if not columns:
        return B_inverse
    middle = (inverse(small) * K).applyfunc(factor)
    corrections = [
        _multiply(
            _multiply(_multiply(B_inverse, {column: sympy.S.One}), {row: -middle[i, j]}), B_inverse
        )
        for i, column in enumerate(columns)
        for j, row in enumerate(rows)
    ]
    return _add(B_inverse, *corrections)


def _determinant(terms: _Sum, dimension: sympy.Expr) -> sympy.Expr:
    c, word, columns, rows, K = _split(terms)
    _, small = _schur(c, word, columns, rows, K)
    base = sympy.S.One
    for symbol, exponent in word:
        base = base * sympy.Determinant(symbol) ** exponent
    return c**dimension * base * determinant(small)


def _power(terms: _Sum, exponent: sympy.Expr) -> _Sum:
    c, word, columns, _, _ = _split(terms)
    if columns:
        raise ValueError(f"expression: no power {exponent} of a sum with terms of low rank")
    return {tuple((symbol, power * exponent) for symbol, power in word): c**exponent}
