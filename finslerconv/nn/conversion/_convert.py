"""Whole models converted: their convolutions made adaptive ones, and back."""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from finslerconv._models import replace_modules
from finslerconv.nn._selection import Where, as_selection, unmatched
from finslerconv.nn.conversion._families import Family, Finish, Plain, Start, To, family
from finslerconv.nn.conversion._foreign import native
from finslerconv.nn.conversion._found import find_convolutions
from finslerconv.nn.conversion._measure import Example, Measurement, measure
from finslerconv.nn.conversion._report import (
    ConversionReport,
    Converted,
    LeftAlone,
    cost,
    count_parameters,
    described,
)


class Conversion(NamedTuple):
    """A model that was converted, with the report of what changed; unpacks into the two.

    Examples
    --------
    >>> from torch import nn
    >>> from finslerconv.nn import convert
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> conversion = convert(model, "metric")
    >>> conversion.model is not model, len(conversion.report.converted)
    (True, 1)
    """

    model: nn.Module
    report: ConversionReport


def convert(
    model: nn.Module,
    to: To,
    where: Where = None,
    *,
    start: Start = "weights",
    inplace: bool = False,
    example: Example | None = None,
    **options: Any,
) -> Conversion:
    """Replace the convolutions of a model by adaptive ones, and say what was replaced.

    Parameters
    ----------
    model : nn.Module
        Any model, or a single convolution.
    to : {"metric", "geodesic", "deform", "shifted", "weighted", "native"}, class or callable
        What they become: :class:`MetricConv2d`, :class:`GeodesicConv2d`, :class:`DeformConv2d`,
        :class:`ShiftedConv2d`, a weighted convolution, an :class:`AdaptiveConv` of your own, or
        what a function makes of a convolution (it is given the options, and keeps weights, device
        and dtype itself). ``"native"`` replaces the deformable layers and attentions of other
        libraries, and nothing else, by layers of this library with equal outputs (see the
        notes).
    where : Selection, str, sequence of str, int, sequence of int, class or callable, optional
        Which convolutions: a selection (see :func:`select`), a pattern of names or several, a
        kernel size, a class, or a function of a name and a module. By default all that can be.
    start : {"weights", "constant"}
        How the kernels of adaptive layers start: from the weights (with the reference set
        ``"lattice"``, which is the default, the model computes what it did), or at the constant
        ``1 / (taps in_channels / groups)``, as the paper's do. Biases stay.
    inplace : bool
        Whether to change the model itself, with the same parameter objects, so that an optimiser
        lacks only the new ones. By default a copy is changed.
    example : Tensor, sequence or mapping, optional
        An input of the model (its arguments, its keyword arguments) on which to measure sizes and
        times before and after, in evaluation mode and without gradients.
    **options
        For ``"weighted"``, ``density`` (by default the paper's) and ``preserve`` (by default True)
        as in :func:`to_weighted`; for adaptive layers the keyword arguments of the class after
        ``dtype``. ``fixed_kernel`` discards the weights, and so needs ``start="constant"``.

    Returns
    -------
    Conversion
        The model and a :class:`ConversionReport`: ``model, report = convert(...)``.

    Raises
    ------
    ValueError
        If the model has no convolutions, ``where`` matches none of them, the copy fails, or an
        option does not fit. The model is then as it was.
    TypeError
        If an argument is of the wrong kind.

    Notes
    -----
    ``"metric"``, ``"deform"`` and ``"weighted"`` serve convolutions over one, two and three axes,
    each by its own class (:class:`MetricConv1d`, :class:`MetricConv3d`, ...); ``"geodesic"`` and
    ``"shifted"`` are for ``nn.Conv2d`` only.

    Every convolution is in the report. Left alone, with the reason, are transposed, lazy and
    single-tap (1 x 1) ones, adaptive ones (torchvision's too) and all inside them, convolutions
    beside such a layer that are named after its offsets, classes that compute something of their
    own, and weights that a hook computes.

    Weights, biases, ``requires_grad``, device, dtype, training mode, hooks and parametrisations
    (``torch.nn.utils.parametrize``) go over to the new layer; its new parameters are trained even
    where the weights are frozen. Shared convolutions are converted once, and shared weights stay
    shared.

    Where the weights themselves change (``"weighted"`` with ``preserve``,
    ``start="constant"``), parametrised ones are left alone, and shared ones whose other layers do
    not change alike.

    ``"native"`` knows layers by their attributes, and imports no other library. Layers that are
    called with their offsets (of torchvision, mmcv, detectron2, DCNv2) become
    :class:`GivenOffsetConv2d`; packs with the convolution of their offsets inside
    (``conv_offset`` of mmcv, ``conv_offset_mask`` of DCNv2) become :class:`DeformConv2d`, and
    those that compute it from a second input (BasicSR's ``DCNv2Pack``) :class:`DeformAlign2d`;
    ``offset_conv`` beside ``modulator_conv`` and ``regular_conv`` is a layer too. Where a pack's
    factors are sigmoids its weights are halved, since ours are twice a sigmoid. InternImage's and
    DCNv4's layers become :class:`DCNv3` and :class:`DCNv4`; multi-scale deformable attention
    becomes :class:`MSDeformAttn` (Deformable DETR's), :class:`MultiScaleDeformableAttention`
    (mmcv's) or :class:`TransformersDeformAttn`, called as before; where transformers has the
    computation in a module inside, that one becomes :class:`MSDeformAttnCore`. A subclass that
    computes more in its ``forward`` looks the same: compare outputs where the old layer runs.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    >>> converted, report = convert(net, "metric", head="log_euclidean")
    >>> [type(layer).__name__ for layer in converted]
    ['MetricConv2d', 'ReLU', 'Conv2d']
    >>> print(report.summary())
    1 converted, 1 left alone
    parameters: 89 -> 139 (+56.18%)
    >>> report.left_alone[0].reason
    'its single tap has no support to shape'
    """
    check_arguments(model, inplace)
    kind = native(start, options) if to == "native" else family(to, start, options)
    return _carried_out(model if inplace else copied(model), kind, where, example)


