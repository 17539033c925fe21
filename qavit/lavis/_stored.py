"""Maps of a data-set run in place of forward_itm."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, MutableMapping
from typing import Any

from .._base.files import PathLike
from .._base.types import FloatArray
from ._grids import _checked_grid, drawable, resample_mass


def gradcams_from(out: PathLike, grid: tuple[int, int] | None = None) -> StoredGradcams:
    """Maps that ``qavit run`` wrote, in place of PnP-VQA's question-image matching: no matcher is loaded.

    Parameters
    ----------
    out : path
        The run's folder.
    grid : (rows, columns), optional
        The captioner's patch grid, which maps of another grid are resampled to, each map's sum kept; None: the run's own.

    Returns
    -------
    StoredGradcams
        ``samples = gradcams(samples)`` does what ``pnp_vqa.forward_itm(samples)`` does, ``gradcams.maps(ids)`` gives NumPy.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no run, or it cannot be read.
    """
    return StoredGradcams(out, grid)


class StoredGradcams:
    """Maps of a run by the ids of its questions; made by `gradcams_from`.

    Attributes
    ----------
    reader : qavit.data.MapReader
    grid : tuple of int
        (rows, columns) of the maps that are given.
    """

    def __init__(self, out: PathLike, grid: tuple[int, int] | None = None) -> None:
        from ..data._reading import read_maps

        self.reader = read_maps(out)
        self.grid = self.reader.grid if grid is None else _checked_grid(grid)

    def maps(self, ids: Any) -> FloatArray:
        """Maps ready to draw patches from.

        Parameters
        ----------
        ids : sequence, array or tensor of B ids
            As the run's input had them; without any, the rows' numbers.

        Returns
        -------
        float32 [B, P]
            Every entry positive.

        Raises
        ------
        KeyError
            There is no such row, or it failed.
        """
        listed = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(listed, (str, bytes)) or not isinstance(listed, Iterable):
            raise TypeError(f"ids: expected several, got {type(ids).__name__}")
        listed = list(listed)
        maps = resample_mass(self.reader.gather(listed), self.grid)
        return drawable(maps.reshape(len(listed), -1))

    def __call__(self, samples: MutableMapping[str, Any], block_num: int | None = None) -> MutableMapping[str, Any]:
        """Put each question's map into ``samples["gradcams"]``, as a PnP-VQA model's forward_itm does.

        Parameters
        ----------
        samples : dict
            'question_id' (or 'id'): B ids.
        block_num : int, optional
            Not looked at: the block is the run's.

        Returns
        -------
        dict
            `samples` itself; 'gradcams' is a float32 tensor [B, P] on the CPU, every entry positive.
        """
        ids = next((samples[key] for key in ("question_id", "id") if key in samples), None)
        if ids is None:
            raise ValueError(f"samples: it has {', '.join(samples)}, expected question_id (or id), one for each question")
        torch = importlib.import_module("torch")
        samples["gradcams"] = torch.from_numpy(self.maps(ids))
        return samples

    def __repr__(self) -> str:
        return f"StoredGradcams({self.reader!r}, grid={self.grid})"
