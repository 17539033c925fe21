"""How the extension module was built: what the loader and the compiler can do against a bug that is left."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qavit import _core

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("readelf") is None, reason="reads ELF files"),
    pytest.mark.skipif(_core.build_info()["debug"], reason="a build for tests"),
]


def readelf(*options: str) -> str:
    command = ["readelf", "--wide", *options, str(_core.__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_relocations_are_read_only_and_bound_at_the_start() -> None:
    dynamic = readelf("--dynamic")
    assert re.search(r"\(FLAGS\)\s+.*BIND_NOW|\(FLAGS_1\)\s+Flags:.*NOW", dynamic)
    assert "GNU_RELRO" in readelf("--program-headers")


def test_no_memory_is_both_writable_and_executable() -> None:
    segments = re.findall(r"^\s+(\w+)\s+(?:0x\w+\s+){5}([RWE ]{3})", readelf("--program-headers"), re.M)
    assert len(segments) > 4
    assert not [kind for kind, flags in segments if "W" in flags and "E" in flags]
    assert ("GNU_STACK", "RW ") in segments


def test_stacks_are_protected_and_copies_are_checked() -> None:
    symbols = readelf("--dyn-syms")
    assert "__stack_chk_fail" in symbols
    assert re.search(r"__\w+_chk", symbols.replace("__stack_chk_fail", ""))


def test_only_the_module_is_visible() -> None:
    """Whatever else a process loads, no name of the core can take another's place, or have its place taken."""
    defined = re.findall(r" GLOBAL +DEFAULT +\d+ (\S+)", readelf("--dyn-syms"))
    assert defined == ["PyInit__core"]


def test_the_run_path_is_the_packages_own() -> None:
    paths = re.findall(r"(?:RPATH|RUNPATH)\).*\[(.*)\]", readelf("--dynamic"))
    for path in ":".join(paths).split(":"):
        assert path == "" or path.startswith(("$ORIGIN", "/")), path


def test_a_build_leaves_the_library_to_processes_that_have_it_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written over in place, it takes its relocated pages from them: they crash in their next fork or import."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    build = runpy.run_path(str(Path(__file__).parent.parent / "setup.py"))["BuildCore"]
    builder = SimpleNamespace(library=tmp_path / "libblas.so")
    for version in ("the first", "another"):
        builder.library.write_text(version)
        build.place_library(builder, tmp_path / "package")
        if version == "the first":
            mapped = open(tmp_path / "package/.libs/libblas.so")  # noqa: SIM115
    with mapped:
        assert mapped.read() == "the first"
    assert [file.name for file in (tmp_path / "package/.libs").iterdir()] == ["libblas.so"]
    assert (tmp_path / "package/.libs/libblas.so").read_text() == "another"
