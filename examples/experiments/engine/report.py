"""Tables in Markdown and plots of records."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from matplotlib.figure import Figure

from engine.records import Record, Run


@dataclass(frozen=True)
class Column:
    """A column of scores, each cell the mean ± the standard deviation over a row's records.

    ``where`` names the settings of the records that count; without ``spread`` it is the mean alone.
    """

    title: str
    key: str
    form: str = ".2f"
    where: Run = field(default_factory=dict)
    spread: bool = True

    def cell(self, group: Sequence[Record], records: Sequence[Record]) -> str:
        """Return the cell of a row's records."""
        values = [record[self.key] for record in group if record.matches(self.where)]
        return _spread(values if self.spread else [statistics.mean(values)], self.form)


@dataclass(frozen=True)
class Difference:
    """A column of differences from the records that differ in the settings ``standard`` alone."""

    title: str
    key: str
    standard: Run
    form: str = "+.2f"

    def cell(self, group: Sequence[Record], records: Sequence[Record]) -> str:
        """Return the cell of a row's records; that of the standard itself is empty."""
        if group[0].matches(self.standard):
            return ""
        differences = []
        for record in group:
            run = {**record.run, **self.standard}
            other = next(each for each in records if each.run == run)
            differences.append(record[self.key] - other[self.key])
        return _spread(differences, self.form)


@dataclass(frozen=True)
class Known:
    """A column of figures that do not come from the records, such as a paper's."""

    title: str
    figure: Callable[[Run], str]

    def cell(self, group: Sequence[Record], records: Sequence[Record]) -> str:
        """Return the figure of a row."""
        return self.figure(group[0].run)


def with_best_rate(records: Sequence[Record], key: str, best: Callable[..., float]) -> list[Record]:
    """Return the records of the rate that is best for the mean of a score over the seeds.

    ``best`` is min or max. Every combination of the other settings has a rate of its own, which is
    a score of its records from then on.
    """
    groups: dict[str, dict[float, list[Record]]] = {}
    for record in records:
        others = {name: value for name, value in record.run.items() if name not in ("rate", "seed")}
        rates = groups.setdefault(json.dumps(others, sort_keys=True), {})
        rates.setdefault(record["rate"], []).append(record)
    chosen = []
    for rates in groups.values():
        means = {
            rate: statistics.mean(record[key] for record in group) for rate, group in rates.items()
        }
        rate = best(means, key=means.__getitem__)
        for record in rates[rate]:
            run = {name: value for name, value in record.run.items() if name != "rate"}
            chosen.append(replace(record, run=run, scores={**record.scores, "rate": rate}))
    return chosen


def summary(
    records: Sequence[Record], by: Sequence[str], columns: Sequence[Column | Difference | Known]
) -> str:
    """Return a table with a row for each combination of the settings ``by``."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(str(record[key]) for key in by), []).append(record)
    rows = [
        [*names, *(column.cell(group, records) for column in columns)]
        for names, group in groups.items()
    ]
    return markdown([*by, *(column.title for column in columns)], rows)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot_runs(records: Sequence[Record], panels: str, along: str, key: str, label: str) -> Figure:
    """Draw a panel for each value of a setting: a line for each seed, and the means."""
    names = list(dict.fromkeys(record[panels] for record in records))
    places = list(dict.fromkeys(record[along] for record in records))
    seeds = sorted({record["seed"] for record in records})
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        here = [record for record in records if record[panels] == name]
        for seed in seeds:
            line = {record[along]: record[key] for record in here if record["seed"] == seed}
            heights = [line[place] for place in places]
            axis.plot(range(len(places)), heights, "o-", color="0.75", ms=4, lw=1)
        means = [
            statistics.mean(record[key] for record in here if record[along] == place)
            for place in places
        ]
        axis.plot(range(len(places)), means, "_", color="C0", ms=28, mew=2.5, label="mean")
        axis.margins(x=0.2)
        ticks = [str(place).replace(" ", "\n") for place in places]
        axis.set_xticks(range(len(places)), ticks, fontsize=9)
        axis.set(title=name, ylabel=label)
    axes[0].plot([], [], "o-", color="0.75", ms=4, lw=1, label="one seed")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(statistics.stdev(values), form.lstrip('+'))}"
