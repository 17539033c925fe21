"""`QAViTHeatmapDemo`: from a picture's file and questions to figures and numbers, under the names existing scripts use."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, TypedDict

import numpy as np

from ._base.arguments import question_list, whole_numbers
from ._base.files import make_folder
from ._base.tensors import to_numpy
from ._base.types import FloatArray
from ._base.warnings import warn_of
from ._result import HeatmapResult
from .heatmaps._grid import MapStatistics, map_statistics
from .images import load_image, preprocess
from .lavis._pnpvqa import PNPVQAWithQAViT
from .methods.class_token import METHOD as CLASS_TOKEN
from .models._notes import bundled_notes, crop_notes
from .models._question_vit import QAViT
from .plots._look import Kind

_log = logging.getLogger(__name__)
_FIGURES: tuple[Kind, ...] = ("original", "heatmap", "overlay", "patches")


class DemoEntry(TypedDict):
    """What the demonstration gives for one question.

    Attributes
    ----------
    question : str
    attention_map : float32 array [gh, gw]
    block_num : int
    statistics : MapStatistics
    answers : list of (str, float), or None where the model gives none
    files : dict of str to Path
        The figures by their kinds.
    result : HeatmapResult
        Everything else.
    """

    question: str
    attention_map: FloatArray
    block_num: int
    statistics: MapStatistics
    answers: Optional[list[tuple[str, float]]]
    files: dict[str, Path]
    result: HeatmapResult


def create_simple_demo_model(**settings: Any) -> PNPVQAWithQAViT:
    """The trained demo model that comes with the package.

    Parameters
    ----------
    **settings
        As for `PNPVQAWithQAViT`.

    Returns
    -------
    PNPVQAWithQAViT
    """
    return PNPVQAWithQAViT("demo", **settings)


class QAViTHeatmapDemo:
    """Heatmaps of pictures from files, with figures.

    Parameters
    ----------
    model : PNPVQAWithQAViT or QAViT
        A subclass that overrides `extract_qavit_attention` or `forward_itm` is drawn as it reads.
    device : {"cpu", "cuda"} or torch.device, optional
        Where the model is to compute: it is moved there. None: where it is.

    Raises
    ------
    RuntimeError, ValueError
        The device is not to be had; the message says what is missing.
    """

    def __init__(self, model: PNPVQAWithQAViT | QAViT, device: Any = None) -> None:
        if isinstance(model, QAViT):
            model = PNPVQAWithQAViT(model)
        if not isinstance(model, PNPVQAWithQAViT):
            raise TypeError(f"model: expected a PNPVQAWithQAViT or a QAViT, got {type(model).__name__}")
        self.model = model.to(device)
        self.device = model.device

    def demo_single_image(
        self,
        image_path: Any,
        question: str,
        save_dir: str | os.PathLike[str] | None = None,
        *,
        block_num: int | None = None,
        blocks: Sequence[int] = (3, 7, 11),
        show: bool = False,
        vmin: float | None = None,
        vmax: float | None = None,
        shared: bool = True,
    ) -> DemoEntry:
        """Where the model looks in a picture for a question.

        Parameters
        ----------
        image_path : str, path, bytes, PIL image or uint8 [H, W, 3]
        question : str
        save_dir : str or path, optional
            Where figures go, made if it is missing: the picture, the heatmap, the overlay, the patch borders, the maps of
            `blocks`. None: no files.
        block_num : int, optional
            The block to read. None: the model's `block_num`, and where that is None the one it recommends.
        blocks : sequence of int
            The blocks of the multi-scale figure, as far as the model has them.
        show : bool
            Show the figure too, in a notebook or a window.
        vmin, vmax : float, optional
            The values of the colour scale's two ends, as for `HeatmapResult.figure`.
        shared : bool
            One colour scale for all panels of a figure.

        Returns
        -------
        DemoEntry
            A dict.
        """
        if not isinstance(question, str):
            raise TypeError(f"question: expected a str, got {type(question).__name__}")
        there = self._there(blocks)
        scale: dict[str, Any] = {"vmin": vmin, "vmax": vmax, "shared": shared}
        result = self._heatmaps(image_path, [question], block_num)
        files: dict[str, Path] = {}
        if save_dir is not None:
            folder, stem = make_folder(save_dir, "save_dir"), _stem(image_path)
            files = _save(result, folder, stem, (*_FIGURES, "panels"), scale)
            files["blocks"] = self._save_blocks(result, folder, stem, there, scale)
        if show:
            result.show(**scale)
        return _entry(result, files)

    def demo_multiple_questions(
        self,
        image_path: Any,
        questions: Sequence[str],
        save_dir: str | os.PathLike[str] | None = None,
        *,
        block_num: int | None = None,
        blocks: Sequence[int] = (3, 7, 11),
        show: bool = False,
        vmin: float | None = None,
        vmax: float | None = None,
        shared: bool = True,
    ) -> list[DemoEntry]:
        """Where the model looks in one picture for each of several questions, on one scale.

        Parameters
        ----------
        image_path, save_dir, block_num, blocks, show, vmin, vmax, shared
            As for `demo_single_image`. Figures: one with all questions side by side, one with all questions' maps of
            `blocks`, and each question's overlay.
        questions : sequence of str

        Returns
        -------
        list of DemoEntry
            One for each question, as `demo_single_image` gives it.
        """
        there = self._there(blocks)
        scale: dict[str, Any] = {"vmin": vmin, "vmax": vmax, "shared": shared}
        result = self._heatmaps(image_path, question_list(questions), block_num)
        together: dict[str, Path] = {}
        own: list[dict[str, Path]] = [{} for _ in result.questions]
        if save_dir is not None:
            folder, stem = make_folder(save_dir, "save_dir"), _stem(image_path)
            together = {
                "questions": result.save(folder / f"{stem}_questions.png", "questions", **scale),
                "blocks": self._save_blocks(result, folder, f"{stem}_questions", there, scale),
            }
            own = [_save(result[i], folder, stem, ("overlay",), scale, i + 1) for i in range(len(result))]
            _log.info("figures are in %s", folder)
        if show:
            result.show(**scale)
        return [_entry(result[i], {**own[i], **together}) for i in range(len(result))]

    def analyze_attention_statistics(self, attention_map: Any) -> MapStatistics:
        """A map in numbers.

        Parameters
        ----------
        attention_map : float [gh, gw], [P] or [1, P], NumPy or torch
            Non-negative.

        Returns
        -------
        MapStatistics
            A dict; see `qavit.heatmaps.map_statistics`.
        """
        values = np.squeeze(to_numpy(attention_map, "attention_map"))
        if values.ndim > 2:
            raise ValueError(f"attention_map: expected one map [gh, gw] or [P], got shape {list(values.shape)}")
        return map_statistics(values, top=5)

    def _heatmaps(self, image: Any, questions: list[str], block_num: int | None) -> HeatmapResult:
        """The maps that the model's own forward_itm reads, with the picture they belong to."""
        model = self.model
        if block_num is None:
            block_num = model.qavit.default_block if model.block_num is None else model.block_num
        block = model.qavit.check_block(block_num, "block_num")
        picture = load_image(image)
        pixels, region = preprocess(picture, model.qavit.preprocessing)
        notes = crop_notes(picture, region)
        if model.qavit._bundled:
            notes += bundled_notes(pixels, model.qavit.preprocessing)
        warn_of(notes)
        batch = np.repeat(pixels[None], len(questions), axis=0)
        maps = to_numpy(model.forward_itm({"image": batch, "text_input": questions}, block_num=block), "forward_itm")
        grid = model.qavit.grid

        def block_maps() -> FloatArray:
            outputs = model.qavit_vision_model(
                pixel_values=batch, instruct_states=model.encode_questions(questions), output_attentions=True
            )
            every = model.multi_scale_attention(outputs, range(model.qavit.num_blocks))
            return to_numpy(every, "multi_scale_attention").reshape(model.qavit.num_blocks, len(questions), *grid)

        # forward_itm has warned of these.
        notes += [*model.qavit._encode(questions).notes, *model.qavit._blind_notes([block], CLASS_TOKEN)]
        answers = None
        if model.qavit.answer_names is not None:
            answers = [one.ranked or [] for one in model.qavit.answer(pixels, questions)]
        return HeatmapResult(
            maps=maps.reshape(len(questions), *grid),
            questions=questions,
            picture=picture,
            seen=region,
            block=block,
            method="class",
            answers=answers,
            block_maps=block_maps,
            notes=tuple(notes),
        )

    def _there(self, blocks: Sequence[int]) -> list[int]:
        """Those of `blocks` that the model has."""
        return [block for block in whole_numbers(blocks, "blocks") if 0 <= block < self.model.qavit.num_blocks]

    def _save_blocks(
        self, result: HeatmapResult, folder: Path, stem: str, blocks: Sequence[int], scale: dict[str, Any]
    ) -> Path:
        """The figure of several blocks' maps; the block that was read is always among them."""
        shown = sorted({*blocks, *result.block_numbers})
        name = "_".join(map(str, shown))
        return result.save(folder / f"{stem}{_slug(result)}_blocks_{name}.png", "blocks", blocks=shown, **scale)


