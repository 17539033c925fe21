"""Damage to every kind of file that Python code of qavit reads: each must be read, or refused with a ValueError.

    python fuzz/fuzz_files.py [--kind KIND ...] [--iterations N] [--seconds S] [--seed N] [--out FOLDER]

Guided by the coverage of qavit's code where atheris is installed (libFuzzer's engine for Python; one process a kind),
by chance alone with --random. Both begin with the kind's seeds, KIND/ in fuzz/corpus.zip, and fuzz/regressions/KIND.

While a file is read, an audit hook watches: starting a program, running or compiling code, connecting anywhere, or
opening a file for writing counts as a failure, as does any other exception, more memory than --memory allows, or a call
that takes longer than --slow seconds. What failed is written to the --out folder, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import hostile  # noqa: E402
import numpy as np  # noqa: E402
import tokenizers  # noqa: E402, F401

atheris: Any = None
if "--guided" in sys.argv:
    import atheris
with nullcontext() if atheris is None else atheris.instrument_imports(include=["qavit"]):
    from qavit import text
    from qavit._base import config, sentencepiece
    from qavit.checkpoints import _convert as checkpoints_convert
    from qavit.checkpoints import _opening as checkpoints_opening
    from qavit.checkpoints import _pictures as pictures
    from qavit.checkpoints import _weights as weights
    from qavit.checkpoints.formats import reading, safetensors_files

GOLDEN = ROOT / "tests" / "data" / "golden"
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "exec", "compile", "socket.connect")
TOKENS = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"tR",
    b")R", b"R", b"b", b"\x81", b"\x93", b"Q", b"(", b"t", b"}", b"]", b"2", b"\x85", b"\x86", b"h\x00", b"q\x00",
    b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff", b"\x95" + b"\xff" * 8, b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06",
    b"PK\x06\x07", b"\xff" * 8, bytes(8), b"../", b'"', b"{", b"[", b"]}", b'"shape"', b'"F32"', b'"data_offsets"', b"-1",
    b"1e999", b"NaN", b"18446744073709551616", b"null", b"true", b"\\ud800",
]  # fmt: skip


class Found(Exception):
    """Something that reading a file must not do."""


class Watch:
    """Raises where code is run or a file is written while it is on."""

    def __init__(self) -> None:
        self.on = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        writing = event == "open" and isinstance(arguments[1], str) and any(mode in arguments[1] for mode in "wax+")
        if event in FORBIDDEN or writing:
            self.on = False
            raise Found(f"{event}: {arguments!r:.200}")


WATCH = Watch()
for encoding in ("cp437", "latin1", "utf-16", "utf-32", "raw_unicode_escape"):
    "a".encode(encoding)  # a codec's module is imported (which runs code) when it is first used


def read_torch(path: Path) -> None:
    for tensor in reading.open_weights(path).tensors.values():
        weights.raw_array(weights.weight_of(tensor))


def read_pickle(path: Path) -> None:
    """The damaged pickle in an archive that is whole, so that its checksum does not hide it from the interpreter."""
    pickled = path.read_bytes()
    path.write_bytes(hostile.archive(pickled) if len(pickled) % 3 else hostile.legacy(pickled, {"0": (4, bytes(16))}))
    WATCH.on = True
    read_torch(path)


def read_safetensors(path: Path) -> None:
    for weight in safetensors_files.open_safetensors(path).values():
        weights.raw_array(weight)


def read_tokenizer(path: Path) -> None:
    text.Tokenizer.from_folder(path).encode(["where is the red car?", ""], 30)


def small_pickles() -> list[bytes]:
    tensors = [
        hostile.tensor(),
        hostile.tensor(offset=1, size=(1, 2), stride=(2, 1)),
        hostile.tensor(size=(0, 3), stride=(3, 1)),
    ]
    plain = hostile.value([1, "x", None, {"k": (2.5, True)}, b"bytes"])
    namespace = hostile.name("argparse", "Namespace") + b")\x81" + hostile.value({"lora_alpha": 8}) + b"b"
    pickled = hostile.entries(a=tensors[0], b=tensors[1], c=tensors[2], d=plain, e=namespace)
    return [pickled, pickle.dumps({"a": [1, 2, {"b": b"c"}], "d": {3, 4}, "e": 1 << 70}, 4)]


def small_torch_files() -> list[bytes]:
    pickled = small_pickles()[0]
    return [
        hostile.archive(pickled),
        hostile.archive(pickled, compression=zipfile.ZIP_DEFLATED),
        hostile.legacy(pickled, {"0": (4, bytes(16))}),
    ]


def small_safetensors() -> list[bytes]:
    made = {
        "a.weight": weights.from_array(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "b": weights.cast(weights.from_array(np.ones((4, 1), np.float32)), "bfloat16"),
        "empty": weights.from_array(np.ones((0, 2), np.float16)),
    }
    with tempfile.TemporaryFile() as file:
        safetensors_files.write_safetensors(file, made, {name: weight[1] for name, weight in made.items()})
        file.seek(0)
        return [file.read()]


def folder_reader(folder: Path, file: str) -> Callable[[Path], None]:
    """Reads a converted folder in which one file is the damaged one."""

    def read(path: Path) -> None:
        shutil.copyfile(path, folder / file)
        checkpoints_opening.open_model(folder)

    return read


def read_sentencepiece(path: Path) -> None:
    """The model and its normaliser's table by themselves, then the tokenizer that is built of it."""
    model = sentencepiece.read_sentencepiece(path.read_bytes(), str(path))
    if model.charsmap:
        sentencepiece.CharsMap(model.charsmap).replace("where is\u3000the \ufb01re cafe\u0301?")
    read_tokenizer(path)


