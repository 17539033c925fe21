"""The last two thirds of PnP-VQA: captions of what the map picks, and the answer that is read out of them."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.arguments import question_list, read_samples, unique_images
from .._base.tensors import as_kind, to_numpy, torch_of
from .._base.types import FloatArray
from ..generation._draws import Draws, check_weights, draw_patches
from ..text import context_of
from ._captions import Caption, CaptionSettings, collect
from ._contexts import grouped
from ._grids import fit_images, resample_mass

Samples = MutableMapping[str, Any]


def check_words(questions: Sequence[str]) -> None:
    """ValueError for a question that asks nothing."""
    for question in questions:
        if not any(character.isalnum() for character in question):
            raise ValueError(f"samples['text_input']: {question!r} has no words")


class Pipeline:
    """PnP-VQA's steps under LAVIS's names, for a class that has a matcher, a captioner and a reader.

    Attributes
    ----------
    matcher, captioner, reader : Model
        The last two may be None: then the steps that need them raise ValueError.
    """

    matcher: Any
    captioner: Any = None
    reader: Any = None

    @property
    def image_question_matching_model(self) -> Any:
        """The matcher, under LAVIS's name."""
        return self.matcher

    @property
    def image_captioning_model(self) -> Any:
        """The captioner, under LAVIS's name."""
        return self.captioner

    @property
    def question_answering_model(self) -> Any:
        """The reader, under LAVIS's name."""
        return self.reader

    def forward_cap(
        self,
        samples: Samples,
        cap_max_length: int = 20,
        cap_min_length: int = 0,
        top_p: float = 1,
        top_k: int = 50,
        repetition_penalty: float = 1.0,
        num_captions: int = 100,
        num_patches: int = 20,
        *,
        seed: int = 0,
    ) -> Samples:
        """Captions of the patches that each map picks, with LAVIS's signature and defaults.

        For every caption, `num_patches` patches are drawn anew by the map, without replacement, and the captioner sees those
        alone. A caption that is a part of an earlier one of its question is dropped, and another drawn.

        Parameters
        ----------
        samples : dict
            'image': float [B, 3, S, S], as LAVIS normalises it; 'text_input': B questions; 'gradcams': float [B, P], not
            negative, over the captioner's patches.
        cap_max_length, cap_min_length : int
            In tokens, the prompt and the start counted.
        top_p, top_k, repetition_penalty
            As for the captioner's generate.
        num_captions, num_patches : int
        seed : int
            Of the draws. The same seed gives a question on a picture the same captions, in whatever batch.

        Returns
        -------
        dict
            `samples` itself; 'captions' holds B lists of `num_captions` texts. Of fewer, with a warning, where a tenfold
            number of draws gave no more.

        Raises
        ------
        ValueError, TypeError
            A key is missing, shapes do not fit, or a map is zero everywhere.
        """
        settings = CaptionSettings(
            num_captions, num_patches, cap_max_length, cap_min_length, top_p, top_k, repetition_penalty, seed
        )
        image, questions = read_samples(samples)
        if "gradcams" not in samples:
            raise ValueError("samples: there are no 'gradcams'; forward_itm puts them in")
        pixels = to_numpy(image, "samples['image']")
        maps = to_numpy(samples["gradcams"], "samples['gradcams']")
        found = self._captions(pixels, questions, maps, settings)
        samples["captions"] = [[caption.text for caption in captions] for captions in found]
        return samples

    def forward_qa(
        self,
        samples: Samples,
        num_beams: int = 1,
        max_len: int = 20,
        min_len: int = 0,
        internal_bsz_fid: int = 1,
        num_captions: int = 100,
        num_captions_fid: int = 1,
    ) -> list[str]:
        """An answer read out of each question's captions, with LAVIS's signature and defaults.

        Parameters
        ----------
        samples : dict
            'text_input': B questions; 'captions': B lists of texts. 'question_captions', the reader's input, is put in.
        num_beams : int
            1: greedy.
        max_len, min_len : int
            In tokens, the start counted.
        internal_bsz_fid : int
            1; see the errors.
        num_captions : int
            How many captions are read, the first first.
        num_captions_fid : int
            How many stand in one text.

        Returns
        -------
        list of B str

        Raises
        ------
        ValueError, TypeError
            A key is missing, a question has no captions, or `internal_bsz_fid` is not 1: LAVIS then answers each question
            several times, from a part of its captions each, and the answers no longer stand beside their questions.
        """
        if internal_bsz_fid != 1:
            raise ValueError(
                f"internal_bsz_fid: got {internal_bsz_fid!r}, expected 1; any other number makes LAVIS answer each question "
                "several times, from a part of its captions each"
            )
        reader = self._part("reader", "forward_qa")
        for name in ("text_input", "captions"):
            if name not in samples:
                raise ValueError(f"samples: there is no {name!r}{'; forward_cap puts it in' if name == 'captions' else ''}")
        questions = question_list(samples["text_input"], "samples['text_input']")
        check_words(questions)
        captions = samples["captions"]
        if isinstance(captions, str) or not isinstance(captions, Sequence) or len(captions) != len(questions):
            raise ValueError(f"samples['captions']: expected a list of captions for each of {len(questions)} questions")
        samples["question_captions"] = [
            contexts_of(question, own, num_captions, num_captions_fid, f"samples['captions'][{row}]")
            for row, (question, own) in enumerate(zip(questions, captions))
        ]
        options = {"max_len": max_len, "min_len": min_len, "num_beams": num_beams}
        return [str(reader.answer(None, contexts, **options).text) for contexts in samples["question_captions"]]

    def predict_answers(
        self,
        samples: Samples,
        num_beams: int = 1,
        inference_method: str = "generate",
        max_len: int = 20,
        min_len: int = 0,
        internal_bsz_fid: int = 1,
        num_captions: int = 50,
        num_captions_fid: int = 1,
        cap_max_length: int = 20,
        cap_min_length: int = 10,
        top_k: int = 50,
        top_p: float = 1,
        repetition_penalty: float = 1,
        num_patches: int = 50,
        block_num: int | None = None,
        *,
        seed: int = 0,
    ) -> tuple[list[str], list[list[str]], Any]:
        """From pictures and questions to answers, with LAVIS's signature and defaults.

        Published figures have 100 captions of 20 patches, and for GQA five captions a text; see docs/ANSWERS.md.

        Parameters
        ----------
        samples : dict
            'image': float [B, 3, S, S], as LAVIS normalises it; 'text_input': B questions, or one str for B = 1.
        inference_method : {"generate"}
        block_num : int, optional
            The block that the map is read at; None: LAVIS's 7 for BLIP, the matcher's own choice otherwise.
        num_beams, max_len, min_len, internal_bsz_fid, num_captions_fid
            As for `forward_qa`.
        num_captions, cap_max_length, cap_min_length, top_k, top_p, repetition_penalty, num_patches, seed
            As for `forward_cap`.

        Returns
        -------
        answers : list of B str
        captions : list of B lists of str
        gradcams : float32 [B, P]
            A tensor where the images are tensors.
        """
        if inference_method != "generate":
            raise ValueError(f"inference_method: got {inference_method!r}, expected 'generate'")
        if isinstance(samples.get("text_input"), str):
            samples["text_input"] = [samples["text_input"]]
        self._put_maps(samples, block_num)
        self.forward_cap(
            samples, cap_max_length, cap_min_length, top_p, top_k, repetition_penalty, num_captions, num_patches, seed=seed
        )
        answers = self.forward_qa(samples, num_beams, max_len, min_len, internal_bsz_fid, num_captions, num_captions_fid)
        return answers, samples["captions"], samples["gradcams"]

    # ---- what the steps are made of ----

    def _part(self, name: str, needed_by: str) -> Any:
        part = getattr(self, name)
        if part is None:
            given = {"captioner": "image_captioning_model", "reader": "question_answering_model"}[name]
            raise ValueError(f"{needed_by}: this model has no {name}; give one ({given} in a configuration)")
        return part

    def _put_maps(self, samples: Samples, block_num: int | None) -> FloatArray:
        """The matcher's own maps [B, its patches]; `samples["gradcams"]` has them on the captioner's grid."""
        image, questions = read_samples(samples)
        check_words(questions)
        pixels = fit_images(to_numpy(image, "samples['image']"), self.matcher)
        block = self.matcher.default_block if block_num is None else block_num
        alone = self._asks_alone()
        parts = [slice(row, row + 1) for row in range(len(questions))] if alone else [slice(None)]
        pairs = [{"image": pixels[one], "text_input": questions[one]} for one in parts]
        maps: FloatArray = np.concatenate([self.matcher.forward_itm(pair, block_num=block) for pair in pairs])
        samples["gradcams"] = as_kind(self._on_captioners_grid(maps), torch_of(image))
        return maps

    def _asks_alone(self) -> bool:
        """Whether each question is to be asked by itself, so that its map is the same to the last bit beside any other.

        Where questions go through the tower, a longer one changes the last bits of others.
        """
        return bool(self.matcher.question_blocks)

    def _on_captioners_grid(self, maps: FloatArray) -> FloatArray:
        """Maps [B, P], each patch's share where the patch lies."""
        if self.captioner is None:
            return maps
        spread = resample_mass(maps.reshape(len(maps), *self.matcher.grid), self.captioner.grid)
        return spread.reshape(len(maps), -1)

    def _captions(
        self, image: FloatArray, questions: Sequence[str], maps: FloatArray, settings: CaptionSettings
    ) -> list[list[Caption]]:
        """Captions of each question; each different picture goes through the captioner's tower once."""
        captioner = self._part("captioner", "forward_cap")
        settings.checked()
        patches = captioner.grid[0] * captioner.grid[1]
        if maps.shape != (len(questions), patches):
            raise ValueError(f"samples['gradcams']: shape {list(maps.shape)}, expected [{len(questions)}, {patches}]")
        weights = [check_weights(one, patches, f"samples['gradcams'][{row}]") for row, one in enumerate(maps)]
        found: list[list[Caption]] = [[] for _ in questions]
        different, index = unique_images(fit_images(image, captioner))
        for number, pixels in enumerate(different):
            states = captioner.image_states(pixels[None])
            for row in map(int, np.flatnonzero(index == number)):
                draws = Draws.of(settings.seed, pixels, questions[row])
                found[row] = draw_captions(captioner, states, weights[row], draws, settings)
        return found


def contexts_of(
    question: str, captions: Sequence[str], num_captions: int, num_captions_fid: int, argument: str = "captions"
) -> list[str]:
    """What the reader is given for one question."""
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        raise TypeError(f"{argument}: expected a list of str")
    try:
        groups = grouped(captions, num_captions, num_captions_fid)
    except ValueError as error:
        raise ValueError(str(error).replace("captions:", f"{argument}:", 1)) from None
    return [context_of(question, group) for group in groups]


def draw_captions(
    captioner: Any, states: FloatArray, weights: npt.NDArray[np.float64], draws: Draws, settings: CaptionSettings
) -> list[Caption]:
    """Captions of one question about one picture, whose states are [1, 1 + P, W]."""

    def draw(first: int, count: int) -> list[Caption]:
        keys = draws.keys(np.arange(first, first + count))
        patches = draw_patches(weights, settings.num_patches, keys)
        generated = captioner.generate(
            states,
            num_captions=count,
            tokens=patches + 1,  # token 0 is the class token
            do_sample=True,
            max_length=settings.max_length,
            min_length=settings.min_length,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            keys=keys,
        )
        return [Caption(one.text, drawn) for one, drawn in zip(generated, patches)]

    return collect(draw, settings.num_captions)
