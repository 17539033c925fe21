"""What is written in many steps, and dies or is interrupted at one of them: whole or not there; the command goes on."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dying
import pytest
from PIL import Image
from small_models import write_qavit
from test_data_answers import vqa_questions
from test_evaluation import boxes
from writers import clean_up, files, picture

import qavit
from qavit._base.files import write_whole
from qavit.checkpoints import open_model
from qavit.cli import main
from qavit.cli._options import INTERRUPTED, OK, SOME_FAILED

pytest.importorskip("pyarrow")
resource = pytest.importorskip("resource")
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore::qavit.QavitWarning"),
]
#: At random moments, of each kind; the long run's.
KILLS = int(os.environ.get("QAVIT_TEST_KILLS", "50"))
#: So many of the steps, evenly; in the long run about all.
STEPS = 2 if "QAVIT_TEST_KILLS" not in os.environ else 40


class Case(NamedTuple):
    """Something that writes into a folder, and what may be there when it died: `check` raises unless all is whole."""

    act: Callable[[Path], int]
    check: Callable[[Path], None]
    #: The names and bytes that the end has, without what differs from run to run.
    found: Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module", autouse=True)
def quick_and_clean() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # what is written survives the death of its writer anyway
        yield
    clean_up()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, boxes, pictures and a model."""
    folder = tmp_path_factory.mktemp("given")
    vqa_questions(folder, 5)
    boxes(folder / "boxes", 3)
    (folder / "pictures").mkdir()
    for number in range(3):
        Image.fromarray(picture(number)).save(folder / "pictures" / f"{number}.png")
    write_qavit(folder / "model", blocks=4, image_size=14, patch=7, width=16)
    return folder


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def answers_case(given: Path) -> Case:
    def act(out: Path) -> int:
        words = ["run", str(given / "questions.json"), "-o", str(out / "maps"), "--answers", str(out / "answers.json")]
        return main([*words, "--part-rows", "3", "--window", "6"])

    def check(out: Path) -> None:
        for path in (out / "maps" / "parts").glob("[!.]*.parquet"):
            import pyarrow.parquet

            assert pyarrow.parquet.read_table(path).num_rows > 0
        if (out / "answers.json").exists():
            assert len(json.loads((out / "answers.json").read_text())) == 15

    return Case(act, check, lambda out: contents(out, "answers.json"))


def evaluation_case(given: Path) -> Case:
    def act(out: Path) -> int:
        words = ["eval", str(given / "boxes" / "boxes.jsonl"), "--model", str(given / "model"), "-o", str(out / "eval")]
        return main([*words, "--method", "class,question", "--json"])

    def check(out: Path) -> None:
        if (out / "eval" / "table.json").exists():
            json.loads((out / "eval" / "table.json").read_text())
        if (out / "eval" / "table.csv").exists():
            assert len((out / "eval" / "table.csv").read_text().splitlines()) == 15

    return Case(act, check, lambda out: contents(out / "eval", "table.json", "table.csv"))


def int8_case(given: Path) -> Case:
    def act(out: Path) -> int:
        words = ["convert", "--model", str(given / "model"), "-o", str(out / "int8"), "--dtype", "int8", "--again"]
        return main([*words, "--calibrate", str(given / "pictures")])

    def check(out: Path) -> None:
        if (out / "int8").exists():
            assert open_model(out / "int8").weights

    names = ("config.json", "model.safetensors", "tokenizer.json")
    return Case(act, check, lambda out: contents(out / "int8", *names))


def captions_case(given: Path) -> Case:
    """Captions of a model that keeps what it made of pictures in a folder."""

    def captions(out: Path) -> Any:
        model: Any = qavit.load(**files("blip_caption"), cache=0, cache_dir=out / "kept")
        return [[one.text for one in model.generate(picture(n), num_beams=3, num_captions=2)] for n in range(2)]

    def act(out: Path) -> int:
        out.mkdir(exist_ok=True)
        write_whole(out / "said", json.dumps(captions(out)).encode())
        return 0

    def check(out: Path) -> None:
        captions(out)

    return Case(act, check, lambda out: contents(out, "said"))


OTHERS = ("answers", "int8", "captions")
CASES = {"answers": answers_case, "evaluation": evaluation_case, "int8": int8_case, "captions": captions_case}


def go(case: Case, out: Path) -> int:
    out.mkdir(exist_ok=True)
    null = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(1), os.dup(2)
    for number in (1, 2):
        os.dup2(null, number)
    try:
        return case.act(out)
    finally:
        for number, one in zip((1, 2), kept):
            os.dup2(one, number)
            os.close(one)
        os.close(null)


def hidden(folder: Path) -> list[str]:
    """What a writer leaves that was interrupted."""
    return sorted(path.name for path in folder.rglob(".*") if not path.name.startswith(".lock"))