def small_sentencepiece() -> list[bytes]:
    """A model of a few pieces, with a table that turns a into b and ab into nothing."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str, kind: int, score: float = 0.0) -> bytes:
        content = field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
        return field(1, content)

    pieces = piece("<pad>", 3) + piece("</s>", 3) + piece("<unk>", 2)
    pieces += b"".join(piece(text, 1, -1.0 - n) for n, text in enumerate(("\u2581", "a", "b", "\u2581a", "ab", "<0x41>")))
    units = [0] * 256
    units[0] = 1 << 10
    units[1 ^ 0x61] = 0x61 | 1 << 8 | (0x70 ^ (1 ^ 0x61)) << 10
    units[0x70] = 1 << 31
    table = struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b"b\0\0"
    normalizer = b"\x12" + bytes([len(table) & 0x7F | 0x80, len(table) >> 7]) + table + b"\x18\x01\x20\x01\x28\x01"
    size = bytes([len(normalizer) & 0x7F | 0x80, len(normalizer) >> 7])
    return [pieces, pieces + b"\x12\x02\x18\x02", pieces + b"\x1a" + size + normalizer]


def settings_reader(folder: Path, file: str) -> Callable[[Path], None]:
    """Reads a folder whose settings of pictures, tokenizer or adapter are the damaged ones."""

    def read(path: Path) -> None:
        shutil.copyfile(path, folder / file)
        if file.endswith(("processor_config.json", "preprocessor_config.json", "open_clip_config.json")):
            pictures.folder_preprocessing(folder, "clip", 224, None, {})
        else:
            text.Tokenizer.from_folder(folder).encode(["where is the red car?"], 30)

    return read


def settings_folder(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    shutil.copy(GOLDEN / "blip_itm" / "vocab.txt", made)
    return made


def pairs_reader(folder: Path) -> Callable[[Path], None]:
    vocabulary = json.dumps({name: n for n, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "\u0120"])})

    def read(path: Path) -> None:
        content = path.read_bytes()
        as_merges = content.startswith(b"#version")
        (folder / "merges.txt").write_bytes(content if as_merges else b"a b\n")
        (folder / "vocab.json").write_bytes(vocabulary.encode() if as_merges else content)
        text.Tokenizer.from_folder(folder).encode(["ab a"], 30)

    return read


def kinds(folder: Path) -> dict[str, tuple[list[bytes], str, Callable[[Path], None]]]:
    """name -> (contents to start from, file name, reader)."""
    late = GOLDEN / "qavit_official_late"
    converted = folder / "converted"
    source = checkpoints_opening.open_model(checkpoint=late / "checkpoint.pth", vision=late / "clip", text=late / "t5")
    checkpoints_convert.convert(source, converted)
    pairs = folder / "pairs"
    pairs.mkdir()
    vocabulary = json.dumps({name: n for n, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "\u0120"])})
    index = json.dumps({"metadata": {}, "weight_map": {f"a.{n}": f"model-{n}.safetensors" for n in range(4)}})
    return {
        "pickle": (small_pickles(), "x.pth", read_pickle),
        "torch": (small_torch_files(), "x.pth", read_torch),
        "safetensors": (small_safetensors(), "x.safetensors", read_safetensors),
        "index": ([index.encode()], "x.index.json", lambda path: [None, safetensors_files.index_files(path)][0]),
        "config": ([(converted / "config.json").read_bytes()], "x.json", folder_reader(converted, "config.json")),
        "tokenizer": ([(late / "t5" / "tokenizer.json").read_bytes()], "tokenizer.json", read_tokenizer),
        "vocab.txt": ([(GOLDEN / "blip_itm" / "vocab.txt").read_bytes()], "vocab.txt", read_tokenizer),
        "sentencepiece": (small_sentencepiece(), "spiece.model", read_sentencepiece),
        "processor": (
            [(late / "clip" / "preprocessor_config.json").read_bytes(), b'{"size": 224, "image_mean": 0.5, "do_pad": true}'],
            "x.json", settings_reader(settings_folder(folder, "processor"), "preprocessor_config.json"),
        ),
        "open_clip": (
            [b'{"model_cfg": {}, "preprocess_cfg": {"size": 224, "mean": [0.5, 0.5, 0.5], "resize_mode": "squash"}}'],
            "x.json", settings_reader(settings_folder(folder, "open_clip"), "open_clip_config.json"),
        ),
        "tokenizer_config": (
            [
                b'{"do_lower_case": false, "strip_accents": true, "unk_token": "[UNK]", "model_max_length": 512}',
                b'{"added_tokens_decoder": {"3": {"content": "[SEP]", "special": true}}, "never_split": ["where"]}',
            ],
            "x.json", settings_reader(settings_folder(folder, "tokenizer_config"), "tokenizer_config.json"),
        ),
        "vocab.json": ([vocabulary.encode(), b"#version: 0.2\na b\n"], "x", pairs_reader(pairs)),
        "settings": (
            [
                (ROOT / "qavit" / "lavis" / "qavit_config_example.yaml").read_bytes(),
                b"a: &a [1, 2.5, ~]\nb: {c: *a, <<: {d: 0x1}}\n",
            ],
            "x.yaml", config.Config.from_file,
        ),
        "settings.json": (
            [b'{"model": {"path": "demo", "block_num": 7}, "list": [1, null]}'], "x.json", config.Config.from_file,
        ),
    }  # fmt: skip


def mutate(chance: random.Random, contents: list[bytes]) -> bytes:
    data = bytearray(chance.choice(contents))
    for _ in range(chance.choice((1, 1, 2, 3, 5, 12))):
        position = chance.randrange(len(data) + 1)
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[position % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[position % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            del data[position : position + chance.choice((1, 2, 4, 30))]
        elif kind == 3:
            data[position:position] = chance.choice(TOKENS)
        elif kind == 4:
            token = chance.choice(TOKENS)
            data[position : position + len(token)] = token
        elif kind == 5:
            data[position:position] = data[position : position + chance.choice((1, 8, 100))] * chance.choice((1, 2, 50))
        elif kind == 6:
            other = chance.choice(contents)
            start = chance.randrange(len(other))
            data[position : position + 20] = other[start : start + 20]
        elif chance.random() < 0.2:
            del data[position:]
        if len(data) > 1 << 20:
            del data[1 << 20 :]
    return bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", nargs="*", help="which kinds of files (all)")
    parser.add_argument("--iterations", type=int, default=1000, help="files of each kind (1000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop each kind after this long")
    parser.add_argument("--random", action="store_true", help="by chance alone, also where atheris is installed")
    parser.add_argument("--guided", type=Path, help=argparse.SUPPRESS)  # one kind, in a process of its own: its folder
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow", type=float, default=10.0, help="seconds that count as a failure (10)")
    parser.add_argument("--memory", type=float, default=8.0, help="GB of address space (8)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz", help="where failing files go")
    options = parser.parse_args()
    limit = int(options.memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if options.guided is not None:
        fuzz_guided(options)
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        table = kinds(Path(name))
        if not options.random and importlib.util.find_spec("atheris") is not None:
            return max([run_guided(kind, options) for kind in options.kind or table], default=0)
        for kind in options.kind or table:
            contents, file, read = table[kind]
            contents = 8 * contents + kept_files(kind)
            path = Path(name) / file
            chance = random.Random(f"{options.seed} {kind}")
            refused = whole = 0
            began = time.monotonic()
            while refused + whole < options.iterations and time.monotonic() - began < options.seconds:
                data = mutate(chance, contents)
                path.write_bytes(data)
                start = time.monotonic()
                try:
                    # The folder readers copy the file first, so the hook is armed by the readers' own parsers' calls only.
                    WATCH.on = kind in WATCHED
                    read(path)
                    whole += 1
                except (ValueError, FileNotFoundError):
                    refused += 1
                except BaseException as err:
                    WATCH.on = False
                    if isinstance(err, KeyboardInterrupt):
                        raise
                    failures += 1
                    refused += 1
                    save(options.out, kind, data)
                    traceback.print_exc()
                finally:
                    WATCH.on = False
                if time.monotonic() - start > options.slow:
                    failures += 1
                    save(options.out, kind, data)
                    print(f"{kind}: took {time.monotonic() - start:.1f} s")
            seconds = time.monotonic() - began
            print(f"{kind}: {refused + whole} files in {seconds:.0f} s: {whole} read, {refused} refused", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MB; {failures} failures")
    return 1 if failures else 0


WATCHED = ("torch", "safetensors", "index", "tokenizer", "vocab.txt", "sentencepiece")


def kept_files(kind: str) -> list[bytes]:
    """Files of the repository: what reached most of the code, and what once failed."""
    with zipfile.ZipFile(ROOT / "fuzz" / "corpus.zip") as corpus:
        reached = [corpus.read(name) for name in sorted(corpus.namelist()) if name.startswith(f"{kind}/")]
    return reached + [path.read_bytes() for path in sorted((ROOT / "fuzz" / "regressions" / kind).glob("*"))]


def run_guided(kind: str, options: argparse.Namespace) -> int:
    """One kind in a process of its own, which libFuzzer's engine ends."""
    print(f"{kind}:", flush=True)
    command = [sys.executable, __file__, "--kind", kind, "--out", str(options.out), "--seed", str(options.seed)]
    command += ["--iterations", str(options.iterations), "--seconds", str(min(options.seconds, 1e9))]
    command += ["--slow", str(options.slow)]
    with tempfile.TemporaryDirectory() as name:
        return 1 if subprocess.run([*command, "--guided", name], check=False).returncode else 0


