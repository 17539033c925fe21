"""What tests/test_leaks.py calls: every public function, on inputs as small as they come.

FUNCTIONS: name -> (call, how many times fewer than the others it is made). `fewer` is 1 but for what takes more than 15 ms,
which is other libraries' time: from 50 on (new processes) in a long run too, below that (figures) in the suite alone.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import hostile
import numpy as np
from data_sets import make_rows, write_lines, write_pictures
from decoders import Scattered
from PIL import Image
from serving import Served
from small_models import write_qavit
from stand_ins import StandInCaptioner, StandInReader
from test_answers import Live
from test_array_arguments import CALLS as ARRAY_CALLS
from test_array_arguments import (
    GOLDEN,
    QUESTIONS,
    SIDE,
    blip,
    captioner,
    floats,
    ids,
    image_state,
    picture,
    pnpvqa,
    small,
    unit,
)

import qavit
import qavit.data
import qavit.generation
import qavit.serve
from qavit import PNPVQA, BlipCaptioner, PNPVQAWithQAViT, _core, images, text
from qavit import _demo as demo_module
from qavit import _heatmap_demo as heatmap_demo
from qavit import _result as result_module
from qavit._base import arguments, files, progress, system, tensors
from qavit._base.progress import duration
from qavit._demo import demo_model
from qavit._heatmap_demo import QAViTHeatmapDemo
from qavit.answers import _parts as answer_parts
from qavit.checkpoints import _hub as hub
from qavit.checkpoints import _source as checkpoints_source
from qavit.checkpoints import _weights as weights
from qavit.checkpoints import convert, describe, open_model
from qavit.checkpoints._describe import description_text
from qavit.checkpoints.formats import safetensors_files
from qavit.checkpoints.formats.reading import open_folder, open_weights
from qavit.checkpoints.towers import bert, clip
from qavit.cli import _main as cli_main
from qavit.data import _output as data_output
from qavit.data import _plan as plan
from qavit.generation._decoding import Decoding
from qavit.generation._draws import Draws, draw_patches
from qavit.generation._loops import decode
from qavit.heatmaps import _grid as heatmaps_grid
from qavit.images import Preprocessing, Region
from qavit.lavis import _matcher as lavis_matcher
from qavit.lavis import _modules as lavis_modules
from qavit.lavis import _replace as lavis_replace
from qavit.lavis import _stored as lavis_stored
from qavit.methods import attention as methods
from qavit.metrics import _pointing as metrics_pointing
from qavit.metrics import map_difference, sanity_checks
from qavit.models import _devices as devices
from qavit.plots import _figures as plots_figures
from qavit.plots import _look as plots_look
from qavit.plots import _page as html
from qavit.plots import _sheet as plots_sheet

# ---- what the calls are made on ----


@cache
def place() -> Path:
    """A folder that `clean_up` removes."""
    return Path(tempfile.mkdtemp(prefix="qavit-leaks-"))


def clean_up() -> None:
    shutil.rmtree(place())
    place.cache_clear()


@cache
def folder() -> Path:
    return write_qavit(place() / "model", blocks=3, image_size=14, patch=7, width=8)


def picture_file(ending: str, **options: Any) -> str:
    path = place() / f"photo.{ending}"
    if not path.exists():
        Image.fromarray(np.kron(picture(), np.ones((2, 2, 1), np.uint8))).save(path, **options)
    return str(path)


@cache
def photo() -> str:
    exif = Image.Exif()
    exif[274] = 6
    return picture_file("jpg", exif=exif)


@cache
def damaged(ending: str) -> bytes:
    data = bytearray(Path(picture_file(ending)).read_bytes())
    return bytes(data[: len(data) // 2])


@cache
def made() -> result_module.HeatmapResult:
    return small().heatmaps(photo(), QUESTIONS)


@cache
def one() -> result_module.HeatmapResult:
    """For figures: one question, a picture of 22 x 18."""
    return small().heatmaps(photo(), "what")


@cache
def demo_once() -> Any:
    return demo_model()


LATE = GOLDEN / "qavit_official_late"


@cache
def late() -> dict[str, Path]:
    """The files of LATE without the decoder and with two of six blocks: a pickle takes 0.1 ms a tensor to read."""
    import torch

    target = place() / "late"
    shutil.copytree(LATE / "clip", target / "clip")
    config = json.loads((LATE / "clip" / "config.json").read_text())
    (target / "clip" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    stored = torch.load(LATE / "checkpoint.pth", map_location="cpu", weights_only=True)
    kept = {
        name.replace("encoder.layers.3.", "encoder.layers.1."): tensor
        for name, tensor in stored["model"].items()
        if not re.search(r"decoder|encoder\.layers\.[1245]\.", name)
    }
    torch.save({**stored, "model": kept}, target / "checkpoint.pth")
    return {"checkpoint": target / "checkpoint.pth", "vision": target / "clip", "text": LATE / "t5"}


def open_late(**options: Any) -> checkpoints_source.ModelSource:
    return open_model(**late(), **options)


@cache
def blip_settings() -> dict[str, Any]:
    facts = json.loads((GOLDEN / "blip_itm" / "cases.json").read_text())
    text_encoder, vision = {**facts["med_config"], "num_hidden_layers": 1}, {**facts["vit"], "depth": 1}
    return {"text": text_encoder, "vision": vision, "max_txt_len": facts["max_txt_len"]}


@cache
def blip_checkpoint() -> Path:
    """With the first block of each encoder."""
    import torch

    stored = torch.load(GOLDEN / "blip_itm" / "checkpoint.pth", map_location="cpu", weights_only=True)["model"]
    kept = {name: tensor for name, tensor in stored.items() if not re.search(r"\.(layer|blocks)\.[1-9]", name)}
    torch.save({"model": kept}, place() / "blip.pth")
    return place() / "blip.pth"


def load_blip() -> Any:
    return qavit.load(checkpoint=blip_checkpoint(), tokenizer=small_vocabulary(), image_size=32, config=blip_settings())


@cache
def converted_int8() -> Path:
    return convert(open_model(folder()), place() / "folder of int8", "int8", calibrate=[floats(3, SIDE, SIDE)])


def resized() -> None:
    """A tower of another size, which lives longer than what it came from."""
    vit = qavit.load(folder())._vit
    patch = vit.patch_size
    other = vit.resized(patch, 2 * patch, np.zeros((2, vit.hidden_size), np.float32))
    del vit
    other.forward(np.zeros((1, 3, patch, 2 * patch), np.float32), hidden=(0,))
    refused(lambda: other.resized(patch, patch))()


@cache
def matcher(name: str) -> Any:
    """ALBEF or BLIP-2."""
    facts = json.loads((GOLDEN / name / "cases.json").read_text())
    config = {"vision": facts["vision"], "text": facts.get("qformer") or facts["bert"]}
    folder, size = GOLDEN / name, 2 * facts["vision"]["patch_size"]
    checkpoint, tokenizer = folder / "checkpoint.pth", folder / "vocab.txt"
    return qavit.load(checkpoint=checkpoint, tokenizer=tokenizer, image_size=size, config=config)


@cache
def answering_once() -> Any:
    folder = GOLDEN / "qavit_answer"
    files = {"checkpoint": folder / "checkpoint.pth", "vision": folder / "clip", "text": folder / "t5"}
    return qavit.load(**files, config={"lora_alpha": 8})


@cache
def blip_vqa_folder() -> Path:
    from test_blip_vqa import answering

    (place() / "blip_vqa").mkdir()
    answering(1, place() / "blip_vqa")
    return place() / "blip_vqa"


@cache
def blip_vqa() -> Any:
    return qavit.load(blip_vqa_folder())


def use_blip_vqa() -> None:
    model = blip_vqa()
    seen = model._core.encode_images(floats(1, 3, 32, 32))[0]
    model._core.image_from_embeddings(seen.embeddings)
    model.answer(photo(), QUESTIONS, max_new_tokens=3)
    model.answer(photo(), QUESTIONS, answers=["red", "the car"])
    model.heatmaps(photo(), QUESTIONS, answer="red", block=1)
    repr(model)


def use_matcher(name: str) -> None:
    model = matcher(name)
    model.heatmaps(photo(), QUESTIONS)
    model.itm(photo(), QUESTIONS)
    model.itc(photo(), QUESTIONS)
    repr((model, getattr(model, "num_queries", 0)))


@cache
def vocabulary() -> Path:
    path = place() / "vocabulary" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?"]) + "\n")
    return path


@cache
def small_vocabulary() -> Path:
    """As many tokens as the checkpoint's table has rows for."""
    return GOLDEN / "blip_itm" / "vocab.txt"


