"""Everything that wants a GPU, in one command of less than eight minutes.

    python benchmarks/gpu.py --json results/gpu.json --markdown results/gpu.md
    python benchmarks/gpu.py --device cpu --quick          # the script itself, without a GPU

Claims, for an H100: in float16 and bfloat16 a convolution at displaced taps costs at most 1.5 times
cuDNN's nn.Conv2d (channels last) forwards and 2.5 times with its backward pass, at least four
times less than torchvision's deform_conv2d in every dtype, and no more memory than nn.Conv2d.

The stages: what ``finslerconv doctor`` says; the tests marked for a GPU, where pytest is installed;
what PyTorch makes of the operators (opcheck, compile, CUDA graphs, autocast, deterministic mode,
two processes); times and memory of operators and layers; geodesics. Each stage is skipped once the
time given by ``--minutes`` is over, and one that fails is reported and does not end the run. Times
are medians, with cold caches on a GPU.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import finslerconv
from finslerconv import ops
from finslerconv.balls import lattice
from finslerconv.geodesics import GridMetric, distance, exponential, geodesic_ball
from finslerconv.nn import GeodesicConv2d, MetricConv2d

ROOT = Path(__file__).parents[1]

# Batch, channels, side, outputs; the kernel is 3 x 3.
SHAPES = [(16, 64, 56, 64), (16, 256, 14, 256), (8, 512, 28, 512), (16, 256, 28, 256)]
PRECISIONS = {
    "fp32 IEEE": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, True),
    "fp16": (torch.float16, True),
}

Stage = Callable[[argparse.Namespace], Any]


def median_ms(call: Callable[[], object], device: str, milliseconds: float) -> float:
    """Return the median time of a call, measured for so long."""
    if device != "cpu":
        from triton.testing import do_bench

        warmup = milliseconds / 4
        return float(do_bench(call, warmup=warmup, rep=milliseconds, return_mode="median"))
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=milliseconds / 1e3).median


def peak_mib(call: Callable[[], object], device: str) -> float | None:
    """Return the memory that a call takes beyond what was there, in MiB."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def torchvision_function() -> Callable[..., Tensor] | None:
    """Return torchvision's operator, or None where it cannot be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError, AttributeError):
        return None
    return deform_conv2d


def contestants(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> dict[str, tuple[list[Tensor], Callable[[], Tensor]]]:
    """Return what is timed: for each name the tensors with gradients, and the call."""
    batch, channels, side, outputs = shape
    torch.manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, device=device).to(dtype)

    x = normal(batch, channels, side, side).to(memory_format=torch.channels_last)
    weight = (normal(outputs, channels, 3, 3) / (9 * channels) ** 0.5).to(
        memory_format=torch.channels_last
    )
    offset = normal(batch, 18, side, side)
    root = 0.3 * normal(batch, side, side, 2, 2, dtype=torch.float32)
    M = root @ root.mT + 0.4 * torch.eye(2, device=device)
    omega = 0.2 * torch.tanh(normal(batch, side, side, 2, dtype=torch.float32))
    points = torch.as_tensor(lattice(3).points, dtype=torch.float32, device=device)
    layer = MetricConv2d(channels, outputs, 3, padding=1, device=device, dtype=dtype)
    nn.init.normal_(layer.head.conv.weight, std=0.01)
    layer = layer.to(memory_format=torch.channels_last)
    calls: dict[str, tuple[list[Tensor], Callable[[], Tensor]]] = {
        "nn.Conv2d": ([x, weight], lambda: functional.conv2d(x, weight, padding=1)),
        "deform": ([x, offset, weight], lambda: ops.deform_conv2d(x, offset, weight, padding=1)),
        "metric": (
            [x, M, omega, weight],
            lambda: ops.metric_conv2d(x, M, omega, points, weight, padding=1),
        ),
        "MetricConv2d": ([x, *layer.parameters()], lambda: layer(x)),
    }
    theirs = torchvision_function()
    if theirs is not None:
        calls["torchvision"] = (
            [x, offset, weight],
            lambda: theirs(x, offset, weight, padding=1),
        )
    return calls


def time_operators(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time operators and layers, forwards and with the backward pass."""
    rows = []
    shapes = [(2, 16, 14, 16)] if options.quick else SHAPES
    for shape in shapes:
        for precision, (dtype, tf32) in PRECISIONS.items():
            if options.out_of_time():
                return rows
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            for name, (tensors, call) in contestants(shape, dtype, options.device).items():
                row: dict[str, Any] = {"shape": shape, "precision": precision, "name": name}
                try:
                    with torch.no_grad():
                        row["forward_ms"] = median_ms(call, options.device, options.rep)
                    for tensor in tensors:
                        tensor.requires_grad_()
                    direction = torch.randn_like(call())

                    def both(tensors=tensors, call=call, direction=direction) -> None:
                        torch.autograd.grad(call(), tensors, direction)

                    row["both_ms"] = median_ms(both, options.device, options.rep)
                    row["peak_MiB"] = peak_mib(both, options.device)
                except Exception as error:  # the others are still worth their time
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
                for tensor in tensors:
                    tensor.requires_grad_(False)
                rows.append(row)
    return rows


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def run_tests(options: argparse.Namespace) -> str:
    """Run the tests that want a GPU, in a process of their own."""
    if not (installed("pytest") and installed("hypothesis")):
        return "not run: pytest and hypothesis are not installed"
    files = ["tests/ops/test_ops_triton.py", "tests/geodesics", "tests/nn"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *files, "-k", "gpu or cuda"]
    if not installed("beartype"):  # which checks the annotations while the tests run
        command += ["--override-ini", "addopts="]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    tail = done.stdout.strip().splitlines()[-15:]
    if done.returncode not in (0, 5):  # 5: no test was selected
        raise RuntimeError("\n".join(tail) + done.stderr[-500:])
    return tail[-1] if tail else "no output"


