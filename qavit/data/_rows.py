"""A row of a data-set run, and how its maps are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from .._base.types import FloatArray


class MapRow(NamedTuple):
    """A question and its map.

    Attributes
    ----------
    id : str
        The input's own, or the number of the row from 0.
    image : str
        The picture, as the input names it.
    question : str
    block : int or tuple of int
        The block that was read, or several.
    grid : tuple of int
        Rows and columns of patches, (gh, gw).
    map : ndarray of float32, [gh, gw], or None
        None where the row failed.
    score : float or None
        How well picture and question match, from 0 to 1, where the model says so (BLIP).
    error : str or None
        Why there is no map; None when all is well.
    seconds : float
        The row's share of the time in the model.
    method : str
        How the map was read.
    picture_size : tuple of int or None
        (height, width) of the picture in pixels; None where it could not be read.
    region : tuple of float or None
        What the model saw of the picture, in its pixels: (left, top, right, bottom). The map covers it evenly.
    notes : tuple of str
        What a reader of the map ought to know: a question that was cut, a picture that was cropped.
    answer, answer_score : str or None, float or None
        The model's answer, and how probable it finds it, where it answers.
    captions : tuple of str or None
        What the answer was read out of, where it was: PnP-VQA's.
    kept : mapping of str to (str or None)
        The columns of the input that were asked for by `keep`, as text.
    """

    id: str
    image: str
    question: str
    block: Union[int, tuple[int, ...]]
    grid: tuple[int, int]
    map: Optional[FloatArray]
    score: Optional[float]
    error: Optional[str]
    seconds: float
    method: str = ""
    picture_size: Optional[tuple[int, int]] = None
    region: Optional[tuple[float, float, float, float]] = None
    notes: tuple[str, ...] = ()
    answer: Optional[str] = None
    answer_score: Optional[float] = None
    kept: Mapping[str, Optional[str]] = {}
    captions: Optional[tuple[str, ...]] = None


HALF_RANGE = (2.0**-10, 2.0**15)  # of a map's largest value: what float16 keeps well as it is


def scale_maps(maps: FloatArray, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], FloatArray]:
    """Maps as they are stored: float16 where asked, scaled by a power of two where its range is too small.

    Parameters
    ----------
    maps : float32 [B, P]
    dtype : float32 or float16

    Returns
    -------
    stored : [B, P] of `dtype`
    scale : float32 [B]
        ``stored * scale`` are the maps. 1 for float32, and for maps that sum to 1; BLIP's GradCAM may lie below the
        smallest float16.
    """
    scale = np.ones(len(maps), np.float32)
    if np.dtype(dtype) == np.float16 and maps.size:
        largest = np.abs(maps).max(axis=1)
        outside = np.isfinite(largest) & (largest > 0) & ((largest < HALF_RANGE[0]) | (largest > HALF_RANGE[1]))
        scale[outside] = np.exp2(np.frexp(largest[outside])[1]).astype(np.float32)
        maps = maps / scale[:, None]
    return maps.astype(dtype), scale
