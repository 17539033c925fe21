"""How the core behaves in a process: threads, fork, Ctrl-C, a second copy of the module, and memory that runs out."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_levels import LEVELS
from interrupting import seconds_of, seconds_until_stopped

from qavit import _core

ROOT = Path(__file__).parent.parent
CONFIG = {"feed_forward_proj": "gated-gelu", "num_heads": 4}


def t5_weights(layers: int = 2, D: int = 32, d: int = 8, F: int = 48, vocabulary: int = 50) -> dict[str, Any]:
    """A random T5 encoder of 4 heads."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (vocabulary, D), "encoder.final_layer_norm.weight": (D,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 4)
    for n in range(layers):
        block = f"encoder.block.{n}.layer."
        shapes.update({f"{block}0.SelfAttention.{part}.weight": (4 * d, D) for part in "qkv"})
        shapes.update({f"{block}{i}.layer_norm.weight": (D,) for i in range(2)})
        shapes[f"{block}0.SelfAttention.o.weight"] = (D, 4 * d)
        shapes.update({f"{block}1.DenseReluDense.{part}.weight": (F, D) for part in ("wi_0", "wi_1")})
        shapes[f"{block}1.DenseReluDense.wo.weight"] = (D, F)
    arrays = {name: rng.standard_normal(shape, np.float32) / np.float32(shape[-1]) ** 0.5 for name, shape in shapes.items()}
    return {"text_model." + name: (array, "float32", array.shape, 0) for name, array in arrays.items()}


def batch(B: int = 3, M: int = 9, vocabulary: int = 50) -> np.ndarray:
    return np.random.default_rng(1).integers(0, vocabulary, (B, M))


def run_python(script: str, timeout: float = 600, **environment: str) -> str:
    """What a script prints, run in a new process with this folder and the checkout on its path."""
    path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": path, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


# ---- the width of the thread pool ----


@pytest.fixture(autouse=True)
def keep_width() -> Any:
    width = _core.get_num_threads()
    yield
    _core.set_num_threads(width)


@pytest.mark.parametrize("bad", [0, -1, 257, 2**70])
def test_widths_out_of_range_are_refused(bad: int) -> None:
    width = _core.get_num_threads()
    with pytest.raises((ValueError, OverflowError)):
        _core.set_num_threads(bad)
    assert _core.get_num_threads() == width


@pytest.mark.parametrize("bad", ["2", 1.5, None])
def test_widths_that_are_no_integers_are_refused(bad: Any) -> None:
    with pytest.raises(TypeError):
        _core.set_num_threads(bad)


def test_results_do_not_depend_on_the_width() -> None:
    encoder = _core.T5Encoder(CONFIG, t5_weights(D=256, d=64, F=512))
    ids = batch(8, 40)
    _core.set_num_threads(1)
    expected = encoder.encode(ids)
    for width in (2, 3, 7, 16):
        _core.set_num_threads(width)
        assert _core.get_num_threads() == width
        # Equal to the last bit as seen; a kernel may cut a product elsewhere.
        assert np.abs(encoder.encode(ids) - expected).max() <= 1e-6 * np.abs(expected).max()