def _entry(result: HeatmapResult, files: dict[str, Path]) -> DemoEntry:
    """What the demo gives back for one question."""
    return {
        "question": result.questions[0],
        "attention_map": result.maps[0],
        "block_num": result.block_numbers[0],
        "statistics": result.statistics()[0],
        "answers": None if result.answers is None else result.answers[0],
        "files": files,
        "result": result,
    }


def _save(
    result: HeatmapResult,
    folder: Path,
    stem: str,
    kinds: Sequence[Kind],
    scale: dict[str, Any],
    number: int | None = None,
) -> dict[str, Path]:
    """One file for each kind of figure."""
    prefix = f"{stem}{'' if number is None else f'_{number}'}{_slug(result)}"
    files: dict[str, Path] = {kind: result.save(folder / f"{prefix}_{kind}.png", kind, **scale) for kind in kinds}
    _log.info("%d figures of %r are in %s", len(files), result.questions[0], folder)
    return files


def _stem(image: Any) -> str:
    """The picture's name without its ending, for the names of files."""
    return Path(image).stem if isinstance(image, (str, os.PathLike)) else "picture"


def _slug(result: HeatmapResult) -> str:
    """The question as a part of a file's name; nothing for several questions."""
    if len(result) != 1:
        return ""
    words = "".join(letter if letter.isalnum() else " " for letter in result.questions[0].lower()).split()
    return "".join(f"_{word}" for word in words)[:48]
