"""What a model keeps of pictures in a folder: the same bits, for other processes, whatever becomes of the files."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from seen_pictures import ASKED, GOLDEN, TEXTS, alike, answering_place, matcher, picture, text_model, told
from small_models import write_qavit

import qavit
from qavit._base.files import _HERE
from qavit.models import _picture_folder
from qavit.models._picture_folder import DEFAULT_LIMIT, FORMAT, NAME, PictureFolder, _packed, _unpacked

ROOT = Path(__file__).parent.parent
PRECISIONS = ("float32", "bfloat16", "int8")

__all__ = ["answering_place"]

pytestmark = pytest.mark.filterwarnings("ignore::qavit.PrecisionWarning", "ignore::qavit.UnknownWordsWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose files were written long ago."""
    return settled(write_qavit(tmp_path_factory.mktemp("disk") / "model", blocks=6))


def settled(folder: Path) -> Path:
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


@pytest.fixture
def opened(name: str, request: pytest.FixtureRequest, place: Path) -> tuple[Callable[..., Any], Any]:
    """What loads a model of a kind, and questions for it."""
    if name == "blip_vqa":
        folder = request.getfixturevalue("answering_place")
        return lambda **options: qavit.load(folder, **options), ASKED
    if name in ("albef_itm", "blip2_itm"):
        return lambda **options: matcher(name, **options), TEXTS
    if name in ("blip_itm", "blip_caption"):
        return lambda **options: text_model(name, **options), TEXTS
    if name == "qavit":
        return lambda **options: qavit.load(place, **options), TEXTS
    arrays = np.load(GOLDEN / name / "golden.npz")
    asked = arrays["text_embeddings"] if name == "methods_siglip" else TEXTS
    return lambda **options: qavit.load(GOLDEN / name, **options), asked


def all_said(model: Any, asked: Any) -> list[Any]:
    """Of two pictures, by every method that needs no more than a picture and texts."""
    found: list[Any] = []
    for seed in (1, 2):
        for method in model.methods:
            if method == "legrad" and model.kind == "siglip":
                continue
            found.append(told(model.heatmaps(picture(seed), asked, method=method)))
        if model.kind == "blip_caption":
            made = model.generate(picture(seed), num_captions=2, do_sample=True, max_length=9, return_logits=True)
            found += [[one.ids for one in made], [one.logits for one in made], model.score(picture(seed), TEXTS)]
        if hasattr(model, "encode_image") and model.kind in ("clip", "siglip") and model.takes_questions:
            found.append(model.encode_image(picture(seed)))
    return found


KINDS = ("qavit", "methods_clip", "methods_siglip", "blip_itm", "albef_itm", "blip2_itm", "blip_vqa", "blip_caption")


@pytest.mark.filterwarnings("ignore::qavit.QavitWarning")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KINDS)
def test_another_model_of_the_same_files_goes_on_with_the_same_bits(
    name: str, precision: Any, tmp_path: Path, opened: tuple[Callable[..., Any], Any]
) -> None:
    load, asked = opened
    wanted = all_said(load(precision=precision, cache=0), asked)
    there = tmp_path / "kept"
    first = load(precision=precision, cache_dir=there)
    alike(all_said(first, asked), wanted)
    assert first.cache_info().disk_hits == 0
    assert first.cache_info().disk_entries == len(files_of(there)) > 2
    for limit in ("256MB", 0):
        again = load(precision=precision, cache_dir=there, cache=limit)
        alike(all_said(again, asked), wanted)
        info = again.cache_info()
        assert info.disk_hits >= 2
        assert info.misses == (2 if name == "qavit" else 0)  # attention of every block, for a question
        assert info.disk_bytes == sum(path.stat().st_size for path in files_of(there)) <= info.disk_limit == DEFAULT_LIMIT


SCRIPT = """
import hashlib, sys, numpy as np, qavit
model = qavit.load(sys.argv[1], cache_dir=sys.argv[2], cache=0)
found = hashlib.sha256()
for seed in range(4):
    image = np.random.default_rng(seed).integers(0, 256, (60, 50, 3), np.uint8)
    found.update(model.heatmaps(image, "a dog").raw.tobytes())
print(found.hexdigest(), model.cache_info().disk_hits)
"""