@pytest.mark.parametrize("kind", list(CASES))
def test_a_death_at_any_step_leaves_nothing_half_written(kind: str, given: Path, tmp_path: Path) -> None:
    case = CASES[kind](given)
    steps = dying.run(lambda: go(case, tmp_path / "whole"), tmp_path)
    expected = case.found(tmp_path / "whole")
    assert expected
    assert steps > 4
    for step in range(steps, steps % STEPS, -max(1, steps // STEPS)):
        out = tmp_path / f"died {step}"
        dying.run(lambda out=out: go(case, out), tmp_path, at=step)
        if out.exists():
            case.check(out)
        assert go(case, out) in (OK, SOME_FAILED)
        case.check(out)
        assert case.found(out) == expected, step
        assert not hidden(out), step


def interrupted(case: Case, out: Path, folder: Path, at: int) -> int:
    """What the command says, in a child that is told of Ctrl-C at a step."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            dying.watch(folder, lambda step: signal.raise_signal(signal.SIGINT) if step == at else None)
            code = go(case, out)
        except KeyboardInterrupt:
            code = INTERRUPTED
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", list(CASES))
def test_ctrl_c_at_any_step_leaves_nothing_behind(kind: str, given: Path, tmp_path: Path) -> None:
    case = CASES[kind](given)
    steps = dying.run(lambda: go(case, tmp_path / "whole"), tmp_path)
    expected = case.found(tmp_path / "whole")
    for step in range(steps - 1, 1, -max(1, steps // (STEPS - 1))):
        out = tmp_path / f"interrupted {step}"
        out.mkdir()
        assert interrupted(case, out, tmp_path, step) in (INTERRUPTED, OK, SOME_FAILED), step
        assert not hidden(out), step
        case.check(out)
        assert go(case, out) in (OK, SOME_FAILED)
        assert case.found(out) == expected, step


def limited(case: Case, out: Path, size: int) -> tuple[int, str]:
    """What the command ends with and says in a child none of whose files may be larger."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writer, 2)
            sys.stderr = os.fdopen(2, "w")  # not what pytest has put there, a file
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            code = case.act(out)
        except OSError as error:
            code = SOME_FAILED
            sys.stderr.write(f"{error.filename}: {error.strerror}")
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.parametrize("kind", list(CASES))
@pytest.mark.parametrize("size", [1500, pytest.param(0, marks=pytest.mark.nightly)])
def test_files_without_room_are_named_and_not_half_written(kind: str, size: int, given: Path, tmp_path: Path) -> None:
    case, out = CASES[kind](given), tmp_path / "out"
    assert go(case, tmp_path / "whole") in (OK, SOME_FAILED)
    out.mkdir()
    code, said = limited(case, out, size)
    assert code in (OK, SOME_FAILED)
    if kind != "captions":  # what keeps pictures warns, and the captions are written
        assert f"{out}/" in said, said
        assert "File too large" in said
    case.check(out)
    assert not hidden(out)
    assert go(case, out) in (OK, SOME_FAILED)
    assert case.found(out) == case.found(tmp_path / "whole")
    before = case.found(out)
    limited(case, out, size)  # what is there stays, or is replaced by the same
    assert case.found(out) == before
    assert not hidden(out)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("kind", ["evaluation", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in OTHERS)])
def test_a_device_that_fills_up_is_gone_on_with_when_it_has_room(kind: str, given: Path, tmp_path: Path) -> None:
    case, device = CASES[kind](given), tmp_path / "device"
    assert go(case, tmp_path / "whole") in (OK, SOME_FAILED)
    device.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(device)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        try:
            assert go(case, device / "out") in (OK, SOME_FAILED)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
        case.check(device / "out")
        assert not hidden(device)
        subprocess.run(["mount", "-o", "remount,size=9m", str(device)], check=True)
        assert go(case, device / "out") in (OK, SOME_FAILED)
        assert case.found(device / "out") == case.found(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(device)], check=True)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", list(CASES))
def test_kills_at_random_moments(kind: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[kind](given)
    assert go(case, tmp_path / "whole") in (OK, SOME_FAILED)
    expected = case.found(tmp_path / "whole")
    chance, kills, ended, turn = random.Random(9), 0, 0, 0
    begun = time.monotonic()
    go(case, tmp_path / "timing")
    takes = time.monotonic() - begun
    while kills < KILLS:
        out = tmp_path / str(turn)
        child = os.fork()
        if child == 0:
            try:
                os._exit(go(case, out))
            finally:
                os._exit(99)
        time.sleep(chance.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL:
            kills += 1
            if out.exists():
                case.check(out)
            takes *= 1.02  # a machine that has become slower is interrupted further on, too
            continue
        assert code in (OK, SOME_FAILED)
        ended += 1
        assert case.found(out) == expected
        assert not hidden(out)
        takes /= 1.1
        turn += 1
    assert go(case, tmp_path / str(turn)) in (OK, SOME_FAILED)
    assert case.found(tmp_path / str(turn)) == expected
    assert not hidden(tmp_path)
    with capsys.disabled():
        print(f"{kind}: {kills} kills, {ended} runs between them came to their end")
