"""The formulas, in numbers worked out by hand and against definitions by integral and maximum."""

import subprocess
import sys

import mpmath
import pytest
import sympy
from sympy import ImmutableMatrix, Rational, pi, sqrt

from finslerconv.symbolic import (
    Ellipse,
    Randers,
    Riemannian,
    affine,
    parameters,
    radial,
    radial_jacobian,
    sqrtm,
)

# Headwind along the columns: lambda = 16/25, and the ball reaches from -5/2 to 5/8.
M = ImmutableMatrix.eye(2)
OMEGA = ImmutableMatrix([0, Rational(3, 5)])
WINDY = Randers(M, OMEGA)


def column(*entries):
    return ImmutableMatrix(entries)


def test_signs_and_the_order_of_the_components():
    # Component 0 runs along rows, component 1 along columns: omega acts on the second.
    assert WINDY.norm(column(0, 1)) == Rational(8, 5)
    assert WINDY.norm(column(0, -1)) == Rational(2, 5)
    assert WINDY.norm(column(1, 0)) == WINDY.norm(column(-1, 0)) == 1
    assert WINDY.lam == Rational(16, 25)
    # The ball is shifted against omega.
    sea, wind = WINDY.zermelo()
    assert wind == column(0, -Rational(15, 16))
    assert sea == ImmutableMatrix.diag(Rational(16, 25), Rational(256, 625))
    assert -wind == WINDY.reverse().zermelo().W


def test_the_ellipse_in_numbers():
    ellipse = Ellipse.of(WINDY)
    assert ellipse.centre == column(0, -Rational(15, 16))
    assert ellipse.axes == (Rational(25, 16), Rational(5, 4))
    assert ellipse.angle == 0
    assert ellipse.area == pi * Rational(125, 64)
    assert ellipse.volume == ellipse.area
    for end in (column(0, Rational(5, 8)), column(0, -Rational(5, 2))):
        assert WINDY.norm(end) == 1
        assert ellipse.quadratic(end) == 1
    assert ellipse.support(column(0, 1)) == WINDY.dual_norm(column(0, 1)) == Rational(5, 8)
    assert ellipse.touching(column(0, 1)) == column(0, Rational(5, 8))
    assert ellipse.image(column(0, 1)) == column(0, Rational(5, 8))


def test_the_angle_turns_from_columns_to_rows():
    # The long axis along (1, 1) / sqrt(2): 45 degrees from columns towards rows.
    shape = ImmutableMatrix([[5, 4], [4, 5]])
    ellipse = Ellipse(column(0, 0), shape)
    assert ellipse.axes == (3, 1)
    assert ellipse.angle == pi / 4
    assert Ellipse(column(0, 0), ImmutableMatrix.diag(4, 1)).angle == pi / 2


def test_one_dimension():
    # F(v) = 2 |v| + v: the ball is [-1, 1/3].
    F = Randers(ImmutableMatrix([[4]]), column(1))
    assert (F.norm(column(1)), F.norm(column(-1))) == (3, 1)
    ellipse = Ellipse.of(F)
    assert ellipse.centre == column(-Rational(1, 3))
    assert ellipse.volume == Rational(4, 3)
    assert (F.dual_norm(column(1)), F.dual_norm(column(-1))) == (Rational(1, 3), 1)


def oblique():
    F = Randers(
        ImmutableMatrix([[2, Rational(1, 2)], [Rational(1, 2), 1]]),
        column(Rational(1, 3), -Rational(1, 2)),
    )
    assert F.lam > 0
    return F


def circle(t):
    return column(sympy.sin(t), sympy.cos(t))


def test_the_area_is_that_of_the_ball():
    # In polar coordinates: the integral of 1 / (2 F^2) over the directions.
    F, t = oblique(), sympy.Symbol("t", real=True)
    integrand = sympy.lambdify(t, 1 / (2 * F.norm(circle(t)) ** 2), "mpmath")
    area = mpmath.quad(integrand, mpmath.linspace(0, 2 * mpmath.pi, 9))
    assert abs(area - mpmath.mpf(sympy.N(Ellipse.of(F).area))) < 1e-12


