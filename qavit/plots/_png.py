"""Pixels as a PNG file, each row as its difference to the one above: half the time of trying every filter on every row."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from .._base.pictures import Picture

LEVEL = 1  # of zlib: a quarter of the time of its sixth, and a fifth more bytes
_RGB, _UP = 2, 2  # the PNG specification's numbers of a colour type and of a filter


def png_of(pixels: Picture, dpi: float) -> bytes:
    """The bytes of a PNG file.

    Parameters
    ----------
    pixels : uint8 array [height, width, 3]
    dpi : float
        Pixels per inch, which the file holds as pixels per metre.

    Returns
    -------
    bytes
    """
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, width * 3)
    filtered = np.empty((height, width * 3 + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as the filter wants it
    metre = round(dpi / 0.0254)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)),
            _chunk(b"pHYs", struct.pack(">IIB", metre, metre, 1)),
            _chunk(b"IDAT", zlib.compress(filtered.data, LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length before and its checksum behind."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
