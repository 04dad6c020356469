"""The example that trains on many processes: replicated or sharded, the losses are the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "many_processes.py"


def losses(folder, strategy, processes):
    """Run the example; return its losses and the parameters that it saved."""
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone"]
    launch += [f"--nproc-per-node={processes}"] if launch else []
    done = subprocess.run(
        [sys.executable, *launch, EXAMPLE, strategy],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [float(x) for x in re.findall(r"step \d+: (\S+)", done.stdout)], torch.load(
        folder / "trained.pt", weights_only=True
    )


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_two_processes_have_the_losses_of_one(tmp_path):
    expected, parameters = losses(tmp_path, "one", 1)
    assert len(expected) == 10
    assert expected[-1] < 0.5 * expected[0]
    for strategy in ("ddp", "fsdp2"):
        found, saved = losses(tmp_path, strategy, 2)
        assert found == pytest.approx(expected, rel=1e-5)
        assert saved.keys() == parameters.keys()
        for name, value in parameters.items():
            torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5)
