"""Reading a photograph of any kind that Pillow reads, as floats in [0, 1]."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from finslerconv.cli._options import SMALLEST
from finslerconv.images import photograph


class PictureError(ValueError):
    """A file cannot be used as a picture; the message says why in one line."""


def read_picture(path: Path | None, max_size: int) -> Float[np.ndarray, "channels height width"]:
    """Return a picture in [0, 1], reduced to at most ``max_size`` pixels on its longer side.

    Any file that Pillow reads; without a path, :func:`finslerconv.images.photograph`. Transparent
    parts become white, a camera's orientation is applied, of several frames the first is taken.
    Grey pictures have one channel, also if stored in colour, others three. Raises a PictureError if
    there is no such picture, or it is too small.
    """
    if path is None:
        pixels = photograph()[None] / np.float32(255)
        name = "the camera photograph"
    else:
        pixels = _decode(path)
        name = str(path)
    pixels = _reduced(pixels, max_size)
    height, width = pixels.shape[1:]
    if min(height, width) < SMALLEST:
        raise PictureError(
            f"{name}: expected at least {SMALLEST} x {SMALLEST} pixels (with the longer side at "
            f"most {max_size}), got {height} x {width}"
        )
    return pixels


def write_picture(pixels: Float[np.ndarray, "channels height width"], path: Path) -> None:
    """Write a picture in [0, 1] with 8 bits a channel, in the format that the ending names."""
    levels = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    Image.fromarray(levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1)).save(path)


def _decode(path: Path) -> Float[np.ndarray, "channels height width"]:
    if not path.exists():
        raise PictureError(f"{path}: no such file")
    if path.is_dir():
        raise PictureError(f"{path}: expected a picture, got a directory")
    try:
        with warnings.catch_warnings():
            # Pillow warns of unusual files, and raises for those that it cannot read.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                return _floats(ImageOps.exif_transpose(image))
    # SyntaxError is what Pillow raises for some broken PNG files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path}: cannot be read as a picture ({error})") from error


def _floats(image: Image.Image) -> Float[np.ndarray, "channels height width"]:
    if image.mode.startswith(("I", "F")):
        return _deep_grey(np.asarray(image, dtype=np.float64), sixteen_bit=image.mode != "F")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    pixels = np.moveaxis(pixels, -1, 0)
    return pixels[:1] if (pixels == pixels[:1]).all() else pixels


def _deep_grey(
    grey: Float[np.ndarray, "height width"], sixteen_bit: bool
) -> Float[np.ndarray, "1 height width"]:
    if not np.isfinite(grey).all():
        raise ValueError("it holds values that are not finite")
    low, high = (0.0, 65535.0) if sixteen_bit else (0.0, 1.0)
    if grey.min() < low or grey.max() > high:
        low, high = grey.min(), grey.max()
    # A constant picture out of this range becomes black.
    return ((grey - low) / ((high - low) or 1.0))[None].astype(np.float32)


def _reduced(
    pixels: Float[np.ndarray, "channels height width"], max_size: int
) -> Float[np.ndarray, "channels small_height small_width"]:
    height, width = pixels.shape[1:]
    factor = max_size / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(pixels)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    channels = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.LANCZOS))
        for channel in pixels
    ]
    return np.clip(np.stack(channels), 0, 1)
