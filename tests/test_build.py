"""What setup.py builds, for whom and with which flags, seen with a compiler that writes down its orders and obeys none."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = """#!{python}
import sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(" ".join(words) + "\\n")
if "-o" in words:
    open(words[words.index("-o") + 1], "w").close()
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
    compiler.write_text(COMPILER.format(python=sys.executable, log=str(log)))
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
