"""What this machine computes with, and whether the results are right on it."""

import contextlib
import importlib
import importlib.metadata
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from finslerconv import __version__, geodesics, ops
from finslerconv.balls import lattice
from finslerconv.metrics import Randers

_PACKAGES = (
    "torch", "numpy", "scipy", "numba", "llvmlite", "triton", "array-api-compat", "jaxtyping",
    "sympy", "torchvision", "matplotlib",
)  # fmt: skip

# The error that rounding explains, relative to the largest entry: sums of a few hundred products,
# positions in float32 at least, results rounded to the dtype.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_TF32_TOLERANCE = 5e-3
_OPERATORS = ("deform_conv2d", "metric_conv2d, radial", "metric_conv2d, affine")
_GEOMETRY_TOLERANCE = 1e-4

# Batch, channels, side, outputs and kernel of the convolution that is timed.
_TIMED = (2, 32, 64, 32, 3)
_ROUNDS = 7


@final
@dataclass(frozen=True)
class Check:
    """One comparison with a result that is known.

    Examples
    --------
    >>> from finslerconv import Check
    >>> Check("cpu", "deform_conv2d", "float32", error=1e-7, tolerance=1e-5).passed
    True
    """

    device: str
    name: str
    dtype: str
    error: float
    """The largest error relative to the largest entry; NaN where the call failed."""
    tolerance: float
    message: str = ""
    """What the call raised, if it did."""

    @property
    def passed(self) -> bool:
        """Whether the call ended, with an error within the tolerance."""
        return not self.message and self.error <= self.tolerance


@final
@dataclass(frozen=True)
class Report:
    """What :func:`doctor` found. ``print(report)`` shows it as plain text.

    Examples
    --------
    >>> from finslerconv import Check, Report
    >>> check = Check("cpu", "deform_conv2d", "float32", error=1e-3, tolerance=1e-5)
    >>> report = Report(versions={}, devices={}, backends={}, checks=[check])
    >>> report.ok, len(report.problems)
    (False, 1)
    """

    versions: dict[str, str]
    """The version of each package; "not installed" where it is missing."""
    devices: dict[str, str]
    """Each device, and what it is."""
    backends: dict[str, str]
    """Each device, and which backend of the operators serves it, with the reason."""
    checks: list[Check]
    """The comparisons, in the order in which they were made."""
    timings: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """For each device and operator: milliseconds forwards, and with the backward pass."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each."""
        return [
            f"{c.name} in {c.dtype} on {c.device}: "
            + (c.message or f"error {c.error:.1e}, expected at most {c.tolerance:.0e}")
            for c in self.checks
            if not c.passed
        ]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.problems

    def __str__(self) -> str:
        lines = ["versions", *_columns(self.versions), "", "devices", *_columns(self.devices)]
        lines += ["", "who computes the convolutions", *_columns(self.backends), ""]
        lines += ["checks: largest error, relative to the largest entry", *self._table()]
        for device, times in self.timings.items():
            base = times["nn.Conv2d"]
            lines += ["", f"times on {device}, float32, (B, C, H, O, k) = {_TIMED}"]
            shown = {
                name: f"forward {there:8.2f} ms ({there / base[0]:4.1f} x)   "
                f"with backward {both:8.2f} ms ({both / base[1]:4.1f} x)"
                for name, (there, both) in times.items()
            }
            lines += _columns(shown)
        lines += ["", "verdict"]
        if self.ok:
            lines += [f"  all {len(self.checks)} checks passed"]
        else:
            lines += [f"  {len(self.problems)} of {len(self.checks)} checks failed:"]
            lines += [f"  - {problem}" for problem in self.problems]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows: dict[tuple[str, str], list[str]] = {}
        for c in self.checks:
            shown = "FAILED" if c.message else f"{c.error:.0e}{'' if c.passed else ' WRONG'}"
            rows.setdefault((c.device, c.name), []).append(f"{c.dtype} {shown}")
        return _columns({f"{device}: {name}": "   ".join(r) for (device, name), r in rows.items()})


def _columns(entries: dict[str, str]) -> list[str]:
    width = max((len(name) for name in entries), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in entries.items()]


