"""Models that write, and maps by gradients, among threads, forks, signals and deaths: the bits of one thread, or nothing."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from test_processes import run_threads
from writers import CONTEXTS, QUESTIONS, clean_up, picture, writer

import qavit
from qavit import _core

#: Calls of each of eight threads; the long run has 1000.
CALLS = int(os.environ.get("QAVIT_TEST_CALLS", "2"))
#: How many different ones there are of each kind.
CASES = 7
WRITERS = ["blip_caption", "reader", "blip_vqa", "qavit"]
GRADIENTS = ("gradcam", "legrad", "gae", "grad_eclip")
pytestmark = pytest.mark.filterwarnings("ignore::qavit.QavitWarning")


@pytest.fixture(scope="module", autouse=True)
def cleaned() -> Iterator[None]:
    width = _core.get_num_threads()
    yield
    _core.set_num_threads(width)
    clean_up()


def written(found: list[qavit.generation.Generated]) -> list[Any]:
    """All that there is of texts."""
    parts: list[Any] = []
    for one in found:
        parts += [one.text, one.score, b"" if one.ids is None else one.ids.tobytes(), one.ranked]
        parts += [one.result.maps.tobytes()] if one.result is not None else []
    return parts


def one_call(kind: str, model: Any, n: int) -> list[Any]:
    """The n-th of some calls that differ in what is asked, about what, and how."""
    seen, question = picture(n % 3), QUESTIONS[n % 4]
    if kind == "blip_caption":
        if n % 2:
            return written(model.generate(seen, num_captions=2, num_beams=3, max_length=11))
        return written(model.generate(seen, num_captions=3, do_sample=True, seed=n, max_length=11, heatmaps=n % 4 == 0))
    if kind == "reader":
        return written([model.answer(question, CONTEXTS[: 1 + n % 3], 8, num_beams=1 + n % 2)])
    if kind == "clip":
        result = model.heatmaps(seen, [question, "a star"], method=GRADIENTS[n % 4])
        return [result.maps.tobytes()]
    if n % 3 == 0:
        return written(model.answer(seen, [question, "what is this?"], max_new_tokens=4, num_beams=1 + n % 2))
    if n % 3 == 1:
        return written(model.answer(seen, question, answers=["red", "two dogs", "on the left"]))
    result = model.heatmaps(seen, question, **({"answer": "red"} if kind == "blip_vqa" else {}))
    return [result.maps.tobytes()]


def thrashed(kind: str, precision: str) -> Any:
    """A model of its own whose pictures push each other out while they are looked up."""
    model = writer(kind, precision)
    if kind != "reader":
        model._picture_cache.limit = 300_000
    return model


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("kind", [*WRITERS, "clip"])
def test_eight_threads_write_what_one_writes(kind: str, precision: str) -> None:
    model = thrashed(kind, precision)
    for width in (3,) if CALLS < 100 else (1, 2, 5):
        _core.set_num_threads(width)
        expected = [one_call(kind, model, n) for n in range(CASES)]
        assert len({str(one) for one in expected}) > 3

        def work(start: int, expected: list[list[Any]] = expected) -> None:
            for i in range(CALLS):
                n = (5 * start + i) % CASES
                assert one_call(kind, model, n) == expected[n], n

        run_threads([lambda start=start: work(start) for start in range(8)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", WRITERS)
def test_children_forked_in_the_middle_of_a_text_write_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent forks between two tokens, and again while another thread writes; all get the bits of one thread."""
    model = writer(kind)
    expected = [one_call(kind, model, n) for n in range(4)]
    children: list[int] = []

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads is what is tested
            child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(300)
                monkeypatch.undo()
                code = 0 if [one_call(kind, model, n) for n in range(4)] == expected else 2
            finally:
                os._exit(code)
        children.append(child)

    real = _core.next_tokens

    def forking(*arguments: Any, **options: Any) -> Any:
        if len(children) < 2:
            fork()
        return real(*arguments, **options)

    monkeypatch.setattr(_core, "next_tokens", forking)

    def write() -> None:
        for n in (0, 2):
            one_call(kind, model, n)

    run_threads([write, write])
    monkeypatch.undo()
    fork()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    assert [one_call(kind, model, n) for n in range(4)] == expected


@pytest.mark.parametrize("kind", WRITERS)
def test_ctrl_c_in_the_middle_of_a_text_leaves_the_model_usable(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes at a token of its own, whatever the machine's speed."""
    model = writer(kind)
    expected = [one_call(kind, model, n) for n in range(4)]
    real = _core.next_tokens
    for at in (1, 2, 3):
        begun: list[int] = []

        def interrupted(*arguments: Any, at: int = at, begun: list[int] = begun, **options: Any) -> Any:
            begun.append(1)
            if len(begun) == at:
                signal.raise_signal(signal.SIGINT)
            return real(*arguments, **options)

        monkeypatch.setattr(_core, "next_tokens", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one_call(kind, model, 0)
        monkeypatch.undo()
        assert len(begun) == at
    assert [one_call(kind, model, n) for n in range(4)] == expected