def convert_back(
    model: nn.Module,
    where: Where = None,
    *,
    strict: bool = True,
    inplace: bool = False,
    example: Example | None = None,
) -> Conversion:
    """Make the layers of this library plain convolutions again, where that is exact.

    A weighted convolution is folded. An adaptive one is exactly a standard convolution as long
    as what computes its positions is zero (as it is at the start) and its reference set is the
    lattice; a modulation may be constant, and is then multiplied into the weights.

    Parameters
    ----------
    model : nn.Module
        A model with layers of this library, or one of them.
    where, inplace, example
        As in :func:`convert`; by default all of them.
    strict : bool
        Whether to refuse if one of them cannot be converted exactly; otherwise it is left alone,
        and the report says why.

    Returns
    -------
    Conversion
        The model and a :class:`ConversionReport`.

    Raises
    ------
    ValueError
        If the model has no convolutions, ``where`` matches none of them, or, with ``strict``, one
        cannot be converted; the message says which layer and why. The model is then as it was.

    Examples
    --------
    >>> net, _ = convert(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), "deform")
    >>> convert_back(net).model[0]
    Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    check_arguments(model, inplace)
    model = model if inplace else copied(model)
    return _carried_out(model, Plain(model, strict), where, example)


def _carried_out(
    model: nn.Module, family: Family, where: Where, example: Example | None
) -> Conversion:
    """Convert the selected convolutions that the family takes, and report."""
    convolutions = find_convolutions(model)
    if not convolutions:
        raise ValueError("model: expected convolutions in it, found none")
    selection = as_selection(where)
    selected = [any(selection(name, c.module) for name in c.names) for c in convolutions]
    if not any(selected):
        raise ValueError(unmatched(where, [c.names[0] for c in convolutions]))
    plans: dict[nn.Module, Finish] = {}
    reasons: dict[nn.Module, str] = {}
    for found, chosen in zip(convolutions, selected, strict=True):
        reason = found.part or family.stranger(found.module)
        if reason is None and not chosen:
            reason = "not selected"
        plan = reason or family.refuse(found.module) or family.prepare(found.names[0], found.module)
        if isinstance(plan, str):
            reasons[found.module] = plan
        else:
            plans[found.module] = plan
    reasons.update(family.withdraw(model, plans.keys()))

    left = [
        LeftAlone(found.names[0], described(found.module), reasons[found.module])
        for found in convolutions
        if found.module in reasons
    ]
    going = [found for found in convolutions if found.module not in reasons]
    old = [found.module for found in going]
    parameters_before = count_parameters(model)
    kinds, costs = [described(module) for module in old], [cost(module) for module in old]
    nothing = Measurement(None, {})
    before = nothing if example is None else measure(model, old, example)
    made = [plans[module]() for module in old]
    made_of = {module: new for module, (new, _) in zip(old, made, strict=True)}
    model = replace_modules(model, lambda _, module: made_of.get(module, module))
    after = nothing if example is None else measure(model, list(made_of.values()), example)
    converted = tuple(
        Converted(
            name=found.names[0],
            old=kind,
            new=described(new),
            before=replace(known, **before.layers.get(found.module, {})),
            after=replace(cost(new), **after.layers.get(new, {})),
            also=tuple(found.names[1:]),
            notes=(*notes, *(() if found.note is None else (found.note,))),
        )
        for found, kind, known, (new, notes) in zip(going, kinds, costs, made, strict=True)
    )
    report = ConversionReport(
        converted,
        tuple(left),
        str(selection),
        parameters_before,
        count_parameters(model),
        seconds_before=before.seconds,
        seconds_after=after.seconds,
    )
    return Conversion(model, report)


def check_arguments(model: nn.Module, inplace: bool) -> None:
    """Raise if a model cannot be converted, or ``inplace`` is not a boolean."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: it is compiled by TorchScript, whose modules cannot be replaced; convert the "
            "module it was made from, and compile that"
        )
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace: expected True or False, got {inplace!r}")


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, or say that it has to be converted in place."""
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"model: cannot be copied ({error}); convert it in place, with inplace=True"
        ) from error
