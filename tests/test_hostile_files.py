"""What fuzzing found in readers of tables, archives, results and settings; `make fuzz` looks for more."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import write_lines, write_model, write_pictures

import qavit
from qavit import metrics
from qavit.checkpoints import open_model
from qavit.checkpoints._pictures import folder_preprocessing
from qavit.checkpoints.towers import halves
from qavit.cli._score import score_of
from qavit.data import _tables as tables
from qavit.data import evaluate, open_questions, read_maps
from qavit.data._output import PartFolder
from qavit.data._pictures import Pictures
from qavit.data._targets import read_targets
from qavit.models._picture_folder import FORMAT, _unpacked
from qavit.text import Tokenizer

GOLDEN = Path(__file__).parent / "data" / "golden"
LINE = b'{"image": "a.png", "question": "where?"}\n'
MB = 1 << 20


def zip_of(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as packed:
        packed.writestr(zipfile.ZipInfo(name), content, compression)
    return bytearray(buffer.getvalue())


def stated(archive: bytearray, at: int, value: int) -> bytes:
    """The archive with another number in its directory: at 24 a member's size, at 42 where it begins."""
    place = archive.rindex(b"PK\x01\x02") + at
    archive[place : place + 4] = struct.pack("<I", value)
    return bytes(archive)


# ---- archives ----


@pytest.mark.parametrize("where", [0xFFFFFF00, 7])
def test_a_member_that_begins_nowhere(tmp_path: Path, where: int) -> None:
    (tmp_path / "q.zip").write_bytes(stated(zip_of("q.jsonl", LINE), 42, where))
    with pytest.raises(ValueError, match=r"q\.zip'"):
        open_questions(tmp_path / "q.zip")
    (tmp_path / "p.zip").write_bytes(stated(zip_of("a.png", b"x"), 42, where))
    source = Pictures(tmp_path / "p.zip", "").find("a.png")
    with pytest.raises(ValueError, match=r"a\.png in .*p\.zip"):
        source.read()
    (tmp_path / "r.npz").write_bytes(stated(zip_of("qavit_heatmaps.npy", b"x"), 42, where))
    with pytest.raises(ValueError, match=r"r\.npz: not a file of heatmaps"):
        qavit.HeatmapResult.load(tmp_path / "r.npz")


def test_a_member_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(zip_of("", b"x"))
    with pytest.raises(ValueError, match="has no 'a'"):
        Pictures(tmp_path / "p.zip", "").find("a")
    (tmp_path / "q.zip").write_bytes(zip_of("", b"x"))
    with pytest.raises(ValueError, match=r"q\.zip' is none of"):
        open_questions(tmp_path / "q.zip")


def test_a_zip_archive_that_says_it_spans_disks(tmp_path: Path) -> None:
    """At which the standard library's test whether it is a zip archive raises."""
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("a.png", b"")
    data = (tmp_path / "p.zip").read_bytes()
    end = data.index(b"PK\5\6")
    (tmp_path / "p.zip").write_bytes(data[:end] + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 2) + data[end:])
    with pytest.raises(ValueError, match=r"p\.zip' is not a whole zip archive: .*disks"):
        Pictures(tmp_path / "p.zip", "").find("a.png")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_no_more_is_unpacked_than_a_member_states(tmp_path: Path, compression: int) -> None:
    content = stated(zip_of("a.png", bytes(64 * MB), compression), 24, 100)
    (tmp_path / "p.zip").write_bytes(content)
    (tmp_path / "r.npz").write_bytes(stated(zip_of("qavit_heatmaps.npy", bytes(64 * MB), compression), 24, 100))
    source = Pictures(tmp_path / "p.zip", "").find("a.png")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.png in"):
            source.read()
        with pytest.raises(ValueError, match=r"r\.npz"):
            qavit.HeatmapResult.load(tmp_path / "r.npz")
        assert tracemalloc.get_traced_memory()[1] < 16 * MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.txt", "q.json"])
