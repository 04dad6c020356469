"""Training on any number of processes, with checkpoints from which it goes on as if uncut."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine.records import Run

#: From a model and the tensors of a batch to the loss, a mean over the batch.
Loss = Callable[..., Tensor]


class Trainer:
    """Trains the networks of one run; interrupted, the next call goes on at the last checkpoint.

    Attributes
    ----------
    fabric : Fabric
        The processes and devices.
    losses : list of float
        The loss of every step, the mean over the processes.
    earlier_seconds : float
        What calls that were cut short have spent.
    """

    def __init__(
        self, fabric: Fabric, folder: Path, run: Run, checkpoint_every: int, bars: Progress
    ) -> None:
        self.fabric = fabric
        self.losses: list[float] = []
        self.earlier_seconds = 0.0
        self._start = time.process_time()
        self._every = checkpoint_every
        self._bars = bars
        digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
        self._stem = folder / digest[:16]
        self._trainings = 0

    def train(
        self,
        model: nn.Module,
        batches: Iterator[tuple[Tensor, ...]],
        loss: Loss,
        *,
        steps: int,
        optimiser: Callable[[nn.Module], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        """Train a model in place, and move it to the device.

        Parameters
        ----------
        model : nn.Module
        batches : iterator of tuples of tensors
            What every process draws alike; each takes its equal share of a batch. It has
            ``state_dict`` and ``load_state_dict``.
        loss : callable
            Takes the model and the tensors of a batch.
        steps : int
        optimiser : callable
            Makes the optimiser of the model.
        schedule : callable, optional
            Makes the schedule of the optimiser, which steps with it.
        """
        wrapped = self.fabric.setup_module(model)
        plain = optimiser(model)
        scheduled = None if schedule is None else schedule(plain)
        stepper = self.fabric.setup_optimizers(plain)
        state: dict[str, Any] = {
            "model": wrapped,
            "optimiser": stepper,
            "batches": batches,
            "random": _RandomState(),
            "losses": [],
            "seconds": 0.0,
        }
        if scheduled is not None:
            state["schedule"] = scheduled
        self._trainings += 1
        checkpoint = self._stem.with_suffix(f".{self._trainings}.ckpt")
        if checkpoint.exists():
            self.fabric.load(checkpoint, state)
            self.earlier_seconds = state["seconds"]
        losses = state["losses"]
        task = self._bars.add_task("training", total=steps, completed=len(losses))
        wrapped.train()
        while len(losses) < steps:
            batch = [self._share(part).to(self.fabric.device) for part in next(batches)]
            stepper.zero_grad()
            value = loss(wrapped, *batch)
            self.fabric.backward(value)
            stepper.step()
            if scheduled is not None:
                scheduled.step()
            losses.append(float(self.fabric.all_reduce(value.detach())))
            self._bars.update(task, advance=1, description=f"loss {losses[-1]:.4g}")
            if len(losses) % self._every == 0 or len(losses) == steps:
                self._save(checkpoint, state)
        self._bars.remove_task(task)
        self.losses += losses

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a run that has been recorded."""
        for number in range(1, self._trainings + 1):
            self._stem.with_suffix(f".{number}.ckpt").unlink(missing_ok=True)

    def _share(self, part: Tensor) -> Tensor:
        """Return what of a batch is this process's."""
        processes = self.fabric.world_size
        if len(part) % processes:
            raise ValueError(f"a batch of {len(part)} cannot be shared among {processes} processes")
        return part[self.fabric.global_rank :: processes]

    def _save(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint, so that the file is whole at any time."""
        state["seconds"] = self.earlier_seconds + time.process_time() - self._start
        part = checkpoint.with_suffix(".part")
        self.fabric.save(part, state)
        if self.fabric.is_global_zero:
            os.replace(part, checkpoint)
        self.fabric.barrier()


class _RandomState:
    """PyTorch's generators, which dropout draws from."""

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
