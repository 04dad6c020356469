"""Whole models converted: their convolutions made adaptive ones, and back."""

import copy
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from finslerconv.nn._adaptive import _CONV_ARGUMENTS, AdaptiveConv2d, own_tensor
from finslerconv.nn.conversion._families import Start, To, family
from finslerconv.nn.conversion._found import Found, find_convolutions, is_ours
from finslerconv.nn.conversion._measure import Example, Measurement, measure
from finslerconv.nn.conversion._report import (
    ConversionReport,
    Converted,
    Cost,
    LeftAlone,
    cost,
    count_parameters,
    described,
    named,
)
from finslerconv.nn.conversion._selection import Where, as_selection, unmatched
from finslerconv.nn.conversion._takeover import (
    replace,
    take_over_surroundings,
    take_over_weights,
)
from finslerconv.nn.weighted._fold import Folding
from finslerconv.nn.weighted._sharing import sharing

_NOT_SELECTED = "not selected"

#: From a convolution to what ends its conversion (see :data:`Finish`), or why it is left alone.
_Plan = Callable[[], tuple[nn.Module, tuple[str, ...]]]


class Conversion(NamedTuple):
    """A model that was converted, with the report of what changed; unpacks into the two."""

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
    to : {"metric", "geodesic", "deform", "shifted", "weighted"}, class or callable
        What they become: :class:`MetricConv2d`, :class:`GeodesicConv2d`, :class:`DeformConv2d`,
        :class:`ShiftedConv2d`, a weighted convolution, an :class:`AdaptiveConv2d` of your own, or
        what a function makes of a convolution (it is given the options, and keeps weights, device
        and dtype itself).
    where : Selection, str, sequence of str, int, sequence of int, class or callable, optional
        Which convolutions: a selection (see :func:`select`), a pattern of names or several, a
        kernel size, a class, or a function of a name and a module. By default all that can be.
    start : {"weights", "constant"}
        How the kernels of adaptive layers start: from the weights (with the reference set
        ``"lattice"``, which is the default, the model computes what it did), or at the constant
        ``1 / (kh kw in_channels / groups)``, as the paper's do. Biases stay.
    inplace : bool
        Whether to change the model itself. By default a copy is changed, so that a pretrained
        model is still there to be compared with; a model that is too large for two is changed in
        place. The parameters keep their identity then: an optimiser goes on working, but for what
        is new.
    example : Tensor, sequence or mapping, optional
        An input of the model (its arguments, its keyword arguments), with which to measure sizes
        and times before and after, in evaluation mode and without gradients.
    **options
        The keyword arguments of the layers: for ``"weighted"``, ``density`` as in
        :func:`to_weighted` (by default the paper's) and ``preserve`` (by default True: the
        weights are divided by it, and the model computes what it did); for adaptive layers those
        of the class after ``dtype``. ``fixed_kernel`` needs ``start="constant"``, since it
        discards the weights.

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
    Every convolution is in the report, and what is left alone is there with the reason, also where
    that is all of them and the model stays as it was:
    transposed, lazy and single-tap (1 x 1) ones, those that are adaptive already (torchvision's
    too) and what is inside them, convolutions beside such a layer that are named after its
    offsets, classes that compute something of their own, and weights that a hook computes.
    Weights, biases, ``requires_grad``, device, dtype, training mode, hooks and parametrisations
    (``torch.nn.utils.parametrize``) go over to the new layer; what is new in it is trained even
    where the weights are frozen. A convolution that a model uses in several places is converted
    once and stays shared, and so do weights that layers share.

    Where the weights themselves change (``"weighted"`` with ``preserve``,
    ``start="constant"``), parametrised ones are left alone, and shared ones whose other layers do
    not change alike.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    >>> converted, report = convert(net, "metric", head="log_euclidean")
    >>> converted[0]
    MetricConv2d(
      1, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), reference='lattice', map='radial'
      (head): MetricHead(
        LogEuclidean(eps_L=0.01), eps_omega=0.1, omega_constraint='sigmoid', groups=1, radius=1
        (conv): Conv2d(1, 5, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      )
    )
    >>> print(report.summary())
    1 converted, 1 left alone
    parameters: 89 -> 139 (+56.18%)
    >>> report.left_alone[0].reason
    'its single tap has no support to shape'
    """
    _check_arguments(model, inplace)
    kind = family(to, start, options)
    selection = as_selection(where)
    model = model if inplace else _copied(model)

    def plan(found: Found) -> _Plan | str:
        if found.part is not None:
            return found.part
        if not any(selection(name, found.module) for name in found.names):
            return _NOT_SELECTED
        reason = kind.refuse(found.module)
        if reason is not None:
            return reason
        finish = kind.prepare(found.names[0], found.module)
        if isinstance(finish, str) or found.note is None:
            return finish
        note = found.note
        return lambda: _with_note(finish(), note)

    return _carried_out(model, plan, where, example, kind.withdraw)


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
    where : Selection, str, sequence of str, int, sequence of int, class or callable, optional
        Which of them, as in :func:`convert`; by default all.
    strict : bool
        Whether to refuse if one of them cannot be converted exactly; otherwise it is left alone,
        and the report says why.
    inplace : bool
        Whether to change the model itself; by default a copy is changed.
    example : Tensor, sequence or mapping, optional
        As in :func:`convert`.

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
    >>> convert_back(net).model
    Sequential(
      (0): Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
    )
    """
    _check_arguments(model, inplace)
    selection = as_selection(where)
    model = model if inplace else _copied(model)
    shared = sharing(model)
    weighted: list[nn.Module] = []
    folding: list[Folding] = []
    refused: list[str] = []

    def plan(found: Found) -> _Plan | str:
        module = found.module
        if found.part is not None:
            return found.part
        if not is_ours(module):
            return "no layer of this library"
        if not any(selection(name, module) for name in found.names):
            return _NOT_SELECTED
        if not isinstance(module, AdaptiveConv2d):
            weighted.append(module)
            return lambda: _folded(folding[0], module)
        reason = module.departure() or _not_foldable(module, id(module) in shared)
        if reason is not None:
            refused.append(f"{named(found.names[0])}: {reason}")
            return f"would not be exact: {reason}"
        return lambda: _standard(module)

    def check(model: nn.Module, _: Collection[int]) -> dict[int, str]:
        if strict and refused:
            raise ValueError(
                "model: expected layers that are exactly standard convolutions; these are not "
                "(leave them out by where, or by strict=False):\n  " + "\n  ".join(refused)
            )
        folding.append(Folding(model, weighted))
        return {}

    return _carried_out(model, plan, where, example, check)


