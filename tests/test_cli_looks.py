"""What figures look like that commands draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qavit
from qavit.cli import _main as cli_main
from qavit.cli._options import OK, SOME_FAILED, USAGE

SCENE = Path(qavit.__file__).parent / "demo_model" / "scene.png"


def run(*arguments: Any) -> int:
    return cli_main.main(list(map(str, arguments)))


def test_scales_of_the_demo_and_of_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(folder: str, *more: Any) -> list[bytes]:
        assert run("demo", "-o", tmp_path / folder, "-q", "where is the star?", "-q", "where is the ring?", *more) == OK
        return [(tmp_path / folder / name).read_bytes() for name in ("heatmaps.png", "blocks.png", "heatmaps.html")]

    every = [drawn("a"), drawn("b", "--vmax", 0.9), drawn("c", "--own-scales"), drawn("d", "--cmap", "jet")]
    assert all(len(set(files)) == 4 for files in zip(*every, strict=True))

    def why(name: str, *more: Any) -> bytes:
        assert run("ask", SCENE, "where is the star?", "--why", tmp_path / name, *more) == OK
        return (tmp_path / name).read_bytes()

    assert len({why("a.png"), why("b.png", "--vmax", 0.9), why("c.png", "--cmap", "jet")}) == 3
    for more, said in (
        (("--why", tmp_path / "d.png", "--vmin", 2, "--vmax", 1), "expected a vmin below vmax"),
        (("--vmin", 0.1), "--cmap, --vmin and --vmax are of a figure, which --why draws"),
    ):
        assert run("ask", SCENE, "where?", *more) != OK
        assert said in capsys.readouterr().err


def test_looks_of_figures_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(folder: str, *more: Any) -> bytes:
        asked = "heatmap", SCENE, "-q", "where is the star?", "-o", tmp_path / folder, "--kind", "overlay"
        assert run(*asked, *more) == OK
        return (tmp_path / folder / "scene.png").read_bytes()

    plain = drawn("a")
    looks = (("--contours",), ("--boxes", 0.5), ("--vmax", 0.9), ("--own-scales",))
    assert len({plain, *(drawn(f"b{number}", *look) for number, look in enumerate(looks))}) == 5
    assert drawn("a", "--contours") != plain  # another look is drawn anew
    assert drawn("a", "--kind", "heads") not in (plain, drawn("a", "--kind", "heads", "--heads", "1"))
    capsys.readouterr()
    assert run("heatmap", SCENE, "-q", "where?", "-o", tmp_path / "c", "--kind", "heads", "--method", "gae") == USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert "--kind heads: method 'gae' does not read heads one by one" in said.err
    assert run("heatmap", SCENE, "-q", "where?", "-o", tmp_path / "c", "--vmin", 2, "--vmax", 1) == SOME_FAILED
    assert "expected a vmin below vmax" in capsys.readouterr().err
