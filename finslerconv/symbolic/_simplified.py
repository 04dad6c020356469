"""One form for expressions of symbols, roots and sines: what is equal looks alike.

An expression becomes a sum of products: factored rational functions of the symbols times powers of
its roots, none of them in a denominator. Sines count as roots, sin^2 = 1 - cos^2, and so do
absolute values. Roots that depend on each other, such as sqrt(x), sqrt(y) and sqrt(x y), are not
compared; neither is any other function with another.
"""

from typing import Any

import sympy
from sympy.polys.fields import field

from finslerconv.symbolic._factoring import factor


def simplified(expression: Any) -> sympy.Expr:
    """Return an equal expression in that form.

    Examples
    --------
    >>> x, y = sympy.symbols("x y", real=True)
    >>> simplified(1 / (sympy.sqrt(x**2 + y**2) - x) - x / y**2)
    sqrt(x**2 + y**2)/y**2
    >>> simplified(sympy.tan(x) ** 2 * sympy.cos(x) ** 2 + sympy.cos(x) ** 2)
    1
    """
    expression = sympy.sympify(expression).replace(sympy.tan, _tangent).doit()
    if expression.is_number:
        return sympy.radsimp(expression)
    names = _Names()
    rational = names.rational(expression)
    symbols = sorted(
        rational.free_symbols.union(*(b.free_symbols for _, _, b in names.roots)), key=str
    )
    roots = [root for root, _, _ in names.roots]
    K = field([*(s for s in symbols if s not in roots), *roots], sympy.ZZ)[0]
    value = K.from_expr(rational)
    bases = [(K.gens[K.symbols.index(r)], q, K.from_expr(base)) for r, q, base in names.roots]
    return sympy.sympify(_expanded(value, bases)).xreplace(names.meanings)


def _tangent(angle: sympy.Expr) -> sympy.Expr:
    return sympy.sin(angle) / sympy.cos(angle)


class _Names:
    """Symbols in place of what is not rational, and the relations among them."""

    def __init__(self) -> None:
        self.meanings: dict[sympy.Symbol, sympy.Expr] = {}
        #: A root, its order q and its q-th power, a rational function of symbols and earlier roots.
        self.roots: list[tuple[sympy.Symbol, int, sympy.Expr]] = []
        self._known: dict[sympy.Expr, sympy.Expr] = {}

    def rational(self, node: sympy.Expr) -> sympy.Expr:
        """Return an expression with symbols for its roots and functions."""
        if node not in self._known:
            self._known[node] = self._renamed(node)
        return self._known[node]

    def _renamed(self, node: sympy.Expr) -> sympy.Expr:
        if isinstance(node, sympy.Symbol | sympy.Rational):
            return node
        if isinstance(node, sympy.Pow) and node.exp.is_Integer:
            return self.rational(node.base) ** node.exp
        if isinstance(node, sympy.Pow) and node.exp.is_Rational:
            base, (p, q) = simplified(node.base), node.exp.as_numer_denom()
            return self._root(base ** sympy.Rational(1, q), int(q), base) ** p
        if isinstance(node, sympy.Abs):
            inside = simplified(node.args[0])
            return self._root(sympy.Abs(inside), 2, inside**2)
        if isinstance(node, sympy.sin):
            return self._root(node, 2, 1 - sympy.cos(node.args[0]) ** 2)
        if isinstance(node, sympy.Add | sympy.Mul):
            return node.func(*(self.rational(part) for part in node.args))
        name = sympy.Dummy("f")
        self.meanings[name] = node
        return name

    def _root(self, meaning: sympy.Expr, q: int, power: sympy.Expr) -> sympy.Expr:
        if meaning.is_Rational:
            return meaning
        power = self.rational(power)
        if meaning not in self._known:
            name = sympy.Dummy("r")
            self.meanings[name] = meaning
            self.roots.append((name, q, power))
            self._known[meaning] = name
        return self._known[meaning]


def _expanded(value: Any, roots: list[tuple[Any, int, Any]]) -> sympy.Expr:
    """Return a quotient of polynomials as a sum of powers of roots, the last root first."""
    if not roots or not value:
        return factor(value.as_expr())
    *earlier, (root, q, base) = roots
    top, bottom = (_coefficients(part, root, q, base) for part in _parts(value))
    if q == 2:
        (a, b), (c, d) = top, bottom
        size = c * c - d * d * base
        terms = [(a * c - b * d * base) / size, (b * c - a * d) / size]
    elif sum(bool(c) for c in bottom) == 1:
        [(k, c)] = [(k, c) for k, c in enumerate(bottom) if c]
        # 1 / root^k = root^(q - k) / base for k > 0.
        terms = [base.field.zero] * q
        for i, a in enumerate(top):
            j = i - k
            terms[j % q] += a / c if j >= 0 else a / (c * base)
    else:
        return factor(value.as_expr())
    name = root.as_expr()
    return sympy.Add(*(_expanded(t, earlier) * name**k for k, t in enumerate(terms) if t))


def _parts(value: Any) -> tuple[Any, Any]:
    return value.numer, value.denom  # codespell:ignore numer


def _coefficients(polynomial: Any, root: Any, q: int, base: Any) -> list[Any]:
    """Return the coefficients of root^0 ... root^(q - 1) of a polynomial, with root^q = base."""
    K = base.field
    index = K.gens.index(root)
    parts = [K.zero] * q
    if not polynomial:
        return parts
    for k in range(polynomial.degree(K.ring.gens[index]) + 1):
        terms = {
            (*e[:index], 0, *e[index + 1 :]): c for e, c in polynomial.terms() if e[index] == k
        }
        whole, rest = divmod(k, q)
        parts[rest] += K.new(K.ring.from_dict(terms)) * base**whole
    return parts
