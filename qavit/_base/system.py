"""What differs between systems, for Python: processes, locks, folders, libraries. The core's door is csrc/base/os.h."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any, Union

PathLike = Union[str, "os.PathLike[str]"]


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if sys.platform == "win32":
    import msvcrt

    _MAY_ASK = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
    _NO_SUCH = 87  # ERROR_INVALID_PARAMETER, which is how OpenProcess says that there is no such process
    _STILL_ACTIVE = 259

    def is_running(process: int) -> bool:
        """Whether there is a process of this number."""
        if not 0 < process < 2**32:
            return process >= 2**32
        import ctypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        handle = kernel.OpenProcess(_MAY_ASK, False, process)
        if not handle:
            return ctypes.get_last_error() != _NO_SUCH
        code = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
        kernel.CloseHandle(ctypes.c_void_p(handle))
        return not known or code.value == _STILL_ACTIVE

    def sync_folder(folder: PathLike) -> None:
        """Nothing: Windows gives no folder to a program, and writes names through with the files."""

    _HELD = PermissionError  # says that another process has the lock

    def _lock(file: IO[Any]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def exchange_folders(one: PathLike, two: PathLike) -> bool:
        """False: Windows cannot swap two folders in one step."""
        return False

    def find_libraries(folder: PathLike) -> None:
        """Let extension modules find the libraries that lie in a folder, where there is one."""
        if os.path.isdir(folder):
            os.add_dll_directory(os.fspath(Path(folder).resolve()))

else:
    import fcntl

    def is_running(process: int) -> bool:
        """Whether there is a process of this number."""
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            return True
        return True

    def sync_folder(folder: PathLike) -> None:
        """Have the disk hold the names in a folder, where the file system can do that."""
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError:  # some network file systems refuse; their renames are kept by the server
            pass
        finally:
            os.close(number)

    _HELD = BlockingIOError  # says that another process has the lock

    def _lock(file: IO[Any]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def exchange_folders(one: PathLike, two: PathLike) -> bool:
        """Swap two folders in one step, so that there is never none; False where the system cannot."""
        import ctypes

        try:
            rename = ctypes.CDLL(None, use_errno=True).renameat2
        except (OSError, AttributeError):
            return False
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return bool(rename(here, os.fsencode(one), here, os.fsencode(two), swap) == 0)

    def find_libraries(folder: PathLike) -> None:
        """Nothing: a run path in each module says where its libraries lie."""


def try_lock(file: IO[Any]) -> bool | None:
    """Lock an open file until it is closed or this process ends: False where another has it, None without locks."""
    try:
        _lock(file)
    except _HELD:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def take_lock(path: str | os.PathLike[str], refusal: str) -> IO[str]:
    """A file that is locked until it is closed or this process ends. ValueError, which says `refusal`: another has it."""
    lock = open(path, "w")  # noqa: SIM115 - of as long a life as the lock
    if try_lock(lock) is False:
        lock.close()
        raise ValueError(refusal)
    return lock
