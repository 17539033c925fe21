"""Thousands of calls of every public function: memory stays, and no file descriptor or thread is left.

QAVIT_TEST_LEAK_CALLS=10000 pytest tests/test_leaks.py is the long run. Python's own blocks are counted, which then shows
one object lost in four calls; the process's memory shows what is lost below Python.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image
from small_models import write_qavit
from test_array_arguments import CALLS as ARRAY_CALLS
from test_array_arguments import QUESTIONS, blip, picture, pnpvqa, small

import qavit
from qavit import _core
from qavit.checkpoints import open_model
from qavit.convert import convert, describe
from qavit.demo import demo_model
from qavit.heatmap_demo import QAViTHeatmapDemo

CALLS = int(os.environ.get("QAVIT_TEST_LEAK_CALLS", "24"))
ROUNDS = 3
#: What may be gained in each round of a third of the calls: 300 bytes a call in the long run.
MEGABYTES = 1.0
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of a process")


@cache
def place() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="qavit-leaks-"))


@pytest.fixture(scope="module", autouse=True)
def clean_up() -> Iterator[None]:
    yield
    import shutil

    shutil.rmtree(place())
    place.cache_clear()


@cache
def folder() -> Path:
    return write_qavit(place() / "model", blocks=3, image_size=14, patch=7, width=8)


@cache
def photo() -> str:
    path = place() / "photo.jpg"
    Image.fromarray(np.kron(picture(), np.ones((4, 4, 1), np.uint8))).save(path)
    return str(path)


@cache
def made() -> Any:
    return small().heatmaps(photo(), QUESTIONS)


def set_and_get() -> None:
    qavit.set_num_threads(qavit.get_num_threads())


def refused(call: Callable[[], Any]) -> Callable[[], None]:
    """A call that fails, for what is lost on the way out."""

    def act() -> None:
        try:
            call()
        except (ValueError, TypeError, FileNotFoundError):
            return
        raise AssertionError("it was taken")

    return act


def broken_weights() -> Any:
    source = open_model(folder())
    weights = {name: weight for name, weight in source.weights.items() if "fc2" not in name}
    return _core.Vit(dict(source.vision), weights)


#: name -> (call, how many times fewer than the others: figures take their time)
FUNCTIONS: dict[str, tuple[Callable[[], Any], int]] = {
    **{name: ((lambda call=call, make=make: call(make())), 1) for name, (make, call) in ARRAY_CALLS.items()},
    **{f"{name}, refused": (refused(lambda call=call: call({})), 1) for name, (_, call) in ARRAY_CALLS.items()},
    "load": (lambda: qavit.load(folder()), 1),
    "load and call": (lambda: qavit.load(folder()).heatmaps(photo(), QUESTIONS), 1),
    "load, refused": (refused(lambda: qavit.load(folder() / "absent")), 1),
    "Vit, refused": (refused(broken_weights), 1),
    "encode_questions": (lambda: small().encode_questions(QUESTIONS), 1),
    "answer": (lambda: demo_model_once().answer(photo(), QUESTIONS[0]), 4),
    "demo heatmaps": (lambda: demo_model_once().heatmaps(photo(), QUESTIONS), 4),
    "maps_of_words": (lambda: small().heatmaps(photo(), QUESTIONS).maps_of_words(), 1),
    "all_block_maps": (lambda: small().heatmaps(photo(), QUESTIONS).all_block_maps(), 1),
    "multi_scale_attention": (
        lambda: pnpvqa().multi_scale_attention(
            pnpvqa().qavit_vision_model(np.zeros((1, 3, 14, 14)), pnpvqa().encode_questions("what")), (1, 2)), 1),
    "QAViTHeatmapDemo": (lambda: QAViTHeatmapDemo(small()).demo_single_image(photo(), "what", block_num=2), 1),
    "result items": (lambda: [made()[0], made()[QUESTIONS[1]], made()[:1], made().top_patches(), made().to_dict()], 1),
    "boxes": (lambda: made().boxes(), 1),
    "save npz": (lambda: made().save(place() / "map.npz"), 1),
    "save npy": (lambda: made().save(place() / "map.npy"), 1),
    "to_html": (lambda: made().to_html(place() / "map.html", blocks=False), 10),
    "save png": (lambda: made().save(place() / "map.png", kind="overlay"), 20),
    "_repr_png_": (lambda: made()._repr_png_(), 20),
    "build_info": (qavit.build_info, 1),
    "set_num_threads": (set_and_get, 1),
    "Config": (lambda: qavit.Config({"model": {"path": "demo"}}).to_dict(), 1),
    "Config.from_file": (lambda: qavit.Config.from_file(folder() / "config.json"), 1),
    "open_model": (lambda: open_model(folder()), 1),
    "convert": (lambda: convert(open_model(folder()), place() / "converted", "bfloat16"), 10),
    "describe": (lambda: describe(open_model(folder())), 1),
    "load_image": (lambda: qavit.images.load_image(photo()), 1),
    "BLIP texts": (lambda: blip().itm(photo(), QUESTIONS), 1),
}  # fmt: skip


@cache
def demo_model_once() -> Any:
    return demo_model()


def state() -> tuple[int, float, int, int]:
    """Python's blocks, megabytes of memory, open files, threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        sys.getallocatedblocks(), pages * os.sysconf("SC_PAGESIZE") / 2**20,
        len(os.listdir("/proc/self/fd")), threading.active_count(),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::qavit.QuestionBlindWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_nothing_is_lost(name: str) -> None:
    call, fewer = FUNCTIONS[name]
    calls = max(5, CALLS // fewer // ROUNDS)
    gains = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(max(5, calls // 20)):
            call()
        before = state()
        for _ in range(ROUNDS):
            for _ in range(calls):
                call()
            after = state()
            gains.append([two - one for one, two in zip(before, after)])
            before = after
    if CALLS > 1000:
        print(f"{name}: {ROUNDS} x {calls} calls: {[(gain[0], round(gain[1], 2)) for gain in gains]}", flush=True)
    # What is lost in every call is lost in every round; caches and pools fill once.
    blocks, megabytes, files, threads = np.min(gains, axis=0)
    # fewer: what other tests left behind ends in its own time
    assert files <= 0, f"{gains} in rounds of {calls} calls"
    assert threads <= 0, f"{gains} in rounds of {calls} calls"
    assert blocks <= (calls // 4 if CALLS > 1000 else 100 + 2 * calls), f"{gains} in rounds of {calls} calls"
    assert megabytes < MEGABYTES, f"{gains} in rounds of {calls} calls"


def test_encoded_questions_are_forgotten_in_the_end() -> None:
    model = qavit.load(folder())
    model._cache.capacity = 50
    for n in range(200):
        model.encode_questions(f"where is thing {n}?")
    assert len(model._cache) == 50