def doctor(device: str | torch.device | None = None, *, timings: bool = True) -> Report:
    """Check the library on this machine: versions, devices, backends, right results, speed.

    Every convolution operator is compared with the reference in float64, output and gradients, in
    every dtype of every device; distances and geodesics with closed forms. A report of a problem
    should begin with what this prints. The command is ``finslerconv doctor``.

    Parameters
    ----------
    device : str or torch.device, optional
        The device to look at; without it, the CPU and every accelerator that PyTorch has.
    timings : bool
        Whether to time the operators against ``nn.Conv2d``, some seconds a device.

    Returns
    -------
    Report

    Raises
    ------
    RuntimeError
        If ``device`` is none that PyTorch knows here.

    Notes
    -----
    The first call on a machine compiles the kernels: about ten seconds for each of float32 and
    float64 on a CPU.

    Examples
    --------
    >>> import finslerconv
    >>> report = finslerconv.doctor("cpu", timings=False)
    >>> report.ok, report.problems
    (True, [])
    """
    devices = _devices() if device is None else [torch.device(device)]
    for each in devices:
        torch.empty(0, device=each)  # an unknown one is refused before anything is computed
    checks = [check for each in devices for check in _checks(each)]
    return Report(
        versions=_versions(),
        devices={str(each): _described(each) for each in devices},
        backends={str(each): _server(each) for each in devices},
        checks=checks,
        timings={str(each): _times(each) for each in devices} if timings else {},
    )


def _versions() -> dict[str, str]:
    versions = {
        "finslerconv": __version__,
        "python": f"{platform.python_version()} ({platform.platform()})",
    }
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    built = torch.version.cuda or getattr(torch.version, "hip", None)
    versions["torch"] += f" (built for {'CUDA ' + built if built else 'the CPU'})"
    return versions


def _devices() -> list[torch.device]:
    found = [torch.device("cpu")]
    found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append(torch.device("xpu"))
    return found


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        of = torch.cuda.get_device_properties(device)
        return (
            f"{of.name}, compute capability {of.major}.{of.minor}, "
            f"{of.multi_processor_count} multiprocessors, {of.total_memory / 2**30:.0f} GiB"
        )
    if device.type == "cpu":
        vector = torch.backends.cpu.get_cpu_capability()
        return f"{platform.machine()}, {vector}, {torch.get_num_threads()} threads of PyTorch"
    return device.type


def _server(device: torch.device) -> str:
    """Return which backend serves the device, and why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is in the report
        name = ops.current_backend(device)
    return name if name != "reference" else f"{name}, because {ops.why_reference(device)}"


def _checks(device: torch.device) -> Iterator[Check]:
    for operator in _OPERATORS:
        for dtype, tolerance in _TOLERANCE.items():
            if device.type == "mps" and dtype == torch.float64:
                continue
            error = partial(_convolution_error, device, operator, dtype)
            yield _check(device, operator, dtype, tolerance, error)
        if device.type == "cuda":
            error = partial(_convolution_error, device, operator, torch.float32, tf32=True)
            yield _check(device, operator, "TF32", _TF32_TOLERANCE, error)
    dtype = torch.float32 if device.type == "mps" else torch.float64
    for name, of in (("distance", _distance_error), ("exponential", _exponential_error)):
        yield _check(device, name, dtype, _GEOMETRY_TOLERANCE, partial(of, device, dtype))


def _check(
    device: torch.device,
    name: str,
    dtype: torch.dtype | str,
    tolerance: float,
    error: Callable[[], float],
) -> Check:
    found, message = math.nan, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = error()
    except Exception as problem:  # whatever it is belongs into the report
        message = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
    return Check(str(device), name, str(dtype).removeprefix("torch."), found, tolerance, message)


def _convolution_error(
    device: torch.device, operator: str, dtype: torch.dtype, tf32: bool = False
) -> float:
    tensors, call = _convolution(operator, (2, 16, 12, 8, 3), torch.float64)
    # What is compared is the computation, not the rounding of its arguments.
    rounded = [t.to(dtype) for t in tensors]
    exact = [t.double().requires_grad_() for t in rounded]
    live = [t.to(device).requires_grad_() for t in rounded]
    with ops.use_backend("reference"):
        wanted = _with_gradients(call, exact)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        found = _with_gradients(call, live)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return max(
        float((a.detach().cpu().double() - b).abs().max() / b.abs().max())
        for a, b in zip(found, wanted, strict=True)
    )


def _with_gradients(call: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    output = call(*tensors)
    steps = torch.arange(output.numel(), dtype=torch.float64)
    direction = steps.cos().reshape(output.shape).to(output)
    return [output.detach(), *torch.autograd.grad(output, tensors, direction)]


def _convolution(
    operator: str, size: tuple[int, int, int, int, int], dtype: torch.dtype
) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Return the arguments of an operator, on the CPU, and the operator as a function of them."""
    batch, channels, side, outputs, k = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image = normal(batch, channels, side, side)
    weight = normal(outputs, channels, k, k) / math.sqrt(channels * k * k)
    pad = k // 2
    call: Callable[..., Tensor]
    if operator == "conv2d":
        tensors = [image, weight]
        call = partial(functional.conv2d, padding=pad)
    elif operator == "deform_conv2d":
        tensors = [image, normal(batch, 2 * k * k, side, side), weight]
        call = partial(ops.deform_conv2d, padding=pad)
    else:
        root = 0.3 * normal(batch, side, side, 2, 2)
        M = root @ root.mT + 0.4 * torch.eye(2, dtype=torch.float64)
        omega = 0.2 * torch.tanh(normal(batch, side, side, 2))
        tensors = [image, M, omega, weight]
        points = torch.as_tensor(lattice(k).points)
        map: ops.MapName = "affine" if operator.endswith("affine") else "radial"

        def call(x: Tensor, M: Tensor, omega: Tensor, weight: Tensor) -> Tensor:
            return ops.metric_conv2d(x, M, omega, points.to(M), weight, padding=pad, map=map)

    return [t.to(dtype) for t in tensors], call


