"""The reader against LAVIS's own numbers and transformers' T5: answers, logits, attention to contexts; and bad input."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import qavit
from qavit.checkpoints import convert, describe, open_model
from qavit.text import Tokenizer, context_of

GOLDEN = Path(__file__).parent / "data" / "golden" / "unifiedqa_fid"
CASES = json.loads((GOLDEN / "cases.json").read_text())
NAMES = [name for name in CASES["cases"] if name != "internal2"]
# Of the largest logit; the largest difference seen is 2.1e-5.
TOLERANCE = 1e-4
TEXTS = ["where is the red car? \\n a man holding a red hat.", "a street", "two dogs walking near the water", "people"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def reader() -> qavit.Reader:
    loaded = qavit.load(reader=GOLDEN)
    assert isinstance(loaded, qavit.Reader)
    return loaded


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_the_readers_face(reader: qavit.Reader) -> None:
    assert repr(reader).startswith(f"Reader({reader.name!r}: ")
    assert "object at" not in repr(reader)
    assert (reader.kind, reader.takes_questions, reader.methods, reader.num_blocks, reader.num_heads) == (
        "reader", True, (), 2, 4,
    )  # fmt: skip
    assert reader.max_tokens == 512
    assert qavit.load(GOLDEN).kind == "reader"
    with pytest.raises(TypeError, match="a reader sees no pictures"):
        reader.heatmaps(np.zeros((8, 8, 3), np.uint8), "what?")
    with pytest.raises(TypeError, match="itm: a model of kind 'reader' has none"):
        reader.itm(np.zeros((8, 8, 3), np.uint8), "what?")


@pytest.mark.parametrize("case", CASES["tokenizer"], ids=lambda case: case["text"])
def test_ids_and_texts_are_those_of_t5s_tokenizer(case: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_folder(GOLDEN)
    assert tokenizer.encode([case["text"]], 512).ids[0].tolist() == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]


@pytest.mark.every_level
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_laviss(reader: qavit.Reader, golden: dict[str, np.ndarray], name: str) -> None:
    case = CASES["cases"][name]
    lengths = {key: case["settings"][key] for key in ("max_len", "min_len") if key in case["settings"]}
    for number, contexts in enumerate(case["question_captions"]):
        sequence = golden[f"{name}_q{number}_sequences"][0]
        logits = golden[f"{name}_q{number}_logits"][:, 0]
        close(reader.logits(contexts, sequence[: len(logits)]), logits)
        answer = reader.answer(None, contexts, **lengths, return_logits=True)
        assert answer.ids.tolist() == sequence[1:].tolist()
        assert answer.text == str(answer) == case["answers"][number]
        close(answer.logits, logits)
        chosen = torch.log_softmax(torch.tensor(logits).double(), -1).gather(1, torch.tensor(sequence[1:, None]))
        assert answer.score == pytest.approx(chosen.sum().item(), rel=1e-4)


def test_logits_of_a_given_text_are_laviss(reader: qavit.Reader, golden: dict[str, np.ndarray]) -> None:
    contexts = CASES["cases"]["fid2"]["question_captions"][1]
    close(reader.logits(contexts, golden["teacher_decoder_ids"][0]), golden["teacher_logits"][0])


def test_contexts_stand_behind_their_question(reader: qavit.Reader) -> None:
    assert context_of(" What is IT?? ", " A Dog. ") == "what is it?? \\n a dog."
    case = CASES["cases"]["fid1"]
    texts = [context.partition(" \\n ")[2].upper() for context in case["question_captions"][1]]
    answer = reader.answer("  " + CASES["questions"][1].upper(), texts)
    assert answer.text == case["answers"][1]
    assert answer.logits is None


# ---- transformers ----


def t5_folder(folder: Path, seed: int = 0, **settings: Any) -> transformers.T5ForConditionalGeneration:
    """A random T5 with the golden's tokenizer."""
    sizes = {"vocab_size": 210, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2}
    settings = {"num_heads": 3, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, **sizes, **settings}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else 1.5 * noise / parameter.shape[-1] ** 0.5)
    model.eval().save_pretrained(folder)
    for name in ("spiece.model", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / name, folder)
    return model


def fused(model: Any, contexts: list[str]) -> Any:
    """The states of contexts, each encoded alone, end to end, as transformers' decoder takes them."""
    tokenizer = Tokenizer.from_folder(GOLDEN)
    ids = [torch.tensor(tokenizer.encode([text], 512).ids.astype(np.int64)) for text in contexts]
    with torch.no_grad():
        states = torch.cat([model.encoder(row).last_hidden_state for row in ids], dim=1)
    return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=states)


