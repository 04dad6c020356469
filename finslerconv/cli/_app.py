"""The commands and their options.

PyTorch, matplotlib and scikit-image are imported inside the commands: ``--help`` is quick.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from finslerconv import __version__
from finslerconv._optional import needs
from finslerconv.cli._options import SMALLEST, MetricOptions
from finslerconv.cli._records import STDOUT, Record, write_csv, write_json

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from finslerconv.cli.filters import GeodesicFilter, Result

DEFAULT = MetricOptions()

app = typer.Typer(
    help="Convolutions from metrics: a kernel's positions are samples of a unit ball.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ImageArgument = Annotated[
    Path | None,
    typer.Argument(
        help="A photograph, any file that Pillow reads; without it, a camera man.",
        show_default=False,
    ),
]
MaxSize = Annotated[
    int,
    typer.Option(
        min=SMALLEST, help="Reduce larger photographs to this many pixels on their longer side."
    ),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The figure to write.")]
Json = Annotated[
    Path | None,
    typer.Option(help="Write the numbers here as JSON; - for standard output.", show_default=False),
]
Csv = Annotated[
    Path | None,
    typer.Option(help="Write the numbers here as CSV; - for standard output.", show_default=False),
]

# Within these bounds every metric of a picture is positive in float32.
_radius = functools.partial(
    typer.Option, min=0.1, max=100, help="Radius of the unit balls in flat regions, in pixels."
)
_anisotropy = functools.partial(
    typer.Option, min=0, max=300, help="Stretch of the balls at the strongest edge."
)
_smoothing = functools.partial(
    typer.Option, min=0.3, max=100, help="Scale of the derivatives that find edges, in pixels."
)
Radius = Annotated[float, _radius()]
Anisotropy = Annotated[float, _anisotropy()]
Smoothing = Annotated[float, _smoothing()]
Tau = Annotated[
    float, typer.Option(min=-0.95, max=0.95, help="Strength of the drift along the edges.")
]

#: How --help shows defaults that depend on the picture.
_CHOSEN = "from the noisy picture"


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command, whose errors are one line."""

    @app.command(name=function.__name__)
    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        for name, value in options.items():
            # The ranges of typer below 0.29 let NaN pass.
            if isinstance(value, float) and math.isnan(value):
                fail(f"--{name.replace('_', '-')}: expected a number, got nan")
        try:
            with needs("cli", f"finslerconv {function.__name__}"):
                function(*args, **options)
        except ValueError as error:
            fail(str(error))
        except (MemoryError, RuntimeError) as error:
            # PyTorch says so by a RuntimeError.
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            fail("the picture needs more memory than there is; reduce it by --max-size")

    return function


def fail(message: str) -> NoReturn:
    """Say in one line on standard error what is wrong, and leave with exit code 2."""
    typer.echo("finslerconv: error: " + " ".join(message.split()), err=True)
    raise typer.Exit(2)


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"finslerconv {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    """Convolutions from metrics: a kernel's positions are samples of a unit ball."""


