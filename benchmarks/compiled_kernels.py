"""What the kernels compile to, found out without a device: for tests and benchmarks.

Inside :func:`compiling_for` launches of kernels compile, by Triton's own launcher and so exactly
as on the device, and run nothing; arguments may be tensors on PyTorch's ``meta`` device.
"""

import re
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from finslerconv._head_formula import HeadFormula
from finslerconv.ops._geometry import ConvGeometry
from finslerconv.ops.backends import Convolution, Needs, Positions, channels_last
from finslerconv.ops.backends._contract import PositionKind
from finslerconv.ops.backends.triton._backend import TritonBackend

#: The devices for which Triton can compile here, and the shared memory of a block in bytes.
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_MEMORY = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
_REGISTERS = 64 * 1024


@dataclass(frozen=True)
class Compilation:
    """A kernel that was compiled, or found in the cache."""

    kernel: str
    target: str
    constants: dict[str, Any]
    binary: Any
    """Triton's ``CompiledKernel``."""
    seconds: float
    """Processor time, that of the assembler included."""

    @property
    def key(self) -> str:
        """What names the binary: equal for launches that share it."""
        return self.binary.hash


@dataclass(frozen=True)
class Facts:
    """What a binary for an NVIDIA device is made of; instructions are counted, not executions."""

    registers: int
    stack: int
    spills: int
    shared: int
    threads: int
    loads_128: int
    async_128: int
    loads_64: int
    loads_16: int
    tensor_core: int
    atomics: int
    instructions: int

    def blocks(self, target: str) -> int:
        """Return how many blocks fit a multiprocessor of the target."""
        # Registers are given to a warp in units of 256.
        of_warp = -(-self.registers * 32 // 256) * 256
        by_registers = _REGISTERS // (of_warp * self.threads // 32)
        # A block takes 1 KiB of shared memory for the system.
        by_shared = (SHARED_MEMORY[target] + 1024) // (self.shared + 1024)
        return min(by_registers, by_shared, 2048 // self.threads)


class _Driver:
    """As much of a driver as compiling needs."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self._name]

    def get_current_device(self) -> str:
        return self._name

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling_for(target: str) -> Iterator[list[Compilation]]:
    """Compile for the target all kernels that are launched in the block, and run none.

    Yields the list of compilations, one for each launch.
    """
    done: list[Compilation] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        before = _processor_time()
        binary = run(self, *args, grid=grid, warmup=True, **kwargs)
        constants = {n: v for n, v in kwargs.items() if n.isupper()}
        done.append(
            Compilation(self.__name__, target, constants, binary, _processor_time() - before)
        )
        return binary

    driver = triton.runtime.driver
    active = driver._active
    driver._active = _Driver(target)
    try:
        with mock.patch.object(JITFunction, "run", compile_only):
            yield done
    finally:
        driver._active = active


def compile_convolution(
    target: str,
    batch: int,
    channels: int,
    side: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    kind: PositionKind = "radial",
    dtype: torch.dtype = torch.float16,
    groups: int = 1,
    sample_groups: int = 1,
    omega: bool = True,
    bias: bool = False,
    mask: bool = False,
    dims: int = 2,
    formula: HeadFormula | None = None,
) -> list[Compilation]:
    """Compile all kernels of a convolution's forward and backward pass.

    With a formula the positions come as the channels of a head.
    """
    geometry = ConvGeometry.of(kernel, stride, kernel // 2, dims=dims)
    out = geometry.output_size(*(side,) * dims)
    real = torch.promote_types(dtype, torch.float32)

    def empty(*shape: int, dtype: torch.dtype = real) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    taps = geometry.n_taps
    if kind == "offsets":
        positions = Positions(kind, empty(batch, dims * sample_groups * taps, *out))
    elif formula is not None:
        channels_of_head = empty(batch, sample_groups * formula.n_channels, *out)
        positions = Positions(kind, channels_of_head, None, empty(taps, dims), formula)
    else:
        where = (batch, sample_groups, *out)
        one_forms = empty(*where, dims) if omega else None
        positions = Positions(kind, empty(*where, dims, dims), one_forms, empty(taps, dims))
    image = empty(batch, channels, *(side,) * dims, dtype=dtype)
    conv = Convolution(
        image.to(memory_format=channels_last(dims)),
        positions,
        empty(outputs, channels // groups, *geometry.kernel_size, dtype=dtype),
        empty(outputs, dtype=dtype) if bias else None,
        empty(batch, sample_groups * taps, *out) if mask else None,
        geometry,
        "zeros",
    )
    backend = TritonBackend()
    with compiling_for(target) as done:
        backend.backward(backend.forward(conv), conv, Needs())
    return done


def facts(compilation: Compilation) -> Facts:
    """Disassemble a binary for an NVIDIA device, by the tools that come with Triton."""
    binary = compilation.binary
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", file.name)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    def resource_of(name: str) -> int:
        found = re.search(rf"\b{name}:(\d+)", usage)
        assert found is not None, usage
        return int(found[1])

    return Facts(
        registers=resource_of("REG"),
        stack=resource_of("STACK"),
        spills=count(r"\b(?:STL|LDL)\b"),
        shared=binary.metadata.shared,
        threads=32 * binary.metadata.num_warps,
        loads_128=count(r"\bLDG\.E\.128"),
        async_128=count(r"\bLDGSTS\S*\.128"),
        loads_64=count(r"\bLDG\.E\.64"),
        loads_16=count(r"\bLDG\.E\.U16"),
        tensor_core=count(r"\b(?:HMMA|HGMMA|DMMA|UTC\w*MMA)\b"),
        atomics=count(r"\b(?:RED|REDG|ATOM|ATOMG)\b"),
        instructions=count(r"/\*[0-9a-f]{4,5}\*/"),
    )


def _tool(name: str, *arguments: str) -> str:
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _processor_time() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
