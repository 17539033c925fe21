"""Kinds of files that models are made of: weights, settings, vocabularies."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import tokenizers  # noqa: F401 - before anything is watched
from watching import Kind

from qavit import text
from qavit._base import config, sentencepiece
from qavit._base.arguments import height_and_width
from qavit.checkpoints import _adapters as adapters
from qavit.checkpoints import _convert as checkpoints_convert
from qavit.checkpoints import _opening as checkpoints_opening
from qavit.checkpoints import _pictures as pictures
from qavit.checkpoints import _weights as weights
from qavit.checkpoints.formats import reading, safetensors_files, torch_files  # noqa: F401 - so that it is instrumented
from qavit.checkpoints.towers import halves
from qavit.images import Preprocessing, preprocess

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"
LATE = GOLDEN / "qavit_official_late"
QUESTION = "where is the red car?"
VOCABULARY = json.dumps({name: n for n, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "\u0120"])})


def kinds(folder: Path) -> dict[str, Kind]:
    """Each kind by its name; `folder` is where their files may be."""

    def place(name: str, *copied: Path) -> Path:
        made = folder / name.replace(".", "_")
        made.mkdir()
        for path in copied:
            shutil.copy(path, made)
        return made

    return {**_weights(place), **_settings(place), **_vocabularies(place)}


Place = Callable[..., Path]

# ---- weights ----


def _weights(place: Place) -> dict[str, Kind]:
    index = json.dumps({"metadata": {}, "weight_map": {f"a.{n}": f"model-{n}.safetensors" for n in range(4)}})
    return {
        "pickle": Kind(small_pickles(), place("pickle") / "x.pth", read_torch, pack_pickle),
        "torch": Kind(small_torch_files(), place("torch") / "x.pth", read_torch),
        "torchscript": Kind(small_scripts(), place("torchscript") / "x.pt", read_torch, pack_script),
        "safetensors": Kind(small_safetensors(), place("safetensors") / "x.safetensors", read_safetensors),
        "index": Kind([index.encode()], place("index") / "x.index.json", safetensors_files.index_files),
    }


def read_torch(path: Path) -> None:
    for tensor in reading.open_weights(path).tensors.values():
        weights.raw_array(weights.weight_of(tensor))


def pack_pickle(pickled: bytes) -> bytes:
    """The damaged pickle in an archive that is whole."""
    return hostile.archive(pickled) if len(pickled) % 3 else hostile.legacy(pickled, {"0": (4, bytes(16))})


def pack_script(content: bytes) -> bytes:
    """The damaged pickle as a TorchScript archive's, where it is no archive itself."""
    program = {"archive/code/__torch__.py": b"class M(Module):\n  pass\n", "archive/constants.pkl": b"\x80\x02)."}
    return content if content[:2] == b"PK" else hostile.archive(content, others={**program, "archive/version": b"3\n"})


def read_safetensors(path: Path) -> None:
    for weight in safetensors_files.open_safetensors(path).values():
        weights.raw_array(weight)


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


def small_scripts() -> list[bytes]:
    """A tree of modules, as OpenAI's CLIP was published: objects of classes that only the archive's program knows."""

    def module(name: str, **attributes: bytes) -> bytes:
        items = b"".join(hostile.value(key) + value for key, value in attributes.items())
        return hostile.name("__torch__", name) + b")\x81}(" + items + b"ub"

    numbers = hostile.call(hostile.name("torch.jit._pickle", "build_intlist"), hostile.value([7, 7]))
    inner = module(
        "___torch_mangle_0.Linear", weight=hostile.tensor(size=(2, 2), stride=(2, 1)), training=hostile.value(False)
    )
    outer = module(
        "M", training=hostile.value(True), visual=inner, logit_scale=hostile.tensor(size=(), stride=()), size=numbers
    )
    pickled = b"\x80\x02" + outer + b"."
    return [pickled, pack_script(pickled)]


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


# ---- settings ----


