"""What settings leave of a decoder's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import real_number, whole_number
from .._base.tensors import detached
from .._base.types import FloatArray


def process_logits(
    logits: npt.ArrayLike,
    ids: npt.ArrayLike,
    *,
    repetition_penalty: float = 1.0,
    min_length: int = 0,
    eos: Optional[int] = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> FloatArray:
    """Scores of the next token, in the order of transformers' processors; every setting is off unless it is given.

    Parameters
    ----------
    logits : float [B, V]
        Not written to.
    ids : int [B, L]
        What the rows hold so far, prompt and start included.
    repetition_penalty : float
        r, above 0: of each id that a row holds, a score s becomes s r where it is negative, else s / r; once, however often
        the id stands there. 1: off.
    min_length : int
        While L is below it, `eos` is removed.
    eos : int, optional
        The token that ends a text.
    temperature : float
        Above 0: scores are divided by it.
    top_k : int
        Only scores from the k-th largest on stay, all of equal ones. 0: off.
    top_p : float
        Above 0: from the smallest up, tokens go as long as their probabilities sum to at most 1 - p; the best stays. 1: off.

    Returns
    -------
    float32 [B, V]
        ``-inf`` where a token was removed.

    Raises
    ------
    TypeError, ValueError
        A setting is not of its kind or range, shapes do not fit, an id is outside the vocabulary, or a row holds NaN or
        infinity (``-inf``, a token removed before, may stand there), or is left without a token.
    """
    settings = Sampling(repetition_penalty, min_length, eos, temperature, top_k, top_p)
    return _core.process_logits(_logits(logits), _ids(ids), settings.packed())


@dataclass(frozen=True)
class Sampling:
    """Checked settings of :func:`process_logits`.

    Raises
    ------
    TypeError, ValueError
        A setting is not of its kind or range; the message names it.
    """

    repetition_penalty: float = 1.0
    min_length: int = 0
    eos: Optional[int] = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("repetition_penalty", "temperature", "top_p"):
            value = real_number(getattr(self, name), name)
            if not 0.0 < value < float("inf") or (name == "top_p" and value > 1.0):
                raise ValueError(f"{name}: {value:g}, expected a number above 0{', to 1' if name == 'top_p' else ''}")
        for name in ("min_length", "top_k", "eos"):
            value = getattr(self, name)
            if not (name == "eos" and value is None) and not 0 <= whole_number(value, name) < 2**31:
                raise ValueError(f"{name}: {value}, expected a whole number from 0 to 2^31 - 1")

    def packed(self) -> tuple[float, int, int, float, int, float]:
        """As the core takes them."""
        eos = -1 if self.eos is None else self.eos
        return self.repetition_penalty, self.min_length, eos, self.temperature, self.top_k, self.top_p

    def without_draws(self) -> Sampling:
        """Those that also hold where nothing is drawn."""
        return Sampling(self.repetition_penalty, self.min_length, self.eos)

    @property
    def draws(self) -> bool:
        """Whether there are some that say how to draw."""
        return (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0)


def _logits(logits: Any) -> FloatArray:
    array = np.asarray(detached(logits))
    if array.dtype.kind != "f" or array.ndim != 2:
        raise ValueError(f"logits: expected floats [B, V], got {array.dtype} {list(array.shape)}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _ids(ids: Union[npt.ArrayLike, Any]) -> npt.NDArray[np.int64]:
    array = np.asarray(detached(ids))
    if array.size == 0 and array.ndim == 2:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ValueError(f"ids: expected whole numbers [B, L], got {array.dtype} {list(array.shape)}")
    return array.astype(np.int64, copy=False)
