"""Small image files for fuzz_image to start from: python fuzz/image_seeds.py FOLDER. Needs Pillow and NumPy."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, interlaced: bool, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG with these bytes as its inflated data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + end


def seeds() -> dict[str, bytes]:
    """File name -> bytes."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((17, 11))
    alpha = picture.convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<rdf:Description tiff:Orientation="8"/>'
    files = {
        "plain.jpg": encode(picture, "jpeg"),
        "progressive.jpg": encode(picture, "jpeg", progressive=True),
        "full_chroma.jpg": encode(picture, "jpeg", subsampling=0),
        "half_chroma.jpg": encode(picture, "jpeg", subsampling=1),
        "grey.jpg": encode(picture.convert("L"), "jpeg"),
        "restarts.jpg": encode(picture.resize((40, 40)), "jpeg", restart_marker_blocks=1),
        "turned.jpg": encode(picture, "jpeg", exif=exif, xmp=xmp),
        "cmyk.jpg": encode(picture.convert("CMYK"), "jpeg"),
        "rgb.jpg": encode(picture, "jpeg", keep_rgb=True),
        "adobe.jpg": encode(picture, "jpeg").replace(b"\xff\xdb", b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\1\xff\xdb", 1),
        "no_jfif.jpg": b"\xff\xd8" + encode(picture, "jpeg")[20:],
        "plain.png": encode(picture, "png"),
        "raw_profile.png": png(
            5, 4, 8, 0, False, bytes(24), chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\n49492a00\n")
        ),
        "prefixed_exif.png": png(5, 4, 8, 0, False, bytes(24), chunk(b"eXIf", exif.tobytes())),
        "bad_end.png": encode(picture, "png")[:-1] + b"\0",
        "alpha.png": encode(alpha, "png", exif=exif),
        "grey_alpha.png": encode(alpha.convert("LA"), "png"),
        "two_colours.png": encode(picture.convert("1"), "png"),
        "palette.png": encode(picture.quantize(16), "png", bits=4, transparency=3),
        "plain.bmp": encode(picture, "bmp"),
        "alpha.bmp": encode(alpha, "bmp"),
        "exif.tif": exif.tobytes()[6:],
        "packet.xmp": xmp,
    }
    for depth, colour in ((1, 0), (2, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 6)):
        channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
        row = b"\x01" + bytes(range((5 * depth * channels + 7) // 8))
        files[f"depth{depth}_colour{colour}.png"] = png(5, 4, depth, colour, False, row * 4)
        files[f"depth{depth}_colour{colour}_interlaced.png"] = png(5, 4, depth, colour, True, row * 16)
    return files


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
