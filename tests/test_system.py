"""What differs between systems: this one's by doing it, Windows' by stand-ins for its libraries."""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qavit._base import system


def try_in_child(path: Path, answers: Any) -> None:
    with open(path, "w") as file:
        answers.put(system.try_lock(file))


def lock_elsewhere(path: Path) -> bool | None:
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    child = spawn.Process(target=try_in_child, args=(path, answers))
    child.start()
    answer: bool | None = answers.get(timeout=100)
    child.join()
    return answer


def test_a_lock_is_one_process_s(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as file:
        assert system.try_lock(file)
        assert lock_elsewhere(tmp_path / "lock") is False
    assert lock_elsewhere(tmp_path / "lock") is True


def test_which_processes_run() -> None:
    assert system.is_running(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not system.is_running(ended.pid)
    assert system.is_running(2**80), "what cannot be asked after may run"


def test_folders_change_places(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / folder.name).touch()
    swapped = system.exchange_folders(one, two)
    assert (one / "two").exists() is swapped
    assert (two / "one").exists() is swapped
    system.sync_folder(one)


class Kernel:
    """Windows' own functions, for the process numbers that are given."""

    def __init__(self, codes: dict[int, int]) -> None:
        self.codes, self.closed = codes, list[int]()

    def OpenProcess(self, access: int, inherit: bool, process: int) -> int:
        assert access == 0x1000
        return process if process in self.codes else 0

    def GetExitCodeProcess(self, handle: Any, code: Any) -> int:
        code._obj.value = self.codes[handle.value]
        return 1

    def CloseHandle(self, handle: Any) -> None:
        self.closed.append(handle.value)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The module as Windows has it."""
    kernel = Kernel({7: 259, 8: 0})
    kernel.OpenProcess = partial(kernel.OpenProcess)  # type: ignore[method-assign]  # as a foreign function, it takes attributes
    locks: list[Any] = []
    taken: dict[str, BaseException] = {}

    def locking(number: int, mode: int, count: int) -> None:
        locks.append((mode, count))
        if "error" in taken:
            raise taken["error"]

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 87, raising=False)
    spec = importlib.util.spec_from_file_location("qavit._base.windows_system", system.__file__)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(module=module, kernel=kernel, locks=locks, taken=taken)


def test_which_processes_run_on_windows(windows: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    running = windows.module.is_running
    assert running(7)
    assert not running(8), "it ended, and somebody still holds its handle"
    assert not running(9)
    assert windows.kernel.closed == [7, 8]
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 5)  # ERROR_ACCESS_DENIED
    assert running(9), "another user's process"
    assert running(2**80)
    assert not running(0)


def test_locks_on_windows(windows: SimpleNamespace, tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as file:
        assert windows.module.try_lock(file) is True
        windows.taken["error"] = PermissionError()
        assert windows.module.try_lock(file) is False
        windows.taken["error"] = OSError()
        assert windows.module.try_lock(file) is None
    assert windows.locks == [(2, 1)] * 3


def test_folders_on_windows(windows: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows.module.sync_folder(tmp_path)
    assert windows.module.exchange_folders(tmp_path, tmp_path) is False
    added: list[str] = []
    monkeypatch.setattr(os, "add_dll_directory", added.append, raising=False)
    windows.module.find_libraries(tmp_path / "none")
    windows.module.find_libraries(tmp_path)
    assert added == [str(tmp_path.resolve())]


def test_types_hold_on_windows_too() -> None:
    """mypy reads the branches of a system by name."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--platform", "win32", "--follow-imports=silent", system.__file__]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
