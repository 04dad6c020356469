"""Every identity is proved; and no wrong one is."""

import re
from dataclasses import replace

import pytest
import sympy

from finslerconv.symbolic import Randers, identities, parameters
from finslerconv.symbolic._linear_algebra import determinant, dot, inverse

ALL = tuple(identities().values())
SLOW = {("alpha_beta_tensor", 3), ("dual_norm", 3), ("klein_curvature", 2)}
CASES = [
    pytest.param(
        identity,
        dimension,
        marks=[pytest.mark.slow] if (identity.name, dimension) in SLOW else [],
    )
    for identity in ALL
    for dimension in identity.dimensions
]


def label(case):
    return f"{case.name}" if hasattr(case, "name") else str(case)


@pytest.mark.parametrize(("identity", "dimension"), CASES, ids=label)
def test_identity_is_proved(identity, dimension):
    proof = identity.prove(dimension)
    assert proof
    assert all(part == 0 for part in proof.remainders[dimension])


@pytest.mark.slow
def test_the_sides_of_a_theorem_are_not_written_alike():
    """Where all steps of a proof show, in matrix symbols, it starts from different formulas."""
    for identity in ALL:
        if "any" not in identity.dimensions:
            continue
        equation = identity.equation("any")
        sides = (s if isinstance(s, tuple) else (s,) for s in (equation.lhs, equation.rhs))
        alike = [left == right for left, right in zip(*sides, strict=True)]
        assert identity.kind == "definition" or not any(alike), identity.name


def test_definitions_are_told_from_theorems():
    definitions = {identity.name for identity in ALL if identity.kind == "definition"}
    norms = {"homogeneity", "reversal", "symmetrisation"}
    balls = {"riemannian_ball", "reversed_ball", "dilated_ball"}
    assert definitions == {*norms, *balls, "indicatrix", "radial_level", "lattice"}
    assert {identity.kind for identity in ALL} == {"theorem", "definition"}


def test_the_registry_holds_the_identities_by_name():
    assert all(identities()[identity.name] is identity for identity in ALL)
    assert {
        "unit_ball",
        "zermelo_data",
        "zermelo_round_trip",
        "zermelo_inverse_round_trip",
        "zermelo_lambda",
        "wind_norm",
        "zermelo_determinant",
        "volume",
        "dual_norm",
        "dual_metric",
        "dual_involution",
        "dual_lambda",
        "support_bound",
        "support_attained",
        "radial_level",
        "radial_determinant",
        "affine_level",
        "affine_determinant",
        "lattice",
        "symmetrisation",
        "reversal",
        "sqrtm",
        "fundamental_determinant",
        "legendre_inverse",
    } <= set(identities())


def part_changed(side, change):
    """Return a side with its first component that is not zero changed."""
    if not isinstance(side, tuple):
        return change(side)
    first = next(i for i, part in enumerate(side) if part != 0)
    return tuple(change(part) if i == first else part for i, part in enumerate(side))


@pytest.mark.parametrize("identity", ALL, ids=label)
def test_twice_and_minus_the_right_side_are_not_proved(identity):
    def wrong(change):
        def sides(P):
            lhs, rhs = identity.sides(P)
            return lhs, part_changed(rhs, change)

        return replace(identity, sides=sides)

    general = "any" if "any" in identity.dimensions else 2
    assert not wrong(lambda x: 2 * x).prove(2)
    assert not wrong(lambda x: -x).prove(general)


def changed(name, **sides):
    """Return cases of an identity with wrong sides, by the kind of the mistake."""
    return [
        pytest.param(replace(identities()[name], sides=wrong), id=f"{name}-{mistake}")
        for mistake, wrong in sides.items()
    ]


def randers_ball(P, h, W, branch=1):
    F = P.metric
    return dot(P.v - W, h, P.v - W) - 1, F.lam * (F.norm(P.v) - 1) * (F.norm(-P.v) + branch)


def sea(P, power=1, sign=-1):
    return P.metric.lam**power * (P.M + sign * P.omega * P.omega.T)


