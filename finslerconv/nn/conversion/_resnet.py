"""The recipe of the metric convolutions' paper for residual networks."""

import dataclasses
from typing import Any, NamedTuple

from torch import nn

from finslerconv.nn._selection import select
from finslerconv.nn.conversion._convert import Conversion, check_arguments, convert, copied
from finslerconv.nn.conversion._families import Start, To
from finslerconv.nn.conversion._measure import Example
from finslerconv.nn.conversion._report import described

_STAGES = ("layer1", "layer2", "layer3", "layer4")


def convert_resnet(
    model: nn.Module,
    to: To = "metric",
    *,
    small_images: bool = False,
    dilate_last_stage: bool = True,
    start: Start = "weights",
    inplace: bool = False,
    example: Example | None = None,
    **options: Any,
) -> Conversion:
    """Convert a residual network as the paper does for its classification experiments.

    The 3 x 3 convolutions of stages 2 to 4 become adaptive (in bottlenecks that is the middle
    one); the last stage keeps the resolution: the stride 2 of its first block becomes 1, that of
    its shortcut too, and the 3 x 3 convolutions of its later blocks get dilation 2.

    Parameters
    ----------
    model : nn.Module
        A ResNet of torchvision or timm, or one built like them: stages ``layer1`` to ``layer4`` of
        blocks, behind a convolution ``conv1``, and ``maxpool``.
    to : {"metric", "geodesic", "deform", "shifted", "weighted"}, class or callable
        As in :func:`convert`. With ``"metric"`` the head is ``"spectral_scaled"``, the paper's,
        unless ``head`` is given.
    small_images : bool
        Whether to replace the stem by a 3 x 3 convolution of stride 1 (with new weights) and take
        the pooling out, as for CIFAR.
    dilate_last_stage : bool
        Whether to change the last stage's stride and dilation. That changes what a pretrained
        network computes; the conversion itself does not.
    start, inplace, example, **options
        As in :func:`convert`. The paper's are ``start="constant"``, ``head="spectral_scaled"``,
        ``reference="concentric"``, ``eps_omega`` 0.1, 0.5, 0.9 or 1, and ``fixed_kernel`` True or
        False. Times before are those after the changes of stem, strides and dilations.

    Returns
    -------
    Conversion
        The model and a :class:`ConversionReport`, whose ``changes`` tell of stem, strides and
        dilations.

    Raises
    ------
    ValueError
        If the model is not built like that.

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025).

    Examples
    --------
    >>> import torchvision  # doctest: +SKIP
    >>> from finslerconv.nn import convert_resnet
    >>> resnet = torchvision.models.resnet18()  # doctest: +SKIP
    >>> model, report = convert_resnet(resnet, dilate_last_stage=False)  # doctest: +SKIP
    >>> len(report.converted)  # doctest: +SKIP
    12
    """
    check_arguments(model, inplace)
    _check_resnet(model)
    if to == "metric":
        options.setdefault("head", "spectral_scaled")
    if not inplace:
        model = copied(model)
    edits = _small_stem(model) if small_images else []
    if dilate_last_stage:
        edits += _full_resolution(model.layer4)  # type: ignore[arg-type]
    before = [getattr(edit.owner, edit.attribute) for edit in edits]
    for edit in edits:
        setattr(edit.owner, edit.attribute, edit.value)
    try:
        where = select(kernel_size=(3, 3), stage=(2, 3, 4))
        model, report = convert(
            model, to, where, start=start, inplace=True, example=example, **options
        )
    except Exception:
        for edit, value in zip(edits, before, strict=True):
            setattr(edit.owner, edit.attribute, value)
        raise
    changes = tuple(edit.description for edit in edits if edit.description)
    return Conversion(model, dataclasses.replace(report, changes=changes))


class _Edit(NamedTuple):
    """An attribute to be set, and its line in the report, if any."""

    owner: nn.Module
    attribute: str
    value: Any
    description: str = ""


def _check_resnet(model: nn.Module) -> None:
    for name in _STAGES:
        stage = getattr(model, name, None)
        if not isinstance(stage, nn.Sequential) or len(stage) == 0:
            raise ValueError(
                f"model: expected a residual network with stages of blocks {list(_STAGES)}, as "
                f"those of torchvision and timm; {type(model).__name__} has no {name}. Use "
                "convert(model, to, where) with a selection of its convolutions"
            )


def _small_stem(model: nn.Module) -> list[_Edit]:
    stem, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if not isinstance(stem, nn.Conv2d) or not isinstance(pool, nn.Module):
        raise ValueError(
            "small_images: expected a stem of one convolution conv1 and a pooling maxpool, got "
            f"{type(stem).__name__} and {type(pool).__name__}; change the stem yourself"
        )
    edits = []
    if stem.kernel_size != (3, 3) or stem.stride != (1, 1):
        small = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, padding=1, bias=stem.bias is not None,
            device=stem.weight.device, dtype=stem.weight.dtype,
        )  # fmt: skip
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        small.train(stem.training)
        description = f"conv1: {described(stem)} -> {described(small)}, with new weights"
        edits.append(_Edit(model, "conv1", small, description))
    if not isinstance(pool, nn.Identity):
        identity = nn.Identity().train(pool.training)
        edits.append(_Edit(model, "maxpool", identity, "maxpool: taken out"))
    return edits


def _full_resolution(stage: nn.Sequential) -> list[_Edit]:
    """Return the edits that remove the stride of a stage and dilate its later blocks."""
    first, *later = stage
    edits = []
    for name, module in first.named_modules():
        stride = getattr(module, "stride", 1)
        path = f"layer4.0.{name}" if name else "layer4.0"
        if stride == 1 or (isinstance(stride, tuple) and set(stride) == {1}):
            continue
        if module is first:
            edits.append(_Edit(first, "stride", 1))
        elif isinstance(module, nn.Conv2d):
            edits.append(_Edit(module, "stride", (1, 1), f"{path}: stride {_one(stride)} -> 1"))
        elif isinstance(module, nn.AvgPool2d):
            parent, _, attribute = name.rpartition(".")
            owner = first.get_submodule(parent)
            edits.append(_Edit(owner, attribute, nn.Identity(), f"{path}: pooling taken out"))
        else:
            raise ValueError(
                f"model: expected strides of convolutions and average poolings in the last stage, "
                f"got one of {type(module).__name__} at {path}; use dilate_last_stage=False"
            )
    if not edits:
        return []
    for index, block in enumerate(later, 1):
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                description = f"layer4.{index}.{name}: dilation {_one(module.dilation)} -> 2"
                edits.append(_Edit(module, "dilation", (2, 2), description))
                edits.append(_Edit(module, "padding", (2, 2)))
    return edits


def _one(pair: int | tuple[int, ...]) -> str:
    return str(pair if isinstance(pair, int) or len(set(pair)) > 1 else pair[0])