def test_width_comes_from_the_environment_or_the_usable_cpus() -> None:
    script = "from qavit import _core; print(_core.get_num_threads(), _core.build_info()['cpus'])"
    cpus = _core.build_info()["cpus"]
    assert run_python(script, QAVIT_NUM_THREADS="3") == f"3 {cpus}"
    assert run_python(script, QAVIT_NUM_THREADS="") == f"{cpus} {cpus}"


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("QAVIT_NUM_THREADS", ["0", "-2", "many", "2x", "4 ", " 4", "257", "9" * 30], "a whole number from 1 to 256"),
        ("QAVIT_CPU", ["AVX2", "avx512bf16", "auto", "avx2 "], f"{', '.join(LEVELS[:-1])} or {LEVELS[-1]}"),
        ("QAVIT_VERBOSITY", ["loud", "10"], "debug, info, warning, error or critical"),
    ],
)
def test_switches_that_say_nothing_known_are_refused(name: str, values: list[str], expected: str) -> None:
    for value in values:
        script = "try:\n import qavit\nexcept ValueError as error: print(error)"
        said = f"{name} is '{value[:40]}', expected {expected}"
        assert run_python(script, **{name: value}) == said


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_width_respects_the_affinity_mask() -> None:
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from qavit import _core; "
    environment = {"QAVIT_NUM_THREADS": ""}
    assert run_python(script + "print(_core.get_num_threads(), _core.build_info()['cpus'])", **environment) == "1 1"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {}, 0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 0),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        # a unit's own quota, which the group around it leaves open, and the least of several
        ("0::/a.slice/b.service\n", {"a.slice/b.service/cpu.max": "150000 100000\n", "cpu.max": "max 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n", "cpu.max": "400000 100000\n"}, 1),
        # in a container, whose path only the host knows
        ("0::/docker/12\n", {"cpu.max": "200000 100000\n"}, 2),
        # version 1, and both at once
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "20000\n"}, 3),
        ("4:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu.max": "max 100000\n"}, 3),
        ("4:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "50000\n"}, 0),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n"}, 0),
        ("nonsense\n\n:\n::\n", {"cpu.max": "100000 100000\n"}, 0),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 0),
    ],
)
def test_the_quota_of_a_control_group(membership: str, files: dict[str, str], quota: int, tmp_path: Path) -> None:
    testing = pytest.importorskip("qavit._core_testing", reason="a build in place has it")
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert testing.cgroup_quota(str(tmp_path / "membership"), str(tmp_path / "mount")) == quota
    assert testing.cgroup_quota(str(tmp_path / "absent"), str(tmp_path / "mount")) == 0


# ---- many threads, processes and signals ----


def test_eight_threads_at_once_while_the_width_changes() -> None:
    small, large = _core.T5Encoder(CONFIG, t5_weights()), _core.T5Encoder(CONFIG, t5_weights(D=256, d=64, F=512))
    work = [(encoder, batch(1 + n, 5 + 6 * n)) for n in range(4) for encoder in (small, large)]
    expected = [encoder.encode(ids) for encoder, ids in work]
    wrong, done = [], threading.Event()

    def run(n: int) -> None:
        encoder, ids = work[n]
        for _ in range(40):
            if np.abs(encoder.encode(ids) - expected[n]).max() > 1e-6 * np.abs(expected[n]).max():
                wrong.append(n)

    def change_width() -> None:
        width = 1
        while not done.is_set():
            width = width % 8 + 1
            _core.set_num_threads(width)
            time.sleep(0.001)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(8)]
    changer = threading.Thread(target=change_width, daemon=True)
    for thread in [*threads, changer]:
        thread.start()
    for thread in threads:
        thread.join(120)
    done.set()
    changer.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


