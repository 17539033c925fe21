"""Files that are whole or not there: full disks, odd places, kills; and files that change under a loaded model."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dying
import numpy as np
import pytest
from PIL import Image
from small_models import write_qavit
from test_core_runtime import run_python

import qavit
from qavit import QAViT
from qavit._base.files import write_whole
from qavit.checkpoints import convert, open_model
from qavit.cli._main import main

QUESTION = "where is the red star?"
#: At random moments.
KILLS = int(os.environ.get("QAVIT_TEST_KILLS", "100"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qavit(tmp_path_factory.mktemp("whole") / "model", blocks=3, image_size=14, patch=7)


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "street.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


# ---- files that change under a loaded model ----


def maps(model: Any, picture: Path) -> np.ndarray:
    values: np.ndarray = model.heatmaps(str(picture), QUESTION, block=2).maps
    return values


def write_in_place(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x3f")


def test_a_file_replaced_by_renaming_leaves_the_loaded_model_alone(folder: Path, picture: Path) -> None:
    model = qavit.load(folder)
    expected = maps(model, picture)
    other = write_qavit(folder.parent / "other", blocks=3, image_size=14, patch=7, heads=4)
    os.replace(other / "model.safetensors", folder / "model.safetensors")
    assert (maps(model, picture) == expected).all()
    shutil.rmtree(folder)
    assert (maps(model, picture) == expected).all()


@pytest.mark.parametrize("converted", [False, True])
def test_a_file_written_in_place_is_noticed(folder: Path, picture: Path, converted: bool) -> None:
    if converted:
        folder = convert(open_model(folder), folder.parent / "converted")
    model = qavit.load(folder)
    assert isinstance(model, QAViT)
    maps(model, picture)
    write_in_place(folder / "model.safetensors")
    acts: list[Callable[[], Any]] = [
        lambda: maps(model, picture), lambda: model.encode_questions("never asked before"),
        lambda: model.vision(np.zeros((1, 3, 14, 14))), lambda: model.extract_attention(str(picture), QUESTION, blocks=[2]),
    ]  # fmt: skip
    for act in acts:
        with pytest.raises(ValueError, match=r"model\.safetensors: the file was written to after the model was loaded"):
            act()
    assert maps(qavit.load(folder), picture).shape == (1, 2, 2)


def test_a_file_cut_short_is_noticed_before_it_is_read(folder: Path, picture: Path) -> None:
    model = qavit.load(folder)
    source = open_model(folder)
    maps(model, picture)
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(ValueError, match="written to after"):
        maps(model, picture)
    with pytest.raises(ValueError, match="cut short"):
        qavit.load(folder)
    del source


def test_a_checkpoint_that_changes_while_it_is_converted_is_refused(folder: Path, tmp_path: Path) -> None:
    source = open_model(folder)
    write_in_place(folder / "model.safetensors")
    with pytest.raises(ValueError, match="written to after"):
        convert(source, tmp_path / "converted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


# ---- places to write to ----


def result(folder: Path, picture: Path) -> Any:
    return qavit.load(folder).heatmaps(str(picture), QUESTION, block=2)


def test_what_is_there_is_replaced_whole_and_links_are_followed(folder: Path, picture: Path, tmp_path: Path) -> None:
    made = result(folder, picture)
    target = tmp_path / "map.npz"
    target.write_bytes(b"old")
    link = tmp_path / "link.npz"
    link.symlink_to(target.name)
    assert made.save(link) == link
    assert link.is_symlink()
    assert (np.load(target)["maps"] == made.maps).all()
    dangling = tmp_path / "later.npz"
    dangling.symlink_to("not_yet.npz")
    made.save(dangling)
    assert (tmp_path / "not_yet.npz").exists()
    long = tmp_path / ("\u5b57" * 83 + ".npz")  # 253 bytes of the 255 that a name may have
    made.save(long)
    assert long.exists()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_whole(tmp_path / "model", b"")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        made.save(tmp_path / "absent" / "map.png")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"loop|symbolic"):
        write_whole(tmp_path / "loop" / "x", b"")
    assert not list(tmp_path.glob(".*"))


def test_places_that_nobody_can_write_to(folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = result(folder, picture)
    for act in (lambda: made.save("/proc/map.png"), lambda: convert(open_model(folder), "/proc/model")):
        with pytest.raises(OSError):  # noqa: PT011
            act()
    code = main(["heatmap", str(picture), "-q", QUESTION, "--model", str(folder), "--block", "2", "-o", "/proc/out"])
    assert code == 1
    assert "/proc/out" in capsys.readouterr().err


FULL_SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
import qavit
from qavit.checkpoints import open_model
from qavit.cli import main
from qavit.checkpoints import convert
folder, picture, out = map(Path, (FOLDER, PICTURE, OUT))
made = qavit.load(folder).heatmaps(str(picture), "what", block=2)
kept = {path.name: path.read_bytes() for path in out.iterdir()}
for limit in (0, 300):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for act in (lambda: made.save(out / "map.png"), lambda: made.save(out / "map.npz"),
                lambda: made.to_html(out / "map.html"), lambda: convert(open_model(folder), out / "converted")):
        try:
            act()
        except OSError as error:
            assert error.errno == 27, error
        else:
            raise AssertionError("it was written")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == kept, limit
    assert main(["heatmap", str(picture), "-q", "what", "--model", str(folder), "--block", "2", "-o", str(out)]) == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept, limit
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
made.save(out / "map.png")
convert(open_model(folder), out / "converted")
print("ok")
"""


