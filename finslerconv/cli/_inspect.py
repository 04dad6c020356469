"""A model from wherever it is, run on a picture, and its layers read as metrics."""

import argparse
import importlib
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich import box
from rich.table import Table
from torch import Tensor, nn

from finslerconv._models import WEIGHT_PLACES, weights_in, without_module
from finslerconv.implicit import (
    AdaptiveLayer,
    ImplicitMetric,
    ObjectiveName,
    OffsetHead,
    OffsetHealth,
    find_adaptive_layers,
    metric_of_positions,
)

#: Metrics on the longer side of a layer's field.
RESOLUTION = 48

#: The mean and the standard deviation of ImageNet's colours, by which its networks normalise.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_model(
    name: str, trust: bool, weights: Path | None, say: Callable[[str], None] = lambda line: None
) -> nn.Module | dict[str, Tensor]:
    """Return a model in evaluation mode, on the CPU; or the weights in a file that holds no model.

    ``name`` is ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory``, or the path of a
    saved module. ``weights`` is a checkpoint to load into it: a ``state_dict`` of ``torch.save`` or
    safetensors, bare or in a usual place of a training checkpoint; ``say`` is told which was taken.
    Files are unpickled with ``trust`` only, since that runs whatever code they name.
    """
    path = Path(name).expanduser()
    if path.exists() or path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors"):
        model = _saved(path, trust)
        if not isinstance(model, nn.Module):
            if weights is None:
                return model
            raise ValueError(f"{path}: holds weights but no model, into which --weights could go")
    else:
        kind, colon, rest = name.partition(":")
        if not colon or not rest or not kind:
            raise ValueError(
                f"{name}: no such file; expected torchvision:NAME, timm:NAME, "
                "package.module:factory or a file"
            )
        match kind:
            case "torchvision":
                model = _from_torchvision(rest)
            case "timm":
                model = _from_timm(rest)
            case module:
                model = _from_factory(module, rest)
    if weights is not None:
        say(_load_weights(model, weights, trust))
    return model.eval()


def _from_torchvision(name: str) -> nn.Module:
    models = _imported("torchvision.models", "torchvision")
    try:
        return models.get_model(name, weights=None)
    except ValueError as error:
        raise ValueError(f"torchvision:{name}: torchvision has no such model") from error


def _from_timm(name: str) -> nn.Module:
    timm = _imported("timm", "timm")
    try:
        return timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        raise ValueError(f"timm:{name}: {error}") from error


def _from_factory(module_name: str, attribute: str) -> nn.Module:
    # As for python -m, modules are also looked for in the working folder.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = _imported(module_name)
    finally:
        sys.path.remove(folder)
    try:
        factory = getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"{module_name}: has no attribute {attribute!r}") from None
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ValueError(f"{module_name}:{attribute}: expected a module or what makes one")
    try:
        model = factory()
    except Exception as error:
        raise ValueError(f"{module_name}:{attribute}: raised {_brief(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{module_name}:{attribute}: expected to get an nn.Module, got {type(model).__name__}"
        )
    return model


def _imported(name: str, package: str | None = None) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if package is not None:
            raise ValueError(f"{package}: is not installed (pip install {package})") from error
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    except Exception as error:  # a module runs any code when it is imported
        raise ValueError(f"{name}: cannot be imported ({_brief(error)})") from error


def _saved(path: Path, trust: bool) -> nn.Module | dict[str, Tensor]:
    held = _load(path, trust)
    if isinstance(held, nn.Module):
        return held
    if isinstance(held, Mapping):
        for key in ("model", "ema", "net", "network"):
            if isinstance(held.get(key), nn.Module):
                return held[key]
        for _, state in weights_in(held):
            return without_module(state)
    raise ValueError(f"{path}: expected a saved module, got {type(held).__name__}")