def _settings(place: Place) -> dict[str, Kind]:
    source = checkpoints_opening.open_model(checkpoint=LATE / "checkpoint.pth", vision=LATE / "clip", text=LATE / "t5")
    converted = place("models") / "converted"
    checkpoints_convert.convert(source, converted)
    said = (LATE / "clip" / "preprocessor_config.json").read_bytes()
    inner = json.dumps({"image_processor": {**json.loads(said), "image_processor_type": "SiglipImageProcessor"}}).encode()
    dino = b'{"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 224, "width": 224}, "resample": 2}'
    clips = [(GOLDEN / name).read_bytes() for name in ("methods_clip/config.json", "methods_siglip/config.json")]
    example = Path(config.__file__).parents[1] / "lavis" / "qavit_config_example.yaml"
    return {
        "config": Kind(
            [(converted / "config.json").read_bytes()],
            converted / "config.json",
            lambda path: checkpoints_opening.open_model(path.parent),
        ),
        "processor": Kind(
            [said, b'{"size": 224, "image_mean": 0.5, "do_pad": true}', dino],
            place("processor") / "preprocessor_config.json",
            read_processor,
        ),
        "processor_config": Kind([inner], place("processor_config") / "processor_config.json", read_processor),
        "timm": Kind(
            [
                b'{"pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 1, "std": [1, 2, 1], "crop_mode": "center"}}',
            ],
            place("timm") / "config.json",
            read_processor,
        ),
        "open_clip": Kind(
            [
                b'{"model_cfg": {}, "preprocess_cfg": {"size": 224, "mean": [0.5, 0.5, 0.5], "resize_mode": "squash"}}',
                *((GOLDEN / "open_clip" / name / "open_clip_config.json").read_bytes() for name in ("clipa", "quickgelu")),
            ],
            place("open_clip") / "open_clip_config.json",
            read_open_clip,
        ),
        "clip_config": Kind(
            clips, place("clip_config") / "config.json", lambda path: halves._settings(path.parent, "vision")
        ),
        "adapter": Kind(
            [b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q", "v"], "alpha_pattern": {"q": 2}}'],
            place("adapter") / "adapter_config.json",
            lambda path: adapters.adapter_settings(adapters.read_json_object(path), str(path)),
        ),
        "settings": Kind(
            [example.read_bytes(), b"a: &a [1, 2.5, ~]\nb: {c: *a, <<: {d: 0x1}}\n"],
            place("settings") / "x.yaml",
            config.Config.from_file,
        ),
        "settings.json": Kind(
            [b'{"model": {"path": "demo", "block_num": 7}, "list": [1, null]}'],
            place("settings.json") / "x.json",
            config.Config.from_file,
        ),
    }


PICTURE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def read_processor(path: Path) -> None:
    """The settings, then a picture that is made by them."""
    size = pictures.folder_size(path.parent, 224)
    if max(height_and_width(size)) > 512:  # a large model's; nothing is wrong with it
        size = 224
    made = pictures.folder_preprocessing(path.parent, "clip", size, None, {})
    preprocessing = Preprocessing.from_dict(made)
    if max(np.ravel(preprocessing.resize_to or 0)) <= 2048:
        pixels, _ = preprocess(PICTURE, preprocessing)
        assert pixels.shape == (3, *height_and_width(size))
        assert np.isfinite(pixels).all()
    pictures.folder_preprocessing(path.parent, "clip", size, 96, {})


def read_open_clip(path: Path) -> None:
    halves._settings(path.parent, "vision")
    read_processor(path)


# ---- vocabularies ----


def _vocabularies(place: Place) -> dict[str, Kind]:
    bert = GOLDEN / "blip_itm" / "vocab.txt"
    pairs = place("pairs")
    (pairs / "merges.txt").write_bytes(b"a b\n")
    merges = place("merges")
    (merges / "vocab.json").write_text(VOCABULARY)
    beside = place("tokenizer_config", bert)
    t5 = place("t5", GOLDEN / "unifiedqa_fid" / "tokenizer_config.json")
    title = b'"bpe_simple_vocab_16e6.txt#version: 0.2\n'
    return {
        "tokenizer": Kind(
            [(LATE / "t5" / "tokenizer.json").read_bytes()], place("tokenizer") / "tokenizer.json", read_tokenizer
        ),
        "vocab.txt": Kind([bert.read_bytes()], place("vocab.txt") / "vocab.txt", read_tokenizer),
        "vocab.json": Kind([VOCABULARY.encode()], pairs / "vocab.json", read_tokenizer),
        "merges": Kind([b"#version: 0.2\na b\n"], merges / "merges.txt", lambda path: read_tokenizer(path.parent)),
        "pairs.gz": Kind(
            [title + b"a b\nab c</w>\n"],
            place("pairs.gz") / "bpe_simple_vocab_16e6.txt.gz",
            read_tokenizer,
            pack_gzip,
        ),
        "sentencepiece": Kind(small_sentencepiece(), place("sentencepiece") / "spiece.model", read_sentencepiece),
        "spiece": Kind([golden_pieces()], t5 / "spiece.model", read_sentencepiece),
        "tokenizer_config": Kind(
            [
                b'{"do_lower_case": false, "strip_accents": true, "unk_token": "[UNK]", "model_max_length": 512}',
                b'{"added_tokens_decoder": {"3": {"content": "[SEP]", "special": true}}, "never_split": ["where"]}',
            ],
            beside / "tokenizer_config.json",
            lambda path: read_tokenizer(path.parent),
        ),
    }


def read_tokenizer(path: Path) -> None:
    tokenizer = text.Tokenizer.from_folder(path)
    with_name(path, lambda: tokenizer.decode(tokenizer.encode([QUESTION, ""], 30).ids[0].tolist()))


def read_sentencepiece(path: Path) -> None:
    """The model and its normaliser's table by themselves, then the tokenizer that is built of it."""
    model = sentencepiece.read_sentencepiece(path.read_bytes(), str(path))
    if model.charsmap:
        with_name(path, lambda: sentencepiece.CharsMap(model.charsmap).replace("where is\u3000the \ufb01re cafe\u0301?"))
    with_name(path, lambda: read_tokenizer(path))


def with_name(path: Path, act: Callable[[], object]) -> None:
    """What is asked of an object that was read need not name the file any more."""
    try:
        act()
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ValueError(f"{path}: {error}") from error


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


def golden_pieces() -> bytes:
    """The first pieces and the trainer's settings of a T5's own file, without its large table."""
    data, kept, at, count = (GOLDEN / "unifiedqa_fid" / "spiece.model").read_bytes(), b"", 0, 0
    while at < len(data):
        began, number = at, data[at] >> 3
        size, at = sentencepiece._varint(memoryview(data), at + 1)
        at += size
        count += number == 1
        if (number == 1 and count <= 120) or number == 2:
            kept += data[began:at]
    return kept


def pack_gzip(content: bytes) -> bytes:
    """The damaged content, packed, where it is no gzip file itself."""
    if content[:2] == b"\x1f\x8b":
        return content
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=1) as file:
        file.write(content)
    return buffer.getvalue()