def test_a_packed_row_is_bounded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MIN_INFLATED", 1 << 18)
    head = {"q.csv": b"image,question\n", "q.json": b"[", "q.txt": b""}.get(name, b"")
    (tmp_path / f"{name}.zip").write_bytes(zip_of(name, head + b'"' + b"a" * (64 * MB)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            list(open_questions(tmp_path / f"{name}.zip", image_name="a.png")[0])
        assert tracemalloc.get_traced_memory()[1] < 32 * MB
    finally:
        tracemalloc.stop()


def tar_of(*members: tuple[str, bytes]) -> bytearray:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        for name, content in members:
            one = tarfile.TarInfo(name)
            one.size = len(content)
            packed.addfile(one, io.BytesIO(content))
    return bytearray(buffer.getvalue())


def with_size(archive: bytearray, size: bytes, kind: bytes = b"0", at: int = 1024) -> bytes:
    """The archive whose header at a place states another size, and kind, under a right checksum."""
    archive[at + 124 : at + 136], archive[at + 156 : at + 157], archive[at + 148 : at + 156] = size, kind, b" " * 8
    archive[at + 148 : at + 156] = b"%06o\0 " % sum(archive[at : at + 512])
    return bytes(archive)


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        (b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big"), b"0"),  # in base 256: back to itself, without end
        (b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big"), b"0"),  # to where no header is
        (b"77777777777\0", b"0"),  # 8 GB, of which nothing is there
        (b"77777777777\0", b"x"),  # the same of a header's text, which would be read at once
        (b"77777777777\0", b"L"),
        (b"\xff" * 12, b"x"),
    ],
)
def test_sizes_of_tar_members(tmp_path: Path, size: bytes, kind: bytes) -> None:
    damaged = with_size(tar_of(("a/0.png", b"x" * 512), ("a/0.txt", b"where?")), size, kind)
    (tmp_path / "x.tar").write_bytes(damaged)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x\.tar"):
            list(open_questions(tmp_path / "x.tar")[0])
        with pytest.raises(ValueError, match=r"x\.tar"):
            Pictures(tmp_path / "x.tar", "").find("a/0.png")
        assert tracemalloc.get_traced_memory()[1] < 32 * MB
    finally:
        tracemalloc.stop()


def test_a_tar_file_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of(("0.png", b"x" * 2000), ("1.png", b"x" * 2000))[:2000])
    with pytest.raises(ValueError, match=r"images: .*x\.tar' is not a whole tar file"):
        Pictures(tmp_path / "x.tar", "").find("0.png")


@pytest.mark.parametrize("damage", ["checksum", "cut"])
def test_a_damaged_header_is_not_a_tar_file_s_end(tmp_path: Path, damage: str) -> None:
    members = (("a.png", b"x" * 10), ("a.txt", b"where?"), ("b.png", b"x" * 10), ("b.txt", b"who?"))
    whole = tar_of(*members)
    (tmp_path / "x.tar").write_bytes(whole)
    assert [item.question for item in open_questions(tmp_path / "x.tar")[0]] == ["where?", "who?"]
    if damage == "checksum":
        whole[2 * 1024 + 148] ^= 1
    else:
        del whole[2 * 1024 + 300 :]
    (tmp_path / "x.tar").write_bytes(whole)
    with pytest.raises(ValueError, match=r"questions: .*x\.tar'.*the header at byte 2048 is damaged"):
        list(open_questions(tmp_path / "x.tar")[0])
    with pytest.raises(ValueError, match=r"images: .*x\.tar'.*the header at byte 2048 is damaged"):
        Pictures(tmp_path / "x.tar", "").find("0.png")


def test_a_quoted_field_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'line {number} of ""many""' for number in range(900)]
    (tmp_path / "q.csv").write_text('image,question\na.png,"' + "\n".join(lines) + '"\nb.png,who?\n')
    calls = []
    first = tables._first_record
    monkeypatch.setattr(tables, "_first_record", lambda *given: (calls.append(1), first(*given))[1])
    items = list(open_questions(tmp_path / "q.csv")[0])
    assert [item.question for item in items] == ["\n".join(lines).replace('""', '"'), "who?"]
    assert len(calls) == 1


