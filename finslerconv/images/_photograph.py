"""The photograph of the examples and of the command, which is part of the package."""

import zlib
from importlib.resources import files

import numpy as np
from jaxtyping import UInt8


def photograph() -> UInt8[np.ndarray, "512 512"]:
    """Return the photograph that the examples use: a photographer with a camera, grey.

    Returns
    -------
    ndarray, shape (512, 512)
        Integers from 0 to 255; ``photograph() / 255`` is in [0, 1].

    Notes
    -----
    By Lav Varshney, CC0 (public domain). The pixels are those of ``skimage.data.camera()``.

    Examples
    --------
    >>> from finslerconv.images import photograph
    >>> photograph().shape
    (512, 512)
    """
    png = (files(__package__) / "photograph.png").read_bytes()
    # Behind the signature and the header, of 33 bytes, the file holds one block of pixels.
    size = int.from_bytes(png[33:37], "big")
    rows = np.frombuffer(zlib.decompress(png[41 : 41 + size]), dtype=np.uint8).reshape(512, 513)
    # Each row is a 2, the number of PNG's filter, and the difference from the row above.
    return np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