@_command
def denoise(
    image: ImageArgument = None,
    add_noise: Annotated[
        bool,
        typer.Option(
            "--add-noise",
            help="Add noise to a clean photograph, and compare filters by what they leave of it. "
            "So it is without IMAGE.",
        ),
    ] = False,
    sigma: Annotated[
        float | None,
        typer.Option(
            min=1e-4,
            max=10,
            show_default="estimated; 0.1 with --add-noise",
            help="Standard deviation of the noise; the picture is in [0, 1].",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise that is added.")] = 0,
    kernel_size: Annotated[
        int,
        typer.Option(min=3, max=101, help="Boxes and balls have this many samples squared; odd."),
    ] = 11,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            show_default="finslerconv-denoised.png; finslerconv-denoise.png with --add-noise",
            help="The filtered picture to write; with --add-noise the figure.",
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            min=SMALLEST,
            show_default="none; 512 with --add-noise",
            help="Reduce larger photographs to this many pixels on their longer side.",
        ),
    ] = None,
    radius: Annotated[float | None, _radius(show_default=_CHOSEN)] = None,
    anisotropy: Annotated[float | None, _anisotropy(show_default=_CHOSEN)] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            min=-0.95,
            max=0.95,
            show_default=f"0; {DEFAULT.tau:g} with --add-noise",
            help="Strength of the drift along the edges.",
        ),
    ] = None,
    smoothing: Annotated[float | None, _smoothing(show_default=_CHOSEN)] = None,
    device: Device = "cpu",
) -> None:
    """Denoise a photograph by averaging over the unit balls of its metric.

    The noise is estimated from the picture, the balls are chosen for it, and the filtered picture
    is written at full size, with 8 bits a channel.

    With --add-noise, or without IMAGE, it is a demonstration: noise is added, and removed in
    several ways. Boxes and balls take the mean of as many samples. They differ in the metric whose
    ball they sample: a square, a larger square, a disc, ellipses along the edges, and these off
    centre. The metrics are computed from the noisy picture. Beside them are the usual filters:
    the best of the small boxes, a Gaussian, total variation and non-local means.
    """
    _require(kernel_size % 2 == 1, "--kernel-size", "an odd number", kernel_size)
    given = {"radius": radius, "anisotropy": anisotropy}
    free = [name for name, value in given.items() if value is None]
    if image is not None and not add_noise:
        target = output or Path("finslerconv-denoised.png")
        _check_picture(target)
        pixels = _read(image, max_size or sys.maxsize)
        where = _device(device)
        start = functools.partial(
            MetricOptions.for_noise, kernel_size=kernel_size, radius=radius, anisotropy=anisotropy,
            tau=tau or 0.0, smoothing=smoothing,
        )  # fmt: skip
        _denoise_picture(pixels, sigma, kernel_size, start, free, target, where)
        return
    sigma, tau = 0.1 if sigma is None else sigma, DEFAULT.tau if tau is None else tau
    output = output or Path("finslerconv-denoise.png")
    _check_files(output)
    pixels = _read(image, max_size or 512)

    import torch

    from finslerconv.cli._figures import denoise_figure
    from finslerconv.cli.filters import (
        Result,
        ball_filters,
        baselines,
        chosen,
        estimated_noise,
        with_noise,
    )

    where = _device(device)
    noisy = with_noise(pixels, sigma, seed)
    noise = estimated_noise(noisy)
    options = MetricOptions.for_noise(noise, kernel_size, radius, anisotropy, tau, smoothing)
    results = [Result.of("noisy", "no filter", noisy, pixels)]
    with _busy("The usual filters"):
        results += baselines(noisy, pixels, noise)
    with torch.inference_mode():
        tensor = torch.as_tensor(noisy, device=where)[None]
        with _progress(6 * len(free) * kernel_size**2, "Choosing the balls") as advance:
            options = chosen(tensor, noise, kernel_size, options, free, advance)
        metric = options.of(tensor)
        filters = ball_filters(metric, kernel_size, options.radius)
        with _progress(len(filters) * kernel_size**2) as advance:
            for each in filters:
                picture = each(tensor, advance)[0].cpu().numpy()
                results.append(Result.of(each.name, each.samples, picture, pixels))
        figure = denoise_figure(results, pixels, metric, cast("GeodesicFilter", filters[-1]))
    _print_scores(results, sigma, noise, options)
    _save(figure, output)


def _denoise_picture(
    pixels: Any,
    sigma: float | None,
    kernel_size: int,
    start: Callable[[float], MetricOptions],
    free: Sequence[str],
    output: Path,
    device: "torch.device",
) -> None:
    """Filter a picture that is noisy, and write it."""
    import torch

    from finslerconv.cli._picture import write_picture
    from finslerconv.cli.filters import chosen, estimated_noise, mean_over_balls, middle

    noise = estimated_noise(pixels) if sigma is None else sigma
    with torch.inference_mode():
        tensor = torch.as_tensor(pixels, device=device)[None]
        options = start(noise)
        if noise > 0:
            with _progress(6 * len(free) * kernel_size**2, "Choosing the balls") as advance:
                options = chosen(middle(tensor), noise, kernel_size, options, free, advance)
        with _progress(kernel_size**2) as advance:
            metric = options.of(tensor)
            balls = metric if options.tau else metric.symmetrize()
            filtered = mean_over_balls(balls, kernel_size)(tensor, advance)
    how = "estimated" if sigma is None else "as told"
    typer.echo(f"Noise of standard deviation {noise:.3g}, {how}")
    _print_balls(options)
    try:
        write_picture(filtered[0].cpu().numpy(), output)
    except OSError as error:
        fail(f"--output: cannot write {output} ({error.strerror or error})")
    height, width = pixels.shape[1:]
    typer.echo(f"Wrote {output}, {height} x {width}")