def test_half_letters_in_names_of_questions(tmp_path: Path) -> None:
    questions = {"a": {"question": "x", "imageId": "1"}, "\ud800": {"question": 7}, "\ud800b": 8}
    (tmp_path / "q.json").write_text(json.dumps(questions))
    items = list(open_questions(tmp_path / "q.json")[0])
    assert [item.problem is None for item in items] == [True, False, False]
    for item in items:
        (item.id + (item.problem or "")).encode()


# ---- boxes ----


@pytest.mark.parametrize(
    "shape",
    [
        {"box": "[" * 3000 + "]" * 3000},
        {"box": [0, 0, 10**400, 10]},
        {"box": "1 2 3 1e308"},
        {"bbox": [0, 0, 1e200, 1e200]},
        {"segmentation": {"size": [0, 0], "counts": []}},
        {"segmentation": {"size": [1 << 29, 1 << 29], "counts": [1 << 58]}},
        {"segmentation": {"size": [2.5, 4], "counts": [10]}},
        {"segmentation": {"size": [-2, -5], "counts": [10]}},
        {"segmentation": {"size": [2, 5], "counts": [2.5, 7.5]}},
        {"segmentation": {"size": [2, 5]}},
        {"segmentation": [[0, 0, 10**400, 5, 5, 5]]},
        {"segmentation": [[0, 0, float("nan"), 5, 5, 5]]},
    ],
)
def test_boxes_that_are_none(tmp_path: Path, shape: dict[str, Any]) -> None:
    rows = [{"image": "a.png", "question": "cup", **shape}, {"image": "a.png", "question": "dog", "box": [1, 2, 3, 4]}]
    bad, good = read_targets(write_lines(tmp_path / "boxes.jsonl", rows))
    assert bad.problem is not None
    assert next(iter(shape)) in bad.problem
    assert good.problem is None
    assert good.mask(8, 8, (8, 8)).sum() == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_table_that_names_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")  # to open it would wait for a writer for ever
    row = {"image": "a.png", "question": "cup", "box": [1, 2, 12, 14]}
    (item,) = open_questions(write_lines(tmp_path / "q.jsonl", [row]))[0]
    assert item.image is not None
    with pytest.raises(ValueError, match=r"a\.png' is a device or a pipe"):
        item.image.read()
    model = qavit.load(write_model(tmp_path / "model"))
    ((_, _, said),) = evaluate(tmp_path / "q.jsonl", model=model).errors
    assert "is a device or a pipe" in said
    write_pictures(tmp_path, 1)
    masked = write_lines(tmp_path / "masks.jsonl", [{"image": "0.png", "question": "cup", "mask": "a.png"}])
    ((_, _, said),) = evaluate(masked, model=model).errors
    assert "is a device or a pipe" in said


