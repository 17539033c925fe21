"""`PNPVQAWithQAViT`: the class that PnP-VQA scripts use, around a `QAViT`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from .._base.arguments import PNP_VQA_BLOCK, read_samples
from .._base.config import Config as Config
from .._base.config import to_mapping
from .._base.files import PathLike
from .._base.tensors import as_kind, to_numpy, torch_of
from .._base.types import FloatArray
from .._base.warnings import QuestionBlindWarning, warn_of
from ..answers._grids import fit_images
from ..answers._parts import load_block
from ..answers._pipeline import Pipeline
from ..answers._pnpvqa import check_part
from ..methods.class_token import METHOD as CLASS_TOKEN
from ..methods.class_token import read_class
from ..models._load import load
from ..models._model import Model
from ..models._outputs import EncodedQuestions
from ..models._question_vit import QAViT
from ._lazy_outputs import LazyVisionOutput

_log = logging.getLogger(__name__)
_SOURCES = ("checkpoint", "vision", "text", "tokenizer", "config", "precision")
_SETTINGS = (
    "offload_model", "block_num", "integration_point", "instruction_dim", "image_size", "patch_size",
    "gradient_checkpointing", "device",
)  # fmt: skip
_LAVIS_ONLY = (
    "arch", "model_type", "load_finetuned", "load_pretrained", "finetuned", "pretrained",
    "image_question_matching_model",
)  # fmt: skip
_PARTS = ("image_captioning_model", "question_answering_model")


class PNPVQAWithQAViT(Pipeline):
    """Question-aware attention maps under PnP-VQA's names: ``forward_itm(samples)`` gives one map a pair.

    With a captioner and a reader, the other steps are there, too: ``predict_answers(samples)``.

    What comes in decides what goes out: where the images are torch tensors, maps and attentions are float32 tensors on
    the CPU; otherwise they are NumPy arrays. torch itself is never imported here.

    Parameters
    ----------
    model : QAViT, str or path, optional
        A loaded model, or what `qavit.load` takes: "demo" or a converted folder. None (or ``...``): "demo" unless
        `checkpoint`, `vision` or `text` name files.
    offload_model : bool
        On a GPU: weights stay in the host's memory and are streamed a block at a time. On the CPU it changes nothing:
        weights are mapped from disk, so the system takes their memory back by itself when it is needed elsewhere.
    block_num : int, optional
        The block that `forward_itm` reads when it is not told one. None: 7, as in PnP-VQA.
    integration_point : {"all", "early", "late", "late2", "late3", "sparse"}, optional
        Which blocks attend to the question: all, the first half (early), the second half (late), ... The weights fix
        it, so it is checked against the model.
    instruction_dim : int, optional
        Width of the question encoder's states; checked against the model.
    image_size : int, optional
        Pixels a side. A model named by path is loaded at this size; a loaded one is checked.
    patch_size : int, optional
        Pixels a side; checked against the model.
    gradient_checkpointing : bool
        Accepted for existing scripts; changes nothing, because no gradients are kept.
    device : {"cpu", "cuda", "cuda:N"} or torch.device, optional
        Where to compute. A model named by path is loaded there, a loaded one is moved there; None: the CPU, or where a
        loaded model is.
    checkpoint, vision, text, tokenizer, config, precision
        As for `qavit.load`, instead of a path.
    image_captioning_model, question_answering_model : Model, path or mapping, optional
        Captioner and reader: loaded, or as for :meth:`qavit.PNPVQA.from_config`.

    Attributes
    ----------
    qavit, matcher : QAViT
        The model itself.
    captioner, reader : Model or None
    device : str
        Where it computes.
    block_num : int or None

    Raises
    ------
    ValueError
        A setting disagrees with the model, or the model never sees a question.
    TypeError
        `model` or a setting is of another kind.
    RuntimeError
        The device is not to be had in this build.
    """

    training = False

    def __init__(
        self,
        model: QAViT | str | os.PathLike[str] | EllipsisType | None = None,
        *,
        offload_model: bool = False,
        block_num: int | None = None,
        integration_point: str | None = None,
        instruction_dim: int | None = None,
        image_size: int | None = None,
        patch_size: int | None = None,
        gradient_checkpointing: bool = False,
        device: Any = None,
        checkpoint: PathLike | None = None,
        vision: PathLike | None = None,
        text: PathLike | None = None,
        tokenizer: PathLike | None = None,
        config: Mapping[str, Any] | None = None,
        precision: str | None = None,
        image_captioning_model: Any = None,
        question_answering_model: Any = None,
    ) -> None:
        named = {
            "checkpoint": checkpoint, "vision": vision, "text": text, "tokenizer": tokenizer, "config": config,
            "precision": precision,
        }  # fmt: skip
        sources = {name: value for name, value in named.items() if value is not None}
        self.qavit = _model_of(model, sources, image_size, device, bool(offload_model))
        if not self.qavit.integrated:
            raise ValueError(
                "model: plain CLIP, no block of it attends to a question; "
                "its maps come from qavit.load(...).heatmaps(image, ...)"
            )
        _check_agrees("integration_point", integration_point, self.qavit.integration_point)
        _check_agrees("instruction_dim", instruction_dim, self.qavit.instruction_dim)
        _check_agrees("image_size", image_size, self.qavit.image_size)
        _check_agrees("patch_size", patch_size, self.qavit.patch_size)
        self.block_num = None if block_num is None else self.qavit.check_block(block_num, "block_num")
        self.offload_model = bool(offload_model)
        self.gradient_checkpointing = bool(gradient_checkpointing)
        if image_captioning_model is not None:
            self.captioner = load_block("image_captioning_model", image_captioning_model)
            check_part("captioner", self.captioner)
        if question_answering_model is not None:
            self.reader = load_block("question_answering_model", question_answering_model)
            check_part("reader", self.reader)
        if offload_model and self.device == "cpu":
            _log.info("offload_model changes nothing: weights are mapped from disk, there is nothing to move away")
        if gradient_checkpointing:
            _log.info("gradient_checkpointing changes nothing: no gradients are kept")

    @classmethod
    def from_config(cls, config: Any = None) -> PNPVQAWithQAViT:
        """Build the model that a configuration describes.

        Parameters
        ----------
        config : mapping, Config, namespace, OmegaConf node or None
            ``path`` (or checkpoint, vision, text, tokenizer, config) and precision say what `qavit.load` reads; the
            other names are the constructor's. ``qavit_config_example.yaml`` lists them all under ``model:``. None as a
            value stands for the default. ``image_captioning_model`` and ``question_answering_model`` are as in LAVIS's
            files, with paths in place of addresses. Names that only LAVIS knows (arch, model_type, ...) are passed over.

        Returns
        -------
        PNPVQAWithQAViT

        Raises
        ------
        ValueError
            A name is unknown, or a value disagrees with the weights.
        """
        settings = {name: value for name, value in to_mapping(config).items() if value is not None}
        passed_over = [name for name in settings if name in _LAVIS_ONLY]
        if passed_over:
            _log.info("config: %s mean nothing to a QA-ViT and are passed over", ", ".join(passed_over))
        settings = {name: value for name, value in settings.items() if name not in _LAVIS_ONLY}
        unknown = sorted(set(settings) - {"path", *_SOURCES, *_SETTINGS, *_PARTS})
        if unknown:
            known = ", ".join(("path", *_SOURCES, *_SETTINGS, *_PARTS))
            raise ValueError(f"config: unknown settings {', '.join(unknown)}; expected {known}")
        if "config" in settings:
            settings["config"] = Config(settings["config"]).to_dict()
        return cls(settings.pop("path", None), **settings)

    def forward_itm(self, samples: Mapping[str, Any], block_num: int | None = None) -> Any:
        """One attention map for each pair of an image and a question.

        Parameters
        ----------
        samples : mapping
            'image': float [B, 3, image_size, image_size], normalised, NumPy or torch; 'text_input': B questions, or one
            str for B = 1. 'gradcams' is put in for `forward_cap`: the maps over the captioner's patches, or over the
            model's own where there is no captioner.
        block_num : int, optional
            The block to read, counted from 0. None: the model's `block_num`, which is 7 unless set.

        Returns
        -------
        float32 [B, num_patches]
            Rows are positive and sum to 1; row-major over the patch grid.

        Raises
        ------
        ValueError, TypeError
            A key is missing, shapes or counts do not fit, or the block does not exist.

        Warns
        -----
        QuestionBlindWarning
            The class token cannot know the question yet at this block.
        """
        image, questions = read_samples(samples)
        if self.captioner is not None:  # whose pictures these may be
            image = as_kind(fit_images(to_numpy(image, "samples['image']"), self.qavit), torch_of(image))
        instruct_states = self.encode_questions(questions)
        vision_outputs = self.qavit_vision_model(pixel_values=image, instruct_states=instruct_states, output_attentions=True)
        maps = self.extract_qavit_attention(vision_outputs, self._block(block_num))
        if isinstance(samples, MutableMapping):
            samples["gradcams"] = as_kind(self._on_captioners_grid(to_numpy(maps, "maps")), torch_of(maps))
        return maps

    def _put_maps(self, samples: MutableMapping[str, Any], block_num: int | None) -> FloatArray:
        """Each pair's map by `forward_itm`, which a subclass may have made its own."""
        image, questions = read_samples(samples)
        pixels = fit_images(to_numpy(image, "samples['image']"), self.qavit)
        if block_num is None:
            block_num = self.qavit.default_block if self.block_num is None else self.block_num
        found = [
            to_numpy(self.forward_itm({"image": pixels[row : row + 1], "text_input": [question]}, block_num), "maps")
            for row, question in enumerate(questions)
        ]
        maps = np.concatenate(found)
        samples["gradcams"] = as_kind(self._on_captioners_grid(maps), torch_of(image))
        return maps

    @property
    def matcher(self) -> QAViT:
        """The model itself."""
        return self.qavit

    def encode_questions(self, questions: str | Sequence[str]) -> EncodedQuestions:
        """The questions as the vision model takes them.

        Parameters
        ----------
        questions : str or sequence of str

        Returns
        -------
        EncodedQuestions
            states float32 [B, M, instruction_dim] and mask uint8 [B, M], ready for ``instruct_states=``.
        """
        return self.qavit.encode_questions(questions)

    def qavit_vision_model(
        self,
        pixel_values: Any,
        instruct_states: Any = None,
        instruct_mask: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> LazyVisionOutput:
        """Run the vision tower on images and encoded questions.

        Nothing is computed that is not looked at: each part of the outputs is worked out when it is first read.

        Parameters
        ----------
        pixel_values : float [B, 3, image_size, image_size], NumPy or torch
            Normalised images.
        instruct_states : EncodedQuestions, or float [B, M, instruction_dim], NumPy or torch
            What `encode_questions` gave.
        instruct_mask : [B, M], optional
            1 for tokens that count; EncodedQuestions brings its own.
        output_attentions, output_hidden_states : bool
            Whether `attentions` and `hidden_states` can be read.

        Returns
        -------
        LazyVisionOutput
        """
        pair = instruct_states if isinstance(instruct_states, tuple) else (instruct_states,)
        torch = torch_of(pixel_values, *pair)
        images = self.qavit._pixels(pixel_values)
        states, mask = self.qavit._instruct(instruct_states, instruct_mask, len(images))
        # The parts are computed later: what the caller does to the arrays until then must not show.
        states = None if states is None else states.copy()
        mask = None if mask is None else mask.copy()
        return LazyVisionOutput(self.qavit, images.copy(), states, mask, output_attentions, output_hidden_states, torch)

    def extract_qavit_attention(self, vision_outputs: Any, block_num: int | None = None) -> Any:
        """Where the class token looks at a block: its attention to the patches, averaged over heads.

        Override this in a subclass to read maps otherwise: `forward_itm`, `multi_scale_attention` and
        `QAViTHeatmapDemo` all come through here.

        Parameters
        ----------
        vision_outputs : LazyVisionOutput, or any object with ``attentions[block_num]`` [B, h, T, M + T]
        block_num : int, optional
            None: the model's `block_num`, which is 7 unless set.

        Returns
        -------
        float32 [B, num_patches]
            Rows sum to 1. A tensor where the attentions are tensors.

        Warns
        -----
        QuestionBlindWarning
            The class token cannot know the question yet at this block.
        """
        block = self._block(block_num)
        warn_of(self.qavit._blind_notes([block], CLASS_TOKEN))
        if isinstance(vision_outputs, LazyVisionOutput):
            return as_kind(vision_outputs.class_maps([block])[:, 0], vision_outputs.torch)
        attention = vision_outputs.attentions[block]
        return as_kind(read_class(to_numpy(attention, "attentions")), torch_of(attention))

    def multi_scale_attention(self, vision_outputs: Any, blocks: Sequence[int] = (3, 7, 11)) -> Any:
        """The maps of several blocks, shallow to deep.

        Parameters
        ----------
        vision_outputs : as for `extract_qavit_attention`
        blocks : sequence of int
            Blocks that do not know the question are shown for comparison here and do not warn.

        Returns
        -------
        float32 [len(blocks), B, num_patches]
        """
        numbers = self.qavit.check_blocks(blocks)
        if isinstance(vision_outputs, LazyVisionOutput):
            vision_outputs.class_maps(numbers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QuestionBlindWarning)
            maps = [self.extract_qavit_attention(vision_outputs, block) for block in numbers]
        torch = torch_of(*maps)
        return np.stack(maps) if torch is None else torch.stack(maps)

    def to(self, device: Any = None, *others: Any, **more: Any) -> PNPVQAWithQAViT:
        """Move the model to `device`, in place, and give it back: see :meth:`QAViT.to`.

        Raises
        ------
        ValueError
            There is no such device.
        RuntimeError
            What is missing: CUDA in this build, the driver, or a GPU.
        """
        self.qavit.to(self.device if device is None else device, offload_model=self.offload_model or None)
        for part in (self.captioner, self.reader):
            if part is not None and device is not None:
                part.to(device)
        return self

    @property
    def device(self) -> str:
        """Where the model computes."""
        return self.qavit.device

    def cpu(self) -> PNPVQAWithQAViT:
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self) -> PNPVQAWithQAViT:
        """As ``to("cuda")``."""
        return self.to("cuda")

    def eval(self) -> PNPVQAWithQAViT:
        """Give the model back: it is always ready for inference."""
        return self

    def train(self, mode: bool = True) -> PNPVQAWithQAViT:
        """``train(False)`` is `eval`; anything else is a ValueError, for there is nothing to train with."""
        if mode:
            raise ValueError("mode: got True, but this model does inference only")
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.qavit!r}, block_num={self.block_num})"

    def _block(self, block_num: int | None) -> int:
        """The block asked for, else the configured one, else PnP-VQA's."""
        if block_num is None:
            block_num = PNP_VQA_BLOCK if self.block_num is None else self.block_num
        return self.qavit.check_block(block_num, "block_num")


