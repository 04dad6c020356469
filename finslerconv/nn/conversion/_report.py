"""What a conversion did to a model, convolution by convolution, and what it costs."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from finslerconv.nn._adaptive import AdaptiveConv2d

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

# Columns of the printed report: a terminal's, and as many as a page shows.
_WIDTH = 80

# Bilinear interpolation: four pixels, each times its share.
_INTERPOLATION = 4


@dataclass(frozen=True)
class Cost:
    """What one convolution needs.

    Attributes
    ----------
    parameters : int
        Of the layer and all that is in it.
    multiply_adds : int
        For one output pixel: the kernel, the convolutions inside, and the interpolation of the
        samples; not the few operations per sample that make a position.
    output_size : tuple of int, or None
        Rows and columns of the output, where an example was run.
    seconds : float or None
        Of one pass forward, where an example was run: the quickest of several.
    """

    parameters: int
    multiply_adds: int
    output_size: tuple[int, ...] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Converted:
    """One convolution that was replaced.

    Attributes
    ----------
    name : str
        Its dotted name; the first if it is shared.
    old, new : str
        What it was and what it is.
    before, after : Cost
    also : tuple of str
        The other names of a shared convolution.
    notes : tuple of str
        What else there is to know.
    """

    name: str
    old: str
    new: str
    before: Cost
    after: Cost
    also: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftAlone:
    """One convolution that was not replaced, and why.

    Attributes
    ----------
    name : str
    kind : str
        What it is.
    reason : str
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did to a model: every convolution is in one of its two lists.

    Shown as a table by ``print(report)``, and in colour by rich (``rich.print(report)``).

    Attributes
    ----------
    converted : tuple of Converted
    left_alone : tuple of LeftAlone
    selected : str
        Which convolutions were meant.
    parameters_before, parameters_after : int
        Of the whole model.
    changes : tuple of str
        What was changed in the model besides.
    seconds_before, seconds_after : float or None
        Of one pass of the whole model forward, where an example was given.
    """

    converted: tuple[Converted, ...]
    left_alone: tuple[LeftAlone, ...]
    selected: str
    parameters_before: int
    parameters_after: int
    changes: tuple[str, ...] = ()
    seconds_before: float | None = None
    seconds_after: float | None = None

    def table(self) -> "Table":
        """Return the table of the convolutions that were replaced, for rich."""
        timed = any(row.after.seconds is not None for row in self.converted)
        table = _narrow_table("Converted convolutions")
        table.add_column("name", overflow="fold")
        table.add_column("convolution", overflow="fold")
        for heading in ("parameters", "multiply-adds\nper pixel"):
            table.add_column(heading, justify="right", no_wrap=True)
        if timed:
            for heading in ("output", "time / ms"):
                table.add_column(heading, justify="right", no_wrap=True)
        for row in self.converted:
            cells = [
                "\n".join((named(row.name), *(f"= {name}" for name in row.also))),
                "\n".join((row.old, f"-> {_changed(row.old, row.new)}", *row.notes)),
                f"{row.after.parameters:,}\n({row.after.parameters - row.before.parameters:+,})",
                f"{_short(row.after.multiply_adds)}\n({_more(row.before, row.after)})",
            ]
            if timed:
                size = row.after.output_size
                cells.append("not run" if size is None else " x ".join(map(str, size)))
                cells.append(_arrow(_ms(row.before.seconds), _ms(row.after.seconds)))
            table.add_row(*cells)
        return table

    def left_alone_table(self) -> "Table":
        """Return the table of the convolutions that were left alone, for rich."""
        table = _narrow_table(f"Left alone (selected: {self.selected})")
        for heading in ("name", "what it is", "why"):
            table.add_column(heading, overflow="fold")
        for row in self.left_alone:
            table.add_row(named(row.name), row.kind, row.reason)
        return table

    def summary(self) -> str:
        """Return in a few lines how many were converted, and what it costs."""
        more = self.parameters_after - self.parameters_before
        share = f" ({more / self.parameters_before:+.2%})" if self.parameters_before else ""
        lines = [
            f"{len(self.converted)} converted, {len(self.left_alone)} left alone",
            f"parameters: {self.parameters_before:,} -> {self.parameters_after:,}{share}",
        ]
        if self.seconds_before is not None and self.seconds_after is not None:
            lines.append(
                f"forward: {_ms(self.seconds_before)} ms -> {_ms(self.seconds_after)} ms "
                f"(x {self.seconds_after / self.seconds_before:.2f})"
            )
        return "\n".join([*(f"also: {change}" for change in self.changes), *lines])

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        parts: list[Table | Text] = [self.table()] if self.converted else []
        if self.left_alone:
            parts.append(self.left_alone_table())
        return Group(*parts, Text(self.summary()))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=_WIDTH, color_system=None, force_terminal=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().split("\n"))


def _narrow_table(title: str) -> "Table":
    """Return an empty table whose lines cost no room: those of a report are read at 80 columns."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )


def named(name: str) -> str:
    """Return a module's name as it is shown; the model itself has none."""
    return name or "(the model itself)"


def described(module: nn.Module) -> str:
    """Return a convolution's class and arguments in short: ``Conv2d(64, 128, 3x3, stride 2)``."""
    name = type(module).__name__.removeprefix("Parametrized")
    if not isinstance(module, _ConvNd):
        return name
    parts = [str(module.in_channels), str(module.out_channels), _by(module.kernel_size)]
    for argument in ("stride", "dilation"):
        value = getattr(module, argument)
        if set(value) != {1}:
            parts.append(
                f"{argument} {_by(value)}" if len(set(value)) > 1 else f"{argument} {value[0]}"
            )
    if module.groups != 1:
        parts.append(f"groups {module.groups}")
    return f"{name}({', '.join(parts)})"


def cost(module: nn.Module) -> Cost:
    """Return what a layer needs; no example is run."""
    convolutions = [m for m in module.modules() if isinstance(m, _ConvNd)]
    own = convolutions[0] if convolutions else None
    total = 0
    for conv in convolutions:
        taps = torch.Size(conv.kernel_size).numel()
        mine = conv.in_channels * conv.out_channels // conv.groups * taps
        if isinstance(conv, _ConvTransposeNd):
            mine //= torch.Size(conv.stride).numel()
        if isinstance(conv, AdaptiveConv2d):
            samples = conv.in_channels * taps
            mine += (_INTERPOLATION + (conv.modulation_conv is not None)) * samples
        elif own is not None and own is not conv and isinstance(own, AdaptiveConv2d):
            # A head that computes over the input does so for more pixels than there are outputs.
            mine = mine * torch.Size(own.stride).numel() // torch.Size(conv.stride).numel()
        total += mine
    return Cost(count_parameters(module), total)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, those that are shared once."""
    return sum(
        p.numel() for p in module.parameters() if not isinstance(p, nn.UninitializedParameter)
    )


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before}\n-> {after}"


def _changed(old: str, new: str) -> str:
    """Return what is new: the class alone, where the arguments stay."""
    name, _, arguments = new.partition("(")
    return name if old.partition("(")[2] == arguments else new


def _more(before: Cost, after: Cost) -> str:
    if not before.multiply_adds:
        return "new"
    return f"{after.multiply_adds / before.multiply_adds - 1:+.1%}"


def _short(count: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"