def test_an_evaluation_goes_on_with_whatever_stands_in_its_rows(tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 2)
    texts = ["the\u2028cup", "the\x85dog"]
    rows = [{"id": f"{n}\u2029", "image": name, "text": text, "box": [1, 2, 12, 14], "label": "\ud800"}
            for n, (name, text) in enumerate(zip(names, texts))]  # fmt: skip
    model, out = qavit.load(write_model(tmp_path / "model")), tmp_path / "out"
    first = evaluate(write_lines(tmp_path / "boxes.jsonl", rows), out, model=model)
    assert first.rows == 2
    kept = (out / "rows.jsonl").read_bytes()
    assert json.loads(kept.splitlines()[0])["label"] == "\ud800"
    again = evaluate(tmp_path / "boxes.jsonl", out, model=model)
    assert (out / "rows.jsonl").read_bytes() == kept  # nothing was asked again
    assert again.to_dict() == first.to_dict()
    row = json.loads(kept.splitlines()[0])
    changes = ({"numbers": [10**400] * 11}, {"numbers": [1, 2]}, {"id": "9", "numbers": {}})
    for broken in (b"\xff\xfe", b"[" * 5000, b'{"id": 1}', b"7", *(json.dumps({**row, **one}).encode() for one in changes)):
        (out / "rows.jsonl").write_bytes(broken + b"\n" + kept + broken)
        assert evaluate(tmp_path / "boxes.jsonl", out, model=model).to_dict() == first.to_dict()
    (out / "settings.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="evaluation of something else"):
        evaluate(tmp_path / "boxes.jsonl", out, model=model)


# ---- runs and results ----


MANIFEST = {"format": "qavit-maps", "version": 1, "grid": [3, 3], "block": 2, "method": "class", "questions": [["q", "x"]]}


@pytest.mark.parametrize(
    "change",
    [
        {"grid": None}, {"grid": [3]}, {"grid": 3}, {"grid": ["3", "3"]}, {"grid": [0, 3]}, {"grid": [3, 1 << 70]},
        {"block": None}, {"block": [1, None]}, {"block": "2"}, {"method": None}, {"questions": None}, {"questions": 2.5},
        {"keep": 7}, {"keep": [[]]}, {"about": []}, {"version": "[" * 99},
    ],
)  # fmt: skip
def test_manifests_that_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "_manifest.json").write_text(json.dumps(MANIFEST))
    assert read_maps(tmp_path).complete is False
    (tmp_path / "_manifest.json").write_text(json.dumps({**MANIFEST, **change}))
    with pytest.raises(ValueError, match=rf"_manifest\.json: .*{next(iter(change))}"):
        read_maps(tmp_path)


@pytest.mark.parametrize("note", [b"[]", b'{"parts": 1}', b'{"parts": "1", "rows": 2}', b'{"parts": -1, "rows": 2}', b"{"])
def test_notes_of_inputs_that_are_none(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "_manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "_input-00000.json").write_bytes(note)
    with pytest.raises(ValueError, match=r"_input-00000\.json"):
        _ = read_maps(tmp_path).complete
    with pytest.raises(ValueError, match=r"_input-00000\.json"):
        PartFolder(tmp_path).finished_input(0)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 9000 + b"1,), }",  # NumPy's reader: MemoryError
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"(" * 9000,
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1L,\x14), }",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }",
    ],
)
def test_headers_of_arrays(tmp_path: Path, header: bytes) -> None:
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4)
    (tmp_path / "x.npz").write_bytes(zip_of("qavit_heatmaps.npy", member))
    with pytest.raises(ValueError, match=r"x\.npz: not a file of heatmaps"):
        qavit.HeatmapResult.load(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["i4,(,", "i4,[[[", "f9", "O", "<f4,<f4"])
def test_kept_pictures_of_no_kind(kind: str) -> None:
    header = json.dumps({"name": "x", "tree": 0, "arrays": [[kind, [1]]]}).encode()
    body = len(header).to_bytes(8, "little") + header + bytes(200)
    data = np.frombuffer(FORMAT + hashlib.sha256(body).digest() + body, np.uint8)
    assert _unpacked(data, "x") is None


# ---- results and annotations ----


def test_annotations_of_no_kind(tmp_path: Path) -> None:
    results = [{"question_id": 1, "answer": "yes"}]
    for answers in (["yes"] * 10, [7] * 10, [None] * 10):
        with pytest.raises(ValueError, match="question_id 1: expected a text as 'answer'"):
            metrics.vqa_accuracy(results, [{"question_id": 1, "answers": answers}])