def integrate(options: argparse.Namespace) -> dict[str, str]:
    """Check what PyTorch makes of the operators; return a word for each."""
    found = {}
    checks = {
        "opcheck": check_operators,
        "compile": check_compile,
        "CUDA graphs": check_graphs,
        "autocast": check_autocast,
        "deterministic": check_deterministic,
        "two processes (NCCL)": check_processes,
    }
    for name, check in checks.items():
        if options.out_of_time():
            found[name] = "skipped: out of time"
            continue
        try:
            found[name] = check(options.device) or "passed"
        except Exception as error:
            found[name] = f"FAILED {type(error).__name__}: {error}"[:500]
    return found


def small_layer(device: str) -> tuple[MetricConv2d, Tensor]:
    torch.manual_seed(0)
    layer = MetricConv2d(16, 24, 3, padding=1, modulation=True, device=device)
    nn.init.normal_(layer.head.conv.weight, std=0.05)
    return layer, torch.randn(2, 16, 20, 18, device=device)


def check_operators(device: str) -> None:
    x, offset = torch.randn(2, 8, 9, 7, device=device), torch.randn(2, 18, 9, 7, device=device)
    weight = torch.randn(6, 8, 3, 3, device=device)
    tensors = [t.requires_grad_() for t in (x, offset, weight)]
    seen = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "finslerconv":
                seen.append((function, args, kwargs or {}))
            return function(*args, **(kwargs or {}))

    with Recorder():
        ops.deform_conv2d(*tensors, padding=1).sum().backward()
    assert seen, "no operator of the library was called"
    for function, args, kwargs in seen:
        again = [t.detach() if isinstance(t, Tensor) else t for t in args]
        torch.library.opcheck(function, again, kwargs, atol=1e-4, rtol=1e-3)


def check_compile(device: str) -> None:
    layer, x = small_layer(device)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-3, atol=1e-3)
    compiled(x).sum().backward()


