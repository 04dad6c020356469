"""What the Triton kernels compile to, and what they can cost at least: all that needs no GPU.

    python benchmarks/gpu_static.py --markdown results/gpu_static.md
    python benchmarks/gpu_static.py --targets sm_90 --quick

Claims: no kernel spills registers or has a stack, two blocks or more fit a multiprocessor, images
are read 16 bytes at a time wherever 8 divides the channels of a group, and float16, bfloat16 and
TF32 are multiplied by the tensor cores. The layers of a network share compiled kernels.

Times on paper: the operations over the rate of the tensor cores, and the bytes that must pass
through device memory over its bandwidth, give the floor. Samples are gathered from caches: their
bytes over the bandwidth of the first-level caches (where neighbouring pixels' samples overlap as
much as those of a standard convolution) and of the second-level cache (where they never do) give
the range in which a measurement is expected. The image's gradient is added up in the second-level
cache, assumed to add at half the rate at which it is read.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import compiled_kernels as static
import torch

from finslerconv import ops
from finslerconv.nn import Cholesky, LogEuclidean

SHAPES = [(16, 64, 56, 64), (16, 256, 14, 256), (8, 512, 28, 512), (16, 256, 28, 256)]
PRECISIONS = {
    "fp16": (torch.float16, False),
    "TF32": (torch.float32, True),
    "fp32 IEEE": (torch.float32, False),
    "float64": (torch.float64, False),
}

# The default formula of a head, and that of the most operations.
HEADS = {"cholesky": ops.HeadFormula(Cholesky()), "log_euclidean": ops.HeadFormula(LogEuclidean())}

# Bytes and operations a second: device memory, second-level cache (assumed), first-level caches
# (128 bytes a clock and multiprocessor), dense tensor cores in 16 bits and in TF32.
CARDS = {
    "H100 SXM": (3.35e12, 5.5e12, 132 * 128 * 1.755e9, 990e12, 495e12),
    "A100 80 GB": (2.0e12, 4.0e12, 108 * 128 * 1.41e9, 312e12, 156e12),
}


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; columns of the head are parted by commas."""
    columns = head.split(", ")
    lines = [columns, ["---"] * len(columns), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def compile_all(
    target: str, shapes: list[tuple[int, int, int, int]], precision: str, **rest: object
) -> list[static.Compilation]:
    """Compile the kernels of the shapes; those that are shared are listed once."""
    dtype, tf32 = PRECISIONS[precision]
    torch.backends.cudnn.allow_tf32 = tf32
    found: dict[str, static.Compilation] = {}
    for shape in shapes:
        for done in static.compile_convolution(target, *shape, dtype=dtype, **rest):  # type: ignore[arg-type]
            found.setdefault(done.key, done)
    return list(found.values())


def binaries(target: str, quick: bool) -> str:
    """Return the table of what the kernels compile to."""
    rows = []
    jobs: list[tuple[str, str, list[tuple[int, int, int, int]], dict[str, object]]] = [
        (name, "", SHAPES[:2], {}) for name in (["fp16", "TF32"] if quick else PRECISIONS)
    ]
    if not quick:
        jobs += [
            ("fp16", "affine", SHAPES[:1], {"kind": "affine"}),
            ("fp16", "offsets", SHAPES[:1], {"kind": "offsets"}),
            *(
                (precision, f"affine, {name} head", SHAPES[:1], {"kind": "affine", "formula": head})
                for (name, head), precision in itertools.product(HEADS.items(), ("fp16", "float64"))
            ),
            ("fp16", "depthwise", SHAPES[:1], {"groups": 64}),
            ("fp16", "32 groups, 2 sample groups", [(16, 128, 28, 128)],
             {"groups": 32, "sample_groups": 2}),
            ("fp16", "3 channels", [(16, 3, 224, 64)], {"kernel": 7, "stride": 2}),
        ]  # fmt: skip
    for precision, what, shapes, rest in jobs:
        for done in compile_all(target, shapes, precision, **rest):
            # The other kernels do not know of heads.
            if "formula" in rest and not done.constants.get("HEAD"):
                continue
            f = static.facts(done)
            blocks = [done.constants.get(f"BLOCK_{axis}", 0) for axis in "PCO"]
            rows.append(
                (
                    f"`{done.kernel}`", ", ".join(filter(None, (precision, what))),
                    " x ".join(str(b) for b in blocks if b), f.threads, f.registers,
                    f.spills, f.stack, f"{f.shared / 1024:.0f} K", f.blocks(target),
                    f.loads_128 + f.async_128, f.loads_64, f.tensor_core, f.atomics,
                    f"{done.seconds:.1f}",
                )
            )  # fmt: skip
    return table(
        "kernel, numbers, tile P x C x O, threads, registers, spills, stack, shared, "
        "blocks a multiprocessor, 128-bit loads, 64-bit loads, tensor-core instr., atomics, "
        "compile s",
        rows,
    )


def resnet(target: str) -> str:
    """Return how many kernels the 3 x 3 and 7 x 7 layers of a ResNet-18 compile, and how long."""
    layers = [(3, 224, 64, 7, 2), (64, 56, 64, 3, 1)]
    for width, side in ((128, 56), (256, 28), (512, 14)):
        layers += [(width // 2, side, width, 3, 2), (width, side // 2, width, 3, 1)]
    launches, found = 0, {}
    for channels, side, outputs, kernel, stride in layers:
        compiled = static.compile_convolution(
            target, 32, channels, side, outputs, kernel=kernel, stride=stride
        )
        launches += len(compiled)
        for done in compiled:
            found.setdefault(done.key, done)
    seconds = sum(done.seconds for done in found.values())
    return (
        f"ResNet-18 in fp16, radial, {target}: {len(layers)} shapes of layers launch {launches} "
        f"kernels forwards and backwards, of {len(found)} compilations; {seconds:.0f} s of "
        "processor time in all.\n"
    )


def work(shape: tuple[int, int, int, int], size: int) -> dict[str, tuple[int, int, int, int]]:
    """Return operations, bytes of device memory, bytes gathered and bytes added of each kernel."""
    batch, channels, side, outputs = shape
    pixels, taps = batch * side * side, 9
    image, out, weight = pixels * channels, pixels * outputs, taps * channels * outputs
    metrics = 24 * pixels  # of float32, as are the sums of their gradients
    samples = 4 * pixels * taps * channels
    times_gathered = -(-outputs // 128)
    operations = 2 * pixels * weight
    both = size * (image + out)
    return {
        "forward": (operations, both + size * weight + metrics, samples * size * times_gathered, 0),
        "backward_samples": (
            operations,
            both + size * weight + 4 * image + 4 * metrics,
            samples * size,
            4 * samples,
        ),
        "backward_weight": (
            operations,
            both + 4 * weight + metrics,
            samples * size * times_gathered,
            0,
        ),
    }


def works() -> str:
    """Return the table of operations and bytes."""
    return table(
        "B; C; H; O, numbers, kernel, GFLOP, device memory MB, gathered MB, added MB",
        (
            (
                "; ".join(map(str, shape)),
                name,
                f"`{kernel}`",
                f"{operations / 1e9:.1f}",
                *(f"{number / 1e6:.0f}" for number in moved),
            )
            for shape in SHAPES
            for name, size in (("fp16", 2), ("TF32", 4))
            for kernel, (operations, *moved) in work(shape, size).items()
        ),
    )


def rooflines(card: str) -> str:
    """Return the times that the kernels can take at least, and those expected, in microseconds."""
    memory, second, first, half, tf32 = CARDS[card]
    rows = []
    for shape in SHAPES:
        for name, size, rate in (("fp16", 2, half), ("TF32", 4, tf32)):
            cells, total = [], [0.0, 0.0, 0.0]
            for operations, moved, gathered, added in work(shape, size).values():
                floor = max(operations / rate, moved / memory)
                adding = 2 * added / second
                times = (
                    floor,
                    max(floor, gathered / first, adding),
                    max(floor, gathered / second + adding),
                )
                total = [a + b for a, b in zip(total, times, strict=True)]
                cells.append(times)
            rows.append(
                (
                    "; ".join(map(str, shape)),
                    name,
                    *(
                        f"{1e6 * floor:.0f}; {1e6 * least:.0f} to {1e6 * most:.0f}"
                        for floor, least, most in (*cells, total)
                    ),
                )
            )
    return table(
        "B; C; H; O, numbers, `forward`, `backward_samples`, `backward_weight`, all three", rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=["sm_90", "sm_80"])
    parser.add_argument("--quick", action="store_true", help="fp16 and TF32, radial")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    arguments = parser.parse_args()
    # Nothing is taken from Triton's cache, so that the times are those of compiling.
    cache = tempfile.TemporaryDirectory()
    os.environ["TRITON_CACHE_DIR"] = cache.name
    parts: list[str] = []

    def add(title: str, text: str) -> None:
        parts.append(f"{title}\n\n{text}")
        print(parts[-1], flush=True)

    for target in arguments.targets:
        add(f"What the kernels compile to, {target}:", binaries(target, arguments.quick))
        add("Compilations:", resnet(target))
    add("Work, k = 3:", works())
    for card in CARDS:
        title = f"{card}, microseconds: floor; expected range (not measured):"
        add(title, rooflines(card))
    text = "\n".join(parts)
    if arguments.markdown is not None:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