def wind(P, power=1, sign=-1):
    return sign * inverse(P.M) * P.omega / P.metric.lam**power


def dual(P, power=2, sign=1):
    A, lam = inverse(P.M), P.metric.lam
    return (lam * A + sign * A * P.omega * P.omega.T * A) / lam**power


def zermelo_data(P, **change):
    lhs, _ = identities()["zermelo_data"].sides(P)
    return lhs, (sea(P, **change), wind(P))


def dual_metric(P, **change):
    lhs, _ = identities()["dual_metric"].sides(P)
    return lhs, (dual(P, **change), wind(P))


def affine_level(P, power, sign=1):
    F = P.navigated
    v = sign * P.W + P.h**power * P.g
    return F.lam * (dot(v, F.M, v) - (1 - dot(F.omega, v)) ** 2), dot(P.g, P.g) - 1


WRONG = [
    *changed(
        "unit_ball",
        sea_without_lambda=lambda P: randers_ball(P, sea(P, power=0), wind(P)),
        sea_of_lambda_squared=lambda P: randers_ball(P, sea(P, power=2), wind(P)),
        sea_plus_omega=lambda P: randers_ball(P, sea(P, sign=1), wind(P)),
        wind_reversed=lambda P: randers_ball(P, sea(P), wind(P, sign=1)),
        wind_without_lambda=lambda P: randers_ball(P, sea(P), wind(P, power=0)),
        other_branch=lambda P: randers_ball(P, sea(P), wind(P), branch=-1),
    ),
    *changed(
        "zermelo_determinant",
        exponent_d=lambda P: (
            determinant(P.metric.zermelo().h),
            P.metric.lam**P.d * determinant(P.M),
        ),
        exponent_d_plus_2=lambda P: (
            determinant(P.metric.zermelo().h),
            P.metric.lam ** (P.d + 2) * determinant(P.M),
        ),
    ),
    *changed(
        "norm_product",
        plus_omega=lambda P: (
            P.metric.norm(P.v) * P.metric.norm(-P.v),
            dot(P.v, P.M + P.omega * P.omega.T, P.v),
        ),
    ),
    *changed(
        "norm_product_least",
        lambda_squared=lambda P: (
            identities()["norm_product_least"].sides(P)[0],
            P.metric.lam**2 * (1 - P.metric.lam),
        ),
    ),
    *changed(
        "zermelo_data",
        sea_without_lambda=lambda P: zermelo_data(P, power=0),
        sea_plus_omega=lambda P: zermelo_data(P, sign=1),
    ),
    *changed(
        "dual_metric",
        over_lambda=lambda P: dual_metric(P, power=1),
        minus_omega=lambda P: dual_metric(P, sign=-1),
    ),
    *changed(
        "zermelo_round_trip",
        wind_reversed=lambda P: (
            (Randers.from_zermelo(sea(P), wind(P, sign=1)).omega,),
            (P.omega,),
        ),
    ),
    *changed(
        "dual_norm",
        dual_of_the_reversed=lambda P: (
            P.metric.dual_norm(P.p),
            P.metric.reverse().dual_norm(P.p),
        ),
    ),
    *changed(
        "legendre_inverse",
        without_the_dual_norm=lambda P: (
            P.metric.dual().gradient(P.metric.legendre(P.v)),
            P.v,
        ),
    ),
    *changed(
        "fundamental_determinant",
        exponent_d=lambda P: (
            determinant(P.metric.fundamental_tensor(P.v)),
            (P.metric.norm(P.v) / sympy.sqrt(dot(P.v, P.M, P.v))) ** P.d * determinant(P.M),
        ),
    ),
    *changed(
        "radial_level",
        without_length=lambda P: (
            P.metric.norm(P.g / P.metric.norm(P.g)),
            sympy.sqrt(dot(P.g, P.g)),
        ),
        reversed_metric=lambda P: (
            P.metric.norm(P.g * sympy.sqrt(dot(P.g, P.g)) / P.metric.norm(-P.g)),
            sympy.sqrt(dot(P.g, P.g)),
        ),
    ),
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("dimension", [1, 2, "any"])
def test_a_wrong_formula_is_not_proved(wrong, dimension):
    assert not wrong.prove(dimension)


def test_a_wrong_affine_map_is_not_proved():
    level = identities()["affine_level"]
    half = sympy.Rational(1, 2)
    right = replace(level, sides=lambda P: affine_level(P, -half))
    assert right.prove("any")
    for power, sign in [(half, 1), (-1, 1), (-half, -1)]:
        wrong = replace(level, sides=lambda P, power=power, sign=sign: affine_level(P, power, sign))
        assert not wrong.prove("any")


def test_a_wrong_exponent_of_the_volume_is_not_proved():
    volume = identities()["volume"]
    for exponent in (sympy.Rational(1, 2), 1, 2, sympy.Rational(5, 2)):

        def sides(P, exponent=exponent):
            scale = P.metric.lam**exponent * sympy.sqrt(determinant(P.M))
            return volume.sides(P)[0], sympy.pi / scale

        assert not replace(volume, sides=sides).prove(2)


def test_without_its_assumption_a_root_is_not_split():
    # |g| / F(g) leaves the root only where it is positive.
    radial = identities()["radial_level"]

    def fewer(P):
        return radial.positive(P)[:-1]

    assert not replace(radial, positive=fewer).prove(2)


def test_a_proof_with_nothing_to_prove_is_none():
    nothing = replace(identities()["euler"], sides=lambda P: ((), ()))
    assert not nothing.prove(2)


def test_identities_can_be_used_from_a_notebook():
    P = parameters(2)
    identity = identities()["zermelo_determinant"]
    lam = Randers(P.M, P.omega).lam
    assert identity.rhs == lam**3 * determinant(P.M)
    assert sympy.simplify(identity.lhs - identity.rhs) == 0
    minors = [P.M[0, 0], P.M[1, 1], determinant(P.M), lam]
    assert identity.assumptions == tuple(sympy.Gt(x, 0) for x in minors)
    assert identity._repr_latex_() == f"$\\displaystyle {identity.statement}$"
    assert str(identity.prove(2)) == "zermelo_determinant: proved for d = 2"


def test_statements_are_printed_from_the_sides():
    statements = {name: identity.statement for name, identity in identities().items()}
    assert statements["zermelo_determinant"] == r"\det(h) = \lambda^{d + 1} \det(M)"
    assert statements["dual_metric"] == (
        r"\left(M^{*},\ \omega^{*}\right) = \left(h^{-1},\ W\right) = "
        r"\left(\frac{1}{\lambda^{2}} "
        r"\left(\lambda M^{-1} + M^{-1} \omega \omega^{\top} M^{-1}\right),\ "
        r"- \frac{1}{\lambda} M^{-1} \omega\right)"
    )
    for statement in statements.values():
        assert "^{T}" not in statement
        assert " = " in statement
        assert statement.count("{") == statement.count("}")
        assert statement.count(r"\left") == statement.count(r"\right")


@pytest.mark.parametrize("identity", ALL, ids=label)
def test_explanations_set_their_maths(identity):
    words = re.sub(r"\$[^$]+\$", "", identity.explanation)
    assert "$" not in words
    assert not re.search(r"[\^\\|<>=]|\b(lambda|omega|sqrt|det)\b", words)


@pytest.mark.parametrize("name", ["norm_product", "norm_product_least"])
def test_the_product_of_the_two_ways_is_for_every_one_form(name):
    # What it says about a one-form that is too long is why lambda has to be positive.
    P = parameters(2)
    for assumed in identities()[name].equation(2).positive:
        assert not assumed.free_symbols & set(P.omega)


@pytest.mark.unchecked
def test_an_identity_is_refused_in_another_dimension():
    with pytest.raises(ValueError, match=r"dimension: axes is stated for \(2,\), not for 3"):
        identities()["axes"].prove(3)
