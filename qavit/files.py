"""Writing files whole: a reader, or a run that is taken up again, never sees half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Union

PathLike = Union[str, "os.PathLike[str]"]


def write_whole(path: PathLike, data: bytes) -> Path:
    """Write a file so that it is there whole or not at all.

    Parameters
    ----------
    path : str or path
        Where to; an existing file is replaced. Its folder must exist.
    data : bytes
        All of the content.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    FileNotFoundError
        When the folder does not exist.
    IsADirectoryError
        When `path` is a folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {str(target.parent)!r} does not exist; create it first")
    if target.is_dir():
        raise IsADirectoryError(f"path: {str(target)!r} is a folder, expected the name of a file")
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target
