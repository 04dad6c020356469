"""Weighted convolution: what a density on the taps does to gradient descent.

The smallest case: a kernel of 2 x 2 taps on a picture of 3 x 3 pixels, a squared loss, all numbers
symbols. The applied kernel is w = Phi v, tap by tap; v is trained.
"""

from itertools import product

import sympy

from finslerconv.symbolic._identity import Identity

Vector = tuple[sympy.Expr, ...]

_TAPS = tuple(product(range(2), repeat=2))
_PIXELS = tuple(product(range(3), repeat=2))


def _symbols(name: str, n: int = len(_TAPS), **assumptions: bool) -> Vector:
    return sympy.symbols(f"{name}_:{n}", real=True, **assumptions)


v, w = _symbols("v"), _symbols("w")
Phi = _symbols("Phi", nonzero=True)
target = _symbols("t")
picture = dict(zip(_PIXELS, _symbols("f", len(_PIXELS)), strict=True))
#: Learning rate, momentum, weight decay.
eta, beta, decay = sympy.symbols("eta beta lambda", positive=True)


def loss(kernel: Vector) -> sympy.Expr:
    """Return half the squared distance between the picture, convolved, and a target."""
    outputs = [
        sum(c * picture[x + i, y + j] for c, (i, j) in zip(kernel, _TAPS, strict=True))
        for x, y in _TAPS
    ]
    return sum((y - t) ** 2 for y, t in zip(outputs, target, strict=True)) / 2


def applied(weights: Vector) -> Vector:
    """Return the applied kernel, Phi times the trained weights."""
    return tuple(p * c for p, c in zip(Phi, weights, strict=True))


def weighted_descent(steps: int) -> Vector:
    """Train v by SGD with momentum and weight decay; return the applied kernel Phi v."""
    objective = loss(applied(v)) + decay * sum(c**2 for c in v) / 2
    gradient = tuple(objective.diff(c) for c in v)
    return applied(_descent(v, v, gradient, (eta,) * len(v), steps))


def per_tap_descent(steps: int) -> Vector:
    """Train w = Phi v itself, each tap with the rate eta Phi^2 and the decay lambda / Phi^2."""
    penalty = sum(c**2 / p**2 for c, p in zip(w, Phi, strict=True))
    objective = loss(w) + decay * penalty / 2
    gradient = tuple(objective.diff(c) for c in w)
    return _descent(w, applied(v), gradient, tuple(eta * p**2 for p in Phi), steps)


def _descent(
    variables: Vector, start: Vector, gradient: Vector, rates: Vector, steps: int
) -> Vector:
    """Do steps of SGD with momentum, each variable at a rate of its own."""
    weights, velocity = start, (sympy.S.Zero,) * len(start)
    for _ in range(steps):
        here = dict(zip(variables, weights, strict=True))
        slopes = [c.subs(here, simultaneous=True) for c in gradient]
        velocity = tuple(beta * m + s for m, s in zip(velocity, slopes, strict=True))
        weights = tuple(c - r * m for c, r, m in zip(weights, rates, velocity, strict=True))
    return weights


IDENTITIES = (
    Identity(
        name="weighted_descent",
        explanation=(
            r"For a fixed $\Phi$. A step of SGD on $v$, with weight decay $\lambda$, is for the "
            r"applied kernel $w = \Phi v$ a step with the learning rate $\eta \Phi^{2}$ and the "
            r"weight decay $\lambda / \Phi^{2}$, tap by tap: the chain rule gives one factor "
            r"$\Phi$, the way from $v$ to $w$ the other. Proved for a $2 \times 2$ kernel and a "
            "squared loss."
        ),
        sides=lambda _: (weighted_descent(1), per_tap_descent(1)),
        positive=lambda _: (),
        dimensions=(2,),
        left=(
            r"\Phi \left(v - \eta \nabla_v"
            r"\left[L(\Phi v) + \tfrac{\lambda}{2} |v|^2\right]\right)"
        ),
        right=(
            r"w - \eta \Phi^2 \left(\nabla L(w) + \tfrac{\lambda}{\Phi^2} w\right),"
            r"\ w = \Phi v"
        ),
    ),
    Identity(
        name="weighted_descent_momentum",
        explanation=(
            r"The same with momentum $\beta$, over two steps: the velocity is linear in the "
            "gradients, so the factors stay."
        ),
        sides=lambda _: (weighted_descent(2), per_tap_descent(2)),
        positive=lambda _: (),
        dimensions=(2,),
        left=r"\Phi\, v_2",
        right=r"w_2\ \text{with}\ \eta \Phi^2,\ \lambda / \Phi^2",
    ),
)
