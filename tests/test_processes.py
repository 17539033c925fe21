"""Whole models among threads, processes and signals, and how a process ends while one is running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupting import seconds_of, seconds_until_stopped, signal_after
from small_models import write_qavit
from test_core_runtime import CONFIG, batch, run_python, t5_weights

import qavit
from qavit import QAViT, _core
from qavit.text import QuestionCache

#: Calls of each of eight threads; the long run has 1000.
CALLS = int(os.environ.get("QAVIT_TEST_CALLS", "60"))
QUESTIONS = [
    f"where is the {shade} {shape}?" for shade in ("red", "green", "blue") for shape in ("star", "circle", "square")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes a few milliseconds a call, so that calls meet in every part of it."""
    return write_qavit(tmp_path_factory.mktemp("processes") / "model", blocks=6, image_size=56, patch=7, heads=4, width=64)


@pytest.fixture
def model(folder: Path) -> QAViT:
    loaded = qavit.load(folder)
    assert isinstance(loaded, QAViT)
    return loaded


@pytest.fixture(autouse=True)
def keep_width() -> Iterator[None]:
    width = _core.get_num_threads()
    yield
    _core.set_num_threads(width)


def pictures(size: int) -> list[np.ndarray]:
    return list(np.random.default_rng(5).integers(0, 256, (4, size, size + 9, 3), np.uint8))


def one_call(model: QAViT, n: int, pixels: list[np.ndarray]) -> np.ndarray:
    """The n-th of some calls that differ in picture, number of questions and what is read."""
    picture, asked = pixels[n % 4], [QUESTIONS[(n + i) % 9] for i in range(1 + n % 3)]
    if n % 5 == 4:
        return model.extract_attention(picture, asked, blocks=(3, 5), method="question")
    return model.heatmaps(picture, asked, block=4 + n % 2).maps


def run_threads(acts: list[Callable[[], None]], seconds: float = 600) -> None:
    """All at once; raises what one of them raised."""
    raised: list[BaseException] = []

    def guard(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guard, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads)
    if raised:
        raise raised[0]


# ---- threads ----


@pytest.mark.parametrize("width", [1, 2, 5])
def test_eight_threads_get_the_bits_that_one_gets(model: QAViT, folder: Path, width: int) -> None:
    _core.set_num_threads(width)
    pixels = pictures(56)
    kinds = 4 * 5 * 9
    expected = [one_call(model, n, pixels).tobytes() for n in range(kinds)]
    model._cache = QuestionCache(2)  # questions push each other out while they are looked up
    done = threading.Event()
    loaded = [0]

    def call(start: int) -> None:
        for i in range(CALLS):
            n = (start * 23 + i) % kinds
            assert one_call(model, n, pixels).tobytes() == expected[n]

    def load_and_drop() -> None:
        while not done.is_set():
            other = qavit.load(folder)
            assert isinstance(other, QAViT)
            assert one_call(other, 1, pixels).tobytes() == expected[1]
            loaded[0] += 1

    def work(start: int) -> None:
        try:
            call(start)
        finally:
            finished.append(start)
            if len(finished) == 8:
                done.set()

    finished: list[int] = []
    run_threads([*(lambda start=start: work(start) for start in range(8)), load_and_drop])
    assert loaded[0] > 0


def test_a_width_that_changes_gives_what_one_of_the_widths_gives(model: QAViT) -> None:
    pixels, widths = pictures(56), (1, 2, 3, 8)
    possible: list[set[bytes]] = [set() for _ in range(12)]
    for width in widths:
        _core.set_num_threads(width)
        for n in range(12):
            possible[n].add(one_call(model, n, pixels).tobytes())
    done = threading.Event()
    finished: list[int] = []

    def change() -> None:
        turn = 0
        while not done.is_set():
            _core.set_num_threads(widths[turn % 4])
            turn += 1
            time.sleep(0.0005)

    def work(start: int) -> None:
        try:
            for i in range(CALLS):
                n = (start + i) % 12
                assert one_call(model, n, pixels).tobytes() in possible[n]
        finally:
            finished.append(start)
            if len(finished) == 4:
                done.set()

    run_threads([*(lambda start=start: work(start) for start in range(4)), change])


# ---- processes ----


def answer_in_child(folder: Path, n: int) -> bytes:
    model = qavit.load(folder)
    assert isinstance(model, QAViT)
    return one_call(model, n, pictures(56)).tobytes()


