"""Metric fields sampled on grids."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finslerconv._arrays import Array, first_index, is_number, shown
from finslerconv.geodesics.fields._any_metric import arrays_of, between_nodes, with_arrays
from finslerconv.geodesics.fields._interpolation import (
    Interpolation,
    Outside,
    interpolate,
    packed,
    unpacked,
)
from finslerconv.geodesics.fields._kinds import (
    Positions,
    as_kind_of,
    as_tensor,
    as_tensors,
    distinct,
    is_numpy,
    shown_position,
    shown_shape,
)
from finslerconv.geodesics.fields._matrices import (
    broadcast,
    check_matrices,
    entries_of,
    over_batch,
    over_grid,
    validate_fields,
)
from finslerconv.geodesics.fields._protocol import check_positions, read_positions
from finslerconv.metrics import FinslerMetric, Randers

_OPTIONS = ("spacing", "origin", "interpolation", "outside")


@final
@dataclass(frozen=True, eq=False, init=False, repr=False)
class GridMetric:
    r"""A field of metrics sampled on a regular grid: Riemannian, Randers, or of any other kind.

    Node ``(i, j)`` (or ``(i, j, k)``) lies at the position ``origin + spacing * (i, j)``, axes in
    the order of the arrays. The norm of a vector ``v`` at ``x``, in the units of the positions,
    is ``F_x(v) = sqrt(v' M(x) v) + omega(x)' v``, or that of the metrics that are given.

    Parameters
    ----------
    M : array, shape (\*batch, \*grid, d, d), or FinslerMetric
        Symmetric positive definite matrices, NumPy or PyTorch, float32 or float64; the grid has
        ``d`` axes, 2 or 3. In 1 / pixels^2 where ``spacing`` is 1. Or a batch of metrics of any
        kind, whose last axes are the grid, in place of ``M`` and ``omega``; those of metrics
        that are neither Riemannian nor Randers are then None.
    omega : array, shape (\*batch, \*grid, d), optional
        One-forms with ``|omega|_{M^-1} < 1``, of a shape that broadcasts with that of
        ``M``; None for a Riemannian field.
    spacing : float or tuple of float
        Distance between neighbours, for all axes or for each.
    origin : float or tuple of float
        Position of the first node.
    interpolation : {"linear", "cubic"}
        How :meth:`at` reads between nodes; "linear" for metrics of other kinds.
    outside : {"constant", "reflect"}
        How :meth:`at` reads beyond the outermost nodes: the field of the nearest point of the
        grid, or the field mirrored at the outermost nodes. "constant" for metrics of other kinds.
    validate : bool
        Whether to check the values (see :meth:`validate`); on a GPU this waits for them. Otherwise
        :func:`distance` does, the first time.

    Raises
    ------
    TypeError
        If an array is of another kind or dtype.
    ValueError
        If the shapes do not fit, ``spacing`` is not positive, an option is unknown, or a metric
        is not finite, not symmetric positive definite or has ``|omega|_{M^-1} >= 1``; the message
        names the first.

    Notes
    -----
    The entries of ``M`` and ``omega`` are interpolated. Linearly that gives a metric again: metrics
    are a convex set, by Schur's complement the pairs whose block matrix ``[[M, omega], [omega',
    1]]`` is positive definite. The cubic overshoots and may leave the set where the field jumps, so
    that ``validate`` also checks half-way between the nodes.

    Of metrics of other kinds :meth:`at` interpolates the energies ``F^2 / 2``, which add up to that
    of a norm.

    "reflect" mirrors the entries and keeps the field continuous. The field of the mirrored picture
    would have off-diagonal entries that jump in sign.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric
    >>> speed = np.linspace(1.0, 2.0, 5)[:, None, None, None]  # slower downwards
    >>> field = GridMetric(np.broadcast_to(speed * np.eye(2), (5, 4, 2, 2)))
    >>> field
    GridMetric(grid_shape=(5, 4), batch_shape=(), kind=Riemannian, dtype=float64)
    >>> field.at(np.array([0.5, 2.0])).M
    array([[1.125, 0.   ],
           [0.   , 1.125]])
    """

    M: Float[Array, "*batch d d"]
    omega: Float[Array, "*batch d"] | None
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    interpolation: Interpolation
    outside: Outside
    _any: FinslerMetric | None
    """The metrics of other kinds than Randers, whose batch broadcasts to ``_shape``."""
    _shape: tuple[int, ...]
    """The axes of the batch and of the grid."""
    _cache: dict[str, Any] = dataclass_field(init=False)

    def __init__(
        self,
        M: Float[Array, "*_ d d"] | FinslerMetric,
        omega: Float[Array, "*_ d"] | None = None,
        spacing: float | Sequence[float] = 1.0,
        origin: float | Sequence[float] = 0.0,
        interpolation: Interpolation = "linear",
        outside: Outside = "constant",
        *,
        validate: bool = True,
    ) -> None:
        options: tuple[Any, ...] = (spacing, origin, interpolation, outside)
        if isinstance(M, FinslerMetric):
            if omega is not None:
                raise TypeError("omega: expected None beside a metric, which has its own")
            if M.randers_form() is None:
                self._set_any(M, M.batch_shape, *options)
                if validate:
                    self.validate()
                return
            M, omega = entries_of("M", M)
        matrices, forms = as_tensors(M=M, omega=omega)
        d = check_matrices(matrices)
        if omega is not None:
            matrices, forms = broadcast(matrices, forms)
            omega = omega if forms.shape == omega.shape else as_kind_of(forms, omega)
        M = M if matrices.shape == M.shape else as_kind_of(matrices, M)
        self._set(d, *options, M=M, omega=omega, _any=None, _shape=tuple(M.shape[:-2]))
        if validate:
            self.validate()

    def _set_any(self, metric: FinslerMetric, shape: tuple[int, ...], *options: Any) -> None:
        """Become a field of metrics of other kinds, whose batch broadcasts to ``shape``."""
        d = metric.dim
        if d not in (2, 3):
            raise ValueError(f"M: expected metrics of the plane or of space, got dimension {d}")
        if len(shape) < d or 0 in shape:
            raise ValueError(
                f"M: expected a batch of metrics over a grid of {d} axes (none empty), got batch "
                f"shape {shape}; GridMetric.from_metric broadcasts a constant metric over a grid"
            )
        as_tensor("M", metric.like)
        for name, given, only in zip(
            ("interpolation", "outside"), options[2:], ("linear", "constant"), strict=True
        ):
            if given != only:
                raise ValueError(
                    f"{name}: expected {only!r} for metrics that are neither Riemannian nor "
                    f"Randers, got {given!r}"
                )
        self._set(d, *options, M=None, omega=None, _any=metric, _shape=shape)

    def _set(
        self,
        d: int,
        spacing: float | Sequence[float],
        origin: float | Sequence[float],
        interpolation: Interpolation,
        outside: Outside,
        **values: Any,
    ) -> None:
        _check_option("interpolation", interpolation, ("linear", "cubic"))
        _check_option("outside", outside, ("constant", "reflect"))
        values |= {
            "spacing": per_axis("spacing", spacing, d),
            "origin": per_axis("origin", origin, d),
            "interpolation": interpolation,
            "outside": outside,
            "_cache": {},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for step in self.spacing:
            if step <= 0:
                raise ValueError(f"spacing: expected positive numbers, got {shown(spacing)}")

    def __repr__(self) -> str:
        kind = "Riemannian" if self.omega is None else "Randers"
        if self._any is not None:
            kind = type(self._any).__name__
        return (
            f"GridMetric(grid_shape={self.grid_shape}, batch_shape={self.batch_shape}, "
            f"kind={kind}, dtype={self.like.dtype})"
        )

    @classmethod
    def from_metric(
        cls,
        metric: FinslerMetric,
        shape: Sequence[int] | None = None,
        *,
        spacing: float | Sequence[float] = 1.0,
        origin: float | Sequence[float] = 0.0,
        interpolation: Interpolation = "linear",
        outside: Outside = "constant",
        validate: bool = True,
    ) -> "GridMetric":
        """Return the field of a batch of metrics, whose last axes are the grid.

        Parameters
        ----------
        metric : FinslerMetric
            Such as :func:`finslerconv.images.gradient_metric` makes of pictures: of batch shape
            (batch, height, width).
        shape : sequence of int, optional
            The shape of the grid, over which the metric is broadcast: for a constant metric, or
            one that varies along one axis only.
        spacing, origin, interpolation, outside, validate
            As of :class:`GridMetric`. Vectors of the metric are vectors of physical positions.

        Raises
        ------
        ValueError
            If its batch has fewer axes than the space, or does not broadcast over ``shape``.

        Examples
        --------
        >>> import numpy as np
        >>> from finslerconv.geodesics import GridMetric
        >>> from finslerconv.metrics import Randers
        >>> wind = Randers(np.eye(2), np.array([0.0, 0.5]))
        >>> GridMetric.from_metric(wind, (32, 32)).grid_shape
        (32, 32)
        """
        if shape is not None:
            d = metric.dim if isinstance(metric, FinslerMetric) else len(shape)
            if len(shape) != d:
                raise ValueError(
                    f"shape: expected {d} numbers, one for each axis of the grid, got "
                    f"{tuple(shape)}"
                )
        options = (spacing, origin, interpolation, outside)
        if isinstance(metric, FinslerMetric) and metric.randers_form() is None:
            return cls._of_any(metric, "shape", shape, *options, validate=validate)
        M, omega = entries_of("metric", metric)
        if shape is not None:
            M = over_grid("shape", M, tuple(shape), 2)
            omega = None if omega is None else over_grid("shape", omega, tuple(shape), 1)
        return cls(M, omega, *options, validate=validate)

    @classmethod
    def _of_any(
        cls,
        metric: FinslerMetric,
        name: str,
        shape: Sequence[int] | None,
        *options: Any,
        validate: bool,
    ) -> "GridMetric":
        """Return the field of metrics that are no Randers ones, broadcast over the grid."""
        field = cls.__new__(cls)
        field._set_any(metric, over_batch(name, metric, shape), *options)
        if validate:
            field.validate()
        return field

    @classmethod
    def from_function(
        cls,
        function: Callable[[Tensor], FinslerMetric | tuple[Tensor, Tensor]],
        shape: Sequence[int],
        *,
        spacing: float | Sequence[float] = 1.0,
        origin: float | Sequence[float] = 0.0,
        interpolation: Interpolation = "linear",
        outside: Outside = "constant",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validate: bool = True,
    ) -> "GridMetric":
        r"""Return the field that a function has at the nodes.

        Parameters
        ----------
        function : callable
            From positions, a tensor of shape (\*grid, d), to a metric of any kind, or to the pair
            ``(M, omega)`` of the tensors of a Randers one; such as ``at`` of another field.
        shape : sequence of int
            The shape of the grid; its length is the dimension.
        spacing, origin, interpolation, outside, validate
            As of :class:`GridMetric`.
        dtype, device
            Of the positions.

        Examples
        --------
        >>> import torch
        >>> from finslerconv.geodesics import GridMetric
        >>> from finslerconv.metrics import Riemannian
        >>> def half_plane(x):
        ...     return Riemannian(torch.eye(2, dtype=x.dtype) / x[..., :1, None] ** 2)
        >>> GridMetric.from_function(half_plane, (9, 9), spacing=0.25, origin=(1.0, 0.0))
        GridMetric(grid_shape=(9, 9), batch_shape=(), kind=Riemannian, dtype=torch.float64)
        """
        d = len(shape)
        spacing, origin = per_axis("spacing", spacing, d), per_axis("origin", origin, d)
        positions = grid_nodes(tuple(shape), spacing, origin, dtype, device)
        metric = function(positions)
        options = (spacing, origin, interpolation, outside)
        if isinstance(metric, FinslerMetric) and metric.randers_form(positions) is None:
            return cls._of_any(metric, "function", shape, *options, validate=validate)
        M, omega = entries_of("function", metric, positions)
        M = over_grid("function", M, tuple(shape), 2)
        omega = None if omega is None else over_grid("function", omega, tuple(shape), 1)
        return cls(M, omega, *options, validate=validate)

    @classmethod
    def from_cost(
        cls,
        cost: Float[Array, "*batch_and_grid"],
        dim: int | None = None,
        *,
        spacing: float | Sequence[float] = 1.0,
        origin: float | Sequence[float] = 0.0,
        interpolation: Interpolation = "linear",
        outside: Outside = "constant",
        validate: bool = True,
    ) -> "GridMetric":
        r"""Return the field in which a step costs its length times ``cost``, in all directions.

        That is the metric ``F(v) = cost |v|``, ``M = cost^2 I``. Of a map of speeds, ``1 / speed``
        is the cost, and distances are travel times.

        Parameters
        ----------
        cost : array, shape (\*batch, \*grid)
            Positive, NumPy or PyTorch, float32 or float64. Where one may not go at all, put any
            positive number and give :func:`distance` a ``mask``.
        dim : int, optional
            How many of the last axes are the grid, 2 or 3; without it all are.
        spacing, origin, interpolation, outside, validate
            As of :class:`GridMetric`. Lengths are those of physical positions.

        Raises
        ------
        TypeError
            If ``cost`` is of another kind or dtype.
        ValueError
            If the grid has not 2 or 3 axes, or a cost is not positive and finite; the message names
            the first.

        Examples
        --------
        >>> import numpy as np
        >>> from finslerconv.geodesics import GridMetric, distance
        >>> swamp = np.ones((3, 5))
        >>> swamp[:, 2:] = 4.0
        >>> distance(GridMetric.from_cost(swamp), (1, 0), order=1)[1].round(3)
        array([ 0.,  1.,  5.,  9., 13.])
        """
        values = as_tensor("cost", cost)
        d = values.ndim if dim is None else dim
        if d not in (2, 3) or values.ndim < d:
            raise ValueError(
                "dim: expected a grid of 2 or 3 axes, the last of the cost, got "
                f"{'all' if dim is None else dim} of the axes of shape {tuple(values.shape)}"
            )
        if validate:
            bad = ~((values > 0) & values.isfinite())
            if bool(bad.any()):
                index = first_index(bad)
                raise ValueError(
                    f"cost: expected positive finite numbers, got {float(values[index].detach())} "
                    f"at index {index}; what may not be entered is left out by the mask of distance"
                )
        identity = torch.eye(d, dtype=values.dtype, device=values.device)
        M = as_kind_of(values[..., None, None] ** 2 * identity, cost)
        return cls(M, None, spacing, origin, interpolation, outside, validate=validate)

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the space: 2 or 3."""
        return len(self.spacing)

    @property
    def like(self) -> Array:
        """An array of the kind, device and dtype of the field."""
        return self.M if self._any is None else self._any.like

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """The number of nodes along each axis."""
        return self._shape[-self.dim :]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of the batch of fields: ``()`` for a single one."""
        return self._shape[: -self.dim]

    @property
    def metric(self) -> FinslerMetric:
        r"""The metrics at the nodes, of batch shape (\*batch, \*grid).

        Those of another kind than Randers as they were given: of a batch that broadcasts to that.
        """
        if self._any is not None:
            return self._any
        if self.omega is None:
            return Randers(self.M, 0.0 * self.M[..., 0], validate=False)
        return Randers(self.M, self.omega, validate=False)

    def nodes(self) -> Float[Array, "*grid d"]:
        r"""Return the positions of the nodes, shape (\*grid, d)."""
        like = as_tensor("M", self.like)
        return as_kind_of(
            grid_nodes(self.grid_shape, self.spacing, self.origin, like.dtype, like.device),
            self.like,
        )

    def contains(self, positions: Positions) -> Bool[Array, "*batch"]:
        """Return whether positions lie in the box that the outermost nodes span, ends included.

        A position that rounding may have carried out of the box counts as inside, for the coarser
        of the dtypes of ``positions`` and the field.
        """
        (positions,) = read_positions(self, positions=positions)
        x = as_tensor("positions", positions)
        check_positions(x, self.dim)
        return as_kind_of(_inside(self, self._in_steps(x.double()), x.dtype), positions)

    def at(self, positions: Positions) -> FinslerMetric:
        r"""Return the metrics at ``positions``, interpolated.

        Parameters
        ----------
        positions : array or sequence, shape (..., d), or (\*batch, ..., d) for a batch of fields
            Physical positions, in the kind of ``M`` or nested sequences of numbers, anywhere. The
            axes of the batch broadcast against those of the field.

        Returns
        -------
        FinslerMetric
            Of batch shape ``positions.shape[:-1]``: :class:`~finslerconv.metrics.Randers`, of
            ``omega`` 0 for a Riemannian field, or for metrics of other kinds that of the mean
            energies of the nodes around, by its norm alone. Differentiable in the positions and in
            the field, twice where the interpolation is. Not checked: see :meth:`validate`.

        Raises
        ------
        TypeError
            If ``positions`` is of another kind than the field.
        ValueError
            If it is not of shape (..., d), lacks the axes of the batch, or is not finite.
        """
        (positions,) = read_positions(self, positions=positions)
        _, x = as_tensors(M=self.like, positions=positions)
        check_positions(x, self.dim)
        t, first = self._in_steps(x), first_rows(self, x)
        if self._any is not None:
            return between_nodes(self._any, self._shape, self.grid_shape, t, first)
        M, omega = as_tensors(M=self.M, omega=self.omega)
        channels = self._channels(M, omega)
        entries = interpolate(channels, t, self.grid_shape, self.interpolation, self.outside, first)
        M_at, omega_at = unpacked(entries, self.dim)
        return Randers(as_kind_of(M_at, self.M), as_kind_of(omega_at, self.M), validate=False)

    def validate(self) -> None:
        """Check every metric, and for cubic interpolation those half-way between the nodes.

        A field remembers that it was checked until its arrays are changed in place. PyTorch counts
        the changes of tensors; NumPy arrays are compared by the sum of the entries.

        Raises
        ------
        ValueError
            It names the first that is not finite, not symmetric positive definite, or has
            ``|omega|_{M^-1} >= 1``.
        """
        self._cache.pop("checked", None)
        ensure_valid(self)
        if self.interpolation == "linear":
            return
        field = self.detach()
        nodes = as_tensor("nodes", field.nodes())
        middle = nodes.new_tensor(self.spacing) / 2
        nodes = nodes.expand(*self.batch_shape, *nodes.shape)
        for corner in itertools.product((0.0, 1.0), repeat=self.dim):
            if not any(corner):
                continue
            between = field.at(as_kind_of(nodes + middle * middle.new_tensor(corner), self.M))
            try:
                between.validate()
            except ValueError as error:
                raise ValueError(
                    f"interpolation: the cubic leaves the metrics {[c / 2 for c in corner]} "
                    f"nodes beyond the one that is named here, where the field jumps; use "
                    f"interpolation='linear', or smooth the field ({error})"
                ) from error

    def reverse(self) -> "GridMetric":
        """Return the field of the reversed metrics; of Randers ones it has the form ``-omega``."""
        if self._any is not None:
            return self._with_any(self._any.reverse())
        return self if self.omega is None else self._with(self.M, -self.omega)

    def symmetrize(self) -> "GridMetric":
        """Return the field of the symmetric metrics; of Randers ones they are those of ``M``."""
        if self._any is not None:
            return self._with_any(self._any.symmetrize())
        return self._with(self.M, None)

    def detach(self) -> "GridMetric":
        """Return the field without its gradient history.

        A :class:`~finslerconv.metrics.CallableMetric` keeps what its function records.
        """
        return self._converted(lambda x: x.detach() if isinstance(x, Tensor) else x)

    def to(self, *args: Any, **kwargs: Any) -> "GridMetric":
        """Return the field with tensors moved or converted as by :meth:`torch.Tensor.to`.

        A field of NumPy arrays becomes one of tensors. The arrays of a metric of another kind than
        Randers are converted; of one that is only a function, its vectors and lengths.
        """
        return self._converted(lambda x: as_tensor("M", x).to(*args, **kwargs))

    def torch(self) -> "GridMetric":
        """Return the field with PyTorch tensors, which share the memory of NumPy arrays."""
        return self.to() if is_numpy(self.like) else self

    def numpy(self) -> "GridMetric":
        """Return the field with NumPy arrays, without gradient history."""
        return self._converted(lambda x: x.detach().cpu().numpy() if isinstance(x, Tensor) else x)

    def _converted(self, convert: Callable[[Array], Array]) -> "GridMetric":
        if self._any is not None:
            return self._with_any(with_arrays(self._any, convert))
        return self._with(*(None if x is None else convert(x) for x in (self.M, self.omega)))

    def _with(self, M: Array, omega: Array | None) -> "GridMetric":
        return GridMetric(M, omega, *self._options, validate=False)

    def _with_any(self, metric: FinslerMetric) -> "GridMetric":
        if metric.randers_form() is not None:
            options = dict(zip(_OPTIONS, self._options, strict=True))
            return GridMetric.from_metric(metric, self.grid_shape, **options, validate=False)
        return GridMetric._of_any(metric, "M", self._shape, *self._options, validate=False)

    @property
    def _options(self) -> tuple[Any, ...]:
        return (self.spacing, self.origin, self.interpolation, self.outside)

    def _in_steps(self, x: Tensor) -> Tensor:
        origin = torch.tensor(self.origin, dtype=x.dtype, device=x.device)
        spacing = torch.tensor(self.spacing, dtype=x.dtype, device=x.device)
        return (x - origin) / spacing

    def _channels(self, M: Tensor, omega: Tensor | None) -> list[Tensor]:
        """Return the distinct entries of ``M`` and ``omega``, each over all nodes."""
        if M.requires_grad or (omega is not None and omega.requires_grad):
            return packed(M, omega)
        if "channels" not in self._cache:
            self._cache["channels"] = packed(M, omega)
        channels: list[Tensor] = self._cache["channels"]
        return channels


def ensure_valid(field: GridMetric) -> None:
    """Check the metrics at the nodes, unless they were and have not been written to since."""
    held = (field.M, field.omega) if field._any is None else arrays_of(field._any)
    stamps = tuple(_stamp(x) for x in held)
    if field._cache.get("checked") != stamps:
        if field._any is None:
            detached = field.detach()
            M, omega = as_tensors(M=detached.M, omega=detached.omega)
            validate_fields(distinct(M), None if omega is None else distinct(omega))
        else:
            field._any.validate()
        field._cache["checked"] = stamps


def _stamp(x: Array | None) -> float | None:
    """Return a number that changes when an array is written to; NaN if there is none."""
    if x is None:
        return None
    if is_numpy(x):
        return float(distinct(x).sum())
    try:
        return float(x._version)
    except RuntimeError:  # a tensor of inference mode
        return float("nan")  # not math.nan, which is identical to itself


def put_inside(
    field: GridMetric, name: str, x: Float[Tensor, "n d"], dtype: torch.dtype | None = None
) -> Float[Tensor, "n d"]:
    """Return finite positions as float64, put back on the border of the grid if rounding left it.

    ``dtype`` is that in which they were computed, if not their own. A position outside the grid is
    an error, whose message calls the argument ``name``.
    """
    t = field._in_steps(x.detach().double())
    outside = ~_inside(field, t, x.dtype if dtype is None else dtype)
    if bool(outside.any()):
        (number,) = first_index(outside)
        sides = zip(field.origin, field.spacing, field.grid_shape, strict=True)
        raise ValueError(
            f"{name}: expected positions inside the grid, from {shown_position(field.origin)} to "
            f"{shown_position(o + s * (n - 1) for o, s, n in sides)}, got "
            f"{shown_position(x[number].tolist())} at index {number}"
        )
    back = t.clamp(min=0.0).minimum(_last(field, t)) - t
    # Added, so that a position on the border keeps its gradient.
    return x.double() + back * t.new_tensor(field.spacing)


def _last(field: GridMetric, like: Tensor) -> Float[Tensor, "d"]:
    return like.new_tensor([n - 1.0 for n in field.grid_shape])


def _inside(
    field: GridMetric, t: Float[Tensor, "*batch d"], dtype: torch.dtype
) -> Bool[Tensor, "*batch"]:
    """Return whether coordinates in steps are inside the grid, up to rounding.

    Positions are sums of ``origin`` and ``spacing`` times an index, rounded in ``dtype`` or in that
    of the field.
    """
    eps = max(torch.finfo(u).eps for u in (dtype, as_tensor("M", field.like).dtype))
    last = _last(field, t)
    slack = 8 * eps * (1 + last + (t.new_tensor(field.origin) / t.new_tensor(field.spacing)).abs())
    return ((t >= -slack) & (t <= last + slack)).all(-1)


def grid_nodes(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*grid d"]:
    r"""Return the positions of the nodes of a grid, shape (\*grid, d)."""
    axes = [
        o + s * torch.arange(n, dtype=dtype, device=device)
        for n, s, o in zip(shape, spacing, origin, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def first_rows(field: GridMetric, x: Tensor) -> Tensor:
    """Return the index of the first node of the field that each position lies in."""
    batch = field.batch_shape
    leading = tuple(x.shape[: len(batch)])
    if x.ndim <= len(batch) or any(a not in (1, b) for a, b in zip(leading, batch, strict=True)):
        raise ValueError(
            f"positions: expected shape {shown_shape(batch, '...', str(field.dim))} for a batch of "
            f"fields, got {tuple(x.shape)}"
        )
    rows = torch.arange(math.prod(batch), device=x.device) * math.prod(field.grid_shape)
    return rows.reshape(batch + (1,) * (x.ndim - 1 - len(batch)))


def _check_option(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        wanted = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def per_axis(name: str, value: float | Sequence[float], d: int) -> tuple[float, ...]:
    try:
        numbers = (float(value),) * d if is_number(value) else tuple(map(float, value))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # no numbers
        numbers = ()
    # Not math.isfinite, which has no answer for the symbolic numbers of torch.compile.
    if len(numbers) != d or not all(abs(x) < math.inf for x in numbers):
        raise ValueError(f"{name}: expected a finite number, or {d} of them, got {shown(value)}")
    return numbers