@_command
def balls(
    image: ImageArgument = None,
    spacing: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pixels between the balls; without it, about 20 balls on the longer side."
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0.01, max=100, help="Draw the balls this many times as large.")
    ] = 1.5,
    colour_by: Annotated[
        Literal["anisotropy", "asymmetry", "none"],
        typer.Option(
            help="What the colour of the balls tells. The asymmetry is that of tau wherever the "
            "picture has a gradient."
        ),
    ] = "anisotropy",
    output: Output = Path("finslerconv-balls.png"),
    max_size: MaxSize = 512,
    radius: Radius = DEFAULT.radius,
    anisotropy: Anisotropy = DEFAULT.anisotropy,
    tau: Tau = DEFAULT.tau,
    smoothing: Smoothing = DEFAULT.smoothing,
    device: Device = "cpu",
) -> None:
    """Draw the unit balls of a photograph's metric over it."""
    options = MetricOptions(radius, anisotropy, tau, smoothing)
    _check_files(output)
    pixels = _read(image, max_size)

    import torch

    from finslerconv.cli._figures import balls_figure

    target = _device(device)
    with _busy("Drawing the balls"), torch.inference_mode():
        metric = options.of(torch.as_tensor(pixels, device=target)[None])
        figure = balls_figure(
            pixels, metric, spacing, scale, None if colour_by == "none" else colour_by
        )
    _save(figure, output)


@_command
def path(
    image: ImageArgument = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="The pixel to start from, ROW,COLUMN; unless given, on an edge."
        ),
    ] = None,
    end: Annotated[
        list[str] | None,
        typer.Option("--to", help="The pixel to go to, ROW,COLUMN; may be given several times."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            help="Write the paths here as JSON, with their coordinates and lengths; - for standard "
            "output.",
            show_default=False,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            help="Write the coordinates here as CSV, a row for each point; - for standard output.",
            show_default=False,
        ),
    ] = None,
    output: Output = Path("finslerconv-path.png"),
    max_size: MaxSize = 512,
    radius: Radius = DEFAULT.radius,
    # Less than the filters', so that the metric of a pixel also holds at its neighbours.
    anisotropy: Anisotropy = 8.0,
    tau: Tau = DEFAULT.tau,
    smoothing: Smoothing = DEFAULT.smoothing,
    device: Device = "cpu",
) -> None:
    """Find the shortest paths from a pixel to others, there and back, which follow edges.

    Along an edge the unit balls of the picture's metric are long, so that a step there is cheap;
    the drift makes it cheaper one way than the other. Pixels are those of the picture after
    --max-size has reduced it.
    """
    options = MetricOptions(radius, anisotropy, tau, smoothing)
    _check_files(output, json, csv)
    pixels = _read(image, max_size)
    _require((start is None) == (not end), "--from, --to", "both or neither", "one of them")

    import torch

    from finslerconv.cli._path import coordinates, default_ends, journey, path_figure

    target = _device(device)
    say = _speaker(json, csv)
    with _busy("Following the fronts"), torch.inference_mode():
        metric = options.of(torch.as_tensor(pixels, device=target)[None])
        if start is None or not end:
            first, *ends = default_ends(metric)
        else:
            height, width = pixels.shape[1:]
            first = _pixel("--from", start, height, width, image)
            ends = [_pixel("--to", each, height, width, image) for each in end]
        _require(first not in ends, "--to", "another pixel than --from", start)
        ways, distances = journey(metric, first, ends)
    with _busy("Drawing"):
        figure = path_figure(pixels, ways, distances)
    for number, last in enumerate(ends):
        names = (f"({row:g}, {column:g})" for row, column in (first, last))
        table = _table(
            f"from {' to '.join(names)}",
            ["path"],
            ["length by the metric (balls)", "length in pixels"],
        )
        for way in ways[3 * number : 3 * number + 3]:
            table.add_row(way.name, f"{way.length:.2f}", f"{way.pixels:.1f}")
        say(table)
    if json is not None:
        _write_records([way.to_dict() for way in ways], json, None, say)
    if csv is not None:
        _write_records(coordinates(ways), None, csv, say)
    _save(figure, output, say)