def _load(path: Path, trust: bool) -> Any:
    """Return what a file holds; without trust, PyTorch's and this library's own classes only."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    with path.open("rb") as file:
        # A zip archive, or a pickle of before 2020.
        if not file.read(4).startswith((b"PK\x03\x04", b"\x80")):
            raise ValueError(f"{path}: is no file that torch.save wrote")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if trust:
                return torch.load(path, map_location="cpu", weights_only=False)
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if trust:
            raise ValueError(f"{path}: cannot be read ({_brief(error)})") from error
        raise ValueError(
            f"{path}: {_refused(error)}; loading it would run code that the file names: if you "
            "trust where it comes from, add --trust"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path}: is compiled by TorchScript, which cannot be looked into; save the module "
                "it was made from"
            ) from error
        raise ValueError(f"{path}: cannot be read as a saved module ({_brief(error)})") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    reader = _imported("safetensors.torch", "safetensors")
    try:
        return reader.load_file(path)
    except Exception as error:  # the package has an error of its own
        raise ValueError(f"{path}: cannot be read as safetensors ({_brief(error)})") from error


def _refused(error: Exception) -> str:
    text = str(error)
    for phrase in ("Unsupported global: GLOBAL ", "Unsupported class "):
        if phrase in text:
            return f"it holds {text.split(phrase)[1].split()[0]}, not weights and plain layers only"
    return "it is no file of weights and plain layers"


def _harmless() -> list[Any]:
    """Return the classes of which a saved module of plain layers is made."""
    import finslerconv.nn
    from finslerconv.balls import ReferenceSet

    def layers(module: Any) -> list[Any]:
        return [c for c in vars(module).values() if isinstance(c, type) and c.__module__]

    ours = [c for c in layers(finslerconv.nn) if c.__module__.startswith("finslerconv.")]
    parts = [ReferenceSet, np.ndarray, np.dtype, np.dtypes.Float64DType]
    reconstruct = np.empty(0).__reduce__()[0]
    torchs = [c for c in layers(nn) if issubclass(c, nn.Module)]
    # Training scripts keep their arguments beside the weights.
    return [*torchs, *ours, *parts, reconstruct, set, argparse.Namespace]


def _load_weights(model: nn.Module, path: Path, trust: bool) -> str:
    """Load the first weights of a checkpoint that fit; return a line that says which."""
    found = list(weights_in(_load(path, trust)))
    if not found:
        raise ValueError(
            f"--weights: {path}: expected a state_dict, or a checkpoint that has one under "
            f"{', '.join(WEIGHT_PLACES)}"
        )
    wanted = model.state_dict()
    errors = []
    for place, state in found:
        for prefix in _prefixes(state, wanted):
            inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            try:
                model.load_state_dict(inner)
            except RuntimeError as error:
                errors.append(error)
                continue
            return f"Weights: {_taken(path, place, prefix, len(state) - len(inner), found)}"
    raise ValueError(f"--weights: {path}: do not fit the model ({_brief(errors[0])})")


def _prefixes(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the prefixes of a model's names in a checkpoint, the shortest first."""
    first = next(iter(wanted), "")
    ends = [name.removesuffix(first) for name in state if name.endswith(first)]
    found = [p for p in ends if (not p or p.endswith(".")) and all(p + n in state for n in wanted)]
    # If none has all names, PyTorch's message says what is missing.
    return sorted(found, key=len) or [""]


def _taken(path: Path, place: str, prefix: str, left: int, found: Sequence[tuple[str, Any]]) -> str:
    """Return which weights of a checkpoint were taken."""
    words = [f"{place!r} of {path}" if place else str(path)]
    if prefix:
        words.append(f"names without {prefix!r}")
    if left:
        words.append(f"{left} others left")
    others = [repr(other) for other, _ in found if other != place]
    if others:
        words.append(f"not {', '.join(others)}")
    return "; ".join(words)