FORK_SCRIPT = """
import multiprocessing, threading, numpy as np
import test_core_runtime as t
_core = t._core
_core.set_num_threads(4)
encoder = _core.T5Encoder(t.CONFIG, t.t5_weights(D=256, d=64, F=512))
ids = t.batch(6, 40)
expected = encoder.encode(ids)
def child(queue):
    queue.put(float(abs(encoder.encode(ids) - expected).max()))
done = threading.Event()
def keep_busy():
    while not done.is_set():
        encoder.encode(ids)
threads = [threading.Thread(target=keep_busy, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
context = multiprocessing.get_context("fork")
for _ in range(12):
    queue = context.SimpleQueue()
    children = [context.Process(target=child, args=(queue,)) for _ in range(2)]
    for process in children:
        process.start()
    for process in children:
        assert queue.get() < 1e-5
        process.join()
done.set()
for thread in threads:
    thread.join()
assert abs(encoder.encode(ids) - expected).max() < 1e-5
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_forked_in_the_middle_of_other_threads_calls_work() -> None:
    assert run_python(FORK_SCRIPT, PYTHONWARNINGS="ignore") == "ok"


def test_ctrl_c_ends_a_long_call_and_leaves_the_encoder_usable() -> None:
    encoder = _core.T5Encoder(CONFIG, t5_weights(layers=12, D=256, d=64, F=1024))
    small = batch(1, 5)
    expected_small = encoder.encode(small)
    large = batch(96, 512)
    whole = seconds_of(lambda: encoder.encode(large[:2])) * len(large) / 2
    stopped = seconds_until_stopped(lambda: encoder.encode(large), whole / 20)
    assert (encoder.encode(small) == expected_small).all()
    # It stops behind what is running, in one of 12 blocks in each of 48 passes.
    assert stopped < whole / 4


def test_a_signal_handler_that_returns_lets_the_call_go_on() -> None:
    encoder = _core.T5Encoder(CONFIG, t5_weights(layers=12, D=128, d=32, F=256))
    ids, seen = batch(16, 128), []
    expected = encoder.encode(ids)
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        timer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        states = encoder.encode(ids)
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]
    assert (states == expected).all()


def many_layers(count: int) -> dict[str, Any]:
    """A T5 whose layers share their weights, of which packing makes one each."""
    weights = t5_weights(layers=1, D=256, d=64, F=1024)
    first = {name: value for name, value in weights.items() if ".block.0." in name and "bias" not in name}
    return weights | {name.replace(".0.", f".{n}.", 1): value for n in range(1, count) for name, value in first.items()}


def test_signals_are_heard_while_a_model_is_loaded() -> None:
    """A timer of processor time: between two bytecodes its handler runs once, however often the signal came."""
    weights, heard = many_layers(64), []

    def stop(*_: Any) -> None:
        raise InterruptedError

    def load_by(handler: Any) -> None:
        before = signal.signal(signal.SIGPROF, handler)
        signal.setitimer(signal.ITIMER_PROF, 0.002, 0.002)
        try:
            _core.T5Encoder(CONFIG, weights)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    load_by(lambda *_: heard.append(1))
    assert len(heard) >= 3
    with pytest.raises(InterruptedError):
        load_by(stop)


def test_a_second_copy_of_the_module_has_its_own_types() -> None:
    spec = importlib.util.spec_from_file_location("qavit._core", _core.__file__)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    assert second is not _core
    assert second.T5Encoder is not _core.T5Encoder
    ids = batch()
    assert (second.T5Encoder(CONFIG, t5_weights()).encode(ids) == _core.T5Encoder(CONFIG, t5_weights()).encode(ids)).all()


# ---- memory that runs out ----

# Every model of the core, made and called with the n-th allocation failing, for every n.
SWEEP_SCRIPT = """
import importlib.util, json, os, sys
from pathlib import Path
import numpy as np
spec = importlib.util.spec_from_file_location("qavit._core", os.environ["QAVIT_DEBUG_CORE"])
_core = importlib.util.module_from_spec(spec)
sys.modules["qavit._core"] = _core
spec.loader.exec_module(_core)
import test_core_runtime as t
from qavit.checkpoints import open_model
assert t._core is _core and _core.build_info()["debug"]
golden = Path(t.__file__).parent / "data" / "golden"
late = golden / "qavit_official_late"
source = open_model(checkpoint=late / "checkpoint.pth", vision=late / "clip", text=late / "t5")
facts = json.loads((golden / "blip_itm" / "cases.json").read_text())
blip = open_model(checkpoint=golden / "blip_itm" / "checkpoint.pth", tokenizer=golden / "blip_itm" / "vocab.txt",
                  config={"text": facts["med_config"], "vision": facts["vit"]})
rng = np.random.default_rng(0)
images = rng.standard_normal((2, 3, source.vision["image_size"], source.vision["image_size"]), np.float32)
picture = rng.standard_normal((3, blip.vision["image_size"], blip.vision["image_size"]), np.float32)
ids = t.batch(2, 7)
instruct = rng.standard_normal((2, 7, 48), np.float32)
pair = np.array([0, 1], np.int32)