def _pixel(
    option: str, text: str, height: int, width: int, image: Path | None
) -> tuple[float, float]:
    """Return the pixel that ROW,COLUMN names, inside the picture."""
    try:
        row, column = (float(part) for part in text.split(","))
    except ValueError:
        fail(f"{option}: expected ROW,COLUMN such as 120,64, got {text!r}")
    if not (0 <= row <= height - 1 and 0 <= column <= width - 1):  # NaN too
        full_height, full_width = _read(image, sys.maxsize).shape[1:]
        reduced = ""
        if (full_height, full_width) != (height, width):
            reduced = f", reduced from {full_height} x {full_width} (see --max-size)"
        fail(
            f"{option}: expected a pixel of the picture of {height} x {width}, from 0,0 to "
            f"{height - 1},{width - 1}{reduced}; got {text}"
        )
    return row, column


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(*texts, title=title, title_justify="left")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _require(good: bool, option: str, wanted: str, value: Any) -> None:
    if not good:
        fail(f"{option}: expected {wanted}, got {value}")


def _check_files(output: Path, json: Path | None = None, csv: Path | None = None) -> None:
    """Fail if a file could not be written, before anything is computed."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if output.suffix[1:].lower() not in formats:
        fail(
            f"--output: expected a file ending in one of {', '.join(sorted(formats))}, got {output}"
        )
    _require(json != STDOUT or csv != STDOUT, "--json, --csv", "one of them as -", "both")
    for option, path in (("--output", output), ("--json", json), ("--csv", csv)):
        if path is not None and (path != STDOUT or path is output):
            _check_folder(option, path)


def _check_picture(output: Path) -> None:
    """Fail if a picture could not be written, before anything is computed."""
    from PIL import Image

    Image.init()
    endings = sorted({ending for ending, name in Image.EXTENSION.items() if name in Image.SAVE})
    if output.suffix.lower() not in endings:
        fail(f"--output: expected a picture file such as .png, .jpg or .tif, got {output}")
    _check_folder("--output", output)


def _check_folder(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        fail(f"{option}: no such directory: {path.parent}")
    if path.is_dir():
        fail(f"{option}: expected a file, got the directory {path}")


def _read(path: Path | None, max_size: int) -> Any:
    from finslerconv.cli._picture import read_picture

    return read_picture(path, max_size)


def _device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        fail(f"--device: cannot compute on {name!r} ({reason})")
    return device


@contextmanager
def _progress(taps: int, what: str = "Filtering") -> Iterator[Callable[[int], None]]:
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=taps)
        yield lambda done: progress.advance(task, done)


@contextmanager
def _busy(what: str) -> Iterator[None]:
    with Console(stderr=True).status(what):
        yield


def _print_scores(
    results: "Sequence[Result]", sigma: float, noise: float, options: MetricOptions
) -> None:
    best = max(results, key=lambda result: result.psnr)
    title = f"noise of standard deviation {sigma:g}, estimated as {noise:.3g}"
    table = _table(title, ["filter", "what it does"], ["PSNR (dB)", "SSIM"])
    for result in results:
        table.add_row(
            result.name + (" (best)" if result is best else ""),
            result.how,
            f"{result.psnr:.2f}",
            f"{result.ssim:.3f}",
            style="bold green" if result is best else None,
        )
    Console().print(table)
    _print_balls(options)


def _print_balls(options: MetricOptions) -> None:
    typer.echo(
        f"The balls: --radius {options.radius:.2g} --anisotropy {options.anisotropy:.2g} "
        f"--smoothing {options.smoothing:.2g} --tau {options.tau:.2g}"
    )


def _speaker(*records: Path | None) -> Callable[[Any], None]:
    """Return what prints lines and tables: not where standard output is for records."""
    aside = STDOUT in records

    def say(what: Any) -> None:
        if isinstance(what, str):
            typer.echo(what, err=aside)
        else:
            Console(stderr=aside).print(what)

    return say


def _write_records(
    records: Sequence[Record], json: Path | None, csv: Path | None, say: Callable[[Any], None]
) -> None:
    for path, write in ((json, write_json), (csv, write_csv)):
        if path is not None:
            write(path, records)
            if path != STDOUT:
                say(f"Wrote {path}")


def _save(figure: "Figure", path: Path, say: Callable[[Any], None] = typer.echo) -> None:
    try:
        with _busy("Writing the figure"):
            figure.savefig(path, dpi=130)
    except OSError as error:
        fail(f"--output: cannot write {path} ({error.strerror or error})")
    except RuntimeError as error:  # formats that need a program, such as LaTeX for .pgf
        fail(f"--output: cannot write {path} ({str(error).splitlines()[0]}); try .png or .pdf")
    say(f"Wrote {path}")


@_command
def doctor(
    device: Annotated[
        str | None,
        typer.Option(help="Look at this device only: cpu, cuda, ...", show_default=False),
    ] = None,
    timings: Annotated[
        bool, typer.Option(help="Time the operators against nn.Conv2d, some seconds a device.")
    ] = True,
) -> None:
    """Check the library on this machine. A report of a problem should begin with the output."""
    if device is not None:
        _device(device)
    with _busy("Checking; the first time kernels are compiled"):
        from finslerconv._doctor import doctor as examine

        report = examine(device, timings=timings)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


@_command
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="torchvision:NAME, timm:NAME, package.module:factory, the file of a module saved "
            "by torch.save, or a checkpoint without a model."
        ),
    ],
    image: ImageArgument = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            help="Only the layers of this name, such as 'layer3.*'; may be given several times.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint to load into the model: a state_dict, bare or under a usual name "
            "('state_dict', 'model', 'ema', ...), also of DataParallel, torch.compile or "
            "Lightning, from torch.save or safetensors."
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Load a file that holds pickled code. It can do anything you can."
        ),
    ] = False,
    objective: Annotated[
        Literal["reference", "enclosing", "gauge", "overlap", "moments"],
        typer.Option(
            help="What the fit makes small: the distance of each tap from its place in the ball, "
            "the ball around all samples, the error of their lengths, what ball and hull do not "
            "share; or the ball of the weighted samples' moments."
        ),
    ] = "reference",
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Read all groups of a layer, all heads of an attention, as one."
        ),
    ] = False,
    json: Json = None,
    csv: Csv = None,
    output: Output = Path("finslerconv-inspect.png"),
    max_size: MaxSize = 384,
    device: Device = "cpu",
) -> None:
    """Show the metrics that a trained network's convolutions imply.

    The network looks at the picture once; for every adaptive layer, the unit balls that explain
    where its kernels sample are fitted. A network without adaptive layers shows its standard
    convolutions, whose balls are all one disc. Of a checkpoint without a model, its deformable
    layers are listed as far as the weights tell. Nothing is downloaded.
    """
    _check_files(output, json, csv)
    pixels = _read(image, max_size)

    from finslerconv.cli import _inspect
    from finslerconv.implicit import offset_heads, offset_health

    target = _device(device)
    say = _speaker(json, csv)
    if trust:
        typer.echo(
            "finslerconv: warning: --trust: a saved module may run any code while it is loaded",
            err=True,
        )
    with _busy("Loading the model"):
        network = _inspect.load_model(model, trust, weights, say)
    if isinstance(network, dict):
        heads = offset_heads(network)
        if not heads:
            raise ValueError(
                f"{model}: holds weights but no model, and no deformable layer by its names; name "
                "the model and give the file to --weights: finslerconv inspect "
                f"package.module:factory IMAGE --weights {model}"
            )
        say(_inspect.weights_table(heads))
        say(
            "These are weights without a model. To see where it samples: finslerconv inspect "
            f"package.module:factory IMAGE --weights {model}"
        )
        _write_records([asdict(head) for head in heads], json, csv, say)
        return
    with _busy("Loading the model"):
        network = network.to(target)
        x = _inspect.as_input(network, pixels, target)
    with _busy("Running the model"):
        layers, adaptive = _inspect.find(network, x, layer or [])
    with _progress(len(layers), "Fitting metrics") as advance:
        results = _inspect.read(
            layers,
            x,
            None if objective == "reference" else objective,
            lambda: advance(1),
            together,
        )
    healths = {layer.key: offset_health(layer.positions) for layer in layers}
    say(_inspect.table(results))
    if adaptive:
        say(_inspect.health_table(healths))
        for complaint in _inspect.complaints(healths):
            say(complaint)
    if not adaptive:
        say("The model has no adaptive layer: these convolutions sample the same disc everywhere.")
    if model.startswith(("torchvision:", "timm:")) and weights is None:
        say("The weights are random ones; --weights loads trained ones.")
    _write_records(_inspect.records(healths, results), json, csv, say)
    drawn = _inspect.for_the_figure(results, 5)
    if len(drawn) < len(results):
        say(f"The figure has {len(drawn)} of {len(results)} layers; --layer chooses others.")

    from finslerconv import plotting

    with _busy("Drawing"):
        figure = plotting.implicit_metric(drawn, pixels)
    _save(cast("Figure", figure), output, say)
