"""BLIP's captioner: what a picture shows, in words; and where it looked for each."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from .. import _core
from .._base.arguments import is_pixel_values, question_list, whole_number
from .._base.tensors import detached
from .._base.types import FloatArray, ImageLike, PixelValues, Precision
from .._base.warnings import warn_of
from ..checkpoints._weights import check_unchanged, release_pages
from ..generation._decoding import Decoded, Decoding
from ..generation._draws import Draws, check_weights, draw_patches
from ..generation._generated import Generated
from ..generation._loops import LOGITS_AT_ONCE, decode
from ..generation._processors import Sampling
from ..images import preprocess
from ..text import words_with_tokens
from ._captions import CaptionLook, Written, padded, words_of_pieces
from ._devices import Placement
from ._model import Model, Shown
from ._notes import question_notes
from ._picture_cache import digest_of

if TYPE_CHECKING:
    from ..checkpoints._source import ModelSource
    from ..images import Seen

#: LAVIS's, and so many patches as PnP-VQA's own evaluation draws.
PROMPT, NUM_PATCHES = "a picture of ", 20
#: Of one picture by one call.
MOST_CAPTIONS = 1 << 16


class _Given(NamedTuple):
    """What is to be described: its states as the decoder reads them, what draws are keyed by, the picture if there is."""

    memory: _core.DecoderMemory
    content: FloatArray
    shown: Optional[Shown]


class BlipCaptioner(Model):
    """BLIP's captioner: a :class:`Model`.

    Captions of one picture share its pass through the vision half, and the keys and values that the text half reads of it;
    each may see some patches alone. ``heatmaps(image, captions)`` says where each word of a caption was looked for.

    Attributes
    ----------
    prompt : str
        What every caption begins with, and is left out of its text: "a picture of " for LAVIS's checkpoints, "" for Hugging
        Face's folders, ``config={"prompt": ...}`` for another.
    image_tokens : int
        T, patches and the class token, which is the first.
    """

    kind = "blip_caption"
    takes_questions = True
    default_method = "cross_attention"
    reads = frozenset({"cross_attention"})

    def __init__(
        self, source: ModelSource, *, precision: Precision = "float32", device: Any = "cpu", offload_model: bool = False
    ) -> None:
        from ..images import Preprocessing
        from ..text import Tokenizer, check_bert

        if source.text is None or source.tokenizer is None:
            raise ValueError(
                f"{source.name}: a captioner needs a tokenizer; give tokenizer= a tokenizer.json or BERT's vocab.txt"
            )
        super().__init__(source, precision, device, offload_model)
        self.image_size, self.patch_size = self._vit.image_size, self._vit.patch_size
        side = self.image_size // self.patch_size
        self.grid, self.image_tokens = (side, side), self._vit.tokens
        self.num_blocks, self.num_heads = self._decoder.layers, int(source.text["num_attention_heads"])
        self.usable_blocks = tuple(range(self.num_blocks))
        self.default_block = self.num_blocks - 1
        self.preprocessing = Preprocessing.from_dict(source.preprocessing)
        self._tokenizer = Tokenizer(source.tokenizer, self._decoder.vocab_size)
        check_bert(self._tokenizer, self._decoder.vocab_size)
        self._start, self._end = self._special("[DEC]", "starts"), self._special("[SEP]", "ends")
        self.prompt = str(source.defaults.get("prompt", PROMPT))
        self._prompt_ids = self._ids_of("")[:-1]

    def _special(self, token: str, what: str) -> int:
        number = self._tokenizer.id_of(token)
        if number is None:
            raise ValueError(f"{self.name}: the tokenizer has no {token} token, which {what} a caption")
        return number

    def _load_core(self, placement: Placement) -> None:
        source = self._source
        vit = _core.Vit(dict(source.vision), source.weights, placement.precision, device=placement.device)
        text = dict(source.text or {})
        decoder = _core.Decoder(text, source.weights, placement.precision, "text_decoder.", device=placement.device)
        self._vit, self._decoder = vit, decoder
        #: What the decoder read of states that this model gave out, for as long as those live.
        self._memories: dict[int, tuple[weakref.ref[FloatArray], Optional[_core.DecoderMemory]]] = {}
        # Behind them: who finds the new one finds the new halves, too.
        self._picture_cache = self._picture_cache.emptied()
        release_pages(source.weights)

    # ---- pictures ----

    def image_states(self, pixel_values: Union[ImageLike, PixelValues]) -> FloatArray:
        """What the text half reads of pictures: the vision half's tokens behind its final norm.

        Parameters
        ----------
        pixel_values : float [B, 3, S, S] normalised, or a picture

        Returns
        -------
        ndarray of float32, [B, T, W]
            Read-only. What the text half makes of them is kept as long as they are, so give them as they are to
            :meth:`generate` and :meth:`score`.
        """
        return self._give_out(self._states_of(self._batch(pixel_values)).copy())

    def _states_of(self, seen: Seen) -> FloatArray:
        """Of one picture those that are kept, which are read-only."""
        check_unchanged(self._files)
        cache, vit = self._picture_cache, self._vit
        if len(seen) != 1 or cache.largest == 0:
            return self._run(vit, seen)
        key = digest_of(seen), "states"
        found = cache.find(key, lambda states: ((vit, states), states.nbytes))
        known = found is not None and found[0] is vit
        cache.count(known)
        states: FloatArray = found[1] if known else self._run(vit, seen)
        if not known:
            states.setflags(write=False)
            cache.put(key, (vit, states), states.nbytes, states)
        return states

    def _memory_of(self, seen: Seen) -> _core.DecoderMemory:
        """What cross-attention reads of one picture."""
        cache, decoder = self._picture_cache, self._decoder
        if cache.largest == 0 or self.device != "cpu":
            return self._read(self._states_of(seen))
        key = digest_of(seen), "memory"
        found = cache.get(key)
        known = found is not None and found[0] is decoder
        if known:
            check_unchanged(self._files)
            cache.count(True)
        memory: _core.DecoderMemory = found[1] if known else self._read(self._states_of(seen), decoder)
        if not known:
            cache.put(key, (decoder, memory), 8 * decoder.layers * self.image_tokens * decoder.width)
        return memory

    def _run(self, vit: _core.Vit, seen: Seen) -> FloatArray:
        if isinstance(seen, np.ndarray):
            result = vit.forward(seen, outputs=("normed",))
        else:
            result = vit.forward([seen.picture], outputs=("normed",), preprocessing=seen.preprocessing)
        states: FloatArray = result["normed"]
        return self._finite(states)

    def _give_out(self, states: FloatArray) -> FloatArray:
        states.setflags(write=False)
        key, memories = id(states), self._memories
        memories[key] = (weakref.ref(states, lambda _: memories.pop(key, None)), None)
        return states

    def _read(self, states: FloatArray, decoder: Optional[_core.Decoder] = None) -> _core.DecoderMemory:
        """What cross-attention reads of states [B, T, W] or [T, W]."""
        memories = self._memories
        known = memories.get(id(states))
        given_out = known is not None and known[0]() is states and not states.flags.writeable
        if known is not None and given_out and known[1] is not None:
            return known[1]
        flat = states.reshape(-1, states.shape[-1])
        lengths = np.full(len(flat) // self.image_tokens, self.image_tokens, np.int32)
        memory = (self._decoder if decoder is None else decoder).read(flat, lengths)
        if known is not None and given_out:
            memories[id(states)] = (known[0], memory)
        return memory

    def _is_states(self, image: Any) -> bool:
        """Whether this is what `image_states` gives, rather than a picture or its pixels."""
        shape = tuple(getattr(image, "shape", ()))
        return (
            is_pixel_values(image) and len(shape) in (2, 3) and shape[-2:] == (self.image_tokens, self._decoder.cross_width)
        )

    def _checked_states(self, states: Any) -> FloatArray:
        array = np.asarray(detached(states))
        if array.dtype != np.float32:
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError("states: NaN or infinity among the values, expected finite numbers")
        return array if array is states else np.ascontiguousarray(array)

    def _given(self, image: Any) -> _Given:
        """One picture, its pixels, or its states."""
        if self._is_states(image):
            states = self._checked_states(image)
            if states.ndim == 3 and len(states) != 1:
                raise ValueError(f"image: the states of {len(states)} pictures, expected those of one")
            return _Given(self._read(states), states.reshape(-1, states.shape[-1]), None)
        shown = self._see(image)
        warn_of(shown.notes)
        content = shown.pixels
        if not isinstance(content, np.ndarray):
            content = preprocess(content.picture, self.preprocessing)[0][None]
        return _Given(self._memory_of(shown.pixels), content, shown)

    def _rows_of(self, tokens: Any, rows: int) -> npt.NDArray[np.int32]:
        """The picture's tokens that each of so many texts sees, int32 [rows, n]."""
        array = np.asarray(detached(tokens))
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.shape[-1] == 0:
            raise ValueError(f"tokens: expected whole numbers [n] or [{rows}, n], got {array.dtype} {list(array.shape)}")
        if array.min() < 0 or array.max() >= self.image_tokens:
            raise ValueError(f"tokens: {array.min()} to {array.max()}, expected 0 to {self.image_tokens - 1}")
        if array.ndim == 2 and len(array) != rows:
            raise ValueError(f"tokens: {len(array)} rows, expected {rows}, one a text")
        return np.ascontiguousarray(np.broadcast_to(array, (rows, array.shape[-1])), np.int32)

    # ---- texts ----

    def _ids_of(self, caption: str) -> npt.NDArray[np.int64]:
        """Start, prompt, caption and end."""
        batch = self._tokenizer.encode([self.prompt + caption], self._decoder.max_tokens)
        if batch.cut[0]:
            raise ValueError(
                f"captions: {caption[:40]!r}... has more than {self._decoder.max_tokens} tokens, the decoder's positions"
            )
        ids: npt.NDArray[np.int64] = batch.ids[0].astype(np.int64)
        ids[0] = self._start
        return ids

    def logits(self, states: Any, ids: Any, tokens: Any = None) -> FloatArray:
        """The decoder's logits of given texts, behind each of their tokens.

        Parameters
        ----------
        states : float32 [B, T, W], or [1, T, W] or [T, W] for all texts
            As :meth:`image_states` gives them.
        ids : int [B, L]
            Of whole texts, from the start token on.
        tokens : int [B, n] or [n], optional
            The picture's tokens that each text sees, 0 the class token; None: all.

        Returns
        -------
        ndarray of float32, [B, L, V]
        """
        array = np.asarray(detached(ids))
        if array.dtype.kind not in "iu" or array.ndim != 2 or array.size == 0:
            raise ValueError(f"ids: expected whole numbers [B, L], got {array.dtype} {list(array.shape)}")
        if not self._is_states(states):
            shape = list(getattr(states, "shape", ()))
            wanted = f"[B, {self.image_tokens}, {self._decoder.cross_width}]"
            raise ValueError(f"states: shape {shape}, expected {wanted} as image_states gives them")
        checked = self._checked_states(states)
        rows, pictures = len(array), 1 if checked.ndim == 2 else len(checked)
        if pictures not in (1, rows):
            raise ValueError(f"states: of {pictures} pictures for {rows} texts; expected 1 or {rows}")
        of = np.arange(rows) if pictures > 1 else np.zeros(rows)
        seen = None if tokens is None else self._rows_of(tokens, rows)
        cache = self._decoder.begin(self._read(checked), rows, array.shape[1], memory_of=of.astype(np.int32), tokens=seen)
        return self._finite(self._decoder.step(cache, np.ascontiguousarray(array, np.int64), all=True))

    def score(self, image: Any, captions: Union[str, Sequence[str]], tokens: Any = None) -> npt.NDArray[np.float64]:
        """How likely the model is to write captions about a picture.

        Parameters
        ----------
        image : picture, float [3, S, S] normalised, or states [T, W] or [1, T, W]
        captions : str or list of str
            Without the prompt.
        tokens : int [n] or [number of captions, n], optional
            The picture's tokens that are seen; None: all.

        Returns
        -------
        ndarray of float64, [number of captions]
            The sum of log-probabilities of each caption's tokens and of its end, behind the prompt: `Generated.score` of a
            text that the model itself wrote.
        """
        every = [self._ids_of(caption) for caption in question_list(captions, "captions")]
        seen = None if tokens is None else self._rows_of(tokens, len(every))
        memory, prompt = self._given(image).memory, len(self._prompt_ids)
        scores = np.empty(len(every))
        longest = max(map(len, every))
        at_once = max(1, LOGITS_AT_ONCE // (self._decoder.vocab_size * longest))
        for first in range(0, len(every), at_once):
            part = every[first : first + at_once]
            ids, lengths = padded([one[:-1] for one in part])
            own = None if seen is None else seen[first : first + at_once]
            cache = self._decoder.begin(memory, len(part), ids.shape[1], memory_of=np.zeros(len(part), np.int32), tokens=own)
            logits = self._decoder.step(cache, ids, all=True, lengths=lengths)
            for row, (one, length) in enumerate(zip(part, lengths)):
                behind = logits[row, prompt - 1 : length]
                scores[first + row] = _core.token_log_probabilities(behind, one[prompt:, None]).sum()
        return scores

    def generate(
        self,
        image: Any,
        *,
        num_captions: int = 1,
        tokens: Any = None,
        weights: Any = None,
        num_patches: Optional[int] = None,
        do_sample: bool = False,
        max_length: int = 20,
        min_length: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: Union[bool, Literal["never"]] = False,
        seed: int = 0,
        keys: Optional[npt.NDArray[np.uint64]] = None,
        heatmaps: bool = False,
        return_logits: bool = False,
    ) -> list[Generated]:
        """Captions of a picture.

        A caption is a function of the picture, of the settings, of `seed`, and of its own number: it does not depend on how
        many there are, on threads, or on what was drawn before.

        Parameters
        ----------
        image : picture, float [3, S, S] normalised, or states [T, W] or [1, T, W]
        num_captions : int
            Without beams and with nothing drawn, one; with beams, up to `num_beams` of one search, best first. Where
            `tokens` or `weights` differ from caption to caption, each is the best of its own.
        tokens : int [n] or [num_captions, n], optional
            The picture's tokens that a caption sees, 0 the class token; None: all.
        weights : float [P] or [gh, gw], optional
            In place of `tokens`: draw `num_patches` patches in proportion to them, anew for every caption.
        num_patches : int, optional
            None: 20, or all where there are fewer.
        do_sample : bool
            Draw tokens by their scores (`temperature`, `top_k`, `top_p`: see :func:`qavit.generation.process_logits`)
            instead of taking the best.
        max_length, min_length : int
            The prompt and the start token count.
        repetition_penalty : float
            See :func:`qavit.generation.process_logits`.
        num_beams : int
        length_penalty, early_stopping
            Of beams, as transformers has them: a beam ranks by its log-probability over its number of new tokens to this
            power; whether to stop with `num_beams` finished ones.
        seed : int
            Draws are keyed by it and by what is given: the pixels, or the states.
        keys : uint64 [num_captions, 4], optional
            In place of `seed`, each caption's own.
        heatmaps : bool
            Whether each caption brings its `result`, a map of it and of each of its words; for pictures and pixels.
        return_logits : bool

        Returns
        -------
        list of num_captions Generated
            `text` is what follows the prompt.

        Raises
        ------
        TypeError, ValueError
            A setting is not of its kind or range, or does not go with the others; the message names it.
        """
        if not 1 <= whole_number(num_captions, "num_captions") <= MOST_CAPTIONS:
            raise ValueError(f"num_captions: {num_captions}, expected 1 to {MOST_CAPTIONS}")
        how = Decoding(
            max_length, self._end, Sampling(repetition_penalty, min_length, self._end, temperature, top_k, top_p),
            do_sample, num_beams, length_penalty, early_stopping,
        )  # fmt: skip
        if heatmaps and self._is_states(image):
            raise ValueError("heatmaps: states have no picture to be drawn over; give the picture, or its pixels")
        given = self._given(image)
        if keys is None:
            keys = Draws.of(seed, given.content).keys(np.arange(num_captions))
        elif np.shape(keys) != (num_captions, 4):
            raise ValueError(f"keys: shape {list(np.shape(keys))}, expected [{num_captions}, 4], one a caption")
        seen = self._drawn(num_captions, tokens, weights, num_patches, np.asarray(keys, np.uint64))
        alike = seen is None or bool((seen == seen[0]).all())
        if alike and not do_sample and num_captions > num_beams:
            raise ValueError(
                f"num_captions: {num_captions} captions would be the same; expected do_sample=True, "
                f"num_beams={num_captions}, or patches that differ"
            )
        rows = 1 if alike and not do_sample else num_captions
        texts = decode(
            self._decoder, given.memory, np.repeat(self._prompt_ids[None], rows, axis=0), how,
            memory_of=np.zeros(rows, np.int32), tokens=None if seen is None else seen[:rows], keys=keys,
            keep_logits=return_logits,
        )  # fmt: skip
        found = [one[0] for one in texts] if rows == num_captions else texts[0][:num_captions]
        check_unchanged(self._files)
        return [self._generated(one, given, heatmaps, None if seen is None else seen[row]) for row, one in enumerate(found)]

    def _drawn(
        self, count: int, tokens: Any, weights: Any, num_patches: Optional[int], keys: npt.NDArray[np.uint64]
    ) -> Optional[npt.NDArray[np.int32]]:
        """The picture's tokens that each caption sees, [count, n]; None: all."""
        if weights is None:
            if num_patches is not None:
                raise ValueError("num_patches: it says how many are drawn by weights; expected those beside it")
            return None if tokens is None else self._rows_of(tokens, count)
        if tokens is not None:
            raise ValueError("tokens, weights: expected one of both")
        patches = self.image_tokens - 1
        number = min(NUM_PATCHES, patches) if num_patches is None else num_patches
        drawn = draw_patches(check_weights(weights, patches), number, keys)
        drawn += 1  # token 0 is the class token
        return drawn

    def _text_of(self, ids: Iterable[int]) -> str:
        """What follows the prompt, cut as LAVIS cuts it: by the prompt's length in characters."""
        whole = self._tokenizer.decode([*self._prompt_ids.tolist(), *ids])
        return whole[len(self.prompt) :]

    def _generated(self, one: Decoded, given: _Given, heatmaps: bool, tokens: Optional[npt.NDArray[np.int32]]) -> Generated:
        text = self._text_of(one.ids.tolist())
        result = None
        if heatmaps and given.shown is not None:
            ids = np.concatenate([self._prompt_ids, one.ids])
            words = words_of_pieces(self._tokenizer.pieces(ids.tolist()), text)
            look = CaptionLook(self._decoder, self.grid, [Written(ids, *words, len(self._prompt_ids))], given.memory, tokens)
            result = self._result_of(given.shown, look, [text], self._request(None, None, "mean"))
        return Generated(text, one.ids, one.score, one.logits, result=result)

    # ---- maps ----

    def _look(self, pixels: Seen, questions: Optional[list[str]]) -> CaptionLook:
        asked = questions or []
        batch = self._tokenizer.encode([self.prompt + caption for caption in asked], self._decoder.max_tokens)
        before = len(self.prompt.split())
        written = []
        for caption, words, word_of in zip(asked, batch.words, batch.word_of):
            known, own = words_with_tokens(words[before:], [max(-1, word - before) for word in word_of])
            written.append(Written(self._ids_of(caption), known, own, len(self._prompt_ids)))
        notes = question_notes(asked, batch.unknown, batch.cut, batch.known)
        return CaptionLook(self._decoder, self.grid, written, self._memory_of(pixels), None, notes)

    def __repr__(self) -> str:
        return (
            f"BlipCaptioner({self.name!r}: {self.num_blocks} text blocks, {self.grid[0]}x{self.grid[1]} patches of "
            f"{self.image_size}x{self.image_size}, {self.precision})"
        )
