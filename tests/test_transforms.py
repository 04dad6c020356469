"""Derivatives beyond reverse mode: right, or refused, for every public function and layer.

Forward mode is held against reverse mode, ``<u, J t> = <J' u, t>``, which the tests of each
function hold against differences.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from finslerconv import balls, images, ops
from finslerconv import nn as layers
from finslerconv.geodesics import (
    FunctionMetric,
    GridMetric,
    chord_distance,
    distance,
    exponential,
    geodesic,
    geodesic_ball,
    geodesic_flow,
    logarithm,
    path_length,
)
from finslerconv.metrics import CallableMetric, Randers

# PyTorch's own first call of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

REFUSED = r"no forward-mode derivatives.*reverse mode by backward\(\)"


@dataclass(frozen=True)
class Case:
    """A function of one tensor; which transforms it has, and what it says of those it has not."""

    name: str
    call: Callable[[Tensor], Tensor]
    at: Tensor
    refuses: str = ""
    """What is said under all transforms; empty where they work."""
    mapped: str = ""
    """What is said under ``vmap`` alone."""

    def __str__(self) -> str:
        return self.name


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spd(*shape: int, d: int = 2) -> Tensor:
    A = 0.3 * random(*shape, d, d, seed=1)
    return A @ A.mT + torch.eye(d)


GRID, FORMS = spd(4, 5), 0.1 * random(4, 5, 2, seed=2)
PLACE, SPEED = torch.tensor([1.3, 2.2]).double(), torch.tensor([0.6, -0.5]).double()


def grid(M: Tensor, interpolation: str = "linear", d: int = 2) -> GridMetric:
    omega = FORMS if d == 2 else None
    return GridMetric((M + M.mT) / 2, omega, interpolation=interpolation, validate=False)


def function(a: Tensor) -> FunctionMetric:
    """Return a field that depends on where it is, and on a parameter."""

    def at(x: Tensor) -> Randers:
        M = torch.eye(2, dtype=x.dtype) * (1 + a * x[..., :1, None] ** 2)
        return Randers(M, 0.2 * torch.sin(x), validate=False)

    return FunctionMetric(at)


def flow(*arguments: object, **options: object) -> Tensor:
    return torch.cat(geodesic_flow(*arguments, [0.4, 1.0], **options), -1)


def geodesic_cases() -> list[Case]:
    a, one = torch.tensor(0.3).double(), function(torch.tensor(0.3).double())
    space, start, speed = spd(3, 3, 4, d=3), random(3).abs(), random(3)
    far = PLACE + SPEED
    dopri = {"method": "dopri5", "tolerance": 1e-6}
    looks = "torch.vmap lets no value be looked at"
    cases = [
        Case("exponential, grid", lambda M: exponential(grid(M), PLACE, SPEED, steps=2), GRID),
        Case("exponential, at rest",
             lambda v: exponential(grid(GRID), PLACE, v, steps=2), 0 * SPEED),
        Case("exponential, adaptive", lambda x: exponential(one, x, SPEED, **dopri), PLACE,
             f"method: 'dopri5': .*{REFUSED}.*take 'rk4'"),
        Case("geodesic_flow, grid", lambda M: flow(grid(M), PLACE, SPEED, steps=2), GRID),
        Case("geodesic_flow, start", lambda x: flow(grid(GRID), x, SPEED, steps=2), PLACE),
        Case("geodesic_flow, velocity", lambda v: flow(grid(GRID), PLACE, v, steps=2), SPEED),
        Case("geodesic_flow, cubic", lambda M: flow(grid(M, "cubic"), PLACE, SPEED, steps=1), GRID),
        Case("geodesic_flow, parameter",
             lambda a: flow(function(a), PLACE, SPEED, method="rk4", steps=2), a),
        Case("geodesic_flow, function",
             lambda x: flow(one, x, SPEED, method="rk4", steps=2), PLACE),
        Case("exponential, space",
             lambda M: exponential(grid(M, d=3), start, speed, steps=1), space),
        Case("logarithm, end",
             lambda y: logarithm(grid(GRID), PLACE, y, steps=2), far, mapped=looks),
        Case("logarithm, field",
             lambda M: logarithm(grid(M), PLACE, far, steps=2), GRID, mapped=looks),
        Case("logarithm, function",
             lambda y: logarithm(one, PLACE, y, method="rk4", steps=2), far, mapped=looks),
        Case("geodesic", lambda x: geodesic(grid(GRID), x, far, 3, steps=2), PLACE, mapped=looks),
        Case("chord_distance", lambda y: chord_distance(grid(GRID), PLACE, y), far),
        Case("path_length", lambda c: path_length(grid(GRID), c), 1 + random(4, 2, seed=5).abs()),
        Case("grid", lambda x: grid(GRID).at(x).M, PLACE),
        Case("geodesic_ball, exp", lambda M: geodesic_ball(grid(M), PLACE[None], balls.lattice(3)),
             GRID),
        Case("geodesic_ball, reference",
             lambda g: geodesic_ball(grid(GRID), PLACE[None], g), random(5, 2),
             mapped="reference: expected the same points"),
    ]  # fmt: skip
    for method in ("fast_marching", "fast_iterative", "heat"):
        cases.append(
            Case(f"distance, {method}", lambda M, m=method: distance(grid(M), (1, 2), m), GRID,
                 REFUSED)
        )  # fmt: skip
    cases.append(Case("distance, sources", lambda x: distance(grid(GRID), x), PLACE, REFUSED))
    for method in ("eikonal", "heat"):
        cases.append(
            Case(f"geodesic_ball, {method}",
                 lambda M, m=method: geodesic_ball(grid(M), PLACE[None], balls.lattice(3),
                                                   method=m),
                 GRID, rf"geodesic_ball by '{method}': .*{REFUSED}.*method='exp'")
        )  # fmt: skip
    return cases


def core_cases() -> list[Case]:
    omega, points = torch.tensor([0.2, -0.1]).double(), torch.as_tensor(balls.lattice(3).points)

    def metric(M: Tensor) -> Randers:
        return Randers((M + M.mT) / 2, omega, validate=False)

    return [
        Case("norm", lambda M: metric(M).norm(points), spd()),
        Case("dual", lambda M: metric(M).dual_norm(points), spd()),
        Case("radial", lambda M: balls.radial(metric(M), points), spd()),
        Case("affine", lambda M: balls.affine(metric(M), points), spd()),
        Case("volume", lambda M: balls.volume(metric(M)), spd(), mapped="data-dependent"),
        Case(
            "a norm of one's own",
            lambda a: CallableMetric(lambda v: (a * v**4).sum(-1) ** 0.25, like=a).norm(SPEED),
            torch.tensor([1.0, 2.0]).double(),
        ),
        Case("gradient_metric", lambda x: images.gradient_metric(x).M, random(1, 2, 5, 6)),
        Case(
            "structure_tensor_metric",
            lambda x: images.structure_tensor_metric(x).M,
            random(1, 2, 7, 8),
        ),
        Case("ridge_metric", lambda x: images.ridge_metric(x).M, random(1, 2, 7, 8)),
    ]


def operator_cases() -> list[Case]:
    M, omega = spd(1, 5, 6), 0.1 * random(1, 5, 6, 2, seed=5)
    points = torch.as_tensor(balls.lattice(3).points)
    cases = [Case("metric_positions", lambda M: ops.metric_positions(M, omega, points), M)]
    for size, kernel in (((7,), (3,)), ((5, 6), (3, 3)), ((3, 4, 2), (3, 1, 3))):
        cases += convolution_cases(size, kernel)
    return cases


def convolution_cases(size: tuple[int, ...], kernel: tuple[int, ...]) -> list[Case]:
    d = len(size)
    padding = tuple(k // 2 for k in kernel)
    x, weight, bias = random(1, 4, *size), random(3, 4, *kernel, seed=3), random(3, seed=4)
    M, omega = spd(1, *size, d=d), 0.1 * random(1, *size, d, seed=5)
    points = torch.as_tensor(balls.lattice(kernel).points)
    n = len(points)
    mask = torch.rand(1, n, *size, dtype=torch.float64)
    offset = 0.3 + 0.2 * random(1, n * d, *size, seed=6)
    metric_conv = (ops.metric_conv1d, ops.metric_conv2d, ops.metric_conv3d)[d - 1]
    deform_conv = (ops.deform_conv1d, ops.deform_conv2d, ops.deform_conv3d)[d - 1]

    def metric(at: int, map: ops.MapName = "radial") -> Callable[[Tensor], Tensor]:
        arguments = [x, M, omega, points, weight, bias, mask]

        def call(value: Tensor) -> Tensor:
            a = [value if i == at else u for i, u in enumerate(arguments)]
            return metric_conv(*a[:6], padding=padding, mask=a[6], map=map)

        return call

    def deform(at: int) -> Callable[[Tensor], Tensor]:
        arguments = [x, offset, weight, bias, mask]

        def call(value: Tensor) -> Tensor:
            a = [value if i == at else u for i, u in enumerate(arguments)]
            return deform_conv(*a[:4], padding=padding, mask=a[4])

        return call

    metrics = {"input": x, "M": M, "omega": omega, "weight": weight, "bias": bias, "mask": mask}
    places = {"input": 0, "M": 1, "omega": 2, "weight": 4, "bias": 5, "mask": 6}
    deforms = {"input": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    name = metric_conv.__name__
    return [
        *(Case(f"{name}, {n}", metric(places[n]), at) for n, at in metrics.items()),
        Case(f"{name}, affine, M", metric(1, "affine"), M),
        *(
            Case(f"{deform_conv.__name__}, {n}", deform(i), at)
            for i, (n, at) in enumerate(deforms.items())
        ),
    ]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "MetricConv2d": lambda: layers.MetricConv2d(2, 3, 3, padding=1),
    "MetricConv2d, modulated": lambda: layers.MetricConv2d(2, 3, 3, padding=1, modulation=True),
    "GeodesicConv2d": lambda: layers.GeodesicConv2d(2, 3, 3, padding=1),
    "DeformConv2d": lambda: layers.DeformConv2d(2, 3, 3, padding=1),
    "ShiftedConv2d": lambda: layers.ShiftedConv2d(2, 3, 3, padding=1),
    "MetricConv1d": lambda: nn.Sequential(nn.Flatten(2), layers.MetricConv1d(2, 3, 3, padding=1)),
    "DeformConv1d": lambda: nn.Sequential(nn.Flatten(2), layers.DeformConv1d(2, 3, 3, padding=1)),
    "MetricConv3d": lambda: nn.Sequential(
        nn.Unflatten(-1, (2, 3)), layers.MetricConv3d(2, 3, (2, 1, 2), map="affine")
    ),
    "DeformConv3d": lambda: nn.Sequential(
        nn.Unflatten(-1, (2, 3)), layers.DeformConv3d(2, 3, (2, 1, 2), modulation=True)
    ),
    "WeightedConv2d": lambda: layers.WeightedConv2d(2, 3, 3, padding=1, density=[0.5]),
    "WeightedConv2d, large": lambda: layers.WeightedConv2d(2, 9000, 3, density=[0.5]),
    "WeightedConv1d": lambda: nn.Sequential(
        nn.Flatten(2), layers.WeightedConv1d(2, 3, 3, density=[0.5])
    ),
    "WeightedConv2d, metric": lambda: layers.WeightedConv2d(
        2,
        3,
        3,
        density=layers.MetricDensity(
            (3, 3), layers.TrainableRanders(torch.eye(2)), layers.PowerProfile(1.0)
        ),
    ),
}


def module(name: str) -> nn.Module:
    """Return a layer in double precision, away from its start as a standard convolution."""
    layer = MODULES[name]().double()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data += 0.1 * random(*parameter.shape, seed=i)
    return layer


def layer_cases() -> list[Case]:
    cases = []
    for name in MODULES:
        layer = module(name)
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        cases.append(Case(f"{name}, image", layer, random(1, 2, 5, 6)))
    return cases


CASES = [*geodesic_cases(), *core_cases(), *operator_cases(), *layer_cases()]


# Those that solve for many geodesics.
SLOW = ("exponential, grid", "geodesic", "geodesic_flow, cubic", "logarithm, function")

every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if str(case) in SLOW else [])
        for case in CASES
    ],
)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def by_reverse_mode(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value, a covector of it, and the gradient along the covector."""
    at = case.at.clone().requires_grad_()
    value = case.call(at)
    along = random(*value.shape, seed=7)
    (gradient,) = torch.autograd.grad(value, at, along)
    return value.detach(), along, gradient


