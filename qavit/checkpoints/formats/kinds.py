"""What kind of file this is, told by its first bytes and never by its name."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..._base.small_files import Path_

#: As many bytes as the longest of the marks below needs.
HEAD_BYTES = 1024
_TORCH = "give weights of PyTorch or safetensors"


class Kind(NamedTuple):
    """A kind of file: a short name, and for those that are not read what to say about them."""

    name: str
    refusal: str = ""


_MARKS: tuple[tuple[bytes, Kind], ...] = (
    (b"PK\x03\x04", Kind("zip")),
    (b"GGUF", Kind("gguf", f"a GGUF file, of llama.cpp; {_TORCH} that it was made of")),
    (b"lmgg", Kind("ggml", f"a GGML file, of llama.cpp; {_TORCH} that it was made of")),
    (b"tjgg", Kind("ggml", f"a GGML file, of llama.cpp; {_TORCH} that it was made of")),
    (b"\x89HDF\r\n\x1a\n", Kind("hdf5", f"an HDF5 file, of Keras and TensorFlow; {_TORCH}")),
    (b"\x1f\x8b", Kind("gzip", "a gzip file: unpack it first")),
    (b"BZh", Kind("bzip2", "a bzip2 file: unpack it first")),
    (b"\xfd7zXZ", Kind("xz", "an xz file: unpack it first")),
    (b"\x28\xb5\x2f\xfd", Kind("zstd", "a Zstandard file: unpack it first")),
    (b"7z\xbc\xaf", Kind("7z", "a 7z archive: unpack it first")),
    (b"Rar!", Kind("rar", "a RAR archive: unpack it first")),
    (b"\x93NUMPY", Kind("npy", f"a NumPy array; {_TORCH}")),
    (b"version https://git-lfs", Kind("lfs", "a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")),
    (b"\x89PNG", Kind("png", "a PNG picture")),
    (b"\xff\xd8\xff", Kind("jpeg", "a JPEG picture")),
)
_HTML = re.compile(rb"^(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|body)", re.IGNORECASE)


def kind_of(head: bytes) -> Kind:
    """The kind of a file by its first `HEAD_BYTES` bytes (fewer where it is shorter)."""
    if not head:
        return Kind("empty", "the file is empty")
    # First, as the length that it begins with can look like any of the marks.
    if len(head) > 9 and 0 < int.from_bytes(head[:8], "little") < 1 << 40 and head[8:].lstrip()[:1] == b"{":
        return Kind("safetensors")
    for mark, kind in _MARKS:
        if head.startswith(mark):
            return kind
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return Kind("pickle")
    if head[257:262] == b"ustar":
        return Kind("tar", "a tar archive: unpack it first")
    if _HTML.match(head):
        return Kind("html", "a web page, not weights: a download that was answered with a page of an error or a login")
    if head[0] == 0x08 and len(head) > 2 and head[1] < 0x20 and head[2] in b"\x12\x1a\x22\x3a\x42":
        return Kind("onnx", f"an ONNX model; {_TORCH} that it was made of")
    if 0x81 <= head[0] <= 0x8F and len(head) > 1 and (0xA0 <= head[1] <= 0xBF or head[1] in b"\xd9\xda"):
        return Kind("msgpack", f"a msgpack file, of Flax; {_TORCH}")
    if head.lstrip()[:1] in (b"{", b"["):
        return Kind("json", "a JSON text, not weights")
    return Kind("unknown", "neither a file of torch.save nor safetensors")


def file_kind(path: Path_) -> Kind:
    """The kind of a file; a FileNotFoundError where there is none."""
    with open(path, "rb") as file:
        return kind_of(file.read(HEAD_BYTES))
