"""The head of a metric convolution: a convolution whose channels become a metric at every pixel."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finslerconv._head_formula import HeadFormula
from finslerconv._parametrization import PARAMETRIZATIONS, MatrixParametrization
from finslerconv.metrics import Randers, Riemannian
from finslerconv.nn._side_conv import channels_of


class MetricHead(nn.Module):
    """Compute a field of metrics from features, equivariantly under shifts.

    With weights and biases of zero the metric is ``I / radius^2``, whose unit ball is the round one
    of ``radius`` pixels: so it starts.

    Parameters
    ----------
    conv : nn.Conv1d, nn.Conv2d or nn.Conv3d
        From the features to ``groups * channels_per_group(...)`` channels. It is initialised here.
    parametrization : MatrixParametrization
        From channels to ``M``, of as many rows as ``conv`` has axes (its ``dim``).
    eps_omega : float
        How far ``|omega|_{M^-1}`` stays below 1, in [0.01, 1]; at 1 the metric is Riemannian and
        has no channels for omega.
    omega_constraint : {"sigmoid", "sigmoid_detached", "clip"}
    groups : int
        The number of metrics at each pixel.
    radius : float
        Radius of the initial unit ball, in pixels.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import Cholesky, MetricHead
    >>> head = MetricHead(torch.nn.Conv2d(3, 5, 3, padding=1), Cholesky(), radius=2.0)
    >>> head(torch.rand(1, 3, 6, 6)).M[0, 0, 0].tolist()  # I / 4 at the start
    [[0.25, 0.0], [0.0, 0.25]]
    """

    def __init__(
        self,
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        parametrization: MatrixParametrization,
        eps_omega: float = 0.1,
        omega_constraint: str = "sigmoid",
        groups: int = 1,
        radius: float = 1.0,
    ) -> None:
        super().__init__()
        formula = HeadFormula(parametrization, eps_omega, omega_constraint, radius)
        if len(conv.kernel_size) != formula.dim:
            raise ValueError(
                f"conv: expected a convolution over {formula.dim} axes, the dimension of "
                f"{parametrization}, got {type(conv).__name__}"
            )
        channels = groups * formula.n_channels
        if conv.out_channels != channels:
            raise ValueError(f"conv: expected {channels} output channels, got {conv.out_channels}")
        self.conv = conv
        self.parametrization = parametrization
        self.eps_omega = eps_omega
        self.omega_constraint = omega_constraint
        self.groups = groups
        self.radius = radius
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        return (
            f"{self.parametrization}, eps_omega={self.eps_omega}, "
            f"omega_constraint={self.omega_constraint!r}, groups={self.groups}, "
            f"radius={self.radius}"
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at the metric ``I / radius^2``: all weights zero but those of directions."""
        self.conv.reset_parameters()
        directions = self.parametrization.n_direction_channels
        for tensor in (self.conv.weight, self.conv.bias):
            if tensor is not None:
                tensor.unflatten(0, (self.groups, -1))[:, directions:] = 0

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Randers | Riemannian:
        r"""Return the metrics at the output pixels.

        Parameters
        ----------
        x : Tensor, shape (B, C, \*size)

        Returns
        -------
        Randers or Riemannian
            Of batch (B, \*out), or (B, G, \*out) for ``G > 1`` groups; in float32 at least.
        """
        M, omega = self.formula.metrics(channels_of(self.conv, x))
        if self.groups == 1:
            M, omega = M.squeeze(1), None if omega is None else omega.squeeze(1)
        if omega is None:
            return Riemannian(M, validate=False)
        return Randers(M, omega, validate=False)

    @property
    def formula(self) -> HeadFormula:
        """How the channels of the convolution become metrics."""
        return HeadFormula(self.parametrization, self.eps_omega, self.omega_constraint, self.radius)

    @property
    def is_plain(self) -> bool:
        """Whether a call does what this class says, and nothing more.

        Then a layer may compute the metrics itself, where it places the samples. Hooks see a call.
        """
        hooks = (
            self._forward_hooks, self._forward_pre_hooks, self._backward_hooks,
            self._backward_pre_hooks,
        )  # fmt: skip
        replaced = type(self).forward is not MetricHead.forward or "forward" in vars(self)
        return not replaced and not any(hooks)


