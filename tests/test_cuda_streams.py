"""What the CUDA backend starts and when: streams, events, pinned memory, threads, Ctrl-C.

"cuda-host:1" and "cuda-host:2" do what they are told as late as a GPU may, with the copies of offloaded weights ahead of all
else or behind it: an event that is missing, or memory used again too early, shows in the numbers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_blip as blip
import test_text_encoders as text
from reference import close
from test_cuda import TOLERANCE, asked, present, vision
from test_cuda_pictures import noise

from qavit import _core
from qavit.images import Preprocessing

Array = Any
LATE = ["cuda-host:1", "cuda-host:2"]


@pytest.fixture(params=[*LATE, "cuda"])
def name(request: pytest.FixtureRequest) -> str:
    return present(request.param)


def tolerance(name: str, precision: str = "float32") -> float:
    """Against cuda-host or the CPU; a GPU sums in another order, and bfloat16 then rounds to other numbers."""
    return 2e-2 if (name, precision) == ("cuda", "bfloat16") else TOLERANCE[name.split(":")[0]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("offload", [False, True], ids=["resident", "offloaded"])
def test_calls_of_different_lengths(name: str, precision: str, offload: bool) -> None:
    """Blocks are guessed wrong between calls that stop early and calls that do not."""
    config, weights = vision()
    device = _core.Device(name, offload=offload)
    here = _core.Vit(config, weights, precision, device=_core.Device("cuda-host"))
    there = _core.Vit(config, weights, precision, device=device)
    for block in (5, 0, 3, 5, 1, 2, 4):
        arguments = asked(28, (5, 1, 9, block + 1))
        expected = here.forward(*arguments, attention=[(block, "raw")])["attentions"][block]
        close(
            there.forward(*arguments, attention=[(block, "raw")])["attentions"][block], expected, tolerance(name, precision)
        )


@pytest.mark.parametrize("offload", [False, True], ids=["resident", "offloaded"])
def test_more_than_pinned_memory_holds(name: str, offload: bool) -> None:
    """15 MB of pixels go out through two halves of 4 MB; 6 MB of attention come in."""
    config, weights = vision(None, num_hidden_layers=2, image_size=232, patch_size=29, hidden_size=8, num_attention_heads=1)
    pixels = asked(232, images=24)[0]
    wanted = {"attention": [(0, "raw"), (1, "raw")], "hidden": (1,), "outputs": ("pooled",)}
    expected = _core.Vit(config, weights).forward(pixels, **wanted)
    there = _core.Vit(config, weights, device=_core.Device(name, offload=offload))
    for _ in range(2):
        found = there.forward(pixels, **wanted)
        for block in (0, 1):
            close(found["attentions"][block], expected["attentions"][block], tolerance(name))
        close(found["hidden"][1], expected["hidden"][1], tolerance(name))
        close(found["pooled"], expected["pooled"], tolerance(name))


def test_pictures(name: str) -> None:
    config, weights = vision(None, num_hidden_layers=1, image_size=48, patch_size=16)
    here, there = (_core.Vit(config, weights, device=device) for device in (None, _core.Device(name)))
    pictures = [noise(*size) for size in ((48, 48), (700, 900), (31, 47), (1500, 1400), (60, 2000), (8, 9))]
    how = Preprocessing(48).core_arguments()
    for turn in (pictures, pictures[::-1]):
        found, expected = (vit.forward(turn, hidden=[0], preprocessing=how)["hidden"][0] for vit in (there, here))
        close(found, expected, tolerance(name))


@pytest.mark.parametrize("offload", [False, True], ids=["resident", "offloaded"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients(name: str, precision: str, offload: bool) -> None:
    """Offloaded, blocks come forward and then back."""
    sizes, words, image, _ = blip.SIZES[0]
    model = blip.huggingface_model({**sizes, **image}, {**words, "max_position_embeddings": 40}, seed=7)
    config, weights = blip.config_of(model), blip.weights_of(model)
    here, there = (
        _core.BlipItm(config, weights, precision, device=_core.Device(device, offload=offload))
        for device in ("cuda-host", name)
    )
    pixels = np.random.default_rng(0).standard_normal((3, here.image_size, here.image_size)).astype(np.float32)
    for block in (0, 1, 0):
        ids, mask = blip.questions(words["vocab_size"], [5, 3, 7 + block], 1)
        states = [core.encode_images(pixels[None])[0] for core in (there, here)]
        found, expected = (core.gradcam(state, ids, mask, block, True) for core, state in zip((there, here), states))
        for part in range(3):
            close(found[part], expected[part], max(2.5 * tolerance(name, precision), 1e-4))


def test_a_call_that_fails_is_done_before_the_next(name: str) -> None:
    """What was started before the failure still reads pinned memory; the next call's numbers are its own."""
    tokens = 12000
    model = text.bert_model(
        3, hidden_size=264, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, max_position_embeddings=tokens
    )
    here, there = text.bert_encoder(model), text.bert_encoder(model, device=_core.Device(name))
    ids, mask = text.ragged(41, 1, tokens, 3)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="heads 264 wide over 12000 keys are more than its kernels take"):
            there.encode(ids, mask)
        close(there.encode(ids[:, :9], mask[:, :9]), here.encode(ids[:, :9], mask[:, :9]), max(tolerance(name), 3e-5))