def test_a_full_disk_leaves_what_was_there(folder: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "map.png").write_bytes(b"an old picture")
    (out / "street.png").write_bytes(b"another")
    script = f"FOLDER, PICTURE, OUT = {str(folder)!r}, {str(picture)!r}, {str(out)!r}\n" + FULL_SCRIPT
    assert run_python(script).splitlines()[-1] == "ok"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_a_device_without_room(folder: Path, picture: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(device)]
    if subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        made = result(folder, picture)
        (device / "map.png").write_bytes(b"old")
        for act in (lambda: made.save(device / "map.png"), lambda: convert(open_model(folder), device / "converted")):
            with pytest.raises(OSError, match="No space left"):
                act()
        assert [path.name for path in device.iterdir()] == ["map.png"]
        assert (device / "map.png").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(device)], check=True)


# ---- kills ----


def check_whole(path: Path) -> None:
    """Raises unless a file of `qavit heatmap` is whole."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            assert np.isfinite(arrays["maps"]).all()
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def heatmap_arguments(images: list[str], folder: Path, out: Path) -> list[str]:
    arguments = ["heatmap", *images, "-q", QUESTION, "--model", str(folder), "--block", "2", "-o", str(out)]
    return [*arguments, "--maps", "npz", "--html", "--kind", "overlay"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_death_at_any_step_leaves_whole_files_and_a_rerun_completes(folder: Path, picture: Path, tmp_path: Path) -> None:
    arguments = heatmap_arguments([str(picture)], folder, tmp_path / "out")
    assert main(arguments) == 0  # imports what is imported late
    expected = sorted(path.name for path in (tmp_path / "out").iterdir())
    steps = dying.run(lambda: main([*arguments, "--again"]), tmp_path / "out")
    assert steps > 5
    for step in range(1, steps + 1):
        if step % 4 == 0:
            shutil.rmtree(tmp_path / "out")
            (tmp_path / "out").mkdir()
        dying.run(lambda: main([*arguments, "--again"]), tmp_path / "out", at=step)
        for path in (tmp_path / "out").iterdir():
            check_whole(path)
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments_leave_whole_files_and_a_rerun_completes(
    folder: Path, picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = []
    for n in range(3):
        images.append(str(tmp_path / f"picture{n}.png"))
        shutil.copyfile(picture, images[-1])
    out = tmp_path / "out"
    arguments = heatmap_arguments(images, folder, out)
    begun = time.monotonic()
    assert main(arguments) == 0  # imports what is imported late, and says how long a run takes
    took = time.monotonic() - begun
    expected = sorted(path.name for path in out.iterdir())
    chance = np.random.default_rng(8)
    kills = writing = 0
    while kills < KILLS:
        child = os.fork()
        if child == 0:
            try:
                while True:
                    main([*arguments, "--again"])
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.0, took))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        writing += bool(list(out.glob(".*.part")))
        for path in out.iterdir():
            check_whole(path)
        if kills % 7 == 0:
            shutil.rmtree(out)
    assert main(arguments) == 0
    for path in out.iterdir():
        check_whole(path)
    assert sorted(path.name for path in out.iterdir()) == expected
    with capfd.disabled():
        if KILLS > 50:
            print(f"{kills} kills, {writing} of them while a file was being written")


def test_leftovers_of_a_killed_process_go_with_the_next_run(folder: Path, picture: Path, tmp_path: Path) -> None:
    script = "import os, qavit._base.files as f; f.os.replace = lambda *a: os.kill(os.getpid(), 9)\nf.write_whole('x', b'1')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".*.part")
    machine, process, _ = left.name.removeprefix(".x.").split("-")
    theirs = left.with_name(left.name.replace(machine, f"{int(machine, 16) ^ 1:08x}"))  # another machine's
    alive = left.with_name(left.name.replace(f"-{process}-", f"-{os.getppid()}-"))
    for other in (theirs, alive):
        shutil.copyfile(left, other)
    arguments = ["heatmap", str(picture), "-q", QUESTION, "--model", str(folder), "--block", "2", "-o", str(tmp_path)]
    assert main(arguments) == 0
    assert sorted(path.name for path in tmp_path.glob(".*.part")) == sorted([theirs.name, alive.name])
    assert io.BytesIO((tmp_path / "street.png").read_bytes()).read(4) == b"\x89PNG"
