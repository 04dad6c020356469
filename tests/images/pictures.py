"""Pictures whose gradients are known."""

import math

import torch

CENTRE = (24, 20)
SIZE = (49, 41)


def grid():
    rows, columns = torch.meshgrid(
        torch.arange(SIZE[0], dtype=torch.float64) - CENTRE[0],
        torch.arange(SIZE[1], dtype=torch.float64) - CENTRE[1],
        indexing="ij",
    )
    return rows, columns


def ramp(angle):
    """A ramp of slope 1 that brightens towards (sin angle, cos angle)."""
    rows, columns = grid()
    return (math.sin(angle) * rows + math.cos(angle) * columns)[None, None]


def sinusoid(angle, wavelength=12.0):
    return torch.sin(2 * math.pi / wavelength * ramp(angle))


def disc(radius=12.0):
    """A bright disc with a soft edge."""
    rows, columns = grid()
    return torch.sigmoid(radius - torch.sqrt(rows**2 + columns**2))[None, None]


def noise(channels=1, seed=0, size=SIZE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, *size, generator=generator, dtype=dtype)


def unit(angle):
    return torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
