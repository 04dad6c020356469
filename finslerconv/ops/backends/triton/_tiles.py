"""The tiles on which the kernels work: few for each kernel and arithmetic, in a table.

The table is the result of compiling: every entry compiles for compute capability 8.0 and 9.0
without spills, and so that two blocks or more fit a multiprocessor
(``tests/ops/test_triton_compiled.py``, ``benchmarks/gpu_static.py``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton

from finslerconv.ops._autotune import is_autotuned

#: What is multiplied and how: 16-bit floats or float32 rounded to TF32 on the tensor cores, float32
#: as it is, or float64.
Arithmetic = Literal["half", "tf32", "ieee", "double"]


@dataclass(frozen=True)
class Tile:
    """Pixels, channels and outputs of a tile; threads of a block, and how many registers each has.

    Depthwise kernels have no outputs; the compiler chooses where ``registers`` is None.
    """

    pixels: int
    channels: int
    outputs: int
    threads: int
    registers: int | None = None

    def options(self, warp_size: int, capped: bool) -> dict[str, int]:
        """Return the compiler's options for warps of this size."""
        options = {"num_warps": self.threads // warp_size, "num_stages": 1}
        if capped and self.registers is not None:
            options["maxnreg"] = self.registers
        return options


# Where there are several, the first is for channels that 8 does not divide, whose loads are single
# numbers; the others are in the order of their outputs.
TILES: dict[str, dict[Arithmetic, tuple[Tile, ...]]] = {
    "forward": {
        "half": (
            Tile(32, 16, 64, 128, 255),
            Tile(64, 32, 64, 256, 80),
            Tile(64, 32, 128, 256, 128),
        ),
        "tf32": (
            Tile(32, 16, 64, 128, 255),
            Tile(64, 32, 64, 256, 128),
            Tile(32, 32, 128, 128, 255),
        ),
        "ieee": (Tile(32, 16, 32, 128, 255), Tile(32, 16, 32, 128, 128)),
        "double": (Tile(16, 16, 16, 128, 255),),
    },
    "backward_samples": {
        "half": (Tile(32, 16, 64, 128, 255), Tile(32, 32, 64, 128, 168)),
        "tf32": (Tile(32, 16, 64, 128, 255), Tile(32, 32, 64, 128, 255)),
        "ieee": (Tile(32, 16, 32, 128, 255), Tile(32, 32, 16, 128, 255)),
        "double": (Tile(16, 16, 16, 128, 255),),
    },
    "backward_weight": {
        "half": (Tile(32, 16, 64, 128, 255), Tile(32, 64, 64, 256), Tile(32, 64, 128, 256, 128)),
        "tf32": (Tile(32, 16, 64, 128, 255), Tile(32, 64, 64, 256), Tile(32, 64, 128, 256, 128)),
        "ieee": (Tile(32, 16, 32, 128, 128),),
        "double": (Tile(16, 16, 16, 128, 255),),
    },
}
for _kernel in ("forward_depthwise", "backward_samples_depthwise", "backward_weight_depthwise"):
    _single = (Tile(32, 16, 0, 128, 255), Tile(32, 32, 0, 128, 255))
    TILES[_kernel] = {
        "half": _single,
        "tf32": _single,
        "ieee": _single,
        "double": (Tile(16, 16, 0, 128, 255),),
    }

# A sample of a volume has twice the corners, whose addresses take registers.
for _kernel in ("forward", "backward_samples", "backward_weight"):
    TILES[f"{_kernel}_volume"] = dict(TILES[_kernel])
TILES["forward_volume"]["half"] = (
    Tile(32, 16, 64, 128, 255), Tile(64, 32, 64, 256), Tile(64, 32, 128, 256, 128),
)  # fmt: skip
TILES["forward_volume"]["tf32"] = (
    Tile(32, 16, 64, 128, 255), Tile(32, 32, 64, 128, 255), Tile(32, 32, 128, 128, 255),
)  # fmt: skip

_fastest: dict[Any, Tile] = {}


def choose(
    kernel: str,
    arithmetic: Arithmetic,
    *,
    aligned: bool,
    outputs: int,
    key: Any,
    run: Callable[[Tile], object],
) -> Tile:
    """Return the tile for channels ``aligned`` to 8 or not, and weight groups of ``outputs``.

    If :class:`finslerconv.ops.autotune` says so, return the fastest for what ``key`` names, which
    ``run`` is called to find out.
    """
    tiles = TILES[kernel][arithmetic]
    if len(tiles) > 1:
        tiles = tiles[1:] if aligned else tiles[:1]
    if len(tiles) > 1 and is_autotuned():
        place = (kernel, arithmetic, torch.cuda.current_device(), key)
        if place not in _fastest:
            seconds = {t: triton.testing.do_bench(lambda t=t: run(t)) for t in tiles}
            _fastest[place] = min(tiles, key=seconds.__getitem__)
        return _fastest[place]
    return next((t for t in tiles if t.outputs >= outputs), tiles[-1])
