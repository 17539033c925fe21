"""Converted folders: what was read comes back, whole folders or none, and what `qavit info` says."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dying
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qavit.checkpoints import _convert as convert_module
from qavit.checkpoints import convert, describe, open_model
from qavit.checkpoints._describe import description_text
from qavit.checkpoints._weights import bfloat16_bits, cast, float_array, from_array

GOLDEN = Path(__file__).parent / "data" / "golden"
LATE = GOLDEN / "qavit_official_late"


@pytest.fixture(scope="module")
def late():
    return open_model(checkpoint=LATE / "checkpoint.pth", vision=LATE / "clip", text=LATE / "t5")


@pytest.fixture(scope="module")
def blip():
    folder = GOLDEN / "blip_itm"
    cases = json.loads((folder / "cases.json").read_text())
    config = {"text": cases["med_config"], "vision": cases["vit"]}
    return open_model(checkpoint=folder / "checkpoint.pth", tokenizer=folder / "vocab.txt", config=config)


@pytest.mark.parametrize("which", ["late", "blip"])
def test_a_converted_folder_is_the_same_model_mapped(which, request, tmp_path):
    source = request.getfixturevalue(which)
    folder = convert(source, tmp_path / "model", panels=0)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    again = open_model(folder)
    for field in ("architecture", "vision", "text", "tokenizer", "preprocessing", "questions", "answers", "defaults"):
        assert getattr(again, field) == getattr(source, field), field
    assert set(again.weights) == set(source.weights)
    assert set(again.decoder) == set(source.decoder)
    expected = source.every_weight()
    for name, weight in again.every_weight().items():
        assert isinstance(weight[0], mmap.mmap)
        np.testing.assert_array_equal(float_array(weight), float_array(expected[name]))
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(expected)


#: What a folder that was converted with LAVIS's names calls the vision half's tensors.
FORMER = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding.weight", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision_model.post_layernorm.", "visual_encoder.norm."),
    ("vision_model.encoder.layers.", "visual_encoder.blocks."),
    (".self_attn.out_proj.", ".attn.proj."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
)


@pytest.mark.parametrize("columns", [0, 16, 64])
def test_folders_with_former_names_are_the_same_model(blip, columns, tmp_path):
    """q, k and v in one matrix, in panels where the thirds are, tables with a size of 1 in front."""
    folder = convert(blip, tmp_path / "model", panels=columns)
    former = {}
    for name, array in load_file(folder / "model.safetensors").items():
        for ours, theirs in FORMER:
            name = name.replace(ours, theirs) if name.startswith("vis") else name
        stem, part, kind = name.partition(".self_attn.")
        if part:
            former.setdefault(f"{stem}.attn.qkv.{kind.partition('.')[2]}", []).append((kind[0], array))
        elif name == "visual_encoder.cls_token":
            former[name] = array[None, None]
        else:
            former[name] = array[None] if name == "visual_encoder.pos_embed" else array
    for name, value in former.items():
        if isinstance(value, list):
            former[name] = np.concatenate([array for _, array in sorted(value, key=lambda pair: "qkv".index(pair[0]))])
    assert any(name.endswith("attn.qkv.weight" + (".panels" if columns == 16 else "")) for name in former)
    save_file(former, folder / "model.safetensors")
    again = open_model(folder)
    assert set(again.weights) == set(blip.weights)
    for name, weight in again.weights.items():
        assert isinstance(weight[0], mmap.mmap), name
        np.testing.assert_array_equal(float_array(weight), float_array(blip.weights[name]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(late, dtype, tmp_path):
    convert(late, tmp_path / "model", dtype, panels=0)
    again = open_model(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        for name, weight in again.weights.items():
            expected = torch.from_numpy(float_array(late.weights[name]).copy())
            kind = dtype if expected.ndim > 1 else "float32"
            assert weight[1] == kind
            assert torch.equal(file.get_tensor(name), expected.to(getattr(torch, kind)))
            np.testing.assert_array_equal(float_array(weight), expected.to(getattr(torch, kind)).float().numpy())


def test_bfloat16_rounds_as_torch_does():
    bits = np.random.default_rng(3).integers(0, 1 << 32, 100_000, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate([bits.view(np.float32), np.array([np.inf, -np.inf, np.nan, 0, -0.0, 3.4e38], np.float32)])
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16)
    ours = torch.from_numpy(bfloat16_bits(values).view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(torch.nan_to_num(ours.float(), 7.0), torch.nan_to_num(expected.float(), 7.0))
    assert torch.equal(ours.isnan(), expected.isnan())
    with pytest.raises(ValueError, match="larger than 65504"):
        cast(from_array(np.array([[1e6]], np.float32)), "float16")
    with pytest.raises(ValueError, match="dtype: expected one of float32, float16, bfloat16"):
        cast(from_array(np.array([[1e6]], np.float32)), "int8")


def test_only_its_own_folders_are_replaced(late, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    convert(late, target)
    convert(late, target, "bfloat16")
    assert open_model(target).weights["text_model.shared.weight"][1] == "bfloat16"
    link = tmp_path / "link"
    link.symlink_to(target)
    convert(late, link, "float16")
    assert link.is_symlink()
    assert open_model(target).weights["text_model.shared.weight"][1] == "float16"
    (target / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        convert(late, target)
    with pytest.raises(FileExistsError, match="is a file"):
        convert(late, target / "notes.txt")
    with pytest.raises(FileNotFoundError, match="not a folder to put"):
        convert(late, tmp_path / "absent" / "model")
    with pytest.raises(ValueError, match="dtype: expected one of"):
        convert(late, tmp_path / "other", "float8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]


def test_a_failed_write_leaves_what_was_there(late, tmp_path, monkeypatch):
    target = tmp_path / "model"
    convert(late, target)
    before = (target / "model.safetensors").read_bytes()

    def full_disk(file, weights, dtypes):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "write_safetensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert(late, target, "bfloat16")
    assert (target / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


SLOW_CONVERT = """
import sys, time
from pathlib import Path
from qavit.checkpoints import _convert as module
from qavit.checkpoints import open_model
golden, target, stop = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
source = open_model(checkpoint=golden / "checkpoint.pth", vision=golden / "clip", text=golden / "t5")
def pause(name, function):
    def call(*arguments, **options):
        if name == stop:
            print("here", flush=True)
            time.sleep(60)
        return function(*arguments, **options)
    return call
