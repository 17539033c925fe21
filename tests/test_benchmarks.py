"""The benchmarks' own parts: a process's memory, rows and their table, what they leave out and what they keep quiet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import everything, table
from benchmarks.peak import ROOT, peak_memory, start_module
from benchmarks.quiet import hushed
from benchmarks.table import Row, beside, markdown, number, read_rows, write_rows

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")


@linux
def test_peak_memory_is_the_process_own() -> None:
    """A child's begins at nothing, however much its parent has held; getrusage's does not."""
    code = """
import subprocess, sys
held = b"\\1" * (200 << 20)
said = "from benchmarks.peak import peak_memory; import resource;" \\
    "print(peak_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
print(subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    own, _ = map(float, done.stdout.split())
    assert 1 < own < 150


@linux
def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory()
    held = bytearray(os.urandom(1)) * (int(before + 64) << 20)
    assert peak_memory() >= before + 60
    del held
    assert peak_memory() >= before + 60


def test_a_row_has_both_sides() -> None:
    found = {"float32": {"ms": 2.0, "peak": 10.0}, "torch": {"ms": 5.0, "peak": 40.0}, "bfloat16": {"ms": 1.0}}
    rows = beside("work", found, ("float32", "bfloat16", "absent"), {"float32": ("torch", "absent")})
    assert rows == [Row("work", "float32", 2.0, "torch", 5.0, 10.0, 40.0), Row("work", "bfloat16", 1.0)]
    assert [row.ratio for row in rows] == [2.5, None]
    lines = markdown(rows).splitlines()
    assert lines[2] == "| work | float32 | 2.00 | torch | 5.00 | 2.50x | 10 | 40 |"
    assert lines[3] == "| work | bfloat16 | 1.00 |  |  |  |  |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (None, 0.5, 12.34, 1234.5)] == ["", "0.50", "12.3", "1234"]


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    rows = [Row("work", "float32", 2.0, "torch", 5.0, None, 40.0)]
    write_rows(tmp_path / "rows.json", rows, ["left out: x"])
    assert read_rows(tmp_path / "rows.json") == (rows, ["left out: x"])
    write_rows(None, rows)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.PACKAGES, "nncf", ("no_such_package", "OpenVINO int8"))
    assert table.missing(["nncf"]) == ["nncf"]
    assert table.skipped("openvino int8", ["nncf"]) == "left out: openvino int8, for want of no_such_package"


def test_nothing_is_said_between(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with hushed():
        print("a library's bar")
        os.write(2, b"a warning of C++\n")
        subprocess.run(["echo", "a child"], check=True)
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
    with pytest.raises(ValueError, match="raised as ever"), hushed():
        raise ValueError("raised as ever")


def test_the_table_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(everything, "RESULTS", tmp_path / "results")
    parts = {
        "one": ([Row("work", "float32", 2.0, "torch", 5.0)], ["left out: a peer"]),
        "two": ([Row("more", "x", 1.0)], []),
    }
    monkeypatch.setattr(everything, "PARTS", dict.fromkeys(parts, ("", (), False)))
    monkeypatch.setattr(everything, "run_part", lambda name, _: parts[name])
    assert everything.main([]) == 0
    said = capsys.readouterr().out
    assert said == (tmp_path / "results" / "bench.md").read_text()
    assert said.count("| work | qavit | ms |") == 1
    assert "| work | float32 | 2.00 | torch | 5.00 | 2.50x |" in said
    assert said.endswith("- left out: a peer\n")
    parts["two"] = ([], ["failed: two, see there: why"])
    assert everything.main([]) == 1
    assert "- failed: two" in capsys.readouterr().out


@linux
def test_a_part_that_fails_is_a_line() -> None:
    with pytest.raises(RuntimeError, match="unrecognized arguments"):
        start_module("drawing_bench", ["--no-such-option"])
