"""LAVIS scripts with qavit's steps: those of a live PnP-VQA model replaced in place.

Nothing here imports LAVIS or torch: where a script gives tensors, tensors are given back.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TypeVar

from .._base.arguments import PNP_VQA_BLOCK, read_samples
from .._base.tensors import as_kind, to_numpy, torch_of
from ..answers._pipeline import Pipeline
from ..answers._pnpvqa import check_part
from ._grids import _captioner_grid, _checked_grid, drawable, fit_images, resample_mass
from ._modules import from_lavis

Kept = TypeVar("Kept", bound="Replacement")


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


class Replacement:
    """A method in place of a live model's own; its class stays as it is.

    Parameters
    ----------
    model : object
    name : str
        Of the method.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name
        self._before = vars(model).get(name)
        setattr(model, name, self)

    def restore(self) -> None:
        """Put the former method back; a second call does nothing.

        Raises
        ------
        RuntimeError
            The method was replaced once more since; restore that one first.
        """
        if self._model is None:
            return
        if vars(self._model).get(self._name) is not self:
            raise RuntimeError(f"{self._name} was replaced again since; restore the later replacement first")
        if self._before is None:
            delattr(self._model, self._name)
        else:
            setattr(self._model, self._name, self._before)
        self._model = None

    def __enter__(self: Kept) -> Kept:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


class ReplacedForwardItm(Replacement):
    """The method that `replace_forward_itm` puts in place of a PnP-VQA model's own."""

    def __init__(self, pnp_vqa_model: Any, matcher: Any, block_num: int | None, grid: tuple[int, int]) -> None:
        self.matcher = matcher
        self.block_num = block_num
        self.grid = grid
        super().__init__(pnp_vqa_model, "forward_itm")

    def __call__(self, samples: MutableMapping[str, Any], block_num: int = PNP_VQA_BLOCK) -> MutableMapping[str, Any]:
        """Put each pair's map into ``samples["gradcams"]``.

        Parameters
        ----------
        samples : dict
            'image': tensor or array [B, 3, H, W], as LAVIS's processors normalise it; of another size than the matcher's, it
            is resized for the matcher (and stays as it is in `samples`). 'text_input': B questions.
        block_num : int
            The block to read, unless one was fixed.

        Returns
        -------
        dict
            `samples` itself; 'gradcams' is float32 [B, num_patches], every entry positive: a tensor on the CPU where the
            image is a tensor, else an array.
        """
        image, questions = read_samples(samples)
        pixels = fit_images(to_numpy(image, "samples['image']"), self.matcher)
        block = block_num if self.block_num is None else self.block_num
        maps = self.matcher.forward_itm({"image": pixels, "text_input": questions}, block_num=block)
        maps = resample_mass(maps.reshape(len(questions), *self.matcher.grid), self.grid)
        samples["gradcams"] = as_kind(drawable(maps.reshape(len(questions), -1)), torch_of(image))
        return samples

    def __repr__(self) -> str:
        return f"ReplacedForwardItm({self.matcher!r}, block_num={self.block_num}, grid={self.grid})"


class ReplacedStep(Replacement):
    """A step of `PNPVQA` in place of a PnP-VQA model's own, with its arguments and what it gives."""

    def __init__(self, pnp_vqa_model: Any, name: str, steps: Pipeline) -> None:
        self.steps = steps
        self._call = getattr(steps, name)
        super().__init__(pnp_vqa_model, name)

    def __call__(self, samples: MutableMapping[str, Any], *options: Any, **named: Any) -> Any:
        """What LAVIS's own method is called with, and `seed` where captions are drawn."""
        return self._call(samples, *options, **named)

    def __repr__(self) -> str:
        return f"ReplacedStep({self._name}, {self.steps!r})"


def replace_forward_cap(pnp_vqa_model: Any, captioner: Any = None) -> ReplacedStep:
    """Make a PnP-VQA model draw its captions by `captioner`; the rest of its pipeline goes on unchanged.

    Parameters
    ----------
    pnp_vqa_model : object with forward_cap
        LAVIS's PNPVQA, or one like it. Only this object changes, not its class.
    captioner : Model, optional
        None: one made of the model's own `image_captioning_model` by `from_lavis`.

    Returns
    -------
    ReplacedStep
        Called as LAVIS's forward_cap, and with ``seed=``. Captions are drawn by a generator of its own: not by torch's, and
        not by torch's seed. Its `restore` puts the former method back; as a context manager it does so at the end.

    Raises
    ------
    TypeError
        The model has no forward_cap, or no captioner can be made of it.
    """
    return _replaced(pnp_vqa_model, "forward_cap", captioner=captioner)


def replace_forward_qa(pnp_vqa_model: Any, reader: Any = None) -> ReplacedStep:
    """Make a PnP-VQA model answer by `reader`; the rest of its pipeline goes on unchanged.

    Parameters
    ----------
    pnp_vqa_model : object with forward_qa
    reader : Model, optional
        None: one made of the model's own `question_answering_model` by `from_lavis`.

    Returns
    -------
    ReplacedStep
        Called as LAVIS's forward_qa.

    Raises
    ------
    TypeError
        The model has no forward_qa, or no reader can be made of it.
    """
    return _replaced(pnp_vqa_model, "forward_qa", reader=reader)


def replace_predict_answers(
    pnp_vqa_model: Any, matcher: Any = None, captioner: Any = None, reader: Any = None
) -> ReplacedStep:
    """Make a PnP-VQA model answer without torch, from the map to the answer.

    Parameters
    ----------
    pnp_vqa_model : object with predict_answers
    matcher, captioner, reader : Model, optional
        None: made of the model's own modules by `from_lavis`.

    Returns
    -------
    ReplacedStep
        Called as LAVIS's predict_answers, and with ``seed=``. `block_num` left out is 7 for BLIP, as there.

    Raises
    ------
    TypeError
        The model has no predict_answers, or a part cannot be made of it.
    """
    return _replaced(pnp_vqa_model, "predict_answers", matcher=matcher, captioner=captioner, reader=reader)


class _Steps(Pipeline):
    """Some of the three models."""

    def __init__(self, matcher: Any = None, captioner: Any = None, reader: Any = None) -> None:
        self.matcher, self.captioner, self.reader = matcher, captioner, reader


_MODULES = {
    "matcher": "image_question_matching_model",
    "captioner": "image_captioning_model",
    "reader": "question_answering_model",
}


def _replaced(pnp_vqa_model: Any, name: str, **parts: Any) -> ReplacedStep:
    """A step replaced; parts that are None are made of the model's own modules."""
    if not callable(getattr(pnp_vqa_model, name, None)):
        raise TypeError(f"pnp_vqa_model: expected an object with {name}, got {type(pnp_vqa_model).__name__}")
    for part, given in parts.items():
        module = getattr(pnp_vqa_model, _MODULES[part], None)
        if given is None and module is None:
            raise TypeError(f"{part}: none is given, and {type(pnp_vqa_model).__name__} has no {_MODULES[part]}")
        parts[part] = from_lavis(module) if given is None else given
        check_part(part, parts[part])
    return ReplacedStep(pnp_vqa_model, name, _Steps(**parts))