def test_a_model_goes_while_its_weights_are_on_their_way(name: str) -> None:
    config, weights = vision()
    arguments = asked(28)
    device = _core.Device(name, offload=True)
    one, other = (_core.Vit(config, weights, device=device) for _ in range(2))
    expected = one.forward(*arguments, outputs=("pooled",))["pooled"]
    one.forward(*arguments, attention=[(2, "class")])  # the block behind is fetched, and nobody waits for it
    del one
    found = other.forward(*arguments, outputs=("pooled",))["pooled"]
    assert np.array_equal(found, expected)
    other.forward(*arguments, attention=[(1, "class")])
    del other, device


def compute_for_ever(vit: Any, pixels: Array) -> None:
    while True:
        vit.forward(pixels, outputs=("pooled",))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_ctrl_c_while_the_device_computes(name: str) -> None:
    """All has been started long before the first of it is done."""
    config, weights = vision(None, num_hidden_layers=3, image_size=392, patch_size=14)
    vit = _core.Vit(config, weights, device=_core.Device(name))
    few, many = asked(392, images=1)[0], asked(392, images=3)[0]
    expected = vit.forward(few, outputs=("pooled",))["pooled"]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            compute_for_ever(vit, many)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.array_equal(vit.forward(few, outputs=("pooled",))["pooled"], expected)


WAITING = """
import sys, threading
sys.path[:0] = {path!r}
from test_cuda import _core, asked, vision
device = _core.Device({name!r}, offload=True)
large = vision(None, num_hidden_layers=3, image_size=280, patch_size=14)
model, pixels = _core.Vit(*large, device=device), asked(280, images=2)[0]
done = threading.Event()
def compute():
    for _ in range(2):
        model.forward(pixels, outputs=("pooled",))
    done.set()
worker = threading.Thread(target=compute)
worker.start()
turns = 0
while not done.is_set():
    other = _core.Vit(*vision(None, num_hidden_layers=1), device=device)
    del other
    turns += 1
worker.join()
print("done", turns > 0)
"""


@pytest.mark.parametrize("device", ["cuda-host", "cuda"])
def test_freeing_a_model_does_not_wait_for_another_ones_call(device: str) -> None:
    """The one holds the interpreter's lock, the other one asks for it between ops: to look for Ctrl-C."""
    present(device)
    script = WAITING.format(path=[str(Path(__file__).parent), *filter(None, sys.path)], name=device)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done True\n"


def test_orders_that_there_are() -> None:
    with pytest.raises(ValueError, match="device 'cuda-host:3': there are cuda-host, cuda-host:1 and cuda-host:2"):
        _core.Device("cuda-host:3")
