"""A Finsler metric that varies with the position, and its differential geometry, in sympy."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

import sympy

from finslerconv.symbolic._linear_algebra import MatrixLike, dot, inverse
from finslerconv.symbolic._norm import stacked
from finslerconv.symbolic._parameters import parameters
from finslerconv.symbolic._simplified import simplified

Simplify = Callable[[Any], sympy.Expr]
_Array: TypeAlias = sympy.ImmutableDenseNDimArray


class MetricField:
    """A Finsler metric F(x, v) by its formula, and all that its derivatives say.

    Everything is an expression in the position x and the vector v, the pole, computed when it is
    first asked for and kept. ``subs`` puts numbers in.

    Parameters
    ----------
    norm : expression
        F(x, v), positively homogeneous of degree 1 in v.
    x, v : (d, 1) matrix or sequence of d symbols
        Position and vector.
    simplify : callable
        What brings an expression into the form in which it is kept and printed. It is asked once
        for every component.

    Notes
    -----
    Geodesics are the solutions of x'' + 2 G(x, x') = 0 with the spray coefficients G. Signs,
    factors and index orders are those of Bao, Chern and Shen, "An Introduction to Riemann-Finsler
    Geometry" (2000), with Shen's G (half of theirs): the unit sphere has flag curvature 1.

    Examples
    --------
    The hyperbolic half-plane, whose first coordinate is the height:

    >>> from finslerconv.symbolic import half_space
    >>> F = MetricField.of(half_space, 2)
    >>> F.norm
    sqrt(v_0**2/x_0**2 + v_1**2/x_0**2)
    >>> F.spray
    Matrix([
    [-(v_0 - v_1)*(v_0 + v_1)/(2*x_0)],
    [                    -v_0*v_1/x_0]])
    >>> F.flag_curvature()
    -1
    """

    def __init__(
        self,
        norm: sympy.Expr,
        x: MatrixLike | Sequence[sympy.Symbol],
        v: MatrixLike | Sequence[sympy.Symbol],
        simplify: Simplify = simplified,
    ) -> None:
        self.norm = sympy.sympify(norm)
        self.x, self.v = _column("x", x), _column("v", v)
        if self.x.rows != self.v.rows or set(self.x) & set(self.v):
            raise ValueError(
                "x, v: expected as many symbols for the vector as for the position, and others, "
                f"got {tuple(self.x)} and {tuple(self.v)}"
            )
        self._simplify = simplify

    @classmethod
    def of(
        cls,
        at: Callable[[MatrixLike], Any],
        dimension: int = 2,
        simplify: Simplify = simplified,
    ) -> "MetricField":
        """Return the field of a function from positions to metrics.

        Parameters
        ----------
        at : callable
            From the (d, 1) matrix x to a metric of this package, with ``norm``.
        dimension : int
            The dimension d; the symbols are x and v of `parameters`.
        simplify : callable
            As above.
        """
        P = parameters(dimension)
        return cls(at(P.x).norm(P.v), P.x, P.v, simplify)

    def __repr__(self) -> str:
        return f"MetricField({self.norm}, x={tuple(self.x)}, v={tuple(self.v)})"

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle F(x, v) = {sympy.latex(self.norm)}$"

    @property
    def dim(self) -> int:
        """The dimension d."""
        return int(self.x.rows)

    # At one point: derivatives in the vector.

    @cached_property
    def energy(self) -> sympy.Expr:
        """F^2 / 2."""
        return self._simplify(self.norm**2 / 2)

    @cached_property
    def legendre(self) -> MatrixLike:
        """The covector F dF, which the fundamental tensor makes of v."""
        return self._each(sympy.ImmutableMatrix([self.energy.diff(a) for a in self.v]))

    @cached_property
    def fundamental_tensor(self) -> MatrixLike:
        """The matrix g_ij, half the Hessian of F^2 in v."""
        return self._each(self.legendre.jacobian(self.v))

    @cached_property
    def inverse_tensor(self) -> MatrixLike:
        """The inverse g^ij of the fundamental tensor."""
        return self._each(inverse(self.fundamental_tensor))

    @cached_property
    def angular_metric(self) -> MatrixLike:
        """The matrix F d^2 F / dv^i dv^j; v itself has length 0 in it."""
        p = self.legendre
        return self._each(self.fundamental_tensor - p * p.T / (2 * self.energy))

    @cached_property
    def cartan_tensor(self) -> _Array:
        """The array C_ijk, half the derivative of g_ij in v^k."""
        return self._each(stacked([self.fundamental_tensor.diff(a) / 2 for a in self.v]))

    @cached_property
    def is_riemannian(self) -> bool:
        """Whether the fundamental tensor does not depend on v, as far as simplification shows."""
        return self._vanish(self.fundamental_tensor.diff(a) for a in self.v)

    # Along the manifold: derivatives in the position too.

    @cached_property
    def spray_covector(self) -> MatrixLike:
        """The covector 2 g_v G, which is E_xv v - E_x of the energy E: no inverse is needed."""
        mixed = self.legendre.jacobian(self.x) * self.v
        return self._each(mixed - sympy.ImmutableMatrix([self.energy.diff(a) for a in self.x]))

    @cached_property
    def spray(self) -> MatrixLike:
        """The spray coefficients G^i: geodesics solve x'' + 2 G(x, x') = 0."""
        return self._each(self.inverse_tensor * self.spray_covector / 2)

    @cached_property
    def nonlinear_connection(self) -> MatrixLike:
        """The matrix N^i_j, the derivative of G^i in v^j."""
        return self._each(self.spray.jacobian(self.v))

    @cached_property
    def berwald_connection(self) -> _Array:
        """The array of the second derivatives of G^i in v^j and v^k."""
        return self._each(stacked([self.nonlinear_connection.diff(a) for a in self.v]))

    @cached_property
    def chern_connection(self) -> _Array:
        """The array Gamma^i_jk of Chern's connection.

        It is formed of g as Christoffel's symbols are, with derivatives along the horizontal
        directions, d / dx^k - N^m_k d / dv^m.
        """
        g, N = self.fundamental_tensor, self.nonlinear_connection
        along = [
            g.diff(self.x[k]) - sum((N[m, k] * g.diff(self.v[m]) for m in range(self.dim)), 0 * g)
            for k in range(self.dim)
        ]
        # lowered[k][l, j] = (D_j g_lk + D_k g_lj - D_l g_jk) / 2
        d = range(self.dim)
        return self._each(
            stacked(
                [
                    self.inverse_tensor
                    * sympy.ImmutableMatrix(
                        self.dim,
                        self.dim,
                        lambda l, j, k=k: (along[j][l, k] + along[k][l, j] - along[l][j, k]) / 2,
                    )
                    for k in d
                ]
            )
        )

    @property
    def christoffel_symbols(self) -> _Array:
        """The array Gamma^i_jk of a Riemannian metric.

        Raises
        ------
        ValueError
            If the fundamental tensor depends on v.
        """
        if not self.is_riemannian:
            raise ValueError(
                "christoffel_symbols: expected a Riemannian metric, got a fundamental tensor that "
                "depends on v; chern_connection and berwald_connection are for every metric"
            )
        return self.chern_connection

    @cached_property
    def landsberg_tensor(self) -> _Array:
        """The array L_ijk = -F dF_m B^m_ijk / 2, with B the third derivatives of G in v.

        The Berwald connection is the Chern connection plus this tensor, with an index raised.
        """
        d = range(self.dim)
        entries = [
            -dot(self.legendre, self.nonlinear_connection[:, k].diff(self.v[i]).diff(self.v[j])) / 2
            for i, j, k in product(d, d, d)
        ]
        return self._each(_Array(entries, (self.dim,) * 3))

    @cached_property
    def is_berwald(self) -> bool:
        """Whether the spray is quadratic in v, as far as simplification shows."""
        d = range(self.dim)
        second = (self.nonlinear_connection.diff(self.v[j]) for j in d)
        return self._vanish(N.diff(a) for N in second for a in self.v)

    @cached_property
    def riemann_curvature(self) -> MatrixLike:
        """The matrix R^i_k of the pole v.

        R^i_k = 2 dG^i/dx^k - v^j d^2 G^i/dx^j dv^k + 2 G^j d^2 G^i/dv^j dv^k - N^i_j N^j_k
        """
        G, N = self.spray, self.nonlinear_connection
        R = 2 * G.jacobian(self.x) - N * N
        for j in range(self.dim):
            R += 2 * G[j] * N.diff(self.v[j]) - self.v[j] * N.diff(self.x[j])
        return self._each(R)

    @cached_property
    def ricci(self) -> sympy.Expr:
        """The trace of the Riemann curvature: (d - 1) F^2 K where the flag curvature is K."""
        return self._simplify(self.riemann_curvature.trace())

    def flag_curvature(self, flag: MatrixLike | Sequence[Any] | None = None) -> sympy.Expr:
        """Return the flag curvature K of the pole v and a flag.

        K = g_v(R u, u) / (g_v(v, v) g_v(u, u) - g_v(v, u)^2) for the flag's other edge u.

        Parameters
        ----------
        flag : (d, 1) matrix, optional
            The edge u, not parallel to v. In the plane there is one flag, and none need be given.

        Raises
        ------
        ValueError
            If no flag is given in other dimensions than 2.
        """
        if flag is None:
            if self.dim != 2:
                raise ValueError(
                    f"flag: expected a vector that spans a plane with the pole v in dimension "
                    f"{self.dim}, got none"
                )
            return self._simplify(self.ricci / (2 * self.energy))
        u, g = sympy.ImmutableMatrix(flag), self.fundamental_tensor
        area = 2 * self.energy * dot(u, g, u) - dot(self.legendre, u) ** 2
        return self._simplify(dot(u, g, self.riemann_curvature * u) / area)

    def s_curvature(self, density: sympy.Expr) -> sympy.Expr:
        """Return S = dG^m/dv^m - v^m d(ln density)/dx^m of a volume density(x).

        Parameters
        ----------
        density : expression
            In x, such as the ``volume_density`` of the metric at x.
        """
        slope = sum(a * sympy.diff(density, y) for a, y in zip(self.v, self.x, strict=True))
        return self._simplify(self.nonlinear_connection.trace() - slope / density)

    def _vanish(self, matrices: Iterable[MatrixLike]) -> bool:
        """Return whether all entries are zero: first, which is quick, at one point."""
        symbols = (*self.x, *self.v)
        point = {a: sympy.Rational(k + 2, 7 * k + 9) for k, a in enumerate(symbols)}
        return all(
            not abs(sympy.N(entry.subs(point))) > 1e-9 and self._simplify(entry) == 0
            for A in matrices
            for entry in A
        )

    def _each(self, array: Any) -> Any:
        return array.applyfunc(self._simplify)


def _column(name: str, symbols: Any) -> sympy.ImmutableMatrix:
    column = sympy.ImmutableMatrix(symbols)
    if column.cols != 1 or not all(a.is_Symbol for a in column) or len(set(column)) < column.rows:
        raise ValueError(f"{name}: expected different symbols, got {tuple(column)}")
    return column
