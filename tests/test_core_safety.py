"""What other threads, the garbage collector and odd arguments can do to the core: never touch memory that is not theirs.

What used to end a process runs in one of its own."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import write_qavit
from test_core_runtime import CONFIG, batch, run_python, t5_weights

import qavit
from qavit import QAViT, _core
from qavit._stand_ins import KINDS
from qavit.checkpoints import ModelSource, open_model

GOLDEN = Path(__file__).parent / "data" / "golden"


# ---- arrays that another thread writes to during a call ----


def ask_while_it_changes(
    ask: Callable[[], Any], expected: Any, spoil: Callable[[], None], mend: Callable[[], None], least: int
) -> None:
    """Ask at least so often, while another thread spoils the input and mends it, until it was refused and was right."""
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.002):
            spoil()
            time.sleep(0.0005)
            mend()

    thread = threading.Thread(target=write)
    thread.start()
    refused = right = 0
    while refused == 0 or right == 0 or refused + right < least:
        try:
            found = ask()
        except ValueError:
            refused += 1
        else:
            right += bool((found == expected).all())
    done.set()
    thread.join()
    print("ok")


IDS_SCRIPT = """
import numpy as np
import test_core_runtime as t
from test_core_safety import ask_while_it_changes
encoder = t._core.T5Encoder(t.CONFIG, t.t5_weights(D=64, d=16, F=128))
kept = t.batch(300, 100)
ids, mask = kept.copy(), np.ones_like(kept)

def spoil():
    ids[:], mask[100:] = 10**9, 0

def mend():
    ids[:], mask[:] = kept, 1

ask_while_it_changes(lambda: encoder.encode(ids, mask), encoder.encode(kept), spoil, mend, 20)
"""


def test_ids_that_change_while_they_are_encoded() -> None:
    """A call sees the ids that it has checked, or refuses them."""
    assert run_python(IDS_SCRIPT, timeout=300) == "ok"


SAMPLING_SCRIPT = """
import numpy as np
from qavit import _core
from test_core_safety import ask_while_it_changes
random = np.random.default_rng(0)
logits = random.standard_normal((64, 3000)).astype(np.float32)
kept = random.integers(0, 3000, (64, 500))
ids = kept.copy()
settings = (1.5, 0, -1, 1.0, 0, 1.0)
ask_while_it_changes(
    lambda: _core.process_logits(logits, ids, settings), _core.process_logits(logits, kept, settings),
    lambda: ids.fill(10**9), lambda: np.copyto(ids, kept), 200,
)
"""


def test_ids_that_change_while_logits_are_processed() -> None:
    """An id is where a score is written to: what was checked must be what is used."""
    assert run_python(SAMPLING_SCRIPT, timeout=300) == "ok"


LENGTHS_SCRIPT = """
import threading, numpy as np
import test_core_safety as t
decoder = t.open_decoder(FOLDER)
memory = decoder.read(np.zeros((3, decoder.cross_width), np.float32))
cache = decoder.begin(memory, 1, 4)
decoder.step(cache, np.zeros((1, 2), np.int64))
done = threading.Event()

def reorder():
    rows = 1
    while not done.is_set():
        rows = 400 if rows == 1 else 1
        try:
            decoder.reorder(cache, np.zeros(rows, np.int32))
        except RuntimeError as error:
            assert "another thread" in str(error)

thread = threading.Thread(target=reorder)
thread.start()
right = refused = 0
while right < 300 or refused == 0:
    try:
        lengths = cache.lengths
    except RuntimeError as error:
        assert "another thread" in str(error)
        refused += 1
    else:
        assert len(lengths) in (1, 400) and (lengths == 2).all(), lengths
        right += 1
done.set()
thread.join()
print("ok")
"""


def open_decoder(folder: str) -> Any:
    """Of small captions' weights."""
    options = KINDS["blip_caption"](Path(folder))
    source = open_model(options["checkpoint"], tokenizer=options["tokenizer"], config=options["config"])
    return _core.Decoder(dict(source.text or {}), source.weights, "float32", "text_decoder.")


def test_lengths_of_a_cache_whose_rows_another_thread_moves(tmp_path: Path) -> None:
    assert run_python(LENGTHS_SCRIPT.replace("FOLDER", repr(str(tmp_path))), timeout=300) == "ok"


