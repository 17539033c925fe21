"""Pictures that a server was given, bounded in number and in bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Optional

from .._base.pictures import load_image
from ..models._asking import SeenPicture
from ._limits import Limits


class Pictures:
    """Pictures by an id made of their files' bytes; those that were longest not asked about are let go of."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[str, SeenPicture] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, data: bytes) -> tuple[str, SeenPicture]:
        """A picture of a file's bytes.

        Raises
        ------
        ValueError
            It is no picture, a broken one, or has too many pixels: told before they are allocated.
        """
        name = hashlib.blake2b(data, digest_size=16).hexdigest()
        found = self.get(name)
        if found is None:
            try:
                found = SeenPicture(load_image(data, max_pixels=self._limits.pixels))
            except ValueError as error:
                raise ValueError(str(error).removeprefix("image: ")) from error
            self._kept[name] = found
            self._let_go()
        return name, found

    def get(self, name: str) -> Optional[SeenPicture]:
        """A picture that is kept."""
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
        return found

    def _let_go(self) -> None:
        while len(self._kept) > 1 and (
            len(self._kept) > self._limits.pictures
            or sum(one.picture.nbytes for one in self._kept.values()) > self._limits.picture_bytes
        ):
            self._kept.popitem(last=False)