module.write_safetensors = pause("weights", module.write_safetensors)
module._config = pause("config", module._config)
module._put_in_place = pause("rename", module._put_in_place)
module.convert(source, target, "bfloat16")
"""


@pytest.mark.parametrize("stop", ["weights", "config", "rename"])
def test_a_killed_convert_leaves_nothing_that_loads_and_a_rerun_completes(late, stop, tmp_path):
    target = tmp_path / "model"
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_CONVERT, str(LATE), str(target), stop],
        stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.qavit-partial-")
    if stop != "rename":
        with pytest.raises((FileNotFoundError, ValueError), match=r"config\.json"):
            open_model(left)
    convert(late, target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    open_model(target)


def test_a_folder_is_replaced_where_names_cannot_be_swapped(late, tmp_path, monkeypatch):
    def no_library(*_, **__):
        raise OSError("no C library")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    convert(late, tmp_path / "model")
    convert(late, tmp_path / "model", "bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "bfloat16" in describe(open_model(tmp_path / "model"))["dtypes"]


def test_a_replacement_that_fails_leaves_the_old_folder(late, tmp_path, monkeypatch):
    target = tmp_path / "model"
    convert(late, target)
    rename = Path.rename

    def fails_where_the_old_folder_was(self, to):
        if self.name.startswith(".model.qavit-partial-") and not self.name.endswith("-old") and not to.exists():
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(convert_module, "exchange_folders", lambda one, two: False)
    monkeypatch.setattr(Path, "rename", fails_where_the_old_folder_was)
    with pytest.raises(OSError, match="Input/output error"):
        convert(late, target, "bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "bfloat16" not in describe(open_model(target))["dtypes"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("swap", [True, False])
def test_a_convert_that_dies_at_any_step_leaves_a_whole_folder(late, swap, tmp_path, monkeypatch):
    target = tmp_path / "model"
    if not swap:
        monkeypatch.setattr(convert_module, "exchange_folders", lambda one, two: False)
    convert(late, target)
    steps = dying.run(lambda: convert(late, target, "float16"), tmp_path)
    assert steps > 5
    gone = 0
    for step in range(1, steps + 1):
        dying.run(lambda: convert(late, target, "bfloat16"), tmp_path, at=step)
        if target.exists():
            assert set(open_model(target).weights) == set(late.weights)
        else:
            gone += 1
            convert(late, target)
    assert gone <= (0 if swap else 1)  # between two renames
    convert(late, target, "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.nightly
@pytest.mark.parametrize("swap", [True, False])
def test_kills_at_random_moments_leave_a_whole_folder(late, swap, tmp_path, monkeypatch):
    target = tmp_path / "model"
    if not swap:
        monkeypatch.setattr(convert_module, "exchange_folders", lambda one, two: False)
    chance = np.random.default_rng(4)
    kills = 0
    for _ in range(int(os.environ.get("QAVIT_TEST_KILLS", "100")) // 2):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    convert(late, target)
                    convert(late, target, "bfloat16")
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        if target.exists():
            assert set(open_model(target).weights) == set(late.weights)
        elif swap:
            assert not (tmp_path / "seen").exists()
        if target.exists():
            (tmp_path / "seen").touch()
    assert kills > 0
    convert(late, target, "float16")
    (tmp_path / "seen").unlink(missing_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert open_model(target).weights["text_model.shared.weight"][1] == "float16"


def test_another_running_converts_folder_is_left_alone(late, tmp_path):
    theirs = tmp_path / f".model.qavit-partial-{os.getpid()}-abc"
    theirs.mkdir()
    convert(late, tmp_path / "model")
    assert theirs.exists()


def test_description(late, blip):
    told = describe(late)
    assert told["vision"]["integrated"] == (3, 4, 5)
    assert told["vision"]["grid"] == (5, 5)
    assert told["parameters"]["total"] == sum(float_array(weight).size for weight in late.every_weight().values())
    assert told["parameters"]["text"] > 0
    assert told["stored_bytes"]["total"] == 4 * told["parameters"]["total"] == told["memory"]["float32"]
    text = description_text(told)
    assert "blocks 3 to 5 (late), 48 wide" in text
    assert "t5, 2 blocks, 48 wide, 4 heads, 65 tokens" in text
    assert "70 x 70" in text
    told = describe(blip)
    assert told["vision"]["integrated"] == ()
    assert told["parameters"]["heads"] == 2 * 48 + 2 + 16 * 48 + 16 + 16 * 32 + 16
    assert "BLIP image-text matching" in description_text(told)


def test_bad_folders_are_refused_by_name(late, tmp_path):
    def broken(change):
        folder = tmp_path / f"model{time.monotonic_ns()}"
        convert(late, folder)
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    for change, message in (
        (lambda c: c.update(version=4), "version 4 of the format"),
        (lambda c: c.update(architecture="dino"), "architecture 'dino'"),
        (lambda c: c.update(architecture="clip"), "architecture 'clip', but there are instruct layers"),
        (lambda c: c.update(vision=[]), "'vision' is list"),
        (lambda c: c["vision"].update(hidden_size=65), "hidden_size 65, the weights say 64"),
        (lambda c: c["vision"].update(integration_point="early"), "'early' means blocks 0-2 of 6.*in blocks 3-5"),
        (lambda c: c["vision"].update(instruction_dim=50), "instruction_dim 50, the weights say 48"),
        (lambda c: c["vision"].update(num_attention_heads=5), "5 does not divide the width 64"),
        (lambda c: c["vision"].update(hidden_act="tanh"), "hidden_act 'tanh', expected one of"),
        (lambda c: c["vision"].update(image_size=100), "image_size 100, the weights have 5x5 patches"),
        (lambda c: c["text"].update(model_type="gpt2"), "model_type 'gpt2'"),
        (lambda c: c["text"].update(feed_forward_proj="relu"), "the weights have wi_0 and wi_1"),
        (lambda c: c["preprocessing"].update(size=96), "preprocessing.size is 96"),
        (lambda c: c["preprocessing"].update(std=[1, 0, 1]), "std is .*expected three finite numbers"),
        (lambda c: c["questions"].update(max_tokens=0), "max_tokens is 0"),
        (lambda c: c.update(answers=["red"]), "1 answers are listed, answer_head.weight has 0 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            open_model(broken(change))
    folder = broken(lambda c: None)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json"):
        open_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        open_model(folder)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        open_model(tmp_path / "absent")