def see(vit):
    out = vit.forward(images, pair, instruct, pair + 3, attention=[(5, "raw")], hidden=[6], outputs=("pooled",))
    return [out["attentions"][5], out["hidden"][6], out["pooled"]]

def match(model):
    image = model.encode_images(picture[None])[0]
    return list(model.gradcam(image, ids.astype(np.int32), np.ones((2, 7), np.uint8), 1)[:2])

cases = {
    "Vit": (lambda precision: _core.Vit(dict(source.vision), source.weights, precision), see),
    "T5Encoder": (lambda precision: _core.T5Encoder(source.text, source.weights, precision),
                  lambda encoder: [encoder.encode(ids)]),
    "BlipItm": (lambda precision: _core.BlipItm({"vision": dict(blip.vision), "text": dict(blip.text)}, blip.weights,
                                                precision), match),
}

import qavit
from test_writers import one_call
from writers import clean_up, files

CALLS = {"blip_caption": (0, 1), "reader": (0, 1), "blip_vqa": (0, 1, 2), "qavit": (0, 1), "clip": (0, 1)}

def whole(kind):
    # Texts, answers chosen, maps by gradients; pictures are kept in the cache while memory runs out.
    def make(precision):
        return qavit.load(**files(kind), precision=precision)
    def call(model):
        model.cache_clear() if kind != "reader" else None
        return [np.frombuffer(str(one_call(kind, model, n)).encode(), np.uint8) for n in CALLS[kind]]
    return make, call

cases.update({kind: whole(kind) for kind in CALLS})
chosen = os.environ["QAVIT_SWEEP"].split()

def failures(what, act):
    # Let the n-th allocation fail for n = 1, 2, ..., until the action no longer gets that far.
    count = 0
    while True:
        _core.fail_allocation(count + 1)
        try:
            result = act()
        except MemoryError as error:
            assert str(error), what
            count += 1
            assert count < 9000, what
        else:
            _core.fail_allocation(0)
            return count, result
        finally:
            _core.fail_allocation(0)

for name in chosen:
    make, call = cases[name]
    for precision in ("float32", "bfloat16") if name[0].isupper() else ("float32", "int8"):
        expected = call(make(precision))
        made, model = failures(name, lambda: make(precision))
        called, result = failures(name, lambda: call(model))
        assert made > 0 and called > 0, (name, made, called)
        assert all((a == b).all() for a, b in zip(expected, result)), name
        print(name, precision, made, called)
clean_up()
"""


@pytest.fixture(scope="module")
def debug_core(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A build of the core whose allocations can be made to fail: the one under test, or one made for this."""
    if _core.build_info()["debug"]:
        return str(_core.__file__)
    if not (ROOT / "setup.py").exists():
        pytest.skip("no sources here to make a debug build from")
    folder = tmp_path_factory.mktemp("debug")
    command = ["setup.py", "-q", "build_ext", "--build-temp", str(folder / "temp"), "--build-lib", str(folder / "lib")]
    build = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "QAVIT_DEBUG": "1"}, capture_output=True, text=True,
        timeout=1500, check=False,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    return str(next((folder / "lib" / "qavit").glob("_core*")))


def test_every_failed_allocation_is_a_memory_error_and_leaves_the_models_usable(debug_core: str) -> None:
    lines = run_python(
        SWEEP_SCRIPT, timeout=1500, QAVIT_DEBUG_CORE=debug_core, QAVIT_SWEEP="Vit T5Encoder BlipItm"
    ).splitlines()
    assert len(lines) == 6


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["blip_caption", "reader", "blip_vqa", "qavit", "clip"])
def test_texts_and_gradients_whose_allocations_fail(debug_core: str, kind: str) -> None:
    """Captions, answers, maps by gradients and int8's packing, pictures kept: the n-th allocation fails, for every n."""
    lines = run_python(
        SWEEP_SCRIPT, timeout=3600, QAVIT_DEBUG_CORE=debug_core, QAVIT_SWEEP=kind, PYTHONWARNINGS="ignore"
    ).splitlines()
    assert len(lines) == 2
    print("\n".join(lines))
