"""Thousands of calls of every public function: memory stays, and no file descriptor or thread is left.

QAVIT_TEST_LEAK_CALLS=10000 pytest tests/test_leaks.py is the long run. Python's own blocks are counted, which then shows
one object lost in four calls; the process's memory shows what is lost below Python.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pyarrow")

import leak_calls
from leak_calls import FUNCTIONS, folder
from public_names import public_code

import qavit
from qavit import _core
from qavit.plots import _axes as plots_axes

CALLS = int(os.environ.get("QAVIT_TEST_LEAK_CALLS", "24"))
ROUNDS = 3
#: What may be gained in each round of a third of the calls: 300 bytes a call in the long run.
MEGABYTES = 1.0
#: What libraries keep, seen with them alone: (objects a call, megabytes a round). tokenizers 0.23.3: 500 bytes of each
#: tokenizer of byte pairs that was used.
OF_LIBRARIES = {"Tokenizer, vocab.json": (0.25, 3.0)}
pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of a process"),
    pytest.mark.filterwarnings("ignore::qavit.QuestionBlindWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def quick_and_clean() -> Iterator[None]:
    """Without waiting for the disk, pictures in figures 16 pixels wide; what was written is removed at the end.

    What was there before is left out of collections of garbage, and again for each kind of call: with torch imported each
    takes a tenth of a second.
    """
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(plots_axes, "DRAWN_SIDE", 16)
        yield
    leak_calls.clean_up()
    gc.unfreeze()


def state() -> tuple[int, float, int, int]:
    """Python's blocks, megabytes of memory, open files, threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        sys.getallocatedblocks(), pages * os.sysconf("SC_PAGESIZE") / 2**20,
        len(os.listdir("/proc/self/fd")), threading.active_count(),
    )  # fmt: skip


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_nothing_is_lost(name: str) -> None:
    call, fewer = FUNCTIONS[name]
    if fewer >= 50 and CALLS < 1000:
        pytest.skip("takes half a second: in the long run")
    if CALLS >= 1000 and fewer < 50:
        fewer = 1
    calls = max(5 if fewer == 1 else 2, CALLS // fewer // ROUNDS)
    gains = []
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(max(min(5, calls), calls // 20)):
            call()
        before = state()
        gc.freeze()
        for _ in range(ROUNDS):
            for _ in range(calls):
                call()
            after = state()
            gains.append([two - one for one, two in zip(before, after)])
            before = after
    if CALLS > 1000:
        seconds = time.perf_counter() - start
        shown = [(gain[0], round(gain[1], 2)) for gain in gains]
        print(f"{name}: {ROUNDS} x {calls} calls in {seconds:.0f} s: {shown}", flush=True)
    # What is lost in every call is lost in every round; caches and pools fill once.
    blocks, megabytes, files, threads = np.min(gains, axis=0)
    # fewer: what other tests left behind ends in its own time
    assert files <= 0, f"{gains} in rounds of {calls} calls"
    assert threads <= 0, f"{gains} in rounds of {calls} calls"
    each, most = OF_LIBRARIES.get(name, (0.25, MEGABYTES))
    assert blocks <= (100 + each * calls if CALLS > 1000 else 200 + 2 * calls), f"{gains} in rounds of {calls} calls"
    assert megabytes < most, f"{gains} in rounds of {calls} calls"


# ---- is it everything? ----

#: What is not called here, and where it is instead.
ELSEWHERE = {"qavit.images.DevicePicture.__init__": "tests/test_cuda_pictures.py"}
#: Of builds with a failing allocator, and with CUDA.
OF_OTHER_BUILDS = ("fail_allocation", "Device.counters")


def every_core_function() -> set[str]:
    names = {name for name, value in vars(_core).items() if inspect.isbuiltin(value) and not name.startswith("_")}
    kinds = [value for name, value in vars(_core).items() if inspect.isclass(value) and not name.startswith("_")]
    methods = {f"{kind.__name__}.{name}" for kind in kinds for name, value in vars(kind).items() if callable(value)}
    return names | {name for name in methods if "__" not in name}


def test_the_calls_reach_every_public_name() -> None:
    """Every documented function, method and property, and everything that the core offers."""
    codes: set[Any] = set()
    built_in: set[str] = set()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)
        elif event == "c_call":
            built_in.add(argument.__qualname__)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls: list[Callable[[], Any]] = [call for call, fewer in FUNCTIONS.values() if fewer < 500]
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            for call in calls:
                call()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    missing = sorted(name for name, code in public_code().items() if code not in codes and name not in ELSEWHERE)
    missing += sorted(f"_core.{name}" for name in every_core_function() - built_in if name not in OF_OTHER_BUILDS)
    assert not missing, " ".join(missing)


def test_encoded_questions_are_forgotten_in_the_end() -> None:
    model = qavit.load(folder())
    model._cache.capacity = 50
    for n in range(200):
        model.encode_questions(f"where is thing {n}?")
    assert len(model._cache) == 50
