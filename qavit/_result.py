"""Heatmaps as people work with them: the result of `model.heatmaps(image, questions)`."""

from __future__ import annotations

from dataclasses import dataclass

from ._base.files import PathLike
from .heatmaps._archive import parts_of
from .plots._drawing import Drawing


@dataclass(frozen=True, eq=False, repr=False, init=False)
class HeatmapResult(Drawing):
    """Heatmaps of one picture: one for each question, on one scale.

    `result[0]`, `result[1:3]` and `result["where is the star?"]` are results of those questions alone; `result.at(7)` is the
    same read at block 7; `np.asarray(result)` is `maps`. A notebook shows a result as a picture. It cannot be changed, and
    arrays in it cannot be written to: `dataclasses.replace` makes another. It can be pickled, and kept with `save` and
    `load`.

    Attributes
    ----------
    maps : float32 array [Q, gh, gw]
        Each sums to 1: `raw`, shifted by its smallest value where it has negative ones, over its sum.
    questions : list of str
        Q of them, as they were asked; [""] for a model that takes none.
    picture : uint8 array [H, W, 3]
        The picture as it was given.
    seen : Region
        Left, top, right, bottom of the part that the model saw, in the picture's pixels; all of it by default. More than all
        of it where it was padded.
    block : int or tuple of int
        The block that was read, counted from 0, or several.
    method : str
        How it was read: "class", "question", "gradcam", or a function's name.
    raw : float32 array [Q, gh, gw]
        The method's own numbers; by default `maps`.
    words : list of Q lists of str, optional
        The words of each question that have a map of their own.
    word_maps : list of Q float32 arrays [words, gh, gw], optional
        One map a word, computed when first read; None where the model gives none. May be given as a function.
    answers : list of Q lists of (str, float), optional
        The model's answers with their probabilities, the likeliest first.
    scores : float32 array [Q], optional
        How well the picture fits each text, of models that say so: CLIP's cosine, SigLIP's and BLIP's probability.
    block_maps : float32 array [L, Q, gh, gw], optional
        The maps of every block, computed when first read; zero for a block that is not in `blocks`. May be given as a
        function.
    block_raw : float32 array [L, Q, gh, gw], optional
        The same in the method's own numbers.
    blocks : tuple of int
        The blocks that have a map by this method; where only a function is given, () until `block_maps` is read.
    notes : tuple of Note
        What a reader ought to know of the maps; each was a warning too.
    model : str
        The name of the model that gave them; "" where it is not known.
    heads : "mean", "max", "single" or int
        How heads became one map; "mean" too where the method has none.
    head_maps : float32 array [Q, H, gh, gw], optional
        The maps of every head of `block`, each summing to 1, computed when first read; None where the method is not of
        heads. May be given as a function. Those of another block: ask for that block.
    """

    @classmethod
    def load(cls, path: PathLike) -> HeatmapResult:
        """A result that `save` wrote as .npz, whole: with its picture, words, answers and notes.

        Maps of other blocks and of heads are there where they had been computed before it was saved.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is no such file, or a broken one.
        """
        parts = parts_of(path)
        try:
            return cls(**parts)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a whole file of heatmaps: {error}") from None