def _carried_out(
    model: nn.Module,
    plan: Callable[[Found], _Plan | str],
    where: Where,
    example: Example | None,
    withdraw: Callable[[nn.Module, Collection[int]], dict[int, str]],
) -> Conversion:
    """Convert the modules for which there is a plan that is not withdrawn, and report."""
    convolutions = find_convolutions(model)
    _check_selected(convolutions, where)
    planned = {id(found.module): plan(found) for found in convolutions}
    prepared = {key for key, what in planned.items() if not isinstance(what, str)}
    planned.update(withdraw(model, prepared))
    plans = {key: what for key, what in planned.items() if not isinstance(what, str)}
    left = [
        LeftAlone(found.names[0], described(found.module), what)
        for found in convolutions
        for what in [planned[id(found.module)]]
        if isinstance(what, str)
    ]
    chosen = [(found.names, found.module) for found in convolutions if id(found.module) in plans]
    parameters_before = count_parameters(model)
    old = {id(module): (described(module), cost(module)) for _, module in chosen}
    before = None if example is None else measure(model, [m for _, m in chosen], example)
    made = {key: finish() for key, finish in plans.items()}
    model = replace(model, {key: module for key, (module, _) in made.items()})
    new = {key: module for key, (module, _) in made.items()}
    after = None if example is None else measure(model, list(new.values()), example)
    converted = tuple(
        Converted(
            name=names[0],
            old=old[key][0],
            new=described(new[key]),
            before=_with_measured(old[key][1], before, key),
            after=_with_measured(cost(new[key]), after, id(new[key])),
            also=tuple(names[1:]),
            notes=made[key][1],
        )
        for names, module in chosen
        for key in [id(module)]
    )
    report = ConversionReport(
        converted,
        tuple(left),
        str(as_selection(where)),
        parameters_before,
        count_parameters(model),
        seconds_before=None if before is None else before.seconds,
        seconds_after=None if after is None else after.seconds,
    )
    return Conversion(model, report)