def test_spawned_processes_load_their_own(model: QAViT, folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(answer_in_child, [(folder, n) for n in range(4)], chunksize=1)
    assert found == [one_call(model, n, pictures(56)).tobytes() for n in range(4)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="Python's own lock of warnings may stay held in the child"
)
def test_forked_children_use_the_parents_model_while_its_threads_run(model: QAViT) -> None:
    pixels = pictures(56)
    expected = [one_call(model, n, pixels).tobytes() for n in range(12)]
    done = threading.Event()

    def keep_busy(start: int) -> None:
        n = start
        while not done.is_set():
            # New questions each time: the tokenizer and the cache are held as often as not.
            model.encode_questions([f"what is thing number {n} of {start}?", f"and {n}?"])
            one_call(model, n, pixels)
            n += 1

    threads = [threading.Thread(target=keep_busy, args=(100 * i,), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(20):
            reader, writer = os.pipe()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads is what is tested
                child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(60)
                    model.encode_questions([f"never asked before: {turn}"])
                    right = all(one_call(model, n, pixels).tobytes() == expected[n] for n in (turn % 12, 11 - turn % 12))
                    code = 0 if right else 2
                finally:
                    os._exit(code)
            os.close(writer)
            os.close(reader)
            assert os.waitpid(child, 0)[1] == 0, turn
    finally:
        done.set()
        for thread in threads:
            thread.join(60)


LOADER_SCRIPT = """
import sys
import numpy as np, torch
import test_processes as t

class Maps(torch.utils.data.Dataset):
    def __init__(self, folder, model=None):
        self.folder, self.model = folder, model
    def __len__(self):
        return 8
    def __getitem__(self, n):
        if self.model is None:
            self.model = t.qavit.load(self.folder)
        return torch.from_numpy(self.model.heatmaps(t.pictures(56)[n % 4], t.QUESTIONS[n]).maps)

if __name__ == "__main__":
    folder = sys.argv[1]
    model = t.qavit.load(folder)
    expected = [model.heatmaps(t.pictures(56)[n % 4], t.QUESTIONS[n]).maps for n in range(8)]
    for context, workers, dataset in (("fork", 2, Maps(folder, model)), ("spawn", 1, Maps(folder))):
        loader = torch.utils.data.DataLoader(dataset, num_workers=workers, multiprocessing_context=context)
        found = [item[0].numpy() for item in loader]
        assert all((a == b).all() for a, b in zip(found, expected)) and len(found) == 8
    print("ok")
"""


def test_workers_of_a_torch_data_loader(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "loader.py"
    script.write_text(LOADER_SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ok"


# ---- signals ----


@contextlib.contextmanager
def interrupted(after: float, number: int) -> Iterator[None]:
    """Send this process a signal some time from now."""
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def vit_parts(width: int, blocks: int, side: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the weights of a vision model; arrays of one shape are one."""
    rng = np.random.default_rng(0)
    config = {
        "image_size": 14 * side, "patch_size": 14, "hidden_size": width, "num_attention_heads": width // 64,
        "num_hidden_layers": blocks, "intermediate_size": 4 * width,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,), "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "embeddings.position_embedding.weight": (side * side + 1, width),
    }  # fmt: skip
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})
    for i in range(blocks):
        block = f"encoder.layers.{i}."
        for name, rows, columns in (
            *((f"self_attn.{part}", width, width) for part in ("q_proj", "k_proj", "v_proj", "out_proj")),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            shapes.update({f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)})
        for name in ("layer_norm1", "layer_norm2"):
            shapes.update({f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)})
    arrays = {shape: rng.standard_normal(shape, np.float32) * np.float32(0.02) for shape in set(shapes.values())}
    return config, {"vision_model." + name: (arrays[shape], "float32", shape, 0) for name, shape in shapes.items()}


def long_calls() -> dict[str, tuple[Callable[[float], Any], float]]:
    """Calls of seconds, or of a share of that: many passes of a vision model and of a text encoder; and a pass's share."""
    vit = _core.Vit(*vit_parts(512, 2, 24))
    images = np.zeros((40, 3, 336, 336), np.float32)
    encoder = _core.T5Encoder(CONFIG, t5_weights(layers=4, D=384, d=96, F=1024))
    ids = batch(64, 512)
    return {
        "vit": (lambda share: vit.forward(images[: round(share * 40)], outputs=("pooled",)), 1 / 20),
        "t5": (lambda share: encoder.encode(ids[: round(share * 64)]), 1 / 32),
    }


def one_wide_block() -> tuple[Any, np.ndarray]:
    """A text encoder that does nearly all of its work in three products, and ids for it."""
    return _core.T5Encoder(CONFIG, t5_weights(layers=1, D=256, d=64, F=32768)), batch(2, 512)


def test_ctrl_c_ends_a_long_forward_soon() -> None:
    _core.set_num_threads(2)
    for name, (call, share) in long_calls().items():
        whole = seconds_of(lambda: call(share)) / share  # noqa: B023
        stopped = seconds_until_stopped(lambda: call(1.0), whole / 20)  # noqa: B023
        assert stopped < whole / 8, (name, stopped, whole)


def test_ctrl_c_ends_an_operation_before_its_end() -> None:
    _core.set_num_threads(2)
    encoder, ids = one_wide_block()
    whole = seconds_of(lambda: encoder.encode(ids))
    # In the middle of the last product, which ends at about four fifths.
    stopped = seconds_until_stopped(lambda: encoder.encode(ids), 0.4 * whole)
    assert stopped < 0.6 * whole, (stopped, whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_signal_handler_may_fork_in_the_middle_of_an_operation() -> None:
    _core.set_num_threads(2)
    encoder, ids = one_wide_block()
    small, children = batch(1, 5), []
    expected, expected_small = encoder.encode(ids), encoder.encode(small)
    whole = seconds_of(lambda: encoder.encode(ids))
    with signal_after(0.4 * whole, lambda *_: children.append(os.fork())):
        try:
            right = bool((encoder.encode(ids) == expected).all())
        except KeyboardInterrupt:
            right = children == [0]  # what other threads had begun is not there in the child
        if children == [0]:
            with contextlib.suppress(BaseException):
                os._exit(0 if right and all((encoder.encode(small) == expected_small).all() for _ in range(9)) else 1)
            os._exit(2)
    assert right
    assert len(children) == 1
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


def test_ctrl_c_ends_the_loading_of_a_large_model() -> None:
    config, weights = vit_parts(256, 96, 4)
    halves = {name: (array.astype(np.float16), "float16", *rest) for name, (array, _, *rest) in weights.items()}
    made: list[Any] = []
    whole = seconds_of(lambda: _core.Vit(config, halves))
    stopped = seconds_until_stopped(lambda: made.append(_core.Vit(config, halves)), whole / 8)
    assert not made
    assert stopped < whole / 2, (stopped, whole)
    with pytest.raises(ValueError, match=r"missing: vision_model\.post_layernorm\.bias"):
        _core.Vit(config, {name: weight for name, weight in halves.items() if name != "vision_model.post_layernorm.bias"})


class Alarm(Exception):
    pass


def test_a_signal_handler_that_raises_is_what_the_call_raises(model: QAViT) -> None:
    pixels = pictures(56)
    expected = one_call(model, 7, pixels)

    def handler(*_: object) -> None:
        raise Alarm("from the handler")

    many = np.zeros((200, 3, 56, 56), np.float32) + np.arange(200, dtype=np.float32)[:, None, None, None]

    def call_for_ever(turn: int) -> None:
        while True:
            one_call(model, turn, pixels)
            model.extract_attention(many, [QUESTIONS[0]] * 200, blocks=(5,))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for turn in range(10):
            with pytest.raises(Alarm, match="from the handler"), interrupted(0.02 + 0.01 * turn, signal.SIGUSR1):
                call_for_ever(turn)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (one_call(model, 7, pixels) == expected).all()


# ---- the end of the process ----

# Calls of the core alone: a thread of NumPy's that ends in the middle of its C++ ends the process.
SHUTDOWN_SCRIPT = """
import threading, time
import test_processes as t
vit = t._core.Vit(*t.vit_parts(64, 2, 4))
encoder = t._core.T5Encoder(t.CONFIG, t.t5_weights(layers=4, D=256, d=64, F=512))
pixels, ids = t.np.zeros((40, 3, 56, 56), t.np.float32), t.batch(64, 256)
def maps():
    while True:
        vit.forward(pixels, attention=[(1, "class")], outputs=("pooled",))
def states():
    while True:
        encoder.encode(ids)
for act in (maps, states):
    threading.Thread(target=act, daemon=True).start()
time.sleep(DELAY)
print("end", flush=True)
"""


@pytest.mark.parametrize("level", ["", "portable"])
def test_a_process_ends_while_daemon_threads_are_in_calls(level: str) -> None:
    for delay in (0.0, 0.05, 0.2):
        script = f"DELAY = {delay}\n" + SHUTDOWN_SCRIPT
        environment = {"QAVIT_CPU": level} if level else {}
        assert run_python(script, timeout=300, QAVIT_NUM_THREADS="3", **environment) == "end"