def _model_of(model: Any, sources: dict[str, Any], image_size: int | None, device: Any, offload: bool) -> QAViT:
    """The QAViT given, moved to the device that is named, or the one loaded from what is named."""
    if isinstance(model, QAViT):
        if sources:
            raise ValueError(f"{', '.join(sorted(sources))}: given together with a loaded model; give one or the other")
        return model.to(model.device if device is None else device, offload_model=offload or None)
    path = None if model is ... else model
    if path is not None and not isinstance(path, str) and not hasattr(path, "__fspath__"):
        hint = "; a BlipITM has forward_itm itself, and qavit.lavis for PnP-VQA" if isinstance(model, Model) else ""
        raise TypeError(f"model: expected a QAViT, 'demo' or a folder, got {type(model).__name__}{hint}")
    where = "cpu" if device is None else str(device)
    loaded = load(path, image_size=image_size, device=where, offload_model=offload, **sources)
    if not isinstance(loaded, QAViT):
        raise ValueError(
            f"model: {path or sources.get('checkpoint')} holds a {type(loaded).__name__}, not a QA-ViT; "
            "use it through qavit.load and qavit.lavis"
        )
    return loaded


def _check_agrees(name: str, wanted: Any, has: Any) -> None:
    if wanted is not None and wanted != has:
        raise ValueError(f"{name}: got {wanted!r}, but the model's weights are made for {has!r}")
