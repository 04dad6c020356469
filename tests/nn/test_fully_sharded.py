"""Fully sharded training (FSDP2) has the gradients of training in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from fully_sharded_worker import LAYERS

_HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs PyTorch with gloo"
)
def test_gradients_of_two_processes(tmp_path):
    pytest.importorskip("torch.distributed.fsdp", reason="needs fully_shard")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_HERE), *sys.path])}
    workers = [
        subprocess.Popen(
            [sys.executable, _HERE / "fully_sharded_worker.py", tmp_path / "store", str(rank)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for worker in workers:
            output, errors = worker.communicate(timeout=300)
            assert worker.returncode == 0, errors
            assert output.split() == list(LAYERS)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