PICTURE_SCRIPT = """
import struct, sysconfig, threading, time, numpy as np
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
from qavit import _core
side = 2000
head = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + 3 * side**2, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
black, white = bytes(3 * side**2), b"\\xff" * (3 * side**2)
data = bytearray(head + black)
begun = threading.Event()

def write():
    begun.wait()
    time.sleep(delay)
    data[54:] = white

for i in range(10):
    begun.clear()
    delay = 0.002 * i
    thread = threading.Thread(target=write)
    thread.start()
    begun.set()
    picture = _core.decode_image(data)
    # Without a global lock Python copies the bytes while they change: the picture may be of both, and is a picture.
    assert picture.min() == picture.max() or (FREE and set(np.unique(picture)) == {0, 255}), delay
    thread.join()
    data[54:] = black
print("ok")
"""


def test_a_file_that_changes_while_it_is_decoded() -> None:
    """The decoder gets the bytes that were checked: it writes outside its tables where they are broken."""
    if not _core.build_info()["stb_image"]:
        pytest.skip("this build has no decoder")
    assert run_python(PICTURE_SCRIPT) == "ok"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_files_come_as_any_bytes(kind: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    if not _core.build_info()["stb_image"]:
        pytest.skip("this build has no decoder")
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    file = io.BytesIO()
    image.fromarray(pixels).save(file, "PNG")
    assert np.array_equal(_core.decode_image(kind(file.getvalue())), pixels)
    with pytest.raises(TypeError, match="data: expected a bytes-like object, got str"):
        _core.decode_image("picture.png")


# ---- sizes that no memory bounds ----


def make_vit(folder: Path) -> Any:
    model = qavit.load(write_qavit(folder, blocks=4, image_size=28, patch=7, heads=2, width=16))
    assert isinstance(model, QAViT)
    return model._vit


def wrapping_tokens(lanes: int, d: int) -> int:
    """So many tokens of no question that the scratch of an attention over them would come to a few bytes, modulo 2^64."""

    def scratch(keys: int) -> int:
        return lanes * 4 * (12 * keys + d * keys + 64 * keys + 64 * (d // 2 + 1)) % 2**64

    a_key = lanes * 4 * (12 + d + 64)
    rounds = [turn * 2**64 // a_key // 64 * 64 + 64 * step for turn in range(1, 200) for step in range(-2, 3)]
    return min((keys for keys in rounds if keys * 12 * 4 < 2**63), key=scratch)


def test_no_question_of_very_many_tokens(tmp_path: Path) -> None:
    vit = make_vit(tmp_path / "model")
    images = np.random.default_rng(2).standard_normal((2, 3, 28, 28), np.float32)
    expected = vit.forward(images, attention=[(1, "raw")], hidden=[2])
    nothing = np.zeros(0, np.int32)
    for M in (1, 2**40, wrapping_tokens(_core.get_num_threads(), 8)):
        found = vit.forward(images, nothing, np.zeros((0, M, 12), np.float32), nothing, attention=[(1, "raw")], hidden=[2])
        assert np.array_equal(found["attentions"][1], expected["attentions"][1])
        assert np.array_equal(found["hidden"][2], expected["hidden"][2])


# ---- the collector ----

COLLECTOR_SCRIPT = """
import gc, threading
import test_core_runtime as t
done = threading.Event()
def look():
    while not done.is_set():
        for thing in gc.get_objects():
            if isinstance(thing, t._core.T5Encoder):
                assert thing.width == 256
thread = threading.Thread(target=look)
thread.start()
weights = t.t5_weights(layers=6, D=256, d=64, F=1024)
for _ in range(3):
    t._core.T5Encoder(t.CONFIG, weights)
done.set()
thread.join()
print("ok")
"""


def test_a_model_in_the_making_is_seen_by_nobody() -> None:
    """Debuggers and leak finders walk the collector's objects while another thread loads."""
    assert run_python(COLLECTOR_SCRIPT) == "ok"


OUTPUTS_SCRIPT = """
import gc, threading, numpy as np
from qavit import _core
import test_core_safety as t
vit = t.large_vit()
done = threading.Event()
def clear():
    while not done.is_set():
        for thing in gc.get_objects():
            if type(thing) is dict and "attentions" in thing and "hidden" in thing:
                thing["attentions"].clear()
                thing["hidden"].clear()
pictures = np.zeros((8, 3, 96, 96), np.float32)
thread = threading.Thread(target=clear)
thread.start()
whole = 0
for _ in range(5):
    out = vit.forward(pictures, attention=[(5, "raw")], hidden=[6])
    whole += len(out["attentions"]) == len(out["hidden"]) == 1
    out = None
done.set()
thread.join()
assert whole, "no result had what it was asked for"
print("ok")
"""


def large_vit() -> Any:
    """A transformer of which a call takes a tenth of a second."""
    D, F, T = 192, 768, 145
    shapes = {"embeddings.class_embedding": (D,), "embeddings.patch_embedding.weight": (D, 3, 8, 8)}
    shapes["embeddings.position_embedding.weight"] = (T, D)
    layers = {f"self_attn.{part}_proj": (D, D) for part in ("q", "k", "v", "out")}
    layers |= {"mlp.fc1": (F, D), "mlp.fc2": (D, F), "layer_norm1": (D,), "layer_norm2": (D,)}
    layers = {f"encoder.layers.{i}.{name}": shape for i in range(6) for name, shape in layers.items()}
    for name, shape in {**layers, "pre_layrnorm": (D,), "post_layernorm": (D,)}.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    config = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": 6, "num_attention_heads": 3, "image_size": 96}
    weights = {name: (np.full(shape, 0.01, np.float32), "float32", shape, 0) for name, shape in shapes.items()}
    return _core.Vit({**config, "patch_size": 8}, weights, "float32", "")


def test_what_a_running_call_writes_to_is_nobody_else_s() -> None:
    """Debuggers and leak finders walk the collector's objects, and can empty what they find."""
    assert run_python(OUTPUTS_SCRIPT) == "ok"


def test_the_names_of_weights_are_in_no_list() -> None:
    """Whoever finds a list can empty it."""

    def lists() -> set[int]:
        found = (thing for thing in gc.get_objects() if type(thing) is list)
        name = "text_model.shared.weight"
        return {id(thing) for thing in found if any(type(item) is str and item == name for item in thing[:50])}

    before = lists()  # of other tests
    model = _core.T5Encoder(CONFIG, t5_weights())
    assert model.width == 32
    assert not lists() - before


def test_numbers_that_empty_the_sequence_they_stand_in(tmp_path: Path) -> None:
    class Block:
        def __index__(self) -> int:
            asked.clear()
            self.others = [(i, i) for i in range(1000)]  # in the memory of what has gone
            return 1

    vit = make_vit(tmp_path / "model")
    images = np.random.default_rng(3).standard_normal((1, 3, 28, 28), np.float32)
    expected = vit.forward(images, attention=[(1, "raw")])["attentions"][1]
    asked = [(Block(), "".join(["r", "aw"]))]
    assert np.array_equal(vit.forward(images, attention=asked)["attentions"][1], expected)


class Named(bytes):
    """Memory that calls itself a file's."""


def test_memory_is_not_given_back_for_its_type_s_name() -> None:
    """The pages of a file come back when they are read; others would be zeros."""
    assert run_python("import test_core_safety as t; t.load_named_memory(); print('ok')") == "ok"


def load_named_memory() -> None:
    Named.__name__ = Named.__qualname__ = "mmap.mmap"
    config = {**CONFIG, "feed_forward_proj": "relu"}
    weights = t5_weights(D=512, d=128, F=1024, layers=1)
    name = "text_model.encoder.block.0.layer.0.SelfAttention.q.weight"
    array = weights[name][0]
    data = Named(array.tobytes())
    weights = {key.replace("wi_0", "wi"): value for key, value in weights.items() if "wi_1" not in key}
    _core.T5Encoder(config, {**weights, name: (data, "float32", array.shape, 0)})
    assert bytes(data) == array.tobytes()


class Owner(bytearray):
    """A buffer that can refer to what was made of it."""

    model: Any


def own_one(weights: dict[str, Any]) -> tuple[Owner, dict[str, Any]]:
    name, (buffer, dtype, shape, offset) = next(iter(weights.items()))
    owner = Owner(memoryview(buffer).cast("B"))
    return owner, {**weights, name: (owner, dtype, shape, offset)}


@pytest.mark.parametrize("name", ["Vit", "T5Encoder", "BlipItm", "BlipImage"])
def test_cycles_through_the_weights_are_collected(name: str, tmp_path: Path) -> None:
    if name == "T5Encoder":
        owner, weights = own_one(t5_weights())
        owner.model = _core.T5Encoder(CONFIG, weights)
    elif name == "Vit":
        source = open_model(write_qavit(tmp_path / "model", blocks=2, first=1))
        owner, weights = own_one({key: value for key, value in source.weights.items() if key.startswith("vision_")})
        owner.model = _core.Vit({**source.vision, "integrated": (1,)}, weights)
    else:
        owner, model = golden_blip()
        owner.model = model if name == "BlipItm" else encode(model)
        del model
    gone, weights = weakref.ref(owner), {}
    del owner
    gc.collect()
    assert gone() is None


def golden_blip() -> tuple[Owner, Any]:
    source = open_blip()
    owner, weights = own_one(source.weights)
    return owner, _core.BlipItm({"vision": source.vision, "text": source.text}, weights)


def open_blip() -> ModelSource:
    folder = GOLDEN / "blip_itm"
    facts = json.loads((folder / "cases.json").read_text())
    return open_model(
        checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt",
        config={"text": facts["med_config"], "vision": facts["vit"]},
    )  # fmt: skip


def encode(model: Any) -> Any:
    return model.encode_images(np.zeros((1, 3, model.image_size, model.image_size), np.float32))[0]


def test_images_are_of_the_core_s_own_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the module's attribute is by then."""
    kind = _core.BlipImage
    monkeypatch.setattr(_core, "BlipImage", int)
    assert type(encode(golden_blip()[1])) is kind


# ---- a device's turns ----

TURNS_SCRIPT = """
import threading, time, numpy as np
import test_core_safety as t
_core = t._core
source = t.open_blip()
model = _core.BlipItm({"vision": source.vision, "text": source.text}, source.weights, device=_core.Device("cuda-host"))
image = t.encode(model)
ids, mask = np.ones((4, 7), np.int32), np.ones((4, 7), np.uint8)
expected = model.image_features(image)
thread = threading.Thread(target=lambda: model.gradcam(image, ids, mask, 0), daemon=True)
thread.start()
time.sleep(0.2)
assert (model.image_features(image) == expected).all()
thread.join()
print("ok")
"""


def test_waiting_for_a_device_leaves_python_to_the_call_that_has_it() -> None:
    """The running call looks for signals, for which it needs the GIL."""
    assert run_python(TURNS_SCRIPT) == "ok"


HANDLER_SCRIPT = """
import os, signal, threading, numpy as np
import test_core_safety as t
_core = t._core
source = t.open_blip()
device = _core.Device("cuda-host")
make = lambda: _core.BlipItm({"vision": source.vision, "text": source.text}, source.weights, device=device)
model = make()
image = t.encode(model)
ids, mask = np.ones((4, 7), np.int32), np.ones((4, 7), np.uint8)
expected = model.match(image, ids, mask)
refused = []

def handle(*_):
    for act in (lambda: model.match(image, ids, mask), make):
        try:
            act()
        except RuntimeError as error:
            refused.append(str(error))

signal.signal(signal.SIGUSR1, handle)
timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
timer.start()
while not refused:
    model.gradcam(image, ids, mask, 0)
timer.join()
assert all("in a call on the device already" in text for text in refused) and len(refused) == 2, refused
assert (model.match(image, ids, mask) == expected).all()
again = make()
assert (again.match(t.encode(again), ids, mask) == expected).all()
print("ok")
"""


def test_a_signal_handler_s_call_on_a_device_that_is_in_a_call_is_refused() -> None:
    """It would wait for its own thread."""
    assert run_python(HANDLER_SCRIPT) == "ok"


FORK_SCRIPT = """
import os, select, signal, threading
import test_core_runtime as t
_core = t._core
device = _core.Device("cuda-host")
weights = t.t5_weights(D=64, d=16, F=128)
encoder = _core.T5Encoder(t.CONFIG, weights, device=device)
ids, done = t.batch(100, 100), threading.Event()
def work():
    while not done.is_set():
        encoder.encode(ids)
thread = threading.Thread(target=work)
thread.start()
answers = []
for act in (lambda: _core.T5Encoder(t.CONFIG, weights, device=device), lambda: encoder.encode(ids)) * 3:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
            os.write(write, b"it ran")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    answered = select.select([read], [], [], 10)[0]
    answers.append(os.read(read, 1000).decode() if answered else "nothing")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
done.set()
thread.join()
told = [answer for answer in answers if answer.startswith("RuntimeError") and "before this process was forked" in answer]
assert len(told) == 6, answers
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_forked_in_the_middle_of_a_device_s_call_is_told() -> None:
    """The turn that the call has is nobody's in the child, who would wait for it for ever."""
    assert run_python(FORK_SCRIPT, PYTHONWARNINGS="ignore") == "ok"


def test_copies_and_pickles_are_refused() -> None:
    encoder = _core.T5Encoder(CONFIG, t5_weights())
    expected = encoder.encode(batch())
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot pickle"):
            act(encoder)
    with pytest.raises(TypeError):
        _core.T5Encoder.__new__(_core.T5Encoder)
    encoder.__init__()
    with pytest.raises(TypeError, match="__class__"):
        encoder.__class__ = _core.BertEncoder
    assert (encoder.encode(batch()) == expected).all()
