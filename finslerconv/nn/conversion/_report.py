"""What a conversion did to a model, convolution by convolution, and what it costs."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from finslerconv._models import named
from finslerconv.nn._adaptive import AdaptiveConv
from finslerconv.nn.conversion._aggregations import aggregated_channels

# Columns of the printed report, as in a terminal.
_WIDTH = 80

# Multiply-adds of an interpolation: the pixels at the corners of a cell, each times its share.
_CORNERS = {1: 2, 2: 4, 3: 8}


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
        The output's size along its axes, where an example was run.
    seconds : float or None
        Of one pass forward, where an example was run: the quickest of several.

    Examples
    --------
    >>> from torch import nn
    >>> from finslerconv.nn import convert
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> converted, report = convert(model, "metric")
    >>> report.converted[0].before.parameters
    224
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

    Examples
    --------
    >>> from torch import nn
    >>> from finslerconv.nn import convert
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> converted, report = convert(model, "metric")
    >>> row = report.converted[0]
    >>> row.name, row.after.parameters - row.before.parameters
    ('0', 140)
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

    Examples
    --------
    >>> from torch import nn
    >>> from finslerconv.nn import convert
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> converted, report = convert(model, "metric")
    >>> report.left_alone[0].name, report.left_alone[0].kind
    ('2', 'Conv2d(8, 4, 1x1)')
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did to a model: every convolution is in one of its two lists.

    ``print(report)`` shows it as tables.

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

    Examples
    --------
    >>> from torch import nn
    >>> from finslerconv.nn import convert
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> converted, report = convert(model, "metric")
    >>> report.parameters_before, report.parameters_after
    (260, 400)
    >>> [row.reason for row in report.left_alone]
    ['its single tap has no support to shape']
    """

    converted: tuple[Converted, ...]
    left_alone: tuple[LeftAlone, ...]
    selected: str
    parameters_before: int
    parameters_after: int
    changes: tuple[str, ...] = ()
    seconds_before: float | None = None
    seconds_after: float | None = None

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

    def __str__(self) -> str:
        parts = []
        if self.converted:
            timed = any(row.after.seconds is not None for row in self.converted)
            head = ["name", "convolution", "parameters", "multiply-adds\nper pixel"]
            head += ["output", "time / ms"] * timed
            rows = [_cells(row, timed) for row in self.converted]
            parts.append(f"Converted convolutions\n\n{_table(head, rows, n_text=2)}")
        if self.left_alone:
            rows = [[named(row.name), row.kind, row.reason] for row in self.left_alone]
            table = _table(["name", "what it is", "why"], rows, n_text=3)
            parts.append(f"Left alone (selected: {self.selected})\n\n{table}")
        return "\n\n".join([*parts, self.summary()])

    def __rich__(self) -> str:
        return str(self)


def _cells(row: Converted, timed: bool) -> list[str]:
    """Return the cells of one converted convolution, some of several lines."""
    old, new = row.before, row.after
    growth = "new"
    if old.multiply_adds:
        growth = f"{new.multiply_adds / old.multiply_adds - 1:+.1%}"
    # If the arguments stay, only the class of the new layer is shown.
    name, _, arguments = row.new.partition("(")
    changed = name if row.old.partition("(")[2] == arguments else row.new
    cells = [
        "\n".join((named(row.name), *(f"= {name}" for name in row.also))),
        "\n".join((row.old, f"-> {changed}", *row.notes)),
        f"{new.parameters:,}\n({new.parameters - old.parameters:+,})",
        f"{_short(new.multiply_adds)}\n({growth})",
    ]
    if timed:
        size, times = new.output_size, (_ms(old.seconds), _ms(new.seconds))
        cells.append("not run" if size is None else " x ".join(map(str, size)))
        cells.append(times[0] if times[0] == times[1] else "\n-> ".join(times))
    return cells


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], n_text: int) -> str:
    """Return a table of at most 80 columns: the first ``n_text`` columns are text and wrapped."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
    # The text columns share the rest; one that needs less leaves more to the others.
    room = _WIDTH - 1 - 2 * (len(head) - 1) - sum(widths[n_text:])
    for k, i in enumerate(sorted(range(n_text), key=widths.__getitem__)):
        widths[i] = min(widths[i], room // (n_text - k))
        room -= widths[i]

    def shown(cells: Sequence[str]) -> list[str]:
        wrapped = [
            [part for line in cell.split("\n") for part in textwrap.wrap(line, width) or [""]]
            for cell, width in zip(cells, widths, strict=True)
        ]
        return [
            " "
            + "  ".join(
                (f"{text:<{width}}" if i < n_text else f"{text:>{width}}")
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in zip_longest(*wrapped, fillvalue="")
        ]

    rule = " " + "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*shown(head), rule, *(line for row in rows for line in shown(row))])


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
    samples = aggregated_channels(module)
    if samples is not None:
        linear = (m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
        total = (_CORNERS[2] + 1) * samples + sum(linear)
    weight = module._parameters.get("weight")
    if own is not module and isinstance(weight, nn.Parameter) and weight.ndim == 4:
        # A deformable layer that is no convolution of PyTorch.
        channels = weight.shape[1] * getattr(module, "groups", 1)
        total = weight.numel() + _CORNERS[2] * channels * weight.shape[2:].numel()
    for conv in convolutions:
        taps = torch.Size(conv.kernel_size).numel()
        mine = conv.in_channels * conv.out_channels // conv.groups * taps
        if isinstance(conv, _ConvTransposeNd):
            mine //= torch.Size(conv.stride).numel()
        if isinstance(conv, AdaptiveConv):
            samples = conv.in_channels * taps
            mine += (_CORNERS[conv.dims] + (conv.modulation_conv is not None)) * samples
        elif own is not None and own is not conv and isinstance(own, AdaptiveConv):
            # A head runs over the pixels of the input, which may be more than those of the output.
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


def _short(count: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"