def refused(case: Case, run: Callable[[], object], message: str) -> bool:
    """Return whether the case refuses, having seen that it does in the words of the library."""
    if message:
        with pytest.raises(RuntimeError, match=re.compile(message, re.DOTALL)):
            run()
    return bool(message)


@every_case
def test_forward_mode_is_reverse_mode_transposed_or_refused(case):
    tangent = random(*case.at.shape, seed=8)

    def dual() -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(case.call(forward_ad.make_dual(case.at, tangent))).tangent

    def func() -> Tensor:
        return torch.func.jvp(case.call, (case.at,), (tangent,))[1]

    for run in (dual, func):
        if not refused(case, run, case.refuses):
            _, along, gradient = by_reverse_mode(case)
            moved = run()
            assert moved is not None
            close((moved * along).sum(), (gradient * tangent).sum())


@every_case
def test_transforms_of_torch_func_are_reverse_mode_or_refused(case):
    along = gradient = torch.zeros(())
    if not case.refuses:
        _, along, gradient = by_reverse_mode(case)

    def grad() -> Tensor:
        return torch.func.grad(lambda at: (case.call(at) * along).sum())(case.at)

    if not refused(case, grad, case.refuses):
        close(grad(), gradient)

    def jacrev() -> Tensor:
        return torch.func.jacrev(lambda at: (case.call(at) * along).sum())(case.at)

    if not refused(case, jacrev, case.refuses):
        close(jacrev(), gradient)

    def each() -> Tensor:
        return torch.vmap(torch.func.grad(lambda at: (case.call(at) * along).sum()))(
            torch.stack((case.at, case.at))
        )

    if not refused(case, each, case.refuses or case.mapped):
        for one in each():
            close(one, gradient)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_each_sample(name):
    layer = module(name)
    parameters = dict(layer.named_parameters())
    x = random(3, 2, 5, 6, seed=9)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, parameters, (image[None],)) ** 2).sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(
        {n: p.detach() for n, p in parameters.items()}, x
    )
    for i, image in enumerate(x):
        slopes = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for found, slope in zip(each.values(), slopes, strict=True):
            close(found[i], slope)


def test_second_derivatives_of_the_logarithm_are_refused():
    def length(y: Tensor) -> Tensor:
        return logarithm(grid(GRID), PLACE, y, steps=2).square().sum()

    far = PLACE + SPEED
    with pytest.raises(RuntimeError, match="logarithm: second derivatives"):
        torch.func.hessian(length)(far)
    with pytest.raises(RuntimeError, match="logarithm: second derivatives"):
        torch.func.grad(lambda y: torch.func.grad(length)(y).sum())(far)
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="logarithm: second derivatives"),
    ):
        length(forward_ad.make_dual(far.requires_grad_(), SPEED))
