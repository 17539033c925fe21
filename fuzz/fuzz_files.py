"""Damage to everything that Python code of qavit reads: each must be read, or refused with a ValueError.

    python fuzz/fuzz_files.py [--kind KIND ...] [--iterations N] [--seconds S] [--seed N] [--out FOLDER]

Guided by the coverage of qavit's code where atheris is installed (libFuzzer's engine for Python; one process a kind),
by chance alone with --random. Both begin with the kind's seeds, KIND/ in fuzz/corpus.zip, and fuzz/regressions/KIND.

While a file is read, an audit hook watches: starting a program, running or compiling code, connecting anywhere, or
writing a file elsewhere counts as a failure, as does any other exception (UnicodeDecodeError and the like among them), a
refusal that does not name the file, much memory, or a call that takes longer than --slow seconds of processor time. What
failed is written to the --out folder, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import io
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "fuzz")]

import damage  # noqa: E402
from watching import WATCH, Descriptors, Kind, read_once  # noqa: E402

MODULES = ("kinds_models", "kinds_tables", "kinds_server")
MEMORY = "/dev/shm"  # where a file is written and read many times as fast as on a disk


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", nargs="*", help="which kinds of files (all)")
    parser.add_argument("--iterations", type=int, default=1000, help="files of each kind (1000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop each kind after this long")
    parser.add_argument("--together", type=float, help="the same for all kinds together")
    parser.add_argument("--random", action="store_true", help="by chance alone, also where atheris is installed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow", type=float, default=10.0, help="seconds of processor time that count as a failure (10)")
    parser.add_argument("--memory", type=float, default=6.0, help="GB of address space (6)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz", help="where failing files go")
    options = parser.parse_args()
    limit = int(options.memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    guided = not options.random and importlib.util.find_spec("atheris") is not None
    atheris: Any = importlib.import_module("atheris") if guided else None
    quiet = redirect_stderr(io.StringIO())  # a line a module
    with quiet, nullcontext() if atheris is None else atheris.instrument_imports(include=["qavit"]):
        modules = [importlib.import_module(name) for name in MODULES]
    zipfile.ZipExtFile._update_crc = lambda self, data: None  # type: ignore[attr-defined]  # no checksum hides what is below
    failed = 0
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        WATCH.inside = os.path.realpath(name)
        table: dict[str, Kind] = {}
        for module in modules:
            table.update(module.kinds(Path(name)))
        unknown = set(options.kind or ()) - set(table)
        if unknown:
            parser.error(f"no kinds: {', '.join(sorted(unknown))}; expected {', '.join(table)}")
        wanted = options.kind or list(table)
        if options.together is not None:
            options.seconds = max(0.5, options.together / len(wanted))
        for kind in wanted:
            failed += in_a_process(kind, table[kind], atheris, options)
    print(f"fuzz: {len(wanted)} kinds of files and requests, {failed} failed")
    return 1 if failed else 0


def in_a_process(name: str, kind: Kind, atheris: Any, options: argparse.Namespace) -> bool:
    """Whether a kind failed, in a process of its own, which may die, and which libFuzzer's engine ends."""
    print(f"{name}:", flush=True)
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] != 0
    status = 1
    try:
        try_seeds(name, kind, options)
        status = by_chance(name, kind, options) if atheris is None else by_coverage(name, kind, atheris, options)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def try_seeds(name: str, kind: Kind, options: argparse.Namespace) -> None:
    """Seeds and what once failed: at least one seed is read, or nothing of what follows would mean anything."""
    read = []
    for data in [*kind.seeds, *kept_files(name)]:
        try:
            read.append(read_once(kind, data, options.slow))
        except BaseException:
            save(options.out, name, data)
            raise
    if not any(read[: len(kind.seeds)]):
        kind.path.write_bytes(kind.pack(kind.seeds[0]))
        kind.read(kind.path)  # raises what is wrong with it
        raise AssertionError("no seed is read")


def by_chance(name: str, kind: Kind, options: argparse.Namespace) -> int:
    contents = 8 * kind.seeds + kept_files(name)
    chance = random.Random(f"{options.seed} {name}")
    counts, failures, open_files = [0, 0], 0, Descriptors()
    began = time.monotonic()
    while sum(counts) < options.iterations and time.monotonic() - began < options.seconds:
        data = damage.damaged(chance, contents)
        try:
            counts[read_once(kind, data, options.slow)] += 1
            open_files.look()
        except KeyboardInterrupt:
            raise
        except BaseException:
            counts[0] += 1
            failures += 1
            save(options.out, name, data)
            traceback.print_exc()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}: {sum(counts)} files in {time.monotonic() - began:.0f} s: {counts[1]} read, {counts[0]} refused; "
        f"{peak:.0f} MB; {failures} failures"
    )
    return 1 if failures else 0


def by_coverage(name: str, kind: Kind, atheris: Any, options: argparse.Namespace) -> int:
    """Hand a kind to atheris; does not return."""
    corpus, seeds = options.out / "corpus" / name, options.out / "seeds" / name
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for data in [*kind.seeds, *kept_files(name)]:
        (seeds / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    open_files = Descriptors()

    def test_one_input(data: bytes) -> None:
        try:
            read_once(kind, data, options.slow)
            open_files.look()
        except BaseException:
            save(options.out, name, data)
            raise

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        said = damage.damaged_json(chance, data) if chance.random() < 0.5 else None
        return atheris.Mutate(data, most) if said is None or len(said) > most else said  # type: ignore[no-any-return]

    arguments = [
        f"-runs={options.iterations}",
        f"-max_total_time={int(min(options.seconds, 1e9)) or 1}",
        f"-seed={options.seed}",
    ]
    arguments += ["-max_len=8192", "-rss_limit_mb=3000", "-verbosity=0", "-print_final_stats=1"]
    arguments += [f"-timeout={int(12 * options.slow)}"]
    tokens = options.out / f"{name}.dict"
    tokens.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in damage.TOKENS))
    arguments += [f"-dict={tokens}", f"-artifact_prefix={options.out / name}-", str(corpus), str(seeds)]
    atheris.Setup([sys.argv[0], *arguments], test_one_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def kept_files(kind: str) -> list[bytes]:
    """Files of the repository: what reached most of the code, and what once failed."""
    with zipfile.ZipFile(ROOT / "fuzz" / "corpus.zip") as corpus:
        reached = [corpus.read(name) for name in sorted(corpus.namelist()) if name.startswith(f"{kind}/")]
    return reached + [path.read_bytes() for path in sorted((ROOT / "fuzz" / "regressions" / kind).glob("*"))]


def save(folder: Path, kind: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    print(f"{kind}: failed on {path}")


if __name__ == "__main__":
    sys.exit(main())
