"""Runs and what came of them, in a file that is whole at any time."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

#: All settings of one run, as JSON has them: what is equal is the same run.
Run = dict[str, Any]

#: The numbers that come of a run.
Scores = Mapping[str, Any]

#: A record keeps at most so many losses, evenly spaced.
_LOSSES = 100


@dataclass(frozen=True)
class Record:
    """A finished run. ``record["psnr"]`` is a score or a setting."""

    run: Run
    scores: Scores
    cpu_seconds: float
    machine: str
    losses: list[float] = field(default_factory=list)

    def __getitem__(self, key: str) -> Any:
        return self.run[key] if key in self.run else self.scores[key]

    def matches(self, settings: Run) -> bool:
        """Return whether the run has these settings."""
        return settings.items() <= self.run.items()


class Records:
    """The finished runs of an experiment, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records = []
        if path.exists():
            self._records = [Record(**entry) for entry in json.loads(path.read_text())]

    def find(self, run: Run) -> Record | None:
        """Return the record of a run, None if it has not been finished."""
        return next((record for record in self._records if record.run == run), None)

    def add(self, record: Record) -> None:
        """Add a record; the file is replaced in one step."""
        self._records.append(record)
        entries = [json.dumps(asdict(each)) for each in self._records]
        written = self.path.with_suffix(".part")
        written.write_text("[\n" + ",\n".join(entries) + "\n]\n")
        os.replace(written, self.path)


def thinned(losses: list[float]) -> list[float]:
    """Return at most a hundred of the losses, the last one among them."""
    every = -(-len(losses) // _LOSSES) or 1
    return losses[::-1][::every][::-1]


def machine(device: torch.device) -> str:
    """Say on what a run was computed."""
    cpu = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    threads = torch.get_num_threads()
    return f"{where}, {threads} thread{'s' * (threads > 1)}, PyTorch {torch.__version__}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
