"""One model, and all that it gives, in many threads at once: the bits of one thread.

`QAVIT_TEST_CALLS=2000 pytest tests/test_threads.py` goes on for minutes, most of all on a Python without a global lock."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_processes import run_threads
from writers import CONTEXTS, QUESTIONS, clean_up, files, picture, writer

import qavit
from qavit import _core

#: Acts of each of eight threads.
CALLS = int(os.environ.get("QAVIT_TEST_CALLS", "12"))
KINDS = ["blip_caption", "blip_vqa", "qavit", "clip", "reader"]
pytestmark = pytest.mark.filterwarnings("ignore::qavit.QavitWarning")


@pytest.fixture(scope="module", autouse=True)
def cleaned() -> Iterator[None]:
    width = _core.get_num_threads()
    _core.set_num_threads(2)
    yield
    _core.set_num_threads(width)
    clean_up()


def told(result: qavit.HeatmapResult) -> bytes:
    return b"".join(np.ascontiguousarray(one.maps).tobytes() for one in result)


def asked(kind: str, model: Any, n: int) -> Any:
    """The n-th of six calls, each with the same bits whenever it is made."""
    seen, question = picture(n % 3), QUESTIONS[n % 4]
    if kind == "reader":
        return [model.answer(question, CONTEXTS[: 1 + n % 3], 6, num_beams=1 + n % 2).text]
    if kind == "blip_caption":
        written = model.generate(seen, num_captions=2, num_beams=2, max_length=9, heatmaps=n % 2 == 0)
        return [(one.text, None if one.result is None else told(one.result)) for one in written]
    if kind == "blip_vqa":
        return told(model.heatmaps(seen, [question, "what is it?"], answer="red"))
    method = ("gradcam", "legrad")[n % 2] if kind == "clip" else None
    return [told(one) for one in model.stream([seen, picture((n + 1) % 3)], [question, "a star"], method=method)]


def acts(kind: str, model: Any, folder: Path) -> list[Callable[[], None]]:
    """What threads do in any order, while others do it."""
    expected = [asked(kind, model, n) for n in range(6)]
    acted: list[Callable[[], None]] = []

    def ask(n: int) -> None:
        assert asked(kind, model, n) == expected[n], n

    acted += [lambda n=n: ask(n) for n in range(6)]  # type: ignore[misc]

    def load_and_drop() -> None:
        other = qavit.load(**files(kind))
        assert asked(kind, other, 1) == expected[1]

    acted.append(load_and_drop)
    if kind == "reader":
        return acted

    def clear() -> None:
        model.cache_clear()
        info = model.cache_info()
        assert info.bytes <= info.limit

    def squeeze() -> None:
        model._picture_cache.limit = 50_000
        model._picture_cache.limit = 10_000_000

    acted += [clear, squeeze]
    if kind in ("blip_vqa", "clip", "qavit"):
        shared = model.heatmaps(picture(1), QUESTIONS[0])
        own = model.heatmaps(picture(1), QUESTIONS[0])
        every, heads = own.block_maps.tobytes(), None if own.head_maps is None else own.head_maps.tobytes()
        words = None if own.word_maps is None else [one.tobytes() for one in own.word_maps]

        def read_a_shared_result() -> None:
            part = shared[0] if threading.get_ident() % 2 else shared
            assert part.block_maps.tobytes() == every
            assert (None if part.head_maps is None else part.head_maps.tobytes()) == heads
            assert (None if part.word_maps is None else [one.tobytes() for one in part.word_maps]) == words

        def keep_a_result() -> None:
            place = folder / f"{threading.get_ident()}.npz"
            result = model.heatmaps(picture(2), QUESTIONS[1])
            result.save(place)
            assert told(qavit.HeatmapResult.load(place)) == told(result)
            place.with_suffix(".png").write_bytes(b"")
            result.save(place.with_suffix(".png"))

        acted += [read_a_shared_result, keep_a_result]
    return acted


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_model_does_in_eight_threads_at_once(kind: str, tmp_path: Path) -> None:
    model = writer(kind)
    each = acts(kind, model, tmp_path)

    def work(seed: int) -> None:
        for act in np.random.default_rng(seed).integers(0, len(each), CALLS):
            each[act]()

    run_threads([lambda seed=seed: work(seed) for seed in range(8)], seconds=3600)


@pytest.mark.parametrize("kind", ["blip_vqa", "clip", "qavit"])
def test_a_result_whose_parts_are_first_read_by_many(kind: str) -> None:
    """What is computed when it is first read lets go of what the others are computed from."""
    model = writer(kind)
    names = ("block_maps", "head_maps", "word_maps", "block_raw")

    def parts(result: Any) -> list[Any]:
        found = [getattr(result, name) for name in names]
        return [None if part is None else [one.tobytes() for one in part] for part in found]

    expected = parts(model.heatmaps(picture(1), QUESTIONS[:2]))
    for _ in range(max(3, CALLS // 8)):
        shared = model.heatmaps(picture(1), QUESTIONS[:2])
        barrier = threading.Barrier(8)

        def read(n: int, shared: Any = shared, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(60)
            getattr(shared, names[n % 4])
            assert parts(shared) == expected

        run_threads([lambda n=n, read=read: read(n) for n in range(8)])  # type: ignore[misc]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a global lock")
def test_nothing_of_this_has_brought_the_lock_back() -> None:
    assert not sys._is_gil_enabled()  # type: ignore[attr-defined]
