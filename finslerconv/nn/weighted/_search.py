"""The search for the best density: DIRECT over half-profiles, logged so that it can be resumed."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finslerconv._optional import needs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The paper's ranges for each entry of a half-profile, outermost first.
_PAPER_BOUNDS: dict[int, tuple[tuple[float, float], ...]] = {
    1: (),
    3: ((0.5, 1.5),),
    5: ((0.05, 1.0), (0.5, 1.5)),
    7: ((0.05, 0.5), (0.15, 1.0), (0.25, 1.5)),
}

Bounds = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Evaluation:
    """One candidate of a search.

    Attributes
    ----------
    profile : tuple of float
        Half-profile, outermost tap first.
    value : float
        Mean of the objective over the seeds.
    values : tuple of float
        The objective for each seed.

    Examples
    --------
    >>> from finslerconv.nn import search_density
    >>> found = search_density(
    ...     lambda profile: (profile[0] - 0.7) ** 2,
    ...     kernel_size=3, max_evaluations=12, progress=False,
    ... )
    >>> found.standard.profile, found.best.value < found.standard.value
    ((1.0,), True)
    """

    profile: tuple[float, ...]
    value: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class DensitySearch:
    """What :func:`search_density` found, and its arguments.

    Attributes
    ----------
    kernel_size : int
    bounds : tuple of (float, float)
    seeds : tuple of int
    best : Evaluation
        The candidate of the least value, the standard convolution included.
    standard : Evaluation
        The standard convolution, all ones, evaluated first and under the same seeds.
    evaluations : tuple of Evaluation
        All candidates in the order of the search, without ``standard``.
    message : str
        Why the search ended.

    Examples
    --------
    >>> from finslerconv.nn import search_density
    >>> found = search_density(
    ...     lambda profile: (profile[0] - 0.7) ** 2,
    ...     kernel_size=3, max_evaluations=12, progress=False,
    ... )
    >>> abs(found.profile[0] - 0.7) < 0.1, len(found.evaluations) <= 12
    (True, True)
    """

    kernel_size: int
    bounds: tuple[tuple[float, float], ...]
    seeds: tuple[int, ...]
    best: Evaluation
    standard: Evaluation
    evaluations: tuple[Evaluation, ...]
    message: str

    @property
    def profile(self) -> list[float]:
        """The best half-profile, ready for ``density=``."""
        return list(self.best.profile)

    def __str__(self) -> str:
        """Return what was found in two lines, without the candidates."""
        profile = ", ".join(f"{entry:.4g}" for entry in self.best.profile)
        return (
            f"half-profile [{profile}]: {self.best.value:.4g}; the standard convolution: "
            f"{self.standard.value:.4g}\n"
            f"{len(self.evaluations)} candidates, {len(self.seeds)} seed(s); {self.message}"
        )


class _BudgetSpentError(Exception): ...


def paper_bounds(kernel_size: int) -> tuple[tuple[float, float], ...]:
    """Return the paper's range for each entry of a half-profile, outermost first.

    Parameters
    ----------
    kernel_size : int
        1, 3, 5 or 7.

    Raises
    ------
    ValueError
        For another size, to which the paper (Cammarasana and Patanè, arXiv 2505.24558) gives none.

    Examples
    --------
    >>> paper_bounds(5)
    ((0.05, 1.0), (0.5, 1.5))
    """
    if kernel_size not in _PAPER_BOUNDS:
        raise ValueError(
            f"the paper gives no bounds for kernel_size {kernel_size} (it does for "
            f"{list(_PAPER_BOUNDS)}); give bounds, one pair (low, high) for each of its "
            f"{kernel_size // 2} free taps, outermost first"
        )
    return _PAPER_BOUNDS[kernel_size]


def search_density(
    objective: Callable[[list[float]], float],
    kernel_size: int,
    bounds: Bounds | None = None,
    *,
    seeds: Sequence[int] = (0,),
    max_evaluations: int = 50,
    log: str | Path | None = None,
    progress: bool = True,
) -> DensitySearch:
    """Search the half-profile for which an objective is least, by DIRECT-L.

    DIRECT is deterministic and uses no gradient: it divides the box of profiles where the objective
    is small. Each candidate, the standard convolution first, is evaluated under the same seeds.

    Parameters
    ----------
    objective : callable
        From a half-profile (a list of floats, outermost tap first, as for ``density=``) to the
        number to be made small, such as the validation loss after training. The generators of
        Python, NumPy and PyTorch are seeded before each call and put back after it. ``math.inf``
        marks a candidate that failed.
    kernel_size : int
        Odd number of taps along each axis.
    bounds : sequence of (float, float), optional
        The range of each entry, outermost first; by default :func:`paper_bounds`.
    seeds : sequence of int
        The objective's mean over these is what is compared.
    max_evaluations : int
        How many candidates to evaluate, besides the standard convolution.
    log : path, optional
        A file of JSON lines to which each evaluation is appended. Those that it holds are not
        computed again: a search that was interrupted goes on, with the same result.
    progress : bool
        Whether to show how far it is.

    Returns
    -------
    DensitySearch
        The best candidate, the standard convolution's value, and all evaluations;
        :func:`plot_density_search` draws it.

    Raises
    ------
    ValueError
        If an argument does not fit, the log is of another search, or the objective returns NaN.

    Notes
    -----
    Source: Cammarasana and Patanè, arXiv 2505.24527; the search is
    :func:`scipy.optimize.direct` with ``locally_biased=True``.

    Examples
    --------
    >>> found = search_density(
    ...     lambda p: (p[0] - 0.7) ** 2, kernel_size=3, max_evaluations=30, progress=False
    ... )
    >>> round(found.profile[0], 2)
    0.7
    """
    box = _checked_bounds(kernel_size, bounds)
    seeds = tuple(int(s) for s in seeds)
    if not seeds:
        raise ValueError("seeds must hold at least one seed; got none")
    if max_evaluations < 1:
        raise ValueError(f"max_evaluations must be at least 1; got {max_evaluations}")
    header = {"kernel_size": kernel_size, "bounds": [list(b) for b in box], "seeds": list(seeds)}
    path = None if log is None else Path(log)
    known = {} if path is None else _read_log(path, header)
    done: list[Evaluation] = []  # without the standard convolution

    def evaluate(profile: tuple[float, ...]) -> Evaluation:
        if profile not in known:
            values = tuple(_seeded(objective, profile, seed) for seed in seeds)
            known[profile] = _evaluation(profile, values)
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps({"profile": profile, "values": values}) + "\n")
        return known[profile]

    # SciPy's optimisers take a while to import, and few programs search.
    from scipy.optimize import direct

    standard = evaluate((1.0,) * len(box))

    def candidate(x: np.ndarray) -> float:
        if len(done) >= max_evaluations:
            raise _BudgetSpentError
        done.append(evaluate(tuple(float(value) for value in x)))
        if progress:
            best = min(each.value for each in done)
            how_far = f"{len(done)} of {max_evaluations}"
            print(f"\rdensity search, best {best:.6g} ({how_far})", end="", flush=True)
        return done[-1].value

    # SciPy overshoots its own limits, which are therefore out of reach.
    limit = 10 * max_evaluations + 1000
    try:
        found = direct(candidate, box, locally_biased=True, maxfun=limit, maxiter=limit)
        message = str(found.message)
    except (_BudgetSpentError, SystemError) as error:
        # Before version 1.15, SciPy raises a SystemError for what a function raises.
        raised = error.__cause__ if isinstance(error, SystemError) else error
        if not isinstance(raised, _BudgetSpentError):
            raise raised or error from None
        message = f"all {max_evaluations} evaluations are spent"
    finally:
        if progress:
            print()
    return DensitySearch(
        kernel_size=kernel_size,
        bounds=box,
        seeds=seeds,
        best=min([standard, *done], key=lambda e: e.value),
        standard=standard,
        evaluations=tuple(done),
        message=message,
    )


def plot_density_search(result: DensitySearch) -> "Figure":
    """Draw the progress of a search, and the value against each entry of the half-profile.

    The figure belongs to no window.

    Examples
    --------
    >>> from finslerconv.nn import plot_density_search, search_density
    >>> found = search_density(
    ...     lambda profile: (profile[0] - 0.7) ** 2,
    ...     kernel_size=3, max_evaluations=12, progress=False,
    ... )
    >>> figure = plot_density_search(found)
    """
    with needs("plot", "plot_density_search"):
        from matplotlib.figure import Figure

    n = len(result.bounds)
    figure = Figure(figsize=(4 * (n + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, n + 1, sharey=True)
    values = np.array([e.value for e in result.evaluations])
    order = np.arange(1, len(values) + 1)
    axes[0].plot(order, values, ".", color="0.6", label="candidate")
    best = np.minimum.accumulate(values)
    axes[0].step(order, best, where="post", color="C0", label="best so far")
    axes[0].set(xlabel="evaluation", ylabel="objective", title=f"kernel {result.kernel_size}")
    for tap in range(n):
        entries = [e.profile[tap] for e in result.evaluations]
        axes[tap + 1].plot(entries, values, ".", color="0.6")
        axes[tap + 1].plot(result.best.profile[tap], result.best.value, "*", color="C1", ms=12)
        axes[tap + 1].set(xlabel=f"profile[{tap}]", title="outermost tap" if tap == 0 else "")
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        axes[0].set_yscale("log")
    for axis in axes:
        axis.axhline(result.standard.value, color="k", lw=0.8, ls="--", label="standard (all 1)")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def _checked_bounds(kernel_size: int, bounds: Bounds | None) -> tuple[tuple[float, float], ...]:
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size must be odd and at least 3 to have a half-profile; got {kernel_size}"
        )
    if bounds is None:
        return paper_bounds(kernel_size)
    box = tuple((float(low), float(high)) for low, high in bounds)
    if len(box) != kernel_size // 2:
        raise ValueError(
            f"bounds must hold {kernel_size // 2} pairs (low, high) for kernel_size {kernel_size}, "
            f"outermost tap first; got {len(box)}"
        )
    for tap, (low, high) in enumerate(box):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"bounds[{tap}] must be finite with low < high; got ({low}, {high})")
    return box


def _seeded(
    objective: Callable[[list[float]], float], profile: tuple[float, ...], seed: int
) -> float:
    """Evaluate an objective with all generators seeded; their states are restored."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's generator
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            value = float(objective(list(profile)))
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
    if math.isnan(value):
        raise ValueError(
            f"objective returned NaN for profile {list(profile)} with seed {seed}; return "
            "math.inf for a candidate that failed"
        )
    return value


def _read_log(path: Path, header: dict[str, Any]) -> dict[tuple[float, ...], Evaluation]:
    """Return the evaluations in the log, which is begun if there is none."""
    begin = json.dumps(header)
    text = path.read_text() if path.exists() else ""
    # A last line without its end was cut off as it was written: only that evaluation is lost.
    first, *lines = text[: text.rfind("\n") + 1].splitlines() or [begin]
    if json.loads(first) != header:
        raise ValueError(
            f"log {str(path)!r} is of another search: it began with {first}, this one with "
            f"{begin}; give another file"
        )
    kept = "\n".join([first, *lines]) + "\n"
    if kept != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(kept)
    records = map(json.loads, lines)
    return {tuple(r["profile"]): _evaluation(r["profile"], r["values"]) for r in records}


def _evaluation(profile: Sequence[float], values: Sequence[float]) -> Evaluation:
    return Evaluation(tuple(profile), float(np.mean(values)), tuple(values))