def _constant(device: torch.device, dtype: torch.dtype) -> Randers:
    return Randers(
        torch.tensor([[1.5, 0.3], [0.3, 0.8]], dtype=dtype, device=device),
        torch.tensor([0.2, -0.3], dtype=dtype, device=device),
    )


def _distance_error(device: torch.device, dtype: torch.dtype) -> float:
    """Return the error of distances in a constant metric, which are lengths of straight lines."""
    metric = _constant(device, dtype)
    field = geodesics.GridMetric.from_metric(metric, (17, 17))
    method = "fast_marching" if device.type == "cpu" else "fast_iterative"
    found = geodesics.distance(field, (8, 8), method)
    wanted = metric.norm(field.nodes() - 8)
    return float((found - wanted).abs().max() / wanted.max())


def _exponential_error(device: torch.device, dtype: torch.dtype) -> float:
    """Return the error of geodesics in a constant metric, which are straight lines."""
    field = geodesics.GridMetric.from_metric(_constant(device, dtype), (17, 17))
    start = torch.full((5, 2), 8.0, dtype=dtype, device=device)
    velocity = torch.linspace(-3, 3, 10, dtype=dtype, device=device).reshape(5, 2)
    found = geodesics.exponential(field, start, velocity)
    return float((found - start - velocity).abs().max() / velocity.abs().max())


def _times(device: torch.device) -> dict[str, tuple[float, float]]:
    """Return milliseconds forwards, and with the backward pass: medians of rounds in turns."""
    calls = {"nn.Conv2d": _convolution("conv2d", _TIMED, torch.float32)}
    calls |= {name: _convolution(name, _TIMED, torch.float32) for name in _OPERATORS}
    theirs = _torchvision()
    if theirs is not None:
        tensors, _ = calls["deform_conv2d"]
        calls["torchvision"] = (tensors, lambda x, o, w: theirs(x, o, w, padding=1))
    moved = {
        name: ([t.to(device).requires_grad_() for t in tensors], call)
        for name, (tensors, call) in calls.items()
    }
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in moved}
    for turn in range(_ROUNDS + 1):
        for name, (tensors, call) in moved.items():
            with contextlib.suppress(Exception):  # what fails is named by the checks
                took = _time_both(device, tensors, call)
                if turn > 0:  # the first compiles
                    rounds[name].append(took)
    return {
        name: (statistics.median(t[0] for t in took), statistics.median(t[1] for t in took))
        for name, took in rounds.items()
        if took
    }


def _time_both(
    device: torch.device, tensors: list[Tensor], call: Callable[..., Tensor]
) -> tuple[float, float]:
    start = _now(device)
    with torch.no_grad():
        call(*tensors)
    middle = _now(device)
    torch.autograd.grad(call(*tensors).sum(), tensors)
    return 1e3 * (middle - start), 1e3 * (_now(device) - middle)


def _now(device: torch.device) -> float:
    """Return the time at which the device has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _torchvision() -> Callable[..., Any] | None:
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torchvision.ops").deform_conv2d
    except (ImportError, RuntimeError, AttributeError):  # built for another PyTorch
        return None