def channels_per_group(parametrization: MatrixParametrization, eps_omega: float) -> int:
    """Return the number of channels that make one metric; check ``eps_omega``."""
    return HeadFormula(parametrization, eps_omega).n_channels


def parametrization(head: str | MatrixParametrization, dims: int) -> MatrixParametrization:
    """Return the parametrisation of a name, with its default options, or the one given; checked."""
    if isinstance(head, MatrixParametrization):
        if head.dim != dims:
            raise ValueError(
                f"head: expected a parametrisation of {dims} x {dims} matrices, got {head}; make "
                f"it with dim={dims}"
            )
        return head
    if head not in PARAMETRIZATIONS:
        raise ValueError(
            f"head: expected one of {list(PARAMETRIZATIONS)} or a MatrixParametrization such as "
            f"Cholesky(eps_L=0.1), got {head!r}"
        )
    return PARAMETRIZATIONS[head](dim=dims)


def metric_penalty(model: nn.Module, strength: float = 0.01) -> Float[Tensor, ""]:
    """Return the paper's regularisation of the metrics of a model, to be added to the loss.

    ``strength`` times the mean absolute value of the weights and biases of all metric heads in
    the model (a shared head counts once): it draws every metric towards the round one at which it
    started.

    Parameters
    ----------
    model : nn.Module
        Any module with :class:`MetricConv2d` layers in it.
    strength : float
        The factor lambda; 5000 in the paper, which is for large networks only (see the notes).

    Returns
    -------
    Tensor, shape ()

    Raises
    ------
    ValueError
        If the model has no metric head.

    Notes
    -----
    The mean is over all ``n`` parameters of the heads, so each of them is pulled towards zero by
    ``strength / n``. What counts is that pull beside the derivative of the loss in one such
    parameter: where it is the larger, a parameter stays at zero, and with Adam, whose steps do not
    depend on how large a gradient is, the metrics do not learn at all. The paper's 5000 is for
    the heads of a ResNet-18, of 1e5 to 2e5 parameters: a pull of some 0.03. In a network whose
    heads have 1,450 parameters (two layers, digits of 8 x 8 pixels, cross-entropy, Adam at 1e-3)
    the mean absolute value after ten epochs was

    ======================  =======  =======  =======  =======  =======
    strength                0        1        10       100      5000
    pull on each            0        7e-4     7e-3     0.07     3.4
    mean absolute value     1.9e-2   1.5e-2   3.5e-3   2e-4     1e-4
    half-axes' ratio        1.5      1.5      1.2      1.0      1.0
    ======================  =======  =======  =======  =======  =======

    There a pull of 1e-3 is felt and one of 1e-2 is strong. Both scale with the loss: with one that
    is summed over a batch, not averaged, the same pull is weaker. The mean squared error of a
    picture is small, and so is its gradient: for two layers that denoise one of values in [0, 1]
    (heads of 415 parameters, Adam at 1e-3, 150 steps) the mean absolute value is 5e-2 with strength
    0, 3e-2 with 0.01, 6e-3 with 0.1, and 1e-4 with 1.

    The default lets metrics learn under either loss, and in larger networks it pulls less; with a
    cross-entropy a hundred times as much may be right. To choose, train shortly with 0 and with
    strengths tenfold apart, and compare ``metric_penalty(model, 1.0)``, the mean itself: a tenth of
    its value without penalty says that the metrics hardly learn.

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025), classification experiments.

    Examples
    --------
    >>> from finslerconv.nn import MetricConv2d, metric_penalty
    >>> layer = MetricConv2d(3, 8, kernel_size=3, padding=1)
    >>> metric_penalty(layer).item()  # nothing at the start; add it to the loss
    0.0
    """
    parameters = [
        parameter
        for module in model.modules()
        if isinstance(module, MetricHead)
        for parameter in module.conv.parameters()
    ]
    if not parameters:
        raise ValueError("model: expected a model with metric heads (MetricConv2d), found none")
    total = torch.stack([parameter.abs().sum() for parameter in parameters]).sum()
    return strength * total / sum(parameter.numel() for parameter in parameters)
