"""The symbolic statements about a density and gradient descent."""

import pytest
import sympy

from finslerconv.symbolic import _weighted as symbolic


@pytest.mark.parametrize("identity", symbolic.IDENTITIES, ids=lambda i: i.name)
def test_the_symbolic_statements_are_proved(identity):
    assert identity.prove()


def test_the_proof_notices_a_wrong_power_of_phi():
    # With the rate eta Phi instead of eta Phi^2 the two descents part.
    ours, theirs = symbolic.weighted_descent(1), symbolic.per_tap_descent(1)
    step = theirs[0] - symbolic.Phi[0] * symbolic.v[0]
    wrong = symbolic.Phi[0] * symbolic.v[0] + step / symbolic.Phi[0]
    assert sympy.expand(ours[0] - theirs[0]) == 0
    assert sympy.expand(ours[0] - wrong) != 0
