"""What a model keeps of pictures that it was shown, as its users see it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Optional

from .._base.types import Precision
from ._devices import computing_precision
from ._picture_cache import CacheInfo, PictureCache
from ._picture_folder import PictureFolder, model_digest

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource


class Keeping:
    """A model's cache of pictures, in memory and in a folder."""

    device: str
    requested_precision: Precision
    _source: ModelSource
    _picture_cache: PictureCache
    _picture_folder: Optional[PictureFolder] = None

    def cache_info(self) -> CacheInfo:
        """What is kept of pictures that this model was shown lately, and how often that helped.

        Returns
        -------
        CacheInfo
            Named: hits, misses, entries, bytes, limit; disk_hits, disk_entries, disk_bytes, disk_limit.
        """
        return self._picture_cache.info()

    def cache_clear(self, disk: bool = False) -> None:
        """Let go of all that is kept of pictures, and begin to count anew; calls that run meanwhile are not disturbed.

        Parameters
        ----------
        disk : bool
            Remove from ``load(cache_dir=...)``, too, what this model as it computes here has written there.
        """
        self._picture_cache.clear(disk)

    def _keep_in(self, folder: Optional[str], limit: int) -> None:
        """Keep what is made of pictures in a folder, too; None: in none."""
        if folder is not None and limit:
            identify = partial(model_digest, self._source, computing_precision(self.requested_precision, "cpu"))
            self._picture_folder = PictureFolder(folder, limit, identify)
        self._use_folder()

    def _use_folder(self) -> None:
        # A GPU adds in an order of its kind, so nothing that it computed is for others.
        self._picture_cache.folder = self._picture_folder if self.device == "cpu" else None