@cache
def pairs() -> Path:
    target = place() / "pairs"
    target.mkdir()
    names = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "\u0120"]
    (target / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (target / "merges.txt").write_text("#version: 0.2\na b\n")
    return target


def torch_file(name: str, content: bytes) -> Path:
    path = place() / name
    if not path.exists():
        path.write_bytes(content)
    return path


def pickled() -> bytes:
    record = hostile.name("argparse", "Namespace") + b")\x81" + hostile.value({"lora_alpha": 8}) + b"b"
    plain = hostile.value([1, ("x", None)])
    return hostile.entries(a=hostile.tensor(), b=hostile.tensor(offset=1, size=(2,)), c=plain, d=record)


def broken_pickle() -> bytes:
    return hostile.entries(a=hostile.call(hostile.name("os", "system"), hostile.value("true")))


@cache
def shards(stem: str, ending: str) -> Path:
    """Two files of weights with an index."""
    target = place() / f"shards, {ending}"
    target.mkdir()
    names = {"a": "1", "b": "2"}
    for name, number in names.items():
        if ending == "bin":
            (target / f"{number}.bin").write_bytes(hostile.archive(hostile.entries(**{name: hostile.tensor()})))
            continue
        with open(target / f"{number}.safetensors", "wb") as file:
            made_up = {name: weights.from_array(np.ones(3, np.float32))}
            safetensors_files.write_safetensors(file, made_up, {name: "float32"})
    table = {name: f"{number}.{ending}" for name, number in names.items()}
    (target / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": table}))
    return target


def encoder(kind: str) -> Any:
    """One of the core's text encoders, from sizes that its weights tell."""
    common = {
        "model_type": kind, "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 12, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    if kind == "clip_text_model":
        config = {**common, "hidden_act": "quick_gelu", "eos_token_id": 29, "projection_dim": 4}
        shapes = {**clip.clip_text_shapes(config), "text_projection.weight": (4, 8)}
        make = _core.ClipTextEncoder
    else:
        config = {**common, "hidden_act": "gelu", "type_vocab_size": 2, "pad_token_id": 0}
        shapes = {**bert.bert_shapes(config), "text_projection.weight": (4, 8)}
        make = _core.BertEncoder
    stored = {name: weights.from_array(np.full(shape, 0.1, np.float32)) for name, shape in shapes.items()}
    sizes = clip.clip_text_config if kind == "clip_text_model" else bert.bert_config
    return make(sizes(stored, config, kind), stored)


@cache
def encoder_once(kind: str) -> Any:
    return encoder(kind)


@cache
def text_reader() -> qavit.Reader:
    loaded = qavit.load(reader=GOLDEN / "unifiedqa_fid")
    assert isinstance(loaded, qavit.Reader)
    return loaded


def use_decoder(tokens: int) -> None:
    """Several rows over two memories, reordered, more of them than before."""
    decoder = text_reader()._decoder
    states = floats(40, decoder.cross_width)
    memories = [decoder.read(states, [30, 10]), decoder.read(states[:30], tokens=tokens)]
    picked = None if tokens else np.zeros((2, 4), np.int32)
    cache = decoder.begin(memories, 2, 6, np.array([0, 2], np.int32), picked)
    decoder.step(cache, np.ones((2, 2), np.int64), True)
    decoder.reorder(cache, np.array([1, 0, 1], np.int32))
    decoder.attend(cache, np.ones((3, 2), np.int64), [2, 1, 2])
    refused(lambda: decoder.step(cache, np.full((3, 1), 999)))()
    refused(lambda: decoder.reorder(cache, np.array([3], np.int32)))()
    refused(lambda: decoder.begin(memories, 0, 6))()
    refused(lambda: decoder.read(states * np.nan))()


@cache
def dual() -> Any:
    """Both halves of a small CLIP."""
    return qavit.load(GOLDEN / "methods_clip")


def use_dual() -> None:
    pixels = floats(2, 3, 48, 48)
    dual().encode_image(pixels), dual().encode_text(QUESTIONS), dual().similarity(pixels, QUESTIONS)
    dual().extract_attention(pixels[:1], QUESTIONS, method="gem", blocks=(6,))
    dual().forward_itm({"image": pixels, "text_input": QUESTIONS}, -1)


def use_methods() -> None:
    for method in dual().methods:
        dual().heatmaps(floats(1, 3, 48, 48), QUESTIONS, method=method)


def broken_weights() -> Any:
    source = open_model(folder())
    tensors = {name: weight for name, weight in source.weights.items() if "fc2" not in name}
    return _core.Vit(dict(source.vision), tensors)


# ---- data sets ----


@cache
def questions(ending: str = "jsonl") -> Path:
    """Three questions about two pictures, one of which is not there."""
    names = write_pictures(place() / "pictures", 1)
    rows = [*make_rows(names, 2), {"id": "x", "image": "absent.png", "question": "what"}]
    path = place() / "pictures" / f"questions.{ending}"
    if ending == "jsonl":
        return write_lines(path, rows)
    if ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "csv":
        path.write_text("id,image,question\n" + "".join(f"{row['id']},{row['image']},{row['question']}\n" for row in rows))
    elif ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in (("0.jpg", Path(photo()).read_bytes()), ("0.txt", b"what"), ("1.txt", b"no picture")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


@cache
def broken_questions() -> Path:
    path = place() / "pictures" / "broken.json"
    path.write_bytes(questions("json").read_bytes()[:-3])
    return path


def run_data(path: Path | None = None, **options: Any) -> qavit.data.RunSummary:
    out = place() / "run"
    shutil.rmtree(out, ignore_errors=True)
    return qavit.data.run(path or questions(), out, model=folder(), part_rows=2, window=2, events=True, **options)


def run_quietly(call: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call()


@cache
def maps() -> Path:
    out = place() / "maps"
    run_quietly(lambda: qavit.data.run(questions(), out, model=folder(), part_rows=2, events=True))
    return out


@cache
def actor() -> qavit.data.HeatmapActor:
    return qavit.data.HeatmapActor(folder())


@cache
def reader() -> qavit.data.MapReader:
    return qavit.data.read_maps(maps())


def row_of_output() -> qavit.data.MapRow:
    return qavit.data.MapRow("0", "a.png", "what", 2, (2, 2), unit(2, 2), None, None, 0.1)


def use_gradients() -> None:
    vit = small()._vit
    wanted = [(name, 1) for name in ("legrad", "gradcam", "class_gradient", "key_cosine", "hidden_gradient")]
    vit.gradients(
        floats(2, vit.tokens, vit.hidden_size), 0, floats(3, vit.projection_dim or vit.hidden_size), wanted=wanted,
        relevance=0, instruct=floats(2, 4, vit.instruction_dim), instruct_length=np.array([4, 2], np.int32),
    )  # fmt: skip


def use_evaluation() -> None:
    found = qavit.data.evaluate(None, place() / "evaluation", model=small(), again=True)
    str(found), found.to_dict(), found.to_csv()


def use_stand_ins() -> None:
    shutil.rmtree(place() / "stand_ins", ignore_errors=True)
    qavit.stand_in_weights("reader", place() / "stand_ins")


def use_comparison() -> None:
    found = qavit.data.compare(None, model=small(), against=type(small())(small()._source))
    str(found), found.to_dict(), found.to_csv()


def output_folder() -> None:
    said = {"grid": [2, 2], "block": 1, "method": "question", "questions": []}
    target = data_output.OutputFolder(place() / "output", said, plan.Shard(), 1, True)
    try:
        target.finish_input(0, 1, 1)
        target.count()
        target.part_path("00000-000000")
    finally:
        target.close()


# ---- the command line ----


def command(*words: str, code: int = 0) -> Callable[[], None]:
    """`qavit` with these words in this process; {model}, {photo} ... stand for the files above."""

    def act() -> None:
        known = {
            "model": folder(), "photo": photo(), "out": place() / "command", "questions": questions(),
            "late": LATE, "new": place() / "command" / "run",
        }  # fmt: skip
        known["out"].mkdir(exist_ok=True)
        shutil.rmtree(known["new"], ignore_errors=True)
        assert run_quietly(lambda: cli_main.main([word.format(**known) for word in words])) == code

    return act


DRAWN = ("--model", "{model}", "-o", "{out}")


def wrong_usage() -> None:
    try:
        run_quietly(lambda: cli_main.main(["heatmap", "--block", "first"]))
    except SystemExit:
        return
    raise AssertionError("it was taken")


def reader_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as raw, contextlib.redirect_stdout(io.TextIOWrapper(raw, write_through=True)):
        assert cli_main.main(["info"]) == 0


# ---- LAVIS ----


class Captioner:
    """What replace_forward_itm looks at."""

    def forward_itm(self, samples: dict[str, Any], block_num: int = 7) -> dict[str, Any]:
        return samples


def replace_and_restore(matcher: Any, side: int) -> None:
    model = Captioner()
    samples = {"image": floats(2, 3, side, side), "text_input": QUESTIONS}
    with lavis_replace.replace_forward_itm(model, matcher, block_num=2 if side == 14 else 1, grid=(3, 3)):
        model.forward_itm(samples)
        repr(model.forward_itm)


@cache
def live_module() -> Any:
    """A torch module with the names of LAVIS's, and its tokenizer."""
    import torch
    from test_lavis import Module, slow_tokenizer

    state = torch.load(GOLDEN / "blip_itm" / "checkpoint.pth", map_location="cpu", weights_only=True)["model"]
    return Module(state, slow_tokenizer())


@cache
def live_pixels() -> Any:
    import torch

    return torch.from_numpy(floats(1, 3, 384, 384))


# ---- the calls ----


def refused(call: Callable[[], Any]) -> Callable[[], None]:
    """A call that fails, for what is lost on the way out."""

    def act() -> None:
        try:
            call()
        except (ValueError, TypeError, LookupError, RuntimeError, OSError):
            return
        raise AssertionError("it was taken")

    return act


def where_there_is_one(move: Callable[[], Any]) -> None:
    """A move to a GPU, which most machines refuse."""
    with contextlib.suppress(ValueError, RuntimeError, OSError):
        move()


def set_and_get() -> None:
    qavit.set_num_threads(qavit.get_num_threads())


def use_decode() -> None:
    draws = Draws.of(1, floats(3, 4))
    prompt = np.ones((3, 2), np.int64)
    for how in (Decoding(6, 2), Decoding(6, 2, num_beams=2), Decoding(6, 2, do_sample=True)):
        decode(Scattered(9), 0, prompt, how, keys=draws.keys(np.arange(3)))
    draw_patches(np.ones(9), 3, draws.keys([0, 1]))
    _core.token_log_probabilities(floats(3, 9), np.ones((3, 1), np.int64))


def use_captioner(precision: Any = "float32") -> None:
    model, picture = BlipCaptioner(captioner()._source, precision=precision), floats(3, 32, 32)
    states = model.image_states(picture)
    model.logits(states, ids(), tokens=[1, 2])
    model.score(states, ["two cats", ""])
    model.generate(states, num_captions=2, num_beams=2, max_length=9)
    model.generate(picture, num_captions=3, weights=np.ones(4), num_patches=2, do_sample=True, max_length=9, heatmaps=True)
    model.heatmaps(picture, QUESTIONS[0])
    repr(model)


def use_config() -> None:
    config = qavit.Config({"model": {"path": "demo", "block_num": 2}})
    config["model"]["block_num"] = 3
    config.model.device = "cpu"
    del config["model"]["device"]
    assert list(config) == ["model"]
    assert len(config.model) == 2
    config.note = "a"
    del config.note
    repr(config), dir(config)
    config.to_dict()
    pickle.loads(pickle.dumps(config))


def use_attentions() -> None:
    seen = small().vision(floats(1, 3, 14, 14), floats(1, 4, 12), output_attentions=True, output_hidden_states=True)
    assert seen.hidden_states is not None
    assert isinstance(seen.attentions, tuple)
    own = small().vision(floats(1, 3, 14, 14), floats(1, 4, 12), blocks=(1, 2)).attentions
    assert isinstance(own, qavit.BlockAttentions)
    assert own.blocks == (1, 2)
    assert (len(own), repr(own)) == (2, "BlockAttentions(blocks [1, 2] of 3)")
    for values in [*own.values(), own[-1], *seen.attentions[1:]]:
        assert values.shape[-1] >= 5


def use_result() -> None:
    result = made()
    assert len(result) == len([*result]) == len(result[:2])
    result[0].normalized("minmax")
    result[QUESTIONS[1]].top_patches()
    result.statistics()
    result.patch(0, 1)
    result.to_dict()
    np.asarray(result)
    repr(result), result.picture_size, result.grid, result.seen


def use_file_of_result() -> None:
    path = place() / "result.npz"
    made().save(path)
    qavit.HeatmapResult.load(path)


def use_what_kinds_lack() -> None:
    values = floats(1, 3, 14, 14)
    small().methods, blip().methods
    asked: list[Callable[[], Any]] = [
        lambda: small().itm(values, "a"), lambda: small().itc(values, "a"), lambda: small().gradcam_tokens(values, "a"),
        lambda: blip().vision(values), lambda: blip().extract_attention(values), lambda: blip().encode_questions("a"),
        lambda: blip().answer(photo(), "a"), lambda: qavit.Model.forward_itm(small(), {}),
    ]  # fmt: skip
    for call in asked:
        with contextlib.suppress(TypeError):
            call()


def use_region() -> None:
    region = Region(0.0, 0.0, 11.0, 9.0)
    region.patch_at(*region.to_picture(0.1, 0.2), (2, 2))
    region.patch(1, 1, (2, 2))
    Preprocessing.from_dict(Preprocessing(14).fitted("pad").to_dict())


@cache
def stand_ins() -> tuple[StandInCaptioner, StandInReader, PNPVQA]:
    captioner, reader = StandInCaptioner(), StandInReader()
    return captioner, reader, PNPVQA(small(), captioner, reader)


def pnp_vqa() -> PNPVQA:
    captioner, reader, model = stand_ins()
    captioner.calls.clear()  # they remember what they were asked
    reader.calls.clear()
    return model


def use_pnp_vqa() -> None:
    model = PNPVQA.from_config(dict(zip(answer_parts.BLOCKS, (small(), StandInCaptioner(), StandInReader()))))
    model.predict_answers({"image": floats(2, 3, 24, 24), "text_input": QUESTIONS[:2]}, num_captions=2, num_patches=2)
    model.forward_itm({"image": floats(1, 3, 24, 24), "text_input": "what"})
    model.answer(photo(), "what", num_captions=2, num_patches=2)
    model.heatmaps(photo(), "what")
    model.check_options(seed=1)
    model.to("cpu").eval()
    named = (model.image_question_matching_model, model.image_captioning_model, model.question_answering_model, model.device)
    assert None not in named


def use_replaced_steps() -> None:
    live, captioner, reader = Live(), StandInCaptioner(), StandInReader()
    samples = {"image": floats(1, 3, 24, 24), "text_input": ["what"], "gradcams": unit(1, 9) + np.float32(0.1)}
    with lavis_replace.replace_forward_cap(live, captioner), lavis_replace.replace_forward_qa(live, reader):
        live.forward_cap(samples, num_captions=2, num_patches=2)  # type: ignore[call-arg]
        live.forward_qa(samples)
    with lavis_replace.replace_predict_answers(live, small(), captioner, reader):
        live.predict_answers(samples, num_captions=2, num_patches=2)  # type: ignore[call-arg]
    parts = {"image_captioning_model": captioner, "question_answering_model": reader}
    PNPVQAWithQAViT(small(), **parts).predict_answers(samples, num_captions=2, num_patches=2)


def use_explanation() -> None:
    found = pnp_vqa().explain(photo(), "what", num_captions=2, num_patches=2)
    str(found)
    found.to_dict()
    found.save(place() / "why.png")


def use_pnpvqa() -> None:
    model = PNPVQAWithQAViT(small(), block_num=2).to("cpu").cpu().eval()
    model.train(False)
    outputs = model.qavit_vision_model(
        floats(2, 3, 14, 14), model.encode_questions(QUESTIONS), output_attentions=True, output_hidden_states=True
    )
    assert outputs.hidden_states is not None
    outputs.last_hidden_state, outputs.pooler_output, [*outputs.attentions], outputs.attentions[:2]
    outputs.class_maps((1,))
    model.extract_qavit_attention(outputs)
    model.multi_scale_attention(outputs, (1, 2))
    repr(model), repr(outputs)


def use_reader() -> None:
    assert reader().complete
    assert len(reader()) == 3
    repr(reader())
    [row.map for row in reader()]
    [table.num_rows for table in reader().tables()]
    list(reader().errors())
    reader().to_numpy()


def use_stored(**options: Any) -> None:
    stored = lavis_stored.gradcams_from(maps(), **options)
    stored.maps(["q0", "q1"])
    stored({"question_id": ["q1"]})
    repr(stored)


def use_shard() -> None:
    shard = plan.Shard.parse("1/3")
    str(shard), shard.has_file(0, 1), shard.has_part(plan.Part(0, 1), 1)


def use_progress() -> None:
    going: progress.Progress[int] = progress.Progress([1, 2], "pictures")
    for _ in going:
        going.say("a")
    duration(3.0)
    system.usable_cpus()


def use_files() -> None:
    assert system.is_running(os.getpid())
    files.write_whole(place() / "whole", b"0123")
    system.sync_folder(place())
    files.remove_leftovers(folder())


def use_cache() -> None:
    cache_of_two: text.QuestionCache[int] = text.QuestionCache(2)
    for number in range(3):
        cache_of_two.put(str(number), number)
    assert cache_of_two.get("0") is None
    assert len(cache_of_two) == 2
    cache_of_two.clear()


def use_tokenizer() -> None:
    tokens = small()._tokenizer.encode(QUESTIONS, 30)
    text.words_with_tokens(tokens.words[0], tokens.word_of[0])
    small()._tokenizer.id_of("a")
    text.clean_question(" what? ", 3)


def use_hub() -> None:
    """A hub that has CLIP's files and nothing else."""

    def download(name: str, **_: Any) -> str:
        return str(LATE / "clip")

    asked = hub.Hub(asked=True, local_files_only=True)
    constants = SimpleNamespace(ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE=True)
    client = SimpleNamespace(snapshot_download=download, constants=constants)
    with mock.patch.dict(sys.modules, {"huggingface_hub": client, "huggingface_hub.constants": constants}):
        assert hub.model_folder("a/b", "path", asked) == LATE / "clip"
    with mock.patch.dict(sys.modules, {"huggingface_hub": None}):
        refused(lambda: hub.model_folder("a/b", "path", asked))()


def draw_axes() -> None:
    from matplotlib.figure import Figure

    one().plot(Figure(figsize=(1, 1)).subplots(), colorbar=False, title="")


def plot_anew() -> None:
    from matplotlib import pyplot

    pyplot.close(one().plot(kind="original", colorbar=False).get_figure())


def show_nowhere() -> None:
    import matplotlib

    matplotlib.use("Agg")
    one().show("original", colorbar=False)


def draw_once(name: str) -> Callable[[], Any]:
    return lambda: plots_figures.render(one().figure("original", caption="", colorbar=False), name, dpi=10)


def drawn_small(call: Callable[[], Any]) -> Callable[[], None]:
    """The call with each of its figures cut to its first panel without a bar, at 10 dots an inch: matplotlib's own time.

    What goes into the other panels and the bar is in the calls of one kind of figure each.
    """

    def act() -> None:
        from matplotlib.figure import Figure

        lay_out, save = plots_sheet._lay_out, Figure.savefig

        def one_panel(result: Any, panels: Any, look: Any, scale: Any, caption: Any) -> Any:
            return lay_out(result, replace(panels, cells=panels.cells[:1], per_row=1), look, None, [])

        def coarse(figure: Any, file: Any, **options: Any) -> None:
            save(figure, file, **{**options, "dpi": 10})

        with mock.patch.object(plots_sheet, "_lay_out", one_panel), mock.patch.object(Figure, "savefig", coarse):
            call()

    return act


def demo_files() -> None:
    with mock.patch.object(heatmap_demo, "_FIGURES", ("original",)):
        QAViTHeatmapDemo(small()).demo_single_image(photo(), "what", place() / "figures", block_num=2)


def demo_of_a_small_model() -> None:
    with mock.patch.object(demo_module, "FOLDER", folder()):
        command("demo", "-o", "{out}", "--image", "{photo}", "-q", "what")()


def drawing(kind: str) -> Callable[[], Any]:
    return lambda: one().figure(kind, top=1, colorbar=False)


FIGURES = [kind for kind in plots_look.KINDS if kind not in ("panels", "blocks")]


def use_picture_cache() -> None:
    """Filled, asked, bounded, emptied; some of it pushed out."""
    model = small()
    for limit in (2000, 256_000_000):
        model._picture_cache.limit = limit
        for seed in range(3):
            model.heatmaps(floats(1, 3, SIDE, SIDE, seed=seed), QUESTIONS)
        assert model.cache_info().entries
    model.cache_clear()


def use_picture_folder() -> None:
    """Written, read, pushed out, damaged, emptied."""
    there = place() / "kept"
    for limit in (20_000, "1MB"):
        model = qavit.load(folder(), cache=0, cache_dir=there, cache_dir_limit=limit)
        for seed in (0, 1, 2, 0):
            model.heatmaps(floats(1, 3, SIDE, SIDE, seed=seed), QUESTIONS)
        assert model.cache_info().disk_hits
    for file in there.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    model.heatmaps(floats(1, 3, SIDE, SIDE, seed=0), QUESTIONS)
    model.cache_clear(disk=True)


def serve_and_ask() -> None:
    one = Served(small())
    try:
        buffer = io.BytesIO()
        Image.fromarray(picture()).save(buffer, "PNG")
        name = one.upload(buffer.getvalue())[1]["id"]
        assert one.ask(picture=name, questions=QUESTIONS[:1])[0] == 200
        assert one.ask(picture=name, questions=QUESTIONS[:1], block=99)[0] == 400
        assert one.request("", Host="elsewhere")[0] == 421
    finally:
        one.close()


def serve_nobody() -> None:
    def stop(_: str) -> None:
        raise InterruptedError

    with contextlib.suppress(InterruptedError):
        qavit.serve.serve(small(), image=picture(), said=stop)


#: name -> (call, how many times fewer)
FUNCTIONS: dict[str, tuple[Callable[[], Any], int]] = {
    **{name: ((lambda call=call, make=make: call(make())), 1) for name, (make, call) in ARRAY_CALLS.items()},
    **{f"{name}, refused": (refused(lambda call=call: call({})), 1) for name, (_, call) in ARRAY_CALLS.items()},
    # the server
    "serve and ask": (serve_and_ask, 20),
    "serve, ended at once": (serve_nobody, 4),
    "explore": (lambda: small().explore(picture(), "what").close(), 5),
    "explore, refused": (refused(lambda: small().explore(3)), 1),
    "serve, refused": (refused(lambda: qavit.serve.serve(small(), port=-1)), 1),
    # models
    "load": (lambda: qavit.load(folder()), 1),
    "cache of pictures": (use_picture_cache, 1),
    "folder of pictures": (use_picture_folder, 1),
    "load and call": (lambda: qavit.load(folder()).heatmaps(photo(), QUESTIONS), 1),
    "load, refused": (refused(lambda: qavit.load(folder() / "absent")), 1),
    "load, no such device": (refused(lambda: qavit.load(folder(), device="nowhere")), 1),
    "load, pickled": (lambda: pickle.loads(pickle.dumps(qavit.load(folder()))), 1),
    "load bfloat16": (lambda: qavit.load(folder(), precision="bfloat16"), 1),
    "load int8": (lambda: qavit.load(folder(), precision="int8").heatmaps(photo(), QUESTIONS), 1),
    "load int8, converted": (lambda: qavit.load(converted_int8()).heatmaps(photo(), QUESTIONS), 1),
    "load CLIP": (lambda: qavit.load(vision=LATE / "clip"), 1),
    "load BLIP": (load_blip, 1),
    "load a checkpoint": (lambda: qavit.load(**late()), 1),
    "Vit.resized": (resized, 1),
    "Vit, refused": (refused(broken_weights), 1),
    "moves": (lambda: (small().to("cpu").cpu(), blip().to("cpu").cpu(), repr(small()), repr(blip())), 1),
    "cuda": (lambda: [where_there_is_one(model.cuda) for model in (small(), blip(), pnpvqa())], 1),
    "cuda, refused": (lambda: [refused(lambda m=model: m.to("cuda:99"))() for model in (small(), blip(), pnpvqa())], 1),
    "check_block, refused": (lambda: [refused(lambda m=m: m.check_block(99))() for m in (small(), blip())], 1),
    "encode_questions": (lambda: small().encode_questions(QUESTIONS), 1),
    "BertEncoder": (lambda: encoder("bert").encode(ids()), 1),
    "BertEncoder, RoBERTa": (lambda: encoder("roberta").encode(ids()), 1),
    "ClipTextEncoder": (lambda: encoder("clip_text_model").encode(ids()), 1),
    "BertEncoder.encode_pooled": (lambda: encoder_once("bert").encode_pooled(np.array([[1, 2, 29]])), 1),
    "ClipTextEncoder.encode_pooled": (lambda: encoder_once("clip_text_model").encode_pooled(np.array([[1, 2, 29]])), 1),
    "vision, attentions": (use_attentions, 1),
    "answer": (lambda: demo_once().answer(photo(), QUESTIONS[0]), 1),
    "answer, written": (lambda: answering_once().answer(photo(), QUESTIONS, max_new_tokens=3, return_logits=True), 1),
    "answer, chosen": (lambda: answering_once().answer(photo(), QUESTIONS, answers=["red", "a car"]), 1),
    "load BLIP-VQA": (lambda: qavit.load(blip_vqa_folder()), 1),
    "BLIP-VQA": (use_blip_vqa, 1),
    "BLIP-VQA, refused": (refused(lambda: blip_vqa().answer(photo(), "")), 1),
    "demo heatmaps": (lambda: demo_once().heatmaps(photo(), QUESTIONS), 1),
    "stream": (lambda: [*small().stream([photo(), photo()], QUESTIONS, fit="pad")], 1),
    "another block": (lambda: small().heatmaps(photo(), QUESTIONS).at(2), 1),
    "word maps": (lambda: small().heatmaps(photo(), QUESTIONS).word_maps, 1),
    "head maps": (lambda: small().heatmaps(photo(), QUESTIONS).head_maps, 1),
    "block maps": (lambda: small().heatmaps(photo(), QUESTIONS).block_maps, 1),
    "BLIP texts": (lambda: blip().itm(photo(), QUESTIONS), 1),
    "BLIP block maps": (lambda: blip().heatmaps(photo(), QUESTIONS).block_maps, 1),
    "ALBEF": (lambda: use_matcher("albef_itm"), 1),
    "BLIP-2": (lambda: use_matcher("blip2_itm"), 1),
    "BlipItm.text_features": (lambda: blip()._core.text_features(ids(), np.ones((2, 6), np.uint8)), 1),
    "BlipItm.image_features": (lambda: blip()._core.image_features(image_state()), 1),
    "Decoder": (lambda: use_decoder(0), 1),
    "Decoder, absorbed": (lambda: use_decoder(1), 1),
    "reader": (lambda: qavit.load(reader=GOLDEN / "unifiedqa_fid"), 4),
    "Reader.answer": (lambda: text_reader().answer("where is it?", ["a street", "two dogs"], 6, return_logits=True), 1),
    "Reader.answer, beams": (lambda: text_reader().answer("where is it?", ["a street", "two dogs"], 6, 4, 3), 1),
    "Reader.logits": (lambda: text_reader().logits(["a street", "two dogs"], [0, 5, 9]), 1),
    "Reader.attention": (lambda: text_reader().attention("what?", ["a street", "two dogs"], [5, 9]), 1),
    "Reader, refused": (refused(lambda: text_reader().answer("what?", [])), 1),
    # PnP-VQA and LAVIS
    "PNPVQA": (use_pnp_vqa, 1),
    "PNPVQA, refused": (refused(lambda: pnp_vqa().forward_qa({"text_input": "a", "captions": [[]]})), 1),
    "replace_forward_cap": (use_replaced_steps, 1),
    "Explanation": (drawn_small(use_explanation), 4),
    "PNPVQAWithQAViT": (use_pnpvqa, 1),
    "PNPVQAWithQAViT.from_config": (lambda: PNPVQAWithQAViT.from_config({"path": str(folder())}), 1),
    "PNPVQAWithQAViT, refused": (refused(lambda: PNPVQAWithQAViT(small(), patch_size=3)), 1),
    "create_simple_demo_model": (heatmap_demo.create_simple_demo_model, 1),
    "QAViTHeatmapDemo": (lambda: QAViTHeatmapDemo(small()).demo_single_image(photo(), "what", block_num=2), 1),
    "QAViTHeatmapDemo, questions": (
        lambda: QAViTHeatmapDemo(small()).demo_multiple_questions(photo(), QUESTIONS, block_num=2), 1),
    "QAViTHeatmapDemo, files": (drawn_small(demo_files), 4),
    "replace_forward_itm": (lambda: replace_and_restore(small(), 14), 1),
    "replace_forward_itm, BLIP": (lambda: replace_and_restore(blip(), 32), 1),
    "compute_gradcam": (lambda: lavis_matcher.compute_gradcam(blip(), floats(2, 3, 32, 32), QUESTIONS, None, 1), 1),
    "from_lavis": (lambda: lavis_modules.from_lavis(live_module(), tokenizer=small_vocabulary()), 1),
    "from_lavis, its tokenizer": (lambda: lavis_modules.from_lavis(live_module()), 1),
    "from_lavis, refused": (refused(lambda: lavis_modules.from_lavis(Captioner())), 1),
    "gradcams_from": (use_stored, 1),
    "gradcams_from, another grid": (lambda: use_stored(grid=(3, 3)), 1),
    # results
    "result": (use_result, 1),
    "file of a result": (use_file_of_result, 1),
    "what kinds lack": (use_what_kinds_lack, 1),
    "result, no such question": (refused(lambda: made()["who"]), 1),
    "result, asked for": (lambda: QUESTIONS[0] in made(), 1),
    "result, pickled": (lambda: pickle.loads(pickle.dumps(made())), 1),
    "result, copied": (lambda: copy.deepcopy(copy.copy(made())), 1),
    "boxes": (lambda: made().boxes(), 1),
    "upsample": (lambda: made().upsample((5, 6), "bilinear"), 1),
    "HeatmapResult.overlay": (lambda: made().overlay(1, size=9), 1),
    "to_dataframe": (lambda: made().to_dataframe(), 1),
    "save npz": (lambda: made().save(place() / "map.npz"), 1),
    "save npy": (lambda: made().save(place() / "map.npy"), 1),
    "save, refused": (refused(lambda: made().save(place() / "absent" / "map.npy")), 1),
    "to_html": (lambda: one().to_html(place() / "map.html"), 1),
    "html.render": (lambda: html.render(one(), blocks=False), 1),
    "save png": (lambda: one().save(place() / "map.png", "original", dpi=10), 1),
    **{f"figure, {kind}": (drawing(kind), 1) for kind in FIGURES},
    "figure, blocks": (lambda: one().figure("blocks", blocks=[2], colorbar=False), 1),
    "figure, panels": (lambda: one().figure(columns=2, top=1, colorbar=False), 4),
    **{f"render, {ending}": (draw_once(ending), 1) for ending in ("png", "jpg", "svg", "pdf")},
    "plot": (draw_axes, 1),
    "plot, a new figure": (plot_anew, 1),
    "show": (show_nowhere, 1),
    "_repr_jpeg_": (drawn_small(lambda: one()._repr_jpeg_()), 4),
    # pictures
    "load_image, JPEG": (lambda: images.load_image(photo()), 1),
    "load_image, PNG": (lambda: images.load_image(picture_file("png")), 1),
    "load_image, BMP": (lambda: images.load_image(picture_file("bmp")), 1),
    "load_image, GIF": (lambda: images.load_image(picture_file("gif")), 1),
    "load_image, WebP": (lambda: images.load_image(picture_file("webp")), 1),
    "load_image, Pillow": (lambda: images.load_image(Image.fromarray(picture()).convert("RGBA")), 1),
    "load_image, a file": (lambda: images.load_image(io.BytesIO(Path(photo()).read_bytes())), 1),
    **{
        f"load_image, damaged {ending}": (refused(lambda ending=ending: images.load_image(damaged(ending))), 1)
        for ending in ("jpg", "png", "bmp", "webp")
    },
    "preprocess": (lambda: images.preprocess(picture(), Preprocessing(14)), 1),
    "picture_of": (lambda: images.picture_of(floats(3, 14, 14), Preprocessing(14)), 1),
    "Region, Preprocessing": (use_region, 1),
    "Preprocessing, refused": (refused(lambda: Preprocessing.from_dict({"size": 0})), 1),
    # files of models
    "open_model": (lambda: open_model(folder()), 1),
    "open_model, a checkpoint": (open_late, 1),
    "open_model, another size": (lambda: open_model(folder(), image_size=21), 1),
    "open_model, refused": (refused(lambda: open_late(config={"integration_point": "early"})), 1),
    "float_array": (lambda: weights.float_array(open_model(folder()).weights["vision_model.pre_layrnorm.weight"]), 1),
    "convert": (lambda: convert(open_model(folder()), place() / "converted", "bfloat16"), 1),
    "convert, panels": (lambda: convert(open_model(folder()), place() / "panels", "float32", 16), 1),
    "convert, int8": (
        lambda: convert(open_model(folder()), place() / "int8", "int8", calibrate=[floats(3, SIDE, SIDE)]), 1),
    "convert, refused": (refused(lambda: convert(open_model(folder()), place() / "converted", "int4")), 1),
    "describe": (lambda: description_text(describe(open_model(folder()))), 1),
    "read_torch_file, an archive": (
        lambda: open_weights(torch_file("archive.pth", hostile.archive(pickled()))), 1),
    "read_torch_file, compressed": (
        lambda: open_weights(
            torch_file("compressed.pth", hostile.archive(pickled(), compression=zipfile.ZIP_DEFLATED))), 1),
    "read_torch_file, before 1.6": (
        lambda: open_weights(
            torch_file("legacy.pth", hostile.legacy(pickled(), {"0": (4, struct.pack("<4f", 1, 2, 3, 4))}))), 1),
    "read_torch_file, refused": (
        refused(lambda: open_weights(torch_file("hostile.pth", hostile.archive(broken_pickle())))), 1),
    "shards, torch": (lambda: open_folder(shards("pytorch_model", "bin"), "path"), 1),
    "shards, safetensors": (lambda: open_folder(shards("model", "safetensors"), "path"), 1),
    "open_safetensors, refused": (refused(lambda: safetensors_files.open_safetensors(photo())), 1),
    "Tokenizer, vocab.txt": (lambda: text.Tokenizer.from_folder(vocabulary()).encode(QUESTIONS, 9), 1),
    "Tokenizer, vocab.json": (lambda: text.Tokenizer.from_folder(pairs()).encode(["ab a"], 9), 1),
    "Tokenizer, refused": (refused(lambda: text.Tokenizer("{}")), 1),
    "Tokenizer.encode": (use_tokenizer, 1),
    "QuestionCache": (use_cache, 1),
    "Config": (use_config, 1),
    "Config.from_file": (lambda: qavit.Config.from_file(folder() / "config.json"), 1),
    "Config, YAML": (lambda: qavit.Config.from_file(demo_module.FOLDER.parent / "lavis" / "qavit_config_example.yaml"), 1),
    "Config, refused": (refused(lambda: qavit.Config.from_file(photo())), 1),
    "a hub's name": (use_hub, 1),
    # data sets
    **{
        f"open_questions, {ending}": (
            (lambda ending=ending: [list(file) for file in qavit.data.open_questions(questions(ending))]), 1)
        for ending in ("jsonl", "json", "csv", "parquet", "tar")
    },
    "open_questions, refused": (refused(lambda: qavit.data.open_questions(photo())), 1),
    "HeatmapActor": (lambda: repr(pickle.loads(pickle.dumps(actor()))), 1),
    "HeatmapActor, a batch": (lambda: actor()({"image": [photo(), photo(), "absent"], "question": ["what", "a", "b"]}), 1),
    "run": (lambda: run_quietly(run_data), 1),
    "run, refused": (refused(lambda: qavit.data.run(questions(), maps(), model=folder(), part_rows=3)), 1),
    "run, a broken input": (refused(lambda: run_quietly(lambda: run_data(path=broken_questions()))), 1),
    "run, two processes": (lambda: run_quietly(lambda: run_data(workers=2)), 500),
    "read_maps": (lambda: qavit.data.read_maps(maps()), 1),
    "MapReader": (use_reader, 1),
    "MapReader.to_pandas": (lambda: reader().to_pandas(), 1),
    "MapReader.gather": (lambda: qavit.data.read_maps(maps()).gather(["q1", "q0"]), 1),
    "MapReader.gather, refused": (refused(lambda: reader().gather(["x"])), 1),
    "scale_maps": (lambda: qavit.data.scale_maps(unit(2, 4) * np.float32(1e-9), "float16"), 1),
    "write_part": (lambda: data_output.write_part(place() / "part.parquet", [row_of_output()], (2, 2), "float16"), 1),
    "OutputFolder": (output_folder, 1),
    "model_identity": (lambda: data_output.model_identity({"model": folder()}), 1),
    "Shard": (use_shard, 1),
    # the command line
    "qavit": (command(code=2), 1),
    "qavit --completion": (command("--completion", "zsh"), 1),
    "qavit, wrong usage": (wrong_usage, 1),
    "qavit info, its reader gone": (reader_gone, 1),
    "qavit info": (command("info", "{model}"), 1),
    "qavit info, this build": (command("info"), 1),
    "qavit info, refused": (command("info", "--model", "absent", code=1), 1),
    "qavit convert": (command("convert", "--model", "{model}", "-o", "{out}/converted", "--again"), 1),
    "qavit heatmap": (
        command("heatmap", "{photo}", "-q", "what", *DRAWN, "--no-figures", "--maps", "npy",
                "--html", "--again"), 1),
    "qavit heatmap, a picture missing": (
        command("heatmap", "absent.jpg", "-q", "what", *DRAWN, "--json", "--no-figures", code=1),
        1),
    "qavit heatmap, questions": (
        command("heatmap", "--questions", "{questions}", *DRAWN, "--json", "--no-figures", code=1),
        1),
    "qavit heatmap, figures": (
        drawn_small(command("heatmap", "{photo}", "-q", "what", *DRAWN, "--kind", "original", "--again")), 4),
    "qavit ask": (command("ask", "{photo}", "what is it?", "--json"), 8),
    "qavit eval": (command("eval", "--model", "{model}", "-o", "{new}", "--json"), 4),
    "qavit eval --against": (
        command("eval", "--model", "{model}", "--precision", "int8", "--against", "float32", "--json"), 4),
    "qavit run --answers": (
        command("run", "{questions}", "-o", "{new}", "--answers", "{out}/answers.json", "--json", code=1), 12),
    "qavit run": (command("run", "{questions}", "--model", "{model}", "-o", "{new}", "--json", code=1), 1),
    "qavit bench": (command("bench", "--model", "{model}", "--repeat", "1"), 1),
    "qavit demo": (drawn_small(demo_of_a_small_model), 4),
    # generation
    "process_logits": (lambda: qavit.generation.process_logits(floats(2, 30), ids(), top_k=5, top_p=0.9), 1),
    "process_logits, refused": (refused(lambda: qavit.generation.process_logits(floats(2, 3), ids())), 1),
    "decode": (use_decode, 1),
    "BlipCaptioner": (use_captioner, 1),
    "BlipCaptioner, int8": (lambda: use_captioner("int8"), 1),
    "generate, refused": (refused(lambda: small().generate(floats(3, 14, 14))), 1),
    "image_states, refused": (refused(lambda: small().image_states(floats(3, 14, 14))), 1),
    "score, refused": (refused(lambda: small().score(floats(3, 14, 14), "a")), 1),
    "BlipCaptioner, refused": (refused(lambda: captioner().generate(floats(3, 32, 32), top_k=2)), 1),
    # the rest
    "build_info": (qavit.build_info, 1),
    "set_num_threads": (set_and_get, 1),
    "demo_scene": (qavit.demo_scene, 1),
    "stand_in_weights": (use_stand_ins, 1),
    "stand_in_weights, refused": (refused(lambda: qavit.stand_in_weights("a")), 1),
    "evaluate": (use_evaluation, 2),
    "compare": (use_comparison, 2),
    "compare, refused": (refused(lambda: qavit.data.compare(model=small(), against="float12")), 1),
    "map_difference": (lambda: map_difference(floats(4, 4), floats(4, 4)), 1),
    "sanity_checks": (lambda: sanity_checks(small(), floats(3, 14, 14), "what is it", method="class", steps=1), 2),
    "sanity_checks, refused": (refused(lambda: sanity_checks(small(), floats(3, 14, 14), "a", steps=0)), 1),
    "Vit.gradients": (use_gradients, 1),
    "Vit.gradients, refused": (refused(lambda: small()._vit.gradients(floats(1, 5, 8), 0)), 1),
    "DualEncoder": (use_dual, 1),
    "DualEncoder, loaded": (lambda: qavit.load(GOLDEN / "methods_clip"), 2),
    "DualEncoder, methods": (use_methods, 1),
    "embeddings, refused": (
        lambda: [refused(lambda call=call: call(photo()))() for call in (small().encode_image, small().encode_text)], 1),
    "similarity, refused": (refused(lambda: small().similarity(photo(), QUESTIONS)), 1),
    "method, refused": (refused(lambda: small().heatmaps(photo(), QUESTIONS, method="gem")), 1),
    "attention_inside": (lambda: metrics_pointing.attention_inside(one(), 0, [(0, 0, 9, 9)]), 1),
    "Progress": (lambda: run_quietly(use_progress), 1),
    "write_whole": (use_files, 1),
    "check_device": (lambda: (devices.check_device("cpu"), refused(lambda: devices.check_device("x"))()), 1),
    "torch_of": (lambda: tensors.torch_of(np.zeros(1)), 1),
    "question_list": (lambda: arguments.question_list(QUESTIONS), 1),
    "output_size": (lambda: heatmaps_grid.output_size(9, (3, 4)), 1),
    "merge_heads": (lambda: methods.merge_heads(unit(2, 3, 4), "max"), 1),
}  # fmt: skip
