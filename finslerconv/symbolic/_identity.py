"""An identity: two expressions, what is assumed, why it holds, and its proof."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sympy

from finslerconv.symbolic._normal_form import normal_form
from finslerconv.symbolic._notation import names, side_to_latex
from finslerconv.symbolic._parameters import Dimension, Parameters, parameters
from finslerconv.symbolic._zero_test import remainders


@dataclass(frozen=True)
class Proof:
    """The outcome of an attempt to prove an identity; true if it succeeded.

    Parameters
    ----------
    name : str
        The identity.
    remainders : mapping
        From each dimension to what is left of lhs - rhs, component by component, after exact
        reduction. The identity is proved if all of it is 0.

    Examples
    --------
    >>> from finslerconv.symbolic import identities
    >>> proof = identities()["wind_norm"].prove()
    >>> bool(proof)
    True
    >>> print(proof)
    wind_norm: proved for d = 1, 2, 3, any
    """

    name: str
    remainders: Mapping[Dimension, tuple[sympy.Expr, ...]]

    def __bool__(self) -> bool:
        return bool(self.remainders) and all(
            bool(parts) and all(part == 0 for part in parts) for parts in self.remainders.values()
        )

    def __str__(self) -> str:
        verdict = "proved" if self else "NOT proved"
        return f"{self.name}: {verdict} for d = {', '.join(map(str, self.remainders))}"


@dataclass(frozen=True)
class Equation:
    """An identity written out in one dimension.

    Parameters
    ----------
    lhs, rhs : expression, matrix or tuple of them
        The two sides.
    positive : tuple of expressions
        What is assumed to be positive.

    Examples
    --------
    >>> from finslerconv.symbolic import identities
    >>> equation = identities()["norm_product"].equation(1)
    >>> equation.positive
    (M_00, v_0, M_00*v_0**2)
    """

    lhs: Any
    rhs: Any
    positive: tuple[sympy.Expr, ...]

    @property
    def assumptions(self) -> tuple[sympy.Rel, ...]:
        """The assumptions as inequalities."""
        return tuple(sympy.Gt(expression, 0, evaluate=False) for expression in self.positive)

    def remainders(self) -> tuple[sympy.Expr, ...]:
        """Return what is left of lhs - rhs after exact reduction, component by component."""
        differences = [
            part
            for left, right in zip(_listed(self.lhs), _listed(self.rhs), strict=True)
            for part in _components(left, right)
        ]
        positive = [_components(expression, sympy.S.Zero)[0] for expression in self.positive]
        return remainders(differences, positive)


@dataclass(frozen=True)
class Identity:
    r"""A statement lhs = rhs about the metrics, for all parameters that meet the assumptions.

    Parameters
    ----------
    name : str
        The key in `identities`.
    explanation : str
        What it means, why it holds, and from where it is known; maths in dollar signs.
    sides : callable
        From `Parameters` to the two sides: expressions, matrices or tuples of them.
    positive : callable
        From `Parameters` to the expressions that are assumed to be positive.
    dimensions : tuple
        The dimensions in which it is proved; "any" is a proof for all of them at once.
    left, right : str
        LaTeX of a side, where it cannot be printed from the expressions.
    kind : {"theorem", "definition"}
        The two sides of a theorem are found in independent ways. Those of a definition follow from
        each other by substitution or homogeneity: its proof checks that the formulas keep to the
        convention.

    Examples
    --------
    >>> from finslerconv.symbolic import identities
    >>> wind = identities()["wind_norm"]
    >>> print(wind.statement)
    W^{\top} h W = \omega^{\top} M^{-1} \omega
    >>> print(wind.prove())
    wind_norm: proved for d = 1, 2, 3, any
    """

    name: str
    explanation: str
    sides: Callable[[Parameters], tuple[Any, Any]]
    positive: Callable[[Parameters], tuple[sympy.Expr, ...]]
    dimensions: tuple[Dimension, ...] = (1, 2, 3, "any")
    left: str = ""
    right: str = ""
    kind: Literal["theorem", "definition"] = "theorem"

    def equation(self, dimension: Dimension = 2) -> Equation:
        """Return the identity written out in the symbols of one dimension.

        Raises
        ------
        ValueError
            If it is not stated in that dimension.
        """
        if dimension not in self.dimensions:
            raise ValueError(
                f"dimension: {self.name} is stated for {self.dimensions}, not for {dimension!r}"
            )
        P = parameters(dimension)
        return Equation(*self.sides(P), positive=self.positive(P))

    @property
    def lhs(self) -> Any:
        """The left side in two dimensions."""
        return self.equation(2).lhs

    @property
    def rhs(self) -> Any:
        """The right side in two dimensions."""
        return self.equation(2).rhs

    @property
    def assumptions(self) -> tuple[sympy.Rel, ...]:
        """The assumptions in two dimensions, as inequalities."""
        return self.equation(2).assumptions

    @property
    def statement(self) -> str:
        """The identity in LaTeX, without dollar signs."""
        if self.left and self.right:
            return f"{self.left} = {self.right}"
        lhs, rhs = self.sides(names())
        return f"{self.left or side_to_latex(lhs)} = {self.right or side_to_latex(rhs)}"

    def prove(self, dimension: Dimension | None = None) -> Proof:
        """Prove the identity by exact algebra, in one dimension or in all that are stated.

        Returns
        -------
        Proof
            True only if lhs - rhs reduces to exactly 0 in each component.
        """
        chosen = self.dimensions if dimension is None else (dimension,)
        return Proof(self.name, {d: self.equation(d).remainders() for d in chosen})

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.statement}$"


def _listed(side: Any) -> tuple[Any, ...]:
    return side if isinstance(side, tuple) else (side,)


def _components(left: Any, right: Any) -> list[sympy.Expr]:
    if isinstance(left, sympy.MatrixBase):
        return list(left - right)
    return list(normal_form(left - right).values()) or [sympy.S.Zero]
