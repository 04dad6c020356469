"""Multi-scale deformable attention as modules, as the paper's code and other libraries call it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from finslerconv import ops
from finslerconv.nn._aggregation import Samples, reset_linear


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention, as in Deformable DETR and Mask2Former.

    Each query samples a few points around its reference point on each of several feature maps, and
    sums them by attention weights. A drop-in for ``MSDeformAttn`` of the paper's code, which needs
    no compiler: the arguments, the names of the parameters and the start are the same, so its
    checkpoints load, and those of mmcv's ``MultiScaleDeformableAttention``.

    Parameters
    ----------
    d_model : int
        The number of channels.
    n_levels : int
        The number of feature maps.
    n_heads : int
        The number of groups of channels, each with points of its own.
    n_points : int
        The number of points on each map.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If ``n_heads`` does not divide ``d_model``, or a number is not positive.

    Notes
    -----
    ``state_dict`` keys: ``sampling_offsets.*``, ``attention_weights.*``, ``value_proj.*``,
    ``output_proj.*``. At the start the heads look into different directions, point after point
    farther.

    References
    ----------
    Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection" (ICLR
    2021).

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import MSDeformAttn
    >>> layer = MSDeformAttn(d_model=64, n_levels=2, n_heads=4, n_points=3)
    >>> shapes = torch.tensor([[8, 6], [4, 3]])
    >>> maps, query = torch.randn(1, 8 * 6 + 4 * 3, 64), torch.randn(1, 10, 64)
    >>> reference_points = torch.rand(1, 10, 2, 2)  # (x, y) of each query on each map, in [0, 1]
    >>> layer(query, reference_points, maps, shapes).shape
    torch.Size([1, 10, 64])
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("n_levels", n_levels), ("n_heads", n_heads), ("n_points", n_points)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        if d_model % n_heads != 0:
            raise ValueError(f"n_heads: expected a divisor of d_model {d_model}, got {n_heads}")
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        like = {"device": device, "dtype": dtype}
        samples = n_heads * n_levels * n_points
        self.sampling_offsets = nn.Linear(d_model, samples * 2, **like)
        self.attention_weights = nn.Linear(d_model, samples, **like)
        self.value_proj = nn.Linear(d_model, d_model, **like)
        self.output_proj = nn.Linear(d_model, d_model, **like)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew: equal weights, and points that look from the centre into all directions."""
        reset_linear(self)
        bias = self.sampling_offsets.bias
        rays = self.rays(self.n_heads, self.n_points).to(bias.device)
        bias.copy_(rays[:, None].expand(-1, self.n_levels, -1, -1).reshape(-1))

    @staticmethod
    def rays(n_heads: int, n_points: int) -> Float[Tensor, "heads points 2"]:
        """Return the points (x, y) of each head before anything is learned, in pixels.

        Each head's are on a ray of its own, of lengths 1, 2, ... along its longer axis.
        """
        angles = torch.arange(n_heads) * (2 * math.pi / n_heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        return directions[:, None] * torch.arange(1, n_points + 1)[:, None]

    def forward(
        self,
        query: Float[Tensor, "batch queries channels"],
        reference_points: Float[Tensor, "#batch #queries #levels point"],
        input_flatten: Float[Tensor, "batch pixels channels"],
        input_spatial_shapes: Int[Tensor, "levels 2"],
        input_level_start_index: Int[Tensor, " levels"] | None = None,
        input_padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return what the queries gather.

        Parameters
        ----------
        query : Tensor, shape (B, Q, d_model)
        reference_points : Tensor, shape (B, Q, n_levels, 2) or (B, Q, n_levels, 4)
            Points (x, y) in units of each map, from (0, 0) at its top left corner to (1, 1) at the
            bottom right one; or boxes (x, y, width, height), of which offsets are parts. An axis
            of length 1 stands for equal values along it.
        input_flatten : Tensor, shape (B, S, d_model)
            The pixels of all maps, each row by row.
        input_spatial_shapes : Tensor of integers, shape (n_levels, 2)
            Rows and columns of each map.
        input_level_start_index : Tensor of integers, shape (n_levels,), optional
            The index of each map's first pixel.
        input_padding_mask : Tensor of bool, shape (B, S), optional
            True where a pixel is padding, which counts as zero.
        """
        return self._attend(
            query, reference_points, input_flatten, input_spatial_shapes, input_level_start_index,
            input_padding_mask,
        )[0]  # fmt: skip

    def samples(
        self,
        query: Float[Tensor, "batch queries channels"],
        reference_points: Float[Tensor, "#batch #queries #levels point"],
        input_flatten: Float[Tensor, "batch pixels channels"],
        input_spatial_shapes: Int[Tensor, "levels 2"],
        input_level_start_index: Int[Tensor, " levels"] | None = None,
        input_padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Samples:
        """Return the sampling positions and their weights for the arguments of :meth:`forward`."""
        levels = ops.level_table(input_spatial_shapes, None, query.device)
        reference_points = self._on_each_level(query, reference_points)
        offsets, weights = self._fields(query, reference_points, levels)
        return Samples(offsets.flip(-1).transpose(1, 2), weights.transpose(1, 2))

    def _attend(
        self,
        query: Tensor,
        reference_points: Tensor,
        maps: Tensor,
        shapes: Tensor | Sequence[Sequence[int]],
        starts: Tensor | Sequence[int] | None,
        padding: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what the queries gather, and the attention weights (B, Q, heads, L, points)."""
        levels = ops.level_table(shapes, starts, maps.device)
        reference_points = self._on_each_level(query, reference_points)
        offsets, weights = self._fields(query, reference_points, levels)
        value = self.value_proj(maps)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.unflatten(-1, (self.n_heads, -1))
        # From units of the maps to pixels: the centre of the first pixel is (0, 0).
        points = reference_points[:, :, None, :, None, :2].to(offsets.dtype)
        points = points * _sizes(levels, offsets.dtype) - 0.5
        gathered = ops.aggregate(value, points + offsets, weights, levels).flatten(2)
        return self.output_proj(gathered), weights

    def _on_each_level(self, query: Tensor, reference_points: Tensor) -> Tensor:
        """Return the checked reference points of each query on each level."""
        expected = (*query.shape[:2], self.n_levels)
        if query.ndim != 3 or query.shape[2] != self.d_model:
            raise ValueError(
                f"query: expected shape (B, Q, {self.d_model}), got {tuple(query.shape)}"
            )
        shape = tuple(reference_points.shape)
        if (
            len(shape) != 4
            or shape[3] not in (2, 4)
            or any(n not in (1, m) for n, m in zip(shape, expected, strict=False))
        ):
            raise ValueError(
                f"reference_points: expected shape {(*expected, 2)} or {(*expected, 4)}, got "
                f"{shape}"
            )
        return reference_points.expand(*expected, -1)

    def _fields(
        self, query: Tensor, reference_points: Tensor, levels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return offsets (x, y) in pixels, float32 at least, and attention weights."""
        if len(levels) != self.n_levels:
            raise ValueError(
                f"input_spatial_shapes: expected {self.n_levels} levels, got {len(levels)}"
            )
        grid = (self.n_heads, self.n_levels, self.n_points)
        weights = self.attention_weights(query).unflatten(-1, (self.n_heads, -1)).softmax(-1)
        offsets = self.sampling_offsets(query).unflatten(-1, (*grid, 2))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        if reference_points.shape[3] == 4:
            box = reference_points[:, :, None, :, None, 2:].to(offsets.dtype)
            offsets = offsets * (box * _sizes(levels, offsets.dtype) * (0.5 / self.n_points))
        return offsets, weights.unflatten(-1, grid[1:])

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        return (
            f"{self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, "
            f"n_points={self.n_points}"
        )


class MultiScaleDeformableAttention(MSDeformAttn):
    """:class:`MSDeformAttn` as mmcv calls it, with dropout and the residual sum inside.

    A drop-in for ``mmcv.ops.MultiScaleDeformableAttention`` and detrex's, and without ``residual``
    for that of Grounding DINO: the names of the parameters are the same, so checkpoints load.

    Parameters
    ----------
    embed_dims : int
        The number of channels.
    num_heads, num_levels, num_points : int
        As ``n_heads``, ``n_levels`` and ``n_points`` of :class:`MSDeformAttn`.
    dropout : float
        The share of the output's entries that training sets to zero.
    batch_first : bool
        Whether queries and maps have shape (B, N, C), instead of (N, B, C).
    value_proj_ratio : float
        The number of the values' channels, in parts of ``embed_dims``.
    residual : bool
        Whether the query, or ``identity``, is added to the output.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If ``num_heads`` does not divide the channels, or a number is not positive.

    Notes
    -----
    mmcv's ``im2col_step``, ``norm_cfg`` and ``init_cfg`` have nothing to say here and are no
    arguments.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import MultiScaleDeformableAttention
    >>> layer = MultiScaleDeformableAttention(64, num_heads=4, num_levels=2, dropout=0.1)
    >>> maps, query = torch.randn(60, 1, 64), torch.randn(10, 1, 64)
    >>> layer(query, value=maps, reference_points=torch.rand(1, 10, 2, 2),
    ...       spatial_shapes=torch.tensor([[8, 6], [4, 3]])).shape
    torch.Size([10, 1, 64])
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        *,
        dropout: float = 0.1,
        batch_first: bool = False,
        value_proj_ratio: float = 1.0,
        residual: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        like = {"device": device, "dtype": dtype}
        super().__init__(embed_dims, num_levels, num_heads, num_points, **like)
        self.batch_first = batch_first
        self.residual = residual
        self.dropout = nn.Dropout(dropout)
        channels = int(embed_dims * value_proj_ratio)
        if channels < 1 or channels % num_heads != 0:
            raise ValueError(
                f"value_proj_ratio: expected {num_heads} heads to divide the values' channels, got "
                f"{value_proj_ratio}, which makes {channels} channels"
            )
        if channels != embed_dims:
            self.value_proj = nn.Linear(embed_dims, channels, **like)
            self.output_proj = nn.Linear(channels, embed_dims, **like)
            self.reset_parameters()

    def forward(  # type: ignore[override]
        self,
        query: Float[Tensor, "..."],
        key: Float[Tensor, "..."] | None = None,
        value: Float[Tensor, "..."] | None = None,
        identity: Float[Tensor, "..."] | None = None,
        query_pos: Float[Tensor, "..."] | None = None,
        key_padding_mask: Bool[Tensor, "batch pixels"] | None = None,
        reference_points: Float[Tensor, "#batch #queries #levels point"] | None = None,
        spatial_shapes: Int[Tensor, "levels 2"] | None = None,
        level_start_index: Int[Tensor, " levels"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "..."]:
        """Return what the queries gather, of the shape of the query.

        Parameters
        ----------
        query : Tensor, shape (Q, B, embed_dims), or (B, Q, embed_dims) with ``batch_first``
        key : Tensor, optional
            Not used.
        value : Tensor, shape (S, B, embed_dims), or (B, S, embed_dims), optional
            The pixels of all maps, each row by row; the query by default.
        identity : Tensor, shape of the query, optional
            What is added to the output; the query by default.
        query_pos : Tensor, shape of the query, optional
            What is added to the query first.
        key_padding_mask : Tensor of bool, shape (B, S), optional
            True where a pixel is padding, which counts as zero.
        reference_points, spatial_shapes, level_start_index
            As ``reference_points``, ``input_spatial_shapes`` and ``input_level_start_index`` of
            :class:`MSDeformAttn`; the first two are needed.
        **kwargs
            Not used.
        """
        maps = query if value is None else value
        added = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, maps = query.transpose(0, 1), maps.transpose(0, 1)
        output, _ = self._attend(
            query, _needed("reference_points", reference_points), maps,
            _needed("spatial_shapes", spatial_shapes), level_start_index, key_padding_mask,
        )  # fmt: skip
        output = self.dropout(output if self.batch_first else output.transpose(0, 1))
        return output + added if self.residual else output

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        shown = f"{super().extra_repr()}, batch_first={self.batch_first}"
        return shown if self.residual else f"{shown}, residual=False"


class TransformersDeformAttn(MSDeformAttn):
    """:class:`MSDeformAttn` as the models of ``transformers`` call it, with their returns.

    For :func:`convert`, and for checkpoints of these models: the names of the parameters are the
    same.

    Parameters
    ----------
    d_model, n_levels, n_heads, n_points, device, dtype
        As in :class:`MSDeformAttn`.
    mask_is_padding : bool
        Whether True in ``attention_mask`` marks padding, as in the pixel decoders of Mask2Former
        and OneFormer. In all other models True marks what is no padding.

    Raises
    ------
    ValueError
        If ``n_heads`` does not divide ``d_model``, or a number is not positive.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import TransformersDeformAttn
    >>> layer = TransformersDeformAttn(d_model=64, n_levels=2, n_heads=4, n_points=3)
    >>> output, weights = layer(
    ...     torch.randn(1, 10, 64),
    ...     encoder_hidden_states=torch.randn(1, 60, 64),
    ...     reference_points=torch.rand(1, 10, 2, 2),
    ...     spatial_shapes=torch.tensor([[8, 6], [4, 3]]),
    ... )
    >>> output.shape, weights.shape
    (torch.Size([1, 10, 64]), torch.Size([1, 10, 4, 2, 3]))
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        *,
        mask_is_padding: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, n_levels, n_heads, n_points, device=device, dtype=dtype)
        self.mask_is_padding = mask_is_padding

    def forward(  # type: ignore[override]
        self,
        hidden_states: Float[Tensor, "batch queries channels"],
        attention_mask: Bool[Tensor, "batch pixels"] | None = None,
        encoder_hidden_states: Float[Tensor, "batch pixels channels"] | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Float[Tensor, "..."] | None = None,
        reference_points: Float[Tensor, "#batch #queries #levels point"] | None = None,
        spatial_shapes: Int[Tensor, "levels 2"] | None = None,
        spatial_shapes_list: Sequence[Sequence[int]] | None = None,
        level_start_index: Int[Tensor, " levels"] | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[
        Float[Tensor, "batch queries channels"],
        Float[Tensor, "batch queries heads levels points"],
    ]:
        """Return what the queries gather, and the weights of their samples.

        Parameters
        ----------
        hidden_states : Tensor, shape (B, Q, d_model)
            The queries.
        attention_mask : Tensor of bool, shape (B, S), optional
            Which pixels are padding, or which are not (``mask_is_padding``). Padding counts as
            zero.
        encoder_hidden_states : Tensor, shape (B, S, d_model)
            The pixels of all maps, each row by row.
        encoder_attention_mask, output_attentions, **kwargs
            Not used.
        position_embeddings : Tensor, shape (B, Q, d_model), optional
            What is added to the queries.
        reference_points, level_start_index
            As in :class:`MSDeformAttn`.
        spatial_shapes : Tensor of integers, shape (n_levels, 2)
            Rows and columns of each map.
        spatial_shapes_list : sequence of pairs of int, optional
            The same, where ``spatial_shapes`` is not given.
        """
        if position_embeddings is not None:
            hidden_states = hidden_states + position_embeddings
        shapes: Any = spatial_shapes_list if spatial_shapes is None else spatial_shapes
        padding = attention_mask
        if padding is not None and not self.mask_is_padding:
            padding = ~padding
        return self._attend(
            hidden_states, _needed("reference_points", reference_points),
            _needed("encoder_hidden_states", encoder_hidden_states),
            _needed("spatial_shapes", shapes), level_start_index, padding,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return what the module's line in a printed model shows."""
        return super().extra_repr() + ", mask_is_padding=True" * self.mask_is_padding


class MSDeformAttnCore(nn.Module):
    """:func:`finslerconv.ops.ms_deform_attn` as a module, without parameters.

    The newer models of ``transformers`` have such a module, ``MultiScaleDeformableAttention``,
    inside each attention; :func:`convert` replaces it alone.

    Examples
    --------
    >>> import torch
    >>> from finslerconv.nn import MSDeformAttnCore
    >>> value = torch.randn(2, 4 * 6 + 2 * 3, 8, 32)  # maps of 4 x 6 and 2 x 3 pixels
    >>> shapes, starts = torch.tensor([[4, 6], [2, 3]]), torch.tensor([0, 24])
    >>> locations = torch.rand(2, 5, 8, 2, 4, 2)
    >>> weights = torch.randn(2, 5, 8, 2 * 4).softmax(-1).unflatten(-1, (2, 4))
    >>> MSDeformAttnCore()(value, shapes, None, starts, locations, weights).shape
    torch.Size([2, 5, 256])
    """

    def forward(
        self,
        value: Float[Tensor, "batch pixels heads channels"],
        value_spatial_shapes: Int[Tensor, "levels 2"],
        value_spatial_shapes_list: Sequence[Sequence[int]] | None,
        level_start_index: Int[Tensor, " levels"] | None,
        sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
        attention_weights: Float[Tensor, "batch queries heads levels points"],
        im2col_step: int = 64,
    ) -> Float[Tensor, "batch queries all_channels"]:
        """Return the attended points; neither the list of shapes nor ``im2col_step`` is used."""
        return ops.ms_deform_attn(
            value, value_spatial_shapes, level_start_index, sampling_locations, attention_weights
        )


def _sizes(levels: Tensor, dtype: torch.dtype) -> Float[Tensor, "levels 1 2"]:
    """Return columns and rows of each level: the units of a map (x, y) in pixels."""
    return levels[:, None, :2].flip(-1).to(dtype)


def _needed(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"{name}: attention needs it, got None")
    return value
