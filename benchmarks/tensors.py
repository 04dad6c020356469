"""Tensors of a Randers field on n x n points: closed forms, automatic differentiation, finslerax.

Claim: at 512 x 512 points, in float64 on two cores, the fundamental tensor takes less than 0.1 s
and the spray less than 0.5 s.

    python benchmarks/tensors.py                     # 512 x 512, all threads that PyTorch takes
    python benchmarks/tensors.py --n 128 --runs 3 --json results/tensors.json
    python benchmarks/tensors.py --only spray "fundamental tensor"

The field is a boat in a whirl that dies away, a function of the position. "norm alone" is the same
metric of which only the norm is known. finslerax (JAX), where it is installed, has the same norm as
a metric of its own, compiled by ``jax.jit`` over ``jax.vmap``; its times are those after
compilation. All results are compared before anything is timed. The time is the least of several
runs, in which the contestants take turns.
"""

import argparse
import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import report
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from finslerconv.geodesics import FunctionMetric, tensors
from finslerconv.metrics import CallableMetric, Randers

STRENGTH = 0.8
TENSORS = ("fundamental tensor", "spray", "flag curvature")
CLAIMS = {"fundamental tensor": 0.1, "spray": 0.5}

Contestant = dict[str, Callable[[], Any]]


def whirl(x: Tensor) -> Randers:
    wind = STRENGTH * torch.stack((-x[..., 1], x[..., 0]), -1)
    wind = wind * torch.exp(-(x * x).sum(-1, keepdim=True))
    sea = torch.eye(2, dtype=x.dtype).expand(*x.shape, 2)
    return Randers.from_zermelo(sea, wind, validate=False)


def ours(field: FunctionMetric, x: Tensor, v: Tensor, w: Tensor) -> Contestant:
    metric = field.at(x)
    return {
        "fundamental tensor": lambda: metric.fundamental_tensor(v).numpy(),
        "spray": lambda: tensors.spray(field, x, v).numpy(),
        "flag curvature": lambda: tensors.flag_curvature(field, x, v, w).numpy(),
    }


def of_finslerax(x: Tensor, v: Tensor, w: Tensor) -> Contestant:
    import jax
    import jax.numpy as jnp
    from finslerax.geometry import EuclideanSpace, FinslerMetric, flag_curvature

    jax.config.update("jax_enable_x64", True)

    class Whirl(FinslerMetric):
        def metric_fn(self, x: Any, v: Any) -> Any:
            wind = STRENGTH * jnp.stack((-x[1], x[0])) * jnp.exp(-x @ x)
            lam = 1 - wind @ wind
            return (jnp.sqrt(lam * (v @ v) + (wind @ v) ** 2) - wind @ v) / lam

    metric = Whirl(EuclideanSpace(dim=2), spray_reg=0.0)
    arrays = [jnp.asarray(u.reshape(-1, 2).numpy()) for u in (x, v, w)]

    def batched(function: Callable[..., Any], count: int) -> Callable[[], np.ndarray]:
        compiled = jax.jit(jax.vmap(function))
        return lambda: np.asarray(compiled(*arrays[:count]))

    return {
        "fundamental tensor": batched(jax.hessian(metric.energy, argnums=1), 2),
        "spray": batched(metric.spray, 2),
        "flag curvature": batched(lambda x, v, w: flag_curvature(metric, x, v, w), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=512, help="points along each axis")
    parser.add_argument("--runs", type=int, default=5, help="the least time of so many runs")
    parser.add_argument("--only", nargs="+", choices=TENSORS, default=TENSORS, metavar="TENSOR")
    report.add_arguments(parser)
    options = parser.parse_args()

    axis = torch.linspace(-2, 2, options.n, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    angle = 2 * math.pi * torch.rand(options.n, options.n, 2, dtype=torch.float64)
    angle[..., 1] = angle[..., 0] + 1 + angle[..., 1] / 4
    v, w = torch.stack((torch.cos(angle), torch.sin(angle)), -1).unbind(-2)
    field = FunctionMetric(whirl)
    plain = FunctionMetric(lambda x: CallableMetric(whirl(x).norm, like=x))
    contestants = {"closed form": ours(field, x, v, w), "norm alone": ours(plain, x, v, w)}
    if find_spec("finslerax"):
        contestants["finslerax"] = of_finslerax(x, v, w)

    seconds: dict[str, dict[str, float]] = {name: {} for name in contestants}
    for tensor in options.only:
        exact, *others = (contestant[tensor]() for contestant in contestants.values())
        for name, found in zip(list(contestants)[1:], others, strict=True):
            error = np.abs(found.reshape(exact.shape) - exact).max() / np.abs(exact).max()
            assert error < 1e-9, f"{tensor}: {name} differs by {error:.1e}"
        for _ in range(options.runs):
            for name, contestant in contestants.items():
                begin = time.perf_counter()
                contestant[tensor]()
                taken = time.perf_counter() - begin
                seconds[name][tensor] = min(taken, seconds[name].get(tensor, math.inf))

    table = Table(title=f"{options.n} x {options.n} points, seconds", caption=report.processor())
    for head in ("", *options.only):
        table.add_column(head)
    for name, times in seconds.items():
        table.add_row(name, *(f"{times[tensor]:.3f}" for tensor in options.only))
    console = Console()
    console.print(table)
    if options.n == 512:
        for tensor, most in CLAIMS.items():
            if tensor not in options.only:
                continue
            kept = seconds["closed form"][tensor] < most
            console.print(f"{tensor} < {most} s: {'yes' if kept else 'NO'}")
    rows = [
        {"contestant": name, "tensor": tensor, "n": options.n, "seconds": taken}
        for name, times in seconds.items()
        for tensor, taken in times.items()
    ]
    report.finish(options, {"machine": report.machine(), "results": rows}, console)


if __name__ == "__main__":
    main()