def fuzz_guided(options: argparse.Namespace) -> None:
    """Hand one kind to atheris; does not return."""
    (kind,) = options.kind
    contents, file, read = kinds(options.guided)[kind]
    path = options.guided / file
    corpus, seeds = options.out / "corpus" / kind, options.out / "seeds" / kind
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for data in [*contents, *kept_files(kind)]:
        (seeds / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def test_one_input(data: bytes) -> None:
        path.write_bytes(data)
        try:
            WATCH.on = kind in WATCHED
            read(path)
        except (ValueError, FileNotFoundError):
            pass
        finally:
            WATCH.on = False

    arguments = [f"-runs={options.iterations}", f"-max_total_time={int(options.seconds)}", f"-seed={options.seed}"]
    arguments += ["-max_len=8192", "-rss_limit_mb=4096", "-verbosity=0", "-print_final_stats=1"]
    arguments += [f"-timeout={int(2 * options.slow)}"]
    tokens = options.out / f"{kind}.dict"
    tokens.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in TOKENS))
    arguments += [f"-dict={tokens}", f"-artifact_prefix={options.out / kind}-", str(corpus), str(seeds)]
    atheris.Setup([sys.argv[0], *arguments], test_one_input)
    atheris.Fuzz()


def save(folder: Path, kind: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind.replace('.', '-')}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    print(f"{kind}: failed on {path}")


if __name__ == "__main__":
    sys.exit(main())