def test_processes_share_a_folder(place: Path, tmp_path: Path) -> None:
    def start() -> Any:
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(place), str(tmp_path / "kept")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    together = [start() for _ in range(3)]
    said = [process.communicate(timeout=120)[0].split() for process in together]
    last = start().communicate(timeout=120)[0].split()
    assert {digest for digest, _ in [*said, last]} == {last[0]}
    assert last[1] == "4"
    model = qavit.load(place, cache=0)
    without = [model.heatmaps(picture(seed), "a dog").raw.tobytes() for seed in range(4)]
    assert last[0] == hashlib.sha256(b"".join(without)).hexdigest()


# ---- what an entry is of ----


def test_only_the_same_model_build_and_cpu_find_an_entry(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "kept"
    qavit.load(place, cache_dir=there).heatmaps(picture(), TEXTS)

    def hits(folder: Path = place, **options: Any) -> int:
        model = qavit.load(folder, cache_dir=there, **options)
        alike(model.heatmaps(picture(), TEXTS).raw, qavit.load(folder, cache=0, **options).heatmaps(picture(), TEXTS).raw)
        return int(model.cache_info().disk_hits)

    assert hits() == 1
    assert hits(precision="int8") == 0
    assert hits(config={"vision": {"layer_norm_eps": 1e-4}}) == 0
    other = settled(Path(shutil.copytree(place, tmp_path / "other")))
    assert hits(other) == 1  # the same content elsewhere
    weights = next(other.glob("*.safetensors"))
    tensors = load_file(weights)
    name = next(one for one in sorted(tensors) if one.endswith("mlp.fc1.weight"))
    tensors[name].reshape(-1).view(np.uint32)[0] ^= 1
    save_file(tensors, weights)
    assert hits(other) == 0
    with monkeypatch.context() as patch:
        patch.setattr(_picture_folder, "_core_digest", lambda: "another build")
        assert hits() == 0
    with monkeypatch.context() as patch:
        kernels = {**qavit.build_info(), "kernels": {"float32": "of another CPU"}}
        patch.setattr(_picture_folder, "build_info", lambda: kernels)
        assert hits() == 0
    assert hits() == 1


def test_weights_are_read_once_for_all_processes(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = settled(Path(shutil.copytree(place, tmp_path / "other")))
    weights, there = next(other.glob("*.safetensors")), tmp_path / "kept"
    read: list[int] = []

    def read_for_a_map() -> int:
        read.clear()
        model = qavit.load(other, cache_dir=there)
        model.heatmaps(picture(), TEXTS)
        return sum(read)

    def digest(mapped: Any, *others: Any) -> str:
        def counted(data: bytes = b"") -> Any:
            found = hashlib.sha256(data)

            def update(part: Any) -> None:
                read.append(len(part))
                found.update(part)

            return SimpleNamespace(
                update=update, digest=found.digest, hexdigest=found.hexdigest, digest_size=found.digest_size
            )

        with monkeypatch.context() as patch:
            patch.setattr(_picture_folder, "hashlib", SimpleNamespace(sha256=counted))
            return str(whole(mapped, *others))

    whole = _picture_folder._file_digest
    monkeypatch.setattr(_picture_folder, "_file_digest", digest)
    size = weights.stat().st_size
    assert read_for_a_map() >= size
    assert read_for_a_map() == 0
    os.utime(weights, (1.1e9, 1.1e9))
    assert read_for_a_map() >= size  # its time is another, so it may be another
    assert read_for_a_map() == 0
    os.utime(weights)
    assert read_for_a_map() >= size
    assert read_for_a_map() >= size  # written to a moment ago


def test_weights_made_in_memory_are_told_apart(tmp_path: Path) -> None:
    """Of another image size, whose position embeddings are computed when the model is opened."""
    there, loads = tmp_path / "kept", GOLDEN / "methods_clip"
    for size in (48, 64):
        for wanted_hits in (False, True):
            model = qavit.load(loads, image_size=size, cache_dir=there)
            found = model.heatmaps(picture(), TEXTS, method="gae").raw
            alike(found, qavit.load(loads, image_size=size, cache=0).heatmaps(picture(), TEXTS, method="gae").raw)
            assert (model.cache_info().disk_hits > 0) == wanted_hits
    ways = {
        way: qavit.load(loads, image_size=64, cache_dir=there, config={"position_resize": way})
        for way in ("bilinear", "bicubic_antialias")
    }
    for model in ways.values():
        model.heatmaps(picture(), TEXTS, method="gae")
        assert model.cache_info().disk_hits == 0


# ---- files that are not what they were ----


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "emptied": lambda path: cut(path, 0),
    "cut in the format": lambda path: cut(path, 7),
    "cut in the digest": lambda path: cut(path, 30),
    "cut in the header": lambda path: cut(path, 70),
    "cut at the end": lambda path: cut(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "another format": lambda path: flip(path, 14),
    "another digest": lambda path: flip(path, 20),
    "another size": lambda path: flip(path, 55),
    "another header": lambda path: flip(path, 70),
    "another last byte": lambda path: flip(path, -1),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_passed_over_and_written_anew(how: str, place: Path, tmp_path: Path) -> None:
    there = tmp_path / "kept"
    wanted = qavit.load(place, cache_dir=there).heatmaps(picture(), TEXTS).raw
    before = {path: path.read_bytes() for path in files_of(there)}
    assert len(before) == 2  # the picture's states, and the digest of the weights
    for path in before:
        DAMAGE[how](path)
    model = qavit.load(place, cache_dir=there)
    alike(model.heatmaps(picture(), TEXTS).raw, wanted)
    assert model.cache_info()[:2] == (0, 1)
    assert {path: path.read_bytes() for path in files_of(there)} == before
    again = qavit.load(place, cache_dir=there)
    alike(again.heatmaps(picture(), TEXTS).raw, wanted)
    assert again.cache_info().disk_hits == 1


def test_files_that_are_none(place: Path, tmp_path: Path) -> None:
    """Folders, pipes, links and another entry under an entry's name."""
    there = tmp_path / "kept"
    first = qavit.load(place, cache_dir=there)
    wanted = [first.heatmaps(picture(seed), TEXTS).raw for seed in range(2)]
    files = files_of(there)
    data = [path.read_bytes() for path in files]
    for number, path in enumerate(files):
        path.write_bytes(data[number - 1])
    model = qavit.load(place, cache_dir=there)
    alike([model.heatmaps(picture(seed), TEXTS).raw for seed in range(2)], wanted)
    assert [path.read_bytes() for path in files] == data
    for path in files:
        path.unlink()
        path.mkdir()
    with pytest.warns(qavit.PictureCacheWarning, match=r"cannot be written"):
        alike(qavit.load(place, cache_dir=there).heatmaps(picture(), TEXTS).raw, wanted[0])
    if hasattr(os, "mkfifo"):
        for path in files:
            path.rmdir()
            os.mkfifo(path)
        alike(qavit.load(place, cache_dir=there).heatmaps(picture(), TEXTS).raw, wanted[0])


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[", b"[]", b"{}", b'{"name": "n"}', b'{"name": "n", "arrays": 3}', b'{"name": "n", "arrays": [["<f4", [9]]]}',
        b'{"name": "n", "arrays": [["O", [1]]], "tree": 0}', b'{"name": "n", "arrays": [["<f4", [-1]]], "tree": 0}',
        b'{"name": "n", "arrays": [], "tree": 0}', b'{"name": "n", "arrays": [], "tree": null}', b"[" * 5000,
        b'{"name": "n", "arrays": [["<f4", [1099511627776, 1099511627776]]], "tree": 0}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_a_whole_file_that_says_nothing_of_use(header: bytes) -> None:
    body = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(body).digest()
    assert _unpacked(np.frombuffer(FORMAT + digest + body, np.uint8), "n") is None


def test_what_is_packed_comes_back() -> None:
    value = {
        "attentions": {3: np.zeros((2, 0, 5), np.float32), 7: np.array(3.0)},
        "hidden": {}, "both": (np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::-1], np.array([True, False])),
    }  # fmt: skip
    data = np.frombuffer(b"".join(bytes(part) for part in _packed("name", value)), np.uint8)
    found = _unpacked(data, "name")
    alike(found, value)
    assert found["both"][0].flags.aligned
    assert not found["both"][0].flags.writeable
    assert _unpacked(data, "another") is None


# ---- bounds ----


def entry_bytes(place: Path, tmp_path: Path) -> int:
    there = tmp_path / "one"
    qavit.load(place, cache_dir=there).heatmaps(picture(99), TEXTS)
    return max(path.stat().st_size for path in files_of(there))


def test_no_more_is_kept_than_the_limit(place: Path, tmp_path: Path) -> None:
    size, there = entry_bytes(place, tmp_path), tmp_path / "kept"
    there.mkdir()
    (there / "somebody's").write_bytes(bytes(10 * size))
    model = qavit.load(place, cache_dir=there, cache_dir_limit=6 * size, cache=0)
    for seed in range(20):
        model.heatmaps(picture(0), TEXTS)  # used again and again
        model.heatmaps(picture(seed), TEXTS)
        info = model.cache_info()
        assert info.disk_bytes <= info.disk_limit == 6 * size
    assert info.disk_entries >= 5
    before = model.cache_info()
    model.heatmaps(picture(0), TEXTS)
    model.heatmaps(picture(19), TEXTS)
    model.heatmaps(picture(5), TEXTS)  # long gone
    after = model.cache_info()
    assert (after.disk_hits - before.disk_hits, after.misses - before.misses) == (2, 1)
    assert (there / "somebody's").stat().st_size == 10 * size
    # A folder that another limit has filled, or another process.
    small = qavit.load(place, cache_dir=there, cache_dir_limit=4 * size)
    small.heatmaps(picture(50), TEXTS)
    assert small.cache_info().disk_bytes <= 4 * size


def test_an_entry_too_large_is_not_written(place: Path, tmp_path: Path) -> None:
    size, there = entry_bytes(place, tmp_path), tmp_path / "kept"
    model = qavit.load(place, cache_dir=there, cache_dir_limit=4 * size - 4)
    model.heatmaps(picture(), TEXTS)
    assert model.cache_info().disk_entries == 1  # the digest of the weights


@pytest.mark.parametrize("limit", [0, "0MB"])
def test_a_limit_of_nothing_keeps_nothing(limit: Any, place: Path, tmp_path: Path) -> None:
    model = qavit.load(place, cache_dir=tmp_path / "kept", cache_dir_limit=limit)
    model.heatmaps(picture(), TEXTS)
    assert list((tmp_path / "kept").iterdir()) == []
    assert model.cache_info()[5:] == (0, 0, 0, 0)


def test_what_processes_left_that_were_killed_is_removed(place: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    there = tmp_path / "kept"
    there.mkdir()
    left = there / f".{'0' * 16}-{'0' * 32}.kept.{_HERE}-{process.pid}-00000000.part"
    left.write_bytes(b"half")
    qavit.load(place, cache_dir=there).heatmaps(picture(), TEXTS)
    assert not left.exists()


def test_clearing_removes_what_the_model_wrote(place: Path, tmp_path: Path) -> None:
    there = tmp_path / "kept"
    one, other = (qavit.load(GOLDEN / "methods_clip", cache_dir=there, precision=one) for one in ("int8", "float32"))
    for model in (one, other):
        model.heatmaps(picture(), TEXTS, method="gae")
    count = len(files_of(there))
    one.cache_clear()
    assert len(files_of(there)) == count
    one.heatmaps(picture(), TEXTS, method="gae")
    assert one.cache_info().disk_hits > 0
    one.cache_clear(disk=True)
    info = one.cache_info()
    assert info[:4] == (0, 0, 0, 0)
    assert info.disk_hits == 0
    assert 0 < info.disk_entries < count
    one.heatmaps(picture(), TEXTS, method="gae")
    assert one.cache_info().misses == 1
    assert len(files_of(there)) == count
    again = qavit.load(GOLDEN / "methods_clip", cache_dir=there)
    again.heatmaps(picture(), TEXTS, method="gae")
    assert again.cache_info().disk_hits > 0
    shutil.rmtree(there)
    one.cache_clear(disk=True)
    one.heatmaps(picture(), TEXTS, method="gae")
    assert len(files_of(there)) > 0


# ---- folders that cannot be written ----


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
def test_a_folder_where_nobody_can_write(place: Path) -> None:
    model, without = qavit.load(place, cache_dir="/proc/qavit"), qavit.load(place, cache=0)
    wanted = [without.heatmaps(picture(seed), TEXTS).raw for seed in range(3)]
    with pytest.warns(qavit.PictureCacheWarning, match="cache_dir: /proc/qavit cannot be written") as said:
        alike([model.heatmaps(picture(seed), TEXTS).raw for seed in range(3)], wanted)
    assert len([one for one in said if one.category is qavit.PictureCacheWarning]) == 1
    assert Path(said[0].filename).name == Path(__file__).name
    assert model.cache_info()[5:] == (0, 0, 0, DEFAULT_LIMIT)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more(number: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "kept"
    wanted = [qavit.load(place, cache=0).heatmaps(picture(seed), TEXTS).raw for seed in range(3)]
    qavit.load(place, cache_dir=there).heatmaps(picture(0), TEXTS)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    model = qavit.load(place, cache_dir=there)
    with monkeypatch.context() as patch:
        patch.setattr(_picture_folder, "whole_file", refuse)
        patch.setattr(os, "utime", refuse)
        with pytest.warns(qavit.PictureCacheWarning, match="so nothing more is kept there") as said:
            alike([model.heatmaps(picture(seed), TEXTS).raw for seed in range(3)], wanted)
        assert len(said) == 1
    assert model.cache_info().disk_hits == 1  # what lies there is read on
    assert len(files_of(there)) == 2
    model.cache_clear(disk=True)
    model.heatmaps(picture(0), TEXTS)
    assert len(files_of(there)) == 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cache_dir": 3}, TypeError, "cache_dir: expected the path of a folder, got int"),
        ({"cache_dir": True}, TypeError, "cache_dir: expected the path of a folder, got bool"),
        ({"cache_dir": ""}, ValueError, "cache_dir: got '', expected the path of a folder"),
        ({"cache_dir": __file__}, NotADirectoryError, "cache_dir: .* is a file, expected a folder"),
        ({"cache_dir_limit": -1}, ValueError, "cache_dir_limit: got -1"),
        ({"cache_dir_limit": "much"}, ValueError, "cache_dir_limit: got 'much'"),
        ({"cache_dir_limit": None}, TypeError, "cache_dir_limit: "),
    ],
)
def test_what_is_no_folder_is_refused(options: dict[str, Any], error: type[Exception], said: str, place: Path) -> None:
    with pytest.raises(error, match=said):
        qavit.load(place, **options)


# ---- threads, processes, data sets ----


def test_the_folder_travels_with_the_model(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = qavit.load(place, cache_dir="kept", cache_dir_limit="1MB")
    model.heatmaps(picture(), TEXTS)
    monkeypatch.chdir("/")
    other = pickle.loads(pickle.dumps(model))
    other.heatmaps(picture(), TEXTS)
    info = other.cache_info()
    assert (info.disk_hits, info.disk_limit) == (1, 1_000_000)


def test_many_threads_share_one_folder(place: Path, tmp_path: Path) -> None:
    """While entries push each other out."""
    size, there = entry_bytes(place, tmp_path), tmp_path / "kept"
    without = qavit.load(place, cache=0)
    models = [qavit.load(place, cache=0, cache_dir=there, cache_dir_limit=5 * size) for _ in range(2)]
    wanted = [without.heatmaps(picture(seed), TEXTS[0]).raw for seed in range(8)]
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        try:
            for _ in range(25):
                seed = int(random.integers(8))
                alike(models[number % 2].heatmaps(picture(seed), TEXTS[0]).raw, wanted[seed])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    models[0].heatmaps(picture(8), TEXTS[0])
    assert models[0].cache_info().disk_entries <= 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_the_folder(place: Path, tmp_path: Path) -> None:
    model = qavit.load(place, cache_dir=tmp_path / "kept", cache=0)
    wanted = model.heatmaps(picture(), TEXTS).raw
    folder: Any = model._picture_cache.folder
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def child() -> None:
        raw = [model.heatmaps(picture(seed), TEXTS).raw.tobytes() for seed in (0, 5)]
        theirs.send((raw[0], model.cache_info().disk_hits))

    with folder._lock, folder._naming:  # as if another thread were in the middle of something
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    assert ours.poll(60)
    assert ours.recv() == (wanted.tobytes(), 1)
    process.join()
    assert process.exitcode == 0


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("quick_disk")
def test_a_data_sets_rows_are_the_same_with_and_without(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from data_sets import make_rows, same_rows, write_lines, write_model, write_pictures

    import qavit.data

    names = write_pictures(tmp_path, 6)
    questions = write_lines(tmp_path / "q.jsonl", make_rows(names, 3, stride=2))
    model, kept = write_model(tmp_path / "model"), tmp_path / "kept"
    on_disk = {"cache_dir": str(kept)}
    ways: dict[str, dict[str, Any]] = {"without": {"cache": 0}, "memory": {}, "disk": on_disk, "again": on_disk}
    for name, options in ways.items():
        qavit.data.run(questions, tmp_path / name, model=model, part_rows=3, window=30, **options)
        assert same_rows(tmp_path / "without", tmp_path / name) == 18
    assert len(files_of(kept)) >= 6
    # What is kept is no part of a run's settings: one goes on with another's.
    summary = qavit.data.run(questions, tmp_path / "without", model=model, part_rows=3, window=30, cache_dir=str(kept))
    assert summary.before == 18


def test_warnings_are_not_raised_where_all_is_well(place: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", qavit.PictureCacheWarning)
        for _ in range(2):
            qavit.load(place, cache_dir=tmp_path / "new" / "folder").heatmaps(picture(), TEXTS)
    assert isinstance(PictureFolder(tmp_path, 5, lambda _: "").largest, int)
