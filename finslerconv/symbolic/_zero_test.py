"""An exact test that expressions built from rational functions and roots are zero.

Each expression is turned into a quotient of polynomials in independent variables, for which being
zero is decidable. A root r = f^(1/q) of an irreducible polynomial f becomes a variable:

- if f is linear in some variable x, with a coefficient of known sign (or a square), the equation
  r^q = f is solved for x, and r takes the place of x. No relation is left, and a square in r is
  seen to be one. Where a square coefficient vanishes the identity holds by continuity;
- else the numerator is reduced by the relation r^q = f at the end.

A root of a product is split only where that holds for real numbers: factors known to be positive
leave the root, and an even power of a factor f of unknown sign leaves a square root as |f|.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import sympy
from sympy.polys.rings import ring

from finslerconv.symbolic._quotient import Quotient


def remainders(
    differences: Sequence[sympy.Expr], positive: Iterable[sympy.Expr] = ()
) -> tuple[sympy.Expr, ...]:
    """Return what is left of each expression after exact reduction: 0 where it is proved zero.

    The differences are rational functions of real symbols, roots with rational exponents, absolute
    values, and powers with an exponent linear in an integer symbol; any other function counts as a
    variable. Only the expressions assumed to be ``positive`` let a root be split; one that holds a
    root comes after those that say its base is positive.

    A 0 means that the difference vanishes wherever the assumptions hold, all roots are real and no
    denominator is zero; anything else proves nothing. A ValueError says that a root cannot be
    split, a denominator is zero, or the assumptions contradict each other.

    Examples
    --------
    >>> x, y = sympy.symbols("x y", real=True)
    >>> remainders([sympy.sqrt(x**2 * y) - x * sympy.sqrt(y)], positive=[x, y])
    (0,)
    >>> remainders([sympy.sqrt(x**2 * y) - x * sympy.sqrt(y)], positive=[y])[0] == 0
    False
    """
    differences = [sympy.sympify(expression) for expression in differences]
    positive = [sympy.sympify(expression) for expression in positive]
    reduction = _Reduction([*positive, *differences])
    while True:
        try:
            return reduction.run(differences, positive)
        except _EliminatedError:
            continue  # a variable was replaced by a root: everything is evaluated anew


class _EliminatedError(Exception):
    """A variable was eliminated, so that values found so far are stale."""


class _Reduction:
    """Evaluation of expressions as rational functions of variables and named roots."""

    def __init__(self, expressions: list[sympy.Expr]) -> None:
        variables, n_bases = _survey(expressions)
        # A base rarely has more than four different factors that stay under the root.
        names = [sympy.Dummy(f"r_{i}") for i in range(4 * n_bases + 1)]
        self._ring = ring([*variables, *names], sympy.ZZ)[0]
        generators = self._ring.gens
        self._free = set(generators[: len(variables)])
        self._spare = list(generators[len(variables) :])
        # Roots that stand for variables, and variables such as pi: known to be positive.
        self._solved_roots: list[Any] = []
        self._positive_variables = [
            x for variable, x in zip(variables, generators, strict=False) if variable.is_positive
        ]
        # The values of the variables: themselves, until one is eliminated.
        self._values = {
            variable: Quotient.of(x) for variable, x in zip(variables, generators, strict=False)
        }

    def run(
        self, differences: list[sympy.Expr], positive: list[sympy.Expr]
    ) -> tuple[sympy.Expr, ...]:
        """Evaluate everything with the present values of the variables."""
        self._memo: dict[Any, Quotient] = {}
        self._relations: list[tuple[Any, int, Any]] = []  # (root, q, root^q), in order
        self._symbolic_powers: dict[Any, Any] = {}
        self._unused = iter(self._spare)
        self._signs = dict.fromkeys((*self._solved_roots, *self._positive_variables), 1)
        pending: list[Quotient] = []
        for expression in positive:
            value = self._evaluate(expression).factored(self._signs)
            if not value:
                raise ValueError(f"assumed to be positive, but zero: {expression}")
            self._memo[expression] = value
            pending.append(value)
            self._learn_signs(pending)
        return tuple(self._remainder(self._evaluate(expression)) for expression in differences)

    def _evaluate(self, expression: sympy.Expr) -> Quotient:
        if expression not in self._memo:
            self._memo[expression] = self._value(expression)
        return self._memo[expression]

    def _value(self, expression: sympy.Expr) -> Quotient:
        match expression:
            case sympy.Rational():
                return Quotient.number(self._ring, Fraction(expression.p, expression.q))
            case sympy.Add():
                total = Quotient.number(self._ring, 0)
                for term in expression.args:
                    total = total + self._evaluate(term)
                return total
            case sympy.Mul():
                product = Quotient.number(self._ring, 1)
                for factor in expression.args:
                    product = product * self._evaluate(factor)
                return product
            case sympy.Abs():
                return self._root(self._evaluate(expression.args[0]) ** 2, sympy.Rational(1, 2))
            case sympy.sign():
                return self._evaluate(expression.args[0]) * self._root(
                    self._evaluate(expression.args[0]) ** 2, sympy.Rational(-1, 2)
                )
            case sympy.Pow():
                return self._power(expression.base, expression.exp)
        return self._values[expression]

    def _power(self, base: sympy.Expr, exponent: sympy.Expr) -> Quotient:
        value = self._evaluate(base)
        if exponent.free_symbols:
            d, multiple, constant = _linear_exponent(exponent)
            return self._symbolic_power(value, d, multiple) * self._power(base, constant)
        if not exponent.is_Rational:
            raise ValueError(f"no rule for the power {base**exponent}")
        if exponent.is_Integer:
            if not value and exponent < 0:
                raise ValueError(f"a denominator is zero: {base}")
            return value ** int(exponent)
        return self._root(value, exponent)

    def _learn_signs(self, pending: list[Quotient]) -> None:
        """Find the signs of irreducible polynomials from products that are positive."""
        progress = True
        while progress:
            progress = False
            for value in list(pending):
                sign = 1 if value.constant > 0 else -1
                odd = [f for f, k in value.powers.items() if k % 2]
                unknown = [f for f in odd if f not in self._signs]
                for f in odd:
                    sign *= self._signs.get(f, 1)
                if not unknown and sign < 0:
                    raise ValueError("positive: these assumptions contradict each other")
                if len(unknown) < 2:
                    pending.remove(value)
                    self._signs.update((f, sign) for f in unknown)
                    progress = True

    def _root(self, value: Quotient, exponent: sympy.Rational) -> Quotient:
        """Return value ** exponent for an exponent p / q."""
        p, q = int(exponent.p), int(exponent.q)
        if not value:
            if p < 0:
                raise ValueError("a denominator is zero: the root of zero")
            return value
        value = value.factored(self._signs)
        constant = value.constant
        result = Quotient.number(self._ring, 1)
        inside = self._ring.one
        for f, k in value.powers.items():
            sign = self._signs.get(f)
            if sign is not None:
                constant *= sign ** (k % 2)
                result = result * self._positive_power(f, sign, k * p, q)
            elif q == 2 and k % 2 == 0:
                whole = k * p // 2
                result = result * Quotient.of(f) ** whole
                if whole % 2:
                    result = result * self._named_root(f**2, None, 2) * Quotient.of(f) ** -1
            elif k > 0:
                inside = inside * f**k
            else:
                raise ValueError(
                    f"cannot split a root: the sign of {f.as_expr()} is not known; "
                    "assume that it is positive"
                )
        for prime, k in sympy.factorrat(sympy.Rational(abs(constant))).items():
            number = self._ring(int(prime))
            result = result * self._positive_power(number, 1, int(k) * p, q)
        if constant < 0:
            inside = -inside
        if inside == 1:
            return result
        return result * self._named_root(inside, None, q) ** p

    def _positive_power(self, f: Any, sign: int, p: int, q: int) -> Quotient:
        """Return (sign f) ** (p / q), where sign f is positive."""
        whole, rest = divmod(p, q)
        result = Quotient.of(f * sign) ** whole
        return result * self._named_root(f * sign, 1, q) ** rest if rest else result

    def _named_root(self, base: Any, sign: int | None, q: int) -> Quotient:
        """Return the variable that stands for the principal root base^(1/q)."""
        for root, order, power in self._relations:
            if order == q and power == base:
                return Quotient.of(root)
        if sign is not None:
            self._eliminate(base, q)
        root = self._new_variable()
        self._relations.append((root, q, base))
        if sign is not None:
            self._signs[root] = 1
        return Quotient.of(root)

    def _new_variable(self) -> Any:
        try:
            return next(self._unused)
        except StopIteration:
            raise ValueError(
                "the roots have too many different factors; write them in fewer"
            ) from None

    def _eliminate(self, base: Any, q: int) -> None:
        """Solve root^q = base for a variable that has a coefficient of known sign, if one has."""
        present = [x for x, k in zip(self._ring.gens, base.degrees(), strict=True) if k > 0]
        if not set(present) <= self._free.union(self._solved_roots):
            return
        linear = [x for x in present if x in self._free and base.degree(x) == 1]
        slopes = {x: Quotient.of(base.diff(x)).factored(self._signs) for x in linear}
        solvable = [
            x
            for x, slope in slopes.items()
            if all(f in self._signs or k % 2 == 0 for f, k in slope.powers.items())
        ]
        if not solvable:
            return
        x = min(solvable, key=lambda x: len(base.diff(x)))
        root = self._spare.pop(0)
        rest = base - base.diff(x) * x
        solution = Quotient.of(root**q - rest) * slopes[x] ** -1
        self._free.remove(x)
        self._solved_roots.append(root)
        self._values = {
            variable: _composed(value, x, solution) for variable, value in self._values.items()
        }
        raise _EliminatedError

    def _symbolic_power(
        self, value: Quotient, d: sympy.Symbol, multiple: sympy.Rational
    ) -> Quotient:
        """Return value ** (multiple d) as a product of variables that stand for f ** (d / 2)."""
        value = value.factored(self._signs)
        constant = value.constant
        for f, k in value.powers.items():
            constant *= self._signs.get(f, 1) ** (k % 2)  # |f| in place of f
        pieces = [(f, k, f in self._signs) for f, k in value.powers.items()]
        if constant != 1:
            pieces.append((constant, 1, constant > 0))
        result = Quotient.number(self._ring, 1)
        for f, k, is_positive in pieces:
            halves = 2 * multiple * k
            if not halves.is_Integer or (halves % 2 and not is_positive):
                raise ValueError(
                    f"cannot split a power with the exponent {multiple * d}: the sign of {f} is "
                    "not known; assume that it is positive"
                )
            if (f, d) not in self._symbolic_powers:
                self._symbolic_powers[f, d] = self._new_variable()
            result = result * Quotient.of(self._symbolic_powers[f, d]) ** int(halves)
        return result

    def _remainder(self, value: Quotient) -> sympy.Expr:
        if not self._reduced(value.denominator()):
            raise ValueError("a denominator is zero")
        return self._reduced(value.numerator()).as_expr()

    def _reduced(self, polynomial: Any) -> Any:
        """Replace each root^q by its base, from the last root (its base holds earlier ones)."""
        for root, q, base in reversed(self._relations):
            index = self._ring.gens.index(root)
            total = self._ring.zero
            for exponents, coefficient in polynomial.terms():
                whole, rest = divmod(exponents[index], q)
                lowered = (*exponents[:index], rest, *exponents[index + 1 :])
                total = total + self._ring({lowered: coefficient}) * base**whole
            polynomial = total
        return polynomial


def _linear_exponent(exponent: sympy.Expr) -> tuple[sympy.Symbol, sympy.Expr, sympy.Expr]:
    """Return d, k and m of an exponent k d + m, d an integer symbol, k and m rational."""
    d = min(exponent.free_symbols, key=str)
    multiple, constant = sympy.expand(exponent).coeff(d, 1), exponent.subs(d, 0)
    is_linear = multiple.is_Rational and constant.is_Rational and d.is_integer
    if not is_linear or sympy.expand(multiple * d + constant - exponent) != 0:
        raise ValueError(f"no rule for the exponent {exponent}: it is not linear in an integer")
    return d, multiple, constant


def _survey(expressions: list[sympy.Expr]) -> tuple[list[sympy.Expr], int]:
    """Return what counts as a variable, and the number of different bases under a root."""
    variables: set[sympy.Expr] = set()
    bases: set[sympy.Expr] = set()
    seen: set[sympy.Expr] = set()
    stack = list(expressions)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
            raise ValueError(f"a denominator is zero: an expression holds {node}")
        if isinstance(node, sympy.Pow):
            stack.append(node.base)
            if not node.exp.is_Integer:
                bases.add(node.base)
        elif isinstance(node, sympy.Abs | sympy.sign):
            stack.extend(node.args)
            bases.update(node.args)
        elif isinstance(node, sympy.Add | sympy.Mul):
            stack.extend(node.args)
        elif not isinstance(node, sympy.Rational):
            variables.add(node)
    return sorted(variables, key=sympy.default_sort_key), len(bases)


def _composed(value: Quotient, x: Any, solution: Quotient) -> Quotient:
    """Return a rational function with the variable x replaced by a solution."""
    result = Quotient.number(value.ring, value.constant)
    for f, k in [(value.polynomial, 1), *value.powers.items()]:
        result = result * _substituted(f, x, solution) ** k
    return result


def _substituted(polynomial: Any, x: Any, solution: Quotient) -> Quotient:
    ring_ = polynomial.ring
    index = ring_.gens.index(x)
    total = Quotient.number(ring_, 0)
    for exponents, coefficient in polynomial.terms():
        lowered = (*exponents[:index], 0, *exponents[index + 1 :])
        rest = Quotient.of(ring_({lowered: coefficient}))
        total = total + rest * solution ** exponents[index]
    return total
