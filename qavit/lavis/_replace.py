"""LAVIS scripts with qavit's maps: PnP-VQA's question-image matching replaced in place, and compute_gradcam.

Nothing here imports LAVIS. torch is imported where tensors are given back, that is, where a script has it already.
"""

from __future__ import annotations

import importlib
from collections.abc import MutableMapping
from typing import Any

from .._base.arguments import PNP_VQA_BLOCK, read_samples
from .._base.tensors import to_numpy
from ._grids import _captioner_grid, _checked_grid, drawable, fit_images, resample_mass


def replace_forward_itm(
    pnp_vqa_model: Any, matcher: Any, block_num: int | None = None, grid: tuple[int, int] | None = None
) -> ReplacedForwardItm:
    """Make a PnP-VQA model take its maps from `matcher`; the rest of its pipeline goes on unchanged.

    Parameters
    ----------
    pnp_vqa_model : object with forward_itm
        LAVIS's PNPVQA or Img2PromptVQA, or one like them. Only this object changes, not its class.
    matcher : BlipITM or QAViT
        A BlipITM gives LAVIS's own values. A QAViT's attention is resampled to the captioner's patch grid, each map's sum
        kept.
    block_num : int, optional
        Read this block whatever the callers say (``predict_answers`` always says 7, which a QA-ViT of 24 blocks does
        not know the question at). None: the block that the call names.
    grid : (rows, columns), optional
        The captioner's patch grid; None: taken from its vision encoder.

    Returns
    -------
    ReplacedForwardItm
        Its `restore` puts the former method back; as a context manager it does so at the end.

    Raises
    ------
    TypeError
        One of the objects has no forward_itm.
    ValueError
        The grid can't be told from the captioner, or the block does not exist.
    """
    for name, value in (("pnp_vqa_model", pnp_vqa_model), ("matcher", matcher)):
        if not callable(getattr(value, "forward_itm", None)):
            raise TypeError(f"{name}: expected an object with forward_itm, got {type(value).__name__}")
    if block_num is not None:
        matcher.check_block(block_num, "block_num")
    chosen = _captioner_grid(pnp_vqa_model, matcher) if grid is None else _checked_grid(grid)
    return ReplacedForwardItm(pnp_vqa_model, matcher, block_num, chosen)


class ReplacedForwardItm:
    """The method that `replace_forward_itm` puts in place of a PnP-VQA model's own."""

    def __init__(self, pnp_vqa_model: Any, matcher: Any, block_num: int | None, grid: tuple[int, int]) -> None:
        self.matcher = matcher
        self.block_num = block_num
        self.grid = grid
        self._model = pnp_vqa_model
        self._before = vars(pnp_vqa_model).get("forward_itm")
        pnp_vqa_model.forward_itm = self

    def __call__(self, samples: MutableMapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> MutableMapping[str, Any]:
        """Put each pair's map into ``samples["gradcams"]``.

        Parameters
        ----------
        samples : dict
            'image': tensor [B, 3, H, W], as LAVIS's processors normalise it; of another size than the matcher's, it is
            resized for the matcher (and stays as it is in `samples`). 'text_input': B questions.
        block_num : int
            The block to read, unless one was fixed.

        Returns
        -------
        dict
            `samples` itself; 'gradcams' is a float32 tensor [B, num_patches] on the CPU, every entry positive.
        """
        torch = importlib.import_module("torch")
        image, questions = read_samples(samples)
        pixels = fit_images(to_numpy(image, "samples['image']"), self.matcher)
        block = block_num if self.block_num is None else self.block_num
        maps = self.matcher.forward_itm({"image": pixels, "text_input": questions}, block_num=block)
        maps = resample_mass(maps.reshape(len(questions), *self.matcher.grid), self.grid)
        samples["gradcams"] = torch.from_numpy(drawable(maps.reshape(len(questions), -1)))
        return samples

    def restore(self) -> None:
        """Put the former forward_itm back; a second call does nothing.

        Raises
        ------
        RuntimeError
            The method was replaced once more since; restore that one first.
        """
        if self._model is None:
            return
        if vars(self._model).get("forward_itm") is not self:
            raise RuntimeError("forward_itm was replaced again since; restore the later replacement first")
        if self._before is None:
            del self._model.forward_itm
        else:
            self._model.forward_itm = self._before
        self._model = None

    def __enter__(self) -> ReplacedForwardItm:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"ReplacedForwardItm({self.matcher!r}, block_num={self.block_num}, grid={self.grid})"
