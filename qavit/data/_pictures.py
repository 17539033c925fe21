"""Where the pictures of a data set lie: files, a zip or tar archive, or the input itself."""

from __future__ import annotations

import functools
import os
import stat
import zipfile
from typing import Any, NamedTuple, Optional, Union

from .._base.archives import broken_archives, files_of, is_tar, is_zip, open_tar, read_member, tar_members
from .._base.files import PathLike
from .._base.pictures import MAX_FILE_BYTES


class ImageSource(NamedTuple):
    """Where a picture is; nothing of it is read before :meth:`read`. Equal sources are the same picture.

    Attributes
    ----------
    name : str
        As the input names it; what rows of output are called by.
    path : str
        The file that it is, or that it is in.
    offset, size : int
        Where in that file, for a picture in a tar file; `size` 0 is the whole file.
    data : bytes or None
        The picture file itself, where the input holds it.
    member : str
        Its name in the zip archive `path`.
    other : str
        The file that it is where there is none at `path`.
    """

    name: str
    path: str = ""
    offset: int = 0
    size: int = 0
    data: Optional[bytes] = None
    member: str = ""
    other: str = ""

    def read(self) -> Union[str, bytes]:
        """What `qavit.images.load_image` takes: a path, or a file's bytes."""
        if self.data is not None:
            return self.data
        if self.member:
            return _read_member(self.path, self.member)
        if self.size:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(min(self.size, MAX_FILE_BYTES + 1))
        instead = self.other and not os.path.exists(self.path) and os.path.exists(self.other)
        return plain_file(self.other if instead else self.path)


def plain_file(path: str) -> str:
    """The path that a table names; ValueError for a device or a pipe, which may have no end."""
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError):  # told by who opens it
        return path
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError(f"image: {path!r:.200} is a device or a pipe, expected a picture's file")
    return path


class Pictures:
    """The place that names of pictures are looked up in; can be pickled.

    Parameters
    ----------
    place : path or None
        A folder, a zip or an uncompressed tar file; None: `beside`, then the working directory.
    beside : str
        The folder of the questions.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such place, or it is another kind of file.
    """

    def __init__(self, place: Optional[PathLike], beside: str) -> None:
        self._beside = place is None
        self.path = os.path.abspath(beside if place is None else place)
        self._members: Optional[dict[str, tuple[int, int]]] = None
        if place is None or os.path.isdir(self.path):
            self._kind = "folder"
        elif not os.path.exists(self.path):
            raise FileNotFoundError(f"images: there is no folder or archive {os.fspath(place)!r}")
        elif is_zip(self.path):
            self._kind = "zip"
        elif is_tar(self.path):
            self._kind = "tar"
        else:
            with open(self.path, "rb") as file:
                if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7"):
                    raise ValueError(f"images: {self.path!r} is compressed as a whole; unpack it, or make it a .zip or .tar")
            raise ValueError(f"images: {self.path!r} is a file, expected a folder, a .zip or a .tar of pictures")

    def find(self, name: str) -> ImageSource:
        """The picture of a name. ValueError where an archive has none, or several that it may mean."""
        if self._kind == "folder":
            return ImageSource(name, os.path.join(self.path, name), other=name if self._beside else "")
        if self._members is None:
            self._members = self._index()
        wanted = os.path.normpath(name).replace(os.sep, "/")
        # An archive is often of a folder: val2014/COCO_val2014_000000000042.jpg in val2014.zip.
        found = [wanted] if wanted in self._members else [f"{top}/{wanted}" for top in self._tops]
        found = [member for member in found if member in self._members]
        if len(found) != 1:
            said = f"has {len(found)} pictures that may be" if found else "has no"
            raise ValueError(f"image: {self.path} {said} {name!r}")
        offset, size = self._members[found[0]]
        if self._kind == "zip":
            return ImageSource(name, self.path, member=found[0])
        return ImageSource(name, self.path, offset, size)

    def _index(self) -> dict[str, tuple[int, int]]:
        members: dict[str, tuple[int, int]] = {}
        if self._kind == "zip":
            members = {one.filename: (0, one.file_size) for one in files_of(_archive(self.path))}
        else:
            with broken_archives(f"images: {self.path!r} is not a whole tar file"), open_tar(self.path) as archive:
                for one in tar_members(archive):
                    if one.isfile() and one.size:
                        members[one.name.removeprefix("./")] = one.offset_data, one.size
        self._tops = sorted({name.partition("/")[0] for name in members if "/" in name})
        return members

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_members": None}


@functools.lru_cache(maxsize=4)
def _archive(path: str) -> zipfile.ZipFile:
    with broken_archives(f"images: {path!r} is not a whole zip archive"):
        return zipfile.ZipFile(path)


def _read_member(path: str, member: str) -> bytes:
    archive = _archive(path)
    with broken_archives(f"image: {member} in {path}"):
        info = archive.getinfo(member)
        if info.file_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return read_member(archive, info)
