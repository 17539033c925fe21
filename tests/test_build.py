"""What setup.py builds, for whom and with which flags, seen with a compiler that writes down its orders and obeys none."""

from __future__ import annotations

import os
import runpy
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = """#!/bin/sh
echo "$@" >>'{log}'
while [ $# -gt 0 ]; do
    [ "$1" != -o ] || : >"$2"
    shift
done
"""
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
CORE, TESTING = f"qavit/_core{SUFFIX}", f"qavit/_core_testing{SUFFIX}"

pytest.importorskip("setuptools")
pytest.importorskip("scipy_openblas32")
pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the sources are not beside the tests"),
    pytest.mark.skipif(os.name != "posix", reason="the compiler is a script"),
]


def orders(folder: Path, *commands: str, **environment: str) -> list[str]:
    """The lines that the compiler is called with when setup.py runs these commands with everything below a folder."""
    compiler, log = folder / "compiler", folder / "log"
    compiler.write_text(COMPILER.format(log=log))
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    log.unlink(missing_ok=True)
    places = ["egg_info", "--egg-base", str(folder), "build", "--build-base", str(folder / "build")]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *places, *commands], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "CC": str(compiler), "LDSHARED": str(compiler), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def built(folder: Path) -> set[str]:
    libraries = next((folder / "build").glob("lib*"))
    return {path.relative_to(libraries).as_posix() for path in libraries.rglob(f"_core*{SUFFIX}")}


def test_the_ops_by_themselves_are_in_no_wheel(tmp_path: Path) -> None:
    orders(tmp_path, QAVIT_TESTING="1")
    assert built(tmp_path) == {CORE, TESTING}
    # A wheel holds whatever lies in the build's folder: what the build before left there is not to be in it.
    places = ["--dist-dir", str(tmp_path / "dist"), "--bdist-dir", str(tmp_path / "bdist")]
    for asked in ("", "1"):
        orders(tmp_path, "bdist_wheel", *places, QAVIT_TESTING=asked)
        with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
            assert [name for name in wheel.namelist() if "/_core" in name and name.endswith(SUFFIX)] == [CORE]


def test_a_build_that_is_not_in_place_has_the_core_alone(tmp_path: Path) -> None:
    orders(tmp_path, QAVIT_TESTING="")
    assert built(tmp_path) == {CORE}


def test_what_both_modules_have_is_compiled_once(tmp_path: Path) -> None:
    lines = orders(tmp_path, QAVIT_TESTING="1")
    sources = [word for line in lines for word in line.split() if word.startswith("csrc/") and word.endswith(".c")]
    assert len(sources) == len(set(sources)) > 40


def test_every_file_is_compiled_without_fusing_and_for_the_oldest_numpy(tmp_path: Path) -> None:
    """Contraction is each compiler's choice otherwise, and with it the bits of a result."""
    lines = [line for line in orders(tmp_path, QAVIT_TESTING="1") if " -c csrc/" in line]
    assert len(lines) > 40
    for flag in ("-ffp-contract=off", "-DNPY_TARGET_VERSION=NPY_1_23_API_VERSION", "-std=c11"):
        assert [line for line in lines if flag not in line.split()] == []


@pytest.mark.parametrize(
    ("script", "compiles"),
    [("cross.sh", "flags=("), ("tsan.sh", "-std=c11"), ("cuda.sh", "-std=c++17 -O2"), ("../fuzz/build.sh", "-std=c11")],
)
def test_no_script_compiles_the_core_otherwise(script: str, compiles: str) -> None:
    lines = [line for line in (ROOT / "scripts" / script).read_text().splitlines() if compiles in line]
    assert lines
    assert all("-ffp-contract=off" in line for line in lines)


def run_setup(monkeypatch: pytest.MonkeyPatch, platform: str) -> dict[str, Any]:
    """The names of setup.py as they are on a platform, nothing built."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_each_platform_is_told_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for platform, hardened, relocations in (("linux", True, True), ("darwin", True, False), ("win32", False, False)):
        core = run_setup(monkeypatch, platform)["extension"](CORE.split(".")[0].replace("/", "."))
        assert ("-D_FORTIFY_SOURCE=2" in core.extra_compile_args) == hardened
        assert ("-Wl,-z,relro,-z,now" in core.extra_link_args) == relocations


@pytest.mark.parametrize(
    ("platform", "said", "file"),
    [
        ("linux", "scipy_openblas", "libscipy_openblas.so"),
        ("darwin", "scipy_openblas", "libscipy_openblas.dylib"),
        ("win32", "libscipy_openblas", "libscipy_openblas.dll"),  # what its package says is its .lib's name there
    ],
)
def test_openblas_has_its_file_s_name_on_each_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, said: str, file: str
) -> None:
    theirs = SimpleNamespace(get_library=lambda: said, get_lib_dir=lambda: "there", get_include_dir=lambda: "headers")
    monkeypatch.setitem(sys.modules, "scipy_openblas32", theirs)
    monkeypatch.delenv("QAVIT_OPENBLAS", raising=False)
    names = run_setup(monkeypatch, platform)
    core = names["extension"](CORE.split(".")[0].replace("/", "."))
    assert names["BuildCore"].use_openblas(SimpleNamespace(), core) == Path("there", file)
    assert (core.libraries, core.library_dirs) == (["scipy_openblas"], ["there"])


def test_msvc_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = SimpleNamespace(compiler=SimpleNamespace(compiler_type="msvc"))
    with pytest.raises(SystemExit, match=r"which MSVC does not compile; build it with MinGW's gcc or clang"):
        run_setup(monkeypatch, "win32")["BuildCore"].build_extensions(builder)
