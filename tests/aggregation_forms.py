"""The papers' formulas in plain PyTorch, made of ``grid_sample``: the truth for the aggregation."""

import torch
from torch.nn import functional


def dcnv3_form(input, offset, mask, kernel, stride, pad, dilation, group, scale, remove_center):
    """DCNv3 on a padded image, in units of it, as InternImage writes it down."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, pad, dilation
    padded = functional.pad(input, (0, 0, pw, pw, ph, ph))
    batch, height, width, channels = padded.shape
    rows, columns = offset.shape[1:3]
    # The centre of the kernel over the padded image, in pixels from its border.
    y0, x0 = dh * (kh - 1) // 2, dw * (kw - 1) // 2
    centre = torch.stack(
        torch.meshgrid(
            torch.arange(columns) * sw + x0 + 0.5, torch.arange(rows) * sh + y0 + 0.5, indexing="xy"
        ),
        -1,
    ).double()
    taps = [
        (i * dw - x0, j * dh - y0)
        for i in range(kw)
        for j in range(kh)
        if not (remove_center and (i, j) == (kw // 2, kh // 2))
    ]
    taps = torch.tensor(taps, dtype=torch.float64)
    offset = offset.reshape(batch, rows, columns, group, len(taps), 2)
    where = centre[:, :, None, None] + scale * (taps + offset)
    grid = 2 * where / torch.tensor([width, height]) - 1
    images = padded.permute(0, 3, 1, 2).reshape(batch * group, channels // group, height, width)
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * group, rows * columns, len(taps), 2)
    samples = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    weights = mask.reshape(batch, rows * columns, group, 1, len(taps)).transpose(1, 2)
    samples = samples.reshape(batch, group, channels // group, rows * columns, len(taps))
    output = (samples * weights.transpose(2, 3)).sum(-1)
    return output.reshape(batch, channels, rows, columns).permute(0, 2, 3, 1)


def dcnv4_form(input, offset_mask, kernel, stride, pad, dilation, group, scale, remove_center):
    """DCNv4, which is DCNv3 with offsets and weights of a group side by side."""
    taps = kernel[0] * kernel[1] - remove_center
    each = offset_mask[..., : group * taps * 3].unflatten(-1, (group, 3 * taps))
    offset, mask = each[..., : 2 * taps].flatten(-2), each[..., 2 * taps :].flatten(-2)
    return dcnv3_form(
        input, offset, mask, kernel, stride, pad, dilation, group, scale, remove_center
    )


def attention_form(value, shapes, locations, weights):
    """Attend to points of several maps as Deformable DETR does, level by level."""
    batch, _, heads, channels = value.shape
    total = 0
    first = 0
    for level, (rows, columns) in enumerate(shapes):
        maps = value[:, first : first + rows * columns].permute(0, 2, 3, 1)
        maps = maps.reshape(batch * heads, channels, rows, columns)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples = functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        factor = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (samples * factor).sum(-1)
        first += rows * columns
    return total.reshape(batch, heads * channels, locations.shape[1]).transpose(1, 2)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dcnv3_arguments(case, seed=0):
    """Return input, offset and mask for a case of :func:`dcnv3_form`'s other arguments."""
    batch, size, channels = case["batch"], case["size"], case["channels"]
    kernel, group = case["kernel"], case["group"]
    rows, columns = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            size, case["pad"], case["dilation"], kernel, case["stride"], strict=True
        )
    )
    taps = kernel[0] * kernel[1] - case["remove_center"]
    return (
        normal(batch, *size, channels, seed=seed),
        2 * normal(batch, rows, columns, group * taps * 2, seed=seed + 1),
        normal(batch, rows, columns, group * taps, seed=seed + 2),
    )


def with_gradients(function, tensors):
    """Return a function's output and all its gradients, along a fixed direction."""
    live = [t.detach().clone().requires_grad_() for t in tensors]
    output = function(*live)
    return (output, *torch.autograd.grad(output, live, normal(*output.shape, seed=99).to(output)))