@pytest.mark.parametrize("content", ['"/etc/hostname"', '"' + "x" * 5000 + '"', "7", "null", "true"])
def test_what_a_file_says_is_never_a_path(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    (tmp_path / "results.json").write_text(json.dumps([{"question_id": 1, "answer": "yes"}]))
    for call in (
        lambda: score_of(tmp_path / "results.json", tmp_path / "x.json"),
        lambda: metrics.gqa_accuracy(tmp_path / "x.json", {"1": {"answer": "yes"}}),
        lambda: metrics.vqa_accuracy(tmp_path / "results.json", tmp_path / "x.json"),
    ):
        with pytest.raises(ValueError, match=r"x\.json: expected a list of rows, or an object"):
            call()


# ---- settings ----


def test_numbers_of_hundreds_of_digits(tmp_path: Path) -> None:
    for key in ("image_mean", "image_std"):
        for value in (10**400, [10**400, 0, 0]):
            (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: value}))
            with pytest.raises(ValueError, match=r"preprocessor_config\.json: .*expected three numbers"):
                folder_preprocessing(tmp_path, "clip", 224, None, {})


def test_vision_config_of_no_kind(tmp_path: Path) -> None:
    for value in (1, 0.5, "x", ["ab"], [1]):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": value, "text_config": {}}))
        with pytest.raises(ValueError, match=r"config\.json: vision_config is .*, expected an object"):
            halves._settings(tmp_path, "vision")


@pytest.mark.parametrize(
    "said",
    [
        {"added_tokens_decoder": {"3": {"content": "\ud800"}}}, {"\ud800": 1}, {"pad_token": "\udfff"},
        {"never_split": ["\ud800"]}, {"additional_special_tokens": [{"content": "a\ud800"}]},
    ],
)  # fmt: skip
def test_half_letters_among_a_tokenizers_settings(tmp_path: Path, said: dict[str, Any]) -> None:
    (tmp_path / "vocab.txt").write_bytes((GOLDEN / "blip_itm" / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: .*half a letter"):
        Tokenizer.from_folder(tmp_path)


def test_ways_of_resizing_positions_of_no_kind() -> None:
    for value in (["bicubic"], {"a": 1}, 7, "sideways"):
        with pytest.raises((ValueError, TypeError), match="position_resize"):
            open_model("demo", config={"position_resize": value}, image_size=96)


def test_open_clip_settings_of_no_kind(tmp_path: Path) -> None:
    vision = {"layers": 3, "width": 64, "head_width": 16, "image_size": [[], []]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": vision, "embed_dim": 8}}))
    halves._settings(tmp_path, "vision")  # that it is no size is told beside the weights
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"resize_mode": []}}))
    assert folder_preprocessing(tmp_path, "clip", 224, None, {})["resize"] == "shortest_edge"  # as good as nothing
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"resize_mode": ["squash"]}}))
    with pytest.raises(ValueError, match="resize_mode is"):
        folder_preprocessing(tmp_path, "clip", 224, None, {})


@pytest.mark.parametrize("value", [[], "128", float("inf"), -1, True])
def test_distances_of_no_kind(tmp_path: Path, value: Any) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text"]["relative_attention_max_distance"] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model: text: relative_attention_max_distance .*expected a whole number"):
        open_model(folder)


def test_integration_point_of_no_kind(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for value in ([], ["late"], "nowhere", -0.0, {}):
        config["vision"]["integration_point"] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"model: vision: integration_point"):
            open_model(folder)


def test_a_tokenizer_that_the_library_refuses_is_named(tmp_path: Path) -> None:
    names = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "\u0120"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match=r"merges\.txt"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}')
    with pytest.raises(ValueError, match=rf"{tmp_path.name}.*tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_annotations_that_are_one_text_are_not_opened(tmp_path: Path) -> None:
    from qavit.metrics._vqa import table_of

    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "told.json").write_text(json.dumps({"annotations": str(tmp_path / "other.json")}))
    with pytest.raises(ValueError, match="annotations: expected a list of rows, got str"):
        table_of(tmp_path / "told.json", "annotations")
