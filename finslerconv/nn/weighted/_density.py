"""A spatial density: the tensor Phi, one number per tap, that multiplies a kernel."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv._arrays import has_values, is_integer


class Density(nn.Module, ABC):
    r"""A spatial density :math:`\Phi` on the taps of a kernel.

    Calling it gives the tensor of the kernel's shape that multiplies every filter, tap by tap.
    A fixed density holds that tensor as its buffer ``phi``; a trainable one evaluates its
    parameters at each call. Layers may share a density, also after ``copy.deepcopy`` and ``pickle``
    and in a ``state_dict``.

    For a density of your own, subclass it with an ``_evaluate``; a fixed one may instead set
    ``phi`` in its constructor.

    Parameters
    ----------
    kernel_size : sequence of int
        Taps along each spatial axis, rows first; its length is the number of spatial axes.

    Raises
    ------
    ValueError
        If ``kernel_size`` is not a non-empty sequence of positive integers.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Density, WeightedConv2d
    >>> class Corners(Density):  # the corners of the kernel count half
    ...     def __init__(self):
    ...         super().__init__((3, 3))
    ...         self.phi = torch.tensor([[0.5, 1.0, 0.5], [1.0, 1.0, 1.0], [0.5, 1.0, 0.5]])
    ...     def _evaluate(self):
    ...         return self.phi
    >>> WeightedConv2d(1, 2, 3, padding=1, density=Corners())(torch.rand(1, 1, 6, 6)).shape
    torch.Size([1, 2, 6, 6])
    """

    phi: Tensor | None

    def __init__(self, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size = _checked_kernel_size(kernel_size)
        self.register_buffer("phi", None)

    @abstractmethod
    def _evaluate(self) -> Tensor:
        """Phi from the parameters, in the shape of the kernel."""

    def forward(self) -> Float[Tensor, "*kernel"]:
        """Return Phi, in the shape of the kernel, differentiable in the density's parameters."""
        return self._evaluate() if self.phi is None else self.phi

    @property
    def trainable(self) -> bool:
        """Whether the density is evaluated from parameters at each call."""
        return self.phi is None

    def extra_repr(self) -> str:
        """Return kernel size and kind, as in the printed module."""
        return f"kernel_size={self.kernel_size}, trainable={self.trainable}"


