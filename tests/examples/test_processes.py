"""Several processes train as one does with the same batches, and go on where they were cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_denoiser import SmallDenoiser

from engine import main

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parents[1] / "examples" / "experiments"


def losses(folder):
    (record,) = json.loads((folder / "results.json").read_text())
    return record["scores"]["processes"], record["losses"]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path):
    """Replicated (DDP), and sharded (FSDP2) with an interruption."""
    main(SmallDenoiser, ["--accelerator", "cpu", "--output", str(tmp_path / "one")])
    processes, one = losses(tmp_path / "one")
    assert processes == 1
    assert len(one) == 8
    assert one[-1] < 0.9 * one[0]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(HERE / "small_denoiser.py"), str(tmp_path)]
    paths = [str(HERE.parents[1]), str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for strategy in ("ddp", "fsdp2"):
        processes, two = losses(tmp_path / strategy)
        assert processes == 2
        assert two == pytest.approx(one, abs=1e-5)
