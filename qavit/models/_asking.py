"""What a page or a notebook asks of a model while somebody types: described, checked, answered as plots/page.js shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import numpy as np

from .._base.types import Heads
from ..methods._registry import all_methods

if TYPE_CHECKING:
    from .._base.pictures import Picture
    from .._result import HeatmapResult

MAX_QUESTIONS = 2  # side by side
MAX_LETTERS = 1000  # of a question
FITS = ("crop", "stretch", "pad")
#: A :class:`Model`, which needs this file for `explore`.
Asked = Any
TAKEN = frozenset({"questions", "method", "block", "heads", "fit", "words"})


class Wish(NamedTuple):
    """What is asked of a picture, of the right types; whether there are such methods, blocks and heads, the model says."""

    questions: Optional[list[str]] = None
    method: Any = None
    block: Union[int, list[int], None] = None
    heads: Heads = "mean"
    fit: Any = None
    words: bool = False

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Wish:
        """From what came as JSON; ValueError says what is wrong with it."""
        unknown = sorted(map(str, set(asked) - TAKEN))
        if unknown:
            raise ValueError(f"{unknown[0][:40]}: unknown; expected {', '.join(sorted(TAKEN))}")
        questions = asked.get("questions")
        if questions is not None:
            if not isinstance(questions, list) or not all(isinstance(one, str) for one in questions):
                raise ValueError("questions: expected a list of texts, or null")
            if not 1 <= len(questions) <= MAX_QUESTIONS:
                raise ValueError(f"questions: {len(questions)} of them, expected 1 to {MAX_QUESTIONS}")
            if any(len(one) > MAX_LETTERS for one in questions):
                raise ValueError(f"questions: one has more than {MAX_LETTERS} letters")
        method, block, heads, fit = asked.get("method"), asked.get("block"), asked.get("heads", "mean"), asked.get("fit")
        if not isinstance(method, (str, type(None))):
            raise ValueError("method: expected a name, or null")
        if not (block is None or _is_number(block) or (isinstance(block, list) and block and all(map(_is_number, block)))):
            raise ValueError("block: expected the number of a block, several, or null")
        if isinstance(block, list) and len(block) > 256:
            raise ValueError(f"block: {len(block)} blocks, expected at most 256")
        if not isinstance(heads, str) and not _is_number(heads):
            raise ValueError("heads: expected a name or a number")
        if fit is not None and fit not in FITS:
            raise ValueError(f"fit: expected {', '.join(FITS)}, or null")
        words = asked.get("words", False)
        if not isinstance(words, bool):
            raise ValueError("words: expected true or false")
        return cls(questions, method, block, heads, fit, words)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31


class SeenPicture:
    """A picture that is asked about: as it was given, and as the model sees it, once for each way of fitting it."""

    def __init__(self, picture: Picture) -> None:
        picture.setflags(write=False)
        self.picture = picture
        self._shown: dict[Optional[str], Any] = {}
        self._last: Optional[tuple[Wish, HeatmapResult]] = None

    def shown(self, model: Asked, fit: Optional[str]) -> Any:
        """What the model takes of it."""
        found = self._shown.get(fit)
        if found is None:
            # One copy of the pixels serves every fit.
            found = self._shown[fit] = model._see(self.picture, fit)._replace(picture=self.picture)
        return found

    def keep(self, wish: Wish, result: HeatmapResult) -> None:
        """The last answer, for the maps of its words, which are asked for once typing stops."""
        self._last = wish._replace(words=True), result

    def kept(self, wish: Wish) -> Optional[HeatmapResult]:
        """The last answer, where the wish is its words; given once."""
        last, self._last = self._last, None
        return last[1] if last is not None and last[0] == wish else None


def description_of(model: Asked) -> dict[str, Any]:
    """What can be asked of a model."""
    methods: dict[str, Any] = {}
    for name in model.methods:
        method = all_methods()[name]
        heads: list[Union[str, int]] = ["mean", *sorted(method.own_heads)]
        if method.takes_heads:
            heads += ["max", *range(model.num_heads)]
        blocks = [block for block in range(model.num_blocks) if model._has_map(method, block)]
        methods[name] = {
            "blocks": blocks,
            "blind": [block for block in blocks if model.takes_questions and method.blind(model, block)],
            "own": list(method.default(model)),
            "heads": heads,
            "asks": model._asks(method),
        }
    return {
        "about": f"{model.name} · {model.precision}",
        "methods": methods,
        "method": model.default_method,
        "takes_questions": model.takes_questions,
    }


def answers_of(model: Asked, seen: SeenPicture, wish: Wish) -> HeatmapResult:
    """The maps, with answers where the model gives any.

    Raises
    ------
    ValueError, TypeError
        There is no such method, block or head, or the model takes no such questions.
    """
    kept = seen.kept(wish)
    if kept is not None:
        return kept
    request = model._request(wish.method, wish.block, wish.heads)
    shown = seen.shown(model, wish.fit)
    result: HeatmapResult
    if wish.questions is None or not _answers(model):
        result = model._result(shown, wish.questions, request)
    else:
        result, found = model._answered(shown, wish.questions, request)
        if result.answers is None:
            result = result._with(answers=[[(one.text, float(np.exp(one.score)))] for one in found])
    if not wish.words and result.words is not None:
        seen.keep(wish, result)
    return result


def _answers(model: Asked) -> bool:
    try:
        model._check_answers()
    except (TypeError, ValueError):
        return False
    return True


def content_of(result: HeatmapResult, words: bool) -> dict[str, Any]:
    """What the page shows of an answer; the picture it has."""
    from ..plots._look import Look
    from ..plots._page import content_of

    content = content_of(result, Look(), blocks=False, words=words, exact=True, picture=False)
    return {**content, "has_words": result.words is not None}


def blank_of(model: Asked, seen: SeenPicture, questions: Sequence[str] = ("",)) -> dict[str, Any]:
    """What the page shows of a picture that nothing was asked about yet."""
    from .._result import HeatmapResult
    from ..plots._look import Look
    from ..plots._page import content_of

    shown = seen.shown(model, None)
    result = HeatmapResult(
        np.zeros((len(questions), *model.grid), np.float32), list(questions), shown.picture, shown.region,
        method=model.default_method, notes=shown.notes, model=model.name,
    )  # fmt: skip
    height, width = result.picture_size
    about = f"{model.name} · {model.precision} · picture {width} x {height}"
    return {**content_of(result, Look(), blocks=False, exact=True), "blank": True, "about": about}


def explore(model: Asked, image: Any, questions: Sequence[str]) -> Any:
    """The widget of :meth:`Model.explore`."""
    from .._base.pictures import load_image
    from ..plots._widget import make_widget

    if not model.methods:
        raise ValueError(f"{model.name}: this model gives no maps")
    if len(questions) > MAX_QUESTIONS:
        raise ValueError(f"questions: {len(questions)} of them, expected at most {MAX_QUESTIONS}")
    seen = SeenPicture(load_image(image))

    def ask(asked: Mapping[str, Any]) -> dict[str, Any]:
        wish = Wish.of(asked)
        return content_of(answers_of(model, seen, wish), wish.words)

    return make_widget(description_of(model), blank_of(model, seen), questions, ask)