SETTINGS = [
    {"feed_forward_proj": "relu"},
    {"tie_word_embeddings": False},
    {"feed_forward_proj": "relu", "relative_attention_max_distance": 40, "d_kv": 5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["tied", "untied", "short reach"])
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_transformers_generate(tmp_path: Path, settings: dict[str, Any], beams: int) -> None:
    model = t5_folder(tmp_path, **settings)
    reader = qavit.load(reader=tmp_path)
    how: dict[str, Any] = {"num_beams": beams, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
    for lengths in ({}, {"max_length": 7}, {"min_length": 12, "max_length": 16}):
        how |= {"max_length": 20, "min_length": 0, **lengths}
        expected = model.generate(encoder_outputs=fused(model, TEXTS), **how)[0, 1:].tolist()
        answer = reader.answer(
            None, TEXTS, max_len=how["max_length"], min_len=how["min_length"], num_beams=beams, return_logits=True
        )
        assert answer.ids.tolist() == expected
    ids = [0, *expected]
    with torch.no_grad():
        logits = model(encoder_outputs=fused(model, TEXTS), decoder_input_ids=torch.tensor([ids])).logits[0].numpy()
    close(reader.logits(TEXTS, ids), logits)
    close(answer.logits, logits[:-1])


def test_attention_to_contexts_is_that_of_transformers(tmp_path: Path) -> None:
    model = t5_folder(tmp_path, 3, num_decoder_layers=3)
    model.set_attn_implementation("eager")
    reader = qavit.load(reader=tmp_path)
    answer = reader.answer(None, TEXTS, max_len=9)
    found = reader.attention(None, TEXTS, answer.ids)
    ids = torch.tensor([[0, *answer.ids[:-1].tolist()]])
    with torch.no_grad():
        cross = model(encoder_outputs=fused(model, TEXTS), decoder_input_ids=ids, output_attentions=True).cross_attentions
    weights = torch.stack(cross).mean(dim=(0, 1, 2))
    lengths = [len(Tokenizer.from_folder(GOLDEN).encode([text], 512).ids[0]) for text in TEXTS]
    expected = torch.stack([part.sum(-1) for part in weights.split(lengths, dim=-1)], dim=-1).numpy()
    assert found.shape == (len(answer.ids), len(TEXTS))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_many_contexts_are_read_without_keys(reader: qavit.Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [f"where is it? \\n {a} and {b}." for a in TEXTS[1:] for b in TEXTS] * 12
    few = reader.answer(None, contexts, return_logits=True)
    monkeypatch.setattr("qavit.models._reader.USUAL_ANSWER", 10**6)
    many = reader.answer(None, contexts, max_len=20, return_logits=True)
    assert few.ids.tolist() == many.ids.tolist()
    close(few.logits, many.logits, 3e-5)
    assert np.abs(few.logits - many.logits).max() > 0  # they were added up in another order
    again = reader.answer(None, contexts[::-1], return_logits=True)
    close(again.logits, few.logits, 3e-5)


def test_bfloat16_is_close(golden: dict[str, np.ndarray]) -> None:
    reader = qavit.load(reader=GOLDEN, precision="bfloat16")
    logits = golden["fid1_q0_logits"][:, 0]
    found = reader.logits(CASES["cases"]["fid1"]["question_captions"][0], golden["fid1_q0_sequences"][0, : len(logits)])
    assert np.abs(found - logits).max() <= 0.05 * np.abs(logits).max()


# ---- files ----


def test_readers_travel_and_convert(reader: qavit.Reader, tmp_path: Path) -> None:
    contexts = CASES["cases"]["short"]["question_captions"][0]
    expected = reader.answer(None, contexts, 6)
    convert(open_model(GOLDEN), tmp_path / "converted", panels=0)
    others = (
        pickle.loads(pickle.dumps(reader)), copy.deepcopy(reader), qavit.load(tmp_path / "converted"),
        qavit.load(reader=tmp_path / "converted"),
    )  # fmt: skip
    for other in others:
        answer = other.answer(None, contexts, 6)
        assert (answer.text, answer.ids.tolist()) == (expected.text, expected.ids.tolist())
    assert describe(open_model(GOLDEN))["vision"] is None


def test_a_head_may_be_tied_or_not_there(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN, tmp_path / "bf16")
    weights = torch.load(GOLDEN / "pytorch_model.bin")
    slim = {name: tensor for name, tensor in weights.items() if not name.endswith("embed_tokens.weight")}
    slim.pop("lm_head.weight", None)
    slim["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 4)
    torch.save(slim, folder / "pytorch_model.bin")
    contexts = CASES["cases"]["short"]["question_captions"][0]
    answer = qavit.load(reader=folder).answer(None, contexts, 6)
    assert answer.text == CASES["cases"]["short"]["answers"][0]


def broken(folder: Path, **settings: Any) -> Path:
    """The golden's folder with another configuration; a None takes its key out."""
    config = {**json.loads((GOLDEN / "config.json").read_text()), **settings}
    shutil.copytree(GOLDEN, folder)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 8}, "says num_heads 8, the weights say 4"),
        ({"num_decoder_layers": 3}, "says num_decoder_layers 3, the weights say 2"),
        ({"feed_forward_proj": "gated-gelu"}, "the weights have wi alone"),
        ({"eos_token_id": 210}, "eos_token_id is 210, expected 0 to 209"),
        ({"decoder_start_token_id": "0"}, "decoder_start_token_id is '0', expected 0 to 209"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', expected true or false"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qavit.load(reader=broken(tmp_path / "reader", **settings))


def test_files_that_are_no_reader_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="reader: there is no folder 'absent'"):
        qavit.load(reader="absent")
    with pytest.raises(ValueError, match=r"reader: .* holds a model of kind 'clip', expected a T5"):
        qavit.load(reader=GOLDEN.parent / "methods_clip")
    with pytest.raises(ValueError, match="reader: expected alone"):
        qavit.load(GOLDEN, reader=GOLDEN)
    with pytest.raises(ValueError, match="image_size= was given, but a T5 reader"):
        qavit.load(reader=GOLDEN, image_size=224)
    folder = broken(tmp_path / "reader")
    (folder / "spiece.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"reader: .* holds no tokenizer.*; or give tokenizer="):
        qavit.load(reader=folder)
    assert qavit.load(reader=folder, tokenizer=GOLDEN / "spiece.model").kind == "reader"
    weights = torch.load(GOLDEN / "pytorch_model.bin").items()
    torch.save({name: one for name, one in weights if not name.startswith("decoder.")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no decoder among its tensors"):
        qavit.load(reader=folder, tokenizer=GOLDEN / "spiece.model")


# ---- bad input ----


@pytest.mark.parametrize(
    ("question", "contexts", "error", "message"),
    [
        ("where?", [], ValueError, "contexts: the list is empty"),
        ("where?", None, TypeError, "contexts: expected a str or a list of str, got NoneType"),
        ("where?", ["a", 3], TypeError, "contexts: expected a str or a list of str, got list with int in it"),
        ("  ", ["a"], ValueError, "question: '  ' has no words"),
        (3, ["a"], TypeError, "question: expected a str or None, got int"),
        ("\udcff", ["a"], ValueError, "surrogate"),
        (None, ["a", " "], ValueError, "contexts: number 1 has no words"),
    ],
)
def test_bad_texts_are_named(reader: qavit.Reader, question: Any, contexts: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        reader.answer(question, contexts)


def test_bad_settings_are_named(reader: qavit.Reader) -> None:
    for settings, error, message in (
        ({"max_len": 1}, ValueError, "max_length: 1, expected more than the 1 tokens"),
        ({"max_len": 5, "min_len": 6}, ValueError, "min_length: 6, expected at most max_length, 5"),
        ({"num_beams": 0}, ValueError, "num_beams: 0, expected 1 to 1024"),
        ({"num_beams": 10**9}, ValueError, "num_beams: 1000000000, expected 1 to 1024"),
        ({"max_len": 10**30}, ValueError, "max_length: 10{30}, expected 1 to 4096"),
        ({"max_len": "5"}, TypeError, "max_length"),
    ):
        with pytest.raises(error, match=message):
            reader.answer("where?", TEXTS, **settings)
    for ids, message in (
        ([], "ids: expected whole numbers"),
        ([[0]], "ids: expected whole numbers"),
        ([0.5], "ids: expected whole numbers"),
        ([0, 210], "ids: 0 to 210, expected 0 to 209"),
        ([-1], "ids: -1 to -1, expected 0 to 209"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.logits(TEXTS, ids)
        with pytest.raises(ValueError, match=message):
            reader.attention(None, TEXTS, ids)


def test_a_long_context_is_cut_and_said_so(reader: qavit.Reader) -> None:
    long = " ".join(["dog"] * 600)
    with pytest.warns(qavit.QuestionCutWarning, match="contexts: number 1 has more than 512 tokens; left out: 'dog dog"):
        cut = reader.answer(None, ["a street", long], 4, return_logits=True)
    assert len(cut.ids) == 3


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN, tmp_path / "reader")
    weights = torch.load(GOLDEN / "pytorch_model.bin")
    weights["encoder.final_layer_norm.weight"][3] = float("nan")
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a context's states are not finite"):
        qavit.load(reader=folder).answer("where?", TEXTS)


def test_another_models_tokenizer_is_told() -> None:
    golden = Path(__file__).parent / "data" / "golden"
    with pytest.raises(ValueError, match=r"texts end in token \d+, the reader's in 1: this is another model's tokenizer"):
        qavit.load(reader=golden / "unifiedqa_fid", tokenizer=golden / "blip_caption" / "vocab.txt")