def test_the_dual_norm_is_the_maximum_over_the_ball():
    F, t = oblique(), sympy.Symbol("t", real=True)
    p = column(Rational(2, 3), 1)
    values = sympy.lambdify(t, (p.T * circle(t))[0, 0] / F.norm(circle(t)), "mpmath")
    start = max((values(2 * mpmath.pi * i / 100), i) for i in range(100))[1]
    step = 2 * mpmath.pi / 100
    best = mpmath.findroot(
        lambda s: mpmath.diff(values, s), (start * step, start * step + step), solver="secant"
    )
    assert abs(values(best) - mpmath.mpf(sympy.N(F.dual_norm(p)))) < 1e-12


def test_the_fundamental_tensor_is_positive_definite_and_riemannian_without_omega():
    P = parameters(2)
    assert Riemannian(P.M).fundamental_tensor(P.v) == P.M
    tensor = oblique().fundamental_tensor(column(1, -3))
    assert tensor.is_symmetric()
    assert sympy.N(tensor[0, 0]) > 0
    assert sympy.N(tensor.det()) > 0


def test_the_maps_in_numbers():
    g = column(0, Rational(1, 2))
    assert radial(WINDY, g) == column(0, Rational(5, 16))
    assert affine(WINDY, g) == column(0, Rational(25, 32) - Rational(15, 16))
    assert affine(WINDY, column(0, 0)) == Ellipse.of(WINDY).centre
    stretched = Riemannian(ImmutableMatrix.diag(4, 1))
    assert (
        radial(stretched, column(1, 0))
        == affine(stretched, column(1, 0))
        == column(Rational(1, 2), 0)
    )
    assert radial_jacobian(WINDY, g).det() == Rational(5, 8) ** 2


def test_both_maps_are_the_identity_for_the_euclidean_metric():
    g = parameters(2).g
    euclidean = Riemannian(M)
    assert sympy.simplify(radial(euclidean, g) - g).is_zero_matrix
    assert affine(euclidean, g) == g
    assert sympy.simplify(radial_jacobian(euclidean, g) - M).is_zero_matrix


def test_roots_of_matrices():
    A = ImmutableMatrix([[2, 1], [1, 2]])
    root = sqrtm(A)
    assert sympy.simplify(root * root - A).is_zero_matrix
    assert sympy.simplify(root.det() - sqrt(3)) == 0
    assert sqrtm(ImmutableMatrix([[9]])) == ImmutableMatrix([[3]])


@pytest.mark.unchecked
def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"A: expected a 1 x 1 or 2 x 2 matrix, .* got 3 x 3"):
        sqrtm(ImmutableMatrix.eye(3))
    with pytest.raises(ValueError, match=r"shape: expected an explicit 2 x 2 matrix, .*\(3, 3\)"):
        _ = Ellipse(column(0, 0, 0), ImmutableMatrix.eye(3)).area
    with pytest.raises(ValueError, match='dimension: expected a positive integer or "any", got 0'):
        parameters(0)
    with pytest.raises(ValueError, match=r"M: expected a symmetric matrix, got 1 at \(0, 1\)"):
        Randers(ImmutableMatrix([[2, 1], [0, 2]]), OMEGA)
    with pytest.raises(ValueError, match=r"M: expected a square matrix, got shape \(2, 1\)"):
        Riemannian(OMEGA)
    with pytest.raises(
        ValueError, match=r"omega: expected a column of shape \(2, 1\), got \(1, 2\)"
    ):
        Randers(M, OMEGA.T)
    with pytest.raises(ValueError, match="expected a column, matrices and a column, got shapes"):
        WINDY.norm(M)


@pytest.mark.slow
def test_the_package_loads_sympy_and_nothing_heavier():
    code = (
        "import sys, finslerconv.symbolic as s; s.identities(); "
        "print([m for m in ('numpy', 'torch', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
