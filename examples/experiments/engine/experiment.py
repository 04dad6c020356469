"""An experiment: its settings are its command line; its runs are done once, and then reported."""

import abc
import argparse
import dataclasses
import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from torch import nn

from engine.records import Record, Records, Run, Scores, machine, thinned
from engine.training import Trainer


def setting(default: Any, meaning: str, *, quick: Any = None, choices: Sequence[Any] = ()) -> Any:
    """Declare a setting: its value, what ``--help`` says of it, and its value with ``--quick``."""
    metadata = {"meaning": meaning, "quick": quick, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Experiment(abc.ABC):
    """An experiment, whose settings are the fields of a dataclass that extends this one.

    It lists its runs and performs one; :func:`main` does what is missing and writes the report.
    """

    name: ClassVar[str]
    """That of the file, and of the folder of results."""

    @abc.abstractmethod
    def runs(self) -> list[Run]:
        """Return the runs, each with every setting that its scores depend on."""

    @abc.abstractmethod
    def perform(self, run: Run, trainer: Trainer) -> Scores:
        """Do one run; with one seed and one number of processes, the scores are always the same."""

    @abc.abstractmethod
    def table(self, records: Sequence[Record]) -> str:
        """Return the results as a table in Markdown."""

    @abc.abstractmethod
    def plot(self, records: Sequence[Record]) -> Figure:
        """Return the results as a picture."""


def main(kind: type[Experiment], arguments: Sequence[str] | None = None) -> None:
    """Do the runs of an experiment that have not been done, and write the table and the plot."""
    options = vars(_parser(kind).parse_args(arguments))
    fields = dataclasses.fields(kind)
    given = {field.name: options[field.name] for field in fields if field.name in options}
    quick = {field.name: field.metadata["quick"] for field in fields if options["quick"]}
    quick = {name: value for name, value in quick.items() if value is not None}
    experiment = kind(**{**quick, **given})
    torch.set_num_threads(options["threads"])
    fabric = Fabric(
        accelerator=options["accelerator"],
        devices=options["devices"],
        num_nodes=options["num_nodes"],
        strategy=_strategy(options),
        precision=options["precision"],
    )
    fabric.launch()
    folder = options["output"] or Path("results") / kind.name
    records = _perform(experiment, fabric, folder, options["checkpoint_every"])
    if not fabric.is_global_zero:
        return
    text = experiment.table(records)
    (folder / "table.md").write_text(text + "\n")
    experiment.plot(records).savefig(folder / "plot.png", dpi=100)
    seconds = sum(record.cpu_seconds for record in records)
    print(f"{text}\n\n{len(records)} runs, {seconds:.0f} s of CPU in all; written to {folder}")


def _perform(
    experiment: Experiment, fabric: Fabric, folder: Path, checkpoint_every: int
) -> list[Record]:
    """Return the records of all runs."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    done = Records(folder / "results.json")
    runs = experiment.runs()
    todo = [run for run in runs if done.find(run) is None]
    fabric.barrier()  # all have read what one of them now adds to
    console = Console(stderr=True)
    with Progress(console=console, disable=not fabric.is_global_zero) as bars:
        overall = bars.add_task(experiment.name, total=len(runs), completed=len(runs) - len(todo))
        for run in todo:
            name = ", ".join(f"{key} {value}" for key, value in run.items())
            trainer = Trainer(fabric, checkpoints, run, checkpoint_every, bars)
            start = time.process_time()
            fabric.seed_everything(run.get("seed", 0), verbose=False)
            scores = experiment.perform(run, trainer)
            seconds = round(trainer.earlier_seconds + time.process_time() - start, 2)
            if fabric.is_global_zero:
                losses = thinned(trainer.losses)
                done.add(Record(run, dict(scores), seconds, machine(fabric.device), losses))
                trainer.remove_checkpoints()
                console.print(
                    f"{name}: {_in_short(scores)}, {seconds:.1f} s of CPU", soft_wrap=True
                )
            bars.advance(overall)
    return [record for run in runs if (record := done.find(run)) is not None]


def _in_short(scores: Scores) -> str:
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _strategy(options: dict[str, Any]) -> str | ModelParallelStrategy:
    """Return Fabric's strategy; that of FSDP2 shards over all processes."""
    if options["strategy"] != "fsdp2":
        return options["strategy"]

    def shard(model: nn.Module, mesh: Any) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        return fully_shard(model, mesh=mesh["data_parallel"])

    return ModelParallelStrategy(
        shard,
        data_parallel_size=options["devices"] * options["num_nodes"],
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )


def _parser(kind: type[Experiment]) -> argparse.ArgumentParser:
    """Return the parser of the settings, and of what every experiment takes."""
    parser = argparse.ArgumentParser(description=(inspect.getdoc(kind) or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small settings, about a minute")
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        types = [hint for hint in get_args(hints[field.name]) if hint not in (type(None), ...)]
        quick = field.metadata["quick"]
        values = [f"default: {_words(field.default)}"]
        values += [] if quick is None else [f"with --quick {_words(quick)}"]
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=types[0] if types else hints[field.name],
            nargs="+" if get_origin(hints[field.name]) is tuple else None,
            choices=field.metadata["choices"] or None,
            help=f"{field.metadata['meaning']} ({', '.join(values)})",
            # What was not given keeps its default, or that of --quick.
            default=argparse.SUPPRESS,
        )
    common = parser.add_argument_group("where it runs (torchrun starts more processes)")
    common.add_argument("--output", type=Path, help=f"folder (default: results/{kind.name})")
    common.add_argument("--accelerator", default="auto", help="cpu, cuda, mps or auto")
    common.add_argument("--devices", type=int, default=1, help="processes on each node")
    common.add_argument("--num-nodes", type=int, default=1)
    common.add_argument("--strategy", default="auto", help="auto, ddp, fsdp2")
    common.add_argument("--precision", help="such as bf16-mixed (default: float32)")
    common.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU (default: 1)")
    common.add_argument(
        "--checkpoint-every", type=int, default=100, help="steps between checkpoints (default: 100)"
    )
    return parser


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