def check_graphs(device: str) -> str | None:
    if device == "cpu":
        return "skipped: no GPU"
    layer, x = small_layer(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            layer(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = layer(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(output, layer(x), rtol=1e-3, atol=1e-3)
    return None


def check_autocast(device: str) -> None:
    layer, x = small_layer(device)
    wanted = layer(x)
    for dtype in (torch.bfloat16, torch.float16) if device != "cpu" else (torch.bfloat16,):
        with torch.autocast(device.split(":")[0], dtype=dtype):
            output = layer(x)
        assert output.dtype == dtype
        # The head is computed in half precision too, and moves some samples to other pixels.
        assert float((output.float() - wanted).norm() / wanted.norm()) < 0.1
        output.float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def check_deterministic(device: str) -> None:
    layer, x = small_layer(device)
    x.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))


def check_processes(device: str) -> str | None:
    if device == "cpu" or torch.cuda.device_count() < 2:
        return "skipped: fewer than two GPUs"
    with tempfile.NamedTemporaryFile() as meeting:
        torch.multiprocessing.spawn(one_of_two, (f"{meeting.name}.store",), nprocs=2)
    return None


def one_of_two(rank: int, meeting: str) -> None:
    """Average gradients over two processes, and compare with both images in one."""
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    layer, x = small_layer(f"cuda:{rank}")
    both = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    parallel = nn.parallel.DistributedDataParallel(layer, device_ids=[rank])
    parallel(x[rank : rank + 1]).square().mean().backward()
    for parameter, wanted in zip(layer.parameters(), both, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-3)
    torch.distributed.destroy_process_group()


def time_geodesics(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the parts of the geodesics that run on a GPU, and check each against the CPU."""
    side = 24 if options.quick else 512
    torch.manual_seed(0)
    root = functional.interpolate(torch.randn(1, 4, 8, 8), (side, side), mode="bicubic")
    root = 0.3 * root[0].movedim(0, -1).reshape(side, side, 2, 2)
    M = root @ root.mT + 0.5 * torch.eye(2)
    omega = 0.2 * torch.ones(side, side, 2)
    here, there = (GridMetric(M.to(device), omega.to(device)) for device in ("cpu", options.device))
    middle = (side // 2, side // 2)
    points = 64 if options.quick else 1_000_000
    starts = torch.rand(points, 2) * (side - 1)
    velocities = torch.randn(points, 2)
    ball = torch.as_tensor(lattice(5).points, dtype=torch.float32)
    centres = (torch.rand(points // 50 + 1, 2) * (side - 21) + 10).to(torch.float32)
    layer = GeodesicConv2d(8, 8, 3, padding=1)
    nn.init.normal_(layer.head.conv.weight, std=0.01)
    image = torch.randn(4, 8, side // 4, side // 4)

    def lengths(field: GridMetric, device: str) -> Tensor:
        return distance(field, middle, "fast_iterative")

    def ends(field: GridMetric, device: str) -> Tensor:
        return exponential(field, starts.to(device), velocities.to(device))

    def balls(field: GridMetric, device: str) -> Tensor:
        return geodesic_ball(field, centres.to(device), ball.to(device), 4.0, check=False)

    def convolution(field: GridMetric, device: str) -> Tensor:
        with torch.no_grad():
            return layer.to(device)(image.to(device))

    rows = []
    for name, call in {
        f"distance, fast_iterative, {side} x {side}": lengths,
        f"exponential, {points} points": ends,
        f"geodesic_ball, {len(centres)} centres, 25 samples": balls,
        "GeodesicConv2d forward": convolution,
    }.items():
        row: dict[str, Any] = {"name": name}
        if options.out_of_time():
            row["error"] = "skipped: out of time"
            rows.append(row)
            continue
        try:
            wanted, found = call(here, "cpu"), call(there, options.device).cpu()
            row["largest difference to the CPU"] = float((found - wanted).abs().max())
            row["ms"] = median_ms(
                lambda call=call: call(there, options.device), options.device, options.rep
            )
            started = time.perf_counter()
            call(here, "cpu")
            row["cpu_ms"] = 1e3 * (time.perf_counter() - started)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [f"# {results['device']}", "", "```", results.get("doctor") or "", "```", ""]
    for stage in ("tests", "integration"):
        lines += [f"## {stage.capitalize()}", "", "```"]
        found = results.get(stage)
        words = found.items() if isinstance(found, dict) else [(stage, found)]
        lines += [f"{name}: {word}" for name, word in words]
        lines += ["```", ""]
    lines += ["## Operators and layers", ""]
    lines += ["| B, C, H, O | precision | | forward | forward + backward | peak memory |"]
    lines += ["|---|---|---|---|---|---|"]
    operators = results.get("operators")
    rows = operators if isinstance(operators, list) else []
    base = {(tuple(r["shape"]), r["precision"]): r for r in rows if r["name"] == "nn.Conv2d"}
    for r in rows:
        size, name = ", ".join(map(str, r["shape"])), r["name"]
        start = f"| {size} | {r['precision']} | {name} |"
        if "error" in r:
            lines.append(f"{start} {r['error']} | | |")
            continue
        of = base[tuple(r["shape"]), r["precision"]]
        ratio = {k: r[k] / of[k] for k in ("forward_ms", "both_ms") if k in of}
        memory = "" if r["peak_MiB"] is None else f"{r['peak_MiB']:.0f} MiB"
        lines.append(
            f"{start} {r['forward_ms']:.3f} ms, {ratio.get('forward_ms', 0):.2f} x "
            f"| {r['both_ms']:.3f} ms, {ratio.get('both_ms', 0):.2f} x | {memory} |"
        )
    lines += ["", "## Geodesics", "", "| | this device | CPU | largest difference |"]
    lines += ["|---|---|---|---|"]
    geodesics = results.get("geodesics")
    for r in geodesics if isinstance(geodesics, list) else []:
        if "error" in r:
            lines.append(f"| {r['name']} | {r['error']} | | |")
        else:
            lines.append(
                f"| {r['name']} | {r['ms']:.2f} ms | {r['cpu_ms']:.1f} ms "
                f"| {r['largest difference to the CPU']:.1e} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which stages are skipped")
    parser.add_argument("--rep", type=float, default=60, help="milliseconds for each time")
    parser.add_argument("--quick", action="store_true", help="small shapes, for a try")
    report.add_arguments(parser)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device: no CUDA device was found; --device cpu --quick tries the script")
    end = time.monotonic() + 60 * options.minutes
    options.out_of_time = lambda: time.monotonic() > end
    name = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__}
    stages: dict[str, Stage] = {
        "doctor": lambda options: str(finslerconv.doctor(options.device)),
        "integration": integrate,
        "operators": time_operators,
        "geodesics": time_geodesics,
        "tests": run_tests,
    }
    for stage, run in stages.items():
        started = time.monotonic()
        if options.out_of_time():
            results[stage] = "skipped: out of time"
        else:
            try:
                results[stage] = run(options)
            except Exception as error:
                results[stage] = f"FAILED {type(error).__name__}: {error}"
        print(f"{stage}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        # After every stage, so that a run that is cut off leaves what it has.
        for path, text in (
            (options.json, json.dumps(results, indent=1)),
            (options.markdown, markdown(results)),
        ):
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text + os.linesep)
    print(markdown(results))
    if options.compare is not None:
        report.show_changes(options.compare, results, Console())


if __name__ == "__main__":
    main()