def as_input(
    model: nn.Module, picture: Float[np.ndarray, "channels height width"], device: torch.device
) -> Float[Tensor, "1 model_channels height width"]:
    """Return a picture as input of a model, normalised for networks of torchvision and timm."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels not in (1, 3):
        raise ValueError(
            f"the model takes {channels} channels, a picture has 1 or 3; wrap it in a module that "
            "makes the one from the other"
        )
    x = torch.as_tensor(picture, device=device)[None]
    x = x.mean(1, keepdim=True) if channels == 1 else x.expand(-1, 3, -1, -1)
    origin = type(model).__module__.partition(".")[0]
    if channels == 3 and origin in ("torchvision", "timm"):
        told = getattr(model, "default_cfg", None) or {}
        mean, deviation = (
            x.new_tensor(told.get(name, usual))[:, None, None]
            for name, usual in zip(("mean", "std"), _IMAGENET, strict=True)
        )
        x = (x - mean) / deviation
    parameter = next(model.parameters(), None)
    return x if parameter is None else x.to(parameter.dtype)


def find(
    model: nn.Module, x: Float[Tensor, "1 channels height width"], patterns: Sequence[str]
) -> tuple[list[AdaptiveLayer], bool]:
    """Return the adaptive layers, or the fixed ones of a model without, and whether it has any.

    ``patterns`` choose layers by name, as file names are matched, fixed ones too.
    """
    try:
        layers = find_adaptive_layers(model, x, include_fixed=True)
    except Exception as error:  # the user's model: anything may happen
        raise ValueError(
            f"the model does not run on a picture of {x.shape[2]} x {x.shape[3]} pixels "
            f"({_brief(error)})"
        ) from error
    if not layers:
        raise ValueError("the model calls no two-dimensional convolution of more than one tap")
    adaptive = any(layer.positions.adaptive for layer in layers)
    if patterns:
        chosen = [n for n in layers if any(fnmatchcase(n.key, p) for p in patterns)]
        if not chosen:
            names = ", ".join(layer.key for layer in layers)
            raise ValueError(f"--layer: no layer matches {' '.join(patterns)}; there are {names}")
        return chosen, adaptive
    if adaptive:
        layers = [layer for layer in layers if layer.positions.adaptive]
    return layers, adaptive


def read(
    layers: Sequence[AdaptiveLayer],
    image: Float[Tensor, "1 channels height width"],
    objective: ObjectiveName | None,
    advance: Callable[[], None],
    together: bool = False,
) -> dict[str, ImplicitMetric]:
    """Return the implicit metrics of the layers; ``advance`` is called after each."""
    results = {}
    for layer in layers:
        positions = layer.positions.together() if together else layer.positions
        results[layer.key] = metric_of_positions(
            layer.key, positions, image, objective=objective, max_size=RESOLUTION
        )
        advance()
    return results


def records(
    healths: Mapping[str, OffsetHealth], results: Mapping[str, ImplicitMetric]
) -> list[dict[str, Any]]:
    """Return the numbers of both tables, and those that have no room in them."""
    found = []
    for key, health in healths.items():
        sound = {**asdict(health), "complaints": list(health.complaints)}
        del sound["explained"]  # It is in the summary.
        found.append({**results[key].to_dict(), "health": sound})
    return found


def weights_table(heads: Sequence[OffsetHead]) -> Table:
    """Return one row for each head of a deformable or metric layer of a checkpoint."""
    view = _table("Deformable and metric layers, as far as weights tell")
    view.add_column("layer", overflow="fold")
    view.add_column("its head computes")
    for name in ("kernel", "groups", "channels", "bias", "gain"):
        view.add_column(name, justify="right", no_wrap=True)
    for head in heads:
        view.add_row(
            head.layer or "(model)",
            head.kind if head.finite else f"{head.kind}; not finite",
            "-" if head.kernel_size is None else "{}x{}".format(*head.kernel_size),
            "-" if head.groups is None else str(head.groups),
            f"{head.in_channels} -> {head.channels}",
            f"{head.constant:.2f}",
            f"{head.gain:.3g}",
        )
    view.caption = (
        "bias: the largest offset in pixels that biases alone make. gain: how far inputs of "
        "variance 1 move a sample along an axis, in pixels; 0 for a head that has learned nothing."
    )
    return view


def health_table(healths: Mapping[str, OffsetHealth]) -> Table:
    """Return one row for each adaptive layer: how sound its offsets are."""
    view = _table("Offset health")
    view.add_column("layer", overflow="fold")
    for name in ("offset", "99 %", "far", "outside", "(standard)", "collapsed"):
        view.add_column(name, justify="right", no_wrap=True)
    for key, health in healths.items():
        shares = (health.exploded, health.outside, health.outside_standard, health.collapsed)
        view.add_row(
            f"{key} !" if health.complaints else key,
            f"{health.offset:.2f}",
            f"{health.offset_99:.2f}",
            *(f"{100 * share:.0f} %" for share in shares),
        )
    view.caption = (
        "offset: distance in pixels of a sample from its standard place (of an attention, where it "
        "is before training), median and 99th "
        "percentile. far: share of the samples farther than twice the kernel's extent. outside: "
        "share outside the picture, and of a standard kernel's. collapsed: share of the kernels "
        "that read one place. A mark says that something is not as it should be."
    )
    return view


def complaints(healths: Mapping[str, OffsetHealth]) -> Iterator[str]:
    """Yield what is wrong with the offsets of layers, a line each."""
    for key, health in healths.items():
        for complaint in health.complaints:
            yield f"{key}: {complaint}"


def _table(title: str) -> Table:
    view = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    view.caption_justify = "left"
    return view


def table(results: Mapping[str, ImplicitMetric]) -> Table:
    """Return one row for each layer, in the width of a terminal."""
    view = Table(
        title="Implicit metrics: medians over the pixels (and the ninth decile)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    # Names stay on one line, unless they are very long; kinds may take two.
    longest = max((len(name) for name in results), default=0)
    view.add_column("layer", overflow="fold", min_width=min(longest, 14))
    view.add_column("kind")
    for name in ("size", "anisotropy", "asymm.", "edges", "error", "fits", "diverge"):
        view.add_column(name, justify="right", no_wrap=True)
    for name, result in results.items():
        s, where = result.summary, result.positions
        numbers = ["-"] * 5
        if s.explained > 0:
            numbers = [
                f"{s.size:.2f}",
                f"{s.anisotropy:.2f} ({s.anisotropy_90:.2f})",
                f"{abs(s.asymmetry):.2f}",
                "-" if s.edges is None else f"{s.edges:+.2f}",
                f"{s.residual:.3f}",
            ]
        word = "heads" if where.kind == "attention" else "groups"
        groups = "" if where.groups == 1 else f", {where.groups} {word}"
        shares = (f"{100 * s.explained:.0f} %", f"{100 * s.diverged:.0f} %")
        view.add_row(name, f"{where.kind} {where.kernel_name}{groups}", *numbers, *shares)
    view.caption = (
        "size: radius in pixels of the layer's input. anisotropy: long over short half-axis. "
        "asymm.: asymmetry, 0 for a centred ball, below 1. edges: +1 if the balls lie along the "
        "picture's edges, -1 if across. error: what the fit makes small, by default the distance "
        "in pixels of the samples from the metric's (0 for a metric layer's own). fits: share of "
        "the kernels that have a Randers metric, which the numbers are about. diverge: share whose "
        "fit runs away to ever larger balls. Kernels of all groups count."
    )
    view.caption_justify = "left"
    return view


def for_the_figure(results: Mapping[str, ImplicitMetric], most: int) -> dict[str, ImplicitMetric]:
    """Return ``most`` of the layers, evenly spread from the first to the last."""
    names = list(results)
    if len(names) > most:
        names = [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
    return {name: results[name] for name in names}


def _brief(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
