"""What the module tells Pythons of: one interpreter a process, and no global lock where there is none."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import qavit._core

CORE = str(Path(qavit._core.__file__))
#: Loads the module itself, without the package and NumPy, which refuse for themselves.
LOAD = f"""
import importlib.machinery, importlib.util
loader = importlib.machinery.ExtensionFileLoader("qavit._core", {CORE!r})
importlib.util.module_from_spec(importlib.util.spec_from_loader("qavit._core", loader))
"""


def ran(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python has no interpreters with a lock of their own")
def test_another_interpreter_is_refused_by_name() -> None:
    interpreters = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    code = f"import {interpreters} as them\nmade = them.create()\nfailed = them.run_string(made, {LOAD!r})\nprint(failed)"
    done = ran(code)
    said = done.stdout + done.stderr
    assert "module qavit._core does not support loading in subinterpreters" in said
    assert ran(f"import numpy{LOAD}").returncode == 0, "the first interpreter has it"



@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a global lock")
def test_a_python_without_a_lock_stays_without() -> None:
    code = "import sys, qavit, qavit._core\nqavit.build_info()\nsys.exit(sys._is_gil_enabled())"
    done = ran(code, "-W", "error")
    assert done.returncode == 0, done.stderr
