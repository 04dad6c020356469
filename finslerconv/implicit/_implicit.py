"""The metrics that a layer, or every layer of a model, implies: fitted, and summarised."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv._arrays import as_integer
from finslerconv._foreign import is_attention
from finslerconv.implicit._fit import ObjectiveName, RandersFit, fit_randers, known_metric
from finslerconv.implicit._layers import find_adaptive_layers
from finslerconv.implicit._objectives import determines
from finslerconv.implicit._positions import KernelPositions
from finslerconv.implicit._readers import level_positions, reader_of
from finslerconv.implicit._summary import MetricSummary, as_randers, picture_gradient, summarise
from finslerconv.metrics import Randers, Riemannian
from finslerconv.nn import DCNv3, DCNv4
from finslerconv.ops import MapName


@dataclass(frozen=True, eq=False)
class ImplicitMetric:
    """The metrics whose unit balls the kernels of a layer sample.

    Attributes
    ----------
    name : str
        The layer's name in its model (with ``#2`` for its second call), or the name of its class.
    positions : KernelPositions
        Where it takes its samples.
    map : str or None
        How the metric carries the kernel's reference points to its samples, ``"radial"`` or
        ``"affine"``; None if the objective does not ask where which tap went.
    fit : RandersFit
        The fitted field, with its quality, over the output pixels: batch (B, Ho, Wo), or
        (B, G, Ho, Wo) for several groups. Lengths are in pixels of the layer's input.
    summary : MetricSummary
        The field in a few numbers.
    explicit : bool
        Whether the metrics are the layer's own, which a metric convolution computes, and nothing
        was fitted; ``fit.residual`` is then 0.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from finslerconv.implicit import implicit_metric
    >>> from finslerconv.nn import DeformConv2d
    >>> layer, x = DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8)
    >>> result = implicit_metric(layer, x)
    >>> result.metric.batch_shape, result.explicit
    ((1, 8, 8), False)
    """

    name: str
    positions: KernelPositions
    map: MapName | None
    fit: RandersFit
    summary: MetricSummary
    explicit: bool = False

    @property
    def metric(self) -> Randers | Riemannian:
        """The fitted field; where ``fit.explained`` is false, it explains nothing."""
        return self.fit.metric

    def to_dict(self) -> dict[str, Any]:
        """Return what the layer is and its summary, as plain Python that JSON can hold.

        What does not exist, NaN in :class:`MetricSummary` or an attention's kernel size, is None.
        The fields themselves are not in it; they are arrays, ``metric.M`` and ``metric.omega``.

        Examples
        --------
        >>> import json
        >>> import torch
        >>> from torch import nn
        >>> from finslerconv.implicit import implicit_metric
        >>> result = implicit_metric(nn.Conv2d(3, 8, 3), torch.rand(1, 3, 16, 16)).to_dict()
        >>> result["kind"], result["kernel_size"], round(result["summary"]["size"], 4)
        ('standard', [3, 3], 1.0)
        >>> len(json.dumps(result)) > 100
        True
        """

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return [plain(each) for each in value]
            return None if isinstance(value, float) and math.isnan(value) else value

        geometry = self.positions.geometry
        return {
            "name": self.name,
            "kind": self.positions.kind,
            "adaptive": self.positions.adaptive,
            "kernel_size": None if geometry is None else list(geometry.kernel_size),
            "samples": self.positions.points.shape[-2],
            "groups": self.positions.groups,
            "input_size": list(self.positions.input_size),
            "output_size": list(self.positions.output_size),
            "map": self.map,
            "explicit": self.explicit,
            "summary": {name: plain(value) for name, value in asdict(self.summary).items()},
        }

    def in_picture(
        self, height: int, width: int
    ) -> tuple[Randers, Float[Tensor, "batch rows columns 2"]]:
        """Return the field in pixels of a picture that the layer's input is a reduced copy of.

        Parameters
        ----------
        height, width : int
            Of the picture, which the layer's input is taken to cover.

        Returns
        -------
        metric : Randers
            The same balls, stretched; float64.
        centres : Tensor, shape (1, Ho, Wo, 2) or (B, Ho, Wo, 2)
            The rows and columns of the kernels' centres in the picture.
        """
        inner_height, inner_width = self.positions.input_size
        ratios = height / inner_height, width / inner_width
        metric = as_randers(self.metric)
        shrink = 1 / torch.tensor(ratios, dtype=metric.M.dtype, device=metric.M.device)
        stretched = Randers(
            shrink[:, None] * metric.M * shrink, shrink * metric.omega, validate=False
        )
        centres = self.positions.centres()
        return stretched, (centres + 0.5) * centres.new_tensor(ratios) - 0.5

    def __repr__(self) -> str:
        s = self.summary
        return (
            f"ImplicitMetric({self.name!r}, {self.positions.kind}, {s.n} "
            f"{'explicit ' if self.explicit else ''}metrics, size "
            f"{s.size:.3g} px, anisotropy {s.anisotropy:.3g}, asymmetry "
            f"{abs(round(s.asymmetry, 3)):g}, {100 * s.explained:.3g} % explained)"
        )


@torch.no_grad()
def implicit_metric(
    layer_or_model: nn.Module,
    x: Tensor | Sequence[Any],
    *,
    image: Float[Tensor, "batch channels height width"] | None = None,
    objective: ObjectiveName | None = None,
    max_size: int | None = None,
    include_fixed: bool = False,
    together: bool = False,
    **options: Any,
) -> ImplicitMetric | dict[str, ImplicitMetric]:
    """Return the metrics that a layer implies, or all adaptive layers of a model.

    Every convolution samples the unit balls of some metrics; the nearest Randers metrics are
    recovered from its samples for the input ``x``.

    Parameters
    ----------
    layer_or_model : nn.Module
        A layer that :func:`level_positions` knows, or a model with such layers in it.
    x : Tensor or tuple
        Its input, or the tuple of the arguments of its ``forward``.
    image : Tensor, shape (B, C, H, W), optional
        The picture whose gradient the balls are compared with; the first argument in ``x`` if
        that is of this shape.
    objective : {"reference", "enclosing", "gauge", "overlap", "moments"}, optional
        What :func:`fit_randers` makes small. If neither this nor any of its options is given:

        - the metrics of a metric convolution, if Randers or Riemannian, are its own, with nothing
          fitted (``explicit`` is true);
        - those of other layers are fitted with ``"reference"``: each tap is the image of its own
          place in the kernel's lattice (or the layer's reference set), so that the standard
          convolution of radius ``r`` and dilation ``d`` implies ``I / (r d)^2``. The map is
          ``map=``, or the layer's own, or the one that comes nearer to the samples of all pixels;
        - except where the reference points do not determine a metric: along fewer than five rays
          (three axes for a Riemannian one), for the radial map, or all on one line. These are
          kernels of one tap, one row, one column or 2 x 2 taps, and polar sets of three or four
          angles. There it is ``"enclosing"``; for the standard convolution of 2 x 2 taps that
          gives ``2 I / d^2``, the disc through them;
        - and the points of an attention's head, which have no places of their own in a ball, are
          fitted with ``"moments"``.
    max_size : int, optional
        Thin every field, taking each second (third, ...) output pixel along both axes, until it has
        at most as many on its longer side. Of the queries of an attention, ``max_size**2`` are
        taken.
    include_fixed : bool
        Whether to list the standard, dilated and weighted convolutions of a model too.
    together : bool
        Whether the samples of all groups, or of all heads of an attention, are read as one kernel,
        not each group by itself (:meth:`KernelPositions.together`).
    **options
        Of :func:`fit_randers`: ``kind="riemannian"``, ``refine=False``, ``margin``, ... With any of
        them, the metrics of a metric convolution are fitted too.

    Returns
    -------
    ImplicitMetric or dict of str to ImplicitMetric
        For a layer, or for a model by the names of the layers in the order of their calls. Of
        attention over several levels there is one for each, ``"name@0"``, ``"name@1"``, ...
        Samples count by the magnitude of their modulation, density or attention weight.

    Raises
    ------
    TypeError
        If the arguments are of wrong kinds.
    ValueError
        If a model has no adaptive layer, the batch is empty, or a layer cannot be read; the message
        names it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from finslerconv.implicit import implicit_metric
    >>> implicit_metric(nn.Conv2d(3, 8, 3, dilation=2), torch.rand(1, 3, 16, 16))
    ImplicitMetric('Conv2d', dilated, 144 metrics, size 2 px, anisotropy 1, asymmetry 0, \
100 % explained)
    """
    if not isinstance(layer_or_model, nn.Module):
        raise TypeError(
            f"layer_or_model: expected an nn.Module, got {type(layer_or_model).__name__}"
        )
    if max_size is not None:
        max_size = as_integer("max_size", max_size)
    picture = _picture(image, x, layer_or_model)

    def read(name: str, positions: KernelPositions) -> ImplicitMetric:
        if together:
            positions = positions.together()
        return metric_of_positions(
            name, positions, picture, objective=objective, max_size=max_size, **options
        )

    if reader_of(layer_or_model) is not None:
        levels = level_positions(layer_or_model, x)
        name = type(layer_or_model).__name__
        if len(levels) == 1:
            return read(name, levels[0])
        return {f"{name}@{i}": read(f"{name}@{i}", level) for i, level in enumerate(levels)}
    layers = find_adaptive_layers(layer_or_model, x, include_fixed=include_fixed)
    if not layers:
        hint = "" if include_fixed else "; include_fixed=True lists the standard convolutions too"
        raise ValueError(
            f"layer_or_model: {type(layer_or_model).__name__} called no adaptive layer{hint}"
        )
    return {layer.key: read(layer.key, layer.positions) for layer in layers}


@torch.no_grad()
def metric_of_positions(
    name: str,
    positions: KernelPositions,
    picture: Float[Tensor, "batch channels height width"] | None = None,
    *,
    objective: ObjectiveName | None = None,
    max_size: int | None = None,
    **options: Any,
) -> ImplicitMetric:
    """Return the metrics of known positions: :func:`implicit_metric` without the layer.

    Parameters
    ----------
    name : str
        What the result is called.
    positions : KernelPositions
    picture, objective, max_size, **options
        As in :func:`implicit_metric`, whose ``image`` the picture is.

    Raises
    ------
    ValueError
        If there are no positions, or they cannot be fitted; the message names the layer.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.implicit import kernel_positions, metric_of_positions
    >>> from finslerconv.nn import DeformConv2d
    >>> positions = kernel_positions(DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8))
    >>> result = metric_of_positions("layer", positions)
    >>> result.metric.M[0, 0, 0].round(decimals=4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if max_size is not None:
        positions = positions.thinned(max_size)
    if 0 in positions.points.shape:
        raise ValueError("x: expected at least one picture, got an empty batch")
    explicit = objective is None and not options and positions.metric is not None
    try:
        if explicit and positions.metric is not None:
            weights = None if positions.modulation is None else positions.modulation.abs()
            fit = known_metric(positions.metric, positions.points, weights)
            map = positions.map
        else:
            fit, map = _fit(positions, objective, options)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error
    result = ImplicitMetric(name, positions, map, fit, summarise(fit), explicit)
    if picture is None:
        return result
    if len(picture) not in (1, len(positions.points)):
        raise ValueError(
            f"image: expected 1 picture or as many as in x, {len(positions.points)}, got "
            f"{len(picture)}"
        )
    height, width = picture.shape[2:]
    _, centres = result.in_picture(height, width)
    # As smooth as the layer sees it.
    sigma = max(1.0, height / positions.input_size[0] / 2, width / positions.input_size[1] / 2)
    gradient = picture_gradient(picture, centres, sigma)
    return replace(result, summary=summarise(fit, gradient))


def _fit(
    positions: KernelPositions, objective: ObjectiveName | None, options: dict[str, Any]
) -> tuple[RandersFit, MapName | None]:
    """Return the fit, and the map if the objective has one."""
    reference = options.get("reference", positions.reference)
    map = options.get("map", positions.map)
    if objective is None and reference is None:
        objective = "moments"
    elif objective is None and reference is not None:
        centred = options.get("kind") == "riemannian"
        enough = "map" in options or determines(reference, map or "radial", centred)
        objective = "reference" if enough else "enclosing"
    known: dict[str, Any] = {"objective": objective, **options}
    if objective == "reference" or (objective == "gauge" and "levels" not in options):
        known["reference"] = reference
    if objective != "reference":
        return _fit_field(positions, known), None
    maps: tuple[MapName, ...] = ("radial", "affine") if map is None else (map,)
    fits = [(_fit_field(positions, {**known, "map": map}), map) for map in maps]
    # One map for the layer; a tie, up to rounding, goes to the radial one.
    misses = [float(fit.residual.double().square().mean().sqrt()) for fit, _ in fits]
    return fits[1] if len(fits) == 2 and misses[1] < 0.999 * misses[0] - 1e-9 else fits[0]


def _fit_field(positions: KernelPositions, known: dict[str, Any]) -> RandersFit:
    """Fit all kernels of a layer, and kernels that are the same along an axis only once."""
    points, weights = positions.points, positions.modulation
    batch = points.shape[:-2]
    given = [points] if weights is None else [points, weights]
    same = [all(each.stride(axis) == 0 for each in given) for axis in range(len(batch))]
    once = tuple(slice(0, 1) if alike else slice(None) for alike in same)
    fit = fit_randers(points[once], None if weights is None else weights[once].abs(), **known)
    if not any(same):
        return fit
    M, omega = fit.metric.randers_form()
    M = M.expand(*batch, 2, 2)
    metric: Randers | Riemannian = Riemannian(M, validate=False)
    if omega is not None:
        metric = Randers(M, omega.expand(*batch, 2), validate=False)
    names = ("residual", "iou", "inside", "pixel_in_hull", "reason", "converged")
    return replace(fit, metric=metric, **{name: getattr(fit, name).expand(batch) for name in names})


def _picture(image: Tensor | None, x: Any, layer: nn.Module) -> Tensor | None:
    if image is not None:
        if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"image: expected a floating Tensor (B, C, H, W), got {got}")
        return image
    first = x[0] if isinstance(x, tuple | list) and x else x
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if isinstance(layer, DCNv3):
        return first.permute(0, 3, 1, 2)
    if first.ndim == 4:
        return first
    # DCNv4 and attention take rows of pixels (B, N, C).
    tokens = isinstance(layer, DCNv4) or is_attention(layer)
    return first[None] if first.ndim == 3 and not tokens else None
