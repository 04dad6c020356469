"""The density that is a profile of each tap's metric distance: where both papers meet."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv._arrays import constant_like, has_values
from finslerconv._norms import norm_off_zero
from finslerconv.metrics import FinslerMetric, Randers
from finslerconv.nn.weighted._density import Density, place
from finslerconv.nn.weighted._profiles import Profile


class MetricDensity(Density):
    r"""A density that depends on each tap's metric distance from the centre.

    .. math:: \Phi(g) = \rho(F(g)),

    with ``g`` the centred tap offset (down, right, in taps; dilation does not change it). A
    weighted convolution is thus a density on the same unit balls whose samples a metric
    convolution takes. An asymmetric metric, such as Randers, gives a density that is not the
    same on both sides.

    Parameters
    ----------
    kernel_size : sequence of int
        Taps along each spatial axis, such as ``(5, 5)``. The offsets are integers when the sizes
        are odd; an even size has its centre between two taps.
    metric : FinslerMetric or nn.Module
        The metric, one for the whole kernel (batch shape ``()``) and of as many dimensions as
        ``kernel_size`` has. To train it, a module whose call returns it, such as
        :class:`TrainableRanders`.
    profile : Profile
        ``rho``: :class:`GaussianProfile`, :class:`PowerProfile`, :class:`FreeProfile` or your own.
    device, dtype
        Where the density lives; by default PyTorch's defaults.

    Raises
    ------
    TypeError
        If ``metric`` is neither a metric nor a module that returns one.
    ValueError
        If the metric is a field, is of another dimension, or the density is not finite.

    Notes
    -----
    The density is trainable when the profile or the metric is. A metric that is not a module is
    taken as it is now; no gradient reaches its tensors. ``state_dict`` keys: ``phi`` when
    fixed; those of ``profile`` and ``metric`` when trained.

    Examples
    --------
    >>> from finslerconv.metrics import Euclidean
    >>> from finslerconv.nn.weighted import PowerProfile
    >>> MetricDensity((3, 3), Euclidean(2), PowerProfile(1.0))()
    tensor([[0.4142, 0.5000, 0.4142],
            [0.5000, 1.0000, 0.5000],
            [0.4142, 0.5000, 0.4142]])
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        metric: FinslerMetric | nn.Module,
        profile: Profile,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kernel_size)
        current = metric if isinstance(metric, FinslerMetric) else metric()
        if not isinstance(current, FinslerMetric):
            raise TypeError(
                "metric must be a FinslerMetric or a module whose call returns one; got "
                f"{type(metric).__name__}, which returns {type(current).__name__}"
            )
        if current.dim != len(self.kernel_size):
            raise ValueError(
                f"metric must be of dimension {len(self.kernel_size)}, one for each axis of "
                f"kernel_size {self.kernel_size}; got dimension {current.dim}"
            )
        if current.batch_shape != ():
            raise ValueError(
                "metric must be one metric for the whole kernel, of batch shape (); got batch "
                f"shape {current.batch_shape}; take one of its points, such as metric[0, 0]"
            )
        with torch.no_grad():
            distances = _distances(current, self.kernel_size)
            # Another density may have moved the profile to its device.
            numbers = itertools.chain(profile.parameters(), profile.buffers())
            home = next(numbers, distances).device
            phi = profile(distances.to(home)) if has_values(distances) else distances
        if has_values(phi) and not phi.isfinite().all():
            first = tuple((~phi.isfinite()).nonzero()[0].tolist())
            raise ValueError(
                f"profile must be finite on the taps; at tap {first}, distance "
                f"{distances[first].item():.6g}, it is {phi[first].item()}"
            )
        if isinstance(metric, nn.Module):
            self.metric = metric
            self.profile = profile
        elif profile.trainable:
            self.profile = profile
            self.register_buffer("distances", distances)
        else:
            self.phi = phi
        place(self, device, dtype)

    def _evaluate(self) -> Tensor:
        if isinstance(self._modules.get("metric"), nn.Module):
            metric = self.metric()
            like = metric.like
            if not isinstance(like, Tensor):  # a metric without numbers, such as the Euclidean one
                like = next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0))
            taps = tap_offsets(self.kernel_size, like)
            return self.profile(norm_off_zero(metric.norm, taps))
        return self.profile(self.distances)


class TrainableRanders(nn.Module):
    r"""A Randers metric with parameters, valid whatever their values.

    .. math:: M = L L^\top, \qquad \omega = \frac{L n}{\sqrt{1 + |n|^2}},

    with ``L`` lower triangular of positive diagonal: then
    :math:`|\omega|_{M^{-1}} = |n| / \sqrt{1 + |n|^2} < 1`. Calling it gives the metric.

    Parameters
    ----------
    M : Tensor
        Where to start: shape ``(d, d)``, symmetric positive definite, in 1 / taps^2.
    omega : Tensor, optional
        Where to start: shape ``(d,)``, in 1 / taps; by default 0 (and it is trained too).

    Raises
    ------
    ValueError
        If ``M`` and ``omega`` make no Randers metric.

    Notes
    -----
    ``state_dict`` keys: ``lower``, shape ``(d, d)``, of which the strict lower triangle is read;
    ``log_diagonal`` and ``one_form``, shape ``(d,)``.

    Examples
    --------
    >>> metric = TrainableRanders(torch.eye(2), torch.tensor([0.0, 0.5]))
    >>> metric().norm(torch.tensor([[0.0, 1.0], [0.0, -1.0]])).detach()
    tensor([1.5000, 0.5000])
    """

    def __init__(self, M: Float[Tensor, "d d"], omega: Float[Tensor, " d"] | None = None) -> None:
        super().__init__()
        M = M.detach()
        omega = M.new_zeros(len(M)) if omega is None else omega.detach()
        Randers(M, omega)  # Its checks name what is wrong.
        L = torch.linalg.cholesky(M)
        m = torch.linalg.solve_triangular(L, omega[:, None], upper=False)[:, 0]
        self.lower = nn.Parameter(L.tril(-1))
        self.log_diagonal = nn.Parameter(L.diagonal().log())
        self.one_form = nn.Parameter(m / (1 - m.dot(m)).sqrt())

    def forward(self) -> Randers:
        """Return the metric."""
        L = self.lower.tril(-1) + torch.diag(self.log_diagonal.exp())
        n = self.one_form
        return Randers(L @ L.T, L @ n / (1 + n.dot(n)).sqrt(), validate=False)


def tap_offsets(kernel_size: Sequence[int], like: Tensor) -> Tensor:
    """Centred tap offsets, shape ``(*kernel_size, d)``, in array-axis order."""
    axes = [
        torch.arange(k, dtype=like.dtype, device=like.device) - (k - 1) / 2 for k in kernel_size
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _distances(metric: FinslerMetric, kernel_size: Sequence[int]) -> Tensor:
    """F at the taps, in double on the CPU, whatever kind of array the metric computes in."""
    if not has_values(metric.like):
        return torch.empty(kernel_size, dtype=torch.float64, device="meta")
    exact = torch.empty(0, dtype=torch.float64, device="cpu")
    taps = constant_like(tap_offsets(kernel_size, exact).numpy(), metric.like)
    norms = norm_off_zero(metric.norm, taps)
    if isinstance(norms, Tensor):
        return norms.detach().to(device="cpu", dtype=torch.float64)
    return torch.from_numpy(np.asarray(norms, dtype=np.float64))