def _check_selected(convolutions: list[Found], where: Where) -> None:
    """Raise if there are no convolutions, or ``where`` means none of them."""
    if not convolutions:
        raise ValueError("model: expected convolutions in it, found none")
    selection = as_selection(where)
    if not any(selection(name, found.module) for found in convolutions for name in found.names):
        raise ValueError(unmatched(where, [found.names[0] for found in convolutions]))


def _folded(folding: Folding, layer: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    note = folding.note(layer)
    return folding(layer), () if note is None else (note,)


def _with_note(
    finished: tuple[nn.Module, tuple[str, ...]], note: str
) -> tuple[nn.Module, tuple[str, ...]]:
    module, notes = finished
    return module, (*notes, note)


@torch.no_grad()
def _standard(layer: AdaptiveConv2d) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the convolution that a layer is which departs from it in nothing."""
    like = own_tensor(layer)
    conv = nn.Conv2d(
        **{name: getattr(layer, name) for name in _CONV_ARGUMENTS},
        bias=layer.bias is not None,
        device=like.device,
        dtype=like.dtype,
    )
    notes: tuple[str, ...] = ()
    if layer.fixed_kernel:
        conv.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        conv.bias = layer.bias
    else:
        take_over_weights(layer, conv)
    modulation = layer.modulation_conv
    if modulation is not None and modulation.bias is not None and modulation.bias.any():
        factors = 2 * torch.sigmoid(modulation.bias)
        notes = ("its constant modulation is multiplied into the weights",)
        conv.weight.mul_(_over_channels(factors, layer))
    return conv, (*notes, *take_over_surroundings(layer, conv))


def _not_foldable(layer: AdaptiveConv2d, shared: bool) -> str | None:
    """Return why a constant modulation cannot go into the weights, or None."""
    modulation = layer.modulation_conv
    if modulation is None or modulation.bias is None or not modulation.bias.any():
        return None
    if parametrize.is_parametrized(layer, "weight"):
        return "its modulation is constant, but its weight is parametrised"
    if shared:
        return "its modulation is constant, but its weight is shared with another layer"
    return None


def _over_channels(factors: torch.Tensor, layer: AdaptiveConv2d) -> torch.Tensor:
    """Return the factor of every weight, (O, C / groups, kh, kw), from those of every sample."""
    taps = factors.view(layer.sample_groups, *layer.kernel_size)
    per_channel = taps.repeat_interleave(layer.in_channels // layer.sample_groups, dim=0)
    per_group = per_channel.unflatten(0, (layer.groups, -1))
    return per_group.repeat_interleave(layer.out_channels // layer.groups, dim=0)


def _with_measured(known: Cost, measurement: Measurement | None, key: int) -> Cost:
    if measurement is None or key not in measurement.layers:
        return known
    size, seconds = measurement.layers[key]
    return Cost(known.parameters, known.multiply_adds, size, seconds)


def _check_arguments(model: nn.Module, inplace: bool) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: it is compiled by TorchScript, whose modules cannot be replaced; convert the "
            "module it was made from, and compile that"
        )
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace: expected True or False, got {inplace!r}")


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"model: cannot be copied ({error}); convert it in place, with inplace=True"
        ) from error
