"""Random numbers keyed by what is drawn for, so that they do not depend on when, beside what, or where it is drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import finite_numbers, whole_number
from .._base.types import FloatArray

#: The steps of a text are counted from 0; patches are drawn at the last one there is.
PATCH_STEP = 2**64 - 1


@dataclass(frozen=True)
class Draws:
    """The draws of one picture and question.

    Attributes
    ----------
    key : tuple of int
        Two words of 64 bits, the key of the counter-based generator (Philox4x64-10).
    """

    key: tuple[int, int]

    @classmethod
    def of(cls, seed: Any, content: FloatArray, question: str = "") -> Draws:
        """Draws keyed by a seed, by pixels (or what stands for them), and by a question.

        Raises
        ------
        TypeError, ValueError
            The seed is not a whole number of 64 bits.
        """
        number = whole_number(seed, "seed")
        if not -(2**63) <= number < 2**64:
            raise ValueError(f"seed: {number}, expected a whole number of 64 bits")
        digest = hashlib.blake2b(digest_size=16)
        array = np.ascontiguousarray(content)
        for part in (str(number), str(array.dtype), str(array.shape), question):
            text = part.encode()
            digest.update(len(text).to_bytes(8, "little") + text)
        digest.update(array.data)
        found = digest.digest()
        return cls((int.from_bytes(found[:8], "little"), int.from_bytes(found[8:], "little")))

    def keys(self, numbers: npt.ArrayLike, step: int = 0) -> npt.NDArray[np.uint64]:
        """uint64 [n, 4], one key for each of the texts `numbers` [n] of this picture and question, at a step."""
        numbers = np.asarray(numbers)
        keys = np.empty((len(numbers), 4), np.uint64)
        keys[:, :2] = self.key
        keys[:, 2], keys[:, 3] = numbers, step
        return keys


def check_weights(weights: Any, patches: int, argument: str = "weights") -> npt.NDArray[np.float64]:
    """Weights by which patches are drawn, float64 [P].

    Raises
    ------
    TypeError, ValueError
        They are not P finite numbers from 0 up, some of them above 0.
    """
    array = finite_numbers(weights, argument, np.float64)
    if array.size != patches:
        raise ValueError(f"{argument}: {array.size} weights {list(array.shape)}, expected one for each of {patches} patches")
    array = array.reshape(-1)
    if (array < 0).any():
        raise ValueError(f"{argument}: {array.min():g} among the weights, expected none below 0")
    if not array.any():
        raise ValueError(f"{argument}: all are 0, so no patch can be drawn")
    return array


def draw_patches(weights: npt.NDArray[np.float64], count: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Patches without replacement, in proportion to their weights, anew for each text.

    By the exponential race: those of the `count` largest w / e, with e drawn from the exponential distribution. Where fewer
    weights than that are above 0, the first ones of weight 0 fill up.

    Parameters
    ----------
    weights : float64 [P]
        As :func:`check_weights` gives them.
    count : int
        1 to P.
    keys : uint64 [n, 4]
        :meth:`Draws.keys` of each text.

    Returns
    -------
    int32 [n, count]
        Numbers of patches, ascending.

    Raises
    ------
    TypeError, ValueError
        There are not so many patches.
    """
    if not 1 <= whole_number(count, "num_patches") <= len(weights):
        raise ValueError(f"num_patches: {count}, expected 1 to the {len(weights)} patches there are")
    keys = keys.copy()
    keys[:, 3] = PATCH_STEP
    uniforms = _core.random_uniforms(keys, len(weights))
    order = np.argsort(weights / np.log(uniforms), axis=1, kind="stable")
    return np.sort(order[:, :count], axis=1).astype(np.int32)