class SeparableDensity(Density):
    r"""The paper's density: an outer product of one profile per axis.

    .. math:: \Phi_{i j \dots} = \alpha^{(0)}_i \, \alpha^{(1)}_j \cdots

    A profile of ``k // 2`` numbers is a half: from the outermost tap inwards, the centre being 1
    (``[0.2, 0.8]`` stands for ``[0.2, 0.8, 1, 0.8, 0.2]``). One of ``k`` numbers is full, and need
    be neither symmetric nor 1 at the centre.

    Parameters
    ----------
    kernel_size : sequence of int
        Taps along each spatial axis, such as ``(5, 5)``.
    profile : sequence of float, or sequence of sequences of float
        One profile for all axes (whose kernel sizes are then equal, and which share it when it is
        trained), or one per axis.
    trainable : bool
        Whether the profiles are parameters. A half-profile that is trained stays symmetric.
    positive : bool
        Whether the density must stay positive: the values are checked, and what is trained is
        their logarithm.
    device, dtype
        Where the density lives; by default PyTorch's defaults.

    Raises
    ------
    ValueError
        If a profile has neither length, an even kernel gets a half-profile, a value is not
        finite, or ``positive`` is set and a value is not above zero.

    Notes
    -----
    Source: Cammarasana and Patanè, arXiv 2505.24558. ``state_dict`` keys: ``phi`` when fixed;
    ``profile_0``, ``profile_1``, ... when trained (only ``profile_0`` for a profile that all axes
    share), with the prefix ``log_`` under ``positive``.

    Examples
    --------
    >>> SeparableDensity((3, 3), [0.5])()
    tensor([[0.2500, 0.5000, 0.2500],
            [0.5000, 1.0000, 0.5000],
            [0.2500, 0.5000, 0.2500]])
    >>> SeparableDensity((1, 4), [[], [0.1, 0.2, 0.3, 0.4]])()
    tensor([[0.1000, 0.2000, 0.3000, 0.4000]])
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        profile: Sequence[float] | Sequence[Sequence[float]],
        *,
        trainable: bool = False,
        positive: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kernel_size)
        profiles = _checked_profiles(profile, self.kernel_size)
        self.positive = positive
        self._n_profiles = len(profiles)
        for axis, values in enumerate(profiles):
            where = f"profile[{axis}]" if self._n_profiles > 1 else "profile"
            check_values(values, where, positive)
            if trainable:
                hold(self, f"profile_{axis}", values, positive)
        if not trainable:
            self.phi = outer(_full_profiles(profiles, self.kernel_size))
        # Computed in double until here: a fixed float32 Phi is rounded once.
        place(self, device, dtype)

    def profiles(self) -> tuple[Float[Tensor, " _"], ...]:
        """Return full profiles of shape ``(k,)``, one per axis, differentiable in the parameters.

        Raises
        ------
        ValueError
            If the density is fixed: it holds their product ``phi`` alone.
        """
        if self.phi is not None:
            raise ValueError(
                "profiles are kept by trainable densities only; a fixed one holds their product: "
                "read density.phi"
            )
        named = [held(self, f"profile_{axis}", self.positive) for axis in range(self._n_profiles)]
        return _full_profiles(named, self.kernel_size)

    def _evaluate(self) -> Tensor:
        return outer(self.profiles())


class TensorDensity(Density):
    """A density given tap by tap.

    Parameters
    ----------
    values : Tensor
        Phi itself, in the shape of the kernel, rows first; copied.
    trainable : bool
        Whether the values are parameters.
    positive : bool
        Whether the density must stay positive: the values are checked, and what is trained is
        their logarithm.

    Raises
    ------
    ValueError
        If a value is not finite, or ``positive`` is set and a value is not above zero.

    Notes
    -----
    ``state_dict`` keys: ``phi`` when fixed, ``values`` (``log_values`` under ``positive``) when
    trained.

    Examples
    --------
    >>> TensorDensity(torch.tensor([0.5, 1.0, 2.0])).kernel_size
    (3,)
    """

    def __init__(
        self, values: Float[Tensor, "*kernel"], *, trainable: bool = False, positive: bool = False
    ) -> None:
        super().__init__(tuple(values.shape))
        check_values(values, "values", positive)
        self.positive = positive
        if trainable:
            hold(self, "values", values.detach().clone(), positive)
        else:
            self.phi = values.detach().clone()

    def _evaluate(self) -> Tensor:
        return held(self, "values", self.positive)


#: What a layer takes as its density: an object, a tensor of the kernel's shape, or a profile.
DensityLike = Density | Tensor | Sequence[float] | Sequence[Sequence[float]]


def paper_profile(kernel_size: int, n_axes: int = 2) -> list[float]:
    """Return the half-profile that the paper uses for a kernel of one size.

    Parameters
    ----------
    kernel_size : int
        1, 3, 5 or 7.
    n_axes : int
        2 for pictures, 3 for volumes (where the paper's values differ).

    Returns
    -------
    list of float
        From the outermost tap inwards, the centre 1 left out.

    Raises
    ------
    ValueError
        For a size or dimension to which the paper gives no value.

    Notes
    -----
    Source: Cammarasana and Patanè, arXiv 2505.24558 and 2505.24527.

    Examples
    --------
    >>> paper_profile(5)
    [0.2, 0.8]
    """
    table = {
        (1, 2): [], (3, 2): [0.7], (5, 2): [0.2, 0.8], (7, 2): [0.25, 0.15, 0.55],
        (1, 3): [], (3, 3): [0.8], (5, 3): [0.1, 0.7],
    }  # fmt: skip
    if (kernel_size, n_axes) not in table:
        raise ValueError(
            f"the paper gives no profile for kernel_size {kernel_size} in {n_axes} dimensions; it "
            f"does for (kernel_size, n_axes) in {list(table)}; give a profile of your own"
        )
    return table[kernel_size, n_axes]


def as_density(density: DensityLike, kernel_size: Sequence[int], like: Tensor) -> Density:
    """Return the density that a layer's argument stands for, checked against its kernel."""
    kernel_size = tuple(kernel_size)
    if isinstance(density, Tensor):
        density = TensorDensity(density.to(device=like.device, dtype=like.dtype))
    elif not isinstance(density, Density):
        if isinstance(density, str) or not isinstance(density, Sequence):
            raise TypeError(
                "density must be a Density, a tensor of the kernel's shape, or a profile (a "
                f"sequence of numbers, or one per axis); got {type(density).__name__}"
            )
        density = SeparableDensity(kernel_size, density, device=like.device, dtype=like.dtype)
    if density.kernel_size != kernel_size:
        raise ValueError(
            f"density is for kernel_size {density.kernel_size}, but the layer's kernel_size is "
            f"{kernel_size}; make one density for each kernel size"
        )
    return density


def place(module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Move a module to a device and a dtype; PyTorch's defaults for None."""
    # Before PyTorch 2.7 ``get_default_device`` does not see ``with torch.device(...)``.
    new = torch.empty(0, device=device, dtype=dtype)
    module.to(device=new.device, dtype=new.dtype)


def check_no_zero(phi: Tensor, why: str) -> None:
    """Refuse a density with a zero, naming the first."""
    if not has_values(phi):
        return
    zeros = (phi == 0).nonzero()
    if len(zeros):
        raise ValueError(
            f"density must have no zero {why}; Phi is 0 at tap {tuple(zeros[0].tolist())}: a "
            "weight there has no effect, so no weight can be recovered"
        )


def _checked_kernel_size(kernel_size: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(kernel_size, Sequence):
        raise ValueError(
            "kernel_size must be a sequence with one entry per spatial axis, such as (3, 3) for "
            f"pictures; got {kernel_size!r}"
        )
    sizes = tuple(kernel_size)
    if not sizes or not all(is_integer(k) and k > 0 for k in sizes):
        raise ValueError(
            "kernel_size must hold one positive integer per spatial axis, such as (3, 3); got "
            f"{sizes}"
        )
    return tuple(map(int, sizes))


def _checked_profiles(
    profile: Sequence[float] | Sequence[Sequence[float]], kernel_size: tuple[int, ...]
) -> list[Tensor]:
    """One double tensor for all axes, or one for each, each of length k // 2 or k."""
    rows = list(profile)
    per_axis = bool(rows) and all(isinstance(row, Sequence) for row in rows)
    if not per_axis:
        if any(isinstance(row, Sequence) for row in rows):
            raise ValueError(
                f"profile must hold numbers, or one sequence per axis, not both; got {profile!r}"
            )
        if len(set(kernel_size)) > 1:
            lengths = "; ".join(
                f"{_expected_length(k)} for axis {a}" for a, k in enumerate(kernel_size)
            )
            raise ValueError(
                f"kernel_size {kernel_size} differs between axes, so profile must hold one "
                f"sequence per axis, {lengths}; got one for all: {profile!r}"
            )
        rows = [rows]
    elif len(rows) != len(kernel_size):
        raise ValueError(
            f"profile must hold one sequence per axis of kernel_size {kernel_size}, so "
            f"{len(kernel_size)}; got {len(rows)}"
        )
    for axis, (row, k) in enumerate(zip(rows, kernel_size, strict=False)):
        where = f"profile[{axis}]" if per_axis else "profile"
        length = len(row)  # type: ignore[arg-type]
        if k % 2 == 0 and length == k // 2:
            raise ValueError(
                f"{where} has {length} values, a half-profile, but a kernel of {k} taps is even "
                f"and has no centre tap; give the full profile of {k} values"
            )
        if length not in ({k} if k % 2 == 0 else {k // 2, k}):
            raise ValueError(
                f"{where} must have {_expected_length(k)} for kernel_size {k}; got {length}: "
                f"{list(row)!r}"  # type: ignore[call-overload]
            )
    return [torch.tensor(row, dtype=torch.float64, device="cpu") for row in rows]


def _expected_length(k: int) -> str:
    full = f"{k} values (the full profile)"
    half = (
        f"{k // 2} value{'s' * (k // 2 != 1)} (from the outermost tap inwards, centre 1 left out)"
    )
    return f"{half} or {full}" if k % 2 else full


def check_values(values: Tensor, name: str, positive: bool) -> None:
    """Refuse values that are not finite, or not above zero where ``positive``."""
    if not has_values(values):
        return
    good = values.isfinite() & ((values > 0) | (not positive))
    if not good.all():
        first = tuple((~good).nonzero()[0].tolist())
        index = first[0] if len(first) == 1 else first
        wanted = "finite and above zero (positive=True)" if positive else "finite"
        raise ValueError(f"{name} must be {wanted}; got {values[first].item()} at index {index}")


def hold(module: nn.Module, name: str, values: Tensor, as_logarithm: bool) -> None:
    """Register values, or their logarithm, as a parameter."""
    name, values = (f"log_{name}", values.log()) if as_logarithm else (name, values)
    module.register_parameter(name, nn.Parameter(values))


def held(module: nn.Module, name: str, as_logarithm: bool) -> Tensor:
    """Read back what :func:`hold` registered."""
    values: Tensor = getattr(module, f"log_{name}" if as_logarithm else name)
    return values.exp() if as_logarithm else values


def _full_profiles(profiles: Sequence[Tensor], kernel_size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return one full profile per axis from half or full ones; a single one is for all axes."""
    if len(profiles) == 1:
        profiles = [profiles[0]] * len(kernel_size)
    return tuple(
        p if len(p) == k else torch.cat([p, p.new_ones(1), p.flip(0)])
        for p, k in zip(profiles, kernel_size, strict=True)
    )


def outer(profiles: Sequence[Tensor]) -> Tensor:
    """Return the tensor product of profiles, in the order of the axes."""
    phi = profiles[0]
    for profile in profiles[1:]:
        phi = phi[..., None] * profile
    return phi
